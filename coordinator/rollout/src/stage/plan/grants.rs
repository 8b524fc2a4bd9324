//! Chooses which contents are leased next, and to which hosts.
//!
//! A content that no host holds is leased while there is room. Images go in the order in which they were wanted. Where
//! images and mirrors both want leases, each gets half. Mirrors always have at least one lease, because a mirror's
//! client doesn't wait for a layer of gigabytes. Recipes have room of their own: they are small, and are of use only
//! before the contents that they prove.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, tie::mix};

use super::{chance::prefix, contents::ContentState, images::Image, leases::Grant, view::View};
use crate::stage::event::{Purpose, Standing};

/// A host that connected so lately may not have met its peers, and would fetch what they already hold. It gets a lease
/// only when the other hosts have this many more.
const NEWCOMER: (Duration, usize) = (Duration::from_secs(2), 2);

/// The most recipes that are leased at one time, beside the contents that images need.
pub(super) const RECIPE_STREAMS: usize = 2;

/// What this round has granted so far.
#[derive(Default)]
struct Given<'a> {
    contents: BTreeSet<Digest>,
    hosts: BTreeMap<HostId, usize>,
    registries: BTreeMap<&'a str, usize>,
    /// Mirrors' leases of each host: those that run and those of this round.
    mirrors: BTreeMap<HostId, usize>,
}

impl<'a> Given<'a> {
    fn add(&mut self, grant: &Grant, image: &'a Image) {
        self.contents.insert(grant.content);
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

/// The contents of the images for one purpose, in order.
struct Queue<'a> {
    view: View<'a>,
    purpose: Purpose,
    /// Whether this queue is for hosts on trial: see `records`.
    trial: bool,
    /// Whether this queue has the images' recipes, in place of what the images need.
    recipes: bool,
    images: core::slice::Iter<'a, Image>,
    image: Option<&'a Image>,
    /// Whether the image failed: then only the contents that made it fail are tried.
    failed: bool,
    contents: core::slice::Iter<'a, Digest>,
    recipe: Option<Digest>,
    /// The candidates for the image, once they have been computed.
    candidates: Option<Vec<&'a HostId>>,
}

impl<'a> Queue<'a> {
    fn new(view: View<'a>, purpose: Purpose, trial: bool) -> Self {
        Self {
            view,
            purpose,
            trial,
            recipes: false,
            images: view.images.iter(),
            image: None,
            failed: false,
            contents: [].iter(),
            recipe: None,
            candidates: None,
        }
    }

    fn of_recipes(view: View<'a>) -> Self {
        Self {
            recipes: true,
            ..Self::new(view, Purpose::Stage, false)
        }
    }

    fn advance(&mut self) -> Option<(&'a Image, Digest)> {
        loop {
            if let Some(image) = self.image
                && let Some(content) = self.recipe.take().or(self.contents.next().copied())
            {
                return Some((image, content));
            }
            let wanted =
                |image: &&Image| image.purpose() == self.purpose && image.contradicts().is_none();
            let image = self.images.find(wanted)?;
            self.image = Some(image);
            if self.recipes {
                self.recipe = image.recipe().map(|recipe| recipe.digest);
            } else {
                self.contents = image.contents().iter();
            }
            self.failed = self.view.failure(image).is_some();
            self.candidates = None;
        }
    }

    fn skip_image(&mut self) {
        self.contents = [].iter();
    }

    /// The next content of the queue that no host holds and that some host may fetch.
    fn next_grant(&mut self, given: &mut Given<'a>) -> Option<Grant> {
        let view = self.view;
        while let Some((image, digest)) = self.advance() {
            let asked = given.registries.get(image.registry());
            if asked.copied().unwrap_or(0) >= view.origin_room(image) {
                self.skip_image();
                continue;
            }
            let Some(content) = view.contents.get(&digest) else {
                continue;
            };
            if !self.may_ask(image, digest, content) {
                continue;
            }
            // being the first to say that it stages earns a host no lease
            if image.is_early(view.now, view.hosts) {
                self.skip_image();
                continue;
            }
            let waits = image.is_mirrors() && content.tries().rests_for_mirrors(view.now);
            let leased = view.leases.contains(&digest) || given.contents.contains(&digest);
            if leased || waits || view.is_done(content) {
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
                trial: self.trial,
            };
            let Some(host) = choice.pick(candidates, given) else {
                continue;
            };
            // a second lease for one host waits while other hosts that could take it are about to report that they
            // stage; a recipe's lease is over soon
            let running = view.leases.iter();
            let running =
                running.filter(|(of, lease)| *lease.host() == host && !view.is_recipe(of));
            let more = running.count() + given.to(&host);
            if more > 0 && image.awaits_reports(view.now, view.hosts, view.config) {
                self.skip_image();
                continue;
            }
            let grant = Grant {
                host,
                content: digest,
                image: image.digest(),
                registry: image.registry().into(),
                repository: image.repository().into(),
                purpose: image.purpose(),
            };
            given.add(&grant, image);
            return Some(grant);
        }
        None
    }

    /// Whether the image's registry may be asked for this content now.
    fn may_ask(&self, image: &Image, digest: Digest, content: &ContentState) -> bool {
        let view = self.view;
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
    /// Whether to choose a host on trial.
    trial: bool,
}

impl Choice<'_> {
    /// Chooses the host for the lease, of these candidates. The first criterion that tells two hosts apart decides:
    /// 1. The host made no link lately that was found false.
    /// 2. For a mirror's lease: the host's last leases for mirrors brought something.
    /// 3. The host wasn't the last to have the content's lease, nor the last to ask the failing registry. After that:
    ///    its last lease of the content didn't fail.
    /// 4. The host is thought to hold the content itself. It then says so at once.
    /// 5. The host has the fewest leases. After that: it let the fewest fail.
    /// 6. The host stages already. After that: its zone has the fewest leases. After that: it holds most of the image.
    /// 7. A hash.
    fn pick(&self, candidates: &[&HostId], given: &Given<'_>) -> Option<HostId> {
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

    fn tie(&self, id: &HostId) -> u64 {
        mix(self.view.seed ^ prefix(self.digest), id.key().0)
    }
}

/// The contents to lease now, beside the leases that run.
pub(super) fn next(view: View<'_>) -> Vec<Grant> {
    let mut queues = [Purpose::Stage, Purpose::Mirror].map(|of| Queue::new(view, of, false));
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
    loop {
        let first = usize::from(running[1] < running[0]);
        let next = [first, 1 - first].into_iter().find_map(|at| {
            let room = has_room(view, queues[at].purpose, running);
            let grant = room.then(|| queues[at].next_grant(&mut given));
            Some((at, grant??))
        });
        let Some((at, grant)) = next else { break };
        running[at] += 1;
        grants.push(grant);
    }
    let mut queue = Queue::new(view, Purpose::Mirror, true);
    while trials < view.config.origin_streams
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
