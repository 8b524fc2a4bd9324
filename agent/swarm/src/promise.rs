//! The promises about one content that one peer didn't keep.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{ChunkIndex, ChunkSet, Moment};

/// A peer that broke this many promises about a content isn't believed about that content any more.
const MOST: usize = 8;
/// A peer is believed again when it has broken no promise for this long.
pub(crate) const REMEMBERED: Duration = Duration::from_mins(1);
/// This many broken promises are forgiven if the peer takes its announcements back. An honest host that loses chunks
/// takes their announcements back at once, so few requests come before the peers hear of that.
const FORGIVEN: usize = 64;

/// Promises about one content that one peer broke lately.
#[derive(Clone, Debug)]
pub(crate) struct Promises {
    /// The chunks.
    broken: Vec<ChunkIndex>,
    /// The peer's word about the content doesn't count.
    worthless: bool,
    /// Promises that the peer broke and then took back.
    forgiven: usize,
    /// The moment at which all this is forgotten.
    until: Moment,
}

impl Promises {
    pub(crate) const fn new(now: Moment) -> Self {
        Self {
            broken: Vec::new(),
            worthless: false,
            forgiven: 0,
            until: now,
        }
    }

    /// The peer didn't keep its promise of this chunk. A peer that is distrusted already, for another content, may
    /// break no more: its word doesn't count from the first broken promise on.
    pub(crate) fn broke(&mut self, now: Moment, chunk: ChunkIndex, distrusted: bool) {
        self.until = now + REMEMBERED;
        if self.broken.len() < MOST {
            self.broken.push(chunk);
        }
        self.worthless |= distrusted || self.broken.len() >= MOST;
    }

    /// The peer announced anew all that it holds: it takes back the promises of other chunks.
    pub(crate) fn renewed(&mut self, chunks: &ChunkSet) {
        let taken_back = |chunk: &ChunkIndex| !chunks.contains(*chunk);
        let count = self.broken.iter().filter(|chunk| taken_back(chunk)).count();
        if self.forgiven + count <= FORGIVEN {
            self.forgiven += count;
            self.broken.retain(|chunk| !taken_back(chunk));
            self.worthless &= !self.broken.is_empty();
        }
    }

    /// Whether the peer's word about the content doesn't count.
    pub(crate) const fn are_worthless(&self) -> bool {
        self.worthless
    }

    pub(crate) fn are_forgotten(&self, now: Moment) -> bool {
        self.until <= now
    }
}
