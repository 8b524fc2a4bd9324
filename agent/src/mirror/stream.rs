//! A blob on its way to a client. It sends bytes that may leave, waits for the others, and breaks the connection when
//! sent bytes turn out false.

use std::{
    fs::File,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::time::timeout;
use wire::Work;

use super::{
    blob::Reading,
    proof::{Proof, Sample},
    share::Share,
};
use crate::metrics::{Metrics, MirrorLabel, MirrorSource, MirrorSourceLabel};

/// The body that hyper sends.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// When a connection last sent something. The connection's watch looks at it.
#[derive(Debug)]
pub(super) struct Pulse {
    born: Instant,
    /// Milliseconds from `born` to the last sign of life.
    at: AtomicU64,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            born: Instant::now(),
            at: AtomicU64::new(0),
        }
    }

    pub(super) fn beat(&self) {
        let now = proto::millis(self.born.elapsed());
        self.at.store(now, Ordering::Relaxed);
    }

    pub(super) fn silence(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(at)
    }
}

/// A blob, or a part of one, on its way to a client.
pub(super) struct Stream {
    reading: Reading,
    file: Arc<File>,
    at: u64,
    end: u64,
    terms: Terms,
    broken: bool,
    metrics: Metrics,
    pulse: Arc<Pulse>,
    share: Share,
}

/// The terms on which a blob leaves.
pub(super) struct Terms {
    /// The result that is counted when every byte has left.
    pub(super) result: &'static str,
    /// Whether the blob was whole when it was asked for.
    pub(super) hit: bool,
    /// The proof that the client's registry still owes. Without it, bytes from elsewhere don't leave.
    pub(super) proof: Option<Proof>,
    /// How long the stream waits for the next bytes before it breaks the connection.
    pub(super) patience: Duration,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let result = if self.at >= self.end {
            self.terms.result
        } else if self.broken {
            "broken"
        } else {
            "left"
        };
        count(&self.metrics, "blob", result);
    }
}

impl Stream {
    /// A stream of the blob's bytes from `start` to `end`.
    pub(super) fn new(
        (reading, file): (Reading, Arc<File>),
        (start, end): (u64, u64),
        terms: Terms,
        (metrics, pulse): (Metrics, Arc<Pulse>),
        share: Share,
    ) -> Self {
        Self {
            reading,
            file,
            at: start,
            end,
            terms,
            broken: false,
            metrics,
            pulse,
            share,
        }
    }

    /// The number of bytes that haven't left yet.
    pub(super) const fn len(&self) -> u64 {
        self.end - self.at
    }

    /// Makes the body of an answer. Until the body has left, the mirror works for its client.
    pub(super) fn body(self: Box<Self>, work: Work) -> Body {
        // a piece is read while the last one is being sent
        let start = Some((Some(self), work));
        let pieces = stream::unfold(start, |state| async {
            let (this, work) = state?;
            let mut this = this?;
            match this.piece().await {
                Ok(None) => None,
                Ok(Some(bytes)) => {
                    // The blob is let go with the last piece, because its client may at once ask for another blob that
                    // needs the room.
                    let rest = (this.at < this.end).then_some(this);
                    Some((Ok(Frame::data(bytes)), Some((rest, work))))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        StreamBody::new(Pin::from(
            Box::new(pieces) as Box<dyn futures_util::Stream<Item = _> + Send>
        ))
        .boxed_unsync()
    }

    /// The next piece. An error breaks the connection.
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        self.pulse.beat();
        if self.at >= self.end {
            return Ok(None);
        }
        loop {
            let ready = self.wait().await?;
            let piece = self.share.piece_bytes();
            let length = usize::try_from(ready - self.at).map_or(piece, |ready| ready.min(piece));
            let (blob, file, at) = (self.reading.blob.clone(), self.file.clone(), self.at);
            // Memory that a reading thread reserved would stay with that thread's part of the allocator.
            let mut bytes = vec![0; length];
            let read = tokio::task::spawn_blocking(move || {
                let may_leave = blob.give(&file, at, &mut bytes)?;
                Ok(may_leave.then_some(bytes))
            });
            let read = read.await.map_err(io::Error::other).flatten();
            let Some(bytes) = read.map_err(|error: io::Error| self.breaks(error.to_string()))?
            else {
                continue;
            };
            self.still_true()?;
            self.passed(length as u64);
            return Ok(Some(bytes.into()));
        }
    }

    /// Makes the registry show that it has the blob. An error breaks the connection.
    async fn prove(&mut self) -> io::Result<()> {
        let Some(proof) = self.terms.proof.clone() else {
            return Ok(());
        };
        let sample = sample(&self.file, proof.size).await?;
        match proof.ask(&sample).await {
            Ok(true) => {
                self.reading.limit(None);
                Ok(())
            }
            Ok(false) => Err(self.breaks("its registry has other bytes".into())),
            Err(error) => Err(self.breaks(error.to_string())),
        }
    }

    /// An error if bytes that left turned out false. The error breaks the connection.
    fn still_true(&mut self) -> io::Result<()> {
        if self.reading.is_misled() {
            return Err(self.breaks("bytes that left turned out false".into()));
        }
        Ok(())
    }

    fn breaks(&mut self, why: String) -> io::Error {
        self.broken = true;
        io::Error::other(why)
    }

    /// Counts this many bytes as sent, by their source.
    fn passed(&mut self, bytes: u64) {
        let end = self.at + bytes;
        while self.at < end {
            let next = (self.at / proto::CHUNK_BYTES + 1) * proto::CHUNK_BYTES;
            let source = if self.terms.hit {
                MirrorSource::Cache
            } else if self.reading.blob.is_ours(self.at) {
                MirrorSource::Origin
            } else {
                MirrorSource::Peers
            };
            let part = if self.terms.hit { end } else { next.min(end) } - self.at;
            self.metrics
                .mirror
                .sent_bytes
                .get_or_create(&MirrorSourceLabel { source })
                .inc_by(part);
            self.at += part;
        }
        self.pulse.beat();
    }

    /// Waits until more bytes may leave, and returns the end of these bytes. An error breaks the connection.
    /// Cancel-safe.
    async fn wait(&mut self) -> io::Result<u64> {
        let mut stalled: Option<Instant> = None;
        loop {
            let trouble = self.reading.news.borrow_and_update().trouble.clone();
            self.still_true()?;
            // other sources brought the rest of a blob that the client's registry began
            if self.reading.is_held_back(self.at) {
                self.prove().await?;
            }
            let ready = self.reading.ready(self.at).min(self.end);
            if ready > self.at {
                if let Some(since) = stalled {
                    let stall = since.elapsed();
                    self.metrics
                        .mirror
                        .stall_seconds
                        .observe(stall.as_secs_f64());
                }
                return Ok(ready);
            }
            if let Some(trouble) = trouble {
                return Err(self.breaks(trouble.to_string()));
            }
            let since = *stalled.get_or_insert_with(Instant::now);
            // shorter than a client's own timeout, so that the client comes again while it still tries
            let left = self.terms.patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                self.metrics
                    .mirror
                    .stall_seconds
                    .observe(since.elapsed().as_secs_f64());
                return Err(self.breaks("nothing came for too long".into()));
            }
            drop(timeout(left, self.reading.news.changed()).await);
        }
    }
}

/// Picks a few bytes of a blob, which its registry has to show.
pub(super) async fn sample(file: &Arc<File>, size: u64) -> io::Result<Sample> {
    let file = file.clone();
    let picked = tokio::task::spawn_blocking(move || Sample::pick(&file, size));
    picked.await.map_err(io::Error::other)?
}

/// Counts an answered request.
pub(super) fn count(metrics: &Metrics, what: &'static str, result: &'static str) {
    metrics
        .mirror
        .requests
        .get_or_create(&MirrorLabel { what, result })
        .inc();
}
