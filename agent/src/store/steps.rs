//! Points between two steps of an installation or a beginning, at which tests let the process die.

#[cfg(not(test))]
use std::io;

/// Marks the end of a step.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests make it fail")]
pub(super) const fn step(_name: &'static str) -> io::Result<()> {
    Ok(())
}

/// Whether an installation goes on with its other references after an error.
#[cfg(not(test))]
pub(super) const fn going_on() -> bool {
    true
}

#[cfg(test)]
pub(super) use interrupted::{STEPS_LEFT, going_on, step};

#[cfg(test)]
mod interrupted {
    use std::{cell::Cell, io};

    thread_local! {
        /// How many more steps this thread's installations do before they die.
        pub(in crate::store) static STEPS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// False after the process died.
    pub(in crate::store) fn going_on() -> bool {
        STEPS_LEFT.get() > 0
    }

    pub(in crate::store) fn step(name: &'static str) -> io::Result<()> {
        let left = STEPS_LEFT.get();
        STEPS_LEFT.set(left.saturating_sub(1));
        if left == 0 {
            return Err(io::Error::other(format!("died after {name}")));
        }
        Ok(())
    }
}
