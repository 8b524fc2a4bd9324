//! One image on this host's disk: being built, or installed and still read for peers.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Instant, SystemTime},
};

use proto::{
    Answer, ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Layout, Link, Source,
    Statement,
    image::{ContentSpec, DiskLayer, LayerName, Place},
    ledger::{Entered, Verdict},
};

use super::{
    Shared,
    files::{Body, ImageFiles, Where},
    held::{Adopted, Held, HeldChunk, Look, WriteError, hold, is_zero, put},
    io_at,
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
pub(super) const JOURNAL: &str = "journal";

/// Bytes that are gathered before decoded ones are written.
const DECODE_BYTES: usize = 1 << 20;

/// Threads that read at a time what an earlier process left. SHA-256 takes 1 to 2 GB/s on one processor, and a Mac's disk
/// gives about 3.
const READERS: usize = 4;

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
    pub(super) held: Held<ImageFiles>,
    /// Contents whose blobs this process decoded onto the disk.
    pub(super) decoded: Mutex<BTreeSet<usize>>,
    /// The journal was damaged when it was opened, and the links that it lost weren't made again yet.
    pub(super) links_lost: AtomicBool,
    /// The doubt under which the image is read again ([`super::doubt`]).
    pub(super) doubt: Mutex<Option<Vec<u8>>>,
    pub(super) status: Mutex<Status>,
    /// One installation at a time.
    pub(super) installing: Mutex<()>,
    /// The last installation did all that it could before tart's lock, and didn't get that.
    pub(super) waits_for_tart: AtomicBool,
    /// Bytes that a copy for another repository may take.
    pub(super) copying_bytes: AtomicU64,
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
    /// The blob's bytes changed on disk. What of it isn't held any more has to come again.
    #[error("blob {content} has changed on disk")]
    Rotten {
        /// The blob.
        content: Digest,
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
        ImageFiles::create_blobs(&directory)?;
        let mut cloned = false;
        if let Some(base) = base {
            match platform::clone_file(base, &image.join(cache::DISK)) {
                Ok(()) => cloned = true,
                Err(platform::CloneError::Unsupported) => {}
                Err(platform::CloneError::Io(error)) => {
                    tracing::warn!(base = %base.display(), %error, "cloning a similar disk failed; starting from an empty one");
                }
            }
        }
        let body = Body::create(&image, &layout)?;
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
            disk_inode: body.inode,
            ..status
        };
        let stage = Self::assemble(
            shared,
            layout,
            manifest,
            status,
            directory,
            vec![body],
            journal,
        );
        Ok((stage, cloned))
    }

    /// A stage of these bodies, which are as its status says.
    pub(super) fn assemble(
        shared: Arc<Shared>,
        layout: Layout,
        manifest: &[u8],
        status: Status,
        directory: PathBuf,
        bodies: Vec<Body>,
        journal: Journal,
    ) -> Self {
        let files = ImageFiles::new(shared.clone(), &layout, &directory, bodies);
        let contents = layout.contents();
        let contents = contents.iter().map(|spec| (spec.digest, spec.geometry));
        let held = Held::new(files, contents, shared.hosts.clone());
        held.set_journal(Some(journal));
        Self {
            shared,
            manifest: manifest.to_vec(),
            directory,
            held,
            decoded: Mutex::default(),
            links_lost: AtomicBool::new(false),
            doubt: Mutex::default(),
            status: Mutex::new(status),
            installing: Mutex::default(),
            waits_for_tart: AtomicBool::new(false),
            copying_bytes: AtomicU64::new(0),
            layout,
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
        Some(self.held.geometry(self.held.find(&content)?))
    }

    /// The chunks of this content that are on disk and fit their links. Empty for a content of another image.
    #[must_use]
    pub fn held(&self, content: Digest) -> ChunkSet {
        self.held
            .find(&content)
            .map_or_else(ChunkSet::default, |at| self.held.held(at))
    }

    /// Whether the content is complete and verified from its first byte to its digest.
    #[must_use]
    pub fn is_closed(&self, content: Digest) -> bool {
        self.held
            .find(&content)
            .is_some_and(|at| self.held.is_closed(at))
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
        self.first_open().is_none()
    }

    /// Whether the chain proves this chunk all the way to the digest. Chunks that aren't proved yet may be passed on,
    /// but not called true.
    #[must_use]
    pub fn is_proved(&self, content: Digest, chunk: ChunkIndex) -> bool {
        self.held
            .find(&content)
            .is_some_and(|at| self.held.is_proved(at, chunk))
    }

    /// The link of a held chunk, and where it came from, without reading its bytes.
    #[must_use]
    pub fn link(&self, content: Digest, chunk: ChunkIndex) -> Option<(Link, Source)> {
        self.held.link(self.held.find(&content)?, chunk)
    }

    /// Stores a chunk whose link was found to hold ([`Link::holds`]) at every place where the image has it. Bytes of
    /// zeros become holes. A chunk that is held already stays as it is; one that another thread is storing is waited
    /// for.
    ///
    /// The chunk counts as held at once, and survives a crash from the next [`flush`](Self::flush) on. The statement says who
    /// answers for the link; without one the chunk stays on this host until its chain is closed.
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
        (maker, statement): (&HostId, Option<&Statement>),
    ) -> Result<Entered, WriteError> {
        let at = self
            .held
            .find(&content)
            .ok_or(WriteError::UnknownContent(content))?;
        let maker = (maker, statement);
        self.held.write(at, chunk, bytes, link, source, maker)
    }

    pub(crate) fn restate(
        &self,
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        statement: Statement,
    ) {
        if let Some(at) = self.held.find(&content) {
            self.held.restate(at, chunk, link, statement);
        }
    }

    /// Who answers for the link of a chunk.
    #[must_use]
    pub fn answer(&self, content: Digest, chunk: ChunkIndex) -> Answer {
        let found = self.held.find(&content);
        found.map_or(Answer::Nobody, |at| self.held.answer(at, chunk))
    }

    /// A held chunk; `None` when it isn't held, was dropped while it was read, or the image is gone. What an earlier process
    /// left is compared with its link first, and dropped where it changed.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Option<HeldChunk>> {
        match self.held.find(&content) {
            Some(at) => self.held.read(at, chunk),
            None => Ok(None),
        }
    }

    /// Walks back from the content's digest and drops what this proves false ([`proto::Ledger::walk`]). What it dropped is
    /// journaled before this returns.
    ///
    /// # Errors
    /// When the journal can't be written; the false chunks are dropped all the same.
    pub fn walk(&self, content: Digest) -> io::Result<Vec<Verdict>> {
        let Some(at) = self.held.find(&content) else {
            return Ok(Vec::new());
        };
        let verdicts = self.held.drop_false(at);
        if !verdicts.is_empty() {
            self.flush()?;
        }
        Ok(verdicts)
    }

    /// Drops a chunk whose bytes turned out not to be the registry's, so that the true ones can take its place. Journaled
    /// before this returns.
    ///
    /// # Errors
    /// When the journal can't be written; the chunk is dropped all the same.
    pub fn forget_chunk(&self, content: Digest, chunk: ChunkIndex) -> io::Result<()> {
        if let Some(at) = self.held.find(&content)
            && self.held.forget(at, chunk)
        {
            self.flush()?;
        }
        Ok(())
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
        let Some(at) = self.held.find(&content) else {
            return Ok(Vec::new());
        };
        let chunks = self.held.retract(at, maker, from);
        if !chunks.is_empty() {
            self.flush()?;
        }
        Ok(chunks)
    }

    /// Reads a held chunk where it lies, and drops it, lastingly, when its bytes don't fit its link any more. Whether it is still
    /// held.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn scrub(&self, content: Digest, chunk: ChunkIndex) -> io::Result<bool> {
        Ok(matches!(self.look(content, chunk)?, Look::Sound(_)))
    }

    pub(crate) fn look(&self, content: Digest, chunk: ChunkIndex) -> io::Result<Look> {
        let Some(at) = self.held.find(&content) else {
            return Ok(Look::Missing);
        };
        let look = self.held.look(at, chunk)?;
        if look == Look::Rotten {
            self.flush()?;
        }
        Ok(look)
    }

    /// Makes everything written so far survive a crash: data first, then the journal that vouches for them. To be
    /// called at least every 500 ms while chunks arrive; cheap when nothing happened.
    ///
    /// # Errors
    /// When the volume fails. What wasn't synced isn't held any more; what only wasn't journaled is tried again.
    pub fn flush(&self) -> io::Result<()> {
        self.held.flush()
    }

    /// Copies what another image of this host holds complete. Chunks are compared with their links like any other.
    ///
    /// `cloned` says that our disk began as a clone of the other's, so that bytes at the same offset are there already:
    /// those are compared where they lie.
    ///
    /// # Errors
    /// When our side can't be written. What can't be read there is left to be fetched.
    pub(super) fn copy_from(
        &self,
        other: &Self,
        content: Digest,
        cloned: bool,
    ) -> Result<u64, WriteError> {
        let (Some(ours), Some(theirs)) = (self.held.find(&content), other.held.find(&content))
        else {
            return Ok(0);
        };
        let geometry = self.held.geometry(ours);
        let their_places = other.held.files().places(theirs);
        // places by their numbers: a new stage has one body
        let in_body = self.held.files().places(ours).iter();
        let there: Vec<bool> = in_body
            .filter(|place| **place != Where::Blob)
            .map(|place| cloned && matches!(place, Where::Disk(_)) && their_places.contains(place))
            .collect();
        let mut copied = 0;
        for chunk in (0..geometry.chunks()).map(ChunkIndex) {
            if self.held.is_held(ours, chunk) {
                continue;
            }
            let Some(claim) = other.held.claim(theirs, chunk) else {
                continue;
            };
            if there.contains(&true) {
                let is_there = |place: usize| there.get(place).copied().unwrap_or(false);
                match self.held.adopt(ours, chunk, &claim, &is_there)? {
                    Adopted::Held => continue,
                    Adopted::New { differed } => {
                        copied += u64::from(geometry.len(chunk));
                        if !differed {
                            continue;
                        }
                    }
                    Adopted::Differs => {}
                }
            }
            // what is damaged there is dropped there, and told
            let Ok(Look::Sound(held)) = other.held.look(theirs, chunk) else {
                continue;
            };
            let entered = self.held.write(
                ours,
                chunk,
                &held.bytes,
                held.link,
                held.source,
                (&held.maker, held.answer.statement()),
            )?;
            if entered == Entered::New {
                copied += u64::from(geometry.len(chunk));
            }
        }
        for stage in [self, other] {
            if let Err(error) = stage.walk(content).and_then(|_| stage.flush()) {
                tracing::warn!(%content, image = %stage.layout.digest(), %error, "journaling after a copy failed; it is tried again with the next flush");
            }
        }
        Ok(copied)
    }

    /// Bytes of raw layers that both images have at the same offset of their disks, where `other` holds them whole.
    pub(super) fn common_bytes(layout: &Layout, other: &Self) -> u64 {
        let layers = layout.layers().iter().filter(|layer| {
            layer.raw.is_some_and(|raw| {
                other.held.find(&raw).is_some_and(|at| {
                    let places = other.held.files().places(at);
                    places.contains(&Where::Disk(layer.offset)) && other.held.is_closed(at)
                })
            })
        });
        layers.map(|layer| layer.raw_bytes).sum()
    }

    /// Decodes the blobs of layers without a raw digest onto the disk, where this process hasn't yet. What an earlier process
    /// decoded can't be compared with a digest, so it is decoded again.
    ///
    /// # Errors
    /// [`DecodeLayerError::Rotten`] where a blob's bytes aren't its digest's any more.
    pub(super) fn decode_layers(&self) -> Result<(), DecodeLayerError> {
        let bodies = self.held.files().bodies();
        for (at, spec) in self.layout.contents().iter().enumerate() {
            if hold(&self.decoded).contains(&at) {
                continue;
            }
            let bodies = bodies.iter().map(|body| &**body);
            let Some((layer, _)) = self.decode_content(at, spec, bodies)? else {
                continue;
            };
            let failed = |error| DecodeLayerError::Io {
                layer: Layout::name(layer),
                error,
            };
            self.held.touch(at);
            self.flush().map_err(failed)?;
            self.held.note(Record::Decoded {
                content: spec.digest,
            });
            hold(&self.decoded).insert(at);
            self.flush().map_err(failed)?;
            tracing::debug!(content = %spec.digest, at, "layer decoded");
        }
        Ok(())
    }

    /// The same onto the disk of another body.
    pub(super) fn decode_into(&self, body: &Body) -> Result<(), DecodeLayerError> {
        for (at, spec) in self.layout.contents().iter().enumerate() {
            self.decode_content(at, spec, [body].into_iter())?;
        }
        Ok(())
    }

    /// Compares the disk with what a blob's layers decode to, and writes anew what differs: the blob alone has links, and its bytes
    /// are no part of the disk. Whether something differed. Nothing happens for contents that aren't decoded, or of an
    /// image that isn't installed.
    ///
    /// # Errors
    /// When a part can't be read or written, or the blob has rotted.
    pub(crate) fn mend_decoded(&self, content: Digest) -> Result<bool, DecodeLayerError> {
        let Some(at) = self.held.find(&content) else {
            return Ok(false);
        };
        // what is being built is decoded before it is installed
        if !self.is_installed() {
            return Ok(false);
        }
        let bodies = self.held.files().bodies();
        let bodies = bodies.iter().map(|body| &**body);
        let spec = &self.layout.contents()[at];
        let Some((layer, true)) = self.decode_content(at, spec, bodies)? else {
            return Ok(false);
        };
        let layer = Layout::name(layer);
        tracing::warn!(image = %self.layout.digest(), %layer, "decoded bytes have changed on disk; they were written anew");
        self.held.touch(at);
        self.flush()
            .map_err(|error| DecodeLayerError::Io { layer, error })?;
        Ok(true)
    }

    /// Decodes a content whose layers travel as a blob; the last of them, if there are any, and whether the disk was another.
    fn decode_content<'a>(
        &self,
        at: usize,
        spec: &ContentSpec,
        bodies: impl Iterator<Item = &'a Body> + Clone,
    ) -> Result<Option<(&DiskLayer, bool)>, DecodeLayerError> {
        let (mut last, mut changed) = (None, false);
        for place in &spec.places {
            let Place::Encoded { layer } = place else {
                continue;
            };
            let layer = &self.layout.layers()[*layer];
            let failed = |error| DecodeLayerError::Io {
                layer: Layout::name(layer),
                error,
            };
            if last.is_none() {
                self.look_at_all(at).map_err(failed)?;
                if !self.held.is_closed(at) {
                    return Err(DecodeLayerError::Rotten {
                        content: spec.digest,
                    });
                }
            }
            let blob = File::open(self.held.files().blob_path(at)).map_err(failed)?;
            for body in bodies.clone() {
                changed |= decode_layer(&blob, spec.geometry.size(), &body.disk, layer)?;
            }
            last = Some(layer);
        }
        Ok(last.map(|layer| (layer, changed)))
    }

    /// Compares every held chunk of a content with its link, and drops what rotted.
    fn look_at_all(&self, at: usize) -> io::Result<()> {
        for chunk in self.held.held(at).iter() {
            if self.held.look(at, chunk)? == Look::Rotten {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Compares what an earlier process left with its links: what rotted isn't held any more, and told as
    /// [`News`](super::News). About a second per GB, on several processors less.
    ///
    /// # Errors
    /// When the volume fails.
    pub fn read_again(&self) -> io::Result<()> {
        let unread: Vec<(usize, ChunkIndex)> = (0..self.held.len())
            .flat_map(|at| {
                let unread = self.held.unread(at);
                unread.iter().map(|chunk| (at, chunk)).collect::<Vec<_>>()
            })
            .collect();
        if unread.is_empty() {
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let read = || -> io::Result<()> {
            while let Some((at, chunk)) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.is_gone() {
                    break;
                }
                self.shared.go_on()?;
                if self.held.look(*at, *chunk)? == Look::Rotten {
                    self.flush()?;
                }
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..threads.min(READERS))
                .map(|_| scope.spawn(read))
                .collect();
            readers.into_iter().try_for_each(|reader| {
                reader
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    /// Whether [`read_again`](Self::read_again) has to come before an installation: something of an image under construction is
    /// held by the word of an earlier process alone, or the image is doubted. An image that was installed before is read as it
    /// is used.
    #[must_use]
    pub fn has_to_be_read(&self) -> bool {
        let unread = |at| !self.held.unread(at).is_empty();
        (!self.is_installed() || self.is_doubted()) && (0..self.held.len()).any(unread)
    }

    /// Makes the links of an installed image anew from its bytes, where its journal was lost: a hash of the disk, a second per GB,
    /// instead of a download. What isn't proved by that is left to be fetched.
    ///
    /// # Errors
    /// When the volume fails.
    pub(super) fn link_again(&self) -> io::Result<()> {
        let damaged = self.links_lost.load(Ordering::Acquire);
        // where nothing is known of a content: a stop came between the damage and this
        let lost_links =
            |at: &usize| !self.held.is_closed(*at) && (damaged || self.held.held(*at).is_empty());
        let contents: Vec<_> = (0..self.held.len()).filter(lost_links).collect();
        if contents.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let me = self.shared.host();
        let (mut linked, mut lost) = (0, 0);
        for at in contents {
            if self.held.link_again(at, &me, &|| self.shared.go_on())? {
                linked += 1;
            } else {
                // the bytes aren't the content's, somewhere: keep what the links that are left prove
                self.look_at_all(at)?;
                lost += 1;
            }
        }
        self.flush()?;
        self.links_lost.store(false, Ordering::Release);
        let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(image = %self.layout.digest(), linked, lost, elapsed_ms, "the journal's lost links were made again from the disk");
        Ok(())
    }

    /// Bytes that this stage may still take from the volume.
    pub(super) fn outstanding_bytes(&self) -> u64 {
        let copying = self.copying_bytes.load(Ordering::Acquire);
        if hold(&self.status).installed {
            return copying;
        }
        needed_bytes(&self.layout)
            .saturating_sub(self.held.files().taken_bytes())
            .saturating_add(copying)
    }

    /// Syncs every file of the image to the disk.
    pub(super) fn sync_files(&self) -> io::Result<()> {
        let bodies = self.held.files().bodies();
        bodies.iter().try_for_each(|body| body.sync())
    }

    /// The first content that isn't closed.
    pub(super) fn first_open(&self) -> Option<Digest> {
        (0..self.held.len())
            .find(|at| !self.held.is_closed(*at))
            .map(|at| self.held.digest(at))
    }

    /// Whether the image was given up, or its files removed: nothing is read or written any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.held.is_gone()
    }

    /// Marks the image as gone: nothing is read or written any more.
    pub(super) fn set_gone(&self) {
        self.held.set_gone();
    }
}

/// Bytes that an image may take from the volume while it is built: the whole disk although holes take none, the
/// blobs, and the journal.
pub(super) fn needed_bytes(layout: &Layout) -> u64 {
    /// More than a chunk's record in the journal, including its dropping.
    const RECORD_BYTES: u64 = 256;
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

/// Decodes a blob onto the disk at its layer's place.
fn decode_layer(
    blob: &File,
    blob_bytes: u64,
    disk: &File,
    layer: &DiskLayer,
) -> Result<bool, DecodeLayerError> {
    let failed = |error| DecodeLayerError::Io {
        layer: Layout::name(layer),
        error,
    };
    let mut offset = layer.offset;
    let mut raw = Vec::with_capacity(DECODE_BYTES);
    let mut there = Vec::new();
    let mut changed = false;
    let mut flush = |raw: &mut Vec<u8>, offset: &mut u64| {
        there.resize(raw.len(), 0);
        disk.read_exact_at(&mut there, *offset)?;
        if there != *raw {
            changed = true;
            put(disk, *offset, raw, is_zero(raw))?;
        }
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
    flush(&mut raw, &mut offset).map_err(failed)?;
    Ok(changed)
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
