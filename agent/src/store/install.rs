//! From a complete stage to an image that tart finds: the order of steps is explained at the head of `store.rs`.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::Digest;

use super::{
    layers::DecodeLayerError,
    references::{ReferenceError, parse_references},
    room::NoRoomError,
    stage::{Installing, Stage},
    steps::{going_on, step},
    tree::{GUARD, IMAGE, REPLACED, TWIN, create_directories, io_at, remove_any, write_new},
    twin::{self, TwinError},
};
use crate::{
    platform::{self, LockError},
    tart::{Reference, cache},
};

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

impl From<TwinError> for InstallError {
    fn from(error: TwinError) -> Self {
        match error {
            TwinError::Removed => Self::Removed,
            TwinError::Incomplete(content) => Self::Incomplete(content),
            TwinError::Layer(error) => error.into(),
            TwinError::NoRoom(error) => error.into(),
            TwinError::Io(error) => error.into(),
        }
    }
}

/// Puts an image into tart's cache under these references, and those that it is wanted under. Repeating it is
/// harmless; with a new reference it only makes the link.
///
/// What tart itself may have pulled under the same name meanwhile is replaced: tart verifies nothing it pulls, and
/// ours is verified. It is the same image, so whoever reads it notices nothing.
///
/// # Errors
/// When contents are missing, tart holds its lock, or the volume fails.
pub fn install(stage: &Stage, references: &[String]) -> Result<(), InstallError> {
    let references = parse_references(stage.layout().digest(), references)?;
    let mut installing = stage.installing();
    is_left(stage)?;
    stage.names().add(&references)?;
    let references = stage.names().own(&references);
    Installation { stage }.run(&references, &mut installing).1
}

/// Puts an image into tart's cache under exactly these references. Those under which tart finds it now, also where
/// others failed; and the first failure.
///
/// Where tart finds it already under all of them no lock is waited for: a pull of tart's may hold that for an hour.
pub fn install_as(stage: &Stage, references: &[String]) -> (Vec<String>, Result<(), InstallError>) {
    let references = match parse_references(stage.layout().digest(), references) {
        Ok(references) => references,
        Err(error) => return (Vec::new(), Err(error.into())),
    };
    let mut installing = stage.installing();
    let ready = is_left(stage).and_then(|()| Ok(stage.names().add(&references)?));
    if let Err(error) = ready {
        return (Vec::new(), Err(error));
    }
    let (placed, result) = Installation { stage }.run(&references, &mut installing);
    (placed.iter().map(ToString::to_string).collect(), result)
}

/// An error where the image was given up, or its files were removed.
fn is_left(stage: &Stage) -> Result<(), InstallError> {
    if stage.is_gone() {
        return Err(InstallError::Gone);
    }
    if !stage.names().is_there() {
        return Err(InstallError::Removed);
    }
    Ok(())
}

/// One installation. Who makes it keeps others from beginning ([`Stage::installing`]).
#[derive(Clone, Copy)]
struct Installation<'a> {
    stage: &'a Stage,
}

impl Installation<'_> {
    fn run(
        self,
        references: &[Reference],
        last: &mut Installing,
    ) -> (Vec<Reference>, Result<(), InstallError>) {
        // a doubt that comes later isn't answered by this
        let doubted = self.stage.is_doubted();
        if last.waits_for_tart
            && !doubted
            && let Some((placed, busy)) = self.still_waits(references)
        {
            return (placed, Err(InstallError::Busy(busy)));
        }
        let (placed, result) = self.put_unless_busy(references, doubted);
        last.waits_for_tart = matches!(result, Err(InstallError::Busy(_)));
        (placed, result)
    }

    /// Where tart still holds the lock of every reference that isn't in place: those that are, and the lock. An
    /// installation that is tried again and again then syncs nothing.
    fn still_waits(self, references: &[Reference]) -> Option<(Vec<Reference>, LockError)> {
        let (mut placed, mut busy) = (Vec::new(), None);
        for reference in references {
            if self
                .stage
                .names()
                .is_in_place(reference, self.stage.names().keeps_marker(reference))
            {
                placed.push(reference.clone());
                continue;
            }
            let host = cache::host_directory(self.stage.shared().home(), reference);
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
        if self.stage.names().installed_directory().is_some() {
            result = result.and(self.conclude(doubted));
        }
        if result.is_ok()
            && let Err(error) = remove_any(&self.stage.directory().join(TWIN))
        {
            result = Err(error.into());
        }
        (placed, result)
    }

    /// What goes before the first link: everything is here, and on the disk.
    fn prepare(self, references: &[Reference], doubted: bool) -> Result<(), InstallError> {
        if references.is_empty() {
            return Err(InstallError::NoReference(*self.stage.layout().digest()));
        }
        if let Some(content) = self.stage.first_open() {
            return Err(InstallError::Incomplete(content));
        }
        let building = self.stage.directory().join(IMAGE);
        let is_built = self.stage.names().is_ours(&building);
        if is_built || doubted {
            self.stage.decode_layers()?;
            // by an earlier process, and not read since
            self.stage.read_again()?;
            self.stage.flush()?;
            if let Some(content) = self.stage.first_open() {
                return Err(InstallError::Incomplete(content));
            }
        }
        if is_built {
            self.seal(&building)?;
        }
        Ok(())
    }

    /// What comes after the last link.
    fn conclude(self, doubted: bool) -> Result<(), InstallError> {
        step("placed")?;
        if doubted {
            self.stage.end_doubt()?;
        }
        self.stage.names().set_installed()?;
        // What tart had, where it was exchanged for ours. A twin that waits for tart's lock stays.
        for rest in [IMAGE, REPLACED] {
            remove_any(&self.stage.directory().join(rest))?;
        }
        Ok(())
    }

    /// Completes the directory and syncs all of it.
    fn seal(self, building: &Path) -> Result<(), InstallError> {
        write_new(&building.join(cache::MANIFEST), self.stage.manifest())?;
        write_new(&building.join(cache::MARKER), GUARD)?;
        if let Err(error) = self.stage.sync_files() {
            // what the system wrote before, and said so, may be lost too
            self.stage.chunks().doubt();
            return Err(error.into());
        }
        platform::sync_directory(building)?;
        step("sealed")?;
        Ok(())
    }

    /// Makes tart find the image under one reference.
    fn place(self, reference: &Reference) -> Result<(), InstallError> {
        let home = self.stage.shared().home();
        let keep_marker = self.stage.names().keeps_marker(reference);
        if self.stage.names().is_in_place(reference, keep_marker) {
            return Ok(());
        }
        let host = cache::host_directory(home, reference);
        let repository = cache::repository_directory(home, reference);
        let target = cache::image_directory(home, reference, self.stage.layout().digest());
        // before tart's lock is taken: to make and compare a twin takes a second per GB
        let source = if self.stage.names().is_ours(&target) {
            None
        } else {
            Some(self.source()?)
        };
        create_directories(self.stage.shared().home(), &repository)?;
        let lock = platform::lock_directory(&host, self.stage.shared().lock_wait());
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

    /// The directory to move into the cache: the stage's own, or, where that has moved to another repository already,
    /// its twin.
    fn source(self) -> Result<PathBuf, InstallError> {
        let building = self.stage.directory().join(IMAGE);
        if self.stage.names().is_ours(&building) {
            return Ok(building);
        }
        Ok(twin::make(self.stage)?)
    }

    fn move_in(self, source: &Path, target: &Path) -> io::Result<()> {
        if fs::symlink_metadata(target).is_err() {
            return fs::rename(source, target)
                .map_err(|error| io_at("moving the image to", target, error));
        }
        if platform::exchange(source, target).is_ok() {
            // Theirs now stands where ours was, and goes when all is done.
            return Ok(());
        }
        // A volume without exchange: for a moment there is neither, which tart takes for an image to pull.
        let replaced = self.stage.directory().join(REPLACED);
        remove_any(&replaced)?;
        fs::rename(target, &replaced)
            .and_then(|()| fs::rename(source, target))
            .map_err(|error| io_at("moving the image to", target, error))
    }

    fn link_tag(self, link: &Path, target: &Path) -> Result<(), InstallError> {
        match fs::symlink_metadata(link) {
            Ok(found) if !found.is_symlink() => {
                return Err(InstallError::InTheWay { path: link.into() });
            }
            Ok(_) if fs::read_link(link).is_ok_and(|to| to == target) => return Ok(()),
            _ => {}
        }
        let new = self.stage.directory().join("link");
        remove_any(&new)?;
        symlink(target, &new).map_err(|error| io_at("linking", &new, error))?;
        fs::rename(&new, link).map_err(|error| io_at("linking", link, error))?;
        Ok(())
    }
}
