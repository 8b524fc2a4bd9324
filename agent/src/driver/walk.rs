//! The walk back from a content's digest, which shows whether what is held is true.

use proto::{ChunkIndex, Digest, ledger::Verdict};

use crate::shelf::{self, Shelf, Unwritable};

/// What a walk back from the digest found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walked {
    /// Every place has the content verified.
    pub(crate) closed: bool,
    pub(crate) verdicts: Vec<Verdict>,
    /// Why what one image holds couldn't be copied to another.
    pub(crate) storage_error: Option<String>,
    /// Images whose files can't be written.
    pub(crate) unwritable: Vec<Unwritable>,
    /// Chunks that some image lacks all the same. They are asked for again.
    pub(crate) lacking: Vec<ChunkIndex>,
}

/// Copies to each shelf what only others hold, and walks on each. Blocks.
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
