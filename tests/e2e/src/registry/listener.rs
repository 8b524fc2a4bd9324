//! The doors of a registry: a port that is kept while it is down, connections that end with it.

use std::{io, net::SocketAddr, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    api::{Role, handle},
    lock::lock,
    shared::Shared,
};

/// Connections that may wait to be accepted: those of a fleet that starts at once.
const BACKLOG: u32 = 1024;

/// A certificate for `localhost`, 127.0.0.1 and `registry.test` that vouches for itself.
#[derive(Debug)]
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn generate() -> io::Result<Self> {
        let names = ["localhost", "127.0.0.1", "registry.test"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        Ok(Self {
            certificate: made.cert.der().clone(),
            pem: made.cert.pem(),
            key: made.signing_key.serialize_der(),
        })
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn acceptor(&self) -> io::Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .map_err(io::Error::other)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A port, and what listens on it.
pub(super) struct Door {
    /// Bound but not listening: keeps the port while the listener is away, and refuses connections then.
    _keeper: TcpSocket,
    addr: SocketAddr,
    listener: TcpListener,
}

impl Door {
    pub(super) fn open(addr: SocketAddr) -> io::Result<Self> {
        let keeper = socket(addr)?;
        keeper.bind(addr)?;
        let addr = keeper.local_addr()?;
        let listener = listen(addr)?;
        Ok(Self {
            _keeper: keeper,
            addr,
            listener,
        })
    }

    pub(super) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves while the power is on; says in `report` whether it listens.
    pub(super) async fn run(
        self,
        shared: Arc<Shared>,
        role: Role,
        tls: Option<TlsAcceptor>,
        mut power: watch::Receiver<bool>,
        report: watch::Sender<bool>,
    ) {
        let mut waiting = Some(self.listener);
        loop {
            // The port is kept, so this fails only when the machine has no memory or file descriptors.
            let Some(listener) = waiting.take().or_else(|| listen(self.addr).ok()) else {
                return;
            };
            report.send_replace(true);
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((stream, _)) = accepted {
                            lock(&shared.counters).connections += 1;
                            // Small answers would wait for an acknowledgement otherwise.
                            let _quick = stream.set_nodelay(true).is_ok();
                            let shared = Arc::clone(&shared);
                            let tls = tls.clone();
                            connections.spawn(async move {
                                match tls {
                                    None => serve(stream, shared, role).await,
                                    Some(tls) => {
                                        if let Ok(stream) = tls.accept(stream).await {
                                            serve(stream, shared, role).await;
                                        }
                                    }
                                }
                            });
                        }
                    }
                    Some(_) = connections.join_next() => {}
                    off = power.wait_for(|on| !*on) => {
                        if off.is_err() {
                            return;
                        }
                        break;
                    }
                }
            }
            drop(listener);
            connections.shutdown().await;
            report.send_replace(false);
            if power.wait_for(|on| *on).await.is_err() {
                return;
            }
        }
    }
}

fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    // Keeper and listener share the port.
    socket.set_reuseport(true)?;
    Ok(socket)
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(addr)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn serve<S>(stream: S, shared: Arc<Shared>, role: Role)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| handle(Arc::clone(&shared), role, request));
    // Clients that go away are everyday business here.
    let _ended = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .is_ok();
}
