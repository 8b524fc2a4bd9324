//! What was typed becomes one of the agent's commands, and its end an exit code.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::Context as _;
use proto::causes;
use tracing::{error, warn};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    cli::{Cli, Command, LogFormat, Run, Shared},
    commands::{stage, status, verify},
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
    start_logging(&cli.shared);
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

fn start_logging(shared: &Shared) {
    let (format, filter) = (shared.log_format, &shared.log);
    match &shared.log_file {
        None => start_logging_to(format, filter, colours(), std::io::stderr),
        Some(path) => match LogFile::open(path) {
            Ok(file) => start_logging_to(format, filter, false, file),
            // somebody removed it, in a directory where this user can't make another: images matter more
            Err(error) => {
                start_logging_to(format, filter, false, std::io::stderr);
                warn!(path = %path.display(), %error, "the log file can't be opened (--log-file); logging to stderr: `parbake-agent install` makes it anew");
            }
        },
    }
}

/// Colours are for terminals that can show them, and for people who want them (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !refused && !dumb
}

fn start_logging_to<W>(format: LogFormat, filter: &str, colours: bool, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(writer);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
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
        Command::Verify { image, json } => verify::verify(&config, image, *json).await,
        Command::Stage { image, json } => stage::stage(&config, image, *json).await,
        Command::Install(_) | Command::Uninstall(_) => Ok(true),
    }
}
