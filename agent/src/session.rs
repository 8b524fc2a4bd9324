//! The session with the coordinator: one connection, one stream of reports and orders, renewed certificates beside it.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail};
use link::{CloseCode, ConnectError, Connection, Endpoint, Fault, Receiver, Sender};
use origin::Backoff;
use proto::{
    HostId, causes,
    figure::Span,
    message::{CoordinatorOpen, Hello, Order, Renewal, Renewed, Report, coordinator_open},
};
use tokio::{
    net::lookup_host,
    sync::{mpsc, oneshot},
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    enrol,
    identity::{self, Identity},
};

/// First and longest pause between attempts to reach the coordinator, each shortened at random by up to a half: hosts that
/// lost it together don't come back together. The longest bounds how late a host hears of a coordinator that came back.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How often the session looks whether anything came from the coordinator, which says something every 750 ms.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks at which nothing had come, before the session is given up: 3 s at first, twice as long after each session that
/// ended like this, and 3 s again once one lasted for [`CALM`]. A coordinator that was killed is left quickly, and one that
/// gets no processor, or whose network is full, isn't made busier by hosts that all come back again and again.
const SILENT_LOOKS: (u32, u32) = (6, 20);

/// After a session that lasted so long the pauses begin anew. A coordinator that takes sessions and ends them at once isn't
/// asked faster than one that takes none.
const SOUND: Duration = Duration::from_secs(10);

/// A session that lasted so long wasn't one of a coordinator in trouble.
const CALM: Duration = Duration::from_mins(2);

/// A coordinator that takes longer to answer a renewal is asked again later.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the session tells the driver.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The session is up: reports sent on this channel reach the coordinator. Its first message has to be a full report.
    Up(mpsc::Sender<Report>),
    /// An order.
    Order(Box<Order>),
    /// The session is lost. The next attempt waits until this is answered: it says first what is so by then.
    Down(oneshot::Sender<()>),
}

/// What a session needs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) coordinator: HostId,
    /// `host:port`, resolved at every attempt.
    pub(crate) address: String,
    pub(crate) state_dir: PathBuf,
}

/// Keeps a session with the coordinator until the driver goes. `hello` is asked for at each attempt.
pub(crate) async fn keep(
    endpoint: Endpoint,
    settings: Settings,
    mut identity: Identity,
    hello: impl Fn() -> Hello,
    inbox: mpsc::Sender<Heard>,
) {
    let mut pauses = Pauses::new();
    let mut patience = Patience::default();
    let mut last_error = String::new();
    let mut taken_for_expired = false;
    while !inbox.is_closed() {
        let held = async {
            // nobody but the API takes this host in any more
            if taken_for_expired || identity.expired(SystemTime::now()) {
                renew_late(&endpoint, &settings, &mut identity).await?;
            }
            hold(
                &endpoint,
                &settings,
                &mut identity,
                hello(),
                &inbox,
                &mut patience,
            )
            .await
        };
        let held = held.await;
        taken_for_expired = held.as_ref().is_err_and(says_expired);
        let lasted = held.as_ref().ok().copied();
        match held {
            Ok(_) => {}
            // logged once, not at every attempt
            Err(error) => {
                let error = causes(&*error);
                if error != last_error {
                    warn!(
                        coordinator = settings.address,
                        error, "no session with the coordinator; trying again"
                    );
                    last_error = error;
                }
            }
        }
        sleep(pauses.next(lasted)).await;
    }
}

/// Whether the coordinator takes our certificate for expired: by its clock, which counts, it is.
fn says_expired(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ConnectError::Refused {
            fault: Fault::Expired(_),
            ..
        })
    )
}

async fn renew_late(
    endpoint: &Endpoint,
    settings: &Settings,
    identity: &mut Identity,
) -> anyhow::Result<()> {
    let fresh = enrol::renew_late(identity)
        .await
        .context("this host's certificate has expired and isn't renewed")?;
    fresh.save(&settings.state_dir)?;
    endpoint.renew(fresh.credentials()?)?;
    info!("expired certificate renewed");
    *identity = fresh;
    Ok(())
}

/// Holds a session, and returns how long it lasted; an error is one that didn't come about.
async fn hold(
    endpoint: &Endpoint,
    settings: &Settings,
    identity: &mut Identity,
    hello: Hello,
    inbox: &mpsc::Sender<Heard>,
    patience: &mut Patience,
) -> anyhow::Result<Duration> {
    let connection = reach(endpoint, settings).await?;
    let address = connection.remote_address();
    let (mut sender, mut receiver) = connection.open().await?;
    sender
        .send(&CoordinatorOpen {
            kind: Some(coordinator_open::Kind::Session(hello)),
        })
        .await?;
    info!(coordinator = %address, "session with the coordinator is up");
    // a few reports: the driver keeps what doesn't fit and sends the newest state later
    let (reports, outbox) = mpsc::channel(8);
    drop(inbox.send(Heard::Up(reports)).await);
    let (began, mut silent) = (Instant::now(), false);
    let ended = tokio::select! {
        ended = send_reports(&mut sender, outbox) => ended,
        ended = receive_orders(&mut receiver, inbox) => ended,
        ended = renew_in_time(endpoint, &connection, settings, identity) => ended,
        () = connection.silent(patience.looks, LOOK_EVERY) => {
            silent = true;
            connection.close(CloseCode::Failed, "nothing came from the coordinator");
            let waited = Span(LOOK_EVERY * patience.looks);
            Err(anyhow::anyhow!("nothing came from the coordinator for {waited}"))
        }
    };
    let lasted = began.elapsed();
    patience.ended(lasted, silent);
    let (taken_in, all) = oneshot::channel();
    drop(inbox.send(Heard::Down(taken_in)).await);
    // a driver that ends answers by that
    drop(all.await);
    match ended {
        Ok(()) => info!("session with the coordinator ended"),
        Err(error) => warn!(
            error = causes(&*error),
            "session with the coordinator ended"
        ),
    }
    Ok(lasted)
}

/// Connects to the coordinator at the first of its addresses that answers.
async fn reach(endpoint: &Endpoint, settings: &Settings) -> anyhow::Result<Connection> {
    let name = &settings.address;
    let found = lookup_host(name)
        .await
        .with_context(|| format!("looking up the coordinator's address {name}"))?;
    let both = endpoint.local_addr()?.is_ipv6();
    let addresses = reachable(found, both);
    if addresses.is_empty() {
        bail!(
            "coordinator address {name} has IPv6 addresses only, and this agent listens on IPv4; \
             set listen = \"[::]:7471\", which is both"
        );
    }
    connect(endpoint, &addresses, &settings.coordinator).await
}

/// The addresses that the endpoint's socket can reach, in the order in which they are tried: IPv4 first, because the coordinator tells
/// peers the address that it sees, and the sockets of some may know no other; those that need an interface's name to mean anything
/// last.
fn reachable(found: impl Iterator<Item = SocketAddr>, both: bool) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = found.filter(|address| both || address.is_ipv4()).collect();
    addresses.sort_by_key(|address| match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) if !address.ip().is_unicast_link_local() => 1,
        SocketAddr::V6(_) => 2,
    });
    addresses.dedup();
    addresses
}

async fn connect(
    endpoint: &Endpoint,
    addresses: &[SocketAddr],
    coordinator: &HostId,
) -> anyhow::Result<Connection> {
    let mut failed = Vec::new();
    for address in addresses {
        match endpoint.connect(*address, coordinator).await {
            Ok(connection) => return Ok(connection),
            // it was the coordinator that answered: it would say the same elsewhere
            Err(error @ ConnectError::Refused { .. }) => return Err(error.into()),
            Err(error) => failed.push(error.to_string()),
        }
    }
    bail!("{}", failed.join("; "))
}

/// When the coordinator is tried again.
#[derive(Debug)]
struct Pauses(Backoff);

impl Pauses {
    fn new() -> Self {
        Self(Backoff::seeded(RETRY.0, RETRY.1))
    }

    /// The pause after a session that lasted so long, or that didn't come about.
    fn next(&mut self, lasted: Option<Duration>) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= SOUND) {
            self.0.succeeded();
        }
        self.0.delay(None)
    }
}

/// How long a coordinator may be silent.
#[derive(Debug, PartialEq, Eq)]
struct Patience {
    looks: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            looks: SILENT_LOOKS.0,
        }
    }
}

impl Patience {
    /// A session lasted so long, and ended because nothing came or for another reason.
    fn ended(&mut self, lasted: Duration, silent: bool) {
        if lasted >= CALM {
            *self = Self::default();
        }
        if silent {
            self.looks = (self.looks * 2).min(SILENT_LOOKS.1);
        }
    }
}

async fn send_reports(
    sender: &mut Sender,
    mut outbox: mpsc::Receiver<Report>,
) -> anyhow::Result<()> {
    while let Some(report) = outbox.recv().await {
        sender.send(&report).await?;
    }
    Ok(())
}

async fn receive_orders(
    receiver: &mut Receiver,
    inbox: &mpsc::Sender<Heard>,
) -> anyhow::Result<()> {
    while let Some(order) = receiver.receive::<Order>().await? {
        inbox.send(Heard::Order(Box::new(order))).await?;
    }
    Ok(())
}

/// Renews the certificate when two thirds of its life are over. Ends only with an error that ends the session.
async fn renew_in_time(
    endpoint: &Endpoint,
    connection: &Connection,
    settings: &Settings,
    identity: &mut Identity,
) -> anyhow::Result<()> {
    loop {
        let validity = identity.validity()?;
        sleep(validity.look_every()).await;
        if !validity.renewal_due(SystemTime::now()) {
            continue;
        }
        let renewed = tokio::time::timeout(RENEWAL_TIMEOUT, async {
            let (request, key_pem) = identity::request()?;
            let (mut sender, mut receiver) = connection.open().await?;
            let renewal = Renewal { csr: request };
            sender
                .send(&CoordinatorOpen {
                    kind: Some(coordinator_open::Kind::Renewal(renewal)),
                })
                .await?;
            sender.finish()?;
            let answer: Renewed = receiver
                .receive()
                .await?
                .ok_or_else(|| anyhow::anyhow!("no answer"))?;
            if !answer.error.is_empty() {
                anyhow::bail!("coordinator refused: {}", answer.error);
            }
            let chain: String = answer
                .certificates
                .iter()
                .map(|der| identity::pem(der))
                .collect();
            let fresh = identity.renewed(&chain, Some(&key_pem))?;
            fresh.save(&settings.state_dir)?;
            endpoint.renew(fresh.credentials()?)?;
            Ok(fresh)
        });
        match renewed.await {
            Ok(Ok(fresh)) => {
                info!("certificate renewed");
                *identity = fresh;
            }
            Ok(Err(error)) => warn!(
                error = causes(&*error),
                "renewing the certificate failed; trying again"
            ),
            Err(_) => warn!("renewing the certificate took too long; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::Authority;

    #[test]
    fn the_addresses_that_the_socket_can_reach_are_tried_and_ipv4_first() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let [local, global, four, other] = [
            "[fe80::1%3]:1",
            "[2001:db8::1]:1",
            "10.0.0.1:1",
            "10.0.0.2:1",
        ]
        .map(parse);
        let found = [local, global, four, four, other];
        let tried = |both| reachable(found.into_iter(), both);
        assert_eq!(tried(true), [four, other, global, local]);
        assert_eq!(tried(false), [four, other]);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_is_passed_over() {
        let authority = Authority::new();
        let later = SystemTime::now() + Duration::from_hours(1);
        let open = |name, address: &str| {
            let credentials = authority.identity(name, later).credentials().unwrap();
            let settings = link::Settings::default();
            Endpoint::bind(address.parse().unwrap(), credentials, &settings)
        };
        let coordinator = open("coordinator", "127.0.0.1:0").unwrap();
        coordinator.authorise(link::Authorised::Anyone);
        let agent = open("mini-1", "127.0.0.1:0").unwrap();
        let port = coordinator.local_addr().unwrap().port();
        // the socket is of the other family than the first
        let addresses = [
            ([0, 0, 0, 0, 0, 0, 0, 1], port).into(),
            ([127, 0, 0, 1], port).into(),
        ];
        let name = "coordinator".parse().unwrap();
        let (there, _here) = tokio::join!(connect(&agent, &addresses, &name), async {
            coordinator.accept().await.unwrap().establish().await
        });
        assert_eq!(there.unwrap().remote_address(), addresses[1]);
        let Ok(both) = open("mini-2", "[::]:0") else {
            return; // a machine without IPv6
        };
        let (there, _here) = tokio::join!(connect(&both, &addresses[1..], &name), async {
            coordinator.accept().await.unwrap().establish().await
        });
        there.unwrap();
    }

    #[test]
    fn a_coordinator_that_is_silent_again_and_again_is_waited_for_longer() {
        let mut patience = Patience::default();
        let waits = |patience: &Patience| LOOK_EVERY * patience.looks;
        assert_eq!(waits(&patience), Duration::from_secs(3));
        patience.ended(Duration::from_secs(20), true);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        patience.ended(Duration::from_secs(20), false);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        for _ in 0..3 {
            patience.ended(Duration::from_secs(20), true);
        }
        assert_eq!(waits(&patience), Duration::from_secs(10));
        patience.ended(CALM, true);
        assert_eq!(waits(&patience), Duration::from_secs(6));
        patience.ended(CALM, false);
        assert_eq!(patience, Patience::default());
    }

    #[test]
    fn hosts_that_lost_the_coordinator_together_come_back_apart_and_ever_more_rarely() {
        let mut hosts: Vec<_> = (0..1_000).map(|_| Pauses::new()).collect();
        let first = hosts.iter_mut().map(|host| host.next(Some(CALM)));
        let mut first: Vec<_> = first.collect();
        first.sort_unstable();
        assert!(first[0] >= RETRY.0 / 2 && first[999] <= RETRY.0);
        assert!(first[900] - first[100] > RETRY.0 / 4, "they are spread");
        // sessions that are taken and ended at once, as by a coordinator in trouble
        let host = &mut hosts[0];
        let pauses: Vec<_> = (0..10).map(|_| host.next(Some(SOUND / 2))).collect();
        assert!(pauses[9] >= RETRY.1 / 2 && pauses[9] <= RETRY.1);
        assert!(host.next(None) >= RETRY.1 / 2);
        assert!(host.next(Some(SOUND)) <= RETRY.0);
    }

    #[test]
    fn only_a_refusal_for_its_age_asks_for_a_late_renewal() {
        let host: HostId = "coordinator".parse().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let refused = |fault| {
            anyhow::Error::from(ConnectError::Refused {
                host: host.clone(),
                address,
                fault,
                said: String::new(),
            })
        };
        assert!(says_expired(&refused(Fault::Expired(None))));
        assert!(!says_expired(&refused(Fault::Unauthorised)));
        // it is the coordinator's certificate that has expired: ours can't help
        let theirs = ConnectError::PeerUntrusted {
            host,
            address,
            fault: Fault::Expired(None),
        };
        assert!(!says_expired(&theirs.into()));
    }
}
