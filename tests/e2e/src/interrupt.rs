//! Whether a signal asked the demo to end.
//!
//! Whatever takes longer than a moment asks now and then: making an image, waiting, comparing. The caller's way out
//! cleans up what was begun.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Has everything that [`check`]s end soon.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// An error once a signal asked the demo to end.
pub(crate) fn check() -> io::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(io::Error::other("interrupted"));
    }
    Ok(())
}
