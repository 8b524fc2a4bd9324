//! What is on a host's disk when it says that it holds an image: bytes that rot or are edited, files that are removed
//! at bad moments, kills amid staging. Every disk is compared with the source bit by bit; what was fetched is counted.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Agent, Cluster, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry,
    rig::Rig,
    site::PATIENCE,
    tart_home,
};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

const MIB: u64 = 1 << 20;

/// Two layers of 8 MiB.
fn small() -> ImageSpec {
    ImageSpec::incompressible(16 * MIB, 8 * MIB, 1)
}

fn rig(spec: &ImageSpec, rate_bytes_per_s: Option<u64>) -> Rig {
    Rig::paced(spec, rate_bytes_per_s).unwrap()
}

fn cluster(rig: &Rig, hosts: usize) -> Cluster {
    rig.site.fleet(DEMO, hosts, "", "").unwrap()
}

/// `parbake stage REFERENCE --wait`, which has to succeed.
fn stage(cluster: &Cluster, reference: &str) {
    cluster
        .stage(&[reference, "--wait", "--timeout", "100"])
        .unwrap();
}

/// The next release: the same disk, another nvram.
fn next_release(rig: &Rig, spec: &ImageSpec) -> (GeneratedImage, String) {
    let mut next = spec.clone();
    next.nvram_bytes += 1000;
    let image = rig.site.image(&next).unwrap();
    let reference = rig.site.registry.hold("fleet/macos", "2", &image);
    (image, reference)
}

fn assert_equal(home: &Path, image: &GeneratedImage, reference: &str) {
    let difference = tart_home::difference(home, reference, image);
    assert_eq!(difference.unwrap(), None);
}

/// Changes one byte of a file.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Bytes of images that an agent received over the network since its start.
fn received(agent: &Agent) -> u64 {
    agent.received("origin") + agent.received("peers")
}

fn lines(agent: &Agent, words: &str) -> Vec<Value> {
    let mut log = agent.log();
    log.retain(|line| {
        line["message"]
            .as_str()
            .is_some_and(|said| said.contains(words))
    });
    log
}

fn host_state(cluster: &Cluster, image: &GeneratedImage, host: usize) -> Value {
    let status = cluster.status(&image.digest.to_string()).unwrap();
    status["hosts"][host].clone()
}

fn hex(image: &GeneratedImage) -> String {
    image.digest.hex().to_string()
}

#[test]
fn rot_in_an_installed_image_never_reaches_the_next_release() {
    // the first byte, the last chunk of a layer, the first of the next
    for (hosts, at) in [(1, 0), (2, 8 * MIB - 7), (3, 8 * MIB + 5)] {
        let spec = small();
        let rig = rig(&spec, None);
        let (next, next_reference) = next_release(&rig, &spec);
        let cluster = cluster(&rig, hosts);
        stage(&cluster, &rig.reference);
        let sent = rig.site.served();
        let home = cluster.agents()[0].tart_home();
        flip(&tart_home::disk(&home, &rig.reference), at);

        stage(&cluster, &next_reference);
        for agent in cluster.agents() {
            assert_equal(&agent.tart_home(), &next, &next_reference);
        }
        // the image that rotted isn't present until it is mended, and it is mended
        let mended = || {
            let old = &host_state(&cluster, &rig.image, 0)["state"];
            let rotten = rig.difference(&home).unwrap();
            assert!(
                rotten.is_none() || *old != "present",
                "{rotten:?} is present"
            );
            rotten.is_none() && *old == "present"
        };
        assert!(wait_until(PATIENCE, mended), "not mended");
        let again = rig.site.served() - sent - next.nvram.len() as u64;
        println!("{hosts} hosts, byte {at}: {again} bytes left the registry for it");
        // from a peer where there is one, except what came before the peer had said what it holds; else from the
        // registry, the layer at most
        assert!(again <= if hosts > 1 { 3 } else { 9 } * MIB, "{again}");
    }
}

#[test]
fn a_second_reference_of_a_rotten_image_gets_the_registrys_bytes() {
    let rig = rig(&small(), None);
    let cluster = cluster(&rig, 1);
    stage(&cluster, &rig.reference);
    let home = cluster.agents()[0].tart_home();
    flip(&tart_home::disk(&home, &rig.reference), 3 * MIB + 1);
    let elsewhere = rig.site.registry.hold("fleet/other", "1", &rig.image);
    stage(&cluster, &elsewhere);
    assert_equal(&home, &rig.image, &elsewhere);
    assert_equal(&home, &rig.image, &rig.reference);
    // what edits one edits no other
    let inode = |reference: &str, name: &str| {
        let path = tart_home::disk(&home, reference).with_file_name(name);
        fs::metadata(path).unwrap().ino()
    };
    for name in ["disk.img", "config.json", "nvram.bin", "manifest.json"] {
        assert_ne!(
            inode(&elsewhere, name),
            inode(&rig.reference, name),
            "{name}"
        );
    }
    // and each is looked at by its own name
    flip(&tart_home::disk(&home, &elsewhere), 11 * MIB);
    assert!(
        cluster
            .verify(&cluster.agents()[0], &rig.reference)
            .unwrap()
    );
    assert!(!cluster.verify(&cluster.agents()[0], &elsewhere).unwrap());
    let mended = || {
        rig.image
            .compare(&tart_home::disk(&home, &elsewhere))
            .unwrap()
            .is_none()
    };
    assert!(wait_until(PATIENCE, mended), "not mended");
}

#[test]
fn files_that_are_removed_while_another_reference_is_ordered_are_staged_again() {
    type Remove = fn(&Path, &Rig);
    let removals: [(&str, Remove); 4] = [
        ("disk.img", |home, rig| {
            fs::remove_file(tart_home::disk(home, &rig.reference)).unwrap();
        }),
        ("the image's directory", |home, rig| {
            let directory = fs::canonicalize(tart_home::disk(home, &rig.reference)).unwrap();
            fs::remove_dir_all(directory.parent().unwrap()).unwrap();
        }),
        ("our notes", |home, rig| {
            fs::remove_dir_all(home.join(".parbake").join(hex(&rig.image))).unwrap();
        }),
        ("tart's home", |home, _| fs::remove_dir_all(home).unwrap()),
    ];
    for (what, remove) in removals {
        for (hosts, repository) in [(1, "fleet/macos"), (2, "fleet/other")] {
            let rig = rig(&small(), None);
            let cluster = cluster(&rig, hosts);
            stage(&cluster, &rig.reference);
            let agent = &cluster.agents()[0];
            let (before, home) = (received(agent), agent.tart_home());
            remove(&home, &rig);
            let second = rig.site.registry.hold(repository, "again", &rig.image);
            let ordered = Instant::now();
            stage(&cluster, &second);
            let took = ordered.elapsed();
            assert_equal(&home, &rig.image, &second);
            let fetched = received(agent) - before;
            println!("{what}, {hosts} hosts: {fetched} bytes fetched in {took:?}");
            // once, and what came before the removal was noticed
            assert!(fetched <= rig.image.blob_bytes() * 2, "{what}: {fetched}");
            // the first name is made again too
            let both = || tart_home::disk(&home, &rig.reference).exists();
            assert!(wait_until(PATIENCE, both), "{what}: {hosts} hosts");
            assert_equal(&home, &rig.image, &rig.reference);
        }
    }
}

#[test]
fn a_stage_whose_files_are_removed_starts_anew_by_itself() {
    type Remove = fn(&Path, &Rig);
    let removals: [(&str, Remove); 3] = [
        ("the stage", |home, rig| {
            fs::remove_dir_all(home.join(".parbake").join(hex(&rig.image))).unwrap();
        }),
        ("its disk", |home, rig| {
            let stage = home.join(".parbake").join(hex(&rig.image));
            fs::remove_file(stage.join("image/disk.img")).unwrap();
        }),
        ("tart's home", |home, _| fs::remove_dir_all(home).unwrap()),
    ];
    for (what, remove) in removals {
        let rig = rig(&small(), Some(6_000_000));
        let cluster = cluster(&rig, 1);
        let agent = &cluster.agents()[0];
        cluster.stage(&[&rig.reference]).unwrap();
        assert!(wait_until(PATIENCE, || received(agent) > 4 * MIB));
        let (held, home) = (received(agent), agent.tart_home());
        remove(&home, &rig);
        stage(&cluster, &rig.reference);
        assert_eq!(rig.difference(&home).unwrap(), None, "{what}");
        let wasted = received(agent).saturating_sub(rig.image.blob_bytes());
        println!("{what}: {held} bytes held when it went, {wasted} fetched again");
        // what was held, and what came until the removal was noticed
        assert!(wasted <= held + 5 * MIB, "{what}: {wasted} of {held}");
        // nothing is kept of files without a name
        let files = fs::read_dir(format!("/proc/{}/fd", agent.process().unwrap()));
        let nameless = files.unwrap().flatten().filter(|file| {
            let file = fs::read_link(file.path()).unwrap_or_default();
            file.starts_with(&home) && file.to_string_lossy().ends_with(" (deleted)")
        });
        let nameless: Vec<_> = nameless.map(|file| fs::read_link(file.path())).collect();
        assert!(nameless.is_empty(), "{what}: {nameless:?}");
    }
}

#[test]
fn a_held_chunk_that_is_edited_while_the_agent_is_down_is_not_installed() {
    let spec = ImageSpec::incompressible(48 * MIB, 8 * MIB, 1);
    for hosts in [1, 2] {
        let rig = rig(&spec, Some(12_000_000));
        let mut cluster = cluster(&rig, hosts);
        cluster.stage(&[&rig.reference]).unwrap();
        assert!(wait_until(PATIENCE, || received(&cluster.agents()[0]) > 20 * MIB));
        cluster.kill_agent(0).unwrap();
        let home = cluster.agents()[0].tart_home();
        let stage_disk = home
            .join(".parbake")
            .join(hex(&rig.image))
            .join("image/disk.img");
        // one byte in each chunk that has bytes: whichever of them are held, none is believed
        let file = File::open(&stage_disk).unwrap();
        let mut chunk = vec![0; 1 << 20];
        let mut flipped = 0;
        for at in 0..48 {
            file.read_exact_at(&mut chunk, at * MIB).unwrap();
            if chunk.iter().any(|byte| *byte != 0) && at % 5 == 0 {
                flip(&stage_disk, at * MIB + 99);
                flipped += 1;
            }
        }
        cluster.start_agent(0).unwrap();
        let present = cluster
            .wait_present(&rig.image.digest.to_string(), PATIENCE)
            .unwrap();
        assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
        println!(
            "{hosts} hosts, {flipped} chunks edited: present {:?} after the last chunk",
            present[0].install
        );
        assert!(present[0].install <= Duration::from_secs(2));
        assert!(flipped > 1, "nothing was held");
        assert!(
            cluster
                .verify(&cluster.agents()[0], &rig.reference)
                .unwrap()
        );
    }
}

#[test]
fn what_verify_finds_is_withdrawn_and_mended() {
    let rig = rig(&small(), None);
    let cluster = cluster(&rig, 1);
    stage(&cluster, &rig.reference);
    let agent = &cluster.agents()[0];
    let disk = tart_home::disk(&agent.tart_home(), &rig.reference);
    let withdrawn = || lines(agent, "is read again").len();
    for (path, at) in [
        (disk.clone(), 13 * MIB),
        (disk.with_file_name("nvram.bin"), 5),
        (disk.with_file_name("config.json"), 1),
    ] {
        flip(&path, at);
        let (flipped, earlier) = (Instant::now(), withdrawn());
        assert!(!cluster.verify(agent, &rig.reference).unwrap());
        assert!(
            wait_until(PATIENCE, || withdrawn() > earlier),
            "{}",
            path.display()
        );
        // the coordinator hears of it a moment later
        let heard = || {
            host_state(&cluster, &rig.image, 0)["state"] != "present"
                || rig.difference(&agent.tart_home()).unwrap().is_none()
        };
        assert!(
            wait_until(Duration::from_secs(2), heard),
            "{}",
            path.display()
        );
        let mended = || {
            let rotten = rig.difference(&agent.tart_home()).unwrap();
            let state = host_state(&cluster, &rig.image, 0)["state"].clone();
            assert!(
                rotten.is_none() || state != "present",
                "{rotten:?} is present"
            );
            rotten.is_none() && state == "present"
        };
        assert!(wait_until(PATIENCE, mended), "{}", path.display());
        println!("{}: mended after {:?}", path.display(), flipped.elapsed());
        assert!(cluster.verify(agent, &rig.reference).unwrap());
    }
    assert_eq!(withdrawn(), 3);
    let notes = agent.tart_home().join(".parbake").join(hex(&rig.image));
    assert!(!notes.join("doubted").exists());
}

#[test]
fn a_host_that_a_peer_blames_looks_at_the_chunk_at_once() {
    // the scrub comes by after half a minute
    let spec = ImageSpec::incompressible(64 * MIB, 8 * MIB, 1);
    let rig = rig(&spec, None);
    let cluster = cluster(&rig, 2);
    let first = cluster.agents()[0].host.clone();
    cluster
        .stage(&[&rig.reference, "--hosts", &first, "--wait"])
        .unwrap();
    let home = cluster.agents()[0].tart_home();
    flip(&tart_home::disk(&home, &rig.reference), 60 * MIB);
    let flipped = Instant::now();
    stage(&cluster, &rig.reference);
    let mended = || rig.difference(&home).unwrap().is_none();
    assert!(wait_until(PATIENCE, mended), "not mended");
    let took = flipped.elapsed();
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    println!("mended {took:?} after the byte changed");
    assert!(took < Duration::from_secs(15), "{took:?}");
    let looked = lines(
        &cluster.agents()[0],
        "looking at a chunk for which a peer blames",
    );
    assert!(!looked.is_empty());
}

/// The README's sentence, along every way by which bytes come under an image.
#[test]
fn never_installs_a_byte_that_the_registrys_digest_doesnt_vouch_for() {
    let spec = small();
    let rig = rig(&spec, None);
    let (next, next_reference) = next_release(&rig, &spec);
    let mut cluster = cluster(&rig, 2);
    // from a registry that sends false bytes once
    let layout = rig.image.layout().unwrap();
    let blob = layout.layers()[0].blob;
    let corrupt = registry::Misbehaviour::CorruptAt(blob.size / 2);
    let target = registry::Target::Blob(blob.digest);
    rig.site
        .registry
        .script(registry::Fault::once(target, corrupt));
    stage(&cluster, &rig.reference);
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    // under another name, from a disk that rotted
    let homes: Vec<PathBuf> = cluster.agents().iter().map(Agent::tart_home).collect();
    flip(&tart_home::disk(&homes[0], &rig.reference), 2 * MIB);
    let elsewhere = rig.site.registry.hold("fleet/other", "1", &rig.image);
    stage(&cluster, &elsewhere);
    // in a release that shares its layers, on both hosts, after a stop
    flip(&tart_home::disk(&homes[0], &rig.reference), 9 * MIB);
    flip(&tart_home::disk(&homes[1], &rig.reference), 12 * MIB);
    cluster.kill_agent(1).unwrap();
    cluster.start_agent(1).unwrap();
    stage(&cluster, &next_reference);
    for home in &homes {
        assert_equal(home, &rig.image, &elsewhere);
        assert_equal(home, &next, &next_reference);
        let mended = || rig.difference(home).unwrap().is_none();
        assert!(wait_until(PATIENCE, mended), "not mended");
    }
}

#[test]
fn a_bit_that_rots_on_disk_is_found_and_mended_by_a_peer() {
    let rig = rig(&small(), None);
    let mut cluster = cluster(&rig, 2);
    stage(&cluster, &rig.reference);
    // also after a restart, which finds the image installed
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    let sent = rig.site.served();
    let disk = rig.disk(&cluster.agents()[0].tart_home());
    flip(&disk, 5 * MIB + 77);
    let mended = || rig.image.compare(&disk).unwrap().is_none();
    assert!(wait_until(PATIENCE, mended), "not mended");
    // the registry isn't asked for what a peer has
    assert_eq!(rig.site.served(), sent);
}
