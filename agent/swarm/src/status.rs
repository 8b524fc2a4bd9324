//! What the swarm says about itself: the contents, the connections, and why a host stands still.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostKey, Reason};

use crate::event::ContentId;

/// Why a wanted content hasn't grown for a while. The set is closed: metrics and messages are named after the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stall {
    /// No host fetches the content yet: its lease hasn't been granted to any host that we hear of.
    AwaitingLease,
    /// We have the lease, and wait on purpose while chunks that we fetched are being spread.
    Paced,
    /// We have the lease, and asked the registry a moment ago.
    Fetching,
    /// We have the lease. We asked the registry a while ago, and it sends nothing.
    OriginSilent,
    /// Our last fetch from the registry failed.
    OriginFailed,
    /// Contents of lower order use all room for requests.
    AwaitingTurn,
    /// No peer is connected.
    NoPeers,
    /// No connected peer announced a chunk that we lack.
    NoSource,
    /// A push of what we lack is expected.
    AwaitingPush,
    /// Requests are under way and nothing has arrived.
    PeersSlow,
    /// No peer that has what we lack could be asked, and no push is expected.
    PeersBusy,
    /// No peer is connected, and some peers are quarantined: what we lack may be there.
    SourcesQuarantined,
    /// The download budget is used up.
    Throttled,
    /// This host couldn't store the chunks that arrived.
    NotStored,
    /// Too much of the content was lost again on this host: removed, changed on disk, or proved false. After a pause,
    /// this host fetches it again.
    LostAgain,
}

impl Stall {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::AwaitingLease,
        Self::Paced,
        Self::Fetching,
        Self::OriginSilent,
        Self::OriginFailed,
        Self::AwaitingTurn,
        Self::NoPeers,
        Self::NoSource,
        Self::AwaitingPush,
        Self::PeersSlow,
        Self::PeersBusy,
        Self::SourcesQuarantined,
        Self::Throttled,
        Self::NotStored,
        Self::LostAgain,
    ];

    /// Whether no peer that we are connected with has more of the content than we do.
    #[must_use]
    pub const fn is_for_want_of_a_source(self) -> bool {
        matches!(self, Self::AwaitingLease | Self::NoSource)
    }

    /// The reason as which the stall is shown.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::AwaitingLease => Reason::AwaitingLease,
            Self::Paced => Reason::Paced,
            Self::Fetching => Reason::Fetching,
            Self::OriginSilent => Reason::OriginSilent,
            Self::OriginFailed => Reason::OriginFailed,
            Self::AwaitingTurn => Reason::AwaitingTurn,
            Self::NoPeers => Reason::NoPeers,
            Self::NoSource => Reason::NoSource,
            Self::AwaitingPush => Reason::AwaitingPush,
            Self::PeersSlow => Reason::PeersSlow,
            Self::PeersBusy => Reason::PeersBusy,
            Self::SourcesQuarantined => Reason::SourcesQuarantined,
            Self::Throttled => Reason::Throttled,
            Self::NotStored => Reason::NotStored,
            Self::LostAgain => Reason::LostAgain,
        }
    }

    /// The stall's name, for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.reason().as_str()
    }

    /// How much the stall says about a host that stands still as a whole. Of several contents, the one with the lowest
    /// number speaks for the host. Failures come first, then what this host waits for at this moment, then what waits
    /// its turn.
    const fn rank(self) -> u8 {
        match self {
            Self::NotStored => 0,
            Self::LostAgain => 1,
            Self::OriginFailed => 2,
            Self::OriginSilent => 3,
            Self::Throttled => 4,
            Self::Fetching => 5,
            Self::PeersSlow => 6,
            Self::Paced => 7,
            Self::PeersBusy => 8,
            Self::AwaitingPush => 9,
            Self::SourcesQuarantined => 10,
            Self::NoPeers => 11,
            Self::NoSource => 12,
            Self::AwaitingTurn => 13,
            Self::AwaitingLease => 14,
        }
    }
}

/// A host that gained nothing for this long stands still. Shorter pauses are part of an ordinary run: a window of
/// chunks is handed on, or a layer ends and the next begins.
pub const STANDS_AFTER: Duration = Duration::from_secs(3);

/// A host that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standstill {
    /// What the host waits for.
    pub stall: Stall,
    /// How long nothing has come.
    pub since: Duration,
}

/// The state of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentStatus {
    /// The content.
    pub id: ContentId,
    /// The number of its chunks.
    pub chunks: u32,
    /// Chunks held.
    pub held: u32,
    /// Chunks that are requested or come by an accepted push.
    pub requested: u32,
    /// Whether we fetch it from the registry.
    pub leased: bool,
    /// Whether we have the lease and wait on purpose while chunks that we fetched are being spread.
    pub paced: bool,
    /// How long the registry has given nothing of the content although it owes us chunks; `None` while it owes none.
    pub silent: Option<Duration>,
    /// The time since a chunk of the content last arrived, or since the content is wanted.
    pub idle: Duration,
    /// Why the content doesn't grow; `None` while it does, and when it is complete.
    pub stall: Option<Stall>,
}

/// The state of the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Contents by id.
    pub contents: Vec<ContentStatus>,
    /// Hosts of the roster.
    pub peers: usize,
    /// Connected hosts.
    pub connected: usize,
    /// Quarantined hosts.
    pub quarantined: Vec<HostKey>,
    /// Push work that is assigned to us and isn't done.
    pub backlog_bytes: u64,
    /// Our upload rate, if it was measured.
    pub upload_bytes_per_second: Option<u64>,
    /// Uploads under way.
    pub uploads: usize,
    /// Whether hosts assign leases to themselves, for want of a coordinator.
    pub headless: bool,
}

impl Status {
    /// The state of a content, if the content is known.
    #[must_use]
    pub fn content(&self, id: ContentId) -> Option<&ContentStatus> {
        let found = self
            .contents
            .binary_search_by_key(&id, |content| content.id);
        found.ok().map(|at| &self.contents[at])
    }

    /// Why an image with these contents stands still as a whole. `None` while any of the contents grows or grew a
    /// moment ago, and when the image lacks nothing.
    ///
    /// One waiting content says nothing about the host: in an ordinary run most contents wait while others come.
    #[must_use]
    pub fn standstill(&self, contents: &[ContentId]) -> Option<Standstill> {
        let ours = || contents.iter().filter_map(|id| self.content(*id));
        let since = ours().map(|content| content.idle).min()?;
        let stall = ours()
            .filter_map(|content| content.stall)
            .min_by_key(|stall| stall.rank())?;
        (since >= STANDS_AFTER).then_some(Standstill { stall, since })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn content(id: u32, idle_ms: u64, stall: Option<Stall>) -> ContentStatus {
        ContentStatus {
            id: ContentId(id),
            chunks: 8,
            held: if stall.is_some() { 3 } else { 8 },
            requested: 0,
            leased: false,
            paced: false,
            silent: None,
            idle: Duration::from_millis(idle_ms),
            stall,
        }
    }

    fn status(contents: Vec<ContentStatus>) -> Status {
        Status {
            contents,
            ..Status::default()
        }
    }

    #[test]
    fn a_reason_stands_only_beside_a_host_that_stands_still() {
        let ids = [ContentId(0), ContentId(1)];
        let waits = || content(0, 60_000, Some(Stall::Throttled));
        // the other content grows, or grew to its end a moment ago
        for other in [
            content(1, 0, None),
            content(1, 2_999, Some(Stall::PeersSlow)),
            content(1, 2_999, None),
        ] {
            assert_eq!(status(vec![waits(), other]).standstill(&ids), None);
        }
        let other = content(1, 3_000, None);
        let found = status(vec![waits(), other]).standstill(&ids);
        let expected = Standstill {
            stall: Stall::Throttled,
            since: Duration::from_secs(3),
        };
        assert_eq!(found, Some(expected));
        // progress of another image doesn't count for this one
        let strange = content(7, 0, None);
        let found = status(vec![waits(), strange]).standstill(&ids);
        assert_eq!(
            found.map(|found| found.since),
            Some(Duration::from_secs(60))
        );
    }

    #[test]
    fn nothing_is_said_of_what_lacks_nothing() {
        let done = status(vec![content(0, 60_000, None)]);
        assert_eq!(done.standstill(&[ContentId(0)]), None);
        assert_eq!(done.standstill(&[ContentId(9)]), None);
        assert_eq!(done.standstill(&[]), None);
    }

    #[test]
    fn of_several_contents_the_one_that_says_most_speaks() {
        let all = |stalls: &[Stall]| {
            let contents = stalls.iter().zip(0..);
            let contents = contents.map(|(stall, id)| content(id, 10_000, Some(*stall)));
            let ids: Vec<ContentId> = (0..64).map(ContentId).collect();
            status(contents.collect()).standstill(&ids).unwrap().stall
        };
        use Stall::*;
        assert_eq!(
            all(&[AwaitingLease, AwaitingLease, OriginSilent]),
            OriginSilent
        );
        assert_eq!(all(&[AwaitingTurn, PeersSlow, AwaitingLease]), PeersSlow);
        assert_eq!(all(&[OriginSilent, NotStored]), NotStored);
        assert_eq!(all(&Stall::ALL), NotStored);
        // each stall has its own rank, or two hosts in the same situation would report different reasons
        let mut ranks: Vec<u8> = Stall::ALL.iter().map(|stall| stall.rank()).collect();
        ranks.sort_unstable();
        ranks.dedup();
        assert_eq!(ranks.len(), Stall::ALL.len());
    }
}
