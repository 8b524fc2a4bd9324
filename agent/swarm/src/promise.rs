//! What a peer promised of one content and didn't keep.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{ChunkIndex, ChunkSet, Moment};

/// A peer that broke so many promises of a content isn't believed about it any more.
const MOST: usize = 8;
/// A peer is believed again when it has broken no promise for this long.
pub(crate) const REMEMBERED: Duration = Duration::from_mins(1);
/// So many broken promises are forgiven to a peer that takes its announcements back. An honest host that loses chunks
/// does so at once, and few requests cross its word on the way.
const FORGIVEN: usize = 64;

/// Promises of one content that one peer broke lately.
#[derive(Clone, Debug)]
pub(crate) struct Promises {
    /// The chunks.
    broken: Vec<ChunkIndex>,
    /// What it says of the content doesn't count.
    worthless: bool,
    /// Promises that it broke and then took back.
    forgiven: usize,
    /// All this is forgotten then.
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

    /// The peer didn't keep its promise of this chunk. One that broke its promises of another content has no more to
    /// spare.
    pub(crate) fn broke(&mut self, now: Moment, chunk: ChunkIndex, distrusted: bool) {
        self.until = now + REMEMBERED;
        if self.broken.len() < MOST {
            self.broken.push(chunk);
        }
        self.worthless |= distrusted || self.broken.len() >= MOST;
    }

    /// The peer says anew all that it holds: it takes back what isn't in there.
    pub(crate) fn renewed(&mut self, chunks: &ChunkSet) {
        let taken_back = |chunk: &ChunkIndex| !chunks.contains(*chunk);
        let count = self.broken.iter().filter(|chunk| taken_back(chunk)).count();
        if self.forgiven + count <= FORGIVEN {
            self.forgiven += count;
            self.broken.retain(|chunk| !taken_back(chunk));
            self.worthless &= !self.broken.is_empty();
        }
    }

    /// Whether what the peer says of the content doesn't count.
    pub(crate) const fn are_worthless(&self) -> bool {
        self.worthless
    }

    pub(crate) fn are_forgotten(&self, now: Moment) -> bool {
        self.until <= now
    }
}
