//! Stages that find blocks of lacking chunks on other images' disks, and what becomes of that on bad days.

use super::*;
use crate::{
    platform::cloning,
    store::{place::Files as _, tree::INDEX},
};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// The chunk into which a page was inserted.
pub(crate) const CHANGED: ChunkIndex = ChunkIndex(1);

/// Two releases: the second one's common layer is the first one's with a page inserted in its second chunk.
pub(crate) struct Releases {
    home: TempDir,
    pub(crate) store: Store,
    pub(crate) old: Sample,
    pub(crate) new: Sample,
    pub(crate) by: NamedRecipe,
    pub(crate) layer: Digest,
}

impl Releases {
    /// The first release is here, with its recipe.
    pub(crate) fn new() -> Self {
        Self::with(options(), |_| {})
    }

    /// The same, and by the second one's recipe two blocks of the changed chunk, which are on the first one's disk, lie
    /// in each other's place. Its states are true.
    pub(crate) fn with_false_blocks() -> Self {
        Self::with_false_blocks_in(CHANGED)
    }

    fn with_false_blocks_in(chunk: ChunkIndex) -> Self {
        let within = chunk.0 * 256 + 74..chunk.0 * 256 + 224;
        Self::with(options(), |content| {
            let halves = content.block_lengths.iter();
            let halves = halves.flat_map(|byte| [byte & 15, byte >> 4]);
            // noise has no zeros: each half byte is a block
            let (mut page, mut blocks) = (0, Vec::new());
            for (at, pages) in halves.enumerate() {
                if within.contains(&page) {
                    blocks.push((at, pages));
                }
                page += u32::from(pages);
            }
            let (first, pages) = blocks[0];
            let (second, _) = blocks[1..].iter().find(|(_, of)| *of == pages).unwrap();
            for byte in 0..5 {
                content
                    .block_prints
                    .swap(first * 5 + byte, second * 5 + byte);
            }
        })
    }

    fn with(options: Options, change: impl Fn(&mut RecipeContent)) -> Self {
        let raw = noise(6 * MIB + 100_000, 1);
        let at = MIB + 40 * PAGE;
        let moved = [&raw[..at], &noise(PAGE, 2), &raw[at..]].concat();
        let (old, new) = (
            sample_of(7, &raw, 5_000, None),
            sample_of(7, &moved, 5_000, None),
        );
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path(), options).unwrap();
        let by_old = recipe(&old);
        put(&home, &by_old);
        let (first, _) = begin_by(&store, &old, &by_old);
        fill(&first, &old);
        store.flush().unwrap();
        let layer = Digest::of(&moved);
        let by = recipe_with(&new, layer, change);
        put(&home, &by);
        Self {
            home,
            store,
            old,
            new,
            by,
            layer,
        }
    }

    pub(crate) fn begin(&self) -> (Arc<Stage>, u64) {
        begin_by(&self.store, &self.new, &self.by)
    }

    pub(crate) fn raw(&self) -> &[u8] {
        &self.new.contents[&self.layer]
    }

    /// The second release is cancelled, and its recipe comes again with the next order.
    fn abandon(&self) {
        let image = *self.new.layout.digest();
        self.store.abandon(image).unwrap();
        put(&self.home, &self.by);
    }

    fn index(&self) -> PathBuf {
        ours(&self.home, &self.old).join(INDEX)
    }

    /// The chunks of the layer that aren't held. What is held is what the disk has to have.
    fn lacks(&self, stage: &Stage) -> Vec<u32> {
        let held = stage.held(self.layer);
        let geometry = Geometry::new(self.raw().len() as u64).unwrap();
        for chunk in held.iter() {
            let read = stage.read(self.layer, chunk).unwrap().unwrap().bytes;
            let from = usize::try_from(geometry.offset(chunk)).unwrap();
            assert!(read == self.raw()[from..from + read.len()], "chunk {chunk}");
        }
        let lacking = |chunk: &u32| !held.contains(ChunkIndex(*chunk));
        (0..held.chunks()).filter(lacking).collect()
    }
}

/// Puts a recipe where the store has recipes.
pub(super) fn put(home: &TempDir, by: &NamedRecipe) {
    let directory = super::super::recipes::directory(home.path());
    fs::create_dir_all(&directory).unwrap();
    let name = by.file.digest.hex().to_string();
    fs::write(directory.join(name), by.recipe.encode()).unwrap();
}

#[test]
fn what_moved_by_a_page_is_had_and_only_what_is_new_is_lacking() {
    let releases = Releases::new();
    let (stage, copied) = releases.begin();
    // the last block of the old layer has more behind it in the new one, or not: chunks are large
    assert_eq!(releases.lacks(&stage), [CHANGED.0]);
    assert!(copied >= 4 * MIB as u64, "{copied}");
    assert_eq!(stage.lacking_ranges(releases.layer, ChunkIndex(0)), None);

    let ranges = stage.lacking_ranges(releases.layer, CHANGED).unwrap();
    let inserted = u32::try_from(40 * PAGE).unwrap();
    assert!(ranges.iter().any(|range| range.contains(&inserted)));
    let bytes: u32 = ranges.iter().map(|range| range.end - range.start).sum();
    // a block of 15 pages at most, which the page was put into, and the page
    assert!(bytes as usize <= 17 * PAGE, "{ranges:?}");

    let pieces = stage.shared().pieces().clone();
    assert_eq!(pieces.parts(), 1);
    let mut part = stage.part(releases.layer, CHANGED).unwrap();
    assert_eq!(part.lacking(), ranges);
    assert_eq!(part.lacking_bytes(), u64::from(bytes));
    let chunk = &releases.raw()[MIB..2 * MIB];
    for range in ranges {
        let bytes = &chunk[range.start as usize..range.end as usize];
        part.fill(range.start, bytes).unwrap();
    }
    let whole = part.whole().unwrap();
    assert!(whole == chunk);
    let (_, link, _) = links(releases.raw())[1];
    let arrived = (&host("mac-1"), None);
    stage
        .write(
            releases.layer,
            CHANGED,
            &whole,
            link,
            source("mac-1"),
            arrived,
        )
        .unwrap();
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
    assert!(stage.part(releases.layer, CHANGED).is_none());
    stage.walk(releases.layer).unwrap();
    assert!(stage.is_closed(releases.layer));
    drop(stage);
    releases.abandon();
    assert_eq!(pieces.parts(), 0);
}

#[test]
fn wrong_entries_of_an_index_cost_a_fetch_and_never_a_byte() {
    let releases = Releases::new();
    drop(releases.begin());
    releases.abandon();
    // each entry leads to another page
    let mut index = fs::read(releases.index()).unwrap();
    let entries = u32::from_le_bytes(index[72..76].try_into().unwrap()) as usize;
    let start = index.len() - 9 * entries;
    for entry in index[start..].chunks_mut(9) {
        entry[8] ^= 1;
    }
    fs::write(releases.index(), index).unwrap();
    let (stage, copied) = releases.begin();
    // nothing but the chunk before the page, which lies where it lay, and the small layer
    assert_eq!(releases.lacks(&stage), (1..7).collect::<Vec<_>>());
    assert!(copied < 2 * MIB as u64, "{copied}");
    // one page in fifteen is the same by accident: nearly all of the chunk is lacking
    let lacking = stage.part(releases.layer, ChunkIndex(3));
    assert!(lacking.is_none_or(|part| part.lacking_bytes() > MIB as u64 / 2));
}

#[test]
fn an_index_that_is_lost_or_cut_off_is_made_again() {
    let releases = Releases::new();
    drop(releases.begin());
    let whole = fs::read(releases.index()).unwrap();
    for damage in [
        (|path: &Path| fs::remove_file(path).unwrap()) as fn(&Path),
        |path| fs::write(path, b"").unwrap(),
        |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(1_000).unwrap();
        },
    ] {
        releases.abandon();
        damage(&releases.index());
        let (stage, _) = releases.begin();
        assert_eq!(releases.lacks(&stage), [CHANGED.0]);
        assert!(fs::read(releases.index()).unwrap() == whole);
    }
}

#[test]
fn a_disk_that_is_changed_in_mid_stage_lacks_more_and_lends_no_false_byte() {
    let releases = Releases::new();
    let (stage, _) = releases.begin();
    let ranges = stage.lacking_ranges(releases.layer, CHANGED).unwrap();
    // somebody writes over a part of the old disk
    let first = releases.store.stage(releases.old.layout.digest()).unwrap();
    let bodies = first.files().bodies();
    let disk = bodies[0].disk_at(0).0;
    let behind = (MIB + 100 * PAGE) as u64;
    disk.write_all_at(&noise(20 * PAGE, 9), behind).unwrap();
    let part = stage.part(releases.layer, CHANGED).unwrap();
    let more = part.lacking();
    assert!(part.lacking_bytes() >= 19 * PAGE as u64, "{more:?}");
    assert!(ranges.iter().all(|range| {
        (range.start..range.end)
            .step_by(PAGE)
            .all(|page| more.iter().any(|range| range.contains(&page)))
    }));
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), Some(more));
    // what the part has is true
    let mut part = part;
    let chunk = &releases.raw()[MIB..2 * MIB];
    for range in part.lacking() {
        let bytes = &chunk[range.start as usize..range.end as usize];
        part.fill(range.start, bytes).unwrap();
    }
    assert!(part.whole().unwrap() == chunk);
    // all of it is overwritten
    let length = usize::try_from(releases.old.layout.disk_bytes()).unwrap();
    disk.write_all_at(&noise(length, 10), 0).unwrap();
    assert!(stage.part(releases.layer, CHANGED).is_none());
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
}

#[test]
fn a_disk_that_changed_before_gets_a_new_index_and_lends_no_false_byte() {
    let releases = Releases::new();
    drop(releases.begin());
    releases.abandon();
    let before = fs::read(releases.index()).unwrap();
    let first = releases.store.stage(releases.old.layout.digest()).unwrap();
    let bodies = first.files().bodies();
    let disk = bodies[0].disk_at(0).0;
    disk.write_all_at(&noise(2 * MIB, 9), 3 * MIB as u64)
        .unwrap();
    disk.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let (stage, _) = releases.begin();
    let lacks = releases.lacks(&stage);
    assert!(
        [1, 3, 4].iter().all(|chunk| lacks.contains(chunk)),
        "{lacks:?}"
    );
    assert!(!lacks.contains(&6), "{lacks:?}");
    assert!(fs::read(releases.index()).unwrap() != before);
}

#[test]
fn an_image_that_goes_in_mid_stage_lends_nothing_more() {
    let releases = Releases::new();
    let (stage, _) = releases.begin();
    assert!(stage.part(releases.layer, CHANGED).is_some());
    releases
        .store
        .abandon(*releases.old.layout.digest())
        .unwrap();
    assert!(!releases.index().exists());
    assert!(stage.part(releases.layer, CHANGED).is_none());
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
    assert_eq!(releases.lacks(&stage), [CHANGED.0]);
}

#[test]
fn a_recipe_that_is_lost_or_has_no_blocks_costs_their_use() {
    let releases = Releases::new();
    let name = releases.by.file.digest.hex().to_string();
    let path = super::super::recipes::directory(releases.home.path()).join(name);
    fs::remove_file(path).unwrap();
    let (stage, _) = releases.begin();
    assert_eq!(releases.lacks(&stage), (1..7).collect::<Vec<_>>());
    releases.abandon();

    let without = recipe_with(&releases.new, releases.layer, |content| {
        content.block_lengths.clear();
        content.block_prints.clear();
    });
    put(&releases.home, &without);
    let (stage, _) = begin_by(&releases.store, &releases.new, &without);
    assert_eq!(releases.lacks(&stage), (1..7).collect::<Vec<_>>());
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
}

#[test]
fn after_some_false_parts_a_stage_uses_no_blocks_any_more() {
    let releases = Releases::new();
    let (stage, _) = releases.begin();
    for _ in 1..crate::store::blocks::MAX_FALSE_PARTS {
        stage.part_was_false();
    }
    assert!(stage.part(releases.layer, CHANGED).is_some());
    stage.part_was_false();
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
    assert!(stage.part(releases.layer, CHANGED).is_none());
    // another stage begins anew: the blocks of another recipe may be true
    releases.abandon();
    let (stage, _) = releases.begin();
    assert!(stage.part(releases.layer, CHANGED).is_some());
}

#[test]
fn false_blocks_of_a_chunk_that_seems_to_be_here_are_counted_and_the_chunk_is_fetched() {
    let releases = Releases::with_false_blocks_in(ChunkIndex(3));
    let (stage, _) = releases.begin();
    assert_eq!(releases.lacks(&stage), [CHANGED.0, 3]);
    assert_eq!(stage.false_parts(), 1);
    assert_eq!(stage.lacking_ranges(releases.layer, ChunkIndex(3)), None);
}

#[test]
fn blocks_that_lie_are_refused_by_the_states() {
    let releases = Releases::new();
    // each block is said to be another one of the same layer
    let lying = recipe_with(&releases.new, releases.layer, |content| {
        content.block_prints.rotate_left(5 * 7);
    });
    put(&releases.home, &lying);
    let (stage, _) = begin_by(&releases.store, &releases.new, &lying);
    assert_eq!(releases.lacks(&stage), (1..7).collect::<Vec<_>>());
    // a doubted recipe's blocks aren't used either
    let known = || stage.known(releases.layer).unwrap();
    known().leave_recipe();
    for chunk in 0..7 {
        assert!(stage.part(releases.layer, ChunkIndex(chunk)).is_none());
    }
}

#[test]
fn a_recipe_goes_with_the_last_image_that_needs_it() {
    let releases = Releases::new();
    let directory = super::super::recipes::directory(releases.home.path());
    let names = || {
        let found = fs::read_dir(&directory).unwrap();
        let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<String>>()
    };
    let name = |by: &NamedRecipe| by.file.digest.hex().to_string();
    let first = releases.store.stage(releases.old.layout.digest()).unwrap();
    let old = first.recipe().unwrap().digest.hex().to_string();
    drop(releases.begin());
    let both = [old.clone(), name(&releases.by)].into();
    assert_eq!(names(), both);
    // it comes with the next order
    fs::write(directory.join(format!("{old}.part")), b"coming").unwrap();
    releases
        .store
        .abandon(*releases.new.layout.digest())
        .unwrap();
    assert_eq!(names(), [old.clone(), format!("{old}.part")].into());
    // the files of an image that is wanted are removed by somebody: the image is begun again by its recipe
    put(&releases.home, &releases.by);
    drop(releases.begin());
    fs::remove_dir_all(ours(&releases.home, &releases.new)).unwrap();
    assert_eq!(releases.store.presence(), []);
    assert!(names().contains(&name(&releases.by)));
    releases
        .store
        .abandon(*releases.old.layout.digest())
        .unwrap();
    assert_eq!(names(), [name(&releases.by)].into());
}

#[test]
fn an_index_that_has_no_room_is_not_made() {
    static ADMITTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let Releases {
        home,
        store,
        old,
        new,
        by,
        layer,
    } = Releases::new();
    drop(store);
    // whoever wants room for the index gets none: when a base is looked for, and when blocks are; the image's room, as
    // a clone and as a copy, lies between
    let space = |_: &Path| {
        let before = ADMITTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let free_bytes = if matches!(before, 0 | 3) { 0 } else { 1 << 40 };
        Ok(Space {
            total_bytes: 1 << 40,
            free_bytes,
        })
    };
    let with = Options { space, ..options() };
    let store = Store::open(home.path(), with).unwrap();
    // a start keeps the recipes of stages alone
    put(&home, &by);
    let releases = Releases {
        home,
        store,
        old,
        new,
        by,
        layer,
    };
    let (stage, _) = releases.begin();
    assert!(!releases.index().exists());
    assert_eq!(releases.lacks(&stage), (1..7).collect::<Vec<_>>());
}

#[test]
fn a_search_for_blocks_ends_in_time_or_when_nobody_wants_the_image() {
    let releases = Releases::new();
    let image = *releases.new.layout.digest();
    let all = (1..7).collect::<Vec<_>>();
    releases.store.give_up(image);
    let (stage, _) = releases.begin();
    let nothing = (0..7).collect::<Vec<_>>();
    assert_eq!(releases.lacks(&stage), nothing, "nobody wants it");
    assert!(!releases.index().exists(), "an index is made for nobody");
    releases.abandon();
    releases.store.take_up(&image);
    let (stage, _) = releases.begin();
    assert_eq!(releases.lacks(&stage), [CHANGED.0]);
    releases.abandon();

    let releases = Releases::with(
        Options {
            search: Duration::ZERO,
            ..options()
        },
        |_| {},
    );
    let (stage, _) = releases.begin();
    assert_eq!(releases.lacks(&stage), all, "there was no time");
    assert!(!releases.index().exists(), "there was no time");
    assert_eq!(stage.lacking_ranges(releases.layer, CHANGED), None);
}

/// `PARBAKE_SEARCH_BYTES=2147483648 cargo test --release -p agent --lib moved_by_a_page -- --nocapture` prints how long
/// a search takes that finds all of a disk.
#[test]
fn all_of_a_disk_that_moved_by_a_page_is_found_by_blocks() {
    const LAYER: usize = 256 * MIB;
    let bytes = std::env::var("PARBAKE_SEARCH_BYTES");
    let bytes = bytes.map_or(12 * MIB, |bytes| bytes.parse().unwrap());
    let layers = (0..bytes).step_by(LAYER).zip(1..);
    let raws = layers.map(|(at, seed)| noise(LAYER.min(bytes - at), seed));
    let raws: Vec<Vec<u8>> = raws.collect();
    let page = noise(PAGE, 0);
    let moved: Vec<Vec<u8>> = raws.iter().map(|raw| [&page[..], raw].concat()).collect();
    let image = |raws: &[Vec<u8>]| {
        let raws: Vec<&[u8]> = raws.iter().map(|raw| &raw[..]).collect();
        let sample = sample_of_layers(7, &raws, None);
        let by = recipe(&sample);
        (sample, by)
    };
    let ((old, by_old), (new, by)) = (image(&raws), image(&moved));
    let home = tempfile::tempdir().unwrap();
    let search = Duration::from_hours(1);
    let with = Options {
        search,
        ..options()
    };
    let store = Store::open(home.path(), with).unwrap();
    put(&home, &by_old);
    let (first, _) = begin_by(&store, &old, &by_old);
    fill(&first, &old);
    store.flush().unwrap();
    put(&home, &by);
    let started = std::time::Instant::now();
    let (_, found) = begin_by(&store, &new, &by);
    let took = started.elapsed();
    println!(
        "{found} of {} bytes found in {took:?}",
        new.layout.content_bytes()
    );
    // the chunk with the page, and the last one where a block of the old layer ends with it
    let lacking = new.layout.content_bytes() - found;
    assert!(lacking <= (2 * raws.len() * MIB + 200_000) as u64);
}

#[test]
fn an_image_whose_chunks_rotted_is_no_base_for_what_it_lost() {
    cloning::PRETENDED.set(true);
    let Releases {
        home,
        store,
        old,
        new,
        by,
        layer: _,
    } = Releases::new();
    let first = store.stage(old.layout.digest()).unwrap();
    install(&first, &[]).unwrap();
    // all but the last bytes of it are written over, and it is found damaged
    let bodies = first.files().bodies();
    let disk = bodies[0].disk_at(0).0;
    disk.write_all_at(&noise(old.disk.len() - PAGE, 9), 0)
        .unwrap();
    for content in old.contents.keys() {
        for chunk in first.held(*content).iter() {
            first.scrub(*content, chunk).unwrap();
        }
    }
    assert!(first.is_installed() && !first.is_complete());
    let (stage, _) = begin_by(&store, &new, &by);
    assert!(!stage.files().began_as_clone());
    fill(&stage, &new);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
    cloning::PRETENDED.set(false);
}

#[test]
fn what_an_unfinished_stage_lacks_is_not_searched_by_its_recipe() {
    cloning::PRETENDED.set(true);
    let raw = noise(2 * MIB, 1);
    let other = [&raw[..MIB + 40 * PAGE], &noise(100 * PAGE, 2)].concat();
    let (home, [first, second]) = (
        tempfile::tempdir().unwrap(),
        [raw, other].map(|raw| sample_of(7, &raw, 5_000, None)),
    );
    let store = open(&home);
    let begin = |sample| {
        let by = recipe(sample);
        put(&home, &by);
        begin_by(&store, sample, &by).0
    };
    let (unfinished, stage) = (begin(&first), begin(&second));
    assert!(!unfinished.directory().join(INDEX).exists());
    assert!(!stage.files().began_as_clone());
    cloning::PRETENDED.set(false);
}
