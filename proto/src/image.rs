//! A tart image: its manifest is read, checked and laid out on the disk.
//!
//! Every [`Layout`] is sound: the manifest's bytes have the digest that names the image, every layer has a known type,
//! and sizes add up and stay within the limits below. A layout proves nothing about the contents' bytes; the chain
//! does.
//!
//! Behind a layout stands a [`Format`], which the layers' types tell. Whatever the format, a layout is a list of
//! [`DiskFile`]s, each cut into layers, which are contents: who moves contents needs to know nothing of formats. Who
//! puts files on a disk does. `stack` makes files of layers and has the rules of each format.
//!
//! Media types and annotations are those of tart of August 2026, Sources/tart/OCI/Manifest.swift; layers of
//! `disk.v1` are refused, as tart does (Sources/tart/VMDirectory+OCI.swift: pullFromRegistry).

mod layer;
mod stack;

use alloc::{
    borrow::ToOwned as _,
    collections::{BTreeMap, btree_map::Entry},
    format,
    string::{String, ToString as _},
    vec::Vec,
};

use sha2::{Digest as _, Sha256};

pub use self::{
    layer::{Blob, DISK_SIZE_ANNOTATION, DiskLayer, LayerName},
    stack::{
        BLOCK_SIZE_ANNOTATION, CHUNK_COUNT_ANNOTATION, DiskFile, FILE_DIGEST_ANNOTATION, Format,
        MAX_FILES, MAX_STACKED_LAYER_BYTES, OVERLAY_TYPE, StackError,
    },
};
use self::{
    layer::{decimal, shorten},
    stack::{Around, Mark},
};
use crate::{
    chunks::Geometry,
    digest::{Digest, Hex},
};

/// Media type of the manifests that tart writes.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of the layer that becomes `config.json`.
pub const CONFIG_TYPE: &str = "application/vnd.cirruslabs.tart.config.v1";
/// Media type of the layers that the disk is cut into.
pub const DISK_TYPE: &str = "application/vnd.cirruslabs.tart.disk.v2";
/// Media type of the layer that becomes `nvram.bin`.
pub const NVRAM_TYPE: &str = "application/vnd.cirruslabs.tart.nvram.v1";

/// Annotation of a disk layer: its raw bytes, decimal.
pub const RAW_SIZE_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-size";
/// Annotation of a disk layer: the digest of its raw bytes.
pub const RAW_DIGEST_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-content-digest";

/// The largest manifest that is read or parsed. It is the least that the distribution specification asks registries to
/// accept, and three times the manifest of a 512-layer image. It limits what a registry can make a program parse.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// The most layers: fifteen times those of a 140 GB disk.
pub const MAX_LAYERS: usize = 4096;
/// The largest raw layer, and the largest blob: 8 GiB, sixteen times what tart writes (tart,
/// Sources/tart/OCI/Layerizer/DiskV2.swift: layerLimitBytes).
pub const MAX_LAYER_BYTES: u64 = 8 << 30;
/// The largest config or nvram: 1 GiB. A macOS nvram has 33 MB.
pub const MAX_SMALL_BLOB_BYTES: u64 = 1 << 30;
/// The largest disk: 2 TiB, the disk of the largest host. With one link for each MiB, its ledgers take 256 MB of
/// memory.
pub const MAX_DISK_BYTES: u64 = 2 << 40;

/// A tart image as its manifest describes it. The manifest was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    digest: Digest,
    disk_bytes: u64,
    config: Blob,
    nvram: Blob,
    layers: Vec<DiskLayer>,
    format: Format,
    files: Vec<DiskFile>,
    content_bytes: u64,
}

/// A content to move. An image lists it once, however often it uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentSpec {
    /// The digest of the content's bytes.
    pub digest: Digest,
    /// The content's size and chunks.
    pub geometry: Geometry,
    /// The kind of the content's bytes.
    pub kind: ContentKind,
    /// The places of the content's bytes, in the manifest's order; never empty.
    pub places: Vec<Place>,
}

/// The kind of a content's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// A slice of the disk, fetched from the registry as this blob, which decodes to it.
    RawLayer {
        /// The compressed layer. Where several layers decode to the same bytes, the first of them.
        blob: Blob,
    },
    /// A blob exactly as the registry stores it.
    Blob,
}

/// A use of a content in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The bytes lie on the disk from this offset on. For raw layers.
    Disk {
        /// The offset on the disk, in bytes.
        offset: u64,
    },
    /// The content decodes to this layer. For blobs of layers without a raw digest.
    Encoded {
        /// The layer's index in [`Layout::layers`].
        layer: usize,
    },
    /// The content is `config.json`.
    Config,
    /// The content is `nvram.bin`.
    Nvram,
}

/// Why bytes aren't the manifest of an image that can be staged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseImageError {
    /// The manifest is larger than [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is larger than {MAX_MANIFEST_BYTES}")]
    TooLarge(usize),
    /// The bytes don't have the digest by which they were asked for. The sender lies or is broken.
    #[error("manifest has digest {found}, not {wanted}")]
    Digest {
        /// The digest that names the image.
        wanted: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The bytes aren't JSON, or lack a field that every image manifest has.
    #[error("manifest doesn't parse: {0}")]
    Json(String),
    /// The manifest is of another kind, which no tart image is.
    #[error("manifest is of type {0:?}, not {MANIFEST_TYPE}")]
    MediaType(String),
    /// The manifest is an index of several manifests, one of which may be an image.
    #[error(
        "it is an index of {manifests} manifests, not an image; reference the image by its digest{}", instead(.image)
    )]
    Index {
        /// The number of manifests in the index.
        manifests: usize,
        /// The manifest for Macs, or else the only image; `None` where neither is clear.
        image: Option<Digest>,
    },
    /// The manifest is of Docker's first schema. Registries convert other manifests to it for clients that accept no
    /// other.
    #[error(
        "it is a manifest of docker's schema 1, which no tart image has; push the image with tart"
    )]
    SchemaOne,
    /// The schema version isn't 2.
    #[error("manifest has schema version {0}, not 2")]
    Schema(u64),
    /// The manifest has more than [`MAX_LAYERS`] layers.
    #[error("manifest has {0} layers, more than {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A layer has a type that this version can't lay out. tart can still pull the image itself.
    #[error(
        "{layer} is of type {media_type:?}, which this version can't stage; let tart pull this image"
    )]
    UnknownLayer {
        /// The layer.
        layer: LayerName,
        /// The layer's type, cut after 80 characters.
        media_type: String,
    },
    /// A layer's digest, or the digest of its raw bytes, isn't a SHA-256 digest.
    #[error("{layer} has a malformed digest in {field}")]
    BadDigest {
        /// The layer.
        layer: LayerName,
        /// The field.
        field: &'static str,
    },
    /// A layer's blob, or its raw bytes, are 0 bytes or more than the limit.
    #[error("{layer} has a {field} of {bytes} bytes; it has to be from 1 to {max}")]
    Size {
        /// The layer.
        layer: LayerName,
        /// The field with the size.
        field: &'static str,
        /// The size that the field gives.
        bytes: u64,
        /// The largest allowed size.
        max: u64,
    },
    /// A disk layer doesn't give the number of its raw bytes, so the next layer's offset is unknown.
    #[error("{layer} has no annotation {RAW_SIZE_ANNOTATION}")]
    NoRawSize {
        /// The layer.
        layer: LayerName,
    },
    /// A size annotation isn't a decimal number.
    #[error("{place} has {text:?} in annotation {annotation}, which isn't a number of bytes")]
    BadNumber {
        /// The layer, or `manifest`.
        place: String,
        /// The annotation.
        annotation: &'static str,
        /// The annotation's text, cut after 80 characters.
        text: String,
    },
    /// The manifest lacks a part that every image has once.
    #[error("manifest has no {0} layer")]
    Missing(&'static str),
    /// The manifest has a part twice that every image has once.
    #[error("{layer} is a second {part} layer")]
    Repeated {
        /// The second layer of this part.
        layer: LayerName,
        /// The part.
        part: &'static str,
    },
    /// The manifest gives one digest two different sizes, or both raw and compressed bytes.
    #[error("{layer} contradicts an earlier layer about {digest}")]
    Contradiction {
        /// The later layer.
        layer: LayerName,
        /// The digest that the layers contradict each other about.
        digest: Digest,
    },
    /// With this layer, the disk is larger than [`MAX_DISK_BYTES`].
    #[error("disk is larger than {MAX_DISK_BYTES} bytes with {layer}")]
    DiskTooLarge {
        /// The layer.
        layer: LayerName,
    },
    /// The image has overlays, and isn't a stack of files.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// The layers' raw sizes don't add up to the disk's size.
    #[error("disk layers add up to {layers} bytes, but the manifest says {annotated}")]
    DiskSize {
        /// The sum of the layers' raw sizes.
        layers: u64,
        /// The annotation.
        annotated: u64,
    },
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u64,
    #[serde(default)]
    media_type: Option<String>,
    layers: Vec<RawDescriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl RawManifest {
    fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str())
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl RawDescriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str())
    }
}

fn instead(image: &Option<Digest>) -> String {
    match image {
        Some(digest) => format!(": name@{digest}"),
        None => String::new(),
    }
}

/// The first field that a manifest lacks so that tart can't read it (tart of August 2026,
/// Sources/tart/OCI/Manifest.swift: OCIManifest, OCIManifestConfig). tart reads that of a flat image only while it
/// pulls.
fn lacks(manifest: &[u8]) -> Option<&'static str> {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        _media_type: String,
    }
    #[derive(serde::Deserialize)]
    struct Configured {
        #[serde(rename = "config")]
        _config: Config,
    }
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(rename = "mediaType")]
        _media_type: String,
        #[serde(rename = "digest")]
        _digest: String,
        #[serde(rename = "size")]
        _size: i64,
    }
    if serde_json::from_slice::<Typed>(manifest).is_err() {
        return Some("mediaType");
    }
    let configured = serde_json::from_slice::<Configured>(manifest);
    configured.err().map(|_| "config")
}

/// Refuses manifests of other kinds with an error that names the kind. Accepts bytes that aren't JSON, which the caller
/// refuses.
fn named_otherwise(manifest: &[u8]) -> Result<(), ParseImageError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: Option<u64>,
        manifests: Option<Vec<Entry>>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        digest: String,
        platform: Option<Platform>,
    }
    #[derive(serde::Deserialize)]
    struct Platform {
        #[serde(default)]
        os: String,
        #[serde(default)]
        architecture: String,
    }
    let Ok(probe) = serde_json::from_slice::<Probe>(manifest) else {
        return Ok(());
    };
    if probe.schema_version == Some(1) {
        return Err(ParseImageError::SchemaOne);
    }
    let Some(entries) = probe.manifests else {
        return Ok(());
    };
    let is = |entry: &&Entry, os: &str, architecture: &str| {
        let platform = entry.platform.as_ref();
        platform.is_some_and(|of| of.os == os && of.architecture == architecture)
    };
    let mac = entries.iter().find(|entry| is(entry, "darwin", "arm64"));
    // an index may also list attestations and the like, whose platform is unknown
    let mut images = entries
        .iter()
        .filter(|entry| !is(entry, "unknown", "unknown"));
    let only = match (images.next(), images.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    };
    Err(ParseImageError::Index {
        manifests: entries.len(),
        image: mac.or(only).and_then(|entry| entry.digest.parse().ok()),
    })
}

impl Layout {
    /// Reads the manifest of the image that `digest` names.
    ///
    /// # Errors
    /// When the bytes aren't that manifest, or the image can't be staged; the error names the layer at fault.
    pub fn parse(manifest: &[u8], digest: &Digest) -> Result<Self, ParseImageError> {
        if manifest.len() > MAX_MANIFEST_BYTES {
            return Err(ParseImageError::TooLarge(manifest.len()));
        }
        let found = Digest::of(manifest);
        if found != *digest {
            return Err(ParseImageError::Digest {
                wanted: *digest,
                found,
            });
        }
        named_otherwise(manifest)?;
        let bytes = manifest;
        let manifest: RawManifest = serde_json::from_slice(bytes)
            .map_err(|error| ParseImageError::Json(shorten(&error.to_string(), 200)))?;
        if manifest.schema_version != 2 {
            return Err(ParseImageError::Schema(manifest.schema_version));
        }
        // OCI makes this field optional. By now, the registry's Content-Type has said the same.
        if let Some(media_type) = &manifest.media_type
            && media_type != MANIFEST_TYPE
        {
            return Err(ParseImageError::MediaType(shorten(media_type, 80)));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(ParseImageError::TooManyLayers(manifest.layers.len()));
        }
        let annotated = manifest
            .annotation(DISK_SIZE_ANNOTATION)
            .map(|text| number(text, DISK_SIZE_ANNOTATION, || "manifest".to_owned()))
            .transpose()?;
        let layers = Layers::read(&manifest.layers)?;
        let around = Around {
            config: layers.config.0,
            nvram: layers.nvram.0,
            layers: manifest.layers.len(),
            lacks: if layers.marks.iter().any(|mark| mark.overlay) {
                lacks(bytes)
            } else {
                None
            },
            block_size: manifest.annotation(BLOCK_SIZE_ANNOTATION),
            disk_bytes: annotated,
        };
        let (format, files) = stack::files(&layers.disk, &layers.marks, &around)?;
        if format == Format::Flat
            && let Some(annotated) = annotated
            && annotated != layers.disk_bytes
        {
            return Err(ParseImageError::DiskSize {
                layers: layers.disk_bytes,
                annotated,
            });
        }
        let mut layout = Self {
            digest: *digest,
            disk_bytes: layers.disk_bytes,
            config: layers.config.1,
            nvram: layers.nvram.1,
            layers: layers.disk,
            format,
            files,
            content_bytes: 0,
        };
        // cached, because every report of every host asks for this sum, and a large image has thousands of contents
        let contents = layout.contents();
        layout.content_bytes = contents.iter().map(|content| content.geometry.size()).sum();
        Ok(layout)
    }

    /// The digest of the manifest, which names the image.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The disk's raw bytes: the size of `disk.img`, or of all files of a stacked image together.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// The blob that becomes `config.json`.
    #[must_use]
    pub const fn config(&self) -> Blob {
        self.config
    }

    /// The blob that becomes `nvram.bin`.
    #[must_use]
    pub const fn nvram(&self) -> Blob {
        self.nvram
    }

    /// The disk's layers, in the order of the disk and without gaps.
    #[must_use]
    pub fn layers(&self) -> &[DiskLayer] {
        &self.layers
    }

    /// How the disk lies on a host.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The files that the disk consists of, in the manifest's order: they cover the disk without gaps. A flat image has
    /// one, a stacked one its base and then its overlays.
    #[must_use]
    pub fn files(&self) -> &[DiskFile] {
        &self.files
    }

    /// The bytes of the disk's first file: of a stacked image's base, or of a flat image's whole disk.
    #[must_use]
    pub fn base_bytes(&self) -> u64 {
        self.files.first().map_or(0, |file| file.bytes)
    }

    /// The index of the file at an offset on the disk, and the offset in that file. Behind the disk's end, the last
    /// file.
    #[must_use]
    pub fn file_at(&self, offset: u64) -> (usize, u64) {
        let after = self.files.partition_point(|file| file.start <= offset);
        // the first file begins at 0
        let at = after.saturating_sub(1);
        (at, offset - self.files[at].start)
    }

    /// Every content that a host needs to build this image, each once: config, nvram, and then the disk's in the order
    /// of the disk.
    #[must_use]
    pub fn contents(&self) -> Vec<ContentSpec> {
        let mut contents = Contents::default();
        contents.place(self.config, ContentKind::Blob, Place::Config);
        contents.place(self.nvram, ContentKind::Blob, Place::Nvram);
        for (at, layer) in self.layers.iter().enumerate() {
            match layer.raw {
                Some(raw) => contents.place(
                    Blob {
                        digest: raw,
                        size: layer.raw_bytes,
                    },
                    ContentKind::RawLayer { blob: layer.blob },
                    Place::Disk {
                        offset: layer.offset,
                    },
                ),
                None => {
                    contents.place(layer.blob, ContentKind::Blob, Place::Encoded { layer: at });
                }
            }
        }
        contents.list
    }

    /// Whether layers of the disk travel as this blob, and are decoded from it when it is here.
    #[must_use]
    pub fn has_encoded(&self, content: &Digest) -> bool {
        let is = |layer: &DiskLayer| layer.raw.is_none() && layer.blob.digest == *content;
        self.layers.iter().any(is)
    }

    /// The bytes of all [`contents`](Self::contents): what a host that has none of them must receive.
    #[must_use]
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// The bytes that leave the registry when each blob is fetched once.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.contents()
            .iter()
            .map(|content| match content.kind {
                ContentKind::RawLayer { blob } => blob.size,
                ContentKind::Blob => content.geometry.size(),
            })
            .sum()
    }
}

/// The layers of a manifest, each of which is sound.
struct Layers<'a> {
    /// Its position, too.
    config: (usize, Blob),
    nvram: (usize, Blob),
    disk: Vec<DiskLayer>,
    /// One for each disk layer.
    marks: Vec<Mark<'a>>,
    disk_bytes: u64,
}

impl<'a> Layers<'a> {
    fn read(raw: &'a [RawDescriptor]) -> Result<Self, ParseImageError> {
        let mut sizes = Sizes::default();
        let (mut config, mut nvram) = (None, None);
        let (mut disk, mut marks) = (Vec::new(), Vec::new());
        let mut disk_bytes = 0u64;
        for (position, descriptor) in raw.iter().enumerate() {
            let name = || LayerName {
                position,
                digest: shorten(&descriptor.digest, 80),
            };
            let (part, max) = match descriptor.media_type.as_str() {
                CONFIG_TYPE => (Some(("config", &mut config)), MAX_SMALL_BLOB_BYTES),
                NVRAM_TYPE => (Some(("nvram", &mut nvram)), MAX_SMALL_BLOB_BYTES),
                DISK_TYPE | OVERLAY_TYPE => (None, MAX_LAYER_BYTES),
                other => {
                    return Err(ParseImageError::UnknownLayer {
                        layer: name(),
                        media_type: shorten(other, 80),
                    });
                }
            };
            let blob = Blob {
                digest: descriptor
                    .digest
                    .parse()
                    .map_err(|_| ParseImageError::BadDigest {
                        layer: name(),
                        field: "digest",
                    })?,
                size: bounded(descriptor.size, max, "size", name)?,
            };
            sizes.enter(blob, false, name)?;
            if let Some((part, slot)) = part {
                if slot.replace((position, blob)).is_some() {
                    return Err(ParseImageError::Repeated {
                        layer: name(),
                        part,
                    });
                }
                continue;
            }
            let (raw, raw_bytes) = raw_of(descriptor, &mut sizes, name)?;
            disk.push(DiskLayer {
                position,
                blob,
                raw,
                raw_bytes,
                offset: disk_bytes,
            });
            marks.push(Mark {
                overlay: descriptor.media_type == OVERLAY_TYPE,
                file_digest: descriptor.annotation(FILE_DIGEST_ANNOTATION),
                chunk_count: descriptor.annotation(CHUNK_COUNT_ANNOTATION),
            });
            disk_bytes = disk_bytes
                .checked_add(raw_bytes)
                .filter(|sum| *sum <= MAX_DISK_BYTES)
                .ok_or_else(|| ParseImageError::DiskTooLarge { layer: name() })?;
        }
        if disk.is_empty() {
            return Err(ParseImageError::Missing("disk"));
        }
        Ok(Self {
            config: config.ok_or(ParseImageError::Missing("config"))?,
            nvram: nvram.ok_or(ParseImageError::Missing("nvram"))?,
            disk,
            marks,
            disk_bytes,
        })
    }
}

/// The digest of a disk layer's raw bytes, if the manifest gives it, and their number.
fn raw_of(
    descriptor: &RawDescriptor,
    sizes: &mut Sizes,
    name: impl Fn() -> LayerName,
) -> Result<(Option<Digest>, u64), ParseImageError> {
    let text = descriptor
        .annotation(RAW_SIZE_ANNOTATION)
        .ok_or_else(|| ParseImageError::NoRawSize { layer: name() })?;
    let raw_bytes = number(text, RAW_SIZE_ANNOTATION, || name().to_string())?;
    let raw_bytes = bounded(raw_bytes, MAX_LAYER_BYTES, "raw size", &name)?;
    let raw = descriptor
        .annotation(RAW_DIGEST_ANNOTATION)
        .map(str::parse::<Digest>)
        .transpose()
        .map_err(|_| ParseImageError::BadDigest {
            layer: name(),
            field: RAW_DIGEST_ANNOTATION,
        })?;
    if let Some(raw) = raw {
        let content = Blob {
            digest: raw,
            size: raw_bytes,
        };
        sizes.enter(content, true, name)?;
    }
    Ok((raw, raw_bytes))
}

#[derive(Default)]
struct Contents {
    list: Vec<ContentSpec>,
    at: BTreeMap<Digest, usize>,
}

impl Contents {
    fn place(&mut self, content: Blob, kind: ContentKind, place: Place) {
        match self.at.entry(content.digest) {
            Entry::Occupied(at) => self.list[*at.get()].places.push(place),
            Entry::Vacant(vacant) => {
                vacant.insert(self.list.len());
                self.list.push(ContentSpec {
                    digest: content.digest,
                    geometry: Geometry::new(content.size)
                        .expect("sizes are bounded far below a geometry's maximum"),
                    kind,
                    places: [place].into(),
                });
            }
        }
    }
}

/// The size of each digest so far, and whether its bytes are raw.
///
/// A digest that is said to be of raw bytes and of a blob is refused, because its content would be fetched in two ways
/// at once. No honest image has one: the raw slice would have to be its own compression.
#[derive(Default)]
struct Sizes(BTreeMap<Digest, (u64, bool)>);

impl Sizes {
    fn enter(
        &mut self,
        content: Blob,
        raw: bool,
        name: impl Fn() -> LayerName,
    ) -> Result<(), ParseImageError> {
        let said = *self.0.entry(content.digest).or_insert((content.size, raw));
        if said == (content.size, raw) {
            Ok(())
        } else {
            Err(ParseImageError::Contradiction {
                layer: name(),
                digest: content.digest,
            })
        }
    }
}

fn bounded(
    bytes: u64,
    max: u64,
    field: &'static str,
    name: impl Fn() -> LayerName,
) -> Result<u64, ParseImageError> {
    if (1..=max).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(ParseImageError::Size {
            layer: name(),
            field,
            bytes,
            max,
        })
    }
}

fn number(
    text: &str,
    annotation: &'static str,
    place: impl Fn() -> String,
) -> Result<u64, ParseImageError> {
    decimal(text).ok_or_else(|| ParseImageError::BadNumber {
        place: place(),
        annotation,
        text: shorten(text, 80),
    })
}

/// The name of the golden VM that is made from this reference. It is the prefix, followed by the first eight bytes, in
/// hex, of the SHA-256 of the reference exactly as written. The node agents of existing fleets find goldens by this
/// rule (tuist/tuist of autumn 2026, infra/tart-kubelet/internal/podagent/reconciler.go: goldenVMName).
#[must_use]
pub fn golden_name(prefix: &str, reference: &str) -> String {
    let hash = Sha256::digest(reference.as_bytes());
    format!("{prefix}{}", Hex(&hash[..8]))
}

#[cfg(test)]
mod tests;
