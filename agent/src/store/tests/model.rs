//! Everything that may happen to a store, in any order, and what must hold for every image that it installs.
//!
//! The model is each image's true bytes. A directory that an installation makes has these bytes at that moment,
//! whatever was flipped, removed or lost before. `verify` finds a later damage. From then on the image isn't present
//! until it has its true bytes again. In the end every wanted image is there, with its true bytes.

use std::{collections::BTreeSet, time::Instant};

use super::*;
use crate::{platform::cloning, store::sync::failing::SYNCS_LEFT};

/// One event. Its numbers pick from what is there.
#[derive(Clone, Debug)]
enum Step {
    /// An image is ordered under a reference, perhaps again.
    Begin {
        image: usize,
        reference: usize,
    },
    /// True chunks arrive.
    Arrive {
        image: usize,
        first: usize,
        count: usize,
    },
    /// The missing chunks arrive, and the image is installed.
    Install {
        image: usize,
        reference: usize,
    },
    /// The image is installed without waiting for missing chunks.
    InstallNow {
        image: usize,
        reference: usize,
    },
    Flush,
    /// One sync fails, after this many successful ones.
    FailSync {
        after: usize,
    },
    /// A byte of some file changes.
    Rot {
        file: usize,
        at: usize,
    },
    /// A file is removed, or a directory with everything in it.
    Remove {
        path: usize,
    },
    /// tart prunes an image from a repository.
    Prune {
        image: usize,
        reference: usize,
    },
    /// tart pulls an image again, and doesn't verify what it gets.
    Pull {
        image: usize,
        reference: usize,
        at: usize,
    },
    /// The agent looks at the disk.
    Look,
    /// An operator verifies an image.
    Verify {
        image: usize,
        reference: usize,
    },
    /// The program ends, with or without a last flush.
    Restart {
        flush: bool,
    },
    /// An image is given up.
    Abandon {
        image: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (image, reference) = (0..3usize, 0..2usize);
    let number = any::<prop::sample::Index>().prop_map(|index| index.index(1 << 24));
    let named = (image.clone(), reference);
    prop_oneof![
        3 => named.clone().prop_map(|(image, reference)| Step::Begin { image, reference }),
        3 => (image.clone(), number.clone(), 1..6usize)
            .prop_map(|(image, first, count)| Step::Arrive { image, first, count }),
        4 => named.clone().prop_map(|(image, reference)| Step::Install { image, reference }),
        1 => named.clone().prop_map(|(image, reference)| Step::InstallNow { image, reference }),
        1 => Just(Step::Flush),
        1 => (0..4usize).prop_map(|after| Step::FailSync { after }),
        5 => (number.clone(), number.clone()).prop_map(|(file, at)| Step::Rot { file, at }),
        2 => number.clone().prop_map(|path| Step::Remove { path }),
        1 => named.clone().prop_map(|(image, reference)| Step::Prune { image, reference }),
        1 => (named.clone(), number)
            .prop_map(|((image, reference), at)| Step::Pull { image, reference, at }),
        2 => Just(Step::Look),
        1 => named.prop_map(|(image, reference)| Step::Verify { image, reference }),
        3 => any::<bool>().prop_map(|flush| Step::Restart { flush }),
        1 => image.prop_map(|image| Step::Abandon { image }),
    ]
}

/// Three images that share a layer. The third has a layer that travels as a blob. They are small, so that a case takes
/// milliseconds.
fn images() -> &'static [Prepared; 3] {
    static IMAGES: OnceLock<[Prepared; 3]> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let common = noise((1 << 20) + 9_000, 77);
        [(1, None), (2, None), (3, Some(Vec::new()))]
            .map(|(own, encoded)| Prepared::of(sample_of(own, &common, 20_000, encoded)))
    })
}

struct World {
    home: TempDir,
    store: Option<Store>,
    /// Images and references that were ordered, and not given up since.
    wanted: BTreeSet<(usize, usize)>,
    /// Images under construction whose files were changed after the running process wrote them. A process doesn't
    /// compare again what it wrote itself.
    changed: BTreeSet<usize>,
}

impl World {
    fn new(clones: bool) -> Self {
        cloning::PRETENDED.set(clones);
        SYNCS_LEFT.set(usize::MAX);
        // in memory, if the system has such a place, because a case syncs a hundred times
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let mut world = Self {
            home: home.unwrap(),
            store: None,
            wanted: BTreeSet::new(),
            changed: BTreeSet::new(),
        };
        world.restart();
        world
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn reference(image: usize, reference: usize) -> String {
        format!("ghcr.io/org/{}:v{image}", ["image", "other"][reference])
    }

    fn directory(&self, image: usize, reference: usize) -> PathBuf {
        let repository = ["ghcr.io/org/image", "ghcr.io/org/other"][reference];
        image_dir(&self.home, repository, &images()[image].sample)
    }

    fn stage(&self, image: usize) -> Option<Arc<Stage>> {
        self.store().stage(images()[image].sample.layout.digest())
    }

    fn restart(&mut self) {
        self.store = None;
        fs::create_dir_all(self.home.path()).unwrap();
        self.changed.clear();
        self.store = Some(self.open());
        // chunks of an earlier process are compared before they leave this host
        for Prepared { sample, chunks } in images() {
            let Some(stage) = self.store().stage(sample.layout.digest()) else {
                continue;
            };
            for (content, chunk, _, bytes) in chunks.iter().step_by(2) {
                if let Ok(Some(held)) = stage.read(*content, *chunk) {
                    assert!(held.bytes == *bytes, "a false chunk is served");
                }
            }
        }
    }

    /// Opens the store. Retries, because a child process that another test forks has our lock, too, until it runs
    /// another program.
    fn open(&self) -> Store {
        let started = Instant::now();
        loop {
            match Store::open(self.home.path(), options()) {
                Err(OpenStoreError::InUse { .. }) if started.elapsed() < Duration::from_secs(5) => {
                    std::thread::yield_now();
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn begin(&mut self, image: usize, reference: usize) -> Option<Arc<Stage>> {
        self.wanted.insert((image, reference));
        let sample = &images()[image].sample;
        let references = [Self::reference(image, reference)];
        let begun = self
            .store()
            .begin(&sample.layout, &sample.manifest, &references);
        begun.ok().map(|(stage, _)| stage)
    }

    /// Does what the swarm does: writes chunks, and drops those that the chain disproves.
    fn arrive(&self, image: usize, first: usize, count: usize) {
        let Some(stage) = self.stage(image) else {
            return;
        };
        let Prepared { sample, chunks } = &images()[image];
        for (content, chunk, link, bytes) in
            chunks.iter().cycle().skip(first % chunks.len()).take(count)
        {
            // a failing volume or a removed file shows later
            drop(stage.write(
                *content,
                *chunk,
                bytes,
                *link,
                source("mac-1"),
                (&host("mac-1"), None),
            ));
        }
        for content in sample.contents.keys() {
            drop(stage.walk(*content));
        }
    }

    fn install(&self, image: usize, reference: usize) -> Result<(), InstallError> {
        let Some(stage) = self.stage(image) else {
            return Err(InstallError::Gone);
        };
        let inode = |directory: &PathBuf| {
            let disk = fs::metadata(directory.join(cache::DISK));
            disk.ok().map(|disk| disk.ino())
        };
        let directories = [0, 1].map(|reference| self.directory(image, reference));
        let before = directories.each_ref().map(inode);
        let was_installed = stage.is_installed();
        let installed = crate::store::install(&stage, &[Self::reference(image, reference)]);
        for (directory, before) in directories.iter().zip(before) {
            let after = inode(directory);
            let excused = !was_installed && self.changed.contains(&image);
            if after.is_some() && after != before && installed.is_ok() && !excused {
                assert_installed(directory, &images()[image].sample);
            }
        }
        self.assert_nothing_is_shared();
        installed
    }

    fn fill_and_install(&self, image: usize, reference: usize) -> Result<(), InstallError> {
        self.arrive(image, 0, images()[image].chunks.len());
        self.install(image, reference)
    }

    /// Every file and directory of the home, in a fixed order.
    fn paths(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, paths: &mut Vec<PathBuf>) {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            entries.sort();
            for path in entries {
                paths.push(path.clone());
                if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                    walk(&path, paths);
                }
            }
        }
        let mut paths = Vec::new();
        walk(self.home.path(), &mut paths);
        paths
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = self.paths();
        files.retain(|path| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0)
        });
        files
    }

    fn assert_nothing_is_shared(&self) {
        let inodes = self
            .files()
            .into_iter()
            .map(|path| fs::metadata(path).unwrap().ino());
        let inodes: Vec<u64> = inodes.collect();
        let distinct: BTreeSet<_> = inodes.iter().collect();
        assert_eq!(distinct.len(), inodes.len(), "two directories share a file");
    }

    fn rot(&mut self, file: usize, at: usize) {
        let files = self.files();
        if files.is_empty() {
            return;
        }
        let path = &files[file % files.len()];
        let mut bytes = fs::read(path).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        let written = fs::File::options().write(true).open(path);
        written
            .unwrap()
            .write_all_at(&bytes[at..=at], at as u64)
            .unwrap();
        for (image, prepared) in images().iter().enumerate() {
            if path.starts_with(ours(&self.home, &prepared.sample).join(IMAGE)) {
                self.changed.insert(image);
            }
        }
    }

    /// Whether the driver would call the image present: tart finds it, it is complete, and it isn't doubted.
    fn is_present(&self, image: usize) -> bool {
        let digest = images()[image].sample.layout.digest();
        let listed = self.store().presence();
        let listed = listed
            .iter()
            .any(|found| found.digest == *digest && !found.references.is_empty());
        let sound = |stage: Arc<Stage>| stage.is_complete() && !stage.is_doubted();
        listed && self.stage(image).is_some_and(sound)
    }

    /// Does what `parbake-agent verify` does, with the doubt that follows a damage. Returns whether the image is sound.
    fn verify(&self, image: usize, reference: usize) -> bool {
        let name = Self::reference(image, reference);
        let home = self.home.path();
        match verify(home, &name, |_, _| {}) {
            Ok(_) => {
                // tart writes its own manifest into an image that isn't ours, so the manifest isn't compared
                assert_parts(&self.directory(image, reference), &images()[image].sample);
                true
            }
            Err(error) => {
                if error.is_damage() && doubt(home, &name).is_ok_and(|ours| ours) {
                    assert!(!self.is_present(image), "{name} is damaged and present");
                }
                false
            }
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Begin { image, reference } => drop(self.begin(image, reference)),
            Step::Arrive {
                image,
                first,
                count,
            } => self.arrive(image, first, count),
            Step::Install { image, reference } => {
                if self.begin(image, reference).is_some() {
                    drop(self.fill_and_install(image, reference));
                }
            }
            Step::InstallNow { image, reference } => drop(self.install(image, reference)),
            Step::Flush => drop(self.store().flush()),
            Step::FailSync { after } => SYNCS_LEFT.set(after),
            Step::Rot { file, at } => self.rot(file, at),
            Step::Remove { path } => {
                let paths = self.paths();
                if !paths.is_empty() {
                    remove_any(&paths[path % paths.len()]);
                }
            }
            Step::Prune { image, reference } => remove_any(&self.directory(image, reference)),
            Step::Pull {
                image,
                reference,
                at,
            } => self.pull(image, reference, at),
            Step::Look => {
                drop(self.store().presence());
                drop(self.store().take_news());
            }
            Step::Verify { image, reference } => drop(self.verify(image, reference)),
            Step::Restart { flush } => {
                if flush {
                    drop(self.store().flush());
                }
                self.restart();
            }
            Step::Abandon { image } => {
                let digest = images()[image].sample.layout.digest();
                if self.store().abandon(*digest).is_ok() && self.stage(image).is_none() {
                    self.wanted.retain(|(wanted, _)| *wanted != image);
                }
            }
        }
    }

    fn pull(&self, image: usize, reference: usize, at: usize) {
        let (directory, sample) = (self.directory(image, reference), &images()[image].sample);
        if !directory.is_dir() {
            return;
        }
        let mut disk = sample.disk.clone();
        let at = at % disk.len();
        disk[at] ^= 1;
        let new = directory.join("pulled");
        fs::write(&new, disk).unwrap();
        fs::rename(new, directory.join(cache::DISK)).unwrap();
    }

    /// Nothing goes wrong from now on: every wanted image gets installed, with its true bytes.
    fn settle(&mut self) {
        SYNCS_LEFT.set(usize::MAX);
        self.restart();
        let wanted = self.wanted.clone();
        let mut unsound = Vec::new();
        for round in 0..8 {
            unsound.clear();
            for (image, reference) in &wanted {
                let installed = match self.begin(*image, *reference) {
                    Some(_) => self.fill_and_install(*image, *reference),
                    None => Err(InstallError::Gone),
                };
                let sound = installed.is_ok() && self.verify(*image, *reference);
                if !sound {
                    let name = Self::reference(*image, *reference);
                    let found = verify(self.home.path(), &name, |_, _| {}).err();
                    unsound.push((round, name, installed, found));
                }
            }
            // a doubt about an earlier installation is noticed once the image is installed again, and ended in the next
            // round
            if unsound.is_empty() && wanted.iter().all(|(image, _)| self.is_present(*image)) {
                break;
            }
        }
        assert!(unsound.is_empty(), "it never comes to rest: {unsound:?}");
        for (image, reference) in wanted {
            assert!(self.is_present(image));
            assert_installed(&self.directory(image, reference), &images()[image].sample);
        }
    }
}

fn remove_any(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_what_is_installed_is_the_source(
        steps in prop::collection::vec(step(), 1..24),
        clones in any::<bool>(),
    ) {
        let mut world = World::new(clones);
        for step in &steps {
            world.take(step);
        }
        world.settle();
        cloning::PRETENDED.set(false);
    }
}
