//! The numbers that staging decides by, each with its reason.

use core::time::Duration;

use proto::pause::doubled;

/// The most ranges of one content that are leased at one time: as many as there are streams by default.
const CONTENT_RANGES: usize = 4;
/// The fewest missing chunks for which one more range is worth another host's stream and its begin.
const RANGE_CHUNKS: u32 = 16;

/// Staging's limits and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The most contents that are leased at one time in the whole fleet. Where images take all of these leases, mirrors
    /// get one more, because their clients don't wait for long.
    pub origin_streams: usize,
    /// The most ranges of one content that are leased at one time, where a recipe proves the content. With 1, contents
    /// are leased whole.
    pub content_ranges: usize,
    /// The fewest missing chunks of a content for which one more range is worth another host's stream and its begin.
    pub range_chunks: u32,
    /// A lease without progress for this long passes to another host.
    pub lease_timeout: Duration,
    /// A stream that brings this many bytes a second makes progress, however long a chunk takes.
    pub slowest_stream_bytes_per_s: u64,
    /// A lease that is paced for this long without one new chunk passes on too. A holder that claims to be paced may be
    /// lying.
    pub paced_timeout: Duration,
    /// The most neighbours of a host.
    pub neighbours: usize,
    /// How many of the neighbours lie in other zones, where there are other zones.
    pub far_neighbours: usize,
    /// The first wait after the registry failed. It doubles each time, with jitter.
    pub origin_retry: Duration,
    /// The longest wait after the registry failed.
    pub origin_retry_most: Duration,
    /// The longest time for which the registry's wish to be left alone counts. A longer wish is a fault of the registry
    /// or of a host. The registry client has the same limit.
    pub origin_wish_most: Duration,
    /// Failures count once they have lasted for this long without a chunk: a broken connection is made again sooner.
    pub trouble_after: Duration,
    /// The number of different hosts that must find a content faulty in the registry before its image fails.
    pub bad_witnesses: usize,
    /// The first wait before a content that made its image fail is tried again. It doubles each time.
    pub fault_retry: Duration,
    /// The longest wait before a content that made its image fail is tried again.
    pub fault_retry_most: Duration,
    /// The first wait before a content is tried again where each try costs nearly the whole content and brings nothing
    /// ([`Fault::CutShort`]). Two hosts look, then one after 20 minutes, then one 40 minutes after that. In a fleet of
    /// six or more, three hosts look, and then one every hour. So an hour costs at most three times the content.
    ///
    /// [`Fault::CutShort`]: crate::stage::event::Fault::CutShort
    pub costly_retry: Duration,
    /// The longest wait before a content is tried again where each try costs nearly the whole content.
    pub costly_retry_most: Duration,
    /// The least number of different hosts that must blame a host before the fleet shuns it.
    pub accusers: usize,
    /// The least share of hosts that must blame a host, in percent of the connected hosts. It must be more than ever
    /// lie together: otherwise liars could make the fleet shun honest hosts.
    pub accusers_percent: usize,
    /// How long the fleet shuns a host.
    pub quarantine: Duration,
    /// A host without a session for this long isn't expected back. What only this host holds is fetched again.
    pub absent_after: Duration,
    /// Hosts that were told to stage report so within this time. After it, if no host stages, a lease may go to hosts
    /// that haven't reported.
    pub reports_within: Duration,
    /// A plan that starts in a fleet whose hosts hold parts of an image waits this long before it grants leases, so
    /// that all these hosts can connect.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            origin_streams: 4,
            content_ranges: CONTENT_RANGES,
            range_chunks: RANGE_CHUNKS,
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
    /// The number of hosts, out of `hosts`, that is more than ever lie together.
    pub(crate) fn share(&self, hosts: usize) -> usize {
        (hosts * self.accusers_percent).div_ceil(100).max(1)
    }

    /// The number of different hosts whose word it takes against another host, where `of` hosts can know.
    pub(crate) fn enough_accusers(&self, of: usize) -> usize {
        self.share(of).max(self.accusers)
    }

    /// The most leases for mirrors that one host may have, unless it is on trial.
    pub(crate) const fn mirror_share(&self) -> usize {
        self.origin_streams.div_ceil(2)
    }

    /// The pause after the registry has failed this many times before, without jitter.
    pub(crate) fn origin_pause(&self, failures: u32) -> Duration {
        doubled(self.origin_retry, self.origin_retry_most, failures)
    }
}
