//! The gate beside the runners' own controllers, on a real API server: what they write on Nodes, Pods and pools, and
//! what they delete outside of the cap. Two pools on one host, and releases that only rename an image.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use e2e::{
    image::ImageSpec,
    registry::{Fault, Misbehaviour, Target},
    runners::{self, NAMESPACE},
    tart_script,
    world::{Image, Setup, World, pool_spec},
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

fn node(pod: &Pod) -> String {
    runners::node(pod).unwrap().to_owned()
}

/// Why a Pod is held, as `parbake why` asks.
async fn reason_of(world: &World, pod: &str) -> String {
    let path = format!("/v1/pods/{NAMESPACE}/{pod}");
    let token = world.token().unwrap();
    let (_, body) = world.ask(&path, Some(&token)).await.unwrap();
    let view: Value = serde_json::from_str(&body).unwrap_or_default();
    view["reason"].as_str().unwrap_or_default().to_owned()
}

async fn until_reason(world: &World, pod: &str, reason: &str) {
    world
        .until(&format!("{pod} says {reason}"), || async {
            (reason_of(world, pod).await == reason).then_some(())
        })
        .await
        .unwrap();
}

async fn patch_pod(world: &World, pod: &str, patch: Value) {
    runners::pods(&world.client)
        .patch(pod, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

/// Reserves a Node for a pool, or for none.
async fn reserve(world: &World, node: &str, pool: Option<&str>) {
    let nodes: Api<Node> = Api::all(world.client.clone());
    let taints: Vec<Value> = pool
        .iter()
        .map(|pool| json!({ "key": "tuist.dev/reserved-for", "value": pool, "effect": "NoSchedule" }))
        .collect();
    let patch = json!({ "spec": { "taints": taints } });
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

/// Waits until a pool's object says that this many hosts hold the image under this very name.
async fn until_named(world: &World, pool: &str, image: &Image, hosts: usize) {
    let prepulls = runners::prepulls(&world.client);
    world
        .until("it is everywhere by this name", || async {
            let found = prepulls.get_opt(pool).await.ok()??;
            let of_it = found.spec.image == image.reference;
            let status = found.status.filter(|status| {
                of_it && status.observed_generation == found.metadata.generation
            })?;
            (usize::try_from(status.hosts.staged) == Ok(hosts)).then_some(())
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn what_other_controllers_delete_reserve_and_drain_counts_and_gets_no_label() {
    const HOSTS: usize = 6;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    world.begin("own", 17, 1).await.unwrap();
    world.set(|manners| &manners.dispatches, false);
    let pods = world.pods().await;
    let (reserved, drained, plain) = (&pods[0], &pods[1], &pods[2]);

    // a Node is reserved for another pool before the roll: the Pod there will be deleted, and fills the cap of one
    reserve(&world, &node(reserved), Some("another")).await;
    let drain = |value: Option<&str>| json!({ "metadata": { "labels": { "tuist.dev/runner-operator-drain": value } } });
    patch_pod(&world, &name(drained), drain(Some("true"))).await;
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 1).await.unwrap();
    until_named(&world, "xcode", &new, HOSTS).await;
    until_reason(&world, &name(plain), "cap_reached").await;
    until_reason(&world, &name(reserved), "node_reserved").await;
    until_reason(&world, &name(drained), "operator_drain").await;
    assert!(world.checker.found().labelled.is_empty());

    // the other controller deletes it; a finalizer holds it, and its successor doesn't start
    world.set(|manners| &manners.boots, false);
    let held = json!({ "metadata": { "finalizers": ["tuist.dev/vm"] } });
    patch_pod(&world, &name(reserved), held).await;
    runners::pods(&world.client)
        .delete(&name(reserved), &DeleteParams::default())
        .await
        .unwrap();
    world
        .until_pods("it has a successor", |pods| {
            pods.iter().any(|pod| new.is_of(pod))
        })
        .await
        .unwrap();
    reserve(&world, &node(reserved), None).await;
    until_reason(&world, &name(plain), "cap_reached").await;
    assert_eq!(reason_of(&world, &name(reserved)).await, "not_alive");
    assert!(world.checker.found().labelled.is_empty());

    // the successor is warm, and the one that is terminating counts no more
    world.set(|manners| &manners.boots, true);
    world
        .until_found("one is labelled", |found| found.labelled.len() == 1)
        .await
        .unwrap();
    let terminating = runners::pods(&world.client)
        .get(&name(reserved))
        .await
        .unwrap();
    assert!(terminating.metadata.deletion_timestamp.is_some());
    let released = json!({ "metadata": { "finalizers": null } });
    patch_pod(&world, &name(reserved), released).await;

    // all roll but the one that an operator drains, until the operator thinks better of it
    world.set(|manners| &manners.dispatches, true);
    world
        .until_pods("the others run it", |pods| {
            pods.len() == HOSTS && pods.iter().filter(|pod| new.runs(pod)).count() == HOSTS - 1
        })
        .await
        .unwrap();
    assert_eq!(reason_of(&world, &name(drained)).await, "operator_drain");
    patch_pod(&world, &name(drained), drain(None)).await;
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();

    // the pool is deleted, and its own controller's finalizer holds it: gating stops at once
    let pools = runners::pools(&world.client);
    let held = json!({ "metadata": { "finalizers": ["tuist.dev/runner-pool-drain"] } });
    let params = PatchParams::default();
    pools
        .patch("xcode", &params, &Patch::Merge(&held))
        .await
        .unwrap();
    pools
        .delete("xcode", &DeleteParams::default())
        .await
        .unwrap();
    world
        .until("its ImagePrePull is gone", || async {
            let found = runners::prepulls(&world.client)
                .get_opt("xcode")
                .await
                .ok()?;
            found.is_none().then_some(())
        })
        .await
        .unwrap();
    assert!(pools.get_opt("xcode").await.unwrap().is_some());
    until_reason(&world, &name(&world.pods().await[0]), "not_gated").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn two_pools_share_hosts_and_their_fleets_cap_and_each_image_has_its_label() {
    const HOSTS: usize = 3;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let old = world.begin("own", 100, 3).await.unwrap();
    // a second guest on each host, of another pool; the pools say different caps for their fleet
    world.rule("second", &old, 3);
    let with = |mut spec: Value, most: usize| {
        spec["provisioning"] = json!({ "maxConcurrentPerFleetSelector": most, "odd": [null] });
        spec
    };
    let spec = with(pool_spec(&old.reference, HOSTS, 100), 1);
    runners::add_pool(&world.client, "second", "own", spec)
        .await
        .unwrap();
    let provisioning = json!({ "provisioning": { "maxConcurrentPerFleetSelector": 5 } });
    runners::change_pool(&world.client, "xcode", provisioning)
        .await
        .unwrap();
    world.until_all_run(&old, 2 * HOSTS).await.unwrap();
    world.until_staged("second", &old, HOSTS).await.unwrap();

    // both roll, each to an image of its own: one Pod of the whole fleet goes
    world.set(|manners| &manners.dispatches, false);
    let (first, second) = (world.image("2", 2).unwrap(), world.image("3", 3).unwrap());
    world.roll(&first, 3).await.unwrap();
    world.rule("second", &second, 3);
    let image = json!({ "image": second.reference });
    runners::change_pool(&world.client, "second", image)
        .await
        .unwrap();
    until_named(&world, "xcode", &first, HOSTS).await;
    until_named(&world, "second", &second, HOSTS).await;
    world
        .until("all others wait for the fleet", || async {
            let mut waiting = 0;
            for pod in world.pods().await {
                waiting += usize::from(reason_of(&world, &name(&pod)).await == "fleet_cap_reached");
            }
            (waiting == 2 * HOSTS - 1).then_some(())
        })
        .await
        .unwrap();
    assert_eq!(world.checker.found().labelled.len(), 1);
    world.set(|manners| &manners.dispatches, true);
    world
        .until_pods("both have rolled", |pods| {
            let run = |image: &Image| pods.iter().filter(|pod| image.runs(pod)).count();
            run(&first) == HOSTS && run(&second) == HOSTS
        })
        .await
        .unwrap();
    world.check().unwrap();

    // each Node says of each image that it holds it
    let nodes: Api<Node> = Api::all(world.client.clone());
    for image in [&first, &second] {
        let hex = image.image.digest.hex().to_string();
        let label = format!("parbake.dev/image-{}=ready", &hex[..12]);
        let params = ListParams::default().labels(&label);
        world
            .until("every Node says so", || async {
                let listed = nodes.list(&params).await.ok()?;
                (listed.items.len() == HOSTS).then_some(())
            })
            .await
            .unwrap();
    }
}

/// The Pods of a pool.
async fn pods_of(world: &World, pool: &str) -> Vec<Pod> {
    let mut pods = world.pods().await;
    pods.retain(|pod| {
        let labels = pod.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("tuist.dev/runner-pool"))
            .is_some_and(|of| of == pool)
    });
    pods
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn each_guest_of_a_node_waits_for_the_image_of_its_own_pool_alone() {
    const HOSTS: usize = 2;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let old = world.begin("own", 100, HOSTS).await.unwrap();
    world.rule("second", &old, HOSTS);
    let spec = pool_spec(&old.reference, HOSTS, 100);
    runners::add_pool(&world.client, "second", "own", spec)
        .await
        .unwrap();
    world.until_all_run(&old, 2 * HOSTS).await.unwrap();
    world.until_staged("second", &old, HOSTS).await.unwrap();
    let (first, second) = (world.image("2", 2).unwrap(), world.image("3", 3).unwrap());
    world.roll(&first, HOSTS).await.unwrap();
    world
        .until_pods("the first pool has rolled", |pods| {
            pods.iter().filter(|pod| first.runs(pod)).count() == HOSTS
        })
        .await
        .unwrap();

    // the other pool's image can't come: the image that is present on the same Nodes opens nothing for its Pods
    let refusal = Misbehaviour::come_back(503, 1);
    let fault = world.registry.script(Fault::always(Target::Blobs, refusal));
    world.rule("second", &second, HOSTS);
    let image = json!({ "image": second.reference });
    runners::change_pool(&world.client, "second", image)
        .await
        .unwrap();
    for pod in pods_of(&world, "second").await {
        until_reason(&world, &name(&pod), "image_missing").await;
    }
    for pod in pods_of(&world, "xcode").await {
        assert_ne!(reason_of(&world, &name(&pod)).await, "image_missing");
    }
    let (_, shown) = world.parbake(&["status", "--json"]).unwrap();
    let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
    for (image, present) in [(&first, HOSTS), (&second, 0)] {
        let digest = image.image.digest.to_string();
        let of = shown.iter().find(|of| of["digest"] == digest).unwrap();
        assert_eq!(of["hosts_present"], json!(present), "{of}");
    }
    let nodes: Api<Node> = Api::all(world.client.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let labels = node.metadata.labels.unwrap_or_default();
        let label = |image: &Image| {
            let hex = image.image.digest.hex().to_string();
            labels
                .get(&format!("parbake.dev/image-{}", &hex[..12]))
                .cloned()
        };
        assert_eq!(label(&first).as_deref(), Some("ready"));
        assert_ne!(label(&second).as_deref(), Some("ready"));
    }
    world.registry.clear(fault);
    world
        .until_pods("both have rolled", |pods| {
            let run = |image: &Image| pods.iter().filter(|pod| image.runs(pod)).count();
            run(&first) == HOSTS && run(&second) == HOSTS
        })
        .await
        .unwrap();
    world.check().unwrap();
}

/// Waits until all hosts say that they are to have an image.
async fn until_wanted(world: &World, image: &Image) {
    let digest = image.image.digest.to_string();
    let knows = |host: usize| {
        let status = tokio::task::block_in_place(|| world.cluster.agent_status(host)).ok()?;
        let mut images = status["images"].as_array()?.iter();
        images.any(|of| of["digest"] == digest).then_some(())
    };
    let hosts = world.cluster.agents().len();
    world
        .until("all hosts are to have it", || async {
            (0..hosts).try_for_each(&knows)
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_node_that_is_reserved_for_a_pool_has_that_pool_s_image_first() {
    const HOSTS: usize = 2;
    const MIB: u64 = 1 << 20;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let old = world.begin("own", 100, HOSTS).await.unwrap();
    world.rule("second", &old, HOSTS);
    let spec = pool_spec(&old.reference, HOSTS, 100);
    runners::add_pool(&world.client, "second", "own", spec)
        .await
        .unwrap();
    world.until_all_run(&old, 2 * HOSTS).await.unwrap();
    world.until_staged("second", &old, HOSTS).await.unwrap();
    // the registry divides what it sends between the images that are first somewhere. The later one is half as large:
    // without the reservation the whole of the other comes before it
    let image = |tag: &str, mib: u64, seed: u64| {
        let spec = ImageSpec {
            nvram_bytes: 64 << 10,
            ..ImageSpec::incompressible(mib * MIB, MIB, seed)
        };
        world.image_of(tag, &spec).unwrap()
    };
    let (first, second) = (image("2", 32, 2), image("3", 16, 3));

    // nothing moves before both are wanted
    world.set(|manners| &manners.dispatches, false);
    world.registry.limit(Some(4 * MIB));
    let refusal = Misbehaviour::come_back(503, 1);
    let fault = world.registry.script(Fault::always(Target::Blobs, refusal));
    let (plain, reserved) = (0, 1);
    let host = |at: usize| &world.cluster.agents()[at];
    reserve(&world, &host(reserved).host, Some("second")).await;
    world.roll(&first, HOSTS).await.unwrap();
    until_wanted(&world, &first).await;
    world.rule("second", &second, HOSTS);
    let change = json!({ "image": second.reference });
    runners::change_pool(&world.client, "second", change)
        .await
        .unwrap();
    until_wanted(&world, &second).await;
    world.registry.clear(fault);

    let came = |at: usize, image: &Image| {
        let digest = image.image.digest.to_string();
        let present = host(at).present(|line| line["image"] == digest)?;
        Some(present.at)
    };
    let all = || async {
        let both = |at| Some((came(at, &first)?, came(at, &second)?));
        Some([both(plain)?, both(reserved)?])
    };
    let [there, here] = world.until("all hosts have both", all).await.unwrap();
    let apart = |(first, second): (SystemTime, SystemTime)| first.duration_since(second);
    println!(
        "the pool's image before the other: {:?}; elsewhere: {:?}",
        apart(here),
        apart(there)
    );
    assert!(apart(here).is_ok(), "{here:?}");
    world.check().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_release_that_only_renames_the_image_opens_the_gate_at_once_and_moves_nothing() {
    const HOSTS: usize = 8;
    let setup = Setup {
        goldens: true,
        ..Setup::new(DEMO, HOSTS)
    };
    let mut world = World::start(setup).await.unwrap();
    let old = world.begin("own", 100, HOSTS).await.unwrap();
    let renamed = world.image("2", 1).unwrap();
    assert_eq!(old.image.digest, renamed.image.digest);
    let golden = |host: usize, image: &Image| {
        tart_script::golden(&world.cluster.agents()[host].tart_home(), &image.reference)
    };
    for host in 0..HOSTS {
        assert!(golden(host, &old).is_dir() && !golden(host, &renamed).exists());
    }
    let blobs = world.registry.counters().bytes;
    world.set(|manners| &manners.dispatches, false);
    let (begun, changed) = (Instant::now(), SystemTime::now());
    world.roll(&renamed, HOSTS).await.unwrap();
    world
        .until_found("all are labelled", |found| found.labelled.len() == HOSTS)
        .await
        .unwrap();
    // the gate opened behind the goldens of the new name
    for host in 0..HOSTS {
        let disk = golden(host, &renamed).join("disk.img");
        assert_eq!(renamed.image.compare(&disk).unwrap(), None, "{host}");
    }
    let found = world.checker.found();
    let after = |at: SystemTime| at.duration_since(changed).unwrap_or_default();
    let (first, last) = (
        after(found.labelled[0].at),
        after(found.labelled[HOSTS - 1].at),
    );
    println!(
        "renamed -> labelled: the first of {HOSTS} Pods after {first:?}, the last after {last:?}"
    );
    // within a second on a quiet machine; here API server, coordinator and all hosts share what other tests leave
    assert!(last < Duration::from_secs(5), "{last:?}");
    assert_eq!(world.registry.counters().bytes, blobs);
    world.set(|manners| &manners.dispatches, true);
    world.until_all_run(&renamed, HOSTS).await.unwrap();
    println!("rolled after {:?}", begun.elapsed());
    world.check().unwrap();
    until_named(&world, "xcode", &renamed, HOSTS).await;
    for agent in world.cluster.agents() {
        // what the image's bytes came from is told again with the new name, and nothing was added
        let lines = agent.log().into_iter();
        let lines = lines.filter(|line| line["message"] == "image is present");
        let bytes = |line: &Value, field: &str| line[field].as_u64().unwrap_or(0);
        let moved = lines.map(|line| bytes(&line, "origin_bytes") + bytes(&line, "peer_bytes"));
        let moved: BTreeSet<u64> = moved.filter(|bytes| *bytes > 0).collect();
        assert_eq!(moved.len(), 1, "{}: {moved:?}", agent.host);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn the_pod_of_a_node_that_was_just_cordoned_fills_the_cap_until_its_successor_is_warm() {
    const HOSTS: usize = 4;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    world.begin("own", 25, 1).await.unwrap();
    world.set(|manners| &manners.dispatches, false);
    let pods = world.pods().await;
    let (reaped, plain) = (&pods[0], &pods[1]);
    runners::cordon(&world.client, &node(reaped), true)
        .await
        .unwrap();
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 1).await.unwrap();
    // a cordoned Node's host gets the image too, and isn't counted
    until_named(&world, "xcode", &new, HOSTS - 1).await;
    until_reason(&world, &name(reaped), "node_cordoned").await;
    until_reason(&world, &name(plain), "cap_reached").await;

    // the other controller reaps it; the successor has the Node when that is free for Pods again
    world.set(|manners| &manners.boots, false);
    runners::pods(&world.client)
        .delete(&name(reaped), &DeleteParams::default())
        .await
        .unwrap();
    world
        .until_pods("it has a successor", |pods| {
            pods.iter().any(|pod| new.is_of(pod))
        })
        .await
        .unwrap();
    until_reason(&world, &name(plain), "cap_reached").await;
    assert!(world.checker.found().labelled.is_empty());
    runners::cordon(&world.client, &node(reaped), false)
        .await
        .unwrap();
    world.set(|manners| &manners.boots, true);
    world
        .until_found("one is labelled", |found| found.labelled.len() == 1)
        .await
        .unwrap();
    world.set(|manners| &manners.dispatches, true);
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
}
