//! How parbake's programs write their logs: the form of a line, what is left out, and when colours are used.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt::MakeWriter};

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people to read.
    Text,
    /// One JSON object for each line.
    Json,
}

/// A filter that can't be read. A program that logged something else than it was told to would hide what is looked for,
/// so it doesn't start.
#[derive(Debug, thiserror::Error)]
#[error(
    "--log {filter:?} isn't a filter such as `info` or `agent=debug,warn`: {cause}; mend it, or PARBAKE_LOG"
)]
pub struct BadFilter {
    filter: String,
    cause: ParseError,
}

/// Which lines are written. To be read before anything else is done.
#[derive(Debug)]
pub struct Filter(EnvFilter);

impl Filter {
    /// Reads a filter, as in `info` or `agent=debug,warn`.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(text: &str) -> Result<Self, BadFilter> {
        EnvFilter::try_new(text)
            .map(Self)
            .map_err(|cause| BadFilter {
                filter: text.to_owned(),
                cause,
            })
    }
}

/// Logs to stderr from now on, in colours where that is a terminal that shows them.
///
/// # Panics
/// When this process logs already.
pub fn to_stderr(format: LogFormat, filter: Filter) {
    start(format, filter, colours(), std::io::stderr);
}

/// Logs there from now on, without colours.
///
/// # Panics
/// When this process logs already.
pub fn to<W>(format: LogFormat, filter: Filter, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    start(format, filter, false, writer);
}

fn start<W>(format: LogFormat, Filter(filter): Filter, colours: bool, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(writer);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Colours are for terminals that can show them, and for people who want them (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !refused && !dumb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cant_be_read_is_refused_by_name() {
        for good in ["info", "agent=debug,warn", "off", ""] {
            assert!(Filter::parse(good).is_ok(), "{good}");
        }
        let error = Filter::parse("agent=loud").unwrap_err().to_string();
        assert!(
            error.starts_with("--log \"agent=loud\" isn't a filter"),
            "{error}"
        );
    }
}
