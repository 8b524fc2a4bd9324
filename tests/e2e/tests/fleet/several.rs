//! Several images for the same hosts: an order among them, and the first one is finished first.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::{cell::Cell, time::Instant};

use e2e::{
    cluster::{Cluster, wait_until},
    image::{GeneratedImage, ImageSpec},
    rig::Rig,
    site::PATIENCE,
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// The number of hosts that hold an image.
fn present(cluster: &Cluster, image: &GeneratedImage) -> u64 {
    let shown = cluster.status(&image.digest.to_string()).unwrap();
    shown["hosts_present"].as_u64().unwrap_or_default()
}

#[test]
fn an_image_of_higher_priority_is_installed_everywhere_before_one_that_was_asked_for_earlier() {
    const HOSTS: usize = 3;
    let spec = ImageSpec::incompressible(48 << 20, 2 << 20, 1);
    let rig = Rig::paced(&spec, 8 << 20).unwrap();
    let cluster = rig.site.fleet(DEMO, HOSTS, "", "").unwrap();
    let urgent = rig.site.image(&ImageSpec { seed: 2, ..spec }).unwrap();
    let reference = rig.site.registry.hold("fleet/macos", "urgent", &urgent);
    let begun = Instant::now();
    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || rig.site.served() > 4 << 20));
    cluster.stage(&[&reference, "--priority", "5"]).unwrap();
    let shown = cluster.status(&urgent.digest.to_string()).unwrap();
    assert_eq!(shown["priority"], 5, "{shown}");
    let earlier = Cell::new(0);
    let first = wait_until(PATIENCE, || {
        // asked for in this order, or the first image's last host could be missed
        earlier.set(present(&cluster, &rig.image));
        present(&cluster, &urgent) == HOSTS as u64
    });
    let first_after = begun.elapsed();
    let earlier = earlier.get();
    assert!(first && earlier == 0, "{earlier} hosts had the other image");
    rig.arrives(&cluster).unwrap();
    println!(
        "urgent after {first_after:?}, both after {:?}",
        begun.elapsed()
    );
    // two copies left the registry, and no third one
    let both = rig.image.blob_bytes() + urgent.blob_bytes();
    assert!(rig.site.served() * 100 <= both * 110);
    assert!(
        cluster
            .agents()
            .iter()
            .all(|agent| cluster.verify(agent, &reference).unwrap())
    );
}
