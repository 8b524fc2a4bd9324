//! The limits of what may move: those that operators set, and those of the cluster's objects.

use tracing::info;

use super::ask::Limits;
use crate::view::BandwidthRequest;

/// The stricter of two limits; 0 means no limit.
pub(crate) const fn stricter(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, limit) | (limit, 0) => limit,
        (one, other) if one < other => one,
        (_, other) => other,
    }
}

/// The limits of operators and of the cluster.
#[derive(Debug)]
pub(super) struct Limited {
    /// The operators' bandwidth limits; `None` when operators never set any.
    asked: Option<BandwidthRequest>,
    cluster: Limits,
}

/// What follows from a change of the cluster's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The new number of contents that may be leased at one time; `Some(None)` means the number in the coordinator's
    /// settings. `None` when the number didn't change.
    pub(super) origin_streams: Option<Option<usize>>,
    /// Whether the bandwidth limits changed.
    pub(super) bandwidth: bool,
}

impl Limited {
    /// Starts with the limits that operators had set before this start.
    pub(super) fn new(asked: Option<BandwidthRequest>) -> Self {
        Self {
            asked,
            cluster: Limits::default(),
        }
    }

    /// Takes the limits that operators set.
    pub(super) fn ask(&mut self, limits: BandwidthRequest) {
        info!(
            upload = limits.upload_bytes_per_second,
            download = limits.download_bytes_per_second,
            "bandwidth limits changed"
        );
        self.asked = Some(limits);
    }

    /// Takes the limits of the cluster's objects. Returns what they change.
    pub(super) fn place(&mut self, limits: Limits) -> Change {
        let before = std::mem::replace(&mut self.cluster, limits);
        let streams = before.origin_streams != limits.origin_streams;
        Change {
            origin_streams: streams.then_some(limits.origin_streams),
            bandwidth: before.bandwidth != limits.bandwidth,
        }
    }

    /// The bandwidth limits of every host: the stricter of the operators' and the cluster's. `None` when neither sets
    /// any.
    pub(super) fn bandwidth(&self) -> Option<BandwidthRequest> {
        let cluster = self.cluster.bandwidth;
        let said = self.asked.is_some() || cluster != BandwidthRequest::default();
        let asked = self.asked.unwrap_or_default();
        said.then(|| BandwidthRequest {
            upload_bytes_per_second: stricter(
                asked.upload_bytes_per_second,
                cluster.upload_bytes_per_second,
            ),
            download_bytes_per_second: stricter(
                asked.download_bytes_per_second,
                cluster.download_bytes_per_second,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bandwidth(upload: u64, download: u64) -> BandwidthRequest {
        BandwidthRequest {
            upload_bytes_per_second: upload,
            download_bytes_per_second: download,
        }
    }

    #[test]
    fn the_stricter_limit_counts_and_none_is_none() {
        for (one, other, expected) in [(0, 0, 0), (0, 5, 5), (5, 0, 5), (3, 5, 3), (5, 3, 3)] {
            assert_eq!(stricter(one, other), expected);
        }
    }

    #[test]
    fn each_direction_has_the_stricter_of_both_limits() {
        let mut limited = Limited::new(None);
        assert_eq!(limited.bandwidth(), None, "nobody ever said anything");
        limited.ask(bandwidth(10, 0));
        assert_eq!(limited.bandwidth(), Some(bandwidth(10, 0)));
        let limits = Limits {
            bandwidth: bandwidth(20, 30),
            origin_streams: None,
        };
        let change = limited.place(limits);
        assert!(change.bandwidth && change.origin_streams.is_none());
        assert_eq!(limited.bandwidth(), Some(bandwidth(10, 30)));
        // after all limits are taken back, 0 is still told, because hosts have to hear of it
        limited.place(Limits::default());
        limited.ask(bandwidth(0, 0));
        assert_eq!(limited.bandwidth(), Some(bandwidth(0, 0)));
    }

    #[test]
    fn only_a_change_of_the_clusters_limits_is_told() {
        let mut limited = Limited::new(Some(bandwidth(1, 1)));
        let limits = Limits {
            bandwidth: BandwidthRequest::default(),
            origin_streams: Some(2),
        };
        assert_eq!(limited.place(limits).origin_streams, Some(Some(2)));
        assert_eq!(limited.place(limits), Change::default());
        assert_eq!(limited.place(Limits::default()).origin_streams, Some(None));
    }
}
