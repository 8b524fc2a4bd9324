//! Several images for the same hosts: an order among them, and the first one is finished first.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::{cell::Cell, time::Instant};

use e2e::{
    cluster::{Cluster, Options, Place, said, wait_until},
    image::{GeneratedImage, ImageSpec},
    rig::Rig,
    site::{self, PATIENCE},
    tart_home,
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

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn a_host_without_room_for_all_keeps_the_first_and_says_so_of_the_others() {
    let spec = ImageSpec::incompressible(24 << 20, 2 << 20, 1);
    let rig = Rig::paced(&spec, 3 << 20).unwrap();
    let home = rig.site.dir().join("mac-000/tart");
    // one image fits, and no second one
    let cluster = site::start(Options {
        hosts: vec![Place::on_volume(&home, "size=40m")],
        ..rig.site.options(DEMO, 0)
    })
    .unwrap();
    let image = |seed| {
        let image = rig
            .site
            .image(&ImageSpec {
                seed,
                ..spec.clone()
            })
            .unwrap();
        let name = rig
            .site
            .registry
            .hold("fleet/macos", &seed.to_string(), &image);
        (image, name)
    };
    let told = |image: &GeneratedImage| {
        let shown = cluster.status(&image.digest.to_string()).unwrap();
        let host = &shown["hosts"][0];
        let text = |name: &str| host[name].as_str().unwrap_or_default().to_owned();
        (text("reason"), text("message"))
    };
    let lacks = |image: &GeneratedImage, kept: &str| {
        let (reason, message) = told(image);
        reason == "no_room" && message.contains(kept)
    };

    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || rig.site.served() > 4 << 20));
    // asked for later: room is kept for the one that was asked for first
    let (second, second_name) = image(2);
    cluster.stage(&[&second_name]).unwrap();
    let kept = format!("promised to other images ({})", rig.reference);
    assert!(
        wait_until(PATIENCE, || lacks(&second, &kept)),
        "{:?}",
        told(&second)
    );
    assert_eq!(told(&rig.image).0, "staging");
    // an urgent one takes the room of the first one
    let (urgent, urgent_name) = image(3);
    cluster.stage(&[&urgent_name, "--priority", "5"]).unwrap();
    let kept = format!("its room is kept for {urgent_name}, which comes before it on this host");
    let gave_way = wait_until(PATIENCE, || lacks(&rig.image, &kept));
    assert!(gave_way, "{:?}", told(&rig.image));
    let why = said(&cluster.parbake(&["why", "mac-000"]).unwrap());
    assert!(why.contains(&kept) && why.contains(&second_name), "{why}");
    cluster
        .wait_present(&urgent.digest.to_string(), PATIENCE)
        .unwrap();
    let home = cluster.agents()[0].seen_tart_home().unwrap();
    let by_digest = format!("{}@{}", urgent_name.trim_end_matches(":3"), urgent.digest);
    assert_eq!(
        tart_home::difference(&home, &by_digest, &urgent).unwrap(),
        None
    );
    // the others wait for room, and neither takes what the other lacks
    for image in [&rig.image, &second] {
        assert!(wait_until(PATIENCE, || lacks(image, "are lacking")));
    }
}
