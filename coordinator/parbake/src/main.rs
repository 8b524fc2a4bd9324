//! `parbake`: the operators' command line. Exit status: 0 done or yes, 1 no (not staged), 2 an error.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    parbake::main(parbake::Cli::parse())
}
