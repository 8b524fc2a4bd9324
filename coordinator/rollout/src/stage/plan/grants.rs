//! Chooses which contents are leased next, and to which hosts.
//!
//! A content that no host holds is leased while there is room. The images that some host is to finish first go first,
//! and share the leases evenly; then come those that are second somewhere, and so on. An image waits only while those
//! before it have something to lease, or hosts are about to say that they stage those. Where images and mirrors both
//! want leases, each gets half. Mirrors always have at least one lease, because a mirror's client doesn't wait for a
//! layer of gigabytes. Recipes have room of their own: they are small, and are of use only before the contents that
//! they prove.
//!
//! A content that goes by a recipe is leased in ranges to several hosts while fewer contents than streams are left:
//! then neither one host's stream nor one host's waiting limits the fleet.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId, tie::mix};

use super::{
    chance::prefix,
    contents::ContentState,
    hosts::Host,
    images::Image,
    leases::{Grant, Lease},
    view::View,
};
use crate::stage::event::{Purpose, Standing};

/// A host that connected so lately may not have met its peers, and would fetch what they already hold. It gets a lease
/// only when the other hosts have this many more.
const NEWCOMER: (Duration, usize) = (Duration::from_secs(2), 2);

/// The most recipes that are leased at one time, beside the contents that images need.
pub(super) const RECIPE_STREAMS: usize = 2;

/// Of this many hosts that stage a content, one may have a range of it. The others say what comes of the ranges.
const HOSTS_PER_RANGE: usize = 2;

/// What is leased next of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// All of it.
    Whole,
    /// The first of the ranges. A host that takes no ranges gets all.
    First(ChunkRange),
    /// A range beside others.
    Further(ChunkRange),
}

impl Share {
    const fn range(self) -> Option<ChunkRange> {
        match self {
            Self::Whole => None,
            Self::First(range) | Self::Further(range) => Some(range),
        }
    }
}

/// What this round has granted so far.
#[derive(Default)]
struct Given<'a> {
    contents: BTreeSet<Digest>,
    /// The ranges of each content, with their hosts.
    ranges: BTreeMap<Digest, Vec<(HostId, ChunkRange)>>,
    hosts: BTreeMap<HostId, usize>,
    registries: BTreeMap<&'a str, usize>,
    /// Mirrors' leases of each host: those that run and those of this round.
    mirrors: BTreeMap<HostId, usize>,
}

impl<'a> Given<'a> {
    fn add(&mut self, grant: &Grant, image: &'a Image) {
        match grant.range {
            None => drop(self.contents.insert(grant.content)),
            Some(range) => {
                let ranges = self.ranges.entry(grant.content).or_default();
                ranges.push((grant.host.clone(), range));
            }
        }
        *self.hosts.entry(grant.host.clone()).or_default() += 1;
        if image.is_mirrors() {
            *self.mirrors.entry(grant.host.clone()).or_default() += 1;
        }
        *self.registries.entry(image.registry()).or_default() += 1;
    }

    fn to(&self, id: &HostId) -> usize {
        self.hosts.get(id).copied().unwrap_or(0)
    }
}

/// The contents of the images for one purpose.
struct Queue<'a> {
    view: View<'a>,
    /// Whether this queue is for hosts on trial: see `records`.
    trial: bool,
    /// Whether this queue has the images' recipes, in place of what the images need.
    recipes: bool,
    lines: Vec<OfImage<'a>>,
}

/// Whether something of an image can be leased in this round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something may be.
    Open,
    /// Nothing can be for a moment, because hosts that could take it are about to report. Images that go later wait
    /// with it: their leases would run for long beside those of this one.
    Soon,
    /// Nothing can be.
    Over,
}

/// The contents of one image in a [`Queue`], in order.
struct OfImage<'a> {
    image: &'a Image,
    /// Images with the least number go first. Among equal ones the leases are divided evenly.
    turn: usize,
    /// Leases of the image: those that run, and those of this round.
    leases: usize,
    state: State,
    /// Whether the image failed: then only the contents that made it fail are tried.
    failed: bool,
    contents: core::slice::Iter<'a, Digest>,
    recipe: Option<Digest>,
    /// The content of which a range was granted last: another range of it may be next.
    again: Option<Digest>,
    /// The candidates for the image, once they have been computed.
    candidates: Option<Vec<&'a HostId>>,
}

impl<'a> OfImage<'a> {
    fn next(&mut self) -> Option<Digest> {
        let next = self.again.take().or_else(|| self.recipe.take());
        next.or_else(|| self.contents.next().copied())
    }
}

impl<'a> Queue<'a> {
    fn new(view: View<'a>, purpose: Purpose, trial: bool) -> Self {
        Self::of(view, purpose, trial, false)
    }

    fn of_recipes(view: View<'a>) -> Self {
        Self::of(view, Purpose::Stage, false, true)
    }

    fn of(view: View<'a>, purpose: Purpose, trial: bool, recipes: bool) -> Self {
        let of_purpose = |image: &&Image| image.purpose() == purpose;
        let images = view.images.iter().filter(of_purpose);
        let images: Vec<&Image> = images
            .filter(|image| image.contradicts().is_none())
            .collect();
        let turns = match purpose {
            Purpose::Stage if images.len() > 1 => view.turns(&images),
            // in the order in which they are wanted
            Purpose::Stage | Purpose::Mirror => BTreeMap::new(),
        };
        let lines = images.into_iter().enumerate().map(|(at, image)| {
            let running = view.leases.iter();
            let running = running.filter(|(_, lease)| lease.image() == image.digest());
            OfImage {
                image,
                turn: match purpose {
                    Purpose::Stage => turns.get(&image.digest()).copied().unwrap_or(usize::MAX),
                    Purpose::Mirror => at,
                },
                leases: running.count(),
                state: State::Open,
                failed: view.failure(image).is_some(),
                contents: match recipes {
                    true => [].iter(),
                    false => image.contents().iter(),
                },
                recipe: image.recipe().filter(|_| recipes).map(|of| of.digest),
                again: None,
                candidates: None,
            }
        });
        Self {
            view,
            trial,
            recipes,
            lines: lines.collect(),
        }
    }

    /// The next content of the queue that no host holds and that some host may fetch.
    fn next_grant(&mut self, given: &mut Given<'a>) -> Option<Grant> {
        loop {
            let soon = self.lines.iter().filter(|of| of.state == State::Soon);
            let soon = soon.filter(|of| !of.image.is_mirrors() && !self.recipes);
            let held_up = soon.map(|of| of.turn).min().unwrap_or(usize::MAX);
            let open = self.lines.iter_mut();
            let open = open.filter(|of| of.state == State::Open && of.turn <= held_up);
            // the first of equal ones is wanted for longest
            let of = open.min_by_key(|of| (of.turn, of.leases))?;
            let rules = (self.view, self.trial, self.recipes);
            if let Some(grant) = of.next_grant(rules, given) {
                of.leases += 1;
                return Some(grant);
            }
        }
    }
}

impl<'a> OfImage<'a> {
    /// The next content of the image that no host holds and that some host may fetch.
    fn next_grant(
        &mut self,
        (view, trial, recipes): (View<'a>, bool, bool),
        given: &mut Given<'a>,
    ) -> Option<Grant> {
        let image = self.image;
        while let Some(digest) = self.next() {
            let asked = given.registries.get(image.registry());
            if asked.copied().unwrap_or(0) >= view.origin_room(image) {
                break;
            }
            let Some(content) = view.contents.get(&digest) else {
                continue;
            };
            if !self.may_ask(view, digest, content) {
                continue;
            }
            // being the first to say that it stages earns a host no lease
            if image.is_early(view.now, view.hosts) {
                self.state = State::Soon;
                return None;
            }
            let waits = image.is_mirrors() && content.tries().rests_for_mirrors(view.now);
            if waits || view.is_done(content) {
                continue;
            }
            let candidates = self
                .candidates
                .get_or_insert_with(|| view.candidates(image));
            let choice = Choice {
                view,
                image,
                digest,
                content,
                recipe: recipes,
                trial,
            };
            if let Some(grant) = choice.narrow(given) {
                given.add(&grant, image);
                self.again = Some(digest);
                return Some(grant);
            }
            let Some(share) = choice.share(given) else {
                continue;
            };
            let Some(host) = choice.pick(share, candidates, given) else {
                continue;
            };
            let range = share.range();
            let range = range.filter(|_| choice.takes_ranges(&host, given));
            // a second lease for one host waits while other hosts that could take it are about to report that they
            // stage; a recipe's lease is over soon
            let running = view.leases.iter();
            let running =
                running.filter(|(of, lease)| *lease.host() == host && !view.is_recipe(of));
            let more = running.count() + given.to(&host);
            if more > 0 && image.awaits_reports(view.now, view.hosts, view.config) {
                self.state = State::Soon;
                return None;
            }
            let grant = Grant {
                host,
                content: digest,
                range,
                image: image.digest(),
                registry: image.registry().into(),
                repository: image.repository().into(),
                purpose: image.purpose(),
            };
            given.add(&grant, image);
            self.again = range.map(|_| digest);
            return Some(grant);
        }
        self.state = State::Over;
        None
    }

    /// Whether the image's registry may be asked for this content now.
    fn may_ask(&self, view: View<'a>, digest: Digest, content: &ContentState) -> bool {
        let image = self.image;
        let fails = content.tries().fails(&image.digest()).is_some();
        (!self.failed || fails)
            && !view.rests(content, &digest, image)
            && (!view.origin_fails(image) || view.probe(image) == Some((image.digest(), digest)))
    }
}

/// A content that is to be leased under an image's name.
struct Choice<'a> {
    view: View<'a>,
    image: &'a Image,
    digest: Digest,
    content: &'a ContentState,
    /// Whether the content is the image's recipe.
    recipe: bool,
    /// Whether to choose a host on trial.
    trial: bool,
}

impl Choice<'_> {
    /// What is leased next of the content, which no host holds whole; `None` for nothing.
    fn share(&self, given: &Given<'_>) -> Option<Share> {
        if given.contents.contains(&self.digest) {
            return None;
        }
        let granted = given.ranges.get(&self.digest);
        let narrowed =
            |of: &&Lease| granted.is_some_and(|of_it| of_it.iter().any(|(id, _)| id == of.host()));
        let leases = self.view.leases.all_of(&self.digest).iter();
        let leases = leases.filter(|of| !narrowed(of));
        let granted = granted.into_iter().flatten();
        let ranges = leases
            .map(Lease::range)
            .chain(granted.map(|(_, range)| Some(*range)));
        // one host may have all of it
        let taken: Vec<ChunkRange> = ranges.collect::<Option<_>>()?;
        let (chunks, parts) = (self.content.chunks(), self.content.parts());
        let may = !self.recipe && self.view.may_have_ranges(self.image, self.content);
        let begun = parts.are_begun() || !taken.is_empty();
        match (may, begun) {
            (true, true) if taken.len() >= self.view.config.content_ranges => None,
            // while it isn't known whether the registry gives it, one host asks
            (true, true) if !taken.is_empty() && self.is_in_question() => None,
            (true, true) => {
                let most = u32::try_from(self.view.config.content_ranges).unwrap_or(u32::MAX);
                let least = chunks.div_ceil(most.max(1));
                parts.next((chunks, least), &taken).map(Share::Further)
            }
            (true, false) => Some(self.first().map_or(Share::Whole, Share::First)),
            // another image's recipe may have had it fetched in ranges, which spread
            (false, _) if parts.cover(chunks) => None,
            (false, _) => taken.is_empty().then_some(Share::Whole),
        }
    }

    /// The first range of a content that one host fetches all of, for that host: it was leased before hosts had said
    /// what they have of the content. The host gives up no more than a chunk that is on its way.
    fn narrow(&self, given: &Given<'_>) -> Option<Grant> {
        let [lease] = self.view.leases.all_of(&self.digest) else {
            return None;
        };
        let (view, image, content) = (self.view, self.image, self.content);
        let whole = lease.range().is_none() && !given.ranges.contains_key(&self.digest);
        let may = !self.recipe && view.may_have_ranges(image, content);
        let takes =
            lease.image() == image.digest() && view.takes_ranges(image, content, lease.host());
        if !whole || !may || !takes {
            return None;
        }
        let first = self.first()?;
        // the chunks under way are lost: that isn't worth it where some host lacks little any more
        let (_, held) = self.takers();
        let left = content.chunks() - held.into_iter().max().unwrap_or(0);
        if lease.chunks() > left / 4 || left / view.config.range_chunks.max(1) < 2 {
            return None;
        }
        Some(Grant {
            host: lease.host().clone(),
            content: self.digest,
            range: Some(first),
            image: self.image.digest(),
            registry: self.image.registry().into(),
            repository: self.image.repository().into(),
            purpose: self.image.purpose(),
        })
    }

    fn is_in_question(&self) -> bool {
        let tries = self.content.tries();
        tries.is_in_question(&self.image.digest())
    }

    /// The first of the ranges in which the content is leased best; `None` where it is leased whole.
    fn first(&self) -> Option<ChunkRange> {
        let ranges = u32::try_from(self.ranges()).ok()?;
        let size = self.content.chunks().div_ceil(ranges.max(1));
        ChunkRange::new(0, size).filter(|_| ranges > 1)
    }

    /// The hosts that take ranges, as far as they have reported, and the chunks that each of them holds. Those that
    /// haven't reported yet are thought to be like the others.
    fn takers(&self) -> (usize, Vec<u32>) {
        let (view, image, content) = (self.view, self.image, self.content);
        let selected = image.selected(view.hosts);
        let here = selected.iter().filter(|id| {
            let host = view.hosts.get(id);
            view.hosts.is_here(id) && host.is_some_and(Host::takes_ranges)
        });
        let mut hosts = 0;
        let mut held = Vec::new();
        for id in here {
            let holds = content.receipts().of(id);
            let able = holds >= content.chunks() / 2;
            hosts += usize::from(able || holds == 0);
            held.extend(able.then_some(holds));
        }
        (hosts, held)
    }

    /// The chunks that most of the hosts lack that take ranges: no host's word decides alone.
    fn missing(&self) -> u32 {
        let (_, mut held) = self.takers();
        held.sort_unstable();
        let median = held.get(held.len() / 2).copied();
        self.content.chunks() - median.unwrap_or(0)
    }

    /// In how many ranges the content is leased best, by the streams that would else be idle, the chunks that the hosts
    /// lack, and the hosts that take ranges.
    fn ranges(&self) -> usize {
        let config = self.view.config;
        let streams = config.origin_streams;
        let idle = streams / self.view.open_contents(streams).max(1);
        let most = config.content_ranges.min(idle);
        if most < 2 {
            return 1;
        }
        let (hosts, held) = self.takers();
        // a range begins behind a chunk that its holder has: of what is new, no range could
        if held.is_empty() {
            return 1;
        }
        let by_chunks = (self.missing() / config.range_chunks.max(1)) as usize;
        most.min(by_chunks).min(hosts / HOSTS_PER_RANGE)
    }

    /// Chooses the host for the lease, of these candidates. The first criterion that tells two hosts apart decides:
    /// 1. The host made no link lately that was found false.
    /// 2. For a mirror's lease: the host's last leases for mirrors brought something.
    /// 3. The host wasn't the last to have the content's lease, nor the last to ask the failing registry. After that:
    ///    its last lease of the content didn't fail. After that: it takes the first of several ranges as a range.
    /// 4. The host is thought to hold the content itself. It then says so at once.
    /// 5. The host has the fewest leases. After that: it let the fewest fail.
    /// 6. The host stages already. After that: its zone has the fewest leases. After that: it holds most of the image.
    /// 7. A hash.
    fn pick(&self, share: Share, candidates: &[&HostId], given: &Given<'_>) -> Option<HostId> {
        let Self {
            view,
            image,
            content,
            ..
        } = *self;
        let on_trial = |id: &HostId| view.records.is_on_trial(view.now, id);
        // a content that a host off trial also wants isn't leased to a host on trial, even if the other host has to
        // wait for it
        if self.trial && !candidates.iter().all(|id| on_trial(id)) {
            return None;
        }
        let mirror = image.is_mirrors();
        let most = match self.trial {
            true => 1,
            false => view.config.mirror_share(),
        };
        let has_room = |id: &HostId| {
            let has = given.mirrors.get(id).copied().unwrap_or(0);
            !mirror || on_trial(id) == self.trial && has < most
        };
        let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
        let running = view.leases.iter().map(|(_, lease)| (lease.host(), 1));
        let granted = given.hosts.iter().map(|(id, count)| (id, *count));
        for (id, count) in running.chain(granted) {
            let zone = view.hosts.get(id).map_or("", |host| host.zone());
            *by_zone.entry(zone).or_default() += count;
        }
        let prober = view.prober(image);
        candidates
            .iter()
            .filter_map(|id| Some((*id, view.hosts.get(id)?)))
            .filter(|(id, host)| {
                let says_whole =
                    host.counts() && !content.receipts().own_word() && content.is_done_on(id);
                has_room(id)
                    && (!matches!(share, Share::Further(_)) || self.takes_ranges(id, given))
                    && !view.records.is_unable(view.now, id, image.registry())
                    && !says_whole
                    && !content.tries().has_looked(&image.digest(), id, view.now)
                    && !content.tries().has_given_back(id, view.now)
            })
            .min_by_key(|(id, host)| {
                let barren = match mirror {
                    true => view.records.barren(id),
                    false => 0,
                };
                let came_lately = view.now.since(host.since()) < NEWCOMER.0;
                let handicap = if came_lately { NEWCOMER.1 } else { 0 };
                (
                    host.is_last_for_leases(view.now),
                    barren,
                    content.tries().was_last(id) || prober == Some(*id),
                    content.tries().has_failed(id),
                    matches!(share, Share::First(_)) && !self.takes_ranges(id, given),
                    host.counts() || !content.is_doubted(id),
                    view.leases.of_host(id) + given.to(id) + handicap,
                    view.records.failures(id),
                    image.standing(id) != Some(Standing::Staging),
                    by_zone.get(host.zone()).copied().unwrap_or(0),
                    // amounts count by powers of two: where both lie between the same two, the hash decides
                    u32::MAX
                        - image
                            .held_bytes(id)
                            .checked_ilog2()
                            .map_or(0, |log| log + 1),
                    self.tie(id),
                )
            })
            .map(|(id, _)| id.clone())
    }

    /// Whether this host takes a range of the content, and fetches no other range.
    fn takes_ranges(&self, id: &HostId, given: &Given<'_>) -> bool {
        let fetches = self.view.leases.holds(&self.digest, id)
            || given
                .ranges
                .get(&self.digest)
                .is_some_and(|of| of.iter().any(|(by, _)| by == id));
        !fetches && self.view.takes_ranges(self.image, self.content, id)
    }

    fn tie(&self, id: &HostId) -> u64 {
        mix(self.view.seed ^ prefix(self.digest), id.key().0)
    }
}

/// The contents to lease now, beside the leases that run.
pub(super) fn next(view: View<'_>) -> Vec<Grant> {
    let purposes = [Purpose::Stage, Purpose::Mirror];
    let mut queues = purposes.map(|of| Queue::new(view, of, false));
    let mut grants = Vec::new();
    let mut given = Given::default();
    let recipes = view.recipe_leases();
    let mut queue = Queue::of_recipes(view);
    while recipes + grants.len() < RECIPE_STREAMS
        && let Some(grant) = queue.next_grant(&mut given)
    {
        grants.push(grant);
    }
    given = Given {
        contents: given.contents,
        ..Given::default()
    };
    let mut trials = 0;
    let all = view.leases.iter().map(|(_, lease)| lease);
    for lease in all.filter(|lease| lease.is_mirrors()) {
        *given.mirrors.entry(lease.host().clone()).or_default() += 1;
        trials += usize::from(lease.is_trial());
    }
    let mirrors = view.leases.mirrors();
    let mut running = [view.leases.len() - mirrors - recipes, mirrors - trials];
    // leases whose trial is over count as any other: those beyond the others' places keep the places of trials
    let others: usize = running.iter().sum();
    let over = others.saturating_sub(view.config.origin_streams + 1);
    loop {
        let first = usize::from(running[1] < running[0]);
        let next = [first, 1 - first].into_iter().find_map(|at| {
            let room = has_room(view, purposes[at], running);
            let grant = room.then(|| queues[at].next_grant(&mut given));
            Some((at, grant??))
        });
        let Some((at, grant)) = next else { break };
        running[at] += 1;
        grants.push(grant);
    }
    let mut queue = Queue::new(view, Purpose::Mirror, true);
    while trials + over < view.config.origin_streams
        && let Some(grant) = queue.next_grant(&mut given)
    {
        trials += 1;
        grants.push(grant);
    }
    grants
}

/// Whether one more lease for this purpose may run beside these leases of images and of mirrors.
const fn has_room(view: View<'_>, purpose: Purpose, [images, mirrors]: [usize; 2]) -> bool {
    let room = images + mirrors < view.config.origin_streams;
    match purpose {
        Purpose::Mirror => room || mirrors == 0,
        Purpose::Stage => room,
    }
}

#[cfg(test)]
mod tests;
