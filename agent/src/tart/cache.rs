//! The paths where tart keeps its home's OCI cache and local VMs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use proto::{
    Digest, Layout,
    image::{Format, MAX_MANIFEST_BYTES},
    reference::{Reference, Version},
};

/// The VM's configuration.
pub(crate) const CONFIG: &str = "config.json";
/// The VM's disk.
pub(crate) const DISK: &str = "disk.img";
/// The VM's firmware variables.
pub(crate) const NVRAM: &str = "nvram.bin";
/// The manifest, in OCI cache directories only.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Keeps tart's `gc` from an image that no tag points to.
pub(crate) const MARKER: &str = ".explicitly-pulled";

/// The disk of a local VM that tart (from 2.36 on) made of a stacked image. Such a VM has no [`DISK`].
pub(crate) const OVERLAY: &str = "overlay.asif";

/// The files that a directory needs, so that tart takes it for a flat image or a VM made of one.
pub(crate) const PARTS: [&str; 3] = [CONFIG, DISK, NVRAM];

/// The directory of a registry. tart locks it while it pulls from that registry.
pub(crate) fn host_directory(home: &Path, reference: &Reference) -> PathBuf {
    home.join("cache/OCIs")
        .join(reference.host().replace(':', "%3A"))
}

/// The directory of a repository.
pub(crate) fn repository_directory(home: &Path, reference: &Reference) -> PathBuf {
    let mut path = host_directory(home, reference);
    path.extend(reference.namespace());
    path
}

/// The directory of an image in a reference's repository.
pub(crate) fn image_directory(home: &Path, reference: &Reference, image: &Digest) -> PathBuf {
    repository_directory(home, reference).join(image.to_string())
}

/// The symlink by which a tag names its image; `None` for a reference by digest.
pub(crate) fn tag_link(home: &Path, reference: &Reference) -> Option<PathBuf> {
    match reference.version() {
        Version::Tag(tag) => Some(repository_directory(home, reference).join(tag.as_str())),
        Version::Digest(_) => None,
    }
}

/// Bounds of the search in [`images`]: directories in all, and depth. A registry's paths have two or three parts.
const MOST_DIRECTORIES: usize = 10_000;
const MOST_PARTS: usize = 16;

/// The directories of an image in all repositories. Symlinks aren't followed.
///
/// # Errors
/// When the cache can't be read.
pub(crate) fn installed(home: &Path, image: &Digest) -> io::Result<Vec<PathBuf>> {
    let mut found = images(home)?;
    let name = image.to_string();
    found.retain(|directory| {
        directory
            .file_name()
            .is_some_and(|found| found == name.as_str())
    });
    Ok(found)
}

/// The directories of all images. Symlinks aren't followed.
///
/// # Errors
/// When the cache can't be read.
pub(crate) fn images(home: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![(home.join("cache/OCIs"), 0)];
    let mut looked = 0;
    while let Some((directory, parts)) = open.pop() {
        looked += 1;
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with("sha256:") {
                found.push(entry.path());
            } else if parts < MOST_PARTS && looked + open.len() < MOST_DIRECTORIES {
                open.push((entry.path(), parts + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The links in an image's repository that lead to the image's directory.
///
/// # Errors
/// When the repository can't be read.
pub(crate) fn links(installed: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(repository) = installed.parent() else {
        return Ok(Vec::new());
    };
    let place = fs::canonicalize(installed)?;
    let mut links = Vec::new();
    for entry in fs::read_dir(repository)? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok() && fs::canonicalize(&path).is_ok_and(|to| to == place) {
            links.push(path);
        }
    }
    Ok(links)
}

/// The tags that name an image's directory, as references.
pub(crate) fn tags(home: &Path, installed: &Path) -> Vec<Reference> {
    let named = || -> Option<Vec<Reference>> {
        let repository = installed.parent()?;
        let path = repository.strip_prefix(home.join("cache/OCIs")).ok()?;
        let path = path.to_str()?.replacen("%3A", ":", 1);
        let links = links(installed).ok()?;
        let mut tags: Vec<Reference> = links
            .iter()
            .filter_map(|link| {
                format!("{path}:{}", link.file_name()?.to_str()?)
                    .parse()
                    .ok()
            })
            .collect();
        tags.sort_by_key(ToString::to_string);
        Some(tags)
    };
    named().unwrap_or_default()
}

/// The directory with the files of stacked images. tart (from 2.36 on) locks it while it installs there.
pub(crate) fn content_directory(home: &Path) -> PathBuf {
    home.join("cache/content")
}

/// The file that tart locks while it moves or removes files of stacked images, and while it makes or removes what
/// refers to them. Names with a leading dot are never collected there.
pub(crate) fn content_lock(home: &Path) -> PathBuf {
    content_directory(home).join(".gc.lock")
}

/// Where all images that have this file share it. The name is the digest of the whole file.
pub(crate) fn content_file(home: &Path, file: &Digest) -> PathBuf {
    content_directory(home)
        .join("sha256")
        .join(file.hex().to_string())
}

/// The manifest in a directory of an image or a VM. `None` if there is none, or it can't be read or understood. tart
/// before 2.36 writes it anew, so it proves nothing.
pub(crate) fn manifest(directory: &Path) -> Option<Layout> {
    let path = directory.join(MANIFEST);
    let found = fs::metadata(&path).ok()?;
    if !found.is_file() || found.len() > MAX_MANIFEST_BYTES as u64 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    Layout::parse(&bytes, &Digest::of(&bytes)).ok()
}

/// The directory of a local VM.
pub(crate) fn vm_directory(home: &Path, name: &str) -> PathBuf {
    home.join("vms").join(name)
}

/// Whether tart can clone the image in this directory: its files exist, and those of a stacked image have their
/// lengths. Nothing is hashed. A half record, which tart takes for an image and can't clone, isn't one.
pub(crate) fn is_complete(home: &Path, directory: &Path) -> bool {
    if !are_files(directory, &[CONFIG, NVRAM]) {
        return false;
    }
    if are_files(directory, &[DISK]) {
        return true;
    }
    let Some(layout) = manifest(directory).filter(|of| of.format() == Format::Stacked) else {
        return false;
    };
    layout.files().iter().all(|file| {
        let found = file.digest.map(|digest| content_file(home, &digest));
        let found = found.and_then(|path| fs::symlink_metadata(path).ok());
        found.is_some_and(|found| found.is_file() && found.len() == file.bytes)
    })
}

/// Whether tart takes this directory for a local VM.
pub(crate) fn is_machine(directory: &Path) -> bool {
    are_files(directory, &PARTS) || are_files(directory, &[CONFIG, NVRAM, MANIFEST, OVERLAY])
}

fn are_files(directory: &Path, parts: &[&str]) -> bool {
    parts
        .iter()
        .all(|part| fs::metadata(directory.join(part)).is_ok_and(|found| found.is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_where_tart_looks_for_them() {
        let home = Path::new("/t");
        let digest = Digest::of(b"x");
        let tag: Reference = "127.0.0.1:5000/org/image:one".parse().unwrap();
        assert_eq!(
            image_directory(home, &tag, &digest),
            Path::new("/t/cache/OCIs/127.0.0.1%3A5000/org/image").join(digest.to_string())
        );
        assert_eq!(
            tag_link(home, &tag).unwrap(),
            Path::new("/t/cache/OCIs/127.0.0.1%3A5000/org/image/one")
        );
        let by_digest: Reference = format!("ghcr.io/a@{digest}").parse().unwrap();
        assert_eq!(tag_link(home, &by_digest), None);
    }
}
