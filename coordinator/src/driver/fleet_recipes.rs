//! The fleet's own recipes: what hosts say of them. [`rollout::recipes`] decides which recipe is used, and which host
//! makes one.

use std::time::Duration;

use proto::{Digest, HostId, Moment, image::Blob, recipe::Recipe};
use rollout::recipes::{At, Decision, Host, Makers};

use super::{hosts::Hosts, images::Images, sessions::Sessions};
use crate::{progress::Progress, view::HostState};

/// What hosts say of recipes is looked at this often. It costs a look at each host for each image.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct FleetRecipes {
    makers: Makers,
    looked: Option<Moment>,
    /// Whether the fleet has recipes of its own. Otherwise no host is asked, and none is believed.
    is_on: bool,
}

impl FleetRecipes {
    /// Nobody was asked yet. `is_on`: hosts are asked to make recipes, and what they say of recipes is believed.
    pub(super) fn new(is_on: bool) -> Self {
        Self {
            makers: Makers::default(),
            looked: None,
            is_on,
        }
    }

    /// What follows for each image that has no recipe from the registry, if it is time to look.
    pub(super) fn look(
        &mut self,
        now: Moment,
        (hosts, sessions): (&Hosts, &Sessions),
        images: &Images,
    ) -> Vec<(Digest, Decision)> {
        let looked = self.looked.is_some_and(|at| now.since(at) < LOOK_EVERY);
        // no image has a recipe of the fleet before the first look
        if looked || !self.is_on {
            return Vec::new();
        }
        self.looked = Some(now);
        let mut decisions = Vec::new();
        for image in images.ids() {
            let Some(wanted) = images.get(image).filter(|of| of.may_have_fleets_recipe()) else {
                self.makers.forget(image);
                continue;
            };
            let layout = &wanted.want().layout;
            let most = Recipe::max_bytes(layout);
            let usable = |recipe: &Blob| recipe.size <= most && !wanted.has_lost(&recipe.digest);
            let selected = hosts.iter().filter(|(id, _)| wanted.selects(id));
            let facts = selected.filter_map(|(id, known)| {
                let session = sessions.number(id)?;
                let progress = known.images.get(image);
                let at = match progress.map_or(At::Comes, |of| standing(of.state)) {
                    At::Comes if wanted.is_paused(id) => At::Waits,
                    at => at,
                };
                let has = progress.and_then(Progress::recipe).filter(usable);
                Some(Host {
                    id,
                    session,
                    image: at,
                    can_make: known.makes_recipes,
                    making: progress.map(Progress::making).unwrap_or_default(),
                    backlog_bytes: known.backlog_bytes,
                    // where an image comes, nothing has proved its recipe yet
                    has: has.filter(|_| at == At::Present),
                    refuses: progress.and_then(Progress::refused_recipe),
                })
            });
            let facts: Vec<Host<'_>> = facts.collect();
            let of = (*image, layout.content_bytes());
            let before = wanted.recipe();
            decisions.push((*image, self.makers.decide(now, of, before, &facts)));
        }
        decisions
    }

    /// The image isn't wanted any more.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.makers.forget(image);
    }
}

const fn standing(state: HostState) -> At {
    match state {
        HostState::Present => At::Present,
        HostState::Waiting | HostState::Queued | HostState::Staging | HostState::Installing => {
            At::Comes
        }
        HostState::Failed | HostState::Gone => At::Waits,
    }
}

/// A host is asked to make a recipe.
pub(super) fn say_asked(host: &HostId, image: &Digest) {
    tracing::info!(%host, %image, "the registry has no recipe of an image; a host that holds the image makes one");
}
