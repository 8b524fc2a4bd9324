//! Node labels that say which images a Node holds, for schedulers and people.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node;
use proto::HostId;
use tracing::{debug, warn};

use super::{
    hosts::{Hosts, all_had_time, is_fresh},
    writes::Writes,
};
use crate::cluster::{
    clock::Now,
    index::{IMAGE_LABEL, Index, NodeFacts},
    write::WriteError,
};

/// The value of an image label.
const READY: &str = "ready";
/// Hex digits of the digest in a label's name.
const DIGITS: usize = 12;
/// The longest pause before a Node's labels are tried again: a webhook may refuse them for a thousand Nodes at once.
const RETRY: Duration = Duration::from_mins(5);

/// The labels that are being written, by Node.
#[derive(Debug)]
pub(super) struct NodeLabels {
    writes: Writes<String>,
}

/// Labels of one Node that have to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelWrite {
    /// The Node's name.
    pub(super) node: String,
    /// The Node's uid.
    pub(super) uid: String,
    /// Labels with their new values. `None` removes one.
    pub(super) labels: Vec<(String, Option<&'static str>)>,
}

impl NodeLabels {
    pub(super) const fn new() -> Self {
        Self {
            writes: Writes::new(RETRY),
        }
    }

    /// The writes that bring the labels up to what hosts report. Each returned write counts as begun.
    pub(super) fn due(&mut self, now: Now, index: &Index, hosts: &Hosts) -> Vec<LabelWrite> {
        self.writes.keep(|name| index.nodes.contains_key(name));
        let mut due = Vec::new();
        for (name, node) in &index.nodes {
            if !self.writes.may_begin(now.instant, name) {
                continue;
            }
            let Some(labels) = changed(now, name, node, hosts) else {
                continue;
            };
            debug!(node = name, ?labels, "Node's image labels change");
            self.writes.begin(now.instant, name);
            due.push(LabelWrite {
                node: name.clone(),
                uid: node.uid.clone(),
                labels,
            });
        }
        due
    }

    /// A write ended. The result has the Node as it is now, or `None` where this coordinator didn't lead any more.
    /// Returns the Node that was written.
    pub(super) fn written(
        &mut self,
        now: Instant,
        node: &String,
        result: Result<Option<Box<Node>>, WriteError>,
    ) -> Option<Box<Node>> {
        match result {
            Ok(Some(written)) => {
                self.writes.done(node);
                return Some(written);
            }
            Ok(None) => self.writes.ended(node),
            Err(error) if error.code() == Some(404) => self.writes.ended(node),
            Err(error) => {
                let error = error.to_string();
                if self.writes.failed(now, node, &error) {
                    warn!(
                        node,
                        error,
                        "Node's image labels couldn't be written; they are tried again, after growing pauses"
                    );
                }
            }
        }
        None
    }
}

/// The labels of a Node that have to change. `None` where nothing has to.
fn changed(
    now: Now,
    name: &str,
    node: &NodeFacts,
    hosts: &Hosts,
) -> Option<Vec<(String, Option<&'static str>)>> {
    let host: Option<HostId> = name.parse().ok();
    let word = host.and_then(|host| hosts.word(&host));
    // a host that hasn't reported since this coordinator started may still hold its images
    if word.is_none() && !all_had_time(now.up) {
        return None;
    }
    let wanted: BTreeSet<String> = word
        .filter(|word| is_fresh(now, word))
        .iter()
        .flat_map(|word| word.holdings.keys())
        .map(|digest| {
            let hex = digest.hex().to_string();
            format!("{IMAGE_LABEL}{}", &hex[..DIGITS])
        })
        .collect();
    let present = node.labels.keys();
    let present = present.filter(|label| label.starts_with(IMAGE_LABEL));
    let removed = present
        .filter(|label| !wanted.contains(*label))
        .map(|label| (label.clone(), None));
    let added = wanted
        .iter()
        .filter(|label| node.labels.get(*label).map(String::as_str) != Some(READY))
        .map(|label| (label.clone(), Some(READY)));
    let labels: Vec<_> = added.chain(removed).collect();
    (!labels.is_empty()).then_some(labels)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proto::Digest;
    use rollout::presence::MAX_AGE;

    use super::*;
    use crate::driver::HostPresence;

    const OLD: &str = "parbake.dev/image-000000000000";

    fn index(labels: &[&str]) -> Index {
        let labels: BTreeMap<String, String> = labels
            .iter()
            .map(|label| ((*label).to_owned(), READY.to_owned()))
            .collect();
        let node =
            serde_json::json!({ "metadata": { "name": "mac-0", "uid": "n", "labels": labels } });
        let mut index = Index::default();
        index.apply_node(&serde_json::from_value(node).unwrap());
        index
    }

    fn hosts(now: Now, image: &[u8]) -> (Hosts, String) {
        let digest = Digest::of(image);
        let word = HostPresence {
            holdings: Arc::new([(digest, BTreeSet::new())].into()),
            checked_at: now.instant,
        };
        let mut hosts = Hosts::default();
        hosts.hear(now, Arc::new([("mac-0".parse().unwrap(), word)].into()));
        let hex = digest.hex().to_string();
        (hosts, format!("{IMAGE_LABEL}{}", &hex[..DIGITS]))
    }

    #[test]
    fn a_node_says_what_its_host_holds_and_nothing_that_it_held_before() {
        let now = Now::start();
        let ((hosts, label), mut labels) = (hosts(now, b"image"), NodeLabels::new());
        let due = labels.due(now, &index(&[OLD]), &hosts);
        let expected = vec![(label.clone(), Some(READY)), (OLD.to_owned(), None)];
        assert_eq!((due.len(), &due[0].labels), (1, &expected));
        // the write is under way
        assert_eq!(labels.due(now, &index(&[OLD]), &hosts), []);
        labels.written(now.instant, &"mac-0".to_owned(), Ok(None));
        assert_eq!(labels.due(now, &index(&[&label]), &hosts), []);
    }

    #[test]
    fn a_word_that_is_too_old_says_nothing_and_silence_says_so_after_the_same_time() {
        let now = Now::start();
        let (hosts, label) = hosts(now, b"image");
        let due =
            |now: Now, hosts: &Hosts| NodeLabels::new().due(now, &index(&[&label]), hosts).len();
        let (last, late) = (
            now.after(MAX_AGE),
            now.after(MAX_AGE + Duration::from_millis(1)),
        );
        assert_eq!((due(last, &hosts), due(late, &hosts)), (0, 1));
        let silent = Hosts::default();
        assert_eq!((due(last, &silent), due(late, &silent)), (0, 1));
    }

    #[test]
    fn labels_that_were_refused_wait_and_those_of_a_node_that_is_gone_do_not() {
        let now = Now::start();
        let ((hosts, _), mut labels) = (hosts(now, b"image"), NodeLabels::new());
        let name = "mac-0".to_owned();
        let refuse = |labels: &mut NodeLabels, error| {
            assert_eq!(labels.due(now, &index(&[]), &hosts).len(), 1);
            labels.written(now.instant, &name, Err(error));
            labels.due(now, &index(&[]), &hosts).len()
        };
        let gone = kube::core::Status::failure("gone", "NotFound").with_code(404);
        let gone = WriteError::Kube(kube::Error::Api(Box::new(gone)));
        assert_eq!(refuse(&mut labels, gone), 1);
        labels.written(now.instant, &name, Ok(None));
        assert_eq!(refuse(&mut labels, WriteError::Timeout), 0);
        let later = now.after(Duration::from_secs(1));
        assert_eq!(labels.due(later, &index(&[]), &hosts).len(), 1);
    }
}
