//! Registries: whether they can be asked, and when again.
//!
//! A host may have trouble of its own, so its word alone holds up nothing but its lease. When a second host has it too, or
//! there is no second, it is the registry, and everybody leaves it alone for a while that grows; then one lease tries
//! first.
//!
//! What a registry itself asked for (`Retry-After`) concerns everybody: most registries count requests by account or by the
//! address that a whole fleet shares, and the next host that asks makes it longer. But a host may say so that wasn't told, and so
//! may a second and a third. So a host's word holds up the fleet for seconds, and each further host's for longer, up to a minute.
//! Where a registry really asks for it, it tells all streams at once: when four hosts say so within seconds, or a third of the
//! fleet and two at least one after the other, and no stream of another runs, all that was asked for is believed. When the registry gives something to a lease that
//! began after the word and before its time was over, the word wasn't true, and the next word of the same hosts holds up nobody
//! else.

use super::*;
use crate::stage::action::RevokeCause;

/// What is known of one registry.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// Leases on it that run.
    pub(super) leases: usize,
    /// Who was last leased something of it.
    pub(super) prober: Option<HostId>,
    /// When it last gave somebody something.
    gave_at: Option<Moment>,
    /// Hosts that it failed since it last gave something.
    failed_on: BTreeSet<HostId>,
    /// Times that it was left alone since it last gave something.
    failures: u32,
    /// Left alone until then, by our own pause.
    retry_at: Option<Moment>,
    /// Left alone until then, as it asked for.
    asked_until: Option<Moment>,
    /// Hosts that it asked to be left alone since it last gave something to a new lease, and when; the last of that, and the
    /// time that they named.
    refused: BTreeMap<HostId, Moment>,
    refused_at: Moment,
    wish_until: Moment,
    /// What each of its streams brought lately, bytes per second, and when others last got something of one.
    pace: Option<u64>,
    paced_at: Moment,
    /// Holders that say that their stream is slow, which nobody else can see before a chunk is whole, and what it brings
    /// (bytes per second).
    slow: BTreeMap<HostId, u64>,
}

/// Pauses after the words of one host, two and more that a registry asks to be left alone.
const WORDS: [Duration; 4] = [
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
];
/// Words of so many hosts, within this time, are believed.
const WORDS_ENOUGH: usize = 4;
const WORDS_WITHIN: Duration = Duration::from_secs(3);
/// A stream may bring a chunk so many times slower than the registry's streams did lately.
pub(super) const PACE_FACTOR: u64 = 4;
/// The most holders that have to say that their streams became slow: so many in a row that aren't liars' alone.
const SLOW_WORDS: usize = 6;

impl Origin {
    fn held_until(&self, now: Moment) -> Option<Moment> {
        self.retry_at.max(self.asked_until).filter(|at| *at > now)
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

impl Plan {
    /// How long a registry is left alone, and whether it asked for that.
    pub(super) fn origin_held(&self, now: Moment, registry: &str) -> Option<(Duration, bool)> {
        let origin = self.origins.get(registry)?;
        let until = origin.held_until(now)?;
        Some((until.since(now), origin.asked_until == Some(until)))
    }

    /// Whether it has given nothing since it was left alone.
    pub(super) fn origin_fails(&self, registry: &str) -> bool {
        self.origins
            .get(registry)
            .is_some_and(|origin| origin.failures > 0)
    }

    /// Leases that a registry may be asked for now, beside those that run: after a failure one tries first.
    pub(super) fn origin_room(&self, registry: &str) -> usize {
        match self.origins.get(registry) {
            Some(origin) if origin.held_until(self.now).is_some() => 0,
            Some(origin) if origin.failures > 0 => usize::from(origin.leases == 0),
            _ => usize::MAX,
        }
    }

    /// Who asked it last while it fails: another host tries next.
    pub(super) fn prober(&self, registry: &str) -> Option<&HostId> {
        let origin = self.origins.get(registry)?;
        origin.prober.as_ref().filter(|_| origin.failures > 0)
    }

    /// What is asked for next of a registry that fails: of the image, and of its contents that nobody holds, those that
    /// weren't asked for longest. So no image and no content stands before the others for long.
    pub(super) fn probe(&self, of: &Image) -> Option<(Digest, Digest)> {
        let open = |image: &Image, digest: &Digest| {
            self.contents.get(digest).is_some_and(|content| {
                content.lease.is_none()
                    && !content.rests(&image.digest, self.now)
                    && !self.is_done(content)
                    && (self.failure(image).is_none() || content.fails(&image.digest).is_some())
            })
        };
        let same = |image: &&Image| {
            image.registry == of.registry
                && image.purpose == of.purpose
                && image.contradicts.is_none()
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

    /// It gave something: what it failed before is forgotten.
    pub(super) fn origin_gave(&mut self, registry: &str) {
        let now = self.now;
        let Some(origin) = self.origins.get_mut(registry) else {
            return;
        };
        origin.gave_at = Some(now);
        // a stream that still runs says nothing about new requests, which it asked not to get
        if origin.asked_until.is_some_and(|until| until > now) {
            return;
        }
        self.grant_wanted |= origin.failures > 0;
        origin.failed_on.clear();
        origin.failures = 0;
        origin.retry_at = None;
    }

    /// A lease ended because its registry failed it: where that gave others something meanwhile, it is about the content.
    pub(super) fn lease_failed(&mut self, digest: Digest, lease: &lease::Lease, id: &HostId) {
        let since = lease.trouble.map_or(lease.chunk_at, |(since, _)| since);
        if self.gave_since(&lease.registry, since) {
            self.content_away(digest, id);
        } else {
            self.origin_failed(&lease.registry, id);
        }
    }

    fn gave_since(&self, registry: &str, since: Moment) -> bool {
        let origin = self.origins.get(registry);
        origin.is_some_and(|origin| origin.gave_at.is_some_and(|at| at > since))
    }

    /// It failed a host, lastingly.
    pub(super) fn origin_failed(&mut self, registry: &str, id: &HostId) {
        let connected = self.hosts.values().filter(|host| host.connected).count();
        let Some(origin) = self.origins.get_mut(registry) else {
            return;
        };
        origin.failed_on.insert(id.clone());
        if origin.failed_on.len() >= 2 || connected < 2 || origin.failures > 0 {
            self.leave_alone(registry);
        }
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
        let registry = lease.registry.clone();
        match trouble {
            Some(Trouble::Throttled(wish)) => self.refused(digest, &registry, wish),
            Some(_) if self.origin_held(now, &registry).is_some() => self.leave_alone(&registry),
            Some(Trouble::Failing) => self.judge_origin(&registry),
            Some(Trouble::Silent) | None => {}
        }
    }

    /// A holder says that its registry asks to be left alone: its lease ends, and everybody waits for as long as its word weighs.
    fn refused(&mut self, digest: Digest, registry: &str, wish: Duration) {
        let now = self.now;
        let wish = wish.min(self.config.origin_wish_most);
        let Some(lease) = self.end(digest) else {
            return;
        };
        let id = lease.host;
        self.revoke(&id, digest, RevokeCause::OriginFailed);
        if let Some(content) = self.contents.get_mut(&digest) {
            content.tried.insert(id.clone());
        }
        let hosts = self.hosts.values().filter(|host| host.connected).count();
        let enough = self.share(hosts).max(self.config.accusers).min(hosts);
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        host.failures = host.failures.saturating_add(1);
        let cried = host.cried_until.is_some_and(|until| now < until);
        let streams = self.contents.values().any(|content| {
            let lease = content.lease.as_ref();
            lease.is_some_and(|lease| lease.registry == registry && lease.trouble.is_none())
        });
        let Some(origin) = self.origins.get_mut(registry).filter(|_| !cried) else {
            return;
        };
        origin.refused.insert(id, now);
        origin.refused_at = now;
        origin.wish_until = origin.wish_until.max(now + wish);
        let words = origin.refused.len();
        let lately = origin.refused.values();
        let lately = lately.filter(|at| now.since(**at) <= WORDS_WITHIN).count();
        let believed = !streams && (lately >= WORDS_ENOUGH || words >= enough);
        let pause = match WORDS.get(words - 1).or(WORDS.last()) {
            Some(pause) if !believed => wish.min(*pause),
            _ => wish,
        };
        origin.asked_until = origin.asked_until.max(Some(now + pause));
        if !streams {
            // one tries first
            origin.failures = origin.failures.max(1);
        }
    }

    /// A registry gave something to a lease that was granted at this moment: who said that it asked to be left alone then lied,
    /// or was alone with that.
    pub(super) fn disprove_refusals(&mut self, registry: &str, granted_at: Moment) {
        let now = self.now;
        let Some(origin) = self.origins.get_mut(registry) else {
            return;
        };
        if origin.refused.is_empty() || granted_at <= origin.refused_at {
            return;
        }
        let refused = core::mem::take(&mut origin.refused);
        if granted_at >= origin.wish_until {
            return;
        }
        origin.asked_until = None;
        for id in refused.into_keys() {
            if let Some(host) = self.hosts.get_mut(&id) {
                host.cried_until = Some(now + self.config.origin_wish_most);
            }
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
        let known = origin.failures > 0 || !origin.failed_on.is_empty();
        let failed: Vec<(HostId, Digest, Moment)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| Some((digest, content.lease.as_ref()?)))
            .filter(|(_, lease)| lease.registry == registry)
            .filter_map(|(digest, lease)| {
                let (since, trouble) = lease.trouble?;
                let lasts = known || self.now.since(since) >= self.config.trouble_after;
                let counts = trouble == Trouble::Failing && lasts;
                counts.then(|| (lease.host.clone(), *digest, since))
            })
            .collect();
        for (host, digest, since) in failed {
            if self.gave_since(registry, since) {
                // it is about the content
                self.end(digest);
                self.revoke(&host, digest, RevokeCause::OriginFailed);
                self.content_away(digest, &host);
            } else {
                self.origin_failed(registry, &host);
            }
        }
    }

    /// Nobody asks it for a while that grows. Leases that it fails end, so that no holder goes on trying.
    fn leave_alone(&mut self, registry: &str) {
        let now = self.now;
        let failures = match self.origins.get(registry) {
            Some(origin) if origin.held_until(now).is_some() => None,
            Some(origin) => Some(origin.failures),
            None => return,
        };
        let pause = failures.map(|failures| {
            let wait = self.retry_wait(failures);
            let jitter = self.random(1 + usize::try_from(wait.as_micros() / 4).unwrap_or(0));
            wait + Duration::from_micros(u64::try_from(jitter).unwrap_or(0))
        });
        if let Some(origin) = self.origins.get_mut(registry) {
            if let Some(pause) = pause {
                origin.failures = origin.failures.saturating_add(1);
                origin.retry_at = Some(now + pause);
            }
            origin.failed_on.clear();
        }
        let troubled: Vec<(HostId, Digest)> = self
            .contents
            .iter()
            .filter_map(|(digest, content)| Some((digest, content.lease.as_ref()?)))
            .filter(|(_, lease)| lease.registry == registry && lease.trouble.is_some())
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

    /// Forgets registries that no image is from, once nothing is to be remembered of them.
    pub(super) fn forget_origins(&mut self) {
        let now = self.now;
        let used: BTreeSet<&str> = self
            .images
            .iter()
            .map(|image| image.registry.as_str())
            .collect();
        for host in self.hosts.values_mut() {
            host.unable
                .retain(|registry, _| used.contains(registry.as_str()));
        }
        self.origins.retain(|registry, origin| {
            origin.leases > 0
                || origin.held_until(now).is_some()
                || used.contains(registry.as_str())
        });
    }
}
