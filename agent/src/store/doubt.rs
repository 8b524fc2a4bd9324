//! Doubt: somebody found an installed image damaged, and nothing of it counts until it was read again.
//!
//! `parbake-agent verify` runs beside the agent and holds none of its locks. It leaves a file in the image's directory
//! of ours; the agent's next look at the disk, or its next start, finds that file. The file goes when the image was
//! read and mended.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use super::tree::{STATUS, remove_any, write_new};
use crate::lock::lock;

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

/// Whether an image is doubted.
#[derive(Debug)]
pub(super) struct Doubt {
    marker: PathBuf,
    /// What the marker said when it was noticed.
    known: Mutex<Option<Vec<u8>>>,
}

impl Doubt {
    /// The doubt of the image with this directory of ours, not looked for yet.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            marker: directory.join(MARKER),
            known: Mutex::default(),
        }
    }

    /// Whether the image counts for nothing until it is read.
    pub(super) fn is_known(&self) -> bool {
        lock(&self.known).is_some()
    }

    /// Looks for a doubt that isn't known yet. Whether there is one.
    pub(super) fn notice(&self) -> bool {
        let mut known = lock(&self.known);
        if known.is_some() {
            return false;
        }
        let Ok(marker) = fs::read(&self.marker) else {
            return false;
        };
        *known = Some(marker);
        true
    }

    /// Everything was read, and is complete: after `mend` the doubt is over. A doubt that somebody left since then
    /// stays for the next look.
    ///
    /// # Errors
    /// When mending fails, or the marker can't be removed: the next look finds that again.
    pub(super) fn end(&self, mend: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut known = lock(&self.known);
        let Some(answered) = known.take() else {
            return Ok(());
        };
        mend()?;
        if fs::read(&self.marker).is_ok_and(|found| found == answered) {
            remove_any(&self.marker)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(STATUS), "{}").unwrap();
        directory
    }

    #[test]
    fn a_doubt_is_noticed_once_and_stays_until_it_is_answered() {
        let directory = directory();
        let doubt = Doubt::new(directory.path());
        assert!(!doubt.notice() && !doubt.is_known());
        assert!(mark(directory.path()).unwrap());
        assert!(doubt.notice() && doubt.is_known());
        assert!(!doubt.notice(), "it is known");
        doubt.end(|| Ok(())).unwrap();
        assert!(!doubt.is_known() && !doubt.notice());
    }

    #[test]
    fn an_answer_to_one_doubt_is_none_to_the_next() {
        let directory = directory();
        let doubt = Doubt::new(directory.path());
        mark(directory.path()).unwrap();
        assert!(doubt.notice());
        doubt.end(|| mark(directory.path()).map(drop)).unwrap();
        assert!(!doubt.is_known() && doubt.notice());
    }

    #[test]
    fn a_doubt_whose_image_could_not_be_mended_is_noticed_again() {
        let directory = directory();
        let doubt = Doubt::new(directory.path());
        mark(directory.path()).unwrap();
        assert!(doubt.notice());
        let failed = doubt.end(|| Err(io::Error::other("full")));
        assert!(failed.is_err() && doubt.notice());
    }

    #[test]
    fn a_directory_that_holds_no_image_of_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!mark(directory.path()).unwrap());
        assert!(!directory.path().join(MARKER).exists());
    }
}
