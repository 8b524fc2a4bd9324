//! Connections that come and go, rosters, and peers that break the protocol.

use super::*;

#[test]
fn a_peer_that_connects_is_listened_to_and_told_what_is_here() {
    let mut world = World::new();
    let effects = world.connect("a", 1);
    assert!(matches!(
        &effects[..2],
        [
            Effect::Run(Errand::Listen { connection, peer, .. }),
            Effect::Run(Errand::Announce { connection: on, .. }),
        ] if (connection.number, *peer, on.number) == (1, key("a"), 1)
    ));
    assert_eq!(world.exchange.status().connected, 1);
}

#[test]
fn a_stranger_is_hung_up_on_and_nobody_hears_of_it() {
    let mut world = World::new();
    let effects = world.connect("stranger", 9);
    assert!(effects.is_empty(), "{effects:?}");
    assert_eq!(*world.closed.borrow(), [(9, CloseCode::Unauthorised)]);
    assert_eq!(world.exchange.status().connected, 0);
}

#[test]
fn a_new_neighbour_is_dialled_at_its_address() {
    let mut world = World::new();
    let hosts = roster(&["a", "b", "c"]);
    world.exchange.roster(2, &hosts, &["c".into()]);
    let mut effects = world.effects();
    effects.extend(world.pass(Duration::from_secs(1)));
    let dials = effects.iter().filter_map(|effect| match effect {
        Effect::Run(Errand::Dial(dial)) => Some((dial.host.clone(), dial.address)),
        _ => None,
    });
    let c = (host("c"), "10.0.0.1:7".parse().unwrap());
    assert_eq!(dials.collect::<Vec<_>>(), [c]);
}

#[test]
fn a_host_whose_system_reaches_nobody_knows_why() {
    let mut world = World::new();
    let no_route = || ConnectError::NoRoute {
        host: host("a"),
        address: "10.0.0.1:7".parse().unwrap(),
        cause: "no route to host".into(),
    };
    assert_eq!(world.exchange.apart(), None);
    world.exchange.connected(key("a"), Err(no_route()));
    let apart = world.exchange.apart().expect("nobody is reached");
    assert!(
        apart.message.contains("no route to host"),
        "{}",
        apart.message
    );
    world.connect("b", 2);
    assert_eq!(world.exchange.apart(), None);
}

#[test]
fn who_leaves_the_roster_is_hung_up_on_before_any_effect_is_taken() {
    let mut world = World::new();
    world.connect("a", 1);
    world.exchange.roster(2, &roster(&["b"]), &[]);
    assert_eq!(*world.closed.borrow(), [(1, CloseCode::Unauthorised)]);
    assert_eq!(world.exchange.status().peers, 1);
}

#[test]
fn a_change_of_a_roster_that_isnt_here_changes_nothing() {
    let mut world = World::new();
    let change = |from_epoch| RosterChange {
        from_epoch,
        epoch: 9,
        hosts: roster(&["c"]),
        gone: vec!["a".into()],
    };
    assert!(!world.exchange.change_roster(&change(7)));
    assert_eq!(
        (
            world.exchange.hosts().epoch(),
            world.exchange.status().peers
        ),
        (1, 2)
    );
    assert!(world.exchange.change_roster(&change(1)));
    let ids: Vec<_> = world
        .exchange
        .hosts()
        .ids()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ids.len(), 2);
    assert!(
        ids.contains(&"b".into()) && ids.contains(&"c".into()),
        "{ids:?}"
    );
}

#[test]
fn who_breaks_the_protocol_is_blamed_and_not_spoken_to_for_a_while() {
    let (mut world, _) = World::with([]);
    let effects = world.brought("a", Brought::Nonsense("no message".into()));
    assert_eq!(blamed(&effects)[0], ("a".into(), None, BlameKind::Protocol));
    assert_eq!(world.exchange.status().quarantined, [key("a")]);
    let effects = world.brought("a", request(0));
    let why = effects.iter().find_map(|effect| match effect {
        Effect::Run(Errand::Refuse {
            answer: "answer",
            why,
        }) => Some(*why),
        _ => None,
    });
    assert_eq!(why, Some(Declined::Quarantined));
}

#[test]
fn an_announcement_of_chunks_that_a_content_doesnt_have_is_no_news() {
    let (mut world, _) = World::with([]);
    let mut update = whole();
    update.have[0].runs = vec![0, CHUNKS + 1];
    let effects = world.brought("a", Brought::Update(update));
    assert!(
        asked(&effects).is_empty() && blamed(&effects).is_empty(),
        "{effects:?}"
    );
}

#[test]
fn what_was_announced_before_the_content_was_known_counts_once_it_is() {
    let mut world = World::new();
    world.connect("a", 1);
    let effects = world.brought("a", Brought::Update(whole()));
    assert!(effects.is_empty(), "{effects:?}");
    let effects = world.exchange_wants();
    assert_eq!(asked(&effects)[0].line, Some(1));
}

#[test]
fn when_another_connection_takes_over_what_came_over_the_first_is_given_up() {
    let (mut world, _) = World::with([]);
    let first = world.asking();
    world.connect("a", 3);
    world.exchange.connection_ended(key("a"), 1, "reset");
    assert!(first.receiving.token.is_cancelled());
    let streams = world.effects();
    let on = streams.iter().find_map(|effect| match effect {
        Effect::Run(Errand::Announce { connection, .. }) => Some(connection.number),
        _ => None,
    });
    assert_eq!(on, Some(3));
}

#[test]
fn a_chunk_that_was_lost_with_its_connection_is_no_failure_of_the_next_transfer() {
    let (mut world, id) = World::with([]);
    let lost = world.asking();
    world.connect("a", 3);
    world.exchange.connection_ended(key("a"), 1, "reset");
    world.effects();
    // the peer announces anew, and is asked over the connection that is left
    let again = world.asking();
    assert_eq!((again.transfer, again.line), (lost.transfer, Some(3)));
    let requested = |world: &World| world.exchange.status().content(id).unwrap().requested;
    let before = requested(&world);
    let effects = world.received(&lost, Receipt::cancelled());
    assert!(effects.is_empty(), "{effects:?}");
    assert_eq!(requested(&world), before);
    assert!(!again.receiving.token.is_cancelled());
}

#[test]
fn a_chunk_that_came_over_a_connection_before_it_broke_counts_all_the_same() {
    let (mut world, id) = World::with([]);
    let late = world.asking();
    world.connect("a", 3);
    world.exchange.connection_ended(key("a"), 1, "reset");
    world.effects();
    world.received(&late, stored(100));
    assert_eq!(
        (world.held(id), world.bytes_from(From::Peers)),
        (Some(1), 100)
    );
}

#[test]
fn what_comes_is_announced_to_neighbours_with_the_next_flush() {
    let mut world = World::new();
    let streams = world.connect("b", 2);
    let mut updates = streams
        .into_iter()
        .find_map(|effect| match effect {
            Effect::Run(Errand::Announce { updates, .. }) => Some(updates),
            _ => None,
        })
        .expect("a stream of announcements");
    world.add(image(1), ChunkSet::full(CHUNKS));
    world.effects();
    world.pass(Duration::from_secs(1));
    assert!(
        updates.try_recv().is_err(),
        "nothing is sent before the flush"
    );
    world.exchange.flush_updates();
    let update = updates.try_recv().unwrap();
    assert_eq!(update.have, whole().have);
}

impl World {
    /// Image 1 wants the content.
    fn exchange_wants(&mut self) -> Vec<Effect<Made>> {
        self.add(image(1), ChunkSet::empty(CHUNKS));
        self.effects()
    }
}
