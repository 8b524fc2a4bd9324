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
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, Options, Place, wait_until},
    docker_registry::{self, DockerRegistry},
    image::{GeneratedImage, ImageSpec},
    registry,
    rig::{PATIENCE, Rig},
};
use serde_json::Value;
use tempfile::TempDir;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn small() -> ImageSpec {
    ImageSpec::incompressible(24 << 20, 8 << 20, 1)
}

fn throttled(bytes_per_s: u64) -> registry::Options {
    registry::Options {
        rate_bytes_per_s: Some(bytes_per_s),
        ..registry::Options::default()
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A host whose tart home is a volume of its own, which nobody else sees and which goes with the process.
fn on_volume(home: &Path, options: &str) -> Place {
    let mount = format!(
        "mount -t tmpfs -o {options} parbake-test {} && exec \"$@\"",
        home.display()
    );
    let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    Place {
        prefix: words.map(str::to_owned).to_vec(),
        ..Place::default()
    }
}

/// A path as the process of this host sees it.
fn seen_by(cluster: &Cluster, host: usize, path: &Path) -> PathBuf {
    let process = cluster.agents()[host].process().unwrap();
    let root = PathBuf::from(format!("/proc/{process}/root"));
    root.join(path.strip_prefix("/").unwrap())
}

fn status(cluster: &Cluster, image: &str) -> Value {
    let output = cluster.parbake(&["status", image, "--json"]).unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// What the coordinator says of a host's part in the image.
fn host_status(cluster: &Cluster, image: &str, host: usize) -> Value {
    status(cluster, image)["hosts"][host].clone()
}

fn is_present(cluster: &Cluster, rig: &Rig, host: usize) -> bool {
    let digest = rig.image.digest.to_string();
    cluster.agents()[host]
        .present(|line| line["image"].as_str() == Some(&digest))
        .is_some()
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn an_image_that_finds_no_room_is_refused_with_the_figures() {
    let rig = Rig::new(&small(), registry::Options::default()).unwrap();
    let home = rig.dir().join("mac-000/tart");
    let hosts = vec![on_volume(&home, "size=16m")];
    let cluster = rig.cluster(DEMO, hosts, "", "").unwrap();
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
    let root = seen_by(&cluster, 0, &home);
    let left: Vec<_> = std::fs::read_dir(root.join(".parbake"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["pid"]);
    assert!(!root.join("cache").exists());
    assert_eq!(rig.served(), 0);
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn a_volume_that_cannot_be_written_is_an_error_at_once() {
    let rig = Rig::new(&small(), registry::Options::default()).unwrap();
    let mut cluster = rig.cluster(DEMO, vec![Place::default()], "", "").unwrap();
    cluster.kill_agent(0).unwrap();
    let agent = &cluster.agents()[0];
    let place = on_volume(&agent.tart_home(), "ro");
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
    let mut rig = Rig::new(&small(), throttled(6_000_000)).unwrap();
    let mut cluster = rig
        .cluster(DEMO, vec![Place::default(); 2], "", "")
        .unwrap();
    rig.down();
    let staged = cluster
        .parbake(&["stage", &rig.reference, "--wait"])
        .unwrap();
    let told = said(&staged);
    assert_eq!(staged.status.code(), Some(2), "{told}");
    let registry = rig.registry.addr().to_string();
    assert!(
        told.contains(&rig.reference) && told.contains(&registry),
        "{told}"
    );
    rig.up();
    let staged = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    assert!(wait_until(PATIENCE, || rig.served() > 6 << 20));

    // Everything starts again and finds no registry: what was asked for is remembered, waited for, and the wait is
    // named.
    rig.down();
    for host in 0..2 {
        cluster.kill_agent(host).unwrap();
    }
    cluster.kill_coordinator().unwrap();
    cluster.start_coordinator().unwrap();
    for host in 0..2 {
        cluster.start_agent(host).unwrap();
    }
    let why = || {
        let status = status(&cluster, &rig.reference);
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        let told = hosts.iter().chain([&status]).find_map(|said| {
            let reason = said["reason"].as_str()?;
            reason.starts_with("origin").then(|| reason.to_owned())
        });
        (told, status)
    };
    assert!(wait_until(PATIENCE, || why().0.is_some()), "{:#}", why().1);
    println!("said {:?}", why().0);
    rig.up();
    cluster
        .wait_present(&rig.image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
}

#[test]
fn a_lease_whose_holder_never_comes_back_passes_on() {
    let rig = Rig::new(&small(), throttled(3_000_000)).unwrap();
    let mut cluster = rig
        .cluster(DEMO, vec![Place::default(); 3], "", "")
        .unwrap();
    let staged = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    let leases = |cluster: &Cluster| -> Vec<(String, u64)> {
        let leases = status(cluster, &rig.reference)["leases"].clone();
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
    let again = rig.served().saturating_sub(rig.image.blob_bytes());
    println!("{again} bytes left the registry again");
    assert!(again <= 2 * 3_000_000, "{again}");
}

#[test]
fn an_image_waits_for_the_directory_that_tart_pulls_into() {
    let rig = Rig::new(&small(), registry::Options::default()).unwrap();
    let cluster = rig
        .cluster(DEMO, vec![Place::default(); 2], "", "")
        .unwrap();
    // as `tart pull` does: an exclusive flock on the registry's directory, for as long as the pull takes
    let home = cluster.agents()[0].tart_home();
    let disk = rig.disk(&home);
    let registry = disk.ancestors().nth(4).unwrap();
    assert!(registry.ends_with(rig.registry.addr().to_string().replace(':', "%3A")));
    std::fs::create_dir_all(registry).unwrap();
    let tart = File::open(registry).unwrap();
    tart.lock().unwrap();

    let staged = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    assert!(wait_until(PATIENCE, || is_present(&cluster, &rig, 1)));
    let waits = || {
        let status = host_status(&cluster, &rig.reference, 0);
        status["held_bytes"] == status["total_bytes"]
            && (status["state"] == "installing" || status["reason"] == "tart_busy")
    };
    assert!(
        wait_until(PATIENCE, waits),
        "{:#}",
        status(&cluster, &rig.reference)
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
    let rig = Rig::new(&small(), registry::Options::default()).unwrap();
    let image = |name: &str, mebibytes: u64, seed: u64| {
        let blobs = rig.dir().join(name);
        std::fs::create_dir_all(&blobs).unwrap();
        let spec = ImageSpec::incompressible(mebibytes << 20, mebibytes << 20, seed);
        let generated = spec.generate(&blobs).unwrap();
        rig.registry.hold(&format!("fleet/{name}"), "1", &generated)
    };
    let waiting: Vec<String> = (0..WAITING)
        .map(|number| image(&format!("small-{number}"), 1, 100 + number))
        .collect();
    let last = image("last", 16, 7);
    let cluster = rig.cluster(DEMO, vec![Place::default()], "", "").unwrap();
    // one is present, and stays so
    let staged = cluster
        .parbake(&["stage", &rig.reference, "--wait"])
        .unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    let home = cluster.agents()[0].tart_home();
    let disk = rig.disk(&home);
    let tart = File::open(disk.ancestors().nth(4).unwrap()).unwrap();
    tart.lock().unwrap();

    for reference in &waiting {
        let staged = cluster.parbake(&["stage", reference]).unwrap();
        assert!(staged.status.success(), "{}", said(&staged));
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
        status(&cluster, &waiting[0])
    );

    let began = Instant::now();
    let staged = cluster.parbake(&["stage", &last]).unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
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

/// Debian's registry with an image in it.
struct Docker {
    registry: DockerRegistry,
    image: GeneratedImage,
    reference: String,
    dir: TempDir,
}

/// A docker-registry that has an image.
fn docker(auth: docker_registry::Auth, spec: &ImageSpec) -> Docker {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blobs = dir.path().join("blobs");
    std::fs::create_dir(&blobs).unwrap();
    let image = spec.generate(&blobs).unwrap();
    let registry = runtime.block_on(DockerRegistry::start(auth)).unwrap();
    let reference = registry.reference("fleet/macos", "1");
    let credentials = registry.credentials();
    let pushed = image.push(&reference, &credentials);
    runtime.block_on(pushed).unwrap();
    Docker {
        registry,
        image,
        reference: reference.whole(),
        dir,
    }
}

impl Docker {
    fn cluster(&self, hosts: usize, agent: &str, coordinator: &str) -> Cluster {
        let cluster = Cluster::start(Options {
            agent_settings: agent.into(),
            coordinator_settings: coordinator.into(),
            ..Options::on_loopback(DEMO, self.dir.path(), hosts, self.registry.addr())
        });
        let cluster = cluster.unwrap();
        cluster.wait_sessions(PATIENCE).unwrap();
        cluster
    }
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn docker_registry_that_refuses_the_password_is_named() {
    let docker = docker(docker_registry::Auth::Htpasswd, &small());
    let password = docker.dir.path().join("password");
    std::fs::write(&password, "half-baked").unwrap();
    let (user, _) = docker.registry.account().unwrap();
    let registry = docker.registry.addr().to_string();
    let credentials = format!(
        "\n[origin.credentials.'{registry}']\nusername = '{user}'\npassword_file = '{}'\n",
        password.display()
    );
    let cluster = docker.cluster(1, &credentials, &credentials);
    let staged = cluster
        .parbake(&["stage", &docker.reference, "--wait"])
        .unwrap();
    let told = said(&staged);
    assert_eq!(staged.status.code(), Some(2), "{told}");
    for word in [docker.reference.as_str(), "credentials"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(!told.contains("half-baked"), "{told}");
    // with the right one it goes on, without a restart
    let (_, right) = docker.registry.account().unwrap();
    std::fs::write(&password, right).unwrap();
    let staged = cluster
        .parbake(&["stage", &docker.reference, "--wait"])
        .unwrap();
    assert!(staged.status.success(), "{}", said(&staged));
    cluster
        .wait_present(&docker.image.digest.to_string(), PATIENCE)
        .unwrap();
}
