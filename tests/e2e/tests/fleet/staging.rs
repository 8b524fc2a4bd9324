//! The real programs on loopback: a coordinator and agents as processes stage an image from a registry that misbehaves,
//! and are killed at bad moments. Every host's disk is compared with the source, bit by bit.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say whether they ran"
)]

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Agent, Cluster, said, wait_until},
    image::{Flaw, GeneratedImage, ImageSpec, Mix},
    registry::{self, Fault, Misbehaviour, Target},
    rig::Rig,
    site::{self, PATIENCE},
};
use proto::{Digest, image::MANIFEST_TYPE};
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn fleet(rig: &Rig, hosts: usize) -> Cluster {
    rig.site.fleet(DEMO, hosts, "", "").unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// The image as `parbake status` has it.
fn status_of(cluster: &Cluster, image: &GeneratedImage) -> Value {
    cluster.status(&image.digest.to_string()).unwrap()
}

/// Runs a command of the first host's agent, beside the agent itself or in its place.
fn agent(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(DEMO);
    command
        .args(["agent", "--config"])
        .arg(cluster.agents()[0].dir.join("agent.toml"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[test]
fn one_copy_leaves_the_registry_and_every_host_has_every_bit() {
    let mut spec = ImageSpec::plain(48, 8);
    (spec.repeated_layers, spec.layers_without_digest) = (1, 1);
    let rig = Rig::paced(&spec, None).unwrap();
    let cluster = fleet(&rig, 4);
    cluster
        .stage(&[&rig.reference, "--wait", "--json"])
        .unwrap();
    rig.arrives(&cluster).unwrap();
    let sent = rig.site.served();
    assert!(
        sent * 100 <= rig.image.blob_bytes() * 102,
        "{sent} of {}",
        rig.image.blob_bytes()
    );

    // what is there is there at once, also under another name of the same digest
    let before = Instant::now();
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
    let second = rig.site.registry.hold("fleet/macos", "2", &rig.image);
    cluster.stage(&[&second, "--wait"]).unwrap();
    let difference = site::difference(&cluster, &second, &rig.image);
    assert_eq!(difference.unwrap(), None);
    assert_eq!(rig.site.served(), sent);
    for arguments in [
        &["status", "--json"][..],
        &["hosts", "--json"],
        &["why", "mac-001", "--json"],
        &["plan", &rig.reference, "--json"],
    ] {
        let output = cluster.parbake(arguments).unwrap();
        let told = said(&output);
        assert!(output.status.success(), "{arguments:?}: {told}");
        json(&output);
    }
    for agent in cluster.agents() {
        assert!(cluster.verify(agent, &rig.reference).unwrap());
    }
}

#[test]
fn killed_agents_and_coordinator_resume() {
    let rig = Rig::paced(&ImageSpec::plain(64, 8), 6 << 20).unwrap();
    let mut cluster = fleet(&rig, 4);
    cluster.stage(&[&rig.reference]).unwrap();
    let quarter = rig.image.blob_bytes() / 4;
    let sent = |at_least: u64| {
        let reached = wait_until(PATIENCE, || rig.site.served() >= at_least);
        assert!(reached, "registry sent {} of {at_least}", rig.site.served());
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
    rig.arrives(&cluster).unwrap();
    // a lease holder that was killed repeats at most what wasn't journaled, and re-enters a layer at a chunk's start
    let again = rig.site.served();
    println!("registry sent {again} bytes of {}", rig.image.blob_bytes());
    assert!(
        again * 100 <= rig.image.blob_bytes() * 160,
        "{again} of {}",
        rig.image.blob_bytes()
    );
}

#[test]
fn a_registry_with_bad_days_is_waited_for() {
    let mut rig = Rig::paced(&ImageSpec::plain(32, 8), 8 << 20).unwrap();
    let cluster = fleet(&rig, 2);
    let registry = &rig.site.registry;
    for (what, times) in [
        (Misbehaviour::come_back(429, 1), 3),
        (Misbehaviour::CloseAfter(100_000), 2),
        (Misbehaviour::come_back(503, 1), 1),
    ] {
        registry.script(Fault::times(Target::Blobs, what, times));
    }
    cluster.stage(&[&rig.reference]).unwrap();
    assert!(wait_until(PATIENCE, || rig.site.served() >= rig.image.blob_bytes() / 3));
    rig.site.down();
    let down = || {
        let shown = status_of(&cluster, &rig.image);
        shown["reason"] == "origin_down" && shown["message"].as_str().is_some()
    };
    assert!(wait_until(PATIENCE, down), "nobody noticed");
    rig.site.up();
    rig.arrives(&cluster).unwrap();
}

#[test]
fn a_registry_that_asks_to_be_left_alone_is_left_alone_by_the_whole_fleet() {
    let rig = Rig::paced(&ImageSpec::plain(32, 4), None).unwrap();
    let cluster = fleet(&rig, 3);
    // longer than a lease without progress lasts: it must not pass on to the next host
    let wish = Duration::from_secs(15);
    let refusal = Misbehaviour::come_back(429, wish.as_secs());
    let refusal = Fault::always(Target::Blobs, refusal);
    let fault = rig.site.registry.script(refusal);
    cluster.stage(&[&rig.reference]).unwrap();
    // one host's word holds the others up for five seconds; the word of a second is believed
    let believed = || {
        let shown = status_of(&cluster, &rig.image);
        let message = shown["message"].as_str().unwrap_or_default();
        let left = (11..=15).any(|left| message.contains(&format!("asked again in {left} s")));
        shown["reason"] == "origin_throttled" && left
    };
    assert!(
        wait_until(PATIENCE, believed),
        "{}",
        status_of(&cluster, &rig.image)
    );
    let refused_at = Instant::now();
    assert_eq!(
        status_of(&cluster, &rig.image)["leases"],
        serde_json::json!([])
    );
    let why = json(&cluster.parbake(&["why", "mac-001", "--json"]).unwrap());
    let said = why["why"].to_string();
    assert!(
        said.contains("too many requests") && said.contains("asked again in"),
        "{why}"
    );
    let refused = rig.site.registry.clear(fault);
    assert!((2..=5).contains(&refused), "{refused} requests");
    assert!(wait_until(PATIENCE, || {
        rig.site.registry.counters().blob_requests > refused
    }));
    let left_alone = refused_at.elapsed();
    assert!(left_alone >= Duration::from_secs(10), "{left_alone:?}");
    rig.arrives(&cluster).unwrap();
}

#[test]
fn a_bad_layer_is_named_and_nothing_is_installed() {
    for flaw in [
        Flaw::Corrupt(1),
        Flaw::Truncated(1),
        Flaw::Mislabelled(1),
        Flaw::Bomb(1, 4),
    ] {
        let rig = Rig::paced(&ImageSpec::plain(24, 8).flawed(flaw), None).unwrap();
        let cluster = fleet(&rig, 2);
        let staged = cluster
            .parbake(&["stage", &rig.reference, "--wait", "--json"])
            .unwrap();
        let said = said(&staged);
        assert_eq!(staged.status.code(), Some(1), "{flaw:?}: {said}");
        let layer = rig.image.layout().unwrap().layers()[1];
        let named = said.contains(&layer.blob.digest.to_string())
            || said.contains(&layer.raw.unwrap().to_string());
        assert!(named, "{flaw:?}: {said}");
        for agent in cluster.agents() {
            assert!(!rig.disk(&agent.tart_home()).exists(), "{flaw:?}");
        }
    }
}

#[test]
fn a_registry_that_once_sends_false_bytes_is_held_against_no_host() {
    let mut spec = ImageSpec::plain(24, 8);
    (spec.nvram_bytes, spec.layers_without_digest) = (6 << 20, 1);
    spec.mix = Mix {
        zero_percent: 0,
        compressible_percent: 0,
    };
    let rig = Rig::paced(&spec, 8 << 20).unwrap();
    let layout = rig.image.layout().unwrap();
    // incompressible, so that the false bytes decode, and show only at the end of the chain
    for blob in [
        layout.nvram(),
        layout.layers()[0].blob,
        layout.layers()[1].blob,
    ] {
        let corrupt = Misbehaviour::CorruptAt(blob.size * 2 / 5);
        rig.site
            .registry
            .script(Fault::once(Target::Blob(blob.digest), corrupt));
    }
    let cluster = fleet(&rig, 4);
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    rig.arrives(&cluster).unwrap();
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
    let rig = Rig::paced(&ImageSpec::plain(16, 8).flawed(Flaw::UnknownType(1)), None).unwrap();
    let cluster = fleet(&rig, 1);
    let missing = format!("{}/fleet/macos:nothing", rig.site.registry.addr());
    let hostile = format!("{}/fleet/../../macos:1", rig.site.registry.addr());
    for (image, word) in [
        (&rig.reference, "disk.v3"),
        (&missing, "nothing"),
        (&hostile, "reference"),
    ] {
        let output = cluster.parbake(&["stage", image, "--wait"]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{image}: {said}");
        assert!(said.contains(word), "{image}: {said}");
    }
    assert_eq!(rig.site.registry.counters().blob_requests, 0);
}

#[test]
fn images_of_lume_are_refused_by_the_type_of_their_layers() {
    let rig = Rig::paced(&ImageSpec::plain(8, 8), None).unwrap();
    let cluster = fleet(&rig, 1);
    let part = "application/vnd.oci.image.layer.v1.tar;part.number=1;part.total=1";
    for (kind, layer) in [
        ("oci", "application/vnd.trycua.lume.disk.v1"),
        ("legacy", "application/octet-stream+lz4"),
        ("sharded", part),
    ] {
        let blob = json!({ "digest": Digest::of(kind.as_bytes()).to_string(), "size": 6 });
        let with = |media_type: &str| {
            let mut of = blob.clone();
            of["mediaType"] = media_type.into();
            of
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": with("application/vnd.trycua.lume.config.v1+json"),
            "layers": [with(layer)],
        });
        let bytes = manifest.to_string().into();
        let registry = &rig.site.registry;
        registry.put_manifest("fleet/lume", kind, MANIFEST_TYPE, bytes);
        let reference = registry.reference("fleet/lume", kind).to_string();
        let refused = cluster.parbake(&["stage", &reference, "--wait"]).unwrap();
        let said = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{kind}: {said}");
        assert!(said.contains(layer), "{kind}: {said}");
    }
    assert_eq!(rig.site.registry.counters().blob_requests, 0);
}

#[test]
fn one_tart_home_takes_one_agent_and_a_host_stages_alone() {
    let rig = Rig::paced(&ImageSpec::plain(24, 8), None).unwrap();
    let mut cluster = fleet(&rig, 1);
    let run = |cluster: &Cluster, arguments: &[&str]| agent(cluster, arguments).output().unwrap();
    let refused = run(&cluster, &["stage", &rig.reference]);
    assert_eq!(refused.status.code(), Some(2));
    let told = said(&refused);
    assert!(
        told.contains(".parbake") && told.contains("process"),
        "{told}"
    );
    cluster.kill_agent(0).unwrap();
    let staged = run(&cluster, &["stage", &rig.reference, "--json"]);
    assert!(staged.status.success(), "{}", said(&staged));
    assert_eq!(json(&staged)["present"], true);
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    let verified = run(&cluster, &["verify", &rig.reference]);
    assert!(verified.status.success());
    // one flipped bit on disk is found, and its layer named
    let disk = rig.disk(&cluster.agents()[0].tart_home());
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[9 << 20] ^= 1;
    std::fs::write(&disk, bytes).unwrap();
    let verified = run(&cluster, &["verify", &rig.reference, "--json"]);
    assert_eq!(verified.status.code(), Some(1));
    let told = json(&verified)["message"].to_string();
    assert!(told.contains("layer"), "{told}");
}

#[test]
fn a_token_that_expires_amid_a_layer_is_replaced_by_the_next() {
    let life = Duration::from_secs(4);
    let options = registry::Options {
        auth: registry::Auth::Bearer {
            account: Some(("robot".into(), "secret".into())),
            life,
            announced: Some(life),
        },
        ..registry::Options::default()
    };
    let rig = Rig::new(&ImageSpec::plain(8, 8), options).unwrap();
    let (layer, bytes) = rig.image.largest_blob();
    rig.site.registry.limit(Some(bytes / 8));
    // by then the token that it was begun with is no good any more
    rig.site.registry.script(Fault::once(
        Target::Blob(layer),
        Misbehaviour::CloseAfter(bytes * 3 / 4),
    ));
    let login = rig.site.login("robot", "secret").unwrap();
    let cluster = rig.site.fleet(DEMO, 1, "", &login).unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    rig.arrives(&cluster).unwrap();
    let failed = |line: &Value| line["reason"] == "origin_failed";
    let log = cluster.coordinator_log();
    assert!(!log.iter().any(failed), "a lease failed for its token");
}

#[test]
fn a_host_that_stages_alone_and_is_killed_goes_on_where_it_was() {
    let rig = Rig::paced(&ImageSpec::plain(24, 8), 4 << 20).unwrap();
    let mut cluster = fleet(&rig, 1);
    cluster.kill_agent(0).unwrap();
    let stage = || agent(&cluster, &["stage", &rig.reference, "--json"]);
    let mut first = stage().stdout(Stdio::null()).spawn().unwrap();
    let half = rig.image.blob_bytes() / 2;
    let reached = wait_until(PATIENCE, || rig.site.served() >= half);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(reached, "{} of {half}", rig.site.served());
    rig.site.registry.limit(None);
    let second = stage().output().unwrap();
    assert!(second.status.success(), "{}", said(&second));
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    // half came before; lost are half a second of it, and a chunk of each of the four layers that were on their way
    let again = json(&second)["bytes"]["origin"].as_u64().unwrap();
    assert!(
        again * 100 <= rig.image.blob_bytes() * 85,
        "{again} of {}",
        rig.image.blob_bytes()
    );
}

#[test]
fn a_host_that_cant_store_blames_its_disk_and_not_the_registry() {
    let mut spec = ImageSpec::plain(16, 4);
    spec.layers_without_digest = 1;
    let rig = Rig::paced(&spec, 64 << 10).unwrap();
    let cluster = fleet(&rig, 2);
    cluster.stage(&[&rig.reference]).unwrap();
    // a layer without a raw digest is kept as a blob: where a file stands in its directory's place, it can't be stored
    let stage = rig.image.digest.hex().to_string();
    let blobs: Vec<PathBuf> = (0..2)
        .map(|host| cluster.agents()[host].tart_home().join(".parbake"))
        .map(|root| root.join(&stage).join("blobs"))
        .collect();
    for blobs in &blobs {
        assert!(wait_until(PATIENCE, || std::fs::remove_dir(blobs).is_ok()));
        std::fs::write(blobs, b"in the way").unwrap();
    }
    rig.site.registry.limit(None);
    let all_say_so = || {
        let shown = status_of(&cluster, &rig.image);
        let hosts = shown["hosts"].as_array().cloned().unwrap_or_default();
        hosts.len() == 2 && hosts.iter().all(|host| host["reason"] == "not_stored")
    };
    assert!(
        wait_until(PATIENCE, all_say_so),
        "{}",
        status_of(&cluster, &rig.image)
    );
    let reason = status_of(&cluster, &rig.image)["reason"].clone();
    assert!(reason != "origin_down", "{reason}");
    for blobs in &blobs {
        std::fs::remove_file(blobs).unwrap();
    }
    rig.arrives(&cluster).unwrap();
    let blamed = |line: &Value| line["reason"] == "origin_failed";
    assert!(!cluster.coordinator_log().iter().any(blamed));
}

#[test]
fn removed_images_lose_their_presence() {
    let rig = Rig::paced(&ImageSpec::plain(16, 8), None).unwrap();
    let cluster = fleet(&rig, 1);
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    let first = cluster
        .wait_present(&rig.image.digest.to_string(), PATIENCE)
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
    let again = || {
        let present = cluster.agents()[0].holds(&rig.image.digest);
        present.is_some_and(|present| present.at != first[0].at)
    };
    assert!(wait_until(PATIENCE, again), "the image didn't come back");
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
}

#[test]
fn an_image_that_shares_layers_with_one_that_is_being_staged_gets_what_is_here() {
    // slow enough that the second comes while the first has chunks of every layer
    let mut spec = ImageSpec::plain(32, 32);
    let rig = Rig::paced(&spec, 4_000_000).unwrap();
    spec.nvram_bytes = 2 << 20;
    let first = &rig.image;
    let second = rig.site.image(&spec).unwrap();
    let reference = rig.site.registry.hold("fleet/macos", "2", &second);
    assert_ne!(first.digest, second.digest);
    let shared = |image: &GeneratedImage| -> Vec<_> {
        let layout = image.layout().unwrap();
        layout.layers().iter().map(|layer| layer.raw).collect()
    };
    assert_eq!(shared(first), shared(&second));

    let cluster = fleet(&rig, 2);
    cluster.stage(&[&rig.reference]).unwrap();
    let moving = wait_until(PATIENCE, || {
        let status = status_of(&cluster, first);
        let hosts = status["hosts"].as_array().unwrap();
        hosts.iter().all(|host| {
            let held = host["held_bytes"].as_u64().unwrap();
            held > 2 << 20 && held < host["total_bytes"].as_u64().unwrap()
        })
    });
    assert!(moving);
    for (reference, image) in [(&reference, &second), (&rig.reference, first)] {
        cluster.stage(&[reference, "--wait"]).unwrap();
        let difference = site::difference(&cluster, reference, image);
        assert_eq!(difference.unwrap(), None);
    }
    let once = first.blob_bytes() + (3 << 20);
    assert!(rig.site.served() <= once, "{} of {once}", rig.site.served());
}
