//! Fetching one content from the registry: the blob's bytes are decoded, cut into chunks, linked and stored.
//!
//! The chain is computed as the bytes come. So a chunk can be handed on long before its layer is whole.
//!
//! A connection that breaks costs nothing: the decoder, the hasher and the part of a chunk are kept, and the next
//! connection goes on at the next byte. A host that takes a fetch over goes on by Range behind the last chunk that it
//! holds. That chunk's link remembers where in the blob its last block starts. Only this block comes again, and it has
//! to match the end of the chunk that is held.
//!
//! If a recipe proves the content, the registry is asked for the wanted chunks alone, part by part (`span`). Then
//! several hosts may fetch a range of the chunks each. A fetch of a range ends when the range is here. It is given up
//! when anything is wrong with the recipe or with the bytes: a fetch of the whole content finds out what.
//!
//! If the bytes turn out false, the fetch starts once more from the beginning, and trusts nothing that is held. By then
//! other hosts have the links that this host made of the false bytes, under this host's name. The others find the links
//! false when their copies are whole.

mod assembly;
mod end;
mod job;
mod persistence;
mod source;
mod span;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use origin::OriginError;
use proto::Digest;
use sha2::Digest as _;
use tokio::time::{sleep, timeout};
use tracing::debug;

use self::{
    assembly::Assembly,
    job::Broke,
    persistence::{Next, Persistence},
    source::{OpenError, Part, Pieces, Source},
    span::{Ends, NEAR_BYTES, SLACK_BYTES},
};
pub(crate) use self::{
    end::{Failure, FetchEnd},
    job::{Job, News},
};
use crate::registries::Access;

/// What little is left of a connection is waited for no longer than a new connection takes at worst.
const REST_WITHIN: Duration = Duration::from_secs(1);

/// Fetches the missing chunks of a content, one by one, and reports its progress to [`Job::inbox`].
pub(crate) async fn run(source: &impl Source, job: &mut Job) -> FetchEnd {
    let seed = u64::from_be_bytes(*job.content.as_bytes().first_chunk().unwrap_or(&[0; 8]))
        ^ job.me.key().0;
    let mut persistence = Persistence::new(Instant::now(), seed);
    let mut reading = None;
    let (mut wholes, mut ends) = (Wholes::default(), Ends::default());
    loop {
        let before = job.moved.load(Ordering::Relaxed);
        let access = job.access.borrow_and_update().clone();
        let attempt = Attempt {
            source,
            access: &access,
            from_start: persistence.distrusts(),
            wholes: &mut wholes,
            ends: &mut ends,
        };
        let Err(broke) = attempt.run(job, &mut reading).await else {
            return FetchEnd::Done;
        };
        let new = job.moved.load(Ordering::Relaxed) - before;
        let next = persistence.after(Instant::now(), broke, new, access.has_token());
        if let Some(end) = follow(next, job, &access).await {
            return end;
        }
    }
}

/// Waits for the next attempt, and reports the reason. Returns the end, if there is no next attempt.
async fn follow(next: Next, job: &mut Job, tried: &Access) -> Option<FetchEnd> {
    let news = match &next {
        Next::End(end) => return Some(end.clone()),
        Next::StartAgain { error } if job.range.is_some() => {
            debug!(content = %job.content, error, "giving up a range");
            return Some(FetchEnd::Unwanted);
        }
        Next::StartAgain { error } => {
            debug!(content = %job.content, error, "starting again from the blob's beginning");
            job.doubted = true;
            Some(News::Doubted)
        }
        Next::Again { news } | Next::AwaitAccess { news, .. } => news.clone(),
        Next::Pause { news, .. } => Some(news.clone()),
    };
    if let Some(news) = news
        && job.tell(news).await.is_err()
    {
        return Some(FetchEnd::Unwanted);
    }
    match next {
        Next::Pause { wait, .. } => sleep(wait).await,
        Next::AwaitAccess { within, .. } => {
            let same = *job.access.borrow() == *tried;
            if same && timeout(within, job.access.changed()).await.is_err() {
                debug!(content = %job.content, "no newer access; asking once more");
            }
        }
        Next::End(_) | Next::StartAgain { .. } | Next::Again { .. } => {}
    }
    None
}

/// The part of a blob that came so far. It is kept when a connection breaks.
struct Reading {
    assembly: Assembly,
    /// The hash of the registry's own bytes, for a blob that is read from its beginning. It tells a damaged copy from a
    /// wrong manifest.
    hash: Option<sha2::Sha256>,
    /// The offset of the next byte in the blob.
    at: u64,
}

impl Reading {
    async fn begin(job: &Job, from_start: bool) -> Self {
        let (assembly, at) = Assembly::begin(job, from_start).await;
        Self {
            assembly,
            hash: (at == 0).then(sha2::Sha256::new),
            at,
        }
    }

    /// Whether the next chunks are here meanwhile, so that it may be better to go on behind them. Without a recipe one
    /// chunk isn't worth it.
    fn is_behind(&self, job: &Job) -> bool {
        let one = u32::from(!job.is_by_recipe());
        job.first_missing() > self.assembly.next() + one
    }

    /// Goes on behind the chunks that are here, if that is more than `least` bytes further on in the blob.
    async fn passed(&self, job: &Job, least: u64) -> Option<Self> {
        let mut ahead = Self::begin(job, false).await;
        if ahead.at <= self.at.saturating_add(least) {
            return None;
        }
        ahead.assembly.count(self.assembly.unreported());
        Some(ahead)
    }

    /// Goes on where a connection may begin best: where this one ended, or behind the chunks that are here.
    async fn go_on(self, job: &Job) -> Self {
        let ahead = match self.is_behind(job) {
            true => self.passed(job, 0).await,
            false => None,
        };
        ahead.unwrap_or(self)
    }
}

/// The cost, in one fetch, of a registry that gives a blob from its beginning only.
#[derive(Debug, Default)]
struct Wholes {
    /// Bytes that were read from the blob's beginning.
    bytes: u64,
    /// Bytes of the longest such connection.
    longest_bytes: u64,
    /// Such connections that ended before the first new byte.
    vain: u32,
    /// A part was asked for, and the whole blob came.
    no_parts: bool,
}

impl Wholes {
    /// Whether to read the blob from its beginning once more, when `from` bytes of it are here. A fetch costs about one
    /// blob at most: another host may be luckier, and the coordinator bounds the number of tries.
    const fn may_go_on(&self, from: u64, blob_size: u64) -> bool {
        if !self.no_parts {
            return true;
        }
        from == 0 || (self.vain < 2 && self.bytes.saturating_add(from) <= blob_size)
    }

    fn ended(&mut self, bytes: u64, new: bool) {
        self.bytes += bytes;
        self.longest_bytes = self.longest_bytes.max(bytes);
        self.vain += u32::from(!new && bytes > 0);
    }

    fn cut_short(&self, what: String, start: u64) -> Broke {
        Broke::CutShort(OriginError::Range {
            what,
            start,
            cause: format!(
                "it comes from its beginning only, and connections end after {}",
                proto::figure::Bytes(self.longest_bytes)
            ),
        })
    }
}

/// One connection to the registry.
struct Attempt<'a, S> {
    source: &'a S,
    access: &'a Access,
    /// Nothing that is held is trusted: everything comes again.
    from_start: bool,
    wholes: &'a mut Wholes,
    ends: &'a mut Ends,
}

impl<S: Source> Attempt<'_, S> {
    /// Reads on from the end of `kept`, or from behind the chunks that are held. If a connection breaks, the bytes that
    /// came stay in `kept`.
    async fn run(self, job: &mut Job, kept: &mut Option<Reading>) -> Result<(), Broke> {
        let (blob, blob_size) = job.blob();
        if !self.from_start && job.has_all_by_recipe() {
            return Ok(());
        }
        let mut reading = match kept.take() {
            Some(reading) if self.from_start => reading,
            Some(reading) => reading.go_on(job).await,
            None => Reading::begin(job, self.from_start).await,
        };
        if let Some(range) = job.range
            && (!job.is_by_recipe() || reading.assembly.next() < range.from())
        {
            debug!(content = %job.content, "the recipe gives no place to begin a range at; giving it up");
            return Err(Broke::Unwanted);
        }
        let from = reading.at;
        let may_end = !self.from_start && !self.wholes.no_parts;
        let wanted = may_end.then(|| self.ends.span(job, reading.assembly.next(), from));
        let part = Part {
            reference: &job.reference,
            blob: &blob,
            from,
            end: wanted.map_or(blob_size, |span| span.end),
            size: blob_size,
        };
        // the limit is known without asking: bytes that come before the answer's head is read cost too
        if !self.wholes.may_go_on(from, blob_size) {
            *kept = Some(reading);
            let what = self.source.name(&part, self.access);
            return Err(self.wholes.cut_short(what, from));
        }
        let mut pieces = match self.source.open(&part, self.access).await {
            Ok(pieces) => pieces,
            Err(OpenError::Settings(error)) => return Err(Broke::Settings(error)),
            Err(OpenError::Origin(error)) => {
                *kept = Some(reading);
                return Err(error.into());
            }
        };
        let from_beginning = pieces.come_from_beginning();
        let is_whole = from_beginning || (from == 0 && pieces.end() == blob_size);
        self.wholes.no_parts |= from_beginning;
        if is_whole && !self.wholes.may_go_on(from, blob_size) {
            *kept = Some(reading);
            let what = self.source.name(&part, self.access);
            return Err(self.wholes.cut_short(what, from));
        }
        let may_pass = !self.from_start && !self.wholes.no_parts;
        match read(&mut pieces, job, &mut reading, may_pass).await {
            Ok(()) => Ok(()),
            Err(Stopped::Passed(mut ahead)) => {
                ahead.assembly.count(rest(&mut pieces, reading.at).await);
                *kept = Some(*ahead);
                Err(Broke::Passed)
            }
            Err(Stopped::PartOver) => {
                if wanted.is_some_and(|span| reading.assembly.next() <= span.last) {
                    debug!(content = %job.content, "a part ended before its last chunk: the recipe's places are false");
                    self.ends.missed();
                }
                *kept = Some(reading);
                Err(Broke::Passed)
            }
            Err(Stopped::Broke(Broke::False(error))) => {
                let error = explain(&blob, reading.hash, &mut pieces, error).await;
                Err(Broke::False(error))
            }
            Err(Stopped::Broke(Broke::Origin(error))) => {
                let received = pieces.bytes_received();
                let skipped = received.saturating_sub(reading.at - from);
                reading.assembly.count(skipped);
                if is_whole {
                    self.wholes.ended(received, reading.at > from);
                }
                *kept = Some(reading);
                Err(Broke::Origin(error))
            }
            Err(Stopped::Broke(broke)) => Err(broke),
        }
    }
}

/// Why the reading of one connection stopped before the content was whole.
enum Stopped {
    Broke(Broke),
    /// The next chunks are here. The fetch goes on behind them with this reading.
    Passed(Box<Reading>),
    /// The part that was asked for is over, and the blob isn't.
    PartOver,
}

impl From<Broke> for Stopped {
    fn from(broke: Broke) -> Self {
        Self::Broke(broke)
    }
}

/// Reads a connection to its end.
async fn read(
    pieces: &mut impl Pieces,
    job: &mut Job,
    reading: &mut Reading,
    may_pass: bool,
) -> Result<(), Stopped> {
    let (_, blob_size) = job.blob();
    while let Some(bytes) = pieces.next().await.map_err(Broke::from)? {
        let length = bytes.len() as u64;
        if let Some(hash) = &mut reading.hash {
            hash.update(&bytes);
        }
        reading.at += length;
        reading.assembly.count(length);
        job.moved.fetch_add(length, Ordering::Relaxed);
        let next = reading.assembly.next();
        reading.assembly.take(job, bytes).await?;
        if !may_pass || reading.assembly.next() == next {
            continue;
        }
        // the rest was here, or came from peers
        if job.has_all_by_recipe() {
            rest(pieces, reading.at).await;
            return Ok(());
        }
        // by a recipe a connection ends soon behind the last wanted chunk
        let least = if job.is_by_recipe() { SLACK_BYTES } else { 0 };
        if reading.is_behind(job)
            && let Some(ahead) = reading.passed(job, least).await
        {
            return Err(Stopped::Passed(Box::new(ahead)));
        }
    }
    if pieces.end() < blob_size {
        return Err(Stopped::PartOver);
    }
    Ok(reading.assembly.finish(job).await?)
}

/// Reads what little is left of a connection, which the next request then uses. Returns its bytes.
async fn rest(pieces: &mut impl Pieces, at: u64) -> u64 {
    let mut bytes = 0;
    if pieces.end().saturating_sub(at) <= NEAR_BYTES {
        let reading = async {
            while let Ok(Some(piece)) = pieces.next().await {
                bytes += piece.len() as u64;
            }
        };
        if timeout(REST_WITHIN, reading).await.is_err() {
            debug!("the rest of a connection doesn't come; leaving it");
        }
    }
    bytes
}

/// Says whether the registry's bytes are damaged or the manifest is wrong. Reads the rest of the blob for that, if
/// needed.
async fn explain(
    blob: &Digest,
    hash: Option<sha2::Sha256>,
    pieces: &mut impl Pieces,
    error: String,
) -> String {
    let Some(mut hash) = hash else {
        return format!("layer {blob}: {error}");
    };
    while let Ok(Some(bytes)) = pieces.next().await {
        hash.update(&bytes);
    }
    if Digest::from_bytes(hash.finalize().into()) == *blob {
        format!(
            "layer {blob}: {error}; the registry holds exactly this blob, so the image was pushed broken: push it again"
        )
    } else {
        format!(
            "layer {blob}: {error}; the registry's bytes don't match the blob's digest, so its copy is damaged"
        )
    }
}

#[cfg(test)]
mod tests;
