//! What is to happen, and when.

use std::cmp::Ordering;

use proto::Moment;
use rollout::{gate, presence::Holdings};

/// What happens next to the world.
#[derive(Debug)]
pub(super) enum Due {
    Reconcile(usize),
    Read(usize),
    Boot(u32),
    Warm(u32),
    Poll(u32),
    JobDone(u32),
    Exit(u32),
    Removed(u32),
    Staged(usize, usize),
    Look(usize),
    Word {
        term: u64,
        host: usize,
        looked: Moment,
        holds: Holdings,
    },
    Sight(u64, Sight),
    Effect(Write),
    Answer(Write, gate::Outcome),
    Tick(u64),
    Start(u64),
    Other(usize),
    Autoscale(usize),
    Fault(Fault),
    Sample,
}

/// What happens at one moment. Of two at the same moment the one that was planned first comes first.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) at: Moment,
    pub(super) sequence: u64,
    pub(super) due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// What happens to the cluster from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The pool shall run this one of its images.
    Image {
        pool: usize,
        image: usize,
    },
    /// Its owner makes Pods of this one.
    Template {
        pool: usize,
        image: usize,
    },
    /// One of its idle Pods ends by itself.
    End(usize),
    /// Its owner makes Pods, or none.
    Makes(usize, bool),
    /// An operator who was told that its owner lags, and has mended that, shows it to a gate that can't read it: by a
    /// Pod that is deleted, or by a pause that ends.
    Nudge(usize),
    Replicas {
        pool: usize,
        percent: i32,
    },
    /// An operator holds the pool, or lets it go on.
    Paused(usize, bool),
    /// The registry has said which image the pool's reference names.
    Resolved(usize),
    Cordon(usize, bool),
    Ready(usize, bool),
    /// The node goes, and its Pods with it; the agent too, or not.
    Lost {
        host: usize,
        silent: bool,
    },
    Back(usize),
    /// The pool's image goes from the disk.
    Prune {
        host: usize,
        image: usize,
    },
    Silent(usize),
    Speaks(usize),
}

/// What a watch sees.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    Pod(u32, u64, gate::Pod),
    PodGone(u32),
    Node(usize, bool, bool),
    NodeGone(usize),
    Pool(usize, gate::Pool),
    Synced,
}

impl Sight {
    /// Each kind of object has a watch of its own, which keeps its order.
    pub(super) const fn watch(&self) -> usize {
        match self {
            Self::Pod(..) | Self::PodGone(_) => 0,
            Self::Node(..) | Self::NodeGone(_) => 1,
            Self::Pool(..) | Self::Synced => 2,
        }
    }
}

/// What a write does to a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Label,
    Unlabel,
    Reap,
}

/// A write on a Pod as it was when it was decided.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) term: u64,
    pub(super) uid: u32,
    pub(super) version: u64,
    pub(super) change: Change,
    /// Whether the gate let it pass, or nobody asked it.
    pub(super) admitted: bool,
}
