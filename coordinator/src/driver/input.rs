//! What the driver is told.

use std::{net::SocketAddr, time::Duration};

use proto::{Digest, HostId, message};
use tokio::sync::oneshot;

use super::{ask::Ask, order::Orders, refusals::Refused};
use crate::resolve::Granted;

/// Inputs that wait for the driver: a report of each of 1,000 hosts. Sessions wait when it is full.
pub(crate) const INBOX: usize = 1_024;

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A host's session is up.
    Opened(Box<Opened>),
    /// A host reported.
    Reported {
        host: HostId,
        session: u64,
        /// As [`intake::cut`](crate::intake::cut) leaves it.
        report: Box<message::Report>,
        /// Hears how long it took to handle.
        handled: oneshot::Sender<Duration>,
    },
    /// A session ended.
    Closed { host: HostId, session: u64 },
    /// A handshake failed because one side didn't take the other.
    Refused(Refused),
    /// An operator or the cluster asks.
    Asked(Ask),
    /// All that operators had asked for before this start was asked for again.
    Recalled,
    /// A pull token arrived, or didn't.
    Token {
        image: Digest,
        granted: Option<Granted>,
    },
    /// Time passed.
    Tick,
}

/// A new session.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) host: HostId,
    pub(crate) session: u64,
    /// Where the connection comes from.
    pub(crate) remote: SocketAddr,
    pub(crate) hello: message::Hello,
    pub(crate) orders: Orders,
}
