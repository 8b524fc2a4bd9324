//! Connections of the mirror's clients: which ones get a place, and for how long.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wire::{Crowd, Place};

use super::{
    seek::{LOOKS, Look, Seeker},
    serve::Service,
    stream::Pulse,
};

/// The number of connections at one time. tart opens four (tart of August 2026, Sources/tart/Commands/Pull.swift:
/// concurrency), a busy containerd a dozen. When all places are taken, a client that asks for nothing gives way. If
/// every client is being answered or has just come, the next one waits.
pub(super) const CONNECTIONS: usize = 256;
/// A client that asks for nothing for this long gives way to others.
const GRACE: Duration = Duration::from_secs(1);
/// How often a waiting client looks for a place.
const WAIT: Duration = Duration::from_millis(50);
/// A request's head has to arrive within this time, also the first one of a new connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// A client that takes nothing for this long is disconnected, because it holds a connection and keeps a blob from being
/// evicted.
const IDLE: Duration = Duration::from_mins(5);

/// A mirror that listens, but doesn't serve yet.
pub(crate) struct Mirror {
    pub(super) listener: TcpListener,
    pub(super) acceptor: Option<TlsAcceptor>,
    pub(super) service: Arc<Service>,
    pub(super) seeker: Seeker,
    /// Manifests that passed.
    pub(super) looks: mpsc::Receiver<Look>,
}

impl Mirror {
    /// The address on which it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop` is cancelled.
    pub(crate) async fn serve(mut self, stop: CancellationToken) {
        let crowd = Crowd::new(CONNECTIONS, 0, GRACE);
        let mut connections = JoinSet::new();
        let mut seeking = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        debug!(%error, "a client's connection was cut short");
                    }
                }
                Some(ended) = seeking.join_next() => {
                    if let Err(error) = ended {
                        debug!(%error, "a look for a recipe was cut short");
                    }
                }
                Some(look) = self.looks.recv(), if seeking.len() < LOOKS => {
                    seeking.spawn(self.seeker.clone().look(look));
                }
                accepted = self.listener.accept() => {
                    let (stream, remote) = match accepted {
                        Ok(accepted) => accepted,
                        // too many open files, or the client is gone already
                        Err(error) => {
                            debug!(%error, "a client couldn't be accepted");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    // answers are written whole, and a small one must not wait for an acknowledgement
                    drop(stream.set_nodelay(true));
                    let place = tokio::select! {
                        place = place(&crowd, remote.ip()) => Arc::new(place),
                        () = stop.cancelled() => return,
                    };
                    let (service, acceptor) = (self.service.clone(), self.acceptor.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = meet(service, acceptor, stream, &place) => {}
                            () = place.lost() => debug!(%remote, "a client gave way to another"),
                        }
                    });
                }
            }
        }
    }
}

/// Waits for a place for a client from this address. A place soon gets free: a client that asks for nothing gives way,
/// and every answer ends, at the latest because its client takes nothing for [`IDLE`].
async fn place(crowd: &Crowd, address: IpAddr) -> Place {
    loop {
        if let Some(place) = crowd.enter(address, Instant::now()) {
            return place;
        }
        sleep(WAIT).await;
    }
}

/// Serves one client, after the TLS handshake if there is one.
async fn meet(
    service: Arc<Service>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    place: &Arc<Place>,
) {
    let Some(acceptor) = acceptor else {
        return talk(service, stream, place).await;
    };
    let hello = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream));
    if let Ok(Ok(stream)) = hello.await {
        talk(service, stream, place).await;
    }
}

/// Returns when nothing moved for [`IDLE`].
async fn silent(pulse: &Pulse) {
    loop {
        let silence = pulse.silence();
        if silence >= IDLE {
            return;
        }
        sleep(IDLE.saturating_sub(silence)).await;
    }
}

/// Serves one client until the client or the mirror ends the connection.
async fn talk(
    service: Arc<Service>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    place: &Arc<Place>,
) {
    let pulse = Arc::new(Pulse::new());
    let watch = pulse.clone();
    let place = place.clone();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(move |request: hyper::Request<Incoming>| {
                let (service, pulse, work) = (service.clone(), pulse.clone(), place.work());
                async move {
                    let answered = service.answer(&request, &pulse).await;
                    answered.map(|response| response.map(|content| content.into_body(work)))
                }
            }),
        );
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                debug!(%error, "a client's connection ended");
            }
        }
        () = silent(&watch) => debug!("a client took nothing for too long"),
    }
}
