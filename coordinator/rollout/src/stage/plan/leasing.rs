//! How leases proceed and end, by the word of their holders. Which contents are leased next is decided in `grants`.

use alloc::vec::Vec;
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId};

use super::{
    desk::Desk,
    grants::RECIPE_STREAMS,
    hosts::Host,
    leases::{Grant, Lease},
    trouble,
};
use crate::stage::{
    action::RevokeCause,
    event::{Fault, LeaseEnd, Trouble},
};

/// Ranges of a content that nobody fetches are left alone for this long while nothing of the content moves. A spread
/// and the reports of it take two or three seconds.
const RANGES_REST: Duration = Duration::from_secs(5);
/// The time that a spread takes longer for each host of the fleet.
const RANGES_REST_PER_HOST: Duration = Duration::from_millis(10);

/// A lease holder's report about its fetch.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// The range that the lease is for; `None`: the whole content.
    pub(super) range: Option<ChunkRange>,
    /// The chunks fetched so far.
    pub(super) chunks: u32,
    /// The blob's bytes that came so far.
    pub(super) bytes: u64,
    /// Whether the holder waits until the chunks that it fetched have spread.
    pub(super) paced: bool,
    /// What keeps the registry from giving the holder more.
    pub(super) trouble: Option<Trouble>,
}

/// A content whose bytes in the registry don't match what an image says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refuted {
    pub(super) content: Digest,
    pub(super) image: Digest,
}

/// Grants all leases that are possible now.
pub(super) fn grant(desk: &mut Desk<'_>) {
    pass_on_trials(desk);
    for grant in super::grants::next(desk.view()) {
        desk.grant(grant);
    }
}

/// Ends leases of hosts on trial whose contents another host wants that isn't on trial. So that host doesn't have to
/// wait.
fn pass_on_trials(desk: &mut Desk<'_>) {
    let view = desk.view();
    let wanted = |digest: &Digest| {
        let mut images = view.images.iter().filter(|image| image.has(digest));
        images.any(|image| {
            let candidates = view.candidates(image);
            let mut ids = candidates.into_iter();
            ids.any(|id| !view.records.is_on_trial(view.now, id))
        })
    };
    let over = desk
        .leases
        .that(|digest, lease| lease.is_trial() && !lease.has_brought() && wanted(digest));
    for (id, content) in over {
        desk.revoke(content, &id, RevokeCause::Ended);
    }
}

/// A host reports on its fetch.
pub(super) fn progress(desk: &mut Desk<'_>, id: &HostId, digest: Digest, said: Progress) {
    if !desk.contents.contains(&digest) {
        deny(desk, id, digest);
        return;
    }
    match desk.leases.of(&digest, id).map(Lease::range) {
        Some(range) if range == said.range => {
            holder_progress(desk, id, digest, said);
            trouble::hear(desk, id, digest, said.trouble);
        }
        // the host speaks of a lease that ended before this one
        Some(_) => {}
        None => match may_take_over(desk, id, digest, said.range) {
            Some(grant) => {
                desk.take_over(grant, said.chunks);
                trouble::hear(desk, id, digest, said.trouble);
            }
            None => deny(desk, id, digest),
        },
    }
}

/// Tells a host of the fleet that it doesn't hold this lease.
fn deny(desk: &mut Desk<'_>, id: &HostId, digest: Digest) {
    if desk.hosts.contains(id) {
        desk.effects.revoke(id, digest, RevokeCause::NotHeld);
    }
}

/// The holder of a running lease reports on its fetch. Of a recipe, for which the holder's own word counts, that moves
/// the lease on and says nothing about the registry.
fn holder_progress(desk: &mut Desk<'_>, id: &HostId, digest: Digest, said: Progress) {
    let now = desk.now;
    let (Some(content), Some(lease)) = (
        desk.contents.get_mut(&digest),
        desk.leases.of_mut(&digest, id),
    ) else {
        return;
    };
    let own_word = content.receipts().own_word();
    // chunks that turn out false at the content's end are fetched again, so a holder may count each chunk twice
    let chunks = said.chunks.min(content.chunks().saturating_mul(2));
    if lease.fetch(now, chunks, said.bytes) {
        if !own_word {
            return;
        }
        lease.believe_chunks(now);
        content.tries_mut().came(&lease.image());
        content.moved(now);
        content.forget_doubts();
        if content.is_recipe() {
            return;
        }
        desk.contents.moved(now);
        if lease.is_mirrors() {
            desk.contents.mirror_moved(now);
        }
        let names = names(lease);
        let granted_at = lease.granted_at();
        trouble::came(desk, digest, (&names.0, &names.1), granted_at);
    } else if lease.moves(now, said.bytes, desk.config.slowest_stream_bytes_per_s) {
        if own_word {
            lease.believe_bytes(now);
            if content.is_recipe() {
                return;
            }
            desk.contents.moved(now);
            let (registry, repository) = names(lease);
            trouble::gave(desk, &registry, &repository);
        }
    } else if said.paced {
        lease.pace(now, desk.config.paced_timeout);
    }
}

/// The names of a lease's registry and repository.
fn names(lease: &Lease) -> (alloc::string::String, alloc::string::String) {
    (lease.registry().into(), lease.repository().into())
}

/// The grant for a lease that a host says it has; `None` where the host isn't believed. A coordinator that has just
/// started takes over running leases like this. It doesn't for contents that it has leased itself: it knows their
/// holders.
fn may_take_over(
    desk: &Desk<'_>,
    id: &HostId,
    digest: Digest,
    range: Option<ChunkRange>,
) -> Option<Grant> {
    let view = desk.view();
    let content = view.contents.get(&digest)?;
    let usable = view.hosts.is_here(id) && view.records.failures(id) == 0;
    let fresh = match range {
        None => content.tries().asked_at().is_none(),
        // holders of other ranges may have been heard before; a recipe has no ranges
        Some(range) => {
            let first = content.tries().asked_at().is_none();
            (first || content.parts().are_taken_over())
                && !content.is_recipe()
                && view.hosts.get(id).is_some_and(Host::takes_ranges)
                && range.is_within(content.chunks())
                && content.parts().lacks(range)
                && view.leases.all_of(&digest).iter().all(|of| {
                    let other = of.range();
                    other.is_some_and(|other| !other.overlaps(range))
                })
        }
    };
    let recipes = view.recipe_leases();
    let room = match content.is_recipe() {
        true => recipes < RECIPE_STREAMS,
        false => view.leases.len() - recipes < view.config.origin_streams,
    };
    // A host that invents leases would keep all of a registry's streams for itself. An honest host rarely has more than
    // its share of them.
    let share = view
        .config
        .origin_streams
        .div_ceil(view.hosts.connected().max(1));
    let more = view.leases.of_host(id) < share;
    if !usable || !fresh || !room || !more || view.is_done(content) {
        return None;
    }
    // an image counts before a mirror's blob
    let image = view
        .images
        .iter()
        .filter(|image| view.wants(image, &digest))
        .filter(|image| range.is_none() || view.may_have_ranges(image, content))
        .min_by_key(|image| image.purpose())
        .filter(|image| view.origin_wait(image).is_none())?;
    Some(Grant {
        host: id.clone(),
        content: digest,
        range,
        image: image.digest(),
        registry: image.registry().into(),
        repository: image.repository().into(),
        purpose: image.purpose(),
    })
}

/// A lease ended, by its holder's word. Returns the image and the content if that refutes the image's manifest. The
/// caller then settles which images go on, and ends pointless leases.
pub(super) fn ended(
    desk: &mut Desk<'_>,
    id: &HostId,
    (digest, range): (Digest, Option<ChunkRange>),
    end: LeaseEnd,
) -> Option<Refuted> {
    if !desk.hosts.contains(id) || !desk.contents.contains(&digest) {
        return None;
    }
    let held = desk.leases.of(&digest, id).map(Lease::range);
    let is_holder = held == Some(range);
    // a host that counts its chunks reports a complete content by that count
    if !is_holder && (range.is_some() || held.is_some() || desk.hosts.counts(id)) {
        return None;
    }
    let lease = match is_holder {
        true => desk.end(digest, id),
        false => None,
    };
    desk.effects.ask_for_grants();
    match end {
        LeaseEnd::Done => done(desk, id, digest, lease.as_ref()),
        LeaseEnd::Released => released(desk, id, digest, lease.as_ref()),
        // a mirror's client named this repository: the images that other hosts want have witnesses of their own
        LeaseEnd::OriginFailed | LeaseEnd::Faulty(_) | LeaseEnd::HostUnable
            if lease.as_ref().is_some_and(Lease::is_mirrors) =>
        {
            if let Some(content) = desk.contents.get_mut(&digest) {
                content.tries_mut().fail_mirror(desk.now, id, desk.config);
            }
            desk.records.mirror_failed(id);
        }
        LeaseEnd::OriginFailed => {
            if let Some(lease) = lease {
                desk.note_failed(digest, id);
                desk.records.fail(id);
                trouble::lease_failed(desk, digest, &lease);
            }
        }
        LeaseEnd::Faulty(fault) => {
            let image = lease?.image();
            let failed = trouble::find_faulty(desk, id, digest, image, fault)?;
            if failed && fault == Fault::Bad {
                return Some(Refuted {
                    content: digest,
                    image,
                });
            }
            desk.revoke_pointless();
        }
        LeaseEnd::HostUnable => {
            desk.note_failed(digest, id);
            if let Some(lease) = lease {
                let config = desk.config;
                desk.records.unable(desk.now, id, lease.registry(), config);
            }
        }
    }
    None
}

/// A host says that it has fetched a content.
fn done(desk: &mut Desk<'_>, id: &HostId, digest: Digest, lease: Option<&Lease>) {
    let now = desk.now;
    let Some(content) = desk.contents.get_mut(&digest) else {
        return;
    };
    let own_word = content.receipts().own_word();
    let held_before = content.is_done_on(id);
    if let Some(range) = lease.and_then(Lease::range) {
        // of what the host holds beside it counts what it says there
        let brought = lease.is_some_and(Lease::has_brought);
        content.parts_mut().fetched(now, range, id, brought);
        return;
    }
    content.claim(now, id);
    if let Some(lease) = lease {
        let mirror = lease.is_mirrors();
        content.receipts_mut().finished(id, mirror, now);
    }
    if !own_word {
        return;
    }
    content.believe();
    content.tries_mut().succeed();
    content.tries_mut().wake_mirrors();
    content.moved(now);
    if lease.is_some_and(|lease| lease.chunks() > 0) {
        content.forget_doubts();
    }
    if content.is_recipe() {
        return;
    }
    desk.contents.moved(now);
    if let Some(lease) = lease {
        if lease.is_mirrors() {
            desk.contents.mirror_moved(now);
        }
        // a holder that the registry failed by its last word may have the rest from its peers, and a holder that held
        // all before the lease asked the registry nothing
        let fetched = !held_before || !lease.never_moved();
        if fetched && lease.trouble().is_none() {
            desk.records.able(id, lease.registry());
            trouble::gave(desk, lease.registry(), lease.repository());
        }
    }
}

/// A host gives a lease back and doesn't hold the content: a host that holds all of it says so instead. `lease` is
/// `None` where the lease had ended before. Then the host may have been told to stop, and the word says little.
fn released(desk: &mut Desk<'_>, id: &HostId, digest: Digest, lease: Option<&Lease>) {
    desk.note_failed(digest, id);
    if lease.is_some_and(|lease| lease.range().is_some())
        && let Some(content) = desk.contents.get_mut(&digest)
    {
        // the host can't begin there: its recipe gives no place, or it has left it; or it doesn't stage any more
        content.parts_mut().give_back(id);
    }
    let Some(lease) = lease.filter(|lease| !lease.has_brought()) else {
        return;
    };
    if let Some(content) = desk.contents.get_mut(&digest) {
        content.tries_mut().give_back(desk.now, id, desk.config);
    }
    if lease.is_mirrors() {
        desk.records.mirror_failed(id);
    }
}

/// Ends leases without progress, so that other hosts can have them.
pub(super) fn expire(desk: &mut Desk<'_>) {
    let (now, timeout) = (desk.now, desk.config.lease_timeout);
    let over = desk
        .leases
        .that(|_, lease| now.since(lease.progress_at()) >= timeout);
    for (id, digest) in over {
        let troubled = |lease: &Lease| lease.trouble().is_some();
        let cause = match desk.leases.of(&digest, &id).is_some_and(troubled) {
            true => RevokeCause::OriginFailed,
            false => RevokeCause::Ended,
        };
        // a lease that ended before in this loop may have ended this one
        let Some(lease) = desk.revoke(digest, &id, cause) else {
            continue;
        };
        desk.note_failed(digest, &id);
        trouble::ran_out(desk, &lease);
        // the holder is connected, and waits for the registry
        trouble::lease_over(desk, digest, &lease);
    }
}

/// Leases contents whole again of which ranges were leased, where nothing came of the ranges for a while: no host that
/// is left takes a range, or what their holders say that they fetched didn't reach the others.
pub(super) fn give_ranges_up(desk: &mut Desk<'_>) {
    let view = desk.view();
    let hosts = u32::try_from(view.hosts.len()).unwrap_or(u32::MAX);
    let patience = RANGES_REST + RANGES_REST_PER_HOST.saturating_mul(hosts);
    let rests = |digest: &Digest| {
        view.contents.get(digest).is_some_and(|content| {
            let moved_at = content.parts().moved_at().max(content.moved_at());
            content.parts().are_begun() && view.now.since(moved_at) >= patience
        })
    };
    let contents = view.images.iter().flat_map(|image| image.contents());
    let over = contents.filter(|of| rests(of) && !view.leases.contains(of));
    let over: Vec<Digest> = over.copied().collect();
    for digest in over {
        give_up(desk, digest);
    }
}

/// Leases a content whole from now on. Somebody who said that he fetched a range lied, or lost it: they all go behind
/// others for this content, and those of whose lease nobody got anything, for all contents.
fn give_up(desk: &mut Desk<'_>, digest: Digest) {
    desk.effects.ask_for_grants();
    let Some(content) = desk.contents.get_mut(&digest) else {
        return;
    };
    let own_word = content.receipts().own_word();
    let fetchers = content.parts().fetchers();
    let fetchers: Vec<(HostId, bool)> = fetchers
        .map(|(id, brought)| (id.clone(), brought))
        .collect();
    content.parts_mut().give_up();
    for (id, brought) in fetchers {
        content.tries_mut().fail(&id);
        if !brought && !own_word && desk.hosts.contains(&id) {
            desk.records.fail(&id);
        }
    }
}

/// Ends all leases of a host that is shunned or left the fleet. `tell` says whether the host is told.
pub(super) fn drop_all_of(desk: &mut Desk<'_>, id: &HostId, tell: bool) {
    for (_, digest) in desk.leases.that(|_, lease| lease.host() == id) {
        match tell {
            true => drop(desk.revoke(digest, id, RevokeCause::Ended)),
            false => drop(desk.end(digest, id)),
        }
    }
}

/// Takes the list of all leases that a host says it has. Leases that were granted in an earlier session and aren't on
/// the list were lost when the agent restarted, or their orders never came. They end, so that their contents are leased
/// again at once.
pub(super) fn drop_lost(desk: &mut Desk<'_>, id: &HostId, has: &[(Digest, Option<ChunkRange>)]) {
    let Some(host) = desk.hosts.get(id) else {
        return;
    };
    let since = host.since();
    let lost: Vec<(HostId, Digest)> = desk.leases.that(|digest, lease| {
        lease.host() == id && lease.granted_at() < since && !has.contains(&(*digest, lease.range()))
    });
    for (id, digest) in lost {
        desk.end(digest, &id);
    }
}

#[cfg(test)]
mod tests;
