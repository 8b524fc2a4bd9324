//! What a release moves, with the real programs on loopback: what was predicted stands beside what came, and a release
//! that only gives an image another name moves nothing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

use e2e::{
    cluster::{Cluster, said},
    image::ImageSpec,
    registry,
    rig::Rig,
};
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
const HOSTS: usize = 3;

/// What tart does for `clone REFERENCE NAME`: a copy of what the reference names.
const TART: &str = r#"#!/bin/sh
[ "$1" = clone ] || exit 64
from=$(printf %s "$2" | sed 's|^\([^/]*\):|\1%3A|; s|:\([^:]*\)$|/\1|')
mkdir -p "$TART_HOME/vms" && cp -RL "$TART_HOME/cache/OCIs/$from/." "$TART_HOME/vms/$3"
"#;

/// Stages a reference and waits. What `parbake` says of the image then.
fn stage(cluster: &Cluster, reference: &str) -> Value {
    let arguments = ["stage", reference, "--wait", "--timeout", "60"];
    let ended = cluster.parbake(&arguments).unwrap();
    assert!(ended.status.success(), "{reference}: {}", said(&ended));
    cluster.status(reference).unwrap()
}

fn figure(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// What `parbake` prints for people.
fn printed(cluster: &Cluster, arguments: &[&str]) -> String {
    let ended = cluster.parbake(arguments).unwrap();
    let text = String::from_utf8(ended.stdout).unwrap();
    println!("$ parbake {}\n{text}", arguments.join(" "));
    text
}

#[test]
fn a_prediction_stands_beside_the_fact_and_another_name_of_the_image_moves_nothing() {
    let spec = ImageSpec::incompressible(24 << 20, 4 << 20, 9);
    let rig = Rig::new(&spec, registry::Options::default()).unwrap();
    let tart = rig.site.dir().join("tart");
    fs::write(&tart, TART).unwrap();
    fs::set_permissions(&tart, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!(
        "golden_prefix = 'golden-'\ntart_binary = '{}'",
        tart.display()
    );
    let cluster = rig.site.fleet(DEMO, HOSTS, &settings, "").unwrap();

    let plan = printed(&cluster, &["plan", &rig.reference]);
    assert!(plan.lines().all(|line| line.len() <= 80), "{plan}");
    let image = stage(&cluster, &rig.reference);
    let (predicted, measured) = (&image["prediction"]["bytes"], &image["measured"]);
    println!("predicted {predicted}, measured {measured}");
    let (packed, hosts) = (rig.image.blob_bytes(), HOSTS as u64);
    assert_eq!(figure(predicted, "origin"), packed);
    assert_eq!(figure(predicted, "peers"), (hosts - 1) * packed);
    assert_eq!(figure(predicted, "local"), 0);
    let raw = figure(&image, "raw_bytes");
    assert_eq!(figure(predicted, "written"), hosts * raw);
    assert_eq!(figure(measured, "origin"), rig.site.served());
    // peers pack what the registry doesn't; a chunk that comes twice is written once
    let peers = figure(measured, "peers");
    assert!(peers * 100 >= 95 * (hosts - 1) * packed, "{peers}");
    let written = figure(measured, "written");
    assert!(
        written > hosts * raw / 2 && written <= hosts * raw,
        "{written}"
    );
    let text = printed(&cluster, &["status", &rig.reference]);
    assert!(
        text.contains("\n  predicted ") && text.contains("\n  measured "),
        "{text}"
    );

    // the same digest under another name: a link and a golden
    rig.site.registry.reset_counters();
    let chunks = || {
        let agents = cluster.agents().iter();
        let received = agents.map(|agent| agent.received("origin") + agent.received("peers"));
        received.sum::<u64>()
    };
    let granted = || {
        cluster
            .metric("parbake_coordinator_leases_granted_total")
            .unwrap()
    };
    let before = (chunks(), granted());
    let second = rig.site.registry.hold("fleet/macos", "2", &rig.image);
    let began = Instant::now();
    let renamed = stage(&cluster, &second);
    println!(
        "{HOSTS} hosts hold the other name after {:?}, by the coordinator {} s",
        began.elapsed(),
        renamed["staged_seconds"]
    );
    assert_eq!((chunks(), granted()), before, "bytes of chunks, and leases");
    assert_eq!(rig.site.served(), 0);
    let nothing = json!({"origin": 0, "peers": 0, "local": 0, "written": 0});
    assert_eq!(renamed["prediction"]["bytes"], nothing);
    assert_eq!(renamed["measured"], nothing, "{renamed}");
    for agent in cluster.agents() {
        let home = agent.tart_home();
        for reference in [&rig.reference, &second] {
            let golden = proto::image::golden_name("golden-", reference);
            let disk = home.join("vms").join(golden).join("disk.img");
            assert_eq!(
                rig.image.compare(&disk).unwrap(),
                None,
                "{}",
                disk.display()
            );
        }
    }
}
