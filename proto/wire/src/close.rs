//! How a connection ends: the codes on the wire, and what each side knows about the end.

use std::fmt;

use quinn::{ConnectionError, VarInt};

use crate::fault;

/// Why one side closed a connection. On the wire, this is the application error code of QUIC (RFC 9000 §20.2).
///
/// Codes may be added. A code that this version doesn't know arrives as [`CloseCode::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseCode {
    /// The side has nothing more to say, or its program dropped the connection (code 0).
    Done,
    /// The host isn't, or is no longer, on the list of authorised hosts (1).
    Unauthorised,
    /// The certificate doesn't name one host (2).
    Identity,
    /// The other side broke the protocol (3).
    Protocol,
    /// The side's program is stopping (4).
    Stopping,
    /// The side has as many connections as it allows (5).
    Busy,
    /// A newer connection of the same host took this one's place (6).
    Replaced,
    /// Something broke on the side that closed the connection (7).
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
    /// The peer closed the connection.
    #[error("closed by peer: {code}{}", colon(reason))]
    Peer {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words: at most 200 characters, without control characters.
        reason: String,
    },
    /// This program closed the connection, or its endpoint.
    #[error("closed here: {code}{}", colon(reason))]
    Local {
        /// This program's code.
        code: CloseCode,
        /// This program's words.
        reason: String,
    },
    /// Nothing came from the peer within the idle timeout. The peer is dead, asleep or cut off.
    #[error("timed out: nothing came from the peer")]
    TimedOut,
    /// The peer doesn't know the connection any more, because it restarted.
    #[error("reset by peer: it has restarted")]
    Reset,
    /// QUIC or TLS failed, on either side.
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

/// The reason in an error of quinn.
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
