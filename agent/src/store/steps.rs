//! Points between two steps of an installation or a beginning, at which tests let the process die, or let something
//! happen.

#[cfg(not(test))]
use std::io;

/// Marks the end of a step.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests make it fail")]
pub(super) const fn step(_name: &'static str) -> io::Result<()> {
    Ok(())
}

/// Whether what follows an error is done: clearing up, or the other references of an installation. A process that died
/// does nothing more.
#[cfg(not(test))]
pub(super) const fn going_on() -> bool {
    true
}

#[cfg(test)]
pub(super) use interrupted::{STEPS_LEFT, at_steps, going_on, step};

#[cfg(test)]
mod interrupted {
    use std::{
        cell::{Cell, RefCell},
        io,
    };

    type Hook = Box<dyn FnMut(&'static str) -> io::Result<()>>;

    thread_local! {
        /// How many more steps this thread's installations and beginnings do before they die.
        pub(in crate::store) static STEPS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
        /// What happens at this thread's steps. Not there while it happens.
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Has this happen at each step of this thread, until what is returned is dropped. An error ends the step so.
    #[must_use]
    pub(in crate::store) fn at_steps(
        hook: impl FnMut(&'static str) -> io::Result<()> + 'static,
    ) -> impl Drop {
        struct Unhook;

        impl Drop for Unhook {
            fn drop(&mut self) {
                HOOK.take();
            }
        }

        HOOK.replace(Some(Box::new(hook)));
        Unhook
    }

    /// False after the process died.
    pub(in crate::store) fn going_on() -> bool {
        STEPS_LEFT.get() > 0
    }

    pub(in crate::store) fn step(name: &'static str) -> io::Result<()> {
        if let Some(mut hook) = HOOK.take() {
            let happened = hook(name);
            HOOK.replace(Some(hook));
            happened?;
        }
        let left = STEPS_LEFT.get();
        STEPS_LEFT.set(left.saturating_sub(1));
        if left == 0 {
            return Err(io::Error::other(format!("died after {name}")));
        }
        Ok(())
    }
}
