//! Contents that are thought to be complete somewhere and may not be: their holder was killed and lost the last
//! second, or it can't serve them.
//!
//! A content is leased again when hosts that stage find no source of it, whatever else moves. The lease goes first to
//! the host that is thought to hold the content, which gives the lease back if it does. The word of the hosts without
//! a source moves little: it costs one lease, whose holder asks its peers first. The next doubt of the same content
//! waits for twice as long, unless chunks came.

use alloc::{collections::BTreeSet, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId};

use super::{images::Image, view::View};

/// Nothing moves anywhere for this long: what is thought to be complete somewhere is asked for again. Hosts of the
/// version before don't say which contents they find no source of.
const AUDIT_AFTER: Duration = Duration::from_secs(20);
/// Hosts that lack a content and find no source of it say so for this long before it is doubted that somebody holds
/// it; and whoever is thought to hold it has been here as long. Passing a chunk on to the last host takes a few
/// seconds.
const DOUBT_AFTER: Duration = Duration::from_secs(5);
/// And so much longer for each host of the fleet: a spread takes longer where there are more to spread to.
const DOUBT_PER_HOST: Duration = Duration::from_millis(10);
/// So many hosts have to find no source of a content, where so many lack it.
const DOUBTERS: usize = 2;

/// Contents that it is to be doubted of that somebody holds them, because hosts find no source of them.
pub(super) fn without_source(view: View<'_>) -> Vec<Digest> {
    let hosts = u32::try_from(view.hosts.len()).unwrap_or(u32::MAX);
    let patience = DOUBT_AFTER + DOUBT_PER_HOST.saturating_mul(hosts);
    let found = view.hosts.without_source(view.now, patience);
    found
        .into_iter()
        .filter(|(digest, by)| is_doubtful(view, *digest, by, patience))
        .map(|(digest, _)| digest)
        .collect()
}

fn is_doubtful(view: View<'_>, digest: Digest, by: &BTreeSet<&HostId>, patience: Duration) -> bool {
    let Some(content) = view.contents.get(&digest) else {
        return false;
    };
    // who is away for a moment, or was, brings back what it holds; who completed it just now is passing it on
    let settled = content.done().iter().all(|(id, done_at)| {
        view.hosts.get(id).is_none_or(|host| {
            let here = view.now.since(host.since()) >= patience;
            here && view.now.since(*done_at) >= patience
        })
    });
    if view.leases.contains(&digest)
        || !content.may_be_doubted(view.now)
        || !settled
        || !view.is_done(content)
    {
        return false;
    }
    let wanted = |image: &&Image| {
        !image.is_mirrors() && view.wants(image, &digest) && view.origin_wait(image).is_none()
    };
    let lacking: BTreeSet<&HostId> = view
        .images
        .iter()
        .filter(wanted)
        .flat_map(|image| view.candidates(image))
        .collect();
    let enough = match content.receipts().receivers() {
        0 => DOUBTERS.min(lacking.len()).max(1),
        receivers => view.config.share(receivers),
    };
    by.intersection(&lacking).count() >= enough
}

/// Whether nothing is leased and nothing moves anywhere.
pub(super) fn is_still(view: View<'_>) -> bool {
    view.leases.is_empty() && view.now.since(view.contents.moved_at()) >= AUDIT_AFTER
}

/// Contents of the images that hosts lack and could fetch: where nothing moves, they may be nowhere.
pub(super) fn lacking(view: View<'_>) -> BTreeSet<Digest> {
    let lack = |image: &&Image| {
        view.is_live(image)
            && view.origin_wait(image).is_none()
            && !view.candidates(image).is_empty()
    };
    let those = view.images.iter().filter(lack);
    those
        .flat_map(|image| image.contents().iter().copied())
        .collect()
}

#[cfg(test)]
mod tests;
