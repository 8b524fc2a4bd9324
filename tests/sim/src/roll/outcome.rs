//! What came out of a roll.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What came out of a roll.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// Hosts.
    pub hosts: usize,
    /// Pools.
    pub pools: usize,
    /// Pools whose roll ended.
    pub complete: usize,
    /// From the change of the images to the end of the last pool's roll, in seconds.
    pub roll_s: u64,
    /// In which time it had to end.
    pub bound_s: u64,
    /// Most Pods truly in flight in a pool at one time, to the letter.
    pub most_in_flight: u32,
    /// The most by which that was above the pool's cap: outside events only, or there would be a violation.
    pub most_over_cap: u32,
    /// Most Pods of a pool that the gate took and that no warm one had replaced at one time.
    pub most_taken: u32,
    /// Pods that the gate let drain.
    pub labels: u64,
    /// Pending Pods that it had deleted.
    pub reaps: u64,
    /// Labels taken back.
    pub withdrawals: u64,
    /// Reasons told, by name.
    pub denials: BTreeMap<&'static str, u64>,
    /// Writes by how they ended.
    pub writes: BTreeMap<&'static str, u64>,
    /// Restarts of the coordinator.
    pub restarts: u64,
    /// Broken promises: kind and how often.
    pub violations: BTreeMap<String, u64>,
    /// The first broken promise of each kind: when and on what.
    pub first: BTreeMap<String, String>,
    /// Events of the world.
    pub steps: u64,
}

impl Outcome {
    /// Whether every promise held and every pool's roll ended.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.complete == self.pools
    }

    /// As one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "scenario": self.scenario,
            "seed": self.seed,
            "hosts": self.hosts,
            "pools": self.pools,
            "complete": self.complete,
            "passed": self.passed(),
            "roll_s": self.roll_s,
            "bound_s": self.bound_s,
            "most_in_flight": self.most_in_flight,
            "most_over_cap": self.most_over_cap,
            "most_taken": self.most_taken,
            "admissions": { "label": self.labels, "reap": self.reaps },
            "withdrawals": self.withdrawals,
            "denials": self.denials,
            "writes": self.writes,
            "restarts": self.restarts,
            "violations": self.violations.iter().map(|(kind, times)| json!({ "kind": kind, "times": times, "first": self.first.get(kind) })).collect::<Vec<_>>(),
            "steps": self.steps,
        })
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut lines = vec![
            format!("{:>20}  {} (seed {})", "scenario", self.scenario, self.seed),
            format!(
                "{:>20}  {} of {} complete",
                "pools", self.complete, self.pools
            ),
            format!(
                "{:>20}  {} s, bound {} s",
                "roll", self.roll_s, self.bound_s
            ),
            format!(
                "{:>20}  {}, above the cap by outside events {}",
                "most in flight", self.most_in_flight, self.most_over_cap
            ),
            format!("{:>20}  {}", "taken, not replaced", self.most_taken),
            format!(
                "{:>20}  {} labelled, {} reaped",
                "admitted", self.labels, self.reaps
            ),
            format!("{:>20}  {}", "withdrawn", self.withdrawals),
        ];
        lines.extend(
            self.denials
                .iter()
                .map(|(reason, times)| format!("{:>20}  {reason} ({times} times)", "held")),
        );
        lines.extend(self.violations.iter().map(|(kind, times)| {
            let first = self.first.get(kind).map_or("", String::as_str);
            format!(
                "{:>20}  {kind} ({times} times; first: {first})",
                "VIOLATION"
            )
        }));
        lines.join("\n") + "\n"
    }
}
