//! How each host's leases ended.
//!
//! A host that fails in one way may be good in another. So four things are remembered separately: leases for images
//! that came to nothing, leases for mirrors that came to nothing, registries that the host can't ask because of its own
//! settings, and a false word that a registry asks to be left alone.
//!
//! A client may ask any host's mirror for any blob, from any registry, including a dead one. So a failed lease for a
//! mirror says little about the host. It counts only for the host's leases for mirrors, never for images, in two
//! degrees:
//! - A host whose last leases for mirrors brought nothing is leased a blob only after other hosts that want it too.
//! - A host whose lease expired without any other host getting something of it is on trial for a minute; each repeat
//!   doubles that. A host on trial has one lease at a time, for a content that no other host wants, beside the other
//!   hosts' leases. Nobody waits for it: when another host wants the same content, the lease passes to that host.
//!
//! Both degrees end when other hosts get something of one of its leases.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::{String, ToString as _},
};
use core::time::Duration;

use proto::{HostId, Moment, pause::doubled};

use crate::stage::Config;

/// The length of the first trial. It doubles each time.
const TRIAL: Duration = Duration::from_mins(1);
/// The longest trial.
const TRIAL_MOST: Duration = Duration::from_hours(1);
/// More failures than this make no difference.
const FAILURES_MOST: u32 = 8;

/// How one host's leases for mirrors ended since others last got something of one.
#[derive(Debug, Default)]
struct Yield {
    /// The number of leases that brought nothing.
    barren: u32,
    /// The number of trials.
    trials: u32,
    /// When the last trial began.
    trial_since: Moment,
    /// When the last trial ends.
    trial_until: Option<Moment>,
}

impl Yield {
    fn is_on_trial(&self, now: Moment) -> bool {
        self.trial_until.is_some_and(|until| now < until)
    }

    /// A lease ended without result, as its holder says.
    const fn failed(&mut self) {
        self.barren = self.barren.saturating_add(1);
    }

    /// A lease expired. A lease that was granted before a trial began and expires during the trial doesn't lengthen it:
    /// the trial is for such leases too.
    fn expired(&mut self, now: Moment, granted_at: Moment) {
        self.failed();
        if self.is_on_trial(now) && granted_at < self.trial_since {
            return;
        }
        self.trial_since = now;
        self.trial_until = Some(now + doubled(TRIAL, TRIAL_MOST, self.trials));
        self.trials = self.trials.saturating_add(1);
    }
}

/// A registry that a host can't ask.
#[derive(Debug)]
struct Unable {
    times: u32,
    until: Moment,
}

/// How one host's leases ended.
#[derive(Debug, Default)]
struct Record {
    /// The number of leases for images that the host let expire or that failed.
    failures: u32,
    mirrors: Yield,
    /// Registries that the host can't ask, because of its own settings.
    unable: BTreeMap<String, Unable>,
    /// Until then, the host's word that a registry asks to be left alone counts for the host only, because an earlier
    /// word of the host was false.
    disbelieved_until: Option<Moment>,
}

/// How the leases of each host ended, for hosts that had one.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_host: BTreeMap<HostId, Record>,
}

impl Records {
    /// Removes a host that left the fleet.
    pub(super) fn forget(&mut self, id: &HostId) {
        self.by_host.remove(id);
    }

    fn of(&mut self, id: &HostId) -> &mut Record {
        self.by_host.entry(id.clone()).or_default()
    }

    // ---- leases for images ------------------------------------------------------------------------------------------

    /// The number of leases for images that the host let expire or that failed, up to the number that makes a
    /// difference.
    pub(super) fn failures(&self, id: &HostId) -> u32 {
        let record = self.by_host.get(id);
        record.map_or(0, |record| record.failures.min(FAILURES_MOST))
    }

    /// Counts a lease for an image that came to nothing.
    pub(super) fn fail(&mut self, id: &HostId) {
        let record = self.of(id);
        record.failures = record.failures.saturating_add(1);
    }

    /// Takes one failure back: what looked like the host's failure wasn't.
    pub(super) fn excuse(&mut self, id: &HostId) {
        if let Some(record) = self.by_host.get_mut(id) {
            record.failures = record.failures.saturating_sub(1);
        }
    }

    // ---- leases for mirrors -----------------------------------------------------------------------------------------

    /// How far the host goes behind other hosts that want the same blob: its barren leases for mirrors.
    pub(super) fn barren(&self, id: &HostId) -> u32 {
        let record = self.by_host.get(id);
        record.map_or(0, |record| record.mirrors.barren.min(FAILURES_MOST))
    }

    /// Whether the host is on trial.
    pub(super) fn is_on_trial(&self, now: Moment, id: &HostId) -> bool {
        let record = self.by_host.get(id);
        record.is_some_and(|record| record.mirrors.is_on_trial(now))
    }

    /// Notes that other hosts got something of a host's lease for a mirror.
    pub(super) fn mirror_brought(&mut self, id: &HostId) {
        if let Some(record) = self.by_host.get_mut(id) {
            record.mirrors = Yield::default();
        }
    }

    /// Counts a lease for a mirror that brought nothing, as its holder says.
    pub(super) fn mirror_failed(&mut self, id: &HostId) {
        self.of(id).mirrors.failed();
    }

    /// Counts a lease for a mirror that brought nothing, whose holder didn't say that it can't fetch the content.
    pub(super) fn mirror_expired(&mut self, now: Moment, id: &HostId, granted_at: Moment) {
        self.of(id).mirrors.expired(now, granted_at);
    }

    // ---- registries -------------------------------------------------------------------------------------------------

    /// Notes that a host's own settings keep it from asking a registry. This host alone is left out, for a while that
    /// grows.
    pub(super) fn unable(&mut self, now: Moment, id: &HostId, registry: &str, config: &Config) {
        let unable = &mut self.of(id).unable;
        let times = unable.get(registry).map_or(0, |unable| unable.times);
        let wait = doubled(config.origin_retry, config.fault_retry_most, times);
        let said = Unable {
            times: times.saturating_add(1),
            until: now + wait,
        };
        unable.insert(registry.to_string(), said);
    }

    /// Notes that the host got something from this registry.
    pub(super) fn able(&mut self, id: &HostId, registry: &str) {
        if let Some(record) = self.by_host.get_mut(id) {
            record.unable.remove(registry);
        }
    }

    /// Lets every host ask this registry again.
    pub(super) fn all_able(&mut self, registry: &str) {
        for record in self.by_host.values_mut() {
            record.unable.remove(registry);
        }
    }

    /// Whether the host is still left out because its settings kept it from asking this registry.
    pub(super) fn is_unable(&self, now: Moment, id: &HostId, registry: &str) -> bool {
        let record = self.by_host.get(id);
        let unable = record.and_then(|record| record.unable.get(registry));
        unable.is_some_and(|unable| now < unable.until)
    }

    /// Whether the host's settings kept it from asking this registry the last time it tried.
    pub(super) fn was_unable(&self, id: &HostId, registry: &str) -> bool {
        let record = self.by_host.get(id);
        record.is_some_and(|record| record.unable.contains_key(registry))
    }

    /// Forgets all registries except `used`.
    pub(super) fn keep_registries(&mut self, used: &BTreeSet<&str>) {
        for record in self.by_host.values_mut() {
            record.unable.retain(|name, _| used.contains(name.as_str()));
        }
    }

    /// The host's word that a registry asks to be left alone was false. Until `until`, such a word counts for the host
    /// only.
    pub(super) fn disbelieve(&mut self, id: &HostId, until: Moment) {
        self.of(id).disbelieved_until = Some(until);
    }

    /// Whether the host's word that a registry asks to be left alone counts for the host only.
    pub(super) fn is_disbelieved(&self, now: Moment, id: &HostId) -> bool {
        let record = self.by_host.get(id);
        let until = record.and_then(|record| record.disbelieved_until);
        until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);

    fn host() -> HostId {
        "host".parse().unwrap()
    }

    #[test]
    fn trials_last_a_minute_and_then_twice_as_long_each_time_up_to_an_hour() {
        let mut records = Records::default();
        let mut now = START;
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(!records.is_on_trial(now, &host()));
            records.mirror_expired(now, &host(), now);
            let until = now + Duration::from_mins(minutes);
            assert!(records.is_on_trial(until - MOMENT, &host()), "{minutes}");
            assert!(!records.is_on_trial(until, &host()), "{minutes}");
            now = until;
        }
    }

    #[test]
    fn leases_of_before_a_trial_make_it_no_longer() {
        let mut records = Records::default();
        records.mirror_expired(START, &host(), START - MOMENT);
        records.mirror_expired(START + MOMENT, &host(), START - MOMENT);
        assert_eq!(records.barren(&host()), 2);
        assert!(!records.is_on_trial(START + TRIAL, &host()));
        // one that was granted amid it does
        records.mirror_expired(START + 2 * MOMENT, &host(), START);
        assert!(records.is_on_trial(START + TRIAL, &host()));
    }

    #[test]
    fn leases_for_mirrors_and_for_images_count_apart() {
        let mut records = Records::default();
        records.fail(&host());
        records.mirror_failed(&host());
        records.mirror_failed(&host());
        assert_eq!((records.failures(&host()), records.barren(&host())), (1, 2));
        assert!(!records.is_on_trial(START, &host()));
        records.mirror_brought(&host());
        assert_eq!((records.failures(&host()), records.barren(&host())), (1, 0));
        for _ in 0..20 {
            records.fail(&host());
        }
        assert_eq!(records.failures(&host()), FAILURES_MOST);
    }

    #[test]
    fn a_registry_that_a_host_cannot_ask_is_left_out_for_longer_each_time() {
        let (mut records, config) = (Records::default(), Config::default());
        for wait in [1, 2, 4] {
            records.unable(START, &host(), "registry.example", &config);
            let until = START + Duration::from_secs(wait);
            assert!(records.is_unable(until - MOMENT, &host(), "registry.example"));
            assert!(!records.is_unable(until, &host(), "registry.example"));
            assert!(records.was_unable(&host(), "registry.example"));
            assert!(!records.is_unable(START, &host(), "other.example"));
        }
        records.keep_registries(&BTreeSet::from(["registry.example"]));
        assert!(records.was_unable(&host(), "registry.example"));
        records.keep_registries(&BTreeSet::new());
        assert!(!records.was_unable(&host(), "registry.example"));
        records.unable(START, &host(), "registry.example", &config);
        records.all_able("registry.example");
        assert!(!records.was_unable(&host(), "registry.example"));
    }

    #[test]
    fn a_false_word_is_held_against_its_host_until_its_time_is_over() {
        let mut records = Records::default();
        assert!(!records.is_disbelieved(START, &host()));
        records.disbelieve(&host(), START + MOMENT);
        assert!(records.is_disbelieved(START, &host()));
        assert!(!records.is_disbelieved(START + MOMENT, &host()));
        records.disbelieve(&host(), START + MOMENT);
        records.forget(&host());
        assert!(!records.is_disbelieved(START, &host()));
    }
}
