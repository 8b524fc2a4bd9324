//! What follows when a registry fails a lease, or gives something after a failure.
//!
//! A failure counts first for the content. It counts for the repository when two hosts met failures with two contents.
//! It counts for the image when the registry gives other contents meanwhile. See `tries` and `origins`.

use alloc::{
    collections::BTreeSet,
    string::{String, ToString as _},
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::{
    chance::below,
    contents::ContentState,
    desk::Desk,
    leases::Lease,
    origins::{QUIET, Vain},
    tries::Word,
    wishes::Told,
};
use crate::stage::{
    action::{RecipeLoss, RevokeCause},
    event::{Fault, Trouble},
};

// ---- contents
// -----------------------------------------------------------------------------------------------------------

/// A host found a content faulty that it asked for under an image's name. Returns whether the image fails for that now;
/// `None` where the word doesn't count. Doesn't end the leases that have become pointless: see
/// [`Desk::revoke_pointless`]. An image doesn't fail for its recipe, and goes on without it.
pub(super) fn find_faulty(
    desk: &mut Desk<'_>,
    id: &HostId,
    content: Digest,
    image: Digest,
    fault: Fault,
) -> Option<bool> {
    let word = Word {
        by: id,
        image,
        fault,
        witnesses: desk.view().witnesses(&image),
        others_fetch: others_fetch(desk, id, &content),
    };
    let tries = desk.contents.get_mut(&content)?.tries_mut();
    let failed = tries.find_faulty(desk.now, &word, desk.config)?;
    let of = desk.images.get(&image);
    if failed && of.is_some_and(|of| of.is_recipe(&content)) && desk.view().open(&content).is_some()
    {
        let cause = RecipeLoss::Faulty(fault);
        desk.effects.lose_recipe((image, content, cause));
    }
    Some(failed)
}

/// Whether a host fetches a range of the content beside this host, and has no trouble.
fn others_fetch(desk: &Desk<'_>, id: &HostId, content: &Digest) -> bool {
    let mut leases = desk.leases.all_of(content).iter();
    leases.any(|of| of.host() != id && of.trouble().is_none())
}

/// A content's registry fails this host, and gives something to others.
fn find_unavailable(desk: &mut Desk<'_>, id: &HostId, content: Digest, image: Digest) {
    if find_faulty(desk, id, content, image, Fault::Unavailable).is_some() {
        desk.revoke_pointless();
    }
}

/// A lease came to nothing. If its registry gave others something before and after, that counts for the content. The
/// image then fails once several hosts met the failure, or the only host met it several times, for half a minute or
/// longer. An outage of the whole registry doesn't count like this. Returns whether the image failed for the content.
fn failed_again(desk: &mut Desk<'_>, content: Digest, lease: &Lease) -> bool {
    if lease.is_mirrors() {
        return false;
    }
    let fails = |desk: &Desk<'_>| {
        let content = desk.contents.get(&content);
        content.and_then(|content| content.tries().fails(&lease.image()))
            == Some(Fault::Unavailable)
    };
    let since = lease
        .trouble()
        .map_or(lease.granted_at(), |(since, _)| since);
    let origin = desk.origins.get_mut(lease.registry());
    let gave_at = origin.as_ref().and_then(|origin| origin.gave_at());
    if fails(desk) || lease.begins_amid_gifts() && gave_at > Some(since) {
        find_unavailable(desk, lease.host(), content, lease.image());
    } else if let Some(origin) = desk.origins.get_mut(lease.registry())
        && lease.begins_amid_gifts()
    {
        origin.note_vain(Vain {
            content,
            image: lease.image(),
            host: lease.host().clone(),
            at: desk.now,
        });
    }
    fails(desk)
}

/// A registry failed the holder of this content. See [`Tries::leave_alone`](super::tries::Tries::leave_alone).
fn leave_content_alone(desk: &mut Desk<'_>, content: Digest, lease: &Lease) {
    let others = desk.hosts.connected() >= 2;
    let of = (lease.host(), lease.granted_at());
    if let Some(content) = desk.contents.get_mut(&content) {
        content
            .tries_mut()
            .leave_alone(desk.now, of, others, desk.config);
    }
}

// ---- leases that end
// ------------------------------------------------------------------------------------------------------

/// A lease ended because its registry failed it. That counts for the content; it counts for the repository if the
/// repository gave nothing else meanwhile, and the content is no recipe: nobody else is heard about those.
pub(super) fn lease_failed(desk: &mut Desk<'_>, content: Digest, lease: &Lease) {
    if failed_again(desk, content, lease) {
        return;
    }
    let since = lease.trouble().map_or(lease.chunk_at(), |(since, _)| since);
    let origin = desk.origins.get(lease.registry());
    let gave = origin.is_some_and(|origin| origin.gave_since(lease.repository(), since));
    let recipe = desk.contents.get(&content);
    let recipe = recipe.is_some_and(ContentState::is_recipe);
    if recipe || gave || !repository_failed(desk, content, lease) {
        leave_content_alone(desk, content, lease);
    }
}

/// A lease ended without progress. If its holder is connected and received nothing at all, the registry fails, even
/// where the holder didn't say so.
pub(super) fn lease_over(desk: &mut Desk<'_>, content: Digest, lease: &Lease) {
    let here = desk.hosts.is_connected(lease.host());
    let nothing = here && !lease.is_mirrors() && lease.never_moved();
    if lease.trouble().is_some() {
        lease_failed(desk, content, lease);
    } else if nothing && !failed_again(desk, content, lease) {
        leave_content_alone(desk, content, lease);
    }
}

/// Counts a lease that its holder let run out. An image's lease puts the holder behind other hosts for all contents. A
/// mirror's lease counts against mirrors' leases only, and only if nobody received any of it.
pub(super) fn ran_out(desk: &mut Desk<'_>, lease: &Lease) {
    if !lease.is_mirrors() {
        desk.records.fail(lease.host());
    } else if !lease.has_brought() {
        desk.records
            .mirror_expired(desk.now, lease.host(), lease.granted_at());
    }
}

// ---- repositories
// -----------------------------------------------------------------------------------------------------

/// A repository failed a host for some time. Returns whether the repository is now left alone.
fn repository_failed(desk: &mut Desk<'_>, content: Digest, lease: &Lease) -> bool {
    let connected = desk.hosts.connected();
    let Some(origin) = desk.origins.get_mut(lease.registry()) else {
        return false;
    };
    let fails = origin.fail(lease.repository(), lease.host(), content, connected);
    if fails {
        leave_alone(desk, lease.registry(), lease.repository());
    }
    fails
}

/// Leaves a repository alone for a while that grows. Ends the leases that it fails, so that no holder goes on trying.
fn leave_alone(desk: &mut Desk<'_>, registry: &str, repository: &str) {
    let now = desk.now;
    let Some(origin) = desk.origins.get_mut(registry) else {
        return;
    };
    let until = origin.failures(repository, now).map(|failures| {
        let wait = desk.config.origin_pause(failures);
        let bound = 1 + usize::try_from(wait.as_micros() / 4).unwrap_or(0);
        let jitter = u64::try_from(below(desk.rng, bound)).unwrap_or(0);
        now + (wait + Duration::from_micros(jitter))
    });
    origin.leave_alone(now, repository, until);
    end_troubled(desk, registry, repository);
}

/// Ends the leases that a repository fails.
fn end_troubled(desk: &mut Desk<'_>, registry: &str, repository: &str) {
    let troubled = desk.leases.that(|_, lease| {
        lease.registry() == registry
            && lease.repository() == repository
            && lease.trouble().is_some()
    });
    for (id, content) in troubled {
        desk.revoke(content, &id, RevokeCause::OriginFailed);
    }
}

/// Takes a holder's word about its registry.
pub(super) fn hear(desk: &mut Desk<'_>, id: &HostId, content: Digest, trouble: Option<Trouble>) {
    let now = desk.now;
    let Some(lease) = desk.leases.of_mut(&content, id) else {
        return;
    };
    lease.suffer(now, trouble);
    let (registry, repository) = (
        String::from(lease.registry()),
        String::from(lease.repository()),
    );
    let origin = desk.origins.get(&registry);
    let waits = origin.is_some_and(|origin| origin.waits_until(&repository, now).is_some());
    match trouble {
        Some(Trouble::Throttled(wish)) => refused(desk, id, content, wish),
        Some(_) if waits => end_troubled(desk, &registry, &repository),
        Some(Trouble::Failing) => judge(desk, &registry),
        Some(Trouble::Silent) | None => {}
    }
}

/// Checks the registries that fail any lease.
pub(super) fn judge_all(desk: &mut Desk<'_>) {
    let troubled: BTreeSet<String> = desk
        .leases
        .iter()
        .filter(|(_, lease)| lease.trouble().is_some())
        .map(|(_, lease)| lease.registry().to_string())
        .collect();
    for registry in troubled {
        judge(desk, &registry);
    }
}

/// Ends the leases that a registry has failed for long enough. A broken connection is made again within a second or
/// two, so only what lasts longer counts. It counts at once where the repository failed another host before.
fn judge(desk: &mut Desk<'_>, registry: &str) {
    let Some(origin) = desk.origins.get(registry) else {
        return;
    };
    let (now, after) = (desk.now, desk.config.trouble_after);
    let failed = desk.leases.that(|_, lease| {
        let Some((since, Trouble::Failing)) = lease.trouble() else {
            return false;
        };
        let lasts = origin.has_failed(lease.repository()) || now.since(since) >= after;
        lease.registry() == registry && lasts
    });
    for (id, content) in failed {
        // a lease that ended before in this loop may have ended this one
        if let Some(lease) = desk.revoke(content, &id, RevokeCause::OriginFailed) {
            lease_failed(desk, content, &lease);
        }
    }
}

/// A holder says that its registry asks to be left alone. Its lease ends, and other leases wait by the weight of its
/// word.
fn refused(desk: &mut Desk<'_>, id: &HostId, content: Digest, wish: Duration) {
    let now = desk.now;
    let Some(lease) = desk.revoke(content, id, RevokeCause::OriginFailed) else {
        return;
    };
    desk.note_failed(content, id);
    let hosts = desk.hosts.connected();
    desk.records.fail(id);
    if desk.records.is_disbelieved(now, id) {
        return;
    }
    let all = desk.leases.iter().map(|(_, lease)| lease);
    let streams: Vec<&str> = all
        .filter(|other| other.registry() == lease.registry() && other.trouble().is_none())
        .map(Lease::repository)
        .collect();
    let Some(origin) = desk.origins.get_mut(lease.registry()) else {
        return;
    };
    let told = Told {
        by: id.clone(),
        content,
        repository: lease.repository(),
        wish: wish.min(desk.config.origin_wish_most),
        enough: desk.config.enough_accusers(hosts).min(hosts),
        streams: &streams,
    };
    if origin.wishes_mut().hear(now, &told) {
        // one lease tries first
        origin.try_first(now, lease.repository());
    }
}

// ---- registries that give
// --------------------------------------------------------------------------------------------

/// A chunk of a content came from its registry, to a lease that was granted at `granted_at`.
pub(super) fn came(
    desk: &mut Desk<'_>,
    content: Digest,
    (registry, repository): (&str, &str),
    granted_at: Moment,
) {
    if let Some(origin) = desk.origins.get_mut(registry) {
        let until = desk.now + desk.config.origin_wish_most;
        let wishes = origin.wishes_mut();
        for liar in wishes.disprove(&content, repository, granted_at) {
            if desk.hosts.contains(&liar) {
                desk.records.disbelieve(&liar, until);
            }
        }
    }
    gave(desk, registry, repository);
}

/// A registry gave something of a repository. The repository's earlier failures are forgotten.
pub(super) fn gave(desk: &mut Desk<'_>, registry: &str, repository: &str) {
    let now = desk.now;
    let Some(origin) = desk.origins.get_mut(registry) else {
        return;
    };
    let Some(gift) = origin.give(now, repository) else {
        return;
    };
    // for leases of other contents that came to nothing just before, the failure counts for those contents
    for of in gift.vain {
        let content = desk.contents.get(&of.content);
        let came = content.is_none_or(|content| content.moved_at() >= of.at);
        if !came && now.since(of.at) <= QUIET {
            find_unavailable(desk, &of.host, of.content, of.image);
        }
    }
    if !gift.failed && !gift.quiet {
        return;
    }
    desk.effects.ask_for_grants();
    let those = desk.images.iter().filter(|image| {
        image.registry() == registry && (gift.quiet || image.repository() == repository)
    });
    for image in those {
        desk.contents
            .each(image.fetched(), |content| content.tries_mut().wake(now));
    }
}

#[cfg(test)]
mod tests;
