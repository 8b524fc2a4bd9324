//! Every number that the swarm decides by, and the source of the number.

use core::time::Duration;

/// The swarm's bounds and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Uploads at one time, pushes and answers together. Six keep an uplink full while some receivers are busy.
    /// More only make each chunk take longer (simulator, 50 hosts × 8 GB, makespan over bound with 2 · 4 · 6 · 8
    /// uploads: 1.51 · 1.03 · 1.02 · 1.03).
    pub uploads: usize,
    /// Uploads at one time to one peer. With two, the link to a single peer never idles between chunks (measured: one
    /// request at a time loses 6 % at 1 Gbit/s). A spreader uses one per receiver.
    pub uploads_per_peer: usize,
    /// Pushes that are received at one time; more are declined as busy. The number is one more than `uploads`: then
    /// the fleet's uploads spread evenly over its downlinks, and seldom meet a full downlink (simulator, 50 hosts ×
    /// 8 GB, 6 uploads, with 6 · 7 · 8 · 12 · 24: 1.02 · 1.03 · 1.04 · 1.07 · 1.08 of the bound; declined per
    /// received 2.8 · 0.5 · 0.2 with the first three).
    pub incoming: usize,
    /// Pushes that are received at one time from one peer: as many as the peer may send us at one time. A peer that
    /// dribbles bytes takes no other peer's place.
    pub incoming_per_peer: usize,
    /// The wait before a push is tried again that was declined as busy. The unit is the time in which our uplink sends
    /// one chunk. After every fourth try in a row the wait grows by this much again.
    pub busy_wait_chunks: u64,
    /// Requests in flight on this host, over all contents and peers.
    pub requests: usize,
    /// The most requests in flight to one peer. Each peer may have at least two, for the same reason as with uploads.
    pub requests_per_peer: usize,
    /// Requests of other hosts that wait for an upload slot; more are refused as busy.
    pub waiting: usize,
    /// The most chunks that wait to be passed on. Other hosts have to ask for chunks beyond that. 1,024 chunks are 9 s
    /// of a 1 Gbit/s uplink.
    pub jobs: usize,
    /// Connections that this host keeps. 512 hold a whole small fleet. In a large fleet they hold the hosts of the same
    /// part, some hosts in each other part, and the hosts that connected to this one for the same reasons.
    pub connections: usize,
    /// Dials at one time.
    pub dials: usize,
    /// The most uploads that take far too long and therefore don't count among [`uploads`](Self::uploads). A host that
    /// doesn't take what it is sent holds up nobody else.
    pub slow_uploads: usize,
    /// Targets that a spreader serves by itself. More targets are split into parts. Up to 200 targets, direct pushes
    /// are near the bound (simulator).
    pub direct_targets: usize,
    /// The number of parts that targets are split into beyond `direct_targets` (simulator: a tree of fan-out 8).
    pub fan_out: usize,
    /// Hosts looked at when a spreader is chosen (simulator: 8 are nearly as good as all).
    pub candidates: usize,
    /// The work that a spreader may have before it, in percent of one spread. Beyond, the chunk waits at the lease
    /// holder instead.
    pub spread_backlog_percent: u64,
    /// The work with which a host takes one more spread over, in percent of one spread. With more work it declines and
    /// says how much it has, and the chunk goes to another host. The lease holder's own bound is
    /// [`spread_backlog_percent`](Self::spread_backlog_percent), as long as it has no fresh word of the host: what it
    /// knows of most hosts is as old as a spread (simulator, `release`, 200 hosts, 5 % of 60 GB: makespan over bound
    /// 1.46 without this bound, 1.15 with it).
    pub spread_taken_percent: u64,
    /// The work with which a host takes one more spread over in any case, in chunks. In a small fleet a spread is
    /// short, and the next one has to be there when it ends; and where some hosts lie, the honest ones mustn't decline
    /// too much (simulator, 8 hosts × 512 MiB in one content at 100 Mbit/s, seeds 1 · 2 · 3: 1.101 · 1.061 · 1.081 with
    /// 8 chunks, 1.045 · 1.058 · 1.056 with 24).
    pub spread_taken_chunks: u64,
    /// The work that a spreader may have on top of these percentages, in chunks.
    pub spread_backlog_chunks: u64,
    /// The most chunks of a lease that are ordered from the origin and haven't come, or that came and weren't handed
    /// on.
    pub lease_window: u32,
    /// The rate of a peer's uplink, and of ours, that is assumed before anything was measured: 1 Gbit/s less headers.
    pub assumed_rate_bytes_per_second: u64,
    /// A peer's uplink is believed to be this many times ours at most, as ours was measured or assumed. Fleets mix 1
    /// and 10 GbE. One host's word is worth a share of four spreads and no more.
    pub believed_rate: u64,
    /// The shortest time between two announcements of chunks to the same peers.
    pub announce_every: Duration,
    /// The shortest time between two announcements of load to the hosts that choose us as their spreader.
    pub load_every: Duration,
    /// The first value of the grace: the time after which this host asks for an announced chunk that wasn't pushed to
    /// it. The grace adapts.
    pub grace: Duration,
    /// The least grace.
    pub grace_least: Duration,
    /// The most grace.
    pub grace_most: Duration,
    /// A request isn't given up before this time without progress.
    pub timeout_least: Duration,
    /// A request is given up after this many times the expected duration.
    pub timeout_factor: u32,
    /// A request is given up after this time in any case. It allows for the slowest line that is waited for: 280 kbit/s
    /// for each chunk under way.
    pub limit_most: Duration,
    /// The expected duration of a request or a push before any was measured: 1 MiB at 100 Mbit/s, with two dozen others
    /// in the same downlink.
    pub push_assumed: Duration,
    /// After this long without a coordinator, hosts assign leases to themselves.
    pub headless_after: Duration,
    /// Contents fetched from the origin at one time in the whole fleet, when headless.
    pub origin_streams: usize,
    /// Contents that this host fetches at one time without a lease, because its clients want them. An agent's memory is
    /// measured with 64 clients at once (`sixty_four_clients_at_once_fit_into_memory`).
    pub lone_fetches: usize,
    /// Strikes (bad chunks) until a peer is quarantined. Silence is no strike.
    pub strikes: u32,
    /// The first quarantine. It doubles each time.
    pub quarantine: Duration,
    /// The longest quarantine.
    pub quarantine_most: Duration,
    /// The first wait before a peer that couldn't be reached is dialled again. It doubles each time.
    pub redial: Duration,
    /// The longest wait before such a peer is dialled again.
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
            spread_taken_percent: 10,
            spread_taken_chunks: 24,
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
