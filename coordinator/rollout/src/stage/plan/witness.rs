//! Decides whose word counts about chunks that move: the word of the hosts that receive them.
//!
//! A host's word about itself changes nothing for other hosts. A lease brings something when enough of the other hosts
//! that lack the content hold more of it than before. A content is complete somewhere when enough hosts say that they
//! hold all of it. Until then, the word of a few hosts counts for some seconds, or for as long as other hosts get the
//! content without a lease. "Enough" is the same share of hosts that it takes to shun a host: more hosts than ever lie
//! together.
//!
//! A holder's own word counts where no other host could contradict it: because the host is alone, or because the other
//! hosts run a version that doesn't report its chunks.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::{
    contents::ContentState,
    desk::Desk,
    images::Image,
    leases::Lease,
    origins::PACE_FACTOR,
    trouble::{came, lease_over, ran_out},
    view::View,
};
use crate::stage::{action::RevokeCause, event::Standing};

/// The word of a few hosts that they hold a content whole counts for this long while nobody gets more of it. A spread
/// and the reports of it take two or three seconds.
const CLAIM_GRACE: Duration = Duration::from_secs(5);
/// The time that a spread takes longer for each host of the fleet.
const PER_HOST: Duration = Duration::from_millis(10);
/// A holder keeps its lease for this long while no other host gets anything from it, where the registry's streams are
/// quick.
const UNSEEN: Duration = Duration::from_secs(6);
/// The same limit where the registry's pace isn't known. The slowest stream that counts as progress brings a chunk in
/// this time.
const UNSEEN_MOST: Duration = Duration::from_mins(5);
/// The same limit for a lease that this coordinator didn't grant: any host can say that it had one before the start.
const UNSEEN_TAKEN_OVER: Duration = Duration::from_secs(30);
/// A holder's word about a slow stream is heard once nobody got anything from it for this long.
const SLOW_AFTER: Duration = Duration::from_secs(3);

/// What one look at all hosts shows of a content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sight {
    /// The number of hosts that lack some of the content, stage it, and say what they hold.
    receivers: usize,
    /// The number of connected, trusted hosts on which the content is wanted.
    wanted_on: usize,
}

/// A host reports how many chunks it holds of these contents. `fresh` marks the session's first report.
pub(super) fn count(desk: &mut Desk<'_>, id: &HostId, fresh: bool, contents: &[(Digest, u32)]) {
    let trusted = desk.hosts.is_trusted(id);
    for (digest, chunks) in contents {
        let Some(content) = desk.contents.get_mut(digest) else {
            continue;
        };
        let chunks = (*chunks).min(content.chunks());
        let (before, lost) = content.count(desk.now, id, chunks);
        if lost {
            desk.effects.ask_for_grants();
        }
        // chunks that a host brings along aren't news, nor chunks that it fetches itself
        if chunks > before && !fresh && trusted && !desk.leases.holds(digest, id) {
            content.receipts_mut().grow(id);
        }
    }
}

/// Looks at what hosts received since the last look, and checks the hosts that claim to hold a whole content.
pub(super) fn weigh(desk: &mut Desk<'_>) {
    // every host is looked up once, and not once for each content
    let expected: Vec<&HostId> = desk.hosts.expected(desk.now, desk.config).collect();
    for (digest, sight) in sights(desk.view()) {
        let Some(content) = desk.contents.get_mut(&digest) else {
            continue;
        };
        let hosts = desk.hosts;
        let receipts = content.receipts_mut();
        receipts.look(sight.receivers, |id| hosts.is_trusted(id));
        let grew = content.receipts().grew();
        let whole = grew.iter().filter(|id| content.is_done_on(id));
        let of = sight.receivers + whole.count();
        if !grew.is_empty() && grew.len() >= desk.config.share(of) {
            seen(desk, digest);
        }
        weigh_claims(desk, digest, sight.wanted_on, &expected);
    }
}

/// A look at all contents that are leased or that some host says to hold whole.
fn sights(view: View<'_>) -> BTreeMap<Digest, Sight> {
    let mut sights: BTreeMap<Digest, Sight> = BTreeMap::new();
    for image in view.images.iter() {
        look_at(view, image, &mut sights);
    }
    sights
}

fn look_at(view: View<'_>, image: &Image, sights: &mut BTreeMap<Digest, Sight>) {
    let open = |digest: &&Digest| {
        let content = view.contents.get(digest);
        content.is_some_and(|of| view.leases.contains(digest) || !of.done().is_empty())
    };
    if !image.contents().iter().any(|digest| open(&digest)) {
        return;
    }
    let selected = image.selected(view.hosts);
    let here = |id: &&HostId| view.hosts.is_here(id);
    let wanted_on: Vec<&HostId> = selected.iter().filter(here).collect();
    let stages =
        |id: &&HostId| view.hosts.counts(id) && image.standing(id) == Some(Standing::Staging);
    let staging: Vec<&HostId> = wanted_on.iter().copied().filter(stages).collect();
    for digest in image.contents().iter().filter(open) {
        let Some(content) = view.contents.get(digest) else {
            continue;
        };
        let lacks = |id: &&&HostId| !content.is_done_on(id) && !view.leases.holds(digest, id);
        let receivers = match content.done().len() < selected.len() {
            true => staging.iter().filter(lacks).count(),
            false => 0,
        };
        let sight = sights.entry(*digest).or_default();
        sight.receivers = sight.receivers.max(receivers);
        sight.wanted_on = sight.wanted_on.max(wanted_on.len());
    }
}

/// Enough hosts received more of a content.
fn seen(desk: &mut Desk<'_>, digest: Digest) {
    let now = desk.now;
    let Some(content) = desk.contents.get_mut(&digest) else {
        return;
    };
    content.receipts_mut().seen(now);
    content.moved(now);
    content.forget_doubts();
    let bytes_per_chunk = content.receipts().bytes_per_chunk();
    let leases = desk.leases.all_of_mut(&digest);
    let Some(first) = leases.first() else {
        // the content comes from hosts that say that they hold it
        content.believe();
        let unleased = content.tries().asked_at().is_none();
        desk.contents.moved(now);
        if unleased {
            desk.contents.unleased_moved(now);
        }
        return;
    };
    let (registry, repository) = (
        String::from(first.registry()),
        String::from(first.repository()),
    );
    let (granted_at, mirror) = (first.granted_at(), first.is_mirrors());
    content.tries_mut().came(&first.image());
    if mirror {
        desk.records.mirror_brought(first.host());
        desk.contents.mirror_moved(now);
    }
    // which of several ranges the chunks belong to isn't said: each of its holders is thought to bring some
    for lease in leases {
        if let Some(pace) = lease.see(now, bytes_per_chunk)
            && let Some(origin) = desk.origins.get_mut(&registry)
        {
            origin.see_pace(now, pace);
        }
    }
    desk.contents.moved(now);
    came(desk, digest, (&registry, &repository), granted_at);
}

/// Checks the hosts that say that they hold all of a content. `expected` has the hosts that are expected, by id.
fn weigh_claims(desk: &mut Desk<'_>, digest: Digest, wanted_on: usize, expected: &[&HostId]) {
    let (now, enough) = (desk.now, desk.config.share(wanted_on));
    let Some(content) = desk.contents.get(&digest) else {
        return;
    };
    let claims = in_both(content.believed(), expected).take(enough).count();
    let unseen = {
        let elsewhere = content.tries().asked_at().is_none();
        let elsewhere = elsewhere.then_some(desk.contents.unleased_moved_at());
        let since = content.receipts().claimed_or_seen_at().max(elsewhere);
        since.map_or(Duration::ZERO, |since| now.since(since))
    };
    let doubtful = !desk.leases.contains(&digest)
        && claims > 0
        && claims < enough
        && !content.receipts().own_word()
        && unseen >= CLAIM_GRACE;
    let Some(content) = desk.contents.get_mut(&digest) else {
        return;
    };
    if claims >= enough {
        // so many hosts have verified the whole content that any word against it was wrong
        content.receipts_mut().verified();
        content.parts_mut().clear();
        content.tries_mut().succeed();
        content.words_mut().settle();
    } else if doubtful {
        content.disbelieve();
        desk.effects.ask_for_grants();
        let Some((id, mirror)) = content.receipts_mut().take_finished_by() else {
            return;
        };
        content.tries_mut().fail(&id);
        // nobody received anything of the content that this host says to have fetched
        match mirror {
            _ if !desk.hosts.contains(&id) => {}
            true => desk.records.mirror_expired(now, &id, now),
            false => desk.records.fail(&id),
        }
    }
}

/// The hosts of `some` that are in `others`, too. Both are in order.
fn in_both<'a>(
    some: impl Iterator<Item = &'a HostId>,
    others: &[&HostId],
) -> impl Iterator<Item = &'a HostId> {
    let mut others = others.iter().peekable();
    some.filter(move |id| {
        while others.next_if(|other| **other < *id).is_some() {}
        others.next_if(|other| **other == *id).is_some()
    })
}

/// Ends leases from which other hosts have received nothing for too long.
pub(super) fn expire_unseen(desk: &mut Desk<'_>) {
    hear_slow(desk);
    let now = desk.now;
    let view = desk.view();
    let over = desk.leases.that(|digest, lease| {
        let content = view.contents.get(digest);
        content.is_some_and(|of| !of.receipts().own_word() && is_unseen(view, of, lease))
    });
    for (id, digest) in over {
        // a lease that ended before in this loop may have ended this one
        let Some(lease) = desk.revoke(digest, &id, RevokeCause::Ended) else {
            continue;
        };
        if let Some(content) = desk.contents.get_mut(&digest) {
            content.tries_mut().fail(&id);
            content.receipts_mut().disbelieve(now, lease.granted_at());
        }
        ran_out(desk, &lease);
        lease_over(desk, digest, &lease);
    }
}

/// Notes what holders say of streams that bring bytes but no whole chunk yet.
fn hear_slow(desk: &mut Desk<'_>) {
    let now = desk.now;
    let slow = |digest: &Digest, lease: &Lease| {
        let content = desk.contents.get(digest);
        content.is_some_and(|content| !content.receipts().own_word())
            && lease.unseen_chunks() <= 1
            && lease.trouble().is_none()
            && now.since(lease.seen_at()) >= SLOW_AFTER
            && now.since(lease.progress_at()) < UNSEEN
    };
    let all = desk.leases.iter();
    let words: Vec<(String, HostId, u64, Moment)> = all
        .filter(|(digest, lease)| slow(digest, lease))
        .map(|(_, lease)| {
            let said = lease.bytes_per_s_of_chunk(now);
            let registry = String::from(lease.registry());
            (registry, lease.host().clone(), said, lease.seen_at())
        })
        .collect();
    for (registry, id, said, since) in words {
        if said > 0
            && let Some(origin) = desk.origins.get_mut(&registry)
        {
            origin.hear_slow(id, said, since);
        }
    }
}

fn is_unseen(view: View<'_>, content: &ContentState, lease: &Lease) -> bool {
    let hosts = u32::try_from(view.hosts.len()).unwrap_or(u32::MAX);
    let least = UNSEEN + PER_HOST.saturating_mul(hosts);
    let times = content.receipts().patience();
    // the holder says that it has whole chunks, and nobody receives any
    let kept = lease
        .unseen_since()
        .is_some_and(|since| view.now.since(since) >= least * times);
    let most = match lease.is_taken_over() {
        true => UNSEEN_TAKEN_OVER,
        false => UNSEEN_MOST,
    };
    let slow = view.pace(lease.registry()).map_or(most, |pace| {
        let micros = PACE_FACTOR * proto::CHUNK_BYTES * 1_000_000 / pace.max(1);
        Duration::from_micros(micros).clamp(least, most.max(least))
    });
    kept || view.now.since(lease.seen_at()) >= slow * times
}

#[cfg(test)]
mod tests;
