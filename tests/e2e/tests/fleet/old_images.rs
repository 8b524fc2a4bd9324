//! Old images on fleets of real programs: by a rule of the fleet each host removes what nothing there needs, and a dry
//! run says the same before.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs::{self, File, FileTimes},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use e2e::{
    cluster::{Cluster, Options, Place, said, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry,
    site::{self, PATIENCE, Site},
    tart_home,
    tart_script::{self, golden},
};
use proto::figure::Bytes;
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// Sets the times of a file or directory back: it was read three hours ago, and written an hour before.
fn age(path: &Path) {
    let ago = |hours| SystemTime::now() - Duration::from_hours(hours);
    let times = FileTimes::new().set_accessed(ago(3)).set_modified(ago(4));
    File::open(path).unwrap().set_times(times).unwrap();
}

/// Starts the coordinator again, with a rule of the fleet: so many images of a repository stay.
fn retain(cluster: &mut Cluster, images: u32) {
    let fleet = cluster.directory().join("coordinator/fleet.toml");
    let mut fleet = File::options().append(true).open(fleet).unwrap();
    write!(fleet, "\n[retention]\nkeep_images = {images}\n").unwrap();
    cluster.kill_coordinator().unwrap();
    cluster.start_coordinator().unwrap();
    cluster.wait_sessions(PATIENCE).unwrap();
}

/// What `parbake clean --dry-run` says, and of each host which images would go: their tags.
fn dry_run(cluster: &Cluster, arguments: &[&str]) -> (Value, Vec<Vec<String>>) {
    let output = cluster
        .parbake(&[&["clean", "--dry-run", "--json"], arguments].concat())
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let going = |host: &Value| -> Vec<String> {
        let images = host["images"].as_array().unwrap().iter();
        let going = images.filter(|image| image["goes"] == true);
        going
            .map(|image| {
                let name = image["references"][0].as_str().unwrap();
                name.rsplit_once(':').unwrap().1.to_owned()
            })
            .collect()
    };
    let hosts = answer["hosts"].as_array().unwrap();
    let going = hosts.iter().map(going).collect();
    (answer, going)
}

#[test]
fn a_rule_of_the_fleet_removes_the_third_image_but_for_the_host_that_runs_it() {
    let site = Site::new(registry::Options::default()).unwrap();
    let tart = tart_script::write(site.dir()).unwrap();
    let settings = format!(
        "golden_prefix = 'golden-'\ntart_binary = '{}'\nretention_grace_seconds = 1\n",
        tart.display()
    );
    let mut cluster = site.fleet(DEMO, 3, &settings, "").unwrap();
    // one host stays out
    let own = cluster.directory().join("mac-002/agent.toml");
    let text = fs::read_to_string(&own).unwrap();
    fs::write(&own, format!("fleet_retention = false\n{text}")).unwrap();
    cluster.kill_agent(2).unwrap();
    cluster.start_agent(2).unwrap();
    let homes: Vec<PathBuf> = cluster
        .agents()
        .iter()
        .map(|agent| agent.tart_home())
        .collect();
    let references: Vec<String> = (1_u64..=3)
        .map(|number| {
            let image = site.image(&ImageSpec::plain(8, number)).unwrap();
            let name = site
                .registry
                .hold("fleet/macos", &format!("v{number}"), &image);
            cluster.stage(&[&name, "--wait"]).unwrap();
            name
        })
        .collect();
    for reference in &references[..2] {
        assert!(
            cluster
                .parbake(&["cancel", reference])
                .unwrap()
                .status
                .success()
        );
    }
    // an operator who cancels the wrong image has an hour
    let rests = || {
        let (answer, going) = dry_run(&cluster, &["--keep", "2"]);
        let why = answer["hosts"]
            .to_string()
            .matches("within the last hour")
            .count();
        going.iter().all(Vec::is_empty) && why == 3
    };
    assert!(wait_until(PATIENCE, rests));
    for home in &homes {
        for reference in &references {
            let record = fs::canonicalize(tart_home::directory(home, reference)).unwrap();
            let notes = record.file_name().unwrap().to_str().unwrap().to_owned();
            let notes = notes.trim_start_matches("sha256:").to_owned();
            age(&home.join(".parbake").join(notes).join("status.json"));
            age(&golden(home, reference));
            age(&record);
        }
    }
    // the first host runs a VM of the oldest image: tart holds this lock while it does
    let config = golden(&homes[0], &references[0]).join("config.json");
    let config = File::options().read(true).write(true).open(config).unwrap();
    fcntl_lock(&config, FlockOperation::NonBlockingLockExclusive).unwrap();

    // nobody set a rule, so nothing goes; asked by one, the hosts say what would
    let (answer, going) = dry_run(&cluster, &[]);
    assert!(
        answer["fleet_rule"].is_null() && going.iter().all(Vec::is_empty),
        "{answer}"
    );
    let (answer, going) = dry_run(&cluster, &["--keep", "2"]);
    assert_eq!(
        going,
        [vec![], vec!["v1".to_owned()], vec!["v1".to_owned()]],
        "{answer}"
    );
    let (_, strict) = dry_run(&cluster, &["--keep", "1", "--days", "1", "mac-001"]);
    assert_eq!(strict, [Vec::<String>::new()], "used today");
    let text = cluster
        .parbake(&["clean", "--dry-run", "--keep", "2", "mac-000"])
        .unwrap();
    let text = said(&text);
    assert!(
        text.contains("its golden runs") && text.contains("1 of 1 hosts answered"),
        "{text}"
    );
    let refused = cluster.parbake(&["clean"]).unwrap();
    assert!(!refused.status.success() && said(&refused).contains("keep_images"));

    retain(&mut cluster, 2);
    let there = |at: usize, version: usize| {
        tart_home::directory(&homes[at], &references[version - 1]).exists()
    };
    let gone = wait_until(PATIENCE, || !there(1, 1));
    assert!(gone, "{}", dry_run(&cluster, &[]).0);
    assert!(!golden(&homes[1], &references[0]).exists());
    for (at, version) in [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (2, 3),
    ] {
        assert!(there(at, version), "host {at} lacks v{version}");
    }
    let (answer, going) = dry_run(&cluster, &[]);
    assert!(going.iter().all(Vec::is_empty), "{answer}");
    assert_eq!(answer["fleet_rule"]["keep_images"], 2);
    let sources: Vec<&Value> = answer["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| &host["source"])
        .collect();
    assert_eq!(sources, ["fleet", "fleet", "none"]);
    // when its VM has ended, the first host follows within a minute or so
    drop(config);
    assert!(wait_until(PATIENCE, || !there(0, 1)));
    assert!(there(0, 2) && there(0, 3) && there(2, 1));
}

#[test]
#[cfg_attr(
    not(mount),
    ignore = "needs root and unshare of util-linux, to mount a volume"
)]
fn a_full_disk_names_the_old_image_that_could_go_and_when_it_went_the_new_one_comes() {
    let site = Site::new(registry::Options::default()).unwrap();
    // the volume holds the new image and one of the old ones
    let home = site.dir().join("mac-000/tart");
    let mut cluster = site::start(Options {
        hosts: vec![Place::on_volume(&home, "size=44m")],
        agent_settings: "retention_grace_seconds = 1\n".into(),
        ..site.options(DEMO, 0)
    })
    .unwrap();
    let seen = cluster.agents()[0].seen_tart_home().unwrap();
    let image = |mib: u64, number: u64| {
        let spec = ImageSpec::incompressible(mib << 20, 2 << 20, number);
        let image = site.image(&spec).unwrap();
        let name = site
            .registry
            .hold("fleet/macos", &format!("v{number}"), &image);
        (image, name)
    };
    let old = [image(12, 1), image(12, 2)];
    for (_, name) in &old {
        cluster.stage(&[name, "--wait"]).unwrap();
    }
    for (_, name) in &old {
        let cancelled = cluster.parbake(&["cancel", name]).unwrap();
        assert!(cancelled.status.success(), "{}", said(&cancelled));
    }
    let rests = || {
        let (answer, _) = dry_run(&cluster, &["--keep", "1"]);
        answer["hosts"].to_string().contains("within the last hour")
    };
    assert!(wait_until(PATIENCE, rests));
    // links in tart's cache lead elsewhere from outside of the volume, directories don't
    let record = |(image, name): &(GeneratedImage, String)| {
        tart_home::directory(&seen, name).with_file_name(image.digest.to_string())
    };
    for old in &old {
        let notes = seen.join(".parbake").join(old.0.digest.hex().to_string());
        age(&notes.join("status.json"));
        age(&record(old));
    }

    let (new, name) = image(24, 3);
    cluster.stage(&[&name]).unwrap();
    let told = || cluster.status(&new.digest.to_string()).unwrap()["hosts"][0].clone();
    assert!(
        wait_until(PATIENCE, || told()["reason"] == "no_room"),
        "{}",
        told()
    );
    // the older one, and how much that would free; the other one has its repository's place
    let (answer, _) = dry_run(&cluster, &["--keep", "1"]);
    let freed = answer["hosts"][0]["freed_bytes"].as_u64().unwrap();
    assert!(freed > 12 << 20 && freed < 13 << 20, "{answer}");
    let wanted = format!(
        "old images that could go take {}: {}; keep_images = 1",
        Bytes(freed),
        old[0].1
    );
    for told in [
        told()["message"].to_string(),
        said(&cluster.parbake(&["why", "mac-000"]).unwrap()),
        said(&cluster.parbake(&["status", &name]).unwrap()),
    ] {
        assert!(
            told.contains("are lacking") && told.contains(&wanted),
            "{told}"
        );
    }
    assert!(old.iter().all(|old| record(old).exists()));

    // with the rule that it names, room comes, and the image by itself
    retain(&mut cluster, 1);
    cluster
        .wait_present(&new.digest.to_string(), PATIENCE)
        .unwrap();
    assert!(!record(&old[0]).exists() && record(&old[1]).exists());
    let by_digest = format!("{}@{}", name.trim_end_matches(":v3"), new.digest);
    assert_eq!(
        tart_home::difference(&seen, &by_digest, &new).unwrap(),
        None
    );
}

#[test]
fn the_golden_of_a_name_that_its_image_lost_goes_by_the_rule_and_all_else_stays() {
    let site = Site::new(registry::Options::default()).unwrap();
    let tart = tart_script::write(site.dir()).unwrap();
    let settings = format!(
        "golden_prefix = 'golden-'\ntart_binary = '{}'\nretention_grace_seconds = 1\n",
        tart.display()
    );
    let mut cluster = site.fleet(DEMO, 2, &settings, "").unwrap();
    let homes: Vec<PathBuf> = cluster
        .agents()
        .iter()
        .map(|agent| agent.tart_home())
        .collect();
    // a release that only renames the image
    let image = site.image(&ImageSpec::plain(8, 1)).unwrap();
    let [old, new] = ["v1", "v2"].map(|tag| {
        let name = site.registry.hold("fleet/macos", tag, &image);
        cluster.stage(&[&name, "--wait"]).unwrap();
        name
    });
    let cancelled = cluster.parbake(&["cancel", &old]).unwrap();
    assert!(cancelled.status.success(), "{}", said(&cancelled));

    // a golden's mark has the time when it was made
    let mark = |home: &Path| {
        let golden = golden(home, &old);
        home.join(".parbake/goldens")
            .join(golden.file_name().unwrap())
    };
    for home in &homes {
        age(&mark(home));
        age(&golden(home, &old));
    }
    let goes = [vec!["v1".to_owned()], vec!["v1".to_owned()]];
    let none = [const { Vec::<String>::new() }; 2];
    let named = wait_until(PATIENCE, || dry_run(&cluster, &["--keep", "1"]).1 == goes);
    let (answer, _) = dry_run(&cluster, &["--keep", "1"]);
    assert!(named, "{answer}");
    for host in answer["hosts"].as_array().unwrap() {
        let mut images = host["images"].as_array().unwrap().iter();
        let going = images.find(|image| image["goes"] == true).unwrap();
        assert_eq!(going["references"], serde_json::json!([old]));
        assert_eq!(host["freed_bytes"], 0, "it shares the image's blocks");
    }
    // one may stay beside the current, and whoever used it lately has an hour
    assert_eq!(dry_run(&cluster, &["--keep", "2"]).1, none);
    let now = FileTimes::new().set_modified(SystemTime::now());
    for home in &homes {
        File::open(mark(home)).unwrap().set_times(now).unwrap();
    }
    assert_eq!(dry_run(&cluster, &["--keep", "1"]).1, none);
    for home in &homes {
        age(&mark(home));
    }

    retain(&mut cluster, 1);
    let gone = wait_until(PATIENCE, || {
        homes.iter().all(|home| !golden(home, &old).exists())
    });
    assert!(gone, "{}", dry_run(&cluster, &[]).0);
    for (at, home) in homes.iter().enumerate() {
        assert!(!mark(home).exists());
        assert_eq!(tart_home::difference(home, &new, &image).unwrap(), None);
        let disk = golden(home, &new).join("disk.img");
        assert_eq!(image.compare(&disk).unwrap(), None);
        let is_ready = || {
            let status = cluster.agent_status(at).unwrap_or_default();
            let ready = &status["images"][0]["ready_references"];
            *ready == serde_json::json!([new])
        };
        assert!(wait_until(PATIENCE, is_ready), "host {at}");
    }
    let (answer, going) = dry_run(&cluster, &[]);
    assert_eq!(going, none, "{answer}");
}
