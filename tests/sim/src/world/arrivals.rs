//! What comes in from peers and from the registry, and what a host makes of it.

use proto::ChunkIndex;
use rollout::stage::event::{Fault, LeaseEnd};
use swarm::event::{ContentId, Delivery, Failure, OriginEnd};

use crate::{
    network::{Nanos, TransferId},
    scenario::Rogue,
};

use super::{
    act::{drop_chunk, feed},
    check::{check_installed, check_sequence, settle_request},
    lies::{chosen_lie, refuted, show_makers, signed, suspect, take_back},
    lines::{drop_transfer, end_transfer, finish_transfer, queue_piece, start_piece},
    links::{FalseLink, Lie},
    mirror::client_served,
    node::{Fetching, JOURNAL_LAG},
    origin::{give_range_back, new_run, pump_origin},
    registry::Registry,
    rogue::{blame, doubt_recipe},
    state::State,
    transfers::Kind,
};

/// An agent that got nothing for so long gives a fetch up.
const GIVE_UP_AFTER: Nanos = 60_000_000_000;

/// A piece of a transfer came in: the next one is sent, or all of the transfer is here.
pub(super) fn piece_came(world: &mut State, id: TransferId) {
    let Some(transfer) = world.transfers.get(id) else {
        return;
    };
    let (from, queued, came) = (transfer.from, transfer.queued, transfer.came + 1);
    world.transfers[id].came = came;
    if came == world.pieces {
        completed(world, id);
    } else if queued < world.pieces {
        queue_piece(world, id);
        start_piece(world, from);
    }
}

/// All of a transfer came in.
fn completed(world: &mut State, id: TransferId) {
    let Some(transfer) = world.transfers.get(id) else {
        return;
    };
    let (from, to, content, chunk, kind, bytes) = (
        transfer.from,
        transfer.to,
        transfer.content,
        transfer.chunk,
        transfer.kind,
        transfer.bytes,
    );
    if kind == Kind::Origin {
        drop_transfer(world, id);
        world.tally.origin_bytes += bytes;
        take_from_origin(world, to, content, chunk);
        return;
    }
    world.tally.peer_bytes += bytes;
    world.tally.arrived += 1;
    if matches!(kind, Kind::Answer(_)) {
        world.tally.pulled += 1;
        settle_request(world, to, from, content, chunk);
    }
    let lie = if world.lies {
        chosen_lie(world, from, to, content, chunk)
    } else {
        Lie::None
    };
    let peer = world.node(from).key;
    let (content_id, chunk_index) = (ContentId(content), ChunkIndex(chunk));
    let (run, false_link) = signed(world, from, content, chunk, lie);
    if let Some(failure) = refuted(world, to, content, chunk, lie, run, false_link) {
        if failure == Failure::Bad {
            blame(world, to, from);
        }
        feed(
            world,
            to,
            swarm::Event::NotArrived {
                peer,
                id: content_id,
                chunk: chunk_index,
                failure,
            },
        );
        end_transfer(world, id, Delivery::Bad, bytes);
        return;
    }
    store(world, to, content, chunk, run, false_link);
    feed(
        world,
        to,
        swarm::Event::Arrived {
            peer,
            id: content_id,
            chunk: chunk_index,
            wire_bytes: bytes,
        },
    );
    // the sender's next upload doesn't wait for the acknowledgement: others are under way
    if let Some((from, event)) = finish_transfer(world, id, Delivery::Stored, bytes)
        && world.node(from).alive
    {
        feed(world, from, event);
    }
    close(world, to, content);
}

fn take_from_origin(world: &mut State, host: u32, content: u32, chunk: u32) {
    if !world.node(host).alive {
        return;
    }
    let geometry = world.specs[content as usize].geometry;
    let (chunks, wire_bytes) = (geometry.chunks(), geometry.len(ChunkIndex(chunk)).into());
    let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) else {
        return;
    };
    fetching.under_way -= 1;
    let last = chunk + 1 == chunks;
    let (run, again) = (fetching.run, fetching.again);
    let false_bytes = fetching.false_from.is_some_and(|from| chunk >= from);
    // what stands before it is false, and it goes on from that without knowing
    let before = chunk.checked_sub(1).filter(|_| !again);
    let links = world.node(host).false_links.get(&content);
    let base = before.and_then(|before| links?.get(&before).copied());
    let false_link = match (false_bytes, base) {
        (_, Some(base)) => {
            // its own judgement is that of the link which its run went on from, and no further
            let one_run = base.run == run;
            let first_hand = base.guilty == Some(world.runs[base.run as usize].maker);
            let guilty = base.guilty.filter(|_| one_run || first_hand);
            Some(FalseLink {
                run,
                guilty,
                ..base
            })
        }
        (true, None) => Some(FalseLink {
            run,
            guilty: Some(host),
            registry: true,
        }),
        (false, None) => None,
    };
    // false bytes don't fit the recipe; a liar says so of true ones
    let node = world.node(host);
    if false_link.is_some() || node.liar || node.is_rogue(Rogue::Doubt) {
        doubt_recipe(world, host, content, chunk);
    }
    let ranged = world.node(host).ranges.contains_key(&content);
    if false_link.is_some() && ranged {
        give_range_back(world, host, content);
        return;
    }
    if false_link.is_some() && last {
        let run = new_run(world, host, content);
        let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) else {
            return;
        };
        // the chain doesn't end in the digest: everything is fetched again
        *fetching = Fetching {
            run,
            next: 0,
            again: true,
            false_from: None,
            open: false,
            refused: None,
            ..*fetching
        };
        pump_origin(world, host, content);
        return;
    }
    if let Some(fetching) = world.node_mut(host).fetches.get_mut(&content) {
        fetching.refused = None;
    }
    if again {
        take_back(world, host, content, chunk);
        // what is held and true is signed once more
        if let Some(runs) = world.node_mut(host).sources.get_mut(content as usize) {
            runs[chunk as usize] = Some(run);
        }
    }
    if let Some(fetched) = world.node_mut(host).leases.get_mut(&content) {
        *fetched += 1;
    }
    store(world, host, content, chunk, Some(run), false_link);
    if chunk == 0 {
        world.mirrors.began(world.clock.now(), host, content);
    }
    feed(
        world,
        host,
        swarm::Event::OriginChunk {
            id: ContentId(content),
            chunk: ChunkIndex(chunk),
            wire_bytes,
        },
    );
    close(world, host, content);
    pump_origin(world, host, content);
}

/// Enters a chunk at a host: its bytes fit its link, true or not.
fn store(
    world: &mut State,
    host: u32,
    content: u32,
    chunk: u32,
    run: Option<u32>,
    false_link: Option<FalseLink>,
) {
    let now = world.clock.now();
    let (lies, staged) = (world.lies, world.is_staged(content));
    let node = world.node_mut(host);
    if !node.held[content as usize].insert(ChunkIndex(chunk)) {
        return;
    }
    node.missing -= u64::from(staged);
    node.grown_at = now;
    if node.keeps_recent {
        node.recent.push_back((now, content, chunk));
        while node
            .recent
            .front()
            .is_some_and(|(at, ..)| *at + JOURNAL_LAG < now)
        {
            node.recent.pop_front();
        }
    }
    if lies {
        node.sources[content as usize][chunk as usize] = run;
        if let Some(link) = false_link {
            node.false_links
                .entry(content)
                .or_default()
                .insert(chunk, link);
        }
    }
    world.client_hears(host, content);
}

/// Once all of a content is there, the chain is walked back from the digest. The first false link has its maker's
/// signature, and everything before it from the same maker is dropped. When the chain is closed, those who made false
/// links are shown to the coordinator.
fn close(world: &mut State, host: u32, content: u32) {
    while world.node(host).held[content as usize].is_full() {
        let false_link = world
            .node(host)
            .false_links
            .get(&content)
            .and_then(|links| links.last_key_value())
            .map(|(chunk, link)| (*chunk, *link));
        let Some((top, link)) = false_link else {
            if let Some(proved) = world.node_mut(host).proved_from.get_mut(content as usize) {
                *proved = 0;
            }
            show_makers(world, host, content);
            note_whole(world, host, content);
            maybe_finished(world, host);
            return;
        };
        suspect(world, host, content, link);
        let of = world.runs[link.run as usize];
        let node = world.node_mut(host);
        node.proved_from[content as usize] = top + 1;
        let node = world.node(host);
        let dropped: Vec<u32> = (0..=top)
            .filter(|chunk| {
                let run = node.sources[content as usize][*chunk as usize];
                run.is_some_and(|run| world.runs[run as usize] == of)
            })
            .collect();
        for chunk in dropped {
            drop_chunk(world, host, content, chunk);
        }
    }
}

/// All of a content is there: perhaps of its image too.
fn note_whole(world: &mut State, host: u32, content: u32) {
    let image = world.specs[content as usize].image;
    let mut of_it = (0..)
        .zip(&world.specs)
        .filter(|(_, spec)| spec.image == image);
    let node = world.node(host);
    if node.whole_at[image].is_none() && of_it.all(|(at, _): (usize, _)| node.held[at].is_full()) {
        let now = world.clock.now();
        world.node_mut(host).whole_at[image] = Some(now);
        check_sequence(world, host, image);
    }
    client_served(world, host, content);
}

fn maybe_finished(world: &mut State, host: u32) {
    let now = world.clock.now();
    let node = world.node_mut(host);
    if node.missing > 0 {
        return;
    }
    let false_left = node.false_links.values().any(|links| !links.is_empty());
    if false_left {
        return;
    }
    if node.finished_at.is_none() {
        node.finished_at = Some(now);
        if node.wanted {
            world.unfinished -= 1;
        }
    }
    check_installed(world, host);
}

/// The registry answers that it doesn't have this.
fn lacks(world: &mut State, host: u32, content: u32) {
    let node = world.node_mut(host);
    node.fetches.remove(&content);
    node.leases.remove(&content);
    feed(
        world,
        host,
        swarm::Event::OriginEnded {
            id: ContentId(content),
            end: OriginEnd::Failed,
        },
    );
    world.tell_lease_ended(host, content, LeaseEnd::Faulty(Fault::Missing));
}

/// The pause of a refused fetch is over, if it still runs.
pub(super) fn ask_again(world: &mut State, host: u32, life: u32, content: u32) {
    let now = world.clock.now();
    let missing = world.registry == Registry::Up && world.lacking == Some(content);
    let node = world.node_mut(host);
    if node.life != life || !node.alive {
        return;
    }
    let Some(refused) = node
        .fetches
        .get(&content)
        .and_then(|fetching| fetching.refused.as_ref())
        .filter(|refused| refused.again_at <= now)
    else {
        return;
    };
    let (since, wishes) = (refused.since, refused.wish_until.is_some());
    if missing {
        lacks(world, host, content);
        return;
    }
    if now < since + GIVE_UP_AFTER || wishes {
        pump_origin(world, host, content);
        return;
    }
    let node = world.node_mut(host);
    node.fetches.remove(&content);
    node.leases.remove(&content);
    feed(
        world,
        host,
        swarm::Event::OriginEnded {
            id: ContentId(content),
            end: OriginEnd::Failed,
        },
    );
    world.tell_lease_ended(host, content, LeaseEnd::OriginFailed);
}
