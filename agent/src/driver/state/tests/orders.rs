//! Orders and inputs reach the part that they concern, and what comes of them comes out in order.

use super::*;

/// Who may connect by these effects.
fn admitted(effects: &[Effect]) -> Option<Vec<String>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Admit { hosts, .. } => Some(hosts.iter().map(ToString::to_string).collect()),
        _ => None,
    })
}

#[test]
fn a_roster_admits_its_hosts_and_the_coordinator_and_nobody_else() {
    let (mut world, _reports) = World::up();
    let effects = world.order(roster(5, &["a", "b", "me"]));
    let mut admitted = admitted(&effects).expect("a new list");
    admitted.sort_unstable();
    assert_eq!(admitted, ["a", "b", "coordinator"]);
    assert_eq!(world.hello.borrow().roster_epoch, Some(5));
}

#[test]
fn who_may_connect_is_said_before_anyone_is_dialled() {
    let (mut world, _reports) = World::up();
    let mut effects = world.order(roster(5, &["a"]));
    effects.extend(world.turn());
    assert_eq!(words(&effects), ["admit", "dial"]);
    let Effect::Errand(Errand::Dial(Dial { host: to, .. })) = &effects[1] else {
        panic!("nobody is dialled");
    };
    assert_eq!(*to, host("a"));
}

#[test]
fn a_change_of_a_roster_that_isnt_here_admits_nobody_and_asks_for_the_roster() {
    let (mut world, mut reports) = World::up();
    let change = Kind::RosterChange(RosterChange {
        from_epoch: 7,
        epoch: 8,
        hosts: vec![entry("c")],
        gone: Vec::new(),
    });
    assert!(admitted(&world.order(change)).is_none());
    world.turn();
    assert!(reports.try_recv().unwrap().roster_wanted);
}

#[test]
fn an_image_that_is_ordered_is_begun_in_the_next_turn_by_a_job_that_reads() {
    let (mut world, mut reports) = World::up();
    assert!(world.order(stage()).is_empty());
    assert!(words(&world.turn()).contains(&"read"));
    world.turn_later();
    let told = images(&mut reports);
    assert_eq!(told[0].manifest, image().as_bytes());
}

#[test]
fn an_image_that_was_begun_brings_its_contents_to_the_swarm() {
    let (world, _reports) = World::filling();
    let layout = Layout::parse(&manifest("a"), &image()).unwrap();
    assert_eq!(world.status().contents.len(), layout.contents().len());
}

#[test]
fn a_lease_with_its_ticket_has_the_content_fetched() {
    let (mut world, _reports) = World::filling();
    let lease = world.lease(1);
    world.order(lease);
    let effects = world.turn();
    let fetched = effects.iter().find_map(|effect| match effect {
        Effect::Errand(Errand::Fetch(fetch)) => Some((fetch.content, fetch.reference.clone())),
        _ => None,
    });
    assert_eq!(fetched, Some((content(), "r.test/a:1".to_owned())));
}

#[test]
fn a_lease_without_a_ticket_is_given_back_unfetched() {
    let (mut world, mut reports) = World::filling();
    let Kind::Lease(mut grant) = world.lease(1) else {
        unreachable!()
    };
    grant.ticket = None;
    world.order(Kind::Lease(grant));
    assert!(!words(&world.turn_later()).contains(&"fetch"));
    let mut ends = Vec::new();
    while let Ok(report) = reports.try_recv() {
        ends.extend(report.leases);
    }
    assert_eq!(ends[0].content, content().as_bytes());
    assert_ne!(ends[0].end(), LeaseEnd::Unspecified);
}

#[test]
fn the_ticket_of_a_lease_that_is_taken_back_signs_no_more_links() {
    let (mut world, _reports) = World::filling();
    let lease = world.lease(1);
    world.order(lease);
    world.turn();
    assert!(world.notary.run(&content(), None).is_some());
    world.order(Kind::Revoke(message::LeaseRevoke {
        content: content().as_bytes().to_vec(),
    }));
    world.turn();
    assert!(world.notary.run(&content(), None).is_none());
}

#[test]
fn a_standing_ticket_is_written_down_by_a_job_and_a_foreign_one_is_not() {
    let (mut world, _reports) = World::up();
    let key = world.notary.key();
    let ticket = world.authority.ticket(None, "me", key, 1, LONG);
    let effects = world.order(Kind::Ticket(ticket));
    assert_eq!(words(&effects), ["blocking"]);
    let foreign = Authority::new().ticket(None, "me", key, 2, LONG);
    assert!(world.order(Kind::Ticket(foreign)).is_empty());
}

#[test]
fn who_the_fleet_trusts_no_longer_is_not_spoken_to() {
    let (mut world, _reports) = World::up();
    world.order(roster(5, &["a", "b"]));
    world.order(Kind::Limits(message::Limits {
        revoked_hosts: vec!["b".into()],
    }));
    assert_eq!(world.status().quarantined, [host("b").key()]);
}

#[test]
fn an_order_of_a_later_version_changes_nothing() {
    let (mut world, mut reports) = World::up();
    let order = Box::new(message::Order { kind: None });
    let mut effects = world.apply(Input::Heard(Heard::Order(order)));
    effects.extend(world.turn_later());
    assert!(effects.is_empty(), "{:?}", words(&effects));
    assert!(reports.try_recv().is_err());
}

#[test]
fn a_chunk_for_which_peers_blame_this_host_is_looked_at_by_one_job_at_a_time() {
    let (mut world, _reports) = World::filling();
    let recheck = || {
        let content = content().as_bytes().to_vec();
        let suspect = message::Suspect { content, chunk: 0 };
        Kind::Recheck(message::Recheck {
            chunks: vec![suspect.clone(), suspect],
        })
    };
    assert_eq!(words(&world.order(recheck())), ["blocking"]);
    assert!(world.order(recheck()).is_empty());
    world.apply(Input::Looked {
        content: content(),
        chunk: ChunkIndex(0),
        rotten: false,
    });
    assert_eq!(words(&world.order(recheck())), ["blocking"]);
}

#[test]
fn an_input_that_is_to_be_heard_again_counts_once_and_in_the_next_turn() {
    let (mut world, _reports) = World::filling();
    let chunk = Input::Received {
        transfer: Transfer {
            peer: host("a").key(),
            id: world.status().contents[0].id,
            chunk: ChunkIndex(0),
        },
        number: 1,
        receipt: Receipt {
            result: Ok(()),
            wire_bytes: 100,
            unwritable: vec![(Digest::of(b"another image"), "no space".into())],
            ..Receipt::cancelled()
        },
    };
    let received = SourceLabel {
        source: From::Peers,
    };
    let bytes = |world: &World| world.metrics.received_bytes.get_or_create(&received).get();
    world.apply(chunk);
    assert_eq!(bytes(&world), 0);
    world.turn();
    assert_eq!(bytes(&world), 100);
}

#[test]
fn a_question_about_old_images_is_answered_by_a_job_and_its_end_is_sent() {
    let (mut world, mut reports) = World::up();
    let asked = OldImagesAsked {
        number: 3,
        rule: None,
    };
    let mut effects = world.order(Kind::OldImagesAsked(asked));
    assert_eq!(words(&effects), ["blocking"]);
    let Some(Effect::Run(Work::Blocking(job))) = effects.pop() else {
        unreachable!()
    };
    assert!(reports.try_recv().is_err());
    world.apply(job());
    let answer = reports.try_recv().unwrap().old_images;
    assert_eq!(answer.map(|answer| answer.number), Some(3));
}

#[test]
fn an_agent_that_stops_ends_its_fetches() {
    let (mut world, _reports) = World::filling();
    let lease = world.lease(1);
    world.order(lease);
    let effects = world.turn();
    let mut tokens = effects.iter().filter_map(|effect| match effect {
        Effect::Errand(Errand::Fetch(fetch)) => Some(fetch.reins.token.clone()),
        _ => None,
    });
    let token = tokens.next().expect("a fetch");
    assert!(!token.is_cancelled());
    world.state.stop();
    assert!(token.is_cancelled());
}
