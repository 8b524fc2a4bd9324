//! Chunks that images here hold, by fingerprint: what a host has of an image without a recipe.
//!
//! Without a recipe a chunk's link is told with the chunk. A peer that offers one tells the link first. So this host
//! can look whether another image here holds the chunk, and the bytes needn't come. What is found is a guess, as by
//! recipes: its bytes are compared with the link.

use std::{
    cmp::Reverse,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use proto::{ChunkIndex, Digest, Fingerprint, Geometry, Link};

use super::{place::ZEROS, stage::Stage};

/// The most chunks that are found by their fingerprints, in 8 MiB: those of three or four images of 140 GB.
const MAX_PRINTS: usize = 512 << 10;
/// The chunks with one fingerprint that are looked at.
const MAX_SAME: usize = 4;
/// So many chunks whose bytes weren't what their fingerprints promised, and nothing more is looked for: whoever offers
/// chunks names false ones. Each cost the reading and hashing of a chunk.
const MAX_FALSE: u32 = 64;

/// See the [module](self). Holds no image: one that goes is found no more.
#[derive(Debug, Default)]
pub(super) struct Prints {
    /// The beginnings of fingerprints in order, each with a number in `contents` and a chunk.
    chunks: Vec<(u64, u32, ChunkIndex)>,
    /// Images, with the number of a content there.
    contents: Vec<(Weak<Stage>, usize)>,
    /// Chunks that weren't what was looked for.
    wrong: AtomicU32,
}

impl Prints {
    /// The chunks that these images hold now, the newest images first. Zeros aren't among them: nobody sends any.
    pub(super) fn of(images: &[Arc<Stage>]) -> Self {
        let mut images: Vec<_> = images.iter().filter(|stage| !stage.is_gone()).collect();
        images.sort_by_key(|stage| Reverse(stage.begun_at()));
        let zeros = Fingerprint::of(&ZEROS);
        let mut prints = Self::default();
        for stage in images {
            let held = stage.chunks();
            for at in 0..held.len() {
                let number = u32::try_from(prints.contents.len()).unwrap_or(u32::MAX);
                prints.contents.push((Arc::downgrade(stage), at));
                for chunk in held.held(at).iter() {
                    if prints.chunks.len() >= MAX_PRINTS {
                        break;
                    }
                    match held.link(at, chunk) {
                        Some((link, _)) if link.fingerprint != zeros => {
                            let first = first(&link.fingerprint);
                            prints.chunks.push((first, number, chunk));
                        }
                        _ => {}
                    }
                }
            }
        }
        prints.chunks.sort_unstable();
        prints.chunks.shrink_to_fit();
        prints
    }

    /// Whether a chunk with this fingerprint was here. Nothing is read.
    pub(super) fn has(&self, print: &Fingerprint) -> bool {
        self.candidates(print).next().is_some()
    }

    /// The bytes of a chunk with this link, if an image here, other than `not`, holds them. Blocks.
    pub(super) fn find(
        &self,
        not: &Digest,
        link: &Link,
        (geometry, chunk): (Geometry, ChunkIndex),
    ) -> Option<Vec<u8>> {
        let mut candidates = self.candidates(&link.fingerprint).take(MAX_SAME);
        candidates.find_map(|(number, theirs)| {
            let (stage, at) = self.contents.get(number as usize)?;
            let stage = stage.upgrade()?;
            if stage.layout().digest() == not || stage.is_gone() {
                return None;
            }
            let (found, _) = stage.chunks().link(*at, theirs)?;
            if found.fingerprint != link.fingerprint {
                return None;
            }
            let bytes = stage.chunks().read(*at, theirs).ok().flatten()?.bytes;
            let fits = link.holds(geometry, chunk, &bytes);
            if !fits && self.wrong.fetch_add(1, Ordering::Relaxed) + 1 == MAX_FALSE {
                tracing::warn!(image = %not, chunks = MAX_FALSE, "fingerprints of chunks that hosts offer are false; no more are looked for here");
            }
            fits.then_some(bytes)
        })
    }

    fn candidates(&self, print: &Fingerprint) -> impl Iterator<Item = (u32, ChunkIndex)> {
        let first = first(print);
        let from = self.chunks.partition_point(|(of, ..)| *of < first);
        let is_over = self.wrong.load(Ordering::Relaxed) >= MAX_FALSE;
        let from = if is_over { self.chunks.len() } else { from };
        let same = self.chunks[from..].iter();
        same.take_while(move |(of, ..)| *of == first)
            .map(|(_, number, chunk)| (*number, *chunk))
    }
}

/// By what fingerprints are in order. Two that differ begin alike by accident once in 10^13 chunks of 140 GB.
fn first(print: &Fingerprint) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = print.0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
