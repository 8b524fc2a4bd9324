//! Puts a complete stage into tart's cache, where tart finds it. The head of `store.rs` explains the order of the
//! steps.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{Digest, image::Format};

use super::{
    content_files::{ContentLock, lock_content},
    layers::DecodeLayerError,
    references::{ReferenceError, parse_references},
    room::NoRoomError,
    stacked::{self, FileError},
    stage::{Installing, Stage},
    steps::{going_on, step},
    tree::{
        CONTENT, GUARD, IMAGE, Marker, OURS, REPLACED, TAKEN, TWIN, create_directories, io_at,
        marker, remove_any, write_new,
    },
    twin::{self, TwinError},
};
use crate::{
    platform::{self, LockError},
    tart::{Reference, cache},
};

/// Why an image couldn't be installed. Everything done so far stays, and the next installation goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A reference is no good.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No reference was ever given, so tart couldn't find the image.
    #[error("image {0} has no reference to be installed under")]
    NoReference(Digest),
    /// A content isn't verified yet.
    #[error("content {0} isn't complete")]
    Incomplete(Digest),
    /// A layer that travels as a blob can't be decoded onto the disk.
    #[error(transparent)]
    Layer(DecodeLayerError),
    /// A file of a stacked image isn't what the manifest says.
    #[error(transparent)]
    File(#[from] FileError),
    /// tart held its lock for longer than the store waits. Most likely it pulls from the same registry.
    #[error("tart is busy: {0}")]
    Busy(LockError),
    /// Something that isn't a symlink stands where the tag's link belongs.
    #[error("{path} is in the way of the tag's link: it isn't a link")]
    InTheWay {
        /// Where.
        path: PathBuf,
    },
    /// The image was abandoned during this operation.
    #[error("image is gone from this host")]
    Gone,
    /// The image's files were removed from the disk. The image has to be staged again.
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

/// Puts an image into tart's cache under these references and under those that it is wanted under. It may be repeated.
/// For an installed image with a new reference, it only makes the link.
///
/// Replaces what tart itself may have pulled under the same name meanwhile, because tart verifies nothing that it pulls
/// and our copy is verified. It is the same image, so a reader notices nothing.
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

/// Puts an image into tart's cache under exactly these references. Returns the references under which tart finds the
/// image now, even if others failed, and the first failure.
///
/// If tart finds the image under all of them already, no lock is waited for: a pull by tart may hold its lock for an
/// hour.
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

/// Removes the markers that guarded an installed image until its tag's link was made, and for a while after that.
/// Where tart has its lock, or an installation runs, that is left for the next call.
///
/// # Errors
/// When a marker can't be removed.
pub(super) fn unguard(stage: &Stage) -> io::Result<()> {
    let Some(_installing) = stage.try_installing() else {
        return Ok(());
    };
    let (names, home) = (stage.names(), stage.shared().home());
    if stage.is_gone() || !names.is_concluded() {
        return Ok(());
    }
    for reference in names.known() {
        let target = cache::image_directory(home, &reference, stage.layout().digest());
        let path = target.join(cache::MARKER);
        let stays = names.keeps_marker(&reference) || names.is_young(&reference);
        if stays || marker(&path) != Marker::Guard || !names.is_ours(&target) {
            continue;
        }
        // tart makes a marker of its own only while it has this lock
        let host = cache::host_directory(home, &reference);
        let Ok(_lock) = platform::lock_directory(&host, Duration::ZERO) else {
            continue;
        };
        if marker(&path) == Marker::Guard {
            fs::remove_file(&path).map_err(|error| io_at("removing", &path, error))?;
            platform::sync_directory(&target)?;
        }
    }
    Ok(())
}

fn busy(error: LockError) -> InstallError {
    match error {
        LockError::Busy { .. } => InstallError::Busy(error),
        LockError::Io { path, error } => io_at("locking", &path, error).into(),
    }
}

/// An error if the image was given up or its files were removed.
fn is_left(stage: &Stage) -> Result<(), InstallError> {
    if stage.is_gone() {
        return Err(InstallError::Gone);
    }
    if !stage.names().is_there() {
        return Err(InstallError::Removed);
    }
    Ok(())
}

/// One installation. The caller keeps others from running ([`Stage::installing`]).
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
        // this installation doesn't answer a doubt that is noticed later
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

    /// Looks whether tart still holds the locks for all references that aren't in place. If so, returns the references
    /// that are in place, and the error of a lock. So an installation that is retried again and again syncs nothing.
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
            // a test that lets the process die here stops here
            if result.is_err() && !going_on() {
                return (placed, result);
            }
        }
        // an image in the cache counts as installed, even if a link couldn't be made
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

    /// What comes before the first link: makes sure that everything is complete, and on the disk.
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
            // chunks of an earlier process that weren't compared since
            self.stage.read_again()?;
            self.stage.flush()?;
            if let Some(content) = self.stage.first_open() {
                return Err(InstallError::Incomplete(content));
            }
        }
        if is_built || doubted {
            stacked::check_files(self.stage)?;
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
            // its files were opened anew, and compared
            stacked::note(self.stage);
        }
        self.stage.names().set_installed()?;
        self.stage.blocks().end();
        // Removes the directory that tart had, if it was exchanged for ours, names of files that have others now, and
        // what an unfinished image needs. A twin that waits for tart's lock stays.
        for rest in [IMAGE, REPLACED, CONTENT, TAKEN] {
            remove_any(&self.stage.directory().join(rest))?;
        }
        Ok(())
    }

    /// Writes the manifest and the marker into the directory, and syncs all of it.
    fn seal(self, building: &Path) -> Result<(), InstallError> {
        write_new(&building.join(cache::MANIFEST), self.stage.manifest())?;
        write_new(&building.join(cache::MARKER), GUARD)?;
        if let Err(error) = self.stage.sync_files() {
            // data that the system reported as written before may be lost, too
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
        // before tart's lock is taken, because making and comparing a twin takes a second per GB
        let source = if self.stage.names().is_ours(&target) {
            None
        } else {
            Some(self.source()?)
        };
        create_directories(self.stage.shared().home(), &repository)?;
        let lock = platform::lock_directory(&host, self.stage.shared().lock_wait());
        let _lock = lock.map_err(busy)?;
        let _content = self.lock_content()?;
        let before = self.marker_before(&target, source.is_some());
        if let Some(source) = source {
            if self.is_stacked() && !stacked::put(self.stage)? {
                return Err(InstallError::Removed);
            }
            self.move_in(&source, &target)?;
            platform::sync_directory(&repository)?;
            step("moved")?;
        }
        if let Some(link) = cache::tag_link(home, reference) {
            self.link_tag(&link, &target)?;
            platform::sync_directory(&repository)?;
            step("linked")?;
        }
        let path = target.join(cache::MARKER);
        let bytes = match before {
            // tart's own are empty (tart, Sources/tart/VMDirectory.swift: markExplicitlyPulled)
            Marker::Theirs => Some(&b""[..]),
            Marker::Ours => Some(OURS),
            Marker::Missing | Marker::Guard => keep_marker.then_some(OURS),
        };
        match (marker(&path), bytes) {
            (Marker::Guard | Marker::Missing, Some(bytes)) => write_new(&path, bytes)?,
            // `unguard` does it later
            (Marker::Guard, None) if self.stage.names().is_young(reference) => {}
            (Marker::Guard, None) => {
                fs::remove_file(&path).map_err(|error| io_at("removing", &path, error))?;
            }
            _ => {}
        }
        platform::sync_directory(&target)?;
        step("marked")?;
        Ok(())
    }

    /// tart's locks round the files of stacked images, if this is one.
    fn lock_content(self) -> Result<Option<ContentLock>, InstallError> {
        if !self.is_stacked() {
            return Ok(None);
        }
        let shared = self.stage.shared();
        lock_content(shared.home(), shared.lock_wait())
            .map(Some)
            .map_err(busy)
    }

    fn is_stacked(self) -> bool {
        self.stage.layout().format() == Format::Stacked
    }

    /// The marker that stood in the image's place before ours came there. What it named by digest goes on to have a
    /// name. `comes`: ours comes there now.
    fn marker_before(self, target: &Path, comes: bool) -> Marker {
        let found = marker(&target.join(cache::MARKER));
        if comes || found != Marker::Guard {
            return found;
        }
        // a crash came before the marker; what stood there was moved to one of these
        let rests = [IMAGE, REPLACED, TWIN].map(|rest| self.stage.directory().join(rest));
        let mut markers = rests.iter().map(|rest| marker(&rest.join(cache::MARKER)));
        let theirs = markers.any(|rest| rest == Marker::Theirs);
        if theirs { Marker::Theirs } else { found }
    }

    /// The directory to move into the cache. It is the stage's own directory, or a twin if that one has moved to
    /// another repository already.
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
            // tart's directory now stands where ours was. `conclude` removes it.
            return Ok(());
        }
        // This volume can't exchange. For a moment the target is missing, which tart takes for an image to pull.
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
