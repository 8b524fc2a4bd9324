//! The demo as a process: whenever it is asked to end, nothing of it is left, and what it says of releases is so.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use e2e::image::ImageSpec;
use serde_json::Value;

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

/// Writes a disk of 24 MiB that no packing makes smaller, with so many new bytes near its beginning.
fn write_disk(path: &Path, inserted: u64) {
    const SIZE: u64 = 24 << 20;
    let spec = ImageSpec::incompressible(SIZE, SIZE, 3);
    let disk = spec.with_inserted(5 << 19, inserted).disk().unwrap();
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    disk.read(0, &mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Stages one disk after the other, and returns what the demo prints of the second one.
fn release_of(disks: [&Path; 2], recipe: &[&str]) -> Value {
    let [old, new] = disks.map(|path| path.to_str().unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args([
            "--hosts",
            "3",
            "--timeout",
            "120",
            "--layer-size",
            "8MiB",
            "--json",
        ])
        .args(["--disk", old, "--disk", new])
        .args(recipe)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let story = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{story}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["all_verified"], true, "{answer}");
    assert_eq!(answer["raw_bytes"], 24 << 20);
    let [release] = &answer["releases"].as_array().unwrap()[..] else {
        panic!("{answer}");
    };
    release.clone()
}

#[test]
fn what_a_release_of_disks_in_files_moves_is_printed_with_a_recipe_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let disks = ["old.raw", "new.raw"].map(|name| dir.path().join(name));
    write_disk(&disks[0], 0);
    write_disk(&disks[1], 4096);
    let disks = [&disks[0], &disks[1]].map(|path| path.as_path());
    let figure = |of: &Value, name: &str| {
        of[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {of}"))
    };
    for (arguments, with) in [(&["--recipe"][..], true), (&[], false)] {
        let release = release_of(disks, arguments);
        println!("{release}");
        let of = |name| figure(&release, name);
        assert_eq!(release["recipe"], with);
        // all but the first two MiB lies elsewhere, and a page of it is new
        let moved = (24 << 20) - (5 << 19);
        assert_eq!(of("changed_pages_bytes"), moved);
        assert!(of("changed_bytes") >= moved && of("changed_bytes_compressed") >= moved);
        assert!((4096..2 << 20).contains(&of("new_blocks_bytes_compressed")));
        assert!(release["makespan_s"].as_f64().unwrap() > 0.0);
        assert!(of("bytes_written") > 0);
        // a figure of the whole volume: whoever removes as much meanwhile makes it 0
        of("space_taken");
        if with {
            // a chunk with the page, and two at the ends of each layer; and the recipe itself
            let lacking = of("lacking_chunks_bytes_compressed");
            assert!((1 << 20..=7 << 20).contains(&lacking), "{lacking}");
            assert!(of("origin_bytes") * 100 <= lacking * 115 + (20 << 20));
            assert!(of("network_bytes_per_host") <= lacking);
            assert!(of("local_bytes_per_host") >= 16 << 20);
        } else {
            let image = of("image_bytes");
            assert!(of("origin_bytes") >= moved && of("origin_bytes") <= image + (1 << 20));
            assert!(of("network_bytes_per_host") >= moved / 2);
        }
    }
}

#[test]
fn a_stacked_image_is_staged_and_then_the_flat_one_that_follows_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--hosts", "2", "--timeout", "120", "--json"])
        .args(["--size", "16MiB", "--layer-size", "4MiB"])
        .args(["--stacked", "--releases", "2"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let story = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{story}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["all_verified"], true, "{answer}");
    assert_eq!(answer["verified_hosts"], 2, "{answer}");
    let releases = answer["releases"].as_array().unwrap();
    assert_eq!(releases.len(), 1, "{answer}");
    assert_eq!(releases[0]["all_verified"], true, "{answer}");
}
