//! The numbers that the gate decides by, each with its reason.

use core::time::Duration;

use crate::presence;

/// The gate's times and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a host's word about what it holds counts.
    pub presence_max_age: Duration,
    /// A Pod is warm while its polling heartbeat is younger than this: the rule of the runners' own controller
    /// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go:
    /// guestHeartbeatStaleAfter).
    pub heartbeat_max_age: Duration,
    /// An admission without effect frees its slot after this long, well over the time-out of a write.
    pub slot: Duration,
    /// A successor should be there within this time. A Pod that the gate took and that has no successor by then is
    /// reported. A Pod that left in flight without the gate keeps its slot for this long.
    pub replacement: Duration,
    /// The idle Pods of a node that was cordoned, or reserved for another pool, less than this long ago are about to be
    /// deleted. The runners' controllers delete them when they see the node: by a watch, or at the latest after 60 s,
    /// and 30 s after a failure (tuist/tuist of autumn 2026,
    /// infra/runners-controller/controllers/runnerpool_controller.go: Reconcile; node_drain.go:
    /// reapIdlePodsOnCordonedNodes, enqueueAllRunnerPools). `kubectl drain` evicts as soon as it has cordoned. Where
    /// nobody did so within this time, nobody does (no controller of runners deletes the Pods of other workloads): then
    /// these Pods stay, and take no place.
    pub reap: Duration,
    /// An owner should know of a new image within this time. If a Pod of another image comes later, the owner follows
    /// something else. This is more than the 30 s for which a watch may be blind.
    pub owner_lag: Duration,
    /// The first wait after a refused write. It doubles each time.
    pub retry: Duration,
    /// The longest wait after a refused write.
    pub retry_most: Duration,
    /// In per cent of a pre-pull's usable hosts: how many must hold the image before a Pending Pod without a node is
    /// deleted. The Pod's successor is then likely to land on one of them.
    pub enough_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            presence_max_age: presence::MAX_AGE,
            heartbeat_max_age: Duration::from_mins(5),
            slot: Duration::from_secs(30),
            replacement: Duration::from_mins(1),
            reap: Duration::from_mins(2),
            owner_lag: Duration::from_mins(1),
            retry: Duration::from_secs(1),
            retry_most: Duration::from_mins(1),
            enough_percent: 50,
        }
    }
}
