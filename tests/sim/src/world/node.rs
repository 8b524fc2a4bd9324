//! A host: its swarm, what it holds, and what the agent around the swarm knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proto::{ChunkRange, ChunkSet, HostId, HostKey};
use rollout::stage;
use swarm::{Swarm, event::order_of};

use crate::{
    network::{Downlink, Nanos},
    scenario::{Rogue, Setup},
};

use super::{
    contents::{Image, Spec},
    links::FalseLink,
    registry::Refused,
};

/// What an agent's journal may lose in a crash.
pub(super) const JOURNAL_LAG: Nanos = 1_000_000_000;

/// A host, by what is true of it and by what its agent knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: HostId,
    pub(super) key: HostKey,
    pub(super) swarm: Swarm,
    /// Which life this is: events of an earlier one are void.
    pub(super) life: u32,
    pub(super) alive: bool,
    /// It is gone for ever.
    pub(super) left: bool,
    /// Its disk has failed.
    pub(super) broken: bool,
    /// It is to end with the image.
    pub(super) wanted: bool,
    pub(super) liar: bool,
    /// Hosts with which a line really stands.
    pub(super) connected: Vec<bool>,
    /// Hosts with which a line stands as far as the agent knows: a dead line is noticed late.
    pub(super) believes: Vec<bool>,
    /// Hosts that the coordinator named to it: it talks to no other.
    pub(super) roster: Vec<bool>,
    /// Hosts that the coordinator chose as its neighbours.
    pub(super) follows: Vec<u32>,
    /// It has a session with the coordinator.
    pub(super) session: bool,
    /// The coordinator hasn't heard of that session yet.
    pub(super) unheard: bool,
    /// Its agent stages.
    pub(super) staged: bool,
    /// Whether its agent was told to stage an image, by image.
    pub(super) stages: Vec<bool>,
    /// When all contents of an image were there, by image.
    pub(super) whole_at: Vec<Option<Nanos>>,
    /// The images in the order in which it is to finish them, as far as it was told.
    pub(super) sequence: Vec<usize>,
    /// The last order was to hold the image.
    pub(super) paused: bool,
    /// Chunks on its disk, by content.
    pub(super) held: Vec<ChunkSet>,
    /// Chunks that it lacks of the images that it is to end with.
    pub(super) missing: u64,
    /// How it keeps others waiting.
    pub(super) pit: Option<Pit>,
    /// How it lies otherwise.
    pub(super) rogues: Vec<Rogue>,
    /// Contents for which it uses no recipe any more: it found, or says, that the registry's bytes don't fit.
    pub(super) left_recipe: BTreeSet<u32>,
    /// Leases that it keeps and does nothing with, and since when.
    pub(super) hoarded: BTreeMap<u32, Nanos>,
    /// As a liar: how it covers up.
    pub(super) manner: Manner,
    /// Chunks held that are false, by content.
    pub(super) false_links: BTreeMap<u32, BTreeMap<u32, FalseLink>>,
    /// Links that were proved false, one of each run, by content, until the content is whole.
    pub(super) suspects: BTreeMap<u32, Vec<FalseLink>>,
    /// Tickets that it was given, by content: a liar uses them when the lease is over, too.
    pub(super) tickets: BTreeMap<u32, u32>,
    /// The run of each chunk, kept only where somebody lies; `None` where the host that sent it vouched for it.
    pub(super) sources: Vec<Vec<Option<u32>>>,
    /// From which chunk on each content is proved; kept only where somebody lies.
    pub(super) proved_from: Vec<u32>,
    /// Arrivals of the last second, for hosts that will crash.
    pub(super) recent: VecDeque<(Nanos, u32, u32)>,
    pub(super) keeps_recent: bool,
    /// Fetches from the registry, by content.
    pub(super) fetches: BTreeMap<u32, Fetching>,
    /// Chunks that were fetched under each lease, by content.
    pub(super) leases: BTreeMap<u32, u32>,
    /// The ranges that leases are for, by content; contents that are leased whole aren't here.
    pub(super) ranges: BTreeMap<u32, ChunkRange>,
    /// When its swarm's timer is due.
    pub(super) timer_at: Nanos,
    pub(super) uploads: usize,
    /// When the last chunk was stored.
    pub(super) grown_at: Nanos,
    /// When it was complete.
    pub(super) finished_at: Option<Nanos>,
    /// What was reported last, by image.
    pub(super) reported: Vec<Option<(stage::event::Standing, u64)>>,
    /// Contents that it last said it finds no source of.
    pub(super) without_source: Vec<u32>,
    /// Chunks of each content that it last said it holds; `None` at the start of a session.
    pub(super) held_said: Option<Vec<u32>>,
    /// Peers that each chunk was requested of, by content and chunk, while requests are under way.
    pub(super) requested: BTreeMap<(u32, u32), Vec<u32>>,
    pub(super) headless_since: Option<Nanos>,
    pub(super) down: Downlink,
}

impl Node {
    /// A host that holds nothing and whose agent hasn't started.
    pub(super) fn new(
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
            left_recipe: BTreeSet::new(),
            hoarded: BTreeMap::new(),
            manner: Manner::Plain,
            connected: vec![false; setup.hosts],
            believes: vec![false; setup.hosts],
            roster: vec![false; setup.hosts],
            follows: Vec::new(),
            session: false,
            unheard: false,
            staged: false,
            stages: vec![false; images.len()],
            whole_at: vec![None; images.len()],
            sequence: Vec::new(),
            paused: false,
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
            ranges: BTreeMap::new(),
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

    /// It holds these chunks of each content from the start: its disks have them.
    pub(super) fn hold(&mut self, chunks: &[ChunkSet]) {
        for (held, chunks) in self.held.iter_mut().zip(chunks) {
            self.missing -= u64::from(chunks.count());
            held.clone_from(chunks);
        }
    }

    /// The order of a content for its swarm.
    pub(super) fn order_of(&self, content: u32, image: usize) -> u32 {
        let mut sequence = self.sequence.iter();
        let rank = sequence.position(|other| *other == image);
        let rank = u16::try_from(rank.unwrap_or(self.sequence.len())).unwrap_or(u16::MAX);
        // rank 0 is what clients wait for
        order_of(rank.saturating_add(1), content)
    }

    /// Whether it lies in this way.
    pub(super) fn is_rogue(&self, rogue: Rogue) -> bool {
        self.rogues.contains(&rogue)
    }

    /// Whether it never lies.
    pub(super) const fn is_honest(&self) -> bool {
        !self.liar && self.rogues.is_empty()
    }
}

/// A fetch from the registry.
#[derive(Debug)]
pub(super) struct Fetching {
    /// The chunks to fetch; `None`: all of them.
    pub(super) range: Option<ChunkRange>,
    pub(super) next: u32,
    pub(super) until: u32,
    pub(super) under_way: u32,
    /// The chunk that it asked for last.
    pub(super) asked: Option<u32>,
    /// Its blob is being answered: chunks come without new requests.
    pub(super) open: bool,
    pub(super) refused: Option<Refused>,
    /// The chunk that comes slowly, and since when.
    pub(super) slow: Option<(u32, Nanos)>,
    /// The registry's bytes are false from this chunk on.
    pub(super) false_from: Option<u32>,
    /// They were: the whole content is fetched again, and compared.
    pub(super) again: bool,
    /// Under what it signs the links that it makes.
    pub(super) run: u32,
}

/// A host that holds transfers up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pit {
    /// What it sends comes byte by byte; it doesn't wait for it to come.
    Sender,
    /// It takes what it is sent byte by byte, but asks and is offered like others.
    Reader,
}

/// What a liar does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It signs what it invents and what is true in one run: two such links convict it.
    Plain,
    /// Each invention is a run of its own: none contradicts another.
    Scattered,
    /// So is it, and it accuses somebody of false bytes with each of its lies, and of false links.
    Perjured,
}
