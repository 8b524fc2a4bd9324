//! Within a crate no file needs a file that needs it back, directly or over others.
//!
//! Files in a ring can only be understood, tested and moved together: a ring is one file in disguise. So is a type
//! whose methods are spread over several files. Both tests read the sources of the workspace's crates and draw an arrow
//! from a file to each file whose items it names. A name that is re-exported counts for the file that defines it. Test
//! code is left out, because tests may look at everything. There is no list of exceptions.
//!
//! A third test reads the same sources: no function of the programs is longer than what one reads at a time.

mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use source::{Arrows, Crate};

/// The source directories of the workspace's crates, seen from its root.
const CRATES: [&str; 17] = [
    "agent/src",
    "agent/swarm/src",
    "coordinator/client/src",
    "coordinator/parbake/src",
    "coordinator/rollout/src",
    "coordinator/src",
    "proto/apple_lz4/src",
    "proto/durable/src",
    "proto/logging/src",
    "proto/origin/src",
    "proto/src",
    "proto/wire/src",
    "tests/disks/src",
    "tests/e2e/src",
    "tests/fuzz/src",
    "tests/load/src",
    "tests/sim/src",
];

/// The most lines of a function, from `fn` to its last brace.
const MAX_FUNCTION_LINES: usize = 100;

/// Groups of two and more files that can reach each other.
fn rings<'a>(arrows: &Arrows<'a>) -> Vec<BTreeSet<&'a Path>> {
    let reach = |start: &'a Path| {
        let mut seen = BTreeSet::new();
        let mut next = vec![start];
        while let Some(file) = next.pop() {
            for to in arrows.get(file).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(*to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Path, BTreeSet<&Path>> =
        arrows.keys().map(|file| (*file, reach(file))).collect();
    let mut rings = Vec::new();
    let mut done = BTreeSet::new();
    for (file, there) in &reached {
        if done.contains(file) || !there.contains(file) {
            continue;
        }
        let ring: BTreeSet<&Path> = there
            .iter()
            .filter(|other| reached.get(*other).is_some_and(|back| back.contains(file)))
            .copied()
            .collect();
        done.extend(ring.iter().copied());
        rings.push(ring);
    }
    rings
}

/// A line per ring, and one for each of its arrows. Empty when there is none.
fn told_rings(sources: &Path) -> String {
    let read = Crate::read(sources);
    assert!(!read.is_empty(), "{} is a crate", sources.display());
    let arrows = read.arrows();
    let mut told = String::new();
    for ring in rings(&arrows) {
        told += &format!("{}: {} files in a ring\n", sources.display(), ring.len());
        for from in &ring {
            for (to, name) in arrows[from].iter().filter(|(to, _)| ring.contains(*to)) {
                let [from, to] = [from, to].map(|file| short(sources, file));
                told += &format!("  {from} -> {to} ({name})\n");
            }
        }
    }
    told
}

/// A line for each type that has methods in a file that doesn't define it.
fn told_spread_types(sources: &Path) -> String {
    let read = Crate::read(sources);
    let lines = read.spread_types().into_iter().map(|(file, name, home)| {
        let [file, home] = [file, home].map(|file| short(sources, file));
        format!(
            "{}: {file} has methods of {name} ({home})\n",
            sources.display()
        )
    });
    lines.collect()
}

fn short(sources: &Path, file: &Path) -> String {
    file.strip_prefix(sources)
        .unwrap_or(file)
        .display()
        .to_string()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn no_file_needs_one_that_needs_it_back() {
    let told: String = CRATES
        .iter()
        .map(|sources| told_rings(&root().join(sources)))
        .collect();
    assert!(told.is_empty(), "files that need each other:\n{told}");
}

#[test]
fn a_types_methods_stand_in_the_file_that_defines_it() {
    let told: String = CRATES
        .iter()
        .map(|sources| told_spread_types(&root().join(sources)))
        .collect();
    assert!(told.is_empty(), "types that are spread over files:\n{told}");
}

/// A line for each function that is too long.
fn told_long_functions(sources: &Path) -> String {
    let read = Crate::read(sources);
    let long = read.functions().filter(|of| of.2 > MAX_FUNCTION_LINES);
    let lines = long.map(|(file, name, lines)| {
        let file = short(sources, file);
        format!("{}: {file}: {name} has {lines} lines\n", sources.display())
    });
    lines.collect()
}

#[test]
fn no_function_of_the_programs_is_long() {
    let programs = CRATES.iter().filter(|of| !of.starts_with("tests/"));
    let told: String = programs
        .map(|sources| told_long_functions(&root().join(sources)))
        .collect();
    assert!(
        told.is_empty(),
        "functions over {MAX_FUNCTION_LINES} lines:\n{told}"
    );
}

#[test]
fn every_crate_of_the_workspace_is_read() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    let (_, members) = manifest.split_once("members = [").expect("the members");
    let (members, _) = members.split_once(']').expect("the list ends");
    let mut named: Vec<String> = members
        .split('"')
        .skip(1)
        .step_by(2)
        .map(|member| format!("{member}/src"))
        .collect();
    named.sort();
    assert_eq!(named, CRATES);
}

/// A crate of the given files in a directory of its own.
fn made_up(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory for a made-up crate");
    for (name, text) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("its directory");
        fs::write(&path, text).expect("a made-up file");
    }
    directory
}

#[test]
fn a_ring_is_found_through_uses_paths_reexports_macros_and_globs() {
    for (way, back) in [
        ("a use line", "use crate::a::A; fn f(_: A) {}"),
        ("a path", "fn f(_: crate::a::A) {}"),
        ("a re-export", "fn f(_: crate::A) {}"),
        ("a macro", "fn f() { println!(\"{}\", crate::a::A); }"),
        ("a glob", "use super::*; fn f(_: A) {}"),
        (
            "an item in a function",
            "fn f() { use crate::a::A; let _ = A; }",
        ),
    ] {
        let made = made_up(&[
            ("lib.rs", "mod a; pub use a::A;"),
            ("a.rs", "mod b; pub struct A; fn a() { b::f(A) }"),
            ("a/b.rs", back),
        ]);
        let told = told_rings(made.path());
        assert!(told.contains("2 files in a ring"), "{way}: {told}");
        assert!(told.contains("a.rs -> a/b.rs"), "{way}: {told}");
        assert!(told.contains("a/b.rs -> a.rs"), "{way}: {told}");
    }
}

#[test]
fn a_ring_over_three_files_names_all_of_them() {
    let made = made_up(&[
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "fn a() { crate::b::b() }"),
        ("b.rs", "fn b() { crate::c::c() }"),
        ("c.rs", "fn c() { crate::a::a() }"),
        ("d.rs", "fn d() { crate::a::a() }"),
    ]);
    let told = told_rings(made.path());
    assert!(told.contains("3 files in a ring"), "{told}");
    assert!(
        !told.contains("d.rs"),
        "who only looks at a ring isn't in it: {told}"
    );
}

#[test]
fn tests_other_crates_and_visibilities_draw_no_arrow() {
    let made = made_up(&[
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "use crate::b::B; use elsewhere::C; fn a(_: B, _: C) {}",
        ),
        (
            "b.rs",
            "pub(in crate::a) struct B; #[cfg(test)] mod tests { use crate::a; fn t() { a::a() } }",
        ),
    ]);
    assert_eq!(told_rings(made.path()), "");
}

#[test]
fn methods_beside_the_type_and_traits_anywhere_are_fine_and_others_are_told() {
    let made = made_up(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "pub struct A; impl A { fn a(&self) {} }"),
        (
            "b.rs",
            "use crate::a::A; impl Clone for A { fn clone(&self) -> A { A } }",
        ),
        ("c.rs", "use crate::a::A; impl A { fn c(&self) {} }"),
    ]);
    let told = told_spread_types(made.path());
    assert!(told.contains("c.rs has methods of A (a.rs)"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn a_long_function_is_told_and_one_of_as_many_lines_as_allowed_is_not() {
    let body = |lines: usize| "\n".repeat(lines - 1);
    let function = |name: &str, lines| format!("fn {name}() {{{}}}", body(lines));
    let (most, more) = (MAX_FUNCTION_LINES, MAX_FUNCTION_LINES + 1);
    let text = format!(
        "{}\nstruct A; impl A {{ {} }}\n{}\n#[cfg(test)] mod tests {{ {} }}",
        function("fits", most),
        function("method", more),
        function("long", more),
        function("story", more),
    );
    let made = made_up(&[("lib.rs", &text)]);
    let told = told_long_functions(made.path());
    assert!(told.contains("method has 101 lines"), "{told}");
    assert!(told.contains("long has 101 lines"), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
}
