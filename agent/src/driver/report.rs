//! Reports to the coordinator: when the next one is due, what it has to say, and what was said already. It sends
//! nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, Digest, HostId, Signed,
    limits::{MAX_BLAMES, MAX_HELD, MAX_RECIPE_DOUBTS, MAX_WITHOUT_SOURCE},
    message::{
        Blame, BlameKind, ContentHeld, Held, ImageState, LeaseState, Load, MirrorWants, Report,
        Retraction, SignedLink, Volume, WithoutSource,
    },
    recipe::Doubt,
};
use swarm::{Stall, event::ContentId};
use tracing::{debug, warn};

use super::fit::{self, LeftOut};

/// The time between reports while something moves. A report goes out at once when a lease ends or presence changes.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// A content is reported to have no source if nothing of it came for this long, and no peer has more of it.
const NO_SOURCE: Duration = Duration::from_secs(2);

/// The most accusations with evidence that wait: 1.5 KiB each. More are dropped: one is enough against a host.
const MAX_EVIDENCE: usize = 32;

/// The most doubts of recipes that are remembered and told: a recipe that many contents don't fit is given up after a
/// few of them.
const MAX_DOUBTS: usize = 64;

/// The facts about a content that a report needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) digest: Digest,
    /// The content's chain is closed. Chunks that aren't verified may turn out false.
    pub(super) verified: bool,
}

/// The facts about the driver's other parts that a report needs.
pub(super) struct Facts<'a> {
    pub(super) status: &'a swarm::Status,
    /// Finds a content by the swarm's number.
    pub(super) known: &'a dyn Fn(ContentId) -> Option<Known>,
    /// The images that [`Reporting::fit`] kept.
    pub(super) images: Vec<ImageState>,
    /// The running leases, and those that ended.
    pub(super) leases: Vec<LeaseState>,
    pub(super) volume: Volume,
    /// The wants of the mirror's clients, if they are to be reported.
    pub(super) wants: Option<MirrorWants>,
    /// The newest order about names after which the disk was looked at.
    pub(super) names_confirmed: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Reporting {
    urgency: Option<Urgency>,
    /// The next report says everything: whatever it leaves out isn't so.
    full: bool,
    last: Instant,
    blames: Vec<Blame>,
    /// Contents whose links this host retracts, each with the first retracted chunk.
    retractions: BTreeMap<Digest, ChunkIndex>,
    /// Doubts of recipes that are to be told.
    doubts: BTreeSet<Doubt>,
    /// Doubts of recipes that this host found itself and has told, or is about to.
    found: BTreeSet<Doubt>,
    /// A change came for a roster that this host doesn't have.
    roster_wanted: bool,
    /// The contents that were last reported to have no source; `None` if they are to be reported anew.
    without_source: Option<Vec<Digest>>,
    /// The number of chunks of each content that was last reported as held; `None` if all are to be reported anew.
    held: Option<BTreeMap<ContentId, u32>>,
    /// The images and names for which the last report had no room.
    left_out: LeftOut,
}

/// The urgency of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// When [`REPORT_EVERY`] has passed since the last report.
    Soon,
    /// As soon as the driver has nothing left to change.
    AtOnce,
}

impl Reporting {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            urgency: None,
            full: false,
            last: now,
            blames: Vec::new(),
            retractions: BTreeMap::new(),
            doubts: BTreeSet::new(),
            found: BTreeSet::new(),
            roster_wanted: false,
            without_source: None,
            held: None,
            left_out: LeftOut {
                images: 0,
                wanted_names: 0,
                names: 0,
            },
        }
    }

    // ---- when -------------------------------------------------------------------------------------------------------

    /// Something changed: the next report says so, in [`REPORT_EVERY`] at most.
    pub(super) fn soon(&mut self) {
        self.urgency = self.urgency.max(Some(Urgency::Soon));
    }

    /// Something changed that others wait for.
    pub(super) fn at_once(&mut self) {
        self.urgency = Some(Urgency::AtOnce);
    }

    /// The coordinator may believe something of this host that isn't so: the next report, at once, says everything.
    pub(super) fn in_full(&mut self) {
        self.full = true;
        self.at_once();
    }

    /// When the next report is to be made; a moment in the past means at once.
    pub(super) fn next_due(&self) -> Option<Instant> {
        Some(match self.urgency? {
            Urgency::Soon => self.last + REPORT_EVERY,
            Urgency::AtOnce => self.last,
        })
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_due().is_some_and(|due| now >= due)
    }

    /// Whether the next report says everything.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    // ---- what is to be said -----------------------------------------------------------------------------------------

    /// A session with the coordinator began. The coordinator knows nothing of earlier reports.
    pub(super) fn session_began(&mut self) {
        self.without_source = Some(Vec::new());
        self.held = None;
        self.in_full();
    }

    /// This host takes back the links that it made of a content, from a chunk on.
    pub(super) fn taken_back(&mut self, content: Digest, from: ChunkIndex) {
        let first = self.retractions.entry(content).or_insert(from);
        *first = from.min(*first);
        self.soon();
    }

    /// The registry's bytes of a content don't fit a recipe. The first doubts of many are told.
    pub(super) fn doubt(&mut self, doubt: Doubt) {
        if self.found.len() < MAX_DOUBTS || self.found.contains(&doubt) {
            self.found.insert(doubt);
            self.doubts.insert(doubt);
        }
        self.at_once();
    }

    /// The coordinator orders an image to be staged by this recipe, which isn't used for the contents in doubt. What
    /// this host found against the recipe beside that is told again: the coordinator may be another one since, and one
    /// host's word isn't in its order.
    pub(super) fn ordered(
        &mut self,
        image: &Digest,
        recipe: Option<Digest>,
        in_doubt: &BTreeSet<Digest>,
    ) {
        self.found
            .retain(|of| of.image != *image || Some(of.recipe) == recipe);
        let untold = |of: &&Doubt| of.image == *image && !in_doubt.contains(&of.content);
        let untold: Vec<Doubt> = self.found.iter().filter(untold).copied().collect();
        if !untold.is_empty() {
            self.doubts.extend(untold);
            self.soon();
        }
    }

    /// A change came for a roster that this host doesn't have.
    pub(super) fn want_roster(&mut self) {
        self.roster_wanted = true;
        self.at_once();
    }

    /// A peer sent something false that only the two hosts saw.
    pub(super) fn blame(
        &mut self,
        host: &HostId,
        content: Option<Digest>,
        chunk: ChunkIndex,
        kind: BlameKind,
    ) {
        self.accuse(Blame {
            host: host.to_string(),
            content: content
                .map(|content| content.as_bytes().to_vec())
                .unwrap_or_default(),
            chunk: chunk.0,
            kind: kind.into(),
            ..Blame::default()
        });
    }

    /// A host signed a link that is false, or two links that contradict each other. The links are the evidence.
    pub(super) fn show(&mut self, links: &[Signed]) {
        let Some(first) = links.first() else { return };
        let shown = self.blames.iter();
        let shown = shown.filter(|blame| !blame.evidence.is_empty()).count();
        if shown >= MAX_EVIDENCE {
            return;
        }
        let evidence = links.iter().map(|signed| SignedLink {
            chunk: signed.chunk.0,
            link: Some(signed.to_message()),
        });
        self.accuse(Blame {
            host: first.maker().to_string(),
            maker: first.maker().to_string(),
            content: first.content.as_bytes().to_vec(),
            chunk: first.chunk.0,
            kind: BlameKind::Link.into(),
            evidence: evidence.collect(),
        });
    }

    fn accuse(&mut self, blame: Blame) {
        if self.blames.len() < MAX_BLAMES {
            self.blames.push(blame);
            self.soon();
        }
    }

    // ---- the report -------------------------------------------------------------------------------------------------

    /// Returns the images that fit into a report: `wanted` images first, with the names that are `desired`. If
    /// something doesn't fit that the coordinator waits for, the log says so.
    pub(super) fn fit(
        &mut self,
        images: Vec<ImageState>,
        wanted: impl Fn(&Digest) -> bool,
        desired: &BTreeMap<String, Digest>,
    ) -> Vec<ImageState> {
        let (images, left_out) = fit::images(images, wanted, desired);
        if left_out.wanted_names > 0 && self.left_out.wanted_names == 0 {
            warn!(
                names = left_out.wanted_names,
                "more names are wanted than a report can hold: the coordinator won't hear of all of them; \
                 cancel those that aren't needed (`parbake cancel IMAGE`)"
            );
        }
        if left_out != self.left_out {
            debug!(?left_out, "reports leave out some of what is here");
        }
        self.left_out = left_out;
        images
    }

    /// Makes the report that is due. Returns it, and the ends of leases that are for the next one. The report counts as
    /// sent, unless [`Reporting::unsent`] gives it back.
    pub(super) fn make(&mut self, now: Instant, facts: Facts<'_>) -> (Report, Vec<LeaseState>) {
        self.last = now;
        self.urgency = None;
        let without_source = self.without_source(&facts);
        let held = self.held(&facts);
        let retractions = std::mem::take(&mut self.retractions);
        let doubts: Vec<Doubt> = (0..MAX_RECIPE_DOUBTS)
            .map_while(|_| self.doubts.pop_first())
            .collect();
        let mut report = Report {
            images: facts.images,
            full: std::mem::take(&mut self.full),
            volume: Some(facts.volume),
            leases: facts.leases,
            blames: std::mem::take(&mut self.blames),
            retractions: retractions
                .into_iter()
                .map(|(content, from)| Retraction {
                    content: content.as_bytes().to_vec(),
                    from_chunk: from.0,
                    maker: String::new(),
                })
                .collect(),
            // an unmeasured rate is 0: the coordinator assumes one itself
            load: Some(Load {
                backlog_bytes: facts.status.backlog_bytes,
                upload_bytes_per_second: facts.status.upload_bytes_per_second.unwrap_or(0),
            }),
            mirror: facts.wants,
            names: facts.names_confirmed,
            roster_wanted: std::mem::take(&mut self.roster_wanted),
            without_source,
            held,
            recipe_doubts: doubts.iter().map(Doubt::to_message).collect(),
            old_images: None,
        };
        let later = fit::events(&mut report);
        if !later.is_empty() || !self.doubts.is_empty() {
            self.soon();
        }
        self.say_later(later.blames, &later.retractions);
        (report, later.ended_leases)
    }

    /// A report couldn't be sent. Parts that mustn't be lost go into the next report: accusations, retractions, and
    /// ends of leases. Returns the leases.
    pub(super) fn unsent(&mut self, report: Report) -> Vec<LeaseState> {
        self.full |= report.full;
        self.roster_wanted |= report.roster_wanted;
        if report.without_source.is_some() {
            // reported anew with the next report
            self.without_source = None;
        }
        if report.held.is_some() {
            self.held = None;
        }
        let doubts = report.recipe_doubts.iter();
        self.doubts
            .extend(doubts.filter_map(|doubt| Doubt::parse(doubt).ok()));
        self.say_later(report.blames, &report.retractions);
        report.leases
    }

    /// The next report has these before others of their kind.
    fn say_later(&mut self, mut blames: Vec<Blame>, retractions: &[Retraction]) {
        blames.append(&mut self.blames);
        self.blames = blames;
        let retractions = retractions.iter().filter_map(|kept| {
            let content = Digest::try_from(kept.content.as_slice()).ok()?;
            Some((content, ChunkIndex(kept.from_chunk)))
        });
        self.retractions.extend(retractions);
    }

    /// The first contents that this host wants and finds no source of, if they differ from the last report.
    fn without_source(&mut self, facts: &Facts<'_>) -> Option<WithoutSource> {
        let lacking = facts.status.contents.iter().filter(|content| {
            let waits = content.stall.is_some_and(Stall::is_for_want_of_a_source);
            waits && content.idle >= NO_SOURCE
        });
        let found: Vec<Digest> = lacking
            .filter_map(|content| Some((facts.known)(content.id)?.digest))
            .take(MAX_WITHOUT_SOURCE)
            .collect();
        let said = self.without_source.as_ref() == Some(&found);
        let message = (!said).then(|| WithoutSource {
            contents: found
                .iter()
                .map(|content| content.as_bytes().to_vec())
                .collect(),
        });
        self.without_source = Some(found);
        message
    }

    /// How many chunks this host holds of each content whose number changed since the last report. The other hosts'
    /// numbers decide whether the coordinator believes the host that fetches a content.
    fn held(&mut self, facts: &Facts<'_>) -> Option<Held> {
        let first = self.held.is_none();
        let said = self.held.get_or_insert_default();
        let mut news = Vec::new();
        for of in &facts.status.contents {
            let Some(known) = (facts.known)(of.id) else {
                continue;
            };
            let most = of.chunks.saturating_sub(u32::from(!known.verified));
            let held = of.held.min(most);
            if said.get(&of.id).copied().unwrap_or(0) == held {
                continue;
            }
            if news.len() >= MAX_HELD {
                break;
            }
            said.insert(of.id, held);
            news.push(ContentHeld {
                content: known.digest.as_bytes().to_vec(),
                chunks: held,
            });
        }
        said.retain(|id, _| (facts.known)(*id).is_some());
        (first || !news.is_empty()).then_some(Held { contents: news })
    }
}

#[cfg(test)]
mod tests {
    use proto::message::LeaseEnd;
    use swarm::status::ContentStatus;

    use super::*;

    /// A content of eight chunks whose digest follows from its number.
    fn content(id: u32, held: u32) -> ContentStatus {
        ContentStatus {
            id: ContentId(id),
            chunks: 8,
            held,
            requested: 0,
            leased: false,
            paced: false,
            silent: None,
            idle: Duration::ZERO,
            stall: None,
        }
    }

    fn stalled(id: u32, idle_ms: u64, stall: Stall) -> ContentStatus {
        ContentStatus {
            idle: Duration::from_millis(idle_ms),
            stall: Some(stall),
            ..content(id, 0)
        }
    }

    fn digest(id: ContentId) -> Digest {
        Digest::of(&id.0.to_be_bytes())
    }

    fn verified(id: ContentId) -> Option<Known> {
        Some(Known {
            digest: digest(id),
            verified: true,
        })
    }

    fn status(contents: Vec<ContentStatus>) -> swarm::Status {
        swarm::Status {
            contents,
            ..swarm::Status::default()
        }
    }

    fn facts<'a>(
        status: &'a swarm::Status,
        known: &'a dyn Fn(ContentId) -> Option<Known>,
    ) -> Facts<'a> {
        Facts {
            status,
            known,
            images: Vec::new(),
            leases: Vec::new(),
            volume: Volume::default(),
            wants: None,
            names_confirmed: 0,
        }
    }

    fn make_of(
        reporting: &mut Reporting,
        contents: Vec<ContentStatus>,
        known: &dyn Fn(ContentId) -> Option<Known>,
    ) -> Report {
        let status = status(contents);
        let facts = facts(&status, known);
        let (report, later) = reporting.make(reporting.last, facts);
        assert_eq!(later, []);
        report
    }

    fn make(reporting: &mut Reporting, contents: Vec<ContentStatus>) -> Report {
        make_of(reporting, contents, &verified)
    }

    fn lease(content: u32) -> LeaseState {
        LeaseState {
            content: digest(ContentId(content)).as_bytes().to_vec(),
            end: LeaseEnd::Done.into(),
            ..LeaseState::default()
        }
    }

    fn in_session() -> (Reporting, Instant) {
        let now = Instant::now();
        let mut reporting = Reporting::new(now);
        reporting.session_began();
        make(&mut reporting, Vec::new());
        (reporting, now)
    }

    #[test]
    fn what_changed_is_said_half_a_second_after_the_last_report() {
        let (mut reporting, now) = in_session();
        assert_eq!(reporting.next_due(), None);
        reporting.soon();
        assert!(!reporting.is_due(now + Duration::from_millis(499)));
        assert!(reporting.is_due(now + Duration::from_millis(500)));
        assert_eq!(reporting.next_due(), Some(now + REPORT_EVERY));
    }

    #[test]
    fn what_somebody_waits_for_is_said_at_once_and_once() {
        let (mut reporting, now) = in_session();
        reporting.at_once();
        // less urgent news doesn't change that
        reporting.soon();
        reporting.at_once();
        assert!(reporting.is_due(now));
        make(&mut reporting, Vec::new());
        assert!(!reporting.is_due(now + Duration::from_secs(60)));
    }

    #[test]
    fn a_session_begins_with_a_full_report_and_the_next_one_isnt() {
        let now = Instant::now();
        let mut reporting = Reporting::new(now);
        reporting.session_began();
        assert!(reporting.is_due(now) && reporting.is_full());
        assert!(make(&mut reporting, Vec::new()).full);
        reporting.at_once();
        assert!(!make(&mut reporting, Vec::new()).full);
    }

    #[test]
    fn a_full_report_that_couldnt_be_sent_is_followed_by_a_full_one() {
        let (mut reporting, _) = in_session();
        reporting.in_full();
        let report = make(&mut reporting, Vec::new());
        reporting.unsent(report);
        assert!(make(&mut reporting, Vec::new()).full);
    }

    fn doubt(content: u32) -> Doubt {
        Doubt {
            image: Digest::of(b"image"),
            recipe: Digest::of(b"recipe"),
            content: digest(ContentId(content)),
            chunk: ChunkIndex(1),
        }
    }

    #[test]
    fn what_was_found_against_a_recipe_is_told_again_by_an_order_that_doesnt_know_it() {
        let (mut reporting, _) = in_session();
        for content in [1, 2] {
            reporting.doubt(doubt(content));
        }
        assert_eq!(make(&mut reporting, Vec::new()).recipe_doubts.len(), 2);
        assert_eq!(make(&mut reporting, Vec::new()).recipe_doubts.len(), 0);
        let Doubt { image, recipe, .. } = doubt(1);
        let known = BTreeSet::from([doubt(1).content]);
        // another image's order, and one that knows it
        reporting.ordered(&recipe, Some(recipe), &BTreeSet::new());
        assert_eq!(reporting.next_due(), None);
        reporting.ordered(&image, Some(recipe), &known);
        let told = make(&mut reporting, Vec::new()).recipe_doubts;
        assert_eq!(told, [doubt(2).to_message()]);
        // with another recipe they are of no interest
        reporting.ordered(&image, None, &BTreeSet::new());
        reporting.ordered(&image, Some(recipe), &BTreeSet::new());
        assert_eq!(reporting.next_due(), None);
    }

    #[test]
    fn of_many_doubts_the_first_are_told_in_several_reports() {
        let (mut reporting, _) = in_session();
        for content in 0..100 {
            reporting.doubt(doubt(content));
        }
        let mut told = 0;
        while reporting.next_due().is_some() {
            let said = make(&mut reporting, Vec::new()).recipe_doubts.len();
            assert!(said <= MAX_RECIPE_DOUBTS);
            told += said;
        }
        assert_eq!(told, MAX_DOUBTS);
    }

    #[test]
    fn contents_without_a_source_are_said_when_they_change_and_after_two_seconds() {
        let (mut reporting, _) = in_session();
        let at = |idle_ms| vec![stalled(1, idle_ms, Stall::NoSource)];
        assert_eq!(make(&mut reporting, at(1_999)).without_source, None);
        let said = make(&mut reporting, at(2_000)).without_source.unwrap();
        assert_eq!(said.contents, [digest(ContentId(1)).as_bytes().to_vec()]);
        assert_eq!(make(&mut reporting, at(9_000)).without_source, None);
        // the content has a source again
        let said = make(&mut reporting, vec![content(1, 1)]).without_source;
        assert_eq!(said.unwrap().contents.len(), 0);
    }

    #[test]
    fn a_content_that_waits_for_something_else_has_a_source() {
        let (mut reporting, _) = in_session();
        let waits = vec![stalled(1, 9_000, Stall::PeersSlow)];
        assert_eq!(make(&mut reporting, waits).without_source, None);
    }

    #[test]
    fn no_more_contents_without_a_source_are_said_than_the_coordinator_takes() {
        let (mut reporting, _) = in_session();
        let stalled = |id| stalled(id, 3_000, Stall::AwaitingLease);
        let said = make(&mut reporting, (0..17).map(stalled).collect());
        let said = said.without_source.unwrap().contents;
        assert_eq!(said.len(), MAX_WITHOUT_SOURCE);
        assert_eq!(said[0], digest(ContentId(0)).as_bytes());
    }

    #[test]
    fn a_session_that_begins_is_told_of_the_lack_again_but_not_that_there_is_none() {
        let (mut reporting, _) = in_session();
        let waits = || vec![stalled(1, 3_000, Stall::NoSource)];
        assert!(make(&mut reporting, waits()).without_source.is_some());
        reporting.session_began();
        assert!(make(&mut reporting, waits()).without_source.is_some());
        reporting.session_began();
        assert_eq!(make(&mut reporting, Vec::new()).without_source, None);
    }

    #[test]
    fn how_much_is_held_is_said_where_it_changed() {
        let (mut reporting, _) = in_session();
        let said = make(&mut reporting, vec![content(1, 3), content(2, 0)]);
        let held = said.held.unwrap().contents;
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].chunks, 3);
        let said = make(&mut reporting, vec![content(1, 3), content(2, 1)]);
        assert_eq!(
            said.held.unwrap().contents[0].content,
            digest(ContentId(2)).as_bytes()
        );
        let same = vec![content(1, 3), content(2, 1)];
        assert_eq!(make(&mut reporting, same).held, None);
    }

    #[test]
    fn a_content_that_isnt_verified_is_never_said_to_be_held_whole() {
        let (mut reporting, _) = in_session();
        let unverified = |id| {
            Some(Known {
                digest: digest(id),
                verified: false,
            })
        };
        let report = make_of(&mut reporting, vec![content(1, 8)], &unverified);
        assert_eq!(report.held.unwrap().contents[0].chunks, 7);
        let report = make(&mut reporting, vec![content(1, 8)]);
        assert_eq!(report.held.unwrap().contents[0].chunks, 8);
    }

    #[test]
    fn a_content_that_went_and_came_back_is_said_anew() {
        let (mut reporting, _) = in_session();
        assert!(make(&mut reporting, vec![content(1, 3)]).held.is_some());
        make_of(&mut reporting, Vec::new(), &|_| None);
        assert!(make(&mut reporting, vec![content(1, 3)]).held.is_some());
    }

    #[test]
    fn counts_that_one_report_has_no_room_for_come_with_the_next() {
        let (mut reporting, _) = in_session();
        let all = || (0..300).map(|id| content(id, 1)).collect::<Vec<_>>();
        let first = make(&mut reporting, all()).held.unwrap().contents.len();
        let second = make(&mut reporting, all()).held.unwrap().contents.len();
        assert_eq!((first, second), (MAX_HELD, 300 - MAX_HELD));
    }

    #[test]
    fn what_a_lost_report_said_is_said_again() {
        let (mut reporting, now) = in_session();
        reporting.taken_back(digest(ContentId(2)), ChunkIndex(9));
        reporting.taken_back(digest(ContentId(2)), ChunkIndex(4));
        let peer = "mini-2".parse().unwrap();
        reporting.blame(&peer, None, ChunkIndex(0), BlameKind::Silence);
        reporting.want_roster();
        assert!(reporting.is_due(now));
        let contents = || vec![content(1, 3), stalled(2, 3_000, Stall::NoSource)];
        let lost = make(&mut reporting, contents());
        reporting.unsent(lost.clone());
        let report = make(&mut reporting, contents());
        assert_eq!(report.retractions[0].from_chunk, 4);
        assert_eq!(report.blames, lost.blames);
        assert!(report.roster_wanted);
        assert_eq!(report.without_source, lost.without_source);
        assert_eq!(report.held, lost.held);
        // and then no more
        let report = make(&mut reporting, contents());
        assert_eq!(report.blames, []);
        assert!(!report.roster_wanted && report.retractions.is_empty());
        assert_eq!((report.without_source, report.held), (None, None));
    }

    #[test]
    fn accusations_beyond_what_a_session_could_want_are_dropped_and_the_oldest_stay() {
        let (mut reporting, _) = in_session();
        for number in 0..=MAX_BLAMES {
            let peer: HostId = format!("mini-{number}").parse().unwrap();
            reporting.blame(&peer, None, ChunkIndex(0), BlameKind::Protocol);
        }
        let blames = make(&mut reporting, Vec::new()).blames;
        assert_eq!(blames.len(), MAX_BLAMES);
        assert_eq!(blames[0].host, "mini-0");
    }

    #[test]
    fn more_ends_of_leases_than_fit_make_another_report_due() {
        let (mut reporting, now) = in_session();
        let status = status(Vec::new());
        let facts = Facts {
            leases: (0..65).map(lease).collect(),
            ..facts(&status, &verified)
        };
        let (report, later) = reporting.make(now, facts);
        assert_eq!((report.leases.len(), later.len()), (64, 1));
        assert_eq!(reporting.next_due(), Some(now + REPORT_EVERY));
        assert_eq!(reporting.unsent(report).len(), 64);
    }
}
