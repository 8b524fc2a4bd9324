mod rogues;
mod wants;

use std::{collections::BTreeSet, sync::Arc, vec};

use proptest::prelude::*;

use super::*;
use crate::{
    Stall,
    action::Declined,
    event::{OriginEnd, Peer as Entry},
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
fn a_chunk_is_handed_to_the_host_with_the_least_to_do() {
    let mut swarm = among(3, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for (peer, backlog_bytes) in [(0, 500 * CHUNK), (1, 0), (2, 500 * CHUNK)] {
        feed(
            &mut swarm,
            0,
            Event::Load {
                peer: key(peer),
                backlog_bytes,
                upload_bytes_per_second: 117_000_000,
            },
        );
    }
    // our own uplink has as much to do
    swarm.backlog_bytes = 500 * CHUNK;
    feed(&mut swarm, 1, Event::Leased(ContentId(0)));
    let actions = feed(
        &mut swarm,
        1,
        Event::OriginChunk {
            id: ContentId(0),
            chunk: ChunkIndex(0),
            wire_bytes: CHUNK,
        },
    );
    assert_eq!(pushes(&actions), [(key(1), 0, true)]);
}

#[test]
fn a_boaster_isnt_handed_every_chunk() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let load = |peer, upload_bytes_per_second| Event::Load {
        peer: key(peer),
        backlog_bytes: 200 * CHUNK,
        upload_bytes_per_second,
    };
    feed(&mut swarm, 1, load(0, u64::MAX));
    let honest = Config::default().assumed_rate_bytes_per_second;
    feed(&mut swarm, 1, load(1, honest));
    // at 117 MB/s, 200 chunks take 1.8 s; at four times that, 0.45 s
    let left = |swarm: &Swarm, peer: u64| {
        let index = swarm.find(key(peer)).unwrap();
        swarm.peers[index.at()].outstanding_us(swarm.now, 0)
    };
    let (boaster, honest) = (left(&swarm, 0), left(&swarm, 1));
    assert!((boaster + 1) * 4 >= honest, "{boaster} {honest}");
    assert!(boaster * 3 < honest, "{boaster} {honest}");
}

#[test]
fn a_spreader_pushes_to_all_but_who_gave_it_the_chunk() {
    let mut swarm = among(4, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let actions = feed(&mut swarm, 1, offered(1, 2, 5, Some(Spread::Everyone)));
    assert_eq!(actions, [Action::Accept(Ticket(1))]);
    let actions = feed(&mut swarm, 2, arrived(2, 5));
    let to: BTreeSet<HostKey> = pushes(&actions).iter().map(|(peer, ..)| *peer).collect();
    assert_eq!(to, BTreeSet::from([key(0), key(1), key(3)]));
}

#[test]
fn a_spread_is_taken_over_with_a_chunk_that_is_held_already() {
    let mut swarm = among(3, Config::default());
    feed(&mut swarm, 0, content(0, 64, set(64, [5])));
    let actions = feed(&mut swarm, 1, offered(1, 0, 5, Some(Spread::Everyone)));
    assert!(actions.contains(&Action::Decline(Ticket(1), Declined::Already)));
    assert_eq!(pushes(&actions).len(), 2);
}

#[test]
fn a_receiver_takes_only_so_many_pushes() {
    let mut swarm = among(10, Config::default());
    let bound = u64::try_from(Config::default().incoming).unwrap();
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for ticket in 0..bound {
        let chunk = u32::try_from(ticket).unwrap();
        let actions = feed(&mut swarm, 1, offered(ticket, ticket, chunk, None));
        assert_eq!(actions, [Action::Accept(Ticket(ticket))]);
    }
    let actions = feed(&mut swarm, 1, offered(99, 9, 60, None));
    assert_eq!(actions, [Action::Decline(Ticket(99), Declined::Busy)]);
}

#[test]
fn one_peer_takes_only_its_share_of_places() {
    let config = Config::default();
    let share = u64::try_from(config.incoming_per_peer).unwrap();
    let mut swarm = among(2, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for ticket in 0..share {
        let chunk = u32::try_from(ticket).unwrap();
        let actions = feed(&mut swarm, 1, offered(ticket, 0, chunk, None));
        assert_eq!(actions, [Action::Accept(Ticket(ticket))]);
    }
    let more = feed(&mut swarm, 2, offered(10, 0, 10, Some(Spread::Everyone)));
    assert_eq!(more, [Action::Decline(Ticket(10), Declined::Busy)]);
    let other = feed(&mut swarm, 3, offered(11, 1, 10, None));
    assert_eq!(other, [Action::Accept(Ticket(11))]);
    let actions = feed(&mut swarm, 4, arrived(0, 0));
    assert_eq!(actions, []);
    let again = feed(&mut swarm, 5, offered(12, 0, 11, None));
    assert_eq!(again, [Action::Accept(Ticket(12))]);
}

#[test]
fn a_push_that_dribbles_is_overtaken_and_makes_no_room_for_the_next() {
    let config = Config::default();
    let limit = (config.push_assumed * config.timeout_factor * 2).min(config.limit_most);
    let limit = u64::try_from(limit.as_millis()).unwrap();
    let slow = u64::try_from((config.push_assumed * 2).as_millis()).unwrap();
    let mut swarm = among(2, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, announced(1, 0, set(64, [5])));
    feed(&mut swarm, 0, offered(1, 0, 5, None));
    assert_eq!(requests(&feed(&mut swarm, slow - 300, Event::Tick)), []);
    let asked = requests(&feed(&mut swarm, slow + 300, Event::Tick));
    assert_eq!(asked, [(key(1), 5)]);
    feed(&mut swarm, slow + 301, arrived(1, 5));
    // it does so again, with a chunk that nobody else has: the time that it wasted buys it no more
    let mut now = limit;
    for ticket in 2..6 {
        let actions = feed(&mut swarm, now, offered(ticket, 0, 9, None));
        assert!(actions.contains(&Action::Accept(Ticket(ticket))));
        now += limit + 300;
        let cancel = Action::Cancel {
            peer: key(0),
            id: ContentId(0),
            chunk: ChunkIndex(9),
        };
        assert!(feed(&mut swarm, now, Event::Tick).contains(&cancel));
        let actions = feed(&mut swarm, now + 1, offered(ticket + 10, 0, 9, None));
        assert!(actions.contains(&Action::Decline(Ticket(ticket + 10), Declined::Busy)));
        now += 31_000;
    }
}

#[test]
fn who_takes_nothing_is_sent_nothing_for_a_while() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let asked = |ticket| Event::Requested {
        ticket: Ticket(ticket),
        peer: key(0),
        id: ContentId(0),
        chunk: ChunkIndex(1),
    };
    let ended = |ticket, delivery| Event::Sent {
        peer: key(0),
        id: ContentId(0),
        chunk: ChunkIndex(1),
        ticket: Some(Ticket(ticket)),
        delivery,
        wire_bytes: 0,
    };
    // one may be lost
    for ticket in [1, 2] {
        let actions = feed(&mut swarm, ticket, asked(ticket));
        assert_eq!(actions, [Action::Serve(Ticket(ticket))]);
        feed(&mut swarm, ticket, ended(ticket, Delivery::Broken));
    }
    let actions = feed(&mut swarm, 1_001, asked(3));
    assert_eq!(actions, [Action::Refuse(Ticket(3), Declined::Busy)]);
    let from = |peer| offered(20 + peer, peer, 1, Some(Spread::Everyone));
    assert_eq!(pushes(&feed(&mut swarm, 1_001, from(1))), []);
    let actions = feed(&mut swarm, 1_003, asked(4));
    assert_eq!(actions, [Action::Serve(Ticket(4))]);
    feed(&mut swarm, 1_004, ended(4, Delivery::Stored));
    feed(&mut swarm, 1_005, asked(5));
    feed(&mut swarm, 1_005, ended(5, Delivery::Broken));
    let actions = feed(&mut swarm, 1_006, asked(6));
    assert_eq!(actions, [Action::Serve(Ticket(6))]);
}

#[test]
fn a_peer_that_announces_and_delivers_nothing_keeps_nobody_from_the_registry() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, announced(0, 0, ChunkSet::full(64)));
    feed(&mut swarm, 0, Event::Leased(ContentId(0)));
    let mut fetched = 0;
    for step in 1..240 {
        let now = step * 250;
        let mut actions = VecDeque::from(feed(&mut swarm, now, Event::Tick));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Fetch { until, .. } => {
                    for chunk in fetched..until.0 {
                        let came = Event::OriginChunk {
                            id: ContentId(0),
                            chunk: ChunkIndex(chunk),
                            wire_bytes: CHUNK,
                        };
                        actions.extend(feed(&mut swarm, now, came));
                    }
                    fetched = until.0;
                }
                Action::Push { peer, chunk, .. } => {
                    let broken = sent(peer, chunk.0, Delivery::Broken);
                    actions.extend(feed(&mut swarm, now, broken));
                }
                _ => {}
            }
        }
    }
    assert_eq!(fetched, 64, "in a minute");
}

#[test]
fn a_large_fleet_is_spread_to_by_parts() {
    let config = Config {
        direct_targets: 20,
        fan_out: 4,
        ..Config::default()
    };
    let mut swarm = among(40, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 1, offered(1, 0, 5, Some(Spread::Everyone)));
    let actions = feed(&mut swarm, 2, arrived(0, 5));
    let mut covered = BTreeSet::new();
    for action in &actions {
        if let Action::Push { peer, spread, .. } = action {
            covered.insert(*peer);
            let Some(Spread::To(part)) = spread else {
                panic!("a part: {action:?}");
            };
            assert!(part.len() <= 20 && !part.contains(peer));
            covered.extend(part.iter().copied());
        }
    }
    assert_eq!(covered.len(), 39, "everybody but the sender and us");
}

#[test]
fn what_a_peer_has_all_of_already_is_asked_for_at_once() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 4, ChunkSet::empty(4)));
    let actions = feed(&mut swarm, 100, announced(0, 0, ChunkSet::full(4)));
    assert!(!requests(&actions).is_empty(), "{actions:?}");
    // one that was heard of in parts, and is whole now, is still being pushed
    feed(&mut swarm, 200, content(1, 4, ChunkSet::empty(4)));
    for (millis, chunks) in [(300, set(4, [0, 1])), (400, ChunkSet::full(4))] {
        let actions = feed(&mut swarm, millis, announced(1, 1, chunks));
        let of_it =
            |action: &Action| matches!(action, Action::Request { id, .. } if *id == ContentId(1));
        assert!(!actions.iter().any(of_it), "{actions:?}");
    }
}

#[test]
fn a_chunk_that_no_push_brings_is_asked_for_after_the_grace() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let mut asked_at = None;
    feed(&mut swarm, 100, announced(0, 0, set(64, [3])));
    for step in 1..40 {
        let millis = 100 + step * 250;
        if !requests(&feed(&mut swarm, millis, Event::Tick)).is_empty() {
            asked_at = Some(millis);
            break;
        }
    }
    let asked_at = asked_at.unwrap();
    assert!((1_900..=5_000).contains(&asked_at), "{asked_at}");
}

#[test]
fn whoever_learns_of_a_content_late_is_told_again() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, set(64, 0..9)));
    let told = Action::Announce {
        peer: key(1),
        id: ContentId(0),
        chunks: set(64, 0..9),
        reset: false,
    };
    let actions = feed(&mut swarm, 60_000, announced(1, 0, ChunkSet::empty(64)));
    assert!(actions.contains(&told), "{actions:?}");
    // both ends of a new connection speak anyway, but of what they hold
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, set(64, 0..9)));
    let actions = feed(&mut swarm, 100, announced(1, 0, set(64, [1])));
    assert!(!actions.contains(&told));
    let actions = feed(&mut swarm, 100, announced(1, 0, ChunkSet::empty(64)));
    assert!(actions.contains(&told));
}

#[test]
fn who_comes_back_is_told_everything_also_what_is_held_nothing_of() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, set(64, 0..9)));
    feed(&mut swarm, 0, content(1, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 60_000, Event::Disconnected(key(1)));
    let actions = feed(&mut swarm, 60_100, Event::Connected(key(1)));
    for (id, chunks) in [(0, set(64, 0..9)), (1, ChunkSet::empty(64))] {
        let told = Action::Announce {
            peer: key(1),
            id: ContentId(id),
            chunks,
            reset: true,
        };
        assert!(actions.contains(&told), "{id}: {actions:?}");
    }
}

#[test]
fn a_new_line_is_not_held_back_by_what_the_dead_one_did_not_bring() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 100, announced(0, 0, ChunkSet::full(64)));
    // the peer is dead and its line isn't: every request expires
    let mut asked = 0;
    for step in 1..80 {
        asked += requests(&feed(&mut swarm, 100 + step * 250, Event::Tick)).len();
    }
    assert!((2..20).contains(&asked), "{asked}");
    feed(&mut swarm, 20_200, Event::Disconnected(key(0)));
    feed(&mut swarm, 20_200, Event::Connected(key(0)));
    let actions = feed(&mut swarm, 20_210, announced(0, 0, ChunkSet::full(64)));
    let later = feed(&mut swarm, 20_460, Event::Tick);
    assert!(!requests(&actions).is_empty() || !requests(&later).is_empty());
}

#[test]
fn a_host_that_comes_back_dials_although_it_leaves_that_to_others() {
    let mut swarm = Swarm::new(HostKey(9_000), Config::default(), 7);
    feed(&mut swarm, 0, Event::Coordinator(true));
    // it holds everything, so that nothing else keeps it awake
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let dials = |actions: Vec<Action>| actions.contains(&Action::Dial(key(0)));
    assert!(!dials(feed(&mut swarm, 0, roster(1))), "the other dials");
    let mut now = 0;
    while now < 5_000 {
        now = swarm.next_timeout().unwrap().0 / 1_000;
        if dials(feed(&mut swarm, now, Event::Tick)) {
            break;
        }
    }
    assert!((500..=750).contains(&now), "{now}");
}

#[test]
fn the_rarest_chunk_is_asked_for_first() {
    let config = Config {
        requests: 1,
        ..Config::default()
    };
    let mut swarm = among(3, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 0, announced(0, 0, set(64, 0..10)));
    feed(
        &mut swarm,
        0,
        announced(1, 0, set(64, (0..10).filter(|chunk| *chunk != 7))),
    );
    let mut actions = Vec::new();
    for step in 1..40 {
        actions.extend(feed(&mut swarm, step * 250, Event::Tick));
    }
    assert_eq!(requests(&actions).first(), Some(&(key(0), 7)));
}

#[test]
fn a_chunk_sent_less_often_is_served_first() {
    let config = Config {
        uploads: 1,
        uploads_per_peer: 1,
        ..Config::default()
    };
    let mut swarm = among(3, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let ask = |ticket: u64, peer: u64, chunk: u32| Event::Requested {
        ticket: Ticket(ticket),
        peer: key(peer),
        id: ContentId(0),
        chunk: ChunkIndex(chunk),
    };
    assert_eq!(
        feed(&mut swarm, 1, ask(1, 0, 5)),
        [Action::Serve(Ticket(1))]
    );
    assert_eq!(feed(&mut swarm, 2, ask(2, 1, 5)), []);
    assert_eq!(feed(&mut swarm, 3, ask(3, 2, 6)), []);
    let done = Event::Sent {
        peer: key(0),
        id: ContentId(0),
        chunk: ChunkIndex(5),
        ticket: Some(Ticket(1)),
        delivery: Delivery::Stored,
        wire_bytes: CHUNK,
    };
    assert_eq!(feed(&mut swarm, 4, done), [Action::Serve(Ticket(3))]);
}

#[test]
fn requests_of_a_peer_that_goes_away_are_answered_too() {
    let config = Config {
        uploads: 1,
        ..Config::default()
    };
    let gone: [fn() -> Event; 3] = [
        || Event::Disconnected(key(1)),
        || Event::Blamed(key(1)),
        || roster(1),
    ];
    for gone in gone {
        let mut swarm = among(2, config.clone());
        feed(&mut swarm, 0, content(0, 8, set(8, 0..8)));
        let requested = |ticket, peer, chunk| Event::Requested {
            ticket: Ticket(ticket),
            peer: key(peer),
            id: ContentId(0),
            chunk: ChunkIndex(chunk),
        };
        feed(&mut swarm, 1, requested(1, 0, 0));
        for ticket in [2, 3] {
            assert_eq!(feed(&mut swarm, 2, requested(ticket, 1, 1)), []);
        }
        let refused: Vec<Ticket> = feed(&mut swarm, 3, gone())
            .into_iter()
            .filter_map(|action| match action {
                Action::Refuse(ticket, _) => Some(ticket),
                _ => None,
            })
            .collect();
        assert_eq!(refused, [Ticket(2), Ticket(3)]);
    }
}

#[test]
fn blame_is_answered_by_quarantine_that_grows() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    let first = u64::try_from(Config::default().quarantine.as_millis()).unwrap();
    let actions = feed(&mut swarm, 1, Event::Blamed(key(0)));
    assert!(actions.contains(&Action::HangUp(key(0))));
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Report { .. }))
    );
    assert_eq!(swarm.status(at(1)).quarantined, [key(0)]);
    let actions = feed(&mut swarm, 2, offered(1, 0, 5, None));
    assert_eq!(actions, [Action::Decline(Ticket(1), Declined::Quarantined)]);
    feed(&mut swarm, first + 300, Event::Tick);
    assert!(swarm.status(at(first + 300)).quarantined.is_empty());
    feed(&mut swarm, first + 400, Event::Blamed(key(0)));
    feed(&mut swarm, 2 * first + 1_000, Event::Tick);
    assert_eq!(swarm.status(at(2 * first + 1_000)).quarantined, [key(0)]);
    feed(&mut swarm, 3 * first + 1_000, Event::Tick);
    assert!(swarm.status(at(3 * first + 1_000)).quarantined.is_empty());
}

#[test]
fn a_lease_begins_to_fetch_with_the_first_chunk_that_no_peer_has() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 40, set(40, 0..2)));
    feed(&mut swarm, 0, announced(0, 0, set(40, 0..5)));
    let fetched = |actions: &[Action]| -> Vec<u32> {
        let fetches = actions.iter().filter_map(|action| match action {
            Action::Fetch { until, .. } => Some(until.0),
            _ => None,
        });
        fetches.collect()
    };
    // chunks 2 to 4 are asked of the peer, and nothing is asked of the registry meanwhile: its bytes would be those
    let actions = feed(&mut swarm, 1, Event::Leased(ContentId(0)));
    assert!(!requests(&actions).is_empty());
    assert_eq!(fetched(&actions), [0_u32; 0]);
    for chunk in 2..4 {
        let actions = feed(&mut swarm, 2, arrived(0, chunk));
        assert_eq!(fetched(&actions), [0_u32; 0], "{chunk}");
    }
    let actions = feed(&mut swarm, 3, arrived(0, 4));
    assert!(fetched(&actions).iter().all(|until| *until > 5));
    assert!(!fetched(&actions).is_empty());
}

#[test]
fn a_disproved_chunk_is_asked_of_another_and_its_sender_believed() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 2, ChunkSet::empty(2)));
    for peer in 0..2 {
        feed(&mut swarm, 1, announced(peer, 0, set(2, [0])));
    }
    let asked = requests(&feed(&mut swarm, 1, Event::Leased(ContentId(0))));
    let [(first, 0)] = asked[..] else {
        panic!("{asked:?}")
    };
    let other = if first == key(0) { key(1) } else { key(0) };
    let disproved = Event::NotArrived {
        peer: first,
        id: ContentId(0),
        chunk: ChunkIndex(0),
        failure: Failure::Disproved,
    };
    assert_eq!(requests(&feed(&mut swarm, 2, disproved)), [(other, 0)]);
    assert!(swarm.status(at(2)).quarantined.is_empty());
}

#[test]
fn whose_link_was_not_taken_is_asked_after_a_while_what_it_has() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 2, ChunkSet::empty(2)));
    feed(&mut swarm, 1, announced(0, 0, set(2, [0])));
    assert_eq!(
        requests(&feed(&mut swarm, 1, Event::Leased(ContentId(0)))),
        [(key(0), 0)]
    );
    let disproved = || Event::NotArrived {
        peer: key(0),
        id: ContentId(0),
        chunk: ChunkIndex(0),
        failure: Failure::Disproved,
    };
    assert_eq!(requests(&feed(&mut swarm, 2, disproved())), []);
    // it is a question, and its answer comes as any announcement
    let asks = |actions: &[Action]| {
        let ask = |action: &&Action| matches!(action, Action::Announce { reset: true, .. });
        actions.iter().filter(ask).count()
    };
    assert_eq!(asks(&feed(&mut swarm, 1_900, Event::Tick)), 0);
    assert_eq!(asks(&feed(&mut swarm, 2_300, Event::Tick)), 1);
    let mut actions = feed(&mut swarm, 2_310, announced(0, 0, set(2, [0])));
    for millis in (2_500..8_000).step_by(250) {
        actions.extend(feed(&mut swarm, millis, Event::Tick));
    }
    assert_eq!(requests(&actions).first(), Some(&(key(0), 0)));
    // once
    assert_eq!(asks(&feed(&mut swarm, 9_000, Event::Tick)), 0);
}

#[test]
fn a_stall_for_want_of_peers_says_whether_they_are_shunned() {
    let stall = |swarm: &Swarm| {
        let contents = swarm.status(at(1_000)).contents;
        contents[0].stall
    };
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 8, ChunkSet::empty(8)));
    feed(&mut swarm, 1, Event::Disconnected(key(0)));
    feed(&mut swarm, 1, Event::Disconnected(key(1)));
    assert_eq!(stall(&swarm), Some(Stall::NoPeers));
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 8, ChunkSet::empty(8)));
    feed(&mut swarm, 1, Event::Disconnected(key(0)));
    feed(&mut swarm, 1, Event::Blamed(key(1)));
    assert_eq!(stall(&swarm), Some(Stall::SourcesQuarantined));
}

#[test]
fn a_registry_is_silent_only_from_when_it_was_asked() {
    let silent = |swarm: &Swarm, millis| {
        let content = &swarm.status(at(millis)).contents[0];
        (content.stall, content.silent)
    };
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    // a minute of waiting for its turn isn't the registry's
    feed(&mut swarm, 60_000, Event::Leased(ContentId(0)));
    assert_eq!(
        silent(&swarm, 60_300),
        (Some(Stall::Fetching), Some(Duration::from_millis(300)))
    );
    assert_eq!(silent(&swarm, 62_999).0, Some(Stall::Fetching));
    assert_eq!(silent(&swarm, 63_000).0, Some(Stall::OriginSilent));
    // a chunk that comes from a peer says nothing of the registry
    feed(&mut swarm, 63_000, announced(0, 0, set(64, [9])));
    feed(&mut swarm, 63_000, offered(1, 0, 9, None));
    feed(&mut swarm, 63_000, arrived(0, 9));
    assert_eq!(silent(&swarm, 63_500).1, Some(Duration::from_millis(3_500)));
    let chunk = Event::OriginChunk {
        id: ContentId(0),
        chunk: ChunkIndex(0),
        wire_bytes: CHUNK,
    };
    feed(&mut swarm, 64_000, chunk);
    assert_eq!(silent(&swarm, 64_500).1, Some(Duration::from_millis(500)));
}

#[test]
fn a_limit_of_our_own_is_never_the_registrys_silence() {
    let config = Config {
        lease_window: 2,
        ..Config::default()
    };
    // nobody else is there, so that nothing has to be handed on
    let mut swarm = among(0, config);
    feed(
        &mut swarm,
        0,
        Event::Bandwidth {
            upload_bytes_per_second: 0,
            download_bytes_per_second: CHUNK / 20,
        },
    );
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 1_000, Event::Leased(ContentId(0)));
    for chunk in 0..2 {
        let chunk = Event::OriginChunk {
            id: ContentId(0),
            chunk: ChunkIndex(chunk),
            wire_bytes: CHUNK,
        };
        feed(&mut swarm, 1_100, chunk);
    }
    for second in 2..30 {
        let now = second * 1_000;
        feed(&mut swarm, now, Event::Tick);
        let status = swarm.status(at(now));
        assert_eq!(status.contents[0].silent, None, "{second} s");
        let still = status.standstill(&[ContentId(0)]);
        let expected = (now >= 1_100 + 3_000).then_some(Stall::Throttled);
        assert_eq!(still.map(|still| still.stall), expected, "{second} s");
    }
}

#[test]
fn silence_isnt_held_against_a_peer_for_long() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for step in 0..50 {
        let failed = Event::NotArrived {
            peer: key(0),
            id: ContentId(0),
            chunk: ChunkIndex(1),
            failure: Failure::Broken,
        };
        feed(&mut swarm, step, failed);
    }
    assert!(swarm.status(at(50)).quarantined.is_empty());
}

/// Requests within a minute, where each is answered at once: how many, and the last reason for a stall.
fn asked_in_a_minute(answer: impl Fn(HostKey, u32) -> Vec<Event>) -> (usize, Option<Stall>) {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 32, ChunkSet::empty(32)));
    let mut waiting = requests(&feed(&mut swarm, 0, announced(0, 0, ChunkSet::full(32))));
    let mut asked = 0;
    for tick in 1..6_000 {
        let millis = tick * 10;
        waiting.extend(requests(&feed(&mut swarm, millis, Event::Tick)));
        for (peer, chunk) in std::mem::take(&mut waiting) {
            asked += 1;
            for event in answer(peer, chunk) {
                waiting.extend(requests(&feed(&mut swarm, millis, event)));
            }
        }
    }
    let stall = swarm.status(at(60_000)).contents[0].stall;
    (asked, stall)
}

#[test]
fn what_cant_be_stored_is_asked_for_again_after_growing_pauses() {
    let (asked, stall) = asked_in_a_minute(|peer, chunk| {
        vec![Event::NotArrived {
            peer,
            id: ContentId(0),
            chunk: ChunkIndex(chunk),
            failure: Failure::NotStored,
        }]
    });
    assert_eq!(stall, Some(Stall::NotStored));
    assert!((4..=80).contains(&asked), "{asked}");
}

#[test]
fn what_is_lost_again_and_again_is_asked_for_again_after_growing_pauses() {
    let (asked, stall) = asked_in_a_minute(|peer, chunk| {
        let lost = Event::ChunkLost {
            id: ContentId(0),
            chunk: ChunkIndex(chunk),
        };
        let arrived = Event::Arrived {
            peer,
            id: ContentId(0),
            chunk: ChunkIndex(chunk),
            wire_bytes: CHUNK,
        };
        vec![arrived, lost]
    });
    assert_eq!(stall, Some(Stall::LostAgain));
    // twice the content and some for nothing, and then a quarter of it at a time
    assert!((64..=256).contains(&asked), "{asked}");
}

#[test]
fn a_rotten_chunk_is_asked_of_a_peer_once_until_it_is_announced_anew() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 2, ChunkSet::empty(2)));
    let mut asked = requests(&feed(&mut swarm, 0, announced(0, 0, set(2, [1]))));
    let mut all = Vec::new();
    for tick in 1..1_000 {
        let millis = tick * 10;
        asked.extend(requests(&feed(&mut swarm, millis, Event::Tick)));
        for (peer, chunk) in std::mem::take(&mut asked) {
            all.push(chunk);
            let bad = Event::NotArrived {
                peer,
                id: ContentId(0),
                chunk: ChunkIndex(chunk),
                failure: Failure::Bad,
            };
            asked.extend(requests(&feed(&mut swarm, millis, bad)));
        }
    }
    assert_eq!(all, [1]);
    assert!(swarm.status(at(10_000)).quarantined.is_empty());
    // it was mended
    asked = requests(&feed(&mut swarm, 10_000, announced(0, 0, set(2, [1]))));
    for tick in 1..1_000 {
        asked.extend(requests(&feed(&mut swarm, 10_000 + tick * 10, Event::Tick)));
    }
    assert!(asked.contains(&(key(0), 1)), "{asked:?}");
}

#[test]
fn a_content_that_was_lost_once_is_asked_for_at_once() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 32, ChunkSet::full(32)));
    feed(&mut swarm, 0, announced(0, 0, ChunkSet::full(32)));
    let mut asked = Vec::new();
    for chunk in (0..32).map(ChunkIndex) {
        let id = ContentId(0);
        asked.extend(requests(&feed(
            &mut swarm,
            10_000,
            Event::ChunkLost { id, chunk },
        )));
    }
    for tick in 0..100 {
        let millis = 10_000 + tick * 10;
        for (_, chunk) in std::mem::take(&mut asked) {
            asked.extend(requests(&feed(&mut swarm, millis, arrived(0, chunk))));
        }
        asked.extend(requests(&feed(&mut swarm, millis, Event::Tick)));
    }
    assert_eq!(swarm.status(at(11_000)).contents[0].held, 32);
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

#[test]
fn a_budget_is_charged_what_went_over_the_wire() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let budget = Event::Bandwidth {
        upload_bytes_per_second: CHUNK,
        download_bytes_per_second: CHUNK,
    };
    feed(&mut swarm, 0, budget);
    // chunks of zeros go out as fast as they are asked for
    for step in 1..50u32 {
        let now = 1_000 + u64::from(step);
        let ask = Event::Requested {
            ticket: Ticket(step.into()),
            peer: key(0),
            id: ContentId(0),
            chunk: ChunkIndex(step),
        };
        assert_eq!(
            feed(&mut swarm, now, ask),
            [Action::Serve(Ticket(step.into()))]
        );
        let done = Event::Sent {
            peer: key(0),
            id: ContentId(0),
            chunk: ChunkIndex(step),
            ticket: Some(Ticket(step.into())),
            delivery: Delivery::Stored,
            wire_bytes: 0,
        };
        feed(&mut swarm, now, done);
    }
    // and a layer that is small in the registry is fetched for what it is there
    feed(&mut swarm, 2_000, content(1, 64, ChunkSet::empty(64)));
    feed(&mut swarm, 2_000, Event::Leased(ContentId(1)));
    for chunk in 0..10 {
        let came = Event::OriginChunk {
            id: ContentId(1),
            chunk: ChunkIndex(chunk),
            wire_bytes: CHUNK / 100,
        };
        feed(&mut swarm, 2_001, came);
    }
    assert!(swarm.down_bucket.allows(at(2_001)));
}

/// A registry that gives at once whatever it is asked for, on four streams.
#[test]
fn a_download_budget_is_overdrawn_by_a_chunk_for_each_stream_at_most() {
    let mut swarm = among(0, Config::default());
    let budget = Event::Bandwidth {
        upload_bytes_per_second: 0,
        download_bytes_per_second: CHUNK,
    };
    feed(&mut swarm, 0, budget);
    let mut actions = Vec::new();
    for id in 0..4 {
        actions.extend(feed(&mut swarm, 0, content(id, 64, ChunkSet::empty(64))));
        actions.extend(feed(&mut swarm, 0, Event::Leased(ContentId(id))));
    }
    let mut came = BTreeMap::new();
    for step in 0..600u64 {
        let now = step * 50;
        actions.extend(feed(&mut swarm, now, Event::Tick));
        for action in core::mem::take(&mut actions) {
            let Action::Fetch { id, until } = action else {
                continue;
            };
            let from = came.insert(id, until.0).unwrap_or(0);
            for chunk in (from..until.0).map(ChunkIndex) {
                let wire_bytes = CHUNK;
                let event = Event::OriginChunk {
                    id,
                    chunk,
                    wire_bytes,
                };
                actions.extend(feed(&mut swarm, now, event));
            }
        }
        let chunks: u32 = came.values().sum();
        let due = now / 1_000 + 1;
        assert!(
            u64::from(chunks) <= due + 4,
            "{chunks} chunks within {now} ms"
        );
    }
    let chunks: u32 = came.values().sum();
    assert!(chunks >= 28, "{chunks} chunks in 30 s");
    assert!(came.values().all(|chunks| *chunks >= 4), "{came:?}");
}

#[test]
fn an_upload_budget_is_kept() {
    let mut swarm = among(4, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    feed(
        &mut swarm,
        0,
        Event::Bandwidth {
            upload_bytes_per_second: CHUNK,
            download_bytes_per_second: 0,
        },
    );
    let mut served = 0;
    let mut open = Vec::new();
    for step in 1..400u64 {
        let ask = Event::Requested {
            ticket: Ticket(step),
            peer: key(step % 4),
            id: ContentId(0),
            chunk: ChunkIndex(u32::try_from(step % 64).unwrap()),
        };
        let mut actions = feed(&mut swarm, step * 50, ask);
        for ticket in core::mem::take(&mut open) {
            let (peer, chunk) = (key(ticket % 4), u32::try_from(ticket % 64).unwrap());
            let done = Event::Sent {
                peer,
                id: ContentId(0),
                chunk: ChunkIndex(chunk),
                ticket: Some(Ticket(ticket)),
                delivery: Delivery::Stored,
                wire_bytes: CHUNK,
            };
            actions.extend(feed(&mut swarm, step * 50, done));
        }
        for action in actions {
            if let Action::Serve(ticket) = action {
                served += 1;
                open.push(ticket.0);
            }
        }
    }
    assert!(
        (18..=23).contains(&served),
        "{served} in 20 s at one a second"
    );
}

/// `content`, for these peers alone.
fn content_for(id: u32, chunks: u32, held: ChunkSet, peers: &[u64]) -> Event {
    let some = peers.iter().map(|peer| key(*peer)).chain([ME]).collect();
    match content(id, chunks, held) {
        Event::Content {
            id,
            key,
            size,
            held,
            order,
            ..
        } => Event::Content {
            id,
            key,
            size,
            held,
            order,
            entitled: Some(Arc::new(some)),
        },
        other => other,
    }
}

#[test]
fn a_content_goes_to_those_alone_that_may_have_it() {
    let mut swarm = among(3, Config::default());
    swarm.handle(at(1), content_for(0, 4, ChunkSet::full(4), &[1]));
    let told: Vec<HostKey> = drain(&mut swarm)
        .into_iter()
        .filter_map(|action| match action {
            Action::Announce { peer, .. } => Some(peer),
            _ => None,
        })
        .collect();
    assert_eq!(told, [key(1)]);
    let ask = |swarm: &mut Swarm, ticket, peer| {
        swarm.handle(
            at(2),
            Event::Requested {
                ticket: Ticket(ticket),
                peer: key(peer),
                id: ContentId(0),
                chunk: ChunkIndex(0),
            },
        );
        drain(swarm)
    };
    assert_eq!(
        ask(&mut swarm, 1, 0),
        [Action::Refuse(Ticket(1), Declined::NotEntitled)]
    );
    assert_eq!(ask(&mut swarm, 2, 1), [Action::Serve(Ticket(2))]);
    // one host more may have it: it hears of it, and is served
    swarm.handle(at(3), content_for(0, 4, ChunkSet::full(4), &[0, 1]));
    let told = drain(&mut swarm);
    assert!(told.iter().any(|action| matches!(action, Action::Announce { peer, chunks, .. } if *peer == key(0) && chunks.is_full())), "{told:?}");
    assert_eq!(ask(&mut swarm, 3, 0), [Action::Serve(Ticket(3))]);
    // and who comes later hears of nothing that isn't for it
    swarm.handle(at(4), Event::Disconnected(key(2)));
    swarm.handle(at(5), Event::Connected(key(2)));
    let told = drain(&mut swarm);
    assert!(
        !told
            .iter()
            .any(|action| matches!(action, Action::Announce { .. })),
        "{told:?}"
    );
}

#[test]
fn a_fresh_chunk_is_spread_among_those_alone_that_may_have_it() {
    for direct_targets in [2, 100] {
        // whoever is the spreader of a part is to be one of them too, and they are few among many
        let config = Config {
            direct_targets,
            fan_out: 2,
            ..Config::default()
        };
        let mut swarm = among(40, config);
        let few = [3, 11, 12, 30, 31];
        swarm.handle(at(1), content_for(0, 8, ChunkSet::empty(8), &few));
        swarm.handle(at(1), Event::Leased(ContentId(0)));
        drain(&mut swarm);
        let (mut now, mut got) = (2, BTreeSet::new());
        for chunk in 0..8 {
            swarm.handle(
                at(now),
                Event::OriginChunk {
                    id: ContentId(0),
                    chunk: ChunkIndex(chunk),
                    wire_bytes: CHUNK,
                },
            );
            loop {
                let mut pushed = Vec::new();
                for action in drain(&mut swarm) {
                    if let Action::Push {
                        peer,
                        chunk,
                        spread,
                        ..
                    } = action
                    {
                        assert!(few.iter().any(|few| key(*few) == peer), "pushed to another");
                        if let Some(Spread::To(part)) = spread {
                            assert!(part.iter().all(|to| few.iter().any(|few| key(*few) == *to)));
                        }
                        pushed.push((peer, chunk));
                    }
                }
                if pushed.is_empty() {
                    break;
                }
                for (peer, chunk) in pushed {
                    got.insert(chunk);
                    now += 1;
                    swarm.handle(
                        at(now),
                        Event::Sent {
                            peer,
                            id: ContentId(0),
                            chunk,
                            ticket: None,
                            delivery: Delivery::Stored,
                            wire_bytes: CHUNK,
                        },
                    );
                }
            }
        }
        for _ in 0..40 {
            now += 250;
            swarm.handle(at(now), Event::Tick);
            for action in drain(&mut swarm) {
                if let Action::Push { peer, chunk, .. } = action {
                    assert!(few.iter().any(|few| key(*few) == peer), "pushed to another");
                    got.insert(chunk);
                    swarm.handle(
                        at(now),
                        Event::Sent {
                            peer,
                            id: ContentId(0),
                            chunk,
                            ticket: None,
                            delivery: Delivery::Stored,
                            wire_bytes: CHUNK,
                        },
                    );
                }
            }
        }
        assert_eq!(got.len(), 8, "each chunk left this host");
    }
}

/// What the property below believes the shell knows.
#[derive(Debug, Default)]
struct Model {
    known: BTreeSet<HostKey>,
    up: BTreeSet<HostKey>,
    held: BTreeMap<ContentId, ChunkSet>,
    entitled: BTreeMap<ContentId, Entitled>,
    leased: BTreeSet<ContentId>,
    wanted: BTreeSet<ContentId>,
    coordinator_lost: Option<u64>,
    asked: Vec<(HostKey, ContentId, ChunkIndex)>,
    uploads: Vec<(HostKey, ContentId, ChunkIndex, Option<Ticket>)>,
    questions: BTreeMap<Ticket, (HostKey, ContentId, ChunkIndex)>,
}

impl Model {
    fn end_line(&mut self, peer: HostKey) {
        self.up.remove(&peer);
        self.asked.retain(|(other, ..)| *other != peer);
        self.uploads.retain(|(other, ..)| *other != peer);
    }

    fn entitles(&self, peer: HostKey, id: ContentId) -> bool {
        let entitled = self.entitled[&id].as_ref();
        entitled.is_none_or(|entitled| entitled.contains(&peer))
    }

    fn missing(&self) -> u32 {
        self.held
            .values()
            .map(|set| set.chunks() - set.count())
            .sum()
    }
}

fn any_set() -> impl Strategy<Value = ChunkSet> {
    prop_oneof![
        prop::collection::vec(0u32..70, 0..20).prop_map(|chunks| set(70, chunks)),
        Just(ChunkSet::full(70)),
        Just(ChunkSet::empty(70)),
        Just(ChunkSet::full(3)),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let some = prop::collection::btree_set((0u64..8).prop_map(key), 0..8);
    let entitled = move || prop::option::of(some.clone().prop_map(Arc::new));
    let peer = || (0u64..8).prop_map(key);
    let id = || (0u32..4).prop_map(ContentId);
    let chunk = || (0u32..72).prop_map(ChunkIndex);
    let failure = prop_oneof![
        Just(Failure::Bad),
        Just(Failure::Disproved),
        Just(Failure::Busy),
        Just(Failure::Missing),
        Just(Failure::Refused),
        Just(Failure::Broken),
        Just(Failure::NotStored),
        Just(Failure::Cancelled),
    ];
    let delivery = || {
        prop_oneof![
            4 => Just(Delivery::Stored),
            1 => Just(Delivery::Already),
            1 => Just(Delivery::Busy),
            1 => Just(Delivery::Unwanted),
            1 => Just(Delivery::Bad),
            1 => Just(Delivery::Broken),
        ]
    };
    let spread = prop_oneof![
        Just(None),
        Just(Some(Spread::Everyone)),
        prop::collection::vec(0u64..10, 0..10)
            .prop_map(|keys| Some(Spread::To(keys.into_iter().map(key).collect()))),
    ];
    prop_oneof![
        1 => prop::collection::vec((0u64..7, 0u32..2, any::<bool>()), 0..7).prop_map(|entries| Event::Roster(
            entries.into_iter().map(|(peer, zone, neighbour)| Entry { key: key(peer), zone, neighbour }).collect()
        )),
        1 => any::<bool>().prop_map(Event::Coordinator),
        6 => peer().prop_map(Event::Connected),
        2 => peer().prop_map(Event::Disconnected),
        3 => (id(), any_set(), 0u32..5, entitled()).prop_map(|(id, held, order, entitled)| Event::Content {
            id, key: u64::from(id.0), size: 70 * CHUNK - 5, held, order, entitled
        }),
        1 => id().prop_map(Event::Dropped),
        1 => (id(), chunk()).prop_map(|(id, chunk)| Event::ChunkLost { id, chunk }),
        6 => (peer(), id(), any_set(), any::<bool>()).prop_map(|(peer, id, chunks, reset)| Event::Announced { peer, id, chunks, reset }),
        2 => (peer(), any::<u64>(), any::<u64>()).prop_map(|(peer, backlog_bytes, upload_bytes_per_second)| Event::Load { peer, backlog_bytes, upload_bytes_per_second }),
        3 => id().prop_map(Event::Leased),
        1 => id().prop_map(Event::LeaseLost),
        2 => (id(), 0u64..20_000, any::<bool>()).prop_map(|(id, after, admitted)| Event::Wanted { id, alone_after: Duration::from_millis(after), admitted }),
        1 => id().prop_map(Event::Unwanted),
        1 => id().prop_map(Event::Coming),
        6 => (id(), chunk()).prop_map(|(id, chunk)| Event::OriginChunk { id, chunk, wire_bytes: CHUNK }),
        1 => (id(), prop_oneof![Just(OriginEnd::Done), Just(OriginEnd::Failed), Just(OriginEnd::Refused), Just(OriginEnd::Bad)]).prop_map(|(id, end)| Event::OriginEnded { id, end }),
        6 => (any::<u64>(), peer(), id(), chunk(), spread).prop_map(|(ticket, peer, id, chunk, spread)| Event::Offered { ticket: Ticket(ticket), peer, id, chunk, spread }),
        6 => (peer(), id(), chunk()).prop_map(|(peer, id, chunk)| Event::Arrived { peer, id, chunk, wire_bytes: CHUNK }),
        4 => (peer(), id(), chunk(), failure).prop_map(|(peer, id, chunk, failure)| Event::NotArrived { peer, id, chunk, failure }),
        6 => (0u64..1_000, peer(), id(), chunk()).prop_map(|(ticket, peer, id, chunk)| Event::Requested { ticket: Ticket(ticket), peer, id, chunk }),
        1 => (0u64..1_000).prop_map(|ticket| Event::Withdrawn(Ticket(ticket))),
        8 => (peer(), id(), chunk(), prop::option::of(0u64..1_000), delivery()).prop_map(|(peer, id, chunk, ticket, delivery)| Event::Sent {
            peer, id, chunk, ticket: ticket.map(Ticket), delivery, wire_bytes: CHUNK
        }),
        1 => peer().prop_map(Event::Blamed),
        1 => (prop_oneof![Just(0u64), Just(1), Just(10 * CHUNK), Just(u64::MAX)], prop_oneof![Just(0u64), Just(1), Just(10 * CHUNK), Just(u64::MAX)]).prop_map(|(up, down)| Event::Bandwidth { upload_bytes_per_second: up, download_bytes_per_second: down }),
        1 => any::<bool>().prop_map(Event::StepBack),
        8 => Just(Event::Tick),
    ]
}

/// Checks one event's actions against what the shell knows. The shell ends what the swarm began when `prompt`.
fn check(
    swarm: &mut Swarm,
    model: &mut Model,
    now: u64,
    event: Event,
) -> Result<(), TestCaseError> {
    let config = swarm.config.clone();
    let mut offer = None;
    match &event {
        Event::Roster(entries) => {
            model.known = entries.iter().map(|entry| entry.key).collect();
            for peer in model.up.clone() {
                if !model.known.contains(&peer) {
                    model.end_line(peer);
                }
            }
        }
        Event::Coordinator(up) => {
            if *up {
                model.coordinator_lost = None;
            } else {
                model.coordinator_lost.get_or_insert(now);
            }
        }
        Event::Connected(peer) if model.known.contains(peer) => {
            model.up.insert(*peer);
        }
        Event::Disconnected(peer) => model.end_line(*peer),
        Event::Content {
            id, held, entitled, ..
        } => {
            model.entitled.insert(*id, entitled.clone());
            model.held.entry(*id).or_insert_with(|| {
                if held.chunks() == 70 {
                    held.clone()
                } else {
                    ChunkSet::empty(70)
                }
            });
        }
        Event::Dropped(id) => {
            model.held.remove(id);
            model.leased.remove(id);
            model.wanted.remove(id);
            model.asked.retain(|(_, other, _)| other != id);
        }
        Event::ChunkLost { id, chunk } => {
            if let Some(held) = model.held.get_mut(id) {
                held.remove(*chunk);
            }
        }
        Event::Leased(id) => {
            model.leased.insert(*id);
        }
        Event::Wanted { id, .. } => {
            model.wanted.insert(*id);
        }
        Event::Unwanted(id) => {
            model.wanted.remove(id);
        }
        Event::LeaseLost(id) => {
            model.leased.remove(id);
        }
        Event::OriginEnded { id, .. } => {
            model.leased.remove(id);
        }
        Event::OriginChunk { id, chunk, .. } => {
            if let Some(held) = model.held.get_mut(id) {
                held.insert(*chunk);
            }
        }
        Event::Arrived {
            peer, id, chunk, ..
        } => {
            if let Some(held) = model.held.get_mut(id) {
                held.insert(*chunk);
            }
            model.asked.retain(|other| *other != (*peer, *id, *chunk));
        }
        Event::NotArrived {
            peer, id, chunk, ..
        } => {
            model.asked.retain(|other| *other != (*peer, *id, *chunk));
        }
        Event::Offered { ticket, .. } => offer = Some(*ticket),
        Event::Requested {
            ticket,
            peer,
            id,
            chunk,
        } => {
            model.questions.insert(*ticket, (*peer, *id, *chunk));
        }
        Event::Sent {
            peer,
            id,
            chunk,
            ticket,
            ..
        } => {
            let ended = model
                .uploads
                .iter()
                .position(|other| *other == (*peer, *id, *chunk, *ticket));
            if let Some(at) = ended {
                model.uploads.remove(at);
            }
        }
        _ => {}
    }
    swarm.handle(at(now), event);
    while let Some(action) = swarm.poll() {
        match action {
            Action::Dial(peer) => prop_assert!(model.known.contains(&peer)),
            Action::HangUp(peer) => model.end_line(peer),
            Action::Request { peer, id, chunk } => {
                prop_assert!(
                    model.up.contains(&peer),
                    "asked a peer that isn't connected"
                );
                prop_assert!(!model.held[&id].contains(chunk), "asked for what is held");
                let twice = model
                    .asked
                    .iter()
                    .any(|(_, other, of)| (*other, *of) == (id, chunk));
                prop_assert!(!twice || model.missing() <= 8, "asked twice before the end");
                model.asked.push((peer, id, chunk));
                prop_assert!(model.asked.len() <= config.requests);
            }
            Action::Cancel { peer, id, chunk } => {
                model.asked.retain(|other| *other != (peer, id, chunk));
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => {
                prop_assert!(
                    model.up.contains(&peer),
                    "pushed to a peer that isn't connected"
                );
                prop_assert!(model.held[&id].contains(chunk), "pushed what isn't held");
                prop_assert!(model.entitles(peer, id), "pushed to who may not have it");
                if let Some(Spread::To(part)) = spread {
                    prop_assert!(!part.contains(&peer));
                }
                model.uploads.push((peer, id, chunk, None));
            }
            Action::Serve(ticket) => {
                let (peer, id, chunk) = model.questions[&ticket];
                prop_assert!(
                    model.up.contains(&peer),
                    "served a peer that isn't connected"
                );
                prop_assert!(model.held[&id].contains(chunk), "served what isn't held");
                prop_assert!(model.entitles(peer, id), "served to who may not have it");
                model.uploads.push((peer, id, chunk, Some(ticket)));
            }
            Action::Accept(ticket) | Action::Decline(ticket, _) => {
                prop_assert_eq!(offer.take(), Some(ticket), "an offer is answered once");
            }
            Action::Refuse(..) | Action::ReleaseLease(_) | Action::Report { .. } => {}
            Action::Announce {
                peer, id, chunks, ..
            } => {
                prop_assert!(model.up.contains(&peer));
                prop_assert!(model.entitles(peer, id), "told who may not have it");
                let mut more = chunks;
                more.subtract(&model.held[&id]);
                prop_assert!(more.is_empty(), "announced what isn't held");
            }
            Action::AnnounceLoad { peer, .. } => prop_assert!(model.up.contains(&peer)),
            Action::Fetch { id, .. } => {
                let headless = model
                    .coordinator_lost
                    .is_some_and(|since| now - since >= 15_000)
                    || model.coordinator_lost.is_none();
                prop_assert!(
                    model.leased.contains(&id) || model.wanted.contains(&id) || headless,
                    "fetched without a lease"
                );
            }
            Action::StopFetch(id) => {
                model.leased.remove(&id);
            }
        }
        prop_assert!(
            model.uploads.len() <= config.uploads + config.slow_uploads,
            "more uploads than the bound"
        );
    }
    prop_assert_eq!(offer, None, "an offer is answered at once");
    prop_assert!(swarm.incoming.len() <= 2 * config.incoming);
    prop_assert!(swarm.waiting.len() <= config.waiting);
    prop_assert!(swarm.jobs.len() <= config.jobs);
    prop_assert!(swarm.unassigned.len() <= 2 * config.jobs);
    prop_assert!(swarm.handovers.len() <= config.jobs + config.fan_out);
    prop_assert!(swarm.slots.len() <= 64);
    prop_assert!(
        swarm.next_timeout().is_none_or(|due| due > at(now)),
        "a timer that is never in the past"
    );
    for content in swarm.status(at(now)).contents {
        prop_assert_eq!(content.held, model.held[&content.id].count());
        prop_assert!(
            content.held == content.chunks
                || content.stall.is_some()
                || now < 10_000 + swarm.contents[&content.id].grown_at.0 / 1_000
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_legal_in_any_state(seed in any::<u64>(), peers in 0u64..8, events in prop::collection::vec((any_event(), 0u64..3_000), 1..300)) {
        let mut swarm = Swarm::new(ME, Config { direct_targets: 3, fan_out: 2, uploads: 3, ..Config::default() }, seed);
        let mut model = Model::default();
        let mut now = 0;
        let mut begin = vec![roster(peers), Event::Coordinator(true)];
        begin.extend((0..3).map(|id| content(id, 70, ChunkSet::empty(70))));
        // the last chunk is shorter, as in the events
        for event in begin.drain(..) {
            let event = match event {
                Event::Content { id, key, held, order, entitled, .. } => Event::Content { id, key, size: 70 * CHUNK - 5, held, order, entitled },
                other => other,
            };
            check(&mut swarm, &mut model, now, event)?;
        }
        for (event, wait) in events {
            now += wait;
            check(&mut swarm, &mut model, now, event)?;
        }
        // whatever happened, an hour later nothing is stuck in a state without a reason
        for _ in 0..50 {
            now += 60_000;
            check(&mut swarm, &mut model, now, Event::Tick)?;
        }
    }
}
