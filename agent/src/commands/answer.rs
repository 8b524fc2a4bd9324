//! A command's answer, on stdout.

use std::io::{self, Write as _};

use anyhow::Context as _;

/// Prints the answer, and says yes.
#[expect(clippy::print_stdout, reason = "stdout is the answer")]
pub(super) fn print(text: &str) -> anyhow::Result<bool> {
    println!("{text}");
    io::stdout().flush().context("writing to stdout")?;
    Ok(true)
}
