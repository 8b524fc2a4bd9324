//! What was predicted of an image's staging when the staging began. It is kept with the want, so that prediction and
//! fact stand side by side also after a restart of the coordinator.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::view::{HostProgress, PredictionView, StagingBytes};

/// A prediction, in the form in which it is kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Predicted {
    /// The whole fleet.
    #[serde(flatten)]
    pub(crate) view: PredictionView,
    /// Each host. Replicas share the prediction without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) hosts: BTreeMap<String, PredictedHost>,
    /// What all hosts together had moved already, where the hosts aren't said.
    #[serde(default, skip_serializing_if = "is_nothing")]
    before: StagingBytes,
}

fn is_nothing(bytes: &StagingBytes) -> bool {
    *bytes == StagingBytes::default()
}

/// A prediction for one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PredictedHost {
    pub(crate) bytes: StagingBytes,
    /// What the host's staging of the image had moved already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<Before>,
}

/// What a host's staging had moved at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    /// Names the staging ([`HostProgress::began_at`]).
    began_at: Option<u64>,
    bytes: StagingBytes,
}

impl PredictedHost {
    /// A prediction for a host, by what is known of the image there now.
    pub(crate) fn new(bytes: StagingBytes, now: Option<&HostProgress>) -> Self {
        let before = now.map(|now| Before {
            began_at: now.began_at,
            bytes: moved(now),
        });
        Self {
            bytes,
            before: before.filter(|before| before.bytes != StagingBytes::default()),
        }
    }
}

impl Predicted {
    /// A prediction for these hosts.
    pub(crate) const fn new(view: PredictionView, hosts: BTreeMap<String, PredictedHost>) -> Self {
        Self {
            view,
            hosts,
            before: StagingBytes {
                origin: 0,
                peers: 0,
                local: 0,
                written: 0,
            },
        }
    }

    /// The same without the hosts.
    pub(crate) fn summary(&self) -> Self {
        let before = self.hosts.values().filter_map(|host| host.before);
        Self {
            view: self.view.clone(),
            hosts: BTreeMap::new(),
            before: before.fold(self.before, |sum, before| sum.and(before.bytes)),
        }
    }

    /// What the host moved since the prediction. `None` for a host that the prediction knows nothing of: its bytes
    /// would stand beside a figure without it.
    pub(crate) fn measured(&self, host: &HostProgress) -> Option<StagingBytes> {
        let now = moved(host);
        if self.hosts.is_empty() {
            return Some(now);
        }
        let before = self.hosts.get(&host.host)?.before;
        let same = before.filter(|before| before.began_at == host.began_at);
        // another staging began at zero
        Some(same.map_or(now, |before| now.less(before.bytes)))
    }

    /// What all hosts moved since the prediction, by what [`measured`](Self::measured) says of each.
    pub(crate) fn measured_by_all(&self, sum: StagingBytes) -> StagingBytes {
        sum.less(self.before)
    }
}

/// What the host's staging of an image moved in all.
const fn moved(host: &HostProgress) -> StagingBytes {
    StagingBytes {
        origin: host.bytes.origin,
        peers: host.bytes.peers,
        local: host.bytes.local,
        written: host.written_bytes,
    }
}

#[cfg(test)]
mod tests {
    use proto::Moment;

    use super::*;
    use crate::progress::Progress;

    fn host(began_at: Option<u64>, peers: u64, written: u64) -> HostProgress {
        let mut host = Progress::new().view(Moment::START, "mini-1", true);
        host.began_at = began_at;
        host.bytes.peers = peers;
        host.written_bytes = written;
        host
    }

    #[test]
    fn what_moved_before_the_prediction_doesnt_count_unless_the_staging_began_anew() {
        let before = host(Some(7), 100, 300);
        let mut predicted = Predicted::default();
        let of = PredictedHost::new(StagingBytes::default(), Some(&before));
        predicted.hosts.insert("mini-1".into(), of);
        let measured = |host: &HostProgress| {
            let bytes = predicted.measured(host).unwrap();
            (bytes.peers, bytes.written)
        };
        assert_eq!(measured(&before), (0, 0));
        assert_eq!(measured(&host(Some(7), 105, 310)), (5, 10));
        // the host's counts began at zero because its agent was started again
        assert_eq!(measured(&host(Some(7), 0, 0)), (0, 0));
        assert_eq!(measured(&host(Some(9), 40, 50)), (40, 50));
        // a host that came later has no part in the prediction
        let later = HostProgress {
            host: "mini-2".into(),
            ..host(Some(7), 105, 310)
        };
        assert_eq!(predicted.measured(&later), None);
    }

    #[test]
    fn a_replica_that_takes_over_leaves_out_what_had_moved_before_the_prediction() {
        let mut predicted = Predicted::default();
        for name in ["mini-1", "mini-2"] {
            let before = HostProgress {
                host: name.into(),
                ..host(Some(7), 100, 300)
            };
            let of = PredictedHost::new(StagingBytes::default(), Some(&before));
            predicted.hosts.insert(name.into(), of);
        }
        let text = serde_json::to_string(&predicted.summary()).unwrap();
        let shared: Predicted = serde_json::from_str(&text).unwrap();
        assert_eq!(shared.summary(), shared);
        let now = [host(Some(7), 105, 310), host(Some(7), 120, 300)];
        let each = now.iter().map(|now| shared.measured(now).unwrap());
        let sum = each.fold(StagingBytes::default(), StagingBytes::and);
        let measured = shared.measured_by_all(sum);
        assert_eq!((measured.peers, measured.written), (25, 10));
    }

    #[test]
    fn a_prediction_is_kept_as_it_was_made() {
        let bytes = StagingBytes {
            origin: 1,
            ..StagingBytes::default()
        };
        let predicted = Predicted::new(
            PredictionView {
                at_ms: 5,
                bytes,
                milliseconds: Some(7),
                bound_by: Some("link".into()),
                unknown: vec!["disk".into()],
            },
            [("h".to_owned(), PredictedHost::new(bytes, None))].into(),
        );
        let text = serde_json::to_string(&predicted).unwrap();
        let read: Predicted = serde_json::from_str(&text).unwrap();
        assert_eq!(read, predicted);
    }
}
