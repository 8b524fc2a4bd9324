//! Locks of the standard library that a panic elsewhere doesn't take along.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose state is whole between statements, also after a thread that held the lock panicked.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
