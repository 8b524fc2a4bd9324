//! Rogues: hosts that lie to the coordinator, to their peers, or to both. Each rogue runs a real swarm. Where its
//! lie says nothing else, a rogue behaves as others do.

use std::time::Duration;

use proto::{ChunkIndex, ChunkRange, ChunkSet};
use rollout::stage::{
    self,
    event::{Fault, LeaseEnd, Standing, Trouble},
};
use swarm::event::{ContentId, Spread};

use crate::{
    network::{Nanos, TransferId},
    scenario::Rogue,
};

use super::{
    due::{Due, Message, Question},
    lines::{STUCK_AFTER, new_transfer},
    state::{State, WARM_UP},
    transfers::Kind,
    units::index,
};

/// Rogues say things anew this often.
pub(super) const ROGUE_EVERY: Nanos = 250_000_000;
/// One that announces what it doesn't hold says so within this time.
const MISSES_WITHIN: usize = 3_000_000_000;
/// What one that hoards claims to get, and how often it claims a whole chunk.
const CLAIMED_RATE: u64 = 1_000_000;
const CLAIMED_CHUNK_EVERY: Nanos = 60_000_000_000;
/// How long the registry is said to want to be left alone.
const CLAIMED_WISH: Duration = Duration::from_hours(1);
/// Chunks that one offers to be spread anew, each time.
const SPREADS: usize = 16;

/// A rogue that is leased a content does something else with it than fetch it.
pub(super) fn abuses_lease(world: &mut State, host: u32, content: u32) -> bool {
    let node = world.node(host);
    let is = |rogue| node.is_rogue(rogue);
    let end = if is(Rogue::Done) {
        LeaseEnd::Done
    } else if is(Rogue::Missing) {
        LeaseEnd::Faulty(Fault::Missing)
    } else if is(Rogue::Throttle) || is(Rogue::Hoard) || is(Rogue::Adopt) {
        let now = world.clock.now();
        world.node_mut(host).hoarded.insert(content, now);
        claim_lease(world, host, content, now);
        return true;
    } else {
        return false;
    };
    world.tell_lease_ended(host, content, end);
    true
}

/// A holder of a lease goes on without the recipe for a content, and says that the registry's bytes don't fit it. Liars
/// agree on the chunk.
pub(super) fn doubt_recipe(world: &mut State, host: u32, content: u32, chunk: u32) {
    if !world.has_recipe(host, content) {
        return;
    }
    world.node_mut(host).left_recipe.insert(content);
    let chunk = if world.node(host).is_honest() {
        chunk
    } else {
        0
    };
    world.tell_plan_from(host, |world| {
        let spec = &world.specs[content as usize];
        stage::Event::RecipeDoubted {
            host: world.node(host).id.clone(),
            image: world.images[spec.image].digest,
            content: spec.digest,
            chunk,
        }
    });
}

/// What a rogue says of a lease that it does nothing with.
fn claim_lease(world: &mut State, host: u32, content: u32, since: Nanos) {
    let throttles = world.node(host).is_rogue(Rogue::Throttle);
    let held_for = world.clock.now() - since;
    let bytes = CLAIMED_RATE * (held_for / 1_000_000_000);
    let chunks = index(usize::try_from(1 + held_for / CLAIMED_CHUNK_EVERY).unwrap_or(0));
    world.tell_plan_from(host, |world| stage::Event::LeaseProgress {
        range: world.node(host).ranges.get(&content).copied(),
        host: world.node(host).id.clone(),
        content: world.specs[content as usize].digest,
        chunks: if throttles { 0 } else { chunks },
        bytes: if throttles { 0 } else { bytes },
        paced: !throttles,
        trouble: throttles.then_some(Trouble::Throttled(CLAIMED_WISH)),
    });
}

/// What a rogue says of ranges that it wasn't given: short ones, long ones, and some that no content has. It fetches
/// some of them, and has fetched others.
fn claim_ranges(world: &mut State, host: u32) {
    for content in 0..index(world.specs.len()) {
        let (digest, chunks) = {
            let spec = &world.specs[content as usize];
            (spec.digest, spec.geometry.chunks())
        };
        let from = index(world.random(chunks as usize));
        let long = index(world.random(chunks as usize));
        let range = match world.random(4) {
            0 => ChunkRange::new(from, from + 1),
            1 => ChunkRange::new(0, chunks),
            2 => ChunkRange::new(chunks, chunks + 1 + long),
            _ => ChunkRange::new(from, from + 1 + long),
        };
        let fetches = world.random(2) == 0;
        let host_id = world.node(host).id.clone();
        world.tell_plan_from(host, |_| match fetches {
            true => stage::Event::LeaseProgress {
                host: host_id,
                content: digest,
                range,
                chunks: 1,
                bytes: CLAIMED_RATE,
                paced: true,
                trouble: None,
            },
            false => stage::Event::LeaseEnded {
                host: host_id,
                content: digest,
                range,
                end: LeaseEnd::Done,
            },
        });
    }
}

/// What a rogue says beside its true report, or in its stead. Whether that is all.
pub(super) fn rogue_reports(world: &mut State, host: u32) -> bool {
    if world.node(host).rogues.is_empty() {
        return false;
    }
    let hoarded = world.node(host).hoarded.clone();
    for (content, since) in hoarded {
        claim_lease(world, host, content, since);
    }
    let node = world.node(host);
    let (id, is) = (node.id.clone(), |rogue| node.is_rogue(rogue));
    let (present, whole) = (is(Rogue::Present), is(Rogue::Whole));
    let (blames, adopts) = (is(Rogue::Blame), is(Rogue::Adopt));
    let is_ranges = is(Rogue::Ranges);
    if blames {
        defame(world, host);
    }
    if adopts {
        for content in 0..index(world.specs.len()) {
            claim_lease(world, host, content, WARM_UP);
        }
    }
    if is_ranges {
        claim_ranges(world, host);
    }
    if whole {
        let all = world.specs.iter();
        let contents = all.map(|spec| (spec.digest, spec.geometry.chunks()));
        let contents = contents.collect();
        world.tell_office(stage::Event::Holds { host: id, contents });
    } else if present {
        let held_bytes = world.specs.iter().map(|spec| spec.geometry.size()).sum();
        world.tell_office(stage::Event::Reported {
            host: id,
            image: world.images[0].digest,
            standing: Standing::Present,
            held_bytes,
        });
    }
    present || whole
}

/// What a rogue tells its peers again and again.
pub(super) fn rogue_acts(world: &mut State, host: u32) {
    world.at(world.clock.now() + ROGUE_EVERY, Due::Rogue(host));
    if !world.node(host).alive || !world.node(host).staged {
        return;
    }
    let connected = &world.node(host).connected;
    let peers = (0..index(world.nodes.len())).filter(|peer| connected[*peer as usize]);
    let peers: Vec<u32> = peers.collect();
    if world.node(host).is_rogue(Rogue::Announce) {
        for peer in &peers {
            announce_everything(world, host, *peer);
        }
    }
    if world.node(host).is_rogue(Rogue::Spread) && !peers.is_empty() {
        for _ in 0..SPREADS {
            let peer = peers[world.random(peers.len())];
            offer_again(world, host, peer);
        }
    }
}

fn announce_everything(world: &mut State, host: u32, peer: u32) {
    let me = world.node(host).key;
    for content in 0..index(world.specs.len()) {
        let chunks = world.specs[content as usize].geometry.chunks();
        if world.stages(peer, content) {
            let event = swarm::Event::Announced {
                peer: me,
                id: ContentId(content),
                chunks: ChunkSet::full(chunks),
                reset: true,
            };
            world.tell(peer, event);
        }
    }
}

/// Offers a peer what it holds, to have it spread to everyone once more.
fn offer_again(world: &mut State, host: u32, peer: u32) {
    let content = world.random(world.specs.len());
    let chunks = world.specs[content].geometry.chunks();
    let chunk = index(world.random(chunks as usize));
    if world.node(peer).held[content].contains(ChunkIndex(chunk)) {
        let spread = Some(Spread::Everyone);
        let content = index(content);
        let transfer = new_transfer(world, host, peer, content, chunk, Kind::Push, spread);
        world.send(Message::Offer(transfer));
    }
}

/// A request that a rogue doesn't answer as others do. Gives it back where it does.
pub(super) fn rogue_answers(world: &mut State, question: Question) -> Option<Question> {
    let server = world.node(question.server);
    if server.is_rogue(Rogue::Mute) {
        return None;
    }
    if !server.is_rogue(Rogue::Announce) {
        return Some(question);
    }
    let after = world.random(MISSES_WITHIN) as u64;
    world.at(world.clock.now() + after, Due::Missed(question));
    None
}

/// Whether an offer lies at this host unanswered, until its sender gives it up.
pub(super) fn leaves_unanswered(world: &mut State, id: TransferId, to: u32) -> bool {
    let mute = world.node(to).is_rogue(Rogue::Mute);
    if mute {
        world.at(world.clock.now() + 2 * STUCK_AFTER, Due::Stuck(id));
    }
    mute
}

/// Whether what this host's swarm wants to tell its peers goes nowhere.
pub(super) fn is_mute(world: &State, host: u32) -> bool {
    world.node(host).is_rogue(Rogue::Mute)
}

/// A liar accuses the honest: all liars the same few, and each somebody of its own.
pub(super) fn defame(world: &mut State, liar: u32) {
    let honest: Vec<u32> = (0..world.nodes.len())
        .map(index)
        .filter(|host| world.node(*host).is_honest())
        .collect();
    let some = world.random(honest.len().max(1));
    for victim in honest.iter().take(3).chain(honest.get(some)) {
        let victim = *victim;
        world.tell_plan_from(liar, |world| stage::Event::Blamed {
            by: world.node(liar).id.clone(),
            host: world.node(victim).id.clone(),
        });
    }
}

/// A host blames another for bytes that didn't fit their link.
pub(super) fn blame(world: &mut State, by: u32, sender: u32) {
    world.tell_plan_from(by, |world| stage::Event::Blamed {
        by: world.node(by).id.clone(),
        host: world.node(sender).id.clone(),
    });
}
