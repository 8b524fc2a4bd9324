//! Leases: who fetches which content from the registry.

use super::*;
use crate::stage::event::LeaseEnd;

/// Nothing moves anywhere for this long: what is thought to be complete somewhere is asked for again.
const AUDIT_AFTER: Duration = Duration::from_secs(20);

/// An agent that is killed loses what it verified since its last flush, which is half a second and the time that a disk
/// takes to sync.
const FORGETFUL: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct ContentState {
    chunks: u32,
    /// Hosts that hold all of it, and since when.
    done: BTreeMap<HostId, Moment>,
    pub(super) lease: Option<Lease>,
    /// Hosts that found the registry's bytes bad.
    bad_on: BTreeSet<HostId>,
    bad_times: u32,
    /// Hosts that took back what they had made of it.
    pub(super) retracted: BTreeSet<HostId>,
    /// Holders that failed, let it expire or gave it back since the last success; the latest is never next.
    tried: BTreeSet<HostId>,
    last: Option<HostId>,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) host: HostId,
    pub(super) chunks: u32,
    /// The last news that counts as progress.
    pub(super) progress_at: Moment,
    /// The last new chunk.
    chunk_at: Moment,
    /// Where its holder asks.
    pub(super) registry: String,
    /// What the registry does to its holder, and since when.
    pub(super) trouble: Option<(Moment, Trouble)>,
}

impl ContentState {
    pub(super) const fn new(chunks: u32) -> Self {
        Self {
            chunks,
            done: BTreeMap::new(),
            lease: None,
            bad_on: BTreeSet::new(),
            bad_times: 0,
            retracted: BTreeSet::new(),
            tried: BTreeSet::new(),
            last: None,
        }
    }

    pub(super) fn done_on(&mut self, id: &HostId, now: Moment) {
        self.done.insert(id.clone(), now);
        self.tried.clear();
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

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.done.remove(id);
        self.tried.remove(id);
        self.bad_on.remove(id);
    }

    pub(super) fn forgive(&mut self) {
        self.bad_on.clear();
        self.bad_times = 0;
        self.tried.clear();
    }
}

impl Plan {
    /// Whether somebody holds all of it who is here or expected back.
    pub(super) fn is_done(&self, content: &ContentState) -> bool {
        content.done.keys().any(|id| {
            self.hosts.get(id).is_some_and(|host| {
                host.quarantined_until.is_none()
                    && (host.connected
                        || self.now.since(host.disconnected_at) < self.config.absent_after)
            })
        })
    }

    /// Leases what nobody holds, in order, while there is room.
    pub(super) fn grant(&mut self) {
        if self.leases >= self.config.origin_streams || self.now < self.grants_not_before {
            return;
        }
        let mut grants = Vec::new();
        let room = self.config.origin_streams - self.leases;
        let mut asked: BTreeMap<&str, usize> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut given: BTreeMap<HostId, usize> = BTreeMap::new();
        'images: for image in &self.images {
            if image.bad.is_some() {
                continue;
            }
            let mut candidates: Option<Vec<&HostId>> = None;
            for digest in &image.contents {
                if grants.len() >= room {
                    break 'images;
                }
                let asked = asked.entry(image.registry.as_str()).or_default();
                if *asked >= self.origin_room(&image.registry) {
                    break;
                }
                let Some(content) = self.contents.get(digest) else {
                    continue;
                };
                if content.lease.is_some() || self.is_done(content) || !seen.insert(*digest) {
                    continue;
                }
                let candidates = candidates.get_or_insert_with(|| self.candidates(image));
                let Some(host) = self.pick(image, *digest, content, candidates, &given) else {
                    seen.remove(digest);
                    continue;
                };
                // a second lease for one host waits while hosts that could take it are about to say that they stage
                let more = self.hosts.get(&host).map_or(0, |host| host.leases)
                    + given.get(&host).copied().unwrap_or(0);
                if more > 0 && self.awaits_reports(image) {
                    break;
                }
                *given.entry(host.clone()).or_default() += 1;
                *asked += 1;
                grants.push((host, *digest, image.digest));
            }
        }
        for (host, content, image) in grants {
            let registry = self
                .images
                .iter()
                .find(|found| found.digest == image)
                .map_or_else(String::new, |image| image.registry.clone());
            self.begin(&host, content, 0, registry);
            self.actions.push_back(Action::Grant {
                host,
                content,
                image,
            });
        }
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
    fn candidates<'a>(&'a self, image: &'a Image) -> Vec<&'a HostId> {
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

    /// The candidate with the fewest leases; then one that didn't fail before, stages already, lies in a zone with few
    /// leases, and holds most of the image; then by a hash.
    fn pick(
        &self,
        image: &Image,
        digest: Digest,
        content: &ContentState,
        candidates: &[&HostId],
        given: &BTreeMap<HostId, usize>,
    ) -> Option<HostId> {
        let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, host) in &self.hosts {
            let leases = host.leases + given.get(id).copied().unwrap_or(0);
            if leases > 0 {
                *by_zone.entry(host.zone.as_str()).or_default() += leases;
            }
        }
        candidates
            .iter()
            .filter_map(|id| Some((*id, self.hosts.get(*id)?)))
            .min_by_key(|(id, host)| {
                let standing = image.standings.get(*id);
                let staging = standing.is_some_and(|(standing, _)| *standing == Standing::Staging);
                let held = standing.map_or(0, |(_, held)| *held);
                (
                    content.last.as_ref() == Some(*id),
                    content.tried.contains(*id),
                    host.leases + given.get(*id).copied().unwrap_or(0),
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

    fn begin(&mut self, id: &HostId, digest: Digest, chunks: u32, registry: String) {
        let now = self.now;
        if let Some(content) = self.contents.get_mut(&digest) {
            content.lease = Some(Lease {
                host: id.clone(),
                chunks,
                progress_at: now,
                chunk_at: now,
                registry: registry.clone(),
                trouble: None,
            });
            content.last = Some(id.clone());
            self.origins.entry(registry).or_default().leases += 1;
            self.leases += 1;
            if let Some(host) = self.hosts.get_mut(id) {
                host.leases += 1;
            }
        }
    }

    /// Ends the lease of a content, whoever holds it.
    pub(super) fn end(&mut self, digest: Digest) -> Option<Lease> {
        let lease = self.contents.get_mut(&digest)?.lease.take()?;
        self.grant_wanted = true;
        self.leases = self.leases.saturating_sub(1);
        if let Some(host) = self.hosts.get_mut(&lease.host) {
            host.leases = host.leases.saturating_sub(1);
        }
        if let Some(origin) = self.origins.get_mut(&lease.registry) {
            origin.leases = origin.leases.saturating_sub(1);
        }
        Some(lease)
    }

    pub(super) fn revoke(&mut self, host: &HostId, content: Digest) {
        self.actions.push_back(Action::Revoke {
            host: host.clone(),
            content,
        });
    }

    pub(super) fn lease_progress(
        &mut self,
        id: &HostId,
        digest: Digest,
        chunks: u32,
        paced: bool,
        trouble: Option<Trouble>,
    ) {
        let now = self.now;
        let Some(content) = self.contents.get_mut(&digest) else {
            if self.hosts.contains_key(id) {
                self.revoke(id, digest);
            }
            return;
        };
        match &mut content.lease {
            Some(lease) if lease.host == *id => {
                // what turned out false at its end is fetched twice
                let most = content.chunks.saturating_mul(2);
                if chunks.min(most) > lease.chunks {
                    lease.chunks = chunks.min(most);
                    lease.progress_at = now;
                    lease.chunk_at = now;
                    let registry = lease.registry.clone();
                    self.moved_at = now;
                    self.origin_gave(&registry);
                } else if paced && now.since(lease.chunk_at) < self.config.paced_timeout {
                    lease.progress_at = now;
                }
                self.origin_trouble(digest, trouble);
            }
            Some(_) => self.revoke(id, digest),
            None => {
                let usable = self
                    .hosts
                    .get(id)
                    .is_some_and(|host| host.connected && host.quarantined_until.is_none());
                let done = self
                    .contents
                    .get(&digest)
                    .is_some_and(|content| self.is_done(content));
                let registry = self
                    .images
                    .iter()
                    .find(|image| image.contents.contains(&digest))
                    .map(|image| image.registry.clone())
                    .filter(|registry| self.origin_held(now, registry).is_none());
                // a coordinator that has just started takes over the leases that run
                if let Some(registry) = registry
                    && usable
                    && !done
                    && self.leases < self.config.origin_streams
                {
                    self.begin(id, digest, chunks, registry);
                    self.origin_trouble(digest, trouble);
                } else if self.hosts.contains_key(id) {
                    self.revoke(id, digest);
                }
            }
        }
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
        let lease = if held { self.end(digest) } else { None };
        self.moved_at = self.now;
        self.grant_wanted = true;
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        match end {
            LeaseEnd::Done | LeaseEnd::Released => {
                // who stages and gives a lease back holds the content; where it doesn't, the audit finds that out
                let staging = self.images.iter().any(|image| {
                    image.contents.contains(&digest)
                        && matches!(image.standings.get(id), Some((Standing::Staging, _)))
                });
                if end == LeaseEnd::Done || staging {
                    content.done.insert(id.clone(), self.now);
                }
                if end == LeaseEnd::Released {
                    content.tried.insert(id.clone());
                } else {
                    content.tried.clear();
                    content.bad_on.clear();
                    content.bad_times = 0;
                    if let Some(lease) = lease {
                        self.origin_gave(&lease.registry);
                    }
                }
            }
            LeaseEnd::OriginFailed => {
                let Some(lease) = lease else {
                    return;
                };
                content.tried.insert(id.clone());
                if let Some(host) = self.hosts.get_mut(id) {
                    host.failures = host.failures.saturating_add(1);
                }
                self.origin_failed(&lease.registry, id);
            }
            LeaseEnd::ContentBad if held => {
                content.tried.insert(id.clone());
                content.bad_on.insert(id.clone());
                content.bad_times += 1;
                let witnesses = content.bad_on.len();
                let times = content.bad_times;
                self.content_bad(digest, witnesses, times);
            }
            LeaseEnd::ContentBad => {}
        }
    }

    fn content_bad(&mut self, digest: Digest, witnesses: usize, times: u32) {
        let enough = self.config.bad_witnesses.max(1);
        let connected = self.hosts.values().filter(|host| host.connected).count();
        let alone = connected < enough && times as usize >= enough;
        if witnesses < enough && !alone {
            return;
        }
        let mut cancelled = Vec::new();
        for image in &mut self.images {
            if image.bad.is_none() && image.contents.contains(&digest) {
                image.bad = Some(digest);
                cancelled.push(image.digest);
            }
        }
        for digest in cancelled {
            let Some(image) = self.images.iter().find(|image| image.digest == digest) else {
                continue;
            };
            let hosts: Vec<HostId> = self
                .selected(image)
                .into_iter()
                .filter(|id| {
                    self.hosts.get(id).is_some_and(|host| host.connected)
                        && !matches!(
                            image.standings.get(id),
                            Some((Standing::Present | Standing::Installing, _))
                        )
                })
                .collect();
            for host in hosts {
                self.actions.push_back(Action::Cancel {
                    host,
                    image: digest,
                });
            }
        }
        self.revoke_pointless();
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
            self.revoke(&id, digest);
            if let Some(content) = self.contents.get_mut(&digest) {
                content.tried.insert(id.clone());
            }
            if let Some(host) = self.hosts.get_mut(&id) {
                host.failures = host.failures.saturating_add(1);
            }
            // its holder is there, and waits for the registry
            if let Some(lease) = lease
                && lease.trouble.is_some()
            {
                self.origin_failed(&lease.registry, &id);
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
                self.revoke(id, digest);
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
                    .filter(|image| image.bad.is_none() && image.contents.contains(content))
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
            self.revoke(&host, digest);
        }
    }

    /// Nothing is leased and nothing moves, but hosts lack the image: what was thought to be complete somewhere may not
    /// be (its holder was restarted and lost the last second, or is gone). It is leased again; whoever gets the lease
    /// asks peers first, and gives it back where it holds everything.
    pub(super) fn audit(&mut self) {
        if self.leases > 0 || self.now.since(self.moved_at) < AUDIT_AFTER {
            return;
        }
        self.moved_at = self.now;
        let mut doubted = BTreeSet::new();
        for image in &self.images {
            if image.bad.is_none()
                && self.origin_held(self.now, &image.registry).is_none()
                && !self.candidates(image).is_empty()
            {
                doubted.extend(image.contents.iter().copied());
            }
        }
        for digest in doubted {
            if let Some(content) = self.contents.get_mut(&digest) {
                content.done.clear();
            }
        }
    }
}

fn prefix(digest: Digest) -> u64 {
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
