//! Peers that are killed and come back, and a peer whose disk fails: what they hold is had from them as soon as they
//! are back, and what they can't give any more is fetched anew at once.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Options, Place, wait_until},
    image::ImageSpec,
    registry,
    rig::Rig,
    site::{self, PATIENCE},
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// What each host sends: a staging takes seconds.
const UPLOAD_BYTES_PER_S: u64 = 4 << 20;

/// Bytes of the image that left the registry.
fn served(rig: &Rig) -> u64 {
    let layers = rig.image.layout().unwrap();
    let counters = rig.site.registry.counters();
    let blobs = layers
        .layers()
        .iter()
        .filter_map(|layer| counters.blobs.get(&layer.blob.digest));
    blobs.map(|blob| blob.bytes).sum()
}

/// Two hosts hold the image and a third one gets it from them, when both are killed and started again. Returns how long
/// the third one stood still.
fn killed_peers(busy: bool) -> Duration {
    let spec = ImageSpec::incompressible(96 << 20, 16 << 20, 1);
    let rig = Rig::new(&spec, registry::Options::default()).unwrap();
    let settings = format!("upload_bytes_per_second = {UPLOAD_BYTES_PER_S}");
    let mut cluster = rig.site.fleet(DEMO, 4, &settings, "").unwrap();
    cluster
        .stage(&[&rig.reference, "--hosts", "mac-000,mac-001", "--wait"])
        .unwrap();
    if busy {
        // another image that is staged on a fourth host meanwhile, slowly: the fleet never stands still
        let other = ImageSpec::incompressible(32 << 20, 8 << 20, 2);
        let other = rig.site.image(&other).unwrap();
        rig.site.registry.limit(Some(512 << 10));
        let reference = rig.site.registry.hold("fleet/other", "1", &other);
        cluster.stage(&[&reference, "--hosts", "mac-003"]).unwrap();
    }
    let served = served(&rig);
    cluster
        .stage(&[&rig.reference, "--hosts", "mac-002"])
        .unwrap();
    let begun = wait_until(PATIENCE, || {
        cluster.agents()[2].received("peers") >= 16 << 20
    });
    assert!(
        begun,
        "{} bytes came",
        cluster.agents()[2].received("peers")
    );

    for host in [0, 1] {
        cluster.kill_agent(host).unwrap();
    }
    for host in [0, 1] {
        cluster.start_agent(host).unwrap();
    }
    let back = Instant::now();
    // what was on its way still comes
    let before = cluster.agents()[2].received("peers");
    let on = wait_until(PATIENCE, || {
        cluster.agents()[2].received("peers") >= before + (4 << 20)
    });
    assert!(on, "{}", cluster.agents()[2].received("peers"));
    let stood = back.elapsed();
    println!("busy {busy}: 4 MiB more from peers {stood:?} after they came back");
    let present = || cluster.agents()[2].holds(&rig.image.digest).is_some();
    assert!(wait_until(PATIENCE, present));
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

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn what_a_host_with_a_failed_disk_held_is_fetched_anew_at_once() {
    let spec = ImageSpec::incompressible(64 << 20, 4 << 20, 1);
    let rig = Rig::paced(&spec, 6 << 20).unwrap();
    let volume = Place::on_volume(&rig.site.dir().join("mac-000/tart"), "size=512m");
    let cluster = site::start(Options {
        hosts: vec![volume, Place::default()],
        // what the first host fetches doesn't reach the second at once
        agent_settings: format!("upload_bytes_per_second = {}", 1 << 20),
        ..rig.site.options(DEMO, 0)
    });
    let cluster = cluster.unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || rig.site.served() >= 24 << 20));
    // the volume is full from one moment to the next: what the first host holds stays, and it takes part in nothing
    let filler = cluster.agents()[0].seen_tart_home().unwrap().join("filler");
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M"])
        .arg(format!("of={}", filler.display()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&filled.stderr);
    assert!(said.contains("No space left"), "{said}");
    let failed = Instant::now();
    let served = rig.site.served();
    let present = || cluster.agents()[1].holds(&rig.image.digest).is_some();
    assert!(wait_until(PATIENCE, present));
    let took = failed.elapsed();
    let more = rig.site.served() - served;
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
