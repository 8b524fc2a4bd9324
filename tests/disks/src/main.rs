//! `disks` measures which grain of blocks finds the bytes of a new disk in old ones: how much is missing, what that is
//! when packed, how many chunks it spoils, how large an index is, and what cutting and hashing cost.
//!
//! `tests/disks/make` builds real disks to compare. `docs/decisions` has what came of it.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

mod disk;
mod grain;
#[cfg(test)]
mod made_up;
mod measure;
mod sorter;
mod table;

use std::path::PathBuf;

use clap::Parser;

/// Measures what of a new disk is found in old disks, by blocks of several grains.
#[derive(Debug, Parser)]
struct Cli {
    /// A disk that a host has. May be given several times; "same offset" looks at the first one only.
    #[arg(long, required = true, value_name = "FILE")]
    old: Vec<PathBuf>,
    /// The disk that the host shall have.
    new: PathBuf,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let comparison = measure::compare(&cli.old, &cli.new)?;
    match cli.json {
        true => println!("{}", serde_json::to_string(&comparison)?),
        false => print!("{}", table::table(&comparison)),
    }
    Ok(())
}
