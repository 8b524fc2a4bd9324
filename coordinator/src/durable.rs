//! Small files that survive a crash whole or not at all.
//!
//! A write goes to a temporary file in the same directory, is synced, renamed over the old one, and the directory is
//! synced. A crash before the rename leaves the old file and a `.tmp` that [`sweep`] removes; after it, the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const SUFFIX: &str = ".tmp";

/// Permission bits of a file that holds a secret.
pub(crate) const SECRET: u32 = 0o600;
/// Permission bits of a file that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Replaces `path` by these bytes. Blocks.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Two writers of one file (a command line beside the daemon) must not share a temporary name.
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let temporary = dir.join(format!(
        ".{}.{}.{number}{SUFFIX}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_dir(dir)
}

/// Removes `path` for good. `NotFound` when it isn't there: of two removers exactly one succeeds. Blocks.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes a directory, and those above it, for this user alone.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Removes what interrupted writes left.
pub(crate) fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(SUFFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The names of a directory's plain entries: no dot files, so no half-written ones.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_half_written_is_neither_listed_nor_kept() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), b"1", SECRET).unwrap();
        fs::write(dir.path().join(".b.1.1.tmp"), b"torn").unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["a"]);
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_one_of_two_removers_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"1", PUBLIC).unwrap();
        assert!(remove(&path).is_ok());
        assert_eq!(remove(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
