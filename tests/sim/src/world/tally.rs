//! Counters of what moved.

use crate::network::Nanos;

/// What a run has moved until now. Bytes are those of the scaled world.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Bytes that left the registry.
    pub(super) origin_bytes: u64,
    /// Bytes that hosts received from hosts.
    pub(super) peer_bytes: u64,
    /// Bytes of both kinds when a pause of the image had taken effect.
    pub(super) moved_at_pause: u64,
    /// Bytes that hosts held when they came back.
    pub(super) local_bytes: u64,
    /// Requests that the registry refused.
    pub(super) refused: u64,
    /// Chunks that came because they were requested from a peer.
    pub(super) pulled: u64,
    /// Pushes that were declined.
    pub(super) declined: u64,
    /// Chunks that came from peers.
    pub(super) arrived: u64,
    /// Events and messages.
    pub(super) steps: u64,
    /// When the last line of the trace was written, and how long the registry's line, the uplinks and the downlinks had
    /// been in use then.
    pub(super) traced: (Nanos, Nanos, Nanos, Nanos),
}
