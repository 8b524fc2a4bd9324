//! The files of stacked images in tart's cache, which all images of this host share that have them: which of them are
//! ours, who refers to them, and tart's locks round them.
//!
//! tart (from 2.36 on) removes files there that no manifest refers to: of a record in its cache, of a local VM, or of a
//! directory in `tmp/`. It does so after each link, deletion of an image and collection, under the lock of `.gc.lock`
//! (tart of August 2026, Sources/tart/VMStorageOCI.swift: gc, gcContent, referencedContentDigests). So whoever puts a
//! file there holds that lock until a record refers to the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use proto::{Digest, Layout, image::Format};

use super::{open_file::OpenFile, tree::create_directories};
use crate::{
    lock::lock,
    platform::{self, DirectoryLock, LockError},
    tart::cache,
};

/// A file of tart's cache whose bytes this program proved, and which an image of ours has open.
#[derive(Debug)]
struct Known {
    file: Weak<OpenFile>,
    /// The raw layers that the file consists of.
    layers: Vec<Digest>,
}

/// The files of tart's cache that images of ours installed, by their digests.
#[derive(Debug, Default)]
pub(super) struct ContentFiles(Mutex<BTreeMap<Digest, Known>>);

impl ContentFiles {
    /// Notes a file that lies in tart's cache, with the raw layers of which it is known to consist.
    pub(super) fn note(&self, digest: Digest, file: &Arc<OpenFile>, layers: Vec<Digest>) {
        let mut known = lock(&self.0);
        known.retain(|_, known| known.file.strong_count() > 0);
        let file = Arc::downgrade(file);
        known.insert(digest, Known { file, layers });
    }

    /// Whether a file that consists of these raw layers is known to have this digest.
    pub(super) fn proves(&self, digest: &Digest, layers: &[Digest]) -> bool {
        let known = lock(&self.0);
        let found = known.get(digest);
        found.is_some_and(|known| known.file.strong_count() > 0 && known.layers == layers)
    }

    /// The file with this digest, if what lies in tart's cache is one that was noted, with its length.
    pub(super) fn lying(&self, home: &Path, digest: &Digest, bytes: u64) -> Option<Arc<OpenFile>> {
        let file = lock(&self.0).get(digest)?.file.upgrade()?;
        let found = fs::symlink_metadata(cache::content_file(home, digest)).ok()?;
        let is_it = found.is_file() && found.ino() == file.inode() && found.len() == bytes;
        is_it.then_some(file)
    }
}

/// tart's locks round the files of stacked images. They are released when this is dropped.
#[derive(Debug)]
pub(super) struct ContentLock {
    /// Dropped first: it was taken last.
    _collection: DirectoryLock,
    _installation: DirectoryLock,
}

/// Takes tart's locks round the files of stacked images. Makes the directories if they are missing. tart takes either
/// lock alone, so any order of the two is free of deadlocks (tart of August 2026, Sources/tart/ContentStore.swift:
/// install, withPruneLock).
///
/// # Errors
/// When tart holds one of them for longer than `wait`, or the directories can't be made.
pub(super) fn lock_content(home: &Path, wait: Duration) -> Result<ContentLock, LockError> {
    let directory = cache::content_directory(home);
    let files = directory.join("sha256");
    create_directories(home, &files).map_err(|error| LockError::Io { path: files, error })?;
    let installation = platform::lock_directory(&directory, wait)?;
    Ok(ContentLock {
        _collection: platform::lock_file(&cache::content_lock(home), wait)?,
        _installation: installation,
    })
}

/// The files of a stacked image that no manifest in tart's home refers to, if these directories weren't there. None of
/// a flat image.
///
/// # Errors
/// When a directory can't be read, or a manifest that may refer to files. Nobody knows then what isn't referred to.
pub(super) fn unreferred(
    home: &Path,
    layout: &Layout,
    without: &[PathBuf],
) -> io::Result<Vec<Digest>> {
    if layout.format() == Format::Flat {
        return Ok(Vec::new());
    }
    let referred = referred(home, without)?;
    let files = layout.files().iter().filter_map(|file| file.digest);
    Ok(files.filter(|file| !referred.contains(file)).collect())
}

/// Removes from tart's cache the files of a stacked image to which no manifest refers, as far as they have one of these
/// inodes. None of a flat image. What can't be removed now, because tart holds its locks or the volume fails, is left
/// for tart to collect.
pub(super) fn remove_unreferred(home: &Path, layout: &Layout, inodes: &BTreeSet<u64>) {
    let lies = |file: &Digest| {
        let found = fs::symlink_metadata(cache::content_file(home, file));
        found.is_ok_and(|found| found.is_file() && inodes.contains(&found.ino()))
    };
    let mut files = layout.files().iter().filter_map(|file| file.digest);
    // tart's locks are for those that have something to remove
    if layout.format() == Format::Flat || !files.any(|file| lies(&file)) {
        return;
    }
    let remove = || -> io::Result<()> {
        let _locked = lock_content(home, Duration::ZERO).map_err(io::Error::other)?;
        for file in unreferred(home, layout, &[])? {
            // a file may have been replaced before the locks were taken
            if lies(&file) {
                fs::remove_file(cache::content_file(home, &file))?;
            }
        }
        Ok(())
    };
    if let Err(error) = remove() {
        let image = layout.digest();
        tracing::warn!(%image, %error, "files of an image that was given up are left for tart to collect");
    }
}

/// The files of the stacked image in these directories to which nothing would refer if `without` weren't there. None if
/// that can't be told.
pub(super) fn freed(home: &Path, directories: &[PathBuf], without: &[PathBuf]) -> Vec<PathBuf> {
    let layout = directories.iter().find_map(|of| cache::manifest(of));
    let files = layout.and_then(|layout| unreferred(home, &layout, without).ok());
    let files = files.into_iter().flatten();
    files.map(|file| cache::content_file(home, &file)).collect()
}

/// The files that manifests in tart's home refer to: those of records in its cache, of local VMs, and of what tart
/// makes in `tmp/`. A VM that was made of a flat image by `clone --stacked` has that image's manifest, and refers to
/// the whole disk as a base by it (tart of August 2026, Sources/tart/VMDirectory+DiskImageStack.swift:
/// cloneAsStackedBase; OCI/Manifest.swift: diskContentDigests).
fn referred(home: &Path, without: &[PathBuf]) -> io::Result<BTreeSet<Digest>> {
    let mut directories: Vec<_> = cache::images(home)?
        .into_iter()
        .map(|of| (of, false))
        .collect();
    for (of, is_making) in [("vms", false), ("tmp", true)] {
        match fs::read_dir(home.join(of)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries? {
                    directories.push((entry?.path(), is_making));
                }
            }
        }
    }
    directories.retain(|(directory, _)| !without.contains(directory));
    let mut referred = BTreeSet::new();
    for (directory, is_making) in directories {
        let has = |part: &str| fs::symlink_metadata(directory.join(part)).is_ok();
        // a directory with a disk of its own refers to none, whatever its manifest is like
        if has(cache::DISK) && !is_making {
            continue;
        }
        match cache::manifest(&directory) {
            Some(layout) => referred.extend(layout.files().iter().filter_map(|file| file.digest)),
            None if has(cache::MANIFEST) && !has(cache::DISK) => {
                return Err(io::Error::other(format!(
                    "the manifest in {} can't be understood",
                    directory.display()
                )));
            }
            None => {}
        }
    }
    Ok(referred)
}
