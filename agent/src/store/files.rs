//! The files of one image on this host: its bodies, and the blobs of layers that travel as they are in the registry.
//!
//! A *body* is one directory's `disk.img`, `config.json` and `nvram.bin`. An image under construction has one body. An
//! installed image has one in each repository of tart's cache that names it. Bodies share no inode, so an edit of one
//! changes no other. A chunk is written to all bodies, and read from the first.
//!
//! The disk of a stacked image is several files, which lie outside of the directory: in the stage's own while it is
//! built, and then where tart has the files that images share. All bodies of such an image have these files in common.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::{
    ChunkIndex, Digest, Layout,
    image::{ContentSpec, Format, MAX_MANIFEST_BYTES, Place},
};

use super::{
    news::News,
    open_file::OpenFile,
    place::{Access, Files},
    shared::Shared,
    sync::sync_data,
    tree::{BLOBS, CONTENT, IMAGE, TAKEN, io_at},
};
use crate::{platform, tart::cache};

/// The most bytes of the note how much was written: the digits of the largest number.
const MAX_NOTE_BYTES: u64 = 20;

/// The files of one directory that holds the image.
#[derive(Clone, Debug)]
pub(super) struct Body {
    /// Inode of its disk, or of a stacked image's config. A rename keeps the inode, so the inode tells our directory
    /// from one that tart made under the same name.
    pub(super) inode: u64,
    /// The files of its disk, each with the offset on the disk where it begins. Bodies of a stacked image share them.
    disk: Vec<(u64, Arc<OpenFile>)>,
    config: Arc<OpenFile>,
    nvram: Arc<OpenFile>,
}

impl Body {
    /// A body of this layout in a directory. Makes the files that aren't there.
    pub(super) fn create(directory: &Path, layout: &Layout) -> io::Result<Self> {
        let paths = building_paths(directory, layout);
        let files = layout.files().iter().zip(paths);
        let disk = files.map(|(file, path)| Ok((file.start, make(&path, file.bytes)?)));
        let disk = disk.collect::<io::Result<_>>()?;
        Self::with_disk(directory, layout, disk)
    }

    /// A second body of a stacked image, in another directory. It has the same disk. Makes the files that aren't there.
    pub(super) fn beside(&self, directory: &Path, layout: &Layout) -> io::Result<Self> {
        Self::with_disk(directory, layout, self.disk.clone())
    }

    fn with_disk(
        directory: &Path,
        layout: &Layout,
        disk: Vec<(u64, Arc<OpenFile>)>,
    ) -> io::Result<Self> {
        Ok(Self::of(
            layout,
            disk,
            make(&directory.join(cache::CONFIG), layout.config().size)?,
            make(&directory.join(cache::NVRAM), layout.nvram().size)?,
        ))
    }

    /// Creates the body of a new image. If `base` is given and the volume can clone, its disk (the first file of it)
    /// begins as a clone of `base`. The second value says whether it does.
    pub(super) fn begin(
        directory: &Path,
        layout: &Layout,
        base: Option<&Path>,
    ) -> io::Result<(Self, bool)> {
        let paths = building_paths(directory, layout);
        if layout.format() == Format::Stacked
            && let Some(content) = paths.first().and_then(|path| path.parent())
        {
            fs::create_dir_all(content).map_err(|error| io_at("creating", content, error))?;
        }
        let (Some(base), Some(disk)) = (base, paths.first()) else {
            return Ok((Self::create(directory, layout)?, false));
        };
        let cloned = match platform::clone_file(base, disk) {
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

    /// Opens the body in a directory, whose disk consists of these files. If an `installed` body is read-only, it is
    /// opened for reading and can't be mended.
    ///
    /// A config or NVRAM of another size is resized. A later read shows the bytes that are then missing.
    pub(super) fn open(
        directory: &Path,
        disk: &[PathBuf],
        installed: bool,
        layout: &Layout,
    ) -> io::Result<Self> {
        let open = |path: &Path, size: Option<u64>| {
            let file = match open_part(path, Access::Write) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && installed => {
                    tracing::warn!(path = %path.display(), "an installed image may only be read: it is served, but can't be mended");
                    return OpenFile::of(open_part(path, Access::Read)?);
                }
                other => other?,
            };
            if let Some(size) = size
                && file.metadata()?.len() != size
            {
                tracing::warn!(path = %path.display(), bytes = size, "a file of an image has another size than its manifest says");
                file.set_len(size)?;
            }
            OpenFile::of(file)
        };
        let files = layout.files().iter().zip(disk);
        let disk = files.map(|(file, path)| Ok((file.start, open(path, None)?)));
        let disk = disk.collect::<io::Result<_>>()?;
        let config = open(&directory.join(cache::CONFIG), Some(layout.config().size))?;
        let nvram = open(&directory.join(cache::NVRAM), Some(layout.nvram().size))?;
        Ok(Self::of(layout, disk, config, nvram))
    }

    fn of(
        layout: &Layout,
        disk: Vec<(u64, Arc<OpenFile>)>,
        config: Arc<OpenFile>,
        nvram: Arc<OpenFile>,
    ) -> Self {
        let told = match (layout.format(), disk.first()) {
            (Format::Flat, Some((_, file))) => file,
            _ => &config,
        };
        Self {
            inode: told.inode(),
            disk,
            config,
            nvram,
        }
    }

    /// The inodes of the files of its disk.
    pub(super) fn disk_inodes(&self) -> Vec<u64> {
        self.disk.iter().map(|(_, file)| file.inode()).collect()
    }

    /// A file of its disk. The image has one with this number.
    pub(super) fn disk_file(&self, at: usize) -> &Arc<OpenFile> {
        &self.disk[at].1
    }

    /// The file at an offset on the disk, and the offset in that file.
    pub(super) fn disk_at(&self, offset: u64) -> (&File, u64) {
        let after = self.disk.partition_point(|(start, _)| *start <= offset);
        // the first file begins at 0
        let (start, file) = &self.disk[after.saturating_sub(1)];
        (file.file(), offset - start)
    }

    /// The same body with other files of its disk.
    fn sharing(&self, files: &[(usize, Arc<OpenFile>)]) -> Self {
        let mut body = self.clone();
        for (at, file) in files {
            body.disk[*at].1 = file.clone();
        }
        body
    }

    /// Whether the files of a directory, and of a disk with these paths, are this body's files, with these sizes. A
    /// replaced, lengthened or shortened file isn't the image, although tart would use it.
    fn lies_in(&self, directory: &Path, disk: &[PathBuf], sizes: &Sizes) -> bool {
        let lies = |path: &Path, file: &OpenFile, size: u64| {
            fs::symlink_metadata(path).is_ok_and(|found| {
                found.is_file() && found.ino() == file.inode() && found.len() == size
            })
        };
        let mut files = self.disk.iter().zip(disk).zip(&sizes.disk);
        files.all(|(((_, file), path), size)| lies(path, file, *size))
            && lies(&directory.join(cache::CONFIG), &self.config, sizes.config)
            && lies(&directory.join(cache::NVRAM), &self.nvram, sizes.nvram)
    }

    /// Whether its disk has the size of this layout.
    pub(super) fn fits(&self, layout: &Layout) -> io::Result<bool> {
        for ((_, open), file) in self.disk.iter().zip(layout.files()) {
            if open.file().metadata()?.len() != file.bytes {
                return Ok(false);
            }
        }
        Ok(self.disk.len() == layout.files().len())
    }

    fn disk_files(&self) -> impl Iterator<Item = &OpenFile> {
        self.disk.iter().map(|(_, file)| &**file)
    }

    /// The file of a place, and where the content starts in it; `None` for a blob, which is in no body.
    pub(super) fn place(&self, place: Where) -> Option<(&File, u64)> {
        match place {
            Where::Disk(offset) => Some(self.disk_at(offset)),
            Where::Config => Some((self.config.file(), 0)),
            Where::Nvram => Some((self.nvram.file(), 0)),
            Where::Blob => None,
        }
    }

    /// Bytes that a second body takes from the volume where files can't be cloned, by the file system's count.
    pub(super) fn copied_bytes(&self) -> u64 {
        let shared = self.inode == self.config.inode();
        let disk = self.disk_files().filter(|_| !shared);
        let files = disk.chain([&*self.config, &*self.nvram]);
        files.map(OpenFile::taken_bytes).sum()
    }

    /// Syncs its files to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        let mut files = self.disk_files().chain([&*self.config, &*self.nvram]);
        files.try_for_each(|file| platform::sync_full(file.file()))
    }

    /// Whether the file that tells it from others still has a name.
    pub(super) fn is_linked(&self) -> bool {
        let mut files = self.disk_files().chain([&*self.config]);
        files.any(|file| file.inode() == self.inode && file.is_linked())
    }
}

/// Makes a file of this size, or takes the one that is there.
fn make(path: &Path, size: u64) -> io::Result<Arc<OpenFile>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| io_at("creating", path, error))?;
    file.set_len(size)
        .map_err(|error| io_at("resizing", path, error))?;
    OpenFile::of(file)
}

/// Where the files of an image's disk lie while it is under construction in `directory`, which is in the stage's own.
pub(super) fn building_paths(directory: &Path, layout: &Layout) -> Vec<PathBuf> {
    let content = directory.parent().unwrap_or(directory).join(CONTENT);
    disk_paths(directory, layout, |digest| {
        content.join(digest.hex().to_string())
    })
}

/// Where the files of an image's disk lie that is installed in `directory`.
pub(super) fn installed_paths(home: &Path, directory: &Path, layout: &Layout) -> Vec<PathBuf> {
    disk_paths(directory, layout, |digest| {
        cache::content_file(home, digest)
    })
}

fn disk_paths(
    directory: &Path,
    layout: &Layout,
    content: impl Fn(&Digest) -> PathBuf,
) -> Vec<PathBuf> {
    match layout.format() {
        Format::Flat => vec![directory.join(cache::DISK)],
        Format::Stacked => {
            let digests = layout
                .files()
                .iter()
                .filter_map(|file| file.digest.as_ref());
            digests.map(content).collect()
        }
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

/// Whether the bytes of this file are the manifest with this digest.
fn is_manifest(path: &Path, image: &Digest) -> bool {
    let found = fs::symlink_metadata(path);
    let is_small =
        found.is_ok_and(|found| found.is_file() && found.len() <= MAX_MANIFEST_BYTES as u64);
    is_small && fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == *image)
}

/// Sizes of an image's files, by its layout.
#[derive(Debug)]
struct Sizes {
    disk: Vec<u64>,
    config: u64,
    nvram: u64,
}

/// The files of an image.
#[derive(Debug)]
pub(crate) struct ImageFiles {
    shared: Arc<Shared>,
    image: Digest,
    /// `.parbake/<hex>`.
    directory: PathBuf,
    layout: Layout,
    sizes: Sizes,
    contents: Vec<(Digest, Vec<Where>)>,
    /// The first body is the one that is read. Never empty.
    bodies: RwLock<Vec<Arc<Body>>>,
    /// Bytes that were written in this process.
    written: AtomicU64,
    /// Bytes that earlier processes wrote, as far as they noted it.
    written_before: u64,
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
            layout: layout.clone(),
            sizes: Sizes {
                disk: layout.files().iter().map(|file| file.bytes).collect(),
                config: layout.config().size,
                nvram: layout.nvram().size,
            },
            contents: contents
                .iter()
                .map(|spec| (spec.digest, places_of(spec)))
                .collect(),
            bodies: RwLock::new(bodies.into_iter().map(Arc::new).collect()),
            written: AtomicU64::new(0),
            written_before: noted(directory),
            cloned: AtomicBool::new(false),
        }
    }

    /// How long the image stays guarded after its tag's link was made.
    pub(super) fn guard(&self) -> Duration {
        self.shared.guard()
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

    /// Where the files of the disk of the body in this directory lie. Those of an image under construction may have got
    /// their places in tart's cache already.
    pub(super) fn disk_paths(&self, directory: &Path) -> Vec<PathBuf> {
        let installed = installed_paths(self.shared.home(), directory, &self.layout);
        if directory != self.directory.join(IMAGE) || self.layout.format() == Format::Flat {
            return installed;
        }
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        let inodes = bodies
            .first()
            .map_or_else(Vec::new, |body| body.disk_inodes());
        let own = building_paths(directory, &self.layout).into_iter();
        let paths = own.zip(installed).zip(inodes);
        let paths = paths.map(|((own, installed), inode)| {
            let found = fs::symlink_metadata(&own);
            match found.is_ok_and(|found| found.ino() == inode) {
                true => own,
                false => installed,
            }
        });
        paths.collect()
    }

    /// Whether a directory holds all files of one of the bodies. tart finds a stacked image, and the files that it
    /// refers to, by its manifest, too: with another manifest it can't be cloned, and tart may collect its files.
    pub(super) fn lie_in(&self, directory: &Path) -> bool {
        let paths = self.disk_paths(directory);
        let bodies = self.bodies.read().unwrap_or_else(PoisonError::into_inner);
        let mut bodies = bodies.iter();
        let needs_manifest =
            self.layout.format() == Format::Stacked && directory != self.directory.join(IMAGE);
        bodies.any(|body| body.lies_in(directory, &paths, &self.sizes))
            && (!needs_manifest
                || is_manifest(&directory.join(cache::MANIFEST), self.layout.digest()))
    }

    /// Puts these files of the disk in the places of the bodies' own.
    pub(super) fn share(&self, files: &[(usize, Arc<OpenFile>)]) {
        let mut bodies = self.bodies.write().unwrap_or_else(PoisonError::into_inner);
        for body in &mut *bodies {
            *body = Arc::new(body.sharing(files));
        }
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

    /// Bytes that were written since the stage was made, without zeros: about what the volume gets back without it.
    /// Bytes that a clone shares with other files aren't among them, because they were never written.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.written_before.saturating_add(self.written_bytes())
    }

    /// Notes for later processes how much was written, while the image is under construction. The note isn't synced:
    /// one that is lost says that less was taken, and then less gives way to other images than could.
    fn note_taken(&self) {
        if !self.directory.join(IMAGE).exists() {
            return;
        }
        let (new, note) = (self.directory.join("taken.new"), self.directory.join(TAKEN));
        let written = fs::write(&new, self.taken_bytes().to_string());
        if let Err(error) = written.and_then(|()| fs::rename(&new, &note)) {
            tracing::debug!(image = %self.image, %error, "how much was written can't be noted");
        }
    }
}

/// Bytes that a stage's note says were written. None where it can't be read.
fn noted(directory: &Path) -> u64 {
    let note = File::open(directory.join(TAKEN));
    let mut text = String::new();
    let read = note.and_then(|note| note.take(MAX_NOTE_BYTES).read_to_string(&mut text));
    read.ok().and_then(|_| text.parse().ok()).unwrap_or(0)
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
            let files = body.disk_files().map(|file| (disk, file));
            let files = files.chain([(config, &*body.config), (nvram, &*body.nvram)]);
            for (_, file) in files.filter(|(written, _)| *written) {
                sync_data(file.file())?;
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
        self.note_taken();
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
