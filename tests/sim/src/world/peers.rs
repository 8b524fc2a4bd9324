//! What a swarm hears of its peers: connections, offers and requests.

use proto::ChunkIndex;
use swarm::event::{ContentId, Delivery, Failure};

use crate::network::TransferId;

use super::{
    act::feed,
    check::settle_request,
    due::Question,
    lines::{drop_transfer, end_transfer, not_arrived, reachable},
    rogue::{leaves_unanswered, rogue_answers},
    state::State,
};

/// An offer comes in. The swarm has to answer at once.
pub(super) fn offered(world: &mut State, id: TransferId) {
    let Some(transfer) = world.transfers.get(id) else {
        return;
    };
    let (from, to, content, chunk) = (
        transfer.from,
        transfer.to,
        ContentId(transfer.content),
        ChunkIndex(transfer.chunk),
    );
    if !world.stages(to, content.0) {
        end_transfer(world, id, Delivery::Unwanted, 0);
        return;
    }
    if !world.node(to).alive || !world.node(to).connected[from as usize] {
        drop_transfer(world, id);
        return;
    }
    if leaves_unanswered(world, id, to) {
        return;
    }
    let spread = world.transfers[id].spread.take();
    let ticket = world.ticket();
    world.offer = Some((ticket, id));
    let peer = world.node(from).key;
    feed(
        world,
        to,
        swarm::Event::Offered {
            ticket,
            peer,
            id: content,
            chunk,
            spread,
        },
    );
    if world.offer.take().is_some() {
        world.findings.note("an offer wasn't answered at once");
    }
}

/// A request comes in.
pub(super) fn asked(world: &mut State, question: Question) {
    let server = question.server;
    if !world.node(server).connected[question.asker as usize] {
        return;
    }
    if !world.stages(server, question.content) {
        not_arrived(world, &question, Failure::Missing);
        return;
    }
    let Some(question) = rogue_answers(world, question) else {
        return;
    };
    let ticket = world.ticket();
    let event = swarm::Event::Requested {
        ticket,
        peer: world.node(question.asker).key,
        id: ContentId(question.content),
        chunk: ChunkIndex(question.chunk),
    };
    world.questions.insert(ticket, question);
    feed(world, server, event);
}

/// A connection stands, if both ends still live and know each other; else the one that dialled hears that it failed.
pub(super) fn handshake(world: &mut State, a: u32, b: u32, lives: (u32, u32)) {
    if world.node(a).life != lives.0 || !world.node(a).alive {
        return;
    }
    // a host lets in only whom its roster names
    let welcome = world.node(b).life == lives.1
        && reachable(world, a, b)
        && world.node(b).roster[a as usize]
        && world.node(a).roster[b as usize];
    let (key_a, key_b) = (world.node(a).key, world.node(b).key);
    if !welcome {
        feed(world, a, swarm::Event::Disconnected(key_b));
        return;
    }
    if !world.node(a).connected[b as usize] {
        // a new line takes the place of one that died unnoticed
        for (one, other, key) in [(a, b, key_b), (b, a, key_a)] {
            if world.node(one).believes[other as usize] {
                world.node_mut(one).believes[other as usize] = false;
                feed(world, one, swarm::Event::Disconnected(key));
            }
        }
        world.node_mut(a).connected[b as usize] = true;
        world.node_mut(b).connected[a as usize] = true;
    }
    world.node_mut(a).believes[b as usize] = true;
    world.node_mut(b).believes[a as usize] = true;
    feed(world, a, swarm::Event::Connected(key_b));
    feed(world, b, swarm::Event::Connected(key_a));
}

/// A host notices that a connection is dead.
pub(super) fn line_dead(world: &mut State, host: u32, peer: u32, life: u32) {
    let node = world.node(host);
    if node.alive && node.life == life && !node.connected[peer as usize] {
        world.node_mut(host).believes[peer as usize] = false;
        let key = world.node(peer).key;
        feed(world, host, swarm::Event::Disconnected(key));
    }
}

/// The other end of a tar-pit's transfer gives it up.
pub(super) fn pit_given_up(world: &mut State, id: TransferId) {
    let Some(transfer) = world.transfers.get(id) else {
        return;
    };
    let (from, to, content, chunk) = (transfer.from, transfer.to, transfer.content, transfer.chunk);
    settle_request(world, to, from, content, chunk);
    let failed = swarm::Event::NotArrived {
        peer: world.node(from).key,
        id: ContentId(content),
        chunk: ChunkIndex(chunk),
        failure: Failure::Broken,
    };
    end_transfer(world, id, Delivery::Broken, 0);
    if world.node(to).alive {
        feed(world, to, failed);
    }
}
