//! Tests of orders: what hosts are told of wanted images, and what becomes of images that are no longer wanted or that
//! contradict each other.

use super::*;

#[test]
fn what_a_host_stages_that_nobody_wants_is_cancelled_once_all_wants_are_known() {
    let cancels = |actions: &[Action]| -> Vec<HostId> {
        let hosts = actions.iter().filter_map(|action| match action {
            Action::Cancel { host, image: left } if *left == image(0) => Some(host.clone()),
            _ => None,
        });
        hosts.collect()
    };
    let mut plan = fleet(2);
    // the image may still be wanted: this coordinator has just started
    let staging = |host| report(host, 0, Standing::Staging, 7);
    assert_eq!(cancels(&feed(&mut plan, 2_000, staging(0))), []);
    feed(&mut plan, 2_100, wanted(1, [1], Selection::All));
    feed(&mut plan, 2_200, Event::WantsKnown);
    for standing in [Standing::Queued, Standing::Staging, Standing::Failed] {
        let left = feed(&mut plan, 3_000, report(0, 0, standing, 7));
        assert_eq!(cancels(&left), [host(0)], "{standing:?}");
    }
    for standing in [Standing::Installing, Standing::Present, Standing::Gone] {
        assert_eq!(
            cancels(&feed(&mut plan, 3_000, report(0, 0, standing, 7))),
            [],
            "{standing:?}"
        );
    }
    // the image is cancelled on a host that is away, which stages on when it is back
    feed(&mut plan, 4_000, wanted(0, [0], Selection::All));
    assert_eq!(cancels(&feed(&mut plan, 4_100, staging(0))), []);
    feed(&mut plan, 4_200, Event::HostDisconnected(host(0)));
    let only = Selection::Hosts(vec![host(1)]);
    feed(&mut plan, 4_300, wanted(0, [0], only));
    feed(&mut plan, 4_400, Event::HostConnected(host(0)));
    assert_eq!(cancels(&feed(&mut plan, 4_500, staging(0))), [host(0)]);
    assert_eq!(cancels(&feed(&mut plan, 4_500, staging(1))), []);
    // the image is cancelled on all hosts
    feed(&mut plan, 5_000, Event::HostDisconnected(host(1)));
    feed(&mut plan, 5_100, Event::Cancelled(image(0)));
    feed(&mut plan, 5_200, Event::HostConnected(host(1)));
    assert_eq!(cancels(&feed(&mut plan, 5_300, staging(1))), [host(1)]);
}

#[test]
fn an_order_among_images_is_told_once_all_wants_are_known_and_not_before() {
    let told = |actions: &[Action]| -> Vec<(HostId, Vec<Digest>)> {
        let told = actions.iter().filter_map(|action| match action {
            Action::Sequence { host, images } => Some((host.clone(), images.clone())),
            _ => None,
        });
        told.collect()
    };
    let mut plan = fleet(2);
    let ranked = |number, asked_ms| Event::Ranked {
        image: image(number),
        priority: 0,
        asked_ms,
        awaited: Vec::new(),
    };
    for (number, asked_ms) in [(0, 20), (1, 10)] {
        let of = feed(&mut plan, 2_000, wanted(number, [number], Selection::All));
        assert_eq!(told(&of), []);
        assert_eq!(told(&feed(&mut plan, 2_000, ranked(number, asked_ms))), []);
    }
    // also a host that connects anew isn't told a part
    feed(&mut plan, 3_000, Event::HostDisconnected(host(1)));
    assert_eq!(
        told(&feed(&mut plan, 3_100, Event::HostConnected(host(1)))),
        []
    );
    let order = vec![image(1), image(0)];
    assert_eq!(
        told(&feed(&mut plan, 4_000, Event::WantsKnown)),
        [(host(0), order.clone()), (host(1), order)]
    );
}

#[test]
fn a_paused_host_is_told_to_keep_what_it_has_and_gets_nothing_until_it_is_selected_again() {
    let some = |hosts: &[usize]| Selection::Hosts(hosts.iter().map(|n| host(*n)).collect());
    let stops = |actions: &[Action]| -> Vec<(usize, bool)> {
        let number = |id: &HostId| (0..9).find(|number| host(*number) == *id).unwrap();
        let stop = |action: &Action| match action {
            Action::Pause { host, .. } => Some((number(host), true)),
            Action::Cancel { host, .. } => Some((number(host), false)),
            _ => None,
        };
        actions.iter().filter_map(stop).collect()
    };
    let mut plan = fleet(3);
    let leased = grants(&want(&mut plan, 2_000, wanted(0, [0, 1], some(&[0, 1, 2]))));
    assert_eq!(leased.len(), 2);

    // all hosts are paused: their leases end at once, and no host gets one
    let paused = with_paused(wanted(0, [0, 1], some(&[])), &[0, 1, 2]);
    let actions = feed(&mut plan, 3_000, paused.clone());
    assert_eq!(stops(&actions), [(0, true), (1, true), (2, true)]);
    let revoked = actions
        .iter()
        .filter(|action| matches!(action, Action::Revoke { .. }));
    assert_eq!(revoked.count(), 2);
    assert_eq!(stops(&feed(&mut plan, 3_100, paused.clone())), []);
    for millis in (4_000..60_000).step_by(500) {
        assert_eq!(feed(&mut plan, millis, Event::Tick), []);
    }
    let reason = plan.status(at(60_000)).images[0].reason;
    assert_eq!(reason, Some(ImageReason::Held));
    // an order that was lost is repeated
    feed(&mut plan, 60_000, Event::WantsKnown);
    let says = feed(&mut plan, 60_000, report(2, 0, Standing::Staging, 7));
    assert_eq!(stops(&says), [(2, true)]);
    // a host that was away may stage on by itself with what it finds on its disk
    feed(&mut plan, 60_000, Event::HostDisconnected(host(1)));
    let back = feed(&mut plan, 61_000, Event::HostConnected(host(1)));
    assert_eq!(stops(&back), [(1, true)]);

    // one host is selected again, one stays paused, and one must drop what it has
    let actions = feed(
        &mut plan,
        62_000,
        with_paused(wanted(0, [0, 1], some(&[0])), &[0, 1]),
    );
    assert_eq!(stops(&actions), [(2, false)]);
    assert!(actions.contains(&Action::Stage {
        host: host(0),
        image: image(0)
    }));
    // the image isn't wanted any more
    let over = feed(&mut plan, 63_000, Event::Cancelled(image(0)));
    assert_eq!(stops(&over), [(0, false), (1, false)]);
}

#[test]
fn hosts_that_are_away_are_told_from_a_fleet_without_sessions() {
    let mut plan = fleet(3);
    want(&mut plan, 2_000, wanted(0, [0], Selection::All));
    feed(&mut plan, 3_000, report(0, 0, Standing::Present, 100));
    feed(&mut plan, 3_000, report(1, 0, Standing::Present, 100));
    feed(&mut plan, 4_000, Event::HostDisconnected(host(2)));
    let reason = |plan: &Plan| plan.status(at(5_000)).images[0].reason;
    assert_eq!(reason(&plan), Some(ImageReason::HostsAway));
    feed(&mut plan, 5_000, Event::HostDisconnected(host(0)));
    assert_eq!(reason(&plan), Some(ImageReason::HostsAway));
    feed(&mut plan, 5_000, Event::HostDisconnected(host(1)));
    assert_eq!(reason(&plan), Some(ImageReason::NoHostConnected));
}

#[test]
fn hosts_that_join_or_are_selected_later_are_told_to_stage() {
    let mut plan = fleet(2);
    want(&mut plan, 2_000, wanted(0, [0], Selection::All));
    feed(
        &mut plan,
        2_500,
        Event::HostKnown {
            host: host(7),
            zone: String::new(),
        },
    );
    let actions = feed(&mut plan, 3_000, Event::HostConnected(host(7)));
    assert!(
        matches!(actions[0], Action::Neighbours { .. }),
        "whom it follows comes first"
    );
    assert!(actions.contains(&Action::Stage {
        host: host(7),
        image: image(0)
    }));
    let actions = want(
        &mut plan,
        4_000,
        wanted(0, [0], Selection::Hosts(vec![host(1)])),
    );
    assert!(actions.contains(&Action::Cancel {
        host: host(7),
        image: image(0)
    }));
    let actions = want(
        &mut plan,
        5_000,
        wanted(0, [0], Selection::Hosts(vec![host(1), host(0)])),
    );
    assert!(actions.contains(&Action::Stage {
        host: host(0),
        image: image(0)
    }));
    assert!(!actions.contains(&Action::Stage {
        host: host(1),
        image: image(0)
    }));
}

#[test]
fn an_image_that_contradicts_another_is_refused_by_name_until_that_one_goes() {
    let mut plan = fleet(3);
    want(&mut plan, 2_000, wanted(0, [5, 6], Selection::All));
    let mut other = wanted(1, [5, 7], Selection::All);
    if let Event::Wanted { contents, .. } = &mut other {
        contents[0].size += 1;
        contents[0].chunks = 101;
    }
    let stages = |actions: &[Action]| {
        let stage =
            |action: &&Action| matches!(action, Action::Stage { image: of, .. } if *of == image(1));
        actions.iter().filter(stage).count()
    };
    let actions = want(&mut plan, 3_000, other.clone());
    assert_eq!((stages(&actions), grants(&actions)), (0, vec![]));
    let reason = |plan: &Plan, at: usize| plan.status(plan.clock.now()).images[at].reason;
    // image 1 waits until the bytes show which manifest is wrong
    assert_eq!(reason(&plan, 1), Some(ImageReason::AwaitingTurn));
    assert_eq!(reason(&plan, 0), Some(ImageReason::Moving));
    let holder = plan.leases.holder(&digest(5)).unwrap().clone();
    feed(&mut plan, 3_050, ended(&holder, digest(5), LeaseEnd::Done));
    assert_eq!(reason(&plan, 1), Some(ImageReason::Contradicts(digest(5))));
    // ordering the image again, or a host that connects, doesn't change that
    assert_eq!(stages(&want(&mut plan, 3_100, other)), 0);
    feed(&mut plan, 3_200, Event::HostDisconnected(host(0)));
    assert_eq!(
        stages(&feed(&mut plan, 3_300, Event::HostConnected(host(0)))),
        0
    );
    let actions = feed(&mut plan, 4_000, Event::Cancelled(image(0)));
    assert_eq!(stages(&actions), 3);
    assert_eq!(plan.size_of(&digest(5)).unwrap(), (100 << 20) + 1);
    assert_ne!(reason(&plan, 0), Some(ImageReason::Contradicts(digest(5))));
}

#[test]
fn of_two_sizes_of_a_content_the_bytes_decide() {
    // image 0 came first, and image 1 gives content 5 another size; `falsehoods` says which of them are wrong
    for (falsehoods, winner) in [
        ([true, false], Some(1)),
        ([false, true], Some(0)),
        ([true, true], None),
    ] {
        let mut plan = fleet(3);
        let mut other = wanted(1, [5, 7], Selection::All);
        if let Event::Wanted { contents, .. } = &mut other {
            contents[0].size += 1;
        }
        let mut actions = want(&mut plan, 2_000, wanted(0, [5, 6], Selection::All));
        actions.extend(want(&mut plan, 3_000, other));
        let (mut ordered, mut tries) = ([true, false], 0);
        for millis in (3_000..900_000).step_by(500) {
            actions.extend(feed(&mut plan, millis, Event::Tick));
            for action in core::mem::take(&mut actions) {
                match action {
                    Action::Stage { host, image: of } => {
                        let number = usize::from(of == image(1));
                        ordered[number] = true;
                        let report = Event::Reported {
                            host,
                            image: of,
                            standing: Standing::Staging,
                            held_bytes: 0,
                        };
                        actions.extend(feed(&mut plan, millis, report));
                    }
                    Action::Cancel { image: of, .. } => {
                        ordered[usize::from(of == image(1))] = false
                    }
                    Action::Grant {
                        host,
                        content,
                        image: of,
                        ..
                    } => {
                        let number = usize::from(of == image(1));
                        assert!(ordered[number], "leased for an image that hosts don't have");
                        let lies = content == digest(5) && falsehoods[number];
                        tries += u32::from(lies);
                        let end = if lies {
                            LeaseEnd::Faulty(Fault::Bad)
                        } else {
                            LeaseEnd::Done
                        };
                        actions.extend(feed(&mut plan, millis, ended(&host, content, end)));
                    }
                    _ => {}
                }
            }
            assert!(ordered != [true, true], "hosts have both");
        }
        let status = plan.status(plan.clock.now());
        let reasons = [0, 1].map(|at| status.images[at].reason);
        let bad = Some(ImageReason::ContentFaulty(digest(5), Fault::Bad));
        let moves = Some(ImageReason::Moving);
        let expected = match winner {
            Some(0) => [moves, Some(ImageReason::Contradicts(digest(5)))],
            Some(_) => [bad, moves],
            None => [bad, bad],
        };
        assert_eq!(reasons, expected, "{falsehoods:?}");
        assert!(tries <= 10, "{tries}");
    }
}

#[test]
fn another_name_of_an_image_that_a_thousand_hosts_hold_is_one_round_of_orders_and_no_lease() {
    const HOSTS: usize = 1_000;
    let mut plan = fleet(HOSTS);
    feed(&mut plan, 2_000, wanted(0, [0, 1, 2], Selection::All));
    let present = |plan: &mut Plan, millis| -> Vec<Action> {
        let each = 0..HOSTS;
        each.flat_map(|host| feed(plan, millis, report(host, 0, Standing::Present, 300 << 20)))
            .collect()
    };
    present(&mut plan, 3_000);
    let before = plan.status(at(3_500));
    assert!(before.leases.is_empty());
    let mut renamed = wanted(0, [0, 1, 2], Selection::All);
    if let Event::Wanted { references, .. } = &mut renamed {
        references.push("registry.example/image:again".into());
    }
    // all orders come with the event itself: none waits for a turn or for time to pass
    let orders = feed(&mut plan, 4_000, renamed);
    let mut ordered: Vec<&HostId> = orders
        .iter()
        .map(|action| match action {
            Action::Stage { host, .. } => host,
            other => panic!("{other:?}"),
        })
        .collect();
    ordered.sort();
    ordered.dedup();
    assert_eq!((orders.len(), ordered.len()), (HOSTS, HOSTS));
    // hosts that link the name say that they install, and then that they have it
    let each = 0..HOSTS;
    let rest: Vec<Action> = each
        .flat_map(|host| {
            feed(
                &mut plan,
                4_100,
                report(host, 0, Standing::Installing, 300 << 20),
            )
        })
        .collect();
    assert_eq!(rest, []);
    assert_eq!(present(&mut plan, 4_200), []);
    assert_eq!(feed(&mut plan, 9_000, Event::Tick), []);
    assert!(plan.status(at(9_000)).leases.is_empty());
}
