//! The way to the coordinator over QUIC: its addresses, the first message, and the timely renewal of certificates.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use proto::{
    HostId, causes,
    figure::Span,
    message::{CoordinatorOpen, Hello, Renewal, Renewed, coordinator_open},
};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use wire::{CloseCode, ConnectError, Connection, Endpoint, Receiver, Sender};

use super::{
    error::SessionError,
    line::{Door, Line},
    pace::LOOK_EVERY,
};
use crate::{
    enrol,
    identity::{self, Identity},
};

/// A coordinator that takes longer than this to answer a renewal is asked again later.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a session.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) coordinator: HostId,
    /// The address as `host:port`. It is resolved at every attempt.
    pub(crate) address: String,
    pub(crate) state_dir: PathBuf,
}

/// Reaches the coordinator as this host.
pub(super) struct Dialler {
    endpoint: Endpoint,
    settings: Settings,
    identity: Identity,
    /// At the last attempt, the coordinator took this host's certificate for expired.
    taken_for_expired: bool,
}

impl Dialler {
    pub(super) const fn new(endpoint: Endpoint, settings: Settings, identity: Identity) -> Self {
        Self {
            endpoint,
            settings,
            identity,
            taken_for_expired: false,
        }
    }

    /// Renews an expired certificate over the API, the only place that still takes it.
    async fn renew_late(&mut self) -> Result<(), SessionError> {
        let fresh = enrol::renew_late(&self.identity).await;
        let fresh = fresh.map_err(|error| SessionError::Expired(causes(&*error)))?;
        fresh.save(&self.settings.state_dir)?;
        self.endpoint.renew(fresh.credentials()?)?;
        info!("expired certificate renewed");
        self.identity = fresh;
        Ok(())
    }

    /// Connects to the coordinator at the first of its addresses that answers.
    async fn reach(&self) -> Result<Connection, SessionError> {
        let name = &self.settings.address;
        let found = lookup_host(name)
            .await
            .map_err(|error| SessionError::Lookup {
                name: name.clone(),
                error,
            })?;
        let local = self.endpoint.local_addr();
        let both = local.map_err(SessionError::Socket)?.is_ipv6();
        let addresses = reachable(found, both);
        if addresses.is_empty() {
            return Err(SessionError::Ipv6Only(name.clone()));
        }
        connect(&self.endpoint, &addresses, &self.settings.coordinator).await
    }
}

impl Door for Dialler {
    type Sender = Sender;
    type Receiver = Receiver;

    async fn open(
        &mut self,
        hello: &(impl Fn() -> Hello + Sync),
        looks: u32,
    ) -> Result<Line<'_, Sender, Receiver>, SessionError> {
        let expired = std::mem::take(&mut self.taken_for_expired);
        if expired || self.identity.expired(SystemTime::now()) {
            self.renew_late().await?;
        }
        let reached = self.reach().await;
        self.taken_for_expired = reached.as_ref().is_err_and(SessionError::says_expired);
        let connection = reached?;
        let (mut sender, receiver) = connection.open().await?;
        sender
            .send(&CoordinatorOpen {
                kind: Some(coordinator_open::Kind::Session(hello())),
            })
            .await?;
        info!(coordinator = %connection.remote_address(), "session with the coordinator is up");
        Ok(Line {
            sender,
            receiver,
            care: Box::pin(self.care(connection, looks)),
        })
    }
}

impl Dialler {
    /// Renews the certificate in time, and gives the session up if the coordinator is silent.
    async fn care(&mut self, connection: Connection, looks: u32) -> SessionError {
        tokio::select! {
            error = self.renew_in_time(&connection) => error,
            () = connection.silent(looks, LOOK_EVERY) => {
                connection.close(CloseCode::Failed, "nothing came from the coordinator");
                SessionError::Silent(Span(LOOK_EVERY * looks))
            }
        }
    }

    /// Renews the certificate when two thirds of its life are over. Ends only with an error that ends the session.
    async fn renew_in_time(&mut self, connection: &Connection) -> SessionError {
        loop {
            let validity = match self.identity.validity() {
                Ok(validity) => validity,
                Err(error) => return error.into(),
            };
            sleep(validity.look_every()).await;
            if !validity.renewal_due(SystemTime::now()) {
                continue;
            }
            match timeout(RENEWAL_TIMEOUT, self.renew(connection)).await {
                Ok(Ok(fresh)) => {
                    info!("certificate renewed");
                    self.identity = fresh;
                }
                Ok(Err(error)) => warn!(
                    error = causes(&error),
                    "renewing the certificate failed; trying again"
                ),
                Err(_) => warn!("renewing the certificate took too long; trying again"),
            }
        }
    }

    async fn renew(&self, connection: &Connection) -> Result<Identity, SessionError> {
        let (request, key_pem) = identity::request()?;
        let (mut sender, mut receiver) = connection.open().await?;
        let renewal = Renewal { csr: request };
        sender
            .send(&CoordinatorOpen {
                kind: Some(coordinator_open::Kind::Renewal(renewal)),
            })
            .await?;
        sender.finish()?;
        let answer: Option<Renewed> = receiver.receive().await?;
        let answer = answer.ok_or(SessionError::NoAnswer)?;
        if !answer.error.is_empty() {
            return Err(SessionError::NotRenewed(answer.error));
        }
        let chain: String = answer
            .certificates
            .iter()
            .map(|der| wire::certificate_pem(der))
            .collect();
        let fresh = self.identity.renewed(&chain, Some(&key_pem))?;
        fresh.save(&self.settings.state_dir)?;
        self.endpoint.renew(fresh.credentials()?)?;
        Ok(fresh)
    }
}

/// The addresses that the endpoint's socket can reach, in the order in which they are tried. IPv4 comes first, because
/// the coordinator tells peers the address that it sees, and some peers' sockets may only reach IPv4. Addresses that
/// need an interface's name come last.
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
) -> Result<Connection, SessionError> {
    let mut failed = Vec::new();
    for address in addresses {
        match endpoint.connect(*address, coordinator).await {
            Ok(connection) => return Ok(connection),
            // the coordinator itself answered: it would say the same at another address
            Err(error @ ConnectError::Refused { .. }) => return Err(SessionError::Refused(error)),
            Err(error) => failed.push(error.to_string()),
        }
    }
    Err(SessionError::Unreached(failed.join("; ")))
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
            let settings = wire::Settings::default();
            Endpoint::bind(address.parse().unwrap(), credentials, &settings)
        };
        let coordinator = open("coordinator", "127.0.0.1:0").unwrap();
        coordinator.authorise(wire::Authorised::Anyone);
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
}
