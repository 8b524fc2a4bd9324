//! stdout carries the answer. stderr carries progress and explanations. On a terminal, lines fit its width.

use std::io::Write as _;

use anyhow::Context as _;
use serde::Serialize;

use crate::width::{columns, fitted};

/// Writes the answer to stdout: as JSON where that is asked for, otherwise as text.
pub(crate) fn print(
    json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = if json {
        let mut text = serde_json::to_string(value).context("writing JSON")?;
        text.push('\n');
        text
    } else {
        fitted(text(), columns(&std::io::stdout()))
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")
}

/// Writes to stderr.
pub(crate) fn tell(text: &str) {
    let text = fitted(text.to_owned(), columns(&std::io::stderr()));
    // a closed stderr is no reason to stop
    drop(std::io::stderr().write_all(text.as_bytes()));
}
