//! Hashes an installed image and compares it with its manifest alone. Nothing that this host noted decides whether it
//! is sound; notes only help to find the files and the first bad chunk.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use proto::{
    ChunkIndex, Digest, Geometry, Layout, State, chain,
    image::{Blob, DiskFile, DiskLayer, Format, LayerName, ParseImageError},
};
use sha2::{Digest as _, Sha256};

use super::{
    doubt::mark,
    files::installed_paths,
    journal::{Journal, Record},
    layers::decode_blob,
    status::Status,
    tree::{BLOBS, JOURNAL, ROOT},
};
use crate::tart::{ParseReferenceError, Reference, Version, cache};

/// Bytes that are read and hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// An image whose bytes are what its manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The image.
    pub digest: Digest,
    /// Its directory in tart's cache.
    pub directory: PathBuf,
    /// Bytes that were hashed.
    pub bytes: u64,
}

/// Why an image couldn't be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The text isn't a reference.
    #[error("reference {reference:?}: {error}")]
    Reference {
        /// The text.
        reference: String,
        /// The cause.
        error: ParseReferenceError,
    },
    /// tart's cache doesn't have the image. Or the image was named by digest, and this host didn't stage it; then a
    /// reference can name it.
    #[error(
        "{image} isn't on this host: {path} doesn't exist; `parbake-agent status` lists the images that are here"
    )]
    NotThere {
        /// The reference or digest, as it was given.
        image: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The manifest isn't here as the registry gave it, because tart before 2.36 writes its own (tart 2.35,
    /// Sources/tart/VMDirectory+OCI.swift: pullFromRegistry). Staging the image gets it.
    #[error("manifest in {path} isn't the registry's: {error}")]
    Manifest {
        /// Where.
        path: PathBuf,
        /// The cause.
        error: ParseImageError,
    },
    /// A layer of the disk has bytes that differ from the manifest.
    #[error("{layer} is damaged on disk{}", .chunk.map_or(String::new(), |chunk| format!(", from chunk {chunk} on")))]
    Layer {
        /// The layer.
        layer: LayerName,
        /// The layer's first bad chunk, if the links of its chunks are still here.
        chunk: Option<ChunkIndex>,
    },
    /// A layer without a raw digest can't be checked, because its blob isn't here any more.
    #[error("{layer} has no raw digest, and its blob isn't here to compare with")]
    NoBlob {
        /// The layer.
        layer: LayerName,
    },
    /// `config.json`, `nvram.bin`, `manifest.json` or a kept blob has bytes that differ from the manifest.
    #[error("{path} is damaged: it has digest {found}, not {wanted}")]
    File {
        /// The file.
        path: PathBuf,
        /// The digest that the file should have.
        wanted: Digest,
        /// The digest that the file has.
        found: Digest,
    },
    /// A file of an image that this host staged is missing.
    #[error("{path} is missing")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The disk has another size than the manifest says.
    #[error("{path} is damaged: it has {found} bytes, not {wanted}")]
    Size {
        /// The file.
        path: PathBuf,
        /// The size that the file should have, in bytes.
        wanted: u64,
        /// The size that the file has, in bytes.
        found: u64,
    },
    /// The volume failed.
    #[error("reading {path}: {error}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
}

impl VerifyError {
    /// Whether the image differs from its manifest, or something needed for the comparison is gone.
    pub(crate) const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Layer { .. }
                | Self::NoBlob { .. }
                | Self::File { .. }
                | Self::Missing { .. }
                | Self::Size { .. }
        )
    }
}

/// Reads a whole installed image from tart's cache and compares it with its manifest. `image` is a reference, or the
/// manifest's digest for an image that this host staged. The notes of this host say only where the image is. `progress`
/// gets the bytes done and the total, after each layer and file.
///
/// Takes no lock and changes nothing, so it can run beside an agent. Takes about a second per GB.
///
/// # Errors
/// The first difference, with the name of its layer or file.
pub fn verify(
    home: &Path,
    image: &str,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, VerifyError> {
    let (directory, digest) = locate(home, image)?;
    let ours = home.join(ROOT).join(digest.hex().to_string());
    let layout = read_layout(
        &[directory.join(cache::MANIFEST), ours.join(cache::MANIFEST)],
        &digest,
    )?;
    let total = layout.disk_bytes() + layout.config().size + layout.nvram().size;
    let mut done = 0;
    let mut advance = |bytes: u64| {
        done += bytes;
        progress(done, total);
    };
    for (name, blob) in [
        (cache::CONFIG, layout.config()),
        (cache::NVRAM, layout.nvram()),
    ] {
        check_file(&directory.join(name), blob)?;
        advance(blob.size);
    }
    check_manifest(&directory, &ours, &digest)?;
    let paths = installed_paths(home, &directory, &layout);
    for (file, path) in layout.files().iter().zip(&paths) {
        check_disk_file(&layout, file, path, &ours, &mut advance)?;
    }
    Ok(Verified {
        digest,
        directory,
        bytes: total,
    })
}

/// Compares a file of the disk with its layers and, if the image is stacked, with its own digest.
fn check_disk_file(
    layout: &Layout,
    file: &DiskFile,
    path: &Path,
    ours: &Path,
    advance: &mut impl FnMut(u64),
) -> Result<(), VerifyError> {
    let disk = open(path)?;
    let size = disk.metadata().map_err(at(path))?.len();
    if size != file.bytes {
        return Err(VerifyError::Size {
            path: path.into(),
            wanted: file.bytes,
            found: size,
        });
    }
    let whole = file.digest.filter(|_| layout.format() == Format::Stacked);
    let mut hasher = whole.map(|_| Sha256::new());
    for layer in &layout.layers()[file.layers.clone()] {
        let start = layer.offset - file.start;
        match layer.raw {
            Some(raw) => {
                let found = hash_into(&disk, start, layer.raw_bytes, hasher.as_mut());
                if found.map_err(at(path))? != raw {
                    let place = (&disk, start);
                    let journal = ours.join(JOURNAL);
                    let chunk = first_bad(place, layer, &raw, &journal, layout.digest());
                    return Err(VerifyError::Layer {
                        layer: layer.name(),
                        chunk,
                    });
                }
            }
            None => check_encoded(&disk, layer, &ours.join(BLOBS), path)?,
        }
        advance(layer.raw_bytes);
    }
    if let (Some(wanted), Some(hasher)) = (whole, hasher) {
        let found = Digest::from_bytes(hasher.finalize().into());
        if found != wanted {
            return Err(VerifyError::File {
                path: path.into(),
                wanted,
                found,
            });
        }
    }
    Ok(())
}

/// Tells the agent of this tart home that [`verify`] found an image damaged. The agent withdraws the image's presence,
/// reads the image again and mends it. A running agent notices within 5 s, a stopped one at its start. Returns whether
/// the agent staged the image; other images are tart's.
///
/// # Errors
/// When the image isn't there, or our directory can't be written.
pub fn doubt(home: &Path, image: &str) -> Result<bool, VerifyError> {
    let (_, digest) = locate(home, image)?;
    let ours = home.join(ROOT).join(digest.hex().to_string());
    mark(&ours).map_err(at(&ours))
}

/// The directory and the digest of an image that is named by reference or by digest.
fn locate(home: &Path, image: &str) -> Result<(PathBuf, Digest), VerifyError> {
    if let Ok(digest) = image.parse::<Digest>() {
        return find_staged(home, digest);
    }
    let reference: Reference = image.parse().map_err(|error| VerifyError::Reference {
        reference: image.chars().take(120).collect(),
        error,
    })?;
    find(home, &reference)
}

/// The directory of the image that a reference names, and the digest by which tart knows it.
fn find(home: &Path, reference: &Reference) -> Result<(PathBuf, Digest), VerifyError> {
    let path = match reference.version() {
        Version::Digest(digest) => cache::image_directory(home, reference, digest),
        Version::Tag(tag) => cache::repository_directory(home, reference).join(tag.as_str()),
    };
    let found = fs::canonicalize(&path)
        .ok()
        .filter(|found| cache::is_complete(home, found));
    let digest = found
        .as_deref()
        .and_then(|found| found.file_name()?.to_str()?.parse().ok());
    match (found, digest) {
        (Some(found), Some(digest)) => Ok((found, digest)),
        _ => Err(VerifyError::NotThere {
            image: reference.to_string(),
            path,
        }),
    }
}

/// The directory of an image that this host staged, found by the references in its notes.
fn find_staged(home: &Path, digest: Digest) -> Result<(PathBuf, Digest), VerifyError> {
    let path = home.join(ROOT).join(digest.hex().to_string());
    let status = Status::read(&path);
    let status = status.map_err(at(&path))?.unwrap_or_default();
    let places = status.references.iter();
    let mut places = places.map(|reference| cache::image_directory(home, reference, &digest));
    let found = places.find(|place| cache::is_complete(home, place));
    let image = digest.to_string();
    found
        .map(|place| (place, digest))
        .ok_or(VerifyError::NotThere { image, path })
}

fn read_layout(paths: &[PathBuf; 2], digest: &Digest) -> Result<Layout, VerifyError> {
    let mut first = None;
    for path in paths {
        let error = match fs::read(path) {
            Ok(bytes) => match Layout::parse(&bytes, digest) {
                Ok(layout) => return Ok(layout),
                Err(error) => VerifyError::Manifest {
                    path: path.clone(),
                    error,
                },
            },
            Err(error) => VerifyError::Io {
                path: path.clone(),
                error,
            },
        };
        first.get_or_insert(error);
    }
    Err(first.expect("there are two paths"))
}

/// Compares the manifest in a directory that we installed. Skips directories that tart pulled, where tart before 2.36
/// wrote its own manifest.
fn check_manifest(directory: &Path, ours: &Path, digest: &Digest) -> Result<(), VerifyError> {
    let path = directory.join(cache::MANIFEST);
    let status = Status::read(ours);
    let is_ours = status.is_ok_and(|status| status.is_some_and(|status| status.is_of(directory)));
    if !is_ours {
        return Ok(());
    }
    let found = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(VerifyError::Missing { path });
        }
        read => Digest::of(&read.map_err(at(&path))?),
    };
    if found == *digest {
        return Ok(());
    }
    Err(VerifyError::File {
        path,
        wanted: *digest,
        found,
    })
}

fn check_file(path: &Path, wanted: Blob) -> Result<(), VerifyError> {
    let file = open(path)?;
    let size = file.metadata().map_err(at(path))?.len();
    let found = hash(&file, 0, size).map_err(at(path))?;
    if found == wanted.digest {
        Ok(())
    } else {
        Err(VerifyError::File {
            path: path.into(),
            wanted: wanted.digest,
            found,
        })
    }
}

/// Decodes the kept blob of a layer again and compares it with the disk.
fn check_encoded(
    disk: &File,
    layer: &DiskLayer,
    blobs: &Path,
    disk_path: &Path,
) -> Result<(), VerifyError> {
    let path = blobs.join(layer.blob.digest.hex().to_string());
    if !path.exists() {
        return Err(VerifyError::NoBlob {
            layer: layer.name(),
        });
    }
    check_file(&path, layer.blob)?;
    let blob = open(&path)?;
    let mut offset = layer.offset;
    let mut same = true;
    let mut stored = Vec::new();
    let decoded = decode_blob(&blob, layer.blob.size, layer.raw_bytes, |raw| {
        stored.resize(raw.len(), 0);
        disk.read_exact_at(&mut stored, offset)?;
        same &= stored == raw;
        offset += raw.len() as u64;
        Ok(())
    })
    .map_err(at(disk_path))?;
    if decoded.is_ok() && same {
        Ok(())
    } else {
        Err(VerifyError::Layer {
            layer: layer.name(),
            chunk: None,
        })
    }
}

/// The first chunk at which the bytes on disk leave the chain, by the links in the store's journal.
fn first_bad(
    (disk, start): (&File, u64),
    layer: &DiskLayer,
    raw: &Digest,
    journal: &Path,
    image: &Digest,
) -> Option<ChunkIndex> {
    let geometry = Geometry::new(layer.raw_bytes).ok()?;
    let mut ends = vec![None; geometry.chunks() as usize];
    for record in Journal::read(journal, image).ok()? {
        if let Record::Held {
            content,
            chunk,
            link,
            ..
        } = record
            && content == *raw
            && let Some(end) = ends.get_mut(chunk.0 as usize)
        {
            *end = Some(link.after);
        }
    }
    let mut state = State::INITIAL;
    let mut bytes = vec![0; PIECE_BYTES];
    for (chunk, end) in (0..).map(ChunkIndex).zip(ends) {
        let bytes = &mut bytes[..geometry.len(chunk) as usize];
        disk.read_exact_at(bytes, start + geometry.offset(chunk))
            .ok()?;
        state = chain::step(geometry, chunk, state, bytes);
        if end? != state {
            return Some(chunk);
        }
    }
    None
}

fn hash(file: &File, offset: u64, size: u64) -> io::Result<Digest> {
    hash_into(file, offset, size, None)
}

/// Does what [`hash`] does, and has another hasher take the same bytes.
fn hash_into(
    file: &File,
    offset: u64,
    size: u64,
    mut also: Option<&mut Sha256>,
) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut done = 0;
    while done < size {
        let length = usize::try_from(size - done).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        file.read_exact_at(&mut piece[..length], offset + done)?;
        hasher.update(&piece[..length]);
        if let Some(also) = &mut also {
            also.update(&piece[..length]);
        }
        done += length as u64;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

fn open(path: &Path) -> Result<File, VerifyError> {
    File::open(path).map_err(at(path))
}

fn at(path: &Path) -> impl Fn(io::Error) -> VerifyError {
    move |error| VerifyError::Io {
        path: path.into(),
        error,
    }
}
