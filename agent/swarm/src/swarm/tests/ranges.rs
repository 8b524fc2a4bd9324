use super::*;

const ID: ContentId = ContentId(0);

fn range(from: u32, until: u32) -> ChunkRange {
    ChunkRange::new(from, until).unwrap()
}

/// A swarm that orders all of a lease at once, and holds these chunks of 64.
fn holding(held: impl IntoIterator<Item = u32>) -> Swarm {
    let config = Config {
        lease_window: 64,
        ..Config::default()
    };
    let mut swarm = among(3, config);
    feed(&mut swarm, 0, content(0, 64, set(64, held)));
    swarm
}

fn fetches(actions: &[Action]) -> Vec<(Option<ChunkRange>, u32)> {
    let fetches = actions.iter().filter_map(|action| match action {
        Action::Fetch { range, until, .. } => Some((*range, until.0)),
        _ => None,
    });
    fetches.collect()
}

fn from_registry(chunk: u32) -> Event {
    Event::OriginChunk {
        id: ID,
        chunk: ChunkIndex(chunk),
        wire_bytes: CHUNK,
    }
}

#[test]
fn of_a_range_only_its_chunks_are_ordered() {
    let mut swarm = holding([15]);
    let actions = feed(&mut swarm, 1, Event::RangeLeased(ID, range(16, 64)));
    assert_eq!(fetches(&actions), [(Some(range(16, 64)), 64)]);
    let mut swarm = holding([15, 31]);
    let actions = feed(&mut swarm, 1, Event::RangeLeased(ID, range(16, 32)));
    assert_eq!(fetches(&actions), [(Some(range(16, 32)), 32)]);
    assert!(swarm.status(at(1)).contents[0].leased);
}

#[test]
fn a_range_begins_and_the_one_before_ends_behind_a_chunk_that_is_held() {
    // the chunks of a layer are packed so that each needs the end of the one before
    let held = [19, 40];
    let mut first = holding(held);
    let actions = feed(&mut first, 1, Event::RangeLeased(ID, range(0, 16)));
    assert_eq!(fetches(&actions), [(Some(range(0, 20)), 20)]);
    let mut second = holding(held);
    let actions = feed(&mut second, 1, Event::RangeLeased(ID, range(16, 32)));
    assert_eq!(fetches(&actions), [(Some(range(20, 41)), 41)]);
    // nothing of this range can be begun, and the holder of the one before goes on to the end
    let mut third = holding([19]);
    let actions = feed(&mut third, 1, Event::RangeLeased(ID, range(32, 64)));
    assert_eq!(actions, [Action::RangeDone(ID)]);
    assert!(!third.status(at(1)).contents[0].leased);
}

#[test]
fn a_range_is_done_when_peers_brought_the_rest_of_it() {
    let mut swarm = holding((0..12).chain(16..64));
    let actions = feed(&mut swarm, 1, Event::RangeLeased(ID, range(12, 14)));
    // the place to end at is behind the next chunk that is held
    assert_eq!(fetches(&actions), [(Some(range(12, 17)), 17)]);
    for chunk in 12..15 {
        feed(&mut swarm, 2, from_registry(chunk));
    }
    let actions = feed(&mut swarm, 3, arrived(1, 15));
    assert!(actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    // all of the content is here with it
    assert!(actions.contains(&Action::ReleaseLease(ID)), "{actions:?}");

    let mut swarm = holding((0..12).chain(16..63));
    feed(&mut swarm, 1, Event::RangeLeased(ID, range(12, 14)));
    for chunk in 12..15 {
        feed(&mut swarm, 2, from_registry(chunk));
    }
    let actions = feed(&mut swarm, 3, arrived(1, 15));
    assert!(actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    assert!(actions.contains(&Action::RangeDone(ID)), "{actions:?}");
    assert!(!swarm.status(at(3)).contents[0].leased);
}

#[test]
fn a_range_whose_fetch_ended_is_over_without_another_word() {
    let mut swarm = holding([31]);
    feed(&mut swarm, 1, Event::RangeLeased(ID, range(32, 64)));
    for chunk in 32..64 {
        feed(&mut swarm, 2, from_registry(chunk));
    }
    let end = OriginEnd::Done;
    let actions = feed(&mut swarm, 3, Event::OriginEnded { id: ID, end });
    assert!(!actions.contains(&Action::ReleaseLease(ID)), "{actions:?}");
    assert!(!swarm.status(at(3)).contents[0].leased);
}

#[test]
fn another_range_or_the_whole_content_takes_the_place_of_a_range() {
    let mut swarm = holding([15, 31]);
    feed(&mut swarm, 1, Event::RangeLeased(ID, range(16, 32)));
    // the order is repeated
    let actions = feed(&mut swarm, 2, Event::RangeLeased(ID, range(16, 32)));
    assert!(!actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    let actions = feed(&mut swarm, 3, Event::RangeLeased(ID, range(32, 64)));
    assert!(actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    assert_eq!(fetches(&actions), [(Some(range(32, 64)), 64)]);
    let actions = feed(&mut swarm, 4, Event::Leased(ID));
    assert!(actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    assert_eq!(fetches(&actions), [(None, 64)]);
}

#[test]
fn a_range_behind_the_contents_end_is_done_at_once_and_one_across_it_ends_there() {
    let mut swarm = holding([15, 31]);
    for (from, until) in [(64, 65), (200, u32::MAX)] {
        let actions = feed(&mut swarm, 1, Event::RangeLeased(ID, range(from, until)));
        assert_eq!(actions, [Action::RangeDone(ID)]);
    }
    let actions = feed(&mut swarm, 2, Event::RangeLeased(ID, range(32, u32::MAX)));
    assert_eq!(fetches(&actions), [(Some(range(32, 64)), 64)]);
}

#[test]
fn a_lease_that_becomes_one_of_a_range_behind_which_its_host_is_already_is_done() {
    let mut swarm = holding([]);
    feed(&mut swarm, 1, Event::Leased(ID));
    for chunk in 0..40 {
        feed(&mut swarm, 2, from_registry(chunk));
    }
    let actions = feed(&mut swarm, 3, Event::RangeLeased(ID, range(0, 32)));
    assert!(actions.contains(&Action::StopFetch(ID)), "{actions:?}");
    assert!(actions.contains(&Action::RangeDone(ID)), "{actions:?}");
    assert_eq!(fetches(&actions), []);
    assert!(!swarm.status(at(3)).contents[0].leased);
}

#[test]
fn a_range_whose_coordinator_goes_is_fetched_to_its_end_and_the_rest_by_whose_turn_it_is() {
    let mut swarm = holding([15, 31]);
    feed(&mut swarm, 1, Event::RangeLeased(ID, range(16, 32)));
    feed(&mut swarm, 2, Event::Coordinator(false));
    for chunk in 16..31 {
        feed(&mut swarm, 3, from_registry(chunk));
    }
    let end = OriginEnd::Done;
    feed(&mut swarm, 4, Event::OriginEnded { id: ID, end });
    assert!(!swarm.status(at(4)).contents[0].leased);
    let mut actions = Vec::new();
    for second in 5..120 {
        actions.extend(feed(&mut swarm, second * 1_000, Event::Tick));
    }
    assert!(
        fetches(&actions).iter().any(|(range, _)| range.is_none()),
        "{actions:?}"
    );
}
