//! Which unfinished images give way to one that comes before them and finds no room.

use std::cmp::Reverse;

use proto::Digest;

use super::catalogue::Catalogue;
use crate::{
    driver::image::{Image, OnDisk},
    reconcile::Reconciler,
    store::{GiveWay, Later, NoRoomError, give_way},
};

/// The images that give way to `first`, whose beginning was `short` of room, each with whether its files are removed.
/// An image that is whole or installed gives way to none, nor does one in whose files a job works just now.
pub(super) fn yields<S: OnDisk>(
    catalogue: &Catalogue<S>,
    reconciler: &Reconciler,
    first: &Digest,
    short: &NoRoomError,
) -> Vec<(Digest, bool)> {
    // how much a removal that runs gives isn't known before its end, and then this image is tried again
    if reconciler.is_room_coming(first) {
        return Vec::new();
    }
    let rank = reconciler.rank(first);
    let may = |image: &&Image<S>| {
        let digest = image.digest();
        let installed = image.stage().is_some_and(OnDisk::is_installed);
        reconciler.rank(&digest) > rank
            && !image.has_all()
            && !installed
            && !reconciler.is_installed(&digest)
            && !reconciler.is_running(&digest)
    };
    let mut later: Vec<&Image<S>> = catalogue.iter().filter(may).collect();
    later.sort_by_key(|image| Reverse(reconciler.rank(&image.digest())));
    let later = later.into_iter().map(Image::digest).map(|image| Later {
        image,
        reserved_bytes: short.kept_for.get(&image).copied().unwrap_or(0),
        // also of an image that waits for room itself, and has no stage in use
        taken_bytes: short.taken_by.get(&image).copied().unwrap_or(0),
    });
    let GiveWay { stopped, removed } = give_way(short.lacking_bytes(), &later.collect::<Vec<_>>());
    let stopped = stopped.into_iter().map(|image| (image, false));
    let removed = removed.into_iter().map(|image| (image, true));
    stopped.chain(removed).collect()
}
