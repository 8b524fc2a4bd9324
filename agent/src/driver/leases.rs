//! The leases of this host, and the coordinator's reports about them. A lease is the right to fetch a content from the
//! registry.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proto::{
    ChunkRange, Digest,
    figure::{Bytes, Span},
    message::{LeaseEnd, LeaseState, OriginFault, OriginTrouble},
};
use swarm::event::ContentId;

use super::fit;

/// A registry that was asked and gives nothing for this long is reported as silent. This is half of the time after
/// which the coordinator passes a lease on, so the coordinator knows the reason by then.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);

/// After this many broken connections of one fetch, the coordinator is told of them.
const BREAKS_SAID: u32 = 3;

/// The most leases of contents that aren't known yet; more are given back. The coordinator leases a host a few contents
/// at a time.
const MAX_EARLY: usize = 64;

/// Connections of one fetch that broke after they had brought something.
#[derive(Clone, Copy, Debug, Default)]
struct Breaks {
    count: u32,
    bytes: u64,
}

impl Breaks {
    const fn note(&mut self, after_bytes: u64) {
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(after_bytes);
    }

    fn words(self) -> String {
        match self.count {
            0..BREAKS_SAID => String::new(),
            count => format!(
                "connections end after {}",
                Bytes(self.bytes / u64::from(count))
            ),
        }
    }
}

/// The registry's answer to the last attempt.
#[derive(Clone, Debug)]
enum Trouble {
    /// The registry refuses the token that the coordinator handed down.
    Refused(String),
    /// The registry wants to be left alone until this moment.
    Throttled(String, Instant),
    /// Anything else.
    Failing(String),
}

/// What the coordinator granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    /// The image under whose name the content is to be fetched, if the coordinator says so.
    pub(super) image: Option<Digest>,
    /// The chunks to fetch; `None`: all of them.
    pub(super) range: Option<ChunkRange>,
}

/// A lease that this host holds.
#[derive(Clone, Debug)]
struct Lease {
    granted: Granted,
    /// Chunks that were fetched under the lease.
    chunks: u32,
    /// The bytes that had come under the lease at an earlier report, and the moment at which they last grew.
    seen: Option<(u64, Instant)>,
    breaks: Breaks,
    /// The last trouble; a chunk that comes ends it.
    trouble: Option<Trouble>,
}

/// The progress of a leased content's fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) content: Digest,
    /// Bytes of the blob that came.
    pub(super) bytes: u64,
    /// The fetch waits while earlier chunks are being spread.
    pub(super) paced: bool,
    /// How long nothing has come that the registry owes.
    pub(super) silent: Option<Duration>,
}

impl Lease {
    const fn new(granted: Granted) -> Self {
        Self {
            granted,
            chunks: 0,
            seen: None,
            breaks: Breaks { count: 0, bytes: 0 },
            trouble: None,
        }
    }

    /// The running lease, for a report.
    fn state(&mut self, now: Instant, progress: Progress) -> LeaseState {
        let Progress {
            content,
            bytes,
            paced,
            silent,
        } = progress;
        let (seen, at) = *self.seen.get_or_insert((0, now));
        let moves = bytes > 0 && (bytes > seen || now.duration_since(at) < SILENT_AFTER);
        if bytes > seen {
            self.seen = Some((bytes, now));
            self.trouble = None;
        }
        let silent = silent.filter(|silent| *silent >= SILENT_AFTER && !moves);
        let (trouble, mut message, retry_after) = match (&self.trouble, silent) {
            (Some(Trouble::Throttled(error, until)), _) => (
                OriginTrouble::Throttled,
                error.clone(),
                until.saturating_duration_since(now),
            ),
            (Some(Trouble::Refused(error)), _) => {
                (OriginTrouble::Unauthorised, error.clone(), Duration::ZERO)
            }
            (Some(Trouble::Failing(error)), _) => {
                (OriginTrouble::Failing, error.clone(), Duration::ZERO)
            }
            (None, Some(silent)) => {
                let message = format!(
                    "no whole chunk has come from the registry for {}",
                    Span(silent)
                );
                (OriginTrouble::Silent, message, Duration::ZERO)
            }
            (None, None) => (
                OriginTrouble::Unspecified,
                self.breaks.words(),
                Duration::ZERO,
            ),
        };
        fit::cut(&mut message);
        LeaseState {
            content: content.as_bytes().to_vec(),
            chunks: self.chunks,
            range: self.granted.range.map(Into::into),
            bytes,
            end: LeaseEnd::Unspecified.into(),
            message,
            paced,
            trouble: trouble.into(),
            retry_after_ms: proto::millis(retry_after),
            fault: OriginFault::Unspecified.into(),
        }
    }
}

/// How a lease ended, for the coordinator.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) end: LeaseEnd,
    pub(super) fault: OriginFault,
    pub(super) message: String,
}

impl End {
    /// An end without a word against the registry.
    pub(super) const fn plain(end: LeaseEnd) -> Self {
        Self {
            end,
            fault: OriginFault::Unspecified,
            message: String::new(),
        }
    }
}

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    running: BTreeMap<ContentId, Lease>,
    /// Leases of contents whose stage is being made ready. The notary has their tickets.
    early: Vec<(Digest, Granted)>,
    /// Ends that no report has carried yet.
    ended: Vec<LeaseState>,
}

impl Leases {
    /// The coordinator leased a content, or a range of it.
    pub(super) fn grant(&mut self, id: ContentId, granted: Granted) {
        self.running.insert(id, Lease::new(granted));
    }

    /// The coordinator leased a content that isn't known yet. The lease runs meanwhile. Returns whether there is room
    /// for it; if not, the next report gives it back, so that another host gets it.
    pub(super) fn grant_early(&mut self, content: Digest, granted: Granted) -> bool {
        self.early.retain(|(other, _)| *other != content);
        let room = self.early.len() < MAX_EARLY;
        if room {
            self.early.push((content, granted));
        } else {
            let how = End {
                message: format!(
                    "{MAX_EARLY} leases of contents that this host doesn't know yet wait already"
                ),
                ..End::plain(LeaseEnd::Released)
            };
            self.say_ended((content, granted.range), 0, how);
        }
        room
    }

    /// The leases of contents that weren't known, to be granted anew.
    pub(super) fn take_early(&mut self) -> Vec<(Digest, Granted)> {
        std::mem::take(&mut self.early)
    }

    /// The coordinator took back the lease of a content that isn't known yet.
    pub(super) fn lose_early(&mut self, content: &Digest) {
        self.early.retain(|(other, _)| other != content);
    }

    /// The coordinator took a lease back. Returns whether this host had it.
    pub(super) fn lose(&mut self, id: ContentId) -> bool {
        self.running.remove(&id).is_some()
    }

    /// Ends a lease. The next report says so. Returns whether this host had it.
    pub(super) fn end(&mut self, id: ContentId, content: Digest, how: End) -> bool {
        let Some(lease) = self.running.remove(&id) else {
            return false;
        };
        self.say_ended((content, lease.granted.range), lease.chunks, how);
        true
    }

    /// Gives a lease back that can't be used: no host would take the links that are made with it.
    pub(super) fn give_back(&mut self, of: (Digest, Option<ChunkRange>), error: &str) {
        let how = End {
            end: LeaseEnd::OriginFailed,
            fault: OriginFault::Host,
            message: error.to_owned(),
        };
        self.say_ended(of, 0, how);
    }

    fn say_ended(&mut self, (content, range): (Digest, Option<ChunkRange>), chunks: u32, how: End) {
        let End {
            end,
            fault,
            mut message,
        } = how;
        fit::cut(&mut message);
        self.ended.push(LeaseState {
            content: content.as_bytes().to_vec(),
            chunks,
            range: range.map(Into::into),
            end: end.into(),
            fault: fault.into(),
            message,
            ..LeaseState::default()
        });
    }

    pub(super) fn holds(&self, id: ContentId) -> bool {
        self.running.contains_key(&id)
    }

    pub(super) fn count(&self) -> usize {
        self.running.len()
    }

    /// The image under whose name a content is to be fetched, if the coordinator says so.
    pub(super) fn image(&self, id: ContentId) -> Option<Digest> {
        self.running.get(&id)?.granted.image
    }

    // ---- what the registry does -----------------------------------------------------------------------------------

    /// A chunk came from the registry.
    pub(super) fn chunk_came(&mut self, id: ContentId) {
        if let Some(lease) = self.running.get_mut(&id) {
            lease.chunks += 1;
            lease.trouble = None;
        }
    }

    /// A connection broke after it had brought something.
    pub(super) fn broke(&mut self, id: ContentId, after_bytes: u64) {
        if let Some(lease) = self.running.get_mut(&id) {
            lease.breaks.note(after_bytes);
        }
    }

    /// The registry refuses the token that the coordinator handed down. Returns whether the coordinator has to be told,
    /// so that it fetches another token.
    pub(super) fn refused(&mut self, id: ContentId, error: String) -> bool {
        self.trouble(id, Trouble::Refused(error))
    }

    /// An attempt failed, and the registry may want to be left alone until `retry_at`. Returns whether the content is
    /// leased.
    pub(super) fn failed(
        &mut self,
        id: ContentId,
        error: String,
        retry_at: Option<Instant>,
    ) -> bool {
        let trouble = match retry_at {
            Some(until) => Trouble::Throttled(error, until),
            None => Trouble::Failing(error),
        };
        self.trouble(id, trouble)
    }

    fn trouble(&mut self, id: ContentId, trouble: Trouble) -> bool {
        let lease = self.running.get_mut(&id);
        lease.map(|lease| lease.trouble = Some(trouble)).is_some()
    }

    // ---- reports --------------------------------------------------------------------------------------------------

    /// The states of leases for a report: running leases, and ends that no report has carried. `progress` gives the
    /// progress of a content's fetch; a content that isn't known is left out.
    pub(super) fn report(
        &mut self,
        now: Instant,
        progress: impl Fn(ContentId) -> Option<Progress>,
    ) -> Vec<LeaseState> {
        let running = self.running.iter_mut();
        let states = running.filter_map(|(id, lease)| Some(lease.state(now, progress(*id)?)));
        let ended = std::mem::take(&mut self.ended);
        states.chain(ended).collect()
    }

    /// A report with these states wasn't sent: the ends among them go first with the next report.
    pub(super) fn unsent(&mut self, states: Vec<LeaseState>) {
        let ended = |state: &LeaseState| state.end() != LeaseEnd::Unspecified;
        let unsent = states.into_iter().filter(ended);
        let after = std::mem::take(&mut self.ended);
        self.ended = unsent.chain(after).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ContentId = ContentId(3);

    fn content() -> Digest {
        Digest::of(b"a content")
    }

    fn idle(bytes: u64, silent: Option<Duration>) -> Progress {
        Progress {
            content: content(),
            bytes,
            paced: false,
            silent,
        }
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn by(image: Option<Digest>) -> Granted {
        Granted { image, range: None }
    }

    fn granted() -> Leases {
        let mut leases = Leases::default();
        leases.grant(ID, Granted::default());
        leases
    }

    fn one(leases: &mut Leases, now: Instant, progress: Progress) -> LeaseState {
        let mut states = leases.report(now, |_| Some(progress));
        assert_eq!(states.len(), 1, "{states:?}");
        states.remove(0)
    }

    #[test]
    fn a_registry_is_called_silent_only_when_it_owes_something_for_long() {
        let (mut leases, now) = (granted(), Instant::now());
        let mut state = |silent| one(&mut leases, now, idle(0, silent));
        assert_eq!(state(None).trouble(), OriginTrouble::Unspecified);
        let almost = SILENT_AFTER.checked_sub(Duration::from_millis(1));
        assert_eq!(state(almost).trouble(), OriginTrouble::Unspecified);
        assert_eq!(state(Some(SILENT_AFTER)).trouble(), OriginTrouble::Silent);
        let silent = state(Some(seconds(7)));
        assert_eq!(
            silent.message,
            "no whole chunk has come from the registry for 7 s"
        );
    }

    #[test]
    fn bytes_of_a_chunk_that_come_slowly_are_no_silence_until_they_stop() {
        let (mut leases, start) = (granted(), Instant::now());
        let silent = Some(seconds(9));
        let mut trouble =
            |after: Duration, bytes| one(&mut leases, start + after, idle(bytes, silent)).trouble();
        assert_eq!(trouble(seconds(0), 9_000), OriginTrouble::Unspecified);
        let almost = SILENT_AFTER.checked_sub(Duration::from_millis(1)).unwrap();
        assert_eq!(trouble(almost, 9_000), OriginTrouble::Unspecified);
        assert_eq!(trouble(SILENT_AFTER, 9_000), OriginTrouble::Silent);
        assert_eq!(trouble(SILENT_AFTER, 9_001), OriginTrouble::Unspecified);
    }

    #[test]
    fn what_the_registry_says_is_told_until_something_comes() {
        let (mut leases, now) = (granted(), Instant::now());
        assert!(leases.failed(ID, "503".into(), None));
        let failing = one(&mut leases, now, idle(0, None));
        assert_eq!(
            (failing.trouble(), &*failing.message),
            (OriginTrouble::Failing, "503")
        );
        // part of a chunk came
        let after = one(&mut leases, now, idle(10, None));
        assert_eq!(after.trouble(), OriginTrouble::Unspecified);
        // a whole one
        assert!(leases.refused(ID, "401".into()));
        let refused = one(&mut leases, now, idle(10, None));
        assert_eq!(refused.trouble(), OriginTrouble::Unauthorised);
        leases.chunk_came(ID);
        let after = one(&mut leases, now, idle(10, None));
        assert_eq!(
            (after.trouble(), after.chunks),
            (OriginTrouble::Unspecified, 1)
        );
    }

    #[test]
    fn a_registry_that_wants_to_be_left_alone_is_told_with_the_time_that_is_left() {
        let (mut leases, now) = (granted(), Instant::now());
        leases.failed(ID, "429".into(), Some(now + seconds(30)));
        let state = one(&mut leases, now + seconds(10), idle(0, None));
        assert_eq!(
            (state.trouble(), state.retry_after_ms),
            (OriginTrouble::Throttled, 20_000)
        );
        let state = one(&mut leases, now + seconds(40), idle(0, None));
        assert_eq!(
            (state.trouble(), state.retry_after_ms),
            (OriginTrouble::Throttled, 0)
        );
    }

    #[test]
    fn broken_connections_are_told_of_once_they_are_the_rule() {
        let (mut leases, now) = (granted(), Instant::now());
        for _ in 1..BREAKS_SAID {
            leases.broke(ID, 2_000);
        }
        assert_eq!(one(&mut leases, now, idle(1, None)).message, "");
        leases.broke(ID, 5_000);
        let said = one(&mut leases, now, idle(1, None));
        assert_eq!(said.message, "connections end after 3.0 kB");
        assert_eq!(said.trouble(), OriginTrouble::Unspecified);
    }

    #[test]
    fn news_of_a_content_that_is_not_leased_changes_nothing() {
        let mut leases = granted();
        let other = ContentId(9);
        assert!(!leases.refused(other, "401".into()));
        assert!(!leases.failed(other, "503".into(), None));
        leases.chunk_came(other);
        leases.broke(other, 7);
        assert!(!leases.end(other, content(), End::plain(LeaseEnd::Done)));
        assert!(!leases.lose(other));
        let state = one(&mut leases, Instant::now(), idle(0, None));
        assert_eq!(
            (state.trouble(), state.chunks),
            (OriginTrouble::Unspecified, 0)
        );
    }

    #[test]
    fn an_end_is_told_once_with_what_was_fetched() {
        let (mut leases, now) = (granted(), Instant::now());
        leases.chunk_came(ID);
        assert!(leases.end(ID, content(), End::plain(LeaseEnd::Done)));
        assert!(!leases.end(ID, content(), End::plain(LeaseEnd::Released)));
        assert!(!leases.holds(ID));
        let told = leases.report(now, |_| None);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].end(), told[0].chunks), (LeaseEnd::Done, 1));
        assert!(leases.report(now, |_| None).is_empty());
    }

    #[test]
    fn a_lease_that_is_lost_while_fetching_ends_without_a_word() {
        let (mut leases, now) = (granted(), Instant::now());
        assert!(leases.lose(ID));
        assert!(!leases.failed(ID, "503".into(), None));
        assert!(!leases.end(ID, content(), End::plain(LeaseEnd::OriginFailed)));
        assert!(leases.report(now, |_| Some(idle(0, None))).is_empty());
    }

    #[test]
    fn ends_of_a_report_that_was_not_sent_come_first_in_the_next() {
        let (mut leases, now) = (granted(), Instant::now());
        leases.end(ID, content(), End::plain(LeaseEnd::Done));
        leases.grant(ContentId(4), Granted::default());
        let unsent = leases.report(now, |_| Some(idle(0, None)));
        assert_eq!(unsent.len(), 2);
        let later = Digest::of(b"later");
        leases.give_back((later, None), "no ticket");
        leases.unsent(unsent);
        let told = leases.report(now, |_| None);
        let contents: Vec<_> = told.iter().map(|state| state.content.clone()).collect();
        assert_eq!(
            contents,
            [content().as_bytes().to_vec(), later.as_bytes().to_vec()]
        );
        assert_eq!(
            (told[1].end(), told[1].fault()),
            (LeaseEnd::OriginFailed, OriginFault::Host)
        );
    }

    #[test]
    fn a_lease_that_comes_before_its_content_waits_for_it() {
        let mut leases = Leases::default();
        let image = Some(Digest::of(b"an image"));
        leases.grant_early(content(), Granted::default());
        // the lease is granted anew: the coordinator's last word counts
        leases.grant_early(content(), by(image));
        assert_eq!(leases.count(), 0);
        assert_eq!(leases.take_early(), [(content(), by(image))]);
        assert!(leases.take_early().is_empty());
    }

    #[test]
    fn a_lease_that_is_taken_back_before_its_content_came_is_not_used() {
        let mut leases = Leases::default();
        let other = Digest::of(b"other");
        leases.grant_early(content(), Granted::default());
        leases.grant_early(other, Granted::default());
        leases.lose_early(&content());
        assert_eq!(leases.take_early(), [(other, Granted::default())]);
    }

    #[test]
    fn early_leases_are_bounded_and_what_is_more_is_given_back() {
        let mut leases = Leases::default();
        let content = |at: usize| Digest::of(&at.to_le_bytes());
        for at in 0..MAX_EARLY {
            assert!(leases.grant_early(content(at), Granted::default()));
        }
        // a repeated order takes no more room
        assert!(leases.grant_early(content(0), Granted::default()));
        assert!(leases.report(Instant::now(), |_| None).is_empty());
        assert!(!leases.grant_early(content(MAX_EARLY), Granted::default()));
        let told = leases.report(Instant::now(), |_| None);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].content, content(MAX_EARLY).as_bytes());
        assert_eq!(told[0].end(), LeaseEnd::Released);
        assert_eq!(leases.take_early().len(), MAX_EARLY);
    }

    #[test]
    fn what_is_said_of_a_lease_names_its_range() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        let range = ChunkRange::new(16, 32);
        let of_range = Granted { image: None, range };
        leases.grant(ID, of_range);
        let said = |state: LeaseState| state.range.map(|range| (range.from, range.until));
        let state = one(&mut leases, now, idle(0, None));
        assert_eq!(said(state), Some((16, 32)));
        leases.end(ID, content(), End::plain(LeaseEnd::Done));
        leases.grant_early(Digest::of(b"early"), of_range);
        leases.give_back((Digest::of(b"other"), range), "no ticket");
        for state in leases.report(now, |_| None) {
            assert_eq!(said(state), Some((16, 32)));
        }
        assert_eq!(leases.take_early(), [(Digest::of(b"early"), of_range)]);
        leases.grant(ID, Granted::default());
        assert_eq!(said(one(&mut leases, now, idle(0, None))), None);
    }

    #[test]
    fn a_lease_remembers_the_image_that_it_was_granted_for() {
        let mut leases = granted();
        assert_eq!(leases.image(ID), None);
        let image = Some(Digest::of(b"an image"));
        leases.grant(ID, by(image));
        assert_eq!((leases.image(ID), leases.count()), (image, 1));
    }
}
