//! Where the bytes of contents lie, as far as the rules for them care.

use std::{collections::BTreeSet, fmt, fs::File, io, os::unix::fs::FileExt as _};

use proto::ChunkIndex;

use super::chunks::Chunks;
use crate::platform;

/// Where the bytes of contents lie. Contents go by their number in the order in which
/// [`Held::new`](super::held::Held::new) was given them.
pub(crate) trait Files: fmt::Debug {
    /// Runs on each place of a content, with the place's number and the offset at which the content starts in the file.
    /// The first place is the one that is read. Stops at the first error.
    fn each(
        &self,
        content: usize,
        access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Makes what was written to these contents survive a crash.
    fn sync(&self, contents: &BTreeSet<usize>) -> io::Result<()>;

    /// A chunk isn't held any more because its bytes aren't what its link says, or can't be read. Called without a
    /// lock.
    fn rotted(&self, content: usize, chunk: ChunkIndex);

    /// Chunks came, were compared, or (`lost`) were dropped. Called under the content's lock: it has to be quick.
    fn changed(&self, content: usize, chunks: &Chunks, lost: Option<ChunkIndex>) {
        let _ = (content, chunks, lost);
    }
}

/// What a place is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Whether the error says that the bytes themselves are lost: the file is shorter or gone, or a sector can't be read.
/// Other errors (no more memory, files or network) say nothing of the bytes.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
    ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Writes bytes, or makes a hole where they are zeros. Always punched, never skipped: the disk may have begun as a
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
