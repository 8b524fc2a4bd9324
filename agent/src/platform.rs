//! What macOS and Linux do by different calls: clones, holes, barriers, locks on directories, free space.
//!
//! This is the only module with `unsafe`. No other module does different things on the two systems, except `install`,
//! which works with launchd only on macOS. The modules for the two systems have the same functions and pass the same
//! tests.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::FileExt as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

#[cfg(target_vendor = "apple")]
#[path = "platform/darwin.rs"]
mod system;
#[cfg(not(target_vendor = "apple"))]
#[path = "platform/linux.rs"]
mod system;

/// How often a busy directory lock is tried again. `flock` has no form with a timeout, and an alarm signal would reach
/// any thread.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// If a hole can't be punched, zeros are written in pieces of this size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Why a file couldn't be cloned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloneError {
    /// This volume (or this pair of volumes) can't share blocks between files. The caller copies instead.
    #[error("volume can't clone files")]
    Unsupported,
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The load of the last minute, in percent of the cores: at 100, one task per core wants to run. `None` if the system
/// doesn't say.
pub(crate) fn load_percent() -> Option<u32> {
    let cores = std::thread::available_parallelism().ok()?.get();
    let load = system::load_average()?;
    if !load.is_finite() || load < 0.0 {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a load is small and positive, and the cast saturates"
    )]
    let percent = (load * 100.0 / cores as f64) as u32;
    Some(percent)
}

/// Makes `to` a file with the content of `from`. The two share their blocks until either is written to. `to` must not
/// exist. After an error, this call has left no file at `to`. Whoever may read `from` may write to `to`: `to` has the
/// permission bits of a new file, and is never locked.
///
/// # Errors
/// [`CloneError::Unsupported`] if the volume can't clone. The caller copies then.
pub(crate) fn clone_file(from: &Path, to: &Path) -> Result<(), CloneError> {
    #[cfg(test)]
    if cloning::PRETENDED.get() {
        return cloning::copy(from, to).map_err(Into::into);
    }
    match system::clone_file(from, to) {
        Ok(()) => Ok(()),
        Err(error) if is_unsupported(&error) => Err(CloneError::Unsupported),
        Err(error) => Err(error.into()),
    }
}

/// Whether files in a directory can be cloned, found out by cloning one.
///
/// # Errors
/// When that can't be tried now, for want of room or file handles, say. It says nothing of the volume.
pub(crate) fn can_clone(directory: &Path) -> io::Result<bool> {
    let (from, to) = (
        directory.join(".clone-from.tmp"),
        directory.join(".clone-to.tmp"),
    );
    let remove = || [&from, &to].map(std::fs::remove_file);
    drop(remove());
    // of an empty file some volumes clone nothing, and say that all went well
    let written = std::fs::write(&from, &ZEROS[..4096]);
    let cloned = written.and_then(|()| match clone_file(&from, &to) {
        Ok(()) => Ok(true),
        Err(CloneError::Unsupported) => Ok(false),
        Err(CloneError::Io(error)) => Err(error),
    });
    drop(remove());
    cloned
}

fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [
        Errno::OPNOTSUPP,
        Errno::NOTSUP,
        Errno::XDEV,
        Errno::INVAL,
        Errno::NOSYS,
        Errno::NOTTY,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Makes a range of the file read as zeros, and frees its blocks if the volume can. The file's size stays.
///
/// # Errors
/// When neither punching nor writing zeros works.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match system::punch_hole(file, offset, len) {
        Err(error) if is_unsupported(&error) => write_zeros(file, offset, len),
        done => done,
    }
}

/// Whether any byte of the range is stored: false for a hole. True where the volume doesn't tell. Moves the file's own
/// offset.
pub(crate) fn has_data(file: &File, range: Range<u64>) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(range.start)) {
        Ok(at) => at < range.end,
        Err(errno) => errno != rustix::io::Errno::NXIO,
    }
}

fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let now = usize::try_from(len).map_or(ZEROS.len(), |len| len.min(ZEROS.len()));
        file.write_all_at(&ZEROS[..now], offset)?;
        offset += now as u64;
        len -= now as u64;
    }
    Ok(())
}

/// Makes everything written to the file reach the disk before anything that is written after this call. On Linux the
/// data are on the disk when it returns. On macOS only the order is promised (`F_BARRIERFSYNC`), which is enough for a
/// journal.
///
/// # Errors
/// When the volume reports that data were lost or can't be written.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    system::sync_data(file)
}

/// Makes everything written to the file reach the disk, with its size and times (`F_FULLFSYNC`, `fsync`).
///
/// # Errors
/// As [`sync_data`].
pub(crate) fn sync_full(file: &File) -> io::Result<()> {
    system::sync_full(file)
}

/// Makes the directory's entries reach the disk, so that files created, renamed or removed in it stay so.
///
/// # Errors
/// As [`sync_data`], or when the directory can't be opened.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    sync_full(&open_directory(directory)?)
}

fn open_directory(directory: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes()))
        .open(directory)
}

/// An exclusive `flock` on a directory, as tart takes it. Dropping it releases the lock, and so does the system when
/// the process dies.
#[derive(Debug)]
pub(crate) struct DirectoryLock(OwnedFd);

impl DirectoryLock {
    /// Whether this is the directory that was locked. False if that one was removed, or made again.
    #[must_use]
    pub(crate) fn is_on(&self, directory: &Path) -> bool {
        let (Ok(locked), Ok(found)) = (rustix::fs::fstat(&self.0), rustix::fs::stat(directory))
        else {
            return false;
        };
        (locked.st_dev, locked.st_ino) == (found.st_dev, found.st_ino)
    }
}

/// Why a directory couldn't be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process held the lock the whole time.
    #[error("{path} is locked by another process{}", for_so_long(*.waited))]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The directory can't be opened or locked at all.
    #[error("locking {path}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

fn for_so_long(waited: Duration) -> String {
    match waited.as_secs() {
        0 => String::new(),
        seconds => format!(" for more than {seconds} s"),
    }
}

/// Locks a directory as tart does, by `flock` of the directory itself (tart, Sources/tart/FileLock.swift), and waits at
/// most `wait` for another holder of the lock. Blocks the thread.
///
/// # Errors
/// When the lock is still held after `wait`, or the directory can't be locked.
pub(crate) fn lock_directory(directory: &Path, wait: Duration) -> Result<DirectoryLock, LockError> {
    let opened = open_directory(directory).map_err(|error| LockError::Io {
        path: directory.into(),
        error,
    })?;
    lock_exclusively(opened.into(), directory, wait)
}

/// Locks a file as [`lock_directory`] locks a directory. Makes the file if it is missing.
///
/// # Errors
/// When another process holds the lock for longer than `wait`, or the file can't be opened or locked.
pub(crate) fn lock_file(file: &Path, wait: Duration) -> Result<DirectoryLock, LockError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .map_err(|error| LockError::Io {
            path: file.into(),
            error,
        })?;
    lock_exclusively(opened.into(), file, wait)
}

fn lock_exclusively(
    fd: OwnedFd,
    directory: &Path,
    wait: Duration,
) -> Result<DirectoryLock, LockError> {
    let failed = |error: io::Error| LockError::Io {
        path: directory.into(),
        error,
    };
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(DirectoryLock(fd)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let waited = start.elapsed();
                if waited >= wait {
                    return Err(LockError::Busy {
                        path: directory.into(),
                        waited,
                    });
                }
                std::thread::park_timeout(LOCK_RETRY.min(wait - waited));
            }
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

/// Exchanges two directory entries in one step, so that nobody ever sees either missing.
///
/// # Errors
/// When the volume can't exchange, or either entry is missing.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    Ok(rustix::fs::renameat_with(cwd, one, cwd, other, flags)?)
}

/// Renames a directory entry, if nothing has the new name.
///
/// # Errors
/// `AlreadyExists` if something has the name, also an empty directory; when the volume can't, or `from` is missing.
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let cwd = rustix::fs::CWD;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    Ok(rustix::fs::renameat_with(cwd, from, cwd, to, flags)?)
}

/// Room on a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The volume's size in bytes.
    pub total_bytes: u64,
    /// Bytes that an ordinary user can still write.
    ///
    /// On macOS this is the lower figure of `statfs`. It doesn't count what the system would purge on demand (local
    /// snapshots, caches). `capacity_command` counts that, too.
    pub free_bytes: u64,
}

/// What staging leaves free of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// A share of the volume, in percent.
    pub percent: u8,
    /// Bytes beside the share.
    pub kept_bytes: u64,
}

impl Floor {
    /// Bytes of a volume of this size that stay free. Where they are free, no less than the share is: it is rounded up.
    pub(crate) fn bytes(self, total_bytes: u64) -> u64 {
        let share = u128::from(total_bytes) * u128::from(self.percent.min(100));
        let share = share.div_ceil(100);
        let share = u64::try_from(share).unwrap_or(total_bytes);
        share.saturating_add(self.kept_bytes)
    }
}

/// The room on the volume that holds `path`.
///
/// # Errors
/// When the path doesn't exist any more.
pub(crate) fn space(path: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Space {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

/// A command that prints how many bytes the volume of `path` could hold after the system purged everything that it
/// purges on demand. `None` on systems that purge nothing.
///
/// On macOS only Foundation tells this number (`NSURLVolumeAvailableCapacityForImportantUsageKey`; `getattrlist` has no
/// such attribute in the public headers). Linking Foundation would end cross-building for macOS. The command asks a
/// daemon and may take seconds.
#[must_use]
pub(crate) fn capacity_command(path: &Path) -> Option<std::process::Command> {
    system::capacity_command(path)
}

/// Pretends clones on volumes that can't clone, for tests of code that clones.
#[cfg(test)]
pub(crate) mod cloning {
    use std::{cell::Cell, fs::File, io, path::Path};

    thread_local! {
        /// Whether this thread's clones are copies.
        pub(crate) static PRETENDED: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
        let mut from = File::open(from)?;
        io::copy(&mut from, &mut File::create_new(to)?).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use super::*;

    #[test]
    fn the_system_says_how_busy_it_is() {
        assert!(load_percent().is_some_and(|percent| percent < 1_000_000));
    }

    #[test]
    fn a_hole_reads_as_zeros_and_keeps_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        punch_hole(&file, 1000, 500_000).unwrap();
        sync_full(&file).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes[1000..501_000].iter().all(|byte| *byte == 0));
        assert!(bytes[..1000].iter().all(|byte| *byte == 7));
        assert!(bytes[501_000..].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_hole_has_no_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[7; 100], 4 << 20).unwrap();
        assert!(has_data(&file, 4 << 20..5 << 20));
        assert!(has_data(&file, 0..8 << 20));
        // a volume without holes says that all is data
        let quiet = [0..1_u64 << 20, 6 << 20..8 << 20];
        let said = quiet.map(|range| has_data(&file, range));
        assert!(said == [false; 2] || said == [true; 2], "{said:?}");
    }

    #[test]
    fn zeros_can_be_written_where_holes_can_not() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 200_000], 0).unwrap();
        write_zeros(&file, 1, 199_998).unwrap();
        let mut bytes = vec![1; 200_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((bytes[0], bytes[199_999]), (7, 7));
        assert!(bytes[1..199_999].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_clone_is_equal_or_said_to_be_unsupported() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, vec![3; 100_000]).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o444)).unwrap();
        match clone_file(&from, &to) {
            Ok(()) => {
                assert_eq!(fs::read(&to).unwrap(), fs::read(&from).unwrap());
                let mode = fs::metadata(&to).unwrap().permissions().mode();
                assert_eq!(mode & 0o200, 0o200, "it can be written to");
            }
            Err(CloneError::Unsupported) => assert!(!to.exists()),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(can_clone(dir.path()).unwrap(), to.exists());
        can_clone(&dir.path().join("none")).unwrap_err();
        assert!(fs::read_dir(dir.path()).unwrap().count() <= 2);
        fs::write(&to, "there").unwrap();
        assert!(clone_file(&from, &to).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"there");
    }

    #[test]
    fn a_locked_directory_is_busy_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_directory(dir.path(), Duration::ZERO).unwrap();
        assert!(first.is_on(dir.path()) && !first.is_on(Path::new("/")));
        assert!(!first.is_on(&dir.path().join("none")));
        assert!(matches!(
            lock_directory(dir.path(), Duration::from_millis(60)),
            Err(LockError::Busy { waited, .. }) if waited >= Duration::from_millis(60)
        ));
        let waiter = std::thread::spawn({
            let path = dir.path().to_owned();
            move || lock_directory(&path, Duration::from_secs(20)).is_ok()
        });
        drop(first);
        assert!(waiter.join().unwrap());
        assert!(matches!(
            lock_directory(&dir.path().join("none"), Duration::ZERO),
            Err(LockError::Io { .. })
        ));
    }

    #[test]
    fn exchanged_directories_change_places() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let (was_a, was_b) = (inode(&a), inode(&b));
        exchange(&a, &b).unwrap();
        assert_eq!((inode(&a), inode(&b)), (was_b, was_a));
    }

    #[test]
    fn a_new_name_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let error = rename_new(&a, &b).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        fs::remove_dir(&b).unwrap();
        rename_new(&a, &b).unwrap();
        assert!(!a.exists() && b.exists());
    }

    #[test]
    fn a_volume_has_room() {
        let found = space(Path::new("/")).unwrap();
        assert!(found.total_bytes > 0 && found.free_bytes <= found.total_bytes);
    }
}
