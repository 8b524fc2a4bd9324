//! The repositories of a blob: those by which clients read the blob, and those that have its recipe. The recipe proves
//! the blob to readers by the latter alone.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use proto::ContentRecipe;

use crate::lock::lock;

/// The most repositories of one blob that are known to be read, and the most that are known to have its recipe. No
/// recipe proves the blob to readers by other repositories.
const MAX_REPOSITORIES: usize = 64;

/// The repositories of a blob.
#[derive(Debug, Default)]
pub(super) struct Repositories {
    /// The repositories by which clients read the blob since this process began it. Locked for look-ups.
    read_by: Mutex<BTreeSet<String>>,
    /// The recipe that the blob took, and the repositories that have this recipe or an equal one. Locked for look-ups,
    /// and while a recipe is taken.
    proved_by: Mutex<Option<(Arc<ContentRecipe>, BTreeSet<String>)>>,
}

impl Repositories {
    /// A client reads the blob by this repository.
    pub(super) fn read(&self, repository: &str) {
        let mut read_by = lock(&self.read_by);
        if read_by.len() < MAX_REPOSITORIES {
            read_by.insert(repository.to_owned());
        }
    }

    /// Whether a client read the blob by this repository.
    pub(super) fn is_read_by(&self, repository: &str) -> bool {
        lock(&self.read_by).contains(repository)
    }

    /// Whether the recipe that the blob took is this repository's.
    pub(super) fn is_proved_by(&self, repository: &str) -> bool {
        let proved_by = lock(&self.proved_by);
        let of = proved_by.as_ref();
        of.is_some_and(|(_, by)| by.contains(repository))
    }

    /// A repository has this recipe of the blob. If the blob hasn't taken one yet, `take` has it take this one. Returns
    /// whether the recipe proves the blob to readers by this repository now.
    ///
    /// # Errors
    /// Why the blob doesn't take it, as `take` says.
    pub(super) fn prove<E>(
        &self,
        repository: &str,
        recipe: &Arc<ContentRecipe>,
        take: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        // held until it is known whose recipe the blob's is: of two that come together it takes one
        let mut proved_by = lock(&self.proved_by);
        if let Some((taken, by)) = &mut *proved_by {
            let proves = taken == recipe && by.len() < MAX_REPOSITORIES;
            if proves {
                by.insert(repository.to_owned());
            }
            return Ok(proves);
        }
        take()?;
        *proved_by = Some((recipe.clone(), BTreeSet::from([repository.to_owned()])));
        Ok(true)
    }
}
