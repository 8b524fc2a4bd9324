//! `status.json`: what a stage is for, and which disk its journal speaks of.

use std::{fs, io, path::Path, sync::Arc};

use proto::HostKey;
use serde::{Deserialize, Serialize};
use swarm::event::Entitled;

use super::tree::{STATUS, io_at};
use crate::tart::Reference;

const VERSION: u32 = 1;

/// A stage's lasting facts. Written whole, to a new file that then takes the name: a reader sees the old or the new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// The references that shall name the image here, and those under which it was put into tart's cache, in the order
    /// in which they came.
    pub(super) references: Vec<Reference>,
    /// Those of them that shall name it now. None: an earlier version kept no account of that.
    pub(super) wanted: Option<Vec<Reference>>,
    /// Inode of `disk.img`. A rename keeps it, so it tells our disk from one that tart made under the same name.
    pub(super) disk_inode: u64,
    /// Inodes of its twins in other repositories.
    pub(super) twin_inodes: Vec<u64>,
    /// The image stands in tart's cache. What the file system says goes before this.
    pub(super) installed: bool,
    /// The hosts that may have what it holds.
    pub(super) entitled: Entitled,
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
    installed: bool,
    /// Keys of hosts. None: all hosts, also by an earlier version's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entitled: Option<Vec<u64>>,
}

fn parse(references: &[String]) -> Vec<Reference> {
    references
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

impl Status {
    /// The references that shall name the image, as far as they were written down.
    pub(super) fn wanted(&self) -> &[Reference] {
        self.wanted.as_ref().unwrap_or(&self.references)
    }

    /// Reads a status; `None` when there is none. References that this version doesn't take, as an earlier one did, are
    /// left out: tart can't say them.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it is none that this version understands.
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
            installed: file.installed,
            entitled: file
                .entitled
                .map(|keys| Arc::new(keys.into_iter().map(HostKey).collect())),
        }))
    }

    /// Whether a disk with this inode is one of ours.
    pub(super) fn has_disk(&self, inode: u64) -> bool {
        self.disk_inode == inode || self.twin_inodes.contains(&inode)
    }

    /// Writes the status so that it survives a crash.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let texts =
            |references: &Vec<Reference>| references.iter().map(ToString::to_string).collect();
        let file = File {
            version: VERSION,
            references: texts(&self.references),
            wanted: self.wanted.as_ref().map(texts),
            disk_inode: self.disk_inode,
            twin_inodes: self.twin_inodes.clone(),
            installed: self.installed,
            entitled: self
                .entitled
                .as_ref()
                .map(|hosts| hosts.iter().map(|host| host.0).collect()),
        };
        let bytes = serde_json::to_vec_pretty(&file)?;
        let path = directory.join(STATUS);
        durable::write(&path, &bytes, durable::PUBLIC)
            .map_err(|error| io_at("writing", &path, error))
    }
}
