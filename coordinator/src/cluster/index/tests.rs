//! The index without a cluster.

use std::time::{Duration, SystemTime};

use rollout::gate;
use serde_json::{Value, json};

use super::*;
use crate::cluster::{clock::Now, crd::GateMode, prepull_gate::gates};

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn everywhere(kind: Kind) -> Scope {
    Scope {
        kind,
        namespace: None,
    }
}

fn pod(name: &str, uid: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "resourceVersion": version,
            "labels": { "tuist.dev/runner-pool": "pool" },
        },
        "spec": { "nodeName": "mac-0", "containers": [{ "name": "runner", "image": "r/i:1" }] },
        "status": { "phase": "Running" },
    })
}

fn prepull(name: &str, created: &str, gate: Value) -> Value {
    let more = json!({ "metadata": { "creationTimestamp": created }, "spec": { "gate": gate } });
    made_up::prepull(name, "r/i:2", &more)
}

fn pool(spec: Value, gate: &str) -> Value {
    json!({
        "apiVersion": "tuist.dev/v1alpha1",
        "kind": "RunnerPool",
        "metadata": {
            "name": "pool",
            "namespace": "ns",
            "uid": "u",
            "annotations": { "parbake.dev/gate": gate },
        },
        "spec": spec,
    })
}

fn shown(index: &mut Index, kind: Kind, value: Value) -> Result<Option<Change>, Unreadable> {
    index.apply(&everywhere(kind), object(value), Instant::now())
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

#[test]
fn what_a_list_does_not_show_is_gone_and_nothing_else() {
    let mut index = Index::default();
    let scope = everywhere(Kind::Pods);
    for name in ["a", "b"] {
        shown(&mut index, Kind::Pods, pod(name, name, "1")).unwrap();
    }
    index.begin(scope.clone());
    shown(&mut index, Kind::Pods, pod("b", "b", "1")).unwrap();
    // until the list is whole, nothing counts as gone
    assert_eq!(index.pods.len(), 2);
    assert_eq!(index.finish(&scope), [Change::Pod(key("a"))]);
    assert!(index.pods.contains_key(&key("b")));
    // a list that never began removes nothing
    assert_eq!(index.finish(&scope), []);
}

#[test]
fn a_list_of_one_namespace_says_nothing_of_others() {
    let mut index = Index::default();
    let scope = Scope {
        kind: Kind::Pods,
        namespace: Some("other".into()),
    };
    shown(&mut index, Kind::Pods, pod("a", "a", "1")).unwrap();
    index.begin(scope.clone());
    assert_eq!(index.finish(&scope), []);
    assert_eq!(index.pods.len(), 1);
}

#[test]
fn a_watch_that_is_behind_changes_nothing_but_another_object_of_the_name_does() {
    let mut index = Index::default();
    shown(&mut index, Kind::Pods, pod("a", "one", "10")).unwrap();
    assert_eq!(
        shown(&mut index, Kind::Pods, pod("a", "one", "9")).unwrap(),
        None
    );
    assert_eq!(index.pods[&key("a")].resource_version, "10");
    assert!(
        shown(&mut index, Kind::Pods, pod("a", "one", "10"))
            .unwrap()
            .is_some()
    );
    // a Pod that was created anew counts, whatever its version
    assert!(
        shown(&mut index, Kind::Pods, pod("a", "two", "9"))
            .unwrap()
            .is_some()
    );
    assert_eq!(index.pods[&key("a")].uid, "two");
    // the deletion of the first Pod doesn't remove the second
    assert_eq!(index.remove(Kind::Pods, &key("a"), Some("one")), None);
    assert!(index.remove(Kind::Pods, &key("a"), Some("two")).is_some());
    // versions that aren't numbers don't compare
    shown(&mut index, Kind::Pods, pod("a", "one", "x9")).unwrap();
    assert!(
        shown(&mut index, Kind::Pods, pod("a", "one", "x8"))
            .unwrap()
            .is_some()
    );
}

#[test]
fn the_older_of_two_gates_has_the_say_and_names_break_ties() {
    let mut index = Index::default();
    let gate = || {
        json!({
            "mode": "Own",
            "podSelector": { "matchLabels": { "tuist.dev/runner-pool": "pool" } },
            "replicas": 4,
        })
    };
    for (name, created) in [
        ("b", "2026-01-02T00:00:00Z"),
        ("c", "2026-01-01T00:00:00Z"),
        ("a", "2026-01-02T00:00:00Z"),
    ] {
        shown(&mut index, Kind::PrePulls, prepull(name, created, gate())).unwrap();
    }
    let all = gates(&index);
    let order: Vec<&str> = all.iter().map(|gate| gate.key.name.as_str()).collect();
    assert_eq!(order, ["c", "a", "b"]);
    shown(&mut index, Kind::Pods, pod("p", "p", "1")).unwrap();
    let pod = &index.pods[&key("p")];
    let first = all.iter().find(|gate| gate.selects(&key("p"), pod));
    let (_, told) = first.unwrap().pod(&key("p"), pod, Now::start());
    assert_eq!(told.prepull, key("c").prepull_id());
    // an ImagePrePull that is being deleted, or gates nothing, has no gate
    let mut deleting = prepull("c", "2026-01-01T00:00:00Z", gate());
    deleting["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z".into();
    shown(&mut index, Kind::PrePulls, deleting).unwrap();
    let mut off = gate();
    off["mode"] = "None".into();
    shown(
        &mut index,
        Kind::PrePulls,
        prepull("a", "2026-01-02T00:00:00Z", off),
    )
    .unwrap();
    assert_eq!(gates(&index).len(), 1);
    assert_eq!(gates(&index)[0].key, key("b"));
}

#[test]
fn a_gate_that_would_select_everything_or_whose_pool_is_absent_gates_nothing() {
    let mut index = Index::default();
    for gate in [
        json!({ "mode": "Own", "podSelector": {}, "replicas": 4 }),
        json!({ "mode": "Own", "replicas": 4 }),
        json!({ "mode": "Own", "poolRef": { "name": "pool" } }),
    ] {
        shown(
            &mut index,
            Kind::PrePulls,
            prepull("a", "2026-01-01T00:00:00Z", gate),
        )
        .unwrap();
        assert!(gates(&index).is_empty());
    }
}

#[test]
fn a_pool_that_cannot_be_read_any_more_holds_its_pods() {
    let mut index = Index::default();
    let gate = json!({ "mode": "Guard", "poolRef": { "name": "pool" } });
    shown(
        &mut index,
        Kind::PrePulls,
        prepull("pool", "2026-01-01T00:00:00Z", gate),
    )
    .unwrap();
    shown(&mut index, Kind::Pods, pod("p", "p", "1")).unwrap();
    let good = json!({ "image": "r/i:3", "replicas": 100 });
    let paused = |index: &Index| {
        let all = gates(index);
        let facts = &index.prepulls[&key("pool")];
        assert!(all[0].selects(&key("p"), &index.pods[&key("p")]));
        all[0].for_gate(index, facts, BTreeSet::new()).paused
    };
    shown(&mut index, Kind::RunnerPools, pool(good.clone(), "guard")).unwrap();
    assert!(!paused(&index));
    assert_eq!(gates(&index)[0].image, "r/i:3");
    // a spec that can't be parsed and an annotation without a meaning count alike
    let bad = json!({ "image": "r/i:3", "replicas": "many" });
    for (spec, mode) in [(bad, "guard"), (good.clone(), "always")] {
        assert!(shown(&mut index, Kind::RunnerPools, pool(spec, mode)).is_err());
        assert!(paused(&index));
        shown(&mut index, Kind::RunnerPools, pool(good.clone(), "guard")).unwrap();
        assert!(!paused(&index));
    }
    // a pool goes while it can't be read: by its deletion, or by a list that doesn't show it
    for by_list in [false, true] {
        let bad = pool(json!({ "replicas": [] }), "guard");
        assert!(shown(&mut index, Kind::RunnerPools, bad).is_err());
        let scope = everywhere(Kind::RunnerPools);
        let changes = if by_list {
            index.begin(scope.clone());
            index.finish(&scope)
        } else {
            Vec::from_iter(index.remove(Kind::RunnerPools, &key("pool"), None))
        };
        assert_eq!(changes, [Change::RunnerPool(key("pool"))]);
        assert!(gates(&index).is_empty());
    }
}

#[test]
fn a_prepull_that_cannot_be_read_any_more_stands_still() {
    let mut index = Index::default();
    let gate = json!({ "mode": "None" });
    shown(
        &mut index,
        Kind::PrePulls,
        prepull("a", "2026-01-01T00:00:00Z", gate),
    )
    .unwrap();
    let mut bad = prepull("a", "2026-01-01T00:00:00Z", json!({}));
    bad["spec"]["image"] = 7.into();
    let unreadable = shown(&mut index, Kind::PrePulls, bad).unwrap_err();
    assert_eq!(unreadable.key, key("a"));
    let facts = &index.prepulls[&key("a")];
    assert!(facts.spec.paused && facts.spec.image != "7");
}

#[test]
fn the_pods_of_a_prepull_that_was_never_read_are_held_as_far_as_its_gate_can_be_told() {
    let selector = json!({ "matchLabels": { "tuist.dev/runner-pool": "pool" } });
    for (gate, expected) in [
        // the object is of a later version
        (
            json!({ "mode": "Own", "podSelector": selector, "replicas": 1, "drainLabel": "x" }),
            Some((GateMode::Own, "x")),
        ),
        (
            json!({ "mode": "Later", "podSelector": selector }),
            Some((GateMode::Guard, "tuist.dev/drain-eligible")),
        ),
        (
            json!({ "podSelector": selector, "replicas": "many" }),
            Some((GateMode::Guard, "tuist.dev/drain-eligible")),
        ),
        (json!({ "mode": "None", "podSelector": selector }), None),
        (Value::Null, None),
        // nothing says which Pods the gate selects
        (json!({ "mode": "Guard", "podSelector": 7 }), None),
    ] {
        let mut index = Index::default();
        let mut bad = prepull("a", "2026-01-01T00:00:00Z", gate.clone());
        bad["spec"]["completionPolicy"] = "Later".into();
        let unreadable = shown(&mut index, Kind::PrePulls, bad).unwrap_err();
        assert_eq!(unreadable.key, key("a"));
        let all = gates(&index);
        let found = all
            .first()
            .map(|gate| (gate.mode, gate.drain_label.as_str()));
        assert_eq!(found, expected, "{gate}");
        let Some(gate) = all.first() else { continue };
        shown(&mut index, Kind::Pods, pod("p", "p", "1")).unwrap();
        let facts = &index.prepulls[&key("a")];
        assert!(facts.unread && gate.for_gate(&index, facts, BTreeSet::new()).paused);
        assert!(gate.selects(&key("p"), &index.pods[&key("p")]));
        // an unread ImagePrePull stages nothing
        assert!(index.selected(&facts.spec).is_empty());
        // once the object can be read, its own spec counts
        let good = prepull("a", "2026-01-01T00:00:00Z", json!({ "mode": "None" }));
        shown(&mut index, Kind::PrePulls, good).unwrap();
        assert!(!index.prepulls[&key("a")].unread && gates(&index).is_empty());
    }
}

#[test]
fn the_pods_of_an_owned_prepull_that_was_never_read_are_held_by_its_pool() {
    let mut index = Index::default();
    let spec = json!({ "image": "r/i:2", "replicas": 1, "fleetSelector": "f", "os": "darwin" });
    shown(&mut index, Kind::RunnerPools, pool(spec, "guard")).unwrap();
    let mut bad = prepull("pool", "2026-01-01T00:00:00Z", json!(7));
    bad["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "tuist.dev/v1alpha1", "kind": "RunnerPool", "name": "pool", "uid": "u",
    }]);
    shown(&mut index, Kind::PrePulls, bad).unwrap_err();
    shown(&mut index, Kind::Pods, pod("p", "p", "1")).unwrap();
    let all = gates(&index);
    assert_eq!(all[0].mode, GateMode::Guard);
    assert!(all[0].selects(&key("p"), &index.pods[&key("p")]));
}

#[test]
fn a_pull_secret_is_one_of_the_objects_own_namespace() {
    let mut index = Index::default();
    let mut named = prepull("a", "2026-01-01T00:00:00Z", Value::Null);
    named["spec"]["pullSecretRef"] = json!({ "name": "ghcr", "namespace": "other" });
    shown(&mut index, Kind::PrePulls, named).unwrap();
    let facts = &index.prepulls[&key("a")];
    assert_eq!(facts.secret(&key("a")), Some(key("ghcr")));
}

#[test]
fn a_heartbeat_is_read_as_its_writers_mean_it() {
    let hour = Duration::from_hours(1);
    let now = Now {
        time: SystemTime::UNIX_EPOCH + hour,
        ..Now::start()
    };
    let beat = |annotations: Value| {
        let mut value = pod("p", "p", "1");
        value["metadata"]["annotations"] = annotations;
        let mut index = Index::default();
        shown(&mut index, Kind::Pods, value).unwrap();
        let gate = json!({
            "mode": "Own",
            "podSelector": { "matchLabels": { "tuist.dev/runner-pool": "pool" } },
            "replicas": 1,
        });
        shown(
            &mut index,
            Kind::PrePulls,
            prepull("a", "2026-01-01T00:00:00Z", gate),
        )
        .unwrap();
        let gate = &gates(&index)[0];
        let (_, told) = gate.pod(&key("p"), &index.pods[&key("p")], now);
        told.heartbeat
    };
    let state = "tuist.dev/runner-heartbeat-state";
    let at = "tuist.dev/runner-heartbeat-at";
    let second = |seconds| now.moment() - (hour - Duration::from_secs(seconds));
    for (annotations, expected) in [
        (json!({}), gate::Heartbeat::Absent),
        // a time without a state is no heartbeat
        (
            json!({ at: "1970-01-01T00:01:00Z" }),
            gate::Heartbeat::Absent,
        ),
        (
            json!({ state: "polling", at: "1970-01-01T00:01:00Z" }),
            gate::Heartbeat::Polling(second(60)),
        ),
        (
            json!({ state: "polling", at: "1970-01-01T01:01:00.5+01:00" }),
            gate::Heartbeat::Polling(second(60) + Duration::from_millis(500)),
        ),
        // nor is one that can't be aged
        (json!({ state: "polling" }), gate::Heartbeat::Absent),
        (
            json!({ state: "polling", at: "yesterday" }),
            gate::Heartbeat::Absent,
        ),
        (
            json!({ state: "claimed", at: "1970-01-01T00:01:00Z" }),
            gate::Heartbeat::Other,
        ),
        (json!({ state: "claimed" }), gate::Heartbeat::Other),
        (json!({ state: "" }), gate::Heartbeat::Absent),
    ] {
        assert_eq!(beat(annotations.clone()), expected, "{annotations}");
    }
}

#[test]
fn a_node_that_is_being_deleted_counts_as_cordoned() {
    let read = |deleted: Option<&str>, unschedulable: bool| {
        let node = json!({
            "metadata": { "name": "n", "uid": "n", "deletionTimestamp": deleted },
            "spec": { "unschedulable": unschedulable },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        let mut index = Index::default();
        assert!(index.apply_node(&serde_json::from_value(node).unwrap()));
        let facts = index.nodes.values().next().unwrap();
        (facts.ready, facts.schedulable)
    };
    assert_eq!(read(None, false), (true, true));
    assert_eq!(read(None, true), (true, false));
    assert_eq!(read(Some("2026-01-03T00:00:00Z"), false), (true, false));
}

#[test]
fn a_node_that_lacks_something_takes_no_pods_and_is_ready_all_the_same() {
    let mut index = Index::default();
    let mut shown = |conditions: &[(&str, &str)]| {
        let conditions = conditions.iter();
        let conditions: Vec<Value> = conditions
            .map(|(kind, status)| json!({ "type": kind, "status": status }))
            .collect();
        let node = json!({ "metadata": { "name": "n", "uid": "n" }, "status": { "conditions": conditions } });
        let changed = index.apply_node(&serde_json::from_value(node).unwrap());
        let facts = index.nodes.values().next().unwrap();
        (changed, facts.ready, facts.takes())
    };
    let ready = ("Ready", "True");
    assert_eq!(
        shown(&[ready, ("DiskPressure", "False")]),
        (true, true, gate::Takes::Pods)
    );
    for pressure in ["DiskPressure", "MemoryPressure", "PIDPressure"] {
        let under = gate::Takes::NoneUnderPressure;
        assert_eq!(shown(&[ready, (pressure, "True")]), (true, true, under));
        assert_eq!(shown(&[ready, (pressure, "True")]), (false, true, under));
        // unknown isn't true
        let unknown = shown(&[ready, (pressure, "Unknown")]);
        assert_eq!(unknown, (true, true, gate::Takes::Pods));
    }
}
