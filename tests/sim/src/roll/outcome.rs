//! The result of a roll.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The result of a roll.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// The number of hosts.
    pub hosts: usize,
    /// The number of pools.
    pub pools: usize,
    /// The number of pools whose roll ended.
    pub complete: usize,
    /// Seconds from the change of the images to the end of the last pool's roll.
    pub roll_s: u64,
    /// Seconds after which the roll has failed to end in time.
    pub bound_s: u64,
    /// The most Pods of a pool that were truly in flight at one time.
    pub most_in_flight: u32,
    /// The most Pods of a pool that were in flight beyond its cap. Only outside events may cause that, because
    /// otherwise it is a violation.
    pub most_over_cap: u32,
    /// The most Pods of a pool that the gate had taken at one time and that no warm Pod had replaced yet.
    pub most_taken: u32,
    /// The number of Pods that the gate let drain.
    pub labels: u64,
    /// The number of Pending Pods that the gate had deleted.
    pub reaps: u64,
    /// The number of labels that were taken back.
    pub withdrawals: u64,
    /// How often each reason was given, by name.
    pub denials: BTreeMap<&'static str, u64>,
    /// The number of writes, by how they ended.
    pub writes: BTreeMap<&'static str, u64>,
    /// The number of restarts of the coordinator.
    pub restarts: u64,
    /// Broken promises: each kind, and how often.
    pub violations: BTreeMap<String, u64>,
    /// The first broken promise of each kind: when it happened, and to which object.
    pub first: BTreeMap<String, String>,
    /// The number of events of the world.
    pub steps: u64,
}

impl Outcome {
    /// Whether every promise held and every pool's roll ended.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.complete == self.pools
    }

    /// The result as one JSON object.
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

    /// The result as text for people.
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
