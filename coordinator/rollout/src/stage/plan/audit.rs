//! Finds contents that are thought to be complete on some host and may not be: the holder was killed and lost its last
//! second of work, or it can't serve them.
//!
//! When hosts that stage a content find no source of it, the content is leased again, even while other contents move.
//! The lease goes first to the host that is thought to hold the content; a host that does hold it gives the lease back.
//! So hosts that wrongly say that they find no source do little harm: the price is one lease, whose holder asks its
//! peers first. Each further doubt of the same content waits twice as long, unless chunks came in between.

use alloc::{collections::BTreeSet, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId};

use super::{images::Image, view::View};

/// After this long without movement anywhere, contents that are thought to be complete somewhere are asked for again.
/// This covers agents of the previous version, which don't say which contents they find no source of.
const AUDIT_AFTER: Duration = Duration::from_secs(20);
/// Hosts that lack a content must report for this long that they find no source, before the content is doubted. The
/// supposed holder must have been connected as long. Passing a chunk on to the last host takes a few seconds.
const DOUBT_AFTER: Duration = Duration::from_secs(5);
/// Added to `DOUBT_AFTER` for each host of the fleet: in a larger fleet a spread takes longer.
const DOUBT_PER_HOST: Duration = Duration::from_millis(10);
/// This many hosts must find no source of a content, unless fewer lack it.
const DOUBTERS: usize = 2;

/// Contents to doubt, because hosts find no source of them.
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
    // A host that is or was away for a moment brings back what it holds. A host that completed the content just now is
    // still passing it on.
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

/// Contents of the images that hosts lack and could fetch. When nothing moves, these contents may be nowhere.
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
