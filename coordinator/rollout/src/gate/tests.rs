use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::ToString as _,
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment};

use super::*;
use crate::presence::{Held, Holdings};

mod anything;
mod beside;
mod owner;

const OLD: &str = "registry.test/runner:1";
const NEW: &str = "registry.test/runner:2";

fn second(at: u64) -> Moment {
    Moment::START + Duration::from_secs(1_000 + at)
}

fn host(at: usize) -> HostId {
    format!("mini-{at}").parse().unwrap()
}

fn digest(image: &str) -> Digest {
    Digest::of(image.as_bytes())
}

fn prepull_id() -> PrePullId {
    PrePullId("ns/prepull".into())
}

fn id(at: usize) -> PodId {
    PodId(format!("uid-{at}"))
}

fn prepull(replicas: i32, percent: i32) -> PrePull {
    PrePull {
        image: NEW.into(),
        digest: Some(digest(NEW)),
        mode: Mode::Own,
        percent,
        replicas,
        template: Template::Unknown,
        hosts: (0..usize::try_from(replicas).unwrap()).map(host).collect(),
        reserved: BTreeSet::new(),
        fleet: None,
        paused: false,
        deadline: None,
        on_deadline: OnDeadline::Hold,
    }
}

fn pod(at: usize) -> Pod {
    Pod {
        prepull: prepull_id(),
        name: PodName {
            namespace: "ns".into(),
            name: format!("pod-{at}"),
        },
        image: OLD.into(),
        place: Place::On(host(at)),
        phase: Phase::Running,
        deleting: false,
        labelled: false,
        busy: false,
        operator_drain: false,
        heartbeat: Heartbeat::Absent,
        created_unix_s: 100 + i64::try_from(at).unwrap(),
        seen: second(0),
    }
}

fn holds(image: &str) -> Holdings {
    [(digest(image), BTreeSet::from([image.to_string()]))].into()
}

fn actions(gate: &mut Gate) -> Vec<Action> {
    core::iter::from_fn(|| gate.poll()).collect()
}

fn writes(gate: &mut Gate) -> Vec<Action> {
    let mut actions = actions(gate);
    actions.retain(|action| !matches!(action, Action::Blocked(..)));
    actions
}

/// A gate with a pre-pull of `many` hosts. Each host has a stale Pod and holds the new image. Synced at second 0.
fn fleet(many: usize, percent: i32) -> Gate {
    let replicas = i32::try_from(many).unwrap();
    let mut gate = known(many, prepull(replicas, percent));
    gate.handle(second(0), Event::Synced(true));
    gate
}

/// A gate like that of `fleet`, but with this pre-pull, and not synced yet.
fn known(many: usize, prepull: PrePull) -> Gate {
    let mut gate = Gate::new(Config::default());
    gate.handle(second(0), Event::PrePull(prepull_id(), prepull));
    for at in 0..many {
        node(&mut gate, 0, at, true, true);
        gate.handle(
            second(0),
            Event::Holds(host(at), holds(NEW), Duration::ZERO),
        );
        gate.handle(second(0), Event::Pod(id(at), pod(at)));
    }
    gate
}

fn node(gate: &mut Gate, at: u64, which: usize, ready: bool, schedulable: bool) {
    let takes = match schedulable {
        true => Takes::Pods,
        false => Takes::NoneWhileCordoned,
    };
    set_node(gate, at, which, ready, takes);
}

fn set_node(gate: &mut Gate, at: u64, which: usize, ready: bool, takes: Takes) {
    gate.handle(
        second(at),
        Event::Node {
            host: host(which),
            ready,
            takes,
        },
    );
}

fn label(gate: &mut Gate, at: u64, which: usize) {
    let labelled = Pod {
        labelled: true,
        ..pod(which)
    };
    gate.handle(second(at), Event::Pod(id(which), labelled));
    gate.handle(second(at), Event::Written(id(which), Outcome::Done));
}

#[test]
fn the_cap_is_a_share_of_the_replicas_and_at_least_one() {
    for (replicas, percent, expected) in [
        (9, 5, 1),
        (40, 5, 2),
        (100, 5, 5),
        (40, 10, 4),
        (0, 5, 1),
        (-3, 5, 1),
        (40, 0, 1),
        (40, -1, 1),
        (i32::MAX, 100, i32::MAX.unsigned_abs()),
        (i32::MAX, i32::MAX, u32::MAX),
    ] {
        assert_eq!(cap(percent, replicas), expected, "{replicas}@{percent}");
    }
}

#[test]
fn nothing_is_admitted_before_everything_is_known() {
    let mut gate = fleet(3, 100);
    assert_eq!(writes(&mut gate).len(), 3);
    let mut gate = fleet(3, 5);
    actions(&mut gate);
    gate.handle(second(1), Event::Synced(false));
    gate.handle(second(1), Event::PodGone(id(0)));
    assert_eq!(writes(&mut gate), []);
    assert_eq!(gate.explain(&id(1)), Verdict::Blocked(Reason::NotSynced));
}

#[test]
fn pods_drain_oldest_first_and_never_more_than_the_cap() {
    let mut gate = fleet(40, 5);
    assert_eq!(
        writes(&mut gate),
        [Action::Label(id(0)), Action::Label(id(1))]
    );
    let cap_reached = Reason::CapReached {
        in_flight: 2,
        away: 0,
        giving_way: 0,
        cap: 2,
    };
    assert_eq!(gate.explain(&id(2)), Verdict::Blocked(cap_reached));
    label(&mut gate, 1, 0);
    label(&mut gate, 1, 1);
    assert_eq!(writes(&mut gate), []);
    // one Pod drains and leaves; its successor isn't there yet, so the place isn't free
    gate.handle(second(10), Event::PodGone(id(0)));
    assert_eq!(writes(&mut gate), []);
    // the successor starts, and is in flight until it is warm
    let mut successor = Pod {
        image: NEW.into(),
        phase: Phase::Pending,
        ..pod(50)
    };
    gate.handle(second(20), Event::Pod(id(50), successor.clone()));
    assert_eq!(writes(&mut gate), []);
    successor.phase = Phase::Running;
    successor.heartbeat = Heartbeat::Other;
    gate.handle(second(21), Event::Pod(id(50), successor.clone()));
    assert_eq!(writes(&mut gate), []);
    successor.heartbeat = Heartbeat::Polling(second(22));
    gate.handle(second(22), Event::Pod(id(50), successor));
    assert_eq!(writes(&mut gate), [Action::Label(id(2))]);
}

/// The cap is a share of the present Pods. Otherwise, a pre-pull that has 6 of its 40 Pods would lose all of them.
#[test]
fn a_prepull_that_lacks_most_of_its_pods_keeps_its_share_of_those_that_are_there() {
    let mut gate = known(6, prepull(40, 20));
    gate.handle(second(0), Event::Synced(true));
    // after a start, six of the 34 missing Pods may be on their way
    gate.handle(second(61), Event::Tick);
    seen_by_all(&mut gate, 61, 6);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    assert_eq!(gate.status(&prepull_id()).unwrap().cap, 1);
}

#[test]
fn pods_on_nodes_that_are_not_ready_count_as_in_flight() {
    let mut gate = known(10, prepull(10, 20));
    node(&mut gate, 1, 9, false, true);
    node(&mut gate, 1, 8, false, true);
    gate.handle(second(1), Event::Synced(true));
    assert_eq!(writes(&mut gate), [], "two of ten are away already");
    let reached = Reason::CapReached {
        in_flight: 2,
        away: 2,
        giving_way: 0,
        cap: 2,
    };
    assert_eq!(gate.explain(&id(0)), Verdict::Blocked(reached));
    assert_eq!(gate.status(&prepull_id()).unwrap().away, 2);
    // one Node is Ready again
    node(&mut gate, 2, 8, true, true);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
}

/// Every host looked at its disk again, and nothing changed there.
fn seen_by_all(gate: &mut Gate, at: u64, many: usize) {
    for which in 0..many {
        gate.handle(second(at), Event::Seen(host(which), Duration::ZERO));
    }
}

#[test]
fn a_successor_that_came_first_leaves_no_place_taken() {
    let mut gate = fleet(9, 5);
    label(&mut gate, 0, 0);
    actions(&mut gate);
    let warm = Pod {
        image: NEW.into(),
        ..pod(50)
    };
    gate.handle(second(1), Event::Pod(id(50), warm));
    gate.handle(second(2), Event::PodGone(id(0)));
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
}

#[test]
fn pending_pods_are_reaped_first_under_the_same_budget() {
    let mut gate = Gate::new(Config::default());
    gate.handle(second(0), Event::PrePull(prepull_id(), prepull(4, 50)));
    for at in 0..4 {
        let phase = if at > 1 {
            Phase::Pending
        } else {
            Phase::Running
        };
        node(&mut gate, 0, at, true, true);
        gate.handle(
            second(0),
            Event::Holds(host(at), holds(NEW), Duration::ZERO),
        );
        gate.handle(second(0), Event::Pod(id(at), Pod { phase, ..pod(at) }));
    }
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(
        writes(&mut gate),
        [Action::Reap(id(2)), Action::Reap(id(3))]
    );
    for at in 2..4 {
        gate.handle(second(1), Event::PodGone(id(at)));
        gate.handle(second(1), Event::Written(id(at), Outcome::Done));
    }
    assert_eq!(writes(&mut gate), []);
}

#[test]
fn a_pending_pod_without_a_node_waits_for_half_of_the_usable_hosts() {
    let mut gate = Gate::new(Config::default());
    gate.handle(second(0), Event::PrePull(prepull_id(), prepull(5, 100)));
    let waiting = Pod {
        phase: Phase::Pending,
        place: Place::Unscheduled,
        ..pod(0)
    };
    gate.handle(second(0), Event::Pod(id(0), waiting));
    for at in 0..5 {
        node(&mut gate, 0, at, at != 4, true);
    }
    gate.handle(second(0), Event::Synced(true));
    let few = |have| Verdict::Blocked(Reason::TooFewHosts { have, need: 2 });
    assert_eq!(gate.explain(&id(0)), few(0));
    gate.handle(second(0), Event::Holds(host(4), holds(NEW), Duration::ZERO));
    gate.handle(second(0), Event::Holds(host(0), holds(NEW), Duration::ZERO));
    assert_eq!(gate.explain(&id(0)), few(1));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(0), Event::Holds(host(1), holds(NEW), Duration::ZERO));
    assert_eq!(writes(&mut gate), [Action::Reap(id(0))]);
}

#[test]
fn what_keeps_a_pod_is_named() {
    let case = |prepull: PrePull, pod: Pod, ready: bool, schedulable: bool, image: Option<&str>| {
        let mut gate = Gate::new(Config::default());
        gate.handle(second(0), Event::PrePull(prepull_id(), prepull));
        gate.handle(second(0), Event::Pod(id(0), pod));
        node(&mut gate, 0, 0, ready, schedulable);
        if let Some(image) = image {
            gate.handle(
                second(0),
                Event::Holds(host(0), holds(image), Duration::ZERO),
            );
        }
        gate.handle(second(0), Event::Synced(true));
        match gate.status(&prepull_id()).unwrap().pods.first() {
            // the gate admitted the Pod by itself
            Some(status) => match status.verdict {
                Verdict::Blocked(reason) => reason,
                Verdict::Open(_) => unreachable!(),
            },
            None => Reason::NotAlive,
        }
    };
    let (fine, good) = (|| prepull(1, 5), Some(NEW));
    for (ready, schedulable, image, reason) in [
        (true, true, good, Reason::Admitted),
        (false, true, good, Reason::NodeNotReady),
        (true, false, good, Reason::NodeCordoned),
        (true, true, Some(OLD), Reason::ImageMissing),
        (true, true, None, Reason::HostUnheard),
    ] {
        assert_eq!(case(fine(), pod(0), ready, schedulable, image), reason);
    }
    let changed = |change: fn(&mut Pod)| {
        let mut pod = pod(0);
        change(&mut pod);
        pod
    };
    for (pod, reason) in [
        (pod(1), Reason::NodeUnknown),
        (
            changed(|pod| pod.place = Place::Elsewhere),
            Reason::NodeUnknown,
        ),
        (changed(|pod| pod.busy = true), Reason::Busy),
        (changed(|pod| pod.image = NEW.into()), Reason::Current),
        (
            changed(|pod| pod.phase = Phase::Unknown),
            Reason::NotRunning,
        ),
        (changed(|pod| pod.phase = Phase::Ended), Reason::NotAlive),
    ] {
        assert_eq!(case(fine(), pod, true, true, good), reason);
    }
    let changed = |change: fn(&mut PrePull)| {
        let mut prepull = fine();
        change(&mut prepull);
        prepull
    };
    for (prepull, reason) in [
        (changed(|prepull| prepull.paused = true), Reason::Paused),
        (
            changed(|prepull| prepull.digest = None),
            Reason::ImageUnresolved,
        ),
        (
            changed(|prepull| prepull.mode = Mode::Off),
            Reason::NotGated,
        ),
    ] {
        assert_eq!(case(prepull, pod(0), true, true, good), reason);
    }
    let guard = changed(|prepull| prepull.mode = Mode::Guard);
    let pending = Pod {
        phase: Phase::Pending,
        ..pod(0)
    };
    assert_eq!(case(guard, pending, true, true, good), Reason::NotRunning);
}

#[test]
fn presence_counts_for_thirty_seconds_and_lost_presence_takes_the_label_back() {
    let mut gate = fleet(9, 5);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 0, 0);
    gate.handle(second(30), Event::Tick);
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(31), Event::Tick);
    let lost = Withdrawal::PresenceLost;
    assert_eq!(writes(&mut gate), [Action::Unlabel(id(0), lost)]);
    assert_eq!(
        gate.explain(&id(1)),
        Verdict::Blocked(Reason::PresenceOld(Duration::from_secs(31)))
    );
    gate.handle(second(31), Event::Pod(id(0), pod(0)));
    gate.handle(second(31), Event::Written(id(0), Outcome::Done));
    gate.handle(
        second(32),
        Event::Holds(host(3), holds(NEW), Duration::ZERO),
    );
    assert_eq!(writes(&mut gate), [Action::Label(id(3))]);
    label(&mut gate, 33, 3);
    gate.handle(
        second(34),
        Event::Holds(host(3), holds(OLD), Duration::ZERO),
    );
    assert_eq!(writes(&mut gate), [Action::Unlabel(id(3), lost)]);
}

#[test]
fn labels_are_left_alone_until_hosts_had_time_to_speak() {
    let mut gate = Gate::new(Config::default());
    gate.handle(second(0), Event::PrePull(prepull_id(), prepull(9, 5)));
    let labelled = Pod {
        labelled: true,
        ..pod(0)
    };
    gate.handle(second(0), Event::Pod(id(0), labelled));
    gate.handle(second(0), Event::Synced(true));
    gate.handle(second(30), Event::Tick);
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(31), Event::Tick);
    assert_eq!(
        writes(&mut gate),
        [Action::Unlabel(id(0), Withdrawal::PresenceLost)]
    );
}

#[test]
fn a_roll_back_takes_labels_off_current_pods_and_busy_ones_are_left_alone() {
    let mut gate = fleet(9, 40);
    assert_eq!(writes(&mut gate).len(), 3);
    for at in 0..3 {
        label(&mut gate, 0, at);
    }
    let busy = Pod {
        labelled: true,
        busy: true,
        ..pod(1)
    };
    gate.handle(second(1), Event::Pod(id(1), busy));
    let back = PrePull {
        image: OLD.into(),
        digest: Some(digest(OLD)),
        ..prepull(9, 40)
    };
    gate.handle(second(1), Event::PrePull(prepull_id(), back));
    assert_eq!(
        writes(&mut gate),
        [
            Action::Unlabel(id(0), Withdrawal::Current),
            Action::Unlabel(id(2), Withdrawal::Current)
        ]
    );
}

#[test]
fn refused_writes_cost_no_budget_and_unknown_ones_do() {
    let mut gate = fleet(9, 5);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    gate.handle(second(1), Event::Written(id(0), Outcome::Refused));
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
    gate.handle(second(1), Event::Written(id(1), Outcome::Unknown));
    gate.handle(second(20), Event::Tick);
    assert_eq!(writes(&mut gate), []);
    // the oldest Pod's wait is over, so it is admitted again
    for at in 0..9 {
        gate.handle(second(31), Event::Seen(host(at), Duration::ZERO));
    }
    gate.handle(second(32), Event::Tick);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
}

#[test]
fn two_questions_in_one_instant_do_not_pass_a_cap_of_one() {
    let mut gate = Gate::new(Config::default());
    let guard = PrePull {
        mode: Mode::Guard,
        ..prepull(2, 5)
    };
    gate.handle(second(0), Event::PrePull(prepull_id(), guard));
    for at in 0..2 {
        node(&mut gate, 0, at, true, true);
        gate.handle(
            second(0),
            Event::Holds(host(at), holds(NEW), Duration::ZERO),
        );
        gate.handle(second(0), Event::Pod(id(at), pod(at)));
    }
    gate.handle(second(0), Event::Synced(true));
    assert_eq!(writes(&mut gate), []);
    assert_eq!(gate.explain(&id(1)), Verdict::Open(Admission::Label));
    assert_eq!(gate.admit(second(0), &id(0)), Ok(Admission::Label));
    let reached = Reason::CapReached {
        in_flight: 1,
        away: 0,
        giving_way: 0,
        cap: 1,
    };
    assert_eq!(gate.admit(second(0), &id(1)), Err(reached));
    assert_eq!(gate.explain(&id(1)), Verdict::Blocked(reached));
    // a caller that lost the answer may ask again; a label that never came frees the place
    assert_eq!(gate.admit(second(1), &id(0)), Ok(Admission::Label));
    gate.handle(second(20), Event::Seen(host(1), Duration::ZERO));
    assert_eq!(gate.admit(second(30), &id(1)), Err(reached));
    assert_eq!(gate.admit(second(31), &id(1)), Ok(Admission::Label));
    // labels that another controller put are never taken back
    let labelled = Pod {
        labelled: true,
        ..pod(0)
    };
    gate.handle(second(32), Event::Pod(id(0), labelled));
    gate.handle(
        second(33),
        Event::Holds(host(0), holds(OLD), Duration::ZERO),
    );
    gate.handle(second(99), Event::Tick);
    assert_eq!(writes(&mut gate), []);
}

#[test]
fn a_deadline_may_proceed_without_the_image_but_not_without_the_cap() {
    let mut gate = Gate::new(Config::default());
    let late = PrePull {
        deadline: Some(second(10)),
        on_deadline: OnDeadline::Proceed,
        ..prepull(2, 5)
    };
    gate.handle(second(0), Event::PrePull(prepull_id(), late));
    for at in 0..2 {
        node(&mut gate, 0, at, true, true);
        gate.handle(second(0), Event::Pod(id(at), pod(at)));
    }
    gate.handle(second(0), Event::Synced(true));
    gate.handle(second(9), Event::Tick);
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(10), Event::Tick);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 11, 0);
    gate.handle(second(90), Event::Tick);
    assert_eq!(writes(&mut gate), []);
}

#[test]
fn a_reason_is_told_once_until_it_changes() {
    let mut gate = fleet(2, 5);
    let missing = Reason::ImageMissing;
    actions(&mut gate);
    gate.handle(second(1), Event::Holds(host(1), holds(OLD), Duration::ZERO));
    assert_eq!(actions(&mut gate), [Action::Blocked(id(1), missing)]);
    gate.handle(second(2), Event::Tick);
    gate.handle(second(3), Event::Holds(host(1), holds(OLD), Duration::ZERO));
    assert_eq!(actions(&mut gate), []);
}

#[test]
fn a_node_that_comes_back_still_has_its_agents_word() {
    let mut gate = fleet(9, 5);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 0, 0);
    gate.handle(second(1), Event::NodeGone(host(0)));
    gate.handle(second(1), Event::NodeGone(host(1)));
    assert_eq!(gate.explain(&id(1)), Verdict::Blocked(Reason::NodeUnknown));
    // the agent reports only that nothing changed
    gate.handle(second(5), Event::Seen(host(1), Duration::ZERO));
    gate.handle(second(40), Event::Seen(host(0), Duration::ZERO));
    gate.handle(second(40), Event::Seen(host(1), Duration::ZERO));
    node(&mut gate, 40, 1, true, true);
    assert_eq!(gate.presence(&prepull_id(), &host(0)), Some(Held::Fresh));
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(41), Event::PodGone(id(0)));
    gate.handle(
        second(41),
        Event::Pod(
            id(50),
            Pod {
                image: NEW.into(),
                ..pod(50)
            },
        ),
    );
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
}

#[test]
fn a_refused_withdrawal_does_not_free_the_place_of_its_label() {
    let mut gate = fleet(9, 5);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 0, 0);
    let back = PrePull {
        image: OLD.into(),
        digest: Some(digest(OLD)),
        ..prepull(9, 5)
    };
    let fresh = Pod {
        image: NEW.into(),
        ..pod(1)
    };
    gate.handle(second(1), Event::Pod(id(1), fresh));
    gate.handle(second(1), Event::Holds(host(1), holds(OLD), Duration::ZERO));
    gate.handle(second(1), Event::PrePull(prepull_id(), back));
    assert_eq!(
        writes(&mut gate),
        [Action::Unlabel(id(0), Withdrawal::Current)]
    );
    // the Pod has ended, which the watch hasn't shown yet
    gate.handle(second(2), Event::Written(id(0), Outcome::Refused));
    assert_eq!(writes(&mut gate), []);
    assert_eq!(gate.status(&prepull_id()).unwrap().reserved, 1);
}

#[test]
fn a_prepull_that_shrinks_may_have_had_a_successor_made_before() {
    let mut gate = fleet(9, 12);
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 0, 0);
    gate.handle(second(1), Event::PodGone(id(0)));
    let smaller = PrePull {
        replicas: 8,
        ..prepull(9, 12)
    };
    gate.handle(second(2), Event::PrePull(prepull_id(), smaller));
    gate.handle(second(11), Event::Tick);
    assert_eq!(writes(&mut gate), []);
    gate.handle(second(13), Event::Tick);
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
}

#[test]
fn a_gate_that_starts_amid_a_roll_keeps_places_for_successors_on_their_way() {
    let mut gate = Gate::new(Config::default());
    gate.handle(second(0), Event::PrePull(prepull_id(), prepull(8, 25)));
    for at in 0..7 {
        node(&mut gate, 0, at, true, true);
        gate.handle(
            second(0),
            Event::Holds(host(at), holds(NEW), Duration::ZERO),
        );
        let image = if at == 6 { NEW } else { OLD }.into();
        gate.handle(second(0), Event::Pod(id(at), Pod { image, ..pod(at) }));
    }
    gate.handle(second(0), Event::Synced(true));
    // one of eight Pods left before the start, so one of two places is for its successor
    assert_eq!(writes(&mut gate), [Action::Label(id(0))]);
    label(&mut gate, 1, 0);
    successor_comes_and_is_warm(&mut gate);
    assert_eq!(writes(&mut gate), [Action::Label(id(1))]);
}

/// A successor comes in the second second, which lets nobody go, and is warm in the third.
fn successor_comes_and_is_warm(gate: &mut Gate) {
    let cold = Pod {
        image: NEW.into(),
        phase: Phase::Pending,
        seen: second(2),
        ..pod(50)
    };
    gate.handle(second(2), Event::Pod(id(50), cold.clone()));
    assert_eq!(writes(gate), []);
    let warm = Pod {
        phase: Phase::Running,
        ..cold
    };
    gate.handle(second(3), Event::Pod(id(50), warm));
}
