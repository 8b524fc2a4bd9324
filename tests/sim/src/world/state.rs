//! The simulated world's state: hosts, lines, the coordinator, the registry, and time.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proto::{Digest, HostId, HostKey, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rollout::stage::{self, event::LeaseEnd};
use swarm::event::Ticket;

use crate::{
    network::{Nanos, TransferId, Uplink},
    scenario::{Scenario, Setup},
};

use super::{
    clients::{self, Mirrors},
    clock::Clock,
    contents::{self, Image, ImageKind, Spec},
    due::{Due, Fault, Message, Question},
    findings::Findings,
    links::Run,
    node::Node,
    office::Office,
    registry::Registry,
    tally::Tally,
    transfers::Transfers,
    units::{index, precise},
};

/// The order comes when the fleet has been up for this long.
pub(super) const WARM_UP: Nanos = 1_000_000_000;
/// Hosts report this often.
pub(super) const REPORT_EVERY: Nanos = 1_000_000_000;
/// What a stream gets in a slow registry.
const STREAM_RATE: u64 = 62_000;

/// Everything there is.
#[derive(Debug)]
pub(super) struct State {
    pub(super) setup: Setup,
    /// How many times coarser chunks are than those of the cores.
    pub(super) scale: u64,
    /// Pieces of a transfer.
    pub(super) pieces: u32,
    pub(super) clock: Clock,
    rng: ChaCha8Rng,
    pub(super) specs: Vec<Spec>,
    pub(super) images: Vec<Image>,
    /// What the registry doesn't have.
    pub(super) lacking: Option<u32>,
    pub(super) nodes: Vec<Node>,
    /// Uplinks of the hosts, and the registry's at the end.
    pub(super) uplinks: Vec<Uplink>,
    by_key: HashMap<HostKey, u32>,
    pub(super) by_id: BTreeMap<HostId, u32>,
    pub(super) transfers: Transfers,
    /// Requests that their server's swarm hasn't answered.
    pub(super) questions: HashMap<Ticket, Question>,
    next_ticket: u64,
    /// The offer that a swarm answers just now.
    pub(super) offer: Option<(Ticket, TransferId)>,
    pub(super) office: Office,
    pub(super) registry: Registry,
    pub(super) mirrors: Mirrors,
    /// Packets between the two halves of the fleet are lost.
    pub(super) cut: bool,
    /// Somebody may lie: who made what is noted.
    pub(super) lies: bool,
    /// Bytes of what hosts are to end with that no host holds at the beginning.
    pub(super) changed_bytes: u64,
    /// Bytes of the image that every host has from the beginning.
    pub(super) unchanged_bytes: u64,
    /// Contents for which no host uses the recipe any more.
    doubted: BTreeSet<u32>,
    /// All runs.
    pub(super) runs: Vec<Run>,
    /// Tickets that leases were given.
    pub(super) tickets: u32,
    pub(super) faults: Vec<(Nanos, Fault)>,
    pub(super) faults_left: usize,
    pub(super) findings: Findings,
    pub(super) ordered_at: Nanos,
    /// Seconds in which faults kept the registry from sending, or hosts from being there: the bound counts them.
    pub(super) lost_s: f64,
    pub(super) joined_s: f64,
    /// Hosts that the image is wanted on, and that aren't complete.
    pub(super) unfinished: usize,
    pub(super) tally: Tally,
}

impl State {
    /// The state at the beginning: nothing is planned.
    ///
    /// # Panics
    /// When the setup names a content larger than any can be.
    pub(super) fn new(setup: &Setup) -> Self {
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
        let (image_bytes, blob_bytes) = clients::shares(setup.scenario, setup.image_bytes / scale);
        let mut specs = contents::specs(image_bytes, setup.content_bytes / scale);
        let mut images = contents::images(&setup, &mut specs);
        if blob_bytes > 0 {
            clients::blobs(blob_bytes, &mut specs, &mut images);
        }
        let hopeless = |spec: &Spec| images[spec.image].kind == ImageKind::Hopeless;
        let lacking = specs.iter().position(hopeless);
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
        let mut nodes = Vec::with_capacity(setup.hosts);
        let mut by_key = HashMap::new();
        let mut by_id = BTreeMap::new();
        for at in 0..setup.hosts {
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
        let mut uplinks: Vec<Uplink> = (0..setup.hosts)
            .map(|_| Uplink::new(rate(setup.up_rate)))
            .collect();
        uplinks.push(Uplink::new(rate(setup.origin_rate)));
        let office = Office::new(setup.plan.clone(), rng.next_u64());
        let mut unchanged_bytes = 0;
        let mut changed_bytes: u64 = specs
            .iter()
            .filter(|spec| images[spec.image].is_staged())
            .map(|spec| spec.geometry.size())
            .sum();
        if let Some(change_percent) = setup.change_percent {
            let old = contents::unchanged(&specs, change_percent, &mut rng);
            unchanged_bytes = contents::bytes(&specs, &old);
            changed_bytes -= unchanged_bytes;
            for node in &mut nodes {
                node.hold(&old);
            }
        }
        Self {
            scale,
            pieces,
            clock: Clock::new(setup.delay),
            rng,
            images,
            lacking: lacking.map(index),
            specs,
            nodes,
            uplinks,
            by_key,
            by_id,
            transfers: Transfers::default(),
            questions: HashMap::new(),
            next_ticket: 0,
            offer: None,
            office,
            registry: Registry::Up,
            mirrors: Mirrors::default(),
            cut: false,
            lies: false,
            changed_bytes,
            unchanged_bytes,
            doubted: BTreeSet::new(),
            runs: Vec::new(),
            tickets: 0,
            faults: Vec::new(),
            faults_left: 0,
            findings: Findings::default(),
            ordered_at: WARM_UP,
            lost_s: 0.0,
            joined_s: 0.0,
            unfinished: 0,
            tally: Tally::default(),
            setup,
        }
    }

    /// Whether a host proves the chunks of a content when they arrive.
    pub(super) fn has_recipe(&self, host: u32, content: u32) -> bool {
        self.setup.recipe
            && self.is_staged(content)
            && !self.doubted.contains(&content)
            && !self.node(host).left_recipe.contains(&content)
    }

    /// Enough hosts say that the registry's bytes don't fit the recipe: no host uses it for this content any more.
    pub(super) fn leave_recipe(&mut self, content: u32) {
        self.doubted.insert(content);
    }

    /// A new seed for a core.
    pub(super) fn seed(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// A name for a request or an offer.
    pub(super) const fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// A host hears that something will come of a content, or does something for it itself.
    pub(super) fn client_hears(&mut self, host: u32, content: u32) {
        let (now, session) = (self.clock.now(), self.node(host).session);
        self.mirrors.hear(now, session, host, content);
    }

    /// A host begins to fetch a content.
    pub(super) fn client_fetches(&mut self, host: u32, content: u32) {
        let leased = self.node(host).leases.contains_key(&content);
        self.mirrors.fetches(leased);
        self.client_hears(host, content);
    }

    /// Plans an event.
    pub(super) fn at(&mut self, at: Nanos, due: Due) {
        self.clock.at(at, due);
    }

    /// Sends a message. All messages take the same delay.
    pub(super) fn send(&mut self, message: Message) {
        self.clock.send(message);
    }

    /// Sends a host an event. The host hears it if it still lives this life then.
    pub(super) fn tell(&mut self, host: u32, event: swarm::Event) {
        let life = self.node(host).life;
        self.send(Message::ToHost { host, life, event });
    }

    /// A host by its number.
    pub(super) fn node(&self, host: u32) -> &Node {
        &self.nodes[host as usize]
    }

    /// The same, to be changed.
    pub(super) fn node_mut(&mut self, host: u32) -> &mut Node {
        &mut self.nodes[host as usize]
    }

    /// The time as the cores know it.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.clock.now() / 1_000)
    }

    /// A number below `below`.
    pub(super) fn random(&mut self, below: usize) -> usize {
        let wide = u64::from(self.rng.next_u32()) * below as u64;
        usize::try_from(wide >> 32).unwrap_or(0)
    }

    /// The host of a key.
    pub(super) fn find(&self, key: HostKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// Whether the host is to hold this content, and its agent knows that.
    pub(super) fn stages(&self, host: u32, content: u32) -> bool {
        self.node(host).stages[self.specs[content as usize].image]
    }

    /// Whether a content is part of an image that hosts are to end with.
    pub(super) fn is_staged(&self, content: u32) -> bool {
        self.images[self.specs[content as usize].image].is_staged()
    }

    /// Whether a content is a blob that clients of mirrors want.
    pub(super) fn is_mirrored(&self, content: u32) -> bool {
        self.images[self.specs[content as usize].image].kind == ImageKind::Mirrored
    }

    /// The time that no schedule can beat, in seconds.
    pub(super) fn bound_s(&self) -> f64 {
        let image = self.changed_bytes;
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

    /// When a release is ordered after the warm-up, in seconds; 0 for an image of which hosts hold nothing. A release
    /// comes to a fleet that has been up for long: a coordinator that has just started waits for hosts that hold
    /// something.
    pub(super) fn release_after_s(&self) -> f64 {
        let settle = self.setup.plan.settle.as_secs_f64();
        self.setup.change_percent.map_or(0.0, |_| settle)
    }

    /// What the registry gives each stream, where that is little.
    pub(super) fn stream_rate(&self) -> Option<u64> {
        let slow = matches!(
            self.setup.scenario,
            Scenario::SlowRegistry | Scenario::MirrorSlow
        );
        let rate = match slow {
            true => Some(STREAM_RATE),
            false => self.setup.stream_rate,
        };
        rate.map(|rate| (rate / self.scale).max(1))
    }

    /// Sends the coordinator an event.
    pub(super) fn tell_office(&mut self, event: stage::Event) {
        let term = self.office.term;
        self.send(Message::ToPlan { term, event });
    }

    /// Sends the coordinator an event over this host's session, if the host has one.
    pub(super) fn tell_plan_from(&mut self, host: u32, event: impl FnOnce(&Self) -> stage::Event) {
        if self.node(host).session {
            let event = event(self);
            self.tell_office(event);
        }
    }

    /// A host says that a lease is over.
    pub(super) fn tell_lease_ended(&mut self, host: u32, content: u32, end: LeaseEnd) {
        let range = self.node_mut(host).ranges.remove(&content);
        self.tell_plan_from(host, |world| stage::Event::LeaseEnded {
            range,
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            end,
        });
    }

    /// The image's recipe as the coordinator knows it, where there is one. It doesn't move here: every host has it.
    pub(super) fn recipe(&self) -> Option<stage::event::Content> {
        self.setup.recipe.then(|| stage::event::Content {
            digest: Digest::of(b"the recipe"),
            chunks: 1,
            size: 1,
            origin_bytes: 1,
        })
    }

    /// The content of a digest.
    pub(super) fn content_of(&self, digest: Digest) -> Option<u32> {
        self.specs
            .iter()
            .position(|spec| spec.digest == digest)
            .map(index)
    }

    /// Whether the plan means a blob of mirrors by this image.
    pub(super) fn is_blob(&self, image: Digest) -> bool {
        let mut images = self.images.iter();
        images.any(|of| of.digest == image && !of.is_known_to_hosts())
    }

    /// The digests of contents.
    pub(super) fn digests(&self, contents: &[u32]) -> Vec<Digest> {
        let digest = |content: &u32| self.specs[*content as usize].digest;
        contents.iter().map(digest).collect()
    }

    /// Whether clients of mirrors come before the image is ordered.
    pub(super) fn mirrors_first(&self) -> bool {
        matches!(self.setup.scenario, Scenario::Mirror | Scenario::MirrorSlow)
    }
}
