//! Asking peers, answering them, and what they are told.

use super::*;

#[test]
fn what_a_peer_has_all_of_already_is_asked_for_at_once() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 4, ChunkSet::empty(4)));
    let actions = feed(&mut swarm, 100, announced(0, 0, ChunkSet::full(4)));
    assert!(!requests(&actions).is_empty(), "{actions:?}");
    // a content that was announced in parts before it was announced whole is still being pushed
    feed(&mut swarm, 200, content(1, 400, ChunkSet::empty(400)));
    for (millis, chunks) in [(300, set(400, [0, 1])), (700, ChunkSet::full(400))] {
        let actions = feed(&mut swarm, millis, announced(1, 1, chunks));
        let of_it =
            |action: &Action| matches!(action, Action::Request { id, .. } if *id == ContentId(1));
        assert!(!actions.iter().any(of_it), "{actions:?}");
    }
}

#[test]
fn at_the_end_what_others_have_whole_is_asked_for_though_pushes_come() {
    // no more chunks than one spread has targets, and more
    for (chunks, asks) in [(40, true), (41, false)] {
        let mut swarm = among(40, Config::default());
        feed(&mut swarm, 0, content(0, chunks, ChunkSet::empty(chunks)));
        feed(&mut swarm, 100, announced(0, 0, set(chunks, [0, 1])));
        feed(&mut swarm, 200, offered(1, 0, 0, None));
        let actions = feed(&mut swarm, 300, announced(1, 0, set(chunks, [0, 1, 2])));
        assert!(requests(&actions).is_empty(), "nobody has all: {actions:?}");
        feed(&mut swarm, 400, announced(1, 0, ChunkSet::full(chunks)));
        let asked = requests(&feed(&mut swarm, 700, Event::Tick));
        assert_eq!(!asked.is_empty(), asks, "{chunks}: {asked:?}");
        let comes = asked.iter().any(|(_, chunk)| *chunk == 0);
        assert!(!comes, "its push was accepted: {asked:?}");
    }
}

#[test]
fn a_later_image_is_not_at_its_end_while_the_first_one_lacks_something() {
    let mut swarm = among(16, Config::default());
    let of = |id: u32, rank: u16, chunks: u32| {
        let mut event = content(id, chunks, ChunkSet::empty(chunks));
        if let Event::Content { order, .. } = &mut event {
            *order = order_of(rank, id);
        }
        event
    };
    feed(&mut swarm, 0, of(0, 1, 8));
    feed(&mut swarm, 0, of(1, 2, 8));
    for (millis, have) in [(100, set(8, [0])), (200, ChunkSet::full(8))] {
        feed(&mut swarm, millis, announced(0, 1, have));
    }
    assert!(requests(&feed(&mut swarm, 500, Event::Tick)).is_empty());
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
    // both ends of a new connection announce anyway what they hold
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
    // the peer is dead and its connection still stands: every request expires
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
    // the host holds everything, so that nothing else keeps it awake
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
        work_bytes: CHUNK,
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

/// A content of an image of this rank.
fn ranked(id: u32, rank: u16, chunks: u32) -> Event {
    match content(id, chunks, ChunkSet::empty(chunks)) {
        Event::Content {
            id,
            key,
            size,
            held,
            entitled,
            ..
        } => Event::Content {
            id,
            key,
            size,
            held,
            order: order_of(rank, id.0),
            entitled,
        },
        other => other,
    }
}

/// The content and the peer of each request.
fn asked(actions: &[Action]) -> Vec<(u32, HostKey)> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::Request { peer, id, .. } => Some((id.0, *peer)),
        _ => None,
    });
    asked.collect()
}

#[test]
fn chunks_of_the_first_image_are_asked_for_before_those_of_the_next() {
    let mut swarm = among(1, Config::default());
    // the next one was introduced earlier
    feed(&mut swarm, 0, ranked(0, 2, 64));
    feed(&mut swarm, 0, ranked(1, 1, 64));
    feed(&mut swarm, 100, Event::StepBack(false));
    feed(&mut swarm, 100, Event::Disconnected(key(0)));
    let mut actions = Vec::new();
    for event in [
        Event::Connected(key(0)),
        announced(0, 0, ChunkSet::full(64)),
        announced(0, 1, ChunkSet::full(64)),
    ] {
        actions.extend(feed(&mut swarm, 200, event));
    }
    let before = asked(&actions).len();
    // the peer answers what was asked of the next image when nothing was known of the first
    let mut later = Vec::new();
    for action in actions {
        if let Action::Request { peer, id, chunk } = action {
            let arrived = Event::Arrived {
                peer,
                id,
                chunk,
                wire_bytes: CHUNK,
            };
            later.extend(feed(&mut swarm, 300, arrived));
        }
    }
    let later = asked(&later);
    assert!(before > 0 && !later.is_empty());
    assert!(later.iter().all(|(id, _)| *id == 1), "{later:?}");
    // the order changes while they move
    feed(&mut swarm, 400, ranked(0, 1, 64));
    feed(&mut swarm, 400, ranked(1, 2, 64));
    let more = Event::Arrived {
        peer: key(0),
        id: ContentId(1),
        chunk: swarm_asked(&swarm, 1),
        wire_bytes: CHUNK,
    };
    let now = asked(&feed(&mut swarm, 500, more));
    assert!(now.iter().all(|(id, _)| *id == 0), "{now:?}");
}

/// A chunk of this content that was asked for and hasn't come.
fn swarm_asked(swarm: &Swarm, id: u32) -> ChunkIndex {
    let content = swarm.ground.contents.get(ContentId(id)).unwrap();
    content.pending.iter().next().unwrap()
}

#[test]
fn where_nobody_can_give_more_of_the_first_image_the_next_is_asked_for() {
    let mut swarm = among(2, Config::default());
    // more than is looked at in one pass
    feed(&mut swarm, 0, ranked(0, 1, 600));
    feed(&mut swarm, 0, ranked(1, 2, 600));
    let mut actions = feed(&mut swarm, 100, announced(0, 0, ChunkSet::full(600)));
    actions.extend(feed(&mut swarm, 100, announced(1, 1, ChunkSet::full(600))));
    let asked = asked(&actions);
    assert!(asked.contains(&(0, key(0))), "{asked:?}");
    assert!(asked.contains(&(1, key(1))), "{asked:?}");
}

#[test]
fn what_a_client_reads_comes_before_the_first_image() {
    let mut swarm = among(1, Config::default());
    feed(&mut swarm, 0, ranked(0, 1, 64));
    feed(&mut swarm, 0, ranked(1, 2, 64));
    let wanted = Event::Wanted {
        id: ContentId(1),
        alone_after: Duration::from_secs(60),
        admitted: false,
    };
    feed(&mut swarm, 0, wanted);
    let first = |swarm: &Swarm| swarm.ground.contents.incomplete().next().unwrap().1;
    assert_eq!(first(&swarm), ContentId(1));
    feed(&mut swarm, 1, ranked(1, 3, 64));
    assert_eq!(first(&swarm), ContentId(1));
    feed(&mut swarm, 2, Event::Unwanted(ContentId(1)));
    assert_eq!(first(&swarm), ContentId(0));
}
