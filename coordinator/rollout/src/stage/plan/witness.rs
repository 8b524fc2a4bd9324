//! Who is believed about what moves: those who receive it.
//!
//! A host's word about itself moves nothing for others. A lease brings something when enough of the other hosts that lack the
//! content hold more of it than before. A content is held elsewhere when enough hosts say that they hold all of it; until then
//! the word of a few counts for seconds, and for as long as others get the content without a lease. "Enough" is the same share
//! that it takes to shun a host: more than ever lie together.
//!
//! Where nobody could say otherwise (a host alone, hosts of a version that doesn't say what it holds), a holder's own word counts.

use super::*;
use crate::stage::action::RevokeCause;

/// What a few hosts say they hold whole is believed for this long without anybody getting more of it. A spread, and the reports
/// of it, take two seconds or three.
const CLAIM_GRACE: Duration = Duration::from_secs(5);
/// Hosts need so much longer to get something for each host of the fleet: a spread takes longer where there are more to spread to.
const PER_HOST: Duration = Duration::from_millis(10);
/// A holder keeps its lease for this long while nobody else gets anything from it, where others' streams are quick.
const UNSEEN: Duration = Duration::from_secs(6);
/// A holder that nobody got anything from, of a registry whose pace isn't known, keeps its lease for this long: the slowest
/// stream that counts as moving brings a chunk in this time.
const UNSEEN_MOST: Duration = Duration::from_mins(5);
/// The same of a lease that wasn't granted here: anybody can say that it had one before the coordinator started.
const UNSEEN_TAKEN_OVER: Duration = Duration::from_secs(30);
/// A holder that nobody got anything from for this long is heard about how slow its stream is.
const SLOW_AFTER: Duration = Duration::from_secs(3);
/// From the third on, holders of one content that nobody got anything from, one after the other, are believed for twice as long
/// each time, so often: hosts may be cut off from each other.
const DISBELIEVED_MOST: u32 = 6;

/// What is known of one content by those who receive it.
#[derive(Debug)]
pub(super) struct Receipts {
    /// Chunks that hosts hold which hold some and not all.
    counts: BTreeMap<HostId, u32>,
    /// Hosts that hold more of it than when it was last seen to move.
    grew: BTreeSet<HostId>,
    /// Hosts that lack some of it, stage it, and say what they hold; as of the last look.
    pub(super) receivers: usize,
    /// When enough of them got something.
    seen_at: Moment,
    /// Since when somebody says that it holds all.
    claimed_at: Option<Moment>,
    /// Who said last that it fetched all, and whether for clients of a mirror.
    finished_by: Option<(HostId, bool)>,
    /// Holders that nobody got anything from, one after the other.
    disbelieved: u32,
    /// Of the blob for each chunk, on average.
    bytes_per_chunk: u64,
}

impl Receipts {
    pub(super) fn new(now: Moment, content: &Content) -> Self {
        Self {
            counts: BTreeMap::new(),
            grew: BTreeSet::new(),
            receivers: 0,
            seen_at: now,
            claimed_at: None,
            finished_by: None,
            disbelieved: 0,
            bytes_per_chunk: content.origin_bytes / u64::from(content.chunks.max(1)),
        }
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.counts.remove(id);
        self.grew.remove(id);
    }

    /// Whether a holder's own word counts, because nobody could say otherwise.
    pub(super) const fn own_word(&self) -> bool {
        self.receivers == 0
    }

    /// Somebody says that it holds all.
    pub(super) fn claimed(&mut self, now: Moment) {
        self.claimed_at.get_or_insert(now);
    }

    /// The holder of its lease says that it fetched all.
    pub(super) fn finished(&mut self, id: &HostId, mirror: bool, now: Moment) {
        self.claimed_at = Some(now);
        self.finished_by = Some((id.clone(), mirror));
    }
}

/// What one look at all hosts shows of a content.
#[derive(Clone, Copy, Debug, Default)]
struct Sight {
    receivers: usize,
    wanted_on: usize,
}

impl Plan {
    /// So many of these hosts aren't liars alone.
    pub(super) fn share(&self, hosts: usize) -> usize {
        (hosts * self.config.accusers_percent).div_ceil(100).max(1)
    }

    /// A host says how much it holds of these contents.
    pub(super) fn holds(&mut self, id: &HostId, contents: &[(Digest, u32)]) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.connected) else {
            return;
        };
        // what it brings along isn't news
        let fresh = !core::mem::replace(&mut host.said, true);
        host.counts = true;
        let trusted = host.quarantined_until.is_none();
        for (digest, chunks) in contents {
            let Some(content) = self.contents.get_mut(digest) else {
                continue;
            };
            let chunks = (*chunks).min(content.chunks);
            let whole = chunks == content.chunks;
            let held = content.receipts.counts.remove(id).unwrap_or(0);
            let before = match content.done.contains_key(id) {
                true => content.chunks,
                false => held,
            };
            if whole {
                content.claim(id, now);
            } else {
                self.grant_wanted |= content.done.remove(id).is_some();
                if chunks > 0 {
                    content.receipts.counts.insert(id.clone(), chunks);
                }
            }
            let holder = content.lease.as_ref().map(|lease| &lease.host);
            if chunks > before && !fresh && trusted && holder != Some(id) {
                content.receipts.grew.insert(id.clone());
            }
        }
    }

    /// Whether this host says itself that it holds all of a content: it need not fetch it.
    pub(super) fn says_whole(host: &Host, content: &ContentState, id: &HostId) -> bool {
        host.counts && !content.receipts.own_word() && content.done.contains_key(id)
    }

    /// Looks at what hosts have got since the last look, and whether those are right who say that they hold something whole.
    pub(super) fn weigh(&mut self) {
        for (digest, sight) in self.sights() {
            let Some(content) = self.contents.get_mut(&digest) else {
                continue;
            };
            let (hosts, done) = (&self.hosts, &content.done);
            let receipts = &mut content.receipts;
            receipts.receivers = sight.receivers;
            let trusted = |id: &HostId| {
                hosts
                    .get(id)
                    .is_some_and(|host| host.quarantined_until.is_none())
            };
            receipts.grew.retain(trusted);
            let whole = receipts.grew.iter().filter(|id| done.contains_key(*id));
            let (grew, of) = (receipts.grew.len(), sight.receivers + whole.count());
            if grew > 0 && grew >= self.share(of) {
                self.seen(digest);
            }
            self.weigh_claims(digest, sight.wanted_on);
        }
    }

    /// Contents that are leased, or that somebody says to hold whole.
    fn sights(&self) -> BTreeMap<Digest, Sight> {
        let mut sights: BTreeMap<Digest, Sight> = BTreeMap::new();
        for image in &self.images {
            let open = |digest: &&Digest| {
                self.contents
                    .get(*digest)
                    .is_some_and(|content| content.lease.is_some() || !content.done.is_empty())
            };
            if !image.contents.iter().any(|digest| open(&digest)) {
                continue;
            }
            let here = |id: &&HostId| {
                self.hosts
                    .get(*id)
                    .is_some_and(|host| host.connected && host.quarantined_until.is_none())
            };
            let selected = self.selected(image);
            let wanted_on: Vec<&HostId> = selected.iter().filter(here).collect();
            let stages = |id: &&HostId| {
                let counts = self.hosts.get(*id).is_some_and(|host| host.counts);
                counts && matches!(image.standings.get(*id), Some((Standing::Staging, _)))
            };
            let staging: Vec<&HostId> = wanted_on.iter().copied().filter(stages).collect();
            for digest in image.contents.iter().filter(open) {
                let Some(content) = self.contents.get(digest) else {
                    continue;
                };
                let holder = content.lease.as_ref().map(|lease| &lease.host);
                let lacks =
                    |id: &&&HostId| !content.done.contains_key(**id) && holder != Some(**id);
                let receivers = match content.done.len() < selected.len() {
                    true => staging.iter().filter(lacks).count(),
                    false => 0,
                };
                let sight = sights.entry(*digest).or_default();
                sight.receivers = sight.receivers.max(receivers);
                sight.wanted_on = sight.wanted_on.max(wanted_on.len());
            }
        }
        sights
    }

    /// Enough hosts got more of a content.
    fn seen(&mut self, digest: Digest) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        content.receipts.grew.clear();
        content.receipts.seen_at = now;
        content.moved_at = now;
        content.doubts = 0;
        self.moved_at = now;
        let bytes_per_chunk = content.receipts.bytes_per_chunk;
        let Some(lease) = &mut content.lease else {
            // it comes from whoever says that it holds it
            content.doubted.clear();
            if content.asked_at().is_none() {
                self.unleased_seen_at = now;
            }
            return;
        };
        let chunks = lease.chunks.saturating_sub(lease.seen_chunks);
        let took = lease.chunk_at.since(lease.seen_chunk_at);
        let took = took.as_millis().max(1);
        let bytes = u128::from(chunks) * u128::from(bytes_per_chunk) * 1_000 / took;
        lease.seen_at = now;
        lease.seen_chunks = lease.chunks;
        lease.seen_chunk_at = lease.chunk_at;
        lease.unseen_since = None;
        // it has a place like any other from now on
        lease.trial = false;
        let (registry, image) = (lease.registry.clone(), lease.image);
        let repository = lease.repository.clone();
        let (granted_at, mirror) = (lease.granted_at, lease.mirror);
        let holder = lease.host.clone();
        content.came(&image);
        if mirror {
            self.mirror_moved_at = now;
            if let Some(host) = self.hosts.get_mut(&holder) {
                host.mirror_yield.brought();
            }
        }
        if chunks > 0 {
            let pace = u64::try_from(bytes).unwrap_or(u64::MAX);
            self.origin_pace(&registry, pace);
        }
        self.disprove_refusals(digest, (&registry, &repository, granted_at));
        self.origin_gave(&registry, &repository);
    }

    /// Whether those are right who say that they hold all of a content.
    fn weigh_claims(&mut self, digest: Digest, wanted_on: usize) {
        let (now, enough) = (self.now, self.share(wanted_on));
        let Some(content) = self.contents.get(&digest) else {
            return;
        };
        let claims = content
            .done
            .keys()
            .filter(|id| !content.doubted.contains(*id) && self.is_expected(id))
            .take(enough)
            .count();
        let unseen = {
            let receipts = &content.receipts;
            let since = receipts.claimed_at.max(Some(receipts.seen_at));
            let elsewhere = content.asked_at().is_none();
            let since = since.max(elsewhere.then_some(self.unleased_seen_at));
            since.map_or(Duration::ZERO, |since| now.since(since))
        };
        let doubtful = content.lease.is_none()
            && claims > 0
            && claims < enough
            && !content.receipts.own_word()
            && unseen >= CLAIM_GRACE;
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        if claims >= enough {
            // so many have verified the whole: who said that it is false or missing was wrong
            content.receipts.disbelieved = 0;
            content.receipts.finished_by = None;
            content.tried.clear();
            content.faults.clear();
            content.away = None;
        } else if doubtful {
            content.doubted.extend(content.done.keys().cloned());
            let finished_by = content.receipts.finished_by.take();
            if let Some((id, _)) = &finished_by {
                content.tried.insert(id.clone());
            }
            self.grant_wanted = true;
            if let Some((id, mirror)) = finished_by {
                self.brought_nothing(&id, mirror.then_some(now));
            }
        }
    }

    /// Leases of holders that others have got nothing from for too long pass on.
    pub(super) fn expire_unseen(&mut self) {
        self.hear_slow();
        let over: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| {
                let lease = content.lease.as_ref()?;
                let over = !content.receipts.own_word() && self.is_unseen(content, lease);
                over.then(|| (lease.host.clone(), *digest))
            })
            .collect();
        for (id, digest) in over {
            let lease = self.end(digest);
            self.revoke(&id, digest, RevokeCause::Ended);
            if let Some(content) = self.contents.get_mut(&digest) {
                content.tried.insert(id.clone());
                let disbelieved = &mut content.receipts.disbelieved;
                *disbelieved = (*disbelieved + 1).min(DISBELIEVED_MOST);
            }
            self.ran_out(&id, lease.as_ref());
            if let Some(lease) = lease {
                self.lease_over(digest, &lease, &id);
            }
        }
    }

    /// Notes what holders say of streams that bring bytes, and no whole chunk yet.
    fn hear_slow(&mut self) {
        let now = self.now;
        let slow = |lease: &lease::Lease| {
            lease.chunks <= lease.seen_chunks + 1
                && lease.trouble.is_none()
                && now.since(lease.seen_at) >= SLOW_AFTER
                && now.since(lease.progress_at) < UNSEEN
        };
        let words: Vec<(String, HostId, u64, Moment)> = self
            .contents
            .values()
            .filter(|content| !content.receipts.own_word())
            .filter_map(|content| content.lease.as_ref())
            .filter(|lease| slow(lease))
            .map(|lease| {
                let said = lease.bytes_per_s_of_chunk(now);
                let since = lease.seen_at;
                (lease.registry.clone(), lease.host.clone(), said, since)
            })
            .collect();
        for (registry, id, said, since) in words {
            if said > 0 {
                self.origin_slow(&registry, id, said, since);
            }
        }
    }

    fn is_unseen(&self, content: &ContentState, lease: &lease::Lease) -> bool {
        let hosts = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
        let least = UNSEEN + PER_HOST.saturating_mul(hosts);
        let times = 1 << content.receipts.disbelieved.saturating_sub(1);
        // it says that it has whole chunks, and nobody gets any
        let kept = lease
            .unseen_since
            .is_some_and(|since| self.now.since(since) >= least * times);
        let pace = self.pace(&lease.registry);
        let most = match lease.taken_over {
            true => UNSEEN_TAKEN_OVER,
            false => UNSEEN_MOST,
        };
        let slow = pace.map_or(most, |pace| {
            let micros = origin::PACE_FACTOR * proto::CHUNK_BYTES * 1_000_000 / pace.max(1);
            Duration::from_micros(micros).clamp(least, most.max(least))
        });
        kept || self.now.since(lease.seen_at) >= slow * times
    }
}
