//! Apple's LZ4 framing, as tart's disk layers use it. Decodes bytes as they arrive, and encodes for tests and
//! generators.
//!
//! A stream is a sequence of blocks:
//!
//! | magic | then | meaning |
//! |---|---|---|
//! | `bv41` | u32le raw size, u32le encoded size, an LZ4 block | compressed |
//! | `bv4-` | u32le size, the bytes | stored |
//! | `bv4$` | nothing | end of the stream |
//!
//! A block decodes to at most 64 KiB. Matches of a compressed block may reach back up to 64 KiB into the raw bytes of
//! the blocks before it, whether these are compressed or stored. So a decoder that starts in the middle needs these raw
//! bytes.
//!
//! tart compresses each layer as one stream of this framing by Apple's library (tart, Sources/tart/OCI/Layerizer/
//! DiskV2.swift: push, pull), whose source isn't public. Assumed, as other decoders do: the framing, the 64 KiB of a
//! block, and that matches reach over the start of a block.
//!
//! The decoder trusts nothing: it checks sizes before it buffers anything, uses at most a constant amount of memory,
//! and returns no more bytes than the caller said that the layer has.

use lz4_flex::block;

/// The most raw bytes of a block, and the longest distance that a match reaches back.
pub const WINDOW_BYTES: usize = 64 << 10;

/// Bytes behind the history that are filled before the history moves to the front again. They bound the memory, and how
/// often the history moves.
const AHEAD_BYTES: usize = 4 * WINDOW_BYTES;

/// The longest LZ4 block that [`WINDOW_BYTES`] raw bytes can need, if they are incompressible (`LZ4_compressBound`).
const MAX_ENCODED_BYTES: usize = compress_bound(WINDOW_BYTES);

/// Bytes of the longest header: magic, raw size and encoded size.
const MAX_HEADER_BYTES: usize = 12;

/// The most bytes that a block takes in the stream, with its header.
pub const MAX_BLOCK_BYTES: usize = MAX_HEADER_BYTES + MAX_ENCODED_BYTES;

const fn compress_bound(raw: usize) -> usize {
    raw + raw / 255 + 16
}

/// A position between two blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Offset in the compressed stream.
    pub blob_offset: u64,
    /// Offset in the raw bytes.
    pub raw_offset: u64,
}

/// A decoded block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Where the block starts. Decoding can begin again here, if the raw bytes before are given.
    pub start: Position,
    /// Its raw bytes.
    pub raw: &'a [u8],
}

/// Why a stream doesn't decode. Unless said otherwise, an offset is that of a block's start in the compressed stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No block begins with these bytes.
    #[error("no Apple LZ4 block at offset {offset}: magic {magic:02x?}")]
    Magic {
        /// Where.
        offset: u64,
        /// The four bytes there.
        magic: [u8; 4],
    },
    /// A block announces more raw bytes than a block may have.
    #[error("block at offset {offset} announces {raw_bytes} raw bytes, more than {WINDOW_BYTES}")]
    BlockTooLarge {
        /// Where.
        offset: u64,
        /// What it announces.
        raw_bytes: u32,
    },
    /// A block announces more encoded bytes than any encoder needs for its raw bytes.
    #[error(
        "block at offset {offset} announces {encoded_bytes} encoded bytes for {raw_bytes} raw ones"
    )]
    EncodedTooLarge {
        /// Where.
        offset: u64,
        /// What it announces.
        encoded_bytes: u32,
        /// The block's raw bytes.
        raw_bytes: u32,
    },
    /// The block's LZ4 data is damaged, or refers to bytes before the history.
    #[error("block at offset {offset} is corrupt: {cause}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What LZ4 says.
        cause: String,
    },
    /// The block decodes to less than it announces.
    #[error("block at offset {offset} decodes to {decoded} bytes instead of {announced}")]
    Short {
        /// Where.
        offset: u64,
        /// What came out.
        decoded: usize,
        /// What the block announces.
        announced: usize,
    },
    /// The stream has more raw bytes than the layer is said to have: it is an LZ4 bomb, or another layer.
    #[error("stream decodes to more than its {raw_bytes} bytes, with the block at offset {offset}")]
    TooLong {
        /// Where.
        offset: u64,
        /// The layer's raw size.
        raw_bytes: u64,
    },
    /// The stream's end mark comes before the layer's raw size is reached.
    #[error("stream ends at offset {offset} after {decoded} raw bytes instead of {raw_bytes}")]
    EndsEarly {
        /// Where the end mark stands.
        offset: u64,
        /// Raw bytes until then.
        decoded: u64,
        /// The layer's raw size.
        raw_bytes: u64,
    },
    /// The compressed bytes stop before the end mark.
    #[error("stream is cut off at offset {offset}, after {decoded} of {raw_bytes} raw bytes")]
    Truncated {
        /// The number of compressed bytes that came.
        offset: u64,
        /// Raw bytes decoded until then.
        decoded: u64,
        /// The layer's raw size.
        raw_bytes: u64,
    },
    /// Bytes follow the end mark.
    #[error("stream goes on after its end mark, at offset {offset}")]
    Trailing {
        /// Where.
        offset: u64,
    },
}

/// Decodes a stream piece by piece. Uses about 0.5 MiB of memory, whatever the stream says.
///
/// ```
/// use apple_lz4::{Decoder, encode};
/// let blob = encode(b"bake it ahead");
/// let mut decoder = Decoder::new(13);
/// let mut input = blob.as_slice();
/// let mut raw = Vec::new();
/// while let Some(block) = decoder.feed(&mut input)? {
///     raw.extend_from_slice(block.raw);
/// }
/// decoder.finish()?;
/// assert_eq!(raw, b"bake it ahead");
/// # Ok::<(), apple_lz4::DecodeError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    raw_bytes: u64,
    /// Where the next block starts.
    next: Position,
    /// The bytes of a block whose end hasn't arrived yet.
    partial: Vec<u8>,
    /// History, then the latest block, which ends at `filled`.
    window: Box<[u8]>,
    filled: usize,
    ended: bool,
    failed: Option<DecodeError>,
}

enum Header {
    Stored { size: usize },
    Compressed { raw: usize, encoded: usize },
    End,
}

impl Header {
    const fn bytes(&self) -> usize {
        match self {
            Self::Stored { .. } => 8,
            Self::Compressed { .. } => 12,
            Self::End => 4,
        }
    }

    const fn payload(&self) -> usize {
        match *self {
            Self::Stored { size } => size,
            Self::Compressed { encoded, .. } => encoded,
            Self::End => 0,
        }
    }

    const fn raw(&self) -> usize {
        match *self {
            Self::Stored { size } => size,
            Self::Compressed { raw, .. } => raw,
            Self::End => 0,
        }
    }
}

impl Decoder {
    /// A decoder for a layer of `raw_bytes` raw bytes, from its beginning.
    #[must_use]
    pub fn new(raw_bytes: u64) -> Self {
        Self::resume(raw_bytes, Position::default(), &[])
    }

    /// A decoder that continues at a block's start. `history` is the raw bytes before it, of which the last 64 KiB are
    /// enough. It may be shorter only if the layer has no more bytes before the block.
    #[must_use]
    pub fn resume(raw_bytes: u64, start: Position, history: &[u8]) -> Self {
        let history = &history[history.len().saturating_sub(WINDOW_BYTES)..];
        let mut window = vec![0; WINDOW_BYTES + AHEAD_BYTES].into_boxed_slice();
        window[..history.len()].copy_from_slice(history);
        Self {
            raw_bytes,
            next: start,
            partial: Vec::new(),
            window,
            filled: history.len(),
            ended: false,
            failed: None,
        }
    }

    /// Where the next block starts.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.next
    }

    /// The last raw bytes, at most 64 KiB. [`resume`](Self::resume) needs them to continue at
    /// [`position`](Self::position).
    #[must_use]
    pub fn history(&self) -> &[u8] {
        &self.window[self.filled.saturating_sub(WINDOW_BYTES)..self.filled]
    }

    /// Takes bytes from the front of `input` until a block is decoded. Returns `None` when `input` is used up before
    /// that. The caller repeats it until it returns `None`.
    ///
    /// # Errors
    /// When the stream is damaged, or doesn't have the announced size. Every later call returns the same error.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Block<'_>>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.step(input) {
            Ok(Some((start, raw))) => {
                let from = self.filled - raw;
                Ok(Some(Block {
                    start,
                    raw: &self.window[from..self.filled],
                }))
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Checks the end, when no more bytes come.
    ///
    /// # Errors
    /// When the end mark hasn't been read, or the stream failed earlier.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.ended => Ok(()),
            None => Err(DecodeError::Truncated {
                offset: self.next.blob_offset + self.partial.len() as u64,
                decoded: self.next.raw_offset,
                raw_bytes: self.raw_bytes,
            }),
        }
    }

    /// Decodes one block. Returns its start and the number of its raw bytes, which end at `filled`.
    fn step(&mut self, input: &mut &[u8]) -> Result<Option<(Position, usize)>, DecodeError> {
        loop {
            if self.ended {
                if input.is_empty() {
                    return Ok(None);
                }
                return Err(DecodeError::Trailing {
                    offset: self.next.blob_offset,
                });
            }
            // A block is usually decoded from the caller's bytes. A block that a piece's end cuts is gathered in
            // `partial` first.
            let header = if self.partial.is_empty() {
                self.header(input)?
            } else {
                let lacks = MAX_HEADER_BYTES.saturating_sub(self.partial.len());
                let more = lacks.min(input.len());
                let had = self.partial.len();
                self.partial.extend_from_slice(&input[..more]);
                let header = self.header(&self.partial)?;
                // Bytes that were taken beyond a short header and its payload are given back.
                let want = header
                    .as_ref()
                    .map_or(usize::MAX, |header| header.bytes() + header.payload());
                self.partial.truncate(want.max(had));
                *input = &input[self.partial.len() - had..];
                header
            };
            let Some(header) = header else {
                if self.partial.is_empty() {
                    self.partial.extend_from_slice(input);
                    *input = &[];
                }
                return Ok(None);
            };
            let size = header.bytes() + header.payload();
            let start = self.next;
            if self.partial.is_empty() {
                if input.len() < size {
                    self.partial.reserve(MAX_HEADER_BYTES + MAX_ENCODED_BYTES);
                    self.partial.extend_from_slice(input);
                    *input = &[];
                    return Ok(None);
                }
                let (block, rest) = input.split_at(size);
                self.decode(&header, &block[header.bytes()..])?;
                *input = rest;
            } else {
                let more = (size - self.partial.len()).min(input.len());
                self.partial.extend_from_slice(&input[..more]);
                *input = &input[more..];
                if self.partial.len() < size {
                    return Ok(None);
                }
                let mut block = std::mem::take(&mut self.partial);
                self.decode(&header, &block[header.bytes()..])?;
                block.clear();
                self.partial = block;
            }
            self.next.blob_offset += size as u64;
            self.next.raw_offset += header.raw() as u64;
            if matches!(header, Header::End) {
                self.ended = true;
            } else if header.raw() > 0 {
                return Ok(Some((start, header.raw())));
            }
        }
    }

    /// Reads and checks the header at the front of `bytes`. `None` while the header is incomplete.
    fn header(&self, bytes: &[u8]) -> Result<Option<Header>, DecodeError> {
        let offset = self.next.blob_offset;
        let Some(magic) = bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let word = |at: usize| {
            let (quad, _) = bytes.get(at..)?.split_first_chunk::<4>()?;
            Some(u32::from_le_bytes(*quad))
        };
        let (raw_bytes, encoded_bytes) = match magic {
            b"bv4$" if self.next.raw_offset == self.raw_bytes => return Ok(Some(Header::End)),
            b"bv4$" => {
                return Err(DecodeError::EndsEarly {
                    offset,
                    decoded: self.next.raw_offset,
                    raw_bytes: self.raw_bytes,
                });
            }
            b"bv41" => match (word(4), word(8)) {
                (Some(raw), Some(encoded)) => (raw, Some(encoded)),
                _ => return Ok(None),
            },
            b"bv4-" => match word(4) {
                Some(raw) => (raw, None),
                None => return Ok(None),
            },
            other => {
                return Err(DecodeError::Magic {
                    offset,
                    magic: *other,
                });
            }
        };
        let raw = raw_bytes as usize;
        if raw > WINDOW_BYTES {
            return Err(DecodeError::BlockTooLarge { offset, raw_bytes });
        }
        if u64::from(raw_bytes) > self.raw_bytes.saturating_sub(self.next.raw_offset) {
            return Err(DecodeError::TooLong {
                offset,
                raw_bytes: self.raw_bytes,
            });
        }
        match encoded_bytes {
            None => Ok(Some(Header::Stored { size: raw })),
            Some(encoded_bytes) if encoded_bytes as usize > compress_bound(raw) => {
                Err(DecodeError::EncodedTooLarge {
                    offset,
                    encoded_bytes,
                    raw_bytes,
                })
            }
            Some(encoded_bytes) => Ok(Some(Header::Compressed {
                raw,
                encoded: encoded_bytes as usize,
            })),
        }
    }

    fn decode(&mut self, header: &Header, payload: &[u8]) -> Result<(), DecodeError> {
        let raw = header.raw();
        if self.filled + raw > self.window.len() {
            let keep = self.filled.min(WINDOW_BYTES);
            self.window.copy_within(self.filled - keep..self.filled, 0);
            self.filled = keep;
        }
        let (before, ahead) = self.window.split_at_mut(self.filled);
        let output = &mut ahead[..raw];
        match header {
            Header::End => {}
            Header::Stored { .. } => output.copy_from_slice(payload),
            Header::Compressed { .. } => {
                let history = &before[before.len().saturating_sub(WINDOW_BYTES)..];
                let offset = self.next.blob_offset;
                let decoded = block::decompress_into_with_dict(payload, output, history).map_err(
                    |error| DecodeError::Corrupt {
                        offset,
                        cause: error.to_string(),
                    },
                )?;
                if decoded != raw {
                    return Err(DecodeError::Short {
                        offset,
                        decoded,
                        announced: raw,
                    });
                }
            }
        }
        self.filled += raw;
        Ok(())
    }
}

/// Encodes a stream piece by piece, as Apple's encoder would. Blocks have 64 KiB, and their matches reach back into the
/// blocks before. If compression doesn't make a block smaller, the block is stored.
#[derive(Debug, Default)]
pub struct Encoder {
    /// At most 64 KiB of history, then raw bytes that don't fill a block yet.
    window: Vec<u8>,
    history: usize,
}

impl Encoder {
    /// An encoder at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends to `blob` all blocks that these bytes fill.
    pub fn write(&mut self, mut raw: &[u8], blob: &mut Vec<u8>) {
        while !raw.is_empty() {
            let room = WINDOW_BYTES - (self.window.len() - self.history);
            let (now, later) = raw.split_at(room.min(raw.len()));
            self.window.extend_from_slice(now);
            raw = later;
            if self.window.len() - self.history == WINDOW_BYTES {
                self.block(blob);
            }
        }
    }

    /// Appends the rest and the end mark to `blob`.
    pub fn finish(mut self, blob: &mut Vec<u8>) {
        if self.window.len() > self.history {
            self.block(blob);
        }
        blob.extend_from_slice(b"bv4$");
    }

    fn block(&mut self, blob: &mut Vec<u8>) {
        let (history, raw) = self.window.split_at(self.history);
        let encoded = block::compress_with_dict(raw, history);
        let word = |size: usize| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
        if encoded.len() < raw.len() {
            blob.extend_from_slice(b"bv41");
            blob.extend_from_slice(&word(raw.len()));
            blob.extend_from_slice(&word(encoded.len()));
            blob.extend_from_slice(&encoded);
        } else {
            blob.extend_from_slice(b"bv4-");
            blob.extend_from_slice(&word(raw.len()));
            blob.extend_from_slice(raw);
        }
        self.window
            .drain(..self.window.len().saturating_sub(WINDOW_BYTES));
        self.history = self.window.len();
    }
}

/// Encodes these bytes as one stream.
#[must_use]
pub fn encode(raw: &[u8]) -> Vec<u8> {
    let mut blob = Vec::new();
    let mut encoder = Encoder::new();
    encoder.write(raw, &mut blob);
    encoder.finish(&mut blob);
    blob
}

#[cfg(test)]
mod tests;
