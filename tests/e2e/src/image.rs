//! Images that look like tart's, made from a seed: the disk is a function of the seed, so that any byte of any copy can
//! be checked without keeping the original. Or of a real disk in a file, which stays.
//!
//! A disk is cut into groups of 2 MiB, each zero, compressible or incompressible. Group borders lie 320 KiB off the
//! multiples of 2 MiB, as nothing in a real disk falls on the borders of chunks. Generation streams: memory use doesn't
//! depend on the disk's size. A stacked image has a base, which is such a disk, and overlays, each of which is one too.
//!
//! ```
//! use e2e::image::ImageSpec;
//!
//! let directory = tempfile::tempdir()?;
//! let spec = ImageSpec { disk_bytes: 8 << 20, layer_bytes: 2 << 20, ..ImageSpec::default() };
//! let image = spec.generate(directory.path())?;
//! assert_eq!(image.layout()?.disk_bytes(), 8 << 20);
//! let next = spec.changed(25).generate(directory.path())?;
//! assert_ne!(next.digest, image.digest);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod disk;
mod encode;
mod push;
mod stack;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bytes::Bytes;
use proto::{
    Digest, Layout, RegistryReference,
    image::{
        CONFIG_TYPE, DISK_SIZE_ANNOTATION, DISK_TYPE, DiskFile, MANIFEST_TYPE, NVRAM_TYPE,
        ParseImageError, RAW_DIGEST_ANNOTATION, RAW_SIZE_ANNOTATION,
    },
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::encode::Encoder;
pub use self::{
    disk::{Change, Disk, Insertion, Mix},
    stack::Overlay,
};
use crate::interrupt;

/// Threads that encode layers.
const THREADS: usize = 2;

/// What an image is made of. The same spec always makes the same image, to the byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Bytes of the disk, from 1.
    pub disk_bytes: u64,
    /// Bytes of each disk layer but the last; a multiple of 64 KiB. tart uses 512 MiB.
    pub layer_bytes: u64,
    /// Bytes of nvram, from 1. A macOS nvram has 33 MB.
    pub nvram_bytes: u64,
    /// Makes disks differ.
    pub seed: u64,
    /// What the disk holds.
    pub mix: Mix,
    /// How many of the last whole layers are copies of the first ones.
    pub repeated_layers: usize,
    /// How many of the layers, from the second on, don't have the digest of their raw bytes in the manifest.
    pub layers_without_digest: usize,
    /// What is wrong with it.
    pub flaws: Vec<Flaw>,
    /// The releases that led here from the first one; see [`ImageSpec::changed`].
    pub changes: Vec<Change>,
    /// What the last release put between the bytes of the one before.
    pub inserted: Option<Insertion>,
    /// The disk's bytes are those of this file. It has `disk_bytes` at least, and stays as it is.
    pub file: Option<PathBuf>,
    /// What lies on the disk, oldest first; with any, the image is a stacked one, and its disk is the base.
    pub overlays: Vec<Overlay>,
}

/// What is wrong with an image. Layers are counted from 0 among the disk layers, and their copies share the flaw.
/// Digests of blobs are always right, so that the flaw shows only where it has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The layer's compressed stream ends in the middle.
    Truncated(usize),
    /// A byte in the middle of the layer's compressed stream is another.
    Corrupt(usize),
    /// The layer decodes well, but the manifest gives another digest for its raw bytes.
    Mislabelled(usize),
    /// The manifest gives the layer, and the disk, one byte more than the layer decodes to.
    TooShort(usize),
    /// The layer decodes to this many times what the manifest says: an LZ4 bomb.
    Bomb(usize, u32),
    /// The layer is of a type that newer versions of tart write.
    UnknownType(usize),
    /// The manifest gives the disk one byte more than its layers have.
    DiskSize,
    /// There is no nvram.
    NoNvram,
    /// The manifest gives another digest for this whole file of a stacked image; the base is file 0. Its layers are
    /// sound.
    FileDigest(usize),
}

/// Why an image can't be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The spec contradicts itself.
    #[error("an image can't be made like this: {0}")]
    Spec(&'static str),
    /// The disk's file can't be read.
    #[error("disk {} can't be read: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The directory can't be written.
    #[error("blob in {} can't be written: {cause}", path.display())]
    Write {
        /// The directory.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
}

/// An image whose blobs lie in a directory.
#[derive(Clone, Debug)]
pub struct GeneratedImage {
    /// Where the blobs are, each under the hex digits of its digest.
    pub directory: PathBuf,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The manifest's digest: the image's name.
    pub digest: Digest,
    /// The bytes of the disk; those of the base of a stacked image.
    pub disk: Disk,
    /// The bytes of its overlays.
    pub overlays: Vec<Disk>,
    /// What becomes `config.json`.
    pub config: Bytes,
    /// What becomes `nvram.bin`.
    pub nvram: Bytes,
    /// All blobs that the manifest names, and their sizes.
    pub blobs: BTreeMap<Digest, u64>,
}

impl Default for ImageSpec {
    /// A small image with everything that occurs in real ones.
    fn default() -> Self {
        Self {
            disk_bytes: 64 << 20,
            layer_bytes: 8 << 20,
            nvram_bytes: 256 << 10,
            seed: 1,
            mix: Mix::default(),
            repeated_layers: 1,
            layers_without_digest: 1,
            flaws: Vec::new(),
            changes: Vec::new(),
            inserted: None,
            file: None,
            overlays: Vec::new(),
        }
    }
}

impl ImageSpec {
    /// A disk that nothing makes smaller, without repetition: its blobs have as many bytes as its disk, and a little.
    #[must_use]
    pub fn incompressible(disk_bytes: u64, layer_bytes: u64, seed: u64) -> Self {
        Self {
            disk_bytes,
            layer_bytes,
            seed,
            mix: Mix {
                zero_percent: 0,
                compressible_percent: 0,
            },
            repeated_layers: 0,
            layers_without_digest: 0,
            ..Self::default()
        }
    }

    /// A disk like tart's without repetition, whose every layer has the digest of its raw bytes in the manifest.
    #[must_use]
    pub fn plain(disk_mib: u64, layer_mib: u64) -> Self {
        Self {
            disk_bytes: disk_mib << 20,
            layer_bytes: layer_mib << 20,
            nvram_bytes: 1 << 20,
            repeated_layers: 0,
            layers_without_digest: 0,
            ..Self::default()
        }
    }

    /// An image of a raw disk in a file. Its every layer has the digest of its raw bytes in the manifest.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn of_file(path: &Path, layer_bytes: u64) -> Result<Self, GenerateError> {
        let size = std::fs::metadata(path).map_err(|cause| GenerateError::Read {
            path: path.to_owned(),
            cause,
        })?;
        Ok(Self {
            disk_bytes: size.len(),
            layer_bytes,
            repeated_layers: 0,
            layers_without_digest: 0,
            file: Some(path.to_owned()),
            ..Self::default()
        })
    }

    /// The next release: `percent` of the layers, at least one, have half of their groups changed; the others are
    /// shared.
    #[must_use]
    pub fn changed(&self, percent: u8) -> Self {
        self.changed_within(percent, 50)
    }

    /// The next release, with `within_percent` of the changed layers' groups changed, at least one group of each.
    #[must_use]
    pub fn changed_within(&self, layers_percent: u8, within_percent: u8) -> Self {
        let mut next = self.clone();
        next.changes.push(Change {
            layers_percent,
            within_percent,
        });
        next
    }

    /// The next release, with so many new bytes at this offset, so that everything behind them has moved.
    #[must_use]
    pub fn with_inserted(&self, at: u64, bytes: u64) -> Self {
        Self {
            inserted: Some(Insertion { at, bytes }),
            ..self.clone()
        }
    }

    /// The disk as the base of a stacked image, with these overlays. Each layer has the digest of its raw bytes then.
    #[must_use]
    pub fn stacked(&self, overlays: &[Overlay]) -> Self {
        Self {
            overlays: overlays.to_vec(),
            layers_without_digest: 0,
            ..self.clone()
        }
    }

    /// An overlay as a disk of its own.
    fn overlay(&self, overlay: &Overlay) -> Self {
        Self {
            disk_bytes: overlay.bytes,
            layer_bytes: self.layer_bytes,
            seed: overlay.seed,
            mix: self.mix,
            ..Self::incompressible(0, 0, 0)
        }
    }

    /// The same image with something wrong.
    #[must_use]
    pub fn flawed(&self, flaw: Flaw) -> Self {
        let mut flawed = self.clone();
        flawed.flaws.push(flaw);
        flawed
    }

    /// The disk's bytes, without an image round them.
    ///
    /// # Errors
    /// When the spec contradicts itself, or the disk's file can't be read.
    pub fn disk(&self) -> Result<Disk, GenerateError> {
        let parts = disk::Parts {
            disk_bytes: self.disk_bytes,
            layer_bytes: self.layer_bytes,
            seed: self.seed,
            mix: self.mix,
            repeated_layers: self.repeated_layers,
            inserted: self.inserted,
        };
        let disk = Disk::new(&parts, &self.changes).map_err(GenerateError::Spec)?;
        let Some(path) = &self.file else {
            return Ok(disk);
        };
        if self.repeated_layers > 0 || !self.changes.is_empty() || self.inserted.is_some() {
            return Err(GenerateError::Spec("a file's bytes are taken as they are"));
        }
        let file = File::open(path).map_err(|cause| GenerateError::Read {
            path: path.clone(),
            cause,
        })?;
        Ok(disk.of_file(file))
    }

    /// Makes the image's blobs in a directory; those that are there already stay. Blocking: seconds per GiB.
    ///
    /// # Errors
    /// When the spec contradicts itself, the disk's file can't be read, or the directory can't be written.
    pub fn generate(&self, directory: &Path) -> Result<GeneratedImage, GenerateError> {
        let write = |cause| GenerateError::Write {
            path: directory.to_owned(),
            cause,
        };
        if self.nvram_bytes == 0 {
            return Err(GenerateError::Spec("an nvram has a byte at least"));
        }
        if !self.overlays.is_empty() && self.layers_without_digest > 0 {
            return Err(GenerateError::Spec("each layer of a stack has a digest"));
        }
        let disk = self.disk()?;
        let mut blobs = BTreeMap::new();
        let mut small = |bytes: &[u8]| -> Result<(Digest, u64), GenerateError> {
            let digest = Digest::of(bytes);
            let mut file = tempfile::NamedTempFile::new_in(directory).map_err(write)?;
            file.write_all(bytes).map_err(write)?;
            keep(file, directory, &digest).map_err(write)?;
            let size = bytes.len() as u64;
            blobs.insert(digest, size);
            Ok((digest, size))
        };
        let config = tart_config(self.seed);
        let nvram = disk.nvram(self.nvram_bytes);
        let oci = json!({"architecture": "arm64", "os": "darwin"}).to_string();
        let (oci_digest, oci_size) = small(oci.as_bytes())?;
        let mut all = Vec::new();
        let (digest, size) = small(&config)?;
        all.push(descriptor(CONFIG_TYPE, &digest, size));
        let (nvram_digest, nvram_size) = small(&nvram)?;
        let short = self.push_file(&disk, directory, &mut all, &mut blobs);
        let mut short = short.map_err(write)?;
        let mut overlays = Vec::new();
        for (overlay, at) in self.overlays.iter().zip(1..) {
            let file = self.overlay(overlay);
            let bytes = file.disk()?;
            let first = all.len();
            let pushed = file.push_file(&bytes, directory, &mut all, &mut blobs);
            short += pushed.map_err(write)?;
            self.mark_file(&mut all[first..], &bytes, at)
                .map_err(write)?;
            overlays.push(bytes);
        }
        if !self.flaws.contains(&Flaw::NoNvram) {
            all.push(descriptor(NVRAM_TYPE, &nvram_digest, nvram_size));
        }
        let mut annotations = json!({ "org.cirruslabs.tart.upload-time": "2026-11-01T00:00:00Z" });
        let mut disk_bytes = self.disk_bytes;
        if !overlays.is_empty() {
            let base = 1..=disk.layers();
            self.mark_file(&mut all[base], &disk, 0).map_err(write)?;
            disk_bytes = stack::guest_disk(&mut annotations, disk_bytes);
        }
        let extra = short + u64::from(self.flaws.contains(&Flaw::DiskSize));
        annotations[DISK_SIZE_ANNOTATION] = (disk_bytes + extra).to_string().into();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &oci_digest, oci_size),
            "layers": all,
            "annotations": annotations,
        });
        let manifest = Bytes::from(manifest.to_string());
        Ok(GeneratedImage {
            directory: directory.to_owned(),
            digest: Digest::of(&manifest),
            manifest,
            disk,
            overlays,
            config: config.into(),
            nvram: nvram.into(),
            blobs,
        })
    }

    /// Encodes a file's layers, and adds them to the manifest's. Returns how many bytes more the manifest says that
    /// they have.
    fn push_file(
        &self,
        disk: &Disk,
        directory: &Path,
        all: &mut Vec<Value>,
        blobs: &mut BTreeMap<Digest, u64>,
    ) -> io::Result<u64> {
        let mut short = 0;
        for (at, layer) in self.encode(disk, directory)?.iter().enumerate() {
            blobs.insert(layer.digest, layer.size);
            all.push(self.disk_descriptor(at, disk.source(at), layer));
            short += u64::from(self.flaws.contains(&Flaw::TooShort(disk.source(at))));
        }
        Ok(short)
    }

    /// Marks a file's layers as those of a file of a stack, whose base is file 0.
    fn mark_file(&self, layers: &mut [Value], disk: &Disk, file: usize) -> io::Result<()> {
        let digest = match self.flaws.contains(&Flaw::FileDigest(file)) {
            true => Digest::of(b"another file"),
            false => stack::file_digest(disk)?,
        };
        stack::mark(layers, &digest, file > 0);
        Ok(())
    }

    fn disk_descriptor(&self, at: usize, source: usize, layer: &Encoded) -> Value {
        let has = |flaw| self.flaws.contains(&flaw);
        let media_type = if has(Flaw::UnknownType(source)) {
            "application/vnd.cirruslabs.tart.disk.v3"
        } else {
            DISK_TYPE
        };
        let mut value = descriptor(media_type, &layer.digest, layer.size);
        let raw_bytes = layer.raw_bytes + u64::from(has(Flaw::TooShort(source)));
        let mut annotations = json!({ RAW_SIZE_ANNOTATION: raw_bytes.to_string() });
        let raw = if has(Flaw::Mislabelled(source)) {
            Digest::of(layer.raw.as_bytes())
        } else {
            layer.raw
        };
        // Not the first one, so that the mirror of a repetition keeps its digest in small images.
        if !(1..=self.layers_without_digest).contains(&at) {
            annotations[RAW_DIGEST_ANNOTATION] = raw.to_string().into();
        }
        value["annotations"] = annotations;
        value
    }

    /// Encodes each distinct layer once, on a few threads.
    fn encode(&self, disk: &Disk, directory: &Path) -> io::Result<Vec<Encoded>> {
        let count = disk.layers();
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<usize, Encoded>> = Mutex::default();
        let work = || -> io::Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return Ok(());
                }
                if disk.source(at) != at {
                    continue;
                }
                let encoded = self.encode_layer(disk, at, directory)?;
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(at, encoded);
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("an encoder panicked")))
            })
        })?;
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        (0..count)
            .map(|at| {
                done.get(&disk.source(at))
                    .cloned()
                    .ok_or_else(|| io::Error::other("a layer wasn't encoded"))
            })
            .collect()
    }

    fn encode_layer(&self, disk: &Disk, at: usize, directory: &Path) -> io::Result<Encoded> {
        let range = disk.layer(at);
        let raw_bytes = range.end - range.start;
        let has = |flaw| self.flaws.contains(&flaw);
        let bomb = self.flaws.iter().find_map(|flaw| match flaw {
            Flaw::Bomb(of, times) if *of == at => Some(u64::from(*times)),
            _ => None,
        });
        let mut out = Output::new(directory)?;
        let mut raw_hash = Sha256::new();
        let mut encoder = Encoder::new();
        let mut buffer = vec![0; encode::BLOCK_BYTES];
        let mut offset = range.start;
        while offset < range.end {
            interrupt::check()?;
            let length = (range.end - offset).min(encode::BLOCK_BYTES as u64);
            // At most BLOCK_BYTES.
            let piece = &mut buffer[..usize::try_from(length).map_err(io::Error::other)?];
            disk.read(offset, piece);
            raw_hash.update(&*piece);
            out.write(encoder.block(piece, disk.is_noise(offset)))?;
            offset += length;
        }
        for _ in 0..bomb.map_or(0, |times| {
            raw_bytes.saturating_mul(times) / encode::BLOCK_BYTES as u64
        }) {
            buffer.fill(0);
            out.write(encoder.block(&buffer, false))?;
        }
        out.write(encode::END)?;
        let raw: [u8; 32] = raw_hash.finalize().into();
        let mut encoded = out.finish(directory, |size| {
            if has(Flaw::Truncated(at)) {
                Spoil::Cut(size / 2)
            } else if has(Flaw::Corrupt(at)) {
                Spoil::Flip(size / 2)
            } else {
                Spoil::Nothing
            }
        })?;
        encoded.raw = Digest::from_bytes(raw);
        encoded.raw_bytes = raw_bytes;
        Ok(encoded)
    }
}

impl GeneratedImage {
    /// Pushes the image: the blobs that the registry lacks, then the manifest under the reference's tag.
    ///
    /// # Errors
    /// When the registry refuses something, or a blob can't be read.
    pub async fn push(
        &self,
        reference: &RegistryReference,
        credentials: &origin::Credentials,
    ) -> oci_client::errors::Result<()> {
        let manifest = self.manifest.clone();
        push::push(
            &self.directory,
            &self.blobs,
            manifest,
            reference,
            credentials,
        )
        .await
    }

    /// A blob's bytes, from the directory.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn blob(&self, digest: &Digest) -> io::Result<Bytes> {
        let bytes = std::fs::read(self.directory.join(digest.hex().to_string()))?;
        Ok(bytes.into())
    }

    /// The largest blob, and its bytes.
    ///
    /// # Panics
    /// Never: an image has a disk and an nvram.
    #[must_use]
    pub fn largest_blob(&self) -> (Digest, u64) {
        let largest = self.blobs.iter().max_by_key(|(_, size)| **size);
        let (digest, size) = largest.expect("an image has blobs");
        (*digest, *size)
    }

    /// The image as its manifest lays it out.
    ///
    /// # Errors
    /// When a flaw makes that impossible.
    pub fn layout(&self) -> Result<Layout, ParseImageError> {
        Layout::parse(&self.manifest, &self.digest)
    }

    /// Bytes that leave a registry when each blob that a host needs is fetched once: what tart's manifest also names
    /// without needing it, the OCI config, isn't counted.
    ///
    /// # Panics
    /// When a flaw makes a layout impossible.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.layout()
            .expect("only images without such flaws are measured")
            .blob_bytes()
    }

    /// The files that the disk consists of, with their bytes.
    ///
    /// # Panics
    /// When a flaw makes a layout impossible.
    #[must_use]
    pub fn files(&self) -> Vec<(DiskFile, &Disk)> {
        let layout = self
            .layout()
            .expect("only images without such flaws are laid out");
        let files = layout.files().iter().cloned();
        files
            .zip([&self.disk].into_iter().chain(&self.overlays))
            .collect()
    }

    /// Compares a file with the disk, byte for byte. `None` is equal; otherwise the offset of the first difference, or
    /// of the shorter one's end.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn compare(&self, path: &Path) -> io::Result<Option<u64>> {
        self.disk.compare(path)
    }
}

/// A layer's blob, and what it decodes to.
#[derive(Clone, Debug)]
struct Encoded {
    digest: Digest,
    size: u64,
    raw: Digest,
    raw_bytes: u64,
}

enum Spoil {
    Nothing,
    Cut(u64),
    Flip(u64),
}

/// A blob on its way to the directory.
struct Output {
    file: BufWriter<tempfile::NamedTempFile>,
    hash: Sha256,
    size: u64,
}

impl Output {
    fn new(directory: &Path) -> io::Result<Self> {
        let file = tempfile::NamedTempFile::new_in(directory)?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            hash: Sha256::new(),
            size: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn finish(self, directory: &Path, spoil: impl FnOnce(u64) -> Spoil) -> io::Result<Encoded> {
        use std::os::unix::fs::FileExt as _;

        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        let mut size = self.size;
        let mut hash = self.hash;
        let spoilt = match spoil(size) {
            Spoil::Nothing => false,
            Spoil::Cut(at) => {
                file.as_file().set_len(at)?;
                size = at;
                true
            }
            Spoil::Flip(at) => {
                let mut byte = [0];
                file.as_file().read_exact_at(&mut byte, at)?;
                byte[0] ^= 0x55;
                file.as_file().write_all_at(&byte, at)?;
                true
            }
        };
        if spoilt {
            hash = Sha256::new();
            let mut whole = File::open(file.path())?;
            io::copy(&mut whole, &mut HashWriter(&mut hash))?;
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        keep(file, directory, &digest)?;
        Ok(Encoded {
            digest,
            size,
            raw: digest,
            raw_bytes: 0,
        })
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn keep(file: tempfile::NamedTempFile, directory: &Path, digest: &Digest) -> io::Result<()> {
    file.persist(directory.join(digest.hex().to_string()))?;
    Ok(())
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
}

/// A configuration as tart writes it for a macOS VM.
fn tart_config(seed: u64) -> Vec<u8> {
    json!({
        "version": 1,
        "os": "darwin",
        "arch": "arm64",
        "cpuCount": 4,
        "cpuCountMin": 4,
        "memorySize": 8_589_934_592_u64,
        "memorySizeMin": 4_294_967_296_u64,
        "display": {"width": 1920, "height": 1200},
        "macAddress": format!("7e:{:02x}:00:00:00:01", seed & 0xff),
        "ecid": format!("{seed:016x}"),
        "hardwareModel": "YnBsaXN0MDDTAQIDBAUGXxAZRGF0YVJlcHJlc2VudGF0aW9uVmVyc2lvbg==",
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests;
