//! What hosts are told to do with an image: to stage it, to keep what they have of it, or to give it up. A host that is
//! away hears of that when it connects, or after its next report (`standings`).

use alloc::collections::BTreeSet;

use proto::{Digest, HostId};

use super::{desk::Desk, images::Change};
use crate::stage::Action;

/// Tells a host that connected what it is to do with each image.
pub(super) fn greet(desk: &mut Desk<'_>, id: &HostId) {
    for known in desk.images.iter() {
        let (host, image) = (id.clone(), known.digest());
        if known.is_kept_on(id) {
            // after a restart the host stages on by itself with what it finds on its disk
            desk.effects.push(Action::Pause { host, image });
        } else if known.contradicts().is_none() && known.selects(id, desk.hosts) {
            desk.effects.push(Action::Stage { host, image });
        }
    }
}

/// Tells hosts what an order changes for them.
pub(super) fn change(desk: &mut Desk<'_>, image: Digest, change: Change) {
    let Some(ordered) = desk.images.get(&image) else {
        return;
    };
    let selected = ordered.selected(desk.hosts);
    for host in &selected {
        let news = change.renamed || change.selected.binary_search(host).is_err();
        if ordered.contradicts().is_none() && desk.hosts.is_connected(host) && news {
            let host = host.clone();
            desk.effects.push(Action::Stage { host, image });
        }
    }
    let keepers = ordered.keepers();
    for host in keepers.difference(&change.keepers) {
        let host = host.clone();
        desk.effects.push(Action::Pause { host, image });
    }
    let before: BTreeSet<HostId> = change.selected.into_iter().chain(change.keepers).collect();
    for host in before {
        if selected.binary_search(&host).is_err() && !keepers.contains(&host) {
            desk.effects.push(Action::Cancel { host, image });
        }
    }
}

/// Tells the hosts of an image to stage it.
pub(super) fn stage(desk: &mut Desk<'_>, image: Digest) {
    let ordered = desk.images.get(&image);
    for host in ordered.map_or_else(Default::default, |ordered| ordered.selected(desk.hosts)) {
        if desk.hosts.is_connected(&host) {
            desk.effects.push(Action::Stage { host, image });
        }
    }
}

/// Tells a host that an image isn't wanted on it any more.
pub(super) fn cancel(desk: &mut Desk<'_>, host: HostId, image: Digest) {
    if desk.hosts.is_connected(&host) {
        desk.effects.push(Action::Cancel { host, image });
    }
}
