//! What the swarm says about itself.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{HostKey, Reason};

use crate::event::ContentId;

/// Why a wanted content hasn't grown for a while. A closed set: names of metrics and messages are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stall {
    /// Nobody fetches it yet: its lease hasn't been granted to anybody that we hear of.
    AwaitingLease,
    /// We hold its lease and hold back while what was fetched is being spread.
    Paced,
    /// We hold its lease and asked the registry a moment ago.
    Fetching,
    /// We hold its lease and the registry, which was asked a while ago, sends nothing.
    OriginSilent,
    /// The registry failed us.
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
    /// Every peer that holds what we lack is over its bound.
    PeersBusy,
    /// No peer is connected, and some are quarantined: what we lack may be there.
    SourcesQuarantined,
    /// The download budget is used up.
    Throttled,
    /// This host couldn't store what arrived.
    NotStored,
    /// More of it than it has was lost again on this host: removed, changed on disk, or proved false. It is fetched again after pauses.
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

    /// The reason that it is shown as.
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

    /// Its name, for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.reason().as_str()
    }

    /// How much it says about a host that stands still as a whole: of several contents the one with the lowest number
    /// speaks for the host. First what has failed, then what this host waits for at this moment, then what waits its turn.
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

/// A host that gained nothing for this long stands still. Shorter pauses are part of an ordinary run: a window of chunks
/// is handed on, a layer ends and the next begins.
pub const STANDS_AFTER: Duration = Duration::from_secs(3);

/// A host that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standstill {
    /// What it waits for.
    pub stall: Stall,
    /// How long nothing has come.
    pub since: Duration,
}

/// Where a content stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentStatus {
    /// The content.
    pub id: ContentId,
    /// Its chunks.
    pub chunks: u32,
    /// Chunks held.
    pub held: u32,
    /// Chunks requested and pushes being received.
    pub requested: u32,
    /// Whether we fetch it from the registry.
    pub leased: bool,
    /// Whether we hold its lease and hold back on purpose while what was fetched is being spread.
    pub paced: bool,
    /// How long the registry has given nothing of it although it owes us chunks; `None` while it owes none.
    pub silent: Option<Duration>,
    /// Since something of it last arrived, or since it is wanted.
    pub idle: Duration,
    /// Why it doesn't grow; `None` while it does, and when it is complete.
    pub stall: Option<Stall>,
}

/// Where the swarm stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Contents by id.
    pub contents: Vec<ContentStatus>,
    /// Hosts of the roster.
    pub peers: usize,
    /// Connected ones.
    pub connected: usize,
    /// Quarantined ones.
    pub quarantined: Vec<HostKey>,
    /// Push work assigned to us and not done.
    pub backlog_bytes: u64,
    /// Our upload rate, as far as it was measured.
    pub upload_bytes_per_second: Option<u64>,
    /// Uploads under way.
    pub uploads: usize,
    /// Whether leases are self-assigned for want of a coordinator.
    pub headless: bool,
}

impl Status {
    /// A content, if it is known.
    #[must_use]
    pub fn content(&self, id: ContentId) -> Option<&ContentStatus> {
        let found = self
            .contents
            .binary_search_by_key(&id, |content| content.id);
        found.ok().map(|at| &self.contents[at])
    }

    /// Why nothing comes of an image that has these contents, taken as a whole: `None` while anything of it moves or
    /// moved a moment ago, and when it lacks nothing.
    ///
    /// One content that waits says nothing about the host: in an ordinary run most of them wait while others come.
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
            peers: 0,
            connected: 0,
            quarantined: Vec::new(),
            backlog_bytes: 0,
            upload_bytes_per_second: None,
            uploads: 0,
            headless: false,
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
        // what moves of another image is none of this one's
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
        // each has a rank of its own, or two hosts in one situation would tell two stories
        let mut ranks: Vec<u8> = Stall::ALL.iter().map(|stall| stall.rank()).collect();
        ranks.sort_unstable();
        ranks.dedup();
        assert_eq!(ranks.len(), Stall::ALL.len());
    }
}
