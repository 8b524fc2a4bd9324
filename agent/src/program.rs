//! What was typed becomes one of the agent's commands, and its end an exit code.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use logging::{BadFilter, Filter};
use proto::causes;
use tracing::{error, warn};

use crate::{
    cli::{Cli, Command, Run, Shared},
    commands::{clean, stage, status, verify},
    config::Config,
    driver, enrol, install,
    log_file::LogFile,
    node,
};

/// Exit codes: done or yes; no; error.
const NO: u8 = 1;
const ERROR: u8 = 2;

/// Runs the command.
pub fn run(cli: Cli) -> ExitCode {
    if let Err(error) = start_logging(&cli.shared) {
        drop(writeln!(std::io::stderr(), "parbake-agent: {error}"));
        return ExitCode::from(ERROR);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // verification, packing and disk
        .max_blocking_threads(driver::BLOCKING_THREADS)
        .build();
    let result = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(command(cli)));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        Err(error) => {
            error!(error = causes(&*error), "parbake-agent ends");
            ExitCode::from(ERROR)
        }
    }
}

fn start_logging(shared: &Shared) -> Result<(), BadFilter> {
    let (format, filter) = (shared.log_format, Filter::parse(&shared.log)?);
    let Some(path) = &shared.log_file else {
        logging::to_stderr(format, filter);
        return Ok(());
    };
    match LogFile::open(path) {
        Ok(file) => logging::to(format, filter, file),
        // somebody removed it, in a directory where this user can't make another: images matter more
        Err(error) => {
            logging::to(format, filter, std::io::stderr);
            warn!(path = %path.display(), %error, "the log file can't be opened (--log-file); logging to stderr: `parbake-agent install` makes it anew");
        }
    }
    Ok(())
}

async fn command(cli: Cli) -> anyhow::Result<bool> {
    let no_flags = Run::default();
    let run = if let Command::Run(run) = &cli.command {
        run
    } else {
        &no_flags
    };
    // these come before there are settings
    match &cli.command {
        Command::Install(options) => return install::install(options, &cli.shared).await,
        Command::Uninstall(options) => return install::uninstall(options).await,
        _ => {}
    }
    let config = Config::load(&cli.shared, run)?;
    match &cli.command {
        Command::Run(_) => node::run(config).await.map(|()| true),
        Command::Enroll(options) => enrol::enrol(options, &config.state_dir)
            .await
            .map(|()| true),
        Command::Status { json } => status::status(&config, *json).await,
        Command::Clean(options) => clean::clean(&config, options).await,
        Command::Verify { image, json } => verify::verify(&config, image, *json).await,
        Command::Stage { image, json } => stage::stage(&config, image, *json).await,
        Command::Install(_) | Command::Uninstall(_) => Ok(true),
    }
}
