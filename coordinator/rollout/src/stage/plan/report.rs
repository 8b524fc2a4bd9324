//! Describes where staging stands, and why each image isn't everywhere yet.

use alloc::vec::Vec;

use proto::HostId;

use super::{
    images::Image,
    view::{View, Wait},
};
use crate::stage::{
    event::{Fault, Standing},
    status::{HostReason, HostStatus, ImageReason, ImageStatus, LeaseStatus, Status},
};

/// Where everything stands.
pub(super) fn status(view: View<'_>) -> Status {
    let leases = view.leases.iter().map(|(digest, lease)| LeaseStatus {
        content: *digest,
        range: lease.range(),
        host: lease.host().clone(),
        chunks: lease.chunks(),
        bytes_per_s: lease.bytes_per_s(view.now),
        idle: view.now.since(lease.progress_at()),
    });
    Status {
        images: view
            .images
            .iter()
            .map(|image| image_status(view, image))
            .collect(),
        leases: leases.collect(),
        quarantined: view.hosts.quarantined().cloned().collect(),
    }
}

fn image_status(view: View<'_>, image: &Image) -> ImageStatus {
    let hosts: Vec<HostStatus> = image
        .selected(view.hosts)
        .into_iter()
        .map(|id| HostStatus {
            standing: image.standing(&id),
            held_bytes: image.held_bytes(&id),
            reason: host_reason(view, image, &id),
            host: id,
        })
        .collect();
    ImageStatus {
        image: image.digest(),
        contents_done: image
            .contents()
            .iter()
            .filter_map(|digest| view.contents.get(digest))
            .filter(|content| view.is_done(content))
            .count(),
        contents: image.contents().len(),
        origin_retry_in: wait(view, image).map(|wait| wait.left),
        reason: image_reason(view, image, &hosts),
        hosts,
    }
}

/// How long nothing is asked for, because the repository is left alone, or each content that some host lacks.
fn wait(view: View<'_>, image: &Image) -> Option<Wait> {
    view.origin_wait(image)
        .or_else(|| view.contents_wait(image))
}

fn host_reason(view: View<'_>, image: &Image, id: &HostId) -> Option<HostReason> {
    let standing = image.standing(id);
    if standing == Some(Standing::Present) {
        return None;
    }
    let Some(host) = view.hosts.get(id) else {
        return Some(HostReason::Disconnected);
    };
    Some(if !host.is_trusted() {
        HostReason::Quarantined
    } else if !host.is_connected() {
        HostReason::Disconnected
    } else if view.is_undecided(image) {
        HostReason::Queued
    } else if !view.is_live(image) {
        HostReason::ImageFailed
    } else {
        match standing {
            None | Some(Standing::Present) => HostReason::AwaitingReport,
            Some(Standing::Queued) => HostReason::Queued,
            Some(Standing::Staging) => HostReason::Staging,
            Some(Standing::Installing) => HostReason::Installing,
            Some(Standing::Failed) => HostReason::Failed,
            Some(Standing::Gone) => HostReason::Gone,
        }
    })
}

fn image_reason(view: View<'_>, image: &Image, hosts: &[HostStatus]) -> Option<ImageReason> {
    if let (Some(_), Some(content)) = (image.contradicts(), image.disproved()) {
        return Some(ImageReason::ContentFaulty(content, Fault::Bad));
    }
    if image.contradicts().is_some() && view.is_undecided(image) {
        return Some(ImageReason::AwaitingTurn);
    }
    if let Some(content) = image.contradicts() {
        return Some(ImageReason::Contradicts(content));
    }
    if let Some((content, fault)) = view.failure(image) {
        return Some(ImageReason::ContentFaulty(content, fault));
    }
    if hosts.is_empty() {
        return Some(match image.keepers().is_empty() {
            true => ImageReason::NoHosts,
            false => ImageReason::Held,
        });
    }
    let lacking: Vec<HostReason> = hosts.iter().filter_map(|host| host.reason).collect();
    if lacking.is_empty() {
        return None;
    }
    let away =
        |reason: &HostReason| matches!(reason, HostReason::Disconnected | HostReason::Quarantined);
    if lacking.iter().all(away) {
        let connected = |host: &HostStatus| view.hosts.is_connected(&host.host);
        return Some(match hosts.iter().any(connected) {
            true => ImageReason::HostsAway,
            false => ImageReason::NoHostConnected,
        });
    }
    if lacking
        .iter()
        .all(|reason| away(reason) || *reason == HostReason::Failed)
    {
        return Some(ImageReason::HostsFailed);
    }
    Some(fetch_reason(view, image))
}

/// Why an image isn't there yet that hosts lack and could fetch.
fn fetch_reason(view: View<'_>, image: &Image) -> ImageReason {
    let (mut any, mut leased, mut away) = (false, false, false);
    for digest in image.contents() {
        if let Some(content) = view.open(digest) {
            any = true;
            leased |= view.leases.contains(digest);
            away |= content.tries().is_away();
        }
    }
    if !any {
        return ImageReason::Moving;
    }
    match wait(view, image) {
        Some(wait) if wait.asked => ImageReason::OriginThrottled,
        Some(_) => ImageReason::OriginDown,
        // one lease tries whether the registry is back
        None if view.origin_fails(image) => ImageReason::OriginDown,
        None if leased => ImageReason::Moving,
        None if away => ImageReason::OriginDown,
        None if view.nobody_can_ask(image) => ImageReason::HostsFailed,
        None if !view.leases.is_empty() => ImageReason::AwaitingTurn,
        // no lease is ahead of this image: hosts are about to say what they hold
        None => ImageReason::Moving,
    }
}
