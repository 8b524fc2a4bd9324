//! A fleet that a real Prometheus watches, by the configuration and the alerts of `deploy/prometheus` as they stand.
//! Every panel of the dashboard is asked of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use e2e::{
    cluster::{Agent, wait_until},
    image::ImageSpec,
    prometheus::{Prometheus, configuration, panels},
    rig::Rig,
    site::PATIENCE,
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// Panels of hosts, images and mirrors that have nothing to show in this fleet, which has no goldens, no false bytes
/// and nobody who is asked to wait.
const QUIET: [&str; 5] = [
    "Contents that don't grow, by reason",
    "False chunks",
    "Leases, by host",
    "Recipes made, and disks of others",
    "tart commands",
];

/// A client of the host's mirror gets the manifest and a blob of the image, the latter twice.
fn pull(agent: &Agent, rig: &Rig) {
    let (name, tag) = rig.reference.rsplit_once(':').unwrap();
    let (registry, repository) = name.split_once('/').unwrap();
    let blob = format!("blobs/{}", rig.image.largest_blob().0);
    for what in [&format!("manifests/{tag}"), &blob, &blob] {
        let mut stream = TcpStream::connect(agent.mirror().unwrap()).unwrap();
        let path = format!("/v2/{repository}/{what}?ns={registry}");
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = String::from_utf8_lossy(&answer[..200.min(answer.len())]);
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    }
}

#[test]
#[cfg_attr(
    not(prometheus),
    ignore = "needs PARBAKE_PROMETHEUS: the program prometheus"
)]
fn every_panel_is_answered_and_every_alert_of_plain_racks_is_understood() {
    let spec = ImageSpec::incompressible(24 << 20, 8 << 20, 1);
    let rig = Rig::paced(&spec, None).unwrap();
    // a mirror looks for recipes of registries that it names
    let registry = rig.site.registry.addr();
    let mirror = format!("[mirror]\nlisten = '127.0.0.1:0'\nupstreams = ['{registry}']\n");
    let mut cluster = rig.site.fleet(DEMO, 3, &mirror, "").unwrap();
    let agents = [0, 1, 2].map(|number: usize| cluster.agents()[number].admin());
    let settings = configuration(cluster.admin(), &agents).unwrap();
    let prometheus = Prometheus::start(&rig.site.dir().join("prometheus"), &settings).unwrap();
    let scraped = |times: usize| {
        let expression = format!("count(count_over_time(up[1h]) >= {times} and up == 1)");
        let count = || {
            let answer = prometheus.query(&expression).unwrap();
            answer.first().is_some_and(|sum| sum["value"][1] == "4")
        };
        assert!(wait_until(PATIENCE, count), "{:?}", prometheus.query("up"));
    };
    // a counter that is seen to grow was seen before
    scraped(2);
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    for agent in cluster.agents() {
        pull(agent, &rig);
    }
    // and twice more since then
    let times = prometheus.query("max(count_over_time(up[1h]))").unwrap();
    let times: usize = times[0]["value"][1].as_str().unwrap().parse().unwrap();
    scraped(times + 3);

    let mut empty = BTreeSet::new();
    let mut of_clusters = 0;
    for panel in panels().unwrap() {
        let shown = prometheus.query(&panel.expression);
        let shown = shown.unwrap_or_else(|error| panic!("{}: {error:#}", panel.title));
        let needs_cluster = ["parbake_pool_", "parbake_prepull_", "parbake_pod_"]
            .iter()
            .any(|name| panel.expression.contains(name));
        of_clusters += usize::from(needs_cluster);
        if shown.is_empty() && !needs_cluster {
            empty.insert(panel.title);
        }
    }
    assert!(of_clusters > 8, "{of_clusters}");
    let quiet: BTreeSet<_> = QUIET.map(str::to_owned).into();
    let unexpected: Vec<_> = empty.difference(&quiet).collect();
    assert!(unexpected.is_empty(), "nothing is shown: {unexpected:?}");

    // all is well: no alert rings, nor is about to
    let alerts = prometheus.alerts().unwrap();
    assert!(alerts.len() >= 9, "{alerts:?}");
    for [name, health, state] in &alerts {
        assert_eq!(
            (health.as_str(), state.as_str()),
            ("ok", "inactive"),
            "{name}"
        );
    }
    let is_about_to_ring = |alert: &str| {
        let alerts = prometheus.alerts().unwrap();
        alerts
            .iter()
            .any(|[name, _, state]| name == alert && state != "inactive")
    };
    cluster.kill_agent(2).unwrap();
    for alert in ["ParbakeAgentDown", "ParbakeHostSilent"] {
        assert!(wait_until(PATIENCE, || is_about_to_ring(alert)), "{alert}");
    }
    cluster.kill_coordinator().unwrap();
    let down = "ParbakeCoordinatorDown";
    assert!(wait_until(PATIENCE, || is_about_to_ring(down)));
}
