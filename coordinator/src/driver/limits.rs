//! What may move: the limits that operators set, and those of the cluster's objects.

use super::ask::Limits;
use crate::view::BandwidthRequest;

/// The stricter of two limits, of which 0 is none.
pub(crate) const fn stricter(one: u64, other: u64) -> u64 {
    match (one, other) {
        (0, limit) | (limit, 0) => limit,
        (one, other) if one < other => one,
        (_, other) => other,
    }
}

/// What operators and the cluster limit.
#[derive(Debug)]
pub(super) struct Limited {
    /// `None` when operators never set one.
    asked: Option<BandwidthRequest>,
    cluster: Limits,
}

/// What a change of the cluster's limits changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// So many contents may be leased at one time from now on; `None` within: as the settings say.
    pub(super) origin_streams: Option<Option<usize>>,
    /// What hosts may move.
    pub(super) bandwidth: bool,
}

impl Limited {
    /// As operators had set it before this start.
    pub(super) fn new(asked: Option<BandwidthRequest>) -> Self {
        Self {
            asked,
            cluster: Limits::default(),
        }
    }

    /// Operators set this.
    pub(super) const fn ask(&mut self, limits: BandwidthRequest) {
        self.asked = Some(limits);
    }

    /// The cluster limits what moves from now on.
    pub(super) fn place(&mut self, limits: Limits) -> Change {
        let before = std::mem::replace(&mut self.cluster, limits);
        let streams = before.origin_streams != limits.origin_streams;
        Change {
            origin_streams: streams.then_some(limits.origin_streams),
            bandwidth: before.bandwidth != limits.bandwidth,
        }
    }

    /// What every host may move: the stricter of what operators and the cluster say. `None` when neither says anything.
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
        // taken back, it is said still: hosts have to hear of it
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
