//! ImagePrePulls that follow a workload's image (`spec.imageFrom`), on a real API server.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::time::Instant;

use coordinator::cluster::crd::ImagePrePullStatus;
use e2e::{
    runners::{self, NAMESPACE},
    world::{Image, Setup, World},
};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

async fn make(world: &World, name: &str, spec: Value) {
    let mut object = json!({
        "metadata": { "name": name },
        "spec": { "nodeSelector": { "matchLabels": { "kubernetes.io/os": "darwin" } } },
    });
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    let prepull = serde_json::from_value(object).unwrap();
    runners::prepulls(&world.client)
        .create(&PostParams::default(), &prepull)
        .await
        .unwrap();
}

/// Waits until the status of an ImagePrePull is like this.
async fn until_status(
    world: &World,
    name: &str,
    what: &str,
    holds: impl Fn(&ImagePrePullStatus) -> bool,
) {
    let prepulls = runners::prepulls(&world.client);
    world
        .until(what, || async {
            let status = prepulls.get_opt(name).await.ok()??.status?;
            holds(&status).then_some(())
        })
        .await
        .unwrap();
}

/// Whether this image is on so many hosts, by the object's own word.
fn is_staged(status: &ImagePrePullStatus, image: &Image, hosts: usize) -> bool {
    status.image.as_ref() == Some(&image.reference)
        && status.digest == Some(image.image.digest.to_string())
        && usize::try_from(status.hosts.staged) == Ok(hosts)
}

fn degraded(status: &ImagePrePullStatus) -> (&str, &str) {
    let mut all = status.conditions.iter();
    let found = all.find(|condition| condition.type_ == "Degraded");
    found.map_or(("", ""), |found| (&found.reason, &found.message))
}

/// A Deployment whose rollout is paused: its controller would make no ReplicaSet, and its template counts all the same.
fn deployment(image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": "macs" },
        "spec": {
            "paused": true,
            "selector": { "matchLabels": { "app": "macs" } },
            "template": {
                "metadata": { "labels": { "app": "macs" } },
                "spec": { "containers": [
                    { "name": "side", "image": "registry.test/side:1" },
                    { "name": "vm", "image": image },
                ] },
            },
        },
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn an_object_follows_the_image_of_a_workload_and_gates_its_pods() {
    const HOSTS: usize = 4;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let (old, new) = (world.image("1", 1).unwrap(), world.image("2", 2).unwrap());
    world.rule("runners", &old, 1);
    world.play();
    runners::add_set(&world.client, "runners", &old.reference, HOSTS)
        .await
        .unwrap();
    make(
        &world,
        "runners",
        json!({
            "imageFrom": { "kind": "ReplicaSet", "name": "runners" },
            "gate": {
                "mode": "Own",
                "podSelector": { "matchLabels": { runners::POOL_LABEL: "runners" } },
                "replicas": HOSTS,
                "maxConcurrentPercent": 25,
            },
        }),
    )
    .await;
    world.until_all_run(&old, HOSTS).await.unwrap();
    until_status(&world, "runners", "the first image is staged", |status| {
        is_staged(status, &old, HOSTS)
    })
    .await;

    // the template changes, and nobody touches the object
    world.rule("runners", &new, 1);
    let begun = Instant::now();
    runners::change_set(&world.client, "runners", &new.reference)
        .await
        .unwrap();
    until_status(&world, "runners", "the new image is wanted", |status| {
        status.image.as_ref() == Some(&new.reference)
    })
    .await;
    println!(
        "template changed -> the object's image: {:?}",
        begun.elapsed()
    );
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
    let found = world.checker.found();
    assert_eq!(found.labelled.len() + found.reaped.len(), HOSTS);
    until_status(
        &world,
        "runners",
        "it is staged and nothing is amiss",
        |status| is_staged(status, &new, HOSTS) && degraded(status).0 == "AsExpected",
    )
    .await;

    // another coordinator goes on with it
    world.cluster.kill_coordinator().unwrap();
    tokio::task::block_in_place(|| world.cluster.start_coordinator()).unwrap();
    world.rule("runners", &old, 1);
    runners::change_set(&world.client, "runners", &old.reference)
        .await
        .unwrap();
    world.until_all_run(&old, HOSTS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_workload_that_is_missing_or_names_no_image_is_named_with_what_to_do() {
    const HOSTS: usize = 2;
    let world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let (old, new) = (world.image("1", 1).unwrap(), world.image("2", 2).unwrap());
    let from = json!({ "kind": "Deployment", "name": "macs", "container": "vm" });
    make(
        &world,
        "macs",
        json!({ "imageFrom": from, "completionPolicy": "Always" }),
    )
    .await;
    let says = |reason: &'static str, text: &'static str| {
        move |status: &ImagePrePullStatus| {
            let (is, message) = degraded(status);
            is == reason && message.contains(text)
        }
    };
    let missing = says("ImageFrom", "there is no Deployment macs");
    until_status(&world, "macs", "the workload is missing", &missing).await;

    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    let post = PostParams::default();
    deployments
        .create(&post, &deployment(&old.reference))
        .await
        .unwrap();
    until_status(&world, "macs", "the image is staged", |status| {
        is_staged(status, &old, HOSTS)
    })
    .await;
    let image = |image: &str| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "vm", "image": image }] } } } });
    let patch = image(&new.reference);
    let params = PatchParams::default();
    deployments
        .patch("macs", &params, &Patch::Strategic(&patch))
        .await
        .unwrap();
    until_status(&world, "macs", "the new image is staged", |status| {
        is_staged(status, &new, HOSTS)
    })
    .await;

    // a container that isn't there, and a Deployment that goes: the image stays
    let patch = json!({ "spec": { "imageFrom": { "container": "other" } } });
    let prepulls = runners::prepulls(&world.client);
    prepulls
        .patch("macs", &params, &Patch::Merge(&patch))
        .await
        .unwrap();
    let without = says("ImageFrom", "has no container other");
    until_status(&world, "macs", "the container is missing", &without).await;
    deployments
        .delete("macs", &DeleteParams::default())
        .await
        .unwrap();
    until_status(&world, "macs", "the workload is missing again", &missing).await;
    until_status(&world, "macs", "the image is still there", |status| {
        is_staged(status, &new, HOSTS)
    })
    .await;
    let patch = json!({ "spec": { "imageFrom": null, "image": old.reference } });
    prepulls
        .patch("macs", &params, &Patch::Merge(&patch))
        .await
        .unwrap();
    until_status(&world, "macs", "the object's own image counts", |status| {
        is_staged(status, &old, HOSTS) && degraded(status).0 == "AsExpected"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn an_object_follows_the_template_of_a_stateful_set() {
    const HOSTS: usize = 2;
    let world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let (old, new) = (world.image("1", 1).unwrap(), world.image("2", 2).unwrap());
    let set: StatefulSet = serde_json::from_value(json!({
        "metadata": { "name": "macs" },
        "spec": {
            "serviceName": "macs",
            "selector": { "matchLabels": { "app": "macs" } },
            "template": {
                "metadata": { "labels": { "app": "macs" } },
                "spec": { "containers": [{ "name": "vm", "image": old.reference }] },
            },
        },
    }))
    .unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(world.client.clone(), NAMESPACE);
    sets.create(&PostParams::default(), &set).await.unwrap();
    let from = json!({ "kind": "StatefulSet", "name": "macs" });
    make(
        &world,
        "macs",
        json!({ "imageFrom": from, "completionPolicy": "Always" }),
    )
    .await;
    until_status(&world, "macs", "the image is staged", |status| {
        is_staged(status, &old, HOSTS)
    })
    .await;

    let containers = json!([{ "name": "vm", "image": new.reference }]);
    let patch = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
    sets.patch("macs", &PatchParams::default(), &Patch::Strategic(&patch))
        .await
        .unwrap();
    until_status(&world, "macs", "the new image is staged", |status| {
        is_staged(status, &new, HOSTS) && degraded(status).0 == "AsExpected"
    })
    .await;
    sets.delete("macs", &DeleteParams::default()).await.unwrap();
    until_status(&world, "macs", "the workload is missing", |status| {
        let (reason, message) = degraded(status);
        reason == "ImageFrom" && message.contains("there is no StatefulSet macs")
    })
    .await;
}
