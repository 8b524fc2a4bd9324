//! The real programs on bad days: a full disk, a disk that can't be written, a registry that isn't there, a host that
//! never comes back, a registry's directory that tart holds. Nothing is half-installed, the reason is said, and what
//! can go on goes on by itself.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say whether they ran"
)]

use std::{
    fs::File,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, Options, Place, said, wait_until},
    image::ImageSpec,
    rig::Rig,
    site::{self, PATIENCE},
};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn small() -> ImageSpec {
    ImageSpec::incompressible(24 << 20, 8 << 20, 1)
}

/// What the coordinator says of a host's part in the image.
fn host_status(cluster: &Cluster, image: &str, host: usize) -> Value {
    cluster.status(image).unwrap()["hosts"][host].clone()
}

fn is_present(cluster: &Cluster, rig: &Rig, host: usize) -> bool {
    cluster.agents()[host].holds(&rig.image.digest).is_some()
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn an_image_that_finds_no_room_is_refused_with_the_figures() {
    let rig = Rig::paced(&small(), None).unwrap();
    let home = rig.site.dir().join("mac-000/tart");
    let cluster = site::start(Options {
        hosts: vec![Place::on_volume(&home, "size=16m")],
        ..rig.site.options(DEMO, 0)
    });
    let cluster = cluster.unwrap();
    let staged = cluster
        .parbake(&["stage", &rig.reference, "--wait"])
        .unwrap();
    let said = said(&staged);
    assert_ne!(staged.status.code(), Some(0), "{said}");
    assert!(said.contains("mac-000"), "{said}");
    // what it needs, what there is
    let needs = rig.image.disk.size();
    assert!(said.contains("need") && said.contains("free"), "{said}");
    println!("needs {needs}; said {said}");
    let root = cluster.agents()[0].seen_tart_home().unwrap();
    let left: Vec<_> = std::fs::read_dir(root.join(".parbake"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["pid"]);
    assert!(!root.join("cache").exists());
    assert_eq!(rig.site.served(), 0);
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn a_volume_that_cannot_be_written_is_an_error_at_once() {
    let rig = Rig::paced(&small(), None).unwrap();
    let mut cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    cluster.kill_agent(0).unwrap();
    let agent = &cluster.agents()[0];
    let place = Place::on_volume(&agent.tart_home(), "ro");
    for arguments in [&["run"][..], &["stage", &rig.reference]] {
        let output = Command::new(&place.prefix[0])
            .args(&place.prefix[1..])
            .args([DEMO, "agent", "--config"])
            .arg(agent.dir.join("agent.toml"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            said.contains("read-only") && said.contains(".parbake"),
            "{arguments:?}: {said}"
        );
    }
}

#[test]
fn a_registry_that_is_down_at_first_is_named_and_then_staged_from() {
    let mut rig = Rig::paced(&small(), 6_000_000).unwrap();
    let mut cluster = rig.site.fleet(DEMO, 2, "", "").unwrap();
    rig.site.down();
    let staged = cluster
        .parbake(&["stage", &rig.reference, "--wait"])
        .unwrap();
    let told = said(&staged);
    assert_eq!(staged.status.code(), Some(2), "{told}");
    let registry = rig.site.registry.addr().to_string();
    assert!(
        told.contains(&rig.reference) && told.contains(&registry),
        "{told}"
    );
    rig.site.up();
    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || rig.site.served() > 6 << 20));

    // Everything starts again and finds no registry: what was asked for is remembered, waited for, and the wait is
    // named.
    rig.site.down();
    for host in 0..2 {
        cluster.kill_agent(host).unwrap();
    }
    cluster.kill_coordinator().unwrap();
    cluster.start_coordinator().unwrap();
    for host in 0..2 {
        cluster.start_agent(host).unwrap();
    }
    let why = || {
        let status = cluster.status(&rig.reference).unwrap();
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        let told = hosts.iter().chain([&status]).find_map(|said| {
            let reason = said["reason"].as_str()?;
            reason.starts_with("origin").then(|| reason.to_owned())
        });
        (told, status)
    };
    assert!(wait_until(PATIENCE, || why().0.is_some()), "{:#}", why().1);
    println!("said {:?}", why().0);
    rig.site.up();
    cluster
        .wait_present(&rig.image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
}

#[test]
fn a_lease_whose_holder_never_comes_back_passes_on() {
    let rig = Rig::paced(&small(), 3_000_000).unwrap();
    let mut cluster = rig.site.fleet(DEMO, 3, "", "").unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    let leases = |cluster: &Cluster| -> Vec<(String, u64)> {
        let leases = cluster.status(&rig.reference).unwrap()["leases"].clone();
        let leases = leases.as_array().cloned().unwrap_or_default();
        leases
            .iter()
            .map(|lease| {
                let host = lease["host"].as_str().unwrap().to_owned();
                (host, lease["chunks"].as_u64().unwrap())
            })
            .collect()
    };
    // amid a content
    let holder = || {
        let leases = leases(&cluster);
        let amid = leases.into_iter().find(|(_, chunks)| *chunks > 1)?;
        let agents = cluster.agents().iter();
        agents
            .map(|agent| &agent.host)
            .position(|host| *host == amid.0)
    };
    assert!(wait_until(PATIENCE, || holder().is_some()));
    let gone = holder().unwrap();
    cluster.kill_agent(gone).unwrap();
    let name = cluster.agents()[gone].host.clone();
    let passed_on = || leases(&cluster).iter().all(|(host, _)| *host != name);
    assert!(wait_until(Duration::from_secs(20), passed_on));
    for host in (0..3).filter(|host| *host != gone) {
        assert!(wait_until(PATIENCE, || is_present(&cluster, &rig, host)));
        let home = cluster.agents()[host].tart_home();
        assert_eq!(rig.difference(&home).unwrap(), None);
    }
    // the others had what it passed on; what it hadn't passed on is fetched again
    let again = rig.site.served().saturating_sub(rig.image.blob_bytes());
    println!("{again} bytes left the registry again");
    assert!(again <= 2 * 3_000_000, "{again}");
}

#[test]
fn an_image_waits_for_the_directory_that_tart_pulls_into() {
    let rig = Rig::paced(&small(), None).unwrap();
    let cluster = rig.site.fleet(DEMO, 2, "", "").unwrap();
    // as `tart pull` does: an exclusive flock on the registry's directory, for as long as the pull takes
    let home = cluster.agents()[0].tart_home();
    let disk = rig.disk(&home);
    let registry = disk.ancestors().nth(4).unwrap();
    assert!(registry.ends_with(rig.site.registry.addr().to_string().replace(':', "%3A")));
    std::fs::create_dir_all(registry).unwrap();
    let tart = File::open(registry).unwrap();
    tart.lock().unwrap();

    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || is_present(&cluster, &rig, 1)));
    let waits = || {
        let status = host_status(&cluster, &rig.reference, 0);
        status["held_bytes"] == status["total_bytes"]
            && (status["state"] == "installing" || status["reason"] == "tart_busy")
    };
    assert!(
        wait_until(PATIENCE, waits),
        "{:#}",
        cluster.status(&rig.reference).unwrap()
    );
    assert!(!disk.exists() && !is_present(&cluster, &rig, 0));

    tart.unlock().unwrap();
    assert!(wait_until(PATIENCE, || is_present(&cluster, &rig, 0)));
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
}

/// More images than the agent has threads for blocking work become whole while tart holds the lock that all of them
/// wait for: chunks of a further one arrive as if nothing waited, and an image that is cancelled holds up no look at
/// the disk.
#[test]
fn images_that_wait_for_tart_leave_room_for_chunks() {
    const WAITING: u64 = 17;
    let rig = Rig::paced(&small(), None).unwrap();
    let image = |name: &str, mebibytes: u64, seed: u64| {
        let spec = ImageSpec::incompressible(mebibytes << 20, mebibytes << 20, seed);
        let generated = rig.site.image(&spec).unwrap();
        rig.site
            .registry
            .hold(&format!("fleet/{name}"), "1", &generated)
    };
    let waiting: Vec<String> = (0..WAITING)
        .map(|number| image(&format!("small-{number}"), 1, 100 + number))
        .collect();
    let last = image("last", 16, 7);
    let cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    // one is present, and stays so
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    let home = cluster.agents()[0].tart_home();
    let disk = rig.disk(&home);
    let tart = File::open(disk.ancestors().nth(4).unwrap()).unwrap();
    tart.lock().unwrap();

    for reference in &waiting {
        cluster.stage(&[reference]).unwrap();
    }
    let holds_all = |reference: &str| {
        let status = host_status(&cluster, reference, 0);
        status["held_bytes"].as_u64() > Some(0) && status["held_bytes"] == status["total_bytes"]
    };
    assert!(wait_until(PATIENCE, || waiting
        .iter()
        .all(|one| holds_all(one))));
    let busy = || {
        waiting
            .iter()
            .all(|one| host_status(&cluster, one, 0)["reason"] == "tart_busy")
    };
    assert!(
        wait_until(Duration::from_secs(10), busy),
        "{:#}",
        cluster.status(&waiting[0]).unwrap()
    );

    let began = Instant::now();
    cluster.stage(&[&last]).unwrap();
    assert!(wait_until(PATIENCE, || holds_all(&last)));
    println!(
        "16 MiB beside {WAITING} waiting images: {:?}",
        began.elapsed()
    );
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );

    let cancelled = cluster.parbake(&["cancel", &waiting[0]]).unwrap();
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    let began = Instant::now();
    let gone = || host_status(&cluster, &waiting[0], 0)["state"] != "installing";
    assert!(wait_until(Duration::from_secs(10), gone));
    let looked = host_status(&cluster, &rig.reference, 0);
    assert_eq!(
        looked["state"],
        "present",
        "{looked} after {:?}",
        began.elapsed()
    );

    tart.unlock().unwrap();
    let present = |reference: &str| host_status(&cluster, reference, 0)["state"] == "present";
    assert!(wait_until(Duration::from_secs(20), || present(&last)
        && waiting[1..].iter().all(|one| present(one))));
}
