//! From a complete stage to an image that tart finds: the order of steps is explained at the head of `store.rs`.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use proto::Digest;

use super::{
    DecodeLayerError, NoRoomError, ReferenceError, Stage, held::hold, io_at, parse_references,
    remove, stage::IMAGE, status::STATUS, twin::TWIN,
};
use crate::{
    platform::{self, LockError},
    tart::{Reference, Version, cache},
};

/// What stood in the image's place in the cache.
const REPLACED: &str = "replaced";

/// What a marker says while it only guards an image whose tag isn't linked yet. tart's own markers are empty; it looks
/// at their existence alone.
pub(super) const GUARD: &[u8] = b"placed by parbake until the tag is linked\n";

/// Why an image isn't installed. Everything that was done stays; installing again goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A reference is no good.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No reference was given, ever: tart couldn't find the image.
    #[error("image {0} has no reference to be installed under")]
    NoReference(Digest),
    /// A content isn't verified yet.
    #[error("content {0} isn't complete")]
    Incomplete(Digest),
    /// A layer that travels as a blob is bad.
    #[error(transparent)]
    Layer(DecodeLayerError),
    /// tart (a pull from the same registry, most likely) holds the lock for longer than the store waits.
    #[error("tart is busy: {0}")]
    Busy(LockError),
    /// Something of another kind stands where the tag's link goes.
    #[error("{path} is in the way of the tag's link: it isn't a link")]
    InTheWay {
        /// Where.
        path: PathBuf,
    },
    /// The image was abandoned meanwhile.
    #[error("image is gone from this host")]
    Gone,
    /// The image's files were removed from the disk. It has to be staged anew.
    #[error("the image's files were removed")]
    Removed,
    /// The volume has no room for a copy of the image in another repository's directory.
    #[error("copying the image to another repository's directory: {0}")]
    NoRoom(#[from] NoRoomError),
    /// The volume failed.
    #[error("installing the image: {0}")]
    Io(#[from] io::Error),
}

impl From<DecodeLayerError> for InstallError {
    fn from(error: DecodeLayerError) -> Self {
        match error {
            DecodeLayerError::Rotten { content } => Self::Incomplete(content),
            other => Self::Layer(other),
        }
    }
}

impl Stage {
    /// Puts the image into tart's cache under these references, and those that it was begun with. Repeating it is
    /// harmless; with a new reference it only makes the link.
    ///
    /// What tart itself may have pulled under the same name meanwhile is replaced: tart verifies nothing it pulls, and
    /// ours is verified. It is the same image, so whoever reads it notices nothing.
    ///
    /// # Errors
    /// When contents are missing, tart holds its lock, or the volume fails.
    pub fn install(&self, references: &[String]) -> Result<(), InstallError> {
        let references = parse_references(self.layout.digest(), references)?;
        let _installing = hold(&self.installing);
        if self.is_gone() {
            return Err(InstallError::Gone);
        }
        if !self.is_there() {
            return Err(InstallError::Removed);
        }
        self.add_references(&references)?;
        let references = self.own_references(&references);
        if references.is_empty() {
            return Err(InstallError::NoReference(*self.layout.digest()));
        }
        if let Some(content) = self.first_open() {
            return Err(InstallError::Incomplete(content));
        }
        let building = self.directory.join(IMAGE);
        let is_built = self.is_ours(&building);
        if is_built || self.is_doubted() {
            self.decode_layers()?;
            // by an earlier process, and not read since
            self.read_again()?;
            self.flush()?;
            if let Some(content) = self.first_open() {
                return Err(InstallError::Incomplete(content));
            }
        }
        if is_built {
            self.seal(&building)?;
        }
        for reference in &references {
            self.place(reference, &references)?;
        }
        step("placed")?;
        self.end_doubt()?;
        let mut status = hold(&self.status).clone();
        if !status.installed {
            status.installed = true;
            status.write(&self.directory)?;
            hold(&self.status).installed = true;
        }
        // What tart had, where it was exchanged for ours, and links under construction.
        for rest in [IMAGE, REPLACED, TWIN] {
            remove_any(&self.directory.join(rest))?;
        }
        Ok(())
    }

    /// Completes the directory and syncs all of it.
    fn seal(&self, building: &Path) -> Result<(), InstallError> {
        write_new(&building.join(cache::MANIFEST), &self.manifest)?;
        write_new(&building.join(cache::MARKER), GUARD)?;
        if let Err(error) = self.sync_files() {
            // what the system wrote before, and said so, may be lost too
            self.held.doubt();
            return Err(error.into());
        }
        platform::sync_directory(building)?;
        step("sealed")?;
        Ok(())
    }

    /// Makes tart find the image under one reference.
    fn place(&self, reference: &Reference, all: &[Reference]) -> Result<(), InstallError> {
        let home = &self.shared.home;
        let host = cache::host_directory(home, reference);
        let repository = cache::repository_directory(home, reference);
        let target = cache::image_directory(home, reference, self.layout.digest());
        // before tart's lock is taken: to make and compare a twin takes a second per GB
        let source = if self.is_ours(&target) {
            None
        } else {
            Some(self.source()?)
        };
        create_directories(&self.shared.home, &repository)?;
        let lock = platform::lock_directory(&host, self.shared.options.lock_wait);
        let _lock = lock.map_err(|error| match error {
            LockError::Busy { .. } => InstallError::Busy(error),
            LockError::Io { path, error } => io_at("locking", &path, error).into(),
        })?;
        let mut keep_marker = false;
        if let Some(source) = source {
            keep_marker = fs::symlink_metadata(target.join(cache::MARKER)).is_ok();
            self.move_in(&source, &target)?;
            platform::sync_directory(&repository)?;
            step("moved")?;
        }
        keep_marker |= all.iter().any(|other| {
            matches!(other.version(), Version::Digest(_))
                && cache::repository_directory(home, other) == repository
        });
        if let Some(link) = cache::tag_link(home, reference) {
            self.link_tag(&link, &target)?;
            platform::sync_directory(&repository)?;
            step("linked")?;
        }
        let marker = target.join(cache::MARKER);
        let is_guard = fs::read(&marker).is_ok_and(|bytes| bytes == GUARD);
        if keep_marker && (is_guard || !marker.exists()) {
            write_new(&marker, b"")?;
            platform::sync_directory(&target)?;
        } else if is_guard {
            fs::remove_file(&marker).map_err(|error| io_at("removing", &marker, error))?;
            platform::sync_directory(&target)?;
        }
        step("marked")?;
        Ok(())
    }

    /// The directory to move into the cache: the stage's own, or, where that has moved to another repository already, its twin.
    fn source(&self) -> Result<PathBuf, InstallError> {
        let building = self.directory.join(IMAGE);
        if self.is_ours(&building) {
            return Ok(building);
        }
        self.twin()
    }

    fn move_in(&self, source: &Path, target: &Path) -> io::Result<()> {
        if fs::symlink_metadata(target).is_err() {
            return fs::rename(source, target)
                .map_err(|error| io_at("moving the image to", target, error));
        }
        if platform::exchange(source, target).is_ok() {
            // Theirs now stands where ours was, and goes when all is done.
            return Ok(());
        }
        // A volume without exchange: for a moment there is neither, which tart takes for an image to pull.
        let replaced = self.directory.join(REPLACED);
        remove_any(&replaced)?;
        fs::rename(target, &replaced)
            .and_then(|()| fs::rename(source, target))
            .map_err(|error| io_at("moving the image to", target, error))
    }

    fn link_tag(&self, link: &Path, target: &Path) -> Result<(), InstallError> {
        match fs::symlink_metadata(link) {
            Ok(found) if !found.is_symlink() => {
                return Err(InstallError::InTheWay { path: link.into() });
            }
            Ok(_) if fs::read_link(link).is_ok_and(|to| to == target) => return Ok(()),
            _ => {}
        }
        let new = self.directory.join("link");
        remove_any(&new)?;
        symlink(target, &new).map_err(|error| io_at("linking", &new, error))?;
        fs::rename(&new, link).map_err(|error| io_at("linking", link, error))?;
        Ok(())
    }

    /// What to install under: what is wanted, and what was wanted before, less the tags that another image took over since
    /// this one was installed. Otherwise repeating an old installation would take them back.
    fn own_references(&self, wanted: &[Reference]) -> Vec<Reference> {
        let lost = if self.is_installed() {
            self.lost_references()
        } else {
            Vec::new()
        };
        let mut references = hold(&self.status).references.clone();
        references.retain(|reference| wanted.contains(reference) || !lost.contains(reference));
        references
    }

    /// References by tags that name another image now, which tart has whole.
    pub(super) fn lost_references(&self) -> Vec<Reference> {
        let home = &self.shared.home;
        let references = hold(&self.status).references.clone();
        let lost = references.into_iter().filter(|reference| {
            let ours = cache::image_directory(home, reference, self.layout.digest());
            cache::tag_link(home, reference)
                .and_then(|link| fs::read_link(link).ok())
                .is_some_and(|target| target != ours && cache::is_complete(&target))
        });
        lost.collect()
    }

    /// Adds to the references, lastingly.
    pub(super) fn add_references(&self, references: &[Reference]) -> io::Result<()> {
        let mut status = hold(&self.status);
        let before = status.references.len();
        for reference in references {
            if !status.references.contains(reference) {
                status.references.push(reference.clone());
            }
        }
        if status.references.len() > before {
            status.write(&self.directory)?;
        }
        Ok(())
    }

    /// Whether this directory holds our disk, whole, and the other parts.
    pub(super) fn is_ours(&self, directory: &Path) -> bool {
        fs::metadata(directory.join(cache::DISK)).is_ok_and(|disk| {
            self.held.files().has_body(disk.ino()) && disk.len() == self.layout.disk_bytes()
        }) && cache::is_complete(directory)
    }

    /// A directory of tart's cache that holds the image.
    pub(super) fn installed_directory(&self) -> Option<PathBuf> {
        let mut candidates = self.candidates().into_iter();
        candidates.find(|directory| self.is_ours(directory))
    }

    /// All of them.
    pub(super) fn installed_directories(&self) -> Vec<PathBuf> {
        let mut directories = self.candidates();
        directories.retain(|directory| self.is_ours(directory));
        directories
    }

    /// Where the image would lie, each once: one directory in the repository of each reference.
    fn candidates(&self) -> Vec<PathBuf> {
        let references = hold(&self.status).references.clone();
        let mut candidates = Vec::new();
        for reference in &references {
            let image = self.layout.digest();
            let directory = cache::image_directory(&self.shared.home, reference, image);
            if !candidates.contains(&directory) {
                candidates.push(directory);
            }
        }
        candidates
    }

    /// Whether the image's files are still here, under construction or in tart's cache, and our notes on it.
    pub(super) fn is_there(&self) -> bool {
        self.disk_path().is_some() && self.directory.join(STATUS).exists()
    }

    /// Where the disk is.
    pub(super) fn disk_path(&self) -> Option<PathBuf> {
        let building = self.directory.join(IMAGE);
        let directory = if self.is_ours(&building) {
            building
        } else {
            self.installed_directory()?
        };
        Some(directory.join(cache::DISK))
    }

    /// The references under which tart finds the image now.
    pub(super) fn present_references(&self) -> Vec<String> {
        let references = hold(&self.status).references.clone();
        let present = references.iter().filter(|reference| {
            let home = &self.shared.home;
            let target = cache::image_directory(home, reference, self.layout.digest());
            let named = match cache::tag_link(home, reference) {
                Some(link) => fs::read_link(link).is_ok_and(|to| to == target),
                None => target.join(cache::MARKER).exists(),
            };
            named && self.is_ours(&target)
        });
        present.map(ToString::to_string).collect()
    }
}

/// Creates directories below `home`, each synced into its parent.
fn create_directories(home: &Path, directory: &Path) -> io::Result<()> {
    if directory.is_dir() || !directory.starts_with(home) {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_directories(home, parent)?;
        match fs::create_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_at("creating", directory, error)),
            Ok(()) => platform::sync_directory(parent)?,
        }
    }
    Ok(())
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = fs::File::create(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        platform::sync_full(&file)
    });
    written.map_err(|error| io_at("writing", path, error))
}

pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove(path),
        Ok(_) => fs::remove_file(path).map_err(|error| io_at("removing", path, error)),
        Err(_) => Ok(()),
    }
}

/// A place between two steps of an installation, where tests let the process die.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests make it fail")]
pub(super) const fn step(_name: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use interrupted::step;

#[cfg(test)]
pub(super) mod interrupted {
    use std::{cell::Cell, io};

    thread_local! {
        /// How many steps this thread's installations go on for.
        pub(in crate::store) static STEPS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub(in crate::store) fn step(name: &'static str) -> io::Result<()> {
        let left = STEPS_LEFT.get();
        STEPS_LEFT.set(left.saturating_sub(1));
        if left == 0 {
            return Err(io::Error::other(format!("died after {name}")));
        }
        Ok(())
    }
}
