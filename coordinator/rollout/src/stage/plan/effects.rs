//! The effects of an event: actions for the shell, and whether the plan should look for new leases.

use alloc::{collections::VecDeque, vec::Vec};

use proto::{Digest, HostId};

use crate::stage::{
    Action,
    action::{RecipeLoss, RevokeCause},
};

/// An image, its recipe that can't be had, and why.
pub(super) type LostRecipe = (Digest, Digest, RecipeLoss);

/// Effects that the plan's parts have asked for and that nobody has carried out yet.
#[derive(Debug, Default)]
pub(super) struct Effects {
    actions: VecDeque<Action>,
    lost_recipes: Vec<LostRecipe>,
    grant: bool,
}

impl Effects {
    /// One more thing for the shell to do, after all others.
    pub(super) fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Takes the lease of a content back from a host.
    pub(super) fn revoke(&mut self, host: &HostId, content: Digest, cause: RevokeCause) {
        self.push(Action::Revoke {
            host: host.clone(),
            content,
            cause,
        });
    }

    /// An image is to go on without its recipe.
    pub(super) fn lose_recipe(&mut self, lost: LostRecipe) {
        self.lost_recipes.push(lost);
    }

    /// The images that are to go on without their recipes. Each is returned once.
    pub(super) fn take_lost_recipes(&mut self) -> Vec<LostRecipe> {
        core::mem::take(&mut self.lost_recipes)
    }

    /// Something happened that may let a lease be granted.
    pub(super) const fn ask_for_grants(&mut self) {
        self.grant = true;
    }

    /// Whether something happened since the last call that may let a lease be granted.
    pub(super) const fn take_ask_for_grants(&mut self) -> bool {
        core::mem::replace(&mut self.grant, false)
    }

    /// The next thing for the shell to do.
    pub(super) fn next(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    #[cfg(test)]
    pub(super) const fn is_asked_for_grants(&self) -> bool {
        self.grant
    }
}
