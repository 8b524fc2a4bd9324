//! Where the bytes of contents lie, as far as the rules of `held` need to know.

use std::{collections::BTreeSet, fmt, fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use proto::{CHUNK_BYTES, ChunkIndex};

use super::chunks::Chunks;
use crate::platform;

/// A chunk of zeros.
pub(super) static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
const _: () = assert!(ZEROS.len() as u64 == CHUNK_BYTES);

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

    /// Whether places may hold a chunk's bytes before it is written, as a disk does that began as a clone. Such bytes
    /// are compared, and pages that are there already aren't written.
    fn began_as_clone(&self) -> bool {
        false
    }

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

/// Does what [`put`] does. `compares`: other bytes may lie there, which are compared. Returns how many bytes were
/// written; a hole has none.
pub(super) fn put_over(
    file: &File,
    offset: u64,
    (bytes, zero): (&[u8], bool),
    compares: bool,
) -> io::Result<u64> {
    if compares && !zero {
        return put_changed(file, offset, bytes);
    }
    put(file, offset, bytes, zero)?;
    Ok(if zero { 0 } else { bytes.len() as u64 })
}

/// The unit in which [`put_changed`] compares: a block of the file systems that share blocks between files (APFS, and
/// XFS and Btrfs by default).
const PAGE: usize = 4096;

/// Writes bytes where other bytes lie, page by page. A page that has its bytes stays shared with other files. Returns
/// how many bytes were written.
fn put_changed(file: &File, offset: u64, bytes: &[u8]) -> io::Result<u64> {
    let mut there = vec![0; bytes.len()];
    if file.read_exact_at(&mut there, offset).is_err() {
        // what can't be read is written over
        file.write_all_at(bytes, offset)?;
        return Ok(bytes.len() as u64);
    }
    let mut written = 0;
    for range in differing(&there, bytes, offset) {
        file.write_all_at(&bytes[range.clone()], offset + range.start as u64)?;
        written += range.len() as u64;
    }
    Ok(written)
}

/// The ranges of whole pages in which the two differ, in order; none touches the next. Pages begin at multiples of
/// [`PAGE`] in the file, where the bytes begin at `offset`.
fn differing(one: &[u8], other: &[u8], offset: u64) -> Vec<Range<usize>> {
    let length = one.len().min(other.len());
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    // the first page may have begun before the bytes do
    let mut end = PAGE - usize::try_from(offset).unwrap_or(0) % PAGE;
    while start < length {
        let until = end.min(length);
        if one[start..until] != other[start..until] {
            match ranges.last_mut().filter(|last| last.end == start) {
                Some(last) => last.end = until,
                None => ranges.push(start..until),
            }
        }
        (start, end) = (until, until + PAGE);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_differs_is_written_in_whole_pages_and_nothing_else(
            offset in 0..3 * PAGE,
            length in 1..6 * PAGE,
            changed in prop::collection::vec(0..6 * PAGE, 0..4),
        ) {
            let file = tempfile::tempfile().unwrap();
            let old = vec![7; length];
            file.write_all_at(&old, offset as u64).unwrap();
            let mut new = old.clone();
            let mut pages = BTreeSet::new();
            for at in changed.into_iter().filter(|at| *at < length) {
                new[at] = 8;
                pages.insert((offset + at) / PAGE);
            }
            let written = put_changed(&file, offset as u64, &new).unwrap();
            let mut found = vec![0; length];
            file.read_exact_at(&mut found, offset as u64).unwrap();
            prop_assert!(found == new);
            let of_page = |page: &usize| {
                let from = (page * PAGE).max(offset);
                ((page + 1) * PAGE).min(offset + length) - from
            };
            prop_assert_eq!(written, pages.iter().map(of_page).sum::<usize>() as u64);
        }
    }

    #[test]
    fn what_lies_nowhere_is_written() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(put_changed(&file, 10, &[7; 9_000]).unwrap(), 9_000);
        assert_eq!(put_changed(&file, 10, &[7; 9_000]).unwrap(), 0);
        assert_eq!(file.metadata().unwrap().len(), 9_010);
    }
}
