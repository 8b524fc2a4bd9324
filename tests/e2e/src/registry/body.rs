//! A blob's bytes on their way out: paced, counted, and perhaps spoilt.

use std::{
    future::pending,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use hyper::body::Frame;
use proto::Digest;
use tokio::time::sleep;

use super::{
    lock::lock,
    pace::Pace,
    shared::{Answer, Shared},
    store::Blob,
};

/// What the socket gets to take what hyper holds, before the connection is broken.
const FLUSH: Duration = Duration::from_millis(20);

/// How a body ends before its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    Close,
    Stall,
}

/// What is to be sent of a blob.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) digest: Digest,
    pub(super) blob: Blob,
    /// Offsets in the blob.
    pub(super) from: u64,
    pub(super) to: u64,
    /// After so many bytes of this answer.
    pub(super) ending: Option<(u64, Ending)>,
    /// Offsets in the blob of bytes to change.
    pub(super) corrupt: Vec<u64>,
    /// Bytes to append.
    pub(super) overrun: u64,
}

struct Sending {
    shared: Arc<Shared>,
    plan: Plan,
    at: u64,
    pace: Pace,
    /// Its number among the registry's answers.
    answer: usize,
    _slot: Slot,
}

/// Counts what is being sent at a time.
struct Slot(Arc<Shared>);

impl Slot {
    fn new(shared: Arc<Shared>) -> Self {
        let sending = shared.sending.fetch_add(1, Ordering::Relaxed) + 1;
        {
            let mut counters = lock(&shared.counters);
            counters.most_at_once = counters.most_at_once.max(sending);
        }
        Self(shared)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The frames of an answer.
pub(super) fn frames(
    shared: &Arc<Shared>,
    plan: Plan,
) -> impl Stream<Item = io::Result<Frame<Bytes>>> + Send + use<> {
    let began = std::time::Instant::now();
    let answer = {
        let mut counters = lock(&shared.counters);
        counters.answers.push(Answer {
            digest: plan.digest,
            from: plan.from,
            bytes: 0,
            began,
            sent: began,
        });
        counters.answers.len() - 1
    };
    let sending = Sending {
        shared: Arc::clone(shared),
        at: plan.from,
        answer,
        plan,
        pace: Pace::new(shared.answer_rate.load(Ordering::Relaxed)),
        _slot: Slot::new(Arc::clone(shared)),
    };
    stream::try_unfold(sending, |mut sending| async move {
        let bytes = sending.next().await?;
        Ok(bytes.map(|bytes| (Frame::data(bytes), sending)))
    })
}

impl Sending {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let end = self.plan.to + self.plan.overrun;
        let cut = match self.plan.ending {
            Some((after, ending)) if self.plan.from + after <= end => {
                let cut = self.plan.from + after;
                if self.at == cut {
                    match ending {
                        Ending::Stall => pending::<()>().await,
                        Ending::Close => {
                            // What was given to hyper so far is on its way then; nothing tells when.
                            sleep(FLUSH).await;
                            return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
                        }
                    }
                }
                cut
            }
            _ => end,
        };
        if self.at == end {
            return Ok(None);
        }
        let step = self.shared.pace.step().min(self.pace.step());
        let inside = self.at < self.plan.to;
        let limit = if inside { cut.min(self.plan.to) } else { cut };
        let length = step.min(limit - self.at);
        // At most FRAME_BYTES, which also makes reading it from a warm file a matter of microseconds.
        let size = usize::try_from(length).map_err(io::Error::other)?;
        let mut bytes = if inside {
            self.plan.blob.read(self.at, size)?
        } else {
            vec![0; size].into()
        };
        for at in &self.plan.corrupt {
            if let Some(inside) = at.checked_sub(self.at).filter(|inside| *inside < length) {
                let mut changed = BytesMut::from(&bytes[..]);
                changed[usize::try_from(inside).map_err(io::Error::other)?] ^= 1;
                bytes = changed.freeze();
            }
        }
        self.shared.pace.pass(length).await;
        self.pace.pass(length).await;
        self.at += length;
        let mut counters = lock(&self.shared.counters);
        counters.bytes += length;
        counters.blobs.entry(self.plan.digest).or_default().bytes += length;
        // absent when the counters were reset meanwhile
        if let Some(answer) = counters.answers.get_mut(self.answer)
            && answer.digest == self.plan.digest
        {
            answer.bytes += length;
            answer.sent = std::time::Instant::now();
        }
        Ok(Some(bytes))
    }
}
