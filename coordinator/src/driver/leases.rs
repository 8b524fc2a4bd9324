//! What holders of leases say: how each lease goes, how it ended, and what its registry does. The words are shown to
//! people who ask why an image doesn't come.

use std::{collections::BTreeMap, time::Duration};

use proto::{ChunkRange, Digest, HostId, Moment, message};
use rollout::stage::{
    Event, Plan, RevokeCause,
    event::{self as word, Trouble},
};
use tracing::{debug, info, warn};

use super::{
    images::Images,
    lines::{Line, Lines},
};
use crate::{
    metrics::{LeaseOutcome, Metrics},
    progress,
};

/// The same trouble with a registry is logged again only when nothing was heard of it for this long.
const SAYS_ANEW: Duration = Duration::from_mins(1);
/// How long a holder's remark about a registry is shown, when the registry does give something.
const REMARK_LASTS: Duration = Duration::from_secs(30);
/// The most bad contents whose description is kept.
const MAX_BAD_CONTENTS: usize = 256;

/// Everything that is remembered of holders' words.
#[derive(Debug)]
pub(super) struct Leases {
    /// The words of the last holder that its registry failed, by image, and when they were heard.
    said: BTreeMap<Digest, (Moment, String)>,
    /// The last remark of a holder whose registry gives something, by image, and when it was heard.
    remarks: BTreeMap<Digest, (Moment, String)>,
    /// The contents that a holder found bad, with the holder's words.
    bad: BTreeMap<Digest, String>,
    /// The log lines that were lately written about each host.
    lines: BTreeMap<HostId, Lines>,
    metrics: Metrics,
}

/// Whether the registry refuses the token that was handed down for a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The host didn't complain about the token.
    Good,
    /// The registry refuses the token; another one is needed.
    Refused,
}

impl Leases {
    pub(super) const fn new(metrics: Metrics) -> Self {
        Self {
            said: BTreeMap::new(),
            remarks: BTreeMap::new(),
            bad: BTreeMap::new(),
            lines: BTreeMap::new(),
            metrics,
        }
    }

    /// A host reports on a lease of a content. The plan is told. The host's words count only where the plan knows the
    /// lease as this host's; words about another host's lease are ignored.
    pub(super) fn heard(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        lease: &message::LeaseState,
        plan: &mut Plan,
        images: &Images,
    ) -> Token {
        match lease.end() {
            message::LeaseEnd::Unspecified => self.runs(now, (host, content), lease, plan, images),
            message::LeaseEnd::Done
            | message::LeaseEnd::OriginFailed
            | message::LeaseEnd::ContentBad
            | message::LeaseEnd::Released => self.ended(now, (host, content), lease, plan, images),
        }
    }

    fn runs(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        lease: &message::LeaseState,
        plan: &mut Plan,
        images: &Images,
    ) -> Token {
        let trouble = trouble(lease);
        let of = range(lease);
        let holds = plan.has_lease(host, &content, of);
        plan.handle(
            now,
            Event::LeaseProgress {
                host: host.clone(),
                content,
                range: of,
                chunks: lease.chunks,
                bytes: lease.bytes,
                paced: lease.paced,
                trouble,
            },
        );
        // The report may have ended the lease, so the lease is looked up before and after. A coordinator that has just
        // started takes over leases that run, so a lease may be known only after the report.
        if !holds && !plan.has_lease(host, &content, of) {
            return Token::Good;
        }
        if let Some(trouble) = trouble {
            self.note_trouble(now, (host, content), trouble, &lease.message, images);
            return Token::Good;
        }
        self.note_remark(now, content, &lease.message, images);
        if lease.trouble() != message::OriginTrouble::Unauthorised {
            return Token::Good;
        }
        if let Some(left_out) = self.line(now, host, Line::TokenRefused) {
            let error = progress::clean(&lease.message);
            warn!(%host, %content, error, left_out, "the registry refuses the token that was handed down");
        }
        Token::Refused
    }

    /// The plan granted a lease.
    pub(super) fn granted(&self) {
        self.metrics.granted.inc();
    }

    /// The plan took a lease back.
    pub(super) fn revoked(&self, cause: RevokeCause) {
        let outcome = match cause {
            RevokeCause::OriginFailed => LeaseOutcome::OriginFailed,
            RevokeCause::Ended => LeaseOutcome::Revoked,
            // counted already when the lease ended
            RevokeCause::NotHeld => return,
        };
        Metrics::count(&self.metrics.lease_ends, outcome.as_str());
    }

    fn ended(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        lease: &message::LeaseState,
        plan: &mut Plan,
        images: &Images,
    ) -> Token {
        let (end, outcome) = ended(lease);
        let of = range(lease);
        let mut token = Token::Good;
        if plan.has_lease(host, &content, of) {
            let outcome = outcome.as_str();
            Metrics::count(&self.metrics.lease_ends, outcome);
            let message = progress::clean(&lease.message);
            match end {
                word::LeaseEnd::Done | word::LeaseEnd::Released => {
                    debug!(%host, %content, reason = outcome, "lease ended");
                }
                word::LeaseEnd::OriginFailed
                | word::LeaseEnd::Faulty(_)
                | word::LeaseEnd::HostUnable => {
                    if let Some(left_out) = self.line(now, host, Line::LeaseFailed) {
                        warn!(%host, %content, reason = outcome, message, left_out, "lease failed on its holder");
                    }
                }
            }
            match end {
                word::LeaseEnd::OriginFailed => {
                    self.note_trouble(now, (host, content), Trouble::Failing, &message, images);
                }
                word::LeaseEnd::Faulty(fault) => {
                    if fault == word::Fault::Refused {
                        token = Token::Refused;
                    }
                    self.note_bad(content, message, plan);
                }
                word::LeaseEnd::HostUnable | word::LeaseEnd::Done | word::LeaseEnd::Released => {}
            }
        }
        plan.handle(
            now,
            Event::LeaseEnded {
                host: host.clone(),
                content,
                range: of,
                end,
            },
        );
        token
    }

    /// A host takes back the links that it made of a content, from chunk `from` on. The plan is told.
    pub(super) fn retracted(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        from: u32,
        plan: &mut Plan,
    ) {
        if !plan.takes_retraction(now, host, &content) {
            return;
        }
        if let Some(left_out) = self.line(now, host, Line::Retracted) {
            info!(%host, %content, from_chunk = from, left_out, "host takes back what it made of the registry's false bytes");
        }
        let event = Event::Retracted {
            host: host.clone(),
            content,
            from,
        };
        plan.handle(now, event);
    }

    /// `Some` when a line about what this host says may be written now, with the number of lines that were left out
    /// before it.
    fn line(&mut self, now: Moment, host: &HostId, line: Line) -> Option<u64> {
        let lines = self.lines.entry(host.clone()).or_default();
        lines.due(now, line)
    }

    /// Remembers what a holder found wrong with a content.
    fn note_bad(&mut self, content: Digest, message: String, plan: &Plan) {
        if self.bad.len() >= MAX_BAD_CONTENTS {
            self.bad.retain(|content, _| plan.knows(content));
        }
        if self.bad.len() < MAX_BAD_CONTENTS {
            self.bad.insert(content, message);
        }
    }

    /// Remembers a holder's remark about a registry that gives something all the same.
    fn note_remark(&mut self, now: Moment, content: Digest, message: &str, images: &Images) {
        if message.is_empty() {
            return;
        }
        for image in images.with(&content) {
            self.remarks.insert(image, (now, progress::clean(message)));
        }
    }

    /// Remembers what a holder says about its registry. The words are shown while the registry is left alone. The log
    /// has them once for each outage.
    fn note_trouble(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        trouble: Trouble,
        message: &str,
        images: &Images,
    ) {
        let error = progress::clean(message);
        let mut news = false;
        for image in images.with(&content) {
            let same = self.said.get(&image).is_some_and(|(at, said)| {
                // the words about a silence differ each time
                let alike = *said == error || trouble == Trouble::Silent;
                alike && now.since(*at) < SAYS_ANEW
            });
            news |= !same;
            self.said.insert(image, (now, error.clone()));
        }
        if !news {
            return;
        }
        let Some(left_out) = self.line(now, host, Line::Registry) else {
            return;
        };
        match trouble {
            Trouble::Failing => {
                warn!(%host, %content, error, left_out, "the registry fails the holder of a lease");
            }
            Trouble::Silent => {
                warn!(%host, %content, error, left_out, "the registry is silent to the holder of a lease");
            }
            Trouble::Throttled(wish) => {
                let wish_s = wish.as_secs();
                warn!(%host, %content, error, wish_s, left_out, "the registry asked to be left alone");
            }
        }
    }

    /// The image isn't wanted any more.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.said.remove(image);
        self.remarks.remove(image);
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.lines.remove(host);
    }

    /// The words of the last holder that its registry failed, about an image.
    pub(super) fn said(&self, image: &Digest) -> Option<&str> {
        self.said.get(image).map(|(_, said)| said.as_str())
    }

    /// A holder's recent remark about a registry that gives something of an image.
    pub(super) fn remark(&self, now: Moment, image: &Digest) -> Option<&str> {
        let remark = self.remarks.get(image);
        let remark = remark.filter(|(at, _)| now.since(*at) < REMARK_LASTS);
        remark.map(|(_, said)| said.as_str())
    }

    /// What a holder found wrong with a content.
    pub(super) fn bad(&self, content: &Digest) -> Option<&str> {
        self.bad.get(content).map(String::as_str)
    }

    /// How many contents were found bad.
    #[cfg(test)]
    pub(super) fn bad_contents(&self) -> usize {
        self.bad.len()
    }

    /// Whether any words of holders about their registries are remembered.
    #[cfg(test)]
    pub(super) fn says_anything(&self) -> bool {
        !self.said.is_empty()
    }
}

/// The range that a lease is for. A range that is none is that of no lease.
pub(super) fn range(lease: &message::LeaseState) -> Option<ChunkRange> {
    let range = lease.range.as_ref()?;
    range
        .parse()
        .ok()
        .or(ChunkRange::new(u32::MAX - 1, u32::MAX))
}

/// What keeps the registry from giving the holder of a lease more.
fn trouble(lease: &message::LeaseState) -> Option<Trouble> {
    let wish = Duration::from_millis(lease.retry_after_ms);
    match lease.trouble() {
        message::OriginTrouble::Unspecified | message::OriginTrouble::Unauthorised => None,
        message::OriginTrouble::Silent => Some(Trouble::Silent),
        message::OriginTrouble::Throttled if !wish.is_zero() => Some(Trouble::Throttled(wish)),
        message::OriginTrouble::Failing | message::OriginTrouble::Throttled => {
            Some(Trouble::Failing)
        }
    }
}

/// How a lease ended, for the plan and for the metrics.
fn ended(lease: &message::LeaseState) -> (word::LeaseEnd, LeaseOutcome) {
    use message::{LeaseEnd, OriginFault};
    use word::{Fault, LeaseEnd as End};
    match lease.end() {
        LeaseEnd::Unspecified | LeaseEnd::Released => (End::Released, LeaseOutcome::Released),
        LeaseEnd::Done => (End::Done, LeaseOutcome::Done),
        LeaseEnd::ContentBad => (End::Faulty(Fault::Bad), LeaseOutcome::ContentBad),
        LeaseEnd::OriginFailed => match lease.fault() {
            OriginFault::Unspecified => (End::OriginFailed, LeaseOutcome::OriginFailed),
            OriginFault::Missing => (End::Faulty(Fault::Missing), LeaseOutcome::ContentMissing),
            OriginFault::Refused => (End::Faulty(Fault::Refused), LeaseOutcome::ContentRefused),
            OriginFault::Unusable => (End::Faulty(Fault::Unusable), LeaseOutcome::ContentUnusable),
            OriginFault::CutShort => (End::Faulty(Fault::CutShort), LeaseOutcome::ContentUnusable),
            OriginFault::Host => (End::HostUnable, LeaseOutcome::HostUnable),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use message::{LeaseEnd, LeaseState, OriginFault, OriginTrouble};
    use rollout::stage::{Action, Config};
    use tokio::sync::watch;

    use super::{
        super::{hosts::Hosts, images::At, presence::Presence},
        *,
    };
    use crate::wants::tests::want;

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    /// A plan in which a host has the lease of the one image's first content.
    struct World {
        leases: Leases,
        plan: Plan,
        images: Images,
        image: Digest,
        holder: HostId,
        content: Digest,
    }

    impl World {
        fn new() -> Self {
            let mut plan = Plan::new(Config::default(), 1);
            let mut images = Images::new(1, true);
            let (mut hosts, image) = (Hosts::default(), want("image", 1, 1 << 20));
            let presence = Presence::new(watch::channel(Arc::default()).0);
            let holder: HostId = "a".parse().unwrap();
            hosts.know(&holder, "");
            let at_start = At {
                now: at(0),
                unix_ms: 1,
                hosts: &hosts,
                presence: &presence,
            };
            let digest = image.digest();
            let events = images.enter(at_start, image).events;
            let known = Event::HostKnown {
                host: holder.clone(),
                zone: String::new(),
            };
            let stages = Event::Reported {
                host: holder.clone(),
                image: digest,
                standing: word::Standing::Staging,
                held_bytes: 0,
            };
            let connected = Event::HostConnected(holder.clone());
            for event in [known, connected].into_iter().chain(events) {
                plan.handle(at(0), event);
            }
            plan.handle(at(0), stages);
            let mut content = None;
            for seconds in 0..30 {
                plan.handle(at(seconds), Event::Tick);
                while let Some(action) = plan.poll() {
                    if let Action::Grant { content: of, .. } = action {
                        content.get_or_insert(of);
                    }
                }
            }
            Self {
                leases: Leases::new(Metrics::new().0),
                plan,
                images,
                image: digest,
                holder,
                content: content.expect("a content is leased"),
            }
        }

        fn hears(&mut self, seconds: u64, by: &str, lease: &LeaseState) -> Token {
            let host: HostId = by.parse().unwrap();
            let of = (&host, self.content);
            let (plan, images) = (&mut self.plan, &self.images);
            self.leases.heard(at(seconds), of, lease, plan, images)
        }
    }

    #[test]
    fn a_lease_that_is_taken_back_counts_by_its_cause_and_one_that_ended_before_doesnt() {
        let metrics = Metrics::new().0;
        let leases = Leases::new(metrics.clone());
        let counted = || {
            [LeaseOutcome::OriginFailed, LeaseOutcome::Revoked].map(|outcome| {
                let outcome = outcome.as_str();
                let label = crate::metrics::OutcomeLabel { outcome };
                metrics.lease_ends.get_or_create(&label).get()
            })
        };
        leases.revoked(RevokeCause::NotHeld);
        assert_eq!(counted(), [0, 0]);
        leases.revoked(RevokeCause::OriginFailed);
        assert_eq!(counted(), [1, 0]);
        leases.revoked(RevokeCause::Ended);
        assert_eq!(counted(), [1, 1]);
    }

    fn troubled(trouble: OriginTrouble, message: &str) -> LeaseState {
        LeaseState {
            trouble: trouble.into(),
            message: message.into(),
            ..LeaseState::default()
        }
    }

    #[test]
    fn the_words_of_the_holder_count_and_nobody_elses() {
        let mut world = World::new();
        let lease = troubled(OriginTrouble::Failing, "connection refused");
        world.hears(31, "stranger", &lease);
        assert_eq!(world.leases.said(&world.image), None);
        world.hears(31, "a", &lease);
        assert_eq!(world.leases.said(&world.image), Some("connection refused"));
        let image = world.image;
        world.leases.forget(&image);
        assert_eq!(world.leases.said(&image), None);
    }

    #[test]
    fn a_remark_is_shown_for_half_a_minute_and_an_empty_one_never() {
        let mut world = World::new();
        world.hears(31, "a", &troubled(OriginTrouble::Unspecified, ""));
        assert_eq!(world.leases.remark(at(31), &world.image), None);
        let lease = troubled(OriginTrouble::Unspecified, "2 of 4 connections");
        world.hears(31, "a", &lease);
        let shown = |seconds| world.leases.remark(at(seconds), &world.image);
        assert_eq!(shown(60), Some("2 of 4 connections"));
        assert_eq!(shown(61), None);
        assert_eq!(world.leases.said(&world.image), None, "nothing failed");
    }

    #[test]
    fn a_token_is_refused_while_a_lease_runs_or_as_its_end() {
        let mut world = World::new();
        let refused = troubled(OriginTrouble::Unauthorised, "401");
        assert_eq!(world.hears(31, "stranger", &refused), Token::Good);
        assert_eq!(world.hears(31, "a", &refused), Token::Refused);
        let gives = troubled(OriginTrouble::Unspecified, "");
        assert_eq!(world.hears(32, "a", &gives), Token::Good);
        let ended = LeaseState {
            end: LeaseEnd::OriginFailed.into(),
            fault: OriginFault::Refused.into(),
            message: "403".into(),
            ..LeaseState::default()
        };
        assert_eq!(world.hears(33, "a", &ended), Token::Refused);
        assert_eq!(world.leases.bad(&world.content), Some("403"));
        // the host doesn't hold the lease any more
        assert_eq!(world.hears(34, "a", &ended), Token::Good);
        assert_eq!(world.holder.as_str(), "a");
    }

    #[test]
    fn each_end_has_a_name_and_each_trouble_its_kind() {
        let end = |end: LeaseEnd, fault: OriginFault| {
            ended(&LeaseState {
                end: end.into(),
                fault: fault.into(),
                ..LeaseState::default()
            })
        };
        let none = OriginFault::Unspecified;
        assert_eq!(
            end(LeaseEnd::Done, none),
            (word::LeaseEnd::Done, LeaseOutcome::Done)
        );
        let failed = (word::LeaseEnd::OriginFailed, LeaseOutcome::OriginFailed);
        assert_eq!(end(LeaseEnd::OriginFailed, none), failed);
        let unable = (word::LeaseEnd::HostUnable, LeaseOutcome::HostUnable);
        assert_eq!(end(LeaseEnd::OriginFailed, OriginFault::Host), unable);
        let bad = (
            word::LeaseEnd::Faulty(word::Fault::Bad),
            LeaseOutcome::ContentBad,
        );
        assert_eq!(end(LeaseEnd::ContentBad, none), bad);
        let throttled = |retry_after_ms| {
            trouble(&LeaseState {
                trouble: OriginTrouble::Throttled.into(),
                retry_after_ms,
                ..LeaseState::default()
            })
        };
        // a registry that throttles and names no time counts as failing
        assert_eq!(throttled(0), Some(Trouble::Failing));
        let wish = Trouble::Throttled(Duration::from_secs(3));
        assert_eq!(throttled(3_000), Some(wish));
        let unauthorised = troubled(OriginTrouble::Unauthorised, "");
        assert_eq!(trouble(&unauthorised), None);
    }
}
