//! Fetching one content from the registry: blob bytes in, decoded, cut into chunks, each with its link, stored.
//!
//! The chain is computed as the bytes come, so a chunk can be handed on long before its layer is whole. A connection that
//! breaks costs nothing: decoder, hasher and the part of a chunk are kept, and the next one goes on at the next byte. A host
//! that takes a fetch over goes on by Range behind the last chunk that it holds, whose link remembers where in the blob its
//! last block starts: that block alone comes again, and has to be the end of the chunk that is held. Where the bytes turn out false, it starts once more from the beginning without trusting what is held: by then
//! others have what we made of them, under our name, and find it false when their copies are whole.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use base64::Engine as _;
use bytes::Bytes;
use origin::{
    Backoff, BlobStream, Client, Credentials, OriginError, PlainHttp, Proxies, Reference,
    Repository,
};
use proto::{
    ChunkIndex, Digest, Geometry, HostId, HostKey, Link, Resume, Signed, Source, State, Statement,
    causes,
    image::ContentKind,
    message::{LeaseEnd, OriginFault, PullToken},
    statement::Run,
};
use sha2::Digest as _;
use swarm::event::ContentId;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use crate::{
    apple_lz4::{self, Position, WINDOW_BYTES},
    config::OriginConfig,
    notary::Notary,
    shelf::{self, Arrival, Shelf, Unwritable},
    store::WriteError,
    transfer::{self, Cache, Packed},
};

/// A registry that gives nothing for so long is given up, where no coordinator has taken the lease back long before. What
/// it asks for itself (`Retry-After`, an hour at most) doesn't count.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// First and longest pause between attempts, where the registry doesn't say how long to wait.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// A connection that gave so much before it broke is made again at once.
const WORTH_A_CONNECTION: u64 = 64 << 10;

/// What the coordinator hands down anew before a token expires is on its way for less than this.
const NEW_TOKEN_WITHIN: Duration = Duration::from_secs(5);

/// A registry that refuses who brings no token of the coordinator's is asked once more after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Repositories whose tokens are kept. A host stages a handful of images at one time.
const REPOSITORIES: usize = 64;

/// The registry client and this host's own credentials.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    config: Arc<OriginConfig>,
    client: Client,
    /// Oldest first: handles share connections and tokens. Held for look-ups.
    repositories: Arc<Mutex<Vec<Kept>>>,
}

/// A handle, and what it was made of.
#[derive(Debug)]
struct Kept {
    reference: String,
    access: Access,
    /// This host's own, where that is used. A file that says another one since makes a new handle.
    password: Option<origin::Secret>,
    repository: Repository,
}

/// What is known about reaching a registry: from the coordinator with the order, or from a client of the mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    authorization: Option<origin::Secret>,
    /// A mirror's client gave user and password.
    basic: Option<(String, origin::Secret)>,
    /// This host's own credentials aren't to be used.
    not_ours: bool,
    plain_http: bool,
}

impl Access {
    pub(crate) fn new(token: Option<&PullToken>, plain_http: bool) -> Self {
        let authorization = token.filter(|token| !token.authorization.is_empty());
        Self {
            authorization: authorization
                .map(|token| origin::Secret::new(token.authorization.clone())),
            plain_http,
            ..Self::default()
        }
    }

    /// What a mirror's client may see: by its own `Authorization`, and without one as anybody, or with this host's own
    /// credentials where `lend`.
    pub(crate) fn of_client(authorization: Option<&origin::Secret>, lend: bool) -> Self {
        let Some(header) = authorization else {
            return Self {
                not_ours: !lend,
                ..Self::default()
            };
        };
        // user and password can be changed into tokens where the registry wants those
        let basic = header.expose().split_once(' ').and_then(|(scheme, text)| {
            let text = scheme.eq_ignore_ascii_case("basic").then_some(text)?;
            let pair = base64::engine::general_purpose::STANDARD.decode(text.trim());
            let pair = String::from_utf8(pair.ok()?).ok()?;
            let (user, password) = pair.split_once(':')?;
            Some((user.to_owned(), origin::Secret::new(password.to_owned())))
        });
        Self {
            authorization: basic.is_none().then(|| header.clone()),
            basic,
            not_ours: true,
            plain_http: false,
        }
    }
}

impl Origin {
    pub(crate) fn new(config: &OriginConfig) -> anyhow::Result<Self> {
        let roots = config
            .ca_file
            .as_deref()
            .map(origin::roots_from_pem)
            .transpose()?;
        let proxies = Proxies::new(&config.proxy)?;
        if !proxies.names().is_empty() {
            info!(proxies = ?proxies.names(), "registries are reached through a proxy");
        }
        let system_roots = config.system_roots.then(origin::system_roots);
        let client = Client::new(origin::Config {
            extra_roots: roots.unwrap_or_default(),
            system_roots: system_roots.unwrap_or_default(),
            proxies,
            idle_timeout: config.idle_timeout,
            ..origin::Config::default()
        })?;
        Ok(Self {
            config: Arc::new(config.clone()),
            client,
            repositories: Arc::default(),
        })
    }

    /// The repository of this reference, with the coordinator's token or this host's own credentials.
    pub(crate) fn repository(
        &self,
        reference: &str,
        access: &Access,
    ) -> anyhow::Result<Repository> {
        let parsed: Reference = reference
            .parse()
            .with_context(|| format!("{reference} isn't an image reference"))?;
        let registry = parsed.registry().to_owned();
        let lent = access.authorization.is_none() && access.basic.is_none() && !access.not_ours;
        let own = self.config.credentials.get(&registry).filter(|_| lent);
        // a small file, read each time: a password that was changed holds at once, and the old one isn't kept
        let password = own
            .map(|own| {
                let text = std::fs::read_to_string(&own.password_file).with_context(|| {
                    format!(
                        "reading the password of {registry} from {}",
                        own.password_file.display()
                    )
                })?;
                anyhow::Ok(origin::Secret::new(text.trim_end().to_owned()))
            })
            .transpose()?;
        let mut all = self
            .repositories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let asked = |kept: &Kept| kept.reference == reference && kept.access == *access;
        if let Some(kept) = all
            .iter()
            .find(|kept| asked(kept) && kept.password == password)
        {
            return Ok(kept.repository.clone());
        }
        let mut plain: BTreeSet<_> = self.config.plain_http.iter().cloned().collect();
        if access.plain_http {
            plain.insert(registry);
        }
        let client = self.client.with_plain_http(PlainHttp::Hosts(plain));
        let credentials = match (&access.authorization, &access.basic) {
            (Some(header), _) => Credentials::Header(header.clone()),
            (None, Some((user, password))) => Credentials::Basic {
                user: user.clone(),
                password: password.clone(),
            },
            (None, None) => match (own, &password) {
                (Some(own), Some(password)) => Credentials::Basic {
                    user: own.username.clone(),
                    password: password.clone(),
                },
                _ => Credentials::Anonymous,
            },
        };
        let repository = client.repository(&parsed, credentials)?;
        all.retain(|kept| !asked(kept));
        if all.len() >= REPOSITORIES {
            all.remove(0);
        }
        all.push(Kept {
            reference: reference.to_owned(),
            access: access.clone(),
            password,
            repository: repository.clone(),
        });
        Ok(repository)
    }
}

/// One fetch.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: ContentId,
    pub(crate) content: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) kind: ContentKind,
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) reference: String,
    /// As it was ordered; a newer token comes while the fetch runs.
    pub(crate) access: watch::Receiver<Access>,
    pub(crate) me: HostId,
    /// Signs the links that are made; without it they stay on this host.
    pub(crate) notary: Option<Arc<Notary>>,
    pub(crate) cache: Arc<Cache>,
    /// The chunk to pause before; only rises.
    pub(crate) until: watch::Receiver<u32>,
    /// Bytes of the blob that came and were new, so far.
    pub(crate) moved: Arc<AtomicU64>,
    /// Set once the registry's bytes, or what they were chained to, turned out false: what we made of them is taken back
    /// from the first chunk on that comes otherwise the second time.
    pub(crate) doubted: bool,
    /// Where the fetch says how it goes. A full inbox slows the fetch down.
    pub(crate) inbox: mpsc::Sender<(ContentId, News)>,
}

/// What a fetch says while it runs.
#[derive(Debug)]
pub(crate) enum News {
    /// A chunk came from the registry and is stored.
    Chunk {
        chunk: ChunkIndex,
        /// Bytes of the blob that came for this chunk.
        origin_bytes: u64,
        /// The chunk took the place of another one that was held.
        conflict: bool,
    },
    /// The registry refuses the token that the coordinator handed down. The fetch waits for a newer one.
    Refused { error: String },
    /// A connection broke after it had brought something. The fetch goes on at once.
    Broke { after_bytes: u64, error: String },
    /// An attempt failed. The fetch tries again.
    Trouble {
        error: String,
        /// The pause that the registry asked for.
        retry_after: Option<Duration>,
        /// The pause until the next attempt.
        wait: Duration,
    },
    /// The bytes that came don't end in the digest. The fetch starts again at the blob's beginning.
    Doubted,
    /// The second download differs from the first from this chunk on. This host dropped what it had made of the content
    /// behind that chunk: `chunks` were held, and aren't any more.
    Retracted {
        from: ChunkIndex,
        chunks: Vec<ChunkIndex>,
    },
    /// Images whose files couldn't take a chunk, although others could.
    Unwritable(Vec<Unwritable>),
}

/// How a fetch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchEnd {
    Done,
    /// The registry is given up.
    Failed(Failure),
    /// The registry's bytes are false.
    Bad(String),
    /// This host couldn't store them: nothing is said about the registry.
    Disk(String),
    /// Nobody wants it here any more: the image is gone from this host, or the agent stops.
    Unwanted,
}

/// Why the registry was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// What it says, or why it can't be reached.
    #[error(transparent)]
    Origin(OriginError),
    /// It gives no parts of the content, and its connections end before the content does.
    #[error(transparent)]
    CutShort(OriginError),
    /// This host's settings for it don't do.
    #[error("{0}")]
    Settings(String),
}

impl Failure {
    /// How the coordinator is told: what is about the content or about this host, and what about the registry.
    pub(crate) const fn as_told(&self) -> (LeaseEnd, OriginFault) {
        let error = match self {
            Self::Origin(error) => error,
            Self::CutShort(_) => return (LeaseEnd::OriginFailed, OriginFault::CutShort),
            Self::Settings(_) => return (LeaseEnd::OriginFailed, OriginFault::Host),
        };
        let fault = match error {
            OriginError::SizeMismatch { .. } | OriginError::TooLarge { .. } => {
                return (LeaseEnd::ContentBad, OriginFault::Unspecified);
            }
            OriginError::NotFound { .. } | OriginError::Status { status: 410, .. } => {
                OriginFault::Missing
            }
            OriginError::Unauthorised { .. }
            | OriginError::Forbidden { .. }
            | OriginError::Status { status: 451, .. } => OriginFault::Refused,
            // it may be this host's list of authorities: two hosts say it before the registry is left alone
            OriginError::Tls { .. } => OriginFault::Unspecified,
            // another host may be let through, or have other settings
            OriginError::Proxy {
                is_retryable: false,
                ..
            } => OriginFault::Host,
            error if error.is_retryable() => OriginFault::Unspecified,
            _ => OriginFault::Unusable,
        };
        (LeaseEnd::OriginFailed, fault)
    }
}

/// Why an attempt ended before the content was whole.
#[derive(Debug)]
enum Broke {
    Origin(OriginError),
    /// No part is given, and to read the whole has cost enough.
    CutShort(OriginError),
    /// The bytes don't decode, or don't end in the digest.
    False(String),
    Disk(String),
    /// Peers have brought what comes next: it is worth another request to go on behind that.
    Passed,
    /// The image or the driver is gone.
    Unwanted,
}

impl From<OriginError> for Broke {
    fn from(error: OriginError) -> Self {
        Self::Origin(error)
    }
}

/// Fetches what is missing of a content, chunk by chunk.
pub(crate) async fn run(origin: &Origin, job: &mut Job) -> FetchEnd {
    let mut from_start = false;
    let seed = u64::from_be_bytes(*job.content.as_bytes().first_chunk().unwrap_or(&[0; 8]))
        ^ job.me.key().0;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1, seed);
    let mut progress = Instant::now();
    let mut refused = false;
    let mut reading = None;
    let mut wholes = Wholes::default();
    loop {
        let before = job.moved.load(Ordering::Relaxed);
        let access = job.access.borrow_and_update().clone();
        let repository = match origin.repository(&job.reference, &access) {
            Ok(repository) => repository,
            Err(error) => return FetchEnd::Failed(Failure::Settings(causes(&*error))),
        };
        let broke = match attempt(&repository, job, from_start, &mut reading, &mut wholes).await {
            Ok(()) => return FetchEnd::Done,
            Err(broke) => broke,
        };
        let new = job.moved.load(Ordering::Relaxed) - before;
        if new > 0 {
            progress = Instant::now();
            refused = false;
            backoff.succeeded();
        }
        match broke {
            Broke::Unwanted => return FetchEnd::Unwanted,
            Broke::Passed => {}
            Broke::Disk(error) => return FetchEnd::Disk(error),
            Broke::CutShort(error) => return FetchEnd::Failed(Failure::CutShort(error)),
            // peers may have misled us about what is held or where to resume: clear them before blaming the registry
            Broke::False(error) if !from_start => {
                debug!(content = %job.content, error, "starting again from the blob's beginning");
                from_start = true;
                job.doubted = true;
                if job.tell(News::Doubted).await.is_err() {
                    return FetchEnd::Unwanted;
                }
            }
            Broke::False(error) => return FetchEnd::Bad(error),
            // a token may have expired amid the layer: the one after it has come, or comes any moment
            Broke::Origin(
                error @ (OriginError::Unauthorised { .. } | OriginError::Forbidden { .. }),
            ) if !refused => {
                refused = true;
                let word = News::Refused {
                    error: error.to_string(),
                };
                if access.authorization.is_some() && job.tell(word).await.is_err() {
                    return FetchEnd::Unwanted;
                }
                // a newer one comes from the coordinator only where it hands them down
                let within = match access.authorization {
                    Some(_) => NEW_TOKEN_WITHIN,
                    None => ASK_AGAIN_AFTER,
                };
                let same = *job.access.borrow() == access;
                if same && timeout(within, job.access.changed()).await.is_err() {
                    debug!(content = %job.content, "no newer access; asking once more");
                }
            }
            Broke::Origin(error) if !error.is_retryable() => {
                return FetchEnd::Failed(Failure::Origin(error));
            }
            Broke::Origin(error) if new >= WORTH_A_CONNECTION && error.retry_after().is_none() => {
                let broken = News::Broke {
                    after_bytes: new,
                    error: error.to_string(),
                };
                if job.tell(broken).await.is_err() {
                    return FetchEnd::Unwanted;
                }
            }
            Broke::Origin(error) => {
                if progress.elapsed() > GIVE_UP_AFTER {
                    return FetchEnd::Failed(Failure::Origin(error));
                }
                let retry_after = error.retry_after();
                let wait = backoff.delay(retry_after);
                let trouble = News::Trouble {
                    error: error.to_string(),
                    retry_after,
                    wait,
                };
                if job.tell(trouble).await.is_err() {
                    return FetchEnd::Unwanted;
                }
                sleep(wait).await;
                // while it wants to be left alone, it doesn't fail
                progress += retry_after.unwrap_or_default();
            }
        }
    }
}

impl Job {
    /// The first chunk that some shelf lacks.
    fn first_missing(&self) -> u32 {
        let missing = |shelf: &Shelf| shelf.held(self.content).first_missing();
        let missing = self.shelves.iter().filter_map(missing).min();
        missing.map_or(self.geometry.chunks(), |chunk| chunk.0)
    }

    async fn tell(&self, news: News) -> Result<(), Broke> {
        let told = self.inbox.send((self.id, news)).await;
        told.map_err(|_| Broke::Unwanted)
    }

    fn blob(&self) -> (Digest, u64) {
        match self.kind {
            ContentKind::RawLayer { blob } => (blob.digest, blob.size),
            ContentKind::Blob => (self.content, self.geometry.size()),
        }
    }
}

/// Where an attempt starts.
struct Start {
    chunk: u32,
    state: State,
    blob_offset: u64,
    decoder: Decoder,
    /// Raw bytes that have to come before the chunk: the end of the one before, which is held.
    known: Vec<u8>,
    /// The link that it goes on from, where somebody answers for that.
    base: Option<Signed>,
}

/// Turns blob bytes into raw bytes.
enum Decoder {
    Lz4(Box<apple_lz4::Decoder>),
    Plain,
}

/// What came of a blob so far. Kept when a connection breaks.
struct Reading {
    assembly: Assembly,
    /// Of a blob that is read from its beginning, the registry's own bytes are checked too: it tells a damaged copy from a
    /// wrong manifest.
    hash: Option<sha2::Sha256>,
    /// Offset in the blob of the next byte.
    at: u64,
}

impl Reading {
    async fn begin(job: &Job, from_start: bool) -> Self {
        let start = if from_start {
            beginning(job)
        } else {
            resume(job).await
        };
        Self {
            hash: (start.blob_offset == 0).then(sha2::Sha256::new),
            at: start.blob_offset,
            assembly: Assembly {
                next: start.chunk,
                state: start.state,
                decoder: start.decoder,
                raw_at: u64::from(start.chunk) * proto::CHUNK_BYTES - start.known.len() as u64,
                known: start.known,
                buffer: Vec::with_capacity(1 << 20),
                marks: Vec::new(),
                unreported: 0,
                ended: false,
                run: job
                    .notary
                    .as_ref()
                    .and_then(|notary| notary.run(&job.content, start.base)),
            },
        }
    }

    /// Whether peers have brought so much meanwhile that it is better to go on behind that.
    fn is_behind(&self, job: &Job) -> bool {
        job.first_missing() > self.assembly.next + 1
    }

    /// Goes on behind what peers have brought, where that is further on in the blob.
    async fn passed(&mut self, job: &Job) -> Option<Self> {
        let mut ahead = Self::begin(job, false).await;
        if ahead.at <= self.at {
            return None;
        }
        ahead.assembly.unreported = self.assembly.unreported;
        Some(ahead)
    }
}

/// What it cost in one fetch that the registry gives a blob from its beginning only.
#[derive(Debug, Default)]
struct Wholes {
    /// Bytes that were read from the blob's beginning.
    bytes: u64,
    /// Of the longest such connection.
    longest_bytes: u64,
    /// Such connections that ended before the first new byte.
    vain: u32,
    /// A part was asked for, and the whole came.
    no_parts: bool,
}

impl Wholes {
    /// Whether to read the blob from its beginning once more, when `from` bytes of it are here. A fetch costs about one blob at
    /// most: another host may have more luck, and the coordinator bounds how often that is tried.
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

async fn attempt(
    repository: &Repository,
    job: &mut Job,
    from_start: bool,
    kept: &mut Option<Reading>,
    wholes: &mut Wholes,
) -> Result<(), Broke> {
    let (blob, blob_size) = job.blob();
    let reading = kept.take();
    let mut reading = match reading.filter(|reading| from_start || !reading.is_behind(job)) {
        Some(reading) => reading,
        None => Reading::begin(job, from_start).await,
    };
    let from = reading.at;
    // known without asking: what comes until the answer's head is read costs too
    if !wholes.may_go_on(from, blob_size) {
        *kept = Some(reading);
        return Err(wholes.cut_short(repository.what_blob(&blob), from));
    }
    let mut stream = match repository.blob(&blob, from, blob_size).await {
        Ok(stream) => stream,
        Err(error) => {
            *kept = Some(reading);
            return Err(error.into());
        }
    };
    let is_whole = from == 0 || stream.comes_from_beginning();
    wholes.no_parts |= from > 0 && is_whole;
    if is_whole && !wholes.may_go_on(from, blob_size) {
        *kept = Some(reading);
        return Err(wholes.cut_short(repository.what_blob(&blob), from));
    }
    let broke = loop {
        match stream.piece().await {
            Ok(Some(bytes)) => {
                let length = bytes.len() as u64;
                if let Some(hash) = &mut reading.hash {
                    hash.update(&bytes);
                }
                reading.at += length;
                reading.assembly.unreported += length;
                job.moved.fetch_add(length, Ordering::Relaxed);
                let next = reading.assembly.next;
                if let Err(broke) = reading.assembly.take(job, bytes).await {
                    break broke;
                }
                let may_pass = !from_start && !wholes.no_parts && reading.assembly.next > next;
                if may_pass
                    && reading.is_behind(job)
                    && let Some(ahead) = reading.passed(job).await
                {
                    *kept = Some(ahead);
                    return Err(Broke::Passed);
                }
            }
            Ok(None) => match reading.assembly.finish(job).await {
                Ok(()) => return Ok(()),
                Err(broke) => break broke,
            },
            Err(error) => break error.into(),
        }
    };
    match broke {
        Broke::False(error) => {
            let error = explain(&blob, reading.hash, &mut stream, error).await;
            Err(Broke::False(error))
        }
        Broke::Origin(error) => {
            let skipped = stream.bytes_received().saturating_sub(reading.at - from);
            reading.assembly.unreported += skipped;
            if is_whole {
                wholes.ended(stream.bytes_received(), reading.at > from);
            }
            *kept = Some(reading);
            Err(Broke::Origin(error))
        }
        broke => Err(broke),
    }
}

/// Says whether the registry's bytes are damaged or the manifest is wrong, reading the rest of the blob where needed.
async fn explain(
    blob: &Digest,
    hash: Option<sha2::Sha256>,
    stream: &mut BlobStream,
    error: String,
) -> String {
    let Some(mut hash) = hash else {
        return format!("layer {blob}: {error}");
    };
    while let Ok(Some(bytes)) = stream.piece().await {
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

fn beginning(job: &Job) -> Start {
    let decoder = match job.kind {
        ContentKind::RawLayer { .. } => {
            Decoder::Lz4(Box::new(apple_lz4::Decoder::new(job.geometry.size())))
        }
        ContentKind::Blob => Decoder::Plain,
    };
    Start {
        chunk: 0,
        state: State::INITIAL,
        blob_offset: 0,
        decoder,
        known: Vec::new(),
        base: None,
    }
}

/// Chunks from the beginning whose links join: where one doesn't, it or the one after it is false, and nothing that rests on
/// it is gone on from. A liar's invention in the middle would make all that follows false, and look like ours.
fn joined(shelf: &Shelf, content: Digest, held: u32) -> u32 {
    let mut state = State::INITIAL;
    for at in 0..held {
        match shelf.link(content, ChunkIndex(at)) {
            Some((link, _)) if link.before == state => state = link.after,
            // the one before it may be the false one
            Some(_) => return at.saturating_sub(1),
            None => return at,
        }
    }
    held
}

/// Starts at the end of the last chunk that is held in an unbroken run from the beginning, if its link says where in the blob
/// that is; blobs start at the first missing chunk.
async fn resume(job: &Job) -> Start {
    let Some(shelf) = job.shelves.first().cloned() else {
        return beginning(job);
    };
    let (content, kind, geometry) = (job.content, job.kind, job.geometry);
    let held = job.first_missing();
    let (_, blob_size) = job.blob();
    let notary = job.notary.clone();
    let found = tokio::task::spawn_blocking(move || {
        let missing = joined(&shelf, content, held);
        let last = missing.checked_sub(1)?;
        let (link, _) = shelf.link(content, ChunkIndex(last))?;
        // nobody believes a link that goes on from what nobody answers for
        let base = signed(notary.as_deref(), &shelf, content, ChunkIndex(last));
        if notary.is_some() && base.is_none() {
            return None;
        }
        if kind == ContentKind::Blob {
            return Some(Start {
                chunk: missing,
                state: link.after,
                blob_offset: geometry.offset(ChunkIndex(missing)),
                decoder: Decoder::Plain,
                known: Vec::new(),
                base,
            });
        }
        let hint = link.resume?;
        // its maker's word: what can't be true isn't followed, and what only is false shows in what it decodes to
        let behind = last.checked_sub(1);
        let behind = behind.and_then(|at| shelf.link(content, ChunkIndex(at)));
        let behind = behind.and_then(|(link, _)| link.resume);
        if !is_plausible(hint, blob_size, behind) {
            return None;
        }
        let Resume {
            blob_offset,
            skip_bytes,
        } = hint;
        let mut before = shelf.read(content, ChunkIndex(last)).ok()??.bytes;
        // the window before the block lies in the same chunk, as both are far smaller than a chunk
        let known = before.split_off(before.len().checked_sub(skip_bytes as usize)?);
        let history = &before[before.len().saturating_sub(WINDOW_BYTES)..];
        let raw_offset = geometry.offset(ChunkIndex(missing)) - known.len() as u64;
        let decoder = apple_lz4::Decoder::resume(
            geometry.size(),
            Position {
                blob_offset,
                raw_offset,
            },
            history,
        );
        Some(Start {
            chunk: missing,
            state: link.after,
            blob_offset,
            decoder: Decoder::Lz4(Box::new(decoder)),
            known,
            base,
        })
    });
    found.await.ok().flatten().unwrap_or_else(|| beginning(job))
}

/// The link of a held chunk, with who answers for it.
fn signed(
    notary: Option<&Notary>,
    shelf: &Shelf,
    content: Digest,
    chunk: ChunkIndex,
) -> Option<Signed> {
    let (link, _) = shelf.link(content, chunk)?;
    notary?.answered(content, chunk, link, &shelf.answer(content, chunk))
}

/// Whether a place to go on from can be one in this blob: inside of it, in a block that ends with or behind the chunk, and
/// behind the place of the chunk before it.
fn is_plausible(hint: Resume, blob_size: u64, previous: Option<Resume>) -> bool {
    let inside = 0 < hint.blob_offset && hint.blob_offset < blob_size;
    let ends_in_block = 0 < hint.skip_bytes && hint.skip_bytes as usize <= WINDOW_BYTES;
    inside
        && ends_in_block
        && previous.is_none_or(|previous| previous.blob_offset < hint.blob_offset)
}

/// Raw bytes on their way into chunks.
struct Assembly {
    next: u32,
    state: State,
    decoder: Decoder,
    /// Raw bytes that have to come before the first chunk, and are left out.
    known: Vec<u8>,
    buffer: Vec<u8>,
    /// Raw and blob offsets of the blocks that start in the buffer, in order.
    marks: Vec<Position>,
    /// Raw offset of what comes next.
    raw_at: u64,
    /// Blob bytes that came and weren't counted with a chunk yet.
    unreported: u64,
    /// The compressed stream came to its proper end.
    ended: bool,
    /// Under which links are signed; absent where this host has no ticket.
    run: Option<Arc<Run>>,
}

impl Assembly {
    async fn take(&mut self, job: &mut Job, bytes: Bytes) -> Result<(), Broke> {
        match &mut self.decoder {
            Decoder::Plain => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let room = job.geometry.len(ChunkIndex(self.next)) as usize - self.buffer.len();
                    if room == 0 {
                        return Err(Broke::False("it is longer than the manifest says".into()));
                    }
                    let (now, later) = rest.split_at(room.min(rest.len()));
                    self.buffer.extend_from_slice(now);
                    rest = later;
                    self.emit_if_full(job).await?;
                }
                Ok(())
            }
            Decoder::Lz4(_) => {
                let mut input = &bytes[..];
                loop {
                    let Decoder::Lz4(decoder) = &mut self.decoder else {
                        return Ok(());
                    };
                    let block = decoder
                        .feed(&mut input)
                        .map_err(|error| Broke::False(error.to_string()))?;
                    let Some(block) = block else { return Ok(()) };
                    self.marks.push(block.start);
                    // The hint or the chunk is another's: what doesn't fit both isn't gone on from, or this host would answer for it.
                    let skip = self.known.len().min(block.raw.len());
                    if self.known[..skip] != block.raw[..skip] {
                        let error = "the end of the chunk that it went on behind came otherwise";
                        return Err(Broke::False(error.into()));
                    }
                    self.known.drain(..skip);
                    self.raw_at += block.raw.len() as u64;
                    // a block is at most 64 KiB, so the buffer holds at most one chunk and one block
                    self.buffer.extend_from_slice(&block.raw[skip..]);
                    self.emit_if_full(job).await?;
                }
            }
        }
    }

    async fn emit_if_full(&mut self, job: &mut Job) -> Result<(), Broke> {
        let compressed = matches!(self.decoder, Decoder::Lz4(_));
        while self.next < job.geometry.chunks() {
            // a layer that goes on behind its last byte is refused: with its last chunk its chain would be closed
            if compressed && !self.ended && self.next + 1 == job.geometry.chunks() {
                return Ok(());
            }
            let length = job.geometry.len(ChunkIndex(self.next)) as usize;
            if self.buffer.len() < length {
                return Ok(());
            }
            let rest = self.buffer.split_off(length);
            let bytes = std::mem::replace(&mut self.buffer, rest);
            self.emit(job, bytes).await?;
        }
        Ok(())
    }

    async fn emit(&mut self, job: &mut Job, bytes: Vec<u8>) -> Result<(), Broke> {
        let chunk = ChunkIndex(self.next);
        // paused here while what was fetched is being spread
        if job.until.wait_for(|until| *until > chunk.0).await.is_err() {
            return Err(Broke::Unwanted);
        }
        let end = job.geometry.offset(chunk) + bytes.len() as u64;
        // the block that the chunk's last byte lies in: the last one that starts before the chunk's end
        let at = self.marks.partition_point(|mark| mark.raw_offset < end);
        let resume = at.checked_sub(1).map(|at| self.marks[at]).and_then(|mark| {
            let skip_bytes = u32::try_from(end - mark.raw_offset).ok()?;
            Some(Resume {
                blob_offset: mark.blob_offset,
                skip_bytes,
            })
        });
        self.marks.drain(..at.saturating_sub(1));
        let (geometry, content, state) = (job.geometry, job.content, self.state);
        let (shelves, me, cache) = (job.shelves.clone(), job.me.clone(), job.cache.clone());
        let doubted = job.doubted;
        let signer = job.notary.clone().zip(self.run.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let link = Link {
                resume,
                ..Link::forge(geometry, chunk, state, &bytes)
            };
            let signed = signer.map(|(notary, run)| notary.sign(content, chunk, link, &run));
            let statement = signed.as_ref().map(|signed| &signed.statement);
            let made = (&me, statement);
            let (conflict, unwritable) = store(&shelves, made, content, chunk, &bytes, link)?;
            // every link that we made after it rests on the one that was false
            let false_links = if conflict && doubted {
                let after = ChunkIndex(chunk.0 + 1);
                Some(retract(&shelves, content, me.key(), after).map_err(Broke::Disk)?)
            } else {
                None
            };
            if let Some(signed) = signed {
                let (encoding, bytes) = transfer::pack(bytes);
                let packed = Packed {
                    signed,
                    encoding,
                    bytes,
                };
                cache.keep(content, chunk, packed);
            }
            Ok::<_, Broke>((link.after, conflict, false_links, unwritable))
        });
        let stored = stored.await.map_err(|_| Broke::Unwanted)??;
        let (after, conflict, false_links, unwritable) = stored;
        if !unwritable.is_empty() {
            job.tell(News::Unwritable(unwritable)).await?;
        }
        if let Some(lost) = false_links {
            job.doubted = false;
            job.tell(News::Retracted {
                from: chunk,
                chunks: lost,
            })
            .await?;
        }
        self.state = after;
        self.next += 1;
        let origin_bytes = std::mem::take(&mut self.unreported);
        let fetched = News::Chunk {
            chunk,
            origin_bytes,
            conflict,
        };
        job.tell(fetched).await
    }

    async fn finish(&mut self, job: &mut Job) -> Result<(), Broke> {
        if let Decoder::Lz4(decoder) = &self.decoder {
            decoder
                .finish()
                .map_err(|error| Broke::False(error.to_string()))?;
        }
        self.ended = true;
        self.emit_if_full(job).await?;
        if self.next < job.geometry.chunks() || !self.buffer.is_empty() {
            return Err(Broke::False(format!(
                "it ends after {} of {} bytes",
                self.raw_at,
                job.geometry.size()
            )));
        }
        Ok(())
    }
}

/// Drops what this host made of a content from a chunk on, and returns it. Blocks.
pub(crate) fn retract(
    shelves: &[Shelf],
    content: Digest,
    maker: HostKey,
    from: ChunkIndex,
) -> Result<Vec<ChunkIndex>, String> {
    let mut lost = BTreeSet::new();
    for shelf in shelves {
        let chunks = shelf
            .retract(content, maker, from)
            .map_err(|error| error.to_string())?;
        lost.extend(chunks);
    }
    Ok(lost.into_iter().collect())
}

/// Stores a chunk that we made a link for; whether it takes the place of another one, and images that couldn't take it.
fn store(
    shelves: &[Shelf],
    (me, statement): (&HostId, Option<&Statement>),
    content: Digest,
    chunk: ChunkIndex,
    bytes: &[u8],
    link: Link,
) -> Result<(bool, Vec<Unwritable>), Broke> {
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    let mut conflict = false;
    for shelf in shelves {
        if let Some((held, _)) = shelf.link(content, chunk)
            && (held.before, held.after) != (link.before, link.after)
        {
            conflict = true;
            shelf
                .forget_chunk(content, chunk)
                .map_err(|error| Broke::Disk(error.to_string()))?;
        } else if let Some(statement) = statement {
            // nobody takes more of a run of which a link was false
            shelf.restate(content, chunk, link, statement.clone());
        }
    }
    let arrival = Arrival {
        content,
        chunk,
        bytes,
        link,
        source,
        maker: me,
        statement,
    };
    match shelf::write_all(shelves, arrival) {
        Ok(unwritable) => Ok((conflict, unwritable)),
        Err(WriteError::Rejected(error)) => Err(Broke::False(error.to_string())),
        Err(WriteError::Gone | WriteError::UnknownContent(_)) => Err(Broke::Unwanted),
        Err(error) => Err(Broke::Disk(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BasicCredentials;

    #[test]
    fn a_hint_that_cannot_be_true_is_not_followed() {
        let hint = |blob_offset, skip_bytes| Resume {
            blob_offset,
            skip_bytes,
        };
        let before = Some(hint(400, 7));
        let most = u32::try_from(WINDOW_BYTES).unwrap();
        assert!(is_plausible(hint(401, most), 1_000, before));
        assert!(is_plausible(hint(999, 1), 1_000, None));
        // out of the blob, before the chunk before, in another block than a chunk can end in
        for false_one in [
            hint(0, 1),
            hint(1_000, 1),
            hint(1 << 63, 1),
            hint(400, 1),
            hint(399, 1),
            hint(500, 0),
            hint(500, most + 1),
            hint(500, u32::MAX),
        ] {
            assert!(!is_plausible(false_one, 1_000, before), "{false_one:?}");
        }
    }

    #[test]
    fn a_password_that_was_changed_is_used_at_once_and_the_old_one_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "first\n").unwrap();
        let own = BasicCredentials {
            username: "robot".into(),
            password_file: password_file.clone(),
        };
        let origin = Origin::new(&OriginConfig {
            ca_file: None,
            plain_http: Vec::new(),
            idle_timeout: Duration::from_secs(1),
            proxy: origin::ProxySettings::default(),
            system_roots: false,
            credentials: [("registry.example".to_owned(), own)].into(),
        })
        .unwrap();
        let kept = || {
            origin
                .repository("registry.example/org/image:1", &Access::default())
                .unwrap();
            let all = origin.repositories.lock().unwrap();
            let passwords = all.iter().map(|kept| kept.password.clone());
            passwords.collect::<Vec<_>>()
        };
        let secret = |text: &str| vec![Some(origin::Secret::new(text.to_owned()))];
        assert_eq!(kept(), secret("first"));
        std::fs::write(&password_file, "second\n").unwrap();
        assert_eq!(kept(), secret("second"));
        assert_eq!(kept(), secret("second"));
    }
}
