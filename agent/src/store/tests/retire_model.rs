//! Old images are retired while tart prunes and collects, a node agent drops goldens, and VMs come and go, in any order
//! and between any two steps.
//!
//! The model is what somebody needs: images that are wanted, or were within the last hour, those that Pods refer
//! to, and those whose clones are still there. Retiring removes none of these, and nothing that isn't ours. A release
//! may only rename an image: the golden of the wanted name stays, and that of the other goes by the same rule alone.
//! Whatever the store says to be present is there with its true bytes.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use super::{
    retire::{installed, machine, make_golden, marks, set_accessed},
    *,
};
use crate::{retention::InUse, store::retire::empty};

const IMAGES: u64 = 4;
const HOUR: Duration = Duration::from_hours(1);

#[derive(Clone, Debug)]
enum Step {
    /// The image is staged, or wanted again.
    Want(u64),
    /// A release only renames the image, or names it as before.
    Rename(u64),
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
    /// A node agent drops the image's goldens.
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
        3 => image.clone().prop_map(Step::Rename),
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
    /// Images that are wanted by their second name, or were last.
    renamed: BTreeSet<u64>,
    /// When each image was last wanted or cloned from.
    used: BTreeMap<u64, SystemTime>,
    /// When each golden was made, or last cloned.
    goldens: BTreeMap<Golden, SystemTime>,
    /// VMs that were cloned, in this order, each with its golden.
    clones: Vec<(PathBuf, Golden)>,
    /// Images to whose first names Pods refer.
    pods: BTreeSet<u64>,
    made: u64,
}

/// A golden of an image: of its first name, or of its second one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Golden {
    image: u64,
    renamed: bool,
}

impl Golden {
    /// The goldens that an image may have.
    const fn both(image: u64) -> [Self; 2] {
        let first = Self {
            image,
            renamed: false,
        };
        let second = Self {
            image,
            renamed: true,
        };
        [first, second]
    }

    fn tag(self) -> String {
        let end = if self.renamed { "-renamed" } else { "" };
        format!("{}{end}", self.image)
    }

    fn reference(self) -> String {
        format!("ghcr.io/org/image:{}", self.tag())
    }

    fn name(self) -> String {
        format!("golden-{}", self.tag())
    }

    fn directory(self, home: &Path) -> PathBuf {
        cache::vm_directory(home, &self.name())
    }
}

fn name(image: u64) -> String {
    let renamed = false;
    Golden { image, renamed }.reference()
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

fn record(home: &Path, image: u64) -> PathBuf {
    let repository = home.join("cache/OCIs/ghcr.io/org/image");
    repository.join(digest(image).to_string())
}

/// As tart and a node agent do it, without our locks.
fn disturb(home: &Path, disturbance: Disturbance) {
    match disturbance {
        Disturbance::Prune(image) => drop(fs::remove_dir_all(record(home, image))),
        Disturbance::Drop(image) => {
            for golden in Golden::both(image) {
                drop(fs::remove_dir_all(golden.directory(home)));
            }
        }
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
            renamed: BTreeSet::new(),
            used: BTreeMap::new(),
            goldens: BTreeMap::new(),
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

    /// A golden that was just made has the time that it is in the model.
    fn note_golden(&mut self, golden: Golden) {
        let now = self.now();
        let mark = marks(&self.home).join(golden.name());
        let mark = fs::File::options().write(true).open(mark).unwrap();
        mark.set_modified(now).unwrap();
        self.goldens.insert(golden, now);
    }

    /// The golden of the name by which an image is wanted, or was last.
    fn current(&self, image: u64) -> Golden {
        let renamed = self.renamed.contains(&image);
        Golden { image, renamed }
    }

    fn is_here(&self, image: u64) -> bool {
        record(&self.home(), image).is_dir()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Want(image) => {
                self.renamed.remove(&image);
                let golden = self.current(image);
                if !self.is_here(image) || !golden.directory(&self.home()).is_dir() {
                    installed(&self.home, self.store(), image);
                    self.note_golden(golden);
                }
                self.store().want(&digest(image), &[name(image)]).unwrap();
                self.wanted.insert(image);
                self.note(image);
            }
            Step::Rename(image) => self.rename(image),
            Step::Cancel(image) => {
                if self.wanted.remove(&image) {
                    self.store().want(&digest(image), &[]).unwrap();
                    self.note(image);
                }
            }
            Step::Clone(image) => {
                let golden = self.current(image);
                let directory = golden.directory(&self.home());
                if directory.is_dir() {
                    let now = self.now();
                    set_accessed(&directory, now);
                    self.used.insert(image, now);
                    self.goldens.insert(golden, now);
                    self.made += 1;
                    let clone = machine(&self.home, &format!("vm-{}", self.made));
                    self.clones.push((clone, golden));
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

    /// An image that is wanted is wanted by its other name alone, and has a golden of that.
    fn rename(&mut self, image: u64) {
        if !self.wanted.contains(&image) || !self.is_here(image) {
            return;
        }
        if !self.renamed.remove(&image) {
            self.renamed.insert(image);
        }
        let golden = self.current(image);
        let (digest, reference) = (digest(image), golden.reference());
        self.store()
            .want(&digest, std::slice::from_ref(&reference))
            .unwrap();
        if !golden.directory(&self.home()).is_dir() {
            make_golden(&self.home, &digest, &reference, &golden.name());
            self.note_golden(golden);
        }
        self.note(image);
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
        let least = days.map_or(HOUR, |days| 24 * days * HOUR);
        let before: Vec<bool> = (1..=IMAGES).map(|image| self.is_here(image)).collect();
        let goldens = self.goldens_made();
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
                let mut went = goldens.iter().filter(|(golden, _)| {
                    golden.image == image && !golden.directory(&home).is_dir()
                });
                if !dropped && let Some((golden, made)) = went.next() {
                    assert!(went.next().is_none(), "both goldens of image {image} went");
                    let rested = now.duration_since(self.goldens[golden]).unwrap();
                    assert!(
                        keep.unwrap_or(0) <= 1 && rested >= least,
                        "{golden:?} was used {rested:?} ago"
                    );
                    self.assert_lost(*golden, *made);
                }
                continue;
            }
            assert!(!self.is_here(image), "image {image} is said to have gone");
            assert!(!self.pods.contains(&image), "a Pod refers to image {image}");
            let cloned = self.clones.iter().any(|(_, of)| of.image == image);
            assert!(!cloned, "a clone of image {image} is there");
            // of an image that tart pruned only the golden's notes are left
            if !before[at] {
                continue;
            }
            assert!(!self.wanted.contains(&image), "image {image} is wanted");
            let rested = now.duration_since(self.used[&image]).unwrap();
            assert!(rested >= least, "image {image} was used {rested:?} ago");
        }
    }

    /// The goldens that are there, with the times when their directories were made.
    fn goldens_made(&self) -> BTreeMap<Golden, SystemTime> {
        let home = self.home();
        let all = (1..=IMAGES).flat_map(Golden::both);
        let made = all.filter_map(|golden| {
            let found = fs::metadata(golden.directory(&home)).ok()?;
            Some((golden, found.created().unwrap()))
        });
        made.collect()
    }

    /// A golden that went alone is of a name that its wanted image lost, and nobody needs it.
    fn assert_lost(&self, golden: Golden, made: SystemTime) {
        let image = golden.image;
        assert!(self.wanted.contains(&image), "{golden:?} went unsaid");
        assert_ne!(golden, self.current(image), "its name is wanted");
        let refers = !golden.renamed && self.pods.contains(&image);
        assert!(!refers, "a Pod refers to {golden:?}");
        // a clone of a golden before it, which somebody dropped, is none of this one
        let mut clones = self.clones.iter().filter(|(_, of)| *of == golden);
        let cloned = clones.any(|(clone, _)| {
            let found = fs::metadata(clone).unwrap();
            found.created().unwrap() >= made
        });
        assert!(!cloned, "a clone of {golden:?} is there");
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
        for (clone, golden) in &self.clones {
            assert!(clone.is_dir(), "the clone of {golden:?} went");
        }
        let theirs = cache::vm_directory(&self.home(), "golden-9");
        assert!(theirs.is_dir(), "a VM that isn't ours went");
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
