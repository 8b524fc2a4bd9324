//! Doubt: somebody found an installed image damaged, and nothing of it counts until it was read again.
//!
//! `parbake-agent verify` runs beside the agent and holds none of its locks. It leaves a file in the image's directory of ours; the
//! agent's next look at the disk, or its next start, finds it. The file goes when the image was read and mended.

use std::{fs, io, path::Path, time::SystemTime};

use super::{
    Stage,
    files::Body,
    held::hold,
    install::{remove_any, write_new},
    status::STATUS,
};
use crate::tart::cache;

/// Says that the image is doubted; what is in it tells one doubt from the next.
const MARKER: &str = "doubted";

/// Has the agent that this directory of ours belongs to read its image again. Whether it is one's directory.
pub(super) fn mark(directory: &Path) -> io::Result<bool> {
    if !directory.join(STATUS).exists() {
        return Ok(false);
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let doubt = format!(
        "{} {}\n",
        std::process::id(),
        since.unwrap_or_default().as_nanos()
    );
    write_new(&directory.join(MARKER), doubt.as_bytes())?;
    Ok(true)
}

impl Stage {
    /// Whether the image counts for nothing until it is installed again.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        hold(&self.doubt).is_some()
    }

    /// Looks for a doubt that isn't known yet, and believes nothing any more where there is one. The files are opened anew: an
    /// editor may have put others in their place.
    pub(super) fn notice_doubt(&self) -> bool {
        let mut doubt = hold(&self.doubt);
        if doubt.is_some() || !self.is_installed() {
            return false;
        }
        let Ok(marker) = fs::read(self.directory.join(MARKER)) else {
            return false;
        };
        *doubt = Some(marker);
        drop(doubt);
        let directories = self.installed_directories();
        let bodies: Vec<Body> = directories
            .iter()
            .filter_map(|directory| Body::open(directory, true, &self.layout).ok())
            .collect();
        if !bodies.is_empty() {
            self.held.files().replace_bodies(bodies);
        }
        self.doubt_all();
        true
    }

    /// Everything was read, and is complete.
    pub(super) fn end_doubt(&self) -> io::Result<()> {
        let mut doubt = hold(&self.doubt);
        let Some(known) = doubt.take() else {
            return Ok(());
        };
        for directory in self.installed_directories() {
            let manifest = directory.join(cache::MANIFEST);
            if fs::read(&manifest).ok().as_ref() != Some(&self.manifest) {
                write_new(&manifest, &self.manifest)?;
            }
        }
        let marker = self.directory.join(MARKER);
        // another one since then is for the next look at the disk
        if fs::read(&marker).is_ok_and(|found| found == known) {
            remove_any(&marker)?;
        }
        Ok(())
    }

    /// Nothing that is on disk counts until it is read.
    pub(super) fn doubt_all(&self) {
        self.held.doubt();
        hold(&self.decoded).clear();
    }
}
