//! The files of one image on this host: its bodies, and the blobs of layers that travel as they are in the registry.
//!
//! A *body* is one directory's `disk.img`, `config.json` and `nvram.bin`. An image under construction has one body. An
//! installed image has one in each repository of tart's cache that names it. Bodies share no inode, so an edit of one
//! changes no other. A chunk is written to all bodies, and read from the first.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use proto::{
    ChunkIndex, Digest, Layout,
    image::{ContentSpec, Place},
};

use super::{
    news::News,
    place::{Access, Files},
    shared::Shared,
    sync::sync_data,
    tree::{BLOBS, io_at},
};
use crate::{platform, tart::cache};

/// The files of one directory that holds the image.
#[derive(Debug)]
pub(super) struct Body {
    /// Inode of its disk. A rename keeps the inode, so the inode tells our disk from one that tart made under the same
    /// name.
    pub(super) inode: u64,
    pub(super) disk: File,
    config: File,
    nvram: File,
    /// Inodes of its disk, its config and its NVRAM.
    inodes: [u64; 3],
}

impl Body {
    /// A body of this layout in a directory. Makes the files that aren't there.
    pub(super) fn create(directory: &Path, layout: &Layout) -> io::Result<Self> {
        let open = |name: &str, size: u64| {
            let path = directory.join(name);
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
        Self::of(
            open(cache::DISK, layout.disk_bytes())?,
            open(cache::CONFIG, layout.config().size)?,
            open(cache::NVRAM, layout.nvram().size)?,
        )
    }

    /// Creates the body of a new image. If `base` is given and the volume can clone, its disk begins as a clone of
    /// `base`. The second value says whether it does.
    pub(super) fn begin(
        directory: &Path,
        layout: &Layout,
        base: Option<&Path>,
    ) -> io::Result<(Self, bool)> {
        let Some(base) = base else {
            return Ok((Self::create(directory, layout)?, false));
        };
        let disk = directory.join(cache::DISK);
        let cloned = match platform::clone_file(base, &disk) {
            Ok(()) => true,
            Err(platform::CloneError::Unsupported) => false,
            Err(platform::CloneError::Io(error)) => {
                tracing::warn!(base = %base.display(), %error, "cloning a similar disk failed; starting from an empty one");
                false
            }
        };
        match Self::create(directory, layout) {
            Err(error) if cloned => {
                tracing::warn!(%error, "a clone of a similar disk can't be used; starting from an empty one");
                fs::remove_file(disk)?;
                Ok((Self::create(directory, layout)?, false))
            }
            created => Ok((created?, cloned)),
        }
    }

    /// Opens the body in a directory. If an `installed` body is read-only, it is opened for reading and can't be
    /// mended.
    ///
    /// A config or NVRAM of another size is resized. A later read shows the bytes that are then missing.
    pub(super) fn open(directory: &Path, installed: bool, layout: &Layout) -> io::Result<Self> {
        let open = |name: &str, size: Option<u64>| {
            let path = directory.join(name);
            let file = match open_part(&path, Access::Write) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && installed => {
                    tracing::warn!(path = %path.display(), "an installed image may only be read: it is served, but can't be mended");
                    return open_part(&path, Access::Read);
                }
                other => other?,
            };
            if let Some(size) = size
                && file.metadata()?.len() != size
            {
                tracing::warn!(path = %path.display(), bytes = size, "a file of an image has another size than its manifest says");
                file.set_len(size)?;
            }
            Ok(file)
        };
        Self::of(
            open(cache::DISK, None)?,
            open(cache::CONFIG, Some(layout.config().size))?,
            open(cache::NVRAM, Some(layout.nvram().size))?,
        )
    }

    fn of(disk: File, config: File, nvram: File) -> io::Result<Self> {
        let inode = |file: &File| Ok::<_, io::Error>(file.metadata()?.ino());
        let inodes = [inode(&disk)?, inode(&config)?, inode(&nvram)?];
        Ok(Self {
            inode: inodes[0],
            disk,
            config,
            nvram,
            inodes,
        })
    }

    /// Whether the files in a directory are this body's files, with these sizes. A replaced, lengthened or shortened
    /// file isn't the image, although tart would use it.
    fn lies_in(&self, directory: &Path, sizes: [u64; 3]) -> bool {
        let parts = [cache::DISK, cache::CONFIG, cache::NVRAM].iter();
        parts
            .zip(self.inodes)
            .zip(sizes)
            .all(|((part, inode), size)| {
                fs::symlink_metadata(directory.join(part)).is_ok_and(|found| {
                    found.is_file() && found.ino() == inode && found.len() == size
                })
            })
    }

    /// Whether its disk has the size of this layout.
    pub(super) fn fits(&self, layout: &Layout) -> io::Result<bool> {
        Ok(self.disk.metadata()?.len() == layout.disk_bytes())
    }

    fn files(&self) -> [&File; 3] {
        [&self.disk, &self.config, &self.nvram]
    }

    /// The file of a place, and where the content starts in it; `None` for a blob, which is in no body.
    pub(super) const fn place(&self, place: Where) -> Option<(&File, u64)> {
        match place {
            Where::Disk(offset) => Some((&self.disk, offset)),
            Where::Config => Some((&self.config, 0)),
            Where::Nvram => Some((&self.nvram, 0)),
            Where::Blob => None,
        }
    }

    /// Bytes that the body takes from the volume, by the file system's count. Blocks shared with a clone are counted,
    /// too.
    pub(super) fn taken_bytes(&self) -> u64 {
        let taken = |file: &File| file.metadata().map_or(0, |found| found.blocks() * 512);
        self.files().into_iter().map(taken).sum()
    }

    /// Syncs its files to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.files().into_iter().try_for_each(platform::sync_full)
    }

    /// Whether its disk still has a name.
    pub(super) fn is_linked(&self) -> bool {
        self.disk.metadata().is_ok_and(|found| found.nlink() > 0)
    }
}

/// Opens a part of a body. Anything that isn't a regular file counts as missing. A symlink isn't followed, so its
/// target is never changed.
fn open_part(path: &Path, access: Access) -> io::Result<File> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, "it isn't a file");
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io_at("opening", path, absent()));
    }
    let flags = rustix::fs::OFlags::NOFOLLOW;
    OpenOptions::new()
        .read(true)
        .write(access == Access::Write)
        .custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()))
        .open(path)
}

/// Where a content's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Where {
    /// At this offset of the disk.
    Disk(u64),
    Config,
    Nvram,
    /// In a file of its own, from which layers are decoded.
    Blob,
}

/// The files of an image.
#[derive(Debug)]
pub(crate) struct ImageFiles {
    shared: Arc<Shared>,
    image: Digest,
    /// `.parbake/<hex>`.
    directory: PathBuf,
    /// Sizes of the disk, the config and the NVRAM, by the layout.
    sizes: [u64; 3],
    contents: Vec<(Digest, Vec<Where>)>,
    /// The first body is the one that is read. Never empty.
    bodies: RwLock<Vec<Arc<Body>>>,
    /// Bytes that were written in this process.
    written: AtomicU64,
    /// Whether this process made the disk as a clone of another one. A later process doesn't know: it writes whole
    /// chunks, because what it reads of those that no journal vouches for needn't be on the disk.
    cloned: AtomicBool,
}

impl ImageFiles {
    pub(super) fn new(
        shared: Arc<Shared>,
        layout: &Layout,
        directory: &Path,
        bodies: Vec<Body>,
    ) -> Self {
        let contents = layout.contents();
        Self {
            shared,
            image: *layout.digest(),
            directory: directory.to_owned(),
            sizes: [
                layout.disk_bytes(),
                layout.config().size,
                layout.nvram().size,
            ],
            contents: contents
                .iter()
                .map(|spec| (spec.digest, places_of(spec)))
                .collect(),
            bodies: RwLock::new(bodies.into_iter().map(Arc::new).collect()),
            written: AtomicU64::new(0),
            cloned: AtomicBool::new(false),
        }
    }

    /// Makes the directory for blobs.
    pub(super) fn create_blobs(directory: &Path) -> io::Result<()> {
        let blobs = directory.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(|error| io_at("creating", &blobs, error))
    }

    pub(super) fn places(&self, content: usize) -> &[Where] {
        &self.contents[content].1
    }

    pub(super) fn bodies(&self) -> Vec<Arc<Body>> {
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        bodies.clone()
    }

    /// Whether a directory holds all files of one of the bodies.
    pub(super) fn lie_in(&self, directory: &Path) -> bool {
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        bodies
            .iter()
            .any(|body| body.lies_in(directory, self.sizes))
    }

    /// Adds another body, whose bytes are written and compared already.
    pub(super) fn add_body(&self, body: Body) {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        bodies.push(Arc::new(body));
    }

    /// Replaces the open files.
    pub(super) fn replace_bodies(&self, new: Vec<Body>) {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        *bodies = new.into_iter().map(Arc::new).collect();
    }

    /// Closes bodies whose disk was removed. Keeps them all if every disk was removed: nothing could be read without
    /// one.
    pub(super) fn drop_removed_bodies(&self) {
        let bodies = self.bodies();
        if bodies.len() < 2 || bodies.iter().all(|body| body.is_linked()) {
            return;
        }
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        let linked: Vec<_> = bodies
            .iter()
            .filter(|body| body.is_linked())
            .cloned()
            .collect();
        if !linked.is_empty() {
            *bodies = linked;
        }
    }

    pub(super) fn blob_path(&self, content: usize) -> PathBuf {
        self.directory
            .join(BLOBS)
            .join(self.contents[content].0.hex().to_string())
    }

    /// The disk was made as a clone of another one.
    pub(super) fn set_cloned(&self) {
        self.cloned.store(true, Ordering::Release);
    }

    /// Bytes that were written in this process, without zeros.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

impl Files for Arc<ImageFiles> {
    fn each(
        &self,
        content: usize,
        access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut number = 0;
        for body in self.bodies() {
            for place in &self.contents[content].1 {
                if let Some((file, base)) = body.place(*place) {
                    run(number, file, base)?;
                    number += 1;
                }
            }
        }
        if self.contents[content].1.contains(&Where::Blob) {
            // Opened each time: an image of this old kind has hundreds of blobs, and a process on macOS may open fewer
            // files.
            let write = access == Access::Write;
            let open = || {
                OpenOptions::new()
                    .read(true)
                    .write(write)
                    .create(write)
                    .truncate(false)
                    .open(self.blob_path(content))
            };
            let file = match open() {
                // somebody removed the directory
                Err(error) if write && error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(self.directory.join(BLOBS))?;
                    open()?
                }
                opened => opened?,
            };
            run(number, &file, 0)?;
        }
        Ok(())
    }

    fn sync(&self, contents: &BTreeSet<usize>) -> io::Result<()> {
        let places = |wanted: fn(&Where) -> bool| {
            contents
                .iter()
                .any(|content| self.contents[*content].1.iter().any(wanted))
        };
        // layers of a blob are decoded onto the disk
        let disk = places(|place| matches!(place, Where::Disk(_) | Where::Blob));
        let config = places(|place| *place == Where::Config);
        let nvram = places(|place| *place == Where::Nvram);
        for body in self.bodies() {
            let written = [disk, config, nvram].into_iter().zip(body.files());
            for (_, file) in written.filter(|(written, _)| *written) {
                sync_data(file)?;
            }
        }
        let mut blobs = false;
        for content in contents {
            if self.contents[*content].1.contains(&Where::Blob) {
                sync_data(&File::open(self.blob_path(*content))?)?;
                blobs = true;
            }
        }
        if blobs {
            platform::sync_directory(&self.directory.join(BLOBS))?;
        }
        Ok(())
    }

    fn began_as_clone(&self) -> bool {
        self.cloned.load(Ordering::Acquire)
    }

    fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    fn rotted(&self, content: usize, chunk: ChunkIndex) {
        self.shared.tell(News::Rotted {
            image: self.image,
            content: self.contents[content].0,
            chunk,
        });
    }
}

/// Bytes that an image may take from the volume while it is built: the whole disk although holes take none, the
/// blobs, and the notes.
pub(super) fn needed_bytes(layout: &Layout) -> u64 {
    let mut bytes = layout.disk_bytes() + notes_bytes(layout);
    for content in layout.contents() {
        let blob = content
            .places
            .iter()
            .any(|place| !matches!(place, Place::Disk { .. }));
        if blob {
            bytes += content.geometry.size();
        }
    }
    bytes
}

/// Bytes that the journal of an image and the index of its blocks take at most.
pub(super) fn notes_bytes(layout: &Layout) -> u64 {
    /// Upper bound of a chunk's bytes in the journal, with the record of its drop.
    const RECORD_BYTES: u64 = 256;
    /// A block of 16 KiB has 9 bytes in the index.
    const DISK_BYTES_PER_BYTE: u64 = 1 << 10;
    let chunks = layout.contents().into_iter();
    let chunks = chunks.map(|content| u64::from(content.geometry.chunks()));
    (1 << 20) + chunks.sum::<u64>() * RECORD_BYTES + layout.disk_bytes() / DISK_BYTES_PER_BYTE
}

fn places_of(spec: &ContentSpec) -> Vec<Where> {
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
    places
}
