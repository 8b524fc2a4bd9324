//! How attempts to fetch one content ended.
//!
//! A fault counts for the content and the image under whose name it was asked for, and for nothing else. Another host
//! tries the content at once. When several hosts find the same fault, or the only host finds it twice, the image fails
//! and names the content. The content is then tried again after pauses that grow, and the image's other contents wait.
//! Another image that has the same content from another registry isn't held up. If that image brings the content, the
//! first image goes on.

use alloc::collections::{BTreeMap, BTreeSet};
use core::time::Duration;

use proto::{Digest, HostId, Moment, pause::doubled};

use crate::stage::{Config, event::Fault};

/// The number of tries that an hour may cost where each gets nearly the whole content.
const COSTLY_TRIES: usize = 3;

/// A content that a registry fails for this long, while it gives others, makes its image fail. Connections that break
/// and servers that restart take less time.
const UNAVAILABLE_AFTER: Duration = Duration::from_secs(30);

/// What hosts found wrong with one content under one image's name, since somebody last got it.
#[derive(Debug)]
struct Faults {
    fault: Fault,
    /// When the fault was first reported.
    since: Moment,
    /// The hosts that reported it.
    by: BTreeSet<HostId>,
    times: u32,
    /// Set once the image failed for the fault: how often the content was tried again since.
    rounds: Option<u32>,
    /// No host asks for the content before this time.
    retry_at: Moment,
    /// The hosts in `by` don't ask for the content before this time, because another host's word says more.
    again_at: Moment,
}

/// A content that its registry fails.
#[derive(Debug)]
struct Away {
    failures: u32,
    /// When the last failure was counted.
    failed_at: Moment,
    /// The content is left alone until then.
    until: Moment,
}

/// A host's word that a content is faulty.
pub(super) struct Word<'a> {
    pub(super) by: &'a HostId,
    /// The image under whose name the host asked.
    pub(super) image: Digest,
    pub(super) fault: Fault,
    /// The number of hosts that may say what the image's registry has.
    pub(super) witnesses: usize,
    /// Another host fetches a range of the content, and has no trouble: what comes of that says more.
    pub(super) others_fetch: bool,
}

/// How attempts to fetch one content ended.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// The faults that hosts found, by the image under whose name they asked.
    faults: BTreeMap<Digest, Faults>,
    /// Set while the registry failed the content and gave others something, until a chunk of the content comes.
    away: Option<Away>,
    /// When the content was last leased.
    asked_at: Option<Moment>,
    /// The hosts that ever had a lease of the content. Only these made links of it.
    leased_to: BTreeSet<HostId>,
    /// The hosts whose lease failed, expired or was given back since the last success.
    tried: BTreeSet<HostId>,
    /// The hosts that gave the lease back without having brought anything, since somebody got something of the content:
    /// how often, and until when the content isn't leased to each of them.
    returned: BTreeMap<HostId, (u32, Moment)>,
    /// The latest holder. The next lease goes to another host if there is one.
    last: Option<HostId>,
    /// The number of mirrors' leases in a row that the registry failed.
    mirror_failures: u32,
    /// When the content may be leased to a mirror again.
    mirror_retry_at: Option<Moment>,
}

impl Tries {
    // ---- leases -----------------------------------------------------------------------------------------------------

    /// The content is leased to this host.
    pub(super) fn lease(&mut self, now: Moment, id: &HostId) {
        self.asked_at = Some(now);
        self.last = Some(id.clone());
        self.leased_to.insert(id.clone());
    }

    /// When the content was last leased.
    pub(super) const fn asked_at(&self) -> Option<Moment> {
        self.asked_at
    }

    /// Whether this host ever had a lease of the content.
    pub(super) fn was_leased_to(&self, id: &HostId) -> bool {
        self.leased_to.contains(id)
    }

    /// Whether this host had the content's latest lease.
    pub(super) fn was_last(&self, id: &HostId) -> bool {
        self.last.as_ref() == Some(id)
    }

    /// Lets the latest holder be the next one too.
    pub(super) fn forget_last(&mut self) {
        self.last = None;
    }

    /// A host's lease came to nothing.
    pub(super) fn fail(&mut self, id: &HostId) {
        self.tried.insert(id.clone());
    }

    /// Whether a lease of this host came to nothing since the last success.
    pub(super) fn has_failed(&self, id: &HostId) -> bool {
        self.tried.contains(id)
    }

    /// Whether no lease came to nothing since the last success.
    pub(super) fn none_failed(&self) -> bool {
        self.tried.is_empty()
    }

    /// Forgets which hosts' leases came to nothing.
    pub(super) fn forget_failed(&mut self) {
        self.tried.clear();
    }

    /// A host gave the lease back, and nobody got anything of it. Another host may have the lease at once. The same
    /// host has it again after a pause that grows: a host that gives every lease back would otherwise be leased the
    /// content again with every message.
    pub(super) fn give_back(&mut self, now: Moment, id: &HostId, config: &Config) {
        let (times, until) = self.returned.entry(id.clone()).or_insert((0, now));
        *until = now + config.origin_pause(*times);
        *times = times.saturating_add(1);
        self.fail(id);
    }

    /// Whether the content isn't leased to this host yet, because the host gave the lease back.
    pub(super) fn has_given_back(&self, id: &HostId, now: Moment) -> bool {
        self.returned.get(id).is_some_and(|(_, until)| now < *until)
    }

    pub(super) fn forget_host(&mut self, id: &HostId) {
        self.tried.remove(id);
        self.returned.remove(id);
    }

    /// Some host has the content, so any word against it was wrong.
    pub(super) fn succeed(&mut self) {
        self.tried.clear();
        self.returned.clear();
        self.faults.clear();
        self.away = None;
    }

    // ---- its registry fails it --------------------------------------------------------------------------------------

    /// The registry failed the content's holder, whose lease was granted at `granted_at`. Another host, if there is
    /// one, may try at once. When that host fails too, the content is left alone for a while that grows. Of several
    /// ranges that the registry fails at one time, the first says it all.
    pub(super) fn leave_alone(
        &mut self,
        now: Moment,
        (id, granted_at): (&HostId, Moment),
        others: bool,
        config: &Config,
    ) {
        self.fail(id);
        if let Some(away) = &self.away
            && granted_at < away.failed_at
        {
            return;
        }
        let failures = self.away.as_ref().map_or(0, |away| away.failures);
        let wait = match failures.checked_sub(1) {
            Some(before) => config.origin_pause(before),
            None if others => Duration::ZERO,
            None => config.origin_pause(0),
        };
        self.away = Some(Away {
            failures: failures.saturating_add(1),
            failed_at: now,
            until: now + wait,
        });
    }

    /// Whether the registry failed the content since a chunk of it came.
    pub(super) const fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// Until when the content is left alone because its registry failed it.
    pub(super) fn away_until(&self, now: Moment) -> Option<Moment> {
        let away = self.away.as_ref()?;
        Some(away.until).filter(|until| now < *until)
    }

    /// Ends that wait. The number of failures is kept.
    pub(super) fn wake(&mut self, now: Moment) {
        if let Some(away) = &mut self.away {
            away.until = now.min(away.until);
        }
    }

    // ---- faults -----------------------------------------------------------------------------------------------------

    /// A host found the content faulty. Returns whether the image fails for that now; `None` where another host knows
    /// better.
    pub(super) fn find_faulty(
        &mut self,
        now: Moment,
        word: &Word<'_>,
        config: &Config,
    ) -> Option<bool> {
        let Word {
            by,
            image,
            fault,
            witnesses,
            others_fetch,
        } = *word;
        // so many that liars among the witnesses can't decide alone, but at most twice the least number
        let share = config.share(witnesses).min(config.bad_witnesses * 2);
        let mut enough = config.bad_witnesses.max(share).max(1);
        let mut first = config.fault_retry;
        let mut most = config.fault_retry_most;
        if fault == Fault::CutShort {
            // each try gets nearly the whole content: at most three an hour
            enough = enough.min(COSTLY_TRIES);
            most = config.costly_retry_most;
            first = match enough {
                COSTLY_TRIES => most,
                _ => config.costly_retry,
            };
        }
        self.fail(by);
        let before = self.faults.get(&image);
        let unavailable = before.map(|faults| faults.fault == Fault::Unavailable);
        match (unavailable, fault == Fault::Unavailable) {
            // a known fault says more than a registry that hangs
            (Some(true), false) => drop(self.faults.remove(&image)),
            (Some(false), true) => return None,
            _ => {}
        }
        let faults = self.faults.entry(image).or_insert(Faults {
            fault,
            since: now,
            by: BTreeSet::new(),
            times: 0,
            rounds: None,
            retry_at: now,
            again_at: now,
        });
        faults.fault = fault;
        faults.by.insert(by.clone());
        faults.times = faults.times.saturating_add(1);
        faults.again_at = now + config.origin_pause(faults.times.saturating_sub(1));
        let alone = witnesses < enough;
        let least = match fault {
            Fault::Unavailable => UNAVAILABLE_AFTER,
            _ => Duration::ZERO,
        };
        let lasts = now.since(faults.since) >= least;
        let said = faults.by.len() >= enough || (alone && faults.times as usize >= enough);
        let decided = said && lasts && !others_fetch;
        if decided {
            let rounds = faults.rounds.map_or(0, |rounds| rounds.saturating_add(1));
            faults.rounds = Some(rounds);
            faults.retry_at = now + doubled(first, most, rounds);
        }
        Some(decided)
    }

    /// Whether the content isn't to be asked for yet under this image's name.
    pub(super) fn rests(&self, image: &Digest, now: Moment) -> bool {
        let away = self.away_until(now).is_some();
        away || self.faults.get(image).is_some_and(|of| now < of.retry_at)
    }

    /// Whether this host found a fault, and isn't to look again yet.
    pub(super) fn has_looked(&self, image: &Digest, id: &HostId, now: Moment) -> bool {
        let faults = self.faults.get(image);
        faults.is_some_and(|faults| now < faults.again_at && faults.by.contains(id))
    }

    /// The fault for which this image fails, if it does.
    pub(super) fn fails(&self, image: &Digest) -> Option<Fault> {
        let faults = self.faults.get(image)?;
        faults.rounds.map(|_| faults.fault)
    }

    /// A chunk of the content came under this image's name. Two faults stay: bytes that are false or that end too early
    /// show only at the content's end.
    pub(super) fn came(&mut self, image: &Digest) {
        self.away = None;
        self.returned.clear();
        if self.shows_at_once(image) {
            self.faults.remove(image);
        }
    }

    /// Whether a host found a fault under this image's name that a chunk of the content would refute.
    fn shows_at_once(&self, image: &Digest) -> bool {
        let faults = self.faults.get(image);
        faults.is_some_and(|faults| !matches!(faults.fault, Fault::Bad | Fault::CutShort))
    }

    /// Whether the registry failed the content, or a host said that it lacks it, since a chunk of it came: then one
    /// host at a time asks.
    pub(super) fn is_in_question(&self, image: &Digest) -> bool {
        self.is_away() || self.shows_at_once(image)
    }

    /// Forgets what was found wrong with the content under this image's name.
    pub(super) fn forgive(&mut self, image: &Digest) {
        if self.faults.remove(image).is_some() {
            self.tried.clear();
        }
    }

    /// The content is asked for anew under this image's name: it is tried at once.
    pub(super) fn urge(&mut self, image: &Digest) {
        self.forgive(image);
        self.away = None;
        self.returned.clear();
    }

    // ---- mirrors ----------------------------------------------------------------------------------------------------

    /// A mirror's registry failed a host, refused its client or gave it false bytes. The next host tries after a while.
    pub(super) fn fail_mirror(&mut self, now: Moment, id: &HostId, config: &Config) {
        self.fail(id);
        self.mirror_retry_at = Some(now + config.origin_pause(self.mirror_failures));
        self.mirror_failures = self.mirror_failures.saturating_add(1);
    }

    /// Lets mirrors have leases of the content at once.
    pub(super) const fn wake_mirrors(&mut self) {
        self.mirror_failures = 0;
        self.mirror_retry_at = None;
    }

    /// Whether mirrors have to wait before the content is leased to one again.
    pub(super) fn rests_for_mirrors(&self, now: Moment) -> bool {
        self.mirror_retry_at.is_some_and(|at| now < at)
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

    fn image() -> Digest {
        Digest::of(b"image")
    }

    fn say(
        tries: &mut Tries,
        now: Moment,
        by: u32,
        fault: Fault,
        witnesses: usize,
    ) -> Option<bool> {
        let by = &host(by);
        let image = image();
        let word = Word {
            by,
            image,
            fault,
            witnesses,
            others_fetch: false,
        };
        tries.find_faulty(now, &word, &Config::default())
    }

    #[test]
    fn an_image_fails_when_two_hosts_say_so_and_is_tried_again_after_pauses_that_grow() {
        let mut tries = Tries::default();
        assert_eq!(say(&mut tries, START, 1, Fault::Missing, 3), Some(false));
        assert_eq!(tries.fails(&image()), None);
        assert!(!tries.rests(&image(), START));
        // a second word of the same host adds nothing
        assert_eq!(say(&mut tries, START, 1, Fault::Missing, 3), Some(false));
        let mut now = START;
        for minutes in [1, 2, 4, 8, 10, 10] {
            assert_eq!(say(&mut tries, now, 2, Fault::Missing, 3), Some(true));
            assert_eq!(tries.fails(&image()), Some(Fault::Missing));
            let until = now + Duration::from_mins(minutes);
            assert!(tries.rests(&image(), until - MOMENT), "{minutes}");
            assert!(!tries.rests(&image(), until), "{minutes}");
            assert!(!tries.rests(&Digest::of(b"another"), now));
            now = until;
        }
    }

    #[test]
    fn the_only_host_that_could_say_so_says_it_twice() {
        let mut tries = Tries::default();
        assert_eq!(say(&mut tries, START, 1, Fault::Bad, 1), Some(false));
        assert!(tries.has_looked(&image(), &host(1), START));
        assert!(!tries.has_looked(&image(), &host(2), START));
        let again = START + Duration::from_secs(1);
        assert!(!tries.has_looked(&image(), &host(1), again));
        assert_eq!(say(&mut tries, again, 1, Fault::Bad, 1), Some(true));
    }

    #[test]
    fn what_a_registry_seems_to_lack_has_to_last_for_half_a_minute_and_gives_way_to_what_is_certain()
     {
        let mut tries = Tries::default();
        say(&mut tries, START, 1, Fault::Unavailable, 4);
        let almost = START + UNAVAILABLE_AFTER - MOMENT;
        assert_eq!(
            say(&mut tries, almost, 2, Fault::Unavailable, 4),
            Some(false)
        );
        let then = START + UNAVAILABLE_AFTER;
        assert_eq!(say(&mut tries, then, 2, Fault::Unavailable, 4), Some(true));
        // a host that was told so begins anew
        assert_eq!(say(&mut tries, then, 3, Fault::Missing, 4), Some(false));
        assert_eq!(say(&mut tries, then, 1, Fault::Unavailable, 4), None);
        assert_eq!(say(&mut tries, then, 4, Fault::Missing, 4), Some(true));
    }

    #[test]
    fn a_chunk_shows_that_a_content_is_there_but_not_that_its_bytes_are_true() {
        for (fault, stays) in [
            (Fault::Missing, false),
            (Fault::Refused, false),
            (Fault::Unusable, false),
            (Fault::Unavailable, false),
            (Fault::Bad, true),
            (Fault::CutShort, true),
        ] {
            let mut tries = Tries::default();
            say(&mut tries, START, 1, fault, 2);
            say(&mut tries, START + UNAVAILABLE_AFTER, 2, fault, 2);
            assert_eq!(tries.fails(&image()), Some(fault));
            tries.came(&image());
            assert_eq!(tries.fails(&image()).is_some(), stays, "{fault:?}");
            tries.succeed();
            assert_eq!(tries.fails(&image()), None);
        }
    }

    #[test]
    fn a_registry_that_fails_a_content_is_asked_by_another_host_at_once_and_then_later_and_later() {
        let (mut tries, config) = (Tries::default(), Config::default());
        tries.leave_alone(START, (&host(1), START), true, &config);
        assert!(tries.is_away() && tries.has_failed(&host(1)));
        assert_eq!(tries.away_until(START), None);
        let mut now = START;
        for seconds in [1, 2, 4] {
            tries.leave_alone(now, (&host(2), now), true, &config);
            let until = now + Duration::from_secs(seconds);
            assert_eq!(tries.away_until(until - MOMENT), Some(until));
            assert_eq!(tries.away_until(until), None);
            // the registry fails another range, too, which was leased before
            tries.leave_alone(until, (&host(3), now - MOMENT), true, &config);
            assert_eq!(tries.away_until(until), None);
            now = until;
        }
        assert!(tries.has_failed(&host(3)));
        tries.wake(now);
        assert_eq!(tries.away_until(now), None);
        // the number of failures is remembered
        tries.leave_alone(now, (&host(2), now), true, &config);
        assert_eq!(tries.away_until(now), Some(now + Duration::from_secs(8)));
        // the only host of a fleet waits from the first failure on
        let mut alone = Tries::default();
        alone.leave_alone(START, (&host(1), START), false, &config);
        assert_eq!(
            alone.away_until(START),
            Some(START + Duration::from_secs(1))
        );
    }

    #[test]
    fn a_host_that_gives_the_lease_back_has_it_again_later_and_later_and_other_hosts_at_once() {
        let (mut tries, config) = (Tries::default(), Config::default());
        let mut now = START;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            tries.give_back(now, &host(1), &config);
            let until = now + Duration::from_secs(seconds);
            assert!(tries.has_given_back(&host(1), until - MOMENT), "{seconds}");
            assert!(!tries.has_given_back(&host(1), until), "{seconds}");
            assert!(!tries.has_given_back(&host(2), now));
            now = until;
        }
        assert!(tries.has_failed(&host(1)));
        assert!(
            !tries.rests(&image(), START),
            "the content waits for nobody"
        );
    }

    #[test]
    fn what_comes_or_is_asked_for_anew_ends_the_pause_of_who_gave_the_lease_back() {
        type End = fn(&mut Tries);
        let ends: [End; 4] = [
            Tries::succeed,
            |tries| tries.came(&image()),
            |tries| tries.urge(&image()),
            |tries| tries.forget_host(&host(1)),
        ];
        for end in ends {
            let (mut tries, config) = (Tries::default(), Config::default());
            tries.give_back(START, &host(1), &config);
            end(&mut tries);
            assert!(!tries.has_given_back(&host(1), START));
        }
    }

    #[test]
    fn a_mirrors_registry_that_fails_is_asked_for_a_blob_later_and_later() {
        let (mut tries, config) = (Tries::default(), Config::default());
        for seconds in [1, 2, 4] {
            tries.fail_mirror(START, &host(1), &config);
            let until = START + Duration::from_secs(seconds);
            assert!(tries.rests_for_mirrors(until - MOMENT));
            assert!(!tries.rests_for_mirrors(until));
        }
        assert!(!tries.rests(&image(), START), "images ask all the same");
        tries.wake_mirrors();
        assert!(!tries.rests_for_mirrors(START));
    }

    #[test]
    fn forgiving_one_image_lets_everybody_try_again_for_it_alone() {
        let mut tries = Tries::default();
        say(&mut tries, START, 1, Fault::Refused, 2);
        tries.forgive(&Digest::of(b"another"));
        assert!(tries.has_failed(&host(1)));
        tries.forgive(&image());
        assert!(tries.none_failed());
        assert!(!tries.has_looked(&image(), &host(1), START));
    }
}
