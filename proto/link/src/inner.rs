//! What all clones of a connection and its streams share.

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

/// Where connections are listed while they stand.
pub(crate) trait Listing: Send + Sync {
    /// The last handle of this connection is gone.
    fn forget(&self, number: u64);
}

pub(crate) struct Inner {
    pub(crate) quinn: quinn::Connection,
    pub(crate) host: HostId,
    /// When its certificate was signed.
    pub(crate) signed: SystemTime,
    /// What we closed it with: quinn doesn't remember.
    ended: OnceLock<(CloseCode, String)>,
    /// Streams of this connection that have carried bulk bytes.
    bulk_streams: AtomicU32,
    /// Where this connection is listed, and under which number.
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
