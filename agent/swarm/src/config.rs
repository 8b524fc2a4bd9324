//! Every number that the swarm decides by, and where it comes from.

use core::time::Duration;

/// The swarm's bounds and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Uploads at one time, pushes and answers together. Six keep an uplink full while some receivers are busy; more
    /// only make each chunk take longer (simulator, 50 hosts × 8 GB, makespan over bound with 2 · 4 · 6 · 8: 1.51 ·
    /// 1.03 · 1.02 · 1.03).
    pub uploads: usize,
    /// Uploads at one time to one peer. Two, so that the link to a single peer never idles between chunks (measured:
    /// one request at a time loses 6 % at 1 Gbit/s); a spreader uses one per receiver.
    pub uploads_per_peer: usize,
    /// Pushes that are received at one time; more are declined as busy. One more than `uploads`: then the fleet's
    /// uploads spread evenly over its downlinks, and seldom meet a full one (simulator, 50 hosts × 8 GB, 6 uploads,
    /// with 6 · 7 · 8 · 12 · 24: 1.02 · 1.03 · 1.04 · 1.07 · 1.08 of the bound, declined per received 2.8 · 0.5 · 0.2).
    pub incoming: usize,
    /// Of which from one peer: as many as it may send us at one time. A peer that dribbles bytes takes no other's
    /// place.
    pub incoming_per_peer: usize,
    /// A push that was declined as busy is tried again after so many times that our uplink needs for a chunk; after
    /// every fourth time in a row, after as many again.
    pub busy_wait_chunks: u64,
    /// Requests in flight on this host, over all contents and peers.
    pub requests: usize,
    /// Requests in flight to one peer, at most; at least two are allowed to each, for the same reason.
    pub requests_per_peer: usize,
    /// Requests of others that wait for an upload slot; more are refused as busy.
    pub waiting: usize,
    /// Chunks that wait to be passed on; more are left to the pull swarm. 1,024 chunks are 9 s of a 1 Gbit/s uplink.
    pub jobs: usize,
    /// Connections that this host keeps. 512 hold a whole small fleet; of a large one the hosts of the same part, some
    /// in each other part, and those whom others chose likewise.
    pub connections: usize,
    /// Dials at one time.
    pub dials: usize,
    /// Uploads that take far too long and don't count among [`uploads`](Self::uploads), at most: who doesn't take what
    /// it is sent holds up nobody else.
    pub slow_uploads: usize,
    /// Targets that a spreader serves by itself; beyond, they are split. Up to 200 a direct push is near the bound
    /// (simulator).
    pub direct_targets: usize,
    /// Parts that targets are split into beyond `direct_targets` (simulator: a tree of fan-out 8).
    pub fan_out: usize,
    /// Hosts looked at when a spreader is chosen (simulator: 8 are nearly as good as all).
    pub candidates: usize,
    /// Spreads that may lie at a spreader before the chunk waits at the lease holder instead, in percent of one spread.
    pub spread_backlog_percent: u64,
    /// And so many chunks on top: in a small fleet a spread is short, and the next one has to be there when it ends.
    pub spread_backlog_chunks: u64,
    /// Chunks that a lease holder may have ordered from the origin or hold without having handed them on.
    pub lease_window: u32,
    /// What is assumed of a peer's uplink, and of ours, before anything was measured: 1 Gbit/s less headers (DOMAIN
    /// §1).
    pub assumed_rate_bytes_per_second: u64,
    /// No peer's uplink is believed to be more than so many times what ours was measured or assumed to be: fleets mix
    /// 1 and 10 GbE, and a share of four spreads is as much as one host's word is worth.
    pub believed_rate: u64,
    /// The shortest time between two announcements of chunks to the same peers.
    pub announce_every: Duration,
    /// The shortest time between two announcements of load to those who choose us to spread.
    pub load_every: Duration,
    /// First value of the time after which an announced chunk that wasn't pushed to us is asked for; adapts.
    pub grace: Duration,
    /// Its bounds.
    pub grace_least: Duration,
    /// Its bounds.
    pub grace_most: Duration,
    /// No progress for this long at least before a request is given up.
    pub timeout_least: Duration,
    /// A request is given up after this many times the expected duration.
    pub timeout_factor: u32,
    /// And after this long at most: the slowest line that is waited for, 280 kbit/s for each chunk under way.
    pub limit_most: Duration,
    /// What a request or a push is expected to take before any was measured: 1 MiB at 100 Mbit/s, and two dozen of them
    /// in the same downlink.
    pub push_assumed: Duration,
    /// Without a coordinator for this long, leases are self-assigned.
    pub headless_after: Duration,
    /// Contents fetched from the origin at one time in the whole fleet, when headless.
    pub origin_streams: usize,
    /// Contents that clients of this host want and that it fetches without a lease, at one time. 64 clients at once are
    /// what an agent's memory is measured with (`sixty_four_clients_at_once_fit_into_memory`).
    pub lone_fetches: usize,
    /// Strikes (bad chunks, silence) until a peer is quarantined.
    pub strikes: u32,
    /// First quarantine; doubles each time.
    pub quarantine: Duration,
    /// The longest quarantine.
    pub quarantine_most: Duration,
    /// First wait before a peer that couldn't be reached is dialled again; doubles each time.
    pub redial: Duration,
    /// The longest wait before it is dialled again.
    pub redial_most: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uploads: 6,
            uploads_per_peer: 2,
            incoming: 7,
            incoming_per_peer: 2,
            busy_wait_chunks: 6,
            requests: 16,
            requests_per_peer: 4,
            waiting: 256,
            jobs: 1024,
            connections: 512,
            dials: 32,
            slow_uploads: 32,
            direct_targets: 200,
            fan_out: 8,
            candidates: 8,
            spread_backlog_percent: 100,
            spread_backlog_chunks: 8,
            lease_window: 16,
            assumed_rate_bytes_per_second: 117_000_000,
            believed_rate: 4,
            announce_every: Duration::from_millis(250),
            load_every: Duration::from_millis(250),
            grace: Duration::from_secs(2),
            grace_least: Duration::from_millis(500),
            grace_most: Duration::from_secs(30),
            timeout_least: Duration::from_secs(1),
            timeout_factor: 4,
            limit_most: Duration::from_secs(30),
            push_assumed: Duration::from_millis(2_500),
            headless_after: Duration::from_secs(15),
            origin_streams: 4,
            lone_fetches: 64,
            strikes: 3,
            quarantine: Duration::from_secs(30),
            quarantine_most: Duration::from_hours(1),
            redial: Duration::from_secs(1),
            redial_most: Duration::from_mins(1),
        }
    }
}
