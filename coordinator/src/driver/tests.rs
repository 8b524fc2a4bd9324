//! The driver without sockets: inputs in, orders out.

use proto::message::order::Kind;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::metrics::KindLabel;
use crate::{
    config::Fleet,
    intake,
    view::{HostState, HostView, ImageState},
    wants::tests::want,
};

mod flood;
mod names;
mod returns;
mod words;

pub(super) struct World {
    pub(super) driver: Driver,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) writer: Receiver<Write>,
    sessions: u64,
}

fn config(dir: &std::path::Path, kubernetes: bool) -> Config {
    let shared = crate::cli::Shared {
        config: None,
        state_dir: Some(dir.to_path_buf()),
        log_format: crate::cli::LogFormat::Text,
        log: String::new(),
    };
    let mut run = crate::cli::Run {
        open: true,
        ..crate::cli::Run::default()
    };
    run.cluster.kubernetes = kubernetes;
    Config::load(&shared, &run).unwrap()
}

impl World {
    pub(super) fn new() -> Self {
        Self::of(false)
    }

    fn of(kubernetes: bool) -> Self {
        Self::after(kubernetes, BTreeSet::new(), Kept::default())
    }

    /// One that starts again, with the hosts that enrolled before and what was kept.
    pub(super) fn after(kubernetes: bool, enrolled: BTreeSet<HostId>, kept: Kept) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), kubernetes);
        let (publish, view) = watch::channel(Arc::default());
        let (writer, writes) = mpsc::channel(WRITES);
        let membership = Membership {
            fleet: Fleet {
                open: true,
                ..Fleet::default()
            },
            enrolled: enrolled.into_iter().map(|host| (host, 0)).collect(),
            ..Membership::default()
        };
        let authority = Authority::open(&dir.path().join("authority")).unwrap();
        let driver = Driver::new(Parts {
            authority: Arc::new(authority),
            presence: watch::channel(Arc::default()).0,
            registries: Arc::new(Registries::new(config.origin.clone()).unwrap()),
            config,
            kept,
            membership: Arc::new(membership),
            publish,
            writer,
            metrics: Metrics::new().0,
            seed: 1,
        });
        Self {
            driver,
            view,
            writer: writes,
            sessions: 0,
        }
    }

    pub(super) fn hello() -> message::Hello {
        message::Hello {
            peer_port: 7471,
            link_key: vec![1; 32],
            volume: Some(message::Volume {
                total_bytes: 1 << 40,
                free_bytes: 1 << 39,
                floor_bytes: 0,
                path: "/".into(),
            }),
            ..message::Hello::default()
        }
    }

    pub(super) fn open(
        &mut self,
        host: &str,
        hello: message::Hello,
    ) -> (u64, Receiver<Arc<message::Order>>) {
        self.open_from(host, hello, "10.0.0.9:40000")
    }

    pub(super) fn open_from(
        &mut self,
        host: &str,
        hello: message::Hello,
        remote: &str,
    ) -> (u64, Receiver<Arc<message::Order>>) {
        let (orders, queue) = mpsc::channel(ORDERS);
        self.sessions += 1;
        self.driver.apply(Input::Opened(Box::new(Opened {
            host: host.parse().unwrap(),
            session: self.sessions,
            remote: remote.parse().unwrap(),
            hello,
            orders,
        })));
        (self.sessions, queue)
    }

    pub(super) fn report(&mut self, host: &str, session: u64, mut report: message::Report) {
        let leases = intake::most_leases(self.driver.config.plan.origin_streams);
        intake::cut(&mut report, leases).unwrap();
        self.driver.apply(Input::Reported {
            host: host.parse().unwrap(),
            session,
            report: Box::new(report),
            handled: oneshot::channel().0,
        });
    }

    pub(super) fn stage(&mut self, seed: &str) -> Result<StageReply, StageError> {
        let (reply, mut answer) = oneshot::channel();
        self.driver.apply(Input::Asked(Ask::Stage {
            want: Box::new(want(seed, 1, 1 << 20)),
            reply,
        }));
        // What the writer would do once the file is written.
        while let Ok(keep) = self.writer.try_recv() {
            keep.done();
        }
        answer.try_recv().unwrap()
    }

    /// Lets every pause pass and sends what was held back by it.
    pub(super) fn settle(&mut self) {
        let young = Duration::from_secs(10).saturating_sub(self.driver.started.elapsed());
        for time in [young, Duration::from_secs(5)] {
            self.pass(time);
            self.driver.flush();
        }
    }

    /// Time passes, and the driver is told so as often as it wants to be: a plan that is told late takes it for held up.
    pub(super) fn pass(&mut self, time: Duration) {
        const STEP: Duration = Duration::from_millis(500);
        let mut left = time;
        loop {
            let step = left.min(STEP);
            self.driver.started -= step;
            self.driver.apply(Input::Tick);
            left -= step;
            if left.is_zero() {
                break;
            }
        }
    }

    pub(super) fn host(&self, host: &str) -> Arc<HostView> {
        self.view.borrow().hosts[&host.parse::<HostId>().unwrap()].clone()
    }
}

pub(super) fn taken<T>(
    queue: &mut Receiver<Arc<message::Order>>,
    pick: impl Fn(&Kind) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    while let Ok(order) = queue.try_recv() {
        found.extend(order.kind.as_ref().and_then(&pick));
    }
    found
}

#[tokio::test]
async fn a_session_that_was_replaced_says_goodbye_late_and_nothing_happens() {
    let mut world = World::new();
    let (first, mut old) = world.open("a", World::hello());
    let (_second, _queue) = world.open("a", World::hello());
    // Its queue has ended, which ends the old session's task.
    while old.try_recv().is_ok() {}
    assert!(old.is_closed());
    world.driver.apply(Input::Closed {
        host: "a".parse().unwrap(),
        session: first,
    });
    world.settle();
    assert!(world.host("a").connected);
    world.report(
        "a",
        first,
        message::Report {
            volume: Some(message::Volume::default()),
            ..message::Report::default()
        },
    );
    world.settle();
    assert_eq!(
        world.host("a").volume.as_ref().unwrap().total_bytes,
        1 << 40
    );
}

#[tokio::test]
async fn a_host_that_takes_no_orders_is_given_up_and_the_others_go_on() {
    let mut world = World::new();
    let (_, stuck) = world.open("stuck", World::hello());
    let (_, mut fine) = world.open("fine", World::hello());
    for _ in 0..=ORDERS {
        let (reply, _answer) = oneshot::channel();
        let limits = BandwidthRequest::default();
        world
            .driver
            .apply(Input::Asked(Ask::Bandwidth { limits, reply }));
        while fine.try_recv().is_ok() {}
        while world.writer.try_recv().is_ok() {}
    }
    world.settle();
    assert!(!world.host("stuck").connected && world.host("fine").connected);
    assert_eq!(stuck.len(), ORDERS);
}

#[tokio::test]
async fn every_host_gets_a_roster_of_all_with_addresses_that_can_be_used() {
    let mut world = World::new();
    let mut queues = Vec::new();
    for (host, address, port) in [
        ("plain", "", 7471),
        ("advertised", "10.1.2.3:1234", 0),
        // somebody else's, for all that anybody knows: the fleet isn't sent there
        ("elsewhere", "192.0.2.7:1234", 0),
        ("everybody", "255.255.255.255:1", 1),
        ("nonsense", "example.com:1", 1),
        ("nowhere", "0.0.0.0:1", 1),
        ("large-port", "", 70_000),
    ] {
        let hello = message::Hello {
            peer_port: port,
            peer_address: address.into(),
            zone: "z".repeat(1_000),
            ..World::hello()
        };
        queues.push(world.open(host, hello).1);
    }
    world.settle();
    let mut epochs = BTreeSet::new();
    for queue in &mut queues {
        let rosters = taken(queue, |kind| match kind {
            Kind::Roster(roster) => Some(roster.clone()),
            _ => None,
        });
        let last = rosters.last().unwrap();
        let mut entries: Vec<_> = last
            .hosts
            .iter()
            .map(|entry| (entry.host.as_str(), entry.address.as_str()))
            .collect();
        entries.sort_unstable();
        assert_eq!(
            entries,
            [
                ("advertised", "10.1.2.3:1234"),
                ("elsewhere", "10.0.0.9:1234"),
                ("plain", "10.0.0.9:7471")
            ]
        );
        assert!(last.hosts.iter().all(|entry| entry.zone.len() <= 63));
        epochs.insert(last.epoch);
    }
    assert_eq!(epochs.len(), 1, "the same roster has the same epoch");
}

#[tokio::test]
async fn a_hello_that_says_nothing_isnt_taken() {
    let mut world = World::new();
    let (_, mut queue) = world.open("early", message::Hello::default());
    assert!(queue.try_recv().is_err() && queue.is_closed());
    world.settle();
    assert!(world.host_or_none("early").is_none());
}

#[tokio::test]
async fn an_image_that_a_host_lost_is_staged_there_again_with_growing_pauses() {
    let mut world = World::new();
    let (session, mut queue) = world.open("a", World::hello());
    let image = want("one", 1, 1 << 20).digest();
    world.stage("one").unwrap();
    let orders = |queue: &mut Receiver<Arc<message::Order>>| {
        taken(queue, |kind| matches!(kind, Kind::Stage(_)).then_some(())).len()
    };
    assert_eq!(orders(&mut queue), 1);
    let report = |world: &mut World, state: message::StageState| {
        let state = message::ImageState {
            manifest: image.as_bytes().to_vec(),
            state: state.into(),
            ..message::ImageState::default()
        };
        world.report(
            "a",
            session,
            message::Report {
                images: vec![state],
                ..message::Report::default()
            },
        );
    };
    let mut again = Vec::new();
    for _ in 0..6 {
        report(&mut world, message::StageState::Present);
        report(&mut world, message::StageState::Gone);
        let mut waited = 0;
        while orders(&mut queue) == 0 {
            assert!(
                waited <= RESTAGE_PAUSE_MOST.as_secs(),
                "never ordered again"
            );
            world.driver.started -= RESTAGE_PAUSE;
            world.driver.apply(Input::Tick);
            world.driver.flush();
            waited += RESTAGE_PAUSE.as_secs();
        }
        again.push(waited);
    }
    assert_eq!(again, [1, 4, 16, 64, 256, 600]);
    // An operator who asks doesn't wait.
    report(&mut world, message::StageState::Present);
    report(&mut world, message::StageState::Gone);
    world.stage("one").unwrap();
    assert!(orders(&mut queue) > 0);
}

#[tokio::test]
async fn hostile_reports_change_nothing() {
    let mut world = World::new();
    let (session, _queue) = world.open("a", World::hello());
    world.stage("one").unwrap();
    let many = (0u32..2_000).map(|n| message::ImageState {
        manifest: Digest::of(&n.to_be_bytes()).as_bytes().to_vec(),
        state: if n % 7 == 0 { 99 } else { 4 },
        total_bytes: u64::MAX,
        held_bytes: u64::MAX,
        ..message::ImageState::default()
    });
    let lease = |content: &[u8], end| message::LeaseState {
        content: content.to_vec(),
        chunks: u32::MAX,
        end,
        ..message::LeaseState::default()
    };
    let blame = |host: &str, maker: &str| message::Blame {
        host: host.into(),
        maker: maker.into(),
        kind: 1,
        ..message::Blame::default()
    };
    world.report(
        "a",
        session,
        message::Report {
            images: many.chain([message::ImageState::default()]).collect(),
            leases: vec![lease(&[1; 31], 0), lease(&[1; 32], 1), lease(&[2; 32], 99)],
            blames: vec![
                blame("a", "a"),
                blame("../x", ""),
                blame("unknown", "a"),
                blame("", ""),
            ],
            ..message::Report::default()
        },
    );
    world.settle();
    let host = world.host("a");
    assert!(host.images.len() <= MAX_IMAGES + 1);
    assert_eq!((host.blames, host.quarantined), (0, false));
}

#[tokio::test]
async fn hosts_that_two_others_prove_to_lie_are_shunned_by_all() {
    let mut world = World::new();
    let (one, mut first) = world.open("one", World::hello());
    let (two, _second) = world.open("two", World::hello());
    let (_, _liar) = world.open("liar", World::hello());
    for (host, session) in [("one", one), ("two", two)] {
        assert!(
            !world
                .host_or_none("liar")
                .is_some_and(|host| host.quarantined)
        );
        world.report(
            host,
            session,
            message::Report {
                blames: vec![message::Blame {
                    host: "liar".into(),
                    maker: "liar".into(),
                    kind: message::BlameKind::Bytes.into(),
                    ..message::Blame::default()
                }],
                ..message::Report::default()
            },
        );
        world.settle();
    }
    assert!(world.host("liar").quarantined);
    world.settle();
    let shunned = taken(&mut first, |kind| match kind {
        Kind::Limits(limits) => Some(limits.revoked_hosts.clone()),
        _ => None,
    });
    assert_eq!(shunned.last().unwrap(), &["liar"]);
}

#[tokio::test]
async fn no_more_images_are_wanted_than_hosts_can_be_told_of() {
    let mut world = World::new();
    assert!(matches!(world.stage("early"), Err(StageError::NoHosts)));
    let (_, mut queue) = world.open("a", World::hello());
    for seed in 0..MAX_WANTS {
        assert_eq!(
            world.stage(&format!("i{seed}")).unwrap().image.state,
            ImageState::Staging
        );
        while queue.try_recv().is_ok() {}
    }
    assert!(matches!(
        world.stage("one-more"),
        Err(StageError::TooManyImages)
    ));
    assert!(world.stage("i0").is_ok());
}

impl World {
    fn host_or_none(&self, host: &str) -> Option<Arc<HostView>> {
        self.view
            .borrow()
            .hosts
            .get(&host.parse::<HostId>().unwrap())
            .cloned()
    }
}

fn place(world: &mut World, wants: Vec<Want>, limits: Limits) {
    let placed = |want| Placed {
        want,
        held: BTreeSet::new(),
    };
    let wants = wants.into_iter().map(placed).collect();
    world.driver.apply(Input::Asked(Ask::Place {
        wants,
        limits,
        whole: true,
    }));
}

#[test]
fn what_is_left_over_on_a_host_is_cancelled_when_all_that_was_asked_for_is_known() {
    let image = want("left", 1, 1 << 20).digest();
    let cancels = |world: &mut World, session, orders: &mut Receiver<Arc<message::Order>>| {
        let staging = message::ImageState {
            manifest: image.as_bytes().to_vec(),
            state: message::StageState::Staging.into(),
            ..message::ImageState::default()
        };
        world.driver.apply(Input::Reported {
            host: "mini-1".parse().unwrap(),
            session,
            report: Box::new(message::Report {
                images: vec![staging],
                ..message::Report::default()
            }),
            handled: oneshot::channel().0,
        });
        let orders = std::iter::from_fn(|| orders.try_recv().ok());
        let cancels = orders.filter(|order| match &order.kind {
            Some(Kind::Cancel(cancel)) => cancel.manifest_digest == image.as_bytes(),
            _ => false,
        });
        cancels.count()
    };
    for kubernetes in [false, true] {
        let mut world = World::of(kubernetes);
        let (session, mut orders) = world.open("mini-1", World::hello());
        // what operators had asked another replica for may still have to be resolved
        assert_eq!(cancels(&mut world, session, &mut orders), 0);
        world.driver.apply(Input::Recalled);
        // and so may what the cluster's objects want
        let known = usize::from(!kubernetes);
        assert_eq!(cancels(&mut world, session, &mut orders), known);
        place(&mut world, Vec::new(), Limits::default());
        assert_eq!(cancels(&mut world, session, &mut orders), 1);
    }
}

#[test]
fn a_host_that_is_blamed_for_bytes_is_asked_to_look_at_them_once() {
    let mut world = World::new();
    let (_, mut orders) = world.open("mini-1", World::hello());
    let (accuser, _other) = world.open("mini-2", World::hello());
    let mut blame = |world: &mut World, chunks: &[u32], kind: message::BlameKind| {
        let blames = chunks.iter().map(|chunk| message::Blame {
            host: "mini-1".into(),
            maker: "mini-1".into(),
            content: vec![7; 32],
            chunk: *chunk,
            kind: kind.into(),
            ..message::Blame::default()
        });
        let report = message::Report {
            blames: blames.collect(),
            ..message::Report::default()
        };
        world.report("mini-2", accuser, report);
        world.driver.publish_due = world.driver.now();
        world.driver.flush();
        let orders = std::iter::from_fn(|| orders.try_recv().ok());
        let asked = orders.filter_map(|order| match &order.kind {
            Some(Kind::Recheck(recheck)) => Some(recheck.chunks.clone()),
            _ => None,
        });
        asked.collect::<Vec<_>>()
    };
    let asked = blame(&mut world, &[3, 3, 9], message::BlameKind::Bytes);
    let chunks: Vec<_> = asked.concat().iter().map(|asked| asked.chunk).collect();
    assert_eq!((asked.len(), chunks), (1, vec![3, 9]));
    assert_eq!(asked[0][0].content, vec![7; 32]);
    // one order however many blames
    let many: Vec<u32> = (0..500).collect();
    let asked = blame(&mut world, &many, message::BlameKind::Bytes);
    assert_eq!((asked.len(), asked[0].len()), (1, MAX_BLAMES));
    // a false link says nothing of the disk
    assert!(blame(&mut world, &[3], message::BlameKind::Link).is_empty());
    // nor is it heard more than so often in a minute: 3, 16 and 1 so far, and 44 more
    let heard = [16, 16, 12, 0];
    for (round, heard) in (1..).zip(heard) {
        let chunks: Vec<u32> = (round * 1_000..round * 1_000 + 100).collect();
        let asked = blame(&mut world, &chunks, message::BlameKind::Bytes).concat();
        assert_eq!(asked.len(), heard, "{round}");
    }
}

#[test]
fn a_flood_of_blames_costs_the_coordinator_little() {
    let mut world = World::new();
    let hosts: Vec<String> = (0..50).map(|number| format!("mini-{number}")).collect();
    let opened: Vec<_> = hosts
        .iter()
        .map(|host| world.open(host, World::hello()))
        .collect();
    let liar = opened[0].0;
    let began = Instant::now();
    let mut said = 0;
    for host in &hosts[1..] {
        // with more of them its session would end
        let blames = (0u32..2_560).map(|number| message::Blame {
            host: host.clone(),
            maker: host.clone(),
            content: Digest::of(&number.to_le_bytes()).as_bytes().to_vec(),
            chunk: number,
            kind: message::BlameKind::Bytes.into(),
            ..message::Blame::default()
        });
        let report = message::Report {
            blames: blames.collect(),
            ..message::Report::default()
        };
        said += report.blames.len();
        world.report("mini-0", liar, report);
        world.driver.publish_due = world.driver.now();
        world.driver.flush();
    }
    let took = began.elapsed();
    println!("{said} blames of one host cost {took:?}");
    assert_eq!(said, 125_440);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let view = world.view.borrow().clone();
    let blames: u64 = view.hosts.values().map(|host| host.blames).sum();
    assert_eq!(blames, 64);
    assert!(view.hosts.values().all(|host| !host.quarantined));
}

#[test]
fn what_the_cluster_wants_outlives_a_cancel_and_ends_with_its_objects() {
    let mut world = World::new();
    let (_one, mut orders) = world.open("mini-1", World::hello());
    world.open("mini-2", World::hello());
    drop(world.stage("image"));
    let image = want("image", 1, 1 << 20);
    let placed = Want {
        hosts: Some(["mini-1".parse().unwrap()].into()),
        references: ["127.0.0.1:5000/image:other".to_owned()].into(),
        ..image.clone()
    };
    place(&mut world, vec![placed.clone()], Limits::default());
    let selected = |world: &World| {
        let view = world.view.borrow().clone();
        let image = view.images.get(&image.digest());
        image.map(|image| (image.hosts_selected, image.references.len()))
    };
    assert_eq!(selected(&world), Some((2, 2)));

    let (reply, _answer) = oneshot::channel();
    let image_digest = image.digest();
    world.driver.apply(Input::Asked(Ask::Cancel {
        name: image_digest.to_string(),
        reply,
    }));
    assert_eq!(selected(&world), Some((1, 1)));

    // what the objects limit reaches hosts, and goes with them
    while orders.try_recv().is_ok() {}
    let limits = Limits {
        bandwidth: BandwidthRequest {
            upload_bytes_per_second: 7,
            download_bytes_per_second: 0,
        },
        origin_streams: Some(1),
    };
    place(&mut world, vec![placed], limits);
    let told = |orders: &mut Receiver<Arc<message::Order>>| {
        let mut last = None;
        while let Ok(order) = orders.try_recv() {
            if let Some(Kind::Bandwidth(bandwidth)) = &order.kind {
                last = Some(bandwidth.upload_bytes_per_second);
            }
        }
        last
    };
    assert_eq!(told(&mut orders), Some(7));
    place(&mut world, Vec::new(), Limits::default());
    assert_eq!(told(&mut orders), Some(0));
    assert_eq!(selected(&world), None);
}

#[test]
fn what_the_cluster_wants_beyond_the_most_images_waits_until_there_is_room() {
    let mut world = World::new();
    world.open("mini-1", World::hello());
    let image = |number: usize| want(&format!("image {number}"), 1, 1 << 20);
    let all: Vec<Want> = (0..MAX_WANTS + 2).map(image).collect();
    place(&mut world, all.clone(), Limits::default());
    let shown = |world: &World| {
        let view = world.view.borrow().clone();
        (view.images.len(), view.waiting.len())
    };
    assert_eq!(shown(&world), (MAX_WANTS, 2));
    // told again, nothing changes; with one less, one of them has its turn
    place(&mut world, all.clone(), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 2));
    let waits: Vec<Digest> = world.driver.waiting.keys().copied().collect();
    let fewer = |gone: usize| {
        let mut gone = gone;
        let mut kept = all.clone();
        kept.retain(|want| {
            let goes = gone > 0 && !waits.contains(&want.digest());
            gone -= usize::from(goes);
            !goes
        });
        kept
    };
    place(&mut world, fewer(1), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 1));
    // nobody wants what waits any more
    let without: Vec<Want> = all
        .iter()
        .filter(|want| !waits.contains(&want.digest()))
        .cloned()
        .collect();
    place(&mut world, without, Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 0));

    // room that operators make is taken as well
    let mut world = World::new();
    world.open("mini-1", World::hello());
    drop(world.stage("asked"));
    place(&mut world, all[..MAX_WANTS].to_vec(), Limits::default());
    assert_eq!(shown(&world), (MAX_WANTS, 1));
    let (reply, _answer) = oneshot::channel();
    let name = want("asked", 1, 1 << 20).digest().to_string();
    world
        .driver
        .apply(Input::Asked(Ask::Cancel { name, reply }));
    let now = world.driver.now();
    world.driver.show(now);
    assert_eq!(shown(&world), (MAX_WANTS, 0));
}

#[test]
fn a_host_that_the_cluster_holds_is_told_to_keep_what_it_has() {
    let mut world = World::new();
    let (_one, mut orders) = world.open("mini-1", World::hello());
    let mini: HostId = "mini-1".parse().unwrap();
    let image = want("image", 1, 1 << 20);
    let mut told = || {
        let mut kinds = Vec::new();
        while let Ok(order) = orders.try_recv() {
            match &order.kind {
                Some(Kind::Stage(_)) => kinds.push("stage"),
                Some(Kind::Cancel(order)) if order.keep => kinds.push("keep"),
                Some(Kind::Cancel(_)) => kinds.push("drop"),
                _ => {}
            }
        }
        kinds
    };
    let on = |hosts: &[&HostId], held: &[&HostId]| {
        let set = |hosts: &[&HostId]| hosts.iter().copied().cloned().collect();
        vec![Placed {
            want: Want {
                hosts: Some(set(hosts)),
                ..image.clone()
            },
            held: set(held),
        }]
    };
    let mut place = |wants| {
        let limits = Limits::default();
        let ask = Ask::Place {
            wants,
            limits,
            whole: true,
        };
        world.driver.apply(Input::Asked(ask));
        told()
    };
    assert_eq!(place(on(&[&mini], &[])), ["stage"]);
    assert_eq!(place(on(&[], &[&mini])), ["keep"]);
    assert_eq!(place(on(&[&mini], &[])), ["stage"]);
    assert_eq!(place(on(&[], &[&mini])), ["keep"]);
    assert_eq!(place(Vec::new()), ["drop"]);
}

#[test]
fn presence_is_what_a_host_saw_at_its_last_look_and_nothing_older() {
    let mut world = World::new();
    let presence = watch::channel(Arc::default());
    world.driver.presence = presence.0;
    let image = want("image", 1, 1 << 20).digest();
    let state = |ready: &[&str], age_ms| message::ImageState {
        manifest: image.as_bytes().to_vec(),
        state: message::StageState::Present.into(),
        presence_age_ms: age_ms,
        ready_references: ready.iter().map(ToString::to_string).collect(),
        ..message::ImageState::default()
    };
    let host = "mini-1".parse().unwrap();
    let held = || {
        let view = presence.1.borrow().clone();
        let word = view.get(&host).cloned();
        word.map(|word| word.holdings.get(&image).map_or(0, BTreeSet::len))
    };
    assert_eq!(held(), None);
    let hello = message::Hello {
        images: vec![state(&["r.test/a:1"], 0)],
        ..World::hello()
    };
    let (session, _orders) = world.open("mini-1", hello);
    assert_eq!(held(), Some(1));
    let report = |images, full| message::Report {
        images,
        full,
        ..message::Report::default()
    };
    world.report(
        "mini-1",
        session,
        report(vec![state(&["r.test/a:1", "r.test/a:2"], 0)], false),
    );
    assert_eq!(held(), Some(2));
    // a report that says nothing of it changes nothing; a full one does
    world.report("mini-1", session, report(Vec::new(), false));
    assert_eq!(held(), Some(2));
    world.report("mini-1", session, report(Vec::new(), true));
    assert_eq!(held(), Some(0));
    // a look that hangs ages, however often the host reports
    world.report(
        "mini-1",
        session,
        report(vec![state(&["r.test/a:1"], 60_000)], false),
    );
    let age = presence.1.borrow()[&host].checked_at.elapsed();
    assert!(age >= Duration::from_secs(60), "{age:?}");
    // an older agent names no references: nothing is present by name
    world.report("mini-1", session, report(vec![state(&[], 0)], false));
    assert_eq!(held(), Some(0));
}

#[tokio::test]
async fn a_job_that_panics_ends_the_driver_and_nothing_waits_for_its_answer() {
    let mut world = World::new();
    let (inputs, inbox) = mpsc::channel(1);
    let (_members, membership) = watch::channel(Arc::default());
    let (waits, mut answer) = oneshot::channel::<()>();
    world.driver.jobs.spawn(async move {
        let _waits = waits;
        panic!("injected");
    });
    let shutdown = CancellationToken::new();
    let run = world.driver.run(inbox, membership, shutdown.clone());
    let ended = tokio::time::timeout(Duration::from_secs(10), run).await;
    assert!(ended.is_ok(), "it goes on without the answer");
    // nobody asked it to end, so the program takes it for a part that failed
    assert!(!shutdown.is_cancelled() && inputs.is_closed());
    assert!(answer.try_recv().is_err());
}

/// The tickets that wait in a host's queue: those that came with leases, with their contents, and standing ones.
fn tickets(queue: &mut Receiver<Arc<message::Order>>) -> Vec<proto::Ticket> {
    let mut tickets = Vec::new();
    while let Ok(order) = queue.try_recv() {
        let ticket = match &order.kind {
            Some(Kind::Ticket(ticket)) => ticket.clone(),
            Some(Kind::Lease(grant)) => grant.ticket.clone().unwrap(),
            _ => continue,
        };
        tickets.push(proto::Ticket::parse(&ticket).unwrap());
    }
    tickets
}

#[test]
fn a_host_gets_tickets_with_its_session_and_with_each_lease() {
    use proto::statement::Verify as _;

    let mut world = World::new();
    let (session, mut queue) = world.open("mini-1", World::hello());
    world.stage("one").unwrap();
    let staging = message::ImageState {
        manifest: want("one", 1, 1 << 20).digest().as_bytes().to_vec(),
        state: message::StageState::Staging.into(),
        ..message::ImageState::default()
    };
    for second in 0..8 {
        world.driver.frozen = Some(Moment::START + Duration::from_secs(10 + second));
        let report = message::Report {
            images: vec![staging.clone()],
            ..message::Report::default()
        };
        world.report("mini-1", session, report);
    }
    let given = tickets(&mut queue);
    let key = world.driver.authority.certificate().to_vec();
    let root = rustls::pki_types::CertificateDer::from(key);
    let identity = world
        .driver
        .authority
        .issue_own(Duration::from_hours(1))
        .unwrap();
    let credentials = link::Credentials::new(identity.chain, identity.key, vec![root]).unwrap();
    let signatures = Signatures::of(&credentials);
    assert!(given.iter().all(|ticket| signatures.ticket(ticket)));
    assert!(
        given
            .iter()
            .all(|ticket| ticket.key() == &[1; 32] && ticket.maker().as_str() == "mini-1")
    );
    assert_eq!(given[0].content(), None);
    assert!(given.len() > 1 && given[1..].iter().all(|ticket| ticket.content().is_some()));
    assert!(given.is_sorted_by_key(proto::Ticket::number));
    // a host whose clock is a week ahead takes its certificate, and so it takes these
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let later = now.unwrap().as_secs() + 7 * 86_400;
    assert!(given.iter().all(|ticket| ticket.expires_at() > later));
    // a standing one again when half of its life is over
    let half = world.driver.ticket_lifetime() / 2;
    world.driver.renew_tickets(Moment::START + half / 2);
    assert_eq!(tickets(&mut queue), []);
    world
        .driver
        .renew_tickets(Moment::START + half + Duration::from_mins(1));
    let given = tickets(&mut queue);
    assert!(matches!(&given[..], [ticket] if ticket.content().is_none()));
}

#[test]
fn a_version_that_signs_no_links_is_told_apart_by_name_and_stages_nothing() {
    let mut world = World::new();
    let (_, mut signs) = world.open("mini-1", World::hello());
    let old = message::Hello {
        link_key: Vec::new(),
        version: "0.9.0".into(),
        ..World::hello()
    };
    let (_, mut old) = world.open_from("mini-2", old, "10.0.0.10:40000");
    world.stage("one").unwrap();
    let now = world.driver.now();
    world.driver.show(now);
    while let Ok(order) = old.try_recv() {
        let kind = order.kind.as_ref().unwrap();
        assert!(matches!(kind, Kind::Names(_)), "{kind:?}");
    }
    world.driver.refresh_roster();
    let roster = world.driver.roster.whole(&[]);
    let Some(Kind::Roster(roster)) = roster.kind else {
        panic!("no roster")
    };
    let named: Vec<_> = roster.hosts.iter().map(|entry| &entry.host).collect();
    assert_eq!(named, ["mini-1"]);
    assert!(!tickets(&mut signs).is_empty());
    let view = world.view.borrow().clone();
    let host: HostId = "mini-2".parse().unwrap();
    let why = view.hosts[&host].why.join("\n");
    assert!(why.contains("0.9.0") && why.contains("upgrade it"), "{why}");
}

/// A link that this host made under its number, or vouched for (0), with a ticket of the fleet's authority.
fn signed(
    world: &World,
    maker: &str,
    run: u64,
    chunk: u32,
    before: u8,
    after: u8,
) -> proto::Signed {
    use proto::statement::Run;

    let signer = link::LinkSigner::from_seed(&[maker.as_bytes()[0]; 32]);
    let content = Digest::from_bytes([7; 32]);
    let of = (run > 0).then_some(content);
    let (host, hour) = (maker.parse().unwrap(), Duration::from_hours(1));
    let authority = &world.driver.authority;
    let ticket = authority.ticket(of, &host, signer.public(), run + 1, hour);
    let ticket = Arc::new(ticket.unwrap());
    let run = match run {
        0 => Run::vouched(ticket),
        number => Run::made(ticket, number, None),
    };
    let link = proto::Link {
        before: proto::State::from_bytes(&[before; 32]),
        after: proto::State::from_bytes(&[after; 32]),
        fingerprint: proto::Fingerprint([0; 16]),
        resume: None,
    };
    let sign = |bytes: &[u8]| signer.sign(bytes);
    proto::Signed::new(content, proto::ChunkIndex(chunk), link, Arc::new(run), sign)
}

fn shown(links: &[proto::Signed]) -> message::Report {
    let evidence = links.iter().map(|signed| message::SignedLink {
        chunk: signed.chunk.0,
        link: Some(signed.to_message()),
    });
    message::Report {
        blames: vec![message::Blame {
            content: vec![7; 32],
            kind: message::BlameKind::Link.into(),
            evidence: evidence.collect(),
            ..message::Blame::default()
        }],
        ..message::Report::default()
    }
}

fn blamed(world: &mut World, host: &str) -> (u64, bool) {
    world.driver.apply(Input::Tick);
    let now = world.driver.now();
    world.driver.show(now);
    let host: HostId = host.parse().unwrap();
    let view = world.view.borrow().clone();
    (view.hosts[&host].blames, view.hosts[&host].quarantined)
}

#[test]
fn two_links_that_a_host_signed_and_that_contradict_each_other_convict_it() {
    let mut world = World::new();
    let (_, _liar) = world.open("liar", World::hello());
    let (session, _one) = world.open("one", World::hello());
    // what isn't signed by the host, or is true of one another, says nothing
    let mut forged = signed(&world, "liar", 1, 5, 2, 9);
    forged.statement.signature[0] ^= 1;
    let first = signed(&world, "liar", 1, 4, 1, 2);
    world.report("one", session, shown(&[first.clone(), forged]));
    let after = signed(&world, "liar", 1, 5, 2, 3);
    world.report("one", session, shown(&[first.clone(), after]));
    assert_eq!(blamed(&mut world, "liar"), (0, false));
    // nor do two hosts' that differ, whoever is blamed for it
    let (two, _two) = world.open("two", World::hello());
    let other = signed(&world, "two", 1, 5, 8, 9);
    world.report("two", two, shown(&[first.clone(), other]));
    assert_eq!(blamed(&mut world, "liar"), (0, false));
    // one word that shows them is enough
    let apart = signed(&world, "liar", 1, 5, 8, 9);
    world.report("two", two, shown(&[first, apart]));
    assert_eq!(blamed(&mut world, "liar"), (1, true));
}

#[test]
fn false_registry_bytes_blame_no_host() {
    let mut world = World::new();
    world.open("maker", World::hello());
    let made = signed(&world, "maker", 1, 5, 8, 9);
    let vouched = signed(&world, "maker", 0, 5, 8, 9);
    for number in 0..5 {
        let (session, _) = world.open(&format!("other-{number}"), World::hello());
        world.report(
            &format!("other-{number}"),
            session,
            shown(std::slice::from_ref(&made)),
        );
    }
    assert_eq!(blamed(&mut world, "maker"), (0, false));
    let kinds = |world: &World, kind| {
        let label = KindLabel { kind };
        world.driver.metrics.blames.get_or_create(&label).get()
    };
    assert_eq!((kinds(&world, "made"), kinds(&world, "link")), (5, 0));
    // what it vouched for it says to have verified
    for number in 5..9 {
        let (session, _) = world.open(&format!("other-{number}"), World::hello());
        world.report(
            &format!("other-{number}"),
            session,
            shown(std::slice::from_ref(&vouched)),
        );
    }
    assert_eq!(blamed(&mut world, "maker"), (4, true));
    assert_eq!((kinds(&world, "made"), kinds(&world, "link")), (5, 4));
}

#[test]
fn hosts_are_told_who_may_have_an_image_that_isnt_for_all() {
    let mut world = World::new();
    let mut queues: Vec<_> = ["mini-1", "mini-2", "mini-3"]
        .into_iter()
        .map(|host| {
            let hello = message::Hello {
                roster_epoch: Some(0),
                ..World::hello()
            };
            world.open(host, hello).1
        })
        .collect();
    let host = |name: &str| -> HostId { name.parse().unwrap() };
    let mut told_of = |hosts: Option<&[&str]>| {
        let want = Want {
            hosts: hosts.map(|hosts| hosts.iter().map(|name| host(name)).collect()),
            ..want("image", 1, 1 << 20)
        };
        place(&mut world, vec![want], Limits::default());
        let told = |queue: &mut Receiver<Arc<message::Order>>| {
            let orders = taken(queue, |kind| match kind {
                Kind::Stage(order) => {
                    Some((order.entitled_hosts.clone(), !order.manifest.is_empty()))
                }
                _ => None,
            });
            assert!(orders.len() <= 1, "said once: {orders:?}");
            orders.into_iter().next()
        };
        queues.iter_mut().map(told).collect::<Vec<_>>()
    };
    let keys = |names: &[&str]| {
        let mut keys: Vec<u64> = names.iter().map(|name| host(name).key().0).collect();
        keys.sort_unstable();
        keys
    };
    let one = keys(&["mini-1"]);
    assert_eq!(told_of(Some(&["mini-1"])), [Some((one, true)), None, None]);
    // who has the image hears of the new host too, without the manifest
    let two = keys(&["mini-1", "mini-2"]);
    let told = told_of(Some(&["mini-1", "mini-2"]));
    assert_eq!(told, [Some((two.clone(), false)), Some((two, true)), None]);
    assert_eq!(told_of(Some(&["mini-1", "mini-2"])), [None, None, None]);
    // all hosts is no list
    let all = (vec![], false);
    let told = told_of(None);
    assert_eq!(told, [Some(all.clone()), Some(all), Some((vec![], true))]);
}
