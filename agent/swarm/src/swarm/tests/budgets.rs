//! Byte budgets, up and down.

use super::*;

#[test]
fn a_budget_is_charged_what_went_over_the_wire() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let budget = Event::Bandwidth {
        upload_bytes_per_second: CHUNK,
        download_bytes_per_second: CHUNK,
    };
    feed(&mut swarm, 0, budget);
    // chunks of zeros cost nothing: they go out as fast as peers ask for them
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
            work_bytes: 0,
        };
        feed(&mut swarm, now, done);
    }
    // a layer that is small in the registry costs its size there
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
    assert!(swarm.ground.pace.may_receive(at(2_001)));
}

/// The registry gives at once whatever it is asked for, on four streams.
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
            let Action::Fetch { id, until, .. } = action else {
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
                work_bytes: CHUNK,
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

/// How many answers a peer gets in ten seconds that asks again whenever it has one. Each answer takes this long, sends
/// so many bytes, and is as much work as sending so many.
fn answers(takes_ms: u64, (wire_bytes, work_bytes): (u64, u64)) -> u64 {
    let config = Config {
        // a chunk in 10 ms
        assumed_rate_bytes_per_second: 100 * CHUNK,
        ..Config::default()
    };
    let mut swarm = among(1, config);
    feed(&mut swarm, 0, content(0, 64, ChunkSet::full(64)));
    let mut under_way: Vec<(u64, Ticket)> = Vec::new();
    let (mut asked, mut answered) = (0, 0);
    for now in 1..=10_000 {
        let over = under_way.extract_if(.., |(until, _)| *until <= now);
        let mut actions = Vec::new();
        for (_, ticket) in over.collect::<Vec<_>>() {
            answered += 1;
            let done = Event::Sent {
                peer: key(0),
                id: ContentId(0),
                chunk: ChunkIndex(0),
                ticket: Some(ticket),
                delivery: Delivery::Stored,
                wire_bytes,
                work_bytes,
            };
            actions.extend(feed(&mut swarm, now, done));
        }
        while asked < answered + 4 {
            asked += 1;
            let ask = Event::Requested {
                ticket: Ticket(asked),
                peer: key(0),
                id: ContentId(0),
                chunk: ChunkIndex(0),
            };
            actions.extend(feed(&mut swarm, now, ask));
        }
        if swarm.next_timeout().is_some_and(|due| due <= at(now)) {
            actions.extend(feed(&mut swarm, now, Event::Tick));
        }
        for action in actions {
            match action {
                Action::Serve(ticket) => under_way.push((now + takes_ms, ticket)),
                Action::Refuse(..) => panic!("{action:?}"),
                _ => {}
            }
        }
    }
    answered
}

#[test]
fn who_asks_for_tiny_parts_in_a_loop_gets_no_more_work_than_who_asks_for_whole_chunks() {
    // two at a time share the uplink, and each takes twice as long
    let whole = answers(20, (CHUNK, CHUNK));
    assert!(
        (990..=1_000).contains(&whole),
        "{whole} whole chunks in 10 s"
    );
    // no budget is set, and the bytes alone would let thousands of them through
    let parts = answers(1, (4 << 10, CHUNK / 2));
    assert!(
        parts <= whole * 2 * 102 / 100,
        "{parts} parts, {whole} chunks"
    );
    assert!(
        parts >= whole * 2 * 95 / 100,
        "{parts} parts, {whole} chunks"
    );
    // zeros are no work, and the peer gets them as fast as it takes them
    let zeros = answers(1, (0, 0));
    assert!(zeros >= 19_000, "{zeros}");
}
