//! Who of several coordinators writes: leader election by a Lease object.
//!
//! `Election` decides and does no I/O; `hold` asks the API server and tells what came of it. Two rules keep two
//! writers apart, and neither compares the clocks of two machines:
//! - Who doesn't hold the lease takes it only after having seen it unchanged for the whole duration, by its own clock.
//! - Who holds it stops two thirds of the duration after *sending* the last renewal that succeeded, by its own clock.
//!   The others saw that renewal later than it was sent, so a third of the duration lies between.
//!
//! The clock goes on while a machine sleeps, so that a leader that was paused finds its `Term` over when it wakes.
//! What is left is a pause between the look at the term and the packet that leaves: microseconds of code, against which
//! only the API server could fence. Writers narrow it by preconditions on what they read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff,
};
use kube::{Api, api::ObjectMeta};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{trouble, write::post_params};

/// The Lease's name.
pub const NAME: &str = "parbake-coordinator";
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
    /// Somebody removed the lease, so that anybody may take it.
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
    version: Option<String>,
}

impl Record {
    fn read(lease: &Lease) -> Self {
        let spec = lease.spec.clone().unwrap_or_default();
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
            version: lease.metadata.resource_version.clone(),
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
    Take { transitions: u32 },
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
    /// When it was looked at last.
    looked: Duration,
    /// When the last renewal that succeeded was sent, while we lead.
    renewed: Option<Duration>,
}

impl Election {
    const fn new(settings: Settings) -> Self {
        Self {
            settings,
            seen: None,
            looked: Duration::ZERO,
            renewed: None,
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
        self.seen = Some((record, since));
        self.looked = now;
    }

    /// We wrote this record, in a request sent at `sent`.
    fn won(&mut self, record: Record, sent: Duration, now: Duration) {
        self.see(Some(record), now);
        self.renewed = Some(sent);
    }

    fn step(&self, now: Duration) -> Step {
        if let (Some(renewed), Some(end)) = (self.renewed, self.end()) {
            return match &self.seen {
                _ if now >= end => Step::Lose(LostError::Expired),
                Some((None, _)) => Step::Lose(LostError::Deleted),
                Some((Some(record), _))
                    if record.holder.as_ref() != Some(&self.settings.identity) =>
                {
                    let holder = record.holder.clone();
                    Step::Lose(LostError::Taken(holder.unwrap_or_else(|| "nobody".into())))
                }
                _ if now >= renewed + self.pace() => Step::Renew,
                _ => Step::Wait(renewed + self.pace()),
            };
        }
        let Some((record, since)) = &self.seen else {
            return Step::Look;
        };
        let Some(record) = record else {
            return Step::Take { transitions: 0 };
        };
        let transitions = record.transitions.saturating_add(1);
        let free = match &record.holder {
            None => now,
            Some(holder) if *holder == self.settings.identity => now,
            // Another version of this program, or another setting, may have written a longer one.
            Some(_) => *since + record.duration.max(self.settings.duration),
        };
        if now >= free {
            Step::Take { transitions }
        } else if now >= self.looked + self.pace() {
            Step::Look
        } else {
            Step::Wait(free.min(self.looked + self.pace()))
        }
    }
}

/// Takes part in the election until `release`, and tells what came of it. Gives the lease back then, if it is ours.
///
/// Whoever cancels `release` has stopped writing before.
///
/// # Errors
/// When the lease was lost. The term is over by then, and this process must not lead again.
pub(crate) async fn hold(
    api: Api<Lease>,
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
                    () = tokio::time::sleep(until.saturating_sub(clock())) => continue,
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
                    done = timeout(limit, ask(&api, &mut election, asked)) => done,
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
        if let Some((Some(record), _)) = &election.seen {
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
    let record = election
        .seen
        .as_ref()
        .and_then(|(record, _)| record.as_ref());
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
async fn ask(api: &Api<Lease>, election: &mut Election, step: &Step) -> kube::Result<()> {
    let known = election
        .seen
        .as_ref()
        .and_then(|(record, _)| record.as_ref());
    let transitions = match step {
        Step::Take { transitions } => *transitions,
        Step::Renew => known.map_or(0, |record| record.transitions),
        Step::Look | Step::Wait(_) | Step::Lose(_) => return look(api, election).await,
    };
    let version = known.and_then(|record| record.version.clone());
    let now = jiff::Timestamp::now();
    // a renewal doesn't acquire anything
    let acquired = known.filter(|_| *step == Step::Renew);
    let acquired = acquired.and_then(|record| record.acquired).unwrap_or(now);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            resource_version: version.clone(),
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
            version: Some(beat.to_string()),
        }
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_at_once() {
        let mut a = candidate("a");
        assert_eq!(a.step(at(0)), Step::Look);
        a.see(None, at(0));
        assert_eq!(a.step(at(0)), Step::Take { transitions: 0 });
        a.see(Some(record("", 1)), at(1));
        assert_eq!(a.step(at(1)), Step::Take { transitions: 8 });
        // its own, from before it was started again
        a.see(Some(record("a", 1)), at(1));
        assert_eq!(a.step(at(1)), Step::Take { transitions: 8 });
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
        assert_ne!(b.step(before), Step::Take { transitions: 8 });
        assert_eq!(b.step(at(18)), Step::Take { transitions: 8 });
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
        assert_eq!(b.step(at(60)), Step::Take { transitions: 8 });
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
            version: Option<String>,
            sent: Duration,
        },
        /// The answer reaches it: what the server has, and whether that is its own doing.
        Answered {
            record: Option<Record>,
            won: bool,
            sent: Duration,
        },
    }

    proptest::proptest! {
        #[test]
        fn two_candidates_never_both_lead_however_requests_are_delayed_or_lost(
            fates in proptest::collection::vec((0_u64..6_000, 0_u64..6_000, proptest::bool::weighted(0.2)), 300),
        ) {
            let mut fates = fates.into_iter();
            let mut both = [candidate("a"), candidate("b")];
            let mut server: Option<Record> = None;
            let mut beats = 0;
            let mut sequence = 0;
            let mut queue = std::collections::BTreeMap::new();
            let mut terms: Vec<(usize, Duration, Duration)> = Vec::new();
            queue.insert((T0, 0), (0, Moment::Acts));
            queue.insert((T0, 1), (1, Moment::Acts));
            while let Some(((now, _), (who, moment))) = queue.pop_first() {
                let (after, next) = match moment {
                    Moment::Acts => match both[who].step(now) {
                        Step::Wait(until) => (until - now, Moment::Acts),
                        Step::Lose(_) => {
                            // the process ends, and is started again
                            both[who] = candidate(["a", "b"][who]);
                            both[who].settings.identity.push_str(&sequence.to_string());
                            (Duration::from_secs(1), Moment::Acts)
                        }
                        step => {
                            let Some((there, _, lost)) = fates.next() else { break };
                            let seen = both[who].seen.clone();
                            let version = seen.and_then(|(record, _)| record?.version);
                            if lost {
                                // given up after a time-out; the request may arrive all the same
                                sequence += 1;
                                queue.insert((now + Duration::from_secs(5), sequence), (who, Moment::Acts));
                            }
                            let sent = if lost { Duration::MAX } else { now };
                            (Duration::from_millis(there), Moment::Arrives { step, version, sent })
                        }
                    },
                    Moment::Arrives { step, version, sent } => {
                        let fresh = server.as_ref().and_then(|record| record.version.clone()) == version;
                        let writes = match step {
                            Step::Take { transitions } => Some(transitions),
                            Step::Renew => server.as_ref().map(|record| record.transitions),
                            _ => None,
                        };
                        let won = fresh && writes.is_some();
                        if won {
                            beats += 1;
                            let name = both[who].settings.identity.clone();
                            let transitions = writes.unwrap_or_default();
                            server = Some(Record { transitions, ..record(&name, beats) });
                        }
                        if sent == Duration::MAX {
                            continue;
                        }
                        let Some((_, back, _)) = fates.next() else { break };
                        let record = server.clone();
                        (Duration::from_millis(back), Moment::Answered { record, won, sent })
                    }
                    Moment::Answered { record, won, sent } => {
                        if won {
                            both[who].won(record.expect("just written"), sent, now);
                            terms.push((who, now, both[who].end().expect("it leads")));
                        } else {
                            both[who].see(record, now);
                        }
                        (Duration::ZERO, Moment::Acts)
                    }
                };
                sequence += 1;
                queue.insert((now + after, sequence + 2), (who, next));
            }
            for (index, one) in terms.iter().enumerate() {
                for other in &terms[index + 1..] {
                    let apart = one.2 <= other.1 || other.2 <= one.1;
                    proptest::prop_assert!(one.0 == other.0 || apart, "{one:?} {other:?}");
                }
            }
        }
    }
}
