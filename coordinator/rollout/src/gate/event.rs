//! What the gate is told.

use alloc::{collections::BTreeSet, string::String};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use crate::presence::Holdings;

/// A pool, by a name that the shell makes unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub String);

/// A Pod, by its uid: a Pod of the same name that comes later is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub String);

/// Who labels the Pods of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The gate.
    Own,
    /// Another controller, which asks the gate.
    Guard,
    /// Nobody asks: images are staged and Pods roll as they like.
    Off,
}

/// What happens when a deadline passes and hosts still lack the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnDeadline {
    /// The gate stays shut where the image isn't.
    Hold,
    /// Pods may drain where the image isn't, still under the cap.
    Proceed,
}

/// What the owners of a pool's Pods make: a ReplicaSet's template, a RunnerPool's image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Template {
    /// It is being read: nothing is let go before it was.
    Unread,
    /// It can't be read. What an owner makes shows only when it makes it.
    Unknown,
    /// Pods of this image, as written there. Of several owners, one that makes another image than the pool's counts.
    Image(String),
}

/// What a coordinator before this one left to remember of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// [`PoolStatus::awaited`](super::PoolStatus::awaited), as it was written down last.
    pub awaited: u32,
    /// Whether a Pod had shown that its owner lags, and nothing had spoken against it.
    pub lags: bool,
}

/// A set of Pods that run one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The image that its Pods shall run, as written there: a Pod whose image is another string is stale.
    pub image: String,
    /// What that names; `None` until it is resolved.
    pub digest: Option<Digest>,
    /// Who labels.
    pub mode: Mode,
    /// Pods in flight at one time, in per cent of `replicas`.
    pub percent: i32,
    /// How many Pods it shall have. Where it has more, and nobody made this number smaller, it isn't believed.
    pub replicas: i32,
    /// What the owners of its Pods make.
    pub template: Template,
    /// The hosts that its Pods may run on.
    pub hosts: BTreeSet<HostId>,
    /// An operator holds it: nothing is admitted.
    pub paused: bool,
    /// When its deadline passes, where it has one.
    pub deadline: Option<Moment>,
    /// What then.
    pub on_deadline: OnDeadline,
}

impl Pool {
    /// Whether its deadline has passed, and Pods may drain where the image isn't.
    pub(super) fn proceeds(&self, now: Moment) -> bool {
        self.on_deadline == OnDeadline::Proceed && self.deadline.is_some_and(|at| at <= now)
    }
}

/// Where a Pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not started.
    Pending,
    /// Running.
    Running,
    /// It succeeded or failed.
    Ended,
    /// Its node can't be asked.
    Unknown,
}

/// Where a Pod runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// No node was chosen yet.
    Unscheduled,
    /// On this host.
    On(HostId),
    /// On a node that can't be a host of the fleet.
    Elsewhere,
}

/// What a Pod's heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heartbeat {
    /// It has none: running is warm.
    Absent,
    /// It asked for work then. The shell's clock; what lies before its epoch is its epoch.
    Polling(Moment),
    /// It says something else, or nothing that can be read.
    Other,
}

/// A Pod's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A Pod of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its pool.
    pub pool: PoolId,
    /// Its name.
    pub name: PodName,
    /// The image that it runs, as written there.
    pub image: String,
    /// Where.
    pub place: Place,
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it carries the drain label.
    pub labelled: bool,
    /// Whether it works for somebody.
    pub busy: bool,
    /// Its heartbeat.
    pub heartbeat: Heartbeat,
    /// When it was made, in Unix seconds: older ones drain first.
    pub created_unix_s: i64,
    /// When the shell saw it first. By the shell's clock, so that it can be compared with when the pool's image
    /// changed.
    pub seen: Moment,
}

impl Pod {
    /// Whether it lives: nobody deletes it and it hasn't ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.deleting && self.phase != Phase::Ended
    }

    /// Whether it runs another image than its pool's.
    pub(super) fn is_stale(&self, pool: &Pool) -> bool {
        self.image != pool.image
    }

    /// Whether it asks for work, or does some.
    pub(super) fn serves(&self, now: Moment, heartbeat_max_age: Duration) -> bool {
        self.phase == Phase::Running && (self.busy || self.is_warm(now, heartbeat_max_age))
    }

    /// Whether it waits for work.
    pub(super) fn is_warm(&self, now: Moment, heartbeat_max_age: Duration) -> bool {
        self.phase == Phase::Running
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
    /// It was done. What the Pod looks like now was told before this.
    Done,
    /// It certainly wasn't done.
    Refused,
    /// Nobody knows: no answer came.
    Unknown,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Everything that the cluster holds was told once (`true`), or what was told can't be relied on any more
    /// (`false`): nothing is admitted or withdrawn until it can.
    Synced(bool),
    /// A pool is as told.
    Pool(PoolId, Pool),
    /// What is remembered of a pool from before this start. To be told as soon as the pool is.
    Before(PoolId, Before),
    /// There is no such pool any more.
    PoolGone(PoolId),
    /// A Pod is as told.
    Pod(PodId, Pod),
    /// There is no such Pod any more.
    PodGone(PodId),
    /// A node is as told.
    Node {
        /// The host that it is.
        host: HostId,
        /// Whether it is Ready.
        ready: bool,
        /// Whether Pods may be scheduled there.
        schedulable: bool,
    },
    /// There is no such node any more.
    NodeGone(HostId),
    /// A host says what it holds, all of it; it looked so long ago.
    Holds(HostId, Holdings, Duration),
    /// A host looked again so long ago, and nothing changed there.
    Seen(HostId, Duration),
    /// A write ended.
    Written(PodId, Outcome),
    /// Time passed; only `now` matters.
    Tick,
}
