//! Every roll, with a few seeds: nothing goes where the image isn't or beyond the cap, and every roll ends.

use std::time::Duration;

use sim::roll::{Outcome, Scenario, Setup, run};

fn rolls(scenario: Scenario, hosts: usize, seed: u64) -> Outcome {
    let outcome = run(&Setup::new(scenario, hosts, seed));
    assert!(outcome.passed(), "{}", outcome.to_text());
    outcome
}

#[test]
fn every_scenario_ends_with_every_promise_held() {
    for scenario in Scenario::ALL {
        for seed in 1..=2 {
            let outcome = rolls(scenario, 40, seed);
            assert!(outcome.labels > 0, "{}", outcome.to_text());
        }
    }
}

#[test]
fn a_small_fleet_rolls_too() {
    for scenario in Scenario::ALL {
        rolls(scenario, 6, 1);
    }
}

#[test]
fn what_the_scenarios_are_about_happens_in_them() {
    let total = |scenario, count: fn(&Outcome) -> u64| {
        (1..=4)
            .map(|seed| count(&rolls(scenario, 40, seed)))
            .sum::<u64>()
    };
    let held = |reason: &'static str| {
        move |outcome: &Outcome| outcome.denials.get(reason).copied().unwrap_or_default()
    };
    let denied = |scenario, reason| {
        (1..=4)
            .map(|seed| held(reason)(&rolls(scenario, 40, seed)))
            .sum::<u64>()
    };
    assert!(total(Scenario::Rollback, |outcome| outcome.withdrawals) > 0);
    assert!(total(Scenario::Rollback, |outcome| outcome.reaps) > 0);
    assert!(total(Scenario::Prune, |outcome| outcome.withdrawals) > 0);
    assert!(total(Scenario::GateRestart, |outcome| outcome.restarts) > 0);
    assert_eq!(
        total(Scenario::Guard, |outcome| outcome.withdrawals
            + outcome.reaps),
        0
    );
    assert!(denied(Scenario::Guard, "cap_reached") > 0);
    assert!(denied(Scenario::Silent, "presence_old") > 0);
    assert!(denied(Scenario::Hosts, "node_cordoned") > 0);
    assert!(denied(Scenario::GateRestart, "host_unheard") > 0);
    assert!(denied(Scenario::Operator, "paused") > 0);
    assert!(denied(Scenario::Operator, "image_unresolved") > 0);
    for scenario in [
        Scenario::TemplateLags,
        Scenario::TemplateLeads,
        Scenario::TwoSpellings,
    ] {
        assert!(denied(scenario, "owner_lags") > 0);
        assert!(denied(scenario, "owner_unread") > 0);
    }
    assert!(denied(Scenario::NoOwner, "no_successor") > 0);
    assert!(denied(Scenario::Beside, "node_reserved") > 0);
    assert!(denied(Scenario::Beside, "node_cordoned") > 0);
    assert!(denied(Scenario::FleetCap, "fleet_cap_reached") > 0);
    assert_eq!(denied(Scenario::Roll, "fleet_cap_reached"), 0);
    assert_eq!(denied(Scenario::Roll, "owner_lags"), 0);
}

#[test]
fn a_seed_is_a_roll() {
    for scenario in Scenario::ALL {
        assert_eq!(
            rolls(scenario, 12, 5).to_json(),
            rolls(scenario, 12, 5).to_json()
        );
    }
}

/// The checks see what they are for: a gate that takes old words for young ones is caught.
#[test]
fn a_gate_that_believes_old_words_is_caught() {
    let caught = (1..=8).any(|seed| {
        let mut setup = Setup::new(Scenario::Silent, 40, seed);
        setup.gate.presence_max_age *= 10;
        !run(&setup).passed()
    });
    assert!(caught);
}

/// And one that takes idle Pods of a host that was cordoned or reserved a moment ago for Pods that stay. With this seed
/// it labels a Pod while another one is about to be deleted.
#[test]
fn a_gate_that_overlooks_who_empties_a_cordoned_host_is_caught() {
    let outcome = |reap| {
        let mut setup = Setup::new(Scenario::Beside, 40, 1);
        setup.gate.reap = reap;
        run(&setup)
    };
    let overlooks = outcome(Duration::ZERO);
    let kind = "more in flight than the cap";
    assert!(overlooks.violations.contains_key(kind));
    rolls(Scenario::Beside, 40, 1);
}

/// And one that keeps no room for successors, because it is told that they are there already.
#[test]
fn a_gate_that_keeps_no_room_for_successors_is_caught() {
    for kind in [
        "more in flight than the cap",
        "more Pods are taken than the cap, and not replaced",
    ] {
        let caught = (1..=8).any(|seed| {
            let mut setup = Setup::new(Scenario::Roll, 40, seed);
            setup.phantoms = true;
            run(&setup).violations.contains_key(kind)
        });
        assert!(caught, "{kind}");
    }
}
