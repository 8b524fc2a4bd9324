//! Chunks that images here hold, and a stage without a recipe looks for when their links are told.

use super::{recipes::space, *};

const MIB: usize = 1 << 20;

/// Two images with no layer in common, whose disks have all but the second chunk alike.
struct World {
    home: TempDir,
    store: Store,
    old: Sample,
    new: Sample,
    /// The new one's layer.
    layer: Digest,
}

impl World {
    fn new() -> Self {
        let mut raw = noise(3 * MIB + 100_000, 1);
        raw[2 * MIB..3 * MIB].fill(0);
        let mut changed = raw.clone();
        changed[MIB..2 * MIB].copy_from_slice(&noise(MIB, 2));
        let (old, new) = (
            sample_of(7, &raw, 5_000, None),
            sample_of(8, &changed, 6_000, None),
        );
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("free"), u64::MAX.to_string()).unwrap();
        let with = Options { space, ..options() };
        let store = Store::open(home.path(), with).unwrap();
        let (first, _) = begin(&store, &old, &[TAG]);
        fill(&first, &old);
        install(&first, &[TAG]).unwrap();
        store.flush().unwrap();
        Self {
            layer: Digest::of(&changed),
            home,
            store,
            old,
            new,
        }
    }

    /// The chunks of the layer that are found here.
    fn finds(&self, stage: &Stage) -> Vec<u32> {
        let raw = &self.new.contents[&self.layer];
        let found = links(raw).into_iter().filter(|(chunk, link, bytes)| {
            let found = stage.find_here(self.layer, *chunk, link);
            assert!(found.as_ref().is_none_or(|found| found == bytes));
            assert!(found.is_none() || stage.may_be_here(self.layer, link));
            found.is_some()
        });
        found.map(|(chunk, ..)| chunk.0).collect()
    }
}

#[test]
fn chunks_that_another_image_holds_are_found_by_their_links_and_zeros_arent() {
    let world = World::new();
    let (stage, copied) = begin(&world.store, &world.new, &[]);
    assert_eq!(copied, 0);
    assert_eq!(world.finds(&stage), [0, 3]);
    // an agent that starts again finds them when the image is ordered again
    let World {
        home,
        store,
        new,
        old,
        layer,
    } = world;
    store.flush().unwrap();
    drop((stage, store));
    let store = open(&home);
    let (stage, _) = begin(&store, &new, &[]);
    let world = World {
        home,
        store,
        old,
        new,
        layer,
    };
    assert_eq!(world.finds(&stage), [0, 3]);
}

#[test]
fn an_image_that_rots_or_goes_lends_nothing_and_never_a_false_byte() {
    let world = World::new();
    let (stage, _) = begin(&world.store, &world.new, &[]);
    let directory = image_dir(&world.home, "ghcr.io/org/image", &world.old);
    let disk = directory.join(cache::DISK);
    let disk = fs::File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&[7; 5], 100).unwrap();
    assert_eq!(world.finds(&stage), [3]);
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(world.store.presence(), []);
    assert_eq!(world.finds(&stage), [0; 0]);
}

#[test]
fn after_many_false_fingerprints_nothing_more_is_looked_for() {
    let world = World::new();
    let (stage, _) = begin(&world.store, &world.new, &[]);
    let all = links(&world.new.contents[&world.layer]);
    let ((_, first, _), (second, lie, _)) = (all[0], all[1]);
    let lie = Link {
        fingerprint: first.fingerprint,
        ..lie
    };
    for _ in 0..64 {
        assert!(stage.may_be_here(world.layer, &lie));
        assert_eq!(stage.find_here(world.layer, second, &lie), None);
    }
    assert!(!stage.may_be_here(world.layer, &lie));
    assert_eq!(world.finds(&stage), [0; 0]);
    // another beginning looks anew
    let (stage, _) = begin(&world.store, &world.new, &[]);
    assert_eq!(world.finds(&stage), [0, 3]);
}
