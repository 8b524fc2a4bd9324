//! macOS: APFS clones, holes and barriers.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        macos::fs::MetadataExt as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, PermissionsExt as _},
        },
    },
    path::Path,
    process::Command,
};

use rustix::{
    fs::{CWD, CloneFlags},
    io::Errno,
};

/// `F_PUNCHHOLE` takes only whole file-system blocks. APFS has blocks of 4 KiB.
const BLOCK_BYTES: u64 = 4096;

/// Permission bits of a clone: those of a new file.
const MODE: u32 = 0o644;

/// A file's owner sets these flags and takes them away. The Finder calls such a file locked: nobody writes to it or
/// removes it.
const LOCKED: u32 = libc::UF_IMMUTABLE | libc::UF_APPEND;
/// The same, for root alone.
const LOCKED_BY_ROOT: u32 = libc::SF_IMMUTABLE | libc::SF_APPEND;

/// JavaScript for Automation, which reaches Foundation without linking it. The system says 0 if it knows no capacity.
const CAPACITY: &str = r#"
ObjC.import("Foundation");
function run(arguments) {
    const key = "NSURLVolumeAvailableCapacityForImportantUsageKey";
    const url = $.NSURL.fileURLWithPath(arguments[0]);
    const values = url.resourceValuesForKeysError($([key]), null);
    return String(values.objectForKey(key).js);
}
"#;

pub(super) fn capacity_command(path: &Path) -> Option<Command> {
    let mut command = Command::new("/usr/bin/osascript");
    command.args(["-l", "JavaScript", "-e", CAPACITY]).arg(path);
    Some(command)
}

/// A clone has the permission bits and flags of its source (`clonefile(2)`), so one of a locked file could neither be
/// written to nor removed: it gets those of a new file.
pub(super) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    // the clone might stay for good
    if source.metadata()?.st_flags() & LOCKED_BY_ROOT != 0 {
        return Err(Errno::NOTSUP.into());
    }
    rustix::fs::fclonefileat(&source, CWD, to, CloneFlags::NOOWNERCOPY)?;
    unlock(to).map_err(|error| match fs::remove_file(to) {
        Ok(()) => error,
        Err(error) => error,
    })
}

/// Makes a file of this user's one that the user may write to and remove.
fn unlock(path: &Path) -> io::Result<()> {
    let flags = fs::symlink_metadata(path)?.st_flags();
    // while a file is locked, its permission bits can't be changed
    if flags & LOCKED != 0 {
        change_flags(path, flags & !LOCKED)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))
}

fn change_flags(path: &Path, flags: u32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: chflags reads the path, which ends in a zero byte and lives for the length of the call. It keeps nothing.
    let result = unsafe { libc::chflags(path.as_ptr(), flags) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.saturating_add(len);
    let first = offset.next_multiple_of(BLOCK_BYTES).min(end);
    let last = (end / BLOCK_BYTES * BLOCK_BYTES).max(first);
    let zeros = [0; BLOCK_BYTES as usize];
    let edge = |from: u64, to: u64| {
        let size = usize::try_from(to - from).map_or(zeros.len(), |size| size.min(zeros.len()));
        file.write_all_at(&zeros[..size], from)
    };
    edge(offset, first)?;
    if last > first {
        punch_blocks(file, first, last - first)?;
    }
    edge(last, end)
}

fn punch_blocks(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let hole = libc::fpunchhole_t {
        fp_flags: 0,
        reserved: 0,
        fp_offset: offset.try_into().map_err(too_large)?,
        fp_length: len.try_into().map_err(too_large)?,
    };
    // SAFETY: the descriptor is open for the length of the call, and F_PUNCHHOLE reads one fpunchhole_t through the
    // pointer and keeps nothing.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_PUNCHHOLE, &raw const hole) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(super) fn load_average() -> Option<f64> {
    let mut load = 0.0;
    // SAFETY: getloadavg writes at most one double through the pointer, which is good for one.
    let samples = unsafe { libc::getloadavg(&raw mut load, 1) };
    (samples == 1).then_some(load)
}

pub(super) fn sync_data(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call; F_BARRIERFSYNC takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_BARRIERFSYNC) };
    if result == -1 {
        // not APFS or HFS+ (a network volume, say): the stronger call is right everywhere
        return file.sync_all();
    }
    Ok(())
}

pub(super) fn sync_full(file: &File) -> io::Result<()> {
    // the standard library's sync_all is F_FULLFSYNC here, with fsync where a volume hasn't that
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_of_a_locked_file_can_be_written_to_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, vec![3; 100_000]).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o444)).unwrap();
        change_flags(&from, libc::UF_IMMUTABLE).unwrap();
        clone_file(&from, &to).unwrap();
        let clone = fs::metadata(&to).unwrap();
        assert_eq!(clone.permissions().mode() & 0o777, MODE);
        assert_eq!(clone.st_flags() & LOCKED, 0);
        fs::write(&to, "other").unwrap();
        fs::remove_file(&to).unwrap();
        assert_ne!(fs::metadata(&from).unwrap().st_flags() & LOCKED, 0);
        change_flags(&from, 0).unwrap();
    }
}
