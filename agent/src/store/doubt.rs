//! Doubt: somebody found an installed image damaged. The image doesn't count as present until all of it was read again.
//!
//! `parbake-agent verify` runs beside the agent and holds none of the agent's locks. It leaves a file in the image's
//! directory of ours. The agent finds that file at its next look at the disk, or at its next start. The file is removed
//! when the image was read and mended.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use super::tree::{STATUS, remove_any, write_new};
use crate::lock::lock;

/// The name of the file that says that the image is doubted. Its bytes tell one doubt from the next.
const MARKER: &str = "doubted";

/// Leaves a doubt in an image's directory of ours, so that the agent reads the image again. False if the directory
/// holds no image of ours.
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
    /// What the marker said when this process noticed it.
    known: Mutex<Option<Vec<u8>>>,
}

impl Doubt {
    /// The doubt of the image with this directory of ours. Looks for no marker yet.
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            marker: directory.join(MARKER),
            known: Mutex::default(),
        }
    }

    /// Whether a doubt is known, so that the image doesn't count until it is read.
    pub(super) fn is_known(&self) -> bool {
        lock(&self.known).is_some()
    }

    /// Looks for a doubt that isn't known yet. Returns whether there is a new one.
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

    /// Ends the doubt after everything was read and is complete: calls `mend`, then removes the marker. A doubt that
    /// somebody left meanwhile stays for the next look.
    ///
    /// # Errors
    /// When mending fails, or the marker can't be removed. The next look finds the marker again.
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
