//! A log file that others may rotate: before a line is written, the file at the path has to be the one that is open.
//!
//! launchd opens `StandardErrorPath` once. If the file is renamed, compressed or removed, launchd writes to the old
//! file until the job restarts. newsyslog could signal a process only by an id that stands in a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::lock::lock;

/// A log file. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    // lines come from every thread; the lock is held for one write
    open: Arc<Mutex<Open>>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// Opens the file to append to it.
    ///
    /// # Errors
    /// When it can't be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            open: Arc::new(Mutex::new(Open {
                path: path.into(),
                file: append(path)?,
            })),
        })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

impl Open {
    /// Opens the path anew when another file, or none, lies there. A `stat` for each line: a few microseconds.
    fn follow(&mut self) -> io::Result<()> {
        let identity = |found: &std::fs::Metadata| (found.dev(), found.ino());
        let same = match std::fs::metadata(&self.path) {
            Ok(found) => identity(&found) == identity(&self.file.metadata()?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !same {
            self.file = append(&self.path)?;
        }
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = lock(&self.open);
        // when that fails, the old file still takes it: a line in the wrong file beats a lost one
        open.follow().ok();
        // a whole line at once, also when it takes several calls
        open.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_file_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.log");
        let rotated = directory.path().join("agent.log.0");
        let mut log = LogFile::open(&path).unwrap();
        log.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        log.clone().write_all(b"two\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "made by newsyslog\n").unwrap();
        log.write_all(b"three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\n");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "made by newsyslog\nthree\n"
        );
    }

    #[test]
    fn lines_go_to_the_old_file_when_no_new_one_can_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let mut log = LogFile::open(&logs.join("agent.log")).unwrap();
        let gone = directory.path().join("gone");
        std::fs::rename(&logs, &gone).unwrap();
        log.write_all(b"still\n").unwrap();
        let kept = std::fs::read_to_string(gone.join("agent.log")).unwrap();
        assert_eq!(kept, "still\n");
    }
}
