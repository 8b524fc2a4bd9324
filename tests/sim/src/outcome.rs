//! What came out of a run.

use serde_json::{Value, json};

use crate::world::Waits;

/// What came out of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The seed.
    pub seed: u64,
    /// Hosts that the image is wanted on.
    pub hosts: usize,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of the image that no host held at the beginning: all of it, unless it is a release.
    pub changed_bytes: u64,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Whether the image had a recipe.
    pub recipe: bool,
    /// From the order to the last host, in seconds.
    pub makespan_s: f64,
    /// From the order to the first host.
    pub first_s: f64,
    /// The lower bound.
    pub bound_s: f64,
    /// How long the images took that can be had, each from its order to its last host, together.
    pub images_s: f64,
    /// The same over what it is without the image that lacks a layer, where there is one.
    pub others_over_alone: Option<f64>,
    /// When the last host had the image that comes first on it, from the order on.
    pub first_image_s: f64,
    /// The same over the time of one such image alone, where two come at once.
    pub first_over_alone: Option<f64>,
    /// Bytes that left the registry.
    pub origin_bytes: u64,
    /// Bytes that hosts received from hosts.
    pub peer_bytes: u64,
    /// Bytes that hosts held already, summed over restarts.
    pub local_bytes: u64,
    /// Requests that the registry refused.
    pub refused_requests: u64,
    /// Chunks requested from peers (the pull swarm), of all that arrived.
    pub pulled_chunks: u64,
    /// Chunks that arrived.
    pub arrived_chunks: u64,
    /// Pushes that were declined, as busy or for another reason.
    pub declined_pushes: u64,
    /// Hosts that ended complete.
    pub complete: usize,
    /// Honest hosts that the fleet, or another honest host by itself, shunned at some time.
    pub shunned_honest: usize,
    /// Broken promises: kind and how often.
    pub violations: Vec<(String, u64)>,
    /// Longest stalls by reason, in seconds.
    pub stalls: Vec<(String, f64)>,
    /// How long clients of mirrors waited, where there were any.
    pub waits: Option<Waits>,
    /// Mean use of the registry's line, the uplinks and the downlinks until the last host ended, from 0 to 1.
    pub utilisation: (f64, f64, f64),
    /// Events processed.
    pub steps: u64,
}

/// What a run may cost at most; `None` asks for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Goals {
    /// Makespan over the lower bound.
    pub makespan_over_bound: Option<f64>,
    /// Bytes from the registry over the image's.
    pub origin_over_image: Option<f64>,
    /// Time of the other images over what it is without the one that lacks a layer.
    pub others_over_alone: Option<f64>,
    /// Time of each host's first image over the time of one such image alone.
    pub first_over_alone: Option<f64>,
}

impl Outcome {
    /// The costs that are over their goals, each in a line.
    #[must_use]
    pub fn excess(&self, goals: &Goals) -> Vec<String> {
        let costs = [
            (
                "makespan over bound",
                self.makespan_over_bound(),
                goals.makespan_over_bound,
            ),
            (
                "origin over image",
                self.origin_over_image(),
                goals.origin_over_image,
            ),
            (
                "others over alone",
                self.others_over_alone.unwrap_or(f64::NAN),
                goals.others_over_alone,
            ),
            (
                "first over alone",
                self.first_over_alone.unwrap_or(f64::NAN),
                goals.first_over_alone,
            ),
        ];
        costs
            .into_iter()
            .filter_map(|(name, is, most)| {
                // a ratio that isn't a number (nothing ever ended) is over every goal
                let most = most.filter(|most| is > *most || is.is_nan())?;
                Some(format!(
                    "{}: {name} is {is:.4}, more than {most}",
                    self.scenario
                ))
            })
            .collect()
    }

    /// Makespan over the lower bound.
    #[must_use]
    pub fn makespan_over_bound(&self) -> f64 {
        self.makespan_s / self.bound_s
    }

    /// The last host's time over the first host's.
    #[must_use]
    pub fn last_over_first(&self) -> f64 {
        self.makespan_s / self.first_s
    }

    /// Bytes from the registry over those of the image that no host held at the beginning.
    #[must_use]
    pub fn origin_over_image(&self) -> f64 {
        ratio(self.origin_bytes, self.changed_bytes)
    }

    /// Whether nothing was violated and every wanted host ended complete.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.complete == self.hosts
    }

    /// As one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut told = json!({
            "scenario": self.scenario,
            "seed": self.seed,
            "hosts": self.hosts,
            "complete": self.complete,
            "image_bytes": self.image_bytes,
            "changed_bytes": self.changed_bytes,
            "network_bytes_per_host": (self.origin_bytes + self.peer_bytes) / (self.hosts.max(1) as u64),
            "chunk_bytes": self.chunk_bytes,
            "recipe": self.recipe,
            "passed": self.passed(),
            "makespan_over_bound": round(self.makespan_over_bound()),
            "last_over_first": round(self.last_over_first()),
            "origin_over_image": round(self.origin_over_image()),
            "others_over_alone": self.others_over_alone.map(round),
            "first_over_alone": self.first_over_alone.map(round),
            "makespan_s": round(self.makespan_s),
            "first_s": round(self.first_s),
            "bound_s": round(self.bound_s),
            "bytes": {
                "origin": self.origin_bytes,
                "peers": self.peer_bytes,
                "local": self.local_bytes,
            },
            "shunned_honest": self.shunned_honest,
            "refused_requests": self.refused_requests,
            "pulled_over_arrived": round(ratio(self.pulled_chunks, self.arrived_chunks)),
            "declined_over_arrived": round(ratio(self.declined_pushes, self.arrived_chunks)),
            "violations": self.violations.iter().map(|(kind, times)| json!({ "kind": kind, "times": times })).collect::<Vec<_>>(),
            "stalls_s": self.stalls.iter().map(|(reason, longest)| (reason.clone(), json!(round(*longest)))).collect::<serde_json::Map<_, _>>(),
            "utilisation": {
                "origin": round(self.utilisation.0),
                "uplinks": round(self.utilisation.1),
                "downlinks": round(self.utilisation.2),
            },
            "steps": self.steps,
        });
        if let Some(waits) = &self.waits {
            let span = |(median, worst): (f64, f64)| json!({ "median": round(median), "worst": round(worst) });
            told["clients"] = json!({
                "served": waits.clients,
                "fetches_alone": waits.alone,
                "first_byte_s": span(waits.first_byte_s),
                "last_byte_s": span(waits.last_byte_s),
            });
        }
        told
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            if let Err(error) = writeln!(text, "{name:>20}  {value}") {
                text.push_str(&error.to_string());
            }
        };
        line(
            "scenario",
            format!("{} (seed {})", self.scenario, self.seed),
        );
        line(
            "hosts",
            format!("{} of {} complete", self.complete, self.hosts),
        );
        line(
            "makespan",
            format!(
                "{:.2} s, bound {:.2} s: {:.4}",
                self.makespan_s,
                self.bound_s,
                self.makespan_over_bound()
            ),
        );
        line("last / first", format!("{:.4}", self.last_over_first()));
        line("origin / image", format!("{:.4}", self.origin_over_image()));
        if let Some(others) = self.others_over_alone {
            line("others / alone", format!("{others:.4}"));
        }
        if let Some(first) = self.first_over_alone {
            line("first / alone", format!("{first:.4}"));
        }
        line("honest shunned", self.shunned_honest.to_string());
        line("refused by origin", self.refused_requests.to_string());
        line(
            "pulled / arrived",
            format!("{:.4}", ratio(self.pulled_chunks, self.arrived_chunks)),
        );
        line(
            "declined / arrived",
            format!("{:.4}", ratio(self.declined_pushes, self.arrived_chunks)),
        );
        line(
            "use of lines",
            format!(
                "origin {:.3}, up {:.3}, down {:.3}",
                self.utilisation.0, self.utilisation.1, self.utilisation.2
            ),
        );
        if let Some(waits) = &self.waits {
            line(
                "clients served",
                format!("{}, {} fetches alone", waits.clients, waits.alone),
            );
            for (name, (median, worst)) in [
                ("first byte", waits.first_byte_s),
                ("last byte", waits.last_byte_s),
            ] {
                line(name, format!("median {median:.2} s, worst {worst:.2} s"));
            }
        }
        for (reason, longest) in &self.stalls {
            line("longest stall", format!("{longest:.1} s {reason}"));
        }
        for (kind, times) in &self.violations {
            line("VIOLATION", format!("{kind} ({times} times)"));
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people and ratios")]
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}
