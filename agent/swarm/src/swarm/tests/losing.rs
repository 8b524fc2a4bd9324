//! Peers that are shunned, chunks that are lost or disproved, and what a content that stands still waits for.

use super::*;

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
    // the peer is asked for chunks 2 to 4, and meanwhile the registry for nothing: it would send the same chunks
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
    // the announcement is a question; its answer comes as any announcement does
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
    // the question is asked once
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
    // the minute in which the lease waited for its turn doesn't count against the registry
    feed(&mut swarm, 60_000, Event::Leased(ContentId(0)));
    assert_eq!(
        silent(&swarm, 60_300),
        (Some(Stall::Fetching), Some(Duration::from_millis(300)))
    );
    assert_eq!(silent(&swarm, 62_999).0, Some(Stall::Fetching));
    assert_eq!(silent(&swarm, 63_000).0, Some(Stall::OriginSilent));
    // a chunk that comes from a peer says nothing about the registry
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
    // no other host is there, so that nothing has to be handed on
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

/// The number of requests within a minute, if each is answered at once, and the last reason for a stall.
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
    // twice the content and a little more cost no pause; after that each quarter of the content does
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
    // the peer mended the chunk
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
