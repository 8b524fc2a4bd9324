//! Small files that survive a crash whole or not at all: the one way in which parbake's programs replace a file.
//!
//! [`write()`] makes a temporary file in the same directory, writes and syncs it, renames it over the old file, and
//! syncs the directory. A crash leaves:
//!
//! | when | the file | beside it |
//! |---|---|---|
//! | before the rename | as it was | perhaps a temporary file, which [`sweep`] removes |
//! | renamed, the directory not yet synced | as it was, or new; whole either way | perhaps the temporary file |
//! | after the directory is synced | new | nothing |
//!
//! On macOS a sync of the standard library is `F_FULLFSYNC`: the drive's own cache is written out, too.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Permission bits of a file that holds a secret.
pub const SECRET: u32 = 0o600;
/// Permission bits of a file that everybody may read.
pub const PUBLIC: u32 = 0o644;

/// Ends the names of temporary files.
const SUFFIX: &str = ".tmp";

/// What a write does to a disk, so that tests can be a disk that crashes.
trait Disk {
    /// Makes a new file of exactly these permission bits with these bytes.
    fn create(&mut self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()>;
    /// The file's bytes survive a crash.
    fn sync(&mut self, path: &Path) -> io::Result<()>;
    /// Renames a file over another one, if that is there.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// The names in the directory survive a crash.
    fn sync_directory(&mut self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()>;
}

/// The file system.
struct Real;

impl Disk for Real {
    fn create(&mut self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        // A process of this number, which a crash ended, may have left one: in a container every process has the same
        // number.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // `create_new` follows no link that somebody put there
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        // the process's umask took some bits away
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Replaces the file at `path` by these bytes with exactly these permission bits. Blocks until they survive a crash.
///
/// # Errors
/// When the disk is full or fails, or `path` can't be written. The file is as it was then, unless the directory's sync
/// alone failed: the file is new then, and may be the old one after a crash.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_to(&mut Real, path, bytes, mode)
}

fn write_to(disk: &mut impl Disk, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Two writers of one file (a command line beside the daemon) must not share a temporary name.
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // a bare file name is in the working directory
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(
        ".{}.{}.{number}{SUFFIX}",
        name.to_string_lossy(),
        std::process::id()
    ));
    let written = disk
        .create(&temporary, bytes, mode)
        .and_then(|()| disk.sync(&temporary))
        .and_then(|()| disk.rename(&temporary, path));
    if let Err(error) = written {
        // what a full disk let through of it would take room from the next try
        drop(disk.remove(&temporary));
        return Err(error);
    }
    disk.sync_directory(directory)
}

/// Removes the file at `path` for good. `NotFound` when it isn't there: of two removers exactly one succeeds. Blocks.
///
/// # Errors
/// When there is no such file, or it can't be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    path.parent()
        .map_or(Ok(()), |directory| Real.sync_directory(directory))
}

/// Makes a directory, and those above it, for this user alone.
///
/// # Errors
/// When it can't be made.
pub fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Removes the temporary files that interrupted writes left in a directory. Only for a directory that no other process
/// writes to: a temporary file of a write that is under way would go, too.
///
/// # Errors
/// When the directory can't be read, or a file can't be removed.
pub fn sweep(directory: &Path) -> io::Result<()> {
    sweep_where(directory, |_| true)
}

/// Removes the temporary files that interrupted writes of this file left. Only for a file that no other process writes.
///
/// # Errors
/// Those of [`sweep`].
pub fn sweep_of(path: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    sweep_where(directory, |of| *of == *name.to_string_lossy())
}

fn sweep_where(directory: &Path, goes: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if temporary_of(&entry.file_name().to_string_lossy()).is_some_and(&goes) {
            match fs::remove_file(entry.path()) {
                // whoever wrote it finished
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// The file of which this is a temporary one, by its name: `.NAME.PROCESS.NUMBER.tmp`. `None` where [`write()`] doesn't
/// make files of such a name.
fn temporary_of(name: &str) -> Option<&str> {
    let name = name.strip_prefix('.')?.strip_suffix(SUFFIX)?;
    let (name, number) = name.rsplit_once('.')?;
    let (name, process) = name.rsplit_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(process) && !name.is_empty()).then_some(name)
}

/// The names of a directory's plain entries, sorted: no dot files, so no half-written ones.
///
/// # Errors
/// When the directory can't be read.
pub fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use proptest::prelude::*;

    use super::*;

    /// A disk that keeps what it must and nothing else: bytes that were synced, and names whose directory was. Of the
    /// rest a crash keeps what `luck` says. It stops before the step `dies_before`.
    struct Model {
        /// Files by number: what is in memory, and what is on the platters.
        files: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        /// Names as programs see them.
        names: BTreeMap<PathBuf, usize>,
        /// Changes of names that aren't on the platters yet, and the names that are.
        pending: Vec<(PathBuf, Option<usize>)>,
        kept: BTreeMap<PathBuf, usize>,
        steps: usize,
        dies_before: usize,
    }

    impl Model {
        fn with(path: &Path, bytes: &[u8], dies_before: usize) -> Self {
            Self {
                files: vec![(bytes.to_vec(), Some(bytes.to_vec()))],
                names: [(path.to_owned(), 0)].into(),
                pending: Vec::new(),
                kept: [(path.to_owned(), 0)].into(),
                steps: 0,
                dies_before,
            }
        }

        fn step(&mut self) -> io::Result<()> {
            if self.steps >= self.dies_before {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.steps += 1;
            Ok(())
        }

        fn name(&mut self, path: &Path, file: Option<usize>) {
            match file {
                Some(file) => self.names.insert(path.to_owned(), file),
                None => self.names.remove(path),
            };
            self.pending.push((path.to_owned(), file));
        }

        /// What a reader finds after a crash: of the pending names so many were kept, and of bytes that weren't synced
        /// none.
        fn crash(mut self, luck: usize) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
            for (path, file) in self.pending.into_iter().take(luck) {
                match file {
                    Some(file) => self.kept.insert(path, file),
                    None => self.kept.remove(&path),
                };
            }
            let kept = self.kept.into_iter();
            kept.map(|(path, file)| (path, self.files[file].1.clone()))
                .collect()
        }
    }

    impl Disk for Model {
        fn create(&mut self, path: &Path, bytes: &[u8], _mode: u32) -> io::Result<()> {
            self.step()?;
            self.files.push((bytes.to_vec(), None));
            let file = self.files.len() - 1;
            self.name(path, Some(file));
            Ok(())
        }

        fn sync(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            let file = &mut self.files[self.names[path]];
            file.1 = Some(file.0.clone());
            Ok(())
        }

        fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
            self.step()?;
            let file = self.names[from];
            // one change of the directory: both names or neither
            self.names.remove(from);
            self.name(to, Some(file));
            Ok(())
        }

        fn sync_directory(&mut self, _path: &Path) -> io::Result<()> {
            self.step()?;
            for (path, file) in std::mem::take(&mut self.pending) {
                match file {
                    Some(file) => self.kept.insert(path, file),
                    None => self.kept.remove(&path),
                };
            }
            Ok(())
        }

        fn remove(&mut self, path: &Path) -> io::Result<()> {
            self.step()?;
            self.name(path, None);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn after_a_crash_at_any_step_the_file_is_the_old_one_or_the_new_one_whole(
            dies_before in 0_usize..6, luck in 0_usize..4
        ) {
            let path = Path::new("/state/file");
            let mut disk = Model::with(path, b"old", dies_before);
            let written = write_to(&mut disk, path, b"new", SECRET);
            let found = disk.crash(luck)[path].clone();
            match written {
                // what was answered is there
                Ok(()) => prop_assert_eq!(found, Some(b"new".to_vec())),
                // a file whose bytes weren't synced before its name was would be found as `None`: torn
                Err(_) => prop_assert!(found == Some(b"old".to_vec()) || found == Some(b"new".to_vec()), "{:?}", found),
            }
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_beside_it() {
        /// A disk on which nothing can be synced.
        struct Full;
        impl Disk for Full {
            fn create(&mut self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
                Real.create(path, bytes, mode)
            }
            fn sync(&mut self, _path: &Path) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
                Real.rename(from, to)
            }
            fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
                Real.sync_directory(path)
            }
            fn remove(&mut self, path: &Path) -> io::Result<()> {
                Real.remove(path)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old", SECRET).unwrap();
        let error = write_to(&mut Full, &path, b"new", SECRET).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_has_the_permissions_that_were_asked_for_whatever_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        for wanted in [PUBLIC, SECRET, 0o666] {
            write(&path, b"1", wanted).unwrap();
            assert_eq!(mode(), wanted);
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_neither_listed_nor_kept() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), b"1", SECRET).unwrap();
        fs::write(dir.path().join(".b.1.1.tmp"), b"torn").unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["a"]);
        // others' temporary files stay
        fs::write(dir.path().join(".com.example.tmp"), b"theirs").unwrap();
        sweep_of(&dir.path().join("a")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(temporary_of(".host.pem.17.0.tmp"), Some("host.pem"));
        for other in [
            ".1.2.tmp",
            ".a.1.tmp",
            ".a.1.x.tmp",
            "a.1.2.tmp",
            ".a.1.2",
            ".a..2.tmp",
        ] {
            assert_eq!(temporary_of(other), None);
        }
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
