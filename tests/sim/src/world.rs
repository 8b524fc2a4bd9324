//! The world: hosts with real swarms, a coordinator with a real plan, the network between them, and time.
//!
//! Events lie in a heap by time; messages that all take the same delay lie in a queue. What the cores want done is in
//! `act`, the coordinator in `office`, the registry's refusals in `registry`, faults in `fault`, promises in `check`.

mod act;
mod check;
mod fault;
mod mirror;
mod office;
mod registry;
mod rogue;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque},
};

use proto::{ChunkIndex, ChunkSet, Digest, Geometry, HostId, HostKey, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rollout::stage;
use swarm::{
    Swarm,
    event::{ContentId, Delivery, Failure, Spread, Ticket},
};

use crate::{
    network::{Downlink, Nanos, TransferId, Uplink, takes},
    outcome::Outcome,
    scenario::{Rogue, Scenario, Setup},
};

pub use self::mirror::Waits;
use self::{
    check::Checks,
    fault::Fault,
    mirror::Mirrors,
    office::Office,
    registry::{Refused, Registry},
};

/// Pieces of one transfer under way at one time: one goes out while the one before comes in.
const PIECES_UNDER_WAY: u32 = 2;
/// A broken connection is noticed after this long.
const NOTICED_AFTER: Nanos = 3_000_000_000;
/// A handshake takes this many one-way delays, and some work.
const HANDSHAKE_DELAYS: u64 = 4;
const HANDSHAKE_WORK: Nanos = 1_000_000;
/// Hosts report this often.
const REPORT_EVERY: Nanos = 1_000_000_000;
/// Promises that need a look at all hosts are checked this often.
const SAMPLE_EVERY: Nanos = 5_000_000_000;
/// The order comes when the fleet has been up for this long.
const WARM_UP: Nanos = 1_000_000_000;
/// Chunks of one fetch under way from the registry at one time: a stream never pauses between chunks.
const FETCH_AHEAD: u32 = 2;

/// A transfer that goes byte by byte is given up by its receiver after this long, by its sender after twice as long.
const STUCK_AFTER: Nanos = 5_000_000_000;

/// What an agent's journal may lose in a crash.
const JOURNAL_LAG: Nanos = 1_000_000_000;

#[derive(Debug)]
struct Spec {
    digest: Digest,
    key: u64,
    geometry: Geometry,
    /// The image that it is part of.
    image: usize,
}

/// An image that hosts are to hold.
#[derive(Debug)]
struct Image {
    digest: Digest,
    ordered_at: Option<Nanos>,
    kind: ImageKind,
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageKind {
    /// It is staged.
    Staged,
    /// It is to be staged, and the registry lacks a content of it for ever: nobody can hold it.
    Hopeless,
    /// It is a blob that clients of mirrors want, which the coordinator knows under a name of its own.
    Mirrored,
}

impl Image {
    fn new(name: &str, kind: ImageKind) -> Self {
        Self {
            digest: Digest::of(name.as_bytes()),
            ordered_at: None,
            kind,
        }
    }

    /// Whether hosts know it as an image.
    fn is_known_to_hosts(&self) -> bool {
        self.kind != ImageKind::Mirrored
    }

    /// Whether hosts are to end with it.
    fn is_staged(&self) -> bool {
        self.kind == ImageKind::Staged
    }
}

impl Spec {
    fn new(name: &str, size: u64, image: usize) -> Self {
        let digest = Digest::of(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        Self {
            digest,
            key: u64::from_be_bytes(first),
            geometry: Geometry::new(size).expect("a content below the limit"),
            image,
        }
    }
}

#[derive(Debug)]
struct Node {
    id: HostId,
    key: HostKey,
    swarm: Swarm,
    /// Which life this is: events of an earlier one are void.
    life: u32,
    alive: bool,
    left: bool,
    /// Its disk has failed.
    broken: bool,
    wanted: bool,
    liar: bool,
    connected: Vec<bool>,
    /// What the agent knows of it: a dead line is noticed late.
    believes: Vec<bool>,
    up_count: usize,
    roster: Vec<bool>,
    /// Whom the coordinator chose as its neighbours.
    follows: Vec<u32>,
    session: bool,
    /// The coordinator hasn't heard of that session yet.
    unheard: bool,
    staged: bool,
    /// By image.
    stages: Vec<bool>,
    /// When all contents of an image were there, by image.
    whole_at: Vec<Option<Nanos>>,
    /// The last order was to hold the image.
    on_hold: bool,
    held: Vec<ChunkSet>,
    missing: u64,
    /// How it keeps others waiting.
    pit: Option<Pit>,
    /// How it lies otherwise.
    rogues: Vec<Rogue>,
    /// Leases that it keeps and does nothing with, and since when.
    hoarded: BTreeMap<u32, Nanos>,
    /// As a liar: how it covers up.
    manner: Manner,
    /// Chunks held that are false, by content.
    false_links: BTreeMap<u32, BTreeMap<u32, FalseLink>>,
    /// Links that were proved false, one of each run, by content, until the content is whole.
    suspects: BTreeMap<u32, Vec<FalseLink>>,
    /// Tickets that it was given, by content: a liar uses them when the lease is over, too.
    tickets: BTreeMap<u32, u32>,
    /// The run of each chunk, kept only where somebody lies; `None` where the host that sent it vouched for it.
    sources: Vec<Vec<Option<u32>>>,
    /// From which chunk on each content is proved; kept only where somebody lies.
    proved_from: Vec<u32>,
    /// Arrivals of the last second, for hosts that will crash.
    recent: VecDeque<(Nanos, u32, u32)>,
    keeps_recent: bool,
    fetches: BTreeMap<u32, Fetching>,
    leases: BTreeMap<u32, u32>,
    timer_at: Nanos,
    uploads: usize,
    grown_at: Nanos,
    finished_at: Option<Nanos>,
    /// What was reported last, by image.
    reported: Vec<Option<(stage::event::Standing, u64)>>,
    /// Contents that it last said it finds no source of.
    without_source: Vec<u32>,
    /// Chunks of each content that it last said it holds; `None` at the start of a session.
    held_said: Option<Vec<u32>>,
    /// Requests under way, and whom of.
    requested: BTreeMap<(u32, u32), Vec<u32>>,
    headless_since: Option<Nanos>,
    down: Downlink,
}

#[derive(Debug)]
struct Fetching {
    next: u32,
    until: u32,
    under_way: u32,
    /// Its blob is being answered: chunks come without new requests.
    open: bool,
    refused: Option<Refused>,
    /// The chunk that comes slowly, and since when.
    slow: Option<(u32, Nanos)>,
    /// The registry's bytes are false from this chunk on.
    false_from: Option<u32>,
    /// They were: the whole content is fetched again, and compared.
    again: bool,
    /// Under what it signs the links that it makes.
    run: u32,
}

/// One pass of a host over the registry's bytes, or what a liar says is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    maker: u32,
    ticket: u32,
}

/// A signed link that can't be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FalseLink {
    run: u32,
    /// Who lied or was given false bytes, as the link and the one that its run went on from show; `None` where others have
    /// to judge that.
    guilty: Option<u32>,
    /// The registry gave false bytes.
    registry: bool,
}

/// A host that holds transfers up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pit {
    /// What it sends comes byte by byte; it doesn't wait for it to come.
    Sender,
    /// It takes what it is sent byte by byte, but asks and is offered like others.
    Reader,
}

/// What a liar does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It signs what it invents and what is true in one run: two such links convict it.
    Plain,
    /// Each invention is a run of its own: none contradicts another.
    Scattered,
    /// So is it, and it accuses somebody of false bytes with each of its lies, and of false links.
    Perjured,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Push,
    Answer(Ticket),
    Origin,
}

#[derive(Debug)]
struct Transfer {
    use_: u32,
    live: bool,
    from: u32,
    to: u32,
    content: u32,
    chunk: u32,
    kind: Kind,
    spread: Option<Spread>,
    bytes: u64,
    begun: bool,
    queued: u32,
    came: u32,
}

#[derive(Debug)]
struct Question {
    asker: u32,
    server: u32,
    content: u32,
    chunk: u32,
}

#[derive(Debug)]
enum Due {
    Timer {
        host: u32,
        life: u32,
    },
    UplinkFree(u32),
    Piece(TransferId),
    /// A transfer with a tar-pit at one end is given up by the other.
    Stuck(TransferId),
    Handshake {
        a: u32,
        b: u32,
        lives: (u32, u32),
    },
    LineDead {
        host: u32,
        peer: u32,
        life: u32,
    },
    Report {
        host: u32,
        life: u32,
    },
    AskAgain {
        host: u32,
        life: u32,
        content: u32,
    },
    /// The registry has given a whole chunk, slowly.
    Given {
        host: u32,
        life: u32,
        content: u32,
        chunk: u32,
    },
    Stage {
        host: u32,
        life: u32,
        image: usize,
    },
    /// A rogue tells its peers something.
    Rogue(u32),
    /// A rogue says that it lacks what it announced.
    Missed(Question),
    PlanTimer,
    /// The coordinator has time for what it was told.
    Office {
        term: u32,
    },
    /// A host that lost its session connects anew.
    Session {
        host: u32,
        life: u32,
    },
    Sample,
    /// A client of this host's mirror wants a blob.
    Client {
        host: u32,
        content: u32,
    },
    /// The coordinator says what comes to clients of mirrors.
    Queue,
    Fault(usize),
}

#[derive(Debug)]
enum Message {
    ToHost {
        host: u32,
        life: u32,
        event: swarm::Event,
    },
    Offer(TransferId),
    Ask(Question),
    ToPlan {
        term: u32,
        event: stage::Event,
    },
}

/// Everything there is.
#[derive(Debug)]
pub struct World {
    setup: Setup,
    scale: u64,
    pieces: u32,
    now: Nanos,
    rng: ChaCha8Rng,
    sequence: u64,
    due: BinaryHeap<Reverse<Entry>>,
    wire: VecDeque<(Nanos, Message)>,
    specs: Vec<Spec>,
    images: Vec<Image>,
    /// What the registry doesn't have.
    lacking: Option<u32>,
    nodes: Vec<Node>,
    /// Uplinks of the hosts, and the registry's at the end.
    uplinks: Vec<Uplink>,
    by_key: HashMap<HostKey, u32>,
    by_id: BTreeMap<HostId, u32>,
    transfers: Vec<Transfer>,
    free_transfers: Vec<u32>,
    questions: HashMap<Ticket, Question>,
    next_ticket: u64,
    offer: Option<(Ticket, TransferId)>,
    office: Office,
    registry: Registry,
    mirrors: Mirrors,
    cut: bool,
    lies: bool,
    /// All runs.
    runs: Vec<Run>,
    tickets: u32,
    faults: Vec<(Nanos, Fault)>,
    faults_left: usize,
    checks: Checks,
    ordered_at: Nanos,
    /// Seconds in which faults kept the registry from sending, or hosts from being there: the bound counts them.
    lost_s: f64,
    joined_s: f64,
    unfinished: usize,
    origin_bytes: u64,
    peer_bytes: u64,
    moved_at_hold: u64,
    local_bytes: u64,
    /// Requests that the registry refused.
    refused: u64,
    pulled: u64,
    declined: u64,
    arrived: u64,
    steps: u64,
    traced: (Nanos, Nanos, Nanos, Nanos),
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    sequence: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl World {
    /// The world at its beginning.
    ///
    /// # Panics
    /// When the setup names a content larger than any can be.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let mut setup = setup.clone();
        // coarser chunks: the cores keep theirs, and everything else shrinks
        let scale = (setup.chunk_bytes / proto::CHUNK_BYTES).max(1);
        let rate = |rate: u64| (rate / scale).max(1);
        setup.swarm.assumed_rate_bytes_per_second = rate(setup.swarm.assumed_rate_bytes_per_second);
        let pieces = match (setup.pieces, setup.hosts) {
            (0, ..=32) => 16,
            (0, ..=100) => 4,
            (0, _) => 1,
            (pieces, _) => pieces,
        };
        let (image_bytes, blob_bytes) = mirror::shares(setup.scenario, setup.image_bytes / scale);
        let mut specs: Vec<Spec> = specs(image_bytes, setup.content_bytes / scale);
        let mut images = images(&setup, &mut specs);
        if blob_bytes > 0 {
            mirror::blobs(blob_bytes, &mut specs, &mut images);
        }
        let hopeless = |spec: &Spec| images[spec.image].kind == ImageKind::Hopeless;
        let lacking = specs.iter().position(hopeless);
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
        let count = setup.hosts;
        let mut nodes = Vec::with_capacity(count);
        let mut by_key = HashMap::new();
        let mut by_id = BTreeMap::new();
        for at in 0..count {
            let id: HostId = format!("host-{at:04}").parse().expect("a host id");
            by_key.insert(id.key(), index(at));
            by_id.insert(id.clone(), index(at));
            nodes.push(Node::new(
                id,
                &setup,
                (&specs, &images),
                rng.next_u64(),
                rate(setup.down_rate),
            ));
        }
        let mut uplinks: Vec<Uplink> = (0..count)
            .map(|_| Uplink::new(rate(setup.up_rate)))
            .collect();
        uplinks.push(Uplink::new(rate(setup.origin_rate)));
        let office = Office::new(setup.plan.clone(), rng.next_u64());
        let mut world = Self {
            scale,
            pieces,
            now: 0,
            rng,
            sequence: 0,
            due: BinaryHeap::new(),
            wire: VecDeque::new(),
            images,
            lacking: lacking.map(index),
            specs,
            nodes,
            uplinks,
            by_key,
            by_id,
            transfers: Vec::new(),
            free_transfers: Vec::new(),
            questions: HashMap::new(),
            next_ticket: 0,
            offer: None,
            office,
            registry: Registry::Up,
            mirrors: Mirrors::default(),
            refused: 0,
            cut: false,
            lies: false,
            runs: Vec::new(),
            tickets: 0,
            faults: Vec::new(),
            faults_left: 0,
            checks: Checks::default(),
            ordered_at: WARM_UP,
            lost_s: 0.0,
            joined_s: 0.0,
            unfinished: 0,
            origin_bytes: 0,
            peer_bytes: 0,
            moved_at_hold: 0,
            local_bytes: 0,
            pulled: 0,
            declined: 0,
            arrived: 0,
            steps: 0,
            traced: (0, 0, 0, 0),
            setup,
        };
        world.plan_faults();
        if blob_bytes > 0 {
            world.plan_clients();
        }
        world.unfinished = world.nodes.iter().filter(|node| node.wanted).count();
        world
    }

    /// Lets time pass until every wanted host is complete, or far too much of it has passed.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        self.open_office();
        for host in 0..self.nodes.len() {
            if self.nodes[host].alive {
                self.begin_life(index(host));
            }
        }
        let first = if self.mirrors_first() {
            mirror::ORDERED_AFTER
        } else {
            0
        };
        if self.setup.scenario != Scenario::MirrorAlone {
            self.at(WARM_UP + first, Due::Fault(usize::MAX));
        }
        self.at(WARM_UP + SAMPLE_EVERY, Due::Sample);
        let patience = WARM_UP + seconds(20.0 * self.bound_s() + 900.0);
        while (self.unfinished > 0 || self.faults_left > 0 || self.clients_left() > 0)
            && self.now < patience
        {
            if !self.step() {
                break;
            }
        }
        if self.unfinished > 0 {
            self.checks.note("not every wanted host completed");
            self.explain_unfinished();
        }
        if self.clients_left() > 0 {
            self.checks.note("a client never had what it wanted");
        }
        if self.office.unwanted.values().any(|told| !told) {
            self.checks.note("a host stages on what isn't wanted there");
        }
        self.outcome()
    }

    /// Whether clients of mirrors come before the image is ordered.
    fn mirrors_first(&self) -> bool {
        matches!(self.setup.scenario, Scenario::Mirror | Scenario::MirrorSlow)
    }

    fn step(&mut self) -> bool {
        let wire_at = self.wire.front().map_or(u64::MAX, |(at, _)| *at);
        let due_at = self.due.peek().map_or(u64::MAX, |Reverse(entry)| entry.at);
        if wire_at == u64::MAX && due_at == u64::MAX {
            return false;
        }
        self.steps += 1;
        if wire_at <= due_at {
            if let Some((at, message)) = self.wire.pop_front() {
                self.now = at;
                self.deliver(message);
            }
        } else if let Some(Reverse(entry)) = self.due.pop() {
            self.now = entry.at;
            self.happen(entry.due);
        }
        true
    }

    fn at(&mut self, at: Nanos, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse(Entry {
            at,
            sequence: self.sequence,
            due,
        }));
    }

    /// Sends a message; all take the same delay.
    fn send(&mut self, message: Message) {
        self.wire.push_back((self.now + self.setup.delay, message));
    }

    fn tell(&mut self, host: u32, event: swarm::Event) {
        let life = self.node(host).life;
        self.send(Message::ToHost { host, life, event });
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToHost { host, life, event } => {
                let node = self.node(host);
                if node.alive && node.life == life {
                    self.feed(host, event);
                }
            }
            Message::Offer(id) => self.offered(id),
            Message::Ask(question) => self.asked(question),
            Message::ToPlan { term, event } => self.tell_plan(term, event),
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Timer { host, life } => {
                let now = self.now;
                let node = self.node_mut(host);
                if node.alive && node.life == life && node.timer_at <= now {
                    node.timer_at = u64::MAX;
                    self.feed(host, swarm::Event::Tick);
                }
            }
            Due::UplinkFree(line) => {
                self.uplinks[line as usize].busy = false;
                self.start_piece(line);
            }
            Due::Piece(id) => self.piece_came(id),
            Due::Stuck(id) => self.pit_given_up(id),
            Due::Handshake { a, b, lives } => self.handshake(a, b, lives),
            Due::LineDead { host, peer, life } => self.line_dead(host, peer, life),
            Due::Report { host, life } => self.report(host, life),
            Due::AskAgain {
                host,
                life,
                content,
            } => self.ask_again(host, life, content),
            Due::Given {
                host,
                life,
                content,
                chunk,
            } => self.given(host, life, content, chunk),
            Due::Stage { host, life, image } => {
                let node = self.node(host);
                if node.alive && node.life == life && !node.on_hold {
                    self.stage(host, image);
                }
            }
            Due::Rogue(host) => self.rogue_acts(host),
            Due::Missed(question) => self.not_arrived(&question, Failure::Missing),
            Due::PlanTimer => self.plan_timer(),
            Due::Office { term } => self.office_turns(term),
            Due::Session { host, life } => {
                let node = self.node(host);
                if node.alive && node.life == life && !node.session {
                    self.open_session(host);
                }
            }
            Due::Sample => self.sample(),
            Due::Client { host, content } => self.client_comes(host, content),
            Due::Queue => self.tell_queue(),
            Due::Fault(usize::MAX) => {
                self.ordered_at = self.now;
                self.order(|at| at != LATER);
            }
            Due::Fault(at) => self.strike(at),
        }
    }

    fn node(&self, host: u32) -> &Node {
        &self.nodes[host as usize]
    }

    fn node_mut(&mut self, host: u32) -> &mut Node {
        &mut self.nodes[host as usize]
    }

    fn moment(&self) -> Moment {
        Moment(self.now / 1_000)
    }

    fn random(&mut self, below: usize) -> usize {
        let wide = u64::from(self.rng.next_u32()) * below as u64;
        usize::try_from(wide >> 32).unwrap_or(0)
    }

    /// Feeds one host's swarm, and carries out what it wants.
    fn feed(&mut self, host: u32, event: swarm::Event) {
        let moment = self.moment();
        self.node_mut(host).swarm.handle(moment, event);
        while let Some(action) = self.node_mut(host).swarm.poll() {
            self.act(host, action);
        }
        let next = self.node(host).swarm.next_timeout();
        if let Some(next) = next {
            let at = (next.0 * 1_000).max(self.now + 1_000);
            let node = self.node_mut(host);
            if at < node.timer_at {
                node.timer_at = at;
                let life = node.life;
                self.at(at, Due::Timer { host, life });
            }
        }
    }

    /// A host's agent starts: it finds what its journal vouches for, and opens its session.
    fn begin_life(&mut self, host: u32) {
        let seed = self.rng.next_u64();
        let config = self.setup.swarm.clone();
        let (now, images) = (self.now, self.images.len());
        let node = self.node_mut(host);
        node.life += 1;
        node.alive = true;
        node.swarm = Swarm::new(node.key, config, seed);
        node.timer_at = u64::MAX;
        node.grown_at = now;
        node.staged = false;
        let resumes = core::mem::replace(&mut node.stages, vec![false; images]);
        node.believes.fill(false);
        node.roster.fill(false);
        node.session = false;
        node.reported.fill(None);
        let life = node.life;
        let jitter = self.random(usize::try_from(REPORT_EVERY).unwrap_or(1)) as u64;
        self.at(self.now + jitter, Due::Report { host, life });
        // what it was staging lies in its journal: it goes on without an order
        for (image, resumes) in resumes.into_iter().enumerate() {
            if resumes {
                self.stage(host, image);
            }
        }
        self.open_session(host);
    }

    /// The agent learns that it is to hold an image.
    fn stage(&mut self, host: u32, image: usize) {
        if self.node(host).stages[image] || self.node(host).broken {
            return;
        }
        self.node_mut(host).staged = true;
        self.node_mut(host).stages[image] = true;
        for at in 0..self.specs.len() {
            let spec = &self.specs[at];
            if spec.image != image {
                continue;
            }
            let event = swarm::Event::Content {
                id: ContentId(index(at)),
                key: spec.key,
                size: spec.geometry.size(),
                held: self.node(host).held[at].clone(),
                order: index(at),
                entitled: None,
            };
            self.feed(host, event);
        }
        if self.node(host).session {
            self.report_standing(host);
        }
    }

    /// The agent learns that it is to stop, and to keep what it has.
    fn hold(&mut self, host: u32) {
        if !self.node(host).staged || self.node(host).finished_at.is_some() {
            return;
        }
        let contents: Vec<u32> = self.node(host).fetches.keys().copied().collect();
        for content in contents {
            self.abort_origin(host, content);
        }
        let node = self.node_mut(host);
        node.fetches.clear();
        node.leases.clear();
        node.staged = false;
        node.stages.fill(false);
        for at in 0..self.specs.len() {
            self.feed(host, swarm::Event::Dropped(ContentId(index(at))));
        }
    }

    /// The time that no schedule can beat, in seconds.
    fn bound_s(&self) -> f64 {
        let image: u64 = self.had().map(|spec| spec.geometry.size()).sum();
        let wanted: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].wanted)
            .collect();
        let up: u64 = self.uplinks[..self.nodes.len()]
            .iter()
            .zip(&self.nodes)
            .filter(|(_, node)| !node.left && node.pit.is_none())
            .map(|(line, _)| line.rate)
            .sum();
        let slowest = wanted
            .iter()
            .map(|at| self.nodes[*at].down.rate)
            .min()
            .unwrap_or(1);
        let origin = self.uplinks[self.nodes.len()].rate;
        let origin = match self.stream_rate() {
            Some(rate) => origin.min(rate * self.setup.plan.origin_streams as u64),
            None => origin,
        };
        let float = precise;
        let image = float(image);
        (image / float(origin) + self.lost_s)
            .max(image / float(slowest) + self.joined_s)
            .max(image * float(wanted.len() as u64) / float(origin + up))
    }

    /// The contents that can be had.
    fn had(&self) -> impl Iterator<Item = &Spec> {
        let had = |spec: &&Spec| self.images[spec.image].is_staged();
        self.specs.iter().filter(had)
    }

    /// How long the images took that can be had, each from its order to its last host, together.
    fn images_s(&self) -> f64 {
        let took = |(at, image): (usize, &Image)| {
            let wanted = self.nodes.iter().filter(|node| node.wanted);
            let last = wanted.filter_map(|node| node.whole_at[at]).max()?;
            Some(precise(last.saturating_sub(image.ordered_at?)) / 1e9)
        };
        let images = self.images.iter().enumerate();
        let had = images.filter(|(_, image)| image.is_staged());
        had.filter_map(took).sum()
    }

    fn outcome(self) -> Outcome {
        let times: Vec<Nanos> = self
            .nodes
            .iter()
            .filter(|node| node.wanted)
            .filter_map(|node| node.finished_at)
            .collect();
        let since = |at: Nanos| precise(at.saturating_sub(self.ordered_at)) / 1e9;
        let last = since(times.iter().copied().max().unwrap_or(self.now));
        let first = since(times.iter().copied().min().unwrap_or(self.now));
        let count = precise(self.nodes.len() as u64);
        let all = precise(self.now.saturating_sub(self.ordered_at).max(1));
        let ups: Nanos = self.uplinks[..self.nodes.len()]
            .iter()
            .map(|line| line.used)
            .sum();
        let downs: Nanos = self.nodes.iter().map(|node| node.down.used).sum();
        Outcome {
            scenario: self.setup.scenario.name(),
            seed: self.setup.seed,
            hosts: self.nodes.iter().filter(|node| node.wanted).count(),
            image_bytes: self.setup.image_bytes,
            chunk_bytes: self.setup.chunk_bytes,
            makespan_s: last,
            first_s: first,
            bound_s: self.bound_s(),
            images_s: self.images_s(),
            others_over_alone: None,
            origin_bytes: self.origin_bytes * self.scale,
            peer_bytes: self.peer_bytes * self.scale,
            local_bytes: self.local_bytes * self.scale,
            refused_requests: self.refused,
            pulled_chunks: self.pulled,
            declined_pushes: self.declined,
            arrived_chunks: self.arrived,
            complete: times.len(),
            shunned_honest: self.checks.shunned_honest(),
            violations: self.checks.violations(),
            stalls: self.checks.stalls(),
            waits: self.mirrors.waits(),
            utilisation: (
                precise(self.uplinks[self.nodes.len()].used) / all,
                precise(ups) / all / count,
                precise(downs) / all / count,
            ),
            steps: self.steps,
        }
    }
}

impl Node {
    fn new(
        id: HostId,
        setup: &Setup,
        (specs, images): (&[Spec], &[Image]),
        seed: u64,
        down_rate: u64,
    ) -> Self {
        let key = id.key();
        Self {
            key,
            id,
            swarm: Swarm::new(key, setup.swarm.clone(), seed),
            life: 0,
            alive: true,
            left: false,
            broken: false,
            wanted: true,
            liar: false,
            pit: None,
            rogues: Vec::new(),
            hoarded: BTreeMap::new(),
            manner: Manner::Plain,
            connected: vec![false; setup.hosts],
            believes: vec![false; setup.hosts],
            up_count: 0,
            roster: vec![false; setup.hosts],
            follows: Vec::new(),
            session: false,
            unheard: false,
            staged: false,
            stages: vec![false; images.len()],
            whole_at: vec![None; images.len()],
            on_hold: false,
            held: specs
                .iter()
                .map(|spec| ChunkSet::empty(spec.geometry.chunks()))
                .collect(),
            missing: specs
                .iter()
                .filter(|spec| images[spec.image].is_staged())
                .map(|spec| u64::from(spec.geometry.chunks()))
                .sum(),
            false_links: BTreeMap::new(),
            suspects: BTreeMap::new(),
            tickets: BTreeMap::new(),
            sources: Vec::new(),
            proved_from: Vec::new(),
            recent: VecDeque::new(),
            keeps_recent: false,
            fetches: BTreeMap::new(),
            leases: BTreeMap::new(),
            timer_at: u64::MAX,
            uploads: 0,
            grown_at: 0,
            finished_at: None,
            reported: vec![None; images.len()],
            without_source: Vec::new(),
            held_said: None,
            requested: BTreeMap::new(),
            headless_since: None,
            down: Downlink::new(down_rate),
        }
    }
}

/// The image's contents. Incompressible: raw bytes and bytes on the wire are the same.
fn specs(image_bytes: u64, content_bytes: u64) -> Vec<Spec> {
    let content_bytes = content_bytes.max(1);
    let mut specs = Vec::new();
    let mut left = image_bytes;
    while left > 0 {
        let size = left.min(content_bytes);
        left -= size;
        let name = format!("content {}", specs.len());
        specs.push(Spec::new(&name, size, 0));
    }
    specs
}

/// In [`Scenario::MissingLayer`](crate::Scenario::MissingLayer): the image that is wanted a minute later.
const LATER: usize = 1;
/// Contents of the image that lacks one.
const HOPELESS_CONTENTS: usize = 4;

/// The images that these contents make. With a missing layer: one half of the contents is wanted at the beginning, the other
/// later, and a third image stands before both, whose first content the registry doesn't have.
fn images(setup: &Setup, specs: &mut Vec<Spec>) -> Vec<Image> {
    let mut images = vec![Image::new("image", ImageKind::Staged)];
    if setup.scenario != Scenario::MissingLayer {
        return images;
    }
    let half = specs.len().div_ceil(2);
    for spec in &mut specs[half..] {
        spec.image = LATER;
    }
    images.push(Image::new("later", ImageKind::Staged));
    if !setup.spared {
        let size = specs[0].geometry.size();
        for at in 0..HOPELESS_CONTENTS {
            specs.push(Spec::new(&format!("hopeless {at}"), size, images.len()));
        }
        images.push(Image::new("hopeless", ImageKind::Hopeless));
    }
    images
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn seconds(seconds: f64) -> Nanos {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times of scenarios are small and positive"
    )]
    let nanos = (seconds.max(0.0) * 1e9) as Nanos;
    nanos
}

#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
fn precise(value: u64) -> f64 {
    value as f64
}
