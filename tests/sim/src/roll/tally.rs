//! What the checks remember from one event to the next.

use std::collections::{BTreeMap, BTreeSet};

use proto::Moment;

/// What the checks remember.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Since when a label has to go, or nothing goes where something could.
    pub(super) lost: BTreeMap<u32, Moment>,
    pub(super) current: BTreeMap<u32, Moment>,
    pub(super) idle: BTreeMap<usize, Moment>,
    /// Pods that could go at the last look.
    pub(super) open: BTreeSet<u32>,
    /// What the other controller was let do, and until when it may be under way.
    pub(super) granted: BTreeMap<u32, Moment>,
    /// The most that may be taken of each pool: its cap, and what lies above it by outside events.
    pub(super) allowed: BTreeMap<usize, u32>,
    /// Pods of each pool that were let go since its owner disagrees.
    pub(super) spent: BTreeMap<usize, u32>,
}

impl Tally {
    /// Another coordinator starts: what was told to the one before it says nothing.
    pub(super) fn forget(&mut self) {
        *self = Self {
            allowed: std::mem::take(&mut self.allowed),
            spent: std::mem::take(&mut self.spent),
            ..Self::default()
        };
    }
}
