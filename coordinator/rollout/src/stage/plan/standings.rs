//! What follows from a host's report about an image: which of the image's contents the host holds, and whether the host
//! has to be told anew that the image isn't wanted there.

use proto::{Digest, HostId};

use super::{desk::Desk, images::News};
use crate::stage::{
    Action,
    event::{Purpose, Standing},
};

/// Learns from a host's report about an image which of the image's contents the host holds.
pub(super) fn learn(
    desk: &mut Desk<'_>,
    id: &HostId,
    digest: Digest,
    standing: Standing,
    (news, held_bytes): (&News, u64),
) {
    let now = desk.now;
    let Some(image) = desk.images.get(&digest) else {
        return;
    };
    let contents = &mut *desk.contents;
    match standing {
        Standing::Present | Standing::Installing => {
            if news.is_change(standing) {
                // without the recipe: a host may have the image and never have had that
                let of = image.contents().iter().copied();
                contents.each(of, |content| content.claim(now, id));
            }
        }
        Standing::Gone => contents.each(image.fetched(), |content| content.forget_host(id)),
        Standing::Staging => {
            // A mirror asks only for what it doesn't hold. For other images: the host may have held the image whole
            // and found it changed, or have lost all of it. Either way it serves the contents to nobody.
            if image.purpose() == Purpose::Mirror || news.was_whole() || held_bytes == 0 {
                contents.each(image.fetched(), |content| content.serves_none(id));
            }
            // the agent was killed before it had journaled the chunks that it reported
            if let Some(heard_at) = news.lost_since {
                contents.each(image.fetched(), |content| content.lose_latest(id, heard_at));
                desk.effects.ask_for_grants();
            }
        }
        Standing::Failed if news.is_change(standing) => {
            // The host takes part in nothing of this image. What it held may still be on its disk, but no peer can
            // get it. Contents that another image of the host shares are still served from there.
            let served = desk.images.served_by(id, &digest);
            let lost = image.fetched().filter(|content| !served.contains(content));
            contents.each(lost, |content| content.serves_none(id));
            desk.effects.ask_for_grants();
        }
        Standing::Queued | Standing::Failed => {}
    }
}

/// A host that was away when an image was cancelled, superseded or wanted elsewhere never got that order. It would
/// stage on and keep the disk space reserved. If the order sent here is lost too, the host's next report, a second
/// later, gets it again.
pub(super) fn clear_leftover(
    desk: &mut Desk<'_>,
    id: &HostId,
    image: Digest,
    standing: Standing,
    wants_known: bool,
) {
    let kept = match desk.images.get(&image) {
        Some(ordered) if ordered.selects(id, desk.hosts) => return,
        Some(ordered) => ordered.is_kept_on(id),
        None => false,
    };
    let staging = match standing {
        Standing::Queued | Standing::Staging | Standing::Failed => true,
        // what is present, or about to be, stays
        Standing::Installing | Standing::Present | Standing::Gone => false,
    };
    if !staging || !desk.hosts.is_connected(id) {
        return;
    }
    let host = id.clone();
    if kept {
        desk.effects.push(Action::Pause { host, image });
    } else if wants_known {
        desk.effects.push(Action::Cancel { host, image });
    }
}
