//! Hosts of the fleet that play foul among real agents: false bytes, false chains, silence, a byte a second both ways.
//! The real ones end with every true bit, in time, and name the liars.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use e2e::{
    cluster::{Cluster, wait_until},
    image::{ImageSpec, Mix},
    impostor::{Conduct, Impostor, announcements, has_all},
    rig::Rig,
};
use proto::{
    ChunkIndex, Digest, Link, Signed, State, Ticket,
    image::ContentSpec,
    message::{
        ChunkHeader, ChunkPush, ChunkReply, ContentHeld, Encoding, Held, ImageState, LeaseEnd,
        LeaseState, Link as WireLink, PeerOpen, PushOutcome, PushReply, Report, StageState,
        chunk_reply, order, peer_open,
    },
    statement::Run,
};
use tokio::time::{sleep, timeout};
use wire::{Connection, Receiver, Sender};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// Longer than it takes on a busy machine, tar-pits included.
const PATIENCE: Duration = Duration::from_secs(180);
/// Real agents; the rogues come after them.
const REAL: usize = 4;

/// How a rogue plays foul, as a sender and as a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Bytes that don't fit the link that they come with.
    FalseBytes,
    /// Invented bytes with a link that fits them, and that it vouches for.
    FalseChain,
    /// Accepts, and says no more.
    Silent,
    /// A byte a second, both ways.
    Dribble,
    /// Takes leases, says that it has fetched and holds what it was leased, and holds nothing.
    Boast,
    /// Takes leases, fetches nothing, and says now and then that a chunk came.
    Hoard,
    /// Takes leases, and signs inventions under their tickets.
    Invent,
}

const MANNERS: [Manner; 4] = [
    Manner::FalseBytes,
    Manner::FalseChain,
    Manner::Silent,
    Manner::Dribble,
];

/// Those that hold leases.
const HOLDERS: [Manner; 3] = [Manner::Boast, Manner::Hoard, Manner::Invent];

/// An enrolled host without an agent.
struct Rogue {
    manner: Manner,
    host: Arc<Impostor>,
    contents: Vec<ContentSpec>,
    /// What it vouches under: the coordinator's standing ticket.
    standing: Mutex<Option<Arc<Run>>>,
    /// What it was leased, as runs that it makes of it, and since when.
    leased: Mutex<BTreeMap<Digest, (Arc<Run>, Instant)>>,
    /// Leases that it got.
    grants: AtomicU64,
    /// Real agents met so far.
    met: AtomicU64,
    /// Pushes that real agents accepted, and requests that they made.
    heard: AtomicU64,
}

impl Rogue {
    fn new(manner: Manner, host: Arc<Impostor>, contents: Vec<ContentSpec>) -> Self {
        Self {
            manner,
            host,
            contents,
            standing: Mutex::default(),
            leased: Mutex::default(),
            grants: AtomicU64::new(0),
            met: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }

    /// What it says a chunk is, and what it sends for it.
    fn lie(&self, spec: &ContentSpec, chunk: ChunkIndex) -> (ChunkHeader, Bytes) {
        let length = spec.geometry.len(chunk) as usize;
        let noise: Vec<u8> = (0u32..)
            .flat_map(|at| Digest::of(&at.to_le_bytes()).as_bytes().to_vec())
            .take(length)
            .collect();
        let link = Link::forge(spec.geometry, chunk, State::from_bytes(&[7; 32]), &noise);
        let mut bytes = noise;
        if self.manner == Manner::FalseBytes {
            bytes[length / 2] ^= 1;
        }
        let standing = self.standing.lock().unwrap().clone();
        let made = self.leased.lock().unwrap().get(&spec.digest).cloned();
        let link = match made.map(|(run, _)| run).or(standing) {
            Some(run) => {
                let sign = |bytes: &[u8]| self.host.signer().sign(bytes);
                Signed::new(spec.digest, chunk, link, run, sign).to_message()
            }
            None => WireLink::new(&link, self.host.host()),
        };
        let header = ChunkHeader {
            link: Some(link),
            encoding: Encoding::Raw.into(),
            wire_bytes: u32::try_from(length).unwrap(),
            lacking_only: false,
        };
        (header, bytes.into())
    }

    /// Sends a chunk's bytes in its manner.
    async fn send(&self, sender: &mut Sender, bytes: Bytes) -> anyhow::Result<()> {
        match self.manner {
            Manner::FalseBytes | Manner::FalseChain | Manner::Invent => {
                sender.write(bytes).await?;
                sender.finish()?;
                sender.stopped().await?;
            }
            Manner::Silent | Manner::Boast | Manner::Hoard => std::future::pending().await,
            Manner::Dribble => {
                for at in 0..bytes.len() {
                    sender.write(bytes.slice(at..=at)).await?;
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(())
    }

    async fn push(
        &self,
        connection: &Connection,
        spec: &ContentSpec,
        chunk: ChunkIndex,
    ) -> anyhow::Result<()> {
        let (header, bytes) = self.lie(spec, chunk);
        let (mut sender, mut receiver) = connection.open().await?;
        let push = ChunkPush {
            content: spec.digest.as_bytes().to_vec(),
            index: chunk.0,
            header: Some(header),
            spread: None,
            sends_parts: false,
        };
        let open = PeerOpen {
            kind: Some(peer_open::Kind::Push(push)),
        };
        sender.send(&open).await?;
        let reply: Option<PushReply> = receiver.receive().await?;
        if reply.is_some_and(|reply| reply.outcome() == PushOutcome::Accepted) {
            self.heard.fetch_add(1, Ordering::Relaxed);
            self.send(&mut sender, bytes).await?;
            receiver.receive::<PushReply>().await?;
        }
        Ok(())
    }

    /// Which contents it says that it holds.
    fn claimed(&self) -> Vec<ContentSpec> {
        let leased = self.leased.lock().unwrap();
        let claims = |spec: &&ContentSpec| match self.manner {
            Manner::Boast | Manner::Hoard => false,
            Manner::Invent => leased.contains_key(&spec.digest),
            _ => true,
        };
        self.contents.iter().filter(claims).cloned().collect()
    }

    fn chunks(&self, content: &Digest) -> u32 {
        let spec = self.contents.iter().find(|spec| spec.digest == *content);
        spec.map_or(1, |spec| spec.geometry.chunks())
    }
}

impl Conduct for Rogue {
    async fn answer(
        &self,
        asked: peer_open::Kind,
        mut sender: Sender,
        _receiver: Receiver,
    ) -> anyhow::Result<()> {
        match asked {
            peer_open::Kind::Updates(_) => {}
            peer_open::Kind::Request(request) => {
                self.heard.fetch_add(1, Ordering::Relaxed);
                let spec = self
                    .contents
                    .iter()
                    .find(|spec| spec.digest.as_bytes()[..] == request.content[..]);
                let Some(spec) = spec else { return Ok(()) };
                if self.manner == Manner::Silent {
                    std::future::pending::<()>().await;
                }
                let (header, bytes) = self.lie(spec, ChunkIndex(request.index));
                let reply = ChunkReply {
                    kind: Some(chunk_reply::Kind::Chunk(header)),
                };
                sender.send(&reply).await?;
                self.send(&mut sender, bytes).await?;
            }
            peer_open::Kind::Push(_) => {
                let outcome = match self.manner {
                    Manner::FalseBytes | Manner::FalseChain => PushOutcome::Already,
                    Manner::Silent | Manner::Dribble => PushOutcome::Accepted,
                    Manner::Boast | Manner::Hoard | Manner::Invent => PushOutcome::Busy,
                };
                let reply = PushReply {
                    outcome: outcome.into(),
                    lacking: None,
                    may_want_whole: false,
                };
                sender.send(&reply).await?;
                if outcome == PushOutcome::Accepted {
                    std::future::pending::<()>().await;
                }
                sender.finish()?;
                sender.stopped().await?;
            }
        }
        Ok(())
    }

    /// Says that it holds everything, and pushes what nobody asked for, again and again.
    async fn deal(&self, connection: &Connection) -> anyhow::Result<()> {
        self.met.fetch_add(1, Ordering::Relaxed);
        let (mut sender, _receiver) = announcements(connection).await?;
        loop {
            let claimed = self.claimed();
            let all = claimed
                .iter()
                .map(|spec| (&spec.digest, spec.geometry.chunks()));
            sender.send(&has_all(all)).await?;
            for spec in &claimed {
                let chunks = spec.geometry.chunks();
                for chunk in (1..chunks.saturating_sub(1)).map(ChunkIndex) {
                    // a push that the other side never ends doesn't keep it from the next
                    let pushed = self.push(connection, spec, chunk);
                    if let Ok(result) = timeout(Duration::from_secs(20), pushed).await {
                        result?;
                    }
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn obey(&self, kind: &order::Kind) -> anyhow::Result<Option<Report>> {
        Ok(match kind {
            order::Kind::Ticket(ticket) => {
                let run = Run::vouched(Arc::new(Ticket::parse(ticket)?));
                *self.standing.lock().unwrap() = Some(Arc::new(run));
                None
            }
            order::Kind::Stage(order) => Some(Report {
                images: vec![ImageState {
                    manifest: order.manifest_digest.clone(),
                    reference: order.references.first().cloned().unwrap_or_default(),
                    state: StageState::Staging.into(),
                    total_bytes: 1 << 30,
                    order: Some(order.order),
                    ..ImageState::default()
                }],
                held: Some(Held::default()),
                ..Report::default()
            }),
            order::Kind::Lease(grant) => {
                let content = Digest::try_from(grant.content.as_slice())?;
                let number = self.grants.fetch_add(1, Ordering::Relaxed) + 1;
                let ticket = grant.ticket.as_ref().context("a lease has a ticket")?;
                let run = Run::made(Arc::new(Ticket::parse(ticket)?), number, None);
                let lease = (Arc::new(run), Instant::now());
                self.leased.lock().unwrap().insert(content, lease);
                (self.manner == Manner::Boast).then(|| {
                    let chunks = self.chunks(&content);
                    Report {
                        leases: vec![LeaseState {
                            content: grant.content.clone(),
                            chunks,
                            end: LeaseEnd::Done.into(),
                            ..LeaseState::default()
                        }],
                        held: Some(Held {
                            contents: vec![ContentHeld {
                                content: grant.content.clone(),
                                chunks,
                            }],
                        }),
                        ..Report::default()
                    }
                })
            }
            order::Kind::Revoke(revoke) => {
                let content = Digest::try_from(revoke.content.as_slice())?;
                self.leased.lock().unwrap().remove(&content);
                None
            }
            _ => None,
        })
    }

    fn report(&self) -> Report {
        let leased = self.leased.lock().unwrap();
        let leases =
            leased
                .iter()
                .filter(|_| self.manner != Manner::Boast)
                .map(|(content, (_, since))| {
                    let seconds = u32::try_from(since.elapsed().as_secs()).unwrap();
                    let pace = if self.manner == Manner::Hoard { 8 } else { 1 };
                    LeaseState {
                        content: content.as_bytes().to_vec(),
                        chunks: (seconds / pace).min(self.chunks(content) - 1),
                        paced: self.manner == Manner::Hoard,
                        ..LeaseState::default()
                    }
                });
        Report {
            leases: leases.collect(),
            ..Report::default()
        }
    }
}

/// A fleet of which the last hosts are rogues of these manners, that have met all real ones.
struct World {
    cluster: Cluster,
    rogues: Vec<Arc<Rogue>>,
    /// Hosts with real agents.
    real: BTreeSet<String>,
    // last: the rogues live in its runtime
    rig: Rig,
}

impl World {
    fn new(real: usize, manners: &[Manner], disk_bytes: u64, layer_bytes: u64) -> Self {
        let spec = ImageSpec {
            disk_bytes,
            layer_bytes,
            nvram_bytes: 4 << 20,
            mix: Mix {
                zero_percent: 10,
                compressible_percent: 10,
            },
            ..ImageSpec::default()
        };
        let rig = Rig::paced(&spec, 6 << 20).unwrap();
        let cluster = rig.site.fleet(DEMO, real + manners.len(), "", "");
        let mut cluster = cluster.unwrap();
        let names: BTreeSet<String> = cluster.agents()[..real]
            .iter()
            .map(|agent| agent.host.clone())
            .collect();
        let contents = rig.image.layout().unwrap().contents();
        let mut rogues = Vec::new();
        for (at, manner) in manners.iter().enumerate() {
            let at = real + at;
            cluster.kill_agent(at).unwrap();
            let state = cluster.agents()[at].dir.join("state");
            let runtime = &rig.site.runtime;
            let host = Arc::new(runtime.block_on(async { Impostor::of(&state).unwrap() }));
            let rogue = Rogue::new(*manner, host.clone(), contents.clone());
            let rogue = Arc::new(rogue);
            drop(runtime.spawn(host.play(rogue.clone(), names.clone())));
            rogues.push(rogue);
        }
        let met = |rogue: &Arc<Rogue>| rogue.met.load(Ordering::Relaxed) >= real as u64;
        assert!(wait_until(PATIENCE, || rogues.iter().all(met)));
        Self {
            cluster,
            rogues,
            real: names,
            rig,
        }
    }

    /// Stages the image and waits until real hosts have every true bit of it.
    fn stages(&self, arguments: &[&str]) {
        let (cluster, rig) = (&self.cluster, &self.rig);
        let arguments = [&[rig.reference.as_str()], arguments].concat();
        cluster.stage(&arguments).unwrap();
        let present = |at: usize| cluster.agents()[at].holds(&rig.image.digest).is_some();
        let real = self.real.len();
        if !wait_until(PATIENCE, || (0..real).all(present)) {
            let late = (0..real).find(|at| !present(*at)).unwrap();
            let agent = &cluster.agents()[late];
            let why = cluster.parbake(&["why", &agent.host]).unwrap();
            let log = agent.log();
            let last: Vec<_> = log.iter().rev().take(40).rev().collect();
            panic!(
                "{} isn't done: {}{last:#?}",
                agent.host,
                String::from_utf8_lossy(&why.stdout)
            );
        }
        for agent in &cluster.agents()[..real] {
            assert!(
                cluster.verify(agent, &rig.reference).unwrap(),
                "{}",
                agent.host
            );
        }
    }

    /// What the coordinator says of a host.
    fn host(&self, at: usize) -> serde_json::Value {
        let output = self.cluster.parbake(&["hosts", "--json"]).unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let name = self.cluster.agents()[at].host.as_str();
        let mut hosts = said.as_array().unwrap().iter();
        hosts.find(|host| host["host"] == name).unwrap().clone()
    }
}

#[test]
fn rogues_of_every_manner_are_finished_without_and_the_liars_named() {
    let world = World::new(REAL, &MANNERS, 24 << 20, 8 << 20);
    let hosts: Vec<&str> = world.real.iter().map(String::as_str).collect();
    world.stages(&["--hosts", &hosts.join(",")]);
    for rogue in &world.rogues {
        let heard = rogue.heard.load(Ordering::Relaxed);
        println!("{:?} was heard {heard} times", rogue.manner);
        assert!(heard > 0, "{:?} never got a word in", rogue.manner);
    }
    for at in 0..REAL + MANNERS.len() {
        let host = world.host(at);
        if at < REAL {
            assert_eq!(host["quarantined"], false, "{host}");
        }
        let lies = at.checked_sub(REAL).map(|at| MANNERS[at]);
        if matches!(lies, Some(Manner::FalseBytes | Manner::FalseChain)) {
            assert!(host["blames"].as_u64().unwrap() > 0, "{host}");
        }
    }
}

/// The image is for the rogues too, so that they are leased a part of it.
#[test]
fn rogues_that_hold_leases_and_lie_to_the_coordinator_cost_seconds() {
    let real = 6;
    let world = World::new(real, &HOLDERS, 64 << 20, 4 << 20);
    let began = Instant::now();
    world.stages(&[]);
    println!("staged among {HOLDERS:?} in {:?}", began.elapsed());
    // the image alone takes the registry 10 s
    assert!(began.elapsed() < Duration::from_secs(90));
    for rogue in &world.rogues {
        let grants = rogue.grants.load(Ordering::Relaxed);
        println!("{:?} was granted {grants} leases", rogue.manner);
        assert!(grants > 0, "{:?} never had a lease", rogue.manner);
    }
    for at in 0..real {
        let host = world.host(at);
        assert_eq!(host["quarantined"], false, "{host}");
        assert_eq!(host["blames"], 0, "{host}");
    }
    // who signed what contradicts itself is convicted by that
    let at = real + HOLDERS.iter().position(|of| *of == Manner::Invent).unwrap();
    let convicted = || world.host(at)["quarantined"] == true;
    assert!(wait_until(PATIENCE, convicted), "{}", world.host(at));
}
