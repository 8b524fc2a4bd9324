//! Tags that move, and images with several names, with the real programs on loopback: what `parbake stage --wait`
//! promises is compared with what tart would find on each host, at the moment at which the command ends.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Instant,
};

use e2e::{
    cluster::{Cluster, said, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry,
    site::{PATIENCE, Site},
    tart_home,
};
use proto::Digest;
use serde_json::Value;

/// The most that `stage --wait` of an image that is there may take, in seconds.
const SOON: &str = "30";
/// What images are pushed to.
const REPOSITORY: &str = "fleet/macos";

/// A registry in this process, a coordinator, and agents.
struct Fleet {
    cluster: Cluster,
    // last: everything is kept there
    site: Site,
}

impl Fleet {
    fn new(hosts: usize) -> Self {
        let site = Site::new(registry::Options::default()).unwrap();
        let cluster = site.fleet(env!("CARGO_BIN_EXE_demo"), hosts, "", "");
        let cluster = cluster.unwrap();
        Self { cluster, site }
    }

    /// A small image of its own.
    fn image(&self, seed: u64) -> GeneratedImage {
        self.image_of(seed, 8)
    }

    fn image_of(&self, seed: u64, disk_mib: u64) -> GeneratedImage {
        let spec = ImageSpec {
            seed,
            ..ImageSpec::plain(disk_mib, 4)
        };
        self.site.image(&spec).unwrap()
    }

    /// Pushes an image under a tag, which names it from now on. The reference.
    fn push(&self, tag: &str, image: &GeneratedImage) -> String {
        self.site.registry.hold(REPOSITORY, tag, image)
    }

    fn parbake(&self, arguments: &[&str]) -> Output {
        self.cluster.parbake(arguments).unwrap()
    }

    /// Stages, waits, and looks at once, before anything else happens, at what tart would find on each host.
    fn stage(&self, reference: &str, image: &GeneratedImage) {
        let arguments = ["stage", reference, "--wait", "--timeout", SOON, "--json"];
        let ended = self.parbake(&arguments);
        let found = self.resolved(reference);
        assert!(ended.status.success(), "{reference}: {}", said(&ended));
        let digest = Some(image.digest);
        assert!(
            found.iter().all(|found| *found == digest),
            "{reference}: exit 0, and hosts have {found:?} instead of {digest:?}"
        );
    }

    /// Which image each host's tart finds under this reference now.
    fn resolved(&self, reference: &str) -> Vec<Option<Digest>> {
        let hosts = self.cluster.agents().iter();
        hosts
            .map(|agent| resolve(&agent.tart_home(), reference))
            .collect()
    }

    /// Every host's disk under this reference is the image's, bit by bit.
    fn assert_holds(&self, reference: &str, image: &GeneratedImage) {
        for agent in self.cluster.agents() {
            let home = agent.tart_home();
            assert_eq!(resolve(&home, reference), Some(image.digest), "{reference}");
            let disk = tart_home::directory(&home, reference).join("disk.img");
            assert_eq!(image.compare(&disk).unwrap(), None, "{}", disk.display());
        }
    }

    /// What `parbake status` says of an image; null when it isn't wanted.
    fn status(&self, image: &str) -> Value {
        self.cluster.status(image).unwrap()
    }

    /// The references under which an image is wanted.
    fn wanted(&self, image: &GeneratedImage) -> Vec<String> {
        let status = self.status(&image.digest.to_string());
        serde_json::from_value(status["references"].clone()).unwrap_or_default()
    }

    /// Whether each host is rid of an image: no stage of it is left.
    fn is_gone(&self, image: &GeneratedImage) -> bool {
        let stage = image.digest.hex().to_string();
        let mut homes = self.cluster.agents().iter().map(|agent| agent.tart_home());
        homes.all(|home| !home.join(".parbake").join(&stage).exists())
    }
}

/// The image that tart finds under this reference, if it is whole.
fn resolve(home: &Path, reference: &str) -> Option<Digest> {
    let named = tart_home::directory(home, reference);
    let found = match fs::read_link(&named) {
        Ok(target) => target,
        Err(_) => named,
    };
    let whole = ["config.json", "disk.img", "nvram.bin"]
        .iter()
        .all(|part| found.join(part).is_file());
    let digest = found.file_name()?.to_str()?.parse().ok()?;
    whole.then_some(digest)
}

#[test]
fn stage_wait_exits_0_when_every_host_holds_it_verified() {
    let fleet = Fleet::new(3);
    let (a, b) = (fleet.image(1), fleet.image(2));
    for image in [&a, &b, &a, &b, &b, &a] {
        let latest = fleet.push("latest", image);
        fleet.stage(&latest, image);
        fleet.assert_holds(&latest, image);
        for agent in fleet.cluster.agents() {
            assert!(fleet.cluster.verify(agent, &latest).unwrap());
        }
    }
}

#[test]
fn a_tag_that_moves_away_and_back_at_once_is_right_when_the_command_ends() {
    let fleet = Fleet::new(2);
    let (a, b) = (fleet.image(1), fleet.image(2));
    let latest = fleet.push("latest", &a);
    fleet.stage(&latest, &a);
    for image in [&b, &a, &b, &a, &b] {
        fleet.push("latest", image);
        fleet.stage(&latest, image);
    }
}

#[test]
fn two_tags_that_swap_are_right_when_the_command_ends() {
    let fleet = Fleet::new(2);
    let (a, b) = (fleet.image(1), fleet.image(2));
    let (mut blue, mut green) = (&a, &b);
    for _ in 0..4 {
        for (tag, image) in [("blue", blue), ("green", green)] {
            let reference = fleet.push(tag, image);
            fleet.stage(&reference, image);
        }
        std::mem::swap(&mut blue, &mut green);
    }
    let blue_reference = fleet.push("blue", green);
    fleet.assert_holds(&blue_reference, green);
}

/// One of an image's two names moves to another image and back, while the other stays.
fn moves_away_and_back(second: impl Fn(&Fleet, &GeneratedImage) -> String) {
    let fleet = Fleet::new(2);
    let (a, b) = (fleet.image(1), fleet.image(2));
    let steady = second(&fleet, &a);
    fleet.stage(&steady, &a);
    let latest = fleet.push("latest", &a);
    fleet.stage(&latest, &a);
    for image in [&b, &a, &b, &a] {
        fleet.push("latest", image);
        fleet.stage(&latest, image);
        fleet.assert_holds(&steady, &a);
    }
    // and nothing is amiss later
    let all = || fleet.status(&a.digest.to_string())["state"] == "present";
    assert!(wait_until(PATIENCE, all));
    fleet.assert_holds(&latest, &a);
}

#[test]
fn a_name_beside_a_tag_moves_away_and_back() {
    moves_away_and_back(|fleet, image| fleet.push("v1", image));
}

#[test]
fn a_name_beside_a_digest_moves_away_and_back() {
    moves_away_and_back(|fleet, image| {
        let tag = fleet.push("v1", image);
        format!("{}@{}", tag.rsplit_once(':').unwrap().0, image.digest)
    });
}

#[test]
fn a_name_beside_another_repository_moves_away_and_back() {
    moves_away_and_back(|fleet, image| fleet.site.registry.hold("other/macos", "v1", image));
}

#[test]
fn a_tag_that_is_pushed_anew_amid_staging_ends_the_wait_for_the_old_image() {
    let fleet = Fleet::new(2);
    let (a, b) = (fleet.image_of(1, 24), fleet.image(2));
    // the old image has a second name, under which it is staged on
    let steady = fleet.push("v1", &a);
    let latest = fleet.push("latest", &a);
    fleet.site.registry.limit(Some(2_000_000));
    for reference in [&steady, &latest] {
        assert!(fleet.parbake(&["stage", reference]).status.success());
    }
    let mut waiting = fleet
        .cluster
        .spawn_parbake(&["stage", &latest, "--wait", "--json"], Stdio::null())
        .unwrap();
    let moving =
        || fleet.status(&a.digest.to_string())["hosts"][0]["held_bytes"].as_u64() > Some(0);
    assert!(wait_until(PATIENCE, moving));
    fleet.push("latest", &b);
    fleet.site.registry.limit(None);
    fleet.stage(&latest, &b);
    let ended = waiting.wait().unwrap();
    assert_eq!(ended.code(), Some(1), "its tag names another image by now");
    fleet.stage(&steady, &a);
    fleet.assert_holds(&latest, &b);
    fleet.assert_holds(&steady, &a);
    assert_eq!(fleet.wanted(&a), [steady]);
}

#[test]
fn cancelling_one_name_leaves_the_others_and_says_so() {
    let fleet = Fleet::new(2);
    let a = fleet.image(1);
    let (v1, v2) = (fleet.push("v1", &a), fleet.push("v2", &a));
    let other = fleet.site.registry.hold("other/macos", "v1", &a);
    for reference in [&v1, &v2, &other] {
        fleet.stage(reference, &a);
    }
    let cancelled = fleet.parbake(&["cancel", &v1]);
    let text = said(&cancelled);
    assert!(cancelled.status.success(), "{text}");
    assert!(text.contains(&v2) && text.contains(&other), "{text}");
    assert_eq!(fleet.wanted(&a), [v2.clone(), other.clone()]);
    // what is present stays, and what somebody removes isn't put back
    fleet.assert_holds(&v1, &a);
    let homes: Vec<_> = fleet
        .cluster
        .agents()
        .iter()
        .map(|agent| agent.tart_home())
        .collect();
    for home in &homes {
        for reference in [&v1, &v2] {
            fs::remove_file(tart_home::directory(home, reference)).unwrap();
        }
    }
    let back = || {
        fleet
            .resolved(&v2)
            .iter()
            .all(|found| *found == Some(a.digest))
    };
    assert!(wait_until(PATIENCE, back));
    fleet.stage(&v2, &a);
    assert_eq!(fleet.resolved(&v1), [None, None]);
    fleet.assert_holds(&other, &a);
    assert_eq!(fleet.status(&a.digest.to_string())["state"], "present");
    // a name that isn't wanted any more can't be cancelled, and the answer says what can
    let again = fleet.parbake(&["cancel", &v1]);
    assert_eq!(again.status.code(), Some(2), "{}", said(&again));
    // the bare digest takes all names
    let all = fleet.parbake(&["cancel", &a.digest.to_string(), "--json"]);
    assert!(all.status.success(), "{}", said(&all));
    let answer: Value = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!(
        answer["references"],
        serde_json::json!([v2, other]),
        "{answer}"
    );
    assert_eq!(fleet.wanted(&a), [] as [String; 0]);
}

#[test]
fn cancelling_one_name_amid_staging_leaves_the_stage_of_the_other() {
    let fleet = Fleet::new(2);
    let a = fleet.image_of(1, 24);
    let v1 = fleet.push("v1", &a);
    let other = fleet.site.registry.hold("other/macos", "v1", &a);
    fleet.site.registry.limit(Some(3_000_000));
    for reference in [&v1, &other] {
        assert!(fleet.parbake(&["stage", reference]).status.success());
    }
    let held = || {
        let status = fleet.status(&a.digest.to_string());
        let hosts = status["hosts"].as_array().cloned().unwrap_or_default();
        hosts
            .iter()
            .map(|host| host["held_bytes"].as_u64().unwrap_or(0))
            .min()
    };
    assert!(wait_until(PATIENCE, || held() > Some(4 << 20)));
    let before = held();
    let served = || {
        let counters = fleet.site.registry.counters();
        counters.blobs.values().map(|blob| blob.bytes).sum::<u64>()
    };
    assert!(fleet.parbake(&["cancel", &v1]).status.success());
    assert!(held() >= before, "its bytes stay");
    fleet.site.registry.limit(None);
    fleet.stage(&other, &a);
    fleet.assert_holds(&other, &a);
    assert_eq!(fleet.resolved(&v1), [None, None]);
    let sent = served();
    assert!(
        sent * 100 <= a.blob_bytes() * 110,
        "{sent} of {}",
        a.blob_bytes()
    );
}

#[test]
fn the_documented_pipeline_is_right_when_both_releases_are_one_digest() {
    let fleet = Fleet::new(2);
    let a = fleet.image(1);
    let old = fleet.push("2026-10", &a);
    fleet.stage(&old, &a);
    let new = fleet.push("2026-11", &a);
    fleet.stage(&new, &a);
    assert!(fleet.parbake(&["cancel", &old]).status.success());
    assert_eq!(fleet.wanted(&a), std::slice::from_ref(&new));
    // it is kept up under its new name
    for agent in fleet.cluster.agents() {
        fs::remove_file(tart_home::directory(&agent.tart_home(), &new)).unwrap();
    }
    fleet.stage(&new, &a);
    fleet.assert_holds(&new, &a);
}

#[test]
fn a_tag_that_somebody_moves_on_a_host_comes_back_and_is_named_meanwhile() {
    let mut fleet = Fleet::new(1);
    let (a, b) = (fleet.image(1), fleet.image(2));
    let latest = fleet.push("latest", &a);
    fleet.stage(&latest, &a);
    let v2 = fleet.push("v2", &b);
    fleet.stage(&v2, &b);
    let home = fleet.cluster.agents()[0].tart_home();
    let target = fs::read_link(tart_home::directory(&home, &v2)).unwrap();
    let steal = || {
        let link = tart_home::directory(&home, &latest);
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
    };
    // asked at once, the answer is by what is there now
    steal();
    fleet.stage(&latest, &a);
    // somebody insists: it is taken back with growing pauses, which have a name
    let named = || {
        let host = fleet.status(&a.digest.to_string())["hosts"][0].clone();
        host["state"] == "installing" && host["reason"] == "tag_moved"
    };
    let seen = wait_until(PATIENCE, || {
        if resolve(&home, &latest) == Some(a.digest) {
            steal();
        }
        named()
    });
    assert!(seen, "{}", fleet.status(&a.digest.to_string()));
    assert!(wait_until(PATIENCE, || resolve(&home, &latest) == Some(a.digest)));
    // and an agent's restart changes nothing
    fleet.cluster.kill_agent(0).unwrap();
    steal();
    fleet.cluster.start_agent(0).unwrap();
    fleet.stage(&latest, &a);
    fleet.assert_holds(&v2, &b);
}

#[test]
fn what_is_cancelled_while_it_is_staged_leaves_nothing() {
    let fleet = Fleet::new(2);
    let (a, b) = (fleet.image_of(1, 24), fleet.image(2));
    fleet.site.registry.limit(Some(2_000_000));
    let latest = fleet.push("latest", &a);
    // moved and cancelled at once, again and again: whatever runs on the hosts at that moment comes to nothing
    for _ in 0..5 {
        fleet.push("latest", &a);
        assert!(fleet.parbake(&["stage", &latest]).status.success());
        fleet.push("latest", &b);
        assert!(fleet.parbake(&["stage", &latest]).status.success());
        assert!(fleet.parbake(&["cancel", &latest]).status.success());
    }
    let gone = || fleet.is_gone(&a) && fleet.is_gone(&b);
    assert!(wait_until(PATIENCE, gone));
    assert_eq!(fleet.resolved(&latest), [None, None]);
    fleet.site.registry.limit(None);
    fleet.push("latest", &a);
    fleet.stage(&latest, &a);
    fleet.assert_holds(&latest, &a);
}

#[test]
fn names_that_tart_cannot_say_are_refused_by_the_rule() {
    let fleet = Fleet::new(1);
    for (name, tag, rule) in [
        ("lab/a__b", "1", "separator"),
        ("lab/a--b", "1", "separator"),
        ("lab/_b", "1", "separator"),
        ("lab/b", "_1", "separator"),
        ("lab/b", "1--2", "separator"),
        ("lab/b", "1-", "separator"),
    ] {
        let reference = format!("{}/{name}:{tag}", fleet.site.registry.addr());
        let refused = fleet.parbake(&["stage", &reference, "--wait"]);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{reference}: {text}");
        assert!(text.contains("tart") && text.contains(rule), "{text}");
    }
    for (host, rule) in [
        ("[::1]:5000", "IPv6"),
        ("my_registry.test:5000", "underscore"),
    ] {
        let refused = fleet.parbake(&["stage", &format!("{host}/lab/b:1"), "--wait"]);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{host}: {text}");
        assert!(text.contains("tart") && text.contains(rule), "{text}");
    }
    assert_eq!(fleet.site.registry.counters().blob_requests, 0);
}

#[test]
fn a_failed_host_is_given_up_after_ten_seconds_however_often_it_tries_again() {
    let fleet = Fleet::new(1);
    let image = fleet.image(1);
    let reference = fleet.push("1", &image);
    // a directory in the place of the tag's link: each attempt to link it fails
    let home = fleet.cluster.agents()[0].tart_home();
    fs::create_dir_all(tart_home::directory(&home, &reference)).unwrap();
    let asked = Instant::now();
    let ended = fleet.parbake(&["stage", &reference, "--wait"]);
    let took = asked.elapsed();
    let text = said(&ended);
    assert_eq!(ended.status.code(), Some(1), "{text}");
    assert!(text.contains("in_the_way"), "{text}");
    println!("given up after {took:?}");
    assert!((10.0..16.0).contains(&took.as_secs_f64()), "{took:?}");
    // what is in the way is gone: it goes on by itself
    fs::remove_dir(tart_home::directory(&home, &reference)).unwrap();
    fleet.stage(&reference, &image);
}
