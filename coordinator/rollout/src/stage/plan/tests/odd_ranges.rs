//! Leases of ranges among hosts that lie, differ, or fail, and after a start.

use super::{
    ranges::{RECIPE, ends, granted, holds, moves, parted, range, revoked, stages, staging},
    *,
};

/// A coordinator that has just started, with eight hosts that stage an image of one content, of which each holds 60
/// chunks of 100. It has granted nothing.
fn started() -> Plan {
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 3_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    feed(&mut plan, 4_000, order);
    for number in 0..8 {
        feed(&mut plan, 4_100, holds(number, 60));
    }
    plan
}

/// All hosts say that they stage. Returns what is granted.
fn all_stage(plan: &mut Plan) -> Vec<(HostId, Option<ChunkRange>)> {
    let all = (0..8).flat_map(|number| feed(plan, 4_200, stages(number)));
    granted(&all.collect::<Vec<_>>())
}

/// What follows while time passes and hosts say nothing.
fn wait(plan: &mut Plan, millis: core::ops::Range<u64>) -> Vec<Action> {
    let ticks = millis.step_by(500);
    ticks
        .flat_map(|millis| feed(plan, millis, Event::Tick))
        .collect()
}

#[test]
fn a_recipe_is_not_taken_over_in_ranges_and_stays_to_be_had() {
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 3_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    feed(&mut plan, 4_000, order);
    // all of the recipe, as a range
    let (liar, of) = (host(1), Some(range(0, 4)));
    let runs = Event::LeaseProgress {
        host: liar.clone(),
        content: digest(RECIPE),
        range: of,
        chunks: 3,
        bytes: 0,
        paced: false,
        trouble: None,
    };
    assert_eq!(
        revoked(&feed(&mut plan, 4_050, runs)),
        core::slice::from_ref(&liar)
    );
    let done = Event::LeaseEnded {
        host: liar,
        content: digest(RECIPE),
        range: of,
        end: LeaseEnd::Done,
    };
    let mut actions = feed(&mut plan, 4_060, done);
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_200, stages(number)));
    }
    actions.extend(wait(&mut plan, 4_500..30_000));
    let of_recipe = |(_, content): &(HostId, Digest)| *content == digest(RECIPE);
    assert!(grants(&actions).iter().any(of_recipe), "{actions:?}");
}

#[test]
fn a_short_range_that_a_host_says_it_had_does_not_make_the_others_short() {
    let mut plan = started();
    let claimed = Some(range(10, 11));
    let actions = feed(&mut plan, 4_150, moves(&host(1), claimed, 0));
    assert_eq!(revoked(&actions), []);
    let ranges: Vec<_> = all_stage(&mut plan).into_iter().map(|(_, of)| of).collect();
    // the chunks before it, and what follows it in parts as large as of any content
    let expected = [range(0, 10), range(11, 36), range(36, 61)].map(Some);
    assert_eq!(ranges, expected);
}

#[test]
fn a_range_is_taken_over_only_where_ranges_can_be() {
    // of a host that takes none
    let mut plan = started();
    feed(&mut plan, 4_110, Event::HostConnected(host(9)));
    let claims = moves(&host(9), Some(range(0, 50)), 3);
    assert_eq!(revoked(&feed(&mut plan, 4_150, claims)), [host(9)]);
    // of a content that goes by no recipe
    let mut plan = fleet(8);
    feed(&mut plan, 3_500, Event::TakesRanges(host(1)));
    feed(&mut plan, 4_000, wanted(0, [0], Selection::All));
    let claims = moves(&host(1), Some(range(0, 100)), 3);
    assert_eq!(revoked(&feed(&mut plan, 4_150, claims)), [host(1)]);
}

#[test]
fn who_says_that_a_range_came_of_which_nobody_got_anything_goes_behind_others() {
    let (mut plan, [first, second]) = parted();
    feed(
        &mut plan,
        4_300,
        ends(&first, Some(range(0, 50)), LeaseEnd::Done),
    );
    // others get what the second host fetches
    for number in 0..8 {
        feed(&mut plan, 5_000, holds(number, 70));
    }
    feed(&mut plan, 5_500, Event::Tick);
    let done = ends(&second, Some(range(50, 100)), LeaseEnd::Done);
    feed(&mut plan, 6_000, done);
    let actions = wait(&mut plan, 6_500..14_000);
    let [(third, None)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(![&first, &second].contains(&third));
    assert_eq!(plan.records.failures(&first), 1);
    assert_eq!(plan.records.failures(&second), 0);
}

#[test]
fn a_host_that_gave_a_range_back_has_none_of_the_content_again() {
    // one range has nobody else
    let (mut plan, granted_first) = staging(4, 60, |_| true);
    let [(first, Some(of)), (second, Some(_))] = &granted_first[..] else {
        panic!("{granted_first:?}");
    };
    for number in 0..4 {
        if ![first, second].contains(&&host(number)) {
            feed(&mut plan, 4_300, Event::HostForgotten(host(number)));
        }
    }
    let mut times = 0;
    for millis in (4_500..9_000).step_by(500) {
        let mut actions = feed(
            &mut plan,
            millis,
            ends(first, Some(*of), LeaseEnd::Released),
        );
        // the other range brings chunks
        let chunks = u32::try_from(millis / 500).unwrap();
        actions.extend(feed(
            &mut plan,
            millis,
            moves(second, Some(range(50, 100)), chunks),
        ));
        times += granted(&actions).len();
    }
    assert_eq!(times, 0);
}

#[test]
fn hosts_without_the_release_before_get_no_range() {
    // a range begins behind a chunk that its holder has
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 1_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    let mut actions = feed(&mut plan, 4_000, order);
    for number in 0..8 {
        let chunks = if number < 4 { 60 } else { 0 };
        actions.extend(feed(&mut plan, 4_100, holds(number, chunks)));
    }
    for number in [0, 4, 1, 5, 2, 6, 3, 7] {
        actions.extend(feed(&mut plan, 4_200, stages(number)));
    }
    let granted = granted(&actions);
    let [(one, Some(_)), (other, Some(_))] = &granted[..] else {
        panic!("{granted:?}");
    };
    let able: Vec<HostId> = (0..4).map(host).collect();
    assert!(able.contains(one) && able.contains(other), "{granted:?}");
}

#[test]
fn what_a_few_hosts_say_that_they_hold_decides_nothing_about_ranges() {
    // two say that they lack one chunk: then no range would be worth its begin
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 1_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    let mut actions = feed(&mut plan, 4_000, order);
    for number in 0..8 {
        let chunks = if number < 2 { 99 } else { 60 };
        actions.extend(feed(&mut plan, 4_100, holds(number, chunks)));
    }
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_200, stages(number)));
    }
    let granted = granted(&actions);
    assert!(
        matches!(granted[..], [(_, Some(_)), (_, Some(_))]),
        "{granted:?}"
    );
}

#[test]
fn a_content_is_divided_under_the_image_that_it_is_leased_for_alone() {
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 1_500, Event::TakesRanges(host(number)));
    }
    // the image before has no recipe
    let mut actions = feed(&mut plan, 4_000, wanted(1, [0], Selection::All));
    for number in 0..8 {
        let event = report(number, 1, Standing::Staging, 1 << 20);
        actions.extend(feed(&mut plan, 4_100, event));
    }
    let [(first, None)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    let mut actions = feed(&mut plan, 4_200, order);
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_300, holds(number, 60)));
        actions.extend(feed(&mut plan, 4_400, stages(number)));
    }
    actions.extend(feed(&mut plan, 5_000, Event::Tick));
    assert_eq!(granted(&actions), []);
    assert!(plan.holds_lease(first, &digest(0)));
}

#[test]
fn an_order_that_divides_a_content_and_was_lost_is_given_again() {
    let (mut plan, whole) = staging(8, 0, |_| true);
    let [(first, None)] = &whole[..] else {
        panic!("{whole:?}");
    };
    let mut actions = Vec::new();
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_400, holds(number, 60)));
    }
    actions.extend(feed(&mut plan, 5_000, Event::Tick));
    assert_eq!(granted(&actions).len(), 2);
    // the session ended before the order came: the host still fetches all
    feed(&mut plan, 5_100, Event::HostDisconnected(first.clone()));
    feed(&mut plan, 5_600, Event::HostConnected(first.clone()));
    feed(&mut plan, 5_600, Event::TakesRanges(first.clone()));
    let has = Event::LeasesClaimed {
        host: first.clone(),
        leases: vec![(digest(0), None)],
    };
    let mut actions = feed(&mut plan, 5_600, has);
    actions.extend(feed(&mut plan, 5_600, moves(first, None, 9)));
    // it is told that it doesn't have that lease, and the range is leased
    assert_eq!(revoked(&actions), core::slice::from_ref(first));
    let [(_, again)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*again, Some(range(0, 50)));
    // a host that knows its range keeps it
    let (mut plan, [first, _]) = parted();
    feed(&mut plan, 5_100, Event::HostDisconnected(first.clone()));
    feed(&mut plan, 5_600, Event::HostConnected(first.clone()));
    let has = Event::LeasesClaimed {
        host: first.clone(),
        leases: vec![(digest(0), Some(range(0, 50)))],
    };
    feed(&mut plan, 5_600, has);
    assert!(plan.holds_lease(&first, &digest(0)));
}

#[test]
fn ranges_that_the_registry_fails_at_once_count_as_one_failure() {
    let (mut plan, holders) = parted();
    let of = [Some(range(0, 50)), Some(range(50, 100))];
    let fails = |host: &HostId, range| Event::LeaseProgress {
        host: host.clone(),
        content: digest(0),
        range,
        chunks: 0,
        bytes: 0,
        paced: false,
        trouble: Some(Trouble::Failing),
    };
    let mut now = 5_000;
    let mut pauses = Vec::new();
    let mut running: Vec<(HostId, Option<ChunkRange>)> = holders.into_iter().zip(of).collect();
    for _ in 0..3 {
        let failed_at = now;
        let mut actions = Vec::new();
        // all ranges that run fail for long enough
        for _ in 0..8 {
            for (host, range) in &running {
                if plan.holds_lease(host, &digest(0)) {
                    actions.extend(feed(&mut plan, now, fails(host, *range)));
                }
            }
            now += 500;
            actions.extend(feed(&mut plan, now, Event::Tick));
            if !granted(&actions).is_empty() {
                break;
            }
        }
        while granted(&actions).is_empty() {
            now += 250;
            actions.extend(feed(&mut plan, now, Event::Tick));
        }
        pauses.push(now - failed_at);
        running = granted(&actions);
        // while the registry fails, one asks it first
        assert_eq!(running.len(), 1, "{running:?}");
    }
    // trouble counts after 3 s; then 0 or 1 s, 2 s and 4 s
    assert!(pauses.iter().all(|pause| *pause <= 8_000), "{pauses:?}");
}

#[test]
fn holders_at_one_time_that_nobody_gets_anything_from_count_as_one_holder() {
    let (mut plan, [first, second]) = parted();
    for millis in (4_500..14_000).step_by(500) {
        for (host, of) in [(&first, range(0, 50)), (&second, range(50, 100))] {
            let chunks = u32::try_from((millis - 4_000) / 500).unwrap();
            feed(&mut plan, millis, moves(host, Some(of), chunks));
        }
    }
    assert!(!plan.holds_lease(&first, &digest(0)) && !plan.holds_lease(&second, &digest(0)));
    let content = plan.contents.get(&digest(0)).unwrap();
    assert_eq!(content.receipts().patience(), 1);
}

#[test]
fn doubts_of_hosts_with_other_ranges_agree_where_they_name_one_chunk() {
    let (mut plan, [first, second]) = parted();
    let doubts = |host: &HostId| Event::RecipeDoubted {
        host: host.clone(),
        image: image(0),
        content: digest(0),
        chunk: 60,
    };
    feed(&mut plan, 5_000, doubts(&first));
    let actions = feed(&mut plan, 5_100, doubts(&second));
    let left = |of: &Action| matches!(of, Action::LeaveRecipe(_));
    assert!(actions.iter().any(left), "{actions:?}");
    // all ranges are over, and one host has all
    let leases = plan.status(at(5_200)).leases;
    assert!(
        matches!(&leases[..], [of] if of.range.is_none()),
        "{leases:?}"
    );
}

#[test]
fn an_image_that_is_ordered_anew_or_another_recipe_leaves_no_range_behind() {
    let (mut plan, [first, second]) = parted();
    let actions = feed(&mut plan, 5_000, Event::Cancelled(image(0)));
    let mut ended = revoked(&actions);
    ended.sort_unstable();
    let mut both = [first.clone(), second.clone()];
    both.sort_unstable();
    assert_eq!(ended, both);
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    let mut actions = feed(&mut plan, 20_000, order);
    // what they still say of the ranges of before is nothing
    for (host, of) in [(&first, range(0, 50)), (&second, range(50, 100))] {
        feed(&mut plan, 20_000, ends(host, Some(of), LeaseEnd::Done));
    }
    for number in 0..8 {
        actions.extend(feed(&mut plan, 20_100, holds(number, 60)));
        actions.extend(feed(&mut plan, 20_200, stages(number)));
    }
    let ranges: Vec<_> = granted(&actions).into_iter().map(|(_, of)| of).collect();
    assert_eq!(ranges, [Some(range(0, 50)), Some(range(50, 100))]);
    // without the recipe nothing more is divided; what runs goes on, and the rest is leased whole
    feed(&mut plan, 20_300, wanted(0, [0], Selection::All));
    let running = plan.status(at(20_400)).leases;
    for lease in &running {
        feed(
            &mut plan,
            20_500,
            ends(&lease.host, lease.range, LeaseEnd::OriginFailed),
        );
    }
    let leases = plan.status(at(20_600)).leases;
    assert!(leases.iter().all(|of| of.range.is_none()), "{leases:?}");
}

#[test]
fn a_word_that_the_registry_lacks_it_waits_for_the_host_that_fetches_another_range() {
    let (of, missing) = (Some(range(0, 50)), LeaseEnd::Faulty(Fault::Missing));
    let fails = |plan: &Plan| {
        let images = plan.status(at(9_000)).images;
        matches!(images[0].reason, Some(ImageReason::ContentFaulty(..)))
    };
    let (mut plan, [first, second]) = parted();
    let actions = feed(&mut plan, 5_000, ends(&first, of, missing));
    // nobody else is sent to look while somebody fetches
    assert!(granted(&actions).is_empty() && !fails(&plan));
    let mut actions = Vec::new();
    for number in 0..8 {
        actions.extend(feed(&mut plan, 5_500, holds(number, 64)));
    }
    actions.extend(feed(&mut plan, 6_000, Event::Tick));
    let [(third, again)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(*again == of && ![&first, &second].contains(&third));
    // liars enough, one after the other
    let mut liar = third.clone();
    for _ in 0..3 {
        feed(&mut plan, 6_100, ends(&liar, of, missing));
        assert!(!fails(&plan) && plan.holds_lease(&second, &digest(0)));
        let mut actions = Vec::new();
        for number in 0..8 {
            actions.extend(feed(&mut plan, 6_500, holds(number, 70)));
        }
        actions.extend(feed(&mut plan, 7_000, Event::Tick));
        let Some((next, _)) = granted(&actions).into_iter().next() else {
            break;
        };
        liar = next;
    }
    // where nobody gets anything, two hosts look at once, and then one after the other
    let (mut plan, holders) = parted();
    let ranges = [of, Some(range(50, 100))];
    let mut looked = 0;
    let mut running: Vec<_> = holders.into_iter().zip(ranges).collect();
    while let Some((host, range)) = running.pop() {
        looked += 1;
        assert!(!fails(&plan));
        let actions = feed(&mut plan, 5_000, ends(&host, range, missing));
        running.extend(granted(&actions));
    }
    assert!(looked == 3 && fails(&plan), "{looked}");
}

#[test]
fn the_range_that_a_host_fetched_goes_to_another_when_the_host_can_serve_it_no_more() {
    for (standing, held) in [(Standing::Failed, 1 << 20), (Standing::Staging, 0)] {
        let (mut plan, [first, second]) = parted();
        let of = range(0, 50);
        feed(&mut plan, 4_300, ends(&first, Some(of), LeaseEnd::Done));
        let number = (0..8).find(|number| host(*number) == first).unwrap();
        let actions = feed(&mut plan, 4_400, report(number, 0, standing, held));
        let [(third, again)] = &granted(&actions)[..] else {
            panic!("{standing:?}: {actions:?}");
        };
        assert!(*again == Some(of) && *third != second, "{standing:?}");
    }
}
