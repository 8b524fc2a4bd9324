//! Parts of chunks that didn't fit: put together with what was here, they weren't the chunk.
//!
//! Either the sender's bytes are false, or those that were here. The whole chunk tells which of them, when it comes. So
//! what came is remembered until then, by its digest. Until then nobody's word makes this host forget what it has:
//! the peer is asked for the whole chunk, and other peers for the part.

use std::sync::Mutex;

use proto::{ChunkIndex, Digest, HostKey, Link};

use super::part::Lacking;
use crate::lock::lock;

/// The most parts that are remembered, with up to 1 KiB each. The oldest are forgotten first: their senders then go
/// unblamed.
const MAX_UNFIT: usize = 256;

/// What a peer sent for the ranges of a chunk that this host lacked.
#[derive(Debug)]
pub(super) struct UnfitPart {
    pub(super) content: Digest,
    pub(super) chunk: ChunkIndex,
    pub(super) sender: HostKey,
    /// The link that the sender gave the chunk.
    pub(super) link: Link,
    pub(super) lacking: Lacking,
    /// The digest of the bytes that came, one range behind the other.
    pub(super) came: Digest,
}

/// What a whole chunk shows about the parts of it that didn't fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// The peers that had sent other bytes than the chunk's.
    pub(super) liars: Vec<HostKey>,
    /// A peer had sent the chunk's bytes: those that were here weren't.
    pub(super) ours_were_false: bool,
}

/// Parts that didn't fit, of chunks that haven't come since. Jobs share them under a lock, for one look each.
#[derive(Debug, Default)]
pub(crate) struct Unfit(Mutex<Vec<UnfitPart>>);

impl Unfit {
    /// Notes a part. Returns whether the parts of two peers didn't fit: then what is here is probably false.
    pub(super) fn note(&self, part: UnfitPart) -> bool {
        let mut parts = lock(&self.0);
        let of_chunk =
            |other: &UnfitPart| (other.content, other.chunk) == (part.content, part.chunk);
        let same = |other: &UnfitPart| of_chunk(other) && other.sender == part.sender;
        let others = parts.iter().any(|other| of_chunk(other) && !same(other));
        // what a peer sent first stays: sending the true bytes later doesn't undo a lie
        if !parts.iter().any(same) {
            if parts.len() >= MAX_UNFIT {
                parts.remove(0);
            }
            parts.push(part);
        }
        others
    }

    /// Whether a part of the chunk that this peer sent didn't fit.
    pub(super) fn is_of(&self, sender: HostKey, content: Digest, chunk: ChunkIndex) -> bool {
        let parts = lock(&self.0);
        let mut parts = parts.iter();
        parts.any(|part| (part.sender, part.content, part.chunk) == (sender, content, chunk))
    }

    /// The chunk is here: these bytes fit this link. Forgets the parts of the chunk.
    pub(super) fn settle(
        &self,
        (content, chunk): (Digest, ChunkIndex),
        link: &Link,
        bytes: &[u8],
    ) -> Settled {
        let of_chunk = |part: &mut UnfitPart| (part.content, part.chunk) == (content, chunk);
        let parts: Vec<UnfitPart> = lock(&self.0).extract_if(.., of_chunk).collect();
        let mut settled = Settled::default();
        // other bytes may fit another link
        for part in parts.iter().filter(|part| part.link.is_alike(link)) {
            match part.lacking.of(bytes).map(|bytes| Digest::of(&bytes)) {
                Some(digest) if digest == part.came => settled.ours_were_false = true,
                Some(_) => settled.liars.push(part.sender),
                None => {}
            }
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(bytes: &[u8]) -> Link {
        let geometry = proto::Geometry::new(bytes.len() as u64).unwrap();
        Link::forge(geometry, ChunkIndex(0), proto::State::INITIAL, bytes)
    }

    /// What a peer sent for the second page of a chunk of three pages.
    fn part(sender: u64, chunk: &[u8], came: &[u8]) -> UnfitPart {
        UnfitPart {
            content: Digest::of(chunk),
            chunk: ChunkIndex(0),
            sender: HostKey(sender),
            link: link(chunk),
            lacking: Lacking::new(std::iter::once(4096..8192).collect(), 12_288).unwrap(),
            came: Digest::of(came),
        }
    }

    #[test]
    fn the_whole_chunk_tells_whose_bytes_were_false() {
        let chunk: Vec<u8> = (0..12_288u32).map(|at| at.to_le_bytes()[0]).collect();
        let (of, link) = ((Digest::of(&chunk), ChunkIndex(0)), link(&chunk));
        let unfit = Unfit::default();
        assert!(!unfit.note(part(1, &chunk, &[0; 4096])));
        assert!(unfit.is_of(HostKey(1), of.0, of.1) && !unfit.is_of(HostKey(2), of.0, of.1));
        // the same peer again, with the true bytes: what it sent first counts
        assert!(!unfit.note(part(1, &chunk, &chunk[4096..8192])));
        assert!(unfit.note(part(2, &chunk, &chunk[4096..8192])));
        let settled = unfit.settle(of, &link, &chunk);
        assert_eq!(settled.liars, [HostKey(1)]);
        assert!(settled.ours_were_false);
        assert!(!unfit.is_of(HostKey(1), of.0, of.1), "they are judged once");
        assert_eq!(unfit.settle(of, &link, &chunk), Settled::default());
    }

    #[test]
    fn who_named_another_link_may_have_sent_other_bytes() {
        let chunk = vec![1; 12_288];
        let unfit = Unfit::default();
        unfit.note(part(1, &chunk, &[0; 4096]));
        let other = link(&[2; 12_288]);
        let of = (Digest::of(&chunk), ChunkIndex(0));
        assert_eq!(unfit.settle(of, &other, &chunk), Settled::default());
    }

    #[test]
    fn no_more_parts_are_remembered_than_the_bound_and_the_oldest_go_first() {
        let unfit = Unfit::default();
        let chunk = |at: usize| vec![u8::try_from(at % 251).unwrap(); 12_288];
        let of = |at: usize| Digest::of(&chunk(at));
        for sender in 0..=MAX_UNFIT {
            unfit.note(part(sender as u64, &chunk(sender), &[9; 4096]));
        }
        let has = |at: usize| unfit.is_of(HostKey(at as u64), of(at), ChunkIndex(0));
        assert!(!has(0) && has(1) && has(MAX_UNFIT));
    }
}
