//! The work on this host's disk that the driver has done: images and their names, journals, goldens, and the mirror's
//! cache, which gives way to images.
//!
//! A method returns the [`Work`], which runs beside the loop and ends in an [`Input`]. Nothing here decides when.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use proto::{ChunkIndex, Digest, Reason, image::Layout, message::OldImages};
use tracing::{debug, warn};

use super::{
    image::NoRecipe,
    input::Input,
    jobs::{Long, Work},
    look::Seen,
    making, old_images,
    recipe_files::RecipeFiles,
    trouble::{Trouble, Unbegun},
};
use crate::{
    golden::Goldens,
    lock::lock,
    mirror::blobs::Blobs,
    platform,
    retention::{InForce, Terms},
    shelf::Shelf,
    store::{
        BeginError, InstallError, Look, Stage, Store, in_use, install_as,
        recipes::{self, NamedRecipe, ReadRecipeError},
        retire::{empty, preview, retire},
        survey::Survey,
    },
    tart::Fitness,
};

/// Old images are looked after this often, beside a look at the disk.
const RETIRE_EVERY: Duration = Duration::from_mins(1);

/// The store, and what shares its volume. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    store: Arc<Store>,
    /// The mirror's cache, where there is a mirror.
    blobs: Option<Arc<Blobs>>,
    /// Makes goldens, where they are wanted.
    goldens: Option<Arc<Goldens>>,
    /// Which images tart can use.
    fitness: Arc<Fitness>,
    /// tart's home, with the files of recipes.
    recipes: Arc<RecipeFiles>,
    /// Reads disks that parbake didn't build.
    survey: Arc<Survey>,
    /// When old images were last looked after, and by what terms. Locked while they are.
    retired: Arc<Mutex<Option<LookedAfter>>>,
    /// What decides which old images go, by the last order. A job that retires images goes by this for each of them,
    /// not by what counted when the job was made. Locked for a look.
    in_force: Arc<Mutex<InForce>>,
}

/// Old images were looked after.
#[derive(Debug)]
struct LookedAfter {
    at: Instant,
    by: Option<Terms>,
}

impl Disk {
    pub(super) fn new(
        store: Arc<Store>,
        blobs: Option<Arc<Blobs>>,
        goldens: Option<Arc<Goldens>>,
        fitness: Arc<Fitness>,
        home: PathBuf,
    ) -> Self {
        Self {
            survey: Arc::new(Survey::new(store.clone())),
            store,
            blobs,
            goldens,
            fitness,
            recipes: Arc::new(RecipeFiles::new(home)),
            retired: Arc::default(),
            in_force: Arc::default(),
        }
    }

    pub(super) const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn home(&self) -> &Path {
        self.recipes.home()
    }

    // ---- images -----------------------------------------------------------------------------------------------------

    /// Reserves room for an image, and takes up its files on the disk. Ends in [`Input::Begun`].
    pub(super) fn begin(
        &self,
        layout: Arc<Layout>,
        manifest: Arc<[u8]>,
        names: Vec<String>,
        by: (Option<Arc<NamedRecipe>>, BTreeSet<Digest>),
    ) -> Work {
        let disk = self.clone();
        Work::long(Long::Read, move || Input::Begun {
            image: *layout.digest(),
            result: disk.stage(&layout, &manifest, &names, &by),
        })
    }

    /// Opens the file of an image's recipe, which is here, or comes if there is room for it. Ends in
    /// [`Input::RecipeOpened`].
    pub(super) fn open_recipe(&self, image: Digest, file: proto::image::Blob) -> Work {
        let disk = self.clone();
        Work::blocking(move || Input::RecipeOpened {
            image,
            result: disk.recipes.open_above_floor(file, &image, &disk.store),
        })
    }

    /// Reads an image's recipe. A recipe that comes when the image is whole is compared with the image, and noted with
    /// it. Ends in [`Input::RecipeRead`].
    pub(super) fn read_recipe(
        &self,
        layout: Arc<Layout>,
        file: proto::image::Blob,
        stage: Option<Arc<Stage>>,
    ) -> Work {
        let (home, store) = (self.home().to_owned(), self.store.clone());
        Work::blocking(move || {
            let name = file.digest;
            let read = recipes::read(&home, &name, &layout);
            let read = read.and_then(|recipe| {
                if let Some(stage) = stage {
                    stage.compare_recipe(&name, &recipe)?;
                    let noted = store.keep_recipe(&stage, file);
                    noted.map_err(|error| ReadRecipeError::Io { name, error })?;
                }
                Ok(Arc::new(NamedRecipe { file, recipe }))
            });
            Input::RecipeRead {
                image: *layout.digest(),
                result: read.map_err(|error| NoRecipe {
                    is_false: error.is_false(),
                    error: error.to_string(),
                }),
            }
        })
    }

    /// Makes the recipe of an image that is whole here, at half the speed of a thread: so the host's own work, and
    /// others that are served, lose little. Ends in [`Input::RecipeMade`].
    pub(super) fn make_recipe(&self, image: Digest, stage: Arc<Stage>) -> Work {
        let (files, store) = (self.recipes.clone(), self.store.clone());
        Work::waiting(async move {
            let made = making::make(store, stage, files).await;
            if let Err(error) = &made {
                warn!(%image, %error, "the image's recipe can't be made; another host is asked");
            }
            Input::RecipeMade {
                image,
                result: made.map_err(|error| error.to_string()),
            }
        })
    }

    /// Removes files of recipes that are needed no more. Ends in [`Input::Nothing`].
    pub(super) fn sweep_recipes(&self) -> Work {
        let disk = self.clone();
        Work::blocking(move || {
            disk.drop_recipes();
            Input::Nothing
        })
    }

    fn drop_recipes(&self) {
        if let Err(error) = self.recipes.sweep(&self.store) {
            warn!(%error, "recipes that no image needs any more can't be removed; it is tried again");
        }
    }

    /// Returns the stage, and how many bytes were copied.
    fn stage(
        &self,
        layout: &Layout,
        manifest: &[u8],
        names: &[String],
        (recipe, in_doubt): &(Option<Arc<NamedRecipe>>, BTreeSet<Digest>),
    ) -> Result<(Arc<Stage>, u64), Unbegun> {
        self.fitness
            .may_stage(layout.format())
            .map_err(Trouble::from)?;
        let by = recipe.as_deref().map(|recipe| (recipe, in_doubt));
        let (store, image) = (&self.store, layout.digest());
        let make_room = |bytes| {
            let blobs = self.blobs.as_ref();
            blobs.is_some_and(|blobs| blobs.give_way(self.home(), bytes))
        };
        let kept = store.keep_entitled(image).map_err(BeginError::Io);
        let begun = kept
            .and_then(|()| store.want(image, names))
            .and_then(|()| store.begin_making_room(layout, manifest, names, by, make_room));
        if let Some(blobs) = &self.blobs {
            blobs.leave(self.home(), store.outstanding_bytes());
        }
        begun.map_err(|error| {
            let mut unbegun = Unbegun::from(error);
            if let Some(short) = &mut unbegun.short {
                short.could_go = self.what_could_go();
            }
            unbegun
        })
    }

    /// Which old images could go, by the strictest rule that there is, and what that would free.
    fn what_could_go(&self) -> String {
        let terms = Terms::strictest(lock(&self.in_force).in_use.clone());
        old_images::room_words(preview(self.home(), &terms, SystemTime::now()))
    }

    /// Writes down which names are wanted for an image. Ends in [`Input::Recorded`].
    pub(super) fn record(&self, image: Digest, names: Vec<String>) -> Work {
        let store = self.store.clone();
        Work::blocking(move || {
            let result = store.want(&image, &names);
            Input::Recorded {
                image,
                result: result.map_err(|error| Trouble::from(&error)),
            }
        })
    }

    /// Makes tart find an image under these names. Ends in [`Input::Installed`], or if this host's tart is known not to
    /// see such images, in [`Input::Golden`] with the reason.
    pub(super) fn install(&self, image: Digest, stage: Arc<Stage>, names: Vec<String>) -> Work {
        let fitness = self.fitness.clone();
        Work::long(Long::Install, move || {
            if let Some(unfit) = fitness.refuses(stage.layout().format()) {
                return Input::Golden {
                    image,
                    stage,
                    result: Err(unfit.into()),
                    installed: Ok(()),
                };
            }
            let (placed, result) = install_as(&stage, &names);
            Input::Installed {
                image,
                stage,
                placed,
                result,
            }
        })
    }

    /// Makes goldens of the names that were linked, while they are there. Ends in [`Input::Golden`]. Returns
    /// `installed` if there is nothing to make.
    pub(super) fn make_goldens(
        &self,
        image: Digest,
        stage: &Arc<Stage>,
        placed: Vec<String>,
        installed: Result<(), InstallError>,
    ) -> Result<Work, Result<(), InstallError>> {
        match self.goldens.clone().filter(|_| !placed.is_empty()) {
            Some(goldens) => {
                let (stage, fitness) = (stage.clone(), self.fitness.clone());
                Ok(Work::waiting(async move {
                    let fit = fitness.may_clone(stage.layout().format());
                    let result = match fit.map_err(Trouble::from) {
                        Ok(()) => make_goldens(&goldens, image, &stage, placed).await,
                        unfit => unfit,
                    };
                    Input::Golden {
                        image,
                        stage,
                        result,
                        installed,
                    }
                }))
            }
            None => Err(installed),
        }
    }

    /// Removes an image's files from the disk. Ends in [`Input::Abandoned`].
    pub(super) fn abandon(&self, image: Digest) -> Work {
        let store = self.store.clone();
        Work::blocking(move || {
            if let Err(error) = store.abandon(image) {
                warn!(%image, %error, "removing a cancelled stage failed; it is removed at the next start");
            }
            Input::Abandoned(image)
        })
    }

    /// Writes down which hosts may have an image's contents.
    pub(super) fn keep_entitled(&self, image: Digest) -> Work {
        let store = self.store.clone();
        Work::blocking(move || {
            if let Err(error) = store.keep_entitled(&image) {
                warn!(%image, %error, "writing down who may have an image failed; it is tried again within a minute");
            }
            Input::Nothing
        })
    }

    // ---- all of it --------------------------------------------------------------------------------------------------

    /// Writes down which chunks were stored. Ends in [`Input::Flushed`].
    pub(super) fn flush(&self) -> Work {
        let disk = self.clone();
        Work::blocking(move || {
            let blobs = disk.flush_blobs();
            Input::Flushed {
                images: disk.store.flush().map_err(|error| error.to_string()),
                blobs: blobs.map_err(|error| error.to_string()),
            }
        })
    }

    fn flush_blobs(&self) -> io::Result<()> {
        self.blobs.as_ref().map_or(Ok(()), |blobs| blobs.flush())
    }

    /// Writes everything down at the end. Blocks for as long as the volume takes.
    pub(super) fn seal(&self) -> io::Result<()> {
        let images = self.store.flush();
        self.flush_blobs().and(images)
    }

    /// Looks which images and names are on the disk. Blocks for a few system calls for each image and name, and while
    /// another tart than before is asked for its version.
    pub(super) fn see(&self) -> Seen {
        Seen::look(&self.store, self.goldens.as_deref(), &self.fitness)
    }

    /// Looks which images and names are on the disk, and measures how busy the host is. Ends in [`Input::Presence`].
    pub(super) fn look(&self) -> Work {
        let disk = self.clone();
        Work::blocking(move || Input::Presence {
            seen: disk.see(),
            load_percent: platform::load_percent(),
        })
    }

    /// Takes what decides from now on which old images go, also for a job that is under way.
    pub(super) fn heed(&self, in_force: InForce) {
        *lock(&self.in_force) = in_force;
    }

    /// Retires old images by what is in force, ends what guards young ones, and removes what was retired before, and
    /// recipes that nobody needs. Writes down who may have images, where that failed before. `None` if that was done by
    /// these terms within the last minute, or is under way. It isn't a part of [`look`](Self::look), because removing
    /// whole disks takes a while, and presence is waited for. Ends in [`Input::Nothing`]; the store has the news.
    pub(super) fn retire(&self) -> Option<Work> {
        let due = |last: &Option<LookedAfter>, terms: &Option<Terms>| {
            let last = last.as_ref();
            last.is_none_or(|last| last.at.elapsed() >= RETIRE_EVERY || last.by != *terms)
        };
        let terms = lock(&self.in_force).terms.clone();
        if !self.retired.try_lock().is_ok_and(|last| due(&last, &terms)) {
            return None;
        }
        let disk = self.clone();
        Some(Work::blocking(move || {
            let mut last = lock(&disk.retired);
            let terms = || lock(&disk.in_force).terms.clone();
            let by = terms();
            // another job may have been started before the lock was taken
            if due(&last, &by) {
                let in_use = lock(&disk.in_force).in_use.clone();
                in_use::keep(&disk.store, &in_use);
                disk.store.unguard();
                retire(&disk.store, &terms, SystemTime::now());
                empty(&disk.store);
                if let Err(error) = disk.store.keep_all_entitled() {
                    warn!(%error, "who may have an image still can't be written down; a restart begins with what stood before");
                }
                disk.drop_recipes();
                *last = Some(LookedAfter {
                    at: Instant::now(),
                    by,
                });
            }
            Input::Nothing
        }))
    }

    /// Says what would become of the images on the disk by these terms. Ends in [`Input::OldImages`].
    pub(super) fn preview(&self, terms: Option<Terms>, answer: OldImages) -> Work {
        let home = self.home().to_owned();
        Work::blocking(move || {
            let terms = terms.as_ref();
            let seen = terms.map(|terms| preview(&home, terms, SystemTime::now()));
            Input::OldImages(Box::new(old_images::answer(answer, seen)))
        })
    }

    /// Says whether disks that parbake didn't build may be read now. If not, the part that is being read ends early.
    pub(super) fn let_survey(&self, may: bool) {
        self.survey.set_may_read(may);
    }

    /// Reads a part of a disk that parbake didn't build. Ends in [`Input::Surveyed`].
    pub(super) fn survey(&self) -> Work {
        let survey = self.survey.clone();
        Work::long(Long::Read, move || {
            let surveyed = survey.step(SystemTime::now());
            Input::Surveyed(surveyed.map_err(|error| error.to_string()))
        })
    }

    /// Measures the volume's room. Ends in [`Input::Measured`].
    pub(super) fn measure(&self) -> Work {
        let store = self.store.clone();
        Work::blocking(move || Input::Measured(store.volume()))
    }
}

async fn make_goldens(
    goldens: &Goldens,
    image: Digest,
    stage: &Stage,
    placed: Vec<String>,
) -> Result<(), Trouble> {
    let mut made = Ok(());
    for reference in placed {
        let names = || !stage.is_gone() && stage.is_named(&reference);
        made = made.and(goldens.make(&reference, image, names).await);
    }
    made.map_err(|error| Trouble {
        reason: Reason::GoldenFailed,
        message: error.to_string(),
    })
}

/// Decodes the layers that travelled as this blob. A failure shows at the installation, which tries again.
pub(super) fn decode(stage: Arc<Stage>, content: Digest) -> Work {
    Work::long(Long::Read, move || {
        if let Err(error) = stage.decode(content) {
            debug!(%content, %error, "layers weren't decoded; the installation does it");
        }
        Input::Nothing
    })
}

/// Reads the bytes that an earlier process left in a stage. Ends in [`Input::ReadAgain`].
pub(super) fn read_again(image: Digest, stage: Arc<Stage>) -> Work {
    Work::long(Long::Read, move || Input::ReadAgain {
        image,
        result: stage.read_again().map_err(|error| error.to_string()),
        stage,
    })
}

/// Reads chunks of a content again, on every shelf that has the content. `last`: these are the content's last chunks.
/// Ends in [`Input::Scrubbed`].
pub(super) fn scrub(content: Digest, shelves: Vec<Shelf>, chunks: Range<u32>, last: bool) -> Work {
    Work::blocking(move || {
        for chunk in chunks.map(ChunkIndex) {
            for shelf in &shelves {
                // the store tells of rotten chunks; a chunk that can't be read now shows by other means
                if let Err(error) = shelf.look(content, chunk) {
                    debug!(%content, %chunk, %error, "a chunk can't be read now");
                }
            }
        }
        for shelf in shelves.iter().filter(|_| last) {
            if let Err(error) = shelf.mend_decoded(content) {
                debug!(%content, %error, "decoded bytes can't be compared now");
            }
        }
        Input::Scrubbed
    })
}

/// Reads a chunk for which a peer blames this host. Ends in [`Input::Looked`].
pub(super) fn look_at(content: Digest, shelves: Vec<Shelf>, chunk: ChunkIndex) -> Work {
    Work::blocking(move || {
        let mut rotten = false;
        for shelf in &shelves {
            match shelf.look(content, chunk) {
                Ok(look) => rotten |= look == Look::Rotten,
                Err(error) => {
                    warn!(%content, %chunk, %error, "a chunk for which a peer blames this host can't be read");
                }
            }
        }
        Input::Looked {
            content,
            chunk,
            rotten,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        metrics::Metrics,
        reconcile::Sight,
        retention::InUse,
        store::{
            install,
            tests::{begin, fill, open, ours, sample, stacked::stack},
        },
        tart::{Tart, tests::program},
    };

    fn run(work: Option<Work>) {
        let Some(Work::Blocking(job)) = work else {
            panic!("nothing is to be done");
        };
        job();
    }

    #[test]
    fn a_job_that_retires_images_goes_by_the_last_order_and_not_by_that_of_its_making() {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(open(&home));
        let path = home.path().to_owned();
        let fitness = Arc::new(Fitness::new(path.join("tart")));
        let disk = Disk::new(store.clone(), None, None, fitness, path);
        let (old, name) = (sample(1), "ghcr.io/org/image:1");
        let (stage, _) = begin(&store, &old, &[name]);
        fill(&stage, &old);
        install(&stage, &[]).unwrap();
        let image = *old.layout.digest();
        store.want(&image, &[]).unwrap();
        // nobody wanted or cloned it for more than a day
        let long_ago = SystemTime::now() - Duration::from_hours(30);
        let times = fs::FileTimes::new().set_accessed(long_ago);
        let times = times.set_modified(long_ago);
        let cached = format!("cache/OCIs/ghcr.io/org/image/{image}");
        for path in [
            home.path().join(cached),
            ours(&home, &old).join("status.json"),
        ] {
            fs::File::open(path).unwrap().set_times(times).unwrap();
        }
        let rule = |in_use: &[&str]| {
            let in_use = InUse::new(in_use.iter().map(|name| (*name).to_owned()), false);
            let terms = Terms {
                in_use: in_use.clone(),
                ..Terms::of(None, Some(1))
            };
            InForce {
                terms: Some(terms),
                in_use,
            }
        };
        let is_here = || store.stage(&image).is_some();
        // two jobs wait for a thread, and a Pod comes before either begins
        disk.heed(rule(&[]));
        let (first, second) = (disk.retire(), disk.retire());
        disk.heed(rule(&[name]));
        run(second);
        run(first);
        assert!(is_here());
        // and after a restart without a coordinator
        assert_eq!(in_use::kept(home.path()), rule(&[name]).in_use);
        // the rule is taken back
        disk.heed(rule(&[]));
        let made = disk.retire();
        disk.heed(InForce::default());
        run(made);
        assert!(is_here());
        assert_eq!(in_use::kept(home.path()), InUse::default());
        let list = home.path().join(".parbake/in-use");
        fs::write(&list, [0xff]).unwrap();
        assert_eq!(in_use::kept(home.path()), InUse::unknown());
        disk.heed(rule(&[]));
        run(disk.retire());
        assert!(!is_here());
    }

    #[test]
    fn a_stacked_image_isnt_there_while_tart_is_known_to_be_too_old() {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(open(&home));
        let path = home.path().to_owned();
        let says = |version: &str| {
            let new = home.path().join("new");
            program(&new, &format!("#!/bin/sh\necho {version}\n"));
            fs::rename(&new, home.path().join("tart")).unwrap();
        };
        let fitness = Arc::new(Fitness::new(path.join("tart")));
        let disk = Disk::new(store.clone(), None, None, fitness, path);
        let [stacked, flat] = ["ghcr.io/org/image:stacked", "ghcr.io/org/image:flat"];
        let mut images = BTreeSet::new();
        for (sample, name) in [(stack(1), stacked), (sample(2), flat)] {
            let (stage, _) = begin(&store, &sample, &[name]);
            fill(&stage, &sample);
            install(&stage, &[]).unwrap();
            images.insert(*sample.layout.digest());
        }
        let image = *stack(1).layout.digest();
        let install_again = || {
            let stage = store.stage(&image).unwrap();
            let work = disk.install(image, stage, vec![stacked.to_owned()]);
            let Work::Long(_, job) = work else {
                panic!("an installation may take minutes");
            };
            job()
        };
        // a tart that doesn't say its version takes nothing away
        for (version, sees) in [
            ("2.36.0", true),
            ("2.35.1", false),
            ("SNAPSHOT", true),
            ("2.34.0", false),
            ("2.40.1", true),
        ] {
            says(version);
            let seen = disk.see();
            assert_eq!(seen.there, images);
            assert!(matches!(seen.look.names[flat], Sight::Image(_)));
            let sight = match sees {
                true => Sight::Image(image),
                false => Sight::Nothing,
            };
            assert_eq!(seen.look.names[stacked], sight, "{version}");
            assert_eq!(seen.refused.contains_key(&image), !sees, "{version}");
            assert!(seen.refused.len() <= 1);
            match install_again() {
                Input::Installed { placed, result, .. } if sees => {
                    assert_eq!(placed, [stacked]);
                    result.unwrap();
                }
                Input::Golden { result, .. } if !sees => {
                    assert_eq!(result.unwrap_err().reason, Reason::NeedsNewerTart);
                }
                other => panic!("{version}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_golden_of_a_stacked_image_is_made_where_macos_is_new_enough() {
        const NAME: &str = "ghcr.io/org/image:1";
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(open(&home));
        let (path, binary) = (home.path().to_owned(), home.path().join("tart"));
        // tart clones the image as a stacked VM
        let clone = "#!/bin/sh\ncd \"$TART_HOME\" && mkdir -p vms/$3 && cd vms/$3 && \
                     touch config.json nvram.bin manifest.json overlay.asif\n";
        program(&binary, clone);
        let tart = Tart::new(binary.clone(), home.path()).with_pause(Duration::from_millis(1));
        let goldens = Goldens::new("golden-".to_owned(), path.clone(), tart, Metrics::new().0);
        let goldens = Arc::new(goldens);
        let macos = home.path().join("macos");
        let fitness = Arc::new(Fitness::new(binary).with_macos(macos.clone()));
        let disk = Disk::new(store.clone(), None, Some(goldens.clone()), fitness, path);
        let sample = stack(1);
        let (stage, _) = begin(&store, &sample, &[NAME]);
        fill(&stage, &sample);
        install(&stage, &[]).unwrap();
        let image = *sample.layout.digest();
        let make = async |version: &str| {
            let key = "<key>ProductVersion</key>";
            fs::write(&macos, format!("{key}<string>{version}</string>")).unwrap();
            let placed = vec![NAME.to_owned()];
            let Ok(Work::Waiting(job)) = disk.make_goldens(image, &stage, placed, Ok(())) else {
                panic!("nothing is to be made");
            };
            let Input::Golden { result, .. } = job.await else {
                panic!("goldens end in another input");
            };
            result
        };
        let unfit = make("26.4").await.unwrap_err();
        assert_eq!(unfit.reason, Reason::NeedsNewerMacos, "{unfit:?}");
        assert!(!goldens.exists(NAME, image) && !home.path().join("vms").exists());
        assert_eq!(make("27.0").await, Ok(()));
        assert!(goldens.exists(NAME, image));
        let golden = proto::image::golden_name("golden-", NAME);
        let golden = home.path().join("vms").join(golden);
        assert!(golden.join("overlay.asif").exists());
    }
}
