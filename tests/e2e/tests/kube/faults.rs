//! Rolls on a real API server while something breaks: coordinators are killed, the API server goes away, watches
//! expire, objects can't be read, others write to the same Pods.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::time::{Duration, Instant};

use e2e::{
    runners::{self, NAMESPACE},
    world::{FLEET, PATIENCE, Setup, World, pool_spec},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn labels(world: &World) -> usize {
    world.checker.found().labelled.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_roll_survives_its_coordinator_and_its_api_server() {
    const HOSTS: usize = 8;
    let setup = Setup::new(DEMO, HOSTS);
    let mut world = World::start(setup).await.unwrap();
    world.begin("own", 25, 2).await.unwrap();
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 2).await.unwrap();

    // the one coordinator is killed with labels out, and comes back
    world
        .until_found("it rolls", |found| !found.labelled.is_empty())
        .await
        .unwrap();
    world.cluster.kill_coordinator().unwrap();
    let (killed, before) = (Instant::now(), labels(&world));
    world.cluster.start_coordinator().unwrap();
    world
        .until_found("it rolls again", |found| found.labelled.len() > before)
        .await
        .unwrap();
    println!(
        "lease of 3 s, one coordinator killed and started: -> next label {:?}",
        killed.elapsed()
    );
    world.check().unwrap();

    // the API server goes away for longer than the lease: the coordinator ends, and is started again as a kubelet would
    world.api.stop_server().unwrap();
    world
        .until_said("it stops", |line| {
            line["message"] == "this coordinator stops; it is to be started again"
        })
        .await
        .unwrap();
    world.api.start_server().await.unwrap();
    let back = Instant::now();
    world.cluster.kill_coordinator().unwrap();
    world.cluster.start_coordinator().unwrap();
    world.until_all_run(&new, HOSTS).await.unwrap();
    println!("API server back -> rolled {:?}", back.elapsed());
    world.check().unwrap();
    let found = world.checker.found();
    // each label was within the cap; a successor that was on its way when a coordinator started may come on top
    assert!(found.most_in_flight <= 3, "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn the_other_coordinator_finishes_the_roll_of_a_killed_leader() {
    const HOSTS: usize = 8;
    let setup = Setup::new(DEMO, HOSTS);
    let mut world = World::start(setup).await.unwrap();
    world.begin("own", 25, 2).await.unwrap();
    let other = world.replica("two").unwrap();
    world
        .until("the other waits for the lease", || async {
            other.said("cluster found").then_some(())
        })
        .await
        .unwrap();
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 2).await.unwrap();
    world
        .until_found("it rolls", |found| found.labelled.len() >= 2)
        .await
        .unwrap();
    world.cluster.kill_coordinator().unwrap();
    let (killed, before) = (Instant::now(), labels(&world));
    let known = world.until("the other knows the cluster", || async {
        other.said("the cluster is known").then_some(())
    });
    known.await.unwrap();
    let known = killed.elapsed();
    world
        .until_found("the other labels", |found| found.labelled.len() > before)
        .await
        .unwrap();
    println!(
        "lease of 3 s, leader killed: -> cluster known {known:?}, -> first write {:?}",
        killed.elapsed()
    );
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
    let found = world.checker.found();
    // each label was within the cap; a successor that was on its way when a coordinator started may come on top
    assert!(found.most_in_flight <= 3, "{found:?}");
    world.until_staged("xcode", &new, HOSTS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn what_cannot_be_read_is_passed_over_and_other_writers_do_not_stop_a_roll() {
    const HOSTS: usize = 4;
    let mut setup = Setup::new(DEMO, HOSTS);
    // longer than the API server is away below
    setup.lease = Duration::from_secs(60);
    let mut world = World::start(setup).await.unwrap();
    let old = world.begin("own", 50, 2).await.unwrap();

    // pools and ImagePrePulls that don't parse: their schemas are the clusters', which may be newer or looser than ours
    let odd = |gate: &str, spec: Value| {
        let annotations = json!({ "parbake.dev/gate": gate });
        json!({
            "apiVersion": "tuist.dev/v1alpha1",
            "kind": "RunnerPool",
            "metadata": { "name": "odd", "annotations": annotations },
            "spec": spec,
        })
    };
    let mut pool = pool_spec(&old.reference, 1, 50);
    pool["replicas"] = "many".into();
    let pools = runners::pools(&world.client);
    make(&pools, odd("own", pool)).await;
    let said = |kind: &'static str| {
        move |line: &Value| {
            line["message"] == "object can't be read; it is passed over until it changes"
                && line["object"]
                    .as_str()
                    .is_some_and(|text| text.starts_with(kind))
        }
    };
    world
        .until_said("the pool is named", said("runnerpools tuist-runners/odd"))
        .await
        .unwrap();
    loosen(&world).await;
    let prepulls = runners::any_prepulls(&world.client, NAMESPACE);
    let prepull = json!({
        "apiVersion": "parbake.dev/v1alpha1",
        "kind": "ImagePrePull",
        "metadata": { "name": "odd" },
        "spec": { "image": 7, "nodeSelector": { "matchLabels": { "tuist.dev/fleet": FLEET } } },
    });
    world
        .until("the looser definition is served", || async {
            let object = serde_json::from_value(prepull.clone()).unwrap();
            prepulls.create(&PostParams::default(), &object).await.ok()
        })
        .await
        .unwrap();
    world
        .until_said("it is named", said("imageprepulls tuist-runners/odd"))
        .await
        .unwrap();
    // an annotation that means nothing is as bad as a spec that doesn't parse
    let patch = json!({
        "metadata": { "annotations": { "parbake.dev/gate": "always" } },
        "spec": { "replicas": 0 },
    });
    patched(&pools, "odd", &patch).await;
    world
        .until_said("the annotation is named", |line| {
            line["object"]
                .as_str()
                .is_some_and(|text| text.contains("always"))
        })
        .await
        .unwrap();

    // somebody writes to every Pod all the time: each decision is overtaken before it is written
    let mut others = JoinSet::new();
    let client = world.client.clone();
    others.spawn(async move { scribble(client).await });
    let new = world.image("2", 2).unwrap();
    let mut overtaken = 0;
    // a write is quick: now and then a whole roll gets through between the others'
    for image in [&new, &old].into_iter().cycle().take(12) {
        let begun = Instant::now();
        world.roll(image, 2).await.unwrap();
        world.until_all_run(image, HOSTS).await.unwrap();
        let took = begun.elapsed();
        assert!(took < PATIENCE / 2, "{took:?}");
        let is_overtaken = |line: &&Value| {
            let error = line["error"].as_str();
            error.is_some_and(|text| text.contains("has been modified"))
        };
        let log = world.cluster.coordinator_log();
        overtaken = log.iter().filter(is_overtaken).count();
        println!(
            "{HOSTS} Pods rolled in {took:?} while others wrote to them; {overtaken} writes were given up"
        );
        if overtaken > 0 {
            break;
        }
    }
    assert!(
        overtaken > 0,
        "no decision was overtaken, so nothing was proved"
    );
    others.shutdown().await;
    world.check().unwrap();

    // Pods are deleted under the write: a deletion for each label, as soon as it is seen
    let third = world.image("3", 3).unwrap();
    let before = labels(&world);
    world.roll(&third, 2).await.unwrap();
    world
        .until_found("it rolls", |found| found.labelled.len() > before)
        .await
        .unwrap();
    snatch(world.client.clone()).await;
    world.until_all_run(&third, HOSTS).await.unwrap();
    world.check().unwrap();

    // the API server starts again: it remembers no events, and watches from before are too old for it
    let back = world.image("1", 1).unwrap();
    let before = labels(&world);
    world.roll(&back, 2).await.unwrap();
    world
        .until_found("it rolls", |found| found.labelled.len() > before)
        .await
        .unwrap();
    world.api.stop_server().unwrap();
    world.api.start_server().await.unwrap();
    world.until_all_run(&back, HOSTS).await.unwrap();
    world.check().unwrap();
    let blind: Vec<String> = world
        .cluster
        .coordinator_log()
        .iter()
        .filter(|line| line["message"] == "watch sees nothing; it is tried again")
        .map(|line| format!("{}: {}", line["kind"], line["error"]))
        .collect();
    println!("{blind:#?}");
    for kind in ["pods", "nodes", "imageprepulls", "runnerpools"] {
        let told = blind.iter().any(|line| line.contains(kind));
        assert!(told, "the watch of {kind} wasn't blind: {blind:#?}");
    }

    // each was named once, whatever else was watched
    let log = world.cluster.coordinator_log();
    for kind in [
        "runnerpools tuist-runners/odd",
        "imageprepulls tuist-runners/odd",
    ] {
        let objects: Vec<&str> = log
            .iter()
            .filter(|line| said(kind)(line))
            .filter_map(|line| line["object"].as_str())
            .collect();
        let mut once = objects.clone();
        once.dedup();
        assert_eq!(objects, once);
        println!("{objects:#?}");
    }
    // and is followed as soon as it can be read
    patched(&pools, "odd", &json!({ "metadata": { "annotations": { "parbake.dev/gate": "own" } }, "spec": { "replicas": 0 } })).await;
    prepulls
        .delete("odd", &DeleteParams::default())
        .await
        .unwrap();
    world
        .until("the pool has its ImagePrePull", || async {
            let found = runners::prepulls(&world.client)
                .get_opt("odd")
                .await
                .ok()??;
            (found.spec.image == old.reference).then_some(())
        })
        .await
        .unwrap();
}

async fn make(api: &Api<DynamicObject>, object: Value) {
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

async fn patched(api: &Api<DynamicObject>, name: &str, patch: &Value) {
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
}

/// A definition that lets everything through, as one that is edited by hand may.
async fn loosen(world: &World) {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> =
        Api::all_with(world.client.clone(), &ApiResource::from_gvk(&kind));
    let patch = json!([{
        "op": "replace",
        "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    }]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).unwrap());
    definitions
        .patch("imageprepulls.parbake.dev", &PatchParams::default(), &patch)
        .await
        .unwrap();
}

/// Writes to every Pod every 20 ms.
async fn scribble(client: Client) {
    let pods = runners::pods(&client);
    let mut every = tokio::time::interval(Duration::from_millis(20));
    for count in 0_u64.. {
        every.tick().await;
        let Ok(all) = pods.list(&Default::default()).await else {
            continue;
        };
        for pod in all.items {
            let name = pod.metadata.name.unwrap_or_default();
            let patch =
                json!({ "metadata": { "annotations": { "test/count": count.to_string() } } });
            _ = pods
                .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                .await;
        }
    }
}

/// Deletes every other Pod, twice, one right after the other: some of them while a write on them is under way.
async fn snatch(client: Client) {
    let pods: Api<Pod> = runners::pods(&client);
    let now = DeleteParams::default().grace_period(0);
    for _ in 0..2 {
        let all = pods.list(&Default::default()).await.unwrap();
        for pod in all.items.iter().step_by(2) {
            let name = pod.metadata.name.clone().unwrap_or_default();
            // some have gone by themselves
            _ = pods.delete(&name, &now).await;
        }
    }
}
