//! The gate beside controllers that delete Pods by their own rules: reservations, operators' drains, cordoned Nodes,
//! finalizers that hold Pods, and a cap that a whole fleet shares.

use super::*;

/// The Pod is being deleted. Its virtual machine still runs, and a finalizer holds the Pod.
fn terminating(at: usize) -> Pod {
    Pod {
        deleting: true,
        ..pod(at)
    }
}

fn current(at: usize, phase: Phase) -> Pod {
    Pod {
        image: NEW.into(),
        phase,
        ..pod(at)
    }
}

/// Every host looks at its disk each 10 s, and the gate is woken each second.
fn wait(gate: &mut Gate, from: u64, until: u64) {
    for at in from..=until {
        if at % 10 == 0 {
            seen_by_all(gate, at, 10);
        }
        gate.handle(second(at), Event::Tick);
    }
}

/// Ten Pods of which one may be in flight, and none was admitted. Pod 9 is this.
fn nine_and(last: Pod) -> Gate {
    let mut gate = known(10, prepull(10, 10));
    gate.handle(second(0), Event::Pod(id(9), last));
    gate.handle(second(0), Event::Synced(true));
    gate
}

#[test]
fn a_pod_that_somebody_deletes_takes_a_place_for_as_long_as_its_finalizer_holds_it() {
    let mut gate = nine_and(terminating(9));
    assert_eq!(writes(&mut gate), []);
    let reached = Reason::CapReached {
        in_flight: 1,
        away: 0,
        giving_way: 0,
        cap: 1,
    };
    wait(&mut gate, 1, 400);
    assert_eq!(writes(&mut gate), []);
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(reached));
    assert_eq!(gate.explain(&id(9)), Verdict::Blocked(Reason::NotAlive));
    // it is gone, and a successor may take a minute
    gate.handle(second(400), Event::PodGone(id(9)));
    wait(&mut gate, 401, 459);
    assert_eq!(writes(&mut gate), []);
    wait(&mut gate, 460, 461);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
}

#[test]
fn the_successor_of_a_pod_that_is_terminating_takes_its_place_over() {
    let mut gate = nine_and(terminating(9));
    wait(&mut gate, 1, 90);
    gate.handle(second(90), Event::Pod(id(50), current(50, Phase::Pending)));
    wait(&mut gate, 91, 200);
    assert_eq!(writes(&mut gate), [], "the successor isn't warm");
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.in_flight, status.reserved), (1, 0));
    gate.handle(second(200), Event::Pod(id(50), current(50, Phase::Running)));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    // its predecessor takes nothing when it goes at last
    gate.handle(second(201), Event::PodGone(id(9)));
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.in_flight, status.reserved), (0, 1), "Pod 0's own");
}

#[test]
fn a_pod_that_the_gate_took_is_not_missing_while_its_finalizer_holds_it() {
    let mut gate = fleet(9, 5);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 0, 0);
    let leaving = Pod {
        labelled: true,
        ..terminating(0)
    };
    gate.handle(second(1), Event::Pod(id(0), leaving));
    wait(&mut gate, 2, 200);
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.reserved, status.missing), (1, 0));
    gate.handle(second(200), Event::PodGone(id(0)));
    wait(&mut gate, 201, 262);
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.reserved, status.missing), (1, 1));
    assert_eq!(writes(&mut gate), []);
}

#[test]
fn a_pod_that_ends_by_itself_takes_no_place_though_a_finalizer_holds_it() {
    let ended = Pod {
        phase: Phase::Ended,
        ..terminating(9)
    };
    let mut gate = known(10, prepull(10, 10));
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    gate.handle(second(1), Event::Pod(id(9), ended));
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.in_flight, status.reserved), (0, 1), "Pod 0's own");
}

/// Ten Pods of which one may be in flight. The host of Pod 9 is reserved for another pool.
fn reserved(last: Pod) -> Gate {
    let rule = PrePull {
        reserved: BTreeSet::from([host(9)]),
        ..prepull(10, 10)
    };
    let mut gate = known(10, rule);
    gate.handle(second(0), Event::Pod(id(9), last));
    gate.handle(second(0), Event::Synced(true));
    gate
}

#[test]
fn an_idle_pod_on_a_host_that_is_reserved_for_another_pool_counts_before_and_after_it_is_deleted() {
    let mut gate = reserved(pod(9));
    assert_eq!(writes(&mut gate), []);
    let reached = Reason::CapReached {
        in_flight: 1,
        away: 0,
        giving_way: 1,
        cap: 1,
    };
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(reached));
    assert_eq!(gate.explain(&id(9)), Verdict::Blocked(Reason::NodeReserved));
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.giving_way, status.hosts_usable), (1, 9));
    // the other controller deletes it, and there is never a moment at which nothing counts
    gate.handle(second(1), Event::Pod(id(9), terminating(9)));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(2), Event::PodGone(id(9)));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(3), Event::Pod(id(50), current(50, Phase::Pending)));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(4), Event::Pod(id(50), current(50, Phase::Running)));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
}

#[test]
fn an_idle_pod_on_a_node_that_was_cordoned_a_moment_ago_counts_before_and_after_it_is_deleted() {
    let mut gate = known(10, prepull(10, 10));
    node(&mut gate, 0, 9, true, false);
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), []);
    let reached = Reason::CapReached {
        in_flight: 1,
        away: 0,
        giving_way: 1,
        cap: 1,
    };
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(reached));
    assert_eq!(gate.explain(&id(9)), Verdict::Blocked(Reason::NodeCordoned));
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.giving_way, status.hosts_usable), (1, 9));
    gate.handle(second(1), Event::PodGone(id(9)));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(2), Event::Pod(id(50), current(50, Phase::Pending)));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(3), Event::Pod(id(50), current(50, Phase::Running)));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
}

#[test]
fn pods_that_nobody_deletes_from_a_cordoned_node_take_no_place_for_good() {
    let mut gate = known(10, prepull(10, 10));
    node(&mut gate, 0, 9, true, false);
    gate.handle(second(0), Event::Synced(true));
    // what else is told of the Node doesn't begin the time anew
    wait(&mut gate, 1, 60);
    node(&mut gate, 60, 9, true, false);
    wait(&mut gate, 61, 119);
    assert_eq!(writes(&mut gate), []);
    wait(&mut gate, 120, 120);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    // and it counts all the same once somebody does
    gate.handle(second(121), Event::Pod(id(9), terminating(9)));
    assert_eq!(gate.status(&prepull_id()).unwrap().reserved, 2);
}

#[test]
fn pods_that_nobody_deletes_from_a_reserved_host_take_no_place_for_good() {
    let mut gate = reserved(pod(9));
    // what else is told of the pre-pull doesn't begin the time anew
    wait(&mut gate, 1, 60);
    let rule = PrePull {
        reserved: BTreeSet::from([host(9)]),
        ..prepull(10, 15)
    };
    gate.handle(second(60), Event::PrePull(prepull_id(), rule.clone()));
    wait(&mut gate, 61, 119);
    assert_eq!(writes(&mut gate), []);
    wait(&mut gate, 120, 120);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    assert_eq!(gate.explain(&id(9)), Verdict::Blocked(Reason::NodeReserved));
    // a reservation that comes later counts from then on
    let free = PrePull {
        reserved: BTreeSet::new(),
        ..rule.clone()
    };
    gate.handle(second(121), Event::PrePull(prepull_id(), free));
    gate.handle(second(122), Event::PrePull(prepull_id(), rule));
    assert_eq!(gate.status(&prepull_id()).unwrap().giving_way, 1);
    wait(&mut gate, 123, 242);
    assert_eq!(gate.status(&prepull_id()).unwrap().giving_way, 0);
    // and the Pod counts all the same once somebody deletes it
    let before = gate.status(&prepull_id()).unwrap().reserved;
    gate.handle(second(243), Event::Pod(id(9), terminating(9)));
    let after = gate.status(&prepull_id()).unwrap().reserved;
    assert_eq!(after, before + 1);
}

#[test]
fn a_node_under_pressure_takes_no_pods_and_keeps_those_that_it_has() {
    let mut gate = known(10, prepull(10, 10));
    set_node(&mut gate, 0, 0, true, Takes::NoneUnderPressure);
    gate.handle(second(0), Event::Synced(true));
    // nobody deletes them for it, so they take no place
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(Reason::NodePressure));
    assert_eq!(gate.status(&prepull_id()).unwrap().hosts_usable, 9);
    set_node(&mut gate, 1, 0, true, Takes::Pods);
    assert!(matches!(
        gate.explain(&id(0)),
        Verdict::Blocked(Reason::CapReached { .. })
    ));
}

#[test]
fn a_fleets_cap_counts_pods_that_others_are_about_to_delete() {
    let mut gate = two_pools(Some(1), None);
    node(&mut gate, 0, 3, true, false);
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), []);
    let reached = Reason::FleetCapReached {
        in_flight: 1,
        cap: 1,
    };
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(reached));
}

#[test]
fn a_busy_pod_on_a_reserved_host_stays_and_takes_nothing() {
    let busy = Pod {
        busy: true,
        ..pod(9)
    };
    let mut gate = reserved(busy);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    assert_eq!(gate.status(&prepull_id()).unwrap().giving_way, 0);
}

#[test]
fn a_pod_that_the_gate_took_on_a_host_that_is_reserved_then_counts_once() {
    let mut gate = fleet(10, 20);
    assert_eq!(
        writes(&mut gate),
        [Action::Label(id(0)), Action::Label(id(1))]
    );
    let rule = PrePull {
        reserved: BTreeSet::from([host(0)]),
        ..prepull(10, 20)
    };
    gate.handle(second(1), Event::PrePull(prepull_id(), rule));
    let used = |gate: &Gate| {
        let status = gate.status(&prepull_id()).unwrap();
        status.in_flight + status.reserved + status.giving_way
    };
    assert_eq!(used(&gate), 2);
    label(&mut gate, 2, 0);
    assert_eq!(used(&gate), 2);
}

#[test]
fn a_pod_that_the_gate_took_on_a_node_that_is_not_ready_then_counts_once() {
    let mut gate = known(10, prepull(10, 20));
    for at in 2..10 {
        gate.handle(second(0), Event::Pod(id(at), current(at, Phase::Running)));
    }
    let busy = Pod {
        busy: true,
        ..pod(1)
    };
    gate.handle(second(0), Event::Pod(id(1), busy));
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    node(&mut gate, 1, 0, false, true);
    let used = |gate: &Gate| {
        let status = gate.status(&prepull_id()).unwrap();
        status.in_flight + status.reserved + status.away + status.giving_way
    };
    assert_eq!(used(&gate), 1);
    // its place isn't two, so another Pod may go
    gate.handle(second(2), Event::Pod(id(1), pod(1)));
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
    label(&mut gate, 3, 0);
    assert_eq!(used(&gate), 2);
}

#[test]
fn the_successor_that_an_operator_drains_takes_no_place_until_it_is_let_be_or_leaves() {
    let mut gate = known(10, prepull(10, 10));
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 1, 0);
    gate.handle(second(2), Event::PodGone(id(0)));
    let successor = current(50, Phase::Pending);
    gate.handle(second(3), Event::Pod(id(50), successor.clone()));
    assert_eq!(writes(&mut gate), [], "the successor isn't warm");
    let drained = Pod {
        operator_drain: true,
        ..successor.clone()
    };
    gate.handle(second(4), Event::Pod(id(50), drained.clone()));
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
    let used = |gate: &Gate| {
        let status = gate.status(&prepull_id()).unwrap();
        (status.in_flight, status.reserved, status.awaited)
    };
    assert_eq!(used(&gate), (0, 1, 0), "Pod 1's own");
    // the operator thinks better of it, and better of that
    gate.handle(second(5), Event::Pod(id(50), successor));
    assert_eq!(used(&gate), (1, 1, 0));
    gate.handle(second(6), Event::Pod(id(50), drained));
    gate.handle(second(7), Event::PodGone(id(50)));
    assert_eq!(used(&gate), (0, 2, 1), "a successor is awaited again");
}

#[test]
fn a_pod_that_an_operator_drains_takes_no_place_wherever_it_is() {
    for (ready, schedulable) in [(false, true), (true, false)] {
        let drained = Pod {
            operator_drain: true,
            ..pod(9)
        };
        let mut gate = known(10, prepull(10, 10));
        node(&mut gate, 0, 9, ready, schedulable);
        gate.handle(second(0), Event::Pod(id(9), drained));
        gate.handle(second(0), Event::Synced(true));
        assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    }
}

#[test]
fn a_pod_that_an_operator_drains_gets_no_label_and_takes_no_place_until_it_is_let_be() {
    let drained = Pod {
        operator_drain: true,
        ..pod(0)
    };
    let mut gate = known(10, prepull(10, 10));
    gate.handle(second(0), Event::Pod(id(0), drained));
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
    let blocked = Verdict::Blocked(Reason::OperatorDrain);
    assert_eq!(gate.explain(&id(0)), blocked);
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.warm, status.in_flight, status.reserved), (9, 0, 1));
    // the operator thinks better of it, and Pod 1 has been replaced
    gate.handle(second(1), Event::Pod(id(1), current(1, Phase::Running)));
    gate.handle(second(1), Event::Written(id(1), Outcome::Refused));
    actions(&mut gate);
    gate.handle(second(2), Event::Pod(id(0), pod(0)));
    assert_ne!(gate.explain(&id(0)), blocked);
}

#[test]
fn current_pods_that_an_operator_drains_are_not_there_for_the_cap() {
    let mut gate = known(4, prepull(8, 50));
    for at in 0..8 {
        let drained = Pod {
            operator_drain: at > 3,
            ..current(at, Phase::Running)
        };
        gate.handle(second(0), Event::Pod(id(at), drained));
    }
    gate.handle(second(0), Event::Pod(id(0), pod(0)));
    let status = gate.status(&prepull_id()).unwrap();
    assert_eq!((status.alive, status.warm, status.cap), (8, 4, 2));
    assert_eq!(status.in_flight, 0);
}

fn other() -> PrePullId {
    PrePullId("ns/other".into())
}

/// Two pre-pulls of two Pods each, which may all go, in one fleet, not synced yet. The first pool's cap for the fleet
/// is this, the second's that.
fn two_pools(first: Option<u32>, second_: Option<u32>) -> Gate {
    let rule = |most| PrePull {
        fleet: Some(Fleet {
            name: "m4".into(),
            most,
        }),
        hosts: (0..4).map(host).collect(),
        ..prepull(2, 100)
    };
    let mut gate = known(4, rule(first));
    gate.handle(second(0), Event::PrePull(other(), rule(second_)));
    for at in 2..4 {
        let theirs = Pod {
            prepull: other(),
            ..pod(at)
        };
        gate.handle(second(0), Event::Pod(id(at), theirs));
    }
    gate
}

#[test]
fn a_fleet_starts_no_more_pods_than_its_strictest_pool_says() {
    for (first, second_, many) in [
        (None, None, 4),
        (Some(3), None, 3),
        (Some(3), Some(1), 1),
        (None, Some(0), 1),
    ] {
        let mut gate = two_pools(first, second_);
        gate.handle(second(0), Event::Synced(true));
        assert_eq!(writes(&mut gate).len(), many);
    }
    let mut gate = two_pools(Some(1), None);
    gate.handle(second(0), Event::Synced(true));
    let mut went = writes(&mut gate);
    let Some(Action::Label(first)) = went.pop() else {
        panic!("{went:?}");
    };
    let reached = Reason::FleetCapReached {
        in_flight: 1,
        cap: 1,
    };
    let waiting: Vec<_> = (0..4).map(id).filter(|id| *id != first).collect();
    for waits in &waiting {
        assert_eq!(gate.explain(waits), Verdict::Blocked(reached));
    }
    // the write is refused for good, and a Pod of either pool may go: also one of the other pool
    gate.handle(second(1), Event::PodGone(first.clone()));
    gate.handle(second(1), Event::Written(first, Outcome::Refused));
    assert_eq!(writes(&mut gate), [], "its successor is awaited");
    let came = Pod {
        prepull: if waiting.contains(&id(1)) && waiting.contains(&id(0)) {
            other()
        } else {
            prepull_id()
        },
        ..current(50, Phase::Running)
    };
    gate.handle(second(2), Event::Pod(id(50), came));
    assert_eq!(writes(&mut gate).len(), 1);
}

#[test]
fn pods_that_a_pool_at_rest_starts_count_for_its_fleet() {
    let mut gate = two_pools(Some(1), None);
    for (at, phase) in [(0, Phase::Running), (1, Phase::Pending)] {
        gate.handle(second(0), Event::Pod(id(at), current(at, phase)));
    }
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(1), Event::Pod(id(1), current(1, Phase::Running)));
    assert_eq!(writes(&mut gate).len(), 1);
}

#[test]
fn stale_pods_that_are_still_being_started_count_for_their_fleet() {
    let mut gate = two_pools(Some(2), None);
    for at in 0..2 {
        let starting = Pod {
            phase: Phase::Pending,
            ..pod(at)
        };
        gate.handle(second(0), Event::Pod(id(at), starting));
    }
    gate.handle(second(0), Event::Synced(true));
    // they may be replaced, because their successors take the same places
    let went = [Action::Reap(id(0)), Action::Reap(id(1))];
    assert_eq!(writes(&mut gate), went);
    let reached = Reason::FleetCapReached {
        in_flight: 2,
        cap: 2,
    };
    for waits in [2, 3] {
        assert_eq!(gate.explain(&id(waits)), Verdict::Blocked(reached));
    }
}

#[test]
fn a_fleet_beyond_its_cap_may_replace_the_pods_that_are_being_started() {
    let mut gate = two_pools(Some(1), None);
    for at in 0..4 {
        let prepull = if at < 2 { prepull_id() } else { other() };
        let starting = Pod {
            prepull,
            phase: Phase::Pending,
            ..pod(at)
        };
        gate.handle(second(0), Event::Pod(id(at), starting));
    }
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate).len(), 4);
}

#[test]
fn a_pod_that_is_started_on_a_node_that_was_cordoned_a_moment_ago_counts_once_for_its_fleet() {
    let mut gate = two_pools(Some(2), None);
    for (at, phase) in [(0, Phase::Running), (1, Phase::Pending)] {
        gate.handle(second(0), Event::Pod(id(at), current(at, phase)));
    }
    node(&mut gate, 0, 1, true, false);
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate).len(), 1);
    let reached = Reason::FleetCapReached {
        in_flight: 2,
        cap: 2,
    };
    let waits = [2, 3].map(|at| gate.explain(&id(at)));
    assert!(waits.contains(&Verdict::Blocked(reached)), "{waits:?}");
}
