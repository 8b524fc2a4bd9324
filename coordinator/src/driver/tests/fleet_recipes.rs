//! Tests of recipes that hosts make: who is asked, what hosts are told, and when the registry's takes the place.

use proto::{
    image::Blob,
    message::{ImageState, StageState},
};

use super::*;
use crate::wants::tests::recipe;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// An image that two of three hosts hold, and that failed on the third. The registry has no recipe of it.
struct Fleet {
    world: World,
    sessions: Vec<(u64, Receiver<Arc<message::Order>>)>,
    want: Want,
}

impl Fleet {
    fn new() -> Self {
        Self::of(want("one", 1, 3 << 20), true)
    }

    fn of(want: Want, makes_recipes: bool) -> Self {
        Self::among(World::new(), want, makes_recipes)
    }

    fn among(mut world: World, want: Want, makes_recipes: bool) -> Self {
        world.driver.frozen = Some(Moment::START + Duration::from_secs(10));
        let hello = message::Hello {
            roster_epoch: Some(0),
            makes_recipes,
            ..World::hello()
        };
        let sessions = HOSTS.map(|host| world.open(host, hello.clone()));
        let mut this = Self {
            world,
            sessions: sessions.into(),
            want: want.clone(),
        };
        this.ask(want);
        this.says(2, StageState::Failed, None, None);
        this.orders();
        for host in [0, 1] {
            this.says(host, StageState::Present, None, None);
        }
        this
    }

    fn ask(&mut self, want: Want) {
        let (reply, _answer) = oneshot::channel();
        let want = Box::new(want);
        self.world
            .driver
            .apply(Input::Asked(Ask::Stage { want, reply }));
    }

    /// The host says how it stands with the image, and which recipe it has, and which one it refuses.
    fn says(&mut self, host: usize, state: StageState, has: Option<Blob>, refuses: Option<Blob>) {
        let image = self.image(state, has, refuses);
        self.report(host, image);
    }

    fn image(&self, state: StageState, has: Option<Blob>, refuses: Option<Blob>) -> ImageState {
        let bytes = |of: Option<Blob>| of.map(|of| of.digest.as_bytes().to_vec());
        ImageState {
            manifest: self.want.digest().as_bytes().to_vec(),
            state: state.into(),
            recipe: bytes(has).unwrap_or_default(),
            recipe_bytes: has.map_or(0, |of| of.size),
            recipe_refused: bytes(refuses).unwrap_or_default(),
            ..ImageState::default()
        }
    }

    fn report(&mut self, host: usize, image: ImageState) {
        let report = message::Report {
            images: vec![image],
            ..message::Report::default()
        };
        let session = self.sessions[host].0;
        self.world.report(HOSTS[host], session, report);
    }

    fn pass(&mut self, seconds: u64) {
        let now = self.world.driver.frozen.unwrap();
        self.world.driver.frozen = Some(now + Duration::from_secs(seconds));
        self.world.driver.show(now + Duration::from_secs(seconds));
        self.world.driver.apply(Input::Tick);
    }

    /// What each host was sent since the last look.
    fn orders(&mut self) -> Vec<Vec<Kind>> {
        let queues = self.sessions.iter_mut();
        let taken = queues.map(|(_, queue)| taken(queue, |kind| Some(kind.clone())));
        taken.collect()
    }

    /// The hosts that were asked to make the recipe since the last look.
    fn asked(&mut self) -> Vec<usize> {
        let asks = |kind: &Kind| matches!(kind, Kind::MakeRecipe(of) if of.manifest_digest == self.want.digest().as_bytes());
        let mut asked = Vec::new();
        let queues = self.sessions.iter_mut().enumerate();
        for (host, (_, queue)) in queues {
            let orders = taken(queue, |kind| asks(kind).then_some(host));
            asked.extend(orders);
        }
        asked
    }

    /// The recipes that the host was ordered to stage by, since the last look.
    fn ordered(&mut self, host: usize) -> Vec<Option<Digest>> {
        let (_, queue) = &mut self.sessions[host];
        taken(queue, |kind| match kind {
            Kind::Stage(stage) => {
                let recipe = stage.recipe.as_ref();
                Some(recipe.map(|recipe| message::digest(&recipe.digest).unwrap()))
            }
            _ => None,
        })
    }

    fn view(&self) -> crate::view::ImageView {
        let view = self.world.view.borrow();
        view.images[&self.want.digest()].as_ref().clone()
    }
}

#[tokio::test]
async fn one_host_is_asked_and_the_others_are_told_what_it_made() {
    let mut fleet = Fleet::new();
    fleet.pass(2);
    let asked = fleet.asked();
    assert!(asked == [0] || asked == [1], "{asked:?}");
    fleet.pass(2);
    assert!(fleet.asked().is_empty() && fleet.view().recipe.is_none());
    let made = recipe("made");
    fleet.says(asked[0], StageState::Present, Some(made), None);
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [Some(made.digest)]);
    fleet.pass(2);
    let shown = fleet.view().recipe.unwrap();
    assert_eq!(
        (shown.digest, shown.made_by_fleet),
        (made.digest.to_string(), true)
    );
    let kept = fleet.world.kept().unwrap();
    assert_eq!((kept.recipe, kept.recipe_of_fleet), (Some(made), true));
    // nobody gets a lease of what no registry has
    let leased =
        |kind: &Kind| matches!(kind, Kind::Lease(of) if of.content == made.digest.as_bytes());
    fleet.pass(30);
    assert!(!fleet.orders().iter().flatten().any(leased));
    assert_eq!(fleet.world.driver.metrics.recipes_asked.get(), 1);
}

#[tokio::test]
async fn a_maker_that_fails_or_begins_a_new_session_is_followed_by_another() {
    let mut fleet = Fleet::new();
    fleet.pass(2);
    let first = fleet.asked()[0];
    let second = 1 - first;
    // it makes it, over two looks
    let present = fleet.image(StageState::Present, None, None);
    let makes = ImageState {
        makes_recipe: true,
        ..present.clone()
    };
    fleet.report(first, makes.clone());
    fleet.pass(4);
    assert!(fleet.asked().is_empty());
    let failed = ImageState {
        recipes_failed: 1,
        ..present.clone()
    };
    fleet.report(first, failed);
    fleet.pass(2);
    assert_eq!(fleet.asked(), [second]);
    assert_eq!(fleet.world.driver.metrics.recipes_asked.get(), 2);

    // it makes it while its session begins anew, and then its agent is started again
    fleet.report(second, makes.clone());
    let mut anew = |state: &ImageState| {
        let hello = message::Hello {
            roster_epoch: Some(0),
            makes_recipes: true,
            images: vec![state.clone()],
            ..World::hello()
        };
        fleet.sessions[second] = fleet.world.open(HOSTS[second], hello);
        fleet.report(second, state.clone());
        fleet.pass(2);
        fleet.world.driver.metrics.recipes_asked.get()
    };
    assert_eq!(anew(&makes), 2);
    assert_eq!(anew(&present), 2, "the first one was asked lately");
    fleet.pass(600);
    assert_eq!(fleet.asked(), [second]);
}

#[tokio::test]
async fn no_recipe_is_made_in_the_last_seconds_of_a_staging() {
    let mut fleet = Fleet::new();
    fleet.says(2, StageState::Staging, None, None);
    fleet.pass(2);
    fleet.pass(2);
    assert!(fleet.asked().is_empty());
    fleet.says(2, StageState::Present, None, None);
    fleet.pass(2);
    assert_eq!(fleet.asked().len(), 1);
    // where the last one takes long, it isn't waited for
    let mut fleet = Fleet::new();
    fleet.says(2, StageState::Staging, None, None);
    fleet.pass(2);
    fleet.pass(599);
    assert!(fleet.asked().is_empty());
    fleet.pass(2);
    assert_eq!(fleet.asked().len(), 1);
}

#[tokio::test]
async fn a_recipe_that_nobody_has_any_more_isnt_named_until_somebody_comes_back() {
    let mut fleet = Fleet::new();
    let made = recipe("made");
    fleet.says(0, StageState::Present, Some(made), None);
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [Some(made.digest)]);
    fleet.world.driver.apply(Input::Closed {
        host: "a".parse().unwrap(),
        session: fleet.sessions[0].0,
    });
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [None]);
    assert_eq!(fleet.asked(), [1], "another one makes it");
    fleet.pass(2);
    assert_eq!(fleet.view().recipe, None);
    fleet.says(1, StageState::Present, Some(made), None);
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [Some(made.digest)]);
}

#[tokio::test]
async fn a_coordinator_that_starts_again_names_it_when_a_host_says_that_it_has_it() {
    let made = recipe("made");
    let before = Want {
        recipe: Some(made),
        recipe_of_fleet: true,
        ..want("one", 1, 3 << 20)
    };
    let mut fleet = Fleet::of(before, true);
    fleet.pass(2);
    assert_eq!(fleet.view().recipe, None);
    fleet.orders();
    fleet.says(1, StageState::Present, Some(made), None);
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [Some(made.digest)]);
}

#[tokio::test]
async fn the_registrys_recipe_takes_the_place_of_the_fleets() {
    let mut fleet = Fleet::new();
    fleet.says(0, StageState::Present, Some(recipe("made")), None);
    fleet.pass(2);
    fleet.orders();
    fleet.ask(Want {
        recipe: Some(recipe("pushed")),
        ..fleet.want.clone()
    });
    assert_eq!(fleet.ordered(2), [Some(recipe("pushed").digest)]);
    fleet.pass(2);
    fleet.pass(2);
    let shown = fleet.view().recipe.unwrap();
    assert_eq!(shown.digest, recipe("pushed").digest.to_string());
    assert!(!shown.made_by_fleet && fleet.asked().is_empty());
}

#[tokio::test]
async fn what_is_no_recipe_of_the_image_isnt_named() {
    let mut fleet = Fleet::new();
    let content = fleet.want.layout.contents()[0].digest;
    let huge = Blob {
        size: 1 << 40,
        ..recipe("made")
    };
    let a_content = Blob {
        digest: content,
        size: 100,
    };
    for lie in [huge, a_content] {
        fleet.says(0, StageState::Present, Some(lie), None);
        fleet.pass(2);
        assert!(fleet.ordered(2).is_empty(), "{lie:?}");
    }
    // one that another host refuses isn't the fleet's
    fleet.says(0, StageState::Present, Some(recipe("lie")), None);
    fleet.says(1, StageState::Present, None, Some(recipe("lie")));
    fleet.pass(2);
    assert!(fleet.ordered(2).is_empty());
}

#[tokio::test]
async fn hosts_of_a_version_that_makes_none_arent_asked() {
    let mut fleet = Fleet::of(want("one", 1, 3 << 20), false);
    fleet.pass(2);
    fleet.pass(2);
    assert!(fleet.asked().is_empty());
}

#[tokio::test]
async fn where_it_is_switched_off_no_host_is_believed() {
    let off = |config: &mut Config| config.makes_recipes = false;
    let world = World::configured(false, BTreeSet::new(), Kept::default(), off);
    let mut fleet = Fleet::among(world, want("one", 1, 3 << 20), true);
    fleet.says(0, StageState::Present, Some(recipe("made")), None);
    fleet.pass(2);
    fleet.pass(2);
    assert!(fleet.ordered(2).is_empty() && fleet.view().recipe.is_none());
    assert!(fleet.asked().is_empty());
}

#[tokio::test]
async fn a_host_that_stages_by_a_recipe_gives_it_no_voice_before_the_image_is_present() {
    let mut fleet = Fleet::new();
    let lie = recipe("lie");
    fleet.says(0, StageState::Present, Some(lie), None);
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [Some(lie.digest)]);
    fleet.says(2, StageState::Staging, Some(lie), None);
    fleet.says(1, StageState::Present, None, Some(lie));
    fleet.pass(2);
    assert_eq!(fleet.ordered(2), [None]);
}
