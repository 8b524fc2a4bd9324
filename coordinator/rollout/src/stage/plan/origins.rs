//! Registries: whether each may be asked, and when it is asked again.
//!
//! The cause of a failure may be the host, or one content, or one repository. So a failure counts for as little as
//! possible:
//! - A lease that fails makes its content rest. Another host tries the content at once.
//! - A repository is left alone when two hosts fail with two of its contents and nothing of it came meanwhile. The
//!   pause grows each time. After the pause, one lease tries first.
//! - A repository that hasn't failed is still asked, because it shows whether the whole registry is away. Where the
//!   registry is away, one lease at a time asks in the repositories that failed, and one in the others.
//!
//! A registry that gave nothing for a while and then gives something is asked at once for what it failed before. A wish
//! of the registry itself (`Retry-After`) is weighed in `wishes`.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString as _},
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::wishes::Wishes;

/// A registry that gave nothing for this long and then gives something is asked again for what it failed before. When a
/// lease came to nothing this lately and the registry gives others something, its content is to blame.
pub(super) const QUIET: Duration = Duration::from_secs(10);

/// The most leases of one registry that came to nothing and are remembered. No more end between two chunks of others.
const VAIN_MOST: usize = 16;

/// The factor by which a stream may be slower than the registry's streams were lately.
pub(super) const PACE_FACTOR: u64 = 4;

/// The most holders that must say that their streams became slow, however large the fleet. This many in a row aren't
/// all liars.
const SLOW_WORDS: usize = 6;

/// A lease that came to nothing, of a registry that gave something when the lease began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vain {
    pub(super) content: Digest,
    pub(super) image: Digest,
    pub(super) host: HostId,
    /// When the lease ended.
    pub(super) at: Moment,
}

/// What follows from a registry's giving something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gift {
    /// Leases that came to nothing before. Their contents are to blame.
    pub(super) vain: Vec<Vain>,
    /// The repository had failed before.
    pub(super) failed: bool,
    /// The registry had given nothing for a while.
    pub(super) quiet: bool,
}

/// What is known of one registry.
#[derive(Debug, Default)]
pub(super) struct Origin {
    /// The repositories, by names that begin with the registry's name.
    repositories: BTreeMap<String, Repository>,
    /// The host that was last leased something of the registry.
    prober: Option<HostId>,
    /// When the registry last gave a host something.
    gave_at: Option<Moment>,
    /// Leases that came to nothing since `gave_at`.
    vain: Vec<Vain>,
    /// The registry's wishes to be left alone.
    wishes: Wishes,
    pace: Pace,
}

/// What is known of one repository of a registry.
#[derive(Debug, Default)]
struct Repository {
    /// When the repository last gave a host something.
    gave_at: Option<Moment>,
    /// The hosts that the repository failed since it last gave something or was left alone.
    failed_on: BTreeSet<HostId>,
    /// The contents that the repository failed since it last gave something or was left alone.
    failed_with: BTreeSet<Digest>,
    /// How often the repository was left alone since it last gave something.
    failures: u32,
    /// When the repository was last left alone.
    failed_at: Moment,
    /// Until then, the repository is left alone.
    retry_at: Option<Moment>,
}

impl Repository {
    fn waits_until(&self, now: Moment) -> Option<Moment> {
        self.retry_at.filter(|at| *at > now)
    }
}

/// The speed of a registry's streams.
#[derive(Debug, Default)]
struct Pace {
    /// Bytes per second of each stream lately, as other hosts received them.
    seen: Option<u64>,
    /// When other hosts last received something of a stream.
    seen_at: Moment,
    /// Holders that say that their stream is slow, and its bytes per second by their word. No other host can see this
    /// before a chunk is whole.
    slow: BTreeMap<HostId, u64>,
}

impl Origin {
    /// When the registry last gave a host something.
    pub(super) const fn gave_at(&self) -> Option<Moment> {
        self.gave_at
    }

    /// Whether the registry gave something a moment ago.
    pub(super) fn gives(&self, now: Moment) -> bool {
        self.gave_at.is_some_and(|at| now.since(at) < QUIET)
    }

    /// The registry's wishes to be left alone.
    pub(super) const fn wishes(&self) -> &Wishes {
        &self.wishes
    }

    pub(super) const fn wishes_mut(&mut self) -> &mut Wishes {
        &mut self.wishes
    }

    /// Whether this repository has given nothing since it was left alone.
    pub(super) fn fails(&self, repository: &str) -> bool {
        let repository = self.repositories.get(repository);
        repository.is_some_and(|repository| repository.failures > 0)
    }

    /// Whether two of the registry's repositories fail, and the registry gave nothing since.
    pub(super) fn is_away(&self) -> bool {
        let all = self.repositories.values();
        let failing = all.filter(|repository| repository.failures > 0);
        let since = |repository: &&Repository| self.gave_at <= Some(repository.failed_at);
        failing.filter(since).count() >= 2
    }

    /// Until when this repository is left alone because it failed.
    pub(super) fn left_alone_until(&self, repository: &str, now: Moment) -> Option<Moment> {
        self.repositories.get(repository)?.waits_until(now)
    }

    /// Until when nobody asks this repository, for any reason, and whether the registry asked for that.
    pub(super) fn waits_until(&self, repository: &str, now: Moment) -> Option<(Moment, bool)> {
        let asked = self.wishes.waits_until(repository, now);
        let until = self.left_alone_until(repository, now).max(asked)?;
        Some((until, asked == Some(until)))
    }

    /// The host that was last leased something of the registry.
    pub(super) const fn prober(&self) -> Option<&HostId> {
        self.prober.as_ref()
    }

    /// Whether this repository gave something after `since`.
    pub(super) fn gave_since(&self, repository: &str, since: Moment) -> bool {
        let repository = self.repositories.get(repository);
        repository.is_some_and(|repository| repository.gave_at.is_some_and(|at| at > since))
    }

    /// Whether this repository failed a host since it last gave something.
    pub(super) fn has_failed(&self, repository: &str) -> bool {
        let repository = self.repositories.get(repository);
        repository.is_some_and(|known| known.failures > 0 || !known.failed_on.is_empty())
    }

    /// Something of this repository is leased to a host.
    fn lease(&mut self, repository: &str, id: &HostId) {
        self.prober = Some(id.clone());
        self.repositories.entry(repository.to_string()).or_default();
    }

    /// Remembers a lease that came to nothing.
    pub(super) fn note_vain(&mut self, vain: Vain) {
        if self.vain.len() >= VAIN_MOST {
            self.vain.remove(0);
        }
        self.vain.push(vain);
    }

    /// The registry gave something of this repository. The repository's earlier failures are forgotten. `None` where
    /// that proves nothing because the registry wants to be left alone: a stream that still runs says nothing about new
    /// requests, which the registry asked not to get.
    pub(super) fn give(&mut self, now: Moment, repository: &str) -> Option<Gift> {
        let quiet = !self.gives(now);
        self.gave_at = Some(now);
        let vain = core::mem::take(&mut self.vain);
        let asked = self.wishes.waits_until(repository, now).is_some();
        let known = self.repositories.entry(repository.to_string()).or_default();
        known.gave_at = Some(now);
        if asked {
            return None;
        }
        let failed = known.failures > 0;
        known.failed_on.clear();
        known.failed_with.clear();
        known.failures = 0;
        known.retry_at = None;
        if quiet {
            for repository in self.repositories.values_mut() {
                repository.retry_at = None;
            }
        }
        Some(Gift {
            vain,
            failed,
            quiet,
        })
    }

    /// A repository failed a host with a content for some time. Returns whether the repository is to be left alone for
    /// that. `connected` is the number of connected hosts.
    pub(super) fn fail(
        &mut self,
        repository: &str,
        id: &HostId,
        content: Digest,
        connected: usize,
    ) -> bool {
        let repository = self.repositories.entry(repository.to_string());
        let repository = repository.or_default();
        repository.failed_on.insert(id.clone());
        repository.failed_with.insert(content);
        let hosts = repository.failed_on.len() >= connected.clamp(1, 2);
        repository.failures > 0 || hosts && repository.failed_with.len() >= 2
    }

    /// How often this repository was left alone since it last gave something; `None` while it is left alone.
    pub(super) fn failures(&self, repository: &str, now: Moment) -> Option<u32> {
        let known = self.repositories.get(repository)?;
        match known.waits_until(now) {
            Some(_) => None,
            None => Some(known.failures),
        }
    }

    /// Leaves this repository alone until `until`; with `None`, for as long as was decided before.
    pub(super) fn leave_alone(&mut self, now: Moment, repository: &str, until: Option<Moment>) {
        if let Some(known) = self.repositories.get_mut(repository) {
            known.failed_at = now;
            if let Some(until) = until {
                known.failures = known.failures.saturating_add(1);
                known.retry_at = Some(until);
            }
            known.failed_on.clear();
            known.failed_with.clear();
        }
    }

    /// From now on, one lease at a time asks in this repository, and in those of the registry that failed too.
    pub(super) fn try_first(&mut self, now: Moment, repository: &str) {
        let repository = self.repositories.entry(repository.to_string()).or_default();
        repository.failures = repository.failures.max(1);
        repository.failed_at = now;
    }

    // ---- pace -------------------------------------------------------------------------------------------------------

    /// Notes the speed of a stream, as other hosts received it.
    pub(super) fn see_pace(&mut self, now: Moment, bytes_per_s: u64) {
        let pace = &mut self.pace;
        // forgets holders' words of streams that are much slower than this one
        pace.slow
            .retain(|_, said| said.saturating_mul(PACE_FACTOR) >= bytes_per_s);
        pace.seen_at = now;
        let before = pace.seen.unwrap_or(bytes_per_s);
        pace.seen = Some(before - before / 4 + bytes_per_s / 4);
    }

    /// A holder says that its stream has been this slow since `since`. If another host's stream was quick meanwhile,
    /// the holder itself is to blame.
    pub(super) fn hear_slow(&mut self, id: HostId, bytes_per_s: u64, since: Moment) {
        let seen = self.pace.seen.unwrap_or_default();
        let quick = seen > bytes_per_s.saturating_mul(PACE_FACTOR);
        if !quick || self.pace.seen_at <= since {
            self.pace.slow.insert(id, bytes_per_s);
        }
    }

    /// The bytes per second of the registry's streams, as other hosts received them. Where `enough` hosts (at most six)
    /// say that their streams are slower, and no quick stream was seen meanwhile, the registry has become slow and
    /// their word counts.
    pub(super) fn pace(&self, enough: usize) -> Option<u64> {
        let seen = self.pace.seen?;
        let said = self.pace.slow.values().max().copied();
        match said {
            Some(said) if self.pace.slow.len() >= enough.min(SLOW_WORDS) => Some(seen.min(said)),
            _ => Some(seen),
        }
    }
}

/// All registries, by the names with which references begin.
#[derive(Debug, Default)]
pub(super) struct Origins {
    by_registry: BTreeMap<String, Origin>,
}

impl Origins {
    pub(super) fn get(&self, registry: &str) -> Option<&Origin> {
        self.by_registry.get(registry)
    }

    pub(super) fn get_mut(&mut self, registry: &str) -> Option<&mut Origin> {
        self.by_registry.get_mut(registry)
    }

    /// Something of this repository is leased to a host.
    pub(super) fn lease(&mut self, registry: &str, repository: &str, id: &HostId) {
        let origin = self.by_registry.entry(registry.to_string()).or_default();
        origin.lease(repository, id);
    }

    /// Forgets registries and repositories that no image and no lease uses, once nothing about them needs to be
    /// remembered.
    pub(super) fn forget(
        &mut self,
        now: Moment,
        used: &BTreeSet<&str>,
        known: impl Fn(&Digest) -> bool,
    ) {
        for origin in self.by_registry.values_mut() {
            origin.repositories.retain(|name, repository| {
                repository.waits_until(now).is_some() || used.contains(name.as_str())
            });
            origin.wishes.forget(now, &known);
        }
        self.by_registry.retain(|registry, origin| {
            let remembered = !origin.repositories.is_empty() || !origin.wishes.is_empty();
            remembered || used.contains(registry.as_str())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    fn content(number: u32) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[test]
    fn a_repository_fails_when_two_hosts_meet_it_with_two_contents() {
        let mut origin = Origin::default();
        assert!(!origin.fail("a", &host(1), content(1), 4));
        assert!(!origin.fail("a", &host(1), content(2), 4));
        assert!(!origin.fail("b", &host(2), content(2), 4));
        assert!(origin.fail("a", &host(2), content(2), 4));
        // one host is enough where the fleet has no other
        let mut alone = Origin::default();
        assert!(!alone.fail("a", &host(1), content(1), 1));
        assert!(alone.fail("a", &host(1), content(2), 1));
    }

    #[test]
    fn a_repository_that_is_left_alone_fails_until_it_gives_something() {
        let mut origin = Origin::default();
        origin.fail("a", &host(1), content(1), 4);
        assert_eq!(origin.failures("a", START), Some(0));
        assert!(origin.has_failed("a") && !origin.fails("a"));
        let until = START + Duration::from_secs(1);
        origin.leave_alone(START, "a", Some(until));
        assert!(origin.fails("a"));
        assert_eq!(
            origin.waits_until("a", until - MOMENT),
            Some((until, false))
        );
        assert_eq!(origin.failures("a", until - MOMENT), None, "it waits");
        assert_eq!(origin.waits_until("a", until), None);
        assert_eq!(origin.failures("a", until), Some(1));
        let gift = origin.give(until, "a").unwrap();
        assert!(gift.failed && gift.quiet);
        assert!(!origin.has_failed("a"));
        assert!(origin.gave_since("a", START));
        assert!(!origin.gave_since("a", until));
    }

    #[test]
    fn a_registry_is_away_while_two_repositories_fail_and_nothing_came_since() {
        let mut origin = Origin::default();
        origin.try_first(START, "a");
        assert!(!origin.is_away());
        origin.try_first(START, "b");
        assert!(origin.is_away());
        origin.give(START + MOMENT, "c");
        assert!(!origin.is_away());
    }

    #[test]
    fn what_comes_after_ten_silent_seconds_wakes_every_repository() {
        for (silent, wakes) in [(QUIET - MOMENT, false), (QUIET, true)] {
            let mut origin = Origin::default();
            origin.give(START, "a");
            origin.try_first(START, "b");
            let until = START + Duration::from_mins(1);
            origin.leave_alone(START, "b", Some(until));
            let gift = origin.give(START + silent, "a").unwrap();
            assert_eq!((gift.failed, gift.quiet), (false, wakes));
            assert_eq!(
                origin.left_alone_until("b", START + silent).is_none(),
                wakes
            );
        }
    }

    #[test]
    fn leases_in_vain_are_told_once_and_no_more_than_sixteen() {
        let mut origin = Origin::default();
        for number in 0..20 {
            origin.note_vain(Vain {
                content: content(number),
                image: content(99),
                host: host(1),
                at: START,
            });
        }
        let told = origin.give(START, "a").unwrap().vain;
        assert_eq!(told.len(), VAIN_MOST);
        assert_eq!(told[0].content, content(4));
        assert_eq!(origin.give(START, "a").unwrap().vain, []);
    }

    #[test]
    fn a_registry_has_become_slow_when_enough_holders_say_so_and_nobody_saw_a_quick_stream() {
        let mut origin = Origin::default();
        assert_eq!(origin.pace(1), None);
        origin.see_pace(START, 4_000);
        origin.hear_slow(host(1), 100, START - MOMENT);
        assert_eq!(origin.pace(1), Some(4_000), "another's was quick meanwhile");
        origin.hear_slow(host(1), 100, START);
        assert_eq!(origin.pace(2), Some(4_000));
        origin.hear_slow(host(2), 200, START);
        assert_eq!(origin.pace(2), Some(200));
        // a quick stream shows that the slow holders themselves are to blame
        origin.see_pace(START, 4_000);
        assert_eq!(origin.pace(2), Some(4_000));
    }

    #[test]
    fn what_nobody_uses_and_nothing_waits_for_is_forgotten() {
        let mut origins = Origins::default();
        origins.lease("r", "r/a", &host(1));
        origins.forget(START, &BTreeSet::from(["r/a"]), |_| false);
        assert!(origins.get("r").is_some());
        let until = START + MOMENT;
        origins
            .get_mut("r")
            .unwrap()
            .leave_alone(START, "r/a", Some(until));
        origins.forget(START, &BTreeSet::new(), |_| false);
        assert!(origins.get("r").is_some());
        origins.forget(until, &BTreeSet::new(), |_| false);
        assert!(origins.get("r").is_none());
    }
}
