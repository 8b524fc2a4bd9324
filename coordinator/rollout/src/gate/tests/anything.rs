//! Properties of the gate that hold for any events in any order.

use alloc::vec;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Pod(usize, u8, bool, bool, u8),
    Gone(usize),
    Hold(usize, bool),
    Seen(usize),
    Node(usize, bool, u8),
    NodeGone(usize),
    PrePull(i32, i32, bool, bool, u8),
    Leaves(usize, bool, bool),
    Written(usize, u8),
    Synced(bool),
}

const PODS: usize = 6;
const HOSTS: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..40).prop_map(Step::Wait),
        (0..PODS, 0u8..8, any::<bool>(), any::<bool>(), 0u8..4)
            .prop_map(|(a, b, c, d, e)| Step::Pod(a, b, c, d, e)),
        (0..PODS).prop_map(Step::Gone),
        (0..HOSTS, any::<bool>()).prop_map(|(a, b)| Step::Hold(a, b)),
        (0..HOSTS).prop_map(Step::Seen),
        (0..HOSTS, any::<bool>(), 0u8..4).prop_map(|(a, b, c)| Step::Node(a, b, c)),
        (0..HOSTS).prop_map(Step::NodeGone),
        (0i32..80, 0i32..120, any::<bool>(), any::<bool>(), 0u8..8)
            .prop_map(|(a, b, c, d, e)| Step::PrePull(a, b, c, d, e)),
        (0..PODS, any::<bool>(), any::<bool>()).prop_map(|(a, b, c)| Step::Leaves(a, b, c)),
        (0..PODS, 0u8..3).prop_map(|(a, b)| Step::Written(a, b)),
        any::<bool>().prop_map(Step::Synced),
    ]
}

fn event(step: &Step, now: Moment) -> Event {
    match *step {
        Step::Wait(_) => Event::Tick,
        Step::Pod(at, state, labelled, busy, place) => Event::Pod(
            id(at),
            Pod {
                image: if state & 1 == 0 { OLD } else { NEW }.into(),
                phase: [Phase::Running, Phase::Running, Phase::Pending, Phase::Ended]
                    [usize::from(state >> 1)],
                labelled,
                busy,
                place: match place {
                    0 => Place::Unscheduled,
                    1 => Place::Elsewhere,
                    _ => Place::On(host(at % HOSTS)),
                },
                heartbeat: if place == 3 {
                    Heartbeat::Polling(now)
                } else {
                    Heartbeat::Absent
                },
                ..pod(at)
            },
        ),
        Step::Gone(at) => Event::PodGone(id(at)),
        Step::Hold(at, new) => {
            Event::Holds(host(at), holds(if new { NEW } else { OLD }), Duration::ZERO)
        }
        Step::Seen(at) => Event::Seen(host(at), Duration::ZERO),
        Step::Node(at, ready, takes) => Event::Node {
            host: host(at),
            ready,
            takes: match takes {
                0 | 1 => Takes::Pods,
                2 => Takes::NoneWhileCordoned,
                _ => Takes::NoneUnderPressure,
            },
        },
        Step::NodeGone(at) => Event::NodeGone(host(at)),
        Step::Leaves(at, deleting, operator_drain) => Event::Pod(
            id(at),
            Pod {
                place: Place::On(host(at % HOSTS)),
                deleting,
                operator_drain,
                ..pod(at)
            },
        ),
        Step::PrePull(replicas, percent, new, own, around) => {
            let image = if new { NEW } else { OLD };
            Event::PrePull(
                prepull_id(),
                PrePull {
                    image: image.into(),
                    digest: Some(digest(image)),
                    mode: if own { Mode::Own } else { Mode::Guard },
                    hosts: (0..HOSTS).map(host).collect(),
                    // one host may be reserved for another pool, and the fleet may have a cap
                    reserved: (around & 1 == 1).then(|| host(0)).into_iter().collect(),
                    fleet: (around & 2 == 2).then(|| Fleet {
                        name: "fleet".into(),
                        most: (around & 4 == 4).then_some(1),
                    }),
                    ..prepull(replicas, percent)
                },
            )
        }
        Step::Written(at, outcome) => Event::Written(
            id(at),
            [Outcome::Done, Outcome::Refused, Outcome::Unknown][usize::from(outcome)],
        ),
        Step::Synced(synced) => Event::Synced(synced),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_admissions_keep_the_rules(steps in prop::collection::vec(step(), 1..80)) {
        let mut gate = Gate::new(Config::default());
        let mut now = second(0);
        // the facts that were told, kept apart from the gate's own state
        let mut pods: BTreeMap<PodId, Pod> = BTreeMap::new();
        let mut held: BTreeMap<HostId, (Moment, Holdings)> = BTreeMap::new();
        let mut nodes: BTreeMap<HostId, bool> = BTreeMap::new();
        let mut cordoned: BTreeMap<HostId, Moment> = BTreeMap::new();
        let mut reserved: BTreeMap<HostId, Moment> = BTreeMap::new();
        let mut rule: Option<PrePull> = None;
        let mut synced = false;
        for step in &steps {
            if let Step::Wait(seconds) = step {
                now += Duration::from_secs(*seconds);
            }
            let event = event(step, now);
            match &event {
                Event::Pod(id, pod) => { pods.insert(id.clone(), pod.clone()); }
                Event::PodGone(id) => { pods.remove(id); }
                Event::Holds(host, holdings, _) => { held.insert(host.clone(), (now, holdings.clone())); }
                Event::Seen(host, _) => if let Some(word) = held.get_mut(host) { word.0 = now; },
                Event::Node { host, ready, takes } => {
                    nodes.insert(host.clone(), *ready && *takes == Takes::Pods);
                    match takes {
                        Takes::NoneWhileCordoned => { cordoned.entry(host.clone()).or_insert(now); }
                        _ => { cordoned.remove(host); }
                    }
                }
                // the agent's word outlives the Node, for as long as any word counts
                Event::NodeGone(host) => { nodes.remove(host); cordoned.remove(host); }
                Event::PrePull(_, prepull) => {
                    reserved.retain(|host, _| prepull.reserved.contains(host));
                    for host in &prepull.reserved {
                        reserved.entry(host.clone()).or_insert(now);
                    }
                    rule = Some(prepull.clone());
                }
                Event::Synced(is) => synced = *is,
                _ => {}
            }
            gate.handle(now, event);
            let (mut admitted, mut takes) = (false, false);
            for action in actions(&mut gate) {
                prop_assert!(synced);
                let rule = rule.as_ref().unwrap();
                let fresh = |pod: &Pod| match &pod.place {
                    Place::On(host) => held.get(host).is_some_and(|(at, holdings)| {
                        now.since(*at) <= Duration::from_secs(30)
                            && holdings.get(&digest(&rule.image)).is_some_and(|names| names.contains(&rule.image))
                    }),
                    _ => false,
                };
                match action {
                    Action::Label(id) => {
                        admitted = true;
                        let pod = &pods[&id];
                        prop_assert_eq!(rule.mode, Mode::Own);
                        prop_assert!(pod.is_alive() && !pod.busy && !pod.labelled && pod.image != rule.image);
                        prop_assert_eq!(pod.phase, Phase::Running);
                        prop_assert!(fresh(pod));
                        takes |= pod.is_warm(now, Duration::from_mins(5));
                        let Place::On(host) = &pod.place else { unreachable!() };
                        prop_assert_eq!(nodes.get(host), Some(&true));
                        prop_assert!(!pod.operator_drain && !rule.reserved.contains(host));
                    }
                    Action::Reap(id) => {
                        admitted = true;
                        let pod = &pods[&id];
                        prop_assert_eq!(rule.mode, Mode::Own);
                        prop_assert!(pod.is_alive() && !pod.busy && pod.image != rule.image);
                        prop_assert_eq!(pod.phase, Phase::Pending);
                    }
                    Action::Unlabel(id, why) => {
                        let pod = &pods[&id];
                        prop_assert_eq!(rule.mode, Mode::Own);
                        prop_assert!(pod.labelled && !pod.busy && pod.is_alive());
                        prop_assert_eq!(why == Withdrawal::Current, pod.image == rule.image);
                        prop_assert!(why == Withdrawal::Current || !fresh(pod));
                    }
                    Action::Blocked(id, _) => prop_assert!(pods.contains_key(&id)),
                }
            }
            if let Some(status) = gate.status(&prepull_id()) {
                // each Pod that others are about to delete counts, for one reason or another
                let used = status.in_flight + status.reserved + status.giving_way;
                let leaving = pods.values().filter(|pod| {
                    let is_new = |since: &Moment| now.since(*since) < Duration::from_mins(2);
                    let is_emptied = |host| reserved.get(host).is_some_and(is_new)
                        || cordoned.get(host).is_some_and(is_new);
                    let idle = !pod.busy && !pod.operator_drain;
                    pod.is_alive() && idle && matches!(&pod.place, Place::On(host) if is_emptied(host))
                });
                prop_assert!((used + status.away) as usize >= leaving.count());
                if admitted {
                    prop_assert!(used <= status.cap);
                    let fleet = rule.as_ref().and_then(|rule| rule.fleet.as_ref()?.most);
                    // who wasn't warm counted for the fleet before
                    prop_assert!(!takes || fleet.is_none_or(|most| used <= most));
                }
                // the count by the rule of the runners' own controller, computed in another way
                let rule = rule.as_ref().unwrap();
                let alive: Vec<&Pod> = pods.values().filter(|pod| pod.is_alive()).collect();
                let stale = alive.iter().filter(|pod| pod.image != rule.image).count();
                let labelled = alive.iter().filter(|pod| pod.image != rule.image && pod.labelled).count();
                let cold = alive.iter().filter(|pod| {
                    let warm = pod.phase == Phase::Running && match pod.heartbeat {
                        Heartbeat::Polling(at) => now.since(at) < Duration::from_secs(300),
                        _ => true,
                    };
                    let idle = !pod.busy && !pod.operator_drain;
                    pod.image == rule.image && idle && !warm
                }).count();
                let letter = labelled + if stale > 0 { cold } else { 0 };
                prop_assert_eq!(status.in_flight as usize, letter);
                prop_assert_eq!(status.stale as usize, stale);
                // progress: a Pod that waits has a reason, and no Pod waits that could go
                for pod in &status.pods {
                    if rule.mode == Mode::Own {
                        prop_assert!(!matches!(pod.verdict, Verdict::Open(_)));
                    }
                }
            }
            for at in 0..PODS {
                let explained = gate.explain(&id(at));
                let admitted = gate.clone().admit(now, &id(at));
                prop_assert_eq!(explained, admitted.map_or_else(Verdict::Blocked, Verdict::Open));
            }
        }
    }
}
