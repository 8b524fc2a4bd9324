//! The checker's books on one pool: Pods that the gate took, and those that came in their place. Apart from the gate's
//! own.

use std::{collections::BTreeSet, path::PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::pod::{POOL_LABEL, image, is_alive, is_labelled, label, phase};

/// What the checker knows of a pool, told before the pool is changed.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What its Pods shall run.
    pub image: String,
    /// The most that may be in flight.
    pub cap: usize,
    /// What has to be on a Node's disk before a Pod there may drain: a path below its tart home. `None`: nothing.
    pub disk: Option<PathBuf>,
}

/// Who left a pool and who came, as the API server orders it.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    /// The most Pods seen at one time: with as many, nobody is awaited.
    most: usize,
    /// Pods that the gate took, and whose successors haven't come.
    owed: usize,
    /// Pods that left by themselves. Their successors come first, for nobody can tell them apart.
    gaps: usize,
    /// Uids of successors of those that the gate took, which haven't run yet.
    pub(super) cold: BTreeSet<String>,
}

impl Books {
    /// This Pod came; so many are alive with it.
    pub(super) fn came(&mut self, pod: &Pod, alive: usize) {
        if self.gaps > 0 {
            self.gaps -= 1;
        } else if self.owed > 0 {
            self.owed -= 1;
            self.cold.extend(pod.metadata.uid.clone());
        }
        self.most = self.most.max(alive);
        if alive >= self.most {
            (self.owed, self.gaps) = (0, 0);
        }
    }

    /// This Pod, as it was last seen alive, isn't any more.
    pub(super) fn left(&mut self, pod: &Pod, rule: &Rule) {
        let stale = image(pod) != rule.image;
        let was_cold = self.cold.remove(&uid(pod));
        if was_cold || (stale && (is_labelled(pod) || phase(pod) == "Pending")) {
            self.owed += 1;
        } else {
            self.gaps += 1;
        }
    }

    /// How many Pods are taken and have no warm one in their place.
    pub(super) fn taken<'a>(
        &self,
        pods: impl Iterator<Item = &'a Pod>,
        pool: &str,
        rule: &Rule,
    ) -> usize {
        let labelled = pods.filter(|pod| {
            let mine = is_alive(pod) && label(pod, POOL_LABEL) == Some(pool);
            mine && is_labelled(pod) && image(pod) != rule.image && !self.cold.contains(&uid(pod))
        });
        labelled.count() + self.owed + self.cold.len()
    }
}

/// A Pod's own name in time.
pub(super) fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}
