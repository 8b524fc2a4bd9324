//! Loads what an earlier process left: finds what can go on, and names what is thrown away.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use proto::{Digest, Layout, image::Format};

use super::{
    blocks::Index,
    doubt,
    files::{Body, building_paths, installed_paths},
    journal::{Journal, Record},
    shared::Shared,
    stacked,
    stage::{Parts, Stage},
    status::{Status, inode},
    tree::{CONTENT, IMAGE, JOURNAL, STATUS, remove_any, write_new},
};
use crate::tart::{Reference, cache};

/// What one directory of ours holds.
#[derive(Debug)]
pub(super) enum Loaded {
    /// A stage, or an installed image.
    Stage(Box<Stage>),
    /// The rest of a beginning or a removal that a crash ended, or of an image that tart removed.
    Leftover,
    /// Something that can't be used, with the reason.
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
}

impl Loaded {
    /// Logs what is thrown away.
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
/// When something can't be read now. Such an error doesn't mean that the stage is damaged.
pub(super) fn load(shared: &Arc<Shared>, directory: &Path, image: Digest) -> io::Result<Loaded> {
    let damaged = |file: PathBuf, reason: String| Ok(Loaded::Damaged { file, reason });
    let status_path = directory.join(STATUS);
    let status = match Status::read(directory) {
        Ok(Some(status)) if status.references.is_empty() => return Ok(Loaded::Leftover),
        Ok(Some(status)) => status,
        Ok(None) => return Ok(Loaded::Leftover),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let reason = error.to_string();
            match status_again(shared.home(), directory, image, &reason)? {
                Some(status) => status,
                None => return damaged(status_path, reason),
            }
        }
        Err(error) => return Err(error),
    };
    let (manifest, layout) = match manifest(shared, directory, image, &status)? {
        Ok(found) => found,
        Err((file, reason)) => return damaged(file, reason),
    };
    let is_ours = |path: &PathBuf| status.is_of(path);
    let in_cache: BTreeSet<PathBuf> = status
        .references
        .iter()
        .map(|reference| cache::image_directory(shared.home(), reference, &image))
        .filter(is_ours)
        .collect();
    let installed = !in_cache.is_empty();
    let building = Some(directory.join(IMAGE)).filter(is_ours);
    let mut bodies: Vec<Body> = Vec::new();
    if installed && layout.format() == Format::Stacked {
        // a crash came after the record: its files have their names in tart's cache
        drop_own_names(shared.home(), directory, &layout)?;
    }
    for files in in_cache
        .iter()
        .chain(building.iter().filter(|_| !installed))
    {
        let Some(disk) = disk_paths(shared.home(), (files, directory), &layout, &status) else {
            continue;
        };
        let body = match Body::open(files, &disk, installed, &layout) {
            // a part of the body was removed
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        if !body.fits(&layout)? {
            tracing::warn!(%image, path = %files.display(), bytes = layout.disk_bytes(), "the disk of an image has another size than its manifest says; it isn't used");
            continue;
        }
        // earlier versions made directories of hard links to the same files; together they are one body
        if bodies.iter().all(|other| other.inode != body.inode) {
            bodies.push(body);
        }
    }
    let Some(first) = bodies.first() else {
        return Ok(Loaded::Leftover);
    };
    if let Err(error) = Index::sweep(directory) {
        tracing::warn!(%image, %error, "what a crash left of an index can't be removed");
    }
    let (journal, records, damaged) = open_journal(directory, &layout, installed)?;
    let status = Status {
        disk_inode: first.inode,
        twin_inodes: bodies.iter().skip(1).map(|body| body.inode).collect(),
        file_inodes: match layout.format() {
            Format::Flat => Vec::new(),
            Format::Stacked => first.disk_inodes(),
        },
        installed,
        ..status
    };
    let parts = Parts {
        directory: directory.to_owned(),
        status,
        bodies,
        journal,
    };
    let stage = Stage::recover(shared.clone(), layout, &manifest, parts, (records, damaged));
    if stage.is_installed() && !stage.is_doubted() {
        stacked::note(&stage);
    }
    Ok(Loaded::Stage(Box::new(stage)))
}

/// The image of a directory of ours that is thrown away, and the inodes of its disk's files: by its notes, and by its
/// own names for them. `None` if its manifest can't be understood.
pub(super) fn left_files(directory: &Path) -> Option<(Layout, BTreeSet<u64>)> {
    let layout = cache::manifest(directory)?;
    let status = Status::read(directory).ok().flatten();
    let noted = status.map_or_else(Vec::new, |status| status.file_inodes);
    let own = fs::read_dir(directory.join(CONTENT)).into_iter().flatten();
    let own = own.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.ino()));
    Some((layout, noted.into_iter().chain(own).collect()))
}

/// Where the files of the disk of the body in `files` lie. `None` if tart's cache has others than ours. While the stage
/// has names of its own for its files, these count: an installation may not have come to an end.
fn disk_paths(
    home: &Path,
    (files, directory): (&Path, &Path),
    layout: &Layout,
    status: &Status,
) -> Option<Vec<PathBuf>> {
    let installed = installed_paths(home, files, layout);
    if layout.format() == Format::Flat {
        return Some(installed);
    }
    let own = building_paths(&directory.join(IMAGE), layout);
    let inodes = status.file_inodes.iter();
    let mut paths = Vec::new();
    for ((own, installed), inode) in own.into_iter().zip(installed).zip(inodes) {
        let found = fs::symlink_metadata(&installed);
        if found.is_ok_and(|found| found.ino() == *inode) {
            paths.push(installed);
        } else if own.is_file() {
            paths.push(own);
        } else {
            return None;
        }
    }
    (paths.len() == layout.files().len()).then_some(paths)
}

/// Removes the stage's own names of files that lie in tart's cache, to which a record refers.
fn drop_own_names(home: &Path, directory: &Path, layout: &Layout) -> io::Result<()> {
    let installed = installed_paths(home, directory, layout);
    let own = building_paths(&directory.join(IMAGE), layout);
    for (own, installed) in own.iter().zip(&installed) {
        let found = fs::symlink_metadata(installed);
        if found.is_ok_and(|found| found.is_file()) {
            remove_any(own)?;
        }
    }
    Ok(())
}

/// A file, and what is wrong with the file.
type Damage = (PathBuf, String);

/// The manifest as the registry gave it: ours, or if ours is damaged, the one beside an installed disk. Otherwise the
/// damaged file and the reason.
fn manifest(
    shared: &Shared,
    directory: &Path,
    image: Digest,
    status: &Status,
) -> io::Result<Result<(Vec<u8>, Layout), Damage>> {
    let path = directory.join(cache::MANIFEST);
    let reason = match fs::read(&path) {
        Ok(bytes) => match Layout::parse(&bytes, &image) {
            Ok(layout) => return Ok(Ok((bytes, layout))),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => "it is missing".to_owned(),
        Err(error) => return Err(error),
    };
    for reference in &status.references {
        let installed = cache::image_directory(shared.home(), reference, &image);
        let found = fs::read(installed.join(cache::MANIFEST)).ok();
        let Some(bytes) = found else { continue };
        if let Ok(layout) = Layout::parse(&bytes, &image) {
            tracing::warn!(%image, file = %path.display(), reason, "a manifest is damaged; it is made again from the one in tart's cache");
            write_new(&path, &bytes)?;
            return Ok(Ok((bytes, layout)));
        }
    }
    Ok(Err((path, reason)))
}

/// Makes the status of an image from what is in tart's cache. `None` if no tag names the image there. Since nobody
/// knows any more whose disk it is, the image is doubted: all of it is read before it counts.
fn status_again(
    home: &Path,
    directory: &Path,
    image: Digest,
    reason: &str,
) -> io::Result<Option<Status>> {
    let mut references: Vec<Reference> = Vec::new();
    let (mut inodes, mut file_inodes) = (Vec::new(), Vec::new());
    for installed in cache::installed(home, &image)? {
        let names = cache::tags(home, &installed);
        if let Some(found) = inode(&installed).filter(|_| !names.is_empty()) {
            if file_inodes.is_empty() {
                file_inodes = content_inodes(home, &installed);
            }
            inodes.push(found);
            references.extend(names);
        }
    }
    if inodes.is_empty() {
        return Ok(None);
    }
    let file = directory.join(STATUS);
    tracing::warn!(%image, file = %file.display(), reason, "the notes on an installed image are damaged; all of it is read again");
    let status = Status {
        references,
        wanted: None,
        disk_inode: inodes.remove(0),
        twin_inodes: inodes,
        file_inodes,
        installed: true,
        // the lost notes named the hosts; until the coordinator names them again, no other host may have it
        entitled: Some(Arc::default()),
        recipe: None,
    };
    // the doubt is written first: a crash after the status alone would make the next start believe the disk
    doubt::mark(directory)?;
    status.write(directory)?;
    Ok(Some(status))
}

/// The inodes of the files that a stacked image's manifest in tart's cache refers to. None if one is missing.
fn content_inodes(home: &Path, installed: &Path) -> Vec<u64> {
    let layout = cache::manifest(installed).filter(|of| of.format() == Format::Stacked);
    let paths = layout.map_or_else(Vec::new, |layout| installed_paths(home, installed, &layout));
    let inodes = paths
        .iter()
        .map(|path| fs::symlink_metadata(path).map(|found| found.ino()));
    inodes.collect::<io::Result<_>>().unwrap_or_default()
}

/// The journal, its valid records, and whether the journal is damaged. Logs what the damage costs.
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
