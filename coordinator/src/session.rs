//! Connections of hosts: one task each, which carries reports in and orders out, and answers renewals beside them.
//!
//! Who the host is says its certificate; whether it may be here says the membership, at the beginning and at every
//! change. Nothing is decided here about staging.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use link::{Authorised, CloseCode, Connection, Endpoint, Incoming, Receiver, Sender};
use proto::{
    HostId,
    message::{CoordinatorOpen, Hello, Order, Renewal, Renewed, Report, coordinator_open},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    authority::Authority,
    driver::{Input, ORDERS, Opened, Refused},
    enrolment::Enrolment,
    fleet::Membership,
    metrics::Metrics,
    renewal,
};

/// A host says what a stream is for within this time.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// A host takes an order within this time, or its session is given up: a whole manifest over a very slow line.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// Reports of one host that are taken in a second; more wait in its own stream, so that no host crowds out the others.
const REPORTS_PER_SECOND: u32 = 200;
/// Streams of one host that are looked at beside each other.
const STREAMS: usize = 8;
/// Certificates that are signed at one time: each takes about a millisecond of one core.
const RENEWALS: usize = 16;
/// How long hosts may take to hear that the coordinator stops.
const DRAIN: Duration = Duration::from_secs(2);

/// What every connection needs.
#[derive(Clone, Debug)]
pub(crate) struct Sessions {
    pub(crate) authority: Arc<Authority>,
    pub(crate) enrolment: Enrolment,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) membership: watch::Receiver<Arc<Membership>>,
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) metrics: Metrics,
    pub(crate) numbers: Arc<AtomicU64>,
    pub(crate) renewals: Arc<Semaphore>,
}

impl Sessions {
    pub(crate) fn new(
        (authority, enrolment): (Arc<Authority>, Enrolment),
        certificate_lifetime: Duration,
        membership: watch::Receiver<Arc<Membership>>,
        inbox: mpsc::Sender<Input>,
        metrics: Metrics,
    ) -> Self {
        Self {
            authority,
            enrolment,
            certificate_lifetime,
            membership,
            inbox,
            metrics,
            numbers: Arc::new(AtomicU64::new(1)),
            renewals: Arc::new(Semaphore::new(RENEWALS)),
        }
    }
}

/// Takes in hosts until `shutdown`, then tells them and leaves.
pub(crate) async fn accept(endpoint: Endpoint, sessions: Sessions, shutdown: CancellationToken) {
    let mut membership = sessions.membership.clone();
    admit(&endpoint, &membership.borrow_and_update());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Ok(()) = membership.changed() => admit(&endpoint, &membership.borrow_and_update()),
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    connections.spawn(connection(incoming, sessions.clone()));
                }
                None => {
                    error!("QUIC endpoint ended unasked");
                    break;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    error!(%error, "a host's connection was cut short");
                }
            }
        }
    }
    endpoint.close("coordinator is stopping");
    if timeout(DRAIN, endpoint.drained()).await.is_err() {
        debug!("some hosts didn't hear in time that the coordinator stops");
    }
    connections.shutdown().await;
}

/// Lets in who belongs to the fleet, with a certificate of its last enrolment: in an open one anybody who isn't revoked.
fn admit(endpoint: &Endpoint, membership: &Membership) {
    let revoked = membership.revoked.keys();
    let revoked = revoked.map(|host| (host.clone(), membership.refusal(host)));
    endpoint.turn_away(revoked.collect());
    let enrolled = membership.enrolled.iter();
    let oldest = enrolled.map(|(host, at)| (host.clone(), UNIX_EPOCH + Duration::from_secs(*at)));
    endpoint.supersede(oldest.collect());
    endpoint.authorise(if membership.fleet.open {
        Authorised::Anyone
    } else {
        let members: BTreeSet<HostId> = membership.members().into_keys().cloned().collect();
        Authorised::Only(members)
    });
}

async fn connection(incoming: Incoming, sessions: Sessions) {
    let remote = incoming.remote_address();
    let connection = match incoming.establish().await {
        Ok(connection) => connection,
        Err(error) => {
            match Refused::of(&error) {
                // the driver knows whose address that is, and logs it. Where it has much to do others come first
                Some(refused) => drop(sessions.inbox.try_send(Input::Refused(refused))),
                None => info!(%remote, %error, "handshake failed"),
            }
            return;
        }
    };
    let host = connection.host().clone();
    let mut membership = sessions.membership.clone();
    let mut streams = JoinSet::new();
    loop {
        let members = membership.borrow_and_update().clone();
        if !members.admits(&host) {
            let words = members.refusal(&host);
            warn!(%host, %remote, reason = words, "host's connection is closed");
            connection.close(CloseCode::Unauthorised, &words);
            break;
        }
        tokio::select! {
            changed = membership.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            accepted = connection.accept(), if streams.len() < STREAMS => match accepted {
                Ok((sender, receiver)) => {
                    streams.spawn(stream(connection.clone(), sender, receiver, sessions.clone()));
                }
                Err(reason) => {
                    debug!(%host, %remote, %reason, "connection ended");
                    break;
                }
            },
            Some(ended) = streams.join_next() => {
                if let Err(error) = ended {
                    error!(%host, %error, "a stream of a host was cut short");
                }
            }
        }
    }
    // Each session tells the driver of its end by itself.
    while streams.join_next().await.is_some() {}
}

async fn stream(
    connection: Connection,
    mut sender: Sender,
    mut receiver: Receiver,
    sessions: Sessions,
) {
    let host = connection.host().clone();
    let open = match timeout(OPEN_TIMEOUT, receiver.receive::<CoordinatorOpen>()).await {
        Ok(Ok(Some(open))) => open,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => {
            warn!(%host, %error, "host opened a stream and sent nonsense");
            return;
        }
        Err(_) => {
            debug!(%host, "host opened a stream and sent nothing");
            return;
        }
    };
    match open.kind {
        Some(coordinator_open::Kind::Session(hello)) => {
            session(&connection, sender, receiver, hello, &sessions).await;
        }
        Some(coordinator_open::Kind::Renewal(renewal)) => {
            let renewed = renew(&connection, &renewal, &sessions).await;
            let sent = async {
                sender.send(&renewed).await?;
                sender.finish()
            };
            if let Ok(Err(error)) = timeout(OPEN_TIMEOUT, sent).await {
                debug!(%host, %error, "renewed certificate couldn't be sent");
            }
        }
        None => debug!(%host, "host opened a stream of a kind that this version doesn't know"),
    }
}

async fn renew(connection: &Connection, request: &Renewal, sessions: &Sessions) -> Renewed {
    let host = connection.host();
    let refuse = |error: String| {
        Metrics::count(&sessions.metrics.certificates, "refused");
        warn!(%host, error, "certificate isn't renewed");
        Renewed {
            certificates: Vec::new(),
            error,
        }
    };
    let Ok(_permit) = sessions.renewals.acquire().await else {
        return refuse("coordinator is stopping".to_owned());
    };
    // The connection was let in, but that may be a while ago.
    let members = sessions.membership.borrow().clone();
    if !members.admits(host) {
        return refuse(members.refusal(host));
    }
    let (authority, lifetime) = (sessions.authority.clone(), sessions.certificate_lifetime);
    let (id, csr, enrolment) = (
        host.clone(),
        request.csr.clone(),
        sessions.enrolment.clone(),
    );
    let issued = tokio::task::spawn_blocking(move || {
        // no older than what is accepted, where the clock was set back
        let since = enrolment.enrolled_at(&id).unwrap_or_default();
        let from = UNIX_EPOCH + Duration::from_secs(since.unwrap_or_default());
        let chain = authority.issue_from(&id, &csr, from, lifetime);
        // after signing: see `Enrolment::enrol`
        (chain, enrolment.enrolled_at(&id))
    })
    .await;
    let issued = match issued {
        Ok((chain, Ok(enrolled_at))) => {
            if renewal::is_superseded(connection.certificate_signed(), enrolled_at) {
                return refuse(renewal::LateError::Superseded(host.clone()).to_string());
            }
            Ok(chain)
        }
        Ok((_, Err(error))) => return refuse(error.to_string()),
        Err(error) => Err(error),
    };
    match issued {
        Ok(Ok(chain)) => {
            Metrics::count(&sessions.metrics.certificates, "renewed");
            info!(%host, "certificate renewed");
            Renewed {
                certificates: chain
                    .iter()
                    .map(|certificate| certificate.to_vec())
                    .collect(),
                error: String::new(),
            }
        }
        Ok(Err(error)) => refuse(error.to_string()),
        Err(error) => refuse(format!("signing was cut short: {error}")),
    }
}

async fn session(
    connection: &Connection,
    mut sender: Sender,
    mut receiver: Receiver,
    hello: Hello,
    sessions: &Sessions,
) {
    let host = connection.host().clone();
    let number = sessions.numbers.fetch_add(1, Ordering::Relaxed);
    let (orders, mut queue) = mpsc::channel(ORDERS);
    let opened = Opened {
        host: host.clone(),
        session: number,
        remote: connection.remote_address(),
        hello,
        orders,
    };
    if sessions
        .inbox
        .send(Input::Opened(Box::new(opened)))
        .await
        .is_err()
    {
        return;
    }
    let outcome = tokio::select! {
        outcome = send_orders(&mut sender, &mut queue) => outcome,
        outcome = receive_reports(&mut receiver, &host, number, sessions) => outcome,
        reason = connection.closed() => {
            debug!(%host, %reason, "session's connection ended");
            "connection_lost"
        }
    };
    Metrics::count(&sessions.metrics.session_ends, outcome);
    match outcome {
        // the driver has ended: the endpoint tells all hosts that the coordinator stops
        "replaced" if sessions.inbox.is_closed() => {}
        "replaced" => connection.close(
            CloseCode::Replaced,
            "a newer session took this one's place, or it didn't take its orders",
        ),
        "nonsense" => connection.close(CloseCode::Protocol, "a report doesn't decode"),
        _ => {}
    }
    let closed = Input::Closed {
        host,
        session: number,
    };
    // Only at the end of the program nobody hears it.
    drop(sessions.inbox.send(closed).await);
}

async fn send_orders(sender: &mut Sender, queue: &mut mpsc::Receiver<Arc<Order>>) -> &'static str {
    while let Some(order) = queue.recv().await {
        match timeout(ORDER_TIMEOUT, sender.send(&*order)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(%error, "order couldn't be sent");
                return "connection_lost";
            }
            Err(_) => return "stuck",
        }
    }
    "replaced"
}

async fn receive_reports(
    receiver: &mut Receiver,
    host: &HostId,
    session: u64,
    sessions: &Sessions,
) -> &'static str {
    let (mut second, mut taken) = (Instant::now(), 0);
    loop {
        if taken == REPORTS_PER_SECOND {
            sleep_until(second + Duration::from_secs(1)).await;
        }
        if taken == REPORTS_PER_SECOND || second.elapsed() >= Duration::from_secs(1) {
            (second, taken) = (Instant::now(), 0);
        }
        match receiver.receive::<Report>().await {
            Ok(Some(report)) => {
                taken += 1;
                let reported = Input::Reported {
                    host: host.clone(),
                    session,
                    report: Box::new(report),
                };
                if sessions.inbox.send(reported).await.is_err() {
                    return "stopping";
                }
            }
            Ok(None) => return "finished",
            Err(link::ReceiveError::Message(error)) => {
                warn!(%host, %error, "host sent a report that doesn't decode");
                return "nonsense";
            }
            Err(_) => return "connection_lost",
        }
    }
}
