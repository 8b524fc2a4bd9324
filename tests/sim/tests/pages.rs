//! What is written for people: comments fit a screen, and no page points to or names something that a clone lacks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Columns of a line of comment.
const MAX_COMMENT_COLUMNS: usize = 120;
/// Folders of the root. A word in backticks that begins with one of them is a path.
const ROOMS: [&str; 6] = ["agent", "coordinator", "deploy", "docs", "proto", "tests"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files below a directory whose name ends in `ending`, without what is built.
fn files(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("the tree can be listed");
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn texts(ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root(), ending, &mut found);
    assert!(found.len() > 10, "the tree is read: {found:?}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a file of the tree is text");
        (path, text)
    };
    found.into_iter().map(read).collect()
}

/// Scripts and settings, and folders of them.
const SETTINGS: [&str; 8] = [
    ".ci",
    "Cargo.toml",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "tests/disks/make",
    "tests/kube",
    "tests/lab",
];

/// A line for each line of comment that is too long.
fn told_long(path: &Path, text: &str, is_comment: impl Fn(&str) -> bool) -> String {
    let mut told = String::new();
    for (line, number) in text.lines().zip(1..) {
        // a link has to stand on one line
        let is_long = line.chars().count() > MAX_COMMENT_COLUMNS && !line.contains("https://");
        if is_long && is_comment(line.trim_start()) {
            told += &format!("{}:{number}\n", path.display());
        }
    }
    told
}

#[test]
fn a_line_of_comment_fits() {
    let mut told = String::new();
    for (path, text) in texts(".rs") {
        told += &told_long(&path, &text, |line| line.starts_with("//"));
    }
    let path = root().join("proto/proto/parbake.proto");
    let text = fs::read_to_string(&path).expect("the messages are text");
    // a field's comment may stand behind the field
    told += &told_long(&path, &text, |line| line.contains("//"));
    for room in SETTINGS {
        let (path, mut found) = (root().join(room), Vec::new());
        match path.is_dir() {
            true => files(&path, "", &mut found),
            false => found.push(path),
        }
        assert!(!found.is_empty(), "{room} is read");
        found.retain(|path| path.extension().is_none_or(|ending| ending != "md"));
        for path in found {
            let text = fs::read(&path).expect("a file of the tree can be read");
            let text = String::from_utf8_lossy(&text);
            // a chart's own comments stand in braces
            let is_comment = |line: &str| line.starts_with('#') || line.starts_with("{{- /*");
            told += &told_long(&path, &text, is_comment);
        }
    }
    assert!(
        told.is_empty(),
        "over {MAX_COMMENT_COLUMNS} columns:\n{told}"
    );
}

#[test]
fn a_page_points_only_to_what_is_there() {
    let mut told = String::new();
    let mut links = 0;
    for (path, text) in texts(".md") {
        let folder = path.parent().expect("a file in a folder");
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            if !folder.join(target).exists() {
                told += &format!("{}: {target}\n", path.display());
            }
        }
    }
    assert!(told.is_empty(), "pages point to what isn't there:\n{told}");
    assert!(links > 20, "the pages are read: {links}");
}

/// The names by which a page's headings are linked to, as GitHub makes them, and its own anchors.
fn anchors(page: &str) -> Vec<String> {
    let mut is_code = false;
    let mut found: Vec<String> = Vec::new();
    for line in page.lines() {
        is_code ^= line.starts_with("```");
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() && heading.starts_with(' ') && !is_code {
            let kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
            let name: String = heading.trim().to_lowercase().chars().filter(kept).collect();
            found.push(name.replace(' ', "-"));
        }
        let ids = line.split("id=\"").skip(1);
        found.extend(ids.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    found
}

#[test]
fn a_link_to_a_heading_finds_it() {
    let (mut told, mut links) = (String::new(), 0);
    for (path, text) in texts(".md") {
        let folder = path.parent().expect("a file in a folder");
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let Some((file, heading)) = target.split_once('#') else {
                continue;
            };
            if file.contains("://") || !file.is_empty() && !file.ends_with(".md") {
                continue;
            }
            let page = match file {
                "" => text.clone(),
                file => fs::read_to_string(folder.join(file)).unwrap_or_default(),
            };
            links += 1;
            if !anchors(&page).iter().any(|anchor| anchor == heading) {
                told += &format!("{}: {target}\n", path.display());
            }
        }
    }
    assert!(
        told.is_empty(),
        "pages point to headings that aren't there:\n{told}"
    );
    assert!(links > 100, "the pages have tables of contents: {links}");
}

#[test]
fn every_page_is_in_the_readmes_table_and_long_ones_have_contents() {
    let index = fs::read_to_string(root().join("README.md")).expect("README");
    let mut found = Vec::new();
    files(&root().join("docs"), ".md", &mut found);
    let is_page = |path: &&PathBuf| path.parent().is_some_and(|folder| folder.ends_with("docs"));
    for path in found.iter().filter(is_page) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(
            index.contains(&format!("(docs/{name})")),
            "README doesn't name {name}"
        );
        let text = fs::read_to_string(path).expect("a page is text");
        let beginning = text.lines().take(40).filter(|line| line.contains("](#"));
        assert!(
            text.lines().count() < 70 || beginning.count() > 0,
            "{name} is long, and has no table of contents"
        );
    }
}

#[test]
fn a_page_names_no_file_that_is_gone() {
    let mut told = String::new();
    let mut named = 0;
    for (path, text) in texts(".md") {
        // a file that the changelog names was there at that time
        if path.ends_with("CHANGELOG.md") {
            continue;
        }
        for word in text.split('`').skip(1).step_by(2) {
            let Some((room, _)) = word.split_once('/') else {
                continue;
            };
            let is_path = ROOMS.contains(&room) || word.ends_with(".rs");
            if !is_path || word.contains([' ', '\n', '*', '{', ':']) {
                continue;
            }
            named += 1;
            if !root().join(word).exists() {
                told += &format!("{}: {word}\n", path.display());
            }
        }
    }
    assert!(told.is_empty(), "pages name files that are gone:\n{told}");
    assert!(named > 60, "pages name files: {named}");
}
