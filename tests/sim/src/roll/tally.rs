//! What the checks remember between events.

use std::collections::{BTreeMap, BTreeSet};

use proto::Moment;

/// What the checks remember between events.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The three maps say since when something is amiss: a label stays where the image isn't (by Pod), a label stays on
    /// a current Pod (by Pod), and no Pod goes although one could (by pool).
    pub(super) lost: BTreeMap<u32, Moment>,
    pub(super) current: BTreeMap<u32, Moment>,
    pub(super) idle: BTreeMap<usize, Moment>,
    /// Pods that the gate called open at the last sample.
    pub(super) open: BTreeSet<u32>,
    /// Pods that the other controller was allowed to label, and until when its write may be under way.
    pub(super) granted: BTreeMap<u32, Moment>,
    /// The most Pods of each pool that may be taken: its cap, plus what outside events took beyond the cap.
    pub(super) allowed: BTreeMap<usize, u32>,
    /// The number of each pool's Pods that were let go while its owner disagreed.
    pub(super) spent: BTreeMap<usize, u32>,
    /// Whether a Pod counts anew that an operator drained: because it was let be, or because it left.
    pub(super) outside: bool,
}

impl Tally {
    /// Another coordinator starts, so what was told to the earlier one doesn't count.
    pub(super) fn forget(&mut self) {
        *self = Self {
            allowed: std::mem::take(&mut self.allowed),
            spent: std::mem::take(&mut self.spent),
            ..Self::default()
        };
    }
}
