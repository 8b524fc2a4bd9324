//! Connections between hosts, and the transfers that they carry.
//!
//! Nothing in this file feeds a swarm. What a swarm is to hear of a transfer is sent to its host.

use proto::{ChunkIndex, HostKey};
use swarm::event::{ContentId, Delivery, Failure, Spread};

use crate::network::{Nanos, TransferId, takes};

use super::{
    check::{check_peer, settle_request, settle_requests_of},
    due::{Due, Question},
    node::Pit,
    state::State,
    transfers::{Kind, Transfer},
};

/// Pieces of one transfer under way at one time: one goes out while the one before comes in.
const PIECES_UNDER_WAY: u32 = 2;
/// A broken connection is noticed after this long.
pub(super) const NOTICED_AFTER: Nanos = 3_000_000_000;
/// A handshake takes this many one-way delays, and some work.
pub(super) const HANDSHAKE_DELAYS: u64 = 4;
pub(super) const HANDSHAKE_WORK: Nanos = 1_000_000;
/// A transfer that goes byte by byte is given up by its receiver after this long, by its sender after twice as long.
pub(super) const STUCK_AFTER: Nanos = 5_000_000_000;

/// A host opens a connection. Both ends hear when it stands.
pub(super) fn dial(world: &mut State, host: u32, key: HostKey) {
    let Some(peer) = check_peer(world, host, key) else {
        return;
    };
    let lives = (world.node(host).life, world.node(peer).life);
    if reachable(world, host, peer) {
        let at = world.clock.now() + world.setup.delay * HANDSHAKE_DELAYS + HANDSHAKE_WORK;
        world.at(
            at,
            Due::Handshake {
                a: host,
                b: peer,
                lives,
            },
        );
    } else {
        world.at(
            world.clock.now() + NOTICED_AFTER,
            Due::LineDead {
                host,
                peer,
                life: lives.0,
            },
        );
    }
}

/// Whether a packet of one host reaches the other.
pub(super) fn reachable(world: &State, a: u32, b: u32) -> bool {
    let split = world.nodes.len() / 2;
    world.node(b).alive
        && world.node(a).alive
        && !(world.cut && ((a as usize) < split) != ((b as usize) < split))
}

/// Takes the connection down. Both ends notice it so long after the delay of the network.
pub(super) fn break_line(world: &mut State, host: u32, peer: u32, noticed_after: Nanos) {
    if !world.node(host).connected[peer as usize] {
        return;
    }
    world.node_mut(host).connected[peer as usize] = false;
    world.node_mut(peer).connected[host as usize] = false;
    let between = world.transfers.find(|transfer| {
        (transfer.from, transfer.to) == (host, peer) || (transfer.from, transfer.to) == (peer, host)
    });
    for id in between {
        drop_transfer(world, id);
    }
    world.questions.retain(|_, question| {
        (question.asker, question.server) != (host, peer)
            && (question.asker, question.server) != (peer, host)
    });
    settle_requests_of(world, host, peer);
    settle_requests_of(world, peer, host);
    for (one, other) in [(host, peer), (peer, host)] {
        let life = world.node(one).life;
        world.at(
            world.clock.now() + world.setup.delay + noticed_after,
            Due::LineDead {
                host: one,
                peer: other,
                life,
            },
        );
    }
}

/// A chunk is to go from one host, or the registry, to another host.
pub(super) fn new_transfer(
    world: &mut State,
    from: u32,
    to: u32,
    content: u32,
    chunk: u32,
    kind: Kind,
    spread: Option<Spread>,
) -> TransferId {
    let bytes = u64::from(
        world.specs[content as usize]
            .geometry
            .len(ChunkIndex(chunk)),
    );
    world.transfers.add(Transfer {
        from,
        to,
        content,
        chunk,
        kind,
        spread,
        bytes,
        begun: false,
        queued: 0,
        came: 0,
    })
}

/// What a host requested doesn't come. The host is told.
pub(super) fn not_arrived(world: &mut State, question: &Question, failure: Failure) {
    settle_request(
        world,
        question.asker,
        question.server,
        question.content,
        question.chunk,
    );
    let peer = world.node(question.server).key;
    world.tell(
        question.asker,
        swarm::Event::NotArrived {
            peer,
            id: ContentId(question.content),
            chunk: ChunkIndex(question.chunk),
            failure,
        },
    );
}

/// A transfer's first pieces go to the sender's line.
pub(super) fn begin_transfer(world: &mut State, id: TransferId) {
    let from = {
        let transfer = &mut world.transfers[id];
        transfer.begun = true;
        transfer.from
    };
    if falls_into_pit(world, id) {
        return;
    }
    for _ in 0..PIECES_UNDER_WAY.min(world.pieces) {
        queue_piece(world, id);
    }
    start_piece(world, from);
}

/// Whether a tar-pit at one end holds the transfer up.
fn falls_into_pit(world: &mut State, id: TransferId) -> bool {
    let transfer = &world.transfers[id];
    let (from, to, kind) = (transfer.from, transfer.to, transfer.kind);
    if kind == Kind::Origin {
        return false;
    }
    let after = match (world.node(from).pit, world.node(to).pit) {
        (Some(Pit::Sender), None) => STUCK_AFTER,
        (None, Some(Pit::Reader)) => 2 * STUCK_AFTER,
        _ => return false,
    };
    world.at(world.clock.now() + after, Due::Stuck(id));
    if world.node(from).pit == Some(Pit::Sender) {
        // it goes on to the next
        let transfer = &world.transfers[id];
        let event = swarm::Event::Sent {
            peer: world.node(to).key,
            id: ContentId(transfer.content),
            chunk: ChunkIndex(transfer.chunk),
            ticket: kind.ticket(),
            delivery: Delivery::Stored,
            wire_bytes: transfer.bytes,
            work_bytes: transfer.bytes,
        };
        world.tell(from, event);
    }
    true
}

/// A transfer's next piece waits for the sender's line.
pub(super) fn queue_piece(world: &mut State, id: TransferId) {
    let transfer = &mut world.transfers[id];
    transfer.queued += 1;
    let from = transfer.from;
    world.uplinks[from as usize].queue.push_back(id);
}

/// The line takes its next piece, if it is idle.
pub(super) fn start_piece(world: &mut State, line: u32) {
    if world.uplinks[line as usize].busy {
        return;
    }
    while let Some(id) = world.uplinks[line as usize].queue.pop_front() {
        let Some((to, bytes)) = world
            .transfers
            .get(id)
            .map(|transfer| (transfer.to, transfer.bytes))
        else {
            continue;
        };
        let bytes = bytes.div_ceil(u64::from(world.pieces));
        let uplink = &mut world.uplinks[line as usize];
        let out = takes(bytes, uplink.rate);
        uplink.busy = true;
        uplink.used += out;
        let delay = world.setup.delay;
        let (first, last) = (world.clock.now() + delay, world.clock.now() + out + delay);
        let came = world.node_mut(to).down.take(first, last, bytes);
        world.at(world.clock.now() + out, Due::UplinkFree(line));
        world.at(came, Due::Piece(id));
        return;
    }
}

/// A transfer is over without a chunk that the receiver took. Its sender is told.
pub(super) fn end_transfer(world: &mut State, id: TransferId, delivery: Delivery, wire_bytes: u64) {
    if let Some((from, event)) = finish_transfer(world, id, delivery, wire_bytes) {
        world.tell(from, event);
    }
}

/// A transfer is over. Returns its sender, and what that is to hear. `None`: it was over already.
pub(super) fn finish_transfer(
    world: &mut State,
    id: TransferId,
    delivery: Delivery,
    wire_bytes: u64,
) -> Option<(u32, swarm::Event)> {
    let transfer = world.transfers.get(id)?;
    let from = transfer.from;
    let event = swarm::Event::Sent {
        peer: world.node(transfer.to).key,
        id: ContentId(transfer.content),
        chunk: ChunkIndex(transfer.chunk),
        ticket: transfer.kind.ticket(),
        delivery,
        wire_bytes,
        work_bytes: wire_bytes,
    };
    drop_transfer(world, id);
    Some((from, event))
}

/// A transfer is over, and nobody hears of it.
pub(super) fn drop_transfer(world: &mut State, id: TransferId) {
    let Some(transfer) = world.transfers.remove(id) else {
        return;
    };
    let (from, to, kind) = (transfer.from, transfer.to, transfer.kind);
    let (content, chunk) = (transfer.content, transfer.chunk);
    if kind != Kind::Origin {
        let node = world.node_mut(from);
        node.uploads = node.uploads.saturating_sub(1);
    }
    if matches!(kind, Kind::Answer(_)) {
        settle_request(world, to, from, content, chunk);
    }
}

/// A host doesn't want a chunk any more that it requested from this peer.
pub(super) fn cancel(world: &mut State, host: u32, peer: u32, content: u32, chunk: u32) {
    settle_request(world, host, peer, content, chunk);
    let found = world.transfers.find(|transfer| {
        transfer.kind != Kind::Origin
            && transfer.begun
            && (transfer.from, transfer.to) == (peer, host)
            && (transfer.content, transfer.chunk) == (content, chunk)
    });
    if let Some(id) = found.first() {
        let held = world.node(host).held[content as usize].contains(ChunkIndex(chunk));
        let delivery = if held {
            Delivery::Already
        } else {
            Delivery::Broken
        };
        end_transfer(world, *id, delivery, 0);
        return;
    }
    let ticket = world
        .questions
        .iter()
        .filter(|(_, question)| {
            (question.asker, question.server) == (host, peer)
                && (question.content, question.chunk) == (content, chunk)
        })
        .map(|(ticket, _)| *ticket)
        .min();
    if let Some(ticket) = ticket {
        world.questions.remove(&ticket);
        world.tell(peer, swarm::Event::Withdrawn(ticket));
    }
}
