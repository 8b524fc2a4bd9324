//! A connection to one authenticated host: its streams, its end, and what it has carried.

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
/// The connection ends when [`Connection::close`] is called, when the peer or the network ends it, or when the last
/// clone and the last stream are dropped.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<Inner>);

/// What a connection has carried, and the state of its path. Counters start with the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The current estimate of the round trip.
    pub round_trip: Duration,
    /// The UDP payload that the path carries at present, in bytes.
    pub mtu: u16,
    /// The congestion window, in bytes.
    pub congestion_window: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that were sent and lost.
    pub lost_packets: u64,
    /// The UDP payload sent, in bytes: data, overhead and repeats.
    pub sent_bytes: u64,
    /// The UDP payload received, in bytes.
    pub received_bytes: u64,
    /// UDP datagrams received.
    pub received_packets: u64,
    /// System calls for sending. With segmentation offload, one call sends several packets.
    pub send_calls: u64,
    /// How often the path stopped carrying packets of the current MTU.
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

    /// When the other end's certificate was signed, to the second.
    #[must_use]
    pub fn certificate_signed(&self) -> SystemTime {
        self.0.signed
    }

    /// The other end's address. An IPv4 address is shown as one, even on a socket of both families.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        canonical(self.0.quinn.remote_address())
    }

    /// Opens a stream. Waits while the peer has as many streams open as it allows.
    ///
    /// The peer learns of the stream with the first bytes on it. Cancel safe.
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

    /// Waits for the next stream that the peer opens. Cancel safe.
    ///
    /// Read every accepted stream, or stop it, without waiting for another stream of the same connection. Unread bytes
    /// fill the window that all streams of the connection share, and then no stream moves.
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
    /// Time is counted in looks, not by the clock. A process that got no processor time for a minute has looked only
    /// once, and doesn't take its own absence for the peer's. QUIC's idle timeout goes by the clock, so it must be
    /// longer.
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

    /// How the connection ended; `None` while it stands.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0
            .quinn
            .close_reason()
            .map(|error| self.0.reason(error))
    }

    /// Ends the connection at once: streams break on both sides, and unsent bytes are dropped. The peer gets the code,
    /// and as much of the reason as fits a packet. Later calls do nothing.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    /// What the connection has carried so far.
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

/// The IPv4 address, where a socket of both families shows one as IPv6; any other address as it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
