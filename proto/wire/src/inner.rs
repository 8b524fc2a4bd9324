//! The state that all clones of a connection and all its streams share.

use std::{
    sync::{
        OnceLock, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use proto::HostId;
use quinn::ConnectionError;

use crate::close::{self, CloseCode, CloseReason};

/// The list of the connections that stand.
pub(crate) trait Listing: Send + Sync {
    /// Removes a connection whose last handle is gone.
    fn forget(&self, number: u64);
}

pub(crate) struct Inner {
    pub(crate) quinn: quinn::Connection,
    pub(crate) host: HostId,
    /// When the peer's certificate was signed.
    pub(crate) signed: SystemTime,
    /// The code and reason with which this side closed the connection: quinn doesn't remember them.
    ended: OnceLock<(CloseCode, String)>,
    /// How many streams of this connection have carried bulk bytes.
    bulk_streams: AtomicU32,
    /// The list that this connection is on. `number` is its number there.
    registry: Weak<dyn Listing>,
    number: u64,
}

impl Inner {
    pub(crate) fn new(
        quinn: quinn::Connection,
        (host, signed): (HostId, SystemTime),
        registry: Weak<dyn Listing>,
        number: u64,
    ) -> Self {
        Self {
            quinn,
            host,
            signed,
            ended: OnceLock::new(),
            bulk_streams: AtomicU32::new(0),
            registry,
            number,
        }
    }

    /// The priority of the next stream with bulk bytes: below all messages, and below every earlier stream with bulk
    /// bytes.
    pub(crate) fn bulk_priority(&self) -> i32 {
        let before = self.bulk_streams.fetch_add(1, Ordering::Relaxed);
        // after two billion chunks of 1 MiB the order starts anew, and one of them waits for a newer one
        -1 - i32::try_from(before & 0x7fff_fffe).unwrap_or(0)
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        if self.quinn.close_reason().is_none() && self.ended.set((code, reason.to_owned())).is_ok()
        {
            self.quinn.close(code.wire(), reason.as_bytes());
        }
    }

    /// The reason in an error of quinn; where this side closed the connection, its own code and words.
    pub(crate) fn reason(&self, error: ConnectionError) -> CloseReason {
        match (error, self.ended.get()) {
            (ConnectionError::LocallyClosed, Some((code, reason))) => CloseReason::Local {
                code: *code,
                reason: reason.clone(),
            },
            (error, _) => close::reason(error),
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
