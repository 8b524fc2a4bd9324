//! A roll that a real Prometheus watches: the dashboard's panels of pools and pre-pulls are asked of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;

use e2e::{
    prometheus::{Panel, Prometheus, panels},
    world::{Setup, World},
};
use tokio::task::block_in_place;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// The pool that a world begins with.
const POOL: &str = "xcode";

/// The queries that need a cluster.
fn of_clusters() -> Vec<Panel> {
    let names = [
        "parbake_pool_",
        "parbake_prepull_",
        "parbake_pod_",
        "sum(parbake_coordinator_leader)",
    ];
    let needs_one = |panel: &Panel| names.iter().any(|name| panel.expression.contains(name));
    panels().unwrap().into_iter().filter(needs_one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(api_server, prometheus)),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd, and PARBAKE_PROMETHEUS: the program prometheus"
)]
async fn every_panel_of_a_roll_shows_something() {
    let mut world = World::start(Setup::new(DEMO, 4)).await.unwrap();
    // as the chart's ServiceMonitor has it: the namespace of a pool's series is the pool's
    let settings = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: parbake-metrics\n  honor_labels: true\n  \
         static_configs: [{{targets: ['{}'], labels: {{namespace: parbake, pod: parbake-0}}}}]\n",
        world.cluster.admin()
    );
    let dir = world.cluster.directory().join("prometheus");
    let prometheus = block_in_place(|| Prometheus::start(&dir, &settings)).unwrap();
    let empty = || -> BTreeSet<String> {
        let panels = of_clusters().into_iter();
        panels
            .filter(|panel| prometheus.query(&panel.expression).unwrap().is_empty())
            .map(|panel| panel.title)
            .collect()
    };
    world.begin("own", 50, 2).await.unwrap();

    // while it is paused, Pods are held, and the reason is shown
    let (code, said) = world.parbake(&["pause", POOL]).unwrap();
    assert_eq!(code, 0, "{said}");
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 2).await.unwrap();
    let held = of_clusters()
        .into_iter()
        .find(|panel| panel.title.starts_with("Held Pods"))
        .unwrap();
    world
        .until("held Pods are shown with their reason", || async {
            let shown = block_in_place(|| prometheus.query(&held.expression)).ok()?;
            let paused = |series: &&serde_json::Value| series["metric"]["reason"] == "paused";
            let series = shown.iter().find(paused)?;
            (series["value"][1] == "4" && series["metric"]["pool"] == POOL).then_some(())
        })
        .await
        .unwrap();
    let (code, said) = world.parbake(&["resume", POOL]).unwrap();
    assert_eq!(code, 0, "{said}");
    world.until_all_run(&new, 4).await.unwrap();
    world
        .until(
            "every panel but that of held Pods shows something",
            || async {
                let empty = block_in_place(empty);
                (empty.len() == 1 && empty.contains(&held.title)).then_some(())
            },
        )
        .await
        .unwrap_or_else(|error| panic!("{error:#}; nothing is shown: {:?}", empty()));
    world.check().unwrap();
}
