//! Chunks that images here hold, by fingerprint: what a host has of an image without a recipe.
//!
//! Without a recipe a chunk's link is told with the chunk. A peer that offers one tells the link first. So this host
//! can look whether another image here holds the chunk, and the bytes needn't come. What is found is a guess, as by
//! recipes: its bytes are compared with the link.

use std::{
    cmp::Reverse,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::SystemTime,
};

use proto::{ChunkIndex, ChunkSet, Digest, Fingerprint, Geometry, Link};

use super::place::ZEROS;

/// The most chunks that are found by their fingerprints, in 8 MiB: those of three or four images of 140 GB.
const MAX_PRINTS: usize = 512 << 10;
/// The chunks with one fingerprint that are looked at.
const MAX_SAME: usize = 4;
/// So many chunks whose bytes weren't what their fingerprints promised, and nothing more is looked for: whoever offers
/// chunks names false ones. Each cost the reading and hashing of a chunk.
const MAX_FALSE: u32 = 64;

/// An image here. Its contents are named by their numbers.
pub(super) trait Lender: fmt::Debug + Send + Sync {
    /// Its digest.
    fn image(&self) -> &Digest;
    /// When it began. `None` if the volume doesn't tell.
    fn since(&self) -> Option<SystemTime>;
    /// Whether nothing of it is read any more.
    fn has_left(&self) -> bool;
    /// The chunks that are held of each content.
    fn chunks_held(&self) -> Vec<ChunkSet>;
    /// The fingerprint of a chunk that is held.
    fn print(&self, at: usize, chunk: ChunkIndex) -> Option<Fingerprint>;
    /// The bytes of a chunk that is held. Blocks.
    fn bytes(&self, at: usize, chunk: ChunkIndex) -> Option<Vec<u8>>;
}

/// See the [module](self). Holds no image: one that goes is found no more.
#[derive(Debug, Default)]
pub(super) struct Prints {
    /// The beginnings of fingerprints in order, each with a number in `contents` and a chunk.
    chunks: Vec<(u64, u32, ChunkIndex)>,
    /// Images, with the number of a content there.
    contents: Vec<(Weak<dyn Lender>, usize)>,
    /// Chunks that weren't what was looked for.
    wrong: AtomicU32,
}

impl Prints {
    /// The chunks that these images hold now, the newest images first. Zeros aren't among them: nobody sends any.
    pub(super) fn of(mut images: Vec<Arc<dyn Lender>>) -> Self {
        images.retain(|image| !image.has_left());
        images.sort_by_key(|image| Reverse(image.since()));
        let zeros = Fingerprint::of(&ZEROS);
        let mut prints = Self::default();
        for image in images {
            for (at, held) in image.chunks_held().into_iter().enumerate() {
                let number = u32::try_from(prints.contents.len()).unwrap_or(u32::MAX);
                prints.contents.push((Arc::downgrade(&image), at));
                for chunk in held.iter() {
                    if prints.chunks.len() >= MAX_PRINTS {
                        break;
                    }
                    if let Some(print) = image.print(at, chunk).filter(|print| *print != zeros) {
                        prints.chunks.push((first(&print), number, chunk));
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
            let (image, at) = self.contents.get(number as usize)?;
            let image = image.upgrade()?;
            let is_same = image.print(*at, theirs) == Some(link.fingerprint);
            if !is_same || image.image() == not || image.has_left() {
                return None;
            }
            let bytes = image.bytes(*at, theirs)?;
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
