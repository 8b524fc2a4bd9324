//! The help of every program fits a terminal of 80 columns, explains each command and option, and names each default.

use std::{fs, path::Path};

use clap::{ArgAction, Command, CommandFactory as _};

/// The width of a terminal that nobody has widened.
const COLUMNS: usize = 80;

/// Every command of these programs, with the words by which it is called.
fn commands() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    let mut left: Vec<(String, Command)> = [
        agent::cli::Cli::command(),
        coordinator::cli::Cli::command(),
        parbake::Cli::command(),
        e2e::demo::Cli::command(),
        e2e::demo::RegistryCli::command(),
    ]
    .into_iter()
    .map(|mut program| {
        program.build();
        (program.get_name().to_owned(), program)
    })
    .collect();
    while let Some((words, command)) = left.pop() {
        let inner = command.get_subcommands();
        let inner = inner.filter(|inner| inner.get_name() != "help");
        left.extend(inner.map(|inner| (format!("{words} {}", inner.get_name()), inner.clone())));
        found.push((words, command));
    }
    found
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    for (words, command) in commands() {
        let mut command = command.term_width(COLUMNS);
        for help in [
            command.render_help().to_string(),
            command.render_long_help().to_string(),
        ] {
            // clap doesn't wrap the line that shows the usage
            let long = |line: &&str| line.chars().count() > COLUMNS && !line.starts_with("Usage:");
            let long: Vec<&str> = help.lines().filter(long).collect();
            assert!(long.is_empty(), "{words}: {long:#?}");
        }
    }
}

#[test]
fn each_command_and_option_is_explained_and_each_default_is_named() {
    for (words, command) in commands() {
        assert!(command.get_about().is_some(), "{words}");
        for argument in command.get_arguments() {
            let name = argument.get_id();
            if argument.is_hide_set() || ["help", "version"].contains(&name.as_str()) {
                continue;
            }
            let about = argument.get_long_help().or(argument.get_help());
            let about = about.map(ToString::to_string).unwrap_or_default();
            let about = about.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(
                about.starts_with(char::is_uppercase),
                "{words} {name}: {about:?}"
            );
            let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
            let named = argument.is_required_set()
                || !argument.get_default_values().is_empty()
                || about.contains("[default: ");
            assert!(
                !takes_value || named,
                "{words} {name} doesn't name its default"
            );
        }
    }
}

/// The words of a command line as a shell takes them, up to what isn't part of the command.
fn words(line: &str) -> Vec<String> {
    let (mut found, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            (' ', None) => found.push(std::mem::take(&mut word)),
            (';', None) => {
                found.push(std::mem::take(&mut word));
                found.push(";".into());
            }
            (letter, _) => word.push(letter),
        }
    }
    found.push(word);
    found.retain(|word| !word.is_empty());
    let ends = ["#", "|", "&", ">", "<", ";"];
    let end = |word: &String| ends.iter().any(|end| word.starts_with(end));
    found.truncate(found.iter().position(end).unwrap_or(found.len()));
    found
}

/// What sudo or a container runs, or the command itself.
fn inner(words: &[String]) -> &[String] {
    match words {
        [sudo, user, _, inner @ ..] if sudo == "sudo" && user == "-u" => inner,
        [sudo, inner @ ..] if sudo == "sudo" => inner,
        [kubectl, rest @ ..] if kubectl == "kubectl" => {
            let dashes = rest.iter().position(|word| word == "--");
            dashes.map_or(&[], |dashes| &rest[dashes + 1..])
        }
        words => words,
    }
}

/// The lines between fences of a page, with those that a backslash continues as one.
fn typed(page: &str) -> Vec<String> {
    let blocks = page.split("```").skip(1).step_by(2);
    let joined = blocks.map(|block| block.replace("\\\n", " "));
    joined
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

#[test]
fn each_command_line_of_the_pages_is_one_that_the_programs_take() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut pages = vec![root.join("README.md"), root.join("deploy/README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("the pages are here");
    pages.extend(docs.flatten().map(|entry| entry.path()));
    let programs = [
        agent::cli::Cli::command(),
        coordinator::cli::Cli::command(),
        parbake::Cli::command(),
    ];
    let (mut told, mut tried) = (String::new(), 0);
    for page in pages.iter().filter(|page| page.is_file()) {
        let text = fs::read_to_string(page).expect("a page is text");
        for line in typed(&text) {
            let words = words(line.trim().trim_start_matches("$ "));
            let call = inner(&words);
            let Some(name) = call.first().and_then(|word| word.rsplit('/').next()) else {
                continue;
            };
            let program = programs.iter().find(|program| program.get_name() == name);
            // what is left to the reader to fill in, and pictures
            let is_sketch = call
                .iter()
                .any(|word| word == "COMMAND" || word.contains(['…', '[', '(']));
            let Some(program) = program.filter(|_| !is_sketch) else {
                continue;
            };
            tried += 1;
            if let Err(error) = program.clone().try_get_matches_from(call) {
                told += &format!("{}: {line}\n{error}\n", page.display());
            }
        }
    }
    assert!(told.is_empty(), "no program takes this:\n{told}");
    assert!(tried > 40, "the pages have commands: {tried}");
}
