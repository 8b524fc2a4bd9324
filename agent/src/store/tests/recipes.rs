//! Stages with a recipe: what they take, and what they find on the disks of other images.

use super::*;
use crate::{
    platform::cloning,
    store::{
        alike::{self, Lacking},
        making::{MakeRecipeError, Making},
        place::Files as _,
        recipes as files,
    },
};

/// An image of one layer with these bytes.
fn image_of(raw: &[u8]) -> Sample {
    sample_of(7, raw, 5_000, None)
}

const MIB: usize = 1 << 20;

/// Two releases: of the second one's common layer one chunk is new, and the others lie elsewhere.
fn releases() -> (Sample, Sample) {
    let mut old = noise(4 * MIB + 100_000, 1);
    old[2 * MIB..3 * MIB].fill(0);
    let mut new = old.clone();
    new.copy_within(0..MIB, 3 * MIB);
    new[..MIB].copy_from_slice(&noise(MIB, 2));
    (image_of(&old), image_of(&new))
}

#[test]
fn what_another_image_has_anywhere_needs_no_transfer() {
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();

    let by = recipe(&new);
    let (second, copied) = begin_by(&store, &new, &by);
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let lacks: Vec<u32> = {
        let held = second.held(layer);
        (0..held.chunks())
            .filter(|chunk| !held.contains(ChunkIndex(*chunk)))
            .collect()
    };
    assert_eq!(lacks, [0], "only what no disk has");
    // zeros aren't copied
    let small = 100_000 + 5_000 + 70_000 + new.config.len();
    assert_eq!(copied, (2 * MIB + small) as u64);
    let (chunk, link, bytes) = links(&new.contents[&layer])[0];
    let arrived = (&host("mac-1"), None);
    second
        .write(layer, chunk, bytes, link, source("mac-1"), arrived)
        .unwrap();
    second.walk(layer).unwrap();
    assert!(second.is_closed(layer));
    store.flush().unwrap();
    drop((first, second, store));

    // a restart goes on with the recipe, if it is there; its absence costs nothing else
    let store = open(&home);
    let second = store.stage(new.layout.digest()).unwrap();
    assert_eq!(second.recipe(), Some(by.file));
    assert!(second.is_closed(layer));
}

#[test]
fn a_clone_is_compared_where_it_lies() {
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();
    let by = recipe(&new);
    // the second and the last chunk of each place of the layer, and the layer between both; the third is zeros
    let in_place = alike::Offsets::of(&new.layout, &by.recipe).in_image(&first);
    assert_eq!(in_place, 2 * (MIB as u64 + 100_000) + 5_000);

    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(&elsewhere);
    let (second, _) = begin_by(&other, &new, &by);
    let body = &second.files().bodies()[0];
    body.disk_at(0).0.write_all_at(&old.disk, 0).unwrap();
    let mut lacking = Lacking::of(&second);
    let mut go_on = || Ok::<_, WriteError>(());
    let copied = alike::copy(&second, &mut lacking, &first, true, &mut go_on).unwrap();
    // each chunk once, and zeros need no other disk
    assert_eq!(copied.in_place, MIB as u64 + 100_000 + 5_000);
    let mut disk = vec![0; new.disk.len()];
    body.disk_at(0).0.read_exact_at(&mut disk, 0).unwrap();
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let held = second.held(layer);
    for chunk in held.iter() {
        let from = chunk.0 as usize * MIB;
        let to = (from + MIB).min(4 * MIB + 100_000);
        assert!(disk[from..to] == new.disk[from..to], "chunk {chunk}");
    }
    assert!(!held.contains(ChunkIndex(0)));
}

#[test]
fn a_stage_with_a_recipe_takes_only_its_links_until_it_is_left() {
    let (home, (_, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (stage, _) = begin_by(&store, &new, &recipe(&new));
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let geometry = Geometry::new(new.contents[&layer].len() as u64).unwrap();
    let lie = vec![9; MIB];
    let invented = Link::forge(geometry, ChunkIndex(1), State::from_bytes(&[1; 32]), &lie);
    let write = || {
        let liar = (&host("liar"), None);
        stage.write(layer, ChunkIndex(1), &lie, invented, source("liar"), liar)
    };
    let refused = write().unwrap_err();
    let against = RejectLinkError::AgainstRecipe(ChunkIndex(1));
    assert!(
        matches!(&refused, WriteError::Rejected(error) if *error == against),
        "{refused}"
    );
    // its place is written with what the recipe says later
    assert!(!stage.held(layer).contains(ChunkIndex(1)));
    let known = || stage.known(layer).unwrap();
    assert!(known().recipe().is_some());
    assert!(known().leave_recipe());
    assert!(known().recipe().is_none());
    write().unwrap();
}

#[test]
fn a_recipe_in_doubt_or_contradicted_is_left_also_when_a_stage_goes_on() {
    let (home, (_, new)) = (tempfile::tempdir().unwrap(), releases());
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let by = recipe(&new);
    let begin = |store: &Store, by: &NamedRecipe, in_doubt: &[Digest]| {
        let in_doubt = in_doubt.iter().copied().collect();
        let (name, by) = ("ghcr.io/org/image:two".into(), Some((by, &in_doubt)));
        let begun = store.begin_by(&new.layout, &new.manifest, &[name], by);
        begun.unwrap().0
    };
    let goes_by = |stage: &Stage, content| stage.known(content).unwrap().recipe();

    let store = open(&home);
    let stage = begin(&store, &by, &[]);
    blocks::put(&home, &by);
    assert!(stage.known(layer).unwrap().leave_recipe());
    drop((stage, store));
    // the notes don't know that an earlier process left it
    let store = open(&home);
    let stage = store.stage(new.layout.digest()).unwrap();
    assert_eq!(goes_by(&stage, layer), Some(by.file.digest));
    let stage = begin(&store, &by, &[layer]);
    assert_eq!(goes_by(&stage, layer), None);
    assert!(
        stage
            .known(layer)
            .unwrap()
            .recipe_link(ChunkIndex(0))
            .is_none()
    );
    let other = new.layout.config().digest;
    assert_eq!(goes_by(&stage, other), Some(by.file.digest));

    // another recipe takes its place, with what is held and with what is in doubt
    let stage = begin(&store, &by, &[]);
    assert_eq!(goes_by(&stage, layer), Some(by.file.digest));
    let (chunk, link, bytes) = links(&new.contents[&layer])[1];
    let arrived = (&host("mac-1"), None);
    stage
        .write(layer, chunk, bytes, link, source("mac-1"), arrived)
        .unwrap();
    let second = recipe_with(&new, layer, |of| of.states[40] ^= 1);
    let stage = begin(&store, &second, &[other]);
    assert_eq!(
        (goes_by(&stage, layer), goes_by(&stage, other)),
        (None, None)
    );
}

#[test]
fn hosts_make_equal_recipes_of_equal_images_and_say_what_they_lack() {
    let (_, image) = releases();
    let by = recipe(&image);
    let lean = by.recipe.contents().map(|content| {
        let spec = image.layout.contents().into_iter();
        let spec = spec
            .into_iter()
            .find(|spec| spec.digest == *content.digest());
        let mut maker = Maker::of(&spec.unwrap());
        maker.take(&image.contents[content.digest()]).unwrap();
        maker.finish().unwrap()
    });
    let wanted = Recipe::new(&image.layout, lean).unwrap();
    for step in [1, 1_000] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (stage, _) = begin(&store, &image, &[TAG]);
        fill(&stage, &image);
        install(&stage, &[TAG]).unwrap();
        let mut making = Making::begin(stage.clone(), home.path()).unwrap();
        let file = loop {
            if let Some(file) = making.go_on(step).unwrap() {
                break file;
            }
        };
        let bytes = fs::read(making.path()).unwrap();
        assert_eq!(
            (Digest::of(&bytes), bytes.len() as u64),
            (file.digest, file.size)
        );
        assert_eq!(Recipe::parse(&bytes, &image.layout).unwrap(), wanted);
        let path = making.path().to_owned();
        drop(making);
        assert!(!path.exists(), "nothing stays of what isn't kept");

        // somebody wrote into the image
        let body = &stage.files().bodies()[0];
        body.disk_at(0).0.write_all_at(b"changed", 4_000).unwrap();
        let mut making = Making::begin(stage.clone(), home.path()).unwrap();
        let error = making.go_on(1_000).unwrap_err();
        assert!(matches!(error, MakeRecipeError::Damaged(_)), "{error}");
    }
}

#[test]
fn a_recipe_is_made_only_where_it_has_room_above_the_floor() {
    let (home, (_, image)) = (tempfile::tempdir().unwrap(), releases());
    let free = home.path().join("free");
    fs::write(&free, u64::MAX.to_string()).unwrap();
    let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
    let (stage, _) = begin(&store, &image, &[TAG]);
    fill(&stage, &image);
    install(&stage, &[TAG]).unwrap();
    let most = 2 * Recipe::max_bytes(&image.layout);
    for (bytes, has_room) in [(most - 1, false), (most, true)] {
        fs::write(&free, bytes.to_string()).unwrap();
        let begun = Making::begin(stage.clone(), home.path());
        assert_eq!(begun.is_ok(), has_room, "{begun:?}");
        let admitted = store.admit_recipe(image.layout.digest(), most);
        assert_eq!(admitted.is_ok(), has_room);
    }
}

#[test]
fn a_host_that_has_the_image_keeps_a_true_recipe_and_refuses_a_false_one() {
    let (home, (_, image)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (stage, _) = begin(&store, &image, &[TAG]);
    fill(&stage, &image);
    install(&stage, &[TAG]).unwrap();
    let layer = Digest::of(&image.disk[..4 * MIB + 100_000]);
    let lie = recipe_with(&image, layer, |of| of.states[40] ^= 1);
    let compared = stage.compare_recipe(&lie.file.digest, &lie.recipe);
    let error = compared.unwrap_err();
    assert!(
        error.is_false() && error.to_string().contains("chunk 1"),
        "{error}"
    );
    assert_eq!(stage.recipe(), None);
    let by = recipe(&image);
    stage.compare_recipe(&by.file.digest, &by.recipe).unwrap();
    store.keep_recipe(&stage, by.file).unwrap();
    assert_eq!(stage.recipe(), Some(by.file));
    assert_eq!(stage.proved_recipe(), Some(by.file));
    // what is only noted isn't proved
    store.keep_recipe(&stage, lie.file).unwrap();
    assert_eq!(stage.proved_recipe(), None);
}

#[test]
fn a_recipe_of_a_stage_that_was_removed_is_not_noted_with_the_next_one() {
    let (home, (_, image)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let file = recipe(&image).file;
    let (removed, _) = begin(&store, &image, &[TAG]);
    store.abandon(*image.layout.digest()).unwrap();
    let (stage, _) = begin(&store, &image, &[TAG]);
    let status = || fs::read(stage.directory().join(STATUS)).unwrap();
    let before = status();
    store.keep_recipe(&removed, file).unwrap_err();
    assert_eq!((status(), stage.recipe()), (before, None));
    store.keep_recipe(&stage, file).unwrap();
    assert_eq!(stage.recipe(), Some(file));
}

#[test]
fn a_recipe_that_can_not_be_noted_is_not_claimed() {
    let (home, (_, image)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (stage, _) = begin(&store, &image, &[TAG]);
    fs::remove_dir_all(stage.directory()).unwrap();
    store.keep_recipe(&stage, recipe(&image).file).unwrap_err();
    assert_eq!(stage.recipe(), None);
}

#[test]
fn a_file_of_a_host_that_is_no_recipe_of_the_image_is_refused_by_name() {
    let (home, (other, image)) = (tempfile::tempdir().unwrap(), releases());
    let directory = files::directory(home.path());
    fs::create_dir_all(&directory).unwrap();
    let whole = recipe(&image).recipe.encode();
    let of_other = recipe(&other).recipe.encode();
    let cut_off = whole[..whole.len() - 1].to_vec();
    let most = usize::try_from(Recipe::max_bytes(&image.layout)).unwrap();
    let huge = vec![0; most + 1];
    for (bytes, why) in [
        (of_other, "is of image"),
        (cut_off, "is cut off"),
        (huge, "at most"),
    ] {
        let name = Digest::of(&bytes);
        fs::write(directory.join(name.hex().to_string()), bytes).unwrap();
        let error = files::read(home.path(), &name, &image.layout).unwrap_err();
        assert!(
            error.is_false() && error.to_string().contains(why),
            "{error}"
        );
    }
}

/// A volume of 1 GiB, of which as much is free as stands in the home's file `free`.
pub(super) fn space(home: &Path) -> io::Result<Space> {
    let free = fs::read_to_string(home.join("free"))?;
    Ok(Space {
        total_bytes: 1 << 30,
        free_bytes: free.parse().map_err(io::Error::other)?,
    })
}

#[test]
fn a_clone_reserves_what_differs_and_a_copy_all_of_it() {
    let begin = |store: &Store, new: &Sample, by: &NamedRecipe| {
        let name = "ghcr.io/org/image:two".to_owned();
        let by = Some((by, &BTreeSet::new()));
        store.begin_by(&new.layout, &new.manifest, &[name], by)
    };
    let refused = |begun: Result<(Arc<Stage>, u64), BeginError>| match begun {
        Err(BeginError::NoRoom(error)) => error.need_bytes,
        other => panic!("{other:?}"),
    };
    // what two chunks at two places take, and the same with those that are in place in a clone
    let (two, all) = (4 * MIB as u64, 6 * MIB as u64 + 200_000 + 5_000);
    for (clones, rots, need) in [(true, false, two), (true, true, two), (false, false, all)] {
        cloning::PRETENDED.set(clones);
        let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
        let free = home.path().join("free");
        fs::write(&free, u64::MAX.to_string()).unwrap();
        let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
        let (first, _) = super::begin(&store, &old, &[TAG]);
        fill(&first, &old);
        install(&first, &[TAG]).unwrap();
        if rots {
            let bodies = first.files().bodies();
            let disk = bodies[0].disk_at(0).0;
            // the last chunk of the layer, at both places
            for at in [4 * MIB, 8 * MIB + 105_000] {
                disk.write_all_at(&[9; 10], at as u64).unwrap();
            }
        }
        let by = recipe(&new);
        fs::write(&free, "0").unwrap();
        let needed = refused(begin(&store, &new, &by));
        // the config, the nvram, the journal and the index
        let beside = needed - need;
        assert!((70_000..MIB as u64 + 100_000).contains(&beside), "{beside}");
        assert!(store.stage(new.layout.digest()).is_none());
        fs::write(&free, needed.to_string()).unwrap();
        let begun = begin(&store, &new, &by);
        let stage = store.stage(new.layout.digest()).unwrap();
        assert_eq!(stage.files().began_as_clone(), clones);
        // what lies in place takes nothing more, but what has to be written over does
        let lacks = 2 * (MIB as u64 + if rots { 100_000 } else { 0 });
        let outstanding = stage.outstanding_bytes();
        assert!(
            (lacks..lacks + beside + 1).contains(&outstanding),
            "{outstanding}"
        );
        drop(begun);
        fill(&stage, &new);
        assert!(stage.outstanding_bytes() <= beside);
        install(&stage, &[]).unwrap();
        assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
        cloning::PRETENDED.set(false);
    }
}

#[test]
fn a_base_that_has_less_than_its_notes_say_ends_in_no_room() {
    cloning::PRETENDED.set(true);
    let (home, (old, _)) = (tempfile::tempdir().unwrap(), releases());
    // all of the second release is in the first one, at its place
    let new = image_of(&old.disk[..4 * MIB]);
    let free = home.path().join("free");
    fs::write(&free, u64::MAX.to_string()).unwrap();
    let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();
    let bodies = first.files().bodies();
    let disk = bodies[0].disk_at(0).0;
    disk.write_all_at(&noise(2 * MIB, 9), 0).unwrap();
    let by = recipe(&new);
    let name = "ghcr.io/org/image:two".to_owned();
    let begin = || {
        let by = Some((&by, &BTreeSet::new()));
        store.begin_by(&new.layout, &new.manifest, std::slice::from_ref(&name), by)
    };
    fs::write(&free, "0").unwrap();
    let Err(BeginError::NoRoom(expected)) = begin() else {
        panic!("there is no room");
    };
    fs::write(&free, expected.need_bytes.to_string()).unwrap();
    let Err(BeginError::NoRoom(found)) = begin() else {
        panic!("more is lacking than there is room for");
    };
    assert!(
        found.need_bytes > expected.need_bytes,
        "{found:?} {expected:?}"
    );
    // it goes on by itself
    fs::write(&free, found.need_bytes.to_string()).unwrap();
    let (stage, _) = begin().unwrap();
    fill(&stage, &new);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
    cloning::PRETENDED.set(false);
}

/// A second release that began as a clone of the first, here in a new store.
fn cloned() -> (TempDir, Store, Sample, NamedRecipe) {
    cloning::PRETENDED.set(true);
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    let store = open(&home);
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();
    let by = recipe(&new);
    let (stage, _) = begin_by(&store, &new, &by);
    assert!(stage.files().began_as_clone());
    (home, store, new, by)
}

/// Writes the chunk that no disk has. Returns how many bytes that wrote.
fn write_new(stage: &Stage, new: &Sample) -> u64 {
    let before = stage.files().written_bytes();
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    let (chunk, link, bytes) = links(&new.contents[&layer])[0];
    let arrived = (&host("mac-1"), None);
    stage
        .write(layer, chunk, bytes, link, source("mac-1"), arrived)
        .unwrap();
    stage.files().written_bytes() - before
}

#[test]
fn pages_that_lie_in_a_clone_are_not_written_until_a_sync_fails() {
    use crate::store::sync::failing::SYNCS_LEFT;
    let (home, store, new, _) = cloned();
    let stage = store.stage(new.layout.digest()).unwrap();
    store.flush().unwrap();
    // half of each place has its bytes already
    let bodies = stage.files().bodies();
    let disk = bodies[0].disk_at(0).0;
    for place in [0, 4 * MIB + 105_000] {
        disk.write_all_at(&new.disk[..MIB / 2], place as u64)
            .unwrap();
    }
    let halves = write_new(&stage, &new);
    let page = 4096;
    assert!(
        (MIB as u64..=MIB as u64 + 2 * page).contains(&halves),
        "{halves}"
    );
    // what a failed sync covered needn't be on the disk, though it is read there: all of it is written again
    SYNCS_LEFT.set(0);
    stage.flush().unwrap_err();
    assert_eq!(write_new(&stage, &new), 2 * MIB as u64);
    fill(&stage, &new);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
    cloning::PRETENDED.set(false);
}

#[test]
fn a_clone_that_a_crash_leaves_is_gone_on_with_and_written_whole() {
    for flushed in [false, true] {
        let (home, store, new, by) = cloned();
        let stage = store.stage(new.layout.digest()).unwrap();
        write_new(&stage, &new);
        if flushed {
            store.flush().unwrap();
        }
        drop((stage, store));
        let store = open(&home);
        let (stage, _) = begin_by(&store, &new, &by);
        let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
        assert_eq!(stage.held(layer).contains(ChunkIndex(0)), flushed);
        // this process doesn't know what the one before it synced
        let written = write_new(&stage, &new);
        assert_eq!(written, if flushed { 0 } else { 2 * MIB as u64 });
        fill(&stage, &new);
        install(&stage, &[]).unwrap();
        assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
        cloning::PRETENDED.set(false);
    }
}

/// Two images with these common layers: the first one is here, and a stage of the second one elsewhere.
struct Apart {
    first: Arc<Stage>,
    second: Arc<Stage>,
    /// The second one's common layer.
    layer: Digest,
    _stores: [(Store, TempDir); 2],
}

impl Apart {
    /// The second one's recipe has this chunk's fingerprint for each chunk of the layer, if any.
    fn new(old: &[u8], new: &[u8], print: Option<&[u8]>) -> Self {
        let (old, new) = (image_of(old), image_of(new));
        let stores = [(); 2].map(|()| {
            let home = tempfile::tempdir().unwrap();
            (open(&home), home)
        });
        let (first, _) = begin(&stores[0].0, &old, &[TAG]);
        fill(&first, &old);
        let layer = new.layout.layers()[0].raw.unwrap();
        let by = recipe_with(&new, layer, |content| print_all(content, print));
        let (second, _) = begin_by(&stores[1].0, &new, &by);
        Self {
            first,
            second,
            layer,
            _stores: stores,
        }
    }

    fn held(&self) -> usize {
        self.second.held(self.layer).iter().count()
    }
}

fn print_all(content: &mut RecipeContent, print: Option<&[u8]>) {
    if let Some(print) = print {
        let chunks = content.fingerprints.len() / 16;
        content.fingerprints = proto::Fingerprint::of(print).0.repeat(chunks);
    }
}

#[test]
fn a_false_fingerprint_is_forgotten_at_the_first_chunk_that_it_isnt_of() {
    let (repeated, other) = (noise(MIB, 1), noise(3 * MIB + 100_000, 2));
    let old = repeated.repeat(3);
    let apart = Apart::new(&old, &other, Some(&repeated));
    let mut lacking = Lacking::of(&apart.second);
    let mut asked = 0;
    let mut go_on = || {
        asked += 1;
        Ok::<_, WriteError>(())
    };
    let (first, second) = (&apart.first, &apart.second);
    alike::copy(second, &mut lacking, first, false, &mut go_on).unwrap();
    assert!(lacking.is_empty(), "nothing more is looked for");
    assert_eq!(apart.held(), 0);
    // the config, the other layer and the NVRAM are the same: two for each, and five for the false one
    assert_eq!(asked, 3 * 2 + 4 + 1);
}

#[test]
fn a_chunk_for_many_places_is_taken_until_the_stage_ends() {
    let repeated = noise(MIB, 1);
    let apart = Apart::new(&repeated, &repeated.repeat(5), None);
    let mut lacking = Lacking::of(&apart.second);
    let mut go_on = || match apart.held() {
        2 => Err(WriteError::Gone),
        _ => Ok(()),
    };
    let (first, second) = (&apart.first, &apart.second);
    let ended = alike::copy(second, &mut lacking, first, false, &mut go_on);
    assert!(matches!(ended, Err(WriteError::Gone)), "{ended:?}");
    assert_eq!(apart.held(), 2);
}

#[test]
fn zeros_need_no_disk_and_end_with_a_false_one_or_when_nobody_waits() {
    let raw = [noise(MIB, 1), vec![0; 2 * MIB], noise(100_000, 2)].concat();
    let (sample, layer) = (image_of(&raw), Digest::of(&raw));
    let zeros = vec![0; MIB];
    for (print, waits, expected) in [
        (None, true, 2),
        (None, false, 0),
        (Some(&zeros[..]), true, 0),
    ] {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        if !waits {
            store.give_up(*sample.layout.digest());
        }
        let by = recipe_with(&sample, layer, |content| print_all(content, print));
        let (stage, local) = begin_by(&store, &sample, &by);
        assert_eq!(stage.held(layer).iter().count(), expected);
        assert_eq!(local, 0, "they lay on no disk here");
    }
}

/// A volume, the first of two releases in a store that says how much is free, and the second one's recipe.
fn one_release(free: &str) -> (TempDir, Store, Sample, NamedRecipe) {
    cloning::PRETENDED.set(true);
    let (home, (old, new)) = (tempfile::tempdir().unwrap(), releases());
    fs::write(home.path().join("free"), free).unwrap();
    let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
    let (first, _) = begin(&store, &old, &[TAG]);
    fill(&first, &old);
    install(&first, &[TAG]).unwrap();
    let by = recipe(&new);
    (home, store, new, by)
}

pub(super) fn try_begin(
    store: &Store,
    new: &Sample,
    by: &NamedRecipe,
) -> Result<(Arc<Stage>, u64), BeginError> {
    let (name, in_doubt) = ("ghcr.io/org/image:two".into(), BTreeSet::new());
    store.begin_by(&new.layout, &new.manifest, &[name], Some((by, &in_doubt)))
}

#[test]
fn a_clone_that_was_cut_off_before_it_was_compared_begins_anew() {
    let (home, store, new, by) = one_release(&u64::MAX.to_string());
    store.stop();
    try_begin(&store, &new, &by).unwrap_err();
    let stage = store.stage(new.layout.digest()).unwrap();
    assert!(stage.files().began_as_clone());
    drop((stage, store));
    // all that is new has room, and what lies in the clone hasn't
    let free = (5 * MIB + 100_000).to_string();
    fs::write(home.path().join("free"), free).unwrap();
    let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
    let (stage, _) = try_begin(&store, &new, &by).unwrap();
    assert!(stage.files().began_as_clone());
    // one chunk of the other disk lies at other offsets
    let written = stage.files().written_bytes();
    assert!(
        (2 * MIB as u64..3 * MIB as u64).contains(&written),
        "{written}"
    );
    write_new(&stage, &new);
    store.flush().unwrap();
    drop((stage, store));
    // one that has more than a new clone would have goes on
    let store = Store::open(home.path(), Options { space, ..options() }).unwrap();
    let (stage, _) = try_begin(&store, &new, &by).unwrap();
    assert!(!stage.files().began_as_clone());
    let layer = Digest::of(&new.disk[..4 * MIB + 100_000]);
    assert!(stage.held(layer).contains(ChunkIndex(0)));
    fill(&stage, &new);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &new), &new);
    cloning::PRETENDED.set(false);
}

#[test]
fn after_a_beginning_that_failed_all_that_is_lacking_is_reserved() {
    let (_home, store, new, by) = one_release(&u64::MAX.to_string());
    let hook = at_steps(|step| match step {
        "the recipe is taken" => Err(io::Error::other("as a full volume")),
        _ => Ok(()),
    });
    try_begin(&store, &new, &by).unwrap_err();
    drop(hook);
    let stage = store.stage(new.layout.digest()).unwrap();
    assert_eq!(stage.recipe(), None);
    assert!(stage.outstanding_bytes() >= new.disk.len() as u64);
    cloning::PRETENDED.set(false);
}
