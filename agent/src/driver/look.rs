//! A look at the disk: the images in tart's cache, and their names.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use proto::Digest;

use super::trouble::Trouble;
use crate::{
    golden::Goldens,
    reconcile::{Look, Sight},
    store::Store,
    tart::Fitness,
};

/// The findings of a look at the disk.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(super) look: Look,
    /// Images that are in tart's cache.
    pub(super) there: BTreeSet<Digest>,
    /// Those of them that this host's tart is known not to see, with the reason.
    pub(super) refused: BTreeMap<Digest, Trouble>,
    pub(super) began: Instant,
}

impl Seen {
    /// Looks at the disk. Where this host's tart is known not to see an image, its names name nothing. Blocks for a few
    /// system calls for each image and name, and while another tart than before is asked for its version.
    pub(super) fn look(store: &Store, goldens: Option<&Goldens>, fitness: &Fitness) -> Self {
        let began = Instant::now();
        let (mut look, mut there) = (Look::default(), BTreeSet::new());
        let mut refused = BTreeMap::new();
        for found in store.presence() {
            there.insert(found.digest);
            for name in found.moved {
                look.names.entry(name).or_insert(Sight::Other);
            }
            let stage = store.stage(&found.digest);
            let unfit = stage.and_then(|stage| fitness.refuses(stage.layout().format()));
            let usable = unfit.is_none();
            refused.extend(unfit.map(|unfit| (found.digest, unfit.into())));
            for name in found.references {
                let golden = goldens.is_none_or(|goldens| goldens.exists(&name, found.digest));
                let sight = match golden && usable {
                    true => Sight::Image(found.digest),
                    false => Sight::Nothing,
                };
                look.names.insert(name, sight);
            }
        }
        Self {
            look,
            there,
            refused,
            began,
        }
    }
}
