//! Where tart looks in its home, and whether what it finds there is an image's source. Written apart from the agent, so
//! that a mistake there shows here.

use std::{
    io,
    path::{Path, PathBuf},
};

use proto::Digest;

use crate::image::GeneratedImage;

/// Where tart looks for a reference: a tag's link, or an image's directory.
///
/// # Panics
/// When the reference lacks its registry, or both tag and digest.
#[must_use]
pub fn directory(home: &Path, reference: &str) -> PathBuf {
    let (registry, path) = reference.split_once('/').expect("a registry");
    let (name, version) = path
        .split_once('@')
        .or_else(|| path.rsplit_once(':'))
        .expect("a tag or a digest");
    let cache = home.join("cache/OCIs");
    let registry = cache.join(registry.replace(':', "%3A"));
    registry.join(name).join(version)
}

/// Where the disk of a reference lies.
///
/// # Panics
/// As [`directory`].
#[must_use]
pub fn disk(home: &Path, reference: &str) -> PathBuf {
    directory(home, reference).join("disk.img")
}

/// Where the file of a stacked image with this digest lies.
#[must_use]
pub fn content(home: &Path, file: &Digest) -> PathBuf {
    let directory = home.join("cache/content/sha256");
    directory.join(file.hex().to_string())
}

/// What of an installed image isn't the source's, bit by bit.
///
/// # Errors
/// When a file can't be read.
///
/// # Panics
/// As [`directory`].
pub fn difference(
    home: &Path,
    reference: &str,
    image: &GeneratedImage,
) -> anyhow::Result<Option<String>> {
    let record = directory(home, reference);
    let reading = |path: &Path, error: io::Error| {
        let message = format!("reading {}", path.display());
        anyhow::Error::new(error).context(message)
    };
    for (file, bytes) in image.files() {
        let path = match file.digest.filter(|_| !image.overlays.is_empty()) {
            Some(digest) => content(home, &digest),
            None => disk(home, reference),
        };
        let compared = bytes.compare(&path);
        if let Some(offset) = compared.map_err(|error| reading(&path, error))? {
            return Ok(Some(format!("{} from byte {offset} on", path.display())));
        }
    }
    // a stacked image has its disk elsewhere alone
    let half = !image.overlays.is_empty() && disk(home, reference).exists();
    if half {
        return Ok(Some(format!("{} has a disk of its own", record.display())));
    }
    for (name, source) in [
        ("config.json", &image.config),
        ("nvram.bin", &image.nvram),
        ("manifest.json", &image.manifest),
    ] {
        let path = record.join(name);
        let found = std::fs::read(&path).map_err(|error| reading(&path, error))?;
        if found != *source {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}
