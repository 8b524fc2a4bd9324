//! The walk back from a content's digest. It shows whether the chunks that are held are true.

use proto::{ChunkIndex, Digest, ledger::Verdict};

use crate::shelf::{self, Shelf, Unwritable};

/// The findings of a walk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walked {
    /// Every shelf has the content verified.
    pub(crate) closed: bool,
    pub(crate) verdicts: Vec<Verdict>,
    /// Why chunks of one image couldn't be copied to another.
    pub(crate) storage_error: Option<String>,
    /// Images whose files can't be written.
    pub(crate) unwritable: Vec<Unwritable>,
    /// Chunks that some image lacks after the copying. They are asked for again.
    pub(crate) lacking: Vec<ChunkIndex>,
}

/// Copies to each shelf the chunks that only other shelves hold, and walks on each shelf. Blocks.
///
/// What one shelf then has to the digest is copied once more to shelves that took no copy before: their recipe was
/// another one, and is false.
pub(super) fn walk(shelves: &[Shelf], content: Digest, chunks: u32) -> Walked {
    let walked = walk_once(shelves, content, chunks);
    let is_closed = |shelf: &Shelf| shelf.is_closed(content);
    let again = walked.verdicts.is_empty() && walked.storage_error.is_none();
    match again && !walked.closed && shelves.iter().any(is_closed) {
        true => walk_once(shelves, content, chunks),
        false => walked,
    }
}

fn walk_once(shelves: &[Shelf], content: Digest, chunks: u32) -> Walked {
    let (unwritable, storage_error) = match shelf::level(shelves, content) {
        Ok(unwritable) => (unwritable, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut walked = Walked {
        closed: true,
        unwritable,
        storage_error,
        ..Walked::default()
    };
    for shelf in shelves {
        // a journal that can't be written shows at the next flush
        let verdicts = shelf.walk(content).unwrap_or_default();
        walked.closed &= shelf.is_closed(content);
        let held = shelf.held(content);
        let lacking = (0..chunks).map(ChunkIndex);
        let lacking = lacking.filter(|chunk| !held.contains(*chunk));
        walked.lacking.extend(lacking);
        for verdict in verdicts {
            if !walked.verdicts.contains(&verdict) {
                walked.verdicts.push(verdict);
            }
        }
    }
    walked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{begin, begin_by, fill, noise, open, recipe_with, sample_of};

    #[test]
    fn what_one_image_has_to_the_digest_shows_that_another_images_recipe_is_false() {
        let common = noise(3 << 20, 7);
        let (content, chunks) = (Digest::of(&common), 3);
        let samples = [1, 2].map(|own| sample_of(own, &common, 5_000, None));
        let by = recipe_with(&samples[1], content, |of| of.states[40] ^= 1);
        for misled_first in [false, true] {
            // homes of their own, so that neither begins with what the other has
            let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let (whole, _) = begin(&open(&homes[0]), &samples[0], &["ghcr.io/org/image:one"]);
            fill(&whole, &samples[0]);
            let (misled, _) = begin_by(&open(&homes[1]), &samples[1], &by);
            let mut shelves = [whole, misled.clone()].map(Shelf::Stage);
            if misled_first {
                shelves.reverse();
            }
            let walked = walk(&shelves, content, chunks);
            // nothing is asked of others again
            assert!(walked.closed && walked.lacking.is_empty(), "{walked:?}");
            assert!(misled.is_closed(content));
            assert!(misled.known(content).unwrap().recipe().is_none());
        }
    }
}
