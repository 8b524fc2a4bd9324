//! One peer's announcements of contents that aren't known here yet.

use std::collections::BTreeMap;

use proto::{ChunkSet, Digest, chunks::ParseRunsError};

/// Bytes of announcements that are kept for each peer. An image has some hundred contents of 512 chunks, each in a few
/// runs: that is ten kilobytes. If an announcement finds no room, this host asks for it by announcing the content
/// itself.
const REMEMBERED_BYTES: usize = 256 << 10;

/// Bytes that a content takes besides its runs: the digest, lengths, and the map's own.
const ENTRY_BYTES: usize = 96;

/// Announcements of one peer, merged by content.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    by_content: BTreeMap<Digest, (Vec<u32>, bool)>,
    bytes: usize,
}

impl Remembered {
    /// Keeps an announcement, if there is room. `reset`: it replaces earlier announcements.
    ///
    /// # Errors
    /// When the runs can't be those of any content.
    pub(super) fn keep(
        &mut self,
        content: Digest,
        runs: &[u32],
        reset: bool,
    ) -> Result<(), ParseRunsError> {
        let before = self.take(&content);
        let (runs, reset) = match &before {
            Some((kept, was_reset)) if !reset => (ChunkSet::merge_runs(kept, runs)?, *was_reset),
            _ => (ChunkSet::merge_runs(&[], runs)?, reset),
        };
        let entry = if self.bytes + size(&runs) <= REMEMBERED_BYTES {
            Some((runs, reset))
        } else {
            before
        };
        if let Some(entry) = entry {
            self.bytes += size(&entry.0);
            self.by_content.insert(content, entry);
        }
        Ok(())
    }

    /// Takes out the announcement of a content: its runs, and whether they replace earlier announcements.
    pub(super) fn take(&mut self, content: &Digest) -> Option<(Vec<u32>, bool)> {
        let entry = self.by_content.remove(content)?;
        self.bytes -= size(&entry.0);
        Some(entry)
    }
}

fn size(runs: &[u32]) -> usize {
    ENTRY_BYTES + size_of_val(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(at: u32) -> Digest {
        Digest::of(&at.to_le_bytes())
    }

    #[test]
    fn announcements_of_an_unknown_content_add_up() {
        let mut remembered = Remembered::default();
        let mut keep = |runs: &[u32], reset| remembered.keep(digest(0), runs, reset).unwrap();
        keep(&[3, 1], true);
        keep(&[0, 2], false);
        keep(&[2, 1], false);
        assert_eq!(remembered.take(&digest(0)), Some((vec![0, 4], true)));
        assert_eq!((remembered.take(&digest(0)), remembered.bytes), (None, 0));
        remembered.keep(digest(0), &[0, 9], false).unwrap();
        remembered.keep(digest(0), &[5, 1], true).unwrap();
        assert_eq!(remembered.take(&digest(0)), Some((vec![5, 1], true)));
        assert!(remembered.keep(digest(0), &[u32::MAX, 1], false).is_err());
        assert!(remembered.keep(digest(0), &[1], false).is_err());
    }

    #[test]
    fn a_peer_fills_its_room_and_no_more() {
        let mut remembered = Remembered::default();
        let comb = vec![1; 10_000];
        for round in 0..100 {
            for content in 0..50 {
                remembered.keep(digest(content), &comb, round == 0).unwrap();
                assert!(remembered.bytes <= REMEMBERED_BYTES);
            }
        }
        // the first ones are kept, and small ones still find room
        assert_eq!(remembered.take(&digest(0)), Some((comb, true)));
        remembered.keep(digest(99), &[0, 5], true).unwrap();
        assert_eq!(remembered.take(&digest(99)), Some((vec![0, 5], true)));
        for content in 0..100_000 {
            remembered.keep(digest(content), &[], true).unwrap();
        }
        assert!(remembered.by_content.len() * ENTRY_BYTES <= REMEMBERED_BYTES);
        let bytes: usize = remembered
            .by_content
            .values()
            .map(|(runs, _)| size(runs))
            .sum();
        assert_eq!(bytes, remembered.bytes);
    }
}
