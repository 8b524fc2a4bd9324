//! Beginnings on bad days: they crash, their base is written to or goes meanwhile, and another recipe comes.

use std::{cell::Cell, rc::Rc};

use super::{
    blocks::put,
    recipes::{space, try_begin},
    *,
};
use crate::{
    platform::cloning,
    store::{place::Files as _, retire::empty, survey::Survey},
};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// The bytes of the common layer.
const LAYER: usize = 4 * MIB + 100_000;
/// Steps that hold the store's lock: nothing else of the store is done at them.
const LOCKED: [&str; 4] = [
    "a disk begins",
    "the manifest is written",
    "the status is written",
    "a stage is made",
];
/// One comes before each chunk of another disk.
const COPYING: &str = "before a chunk is copied";

/// Two releases. Of the second one's common layer the first chunk is new, one is zeros, two lie where they lay, and one
/// lies elsewhere.
struct Releases {
    old: Sample,
    new: Sample,
    by: NamedRecipe,
    /// The second one's.
    layer: Digest,
}

impl Releases {
    /// Two releases with the same common layer.
    fn alike() -> Self {
        let layer = noise(LAYER, 1);
        let image = |own| sample_of_layers(own, &[&layer, &noise(5_000, own)], None);
        let (old, new) = (image(7), image(8));
        Self {
            by: recipe(&new),
            layer: Digest::of(&layer),
            old,
            new,
        }
    }

    fn new() -> Self {
        let mut old = noise(LAYER, 1);
        old[2 * MIB..3 * MIB].fill(0);
        let mut new = old.clone();
        new.copy_within(0..MIB, 3 * MIB);
        new[..MIB].copy_from_slice(&noise(MIB, 2));
        let image = |raw: &[u8]| sample_of_layers(7, &[raw, &noise(5_000, 3)], None);
        let layer = Digest::of(&new);
        let (old, new) = (image(&old), image(&new));
        let by = recipe(&new);
        Self {
            old,
            new,
            by,
            layer,
        }
    }

    /// A store in which the first release is installed. On its volume as much is free as the home's file `free` says.
    fn installed(&self, home: &TempDir) -> Arc<Store> {
        fs::write(home.path().join("free"), u64::MAX.to_string()).unwrap();
        let store = reopen(home);
        let (first, _) = begin(&store, &self.old, &[TAG]);
        fill(&first, &self.old);
        install(&first, &[TAG]).unwrap();
        store.flush().unwrap();
        put(home, &self.by);
        store
    }

    fn begin(&self, store: &Store) -> Result<(Arc<Stage>, u64), BeginError> {
        try_begin(store, &self.new, &self.by)
    }

    /// Leaves as much room as the beginning needs, to the byte.
    fn leave_room(&self, home: &TempDir, store: &Store) {
        let free = home.path().join("free");
        fs::write(&free, "0").unwrap();
        let Err(BeginError::NoRoom(short)) = self.begin(store) else {
            panic!("there is no room");
        };
        fs::write(&free, short.need_bytes.to_string()).unwrap();
    }

    /// Compares what is held with what it has to be. Returns the chunks of the common layer that are lacking.
    fn lacks(&self, stage: &Stage) -> Vec<u32> {
        for (content, bytes) in &self.new.contents {
            for chunk in stage.held(*content).iter() {
                let read = stage.read(*content, chunk).unwrap().unwrap().bytes;
                let from = chunk.0 as usize * MIB;
                assert!(read == bytes[from..from + read.len()], "chunk {chunk}");
            }
        }
        let held = stage.held(self.layer);
        let lacking = |chunk: &u32| !held.contains(ChunkIndex(*chunk));
        (0..held.chunks()).filter(lacking).collect()
    }

    /// Brings what is lacking, and installs the second release.
    fn finish(&self, home: &TempDir, stage: &Stage) {
        fill(stage, &self.new);
        install(stage, &[]).unwrap();
        assert_installed(&image_dir(home, "ghcr.io/org/image", &self.new), &self.new);
    }

    fn disk(&self, home: &TempDir) -> PathBuf {
        image_dir(home, "ghcr.io/org/image", &self.old).join(cache::DISK)
    }
}

fn reopen(home: &TempDir) -> Arc<Store> {
    let with = Options { space, ..options() };
    Arc::new(Store::open(home.path(), with).unwrap())
}

/// Each file of ours has a use.
fn assert_no_leftovers(home: &TempDir, releases: &Releases) {
    let names = |path: &Path| {
        let entries = fs::read_dir(path).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<String>>()
    };
    let root = home.path().join(ROOT);
    let hex = |image: &Sample| image.layout.digest().hex().to_string();
    let (old, new) = (hex(&releases.old), hex(&releases.new));
    let ours = ["pid", "recipes", &old, &new].map(str::to_owned);
    assert_eq!(names(&root), ours.into());
    let recipe = releases.by.file.digest.hex().to_string();
    assert_eq!(names(&root.join("recipes")), [recipe].into());
    let parts = ["status.json", "manifest.json", "journal", "blobs"].map(str::to_owned);
    for image in [old, new] {
        assert_eq!(names(&root.join(image)), parts.clone().into());
    }
}

/// How a process goes on with a beginning that died.
#[derive(Clone, Copy, Debug)]
struct Death {
    clones: bool,
    /// What was copied was journaled before each step.
    flushes: bool,
    times: usize,
}

/// Lets a beginning die after so many steps, and the next ones too. Returns whether it had so many steps.
fn die_after(steps: usize, death: Death, releases: &Releases) -> bool {
    cloning::PRETENDED.set(death.clones);
    let home = tempfile::tempdir().unwrap();
    let mut store = releases.installed(&home);
    releases.leave_room(&home, &store);
    let mut died = false;
    for time in 0..death.times {
        let hook = {
            let store = store.clone();
            at_steps(move |step| match death.flushes && step == COPYING {
                true => store.flush(),
                false => Ok(()),
            })
        };
        STEPS_LEFT.set(steps);
        let ended = releases.begin(&store).is_err();
        STEPS_LEFT.set(usize::MAX);
        died |= ended && time == 0;
        drop(hook);
        drop(store);
        store = reopen(&home);
        // it comes again with the order, if no stage noted it
        put(&home, &releases.by);
    }
    let (stage, _) = releases
        .begin(&store)
        .unwrap_or_else(|error| panic!("{death:?}, {steps} steps: {error}"));
    let lacks = releases.lacks(&stage);
    assert_eq!(lacks, [0], "{death:?}, {steps} steps");
    // what was elsewhere, what is small, and the last chunk, if an earlier process took what has more bytes
    let most = if death.clones { MIB + 300_000 } else { LAYER };
    let written = stage.files().written_bytes();
    assert!(written <= most as u64, "{death:?}, {steps}: {written}");
    releases.finish(&home, &stage);
    assert_no_leftovers(&home, releases);
    cloning::PRETENDED.set(false);
    died
}

#[test]
fn a_crash_at_any_step_of_a_beginning_costs_neither_room_nor_what_is_shared() {
    let releases = Releases::new();
    let deaths = [
        (true, false, 1),
        (true, true, 1),
        (true, true, 2),
        (false, false, 1),
        (false, true, 1),
    ];
    for (clones, flushes, times) in deaths {
        let death = Death {
            clones,
            flushes,
            times,
        };
        let steps = (0..).find(|steps| !die_after(*steps, death, &releases));
        // those by name, and one for each chunk
        assert!(steps > Some(12), "{steps:?}");
    }
}

/// Has something happen to the base at this step, by its number, of a beginning. Returns the stage, if it began, and
/// the step.
fn happens(
    at: usize,
    store: &Arc<Store>,
    releases: &Releases,
    happening: impl Fn(&Store) + 'static,
) -> (Result<Arc<Stage>, BeginError>, Option<&'static str>) {
    let (steps, found) = (Cell::new(0), Rc::new(Cell::new(None)));
    let hook = {
        let (store, found) = (store.clone(), found.clone());
        at_steps(move |step| {
            if steps.replace(steps.get() + 1) == at {
                found.set(Some(step));
                happening(&store);
            }
            Ok(())
        })
    };
    let begun = releases.begin(store).map(|(stage, _)| stage);
    drop(hook);
    (begun, found.get())
}

#[test]
fn a_base_that_is_retired_or_removed_at_any_step_costs_a_fetch_and_never_a_byte() {
    cloning::PRETENDED.set(true);
    let releases = Releases::new();
    let image = *releases.old.layout.digest();
    let names = step_names(&releases);
    assert!(names.len() > 12, "{names:?}");
    for retires in [true, false] {
        for (at, name) in names.iter().enumerate() {
            if retires && LOCKED.contains(name) {
                continue;
            }
            let home = tempfile::tempdir().unwrap();
            let store = releases.installed(&home);
            store.want(&image, &[]).unwrap();
            let disk = releases.disk(&home);
            let directory = disk.parent().unwrap().to_owned();
            let happening = move |store: &Store| {
                if retires {
                    let later = SystemTime::now() + Duration::from_hours(30);
                    let terms = Terms::of(None, Some(1));
                    assert_eq!(retire(store, &terms, later), [image]);
                    // the files, too
                    empty(store);
                } else {
                    fs::remove_dir_all(&directory).unwrap();
                }
            };
            let (begun, step) = happens(at, &store, &releases, happening);
            assert_eq!(step, Some(*name));
            let stage = begun.unwrap();
            assert!(!disk.exists());
            let cloned = stage.files().began_as_clone();
            assert_eq!(cloned, *name != "a base is chosen", "{name}");
            releases.lacks(&stage);
            // a look at the disk finds that it is gone
            assert_eq!(store.presence(), []);
            releases.finish(&home, &stage);
        }
    }
    cloning::PRETENDED.set(false);
}

/// The steps of a beginning.
fn step_names(releases: &Releases) -> Vec<&'static str> {
    let home = tempfile::tempdir().unwrap();
    let store = releases.installed(&home);
    let names = Rc::new(std::cell::RefCell::new(Vec::new()));
    let hook = {
        let names = names.clone();
        at_steps(move |step| {
            names.borrow_mut().push(step);
            Ok(())
        })
    };
    releases.begin(&store).unwrap();
    drop(hook);
    names.take()
}

#[test]
fn a_base_that_goes_before_it_is_cloned_leaves_a_copy_or_a_reason() {
    let releases = Releases::new();
    for has_room in [false, true] {
        cloning::PRETENDED.set(true);
        let home = tempfile::tempdir().unwrap();
        let store = releases.installed(&home);
        if !has_room {
            releases.leave_room(&home, &store);
        }
        let disk = releases.disk(&home);
        let removed = move |_: &Store| fs::remove_file(&disk).unwrap();
        let (begun, step) = happens(0, &store, &releases, removed);
        assert_eq!(step, Some("a base is chosen"));
        match begun {
            Ok(stage) => {
                assert!(has_room && !stage.files().began_as_clone());
                // its bytes are read by the open file
                assert_eq!(releases.lacks(&stage), [0]);
                releases.finish(&home, &stage);
            }
            Err(BeginError::NoRoom(_)) => {
                assert!(!has_room);
                assert!(!ours(&home, &releases.new).exists());
                assert_eq!(store.outstanding_bytes(), 0);
                // nothing holds the next try up
                fs::write(home.path().join("free"), u64::MAX.to_string()).unwrap();
                let (stage, _) = releases.begin(&store).unwrap();
                releases.finish(&home, &stage);
            }
            Err(error) => panic!("{error}"),
        }
        cloning::PRETENDED.set(false);
    }
}

/// Whose disk is written to meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// An installed image's, of which a stage with a recipe takes chunks, or one without, which takes whole layers.
    Image { by_recipe: bool },
    /// A VM's that rested, and was read.
    Machine,
}

/// Puts the first release's disk into a VM that rests, and has it read.
fn read_machine(home: &TempDir, store: &Arc<Store>, old: &Sample) -> PathBuf {
    let directory = home.path().join("vms/runner");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(cache::CONFIG), "{}").unwrap();
    let disk = directory.join(cache::DISK);
    fs::write(&disk, &old.disk).unwrap();
    let file = fs::File::options().write(true).open(&disk).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_hours(2))
        .unwrap();
    let survey = Survey::new(store.clone());
    while survey.step(SystemTime::now()).unwrap().more {}
    disk
}

/// A VM writes some pages at each step of a beginning, and the disk's time says so, or not yet.
fn writes_meanwhile(written: Written, seed: u64, says_so: bool, releases: &Releases) -> usize {
    cloning::PRETENDED.set(true);
    let home = tempfile::tempdir().unwrap();
    let (store, disk) = if written == Written::Machine {
        fs::write(home.path().join("free"), u64::MAX.to_string()).unwrap();
        let store = reopen(&home);
        put(&home, &releases.by);
        let disk = read_machine(&home, &store, &releases.old);
        (store, disk)
    } else {
        let store = releases.installed(&home);
        (store, releases.disk(&home))
    };
    let file = fs::File::options().write(true).open(&disk).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let pages = releases.old.disk.len() / PAGE - 2;
    let count = Rc::new(Cell::new(0_u64));
    let write = {
        let count = count.clone();
        move || {
            let number = count.replace(count.get() + 1);
            let page = (number + 1).wrapping_mul(seed) % pages as u64;
            let bytes = noise(2 * PAGE, number + 100);
            file.write_all_at(&bytes, page * PAGE as u64).unwrap();
            if !says_so {
                file.set_modified(modified).unwrap();
            }
        }
    };
    let write = Rc::new(write);
    let hook = {
        let write = write.clone();
        at_steps(move |_| {
            write();
            Ok(())
        })
    };
    let stage = match written {
        Written::Image { by_recipe: false } => begin(&store, &releases.new, &[TAG]).0,
        _ => releases.begin(&store).unwrap().0,
    };
    drop(hook);
    assert!(stage.files().began_as_clone() || count.get() > 0);
    let lacks = releases.lacks(&stage);
    // parts of chunks are read again when the rest has come
    for chunk in &lacks {
        let chunk = ChunkIndex(*chunk);
        let Some(mut part) = stage.part(releases.layer, chunk) else {
            continue;
        };
        write();
        let raw = &releases.new.contents[&releases.layer][chunk.0 as usize * MIB..];
        for range in part.lacking() {
            let bytes = &raw[range.start as usize..range.end as usize];
            part.fill(range.start, bytes).unwrap();
        }
        let whole = part.whole().unwrap();
        assert!(whole == raw[..whole.len()], "chunk {chunk}");
    }
    releases.finish(&home, &stage);
    cloning::PRETENDED.set(false);
    lacks.len()
}

#[test]
fn a_base_that_a_machine_writes_to_meanwhile_lends_no_false_byte() {
    let (releases, alike) = (Releases::new(), Releases::alike());
    let mut lacking = BTreeSet::new();
    for (written, releases) in [
        (Written::Image { by_recipe: true }, &releases),
        (Written::Image { by_recipe: false }, &alike),
        (Written::Machine, &releases),
    ] {
        for (seed, says_so) in [(1, false), (257, false), (911, false), (257, true)] {
            lacking.insert(writes_meanwhile(written, seed, says_so, releases));
        }
    }
    // what was written before it was looked at is lacking, and no more
    assert!(lacking.len() > 2, "{lacking:?}");
}

/// Brings each chunk of a content, and leaves a recipe that a true link contradicts, as a host does in the end.
fn bring(stage: &Stage, sample: &Sample) {
    for (content, bytes) in &sample.contents {
        for (chunk, link, bytes) in links(bytes) {
            let write = || {
                let maker = (&host("mac-1"), None);
                stage.write(*content, chunk, bytes, link, source("mac-1"), maker)
            };
            if let Err(WriteError::Rejected(error)) = write() {
                assert_eq!(error, RejectLinkError::AgainstRecipe(chunk));
                assert!(stage.known(*content).unwrap().leave_recipe());
                write().unwrap();
            }
        }
        stage.walk(*content).unwrap();
    }
}

#[test]
fn a_stage_that_gets_another_recipe_ends_in_the_image_whichever_of_them_is_false() {
    let releases = Releases::new();
    let with = |at: usize| {
        let changed = recipe_with(&releases.new, releases.layer, |of| of.states[at] ^= 1);
        assert_ne!(changed.file.digest, releases.by.file.digest);
        changed
    };
    // a state in the middle, and one between the first two chunks
    let (early, late) = (with(9), with(80));
    // by a true recipe that has no blocks
    let lean = recipe_with(&releases.new, releases.layer, |content| {
        content.block_lengths.clear();
        content.block_prints.clear();
    });
    for (first, second, given_up) in [
        (&early, &releases.by, true),
        (&early, &releases.by, false),
        (&releases.by, &early, false),
        (&early, &late, true),
        (&late, &early, false),
        (&releases.by, &lean, false),
    ] {
        for restarts in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let mut store = releases.installed(&home);
            let (stage, _) = try_begin(&store, &releases.new, first).unwrap();
            put(&home, first);
            if given_up {
                assert!(stage.known(releases.layer).unwrap().leave_recipe());
            }
            // some of it comes before
            let (chunk, link, bytes) = links(&releases.new.contents[&releases.layer])[0];
            let maker = (&host("mac-1"), None);
            let arrived = stage.write(releases.layer, chunk, bytes, link, source("mac-1"), maker);
            let is_true = first.file.digest != early.file.digest;
            assert_eq!(arrived.is_ok(), is_true || given_up, "{arrived:?}");
            if restarts {
                store.flush().unwrap();
                drop((stage, store));
                store = reopen(&home);
            }
            put(&home, second);
            let (stage, _) = try_begin(&store, &releases.new, second).unwrap();
            assert_eq!(stage.recipe(), Some(second.file));
            releases.lacks(&stage);
            bring(&stage, &releases.new);
            install(&stage, &[]).unwrap();
            let directory = image_dir(&home, "ghcr.io/org/image", &releases.new);
            assert_installed(&directory, &releases.new);
            let is_proved = second.file.digest != early.file.digest;
            let is_proved = is_proved && second.file.digest != late.file.digest;
            assert_eq!(stage.proved_recipe().is_some(), is_proved);
        }
    }
}

#[test]
fn a_recipe_that_claims_zeros_ends_in_the_image_or_in_no_room() {
    let releases = Releases::new();
    let zeros = proto::Fingerprint::of(&vec![0; MIB]).0;
    let claims = recipe_with(&releases.new, releases.layer, |content| {
        let chunks = content.fingerprints.len() / 16;
        content.fingerprints = zeros.repeat(chunks);
    });
    let home = tempfile::tempdir().unwrap();
    let free = home.path().join("free");
    fs::write(&free, "0").unwrap();
    let store = reopen(&home);
    let try_begin = || try_begin(&store, &releases.new, &claims);
    let Err(BeginError::NoRoom(claimed)) = try_begin() else {
        panic!("there is no room");
    };
    assert!(claimed.need_bytes < LAYER as u64, "zeros need no room");
    // as much as it claims: the first chunk shows that it isn't so, now and with each try
    fs::write(&free, claimed.need_bytes.to_string()).unwrap();
    let mut needed = BTreeSet::new();
    for _ in 0..3 {
        let Err(BeginError::NoRoom(short)) = try_begin() else {
            panic!("less is zeros than is claimed");
        };
        assert!(short.need_bytes > LAYER as u64);
        needed.insert(short.need_bytes);
        let stage = store.stage(releases.new.layout.digest()).unwrap();
        assert_eq!(stage.held(releases.layer).iter().count(), 0);
        assert_eq!(stage.outstanding_bytes(), 0, "no room is kept for it");
    }
    assert_eq!(needed.len(), 1);
    for need in needed {
        fs::write(&free, need.to_string()).unwrap();
    }
    let (stage, _) = try_begin().unwrap();
    releases.finish(&home, &stage);
}
