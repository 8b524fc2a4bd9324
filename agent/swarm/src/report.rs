//! The swarm's report about one content.

use core::time::Duration;

use proto::Moment;

use crate::{
    agenda::TICK,
    content::Content,
    downloads::Downloads,
    event::ContentId,
    ground::Ground,
    status::{ContentStatus, Stall},
};

/// A registry is silent if it was asked this long ago and has given nothing since. Below that it is being asked: a
/// connection is made, redirects are followed, and a first chunk is decoded.
const SILENT_AFTER: Duration = Duration::from_secs(3);

pub(crate) fn content_status(
    ground: &Ground,
    downloads: &Downloads,
    now: Moment,
    (id, content): (ContentId, &Content),
) -> ContentStatus {
    let requested = downloads.of(id);
    let idle = now.since(content.grown_at);
    let stalled = !content.held.is_full() && idle >= TICK;
    let lease = content.lease.as_ref();
    ContentStatus {
        id,
        chunks: content.chunks(),
        held: content.held.count(),
        requested: u32::try_from(requested).unwrap_or(u32::MAX),
        leased: lease.is_some(),
        paced: lease.is_some_and(|lease| lease.ordered == 0),
        silent: lease.and_then(|lease| lease.silent(now)),
        idle,
        stall: stalled.then(|| stall(ground, downloads, now, (id, content))),
    }
}

fn stall(
    ground: &Ground,
    downloads: &Downloads,
    now: Moment,
    (id, content): (ContentId, &Content),
) -> Stall {
    if content.not_stored {
        return Stall::NotStored;
    }
    if content.is_paused(now) {
        return Stall::LostAgain;
    }
    let mut budget = ground.pace.budget();
    let throttled = !budget.allows(now);
    if let Some(lease) = &content.lease {
        return if lease.blocked_since.is_some() {
            Stall::PeersSlow
        } else {
            match lease.silent(now) {
                // our own limit holds the content up, and not the registry
                None if throttled => Stall::Throttled,
                None => Stall::Paced,
                Some(silent) if silent < SILENT_AFTER => Stall::Fetching,
                Some(_) => Stall::OriginSilent,
            }
        };
    }
    if downloads.of(id) > 0 {
        return Stall::PeersSlow;
    }
    if throttled {
        return Stall::Throttled;
    }
    if content.has_news() {
        let first = ground.contents.incomplete().next().map(|(_, first)| first);
        let grace = ground.grace.time() * 2;
        let expected = |at| ground.now.since(at) < grace;
        return if downloads.requests() >= ground.config.requests && first != Some(id) {
            Stall::AwaitingTurn
        } else if content.pushed_at.is_some_and(expected) {
            Stall::AwaitingPush
        } else {
            Stall::PeersBusy
        };
    }
    let (up, roster) = (ground.fleet.up(), ground.fleet.roster());
    let mut hosts = roster.iter().map(|index| &ground.fleet[*index]);
    if content.origin_failed {
        Stall::OriginFailed
    } else if up.is_empty() && hosts.any(|host| host.is_quarantined()) {
        Stall::SourcesQuarantined
    } else if up.is_empty() && !roster.is_empty() {
        Stall::NoPeers
    } else if content.pushed_at.is_some() {
        Stall::NoSource
    } else {
        Stall::AwaitingLease
    }
}
