//! Rolls on a real API server: the real coordinator and agents as processes, the runners' own controller, kubelet and
//! dispatcher played by the test, and every Pod event checked in the API server's order.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use coordinator::cluster::crd::{GateMode, ImagePrePullStatus};
use e2e::{
    runners::{self, NAMESPACE, Rule},
    world::{Setup, World, pool_spec},
};
use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Event, Node, Pod, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_whole_fleet_rolls_under_the_cap_and_only_where_the_image_is() {
    const HOSTS: usize = 20;
    let setup = Setup::new(DEMO, HOSTS);
    let mut world = World::start(setup).await.unwrap();
    // the pool's own ImagePrePull stages what the pool runs
    world.begin("own", 10, 2).await.unwrap();

    let new = world.image("2", 2).unwrap();
    let begun = Instant::now();
    world.roll(&new, 2).await.unwrap();
    world.until_all_run(&new, HOSTS).await.unwrap();
    let found = world.checker.found();
    println!(
        "{HOSTS} Pods rolled in {:?}, {} events, at most {} in flight",
        begun.elapsed(),
        found.events,
        found.most_in_flight,
    );
    world.check().unwrap();
    assert_eq!(found.labelled.len(), HOSTS);
    assert!(found.withdrawn.is_empty(), "{:?}", found.withdrawn);
    world.until_staged("xcode", &new, HOSTS).await.unwrap();
    // Nodes say what they hold
    let nodes: Api<Node> = Api::all(world.client.clone());
    let digest = new.image.digest;
    let label = format!("parbake.dev/image-{}", &digest.hex().to_string()[..12]);
    let params = ListParams::default().labels(&format!("{label}=ready"));
    world
        .until("every Node says so", || async {
            let listed = nodes.list(&params).await.ok()?;
            (listed.items.len() == HOSTS).then_some(())
        })
        .await
        .unwrap();
    // the cap was free when the first hosts had installed: from presence in the agent's own log to the label
    let first = &found.labelled[0];
    let agents = world.cluster.agents();
    let agent = agents
        .iter()
        .find(|agent| agent.host == first.node)
        .unwrap();
    let digest = digest.to_string();
    let present = agent
        .present(|line| line["image"].as_str() == Some(&digest))
        .unwrap();
    let waited = first.at.duration_since(present.at).unwrap();
    println!("installed -> labelled: {waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn an_owned_roll_meets_what_hosts_runners_and_operators_do() {
    const HOSTS: usize = 6;
    let setup = Setup::new(DEMO, HOSTS);
    let mut world = World::start(setup).await.unwrap();
    let started = Instant::now();
    let step = |what: &str| println!("{:6.1} s: {what}", started.elapsed().as_secs_f32());
    // three of six, of which the Pod whose Node isn't Ready takes one
    let old = world.begin("own", 50, 3).await.unwrap();
    let pods = world.pods().await;
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap();
    let node = |pod: &Pod| runners::node(pod).unwrap().to_owned();
    let busy = pods[0].clone();
    let (cordoned, unready) = (pods[1].clone(), pods[2].clone());
    runners::set_busy(&world.client, &name(&busy), "account")
        .await
        .unwrap();
    runners::cordon(&world.client, &node(&cordoned), true)
        .await
        .unwrap();
    runners::set_ready(&world.client, &node(&unready), false)
        .await
        .unwrap();

    step("staged");
    // a busy Pod, a cordoned Node and one that isn't Ready are passed over, each for its reason
    world.set(|manners| &manners.dispatches, false);
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 3).await.unwrap();
    world
        .until_found("as many as the cap are labelled", |found| {
            found.labelled.len() == 2
        })
        .await
        .unwrap();
    for (pod, reason) in [
        (&busy, "busy"),
        (&cordoned, "node_cordoned"),
        (&unready, "node_not_ready"),
    ] {
        assert_eq!(reason_of(&world, &name(pod)).await, reason);
        let whole = format!("{NAMESPACE}/{}", name(pod));
        let (code, text) = world.parbake(&["why", &whole, "--json"]).unwrap();
        assert_eq!(code, 1, "{text}");
        let view: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(view["reason"], reason);
    }
    let (code, text) = world.parbake(&["roll", "xcode"]).unwrap();
    assert!(code == 1 && text.contains("2 in flight"), "{code} {text}");

    step("labelled up to the cap");
    // the image is pruned after the label: it is withdrawn, and comes back only with the image
    let pruned = world.checker.found().labelled[0].clone();
    let agent = world.cluster.agents();
    let agent = agent
        .iter()
        .find(|agent| agent.host == pruned.node)
        .unwrap();
    std::fs::remove_dir_all(agent.tart_home().join(&new.cached)).unwrap();
    let begun = Instant::now();
    world
        .until_found("the label is withdrawn", |found| {
            found.withdrawn.contains(&pruned.pod)
        })
        .await
        .unwrap();
    println!("pruned -> withdrawn: {:?}", begun.elapsed());
    world
        .until_found("the cap is used again", |found| found.labelled.len() == 3)
        .await
        .unwrap();

    step("pruned and labelled again");
    // paused: what was labelled leaves, and nothing follows
    pause(&world, "xcode", true);
    world
        .until("the others wait for the operator", || async {
            let pods = world.pods().await;
            let waits = pods.iter().find(|pod| {
                let idle = ![&busy, &cordoned, &unready].map(name).contains(&name(pod));
                idle && old.runs(pod) && !runners::is_labelled(pod)
            })?;
            (reason_of(&world, &name(waits)).await == "paused").then_some(())
        })
        .await
        .unwrap();
    world.set(|manners| &manners.dispatches, true);
    world
        .until_pods("both are replaced", |pods| {
            pods.iter().filter(|pod| new.runs(pod)).count() == 2
        })
        .await
        .unwrap();
    assert_eq!(world.checker.found().labelled.len(), 3);
    world.set(|manners| &manners.dispatches, false);
    pause(&world, "xcode", false);
    world
        .until_found("it goes on", |found| found.labelled.len() == 4)
        .await
        .unwrap();
    let last = world.checker.found().labelled[3].pod.clone();

    step("paused and resumed");
    // rolled back in mid-roll: the label of a Pod that is current again is withdrawn, and what is new drains
    world.roll(&old, 3).await.unwrap();
    world
        .until_found("its label is withdrawn", |found| {
            found.withdrawn.contains(&last)
        })
        .await
        .unwrap();
    world.set(|manners| &manners.dispatches, true);
    runners::cordon(&world.client, &node(&cordoned), false)
        .await
        .unwrap();
    runners::set_ready(&world.client, &node(&unready), true)
        .await
        .unwrap();
    world.until_all_run(&old, HOSTS).await.unwrap();
    let found = world.checker.found();
    let now = world.pods().await;
    for untouched in [&busy, &cordoned, &unready] {
        assert!(
            !found
                .labelled
                .iter()
                .any(|seen| seen.pod == name(untouched))
        );
        let uid = &untouched.metadata.uid;
        assert!(now.iter().any(|pod| pod.metadata.uid == *uid));
    }
    runners::set_busy(&world.client, &name(&busy), "")
        .await
        .unwrap();
    world.check().unwrap();

    step("rolled back");
    // stale Pods that haven't started are reaped, with the accounts that are theirs
    world.set(|manners| &manners.boots, false);
    let grace = DeleteParams::default().grace_period(0);
    let api = runners::pods(&world.client);
    for pod in &now[..2] {
        api.delete(&name(pod), &grace).await.unwrap();
    }
    let is_pending = |pod: &&Pod| runners::phase(pod) == "Pending";
    world
        .until_pods("two are Pending", |pods| {
            pods.len() == HOSTS && pods.iter().filter(is_pending).count() == 2
        })
        .await
        .unwrap();
    let pods = world.pods().await;
    let pending: Vec<String> = pods.iter().filter(is_pending).map(name).collect();
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), NAMESPACE);
    let owner = json!({ "metadata": { "ownerReferences": [{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "else", "uid": "else",
    }] } });
    accounts
        .patch(&pending[1], &PatchParams::default(), &Patch::Merge(&owner))
        .await
        .unwrap();
    world.roll(&new, 3).await.unwrap();
    world
        .until_found("both are reaped", |found| found.reaped.len() == 2)
        .await
        .unwrap();
    world
        .until("the account of the first is gone", || async {
            let account = accounts.get_opt(&pending[0]).await.ok()?;
            account.is_none().then_some(())
        })
        .await
        .unwrap();
    world.set(|manners| &manners.boots, true);
    world.until_all_run(&new, HOSTS).await.unwrap();
    let other = accounts.get_opt(&pending[1]).await.unwrap();
    assert!(other.is_some(), "it belongs to somebody else");
    world.check().unwrap();

    step("reaped and rolled");
    // an image that nobody can stage: held, until a deadline says to go on, still under the cap
    let before = world.checker.found().labelled.len();
    let missing = format!("{}-missing", new.reference);
    world.checker.rule(
        "xcode",
        Rule {
            image: missing.clone(),
            cap: 3,
            disk: None,
        },
    );
    runners::change_pool(&world.client, "xcode", json!({ "image": missing }))
        .await
        .unwrap();
    let waits = name(&world.pods().await[0]);
    world
        .until("it is held", || async {
            (reason_of(&world, &waits).await == "image_unresolved").then_some(())
        })
        .await
        .unwrap();
    assert_eq!(world.checker.found().labelled.len(), before);
    let patch = json!({ "spec": { "deadline": "1s", "onDeadline": "Proceed" } });
    runners::prepulls(&world.client)
        .patch("xcode", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    world
        .until_pods("all run it", |pods| {
            let run =
                |pod: &Pod| runners::image(pod) == missing && runners::phase(pod) == "Running";
            pods.len() == HOSTS && pods.iter().all(run)
        })
        .await
        .unwrap();
    step("the deadline has passed");
    world.check().unwrap();
    assert!(world.checker.found().most_in_flight <= 3);
    let (code, text) = world.parbake(&["roll", "xcode", "--wait"]).unwrap();
    assert_eq!(code, 0, "{text}");
    // whoever looks at the objects was told each of these
    let told = events(&world).await;
    for reason in [
        "Staging",
        "Staged",
        "StageFailed",
        "DrainEligible",
        "DrainWithdrawn",
        "GateHeld",
    ] {
        assert!(told.contains(reason), "{reason} isn't among {told:?}");
    }
}

/// Mode Own over a ReplicaSet whose template doesn't go along with the object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn a_pool_keeps_its_pods_while_their_template_has_another_image_and_rolls_when_they_agree() {
    const HOSTS: usize = 6;
    let setup = Setup::new(DEMO, HOSTS);
    let mut world = World::start(setup).await.unwrap();
    let old = world.image("1", 1).unwrap();
    let new = world.image("2", 2).unwrap();
    world.rule("runners", &old, 2);
    world.play();
    runners::add_set(&world.client, "runners", &old.reference, HOSTS)
        .await
        .unwrap();
    let prepull = serde_json::from_value(json!({
        "metadata": { "name": "runners" },
        "spec": {
            "image": old.reference,
            "nodeSelector": { "matchLabels": { "kubernetes.io/os": "darwin" } },
            "gate": {
                "mode": "Own",
                "podSelector": { "matchLabels": { runners::POOL_LABEL: "runners" } },
                "replicas": HOSTS,
                "maxConcurrentPercent": 34,
            },
        },
    }))
    .unwrap();
    runners::prepulls(&world.client)
        .create(&PostParams::default(), &prepull)
        .await
        .unwrap();
    world.until_all_run(&old, HOSTS).await.unwrap();
    world.until_staged("runners", &old, HOSTS).await.unwrap();
    let begun = uids(&world).await;

    // the object has the new image, and the template doesn't: not one Pod is lost, and who looks is told of both
    world.rule("runners", &new, 2);
    set_image(&world, &new.reference).await;
    world.until_staged("runners", &new, HOSTS).await.unwrap();
    let status = until_lags(&world).await;
    assert_eq!(status.state.as_deref(), Some("Held"));
    assert_eq!(status.reason.as_deref(), Some("OwnerLags"));
    let text = degraded(&status).message.clone();
    for part in ["ReplicaSet runners", &old.reference, &new.reference] {
        assert!(text.contains(part), "{part} isn't in: {text}");
    }
    let pod = world.pods().await[0].metadata.name.clone().unwrap();
    assert_eq!(reason_of(&world, &pod).await, "owner_lags");
    let metrics = world.metrics().await.unwrap();
    for line in ["parbake_pool_warm_pods", "parbake_pool_replicas"] {
        let line = format!("{line}{{namespace=\"{NAMESPACE}\",pool=\"runners\"}} {HOSTS}");
        assert!(metrics.contains(&line), "{line} isn't in:\n{metrics}");
    }
    assert_eq!(uids(&world).await, begun);

    // they agree: it goes on by itself
    runners::change_set(&world.client, "runners", &new.reference)
        .await
        .unwrap();
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
    let found = world.checker.found();
    println!("most taken at one time: {}", found.most_taken);
    assert!((1..=2).contains(&found.most_taken));
    assert_eq!(found.labelled.len() + found.reaped.len(), HOSTS);
    world
        .until("nothing is amiss", || async {
            let status = status_of(&world).await?;
            (degraded(&status).status == "False").then_some(())
        })
        .await
        .unwrap();

    // one digest in two spellings is named, and costs nothing
    let rolled = uids(&world).await;
    let (name, _) = new.reference.rsplit_once(':').unwrap();
    set_image(&world, &format!("{name}@{}", new.image.digest)).await;
    let status = until_lags(&world).await;
    assert!(degraded(&status).message.contains("spelled in two ways"));
    set_image(&world, &new.reference).await;
    world
        .until("it is staged by its first name again", || async {
            let found = runners::prepulls(&world.client).get_opt("runners").await;
            let found = found.ok()??;
            let status = found.status.filter(|status| {
                status.observed_generation == found.metadata.generation
                    && usize::try_from(status.hosts.staged) == Ok(HOSTS)
            })?;
            (degraded(&status).status == "False").then_some(())
        })
        .await
        .unwrap();
    assert_eq!(uids(&world).await, rolled);

    // another leader unsays nothing of it
    let told = story(&world).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    watching.spawn(watch_status(
        world.client.clone(),
        seen.clone(),
        stop.clone(),
    ));
    world.cluster.kill_coordinator().unwrap();
    tokio::task::block_in_place(|| world.cluster.start_coordinator()).unwrap();
    world
        .until("the new leader has all hosts", || async {
            let (_, text) = world.parbake(&["hosts", "--json"]).ok()?;
            let hosts: Vec<Value> = serde_json::from_str(&text).ok()?;
            let back = hosts.iter().filter(|host| host["connected"] == true);
            (back.count() == HOSTS).then_some(())
        })
        .await
        .unwrap();
    // the roll's end is known by what the gate knows, which follows the hosts' words
    let (code, text) = world.parbake(&["roll", "runners", "--wait"]).unwrap();
    assert_eq!(code, 0, "{text}");
    pause(&world, "runners", true);
    stop.cancel();
    while let Some(watched) = watching.join_next().await {
        watched.unwrap();
    }
    for status in seen.lock().unwrap().iter() {
        assert_eq!(
            usize::try_from(status.hosts.staged),
            Ok(HOSTS),
            "{status:?}"
        );
        let staged = status.conditions.iter().find(|c| c.type_ == "Staged");
        assert_eq!(staged.unwrap().status, "True");
    }
    assert_eq!(story(&world).await, told);

    // who writes has a name
    let prepull = runners::prepulls(&world.client)
        .get("runners")
        .await
        .unwrap();
    let managers = |meta: &ObjectMeta| -> BTreeSet<String> {
        let entries = meta.managed_fields.iter().flatten();
        entries.filter_map(|entry| entry.manager.clone()).collect()
    };
    assert!(managers(&prepull.metadata).contains("parbake"));
    let leases: Api<Lease> = Api::default_namespaced(world.client.clone());
    let lease = leases.get("parbake-coordinator").await.unwrap();
    assert_eq!(managers(&lease.metadata), ["parbake".to_owned()].into());
    // a renewal acquires nothing
    let times = |lease: Lease| {
        let spec = lease.spec.unwrap();
        (spec.acquire_time, spec.renew_time)
    };
    let (acquired, renewed) = times(lease);
    world
        .until("the lease is renewed", || async {
            let (still, again) = times(leases.get("parbake-coordinator").await.ok()?);
            assert_eq!(still, acquired);
            (again > renewed).then_some(())
        })
        .await
        .unwrap();
}

async fn uids(world: &World) -> BTreeSet<Option<String>> {
    let pods = world.pods().await;
    pods.into_iter().map(|pod| pod.metadata.uid).collect()
}

async fn set_image(world: &World, image: &str) {
    let patch = json!({ "spec": { "image": image } });
    runners::prepulls(&world.client)
        .patch("runners", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

async fn status_of(world: &World) -> Option<ImagePrePullStatus> {
    let found = runners::prepulls(&world.client).get_opt("runners").await;
    found.ok()??.status
}

fn degraded(status: &ImagePrePullStatus) -> &Condition {
    let found = status.conditions.iter().find(|c| c.type_ == "Degraded");
    found.unwrap()
}

async fn until_lags(world: &World) -> ImagePrePullStatus {
    let lags = || async {
        let status = status_of(world).await?;
        (degraded(&status).reason == "OwnerLags").then_some(status)
    };
    world.until("its owner lags", lags).await.unwrap()
}

/// What Events said of the object so far.
async fn story(world: &World) -> BTreeSet<(Option<String>, Option<String>)> {
    let api: Api<Event> = Api::namespaced(world.client.clone(), NAMESPACE);
    let all = api.list(&ListParams::default()).await.unwrap();
    let of_it = |event: &Event| event.involved_object.kind.as_deref() == Some("ImagePrePull");
    let all = all.items.into_iter().filter(of_it);
    all.map(|event| (event.reason, event.message)).collect()
}

/// Keeps every status that the object has until `stop`.
async fn watch_status(
    client: Client,
    seen: Arc<Mutex<Vec<ImagePrePullStatus>>>,
    stop: CancellationToken,
) {
    let events = watcher(runners::prepulls(&client), watcher::Config::default());
    let mut events = std::pin::pin!(events.applied_objects());
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        if let Some(Ok(prepull)) = event {
            seen.lock().unwrap().extend(prepull.status);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn pools_come_and_go_with_their_kind_and_their_annotations() {
    const HOSTS: usize = 2;
    let mut setup = Setup::new(DEMO, HOSTS);
    setup.pools = false;
    let mut world = World::start(setup).await.unwrap();
    world
        .until_said("a cluster without pools is known too", |line| {
            line["message"] == "the cluster is known"
        })
        .await
        .unwrap();
    runners::install_pools(&world.client).await.unwrap();
    let image = world.begin("own", 50, 1).await.unwrap();
    assert_eq!(mode_of(&world, "xcode").await, Some(GateMode::Own));
    assert!(series(&world, "xcode").await > 4);

    // own, guard, none, and own again
    annotate(&world, "xcode", "guard").await;
    world
        .until("it is guarded", || async {
            (mode_of(&world, "xcode").await? == GateMode::Guard).then_some(())
        })
        .await
        .unwrap();
    annotate(&world, "xcode", "none").await;
    until_forgotten(&world, "xcode").await;
    annotate(&world, "xcode", "own").await;
    world.until_staged("xcode", &image, HOSTS).await.unwrap();
    assert!(series(&world, "xcode").await > 4);
    let pools = runners::pools(&world.client);
    pools
        .delete("xcode", &DeleteParams::default())
        .await
        .unwrap();
    until_forgotten(&world, "xcode").await;

    // their kind is removed with all of them, and comes back
    let spec = || pool_spec(&image.reference, 0, 50);
    runners::add_pool(&world.client, "second", "own", spec())
        .await
        .unwrap();
    world.until_staged("second", &image, HOSTS).await.unwrap();
    let definitions: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    definitions
        .delete("runnerpools.tuist.dev", &DeleteParams::default())
        .await
        .unwrap();
    until_forgotten(&world, "second").await;
    world
        .until("the kind is gone", || async {
            let found = definitions.get_opt("runnerpools.tuist.dev").await.ok()?;
            found.is_none().then_some(())
        })
        .await
        .unwrap();
    runners::install_pools(&world.client).await.unwrap();
    runners::add_pool(&world.client, "third", "own", spec())
        .await
        .unwrap();
    world.until_staged("third", &image, HOSTS).await.unwrap();
    annotate(&world, "third", "none").await;
    until_forgotten(&world, "third").await;
}

fn pause(world: &World, name: &str, paused: bool) {
    let verb = if paused { "pause" } else { "resume" };
    let (code, text) = world.parbake(&[verb, name]).unwrap();
    assert_eq!(code, 0, "{text}");
}

/// The reasons of all Events so far.
async fn events(world: &World) -> BTreeSet<String> {
    let api: Api<Event> = Api::all(world.client.clone());
    let all = api.list(&ListParams::default()).await.unwrap();
    all.items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect()
}

/// Why a Pod is held, as `parbake why` asks.
async fn reason_of(world: &World, pod: &str) -> String {
    let path = format!("/v1/pods/{NAMESPACE}/{pod}");
    let token = world.token().unwrap();
    let (_, body) = world.ask(&path, Some(&token)).await.unwrap();
    let view: Value = serde_json::from_str(&body).unwrap_or_default();
    view["reason"].as_str().unwrap_or_default().to_owned()
}

async fn annotate(world: &World, pool: &str, gate: &str) {
    let patch = json!({ "metadata": { "annotations": { "parbake.dev/gate": gate } } });
    runners::pools(&world.client)
        .patch(pool, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

async fn mode_of(world: &World, name: &str) -> Option<GateMode> {
    let found = runners::prepulls(&world.client)
        .get_opt(name)
        .await
        .ok()??;
    Some(found.spec.gate?.mode)
}

/// Series that name this pool or its ImagePrePull.
async fn series(world: &World, name: &str) -> usize {
    let metrics = world.metrics().await.unwrap();
    let name = format!("=\"{name}\"");
    metrics.lines().filter(|line| line.contains(&name)).count()
}

async fn until_forgotten(world: &World, name: &str) {
    world
        .until("its ImagePrePull and its series are gone", || async {
            let found = runners::prepulls(&world.client).get_opt(name).await.ok()?;
            (found.is_none() && series(world, name).await == 0).then_some(())
        })
        .await
        .unwrap();
}
