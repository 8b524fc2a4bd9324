//! A connection to one authenticated host: streams, its end, and what it has carried.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use proto::HostId;
use quinn::{ConnectionError, VarInt};

use crate::{
    endpoint::Registry,
    fault,
    stream::{Receiver, Sender},
};

/// A connection to a host whose identity is proved. Cloning is cheap; all clones are the same connection.
///
/// It ends when [`Connection::close`] is called, when the peer or the network ends it, or when the last clone and the
/// last of its streams are dropped.
#[derive(Clone)]
pub struct Connection(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) quinn: quinn::Connection,
    host: HostId,
    /// When its certificate was signed.
    signed: SystemTime,
    /// What we closed it with: quinn doesn't remember.
    ended: OnceLock<(CloseCode, String)>,
    /// Streams of this connection that have carried bulk bytes.
    bulk_streams: AtomicU32,
    /// Where this connection is listed, and under which number.
    registry: Weak<Registry>,
    number: u64,
}

/// Why one side closed a connection, as it travels: the application error code of QUIC (RFC 9000 §20.2).
///
/// Codes may be added; one that this version doesn't know arrives as [`CloseCode::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseCode {
    /// Nothing more to say, or the other program dropped the connection (code 0).
    Done,
    /// The host isn't, or is no longer, on the list of authorised hosts (1).
    Unauthorised,
    /// The certificate doesn't name one host (2).
    Identity,
    /// The other side broke the protocol (3).
    Protocol,
    /// The program is stopping (4).
    Stopping,
    /// As many connections as allowed (5).
    Busy,
    /// A newer connection of the same host took this one's place (6).
    Replaced,
    /// Something broke on the side that closed (7).
    Failed,
    /// A code that this version doesn't know.
    Unknown(u32),
}

impl CloseCode {
    pub(crate) fn wire(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::Unauthorised => 1,
            Self::Identity => 2,
            Self::Protocol => 3,
            Self::Stopping => 4,
            Self::Busy => 5,
            Self::Replaced => 6,
            Self::Failed => 7,
            Self::Unknown(code) => code,
        })
    }

    pub(crate) fn from_wire(code: VarInt) -> Self {
        match code.into_inner() {
            0 => Self::Done,
            1 => Self::Unauthorised,
            2 => Self::Identity,
            3 => Self::Protocol,
            4 => Self::Stopping,
            5 => Self::Busy,
            6 => Self::Replaced,
            7 => Self::Failed,
            code => Self::Unknown(u32::try_from(code).unwrap_or(u32::MAX)),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Unauthorised => "not authorised",
            Self::Identity => "certificate doesn't name one host",
            Self::Protocol => "protocol broken",
            Self::Stopping => "stopping",
            Self::Busy => "too many connections",
            Self::Replaced => "replaced by a newer connection",
            Self::Failed => "failed",
            Self::Unknown(code) => return write!(f, "code {code}"),
        })
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The peer closed it.
    #[error("closed by peer: {code}{}", colon(reason))]
    Peer {
        /// Why.
        code: CloseCode,
        /// Its words: at most 200 characters, none of them a control character.
        reason: String,
    },
    /// We closed it, or the endpoint that it belongs to.
    #[error("closed here: {code}{}", colon(reason))]
    Local {
        /// Why.
        code: CloseCode,
        /// Our words.
        reason: String,
    },
    /// Nothing came from the peer within the idle timeout: it is dead, asleep or cut off.
    #[error("timed out: nothing came from the peer")]
    TimedOut,
    /// The peer doesn't know the connection any more: it restarted.
    #[error("reset by peer: it has restarted")]
    Reset,
    /// QUIC or TLS gave up, on either side.
    #[error("transport failed: {0}")]
    Transport(String),
}

fn colon(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

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
        (host, signed): (HostId, SystemTime),
        registry: Weak<Registry>,
        number: u64,
    ) -> Self {
        Self(Arc::new(Inner {
            quinn,
            host,
            signed,
            ended: OnceLock::new(),
            bulk_streams: AtomicU32::new(0),
            registry,
            number,
        }))
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

impl Inner {
    /// The priority of the next stream with bulk bytes: below all messages, and below every such stream before it.
    pub(crate) fn bulk_priority(&self) -> i32 {
        let before = self.bulk_streams.fetch_add(1, Ordering::Relaxed);
        // two billion chunks of a MiB later the order starts anew: then one of them waits for a newer one
        -1 - i32::try_from(before & 0x7fff_fffe).unwrap_or(0)
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        if self.quinn.close_reason().is_none() && self.ended.set((code, reason.to_owned())).is_ok()
        {
            self.quinn.close(code.wire(), reason.as_bytes());
        }
    }

    /// quinn's account of the end, and what we know besides.
    pub(crate) fn reason(&self, error: ConnectionError) -> CloseReason {
        match (error, self.ended.get()) {
            (ConnectionError::LocallyClosed, Some((code, reason))) => CloseReason::Local {
                code: *code,
                reason: reason.clone(),
            },
            (error, _) => reason(error),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(self.number);
        }
    }
}

/// quinn's account of the end of a connection.
pub(crate) fn reason(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::ApplicationClosed(close) => CloseReason::Peer {
            code: CloseCode::from_wire(close.error_code),
            reason: fault::clean_bytes(&close.reason),
        },
        ConnectionError::LocallyClosed => CloseReason::Local {
            code: CloseCode::Stopping,
            reason: "endpoint closed".to_owned(),
        },
        ConnectionError::TimedOut => CloseReason::TimedOut,
        ConnectionError::Reset => CloseReason::Reset,
        error @ (ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::CidsExhausted) => {
            CloseReason::Transport(fault::clean(&error.to_string()))
        }
    }
}

/// An IPv4 address that a socket of both families shows as IPv6, as what it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
