//! What the pages tell a newcomer to type: `deploy/enroll-macs.sh` as it stands, with stand-ins for `ssh`, `scp`,
//! `sudo` and launchd.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use e2e::{
    cluster::{Cluster, said},
    image::ImageSpec,
    rig::Rig,
};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/enroll-macs.sh");

/// Runs a command "on" the Mac: in the Mac's directory, which is all that the agent there knows of the system.
const SSH: &str = r#"#!/bin/sh
[ "$1" = -n ] && shift
at=$1; shift
cd "$MACS/$at" 2>/dev/null || { echo "ssh: $at doesn't answer" >&2; exit 255; }
export PARBAKE_INSTALL_ROOT="$PWD" PARBAKE_AGENT_STATE="$PWD/var/lib/parbake-agent"
exec sh -c "$*"
"#;
const SCP: &str = r#"#!/bin/sh
[ "$1" = -q ] && shift
cd "$MACS/${2%%:*}" 2>/dev/null || { echo "scp: ${2%%:*} doesn't answer" >&2; exit 255; }
cp "$1" "${2#*:}"
"#;
/// What root does in the system's directories is done in the Mac's.
const SUDO: &str = r#"#!/bin/sh
if [ "$1" = -u ]; then echo "$2" > as; shift 2; fi
n=$#
while [ "$n" -gt 0 ]; do
	word=$1; shift
	case $word in /usr/local/* | /etc/parbake/* | /var/lib/*) word=$PWD$word ;; esac
	set -- "$@" "$word"; n=$((n - 1))
done
exec "$@"
"#;
const LAUNCHCTL: &str = "#!/bin/sh\necho \"$*\" >> launchctl\n";

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

struct Macs {
    bin: PathBuf,
    macs: PathBuf,
    agent: PathBuf,
}

impl Macs {
    fn new(dir: &Path, names: &[&str]) -> Self {
        let (bin, macs) = (dir.join("bin"), dir.join("macs"));
        fs::create_dir(&bin).unwrap();
        let programs = [
            ("ssh", SSH),
            ("scp", SCP),
            ("sudo", SUDO),
            ("launchctl", LAUNCHCTL),
        ];
        for (name, text) in programs {
            program(&bin.join(name), text);
        }
        for name in names {
            fs::create_dir_all(macs.join(name)).unwrap();
        }
        let agent = dir.join("parbake-agent");
        program(&agent, &format!("#!/bin/sh\nexec {DEMO} agent \"$@\"\n"));
        Self { bin, macs, agent }
    }

    fn enrol(&self, cluster: &Cluster, words: &[&str]) -> Output {
        let config = cluster.directory().join("coordinator/fleet.toml");
        let path = std::env::var("PATH").unwrap();
        Command::new(SCRIPT)
            .args(["--api", &format!("https://{}", cluster.api())])
            .args(["--user", "m1", "--agent", self.agent.to_str().unwrap()])
            .args(words)
            .env("PATH", format!("{}:{path}", self.bin.display()))
            .env("MACS", &self.macs)
            .env(
                "PARBAKE_COORDINATOR",
                format!("{DEMO} coordinator --config {}", config.display()),
            )
            .output()
            .unwrap()
    }

    fn read(&self, mac: &str, file: &str) -> String {
        fs::read_to_string(self.macs.join(mac).join(file)).unwrap_or_default()
    }
}

#[test]
fn macs_are_enrolled_by_a_loop_that_may_run_again() {
    let rig = Rig::paced(&ImageSpec::incompressible(4 << 20, 2 << 20, 1), None).unwrap();
    let cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    let macs = Macs::new(rig.site.dir(), &["mini-1", "10.0.0.12"]);
    let all = ["mini-1", "mini-2=10.0.0.12", "mini-3"];

    let first = macs.enrol(&cluster, &all);
    let told = said(&first);
    assert_eq!(first.status.code(), Some(1), "{told}");
    for words in [
        "mini-1: is enrolled",
        "mini-2: is enrolled",
        "mini-3 doesn't answer",
        "not enrolled: mini-3;",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let settings = macs.read("mini-1", "etc/parbake/agent.toml");
    assert!(settings.contains("/opt/homebrew/bin/tart"), "{settings}");
    let key = macs.read("mini-1", "var/lib/parbake-agent/host.pem");
    assert!(key.contains("PRIVATE KEY"), "{told}");
    assert_eq!(macs.read("mini-1", "as"), "m1\n");
    let started = macs.read("mini-1", "launchctl");
    assert_eq!(started, "kickstart -k system/dev.parbake.agent\n".repeat(2));

    // again, with the last one there: who is enrolled keeps key and process
    fs::create_dir(macs.macs.join("mini-3")).unwrap();
    let second = macs.enrol(&cluster, &all);
    let told = said(&second);
    assert_eq!(second.status.code(), Some(0), "{told}");
    for words in [
        "mini-1: was enrolled",
        "mini-2: was enrolled",
        "mini-3: is enrolled",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(macs.read("mini-1", "var/lib/parbake-agent/host.pem"), key);
    assert_eq!(macs.read("mini-1", "launchctl"), started);
    // another program is installed, and started
    program(
        &macs.agent,
        &format!("#!/bin/sh\n# the next version\nexec {DEMO} agent \"$@\"\n"),
    );
    let third = macs.enrol(&cluster, &["mini-1"]);
    assert_eq!(third.status.code(), Some(0), "{}", said(&third));
    let installed = macs.read("mini-1", "usr/local/bin/parbake-agent");
    assert!(installed.contains("the next version"), "{installed}");
    assert_eq!(
        macs.read("mini-1", "launchctl").lines().count(),
        started.lines().count() + 1
    );

    let listed = Command::new(DEMO)
        .arg("coordinator")
        .arg("--config")
        .arg(cluster.directory().join("coordinator/fleet.toml"))
        .args(["hosts", "--json"])
        .output()
        .unwrap();
    for host in ["mini-1", "mini-2", "mini-3"] {
        assert!(said(&listed).contains(host), "{}", said(&listed));
    }
    // what isn't a name goes into no shell
    let odd = macs.enrol(&cluster, &["mini-1;reboot"]);
    assert_eq!(odd.status.code(), Some(2), "{}", said(&odd));
}
