//! The walk back from a content's digest, which shows whether what is held is true.

use proto::{ChunkIndex, chain::Verdict};

use crate::shelf::Unwritable;

/// What a walk back from the digest found.
#[derive(Debug)]
pub(crate) struct Walked {
    pub(crate) closed: bool,
    pub(crate) verdicts: Vec<Verdict>,
    /// Why what one image holds couldn't be copied to another.
    pub(crate) storage_error: Option<String>,
    /// Images whose files can't be written.
    pub(crate) unwritable: Vec<Unwritable>,
    /// Chunks that some image lacks all the same: they are asked for again.
    pub(crate) lacking: Vec<ChunkIndex>,
}
