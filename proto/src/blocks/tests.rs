use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::chunks::CHUNK_BYTES;

const MIB: usize = 1 << 20;

/// Random bytes.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof();
    reader.fill(&mut bytes);
    bytes
}

/// Pages of a disk: random ones, ends of files, and zeros.
fn pages(kinds: &[u8]) -> Vec<u8> {
    let page = |(at, kind): (usize, &u8)| match kind % 4 {
        0 => vec![0; PAGE_BYTES],
        1 => {
            let mut page = noise(at as u64, PAGE_BYTES);
            page[PAGE_BYTES - END_ZEROS..].fill(0);
            page
        }
        _ => noise(at as u64, PAGE_BYTES),
    };
    kinds.iter().enumerate().flat_map(page).collect()
}

/// The pieces of bytes that come in parts of these lengths, and then the rest at once.
fn cut(bytes: &[u8], parts: &[usize]) -> Vec<Piece> {
    let (mut cutter, mut pieces) = (Cutter::default(), Vec::new());
    let mut rest = bytes;
    for part in parts {
        let (now, later) = rest.split_at(rest.len().min(*part));
        cutter.take(now, &mut |piece| pieces.push(piece));
        rest = later;
    }
    cutter.take(rest, &mut |piece| pieces.push(piece));
    cutter.finish(&mut |piece| pieces.push(piece));
    pieces
}

fn column(pieces: &[Piece]) -> Blocks {
    let mut blocks = Blocks::default();
    for piece in pieces {
        blocks.push(*piece);
    }
    blocks
}

fn geometry(size: usize) -> Geometry {
    Geometry::new(size as u64).unwrap()
}

fn read(blocks: &Blocks, size: usize) -> Result<Blocks, BlocksError> {
    let (lengths, prints) = blocks.parts();
    Blocks::parse(lengths.to_vec(), prints.to_vec(), geometry(size))
}

proptest! {
    #[test]
    fn bytes_are_cut_alike_however_they_come(
        kinds in prop::collection::vec(any::<u8>(), 0..120),
        end in 0..PAGE_BYTES,
        parts in prop::collection::vec(0..30_000_usize, 0..20),
    ) {
        let bytes = [pages(&kinds), noise(7, end)].concat();
        prop_assert_eq!(cut(&bytes, &parts), cut(&bytes, &[]));
    }

    #[test]
    fn pieces_cover_the_bytes_and_say_what_they_are(
        kinds in prop::collection::vec(any::<u8>(), 1..120),
        end in 0..PAGE_BYTES,
    ) {
        let bytes = [pages(&kinds), noise(7, end)].concat();
        let mut rest = &bytes[..];
        let mut last_was_zeros = false;
        for piece in cut(&bytes, &[]) {
            let (of, later) = rest.split_at(rest.len().min(piece.pages() as usize * PAGE_BYTES));
            rest = later;
            match piece {
                Piece::Block(block) => {
                    prop_assert!((1..=MAX_BLOCK_PAGES).contains(&block.pages));
                    prop_assert_eq!(block.print, BlockPrint::of(of));
                    prop_assert!(of.chunks(PAGE_BYTES).all(|page| !is_zero(page)));
                    last_was_zeros = false;
                }
                Piece::Zeros { pages } => {
                    prop_assert!(pages > 0 && !last_was_zeros && is_zero(of));
                    last_was_zeros = true;
                }
            }
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_column_reads_back(
        kinds in prop::collection::vec(any::<u8>(), 0..90),
        run in 0..3_000_usize,
        end in 0..PAGE_BYTES,
    ) {
        let zeros = vec![0; run * PAGE_BYTES];
        let bytes = [pages(&kinds), zeros, noise(7, end)].concat();
        let pieces = cut(&bytes, &[]);
        let blocks = column(&pieces);
        let mut page = 0;
        let placed: Vec<(u32, Piece)> = pieces
            .iter()
            .map(|piece| {
                page += piece.pages();
                (page - piece.pages(), *piece)
            })
            .collect();
        prop_assert_eq!(blocks.pieces().collect::<Vec<_>>(), placed);
        let of_blocks = pieces.iter().filter(|piece| matches!(piece, Piece::Block(_)));
        prop_assert_eq!(blocks.len(), of_blocks.count());
        // 90 pages with a block each are below the bound of the first chunk
        prop_assert_eq!(read(&blocks, bytes.len()), Ok(blocks));
    }

    #[test]
    fn pieces_are_gone_through_from_each_mark(kinds in prop::collection::vec(0..4_u8, 0..300), run in 1..80_u32) {
        let bytes = pages(&kinds);
        let blocks = column(&cut(&bytes, &[bytes.len()]));
        let all: Vec<(u32, Piece)> = blocks.pieces().collect();
        let marks = blocks.marks(run);
        prop_assert_eq!(marks.len(), kinds.len().div_ceil(run as usize));
        for (first, mark) in (0..).step_by(run as usize).zip(marks) {
            let from = all.partition_point(|(page, piece)| page + piece.pages() <= first);
            prop_assert!(blocks.pieces_from(mark).eq(all[from..].iter().copied()));
        }
    }

    #[test]
    fn any_column_is_one_of_its_content_or_an_error(
        lengths in prop::collection::vec(any::<u8>(), 0..20),
        prints in 0..40_usize,
        size in 0..3 * MIB,
    ) {
        let prints = vec![1; prints * BlockPrint::BYTES];
        if let Ok(blocks) = Blocks::parse(lengths, prints, geometry(size)) {
            let pages: u64 = blocks.pieces().map(|(_, piece)| u64::from(piece.pages())).sum();
            prop_assert!(blocks.is_empty() || pages == Blocks::pages(geometry(size)));
            prop_assert_eq!(blocks.pieces().filter(|(_, piece)| matches!(piece, Piece::Block(_))).count(), blocks.len());
        }
    }
}

#[test]
fn bytes_that_moved_by_pages_are_cut_alike_but_at_their_start() {
    let bytes = noise(1, 4 * MIB);
    let prints = |bytes: &[u8]| -> Vec<BlockPrint> {
        let pieces = cut(bytes, &[]).into_iter();
        let print = |piece| match piece {
            Piece::Block(block) => Some(block.print),
            Piece::Zeros { .. } => None,
        };
        pieces.filter_map(print).collect()
    };
    let before = prints(&bytes);
    let moved = prints(&[noise(2, 3 * PAGE_BYTES), bytes].concat());
    let found = before.iter().filter(|print| moved.contains(print)).count();
    // the first block may have the inserted pages before it
    assert!(found + 1 >= before.len(), "{found} of {}", before.len());
}

#[test]
fn random_bytes_have_blocks_of_16_kib_on_average() {
    let bytes = noise(3, 64 * MIB);
    let blocks = column(&cut(&bytes, &[]));
    let mean = bytes.len() / blocks.len();
    // 4096 expected ends, give or take 2 %
    assert!((15_500..17_000).contains(&mean), "{mean}");
    // half a byte and 5 bytes for each: a third of what a chunk may take
    assert!(blocks.bytes() < 64 * MAX_BYTES_PER_CHUNK / 2);
}

#[test]
fn the_end_of_a_file_ends_a_block_and_zeros_are_no_part_of_one() {
    // the pages' hashes may end blocks, too: what counts is where blocks end for sure
    let bytes = pages(&[2, 1, 2, 0, 0, 2]);
    let blocks = column(&cut(&bytes, &[]));
    let pieces: Vec<(u32, Piece)> = blocks.pieces().collect();
    assert!(pieces.iter().any(|(page, _)| *page == 2));
    assert!(pieces.contains(&(3, Piece::Zeros { pages: 2 })));
    assert_eq!(pieces.last().unwrap().0, 5);
    let zeros = vec![0; MIB];
    assert_eq!(cut(&zeros, &[]), [Piece::Zeros { pages: 256 }]);
    assert_eq!(cut(&[], &[]), []);
}

#[test]
fn runs_of_zeros_that_follow_each_other_are_refused() {
    let zeros = |pages| Piece::Zeros { pages };
    let block = cut(&noise(3, PAGE_BYTES), &[])[0];
    let of = |pieces: &[Piece]| {
        let pages: u32 = pieces.iter().map(Piece::pages).sum();
        read(&column(pieces), pages as usize * PAGE_BYTES)
    };
    assert!(of(&[zeros(2), block, zeros(1), block, zeros(250)]).is_ok());
    let runs = |page| Err(BlocksError::Runs { page });
    assert_eq!(of(&[zeros(2), zeros(1)]), runs(2));
    assert_eq!(of(&[zeros(1), block, zeros(3), zeros(1), block]), runs(5));
    // a lie in as few bytes as there can be: a page, and again a page
    assert_eq!(of(&[zeros(1); 512]), runs(1));
}

#[test]
fn columns_that_do_not_fit_their_content_are_refused_by_name() {
    let bytes = noise(4, MIB + 5);
    let good = column(&cut(&bytes, &[]));
    let (lengths, prints) = good.parts();
    let refused = |lengths: &[u8], prints: &[u8], size: usize| {
        Blocks::parse(lengths.to_vec(), prints.to_vec(), geometry(size)).unwrap_err()
    };
    let is_lengths = |error| matches!(error, BlocksError::Lengths { .. });
    // cut off, of a smaller content, of a larger one, and with more behind
    assert!(is_lengths(refused(
        &lengths[..lengths.len() - 1],
        prints,
        MIB + 5
    )));
    assert!(is_lengths(refused(lengths, prints, MIB)));
    assert!(is_lengths(refused(lengths, prints, MIB + 4097)));
    assert!(is_lengths(refused(
        &[lengths, &[0]].concat(),
        prints,
        MIB + 5
    )));
    assert!(is_lengths(refused(&[], prints, MIB + 5)));
    assert_eq!(
        refused(lengths, &prints[..prints.len() - 1], MIB + 5),
        BlocksError::Prints {
            bytes: prints.len() - 1,
            wanted: prints.len()
        }
    );
    // one zero page, then nothing; a run of no pages; one that is longer than any content
    for lengths in [
        &[0x10_u8][..],
        &[0x00],
        &[0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0x1f],
    ] {
        let size = if lengths.len() == 1 {
            2 * PAGE_BYTES
        } else {
            MIB
        };
        assert!(is_lengths(refused(lengths, &[], size)), "{lengths:?}");
    }
    // a page each, for every page of a chunk: more than a recipe has room for
    let dense = [vec![0x11; 128], vec![7; 256 * BlockPrint::BYTES]];
    assert_eq!(
        refused(&dense[0], &dense[1], MIB),
        BlocksError::TooMany {
            bytes: 1408,
            most: 960
        }
    );
    let sparse = Blocks::parse(vec![0xff; 8], vec![7; 80], geometry(240 * PAGE_BYTES));
    assert_eq!(sparse.unwrap().len(), 16);
    assert!(read(&Blocks::default(), MIB).unwrap().is_empty());
    assert_eq!(MIB as u64, CHUNK_BYTES);
}
