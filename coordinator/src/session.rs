//! Connections of hosts. Each has a task that carries reports in and orders out, and answers renewals beside them.
//!
//! A host's certificate proves which host it is. The membership says whether the host may connect; it is checked when
//! the host connects, and at every change of the membership. Nothing here decides about staging.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use proto::{
    HostId,
    message::{CoordinatorOpen, Hello, Order, Renewal, Renewed, Report, coordinator_open},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use wire::{Authorised, CloseCode, Connection, Endpoint, Incoming, Receiver, Sender};

use crate::{
    authority::Authority,
    driver::{Input, ORDERS, Opened, Refused},
    enrolment::Enrolment,
    fleet::Membership,
    intake::{self, Door},
    metrics::{Metrics, SessionEnd},
    renewal,
    seldom::Seldom,
};

/// The time within which a host has to say what a stream is for.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The time within which a host has to take an order: enough for a whole manifest over a very slow line. A slower
/// host's session is given up.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest pause between two reports of a host. An agent sends two reports a second, and a few more when something
/// ends.
const REPORT_EVERY: Duration = Duration::from_millis(10);
/// The pause after a report is this many times as long as its handling took. So one host takes at most a fifth of the
/// driver's time. The next report is read only after the last one was handled, so other hosts' reports wait for at most
/// one report of this host.
const SHARE: u32 = 4;
/// The longest such pause. Handling that takes longer has another cause, such as a machine that was asleep.
const SHARE_MOST: Duration = Duration::from_millis(500);
/// The most streams of one host that are served at one time.
const STREAMS: usize = 8;
/// The most certificates that are signed at one time: each takes about a millisecond of one core.
const RENEWALS: usize = 16;
/// At most one failed handshake is logged within this time, because anybody who sends a packet can begin one.
const HANDSHAKES_LOGGED_EVERY: Duration = Duration::from_secs(10);
/// How long the coordinator waits for hosts to hear that it stops.
const DRAIN: Duration = Duration::from_secs(2);

/// What every connection's task needs.
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
    pub(crate) door: Arc<Door>,
    /// The most leases that may run at one time, by this coordinator's settings.
    pub(crate) origin_streams: usize,
    /// Bounds the log lines about failed handshakes.
    pub(crate) failed_handshakes: Arc<Seldom>,
}

impl Sessions {
    pub(crate) fn new(
        (authority, enrolment): (Arc<Authority>, Enrolment),
        (certificate_lifetime, origin_streams): (Duration, usize),
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
            door: Arc::default(),
            origin_streams,
            failed_handshakes: Arc::new(Seldom::new(HANDSHAKES_LOGGED_EVERY)),
        }
    }
}

/// Accepts hosts' connections until `shutdown`. Then tells the hosts that the coordinator stops, and returns.
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

/// Tells the endpoint which hosts may connect: the members, each with a certificate of its last enrolment. An open
/// fleet lets in every host that isn't revoked.
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
                // The driver knows which host has this address, and logs the refusal. When the driver's inbox is full,
                // other inputs matter more.
                Some(refused) => drop(sessions.inbox.try_send(Input::Refused(refused))),
                None => {
                    if let Some(others) = sessions.failed_handshakes.due(Instant::now()) {
                        info!(%remote, %error, others, "handshake failed");
                    }
                    debug!(%remote, %error, "handshake failed");
                }
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
    // Each session's own task tells the driver of the session's end.
    while streams.join_next().await.is_some() {}
}

async fn stream(
    connection: Connection,
    mut sender: Sender,
    mut receiver: Receiver,
    sessions: Sessions,
) {
    let host = connection.host().clone();
    if let Err(wait) = sessions.door.enter(&host, Instant::now()) {
        debug!(%host, reason = %wait, "host has to come again later");
        return connection.close(CloseCode::Busy, &wait.to_string());
    }
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
    // The membership may have changed since the connection was let in.
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
        // Where the clock was set back, the certificate is dated at the enrolment: an older one wouldn't be accepted.
        let since = enrolment.enrolled_at(&id).unwrap_or_default();
        let from = UNIX_EPOCH + Duration::from_secs(since.unwrap_or_default());
        let chain = authority.issue_from(&id, &csr, from, lifetime);
        // read after signing; `Enrolment::enrol` explains why
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
    mut hello: Hello,
    sessions: &Sessions,
) {
    let host = connection.host().clone();
    if let Err(excess) = intake::cut_hello(&mut hello) {
        Metrics::count(
            &sessions.metrics.session_ends,
            SessionEnd::Excessive.as_str(),
        );
        sessions.end_excessive(connection, &excess);
        return;
    }
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
    let mut excess = None;
    let outcome = tokio::select! {
        outcome = send_orders(&mut sender, &mut queue) => outcome,
        outcome = receive_reports(&mut receiver, (&host, number), sessions) => match outcome {
            Ok(outcome) => outcome,
            Err(found) => {
                excess = Some(found);
                SessionEnd::Excessive
            }
        },
        reason = connection.closed() => {
            debug!(%host, %reason, "session's connection ended");
            SessionEnd::ConnectionLost
        }
    };
    Metrics::count(&sessions.metrics.session_ends, outcome.as_str());
    if let Some(excess) = excess {
        sessions.end_excessive(connection, &excess);
    }
    match outcome {
        // the driver has ended: the endpoint tells all hosts that the coordinator stops
        SessionEnd::Replaced if sessions.inbox.is_closed() => {}
        SessionEnd::Replaced => connection.close(
            CloseCode::Replaced,
            "a newer session took this one's place, or it didn't take its orders",
        ),
        SessionEnd::Nonsense => {
            connection.close(CloseCode::Protocol, "a report doesn't decode");
        }
        SessionEnd::ConnectionLost
        | SessionEnd::Finished
        | SessionEnd::Stuck
        | SessionEnd::Excessive
        | SessionEnd::Stopping => {}
    }
    let closed = Input::Closed {
        host,
        session: number,
    };
    // Sending fails only at the end of the program.
    drop(sessions.inbox.send(closed).await);
}

async fn send_orders(sender: &mut Sender, queue: &mut mpsc::Receiver<Arc<Order>>) -> SessionEnd {
    while let Some(order) = queue.recv().await {
        match timeout(ORDER_TIMEOUT, sender.send(&*order)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                debug!(%error, "order couldn't be sent");
                return SessionEnd::ConnectionLost;
            }
            Err(_) => return SessionEnd::Stuck,
        }
    }
    SessionEnd::Replaced
}

impl Sessions {
    /// A host sent far more than a host can need. Closes its connection, and keeps the host away for a while.
    fn end_excessive(&self, connection: &Connection, excess: &intake::Excess) {
        let host = connection.host();
        warn!(
            %host,
            reason = %excess,
            "host sends far more than a host can need: its session is ended, and it stays away for a minute; \
             look at what runs there, and revoke it (`parbake-coordinator revoke {host}`) if that isn't its agent"
        );
        self.door.send_away(host, Instant::now());
        connection.close(CloseCode::Protocol, &excess.to_string());
    }
}

async fn receive_reports(
    receiver: &mut Receiver,
    (host, session): (&HostId, u64),
    sessions: &Sessions,
) -> Result<SessionEnd, intake::Excess> {
    let most_leases = intake::most_leases(sessions.origin_streams);
    loop {
        let mut report = match receiver.receive::<Report>().await {
            Ok(Some(report)) => report,
            Ok(None) => return Ok(SessionEnd::Finished),
            Err(wire::ReceiveError::Message(error)) => {
                warn!(%host, %error, "host sent a report that doesn't decode");
                return Ok(SessionEnd::Nonsense);
            }
            Err(_) => return Ok(SessionEnd::ConnectionLost),
        };
        let left_out = intake::cut(&mut report, most_leases)?;
        if left_out > 0 {
            debug!(%host, left_out, "host reports more than a host can need");
        }
        let (handled, took) = oneshot::channel();
        let reported = Input::Reported {
            host: host.clone(),
            session,
            report: Box::new(report),
            handled,
        };
        if sessions.inbox.send(reported).await.is_err() {
            return Ok(SessionEnd::Stopping);
        }
        // The next report is read after this one was handled. So the driver's inbox holds at most one report of each
        // host.
        let Ok(took) = took.await else {
            return Ok(SessionEnd::Stopping);
        };
        sleep(pause(took)).await;
    }
}

/// The pause after a report whose handling took `took`.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(REPORT_EVERY, SHARE_MOST)
}

#[cfg(test)]
mod tests {
    use proto::message::{LeaseEnd, LeaseState};
    use rcgen::KeyPair;
    use rustls_pki_types::PrivatePkcs8KeyDer;
    use wire::{CloseReason, Credentials, Settings};

    use super::*;
    use crate::{authority::tests::csr, config::Fleet};

    const HOUR: Duration = Duration::from_hours(1);
    /// Longer than anything takes here.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Sessions without a driver. The test acts as the driver.
    struct Office {
        authority: Arc<Authority>,
        address: std::net::SocketAddr,
        inbox: mpsc::Receiver<Input>,
        tasks: JoinSet<()>,
        _membership: watch::Sender<Arc<Membership>>,
        _dir: tempfile::TempDir,
    }

    impl Office {
        fn open() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let authority = Arc::new(Authority::open(&dir.path().join("authority")).unwrap());
            let own = authority.issue_own(HOUR).unwrap();
            let roots = vec![authority.certificate().clone()];
            let credentials = Credentials::new(own.chain, own.key, roots).unwrap();
            let loopback = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::bind(loopback, credentials, &Settings::default()).unwrap();
            let address = endpoint.local_addr().unwrap();
            let open = Membership {
                fleet: Fleet {
                    open: true,
                    ..Fleet::default()
                },
                ..Membership::default()
            };
            let (membership, seen) = watch::channel(Arc::new(open));
            let (sender, inbox) = mpsc::channel(8);
            let sessions = Sessions::new(
                (authority.clone(), Enrolment::open(dir.path()).unwrap()),
                (HOUR, 4),
                seen,
                sender,
                Metrics::new().0,
            );
            let mut tasks = JoinSet::new();
            tasks.spawn(accept(endpoint, sessions, CancellationToken::new()));
            Self {
                authority,
                address,
                inbox,
                tasks,
                _membership: membership,
                _dir: dir,
            }
        }

        async fn connect(&self, host: &str) -> (Connection, Endpoint) {
            let host: HostId = host.parse().unwrap();
            let key = KeyPair::generate().unwrap();
            let chain = self.authority.issue(&host, &csr(&key), HOUR).unwrap();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            let roots = vec![self.authority.certificate().clone()];
            let credentials = Credentials::new(chain, key, roots).unwrap();
            let loopback = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::bind(loopback, credentials, &Settings::default()).unwrap();
            let coordinator = "coordinator".parse().unwrap();
            let connection = endpoint.connect(self.address, &coordinator).await;
            (connection.unwrap(), endpoint)
        }

        /// A host that says hello, and then sends this report `times` times, as fast as the reports are read.
        async fn reports(&mut self, host: &str, report: Report, times: u32) -> Connection {
            let (connection, endpoint) = self.connect(host).await;
            let (mut sender, receiver) = connection.open().await.unwrap();
            self.tasks.spawn(async move {
                let hello = coordinator_open::Kind::Session(Hello::default());
                let open = CoordinatorOpen { kind: Some(hello) };
                let mut sent = sender.send(&open).await;
                for _ in 0..times {
                    if sent.is_ok() {
                        sent = sender.send(&report).await;
                    }
                }
                // kept open until the test ends
                let _kept = (receiver, endpoint);
                std::future::pending::<()>().await;
            });
            connection
        }

        async fn next(&mut self) -> Input {
            let next = timeout(PATIENCE, self.inbox.recv()).await;
            next.expect("an input in time").unwrap()
        }

        /// The next report, and the host that sent it. Sessions that begin before it go into `kept`.
        async fn next_report(
            &mut self,
            kept: &mut Vec<Opened>,
        ) -> (String, Report, oneshot::Sender<Duration>) {
            loop {
                match self.next().await {
                    Input::Opened(opened) => kept.push(*opened),
                    Input::Reported {
                        host,
                        report,
                        handled,
                        ..
                    } => return (host.to_string(), *report, handled),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn leases(count: usize) -> Report {
        let lease = LeaseState {
            content: vec![1; 32],
            end: LeaseEnd::OriginFailed.into(),
            ..LeaseState::default()
        };
        Report {
            leases: vec![lease; count],
            ..Report::default()
        }
    }

    #[tokio::test]
    async fn a_host_that_floods_has_one_report_in_the_inbox_and_others_are_heard() {
        let mut office = Office::open();
        let mut kept = Vec::new();
        let _rogue = office.reports("rogue", leases(700), 200).await;
        let (host, report, handled) = office.next_report(&mut kept).await;
        assert_eq!((host.as_str(), report.leases.len()), ("rogue", 74));
        // while the driver is busy with this report, other hosts' reports arrive, and none of the same host's does
        let mut others = Vec::new();
        for name in ["a", "b", "c"] {
            let connection = office.reports(name, Report::default(), 1).await;
            let (host, _, handled) = office.next_report(&mut kept).await;
            assert_eq!(host, name);
            others.push((connection, handled));
        }
        handled.send(Duration::from_millis(3)).unwrap();
        let (host, ..) = office.next_report(&mut kept).await;
        assert_eq!(host, "rogue");
    }

    #[tokio::test]
    async fn a_host_that_sends_far_too_much_is_turned_away_for_a_while_and_others_stay() {
        let mut office = Office::open();
        let mut kept = Vec::new();
        let _b = office.reports("b", Report::default(), 1).await;
        let (_, _, handled) = office.next_report(&mut kept).await;
        handled.send(Duration::ZERO).unwrap();
        let rogue = office.reports("rogue", leases(4_500), 20).await;
        // The closing words may get lost in the host's own flood. The host then hears that its connection is unknown.
        match timeout(PATIENCE, rogue.closed()).await.unwrap() {
            CloseReason::Peer { code, reason } => {
                assert_eq!(code, CloseCode::Protocol);
                assert_eq!(
                    reason,
                    "a message names 4500 leases, and a host may name 74"
                );
            }
            CloseReason::Reset => {}
            other => panic!("{other}"),
        }
        // the driver heard only that the host's session began and ended
        assert!(
            matches!(office.next().await, Input::Opened(opened) if opened.host.as_str() == "rogue")
        );
        assert!(
            matches!(office.next().await, Input::Closed { host, .. } if host.as_str() == "rogue")
        );
        let again = office.reports("rogue", Report::default(), 1).await;
        let reason = timeout(PATIENCE, again.closed()).await.unwrap();
        let busy =
            |reason| matches!(reason, CloseReason::Peer { code, .. } if code == CloseCode::Busy);
        assert!(busy(reason));
        let _c = office.reports("c", Report::default(), 1).await;
        let (host, ..) = office.next_report(&mut kept).await;
        assert_eq!(host, "c");
    }

    #[test]
    fn one_host_has_a_fifth_of_the_drivers_time_and_a_hundred_reports_a_second_at_most() {
        let millis = Duration::from_millis;
        for (took, waits) in [(0, 10), (2, 10), (3, 12), (125, 500), (10_000, 500)] {
            assert_eq!(pause(millis(took)), millis(waits));
        }
    }
}
