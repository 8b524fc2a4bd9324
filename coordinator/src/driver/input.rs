//! Inputs of the driver: everything that the driver is told.

use std::{net::SocketAddr, time::Duration};

use proto::{Digest, HostId, message};
use tokio::{sync::oneshot, task::JoinError};
use tracing::error;

use super::{ask::Ask, order::Orders, refusals::Refused};
use crate::resolve::Granted;

/// The most inputs that wait for the driver: one report from each of about 1,000 hosts. Sessions wait while the queue
/// is full.
pub(crate) const INBOX: usize = 1_024;

/// One input of the driver.
#[derive(Debug)]
pub(crate) enum Input {
    /// A host's session is up.
    Opened(Box<Opened>),
    /// A host reported.
    Reported {
        host: HostId,
        session: u64,
        /// The report after [`intake::cut`](crate::intake::cut) has bounded its lists.
        report: Box<message::Report>,
        /// Receives how long the driver took to handle the report.
        handled: oneshot::Sender<Duration>,
    },
    /// A session ended.
    Closed { host: HostId, session: u64 },
    /// A handshake failed because one side rejected the other's certificate, or wasn't allowed in.
    Refused(Refused),
    /// An operator or the cluster asks for something.
    Asked(Ask),
    /// Each image that operators asked for before this start has been asked for again, or was given up.
    Recalled,
    /// An attempt at a pull token ended; `granted` is `None` when the attempt failed.
    Token {
        image: Digest,
        granted: Option<Granted>,
    },
    /// Time passed.
    Tick,
}

impl Input {
    /// The input that a job produced; `None` when the job died. The program ends then, because whoever needs the answer
    /// would wait for ever. A new start asks again.
    pub(super) fn finished(job: Result<Self, JoinError>) -> Option<Self> {
        job.map_err(|error| error!(%error, "a job of the driver died; the coordinator ends"))
            .ok()
    }
}

/// A new session.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) host: HostId,
    pub(crate) session: u64,
    /// The address from which the connection comes.
    pub(crate) remote: SocketAddr,
    pub(crate) hello: message::Hello,
    pub(crate) orders: Orders,
}
