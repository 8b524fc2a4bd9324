//! What reads bytes that others wrote, as fuzz targets: plain functions of the bytes that return, or panic at a fault.
//!
//! The same functions run twice. On stable, `cargo test -p fuzz` gives each its seeds and then seeded mutations of
//! them, as many as a few seconds hold: a check that never depends on luck. On nightly, the package in `fuzz/` hands
//! them to libFuzzer, which searches by coverage for as long as it is let:
//!
//! ```text
//! cargo run -p fuzz --example seeds -- tests/fuzz/fuzz/corpus
//! cd tests/fuzz && cargo +nightly fuzz run recovery
//! ```
//!
//! What either finds becomes a case in `tests/regressions.rs`. Paths and headers of the mirror are fuzzed where it
//! lives.

mod codec;
mod layer;
mod manifest;
mod mutator;
mod recipe;
mod recovery;

pub use mutator::Mutator;

/// Something that reads bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: on the command line of `cargo fuzz`, and in what a failed test says.
    pub name: &'static str,
    /// Reads these bytes.
    ///
    /// # Panics
    /// When a promise about any bytes is broken.
    pub run: fn(&[u8]),
    /// Bytes to begin with: good ones, of every kind that matters.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many mutations a test on stable tries: a second's worth or two.
    pub rounds: u64,
}

/// Messages from hosts and coordinators.
pub const CODEC: Target = Target {
    name: "codec",
    run: codec::run,
    seeds: codec::seeds,
    rounds: 20_000,
};

/// Manifests from registries.
pub const MANIFEST: Target = Target {
    name: "manifest",
    run: manifest::run,
    seeds: manifest::seeds,
    rounds: 20_000,
};

/// What a crash or a failing disk left of a journal.
pub const RECOVERY: Target = Target {
    name: "recovery",
    run: recovery::run,
    seeds: recovery::seeds,
    rounds: 300,
};

/// Disk layers from registries.
pub const LAYER: Target = Target {
    name: "layer",
    run: layer::run,
    seeds: layer::seeds,
    rounds: 1_000,
};

/// Recipes of an image, from registries and from files.
pub const RECIPE: Target = Target {
    name: "recipe",
    run: recipe::run,
    seeds: recipe::seeds,
    rounds: 200_000,
};

/// All of them.
pub const TARGETS: [Target; 5] = [CODEC, MANIFEST, RECOVERY, LAYER, RECIPE];
