//! What clients of this host wait for: when it is fetched without a lease, and what becomes of that.

use proto::tie::mix;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const NOTHING: [u32; 0] = [];

fn wanted(id: u32) -> Event {
    Event::Wanted {
        id: ContentId(id),
        alone_after: PATIENCE,
        admitted: false,
    }
}

fn admitted(id: u32) -> Event {
    Event::Wanted {
        id: ContentId(id),
        alone_after: PATIENCE,
        admitted: true,
    }
}

/// The contents whose fetch begins or goes on.
fn fetches(actions: &[Action]) -> Vec<u32> {
    let fetched = actions.iter().filter_map(|action| match action {
        Action::Fetch { id, .. } => Some(id.0),
        _ => None,
    });
    fetched.collect()
}

/// A swarm with a content of four chunks that a client has wanted since the beginning.
fn with_a_want() -> Swarm {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, content(0, 4, ChunkSet::empty(4)));
    let actions = feed(&mut swarm, 0, wanted(0));
    assert_eq!(fetches(&actions), NOTHING);
    swarm
}

fn origin_chunk(chunk: u32) -> Event {
    Event::OriginChunk {
        id: ContentId(0),
        chunk: ChunkIndex(chunk),
        wire_bytes: CHUNK,
    }
}

fn ended(end: OriginEnd) -> Event {
    Event::OriginEnded {
        id: ContentId(0),
        end,
    }
}

/// Chunks that are asked for, in order, until all that peers announced is.
fn asked(swarm: &mut Swarm, from: u64, until: u64) -> Vec<(u64, u32)> {
    let mut asked = Vec::new();
    for millis in (from..until).step_by(50) {
        let actions = feed(swarm, millis, Event::Tick);
        asked.extend(requests(&actions).iter().map(|(_, chunk)| (millis, *chunk)));
    }
    asked
}

#[test]
fn what_a_client_reads_next_is_asked_for_before_the_grace_and_in_order() {
    let half = || announced(0, 0, set(64, 0..32));
    // a host that comes late: nobody pushes what was announced before
    let mut late = among(2, Config::default());
    feed(&mut late, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut late, 0, half());
    let first = feed(&mut late, 100, wanted(0));
    let first: Vec<_> = requests(&first).iter().map(|(_, chunk)| *chunk).collect();
    // as many as one peer is asked for at a time
    assert_eq!(first, [0, 1]);
    // a host that waits already: the chunk is most likely being pushed
    let mut early = among(2, Config::default());
    feed(&mut early, 0, content(0, 64, ChunkSet::empty(64)));
    feed(&mut early, 0, wanted(0));
    feed(&mut early, 100, half());
    let all = asked(&mut early, 100, 1_500);
    let chunks: Vec<_> = all.iter().map(|(_, chunk)| *chunk).collect();
    assert_eq!(chunks, [0, 1], "{all:?}");
    let at = all[0].0;
    assert!((350..=750).contains(&at), "{at}");
    // nobody reads any more: what isn't due yet waits for the grace
    feed(&mut early, 1_500, Event::Unwanted(ContentId(0)));
    let mut chunks = Vec::new();
    for chunk in 0..2 {
        let actions = feed(&mut early, 1_500, arrived(0, chunk));
        chunks.extend(requests(&actions).iter().map(|(_, chunk)| *chunk));
    }
    chunks.extend(
        asked(&mut early, 1_500, 1_900)
            .iter()
            .map(|(_, chunk)| *chunk),
    );
    chunks.sort_unstable();
    assert_eq!(chunks, [2, 3]);
}

#[test]
fn a_client_that_nobody_serves_is_served_after_the_patience_and_not_before() {
    let mut swarm = with_a_want();
    assert_eq!(fetches(&feed(&mut swarm, 9_999, Event::Tick)), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, 10_250, Event::Tick)), [0]);
}

#[test]
fn chunks_and_word_of_chunks_are_waited_for() {
    for news in [arrived(0, 1), Event::Coming(ContentId(0))] {
        let mut swarm = with_a_want();
        feed(&mut swarm, 9_000, news);
        assert_eq!(fetches(&feed(&mut swarm, 18_999, Event::Tick)), NOTHING);
        assert_eq!(fetches(&feed(&mut swarm, 19_250, Event::Tick)), [0]);
    }
}

#[test]
fn without_a_coordinator_a_client_is_served_after_half_a_second() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 100, Event::Coordinator(false));
    assert_eq!(fetches(&feed(&mut swarm, 499, Event::Tick)), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, 750, Event::Tick)), [0]);
}

#[test]
fn of_neighbours_that_want_the_same_one_after_the_other_goes_to_the_registry() {
    let mut swarm = with_a_want();
    let mine = mix(ME.0, 0);
    let before = (0..2).filter(|peer| mix(key(*peer).0, 0) > mine).count();
    for peer in 0..2 {
        feed(&mut swarm, 1, announced(peer, 0, ChunkSet::empty(4)));
    }
    let due = 10_000 * (1 + u64::try_from(before).unwrap());
    assert!(
        before > 0,
        "the keys are chosen so that somebody comes first"
    );
    assert_eq!(fetches(&feed(&mut swarm, due - 1, Event::Tick)), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, due + 250, Event::Tick)), [0]);
}

#[test]
fn a_lone_fetch_that_the_coordinator_leases_goes_on_as_its_lease() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 10_250, Event::Tick);
    let actions = feed(&mut swarm, 10_300, Event::Leased(ContentId(0)));
    assert!(!actions.contains(&Action::StopFetch(ContentId(0))));
    let actions = feed(&mut swarm, 10_400, Event::LeaseLost(ContentId(0)));
    assert!(actions.contains(&Action::StopFetch(ContentId(0))));
    // the coordinator took the lease back and has another host fetch: the wait begins anew
    assert_eq!(fetches(&feed(&mut swarm, 20_399, Event::Tick)), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, 20_650, Event::Tick)), [0]);
}

#[test]
fn a_lone_fetch_is_nobodys_to_take_back_or_to_be_told_of() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 10_250, Event::Tick);
    let mut actions = feed(&mut swarm, 10_300, Event::LeaseLost(ContentId(0)));
    for chunk in 0..4 {
        actions.extend(feed(&mut swarm, 10_400, origin_chunk(chunk)));
    }
    actions.extend(feed(&mut swarm, 10_500, ended(OriginEnd::Done)));
    let about_leases =
        |action: &&Action| matches!(action, Action::StopFetch(_) | Action::ReleaseLease(_));
    assert_eq!(actions.iter().find(about_leases), None);
}

#[test]
fn a_coordinator_that_comes_back_leaves_a_lone_fetch_alone() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 100, Event::Coordinator(false));
    feed(&mut swarm, 750, Event::Tick);
    let mut actions = feed(&mut swarm, 20_000, Event::Tick);
    actions.extend(feed(&mut swarm, 20_100, Event::Coordinator(true)));
    assert!(!actions.contains(&Action::StopFetch(ContentId(0))));
}

#[test]
fn a_failed_registry_is_asked_again_a_patience_after_the_last_chunk() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 10_000, Event::Tick);
    feed(&mut swarm, 12_000, origin_chunk(0));
    feed(&mut swarm, 13_000, ended(OriginEnd::Failed));
    assert_eq!(fetches(&feed(&mut swarm, 21_999, Event::Tick)), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, 22_250, Event::Tick)), [0]);
}

#[test]
fn a_registry_that_refuses_is_asked_again_when_it_has_let_a_client_in() {
    let mut swarm = with_a_want();
    feed(&mut swarm, 10_000, Event::Tick);
    feed(&mut swarm, 10_100, ended(OriginEnd::Refused));
    let mut actions = feed(&mut swarm, 300_000, Event::Tick);
    actions.extend(feed(&mut swarm, 300_000, wanted(0)));
    assert_eq!(fetches(&actions), NOTHING);
    assert_eq!(fetches(&feed(&mut swarm, 300_001, admitted(0))), [0]);
}

#[test]
fn so_many_contents_are_fetched_alone_at_one_time_and_the_next_after_them() {
    let config = Config {
        lone_fetches: 2,
        ..Config::default()
    };
    let mut swarm = among(0, config);
    for id in [3, 0, 1] {
        feed(
            &mut swarm,
            u64::from(id),
            content(id, 4, ChunkSet::empty(4)),
        );
        feed(&mut swarm, u64::from(id), wanted(id));
    }
    assert_eq!(fetches(&feed(&mut swarm, 20_000, Event::Tick)), [0, 1]);
    assert_eq!(fetches(&feed(&mut swarm, 20_500, Event::Tick)), NOTHING);
    feed(&mut swarm, 20_600, ended(OriginEnd::Failed));
    assert_eq!(fetches(&feed(&mut swarm, 21_000, Event::Tick)), [3]);
}

#[test]
fn what_is_here_or_no_longer_wanted_is_fetched_by_nobody() {
    let mut swarm = with_a_want();
    for chunk in 0..4 {
        feed(&mut swarm, 1, arrived(0, chunk));
    }
    assert_eq!(fetches(&feed(&mut swarm, 60_000, Event::Tick)), NOTHING);
    // a chunk is proved false at the end: the client still waits
    let lost = Event::ChunkLost {
        id: ContentId(0),
        chunk: ChunkIndex(3),
    };
    assert_eq!(fetches(&feed(&mut swarm, 61_000, lost)), [0]);
    for end in [Event::Unwanted(ContentId(0)), Event::Dropped(ContentId(0))] {
        let mut swarm = with_a_want();
        feed(&mut swarm, 1, end);
        feed(&mut swarm, 2, content(0, 4, ChunkSet::empty(4)));
        assert_eq!(fetches(&feed(&mut swarm, 60_000, Event::Tick)), NOTHING);
    }
}

#[test]
fn a_want_of_what_isnt_known_is_no_want() {
    let mut swarm = among(2, Config::default());
    feed(&mut swarm, 0, wanted(0));
    feed(&mut swarm, 1, content(0, 4, ChunkSet::empty(4)));
    assert_eq!(fetches(&feed(&mut swarm, 60_000, Event::Tick)), NOTHING);
}
