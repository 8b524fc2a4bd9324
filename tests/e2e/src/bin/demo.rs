//! `demo`: a whole fleet on one machine. A registry with a generated tart image, a coordinator and N agents as
//! processes stage it with live bars; then every host's disk is compared with the source, bit by bit.
//!
//! Also the multi-call binary by which the cluster harness starts the real programs: `demo agent …`,
//! `demo coordinator …`, `demo parbake …`, and `demo registry …` for the lab.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let program = arguments
        .get(1)
        .and_then(|first| first.to_str())
        .unwrap_or_default()
        .to_owned();
    if ["agent", "coordinator", "parbake", "registry"].contains(&program.as_str()) {
        arguments.remove(1);
    }
    match program.as_str() {
        "agent" => agent::program::run(agent::cli::Cli::parse_from(arguments)),
        "coordinator" => coordinator::command::run(coordinator::cli::Cli::parse_from(arguments)),
        "parbake" => parbake::main(parbake::Cli::parse_from(arguments)),
        "registry" => e2e::demo::registry(e2e::demo::RegistryCli::parse_from(arguments)),
        _ => e2e::demo::run(e2e::demo::Cli::parse_from(arguments)),
    }
}
