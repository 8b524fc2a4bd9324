//! Tests the state without sockets or jobs: a test applies inputs, and reads the effects and reports.
//!
//! The store lies in a directory of the test. Jobs come out as effects, and a test runs those that it names.

use proto::{
    image::Layout,
    message::{
        self, BlameKind, LeaseEnd, LeaseGrant, OldImagesAsked, RosterChange, RosterEntry,
        StageOrder, StageState, order::Kind,
    },
};
use std::time::Duration;
use swarm::{Config as SwarmConfig, Swarm};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::{
    config,
    driver::{
        exchange::Exchange, hosts::Dial, images::tests::manifest, jobs::Long, mirror::Mirror,
        transfers::Transfer,
    },
    identity::tests::Authority,
    metrics::{From, SourceLabel},
    peer::Brought,
    store::tests::open,
    tart::Fitness,
    transfer::Receipt,
};

mod orders;
mod reports;
mod time;

const LONG: u64 = u64::MAX;

/// The state of host `me`, whose disk has nothing, and which has just started.
struct World {
    state: State,
    now: Instant,
    authority: Authority,
    notary: Arc<Notary>,
    metrics: Metrics,
    hello: watch::Receiver<Hello>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    _home: TempDir,
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn entry(name: &str) -> RosterEntry {
    RosterEntry {
        host: name.into(),
        address: "10.0.0.1:7".into(),
        zone: String::new(),
        enrolled_at: 0,
    }
}

fn image() -> Digest {
    Digest::of(&manifest("a"))
}

/// The first content of the image.
fn content() -> Digest {
    let layout = Layout::parse(&manifest("a"), &image()).unwrap();
    layout.contents()[0].digest
}

/// The coordinator orders the image.
fn stage() -> Kind {
    Kind::Stage(StageOrder {
        manifest_digest: image().as_bytes().to_vec(),
        manifest: manifest("a"),
        references: vec!["r.test/a:1".into()],
        ..StageOrder::default()
    })
}

/// A roster with these hosts, all of which are neighbours.
fn roster(epoch: u64, hosts: &[&str]) -> Kind {
    Kind::Roster(message::Roster {
        epoch,
        hosts: hosts.iter().map(|name| entry(name)).collect(),
        neighbours: hosts.iter().map(|name| (*name).to_owned()).collect(),
    })
}

fn nonsense(peer: &str) -> Input {
    Input::Brought {
        peer: host(peer).key(),
        brought: Brought::Nonsense("no message".into()),
    }
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// With these settings.
    fn with(settings: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_owned();
        let home_and_zone = format!("tart_home = '{}'\nzone = 'here'\n", path.display());
        let settings = home_and_zone + settings;
        let (now, metrics, me) = (Instant::now(), Metrics::new().0, host("me"));
        let authority = Authority::new();
        let notary = Arc::new(Notary::new(&authority.credentials("me"), &[1; 32]));
        let fitness = Arc::new(Fitness::new(path.join("tart")));
        let disk = Disk::new(Arc::new(open(&home)), None, None, fitness, path);
        let swarm = Swarm::new(me.key(), SwarmConfig::default(), 7);
        let exchange = Exchange::new(me.clone(), swarm, now, Arc::default(), metrics.clone());
        let mirror = Mirror::new(None);
        let supply = Supply::new(exchange, mirror, disk.clone(), metrics.clone(), now);
        let (hello_now, hello) = watch::channel(Hello::default());
        let (snapshot_now, snapshot) = watch::channel(Arc::default());
        let given = Given {
            config: config::tests::load(&settings, &["run"]).unwrap(),
            me,
            peer_port: 7471,
            disk,
            in_use: InUse::default(),
            notary: notary.clone(),
            metrics: metrics.clone(),
            coordinator: host("coordinator"),
            hello: hello_now,
            snapshot: snapshot_now,
        };
        let volume = Volume {
            total_bytes: 1_000,
            free_bytes: 900,
            floor_bytes: 100,
            clones: false,
        };
        let mut world = Self {
            state: State::new(given, supply, volume, now),
            now,
            authority,
            notary,
            metrics,
            hello,
            snapshot,
            _home: home,
        };
        world.state.start();
        world.turn();
        world
    }

    /// With a session, whose first report was sent.
    fn up() -> (Self, mpsc::Receiver<Report>) {
        let mut world = Self::new();
        let mut reports = world.begin_session(8);
        world.turn();
        reports.try_recv().expect("the first report");
        (world, reports)
    }

    fn begin_session(&mut self, places: usize) -> mpsc::Receiver<Report> {
        let (session, reports) = mpsc::channel(places);
        self.apply(Input::Heard(Heard::Up(session)));
        reports
    }

    /// With a session, and the image's stage on the disk.
    fn filling() -> (Self, mpsc::Receiver<Report>) {
        let (mut world, reports) = Self::up();
        world.order(stage());
        for effect in world.turn() {
            if let Effect::Run(Work::Long(_, job)) = effect {
                world.apply(job());
            }
        }
        world.turn();
        (world, reports)
    }

    fn effects(&mut self) -> Vec<Effect> {
        std::iter::from_fn(|| self.state.poll()).collect()
    }

    /// What follows at once.
    fn apply(&mut self, input: Input) -> Vec<Effect> {
        self.state.apply(self.now, input);
        self.effects()
    }

    fn order(&mut self, kind: Kind) -> Vec<Effect> {
        let order = message::Order { kind: Some(kind) };
        self.apply(Input::Heard(Heard::Order(Box::new(order))))
    }

    fn turn(&mut self) -> Vec<Effect> {
        self.state.turn(self.now);
        self.effects()
    }

    /// Half a second later, when a report is due if anything changed.
    fn turn_later(&mut self) -> Vec<Effect> {
        self.now += Duration::from_millis(500);
        self.turn()
    }

    fn status(&self) -> swarm::Status {
        self.state.supply.exchange().status()
    }

    fn lease(&self, number: u64) -> Kind {
        let key = self.notary.key();
        let ticket = self
            .authority
            .ticket(Some(content()), "me", key, number, LONG);
        Kind::Lease(LeaseGrant {
            content: content().as_bytes().to_vec(),
            manifest_digest: image().as_bytes().to_vec(),
            range: None,
            ticket: Some(ticket),
        })
    }
}

/// The images of the reports that were sent.
fn images(reports: &mut mpsc::Receiver<Report>) -> Vec<message::ImageState> {
    let sent = std::iter::from_fn(|| reports.try_recv().ok());
    sent.flat_map(|report| report.images).collect()
}

/// What an effect is, in a word.
fn word(effect: &Effect) -> &'static str {
    match effect {
        Effect::Run(Work::Waiting(_)) => "waiting",
        Effect::Run(Work::Blocking(_)) => "blocking",
        Effect::Run(Work::Long(Long::Read, _)) => "read",
        Effect::Run(Work::Long(Long::Install, _)) => "install",
        Effect::Errand(Errand::Dial(_)) => "dial",
        Effect::Errand(Errand::Fetch(_)) => "fetch",
        Effect::Errand(_) => "errand",
        Effect::Admit { .. } => "admit",
    }
}

fn words(effects: &[Effect]) -> Vec<&'static str> {
    effects.iter().map(word).collect()
}
