//! The files that an image's disk consists of: one of a flat image, several of a stacked one.
//!
//! A stacked image, as tart makes it since 2.36, is a base and overlays on it, each of which is a file of its own on a
//! host. In the manifest, the layers of one file follow each other, and the first of them says with which digest the
//! whole file has to end, and of an overlay how many layers there are. This file takes layers that are sound one by
//! one, and refuses each shape that isn't a stack, by name. The shapes are those of tart of August 2026,
//! Sources/tart/OCI/Manifest.swift: tartDiskRepresentation, diskBlockCount. This file refuses more: files that come
//! twice or contradict their only layer, layers that are larger than tart makes them, and signs before numbers.

use alloc::{collections::BTreeSet, string::String, vec, vec::Vec};
use core::ops::Range;

use super::layer::{DISK_SIZE_ANNOTATION, DiskLayer, LayerName, decimal, shorten};
use crate::digest::Digest;

/// Media type of the layers that an overlay is cut into.
pub const OVERLAY_TYPE: &str = "application/vnd.cirruslabs.tart.disk.asif.overlay.v1";
/// Annotation of a file's first layer: the digest of the whole file.
pub const FILE_DIGEST_ANNOTATION: &str = "org.cirruslabs.tart.disk-file-content-digest";
/// Annotation of an overlay's first layer: how many layers the overlay has, decimal.
pub const CHUNK_COUNT_ANNOTATION: &str = "org.cirruslabs.tart.disk-file-chunk-count";
/// Annotation of a stacked image's manifest: the bytes of a block of the disk that the guest sees, decimal.
pub const BLOCK_SIZE_ANNOTATION: &str = "org.cirruslabs.tart.disk.block-size";

/// The largest raw layer of a stacked image: 512 MiB, which is where tart cuts a disk (tart of August 2026,
/// Sources/tart/OCI/Layerizer/DiskV2.swift: layerLimitBytes).
pub const MAX_STACKED_LAYER_BYTES: u64 = 512 << 20;
/// The most files of an image. tart stacks a few; each is open while the image is on the host.
pub const MAX_FILES: usize = 32;

/// How an image's disk lies on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk is one file of the image's own.
    Flat,
    /// The disk is a base and overlays, each in a file that all images on the host share that have it.
    Stacked,
}

/// A file of an image's disk: the concatenation of some of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFile {
    /// The digest of the whole file. A flat image needn't give it.
    pub digest: Option<Digest>,
    /// Where the file begins on the disk, if all files lie end to end in the manifest's order. An offset on the disk,
    /// less this, is an offset in the file.
    pub start: u64,
    /// The bytes of the file, never 0.
    pub bytes: u64,
    /// The file's layers, as indices in [`Layout::layers`](super::Layout::layers); never empty.
    pub layers: Range<usize>,
}

/// Why the layers of a manifest with overlays aren't a stack of files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StackError {
    /// The manifest doesn't begin with the config.
    #[error("a stacked image begins with its config; the config is layer {position}")]
    ConfigNotFirst {
        /// Where the config is.
        position: usize,
    },
    /// The manifest doesn't end with the nvram.
    #[error("a stacked image ends with its nvram; the nvram is layer {position}")]
    NvramNotLast {
        /// Where the nvram is.
        position: usize,
    },
    /// There is no base under the overlays.
    #[error("{layer} is of an overlay, and there is no base before it")]
    NoBase {
        /// The first layer of the disk.
        layer: LayerName,
    },
    /// A layer of the base comes after an overlay.
    #[error("{layer} is of the base, and comes after an overlay")]
    BaseAfterOverlay {
        /// The layer.
        layer: LayerName,
    },
    /// A file's first layer doesn't give the digest of the whole file.
    #[error("{layer} begins a file, and has no annotation {FILE_DIGEST_ANNOTATION}")]
    NoFileDigest {
        /// The layer.
        layer: LayerName,
    },
    /// The digest of a whole file isn't a SHA-256 digest.
    #[error("{layer} has a malformed digest in {FILE_DIGEST_ANNOTATION}")]
    BadFileDigest {
        /// The layer.
        layer: LayerName,
    },
    /// A layer within a file gives the digest of a whole file.
    #[error("{layer} has the annotation {FILE_DIGEST_ANNOTATION}, and doesn't begin a file")]
    StrayFileDigest {
        /// The layer.
        layer: LayerName,
    },
    /// An overlay's first layer doesn't say how many layers the overlay has.
    #[error("{layer} begins an overlay, and has no annotation {CHUNK_COUNT_ANNOTATION}")]
    NoChunkCount {
        /// The layer.
        layer: LayerName,
    },
    /// The number of an overlay's layers isn't a number, or is 0.
    #[error("{layer} has {text:?} in {CHUNK_COUNT_ANNOTATION}, which isn't a number from 1 on")]
    BadChunkCount {
        /// The layer.
        layer: LayerName,
        /// The annotation's text, cut after 80 characters.
        text: String,
    },
    /// A layer that begins no overlay says how many layers one has.
    #[error("{layer} has the annotation {CHUNK_COUNT_ANNOTATION}, and doesn't begin an overlay")]
    StrayChunkCount {
        /// The layer.
        layer: LayerName,
    },
    /// An overlay has more layers than the manifest has left.
    #[error("{layer} begins an overlay of {count} layers, and only {left} are left")]
    ChunkCountBeyondEnd {
        /// The layer.
        layer: LayerName,
        /// The layers that the overlay should have.
        count: u64,
        /// The disk layers from this one on.
        left: usize,
    },
    /// A layer doesn't give the digest of its raw bytes.
    #[error("{layer} of a stacked image doesn't give the digest of its raw bytes")]
    NoRawDigest {
        /// The layer.
        layer: LayerName,
    },
    /// A layer is larger than [`MAX_STACKED_LAYER_BYTES`].
    #[error("{layer} has {bytes} raw bytes, more than {MAX_STACKED_LAYER_BYTES}")]
    LayerTooLarge {
        /// The layer.
        layer: LayerName,
        /// Its raw bytes.
        bytes: u64,
    },
    /// A file is its only layer, and the two have different digests.
    #[error("{layer} is a whole file with another digest than the layer's")]
    FileContradictsLayer {
        /// The layer.
        layer: LayerName,
    },
    /// Two files have the same digest, so they would be one file on a host.
    #[error("{layer} begins a file that the image has already")]
    RepeatedFile {
        /// The first layer of the second one.
        layer: LayerName,
    },
    /// The disk has more than [`MAX_FILES`] files.
    #[error("disk has more than {MAX_FILES} files")]
    TooManyFiles,
    /// The manifest lacks a field that every manifest of tart has.
    #[error("manifest of a stacked image has no {0} that tart can read")]
    NoField(&'static str),
    /// The manifest lacks an annotation of the disk that the guest sees.
    #[error("manifest of a stacked image has no annotation {0}")]
    NoAnnotation(&'static str),
    /// The bytes of a block aren't a number from 1 on.
    #[error("manifest has {0:?} in {BLOCK_SIZE_ANNOTATION}, which isn't a number from 1 on")]
    BadBlockSize(String),
    /// The disk that the guest sees isn't a number of whole blocks.
    #[error(
        "the guest's disk has {disk_bytes} bytes, which isn't a multiple of its blocks of {block_bytes}"
    )]
    PartialBlock {
        /// The bytes of the disk that the guest sees.
        disk_bytes: u64,
        /// The bytes of a block.
        block_bytes: u64,
    },
}

/// What a manifest says of a disk layer beyond the layer itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    /// Whether the layer is of an overlay; otherwise it is of the base.
    pub(super) overlay: bool,
    pub(super) file_digest: Option<&'a str>,
    pub(super) chunk_count: Option<&'a str>,
}

/// What a manifest says beside its disk layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    pub(super) config: usize,
    pub(super) nvram: usize,
    /// All layers of the manifest.
    pub(super) layers: usize,
    /// The first field that the manifest lacks for tart.
    pub(super) lacks: Option<&'static str>,
    pub(super) block_size: Option<&'a str>,
    /// Bytes of the disk, as annotated.
    pub(super) disk_bytes: Option<u64>,
}

/// The files of a disk, by its layers and their marks, which are as many and at least one.
pub(super) fn files(
    layers: &[DiskLayer],
    marks: &[Mark<'_>],
    around: &Around<'_>,
) -> Result<(Format, Vec<DiskFile>), StackError> {
    let file = |digest, layers: &[DiskLayer], range: Range<usize>| DiskFile {
        digest,
        start: layers[range.start].offset,
        bytes: layers[range.clone()]
            .iter()
            .map(|layer| layer.raw_bytes)
            .sum(),
        layers: range,
    };
    if !marks.iter().any(|mark| mark.overlay) {
        let digest = marks.first().and_then(|mark| mark.file_digest);
        let digest = digest.and_then(|text| text.parse().ok());
        let whole = file(digest, layers, 0..layers.len());
        return Ok((Format::Flat, vec![whole]));
    }
    check_around(around)?;
    let mut files: Vec<DiskFile> = Vec::new();
    let mut digests = BTreeSet::new();
    let mut at = 0;
    while at < layers.len() {
        if files.len() == MAX_FILES {
            return Err(StackError::TooManyFiles);
        }
        let end = end_of_file(layers, marks, at)?;
        let digest = file_digest(layers, marks, at..end)?;
        if !digests.insert(digest) {
            let layer = layers[at].name();
            return Err(StackError::RepeatedFile { layer });
        }
        files.push(file(Some(digest), layers, at..end));
        at = end;
    }
    Ok((Format::Stacked, files))
}

fn check_around(around: &Around<'_>) -> Result<(), StackError> {
    if let Some(field) = around.lacks {
        return Err(StackError::NoField(field));
    }
    if around.config != 0 {
        let position = around.config;
        return Err(StackError::ConfigNotFirst { position });
    }
    if around.nvram + 1 != around.layers {
        let position = around.nvram;
        return Err(StackError::NvramNotLast { position });
    }
    let text = around
        .block_size
        .ok_or(StackError::NoAnnotation(BLOCK_SIZE_ANNOTATION))?;
    let block_bytes = decimal(text)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| StackError::BadBlockSize(shorten(text, 80)))?;
    let disk_bytes = around
        .disk_bytes
        .ok_or(StackError::NoAnnotation(DISK_SIZE_ANNOTATION))?;
    if disk_bytes == 0 || !disk_bytes.is_multiple_of(block_bytes) {
        return Err(StackError::PartialBlock {
            disk_bytes,
            block_bytes,
        });
    }
    Ok(())
}

/// The end of the file that begins with layer `at`.
fn end_of_file(layers: &[DiskLayer], marks: &[Mark<'_>], at: usize) -> Result<usize, StackError> {
    let layer = layers[at].name();
    if at == 0 {
        if marks[0].overlay {
            return Err(StackError::NoBase { layer });
        }
        if marks[0].chunk_count.is_some() {
            return Err(StackError::StrayChunkCount { layer });
        }
        let base = marks.iter().take_while(|mark| !mark.overlay);
        return Ok(base.count());
    }
    if !marks[at].overlay {
        return Err(StackError::BaseAfterOverlay { layer });
    }
    if marks[at].file_digest.is_none() {
        return Err(StackError::NoFileDigest { layer });
    }
    let Some(text) = marks[at].chunk_count else {
        return Err(StackError::NoChunkCount { layer });
    };
    let Some(count) = decimal(text).filter(|count| *count > 0) else {
        let text = shorten(text, 80);
        return Err(StackError::BadChunkCount { layer, text });
    };
    let left = layers.len() - at;
    let Some(end) = usize::try_from(count).ok().filter(|count| *count <= left) else {
        return Err(StackError::ChunkCountBeyondEnd { layer, count, left });
    };
    Ok(at + end)
}

/// The digest of the file that has these layers, each of which is sound.
fn file_digest(
    layers: &[DiskLayer],
    marks: &[Mark<'_>],
    range: Range<usize>,
) -> Result<Digest, StackError> {
    let first = range.start;
    let overlay = marks[first].overlay;
    for at in range.clone() {
        let layer = &layers[at];
        let name = || layer.name();
        if marks[at].overlay != overlay {
            return Err(StackError::BaseAfterOverlay { layer: name() });
        }
        if layer.raw.is_none() {
            return Err(StackError::NoRawDigest { layer: name() });
        }
        if layer.raw_bytes > MAX_STACKED_LAYER_BYTES {
            return Err(StackError::LayerTooLarge {
                layer: name(),
                bytes: layer.raw_bytes,
            });
        }
        if at > first && marks[at].file_digest.is_some() {
            return Err(StackError::StrayFileDigest { layer: name() });
        }
        if at > first && marks[at].chunk_count.is_some() {
            return Err(StackError::StrayChunkCount { layer: name() });
        }
    }
    let layer = || layers[first].name();
    let text = marks[first]
        .file_digest
        .ok_or_else(|| StackError::NoFileDigest { layer: layer() })?;
    let digest: Digest = text
        .parse()
        .map_err(|_| StackError::BadFileDigest { layer: layer() })?;
    if range.len() == 1 && layers[first].raw != Some(digest) {
        return Err(StackError::FileContradictsLayer { layer: layer() });
    }
    Ok(digest)
}
