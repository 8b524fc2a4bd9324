//! Linux, the system on which most tests run.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    process::Command,
};

use rustix::fs::FallocateFlags;

pub(super) const fn capacity_command(_path: &Path) -> Option<Command> {
    None
}

pub(super) fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).open(to)?;
    rustix::fs::ioctl_ficlone(&target, &source).map_err(|errno| {
        // the empty file is ours: `create_new` made it
        match fs::remove_file(to) {
            Ok(()) => errno.into(),
            Err(error) => error,
        }
    })
}

pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

pub(super) fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

pub(super) fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

pub(super) fn sync_full(file: &File) -> io::Result<()> {
    file.sync_all()
}
