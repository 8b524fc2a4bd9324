//! What a tart image consists of: its manifest read, checked and laid out on the disk.
//!
//! A [`Layout`] that exists is sound: the manifest's bytes have the digest that names the image, every layer is of a
//! known type, sizes add up and stay under the bounds below. It says nothing about the contents' bytes; the chain does.

use alloc::{
    borrow::ToOwned as _,
    collections::{BTreeMap, btree_map::Entry},
    format,
    string::{String, ToString as _},
    vec::Vec,
};
use core::fmt;

use sha2::{Digest as _, Sha256};

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

/// Manifest annotation: bytes of the whole disk, decimal.
pub const DISK_SIZE_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-disk-size";
/// Annotation of a disk layer: its raw bytes, decimal.
pub const RAW_SIZE_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-size";
/// Annotation of a disk layer: the digest of its raw bytes.
pub const RAW_DIGEST_ANNOTATION: &str = "org.cirruslabs.tart.uncompressed-content-digest";

/// The largest manifest that is read or parsed: what the distribution specification asks registries to accept at least, and three
/// times that of a 512-layer image. Bounds what a registry can make us parse.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// The most layers: fifteen times those of a 140 GB disk.
pub const MAX_LAYERS: usize = 4096;
/// The largest raw layer and the largest blob: 8 GiB, sixteen times what tart writes.
pub const MAX_LAYER_BYTES: u64 = 8 << 30;
/// The largest config or nvram: 1 GiB; a macOS nvram has 33 MB.
pub const MAX_SMALL_BLOB_BYTES: u64 = 1 << 30;
/// The largest disk: 2 TiB, the disk of the largest host. At one link per MiB its ledgers take 256 MB of memory.
pub const MAX_DISK_BYTES: u64 = 2 << 40;

/// Bytes as the registry stores them: their digest and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    /// The digest of the bytes.
    pub digest: Digest,
    /// How many bytes, never 0.
    pub size: u64,
}

/// A slice of the disk, and the compressed blob that it is fetched as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLayer {
    /// Its position among all layers of the manifest, from 0; names it in errors.
    pub position: usize,
    /// The compressed layer in the registry.
    pub blob: Blob,
    /// The digest of the raw bytes, where the manifest gives it. Layers without travel as blobs.
    pub raw: Option<Digest>,
    /// Raw bytes, never 0.
    pub raw_bytes: u64,
    /// Where the raw bytes start on the disk.
    pub offset: u64,
}

/// A tart image as its manifest describes it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    digest: Digest,
    disk_bytes: u64,
    config: Blob,
    nvram: Blob,
    layers: Vec<DiskLayer>,
    content_bytes: u64,
}

/// A content to move, once however often the image uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentSpec {
    /// The digest of the content's bytes.
    pub digest: Digest,
    /// Its size and chunks.
    pub geometry: Geometry,
    /// What its bytes are.
    pub kind: ContentKind,
    /// Where its bytes go, in the manifest's order; never empty.
    pub places: Vec<Place>,
}

/// What a content's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// A slice of the disk, fetched from the registry as this blob, which decodes to it.
    RawLayer {
        /// The compressed layer; the first, where several decode to the same bytes.
        blob: Blob,
    },
    /// A blob as it stands in the registry.
    Blob,
}

/// What a content is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its bytes lie on the disk from here on (raw layers).
    Disk {
        /// Offset on the disk, in bytes.
        offset: u64,
    },
    /// It decodes to this layer: an index into [`Layout::layers`] (blobs of layers without a raw digest).
    Encoded {
        /// The layer's index.
        layer: usize,
    },
    /// It is `config.json`.
    Config,
    /// It is `nvram.bin`.
    Nvram,
}

/// Names a layer of a manifest in an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// Its position among all layers, from 0.
    pub position: usize,
    /// Its digest as the manifest gives it, cut after 80 characters, without control characters.
    pub digest: String,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} ({})", self.position, self.digest)
    }
}

/// Why bytes aren't the manifest of an image that can be staged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseImageError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is larger than {MAX_MANIFEST_BYTES}")]
    TooLarge(usize),
    /// The bytes don't have the digest that they were asked for by: whoever sent them lies or is broken.
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
    /// Another kind of manifest, such as an index of several platforms. tart images aren't that.
    #[error("manifest is of type {0:?}, not {MANIFEST_TYPE}")]
    MediaType(String),
    /// An index of several manifests, of which one may be an image.
    #[error(
        "it is an index of {manifests} manifests, not an image; reference the image by its digest{}", instead(.image)
    )]
    Index {
        /// How many it lists.
        manifests: usize,
        /// The one for Macs, or the only image, where that can be told.
        image: Option<Digest>,
    },
    /// A manifest of docker's first schema, which registries convert others to for clients that know no better.
    #[error(
        "it is a manifest of docker's schema 1, which no tart image has; push the image with tart"
    )]
    SchemaOne,
    /// A schema version other than 2.
    #[error("manifest has schema version {0}, not 2")]
    Schema(u64),
    /// More than [`MAX_LAYERS`].
    #[error("manifest has {0} layers, more than {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A layer of a type that this version can't lay out; tart can still pull the image itself.
    #[error(
        "{layer} is of type {media_type:?}, which this version can't stage; let tart pull this image"
    )]
    UnknownLayer {
        /// The layer.
        layer: LayerName,
        /// Its type, cut after 80 characters.
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
    /// A layer's blob, or its raw bytes, are none or more than the bound.
    #[error("{layer} has a {field} of {bytes} bytes; it has to be from 1 to {max}")]
    Size {
        /// The layer.
        layer: LayerName,
        /// The field.
        field: &'static str,
        /// What it says.
        bytes: u64,
        /// The most that it may be.
        max: u64,
    },
    /// A disk layer doesn't say how many raw bytes it has, so that nobody knows where the next one starts.
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
        /// Its text, cut after 80 characters.
        text: String,
    },
    /// A part that every image has once is missing.
    #[error("manifest has no {0} layer")]
    Missing(&'static str),
    /// A part that every image has once is there again.
    #[error("{layer} is a second {part} layer")]
    Repeated {
        /// The second one.
        layer: LayerName,
        /// Which part.
        part: &'static str,
    },
    /// One digest is said to be of two different sizes, or of both raw and compressed bytes.
    #[error("{layer} contradicts an earlier layer about {digest}")]
    Contradiction {
        /// The later layer.
        layer: LayerName,
        /// What they contradict each other about.
        digest: Digest,
    },
    /// The disk passes [`MAX_DISK_BYTES`] with this layer.
    #[error("disk is larger than {MAX_DISK_BYTES} bytes with {layer}")]
    DiskTooLarge {
        /// The layer.
        layer: LayerName,
    },
    /// The layers' raw sizes don't add up to the disk's.
    #[error("disk layers add up to {layers} bytes, but the manifest says {annotated}")]
    DiskSize {
        /// The sum.
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

/// Refuses by name what isn't the manifest of an image at all. What isn't JSON is refused by whoever reads on.
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
    // attestations and the like lie beside images, of no platform
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
        let manifest: RawManifest = serde_json::from_slice(manifest)
            .map_err(|error| ParseImageError::Json(shorten(&error.to_string(), 200)))?;
        if manifest.schema_version != 2 {
            return Err(ParseImageError::Schema(manifest.schema_version));
        }
        // OCI leaves the field optional; the registry's Content-Type has said the same by then.
        if let Some(media_type) = manifest.media_type
            && media_type != MANIFEST_TYPE
        {
            return Err(ParseImageError::MediaType(shorten(&media_type, 80)));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(ParseImageError::TooManyLayers(manifest.layers.len()));
        }
        let annotated = manifest
            .annotations
            .as_ref()
            .and_then(|all| all.get(DISK_SIZE_ANNOTATION))
            .map(|text| number(text, DISK_SIZE_ANNOTATION, || "manifest".to_owned()))
            .transpose()?;
        let layout = Self::from_layers(*digest, &manifest.layers)?;
        if let Some(annotated) = annotated
            && annotated != layout.disk_bytes
        {
            return Err(ParseImageError::DiskSize {
                layers: layout.disk_bytes,
                annotated,
            });
        }
        Ok(layout)
    }

    fn from_layers(digest: Digest, raw: &[RawDescriptor]) -> Result<Self, ParseImageError> {
        let mut sizes = Sizes::default();
        let (mut config, mut nvram) = (None, None);
        let mut layers: Vec<DiskLayer> = Vec::new();
        let mut disk_bytes = 0u64;
        for (position, descriptor) in raw.iter().enumerate() {
            let name = || LayerName {
                position,
                digest: shorten(&descriptor.digest, 80),
            };
            let (part, max) = match descriptor.media_type.as_str() {
                CONFIG_TYPE => (Some(("config", &mut config)), MAX_SMALL_BLOB_BYTES),
                NVRAM_TYPE => (Some(("nvram", &mut nvram)), MAX_SMALL_BLOB_BYTES),
                DISK_TYPE => (None, MAX_LAYER_BYTES),
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
                if slot.replace(blob).is_some() {
                    return Err(ParseImageError::Repeated {
                        layer: name(),
                        part,
                    });
                }
                continue;
            }
            let text = descriptor
                .annotation(RAW_SIZE_ANNOTATION)
                .ok_or_else(|| ParseImageError::NoRawSize { layer: name() })?;
            let raw_bytes = number(text, RAW_SIZE_ANNOTATION, || name().to_string())?;
            let raw_bytes = bounded(raw_bytes, MAX_LAYER_BYTES, "raw size", name)?;
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
            layers.push(DiskLayer {
                position,
                blob,
                raw,
                raw_bytes,
                offset: disk_bytes,
            });
            disk_bytes = disk_bytes
                .checked_add(raw_bytes)
                .filter(|sum| *sum <= MAX_DISK_BYTES)
                .ok_or_else(|| ParseImageError::DiskTooLarge { layer: name() })?;
        }
        if layers.is_empty() {
            return Err(ParseImageError::Missing("disk"));
        }
        let mut layout = Self {
            digest,
            disk_bytes,
            config: config.ok_or(ParseImageError::Missing("config"))?,
            nvram: nvram.ok_or(ParseImageError::Missing("nvram"))?,
            layers,
            content_bytes: 0,
        };
        // asked for at every report of every host, and the contents of a large image are thousands
        let contents = layout.contents();
        layout.content_bytes = contents.iter().map(|content| content.geometry.size()).sum();
        Ok(layout)
    }

    /// The digest of the manifest: the image's name.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes of the disk, raw: the size of `disk.img`.
    #[must_use]
    pub const fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// What becomes `config.json`.
    #[must_use]
    pub const fn config(&self) -> Blob {
        self.config
    }

    /// What becomes `nvram.bin`.
    #[must_use]
    pub const fn nvram(&self) -> Blob {
        self.nvram
    }

    /// The disk's layers, in disk order and without a gap.
    #[must_use]
    pub fn layers(&self) -> &[DiskLayer] {
        &self.layers
    }

    /// Every content that a host needs to build this image, each once, in the order in which they stand in the
    /// manifest: config, nvram, then the disk.
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

    /// Bytes of all [`contents`](Self::contents): what a host without anything has to receive.
    #[must_use]
    pub const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Bytes that leave the registry when each blob is fetched once.
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

    /// Names a disk layer in an error.
    #[must_use]
    pub fn name(layer: &DiskLayer) -> LayerName {
        LayerName {
            position: layer.position,
            digest: layer.blob.digest.to_string(),
        }
    }
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

/// What each digest was said to name: its size, and whether its bytes are raw.
///
/// A digest of raw bytes that is also a blob's digest is refused: its content would be fetched in two ways at once,
/// and no honest image has one (the raw slice would have to be its own compression).
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
    // `parse` alone would let a leading `+` through.
    let decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| decimal)
        .ok_or_else(|| ParseImageError::BadNumber {
            place: place(),
            annotation,
            text: shorten(text, 80),
        })
}

/// At most `max` characters of a foreign text, without control characters.
fn shorten(text: &str, max: usize) -> String {
    text.chars()
        .take(max)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// The name of the golden VM made from this reference: the prefix and the first eight bytes, in hex, of the SHA-256 of
/// the reference exactly as it is written. The node agents of existing fleets look for goldens by this rule.
#[must_use]
pub fn golden_name(prefix: &str, reference: &str) -> String {
    let hash = Sha256::digest(reference.as_bytes());
    format!("{prefix}{}", Hex(&hash[..8]))
}

#[cfg(test)]
mod tests;
