//! Rolls on a real API server: the real coordinator and agents as processes, the runners' own controller, kubelet and
//! dispatcher played by the test, and every Pod event checked in the API server's order.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::time::{Duration, Instant};

use e2e::world::{Setup, World};
use kube::{Api, api::ListParams};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_fleet_rolls_under_the_cap_and_only_where_the_image_is() {
    const HOSTS: usize = 20;
    let setup = Setup::new("kube_roll", DEMO, HOSTS);
    let Some(mut world) = World::start(setup).await.unwrap() else {
        return;
    };
    let old = world.image("1", 1).unwrap();
    world.rule("xcode", &old, 2);
    world.play();
    // the pool's own ImagePrePull stages what the pool runs
    world.begin("xcode", "own", &old, HOSTS, 10).await.unwrap();

    let new = world.image("2", 2).unwrap();
    world.rule("xcode", &new, 2);
    let begun = Instant::now();
    world.roll("xcode", &new).await.unwrap();
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
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(world.client.clone());
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
        .present(|line| line["fields"]["image"].as_str() == Some(&digest))
        .unwrap();
    let waited = first.at.duration_since(present.at).unwrap();
    println!("installed -> labelled: {waited:?}");
    assert!(waited < Duration::from_secs(5), "{waited:?}");
}
