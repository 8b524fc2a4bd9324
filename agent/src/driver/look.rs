//! A look at the disk: the images in tart's cache, and their names.

use std::{collections::BTreeSet, time::Instant};

use proto::Digest;

use crate::{
    golden::Goldens,
    reconcile::{Look, Sight},
    store::Store,
};

/// The findings of a look at the disk.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(super) look: Look,
    /// Images that are in tart's cache.
    pub(super) there: BTreeSet<Digest>,
    pub(super) began: Instant,
}

impl Seen {
    /// Looks at the disk. Blocks for a few system calls for each image and name.
    pub(super) fn look(store: &Store, goldens: Option<&Goldens>) -> Self {
        let began = Instant::now();
        let (mut look, mut there) = (Look::default(), BTreeSet::new());
        for found in store.presence() {
            there.insert(found.digest);
            for name in found.moved {
                look.names.entry(name).or_insert(Sight::Other);
            }
            for name in found.references {
                let golden = goldens.is_none_or(|goldens| goldens.exists(&name, found.digest));
                let sight = match golden {
                    true => Sight::Image(found.digest),
                    false => Sight::Nothing,
                };
                look.names.insert(name, sight);
            }
        }
        Self { look, there, began }
    }
}
