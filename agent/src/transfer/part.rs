//! A part of a chunk on its way: the ranges that a receiver lacks, because the disks of other images there have the rest.
//!
//! What lies there was found by short hashes. So a chunk that was put together and doesn't fit its link says nothing
//! about the sender: its part may be false, or what was here. Nobody is blamed, and the whole chunk is asked for.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use proto::{
    HostKey,
    message::{ChunkHeader, Encoding, PartHeader, Ranges},
};
use swarm::event::Failure;

use super::{Checked, Packed, Receipt, Subject, pack, packed::unpack, store_bytes};

/// A receiver that lacks more of a chunk than this, in sixteenths, asks for the whole: the sender has whole chunks
/// packed, and packs each part by itself.
const WORTH_CUTTING: u64 = 14;

/// What a receiver lacks of a chunk, and asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lacking(Arc<[Range<u32>]>);

impl Lacking {
    /// The ranges that the subject's chunk lacks here; `None` where the whole chunk is asked for.
    pub(super) fn of(subject: &Subject) -> Option<Self> {
        let mut shelves = subject.shelves.iter();
        let ranges =
            shelves.find_map(|shelf| shelf.lacking_ranges(subject.content, subject.chunk))?;
        let lacking = Self(ranges.into());
        let chunk_bytes = u64::from(subject.geometry.len(subject.chunk));
        let bytes = lacking.bytes() as u64;
        (bytes > 0 && bytes * 16 <= chunk_bytes * WORTH_CUTTING).then_some(lacking)
    }

    /// The ranges that a peer says it lacks of the subject's chunk. `Err`: they aren't such ranges.
    pub(super) fn parse(subject: &Subject, ranges: &Ranges) -> Result<Self, ()> {
        let parsed = ranges.parse(subject.geometry.len(subject.chunk));
        parsed.map(|ranges| Self(ranges.into())).map_err(drop)
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
        let mut part = Vec::with_capacity(self.bytes());
        for range in &*self.0 {
            part.extend_from_slice(whole.get(range.start as usize..range.end as usize)?);
        }
        Some(pack(part))
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

/// Puts a part that came together with what is here, and stores the chunk if it fits its link. Blocks.
pub(super) fn store(
    subject: &Subject,
    peer: HostKey,
    (checked, lacking): (Checked, &Lacking),
    (encoding, bytes): (Encoding, Bytes),
) -> Receipt {
    let Some(came) = unpack(encoding, bytes, lacking.bytes()) else {
        return Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        };
    };
    let Some(whole) = whole(subject, lacking, &came) else {
        return Receipt::failed(Failure::Cancelled);
    };
    if !checked.link.holds(subject.geometry, subject.chunk, &whole) {
        forget(subject);
        return Receipt::failed(Failure::Cancelled);
    }
    let local_bytes = (whole.len() - came.len()) as u64;
    let mut receipt = store_bytes(subject, peer, &checked, &whole);
    if receipt.result.is_ok() {
        receipt.local_bytes = local_bytes;
    }
    receipt
}

/// The whole chunk. `None` if more is lacking by now than came: a disk changed, or an image went.
fn whole(subject: &Subject, lacking: &Lacking, came: &[u8]) -> Option<Vec<u8>> {
    let (content, chunk) = (subject.content, subject.chunk);
    let mut shelves = subject.shelves.iter();
    let mut part = shelves.find_map(|shelf| shelf.part(content, chunk))?;
    let mut from = 0;
    for range in &*lacking.0 {
        let to = from + (range.end - range.start) as usize;
        if let Err(error) = part.fill(range.start, &came[from..to]) {
            tracing::debug!(%content, chunk = chunk.0, %error, "a part of a chunk can't be put in");
            forget(subject);
            return None;
        }
        from = to;
    }
    part.whole().ok()
}

fn forget(subject: &Subject) {
    for shelf in &subject.shelves {
        shelf.forget_part(subject.content, subject.chunk);
    }
}

#[cfg(test)]
mod tests;
