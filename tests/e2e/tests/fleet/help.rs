//! The help of every program fits a terminal of 80 columns, explains each command and option, and names each default.

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
