//! The sync before a journal's promise, which tests let fail.

use std::{fs::File, io};

use crate::platform;

/// Makes what was written to the file reach the disk before the journal says so.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    #[cfg(test)]
    failing::strike()?;
    platform::sync_data(file)
}

#[cfg(test)]
pub(crate) mod failing {
    use std::{cell::Cell, io};

    thread_local! {
        /// Syncs of data and journals that go well in this thread before one fails.
        pub(crate) static SYNCS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub(crate) fn strike() -> io::Result<()> {
        let left = SYNCS_LEFT.get();
        SYNCS_LEFT.set(left.checked_sub(1).unwrap_or(usize::MAX));
        if left == 0 {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        Ok(())
    }
}
