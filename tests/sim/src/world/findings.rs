//! What the checks found.

use std::collections::{BTreeMap, BTreeSet};

/// Broken promises, stalls, and honest hosts that were shunned.
#[derive(Debug, Default)]
pub(super) struct Findings {
    broken: BTreeMap<String, u64>,
    stalls: BTreeMap<&'static str, f64>,
    shunned_honest: BTreeSet<u32>,
}

impl Findings {
    /// A promise was broken.
    pub(super) fn note(&mut self, kind: &str) {
        *self.broken.entry(kind.to_owned()).or_default() += 1;
    }

    /// An honest host was shunned.
    pub(super) fn shun_honest(&mut self, host: u32) {
        self.shunned_honest.insert(host);
    }

    /// A host has gained nothing for so long, for this reason.
    pub(super) fn stall(&mut self, reason: &'static str, idle_s: f64) {
        let longest = self.stalls.entry(reason).or_default();
        *longest = longest.max(idle_s);
    }

    /// Broken promises: kind and how often.
    pub(super) fn violations(&self) -> Vec<(String, u64)> {
        self.broken
            .iter()
            .map(|(kind, times)| (kind.clone(), *times))
            .collect()
    }

    /// How many honest hosts were shunned.
    pub(super) fn shunned_honest(&self) -> usize {
        self.shunned_honest.len()
    }

    /// Longest stalls by reason, in seconds.
    pub(super) fn stalls(&self) -> Vec<(String, f64)> {
        self.stalls
            .iter()
            .map(|(reason, longest)| ((*reason).to_owned(), *longest))
            .collect()
    }
}
