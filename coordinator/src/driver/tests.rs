//! Tests the driver without sockets: a test applies inputs and reads the orders that come out.

use std::collections::BTreeSet;

use prometheus_client::registry::Registry;
use proto::{limits::MAX_IMAGES, message::order::Kind};
use tokio::sync::{mpsc::Receiver, oneshot};

use super::{ask::MAX_WANTS, *};
use crate::{
    authority::Authority,
    config::Fleet,
    intake,
    metrics::KindLabel,
    view::{BandwidthRequest, HostState, HostView, ImageState},
    wants::{Kept, tests::want},
};

mod blames;
mod cluster;
mod fleet_recipes;
mod flood;
mod formats;
mod names;
mod places;
mod predictions;
mod recipes;
mod rest;
mod returns;
mod several;
mod words;

pub(super) struct World {
    pub(super) driver: Driver,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) writer: Receiver<Write>,
    pub(super) authority: Arc<Authority>,
    pub(super) registry: Registry,
    sessions: u64,
}

pub(super) fn config(dir: &std::path::Path, kubernetes: bool) -> Config {
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

    /// A coordinator that starts again, with the hosts that enrolled before and the state that was kept.
    pub(super) fn after(kubernetes: bool, enrolled: BTreeSet<HostId>, kept: Kept) -> Self {
        Self::configured(kubernetes, enrolled, kept, |_| ())
    }

    /// As [`after`](Self::after), with another configuration.
    fn configured(
        kubernetes: bool,
        enrolled: BTreeSet<HostId>,
        kept: Kept,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), kubernetes);
        change(&mut config);
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
        let authority = Arc::new(authority);
        let (metrics, registry) = Metrics::new();
        let driver = Driver::new(Parts {
            authority: authority.clone(),
            presence: watch::channel(Arc::default()).0,
            registries: Arc::new(Registries::new(config.origin.clone()).unwrap()),
            config,
            kept,
            membership: Arc::new(membership),
            publish,
            writer,
            metrics,
            seed: 1,
        });
        Self {
            driver,
            view,
            writer: writes,
            authority,
            registry,
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
                clones: None,
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
        self.stage_want(want(seed, 1, 1 << 20))
    }

    pub(super) fn stage_want(&mut self, want: Want) -> Result<StageReply, StageError> {
        let (reply, mut answer) = oneshot::channel();
        self.driver.apply(Input::Asked(Ask::Stage {
            want: Box::new(want),
            reply,
        }));
        // Answers as the writer does after writing the file.
        while let Ok(keep) = self.writer.try_recv() {
            keep.done();
        }
        answer.try_recv().unwrap()
    }

    /// Lets every pause pass, so that everything that was delayed is sent.
    pub(super) fn settle(&mut self) {
        let young = Duration::from_secs(10).saturating_sub(self.driver.started.elapsed());
        for time in [young, Duration::from_secs(5)] {
            self.pass(time);
            self.driver.flush();
        }
    }

    /// Lets time pass in steps, and applies a tick after each: a plan that hears of time late believes that it was held
    /// up.
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
    // The old session's queue is closed, which ends its task.
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
        // this address may be somebody else's, so the fleet isn't sent there
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
                waited <= restages::PAUSE_MOST.as_secs(),
                "never ordered again"
            );
            world.driver.started -= restages::PAUSE;
            world.driver.apply(Input::Tick);
            world.driver.flush();
            waited += restages::PAUSE.as_secs();
        }
        again.push(waited);
    }
    assert_eq!(again, [1, 4, 16, 64, 256, 600]);
    // An operator's ask isn't delayed.
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
    /// What is kept of an image on disk, by the last write.
    fn kept(&mut self) -> Option<Want> {
        let mut kept = None;
        while let Ok(write) = self.writer.try_recv() {
            if let Write::Want(want, _) = &write {
                kept = Some(want.as_ref().clone());
            }
        }
        kept
    }

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
        paused: BTreeSet::new(),
        awaited: BTreeSet::new(),
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
        // images that operators asked another replica for may still have to be resolved
        assert_eq!(cancels(&mut world, session, &mut orders), 0);
        world.driver.apply(Input::Recalled);
        // so may images that the cluster's objects want
        let known = usize::from(!kubernetes);
        assert_eq!(cancels(&mut world, session, &mut orders), known);
        place(&mut world, Vec::new(), Limits::default());
        assert_eq!(cancels(&mut world, session, &mut orders), 1);
    }
}

#[test]
fn presence_is_what_a_host_saw_at_its_last_look_and_nothing_older() {
    let mut world = World::new();
    let presence = watch::channel(Arc::default());
    world.driver.members.presence_mut().publish_to(presence.0);
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
    // a partial report without the image changes nothing; a full one does
    world.report("mini-1", session, report(Vec::new(), false));
    assert_eq!(held(), Some(2));
    world.report("mini-1", session, report(Vec::new(), true));
    assert_eq!(held(), Some(0));
    // where a host's look at its disk hangs, the age grows, however often the host reports
    world.report(
        "mini-1",
        session,
        report(vec![state(&["r.test/a:1"], 60_000)], false),
    );
    let age = presence.1.borrow()[&host].checked_at.elapsed();
    assert!(age >= Duration::from_secs(60), "{age:?}");
    // an older agent names no references, so nothing is present by name
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
    // nobody asked the driver to end, so the program takes it for a part that failed
    assert!(!shutdown.is_cancelled() && inputs.is_closed());
    assert!(answer.try_recv().is_err());
}

/// The tickets that wait in a host's queue: those of leases, with their contents, and standing ones.
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
    let key = world.authority.certificate().to_vec();
    let root = rustls::pki_types::CertificateDer::from(key);
    let identity = world.authority.issue_own(Duration::from_hours(1)).unwrap();
    let credentials = wire::Credentials::new(identity.chain, identity.key, vec![root]).unwrap();
    let signatures = wire::Signatures::of(&credentials);
    assert!(given.iter().all(|ticket| signatures.ticket(ticket)));
    assert!(
        given
            .iter()
            .all(|ticket| ticket.key() == &[1; 32] && ticket.maker().as_str() == "mini-1")
    );
    assert_eq!(given[0].content(), None);
    assert!(given.len() > 1 && given[1..].iter().all(|ticket| ticket.content().is_some()));
    assert!(given.is_sorted_by_key(proto::Ticket::number));
    // a host whose clock is a week ahead accepts its certificate, so it has to accept these tickets
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let later = now.unwrap().as_secs() + 7 * 86_400;
    assert!(given.iter().all(|ticket| ticket.expires_at() > later));
    // a new standing ticket comes when half of the old one's life is over
    let half = world
        .driver
        .config
        .certificate_lifetime
        .max(Duration::from_hours(24))
        / 2;
    let renew = |world: &mut World, after: Duration| {
        let now = Moment::START + after;
        let effects = world.driver.members.tell_tickets(now, SystemTime::now());
        world.driver.carry(now, effects);
    };
    renew(&mut world, half / 2);
    assert_eq!(tickets(&mut queue), []);
    renew(&mut world, half + Duration::from_mins(1));
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
    world.driver.members.refresh_roster();
    let roster = world.driver.members.rosters().roster().whole(&[]);
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
    // the host that has the image is told of the new host too, without the manifest
    let two = keys(&["mini-1", "mini-2"]);
    let told = told_of(Some(&["mini-1", "mini-2"]));
    assert_eq!(told, [Some((two.clone(), false)), Some((two, true)), None]);
    assert_eq!(told_of(Some(&["mini-1", "mini-2"])), [None, None, None]);
    // all hosts together are an empty list
    let all = (vec![], false);
    let told = told_of(None);
    assert_eq!(told, [Some(all.clone()), Some(all), Some((vec![], true))]);
}
