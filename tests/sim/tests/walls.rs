//! The walls between rooms: what the pure crates and the simulator are built from is exactly what `walls/*.txt` allow.
//!
//! A new dependency of a pure crate is a decision: it goes into the list in the same commit, and says why.

use std::{collections::BTreeSet, path::Path, process::Command};

/// Names that none of them may ever reach: runtimes, sockets, clocks, and each other.
const NEVER: [&str; 12] = [
    "tokio",
    "futures-util",
    "async-std",
    "smol",
    "quinn",
    "rustls",
    "hyper",
    "mio",
    "socket2",
    "agent",
    "coordinator",
    "getrandom",
];

fn tree(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-p",
            package,
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo tree -p {package}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn allowed(package: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/walls/{package}.txt"));
    std::fs::read_to_string(&path)
        .expect("the list lies beside this test")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_pure_crates_are_built_from_what_is_allowed() {
    for package in ["proto", "swarm", "rollout", "sim"] {
        let more: Vec<String> = tree(package)
            .difference(&allowed(package))
            .cloned()
            .collect();
        assert!(
            more.is_empty(),
            "{package} reaches {more:?}: not in tests/walls/{package}.txt"
        );
        for name in NEVER {
            assert!(
                !allowed(package).contains(name),
                "{package} may never reach {name}"
            );
        }
    }
    assert!(
        !allowed("swarm").contains("rollout"),
        "swarm and rollout don't know each other"
    );
    assert!(
        !allowed("rollout").contains("swarm"),
        "swarm and rollout don't know each other"
    );
}

#[test]
fn the_pure_crates_have_no_std() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in [
        "proto/src/lib.rs",
        "agent/swarm/src/lib.rs",
        "coordinator/rollout/src/lib.rs",
    ] {
        let text = std::fs::read_to_string(root.join(file)).expect("the crate's root");
        assert!(text.lines().any(|line| line == "#![no_std]"), "{file}");
    }
}
