//! Registries: whether they can be asked, and when again.
//!
//! A host may have trouble of its own, and a registry may have trouble with one content or one repository alone. So a failure
//! counts for as little as it can. A lease that fails makes its content rest, and another host tries it at once. When two
//! hosts fail with two contents of one repository, and nothing of that came meanwhile, everybody leaves the repository alone
//! for a while that grows; then one lease tries first. A repository that hasn't failed is asked all the same: it shows whether
//! the whole registry is away. Where that is so, one lease at a time asks in repositories that failed, and one in others.
//!
//! When a registry gives something after it gave nothing for a while, what it failed before is asked for at once. What it asks
//! for itself (`Retry-After`) is weighed in `wish`.

use super::*;
use crate::stage::action::RevokeCause;

/// A registry that gave nothing for so long, and then something, is asked anew for what it failed before. See
/// [`Plan::failed_again`] for what else it tells.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// Leases that came to nothing and are remembered, of one registry. More don't end between two chunks of others.
const VAIN_MOST: usize = 16;

/// A lease that came to nothing, of a registry that gave something when it began.
#[derive(Debug)]
pub(super) struct Vain {
    pub(super) content: Digest,
    pub(super) image: Digest,
    pub(super) host: HostId,
    /// When it ended.
    pub(super) at: Moment,
}

/// What is known of one registry.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// By name, with the registry's.
    repositories: BTreeMap<String, Repository>,
    /// Who was last leased something of it.
    prober: Option<HostId>,
    /// When it last gave somebody something.
    pub(super) gave_at: Option<Moment>,
    /// Leases that came to nothing since then.
    vain: Vec<Vain>,
    /// What it asked for.
    pub(super) wishes: wish::Wishes,
    /// What each of its streams brought lately, bytes per second, and when others last got something of one.
    pace: Option<u64>,
    paced_at: Moment,
    /// Holders that say that their stream is slow, which nobody else can see before a chunk is whole, and what it brings
    /// (bytes per second).
    slow: BTreeMap<HostId, u64>,
}

/// What is known of one repository of a registry.
#[derive(Debug, Default)]
struct Repository {
    /// Leases on it that run.
    leases: usize,
    /// When it last gave somebody something.
    gave_at: Option<Moment>,
    /// Hosts that it failed since it last gave something, and with what.
    failed_on: BTreeSet<HostId>,
    failed_with: BTreeSet<Digest>,
    /// Times that it was left alone since it last gave something, and when it was last.
    failures: u32,
    failed_at: Moment,
    /// Left alone until then.
    retry_at: Option<Moment>,
}

/// A stream may bring a chunk so many times slower than the registry's streams did lately.
pub(super) const PACE_FACTOR: u64 = 4;
/// The most holders that have to say that their streams became slow: so many in a row that aren't liars' alone.
const SLOW_WORDS: usize = 6;

impl Repository {
    fn held_until(&self, now: Moment) -> Option<Moment> {
        self.retry_at.filter(|at| *at > now)
    }
}

impl Origin {
    /// Notes a lease that began in this repository.
    pub(super) fn began(&mut self, repository: &str, id: &HostId) {
        self.prober = Some(id.clone());
        self.repositories
            .entry(repository.to_string())
            .or_default()
            .leases += 1;
    }

    /// Notes that one ended.
    pub(super) fn ended(&mut self, repository: &str) {
        if let Some(repository) = self.repositories.get_mut(repository) {
            repository.leases = repository.leases.saturating_sub(1);
        }
    }

    /// Notes a lease that came to nothing.
    pub(super) fn in_vain(&mut self, vain: Vain) {
        if self.vain.len() >= VAIN_MOST {
            self.vain.remove(0);
        }
        self.vain.push(vain);
    }

    /// Whether it gave something a moment ago.
    pub(super) fn gives(&self, now: Moment) -> bool {
        self.gave_at.is_some_and(|at| now.since(at) < QUIET)
    }

    fn fails(&self, repository: &str) -> bool {
        let repository = self.repositories.get(repository);
        repository.is_some_and(|repository| repository.failures > 0)
    }

    /// Leases that run in repositories that fail, or in those that don't.
    fn leases(&self, failing: bool) -> usize {
        let all = self.repositories.values();
        let those = all.filter(|repository| (repository.failures > 0) == failing);
        those.map(|repository| repository.leases).sum()
    }

    /// Whether two of its repositories fail, and it gave nothing since.
    fn is_away(&self) -> bool {
        let all = self.repositories.values();
        let failing = all.filter(|repository| repository.failures > 0);
        let since = |repository: &&Repository| self.gave_at <= Some(repository.failed_at);
        failing.filter(since).count() >= 2
    }

    /// It is to be tried by one lease first: of this repository, and of those that failed as it did.
    pub(super) fn try_first(&mut self, repository: &str, now: Moment) {
        let repository = self.repositories.entry(repository.to_string()).or_default();
        repository.failures = repository.failures.max(1);
        repository.failed_at = now;
    }
}

/// The registry's part of an image's first reference, under which hosts ask for it. Of what has no reference (blobs of
/// mirrors) the registry isn't known here: each stands for itself, so that one registry's trouble doesn't hold up others.
pub(super) fn registry(image: Digest, references: &[String]) -> String {
    references
        .first()
        .and_then(|reference| reference.split_once('/'))
        .map_or_else(|| image.to_string(), |(registry, _)| registry.to_string())
}

/// The same with the repository's part: the reference without its tag or digest.
pub(super) fn repository(image: Digest, references: &[String]) -> String {
    let Some(reference) = references
        .first()
        .filter(|reference| reference.contains('/'))
    else {
        return image.to_string();
    };
    let name = reference
        .split_once('@')
        .map_or(reference.as_str(), |(name, _)| name);
    match name.rsplit_once(':') {
        // else it is the registry's port
        Some((name, tag)) if !tag.contains('/') => name.to_string(),
        _ => name.to_string(),
    }
}

impl Plan {
    /// How long nothing is asked for under an image's name, and whether its registry asked for that.
    pub(super) fn origin_held(&self, now: Moment, image: &Image) -> Option<(Duration, bool)> {
        let origin = self.origins.get(&image.registry)?;
        let asked = origin.wishes.held_until(&image.repository, now);
        let repository = origin.repositories.get(&image.repository);
        let left_alone = repository.and_then(|repository| repository.held_until(now));
        let until = left_alone.max(asked)?;
        Some((until.since(now), asked == Some(until)))
    }

    /// The same, where that is so because each of its contents that somebody lacks rests.
    pub(super) fn contents_held(&self, now: Moment, image: &Image) -> Option<(Duration, bool)> {
        let origin = self.origins.get(&image.registry)?;
        let mut first = None;
        for digest in &image.contents {
            let Some(content) = self.contents.get(digest).filter(|of| !self.is_done(of)) else {
                continue;
            };
            let asked = origin.wishes.rests_until(digest, now);
            let until = content.away_until(now).max(asked)?;
            if first.is_none_or(|(before, _)| until < before) {
                first = Some((until, asked == Some(until)));
            }
        }
        first.map(|(until, asked)| (until.since(now), asked))
    }

    /// Whether it has given nothing under an image's name since it was left alone.
    pub(super) fn origin_fails(&self, image: &Image) -> bool {
        let origin = self.origins.get(&image.registry);
        origin.is_some_and(|origin| origin.fails(&image.repository))
    }

    /// Leases that may be granted for an image now, beside those that run, as far as its registry is concerned: after a
    /// failure one tries first.
    pub(super) fn origin_room(&self, image: &Image) -> usize {
        if self.origin_held(self.now, image).is_some() {
            return 0;
        }
        let Some(origin) = self.origins.get(&image.registry) else {
            return usize::MAX;
        };
        let fails = origin.fails(&image.repository);
        match fails || origin.is_away() {
            true => usize::from(origin.leases(fails) == 0),
            false => usize::MAX,
        }
    }

    /// Who asked the registry last while it fails: another host tries next.
    pub(super) fn prober(&self, image: &Image) -> Option<&HostId> {
        let origin = self.origins.get(&image.registry)?;
        let fails = origin.fails(&image.repository) || origin.is_away();
        origin.prober.as_ref().filter(|_| fails)
    }

    /// Whether this content isn't to be asked for under an image's name yet.
    pub(super) fn rests(&self, content: &ContentState, digest: &Digest, image: &Image) -> bool {
        let origin = self.origins.get(&image.registry);
        let asked = origin.and_then(|origin| origin.wishes.rests_until(digest, self.now));
        asked.is_some() || content.rests(&image.digest, self.now)
    }

    /// What is asked for next in the repositories of a registry that fail: of the image, and of its contents that nobody
    /// holds, those that weren't asked for longest. So no image and no content stands before the others for long.
    pub(super) fn probe(&self, of: &Image) -> Option<(Digest, Digest)> {
        let open = |image: &Image, digest: &Digest| {
            self.contents.get(digest).is_some_and(|content| {
                content.lease.is_none()
                    && !self.rests(content, digest, image)
                    && !self.is_done(content)
                    && (self.failure(image).is_none() || content.fails(&image.digest).is_some())
            })
        };
        let same = |image: &&Image| {
            image.registry == of.registry
                && image.purpose == of.purpose
                && image.contradicts.is_none()
                && self.origin_fails(image)
                && self.origin_held(self.now, image).is_none()
        };
        let all = self.images.iter().filter(same).flat_map(|image| {
            let contents = image.contents.iter();
            contents.map(move |digest| (image, *digest))
        });
        all.filter(|(image, digest)| open(image, digest))
            .min_by_key(|(image, digest)| {
                let asked = self.contents.get(digest).map(ContentState::asked_at);
                (image.asked_at, asked)
            })
            .map(|(image, digest)| (image.digest, digest))
    }

    /// A registry gave something of a repository: what that failed before is forgotten.
    pub(super) fn origin_gave(&mut self, registry: &str, repository: &str) {
        let now = self.now;
        let Some(origin) = self.origins.get_mut(registry) else {
            return;
        };
        let quiet = !origin.gives(now);
        origin.gave_at = Some(now);
        let vain = core::mem::take(&mut origin.vain);
        let held = origin.wishes.held_until(repository, now).is_some();
        let known = origin
            .repositories
            .entry(repository.to_string())
            .or_default();
        known.gave_at = Some(now);
        // a stream that still runs says nothing about new requests, which it asked not to get
        if held {
            return;
        }
        let failed = known.failures > 0;
        known.failed_on.clear();
        known.failed_with.clear();
        known.failures = 0;
        known.retry_at = None;
        if quiet {
            for repository in origin.repositories.values_mut() {
                repository.retry_at = None;
            }
        }
        self.gave_others(vain);
        self.grant_wanted |= failed || quiet;
        if !failed && !quiet {
            return;
        }
        let those = self.images.iter().filter(|image| {
            image.registry == registry && (quiet || image.repository == repository)
        });
        for digest in those.flat_map(|image| &image.contents) {
            if let Some(content) = self.contents.get_mut(digest) {
                content.wake(now);
            }
        }
    }

    /// A lease ended because its registry failed it. That counts for the content, and for the repository where that gave
    /// nothing else meanwhile.
    pub(super) fn lease_failed(&mut self, digest: Digest, lease: &lease::Lease, id: &HostId) {
        if self.failed_again(digest, lease, id) {
            return;
        }
        let since = lease.trouble.map_or(lease.chunk_at, |(since, _)| since);
        if self.gave_since(lease, since) || !self.origin_failed(digest, lease, id) {
            self.content_away(digest, id);
        }
    }

    fn gave_since(&self, lease: &lease::Lease, since: Moment) -> bool {
        let origin = self.origins.get(&lease.registry);
        let repository = origin.and_then(|origin| origin.repositories.get(&lease.repository));
        repository.is_some_and(|repository| repository.gave_at.is_some_and(|at| at > since))
    }

    /// A repository failed a host, lastingly. Returns whether it is left alone for that.
    fn origin_failed(&mut self, digest: Digest, lease: &lease::Lease, id: &HostId) -> bool {
        let connected = self.hosts.values().filter(|host| host.connected).count();
        let Some(origin) = self.origins.get_mut(&lease.registry) else {
            return false;
        };
        let repository = origin.repositories.entry(lease.repository.clone());
        let repository = repository.or_default();
        repository.failed_on.insert(id.clone());
        repository.failed_with.insert(digest);
        let hosts = repository.failed_on.len() >= connected.clamp(1, 2);
        let fails = repository.failures > 0 || hosts && repository.failed_with.len() >= 2;
        if fails {
            self.leave_alone(&lease.registry, &lease.repository);
        }
        fails
    }

    /// What a holder says about its registry.
    pub(super) fn origin_trouble(&mut self, digest: Digest, trouble: Option<Trouble>) {
        let now = self.now;
        let Some(lease) = self
            .contents
            .get_mut(&digest)
            .and_then(|content| content.lease.as_mut())
        else {
            return;
        };
        lease.trouble = trouble.map(|trouble| {
            let since = lease
                .trouble
                .filter(|(_, before)| trouble.is_silence() == before.is_silence())
                .map_or(now, |(since, _)| since);
            (since, trouble)
        });
        let (registry, repository) = (lease.registry.clone(), lease.repository.clone());
        let held = self.origins.get(&registry).is_some_and(|origin| {
            let known = origin.repositories.get(&repository);
            known.is_some_and(|known| known.held_until(now).is_some())
                || origin.wishes.held_until(&repository, now).is_some()
        });
        match trouble {
            Some(Trouble::Throttled(wish)) => self.refused(digest, wish),
            Some(_) if held => self.end_troubled(&registry, &repository),
            Some(Trouble::Failing) => self.judge_origin(&registry),
            Some(Trouble::Silent) | None => {}
        }
    }

    /// What a stream of a registry brought lately.
    pub(super) fn origin_pace(&mut self, registry: &str, bytes_per_s: u64) {
        let now = self.now;
        if let Some(origin) = self.origins.get_mut(registry) {
            // streams that others saw are quicker than what some holders say of theirs
            origin
                .slow
                .retain(|_, said| said.saturating_mul(PACE_FACTOR) >= bytes_per_s);
            origin.paced_at = now;
            let before = origin.pace.unwrap_or(bytes_per_s);
            origin.pace = Some(before - before / 4 + bytes_per_s / 4);
        }
    }

    /// A holder says that its stream brings so little since then. That is its own trouble where another's was quick meanwhile.
    pub(super) fn origin_slow(
        &mut self,
        registry: &str,
        id: HostId,
        bytes_per_s: u64,
        since: Moment,
    ) {
        if let Some(origin) = self.origins.get_mut(registry) {
            let seen = origin.pace.unwrap_or_default();
            let quick = seen > bytes_per_s.saturating_mul(PACE_FACTOR);
            if !quick || origin.paced_at <= since {
                origin.slow.insert(id, bytes_per_s);
            }
        }
    }

    /// What its streams bring, as far as others got it. Where a third of the hosts say that theirs are slower, six at
    /// most, and nobody has seen a quick one meanwhile, the registry has become slow.
    pub(super) fn pace(&self, registry: &str) -> Option<u64> {
        let origin = self.origins.get(registry)?;
        let seen = origin.pace?;
        let enough = self.share(self.hosts.len()).min(SLOW_WORDS);
        let said = origin.slow.values().max().copied();
        match said {
            Some(said) if origin.slow.len() >= enough => Some(seen.min(said)),
            _ => Some(seen),
        }
    }

    /// Looks at all registries that fail somebody.
    pub(super) fn judge_origins(&mut self) {
        let troubled: BTreeSet<String> = self
            .contents
            .values()
            .filter_map(|content| content.lease.as_ref())
            .filter(|lease| lease.trouble.is_some())
            .map(|lease| lease.registry.clone())
            .collect();
        for registry in troubled {
            self.judge_origin(&registry);
        }
    }

    /// A connection that breaks is made again within a second or two; what lasts longer counts. Where somebody has found
    /// out before, it counts at once.
    fn judge_origin(&mut self, registry: &str) {
        let Some(origin) = self.origins.get(registry) else {
            return;
        };
        let failed: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| Some((digest, content.lease.as_ref()?)))
            .filter(|(_, lease)| lease.registry == registry)
            .filter_map(|(digest, lease)| {
                let (since, trouble) = lease.trouble?;
                let known = origin.repositories.get(&lease.repository);
                let known =
                    known.is_some_and(|known| known.failures > 0 || !known.failed_on.is_empty());
                let lasts = known || self.now.since(since) >= self.config.trouble_after;
                let counts = trouble == Trouble::Failing && lasts;
                counts.then(|| (lease.host.clone(), *digest))
            })
            .collect();
        for (host, digest) in failed {
            // the one before may have ended it
            if let Some(lease) = self.end(digest) {
                self.revoke(&host, digest, RevokeCause::OriginFailed);
                self.lease_failed(digest, &lease, &host);
            }
        }
    }

    /// Nobody asks a repository for a while that grows. Leases that it fails end, so that no holder goes on trying.
    fn leave_alone(&mut self, registry: &str, repository: &str) {
        let now = self.now;
        let known = self.origins.get(registry);
        let known = known.and_then(|origin| origin.repositories.get(repository));
        let failures = match known {
            Some(known) if known.held_until(now).is_some() => None,
            Some(known) => Some(known.failures),
            None => return,
        };
        let pause = failures.map(|failures| {
            let wait = self.retry_wait(failures);
            let jitter = self.random(1 + usize::try_from(wait.as_micros() / 4).unwrap_or(0));
            wait + Duration::from_micros(u64::try_from(jitter).unwrap_or(0))
        });
        let known = self.origins.get_mut(registry);
        let known = known.and_then(|origin| origin.repositories.get_mut(repository));
        if let Some(known) = known {
            known.failed_at = now;
            if let Some(pause) = pause {
                known.failures = known.failures.saturating_add(1);
                known.retry_at = Some(now + pause);
            }
            known.failed_on.clear();
            known.failed_with.clear();
        }
        self.end_troubled(registry, repository);
    }

    /// Ends the leases of a repository that it fails.
    fn end_troubled(&mut self, registry: &str, repository: &str) {
        let here = |lease: &lease::Lease| {
            let here = lease.registry == registry && lease.repository == repository;
            here && lease.trouble.is_some()
        };
        let troubled: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| Some((digest, content.lease.as_ref()?)))
            .filter(|(_, lease)| here(lease))
            .map(|(digest, lease)| (lease.host.clone(), *digest))
            .collect();
        for (host, digest) in troubled {
            self.end(digest);
            self.revoke(&host, digest, RevokeCause::OriginFailed);
        }
    }

    /// A pause that grows with what failed before, without jitter.
    pub(super) fn retry_wait(&self, failures: u32) -> Duration {
        let most = self.config.origin_retry_most;
        fault::growing(self.config.origin_retry, most, failures)
    }

    /// Forgets registries and repositories that no image is from, once nothing is to be remembered of them.
    pub(super) fn forget_origins(&mut self) {
        let now = self.now;
        let used: BTreeSet<&str> = self
            .images
            .iter()
            .flat_map(|image| [image.registry.as_str(), image.repository.as_str()])
            .collect();
        for host in self.hosts.values_mut() {
            host.unable
                .retain(|registry, _| used.contains(registry.as_str()));
        }
        for origin in self.origins.values_mut() {
            origin.repositories.retain(|name, repository| {
                let held = repository.held_until(now).is_some();
                repository.leases > 0 || held || used.contains(name.as_str())
            });
            origin
                .wishes
                .forget(now, |content| self.contents.contains_key(content));
        }
        self.origins.retain(|registry, origin| {
            let known = !origin.repositories.is_empty() || !origin.wishes.is_empty();
            known || used.contains(registry.as_str())
        });
    }
}
