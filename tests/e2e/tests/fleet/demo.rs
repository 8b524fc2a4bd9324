//! The demo as a process: whenever it is asked to end, nothing of it is left.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

/// Processes whose command line names this directory.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(dir)).collect()
}

fn send(signal: &str, child: &Child) {
    let kill = Command::new("sh")
        .args(["-c", &format!("kill -s {signal} {}", child.id())])
        .status();
    assert!(kill.unwrap().success());
}

/// Starts the demo, sends the signal when it says `phase`, and looks at what is left.
fn ended_in(phase: &str, signal: &str, arguments: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--hosts", "2"])
        .args(arguments)
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut story, mut sent) = (Vec::new(), false);
    for line in BufReader::new(demo.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let reached = !sent && line.contains(phase);
        story.push(line);
        if reached {
            assert_ne!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            send(signal, &demo);
            sent = true;
        }
    }
    let status = demo.wait().unwrap();
    let story = story.join("\n");
    assert_eq!(status.code(), Some(2), "{story}");
    assert!(story.contains("interrupted"), "{story}");
    assert_eq!(processes_of(dir.path()), [] as [String; 0]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_signal_while_the_image_is_made_leaves_nothing() {
    // minutes of work, which the test would have to wait for
    ended_in("making an image", "TERM", &["--size", "64GiB"]);
}

#[test]
fn a_signal_while_programs_start_leaves_nothing() {
    ended_in(
        "starting a coordinator",
        "INT",
        &["--size", "16MiB", "--layer-size", "4MiB"],
    );
}

#[test]
fn a_signal_while_it_stages_leaves_nothing() {
    let slow = [
        "--size",
        "64MiB",
        "--layer-size",
        "16MiB",
        "--origin-rate",
        "100000",
    ];
    ended_in("staging ", "HUP", &slow);
}

/// Runs a demo that can't go well, to its end; what it said.
fn failed(arguments: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--hosts", "2", "--timeout", "600"])
        .args(arguments)
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    assert_eq!(processes_of(dir.path()), [] as [String; 0]);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    said
}

#[test]
fn an_error_that_was_printed_ends_the_demo() {
    // nobody listens on port 1, and nothing is asked of a name that is none
    for (image, word) in [
        ("notaref", "image reference `notaref` is refused"),
        ("127.0.0.1:1/x:y", "127.0.0.1:1"),
    ] {
        let began = std::time::Instant::now();
        let said = failed(&["--image", image]);
        assert!(said.contains(word), "{said}");
        assert!(
            said.trim_end()
                .lines()
                .last()
                .is_some_and(|line| line.starts_with("demo: `parbake stage --wait` ended")),
            "{said}"
        );
        assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    }
}

#[test]
fn a_signal_while_disks_are_compared_leaves_nothing() {
    // comparing two disks takes some hundred milliseconds, the signal a few
    let large = [
        "--size",
        "192MiB",
        "--layer-size",
        "64MiB",
        "--origin-rate",
        "0",
    ];
    ended_in("comparing every disk", "TERM", &large);
}
