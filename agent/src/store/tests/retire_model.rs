//! Old images are retired while tart prunes and collects, a node agent drops goldens, and VMs come and go, in any order
//! and between any two steps.
//!
//! The model is what somebody needs: images that are wanted, or were within the last hour, those that Pods refer
//! to, and those whose clones are still there. Retiring removes none of these, and nothing that isn't ours.
//! Whatever the store says to be present is there with its true bytes.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use super::{
    retire::{installed, machine, set_accessed},
    *,
};
use crate::{retention::InUse, store::retire::empty};

const IMAGES: u64 = 4;
const HOUR: Duration = Duration::from_hours(1);

#[derive(Clone, Debug)]
enum Step {
    /// The image is staged, or wanted again.
    Want(u64),
    /// Nobody wants the image any more.
    Cancel(u64),
    /// A VM is cloned from the image's golden.
    Clone(u64),
    /// The oldest VM is deleted.
    Delete,
    Disturb(Disturbance),
    /// A Pod refers to the image, or doesn't any more.
    Pod(u64),
    Pass {
        hours: u32,
    },
    Retire {
        keep: Option<u32>,
        days: Option<u32>,
        /// What happens after so many steps.
        amid: (usize, Disturbance),
        /// tart pulls from the registry.
        locked: bool,
    },
    Restart,
}

/// What others do to the home.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// tart prunes the image, whatever names it.
    Prune(u64),
    /// tart removes links that lead nowhere, and records that nothing names.
    Collect,
    /// A node agent drops the image's golden.
    Drop(u64),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        (1..=IMAGES).prop_map(Disturbance::Prune),
        Just(Disturbance::Collect),
        (1..=IMAGES).prop_map(Disturbance::Drop),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let image = 1..=IMAGES;
    let rule = prop_oneof![
        (1..3u32).prop_map(|keep| (Some(keep), None)),
        (1..3u32).prop_map(|days| (None, Some(days))),
        (1..3u32, 1..3u32).prop_map(|(keep, days)| (Some(keep), Some(days))),
    ];
    prop_oneof![
        4 => image.clone().prop_map(Step::Want),
        5 => image.clone().prop_map(Step::Cancel),
        2 => image.clone().prop_map(Step::Clone),
        2 => Just(Step::Delete),
        2 => disturbance().prop_map(Step::Disturb),
        1 => image.prop_map(Step::Pod),
        3 => (0..40u32).prop_map(|hours| Step::Pass { hours }),
        6 => (rule, (0..12usize, disturbance()), prop::bool::weighted(0.1)).prop_map(
            |((keep, days), amid, locked)| Step::Retire { keep, days, amid, locked }
        ),
        1 => Just(Step::Restart),
    ]
}

struct World {
    home: TempDir,
    store: Option<Store>,
    /// The time beyond the clock's.
    passed: Duration,
    wanted: BTreeSet<u64>,
    /// When each image was last wanted or cloned from.
    used: BTreeMap<u64, SystemTime>,
    /// VMs that were cloned, in this order, each with its image.
    clones: Vec<(PathBuf, u64)>,
    pods: BTreeSet<u64>,
    made: u64,
}

fn name(image: u64) -> String {
    format!("ghcr.io/org/image:{image}")
}

/// An image of the model; 9 is the one that tart pulled.
fn known(image: u64) -> &'static Sample {
    static KNOWN: OnceLock<BTreeMap<u64, Sample>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| (1..=IMAGES).chain([9]).map(|of| (of, sample(of))).collect());
    &known[&image]
}

fn digest(image: u64) -> Digest {
    *known(image).layout.digest()
}

fn golden(home: &Path, image: u64) -> PathBuf {
    cache::vm_directory(home, &format!("golden-{image}"))
}

fn record(home: &Path, image: u64) -> PathBuf {
    let repository = home.join("cache/OCIs/ghcr.io/org/image");
    repository.join(digest(image).to_string())
}

/// As tart and a node agent do it, without our locks.
fn disturb(home: &Path, disturbance: Disturbance) {
    match disturbance {
        Disturbance::Prune(image) => drop(fs::remove_dir_all(record(home, image))),
        Disturbance::Drop(image) => drop(fs::remove_dir_all(golden(home, image))),
        Disturbance::Collect => {
            let repository = home.join("cache/OCIs/ghcr.io/org/image");
            let entries = fs::read_dir(&repository).into_iter().flatten().flatten();
            let (links, records): (Vec<_>, Vec<_>) = entries
                .map(|entry| entry.path())
                .partition(|path| path.is_symlink());
            let mut named = BTreeSet::new();
            for link in links {
                match fs::canonicalize(&link) {
                    Ok(to) => drop(named.insert(to)),
                    Err(_) => drop(fs::remove_file(&link)),
                }
            }
            for record in records {
                if !named.contains(&record) && !record.join(cache::MARKER).exists() {
                    drop(fs::remove_dir_all(record));
                }
            }
        }
    }
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        // what isn't ours: an image that tart pulled, and a VM under a golden's name, both before any of our images
        let pulled = image_dir(&home, "ghcr.io/org/image", known(9));
        fs::create_dir_all(&pulled).unwrap();
        fs::write(pulled.join(cache::DISK), "theirs").unwrap();
        fs::write(pulled.join(cache::MARKER), "").unwrap();
        machine(&home, "golden-9");
        Self {
            home,
            store: Some(store),
            passed: Duration::ZERO,
            wanted: BTreeSet::new(),
            used: BTreeMap::new(),
            clones: Vec::new(),
            pods: BTreeSet::new(),
            made: 0,
        }
    }

    fn home(&self) -> PathBuf {
        fs::canonicalize(self.home.path()).unwrap()
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now() + self.passed
    }

    /// What was just written of an image has the time that it is in the model.
    fn note(&mut self, image: u64) {
        let now = self.now();
        let notes = ours(&self.home, known(image)).join(STATUS);
        if let Ok(notes) = fs::File::options().write(true).open(notes) {
            notes.set_modified(now).unwrap();
        }
        self.used.insert(image, now);
    }

    fn is_here(&self, image: u64) -> bool {
        record(&self.home(), image).is_dir()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Want(image) => {
                if !self.is_here(image) || !golden(&self.home(), image).is_dir() {
                    installed(&self.home, self.store(), image);
                } else {
                    self.store().want(&digest(image), &[name(image)]).unwrap();
                }
                self.wanted.insert(image);
                self.note(image);
            }
            Step::Cancel(image) => {
                if self.wanted.remove(&image) {
                    self.store().want(&digest(image), &[]).unwrap();
                    self.note(image);
                }
            }
            Step::Clone(image) => {
                let golden = golden(&self.home(), image);
                if golden.is_dir() {
                    set_accessed(&golden, self.now());
                    self.used.insert(image, self.now());
                    self.made += 1;
                    let clone = machine(&self.home, &format!("vm-{}", self.made));
                    self.clones.push((clone, image));
                }
            }
            Step::Delete => {
                if !self.clones.is_empty() {
                    fs::remove_dir_all(self.clones.remove(0).0).unwrap();
                }
            }
            Step::Disturb(disturbance) => disturb(&self.home(), disturbance),
            Step::Pod(image) => {
                if !self.pods.remove(&image) {
                    self.pods.insert(image);
                }
            }
            Step::Pass { hours } => self.passed += hours * HOUR,
            Step::Retire {
                keep,
                days,
                amid,
                locked,
            } => self.retire(keep, days, amid, locked),
            Step::Restart => {
                self.store = None;
                self.store = Some(open(&self.home));
            }
        }
        self.look();
    }

    fn retire(
        &self,
        keep: Option<u32>,
        days: Option<u32>,
        (after, amid): (usize, Disturbance),
        locked: bool,
    ) {
        let (home, now) = (self.home(), self.now());
        let terms = Terms {
            in_use: InUse::new(self.pods.iter().map(|image| name(*image)), false),
            ..Terms::of(keep, days)
        };
        let registry = home.join("cache/OCIs/ghcr.io");
        let lock = locked.then(|| platform::lock_directory(&registry, Duration::ZERO).unwrap());
        let before: Vec<bool> = (1..=IMAGES).map(|image| self.is_here(image)).collect();
        let goldens: Vec<bool> = (1..=IMAGES)
            .map(|image| golden(&home, image).is_dir())
            .collect();
        let happened = Rc::new(RefCell::new((0, false)));
        let hook = at_steps({
            let (happened, home) = (happened.clone(), home.clone());
            move |_| {
                let mut happened = happened.borrow_mut();
                if happened.0 == after {
                    disturb(&home, amid);
                    happened.1 = true;
                }
                happened.0 += 1;
                Ok(())
            }
        });
        let gone = retire(self.store(), &terms, now);
        empty(self.store());
        drop(hook);
        assert!(lock.is_none() || gone.is_empty(), "tart has the lock");
        let disturbed = happened.borrow().1.then_some(amid);
        for image in 1..=IMAGES {
            let at = usize::try_from(image - 1).unwrap();
            let pruned = match disturbed {
                Some(Disturbance::Prune(pruned)) => pruned == image,
                Some(Disturbance::Collect) => true,
                _ => false,
            };
            let dropped = matches!(disturbed, Some(Disturbance::Drop(of)) if of == image);
            if !gone.contains(&digest(image)) {
                assert!(
                    !before[at] || self.is_here(image) || pruned,
                    "image {image} went unsaid"
                );
                let there = golden(&home, image).is_dir();
                assert!(
                    !goldens[at] || there || dropped,
                    "golden {image} went unsaid"
                );
                continue;
            }
            assert!(!self.is_here(image), "image {image} is said to have gone");
            assert!(!self.pods.contains(&image), "a Pod refers to image {image}");
            let cloned = self.clones.iter().any(|(_, of)| *of == image);
            assert!(!cloned, "a clone of image {image} is there");
            // of an image that tart pruned only the golden's notes are left
            if !before[at] {
                continue;
            }
            assert!(!self.wanted.contains(&image), "image {image} is wanted");
            let rested = now.duration_since(self.used[&image]).unwrap();
            let least = days.map_or(HOUR, |days| 24 * days * HOUR);
            assert!(rested >= least, "image {image} was used {rested:?} ago");
        }
    }

    /// Nothing of others went, and whatever is said to be present is there.
    fn look(&mut self) {
        let present = self.store().presence();
        for image in 1..=IMAGES {
            let said = present.iter().find(|of| of.digest == digest(image));
            if said.is_some_and(|of| of.references.contains(&name(image))) {
                let tag = cache::tag_link(&self.home(), &name(image).parse().unwrap()).unwrap();
                assert_installed(&fs::canonicalize(tag).unwrap(), known(image));
            }
        }
        for (clone, image) in &self.clones {
            assert!(clone.is_dir(), "the clone of image {image} went");
        }
        assert!(
            golden(&self.home(), 9).is_dir(),
            "a VM that isn't ours went"
        );
        let pulled = record(&self.home(), 9).join(cache::DISK);
        assert_eq!(fs::read(pulled).unwrap(), b"theirs");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_somebody_needs_is_retired_whatever_others_do(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
    }
}
