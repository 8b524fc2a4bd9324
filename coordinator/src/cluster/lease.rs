//! Which of several coordinators writes: leader election by a Lease object.
//!
//! `Election` decides and does no I/O. `hold` asks the API server and publishes the result. Two rules keep two
//! writers apart, and neither compares the clocks of two machines:
//! - A candidate takes another's lease only after it has seen the lease unchanged for its whole duration, by the
//!   candidate's own clock.
//! - A leader stops two thirds of the duration after it *sent* the last renewal that succeeded, by the leader's own
//!   clock. The candidates saw that renewal later than it was sent, so a third of the duration lies between.
//!
//! A Lease that was deleted tells nobody that its holder has stopped. So a candidate that makes a new Lease, where
//! somebody led before, leads only four fifths of the duration later: the holder of the deleted Lease can't renew it
//! any more, and has stopped by then. Until then an annotation marks the Lease as new, so that nobody who takes it over
//! leads sooner. The Lease, or the term in the shared Secret, shows whether somebody led before.
//!
//! A term's number is greater than the number in the Lease and the number in the Secret. So it is greater than that of
//! every earlier term, even if a backup brought the Secret from another cluster. The claim of the Secret compares both
//! numbers once more.
//!
//! The clock goes on while a machine sleeps, so a leader that was paused finds its `Term` over when it wakes. One gap
//! is left: the microseconds between a writer's look at the term and the moment when the packet leaves. Only the API
//! server could close that gap. Writers narrow it by preconditions on what they read.

use std::{collections::BTreeMap, time::Duration};

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

use super::{
    shared_secret,
    term::{Term, clock},
    trouble,
    write::post_params,
};
use election::{Election, NEW, Record, Step};

mod election;

pub(crate) use election::Settings;
pub use election::{LostError, NAME};

/// A request about the lease is given up after this long, and sooner where the lease's duration is short.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait after a request that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Whether this process leads.
#[derive(Clone, Debug)]
pub(crate) enum Leadership {
    /// Another replica leads, or nobody does yet. The leader's name where it is known.
    Following(Option<String>),
    /// This process leads, while the term holds.
    Leading(Term),
}

/// Takes part in the election until `release`, and publishes each change of leader on `leadership`. `secrets` has the
/// term that was claimed last.
///
/// After `release`, gives the lease back if this process leads. Whoever cancels `release` must have stopped writing
/// before.
///
/// # Errors
/// The lease was lost. The term is over by then, and this process must not lead again.
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
                    .min(election.settings().duration / 3);
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
                tokio::time::sleep(RETRY.min(election.settings().duration / 10)).await;
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
                // the lease runs out by itself; most often the release was removed together with its roles
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

/// Publishes a change of leader, and extends our term after a renewal.
fn tell(election: &Election, term: &mut Option<Term>, leadership: &watch::Sender<Leadership>) {
    let record = election.record();
    if election.waits(clock()) {
        return;
    }
    if let Some(end) = election.end() {
        if let Some(term) = term {
            term.extend(end);
            return;
        }
        let fresh = Term::new(record.map_or(0, |record| record.transitions), end);
        info!(term = fresh.number(), identity = %election.settings().identity, "this coordinator leads");
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

/// Carries out one step that needs the server.
async fn ask(
    (api, secrets): (&Api<Lease>, &Api<Secret>),
    election: &mut Election,
    step: &Step,
) -> kube::Result<()> {
    if *step == Step::Take {
        election.claimed(shared_secret::claimed(secrets).await?);
    }
    let known = election.record();
    let transitions = match step {
        Step::Take => election.next_number(),
        Step::Renew => known.map_or(0, |record| record.transitions),
        Step::Look | Step::Wait(_) | Step::Lose(_) => return look(api, election).await,
    };
    let version = known.and_then(|record| record.version.clone());
    // without the uid, the API server would create a Lease that was deleted, whatever the version
    let uid = known.and_then(|record| record.uid.clone());
    let now = jiff::Timestamp::now();
    // a renewal keeps the time of acquisition
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
            holder_identity: Some(election.settings().identity.clone()),
            lease_duration_seconds: i32::try_from(election.settings().duration.as_secs()).ok(),
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
        // Another candidate was faster, or an earlier request of ours succeeded and its answer was lost.
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
