//! A program that stands in for tart where an agent calls it to make goldens: it copies, and asks no registry.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// A tart that makes VMs of images in its cache, and says that they are there.
const TART: &str = r#"#!/bin/sh
case "$1" in
list) echo "[]" ;;
delete) rm -r "$TART_HOME/vms/$2" ;;
get) [ -d "$TART_HOME/vms/$2" ] && echo "{}" ;;
clone)
    host=$(echo "${2%%/*}" | sed s/:/%3A/)
    path=${2#*/}
    mkdir -p "$TART_HOME/vms"
    cp -R "$TART_HOME/cache/OCIs/$host/${path%:*}/${path##*:}/." "$TART_HOME/tmp-$$" && mv "$TART_HOME/tmp-$$" "$TART_HOME/vms/$3"
    ;;
*) exit 64 ;;
esac
"#;

/// Writes the program into a directory; its path, for the agent's setting `tart_binary`.
///
/// # Errors
/// When it can't be written.
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    let tart = directory.join("tart");
    fs::write(&tart, TART)?;
    fs::set_permissions(&tart, fs::Permissions::from_mode(0o755))?;
    Ok(tart)
}

/// Where the golden of a reference is, with the prefix `golden-`.
#[must_use]
pub fn golden(home: &Path, reference: &str) -> PathBuf {
    let name = proto::image::golden_name("golden-", reference);
    home.join("vms").join(name)
}
