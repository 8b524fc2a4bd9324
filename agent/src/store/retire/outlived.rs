//! Goldens that outlived their names: the image is wanted under other names by now, as after a release that only
//! renames it. The image stays; the golden of the old name goes by the rule for old images.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    time::SystemTime,
};

use proto::Digest;
use tracing::{info, warn};

use super::{
    super::{Store, steps::step, tree::remove_any},
    decide::{Old, decide_outlived},
};
use super::{
    Asked, Goldens, Installed, goldens_and_installed, lock_places, look_at_orphans, machines,
    move_out,
};
use crate::{
    golden,
    lock::lock,
    retention::Terms,
    tart::{Reference, cache},
};

/// A golden of a name that its image, which is wanted, has lost.
#[derive(Clone, Debug)]
pub(super) struct Outlived {
    pub(super) image: Digest,
    pub(super) reference: Reference,
    pub(super) golden: String,
    old: Old,
}

/// The goldens that go by these terms.
///
/// # Errors
/// When the local VMs can't be listed.
pub(super) fn going(
    home: &Path,
    installed: &[Installed],
    goldens: &Goldens,
    terms: &Terms,
    now: SystemTime,
) -> io::Result<Vec<Outlived>> {
    let all = outlived(home, installed, goldens);
    if all.is_empty() {
        return Ok(all);
    }
    let machines = machines(home, goldens)?;
    let facts: Vec<Old> = all.iter().map(|golden| golden.old.clone()).collect();
    let go = decide_outlived(&facts, &machines, terms, now);
    let going = all.into_iter().zip(go).filter(|(_, goes)| *goes);
    Ok(going.map(|(golden, _)| golden).collect())
}

fn outlived(home: &Path, installed: &[Installed], goldens: &Goldens) -> Vec<Outlived> {
    let mut wanted: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
    for of in installed.iter().filter(|of| !of.wanted.is_empty()) {
        let places = of.wanted.iter().map(Reference::place);
        wanted.entry(of.image).or_default().extend(places);
    }
    let mut all = Vec::new();
    for (image, wanted) in wanted {
        for golden in goldens.get(&image).into_iter().flatten() {
            let (name, Some(reference)) = golden else {
                // the mark of an earlier version names no reference
                continue;
            };
            let is_old = !wanted.contains(&reference.place());
            if is_old
                && cache::vm_directory(home, name).is_dir()
                && let Some(old) = look_at_orphans(home, image, std::slice::from_ref(golden))
            {
                all.push(Outlived {
                    image,
                    reference: reference.clone(),
                    golden: name.clone(),
                    old,
                });
            }
        }
    }
    all
}

/// Retires the goldens that may go. What can't be looked at, or is locked by tart, is tried again with the next call.
pub(super) fn retire(store: &Store, terms: Asked<'_>, now: SystemTime) {
    let home = store.shared.home();
    let look = || {
        let Some(terms) = terms() else {
            return Ok(Vec::new());
        };
        let (goldens, installed) = goldens_and_installed(store);
        going(home, &installed, &goldens, &terms, now)
    };
    let remove = || -> io::Result<()> {
        if look()?.is_empty() {
            return Ok(());
        }
        let _changing = lock(&store.changing);
        let Some(_locks) = lock_places(home, &[])? else {
            return Ok(());
        };
        // somebody may have cloned a golden, run it or wanted its name since it was looked at without the locks
        for Outlived {
            image,
            reference,
            golden,
            ..
        } in look()?
        {
            move_out(home, &cache::vm_directory(home, &golden))?;
            step("golden moved")?;
            remove_any(&golden::mark_path(home, &golden))?;
            info!(%image, %reference, golden, "an old golden is retired: its image is wanted under other names only");
        }
        Ok(())
    };
    if let Err(error) = remove() {
        warn!(%error, "goldens of old names couldn't be retired; it is tried again");
    }
}
