//! A connection to one authenticated host: streams, its end, and what it has carried.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use proto::HostId;

use crate::{
    close::{CloseCode, CloseReason},
    inner::{Inner, Listing},
    stream::{Receiver, Sender},
};

/// A connection to a host whose identity is proved. Cloning is cheap; all clones are the same connection.
///
/// It ends when [`Connection::close`] is called, when the peer or the network ends it, or when the last clone and the
/// last of its streams are dropped.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<Inner>);

/// What a connection has carried, and how its path is. Counters run from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Current estimate of the round trip.
    pub round_trip: Duration,
    /// UDP payload that the path carries at present, in bytes.
    pub mtu: u16,
    /// Congestion window, bytes.
    pub congestion_window: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that were sent and lost.
    pub lost_packets: u64,
    /// UDP payload sent, bytes: data, overhead and repeats.
    pub sent_bytes: u64,
    /// UDP payload received, bytes.
    pub received_bytes: u64,
    /// UDP datagrams received.
    pub received_packets: u64,
    /// System calls that sent them (with segmentation offload one call sends several).
    pub send_calls: u64,
    /// Times that the path stopped carrying packets of the current MTU.
    pub black_holes: u64,
}

impl Connection {
    pub(crate) fn new(
        quinn: quinn::Connection,
        identity: (HostId, SystemTime),
        registry: Weak<dyn Listing>,
        number: u64,
    ) -> Self {
        Self(Arc::new(Inner::new(quinn, identity, registry, number)))
    }

    /// The host at the other end, as its certificate proves.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.0.host
    }

    /// When the certificate was signed that the other end showed, to the second.
    #[must_use]
    pub fn certificate_signed(&self) -> SystemTime {
        self.0.signed
    }

    /// Its address; an IPv4 address is shown as one even on a socket of both families.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.0.quinn.remote_address())
    }

    /// Opens a stream; waits while the peer has as many open as it allows.
    ///
    /// The peer learns of it with the first bytes that are sent on it. Cancel safe.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open(&self) -> Result<(Sender, Receiver), CloseReason> {
        let (send, receive) = self
            .0
            .quinn
            .open_bi()
            .await
            .map_err(|error| self.0.reason(error))?;
        Ok(self.streams(send, receive))
    }

    /// The next stream that the peer opens. Cancel safe.
    ///
    /// Read every accepted stream, or stop it, without waiting for another of the same connection: bytes that nobody
    /// reads fill the window that all its streams share, and then none moves.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept(&self) -> Result<(Sender, Receiver), CloseReason> {
        let (send, receive) = self
            .0
            .quinn
            .accept_bi()
            .await
            .map_err(|error| self.0.reason(error))?;
        Ok(self.streams(send, receive))
    }

    /// Waits for the end of the connection. Cancel safe.
    pub async fn closed(&self) -> CloseReason {
        let error = self.0.quinn.closed().await;
        self.0.reason(error)
    }

    /// Waits until nothing has arrived at `looks` looks in a row, `every` apart. Cancel safe.
    ///
    /// Time passes by looks, not by the clock: a process that wasn't given the processor for a minute has looked once, and
    /// doesn't take its own absence for the peer's. The idle timeout of QUIC goes by the clock, so it has to be longer.
    pub async fn silent(&self, looks: u32, every: Duration) {
        let mut before = self.stats().received_packets;
        let mut silent = 0;
        while silent < looks {
            tokio::time::sleep(every).await;
            let received = self.stats().received_packets;
            silent = if received == before { silent + 1 } else { 0 };
            before = received;
        }
    }

    /// How it ended; `None` while it stands.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0
            .quinn
            .close_reason()
            .map(|error| self.0.reason(error))
    }

    /// Ends the connection at once: streams break on both sides, unsent bytes are dropped. The peer gets code and
    /// reason; of the reason as much as fits a packet. Later calls do nothing.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    /// What it has carried so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let stats = self.0.quinn.stats();
        Stats {
            round_trip: stats.path.rtt,
            mtu: stats.path.current_mtu,
            congestion_window: stats.path.cwnd,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            received_packets: stats.udp_rx.datagrams,
            send_calls: stats.udp_tx.ios,
            black_holes: stats.path.black_holes_detected,
        }
    }

    fn streams(&self, send: quinn::SendStream, receive: quinn::RecvStream) -> (Sender, Receiver) {
        (
            Sender::new(send, self.0.clone()),
            Receiver::new(receive, self.0.clone()),
        )
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("host", &self.0.host)
            .field("remote_address", &self.remote_address())
            .finish_non_exhaustive()
    }
}

/// An IPv4 address that a socket of both families shows as IPv6, as what it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
