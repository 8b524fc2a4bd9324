//! Rogues: hosts that lie to the coordinator, to their peers, or to both. Under each lie runs a real swarm, which behaves
//! as others do wherever the lie says nothing else.

use std::time::Duration;

use super::*;
use crate::scenario::{Party, Rogue};
use stage::event::{Fault, LeaseEnd, Standing, Trouble};

/// Rogues say things anew this often.
const ROGUE_EVERY: Nanos = 250_000_000;
/// One that announces what it doesn't hold says so within this time.
const MISSES_WITHIN: usize = 3_000_000_000;
/// What one that hoards claims to get, and how often it claims a whole chunk.
const CLAIMED_RATE: u64 = 1_000_000;
const CLAIMED_CHUNK_EVERY: Nanos = 60_000_000_000;
/// How long the registry is said to want to be left alone.
const CLAIMED_WISH: Duration = Duration::from_hours(1);
/// Chunks that one offers to be spread anew, each time.
const SPREADS: usize = 16;

impl World {
    /// These hosts are rogues. Without a manner of its own each lies to the coordinator in one way and to its peers in another,
    /// so that every way is among them.
    pub(super) fn make_rogues(&mut self, hosts: &[usize]) {
        let of = |party: Party| -> Vec<Rogue> {
            let all = Rogue::ALL.into_iter();
            all.filter(|rogue| rogue.party() == party).collect()
        };
        let (coordinator, peers) = (of(Party::Coordinator), of(Party::Peers));
        let turn = usize::try_from(self.setup.seed).unwrap_or(0);
        for (at, host) in hosts.iter().copied().enumerate() {
            let rogues = match self.setup.manner {
                Some(manner) => vec![manner],
                None => vec![
                    coordinator[(at + turn) % coordinator.len()],
                    peers[(at + turn / coordinator.len()) % peers.len()],
                ],
            };
            for rogue in &rogues {
                match rogue {
                    Rogue::Lie => self.make_liar(host),
                    Rogue::NotSent => self.nodes[host].pit = Some(Pit::Sender),
                    Rogue::NotTaken => self.nodes[host].pit = Some(Pit::Reader),
                    _ => {}
                }
            }
            self.nodes[host].wanted = false;
            self.nodes[host].rogues = rogues;
            let host = index(host);
            self.at(WARM_UP + ROGUE_EVERY, Due::Rogue(host));
        }
    }

    /// A rogue that is leased a content does something else with it than fetch it.
    pub(super) fn abuses_lease(&mut self, host: u32, content: u32) -> bool {
        let node = self.node(host);
        let is = |rogue| node.is_rogue(rogue);
        let end = if is(Rogue::Done) {
            LeaseEnd::Done
        } else if is(Rogue::Missing) {
            LeaseEnd::Faulty(Fault::Missing)
        } else if is(Rogue::Throttle) || is(Rogue::Hoard) || is(Rogue::Adopt) {
            let now = self.now;
            self.node_mut(host).hoarded.insert(content, now);
            self.claim_lease(host, content, now);
            return true;
        } else {
            return false;
        };
        self.tell_lease_ended(host, content, end);
        true
    }

    /// What a rogue says of a lease that it does nothing with.
    fn claim_lease(&mut self, host: u32, content: u32, since: Nanos) {
        let throttles = self.node(host).is_rogue(Rogue::Throttle);
        let held_for = self.now - since;
        let bytes = CLAIMED_RATE * (held_for / 1_000_000_000);
        let chunks = index(usize::try_from(1 + held_for / CLAIMED_CHUNK_EVERY).unwrap_or(0));
        self.tell_plan_from(host, |world| stage::Event::LeaseProgress {
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            chunks: if throttles { 0 } else { chunks },
            bytes: if throttles { 0 } else { bytes },
            paced: !throttles,
            trouble: throttles.then_some(Trouble::Throttled(CLAIMED_WISH)),
        });
    }

    /// What a rogue says beside its true report, or in its stead. Whether that is all.
    pub(super) fn rogue_reports(&mut self, host: u32) -> bool {
        if self.node(host).rogues.is_empty() {
            return false;
        }
        let hoarded = self.node(host).hoarded.clone();
        for (content, since) in hoarded {
            self.claim_lease(host, content, since);
        }
        let node = self.node(host);
        let (id, is) = (node.id.clone(), |rogue| node.is_rogue(rogue));
        let (present, whole) = (is(Rogue::Present), is(Rogue::Whole));
        let (blames, adopts) = (is(Rogue::Blame), is(Rogue::Adopt));
        if blames {
            self.defame(host);
        }
        if adopts {
            for content in 0..index(self.specs.len()) {
                self.claim_lease(host, content, WARM_UP);
            }
        }
        if whole {
            let all = self.specs.iter();
            let contents = all.map(|spec| (spec.digest, spec.geometry.chunks()));
            let contents = contents.collect();
            self.tell_office(stage::Event::Holds { host: id, contents });
        } else if present {
            let held_bytes = self.specs.iter().map(|spec| spec.geometry.size()).sum();
            self.tell_office(stage::Event::Reported {
                host: id,
                image: self.images[0].digest,
                standing: Standing::Present,
                held_bytes,
            });
        }
        present || whole
    }

    /// What a rogue tells its peers again and again.
    pub(super) fn rogue_acts(&mut self, host: u32) {
        self.at(self.now + ROGUE_EVERY, Due::Rogue(host));
        if !self.node(host).alive || !self.node(host).staged {
            return;
        }
        let connected = &self.node(host).connected;
        let peers = (0..index(self.nodes.len())).filter(|peer| connected[*peer as usize]);
        let peers: Vec<u32> = peers.collect();
        if self.node(host).is_rogue(Rogue::Announce) {
            for peer in &peers {
                self.announce_everything(host, *peer);
            }
        }
        if self.node(host).is_rogue(Rogue::Spread) && !peers.is_empty() {
            for _ in 0..SPREADS {
                let peer = peers[self.random(peers.len())];
                self.offer_again(host, peer);
            }
        }
    }

    fn announce_everything(&mut self, host: u32, peer: u32) {
        let me = self.node(host).key;
        for content in 0..index(self.specs.len()) {
            let chunks = self.specs[content as usize].geometry.chunks();
            if self.stages(peer, content) {
                let event = swarm::Event::Announced {
                    peer: me,
                    id: ContentId(content),
                    chunks: ChunkSet::full(chunks),
                    reset: true,
                };
                self.tell(peer, event);
            }
        }
    }

    /// Offers a peer what it holds, to have it spread to everyone once more.
    fn offer_again(&mut self, host: u32, peer: u32) {
        let content = self.random(self.specs.len());
        let chunks = self.specs[content].geometry.chunks();
        let chunk = index(self.random(chunks as usize));
        if self.node(peer).held[content].contains(ChunkIndex(chunk)) {
            let spread = Some(Spread::Everyone);
            let content = index(content);
            let transfer = self.new_transfer(host, peer, content, chunk, Kind::Push, spread);
            self.send(Message::Offer(transfer));
        }
    }

    /// A request that a rogue doesn't answer as others do. Gives it back where it does.
    pub(super) fn rogue_answers(&mut self, question: Question) -> Option<Question> {
        let server = self.node(question.server);
        if server.is_rogue(Rogue::Mute) {
            return None;
        }
        if !server.is_rogue(Rogue::Announce) {
            return Some(question);
        }
        let after = self.random(MISSES_WITHIN) as u64;
        self.at(self.now + after, Due::Missed(question));
        None
    }

    /// Whether an offer lies at this host unanswered, until its sender gives it up.
    pub(super) fn leaves_unanswered(&mut self, id: TransferId, to: u32) -> bool {
        let mute = self.node(to).is_rogue(Rogue::Mute);
        if mute {
            self.at(self.now + 2 * STUCK_AFTER, Due::Stuck(id));
        }
        mute
    }

    /// Whether what this host's swarm wants to tell its peers goes nowhere.
    pub(super) fn is_mute(&self, host: u32) -> bool {
        self.node(host).is_rogue(Rogue::Mute)
    }
}

impl Node {
    pub(super) fn is_rogue(&self, rogue: Rogue) -> bool {
        self.rogues.contains(&rogue)
    }

    /// Whether it never lies.
    pub(super) const fn is_honest(&self) -> bool {
        !self.liar && self.rogues.is_empty()
    }
}
