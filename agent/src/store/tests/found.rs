//! Disks that parbake didn't build: they are read once, lend their bytes to new images, and may change at any time.

use std::{
    cell::Cell,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use super::{blocks::put, *};
use crate::{
    platform::cloning,
    store::{
        found::FoundDisk,
        place::Files as _,
        survey::{Survey, Surveyed},
        tree::INDEX,
    },
};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// The chunk into which a page was inserted.
const CHANGED: u32 = 1;

/// Two releases, of which tart pulled the first: the second one's common layer has a page more in its second chunk.
struct World {
    home: TempDir,
    store: Arc<Store>,
    old: Sample,
    new: Sample,
    by: NamedRecipe,
    layer: Digest,
}

impl World {
    fn new() -> Self {
        let raw = noise(6 * MIB + 100_000, 1);
        let at = MIB + 40 * PAGE;
        let moved = [&raw[..at], &noise(PAGE, 2), &raw[at..]].concat();
        let home = tempfile::tempdir().unwrap();
        let new = sample_of(7, &moved, 5_000, None);
        let by = recipe(&new);
        let store = Arc::new(open(&home));
        put(&home, &by);
        Self {
            store,
            old: sample_of(7, &raw, 5_000, None),
            new,
            by,
            layer: Digest::of(&moved),
            home,
        }
    }

    /// Puts the first release where tart keeps what it pulled, with the manifest as tart writes it.
    fn pull(&self) -> PathBuf {
        let directory = image_dir(&self.home, "ghcr.io/org/image", &self.old);
        fs::create_dir_all(&directory).unwrap();
        let mut manifest = self.old.manifest.clone();
        manifest.push(b'\n');
        fs::write(directory.join(cache::MANIFEST), manifest).unwrap();
        fs::write(directory.join(cache::DISK), &self.old.disk).unwrap();
        directory.join(cache::DISK)
    }

    /// Puts the first release's disk into a VM that rests.
    fn run_once(&self) -> PathBuf {
        let directory = self.home.path().join("vms/runner");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(cache::CONFIG), "{}").unwrap();
        let disk = directory.join(cache::DISK);
        fs::write(&disk, &self.old.disk).unwrap();
        let before = SystemTime::now() - Duration::from_hours(2);
        let file = fs::File::options().write(true).open(&disk).unwrap();
        file.set_modified(before).unwrap();
        disk
    }

    /// Reads until nothing is left. Returns what is known then, and the number of steps.
    fn read(&self, survey: &Survey) -> (Surveyed, usize) {
        for steps in 0.. {
            let surveyed = survey.step(SystemTime::now()).unwrap();
            if !surveyed.more {
                return (surveyed, steps);
            }
        }
        unreachable!("the loop has no end")
    }

    /// Reads a common layer at a time.
    fn survey(&self) -> Survey {
        Survey::by_chunks(self.store.clone(), 7)
    }

    /// The only disk on which there are notes.
    fn found(&self) -> FoundDisk {
        let home = fs::canonicalize(self.home.path()).unwrap();
        let mut found = FoundDisk::known(&home);
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn begin(&self) -> Arc<Stage> {
        // who gave the image up removed its recipe
        put(&self.home, &self.by);
        begin_by(&self.store, &self.new, &self.by).0
    }

    fn abandon(&self) {
        self.store.abandon(*self.new.layout.digest()).unwrap();
    }

    /// The chunks of the common layer that aren't held. What is held is what the disk has to have.
    fn lacks(&self, stage: &Stage) -> Vec<u32> {
        let raw = &self.new.contents[&self.layer];
        let held = stage.held(self.layer);
        for chunk in held.iter() {
            let read = stage.read(self.layer, chunk).unwrap().unwrap().bytes;
            let from = chunk.0 as usize * MIB;
            assert!(read == raw[from..from + read.len()], "chunk {chunk}");
        }
        let lacking = |chunk: &u32| !held.contains(ChunkIndex(*chunk));
        (0..held.chunks()).filter(lacking).collect()
    }

    /// Brings what is lacking, and installs the second release.
    fn finish(&self, stage: &Stage) {
        fill(stage, &self.new);
        install(stage, &[]).unwrap();
        assert_installed(
            &image_dir(&self.home, "ghcr.io/org/image", &self.new),
            &self.new,
        );
    }
}

/// All of the common layer but what moved by nothing.
const ALL: [u32; 7] = [0, 1, 2, 3, 4, 5, 6];

#[test]
fn what_tart_pulled_lends_its_bytes_once_it_is_read() {
    let world = World::new();
    world.pull();
    let stage = world.begin();
    assert_eq!(world.lacks(&stage), ALL, "nothing is known of it yet");
    world.abandon();
    let survey = world.survey();
    let (surveyed, steps) = world.read(&survey);
    assert_eq!(surveyed.disks, 1);
    assert_eq!(surveyed.disk_bytes, world.old.disk.len() as u64);
    assert!(
        surveyed.notes_bytes > 0 && surveyed.notes_bytes < 64 << 10,
        "{surveyed:?}"
    );
    // of 15 chunks
    assert_eq!(steps, 3);
    let stage = world.begin();
    assert_eq!(world.lacks(&stage), [CHANGED]);
    let part = stage.part(world.layer, ChunkIndex(CHANGED)).unwrap();
    // a block of 15 pages at most, which the page was put into, and the page
    assert!(part.lacking_bytes() <= 17 * PAGE as u64);
    world.finish(&stage);
    // what we built needs no reading
    assert_eq!(world.read(&survey).1, 0);
}

#[test]
fn what_tart_pulled_lends_its_bytes_without_a_manifest_too() {
    let world = World::new();
    let disk = world.pull();
    fs::remove_file(disk.with_file_name(cache::MANIFEST)).unwrap();
    let survey = world.survey();
    let (surveyed, _) = world.read(&survey);
    assert_eq!(surveyed.disks, 1);
    assert_eq!(surveyed.disk_bytes, world.old.disk.len() as u64);
    let stage = world.begin();
    // nobody knows that a layer ends in the middle of a page
    assert_eq!(world.lacks(&stage), [CHANGED, 6]);
    world.finish(&stage);
}

#[test]
fn a_machines_disk_is_read_where_it_rests_and_forgotten_where_it_changes() {
    let world = World::new();
    let disk = world.run_once();
    let survey = world.survey();
    let (surveyed, _) = world.read(&survey);
    assert_eq!(surveyed.disks, 1);
    let stage = world.begin();
    // nobody knows that a layer ends in the middle of a page
    assert_eq!(world.lacks(&stage), [CHANGED, 6]);
    // the VM writes in mid-stage: nothing of its disk counts any more
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.write_all_at(b"written", 40).unwrap();
    assert!(stage.part(world.layer, ChunkIndex(CHANGED)).is_none());
    world.abandon();
    let stage = world.begin();
    assert_eq!(world.lacks(&stage), ALL);
    world.abandon();
    // it doesn't rest, so it isn't read again yet
    assert_eq!(world.read(&survey).0, Surveyed::default());
    assert!(FoundDisk::known(&fs::canonicalize(world.home.path()).unwrap()).is_empty());
    let later = SystemTime::now() + Duration::from_hours(2);
    assert!(survey.step(later).unwrap().more);
}

#[test]
fn reading_goes_on_after_a_restart_and_over_what_a_crash_cut_off() {
    for cut in [0, 1, 40_000, u64::MAX] {
        let world = World::new();
        world.pull();
        let survey = world.survey();
        let first = survey.step(SystemTime::now()).unwrap();
        let second = survey.step(SystemTime::now()).unwrap();
        assert!(first.more && second.left_bytes < first.left_bytes);
        drop(survey);
        let found = world.found();
        assert!(found.is_begun() && !found.is_read());
        let notes = fs::read_dir(world.home.path().join(".parbake/disks"));
        let log = notes.unwrap().next().unwrap().unwrap().path().join("scan");
        let length = fs::metadata(&log).unwrap().len();
        let file = fs::File::options().write(true).open(&log).unwrap();
        file.set_len(length.saturating_sub(cut)).unwrap();
        let (surveyed, steps) = world.read(&world.survey());
        assert_eq!(surveyed.disks, 1);
        // the log has 14 of 15 chunks, in records of seven, one and six, of which the last one is lost, or all
        let left = if cut < 2 { 1 } else { 3 };
        assert_eq!(steps, left, "{cut}");
        assert_eq!(world.lacks(&world.begin()), [CHANGED], "{cut}");
    }
}

#[test]
fn a_disk_whose_reading_failed_is_tried_again_after_an_hour_and_what_was_read_stays() {
    let world = World::new();
    world.pull();
    let now = SystemTime::now();
    let first = world.survey().step(now).unwrap();
    assert!(first.more);
    let notes = world.home.path().join(".parbake/disks");
    let aside = world.home.path().join("aside");
    // no notes can be written for a while
    fs::rename(&notes, &aside).unwrap();
    fs::write(&notes, "").unwrap();
    let survey = world.survey();
    assert_eq!(survey.step(now).unwrap().left_bytes, 0);
    fs::remove_file(&notes).unwrap();
    fs::rename(&aside, &notes).unwrap();
    let minutes = |minutes| now + Duration::from_mins(minutes);
    for minute in [0, 1, 59] {
        assert_eq!(survey.step(minutes(minute)).unwrap(), Surveyed::default());
    }
    let found = FoundDisk::known(&fs::canonicalize(world.home.path()).unwrap());
    assert!(found.len() == 1 && found[0].is_begun());
    let next = survey.step(minutes(60)).unwrap();
    assert!(next.more && next.left_bytes < first.left_bytes, "{next:?}");
    assert_eq!(world.read(&survey).0.disks, 1);
}

#[test]
fn reading_gives_way_before_each_chunk_and_while_its_notes_are_made_and_goes_on() {
    let interrupted = || io::Error::new(io::ErrorKind::Interrupted, "staging");
    let world = World::new();
    world.pull();
    let survey = world.survey();
    survey.set_may_read(false);
    for _ in 0..2 {
        let surveyed = survey.step(SystemTime::now()).unwrap();
        assert!(surveyed.more && surveyed.left_bytes == 0);
    }
    survey.set_may_read(true);
    let first = survey.step(SystemTime::now()).unwrap();
    survey.set_may_read(false);
    let second = survey.step(SystemTime::now()).unwrap();
    assert_eq!(first, second);
    assert!(first.more && first.left_bytes < world.old.disk.len() as u64);
    drop(survey);
    // from the beginning, a step at a time
    let notes = fs::read_dir(world.home.path().join(".parbake/disks"));
    let notes = notes.unwrap().next().unwrap().unwrap().path();
    fs::remove_file(notes.join("scan")).unwrap();
    let (home, disk) = (fs::canonicalize(world.home.path()).unwrap(), world.found());
    let step = |calls: usize| {
        let mut reading = disk.begin(&home).unwrap();
        let left = Cell::new(calls);
        let go_on = || match left.get() {
            0 => Err(interrupted()),
            more => {
                left.set(more - 1);
                Ok(())
            }
        };
        let done = reading.step(100, &go_on);
        if let Err(error) = &done {
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            assert!(disk.is_begun() && !disk.is_read());
            let left = fs::read_dir(&notes).unwrap().count();
            assert_eq!(left, 2, "about.json and scan");
        }
        (done.is_ok(), reading.left_bytes())
    };
    let all = world.old.disk.len() as u64;
    for calls in 0..7 {
        assert_eq!(step(calls), (false, all));
    }
    // what had been read isn't read again
    assert!(step(7).1 < all);
    assert_eq!(step(8), (false, 0));
    // the blocks of three records are counted, and then sorted
    for calls in 0..6 {
        assert_eq!(step(calls), (false, 0));
    }
    assert_eq!(step(6), (true, 0));
    assert_eq!(world.lacks(&world.begin()), [CHANGED]);
}

#[test]
fn a_found_disk_is_open_while_it_is_searched_and_not_while_the_stage_fills() {
    let world = World::new();
    let disk = world.pull();
    world.read(&world.survey());
    let inode = fs::metadata(&disk).unwrap().ino();
    let is_open = move || {
        let own = std::process::id();
        let open = fs::read_dir(format!("/proc/{own}/fd")).unwrap().flatten();
        let mut found = open.filter_map(|file| fs::metadata(file.path()).ok());
        found.any(|found| found.ino() == inode)
    };
    let steps = Rc::new(Cell::new((0, 0)));
    let hook = {
        let steps = steps.clone();
        at_steps(move |step| {
            let (copying, open) = steps.get();
            if step == "before a chunk is copied" {
                steps.set((copying + 1, open + u32::from(is_open())));
            }
            Ok(())
        })
    };
    let stage = world.begin();
    drop(hook);
    let (copying, open) = steps.get();
    // not before the zeros
    assert!(copying > 8 && open > 8, "{open} of {copying}");
    assert!(!is_open());
    // its blocks are read all the same, and it may go
    assert!(stage.part(world.layer, ChunkIndex(CHANGED)).is_some());
    assert!(!is_open());
    fs::remove_file(&disk).unwrap();
    assert!(stage.part(world.layer, ChunkIndex(CHANGED)).is_none());
    world.finish(&stage);
}

#[test]
fn holes_cost_no_steps_and_their_disk_is_read() {
    let world = World::new();
    let disk = world.run_once();
    let file = fs::File::options().write(true).open(&disk).unwrap();
    let rested = file.metadata().unwrap().modified().unwrap();
    // 8 GiB of a hole behind the data, and one chunk behind that
    let behind = world.old.disk.len().next_multiple_of(MIB) as u64 + (8 << 30);
    file.write_all_at(&noise(MIB, 5), behind).unwrap();
    file.set_modified(rested).unwrap();
    let survey = world.survey();
    let (surveyed, steps) = world.read(&survey);
    assert_eq!(
        (surveyed.disks, surveyed.disk_bytes),
        (1, behind + MIB as u64)
    );
    // as many as without the hole, and one for the last chunk
    assert!(steps <= 3, "{steps}");
    assert_eq!(world.lacks(&world.begin()), [CHANGED, 6]);
    let mut prints = 0;
    let zeros = proto::Fingerprint::of(&vec![0; MIB]);
    let read = world.found().each_print(&mut |print, _, _| {
        prints += u64::from(print == zeros);
        Ok::<_, io::Error>(())
    });
    read.unwrap().unwrap();
    assert_eq!(prints, 8 << 10);
}

#[test]
fn an_image_whose_recipe_has_no_blocks_or_is_lost_is_read() {
    for lost in [false, true] {
        let world = World::new();
        let whole = recipe(&world.old);
        let by = match lost {
            true => whole.clone(),
            false => recipe_with_all(&world.old, |content| {
                content.block_lengths.clear();
                content.block_prints.clear();
            }),
        };
        put(&world.home, &by);
        let (stage, _) = begin_by(&world.store, &world.old, &by);
        fill(&stage, &world.old);
        install(&stage, &[]).unwrap();
        let recipe = crate::store::recipes::directory(world.home.path());
        let recipe = recipe.join(by.file.digest.hex().to_string());
        if lost {
            fs::remove_file(&recipe).unwrap();
        }
        let survey = world.survey();
        assert_eq!(world.read(&survey).0.disks, 1);
        assert_eq!(world.lacks(&world.begin()), [CHANGED]);
        world.abandon();
        // one that has them comes: the disk needs no notes any more
        put(&world.home, &whole);
        world.store.keep_recipe(&stage, whole.file).unwrap();
        assert_eq!(world.read(&survey), (Surveyed::default(), 0));
        assert_eq!(world.lacks(&world.begin()), [CHANGED]);
    }
}

#[test]
fn notes_that_are_wrong_cost_a_fetch_and_never_a_byte() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("prints of other chunks", |notes| {
            let mut prints = fs::read(notes.join("prints")).unwrap();
            let start = prints.len() - 16 * 15;
            prints[start..].rotate_left(16);
            fs::write(notes.join("prints"), prints).unwrap();
        }),
        ("prints that are cut off", |notes| {
            let prints = fs::read(notes.join("prints")).unwrap();
            fs::write(notes.join("prints"), &prints[..prints.len() - 1]).unwrap();
        }),
        ("blocks elsewhere", |notes| {
            let path = notes.join(INDEX);
            let mut index = fs::read(&path).unwrap();
            let entries = u32::from_le_bytes(index[72..76].try_into().unwrap()) as usize;
            let start = index.len() - 9 * entries;
            for entry in index[start..].chunks_mut(9) {
                entry[8] ^= 1;
            }
            fs::write(&path, index).unwrap();
        }),
        ("no index", |notes| {
            fs::remove_file(notes.join(INDEX)).unwrap();
        }),
        ("nonsense", |notes| {
            fs::write(notes.join("about.json"), "{").unwrap()
        }),
    ];
    for (what, damage) in damages {
        let world = World::new();
        world.pull();
        world.read(&world.survey());
        let notes = fs::read_dir(world.home.path().join(".parbake/disks"));
        damage(&notes.unwrap().next().unwrap().unwrap().path());
        let stage = world.begin();
        let lacks = world.lacks(&stage);
        assert!(lacks.contains(&CHANGED), "{what}: {lacks:?}");
        world.finish(&stage);
    }
}

#[test]
fn a_stage_begins_as_a_clone_of_a_found_disk_and_its_bytes_are_compared() {
    static CLONED: AtomicBool = AtomicBool::new(false);
    for changed in [false, true] {
        cloning::PRETENDED.set(true);
        let world = World::new();
        let disk = world.pull();
        world.read(&world.survey());
        if changed {
            // somebody writes to the disk, and its inode, size and time stay what they were
            let file = fs::File::options().write(true).open(&disk).unwrap();
            let times = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(&noise(MIB, 8), 0).unwrap();
            file.set_modified(times).unwrap();
        }
        let stage = world.begin();
        CLONED.fetch_or(stage.files().began_as_clone(), Ordering::Relaxed);
        let expected: &[u32] = if changed { &[0, CHANGED] } else { &[CHANGED] };
        // the layer's second place on the old disk has what was written over at the first
        let lacks = world.lacks(&stage);
        assert!(lacks == expected || lacks == [CHANGED], "{lacks:?}");
        world.finish(&stage);
        cloning::PRETENDED.set(false);
    }
    assert!(CLONED.load(Ordering::Relaxed));
}

#[test]
fn an_image_that_was_staged_without_a_recipe_is_read_and_one_with_a_recipe_is_not() {
    let world = World::new();
    let (stage, _) = begin(&world.store, &world.old, &[TAG]);
    fill(&stage, &world.old);
    install(&stage, &[TAG]).unwrap();
    let survey = world.survey();
    assert_eq!(world.read(&survey).0.disks, 1);
    assert_eq!(world.lacks(&world.begin()), [CHANGED]);
    world.abandon();
    // its recipe comes later
    let by = recipe(&world.old);
    put(&world.home, &by);
    begin_by(&world.store, &world.old, &by);
    assert_eq!(world.read(&survey), (Surveyed::default(), 0));
    assert_eq!(world.lacks(&world.begin()), [CHANGED]);
}

#[test]
fn a_disk_that_claims_more_than_an_image_may_have_is_left_alone() {
    let world = World::new();
    world.pull();
    let disk = world.run_once();
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_len(image::MAX_DISK_BYTES + 1).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_hours(2))
        .unwrap();
    let new = |bytes| FoundDisk::new(world.home.path(), "vms/x/disk.img", &[], bytes);
    let most = new(image::MAX_DISK_BYTES).unwrap();
    assert_eq!(most.extents().len(), 4096);
    assert!(new(image::MAX_DISK_BYTES + 1).is_none());
    // 8 EiB would be cut into 17 billion parts
    assert!(new(u64::MAX).is_none());
    let (surveyed, _) = world.read(&world.survey());
    assert_eq!(surveyed.disks, 1, "the other one is read");
}
