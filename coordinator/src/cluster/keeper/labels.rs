//! Node labels: which images a Node holds, for schedulers and people.

use std::{collections::BTreeSet, time::Instant};

use proto::HostId;
use rollout::presence;
use tracing::{debug, warn};

use super::{Input, Keeper};
use crate::cluster::{
    index::{Change, IMAGE_LABEL, ObjectKey},
    write::{self, WriteError},
};

/// What a label says.
const READY: &str = "ready";
/// Hex digits of the digest in a label's name.
const DIGITS: usize = 12;

impl Keeper {
    /// Brings the labels up to what hosts hold.
    pub(super) fn label_nodes(&mut self) {
        let settled = self.clock.started.elapsed() > presence::MAX_AGE;
        let now = Instant::now();
        self.node_retries
            .keep(|name| self.index.nodes.contains_key(name));
        let mut writes = Vec::new();
        for (name, node) in &self.index.nodes {
            if self.node_writes.contains(name) || !self.node_retries.may(name, now) {
                continue;
            }
            let word = name
                .parse::<HostId>()
                .ok()
                .and_then(|host| self.presence.get(&host));
            // who hasn't spoken since this coordinator started may hold what it held before
            if word.is_none() && !settled {
                continue;
            }
            let wanted: BTreeSet<String> = word
                .filter(|word| word.checked_at.elapsed() <= presence::MAX_AGE)
                .iter()
                .flat_map(|word| word.holdings.keys())
                .map(|digest| {
                    let hex = digest.hex().to_string();
                    format!("{IMAGE_LABEL}{}", &hex[..DIGITS])
                })
                .collect();
            let present: BTreeSet<&String> = node
                .labels
                .keys()
                .filter(|label| label.starts_with(IMAGE_LABEL))
                .collect();
            let added = wanted
                .iter()
                .filter(|label| node.labels.get(*label).map(String::as_str) != Some(READY))
                .map(|label| (label.clone(), Some(READY)));
            let removed = present
                .iter()
                .filter(|label| !wanted.contains(**label))
                .map(|label| ((*label).clone(), None));
            let labels: Vec<_> = added.chain(removed).collect();
            if !labels.is_empty() {
                writes.push((name.clone(), node.uid.clone(), labels));
            }
        }
        for (name, uid, labels) in writes {
            debug!(node = name, ?labels, "Node's image labels change");
            self.node_writes.insert(name.clone());
            let writer = self.writer.clone();
            let work = write::node_labels(writer, name.clone(), uid, labels);
            self.spawn_write(work, move |result| Input::NodeWritten {
                name,
                result: result.map_or(Ok(None), |result| result.map(|node| Some(Box::new(node)))),
            });
        }
    }

    pub(super) fn node_written(
        &mut self,
        name: &str,
        result: Result<Option<Box<k8s_openapi::api::core::v1::Node>>, WriteError>,
    ) {
        self.node_writes.remove(name);
        match result {
            Ok(Some(node)) => {
                self.node_retries.over(&name.to_owned());
                // the watch may be behind the answer: without this the same labels would be written again
                let key = ObjectKey::new("", name);
                if self.index.nodes.contains_key(name) {
                    self.index.apply_node(&node);
                    self.take(Change::Node(key.name));
                }
            }
            Ok(None) => {}
            Err(error) if error.code() == Some(404) => {}
            Err(error) => {
                let error = error.to_string();
                if self
                    .node_retries
                    .failed(name.to_owned(), &error, Instant::now())
                {
                    warn!(
                        node = name,
                        error,
                        "Node's image labels couldn't be written; they are tried again, after growing pauses"
                    );
                }
            }
        }
    }
}
