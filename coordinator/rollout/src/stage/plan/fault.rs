//! Contents that can't be had from a registry that answers, and hosts that can't ask one.
//!
//! A fault counts for the content and the image under whose name it was asked for, and for nothing else. The next host
//! looks at it at once. When several hosts say the same, or the only one says it twice, the image fails by name. Its
//! content is then tried again after pauses that grow, while the image's other contents wait. Another image that has the
//! same content from elsewhere isn't held up, and where it brings the content, the first image goes on.

use super::*;
use crate::stage::{action::RevokeCause, event::Fault};

/// Tries that an hour costs where each gets nearly the whole content.
const COSTLY_TRIES: usize = 3;

/// A content that a registry fails, while it gives others, is given up after this long: connections that break, and servers that
/// start anew, take less.
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(30);

/// What hosts found wrong with one content, asked for under one image's name, since somebody last got it.
#[derive(Debug)]
pub(super) struct Faults {
    fault: Fault,
    /// When it was said first.
    since: Moment,
    /// Who said so.
    by: BTreeSet<HostId>,
    times: u32,
    /// The image failed for it, and was tried again so many times.
    rounds: Option<u32>,
    /// It isn't asked for before.
    retry_at: Moment,
    /// Nor by those who said so before this: another host's word says more.
    again_at: Moment,
}

/// A host that can't ask a registry.
#[derive(Debug)]
pub(super) struct Unable {
    times: u32,
    until: Moment,
}

/// The wait after so many failures: `first`, doubled each time, `most` at most.
pub(super) fn growing(first: Duration, most: Duration, times: u32) -> Duration {
    first
        .checked_mul(1 << times.min(16))
        .unwrap_or(most)
        .min(most)
}

impl ContentState {
    /// Until when it is left alone because its registry failed it.
    pub(super) fn away_until(&self, now: Moment) -> Option<Moment> {
        let (_, until) = self.away?;
        Some(until).filter(|until| now < *until)
    }

    /// It is left alone no longer for that. How often it failed is remembered.
    pub(super) fn wake(&mut self, now: Moment) {
        if let Some((_, until)) = &mut self.away {
            *until = now.min(*until);
        }
    }

    /// Whether it isn't to be asked for under this image's name yet.
    pub(super) fn rests(&self, image: &Digest, now: Moment) -> bool {
        let away = self.away_until(now).is_some();
        away || self.faults.get(image).is_some_and(|of| now < of.retry_at)
    }

    /// Whether this host has looked, and isn't to look again yet.
    pub(super) fn has_looked(&self, image: &Digest, id: &HostId, now: Moment) -> bool {
        let faults = self.faults.get(image);
        faults.is_some_and(|faults| now < faults.again_at && faults.by.contains(id))
    }

    /// Why this image fails for it, where it does.
    pub(super) fn fails(&self, image: &Digest) -> Option<Fault> {
        let faults = self.faults.get(image)?;
        faults.rounds.map(|_| faults.fault)
    }

    /// A chunk of it came under this image's name. Only the end shows whether bytes are false, or come to an end.
    pub(super) fn came(&mut self, image: &Digest) {
        self.away = None;
        if self
            .faults
            .get(image)
            .is_some_and(|faults| !matches!(faults.fault, Fault::Bad | Fault::CutShort))
        {
            self.faults.remove(image);
        }
    }
}

impl Plan {
    /// What makes an image fail.
    pub(super) fn failure(&self, image: &Image) -> Option<(Digest, Fault)> {
        image.contents.iter().find_map(|digest| {
            let content = self.contents.get(digest)?;
            let fault = content.fails(&image.digest)?;
            (!self.is_done(content)).then_some((*digest, fault))
        })
    }

    /// Whether contents of this image are to be fetched for it, as long as nothing is wrong with the content itself.
    pub(super) fn is_live(&self, image: &Image) -> bool {
        image.contradicts.is_none() && self.failure(image).is_none()
    }

    /// Whether this content is to be fetched for this image: of one that failed, only what made it fail.
    pub(super) fn wants(&self, image: &Image, digest: &Digest) -> bool {
        let tried = || {
            let content = self.contents.get(digest);
            content.is_some_and(|content| content.fails(&image.digest).is_some())
        };
        image.contradicts.is_none()
            && image.contents.contains(digest)
            && (self.failure(image).is_none() || tried())
    }

    /// A host found this content faulty, asked for under this image's name.
    pub(super) fn content_faulty(
        &mut self,
        id: &HostId,
        digest: Digest,
        image: Digest,
        fault: Fault,
    ) {
        let now = self.now;
        let able = self.witnesses(&image);
        // as many more as there are who may lie
        let share = self.share(able).min(self.config.bad_witnesses * 2);
        let mut enough = self.config.bad_witnesses.max(share).max(1);
        let mut first = self.config.fault_retry;
        let mut most = self.config.fault_retry_most;
        if fault == Fault::CutShort {
            // each of them gets nearly the whole content: three in an hour at most
            enough = enough.min(COSTLY_TRIES);
            most = self.config.costly_retry_most;
            first = match enough {
                COSTLY_TRIES => most,
                _ => self.config.costly_retry,
            };
        }
        let (again, again_most) = (self.config.origin_retry, self.config.origin_retry_most);
        let pause = |times: u32| growing(again, again_most, times.saturating_sub(1));
        let Some(content) = self.contents.get_mut(&digest) else {
            return;
        };
        content.tried.insert(id.clone());
        let before = content.faults.get(&image);
        let unavailable = before.map(|faults| faults.fault == Fault::Unavailable);
        match (unavailable, fault == Fault::Unavailable) {
            // what is known for certain says more
            (Some(true), false) => drop(content.faults.remove(&image)),
            (Some(false), true) => return,
            _ => {}
        }
        let faults = content.faults.entry(image).or_insert(Faults {
            fault,
            since: now,
            by: BTreeSet::new(),
            times: 0,
            rounds: None,
            retry_at: now,
            again_at: now,
        });
        faults.fault = fault;
        faults.by.insert(id.clone());
        faults.times = faults.times.saturating_add(1);
        faults.again_at = now + pause(faults.times);
        let alone = able < enough;
        let least = match fault {
            Fault::Unavailable => UNAVAILABLE_AFTER,
            _ => Duration::ZERO,
        };
        let lasts = now.since(faults.since) >= least;
        let said = faults.by.len() >= enough || (alone && faults.times as usize >= enough);
        if said && lasts {
            let rounds = faults.rounds.map_or(0, |rounds| rounds.saturating_add(1));
            faults.rounds = Some(rounds);
            faults.retry_at = now + growing(first, most, rounds);
            if fault == Fault::Bad {
                self.disprove(digest, image);
            }
        }
        self.revoke_pointless();
    }

    /// The registry's bytes aren't what this image says of a content. Where another image gives that content another size, the other
    /// one is tried. Once for each image: where both are wrong, the one that was wanted first is tried again, and slowly.
    fn disprove(&mut self, digest: Digest, image: Digest) {
        let size = |image: &Image| {
            let of = image.specs.iter().find(|of| of.digest == digest);
            of.map(|of| of.size)
        };
        let found = self.images.iter().find(|known| known.digest == image);
        let Some(claimed) = found.and_then(size) else {
            return;
        };
        let contested = self
            .images
            .iter()
            .any(|other| size(other).is_some_and(|other| other != claimed));
        let found = self.images.iter_mut().find(|known| known.digest == image);
        if let Some(found) = found.filter(|_| contested) {
            found.disproved = Some(digest);
            self.settle_contradictions();
        }
    }

    /// What was found wrong with an image's contents counts no more: whoever asks for it anew has a reason to.
    pub(super) fn forgive(&mut self, image: &Digest) {
        let Some(found) = self.images.iter().find(|known| known.digest == *image) else {
            return;
        };
        for content in &found.contents {
            if let Some(content) = self.contents.get_mut(content) {
                content.forgive(image);
                content.away = None;
            }
        }
        for host in self.hosts.values_mut() {
            host.unable.remove(&found.registry);
        }
        self.grant_wanted = true;
    }

    /// Hosts that may say what an image's registry has.
    fn witnesses(&self, image: &Digest) -> usize {
        let Some(image) = self.images.iter().find(|known| known.digest == *image) else {
            return 0;
        };
        let able = |id: &HostId| {
            let whole = matches!(
                image.standings.get(id),
                Some((
                    Standing::Present | Standing::Installing | Standing::Failed,
                    _
                ))
            );
            !whole
                && self.hosts.get(id).is_some_and(|host| {
                    host.connected
                        && host.quarantined_until.is_none()
                        && !host.is_unable(&image.registry, self.now)
                })
        };
        self.selected(image).iter().filter(|id| able(id)).count()
    }

    /// A host's own settings keep it from asking a registry: it is left out for a while that grows, and nobody else.
    pub(super) fn host_unable(&mut self, id: &HostId, registry: &str) {
        let (first, most) = (self.config.origin_retry, self.config.fault_retry_most);
        let now = self.now;
        if let Some(host) = self.hosts.get_mut(id) {
            let times = host.unable.get(registry).map_or(0, |unable| unable.times);
            let unable = Unable {
                times: times.saturating_add(1),
                until: now + growing(first, most, times),
            };
            host.unable.insert(registry.to_string(), unable);
        }
    }

    /// Whether hosts could fetch for an image, but none of them can ask its registry.
    pub(super) fn nobody_can_ask(&self, image: &Image) -> bool {
        let candidates = self.candidates(image);
        let unable = |id: &&HostId| {
            let host = self.hosts.get(*id);
            host.is_some_and(|host| host.unable.contains_key(&image.registry))
        };
        !candidates.is_empty() && candidates.iter().all(unable)
    }

    /// A lease came to nothing. Where its registry gave others something before and after, that counts for the content: when
    /// several hosts met it, or the only one did several times, for half a minute or longer, the image fails by name. An outage
    /// of the whole registry isn't taken for that. Returns whether the image failed for it.
    pub(super) fn failed_again(
        &mut self,
        digest: Digest,
        lease: &lease::Lease,
        id: &HostId,
    ) -> bool {
        let fails = |plan: &Self| {
            let content = plan.contents.get(&digest);
            content.and_then(|content| content.fails(&lease.image)) == Some(Fault::Unavailable)
        };
        let since = lease.trouble.map_or(lease.granted_at, |(since, _)| since);
        let origin = self.origins.get_mut(&lease.registry);
        let gave_at = origin.as_ref().and_then(|origin| origin.gave_at);
        if lease.mirror {
            return false;
        }
        if fails(self) || lease.gives && gave_at > Some(since) {
            self.content_faulty(id, digest, lease.image, Fault::Unavailable);
        } else if let Some(origin) = self.origins.get_mut(&lease.registry)
            && lease.gives
        {
            origin.in_vain(origin::Vain {
                content: digest,
                image: lease.image,
                host: id.clone(),
                at: self.now,
            });
        }
        fails(self)
    }

    /// A registry gives something: leases of other contents that came to nothing just before count for those contents.
    pub(super) fn gave_others(&mut self, vain: Vec<origin::Vain>) {
        for of in vain {
            let content = self.contents.get(&of.content);
            let came = content.is_none_or(|content| content.moved_at >= of.at);
            if !came && self.now.since(of.at) <= origin::QUIET {
                self.content_faulty(&of.host, of.content, of.image, Fault::Unavailable);
            }
        }
    }

    /// A lease without progress passed on. A holder that is here and got nothing at all says that its registry fails, with or
    /// without words.
    pub(super) fn lease_over(&mut self, digest: Digest, lease: &lease::Lease, id: &HostId) {
        let here = self.hosts.get(id).is_some_and(|host| host.connected);
        let nothing = here && !lease.mirror && lease.progress_at == lease.granted_at;
        if lease.trouble.is_some() {
            self.lease_failed(digest, lease, id);
        } else if nothing && !self.failed_again(digest, lease, id) {
            self.content_away(digest, id);
        }
    }

    /// A registry failed the holder of this content: another host tries at once, and when that fails too, the content is left
    /// alone for a while that grows.
    pub(super) fn content_away(&mut self, digest: Digest, id: &HostId) {
        let now = self.now;
        let failures = self
            .contents
            .get(&digest)
            .and_then(|content| content.away)
            .map_or(0, |(failures, _)| failures);
        let others = self.hosts.values().filter(|host| host.connected).count() >= 2;
        let wait = match failures.checked_sub(1) {
            Some(before) => self.retry_wait(before),
            None if others => Duration::ZERO,
            None => self.retry_wait(0),
        };
        if let Some(content) = self.contents.get_mut(&digest) {
            content.away = Some((failures.saturating_add(1), now + wait));
            content.tried.insert(id.clone());
        }
    }

    /// Whether this image waits until bytes show which of two sizes of a content is true.
    pub(super) fn is_undecided(&self, image: &Image) -> bool {
        let content = image.contradicts.and_then(|of| self.contents.get(&of));
        image.disproved.is_none() && content.is_some_and(|content| !self.is_done(content))
    }

    /// Looks anew at which images contradict others that were wanted before them, and goes on with those that don't any
    /// more.
    pub(super) fn settle_contradictions(&mut self) {
        let mut sizes: BTreeMap<Digest, u64> = BTreeMap::new();
        let (mut freed, mut stopped) = (Vec::new(), Vec::new());
        let mut order: Vec<usize> = (0..self.images.len()).collect();
        // any host may ask for any blob of a mirror, with any size: that holds up no image
        order.sort_by_key(|at| {
            let image = &self.images[*at];
            (image.purpose, image.disproved.is_some())
        });
        for at in order {
            let image = &mut self.images[at];
            let other = |content: &&Content| {
                sizes
                    .get(&content.digest)
                    .is_some_and(|size| *size != content.size)
            };
            let before = image.contradicts;
            image.contradicts = image.specs.iter().find(other).map(|of| of.digest);
            if image.contradicts.is_some() {
                if before.is_none() {
                    stopped.push(at);
                }
                continue;
            }
            sizes.extend(image.specs.iter().map(|of| (of.digest, of.size)));
            if before.is_some() {
                freed.push(at);
            }
        }
        // hosts have one size of a content at a time
        for at in stopped {
            let image = &self.images[at];
            let digest = image.digest;
            for host in self.selected(image) {
                if self.hosts.get(&host).is_some_and(|host| host.connected) {
                    self.actions.push_back(Action::Cancel {
                        host,
                        image: digest,
                    });
                }
            }
        }
        let images = self.images.iter();
        let followed = images.filter(|image| image.contradicts.is_none());
        let other_size = |content: &&Content| {
            let known = self.contents.get(&content.digest);
            known.is_none_or(|known| known.size != content.size)
        };
        let specs = followed.flat_map(|image| &image.specs);
        let sized: Vec<Content> = specs.filter(other_size).copied().collect();
        for content in sized {
            if let Some(lease) = self.end(content.digest) {
                self.revoke(&lease.host, content.digest, RevokeCause::Ended);
            }
            let state = ContentState::new(self.now, &content);
            self.contents.insert(content.digest, state);
        }
        for at in freed {
            let image = &self.images[at];
            let digest = image.digest;
            for host in self.selected(image) {
                if self.hosts.get(&host).is_some_and(|host| host.connected) {
                    self.actions.push_back(Action::Stage {
                        host,
                        image: digest,
                    });
                }
            }
            self.grant_wanted = true;
        }
    }
}

impl Host {
    /// Whether its settings kept it from asking this registry a moment ago.
    pub(super) fn is_unable(&self, registry: &str, now: Moment) -> bool {
        self.unable
            .get(registry)
            .is_some_and(|unable| now < unable.until)
    }
}
