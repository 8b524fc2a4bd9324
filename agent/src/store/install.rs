//! From a complete stage to an image that tart finds: the order of steps is explained at the head of `store.rs`.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use proto::Digest;
use swarm::event::Entitled;

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
    /// tart (a pull from the same registry, most likely) holds its lock, for longer than the store waits.
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
    /// Puts the image into tart's cache under these references, and those that it is wanted under. Repeating it is
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
        self.put(&references).1
    }

    /// Puts the image into tart's cache under exactly these references. Those under which tart finds it now, also where others
    /// failed; and the first failure.
    ///
    /// Where tart finds it already under all of them no lock is waited for: a pull of tart's may hold that for an hour.
    pub fn install_as(&self, references: &[String]) -> (Vec<String>, Result<(), InstallError>) {
        let references = match parse_references(self.layout.digest(), references) {
            Ok(references) => references,
            Err(error) => return (Vec::new(), Err(error.into())),
        };
        let _installing = hold(&self.installing);
        if self.is_gone() {
            return (Vec::new(), Err(InstallError::Gone));
        }
        if !self.is_there() {
            return (Vec::new(), Err(InstallError::Removed));
        }
        let (placed, result) = match self.add_references(&references) {
            Ok(()) => self.put(&references),
            Err(error) => (Vec::new(), Err(error.into())),
        };
        (placed.iter().map(ToString::to_string).collect(), result)
    }

    /// Carries an installation out. The caller holds `installing`.
    fn put(&self, references: &[Reference]) -> (Vec<Reference>, Result<(), InstallError>) {
        // a doubt that comes later isn't answered by this
        let doubted = self.is_doubted();
        if self.waits_for_tart.load(Ordering::Acquire)
            && !doubted
            && let Some((placed, busy)) = self.still_waits(references)
        {
            return (placed, Err(InstallError::Busy(busy)));
        }
        let (placed, result) = self.put_unless_busy(references, doubted);
        let waits = matches!(result, Err(InstallError::Busy(_)));
        self.waits_for_tart.store(waits, Ordering::Release);
        (placed, result)
    }

    /// Where tart still holds the lock of every reference that isn't in place: those that are, and the lock. An installation that is
    /// tried again and again then syncs nothing.
    fn still_waits(&self, references: &[Reference]) -> Option<(Vec<Reference>, LockError)> {
        let (mut placed, mut busy) = (Vec::new(), None);
        for reference in references {
            if self.is_in_place(reference, self.keeps_marker(reference)) {
                placed.push(reference.clone());
                continue;
            }
            let host = cache::host_directory(&self.shared.home, reference);
            match platform::lock_directory(&host, Duration::ZERO) {
                Err(error @ LockError::Busy { .. }) => busy = Some(error),
                Ok(_) | Err(LockError::Io { .. }) => return None,
            }
        }
        busy.map(|busy| (placed, busy))
    }

    fn put_unless_busy(
        &self,
        references: &[Reference],
        doubted: bool,
    ) -> (Vec<Reference>, Result<(), InstallError>) {
        let prepared = self.prepare(references, doubted);
        if prepared.is_err() {
            return (Vec::new(), prepared);
        }
        let (mut placed, mut result) = (Vec::new(), Ok(()));
        for reference in references {
            match self.place(reference) {
                Ok(()) => placed.push(reference.clone()),
                Err(error) => result = result.and(Err(error)),
            }
            // what dies in a test dies there
            if result.is_err() && !going_on() {
                return (placed, result);
            }
        }
        // in the cache is installed, also where a link couldn't be made
        if self.installed_directory().is_some() {
            result = result.and(self.conclude(doubted));
        }
        if result.is_ok()
            && let Err(error) = remove_any(&self.directory.join(TWIN))
        {
            result = Err(error.into());
        }
        (placed, result)
    }

    /// What goes before the first link: everything is here, and on the disk.
    fn prepare(&self, references: &[Reference], doubted: bool) -> Result<(), InstallError> {
        if references.is_empty() {
            return Err(InstallError::NoReference(*self.layout.digest()));
        }
        if let Some(content) = self.first_open() {
            return Err(InstallError::Incomplete(content));
        }
        let building = self.directory.join(IMAGE);
        let is_built = self.is_ours(&building);
        if is_built || doubted {
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
        Ok(())
    }

    /// What comes after the last link.
    fn conclude(&self, doubted: bool) -> Result<(), InstallError> {
        step("placed")?;
        if doubted {
            self.end_doubt()?;
        }
        // held while it is written: other images' beginnings change what is wanted of this one
        let mut status = hold(&self.status);
        if !status.installed {
            let mut new = status.clone();
            new.installed = true;
            new.write(&self.directory)?;
            *status = new;
        }
        drop(status);
        // What tart had, where it was exchanged for ours. A twin that waits for tart's lock stays.
        for rest in [IMAGE, REPLACED] {
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
    fn place(&self, reference: &Reference) -> Result<(), InstallError> {
        let home = &self.shared.home;
        let keep_marker = self.keeps_marker(reference);
        if self.is_in_place(reference, keep_marker) {
            return Ok(());
        }
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
        let mut keep_marker = keep_marker;
        if let Some(source) = source {
            keep_marker |= fs::symlink_metadata(target.join(cache::MARKER)).is_ok();
            self.move_in(&source, &target)?;
            platform::sync_directory(&repository)?;
            step("moved")?;
        }
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

    /// Whether the image's directory in this reference's repository is also to be found by its digest: then the marker stays.
    fn keeps_marker(&self, reference: &Reference) -> bool {
        let home = &self.shared.home;
        let repository = cache::repository_directory(home, reference);
        let references = hold(&self.status).references.clone();
        references.iter().any(|other| {
            matches!(other.version(), Version::Digest(_))
                && cache::repository_directory(home, other) == repository
        })
    }

    /// Whether tart finds the image by this reference, and the marker is as it is to be.
    fn is_in_place(&self, reference: &Reference, keep_marker: bool) -> bool {
        let home = &self.shared.home;
        let marker = cache::image_directory(home, reference, self.layout.digest());
        let marker = fs::read(marker.join(cache::MARKER));
        let is_guard = marker.as_ref().is_ok_and(|bytes| bytes == GUARD);
        self.names(reference) && !is_guard && (marker.is_ok() || !keep_marker)
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
        let mut references = hold(&self.status).wanted().to_vec();
        references.retain(|reference| wanted.contains(reference) || !lost.contains(reference));
        references
    }

    /// The references that shall name the image. Of an image that an earlier version installed, those that it hasn't lost.
    pub(super) fn wanted(&self) -> Vec<Reference> {
        let status = hold(&self.status).clone();
        let lost = match (&status.wanted, status.installed) {
            (None, true) => self.lost_references(),
            _ => Vec::new(),
        };
        let mut references = status.wanted().to_vec();
        references.retain(|reference| !lost.contains(reference));
        references
    }

    /// Exactly these references are to name the image from now on, lastingly. Others that do go on naming it, but nobody keeps
    /// that up.
    pub(super) fn want(&self, references: &[Reference]) -> io::Result<()> {
        loop {
            let before = hold(&self.status).clone();
            if before.wanted.as_deref() == Some(references) {
                return Ok(());
            }
            let kept = self.kept(&before.references, references);
            self.unguard(&kept, references)?;
            let mut status = hold(&self.status);
            // an installation may have added some meanwhile
            if *status == before {
                status.references = kept;
                status.wanted = Some(references.to_vec());
                return status.write(&self.directory);
            }
        }
    }

    /// The hosts that may have what the image holds.
    #[must_use]
    pub fn entitled(&self) -> Entitled {
        hold(&self.status).entitled.clone()
    }

    /// Exactly these hosts may have it from now on, lastingly. Nothing is written where our directory was removed.
    pub(super) fn entitle(&self, entitled: Entitled) -> io::Result<()> {
        let mut status = hold(&self.status);
        if status.entitled == entitled {
            return Ok(());
        }
        status.entitled = entitled;
        match status.write(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.directory.exists() => {
                Ok(())
            }
            other => other,
        }
    }

    /// The same, unless our directory was removed: the next look finds that.
    pub(super) fn want_if_there(&self, references: &[Reference]) -> io::Result<()> {
        match self.want(references) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.directory.exists() => {
                Ok(())
            }
            other => other,
        }?;
        self.drop_twin(references)
    }

    /// Removes a twin that waits to be moved where no reference is wanted any more.
    fn drop_twin(&self, wanted: &[Reference]) -> io::Result<()> {
        let twin = self.directory.join(TWIN);
        let Ok(_installing) = self.installing.try_lock() else {
            return Ok(());
        };
        let home = &self.shared.home;
        let placed = |reference: &Reference| {
            self.is_ours(&cache::image_directory(
                home,
                reference,
                self.layout.digest(),
            ))
        };
        if twin.exists() && wanted.iter().all(placed) {
            remove_any(&twin)?;
        }
        Ok(())
    }

    /// The references to remember: those that are wanted, those that name the image, and one of each other repository where its
    /// files lie, by which they are found again.
    fn kept(&self, known: &[Reference], wanted: &[Reference]) -> Vec<Reference> {
        let home = &self.shared.home;
        let repository = |reference: &Reference| cache::repository_directory(home, reference);
        let mut places: BTreeSet<PathBuf> = wanted.iter().map(repository).collect();
        let mut kept: Vec<Reference> = Vec::new();
        for reference in known.iter().chain(wanted) {
            if kept.contains(reference) {
                continue;
            }
            let target = cache::image_directory(home, reference, self.layout.digest());
            let is_place = !places.contains(&repository(reference)) && self.is_ours(&target);
            if wanted.contains(reference) || self.names(reference) || is_place {
                places.insert(repository(reference));
                kept.push(reference.clone());
            }
        }
        kept
    }

    /// Takes the guard from directories that nothing names and nothing is to name: tart may collect them.
    fn unguard(&self, known: &[Reference], wanted: &[Reference]) -> io::Result<()> {
        let home = &self.shared.home;
        let repository = |reference: &Reference| cache::repository_directory(home, reference);
        for reference in known {
            if wanted
                .iter()
                .any(|wanted| repository(wanted) == repository(reference))
            {
                continue;
            }
            let target = cache::image_directory(home, reference, self.layout.digest());
            let marker = target.join(cache::MARKER);
            if self.is_ours(&target) && fs::read(&marker).is_ok_and(|bytes| bytes == GUARD) {
                fs::remove_file(&marker).map_err(|error| io_at("removing", &marker, error))?;
            }
        }
        Ok(())
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
        let mut wanted = self.wanted();
        let mut status = hold(&self.status);
        let mut known = status.references.clone();
        for list in [&mut wanted, &mut known] {
            for reference in references {
                if !list.contains(reference) {
                    list.push(reference.clone());
                }
            }
        }
        if known != status.references || Some(&wanted) != status.wanted.as_ref() {
            (status.references, status.wanted) = (known, Some(wanted));
            status.write(&self.directory)?;
        }
        Ok(())
    }

    /// Whether this directory holds the image's own files, whole.
    pub(super) fn is_ours(&self, directory: &Path) -> bool {
        self.held.files().lie_in(directory, &self.layout)
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
        let present = references.iter().filter(|reference| self.names(reference));
        present.map(ToString::to_string).collect()
    }

    /// Whether tart finds the image by this reference now.
    #[must_use]
    pub fn is_named(&self, reference: &str) -> bool {
        reference
            .parse()
            .is_ok_and(|reference| self.names(&reference))
    }

    /// The same.
    pub(super) fn names(&self, reference: &Reference) -> bool {
        let home = &self.shared.home;
        let target = cache::image_directory(home, reference, self.layout.digest());
        let named = match cache::tag_link(home, reference) {
            Some(link) => fs::read_link(link).is_ok_and(|to| to == target),
            None => target.join(cache::MARKER).exists(),
        };
        named && self.is_ours(&target)
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

/// Whether an installation that had an error goes on with its other references.
#[cfg(not(test))]
const fn going_on() -> bool {
    true
}

#[cfg(test)]
use interrupted::going_on;
#[cfg(test)]
pub(super) use interrupted::step;

#[cfg(test)]
pub(super) mod interrupted {
    use std::{cell::Cell, io};

    thread_local! {
        /// How many steps this thread's installations go on for.
        pub(in crate::store) static STEPS_LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// Not where the process died.
    pub(in crate::store) fn going_on() -> bool {
        STEPS_LEFT.get() > 0
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
