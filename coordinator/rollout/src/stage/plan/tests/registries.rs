//! Tests of registries that fail leases, or ask to be left alone.

use super::*;

#[test]
fn a_registry_that_fails_several_hosts_is_left_alone_for_longer_and_longer() {
    let mut plan = fleet(6);
    let mut open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    assert_eq!(open.len(), 4);
    let mut now = 2_000;
    let mut gaps = Vec::new();
    for _ in 0..6 {
        let failed_at = now;
        for (holder, content) in core::mem::take(&mut open) {
            open.extend(grants(&feed(
                &mut plan,
                now,
                ended(&holder, content, LeaseEnd::OriginFailed),
            )));
        }
        while open.is_empty() {
            now += 100;
            assert!(now < failed_at + 120_000);
            open.extend(grants(&feed(&mut plan, now, Event::Tick)));
        }
        gaps.push(now - failed_at);
    }
    assert!(gaps.last() > Some(&8_000), "{gaps:?}");
    assert_eq!(open.len(), 1, "one tries first");
    let (holder, content) = open[0].clone();
    let progress = Event::LeaseProgress {
        range: None,
        host: holder,
        content,
        chunks: 3,
        bytes: 0,
        paced: false,
        trouble: None,
    };
    assert_eq!(
        grants(&feed(&mut plan, now + 10, progress)).len(),
        3,
        "it is back: all streams again"
    );
}

/// When nothing moves any more, contents are leased again to hosts that are thought to hold them. Such a host says so
/// at once, and asked the registry nothing.
#[test]
fn a_host_that_held_a_content_before_its_lease_says_nothing_about_the_registry() {
    let mut plan = fleet(2);
    let mut open = grants(&want(&mut plan, 2_000, wanted(0, 0..2, Selection::All)));
    let (holder, held) = open.remove(0);
    let actions = feed(&mut plan, 3_000, ended(&holder, held, LeaseEnd::Done));
    open.extend(grants(&actions));
    for number in 0..2 {
        let event = Event::Holds {
            host: host(number),
            contents: vec![(held, 100)],
        };
        feed(&mut plan, 3_000, event);
        feed(&mut plan, 3_000, report(number, 0, Standing::Staging, 100));
    }
    let (mut refused, mut again) = (Vec::new(), 0);
    // from now on the registry refuses
    for millis in (14_000..340_000).step_by(500) {
        for (holder, content) in core::mem::take(&mut open) {
            let end = if content == held {
                again += 1;
                LeaseEnd::Done
            } else {
                refused.push(millis);
                LeaseEnd::OriginFailed
            };
            let actions = feed(&mut plan, millis, ended(&holder, content, end));
            open.extend(grants(&actions));
        }
        open.extend(grants(&feed(&mut plan, millis, Event::Tick)));
    }
    assert!(again >= 10, "what is held is asked for again: {again}");
    // after pauses that double to a minute
    assert!(refused.len() <= 14, "{refused:?}");
}

#[test]
fn what_a_registry_asks_of_all_streams_is_kept_by_everybody() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let wish = Some(Trouble::Throttled(Duration::from_secs(60)));
    for (host, content) in &open {
        let actions = feed(&mut plan, 3_000, running(host, *content, 0, wish));
        assert_eq!(revokes(&actions), 1, "its holder stops asking: {actions:?}");
    }
    for millis in (3_500..63_000).step_by(500) {
        assert_eq!(feed(&mut plan, millis, Event::Tick), []);
    }
    let status = &plan.status(at(62_900)).images[0];
    assert_eq!(status.reason, Some(ImageReason::OriginThrottled));
    assert_eq!(status.origin_retry_in, Some(Duration::from_millis(100)));
    let first = grants(&feed(&mut plan, 63_500, Event::Tick));
    assert_eq!(first.len(), 1, "one tries first");
    let going = feed(&mut plan, 64_000, running(&first[0].0, first[0].1, 7, None));
    assert_eq!(grants(&going).len(), 3, "all streams again");
}

#[test]
fn one_hosts_word_that_a_registry_asks_to_be_left_alone_holds_up_others_for_seconds() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..5, Selection::All)));
    let wish = Some(Trouble::Throttled(Duration::from_secs(3_600)));
    let (liar, content) = open[0].clone();
    let actions = feed(&mut plan, 3_000, running(&liar, content, 0, wish));
    assert_eq!(revokes(&actions), 1);
    let mut next = Vec::new();
    for second in 4..9 {
        // open streams go on, and prove nothing about new ones
        for (host, content) in &open[1..] {
            let going = running(host, *content, second, None);
            let actions = feed(&mut plan, u64::from(second) * 1_000, going);
            next.extend(grants(&actions).into_iter().map(|grant| (second, grant)));
        }
    }
    // a registry that asks all streams to stop would have told them within two seconds
    let [(5, (_, fifth))] = &next[..] else {
        panic!("{next:?}");
    };
    assert_eq!(*fifth, digest(4));
    let (holder, done) = &open[1];
    let again = grants(&feed(
        &mut plan,
        8_100,
        ended(holder, *done, LeaseEnd::Done),
    ));
    let [(other, again)] = &again[..] else {
        panic!("{again:?}");
    };
    assert_eq!(*again, content);
    assert_ne!(*other, liar, "another tries first");
    // the other host gets something: so the word was false, and the same host's next word holds up nobody
    for (host, content) in &open[2..] {
        feed(&mut plan, 8_500, ended(host, *content, LeaseEnd::Done));
    }
    let holds = |number: usize, chunks: u32| Event::Holds {
        host: host(number),
        contents: vec![(content, chunks)],
    };
    for chunks in [0, 5] {
        for number in 0..6 {
            feed(&mut plan, 8_600, holds(number, chunks));
        }
        feed(&mut plan, 9_200, Event::Tick);
    }
    feed(&mut plan, 10_000, Event::Tick);
    assert!(plan.records.is_disbelieved(plan.clock.now(), &liar));
    assert_eq!(plan.status(at(10_000)).images[0].origin_retry_in, None);
}

#[test]
fn after_its_wish_one_lease_asks_first() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let wish = |seconds| Some(Trouble::Throttled(Duration::from_secs(seconds)));
    for (host, content) in &open {
        feed(&mut plan, 3_000, running(host, *content, 0, wish(60)));
    }
    let mut asked = Vec::new();
    for millis in (3_000..200_000).step_by(500) {
        for (host, content) in grants(&feed(&mut plan, millis, Event::Tick)) {
            asked.push(millis);
            let report = running(&host, content, 0, wish(30));
            assert_eq!(revokes(&feed(&mut plan, millis + 100, report)), 1);
            // a report that crossed the revocation doesn't bring the lease back
            let late = running(&host, content, 0, wish(30));
            let again = Action::Revoke {
                host,
                content,
                cause: RevokeCause::NotHeld,
            };
            assert_eq!(feed(&mut plan, millis + 200, late), [again]);
        }
    }
    assert!(asked[0] >= 63_000, "{asked:?}");
    assert!(
        asked.windows(2).all(|pair| pair[1] - pair[0] >= 30_000),
        "{asked:?}"
    );
    assert!((4..=5).contains(&asked.len()), "{asked:?}");
    // no wish holds up the registry for ever, whichever host reports it
    let (host, content) = (0..)
        .find_map(|step| grants(&feed(&mut plan, 200_000 + step * 500, Event::Tick)).pop())
        .unwrap();
    let endless = Some(Trouble::Throttled(Duration::MAX));
    let now = plan.clock.now();
    feed(
        &mut plan,
        now.0 / 1_000,
        running(&host, content, 0, endless),
    );
    assert_eq!(
        plan.status(now).images[0].origin_retry_in,
        Some(Config::default().origin_wish_most)
    );
}

#[test]
fn a_registry_that_goes_on_failing_two_hosts_is_left_alone() {
    let mut plan = fleet(6);
    let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
    let failing = Some(Trouble::Failing);
    let fail = |plan: &mut Plan, millis, which: &[(HostId, Digest)]| {
        let mut actions = Vec::new();
        for (host, content) in which {
            actions.extend(feed(plan, millis, running(host, *content, 0, failing)));
        }
        actions
    };
    assert_eq!(revokes(&fail(&mut plan, 3_000, &open)), 0);
    assert_eq!(
        revokes(&fail(&mut plan, 5_900, &open)),
        0,
        "connections break and are made again"
    );
    assert_eq!(revokes(&fail(&mut plan, 6_100, &open[..1])), 4);
    let status = &plan.status(at(6_200)).images[0];
    assert_eq!(status.reason, Some(ImageReason::OriginDown));
    assert!(status.origin_retry_in > Some(Duration::from_millis(800)));
    // each try fails, for ten minutes
    let mut tries = 0;
    for millis in (6_500..606_000).step_by(500) {
        for (host, content) in grants(&feed(&mut plan, millis, Event::Tick)) {
            tries += 1;
            let report = running(&host, content, 0, failing);
            assert_eq!(revokes(&feed(&mut plan, millis + 100, report)), 1);
            assert_eq!(
                plan.status(at(millis + 200)).images[0].reason,
                Some(ImageReason::OriginDown)
            );
        }
    }
    assert!((10..=16).contains(&tries), "{tries}");
    // the registry is back: all streams run after the first chunk
    let (now, (host, content)) = (0..)
        .find_map(|step| {
            let now = 606_000 + step * 500;
            Some((now, grants(&feed(&mut plan, now, Event::Tick)).pop()?))
        })
        .unwrap();
    let back = feed(&mut plan, now + 100, running(&host, content, 1, None));
    assert_eq!(grants(&back).len(), 3);
}

#[test]
fn one_hosts_trouble_passes_its_lease_on_and_holds_up_nobody() {
    // a host that gets errors knows sooner than a host that only waits
    for (trouble, passes) in [(Trouble::Failing, 6..=7), (Trouble::Silent, 12..=13)] {
        let mut plan = fleet(6);
        let open = grants(&want(&mut plan, 2_000, wanted(0, 0..6, Selection::All)));
        let mut passed = Vec::new();
        for second in 3..14 {
            for (at, (host, content)) in (0..).zip(&open) {
                let report = match at {
                    0 => running(host, *content, 0, Some(trouble)),
                    _ => running(host, *content, second, None),
                };
                let actions = feed(&mut plan, u64::from(second) * 1_000, report);
                passed.extend(grants(&actions).into_iter().map(|to| (second, to)));
            }
        }
        let [(second, (to, content))] = &passed[..] else {
            panic!("{passed:?}");
        };
        assert!(passes.contains(second), "{trouble:?}: {second}");
        assert_eq!(*content, open[0].1);
        assert_ne!(*to, open[0].0);
    }
}

#[test]
fn a_registry_that_is_silent_to_one_host_after_another_is_left_alone() {
    let mut plan = fleet(4);
    let mut held = grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)));
    let mut granted = Vec::new();
    for millis in (2_500..120_000).step_by(500) {
        let (host, content) = held[0].clone();
        let silent = running(&host, content, 0, Some(Trouble::Silent));
        if let Some(next) = grants(&feed(&mut plan, millis, silent)).pop() {
            granted.push(millis);
            held = vec![next];
        }
    }
    assert!(granted.len() <= 8, "{granted:?}");
}

#[test]
fn one_registrys_trouble_doesnt_hold_up_another() {
    let mut plan = fleet(6);
    let (host, content) =
        grants(&want(&mut plan, 2_000, wanted(0, [0], Selection::All)))[0].clone();
    let wish = Some(Trouble::Throttled(Duration::from_secs(600)));
    feed(&mut plan, 3_000, running(&host, content, 0, wish));
    let Event::Wanted {
        image,
        contents,
        hosts,
        ..
    } = wanted(1, [1, 2], Selection::All)
    else {
        panic!("an order");
    };
    let other = Event::Wanted {
        image,
        references: vec!["other.example/image:1".into()],
        contents,
        recipe: None,
        hosts,
        paused: Vec::new(),
        purpose: Purpose::Stage,
    };
    let open = grants(&want(&mut plan, 4_000, other));
    let contents: Vec<Digest> = open.iter().map(|(_, content)| *content).collect();
    assert_eq!(contents, [digest(1), digest(2)]);
    // the wish is remembered while nothing is wanted from that registry
    feed(&mut plan, 5_000, Event::Cancelled(self::image(0)));
    assert_eq!(
        grants(&want(&mut plan, 6_000, wanted(0, [0], Selection::All))),
        []
    );
}
