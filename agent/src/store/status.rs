//! `status.json`: the references that a stage is for, and the disks that its journal describes.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use proto::{HostKey, image::Blob};
use serde::{Deserialize, Serialize};
use swarm::event::Entitled;

use super::tree::{STATUS, io_at};
use crate::tart::{Reference, cache};

const VERSION: u32 = 1;

/// A stage's lasting facts. They are written whole, to a new file that then takes the name, so a reader sees the old
/// facts or the new ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The references that shall name the image, and those under which it was put into tart's cache, in the order in
    /// which they came.
    pub(super) references: Vec<Reference>,
    /// The references that shall name the image now. None if an earlier version wrote the file, which didn't note them.
    pub(super) wanted: Option<Vec<Reference>>,
    /// Inode of `disk.img`, or of a stacked image's `config.json`. A rename keeps the inode, so the inode tells our
    /// directory from one that tart made under the same name.
    pub(super) disk_inode: u64,
    /// The same inodes of twins in other repositories.
    pub(super) twin_inodes: Vec<u64>,
    /// Inodes of the files of a stacked image, in the manifest's order. They are none for a flat one.
    pub(super) file_inodes: Vec<u64>,
    /// Whether the image is in tart's cache. If the file system says otherwise, the file system counts.
    pub(super) installed: bool,
    /// The hosts that may have what the image holds.
    pub(super) entitled: Entitled,
    /// The recipe by which the image's chunks are proved.
    pub(super) recipe: Option<Blob>,
}

#[derive(Deserialize, Serialize)]
struct File {
    version: u32,
    references: Vec<String>,
    #[serde(default)]
    wanted: Option<Vec<String>>,
    disk_inode: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    twin_inodes: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    file_inodes: Vec<u64>,
    installed: bool,
    /// Keys of hosts. None means all hosts, also if an earlier version wrote the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entitled: Option<Vec<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<RecipeFile>,
}

#[derive(Deserialize, Serialize)]
struct RecipeFile {
    digest: String,
    size: u64,
}

/// The inode that tells a directory of an image from another one: that of its disk, or of its configuration where the
/// disk lies elsewhere.
pub(super) fn inode(directory: &Path) -> Option<u64> {
    let of = |part: &str| fs::symlink_metadata(directory.join(part)).ok();
    let found = of(cache::DISK).or_else(|| of(cache::CONFIG))?;
    found.is_file().then(|| found.ino())
}

fn parse(references: &[String]) -> Vec<Reference> {
    references
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

impl Status {
    /// The references that shall name the image: the noted ones, or all known ones from an earlier version's file.
    pub(super) fn wanted(&self) -> &[Reference] {
        self.wanted.as_ref().unwrap_or(&self.references)
    }

    /// Reads a status. `None` if there is none. Leaves out references that an earlier version took and this one
    /// doesn't, because tart can't hold them.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when this version doesn't understand the file.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(directory.join(STATUS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let damaged = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        let file: File =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.version != VERSION {
            return Err(damaged(format!(
                "it is of version {}, not {VERSION}",
                file.version
            )));
        }
        Ok(Some(Self {
            references: parse(&file.references),
            wanted: file.wanted.as_deref().map(parse),
            disk_inode: file.disk_inode,
            twin_inodes: file.twin_inodes,
            file_inodes: file.file_inodes,
            installed: file.installed,
            entitled: file
                .entitled
                .map(|keys| Arc::new(keys.into_iter().map(HostKey).collect())),
            recipe: file.recipe.and_then(|file| {
                let digest = file.digest.parse().ok()?;
                Some(Blob {
                    digest,
                    size: file.size,
                })
            }),
        }))
    }

    /// Whether a directory is one of ours, by the inode of the file that tells.
    pub(super) fn is_of(&self, directory: &Path) -> bool {
        inode(directory).is_some_and(|found| self.has(found))
    }

    /// Whether the inode is that of a directory of ours.
    pub(super) fn has(&self, inode: u64) -> bool {
        self.disk_inode == inode || self.twin_inodes.contains(&inode)
    }

    /// Writes the status. It survives a crash after that.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let texts =
            |references: &Vec<Reference>| references.iter().map(ToString::to_string).collect();
        let file = File {
            version: VERSION,
            references: texts(&self.references),
            wanted: self.wanted.as_ref().map(texts),
            disk_inode: self.disk_inode,
            twin_inodes: self.twin_inodes.clone(),
            file_inodes: self.file_inodes.clone(),
            installed: self.installed,
            entitled: self
                .entitled
                .as_ref()
                .map(|hosts| hosts.iter().map(|host| host.0).collect()),
            recipe: self.recipe.map(|file| RecipeFile {
                digest: file.digest.to_string(),
                size: file.size,
            }),
        };
        let bytes = serde_json::to_vec_pretty(&file)?;
        let path = directory.join(STATUS);
        durable::write(&path, &bytes, durable::PUBLIC)
            .map_err(|error| io_at("writing", &path, error))
    }

    /// Writes the status, and leaves the time of the file as it was: the time says when something else was written than
    /// who may have the image, or which files are ours. After a crash in between, the image looks younger than it is.
    pub(super) fn write_aside(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(STATUS);
        let before = fs::metadata(&path).and_then(|found| found.modified());
        self.write(directory)?;
        // without the time before, the image looks younger than it is
        if let Ok(before) = before
            && let Ok(file) = fs::File::options().write(true).open(&path)
        {
            _ = file.set_modified(before);
        }
        Ok(())
    }
}
