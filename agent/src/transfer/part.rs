//! A part of a chunk on its way: the ranges that a receiver lacks, because the disks of other images there have the
//! rest.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use proto::message::{ChunkHeader, Encoding, PartHeader, Ranges};

use super::packed::{Packed, pack, unpack};

/// A receiver that lacks more of a chunk than this, in sixteenths, asks for the whole: the sender has whole chunks
/// packed, and packs each part by itself.
const WORTH_CUTTING: u64 = 14;

/// A part is as much work as this part of its chunk at least, however few bytes it has: a request is answered, and the
/// chunk is read.
const LEAST_WORK: u64 = 2;

/// The bytes whose sending is as much work as cutting and sending a part of a chunk, of which so many went out.
pub(super) fn work(wire_bytes: u64, chunk_bytes: u32) -> u64 {
    wire_bytes.max(u64::from(chunk_bytes) / LEAST_WORK)
}

/// What a receiver lacks of a chunk, and asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lacking(Arc<[Range<u32>]>);

impl Lacking {
    /// These ranges of a chunk; `None` where the whole chunk is asked for.
    pub(super) fn new(ranges: Vec<Range<u32>>, chunk_bytes: u32) -> Option<Self> {
        let lacking = Self(ranges.into());
        let bytes = lacking.bytes() as u64;
        let most = u64::from(chunk_bytes) * WORTH_CUTTING;
        (bytes > 0 && bytes * 16 <= most).then_some(lacking)
    }

    /// The ranges that a peer says it lacks of a chunk. `Err`: they aren't such ranges.
    pub(super) fn parse(ranges: &Ranges, chunk_bytes: u32) -> Result<Self, ()> {
        let parsed = ranges.parse(chunk_bytes);
        parsed.map(|ranges| Self(ranges.into())).map_err(drop)
    }

    /// The bytes of the ranges, one behind the other. `None` if these bytes are too few to be the chunk.
    pub(super) fn of(&self, chunk: &[u8]) -> Option<Vec<u8>> {
        let mut part = Vec::with_capacity(self.bytes());
        for range in &*self.0 {
            part.extend_from_slice(chunk.get(range.start as usize..range.end as usize)?);
        }
        Some(part)
    }

    pub(super) fn ranges(&self) -> &[Range<u32>] {
        &self.0
    }

    pub(super) fn to_message(&self) -> Ranges {
        Ranges::new(&self.0)
    }

    /// The number of lacking bytes.
    pub(super) fn bytes(&self) -> usize {
        let lengths = self.0.iter().map(|range| range.end - range.start);
        lengths.map(|length| length as usize).sum()
    }

    /// Cuts the ranges out of a packed chunk of this many bytes, and packs them. `None` if the bytes aren't the chunk.
    pub(super) fn cut(&self, chunk: &Packed, chunk_bytes: usize) -> Option<(Encoding, Bytes)> {
        let whole = unpack(chunk.encoding, chunk.bytes.clone(), chunk_bytes)?;
        Some(pack(self.of(&whole)?))
    }
}

/// The header of a part whose link was said before.
pub(super) fn header(encoding: Encoding, bytes: &Bytes) -> PartHeader {
    PartHeader {
        encoding: encoding.into(),
        wire_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
    }
}

/// What a pusher says of the part that follows, in place of what it said of the whole chunk.
pub(super) fn instead(whole: &ChunkHeader, part: &PartHeader) -> ChunkHeader {
    ChunkHeader {
        encoding: part.encoding,
        wire_bytes: part.wire_bytes,
        lacking_only: true,
        ..whole.clone()
    }
}
