//! The paths where tart keeps its home's OCI cache and local VMs, and what tart takes a directory there for.
//!
//! "tart of August 2026" is the state of openai/tart's main branch with stacked images, between the releases 2.35 and
//! 2.36.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use proto::{
    Digest, Layout,
    image::{Format, MAX_MANIFEST_BYTES},
    reference::{Reference, Version},
};

// the names of the files: tart of August 2026, Sources/tart/VMDirectory.swift

/// The VM's configuration.
pub(crate) const CONFIG: &str = "config.json";
/// The VM's disk.
pub(crate) const DISK: &str = "disk.img";
/// The VM's firmware variables.
pub(crate) const NVRAM: &str = "nvram.bin";
/// The manifest, in OCI cache directories only.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Keeps tart's `gc` from an image that no tag points to (tart, Sources/tart/VMStorageOCI.swift: gc).
pub(crate) const MARKER: &str = ".explicitly-pulled";

/// The disk of a local VM that tart (from 2.36 on) made of a stacked image. Such a VM has no [`DISK`].
pub(crate) const OVERLAY: &str = "overlay.asif";

/// The files that a directory needs, so that tart takes it for a flat image or a VM made of one.
pub(crate) const PARTS: [&str; 3] = [CONFIG, DISK, NVRAM];

/// The directory of a registry. tart locks it while it pulls from that registry (tart, Sources/tart/VMStorageOCI.swift:
/// pull, appendingHost, percentEncode).
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

/// The directory of an image in a reference's repository (tart, Sources/tart/VMStorageOCI.swift: appendingRemoteName).
pub(crate) fn image_directory(home: &Path, reference: &Reference, image: &Digest) -> PathBuf {
    repository_directory(home, reference).join(image.to_string())
}

/// The symlink by which a tag names its image; `None` for a reference by digest. Its target is the directory's whole
/// path (tart, Sources/tart/VMStorageOCI.swift: link, linked).
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

/// The directory with the files of stacked images. tart (from 2.36 on) locks it while it installs there (tart of August
/// 2026, Sources/tart/ContentStore.swift: install).
pub(crate) fn content_directory(home: &Path) -> PathBuf {
    home.join("cache/content")
}

/// The file that tart locks while it moves or removes files of stacked images, and while it makes or removes what
/// refers to them (tart of August 2026, Sources/tart/ContentStore.swift: withPruneLock). Names that aren't 64 hex
/// digits are never collected there (the same file: prunables).
pub(crate) fn content_lock(home: &Path) -> PathBuf {
    content_directory(home).join(".gc.lock")
}

/// Where all images that have this file share it. The name is the digest of the whole file (tart of August 2026,
/// Sources/tart/ContentStore.swift: contentURL).
pub(crate) fn content_file(home: &Path, file: &Digest) -> PathBuf {
    content_directory(home)
        .join("sha256")
        .join(file.hex().to_string())
}

/// The manifest in a directory of an image or a VM. `None` if there is none, or it can't be read or understood. tart
/// before 2.36 writes it anew, so it proves nothing (tart 2.35, Sources/tart/VMDirectory+OCI.swift: pullFromRegistry).
pub(crate) fn manifest(directory: &Path) -> Option<Layout> {
    let path = directory.join(MANIFEST);
    let found = fs::metadata(&path).ok()?;
    if !found.is_file() || found.len() > MAX_MANIFEST_BYTES as u64 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    Layout::parse(&bytes, &Digest::of(&bytes)).ok()
}

/// The directory of a local VM (tart, Sources/tart/VMStorageLocal.swift: vmURL).
pub(crate) fn vm_directory(home: &Path, name: &str) -> PathBuf {
    home.join("vms").join(name)
}

/// What tart takes a directory for, by the files that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A flat image, or a VM with a disk of its own.
    Flat,
    /// A VM whose disk is a base, overlays and an overlay of its own.
    StackedVm,
    /// A stacked image in the cache.
    StackedImage,
}

impl Shape {
    /// What tart takes this directory for. `None`: for nothing (tart of August 2026, Sources/tart/VMDirectory.swift:
    /// layout). tart before 2.36 looks for [`PARTS`] alone (tart 2.35, the same file: initialized).
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let has = |part| are_files(directory, &[part]);
        if !has(CONFIG) || !has(NVRAM) {
            return None;
        }
        match (has(DISK), has(MANIFEST), has(OVERLAY)) {
            (true, _, false) => Some(Self::Flat),
            (false, true, true) => Some(Self::StackedVm),
            (false, true, false) => Some(Self::StackedImage),
            _ => None,
        }
    }
}

/// Whether tart can clone the image in this directory: its files exist, and those of a stacked image have their
/// lengths. Nothing is hashed (tart of August 2026, Sources/tart/VMStorageOCI.swift: hasUsableCachedImageForClone). A
/// half record, which tart takes for an image and can't clone, isn't one.
pub(crate) fn is_complete(home: &Path, directory: &Path) -> bool {
    match Shape::of(directory) {
        Some(Shape::Flat) => return true,
        Some(Shape::StackedImage) => {}
        Some(Shape::StackedVm) | None => return false,
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

/// Whether tart takes this directory for a local VM (tart of August 2026, Sources/tart/VMDirectory.swift: initialized).
pub(crate) fn is_machine(directory: &Path) -> bool {
    matches!(Shape::of(directory), Some(Shape::Flat | Shape::StackedVm))
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

    #[test]
    fn a_directory_is_what_tart_takes_it_for() {
        let home = tempfile::tempdir().unwrap();
        let of = |parts: &[&str]| {
            let directory = home.path().join(parts.join("+"));
            fs::create_dir(&directory).unwrap();
            for part in parts {
                fs::write(directory.join(part), "").unwrap();
            }
            let found = Shape::of(&directory);
            assert_eq!(
                is_machine(&directory),
                matches!(found, Some(Shape::Flat | Shape::StackedVm)),
                "{parts:?}"
            );
            (found, is_complete(home.path(), &directory))
        };
        assert_eq!(of(&PARTS), (Some(Shape::Flat), true));
        assert_eq!(
            of(&[CONFIG, DISK, NVRAM, MANIFEST]),
            (Some(Shape::Flat), true)
        );
        let stacked = (Some(Shape::StackedVm), false);
        assert_eq!(of(&[CONFIG, NVRAM, MANIFEST, OVERLAY]), stacked);
        // a half record: nobody knows its files
        assert_eq!(
            of(&[CONFIG, NVRAM, MANIFEST]),
            (Some(Shape::StackedImage), false)
        );
        for parts in [
            &[CONFIG, DISK, NVRAM, OVERLAY][..],
            &[CONFIG, DISK, NVRAM, MANIFEST, OVERLAY],
            &[CONFIG, NVRAM, OVERLAY],
            &[CONFIG, NVRAM],
            &[CONFIG, DISK, MANIFEST],
            &[DISK, NVRAM, MANIFEST],
        ] {
            assert_eq!(of(parts), (None, false), "{parts:?}");
        }
    }
}
