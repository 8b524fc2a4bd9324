//! Clients of hosts' mirrors: which blobs they want and when, what their hosts and the coordinator are told of that, and
//! how long they wait.

use std::time::Duration;

use super::*;
use stage::event::{Content, Purpose, Selection, Standing};

/// Blobs that clients want; none is part of the image that is staged.
const BLOBS: usize = 12;
/// One byte of so many of the image is a blob's instead.
const SHARE: u64 = 4;
/// Half of the hosts have a client for each blob, and they come within this time.
const CLIENTS_PERCENT: usize = 50;
const CLIENTS_WITHIN: usize = 2_000_000_000;
/// The image is ordered so long after the first clients came.
pub(super) const ORDERED_AFTER: Nanos = 5_000_000_000;
/// The agent's default, and what it waits where nothing led by a coordinator is to be expected.
const ALONE_AFTER: Nanos = 10_000_000_000;
const UNLED: Nanos = 500_000_000;
/// The coordinator says this often what comes.
const QUEUE_EVERY: Nanos = 2_000_000_000;
/// The clock of a swarm has microseconds.
const ROUNDING: Nanos = 1_000;
/// Ticks of a swarm, and messages that are on their way.
const LATE: Nanos = 1_000_000_000;

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    /// Fetches that began without a lease.
    alone: usize,
    /// By host and content; those that have what they wanted too.
    clients: BTreeMap<(u32, u32), Client>,
    /// Clients that are still to come.
    coming: usize,
    /// What hosts were told of blobs that they didn't know, by receiver, content and sender.
    early: BTreeMap<(u32, u32), BTreeMap<u32, ChunkSet>>,
}

#[derive(Debug)]
struct Client {
    since: Nanos,
    /// When its host last heard of a chunk, or last went to the registry.
    heard_at: Nanos,
    heard: bool,
    /// Nothing was heard for so long once that its host may fetch alone from then on.
    neglected: bool,
    /// When the first byte left for it: of what comes from peers, with the last one.
    first_byte_at: Option<Nanos>,
    whole_at: Option<Nanos>,
}

impl Client {
    /// Whether nothing has been heard for so long that its host may fetch alone.
    fn is_neglected(&self, now: Nanos, session: bool) -> bool {
        let patience = if session || self.heard {
            ALONE_AFTER
        } else {
            UNLED
        };
        self.neglected || now + ROUNDING >= self.heard_at + patience
    }
}

/// How long clients waited, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waits {
    /// Clients that have what they wanted.
    pub clients: usize,
    /// Fetches without a lease that this took.
    pub alone: usize,
    /// For the first byte: median and worst.
    pub first_byte_s: (f64, f64),
    /// For the last byte: median and worst.
    pub last_byte_s: (f64, f64),
}

/// Bytes of the image that is staged, and of each blob.
pub(super) fn shares(scenario: Scenario, image_bytes: u64) -> (u64, u64) {
    match scenario {
        Scenario::Mirror | Scenario::MirrorSlow => {
            let blobs = image_bytes / SHARE;
            (image_bytes - blobs, blobs / BLOBS as u64)
        }
        Scenario::MirrorAlone => (0, image_bytes / BLOBS as u64),
        _ => (image_bytes, 0),
    }
}

/// The blobs, each of which is an image to the coordinator.
pub(super) fn blobs(size: u64, specs: &mut Vec<Spec>, images: &mut Vec<Image>) {
    for at in 0..BLOBS {
        let name = format!("blob {at}");
        specs.push(Spec::new(&name, size, images.len()));
        images.push(Image::new(&format!("mirror {name}"), ImageKind::Mirrored));
    }
}

impl Mirrors {
    /// The client of this host that still waits for this content.
    fn waiting(&mut self, host: u32, content: u32) -> Option<&mut Client> {
        let client = self.clients.get_mut(&(host, content))?;
        client.whole_at.is_none().then_some(client)
    }

    fn hear(&mut self, now: Nanos, session: bool, host: u32, content: u32) {
        if let Some(client) = self.waiting(host, content) {
            client.neglected |= client.is_neglected(now, session);
            client.heard_at = now;
            client.heard = true;
        }
    }

    /// The hosts whose clients wait for a content.
    fn hosts(&self, content: u32) -> Vec<u32> {
        let waiting = self
            .clients
            .iter()
            .filter(|(_, client)| client.whole_at.is_none());
        let of_it = waiting.filter(|((_, of), _)| *of == content);
        of_it.map(|((host, _), _)| *host).collect()
    }

    /// The first byte of a content came from this host's own connection to the registry.
    pub(super) fn began(&mut self, now: Nanos, host: u32, content: u32) {
        if let Some(client) = self.waiting(host, content) {
            client.first_byte_at.get_or_insert(now);
        }
    }

    /// What a peer said of a blob that this host doesn't know is remembered, as in the agent.
    pub(super) fn remember(&mut self, (from, to): (u32, u32), content: u32, chunks: &ChunkSet) {
        let said = self.early.entry((to, content)).or_default();
        let said = said
            .entry(from)
            .or_insert_with(|| ChunkSet::empty(chunks.chunks()));
        said.union_with(chunks);
    }

    /// How long those waited who have what they wanted. `None` without clients.
    pub(super) fn waits(&self) -> Option<Waits> {
        let spans = |at: fn(&Client) -> Option<Nanos>| -> (f64, f64) {
            let waits = self.clients.values();
            let waits = waits.filter_map(|client| Some(at(client)? - client.since));
            let mut waits: Vec<Nanos> = waits.collect();
            waits.sort_unstable();
            let of = |at: usize| waits.get(at).map_or(0.0, |wait| precise(*wait) / 1e9);
            (of(waits.len() / 2), of(waits.len().saturating_sub(1)))
        };
        let done = self
            .clients
            .values()
            .filter(|client| client.whole_at.is_some());
        let clients = done.count();
        (clients > 0).then(|| Waits {
            clients,
            alone: self.alone,
            first_byte_s: spans(|client| client.first_byte_at.or(client.whole_at)),
            last_byte_s: spans(|client| client.whole_at),
        })
    }
}

impl World {
    /// Decides who will want what. Blobs are wanted before the image is ordered, while it is staged, and after that.
    pub(super) fn plan_clients(&mut self) {
        let staging = self.bound_s();
        let starts = [0.0, 0.3 * staging, 0.6 * staging, 1.2 * staging];
        for content in 0..self.specs.len() {
            if !self.is_mirrored(index(content)) {
                continue;
            }
            let after = WARM_UP + LATE + seconds(starts[content % starts.len()]);
            let sure = self.random(self.nodes.len());
            for host in 0..self.nodes.len() {
                let comes = self.random(100) < CLIENTS_PERCENT;
                let within = self.random(CLIENTS_WITHIN) as u64;
                if comes || host == sure {
                    self.mirrors.coming += 1;
                    let (host, content) = (index(host), index(content));
                    self.at(after + within, Due::Client { host, content });
                }
            }
        }
        self.at(WARM_UP, Due::Queue);
    }

    pub(super) fn is_mirrored(&self, content: u32) -> bool {
        self.images[self.specs[content as usize].image].kind == ImageKind::Mirrored
    }

    /// Clients of hosts that are there, and haven't what they want.
    pub(super) fn clients_left(&self) -> usize {
        let waiting = self.mirrors.clients.iter();
        let waiting = waiting
            .filter(|((host, _), client)| client.whole_at.is_none() && self.node(*host).alive);
        self.mirrors.coming + waiting.count()
    }

    pub(super) fn client_comes(&mut self, host: u32, content: u32) {
        self.mirrors.coming -= 1;
        if !self.node(host).alive {
            return;
        }
        let client = Client {
            since: self.now,
            heard_at: self.now,
            heard: false,
            neglected: false,
            first_byte_at: None,
            whole_at: None,
        };
        self.mirrors.clients.insert((host, content), client);
        let spec = &self.specs[content as usize];
        let (image, key, size) = (spec.image, spec.key, spec.geometry.size());
        let held = self.node(host).held[content as usize].clone();
        self.node_mut(host).stages[image] = true;
        let id = ContentId(content);
        let event = swarm::Event::Content {
            id,
            key,
            size,
            held,
            order: 0,
            entitled: None,
        };
        self.feed(host, event);
        let wanted = swarm::Event::Wanted {
            id,
            alone_after: Duration::from_nanos(ALONE_AFTER),
            admitted: false,
        };
        self.feed(host, wanted);
        for (peer, chunks) in self
            .mirrors
            .early
            .remove(&(host, content))
            .unwrap_or_default()
        {
            let event = swarm::Event::Announced {
                peer: self.node(peer).key,
                id,
                chunks,
                reset: true,
            };
            self.feed(host, event);
        }
        self.tell_wanters(host, content);
        self.tell_plan_from(host, |world| stage::Event::Reported {
            host: world.node(host).id.clone(),
            image: world.images[image].digest,
            standing: Standing::Staging,
            held_bytes: 0,
        });
    }

    /// All of a content is at a host: its client has it, and peers may.
    pub(super) fn client_served(&mut self, host: u32, content: u32) {
        let now = self.now;
        let Some(client) = self.mirrors.waiting(host, content) else {
            return;
        };
        client.whole_at = Some(now);
        self.feed(host, swarm::Event::Unwanted(ContentId(content)));
        self.tell_wanters(host, content);
    }

    /// The coordinator hears from a host who wants a blob now.
    fn tell_wanters(&mut self, host: u32, content: u32) {
        let hosts = self.mirrors.hosts(content);
        self.tell_plan_from(host, |world| {
            let spec = &world.specs[content as usize];
            let (digest, geometry) = (spec.digest, spec.geometry);
            stage::Event::Wanted {
                image: world.images[spec.image].digest,
                references: Vec::new(),
                contents: vec![Content {
                    digest,
                    chunks: geometry.chunks(),
                    size: geometry.size(),
                    origin_bytes: geometry.size(),
                }],
                hosts: Selection::Hosts(
                    hosts.iter().map(|at| world.node(*at).id.clone()).collect(),
                ),
                held: Vec::new(),
                purpose: Purpose::Mirror,
            }
        });
    }

    /// The coordinator says whose wants come, or have their place in the queue.
    pub(super) fn tell_queue(&mut self) {
        self.at(self.now + QUEUE_EVERY, Due::Queue);
        let wants = self.mirrors.clients.iter();
        let wants: Vec<(u32, u32)> = wants
            .filter(|((host, content), client)| {
                let (node, spec) = (self.node(*host), &self.specs[*content as usize]);
                let waits = client.whole_at.is_none() && node.alive && node.session;
                waits && self.office.is_coming(&node.id, &spec.digest)
            })
            .map(|(want, _)| *want)
            .collect();
        for (host, content) in wants {
            self.client_hears(host, content);
            self.tell(host, swarm::Event::Coming(ContentId(content)));
        }
    }

    /// A host hears that something will come of a content, or does something for it itself.
    pub(super) fn client_hears(&mut self, host: u32, content: u32) {
        let (now, session) = (self.now, self.node(host).session);
        self.mirrors.hear(now, session, host, content);
    }

    /// A host begins to fetch a content.
    pub(super) fn client_fetches(&mut self, host: u32, content: u32) {
        let leased = self.node(host).leases.contains_key(&content);
        self.mirrors.alone += usize::from(!leased);
        self.client_hears(host, content);
    }

    /// Whether a host may fetch a content without a lease because a client of its has waited for long enough.
    pub(super) fn may_fetch_alone(&self, host: u32, content: u32) -> bool {
        let Some(client) = self.mirrors.clients.get(&(host, content)) else {
            return false;
        };
        let session = self.node(host).session;
        client.whole_at.is_none() && client.is_neglected(self.now, session)
    }

    /// No client waits for longer than its host's turn takes.
    pub(super) fn check_clients(&mut self) {
        let waiting = self.mirrors.clients.iter();
        let in_vain = waiting.filter(|((host, content), client)| {
            let node = self.node(*host);
            let waits = client.whole_at.is_none() && node.alive;
            waits && !node.fetches.contains_key(content) && {
                let turns = self.mirrors.hosts(*content).len() as u64;
                self.now > client.heard_at + ALONE_AFTER * turns + LATE
            }
        });
        if in_vain.count() > 0 {
            self.checks
                .note("a client waits, and its host does nothing");
        }
    }
}
