//! Every number that the gate decides by, and where it comes from.

use core::time::Duration;

use crate::presence;

/// The gate's times and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A host's word about what it holds counts for so long.
    pub presence_max_age: Duration,
    /// A polling heartbeat younger than this makes a Pod warm: what the runners' own controller goes by.
    pub heartbeat_max_age: Duration,
    /// An admission that nothing came of frees its slot after this long: well over the time-out of a write.
    pub slot: Duration,
    /// A successor is there within this time; a Pod that the gate took and that has none by then is named. A Pod that
    /// left in flight and that the gate didn't take keeps its slot for so long.
    pub replacement: Duration,
    /// An owner hears of a new image within this time. A Pod of another image that comes later shows that the owner
    /// goes by something else. Above the 30 s for which a watch may be blind.
    pub owner_lag: Duration,
    /// First wait after a write that was refused; doubles.
    pub retry: Duration,
    /// The longest wait after a write that was refused.
    pub retry_most: Duration,
    /// Per cent of a pool's usable hosts that have to hold the image before a Pending Pod without a node is reaped: its
    /// successor is likely to land on one of them.
    pub enough_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            presence_max_age: presence::MAX_AGE,
            heartbeat_max_age: Duration::from_mins(5),
            slot: Duration::from_secs(30),
            replacement: Duration::from_mins(1),
            owner_lag: Duration::from_mins(1),
            retry: Duration::from_secs(1),
            retry_most: Duration::from_mins(1),
            enough_percent: 50,
        }
    }
}
