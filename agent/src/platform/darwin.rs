//! macOS: APFS clones, holes and barriers.

#![expect(unsafe_code, reason = "system calls that no crate wraps")]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::Path,
    process::Command,
};

use rustix::fs::{CWD, CloneFlags};

/// `F_PUNCHHOLE` takes only whole file-system blocks. APFS has blocks of 4 KiB.
const BLOCK_BYTES: u64 = 4096;

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

pub(super) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    Ok(rustix::fs::fclonefileat(
        &source,
        CWD,
        to,
        CloneFlags::NOOWNERCOPY,
    )?)
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
