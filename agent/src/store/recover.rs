//! What a process before this one left: which of it can go on, and what is thrown away, by name.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use proto::{Digest, Layout};

use super::{
    Shared,
    files::Body,
    io_at,
    journal::{Journal, Record},
    stage::{IMAGE, JOURNAL, Stage},
    status::{self, Status},
};
use crate::tart::cache;

/// What a directory of ours holds.
#[derive(Debug)]
pub(super) enum Loaded {
    /// A stage, or an installed image.
    Stage(Box<Stage>),
    /// A rest of a beginning or a forgetting that a crash ended, or of an image that tart removed.
    Leftover,
    /// Something that can't be used, and why.
    Damaged {
        /// What is damaged.
        file: PathBuf,
        /// How.
        reason: String,
    },
}

impl Loaded {
    /// Says what is thrown away.
    pub(super) fn log(&self, image: &Digest) {
        match self {
            Self::Damaged { file, reason } => {
                tracing::warn!(%image, file = %file.display(), reason, "what was staged of an image can't be used; it is staged anew");
            }
            Self::Stage(_) | Self::Leftover => {
                tracing::info!(%image, "removing what is left of a stage that was ended");
            }
        }
    }
}

/// Opens what a directory of ours holds.
///
/// # Errors
/// When it can't be read now, which says nothing of it.
pub(super) fn load(shared: &Arc<Shared>, directory: &Path, image: Digest) -> io::Result<Loaded> {
    let damaged = |file: PathBuf, reason: String| Ok(Loaded::Damaged { file, reason });
    let status_path = directory.join(status::STATUS);
    let status = match Status::read(directory) {
        Ok(Some(status)) if status.references.is_empty() => return Ok(Loaded::Leftover),
        Ok(Some(status)) => status,
        Ok(None) => return Ok(Loaded::Leftover),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return damaged(status_path, error.to_string());
        }
        Err(error) => return Err(error),
    };
    let manifest_path = directory.join(cache::MANIFEST);
    let manifest = match fs::read(&manifest_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return damaged(manifest_path, "it is missing".into());
        }
        other => other?,
    };
    let layout = match Layout::parse(&manifest, &image) {
        Ok(layout) => layout,
        Err(error) => return damaged(manifest_path, error.to_string()),
    };
    let is_ours = |path: &PathBuf| {
        fs::metadata(path.join(cache::DISK)).is_ok_and(|disk| status.has_disk(disk.ino()))
    };
    let in_cache: BTreeSet<PathBuf> = status
        .references
        .iter()
        .map(|reference| cache::image_directory(&shared.home, reference, &image))
        .filter(is_ours)
        .collect();
    let installed = !in_cache.is_empty();
    let building = Some(directory.join(IMAGE)).filter(is_ours);
    let mut bodies: Vec<Body> = Vec::new();
    for files in in_cache
        .iter()
        .chain(building.iter().filter(|_| !installed))
    {
        let body = match Body::open(files, installed, &layout) {
            // a part of it was removed
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if !body.fits(&layout)? {
            tracing::warn!(%image, path = %files.display(), bytes = layout.disk_bytes(), "the disk of an image has another size than its manifest says; it isn't used");
            continue;
        }
        // directories of hard links, as they were made before, are one body
        if bodies.iter().all(|other| other.inode != body.inode) {
            bodies.push(body);
        }
    }
    let Some(first) = bodies.first() else {
        return Ok(Loaded::Leftover);
    };
    let (journal, records, damaged) = open_journal(directory, &layout, installed)?;
    let status = Status {
        disk_inode: first.inode,
        twin_inodes: bodies.iter().skip(1).map(|body| body.inode).collect(),
        installed,
        ..status
    };
    let stage = Stage::assemble(
        shared.clone(),
        layout,
        &manifest,
        status,
        directory.to_owned(),
        bodies,
        journal,
    );
    stage.held.replay(records);
    stage.links_lost.store(damaged, Ordering::Release);
    stage.notice_doubt();
    Ok(Loaded::Stage(Box::new(stage)))
}

/// The journal, as far as it is good, and whether it isn't; what that costs is said.
fn open_journal(
    directory: &Path,
    layout: &Layout,
    installed: bool,
) -> io::Result<(Journal, Vec<Record>, bool)> {
    let path = directory.join(JOURNAL);
    let damaged = |reason: &str| {
        let image = layout.digest();
        let file = path.display();
        if installed {
            tracing::warn!(%image, %file, reason, "a journal is damaged; what it said of the image is made again from the disk");
        } else {
            tracing::warn!(%image, %file, reason, "a journal is damaged; the chunks that it doesn't vouch for are fetched again");
        }
    };
    if let Some(opened) = Journal::open(&path, layout.digest())? {
        if let Some(reason) = &opened.damage {
            damaged(reason);
        }
        return Ok((opened.journal, opened.records, opened.damage.is_some()));
    }
    damaged(if path.exists() {
        "it isn't the journal of this image"
    } else {
        "it is missing"
    });
    Ok((Journal::create(&path, layout.digest())?, Vec::new(), true))
}

/// Removes a directory of ours, the status first.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let missing_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    missing_is_fine(fs::remove_file(directory.join(status::STATUS)))?;
    missing_is_fine(fs::remove_dir_all(directory))
        .map_err(|error| io_at("removing", directory, error))
}
