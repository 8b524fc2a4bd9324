//! The files of a stacked image on their way into tart's cache.
//!
//! A file is built in the stage's own directory, and proved against its whole digest before it goes anywhere. Then it
//! gets its name in tart's cache, beside the name that it has. If an image of ours has put the same file there, that
//! one is used. So a crash between two steps loses no file: until the record stands that refers to it, the stage has a
//! name of its own for it. A file that tart put there itself is replaced: tart proves such a file when it puts it, and
//! goes by its length ever after (tart of August 2026, Sources/tart/ContentStore.swift: install; VMStorageOCI.swift:
//! hasUsableCachedDiskFile), and what this host serves to others it has proved itself.

use std::{
    fs, io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::Arc,
};

use proto::{
    Digest,
    image::{DiskFile, Format},
};
use sha2::{Digest as _, Sha256};

use super::{
    open_file::OpenFile,
    stage::Stage,
    steps::step,
    tree::{CONTENT, io_at, remove_any},
};
use crate::{platform, tart::cache};

/// Bytes that are read and hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Why the files of a stacked image aren't what its manifest says.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The layers are what the manifest says, and the file that they make has another digest than it says.
    #[error("the layers of the disk's file {file} make a file with digest {found}, not {wanted}")]
    Digest {
        /// The file's number, from 0.
        file: usize,
        /// The digest that the manifest gives.
        wanted: Digest,
        /// The digest of the file.
        found: Digest,
    },
    /// The volume failed, or the program stops.
    #[error("hashing the disk's file {file}: {error}")]
    Io {
        /// The file's number, from 0.
        file: usize,
        /// The cause.
        error: io::Error,
    },
}

/// Compares each file of a stacked image with its digest. Files that are known from other images aren't read. Takes
/// about a second per GB.
///
/// # Errors
/// The first file that differs.
pub(super) fn check_files(stage: &Stage) -> Result<(), FileError> {
    for (at, file, wanted) in files(stage) {
        let layers = raw_layers(stage, file);
        if stage.shared().content_files().proves(&wanted, &layers) {
            continue;
        }
        let failed = |error| FileError::Io { file: at, error };
        let bodies = stage.files().bodies();
        let body = bodies.first().ok_or_else(|| failed(gone()))?;
        let found = hash(stage, body.disk_file(at), file.bytes).map_err(failed)?;
        if found != wanted {
            // a byte may have rotted since it was proved: all are read before the next try
            stage.chunks().doubt();
            return Err(FileError::Digest {
                file: at,
                wanted,
                found,
            });
        }
    }
    Ok(())
}

/// Puts the files of a stacked image into tart's cache. Returns whether they are there: not if one was removed. The
/// caller holds tart's locks, until a record refers to the files: tart removes what no manifest refers to (tart of
/// August 2026, Sources/tart/VMStorageOCI.swift: gcContent).
///
/// # Errors
/// When the volume fails. What was put there stays.
pub(super) fn put(stage: &Stage) -> io::Result<bool> {
    let home = stage.shared().home();
    let own = stage.directory().join(CONTENT);
    let mut shared: Vec<(usize, Arc<OpenFile>)> = Vec::new();
    let mut put = Vec::new();
    for (at, file, digest) in files(stage) {
        let bodies = stage.files().bodies();
        let Some(ours) = bodies.first().map(|body| body.disk_file(at).clone()) else {
            return Ok(false);
        };
        let path = cache::content_file(home, &digest);
        let found = fs::symlink_metadata(&path);
        if found.is_ok_and(|found| found.is_file() && found.ino() == ours.inode()) {
            continue;
        }
        match stage
            .shared()
            .content_files()
            .lying(home, &digest, file.bytes)
        {
            Some(theirs) => shared.push((at, theirs)),
            None => put.push((own.join(digest.hex().to_string()), path)),
        }
    }
    for (from, to) in put {
        if !link(&from, &to)? {
            return Ok(false);
        }
        step("a file is put")?;
    }
    if !shared.is_empty() {
        stage.share_files(&shared)?;
        step("files are shared")?;
    }
    platform::sync_directory(&cache::content_directory(home).join("sha256"))?;
    step("files are put")?;
    note(stage);
    Ok(true)
}

/// Notes that the files of a stacked image lie in tart's cache, proved.
pub(super) fn note(stage: &Stage) {
    let bodies = stage.files().bodies();
    let Some(body) = bodies.first() else {
        return;
    };
    for (at, file, digest) in files(stage) {
        let layers = raw_layers(stage, file);
        let known = stage.shared().content_files();
        known.note(digest, body.disk_file(at), layers);
    }
}

/// Gives a file a second name, which another file may have had. Returns whether there is such a file.
fn link(from: &Path, to: &Path) -> io::Result<bool> {
    let new = from.with_extension("link");
    remove_any(&new)?;
    match fs::hard_link(from, &new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        linked => linked.map_err(|error| io_at("linking", from, error))?,
    }
    fs::rename(&new, to).map_err(|error| io_at("moving a file to", to, error))?;
    // a rename to another name of the same file does nothing
    remove_any(&new)?;
    Ok(true)
}

/// The files of a stacked image, with their numbers and digests.
fn files(stage: &Stage) -> impl Iterator<Item = (usize, &DiskFile, Digest)> {
    let is_stacked = stage.layout().format() == Format::Stacked;
    let files = stage.layout().files().iter().enumerate();
    let files = files.filter(move |_| is_stacked);
    files.filter_map(|(at, file)| Some((at, file, file.digest?)))
}

fn raw_layers(stage: &Stage, file: &DiskFile) -> Vec<Digest> {
    let layers = &stage.layout().layers()[file.layers.clone()];
    layers.iter().filter_map(|layer| layer.raw).collect()
}

fn hash(stage: &Stage, file: &OpenFile, bytes: u64) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut done = 0;
    while done < bytes {
        stage.shared().go_on()?;
        let length =
            usize::try_from(bytes - done).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        file.file().read_exact_at(&mut piece[..length], done)?;
        hasher.update(&piece[..length]);
        done += length as u64;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the image's files were removed")
}
