//! The events of the world, and when they are due.

use proto::Moment;
use rollout::{gate, presence::Holdings};

/// An event that is due.
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

/// What happens to the cluster from outside.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// From now on the pool shall run this one of its images.
    Image {
        pool: usize,
        image: usize,
    },
    /// The pool's owner makes Pods of this image from now on.
    Template {
        pool: usize,
        image: usize,
    },
    /// One of the pool's idle Pods ends by itself.
    End(usize),
    /// Whether the pool's owner makes Pods from now on.
    Makes(usize, bool),
    /// An operator has corrected a lagging owner that the gate can't read, and shows that to the gate. The operator
    /// deletes a Pod, or pauses and resumes the pool.
    Nudge(usize),
    Replicas {
        pool: usize,
        percent: i32,
    },
    /// An operator pauses the pool, or resumes it.
    Paused(usize, bool),
    /// The registry has answered which image the pool's reference names.
    Resolved(usize),
    Cordon(usize, bool),
    /// The host is reserved for this pool, or for none any more.
    Reserve(usize, Option<usize>),
    /// An operator drains one of the pool's idle Pods.
    Drain(usize),
    /// The operator lets this Pod be.
    LetBe(u32),
    Ready(usize, bool),
    /// The node is lost together with its Pods. With `silent`, its agent is lost too.
    Lost {
        host: usize,
        silent: bool,
    },
    Back(usize),
    /// The image is removed from the host's disk.
    Prune {
        host: usize,
        image: usize,
    },
    Silent(usize),
    Speaks(usize),
}

/// A change that a watch shows.
#[derive(Clone, Debug)]
pub(super) enum Sight {
    Pod(u32, u64, gate::Pod),
    PodGone(u32),
    Node(usize, bool, bool),
    NodeGone(usize),
    PrePull(usize, gate::PrePull),
    Synced,
}

impl Sight {
    /// The watch that shows this. Each kind of object has its own watch, which keeps the order.
    pub(super) const fn watch(&self) -> usize {
        match self {
            Self::Pod(..) | Self::PodGone(_) => 0,
            Self::Node(..) | Self::NodeGone(_) => 1,
            Self::PrePull(..) | Self::Synced => 2,
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

/// A write on a Pod, with the Pod's version at the decision.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) term: u64,
    pub(super) uid: u32,
    pub(super) version: u64,
    pub(super) change: Change,
    /// Whether the gate admitted this write. `false` where the webhook's failure policy let the write pass.
    pub(super) admitted: bool,
}
