//! An image in tart's cache on this machine: where its files lie, and where in them a content stands. Nothing is
//! written.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use proto::{
    Digest, Layout,
    image::{self, ContentSpec, Format, MAX_MANIFEST_BYTES},
    recipe::{ContentRecipe, Maker},
    reference::Version,
};

use super::progress::Count;

/// Bytes that are read at a time: a chunk, so that the recipe's maker needn't copy it.
const READ_BYTES: usize = 1 << 20;

/// A file, and an offset in it.
pub(super) type Place = (PathBuf, u64);

/// An image's directory in tart's cache.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    home: PathBuf,
    directory: PathBuf,
    digest: Digest,
}

impl Installed {
    /// Finds the image that a reference names in tart's home.
    pub(super) fn find(home: Option<&Path>, image: &proto::Reference) -> anyhow::Result<Self> {
        let home = match home {
            Some(home) => home.to_owned(),
            None => default_home()?,
        };
        let mut repository = home
            .join("cache/OCIs")
            .join(image.host().replace(':', "%3A"));
        repository.extend(image.namespace());
        let name = match image.version() {
            Version::Tag(tag) => tag.to_string(),
            Version::Digest(digest) => digest.to_string(),
        };
        let directory = fs::canonicalize(repository.join(name)).with_context(|| {
            format!(
                "image {image} isn't in tart's cache at {}; run `tart pull`, push with `--populate-cache`, or leave out \
                 --tart-home",
                home.display()
            )
        })?;
        let digest = directory
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let digest = digest.with_context(|| {
            format!(
                "{} isn't named by a digest, as an image in tart's cache is",
                directory.display()
            )
        })?;
        Ok(Self {
            home,
            directory,
            digest,
        })
    }

    /// The digest that names the image.
    pub(super) const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The manifest, if tart kept the registry's bytes. tart up to 2.35 keeps others.
    pub(super) fn manifest(&self) -> Option<Vec<u8>> {
        let path = self.directory.join("manifest.json");
        let bytes = fs::metadata(&path).ok()?.len();
        if bytes > MAX_MANIFEST_BYTES as u64 {
            return None;
        }
        let manifest = fs::read(path).ok()?;
        (Digest::of(&manifest) == self.digest).then_some(manifest)
    }

    /// Checks that every content can be read from the disk.
    pub(super) fn has_all(layout: &Layout) -> anyhow::Result<()> {
        for content in layout.contents() {
            if is_elsewhere(&content) {
                bail!(
                    "layer {} of image {} has no digest of its raw bytes, so its blob isn't on this disk; leave out \
                     --tart-home to read it from the registry",
                    content.digest,
                    layout.digest()
                );
            }
        }
        Ok(())
    }

    /// Makes the recipe of a content that stands there. Blocks.
    pub(super) fn make(
        (path, offset): &Place,
        spec: &ContentSpec,
        count: &Count,
    ) -> anyhow::Result<ContentRecipe> {
        let reading = || {
            format!(
                "reading content {} from {}; if the image is damaged, pull it again",
                spec.digest,
                path.display()
            )
        };
        let file = File::open(path).with_context(reading)?;
        let mut maker = Maker::of(spec);
        let mut buffer = vec![0; READ_BYTES];
        let mut at = 0;
        while at < spec.geometry.size() {
            let left = spec.geometry.size() - at;
            let now = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
            file.read_exact_at(&mut buffer[..now], *offset + at)
                .with_context(reading)?;
            maker.take(&buffer[..now]).with_context(reading)?;
            count.add(now);
            at += now as u64;
        }
        maker.finish().with_context(reading)
    }

    /// The file in which a content stands, and the offset in that file. The files of a stacked image's disk are those
    /// that tart (from 2.36 on) has for all images together.
    pub(super) fn place(&self, layout: &Layout, content: &ContentSpec) -> Option<Place> {
        let here = |name: &str| self.directory.join(name);
        content.places.iter().find_map(|place| match place {
            image::Place::Disk { offset } if layout.format() == Format::Flat => {
                Some((here("disk.img"), *offset))
            }
            image::Place::Disk { offset } => {
                let (file, within) = layout.file_at(*offset);
                let digest = layout.files()[file].digest?;
                let files = self.home.join("cache/content/sha256");
                Some((files.join(digest.hex().to_string()), within))
            }
            image::Place::Config => Some((here("config.json"), 0)),
            image::Place::Nvram => Some((here("nvram.bin"), 0)),
            image::Place::Encoded { .. } => None,
        })
    }
}

/// Whether a content isn't among the image's files.
fn is_elsewhere(content: &ContentSpec) -> bool {
    let mut places = content.places.iter();
    places.all(|place| matches!(place, image::Place::Encoded { .. }))
}

fn default_home() -> anyhow::Result<PathBuf> {
    let of_user = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".tart"));
    let home = std::env::var_os("TART_HOME").map(PathBuf::from);
    home.or_else(of_user)
        .context("tart's home isn't known: set TART_HOME, or name it by --tart-home")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_image_is_found_by_tag_and_by_digest() {
        let home = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"{}");
        let repository = home.path().join("cache/OCIs/127.0.0.1%3A5000/org/image");
        let directory = repository.join(digest.to_string());
        fs::create_dir_all(&directory).unwrap();
        symlink(&directory, repository.join("one")).unwrap();
        let find =
            |reference: &str| Installed::find(Some(home.path()), &reference.parse().unwrap());
        for reference in [
            "127.0.0.1:5000/org/image:one".to_owned(),
            format!("127.0.0.1:5000/org/image@{digest}"),
        ] {
            let found = find(&reference).unwrap();
            assert_eq!(found.digest(), &digest);
            assert_eq!(found.manifest(), None, "tart kept none");
        }
        fs::write(directory.join("manifest.json"), "{ }").unwrap();
        let found = find("127.0.0.1:5000/org/image:one").unwrap();
        assert_eq!(found.manifest(), None, "tart wrote it anew");
        fs::write(directory.join("manifest.json"), "{}").unwrap();
        assert_eq!(found.manifest().as_deref(), Some(&b"{}"[..]));
        let error = find("127.0.0.1:5000/org/image:two").unwrap_err();
        assert!(error.to_string().contains("tart pull"), "{error:#}");
    }
}
