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

use crate::{
    grain::{GRAINS, Grain},
    measure::Known,
};

/// Measures what of a new disk is found in old disks, by blocks of several grains.
#[derive(Debug, Parser)]
struct Cli {
    /// A disk that a host has. May be given several times; "same offset" looks at the first one only.
    #[arg(long, required = true, value_name = "FILE")]
    old: Vec<PathBuf>,
    /// Disks that the host shall have, each compared with the old ones alone.
    #[arg(required = true)]
    new: Vec<PathBuf>,
    /// A grain by its name in the table, such as "pages 64 KiB". May be given several times; without it: all.
    #[arg(long, value_name = "NAME", value_parser = Grain::named)]
    grain: Vec<Grain>,
    /// Prints one JSON object a new disk instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let grains = if cli.grain.is_empty() {
        &GRAINS[..]
    } else {
        &cli.grain
    };
    let mut known = Known::read(&cli.old, grains)?;
    for new in &cli.new {
        let comparison = known.compare(new)?;
        match cli.json {
            true => println!("{}", serde_json::to_string(&comparison)?),
            false => println!("{}: {}", new.display(), table::table(&comparison)),
        }
    }
    Ok(())
}
