//! The endpoint: a UDP socket that connects to hosts of the fleet and accepts connections from them.

mod error;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use proto::HostId;
use quinn::{
    ConnectionError, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
    version::TLS13,
};
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use crate::{
    buffer,
    close::{self, CloseCode, CloseReason},
    connection::{Connection, canonical},
    credentials::{Credentials, provider},
    crowd::{Crowd, Place},
    fault::{Fault, clean_bytes},
    identity::Leaf,
    registry::{Admission, Authorised, Registry, superseded},
    reset, route,
    settings::{ALPN, Settings},
    verify::{Expect, Refused, Witness},
};

pub use self::error::{AcceptError, BindError, ConnectError, RenewError};

/// A UDP socket that connects to hosts of the fleet and accepts connections from them. Cloning is cheap; all clones are
/// the same endpoint.
///
/// The endpoint accepts no host until [`Endpoint::authorise`] is called. Early data (0-RTT) and session resumption are
/// off: both would let in a host whose certificate isn't valid any more.
#[derive(Clone)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    /// Transport settings of the side that connects. They let the peer open one one-way stream, for the acceptance.
    connecting: Arc<TransportConfig>,
    /// Transport settings of the side that accepts.
    accepting: Arc<TransportConfig>,
    provider: Arc<CryptoProvider>,
    /// This host's credentials, and the verifier of the hosts that connect. Each handshake reads them, and a renewal
    /// replaces them. The lock is held for a clone, never across an await.
    own: RwLock<(Credentials, Arc<dyn ClientCertVerifier>)>,
    registry: Arc<Registry>,
    handshakes: Crowd,
}

/// A handshake that has taken this long gives way to another one from the same address. A lossy path with a round trip
/// of 100 ms needs less.
const HANDSHAKE_GRACE: Duration = Duration::from_secs(3);

/// The side that accepts sends this byte, alone on a one-way stream, once the other side may go on. Otherwise the side
/// that connects couldn't tell: with TLS 1.3, its handshake ends before the peer has checked its certificate.
const ACCEPTED: u8 = 1;

impl Endpoint {
    /// Opens the endpoint on this address. Port 0 chooses a free port. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address isn't available, or the credentials can't be used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        credentials: Credentials,
        settings: &Settings,
    ) -> Result<Self, BindError> {
        let provider = Arc::new(provider());
        let verifier = verifier(&credentials, &provider)?;
        let shared = Shared {
            settings: settings.clone(),
            connecting: settings.transport(1),
            accepting: settings.transport(0),
            provider,
            own: RwLock::new((credentials.clone(), verifier.clone())),
            registry: Arc::new(Registry::new()),
            handshakes: Crowd::new(
                settings.max_handshakes,
                settings.max_handshakes / 2,
                HANDSHAKE_GRACE,
            ),
        };
        let server = shared.server(&credentials, verifier);
        let config = reset::endpoint_config(settings.mtu(), settings.reset_secret.as_ref());
        let socket = std::net::UdpSocket::bind(address)
            .map_err(|cause| BindError::Socket { address, cause })?;
        buffer::widen(&socket, settings.receive_buffer);
        let quinn =
            quinn::Endpoint::new(config, Some(server), socket, Arc::new(quinn::TokioRuntime))
                .map_err(|cause| BindError::Socket { address, cause })?;
        Ok(Self {
            quinn,
            shared: Arc::new(shared),
        })
    }

    /// The address that the endpoint is bound to, with the port that was chosen.
    ///
    /// # Errors
    /// When the system doesn't tell the address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.quinn.local_addr()
    }

    /// Replaces the list of hosts that may connect, at once. Accepted connections of hosts that aren't on the new list
    /// are closed.
    ///
    /// A connection that this side opened is closed when the old list named its host and the new list doesn't. So an
    /// agent's connection to its coordinator, which is on no list, stays.
    pub fn authorise(&self, hosts: Authorised) {
        for connection in self.shared.registry.authorise(hosts) {
            connection.close(CloseCode::Unauthorised, NO_LONGER);
        }
    }

    /// Turns these hosts away from now on, whatever the list says. Each host is told its words: what is wrong, and what
    /// to do. Replaces the hosts that were turned away before. Closes their accepted connections.
    pub fn turn_away(&self, hosts: BTreeMap<HostId, String>) {
        for (connection, words) in self.shared.registry.turn_away(hosts) {
            connection.close(CloseCode::Unauthorised, &words);
        }
    }

    /// Names the addresses of the fleet's hosts. Half of the handshakes that may be under way are kept for these
    /// addresses and for addresses from which a host was let in. Replaces the addresses that were named before.
    pub fn expect(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.shared.handshakes.expect(addresses);
    }

    /// Refuses certificates of these hosts that were signed before these times (whole seconds), whether the host
    /// connects or answers. Replaces the earlier times. Closes connections with such certificates.
    pub fn supersede(&self, oldest: BTreeMap<HostId, SystemTime>) {
        for connection in self.shared.registry.supersede(oldest) {
            connection.close(CloseCode::Unauthorised, &superseded(connection.host()));
        }
    }

    /// Uses these credentials for all handshakes from now on. Connections that stand aren't touched.
    ///
    /// # Errors
    /// When the credentials can't be used. The old ones stay in use.
    pub fn renew(&self, credentials: Credentials) -> Result<(), RenewError> {
        let verifier = verifier(&credentials, &self.shared.provider)?;
        let server = self.shared.server(&credentials, verifier.clone());
        *self
            .shared
            .own
            .write()
            .unwrap_or_else(PoisonError::into_inner) = (credentials, verifier);
        self.quinn.set_server_config(Some(server));
        Ok(())
    }

    /// Connects to this host at this address. Returns once each side has accepted the other.
    ///
    /// Cancel safe: if the caller stops waiting, the connection is closed.
    ///
    /// # Errors
    /// When another host answers, when either side doesn't accept the other, or when no answer comes within the
    /// handshake timeout.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected: &HostId,
    ) -> Result<Connection, ConnectError> {
        let settings = &self.shared.settings;
        if self.quinn.open_connections() >= settings.max_connections {
            return Err(ConnectError::Endpoint {
                host: expected.clone(),
                cause: "has as many connections as it allows",
            });
        }
        let after = settings.handshake_timeout;
        let host = || expected.clone();
        match timeout(after, self.dial(address, expected)).await {
            Ok(Err(ConnectError::TimedOut { after, .. })) => {
                Err(unanswered(host(), address, after))
            }
            Ok(result) => result,
            Err(_) => Err(unanswered(host(), address, after)),
        }
    }

    async fn dial(
        &self,
        address: SocketAddr,
        expected: &HostId,
    ) -> Result<Connection, ConnectError> {
        let host = || expected.clone();
        let (config, expect) = self.shared.client(expected);
        let connecting =
            self.quinn
                .connect_with(config, address, NAME)
                .map_err(|cause| match cause {
                    quinn::ConnectError::EndpointStopping => ConnectError::Endpoint {
                        host: host(),
                        cause: "is closed",
                    },
                    cause => ConnectError::Address {
                        host: host(),
                        address,
                        cause: cause.to_string(),
                    },
                })?;
        let explain = |error| self.explain(error, address, expected, &expect);
        let quinn = connecting.await.map_err(explain)?;
        let refused = |fault| ConnectError::PeerUntrusted {
            host: host(),
            address,
            fault,
        };
        let leaf = peer(&quinn).map_err(refused)?;
        // the connection is listed before it is accepted, so that it can be closed at any moment
        let connection = self.shared.registry.list(quinn, &leaf, false, usize::MAX);
        let connection = match connection {
            Admission::Listed { connection, .. } => connection,
            Admission::Refused(quinn, fault, said) => {
                quinn.close(CloseCode::Unauthorised.wire(), said.as_bytes());
                return Err(refused(fault));
            }
        };
        let mut acceptance = connection.0.quinn.accept_uni().await.map_err(explain)?;
        let mut said = [0];
        match acceptance.read_exact(&mut said).await {
            Ok(()) if said[0] == ACCEPTED => Ok(connection),
            Err(quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(error))) => {
                Err(explain(error))
            }
            Ok(()) | Err(_) => {
                connection.close(CloseCode::Protocol, "no acceptance");
                Err(ConnectError::PeerUntrusted {
                    host: host(),
                    address,
                    fault: Fault::Protocol,
                })
            }
        }
    }

    /// Waits for the next host that wants to connect; `None` once the endpoint is closed. Cancel safe.
    ///
    /// Under load, a host must first prove its address. Over the limits, a host is turned away. The caller doesn't see
    /// either.
    pub async fn accept(&self) -> Option<Incoming> {
        let settings = &self.shared.settings;
        loop {
            let incoming = self.quinn.accept().await?;
            if self.quinn.open_connections() >= settings.max_connections {
                incoming.refuse();
                continue;
            }
            let handshakes = &self.shared.handshakes;
            if handshakes.held() >= settings.retry_above && !incoming.remote_address_validated() {
                // fails only for an address that is validated already
                drop(incoming.retry());
                continue;
            }
            let address = incoming.remote_address().ip();
            let Some(place) = handshakes.enter(address, Instant::now()) else {
                incoming.refuse();
                continue;
            };
            return Some(Incoming {
                quinn: incoming,
                shared: self.shared.clone(),
                place,
            });
        }
    }

    /// Closes all connections with this reason, and accepts no more. [`Endpoint::drained`] waits until the peers have
    /// had a chance to hear of it.
    pub fn close(&self, reason: &str) {
        self.quinn
            .close(CloseCode::Stopping.wire(), reason.as_bytes());
    }

    /// Waits until no connection is left. After [`Endpoint::close`], this takes a few round trips. Cancel safe.
    pub async fn drained(&self) {
        self.quinn.wait_idle().await;
    }

    /// The meaning of a handshake's error for the side that connects.
    fn explain(
        &self,
        error: ConnectionError,
        address: SocketAddr,
        host: &HostId,
        expect: &Expect,
    ) -> ConnectError {
        let host = host.clone();
        match error {
            ConnectionError::TransportError(error) => ConnectError::PeerUntrusted {
                host,
                address,
                fault: expect
                    .fault()
                    .unwrap_or_else(|| Fault::from_transport(error.code, &error.reason)),
            },
            ConnectionError::ConnectionClosed(close) => {
                let said = clean_bytes(&close.reason);
                ConnectError::Refused {
                    host,
                    address,
                    fault: Fault::from_transport(close.error_code, &said),
                    said,
                }
            }
            ConnectionError::ApplicationClosed(close) => {
                let said = clean_bytes(&close.reason);
                let fault = match CloseCode::from_wire(close.error_code) {
                    CloseCode::Unauthorised => Fault::Unauthorised,
                    CloseCode::Identity => Fault::Identity(None),
                    CloseCode::Busy => Fault::Busy,
                    code => {
                        return ConnectError::Broken {
                            host,
                            address,
                            reason: CloseReason::Peer { code, reason: said },
                        };
                    }
                };
                ConnectError::Refused {
                    host,
                    address,
                    fault,
                    said,
                }
            }
            ConnectionError::VersionMismatch => ConnectError::PeerUntrusted {
                host,
                address,
                fault: Fault::Protocol,
            },
            ConnectionError::TimedOut => ConnectError::TimedOut {
                host,
                address,
                after: self.shared.settings.idle_timeout,
            },
            error => ConnectError::Broken {
                host,
                address,
                reason: close::reason(error),
            },
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("local_addr", &self.quinn.local_addr().ok())
            .finish_non_exhaustive()
    }
}

/// The server name that quinn requires. It isn't sent, because SNI is off, and isn't compared ([`crate::verify`]).
const NAME: &str = "parbake";

/// The reason that a connection is told when its host has left the list.
const NO_LONGER: &str = "no longer on the authorised list";

/// The verifier of the hosts that connect.
fn verifier(
    credentials: &Credentials,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, RenewError> {
    let authorities = credentials.authorities.clone();
    WebPkiClientVerifier::builder_with_provider(authorities, provider.clone())
        // the names of the authorities help clients with several certificates; a host has one
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| RenewError(error.to_string()))
}

impl Shared {
    /// The configuration with which one connection is accepted, and the witness that remembers a refused host.
    fn witnessed(&self) -> (quinn::ServerConfig, Arc<Witness>) {
        let (credentials, verifier) = self.own();
        let witness = Arc::new(Witness::new(verifier));
        (self.server(&credentials, witness.clone()), witness)
    }

    fn own(&self) -> (Credentials, Arc<dyn ClientCertVerifier>) {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        own.clone()
    }

    fn server(
        &self,
        credentials: &Credentials,
        verifier: Arc<dyn ClientCertVerifier>,
    ) -> quinn::ServerConfig {
        let mut tls = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.ignore_client_order = true;
        tls.max_early_data_size = 0;
        tls.send_tls13_tickets = 0;
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        let tls = QuicServerConfig::try_from(tls).expect("the provider has AES-128-GCM");
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server
            .transport_config(self.accepting.clone())
            // the coordinator tells others a host's address, so the address stays the same for the connection's life
            .migration(false)
            // beyond this, quinn answers nothing; there is enough room to tell hosts that are turned away
            .max_incoming(self.settings.max_handshakes.saturating_mul(4))
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES * 16);
        server
    }

    fn client(&self, expected: &HostId) -> (quinn::ClientConfig, Arc<Expect>) {
        let (credentials, _) = self.own();
        let expect = Arc::new(Expect::new(
            expected.clone(),
            credentials.authorities,
            self.provider.signature_verification_algorithms,
        ));
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(expect.clone())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key)));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_sni = false;
        tls.enable_early_data = false;
        tls.resumption = rustls::client::Resumption::disabled();
        let tls = QuicClientConfig::try_from(tls).expect("the provider has AES-128-GCM");
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(self.connecting.clone());
        (client, expect)
    }
}

/// The most bytes that may arrive for a connection before it is looked at, beyond its first packet: a certificate
/// chain, twice.
const INCOMING_BYTES: u64 = 16 << 10;

/// A host that wants to connect. Dropping this turns the host away.
pub struct Incoming {
    quinn: quinn::Incoming,
    shared: Arc<Shared>,
    /// The place of this handshake among those that may be under way.
    place: Place,
}

impl Incoming {
    /// The address that the host connects from.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.quinn.remote_address())
    }

    /// Completes the handshake, and decides whether the host may connect. Takes the handshake timeout at most; run this
    /// beside further accepts. Cancel safe: if the caller stops waiting, the handshake is broken off.
    ///
    /// # Errors
    /// When either side doesn't accept the other, or when the handshake isn't done in time.
    pub async fn establish(self) -> Result<Connection, AcceptError> {
        let address = self.remote_address();
        let after = self.shared.settings.handshake_timeout;
        let Self {
            quinn,
            shared,
            place,
        } = self;
        let result = tokio::select! {
            result = timeout(after, Self::shake(quinn, &shared, address)) => result,
            () = place.lost() => return Err(AcceptError::GaveWay { address }),
        };
        drop(place);
        if let Ok(Ok(_)) = &result {
            shared.handshakes.met(address.ip());
        }
        result.unwrap_or(Err(AcceptError::TimedOut { address, after }))
    }

    async fn shake(
        incoming: quinn::Incoming,
        shared: &Shared,
        address: SocketAddr,
    ) -> Result<Connection, AcceptError> {
        let (server, witness) = shared.witnessed();
        let explain = |error| explain_accept(error, address, witness.refused());
        let accepted = incoming.accept_with(Arc::new(server)).map_err(explain)?;
        let quinn = accepted.await.map_err(explain)?;
        let refuse =
            |quinn: &quinn::Connection, code: CloseCode, host, fault: Fault, said: &str| {
                quinn.close(code.wire(), said.as_bytes());
                AcceptError::PeerUntrusted {
                    host,
                    address,
                    fault,
                }
            };
        let leaf = match peer(&quinn) {
            Ok(leaf) => leaf,
            Err(fault) => {
                return Err(refuse(
                    &quinn,
                    CloseCode::Identity,
                    None,
                    fault,
                    "certificate doesn't name one host",
                ));
            }
        };
        let limit = shared.settings.max_connections_per_host;
        let connection = match shared.registry.list(quinn, &leaf, true, limit) {
            Admission::Listed {
                connection,
                replaced,
            } => {
                for connection in replaced {
                    connection.close(CloseCode::Replaced, "");
                }
                connection
            }
            Admission::Refused(quinn, fault, said) => {
                return Err(refuse(
                    &quinn,
                    CloseCode::Unauthorised,
                    Some(leaf.host),
                    fault,
                    &said,
                ));
            }
        };
        let broken = |error| AcceptError::Broken {
            address,
            reason: connection.0.reason(error),
        };
        let mut acceptance = connection.0.quinn.open_uni().await.map_err(broken)?;
        match acceptance.write_all(&[ACCEPTED]).await {
            Ok(()) => {
                drop(acceptance); // which finishes it
                Ok(connection)
            }
            Err(quinn::WriteError::ConnectionLost(error)) => Err(broken(error)),
            Err(error) => {
                connection.close(CloseCode::Protocol, "acceptance wasn't wanted");
                Err(AcceptError::Broken {
                    address,
                    reason: CloseReason::Transport(error.to_string()),
                })
            }
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("remote_address", &self.remote_address())
            .finish_non_exhaustive()
    }
}

/// No answer came from an address: nobody is there, or this host's system sends nothing to it.
fn unanswered(host: HostId, address: SocketAddr, after: Duration) -> ConnectError {
    match route::missing(address) {
        Some(cause) => ConnectError::NoRoute {
            host,
            address,
            cause,
        },
        None => ConnectError::TimedOut {
            host,
            address,
            after,
        },
    }
}

/// The meaning of a handshake's error for the side that accepts.
fn explain_accept(
    error: ConnectionError,
    address: SocketAddr,
    refused: Option<Refused>,
) -> AcceptError {
    match (error, refused) {
        (ConnectionError::TransportError(_), Some(Refused { host, fault })) => {
            AcceptError::PeerUntrusted {
                host,
                address,
                fault,
            }
        }
        (ConnectionError::TransportError(error), None) => AcceptError::PeerUntrusted {
            host: None,
            address,
            fault: Fault::from_transport(error.code, &error.reason),
        },
        // the other program gave up, as after its own timeout; QUIC hides its reason during the handshake
        (ConnectionError::ConnectionClosed(close), _)
            if close.error_code == quinn::TransportErrorCode::APPLICATION_ERROR =>
        {
            AcceptError::Broken {
                address,
                reason: close::reason(ConnectionError::ConnectionClosed(close)),
            }
        }
        (ConnectionError::ConnectionClosed(close), _) => {
            let said = clean_bytes(&close.reason);
            AcceptError::Refused {
                address,
                fault: Fault::from_transport(close.error_code, &said),
                said,
            }
        }
        (error, _) => AcceptError::Broken {
            address,
            reason: close::reason(error),
        },
    }
}

/// What the peer's verified certificate says.
fn peer(quinn: &quinn::Connection) -> Result<Leaf, Fault> {
    let chain = quinn
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(Fault::NoCertificate)?;
    let leaf = chain.first().ok_or(Fault::NoCertificate)?;
    Leaf::read(leaf).map_err(|cause| Fault::Identity(Some(cause)))
}
