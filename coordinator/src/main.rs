//! The program `parbake-coordinator`: runs the coordinator, or one of the commands that work on its state. Exit status:
//! 0 for success, 2 for an error.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    coordinator::command::run(coordinator::cli::Cli::parse())
}
