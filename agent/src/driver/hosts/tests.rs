use super::*;

/// A connection is a number here.
type Line = u32;

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn key(name: &str) -> HostKey {
    host(name).key()
}

fn digest(at: u32) -> Digest {
    Digest::of(&at.to_le_bytes())
}

fn entry(host: &str, address: &str) -> RosterEntry {
    RosterEntry {
        host: host.into(),
        address: address.into(),
        zone: String::new(),
        enrolled_at: 5,
    }
}

fn roster(hosts: &[&str]) -> Vec<RosterEntry> {
    hosts.iter().map(|host| entry(host, "")).collect()
}

/// A roster with one host: `peer`.
fn with_peer() -> (Hosts<Line>, HostKey) {
    let mut hosts = Hosts::default();
    hosts.replace(&host("me"), 1, &[entry("peer", "10.0.0.1:7")], &[]);
    (hosts, key("peer"))
}

/// The serial of a connection that was kept.
fn serial(effects: &[Effect<Line>]) -> u64 {
    let listens = effects.iter().find_map(|effect| match effect {
        Effect::Listen { serial, .. } => Some(*serial),
        _ => None,
    });
    listens.expect("the connection is listened to")
}

fn closed(effects: &[Effect<Line>]) -> Vec<Line> {
    let close = |effect: &Effect<Line>| match effect {
        Effect::Close { connection, .. } => Some(*connection),
        _ => None,
    };
    effects.iter().filter_map(close).collect()
}

fn told(effects: &[Effect<Line>]) -> Vec<Event> {
    let told = |effect: &Effect<Line>| match effect {
        Effect::Tell(event) => Some(event.clone()),
        _ => None,
    };
    effects.iter().filter_map(told).collect()
}

/// The stream of announcements that these effects open, and on which connection.
fn stream(effects: Vec<Effect<Line>>) -> Option<(Line, mpsc::Receiver<PeerUpdate>)> {
    effects.into_iter().find_map(|effect| match effect {
        Effect::Announce {
            connection,
            updates,
        } => Some((connection, updates)),
        _ => None,
    })
}

fn peers(effects: &[Effect<Line>]) -> Vec<(HostKey, bool)> {
    let Some(Event::Roster(peers)) = told(effects).pop() else {
        panic!("no roster: {effects:?}");
    };
    let follows = peers.iter().map(|peer| (peer.key, peer.neighbour));
    let mut follows: Vec<_> = follows.collect();
    follows.sort_unstable();
    follows
}

#[test]
fn the_first_connection_carries_the_streams_and_the_next_is_in_reserve() {
    let (mut hosts, peer) = with_peer();
    assert_eq!(hosts.connection(peer), None);
    let first = hosts.connected(peer, 1);
    assert_eq!(told(&first), [Event::Connected(peer)]);
    assert_eq!(stream(first).map(|(line, _)| line), Some(1));
    let second = hosts.connected(peer, 2);
    assert_eq!(told(&second), []);
    assert!(stream(second).is_none());
    assert_eq!(hosts.connection(peer), Some(1));
}

#[test]
fn a_stranger_is_hung_up_on() {
    let (mut hosts, _) = with_peer();
    let effects = hosts.connected(key("stranger"), 9);
    assert_eq!((closed(&effects), effects.len()), (vec![9], 1));
    assert_eq!(hosts.connection(key("stranger")), None);
}

#[test]
fn a_peer_without_an_address_is_not_dialled() {
    let mut hosts: Hosts<Line> = Hosts::default();
    let entries = [entry("a", "10.0.0.1:7"), entry("b", "")];
    hosts.replace(&host("me"), 1, &entries, &[]);
    match hosts.dial(key("a")) {
        Effect::Dial(Dial { host, address, .. }) => {
            assert_eq!(
                (host.as_str(), address),
                ("a", "10.0.0.1:7".parse().unwrap())
            );
        }
        other => panic!("{other:?}"),
    }
    for unreachable in ["b", "nobody"] {
        let effect = hosts.dial(key(unreachable));
        assert_eq!(
            told(&[effect]),
            [Event::Disconnected(key(unreachable))],
            "{unreachable}"
        );
    }
}

#[test]
fn a_failed_dial_counts_only_when_the_other_side_has_not_connected() {
    let (mut hosts, peer) = with_peer();
    let effect = hosts.not_connected(peer, &silent()).unwrap();
    assert_eq!(told(&[effect]), [Event::Disconnected(peer)]);
    hosts.connected(peer, 1);
    assert!(hosts.not_connected(peer, &silent()).is_none());
}

fn silent() -> ConnectError {
    ConnectError::TimedOut {
        host: host("peer"),
        address: "10.0.0.1:7".parse().unwrap(),
        after: Duration::from_secs(5),
    }
}

fn unroutable() -> ConnectError {
    ConnectError::NoRoute {
        host: host("peer"),
        address: "10.0.0.1:7".parse().unwrap(),
        cause: "No route to host (os error 65)".into(),
    }
}

#[test]
fn a_system_that_sends_to_no_peer_is_told_from_peers_that_are_silent() {
    let mut hosts: Hosts<Line> = Hosts::default();
    let entries = ["a", "b", "c"].map(|name| entry(name, "10.0.0.1:7"));
    hosts.replace(&host("me"), 1, &entries, &[]);
    assert_eq!(hosts.no_route(), None, "nobody was dialled");
    hosts.not_connected(key("a"), &unroutable());
    hosts.not_connected(key("b"), &unroutable());
    let found = NoRoute {
        dialled: 2,
        cause: "No route to host (os error 65)".into(),
    };
    assert_eq!(hosts.no_route(), Some(found.clone()), "c wasn't dialled");

    // one that is silent had something sent to it
    hosts.not_connected(key("c"), &silent());
    assert_eq!(hosts.no_route(), None);
    hosts.not_connected(key("c"), &unroutable());
    assert_eq!(hosts.no_route().unwrap().dialled, 3);

    // a peer that dialled this host is reached, and what failed before is over
    let effects = hosts.connected(key("c"), 1);
    assert_eq!(hosts.no_route(), None);
    hosts.ended(key("c"), serial(&effects), "its cable");
    assert_eq!(hosts.no_route(), Some(found));

    // hosts that left the roster say nothing any more
    hosts.replace(&host("me"), 2, &entries[2..], &[]);
    assert_eq!(hosts.no_route(), None);
}

#[test]
fn a_peer_that_was_restarted_is_talked_to_on_its_new_connection() {
    let (mut hosts, peer) = with_peer();
    let old = serial(&hosts.connected(peer, 1));
    assert!(hosts.introduced(peer, old, 5).is_empty());
    // both sides dialled: the peer introduces itself on the other connection, and lives the same life
    let second = serial(&hosts.connected(peer, 2));
    assert!(hosts.introduced(peer, second, 5).is_empty());
    // the peer was killed, and comes back
    let third = serial(&hosts.connected(peer, 3));
    hosts.announce(peer, digest(1), ChunkSet::full(3), true);
    let effects = hosts.introduced(peer, third, 6);
    assert_eq!(closed(&effects), [1, 2]);
    assert!(matches!(effects[2], Effect::Cancel(cancelled) if cancelled == peer));
    assert_eq!(
        told(&effects),
        [Event::Disconnected(peer), Event::Connected(peer)]
    );
    let (line, mut updates) = stream(effects).unwrap();
    assert_eq!((line, hosts.connection(peer)), (3, Some(3)));
    // what waited for the dead connection isn't told on the new one: everything is announced anew
    hosts.flush_updates();
    assert!(updates.try_recv().is_err());
    // the dead connections end without a word
    assert!(hosts.ended(peer, old, "timed out").is_empty());
    assert!(hosts.ended(peer, second, "timed out").is_empty());
    assert!(hosts.introduced(peer, third, 6).is_empty());
    assert_eq!(
        told(&hosts.ended(peer, third, "bye")),
        [Event::Disconnected(peer)]
    );
}

#[test]
fn a_version_that_names_no_life_was_restarted_when_it_introduces_itself_again() {
    let (mut hosts, peer) = with_peer();
    let first = serial(&hosts.connected(peer, 1));
    let second = serial(&hosts.connected(peer, 2));
    assert!(hosts.introduced(peer, first, 0).is_empty());
    assert!(!hosts.introduced(peer, second, 0).is_empty());
}

#[test]
fn an_introduction_on_a_connection_that_is_gone_changes_nothing() {
    let (mut hosts, peer) = with_peer();
    let first = serial(&hosts.connected(peer, 1));
    let second = serial(&hosts.connected(peer, 2));
    hosts.introduced(peer, first, 5);
    hosts.ended(peer, second, "reset");
    assert!(hosts.introduced(peer, second, 6).is_empty());
    assert!(hosts.introduced(key("nobody"), first, 6).is_empty());
    // the life would still be the same
    let third = serial(&hosts.connected(peer, 3));
    assert!(hosts.introduced(peer, third, 5).is_empty());
}

#[test]
fn a_peer_whose_connection_ends_is_talked_to_on_the_one_in_reserve() {
    let (mut hosts, peer) = with_peer();
    let first = serial(&hosts.connected(peer, 1));
    let reserve = serial(&hosts.connected(peer, 2));
    let effects = hosts.ended(peer, first, "reset");
    // the swarm forgets what went over the dead connection, and transfers over it are given up
    assert!(matches!(effects[0], Effect::Cancel(cancelled) if cancelled == peer));
    assert_eq!(
        told(&effects),
        [Event::Disconnected(peer), Event::Connected(peer)]
    );
    assert_eq!(stream(effects).map(|(line, _)| line), Some(2));
    assert_eq!(
        told(&hosts.ended(peer, reserve, "reset")),
        [Event::Disconnected(peer)]
    );
    assert_eq!(hosts.connection(peer), None);
}

#[test]
fn a_connection_in_reserve_ends_without_a_word() {
    let (mut hosts, peer) = with_peer();
    hosts.connected(peer, 1);
    let reserve = serial(&hosts.connected(peer, 2));
    assert!(hosts.ended(peer, reserve, "reset").is_empty());
    assert_eq!(hosts.connection(peer), Some(1));
}

#[test]
fn however_often_a_peer_connects_our_streams_have_a_connection_that_is_told() {
    let (mut hosts, peer) = with_peer();
    let (_, mut updates) = stream(hosts.connected(peer, 0)).unwrap();
    let mut open = 1;
    for line in 1..=2 * u32::try_from(CONNECTIONS).unwrap() {
        let effects = hosts.connected(peer, line);
        open += 1 - closed(&effects).len();
        assert!(!closed(&effects).contains(&0));
        assert!(open <= CONNECTIONS);
        assert!(stream(effects).is_none());
    }
    assert_eq!((open, hosts.connection(peer)), (CONNECTIONS, Some(0)));
    hosts.announce(peer, digest(1), ChunkSet::full(3), true);
    hosts.flush_updates();
    assert_eq!(updates.try_recv().unwrap().have.len(), 1);
}

#[test]
fn every_connection_of_a_peer_is_closed_when_the_swarm_hangs_up() {
    let (mut hosts, peer) = with_peer();
    hosts.connected(peer, 1);
    hosts.connected(peer, 2);
    assert_eq!(closed(&hosts.hang_up(peer)), [1, 2]);
    assert!(hosts.hang_up(key("nobody")).is_empty());
}

#[test]
fn announcements_that_a_slow_peer_leaves_waiting_are_merged() {
    let (mut hosts, peer) = with_peer();
    let (_, mut updates) = stream(hosts.connected(peer, 1)).unwrap();
    let one = |chunk| ChunkSet::from_runs(9, &[chunk, 1]).unwrap();
    // the peer takes nothing: the stream is full after this many updates
    for round in 0..u32::try_from(UPDATES).unwrap() {
        hosts.announce(peer, digest(0), one(round), round == 0);
        hosts.flush_updates();
    }
    hosts.announce(peer, digest(0), one(5), false);
    hosts.announce(peer, digest(0), one(6), false);
    hosts.announce_load(peer, 7, 8);
    hosts.announce_load(peer, 9, 10);
    hosts.flush_updates();
    for _ in 0..UPDATES {
        assert!(updates.try_recv().unwrap().load.is_none());
    }
    assert!(updates.try_recv().is_err());
    hosts.flush_updates();
    let merged = updates.try_recv().unwrap();
    assert_eq!(merged.have[0].runs, [5, 2]);
    assert_eq!(merged.load.map(|load| load.backlog_bytes), Some(9));
    assert!(updates.try_recv().is_err());
}

#[test]
fn a_reset_takes_the_place_of_what_waits_and_an_update_has_a_bounded_number_of_contents() {
    let (mut hosts, peer) = with_peer();
    let (_, mut updates) = stream(hosts.connected(peer, 1)).unwrap();
    hosts.announce(peer, digest(0), ChunkSet::full(9), false);
    hosts.announce(
        peer,
        digest(0),
        ChunkSet::from_runs(9, &[3, 1]).unwrap(),
        true,
    );
    let contents = u32::try_from(HAVES_PER_UPDATE).unwrap() + 1;
    for content in 1..contents {
        hosts.announce(peer, digest(content), ChunkSet::full(9), true);
    }
    hosts.flush_updates();
    let (first, second) = (updates.try_recv().unwrap(), updates.try_recv().unwrap());
    assert_eq!((first.have.len(), second.have.len()), (HAVES_PER_UPDATE, 1));
    let all = first.have.iter().chain(&second.have);
    let of_first = all.filter(|have| have.content == digest(0).as_bytes());
    let said: Vec<_> = of_first
        .map(|have| (have.runs.clone(), have.reset))
        .collect();
    assert_eq!(said, [(vec![3, 1], true)]);
}

fn have(content: &[u8], runs: &[u32]) -> PeerUpdate {
    PeerUpdate {
        have: vec![Have {
            content: content.to_vec(),
            runs: runs.to_vec(),
            reset: true,
        }],
        load: None,
    }
}

#[test]
fn what_a_peer_announces_of_a_content_is_kept_until_the_content_is_known() {
    let (mut hosts, peer) = with_peer();
    let unknown = |_: &Digest, _: &[u32]| Ok(None);
    let update = have(digest(1).as_bytes(), &[0, 2]);
    assert!(hosts.updated(peer, update, unknown).is_empty());
    let effects = hosts.recall(ContentId(4), &digest(1), 3);
    let chunks = ChunkSet::from_runs(3, &[0, 2]).unwrap();
    let announced = Event::Announced {
        peer,
        id: ContentId(4),
        chunks,
        reset: true,
    };
    assert_eq!(told(&effects), [announced]);
    assert!(hosts.recall(ContentId(4), &digest(1), 3).is_empty());
}

#[test]
fn a_peer_that_was_told_another_size_of_a_content_is_not_blamed() {
    let (mut hosts, peer) = with_peer();
    let unknown = |_: &Digest, _: &[u32]| Ok(None);
    hosts.updated(peer, have(digest(1).as_bytes(), &[0, 9]), unknown);
    assert!(hosts.recall(ContentId(4), &digest(1), 3).is_empty());
    let known = |_: &Digest, runs: &[u32]| {
        ChunkSet::from_runs(3, runs).map(|chunks| Some((ContentId(4), chunks)))
    };
    let update = have(digest(1).as_bytes(), &[0, 9]);
    assert!(hosts.updated(peer, update, known).is_empty());
}

#[test]
fn a_peer_that_announces_what_no_content_has_is_blamed() {
    let (mut hosts, peer) = with_peer();
    let unknown = |_: &Digest, _: &[u32]| Ok(None);
    let known = |_: &Digest, runs: &[u32]| {
        ChunkSet::from_runs(3, runs).map(|chunks| Some((ContentId(4), chunks)))
    };
    let blamed = |effects: Vec<Effect<Line>>| {
        assert!(matches!(effects[0], Effect::Blame(blamed) if blamed == peer));
        assert_eq!(told(&effects), [Event::Blamed(peer)]);
    };
    // blamed for: something that isn't a digest, an odd list of runs of a known content, and one of an unknown content
    blamed(hosts.updated(peer, have(b"short", &[]), unknown));
    blamed(hosts.updated(peer, have(digest(1).as_bytes(), &[1]), known));
    blamed(hosts.updated(peer, have(digest(1).as_bytes(), &[1]), unknown));
    blamed(hosts.nonsense(peer, "a message that can't be read").into());
}

#[test]
fn a_peers_load_is_told_after_what_it_announces() {
    let (mut hosts, peer) = with_peer();
    let mut update = have(digest(1).as_bytes(), &[0, 1]);
    update.load = Some(Load {
        backlog_bytes: 3,
        upload_bytes_per_second: 4,
    });
    let known = |_: &Digest, runs: &[u32]| {
        ChunkSet::from_runs(3, runs).map(|chunks| Some((ContentId(4), chunks)))
    };
    let events = told(&hosts.updated(peer, update, known));
    assert!(matches!(
        events[..],
        [
            Event::Announced { .. },
            Event::Load {
                backlog_bytes: 3,
                ..
            }
        ]
    ));
}

#[test]
fn a_host_that_leaves_the_roster_is_hung_up_on() {
    let mut hosts: Hosts<Line> = Hosts::default();
    let me = host("me");
    hosts.replace(&me, 1, &roster(&["me", "a", "gone"]), &[]);
    hosts.connected(key("gone"), 1);
    hosts.connected(key("a"), 2);
    assert_eq!(
        closed(&hosts.replace(&me, 1, &roster(&["me", "a"]), &[])),
        [1]
    );
    assert_eq!(hosts.id(key("gone")), None);
    // its connection ends, as it was closed: nothing is left to say
    assert!(hosts.ended(key("gone"), 1, "closed").is_empty());
}

#[test]
fn a_change_is_of_the_roster_that_is_here_or_of_none() {
    let me = host("me");
    let mut hosts: Hosts<Line> = Hosts::default();
    let first = RosterChange {
        from_epoch: 0,
        epoch: 7,
        hosts: vec![
            entry("me", "10.0.0.9:1"),
            entry("a", "10.0.0.1:1"),
            entry("b", "10.0.0.2:1"),
        ],
        gone: Vec::new(),
    };
    assert_eq!(peers(&hosts.change(&me, &first).unwrap()).len(), 2);
    hosts.connected(key("a"), 1);
    // a neighbour counts once it is on the roster
    let follows = hosts.follow(vec!["b".into(), "c".into()]);
    assert!(peers(&follows).contains(&(key("b"), true)));
    assert!(peers(&follows).contains(&(key("a"), false)));
    let second = RosterChange {
        from_epoch: 7,
        epoch: 8,
        hosts: vec![entry("b", "10.0.0.2:2"), entry("c", "10.0.0.3:1")],
        gone: vec!["a".into(), "nobody".into()],
    };
    let effects = hosts.change(&me, &second).unwrap();
    let mut expected = [(key("b"), true), (key("c"), true)];
    expected.sort_unstable();
    assert_eq!(peers(&effects), expected);
    assert_eq!(closed(&effects), [1]);
    assert!(matches!(
        hosts.dial(key("b")),
        Effect::Dial(Dial { address, .. }) if address == "10.0.0.2:2".parse().unwrap()
    ));
    let five = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    assert_eq!(
        hosts.enrolled(),
        [(host("b"), five), (host("c"), five)].into()
    );
    assert_eq!(hosts.epoch(), 8);
    // the change is of another roster: nothing changes
    assert!(hosts.change(&me, &second).is_none());
    assert_eq!((hosts.epoch(), hosts.ids().count()), (8, 2));
    let whole = RosterChange {
        from_epoch: 0,
        epoch: 9,
        hosts: vec![entry("c", "10.0.0.3:1")],
        gone: Vec::new(),
    };
    assert_eq!(
        peers(&hosts.change(&me, &whole).unwrap()),
        [(key("c"), true)]
    );
    assert_eq!(hosts.ids().count(), 1);
}

#[test]
fn zones_are_numbers_that_equal_themselves_alone() {
    let mut hosts: Hosts<Line> = Hosts::default();
    let entries = [("a", "east"), ("b", "west"), ("c", "east"), ("d", "")].map(|(host, zone)| {
        let mut entry = entry(host, "");
        entry.zone = zone.into();
        entry
    });
    let effects = hosts.replace(&host("me"), 1, &entries, &[]);
    let Some(Event::Roster(peers)) = told(&effects).pop() else {
        panic!("{effects:?}");
    };
    let zone = |name: &str| {
        let peer = peers.iter().find(|peer| peer.key == key(name));
        peer.unwrap().zone
    };
    assert_eq!(zone("a"), zone("c"));
    assert_ne!(zone("a"), zone("b"));
    assert_eq!(zone("d"), 0);
    assert!(zone("a") != 0 && zone("b") != 0);
}
