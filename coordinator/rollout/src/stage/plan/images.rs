//! The wanted images: where and since when each is wanted, and what hosts report of it.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment, Reference};

use super::hosts::Hosts;
use crate::stage::{
    Config,
    event::{Content, Purpose, Selection, Standing},
    sequence::Urgency,
};

/// How long an image's first leases wait for half of the hosts to report.
const HALF_WITHIN: Duration = Duration::from_millis(500);

/// A wanted image, as an event states it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) image: Digest,
    pub(super) references: Vec<String>,
    pub(super) contents: Vec<Content>,
    pub(super) recipe: Option<Content>,
    /// Sorted, without duplicates.
    pub(super) selection: Selection,
    /// Hosts that keep what they have of the image and get no more. None of them is selected.
    pub(super) keepers: BTreeSet<HostId>,
    pub(super) purpose: Purpose,
}

impl Order {
    /// An order for this image. A selected host is removed from the keepers.
    pub(super) fn new(
        image: Digest,
        references: Vec<String>,
        (contents, recipe): (Vec<Content>, Option<Content>),
        (selection, keepers): (Selection, Vec<HostId>),
        purpose: Purpose,
    ) -> Self {
        let (selection, keepers) = match selection {
            Selection::All => (Selection::All, BTreeSet::new()),
            Selection::Hosts(mut hosts) => {
                hosts.sort_unstable();
                hosts.dedup();
                let others = keepers
                    .into_iter()
                    .filter(|host| hosts.binary_search(host).is_err());
                let keepers = others.collect();
                (Selection::Hosts(hosts), keepers)
            }
        };
        Self {
            image,
            references,
            contents,
            recipe,
            selection,
            keepers,
            purpose,
        }
    }
}

/// What an order changes for an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The image was unknown.
    pub(super) is_new: bool,
    /// The image has other references than before, or is new.
    pub(super) renamed: bool,
    /// The first reference, under which hosts ask for the image, is another one than before.
    pub(super) moved: bool,
    /// The hosts on which the image was wanted before, sorted.
    pub(super) selected: Vec<HostId>,
    /// The hosts that were to keep what they have of the image before.
    pub(super) keepers: BTreeSet<HostId>,
    /// The image's recipe before, where the image has another one now, or none.
    pub(super) old_recipe: Option<Digest>,
}

/// What is new in a host's report about an image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    /// What the host reported before, if anything.
    pub(super) before: Option<(Standing, u64)>,
    /// Set where the host stages the image and holds less than it said before: the moment of that earlier report.
    pub(super) lost_since: Option<Moment>,
}

impl News {
    /// Whether the host reported another standing before, or none.
    pub(super) fn is_change(&self, standing: Standing) -> bool {
        self.before.is_none_or(|(before, _)| before != standing)
    }

    /// Whether the host held all of the image before.
    pub(super) fn was_whole(&self) -> bool {
        matches!(
            self.before,
            Some((Standing::Present | Standing::Installing, _))
        )
    }
}

/// One wanted image.
#[derive(Debug)]
pub(super) struct Image {
    digest: Digest,
    references: Vec<String>,
    registry: String,
    /// The repository's name, which begins with the registry's name.
    repository: String,
    contents: Vec<Digest>,
    /// The contents with their sizes, from the image's manifest.
    specs: Vec<Content>,
    /// A content that hosts want beside those, and without which they have the image all the same.
    recipe: Option<Content>,
    selection: Selection,
    keepers: BTreeSet<HostId>,
    purpose: Purpose,
    /// What each host reported last: where the image stands on it, and how many raw bytes of the image it holds.
    standings: BTreeMap<HostId, (Standing, u64)>,
    /// The bytes that each host held when it last said that it stages, and when that was.
    staging: BTreeMap<HostId, (u64, Moment)>,
    wanted_at: Moment,
    /// How urgent the image is on a host where no Pod waits for it.
    urgency: Urgency,
    /// The hosts on which a Pod waits for the image.
    awaited: BTreeSet<HostId>,
    /// A content to which an image that goes before this one gives another size.
    contradicts: Option<Digest>,
    /// A content whose real size contradicts this image's manifest. The other image, with another size, goes first.
    disproved: Option<Digest>,
}

impl Image {
    fn new(now: Moment, order: Order) -> Self {
        let mut seen = BTreeSet::new();
        let specs: Vec<Content> = order
            .contents
            .into_iter()
            .filter(|content| seen.insert(content.digest))
            .collect();
        let (registry, repository) = asked(order.image, &order.references);
        Self {
            digest: order.image,
            registry,
            repository,
            references: order.references,
            contents: specs.iter().map(|content| content.digest).collect(),
            recipe: None,
            specs,
            selection: order.selection,
            keepers: order.keepers,
            purpose: order.purpose,
            standings: BTreeMap::new(),
            staging: BTreeMap::new(),
            wanted_at: now,
            urgency: Urgency::default(),
            awaited: BTreeSet::new(),
            contradicts: None,
            disproved: None,
        }
    }

    pub(super) const fn digest(&self) -> Digest {
        self.digest
    }

    /// The registry that hosts ask for the image.
    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository that hosts ask for the image. Its name begins with the registry's name.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// The contents, in the order in which they are to be fetched.
    pub(super) fn contents(&self) -> &[Digest] {
        &self.contents
    }

    /// The contents with their sizes, from the image's manifest.
    pub(super) fn specs(&self) -> &[Content] {
        &self.specs
    }

    /// The recipe, with its size by the registry's word.
    pub(super) const fn recipe(&self) -> Option<Content> {
        self.recipe
    }

    /// All that hosts fetch for the image, in the order in which it is to be fetched: the recipe, and the contents.
    pub(super) fn fetched(&self) -> impl Iterator<Item = Digest> + '_ {
        let recipe = self.recipe.iter().map(|recipe| recipe.digest);
        recipe.chain(self.contents.iter().copied())
    }

    /// Whether the content is the image's recipe.
    pub(super) fn is_recipe(&self, content: &Digest) -> bool {
        self.recipe.is_some_and(|recipe| recipe.digest == *content)
    }

    /// Whether hosts fetch this for the image.
    pub(super) fn has(&self, content: &Digest) -> bool {
        self.contents.contains(content) || self.is_recipe(content)
    }

    pub(super) const fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub(super) fn is_mirrors(&self) -> bool {
        self.purpose == Purpose::Mirror
    }

    /// A content to which an image that goes before this one gives another size.
    pub(super) const fn contradicts(&self) -> Option<Digest> {
        self.contradicts
    }

    /// A content that turned out not to be what this image says.
    pub(super) const fn disproved(&self) -> Option<Digest> {
        self.disproved
    }

    /// How urgent the image is on this host.
    pub(super) fn urgency(&self, id: &HostId) -> Urgency {
        Urgency {
            awaited: self.awaited.contains(id),
            ..self.urgency
        }
    }

    // ---- where it is wanted -----------------------------------------------------------------------------------------

    /// Whether the image is wanted on this host.
    pub(super) fn selects(&self, id: &HostId, hosts: &Hosts) -> bool {
        match &self.selection {
            Selection::All => hosts.contains(id),
            Selection::Hosts(selected) => selected.binary_search(id).is_ok(),
        }
    }

    /// The hosts on which the image is wanted, sorted.
    pub(super) fn selected(&self, hosts: &Hosts) -> Vec<HostId> {
        match &self.selection {
            Selection::All => hosts.ids().cloned().collect(),
            Selection::Hosts(selected) => selected.clone(),
        }
    }

    /// Hosts that keep what they have of the image and get no more.
    pub(super) const fn keepers(&self) -> &BTreeSet<HostId> {
        &self.keepers
    }

    /// Whether this host keeps what it has of the image and gets no more.
    pub(super) fn is_kept_on(&self, id: &HostId) -> bool {
        self.keepers.contains(id)
    }

    /// The selected hosts for which `is` holds, sorted.
    fn selected_that<'a>(
        &'a self,
        hosts: &'a Hosts,
        is: impl Fn(&HostId) -> bool,
    ) -> Vec<&'a HostId> {
        match &self.selection {
            Selection::All => hosts.ids().filter(|id| is(id)).collect(),
            Selection::Hosts(selected) => selected.iter().filter(|id| is(id)).collect(),
        }
    }

    /// Hosts that may fetch for this image: connected, trusted, selected, and staging it. If no host says for a while
    /// that it stages, hosts are added that haven't reported, wait for room, or lost the image.
    pub(super) fn candidates<'a>(
        &'a self,
        now: Moment,
        hosts: &'a Hosts,
        config: &Config,
    ) -> Vec<&'a HostId> {
        let patient = now.since(self.wanted_at) < config.reports_within;
        let all = |staging: bool| {
            self.selected_that(hosts, |id| {
                hosts.is_here(id)
                    && match self.standing(id) {
                        Some(Standing::Staging) => true,
                        None | Some(Standing::Queued | Standing::Gone) => !staging,
                        Some(Standing::Present | Standing::Installing | Standing::Failed) => false,
                    }
            })
        };
        let staging = all(true);
        if staging.is_empty() && !patient {
            all(false)
        } else {
            staging
        }
    }

    /// Whether the image was wanted just now, and less than half of the connected hosts have reported on it.
    pub(super) fn is_early(&self, now: Moment, hosts: &Hosts) -> bool {
        if self.is_mirrors() || now.since(self.wanted_at) >= HALF_WITHIN {
            return false;
        }
        let here = self.selected_that(hosts, |id| hosts.is_connected(id));
        let said = here.iter().filter(|id| self.standings.contains_key(**id));
        said.count() * 2 < here.len()
    }

    /// Whether connected hosts were told a moment ago to stage the image and haven't reported on it.
    pub(super) fn awaits_reports(&self, now: Moment, hosts: &Hosts, config: &Config) -> bool {
        let silent = |id: &HostId| !self.standings.contains_key(id) && hosts.is_here(id);
        now.since(self.wanted_at) < config.reports_within
            && match &self.selection {
                Selection::All => hosts.ids().any(silent),
                Selection::Hosts(selected) => selected.iter().any(silent),
            }
    }

    // ---- what hosts report ------------------------------------------------------------------------------------------

    /// Where the image stands on this host, by the host's own report.
    pub(super) fn standing(&self, id: &HostId) -> Option<Standing> {
        let reported = self.standings.get(id);
        reported.map(|(standing, _)| *standing)
    }

    /// The raw bytes of the image that this host holds, by the host's own report.
    pub(super) fn held_bytes(&self, id: &HostId) -> u64 {
        self.standings.get(id).map_or(0, |(_, held)| *held)
    }

    /// Notes where the image stands on a host. Returns what is new.
    fn report(&mut self, now: Moment, id: &HostId, standing: Standing, held_bytes: u64) -> News {
        let before = self.standings.insert(id.clone(), (standing, held_bytes));
        let mut lost_since = None;
        match standing {
            Standing::Gone => {
                self.staging.remove(id);
            }
            Standing::Staging if !self.is_mirrors() => {
                let last = self.staging.insert(id.clone(), (held_bytes, now));
                let lost = last.filter(|(held, _)| held_bytes < *held);
                lost_since = lost.map(|(_, heard_at)| heard_at);
            }
            _ => {}
        }
        News { before, lost_since }
    }

    /// Gives the image another recipe, or none. Returns the one before, where it is another.
    fn replace_recipe(&mut self, recipe: Option<Content>) -> Option<Digest> {
        let is_content = |of: &Content| self.contents.contains(&of.digest);
        let recipe = recipe.filter(|of| !self.is_mirrors() && !is_content(of));
        let before = core::mem::replace(&mut self.recipe, recipe)?;
        Some(before.digest).filter(|before| !self.is_recipe(before))
    }

    /// Notes that the image was ordered anew; `before` is the hosts on which it was wanted before. What other hosts
    /// said earlier belongs to an order that has ended. So they get no lease before they say that they stage.
    fn renew(&mut self, now: Moment, before: &[HostId]) {
        self.standings.retain(|host, (standing, _)| {
            matches!(standing, Standing::Present | Standing::Installing)
                || before.binary_search(host).is_ok()
        });
        if before.is_empty() {
            self.wanted_at = now;
        }
    }
}

/// What recomputing the contradictions changed. The images are in the order in which they go before each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Images that now contradict one that goes before them.
    pub(super) stopped: Vec<Digest>,
    /// Images that no longer contradict one.
    pub(super) freed: Vec<Digest>,
}

/// The wanted images, in the order in which they were first wanted.
#[derive(Debug, Default)]
pub(super) struct Images {
    all: Vec<Image>,
}

impl Images {
    pub(super) fn iter(&self) -> core::slice::Iter<'_, Image> {
        self.all.iter()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<&Image> {
        self.all.iter().find(|image| image.digest == *digest)
    }

    fn get_mut(&mut self, digest: &Digest) -> Option<&mut Image> {
        self.all.iter_mut().find(|image| image.digest == *digest)
    }

    /// The contents of all images, and their recipes.
    pub(super) fn contents(&self) -> BTreeSet<Digest> {
        self.all.iter().flat_map(Image::fetched).collect()
    }

    /// The contents of other images that this host stages or holds. The host serves them.
    pub(super) fn served_by(&self, id: &HostId, without: &Digest) -> BTreeSet<Digest> {
        let serves = |image: &&Image| {
            image.digest != *without
                && matches!(
                    image.standing(id),
                    Some(Standing::Staging | Standing::Installing | Standing::Present)
                )
        };
        let those = self.all.iter().filter(serves);
        those.flat_map(Image::fetched).collect()
    }

    /// Notes an order. An image keeps its first purpose and its first contents.
    pub(super) fn order(&mut self, now: Moment, order: Order, hosts: &Hosts) -> Change {
        let Some(image) = self.get_mut(&order.image) else {
            let recipe = order.recipe;
            let mut image = Image::new(now, order);
            image.replace_recipe(recipe);
            // of several that are wanted at one moment, the first one was asked for first
            let last = self.all.iter().map(|image| image.urgency.asked_ms).max();
            let after = last.map_or(0, |last| last.saturating_add(1));
            image.urgency.asked_ms = after.max(now.0 / 1_000);
            self.all.push(image);
            return Change {
                is_new: true,
                renamed: true,
                moved: false,
                selected: Vec::new(),
                keepers: BTreeSet::new(),
                old_recipe: None,
            };
        };
        let selected = image.selected(hosts);
        let change = Change {
            is_new: false,
            renamed: image.references != order.references,
            moved: image.references.first() != order.references.first(),
            keepers: core::mem::replace(&mut image.keepers, order.keepers),
            old_recipe: image.replace_recipe(order.recipe),
            selected,
        };
        (image.registry, image.repository) = asked(image.digest, &order.references);
        image.references = order.references;
        image.selection = order.selection;
        image.renew(now, &change.selected);
        change
    }

    /// Notes how urgent an image is. Returns whether that changed anything.
    pub(super) fn rank(
        &mut self,
        image: &Digest,
        (priority, asked_ms): (i32, u64),
        awaited: BTreeSet<HostId>,
    ) -> bool {
        let Some(image) = self.get_mut(image) else {
            return false;
        };
        let urgency = Urgency {
            awaited: false,
            priority,
            asked_ms,
        };
        let changed = (image.urgency, &image.awaited) != (urgency, &awaited);
        (image.urgency, image.awaited) = (urgency, awaited);
        changed
    }

    /// Takes an image's recipe from it. Returns whether the image had this recipe.
    pub(super) fn drop_recipe(&mut self, image: &Digest, recipe: &Digest) -> bool {
        let image = self.get_mut(image).filter(|of| of.is_recipe(recipe));
        image.is_some_and(|image| image.recipe.take().is_some())
    }

    /// Removes an image that isn't wanted any more.
    pub(super) fn cancel(&mut self, digest: &Digest) -> Option<Image> {
        let at = self.all.iter().position(|image| image.digest == *digest)?;
        Some(self.all.remove(at))
    }

    /// Notes where an image stands on a host. `None` where the image isn't wanted.
    pub(super) fn report(
        &mut self,
        now: Moment,
        (id, image): (&HostId, &Digest),
        standing: Standing,
        held_bytes: u64,
    ) -> Option<News> {
        let image = self.get_mut(image)?;
        Some(image.report(now, id, standing, held_bytes))
    }

    /// Removes the reports of a host that left the fleet.
    pub(super) fn forget_host(&mut self, id: &HostId) {
        for image in &mut self.all {
            image.standings.remove(id);
            image.staging.remove(id);
            image.awaited.remove(id);
        }
    }

    // ---- sizes ------------------------------------------------------------------------------------------------------

    /// The registry's bytes don't match what this image says of a content. Where another image gives that content
    /// another size, this image goes after the other one from now on. This happens once for each image. Where both are
    /// wrong, the image that was wanted first is tried again, slowly. Returns whether another image gives another size.
    pub(super) fn disprove(&mut self, content: Digest, image: &Digest) -> bool {
        let size = |image: &Image| {
            let of = image.specs.iter().find(|of| of.digest == content);
            of.map(|of| of.size)
        };
        let Some(claimed) = self.get(image).and_then(size) else {
            return false;
        };
        let mut sizes = self.all.iter().filter_map(size);
        let contested = sizes.any(|other| other != claimed);
        if let Some(found) = self.get_mut(image).filter(|_| contested) {
            found.disproved = Some(content);
        }
        contested
    }

    /// Recomputes which images contradict others that go before them.
    pub(super) fn settle(&mut self) -> Settled {
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        let mut settled = Settled::default();
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        // any host may ask a mirror for any blob, with any size: that mustn't hold up an image
        order.sort_by_key(|at| {
            let image = &self.all[*at];
            (image.purpose, image.disproved.is_some())
        });
        for at in order {
            let image = &mut self.all[at];
            let other = |content: &&Content| {
                sizes
                    .get(&content.digest)
                    .is_some_and(|size| *size != content.size)
            };
            let before = image.contradicts;
            image.contradicts = image.specs.iter().find(other).map(|of| of.digest);
            if image.contradicts.is_some() {
                if before.is_none() {
                    settled.stopped.push(image.digest);
                }
                continue;
            }
            sizes.extend(image.specs.iter().map(|of| (of.digest, of.size)));
            if before.is_some() {
                settled.freed.push(image.digest);
            }
        }
        settled
    }
}

/// The registry in an image's first reference, which hosts ask for it, and the repository with the registry's name. A
/// mirror's blob has no reference, so its registry isn't known here. Each such blob then counts as a registry of its
/// own, so that trouble with one registry doesn't hold up others.
fn asked(image: Digest, references: &[String]) -> (String, String) {
    let first = references.first().and_then(|first| first.parse().ok());
    let Some(first) = first.as_ref().map(Reference::at_registry) else {
        return (image.to_string(), image.to_string());
    };
    let registry = first.registry().to_string();
    let repository = format!("{registry}/{}", first.repository());
    (registry, repository)
}

#[cfg(test)]
mod tests;
