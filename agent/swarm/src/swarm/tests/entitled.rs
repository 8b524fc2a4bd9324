//! Contents that some hosts alone may have.

use super::*;

/// The event `content`, for these peers alone.
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
    // one more host may have the content: the host hears of it, and is served
    swarm.handle(at(3), content_for(0, 4, ChunkSet::full(4), &[0, 1]));
    let told = drain(&mut swarm);
    assert!(told.iter().any(|action| matches!(action, Action::Announce { peer, chunks, .. } if *peer == key(0) && chunks.is_full())), "{told:?}");
    assert_eq!(ask(&mut swarm, 3, 0), [Action::Serve(Ticket(3))]);
    // a host that connects later hears only of contents that it may have
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

/// A push of a chunk of content 0 ended well.
fn stored(peer: HostKey, chunk: ChunkIndex) -> Event {
    Event::Sent {
        peer,
        id: ContentId(0),
        chunk,
        ticket: None,
        delivery: Delivery::Stored,
        wire_bytes: CHUNK,
        work_bytes: CHUNK,
    }
}

#[test]
fn a_fresh_chunk_is_spread_among_those_alone_that_may_have_it() {
    for direct_targets in [2, 100] {
        // each part's spreader has to be an entitled host too, and these are few among many
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
                    swarm.handle(at(now), stored(peer, chunk));
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
                    swarm.handle(at(now), stored(peer, chunk));
                }
            }
        }
        assert_eq!(got.len(), 8, "each chunk left this host");
    }
}
