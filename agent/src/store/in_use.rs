//! Which images Pods and pools refer to, as this host was told last. Kept in our directory in tart's home for the next
//! process: the host's own rule about old images counts without a coordinator, too, and Pods are there then as well.
//!
//! The file has a line for each reference, after a line that says whether there are more. A crash before it is written
//! leaves the list of before.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{Store, tree::ROOT};
use crate::retention::InUse;

fn path(home: &Path) -> PathBuf {
    home.join(ROOT).join("in-use")
}

/// What was kept in this home of tart; nothing where nobody ever said it. A file that can't be read stands for more
/// references than are known, so that no image goes.
pub(crate) fn kept(home: &Path) -> InUse {
    let path = path(home);
    let read = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return InUse::default(),
        read => read,
    };
    let parsed = read.map(|text| InUse::parse(&text));
    parsed.unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "what Pods refer to can't be read: no old image goes before it is told anew");
        InUse::unknown()
    })
}

/// Keeps the list, unless it is there. Blocks for as long as the volume takes.
pub(crate) fn keep(store: &Store, in_use: &InUse) {
    let home = store.shared.home();
    if kept(home) == *in_use {
        return;
    }
    let path = path(home);
    let written = durable::sweep_of(&path)
        .and_then(|()| durable::write(&path, in_use.to_text().as_bytes(), durable::PUBLIC));
    if let Err(error) = written {
        warn!(path = %path.display(), %error, "what Pods refer to isn't kept for the next start; it is tried again");
    }
}
