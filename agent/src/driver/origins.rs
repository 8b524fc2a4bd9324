//! Fetching from registries: the running fetches, their leases, and the reports of both. It starts no job itself.

use std::time::{Duration, Instant};

use proto::{
    ChunkIndex, ChunkRange, Digest, Reason,
    message::{LeaseEnd, LeaseState},
    recipe::Doubt,
};
use swarm::{Event, event::ContentId};
use tracing::{debug, error, warn};

use super::{
    contents::{self, Content, Contents, Proving},
    fetches::{self, Fetches, Reins, Told},
    image_news::ImageNews,
    leases::{End, Granted, Leases, Progress},
    trouble::Trouble,
};
use crate::{
    fetch::{FetchEnd, News},
    registries::Access,
    shelf::{Shelf, Unwritable},
};

/// Work for other parts, after this part heard something.
#[derive(Debug)]
pub(super) enum Effect<S = Shelf> {
    /// Tell the swarm.
    Tell(Event),
    /// Carry out this effect on contents.
    Contents(contents::Effect<S>),
    /// Tell these images.
    Images {
        images: Vec<Digest>,
        news: ImageNews,
    },
    /// Call [`Origins::begin`], with the images' or the mirror clients' way to reach the registry.
    Fetch(FetchWanted),
    /// A fetch of this content ended.
    FetchEnded { content: Digest, end: FetchEnd },
    /// This many bytes came from a registry.
    Came(u64),
    /// The registry's bytes don't fit what a recipe says. It may be the recipe of this image.
    Doubt(Doubt),
    /// These images' files took no chunk, although others' did.
    Unwritable(Vec<Unwritable>),
    /// The ticket of this content's lease is of no use any more.
    ForgetTicket(Digest),
    /// Something changed that belongs into the next report.
    ReportSoon,
    /// Something changed that the coordinator waits for.
    ReportNow,
}

/// A fetch that the swarm wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FetchWanted {
    pub(super) id: ContentId,
    pub(super) content: Digest,
    /// The images that have the content. The best one to ask for comes first. None for a blob of the mirror.
    pub(super) images: Vec<Digest>,
    /// The chunks to fetch; `None`: all of them.
    pub(super) range: Option<ChunkRange>,
    /// The chunk to pause before.
    pub(super) until: ChunkIndex,
}

/// Fetches and leases.
#[derive(Debug, Default)]
pub(super) struct Origins {
    fetches: Fetches,
    leases: Leases,
}

impl Origins {
    // ---- fetches --------------------------------------------------------------------------------------------------

    /// The swarm wants a content, or a range of it, fetched as far as this chunk.
    pub(super) fn want<S: Proving>(
        &self,
        contents: &Contents<S>,
        id: ContentId,
        (range, until): (Option<ChunkRange>, ChunkIndex),
    ) -> Option<Effect<S>> {
        if self.fetches.go_on(id, until) {
            return None;
        }
        let content = contents.find(id)?;
        // the image of the lease comes first: another image may name a repository that refuses this content
        let mut images = content.images();
        let leased = self.leases.image(id);
        images.sort_by_key(|image| leased != Some(*image));
        Some(Effect::Fetch(FetchWanted {
            id,
            content: content.digest(),
            images,
            range,
            until,
        }))
    }

    /// Begins a fetch by the order of this image; `None` for a client of the mirror. The caller starts the job.
    pub(super) fn begin(
        &mut self,
        wanted: &FetchWanted,
        by: Option<Digest>,
        access: Access,
    ) -> Reins {
        let until = (wanted.range, wanted.until);
        self.fetches.begin(wanted.id, by, access, until)
    }

    /// The coordinator handed down a newer token for an image. Running fetches use the new token from now on.
    pub(super) fn renew(&self, image: &Digest, access: &Access) {
        self.fetches.renew(image, access);
    }

    /// The swarm wants a content fetched no further. Links in doubt that the fetch made aren't kept.
    pub(super) fn stop<S: Proving>(
        &mut self,
        contents: &mut Contents<S>,
        id: ContentId,
    ) -> Option<Effect<S>> {
        let ran = self.fetches.stop(id);
        let retract = ran.then(|| contents.retract_doubted(id)).flatten();
        retract.map(Effect::Contents)
    }

    pub(super) fn stop_all(&mut self) {
        self.fetches.stop_all();
    }

    /// A running fetch reports its progress.
    pub(super) fn news<S: Proving>(
        &mut self,
        contents: &mut Contents<S>,
        now: Instant,
        id: ContentId,
        news: News,
    ) -> Vec<Effect<S>> {
        match news {
            News::Chunk {
                chunk,
                origin_bytes,
                conflict,
            } => {
                self.leases.chunk_came(id);
                let effects = contents.fetched(id, chunk, origin_bytes, conflict);
                let mut out = vec![Effect::Came(origin_bytes)];
                out.extend(effects.into_iter().map(Effect::Contents));
                out
            }
            // at once: the coordinator fetches another token
            News::Refused { error } => match self.leases.refused(id, error) {
                true => vec![Effect::ReportNow],
                false => Vec::new(),
            },
            News::Broke { after_bytes, error } => {
                // no trouble, but the coordinator is told if it happens often
                debug!(
                    id = id.0,
                    after_bytes, error, "a connection to the registry broke; going on"
                );
                self.leases.broke(id, after_bytes);
                Vec::new()
            }
            News::Trouble {
                error,
                retry_after,
                wait,
            } => self.trouble(contents, now, (id, error), retry_after, wait),
            News::Doubted => {
                let mut effects = contents.fetch_doubted(id);
                // the fetch's end may be heard before this
                if !self.fetches.is_running(id) {
                    effects.extend(contents.retract_doubted(id));
                }
                effects.into_iter().map(Effect::Contents).collect()
            }
            News::Retracted { from, chunks } => {
                let effects = contents.retracted(now, id, from, Ok(chunks));
                effects.into_iter().map(Effect::Contents).collect()
            }
            News::AgainstRecipe { recipe, chunk } => {
                let Some(content) = contents.find(id) else {
                    return Vec::new();
                };
                let doubt = |image| Doubt {
                    image,
                    recipe,
                    content: content.digest(),
                    chunk,
                };
                let images = content.images().into_iter();
                images.map(doubt).map(Effect::Doubt).collect()
            }
            News::Liars { chunk, peers } => {
                let effects = Contents::lied(id, chunk, &peers);
                effects.into_iter().map(Effect::Contents).collect()
            }
            News::Unwritable(images) => vec![Effect::Unwritable(images)],
        }
    }

    fn trouble<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        now: Instant,
        (id, error): (ContentId, String),
        retry_after: Option<Duration>,
        wait: Duration,
    ) -> Vec<Effect<S>> {
        // a stopped fetch has no say any more
        let running = self.fetches.is_running(id);
        let Some(content) = contents.find(id).filter(|_| running) else {
            return Vec::new();
        };
        let wait_ms = proto::millis(wait);
        warn!(content = %content.digest(), error, wait_ms, "fetching from the registry has trouble; trying again");
        let message = format!("{error} (next attempt in {wait_ms} ms)");
        self.leases
            .failed(id, error, retry_after.map(|pause| now + pause));
        let trouble = Effect::Images {
            images: content.images(),
            news: ImageNews::OriginTrouble(Trouble {
                reason: Reason::OriginTrouble,
                message,
            }),
        };
        // at once: a coordinator that doesn't know sends other hosts to a registry that wants to be left alone
        vec![trouble, Effect::ReportNow]
    }

    /// A fetch ended.
    pub(super) fn ended<S: Proving>(
        &mut self,
        contents: &mut Contents<S>,
        id: ContentId,
        number: u64,
        end: FetchEnd,
    ) -> Vec<Effect<S>> {
        let asked = self.fetches.image(id);
        if !self.fetches.ended(id, number) {
            // the fetch was stopped, and its end was told then
            return Vec::new();
        }
        match &end {
            FetchEnd::Done => contents.fetch_done(id),
            FetchEnd::Bad(_) => contents.fetch_bad(id),
            FetchEnd::Failed(_) | FetchEnd::Disk(_) | FetchEnd::Unwanted => {}
        }
        let retract = contents.retract_doubted(id).map(Effect::Contents);
        let mut out: Vec<_> = retract.into_iter().collect();
        let Told {
            swarm,
            lease,
            reason,
        } = match fetches::told(&end) {
            Ok(told) => told,
            // this host's own trouble: the lease passes on without a word about the registry
            Err(error) => {
                out.extend(contents.not_stored(id, error).map(Effect::Contents));
                return out;
            }
        };
        let content = contents.find(id);
        if let (Some(content), Some(reason)) = (content, reason) {
            error!(content = %content.digest(), %reason, error = lease.message, "fetching from the registry failed");
            // a refusal by one image's repository says nothing about the other images
            let images = match asked {
                Some(image) if matches!(end, FetchEnd::Failed(_)) => vec![image],
                _ => content.images(),
            };
            out.push(Effect::Images {
                images,
                news: ImageNews::OriginTrouble(Trouble {
                    reason,
                    message: lease.message.clone(),
                }),
            });
        }
        out.push(Effect::Tell(Event::OriginEnded { id, end: swarm }));
        let content = content.map(Content::digest);
        if let Some(content) = content {
            out.extend(self.end_lease(id, content, lease));
            out.push(Effect::FetchEnded { content, end });
        }
        out
    }

    // ---- leases ---------------------------------------------------------------------------------------------------

    /// Whether the coordinator leased a content to this host.
    pub(super) fn is_leased(&self, id: ContentId) -> bool {
        self.leases.holds(id)
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.count()
    }

    /// The coordinator leased this host a content, or a range of it.
    pub(super) fn leased<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        content: Digest,
        granted: Granted,
    ) -> Vec<Effect<S>> {
        let Some(id) = contents.by_digest(&content).map(Content::id) else {
            // the stage isn't ready yet; the lease runs meanwhile
            return match self.leases.grant_early(content, granted) {
                true => Vec::new(),
                false => {
                    warn!(%content, "a lease is given back: too many wait for their stages");
                    vec![Effect::ForgetTicket(content), Effect::ReportSoon]
                }
            };
        };
        self.leases.grant(id, granted);
        vec![Effect::Tell(match granted.range {
            Some(range) => Event::RangeLeased(id, range),
            None => Event::Leased(id),
        })]
    }

    /// A stage is ready: leases of its contents may have come before.
    pub(super) fn take_early<S: Proving>(&mut self, contents: &Contents<S>) -> Vec<Effect<S>> {
        let early = self.leases.take_early().into_iter();
        early
            .flat_map(|(content, granted)| self.leased(contents, content, granted))
            .collect()
    }

    /// The coordinator took a lease back.
    pub(super) fn lease_lost<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        content: &Digest,
    ) -> Vec<Effect<S>> {
        self.leases.lose_early(content);
        let mut out = vec![Effect::ForgetTicket(*content)];
        if let Some(content) = contents.by_digest(content) {
            self.leases.lose(content.id());
            out.push(Effect::Images {
                images: content.images(),
                news: ImageNews::OriginIsFine,
            });
            out.push(Effect::ReportSoon);
            out.push(Effect::Tell(Event::LeaseLost(content.id())));
        }
        out
    }

    /// Ends a lease. The coordinator is told at once.
    fn end_lease<S>(&mut self, id: ContentId, content: Digest, how: End) -> Vec<Effect<S>> {
        match self.leases.end(id, content, how) {
            true => vec![Effect::ForgetTicket(content), Effect::ReportNow],
            false => Vec::new(),
        }
    }

    /// The swarm doesn't need a lease any more.
    pub(super) fn release<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        id: ContentId,
    ) -> Vec<Effect<S>> {
        let Some(content) = contents.find(id) else {
            return Vec::new();
        };
        let end = match content.held().is_full() {
            true => LeaseEnd::Done,
            false => LeaseEnd::Released,
        };
        self.end_lease(id, content.digest(), End::plain(end))
    }

    /// What this host was to fetch of a range is here.
    pub(super) fn range_done<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        id: ContentId,
    ) -> Vec<Effect<S>> {
        let content = contents.find(id).map(Content::digest);
        content.map_or_else(Vec::new, |content| {
            self.end_lease(id, content, End::plain(LeaseEnd::Done))
        })
    }

    /// A content isn't wanted here any more: its fetch stops, and its lease ends with the next report.
    pub(super) fn give_up<S>(&mut self, id: ContentId, content: Digest) -> Vec<Effect<S>> {
        self.fetches.stop(id);
        let end = End::plain(LeaseEnd::Released);
        match self.leases.end(id, content, end) {
            true => vec![Effect::ForgetTicket(content), Effect::ReportSoon],
            false => Vec::new(),
        }
    }

    /// Gives a lease back that can't be used: no host would take the links that are made with it.
    pub(super) fn give_back<S>(
        &mut self,
        (content, range): (Digest, Option<ChunkRange>),
        error: &str,
    ) -> Effect<S> {
        warn!(%content, error, "a lease is given back");
        self.leases.give_back((content, range), error);
        Effect::ReportSoon
    }

    /// The states of leases for a report.
    pub(super) fn lease_states<S: Proving>(
        &mut self,
        contents: &Contents<S>,
        now: Instant,
        status: &swarm::Status,
    ) -> Vec<LeaseState> {
        let fetches = &self.fetches;
        let progress = |id| {
            let content = status.content(id);
            Some(Progress {
                content: contents.find(id)?.digest(),
                bytes: fetches.moved_bytes(id),
                paced: content.is_some_and(|content| content.paced),
                silent: content.and_then(|content| content.silent),
            })
        };
        self.leases.report(now, progress)
    }

    /// A report with these states wasn't sent.
    pub(super) fn unsent(&mut self, states: Vec<LeaseState>) {
        self.leases.unsent(states);
    }
}

#[cfg(test)]
mod tests {
    use proto::{ChunkSet, Geometry, State, image::ContentSpec};

    use super::*;
    use crate::fetch::Failure;

    #[derive(Clone, Debug)]
    struct NoShelf;

    impl Proving for NoShelf {
        fn is_closed(&self, _: Digest) -> bool {
            false
        }

        fn state_before(&self, _: Digest, _: ChunkIndex) -> Option<State> {
            None
        }
    }

    fn image(at: u8) -> Digest {
        Digest::of(&[b'i', at])
    }

    fn content() -> Digest {
        Digest::of(b"content")
    }

    /// Two images have the content, none of whose chunks is held.
    fn with_content() -> (Origins, Contents<NoShelf>, ContentId) {
        let mut contents = Contents::new(proto::HostKey(1), std::sync::Arc::default());
        let spec = ContentSpec {
            digest: content(),
            geometry: Geometry::new(2 * proto::CHUNK_BYTES).unwrap(),
            kind: proto::image::ContentKind::Blob,
            places: Vec::new(),
        };
        let none = || ChunkSet::empty(2);
        let (id, _) = contents.add(&spec, (image(1), NoShelf), none(), false);
        contents.add(&spec, (image(2), NoShelf), none(), false);
        (Origins::default(), contents, id)
    }

    fn begin(origins: &mut Origins, id: ContentId, by: Option<Digest>) -> Reins {
        let wanted = FetchWanted {
            id,
            content: content(),
            images: Vec::new(),
            range: None,
            until: ChunkIndex(1),
        };
        origins.begin(&wanted, by, Access::default())
    }

    fn trouble(wait_s: u64) -> News {
        News::Trouble {
            error: "503".into(),
            retry_after: None,
            wait: Duration::from_secs(wait_s),
        }
    }

    fn failed() -> FetchEnd {
        FetchEnd::Failed(Failure::Settings("no password".into()))
    }

    /// A lease by the order of this image.
    fn by(number: u8) -> Granted {
        Granted {
            image: Some(image(number)),
            range: None,
        }
    }

    /// The images that are told of trouble.
    fn troubled(effects: &[Effect<NoShelf>]) -> Vec<Digest> {
        let images = effects.iter().find_map(|effect| match effect {
            Effect::Images {
                images,
                news: ImageNews::OriginTrouble(..),
            } => Some(images.clone()),
            _ => None,
        });
        images.unwrap_or_default()
    }

    #[test]
    fn a_fetch_asks_first_by_the_image_that_the_lease_was_granted_for() {
        let (mut origins, contents, id) = with_content();
        let asked = |origins: &Origins| match origins.want(&contents, id, (None, ChunkIndex(1))) {
            Some(Effect::Fetch(wanted)) => wanted.images,
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(&origins), [image(1), image(2)]);
        origins.leased(&contents, content(), by(2));
        assert_eq!(asked(&origins), [image(2), image(1)]);
        // an image that isn't here any more
        origins.leased(&contents, content(), by(3));
        assert_eq!(asked(&origins), [image(1), image(2)]);
    }

    #[test]
    fn a_fetch_that_runs_is_not_begun_again() {
        let (mut origins, contents, id) = with_content();
        let reins = begin(&mut origins, id, None);
        assert!(origins.want(&contents, id, (None, ChunkIndex(2))).is_none());
        assert_eq!(*reins.until.borrow(), 2);
        let unknown = ContentId(99);
        assert!(
            origins
                .want(&contents, unknown, (None, ChunkIndex(2)))
                .is_none()
        );
    }

    #[test]
    fn trouble_is_told_to_all_images_and_at_once_to_the_coordinator() {
        let (mut origins, mut contents, id) = with_content();
        begin(&mut origins, id, Some(image(1)));
        let effects = origins.news(&mut contents, Instant::now(), id, trouble(3));
        assert_eq!(troubled(&effects), [image(1), image(2)]);
        assert!(matches!(effects[1], Effect::ReportNow));
    }

    #[test]
    fn trouble_of_a_fetch_that_was_stopped_is_of_yesterday() {
        let (mut origins, mut contents, id) = with_content();
        begin(&mut origins, id, None);
        assert!(origins.stop(&mut contents, id).is_none());
        let effects = origins.news(&mut contents, Instant::now(), id, trouble(3));
        assert!(effects.is_empty(), "{effects:?}");
    }

    #[test]
    fn what_one_repository_refuses_is_the_trouble_of_its_image_alone() {
        let (mut origins, mut contents, id) = with_content();
        let number = begin(&mut origins, id, Some(image(2))).number;
        let effects = origins.ended(&mut contents, id, number, failed());
        assert_eq!(troubled(&effects), [image(2)]);
        // false bytes are false for every image
        let number = begin(&mut origins, id, Some(image(2))).number;
        let bad = FetchEnd::Bad("a broken push".into());
        let effects = origins.ended(&mut contents, id, number, bad);
        assert_eq!(troubled(&effects), [image(1), image(2)]);
        assert!(matches!(
            effects[0],
            Effect::Contents(contents::Effect::Retract { .. })
        ));
    }

    #[test]
    fn a_fetch_that_was_stopped_ends_without_a_word() {
        let (mut origins, mut contents, id) = with_content();
        origins.leased(&contents, content(), Granted::default());
        let number = begin(&mut origins, id, None).number;
        origins.stop(&mut contents, id);
        let effects = origins.ended(&mut contents, id, number, failed());
        assert!(effects.is_empty(), "{effects:?}");
        assert!(origins.is_leased(id));
    }

    #[test]
    fn a_fetch_ends_with_its_lease() {
        let (mut origins, mut contents, id) = with_content();
        origins.leased(&contents, content(), Granted::default());
        let number = begin(&mut origins, id, None).number;
        let effects = origins.ended(&mut contents, id, number, FetchEnd::Done);
        assert!(!origins.is_leased(id));
        assert!(matches!(
            effects[..],
            [
                Effect::Tell(Event::OriginEnded { .. }),
                Effect::ForgetTicket(_),
                Effect::ReportNow,
                Effect::FetchEnded { .. }
            ]
        ));
    }

    #[test]
    fn a_volume_that_fails_says_nothing_of_the_registry() {
        let (mut origins, mut contents, id) = with_content();
        origins.leased(&contents, content(), Granted::default());
        let number = begin(&mut origins, id, None).number;
        let disk = FetchEnd::Disk("no space".into());
        let effects = origins.ended(&mut contents, id, number, disk);
        assert!(matches!(
            effects[..],
            [Effect::Contents(contents::Effect::NotStored {
                mirrored: false,
                ..
            })]
        ));
        // the image is withdrawn because of the failure, and that ends the lease
        assert!(origins.is_leased(id));
        origins.give_up::<NoShelf>(id, content());
        assert!(!origins.is_leased(id));
    }

    #[test]
    fn a_doubt_that_is_heard_after_the_end_takes_back_what_was_made() {
        let (mut origins, mut contents, id) = with_content();
        let number = begin(&mut origins, id, None).number;
        let doubted = |origins: &mut Origins, contents: &mut _| {
            let effects = origins.news(contents, Instant::now(), id, News::Doubted);
            effects.len()
        };
        assert_eq!(doubted(&mut origins, &mut contents), 1);
        let effects = origins.ended(&mut contents, id, number, failed());
        let retract = Effect::Contents(contents::Effect::Retract {
            id,
            content: content(),
            shelves: vec![NoShelf; 2],
        });
        assert_eq!(format!("{:?}", effects[0]), format!("{retract:?}"));
        // counted, and taken back
        assert_eq!(doubted(&mut origins, &mut contents), 2);
    }

    #[test]
    fn a_lease_that_comes_before_its_stage_counts_once_the_stage_is_ready() {
        let (mut origins, contents, id) = with_content();
        let unknown = Contents::<NoShelf>::new(proto::HostKey(1), std::sync::Arc::default());
        assert!(
            origins
                .leased(&unknown, content(), Granted::default())
                .is_empty()
        );
        assert!(!origins.is_leased(id));
        let effects = origins.take_early(&contents);
        assert!(matches!(effects[..], [Effect::Tell(Event::Leased(leased))] if leased == id));
        assert!(origins.is_leased(id));
    }

    #[test]
    fn a_lease_that_finds_no_room_to_wait_for_its_stage_is_given_back_with_its_ticket() {
        let (mut origins, ..) = with_content();
        let unknown = Contents::<NoShelf>::new(proto::HostKey(1), std::sync::Arc::default());
        let waits = |at: &u32| {
            let content = Digest::of(&at.to_le_bytes());
            origins
                .leased(&unknown, content, Granted::default())
                .is_empty()
        };
        let waiting = (0..).take_while(waits).count();
        let last = Digest::of(&u32::try_from(waiting).unwrap().to_le_bytes());
        // once more: the first time has only found out how many wait
        let effects = origins.leased(&unknown, last, Granted::default());
        assert!(
            matches!(effects[..], [Effect::ForgetTicket(of), Effect::ReportSoon] if of == last)
        );
    }

    #[test]
    fn a_lease_that_is_taken_back_before_its_stage_is_ready_never_counts() {
        let (mut origins, contents, id) = with_content();
        let unknown = Contents::<NoShelf>::new(proto::HostKey(1), std::sync::Arc::default());
        origins.leased(&unknown, content(), Granted::default());
        let effects = origins.lease_lost(&unknown, &content());
        assert!(matches!(effects[..], [Effect::ForgetTicket(_)]));
        assert!(origins.take_early(&contents).is_empty());
        assert!(!origins.is_leased(id));
    }

    #[test]
    fn a_lease_that_is_lost_while_fetching_clears_what_was_said_of_the_registry() {
        let (mut origins, mut contents, id) = with_content();
        origins.leased(&contents, content(), Granted::default());
        begin(&mut origins, id, None);
        origins.news(&mut contents, Instant::now(), id, trouble(3));
        let effects = origins.lease_lost(&contents, &content());
        assert!(matches!(
            effects[..],
            [
                Effect::ForgetTicket(_),
                Effect::Images {
                    news: ImageNews::OriginIsFine,
                    ..
                },
                Effect::ReportSoon,
                Effect::Tell(Event::LeaseLost(_))
            ]
        ));
        assert!(!origins.is_leased(id));
    }

    #[test]
    fn a_lease_of_a_range_reaches_the_swarm_and_is_done_when_the_swarm_says_so() {
        let (mut origins, contents, id) = with_content();
        let range = ChunkRange::new(0, 1).unwrap();
        let granted = Granted {
            image: None,
            range: Some(range),
        };
        let effects = origins.leased(&contents, content(), granted);
        let [Effect::Tell(Event::RangeLeased(of, leased))] = effects[..] else {
            panic!("{effects:?}");
        };
        assert_eq!((of, leased), (id, range));
        origins.range_done(&contents, id);
        assert!(!origins.is_leased(id));
        let swarm = swarm::Swarm::new(proto::HostKey(1), swarm::Config::default(), 1);
        let status = swarm.status(proto::Moment::START);
        let states = origins.lease_states(&contents, Instant::now(), &status);
        assert_eq!(states.len(), 1);
        assert_eq!(states[0].end(), LeaseEnd::Done);
        assert_eq!(states[0].range, Some(range.into()));
        assert!(origins.range_done(&contents, id).is_empty());
    }

    #[test]
    fn a_lease_is_done_when_every_chunk_is_here_and_released_before() {
        let (mut origins, mut contents, id) = with_content();
        let mut released = |contents: &Contents<NoShelf>| {
            origins.leased(contents, content(), Granted::default());
            let effects = origins.release(contents, id);
            assert!(matches!(
                effects[..],
                [Effect::ForgetTicket(_), Effect::ReportNow]
            ));
            let swarm = swarm::Swarm::new(proto::HostKey(1), swarm::Config::default(), 1);
            let status = swarm.status(proto::Moment::START);
            let states = origins.lease_states(contents, Instant::now(), &status);
            assert_eq!(states.len(), 1);
            states[0].end()
        };
        assert_eq!(released(&contents), LeaseEnd::Released);
        for chunk in [0, 1] {
            contents.fetched(id, ChunkIndex(chunk), 5, false);
        }
        assert_eq!(released(&contents), LeaseEnd::Done);
        // without a lease there is nothing to release
        assert!(origins.release(&contents, id).is_empty());
    }
}
