//! Our directories in tart's home: the names in them, and how files in them are made and removed.

use std::{fs, io, path::Path, time::SystemTime};

use crate::{platform, tart::cache};

/// Our directory in tart's home.
pub(super) const ROOT: &str = ".parbake";
/// The directory for files of retired images, until they are removed.
pub(super) const RETIRED: &str = "retired";
/// The directory that becomes the image's, inside the stage's own.
pub(super) const IMAGE: &str = "image";
/// The file that says which chunks are on the disk, and by which links.
pub(super) const JOURNAL: &str = "journal";
/// The file with a stage's lasting facts.
pub(super) const STATUS: &str = "status.json";
/// The file that says how many bytes a stage has written.
pub(super) const TAKEN: &str = "taken";
/// The directory for blobs of layers without a raw digest.
pub(super) const BLOBS: &str = "blobs";
/// The index of an image's blocks.
pub(super) const INDEX: &str = "blocks.index";
/// The directory with the files of a stacked image that is under construction.
pub(super) const CONTENT: &str = "content";
/// A second directory of the image, on its way to another repository.
pub(super) const TWIN: &str = "twin";
/// The directory that stood in the image's place in the cache.
pub(super) const REPLACED: &str = "replaced";

/// The content of a marker that guards an image only until its tag is linked. tart's own markers are empty. tart looks
/// only at a marker's existence.
pub(super) const GUARD: &[u8] = b"placed by parbake until the tag is linked\n";

/// The content of a marker that guards an image for a reference by digest, which has no link.
pub(super) const OURS: &[u8] = b"placed by parbake for a reference by digest\n";

/// Whose a marker in a directory of tart's cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// There is none.
    Missing,
    /// Ours, until the tag is linked.
    Guard,
    /// Ours, for a reference by digest.
    Ours,
    /// tart's, or somebody else's. Earlier versions made such ones for references by digest, too.
    Theirs,
}

/// Whose the marker at this path is. One that can't be read may be anybody's.
pub(super) fn marker(path: &Path) -> Marker {
    match fs::read(path) {
        Ok(bytes) if bytes == GUARD => Marker::Guard,
        Ok(bytes) if bytes == OURS => Marker::Ours,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Marker::Missing,
        _ => Marker::Theirs,
    }
}

/// When the stage with this directory of ours was made: see [`Stage::begun_at`](super::stage::Stage::begun_at).
pub(super) fn begun_at(directory: &Path) -> Option<SystemTime> {
    let manifest = fs::metadata(directory.join(cache::MANIFEST));
    let manifest = manifest.and_then(|found| found.modified()).ok();
    let directory = fs::metadata(directory).and_then(|found| found.created());
    manifest.into_iter().chain(directory).min()
}

/// The same error, with the action and the path in its text.
pub(super) fn io_at(action: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("{action} {}: {error}", path.display()),
    )
}

/// Writes a whole file and syncs it. Doesn't sync its directory entry.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = fs::File::create(path).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        platform::sync_full(&file)
    });
    written.map_err(|error| io_at("writing", path, error))
}

/// Creates a directory below `home`, and its parents. Each new one is synced into its parent.
pub(super) fn create_directories(home: &Path, directory: &Path) -> io::Result<()> {
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

/// Removes a directory of ours. Removes the status first, so that what a crash leaves is no stage any more.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    missing_is_fine(fs::remove_file(directory.join(STATUS)))?;
    missing_is_fine(fs::remove_dir_all(directory))
        .map_err(|error| io_at("removing", directory, error))
}

/// Removes a file, a link or a directory, if there is one.
pub(super) fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove(path),
        Ok(_) => fs::remove_file(path).map_err(|error| io_at("removing", path, error)),
        Err(_) => Ok(()),
    }
}
