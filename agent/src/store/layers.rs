//! Layers that travel as a blob, and their decoding from the blob onto the disk.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
};

use proto::{
    Digest, Layout,
    image::{DiskLayer, LayerName, Place},
};

use super::{
    files::{Body, ImageFiles},
    held::Held,
    journal::Record,
    place::{Files as _, put},
};
use crate::{lock::lock, zero::is_zero};
use apple_lz4::{DecodeError, Decoder};

/// Decoded bytes are gathered up to this many before they are written. A blob is read in pieces of the same size.
const DECODE_BYTES: usize = 1 << 20;

/// Why a layer that travels as a blob couldn't be decoded onto the disk.
#[derive(Debug, thiserror::Error)]
pub enum DecodeLayerError {
    /// The blob has the digest that the manifest names, but doesn't decode to what the manifest says: the image itself
    /// is bad.
    #[error("{layer} doesn't decode: {error}")]
    Bad {
        /// The layer.
        layer: LayerName,
        /// The cause.
        error: DecodeError,
    },
    /// The blob's bytes changed on disk. Its chunks that were dropped have to come again.
    #[error("blob {content} has changed on disk")]
    Rotten {
        /// The blob.
        content: Digest,
    },
    /// The volume failed.
    #[error("decoding {layer}: {error}")]
    Io {
        /// The layer.
        layer: LayerName,
        /// The cause.
        error: io::Error,
    },
}

/// The contents of one image whose blobs this process decoded onto the disk.
///
/// What an earlier process decoded isn't among them: it has no digest to be compared with, so it is decoded again.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    contents: Mutex<BTreeSet<usize>>,
    /// Held by the thread that decodes a blob: two threads decode none twice.
    decoding: Mutex<()>,
}

impl Decoded {
    /// Whether this process decoded the content.
    pub(super) fn contains(&self, at: usize) -> bool {
        lock(&self.contents).contains(&at)
    }

    /// Counts every blob as not decoded.
    pub(super) fn forget_all(&self) {
        lock(&self.contents).clear();
    }

    /// Decodes the blobs that this process hasn't decoded yet.
    ///
    /// # Errors
    /// [`DecodeLayerError::Rotten`] if a blob's bytes don't fit its digest any more.
    pub(super) fn decode_rest(
        &self,
        held: &Held<Arc<ImageFiles>>,
        layout: &Layout,
    ) -> Result<(), DecodeLayerError> {
        (0..held.len()).try_for_each(|at| self.decode(held, layout, at))
    }

    /// Decodes a blob, if this process hasn't done so yet. Does nothing for other contents. Waits while another thread
    /// decodes a blob of the image.
    ///
    /// # Errors
    /// [`DecodeLayerError::Rotten`] if the blob isn't here, or its bytes don't fit its digest any more.
    pub(super) fn decode(
        &self,
        held: &Held<Arc<ImageFiles>>,
        layout: &Layout,
        at: usize,
    ) -> Result<(), DecodeLayerError> {
        let _decoding = lock(&self.decoding);
        if self.contains(at) {
            return Ok(());
        }
        let bodies = held.files().bodies();
        let bodies = bodies.iter().map(|body| &**body);
        let Some((layer, _)) = decode_content(held, layout, at, bodies)? else {
            return Ok(());
        };
        let failed = |error| DecodeLayerError::Io {
            layer: layer.name(),
            error,
        };
        let content = held.digest(at);
        held.touch(at);
        held.flush().map_err(failed)?;
        held.note(Record::Decoded { content });
        lock(&self.contents).insert(at);
        held.flush().map_err(failed)?;
        tracing::debug!(%content, at, "layer decoded");
        Ok(())
    }
}

/// Decodes all blobs onto the disk of another body.
pub(super) fn decode_into(
    held: &Held<Arc<ImageFiles>>,
    layout: &Layout,
    body: &Body,
) -> Result<(), DecodeLayerError> {
    for at in 0..held.len() {
        decode_content(held, layout, at, [body].into_iter())?;
    }
    Ok(())
}

/// Compares the disk of an image with what a blob's layers decode to, and writes again what differs. Returns whether
/// something differed.
///
/// # Errors
/// When a part can't be read or written, or the blob has rotted.
pub(super) fn mend(
    held: &Held<Arc<ImageFiles>>,
    layout: &Layout,
    at: usize,
) -> Result<bool, DecodeLayerError> {
    let bodies = held.files().bodies();
    let bodies = bodies.iter().map(|body| &**body);
    let Some((layer, true)) = decode_content(held, layout, at, bodies)? else {
        return Ok(false);
    };
    let layer = layer.name();
    tracing::warn!(image = %layout.digest(), %layer, "decoded bytes have changed on disk; they were written anew");
    held.touch(at);
    held.flush()
        .map_err(|error| DecodeLayerError::Io { layer, error })?;
    Ok(true)
}

/// Decodes a content whose layers travel as a blob. Returns the last of these layers and whether any byte of a disk
/// changed, or `None` if the content has no such layer.
fn decode_content<'a, 'b>(
    held: &Held<Arc<ImageFiles>>,
    layout: &'b Layout,
    at: usize,
    bodies: impl Iterator<Item = &'a Body> + Clone,
) -> Result<Option<(&'b DiskLayer, bool)>, DecodeLayerError> {
    let contents = layout.contents();
    let spec = &contents[at];
    let (mut last, mut changed) = (None, false);
    for place in &spec.places {
        let Place::Encoded { layer } = place else {
            continue;
        };
        let layer = &layout.layers()[*layer];
        let failed = |error| DecodeLayerError::Io {
            layer: layer.name(),
            error,
        };
        if last.is_none() {
            held.look_at_all(at).map_err(failed)?;
            if !held.is_closed(at) {
                return Err(DecodeLayerError::Rotten {
                    content: spec.digest,
                });
            }
        }
        let blob = File::open(held.files().blob_path(at)).map_err(failed)?;
        for body in bodies.clone() {
            let place = body.disk_at(layer.offset);
            let written = decode_layer(&blob, spec.geometry.size(), place, layer)?;
            held.files().wrote(written.bytes);
            changed |= written.differed;
        }
        last = Some(layer);
    }
    Ok(last.map(|layer| (layer, changed)))
}

/// What decoding a layer wrote.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// Whether anything on the disk differed.
    differed: bool,
    /// Bytes that the volume was given. Zeros are none.
    bytes: u64,
}

/// Decodes a blob onto the disk at its layer's place. Writes only what differs.
fn decode_layer(
    blob: &File,
    blob_bytes: u64,
    (disk, start): (&File, u64),
    layer: &DiskLayer,
) -> Result<Written, DecodeLayerError> {
    let failed = |error| DecodeLayerError::Io {
        layer: layer.name(),
        error,
    };
    let mut offset = start;
    let mut raw = Vec::with_capacity(DECODE_BYTES);
    let mut there = Vec::new();
    let mut written = Written::default();
    let mut flush = |raw: &mut Vec<u8>, offset: &mut u64| {
        there.resize(raw.len(), 0);
        disk.read_exact_at(&mut there, *offset)?;
        if there != *raw {
            let zero = is_zero(raw);
            put(disk, *offset, raw, zero)?;
            written.differed = true;
            written.bytes += if zero { 0 } else { raw.len() as u64 };
        }
        *offset += raw.len() as u64;
        raw.clear();
        Ok::<_, io::Error>(())
    };
    decode_blob(blob, blob_bytes, layer.raw_bytes, |block| {
        if raw.len() + block.len() > DECODE_BYTES {
            flush(&mut raw, &mut offset)?;
        }
        raw.extend_from_slice(block);
        Ok(())
    })
    .map_err(failed)?
    .map_err(|error| DecodeLayerError::Bad {
        layer: layer.name(),
        error,
    })?;
    flush(&mut raw, &mut offset).map_err(failed)?;
    Ok(written)
}

/// Decodes a blob and hands `take` one decoded block after the other.
pub(super) fn decode_blob(
    blob: &File,
    blob_bytes: u64,
    raw_bytes: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Result<(), DecodeError>> {
    let mut decoder = Decoder::new(raw_bytes);
    let mut piece = vec![0; DECODE_BYTES];
    let mut read = 0;
    while read < blob_bytes {
        let length =
            usize::try_from(blob_bytes - read).map_or(piece.len(), |left| left.min(piece.len()));
        blob.read_exact_at(&mut piece[..length], read)?;
        read += length as u64;
        let mut input = &piece[..length];
        loop {
            match decoder.feed(&mut input) {
                Ok(Some(block)) => take(block.raw)?,
                Ok(None) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
    }
    Ok(decoder.finish())
}
