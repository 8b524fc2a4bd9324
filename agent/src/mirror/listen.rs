//! Connections of the mirror's clients: who is let in, and for how long.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use link::{Crowd, Place};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{serve::Service, stream::Pulse};

/// Clients at one time. tart opens four, a busy containerd a dozen. Over it one that asks for nothing gives way; where
/// each of them is answered or has just come, the next one waits.
pub(super) const CONNECTIONS: usize = 256;
/// A client that asks for nothing for so long gives way to others.
const GRACE: Duration = Duration::from_secs(1);
/// How often a client that waits looks for a place.
const WAIT: Duration = Duration::from_millis(50);
/// A request's head has to come within this time, also the first of a new connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that a request's head may take.
const HEAD_BYTES: usize = 64 << 10;
/// A client that takes nothing for so long is let go: it holds a connection and keeps a blob from being evicted.
const IDLE: Duration = Duration::from_mins(5);

/// A mirror that listens and doesn't serve yet.
pub(crate) struct Mirror {
    pub(super) listener: TcpListener,
    pub(super) acceptor: Option<TlsAcceptor>,
    pub(super) service: Arc<Service>,
}

impl Mirror {
    /// Where it listens.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop` is cancelled.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let crowd = Crowd::new(CONNECTIONS, 0, GRACE);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        debug!(%error, "a client's connection was cut short");
                    }
                }
                accepted = self.listener.accept() => {
                    let (stream, remote) = match accepted {
                        Ok(accepted) => accepted,
                        // out of files, or the client is gone already
                        Err(error) => {
                            debug!(%error, "a client couldn't be accepted");
                            sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    };
                    // answers are written whole; a small one mustn't wait for an acknowledgement
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

/// A place for who comes from this address. There is always one soon: a client that asks for nothing gives way, and an
/// answer ends, if only because its client takes nothing.
async fn place(crowd: &Crowd, address: IpAddr) -> Place {
    loop {
        if let Some(place) = crowd.enter(address, Instant::now()) {
            return place;
        }
        sleep(WAIT).await;
    }
}

/// Speaks with one client.
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

/// Returns when nothing moved for too long.
async fn silent(pulse: &Pulse) {
    loop {
        let silence = pulse.silence();
        if silence >= IDLE {
            return;
        }
        sleep(IDLE.saturating_sub(silence)).await;
    }
}

/// Speaks with one client until either ends.
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
