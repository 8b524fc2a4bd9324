//! The coordinator's metrics. Labels come from closed sets. `docs/METRICS.md` describes each metric, and a test
//! compares that file with the code.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::view::{HostState, ImageState, StagingBytes};

/// A state of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    pub(crate) state: &'static str,
}

/// Where bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabel {
    pub(crate) source: &'static str,
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    pub(crate) outcome: &'static str,
}

/// The kind of a blame, or of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: &'static str,
}

/// An API request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabel {
    pub(crate) route: &'static str,
    pub(crate) result: &'static str,
}

/// Every metric of the coordinator. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Hosts by session: `connected`, `disconnected`, `quarantined`, `revoked`.
    pub(crate) hosts: Family<StateLabel, Gauge>,
    /// Images that are wanted, by state.
    pub(crate) images: Family<StateLabel, Gauge>,
    /// (image, host) pairs that are wanted, by state.
    pub(crate) placements: Family<StateLabel, Gauge>,
    /// Leases running.
    pub(crate) leases: Gauge,
    /// Leases granted.
    pub(crate) granted: Counter,
    /// Leases that ended, by outcome.
    pub(crate) lease_ends: Family<OutcomeLabel, Counter>,
    /// Bytes that hosts reported, by source. The value falls when the coordinator restarts, when an image is cancelled
    /// or is staged anew on a host, and when a host leaves the fleet.
    pub(crate) bytes: Family<SourceLabel, Gauge<u64, AtomicU64>>,
    /// Bytes that the stagings of wanted images were predicted to move when they began, by kind.
    pub(crate) predicted: Family<KindLabel, Gauge<u64, AtomicU64>>,
    /// Bytes that they moved since, by kind.
    pub(crate) measured: Family<KindLabel, Gauge<u64, AtomicU64>>,
    /// Bytes that leave the registry when each blob of the wanted images is fetched once.
    pub(crate) wanted_bytes: Gauge<u64, AtomicU64>,
    /// Seconds from the request of an image until every selected host has it.
    pub(crate) stage_seconds: Histogram,
    /// Blames by kind.
    pub(crate) blames: Family<KindLabel, Counter>,
    /// Contents for which a recipe was found not to fit the registry's bytes.
    pub(crate) recipe_doubts: Counter,
    /// Hosts that were asked to make a recipe.
    pub(crate) recipes_asked: Counter,
    /// Enrolment tokens by outcome.
    pub(crate) tokens: Family<OutcomeLabel, Counter>,
    /// Certificates by outcome.
    pub(crate) certificates: Family<OutcomeLabel, Counter>,
    /// API requests.
    pub(crate) requests: Family<RequestLabel, Counter>,
    /// Sessions that ended, by outcome.
    pub(crate) session_ends: Family<OutcomeLabel, Counter>,
    /// The metrics of the Kubernetes side.
    pub(crate) cluster: crate::cluster::metrics::Metrics,
}

impl Metrics {
    /// Makes all metrics, and a registry that has them.
    pub(crate) fn new() -> (Self, Registry) {
        let mut registry = Registry::default();
        let this = Self {
            cluster: crate::cluster::metrics::Metrics::new(&mut registry),
            hosts: Family::default(),
            images: Family::default(),
            placements: Family::default(),
            leases: Gauge::default(),
            granted: Counter::default(),
            lease_ends: Family::default(),
            bytes: Family::default(),
            predicted: Family::default(),
            measured: Family::default(),
            wanted_bytes: Gauge::default(),
            // 1 s to 2.3 h: an image that is there already, and a 60 GB one on a slow line.
            stage_seconds: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            blames: Family::default(),
            recipe_doubts: Counter::default(),
            recipes_asked: Counter::default(),
            tokens: Family::default(),
            certificates: Family::default(),
            requests: Family::default(),
            session_ends: Family::default(),
        };
        let own = registry.sub_registry_with_prefix("parbake_coordinator");
        this.register_staging(own);
        this.register_trust(own);
        this.touch();
        (this, registry)
    }

    /// Registers what tells of hosts, images, leases and bytes.
    fn register_staging(&self, r: &mut Registry) {
        r.register(
            "hosts",
            "Hosts of the fleet, by state. A host that the fleet shuns counts as quarantined besides its other state",
            self.hosts.clone(),
        );
        r.register("images", "Wanted images, by state", self.images.clone());
        r.register(
            "placements",
            "Pairs of a wanted image and a host that is selected for it, by state",
            self.placements.clone(),
        );
        r.register(
            "leases",
            "Leases that run now: contents that a host fetches from a registry",
            self.leases.clone(),
        );
        r.register(
            "leases_granted",
            "Leases that the coordinator granted",
            self.granted.clone(),
        );
        r.register(
            "lease_ends",
            "Leases that ended, by outcome, as their holders say",
            self.lease_ends.clone(),
        );
        r.register_with_unit(
            "received",
            "Bytes of the wanted images that their selected hosts report to have received, by source, summed over \
             the hosts",
            Unit::Bytes,
            self.bytes.clone(),
        );
        r.register_with_unit(
            "predicted",
            "Bytes that the stagings of the wanted images were predicted to move when they began, by kind",
            Unit::Bytes,
            self.predicted.clone(),
        );
        r.register_with_unit(
            "measured",
            "Bytes that the stagings of the wanted images moved since the prediction, by kind",
            Unit::Bytes,
            self.measured.clone(),
        );
        r.register_with_unit(
            "wanted",
            "Bytes of the wanted images in the registry, summed over the images",
            Unit::Bytes,
            self.wanted_bytes.clone(),
        );
        r.register_with_unit(
            "stage",
            "Seconds from the request for an image until every selected host held it",
            Unit::Seconds,
            self.stage_seconds.clone(),
        );
    }

    /// Registers what tells of trust, recipes, certificates, and who called.
    fn register_trust(&self, r: &mut Registry) {
        r.register(
            "blames",
            "Times that a host blamed another one and was heard, by kind",
            self.blames.clone(),
        );
        r.register(
            "recipe_doubts",
            "Contents for which an image's recipe doesn't fit the registry's bytes",
            self.recipe_doubts.clone(),
        );
        r.register(
            "recipes_asked",
            "Hosts that were asked to make the recipe of an image of which the registry has none",
            self.recipes_asked.clone(),
        );
        r.register(
            "enrolment_tokens",
            "Enrolment tokens that were made by the API, used or refused, by outcome",
            self.tokens.clone(),
        );
        r.register(
            "certificates",
            "Certificates of hosts that were issued, renewed or refused, by outcome",
            self.certificates.clone(),
        );
        r.register(
            "api_requests",
            "API requests that were answered, by route and result",
            self.requests.clone(),
        );
        r.register(
            "session_ends",
            "Sessions of hosts that ended, by outcome",
            self.session_ends.clone(),
        );
    }

    /// A family shows a label only after its first use. A zero is better than no value.
    fn touch(&self) {
        for state in ["connected", "disconnected", "quarantined", "revoked"] {
            self.hosts.get_or_create(&StateLabel { state }).set(0);
        }
        for state in [ImageState::Staging, ImageState::Present, ImageState::Failed] {
            let state = image_state(state);
            self.images.get_or_create(&StateLabel { state }).set(0);
        }
        for state in HOST_STATES {
            let state = state.as_str();
            self.placements.get_or_create(&StateLabel { state }).set(0);
        }
        for source in ["origin", "peers", "local"] {
            self.bytes.get_or_create(&SourceLabel { source }).set(0);
        }
        for (kind, _) in StagingBytes::default().parts() {
            for family in [&self.predicted, &self.measured] {
                family.get_or_create(&KindLabel { kind }).set(0);
            }
        }
        for kind in BlameKind::ALL.map(BlameKind::as_str) {
            drop(self.blames.get_or_create(&KindLabel { kind }));
        }
        let outcomes = [
            (
                &self.lease_ends,
                &LeaseOutcome::ALL.map(LeaseOutcome::as_str)[..],
            ),
            (&self.tokens, &["made", "used", "refused"]),
            (&self.certificates, &["issued", "renewed", "refused"]),
            (
                &self.session_ends,
                &SessionEnd::ALL.map(SessionEnd::as_str)[..],
            ),
        ];
        for (family, outcomes) in outcomes {
            for outcome in outcomes {
                drop(family.get_or_create(&OutcomeLabel { outcome }));
            }
        }
    }

    /// Counts something that ended.
    pub(crate) fn count(family: &Family<OutcomeLabel, Counter>, outcome: &'static str) {
        family.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}

/// How a host's session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The connection broke, or the host closed it.
    ConnectionLost,
    /// The host ended its stream of reports.
    Finished,
    /// A newer session of the host took this one's place, or the host didn't take its orders and the driver gave it up.
    Replaced,
    /// The host didn't read an order in time.
    Stuck,
    /// The host sent a report that doesn't decode.
    Nonsense,
    /// The host sent far more than a host can need.
    Excessive,
    /// The coordinator stops.
    Stopping,
}

impl SessionEnd {
    /// All ends of a session.
    pub(crate) const ALL: [Self; 7] = [
        Self::ConnectionLost,
        Self::Finished,
        Self::Replaced,
        Self::Stuck,
        Self::Nonsense,
        Self::Excessive,
        Self::Stopping,
    ];

    /// The label `outcome` of the metric.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionLost => "connection_lost",
            Self::Finished => "finished",
            Self::Replaced => "replaced",
            Self::Stuck => "stuck",
            Self::Nonsense => "nonsense",
            Self::Excessive => "excessive",
            Self::Stopping => "stopping",
        }
    }
}

/// What a host holds against another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlameKind {
    /// Bytes don't fit the link that came with them.
    Bytes,
    /// A link that a host vouched for is false, or two links of one host contradict each other.
    Link,
    /// A link that was made of the registry's bytes is false, which may be the registry's fault.
    Made,
    /// The host didn't keep what it had accepted.
    Silence,
    /// The host broke a limit, or sent nonsense.
    Protocol,
    /// A kind that this version doesn't know.
    Other,
}

impl BlameKind {
    /// All kinds.
    const ALL: [Self; 6] = [
        Self::Bytes,
        Self::Link,
        Self::Made,
        Self::Silence,
        Self::Protocol,
        Self::Other,
    ];

    /// The label `kind` of the metric.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Link => "link",
            Self::Made => "made",
            Self::Silence => "silence",
            Self::Protocol => "protocol",
            Self::Other => "other",
        }
    }
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseOutcome {
    /// The holder fetched all of the content.
    Done,
    /// The registry failed the holder, or asked to be left alone.
    OriginFailed,
    /// The registry's bytes don't end in the content's digest.
    ContentBad,
    /// The registry doesn't have the content.
    ContentMissing,
    /// The registry refuses the content.
    ContentRefused,
    /// The registry gives nothing of which the content can be made.
    ContentUnusable,
    /// The holder's settings keep it from asking.
    HostUnable,
    /// The holder gave the lease back.
    Released,
    /// The coordinator took the lease back.
    Revoked,
}

impl LeaseOutcome {
    /// All outcomes.
    const ALL: [Self; 9] = [
        Self::Done,
        Self::OriginFailed,
        Self::ContentBad,
        Self::ContentMissing,
        Self::ContentRefused,
        Self::ContentUnusable,
        Self::HostUnable,
        Self::Released,
        Self::Revoked,
    ];

    /// The label `outcome` of the metric.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::OriginFailed => "origin_failed",
            Self::ContentBad => "content_bad",
            Self::ContentMissing => "content_missing",
            Self::ContentRefused => "content_refused",
            Self::ContentUnusable => "content_unusable",
            Self::HostUnable => "host_unable",
            Self::Released => "released",
            Self::Revoked => "revoked",
        }
    }
}

/// The name of an image's state.
pub(crate) const fn image_state(state: ImageState) -> &'static str {
    match state {
        ImageState::Staging => "staging",
        ImageState::Present => "present",
        ImageState::Failed => "failed",
        ImageState::Cancelled => "cancelled",
    }
}

/// All states of a placement. Each is set each time, so that a state that no placement has any more shows zero.
pub(crate) const HOST_STATES: [HostState; 7] = [
    HostState::Waiting,
    HostState::Queued,
    HostState::Staging,
    HostState::Installing,
    HostState::Present,
    HostState::Failed,
    HostState::Gone,
];

/// The registry in the OpenMetrics text format.
///
/// # Errors
/// Never for the metrics of this program: only a collector can fail, and there is none.
pub(crate) fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut body = String::new();
    text::encode(&mut body, registry)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_is_described_and_every_description_has_a_metric() {
        let (metrics, registry) = Metrics::new();
        let request = RequestLabel {
            route: "images",
            result: "ok",
        };
        metrics.requests.get_or_create(&request).inc();
        metrics.cluster.touch();
        let text = encode(&registry).unwrap();
        let names: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let docs = std::fs::read_to_string(docs).unwrap();
        let described: BTreeSet<&str> = docs
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|word| {
                ["coordinator", "pool", "prepull", "pod"]
                    .iter()
                    .any(|room| word.starts_with(&format!("parbake_{room}_")))
            })
            .map(|word| word.strip_suffix("_total").unwrap_or(word))
            .collect();
        assert_eq!(names, described);
    }

    /// The label values that the docs list for a metric, by label.
    fn listed(row: &str) -> Vec<(String, BTreeSet<String>)> {
        let labels = row.split('|').nth(2).unwrap_or_default();
        let labels = labels
            .split(';')
            .filter_map(|label| label.split_once(':'))
            .map(|(label, values)| {
                let values = values.split('`').skip(1).step_by(2).map(str::to_owned);
                (label.trim().trim_matches('`').to_owned(), values.collect())
            });
        labels.collect()
    }

    /// A counter that appears with its first event can't be alerted on: a rate needs the zero before it.
    #[test]
    fn a_series_of_each_label_value_in_the_docs_is_there_from_the_start_and_no_other() {
        let (_metrics, registry) = Metrics::new();
        let text = encode(&registry).unwrap();
        let docs = include_str!("../../docs/METRICS.md");
        let (docs, _) = docs.split_once("### In a cluster").unwrap();
        let rows = docs
            .lines()
            .filter_map(|row| row.strip_prefix("| `parbake_coordinator_"));
        let mut compared = 0;
        for row in rows {
            let (name, _) = row.split_once('`').unwrap();
            // routes come with the first request
            if name == "api_requests_total" {
                continue;
            }
            for (label, values) in listed(row) {
                let start = format!("parbake_coordinator_{name}{{{label}=\"");
                let series = text.lines().filter_map(|line| line.strip_prefix(&start));
                let shown: BTreeSet<_> = series
                    .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
                    .collect();
                assert_eq!(shown, values, "{name}");
                compared += 1;
            }
        }
        assert_eq!(compared, 11);
    }

    #[test]
    fn what_is_encoded_is_open_metrics() {
        let (metrics, registry) = Metrics::new();
        metrics.cluster.touch();
        let text = encode(&registry).unwrap();
        let (samples, end) = text.split_at(text.len() - "# EOF\n".len());
        assert_eq!(end, "# EOF\n");
        let mut family = "";
        for line in samples.lines() {
            if let Some(described) = line.strip_prefix("# ") {
                let mut words = described.splitn(3, ' ');
                assert!(
                    matches!(words.next(), Some("HELP" | "TYPE" | "UNIT")),
                    "{line}"
                );
                family = words.next().unwrap();
                assert!(words.next().is_some(), "{line}");
            } else {
                assert!(line.starts_with(family), "{line} isn't of {family}");
                let (_, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
}
