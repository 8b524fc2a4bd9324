//! Owners of gated Pods: which image they report, and which of them block a roll.

use super::*;

const SET: &str = "/apis/apps/v1/namespaces/ns/replicasets/set";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/ns/deployments/all";

/// An object of this kind whose template has this image.
fn templated(kind: &str, name: &str, image: &str, owner: Option<(&str, &str)>) -> Value {
    let owners = owner.map(|(kind, name)| {
        json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true }])
    });
    json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": { "name": name, "namespace": "ns", "uid": name, "ownerReferences": owners },
        "spec": {
            "selector": {},
            "template": { "spec": { "containers": [{ "name": "runner", "image": image }] } },
        },
    })
}

fn pod_of(kind: &str, api_version: &str) -> Value {
    let mut pod = the_pod("Running");
    pod["metadata"]["ownerReferences"] = json!([
        { "apiVersion": "v1", "kind": "ConfigMap", "name": "else", "uid": "else" },
        { "apiVersion": api_version, "kind": kind, "name": "set", "uid": "set", "controller": true },
    ]);
    pod
}

/// A keeper whose Pod belongs to a ReplicaSet. The host holds the image, and the image is resolved.
async fn stand_of(pod: &Value, objects: &[(&str, Result<Value, u16>)]) -> Stand {
    let mut stand = Stand::new("Pending", &[Answer::Status(429)]);
    stand.settle().await;
    stand.shared.lock().unwrap().pod = Some(pod.clone());
    say(&stand, objects);
    stand.enrol();
    stand.edit(&json!({}), 1);
    stand.keeper.jobs.detach();
    stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(pod))));
    stand.keeper.images.resolve_all(digest());
    stand.keeper.gates_due = true;
    stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(pod))));
    stand
}

fn say(stand: &Stand, objects: &[(&str, Result<Value, u16>)]) {
    let mut fake = stand.shared.lock().unwrap();
    for (path, object) in objects {
        fake.objects.insert((*path).to_owned(), object.clone());
    }
}

fn reason(stand: &Stand) -> String {
    let view = stand.pod();
    view.reason.to_string()
}

/// Makes all owners due to be read again.
async fn later(stand: &mut Stand) {
    stand.keeper.owners.read_at_once(Instant::now());
    stand.hold();
    stand.tick(Duration::from_secs(5)).await;
    stand.hold();
    stand.tick(Duration::ZERO).await;
}

#[tokio::test]
async fn nothing_goes_while_a_template_has_another_image_and_all_of_it_is_named() {
    let old = templated("ReplicaSet", "set", "r.test/i:1", None);
    let new = templated("ReplicaSet", "set", "r.test/i:2", None);
    let mut stand = stand_of(&pod_of("ReplicaSet", "apps/v1"), &[(SET, Ok(old))]).await;
    // the owner isn't read yet
    stand.hold();
    assert_eq!(reason(&stand), "owner_unread");
    later(&mut stand).await;
    assert_eq!(reason(&stand), "owner_lags");
    // the lag isn't a trouble at once, because a template that is patched together with the object is none
    assert_eq!(stand.condition("Degraded").0, "False");
    later(&mut stand).await;
    assert_eq!(stand.writes().len(), 1);
    let (status, why, text) = stand.condition("Degraded");
    assert_eq!((status.as_str(), why.as_str()), ("True", "OwnerLags"));
    let view = stand.pod();
    for text in [text, view.message] {
        for part in [
            "ns/p",
            "ReplicaSet set",
            "r.test/i:1",
            "r.test/i:2",
            "by itself",
        ] {
            assert!(text.contains(part), "{part} isn't in: {text}");
        }
    }
    assert_eq!(stand.condition("Rolling").1, "OwnerLags");
    for _ in 0..20 {
        later(&mut stand).await;
    }
    assert_eq!(stand.writes().len(), 1);
    // owner and pool agree, so the roll goes on by itself
    say(&stand, &[(SET, Ok(new))]);
    later(&mut stand).await;
    assert!(stand.is_labelled());
    assert_eq!(stand.condition("Degraded").0, "False");
    // one Event said that the Pod was blocked
    let held: Vec<_> = stand
        .events()
        .into_iter()
        .filter(|(reason, _)| reason == "GateHeld")
        .collect();
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(held[0].1.contains("r.test/i:2"), "{held:?}");
}

#[tokio::test]
async fn a_tag_in_the_template_and_the_digest_in_the_object_are_two_images_and_that_is_said() {
    let tag = templated("ReplicaSet", "set", "r.test/i:2", None);
    let mut stand = stand_of(&pod_of("ReplicaSet", "apps/v1"), &[(SET, Ok(tag))]).await;
    let spelled = format!("r.test/i@{}", digest());
    stand.edit(&json!({ "image": spelled }), 2);
    stand.keeper.jobs.detach();
    later(&mut stand).await;
    later(&mut stand).await;
    let (_, why, text) = stand.condition("Degraded");
    assert_eq!(why, "OwnerLags");
    assert!(
        text.contains("spelled in two ways") && text.contains(&spelled),
        "{text}"
    );
    assert_eq!(stand.writes().len(), 1);
}

#[tokio::test]
async fn a_deployments_template_counts_for_its_replica_sets() {
    let set = templated(
        "ReplicaSet",
        "set",
        "r.test/i:1",
        Some(("Deployment", "all")),
    );
    let all = templated("Deployment", "all", "r.test/i:2", None);
    let objects = [(SET, Ok(set)), (DEPLOYMENT, Ok(all))];
    let mut stand = stand_of(&pod_of("ReplicaSet", "apps/v1"), &objects).await;
    later(&mut stand).await;
    assert!(stand.is_labelled());
}

#[tokio::test]
async fn an_owner_that_may_not_be_read_or_replaces_nothing_holds_nothing() {
    for (kind, api_version, answer) in [
        ("ReplicaSet", "apps/v1", Some(Err(403))),
        ("ReplicaSet", "apps/v1", None),
        ("Job", "batch/v1", None),
        ("ReplicaSet", "extensions.example.com/v1", None),
    ] {
        let objects: Vec<_> = answer.map(|answer| (SET, answer)).into_iter().collect();
        let mut stand = stand_of(&pod_of(kind, api_version), &objects).await;
        later(&mut stand).await;
        assert!(stand.is_labelled(), "{kind} {api_version}");
    }
    // another object of the owner's name isn't the owner
    let mut other = templated("ReplicaSet", "set", "r.test/i:9", None);
    other["metadata"]["uid"] = "another".into();
    let mut stand = stand_of(&pod_of("ReplicaSet", "apps/v1"), &[(SET, Ok(other))]).await;
    later(&mut stand).await;
    assert!(stand.is_labelled());
}

#[tokio::test]
async fn an_owner_that_cannot_be_asked_for_now_is_waited_for_and_then_counts_as_unknown() {
    let mut stand = stand_of(&pod_of("ReplicaSet", "apps/v1"), &[(SET, Err(503))]).await;
    for _ in 0..3 {
        stand.keeper.owners.read_at_once(Instant::now());
        stand.hold();
        stand.tick(Duration::from_secs(5)).await;
        assert_eq!(reason(&stand), "owner_unread");
    }
    later(&mut stand).await;
    assert!(stand.is_labelled());
}

#[tokio::test]
async fn a_runner_pool_whose_controller_has_not_heard_of_the_image_is_waited_for() {
    let mut stand = Stand::new("Pending", &[Answer::Status(429)]);
    stand.settle().await;
    let pool = |observed: Value| {
        let value = json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": "set", "namespace": "ns", "uid": "set" },
            "spec": { "image": "r.test/i:2", "replicas": 1, "fleetSelector": "f" },
            "status": { "observedImage": observed },
        });
        Seen::Applied(Box::new(dynamic(&value)))
    };
    let pod = pod_of("RunnerPool", "tuist.dev/v1alpha1");
    stand.see(Kind::RunnerPools, pool("r.test/i:1".into()));
    // the pool has made the Pod anew
    stand.see(Kind::Pods, Seen::Gone(Box::new(dynamic(&pod))));
    stand.see(Kind::Pods, Seen::Applied(Box::new(dynamic(&pod))));
    assert_eq!(reason(&stand), "owner_lags");
    for observed in [json!("r.test/i:2"), Value::Null, json!("")] {
        stand.see(Kind::RunnerPools, pool("r.test/i:1".into()));
        stand.see(Kind::RunnerPools, pool(observed));
        assert_ne!(reason(&stand), "owner_lags");
    }
}

#[tokio::test]
async fn a_coordinator_that_takes_over_knows_from_the_status_who_lagged_and_who_is_awaited() {
    let mut stand = stand_of(&pod_of("Job", "batch/v1"), &[]).await;
    stand.hold();
    stand.tick(Duration::from_secs(2)).await;
    stand.watch();
    stand.settle().await;
    assert!(stand.is_labelled(), "{}", reason(&stand));
    stand.watch();
    // the Pod drains, and nobody makes a successor
    stand.see(
        Kind::Pods,
        Seen::Gone(Box::new(dynamic(&the_pod("Running")))),
    );
    let key = ObjectKey::new("ns", "pool");
    let memory = stand.status().gate.unwrap();
    assert_eq!((memory.awaited, memory.owner_lags), (1, false));
    // a minute later the missing successor is a trouble
    stand.keeper.clock.skip(Duration::from_secs(60));
    stand.keeper.apply(Input::Tick);
    let (status, why, text) = stand.condition("Degraded");
    assert_eq!(
        (status.as_str(), why.as_str()),
        ("True", "NoSuccessor"),
        "{text}"
    );
    // the next coordinator is told of the missing successor
    let mut next = Stand::new("Pending", &[Answer::Status(429)]);
    next.settle().await;
    let mut prepull = the_prepull();
    prepull["spec"]["gate"]["replicas"] = 2.into();
    prepull["status"] = json!({ "gate": { "awaited": 1, "ownerLags": true } });
    next.keeper.gating = Gating::default();
    next.keeper.watches.forget_sync();
    next.see(
        Kind::Pods,
        Seen::Applied(Box::new(dynamic(&the_pod("Running")))),
    );
    next.see(Kind::PrePulls, Seen::Applied(Box::new(dynamic(&prepull))));
    let status = next.keeper.gating.status(&key).unwrap();
    assert!(status.lag.is_some());
    assert_eq!(status.awaited, 1);
}
