//! Every number that staging decides by, and where it comes from.

use core::time::Duration;

/// Staging's bounds and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Contents leased at one time in the whole fleet. Where staging has all of these leases, mirrors have one more,
    /// because their clients don't wait for long.
    pub origin_streams: usize,
    /// A lease without progress for this long passes on.
    pub lease_timeout: Duration,
    /// A stream that brings so much a second moves, however long a chunk takes.
    pub slowest_stream_bytes_per_s: u64,
    /// A lease that is paced all this time without one new chunk passes on too: its holder may be lying about it.
    pub paced_timeout: Duration,
    /// Neighbours of a host, at most.
    pub neighbours: usize,
    /// How many of them lie in other zones, where there are other zones.
    pub far_neighbours: usize,
    /// First wait after the registry failed; doubles, with jitter.
    pub origin_retry: Duration,
    /// The longest wait after the registry failed.
    pub origin_retry_most: Duration,
    /// The longest that the registry may ask to be left alone; a longer wish is a fault of the registry or of a host.
    /// As much as the registry client believes.
    pub origin_wish_most: Duration,
    /// A holder that the registry fails for this long without a chunk counts: broken connections are made again sooner.
    pub trouble_after: Duration,
    /// Different hosts that have to find a content faulty in the registry before its image fails.
    pub bad_witnesses: usize,
    /// First wait before a content is tried again that made its image fail; doubles.
    pub fault_retry: Duration,
    /// The longest wait before a content is tried again that made its image fail.
    pub fault_retry_most: Duration,
    /// The first such wait where each try costs nearly the whole content and brings nothing ([`Fault::CutShort`]).
    /// Two hosts look, then one after 20 minutes, then one 40 minutes after that. In a fleet of six and more three
    /// hosts look, and then one every hour. That is at most three times the content in any hour.
    ///
    /// [`Fault::CutShort`]: crate::stage::event::Fault::CutShort
    pub costly_retry: Duration,
    /// The longest such wait.
    pub costly_retry_most: Duration,
    /// Different hosts that have to blame a host before the fleet shuns it, at least.
    pub accusers: usize,
    /// And in percent of the hosts that are connected: more than ever lie together, or they would shun the honest.
    pub accusers_percent: usize,
    /// How long the fleet shuns it.
    pub quarantine: Duration,
    /// A host without a session for this long isn't expected to bring back what only it holds.
    pub absent_after: Duration,
    /// Hosts that are told to stage say so within this time; after it those that don't are leased to as well.
    pub reports_within: Duration,
    /// A plan that starts among hosts which hold parts of an image lets them all connect for this long before it
    /// grants.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            origin_streams: 4,
            lease_timeout: Duration::from_secs(10),
            slowest_stream_bytes_per_s: 4 << 10,
            paced_timeout: Duration::from_mins(1),
            neighbours: 24,
            far_neighbours: 4,
            origin_retry: Duration::from_secs(1),
            origin_retry_most: Duration::from_mins(1),
            origin_wish_most: Duration::from_hours(1),
            trouble_after: Duration::from_secs(3),
            bad_witnesses: 2,
            fault_retry: Duration::from_mins(1),
            fault_retry_most: Duration::from_mins(10),
            costly_retry: Duration::from_mins(20),
            costly_retry_most: Duration::from_hours(1),
            accusers: 2,
            accusers_percent: 34,
            quarantine: Duration::from_hours(1),
            absent_after: Duration::from_secs(15),
            reports_within: Duration::from_secs(5),
            settle: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// So many of these hosts are more than ever lie together.
    pub(crate) fn share(&self, hosts: usize) -> usize {
        (hosts * self.accusers_percent).div_ceil(100).max(1)
    }

    /// Different hosts whose word it takes against another host, where so many can know.
    pub(crate) fn enough_accusers(&self, of: usize) -> usize {
        self.share(of).max(self.accusers)
    }

    /// Leases for mirrors that one host may have, unless it is on trial.
    pub(crate) const fn mirror_share(&self) -> usize {
        self.origin_streams.div_ceil(2)
    }

    /// The pause after the registry failed so many times, without jitter.
    pub(crate) fn origin_pause(&self, failures: u32) -> Duration {
        growing(self.origin_retry, self.origin_retry_most, failures)
    }
}

/// The wait after so many failures: `first`, doubled each time, `most` at most.
pub(crate) fn growing(first: Duration, most: Duration, times: u32) -> Duration {
    first
        .checked_mul(1 << times.min(16))
        .unwrap_or(most)
        .min(most)
}
