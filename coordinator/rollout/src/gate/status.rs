//! What the gate says, and why.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostId, Moment};

use super::PodId;

/// Why a Pod may not drain. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Not everything that the cluster holds is known yet, or any more.
    NotSynced,
    /// It belongs to no pool that is gated.
    NotGated,
    /// It ended, or is being deleted.
    NotAlive,
    /// It runs the pool's image already.
    Current,
    /// It works for somebody.
    Busy,
    /// It carries the label already.
    AlreadyLabelled,
    /// It is neither Pending nor Running, or Pending in a pool that another controller owns.
    NotRunning,
    /// An operator paused the roll.
    Paused,
    /// What the owners of the pool's Pods make is being read.
    OwnerUnread,
    /// The owner of the pool's Pods makes Pods of another image than the pool's: whoever is let go comes back stale.
    OwnerLags,
    /// The pool's image isn't resolved to a digest.
    ImageUnresolved,
    /// Its node isn't known as a host of the fleet.
    NodeUnknown,
    /// Its node isn't Ready.
    NodeNotReady,
    /// Its node is cordoned: its successor couldn't return there.
    NodeCordoned,
    /// Its node doesn't hold the image.
    ImageMissing,
    /// Its node held the image when it last spoke, so long ago.
    PresenceOld(Duration),
    /// Its node's agent hasn't spoken since this coordinator started.
    HostUnheard,
    /// It has no node, and too few hosts hold the image.
    TooFewHosts {
        /// Hosts that hold it.
        have: u32,
        /// Hosts that have to.
        need: u32,
    },
    /// As many Pods are in flight as may be.
    CapReached {
        /// Pods in flight, slots taken for others, and Pods that are away.
        in_flight: u32,
        /// Of these: Pods on Nodes that aren't Ready.
        away: u32,
        /// The cap, which is less than the pool's share of its replicas while Pods are lacking.
        cap: u32,
    },
    /// As many Pods as may be are in flight, and some of them left long ago: their owner makes no successors.
    NoSuccessor {
        /// Pods that left and have no successor.
        missing: u32,
        /// The cap.
        cap: u32,
    },
    /// A write on it was refused; the next try waits.
    RetryWaits,
    /// It was admitted a moment ago.
    Admitted,
}

impl Reason {
    /// The reason that it is shown as.
    #[must_use]
    pub const fn shown(self) -> proto::Reason {
        match self {
            Self::NotSynced => proto::Reason::NotSynced,
            Self::NotGated => proto::Reason::NotGated,
            Self::NotAlive => proto::Reason::NotAlive,
            Self::Current => proto::Reason::Current,
            Self::Busy => proto::Reason::Busy,
            Self::AlreadyLabelled => proto::Reason::AlreadyLabelled,
            Self::NotRunning => proto::Reason::NotRunning,
            Self::Paused => proto::Reason::Paused,
            Self::OwnerUnread => proto::Reason::OwnerUnread,
            Self::OwnerLags => proto::Reason::OwnerLags,
            Self::ImageUnresolved => proto::Reason::ImageUnresolved,
            Self::NodeUnknown => proto::Reason::NodeUnknown,
            Self::NodeNotReady => proto::Reason::NodeNotReady,
            Self::NodeCordoned => proto::Reason::NodeCordoned,
            Self::ImageMissing => proto::Reason::ImageMissing,
            Self::PresenceOld(_) => proto::Reason::PresenceOld,
            Self::HostUnheard => proto::Reason::HostUnheard,
            Self::TooFewHosts { .. } => proto::Reason::TooFewHosts,
            Self::CapReached { .. } => proto::Reason::CapReached,
            Self::NoSuccessor { .. } => proto::Reason::NoSuccessor,
            Self::RetryWaits => proto::Reason::RetryWaits,
            Self::Admitted => proto::Reason::Admitted,
        }
    }

    /// Its name, for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.shown().as_str()
    }

    /// Whether it keeps a stale Pod that is free to go until something else changes: the image, its host, or a word
    /// of an operator.
    #[must_use]
    pub const fn is_block(self) -> bool {
        matches!(
            self,
            Self::NotSynced
                | Self::Paused
                | Self::OwnerLags
                | Self::NoSuccessor { .. }
                | Self::ImageUnresolved
                | Self::NodeUnknown
                | Self::NodeNotReady
                | Self::NodeCordoned
                | Self::ImageMissing
                | Self::PresenceOld(_)
                | Self::HostUnheard
                | Self::TooFewHosts { .. }
        )
    }

    /// Whether the Pod only waits for its turn: nothing is amiss.
    #[must_use]
    pub const fn is_turn(self) -> bool {
        matches!(
            self,
            Self::CapReached { .. } | Self::Admitted | Self::RetryWaits | Self::OwnerUnread
        )
    }
}

/// What a Pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admission {
    /// It may get the drain label.
    Label,
    /// It is Pending, and may be deleted.
    Reap,
}

/// The gate's answer about a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It may.
    Open(Admission),
    /// It may not.
    Blocked(Reason),
}

/// A Pod as the gate sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// The Pod.
    pub pod: PodId,
    /// Where it runs, if that is a host.
    pub host: Option<HostId>,
    /// Whether it runs another image than its pool's.
    pub stale: bool,
    /// Whether it counts as in flight.
    pub in_flight: bool,
    /// What the gate would answer now.
    pub verdict: Verdict,
}

/// How it shows that an owner makes Pods of another image than its pool's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Since when.
    pub since: Moment,
    /// The Pod that was seen last of those that came after the pool's image was set; `None` when the owner says it by
    /// itself, or the gate before this one saw it.
    pub pod: Option<PodId>,
    /// The owner says so itself: whoever reads it knows without a Pod.
    pub said: bool,
}

/// A pool as the gate sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Pods that are alive.
    pub alive: u32,
    /// Of these: those that run another image.
    pub stale: u32,
    /// Of these: those that carry the label.
    pub labelled: u32,
    /// Pods in flight, as the runners' own controller counts them.
    pub in_flight: u32,
    /// Of the Pods alive: those that serve, because they ask for work or do some.
    pub warm: u32,
    /// Slots taken beyond those in flight: admissions that don't show yet, and Pods whose successor isn't warm yet.
    pub reserved: u32,
    /// Of these: Pods that the gate took, whose successors aren't warm and don't count as in flight. To be told to the
    /// next gate, which can't see them.
    pub awaited: u32,
    /// Of these: Pods that left so long ago that a successor should be there.
    pub missing: u32,
    /// Running Pods on Nodes that aren't Ready: nobody knows whether they serve, so they count as the others in
    /// flight do.
    pub away: u32,
    /// The owner of its Pods makes Pods of another image, as long as that holds it.
    pub lag: Option<Lag>,
    /// The most that may be in flight: a share of the replicas, or of the Pods that are there where those are fewer.
    pub cap: u32,
    /// Hosts of the pool that are Ready and take Pods.
    pub hosts_usable: u32,
    /// Of these: those that hold its image now.
    pub hosts_ready: u32,
    /// When the oldest Pod that is alive and Pending was made, in Unix seconds.
    pub oldest_pending_unix_s: Option<i64>,
    /// Its Pods, oldest first.
    pub pods: Vec<PodStatus>,
}

impl PoolStatus {
    /// Whether Pods are left that run another image.
    #[must_use]
    pub const fn is_rolling(&self) -> bool {
        self.stale > 0
    }
}
