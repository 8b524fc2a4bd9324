//! Wanted images: who wants each image, under which names and on which hosts. An image is staged when operators or the
//! cluster's objects want it.

mod ranking;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use proto::{ChunkIndex, Digest, HostId, Moment, image::Blob, recipe::Doubt};
use rollout::{
    names::{Claims, NotAsked, Placement},
    stage::{Event, RecipeLeft},
};
use tracing::{error, info, warn};

use self::ranking::Sides;
pub(super) use self::wanted::Wanted;
use super::{
    ask::{CancelError, MAX_NAME_BYTES, MAX_REFERENCES, MAX_WANTS, Placed, StageError},
    hosts::Hosts,
    presence::{Names, Presence},
    recipe_words::Heard,
    selection::is_everywhere,
    took::Took,
};
use crate::{
    predicted::Predicted,
    view::{CancelReply, StillWanted},
    wants::{Timing, Want},
};

/// The most contents of an image that are named as not fitting its recipe: 110 kB in the order to stage it. A recipe
/// that is false for more contents is given up.
const MAX_DOUBTED: usize = 1_000;

/// The moment of a change, with what is known of the hosts at that moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) now: Moment,
    /// The wall clock, in Unix milliseconds: only for what is kept over restarts.
    pub(super) unix_ms: u64,
    pub(super) hosts: &'a Hosts,
    pub(super) presence: &'a Presence,
}

/// What follows from a change of wants for other parts.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The events for the plan, in this order: additional wants come first, and ended wants last.
    pub(super) events: Vec<Event>,
    /// Images whose orders say something different now.
    pub(super) ordered: Vec<Digest>,
    /// Images whose hosts are to hear of a change without being asked to try again: who may have the image, or its
    /// recipe.
    pub(super) news: Vec<Digest>,
    /// Images that nobody wants any more.
    pub(super) over: Vec<Digest>,
    /// Images whose pull tokens need attention, and why.
    pub(super) tokens: Vec<(Digest, Credentials)>,
    /// Whether the names of images on hosts may have changed.
    pub(super) names: bool,
    /// Images for which the operators' wants have changed or ended: the change is to be written to disk.
    pub(super) asked: Vec<Digest>,
}

/// Why the pull tokens of an image need attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credentials {
    /// Somebody asks for the image: a token is needed if there is none.
    Asked,
    /// Objects name other pull Secrets for the image.
    Changed,
}

/// The wanted images.
#[derive(Debug)]
pub(super) struct Images {
    wants: BTreeMap<Digest, Wanted>,
    /// Who wants each image, under which names and on which hosts.
    claims: Claims,
    /// Images that the cluster wants and that exceed [`MAX_WANTS`] or [`MAX_NAME_BYTES`]. They wait until there is
    /// room.
    waiting: BTreeMap<Digest, Placed>,
    /// Whether all that operators wanted before this start is among the wants.
    recalled: bool,
    /// Whether all that the cluster wanted before this start is among the wants.
    placed: bool,
}

impl Images {
    /// Nothing is wanted. Numbers of asks begin after `number`. `alone`: the coordinator works in no cluster, so no
    /// wants of a cluster can be missing.
    pub(super) const fn new(number: u64, alone: bool) -> Self {
        Self {
            wants: BTreeMap::new(),
            claims: Claims::new(number),
            waiting: BTreeMap::new(),
            recalled: false,
            placed: alone,
        }
    }

    // ---- what operators want ---------------------------------------------------------------------------------------

    /// Whether there is room for another want of operators.
    ///
    /// # Errors
    /// When too many images or names are wanted.
    pub(super) fn admit(&self, want: &Want) -> Result<(), StageError> {
        let image = want.digest();
        if !self.wants.contains_key(&image) && self.wants.len() >= MAX_WANTS {
            return Err(StageError::TooManyImages);
        }
        let before = self
            .wants
            .get(&image)
            .map(|wanted| &wanted.want().references);
        let mut names = before.cloned().unwrap_or_default();
        names.extend(want.references.iter().cloned());
        if names.len() > MAX_REFERENCES {
            return Err(StageError::TooManyReferences);
        }
        // names that the image has already are in hosts' reports already
        if before.is_none_or(|before| *before != names) && !self.has_room_for(&image, &names) {
            return Err(StageError::TooManyNames);
        }
        Ok(())
    }

    /// Operators want this image, under each reference on the hosts that the want names for that reference.
    pub(super) fn enter(&mut self, at: At<'_>, want: Want) -> Changes {
        let image = want.digest();
        let mut changes = Changes {
            tokens: vec![(image, Credentials::Asked)],
            ..Changes::default()
        };
        for reference in &want.references {
            let asked_ms = match want.timing {
                Timing::New => self.claims.asked_now(at.unix_ms),
                Timing::Known(_) | Timing::Unknown => want.asked_ms_of(reference),
            };
            let hosts = want.hosts_of(reference);
            for other in self.claims.ask(image, reference, hosts, asked_ms) {
                info!(image = %other, by = %image, reference, "a tag moved to another image");
                changes.asked.push(other);
            }
        }
        let (timing, recipe, priority) = (want.timing, want.recipe, want.priority);
        if let Some(wanted) = self.wants.get_mut(&image) {
            wanted.forgive_recipe();
            wanted.find_recipe(recipe);
        }
        let kept = match self.wants.get(&image) {
            None => {
                self.begin(at, want);
                None
            }
            // After a start, the cluster's want came first, without a time. This want knows the time.
            Some(wanted) if matches!((wanted.time(), timing), (Took::Untold, Timing::Known(_))) => {
                Some(Took::of(timing, at.now, at.unix_ms, false))
            }
            Some(_) => None,
        };
        if let Some(wanted) = self.wants.get_mut(&image) {
            wanted.ranking_mut().ask(priority);
        }
        self.follow(at, Some(image), &mut changes);
        if let (Some(took), Some(wanted)) = (kept, self.wants.get_mut(&image)) {
            *wanted.time_mut() = took;
        }
        // even if nothing changed, hosts are to look at their disks again
        changes.names = true;
        changes
    }

    /// Operators don't want this any more. `name` is a reference, or the bare digest of an image.
    ///
    /// # Errors
    /// When operators don't want it.
    pub(super) fn cancel(
        &mut self,
        at: At<'_>,
        name: &str,
    ) -> Result<(Digest, CancelReply, Changes), CancelError> {
        let unwanted = |others| CancelError::new(name, NotAsked::Unwanted, others);
        let (image, reference) = match name.parse::<Digest>() {
            Ok(image) => (image, None),
            Err(_) => match self.claims.find(name) {
                Some(image) => (image, Some(name)),
                None => return Err(unwanted(self.other_names(name))),
            },
        };
        let cancelled = self.claims.cancel(&image, reference);
        let references = cancelled.map_err(|why| CancelError::new(name, why, Vec::new()))?;
        info!(%image, ?references, "operators don't want this any more");
        let mut changes = Changes::default();
        self.follow(at, None, &mut changes);
        changes.names = true;
        let still_wanted = self.claims.claimed(&image).into_iter();
        let still_wanted = still_wanted.map(|claimed| StillWanted {
            reference: claimed.reference,
            operators: claimed.operators,
            cluster: claimed.cluster,
        });
        let reply = CancelReply {
            digest: image.to_string(),
            references,
            still_wanted: still_wanted.collect(),
        };
        Ok((image, reply, changes))
    }

    /// The references under which an image is wanted, when `name` has the digest of that image.
    fn other_names(&self, name: &str) -> Vec<String> {
        let digest = name
            .split_once('@')
            .and_then(|(_, digest)| digest.parse().ok());
        let claimed = digest.map(|image| self.claims.claimed(&image));
        let claimed = claimed.unwrap_or_default().into_iter();
        claimed.map(|claimed| claimed.reference).collect()
    }

    /// What operators asked for of an image, in the form in which it is kept on disk. What the cluster wants isn't part
    /// of it: the cluster says its wants again after a restart.
    pub(super) fn asked(&self, image: &Digest) -> Option<Want> {
        let asked = self.claims.asked(image)?;
        let wanted = self.wants.get(image)?;
        let all = asked.values().any(|claim| claim.hosts.is_none());
        let hosts: BTreeSet<HostId> = asked
            .values()
            .flat_map(|claim| claim.hosts.iter().flatten().cloned())
            .collect();
        let hosts = (!all).then_some(hosts);
        let narrowed = asked
            .iter()
            .filter(|(_, claim)| claim.hosts != hosts)
            .filter_map(|(reference, claim)| Some((reference.clone(), claim.hosts.clone()?)));
        Some(Want {
            references: asked.keys().cloned().collect(),
            narrowed: narrowed.collect(),
            asked_ms: asked
                .iter()
                .map(|(reference, claim)| (reference.clone(), claim.asked_ms))
                .collect(),
            hosts,
            priority: wanted.ranking().asked(),
            timing: wanted.time().timing(),
            ..wanted.want().clone()
        })
    }

    // ---- what the cluster wants ------------------------------------------------------------------------------------

    /// The cluster wants exactly these images.
    pub(super) fn place(&mut self, at: At<'_>, wants: Vec<Placed>) -> Changes {
        let mut changes = Changes::default();
        let wants = wants.into_iter();
        let wants: BTreeMap<Digest, Placed> =
            wants.map(|placed| (placed.want.digest(), placed)).collect();
        for image in self.wants.keys().copied().collect::<Vec<_>>() {
            if self.claims.is_placed(&image) && !wants.contains_key(&image) {
                self.claims.unplace(&image);
            }
        }
        self.follow(at, None, &mut changes);
        let mut waiting = BTreeMap::new();
        for (image, placed) in wants {
            if !self.may_be_placed(&image, &placed) {
                if !self.waiting.contains_key(&image) {
                    error!(%image, limit = MAX_WANTS, limit_name_bytes = MAX_NAME_BYTES, "image isn't staged yet: too many are wanted already, or with too long names; delete some ImagePrePulls");
                }
                waiting.insert(image, placed);
                continue;
            }
            self.place_one(at, image, placed, &mut changes);
        }
        self.waiting = waiting;
        self.follow(at, None, &mut changes);
        changes.names = true;
        changes
    }

    /// Takes up images that the cluster wants and that had to wait, as far as there is room now. `None` when there is
    /// none.
    pub(super) fn place_waiting(&mut self, at: At<'_>) -> Option<Changes> {
        let mut changes = None;
        while let Some((image, waiting)) = self.waiting.first_key_value()
            && self.may_be_placed(image, waiting)
            && let Some((image, waiting)) = self.waiting.pop_first()
        {
            let changes = changes.get_or_insert_with(Changes::default);
            self.place_one(at, image, waiting, changes);
        }
        if let Some(changes) = &mut changes {
            self.follow(at, None, changes);
        }
        changes
    }

    /// Whether there is room for what the cluster wants of an image.
    fn may_be_placed(&self, image: &Digest, placed: &Placed) -> bool {
        let wanted = self.wants.get(image);
        match wanted.map(|wanted| &wanted.want().references) {
            None if self.wants.len() >= MAX_WANTS => false,
            Some(before) if placed.want.references.is_subset(before) => true,
            before => {
                let mut names = before.cloned().unwrap_or_default();
                names.extend(placed.want.references.iter().cloned());
                self.has_room_for(image, &names)
            }
        }
    }

    fn place_one(&mut self, at: At<'_>, image: Digest, placed: Placed, changes: &mut Changes) {
        let Placed {
            want,
            paused,
            awaited,
        } = placed;
        let priority = want.priority.unwrap_or(0);
        let references = want.references.iter();
        let placement = Placement {
            references: references
                .map(|reference| (reference.clone(), want.asked_ms_of(reference)))
                .collect(),
            hosts: want.hosts.clone(),
            paused,
        };
        self.claims.place(image, placement);
        if let Some(wanted) = self.wants.get_mut(&image) {
            wanted.find_recipe(want.recipe);
        }
        match self.wants.get_mut(&image) {
            None => {
                info!(%image, references = ?want.references, "image is wanted by the cluster");
                // the first wants that the cluster says after a start began before it, at an unknown time
                let timing = match self.placed {
                    true => Timing::New,
                    false => Timing::Unknown,
                };
                self.begin(at, Want { timing, ..want });
                changes.tokens.push((image, Credentials::Asked));
            }
            Some(wanted) => {
                if wanted.take_secrets(want.secrets) {
                    changes.tokens.push((image, Credentials::Changed));
                }
            }
        }
        if let Some(wanted) = self.wants.get_mut(&image) {
            wanted.ranking_mut().place(priority, awaited);
        }
    }

    // ---- recipes ---------------------------------------------------------------------------------------------------

    /// Hosts have this recipe of an image of which the registry has none. `None`: no host that has a session has one,
    /// and what was doubted of the one before stays known. Returns what follows, where that changes anything.
    pub(super) fn fleet_recipe(&mut self, image: &Digest, recipe: Option<Blob>) -> Option<Changes> {
        let wanted = self.wants.get(image)?;
        // hosts couldn't tell the bytes of such a recipe from those of an image
        let known = wanted.want().recipe;
        let recipe = recipe.filter(|of| known == Some(*of) || !self.is_content(&of.digest));
        if !wanted.may_have_fleets_recipe() || wanted.recipe() == recipe {
            return None;
        }
        let wanted = self.wants.get_mut(image)?;
        let mut changes = Changes {
            news: vec![*image],
            ..Changes::default()
        };
        if wanted.take_fleets_recipe(recipe) {
            info!(%image, ?recipe, "hosts have made a recipe of the image");
            changes.events.push(Event::OtherRecipe(*image));
            changes.asked = self.if_asked(image);
        }
        Some(changes)
    }

    /// An image's recipe can't be had. It isn't taken again before somebody asks for the image again. `None` where the
    /// image has another one, or none.
    pub(super) fn lose_recipe(&mut self, image: &Digest, recipe: &Digest) -> Option<Changes> {
        let wanted = self.wants.get_mut(image)?;
        if !wanted.lose_recipe(recipe) {
            return None;
        }
        let events = wanted.is_planned().then(|| wanted.event());
        Some(Changes {
            events: events.into_iter().collect(),
            news: vec![*image],
            asked: self.if_asked(image),
            ..Changes::default()
        })
    }

    /// Somebody asks for an image again: a recipe that couldn't be had may be had now.
    pub(super) fn forgive_recipe(&mut self, image: &Digest) {
        if let Some(wanted) = self.wants.get_mut(image) {
            wanted.forgive_recipe();
        }
    }

    /// The worth of a host's word that the image's recipe doesn't fit a content's bytes. The host has the content's
    /// lease.
    pub(super) fn may_doubt(&self, doubt: &Doubt) -> Heard {
        let wanted = self.wants.get(&doubt.image);
        wanted.map_or(Heard::Nonsense, |wanted| wanted.may_doubt(doubt))
    }

    /// The image's recipe isn't used for a content any more, whose bytes don't fit it from this chunk on. Returns what
    /// hosts are told. `None` where the image has no recipe, or this is known.
    pub(super) fn leave_recipe(&mut self, left: RecipeLeft) -> Option<(Doubt, Changes)> {
        let RecipeLeft { image, content, .. } = left;
        let chunk = ChunkIndex(left.chunk);
        let wanted = self.wants.get_mut(&image)?;
        let want = wanted.want();
        let doubt = Doubt {
            image,
            recipe: want.recipe?.digest,
            content,
            chunk,
        };
        if want.recipe_doubts.contains_key(&content) {
            return None;
        }
        if want.recipe_doubts.len() >= MAX_DOUBTED {
            // nothing is left of it that is worth an order
            let changes = self.lose_recipe(&doubt.image, &doubt.recipe)?;
            return Some((doubt, changes));
        }
        wanted.doubt(content, chunk);
        let changes = Changes {
            ordered: vec![image],
            asked: self.if_asked(&image),
            ..Changes::default()
        };
        Some((doubt, changes))
    }

    /// The image, where operators want it: what is kept of it is to be written to disk.
    fn if_asked(&self, image: &Digest) -> Vec<Digest> {
        let asked = self.claims.asked(image).is_some();
        asked.then_some(*image).into_iter().collect()
    }

    // ---- what is wanted in all -------------------------------------------------------------------------------------

    /// An image is wanted that wasn't wanted before. The plan is told later.
    fn begin(&mut self, at: At<'_>, want: Want) {
        let everywhere = is_everywhere(at.hosts, at.presence, &want);
        let took = Took::of(want.timing, at.now, at.unix_ms, everywhere);
        self.wants.insert(want.digest(), Wanted::new(want, took));
    }

    /// Hosts joined the fleet. Where images share a name, the hosts of each image have to be computed anew.
    pub(super) fn fleet_changed(&mut self, at: At<'_>) -> Changes {
        let mut changes = Changes::default();
        self.follow(at, None, &mut changes);
        changes
    }

    /// Brings the planned images in line with the claims. `asked`: operators asked for this image just now.
    ///
    /// The plan is told of additional wants first, and of ended wants last. So a content that both kinds of images
    /// share stays where it is.
    fn follow(&mut self, at: At<'_>, asked: Option<Digest>, changes: &mut Changes) {
        let (mut over, mut news) = (Vec::new(), false);
        for (image, wanted) in &mut self.wants {
            let sum = self.claims.wanted(image, at.hosts.ids());
            let Some(sum) = sum.filter(|sum| !sum.references.is_empty()) else {
                over.push(*image);
                continue;
            };
            let anew = asked == Some(*image) || !wanted.is_planned();
            let entitled = wanted.entitled() != sum.entitled.as_ref();
            let (more, changed) = wanted.take(sum);
            let recipe = wanted.take_other_recipe();
            if entitled || recipe {
                changes.news.push(*image);
            }
            if recipe && self.claims.asked(image).is_some() {
                changes.asked.push(*image);
            }
            let sides = Sides {
                operators: self.claims.asked(image).is_some(),
                cluster: self.claims.is_placed(image),
            };
            let first_ms = self.claims.first_asked(image).unwrap_or(0);
            let ranked = wanted.rank(sides, first_ms);
            if !changed && !anew && !recipe {
                changes.events.extend(ranked);
                continue;
            }
            news = true;
            wanted.set_planned(true);
            changes.ordered.push(*image);
            // after a start, the first wants of the cluster aren't new: they were wanted before the start
            if more && (asked == Some(*image) || self.placed) {
                let everywhere = is_everywhere(at.hosts, at.presence, wanted.want());
                wanted.time_mut().anew(at.now, at.unix_ms, everywhere);
            }
            if recipe {
                changes.events.push(Event::OtherRecipe(*image));
            }
            changes.events.push(wanted.event());
            changes.events.extend(ranked);
        }
        changes.names |= news || !over.is_empty();
        for image in over {
            if self.claims.claimed(&image).is_empty() {
                info!(%image, "image isn't wanted any more");
                let wanted = self.wants.remove(&image);
                if wanted.is_some_and(|wanted| wanted.is_planned()) {
                    changes.events.push(Event::Cancelled(image));
                }
                changes.over.push(image);
            } else if let Some(wanted) = self.wants.get_mut(&image)
                && wanted.set_planned(false)
            {
                warn!(%image, "image is staged nowhere: later asks want other images under all its names");
                changes.events.push(Event::Cancelled(image));
            }
        }
    }

    /// Whether hosts can report all names of all images, if the image has these names.
    fn has_room_for(&self, image: &Digest, names: &BTreeSet<String>) -> bool {
        let others = self.wants.iter().filter(|(other, _)| *other != image);
        let others = others.flat_map(|(_, wanted)| &wanted.want().references);
        let bytes: usize = others.chain(names).map(String::len).sum();
        bytes <= MAX_NAME_BYTES
    }

    /// All that operators wanted before this start is among the wants.
    pub(super) const fn recalled(&mut self) {
        self.recalled = true;
    }

    /// All that the cluster wanted before this start is among the wants.
    pub(super) const fn placed(&mut self) {
        self.placed = true;
    }

    /// Whether all that was wanted before this start is among the wants.
    pub(super) const fn are_known(&self) -> bool {
        self.recalled && self.placed
    }

    /// Takes note that an image is everywhere. Returns how long that took, at the first call only.
    pub(super) fn everywhere(
        &mut self,
        now: Moment,
        image: &Digest,
    ) -> Option<std::time::Duration> {
        let wanted = self.wants.get_mut(image)?;
        wanted.time_mut().everywhere(now)
    }

    /// Images whose staging began, each with the time of that in Unix milliseconds, and for which nothing was predicted
    /// since.
    pub(super) fn unpredicted(&self) -> Vec<(Digest, u64)> {
        let wants = self.wants.iter().filter_map(|(image, wanted)| {
            let since = wanted.time().begun_here()?;
            let before = wanted.want().predicted.as_ref();
            let is_new = before.is_none_or(|before| before.view.at_ms != since);
            is_new.then_some((*image, since))
        });
        wants.collect()
    }

    /// Keeps what was predicted when an image's staging began.
    pub(super) fn predicted(&mut self, image: &Digest, predicted: Predicted) {
        if let Some(wanted) = self.wants.get_mut(image) {
            wanted.keep_predicted(predicted);
        }
    }

    /// A new number, greater than those of all earlier asks.
    pub(super) const fn next_number(&mut self) -> u64 {
        self.claims.advance()
    }

    /// The image that each reference shall name on this host.
    pub(super) fn names_on(&self, host: &HostId) -> Names {
        self.claims.on(host)
    }

    /// The references of this image that a later ask wants for another image, each with that other image.
    pub(super) fn overruled(&self, image: &Digest) -> Vec<(String, Digest)> {
        self.claims.overruled(image)
    }

    /// Images that the cluster wants and that wait for room.
    pub(super) fn waiting(&self) -> BTreeSet<Digest> {
        self.waiting.keys().copied().collect()
    }

    fn is_content(&self, digest: &Digest) -> bool {
        let contents = self
            .wants
            .values()
            .flat_map(|of| of.want().layout.contents());
        contents.into_iter().any(|of| of.digest == *digest)
    }

    /// The wanted images that contain this content, or have it as their recipe.
    pub(super) fn with(&self, content: &Digest) -> Vec<Digest> {
        let has = |wanted: &Wanted| {
            let contents = wanted.want().layout.contents();
            let recipe = wanted.want().recipe.is_some_and(|of| of.digest == *content);
            recipe || contents.iter().any(|of| of.digest == *content)
        };
        let found = self.wants.iter().filter(|(_, wanted)| has(wanted));
        found.map(|(image, _)| *image).collect()
    }

    pub(super) fn get(&self, image: &Digest) -> Option<&Wanted> {
        self.wants.get(image)
    }

    pub(super) fn contains(&self, image: &Digest) -> bool {
        self.wants.contains_key(image)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Digest> {
        self.wants.keys()
    }

    /// The time of an ask that comes now, in Unix milliseconds.
    #[cfg(test)]
    pub(super) fn asked_now(&self, unix_ms: u64) -> u64 {
        self.claims.asked_now(unix_ms)
    }
}

#[cfg(test)]
mod tests;
