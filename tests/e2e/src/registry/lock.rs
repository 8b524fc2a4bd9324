//! A lock that a failed test doesn't poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. A panic while it was held has failed the test already, and the rest of the test may go on.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
