//! In which order each host is to finish its images, and what hosts were told of that.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use proto::{Digest, HostId};

use super::{
    hosts::Hosts,
    images::{Image, Images},
};
use crate::stage::{event::Standing, sequence::sequence};

/// What hosts were told, and which hosts may have to be told something else.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    told: BTreeMap<HostId, Vec<Digest>>,
    /// Hosts whose order may be another one.
    due: BTreeSet<HostId>,
    /// The order may be another one on any host.
    all_due: bool,
}

impl Sequences {
    /// The host's session is up: it may have forgotten what it was told.
    pub(super) fn connected(&mut self, id: &HostId) {
        self.told.remove(id);
        self.due.insert(id.clone());
    }

    pub(super) fn forget(&mut self, id: &HostId) {
        self.told.remove(id);
        self.due.remove(id);
    }

    /// What is wanted, where, or how urgent it is has changed.
    pub(super) const fn changed(&mut self) {
        self.all_due = true;
    }

    /// The hosts that are to be told an order, each with its images. A host with one image needs no order.
    pub(super) fn take_due(
        &mut self,
        images: &Images,
        hosts: &Hosts,
    ) -> Vec<(HostId, Vec<Digest>)> {
        let due = core::mem::take(&mut self.due);
        let due: Vec<HostId> = match core::mem::take(&mut self.all_due) {
            true => hosts.ids().cloned().collect(),
            false => due.into_iter().collect(),
        };
        let staged = staged(images);
        let mut tell = Vec::new();
        for id in due.into_iter().filter(|id| hosts.is_connected(id)) {
            let of = of_host(staged.iter().copied(), hosts, &id);
            if of.len() > 1 && self.told.get(&id) != Some(&of) {
                self.told.insert(id.clone(), of.clone());
                tell.push((id, of));
            }
        }
        tell
    }
}

/// The images that are to be staged. The blobs that mirrors' clients wait for have no order among them.
fn staged(images: &Images) -> Vec<&Image> {
    images.iter().filter(|image| !image.is_mirrors()).collect()
}

/// The order of these images on a host, as far as they are wanted there.
fn of_host<'a>(images: impl Iterator<Item = &'a Image>, hosts: &Hosts, id: &HostId) -> Vec<Digest> {
    let here = images.filter(|image| image.selects(id, hosts));
    sequence(here.map(|image| (image.digest(), image.urgency(id))))
}

/// How early each of these images is to get leases: 0 where some host is to finish the image before all others of them,
/// 1 where it comes second at best, and so on. Hosts that can't go on with an image, or have it, aren't asked.
pub(super) fn turns(images: &[&Image], hosts: &Hosts) -> BTreeMap<Digest, usize> {
    let mut turns: BTreeMap<Digest, usize> = BTreeMap::new();
    for id in hosts.ids().filter(|id| hosts.is_here(id)) {
        let lacks = images.iter().copied().filter(|image| {
            let standing = image.standing(id);
            matches!(
                standing,
                None | Some(Standing::Queued | Standing::Staging | Standing::Gone)
            )
        });
        for (turn, image) in of_host(lacks, hosts, id).into_iter().enumerate() {
            let best = turns.entry(image).or_insert(turn);
            *best = turn.min(*best);
        }
    }
    turns
}

#[cfg(test)]
mod tests;
