//! One image on this host's disk: being built, or installed and still read for peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Layout, Ledger, Link, Source,
    chain::{Entered, RejectLinkError, Verdict},
    image::{ContentSpec, LayerName, Place},
};

use super::{
    Shared, hold, io_at,
    journal::{Journal, Record},
    status::Status,
};
use crate::{
    apple_lz4::{DecodeError, Decoder},
    platform,
    tart::cache,
};

/// The directory that becomes the image's, inside the stage's own.
pub(super) const IMAGE: &str = "image";
/// Blobs of layers without a raw digest.
const BLOBS: &str = "blobs";
pub(super) const JOURNAL: &str = "journal";

/// Bytes that are gathered before decoded ones are written.
const DECODE_BYTES: usize = 1 << 20;

/// An image on this host's disk. Shared by threads; every call blocks on the disk.
///
/// It stays readable after its installation, so that the host goes on seeding.
#[derive(Debug)]
pub struct Stage {
    pub(super) shared: Arc<Shared>,
    pub(super) layout: Layout,
    pub(super) manifest: Vec<u8>,
    /// `.parbake/<hex>`.
    pub(super) directory: PathBuf,
    contents: Vec<Content>,
    index: BTreeMap<Digest, usize>,
    disk: File,
    config: File,
    nvram: File,
    journal: Mutex<Journal>,
    /// What happened since the last flush. Filled by every writing thread, emptied by whoever flushes; locked after a
    /// content's state where both are.
    pending: Mutex<Pending>,
    pub(super) status: Mutex<Status>,
    /// One installation at a time.
    pub(super) installing: Mutex<()>,
    gone: AtomicBool,
}

#[derive(Debug)]
struct Content {
    spec: ContentSpec,
    places: Vec<Where>,
    /// Written by whichever thread stores a chunk; held for a comparison, never while the disk works.
    state: Mutex<State>,
    /// A chunk left `State::writing`.
    written: Condvar,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    zero: ChunkSet,
    /// Chunks whose bytes on disk are changing: nobody else writes them, and they aren't held.
    writing: BTreeSet<ChunkIndex>,
    /// Counts drops, so that a reader notices one that came between looking and reading.
    drops: u64,
    decoded: bool,
}

/// Where a content's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Disk(u64),
    Config,
    Nvram,
    Blob,
}

#[derive(Debug, Default)]
struct Pending {
    records: Vec<Record>,
    dirty: BTreeSet<Dirty>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    Disk,
    Config,
    Nvram,
    Blob(usize),
}

/// Why a chunk wasn't stored.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The link can't be true: its sender lies. The bytes are dropped.
    #[error(transparent)]
    Rejected(#[from] RejectLinkError),
    /// The image has no such content.
    #[error("image has no content {0}")]
    UnknownContent(Digest),
    /// The chunk's bytes aren't as many as its geometry says: the caller hasn't checked the link.
    #[error("chunk {chunk} of {content} has {bytes} bytes")]
    Length {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// What was given.
        bytes: usize,
    },
    /// The image was abandoned or removed meanwhile.
    #[error("image is gone from this host")]
    Gone,
    /// The volume is full. What is held stays; writing can go on when there is room.
    #[error("volume is full while storing chunk {chunk} of {content}")]
    NoRoom {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The volume failed.
    #[error("storing chunk {chunk} of {content}: {error}")]
    Io {
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
        /// The cause.
        error: io::Error,
    },
}

/// Why a layer that travels as a blob isn't on the disk.
#[derive(Debug, thiserror::Error)]
pub enum DecodeLayerError {
    /// The blob has the digest that the manifest names, and doesn't decode to what the manifest says: the image itself
    /// is bad.
    #[error("{layer} doesn't decode: {error}")]
    Bad {
        /// The layer.
        layer: LayerName,
        /// The cause.
        error: DecodeError,
    },
    /// The volume failed.
    #[error("decoding {layer}: {error}")]
    Io {
        /// The layer.
        layer: LayerName,
        /// The cause.
        error: io::Error,
    },
}

/// A chunk as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldChunk {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its link, which holds for them.
    pub link: Link,
    /// Who sent it here, and who made it.
    pub source: Source,
    /// The maker's id, to pass on with the link.
    pub maker: HostId,
}

impl Stage {
    /// A new, empty stage in `directory`, which is ours and holds nothing. Its disk begins as a clone of `base`, where
    /// one is given and the volume can; the second value says so.
    pub(super) fn create(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        status: Status,
        directory: PathBuf,
        base: Option<&Path>,
    ) -> io::Result<(Self, bool)> {
        let image = directory.join(IMAGE);
        fs::create_dir_all(&image).map_err(|error| io_at("creating", &image, error))?;
        let blobs = directory.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(|error| io_at("creating", &blobs, error))?;
        let path = image.join(cache::DISK);
        let mut cloned = false;
        if let Some(base) = base {
            match platform::clone_file(base, &path) {
                Ok(()) => cloned = true,
                Err(platform::CloneError::Unsupported) => {}
                Err(platform::CloneError::Io(error)) => {
                    tracing::warn!(base = %base.display(), %error, "cloning a similar disk failed; starting from an empty one");
                }
            }
        }
        let open = |name: &str, size: u64| {
            let path = image.join(name);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| io_at("creating", &path, error))?;
            file.set_len(size)
                .map_err(|error| io_at("resizing", &path, error))?;
            Ok::<_, io::Error>(file)
        };
        let disk = open(cache::DISK, layout.disk_bytes())?;
        let config = open(cache::CONFIG, layout.config().size)?;
        let nvram = open(cache::NVRAM, layout.nvram().size)?;
        let journal = Journal::create(&directory.join(JOURNAL), layout.digest())?;
        let path = directory.join(cache::MANIFEST);
        // synced before the status names the stage: one without its manifest is pruned with all that it holds
        File::create(&path)
            .and_then(|mut file| {
                io::Write::write_all(&mut file, manifest)?;
                platform::sync_full(&file)
            })
            .map_err(|error| io_at("writing", &path, error))?;
        let status = Status {
            disk_inode: disk.metadata()?.ino(),
            ..status
        };
        let stage = Self::assemble(
            shared, layout, manifest, status, directory, disk, config, nvram, journal,
        );
        Ok((stage, cloned))
    }

    /// A stage as a process before this one left it; its files are in `image`.
    ///
    /// `None` when there is no usable journal, or the disk isn't the one that it speaks of.
    pub(super) fn reopen(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        status: Status,
        directory: PathBuf,
        image: &Path,
    ) -> io::Result<Option<Self>> {
        let open = |name: &str| {
            let path = image.join(name);
            // an installed image is written to as well: what rots on disk is mended in place
            match OpenOptions::new().read(true).write(true).open(&path) {
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied && status.installed =>
                {
                    tracing::warn!(path = %path.display(), "an installed image may only be read: it is served, but can't be mended");
                    File::open(&path)
                }
                other => other,
            }
        };
        let (disk, config, nvram) = (
            open(cache::DISK)?,
            open(cache::CONFIG)?,
            open(cache::NVRAM)?,
        );
        let found = disk.metadata()?;
        let sizes = [
            (found.len(), layout.disk_bytes()),
            (config.metadata()?.len(), layout.config().size),
            (nvram.metadata()?.len(), layout.nvram().size),
        ];
        if found.ino() != status.disk_inode || sizes.iter().any(|(is, should)| is != should) {
            return Ok(None);
        }
        let Some((journal, records)) = Journal::open(&directory.join(JOURNAL), layout.digest())?
        else {
            return Ok(None);
        };
        let stage = Self::assemble(
            shared, layout, manifest, status, directory, disk, config, nvram, journal,
        );
        stage.replay(records);
        Ok(Some(stage))
    }

    #[expect(clippy::too_many_arguments, reason = "the struct's own fields")]
    fn assemble(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        status: Status,
        directory: PathBuf,
        disk: File,
        config: File,
        nvram: File,
        journal: Journal,
    ) -> Self {
        let contents: Vec<_> = layout.contents().into_iter().map(Content::new).collect();
        let index = (0..)
            .zip(&contents)
            .map(|(at, content)| (content.spec.digest, at))
            .collect();
        Self {
            shared,
            manifest: manifest.to_vec(),
            directory,
            contents,
            index,
            disk,
            config,
            nvram,
            journal: Mutex::new(journal),
            pending: Mutex::default(),
            status: Mutex::new(status),
            installing: Mutex::default(),
            gone: AtomicBool::new(false),
            layout,
        }
    }

    fn replay(&self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Held {
                    content,
                    chunk,
                    link,
                    zero,
                    sender,
                    maker,
                } => {
                    let Some(content) = self.find(content) else {
                        continue;
                    };
                    let source = Source {
                        sender,
                        maker: maker.key(),
                    };
                    let mut state = hold(&content.state);
                    if let Ok(Entered::New) = state.ledger.enter(chunk, link, source) {
                        if zero {
                            state.zero.insert(chunk);
                        }
                        self.shared.know(&maker);
                    }
                }
                Record::Dropped { content, chunk } => {
                    if let Some(content) = self.find(content) {
                        hold(&content.state).drop_chunk(chunk);
                    }
                }
                Record::Decoded { content } => {
                    if let Some(content) = self.find(content) {
                        hold(&content.state).decoded = true;
                    }
                }
            }
        }
        for content in &self.contents {
            let mut state = hold(&content.state);
            for verdict in state.ledger.walk() {
                state.zero.remove(verdict.chunk);
                hold(&self.pending).records.push(Record::Dropped {
                    content: content.spec.digest,
                    chunk: verdict.chunk,
                });
            }
        }
    }

    /// The image.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The manifest's bytes.
    #[must_use]
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// The references that shall name, or name, the image here.
    #[must_use]
    pub fn references(&self) -> Vec<String> {
        hold(&self.status)
            .references
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Whether the image was installed. Whether it is still there is for [`Store::presence`](super::Store::presence).
    #[must_use]
    pub fn is_installed(&self) -> bool {
        hold(&self.status).installed
    }

    /// The geometry of this content; `None` for a content of another image.
    #[must_use]
    pub fn geometry(&self, content: Digest) -> Option<Geometry> {
        Some(self.find(content)?.spec.geometry)
    }

    /// The chunks of this content that are on disk and fit their links. Empty for a content of another image.
    #[must_use]
    pub fn held(&self, content: Digest) -> ChunkSet {
        self.find(content)
            .map_or_else(ChunkSet::default, |content| {
                hold(&content.state).ledger.held().clone()
            })
    }

    /// Whether the content is complete and verified from its first byte to its digest.
    #[must_use]
    pub fn is_closed(&self, content: Digest) -> bool {
        self.find(content)
            .is_some_and(|content| hold(&content.state).ledger.is_closed())
    }

    /// When this stage was made, over restarts of the agent: its manifest is written once, at its beginning. `None` when
    /// the volume doesn't tell.
    #[must_use]
    pub fn begun_at(&self) -> Option<SystemTime> {
        let manifest = fs::metadata(self.directory.join(cache::MANIFEST));
        manifest.and_then(|found| found.modified()).ok()
    }

    /// Whether every content is closed: the image can be installed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.contents
            .iter()
            .all(|content| hold(&content.state).ledger.is_closed())
    }

    /// Whether the chain proves this chunk all the way to the digest. Chunks that aren't proved yet may be passed on,
    /// but not called true.
    #[must_use]
    pub fn is_proved(&self, content: Digest, chunk: ChunkIndex) -> bool {
        self.find(content)
            .is_some_and(|content| hold(&content.state).ledger.is_proved(chunk))
    }

    /// The link of a held chunk, and where it came from, without reading its bytes.
    #[must_use]
    pub fn link(&self, content: Digest, chunk: ChunkIndex) -> Option<(Link, Source)> {
        hold(&self.find(content)?.state).ledger.link(chunk)
    }

    /// Stores a chunk whose link was found to hold ([`Link::holds`]) at every place where the image has it. Bytes of
    /// zeros become holes. A chunk that is held already stays as it is; one that another thread is storing is waited
    /// for.
    ///
    /// The chunk counts as held at once, and survives a crash from the next [`flush`](Self::flush) on.
    ///
    /// # Errors
    /// When the link is rejected, or the volume fails. The chunk isn't held then.
    pub fn write(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: &HostId,
    ) -> Result<Entered, WriteError> {
        self.store_chunk(content, chunk, bytes, link, source, maker, |_| false)
    }

    #[expect(clippy::too_many_arguments, reason = "what makes up a chunk")]
    fn store_chunk(
        &self,
        digest: Digest,
        chunk: ChunkIndex,
        bytes: &[u8],
        link: Link,
        source: Source,
        maker: &HostId,
        is_there: impl Fn(Where) -> bool,
    ) -> Result<Entered, WriteError> {
        let at = *self
            .index
            .get(&digest)
            .ok_or(WriteError::UnknownContent(digest))?;
        let content = &self.contents[at];
        let geometry = content.spec.geometry;
        if !geometry.contains(chunk) {
            return Err(RejectLinkError::NoSuchChunk(chunk).into());
        }
        if bytes.len() != geometry.len(chunk) as usize {
            return Err(WriteError::Length {
                content: digest,
                chunk,
                bytes: bytes.len(),
            });
        }
        let mut state = hold(&content.state);
        while state.writing.contains(&chunk) {
            state = content
                .written
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if self.is_gone() {
            return Err(WriteError::Gone);
        }
        if state.ledger.held().contains(chunk) {
            return Ok(Entered::Held);
        }
        state.writing.insert(chunk);
        drop(state);

        let zero = is_zero(bytes);
        let mut dirty = Vec::new();
        let offset = geometry.offset(chunk);
        let result = content.places.iter().try_for_each(|place| {
            dirty.push(place.dirty(at));
            if is_there(*place) {
                return Ok(());
            }
            self.with_file(content, *place, true, |file, base| {
                put(file, base + offset, bytes, zero)
            })
        });

        let mut state = hold(&content.state);
        state.writing.remove(&chunk);
        content.written.notify_all();
        result.map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                return WriteError::NoRoom {
                    content: digest,
                    chunk,
                };
            }
            WriteError::Io {
                content: digest,
                chunk,
                error,
            }
        })?;
        let entered = state.ledger.enter(chunk, link, source)?;
        if zero {
            state.zero.insert(chunk);
        }
        self.shared.know(maker);
        let mut pending = hold(&self.pending);
        pending.dirty.extend(dirty);
        pending.records.push(Record::Held {
            content: digest,
            chunk,
            link,
            zero,
            sender: source.sender,
            maker: maker.clone(),
        });
        Ok(entered)
    }

    /// A held chunk; `None` when it isn't held, was dropped while it was read, or the image is gone.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        let Some(content) = self.find(content) else {
            return Ok(None);
        };
        let geometry = content.spec.geometry;
        let (link, source, zero, drops) = {
            let state = hold(&content.state);
            let Some((link, source)) = state.ledger.link(chunk) else {
                return Ok(None);
            };
            (link, source, state.zero.contains(chunk), state.drops)
        };
        let mut bytes = vec![0; geometry.len(chunk) as usize];
        if !zero {
            let place = content.places[0];
            self.with_file(content, place, false, |file, base| {
                file.read_exact_at(&mut bytes, base + geometry.offset(chunk))
            })?;
        }
        if hold(&content.state).drops != drops || self.is_gone() {
            return Ok(None);
        }
        Ok(self.shared.host(source.maker).map(|maker| HeldChunk {
            bytes,
            link,
            source,
            maker,
        }))
    }

    /// Walks back from the content's digest and drops what this proves false ([`Ledger::walk`]). What it dropped is
    /// journaled before this returns, so that no crash brings it back under bytes that were written over it.
    ///
    /// # Errors
    /// When the journal can't be written; the false chunks are dropped all the same.
    pub fn walk(&self, content: Digest) -> io::Result<Vec<Verdict>> {
        let Some(content) = self.find(content) else {
            return Ok(Vec::new());
        };
        let verdicts = {
            let mut state = hold(&content.state);
            let verdicts = state.ledger.walk();
            for verdict in &verdicts {
                state.zero.remove(verdict.chunk);
                state.drops += 1;
                state.writing.insert(verdict.chunk);
                hold(&self.pending).records.push(Record::Dropped {
                    content: content.spec.digest,
                    chunk: verdict.chunk,
                });
            }
            verdicts
        };
        if verdicts.is_empty() {
            return Ok(verdicts);
        }
        let flushed = self.flush();
        let mut state = hold(&content.state);
        for verdict in &verdicts {
            state.writing.remove(&verdict.chunk);
        }
        content.written.notify_all();
        flushed.map(|()| verdicts)
    }

    /// Drops a chunk whose bytes turned out not to be the registry's, so that the true ones can take its place. Journaled
    /// before this returns, as in [`walk`](Self::walk).
    ///
    /// # Errors
    /// When the journal can't be written; the chunk is dropped all the same.
    pub fn forget_chunk(&self, content: Digest, chunk: ChunkIndex) -> io::Result<()> {
        let Some(content) = self.find(content) else {
            return Ok(());
        };
        {
            let mut state = hold(&content.state);
            state.drop_chunk(chunk);
            hold(&self.pending).records.push(Record::Dropped {
                content: content.spec.digest,
                chunk,
            });
        }
        self.flush()
    }

    /// Drops the unproved chunks from `from` on that this host made: it took them back. Journaled before this returns.
    ///
    /// # Errors
    /// When the journal can't be written; the chunks are dropped all the same.
    pub fn retract(
        &self,
        content: Digest,
        maker: HostKey,
        from: ChunkIndex,
    ) -> io::Result<Vec<ChunkIndex>> {
        let Some(content) = self.find(content) else {
            return Ok(Vec::new());
        };
        let chunks = {
            let mut state = hold(&content.state);
            let chunks = state.ledger.doubtful(maker, from);
            for chunk in &chunks {
                state.drop_chunk(*chunk);
                hold(&self.pending).records.push(Record::Dropped {
                    content: content.spec.digest,
                    chunk: *chunk,
                });
            }
            chunks
        };
        self.flush()?;
        Ok(chunks)
    }

    /// Reads a held chunk again and drops it, lastingly, when its bytes don't fit its link any more. Whether it is still
    /// held; for a scrub of what the journal of an earlier process vouched for.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn scrub(&self, content: Digest, chunk: ChunkIndex) -> io::Result<bool> {
        let (Some(held), Some(found)) = (self.read(content, chunk)?, self.find(content)) else {
            return Ok(false);
        };
        if held.link.holds(found.spec.geometry, chunk, &held.bytes) {
            return Ok(true);
        }
        {
            let mut state = hold(&found.state);
            if state.ledger.link(chunk) != Some((held.link, held.source)) {
                return Ok(false);
            }
            state.drop_chunk(chunk);
            hold(&self.pending)
                .records
                .push(Record::Dropped { content, chunk });
        }
        self.flush()?;
        Ok(false)
    }

    /// Makes everything written so far survive a crash: data first, then the journal that vouches for them. To be
    /// called at least every 500 ms while chunks arrive; cheap when nothing happened.
    ///
    /// # Errors
    /// When the volume fails. Nothing is forgotten: the next call tries again.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        let mut journal = hold(&self.journal);
        let Pending { records, dirty } = std::mem::take(&mut *hold(&self.pending));
        if records.is_empty() && dirty.is_empty() {
            return Ok(());
        }
        let result = dirty
            .iter()
            .try_for_each(|dirty| self.sync(*dirty, platform::sync_data))
            .and_then(|()| journal.append(&records));
        if let Err(error) = result {
            let mut pending = hold(&self.pending);
            let later = std::mem::replace(&mut pending.records, records);
            pending.records.extend(later);
            pending.dirty.extend(dirty);
            return Err(error);
        }
        Ok(())
    }

    /// Copies what another image of this host holds complete. Chunks are checked against their links like any other.
    ///
    /// `cloned` says that our disk began as a clone of the other's, so that bytes at the same offset are there already.
    ///
    /// # Errors
    /// When our side can't be written. What can't be read there is left to be fetched.
    pub(super) fn copy_from(
        &self,
        other: &Self,
        content: Digest,
        cloned: bool,
    ) -> Result<u64, WriteError> {
        let (Some(ours), Some(theirs)) = (self.find(content), other.find(content)) else {
            return Ok(0);
        };
        let geometry = ours.spec.geometry;
        let there = |place: Where| {
            cloned && matches!(place, Where::Disk(_)) && theirs.places.contains(&place)
        };
        let mut copied = 0;
        for chunk in (0..geometry.chunks()).map(ChunkIndex) {
            let Ok(Some(held)) = other.read(content, chunk) else {
                continue;
            };
            if !held.link.holds(geometry, chunk, &held.bytes) {
                tracing::warn!(%content, %chunk, image = %other.layout.digest(), "a stored chunk has changed on disk; fetching it again");
                continue;
            }
            let entered = self.store_chunk(
                content,
                chunk,
                &held.bytes,
                held.link,
                held.source,
                &held.maker,
                there,
            )?;
            if entered == Entered::New {
                copied += u64::from(geometry.len(chunk));
            }
        }
        if let Err(error) = self.walk(content) {
            tracing::warn!(%content, %error, "journaling dropped chunks failed; it is tried again with the next flush");
        }
        Ok(copied)
    }

    /// Bytes of raw layers that both images have at the same offset of their disks, where `other` holds them whole.
    pub(super) fn common_bytes(layout: &Layout, other: &Self) -> u64 {
        let layers = layout.layers().iter().filter(|layer| {
            layer.raw.is_some_and(|raw| {
                other.find(raw).is_some_and(|content| {
                    content.places.contains(&Where::Disk(layer.offset))
                        && hold(&content.state).ledger.is_closed()
                })
            })
        });
        layers.map(|layer| layer.raw_bytes).sum()
    }

    /// Decodes the blobs of layers without a raw digest onto the disk, where that isn't done yet.
    pub(super) fn decode_layers(&self) -> Result<(), DecodeLayerError> {
        for (at, content) in self.contents.iter().enumerate() {
            let layers = content.spec.places.iter().filter_map(|place| match place {
                Place::Encoded { layer } => Some(&self.layout.layers()[*layer]),
                _ => None,
            });
            let mut layers = layers.peekable();
            let Some(first) = layers.peek() else { continue };
            let failed = |layer, error| DecodeLayerError::Io {
                layer: Layout::name(layer),
                error,
            };
            if hold(&content.state).decoded {
                continue;
            }
            let last = *first;
            for layer in layers {
                let blob = self.with_file(content, Where::Blob, false, |file, _| file.try_clone());
                let blob = blob.map_err(|error| failed(layer, error))?;
                decode_layer(&blob, content.spec.geometry.size(), &self.disk, layer)?;
            }
            let mut pending = hold(&self.pending);
            pending.dirty.insert(Dirty::Disk);
            pending.records.push(Record::Decoded {
                content: content.spec.digest,
            });
            drop(pending);
            hold(&content.state).decoded = true;
            self.flush().map_err(|error| failed(last, error))?;
            tracing::debug!(content = %content.spec.digest, at, "layer decoded");
        }
        Ok(())
    }

    /// Bytes that this stage may still take from the volume.
    pub(super) fn outstanding_bytes(&self) -> u64 {
        if hold(&self.status).installed {
            return 0;
        }
        let taken = |file: &File| file.metadata().map_or(0, |found| found.blocks() * 512);
        let blobs = fs::read_dir(self.directory.join(BLOBS))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512));
        let taken = taken(&self.disk) + taken(&self.config) + taken(&self.nvram);
        needed_bytes(&self.layout).saturating_sub(taken + blobs.sum::<u64>())
    }

    /// Syncs every file of the image to the disk.
    pub(super) fn sync_files(&self) -> io::Result<()> {
        for dirty in [Dirty::Disk, Dirty::Config, Dirty::Nvram] {
            self.sync(dirty, platform::sync_full)?;
        }
        Ok(())
    }

    /// The first content that isn't closed.
    pub(super) fn first_open(&self) -> Option<Digest> {
        let open = |content: &&Content| !hold(&content.state).ledger.is_closed();
        Some(self.contents.iter().find(open)?.spec.digest)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Marks the image as gone: nothing is read or written any more.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    fn find(&self, content: Digest) -> Option<&Content> {
        Some(&self.contents[*self.index.get(&content)?])
    }

    /// Runs on the file of a place, with the offset at which the content starts in it.
    fn with_file<T>(
        &self,
        content: &Content,
        place: Where,
        write: bool,
        run: impl FnOnce(&File, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        match place {
            Where::Disk(offset) => run(&self.disk, offset),
            Where::Config => run(&self.config, 0),
            Where::Nvram => run(&self.nvram, 0),
            // Opened each time: images of this old kind have hundreds, more than a process may have open on macOS.
            Where::Blob => {
                let path = self.blob_path(content);
                let file = OpenOptions::new()
                    .read(true)
                    .write(write)
                    .create(write)
                    .truncate(false)
                    .open(path)?;
                run(&file, 0)
            }
        }
    }

    fn blob_path(&self, content: &Content) -> PathBuf {
        self.directory
            .join(BLOBS)
            .join(content.spec.digest.hex().to_string())
    }

    fn sync(&self, dirty: Dirty, sync: fn(&File) -> io::Result<()>) -> io::Result<()> {
        match dirty {
            Dirty::Disk => sync(&self.disk),
            Dirty::Config => sync(&self.config),
            Dirty::Nvram => sync(&self.nvram),
            Dirty::Blob(at) => {
                let blob = File::open(self.blob_path(&self.contents[at]))?;
                sync(&blob)?;
                platform::sync_directory(&self.directory.join(BLOBS))
            }
        }
    }
}

/// Bytes that an image may take from the volume while it is built: the whole disk although holes take none, the
/// blobs, and the journal.
pub(super) fn needed_bytes(layout: &Layout) -> u64 {
    /// More than a chunk's record in the journal, including its dropping.
    const RECORD_BYTES: u64 = 160;
    let mut bytes = layout.disk_bytes() + (1 << 20);
    for content in layout.contents() {
        let blob = content
            .places
            .iter()
            .any(|place| !matches!(place, Place::Disk { .. }));
        if blob {
            bytes += content.geometry.size();
        }
        bytes += u64::from(content.geometry.chunks()) * RECORD_BYTES;
    }
    bytes
}

impl Content {
    fn new(spec: ContentSpec) -> Self {
        let mut places: Vec<_> = spec
            .places
            .iter()
            .map(|place| match place {
                Place::Disk { offset } => Where::Disk(*offset),
                Place::Config => Where::Config,
                Place::Nvram => Where::Nvram,
                Place::Encoded { .. } => Where::Blob,
            })
            .collect();
        places.dedup();
        let state = State {
            ledger: Ledger::new(spec.digest, spec.geometry),
            zero: ChunkSet::empty(spec.geometry.chunks()),
            writing: BTreeSet::new(),
            drops: 0,
            decoded: false,
        };
        Self {
            spec,
            places,
            state: Mutex::new(state),
            written: Condvar::new(),
        }
    }
}

impl State {
    fn drop_chunk(&mut self, chunk: ChunkIndex) {
        self.ledger.forget(chunk);
        self.zero.remove(chunk);
        self.drops += 1;
    }
}

impl Where {
    const fn dirty(self, content: usize) -> Dirty {
        match self {
            Self::Disk(_) => Dirty::Disk,
            Self::Config => Dirty::Config,
            Self::Nvram => Dirty::Nvram,
            Self::Blob => Dirty::Blob(content),
        }
    }
}

/// Writes bytes, or makes a hole where they are zeros. Always punched, never skipped: the disk may have begun as a
/// clone, and a dropped chunk may have left its bytes.
fn put(file: &File, offset: u64, bytes: &[u8], zero: bool) -> io::Result<()> {
    if zero {
        platform::punch_hole(file, offset, bytes.len() as u64)
    } else {
        file.write_all_at(bytes, offset)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let quiet = |chunk: &[u8; 64]| chunk.iter().fold(0, |all, byte| all | byte) == 0;
    words.iter().all(quiet) && rest.iter().all(|byte| *byte == 0)
}

/// Decodes a blob onto the disk at its layer's place.
fn decode_layer(
    blob: &File,
    blob_bytes: u64,
    disk: &File,
    layer: &proto::image::DiskLayer,
) -> Result<(), DecodeLayerError> {
    let failed = |error| DecodeLayerError::Io {
        layer: Layout::name(layer),
        error,
    };
    let mut offset = layer.offset;
    let mut raw = Vec::with_capacity(DECODE_BYTES);
    let flush = |raw: &mut Vec<u8>, offset: &mut u64| {
        put(disk, *offset, raw, is_zero(raw))?;
        *offset += raw.len() as u64;
        raw.clear();
        Ok::<_, io::Error>(())
    };
    decode_blob(blob, blob_bytes, layer.raw_bytes, |block| {
        if raw.len() + block.len() > DECODE_BYTES {
            flush(&mut raw, &mut offset)?;
        }
        raw.extend_from_slice(block);
        Ok(())
    })
    .map_err(failed)?
    .map_err(|error| DecodeLayerError::Bad {
        layer: Layout::name(layer),
        error,
    })?;
    flush(&mut raw, &mut offset).map_err(failed)
}

/// Decodes a blob, a block at a time, into `take`.
pub(super) fn decode_blob(
    blob: &File,
    blob_bytes: u64,
    raw_bytes: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Result<(), DecodeError>> {
    let mut decoder = Decoder::new(raw_bytes);
    let mut piece = vec![0; DECODE_BYTES];
    let mut read = 0;
    while read < blob_bytes {
        let length =
            usize::try_from(blob_bytes - read).map_or(piece.len(), |left| left.min(piece.len()));
        blob.read_exact_at(&mut piece[..length], read)?;
        read += length as u64;
        let mut input = &piece[..length];
        loop {
            match decoder.feed(&mut input) {
                Ok(Some(block)) => take(block.raw)?,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
    }
    Ok(decoder.finish())
}
