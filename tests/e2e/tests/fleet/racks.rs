//! The gate without a cluster: real hosts, a cap, commands, and the scripts of `deploy/racks` as they stand.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod calls;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
};

use e2e::{
    cluster::{Cluster, said, wait_until},
    image::ImageSpec,
    rig::Rig,
    site::PATIENCE,
    tart_home,
};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/racks");

/// A fleet that holds a small image.
fn staged(hosts: usize) -> (Rig, Cluster) {
    let spec = ImageSpec::incompressible(4 << 20, 2 << 20, 1);
    let rig = Rig::paced(&spec, None).unwrap();
    let cluster = rig.site.fleet(DEMO, hosts, "", "").unwrap();
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    (rig, cluster)
}

fn gate(cluster: &Cluster, arguments: &[&str]) -> Output {
    let words: Vec<&str> = ["gate"].iter().chain(arguments).copied().collect();
    cluster.parbake(&words).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// A command whose story goes into a file.
struct Waiting {
    child: Child,
    story: PathBuf,
}

impl Waiting {
    fn start(cluster: &Cluster, name: &str, arguments: &[&str]) -> Self {
        let story = cluster.directory().join(name);
        let words: Vec<&str> = ["gate"].iter().chain(arguments).copied().collect();
        let child = cluster
            .operator(&words)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&story).unwrap())
            .spawn()
            .unwrap();
        Self { child, story }
    }

    fn says(&self, words: &str) {
        let heard = wait_until(PATIENCE, || {
            fs::read_to_string(&self.story)
                .unwrap_or_default()
                .contains(words)
        });
        assert!(
            heard,
            "never said {words}: {}",
            fs::read_to_string(&self.story).unwrap()
        );
    }

    fn ends(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_place_outlives_the_host_that_has_it_and_the_coordinator() {
    let (rig, mut cluster) = staged(2);
    let image = rig.reference.clone();
    let names: Vec<String> = cluster
        .agents()
        .iter()
        .map(|agent| agent.host.clone())
        .collect();
    let (one, two) = (names[0].as_str(), names[1].as_str());
    // what was named by mistake has no answer, and the next step is said
    let unstaged = gate(&cluster, &["wait", one, "r.test/none:1"]);
    assert_eq!(code(&unstaged), 2, "{}", said(&unstaged));
    assert!(
        said(&unstaged).contains("parbake stage r.test/none:1 --hosts"),
        "{}",
        said(&unstaged)
    );
    let stranger = gate(&cluster, &["wait", "nobody", &image]);
    assert_eq!(code(&stranger), 2, "{}", said(&stranger));
    let capless = gate(&cluster, &["wait", one, &image, "--group", "ci"]);
    assert_eq!(code(&capless), 2, "{}", said(&capless));
    assert!(said(&capless).contains("--at-most"), "{}", said(&capless));

    let open = gate(
        &cluster,
        &[
            "wait",
            one,
            &image,
            "--group",
            "ci",
            "--at-most",
            "50%",
            "--json",
        ],
    );
    assert_eq!(code(&open), 0, "{}", said(&open));
    let open = json(&open);
    assert_eq!(
        (&open["reason"], &open["verdict"]),
        (&"open".into(), &"open".into())
    );
    assert_eq!(open["digest"], rig.image.digest.to_string());
    let late = gate(
        &cluster,
        &["wait", two, &image, "--group", "ci", "--timeout", "0"],
    );
    assert_eq!(code(&late), 1, "{}", said(&late));
    assert!(said(&late).contains("cap_reached"), "{}", said(&late));

    let waiting = Waiting::start(
        &cluster,
        "waiting",
        &["wait", two, &image, "--group", "ci", "--at-most", "1"],
    );
    waiting.says("1 of 1 places of group ci are taken: by ");
    cluster.kill_agent(0).unwrap();
    cluster.kill_coordinator().unwrap();
    waiting.says("can't be reached");
    cluster.start_coordinator().unwrap();
    // the place is there, also without its host and with another cap; nobody says anything of that host any more
    let list = json(&gate(&cluster, &["list", "--json"]));
    assert_eq!(list["groups"][0]["places"][0]["host"], *one, "{list}");
    let ready = || {
        let asked = gate(
            &cluster,
            &[
                "wait",
                two,
                &image,
                "--group",
                "ci",
                "--at-most",
                "9",
                "--timeout",
                "0",
                "--json",
            ],
        );
        assert_eq!(code(&asked), 1, "{}", said(&asked));
        json(&asked)["reason"] == "cap_reached"
    };
    assert!(
        wait_until(PATIENCE, ready),
        "the host that waits is ready again"
    );
    let gone = gate(&cluster, &["wait", one, &image, "--timeout", "0"]);
    assert_eq!(code(&gone), 1, "{}", said(&gone));
    assert!(said(&gone).contains("host_unheard"), "{}", said(&gone));

    let number = open["place"]["number"].as_str().unwrap();
    let done = gate(&cluster, &["done", one, "--group", "ci", "--place", number]);
    assert_eq!(code(&done), 0, "{}", said(&done));
    assert_eq!(waiting.ends(), 0);
    // the operator's word, without a number: the one that waited is gone
    let done = gate(&cluster, &["done", two, "--group", "ci"]);
    assert_eq!(code(&done), 0, "{}", said(&done));
    // a place that nobody gives back ends by itself, and the log says so
    let brief = gate(
        &cluster,
        &[
            "wait",
            two,
            &image,
            "--group",
            "brief",
            "--at-most",
            "1",
            "--for",
            "1",
        ],
    );
    assert_eq!(code(&brief), 0, "{}", said(&brief));
    let over = || {
        let log = cluster.coordinator_log();
        log.iter().any(|line| {
            line["group"] == "brief"
                && line["message"]
                    .as_str()
                    .is_some_and(|said| said.starts_with("a place's time was over"))
        })
    };
    assert!(wait_until(PATIENCE, over));
    // a host that is revoked while it waits
    let full = gate(
        &cluster,
        &["wait", two, &image, "--group", "ci", "--timeout", "0"],
    );
    assert_eq!(code(&full), 0, "{}", said(&full));
    cluster.start_agent(0).unwrap();
    let waiting = Waiting::start(
        &cluster,
        "revoked",
        &["wait", one, &image, "--group", "ci", "--at-most", "1"],
    );
    waiting.says("cap_reached");
    cluster.revoke(0).unwrap();
    waiting.says("revoked");
    assert_eq!(waiting.ends(), 1);
}

#[test]
fn commands_run_one_after_the_other_under_a_cap_of_one() {
    let (rig, cluster) = staged(3);
    let log = cluster.directory().join("commands");
    let script = format!(
        "echo begin $PARBAKE_HOST >> {0}; test \"$PARBAKE_IMAGE $PARBAKE_DIGEST $PARBAKE_GROUP ${{#PARBAKE_PLACE}}\" = '{1} {2} ci 16' && echo end $PARBAKE_HOST >> {0}",
        log.display(),
        rig.reference,
        rig.image.digest
    );
    let run = |more: &[&str], script: &str| {
        let mut words = vec![
            "run",
            &rig.reference,
            "--group",
            "ci",
            "--at-most",
            "1",
            "--json",
        ];
        words.extend(more);
        words.extend(["--", "sh", "-c", script]);
        gate(&cluster, &words)
    };
    let all = run(&[], &script);
    assert_eq!(code(&all), 0, "{}", said(&all));
    let report = json(&all);
    assert_eq!(report["hosts_done"], 3, "{report}");
    let told = fs::read_to_string(&log).unwrap();
    let lines: Vec<(&str, &str)> = told
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    assert_eq!(lines.len(), 6, "{told}");
    for pair in lines.chunks(2) {
        assert_eq!(
            (pair[0].0, pair[1].0, pair[0].1),
            ("begin", "end", pair[1].1),
            "{told}"
        );
    }
    assert!(
        json(&gate(&cluster, &["list", "--json"]))["groups"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    // a failure is named, and keeps others from beginning
    let states = |report: &Value| -> Vec<String> {
        let hosts = report["hosts"].as_array().unwrap().iter();
        let mut states: Vec<String> = hosts
            .map(|host| host["state"].as_str().unwrap().to_owned())
            .collect();
        states.sort();
        states
    };
    let failed = run(&[], "exit 7");
    assert_eq!(code(&failed), 1, "{}", said(&failed));
    assert_eq!(
        states(&json(&failed)),
        ["failed", "not_started", "not_started"]
    );
    assert!(
        said(&failed).contains("exit status: 7"),
        "{}",
        said(&failed)
    );
    let all = run(&["--keep-going"], "exit 7");
    assert_eq!(states(&json(&all)), ["failed"; 3], "{}", said(&all));
    // one that hangs is ended, with its group
    let host = cluster.agents()[0].host.clone();
    let hung = run(
        &["--hosts", &host, "--command-timeout", "1"],
        "sleep 600 & wait",
    );
    assert_eq!(code(&hung), 1, "{}", said(&hung));
    assert_eq!(states(&json(&hung)), ["timed_out"]);
    assert!(
        json(&gate(&cluster, &["list", "--json"]))["groups"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let unstaged = gate(
        &cluster,
        &[
            "run",
            "r.test/none:1",
            "--group",
            "ci",
            "--at-most",
            "1",
            "--",
            "true",
        ],
    );
    assert_eq!(code(&unstaged), 2, "{}", said(&unstaged));
    assert!(
        said(&unstaged).contains("parbake stage r.test/none:1"),
        "{}",
        said(&unstaged)
    );
}

/// A stand-in for `orchard`, by the commands and answers of its source: one file for each VM, which is `pending` when
/// it is first looked at. It refuses a VM whose image isn't on the worker, where Orchard would pull.
fn orchard(dir: &Path, homes: &str) {
    let text = format!(
        r#"#!/bin/sh
set -eu
vms={dir}/vms
mkdir -p "$vms"
case "$1 $2" in
"get vm")
	name=${{3%/status}}
	test -f "$vms/$name" || {{ echo "no such VM" >&2; exit 1; }}
	cat "$vms/$name"
	echo running > "$vms/$name"
	;;
"delete vm")
	rm "$vms/$3"
	echo "delete $3" >> {dir}/orchard.log
	;;
"create vm")
	test "$4 $6 $7 $8 $9" = "--image --image-pull-policy IfNotPresent --labels host=${{3#runner-}}"
	host=${{9#host=}}
{homes}
	test -f "$disk" || {{ echo "$5 would be pulled" >&2; exit 1; }}
	test ! -f "$vms/$3"
	echo pending > "$vms/$3"
	echo "create $3 $5" >> {dir}/orchard.log
	;;
*) exit 2 ;;
esac
"#,
        dir = dir.display(),
    );
    program(&dir.join("orchard"), &text);
}

/// A stand-in for `ssh`, which runs the command here as that host, and one for `tart`, which has a file for each VM and
/// refuses to clone what would be pulled.
fn macs(dir: &Path, homes: &str) {
    let ssh = format!(
        "#!/bin/sh\nset -eu\nhost=$1; shift\n{homes}\nexport RACK_STATE={0}/$host RACK_DISK=$disk\nexec \"$@\"\n",
        dir.display()
    );
    program(&dir.join("ssh"), &ssh);
    let tart = r#"#!/bin/sh
set -eu
vms=$RACK_STATE/vms
mkdir -p "$vms"
case $1 in
clone) test -f "$RACK_DISK" || exit 1; test ! -f "$vms/$3"; echo "$2" > "$vms/$3" ;;
delete) rm "$vms/$2" ;;
rename) test ! -f "$vms/$3"; mv "$vms/$2" "$vms/$3" ;;
*) exit 2 ;;
esac
"#;
    program(&dir.join("tart"), tart);
}

#[test]
fn the_scripts_for_racks_roll_hosts_of_orchard_and_of_a_ci_runner() {
    let (rig, cluster) = staged(2);
    let dir = cluster.directory().join("rack");
    fs::create_dir(&dir).unwrap();
    // where each host has the image's disk
    let homes: String = cluster
        .agents()
        .iter()
        .map(|agent| {
            let disk = tart_home::disk(&agent.tart_home(), &rig.reference);
            format!("{}) disk={} ;;\n", agent.host, disk.display())
        })
        .collect();
    let homes = format!("case $host in\n{homes}esac\n");
    orchard(&dir, &homes);
    macs(&dir, &homes);
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let hosts: Vec<String> = cluster
        .agents()
        .iter()
        .map(|agent| agent.host.clone())
        .collect();
    let command = |script: &str| {
        let script = format!("{SCRIPTS}/{script}");
        let words = [
            "gate",
            "run",
            &rig.reference,
            "--group",
            "rack",
            "--at-most",
            "1",
            "--",
            &script,
        ];
        let mut command = cluster.operator(&words);
        command.env("PATH", &path).env("RACK_SSH", dir.join("ssh"));
        command.env("RACK_BASE_SCRIPT", format!("{SCRIPTS}/tart-base.sh"));
        command
    };

    // Orchard: twice, so that the second time replaces VMs
    for round in 0..2 {
        let rolled = command("orchard-roll.sh").output().unwrap();
        assert_eq!(code(&rolled), 0, "{round}: {}", said(&rolled));
    }
    let told = fs::read_to_string(dir.join("orchard.log")).unwrap();
    for host in &hosts {
        let of = |line: &&str| line.contains(&format!("runner-{host}"));
        let words: Vec<&str> = told
            .lines()
            .filter(of)
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(words, ["create", "delete", "create"], "{told}");
    }

    // a CI runner: one host is idle, on the other a job runs, whose end brings the new image
    let hook = |host: &str, script: &str| {
        let status = std::process::Command::new(dir.join("ssh"))
            .args([host, &format!("{SCRIPTS}/{script}")])
            .env("PATH", &path)
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    };
    hook(&hosts[1], "job-started.sh");
    let story = dir.join("story");
    let mut rolling = command("offer.sh")
        .stdout(Stdio::null())
        .stderr(fs::File::create(&story).unwrap())
        .spawn()
        .unwrap();
    let base = |host: &str| dir.join(host).join("vms/ci-base");
    let idle = wait_until(PATIENCE, || base(&hosts[0]).exists());
    assert!(idle, "{}", fs::read_to_string(&story).unwrap());
    assert!(wait_until(PATIENCE, || dir
        .join(&hosts[1])
        .join("offered")
        .exists()));
    assert!(!base(&hosts[1]).exists(), "not while a job runs");
    assert!(rolling.try_wait().unwrap().is_none());
    hook(&hosts[1], "job-completed.sh");
    assert!(
        rolling.wait().unwrap().success(),
        "{}",
        fs::read_to_string(&story).unwrap()
    );
    for host in &hosts {
        assert_eq!(
            fs::read_to_string(base(host)).unwrap().trim(),
            rig.reference
        );
        assert!(!dir.join(host).join("busy").exists());
    }
    hook(&hosts[0], "job-started.sh");
    hook(&hosts[0], "job-completed.sh");
}

#[test]
fn a_base_vm_outlives_a_clone_that_fails_and_an_offer_that_is_taken_back() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let disk = dir.join("disk");
    macs(dir, &format!("disk={}\n", disk.display()));
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let script = |words: &[&str]| {
        let mut command = std::process::Command::new(dir.join("ssh"));
        let script = format!("{SCRIPTS}/tart-base.sh");
        command
            .arg("mac")
            .arg(script)
            .args(words)
            .env("PATH", &path);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let (state, base) = (dir.join("mac"), dir.join("mac/vms/ci-base"));
    let has = || fs::read_to_string(&base).unwrap().trim().to_owned();
    fs::write(&disk, "").unwrap();
    assert!(script(&["offer", "r/v1"]).status().unwrap().success());
    assert_eq!(has(), "r/v1");
    // a job runs while v2 is offered, and at its end v2 can't be cloned
    assert!(script(&["started"]).status().unwrap().success());
    let mut offer = script(&["offer", "r/v2"]).spawn().unwrap();
    assert!(wait_until(PATIENCE, || state.join("offered").exists()));
    fs::remove_file(&disk).unwrap();
    assert!(script(&["completed"]).status().unwrap().success());
    assert_eq!(has(), "r/v1");
    assert!(!offer.wait().unwrap().success(), "it tried by itself");
    assert_eq!(has(), "r/v1");
    assert!(!state.join("offered").exists() && !state.join("busy").exists());
    // whoever offers v3 goes away while a job runs: its end takes nothing
    fs::write(&disk, "").unwrap();
    assert!(script(&["started"]).status().unwrap().success());
    let mut offer = script(&["offer", "r/v3"]).spawn().unwrap();
    assert!(wait_until(PATIENCE, || state.join("offered").exists()));
    let pid = i32::try_from(offer.id()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(!offer.wait().unwrap().success());
    assert!(!state.join("offered").exists());
    assert!(script(&["completed"]).status().unwrap().success());
    assert_eq!(has(), "r/v1");
    // and the next offer is taken
    assert!(script(&["offer", "r/v4"]).status().unwrap().success());
    assert_eq!(has(), "r/v4");
}

#[test]
fn what_a_dead_job_or_offer_left_locked_is_taken_over() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let disk = dir.join("disk");
    fs::write(&disk, "").unwrap();
    macs(dir, &format!("disk={}\n", disk.display()));
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let script = |words: &[&str]| {
        let mut command = std::process::Command::new(dir.join("ssh"));
        command
            .arg("mac")
            .arg(format!("{SCRIPTS}/tart-base.sh"))
            .args(words)
            .env("PATH", &path)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let runs = |words: &[&str]| script(words).status().unwrap().success();
    let (state, base) = (dir.join("mac"), dir.join("mac/vms/ci-base"));
    let busy = state.join("busy");
    let owner = || -> String {
        let mut owners = fs::read_dir(&busy).unwrap();
        owners
            .next()
            .unwrap()
            .unwrap()
            .file_name()
            .into_string()
            .unwrap()
    };
    let has = || fs::read_to_string(&base).unwrap().trim().to_owned();
    assert!(runs(&["started"]));
    let mine = owner();
    let words: Vec<&str> = mine.split('.').collect();
    let [kind, pid, boot, _] = words[..] else {
        panic!("{mine}");
    };
    assert_eq!(kind, "job");
    assert_eq!(pid, std::process::id().to_string(), "whoever calls hooks");
    assert!(runs(&["completed"]) && !busy.exists());
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    let dead = ended.id();
    let leave = |owner: String| {
        fs::create_dir(&busy).unwrap();
        fs::write(busy.join(owner), "").unwrap();
    };
    // an offer that was killed, and whatever the Mac's last start ended, also under a process id that is in use again
    for (left, image) in [
        (format!("offer.{dead}.{boot}.1"), "r/v1"),
        (format!("job.{pid}.another-start.1"), "r/v2"),
        (format!("offer.{pid}.another-start.1"), "r/v3"),
    ] {
        leave(left);
        assert!(runs(&["offer", image]));
        assert_eq!(has(), image);
        assert!(!busy.exists());
    }
    // a job without its second hook: an offer waits, the next job doesn't, and its end takes the offer
    leave(format!("job.{dead}.{boot}.1"));
    let mut offer = script(&["offer", "r/v4"]).spawn().unwrap();
    assert!(wait_until(PATIENCE, || state.join("offered").exists()));
    assert!(runs(&["started"]));
    assert_eq!(has(), "r/v3");
    assert!(owner().starts_with(&format!("job.{pid}.")));
    assert!(runs(&["completed"]));
    assert!(offer.wait().unwrap().success());
    assert_eq!(has(), "r/v4");
    assert!(!busy.exists());
}
