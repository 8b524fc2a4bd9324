use std::{format, string::ToString as _, vec, vec::Vec};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    blocks::Blocks,
    chunks::CHUNK_BYTES,
    fingerprint::Fingerprint,
    image::{
        CONFIG_TYPE, ContentKind, DISK_TYPE, NVRAM_TYPE, RAW_DIGEST_ANNOTATION, RAW_SIZE_ANNOTATION,
    },
};

const MIB: usize = 1 << 20;
/// Raw bytes of a block in these tests.
const BLOCK: usize = 60_000;

/// Bytes that differ at each place, and with each seed.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let word = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(word).collect();
    bytes.truncate(length);
    bytes
}

/// An image whose disk is these slices; config and nvram have a few bytes.
struct Image {
    layout: Layout,
    contents: Vec<Vec<u8>>,
}

/// The blob of a layer. Nothing here decodes it.
fn blob(at: usize, raw: &[u8]) -> Vec<u8> {
    [&[u8::try_from(at).unwrap()], raw].concat()
}

fn image(disks: &[Vec<u8>]) -> Image {
    let (config, nvram) = (bytes(100, 700), bytes(101, 3 * MIB + 5));
    let small = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()});
    let mut layers = vec![small(CONFIG_TYPE, &config)];
    for (at, raw) in disks.iter().enumerate() {
        layers.push(json!({
            "mediaType": DISK_TYPE,
            "digest": Digest::of(&blob(at, raw)).to_string(),
            "size": blob(at, raw).len(),
            "annotations": {
                RAW_SIZE_ANNOTATION: raw.len().to_string(),
                RAW_DIGEST_ANNOTATION: Digest::of(raw).to_string(),
            },
        }));
    }
    layers.push(small(NVRAM_TYPE, &nvram));
    let manifest = json!({"schemaVersion": 2, "layers": layers}).to_string();
    let layout = Layout::parse(manifest.as_bytes(), &Digest::of(manifest.as_bytes())).unwrap();
    let mut contents = vec![config, nvram];
    contents.extend(disks.iter().cloned());
    Image { layout, contents }
}

fn two_disks() -> Image {
    image(&[bytes(1, 2 * MIB + 64), bytes(2, MIB)])
}

fn made(layout: &Layout, content: &[u8]) -> Result<ContentRecipe, NotTheContentError> {
    made_as(layout, Digest::of(content), content)
}

/// Makes a recipe of these bytes, as if they were that content.
fn made_as(
    layout: &Layout,
    digest: Digest,
    content: &[u8],
) -> Result<ContentRecipe, NotTheContentError> {
    let contents = layout.contents();
    let spec = contents.iter().find(|spec| spec.digest == digest).unwrap();
    let mut maker = Maker::of(spec);
    let raw = matches!(spec.kind, ContentKind::RawLayer { .. });
    for (at, block) in content.chunks(BLOCK).enumerate() {
        if raw {
            maker.take_block(1_000 * at as u64, block)?;
        } else {
            maker.take(block)?;
        }
    }
    maker.finish()
}

fn recipe(image: &Image) -> Recipe {
    let made = |content: &Vec<u8>| made(&image.layout, content).unwrap();
    Recipe::new(&image.layout, image.contents.iter().map(made)).unwrap()
}

#[test]
fn every_chunk_is_proved_alone_and_no_other_bytes_are() {
    let image = two_disks();
    let recipe = recipe(&image);
    for content in &image.contents {
        let of = recipe.content(&Digest::of(content)).unwrap();
        let geometry = of.geometry();
        for at in (0..geometry.chunks()).rev() {
            let chunk = ChunkIndex(at);
            let start = usize::try_from(geometry.offset(chunk)).unwrap();
            let mut bytes = content[start..][..geometry.len(chunk) as usize].to_vec();
            assert!(of.proves(chunk, &bytes));
            assert!(of.link(chunk).unwrap().holds(geometry, chunk, &bytes));
            assert_eq!(of.link(chunk).unwrap().fingerprint, Fingerprint::of(&bytes));
            assert!(!of.proves(ChunkIndex(at + 1), &bytes));
            assert!(!of.proves(chunk, &bytes[1..]));
            bytes[0] ^= 1;
            assert!(!of.proves(chunk, &bytes));
        }
        assert_eq!(of.link(ChunkIndex(geometry.chunks())), None);
        assert!(!of.proves(ChunkIndex(geometry.chunks()), &[]));
    }
}

#[test]
fn a_recipe_reads_back_and_is_the_same_whoever_made_it() {
    let image = two_disks();
    let recipe = recipe(&image);
    let bytes = recipe.encode();
    assert_eq!(Recipe::parse(&bytes, &image.layout).unwrap(), recipe);
    let backwards = image.contents.iter().rev();
    let other = backwards.map(|content| made(&image.layout, content).unwrap());
    assert_eq!(Recipe::new(&image.layout, other).unwrap().encode(), bytes);
    assert_eq!(recipe.image(), image.layout.digest());
    let order: Vec<Digest> = recipe.contents().map(|content| *content.digest()).collect();
    let wanted: Vec<Digest> = image
        .layout
        .contents()
        .iter()
        .map(|spec| spec.digest)
        .collect();
    assert_eq!(order, wanted);
    // 60 bytes a chunk, under a hundred a content, and the blocks
    let chunks: u32 = recipe
        .contents()
        .map(|content| content.geometry().chunks())
        .sum();
    let blocks: u64 = recipe
        .contents()
        .map(|content| content.blocks().bytes())
        .sum();
    assert!(blocks > 0);
    let rest = bytes.len() - usize::try_from(blocks).unwrap();
    assert!(
        rest < 60 * chunks as usize + 100 * (order.len() + 1),
        "{rest}"
    );
    assert!((bytes.len() as u64) < Recipe::max_bytes(&image.layout));
}

#[test]
fn the_places_to_go_on_from_are_those_of_the_blocks_that_chunks_end_in() {
    let image = two_disks();
    let recipe = recipe(&image);
    let disk = recipe.content(&Digest::of(&image.contents[2])).unwrap();
    for at in 0..2u64 {
        let end = (at + 1) * CHUNK_BYTES;
        let block = (end - 1) / BLOCK as u64;
        let resume = disk
            .link(ChunkIndex(u32::try_from(at).unwrap()))
            .unwrap()
            .resume
            .unwrap();
        assert_eq!(resume.blob_offset, 1_000 * block);
        assert_eq!(u64::from(resume.skip_bytes), end - block * BLOCK as u64);
    }
    assert_eq!(disk.link(ChunkIndex(2)).unwrap().resume, None);
    let nvram = recipe.content(&Digest::of(&image.contents[1])).unwrap();
    assert_eq!(nvram.link(ChunkIndex(0)).unwrap().resume, None);
}

#[test]
fn bytes_that_are_not_the_content_make_no_recipe() {
    let image = two_disks();
    let raw = &image.contents[2];
    let (digest, size) = (Digest::of(raw), raw.len() as u64);
    let refused = |bytes: &[u8]| made_as(&image.layout, digest, bytes).unwrap_err();
    let short = NotTheContentError::Size {
        content: digest,
        size,
        came: size - 1,
    };
    assert_eq!(refused(&raw[1..]), short);
    let long = NotTheContentError::Size {
        content: digest,
        size,
        came: size + 1,
    };
    assert_eq!(refused(&[raw, &[0; 9][..]].concat()), long);
    let mut other = raw.clone();
    other[MIB] ^= 1;
    let found = Digest::of(&other);
    assert_eq!(
        refused(&other),
        NotTheContentError::Digest {
            content: digest,
            found
        }
    );
}

#[test]
fn what_is_not_the_images_recipe_is_refused_by_name() {
    let image = two_disks();
    let whole = recipe(&image).encode();
    let refused = |bytes: &[u8]| Recipe::parse(bytes, &image.layout).unwrap_err();
    let other = tests::image(&[bytes(3, MIB)]);
    assert_eq!(
        refused(&recipe(&other).encode()),
        ParseRecipeError::OtherImage {
            wanted: *image.layout.digest(),
            found: *other.layout.digest()
        }
    );
    // whatever the place, what is cut off there isn't read as less
    for end in (0..whole.len()).step_by(7) {
        let error = refused(&whole[..end]);
        assert!(
            matches!(
                error,
                ParseRecipeError::Truncated
                    | ParseRecipeError::Lacks(_)
                    | ParseRecipeError::Protobuf(_)
            ),
            "{end}: {error}"
        );
    }
    let most = Recipe::max_bytes(&image.layout);
    let huge = vec![0; usize::try_from(most).unwrap() + 1];
    assert_eq!(
        refused(&huge),
        ParseRecipeError::TooLarge {
            bytes: most + 1,
            most
        }
    );
    // contents of no bytes, a byte each
    let mut many = whole.clone();
    many.extend([0; 1_000]);
    assert_eq!(refused(&many), ParseRecipeError::TooMany(4));
    let mut nameless = whole[..35].to_vec();
    nameless.push(0);
    assert_eq!(refused(&nameless), ParseRecipeError::Digest(0));
    let lacking = recipe(&image)
        .contents()
        .skip(1)
        .cloned()
        .collect::<Vec<_>>();
    let lacks = ParseRecipeError::Lacks(image.layout.contents()[0].digest);
    assert_eq!(Recipe::new(&image.layout, lacking), Err(lacks));
    let mut doubled: Vec<ContentRecipe> = recipe(&image).contents().cloned().collect();
    doubled.push(doubled[0].clone());
    let twice = ParseRecipeError::Unexpected(*doubled[0].digest());
    assert_eq!(Recipe::new(&image.layout, doubled), Err(twice));
}

#[test]
fn columns_that_do_not_fit_their_content_are_refused() {
    let image = two_disks();
    let good: Vec<ContentRecipe> = recipe(&image).contents().cloned().collect();
    for (at, change) in [
        (
            2,
            (|content: &mut ContentRecipe| content.states.truncate(32)) as fn(&mut ContentRecipe),
        ),
        (2, |content| content.states.extend([0; 32])),
        (2, |content| content.fingerprints.truncate(47)),
        (2, |content| content.resumes.truncate(12)),
        (1, |content| content.resumes.extend([0; 12 * 3])),
    ] {
        let mut contents = good.clone();
        change(&mut contents[at]);
        let error = Recipe::new(&image.layout, contents).unwrap_err();
        assert!(matches!(error, ParseRecipeError::Column { .. }), "{error}");
    }
    let mut contents = good.clone();
    contents[2].geometry = Geometry::new(5).unwrap();
    assert!(matches!(
        Recipe::new(&image.layout, contents),
        Err(ParseRecipeError::Size { .. })
    ));
    // without the blob at hand nobody knows places
    let mut contents = good;
    contents[2].resumes.clear();
    let recipe = Recipe::new(&image.layout, contents).unwrap();
    let content = recipe.content(&Digest::of(&image.contents[2])).unwrap();
    assert_eq!(content.link(ChunkIndex(0)).unwrap().resume, None);
}

/// The recipe as who reads the blobs makes it.
fn recipe_of_blobs(image: &Image) -> Recipe {
    let specs = image.layout.contents();
    let made = image.contents.iter().enumerate().map(|(at, content)| {
        let digest = Digest::of(content);
        let spec = specs.iter().find(|spec| spec.digest == digest).unwrap();
        let mut maker = Maker::of(spec);
        // config and nvram come first
        let blob = blob(at.saturating_sub(2), content);
        for piece in blob.chunks(70_000) {
            maker.take_blob(piece).unwrap();
        }
        maker.take(content).unwrap();
        maker.finish().unwrap()
    });
    Recipe::new(&image.layout, made).unwrap()
}

#[test]
fn a_recipe_of_the_registrys_bytes_proves_blobs_and_is_a_recipe_to_readers_of_before() {
    let image = two_disks();
    let (whole, without) = (recipe_of_blobs(&image), recipe(&image));
    let bytes = whole.encode();
    assert_eq!(Recipe::parse(&bytes, &image.layout).as_ref(), Ok(&whole));
    for (at, raw) in image.contents[2..].iter().enumerate() {
        let blob = blob(at, raw);
        let (digest, geometry) = (Digest::of(&blob), Geometry::new(blob.len() as u64).unwrap());
        let of = whole.blob(&digest).unwrap();
        assert_eq!((of.digest(), of.geometry()), (&digest, geometry));
        for (chunk, bytes) in (0..).map(ChunkIndex).zip(blob.chunks(MIB)) {
            assert!(of.proves(chunk, bytes));
            assert!(of.link(chunk).unwrap().holds(geometry, chunk, bytes));
            let mut lie = bytes.to_vec();
            lie[0] ^= 1;
            assert!(!of.proves(chunk, &lie));
        }
        assert!(without.blob(&digest).is_none());
    }
    // a blob that travels as it is is a content, whoever made the recipe
    let nvram = Digest::of(&image.contents[1]);
    assert_eq!(without.blob(&nvram).as_ref(), without.content(&nvram));
    assert_eq!(whole.blob(&Digest::of(b"no blob")), None);
    // 32 bytes for each MiB of a blob but its last
    let more = bytes.len() - without.encode().len();
    let resumes = 2 * 12;
    assert!((3 * 32..3 * 32 + 16).contains(&(more + resumes)), "{more}");
    // neither says anything false of the other
    assert_eq!(whole.first_difference(&without), None);
    assert_eq!(without.first_difference(&whole), None);
}

#[test]
fn false_states_of_a_blob_are_named_and_a_column_of_another_length_is_refused() {
    let image = two_disks();
    let honest = recipe_of_blobs(&image);
    let disk = Digest::of(&image.contents[2]);
    let lie = with_a_lie(&honest, disk, |content| content.blob_states[32 + 5] ^= 1);
    assert_eq!(
        Recipe::parse(&lie.encode(), &image.layout).as_ref(),
        Ok(&lie)
    );
    let found = lie.first_difference(&honest).unwrap();
    assert_eq!(
        found.to_string(),
        format!("the state of the blob after chunk 1 of content {disk}")
    );
    for (content, bytes) in [(disk, 32), (disk, 96), (Digest::of(&image.contents[1]), 32)] {
        let other = with_a_lie(&honest, content, |of| of.blob_states.resize(bytes, 0));
        let error = Recipe::parse(&other.encode(), &image.layout).unwrap_err();
        let column = "blob_states";
        assert!(
            matches!(error, ParseRecipeError::Column { column: of, .. } if of == column),
            "{error}"
        );
    }
}

#[test]
fn bytes_that_are_not_the_blob_make_no_recipe_and_a_huge_blob_has_no_states() {
    let raw = bytes(1, MIB);
    let spec = |blob: &[u8]| ContentSpec {
        digest: Digest::of(&raw),
        geometry: Geometry::new(raw.len() as u64).unwrap(),
        kind: ContentKind::RawLayer {
            blob: crate::image::Blob {
                digest: Digest::of(blob),
                size: blob.len() as u64,
            },
        },
        places: Vec::new(),
    };
    let made = |spec: &ContentSpec, blob: &[u8]| {
        let mut maker = Maker::of(spec);
        maker.take_blob(blob)?;
        maker.take(&raw)?;
        maker.finish()
    };
    let blob = bytes(9, 2 * MIB);
    let spec_of = spec(&blob);
    let error = made(&spec_of, &blob[1..]).unwrap_err();
    assert!(matches!(error, NotTheContentError::Size { .. }), "{error}");
    let mut other = blob.clone();
    other[7] ^= 1;
    let error = made(&spec_of, &other).unwrap_err();
    assert!(
        matches!(error, NotTheContentError::Digest { .. }),
        "{error}"
    );
    // what a chunk may take: 960 bytes, which are 30 states
    for (chunks, states) in [(31, 30 * 32), (32, 0)] {
        let blob = bytes(3, chunks * MIB);
        assert_eq!(made(&spec(&blob), &blob).unwrap().blob_states.len(), states);
    }
}

proptest! {
    #[test]
    fn any_change_is_a_recipe_or_an_error(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let image = image(&[bytes(1, MIB + 9)]);
        let mut bytes = recipe(&image).encode();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(read) = Recipe::parse(&bytes, &image.layout) {
            prop_assert_eq!(Recipe::parse(&read.encode(), &image.layout), Ok(read));
        }
    }

    #[test]
    fn any_cut_of_the_bytes_makes_the_same_recipe(cuts in prop::collection::vec(1..2_000_000usize, 0..6)) {
        let raw = bytes(1, 2 * MIB + 64);
        let layout = image(core::slice::from_ref(&raw)).layout;
        let spec = layout.contents().into_iter().find(|spec| spec.digest == Digest::of(&raw)).unwrap();
        let mut maker = Maker::of(&spec);
        let mut rest = &raw[..];
        for cut in cuts {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            maker.take(now).unwrap();
            rest = later;
        }
        maker.take(rest).unwrap();
        let mut whole = Maker::of(&spec);
        whole.take(&raw).unwrap();
        prop_assert_eq!(maker.finish().unwrap(), whole.finish().unwrap());
    }
}

/// A recipe with one byte of a column changed.
fn with_a_lie(recipe: &Recipe, content: Digest, lie: impl FnOnce(&mut ContentRecipe)) -> Recipe {
    let mut lying = recipe.clone();
    lie(Arc::make_mut(lying.contents.get_mut(&content).unwrap()));
    lying
}

#[test]
fn the_first_false_entry_is_named_with_content_and_chunk() {
    let image = image(&[bytes(1, 4 * MIB), bytes(2, 3 * MIB + 1)]);
    let honest = recipe(&image);
    assert_eq!(honest.first_difference(&honest), None);
    let (first, second) = (
        Digest::of(&image.contents[2]),
        Digest::of(&image.contents[3]),
    );
    let differs = |recipe: &Recipe| recipe.first_difference(&honest);
    let expected = |content, chunk, column| {
        Some(Difference {
            content,
            chunk: ChunkIndex(chunk),
            column,
        })
    };
    let state = with_a_lie(&honest, second, |content| content.states[2 * 32 + 31] ^= 1);
    assert_eq!(differs(&state), expected(second, 2, Column::States));
    let print = with_a_lie(&honest, second, |content| content.fingerprints[3 * 16] ^= 1);
    assert_eq!(differs(&print), expected(second, 3, Column::Fingerprints));
    let resume = with_a_lie(&honest, first, |content| content.resumes[12 + 11] ^= 1);
    assert_eq!(differs(&resume), expected(first, 1, Column::Resumes));
    // the earlier chunk counts, then the state; and the earlier content before both
    let both = with_a_lie(&resume, first, |content| content.fingerprints[0] ^= 1);
    assert_eq!(differs(&both), expected(first, 0, Column::Fingerprints));
    let same = with_a_lie(&resume, first, |content| content.states[32] ^= 1);
    assert_eq!(differs(&same), expected(first, 1, Column::States));
    let two = with_a_lie(&same, second, |content| content.states[0] ^= 1);
    assert_eq!(differs(&two), expected(first, 1, Column::States));
    assert_eq!(
        differs(&same).unwrap().to_string(),
        format!("the state after chunk 1 of content {first}")
    );
}

#[test]
fn a_recipe_without_places_is_not_false() {
    let image = two_disks();
    let whole = recipe(&image);
    let without = with_a_lie(&whole, Digest::of(&image.contents[2]), |content| {
        content.resumes.clear();
    });
    assert_eq!(without.first_difference(&whole), None);
    assert_eq!(whole.first_difference(&without), None);
}

#[test]
fn a_false_block_is_named_and_a_recipe_without_blocks_is_not_false() {
    let image = image(&[bytes(1, 4 * MIB)]);
    let honest = recipe(&image);
    let disk = Digest::of(&image.contents[2]);
    let with = |blocks: Vec<crate::blocks::Piece>| {
        let mut column = Blocks::default();
        blocks.into_iter().for_each(|piece| column.push(piece));
        with_a_lie(&honest, disk, |content| content.blocks = column)
    };
    let pieces: Vec<_> = honest.content(&disk).unwrap().blocks().pieces().collect();
    let lie = pieces.iter().position(|(page, _)| *page > 600).unwrap();
    let mut false_pieces: Vec<_> = pieces.iter().map(|(_, piece)| *piece).collect();
    let crate::blocks::Piece::Block(block) = &mut false_pieces[lie] else {
        panic!("random bytes have no zeros");
    };
    block.print = crate::blocks::BlockPrint::of(b"something else");
    let lying = with(false_pieces);
    let found = lying.first_difference(&honest).unwrap();
    assert_eq!((found.chunk, found.column), (ChunkIndex(2), Column::Blocks));
    assert_eq!(Recipe::parse(&lying.encode(), &image.layout), Ok(lying));
    let without = with(Vec::new());
    assert!(without.content(&disk).unwrap().blocks().is_empty());
    assert_eq!(without.first_difference(&honest), None);
    assert_eq!(honest.first_difference(&without), None);
    assert_eq!(Recipe::parse(&without.encode(), &image.layout), Ok(without));
}

#[test]
fn blocks_of_another_size_and_of_what_is_no_layer_are_refused() {
    let image = two_disks();
    let good = recipe(&image);
    let blocks = |at: usize| {
        good.content(&Digest::of(&image.contents[at]))
            .unwrap()
            .blocks()
    };
    let with = |at: usize, blocks: &Blocks| {
        with_a_lie(&good, Digest::of(&image.contents[at]), |content| {
            content.blocks = blocks.clone();
        })
    };
    let refused = |recipe: &Recipe| Recipe::parse(&recipe.encode(), &image.layout).unwrap_err();
    let error = refused(&with(2, blocks(3)));
    assert!(matches!(error, ParseRecipeError::Blocks { .. }), "{error}");
    // nvram has 3 MiB and 5 bytes
    let mut of_nvram = Blocks::default();
    of_nvram.push(crate::blocks::Piece::Zeros { pages: 769 });
    let error = refused(&with(1, &of_nvram));
    assert!(matches!(error, ParseRecipeError::Column { .. }), "{error}");
}

#[test]
fn pages_that_all_end_files_take_no_more_than_a_recipe_may() {
    let mut disk = bytes(1, 2 * MIB);
    for page in disk.chunks_mut(4096) {
        page[4080..].fill(0);
    }
    let image = image(&[disk]);
    let recipe = recipe(&image);
    let content = recipe.content(&Digest::of(&image.contents[2])).unwrap();
    assert!(content.blocks().is_empty());
    assert!(recipe.encode().len() as u64 <= Recipe::max_bytes(&image.layout));
}

#[test]
fn a_recipe_is_read_part_by_part() {
    let image = two_disks();
    let whole = recipe(&image);
    let bytes = whole.encode();
    let (mut rest, mut reader) = (&bytes[..], Reader::new(&image.layout));
    let mut contents = Vec::new();
    while !rest.is_empty() {
        let part = part(&mut rest).unwrap();
        assert!(part.len() as u64 <= reader.max_part_bytes());
        contents.extend(reader.take(part).unwrap());
    }
    assert_eq!(reader.take(&[]), Err(ParseRecipeError::TooMany(4)));
    let blocks: u64 = contents
        .iter_mut()
        .map(|content| content.take_blocks().bytes())
        .sum();
    assert!(blocks > 0);
    let lean = Recipe::new(&image.layout, contents).unwrap();
    assert!(lean.contents().all(|content| content.blocks().is_empty()));
    let raw = &image.contents[2];
    assert!(
        lean.content(&Digest::of(raw))
            .unwrap()
            .proves(ChunkIndex(0), &raw[..MIB])
    );
}
