//! One wanted image: what everybody wants of it together, its recipe, and what the plan is told of it.
//!
//! Who wants the image is in [`Claims`](rollout::names::Claims).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{
    ChunkIndex, Digest, Geometry, HostId,
    image::{Blob, ContentKind},
    recipe::Doubt,
};
use rollout::{
    names::Wanted as Sum,
    stage::{Event, event as word, sequence::Urgency},
};
use tracing::info;

use super::ranking::{Ranking, Sides};
use crate::{
    driver::{recipe_words::Heard, took::Took},
    predicted::Predicted,
    wants::Want,
};

/// A wanted image. Only [`Images`](super::Images) changes it.
#[derive(Debug)]
pub(in crate::driver) struct Wanted {
    /// The want, with the references and the hosts of everybody who wants the image.
    want: Want,
    /// Hosts that keep what they have of the image and get no more of it, unless they are selected.
    paused: BTreeSet<HostId>,
    /// Hosts that may have what the image holds; `None`: all.
    entitled: Option<BTreeSet<HostId>>,
    /// Whether the plan knows the image. The plan doesn't know it while other images have all its names.
    planned: bool,
    took: Took,
    ranking: Ranking,
    /// Whether the image has another recipe than when the plan and the hosts were last told.
    other_recipe: bool,
    /// A recipe that couldn't be had since somebody last asked for the image.
    lost_recipe: Option<Digest>,
    /// Whether a host with a session has the recipe. Only asked of the fleet's own recipe.
    held: bool,
}

impl Wanted {
    /// An image that is wanted from now on. The plan doesn't know it yet.
    pub(super) fn new(want: Want, took: Took) -> Self {
        Self {
            paused: BTreeSet::new(),
            entitled: want.hosts.clone(),
            planned: false,
            took,
            ranking: Ranking::default(),
            other_recipe: false,
            lost_recipe: None,
            held: false,
            want,
        }
    }

    /// Takes the sum of what everybody wants of the image. Returns whether a reference or a host was added, and whether
    /// anything changed.
    pub(super) fn take(&mut self, sum: Sum) -> (bool, bool) {
        let Sum {
            references,
            hosts,
            paused,
            entitled,
        } = sum;
        self.entitled = entitled;
        let more_hosts = match (&self.want.hosts, &hosts) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(hosts)) => !hosts.is_subset(before),
        };
        let more = more_hosts || !references.is_subset(&self.want.references);
        let changed = (&references, &hosts, &paused)
            != (&self.want.references, &self.want.hosts, &self.paused);
        (self.want.references, self.want.hosts, self.paused) = (references, hosts, paused);
        (more, changed)
    }

    /// Takes a recipe that was found when the image was asked for again. The recipe that is there stays, so that it
    /// doesn't change under hosts, unless each content of the image is in doubt, or hosts have made it: the registry's
    /// has places to go on from.
    pub(super) fn find_recipe(&mut self, found: Option<Blob>) {
        let Some(found) = found.filter(|found| self.lost_recipe != Some(found.digest)) else {
            return;
        };
        if let Some(there) = self.want.recipe.filter(|_| !self.want.recipe_of_fleet) {
            let doubts = &self.want.recipe_doubts;
            let contents = self.want.layout.contents();
            let useful = contents.iter().any(|of| !doubts.contains_key(&of.digest));
            if useful || there.digest == found.digest {
                return;
            }
        }
        let image = self.want.digest();
        info!(%image, recipe = %found.digest, bytes = found.size, "image has a recipe");
        self.set_recipe(Some(found));
    }

    fn set_recipe(&mut self, recipe: Option<Blob>) {
        self.want.recipe = recipe;
        self.want.recipe_of_fleet = false;
        self.want.recipe_doubts.clear();
        self.other_recipe = true;
    }

    /// Takes the recipe that hosts made, or takes note that none of them has it any more. Returns whether the recipe is
    /// another one than before.
    pub(super) fn take_fleets_recipe(&mut self, recipe: Option<Blob>) -> bool {
        self.held = recipe.is_some();
        if recipe.is_none() || self.want.recipe == recipe {
            return false;
        }
        self.set_recipe(recipe);
        (self.want.recipe_of_fleet, self.other_recipe) = (true, false);
        true
    }

    /// The recipe can't be had, and isn't taken again before it is [forgiven](Self::forgive_recipe). False if the image
    /// has another one, or none.
    pub(super) fn lose_recipe(&mut self, recipe: &Digest) -> bool {
        if self.want.recipe.is_none_or(|of| of.digest != *recipe) {
            return false;
        }
        self.set_recipe(None);
        self.other_recipe = false;
        self.lost_recipe = Some(*recipe);
        true
    }

    /// Somebody asks for the image again: a recipe that couldn't be had may be had now.
    pub(super) const fn forgive_recipe(&mut self) {
        self.lost_recipe = None;
    }

    /// Whether the image has another recipe than when this was last asked.
    pub(super) const fn take_other_recipe(&mut self) -> bool {
        std::mem::replace(&mut self.other_recipe, false)
    }

    /// The worth of a host's word that the image's recipe doesn't fit a content's bytes. The host has the content's
    /// lease.
    pub(super) fn may_doubt(&self, doubt: &Doubt) -> Heard {
        let contents = self.want.layout.contents();
        let content = contents.iter().find(|of| of.digest == doubt.content);
        if !content.is_some_and(|of| of.geometry.contains(doubt.chunk)) {
            return Heard::Nonsense;
        }
        let named = self.want.recipe.is_some_and(|of| of.digest == doubt.recipe);
        if !named || self.want.recipe_doubts.contains_key(&doubt.content) {
            return Heard::Known;
        }
        Heard::News
    }

    /// The recipe isn't used for a content any more, whose bytes don't fit it from this chunk on.
    pub(super) fn doubt(&mut self, content: Digest, chunk: ChunkIndex) {
        self.want.recipe_doubts.insert(content, chunk);
    }

    /// Takes the pull Secrets that objects name for the image. Returns whether they are other ones than before.
    pub(super) fn take_secrets(&mut self, secrets: BTreeMap<String, String>) -> bool {
        let other = self.want.secrets != secrets;
        self.want.secrets = secrets;
        other
    }

    /// Keeps what was predicted when the image's staging began.
    pub(super) fn keep_predicted(&mut self, predicted: Predicted) {
        self.want.predicted = Some(Arc::new(predicted));
    }

    /// Takes note of who wants the image, and of the first time in their claims. Returns what the plan is to be told of
    /// the image's urgency, if that is news.
    pub(super) fn rank(&mut self, sides: Sides, asked_ms: u64) -> Option<Event> {
        let times = (asked_ms, self.want.wanted_at);
        self.ranking.follow(self.want.digest(), sides, times)
    }

    pub(super) const fn ranking(&self) -> &Ranking {
        &self.ranking
    }

    pub(super) const fn ranking_mut(&mut self) -> &mut Ranking {
        &mut self.ranking
    }

    /// The priority that counts for the image.
    pub(in crate::driver) fn priority(&self) -> i32 {
        self.ranking.counts()
    }

    /// Notes whether the plan knows the image. Returns whether it did before.
    pub(super) fn set_planned(&mut self, planned: bool) -> bool {
        if !planned {
            self.ranking.untell();
        }
        std::mem::replace(&mut self.planned, planned)
    }

    pub(super) const fn is_planned(&self) -> bool {
        self.planned
    }

    /// The time that it takes to bring the image everywhere.
    pub(super) const fn time(&self) -> Took {
        self.took
    }

    pub(super) const fn time_mut(&mut self) -> &mut Took {
        &mut self.took
    }

    /// What the plan is told of the image.
    pub(super) fn event(&self) -> Event {
        let contents = self.want.layout.contents().into_iter();
        let contents = contents.map(|content| word::Content {
            digest: content.digest,
            chunks: content.geometry.chunks(),
            size: content.geometry.size(),
            origin_bytes: match content.kind {
                ContentKind::RawLayer { blob } => blob.size,
                ContentKind::Blob => content.geometry.size(),
            },
        });
        let hosts = self.want.hosts.as_ref();
        Event::Wanted {
            image: self.want.digest(),
            references: self.want.references.iter().cloned().collect(),
            contents: contents.collect(),
            // no registry has the fleet's own recipe, so nobody gets a lease of it
            recipe: self
                .want
                .recipe
                .filter(|_| !self.want.recipe_of_fleet)
                .and_then(recipe_content),
            hosts: hosts.map_or(word::Selection::All, |hosts| {
                word::Selection::Hosts(hosts.iter().cloned().collect())
            }),
            paused: self.paused.iter().cloned().collect(),
            purpose: word::Purpose::Stage,
        }
    }

    pub(in crate::driver) const fn want(&self) -> &Want {
        &self.want
    }

    /// The recipe that hosts can get: from the registry, or from each other.
    pub(in crate::driver) fn recipe(&self) -> Option<Blob> {
        let there = !self.want.recipe_of_fleet || self.held;
        self.want.recipe.filter(|_| there)
    }

    /// Whether the registry has no recipe of the image.
    pub(in crate::driver) const fn may_have_fleets_recipe(&self) -> bool {
        self.want.recipe.is_none() || self.want.recipe_of_fleet
    }

    /// Whether this recipe couldn't be had, or was given up, since somebody last asked for the image.
    pub(in crate::driver) fn has_lost(&self, recipe: &Digest) -> bool {
        self.lost_recipe == Some(*recipe)
    }

    /// Hosts that may have what the image holds; `None`: all.
    pub(in crate::driver) const fn entitled(&self) -> Option<&BTreeSet<HostId>> {
        self.entitled.as_ref()
    }

    /// How long it took to bring the image everywhere, where that is known.
    pub(in crate::driver) const fn took(&self) -> Option<std::time::Duration> {
        self.took.told()
    }

    /// Whether the image is wanted on this host, even if the host has left the fleet. An image all of whose names are
    /// other images' is wanted nowhere.
    pub(in crate::driver) fn selects(&self, host: &HostId) -> bool {
        let hosts = self.want.hosts.as_ref();
        self.planned && hosts.is_none_or(|hosts| hosts.contains(host))
    }

    /// How urgent the image is on this host. `None` while it is wanted nowhere.
    pub(in crate::driver) fn urgency(&self, host: &HostId) -> Option<Urgency> {
        self.ranking.urgency(host)
    }

    /// Whether the image is paused on this host.
    pub(in crate::driver) fn is_paused(&self, host: &HostId) -> bool {
        self.paused.contains(host)
    }

    /// The reference for which pull tokens are asked. A reference for which an object names a pull Secret comes first,
    /// because the Secret was given for it.
    pub(in crate::driver) fn token_reference(&self) -> Option<&String> {
        let references = &self.want.references;
        let mut named = self.want.secrets.keys();
        let named = named.find(|name| references.contains(*name));
        named.or(references.first())
    }
}

/// What the plan is told of a recipe. The registry has it as it is.
fn recipe_content(recipe: Blob) -> Option<word::Content> {
    let Blob { digest, size } = recipe;
    let geometry = Geometry::new(size).ok()?;
    Some(word::Content {
        digest,
        chunks: geometry.chunks(),
        size,
        origin_bytes: size,
    })
}
