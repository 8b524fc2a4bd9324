//! How leases go and end, as their holders say.

use alloc::vec::Vec;

use proto::{Digest, HostId};

use super::{
    desk::Desk,
    leases::{Grant, Lease},
    trouble,
};
use crate::stage::{
    action::RevokeCause,
    event::{Fault, LeaseEnd, Standing, Trouble},
};

/// Where a lease holder says that its fetch stands.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// Chunks fetched so far.
    pub(super) chunks: u32,
    /// Bytes of the blob that came so far.
    pub(super) bytes: u64,
    /// Whether it holds back while what it fetched is being spread.
    pub(super) paced: bool,
    /// What keeps the registry from giving it more.
    pub(super) trouble: Option<Trouble>,
}

/// A content whose bytes in the registry aren't what an image says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refuted {
    pub(super) content: Digest,
    pub(super) image: Digest,
}

/// Leases what may be leased.
pub(super) fn grant(desk: &mut Desk<'_>) {
    pass_on_trials(desk);
    for grant in super::grants::next(desk.view()) {
        desk.grant(grant);
    }
}

/// What a host has on trial passes on as soon as another wants it that isn't: so nobody waits for it.
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
    for (_, content) in over {
        desk.revoke(content, RevokeCause::Ended);
    }
}

/// A host says where its fetch stands.
pub(super) fn progress(desk: &mut Desk<'_>, id: &HostId, digest: Digest, said: Progress) {
    if !desk.contents.contains(&digest) {
        deny(desk, id, digest);
        return;
    }
    match desk.leases.holder(&digest) {
        Some(holder) if holder == id => {
            holder_progress(desk, digest, said);
            trouble::hear(desk, digest, said.trouble);
        }
        Some(_) => desk.effects.revoke(id, digest, RevokeCause::NotHeld),
        None => match may_take_over(desk, id, digest) {
            Some(grant) => {
                desk.take_over(grant, said.chunks);
                trouble::hear(desk, digest, said.trouble);
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

/// The holder of a running lease says where its fetch stands.
fn holder_progress(desk: &mut Desk<'_>, digest: Digest, said: Progress) {
    let now = desk.now;
    let (Some(content), Some(lease)) =
        (desk.contents.get_mut(&digest), desk.leases.of_mut(&digest))
    else {
        return;
    };
    let own_word = content.receipts().own_word();
    // what turned out false at its end is fetched twice
    let chunks = said.chunks.min(content.chunks().saturating_mul(2));
    if lease.fetch(now, chunks, said.bytes) {
        if !own_word {
            return;
        }
        lease.believe_chunks(now);
        content.tries_mut().came(&lease.image());
        content.moved(now);
        content.forget_doubts();
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
            desk.contents.moved(now);
            let (registry, repository) = names(lease);
            trouble::gave(desk, &registry, &repository);
        }
    } else if said.paced {
        lease.pace(now, desk.config.paced_timeout);
    }
}

/// The names of a lease's registry and of its repository.
fn names(lease: &Lease) -> (alloc::string::String, alloc::string::String) {
    (lease.registry().into(), lease.repository().into())
}

/// What a host says to have leased, where it is believed: a coordinator that has just started takes over the leases
/// that run. Of what it has leased itself it knows better.
fn may_take_over(desk: &Desk<'_>, id: &HostId, digest: Digest) -> Option<Grant> {
    let view = desk.view();
    let content = view.contents.get(&digest)?;
    let usable = view.hosts.is_here(id) && view.records.failures(id) == 0;
    let fresh = content.tries().asked_at().is_none();
    let room = view.leases.len() < view.config.origin_streams;
    // A host that makes leases up would keep all streams of a registry to itself. One that doesn't has its share of
    // them, hardly ever more.
    let share = view
        .config
        .origin_streams
        .div_ceil(view.hosts.connected().max(1));
    let more = view.leases.of_host(id) < share;
    if !usable || !fresh || !room || !more || view.is_done(content) {
        return None;
    }
    // an image's own word counts before a mirror's
    let image = view
        .images
        .iter()
        .filter(|image| view.wants(image, &digest))
        .min_by_key(|image| image.purpose())
        .filter(|image| view.origin_wait(image).is_none())?;
    Some(Grant {
        host: id.clone(),
        content: digest,
        image: image.digest(),
        registry: image.registry().into(),
        repository: image.repository().into(),
        purpose: image.purpose(),
    })
}

/// A lease ended, as its holder says. Returns what that refutes of an image's manifest: then it isn't settled yet
/// which images go on, and pointless leases run.
pub(super) fn ended(
    desk: &mut Desk<'_>,
    id: &HostId,
    digest: Digest,
    end: LeaseEnd,
) -> Option<Refuted> {
    if !desk.hosts.contains(id) || !desk.contents.contains(&digest) {
        return None;
    }
    let is_holder = desk.leases.holder(&digest) == Some(id);
    // a host that says what it holds says so there
    if !is_holder && desk.hosts.counts(id) {
        return None;
    }
    let lease = match is_holder {
        true => desk.end(digest),
        false => None,
    };
    desk.effects.ask_for_grants();
    match end {
        LeaseEnd::Done => done(desk, id, digest, lease.as_ref()),
        LeaseEnd::Released => released(desk, id, digest, lease.as_ref()),
        // of the repository that this host named, and for its client: images of others have their own witnesses
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

/// A host says that it holds a content. `lease` is the one under which it fetched it, if any.
fn claim(desk: &mut Desk<'_>, id: &HostId, digest: Digest, lease: Option<&Lease>) {
    let now = desk.now;
    if let Some(content) = desk.contents.get_mut(&digest) {
        let own_word = content.receipts().own_word();
        content.claim(now, id);
        if let Some(lease) = lease {
            let mirror = lease.is_mirrors();
            content.receipts_mut().finished(id, mirror, now);
        }
        if own_word {
            content.believe();
        }
    }
}

/// A host says that it has fetched a content.
fn done(desk: &mut Desk<'_>, id: &HostId, digest: Digest, lease: Option<&Lease>) {
    let now = desk.now;
    claim(desk, id, digest, lease);
    let Some(content) = desk.contents.get_mut(&digest) else {
        return;
    };
    if !content.receipts().own_word() {
        return;
    }
    content.tries_mut().succeed();
    content.tries_mut().wake_mirrors();
    content.moved(now);
    if lease.is_some_and(|lease| lease.chunks() > 0) {
        content.forget_doubts();
    }
    desk.contents.moved(now);
    if let Some(lease) = lease {
        if lease.is_mirrors() {
            desk.contents.mirror_moved(now);
        }
        desk.records.able(id, lease.registry());
        trouble::gave(desk, lease.registry(), lease.repository());
    }
}

/// A host gives a lease back, or says so of one that ended before.
fn released(desk: &mut Desk<'_>, id: &HostId, digest: Digest, lease: Option<&Lease>) {
    // who stages and gives its lease back holds the content; where it doesn't, the audit finds that out. A lease
    // that was ended before says nothing: its holder may have been told to stop
    let staging = desk.images.iter().any(|image| {
        !image.is_mirrors() && image.has(&digest) && image.standing(id) == Some(Standing::Staging)
    });
    if lease.is_some() && staging {
        claim(desk, id, digest, lease);
    }
    desk.note_failed(digest, id);
    if lease.is_some_and(|lease| lease.is_mirrors() && !lease.has_brought()) {
        desk.records.mirror_failed(id);
    }
}

/// Leases without progress pass on.
pub(super) fn expire(desk: &mut Desk<'_>) {
    let (now, timeout) = (desk.now, desk.config.lease_timeout);
    let over = desk
        .leases
        .that(|_, lease| now.since(lease.progress_at()) >= timeout);
    for (id, digest) in over {
        let troubled = |lease: &Lease| lease.trouble().is_some();
        let cause = match desk.leases.of(&digest).is_some_and(troubled) {
            true => RevokeCause::OriginFailed,
            false => RevokeCause::Ended,
        };
        // the one before may have ended it
        let Some(lease) = desk.revoke(digest, cause) else {
            continue;
        };
        desk.note_failed(digest, &id);
        trouble::ran_out(desk, &lease);
        // its holder is there, and waits for the registry
        trouble::lease_over(desk, digest, &lease);
    }
}

/// The host is shunned or gone: its leases pass on at once, and it is told where that is asked.
pub(super) fn drop_all_of(desk: &mut Desk<'_>, id: &HostId, tell: bool) {
    for (_, digest) in desk.leases.that(|_, lease| lease.host() == id) {
        match tell {
            true => drop(desk.revoke(digest, RevokeCause::Ended)),
            false => drop(desk.end(digest)),
        }
    }
}

/// All leases that a host says it has: what was granted in an earlier session and isn't among them went with an earlier
/// life of its program. It is leased again at once.
pub(super) fn drop_lost(desk: &mut Desk<'_>, id: &HostId, has: &[Digest]) {
    let Some(host) = desk.hosts.get(id) else {
        return;
    };
    let since = host.since();
    let lost: Vec<(HostId, Digest)> = desk.leases.that(|digest, lease| {
        lease.host() == id && lease.granted_at() < since && !has.contains(digest)
    });
    for (_, digest) in lost {
        desk.end(digest);
    }
}

#[cfg(test)]
mod tests;
