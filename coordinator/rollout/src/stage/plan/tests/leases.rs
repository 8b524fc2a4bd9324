//! Tests of which host is leased which content, and how long a lease lasts.

use super::*;

#[test]
fn hosts_that_stage_are_leased_to_before_others() {
    let mut plan = fleet(2);
    assert_eq!(
        grants(&feed(&mut plan, 2_000, wanted(0, [0, 1], Selection::All))),
        []
    );
    let first = grants(&feed(&mut plan, 2_100, report(1, 0, Standing::Staging, 0)));
    assert_eq!(
        first,
        [(host(1), digest(0))],
        "the second waits for another host"
    );
    let second = grants(&feed(&mut plan, 2_200, report(0, 0, Standing::Staging, 0)));
    assert_eq!(second, [(host(0), digest(1))]);
    // where no host reports for long, any host may get the lease
    let mut plan = fleet(3);
    feed(&mut plan, 2_000, wanted(0, [0, 1], Selection::All));
    assert_eq!(grants(&feed(&mut plan, 6_900, Event::Tick)), []);
    assert_eq!(grants(&feed(&mut plan, 7_500, Event::Tick)).len(), 2);
}

#[test]
fn so_many_contents_are_leased_in_order_to_different_hosts() {
    let mut plan = fleet(10);
    let first = grants(&want(&mut plan, 2_000, wanted(0, 0..8, Selection::All)));
    assert_eq!(
        first
            .iter()
            .map(|(_, content)| *content)
            .collect::<Vec<_>>(),
        (0..4).map(digest).collect::<Vec<_>>()
    );
    let holders: BTreeSet<&HostId> = first.iter().map(|(host, _)| host).collect();
    assert_eq!(holders.len(), 4);
    let (holder, content) = first[1].clone();
    let next = grants(&feed(
        &mut plan,
        3_000,
        ended(&holder, content, LeaseEnd::Done),
    ));
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].1, digest(4));
}

#[test]
fn a_content_of_two_images_is_leased_once() {
    let mut plan = fleet(4);
    let mut all = grants(&want(&mut plan, 2_000, wanted(0, [0, 1], Selection::All)));
    all.extend(grants(&want(
        &mut plan,
        2_000,
        wanted(1, [1, 2], Selection::All),
    )));
    let contents: Vec<Digest> = all.iter().map(|(_, content)| *content).collect();
    assert_eq!(contents, [digest(0), digest(1), digest(2)]);
}

#[test]
fn a_lease_without_progress_passes_to_another_host() {
    let mut plan = fleet(5);
    let first = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let (holder, content) = first[0].clone();
    let progress = |chunks, paced| Event::LeaseProgress {
        range: None,
        host: holder.clone(),
        content,
        chunks,
        bytes: 0,
        paced,
        trouble: None,
    };
    feed(&mut plan, 8_000, progress(5, false));
    assert_eq!(feed(&mut plan, 17_900, Event::Tick), []);
    let actions = feed(&mut plan, 18_500, Event::Tick);
    // no host said that the registry is to blame
    assert!(actions.contains(&Action::Revoke {
        host: holder.clone(),
        content,
        cause: RevokeCause::Ended,
    }));
    let next = grants(&actions);
    assert_eq!(next.len(), 1);
    assert_ne!(next[0].0, holder);
}

#[test]
fn a_plan_that_was_held_up_takes_no_lease_back_for_that() {
    let mut plan = fleet(5);
    let first = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let (holder, content) = first[0].clone();
    let told = |plan: &mut Plan, millis: u64, event: Event| {
        plan.handle(at(millis), event);
        core::iter::from_fn(|| plan.poll()).collect::<Vec<_>>()
    };
    told(&mut plan, 2_500, Event::Tick);
    told(&mut plan, 2_900, progress(&holder, content, 3));
    // the coordinator stands still for half a minute; the holder's messages of that time come after the coordinator's
    // first look at the clock
    assert_eq!(told(&mut plan, 33_000, Event::Tick), []);
    assert_eq!(told(&mut plan, 33_010, progress(&holder, content, 90)), []);
    // from then on, silence counts as before
    let mut revoked_at = None;
    while revoked_at.is_none() {
        let due = plan.next_timeout().unwrap();
        plan.handle(due, Event::Tick);
        let actions: Vec<Action> = core::iter::from_fn(|| plan.poll()).collect();
        let revoked = |action: &Action| matches!(action, Action::Revoke { .. });
        revoked_at = actions.iter().any(revoked).then_some(due);
    }
    let silent = revoked_at.unwrap().since(at(33_010));
    assert!((10_000..10_600).contains(&silent.as_millis()), "{silent:?}");
}

#[test]
fn who_has_just_come_back_is_leased_to_after_the_others() {
    let mut plan = fleet(4);
    let order = wanted(0, 0..4, Selection::All);
    let first = grants(&want(&mut plan, 2_000, order));
    let (holder, content) = first[0].clone();
    let (newcomer, _) = first[1].clone();
    let back = |plan: &mut Plan, millis: u64, host: &HostId| {
        let mut actions = feed(plan, millis, Event::HostDisconnected(host.clone()));
        actions.extend(feed(plan, millis, Event::HostConnected(host.clone())));
        let (host, leases) = (host.clone(), Vec::new());
        actions.extend(feed(plan, millis, Event::LeasesClaimed { host, leases }));
        grants(&actions)
    };
    // the newcomer has no lease and the others have one each, but one of the others gets the lost lease
    let passed = back(&mut plan, 5_000, &newcomer);
    assert!(
        passed.iter().all(|(host, _)| *host != newcomer),
        "{passed:?}"
    );
    assert_eq!(passed.len(), 1);
    // the same for another host that comes back, within the first 2 s
    let passed = back(&mut plan, 6_900, &holder);
    assert_eq!(passed.len(), 1);
    assert_eq!(passed[0].1, content);
    assert!(
        passed[0].0 != newcomer && passed[0].0 != holder,
        "{passed:?}"
    );
    let idle = back(&mut plan, 9_000, &passed[0].0);
    assert!(
        idle.iter()
            .any(|(host, _)| *host == newcomer || *host == holder),
        "{idle:?}"
    );
}

#[test]
fn a_content_that_is_fetched_twice_keeps_its_lease_and_no_more() {
    let mut plan = fleet(3);
    let actions = want(&mut plan, 2_000, wanted(0, [1], Selection::All));
    let (holder, content) = grants(&actions)[0].clone();
    let mut revoked = None;
    for step in 1..=300u32 {
        let progress = Event::LeaseProgress {
            range: None,
            host: holder.clone(),
            content,
            chunks: step,
            bytes: 0,
            paced: false,
            trouble: None,
        };
        let now = 2_000 + u64::from(step) * 1_000;
        for event in [progress, Event::Tick] {
            let taken = feed(&mut plan, now, event);
            let taken = taken
                .iter()
                .any(|action| matches!(action, Action::Revoke { .. }));
            if taken && revoked.is_none() {
                revoked = Some(step);
            }
        }
    }
    // a hundred chunks twice, and the time-out of a lease without progress
    assert_eq!(revoked, Some(210));
}

#[test]
fn pacing_keeps_a_lease_but_not_for_ever() {
    let mut plan = fleet(5);
    let (holder, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let mut lost_at = None;
    for second in 3..120 {
        let paced = Event::LeaseProgress {
            range: None,
            host: holder.clone(),
            content,
            chunks: 0,
            bytes: 0,
            paced: true,
            trouble: None,
        };
        if !grants(&feed(&mut plan, second * 1_000, paced)).is_empty() {
            lost_at = Some(second);
            break;
        }
    }
    let lost_at = lost_at.unwrap();
    assert!((60..=75).contains(&lost_at), "{lost_at}");
}

#[test]
fn a_coordinator_that_was_restarted_takes_running_leases_over() {
    let mut plan = fleet(5);
    feed(&mut plan, 2_000, report(2, 0, Standing::Staging, 500));
    let mut seen = grants(&want(&mut plan, 2_000, wanted(0, 0..3, Selection::All)));
    seen.extend(grants(&feed(
        &mut plan,
        2_100,
        report(2, 0, Standing::Staging, 500),
    )));
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..5 {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: String::new(),
            },
        );
    }
    want(&mut plan, 0, wanted(0, 0..3, Selection::All));
    let first = feed(&mut plan, 0, Event::HostConnected(host(2)));
    let open = grants(&first).len();
    feed(&mut plan, 10, report(2, 0, Standing::Staging, 500));
    feed(
        &mut plan,
        20,
        Event::LeaseProgress {
            range: None,
            host: host(2),
            content: digest(2),
            chunks: 40,
            bytes: 0,
            paced: false,
            trouble: None,
        },
    );
    let leases = plan.status(at(20)).leases;
    assert!(
        leases
            .iter()
            .any(|lease| lease.content == digest(2) && lease.host == host(2)),
        "{open} {leases:?}"
    );
}

#[test]
fn leases_that_went_with_an_earlier_life_are_granted_again_at_once() {
    let mut plan = fleet(3);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..4, Selection::All)));
    let (killed, lost) = open[0].clone();
    let theirs = |plan: &Plan| -> Vec<Digest> {
        let leases = plan.status(at(9_000)).leases;
        let mut theirs: Vec<Digest> = leases
            .iter()
            .filter(|lease| lease.host == killed)
            .map(|lease| lease.content)
            .collect();
        theirs.sort_unstable();
        theirs
    };
    let before = theirs(&plan);
    let held = |contents: Vec<Digest>| Event::LeasesClaimed {
        host: killed.clone(),
        leases: contents
            .into_iter()
            .map(|content| (content, None))
            .collect(),
    };
    // in the same session, the lease may have been granted while the report was on its way
    assert_eq!(feed(&mut plan, 4_000, held(Vec::new())), []);
    // the session was lost, but the agent goes on
    feed(&mut plan, 5_000, Event::HostDisconnected(killed.clone()));
    feed(&mut plan, 5_500, Event::HostConnected(killed.clone()));
    feed(&mut plan, 5_500, held(before.clone()));
    assert_eq!(theirs(&plan), before);
    feed(&mut plan, 6_000, Event::HostDisconnected(killed.clone()));
    feed(&mut plan, 6_500, Event::HostConnected(killed.clone()));
    let again = grants(&feed(&mut plan, 6_500, held(Vec::new())));
    assert!(again.iter().any(|(_, what)| *what == lost), "{again:?}");
}

#[test]
fn the_only_host_that_has_said_that_it_stages_looks_again_after_a_second() {
    let mut plan = fleet(2);
    feed(&mut plan, 2_000, wanted(0, [0], Selection::All));
    let mut open = grants(&feed(&mut plan, 2_000, report(0, 0, Standing::Staging, 0)));
    let mut asked = Vec::new();
    for millis in (2_010..6_000).step_by(10) {
        for (by, content) in core::mem::take(&mut open) {
            asked.push(millis);
            let end = LeaseEnd::Faulty(Fault::Missing);
            open.extend(grants(&feed(&mut plan, millis, ended(&by, content, end))));
        }
        open.extend(grants(&feed(&mut plan, millis, Event::Tick)));
    }
    assert!((2..=3).contains(&asked.len()), "{asked:?}");
    let reason = plan.status(plan.clock.now()).images[0].reason;
    assert!(!matches!(reason, Some(ImageReason::ContentFaulty(..))));
}

#[test]
fn a_stream_that_is_slow_keeps_its_lease_and_one_that_only_says_so_does_not() {
    for (bytes_per_s, keeps) in [
        (62_000, true),
        (10_000, true),
        (4 << 10, true),
        (1_000, false),
    ] {
        let mut plan = fleet(5);
        let open = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
        let (by, content) = open[0].clone();
        let mut lost_at = None;
        for second in 1..400u64 {
            let bytes = second * bytes_per_s;
            // one chunk for each MiB that came
            let chunks = u32::try_from(bytes >> 20).unwrap();
            let slow = Event::LeaseProgress {
                range: None,
                host: by.clone(),
                content,
                chunks,
                bytes,
                paced: false,
                trouble: None,
            };
            let actions = feed(&mut plan, 2_000 + second * 1_000, slow);
            if !grants(&actions).is_empty() {
                lost_at = Some(second);
                break;
            }
        }
        assert_eq!(lost_at.is_none(), keeps, "{bytes_per_s}: {lost_at:?}");
        if bytes_per_s == 62_000 {
            let said = plan.status(plan.clock.now()).leases[0].bytes_per_s;
            assert!((61_000..=62_000).contains(&said), "{said}");
        }
    }
    // bytes come without end, but no chunk
    let mut plan = fleet(5);
    let (by, content) = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let lost = (1..600u64).find(|second| {
        let lie = Event::LeaseProgress {
            range: None,
            host: by.clone(),
            content,
            chunks: 0,
            bytes: second * 62_000,
            paced: false,
            trouble: None,
        };
        !grants(&feed(&mut plan, 2_000 + second * 1_000, lie)).is_empty()
    });
    assert!((33..60).contains(&lost.unwrap()), "{lost:?}");
}

/// A quick registry becomes slow. A chunk then takes 17 s, and only the holders can see that bytes come. They are
/// believed when all of them say so. A single holder isn't believed.
#[test]
fn streams_that_become_slow_together_keep_their_leases() {
    for slow in [3, 1] {
        let mut plan = fleet(4);
        let mut order = wanted(0, 0..3, Selection::All);
        if let Event::Wanted { contents, .. } = &mut order {
            for content in contents {
                content.origin_bytes = content.size;
            }
        }
        let mut open = grants(&want(&mut plan, 2_000, order));
        for number in 0..4 {
            let holds = Event::Holds {
                host: host(number),
                contents: Vec::new(),
            };
            open.extend(grants(&feed(&mut plan, 2_000, holds)));
            open.extend(grants(&feed(
                &mut plan,
                2_000,
                report(number, 0, Standing::Staging, 0),
            )));
        }
        assert_eq!(open.len(), 3);
        // for five seconds each stream brings a chunk a second; then one stream goes on like this, or none does
        let mut lost_at = BTreeMap::new();
        for second in 1..20u64 {
            let now = 2_000 + second * 1_000;
            for (at, (by, content)) in open.iter().enumerate() {
                if lost_at.contains_key(content) {
                    continue;
                }
                let quick = second <= 5 || at == 0 && slow == 1;
                let bytes = match quick {
                    true => second << 20,
                    false => (5 << 20) + (second - 5) * 62_000,
                };
                let chunks = u32::try_from(bytes >> 20).unwrap();
                let event = Event::LeaseProgress {
                    range: None,
                    host: by.clone(),
                    content: *content,
                    chunks,
                    bytes,
                    paced: false,
                    trouble: None,
                };
                feed(&mut plan, now, event);
                for number in (0..4).filter(|number| host(*number) != *by) {
                    let holds = Event::Holds {
                        host: host(number),
                        contents: vec![(*content, chunks)],
                    };
                    feed(&mut plan, now, holds);
                }
            }
            let actions = feed(&mut plan, now + 500, Event::Tick);
            for action in actions {
                if let Action::Revoke { content, .. } = action {
                    lost_at.entry(content).or_insert(second);
                }
            }
        }
        let expected = if slow == 1 { 2 } else { 0 };
        assert_eq!(lost_at.len(), expected, "{lost_at:?}");
    }
}
