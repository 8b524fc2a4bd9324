//! The whole swarm through its door: events in, actions out.

mod any_event;
mod asking;
mod budgets;
mod entitled;
mod losing;
mod pushing;
mod ranges;
mod rogues;
mod wants;

use std::{collections::BTreeSet, sync::Arc, vec};

use proptest::prelude::*;

use super::*;
use crate::{
    Stall,
    action::Declined,
    event::{OriginEnd, Peer as Entry, order_of},
};

const ME: HostKey = HostKey(1_000);
const CHUNK: u64 = proto::CHUNK_BYTES;

fn key(peer: u64) -> HostKey {
    HostKey(2_000 + peer)
}

fn roster(count: u64) -> Event {
    Event::Roster(
        (0..count)
            .map(|peer| Entry {
                key: key(peer),
                zone: 0,
                neighbour: true,
            })
            .collect(),
    )
}

fn content(id: u32, chunks: u32, held: ChunkSet) -> Event {
    Event::Content {
        id: ContentId(id),
        key: u64::from(id) * 77,
        size: u64::from(chunks) * CHUNK,
        held,
        order: id,
        entitled: None,
    }
}

fn at(millis: u64) -> Moment {
    Moment(millis * 1_000)
}

/// A swarm among `peers` connected neighbours.
fn among(peers: u64, config: Config) -> Swarm {
    let mut swarm = Swarm::new(ME, config, 7);
    swarm.handle(at(0), Event::Coordinator(true));
    swarm.handle(at(0), roster(peers));
    for peer in 0..peers {
        swarm.handle(at(0), Event::Connected(key(peer)));
    }
    drain(&mut swarm);
    swarm
}

fn drain(swarm: &mut Swarm) -> Vec<Action> {
    core::iter::from_fn(|| swarm.poll()).collect()
}

fn feed(swarm: &mut Swarm, millis: u64, event: Event) -> Vec<Action> {
    swarm.handle(at(millis), event);
    drain(swarm)
}

fn set(chunks: u32, of: impl IntoIterator<Item = u32>) -> ChunkSet {
    let mut set = ChunkSet::empty(chunks);
    for chunk in of {
        set.insert(ChunkIndex(chunk));
    }
    set
}

fn announced(peer: u64, id: u32, chunks: ChunkSet) -> Event {
    Event::Announced {
        peer: key(peer),
        id: ContentId(id),
        chunks,
        reset: true,
    }
}

fn offered(ticket: u64, peer: u64, chunk: u32, spread: Option<Spread>) -> Event {
    Event::Offered {
        ticket: Ticket(ticket),
        peer: key(peer),
        id: ContentId(0),
        chunk: ChunkIndex(chunk),
        spread,
    }
}

fn arrived(peer: u64, chunk: u32) -> Event {
    Event::Arrived {
        peer: key(peer),
        id: ContentId(0),
        chunk: ChunkIndex(chunk),
        wire_bytes: CHUNK,
    }
}

fn sent(peer: HostKey, chunk: u32, delivery: Delivery) -> Event {
    Event::Sent {
        peer,
        id: ContentId(0),
        chunk: ChunkIndex(chunk),
        ticket: None,
        delivery,
        wire_bytes: CHUNK,
        work_bytes: CHUNK,
    }
}

fn requests(actions: &[Action]) -> Vec<(HostKey, u32)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Request { peer, chunk, .. } => Some((*peer, chunk.0)),
            _ => None,
        })
        .collect()
}

fn pushes(actions: &[Action]) -> Vec<(HostKey, u32, bool)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Push {
                peer,
                chunk,
                spread,
                ..
            } => Some((*peer, chunk.0, spread.is_some())),
            _ => None,
        })
        .collect()
}

#[test]
fn nothing_is_fetched_without_a_lease() {
    let mut swarm = among(3, Config::default());
    let mut actions = feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for second in 1..60 {
        actions.extend(feed(&mut swarm, second * 1_000, Event::Tick));
    }
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::Fetch { .. }))
    );
    let status = swarm.status(at(60_000));
    assert_eq!(status.contents[0].stall, Some(Stall::AwaitingLease));
}

#[test]
fn a_lease_is_fetched_window_by_window_while_chunks_are_handed_on() {
    let config = Config {
        lease_window: 4,
        ..Config::default()
    };
    let mut swarm = among(3, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let actions = feed(&mut swarm, 1, Event::Leased(ContentId(0)));
    assert!(actions.contains(&Action::Fetch {
        id: ContentId(0),
        range: None,
        until: ChunkIndex(4)
    }));
    let mut later = Vec::new();
    for chunk in 0..4 {
        later.extend(feed(
            &mut swarm,
            2,
            Event::OriginChunk {
                id: ContentId(0),
                chunk: ChunkIndex(chunk),
                wire_bytes: CHUNK,
            },
        ));
    }
    let handed = pushes(&later);
    assert!(!handed.is_empty(), "{later:?}");
    assert!(handed.iter().any(|(_, _, spread)| *spread));
    assert!(
        !later
            .iter()
            .any(|action| matches!(action, Action::Fetch { .. })),
        "nothing more while four chunks wait"
    );
    assert!(swarm.status(at(2)).contents[0].paced);
    let (peer, chunk, _) = handed[0];
    let actions = feed(&mut swarm, 3, sent(peer, chunk, Delivery::Stored));
    assert!(actions.contains(&Action::Fetch {
        id: ContentId(0),
        range: None,
        until: ChunkIndex(5)
    }));
}

#[test]
fn what_a_peer_holds_is_asked_of_it_and_not_of_the_registry() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, announced(0, 0, set(64, 0..8)));
    let mut actions = feed(&mut swarm, 1, Event::Leased(ContentId(0)));
    actions.extend(feed(&mut swarm, 300, Event::Tick));
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::Fetch { .. }))
    );
    assert!(!requests(&actions).is_empty());
}

#[test]
fn without_a_coordinator_one_host_of_all_takes_a_content() {
    let peers = 6;
    let mut takers = 0;
    for me in 0..peers {
        let mut swarm = Swarm::new(key(me), Config::default(), me);
        let entries = (0..peers)
            .filter(|peer| *peer != me)
            .map(|peer| Entry {
                key: key(peer),
                zone: 0,
                neighbour: true,
            })
            .collect();
        swarm.handle(at(0), Event::Coordinator(true));
        swarm.handle(at(0), Event::Roster(entries));
        for peer in 0..peers {
            swarm.handle(at(0), Event::Connected(key(peer)));
        }
        swarm.handle(at(0), content(0, 64, ChunkSet::empty(64)));
        swarm.handle(at(1_000), Event::Coordinator(false));
        drain(&mut swarm);
        let mut actions = Vec::new();
        for step in 4..80 {
            let millis = step * 250;
            let now = feed(&mut swarm, millis, Event::Tick);
            if millis < 16_000 {
                assert!(
                    !now.iter()
                        .any(|action| matches!(action, Action::Fetch { .. }))
                );
            }
            actions.extend(now);
        }
        takers += u32::from(
            actions
                .iter()
                .any(|action| matches!(action, Action::Fetch { .. })),
        );
        if swarm.status(at(20_000)).contents[0].leased {
            let actions = feed(&mut swarm, 21_000, Event::Coordinator(true));
            assert!(actions.contains(&Action::StopFetch(ContentId(0))));
        }
    }
    assert_eq!(takers, 1);
}

#[test]
fn without_a_coordinator_a_registry_that_failed_is_asked_again_and_false_bytes_are_not() {
    for (end, again) in [(OriginEnd::Failed, 1), (OriginEnd::Bad, 0)] {
        let mut swarm = among(0, Config::default());
        feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
        feed(&mut swarm, 0, Event::Coordinator(false));
        let fetches = |swarm: &mut Swarm, seconds: core::ops::Range<u64>| {
            let mut fetches = 0;
            for second in seconds {
                let actions = feed(swarm, second * 1_000, Event::Tick);
                let fetch = |action: &&Action| matches!(action, Action::Fetch { .. });
                fetches += actions.iter().filter(fetch).count();
            }
            fetches
        };
        assert_eq!(fetches(&mut swarm, 1..60), 1);
        let id = ContentId(0);
        feed(&mut swarm, 60_000, Event::OriginEnded { id, end });
        assert_eq!(fetches(&mut swarm, 61..119), 0);
        assert_eq!(fetches(&mut swarm, 119..200), again);
    }
}
