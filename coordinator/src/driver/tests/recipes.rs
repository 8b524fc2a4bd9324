//! Tests of recipes: what hosts are ordered, and whose word against a recipe counts.

use std::collections::BTreeMap;

use proto::{
    ChunkIndex,
    message::{LeaseEnd, LeaseState, OriginFault, Report, StageState},
    recipe::Doubt,
};

use super::*;
use crate::wants::tests::recipe;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// An image with a recipe, which three hosts stage.
struct Staged {
    world: World,
    sessions: Vec<(u64, Receiver<Arc<message::Order>>)>,
    want: Want,
    /// Who has the lease of what.
    leases: BTreeMap<Digest, usize>,
    /// The orders that each host was sent since they were last looked at.
    orders: Vec<Vec<Kind>>,
}

impl Staged {
    fn new() -> Self {
        Self::after(0)
    }

    /// So many seconds after the coordinator's start.
    fn after(seconds: u64) -> Self {
        let mut world = World::new();
        for seconds in [10, 10 + seconds] {
            world.driver.frozen = Some(Moment::START + Duration::from_secs(seconds));
            world.driver.apply(Input::Tick);
        }
        let hello = message::Hello {
            roster_epoch: Some(0),
            ..World::hello()
        };
        let sessions = HOSTS.map(|host| world.open(host, hello.clone()));
        let want = Want {
            recipe: Some(recipe("one")),
            ..want("one", 1, 3 << 20)
        };
        let mut this = Self {
            world,
            sessions: sessions.into(),
            want: want.clone(),
            leases: BTreeMap::new(),
            orders: vec![Vec::new(); HOSTS.len()],
        };
        this.ask(want);
        for host in 0..HOSTS.len() {
            this.report(host, Report::default());
        }
        this.pass(2);
        this
    }

    fn ask(&mut self, want: Want) {
        let (reply, _answer) = oneshot::channel();
        let want = Box::new(want);
        let ask = Input::Asked(Ask::Stage { want, reply });
        self.world.driver.apply(ask);
        self.hear();
    }

    /// The host stages the image, and says this besides.
    fn report(&mut self, host: usize, report: Report) {
        let image = message::ImageState {
            manifest: self.want.digest().as_bytes().to_vec(),
            state: StageState::Staging.into(),
            ..message::ImageState::default()
        };
        let report = Report {
            images: vec![image],
            ..report
        };
        let session = self.sessions[host].0;
        self.world.report(HOSTS[host], session, report);
        self.hear();
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..2 * seconds {
            let now = self.world.driver.frozen.unwrap();
            self.world.driver.frozen = Some(now + Duration::from_millis(500));
            self.world.driver.apply(Input::Tick);
            self.hear();
        }
    }

    fn hear(&mut self) {
        for (host, (_, queue)) in self.sessions.iter_mut().enumerate() {
            for kind in taken(queue, |kind| Some(kind.clone())) {
                match &kind {
                    Kind::Lease(grant) => {
                        let content = message::digest(&grant.content).unwrap();
                        self.leases.insert(content, host);
                    }
                    Kind::Revoke(revoke) => {
                        let content = message::digest(&revoke.content).unwrap();
                        // the next holder may have been heard of before
                        if self.leases.get(&content) == Some(&host) {
                            self.leases.remove(&content);
                        }
                    }
                    _ => {}
                }
                self.orders[host].push(kind);
            }
        }
    }

    /// What each host was sent of this kind since the last look.
    fn sent<T>(&mut self, pick: impl Fn(Kind) -> Option<T>) -> Vec<Vec<T>> {
        let orders = self.orders.iter_mut().map(std::mem::take);
        let picked = orders.map(|orders| orders.into_iter().filter_map(&pick).collect());
        picked.collect()
    }

    fn stage_orders(&mut self) -> Vec<Vec<message::StageOrder>> {
        self.sent(|kind| match kind {
            Kind::Stage(stage) => Some(stage),
            _ => None,
        })
    }

    fn doubts_sent(&mut self) -> Vec<Vec<message::RecipeDoubt>> {
        self.sent(|kind| match kind {
            Kind::RecipeDoubt(doubt) => Some(doubt),
            _ => None,
        })
    }

    /// The image's largest content, which has three chunks.
    fn content(&self) -> Digest {
        self.want.layout.layers()[0].raw.unwrap()
    }

    fn doubt(&self) -> Doubt {
        Doubt {
            image: self.want.digest(),
            recipe: recipe("one").digest,
            content: self.content(),
            chunk: ChunkIndex(1),
        }
    }

    fn view(&mut self) -> crate::view::ImageView {
        let now = self.world.driver.frozen.unwrap();
        self.world.driver.show(now);
        let view = self.world.view.borrow();
        view.images[&self.want.digest()].as_ref().clone()
    }

    fn counted(&self) -> u64 {
        self.world.driver.metrics.recipe_doubts.get()
    }
}

fn doubting(doubts: impl IntoIterator<Item = Doubt>) -> Report {
    let doubts = doubts.into_iter();
    Report {
        recipe_doubts: doubts.map(|doubt| doubt.to_message()).collect(),
        ..Report::default()
    }
}

fn ends(content: Digest, end: LeaseEnd, fault: OriginFault) -> LeaseState {
    LeaseState {
        content: content.as_bytes().to_vec(),
        end: end.into(),
        fault: fault.into(),
        message: "404".into(),
        ..LeaseState::default()
    }
}

#[tokio::test]
async fn a_recipe_is_ordered_leased_shown_and_kept() {
    let mut staged = Staged::new();
    let file = message::RecipeFile {
        digest: recipe("one").digest.as_bytes().to_vec(),
        size: recipe("one").size,
        made_by_hosts: false,
    };
    for orders in staged.stage_orders() {
        assert_eq!(orders.len(), 1);
        assert_eq!(orders[0].recipe, Some(file.clone()));
    }
    assert!(staged.leases.contains_key(&recipe("one").digest));
    assert_eq!(staged.world.kept().unwrap().recipe, Some(recipe("one")));
    let shown = staged.view();
    assert_eq!(shown.recipe, staged.want.recipe_view());
    assert_eq!(
        shown.contents,
        staged.want.layout.contents().len() as u64,
        "the recipe isn't counted"
    );
    assert!(shown.hosts.iter().all(|host| host.recipe.is_none()));
    // a host that proves by it says so
    let image = message::ImageState {
        manifest: staged.want.digest().as_bytes().to_vec(),
        state: StageState::Staging.into(),
        recipe: recipe("one").digest.as_bytes().to_vec(),
        ..message::ImageState::default()
    };
    let report = Report {
        images: vec![image],
        ..Report::default()
    };
    staged.world.report("a", staged.sessions[0].0, report);
    let named = Some(recipe("one").digest.to_string());
    assert_eq!(staged.view().hosts[0].recipe, named);
}

#[tokio::test]
async fn a_recipe_that_the_registry_doesnt_have_goes_and_the_image_stays() {
    let mut staged = Staged::new();
    let lost = recipe("one").digest;
    staged.stage_orders();
    for _ in 0..20 {
        if let Some(host) = staged.leases.remove(&lost) {
            let leases = vec![ends(lost, LeaseEnd::OriginFailed, OriginFault::Missing)];
            let report = Report {
                leases,
                ..Report::default()
            };
            staged.report(host, report);
        }
        staged.pass(1);
    }
    for orders in staged.stage_orders() {
        assert_eq!(orders.len(), 1, "each host hears of it once");
        assert_eq!(orders[0].recipe, None);
        assert!(orders[0].manifest.is_empty());
    }
    assert_eq!(staged.world.kept().unwrap().recipe, None);
    let shown = staged.view();
    assert_eq!((shown.recipe, shown.state), (None, ImageState::Staging));
    assert!(!staged.leases.contains_key(&lost));
    // whoever asks for the image again has it looked for again
    staged.ask(staged.want.clone());
    staged.pass(1);
    assert!(staged.leases.contains_key(&lost));
    assert!(staged.stage_orders().iter().all(|orders| orders.len() == 1));
}

#[tokio::test]
async fn two_hosts_with_the_lease_are_heard_about_a_recipe_and_everybody_is_told() {
    let mut staged = Staged::after(180);
    staged.stage_orders();
    let (content, doubt) = (staged.content(), staged.doubt());
    let holder = staged.leases[&content];
    let none: Vec<Vec<message::RecipeDoubt>> = vec![Vec::new(); HOSTS.len()];
    let others = (0..HOSTS.len()).filter(|host| *host != holder);
    for other in others {
        staged.report(other, doubting([doubt]));
    }
    let nonsense = [
        Doubt {
            chunk: ChunkIndex(3),
            ..doubt
        },
        Doubt {
            image: Digest::of(b"another"),
            ..doubt
        },
        Doubt {
            recipe: Digest::of(b"another"),
            ..doubt
        },
    ];
    staged.report(holder, doubting(nonsense));
    // what comes after the sixteenth isn't read
    let beyond = std::iter::repeat_n(nonsense[0], 16).chain([doubt]);
    staged.report(holder, doubting(beyond));
    assert_eq!(staged.doubts_sent(), none);
    assert_eq!(
        (
            staged.counted(),
            staged.view().recipe.unwrap().doubted_contents.len()
        ),
        (0, 0)
    );

    // one word has another host read the same; the liar may be the first
    staged.report(holder, doubting([doubt, doubt]));
    assert_eq!((staged.doubts_sent(), staged.counted()), (none.clone(), 0));
    let second = staged.leases[&content];
    assert_ne!(second, holder);
    staged.report(holder, doubting([doubt]));
    assert_eq!(staged.doubts_sent(), none);

    // the lease ends in the same report
    let report = Report {
        leases: vec![ends(content, LeaseEnd::Done, OriginFault::Unspecified)],
        ..doubting([doubt, doubt])
    };
    staged.report(second, report);
    assert_eq!(
        staged.doubts_sent(),
        vec![vec![doubt.to_message()]; HOSTS.len()]
    );
    assert_eq!(staged.counted(), 1);
    let shown = staged.view().recipe.unwrap();
    assert_eq!(shown.doubted_contents, [content.to_string()]);
    let kept = staged.world.kept().unwrap();
    assert_eq!(kept.recipe_doubts, [(content, ChunkIndex(1))].into());
    // a host that comes later hears of it in its order
    let (_, mut queue) = staged.world.open("d", World::hello());
    let orders = taken(&mut queue, |kind| match kind {
        Kind::Stage(stage) => Some(stage.recipe_doubts.clone()),
        _ => None,
    });
    assert_eq!(orders, [vec![doubt.to_message()]]);
    // it stays while the recipe does
    staged.ask(staged.want.clone());
    assert_eq!(staged.view().recipe.unwrap().doubted_contents.len(), 1);
}

#[tokio::test]
async fn a_coordinator_that_has_just_started_hears_again_what_one_host_said_before() {
    let mut staged = Staged::new();
    staged.stage_orders();
    let (content, doubt) = (staged.content(), staged.doubt());
    let holder = staged.leases[&content];
    let before = (holder + 1) % HOSTS.len();
    staged.report(before, doubting([doubt]));
    assert_eq!((staged.counted(), staged.leases[&content]), (0, holder));
    staged.report(holder, doubting([doubt]));
    assert_eq!(staged.counted(), 1);
    let told = vec![vec![doubt.to_message()]; HOSTS.len()];
    assert_eq!(staged.doubts_sent(), told);
}
