//! The agent's metrics. Labels come from closed sets; `docs/METRICS.md` describes each, and a test compares the two.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Where bytes of an image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum From {
    /// The registry (as compressed there).
    Origin,
    /// Peers (as on the wire).
    Peers,
    /// This host's own disk (raw).
    Local,
}

impl EncodeLabelValue for From {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Origin => "origin",
            Self::Peers => "peers",
            Self::Local => "local",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// Where received bytes came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabel {
    /// The source.
    pub(crate) source: From,
}

/// A reason of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    /// Its name.
    pub(crate) reason: &'static str,
}

/// A tart operation and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabel {
    /// The tart command.
    pub(crate) operation: &'static str,
    /// How it ended.
    pub(crate) outcome: &'static str,
}

/// A state of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    /// Its name.
    pub(crate) state: &'static str,
}

/// How a stage ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OutcomeLabel {
    /// Its name.
    pub(crate) outcome: &'static str,
}

/// A part of the volume, or of what was found there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PartLabel {
    /// `total`, `free` or `floor`; of disks that were found `read`, `left` or `notes`.
    pub(crate) part: &'static str,
}

/// A request to the mirror and its result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct MirrorLabel {
    /// `base`, `manifest`, `blob`, `tags`, `referrers`, `catalog` or `other`.
    pub(crate) what: &'static str,
    /// `ok`, `partial`, `redirected`, `denied`, `not_found`, `refused`, `broken` or `left`.
    pub(crate) result: &'static str,
}

/// Where the mirror had the bytes from that it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MirrorSource {
    /// The blob was here when it was asked for.
    Cache,
    /// It came for this request or one beside it: from the registry to this host.
    Origin,
    /// From peers.
    Peers,
}

impl EncodeLabelValue for MirrorSource {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Cache => "cache",
            Self::Origin => "origin",
            Self::Peers => "peers",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// Where the mirror had the bytes from that it sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct MirrorSourceLabel {
    /// The source.
    pub(crate) source: MirrorSource,
}

/// Every metric of the agent. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Bytes received, by source.
    pub(crate) received_bytes: Family<SourceLabel, Counter>,
    /// Bytes sent to peers.
    pub(crate) sent_bytes: Counter,
    /// Chunks that failed verification, by where they came from.
    pub(crate) verify_failures: Family<SourceLabel, Counter>,
    /// Contents leased to this host now.
    pub(crate) leases: Gauge,
    /// Contents that don't move now, by reason.
    pub(crate) stalled: Family<ReasonLabel, Gauge>,
    /// tart operations, by outcome.
    pub(crate) tart_operations: Family<OperationLabel, Counter>,
    /// From order to presence.
    pub(crate) stage_seconds: Family<OutcomeLabel, Histogram, fn() -> Histogram>,
    /// From the last chunk to presence.
    pub(crate) install_seconds: Histogram,
    /// Recipes of images that this host made of its own disk, by outcome.
    pub(crate) recipes_made: Family<OutcomeLabel, Counter>,
    /// The volume that holds tart's home.
    pub(crate) volume_bytes: Family<PartLabel, Gauge>,
    /// Disks that parbake didn't build.
    pub(crate) found_disk_bytes: Family<PartLabel, Gauge>,
    /// Peers, by state.
    pub(crate) peers: Family<StateLabel, Gauge>,
    /// Images, by state.
    pub(crate) images: Family<StateLabel, Gauge>,
    /// The metrics of the mirror.
    pub(crate) mirror: MirrorMetrics,
}

/// The mirror's metrics. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct MirrorMetrics {
    /// Requests to the mirror.
    pub(crate) requests: Family<MirrorLabel, Counter>,
    /// Bytes of blobs that the mirror sent.
    pub(crate) sent_bytes: Family<MirrorSourceLabel, Counter>,
    /// From a request for a blob to its first byte.
    pub(crate) first_byte_seconds: Histogram,
    /// Times in which a client waited for bytes amid a blob.
    pub(crate) stall_seconds: Histogram,
    /// Requests for blobs, by whether they were here.
    pub(crate) blobs: Family<OutcomeLabel, Counter>,
    /// Bytes that blobs take in the mirror's cache.
    pub(crate) cache_bytes: Gauge,
    /// Looks for recipes of images whose manifests passed, by their end.
    pub(crate) recipes: Family<OutcomeLabel, Counter>,
}

/// Loopback answers in milliseconds; a client breaks off after a minute.
const MIRROR_BUCKETS: [f64; 10] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0];

fn stage_buckets() -> Histogram {
    Histogram::new([
        1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_200.0, 2_400.0, 4_800.0,
    ])
}

impl Metrics {
    /// The metrics, and the registry that encodes them.
    #[must_use]
    pub(crate) fn new() -> (Self, Registry) {
        let mut registry = Registry::with_prefix("parbake_agent");
        let metrics = Self {
            received_bytes: Family::default(),
            sent_bytes: Counter::default(),
            verify_failures: Family::default(),
            leases: Gauge::default(),
            stalled: Family::default(),
            tart_operations: Family::default(),
            stage_seconds: Family::new_with_constructor(stage_buckets as fn() -> Histogram),
            install_seconds: Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0]),
            recipes_made: Family::default(),
            volume_bytes: Family::default(),
            found_disk_bytes: Family::default(),
            peers: Family::default(),
            images: Family::default(),
            mirror: MirrorMetrics::new(&mut registry),
        };
        registry.register_with_unit(
            "received",
            "Bytes of images and of the mirror's blobs that this host received, by source. Bytes from the registry \
             count as compressed there, bytes from other hosts as on the wire, and bytes from this host's own disk \
             uncompressed",
            Unit::Bytes,
            metrics.received_bytes.clone(),
        );
        registry.register_with_unit(
            "sent",
            "Bytes of chunks that this host sent to other hosts, as on the wire",
            Unit::Bytes,
            metrics.sent_bytes.clone(),
        );
        registry.register(
            "chunk_verify_failures",
            "Chunks that turned out false, by where they came from. A fetch from the registry counts once",
            metrics.verify_failures.clone(),
        );
        registry.register(
            "leases",
            "Contents that are leased to this host now, so that it may fetch them from the registry",
            metrics.leases.clone(),
        );
        registry.register(
            "stalled_contents",
            "Contents that this host wants and that don't grow now, by reason",
            metrics.stalled.clone(),
        );
        registry.register(
            "tart_operations",
            "tart commands that ended, by operation and outcome",
            metrics.tart_operations.clone(),
        );
        registry.register_with_unit(
            "stage_duration",
            "Seconds from the order to stage an image until it was present or failed, by outcome",
            Unit::Seconds,
            metrics.stage_seconds.clone(),
        );
        registry.register_with_unit(
            "install_duration",
            "Seconds from the last verified chunk of an image until it was present",
            Unit::Seconds,
            metrics.install_seconds.clone(),
        );
        registry.register_with_unit(
            "volume",
            "Bytes of the volume that holds tart's home: its size, its free bytes, and the free bytes that staging \
             leaves alone",
            Unit::Bytes,
            metrics.volume_bytes.clone(),
        );
        registry.register_with_unit(
            "found_disk",
            "Bytes of disks in tart's home that parbake didn't build: of those that were read, what is left to read of \
             the one that is being read, and what the notes on all of them take",
            Unit::Bytes,
            metrics.found_disk_bytes.clone(),
        );
        registry.register(
            "recipes_made",
            "Recipes of images that this host made of its own disk, because the registry has none, by outcome",
            metrics.recipes_made.clone(),
        );
        registry.register(
            "peers",
            "Other hosts, by state. One host may count in several states",
            metrics.peers.clone(),
        );
        registry.register(
            "images",
            "Images that this host shall hold, by state",
            metrics.images.clone(),
        );
        (metrics, registry)
    }

    /// Counts bytes of contents that came, or were here already.
    pub(crate) fn received(&self, source: From, bytes: u64) {
        let received = self.received_bytes.get_or_create(&SourceLabel { source });
        received.inc_by(bytes);
    }

    /// Counts chunks that were found false.
    pub(crate) fn found_false(&self, source: From, chunks: usize) {
        let failures = self.verify_failures.get_or_create(&SourceLabel { source });
        failures.inc_by(u64::try_from(chunks).unwrap_or(u64::MAX));
    }
}

impl MirrorMetrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            sent_bytes: Family::default(),
            first_byte_seconds: Histogram::new(MIRROR_BUCKETS),
            stall_seconds: Histogram::new(MIRROR_BUCKETS),
            blobs: Family::default(),
            cache_bytes: Gauge::default(),
            recipes: Family::default(),
        };
        registry.register(
            "mirror_recipes",
            "Looks for the recipe of an image whose manifest passed to a client of the mirror, by their end",
            metrics.recipes.clone(),
        );
        registry.register(
            "mirror_requests",
            "Requests to the mirror that were answered, by what they asked for and by result",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "mirror_sent",
            "Bytes of blobs that the mirror sent to clients, by source: its own cache, the registry or other hosts",
            Unit::Bytes,
            metrics.sent_bytes.clone(),
        );
        registry.register_with_unit(
            "mirror_first_byte",
            "Seconds from a request for a blob until the first byte of the answer",
            Unit::Seconds,
            metrics.first_byte_seconds.clone(),
        );
        registry.register_with_unit(
            "mirror_stall",
            "Seconds for which a client of the mirror waited within a blob, one value for each wait",
            Unit::Seconds,
            metrics.stall_seconds.clone(),
        );
        registry.register(
            "mirror_blobs",
            "Requests for blobs, by whether the whole blob was on this host (hit) or wasn't (miss)",
            metrics.blobs.clone(),
        );
        registry.register_with_unit(
            "mirror_cache",
            "Bytes of disk that the mirror's cache takes",
            Unit::Bytes,
            metrics.cache_bytes.clone(),
        );
        metrics
    }

    /// Counts a request for a blob that was here, or wasn't.
    pub(crate) fn count_hit(&self, hit: bool) {
        let outcome = if hit { "hit" } else { "miss" };
        let label = OutcomeLabel { outcome };
        self.blobs.get_or_create(&label).inc();
    }
}

/// The registry in the OpenMetrics text format.
///
/// # Errors
/// Never for the metrics of this program; formatting into a string can't fail otherwise.
pub(crate) fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut body = String::new();
    text::encode(&mut body, registry)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every metric that the program registers stands in the table, and nothing else does.
    #[test]
    fn the_docs_name_every_metric() {
        let (metrics, registry) = Metrics::new();
        // a family without a series isn't encoded
        let source = SourceLabel {
            source: From::Peers,
        };
        metrics.received_bytes.get_or_create(&source).inc();
        metrics.verify_failures.get_or_create(&source).inc();
        metrics
            .stalled
            .get_or_create(&ReasonLabel { reason: "paced" })
            .set(1);
        let operation = OperationLabel {
            operation: "clone",
            outcome: "ok",
        };
        metrics.tart_operations.get_or_create(&operation).inc();
        metrics
            .stage_seconds
            .get_or_create(&OutcomeLabel { outcome: "present" })
            .observe(1.0);
        metrics
            .recipes_made
            .get_or_create(&OutcomeLabel { outcome: "made" })
            .inc();
        metrics
            .volume_bytes
            .get_or_create(&PartLabel { part: "free" })
            .set(1);
        metrics
            .found_disk_bytes
            .get_or_create(&PartLabel { part: "read" })
            .set(1);
        metrics
            .peers
            .get_or_create(&StateLabel { state: "known" })
            .set(1);
        metrics
            .images
            .get_or_create(&StateLabel { state: "present" })
            .set(1);
        let request = MirrorLabel {
            what: "blob",
            result: "ok",
        };
        metrics.mirror.requests.get_or_create(&request).inc();
        let source = MirrorSourceLabel {
            source: MirrorSource::Cache,
        };
        metrics.mirror.sent_bytes.get_or_create(&source).inc();
        metrics.mirror.count_hit(true);
        let label = OutcomeLabel { outcome: "found" };
        metrics.mirror.recipes.get_or_create(&label).inc();
        let encoded = encode(&registry).unwrap();
        assert!(encoded.ends_with("\n# EOF\n"), "{encoded}");
        let kinds: std::collections::BTreeMap<_, _> = encoded
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| {
                (
                    if kind == "counter" {
                        format!("{name}_total")
                    } else {
                        name.to_owned()
                    },
                    kind,
                )
            })
            .collect();
        let docs = include_str!("../../docs/METRICS.md");
        let documented: std::collections::BTreeMap<_, _> = docs
            .lines()
            .filter_map(|line| line.strip_prefix("| `parbake_agent_"))
            .filter_map(|line| line.split_once("` | "))
            .map(|(name, rest)| {
                (
                    format!("parbake_agent_{name}"),
                    rest.split(' ').next().unwrap(),
                )
            })
            .collect();
        let kinds: std::collections::BTreeMap<_, _> = kinds
            .iter()
            .map(|(name, kind)| (name.clone(), *kind))
            .collect();
        assert_eq!(documented, kinds);
    }
}
