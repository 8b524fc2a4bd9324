//! What shells and `man` want to know of this program: completions and manual pages, made from the same definitions as
//! the help.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::ended::Outcome;

/// Options of `completion`.
#[derive(Args, Debug)]
pub struct Completion {
    /// The shell.
    shell: Shell,
}

/// Options of `man`.
#[derive(Args, Debug)]
pub struct Manual {
    /// Write a page for each command into this directory, which has to be there. [default: print the page of `parbake`
    /// itself]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints what a shell needs to complete commands and options.
pub(crate) fn completion(options: &Completion, mut program: Command) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut program, "parbake", &mut script);
    std::io::stdout()
        .write_all(&script)
        .context("writing to stdout")?;
    Ok(Outcome::Yes)
}

/// Prints the manual page, or writes all of them.
pub(crate) fn manual(options: &Manual, program: Command) -> anyhow::Result<Outcome> {
    if let Some(dir) = &options.dir {
        clap_mangen::generate_to(program, dir)
            .with_context(|| format!("writing manual pages into {}", dir.display()))?;
        return Ok(Outcome::Yes);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(program)
        .render(&mut page)
        .context("making the manual page")?;
    std::io::stdout()
        .write_all(&page)
        .context("writing to stdout")?;
    Ok(Outcome::Yes)
}
