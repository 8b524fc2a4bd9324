//! Swarms are fed with events, and what they want is done.
//!
//! Dropping chunks stands here too: a fetch that a swarm stops may take chunks back, and the swarm hears of each.

use proto::{ChunkIndex, ChunkSet, HostKey};
use rollout::stage::{self, event::LeaseEnd};
use swarm::{
    Action,
    action::Declined,
    event::{ContentId, Delivery, Failure, Spread, Ticket},
};

use super::{
    check::{check_announced, check_peer, check_request, check_shunned, count_upload},
    due::{Due, Message, Question},
    lines::{begin_transfer, break_line, cancel, dial, end_transfer, new_transfer, not_arrived},
    links::FalseLink,
    origin::{abort_origin, fetch, lose_part},
    rogue::is_mute,
    state::State,
    transfers::Kind,
};

/// Feeds one host's swarm, and carries out what it wants.
pub(super) fn feed(world: &mut State, host: u32, event: swarm::Event) {
    let moment = world.moment();
    world.node_mut(host).swarm.handle(moment, event);
    while let Some(action) = world.node_mut(host).swarm.poll() {
        act(world, host, action);
    }
    let next = world.node(host).swarm.next_timeout();
    if let Some(next) = next {
        let at = (next.0 * 1_000).max(world.clock.now() + 1_000);
        let node = world.node_mut(host);
        if at < node.timer_at {
            node.timer_at = at;
            let life = node.life;
            world.at(at, Due::Timer { host, life });
        }
    }
}

/// Does what one host's swarm wants.
fn act(world: &mut State, host: u32, action: Action) {
    match action {
        Action::Announce { .. } | Action::Push { .. } if is_mute(world, host) => {}
        Action::Dial(key) => dial(world, host, key),
        Action::HangUp(key) => {
            if let Some(peer) = world.find(key) {
                world.node_mut(host).believes[peer as usize] = false;
                break_line(world, host, peer, 0);
            }
        }
        Action::Request { peer, id, chunk } => request(world, host, peer, (id.0, chunk.0)),
        Action::Cancel { peer, id, chunk } => {
            if let Some(peer) = world.find(peer) {
                cancel(world, host, peer, id.0, chunk.0);
            }
        }
        Action::Push {
            peer,
            id,
            chunk,
            spread,
        } => push(world, host, peer, (id.0, chunk.0), spread),
        Action::Accept(ticket) => match world.offer.take() {
            Some((open, transfer)) if open == ticket => begin_transfer(world, transfer),
            _ => world.findings.note("accepted an offer that isn't open"),
        },
        Action::Decline(ticket, reason) => match world.offer.take() {
            Some((open, transfer)) if open == ticket => {
                world.tally.declined += 1;
                end_transfer(world, transfer, declined(reason), 0);
            }
            _ => world.findings.note("declined an offer that isn't open"),
        },
        Action::Serve(ticket) => serve(world, host, ticket),
        Action::Refuse(ticket, reason) => {
            if let Some(question) = world.questions.remove(&ticket) {
                not_arrived(world, &question, refused(reason));
            }
        }
        Action::Announce {
            peer,
            id,
            chunks,
            reset,
        } => announce(world, host, peer, id, chunks, reset),
        Action::AnnounceLoad {
            peer,
            backlog_bytes,
            upload_bytes_per_second,
        } => {
            if let Some(peer) = check_peer(world, host, peer)
                && world.node(host).connected[peer as usize]
            {
                let event = swarm::Event::Load {
                    peer: world.node(host).key,
                    backlog_bytes,
                    upload_bytes_per_second,
                };
                world.tell(peer, event);
            }
        }
        Action::Fetch { id, range, until } => fetch(world, host, id.0, (range, until.0)),
        Action::StopFetch(id) => {
            let fetching = world.node_mut(host).fetches.remove(&id.0);
            lose_part(world, id.0, fetching.as_ref());
            abort_origin(world, host, id.0);
            if fetching.is_some_and(|fetching| fetching.again) {
                take_all_back(world, host, id.0);
            }
        }
        Action::RangeDone(id) => {
            world.node_mut(host).leases.remove(&id.0);
            world.tell_lease_ended(host, id.0, LeaseEnd::Done);
        }
        Action::ReleaseLease(id) => {
            // as agents do it: who holds all of the content says so
            let node = world.node_mut(host);
            node.leases.remove(&id.0);
            let end = match node.held[id.0 as usize].is_full() {
                true => LeaseEnd::Done,
                false => LeaseEnd::Released,
            };
            world.tell_lease_ended(host, id.0, end);
        }
        Action::Report { peer, .. } => {
            if let Some(peer) = world.find(peer) {
                check_shunned(world, host, peer);
            }
        }
    }
}

/// A host asks a peer for a chunk.
fn request(world: &mut State, host: u32, key: HostKey, (content, chunk): (u32, u32)) {
    let Some(peer) = check_peer(world, host, key) else {
        return;
    };
    if !world.node(host).believes[peer as usize] {
        world
            .findings
            .note("request to a peer that isn't connected");
    }
    // over a line that is dead and not known to be, the request is lost
    if world.node(host).connected[peer as usize] {
        check_request(world, host, peer, content, chunk);
        world.send(Message::Ask(Question {
            asker: host,
            server: peer,
            content,
            chunk,
        }));
    }
}

/// A host offers a peer a chunk.
fn push(
    world: &mut State,
    host: u32,
    key: HostKey,
    (content, chunk): (u32, u32),
    spread: Option<Spread>,
) {
    let Some(peer) = check_peer(world, host, key) else {
        return;
    };
    if !world.node(host).believes[peer as usize] {
        world.findings.note("push to a peer that isn't connected");
    }
    if !world.node(host).connected[peer as usize] {
        return;
    }
    count_upload(world, host, content, chunk);
    let transfer = new_transfer(world, host, peer, content, chunk, Kind::Push, spread);
    world.send(Message::Offer(transfer));
}

/// A host sends a chunk that was requested.
fn serve(world: &mut State, host: u32, ticket: Ticket) {
    let Some(question) = world.questions.remove(&ticket) else {
        return;
    };
    let (content, chunk) = (question.content, question.chunk);
    count_upload(world, host, content, chunk);
    let answer = Kind::Answer(ticket);
    let transfer = new_transfer(world, host, question.asker, content, chunk, answer, None);
    begin_transfer(world, transfer);
}

/// What the sender hears of an offer that was declined.
const fn declined(reason: Declined) -> Delivery {
    match reason {
        Declined::Busy => Delivery::Busy,
        Declined::Already => Delivery::Already,
        Declined::Unwanted => Delivery::Unwanted,
        Declined::Missing | Declined::Quarantined | Declined::NotEntitled => Delivery::Broken,
    }
}

/// What the asker hears of a request that was refused.
const fn refused(reason: Declined) -> Failure {
    match reason {
        Declined::Busy => Failure::Busy,
        Declined::Missing => Failure::Missing,
        Declined::Already | Declined::Unwanted | Declined::Quarantined | Declined::NotEntitled => {
            Failure::Refused
        }
    }
}

/// A host tells a peer which chunks it holds.
fn announce(
    world: &mut State,
    host: u32,
    key: HostKey,
    id: ContentId,
    chunks: ChunkSet,
    reset: bool,
) {
    check_announced(world, host, id.0, &chunks);
    let Some(peer) = check_peer(world, host, key) else {
        return;
    };
    if !world.node(host).connected[peer as usize] {
        return;
    }
    if world.stages(peer, id.0) {
        let event = swarm::Event::Announced {
            peer: world.node(host).key,
            id,
            chunks,
            reset,
        };
        world.tell(peer, event);
    } else if world.is_mirrored(id.0) {
        world.mirrors.remember((host, peer), id.0, &chunks);
    }
}

/// A host drops a chunk, and its swarm hears of it.
pub(super) fn drop_chunk(world: &mut State, host: u32, content: u32, chunk: u32) {
    let staged = world.is_staged(content);
    let node = world.node_mut(host);
    if !node.held[content as usize].remove(ChunkIndex(chunk)) {
        return;
    }
    node.missing += u64::from(staged);
    if let Some(links) = node.false_links.get_mut(&content) {
        links.remove(&chunk);
    }
    feed(
        world,
        host,
        swarm::Event::ChunkLost {
            id: ContentId(content),
            chunk: ChunkIndex(chunk),
        },
    );
}

/// A host drops what this one made of a content from a chunk on.
pub(super) fn drop_made_by(world: &mut State, host: u32, content: u32, maker: u32, from: u32) {
    let node = world.node(host);
    if !node.alive {
        return;
    }
    let end = node.proved_from.get(content as usize).copied();
    let end = end.unwrap_or(0);
    let Some(sources) = node.sources.get(content as usize) else {
        return;
    };
    let chunks: Vec<u32> = (from..end)
        .filter(|chunk| {
            let run = sources[*chunk as usize];
            run.is_some_and(|run| world.runs[run as usize].maker == maker)
        })
        .collect();
    for chunk in chunks {
        drop_chunk(world, host, content, chunk);
    }
}

/// The registry's bytes don't come a second time after all. Nothing tells which of them were false, so the host drops
/// all that it made of them.
fn take_all_back(world: &mut State, host: u32, content: u32) {
    let false_links = world.node(host).false_links.get(&content);
    let made = |link: &FalseLink| world.runs[link.run as usize].maker == host;
    let own = false_links.is_some_and(|links| links.values().any(made));
    if own {
        world.tell_plan_from(host, |world| stage::Event::Retracted {
            host: world.node(host).id.clone(),
            content: world.specs[content as usize].digest,
            from: 0,
        });
        drop_made_by(world, host, content, host, 0);
    }
}
