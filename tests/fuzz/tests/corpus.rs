//! Every target on its seeds, and on as many seeded mutations of them as a few seconds hold.
//!
//! `FUZZ_SEED` gives other mutations and `FUZZ_ROUNDS` more of them.
#![allow(
    clippy::print_stdout,
    reason = "helpers of tests are tests, and say what they ran"
)]

use std::path::PathBuf;

use fuzz::{Mutator, Target};

/// Keeps the input of a run that panicked.
struct Witness<'a> {
    target: &'static str,
    seed: u64,
    input: &'a [u8],
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(self.target);
            let kept = std::fs::write(&path, self.input);
            println!(
                "{} with seed {}: {} bytes in {} ({kept:?}); they belong into tests/regressions.rs",
                self.target,
                self.seed,
                self.input.len(),
                path.display(),
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn try_all(target: Target) {
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let rounds = number("FUZZ_ROUNDS").unwrap_or(target.rounds);
    println!("{} with seed {seed}, {rounds} rounds", target.name);
    let try_one = |input: &[u8]| {
        let _witness = Witness {
            target: target.name,
            seed,
            input,
        };
        (target.run)(input);
    };
    let mut corpus = (target.seeds)();
    assert!(!corpus.is_empty());
    corpus.iter().for_each(|input| try_one(input));
    // what never was anything good is refused elsewhere in a parser than what nearly is
    corpus.push(Vec::new());
    let mut mutator = Mutator::new(seed);
    for _ in 0..rounds {
        try_one(&mutator.next_input(&corpus));
    }
}

#[test]
fn any_bytes_are_a_message_or_an_error() {
    try_all(fuzz::CODEC);
}

#[test]
fn any_bytes_are_an_image_or_an_error() {
    try_all(fuzz::MANIFEST);
}

#[test]
fn a_store_recovers_from_any_journal() {
    try_all(fuzz::RECOVERY);
}

#[test]
fn any_bytes_are_a_layer_or_an_error() {
    try_all(fuzz::LAYER);
}

#[test]
fn any_bytes_are_a_recipe_or_an_error() {
    try_all(fuzz::RECIPE);
}
