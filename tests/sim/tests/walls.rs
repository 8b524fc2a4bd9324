//! The walls between rooms: what the pure crates and the simulator are built from is exactly what `walls/*.txt` allow,
//! the two programs don't know each other, and QUIC is behind one door.
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

/// What `cargo tree` lists.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--prefix", "none"])
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "cargo tree {arguments:?}: {}",
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

/// All `.rs` files below a directory, but what is built.
fn sources(directory: &Path, all: &mut String) {
    let entries = std::fs::read_dir(directory).expect("the sources can be listed");
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(&path).expect("a source is text"));
        }
    }
}

#[test]
fn what_the_security_page_says_holds_a_claim_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/SECURITY.md")).expect("the page is there");
    let mut all = String::new();
    sources(&root, &mut all);
    let mut found = 0;
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let held_by = line.trim_end_matches(" |").rsplit(" | ").next();
        for named in held_by.unwrap_or_default().split('`').skip(1).step_by(2) {
            let is_test = named.matches('_').count() >= 2 && !named.contains(['/', '.', ' ']);
            let is_there = match named.ends_with(".rs") {
                true => root.join(named).is_file(),
                false if is_test => all.contains(&format!("fn {named}(")),
                false => continue,
            };
            assert!(is_there, "docs/SECURITY.md names {named}");
            found += 1;
        }
    }
    assert!(found > 30, "the page's tables are read: {found}");
}

#[test]
fn the_pure_crates_are_built_from_what_is_allowed() {
    for package in ["proto", "swarm", "rollout", "sim"] {
        let more: Vec<String> = tree(&["-e", "normal", "-p", package])
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
fn the_programs_do_not_know_each_other() {
    // The coordinator's own tests may drive agents: they check that both programs agree about names.
    for (program, edges, others) in [
        (
            "agent",
            "normal,build,dev",
            &[
                "coordinator",
                "rollout",
                "kube",
                "oci-client",
                "oci-spec",
                "reqwest",
            ][..],
        ),
        (
            "coordinator",
            "normal,build",
            &[
                "agent",
                "swarm",
                "lz4_flex",
                "oci-client",
                "oci-spec",
                "reqwest",
            ],
        ),
        // what runs on operators' machines links nothing that only a cluster or a host needs; it pushes recipes by
        // oci-client
        (
            "parbake",
            "normal,build,dev",
            &["coordinator", "agent", "kube"],
        ),
    ] {
        let reached = tree(&["-e", edges, "-p", program]);
        assert!(reached.contains("wire"), "{program} is listed");
        for other in others {
            assert!(!reached.contains(*other), "{program} reaches {other}");
        }
    }
}

#[test]
fn only_wire_speaks_quic() {
    let quic = ["quinn", "quinn-proto", "quinn-udp"];
    let direct = [
        "-e",
        "normal,build,dev",
        "--workspace",
        "--depth",
        "1",
        "-i",
    ];
    for crate_name in quic {
        let mut users = tree(&[&direct[..], &[crate_name]].concat());
        users.retain(|user| !quic.contains(&user.as_str()));
        let wire = BTreeSet::from(["wire".to_owned()]);
        assert!(users.is_subset(&wire), "{crate_name} is used by {users:?}");
        assert!(
            crate_name != "quinn" || users == wire,
            "the crate is listed"
        );
    }
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
