//! Passing chunks on: who is handed a chunk, who is sent it, and what is taken.

use std::collections::VecDeque;

use super::*;
use crate::push::Wisher;

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
    // our own uplink has as much work
    swarm.pushes.jobs().add_backlog(500 * CHUNK);
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

fn load(peer: u64, chunks: u64) -> Event {
    Event::Load {
        peer: key(peer),
        backlog_bytes: chunks * CHUNK,
        upload_bytes_per_second: 117_000_000,
    }
}

/// Lease holders chose by loads that were as old as a spread: of 200 hosts, 40 idled while others had 12 s of work.
#[test]
fn a_host_with_much_work_takes_no_further_spread_and_says_how_much_it_has() {
    // 10 percent of a spread of 10 chunks, and 8 chunks, are less than 24 chunks
    for (chunks, taken) in [(24, true), (25, false)] {
        let mut swarm = among(10, Config::default());
        feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
        has_to_send(&mut swarm, chunks);
        let actions = feed(&mut swarm, 1, offered(1, 0, 5, Some(Spread::Everyone)));
        let told = |action: &Action| {
            matches!(action, Action::AnnounceLoad { peer, backlog_bytes, .. }
                if *peer == key(0) && *backlog_bytes == chunks * CHUNK)
        };
        let declined = actions.contains(&Action::Decline(Ticket(1), Declined::Busy));
        assert_eq!(declined, !taken, "{chunks}");
        assert_eq!(actions.iter().any(told), !taken, "{chunks}");
        // a chunk for this host alone, or for a part of the hosts, is work of another kind
        let alone = feed(&mut swarm, 1, offered(2, 1, 6, None));
        assert!(alone.contains(&Action::Accept(Ticket(2))));
        let part = Spread::To(vec![key(7)]);
        let part = feed(&mut swarm, 1, offered(3, 2, 7, Some(part)));
        assert!(part.contains(&Action::Accept(Ticket(3))));
    }
}

/// Gives a host this many pushes to do, of chunk 0 of content 0.
fn has_to_send(swarm: &mut Swarm, chunks: u64) {
    for at in 0..chunks {
        let Swarm { ground, pushes, .. } = swarm;
        let keys = [key(at % 10)];
        let of = (None, Wisher::Nobody);
        pushes
            .jobs()
            .add_list(ground, ContentId(0), ChunkIndex(0), &keys, of);
    }
}

/// Of hosts that take nothing, the jobs of a busy host had so many left over that it took no further chunk: with 30 %
/// of such hosts a fleet of 50 took 1.34 times its bound.
#[test]
fn pushes_to_hosts_that_take_nothing_are_no_work() {
    let mut swarm = among(10, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    has_to_send(&mut swarm, 10);
    let Swarm { ground, pushes, .. } = &mut swarm;
    assert_eq!(pushes.ready_bytes(ground), 10 * CHUNK);
    // the target of each job is at an upload, and is tried later
    let index = ground.fleet.find(key(3)).unwrap();
    for at in 0..10 {
        let of = ground.fleet.find(key(at)).unwrap();
        ground.fleet[of].uploads = 1;
    }
    assert!(pushes.jobs().next(ground).is_none());
    assert_eq!(pushes.ready_bytes(ground), 10 * CHUNK, "they are only busy");
    ground.fleet[index].stuck = 1;
    assert_eq!(pushes.ready_bytes(ground), 9 * CHUNK);
}

/// Lease holders offered chunks to one host at the same time, and none of them was work yet: of 200 hosts, ten percent
/// had more than twice the work that they take.
#[test]
fn what_comes_to_be_passed_on_is_work_already() {
    let mut swarm = among(10, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    // a spread is 10 chunks of work, and a host with 24 takes one more
    for (ticket, peer) in [(1, 0), (2, 1), (3, 2)] {
        let chunk = u32::try_from(ticket).unwrap();
        let actions = feed(
            &mut swarm,
            1,
            offered(ticket, peer, chunk, Some(Spread::Everyone)),
        );
        assert_eq!(actions, [Action::Accept(Ticket(ticket))]);
    }
    let actions = feed(&mut swarm, 1, offered(4, 3, 4, Some(Spread::Everyone)));
    assert!(actions.contains(&Action::Decline(Ticket(4), Declined::Busy)));
    let told = |action: &Action| {
        matches!(action, Action::AnnounceLoad { peer, backlog_bytes, .. }
            if *peer == key(3) && *backlog_bytes == 30 * CHUNK)
    };
    assert!(actions.iter().any(told), "{actions:?}");
    // a chunk that nobody asked it to pass on is no work
    let actions = feed(&mut swarm, 1, offered(5, 4, 5, None));
    assert_eq!(actions, [Action::Accept(Ticket(5))]);
    // nor is one that takes far too long to come
    let slow = swarm.ground.pace.slow_push();
    let later = u64::try_from(slow.as_millis()).unwrap() + 2;
    assert_eq!(swarm.downloads.promised_bytes(&swarm.ground), 30 * CHUNK);
    feed(&mut swarm, later, Event::Tick);
    assert_eq!(swarm.downloads.promised_bytes(&swarm.ground), 0);
}

/// Rogues had others spread what nearly all hosts held. It counted as work, so that honest hosts declined what came
/// from the registry: with 30 % rogues a fleet of 30 took 1.26 times its bound.
#[test]
fn what_is_spread_once_more_is_no_work() {
    let mut swarm = among(10, Config::default());
    feed(&mut swarm, 0, content(0, 64, set(64, 0..16)));
    for chunk in 0..16 {
        let ticket = u64::from(chunk);
        let everyone = Some(Spread::Everyone);
        let actions = feed(&mut swarm, 1, offered(ticket, 0, chunk, everyone));
        assert!(actions.contains(&Action::Decline(Ticket(ticket), Declined::Already)));
    }
    assert_eq!(swarm.pushes.jobs().len(), 16);
    assert_eq!(swarm.pushes.backlog_bytes(), 0);
    assert_eq!(swarm.pushes.ready_bytes(&swarm.ground), 0);
    // what is lacking is taken to be spread, and is work
    let actions = feed(&mut swarm, 1, offered(20, 1, 20, Some(Spread::Everyone)));
    assert!(actions.contains(&Action::Accept(Ticket(20))));
    feed(&mut swarm, 2, arrived(1, 20));
    assert_eq!(swarm.pushes.backlog_bytes(), 10 * CHUNK);
    swarm.pushes.jobs().recount(&swarm.ground, 0);
    assert_eq!(swarm.pushes.backlog_bytes(), 10 * CHUNK);
    // the rogue leaves, and takes nothing with it that the books don't say
    feed(&mut swarm, 3, roster(9));
    feed(&mut swarm, 3, Event::Disconnected(key(0)));
    assert!(swarm.pushes.backlog_bytes() <= 10 * CHUNK);
}

#[test]
fn a_spread_that_is_declined_goes_to_another_host_and_waits_when_all_are_busy() {
    let mut swarm = among(3, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::empty(64)));
    for peer in 0..3 {
        feed(&mut swarm, 0, load(peer, peer));
    }
    swarm.pushes.jobs().add_backlog(500 * CHUNK);
    feed(&mut swarm, 1, Event::Leased(ContentId(0)));
    let came = Event::OriginChunk {
        id: ContentId(0),
        chunk: ChunkIndex(0),
        wire_bytes: CHUNK,
    };
    let mut actions = feed(&mut swarm, 1, came);
    for peer in 0..3 {
        assert_eq!(pushes(&actions), [(key(peer), 0, true)]);
        actions = feed(&mut swarm, 2, sent(key(peer), 0, Delivery::Busy));
    }
    assert_eq!(pushes(&actions), []);
    // a host has had time for a chunk, which takes 9 ms
    assert_eq!(pushes(&feed(&mut swarm, 10, Event::Tick)), []);
    let actions = feed(&mut swarm, 12, Event::Tick);
    assert_eq!(pushes(&actions).len(), 1);
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
        let index = swarm.ground.fleet.find(key(peer)).unwrap();
        swarm.ground.fleet[index].outstanding_us(swarm.ground.now, 0)
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
    // the peer does so again, with a chunk that no other host has: the wasted time buys the peer no more time
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
        work_bytes: 0,
    };
    // one upload may be lost
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
