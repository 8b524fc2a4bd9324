//! Leases of ranges.

use super::*;

pub(super) const RECIPE: usize = 50;

pub(super) fn range(from: u32, until: u32) -> ChunkRange {
    ChunkRange::new(from, until).unwrap()
}

/// The granted ranges, with their hosts; `None` for a lease of all chunks.
pub(super) fn granted(actions: &[Action]) -> Vec<(HostId, Option<ChunkRange>)> {
    let granted = actions.iter().filter_map(|action| match action {
        Action::Grant {
            host,
            content,
            range,
            ..
        } => {
            assert_eq!(*content, digest(0));
            Some((host.clone(), *range))
        }
        _ => None,
    });
    granted.collect()
}

pub(super) fn revoked(actions: &[Action]) -> Vec<HostId> {
    let revoked = actions.iter().filter_map(|action| match action {
        Action::Revoke { host, .. } => Some(host.clone()),
        _ => None,
    });
    revoked.collect()
}

pub(super) fn holds(number: usize, chunks: u32) -> Event {
    Event::Holds {
        host: host(number),
        contents: vec![(digest(RECIPE), 4), (digest(0), chunks)],
    }
}

/// A host stages the image, and has some of it.
pub(super) fn stages(number: usize) -> Event {
    report(number, 0, Standing::Staging, 1 << 20)
}

/// A fleet that stages an image of one content, of which each host holds `chunks` of 100 and the recipe. The hosts
/// `take` ranges. Also returns what was granted.
pub(super) fn staging(
    hosts: usize,
    chunks: u32,
    take: impl Fn(usize) -> bool,
) -> (Plan, Vec<(HostId, Option<ChunkRange>)>) {
    let mut plan = fleet(hosts);
    for number in (0..hosts).filter(|number| take(*number)) {
        feed(&mut plan, 1_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    let mut actions = feed(&mut plan, 4_000, order);
    for number in 0..hosts {
        actions.extend(feed(&mut plan, 4_100, holds(number, chunks)));
    }
    for number in 0..hosts {
        actions.extend(feed(&mut plan, 4_200, stages(number)));
    }
    (plan, granted(&actions))
}

/// Two ranges of the content, and the hosts that fetch them.
pub(super) fn parted() -> (Plan, [HostId; 2]) {
    let (plan, granted) = staging(8, 60, |_| true);
    let [(first, one), (second, other)] = &granted[..] else {
        panic!("{granted:?}");
    };
    assert_eq!((*one, *other), (Some(range(0, 50)), Some(range(50, 100))));
    assert_ne!(first, second);
    (plan, [first.clone(), second.clone()])
}

pub(super) fn moves(by: &HostId, range: Option<ChunkRange>, chunks: u32) -> Event {
    Event::LeaseProgress {
        host: by.clone(),
        content: digest(0),
        range,
        chunks,
        bytes: 0,
        paced: false,
        trouble: None,
    }
}

pub(super) fn ends(by: &HostId, range: Option<ChunkRange>, end: LeaseEnd) -> Event {
    Event::LeaseEnded {
        host: by.clone(),
        content: digest(0),
        range,
        end,
    }
}

#[test]
fn a_content_that_goes_by_a_recipe_is_leased_in_ranges() {
    let (plan, _) = parted();
    let ranges: Vec<_> = plan
        .status(at(4_300))
        .leases
        .iter()
        .map(|of| of.range)
        .collect();
    assert_eq!(ranges, [Some(range(0, 50)), Some(range(50, 100))]);
}

#[test]
fn a_content_is_leased_whole_where_ranges_bring_nothing() {
    let whole = |(_, granted): (Plan, Vec<(HostId, Option<ChunkRange>)>)| {
        assert!(matches!(granted[..], [(_, None)]), "{granted:?}");
    };
    // hosts of an earlier version, or too few others
    whole(staging(8, 60, |_| false));
    whole(staging(8, 60, |number| number < 3));
    whole(staging(3, 60, |_| true));
    // few chunks are missing, or nearly all: then no range can begin
    whole(staging(8, 70, |_| true));
    whole(staging(8, 40, |_| true));
}

#[test]
fn without_a_recipe_contents_are_leased_whole() {
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 1_500, Event::TakesRanges(host(number)));
    }
    let actions = want(&mut plan, 2_000, wanted(0, [0], Selection::All));
    assert!(matches!(granted(&actions)[..], [(_, None)]));
}

#[test]
fn contents_are_leased_whole_while_there_are_enough_of_them() {
    let mut plan = fleet(8);
    let order = with_recipe(wanted(0, 0..4, Selection::All), RECIPE);
    feed(&mut plan, 4_000, order);
    for number in 0..8 {
        feed(&mut plan, 4_000, Event::TakesRanges(host(number)));
        let contents = (0..4).map(|of| (digest(of), 60));
        let contents = contents.chain([(digest(RECIPE), 4)]).collect();
        let host = host(number);
        feed(&mut plan, 4_100, Event::Holds { host, contents });
    }
    for number in 0..8 {
        feed(&mut plan, 4_200, stages(number));
    }
    let status = plan.status(at(4_300));
    assert_eq!(status.leases.len(), 4);
    assert!(status.leases.iter().all(|lease| lease.range.is_none()));
}

#[test]
fn the_range_of_a_host_that_leaves_or_stalls_is_leased_to_another_and_no_other_range_is() {
    let (mut plan, [first, second]) = parted();
    let actions = feed(&mut plan, 5_000, Event::HostForgotten(first.clone()));
    let [(third, again)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*again, Some(range(0, 50)));
    assert!(![&first, &second].contains(&third));
    // the second host says nothing any more, and the third goes on
    let mut seen = Vec::new();
    for at in 6..22 {
        let chunks = u32::try_from(at - 2).unwrap();
        let progress = moves(third, Some(range(0, 50)), chunks);
        seen.extend(feed(&mut plan, at * 1_000, progress));
        for number in 0..8 {
            let grows = holds(number, 60 + chunks);
            seen.extend(feed(&mut plan, at * 1_000 + 500, grows));
        }
    }
    assert_eq!(revoked(&seen), core::slice::from_ref(&second));
    let [(fourth, again)] = &granted(&seen)[..] else {
        panic!("{seen:?}");
    };
    assert_eq!(*again, Some(range(50, 100)));
    assert!(*fourth != second && fourth != third);
    assert!(plan.holds_lease(third, &digest(0)));
}

#[test]
fn a_content_that_was_leased_before_hosts_said_what_they_have_is_divided_then() {
    let (mut plan, granted_whole) = staging(8, 0, |_| true);
    let [(first, None)] = &granted_whole[..] else {
        panic!("{granted_whole:?}");
    };
    let mut actions = feed(&mut plan, 4_300, moves(first, None, 2));
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_400, holds(number, 60)));
    }
    actions.extend(feed(&mut plan, 5_000, Event::Tick));
    assert_eq!(revoked(&actions), []);
    let [(same, one), (second, other)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(same == first && second != first);
    assert_eq!((*one, *other), (Some(range(0, 50)), Some(range(50, 100))));
    // what the first host said of the whole content is over
    let said = feed(&mut plan, 5_100, ends(first, None, LeaseEnd::Done));
    assert_eq!(granted(&said), []);
    assert!(plan.holds_lease(first, &digest(0)));
}

#[test]
fn a_word_about_a_range_that_was_leased_before_ends_no_lease() {
    let (mut plan, [first, second]) = parted();
    for of in [None, Some(range(50, 100)), Some(range(0, 49))] {
        let actions = feed(&mut plan, 5_000, ends(&first, of, LeaseEnd::Done));
        assert!(actions.is_empty(), "{of:?}: {actions:?}");
        feed(&mut plan, 5_000, moves(&first, of, 7));
    }
    assert!(plan.holds_lease(&first, &digest(0)) && plan.holds_lease(&second, &digest(0)));
    let leases = plan.status(at(5_100)).leases;
    assert!(leases.iter().all(|lease| lease.chunks == 0), "{leases:?}");
}

#[test]
fn ranges_that_were_fetched_are_left_alone_until_the_content_should_have_spread() {
    let (mut plan, [first, second]) = parted();
    let (one, other) = (Some(range(0, 50)), Some(range(50, 100)));
    let actions = feed(&mut plan, 5_000, ends(&first, one, LeaseEnd::Done));
    assert_eq!(granted(&actions), []);
    let actions = feed(&mut plan, 6_000, ends(&second, other, LeaseEnd::Done));
    assert_eq!(granted(&actions), []);
    let mut actions = Vec::new();
    for millis in (6_500..11_000).step_by(500) {
        actions.extend(feed(&mut plan, millis, Event::Tick));
    }
    assert_eq!(granted(&actions), []);
    // somebody lied, or lost it: the content goes whole
    for millis in (11_000..13_000).step_by(500) {
        actions.extend(feed(&mut plan, millis, Event::Tick));
    }
    assert!(matches!(granted(&actions)[..], [(_, None)]), "{actions:?}");
}

#[test]
fn a_content_that_came_in_ranges_and_is_whole_on_some_host_is_not_leased_again() {
    let (mut plan, [first, second]) = parted();
    for (host, of) in [(&first, range(0, 50)), (&second, range(50, 100))] {
        feed(&mut plan, 5_000, ends(host, Some(of), LeaseEnd::Done));
    }
    for number in 0..8 {
        feed(&mut plan, 7_000, holds(number, 100));
    }
    let mut actions = Vec::new();
    for millis in (7_500..20_000).step_by(500) {
        actions.extend(feed(&mut plan, millis, Event::Tick));
    }
    assert_eq!(granted(&actions), []);
}

#[test]
fn a_range_that_two_hosts_give_back_ends_ranges_once_the_others_are_through() {
    let (mut plan, [first, second]) = parted();
    let (of, end) = (Some(range(0, 50)), LeaseEnd::Released);
    let actions = feed(&mut plan, 5_000, ends(&first, of, end));
    let [(third, again)] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert!(*again == of && ![&first, &second].contains(&third));
    let actions = feed(&mut plan, 5_500, ends(third, of, end));
    assert_eq!(granted(&actions), []);
    let done = ends(&second, Some(range(50, 100)), LeaseEnd::Done);
    let actions = feed(&mut plan, 6_000, done);
    assert!(matches!(granted(&actions)[..], [(_, None)]), "{actions:?}");
}

#[test]
fn a_doubt_amid_a_range_ends_all_ranges_when_another_host_says_the_same() {
    let (mut plan, [first, second]) = parted();
    let doubts = |host: &HostId| Event::RecipeDoubted {
        host: host.clone(),
        image: image(0),
        content: digest(0),
        chunk: 7,
    };
    let actions = feed(&mut plan, 5_000, doubts(&first));
    assert_eq!(revoked(&actions), core::slice::from_ref(&first));
    let [(third, Some(again))] = &granted(&actions)[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*again, range(0, 50));
    let actions = feed(&mut plan, 6_000, doubts(third));
    let mut ended = revoked(&actions);
    ended.sort_unstable();
    let mut both = [third.clone(), second];
    both.sort_unstable();
    assert_eq!(ended, both);
    assert!(
        actions
            .iter()
            .any(|of| matches!(of, Action::LeaveRecipe(_)))
    );
    assert!(matches!(granted(&actions)[..], [(_, None)]), "{actions:?}");
}

#[test]
fn a_coordinator_that_starts_takes_ranges_over_that_run() {
    let mut plan = fleet(8);
    for number in 0..8 {
        feed(&mut plan, 3_500, Event::TakesRanges(host(number)));
    }
    let order = with_recipe(wanted(0, [0], Selection::All), RECIPE);
    feed(&mut plan, 4_000, order);
    for number in 0..8 {
        feed(&mut plan, 4_100, holds(number, 60));
    }
    let (one, other) = (Some(range(0, 50)), Some(range(50, 100)));
    for (number, range) in [(1, one), (2, other)] {
        let actions = feed(&mut plan, 4_100, moves(&host(number), range, 3));
        assert_eq!(revoked(&actions), []);
        assert!(plan.holds_lease(&host(number), &digest(0)));
    }
    // chunks that another host fetches, and all of them
    for (number, range) in [(3, Some(range(40, 60))), (4, None)] {
        let actions = feed(&mut plan, 4_100, moves(&host(number), range, 3));
        assert_eq!(revoked(&actions), [host(number)]);
    }
    let mut actions = Vec::new();
    for number in 0..8 {
        actions.extend(feed(&mut plan, 4_200, stages(number)));
    }
    assert_eq!(granted(&actions), []);
    // one of them is gone: its range is leased, and the other goes on
    let actions = feed(&mut plan, 5_000, Event::HostForgotten(host(1)));
    assert!(
        matches!(granted(&actions)[..], [(_, of)] if of == one),
        "{actions:?}"
    );
}
