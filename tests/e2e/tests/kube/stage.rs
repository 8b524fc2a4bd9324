//! Staging by ImagePrePulls on a real API server, with agents as processes.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use e2e::{
    runners::{self, NAMESPACE},
    world::{FLEET, Setup, World},
};
use kube::api::PostParams;
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// What an agent says when it is to keep what it has.
const PAUSED: &str = "staging is paused; what is here is kept";

/// Makes an ImagePrePull of every Node.
async fn make(world: &World, name: &str, spec: Value) {
    let mut prepull = json!({
        "apiVersion": "parbake.dev/v1alpha1",
        "kind": "ImagePrePull",
        "metadata": { "name": name },
        "spec": { "nodeSelector": { "matchLabels": { "tuist.dev/fleet": FLEET } } },
    });
    for (field, value) in spec.as_object().unwrap() {
        prepull["spec"][field] = value.clone();
    }
    let prepull = serde_json::from_value(prepull).unwrap();
    runners::prepulls(&world.client)
        .create(&PostParams::default(), &prepull)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn what_hosts_have_of_an_image_outlives_a_pause() {
    const HOSTS: usize = 2;
    let setup = Setup::new(DEMO, HOSTS);
    let world = World::start(setup).await.unwrap();
    let image = world.image("1", 1).unwrap();
    world.registry.limit(Some(1 << 18));
    make(&world, "slow", json!({ "image": image.reference })).await;
    let status = async || {
        let found = runners::prepulls(&world.client).get("slow").await.ok()?;
        found.status
    };
    let staged = |status: &coordinator::cluster::crd::ImagePrePullStatus| {
        let of = status.conditions.iter().find(|c| c.type_ == "Staged");
        of.map_or_else(String::new, |condition| condition.reason.clone())
    };
    // chunks have come to both; the registry's line is slow enough for the pause to fall in the middle
    world
        .until("something is there", || async {
            (status().await?.bytes.peers > 1 << 18).then_some(())
        })
        .await
        .unwrap();

    // it gates nothing, and is held by its whole name
    let name = format!("{NAMESPACE}/slow");
    let (code, text) = world.parbake(&["pause", &name]).unwrap();
    assert_eq!(code, 0, "{text}");
    let (code, text) = world.parbake(&["pause", "nowhere/slow"]).unwrap();
    assert_eq!(code, 2, "{text}");
    let line = |agent: &e2e::cluster::Agent, message: &str| {
        let log = agent.log();
        log.into_iter().find(|line| line["message"] == message)
    };
    world
        .until("both hold", || async {
            let agents = world.cluster.agents();
            let all = agents.iter().all(|agent| line(agent, PAUSED).is_some());
            (all && staged(&status().await?) == "Paused").then_some(())
        })
        .await
        .unwrap();
    let hex = image.image.digest.hex().to_string();
    for agent in world.cluster.agents() {
        assert!(agent.tart_home().join(".parbake").join(&hex).is_dir());
    }

    world.registry.limit(None);
    let (code, text) = world.parbake(&["resume", &name]).unwrap();
    assert_eq!(code, 0, "{text}");
    world.until_staged("slow", &image, HOSTS).await.unwrap();
    for agent in world.cluster.agents() {
        let number = |line: &Value, field: &str| line[field].as_u64().unwrap();
        let held = number(&line(agent, PAUSED).unwrap(), "held_bytes");
        let present = line(agent, "image is present").unwrap();
        let moved = number(&present, "origin_bytes") + number(&present, "peer_bytes");
        let whole = image.image.layout().unwrap().content_bytes();
        assert!(held > 0, "{}", agent.host);
        // chunks that were on their way at the pause count on neither side
        assert!(
            moved <= whole - held + whole / 10,
            "{} had {held} of {whole} bytes, and moved {moved}",
            agent.host
        );
    }
}
