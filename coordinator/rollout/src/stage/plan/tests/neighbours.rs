//! Tests of which hosts are told which neighbours, and when.

use super::*;

#[test]
fn neighbours_are_mutual_bounded_and_stable() {
    let mut plan = Plan::new(Config::default(), 3);
    for number in 0..300 {
        feed(
            &mut plan,
            0,
            Event::HostKnown {
                host: host(number),
                zone: format!("zone-{}", number % 3),
            },
        );
    }
    let graph = |plan: &Plan| -> BTreeMap<HostId, BTreeSet<HostId>> {
        plan.hosts
            .ids()
            .map(|id| (id.clone(), plan.neighbours.of(id).into_iter().collect()))
            .collect()
    };
    let before = graph(&plan);
    let mut all_far = 0;
    for (id, neighbours) in &before {
        assert!(
            (20..=24).contains(&neighbours.len()),
            "{id}: {}",
            neighbours.len()
        );
        assert!(!neighbours.contains(id));
        assert!(neighbours.iter().all(|other| before[other].contains(id)));
        let zone = |id: &HostId| String::from(plan.hosts.get(id).unwrap().zone());
        let far = neighbours
            .iter()
            .filter(|other| zone(other) != zone(id))
            .count();
        assert!(far >= 1, "{id} has far neighbours");
        all_far += far;
        // hosts that joined first, when there were few near hosts, keep some more far neighbours
        assert!(far <= 16, "{id}: {far}");
    }
    assert!(all_far <= 5 * 300, "most have near neighbours: {all_far}");
    feed(
        &mut plan,
        10,
        Event::HostKnown {
            host: host(300),
            zone: "zone-0".into(),
        },
    );
    let after = graph(&plan);
    let moved: usize = before
        .iter()
        .map(|(id, neighbours)| after[id].symmetric_difference(neighbours).count())
        .sum();
    assert!(moved <= 3 * 24, "one join moves few edges: {moved}");
    feed(&mut plan, 20, Event::HostForgotten(host(17)));
    for (id, neighbours) in graph(&plan) {
        assert!(
            (19..=24).contains(&neighbours.len()),
            "{id}: {}",
            neighbours.len()
        );
    }
}

fn told(actions: &[Action]) -> Vec<HostId> {
    let hosts = actions.iter().filter_map(|action| match action {
        Action::Neighbours { host, .. } => Some(host.clone()),
        _ => None,
    });
    hosts.collect()
}

#[test]
fn whose_session_comes_and_goes_is_told_whom_it_follows_and_nobody_else_is() {
    let mut plan = fleet(100);
    for round in 0..5 {
        let now = 2_000 + round * 1_000;
        assert_eq!(
            told(&feed(&mut plan, now, Event::HostDisconnected(host(7)))),
            []
        );
        let back = feed(&mut plan, now + 100, Event::HostConnected(host(7)));
        assert_eq!(told(&back), [host(7)]);
        assert_eq!(told(&feed(&mut plan, now + 900, Event::Tick)), []);
    }
    assert_eq!(plan.next_timeout(), None, "nothing is left to be told");
    // a host that joins changes the neighbours of some hosts, which are told
    let known = Event::HostKnown {
        host: host(100),
        zone: "zone-0".into(),
    };
    assert_eq!(told(&feed(&mut plan, 9_000, known)), []);
    let some = told(&feed(&mut plan, 9_200, Event::Tick)).len();
    assert!((10..=60).contains(&some), "{some}");
    // a host that the fleet shuns no longer has neighbours
    for by in 0..40 {
        feed(&mut plan, 10_000, accused(by, 50));
    }
    assert_eq!(plan.status(at(10_000)).quarantined, [host(50)]);
    assert_eq!(plan.neighbours.of(&host(50)), []);
}
