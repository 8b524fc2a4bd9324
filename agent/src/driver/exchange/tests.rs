//! Tests the exchange without sockets or disks: a test tells what happened, and reads the effects.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use proto::{
    Fingerprint, Link, State,
    image::ContentKind,
    message::{ChunkHeader, ChunkPush, ChunkRequest, Have, LeaseEnd, PeerUpdate},
};
use swarm::{Config, action::Declined, event::Failure};
use wire::CloseCode;

use super::*;
use crate::{
    driver::contents::Proving, identity::tests::Authority, metrics::SourceLabel,
    notary::tests::notary,
};

mod chunks;
mod fetching;
mod peers;

/// Handles that are only to be recognised.
#[derive(Debug)]
struct Made;

impl Handles for Made {
    type Line = MadeLine;
    type Answer = &'static str;
    type Bytes = &'static str;
    type Shelf = MadeShelf;
}

/// A connection that is a number, and notes how it was closed.
#[derive(Clone, Debug)]
struct MadeLine {
    number: u32,
    closed: Rc<RefCell<Vec<(u32, CloseCode)>>>,
}

impl Line for MadeLine {
    fn close(&self, code: CloseCode, _: &'static str) {
        self.closed.borrow_mut().push((self.number, code));
    }
}

/// A shelf that is verified when the test says so.
#[derive(Clone, Debug, Default)]
struct MadeShelf {
    closed: Rc<Cell<bool>>,
}

impl Proving for MadeShelf {
    fn is_closed(&self, _: Digest) -> bool {
        self.closed.get()
    }

    fn state_before(&self, _: Digest, _: ChunkIndex) -> Option<State> {
        None
    }
}

const CHUNKS: u32 = 4;

/// The exchange of host `me`, which has a session and the hosts `a` and `b` for neighbours.
struct World {
    exchange: Exchange<Made>,
    metrics: Metrics,
    now: Instant,
    closed: Rc<RefCell<Vec<(u32, CloseCode)>>>,
    shelf: MadeShelf,
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn key(name: &str) -> HostKey {
    host(name).key()
}

fn image(at: u8) -> Digest {
    Digest::of(&[b'i', at])
}

/// A content of four chunks.
fn spec() -> ContentSpec {
    ContentSpec {
        digest: Digest::of(b"content"),
        geometry: Geometry::new(u64::from(CHUNKS) * proto::CHUNK_BYTES).unwrap(),
        kind: ContentKind::Blob,
        places: Vec::new(),
    }
}

fn entry(name: &str) -> RosterEntry {
    RosterEntry {
        host: name.into(),
        address: "10.0.0.1:7".into(),
        zone: String::new(),
        enrolled_at: 0,
    }
}

fn roster(hosts: &[&str]) -> Vec<RosterEntry> {
    hosts.iter().map(|name| entry(name)).collect()
}

/// An announcement of all chunks of the content.
fn whole() -> PeerUpdate {
    PeerUpdate {
        have: vec![Have {
            content: spec().digest.as_bytes().to_vec(),
            runs: vec![0, CHUNKS],
            reset: true,
        }],
        load: None,
    }
}

fn request(chunk: u32) -> Brought<&'static str, &'static str> {
    Brought::Request {
        request: ChunkRequest {
            content: spec().digest.as_bytes().to_vec(),
            index: chunk,
            lacking: None,
        },
        sender: "answer",
    }
}

fn push(chunk: u32, header: Option<ChunkHeader>) -> Brought<&'static str, &'static str> {
    Brought::Push {
        push: Box::new(ChunkPush {
            content: spec().digest.as_bytes().to_vec(),
            index: chunk,
            header,
            spread: None,
            sends_parts: true,
        }),
        sender: "answer",
        receiver: "bytes",
    }
}

/// A chunk of this many bytes came, and was stored.
fn stored(wire_bytes: u64) -> Receipt {
    Receipt {
        result: Ok(()),
        wire_bytes,
        ..Receipt::cancelled()
    }
}

fn failed(failure: Failure) -> Receipt {
    Receipt {
        result: Err(failure),
        ..Receipt::cancelled()
    }
}

/// A chunk whose bytes don't fit its link.
fn lie() -> Receipt {
    Receipt {
        false_bytes: true,
        ..failed(Failure::Bad)
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let metrics = Metrics::new().0;
        let swarm = Swarm::new(key("me"), Config::default(), 7);
        let mut world = Self {
            exchange: Exchange::new(host("me"), swarm, now, Arc::default(), metrics.clone()),
            metrics,
            now,
            closed: Rc::default(),
            shelf: MadeShelf::default(),
        };
        world.exchange.tell(Event::Coordinator(true));
        let neighbours = ["a".to_owned(), "b".to_owned()];
        world.exchange.roster(1, &roster(&["a", "b"]), &neighbours);
        world.effects();
        world
    }

    /// Both neighbours are connected, and image 1 has the content, of which these chunks are here.
    fn with(held: impl IntoIterator<Item = u32>) -> (Self, ContentId) {
        let mut world = Self::new();
        world.connect("a", 1);
        world.connect("b", 2);
        let mut set = ChunkSet::empty(CHUNKS);
        for chunk in held {
            set.insert(ChunkIndex(chunk));
        }
        let id = world.add(image(1), set);
        world.effects();
        (world, id)
    }

    /// Adds the content to an image, and makes it known.
    fn add(&mut self, image: Digest, held: ChunkSet) -> ContentId {
        let of = (image, self.shelf.clone());
        let (id, _) = self.exchange.add(&spec(), of, (held, false));
        let terms = |_: &Digest| {
            Some(Terms {
                entitled: None,
                rank: 0,
            })
        };
        self.exchange.introduce(id, 0, terms);
        id
    }

    fn effects(&mut self) -> Vec<Effect<Made>> {
        std::iter::from_fn(|| self.exchange.poll()).collect()
    }

    fn line(&self, number: u32) -> MadeLine {
        let closed = self.closed.clone();
        MadeLine { number, closed }
    }

    fn connect(&mut self, peer: &str, line: u32) -> Vec<Effect<Made>> {
        let line = self.line(line);
        self.exchange.connected(key(peer), Ok(line));
        self.effects()
    }

    fn brought(
        &mut self,
        peer: &str,
        brought: Brought<&'static str, &'static str>,
    ) -> Vec<Effect<Made>> {
        self.exchange.brought(key(peer), brought);
        self.effects()
    }

    fn received(&mut self, asked: &Asking, receipt: Receipt) -> Vec<Effect<Made>> {
        let number = asked.receiving.number;
        self.exchange.received(asked.transfer, number, receipt);
        self.effects()
    }

    /// Neighbour `a` announces all chunks, and one of them is asked of it.
    fn asking(&mut self) -> Asking {
        let effects = self.brought("a", Brought::Update(whole()));
        asked(&effects).remove(0)
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration) -> Vec<Effect<Made>> {
        self.now += time;
        self.exchange.set_now(self.now);
        self.exchange.tell(Event::Tick);
        self.effects()
    }

    fn bytes_from(&self, source: From) -> u64 {
        let received = &self.metrics.received_bytes;
        received.get_or_create(&SourceLabel { source }).get()
    }

    fn false_from(&self, source: From) -> u64 {
        let failures = &self.metrics.verify_failures;
        failures.get_or_create(&SourceLabel { source }).get()
    }

    fn held(&self, id: ContentId) -> Option<u32> {
        Some(self.exchange.status().content(id)?.held)
    }
}

/// A chunk that was asked of a peer, or taken from it.
#[derive(Debug)]
struct Asking {
    transfer: Transfer,
    receiving: crate::driver::transfers::Receiving,
    line: Option<u32>,
}

/// The chunks that these effects ask peers for, or take from them.
fn asked(effects: &[Effect<Made>]) -> Vec<Asking> {
    let asked = |effect: &Effect<Made>| {
        let (transfer, receiving, line) = match effect {
            Effect::Run(Errand::Request {
                transfer,
                receiving,
                connection,
                ..
            }) => (transfer, receiving, Some(connection.number)),
            Effect::Run(Errand::Accept {
                transfer,
                receiving,
                ..
            }) => (transfer, receiving, None),
            _ => return None,
        };
        Some(Asking {
            transfer: *transfer,
            receiving: receiving.clone(),
            line,
        })
    };
    effects.iter().filter_map(asked).collect()
}

/// The news that an image gets by these effects.
fn news(effects: &[Effect<Made>], of: Digest) -> Vec<ImageNews> {
    let news = |effect: &Effect<Made>| match effect {
        Effect::Images { images, news } if images.contains(&of) => Some(news.clone()),
        _ => None,
    };
    effects.iter().filter_map(news).collect()
}

/// Who is blamed by these effects, for what.
fn blamed(effects: &[Effect<Made>]) -> Vec<(String, Option<Digest>, BlameKind)> {
    let blamed = |effect: &Effect<Made>| match effect {
        Effect::Blame {
            host,
            content,
            kind,
            ..
        } => Some((host.to_string(), *content, *kind)),
        _ => None,
    };
    effects.iter().filter_map(blamed).collect()
}

fn fetches(effects: &[Effect<Made>]) -> Vec<FetchWanted> {
    let fetch = |effect: &Effect<Made>| match effect {
        Effect::Fetch(wanted) => Some(wanted.clone()),
        _ => None,
    };
    effects.iter().filter_map(fetch).collect()
}
