//! A host of the model: an agent's decisions, and its store in a directory.

use std::{collections::VecDeque, fs, path::PathBuf};

use agent::{
    reconcile::{Have, Job, Look, Reconciler, Sight},
    store::{InstallError, News, Options, Store, install_as},
};
use tempfile::TempDir;

use super::*;

/// An image as the agent's driver knows it.
pub(super) struct Image {
    sample: usize,
    state: message::StageState,
    taken_up: bool,
    ready: Vec<String>,
}

/// A job. It has two steps: its effect on the disk, and the report of its end.
pub(super) enum Running {
    Begun(Digest, Job),
    Done(Digest, Job, Result<(), bool>),
}

/// A look at the disk. It has two steps: the agent sees the disk, and later takes in what it saw.
pub(super) struct Seen {
    look: Look,
    step: u64,
}

/// A host: an agent without sockets.
pub(super) struct Mac {
    pub(super) id: HostId,
    pub(super) home: TempDir,
    pub(super) store: Option<Store>,
    pub(super) reconciler: Reconciler,
    pub(super) images: BTreeMap<Digest, Image>,
    pub(super) running: VecDeque<Running>,
    pub(super) looking: Option<Seen>,
    pub(super) full_due: bool,
    pub(super) now: Moment,
    pub(super) session: Option<(u64, Receiver<Arc<message::Order>>)>,
    /// The reports under way, each with the step at which the look began on which the report is based.
    pub(super) reports: VecDeque<(message::Report, u64)>,
    pub(super) looked: u64,
    pub(super) heard: u64,
    /// When somebody else last changed something in tart's cache.
    pub(super) tampered: u64,
}

impl Mac {
    pub(super) fn new(name: &str) -> Self {
        let mut mac = Self {
            id: name.parse().unwrap(),
            home: tempfile::tempdir().unwrap(),
            store: None,
            reconciler: Reconciler::default(),
            images: BTreeMap::new(),
            running: VecDeque::new(),
            looking: None,
            full_due: false,
            now: Moment::START,
            session: None,
            reports: VecDeque::new(),
            looked: 0,
            heard: 0,
            tampered: 0,
        };
        mac.start(&[], 0);
        mac
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// The start of the agent: it takes over what is on the disk, and looks at it at once.
    pub(super) fn start(&mut self, samples: &[Sample], step: u64) {
        let options = Options {
            floor_percent: 0,
            lock_wait: Duration::ZERO,
            ..Options::default()
        };
        self.store = Some(Store::open(self.home.path(), options).unwrap());
        for recovered in self.store().recovered() {
            let digest = *recovered.layout.digest();
            self.reconciler.recovered(digest, &recovered.references);
            let sample = samples.iter().position(|sample| sample.digest() == digest);
            self.speak_of(sample.unwrap(), digest);
            if recovered.stage.is_installed() {
                self.take_up(digest);
            }
        }
        self.look(step);
        self.take_in_look();
    }

    /// The agent is killed and starts again. Jobs that run are lost, whether they had their effect or not.
    pub(super) fn restart(&mut self, samples: &[Sample], step: u64) {
        self.running.clear();
        self.looking = None;
        self.images.clear();
        self.reconciler = Reconciler::default();
        self.reports.clear();
        self.store = None;
        self.start(samples, step);
    }

    pub(super) fn speak_of(&mut self, sample: usize, digest: Digest) {
        self.images.entry(digest).or_insert(Image {
            sample,
            state: message::StageState::Queued,
            taken_up: false,
            ready: Vec::new(),
        });
    }

    pub(super) fn order(&mut self, samples: &[Sample], order: &message::Order) {
        self.hear_store();
        match &order.kind {
            Some(Kind::Stage(order)) => {
                let digest = message::digest(&order.manifest_digest).unwrap();
                let sample = samples.iter().position(|sample| sample.digest() == digest);
                self.reconciler.order(digest, &order.references, self.now);
                self.speak_of(sample.unwrap(), digest);
            }
            Some(Kind::Cancel(order)) => {
                let digest = message::digest(&order.manifest_digest).unwrap();
                match order.keep {
                    true => self.pause(digest),
                    false => {
                        self.reconciler.cancel(digest);
                        self.give_up(digest);
                    }
                }
            }
            Some(Kind::Names(order)) => {
                let names = order.names.iter().map(|name| {
                    let image = message::digest(&name.manifest_digest).unwrap();
                    (name.reference.clone(), image)
                });
                let (number, whole) = (order.number, order.whole);
                let dropped = self
                    .reconciler
                    .name(number, whole, names.collect(), self.now);
                for digest in dropped {
                    self.give_up(digest);
                }
            }
            _ => {}
        }
        self.refresh();
    }

    pub(super) fn give_up(&mut self, digest: Digest) {
        if !self.reconciler.is_installed(&digest) && self.images.remove(&digest).is_some() {
            self.reconciler.have(digest, Have::Kept);
            self.full_due = true;
        }
    }

    pub(super) fn pause(&mut self, digest: Digest) {
        self.reconciler.pause(digest);
        let is_whole = |image: &Image| {
            matches!(
                image.state,
                message::StageState::Present | message::StageState::Installing
            )
        };
        if self
            .images
            .get(&digest)
            .is_some_and(|image| !is_whole(image))
        {
            self.images.remove(&digest);
            self.reconciler.have(digest, Have::Kept);
            self.full_due = true;
        }
    }

    /// Takes in what the store itself found on the disk. This comes before anything else.
    pub(super) fn hear_store(&mut self) {
        for news in self.store().take_news() {
            let News::Removed { image: digest } = news else {
                continue;
            };
            // the news may be about an earlier stage
            let replaced = self.store().stage(&digest).is_some();
            let Some(image) = self.images.get_mut(&digest) else {
                continue;
            };
            if replaced || !image.taken_up {
                continue;
            }
            if image.state == message::StageState::Present {
                self.gone(digest);
            } else {
                image.taken_up = false;
                image.ready.clear();
                image.state = message::StageState::Queued;
                self.reconciler.have(digest, Have::Kept);
            }
        }
    }

    pub(super) fn take_up(&mut self, digest: Digest) {
        // what the last run left is read before it is installed
        if let Some(stage) = self.store().stage(&digest) {
            stage.read_again().unwrap();
        }
        if let Some(image) = self.images.get_mut(&digest) {
            image.taken_up = true;
            image.state = message::StageState::Staging;
        }
        self.filled(digest);
    }

    pub(super) fn is_whole(&self, digest: &Digest) -> bool {
        let taken_up = self.images.get(digest).is_some_and(|image| image.taken_up);
        let stage = self.store().stage(digest);
        taken_up && stage.is_some_and(|stage| stage.is_complete())
    }

    pub(super) fn filled(&mut self, digest: Digest) {
        let stage = self.store().stage(&digest);
        let installed = stage.is_some_and(|stage| stage.is_installed());
        let have = match (self.is_whole(&digest), installed) {
            (true, true) => Have::Installed,
            (true, false) => Have::Whole,
            (false, _) => Have::Filling,
        };
        if let Some(image) = self.images.get_mut(&digest)
            && have != Have::Filling
            && image.state == message::StageState::Staging
        {
            image.state = message::StageState::Installing;
        }
        self.reconciler.have(digest, have);
        self.refresh();
    }

    /// All chunks of all stages arrive.
    pub(super) fn fill(&mut self, samples: &[Sample]) {
        self.hear_store();
        for digest in self.images.keys().copied().collect::<Vec<_>>() {
            let image = &self.images[&digest];
            if image.taken_up && !self.is_whole(&digest) {
                let stage = self.store().stage(&digest).unwrap();
                samples[image.sample].fill(&stage);
                self.filled(digest);
            }
        }
    }

    pub(super) fn reconcile(&mut self) {
        while let Some((image, job)) = self.reconciler.next(self.now) {
            if let (Job::Install(_), Some(image)) = (&job, self.images.get_mut(&image)) {
                image.state = message::StageState::Installing;
            }
            if matches!(job, Job::Abandon) {
                self.images.remove(&image);
            }
            self.running.push_back(Running::Begun(image, job));
        }
    }

    /// One job takes its next step.
    pub(super) fn work(&mut self, samples: &[Sample], which: usize) {
        self.hear_store();
        if self.running.is_empty() {
            return;
        }
        match self.running.remove(which % self.running.len()).unwrap() {
            Running::Begun(image, job) => {
                let result = self.carry_out(samples, image, &job);
                self.running.push_back(Running::Done(image, job, result));
            }
            Running::Done(image, job, result) => self.done(image, &job, result),
        }
    }

    /// Carries out a job. `Err(true)`: the store lost the image of the job.
    pub(super) fn carry_out(
        &self,
        samples: &[Sample],
        image: Digest,
        job: &Job,
    ) -> Result<(), bool> {
        let store = self.store();
        match job {
            Job::Begin(names) => {
                let sample = samples
                    .iter()
                    .find(|sample| sample.digest() == image)
                    .unwrap();
                let wanted = store.want(&image, names);
                wanted
                    .and_then(|()| store.begin(&sample.layout, &sample.manifest, names))
                    .map(drop)
                    .map_err(|_| false)
            }
            Job::Record(names) => store.want(&image, names).map_err(|_| false),
            Job::Install(names) => {
                let stage = store.stage(&image).ok_or(true)?;
                install_as(&stage, names).1.map_err(|error| {
                    matches!(
                        error,
                        InstallError::Incomplete(_) | InstallError::Gone | InstallError::Removed
                    )
                })
            }
            Job::Abandon => store.abandon(image).map_err(|_| false),
        }
    }

    pub(super) fn done(&mut self, image: Digest, job: &Job, result: Result<(), bool>) {
        match job {
            Job::Begin(_) => match (self.reconciler.begun(image), result) {
                (true, Ok(())) => self.take_up(image),
                (true, Err(_)) => self.failed(image),
                (false, _) => {}
            },
            Job::Record(_) => self.reconciler.recorded(image, result.is_ok(), self.now),
            Job::Install(_) => {
                self.reconciler.installed(image, result.is_ok());
                let whole = self.is_whole(&image);
                if whole {
                    self.filled(image);
                }
                match result {
                    Ok(()) => {}
                    Err(true) if !whole => {}
                    Err(lost) => {
                        if lost {
                            self.reconciler.have(image, Have::Kept);
                        }
                        self.failed(image);
                    }
                }
            }
            Job::Abandon => self.reconciler.abandoned(image),
        }
        self.refresh();
    }

    pub(super) fn failed(&mut self, digest: Digest) {
        self.reconciler.failed(digest, self.now);
        if let Some(image) = self.images.get_mut(&digest) {
            image.state = message::StageState::Failed;
        }
    }

    pub(super) fn refresh(&mut self) {
        for digest in self.images.keys().copied().collect::<Vec<_>>() {
            if !self.is_whole(&digest) {
                continue;
            }
            let ready = self.reconciler.ready(&digest);
            let named = self.reconciler.names(&digest).next().is_some();
            let present = match named {
                true => self.reconciler.is_present(&digest),
                false => !ready.is_empty(),
            };
            let image = self.images.get_mut(&digest).unwrap();
            if image.state == message::StageState::Gone {
                continue;
            }
            image.ready = ready;
            if present {
                image.state = message::StageState::Present;
            } else if image.state == message::StageState::Present {
                image.state = message::StageState::Installing;
            }
        }
    }

    // ---- looks ------------------------------------------------------------------------------------------------------

    pub(super) fn installed_images(&self) -> BTreeSet<Digest> {
        let images = self.images.iter();
        let installed = images.filter(|(digest, image)| {
            let stage = self.store().stage(digest);
            image.taken_up
                && image.state != message::StageState::Gone
                && stage.is_some_and(|stage| stage.is_installed())
        });
        installed.map(|(digest, _)| *digest).collect()
    }

    pub(super) fn look(&mut self, step: u64) {
        self.reconciler.look_begins();
        let mut look = Look::default();
        for found in self.store().presence() {
            for name in found.moved {
                look.names.entry(name).or_insert(Sight::Other);
            }
            for name in found.references {
                look.names.insert(name, Sight::Image(found.digest));
            }
        }
        self.looking = Some(Seen { look, step });
    }

    pub(super) fn take_in_look(&mut self) {
        self.hear_store();
        let Some(seen) = self.looking.take() else {
            return;
        };
        self.looked = seen.step;
        self.reconciler.looked(&seen.look, self.now);
        self.refresh();
        for digest in self.installed_images() {
            let nameless = self.images[&digest].ready.is_empty();
            if nameless
                && !self.reconciler.is_wanted(&digest)
                && !self.reconciler.is_running(&digest)
            {
                self.gone(digest);
            }
        }
    }

    pub(super) fn gone(&mut self, digest: Digest) {
        if let Some(image) = self.images.get_mut(&digest) {
            image.state = message::StageState::Gone;
            image.taken_up = false;
            image.ready.clear();
        }
        self.reconciler.have(digest, Have::Gone);
    }

    // ---- words ------------------------------------------------------------------------------------------------------

    pub(super) fn states(&self) -> Vec<message::ImageState> {
        let images = self.images.iter();
        let state = |(digest, image): (&Digest, &Image)| message::ImageState {
            manifest: digest.as_bytes().to_vec(),
            state: image.state.into(),
            ready_references: match image.state {
                message::StageState::Present
                | message::StageState::Installing
                | message::StageState::Failed => image.ready.clone(),
                _ => Vec::new(),
            },
            ..message::ImageState::default()
        };
        images.map(state).collect()
    }

    pub(super) fn report(&mut self, full: bool) {
        if self.session.is_some() {
            let report = message::Report {
                images: self.states(),
                full: full || std::mem::take(&mut self.full_due),
                names: self.reconciler.confirmed(),
                ..message::Report::default()
            };
            self.reports.push_back((report, self.looked));
        }
    }

    pub(super) fn take_orders(&mut self, samples: &[Sample], most: usize) {
        for _ in 0..most {
            let orders = self.session.as_mut().map(|(_, orders)| orders);
            let Some(order) = orders.and_then(|orders| orders.try_recv().ok()) else {
                return;
            };
            self.order(samples, &order);
        }
    }

    // ---- the disk ---------------------------------------------------------------------------------------------------

    pub(super) fn cache(&self) -> PathBuf {
        fs::canonicalize(self.home.path())
            .unwrap()
            .join("cache/OCIs")
    }

    /// The path at which tart looks for a reference.
    pub(super) fn place(&self, reference: &str) -> PathBuf {
        let (repository, version) = match reference.split_once('@') {
            Some(parts) => parts,
            None => reference.rsplit_once(':').unwrap_or((reference, "latest")),
        };
        self.cache().join(repository).join(version)
    }

    /// The whole image that tart finds under a reference.
    pub(super) fn resolved(&self, samples: &[Sample], reference: &str) -> Option<Digest> {
        let place = self.place(reference);
        let found = fs::read_link(&place).unwrap_or(place);
        let digest: Digest = found.file_name()?.to_str()?.parse().ok()?;
        let sample = samples.iter().find(|sample| sample.digest() == digest)?;
        let whole = ["config.json", "disk.img", "nvram.bin"]
            .iter()
            .zip(&sample.contents);
        let whole = whole
            .into_iter()
            .all(|(name, bytes)| fs::read(found.join(name)).is_ok_and(|read| read == *bytes));
        whole.then_some(digest)
    }

    /// The tags in tart's cache, and the images that they name.
    pub(super) fn tags(&self) -> Vec<(String, Digest)> {
        let of = |tag: &&str| {
            let target = fs::read_link(self.place(tag)).ok()?;
            let digest = target.file_name()?.to_str()?.parse().ok()?;
            Some(((*tag).to_owned(), digest))
        };
        TAGS.iter().filter_map(of).collect()
    }

    /// The images that aren't wholly in tart's cache, and are in the agent's own directory.
    pub(super) fn stages(&self) -> BTreeSet<Digest> {
        let ours = fs::read_dir(self.home.path().join(".parbake")).unwrap();
        let images = ours.filter_map(|entry| {
            let name = entry.unwrap().file_name();
            format!("sha256:{}", name.to_str()?).parse().ok()
        });
        images.collect()
    }

    /// Somebody else, such as tart, removes a link, changes its target, or removes an image.
    pub(super) fn tamper(&mut self, samples: &[Sample], step: u64, how: u8, tag: &str) {
        let link = self.place(tag);
        if fs::symlink_metadata(&link).is_err() {
            return;
        }
        let target = fs::read_link(&link).unwrap();
        match how % 3 {
            0 => fs::remove_file(&link).unwrap(),
            1 => {
                let others = samples
                    .iter()
                    .map(|sample| target.with_file_name(sample.digest().to_string()));
                let Some(other) = others
                    .into_iter()
                    .find(|other| *other != target && other.exists())
                else {
                    return;
                };
                fs::remove_file(&link).unwrap();
                std::os::unix::fs::symlink(other, &link).unwrap();
            }
            _ => drop(fs::remove_dir_all(&target)),
        }
        self.tampered = step;
    }
}
