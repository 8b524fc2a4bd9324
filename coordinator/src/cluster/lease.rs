//! Who of several coordinators writes: leader election by a Lease object.
//!
//! `Election` decides and does no I/O; `hold` asks the API server and tells what came of it. Two rules keep two
//! writers apart, and neither compares the clocks of two machines:
//! - Who doesn't hold the lease takes it only after having seen it unchanged for the whole duration, by its own clock.
//! - Who holds it stops two thirds of the duration after *sending* the last renewal that succeeded, by its own clock.
//!   The others saw that renewal later than it was sent, so a third of the duration lies between.
//!
//! A Lease that was deleted tells nobody that its holder has stopped. So whoever makes a new one, where somebody led
//! before, leads only four fifths of the duration later: whoever held the one before can't renew it any more, and has
//! stopped by then. Until then the Lease says that it is new, so that nobody who takes it over leads sooner. That somebody led before is known from the Lease, or from the Secret's term (`state`). A term's number is greater than that of every term before: than the Lease's, and than the
//! Secret's, which a backup may have brought from another cluster. The claim of the Secret compares both once more.
//!
//! The clock goes on while a machine sleeps, so that a leader that was paused finds its `Term` over when it wakes.
//! What is left is a pause between the look at the term and the packet that leaves: microseconds of code, against which
//! only the API server could fence. Writers narrow it by preconditions on what they read.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{Api, api::ObjectMeta};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{state, trouble, write::post_params};

/// The Lease's name.
pub const NAME: &str = "parbake-coordinator";
/// The annotation of a lease that was made where there was none, until its holder leads.
const NEW: &str = "parbake.dev/new";
/// A request about the lease is given up after this long, and sooner where the lease is short.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait after a request that failed.
const RETRY: Duration = Duration::from_millis(500);

/// What takes part in the election.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How the holder is called: the Pod's name. A container that was started again in the same Pod takes its own lease
    /// back at once.
    pub(crate) identity: String,
    /// How long the lease lasts without a renewal.
    pub(crate) duration: Duration,
}

/// Whether this process leads.
#[derive(Clone, Debug)]
pub(crate) enum Leadership {
    /// Somebody else does, or nobody yet. The name where one is known.
    Following(Option<String>),
    /// This process does, while the term holds.
    Leading(Term),
}

/// The right to write. Looked at before each write.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    number: u32,
    /// By [`clock`], in milliseconds.
    until: Arc<AtomicU64>,
}

impl Term {
    /// Counts changes of leader. A later leader's is greater.
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }

    /// Whether this process may write at this moment.
    pub(crate) fn holds(&self) -> bool {
        self.left().is_some()
    }

    /// How long this process may write from now on, if the lease isn't renewed.
    pub(crate) fn left(&self) -> Option<Duration> {
        let until = Duration::from_millis(self.until.load(Ordering::Acquire));
        until.checked_sub(clock()).filter(|left| !left.is_zero())
    }

    fn extend(&self, until: Duration) {
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.until.store(until, Ordering::Release);
    }

    fn end(&self) {
        self.until.store(0, Ordering::Release);
    }
}

/// Why an election ended that wasn't stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostError {
    /// No renewal succeeded in time. Another coordinator takes over.
    #[error("lease {NAME} couldn't be renewed in time; another coordinator takes over")]
    Expired,
    /// Somebody else holds the lease.
    #[error("lease {NAME} was taken by {0}")]
    Taken(String),
    /// Somebody removed the lease, so that anybody may make a new one.
    #[error("lease {NAME} was deleted while this coordinator led")]
    Deleted,
}

/// The lease as the server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Record {
    holder: Option<String>,
    transitions: u32,
    duration: Duration,
    /// Told apart, never compared with a clock.
    renewed: Option<jiff::Timestamp>,
    /// Since when the holder has held it. For people; nothing is decided by it.
    acquired: Option<jiff::Timestamp>,
    /// Nobody has led by it yet, and somebody may lead still by one that was deleted.
    new: bool,
    version: Option<String>,
    /// A Lease that was deleted and made anew has another one.
    uid: Option<String>,
}

impl Record {
    fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
        let annotations = lease.metadata.annotations.as_ref();
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        Self {
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            transitions: spec
                .lease_transitions
                .and_then(|number| number.try_into().ok())
                .unwrap_or_default(),
            duration: Duration::from_secs(seconds.try_into().unwrap_or_default()),
            renewed: spec.renew_time.map(|time| time.0),
            acquired: spec.acquire_time.map(|time| time.0),
            new: annotations.is_some_and(|all| all.contains_key(NEW)),
            version: lease.metadata.resource_version.clone(),
            uid: lease.metadata.uid.clone(),
        }
    }

    /// Whether the holder gave a sign of life between the two.
    fn same_term(&self, other: &Self) -> bool {
        (&self.holder, self.transitions, self.renewed)
            == (&other.holder, other.transitions, other.renewed)
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Ask for the lease.
    Look,
    /// Write the lease with ourselves as its holder.
    Take,
    /// Write it again.
    Renew,
    /// Nothing until then, at the latest.
    Wait(Duration),
    /// We don't lead any more.
    Lose(LostError),
}

/// The election, as one candidate sees it. Times are of [`clock`].
#[derive(Clone, Debug)]
struct Election {
    settings: Settings,
    /// What was seen last, and since when it has been like that. `None` inside: there is no lease.
    seen: Option<(Option<Record>, Duration)>,
    /// The longest duration of a lease that was seen with a holder.
    held: Option<Duration>,
    /// The term in the Secret when it was looked at last: 0 where nobody has led yet.
    claimed: u32,
    /// When it was looked at last.
    looked: Duration,
    /// When the last renewal that succeeded was sent, while we hold the lease.
    renewed: Option<Duration>,
    /// Who holds the lease leads from then on.
    from: Duration,
}

impl Election {
    const fn new(settings: Settings) -> Self {
        Self {
            settings,
            seen: None,
            held: None,
            claimed: 0,
            looked: Duration::ZERO,
            renewed: None,
            from: Duration::ZERO,
        }
    }

    /// Renewals, and looks at another's lease, are this far apart.
    fn pace(&self) -> Duration {
        self.settings.duration / 5
    }

    /// When a leader has to have stopped.
    fn end(&self) -> Option<Duration> {
        Some(self.renewed? + self.settings.duration / 3 * 2)
    }

    /// The server has this, at a time before `now`.
    fn see(&mut self, record: Option<Record>, now: Duration) {
        let since = match (&self.seen, &record) {
            (Some((Some(before), since)), Some(record)) if before.same_term(record) => *since,
            (Some((None, since)), None) => *since,
            _ => now,
        };
        if let Some(record) = record.as_ref().filter(|record| record.holder.is_some()) {
            self.held = self.held.max(Some(record.duration));
        }
        self.seen = Some((record, since));
        self.looked = now;
    }

    /// The lease as it was seen last.
    fn record(&self) -> Option<&Record> {
        self.seen.as_ref()?.0.as_ref()
    }

    /// The number of the term that begins if we take the lease now: greater than all before.
    fn next_number(&self) -> u32 {
        let last = self.record().map_or(0, |record| record.transitions);
        last.max(self.claimed)
            .saturating_add(1)
            .min(state::LAST_TERM)
    }

    /// Whether the lease that we write now is new.
    fn is_new(&self, step: &Step, now: Duration) -> bool {
        match step {
            Step::Take => self.record().is_none_or(|record| record.new),
            _ => now < self.from,
        }
    }

    /// How long after it took a new lease its holder has to wait until it leads. Whoever held one before stops two thirds
    /// of the duration after its last renewal, which was before this.
    fn fence(&self) -> Duration {
        let duration = match self.held {
            // Another version of this program, or another setting, may have written a longer one.
            Some(held) => held.max(self.settings.duration),
            None if self.claimed > 0 => self.settings.duration,
            None => Duration::ZERO,
        };
        duration / 5 * 4
    }

    /// We wrote this record, in a request sent at `sent`.
    fn won(&mut self, record: Record, sent: Duration, now: Duration) {
        if self.renewed.is_none() {
            let fence = if record.new {
                self.fence()
            } else {
                Duration::ZERO
            };
            self.from = now + fence;
        }
        self.see(Some(record), now);
        self.renewed = Some(sent);
    }

    /// Until when we lead, where we do.
    fn leads(&self, now: Duration) -> Option<Duration> {
        self.end().filter(|_| now >= self.from)
    }

    fn step(&mut self, now: Duration) -> Step {
        if let (Some(renewed), Some(end)) = (self.renewed, self.end()) {
            let lost = match self.record() {
                _ if now >= end => Some(LostError::Expired),
                None => Some(LostError::Deleted),
                Some(record) if record.holder.as_ref() != Some(&self.settings.identity) => {
                    let holder = record.holder.clone();
                    Some(LostError::Taken(holder.unwrap_or_else(|| "nobody".into())))
                }
                Some(_) => None,
            };
            match lost {
                Some(error) if now >= self.from => return Step::Lose(error),
                // we didn't lead yet
                Some(_) => self.renewed = None,
                None if now >= renewed + self.pace() => return Step::Renew,
                None if now < self.from => return Step::Wait(self.from.min(renewed + self.pace())),
                None => return Step::Wait(renewed + self.pace()),
            }
        }
        let Some((record, since)) = &self.seen else {
            return Step::Look;
        };
        let Some(record) = record else {
            return Step::Take;
        };
        let free = match &record.holder {
            None => now,
            Some(holder) if *holder == self.settings.identity => now,
            // Another version of this program, or another setting, may have written a longer one.
            Some(_) => *since + record.duration.max(self.settings.duration),
        };
        if now >= free {
            Step::Take
        } else if now >= self.looked + self.pace() {
            Step::Look
        } else {
            Step::Wait(free.min(self.looked + self.pace()))
        }
    }
}

/// Takes part in the election until `release`, and tells what came of it. Gives the lease back then, if it is ours.
/// `secrets` has the term that was claimed last.
///
/// Whoever cancels `release` has stopped writing before.
///
/// # Errors
/// When the lease was lost. The term is over by then, and this process must not lead again.
pub(crate) async fn hold(
    (api, secrets): (Api<Lease>, Api<Secret>),
    settings: Settings,
    leadership: watch::Sender<Leadership>,
    release: CancellationToken,
) -> Result<(), LostError> {
    let mut election = Election::new(settings);
    let mut term: Option<Term> = None;
    let mut failing = trouble::Failing::default();
    loop {
        let step = election.step(clock());
        let done = match step {
            Step::Lose(error) => {
                if let Some(term) = &term {
                    term.end();
                }
                leadership.send_replace(Leadership::Following(None));
                return Err(error);
            }
            Step::Wait(until) => {
                tokio::select! {
                    () = release.cancelled() => break,
                    () = tokio::time::sleep(until.saturating_sub(clock())) => {
                        tell(&election, &mut term, &leadership);
                        continue;
                    }
                }
            }
            ref asked => {
                let limit = election
                    .end()
                    .map_or(Duration::MAX, |end| end.saturating_sub(clock()))
                    .min(REQUEST_TIMEOUT)
                    .min(election.settings.duration / 3);
                tokio::select! {
                    () = release.cancelled() => break,
                    done = timeout(limit, ask((&api, &secrets), &mut election, asked)) => done,
                }
            }
        };
        match done {
            Ok(Ok(())) => {
                if failing.over() {
                    info!("lease can be reached again");
                }
            }
            failed => {
                if let Some(error) = failing.failed(failed.ok().and_then(Result::err).as_ref()) {
                    warn!(error, "lease can't be read or written; trying again");
                }
                tokio::time::sleep(RETRY.min(election.settings.duration / 10)).await;
            }
        }
        tell(&election, &mut term, &leadership);
    }
    if let Some(term) = &term {
        term.end();
        leadership.send_replace(Leadership::Following(None));
        if let Some(record) = election.record() {
            let released = timeout(REQUEST_TIMEOUT, give_back(&api, record)).await;
            match released {
                Ok(Ok(_)) => info!("lease given back"),
                // it runs out by itself; most often the roles went with the release
                Ok(Err(error)) => {
                    let error = trouble::plain(&error);
                    info!(error, "lease isn't given back; it runs out by itself");
                }
                Err(_) => info!("lease isn't given back in time; it runs out by itself"),
            }
        }
    }
    Ok(())
}

/// Publishes what changed.
fn tell(election: &Election, term: &mut Option<Term>, leadership: &watch::Sender<Leadership>) {
    let record = election.record();
    if election.renewed.is_some() && election.leads(clock()).is_none() {
        return;
    }
    if let Some(end) = election.end() {
        if let Some(term) = term {
            term.extend(end);
            return;
        }
        let fresh = Term {
            number: record.map_or(0, |record| record.transitions),
            until: Arc::default(),
        };
        fresh.extend(end);
        info!(term = fresh.number, identity = %election.settings.identity, "this coordinator leads");
        leadership.send_replace(Leadership::Leading(fresh.clone()));
        *term = Some(fresh);
        return;
    }
    let holder = record.and_then(|record| record.holder.clone());
    leadership.send_if_modified(|before| {
        let changed = matches!(before, Leadership::Following(known) if *known != holder);
        if changed {
            info!(
                leader = holder.as_deref().unwrap_or("nobody"),
                "another coordinator leads"
            );
            *before = Leadership::Following(holder);
        }
        changed
    });
}

/// Does one step that needs the server.
async fn ask(
    (api, secrets): (&Api<Lease>, &Api<Secret>),
    election: &mut Election,
    step: &Step,
) -> kube::Result<()> {
    if *step == Step::Take {
        election.claimed = state::claimed(secrets).await?;
    }
    let known = election.record();
    let transitions = match step {
        Step::Take => election.next_number(),
        Step::Renew => known.map_or(0, |record| record.transitions),
        Step::Look | Step::Wait(_) | Step::Lose(_) => return look(api, election).await,
    };
    let version = known.and_then(|record| record.version.clone());
    // without it the API server makes a Lease anew that was deleted, whatever the version
    let uid = known.and_then(|record| record.uid.clone());
    let now = jiff::Timestamp::now();
    // a renewal doesn't acquire anything
    let acquired = known.filter(|_| *step == Step::Renew);
    let acquired = acquired.and_then(|record| record.acquired).unwrap_or(now);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            resource_version: version.clone(),
            uid,
            annotations: marks(election.is_new(step, clock())),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(election.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(election.settings.duration.as_secs()).ok(),
            lease_transitions: i32::try_from(transitions).ok(),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    };
    let sent = clock();
    let written = if version.is_some() {
        api.replace(NAME, &post_params(), &lease).await
    } else {
        api.create(&post_params(), &lease).await
    };
    match written {
        Ok(lease) => {
            election.won(Record::read(&lease), sent, clock());
            Ok(())
        }
        // Somebody was faster, or an earlier request of ours succeeded without our hearing of it.
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {
            look(api, election).await
        }
        Err(error) => Err(error),
    }
}

fn marks(new: bool) -> Option<BTreeMap<String, String>> {
    new.then(|| [(NEW.to_owned(), String::new())].into())
}

async fn look(api: &Api<Lease>, election: &mut Election) -> kube::Result<()> {
    let found = api.get_opt(NAME).await?;
    election.see(found.as_ref().map(Record::read), clock());
    Ok(())
}

/// Leaves the lease without a holder: the next candidate that looks takes it.
async fn give_back(api: &Api<Lease>, record: &Record) -> kube::Result<Lease> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            resource_version: record.version.clone(),
            uid: record.uid.clone(),
            annotations: marks(record.new),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            lease_transitions: i32::try_from(record.transitions).ok(),
            acquire_time: record.acquired.map(MicroTime),
            renew_time: Some(MicroTime(jiff::Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.replace(NAME, &post_params(), &lease).await
}

/// Time since some moment before this process, which goes on while the machine sleeps.
fn clock() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    // On macOS this one goes on while the machine sleeps.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> Duration {
        T0 + Duration::from_secs(seconds)
    }

    fn candidate(name: &str) -> Election {
        Election::new(Settings {
            identity: name.into(),
            duration: Duration::from_secs(15),
        })
    }

    fn record(holder: &str, beat: i64) -> Record {
        Record {
            holder: Some(holder.to_owned()).filter(|holder| !holder.is_empty()),
            transitions: 7,
            duration: Duration::from_secs(15),
            renewed: Some(jiff::Timestamp::from_second(beat).unwrap()),
            acquired: None,
            new: false,
            version: Some(beat.to_string()),
            uid: None,
        }
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_at_once() {
        let mut a = candidate("a");
        assert_eq!(a.step(at(0)), Step::Look);
        a.see(None, at(0));
        assert_eq!((a.step(at(0)), a.next_number()), (Step::Take, 1));
        a.see(Some(record("", 1)), at(1));
        assert_eq!((a.step(at(1)), a.next_number()), (Step::Take, 8));
        // its own, from before it was started again
        a.see(Some(record("a", 1)), at(1));
        assert_eq!((a.step(at(1)), a.next_number()), (Step::Take, 8));
    }

    #[test]
    fn a_term_is_later_than_the_leases_and_the_secrets() {
        let mut a = candidate("a");
        a.see(Some(record("", 1)), at(0));
        for (claimed, number) in [
            (0, 8),
            (6, 8),
            (7, 8),
            (50, 51),
            (u32::MAX, state::LAST_TERM),
        ] {
            a.claimed = claimed;
            assert_eq!(a.next_number(), number);
        }
    }

    fn new(record: Record) -> Record {
        Record {
            new: true,
            ..record
        }
    }

    #[test]
    fn who_makes_a_lease_where_somebody_led_waits_until_that_one_has_stopped() {
        // a Secret from a backup, in a cluster that never had the Lease
        let mut b = candidate("b");
        b.see(None, at(0));
        assert_eq!(b.step(at(0)), Step::Take);
        b.claimed = 50;
        assert_eq!(b.next_number(), 51);
        b.won(new(record("b", 1)), at(0), at(1));
        assert_eq!(b.step(at(3)), Step::Renew);
        for second in [3, 6, 9, 12] {
            b.won(new(record("b", 2)), at(second), at(second));
        }
        let last = at(13) - Duration::from_millis(1);
        assert_eq!((b.leads(last), b.step(last)), (None, Step::Wait(at(13))));
        assert_eq!(b.leads(at(13)), Some(at(22)));

        // a Lease that vanished, of a duration longer than its own
        let mut c = candidate("c");
        let long = Record {
            duration: Duration::from_secs(20),
            ..record("a", 1)
        };
        c.see(Some(long), at(0));
        c.see(None, at(3));
        assert_eq!(c.step(at(3)), Step::Take);
        c.won(new(record("c", 2)), at(3), at(3));
        c.won(new(record("c", 3)), at(18), at(18));
        assert_eq!((c.leads(at(18)), c.leads(at(19))), (None, Some(at(28))));

        // lost before it led: a candidate as before
        let mut d = candidate("d");
        d.claimed = 1;
        d.won(new(record("d", 1)), at(0), at(0));
        d.see(Some(record("a", 2)), at(3));
        assert_eq!(d.step(at(3)), Step::Wait(at(6)));
        assert_eq!(d.leads(at(12)), None);

        // its own, made in a life before: nobody has led by it yet
        let mut e = candidate("e");
        e.claimed = 1;
        e.see(Some(new(record("e", 1))), at(0));
        assert_eq!(
            (e.step(at(0)), e.is_new(&Step::Take, at(0))),
            (Step::Take, true)
        );
        e.won(new(record("e", 2)), at(0), at(0));
        assert!(e.leads(at(11)).is_none() && e.is_new(&Step::Renew, at(11)));
        assert!(!e.is_new(&Step::Renew, at(12)));
    }

    #[test]
    fn anothers_lease_is_taken_only_after_its_whole_duration_was_watched() {
        let mut b = candidate("b");
        b.see(Some(record("a", 1)), at(0));
        assert_eq!(b.step(at(0)), Step::Wait(at(3)));
        assert_eq!(b.step(at(3)), Step::Look);
        // renewed: the wait starts anew, whatever the time in it says
        b.see(Some(record("a", -5_000)), at(3));
        for second in [6, 9, 12, 15] {
            assert_eq!(b.step(at(second)), Step::Look);
            b.see(Some(record("a", -5_000)), at(second));
        }
        let before = at(18) - Duration::from_millis(1);
        assert_ne!(b.step(before), Step::Take);
        assert_eq!(b.step(at(18)), Step::Take);
    }

    #[test]
    fn a_longer_lease_than_our_own_is_waited_for() {
        let mut b = candidate("b");
        let long = Record {
            duration: Duration::from_secs(60),
            ..record("a", 1)
        };
        b.see(Some(long), at(0));
        assert_eq!(b.step(at(59)), Step::Look);
        assert_eq!(b.step(at(60)), Step::Take);
    }

    #[test]
    fn a_leader_renews_and_stops_at_two_thirds_without_a_renewal() {
        let mut a = candidate("a");
        a.won(record("a", 1), at(0), at(1));
        assert_eq!(a.step(at(2)), Step::Wait(at(3)));
        assert_eq!(a.step(at(3)), Step::Renew);
        a.won(record("a", 2), at(3), at(4));
        assert_eq!(a.end(), Some(at(13)));
        assert_eq!(a.step(at(13) - Duration::from_millis(1)), Step::Renew);
        assert_eq!(a.step(at(13)), Step::Lose(LostError::Expired));
    }

    #[test]
    fn a_leader_whose_lease_is_taken_or_deleted_has_lost() {
        let mut a = candidate("a");
        a.won(record("a", 1), at(0), at(0));
        a.see(Some(record("b", 2)), at(1));
        assert_eq!(a.step(at(1)), Step::Lose(LostError::Taken("b".into())));
        a.see(None, at(1));
        assert_eq!(a.step(at(1)), Step::Lose(LostError::Deleted));
    }

    /// What happens to one candidate at one moment.
    enum Moment {
        Acts,
        /// Its request reaches the server, with the version that it goes by.
        Arrives {
            step: Step,
            number: u32,
            new: bool,
            version: Option<String>,
            sent: Duration,
        },
        /// The answer reaches it: what the server has, and whether that is its own doing.
        Answered {
            record: Option<Record>,
            won: bool,
            sent: Duration,
        },
        /// It claims the Secret for its term.
        Claims(u32),
        /// Somebody deletes the Lease.
        Deleted,
        /// Somebody restores a Secret of a later term.
        Restored,
    }

    /// Two candidates and a server. Who leads writes from the claim of the Secret on.
    struct World {
        both: [Election; 2],
        /// Which term each leads, and whether it has claimed it.
        leads: [Option<(u32, bool)>; 2],
        server: Option<Record>,
        secret: u32,
        lives: u32,
        beats: i64,
        /// From when to when each could write.
        terms: Vec<(usize, Duration, Duration)>,
        /// Claims that a later term in the Secret refused.
        refused: u32,
    }

    impl World {
        fn new() -> Self {
            Self {
                both: [candidate("a"), candidate("b")],
                leads: [None, None],
                server: None,
                secret: 0,
                lives: 0,
                beats: 0,
                terms: Vec::new(),
                refused: 0,
            }
        }

        /// The process ends, and is started again.
        fn restart(&mut self, who: usize) {
            self.lives += 1;
            self.both[who] = candidate(&format!("{}{}", ["a", "b"][who], self.lives));
            self.leads[who] = None;
        }

        fn arrives(
            &mut self,
            who: usize,
            step: &Step,
            (transitions, new): (u32, bool),
            version: Option<&String>,
        ) -> bool {
            let held = self
                .server
                .as_ref()
                .and_then(|record| record.version.as_ref());
            let won = held == version && matches!(step, Step::Take | Step::Renew);
            if won {
                self.beats += 1;
                let name = self.both[who].settings.identity.clone();
                self.server = Some(Record {
                    transitions,
                    new,
                    ..record(&name, self.beats)
                });
            }
            won
        }

        fn writes(&mut self, who: usize, from: Duration) {
            let until = self.both[who].end().expect("it leads");
            self.terms.push((who, from, until));
        }

        fn run(&mut self, mut fates: impl Iterator<Item = (u64, u64, bool)>, odd: &[(u64, bool)]) {
            let mut sequence = 2;
            let mut queue = BTreeMap::new();
            queue.insert((T0, 0), (0, Moment::Acts));
            queue.insert((T0, 1), (1, Moment::Acts));
            for (at, restored) in odd {
                let event = if *restored {
                    Moment::Restored
                } else {
                    Moment::Deleted
                };
                sequence += 1;
                queue.insert((T0 + Duration::from_millis(*at), sequence), (0, event));
            }
            while let Some(((now, _), (who, moment))) = queue.pop_first() {
                let mut next = |after: Duration, moment: Moment| {
                    sequence += 1;
                    queue.insert((now + after, sequence), (who, moment));
                };
                match moment {
                    Moment::Acts => {
                        let step = self.both[who].step(now);
                        if self.both[who].renewed.is_none() {
                            self.leads[who] = None;
                        }
                        match step {
                            Step::Wait(until) => next(until - now, Moment::Acts),
                            Step::Lose(_) => {
                                self.restart(who);
                                next(Duration::from_secs(1), Moment::Acts);
                            }
                            step => {
                                let Some((there, _, lost)) = fates.next() else {
                                    break;
                                };
                                let version = self.both[who]
                                    .record()
                                    .and_then(|record| record.version.clone());
                                let number = match step {
                                    Step::Take => {
                                        self.both[who].claimed = self.secret;
                                        self.both[who].next_number()
                                    }
                                    _ => self.both[who]
                                        .record()
                                        .map_or(0, |record| record.transitions),
                                };
                                let new = self.both[who].is_new(&step, now);
                                if lost {
                                    // given up after a time-out; the request may arrive all the same
                                    next(Duration::from_secs(5), Moment::Acts);
                                }
                                let sent = if lost { Duration::MAX } else { now };
                                next(
                                    Duration::from_millis(there),
                                    Moment::Arrives {
                                        step,
                                        number,
                                        new,
                                        version,
                                        sent,
                                    },
                                );
                            }
                        }
                    }
                    Moment::Arrives {
                        step,
                        number,
                        new,
                        version,
                        sent,
                    } => {
                        let won = self.arrives(who, &step, (number, new), version.as_ref());
                        if sent == Duration::MAX {
                            continue;
                        }
                        let Some((_, back, _)) = fates.next() else {
                            break;
                        };
                        let record = self.server.clone();
                        next(
                            Duration::from_millis(back),
                            Moment::Answered { record, won, sent },
                        );
                    }
                    Moment::Answered { record, won, sent } => {
                        if won {
                            let record = record.expect("just written");
                            let number = record.transitions;
                            self.both[who].won(record, sent, now);
                            match self.leads[who] {
                                Some((_, true)) => self.writes(who, now),
                                Some((_, false)) => {}
                                None => {
                                    let Some((there, ..)) = fates.next() else {
                                        break;
                                    };
                                    self.leads[who] = Some((number, false));
                                    let begins = self.both[who].from.saturating_sub(now);
                                    next(
                                        begins + Duration::from_millis(there),
                                        Moment::Claims(number),
                                    );
                                }
                            }
                        } else {
                            self.both[who].see(record, now);
                        }
                        next(Duration::ZERO, Moment::Acts);
                    }
                    Moment::Claims(number) => {
                        let leads = self.both[who].leads(now).is_some_and(|end| now < end);
                        if self.leads[who] != Some((number, false)) || !leads {
                            continue;
                        }
                        if self.secret >= number {
                            self.refused += 1;
                            self.restart(who);
                        } else {
                            self.secret = number;
                            self.leads[who] = Some((number, true));
                            self.writes(who, now);
                        }
                    }
                    Moment::Deleted => self.server = None,
                    Moment::Restored => self.secret += 50,
                }
            }
        }
    }

    #[test]
    fn a_deleted_lease_and_a_later_secret_cost_a_lease_time_at_most() {
        // requests take 10 ms; the Lease goes at 60 s, a later Secret comes at 120 s and the Lease goes with it
        let mut world = World::new();
        world.run(
            (0..600).map(|_| (10, 10, false)),
            &[(60_000, false), (120_000, true), (120_000, false)],
        );
        assert_eq!(world.refused, 0);
        let mut until = T0;
        for (_, from, end) in &world.terms {
            let gap = from.saturating_sub(until);
            assert!(
                gap <= Duration::from_secs(15),
                "{gap:?} without a leader at {from:?}"
            );
            until = until.max(*end);
        }
        assert!(until > at(200), "{until:?}");
    }

    proptest::proptest! {
        #[test]
        fn two_candidates_never_both_lead_however_requests_are_delayed_or_lost(
            fates in proptest::collection::vec((0_u64..6_000, 0_u64..6_000, proptest::bool::weighted(0.2)), 300),
            odd in proptest::collection::vec((0_u64..400_000, proptest::bool::weighted(0.3)), 0..8),
        ) {
            let mut world = World::new();
            world.run(fates.into_iter(), &odd);
            let terms = &world.terms;
            for (index, one) in terms.iter().enumerate() {
                for other in &terms[index + 1..] {
                    let apart = one.2 <= other.1 || other.2 <= one.1;
                    proptest::prop_assert!(one.0 == other.0 || apart, "{one:?} {other:?}");
                }
            }
        }
    }
}
