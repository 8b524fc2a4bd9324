//! `parbake-coordinator`: runs the coordinator, and works on its state beside it. Exit status: 0 done, 2 an error.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    coordinator::command::run(coordinator::cli::Cli::parse())
}
