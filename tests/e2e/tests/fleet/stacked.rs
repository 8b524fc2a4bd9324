//! Stacked images on fleets of real programs: every file of them on every host, whatever tart does meanwhile, and where
//! tart is new enough.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, wait_until},
    image::{Flaw, GeneratedImage, ImageSpec, Overlay},
    registry,
    site::{self, PATIENCE, Site},
    stand_in::{CloneError, Tart},
    tart_home,
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// A flat image of 16 MiB.
fn flat() -> ImageSpec {
    ImageSpec::plain(16, 4)
}

/// Its disk as a base, with an overlay of 6 MiB and one of 64 KiB.
fn stack(seed: u64) -> ImageSpec {
    let overlay = |bytes, seed| Overlay { bytes, seed };
    flat().stacked(&[overlay(6 << 20, seed), overlay(64 << 10, seed + 1)])
}

/// A program that says tart's version, and the setting that names it.
fn says(site: &Site, version: &str) -> (PathBuf, String) {
    let tart = site.dir().join("tart");
    let new = site.dir().join("tart.new");
    std::fs::write(&new, format!("#!/bin/sh\necho {version}\n")).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, &tart).unwrap();
    let setting = format!("tart_binary = '{}'\n", tart.display());
    (tart, setting)
}

fn arrives(cluster: &Cluster, reference: &str, image: &GeneratedImage) {
    cluster
        .wait_present(&image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_eq!(site::difference(cluster, reference, image).unwrap(), None);
}

#[test]
fn flat_and_stacked_images_roll_over_each_other_and_cost_what_is_new() {
    let site = Site::new(registry::Options::default()).unwrap();
    let (_, setting) = says(&site, "2.36.0");
    let cluster = site.fleet(DEMO, 3, &setting, "").unwrap();
    let specs = [flat(), stack(10), stack(20), flat().changed(1)];
    let overlays = |spec: &ImageSpec| spec.overlays.iter().map(|one| one.bytes).sum::<u64>();
    for (spec, number) in specs.iter().zip(1..) {
        let image = site.image(spec).unwrap();
        let reference = site
            .registry
            .hold("fleet/macos", &number.to_string(), &image);
        let before = site.served();
        cluster.stage(&[&reference, "--wait"]).unwrap();
        arrives(&cluster, &reference, &image);
        let sent = site.served() - before;
        // one copy of what is new: overlays, or a quarter of a flat disk; and config and nvram
        let new = match number {
            1 => image.blob_bytes(),
            4 => (4 << 20) + (2 << 20),
            _ => overlays(spec) + (2 << 20),
        };
        assert!(sent <= new, "release {number}: {sent} of {new}");
        for agent in cluster.agents() {
            assert!(cluster.verify(agent, &reference).unwrap());
        }
    }
    // the two stacks have one base
    let content = |agent: &e2e::cluster::Agent| agent.tart_home().join("cache/content/sha256");
    for agent in cluster.agents() {
        assert_eq!(std::fs::read_dir(content(agent)).unwrap().count(), 5);
    }
}

#[test]
fn an_older_tart_declines_a_stacked_image_by_name_until_it_is_upgraded() {
    let site = Site::new(registry::Options::default()).unwrap();
    let (_, setting) = says(&site, "2.35.0");
    let cluster = site.fleet(DEMO, 1, &setting, "").unwrap();
    let image = site.image(&stack(10)).unwrap();
    let reference = site.registry.hold("fleet/macos", "1", &image);
    cluster.stage(&[&reference]).unwrap();
    let reason = || {
        let status = cluster.status(&image.digest.to_string()).unwrap();
        status["hosts"][0]["reason"].as_str().map(str::to_owned)
    };
    assert!(wait_until(PATIENCE, || reason().as_deref() == Some("needs_newer_tart")));
    let why = cluster.parbake(&["why", "mac-000"]).unwrap();
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(
        why.contains("needs_newer_tart") && why.contains("2.35"),
        "{why}"
    );
    // nothing moved
    assert_eq!(site.served(), 0);
    let home = cluster.agents()[0].tart_home();
    assert!(!home.join("cache/content/sha256").exists());
    says(&site, "2.36.0");
    cluster.stage(&[&reference, "--wait"]).unwrap();
    arrives(&cluster, &reference, &image);
}

#[test]
fn a_golden_of_a_stacked_image_waits_for_a_newer_macos_by_name_and_the_image_is_there() {
    let site = Site::new(registry::Options::default()).unwrap();
    let (_, setting) = says(&site, "2.36.0");
    // where these tests run, no macOS says its version
    let settings = format!("{setting}golden_prefix = 'golden-'\n");
    let cluster = site.fleet(DEMO, 1, &settings, "").unwrap();
    let image = site.image(&stack(10)).unwrap();
    let reference = site.registry.hold("fleet/macos", "1", &image);
    cluster.stage(&[&reference]).unwrap();
    let told = || cluster.status(&image.digest.to_string()).unwrap()["hosts"][0].clone();
    assert!(
        wait_until(PATIENCE, || told()["reason"] == "needs_newer_macos"),
        "{}",
        told()
    );
    let why = cluster.parbake(&["why", "mac-000"]).unwrap();
    let why = String::from_utf8_lossy(&why.stdout).into_owned();
    assert!(
        why.contains("needs_newer_macos") && why.contains("macOS 27"),
        "{why}"
    );
    assert_ne!(told()["state"], "present");
    // whoever makes VMs of it elsewhere finds all of it
    assert_eq!(
        site::difference(&cluster, &reference, &image).unwrap(),
        None
    );
    let home = cluster.agents()[0].tart_home();
    Tart::new(home).clone_image(&reference, "vm").unwrap();
}

#[test]
fn a_file_that_isnt_what_the_manifest_says_is_never_seen_by_tart() {
    let site = Site::new(registry::Options::default()).unwrap();
    let (_, setting) = says(&site, "2.36.0");
    let cluster = site.fleet(DEMO, 1, &setting, "").unwrap();
    let image = site.image(&stack(10).flawed(Flaw::FileDigest(1))).unwrap();
    let reference = site.registry.hold("fleet/macos", "1", &image);
    cluster.stage(&[&reference]).unwrap();
    let told = || cluster.status(&image.digest.to_string()).unwrap()["hosts"][0].clone();
    assert!(wait_until(PATIENCE, || told()["reason"] == "content_bad"));
    let told = told()["message"].to_string();
    assert!(told.contains("make a file with digest"), "{told}");
    let home = cluster.agents()[0].tart_home();
    assert_eq!(Tart::new(home.clone()).list().unwrap(), [] as [PathBuf; 0]);
    let files = std::fs::read_dir(home.join("cache/content/sha256"));
    assert_eq!(files.map_or(0, Iterator::count), 0);
}

/// SplitMix64: the moments and commands are a function of the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }
}

/// Runs tart's commands at random moments until it is told to stop. Returns how many of each kind it ran.
fn disturb(home: &Path, references: &[String], seed: u64, stop: &AtomicBool) -> [usize; 4] {
    let (tart, mut random, mut ran) = (Tart::new(home.to_owned()), Random(seed), [0; 4]);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        // tart's commands take a while to come, and what they meet differs each time
        thread::park_timeout(Duration::from_millis(random.below(40) as u64));
        assert_eq!(
            tart.half_records().unwrap(),
            [] as [PathBuf; 0],
            "seed {seed}"
        );
        // a prune a second, so that there is something to prune
        let kind = match random.below(60) {
            0..28 => 0,
            28..50 => 1,
            50..59 => 2,
            _ => 3,
        };
        match kind {
            0 => tart.collect().unwrap(),
            1 => {
                let reference = &references[random.below(references.len())];
                let name = format!("vm-{number}");
                number += 1;
                match tart.clone_image(reference, &name) {
                    Ok(()) => tart.delete_machine(&name).unwrap(),
                    Err(CloneError::Absent) => continue,
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            2 => drop(tart.list().unwrap()),
            _ if random.below(2) == 0 => {
                tart.delete_tag(&references[random.below(references.len())])
                    .unwrap();
            }
            _ => {
                let images = tart.list().unwrap();
                if images.is_empty() {
                    continue;
                }
                tart.prune(&images[random.below(images.len())]).unwrap();
            }
        }
        ran[kind] += 1;
    }
    ran
}

#[test]
fn whatever_tart_does_meanwhile_no_file_is_lost_and_no_presence_is_false() {
    const HOSTS: usize = 2;
    let seed = 20_261_130;
    let site = Site::new(registry::Options::default()).unwrap();
    let (_, setting) = says(&site, "2.36.0");
    let cluster = site.fleet(DEMO, HOSTS, &setting, "").unwrap();
    let specs = [stack(10), flat(), stack(20)];
    let images = specs.map(|spec| site.image(&spec).unwrap());
    let references: Vec<String> = (1..)
        .zip(&images)
        .map(|(number, image)| {
            site.registry
                .hold("fleet/macos", &format!("v{number}"), image)
        })
        .collect();
    let stop = AtomicBool::new(false);
    let homes: Vec<PathBuf> = cluster
        .agents()
        .iter()
        .map(|agent| agent.tart_home())
        .collect();
    thread::scope(|scope| {
        let threads: Vec<_> = homes
            .iter()
            .zip(seed..)
            .map(|(home, seed)| {
                let (references, stop) = (&references, &stop);
                scope.spawn(move || disturb(home, references, seed, stop))
            })
            .collect();
        for reference in &references {
            cluster.stage(&[reference]).unwrap();
        }
        // what was pruned is staged again, and pruned again
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && threads.iter().all(|thread| !thread.is_finished()) {
            thread::park_timeout(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let ran = thread.join().unwrap();
            assert!(ran.iter().all(|ran| *ran > 0), "{ran:?}");
        }
    });
    // a prune is noticed within seconds: what a host says then is so
    let says_so = |at: usize, reference: &str, image: &GeneratedImage| {
        let status = cluster.status(&image.digest.to_string()).unwrap();
        let is = |home: &PathBuf| tart_home::difference(home, reference, image);
        status["hosts"][at]["state"] != "present" || is(&homes[at]).is_ok_and(|of| of.is_none())
    };
    for (reference, image) in references.iter().zip(&images) {
        for at in 0..HOSTS {
            let soon = Duration::from_secs(15);
            assert!(
                wait_until(soon, || says_so(at, reference, image)),
                "{reference}, {at}"
            );
        }
    }
    // asked for again, everything is there again
    for (reference, image) in references.iter().zip(&images) {
        cluster.stage(&[reference, "--wait"]).unwrap();
        let there = || site::difference(&cluster, reference, image).is_ok_and(|of| of.is_none());
        assert!(wait_until(PATIENCE, there), "{reference}");
        for home in &homes {
            Tart::new(home.clone())
                .clone_image(reference, &image.digest.hex().to_string())
                .unwrap();
        }
    }
    for home in &homes {
        Tart::new(home.clone()).collect().unwrap();
        for (reference, image) in references.iter().zip(&images) {
            assert_eq!(tart_home::difference(home, reference, image).unwrap(), None);
        }
    }
}
