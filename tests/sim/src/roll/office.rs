//! A coordinator's knowledge: its gate, and the facts that the gate was told.

use std::collections::{BTreeMap, BTreeSet};

use proto::{HostId, Moment};
use rollout::{
    gate::{self, Gate, PodId},
    presence::Holdings,
};

use super::due::Change;

/// A coordinator: its gate, and the facts that the gate was told.
#[derive(Debug)]
pub(super) struct Office {
    pub(super) gate: Gate,
    pub(super) term: u64,
    pub(super) up: bool,
    pub(super) synced_at: Option<Moment>,
    pub(super) free: [Moment; 3],
    pub(super) tick_at: Option<Moment>,
    pub(super) pods: BTreeMap<u32, (u64, gate::Pod)>,
    /// When the coordinator first saw each Pod.
    pub(super) seen: BTreeMap<u32, Moment>,
    pub(super) gone: BTreeSet<u32>,
    /// Made-up successors that only the gate is told of.
    pub(super) phantoms: Vec<PodId>,
    pub(super) nodes: BTreeMap<HostId, (bool, bool)>,
    /// Since when the coordinator has known nodes as cordoned.
    pub(super) cordoned: BTreeMap<HostId, Moment>,
    /// Since when the coordinator has known nodes as reserved for others, by pool.
    pub(super) reserved: BTreeMap<usize, BTreeMap<HostId, Moment>>,
    pub(super) prepulls: BTreeMap<usize, gate::PrePull>,
    /// The last report of each host, and when the host looked.
    pub(super) words: BTreeMap<HostId, (Moment, Holdings)>,
    /// Writes that aren't answered yet, by Pod.
    pub(super) writes: BTreeMap<u32, Change>,
    pub(super) restart: bool,
}

/// The gate's id of a Pod.
pub(super) fn pod_id(uid: u32) -> PodId {
    PodId(format!("uid-{uid:08}"))
}

/// The Pod of a gate's id.
pub(super) fn uid(id: &PodId) -> u32 {
    id.0.trim_start_matches("uid-")
        .parse()
        .expect("the world's own ids")
}

impl Office {
    pub(super) fn new(config: gate::Config) -> Self {
        Self {
            gate: Gate::new(config),
            term: 0,
            up: false,
            synced_at: None,
            free: [Moment::START; 3],
            tick_at: None,
            pods: BTreeMap::new(),
            seen: BTreeMap::new(),
            gone: BTreeSet::new(),
            phantoms: Vec::new(),
            nodes: BTreeMap::new(),
            cordoned: BTreeMap::new(),
            reserved: BTreeMap::new(),
            prepulls: BTreeMap::new(),
            words: BTreeMap::new(),
            writes: BTreeMap::new(),
            restart: false,
        }
    }
}
