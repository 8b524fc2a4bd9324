//! Leases: who fetches which content from the registry.

use super::*;
use crate::stage::{
    action::RevokeCause, event::LeaseEnd, plan::fault::Faults, plan::witness::Receipts,
};

/// What is granted next.
struct Grant {
    host: HostId,
    content: Digest,
    image: Digest,
    registry: String,
    repository: String,
    purpose: Purpose,
}

/// What was granted just now.
#[derive(Default)]
struct Given<'a> {
    contents: BTreeSet<Digest>,
    hosts: BTreeMap<HostId, usize>,
    registries: BTreeMap<&'a str, usize>,
    /// Those of each host that are mirrors', with the ones that run.
    mirrors: BTreeMap<HostId, usize>,
}

/// The contents of images for one purpose, in order.
struct Queue<'a> {
    plan: &'a Plan,
    purpose: Purpose,
    /// For hosts on trial: see `mirror`.
    trial: bool,
    images: core::slice::Iter<'a, Image>,
    image: Option<&'a Image>,
    /// The image failed: only what made it fail is tried again.
    failed: bool,
    contents: core::slice::Iter<'a, Digest>,
    /// Of the image, once somebody asked.
    candidates: Option<Vec<&'a HostId>>,
}

impl<'a> Queue<'a> {
    fn new(plan: &'a Plan, purpose: Purpose, trial: bool) -> Self {
        Self {
            plan,
            purpose,
            trial,
            images: plan.images.iter(),
            image: None,
            failed: false,
            contents: [].iter(),
            candidates: None,
        }
    }

    fn advance(&mut self) -> Option<(&'a Image, Digest)> {
        loop {
            if let (Some(image), Some(content)) = (self.image, self.contents.next()) {
                return Some((image, *content));
            }
            let wanted =
                |image: &&Image| image.purpose == self.purpose && image.contradicts.is_none();
            let image = self.images.find(wanted)?;
            self.image = Some(image);
            self.contents = image.contents.iter();
            self.failed = self.plan.failure(image).is_some();
            self.candidates = None;
        }
    }

    fn skip_image(&mut self) {
        self.contents = [].iter();
    }
}

/// Nothing moves anywhere for this long: what is thought to be complete somewhere is asked for again. Hosts of the version
/// before don't say which contents they find no source of.
const AUDIT_AFTER: Duration = Duration::from_secs(20);

/// Hosts that lack a content and find no source of it say so for this long before it is doubted that somebody holds it; and
/// whoever is thought to hold it has been here as long. Passing a chunk on to the last host takes a few seconds.
const DOUBT_AFTER: Duration = Duration::from_secs(5);
/// And so much longer for each host of the fleet: a spread takes longer where there are more to spread to.
const DOUBT_PER_HOST: Duration = Duration::from_millis(10);
/// A content is doubted again after this long at the soonest, twice as long each time that no chunk of it came in between.
const DOUBT_AGAIN: Duration = Duration::from_secs(10);
const DOUBT_AGAIN_MOST: Duration = Duration::from_mins(2);
/// So many hosts have to find no source of a content, where so many lack it.
const DOUBTERS: usize = 2;

/// Half of the hosts say within this time that they stage an image, or the others are waited for no longer.
const HALF_WITHIN: Duration = Duration::from_millis(500);

/// A host that came so lately may not have met its peers: it would fetch what they have. So it gets a lease only when the others have
/// so many more.
const NEWCOMER: (Duration, usize) = (Duration::from_secs(2), 2);

/// An agent that is killed loses what it verified since its last flush, which is half a second and the time that a disk
/// takes to sync.
const FORGETFUL: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ContentState {
    pub(super) chunks: u32,
    /// Raw bytes.
    pub(super) size: u64,
    /// Hosts that hold all of it, and since when.
    pub(super) done: BTreeMap<HostId, Moment>,
    pub(super) receipts: Receipts,
    pub(super) lease: Option<Lease>,
    /// What hosts found wrong with it, by the image under whose name they asked.
    pub(super) faults: BTreeMap<Digest, Faults>,
    /// Times that its registry, which gave others something, failed it since a chunk of it came, and until when it is left
    /// alone for that.
    pub(super) away: Option<(u32, Moment)>,
    /// When it was last leased.
    asked_at: Option<Moment>,
    /// Who ever had a lease of it: only those made links of it.
    pub(super) holders: BTreeSet<HostId>,
    /// Holders that failed, let it expire or gave it back since the last success; the latest is never next.
    pub(super) tried: BTreeSet<HostId>,
    last: Option<HostId>,
    /// A chunk of it came, or it was wanted first.
    pub(super) moved_at: Moment,
    /// Hosts that say that they hold all of it, and aren't believed: hosts found no source of it, or got nothing. They are
    /// again when hosts get it without a lease.
    pub(super) doubted: BTreeSet<HostId>,
    /// How often it was doubted since a chunk came, and when it may be doubted again.
    pub(super) doubts: u32,
    doubt_not_before: Moment,
    /// Mirrors' leases of it that the registry failed, one after the other, and when it is leased to one again.
    pub(super) mirror_failures: u32,
    pub(super) mirror_retry_at: Option<Moment>,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) host: HostId,
    /// Under whose name it is fetched.
    pub(super) image: Digest,
    /// It was granted for clients of a mirror.
    pub(super) mirror: bool,
    /// Its holder was on trial then, so that it takes no other's place.
    pub(super) trial: bool,
    /// Its holder said that it had it; this coordinator didn't grant it.
    pub(super) taken_over: bool,
    pub(super) granted_at: Moment,
    /// Its registry gave something a moment before that.
    pub(super) gives: bool,
    pub(super) chunks: u32,
    /// Blob bytes that its holder got, as far as it says.
    pub(super) bytes: u64,
    /// Those when the last chunk came, and at the last news that counts as progress.
    chunk_bytes: u64,
    progress_bytes: u64,
    pub(super) began_at: Moment,
    /// The last news that counts as progress.
    pub(super) progress_at: Moment,
    /// The last new chunk.
    pub(super) chunk_at: Moment,
    /// When other hosts last got some of it, the chunks that it had then, and when the last of them had come.
    pub(super) seen_at: Moment,
    pub(super) seen_chunks: u32,
    pub(super) seen_chunk_at: Moment,
    /// Since when it has whole chunks that nobody got.
    pub(super) unseen_since: Option<Moment>,
    /// Where its holder asks.
    pub(super) registry: String,
    /// With the registry's name.
    pub(super) repository: String,
    /// What the registry does to its holder, and since when.
    pub(super) trouble: Option<(Moment, Trouble)>,
}

/// Of a chunk, compressed, with what comes before its end: a holder that says that more came, and brings no chunk, isn't
/// believed.
const MOST_OF_A_CHUNK: u64 = 2 * proto::CHUNK_BYTES;

impl Lease {
    /// Notes what came of a chunk; whether that is progress: so much a second since the last.
    fn moves(&mut self, now: Moment, bytes: u64, slowest_bytes_per_s: u64) -> bool {
        self.bytes = self.bytes.max(bytes);
        let new = self.bytes - self.progress_bytes;
        let seconds = now.since(self.progress_at).as_secs().max(1);
        let moves = new >= slowest_bytes_per_s.saturating_mul(seconds)
            && self.bytes - self.chunk_bytes <= MOST_OF_A_CHUNK;
        if moves {
            (self.progress_at, self.progress_bytes) = (now, self.bytes);
        }
        moves
    }

    /// Whether others got something of it, or its holder where nobody could say otherwise.
    pub(super) fn has_brought(&self) -> bool {
        self.seen_at > self.granted_at
    }

    /// What its holder says that it got since the last whole chunk, bytes per second.
    pub(super) fn bytes_per_s_of_chunk(&self, now: Moment) -> u64 {
        let millis = u64::try_from(now.since(self.chunk_at).as_millis()).unwrap_or(u64::MAX);
        let bytes = self.bytes - self.chunk_bytes;
        bytes.saturating_mul(1_000).checked_div(millis).unwrap_or(0)
    }

    /// What its holder gets from the registry, on average.
    pub(super) fn bytes_per_s(&self, now: Moment) -> u64 {
        let micros = u64::try_from(now.since(self.began_at).as_micros()).unwrap_or(u64::MAX);
        self.bytes
            .saturating_mul(1_000_000)
            .checked_div(micros)
            .unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) const fn is_mirrors(&self) -> bool {
        self.mirror
    }
}

impl ContentState {
    pub(super) fn new(now: Moment, content: &Content) -> Self {
        Self {
            chunks: content.chunks,
            size: content.size,
            done: BTreeMap::new(),
            receipts: Receipts::new(now, content),
            lease: None,
            faults: BTreeMap::new(),
            away: None,
            asked_at: None,
            holders: BTreeSet::new(),
            tried: BTreeSet::new(),
            last: None,
            moved_at: now,
            doubted: BTreeSet::new(),
            doubts: 0,
            doubt_not_before: now,
            mirror_failures: 0,
            mirror_retry_at: None,
        }
    }

    pub(super) const fn asked_at(&self) -> Option<Moment> {
        self.asked_at
    }

    /// The host says that it holds all of it.
    pub(super) fn claim(&mut self, id: &HostId, now: Moment) {
        self.done.insert(id.clone(), now);
        self.receipts.claimed(now);
        if self.receipts.own_word() {
            self.tried.clear();
        }
    }

    /// The host lost something that it had last spoken of at `heard_at`: what it had just completed then may be part of
    /// that.
    pub(super) fn doubt(&mut self, id: &HostId, heard_at: Moment) {
        if let Some(done_at) = self.done.get(id)
            && *done_at + FORGETFUL >= heard_at
        {
            self.done.remove(id);
        }
    }

    pub(super) fn forget_holder(&mut self, id: &HostId) {
        self.done.remove(id);
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.done.remove(id);
        self.doubted.remove(id);
        self.tried.remove(id);
        self.receipts.forget_host(id);
    }

    /// What was found wrong with it under this image's name counts no more.
    pub(super) fn forgive(&mut self, image: &Digest) {
        if self.faults.remove(image).is_some() {
            self.tried.clear();
        }
    }
}

impl Plan {
    /// Whether somebody holds all of it who is believed, and here or expected back.
    pub(super) fn is_done(&self, content: &ContentState) -> bool {
        let mut holders = content.done.keys();
        holders.any(|id| !content.doubted.contains(id) && self.is_expected(id))
    }

    /// Whether what this host holds can be had: it is here or expected back, and isn't shunned.
    pub(super) fn is_expected(&self, id: &HostId) -> bool {
        self.hosts.get(id).is_some_and(|host| {
            host.quarantined_until.is_none()
                && (host.connected || self.now.since(host.since) < self.config.absent_after)
        })
    }

    /// Leases what nobody holds, while there is room: in order, and half each where images and mirrors both want some. A
    /// mirror's client doesn't wait for a layer of gigabytes, so mirrors have one lease in any case.
    pub(super) fn grant(&mut self) {
        if self.now < self.grants_not_before {
            return;
        }
        self.pass_on_trials();
        let mut queues =
            [Purpose::Stage, Purpose::Mirror].map(|purpose| Queue::new(self, purpose, false));
        let mut grants = Vec::new();
        let mut given = Given::default();
        let mut trials = 0;
        let leases = self.contents.values().filter_map(|of| of.lease.as_ref());
        for lease in leases.filter(|lease| lease.mirror) {
            *given.mirrors.entry(lease.host.clone()).or_default() += 1;
            trials += usize::from(lease.trial);
        }
        let images = self.leases - self.mirror_leases;
        let mut running = [images, self.mirror_leases - trials];
        loop {
            let first = usize::from(running[1] < running[0]);
            let next = [first, 1 - first].into_iter().find_map(|at| {
                let room = self.room(queues[at].purpose, running);
                let grant = room.then(|| self.next_grant(&mut queues[at], &mut given));
                Some((at, grant??))
            });
            let Some((at, grant)) = next else { break };
            running[at] += 1;
            grants.push(grant);
        }
        let mut queue = Queue::new(self, Purpose::Mirror, true);
        while trials < self.config.origin_streams
            && let Some(grant) = self.next_grant(&mut queue, &mut given)
        {
            trials += 1;
            grants.push(grant);
        }
        for grant in grants {
            self.actions.push_back(Action::Grant {
                host: grant.host.clone(),
                content: grant.content,
                image: grant.image,
            });
            self.begin(grant, 0);
        }
    }

    /// Whether one more lease may run beside these of images and of mirrors.
    const fn room(&self, purpose: Purpose, [images, mirrors]: [usize; 2]) -> bool {
        let room = images + mirrors < self.config.origin_streams;
        match purpose {
            Purpose::Mirror => room || mirrors == 0,
            Purpose::Stage => room,
        }
    }

    /// The next of these contents that nobody holds and somebody may fetch.
    fn next_grant<'a>(&'a self, queue: &mut Queue<'a>, given: &mut Given<'a>) -> Option<Grant> {
        while let Some((image, digest)) = queue.advance() {
            let asked = given.registries.get(image.registry.as_str());
            if asked.copied().unwrap_or(0) >= self.origin_room(image) {
                queue.skip_image();
                continue;
            }
            let Some(content) = self.contents.get(&digest) else {
                continue;
            };
            if queue.failed && content.fails(&image.digest).is_none()
                || self.rests(content, &digest, image)
                || self.origin_fails(image) && self.probe(image) != Some((image.digest, digest))
            {
                continue;
            }
            let early = queue.purpose == Purpose::Mirror
                && content.mirror_retry_at.is_some_and(|at| self.now < at);
            // who says first that it stages isn't leased to for that alone
            if self.is_early(image) {
                queue.skip_image();
                continue;
            }
            let seen = given.contents.contains(&digest);
            if content.lease.is_some() || early || seen || self.is_done(content) {
                continue;
            }
            let candidates = queue
                .candidates
                .get_or_insert_with(|| self.candidates(image));
            let Some(host) = self.pick(image, digest, content, candidates, (given, queue.trial))
            else {
                continue;
            };
            // a second lease for one host waits while hosts that could take it are about to say that they stage
            let more = self.hosts.get(&host).map_or(0, |host| host.leases)
                + given.hosts.get(&host).copied().unwrap_or(0);
            if more > 0 && self.awaits_reports(image) {
                queue.skip_image();
                continue;
            }
            given.contents.insert(digest);
            *given.hosts.entry(host.clone()).or_default() += 1;
            if image.purpose == Purpose::Mirror {
                *given.mirrors.entry(host.clone()).or_default() += 1;
            }
            *given.registries.entry(&image.registry).or_default() += 1;
            return Some(Grant {
                host,
                content: digest,
                image: image.digest,
                registry: image.registry.clone(),
                repository: image.repository.clone(),
                purpose: image.purpose,
            });
        }
        None
    }

    /// Whether a host whose client waits for this content has only to go on waiting: chunks of it come, to whomever, or it
    /// is in the queue while chunks of others do. Else the host is better off by itself.
    #[must_use]
    pub fn is_coming(&self, host: &HostId, content: &Digest) -> bool {
        let trusted = self
            .hosts
            .get(host)
            .is_some_and(|host| host.quarantined_until.is_none());
        let Some(content) = self.contents.get(content).filter(|_| trusted) else {
            return false;
        };
        let lately = |at: Moment| self.now.since(at) < self.config.lease_timeout;
        let refused = content.mirror_retry_at.is_some_and(|at| self.now < at);
        if self.is_done(content) || refused {
            return false;
        }
        match &content.lease {
            // whoever takes it over from one that brought nothing has to show that it brings something
            Some(lease) => {
                lately(content.moved_at) || content.tried.is_empty() && lately(lease.chunk_at)
            }
            None => lately(content.moved_at) || lately(self.mirror_moved_at),
        }
    }

    /// Whether an image was wanted just now, and less than half of the hosts that are here have said anything about it.
    fn is_early(&self, image: &Image) -> bool {
        if image.purpose == Purpose::Mirror || self.now.since(image.wanted_at) >= HALF_WITHIN {
            return false;
        }
        let selected = self.selected(image);
        let here = |id: &&HostId| self.hosts.get(*id).is_some_and(|host| host.connected);
        let said = |id: &&HostId| image.standings.contains_key(*id);
        let here = selected.iter().filter(here);
        let (all, said) = here.fold((0, 0), |(all, of), id| {
            (all + 1, of + usize::from(said(&id)))
        });
        said * 2 < all
    }

    /// Whether connected hosts were told to stage a moment ago and haven't said that they do.
    fn awaits_reports(&self, image: &Image) -> bool {
        let silent = |id: &HostId| {
            !image.standings.contains_key(id)
                && self
                    .hosts
                    .get(id)
                    .is_some_and(|host| host.connected && host.quarantined_until.is_none())
        };
        self.now.since(image.wanted_at) < self.config.reports_within
            && match &image.selection {
                Selection::All => self.hosts.keys().any(silent),
                Selection::Hosts(hosts) => hosts.iter().any(silent),
            }
    }

    /// Hosts that may fetch for this image: connected, trusted, selected, and staging it. Where none says so for a while,
    /// those that haven't said anything or wait for room are asked too.
    pub(super) fn candidates<'a>(&'a self, image: &'a Image) -> Vec<&'a HostId> {
        let patient = self.now.since(image.wanted_at) < self.config.reports_within;
        let fit = |id: &&'a HostId, staging: bool| {
            self.hosts
                .get(*id)
                .is_some_and(|host| host.connected && host.quarantined_until.is_none())
                && match image.standings.get(*id) {
                    Some((Standing::Staging, _)) => true,
                    None | Some((Standing::Queued | Standing::Gone, _)) => !staging,
                    Some((Standing::Present | Standing::Installing | Standing::Failed, _)) => false,
                }
        };
        let all = |staging: bool| -> Vec<&'a HostId> {
            match &image.selection {
                Selection::All => self.hosts.keys().filter(|id| fit(id, staging)).collect(),
                Selection::Hosts(hosts) => hosts.iter().filter(|id| fit(id, staging)).collect(),
            }
        };
        let staging = all(true);
        if staging.is_empty() && !patient {
            all(false)
        } else {
            staging
        }
    }

    /// A candidate none of whose links was found false lately; then one that is thought to hold the content itself, which it then
    /// says at once; then the one with the fewest leases;
    /// then one that didn't fail before, stages already, lies in a zone with few leases, and holds most of the image; then by a
    /// hash.
    fn pick(
        &self,
        image: &Image,
        digest: Digest,
        content: &ContentState,
        candidates: &[&HostId],
        (given, trial): (&Given<'_>, bool),
    ) -> Option<HostId> {
        let mirror = image.purpose == Purpose::Mirror;
        // what others want as well isn't for those on trial, also where others have to wait for it
        if trial && !candidates.iter().all(|id| self.is_on_trial(id)) {
            return None;
        }
        let most = match trial {
            true => 1,
            false => self.mirror_share(),
        };
        let has_room = |id: &HostId| {
            let has = given.mirrors.get(id).copied().unwrap_or(0);
            !mirror || self.is_on_trial(id) == trial && has < most
        };
        let given = &given.hosts;
        let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, host) in &self.hosts {
            let leases = host.leases + given.get(id).copied().unwrap_or(0);
            if leases > 0 {
                *by_zone.entry(host.zone.as_str()).or_default() += leases;
            }
        }
        let prober = self.prober(image);
        candidates
            .iter()
            .filter_map(|id| Some((*id, self.hosts.get(*id)?)))
            .filter(|(id, host)| {
                has_room(id)
                    && !host.is_unable(&image.registry, self.now)
                    && !Self::says_whole(host, content, id)
                    && !content.has_looked(&image.digest, id, self.now)
            })
            .min_by_key(|(id, host)| {
                let last = host.charges.is_last_for_leases(self.now);
                let barren = if mirror {
                    host.mirror_yield.barren()
                } else {
                    0
                };
                let standing = image.standings.get(*id);
                let staging = standing.is_some_and(|(standing, _)| *standing == Standing::Staging);
                let held = standing.map_or(0, |(_, held)| *held);
                let came_lately = self.now.since(host.since) < NEWCOMER.0;
                let handicap = if came_lately { NEWCOMER.1 } else { 0 };
                (
                    last,
                    barren,
                    content.last.as_ref() == Some(*id) || prober == Some(*id),
                    content.tried.contains(*id),
                    host.counts || !content.doubted.contains(*id),
                    host.leases + given.get(*id).copied().unwrap_or(0) + handicap,
                    host.failures.min(8),
                    !staging,
                    by_zone.get(host.zone.as_str()).copied().unwrap_or(0),
                    // an eighth more counts as more; else chance decides
                    u32::MAX - held.checked_ilog2().map_or(0, |log| log + 1),
                    mix(self.seed ^ prefix(digest), id.key().0),
                )
            })
            .map(|(id, _)| id.clone())
    }

    fn begin(&mut self, grant: Grant, chunks: u32) {
        let Grant {
            host: id,
            content: digest,
            image,
            registry,
            repository,
            purpose,
        } = grant;
        let mirror = purpose == Purpose::Mirror;
        let trial = mirror && self.is_on_trial(&id);
        let now = self.now;
        let origin = self.origins.get(&registry);
        let gives = origin.is_some_and(|origin| origin.gives(now));
        if let Some(image) = self.images.iter_mut().find(|known| known.digest == image) {
            image.asked_at = Some(now);
        }
        if let Some(content) = self.contents.get_mut(&digest) {
            content.asked_at = Some(now);
            content.lease = Some(Lease {
                host: id.clone(),
                image,
                mirror,
                trial,
                taken_over: false,
                granted_at: now,
                gives,
                chunks,
                bytes: 0,
                chunk_bytes: 0,
                progress_bytes: 0,
                began_at: now,
                progress_at: now,
                chunk_at: now,
                seen_at: now,
                seen_chunks: chunks,
                seen_chunk_at: now,
                unseen_since: None,
                registry: registry.clone(),
                repository: repository.clone(),
                trouble: None,
            });
            content.last = Some(id.clone());
            content.holders.insert(id.clone());
            let origin = self.origins.entry(registry).or_default();
            origin.began(&repository, &id);
            self.leases += 1;
            self.mirror_leases += usize::from(mirror);
            if let Some(host) = self.hosts.get_mut(&id) {
                host.leases += 1;
            }
        }
    }

    /// Ends the lease of a content, whoever holds it.
    pub(super) fn end(&mut self, digest: Digest) -> Option<Lease> {
        let lease = self.contents.get_mut(&digest)?.lease.take()?;
        self.grant_wanted = true;
        self.leases = self.leases.saturating_sub(1);
        self.mirror_leases -= usize::from(lease.mirror).min(self.mirror_leases);
        if let Some(host) = self.hosts.get_mut(&lease.host) {
            host.leases = host.leases.saturating_sub(1);
        }
        if let Some(origin) = self.origins.get_mut(&lease.registry) {
            origin.ended(&lease.repository);
        }
        Some(lease)
    }

    pub(super) fn revoke(&mut self, host: &HostId, content: Digest, cause: RevokeCause) {
        self.actions.push_back(Action::Revoke {
            host: host.clone(),
            content,
            cause,
        });
    }

    pub(super) fn lease_progress(
        &mut self,
        id: &HostId,
        digest: Digest,
        (chunks, bytes): (u32, u64),
        paced: bool,
        trouble: Option<Trouble>,
    ) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&digest) else {
            if self.hosts.contains_key(id) {
                self.revoke(id, digest, RevokeCause::NotHeld);
            }
            return;
        };
        let own_word = content.receipts.own_word();
        match &mut content.lease {
            Some(lease) if lease.host == *id => {
                // what turned out false at its end is fetched twice
                let most = content.chunks.saturating_mul(2);
                if chunks.min(most) > lease.chunks {
                    lease.chunks = chunks.min(most);
                    lease.progress_at = now;
                    lease.chunk_at = now;
                    lease.bytes = lease.bytes.max(bytes);
                    (lease.chunk_bytes, lease.progress_bytes) = (lease.bytes, lease.bytes);
                    // others may say that they have a chunk before its holder does
                    if lease.chunks > lease.seen_chunks + 1 {
                        lease.unseen_since.get_or_insert(now);
                    }
                    let (registry, image) = (lease.registry.clone(), lease.image);
                    let (repository, mirror) = (lease.repository.clone(), lease.mirror);
                    let granted_at = lease.granted_at;
                    if own_word {
                        lease.seen_at = now;
                        lease.seen_chunks = lease.chunks;
                        lease.seen_chunk_at = now;
                        lease.unseen_since = None;
                        content.came(&image);
                        content.moved_at = now;
                        content.doubts = 0;
                        self.moved_at = now;
                        if mirror {
                            self.mirror_moved_at = now;
                        }
                        let of = (registry.as_str(), repository.as_str(), granted_at);
                        self.disprove_refusals(digest, of);
                        self.origin_gave(&registry, &repository);
                    }
                } else if lease.moves(now, bytes, self.config.slowest_stream_bytes_per_s) {
                    let registry = lease.registry.clone();
                    let repository = lease.repository.clone();
                    if own_word {
                        lease.seen_at = now;
                        self.moved_at = now;
                        self.origin_gave(&registry, &repository);
                    }
                } else if paced && now.since(lease.chunk_at) < self.config.paced_timeout {
                    lease.progress_at = now;
                }
                self.origin_trouble(digest, trouble);
            }
            Some(_) => self.revoke(id, digest, RevokeCause::NotHeld),
            None => {
                let usable = self.hosts.get(id).is_some_and(|host| {
                    host.connected && host.quarantined_until.is_none() && host.failures == 0
                });
                let done = self
                    .contents
                    .get(&digest)
                    .is_some_and(|content| self.is_done(content));
                // an image's own word counts before a mirror's
                let wanted = self
                    .images
                    .iter()
                    .filter(|image| self.wants(image, &digest))
                    .min_by_key(|image| image.purpose)
                    .filter(|image| self.origin_held(now, image).is_none())
                    .map(|image| Grant {
                        host: id.clone(),
                        content: digest,
                        image: image.digest,
                        registry: image.registry.clone(),
                        repository: image.repository.clone(),
                        purpose: image.purpose,
                    });
                // a coordinator that has just started takes over the leases that run; of what it has leased itself it knows better
                let fresh = self
                    .contents
                    .get(&digest)
                    .is_some_and(|content| content.asked_at().is_none());
                if let Some(grant) = wanted
                    && usable
                    && fresh
                    && !done
                    && self.leases < self.config.origin_streams
                    && self.may_take_over_more(id)
                {
                    self.begin(grant, chunks);
                    if let Some(content) = self.contents.get_mut(&digest)
                        && let Some(lease) = &mut content.lease
                    {
                        lease.taken_over = true;
                    }
                    self.origin_trouble(digest, trouble);
                } else if self.hosts.contains_key(id) {
                    self.revoke(id, digest, RevokeCause::NotHeld);
                }
            }
        }
    }

    /// Whether a host is believed about one more lease that this coordinator hasn't granted. A host that makes them up would
    /// keep all streams of a registry to itself; one that doesn't has its share of them, hardly ever more.
    fn may_take_over_more(&self, id: &HostId) -> bool {
        let hosts = self.hosts.values().filter(|host| host.connected).count();
        let share = self.config.origin_streams.div_ceil(hosts.max(1));
        self.hosts.get(id).is_some_and(|host| host.leases < share)
    }

    pub(super) fn lease_ended(&mut self, id: &HostId, digest: Digest, end: LeaseEnd) {
        if !self.hosts.contains_key(id) {
            return;
        }
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        let held = content
            .lease
            .as_ref()
            .is_some_and(|lease| lease.host == *id);
        // a host that says what it holds says so there
        let believed = held || self.hosts.get(id).is_some_and(|host| !host.counts);
        if !believed {
            return;
        }
        let lease = if held { self.end(digest) } else { None };
        self.grant_wanted = true;
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        match end {
            LeaseEnd::Done | LeaseEnd::Released => {
                // who stages and gives its lease back holds the content; where it doesn't, the audit finds that out. A lease
                // that was ended before says nothing: its holder may have been told to stop
                let staging = self.images.iter().any(|image| {
                    image.purpose == Purpose::Stage
                        && image.contents.contains(&digest)
                        && matches!(image.standings.get(id), Some((Standing::Staging, _)))
                });
                let own_word = content.receipts.own_word();
                if end == LeaseEnd::Done || (held && staging) {
                    content.claim(id, self.now);
                    if held {
                        let mirror = lease.as_ref().is_some_and(|lease| lease.mirror);
                        content.receipts.finished(id, mirror, self.now);
                    }
                    if own_word {
                        content.doubted.clear();
                    }
                }
                if end == LeaseEnd::Released {
                    content.tried.insert(id.clone());
                    if let Some(lease) = lease
                        && lease.mirror
                        && !lease.has_brought()
                        && let Some(host) = self.hosts.get_mut(id)
                    {
                        host.mirror_yield.failed();
                    }
                } else if own_word {
                    content.tried.clear();
                    content.faults.clear();
                    content.away = None;
                    content.mirror_failures = 0;
                    content.mirror_retry_at = None;
                    content.moved_at = self.now;
                    self.moved_at = self.now;
                    if lease.as_ref().is_some_and(|lease| lease.chunks > 0) {
                        content.doubts = 0;
                    }
                    if let Some(lease) = lease {
                        if lease.mirror {
                            self.mirror_moved_at = self.now;
                        }
                        if let Some(host) = self.hosts.get_mut(id) {
                            host.unable.remove(&lease.registry);
                        }
                        self.origin_gave(&lease.registry, &lease.repository);
                    }
                }
            }
            // of the repository that this host named, and for its client: images of others have their own witnesses
            LeaseEnd::OriginFailed | LeaseEnd::Faulty(_) | LeaseEnd::HostUnable
                if lease.as_ref().is_some_and(|lease| lease.mirror) =>
            {
                self.mirror_failed(id, digest);
            }
            LeaseEnd::OriginFailed => {
                let Some(lease) = lease else {
                    return;
                };
                content.tried.insert(id.clone());
                if let Some(host) = self.hosts.get_mut(id) {
                    host.failures = host.failures.saturating_add(1);
                }
                self.lease_failed(digest, &lease, id);
            }
            LeaseEnd::Faulty(fault) => {
                if let Some(lease) = lease {
                    self.content_faulty(id, digest, lease.image, fault);
                }
            }
            LeaseEnd::HostUnable => {
                content.tried.insert(id.clone());
                if let Some(lease) = lease {
                    self.host_unable(id, &lease.registry);
                }
            }
        }
    }

    /// Leases without progress pass on.
    pub(super) fn expire_leases(&mut self) {
        let over: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| {
                let lease = content.lease.as_ref()?;
                let idle = self.now.since(lease.progress_at) >= self.config.lease_timeout;
                idle.then(|| (lease.host.clone(), *digest))
            })
            .collect();
        for (id, digest) in over {
            let lease = self.end(digest);
            let cause = match &lease {
                Some(lease) if lease.trouble.is_some() => RevokeCause::OriginFailed,
                _ => RevokeCause::Ended,
            };
            self.revoke(&id, digest, cause);
            if let Some(content) = self.contents.get_mut(&digest) {
                content.tried.insert(id.clone());
            }
            self.ran_out(&id, lease.as_ref());
            // its holder is there, and waits for the registry
            if let Some(lease) = lease {
                self.lease_over(digest, &lease, &id);
            }
        }
    }

    /// The host is shunned or gone: its leases pass on at once.
    pub(super) fn drop_leases_of(&mut self, id: &HostId, tell: bool) {
        let held: Vec<Digest> = self
            .contents
            .iter()
            .filter(|(_, content)| {
                content
                    .lease
                    .as_ref()
                    .is_some_and(|lease| lease.host == *id)
            })
            .map(|(digest, _)| *digest)
            .collect();
        for digest in held {
            self.end(digest);
            if tell {
                self.revoke(id, digest, RevokeCause::Ended);
            }
        }
    }

    /// Leases of contents that no live image wants any more end, and those of a holder that is to keep still. One that isn't
    /// selected any more gives its lease back by itself: what it fetched last counts.
    pub(super) fn revoke_pointless(&mut self) {
        let wanted = |host: &HostId, content: &Digest| {
            let images = || {
                self.images
                    .iter()
                    .filter(|image| self.wants(image, content))
            };
            let held = images().any(|image| image.held.contains(host));
            images().any(|image| !held || self.selects(image, host))
        };
        let over: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| Some((content.lease.as_ref()?.host.clone(), *digest)))
            .filter(|(host, digest)| !wanted(host, digest))
            .collect();
        for (host, digest) in over {
            self.end(digest);
            self.revoke(&host, digest, RevokeCause::Ended);
        }
    }

    /// All leases that a host says it has: what was granted in an earlier session and isn't among them went with an earlier
    /// life of its program. It is leased again at once.
    pub(super) fn leases_held(&mut self, id: &HostId, held: &[Digest]) {
        let Some(host) = self.hosts.get(id) else {
            return;
        };
        let since = host.since;
        let lost: Vec<Digest> = self
            .contents
            .iter()
            .filter(|(digest, content)| {
                content.lease.as_ref().is_some_and(|lease| {
                    lease.host == *id && lease.granted_at < since && !held.contains(digest)
                })
            })
            .map(|(digest, _)| *digest)
            .collect();
        for digest in lost {
            self.end(digest);
        }
    }

    /// A host lacks something of these contents, and of no others, that no peer which it is connected with has.
    pub(super) fn without_source(&mut self, id: &HostId, contents: &[Digest]) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(id).filter(|host| host.connected) else {
            return;
        };
        let known = contents
            .iter()
            .filter(|content| self.contents.contains_key(content));
        host.without_source = known
            .map(|content| {
                let since = host.without_source.get(content).copied();
                (*content, since.unwrap_or(now))
            })
            .collect();
    }

    /// What is thought to be complete somewhere may not be: its holder was killed and lost the last second, or can't serve it.
    /// Where hosts that stage find no source of a content, it is leased again, whatever else moves; first to whoever is
    /// thought to hold it, and gives the lease back if it does.
    ///
    /// Their word moves little: one lease, whose holder asks its peers first, and the next doubt of the same content waits for
    /// twice as long unless chunks came.
    pub(super) fn audit(&mut self) {
        self.audit_all();
        let now = self.now;
        let hosts = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
        let patience = DOUBT_AFTER + DOUBT_PER_HOST.saturating_mul(hosts);
        let mut doubters: BTreeMap<Digest, BTreeSet<&HostId>> = BTreeMap::new();
        for (id, host) in &self.hosts {
            for (content, since) in &host.without_source {
                if host.quarantined_until.is_none() && now.since(*since) >= patience {
                    doubters.entry(*content).or_default().insert(id);
                }
            }
        }
        let doubted: Vec<Digest> = doubters
            .into_iter()
            .filter(|(digest, by)| self.is_doubtful(*digest, by, patience))
            .map(|(digest, _)| digest)
            .collect();
        for digest in doubted {
            self.doubt(digest);
        }
    }

    fn doubt(&mut self, digest: Digest) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        let again = DOUBT_AGAIN
            .saturating_mul(1 << content.doubts.min(8))
            .min(DOUBT_AGAIN_MOST);
        // the first time whoever is thought to hold it is asked, also if it was the last to fetch it
        if content.doubts == 0 {
            content.last = None;
        }
        content.doubts = content.doubts.saturating_add(1);
        content.doubt_not_before = now + again;
        content.doubted = content.done.keys().cloned().collect();
    }

    fn is_doubtful(&self, digest: Digest, by: &BTreeSet<&HostId>, patience: Duration) -> bool {
        let Some(content) = self.contents.get(&digest) else {
            return false;
        };
        // who is away for a moment, or was, brings back what it holds; who completed it just now is passing it on
        let settled = content.done.iter().all(|(id, done_at)| {
            self.hosts.get(id).is_none_or(|host| {
                let here = self.now.since(host.since) >= patience;
                here && self.now.since(*done_at) >= patience
            })
        });
        if content.lease.is_some()
            || content.doubt_not_before > self.now
            || !settled
            || !self.is_done(content)
        {
            return false;
        }
        let wanted = |image: &&Image| {
            image.purpose == Purpose::Stage
                && self.wants(image, &digest)
                && self.origin_held(self.now, image).is_none()
        };
        let lacking: BTreeSet<&HostId> = self
            .images
            .iter()
            .filter(wanted)
            .flat_map(|image| self.candidates(image))
            .collect();
        let enough = match content.receipts.receivers {
            0 => DOUBTERS.min(lacking.len()).max(1),
            receivers => self.share(receivers),
        };
        by.intersection(&lacking).count() >= enough
    }

    /// The same where nothing is leased and nothing moves anywhere, but hosts lack an image.
    fn audit_all(&mut self) {
        if self.leases > 0 || self.now.since(self.moved_at) < AUDIT_AFTER {
            return;
        }
        self.moved_at = self.now;
        let mut doubted = BTreeSet::new();
        for image in &self.images {
            if self.is_live(image)
                && self.origin_held(self.now, image).is_none()
                && !self.candidates(image).is_empty()
            {
                doubted.extend(image.contents.iter().copied());
            }
        }
        for digest in doubted {
            self.doubt(digest);
        }
    }
}

pub(super) fn prefix(digest: Digest) -> u64 {
    digest
        .as_bytes()
        .iter()
        .take(8)
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// A hash for breaking ties; nothing rests on its strength.
fn mix(a: u64, b: u64) -> u64 {
    let mut x = a
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(b.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
