//! tart: its references, its paths on disk, and running it.

pub(crate) mod cache;
mod fitness;
mod operation;

pub(crate) use fitness::{Fitness, Unfit};
pub(crate) use operation::{Tart, TartError};
pub(crate) use proto::reference::{ParseReferenceError, Reference, Version};

#[cfg(test)]
pub(crate) mod tests {
    use std::{path::Path, process::Command};

    /// Writes a program. Another process writes it: if this one did, a child that another thread forks meanwhile would
    /// hold the file open for writing, and such a file can't be run.
    pub(crate) fn program(path: &Path, text: &str) {
        let script = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let mut shell = Command::new("/bin/sh");
        let ended = shell.args(["-c", script, "sh", text]).arg(path).status();
        assert!(ended.unwrap().success());
    }
}
