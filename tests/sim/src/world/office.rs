//! What one coordinator knows: its plan, and what that was told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::{Digest, HostId};
use rollout::stage::{self, Plan};

use crate::network::Nanos;

/// A coordinator, or its place while none is there.
#[derive(Debug)]
pub(super) struct Office {
    pub(super) config: stage::Config,
    pub(super) plan: Option<Plan>,
    pub(super) seed: u64,
    /// Which coordinator this is: messages to an earlier one are lost.
    pub(super) term: u32,
    pub(super) timer_at: Nanos,
    /// What it was told and hasn't heard yet, while it stands still or falls behind.
    pub(super) inbox: VecDeque<stage::Event>,
    /// It handles nothing before.
    pub(super) busy_until: Nanos,
    /// How long each event takes it.
    pub(super) work: Nanos,
    pub(super) ordered: bool,
    /// Hosts on which the image isn't wanted any more, and whether they have heard of it.
    pub(super) unwanted: BTreeMap<u32, bool>,
    /// Nobody is to go on for now.
    pub(super) paused: bool,
    pub(super) quarantined: Vec<bool>,
    /// Leases that it thinks are out.
    pub(super) leases: BTreeSet<(Digest, HostId)>,
    /// When it last leased each content to each host.
    pub(super) granted: BTreeMap<(u32, Digest), VecDeque<Nanos>>,
}

impl Office {
    /// No coordinator is there. Each one that comes has another seed.
    pub(super) const fn new(config: stage::Config, seed: u64) -> Self {
        Self {
            config,
            plan: None,
            seed,
            term: 0,
            timer_at: u64::MAX,
            inbox: VecDeque::new(),
            busy_until: 0,
            work: 0,
            ordered: false,
            unwanted: BTreeMap::new(),
            paused: false,
            quarantined: Vec::new(),
            leases: BTreeSet::new(),
            granted: BTreeMap::new(),
        }
    }

    /// Whether the coordinator is there.
    pub(super) const fn is_open(&self) -> bool {
        self.plan.is_some()
    }

    /// Whether it says to a host that a content comes.
    pub(super) fn is_coming(&self, host: &HostId, content: &Digest) -> bool {
        let plan = self.plan.as_ref();
        plan.is_some_and(|plan| plan.is_coming(host, content))
    }
}
