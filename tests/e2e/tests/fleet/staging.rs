//! The real programs on loopback: a coordinator and agents as processes stage an image from a registry that misbehaves,
//! and are killed at bad moments. Every host's disk is compared with the source, bit by bit.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say whether they ran"
)]

use std::{
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Agent, Cluster, Options, wait_until},
    docker_registry::{self, DockerRegistry},
    image::{Flaw, GeneratedImage, ImageSpec, Mix},
    registry::{self, Fault, Misbehaviour, Registry, Target},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longer than any of these takes on a busy machine; a wait ends as soon as its condition holds.
const PATIENCE: Duration = Duration::from_secs(120);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn spec(disk_mib: u64, layer_mib: u64) -> ImageSpec {
    let mut spec = ImageSpec::default();
    (spec.disk_bytes, spec.layer_bytes, spec.nvram_bytes) =
        (disk_mib << 20, layer_mib << 20, 1 << 20);
    (spec.repeated_layers, spec.layers_without_digest) = (0, 0);
    spec
}

/// Body bytes of blobs that left the registry.
fn served(registry: &Registry) -> u64 {
    registry
        .counters()
        .blobs
        .values()
        .map(|blob| blob.bytes)
        .sum()
}

fn cluster(dir: &TempDir, hosts: usize, registry: String) -> Cluster {
    cluster_with(dir, hosts, registry, "", "")
}

fn cluster_with(
    dir: &TempDir,
    hosts: usize,
    registry: String,
    agent: &str,
    coordinator: &str,
) -> Cluster {
    let cluster = Cluster::start(Options {
        agent_settings: agent.into(),
        coordinator_settings: coordinator.into(),
        ..Options::on_loopback(env!("CARGO_BIN_EXE_demo"), dir.path(), hosts, registry)
    });
    let cluster = cluster.unwrap();
    cluster.wait_sessions(PATIENCE).unwrap();
    cluster
}

/// A registry in this process that holds a generated image.
fn registry(
    runtime: &Runtime,
    dir: &TempDir,
    spec: &ImageSpec,
    rate_bytes_per_s: Option<u64>,
) -> (Registry, GeneratedImage, String) {
    let blobs = dir.path().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let image = spec.generate(&blobs).unwrap();
    let options = registry::Options {
        rate_bytes_per_s,
        ..registry::Options::default()
    };
    let registry = runtime.block_on(Registry::start(options)).unwrap();
    let reference = registry.hold("fleet/macos", "1", &image);
    (registry, image, reference)
}

fn disk(cluster: &Cluster, host: usize, reference: &str) -> PathBuf {
    let (name, tag) = reference.rsplit_once(':').unwrap();
    let (registry, path) = name.split_once('/').unwrap();
    let cache = cluster.agents()[host]
        .tart_home()
        .join("cache/OCIs")
        .join(registry.replace(':', "%3A"));
    cache.join(path).join(tag).join("disk.img")
}

fn assert_everywhere(cluster: &Cluster, image: &GeneratedImage, reference: &str) {
    for host in 0..cluster.agents().len() {
        let disk = disk(cluster, host, reference);
        assert_eq!(image.compare(&disk).unwrap(), None, "{}", disk.display());
        assert_eq!(
            std::fs::read(disk.with_file_name("manifest.json")).unwrap(),
            image.manifest
        );
        assert_eq!(
            std::fs::read(disk.with_file_name("nvram.bin")).unwrap(),
            image.nvram
        );
    }
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|error| {
        panic!(
            "{error}: stdout {text}, stderr {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// The image as `parbake status` has it.
fn status_of(cluster: &Cluster, image: &GeneratedImage) -> Value {
    let digest = image.digest.to_string();
    json(&cluster.parbake(&["status", &digest, "--json"]).unwrap())
}

#[test]
fn one_copy_leaves_the_registry_and_every_host_has_every_bit() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let mut spec = spec(48, 8);
    (spec.repeated_layers, spec.layers_without_digest) = (1, 1);
    let (registry, image, reference) = registry(&runtime, &dir, &spec, None);
    let cluster = cluster(&dir, 4, registry.addr().to_string());
    let staged = cluster
        .parbake(&["stage", &reference, "--wait", "--json"])
        .unwrap();
    assert!(
        staged.status.success(),
        "{}",
        String::from_utf8_lossy(&staged.stderr)
    );
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
    let sent = served(&registry);
    assert!(
        sent * 100 <= image.blob_bytes() * 102,
        "{sent} of {}",
        image.blob_bytes()
    );

    // what is there is there at once, also under another name of the same digest
    let before = Instant::now();
    assert!(
        cluster
            .parbake(&["stage", &reference, "--wait"])
            .unwrap()
            .status
            .success()
    );
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    let second = registry.hold("fleet/macos", "2", &image);
    assert!(
        cluster
            .parbake(&["stage", &second, "--wait"])
            .unwrap()
            .status
            .success()
    );
    assert_everywhere(&cluster, &image, &second);
    assert_eq!(served(&registry), sent);
    for arguments in [
        &["status", "--json"][..],
        &["hosts", "--json"],
        &["why", "mac-001", "--json"],
        &["plan", &reference, "--json"],
    ] {
        let output = cluster.parbake(arguments).unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        json(&output);
    }
    for agent in cluster.agents() {
        assert!(cluster.verify(agent, &reference).unwrap());
    }
}

#[test]
fn killed_agents_and_coordinator_resume() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(64, 8), Some(6 << 20));
    let mut cluster = cluster(&dir, 4, registry.addr().to_string());
    assert!(
        cluster
            .parbake(&["stage", &reference])
            .unwrap()
            .status
            .success()
    );
    let quarter = image.blob_bytes() / 4;
    let sent = |at_least: u64| {
        let reached = wait_until(PATIENCE, || served(&registry) >= at_least);
        assert!(reached, "registry sent {} of {at_least}", served(&registry));
    };
    sent(quarter);
    cluster.kill_agent(1).unwrap();
    cluster.kill_agent(2).unwrap();
    cluster.start_agent(1).unwrap();
    sent(2 * quarter);
    cluster.kill_coordinator().unwrap();
    cluster.start_agent(2).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.start_coordinator().unwrap();
    cluster.start_agent(0).unwrap();
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
    // a lease holder that was killed repeats at most what wasn't journaled, and re-enters a layer at a chunk's start
    let again = served(&registry);
    println!("registry sent {again} bytes of {}", image.blob_bytes());
    assert!(
        again * 100 <= image.blob_bytes() * 160,
        "{again} of {}",
        image.blob_bytes()
    );
}

#[test]
fn a_registry_with_bad_days_is_waited_for() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (mut registry, image, reference) = registry(&runtime, &dir, &spec(32, 8), Some(8 << 20));
    let cluster = cluster(&dir, 2, registry.addr().to_string());
    let status = |status: u16| Misbehaviour::Status {
        status,
        retry_after: Some("1".into()),
    };
    registry.script(Fault::times(Target::Blobs, status(429), 3));
    registry.script(Fault::times(
        Target::Blobs,
        Misbehaviour::CloseAfter(100_000),
        2,
    ));
    registry.script(Fault::times(Target::Blobs, status(503), 1));
    assert!(
        cluster
            .parbake(&["stage", &reference])
            .unwrap()
            .status
            .success()
    );
    assert!(wait_until(PATIENCE, || served(&registry) >= image.blob_bytes() / 3));
    runtime.block_on(registry.go_down());
    let down = || {
        let shown = status_of(&cluster, &image);
        shown["reason"] == "origin_down" && shown["message"].as_str().is_some()
    };
    assert!(wait_until(PATIENCE, down), "nobody noticed");
    runtime.block_on(registry.come_back());
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is_left_alone_by_the_whole_fleet() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(32, 4), None);
    let cluster = cluster(&dir, 3, registry.addr().to_string());
    // longer than a lease without progress lasts: it must not pass on to the next host
    let wish = Duration::from_secs(15);
    let refusal = Misbehaviour::Status {
        status: 429,
        retry_after: Some(wish.as_secs().to_string()),
    };
    let fault = registry.script(Fault::always(Target::Blobs, refusal));
    let staged = cluster.parbake(&["stage", &reference]).unwrap();
    assert!(staged.status.success());
    // one host's word holds the others up for five seconds; the word of a second is believed
    let believed = || {
        let shown = status_of(&cluster, &image);
        let message = shown["message"].as_str().unwrap_or_default();
        let left = (11..=15).any(|left| message.contains(&format!("asked again in {left} s")));
        shown["reason"] == "origin_throttled" && left
    };
    assert!(
        wait_until(PATIENCE, believed),
        "{}",
        status_of(&cluster, &image)
    );
    let refused_at = Instant::now();
    assert_eq!(status_of(&cluster, &image)["leases"], serde_json::json!([]));
    let why = json(&cluster.parbake(&["why", "mac-001", "--json"]).unwrap());
    let said = why["why"].to_string();
    assert!(
        said.contains("too many requests") && said.contains("asked again in"),
        "{why}"
    );
    let refused = registry.clear(fault);
    assert!((2..=5).contains(&refused), "{refused} requests");
    assert!(wait_until(PATIENCE, || {
        registry.counters().blob_requests > refused
    }));
    let left_alone = refused_at.elapsed();
    assert!(left_alone >= Duration::from_secs(10), "{left_alone:?}");
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
}

#[test]
fn a_bad_layer_is_named_and_nothing_is_installed() {
    for flaw in [
        Flaw::Corrupt(1),
        Flaw::Truncated(1),
        Flaw::Mislabelled(1),
        Flaw::Bomb(1, 4),
    ] {
        let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
        let (registry, image, reference) =
            registry(&runtime, &dir, &spec(24, 8).flawed(flaw), None);
        let cluster = cluster(&dir, 2, registry.addr().to_string());
        let staged = cluster
            .parbake(&["stage", &reference, "--wait", "--json"])
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&staged.stdout),
            String::from_utf8_lossy(&staged.stderr)
        );
        assert_eq!(staged.status.code(), Some(1), "{flaw:?}: {said}");
        let layer = image.layout().unwrap().layers()[1];
        let named = said.contains(&layer.blob.digest.to_string())
            || said.contains(&layer.raw.unwrap().to_string());
        assert!(named, "{flaw:?}: {said}");
        for host in 0..2 {
            assert!(!disk(&cluster, host, &reference).exists(), "{flaw:?}");
        }
    }
}

#[test]
fn a_registry_that_once_sends_false_bytes_is_held_against_no_host() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let mut spec = spec(24, 8);
    (spec.nvram_bytes, spec.layers_without_digest) = (6 << 20, 1);
    spec.mix = Mix {
        zero_percent: 0,
        compressible_percent: 0,
    };
    let (registry, image, reference) = registry(&runtime, &dir, &spec, Some(8 << 20));
    let layout = image.layout().unwrap();
    // incompressible, so that the false bytes decode, and show only at the end of the chain
    for blob in [
        layout.nvram(),
        layout.layers()[0].blob,
        layout.layers()[1].blob,
    ] {
        let corrupt = Misbehaviour::CorruptAt(blob.size * 2 / 5);
        registry.script(Fault::once(Target::Blob(blob.digest), corrupt));
    }
    let cluster = cluster(&dir, 4, registry.addr().to_string());
    let staged = cluster.parbake(&["stage", &reference, "--wait"]).unwrap();
    assert!(
        staged.status.success(),
        "{}",
        String::from_utf8_lossy(&staged.stderr)
    );
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
    let logs: Vec<Value> = cluster.agents().iter().flat_map(Agent::log).collect();
    let said = |log: &[Value], word: &str| {
        log.iter()
            .filter(|line| {
                line["message"]
                    .as_str()
                    .is_some_and(|message| message.contains(word))
            })
            .count()
    };
    assert_eq!(said(&logs, "taking back what was made of them"), 3);
    assert_eq!(said(&logs, "quarantined"), 0);
    let coordinator = cluster.coordinator_log();
    assert_eq!(said(&coordinator, "quarantined"), 0);
    // nobody who reads a log, or looks at a host, finds a host that is to blame
    let blames = |line: &&Value| line["level"] == "WARN" && line.get("maker").is_some();
    let named: Vec<&Value> = logs.iter().chain(&coordinator).filter(blames).collect();
    assert!(named.is_empty(), "{named:#?}");
    let hosts = json(&cluster.parbake(&["hosts", "--json"]).unwrap());
    for host in hosts.as_array().unwrap() {
        assert_eq!(host["blames"], 0, "{host}");
    }
}

#[test]
fn what_cannot_be_staged_is_refused_before_anything_moves() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, _, reference) = registry(
        &runtime,
        &dir,
        &spec(16, 8).flawed(Flaw::UnknownType(1)),
        None,
    );
    let cluster = cluster(&dir, 1, registry.addr().to_string());
    let missing = format!("{}/fleet/macos:nothing", registry.addr());
    let hostile = format!("{}/fleet/../../macos:1", registry.addr());
    for (image, word) in [
        (&reference, "asif"),
        (&missing, "nothing"),
        (&hostile, "reference"),
    ] {
        let output = cluster.parbake(&["stage", image, "--wait"]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{image}: {said}");
        assert!(said.contains(word), "{image}: {said}");
    }
    assert_eq!(registry.counters().blob_requests, 0);
}

#[test]
fn one_tart_home_takes_one_agent_and_a_host_stages_alone() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(24, 8), None);
    let mut cluster = cluster(&dir, 1, registry.addr().to_string());
    let settings = cluster.agents()[0].dir.join("agent.toml");
    let agent = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_demo"));
        command
            .arg("agent")
            .arg("--config")
            .arg(&settings)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let refused = agent(&["stage", &reference]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains(".parbake") && said.contains("process"),
        "{said}"
    );
    cluster.kill_agent(0).unwrap();
    let staged = agent(&["stage", &reference, "--json"]);
    assert!(
        staged.status.success(),
        "{}",
        String::from_utf8_lossy(&staged.stderr)
    );
    assert_eq!(json(&staged)["present"], true);
    assert_everywhere(&cluster, &image, &reference);
    assert!(agent(&["verify", &reference]).status.success());
    // one flipped bit on disk is found, and its layer named
    let disk = disk(&cluster, 0, &reference);
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[9 << 20] ^= 1;
    std::fs::write(&disk, bytes).unwrap();
    let verified = agent(&["verify", &reference, "--json"]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(
        json(&verified)["message"]
            .as_str()
            .unwrap()
            .contains("layer"),
        "{}",
        json(&verified)
    );
}

#[test]
fn a_token_that_expires_amid_a_layer_is_replaced_by_the_next() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let blobs = dir.path().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let image = spec(8, 8).generate(&blobs).unwrap();
    let (layer, bytes) = image.blobs.iter().max_by_key(|(_, size)| **size).unwrap();
    let life = Duration::from_secs(4);
    let options = registry::Options {
        auth: registry::Auth::Bearer {
            account: Some(("robot".into(), "secret".into())),
            life,
            announced: Some(life),
        },
        rate_bytes_per_s: Some(bytes / 8),
        ..registry::Options::default()
    };
    let registry = runtime.block_on(Registry::start(options)).unwrap();
    let reference = registry.hold("fleet/macos", "1", &image);
    // by then the token that it was begun with is no good any more
    registry.script(Fault::once(
        Target::Blob(*layer),
        Misbehaviour::CloseAfter(bytes * 3 / 4),
    ));
    let secret = dir.path().join("password");
    std::fs::write(&secret, "secret").unwrap();
    let coordinator = format!(
        "\n[origin.credentials.'{}']\nusername = 'robot'\npassword_file = '{}'\n",
        registry.addr(),
        secret.display()
    );
    let cluster = cluster_with(&dir, 1, registry.addr().to_string(), "", &coordinator);
    let staged = cluster.parbake(&["stage", &reference]).unwrap();
    assert!(staged.status.success());
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
    let failed = |line: &Value| line["reason"] == "origin_failed";
    let log = cluster.coordinator_log();
    assert!(!log.iter().any(failed), "a lease failed for its token");
}

#[test]
fn a_host_that_stages_alone_and_is_killed_goes_on_where_it_was() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(24, 8), Some(4 << 20));
    let mut cluster = cluster(&dir, 1, registry.addr().to_string());
    cluster.kill_agent(0).unwrap();
    let settings = cluster.agents()[0].dir.join("agent.toml");
    let stage = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_demo"));
        command
            .arg("agent")
            .arg("--config")
            .arg(&settings)
            .args(["stage", &reference, "--json"])
            .stdin(Stdio::null());
        command
    };
    let mut first = stage().stdout(Stdio::null()).spawn().unwrap();
    let half = image.blob_bytes() / 2;
    let reached = wait_until(PATIENCE, || served(&registry) >= half);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(reached, "{} of {half}", served(&registry));
    registry.limit(None);
    let second = stage().output().unwrap();
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    assert_everywhere(&cluster, &image, &reference);
    // half came before; lost are half a second of it, and a chunk of each of the four layers that were on their way
    let again = json(&second)["bytes"]["origin"].as_u64().unwrap();
    assert!(
        again * 100 <= image.blob_bytes() * 85,
        "{again} of {}",
        image.blob_bytes()
    );
}

#[test]
fn a_host_that_cant_store_blames_its_disk_and_not_the_registry() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let mut spec = spec(16, 4);
    spec.layers_without_digest = 1;
    let (registry, image, reference) = registry(&runtime, &dir, &spec, Some(64 << 10));
    let cluster = cluster(&dir, 2, registry.addr().to_string());
    let staged = cluster.parbake(&["stage", &reference]).unwrap();
    assert!(staged.status.success());
    // a layer without a raw digest is kept as a blob: where a file stands in its directory's place, it can't be stored
    let stage = image.digest.hex().to_string();
    let blobs: Vec<PathBuf> = (0..2)
        .map(|host| cluster.agents()[host].tart_home().join(".parbake"))
        .map(|root| root.join(&stage).join("blobs"))
        .collect();
    for blobs in &blobs {
        assert!(wait_until(PATIENCE, || std::fs::remove_dir(blobs).is_ok()));
        std::fs::write(blobs, b"in the way").unwrap();
    }
    registry.limit(None);
    let all_say_so = || {
        let shown = status_of(&cluster, &image);
        let hosts = shown["hosts"].as_array().cloned().unwrap_or_default();
        hosts.len() == 2 && hosts.iter().all(|host| host["reason"] == "not_stored")
    };
    assert!(
        wait_until(PATIENCE, all_say_so),
        "{}",
        status_of(&cluster, &image)
    );
    let reason = status_of(&cluster, &image)["reason"].clone();
    assert!(reason != "origin_down", "{reason}");
    for blobs in &blobs {
        std::fs::remove_file(blobs).unwrap();
    }
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_everywhere(&cluster, &image, &reference);
    let blamed = |line: &Value| line["reason"] == "origin_failed";
    assert!(!cluster.coordinator_log().iter().any(blamed));
}

#[test]
fn removed_images_lose_their_presence() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(16, 8), None);
    let cluster = cluster(&dir, 1, registry.addr().to_string());
    assert!(
        cluster
            .parbake(&["stage", &reference, "--wait"])
            .unwrap()
            .status
            .success()
    );
    let first = cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    std::fs::remove_dir_all(cluster.agents()[0].tart_home().join("cache/OCIs")).unwrap();
    // the agent notices within its five seconds and says so; the image is still wanted, so it comes back
    let withdrawn = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|said| said.contains("presence is withdrawn"))
    };
    assert!(wait_until(PATIENCE, || cluster.agents()[0]
        .log()
        .iter()
        .any(withdrawn)));
    let digest = image.digest.to_string();
    let again = || {
        let present = cluster.agents()[0].present(|line| line["image"].as_str() == Some(&digest));
        present.is_some_and(|present| present.at != first[0].at)
    };
    assert!(wait_until(PATIENCE, again), "the image didn't come back");
    assert_everywhere(&cluster, &image, &reference);
}

#[test]
fn a_bit_that_rots_on_disk_is_found_and_mended_by_a_peer() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (registry, image, reference) = registry(&runtime, &dir, &spec(8, 8), None);
    let mut cluster = cluster(&dir, 2, registry.addr().to_string());
    let staged = cluster.parbake(&["stage", &reference, "--wait"]).unwrap();
    assert!(staged.status.success());
    // also after a restart, which finds the image installed
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    let sent = served(&registry);
    let disk = disk(&cluster, 0, &reference);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&disk)
        .unwrap();
    let (mut byte, at) = ([0], (5 << 20) + 77);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    assert!(
        wait_until(PATIENCE, || image.compare(&disk).unwrap().is_none()),
        "not mended"
    );
    assert_eq!(
        served(&registry),
        sent,
        "the registry was asked for what a peer has"
    );
}

/// The same against Debian's docker-registry.
fn docker(auth: docker_registry::Auth) {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let registry = runtime.block_on(DockerRegistry::start(auth)).unwrap();
    let blobs = dir.path().join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let image = spec(48, 8).generate(&blobs).unwrap();
    let reference = registry.reference("fleet/macos", "1");
    let credentials = registry.credentials();
    let pushed = image.push(&reference, &credentials);
    runtime.block_on(pushed).unwrap();
    let host = registry.addr().to_string();
    let (mut agent, mut coordinator) = (String::new(), String::new());
    if let origin::Credentials::Basic { user, password } = registry.credentials() {
        let secret = dir.path().join("password");
        std::fs::write(&secret, password.expose()).unwrap();
        let table = |user_key: &str, table: &str| {
            format!(
                "\n[{table}.credentials.'{host}']\n{user_key} = '{user}'\npassword_file = '{}'\n",
                secret.display()
            )
        };
        agent = table("username", "origin");
        coordinator = table("username", "origin");
    }
    let cluster = cluster_with(&dir, 3, host, &agent, &coordinator);
    let staged = cluster
        .parbake(&["stage", &reference.whole(), "--wait"])
        .unwrap();
    assert!(
        staged.status.success(),
        "{}",
        String::from_utf8_lossy(&staged.stderr)
    );
    let present = cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    let origin: u64 = present.iter().map(|present| present.bytes[0]).sum();
    assert!(
        origin * 100 <= image.blob_bytes() * 102,
        "{origin} of {}",
        image.blob_bytes()
    );
    assert_everywhere(&cluster, &image, &reference.whole());
    println!("{origin} bytes of {}", image.blob_bytes());
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn docker_registry_anonymous() {
    docker(docker_registry::Auth::Anonymous);
}

#[test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
fn docker_registry_with_htpasswd() {
    docker(docker_registry::Auth::Htpasswd);
}

#[test]
fn an_image_that_shares_layers_with_one_that_is_being_staged_gets_what_is_here() {
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    // slow enough that the second comes while the first has chunks of every layer
    let first_spec = spec(32, 32);
    let (registry, first, first_reference) = registry(&runtime, &dir, &first_spec, Some(4_000_000));
    let mut second_spec = spec(32, 32);
    second_spec.nvram_bytes = 2 << 20;
    let blobs = dir.path().join("second");
    std::fs::create_dir_all(&blobs).unwrap();
    let second = second_spec.generate(&blobs).unwrap();
    let second_reference = registry.hold("fleet/macos", "2", &second);
    assert_ne!(first.digest, second.digest);
    let shared = |image: &GeneratedImage| {
        let layout = image.layout().unwrap();
        layout
            .layers()
            .iter()
            .map(|layer| layer.raw)
            .collect::<Vec<_>>()
    };
    assert_eq!(shared(&first), shared(&second));

    let cluster = cluster(&dir, 2, registry.addr().to_string());
    let begun = cluster.parbake(&["stage", &first_reference]).unwrap();
    assert!(begun.status.success());
    let moving = wait_until(PATIENCE, || {
        let status = json(
            &cluster
                .parbake(&["status", &first_reference, "--json"])
                .unwrap(),
        );
        let hosts = status["hosts"].as_array().unwrap().clone();
        hosts.iter().all(|host| {
            let held = host["held_bytes"].as_u64().unwrap();
            held > 2 << 20 && held < host["total_bytes"].as_u64().unwrap()
        })
    });
    assert!(moving);
    for reference in [&second_reference, &first_reference] {
        let staged = cluster.parbake(&["stage", reference, "--wait"]).unwrap();
        assert!(
            staged.status.success(),
            "{}",
            String::from_utf8_lossy(&staged.stderr)
        );
    }
    assert_everywhere(&cluster, &first, &first_reference);
    assert_everywhere(&cluster, &second, &second_reference);
    let once = first.blob_bytes() + (3 << 20);
    assert!(served(&registry) <= once, "{} of {once}", served(&registry));
}
