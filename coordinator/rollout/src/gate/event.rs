//! The gate's events: what the gate is told.

use alloc::{collections::BTreeSet, string::String};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use crate::presence::Holdings;

/// A pre-pull's name, which the shell makes unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrePullId(pub String);

/// A Pod's uid. A later Pod of the same name has another uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub String);

/// The writer of a pre-pull's drain labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The gate.
    Own,
    /// Another controller, which asks the gate.
    Guard,
    /// Nobody: images are staged, and Pods roll without the gate.
    Off,
}

/// What the gate does when a deadline passes and hosts still lack the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnDeadline {
    /// The gate stays shut where the image is missing.
    Hold,
    /// Pods may drain where the image is missing, still under the cap.
    Proceed,
}

/// The image of the Pods that a pre-pull's owners make: from a ReplicaSet's template, or a RunnerPool's image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Template {
    /// The owner is being read. No Pod is let go before that is done.
    Unread,
    /// The owner can't be read. Its image shows only once it makes a Pod.
    Unknown,
    /// The owners make Pods of this image, written as in the owner. If there are several owners, one that makes another
    /// image than the pre-pull's counts.
    Image(String),
}

/// What an earlier coordinator recorded about a pre-pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// [`PoolStatus::awaited`](super::PoolStatus::awaited), as last recorded.
    pub awaited: u32,
    /// Whether a Pod had shown that its owner lags, and nothing had disproved it.
    pub lags: bool,
}

/// A pre-pull: which image its Pods shall run, and how they may go over to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrePull {
    /// The image that the Pods shall run, written as in the pre-pull. A Pod whose image is another string is stale.
    pub image: String,
    /// The digest of the image; `None` until it is resolved.
    pub digest: Option<Digest>,
    /// The writer of the drain labels.
    pub mode: Mode,
    /// The most Pods in flight at one time, in per cent of `replicas`.
    pub percent: i32,
    /// The number of Pods that the pre-pull shall have. If the pre-pull has more, and nobody lowered this number, the
    /// number isn't believed.
    pub replicas: i32,
    /// The image of the Pods that the owners make.
    pub template: Template,
    /// The hosts on which the pre-pull's Pods may run.
    pub hosts: BTreeSet<HostId>,
    /// Hosts that are reserved for another pool. The reserving controller deletes idle runners there, outside of our
    /// cap, and no successor of theirs can return (tuist/tuist of autumn 2026,
    /// infra/runners-controller/controllers/reservation.go: retireIdlePodsOnReservedNode).
    pub reserved: BTreeSet<HostId>,
    /// The fleet that the pre-pull shares with others, if it has one.
    pub fleet: Option<Fleet>,
    /// Whether an operator paused the pre-pull: nothing is admitted.
    pub paused: bool,
    /// When the pre-pull's deadline passes, if it has one.
    pub deadline: Option<Moment>,
    /// What happens once the deadline has passed.
    pub on_deadline: OnDeadline,
}

impl PrePull {
    /// Whether the deadline has passed and Pods may drain where the image is missing.
    pub(super) fn proceeds(&self, now: Moment) -> bool {
        self.on_deadline == OnDeadline::Proceed && self.deadline.is_some_and(|at| at <= now)
    }
}

/// The pools that share one set of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// The name of the fleet. Pre-pulls that name the same fleet share it.
    pub name: String,
    /// The most Pods of the whole fleet that may be started at one time, as this pre-pull's pool says. Where several
    /// pools of a fleet say so, the lowest number counts.
    pub most: Option<u32>,
}

/// The phase of a Pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not started.
    Pending,
    /// Running.
    Running,
    /// The Pod succeeded or failed.
    Ended,
    /// The Pod's node can't be asked.
    Unknown,
}

/// Where a Pod runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// No node has been chosen yet.
    Unscheduled,
    /// On this host.
    On(HostId),
    /// On a node that can't be a host of the fleet.
    Elsewhere,
}

/// Whether Pods may be scheduled on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Takes {
    /// Pods may come.
    Pods,
    /// None: the node is cordoned, or is being deleted.
    NoneWhileCordoned,
    /// None: the node lacks memory, disk or process ids, and has taints that keep Pods away (Kubernetes, "Taints and
    /// Tolerations": taint nodes by condition). The runners' controllers don't count it as capacity either
    /// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/helpers.go: nodeFilterReason).
    NoneUnderPressure,
}

/// What a Pod's heartbeat says (tuist/tuist of autumn 2026,
/// infra/runners-controller/controllers/runnerpool_controller.go: isWarmCapacity, guestPolling).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heartbeat {
    /// The Pod has no heartbeat that says when: it is warm while it runs.
    Absent,
    /// The Pod asked for work at this moment by the shell's clock. A time before that clock's epoch counts as the
    /// epoch.
    Polling(Moment),
    /// The heartbeat says something else.
    Other,
}

/// A Pod's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// The namespace.
    pub namespace: String,
    /// The name within the namespace.
    pub name: String,
}

/// A Pod of a pre-pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The Pod's pre-pull.
    pub prepull: PrePullId,
    /// Its name.
    pub name: PodName,
    /// The image that it runs, as written there.
    pub image: String,
    /// The node that the Pod runs on.
    pub place: Place,
    /// The phase of the Pod's life.
    pub phase: Phase,
    /// Whether the Pod is being deleted.
    pub deleting: bool,
    /// Whether the Pod carries the drain label.
    pub labelled: bool,
    /// Whether the Pod is busy with work.
    pub busy: bool,
    /// Whether an operator drains the Pod: it leaves before it takes work again. The operator may think better of it.
    pub operator_drain: bool,
    /// The Pod's heartbeat.
    pub heartbeat: Heartbeat,
    /// When the Pod was created, in Unix seconds. Older Pods drain first.
    pub created_unix_s: i64,
    /// When the shell saw the Pod first. This is by the shell's clock, so that it can be compared with the moment at
    /// which the pre-pull's image changed.
    pub seen: Moment,
}

impl Pod {
    /// Whether the Pod lives: it isn't being deleted and hasn't ended (tuist/tuist of autumn 2026,
    /// infra/runners-controller/controllers/runnerpool_controller.go: isAlive).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.deleting && self.phase != Phase::Ended
    }

    /// Whether somebody deletes the Pod although it hasn't ended. A finalizer may hold the Pod for minutes, until its
    /// virtual machine is gone (tuist/tuist of autumn 2026, infra/tart-kubelet/internal/podagent/reconciler.go:
    /// PodFinalizer).
    pub(super) fn is_terminating(&self) -> bool {
        self.deleting && self.phase != Phase::Ended
    }

    /// Whether the Pod leaves by an operator's will as soon as it can, so that it takes no more work.
    pub(super) const fn is_drained(&self) -> bool {
        self.operator_drain && !self.busy
    }

    /// Whether the Pod's image isn't the pre-pull's (the same file: isStaleImage).
    pub(super) fn is_stale(&self, prepull: &PrePull) -> bool {
        self.image != prepull.image
    }

    /// Whether the Pod waits for work or does some.
    pub(super) fn serves(&self, now: Moment, heartbeat_max_age: Duration) -> bool {
        self.phase == Phase::Running && (self.busy || self.is_warm(now, heartbeat_max_age))
    }

    /// Whether the Pod waits for work, by its heartbeat. A Pod that an operator drains takes none.
    pub(super) fn is_warm(&self, now: Moment, heartbeat_max_age: Duration) -> bool {
        self.phase == Phase::Running
            && !self.operator_drain
            && match self.heartbeat {
                Heartbeat::Absent => true,
                Heartbeat::Polling(at) => now.since(at) < heartbeat_max_age,
                Heartbeat::Other => false,
            }
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// The write was done. The Pod's new state was told before this.
    Done,
    /// The write certainly wasn't done.
    Refused,
    /// No answer came: the write may have been done.
    Unknown,
}

/// An event that the gate is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `true`: everything in the cluster has been told once. `false`: what was told can't be relied on any more. While
    /// it can't, nothing is admitted or withdrawn.
    Synced(bool),
    /// A pre-pull's present state.
    PrePull(PrePullId, PrePull),
    /// What an earlier coordinator recorded about a pre-pull. The shell sends it right after the pre-pull's first
    /// event.
    Before(PrePullId, Before),
    /// A pre-pull doesn't exist any more.
    PrePullGone(PrePullId),
    /// A Pod's present state.
    Pod(PodId, Pod),
    /// A Pod doesn't exist any more.
    PodGone(PodId),
    /// A node's present state.
    Node {
        /// The host that runs on the node.
        host: HostId,
        /// Whether the node is Ready.
        ready: bool,
        /// Whether Pods may be scheduled on the node.
        takes: Takes,
    },
    /// A node doesn't exist any more.
    NodeGone(HostId),
    /// A host reports everything that it holds. It looked at its disk this long ago.
    Holds(HostId, Holdings, Duration),
    /// A host looked at its disk again this long ago, and nothing changed.
    Seen(HostId, Duration),
    /// A write ended.
    Written(PodId, Outcome),
    /// Time passed; only `now` matters.
    Tick,
}
