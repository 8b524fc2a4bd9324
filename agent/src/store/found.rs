//! Disks in tart's home that parbake didn't build: images that tart pulled, goldens and VMs that others made; and disks
//! of images that were staged without a recipe. They are read once (`survey` says when), so that new images find their
//! bytes there.
//!
//! ```text
//! TART_HOME/.parbake/disks/<hex of the path's digest>/
//!   about.json       the disk's path, and where layers begin on it
//!   scan             while it is read (`scan`)
//!   prints           the fingerprint of each chunk, in order
//!   blocks.index     where blocks lie
//! ```
//!
//! **A disk that changed is noticed** by its inode, size or time, before anything is made of the notes, and with each
//! read. Nothing is trusted all the same: what is read is compared with the new image's recipe before it counts.

pub(super) mod scan;

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use proto::{ChunkIndex, Digest, Fingerprint, Geometry, image::MAX_DISK_BYTES};
use serde::{Deserialize, Serialize};

use self::scan::{Extent, Scan, header};
use super::{
    blocks::index::{Index, Key},
    tree::{INDEX, ROOT, remove_any},
};

/// The directory of notes on disks that were found.
const DISKS: &str = "disks";
const ABOUT: &str = "about.json";
const SCAN: &str = "scan";
const PRINTS: &str = "prints";
/// The version of `about.json`.
const VERSION: u32 = 1;
/// A disk without a manifest is cut into extents of this size, as tart cuts layers (tart, Sources/tart/OCI/Layerizer/
/// DiskV2.swift: layerLimitBytes). A clone has no manifest (tart, Sources/tart/VMDirectory.swift: clone).
const EXTENT_BYTES: u64 = 512 << 20;
/// Records that a step adds to the log at most. Where all is holes, these are of 64 GiB.
const MAX_RECORDS: usize = 1024;
/// The most bytes of `about.json`: those of the extents of a manifest with the most layers.
const MAX_ABOUT_BYTES: u64 = 1 << 20;

/// The notes on disks that were found, below tart's home.
pub(super) fn directory(home: &Path) -> PathBuf {
    home.join(ROOT).join(DISKS)
}

/// A disk that was found: where it lies, and how it is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundDisk {
    path: PathBuf,
    /// Our directory of it.
    directory: PathBuf,
    extents: Vec<Extent>,
    /// Names how the disk is cut.
    cut: Digest,
}

/// A disk that was found, open.
#[derive(Debug)]
pub(super) struct OpenDisk {
    file: File,
    cut: Digest,
    key: Key,
}

impl OpenDisk {
    /// Reads bytes of the disk. `None` if the disk isn't what was read any more.
    pub(super) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<Option<()>> {
        if Key::new(self.cut, &self.file)? != self.key {
            return Ok(None);
        }
        self.file.read_exact_at(bytes, offset).map(Some)
    }
}

#[derive(Deserialize, Serialize)]
struct About {
    version: u32,
    /// Below tart's home.
    path: String,
    /// Offset and bytes of each extent.
    extents: Vec<(u64, u64)>,
}

impl FoundDisk {
    /// The disk at this path below tart's home, cut at these places: offset and bytes of each layer. Without any, it
    /// is cut as tart cuts layers. `None` for a disk that is larger than an image's may be: a sparse file can claim any
    /// size.
    pub(super) fn new(home: &Path, path: &str, layers: &[(u64, u64)], bytes: u64) -> Option<Self> {
        if bytes > MAX_DISK_BYTES {
            return None;
        }
        let even = |at: u64| {
            (
                at * EXTENT_BYTES,
                EXTENT_BYTES.min(bytes - at * EXTENT_BYTES),
            )
        };
        let layers = match layers {
            [] => (0..bytes.div_ceil(EXTENT_BYTES)).map(even).collect(),
            layers => layers.to_vec(),
        };
        let extents = layers.into_iter().map(|(offset, bytes)| {
            let geometry = Geometry::new(bytes).ok()?;
            Some(Extent { offset, geometry })
        });
        let extents: Vec<Extent> = extents.collect::<Option<_>>()?;
        let name = Digest::of(path.as_bytes()).hex().to_string();
        Some(Self {
            path: home.join(path),
            directory: directory(home).join(name),
            cut: cut(&extents),
            extents,
        })
    }

    /// The disks on which there are notes, read or not.
    pub(super) fn known(home: &Path) -> Vec<Self> {
        let entries = fs::read_dir(directory(home)).into_iter().flatten();
        let known = entries.flatten();
        known
            .filter_map(|entry| Self::read(home, &entry.path()))
            .collect()
    }

    /// Removes notes that can't be read. Only who makes notes may call it: notes that are being made look so, too.
    pub(super) fn sweep(home: &Path) {
        let entries = fs::read_dir(directory(home)).into_iter().flatten();
        for path in entries.flatten().map(|entry| entry.path()) {
            if Self::read(home, &path).is_none()
                && let Err(error) = remove_any(&path)
            {
                tracing::debug!(path = %path.display(), %error, "useless notes on a disk stay");
            }
        }
    }

    fn read(home: &Path, directory: &Path) -> Option<Self> {
        let file = File::open(directory.join(ABOUT)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_ABOUT_BYTES).read_to_end(&mut bytes).ok()?;
        let about: About = serde_json::from_slice(&bytes).ok()?;
        // an empty list would be cut anew, and not as it was
        let sound = about.version == VERSION && !about.extents.is_empty();
        let found = Self::new(home, &about.path, &about.extents, 0).filter(|_| sound)?;
        (found.directory == directory).then_some(found)
    }

    /// Where the disk lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// What is known of the disk as it is now.
    pub(super) fn key(&self) -> io::Result<Key> {
        Key::new(self.cut, &self.open()?)
    }

    /// Opens the disk, to read it as long as it is what this key says. While it is open, a disk that is removed keeps
    /// its room.
    pub(super) fn open_as(&self, key: Key) -> io::Result<OpenDisk> {
        let (file, cut) = (self.open()?, self.cut);
        Ok(OpenDisk { file, cut, key })
    }

    /// Opens the disk. A symlink isn't followed.
    fn open(&self) -> io::Result<File> {
        match fs::symlink_metadata(&self.path)?.is_file() {
            true => File::open(&self.path),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn chunks(&self) -> u64 {
        let chunks = self.extents.iter().map(|extent| extent.geometry.chunks());
        chunks.map(u64::from).sum()
    }

    /// Whether the disk was read, and is as it was then.
    pub(super) fn is_read(&self) -> bool {
        self.prints().is_ok_and(|found| found.is_some())
            && self.key().is_ok_and(|key| {
                let index = Index::open(&self.directory.join(INDEX), &key);
                index.is_ok_and(|index| index.is_some())
            })
    }

    /// Whether the disk is as it was when reading it began, and it isn't read yet.
    pub(super) fn is_begun(&self) -> bool {
        let begins = || -> io::Result<bool> {
            let header = header(&self.key()?);
            let mut found = vec![0; header.len()];
            File::open(self.directory.join(SCAN))?.read_exact(&mut found)?;
            Ok(found == header)
        };
        begins().unwrap_or(false)
    }

    /// Bytes that the notes take.
    pub(super) fn notes_bytes(&self) -> u64 {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
        files.map(|found| found.len()).sum()
    }

    /// Begins to read the disk, or goes on.
    pub(super) fn begin(&self, home: &Path) -> io::Result<Reading> {
        fs::create_dir_all(&self.directory)?;
        let path = self.path.strip_prefix(home).ok().and_then(Path::to_str);
        let about = About {
            version: VERSION,
            path: path.ok_or(io::ErrorKind::InvalidData)?.to_owned(),
            extents: self
                .extents
                .iter()
                .map(|extent| (extent.offset, extent.geometry.size()))
                .collect(),
        };
        fs::write(self.directory.join(ABOUT), serde_json::to_vec(&about)?)?;
        let key = self.key()?;
        Ok(Reading {
            scan: Scan::open(&self.directory.join(SCAN), &key, &self.extents)?,
            disk: self.clone(),
            key,
        })
    }

    /// Removes the notes on the disk.
    pub(super) fn forget(&self) -> io::Result<()> {
        remove_any(&self.directory)
    }

    /// The index of the disk's blocks, if the disk was read and is as it was then.
    pub(super) fn index(&self) -> io::Result<Option<(Index, Key, PathBuf)>> {
        let key = self.key()?;
        let path = self.directory.join(INDEX);
        let index = Index::open(&path, &key)?;
        Ok(index.map(|index| (index, key, path)))
    }

    /// The file of fingerprints behind its header. `None` if it isn't of the disk as it is now.
    fn prints(&self) -> io::Result<Option<BufReader<File>>> {
        let header = header(&self.key()?);
        let file = match File::open(self.directory.join(PRINTS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let bytes = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let mut found = vec![0; header.len()];
        let fits = bytes == header.len() as u64 + 16 * self.chunks()
            && file.read_exact(&mut found).is_ok()
            && found == header;
        Ok(fits.then_some(file))
    }

    /// Hands over the fingerprint of each chunk, with the chunk's offset on the disk and its length. Nothing if the
    /// disk isn't what was read. The inner error says that the notes can't be read.
    ///
    /// # Errors
    /// Those of `take`.
    pub(super) fn each_print<E>(
        &self,
        take: &mut dyn FnMut(Fingerprint, u64, u32) -> Result<(), E>,
    ) -> Result<io::Result<()>, E> {
        let mut prints = match self.prints() {
            Ok(Some(prints)) => prints,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        for extent in &self.extents {
            for chunk in (0..extent.geometry.chunks()).map(ChunkIndex) {
                let mut print = [0; 16];
                if let Err(error) = prints.read_exact(&mut print) {
                    return Ok(Err(error));
                }
                let offset = extent.offset + extent.geometry.offset(chunk);
                take(Fingerprint(print), offset, extent.geometry.len(chunk))?;
            }
        }
        Ok(Ok(()))
    }
}

/// Names how a disk is cut.
fn cut(extents: &[Extent]) -> Digest {
    let mut bytes = Vec::with_capacity(16 * extents.len());
    for extent in extents {
        bytes.extend(extent.offset.to_le_bytes());
        bytes.extend(extent.geometry.size().to_le_bytes());
    }
    Digest::of(&bytes)
}

/// A disk that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    disk: FoundDisk,
    key: Key,
    scan: Scan,
}

impl Reading {
    /// Whether this is the reading of the disk as it is now.
    pub(super) fn is_of(&self, disk: &FoundDisk) -> bool {
        self.disk == *disk && disk.key().is_ok_and(|key| key == self.key)
    }

    /// Bytes that are left to read.
    pub(super) fn left_bytes(&self) -> u64 {
        self.scan.left_bytes()
    }

    /// Reads so many chunks with data at most, and the holes before them. Returns whether the disk is read now. `go_on`
    /// is asked before each chunk, and while the notes are made of what was read.
    ///
    /// # Errors
    /// When the disk can't be read, the notes not written, or the disk was changed meanwhile. Those of `go_on`: the
    /// next step goes on then.
    pub(super) fn step(
        &mut self,
        most: u32,
        go_on: &dyn Fn() -> io::Result<()>,
    ) -> io::Result<bool> {
        let file = self.disk.open()?;
        let mut left = most;
        for _ in 0..MAX_RECORDS {
            if left > 0 && !self.scan.is_done() {
                left -= self.scan.step(&file, left, go_on)?;
            }
        }
        if Key::new(self.disk.cut, &file)? != self.key {
            return Err(io::Error::other("the disk changed while it was read"));
        }
        if !self.scan.is_done() {
            return Ok(false);
        }
        let directory = &self.disk.directory;
        Index::make(&directory.join(INDEX), &self.key, &mut |take| {
            self.scan.each_block(go_on, take)
        })?;
        self.scan.write_prints(&directory.join(PRINTS), &self.key)?;
        fs::remove_file(directory.join(SCAN))?;
        Ok(true)
    }
}
