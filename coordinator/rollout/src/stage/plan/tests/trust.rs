//! Tests of which hosts the fleet shuns, which hosts get leases last, and what a host takes back.

use super::*;

#[test]
fn two_accusers_are_needed_to_shun_a_host() {
    let mut plan = fleet(5);
    assert_eq!(feed(&mut plan, 2_000, accused(0, 4)), []);
    assert_eq!(
        feed(&mut plan, 2_100, accused(0, 4)),
        [],
        "the same accuser counts once"
    );
    let actions = feed(&mut plan, 2_200, accused(1, 4));
    assert!(actions.contains(&Action::Quarantine(host(4))));
    feed(&mut plan, 3_000, Event::Tick);
    assert_eq!(plan.status(at(3_000)).quarantined, [host(4)]);
}

/// A host reports a signed link that its verified copy shows to be false.
fn found_false(by: usize, maker: usize, content: usize, vouched: bool) -> Event {
    Event::FalseLink {
        by: host(by),
        maker: host(maker),
        content: digest(content),
        vouched,
    }
}

#[test]
fn a_third_of_the_fleet_cannot_shun_an_honest_host() {
    let mut plan = fleet(20);
    for liar in 0..6 {
        feed(&mut plan, 2_000, accused(liar, 19));
    }
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    feed(&mut plan, 2_100, accused(6, 19));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(19)]);
}

#[test]
fn shunned_hosts_have_no_word() {
    let mut plan = fleet(5);
    feed(&mut plan, 1_900, accused(0, 4));
    for by in [2, 3] {
        feed(&mut plan, 2_000, accused(by, 0));
    }
    assert_eq!(plan.status(at(2_000)).quarantined, [host(0)]);
    feed(&mut plan, 2_100, accused(1, 4));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(0)]);
    feed(&mut plan, 2_200, accused(2, 4));
    assert_eq!(plan.status(at(2_200)).quarantined, [host(0), host(4)]);
}

#[test]
fn accusations_grow_old() {
    let mut plan = fleet(5);
    feed(&mut plan, 2_000, accused(0, 4));
    let hour = 3_600_000;
    feed(&mut plan, 2_000 + hour, accused(1, 4));
    assert_eq!(plan.status(at(2_000 + hour)).quarantined, []);
    feed(&mut plan, 1_999 + 2 * hour, accused(2, 4));
    assert_eq!(plan.status(at(1_999 + 2 * hour)).quarantined, [host(4)]);
}

#[test]
fn whose_links_were_false_is_leased_to_last_and_is_not_shunned() {
    let mut plan = fleet(6);
    let first = leased(&mut plan, 2_000, 0);
    let number = (0..6).find(|at| host(*at) == first).unwrap();
    let others: Vec<usize> = (0..6).filter(|at| *at != number).collect();
    // the word of one host does nothing, however often it is said
    for _ in 0..3 {
        feed(&mut plan, 12_000, found_false(others[0], number, 0, false));
        assert!(!is_last(&plan, &first, plan.clock.now()));
    }
    // two of many hosts that can know don't suffice either
    for by in &others {
        feed(&mut plan, 12_000, report(*by, 0, Standing::Present, 8));
    }
    for (count, by) in others.iter().enumerate().take(2) {
        feed(&mut plan, 12_100, found_false(*by, number, 0, false));
        let last = is_last(&plan, &first, plan.clock.now());
        assert_eq!(last, count > 0, "a third of five is two");
    }
    assert_eq!(plan.status(at(12_100)).quarantined, []);
    // for an hour, other hosts come first; where there are none, the host still gets leases
    for content in 1..4 {
        let millis = 20_000 + 20_000 * content as u64;
        assert_ne!(leased(&mut plan, millis, content), first);
    }
    for by in others {
        feed(&mut plan, 110_000, Event::HostDisconnected(host(by)));
    }
    assert_eq!(leased(&mut plan, 120_000, 9), first);
    let later = at(12_100) + plan.config.quarantine;
    assert!(!is_last(&plan, &first, later));
}

#[test]
fn what_a_host_vouched_for_is_its_own_lie() {
    let mut plan = fleet(6);
    want(&mut plan, 1_500, wanted(0, [0], Selection::All));
    feed(&mut plan, 2_000, found_false(0, 4, 0, true));
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    // two more accusers add bytes that didn't fit their link
    feed(&mut plan, 2_000, accused(1, 4));
    feed(&mut plan, 2_100, accused(2, 4));
    assert_eq!(plan.status(at(2_100)).quarantined, [host(4)]);
}

#[test]
fn contradictions_need_no_witness() {
    let mut plan = fleet(20);
    let contradicted = |says| Event::Contradicted {
        maker: host(4),
        says,
    };
    // the registry may have given other bytes the second time
    feed(&mut plan, 2_000, contradicted(Contradiction::False));
    assert_eq!(plan.status(at(2_000)).quarantined, []);
    assert!(is_last(&plan, &host(4), plan.clock.now()));
    let actions = feed(&mut plan, 2_100, contradicted(Contradiction::Lie));
    assert!(actions.contains(&Action::Quarantine(host(4))));
}

#[test]
fn what_a_host_takes_back_is_dropped_everywhere_and_forgives_it_nothing() {
    let mut plan = fleet(6);
    let maker = leased(&mut plan, 2_000, 0);
    let number = (0..6).find(|at| host(*at) == maker).unwrap();
    let retracted = |number: usize| Event::Retracted {
        host: host(number),
        content: digest(0),
        from: 3,
    };
    let taken_back = |actions: &[Action]| {
        let retract = |action: &&Action| matches!(action, Action::Retract { from: 3, .. });
        actions.iter().filter(retract).count()
    };
    assert_eq!(taken_back(&feed(&mut plan, 3_000, retracted(number))), 1);
    let others: Vec<usize> = (0..6).filter(|at| *at != number).collect();
    for by in &others {
        feed(&mut plan, 3_100, found_false(*by, number, 0, true));
    }
    assert_eq!(plan.status(at(3_200)).quarantined, [maker]);
    // a host may take back only so many contents within an hour
    let many = (0..40).map(|_| taken_back(&feed(&mut plan, 4_000, retracted(number))));
    assert_eq!(many.sum::<usize>(), RETRACTIONS_LEFT);
}

/// The retractions that still count: one of sixteen was heard before.
const RETRACTIONS_LEFT: usize = 15;
