//! Runs that once went wrong, each with its cause.

use sim::{Scenario, Setup, run};

fn passes(scenario: Scenario, hosts: usize, image_bytes: u64, seed: u64) -> sim::Outcome {
    let mut setup = Setup::new(scenario, hosts, image_bytes, seed);
    setup.content_bytes = 128 << 20;
    setup.pieces = 2;
    let outcome = run(&setup);
    assert!(outcome.passed(), "{}", outcome.to_text());
    outcome
}

/// Unanswered transfers counted as lies: hosts that crashed and returned were shunned by the fleet and never completed.
#[test]
fn a_host_that_crashed_isnt_shunned() {
    passes(Scenario::Faults, 30, 1 << 30, 1);
}

/// Spreaders waited for a dead host with every chunk in line, and their uplinks idled.
#[test]
fn a_dead_receiver_holds_up_nobody_else() {
    let outcome = passes(Scenario::Vanish, 30, 4 << 30, 1);
    assert!(
        outcome.makespan_over_bound() <= 1.25,
        "{}",
        outcome.to_text()
    );
}

/// Without a coordinator every host down the line took over contents that nobody had begun, at the same moment.
#[test]
fn without_a_coordinator_the_registry_isnt_asked_twice() {
    let outcome = passes(Scenario::Headless, 30, 8 << 30, 1);
    assert!(outcome.origin_over_image() <= 1.02, "{}", outcome.to_text());
}

/// A part whose every candidate was busy lost its chunk, and 124 hosts had to find and pull it.
#[test]
fn a_part_that_nobody_takes_over_still_gets_its_chunk() {
    let mut setup = Setup::new(Scenario::Fanout, 60, 1 << 30, 1);
    setup.content_bytes = 128 << 20;
    setup.swarm.direct_targets = 10;
    setup.swarm.incoming = 2;
    setup.pieces = 1;
    let outcome = run(&setup);
    assert!(outcome.passed(), "{}", outcome.to_text());
    assert!(
        outcome.pulled_chunks * 5 < outcome.arrived_chunks,
        "{}",
        outcome.to_text()
    );
}
