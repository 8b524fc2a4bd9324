//! Where tart looks in its home, and whether what it finds there is an image's source. Written apart from the agent, so
//! that a mistake there shows here.

use std::{
    io,
    path::{Path, PathBuf},
};

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
    let disk = disk(home, reference);
    let reading = |path: &Path, error: io::Error| {
        let message = format!("reading {}", path.display());
        anyhow::Error::new(error).context(message)
    };
    let compared = image.compare(&disk);
    if let Some(offset) = compared.map_err(|error| reading(&disk, error))? {
        return Ok(Some(format!("{} from byte {offset} on", disk.display())));
    }
    for (name, source) in [
        ("config.json", &image.config),
        ("nvram.bin", &image.nvram),
        ("manifest.json", &image.manifest),
    ] {
        let path = disk.with_file_name(name);
        let found = std::fs::read(&path).map_err(|error| reading(&path, error))?;
        if found != *source {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}
