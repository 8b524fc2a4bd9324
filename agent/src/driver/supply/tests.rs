use proto::message::StageState;
use swarm::Swarm;
use tempfile::TempDir;

use super::{
    super::{image::Ordered, images::tests::manifest},
    *,
};
use crate::store::tests::open;

/// The supply of a host without peers, with a store of its own and one image.
struct World {
    supply: Supply,
    image: Digest,
    layout: Layout,
    _home: TempDir,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let me: HostId = "mini-1".parse().unwrap();
        let (now, metrics) = (Instant::now(), Metrics::new().0);
        let swarm = Swarm::new(me.key(), swarm::Config::default(), 1);
        let exchange = Exchange::new(me, swarm, now, Arc::default(), metrics.clone());
        let path = home.path().to_owned();
        let fitness = Arc::new(crate::tart::Fitness::new(path.join("tart")));
        let disk = Disk::new(Arc::new(open(&home)), None, None, fitness, path);
        let manifest = manifest("a");
        let image = Digest::of(&manifest);
        Self {
            supply: Supply::new(exchange, Mirror::new(None), disk, metrics, now),
            image,
            layout: Layout::parse(&manifest, &image).unwrap(),
            _home: home,
        }
    }

    /// The image was ordered, and its stage is taken up.
    fn filling() -> Self {
        let mut world = Self::new();
        let ordered = Ordered {
            references: vec!["r.test/a:1".into()],
            ..Ordered::default()
        };
        let (now, image) = (world.supply.now(), world.image);
        let images = world.supply.images_mut();
        images.order(now, image, ordered, &manifest("a"));
        world.supply.follow_images();
        world.supply.begin_jobs();
        world.settle();
        world
    }

    /// Does what is wanted, until nothing is. Returns whether everything is to be reported.
    fn settle(&mut self) -> bool {
        let mut all = false;
        while let Some(effect) = self.supply.poll() {
            match effect {
                Effect::Run(Work::Long(_, job) | Work::Blocking(job)) => match job() {
                    Input::Begun { image, result } => self.supply.begun(image, result),
                    Input::Nothing => {}
                    other => panic!("{other:?}"),
                },
                Effect::ReportAll => all = true,
                _ => {}
            }
            self.supply.follow_images();
        }
        all
    }

    /// The number of the image's contents that the exchange knows.
    fn known(&self) -> usize {
        let contents = self.supply.exchange().contents();
        let specs = self.layout.contents();
        let known = specs.iter().map(|spec| contents.by_digest(&spec.digest));
        known.flatten().count()
    }

    fn told(&self) -> Option<ImageState> {
        let status = self.supply.exchange().status();
        self.supply.image_states(&status).pop()
    }
}

#[test]
fn an_image_that_is_begun_brings_its_contents_and_takes_them_along_when_it_is_paused() {
    let mut world = World::filling();
    let told = world.told().unwrap();
    assert_eq!(told.state(), StageState::Staging);
    assert_eq!(world.known(), world.layout.contents().len());
    world.supply.images_mut().pause(world.image);
    world.supply.follow_images();
    assert_eq!(world.known(), 0);
    assert!(world.settle());
    assert!(world.told().is_none());
}

#[test]
fn a_recipe_that_isnt_made_is_told_at_once() {
    let mut world = World::filling();
    world.supply.make_recipe(world.image);
    let effects = std::iter::from_fn(|| world.supply.poll());
    assert!(matches!(
        effects.collect::<Vec<_>>()[..],
        [Effect::ReportNow]
    ));
    let told = world.told().unwrap();
    assert_eq!((told.makes_recipe, told.recipes_failed), (false, 1));
}

#[test]
fn journals_that_cant_be_written_end_what_comes_for_images_and_the_mirrors_dont() {
    let mut world = World::filling();
    world
        .supply
        .flushed(Ok(()), Err("the cache's volume fails".into()));
    world.supply.follow_images();
    assert_eq!(world.known(), world.layout.contents().len());
    world.supply.flushed(Err("the volume fails".into()), Ok(()));
    world.supply.follow_images();
    let told = world.told().unwrap();
    assert_eq!((told.state(), world.known()), (StageState::Failed, 0));
    assert_eq!(told.reason, Reason::NotStored.as_str());
}
