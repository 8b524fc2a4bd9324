//! Tests hosts that come and go: what a host is told when it comes back, and what other hosts are told of it.

use std::collections::BTreeMap;

use super::*;

/// A host whose agent takes changes of the roster, and its state after the orders that it got.
struct Mini {
    name: String,
    session: u64,
    orders: Receiver<Arc<message::Order>>,
    /// The epoch of the host's roster.
    epoch: u64,
    /// The orders to stage that the host has, by image.
    has: BTreeMap<Digest, u64>,
}

/// The numbers of orders that a host got, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    /// Entries of rosters, both new and gone ones.
    entries: usize,
    whole: usize,
    neighbours: usize,
    /// Orders to stage; `manifests` says how many of them had the manifest.
    stage: usize,
    manifests: usize,
}

impl Mini {
    fn open(world: &mut World, name: &str) -> Self {
        let mut mini = Self {
            name: name.into(),
            session: 0,
            orders: mpsc::channel(1).1,
            epoch: 0,
            has: BTreeMap::new(),
        };
        mini.back(world);
        mini
    }

    /// A session begins: the host says what it has.
    fn back(&mut self, world: &mut World) {
        let state = |(image, order): (&Digest, &u64)| message::ImageState {
            manifest: image.as_bytes().to_vec(),
            state: message::StageState::Present.into(),
            order: Some(*order),
            ..message::ImageState::default()
        };
        let hello = message::Hello {
            roster_epoch: Some(self.epoch),
            takes_names: true,
            images: self.has.iter().map(state).collect(),
            ..World::hello()
        };
        (self.session, self.orders) = world.open(&self.name, hello);
    }

    fn away(&self, world: &mut World) {
        world.driver.apply(Input::Closed {
            host: self.name.parse().unwrap(),
            session: self.session,
        });
    }

    /// Takes in the orders that came, and counts them.
    fn took(&mut self) -> Came {
        let mut came = Came::default();
        while let Ok(order) = self.orders.try_recv() {
            match &order.kind {
                Some(Kind::Roster(_)) => came.whole += 1,
                Some(Kind::RosterChange(change)) => {
                    if change.from_epoch == 0 {
                        came.whole += 1;
                    } else {
                        assert_eq!(change.from_epoch, self.epoch);
                    }
                    came.entries += change.hosts.len() + change.gone.len();
                    self.epoch = change.epoch;
                }
                Some(Kind::Neighbours(_)) => came.neighbours += 1,
                Some(Kind::Stage(order)) => {
                    came.stage += 1;
                    came.manifests += usize::from(!order.manifest.is_empty());
                    let image = message::digest(&order.manifest_digest).unwrap();
                    self.has.insert(image, order.order);
                }
                _ => {}
            }
        }
        came
    }
}

fn fleet(world: &mut World, hosts: usize) -> Vec<Mini> {
    let open = |at| Mini::open(world, &format!("mini-{at}"));
    let mut minis: Vec<Mini> = (0..hosts).map(open).collect();
    world.settle();
    for mini in &mut minis {
        mini.took();
    }
    minis
}

#[tokio::test]
async fn a_host_that_flaps_costs_the_others_nothing_and_itself_its_neighbours() {
    let mut world = World::new();
    let mut minis = fleet(&mut world, 12);
    world.stage("one").unwrap();
    for mini in &mut minis {
        let came = mini.took();
        assert_eq!((came.stage, came.manifests), (1, 1));
    }
    for _ in 0..5 {
        minis[0].away(&mut world);
        world.settle();
        minis[0].back(&mut world);
        // before any pause is over: a host that comes back doesn't wait
        let came = minis[0].took();
        let only_neighbours = Came {
            neighbours: 1,
            ..Came::default()
        };
        assert_eq!(came, only_neighbours);
        world.settle();
        for mini in &mut minis {
            assert_eq!(mini.took(), Came::default(), "{}", mini.name);
        }
    }
}

#[tokio::test]
async fn who_was_away_hears_what_changed_since() {
    let mut world = World::new();
    let mut minis = fleet(&mut world, 8);
    minis[0].away(&mut world);
    let moved = message::Hello {
        peer_port: 9,
        roster_epoch: Some(minis[1].epoch),
        ..World::hello()
    };
    (minis[1].session, minis[1].orders) = world.open("mini-1", moved);
    let mut newcomer = Mini::open(&mut world, "mini-9");
    world.settle();
    assert!(newcomer.took().whole >= 1);
    for mini in &mut minis[1..] {
        let came = mini.took();
        assert_eq!((came.entries, came.whole), (2, 0), "{}", mini.name);
    }
    minis[0].back(&mut world);
    let came = minis[0].took();
    assert_eq!((came.entries, came.whole, came.neighbours), (2, 0, 1));
    assert_eq!(minis[0].epoch, minis[2].epoch);
    // for an unknown epoch, the whole roster comes
    minis[0].epoch = 17;
    minis[0].back(&mut world);
    let came = minis[0].took();
    assert_eq!((came.entries, came.whole), (9, 1));
    // a host that got a change of another roster than its own says so
    let report = message::Report {
        roster_wanted: true,
        ..message::Report::default()
    };
    world.report("mini-0", minis[0].session, report);
    assert_eq!(minis[0].took().whole, 1);
}

#[tokio::test]
async fn a_host_that_always_asks_for_a_whole_roster_gets_few() {
    let mut world = World::new();
    let mut minis = fleet(&mut world, 3);
    let wanted = || message::Report {
        roster_wanted: true,
        ..message::Report::default()
    };
    let mut whole = 0;
    for round in 0..500 {
        world.report("mini-0", minis[0].session, wanted());
        if round % 100 == 0 {
            // the host comes again without a roster
            minis[0].epoch = 0;
            minis[0].back(&mut world);
        }
        whole += minis[0].took().whole;
    }
    // 250 whole rosters of three hosts, some of them at the beginning, and 12.5 more for each second that this took
    assert!((240..400).contains(&whole), "{whole}");
    // the roster that the host is owed comes later by itself
    minis[0].epoch = 0;
    assert_eq!(world.driver.members.rosters().owed(), 1);
    world.driver.started -= Duration::from_secs(6);
    world.settle();
    assert_eq!(minis[0].took().whole, 1);
    assert_eq!(minis[0].epoch, minis[1].epoch);
    assert_eq!(world.driver.members.rosters().owed(), 0);
}

#[tokio::test]
async fn an_agent_of_the_version_before_gets_all_of_everything() {
    let mut world = World::new();
    let (_, mut orders) = world.open("old", World::hello());
    let _mini = Mini::open(&mut world, "mini-0");
    world.stage("one").unwrap();
    world.settle();
    let whole = taken(&mut orders, |kind| match kind {
        Kind::Roster(roster) => Some(roster.hosts.len()),
        Kind::RosterChange(_) | Kind::Neighbours(_) => panic!("it doesn't know these"),
        _ => None,
    });
    assert_eq!(whole.last(), Some(&2));
    for _ in 0..2 {
        let (_, mut orders) = world.open("old", World::hello());
        let manifests = taken(&mut orders, |kind| match kind {
            Kind::Stage(order) => Some(order.manifest.len()),
            _ => None,
        });
        assert!(matches!(manifests[..], [bytes] if bytes > 0));
    }
}

#[tokio::test]
async fn an_order_that_a_host_lacks_comes_without_the_manifest_that_it_has() {
    let mut world = World::new();
    let mut minis = fleet(&mut world, 2);
    world.stage("one").unwrap();
    for mini in &mut minis {
        mini.took();
    }
    // the agent was started again: it has the manifest, and has taken no order since
    for order in minis[0].has.values_mut() {
        *order = 0;
    }
    minis[0].back(&mut world);
    let came = minis[0].took();
    assert_eq!((came.stage, came.manifests), (1, 0));
    // the host's disk was replaced
    minis[0].has.clear();
    minis[0].back(&mut world);
    let came = minis[0].took();
    assert_eq!((came.stage, came.manifests), (1, 1));
    // the host forgets a cancelled image, so the image is ordered anew when it is wanted again
    let image = *minis[0].has.keys().next().unwrap();
    let name = image.to_string();
    let (reply, _answer) = oneshot::channel();
    world
        .driver
        .apply(Input::Asked(Ask::Cancel { name, reply }));
    world.settle();
    minis[0].took();
    world.stage("one").unwrap();
    let came = minis[0].took();
    assert_eq!((came.stage, came.manifests), (1, 1));
}

#[tokio::test]
async fn a_coordinator_that_starts_again_tells_hosts_nothing_that_they_have() {
    let mut world = World::new();
    let mut minis = fleet(&mut world, 6);
    world.stage("one").unwrap();
    for mini in &mut minis {
        mini.took();
    }
    let place = |mini: &Mini| {
        let host: HostId = mini.name.parse().unwrap();
        let place = world
            .driver
            .members
            .hosts()
            .get(&host)
            .unwrap()
            .place
            .clone()
            .unwrap();
        (host, place)
    };
    let kept = Kept {
        roster: minis.iter().map(place).collect(),
        wants: vec![want("one", 1, 1 << 20)],
        ..Kept::default()
    };
    let enrolled = kept.roster.keys().cloned().collect();
    let mut world = World::after(false, enrolled, kept);
    for mini in &mut minis {
        mini.back(&mut world);
        let came = mini.took();
        assert_eq!((came.entries, came.whole, came.stage), (0, 0, 0));
    }
    world.settle();
    for mini in &mut minis {
        assert_eq!(mini.took(), Came::default(), "{}", mini.name);
    }
}
