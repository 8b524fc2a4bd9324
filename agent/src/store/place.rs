//! Where the bytes of contents lie, as far as the rules of `held` need to know.

use std::{collections::BTreeSet, fmt, fs::File, io, os::unix::fs::FileExt as _};

use proto::ChunkIndex;

use super::chunks::Chunks;
use crate::platform;

/// Where the bytes of contents lie. A content's number is its position in the list that
/// [`Held::new`](super::held::Held::new) got.
pub(crate) trait Files: fmt::Debug {
    /// Calls `run` for each place of a content, with the place's number, the file, and the offset in the file where the
    /// content starts. Place 0 is the one that is read. Stops at the first error.
    fn each(
        &self,
        content: usize,
        access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Makes everything written to these contents survive a crash.
    fn sync(&self, contents: &BTreeSet<usize>) -> io::Result<()>;

    /// A chunk was dropped because its bytes don't fit its link or can't be read. Called without a lock.
    fn rotted(&self, content: usize, chunk: ChunkIndex);

    /// This many bytes of the volume were written to one of a content's places. Zeros aren't written.
    fn wrote(&self, bytes: u64) {
        let _ = bytes;
    }

    /// Chunks came or were compared, or the chunk `lost` was dropped. Called under the content's lock, so it has to be
    /// quick.
    fn changed(&self, content: usize, chunks: &Chunks, lost: Option<ChunkIndex>) {
        let _ = (content, chunks, lost);
    }
}

/// The purpose for which a place is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Whether the error says that the bytes themselves are lost: the file is shorter or gone, or a sector can't be read.
/// Other errors (such as too little memory, or too many open files) say nothing about the bytes.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Writes bytes, or punches a hole if they are zeros. The hole is never skipped, because the disk may have begun as a
/// clone, and a dropped chunk may have left its bytes.
pub(super) fn put(file: &File, offset: u64, bytes: &[u8], zero: bool) -> io::Result<()> {
    if zero {
        platform::punch_hole(file, offset, bytes.len() as u64)
    } else {
        file.write_all_at(bytes, offset)
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let quiet = |chunk: &[u8; 64]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    words.iter().all(quiet) && rest.iter().all(|byte| *byte == 0)
}
