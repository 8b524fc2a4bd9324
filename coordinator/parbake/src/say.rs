//! stdout is the answer, stderr the story.

use std::io::Write as _;

use anyhow::Context as _;
use serde::Serialize;

/// Writes the answer: JSON where that is wanted, else the text.
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
        text()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")
}

/// Tells the story.
pub(crate) fn tell(text: &str) {
    // A closed stderr is no reason to stop.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
