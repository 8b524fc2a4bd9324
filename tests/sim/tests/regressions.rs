//! Runs that once went wrong, each with its cause.

use sim::{Scenario, Setup, roll, run};

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

/// When the image was ordered, the clients' blobs were ordered as images, too. The hosts didn't know them and gave the
/// leases back at once, and the plan leased each blob again with every message.
#[test]
fn a_lease_that_is_given_back_isnt_granted_with_every_message() {
    let outcome = run(&Setup::new(Scenario::MirrorSlow, 4, 48_000_000, 5));
    assert!(outcome.passed(), "{}", outcome.to_text());
    assert!(outcome.steps < 400_000, "{}", outcome.to_text());
}

/// The same order made the blobs a part of what is staged: no lease of a blob was granted while the image had all
/// leases, and clients' hosts fetched alone.
#[test]
fn while_an_image_has_all_leases_mirrors_have_one_all_the_same() {
    let outcome = run(&Setup::new(Scenario::Mirror, 30, 4_000_000_000, 4));
    assert!(outcome.passed(), "{}", outcome.to_text());
    let waits = outcome.waits.unwrap();
    assert_eq!(waits.alone, 0, "{}", outcome.to_text());
    assert!(waits.first_byte_s.1 <= 16.0, "{}", outcome.to_text());
}

fn rolls(scenario: roll::Scenario, seed: u64) {
    let outcome = roll::run(&roll::Setup::new(scenario, 40, seed));
    assert!(outcome.passed(), "{}", outcome.to_text());
}

/// A node that was taken out and back in lost its agent's word, which an agent doesn't repeat while nothing changes.
#[test]
fn a_host_that_comes_back_takes_part_in_the_roll() {
    for seed in [29, 32, 57] {
        rolls(roll::Scenario::Hosts, seed);
    }
}

/// The checker took a pool for stuck whose cap was filled by a Pod on a node that isn't Ready, and that nobody evicts.
#[test]
fn a_pod_on_a_node_that_is_not_ready_may_hold_the_roll_up() {
    for seed in [17, 61, 105] {
        rolls(roll::Scenario::Hosts, seed);
    }
}

/// A refused withdrawal freed the place of the label that it was to take off, while its Pod was on its way out.
#[test]
fn a_refused_withdrawal_lets_no_other_pod_go() {
    rolls(roll::Scenario::Rollback, 8);
}

/// A pool that shrank lost the place of a successor that had been made before, and that no watch had shown yet.
#[test]
fn a_pool_that_shrinks_still_waits_for_its_successors() {
    for seed in [2, 40] {
        rolls(roll::Scenario::Autoscale, seed);
    }
}

/// A stale Pod that was seen late was taken for the successor of one that the gate had just deleted.
#[test]
fn a_pod_seen_late_is_nobodys_successor() {
    rolls(roll::Scenario::Rollback, 40);
    rolls(roll::Scenario::Autoscale, 46);
}
