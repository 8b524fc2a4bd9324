//! `parbake`: the operators' command line. Exit status: 0 done or yes, 1 no (not staged), 2 an error.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use coordinator::operator::{Cli, Outcome, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            drop(writeln!(std::io::stderr(), "parbake: {error:#}"));
            ExitCode::from(2)
        }
    }
}
