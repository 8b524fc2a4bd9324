//! Tests of images without a disk or a swarm: orders and ends of jobs go in, effects come out.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    rc::Rc,
    time::{Instant, SystemTime},
};

use proto::{
    HostKey,
    image::{Blob, CONFIG_TYPE, DISK_TYPE, MANIFEST_TYPE, NVRAM_TYPE, RAW_SIZE_ANNOTATION},
    message::{self, ImageState, StageOrder, StageState, order::Kind},
};
use serde_json::json;

use super::*;
use crate::{
    driver::{
        image_state,
        orders::{self, Order},
    },
    platform::LockError,
    reconcile::{Look, Sight},
    registries::Access,
};

mod disk;
mod recipes;

/// A stage directory as a test wants it to be.
#[derive(Clone, Debug, Default)]
pub(in crate::driver) struct Disk(pub(in crate::driver) Rc<Inner>);

#[derive(Debug, Default)]
pub(in crate::driver) struct Inner {
    pub(in crate::driver) gone: Cell<bool>,
    pub(in crate::driver) installed: Cell<bool>,
    pub(in crate::driver) doubted: Cell<bool>,
    pub(in crate::driver) written: Cell<u64>,
    pub(in crate::driver) unread: Cell<bool>,
    pub(in crate::driver) closed: RefCell<BTreeSet<Digest>>,
    pub(in crate::driver) begun_at: Cell<Option<SystemTime>>,
    pub(in crate::driver) recipe: Cell<Option<Blob>>,
    /// Whether some content contradicts the recipe.
    pub(in crate::driver) misled: Cell<bool>,
    /// Whether it is known that hosts made the recipe.
    pub(in crate::driver) of_hosts: Cell<bool>,
    /// The contents whose recipe was left.
    pub(in crate::driver) left: RefCell<BTreeSet<Digest>>,
}

impl Disk {
    fn whole(layout: &Layout) -> Self {
        let disk = Self::default();
        let contents = layout.contents();
        let all = contents.iter().map(|content| content.digest);
        disk.0.closed.borrow_mut().extend(all);
        disk
    }
}

impl OnDisk for Disk {
    fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn is_gone(&self) -> bool {
        self.0.gone.get()
    }

    fn is_installed(&self) -> bool {
        self.0.installed.get()
    }

    fn is_complete(&self) -> bool {
        true
    }

    fn is_doubted(&self) -> bool {
        self.0.doubted.get()
    }

    fn is_closed(&self, content: Digest) -> bool {
        self.0.closed.borrow().contains(&content)
    }

    fn has_to_be_read(&self) -> bool {
        self.0.unread.get()
    }

    fn held_bytes(&self, layout: &Layout) -> u64 {
        let contents = layout.contents();
        let held = contents.iter().filter(|one| self.is_closed(one.digest));
        held.map(|one| one.geometry.size()).sum()
    }

    fn written_bytes(&self) -> u64 {
        self.0.written.get()
    }

    fn begun_at(&self) -> Option<SystemTime> {
        self.0.begun_at.get()
    }

    fn recipe(&self) -> Option<Blob> {
        self.0.recipe.get()
    }

    fn proved_recipe(&self) -> Option<Blob> {
        self.0.recipe.get().filter(|_| !self.0.misled.get())
    }

    fn set_of_hosts(&self, of_hosts: bool) {
        self.0.of_hosts.set(of_hosts);
    }

    fn leave_recipe(&self, content: Digest) {
        self.0.left.borrow_mut().insert(content);
    }
}

pub(in crate::driver) fn manifest(seed: &str) -> Vec<u8> {
    let digest = |what: &str| Digest::of(format!("{seed} {what}").as_bytes()).to_string();
    let oci = "application/vnd.oci.image.config.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": oci, "digest": digest("oci"), "size": 2},
        "layers": [
            {"mediaType": CONFIG_TYPE, "digest": digest("config"), "size": 10},
            {"mediaType": DISK_TYPE, "digest": digest("disk"), "size": 700, "annotations": {RAW_SIZE_ANNOTATION: "1000"}},
            {"mediaType": NVRAM_TYPE, "digest": digest("nvram"), "size": 20},
        ],
    });
    manifest.to_string().into_bytes()
}

const NAME: &str = "r.test/a:1";

/// One image, and the parts that it needs.
struct World {
    images: Images<Disk>,
    now: Moment,
    image: Digest,
    layout: Layout,
    disk: Disk,
    /// Whether orders say that hosts made the recipe.
    made_by_hosts: bool,
}

impl World {
    fn new() -> Self {
        let manifest = manifest("a");
        let image = Digest::of(&manifest);
        Self {
            images: Images::default(),
            now: Moment::START + Duration::from_secs(100),
            layout: Layout::parse(&manifest, &image).unwrap(),
            image,
            disk: Disk::default(),
            made_by_hosts: false,
        }
    }

    fn ordered() -> Self {
        let mut world = Self::new();
        world.order(7);
        world
    }

    /// With its stage taken up, and its names written down.
    fn filling() -> Self {
        let mut world = Self::ordered();
        assert_eq!(world.jobs(), ["begin"]);
        world.begun();
        assert_eq!(world.jobs(), ["record"]);
        world.images.recorded(world.now, world.image, Ok(()));
        world.drain();
        world
    }

    /// With all chunks, and in the middle of an installation.
    fn installing() -> Self {
        let mut world = Self::filling();
        world.close_all();
        world.look(&[]);
        assert_eq!(world.jobs(), ["install"]);
        world
    }

    fn present() -> Self {
        let mut world = Self::installing();
        world.disk.0.installed.set(true);
        world.link(Ok(()), Ok(()));
        world.look(&[(NAME, Sight::Image(world.image))]);
        assert_eq!(world.state(), StageState::Present);
        world
    }

    fn order(&mut self, number: u64) -> Vec<&'static str> {
        let order = StageOrder {
            manifest_digest: self.image.as_bytes().to_vec(),
            manifest: manifest("a"),
            references: vec![NAME.into()],
            order: number,
            ..StageOrder::default()
        };
        self.take(order);
        self.drain()
    }

    fn take(&mut self, order: StageOrder) {
        let kind = Some(Kind::Stage(order));
        match orders::read(message::Order { kind }).unwrap() {
            Order::Stage {
                image,
                ordered,
                manifest,
            } => self.images.order(self.now, image, ordered, &manifest),
            other => panic!("{other:?}"),
        }
    }

    fn begun(&mut self) -> Vec<&'static str> {
        let stage = Ok((self.disk.clone(), 0));
        self.images.begun(self.now, self.image, stage, None);
        self.drain()
    }

    fn close_all(&mut self) -> Vec<&'static str> {
        for content in self.layout.contents() {
            self.disk.0.closed.borrow_mut().insert(content.digest);
            self.images
                .content_closed(self.now, self.image, &content.digest);
        }
        self.drain()
    }

    fn hear(&mut self, images: &[Digest], news: ImageNews) {
        self.images.hear(self.now, images, news);
    }

    fn link(
        &mut self,
        installed: Result<(), InstallError>,
        golden: Result<(), Trouble>,
    ) -> Vec<&'static str> {
        let disk = self.disk.clone();
        self.images
            .linked(self.now, self.image, &disk, installed, golden);
        self.drain()
    }

    fn look(&mut self, names: &[(&str, Sight)]) -> Vec<&'static str> {
        self.find(names, [self.image].into(), BTreeMap::new())
    }

    /// The image lies in tart's cache, and this host's tart doesn't see it.
    fn look_unseen(&mut self) -> Vec<&'static str> {
        let refused = BTreeMap::from([(self.image, trouble(Reason::NeedsNewerTart))]);
        self.find(&[(NAME, Sight::Nothing)], [self.image].into(), refused)
    }

    fn find(
        &mut self,
        names: &[(&str, Sight)],
        there: BTreeSet<Digest>,
        refused: BTreeMap<Digest, Trouble>,
    ) -> Vec<&'static str> {
        let seen = seen(names, there, refused);
        self.images.look_begins();
        self.images.looked(self.now, &seen, self.now);
        self.drain()
    }

    fn jobs(&mut self) -> Vec<&'static str> {
        self.images.begin_jobs(self.now);
        self.drain()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// The names of what is to be done.
    fn drain(&mut self) -> Vec<&'static str> {
        let all = std::iter::from_fn(|| self.images.poll());
        let named = all.filter_map(|effect| {
            Some(match effect {
                Effect::Begin { recipe: None, .. } => "begin",
                Effect::Begin { .. } => "begin by the recipe",
                Effect::OpenRecipe { .. } => "open the recipe",
                Effect::LeaveRecipe(..) => "leave the recipe",
                Effect::ReadRecipe(..) => "read the recipe",
                Effect::Record { .. } => "record",
                Effect::Decode { .. } => "decode",
                Effect::Install { .. } => "install",
                Effect::Abandon(_) => "abandon",
                Effect::ReadAgain { .. } => "read again",
                Effect::TakeUp { .. } => "take up",
                Effect::Withdraw { .. } => "withdraw",
                Effect::Entitle { .. } => "entitle",
                Effect::Retell { .. } => "retell",
                Effect::Reorder(_) => "reorder",
                Effect::SetAside(_) => "set aside",
                Effect::Present { .. } => "present",
                Effect::Failed { .. } => "failed",
                Effect::ReportNow => "report",
                Effect::GiveUp(_) => "give up",
                Effect::ReportAll => "report all",
                Effect::Renew { .. } | Effect::ReportSoon => return None,
            })
        });
        named.collect()
    }

    /// An earlier process left the image as the disk has it.
    fn recover(&mut self) {
        let left = Left {
            layout: Arc::new(self.layout.clone()),
            manifest: manifest("a").into(),
            wanted: vec![NAME.into()],
            references: vec![NAME.into()],
            entitled: None,
            stage: self.disk.clone(),
        };
        self.images.recovered(self.now, left, None);
    }

    fn found(&self) -> &Image<Disk> {
        self.images.catalogue.find(&self.image).unwrap()
    }

    fn state(&self) -> StageState {
        self.found().state()
    }

    fn reason(&self) -> &str {
        let trouble = self.found().trouble.as_ref();
        trouble.map_or("", |trouble| trouble.reason.as_str())
    }

    fn told(&self) -> ImageState {
        let nothing = swarm::Status::default();
        let images = &self.images;
        let reconciler = images.reconciler();
        let catalogue = images.catalogue();
        let mut told = catalogue.states(self.now, reconciler, &nothing, |_| None, None);
        assert_eq!(told.len(), 1);
        told.remove(0)
    }
}

fn seen(
    names: &[(&str, Sight)],
    there: BTreeSet<Digest>,
    refused: BTreeMap<Digest, Trouble>,
) -> Seen {
    let names = names.iter().map(|(name, sight)| (name.to_string(), *sight));
    Seen {
        look: Look {
            names: names.collect(),
        },
        there,
        refused,
        began: Instant::now(),
    }
}

fn trouble(reason: Reason) -> Trouble {
    Trouble {
        reason,
        message: "as a test wants it".into(),
    }
}

// ---- orders ---------------------------------------------------------------------------------------------------------

#[test]
fn an_image_goes_from_the_order_to_presence() {
    let mut world = World::new();
    assert_eq!(world.order(7), ["entitle"]);
    assert_eq!(world.state(), StageState::Queued);
    assert_eq!(world.jobs(), ["begin"]);
    assert_eq!(world.begun(), ["take up"]);
    assert_eq!(world.state(), StageState::Staging);
    assert!(world.images.catalogue().is_filling());
    assert_eq!(world.jobs(), ["record"]);
    world.images.recorded(world.now, world.image, Ok(()));
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.close_all();
    assert_eq!(world.state(), StageState::Installing);
    assert!(!world.images.catalogue().is_filling());
    // before a look nothing is known of the image's names
    assert!(world.images.reconciler().look_due());
    assert_eq!(world.look(&[]), [] as [&str; 0]);
    assert_eq!(world.jobs(), ["install"]);
    world.disk.0.installed.set(true);
    world.link(Ok(()), Ok(()));
    assert_eq!(world.state(), StageState::Installing);
    assert!(world.images.reconciler().look_due());
    let seen = [(NAME, Sight::Image(world.image))];
    assert_eq!(world.look(&seen), ["present", "report"]);
    assert_eq!(world.state(), StageState::Present);
    assert_eq!(world.told().ready_references, [NAME]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
}

#[test]
fn the_time_to_presence_counts_from_the_order_and_from_the_last_chunk() {
    let mut world = World::filling();
    world.wait(Duration::from_secs(60));
    world.close_all();
    world.wait(Duration::from_secs(2));
    world.look(&[]);
    world.jobs();
    world.disk.0.installed.set(true);
    world.link(Ok(()), Ok(()));
    let names = [(NAME, Sight::Image(world.image))];
    let seen = seen(&names, BTreeSet::new(), BTreeMap::new());
    world.images.look_begins();
    world.images.looked(world.now, &seen, world.now);
    let times = std::iter::from_fn(|| world.images.poll()).find_map(|effect| match effect {
        Effect::Present {
            staged_in,
            installed_in,
        } => Some((staged_in.as_secs(), installed_in.as_secs())),
        _ => None,
    });
    assert_eq!(times, Some((62, 2)));
}

#[test]
fn an_order_for_what_is_here_renews_what_fetches_use_and_changes_nothing_else() {
    let mut world = World::present();
    let order = StageOrder {
        manifest_digest: world.image.as_bytes().to_vec(),
        references: vec![NAME.into()],
        order: 8,
        plain_http: true,
        ..StageOrder::default()
    };
    world.take(order);
    let Some(Effect::Renew { image, access }) = world.images.poll() else {
        panic!("fetches aren't told");
    };
    assert_eq!((image, access), (world.image, Access::new(None, true)));
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(world.state(), StageState::Present);
    assert_eq!(world.told().order, Some(8));
}

#[test]
fn who_may_have_an_image_is_told_and_written_down_when_it_changes() {
    let mut world = World::filling();
    let mut order = StageOrder {
        manifest_digest: world.image.as_bytes().to_vec(),
        references: vec![NAME.into()],
        entitled_hosts: vec![3],
        ..StageOrder::default()
    };
    world.take(order.clone());
    assert_eq!(world.drain(), ["entitle", "retell"]);
    let entitled = world
        .images
        .catalogue()
        .entitled(&world.image)
        .unwrap()
        .unwrap();
    assert!(entitled.contains(&HostKey(3)));
    world.take(order.clone());
    assert_eq!(world.drain(), [] as [&str; 0]);
    order.entitled_hosts.clear();
    world.take(order);
    assert_eq!(world.drain(), ["entitle", "retell"]);
    assert_eq!(world.images.catalogue().entitled(&world.image), Some(None));
    // no host may have a forgotten image's contents
    assert_eq!(
        world.images.catalogue().entitled(&Digest::of(b"another")),
        None
    );
}

#[test]
fn an_order_without_a_manifest_for_an_image_that_isnt_here_is_answered_with_everything() {
    let mut world = World::new();
    let order = StageOrder {
        manifest_digest: world.image.as_bytes().to_vec(),
        references: vec![NAME.into()],
        ..StageOrder::default()
    };
    world.take(order);
    assert_eq!(world.drain(), ["report all"]);
    assert!(world.images.catalogue.iter().next().is_none());
}

#[test]
fn a_manifest_that_this_version_cant_stage_is_declined_by_name_until_it_is_cancelled() {
    let mut world = World::new();
    let manifest = br#"{"schemaVersion": 2}"#.to_vec();
    world.image = Digest::of(&manifest);
    let order = StageOrder {
        manifest_digest: world.image.as_bytes().to_vec(),
        manifest,
        references: vec![NAME.into()],
        ..StageOrder::default()
    };
    world.take(order);
    let told = world.told();
    assert_eq!(told.reason, "unsupported");
    assert_eq!(told.state(), StageState::Failed);
    assert_eq!(told.reference, NAME);
    assert!(world.images.is_wanted(&world.image));
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.images.cancel(world.now, world.image);
    assert!(!world.images.is_wanted(&world.image));
}

#[test]
fn a_cancelled_image_leaves_the_swarm_and_then_the_disk() {
    let mut world = World::filling();
    world.images.cancel(world.now, world.image);
    assert_eq!(world.drain(), ["withdraw", "give up"]);
    assert_eq!(world.jobs(), ["abandon"]);
    world.images.abandoned(world.now, world.image);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    assert!(world.images.catalogue.iter().next().is_none());
}

#[test]
fn a_cancelled_image_that_is_installed_stays_as_long_as_something_names_it() {
    let mut world = World::present();
    world.images.cancel(world.now, world.image);
    assert!(!world.drain().contains(&"withdraw"));
    assert_eq!(world.told().order, Some(0));
    assert_eq!(world.jobs(), ["record"]);
    world.images.recorded(world.now, world.image, Ok(()));
    assert!(
        !world
            .look(&[(NAME, Sight::Image(world.image))])
            .contains(&"withdraw")
    );
    assert_eq!(world.look(&[]), ["report", "withdraw", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Gone, "superseded")
    );
}

#[test]
fn a_cancel_during_the_beginning_takes_nothing_up() {
    let mut world = World::ordered();
    assert_eq!(world.jobs(), ["begin"]);
    world.images.cancel(world.now, world.image);
    world.drain();
    assert_eq!(world.begun(), [] as [&str; 0]);
    assert_eq!(world.jobs(), ["abandon"]);
}

#[test]
fn an_image_that_is_paused_leaves_the_swarm_and_stays_on_the_disk() {
    let mut world = World::filling();
    world.images.pause(world.image);
    assert_eq!(world.drain(), ["withdraw", "give up", "set aside"]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    // and goes on when it is ordered again
    world.order(9);
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn what_is_installed_isnt_paused() {
    let mut world = World::present();
    world.images.pause(world.image);
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(world.state(), StageState::Present);
}

#[test]
fn an_image_whose_last_name_another_one_takes_is_given_up() {
    let mut world = World::filling();
    let other = Digest::of(b"another");
    let order = Names {
        number: 1,
        whole: true,
        names: BTreeMap::from([(NAME.to_owned(), other)]),
    };
    world.images.order_names(world.now, order);
    assert_eq!(world.drain(), ["withdraw", "give up"]);
    assert_eq!(world.jobs(), ["abandon"]);
}

#[test]
fn an_order_about_names_is_confirmed_by_the_first_look_after_it() {
    let mut world = World::present();
    let order = Names {
        number: 5,
        whole: true,
        names: BTreeMap::from([(NAME.to_owned(), world.image)]),
    };
    world.images.order_names(world.now, order);
    assert_eq!(world.images.reconciler().confirmed(), 0);
    assert!(world.images.reconciler().look_due());
    let seen = [(NAME, Sight::Image(world.image))];
    // others wait for the confirmation, though nothing else changed
    assert_eq!(world.look(&seen), ["report"]);
    assert_eq!(world.images.reconciler().confirmed(), 5);
    assert_eq!(world.look(&seen), [] as [&str; 0]);
}

// ---- the stage ------------------------------------------------------------------------------------------------------

#[test]
fn a_beginning_that_fails_is_tried_again_after_a_pause() {
    let mut world = World::ordered();
    world.jobs();
    let error = Err(trouble(Reason::NoRoom));
    world.images.begun(world.now, world.image, error, None);
    assert_eq!(world.drain(), ["failed", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Failed, "no_room")
    );
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.wait(Duration::from_millis(4_999));
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.wait(Duration::from_millis(1));
    assert_eq!(world.jobs(), ["begin"]);
    assert_eq!(world.state(), StageState::Queued);
}

#[test]
fn a_content_of_two_sizes_is_taken_up_by_neither_image_and_blames_nobody() {
    let mut world = World::ordered();
    world.jobs();
    let content = world.layout.contents()[0].digest;
    let stage = Ok((world.disk.clone(), 0));
    world
        .images
        .begun(world.now, world.image, stage, Some(content));
    assert_eq!(world.drain(), ["failed", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Failed, "contradicts")
    );
    world.wait(Duration::from_secs(5));
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn what_an_earlier_process_left_is_read_while_chunks_come_and_before_it_is_installed() {
    let mut world = World::ordered();
    world.disk.0.unread.set(true);
    world.jobs();
    assert_eq!(world.begun(), ["take up", "read again"]);
    world.jobs();
    world.images.recorded(world.now, world.image, Ok(()));
    world.close_all();
    assert_eq!(world.state(), StageState::Staging);
    world.look(&[]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    let disk = world.disk.clone();
    world.images.was_read(world.now, world.image, &disk, Ok(()));
    assert_eq!(world.state(), StageState::Installing);
    world.look(&[]);
    assert_eq!(world.jobs(), ["install"]);
}

#[test]
fn a_stage_that_cant_be_read_is_put_down_and_begun_again() {
    let mut world = World::ordered();
    world.disk.0.unread.set(true);
    world.jobs();
    world.begun();
    let disk = world.disk.clone();
    let error = Err("input/output error".to_owned());
    world.images.was_read(world.now, world.image, &disk, error);
    assert_eq!(world.drain(), ["withdraw", "failed", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Failed, "not_stored")
    );
}

#[test]
fn a_reading_of_a_stage_of_before_says_nothing_and_this_one_is_read_after_it() {
    let mut world = World::ordered();
    let before = world.disk.clone();
    before.0.unread.set(true);
    world.jobs();
    world.begun();
    before.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    world.drain();
    world.disk = Disk::default();
    world.disk.0.unread.set(true);
    assert_eq!(world.jobs(), ["begin"]);
    // one reader at a time
    assert_eq!(world.begun(), ["take up"]);
    let error = Err("no such file".to_owned());
    world
        .images
        .was_read(world.now, world.image, &before, error);
    assert_eq!(world.drain(), ["read again"]);
    assert_eq!(world.state(), StageState::Staging);
}

#[test]
fn counts_belong_to_one_staging_and_go_on_with_it_after_a_restart() {
    let mut world = World::ordered();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(50);
    world.disk.0.begun_at.set(Some(at));
    world.jobs();
    world.begun();
    let images = [world.image];
    world.hear(&images, ImageNews::FromPeers(30));
    world.hear(&images, ImageNews::Gained(12));
    world
        .images
        .stop_filling(world.now, &trouble(Reason::NoRoom));
    world.drain();
    assert_eq!((world.told().held_bytes, world.told().peer_bytes), (12, 30));
    assert_eq!(world.told().begun_at_ms, 50_000);
    // the same staging: the disk has its true state
    world.wait(Duration::from_secs(5));
    world.jobs();
    world.begun();
    assert_eq!((world.told().held_bytes, world.told().peer_bytes), (0, 30));
    // another one
    world.disk = Disk::whole(&world.layout);
    world.disk.0.begun_at.set(Some(at + Duration::from_secs(1)));
    world.disk.0.gone.set(true);
    world
        .images
        .stop_filling(world.now, &trouble(Reason::NoRoom));
    world.wait(Duration::from_secs(60));
    world.jobs();
    world.begun();
    assert_eq!(world.told().peer_bytes, 0);
    assert_eq!(world.told().held_bytes, world.layout.content_bytes());
}

#[test]
fn what_is_installed_whole_and_sound_is_present_at_the_first_look_after_a_restart() {
    let mut world = World::new();
    world.disk = Disk::whole(&world.layout);
    world.disk.0.installed.set(true);
    world.recover();
    assert_eq!(world.drain(), ["entitle", "take up"]);
    assert_eq!(
        world.look(&[(NAME, Sight::Image(world.image))]),
        ["present", "report"]
    );
    assert_eq!(world.jobs(), [] as [&str; 0]);
}

#[test]
fn what_is_doubted_after_a_restart_is_begun_as_anything_else() {
    let mut world = World::new();
    world.disk = Disk::whole(&world.layout);
    world.disk.0.installed.set(true);
    world.disk.0.doubted.set(true);
    world.recover();
    assert_eq!(world.drain(), ["entitle"]);
    // what is here is told at once
    assert_eq!(world.told().held_bytes, world.layout.content_bytes());
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn news_of_a_chunk_that_comes_behind_a_failed_installation_lets_the_image_begin_again() {
    let mut world = World::installing();
    let content = world.layout.contents()[0].digest;
    world.link(Err(InstallError::Incomplete(content)), Ok(()));
    world.images.content_opened(world.now, world.image, content);
    world.drain();
    world.look(&[]);
    assert_eq!(world.state(), StageState::Queued);
    assert_eq!(world.jobs(), ["begin"]);
}
