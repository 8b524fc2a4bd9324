//! A third shell round the two pure cores: real swarms and a real plan in a seeded world with virtual time, a modelled
//! network, faults, and checkers for safety after each step, liveness after healing, and cost against the bound.
//!
//! [`roll`] is the same for the real gate, in a cluster.
//!
//! `docs/SIMULATION.md` says what the model assumes. No clock, no thread, no randomness but the seed.

mod entry;
pub mod network;
pub mod outcome;
pub mod roll;
pub mod scenario;
pub mod world;

pub use outcome::{Goals, Outcome};
pub use scenario::{Rogue, Scenario, Setup};

/// Runs a scenario to its end.
#[must_use]
pub fn run(setup: &Setup) -> Outcome {
    let mut outcome = world::World::new(setup).run();
    let alone = || {
        let alone = Setup {
            spared: true,
            ..setup.clone()
        };
        world::World::new(&alone).run()
    };
    match setup.scenario {
        Scenario::MissingLayer => {
            outcome.others_over_alone = Some(outcome.images_s / alone().images_s);
        }
        Scenario::Several | Scenario::Opposite => {
            outcome.first_over_alone = Some(outcome.first_image_s / alone().makespan_s);
        }
        _ => {}
    }
    outcome
}
