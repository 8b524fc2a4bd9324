//! `parbake-agent`: the program that runs on every Mac of the fleet.

use std::process::ExitCode;

use agent::cli::Cli;
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    agent::program::run(cli)
}
