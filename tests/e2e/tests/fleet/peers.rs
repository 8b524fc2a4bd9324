//! Peers that are killed and come back, and a peer whose disk fails: what they hold is had from them as soon as they
//! are back, and what they can't give any more is fetched anew at once.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, Options, Place, wait_until},
    image::ImageSpec,
    registry,
    rig::{PATIENCE, Rig},
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// What each host sends: a staging takes seconds.
const UPLOAD_BYTES_PER_S: u64 = 4 << 20;

/// Bytes that an agent's process received from peers: a restart begins at nothing.
fn from_peers(cluster: &Cluster, host: usize) -> u64 {
    let metric = "parbake_agent_received_bytes_total{source=\"peers\"}";
    let value = cluster.agents()[host].metric(metric).unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter of some megabytes"
    )]
    let bytes = value as u64;
    bytes
}

/// Bytes of the image that left the registry.
fn served(rig: &Rig) -> u64 {
    let layers = rig.image.layout().unwrap();
    let counters = rig.registry.counters();
    let blobs = layers
        .layers()
        .iter()
        .filter_map(|layer| counters.blobs.get(&layer.blob.digest));
    blobs.map(|blob| blob.bytes).sum()
}

fn stage(cluster: &Cluster, arguments: &[&str]) {
    let words: Vec<&str> = ["stage"].iter().chain(arguments).copied().collect();
    let staged = cluster.parbake(&words).unwrap();
    let said = String::from_utf8_lossy(&staged.stderr);
    assert!(staged.status.success(), "{said}");
}

/// Two hosts hold the image and a third one gets it from them, when both are killed and started again. Returns how long
/// the third one stood still.
fn killed_peers(busy: bool) -> Duration {
    let spec = ImageSpec::incompressible(96 << 20, 16 << 20, 1);
    let rig = Rig::new(&spec, registry::Options::default()).unwrap();
    let mut cluster = Cluster::start(Options {
        agent_settings: format!("upload_bytes_per_second = {UPLOAD_BYTES_PER_S}"),
        ..Options::on_loopback(DEMO, rig.dir(), 4, rig.registry.addr())
    })
    .unwrap();
    cluster.wait_sessions(PATIENCE).unwrap();
    stage(
        &cluster,
        &[&rig.reference, "--hosts", "mac-000,mac-001", "--wait"],
    );
    if busy {
        // another image that is staged on a fourth host meanwhile, slowly: the fleet never stands still
        let blobs = rig.dir().join("other");
        std::fs::create_dir(&blobs).unwrap();
        let other = ImageSpec::incompressible(32 << 20, 8 << 20, 2)
            .generate(&blobs)
            .unwrap();
        rig.registry.limit(Some(512 << 10));
        let reference = rig.registry.hold("fleet/other", "1", &other);
        stage(&cluster, &[&reference, "--hosts", "mac-003"]);
    }
    let served = served(&rig);
    stage(&cluster, &[&rig.reference, "--hosts", "mac-002"]);
    let begun = wait_until(PATIENCE, || from_peers(&cluster, 2) >= 16 << 20);
    assert!(begun, "{} bytes came", from_peers(&cluster, 2));

    for host in [0, 1] {
        cluster.kill_agent(host).unwrap();
    }
    for host in [0, 1] {
        cluster.start_agent(host).unwrap();
    }
    let back = Instant::now();
    // what was on its way still comes
    let before = from_peers(&cluster, 2);
    let on = wait_until(PATIENCE, || from_peers(&cluster, 2) >= before + (4 << 20));
    assert!(on, "{}", from_peers(&cluster, 2));
    let stood = back.elapsed();
    println!("busy {busy}: 4 MiB more from peers {stood:?} after they came back");
    assert!(wait_until(PATIENCE, || {
        let digest = rig.image.digest.to_string();
        let present = cluster.agents()[2].present(|line| line["image"].as_str() == Some(&digest));
        present.is_some()
    }));
    println!("busy {busy}: present after {:?}", back.elapsed());
    assert_eq!(
        self::served(&rig),
        served,
        "nothing more leaves the registry"
    );
    assert_eq!(
        rig.difference(&cluster.agents()[2].tart_home()).unwrap(),
        None
    );
    stood
}

/// How long 4 MiB take at the rate of two hosts, and how long the program and its session take to be there.
const BACK_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn a_host_goes_on_from_peers_that_were_killed_and_came_back() {
    let stood = killed_peers(false);
    assert!(stood < BACK_WITHIN, "{stood:?}");
}

#[test]
fn it_does_so_whatever_else_moves_in_the_fleet() {
    let stood = killed_peers(true);
    assert!(stood < BACK_WITHIN, "{stood:?}");
}

/// A host whose tart home is a volume of its own.
fn on_volume(home: &Path) -> Place {
    let mount = format!(
        "mount -t tmpfs -o size=512m parbake-test {} && exec \"$@\"",
        home.display()
    );
    let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    Place {
        prefix: words.map(str::to_owned).to_vec(),
        ..Place::default()
    }
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn what_a_host_with_a_failed_disk_held_is_fetched_anew_at_once() {
    let slow = registry::Options {
        rate_bytes_per_s: Some(6 << 20),
        ..registry::Options::default()
    };
    let rig = Rig::new(&ImageSpec::incompressible(64 << 20, 4 << 20, 1), slow).unwrap();
    let volume = on_volume(&rig.dir().join("mac-000/tart"));
    let cluster = Cluster::start(Options {
        hosts: vec![volume, Place::default()],
        // what the first host fetches doesn't reach the second at once
        agent_settings: format!("upload_bytes_per_second = {}", 1 << 20),
        ..Options::on_loopback(DEMO, rig.dir(), 0, rig.registry.addr())
    })
    .unwrap();
    cluster.wait_sessions(PATIENCE).unwrap();
    stage(&cluster, &[&rig.reference]);
    assert!(wait_until(PATIENCE, || rig.served() >= 24 << 20));
    // the volume is full from one moment to the next: what the first host holds stays, and it takes part in nothing
    let process = cluster.agents()[0].process().unwrap();
    let home = cluster.agents()[0].tart_home();
    let root = PathBuf::from(format!("/proc/{process}/root"));
    let filler = root.join(home.strip_prefix("/").unwrap()).join("filler");
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M"])
        .arg(format!("of={}", filler.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&filled.stderr);
    assert!(said.contains("No space left"), "{said}");
    let failed = Instant::now();
    let served = rig.served();
    let digest = rig.image.digest.to_string();
    assert!(wait_until(PATIENCE, || {
        let agent = &cluster.agents()[1];
        let present = agent.present(|line| line["image"].as_str() == Some(&digest));
        present.is_some()
    }));
    let took = failed.elapsed();
    let more = rig.served() - served;
    println!(
        "present on the other host {took:?} after the volume was full, {more} bytes more from the registry"
    );
    assert_eq!(
        rig.difference(&cluster.agents()[1].tart_home()).unwrap(),
        None
    );
    // at the registry's rate, and no wait for anything else
    assert!(took < Duration::from_secs(15), "{took:?}");
}
