//! What a release changed, counted in the ways by which what it moved can be judged.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

use proto::blocks::{BlockPrint, Cutter, PAGE_BYTES, Piece};

use crate::image::Disk;

/// What the registry is asked for.
const CHUNK: usize = 1 << 20;

/// Bytes of a disk that the release before hasn't. Compressed: as LZ4 packs each by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Chunks that differ from what the release before has in their place.
    pub(super) chunks: u64,
    pub(super) chunks_compressed: u64,
    /// Pages of 4 KiB that differ from what the release before has in their place, but for zeros.
    pub(super) pages: u64,
    /// Blocks, as recipes cut them, that the release before has nowhere.
    pub(super) blocks_compressed: u64,
    /// Chunks with such a block.
    pub(super) lacking_compressed: u64,
}

impl Changed {
    pub(super) fn between(before: &Disk, after: &Disk) -> Self {
        let mut changed = Self::default();
        let mut known = HashSet::new();
        for at in 0..before.layers() {
            blocks(before, before.layer(at), |_, print| _ = known.insert(print));
        }
        for at in 0..after.layers() {
            let layer = after.layer(at);
            let mut lacking = BTreeSet::new();
            blocks(after, layer.clone(), |block, print| {
                if !known.contains(&print) {
                    changed.blocks_compressed += packed(&read(after, block.clone()));
                    lacking.extend(chunk(&layer, block.start)..=chunk(&layer, block.end - 1));
                }
            });
            for number in 0..(layer.end - layer.start).div_ceil(CHUNK as u64) {
                let start = layer.start + number * CHUNK as u64;
                let place = start..(start + CHUNK as u64).min(layer.end);
                let (old, new) = (read(before, place.clone()), read(after, place));
                let compressed = (old != new || lacking.contains(&number)).then(|| packed(&new));
                if old != new {
                    changed.chunks += new.len() as u64;
                    changed.chunks_compressed += compressed.unwrap_or_default();
                }
                if lacking.contains(&number) {
                    changed.lacking_compressed += compressed.unwrap_or_default();
                }
                let pages = old.chunks(PAGE_BYTES).zip(new.chunks(PAGE_BYTES));
                let pages =
                    pages.filter(|(old, new)| old != new && new.iter().any(|byte| *byte != 0));
                changed.pages += pages.map(|(_, new)| new.len() as u64).sum::<u64>();
            }
        }
        changed
    }
}

/// The number of the layer's chunk with this byte of the disk.
const fn chunk(layer: &Range<u64>, byte: u64) -> u64 {
    (byte - layer.start) / CHUNK as u64
}

/// Each block of a layer with its place on the disk.
fn blocks(disk: &Disk, layer: Range<u64>, mut each: impl FnMut(Range<u64>, BlockPrint)) {
    let mut from = layer.start;
    let mut piece = |piece: Piece| {
        let to = (from + u64::from(piece.pages()) * PAGE_BYTES as u64).min(layer.end);
        if let Piece::Block(block) = piece {
            each(from..to, block.print);
        }
        from = to;
    };
    let mut cutter = Cutter::default();
    for at in layer.clone().step_by(CHUNK) {
        cutter.take(
            &read(disk, at..(at + CHUNK as u64).min(layer.end)),
            &mut piece,
        );
    }
    cutter.finish(&mut piece);
}

/// A chunk at most.
fn read(disk: &Disk, place: Range<u64>) -> Vec<u8> {
    let length = usize::try_from(place.end - place.start).unwrap_or(CHUNK);
    let mut bytes = vec![0; length];
    disk.read(place.start, &mut bytes);
    bytes
}

fn packed(bytes: &[u8]) -> u64 {
    lz4_flex::block::compress(bytes).len().min(bytes.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageSpec;

    #[test]
    fn what_only_moved_has_changed_in_its_place_and_is_known() {
        let spec = ImageSpec::incompressible(16 << 20, 4 << 20, 7);
        let before = spec.disk().unwrap();
        assert_eq!(Changed::between(&before, &before), Changed::default());

        // a page in the second chunk: all behind it lies elsewhere
        let after = spec.with_inserted(3 << 19, 4096).disk().unwrap();
        let moved = Changed::between(&before, &after);
        assert_eq!(moved.chunks, 15 << 20);
        assert_eq!(moved.pages, (16 << 20) - (3 << 19));
        // the page and what it cut: a block at most for it, and two at each layer's end
        assert!(moved.blocks_compressed >= 4096);
        assert!(moved.blocks_compressed <= 9 * 15 * 4096, "{moved:?}");
        assert!(moved.lacking_compressed <= 8 << 20, "{moved:?}");
        assert!(moved.lacking_compressed >= moved.blocks_compressed);
    }

    #[test]
    fn zeros_are_nothing_that_is_written() {
        let file = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            let disk = ImageSpec::of_file(file.path(), 1 << 20).unwrap().disk();
            disk.unwrap()
        };
        let mut disk = vec![7; 3 << 20];
        let before = file(&disk);
        disk[5000..(1 << 20) + 1].fill(0);
        disk[(2 << 20) + 8192] = 8;
        let changed = Changed::between(&before, &file(&disk));
        assert_eq!(changed.chunks, 3 << 20);
        // the rest of the page that ends in zeros, of the one that begins with a zero, and the one with another byte
        assert_eq!(changed.pages, 3 * 4096);
        // blocks of one byte's pages are all alike
        assert!(changed.blocks_compressed < 4096, "{changed:?}");
    }
}
