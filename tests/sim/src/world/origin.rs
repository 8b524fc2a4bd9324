//! Fetches from the registry: what agents ask it for, what it refuses, and how fast it gives.

use proto::{ChunkIndex, ChunkRange};
use rollout::stage;
use swarm::event::{ContentId, OriginEnd};

use crate::{
    network::{Nanos, takes},
    scenario::Scenario,
};

use super::{
    check::check_fetch,
    due::Due,
    lines::{HANDSHAKE_DELAYS, HANDSHAKE_WORK, begin_transfer, drop_transfer, new_transfer},
    links::Run,
    node::Fetching,
    registry::{Refused, Registry},
    state::State,
    transfers::Kind,
    units::index,
};

/// Chunks of one fetch under way from the registry at one time: a stream never pauses between chunks.
const FETCH_AHEAD: u32 = 2;
/// Pauses of an agent between attempts, first and longest.
const RETRY: (Nanos, Nanos) = (500_000_000, 10_000_000_000);
/// Requests that are on their way when the first is told to stay away, and reports of it.
const WORD_SPREADS: Nanos = 1_000_000_000;
/// A part of a blob begins with the compressed block that has the last byte of the chunk before.
const BLOCK_BYTES: u64 = 64 << 10;
const CONNECTION_BYTES: u64 = 300_000;

/// A host fetches a content from the registry, or goes on with that, up to this chunk.
pub(super) fn fetch(
    world: &mut State,
    host: u32,
    content: u32,
    (range, until): (Option<ChunkRange>, u32),
) {
    check_fetch(world, host, content);
    if !world.node(host).fetches.contains_key(&content) {
        world.client_fetches(host, content);
    }
    let run = new_run(world, host, content);
    let fetching = world
        .node_mut(host)
        .fetches
        .entry(content)
        .or_insert(Fetching {
            run,
            range,
            next: range.map_or(0, ChunkRange::from),
            until: 0,
            under_way: 0,
            asked: None,
            open: false,
            refused: None,
            slow: None,
            false_from: None,
            again: false,
        });
    if fetching.range != range {
        world.findings.note("a fetch changed its range");
        return;
    }
    if until < fetching.until {
        world.findings.note("a fetch went back");
        return;
    }
    fetching.until = until;
    if range.is_some() && !world.has_recipe(host, content) {
        give_range_back(world, host, content);
        return;
    }
    pump_origin(world, host, content);
}

/// A fetch asks for as many chunks as may be under way. It ends when it has all of them.
pub(super) fn pump_origin(world: &mut State, host: u32, content: u32) {
    let chunks = world.specs[content as usize].geometry.chunks();
    let origin = index(world.nodes.len());
    // by a recipe nothing is read behind the last missing chunk
    let by_recipe = world.has_recipe(host, content);
    loop {
        let node = &mut world.nodes[host as usize];
        let Some(fetching) = node.fetches.get_mut(&content) else {
            return;
        };
        while !fetching.again
            && fetching.next < fetching.until
            && node.held[content as usize].contains(ChunkIndex(fetching.next))
        {
            fetching.next += 1;
        }
        let end = fetching.range.map_or(chunks, ChunkRange::until);
        let held = &node.held[content as usize];
        let range_held = fetching.range.is_some_and(|range| {
            let mut chunks = range.chunks();
            chunks.all(|chunk| held.contains(chunk))
        });
        let all = by_recipe && !fetching.again && (held.is_full() || range_held);
        if (fetching.next >= end || all) && fetching.under_way == 0 {
            node.fetches.remove(&content);
            node.leases.remove(&content);
            world.tell(
                host,
                swarm::Event::OriginEnded {
                    id: ContentId(content),
                    end: OriginEnd::Done,
                },
            );
            world.tell_lease_ended(host, content, stage::event::LeaseEnd::Done);
            return;
        }
        if fetching.under_way >= FETCH_AHEAD || fetching.next >= fetching.until {
            return;
        }
        if !fetching.open {
            let waits = fetching
                .refused
                .as_ref()
                .is_some_and(|refused| refused.waits(world.clock.now()));
            if waits || !asks_registry(world, host, content) {
                return;
            }
            if let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) {
                fetching.open = true;
            }
            continue;
        }
        let chunk = fetching.next;
        if fetching.slow.is_some() {
            return;
        }
        if let Some(takes) = slowness(world, content, chunk) {
            give_slowly(world, host, content, chunk, takes);
            return;
        }
        let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) else {
            return;
        };
        fetching.next += 1;
        fetching.under_way += 1;
        let goes_on = fetching.asked.replace(chunk) == chunk.checked_sub(1);
        let id = new_transfer(world, origin, host, content, chunk, Kind::Origin, None);
        if !goes_on && world.has_recipe(host, content) {
            world.transfers[id].bytes += BLOCK_BYTES / world.scale;
        }
        begin_transfer(world, id);
    }
}

/// A fetch of a range can't go on: without a recipe it can't begin, and what came may be false.
pub(super) fn give_range_back(world: &mut State, host: u32, content: u32) {
    abort_origin(world, host, content);
    let node = world.node_mut(host);
    node.fetches.remove(&content);
    node.leases.remove(&content);
    world.tell(
        host,
        swarm::Event::OriginEnded {
            id: ContentId(content),
            end: OriginEnd::Failed,
        },
    );
    world.tell_lease_ended(host, content, stage::event::LeaseEnd::Released);
}

/// A host stops a fetch: what is under way of it is lost.
pub(super) fn abort_origin(world: &mut State, host: u32, content: u32) {
    let under_way = world.transfers.find(|transfer| {
        transfer.kind == Kind::Origin && transfer.to == host && transfer.content == content
    });
    for id in under_way {
        drop_transfer(world, id);
    }
}

/// A fetch asks for its blob. Whether it is answered; else it tries again later.
fn asks_registry(world: &mut State, host: u32, content: u32) -> bool {
    let now = world.clock.now();
    if let Registry::Throttles { until, .. } = world.registry
        && until <= now
    {
        world.registry = Registry::Up;
    }
    if world.registry == Registry::Up && world.lacking == Some(content) {
        world.tally.refused += 1;
        let life = world.node(host).life;
        // its answer is on the way
        let again_at = now + 2 * world.setup.delay;
        if let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) {
            fetching.refused = Some(Refused {
                since: now,
                tries: 0,
                again_at,
                wish_until: None,
            });
        }
        world.at(
            again_at,
            Due::AskAgain {
                host,
                life,
                content,
            },
        );
        return false;
    }
    let wish_until = match &mut world.registry {
        Registry::Up => return true,
        Registry::Down => None,
        Registry::Throttles { until, told_at } => {
            let first = *told_at.get_or_insert(now);
            if now > first + WORD_SPREADS {
                world
                    .findings
                    .note("asked a registry that wants to be left alone");
            }
            Some(*until)
        }
    };
    world.tally.refused += 1;
    let jitter = world.random(1_000) as u64;
    let life = world.node(host).life;
    let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) else {
        return false;
    };
    let refused = fetching.refused.get_or_insert(Refused {
        since: now,
        tries: 0,
        again_at: 0,
        wish_until: None,
    });
    let whole = (RETRY.0 << refused.tries.min(16)).min(RETRY.1);
    let pause = whole / 2 + whole / 2_000 * jitter;
    refused.tries += 1;
    refused.wish_until = wish_until;
    refused.again_at = wish_until.unwrap_or(0).max(now + pause);
    let (again_at, trouble) = (refused.again_at, refused.trouble(now));
    world.at(
        again_at,
        Due::AskAgain {
            host,
            life,
            content,
        },
    );
    // an agent says so at once
    if let Some(chunks) = world.node(host).leases.get(&content).copied() {
        world.tell_plan_from(host, |world| stage::Event::LeaseProgress {
            range: world.node(host).ranges.get(&content).copied(),
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            chunks,
            bytes: 0,
            paced: false,
            trouble: Some(trouble),
        });
    }
    false
}

/// How long a chunk takes longer than the lines do: at the pace of a stream, or for connections that end.
fn slowness(world: &State, content: u32, chunk: u32) -> Option<Nanos> {
    let bytes = u64::from(
        world.specs[content as usize]
            .geometry
            .len(ChunkIndex(chunk)),
    );
    if let Some(rate) = world.stream_rate() {
        return Some(takes(bytes, rate));
    }
    let short = world.setup.scenario == Scenario::ShortConnections;
    let connections = (bytes * world.scale).div_ceil(CONNECTION_BYTES);
    let each = world.setup.delay * (HANDSHAKE_DELAYS + 2) + HANDSHAKE_WORK;
    short.then_some(connections * each)
}

fn give_slowly(world: &mut State, host: u32, content: u32, chunk: u32, takes: Nanos) {
    let (now, node) = (world.clock.now(), world.node_mut(host));
    let life = node.life;
    if let Some(fetching) = node.fetches.get_mut(&content) {
        fetching.slow = Some((chunk, now));
    }
    world.at(
        now + takes,
        Due::Given {
            host,
            life,
            content,
            chunk,
        },
    );
}

/// A chunk has come, slowly: its last bytes take the lines like any other's.
pub(super) fn given(world: &mut State, host: u32, life: u32, content: u32, chunk: u32) {
    let node = world.node_mut(host);
    let fetching = node.fetches.get_mut(&content).filter(|_| node.life == life);
    let Some(fetching) = fetching.filter(|fetching| {
        let of_it = fetching.slow.is_some_and(|(of, _)| of == chunk);
        of_it && fetching.next == chunk
    }) else {
        return;
    };
    fetching.slow = None;
    fetching.next += 1;
    fetching.under_way += 1;
    let origin = index(world.nodes.len());
    let id = new_transfer(world, origin, host, content, chunk, Kind::Origin, None);
    begin_transfer(world, id);
    pump_origin(world, host, content);
}

/// Bytes of the chunk that comes slowly.
pub(super) fn slow_part(world: &State, fetching: &Fetching) -> u64 {
    let Some((rate, (_, since))) = world.stream_rate().zip(fetching.slow) else {
        return 0;
    };
    u64::try_from(u128::from(rate) * u128::from(world.clock.now() - since) / 1_000_000_000)
        .unwrap_or(0)
}

/// A fetch ends amid a chunk: what came of it comes again, to somebody else.
pub(super) fn lose_part(world: &mut State, content: u32, fetching: Option<&Fetching>) {
    let part = fetching.map_or(0, |fetching| slow_part(world, fetching));
    let most = world.specs[content as usize].geometry.len(ChunkIndex(0));
    world.tally.origin_bytes += part.min(most.into());
}

/// Every stream breaks off.
pub(super) fn break_fetches(world: &mut State) {
    for host in 0..world.nodes.len() {
        let host = index(host);
        let contents: Vec<u32> = world.node(host).fetches.keys().copied().collect();
        for content in contents {
            abort_origin(world, host, content);
            if let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) {
                // what was under way is fetched again, if the registry comes back in time
                fetching.next = fetching.range.map_or(0, ChunkRange::from);
                fetching.under_way = 0;
                fetching.open = false;
                fetching.false_from = None;
            }
            pump_origin(world, host, content);
        }
    }
}

/// A host begins a run, under the ticket that it has.
pub(super) fn new_run(world: &mut State, maker: u32, content: u32) -> u32 {
    let ticket = world.node(maker).tickets.get(&content).copied();
    let run = Run {
        maker,
        // without a coordinator: its standing one, which is its own
        ticket: ticket.unwrap_or(u32::MAX - maker),
    };
    world.runs.push(run);
    index(world.runs.len() - 1)
}
