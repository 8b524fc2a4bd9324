//! The network: lines that carry one piece after the other.
//!
//! Every host has an uplink and a downlink, the registry has an uplink. A transfer is cut into pieces, of which two are
//! under way at one time; each goes through the sender's uplink and then the receiver's downlink, and each line serves
//! pieces in the order in which they came to it. So concurrent transfers share a line evenly, piece by piece; a busy
//! receiver holds up its senders' transfers to it, but not their other transfers; and a line with anything to carry is
//! never idle: what TCP or QUIC flows do over a switch that isn't itself a bottleneck, less headers and loss.

use std::collections::VecDeque;

/// Nanoseconds of virtual time.
pub type Nanos = u64;

/// A transfer's place in the world's table, and which use of that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransferId {
    pub(crate) at: u32,
    pub(crate) use_: u32,
}

/// A line out: pieces wait for it.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) rate: u64,
    pub(crate) queue: VecDeque<TransferId>,
    pub(crate) busy: bool,
    /// How long it was in use.
    pub(crate) used: Nanos,
}

impl Uplink {
    pub(crate) const fn new(rate: u64) -> Self {
        Self {
            rate,
            queue: VecDeque::new(),
            busy: false,
            used: 0,
        }
    }
}

/// A line in: what comes while it is busy waits in the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downlink {
    pub(crate) rate: u64,
    free_at: Nanos,
    pub(crate) used: Nanos,
}

impl Downlink {
    pub(crate) const fn new(rate: u64) -> Self {
        Self {
            rate,
            free_at: 0,
            used: 0,
        }
    }

    /// Takes in a piece whose first byte comes at `first` and whose last byte at `last`; when it is all in.
    pub(crate) fn take(&mut self, first: Nanos, last: Nanos, bytes: u64) -> Nanos {
        let takes = takes(bytes, self.rate);
        self.free_at = self.free_at.max(first) + takes;
        self.used += takes;
        self.free_at.max(last)
    }
}

/// How long so many bytes take at this rate.
pub(crate) fn takes(bytes: u64, rate: u64) -> Nanos {
    bytes * 1_000_000_000 / rate.max(1)
}
