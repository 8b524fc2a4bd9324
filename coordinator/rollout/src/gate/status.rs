//! The gate's answers and reports.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostId, Moment};

use super::PodId;

/// Why a Pod may not drain. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The gate doesn't know everything in the cluster yet, or no longer does.
    NotSynced,
    /// The Pod belongs to no gated pre-pull.
    NotGated,
    /// The Pod ended, or is being deleted.
    NotAlive,
    /// The Pod runs the pre-pull's image already.
    Current,
    /// The Pod is busy with work.
    Busy,
    /// The Pod carries the label already.
    AlreadyLabelled,
    /// An operator drains the Pod: it leaves without the gate.
    OperatorDrain,
    /// The Pod is neither Pending nor Running; or it is Pending in a pre-pull that another controller labels.
    NotRunning,
    /// An operator paused the roll.
    Paused,
    /// The owners of the pre-pull's Pods are being read.
    OwnerUnread,
    /// The owner of the pre-pull's Pods makes Pods of another image than the pre-pull's. A Pod that is let go would
    /// come back stale.
    OwnerLags,
    /// The pre-pull's image isn't resolved to a digest.
    ImageUnresolved,
    /// The Pod's node isn't known as a host of the fleet.
    NodeUnknown,
    /// The Pod's node isn't Ready.
    NodeNotReady,
    /// The Pod's node is cordoned: the Pod's successor couldn't return there.
    NodeCordoned,
    /// The Pod's node lacks memory, disk or process ids: the Pod's successor couldn't return there.
    NodePressure,
    /// The Pod's node is reserved for another pool: the Pod's successor couldn't return there.
    NodeReserved,
    /// The Pod's node doesn't hold the image.
    ImageMissing,
    /// The Pod's node held the image when it last reported, this long ago.
    PresenceOld(Duration),
    /// The agent on the Pod's node hasn't reported since this coordinator started.
    HostUnheard,
    /// The Pod has no node, and too few hosts hold the image.
    TooFewHosts {
        /// The number of hosts that hold the image.
        have: u32,
        /// The number of hosts that must hold it.
        need: u32,
    },
    /// As many Pods are in flight as the cap allows.
    CapReached {
        /// The Pods in flight, with slots taken for others and Pods that are away.
        in_flight: u32,
        /// Of these, the Pods on Nodes that aren't Ready.
        away: u32,
        /// Of these, the idle Pods on Nodes that were reserved for another pool, or cordoned, a moment ago: another
        /// controller deletes them.
        giving_way: u32,
        /// The cap. While Pods are lacking, the cap is less than the pre-pull's share of its replicas.
        cap: u32,
    },
    /// As many Pods are in flight in all pools of the fleet together as the fleet may start at one time.
    FleetCapReached {
        /// The Pods in flight in the fleet, with slots taken for others.
        in_flight: u32,
        /// The fleet's cap.
        cap: u32,
    },
    /// As many Pods are in flight as the cap allows, and some of them left long ago: their owner makes no successors.
    NoSuccessor {
        /// The number of Pods that left and have no successor.
        missing: u32,
        /// The cap.
        cap: u32,
    },
    /// A write on the Pod was refused, and the next try waits.
    RetryWaits,
    /// The Pod was admitted a moment ago.
    Admitted,
}

impl Reason {
    /// The reason as it is shown.
    #[must_use]
    pub const fn shown(self) -> proto::Reason {
        match self {
            Self::NotSynced => proto::Reason::NotSynced,
            Self::NotGated => proto::Reason::NotGated,
            Self::NotAlive => proto::Reason::NotAlive,
            Self::Current => proto::Reason::Current,
            Self::Busy => proto::Reason::Busy,
            Self::AlreadyLabelled => proto::Reason::AlreadyLabelled,
            Self::OperatorDrain => proto::Reason::OperatorDrain,
            Self::NotRunning => proto::Reason::NotRunning,
            Self::Paused => proto::Reason::Paused,
            Self::OwnerUnread => proto::Reason::OwnerUnread,
            Self::OwnerLags => proto::Reason::OwnerLags,
            Self::ImageUnresolved => proto::Reason::ImageUnresolved,
            Self::NodeUnknown => proto::Reason::NodeUnknown,
            Self::NodeNotReady => proto::Reason::NodeNotReady,
            Self::NodeCordoned => proto::Reason::NodeCordoned,
            Self::NodePressure => proto::Reason::NodePressure,
            Self::NodeReserved => proto::Reason::NodeReserved,
            Self::ImageMissing => proto::Reason::ImageMissing,
            Self::PresenceOld(_) => proto::Reason::PresenceOld,
            Self::HostUnheard => proto::Reason::HostUnheard,
            Self::TooFewHosts { .. } => proto::Reason::TooFewHosts,
            Self::CapReached { .. } => proto::Reason::CapReached,
            Self::FleetCapReached { .. } => proto::Reason::FleetCapReached,
            Self::NoSuccessor { .. } => proto::Reason::NoSuccessor,
            Self::RetryWaits => proto::Reason::RetryWaits,
            Self::Admitted => proto::Reason::Admitted,
        }
    }

    /// The name for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.shown().as_str()
    }

    /// Whether this reason keeps a stale, idle Pod until something else changes: the image, its host, or an operator's
    /// decision.
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
                | Self::NodePressure
                | Self::NodeReserved
                | Self::ImageMissing
                | Self::PresenceOld(_)
                | Self::HostUnheard
                | Self::TooFewHosts { .. }
        )
    }

    /// Whether the Pod only waits for its turn, and nothing is wrong.
    #[must_use]
    pub const fn is_turn(self) -> bool {
        matches!(
            self,
            Self::CapReached { .. }
                | Self::FleetCapReached { .. }
                | Self::Admitted
                | Self::RetryWaits
                | Self::OwnerUnread
        )
    }
}

/// What a Pod is admitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admission {
    /// The Pod may get the drain label.
    Label,
    /// The Pod is Pending and may be deleted.
    Reap,
}

/// The gate's answer about a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The Pod may drain.
    Open(Admission),
    /// The Pod may not drain, for this reason.
    Blocked(Reason),
}

/// The gate's view of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// The Pod.
    pub pod: PodId,
    /// The host that the Pod runs on, if the node is one.
    pub host: Option<HostId>,
    /// Whether the Pod's image isn't the pre-pull's.
    pub stale: bool,
    /// Whether the Pod counts as in flight.
    pub in_flight: bool,
    /// The gate's answer at this moment.
    pub verdict: Verdict,
}

/// The evidence that an owner makes Pods of another image than the pre-pull's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Since when there is evidence.
    pub since: Moment,
    /// The last seen Pod of those that came with another image after the pre-pull's image was set. `None` where the
    /// owner says its image itself, or where the gate of an earlier coordinator saw the Pod.
    pub pod: Option<PodId>,
    /// Whether the owner itself says another image, so that no Pod is needed as evidence.
    pub said: bool,
}

/// The gate's view of a pool: of the Pods that one pre-pull gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The number of Pods that are alive.
    pub alive: u32,
    /// Of the Pods alive, those that run another image.
    pub stale: u32,
    /// Of the Pods alive, those that carry the label.
    pub labelled: u32,
    /// The Pods in flight, by the rule of the runners' own controller.
    pub in_flight: u32,
    /// Of the Pods alive, those that wait for work or do some.
    pub warm: u32,
    /// Slots that are taken beyond the Pods in flight: for admissions that don't show yet, and for Pods whose successor
    /// isn't warm yet.
    pub reserved: u32,
    /// Of the reserved slots, those of Pods that the gate took, while no successor is warm or counts as in flight. The
    /// shell records this number for the next gate, which can't see these Pods.
    pub awaited: u32,
    /// Of the reserved slots, those of Pods that left so long ago that a successor should be there.
    pub missing: u32,
    /// Running Pods on Nodes that aren't Ready, beyond those that count above. Nobody knows whether they serve, so they
    /// take up the cap like Pods in flight. Pods that an operator drains don't.
    pub away: u32,
    /// Idle Pods on Nodes that were reserved for another pool, or cordoned, a moment ago, beyond those that count
    /// above. Another controller deletes them, so they take up the cap like Pods in flight. Pods that an operator
    /// drains don't.
    pub giving_way: u32,
    /// Evidence that the owner makes Pods of another image, while that holds up the pre-pull.
    pub lag: Option<Lag>,
    /// The most Pods that may be in flight: a share of the replicas, or of the present Pods where those are fewer.
    pub cap: u32,
    /// The pre-pull's hosts that are Ready and take Pods.
    pub hosts_usable: u32,
    /// Of the usable hosts, those that hold the pre-pull's image now.
    pub hosts_ready: u32,
    /// When the oldest Pending Pod that is alive was created, in Unix seconds.
    pub oldest_pending_unix_s: Option<i64>,
    /// The pre-pull's Pods that are alive, oldest first.
    pub pods: Vec<PodStatus>,
}

impl PoolStatus {
    /// Whether Pods are left that run another image.
    #[must_use]
    pub const fn is_rolling(&self) -> bool {
        self.stale > 0
    }
}
