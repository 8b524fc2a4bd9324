//! An open file of an image, with the inode by which it is told from another one of the same name.

use std::{fs::File, io, os::unix::fs::MetadataExt as _, sync::Arc};

/// An open file. While it is open, no other file gets its inode.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    inode: u64,
}

impl OpenFile {
    /// Takes up an open file.
    ///
    /// # Errors
    /// When the volume doesn't tell its inode.
    pub(super) fn of(file: File) -> io::Result<Arc<Self>> {
        let inode = file.metadata()?.ino();
        Ok(Arc::new(Self { file, inode }))
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    pub(super) const fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether the file still has a name.
    pub(super) fn is_linked(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.nlink() > 0)
    }

    /// Bytes that the file takes from the volume, by the file system's count. Blocks shared with a clone are counted,
    /// too.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.blocks() * 512)
    }
}
