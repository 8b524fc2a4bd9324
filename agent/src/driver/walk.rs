//! The walk back from a content's digest. It shows whether the chunks that are held are true.

use proto::{ChunkIndex, Digest, ledger::Verdict};

use crate::shelf::{self, Shelf, Unwritable};

/// The findings of a walk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walked {
    /// Every shelf has the content verified.
    pub(crate) closed: bool,
    pub(crate) verdicts: Vec<Verdict>,
    /// Why chunks of one image couldn't be copied to another.
    pub(crate) storage_error: Option<String>,
    /// Images whose files can't be written.
    pub(crate) unwritable: Vec<Unwritable>,
    /// Chunks that some image lacks after the copying. They are asked for again.
    pub(crate) lacking: Vec<ChunkIndex>,
}

/// Copies to each shelf the chunks that only other shelves hold, and walks on each shelf. Blocks.
pub(super) fn walk(shelves: &[Shelf], content: Digest, chunks: u32) -> Walked {
    let (unwritable, storage_error) = match shelf::level(shelves, content) {
        Ok(unwritable) => (unwritable, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut walked = Walked {
        closed: true,
        unwritable,
        storage_error,
        ..Walked::default()
    };
    for shelf in shelves {
        // a journal that can't be written shows at the next flush
        let verdicts = shelf.walk(content).unwrap_or_default();
        walked.closed &= shelf.is_closed(content);
        let held = shelf.held(content);
        let lacking = (0..chunks).map(ChunkIndex);
        let lacking = lacking.filter(|chunk| !held.contains(*chunk));
        walked.lacking.extend(lacking);
        for verdict in verdicts {
            if !walked.verdicts.contains(&verdict) {
                walked.verdicts.push(verdict);
            }
        }
    }
    walked
}
