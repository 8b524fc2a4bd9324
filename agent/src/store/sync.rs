//! The sync that has to come before a journal vouches for data. Tests can let it fail.

use std::{fs::File, io};

use crate::platform;

/// Makes everything written to the file reach the disk before anything that is written later.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    #[cfg(test)]
    failing::strike()?;
    platform::sync_data(file)
}

#[cfg(test)]
pub(crate) mod failing {
    use std::{cell::Cell, io};

    thread_local! {
        /// How many syncs of data and journals succeed in this thread before one fails.
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
