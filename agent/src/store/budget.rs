//! A budget: so many units of something scarce, such as memory. Threads take some for a while, and wait where too few
//! are left.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use crate::lock::lock;

/// Who waits asks this often whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Budget {
    all: u64,
    /// Locked for a look.
    left: Mutex<u64>,
    /// Signals that something was given back.
    given_back: Condvar,
}

impl Budget {
    pub(super) const fn new(all: u64) -> Self {
        Self {
            all,
            left: Mutex::new(all),
            given_back: Condvar::new(),
        }
    }

    /// Takes `much`, or the whole budget if that is less, until the returned value is dropped. Waits until so much is
    /// left. A thread that has taken something must not take from the same budget again.
    ///
    /// # Errors
    /// Those of `go_on`, which is asked now and then while this waits.
    pub(super) fn take(
        &self,
        much: u64,
        go_on: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<Taken<'_>> {
        let much = much.min(self.all);
        let mut left = lock(&self.left);
        loop {
            if *left >= much {
                *left -= much;
                return Ok(Taken { of: self, much });
            }
            go_on()?;
            let waited = self.given_back.wait_timeout(left, ASK_EVERY);
            left = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A part of a [`Budget`]. Goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    of: &'a Budget,
    much: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *lock(&self.of.left) += self.much;
        self.of.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_who_wants_more_takes_all() {
        let (budget, taken, most) = (Budget::new(10), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for much in [3, 4, 10, 25, 1, 6] {
                let (budget, taken, most) = (&budget, &taken, &most);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let place = budget.take(much, &|| Ok(())).unwrap();
                        let now = taken.fetch_add(much.min(10), Ordering::SeqCst) + much.min(10);
                        most.fetch_max(now, Ordering::SeqCst);
                        taken.fetch_sub(much.min(10), Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 10);
        assert_eq!(*lock(&budget.left), 10);
    }

    #[test]
    fn who_waits_is_asked_whether_to_go_on() {
        let budget = Budget::new(10);
        let _all = budget.take(7, &|| Ok(())).unwrap();
        drop(budget.take(3, &|| Ok(())).unwrap());
        let asked = AtomicU64::new(0);
        let ended = budget.take(4, &|| match asked.fetch_add(1, Ordering::SeqCst) {
            0..3 => Ok(()),
            _ => Err(io::ErrorKind::Interrupted.into()),
        });
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
