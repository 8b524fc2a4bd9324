//! What the real programs say at bad moments: nothing false, nothing stale, and the right exit status.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use e2e::{
    cluster::{Cluster, said, wait_until},
    image::ImageSpec,
    rig::Rig,
    site::PATIENCE,
};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// A third of the image comes in about four seconds.
const RATE: u64 = 2_000_000;

fn rig(bytes_per_s: u64) -> Rig {
    Rig::paced(
        &ImageSpec::incompressible(24 << 20, 8 << 20, 1),
        bytes_per_s,
    )
    .unwrap()
}

fn fleet(rig: &Rig, hosts: usize, agent: &str) -> Cluster {
    rig.site.fleet(DEMO, hosts, agent, "").unwrap()
}

/// A command that runs, and what it has said on stderr so far.
struct Running {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Self {
            child,
            said,
            reader,
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    /// Waits until it says this.
    fn says(&self, words: &str) {
        let heard = wait_until(PATIENCE, || self.said().contains(words));
        assert!(heard, "never said {words}: {}", self.said());
    }

    /// Its exit status and all that it said.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        self.reader.join().unwrap();
        (status.code(), self.said.lock().unwrap().join("\n"))
    }
}

/// The percentages in lines of progress.
fn percentages(said: &str) -> Vec<u64> {
    said.lines()
        .filter_map(|line| {
            let (before, _) = line.split_once("% of ")?;
            before.rsplit(' ').next()?.parse().ok()
        })
        .collect()
}

#[test]
fn a_coordinator_that_is_away_is_waited_for_and_said_to_be_away() {
    let rig = rig(RATE);
    let mut cluster = fleet(&rig, 2, "");
    let waiting = Running::start(cluster.operator(&["stage", &rig.reference, "--wait"]));
    assert!(wait_until(PATIENCE, || rig.site.served() > 4 << 20));
    cluster.kill_coordinator().unwrap();
    waiting.says("can't be reached for");
    cluster.start_coordinator().unwrap();
    let (code, story) = waiting.end();
    assert_eq!(code, Some(0), "{story}");
    for line in story
        .lines()
        .filter(|line| line.contains("can't be reached"))
    {
        assert!(line.contains("staging goes on; last heard "), "{line}");
        assert!(!line.contains("/s,") && !line.contains("to go"), "{line}");
    }
    let shown = percentages(&story);
    assert!(shown.windows(2).all(|pair| pair[0] <= pair[1]), "{story}");
    assert_eq!(shown.last(), Some(&100), "{story}");
    assert!(rig.difference_anywhere(&cluster).unwrap().is_none());

    // how long it took is told once, and outlives the coordinator
    let took = cluster.status(&rig.reference).unwrap()["staged_seconds"].clone();
    assert!(took.as_f64().is_some_and(|took| took > 3.0), "{took}");
    for _ in 0..2 {
        cluster.kill_coordinator().unwrap();
        cluster.start_coordinator().unwrap();
        let again = || cluster.status(&rig.reference).unwrap()["state"] == "present";
        assert!(wait_until(PATIENCE, again));
        assert_eq!(
            cluster.status(&rig.reference).unwrap()["staged_seconds"],
            took
        );
    }
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    assert_eq!(
        cluster.status(&rig.reference).unwrap()["staged_seconds"],
        took
    );
    let log = cluster.coordinator_log();
    let told: Vec<&Value> = log
        .iter()
        .filter(|line| line["message"] == "image is staged everywhere")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["reference"], rig.reference.as_str());
}

#[test]
fn a_coordinator_that_starts_late_is_asked_again() {
    let rig = rig(100_000_000);
    let mut cluster = fleet(&rig, 1, "");
    cluster.kill_coordinator().unwrap();
    // who doesn't wait is told at once
    let refused = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        said(&refused).contains("does it run?"),
        "{}",
        said(&refused)
    );
    let waiting = Running::start(cluster.operator(&["stage", &rig.reference, "--wait"]));
    waiting.says("can't be reached; asking again");
    cluster.start_coordinator().unwrap();
    let (code, story) = waiting.end();
    assert_eq!(code, Some(0), "{story}");
}

#[test]
fn waiting_ends_by_what_happened_while_the_coordinator_was_away() {
    let rig = rig(300_000);
    let mut cluster = fleet(&rig, 1, "");
    let wait = |cluster: &Cluster| {
        let waiting = Running::start(cluster.operator(&["stage", &rig.reference, "--wait"]));
        waiting.says("% of ");
        waiting
    };
    // somebody cancels it as soon as the coordinator is back
    let waiting = wait(&cluster);
    cluster.kill_coordinator().unwrap();
    waiting.says("can't be reached for");
    cluster.start_coordinator().unwrap();
    let cancelled = cluster.parbake(&["cancel", &rig.reference]).unwrap();
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    let (code, story) = waiting.end();
    assert_eq!(code, Some(1), "{story}");
    assert!(story.contains("was cancelled or superseded"), "{story}");
    // the operator's time is up
    let late = cluster
        .parbake(&["stage", &rig.reference, "--wait", "--timeout", "2"])
        .unwrap();
    assert_eq!(late.status.code(), Some(1), "{}", said(&late));
    assert!(said(&late).contains("not staged in time; it goes on"));
    // it comes back with another token: that is no absence
    let waiting = wait(&cluster);
    cluster.kill_coordinator().unwrap();
    waiting.says("can't be reached for");
    let token = rig.site.dir().join("coordinator/state/api.token");
    std::fs::write(&token, "another-token-of-the-same-length-0123456789\n").unwrap();
    cluster.start_coordinator().unwrap();
    let (code, story) = waiting.end();
    assert_eq!(code, Some(2), "{story}");
    assert!(story.contains("doesn't accept the token in "), "{story}");
}

#[test]
fn an_image_that_is_staged_anew_has_its_own_numbers_and_a_limit_isnt_the_registrys() {
    let rig = rig(100_000_000);
    let cluster = fleet(&rig, 1, "download_bytes_per_second = 3000000");
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    let cache = cluster.agents()[0].tart_home().join("cache/OCIs");
    std::fs::remove_dir_all(cache).unwrap();
    let host = || cluster.status(&rig.reference).unwrap()["hosts"][0].clone();
    assert!(wait_until(PATIENCE, || host()["state"] != "present"));
    let seen = Mutex::new(Vec::new());
    let whole = wait_until(PATIENCE, || {
        let now = host();
        let present = now["state"] == "present";
        seen.lock().unwrap().push(now);
        present
    });
    assert!(whole, "{:?}", host());
    let seen = seen.into_inner().unwrap();
    let held = |host: &Value| host["held_bytes"].as_u64().unwrap();
    // from nothing to everything, and never back
    assert!(held(&seen[0]) * 2 < rig.image.disk.size(), "{:?}", seen[0]);
    assert!(seen.windows(2).all(|pair| held(&pair[0]) <= held(&pair[1])));
    let bytes = |name: &str| seen.last().unwrap()["bytes"][name].as_u64().unwrap();
    let received = bytes("origin") + bytes("peers");
    assert!(
        received <= rig.image.blob_bytes() * 11 / 10,
        "{received} of {} received: two stagings in one",
        rig.image.blob_bytes()
    );
    let log = cluster.coordinator_log();
    let blamed = log.iter().find(|line| {
        let said = line["message"].as_str().unwrap_or_default();
        line["level"] == "WARN" && said.contains("registry")
    });
    assert_eq!(blamed, None);
}

#[test]
fn what_means_something_else_is_said_with_its_own_words() {
    let rig = rig(100_000_000);
    let cluster = fleet(&rig, 1, "");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let output = cluster
            .operator(arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        (output.status.code(), said(&output))
    };
    let wrong = rig.site.dir().join("wrong-token");
    std::fs::write(&wrong, "wrong\n").unwrap();
    let wrong = wrong.to_str().unwrap();
    let (code, story) = run(&["roll"], &[("PARBAKE_TOKEN_FILE", wrong)]);
    assert_eq!(code, Some(2), "{story}");
    assert!(story.contains(wrong), "{story}");
    for command in [
        &["roll"][..],
        &["roll", "runners", "--wait"],
        &["pause", "runners"],
    ] {
        let (code, story) = run(command, &[]);
        assert_eq!(code, Some(2), "{story}");
        assert!(story.contains("watches no cluster"), "{story}");
        assert!(!story.contains("no pool is gated"), "{story}");
    }
    let plain = format!("http://{}", cluster.api());
    let (code, story) = run(&["status"], &[("PARBAKE_API", &plain)]);
    assert_eq!(code, Some(2), "{story}");
    assert!(story.contains("use https://"), "{story}");
    let pin = "ab".repeat(32);
    let (code, story) = run(&["status"], &[("PARBAKE_CA_PIN", &pin)]);
    assert_eq!(code, Some(2), "{story}");
    assert!(
        story.contains("isn't the coordinator with this pin"),
        "{story}"
    );
    // and while it is waited for
    let waiting = ["stage", &rig.reference, "--wait"];
    let (code, story) = run(&waiting, &[("PARBAKE_CA_PIN", &pin)]);
    assert_eq!(code, Some(2), "{story}");

    // once the agent has its session
    let why = || run(&["why", "mac-000"], &[]);
    let well = (Some(0), "mac-000: nothing is missing\n".to_owned());
    assert!(wait_until(PATIENCE, || why() == well), "{:?}", why());
}

fn coordinator(state: &Path, arguments: &[&str]) -> Output {
    Command::new(DEMO)
        .arg("coordinator")
        .arg("--state-dir")
        .arg(state)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn nothing_is_made_where_no_coordinator_ever_ran() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("fresh");
    for command in [
        &["pin"][..],
        &["ca"],
        &["token", "--host", "mini-1"],
        &["hosts"],
        &["revoke", "mini-1"],
        &["readmit", "mini-1"],
    ] {
        let output = coordinator(&state, command);
        let story = said(&output);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {story}");
        assert!(output.stdout.is_empty(), "{command:?}: {story}");
        assert!(story.contains("no coordinator ever ran on "), "{story}");
        assert!(!state.exists(), "{command:?} made something");
    }
}

#[test]
fn a_typo_is_no_revocation_and_the_pin_is_taken_in_either_case() {
    let rig = rig(100_000_000);
    let cluster = fleet(&rig, 1, "");
    let state = rig.site.dir().join("coordinator/state");
    let typo = coordinator(&state, &["revoke", "mac-OOO", "--reason", "stolen"]);
    assert_eq!(typo.status.code(), Some(2), "{}", said(&typo));
    let typo = coordinator(&state, &["revoke", "mac-00o", "--reason", "stolen"]);
    assert_eq!(typo.status.code(), Some(2), "{}", said(&typo));
    assert!(
        said(&typo).contains("nothing was revoked"),
        "{}",
        said(&typo)
    );
    let forced = coordinator(&state, &["revoke", "mac-00o", "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));

    let pin = coordinator(&state, &["pin"]);
    let upper = String::from_utf8(pin.stdout).unwrap().to_uppercase();
    let hosts = cluster
        .operator(&["hosts"])
        .env("PARBAKE_CA_PIN", upper)
        .output();
    assert!(hosts.unwrap().status.success());

    let revoked = coordinator(&state, &["revoke", "mac-000", "--reason", "disk died"]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    // the agent is turned away by what is wrong, and its operator sees it where it is asked for
    let turned_away = |line: &Value| {
        let said = line["error"].as_str().unwrap_or_default();
        said.contains("mac-000 is revoked; `parbake-coordinator readmit mac-000`")
    };
    assert!(
        wait_until(PATIENCE, || cluster.agents()[0]
            .log()
            .iter()
            .any(turned_away)),
        "{:?}",
        cluster.agents()[0].log().last()
    );
    let why = || said(&cluster.parbake(&["why", "mac-000"]).unwrap());
    assert!(
        wait_until(PATIENCE, || why().contains(" ago, from 127.0.0.1:")),
        "{}",
        why()
    );
    assert!(why().contains("(disk died)"), "{}", why());
    let listed = said(&cluster.parbake(&["hosts"]).unwrap());
    assert!(listed.contains("revoked (disk died)"), "{listed}");
    let listed = said(&coordinator(&state, &["hosts"]));
    assert!(listed.contains("disk died"), "{listed}");
}

#[test]
fn logs_in_files_have_no_colours() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut child = Command::new(DEMO)
        .args(["coordinator", "run", "--open"])
        .arg("--state-dir")
        .arg(&state)
        .args([
            "--listen",
            "127.0.0.1:0",
            "--api",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.find_map(|line| line.ok().filter(|line| line.contains("coordinator serves")));
    child.kill().unwrap();
    child.wait().unwrap();
    let line = line.unwrap();
    assert!(
        line.contains("quic=127.0.0.1:") && !line.contains('\u{1b}'),
        "{line:?}"
    );
}
