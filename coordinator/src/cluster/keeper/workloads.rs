//! Which workloads are watched, because ImagePrePulls follow their images. Each has a watch of its own, so that a role
//! that grants nothing on workloads costs only the objects that follow one.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cluster::{
    index::{Change, Index, Workload, WorkloadKey},
    watch::Seen,
};

/// The most workloads that are followed at one time.
const MAX_WORKLOADS: usize = 256;

/// The watches of workloads.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    followed: BTreeMap<WorkloadKey, Followed>,
    /// Watches that are to begin.
    begin: Vec<(WorkloadKey, CancellationToken)>,
}

#[derive(Debug)]
struct Followed {
    stop: CancellationToken,
    /// Whether the running list has shown the workload.
    shown: bool,
    /// Whether the watch failed last.
    blind: bool,
}

impl Workloads {
    /// Begins and ends watches, so that exactly those workloads are watched that ImagePrePulls follow. Returns the
    /// ImagePrePulls that changed.
    pub(super) fn look(&mut self, index: &mut Index) -> Vec<Change> {
        let wanted = index.followed();
        let mut changes = Vec::new();
        let gone = self.followed.extract_if(.., |key, _| !wanted.contains(key));
        for (key, followed) in gone {
            followed.stop.cancel();
            changes.extend(index.apply_workload(&key, None));
        }
        for key in wanted {
            if self.followed.contains_key(&key) {
                continue;
            }
            if self.followed.len() >= MAX_WORKLOADS {
                let error = format!("{MAX_WORKLOADS} workloads are followed already");
                changes.extend(index.apply_workload(&key, Some(Workload::Unseen(error))));
                continue;
            }
            // it may have been one too many before
            changes.extend(index.apply_workload(&key, None));
            let stop = CancellationToken::new();
            self.begin.push((key.clone(), stop.clone()));
            let followed = Followed {
                stop,
                shown: false,
                blind: false,
            };
            self.followed.insert(key, followed);
        }
        changes
    }

    /// The watches that are to begin now, each with the token that ends it. Each is returned once.
    pub(super) fn take_begun(&mut self) -> Vec<(WorkloadKey, CancellationToken)> {
        std::mem::take(&mut self.begin)
    }

    /// Takes in what a watch sees. Returns the ImagePrePulls that changed.
    pub(super) fn see(&mut self, index: &mut Index, key: &WorkloadKey, seen: Seen) -> Vec<Change> {
        let Some(followed) = self.followed.get_mut(key) else {
            return Vec::new();
        };
        let name = || format!("{} {}", key.kind, key.key);
        match seen {
            Seen::Listing => {
                followed.shown = false;
                Vec::new()
            }
            Seen::Applied(object) => {
                followed.shown = true;
                index.apply_workload(key, Some(Workload::of(&object)))
            }
            Seen::Gone(_) => index.apply_workload(key, Some(Workload::Absent)),
            Seen::Listed => {
                if std::mem::take(&mut followed.blind) {
                    info!(workload = name(), "watch sees again");
                }
                match followed.shown {
                    true => Vec::new(),
                    false => index.apply_workload(key, Some(Workload::Absent)),
                }
            }
            Seen::Blind { error, .. } => {
                if !std::mem::replace(&mut followed.blind, true) {
                    warn!(
                        workload = name(),
                        error, "watch sees nothing; it is tried again"
                    );
                }
                // what was seen before counts until something else is seen
                match index.is_workload_known(key) {
                    true => Vec::new(),
                    false => index.apply_workload(key, Some(Workload::Unseen(error))),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::{
        crd::WorkloadKind,
        index::{Kind, ObjectKey, PrePullFacts, Source, made_up::prepull},
    };

    /// An ImagePrePull without an image of its own, and the workload that it follows.
    fn follow(index: &mut Index, from: &Value, more: &Value) {
        let mut object = prepull("a", "", more);
        object["spec"]["imageFrom"] = from.clone();
        object["spec"].as_object_mut().unwrap().remove("image");
        index.show(Kind::PrePulls, object);
    }

    fn from() -> Value {
        json!({ "kind": "Deployment", "name": "runners" })
    }

    fn key() -> WorkloadKey {
        WorkloadKey {
            kind: WorkloadKind::Deployment,
            key: ObjectKey::new("ns", "runners"),
        }
    }

    fn facts(index: &Index) -> &PrePullFacts {
        &index.prepulls[&ObjectKey::new("ns", "a")]
    }

    fn deployment(images: &[(&str, &str)]) -> Seen {
        let containers: Vec<Value> = images
            .iter()
            .map(|(name, image)| json!({ "name": name, "image": image }))
            .collect();
        let object = json!({
            "metadata": { "name": "runners", "namespace": "ns" },
            "spec": { "paused": true, "template": { "spec": { "containers": containers } } },
        });
        Seen::Applied(Box::new(serde_json::from_value(object).unwrap()))
    }

    fn why(index: &Index) -> String {
        match &facts(index).source {
            Source::Unknown(why) => why.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_image_is_the_templates_from_the_first_list_on() {
        let (mut index, mut workloads) = (Index::default(), Workloads::default());
        follow(&mut index, &from(), &json!({}));
        assert!(workloads.look(&mut index).is_empty());
        let [(begun, _)] = &workloads.take_begun()[..] else {
            panic!("one watch begins");
        };
        assert_eq!(*begun, key());
        assert_eq!(facts(&index).source, Source::Awaited);
        workloads.see(&mut index, &key(), Seen::Listing);
        let changed = workloads.see(&mut index, &key(), deployment(&[("runner", "r/i:1")]));
        assert_eq!(changed.len(), 1);
        assert!(workloads.see(&mut index, &key(), Seen::Listed).is_empty());
        assert_eq!(
            (facts(&index).spec.image.as_str(), &facts(&index).source),
            ("r/i:1", &Source::Known)
        );
        // the same again is no news, and the object's own changes keep the image
        let same = workloads.see(&mut index, &key(), deployment(&[("runner", "r/i:1")]));
        assert!(same.is_empty());
        follow(&mut index, &from(), &json!({ "spec": { "paused": true } }));
        assert_eq!(facts(&index).spec.image, "r/i:1");
        assert_eq!(
            workloads
                .see(&mut index, &key(), deployment(&[("runner", "r/i:2")]))
                .len(),
            1
        );
        assert_eq!(facts(&index).spec.image, "r/i:2");
        assert!(workloads.look(&mut index).is_empty() && workloads.take_begun().is_empty());
    }

    #[test]
    fn what_is_amiss_is_named_and_the_last_image_counts() {
        let (mut index, mut workloads) = (Index::default(), Workloads::default());
        follow(&mut index, &from(), &json!({}));
        workloads.look(&mut index);
        let denied = |text: &str| Seen::Blind {
            error: text.to_owned(),
            absent: false,
        };
        assert_eq!(workloads.see(&mut index, &key(), denied("403")).len(), 1);
        assert!(why(&index).contains("Deployment runners can't be watched (403)"));
        workloads.see(&mut index, &key(), Seen::Listing);
        workloads.see(&mut index, &key(), Seen::Listed);
        assert!(why(&index).contains("there is no Deployment runners"));
        assert_eq!(facts(&index).spec.image, "");
        workloads.see(&mut index, &key(), deployment(&[]));
        assert!(why(&index).contains("names no image"));
        workloads.see(
            &mut index,
            &key(),
            deployment(&[("side", "r/s:1"), ("runner", "r/i:1")]),
        );
        assert_eq!(facts(&index).spec.image, "r/s:1");
        // an outage changes nothing
        assert!(workloads.see(&mut index, &key(), denied("away")).is_empty());
        let gone = Seen::Gone(Box::new(
            serde_json::from_value(json!({ "metadata": {} })).unwrap(),
        ));
        workloads.see(&mut index, &key(), gone);
        assert!(why(&index).contains("there is no Deployment runners"));
        assert_eq!(facts(&index).spec.image, "r/s:1");
    }

    #[test]
    fn a_container_is_found_by_its_name_and_a_gate_wants_it_first() {
        let (mut index, mut workloads) = (Index::default(), Workloads::default());
        let mut from = from();
        from["container"] = "runner".into();
        follow(&mut index, &from, &json!({}));
        workloads.look(&mut index);
        let both = || deployment(&[("side", "r/s:1"), ("runner", "r/i:1")]);
        workloads.see(&mut index, &key(), both());
        assert_eq!(facts(&index).spec.image, "r/i:1");
        let selector = json!({ "matchLabels": { "app": "x" } });
        let gate = json!({ "mode": "Own", "replicas": 1, "podSelector": selector });
        follow(&mut index, &from, &json!({ "spec": { "gate": gate } }));
        assert!(why(&index).contains("put it first"));
        from["container"] = "none".into();
        follow(&mut index, &from, &json!({}));
        assert!(why(&index).contains("has no container none"));
    }

    #[test]
    fn an_object_with_both_or_neither_says_so() {
        let mut index = Index::default();
        let more = json!({ "spec": { "imageFrom": from() } });
        index.show(Kind::PrePulls, prepull("a", "r/i:1", &more));
        assert!(why(&index).contains("both"));
        let mut neither = prepull("a", "", &json!({}));
        neither["spec"].as_object_mut().unwrap().remove("image");
        index.show(Kind::PrePulls, neither);
        assert!(why(&index).contains("neither"));
        index.show(Kind::PrePulls, prepull("a", "r/i:2", &json!({})));
        assert_eq!(
            (facts(&index).spec.image.as_str(), &facts(&index).source),
            ("r/i:2", &Source::Known)
        );
    }

    #[test]
    fn a_new_coordinator_goes_on_with_the_image_in_the_status() {
        let mut index = Index::default();
        let status = json!({ "image": "r/i:1", "observedGeneration": 3 });
        let more = json!({ "metadata": { "generation": 3 }, "status": status });
        follow(&mut index, &from(), &more);
        assert_eq!(
            (facts(&index).spec.image.as_str(), &facts(&index).source),
            ("r/i:1", &Source::Awaited)
        );
        assert!(facts(&index).standing_status().is_some());
        let mut workloads = Workloads::default();
        workloads.look(&mut index);
        workloads.see(&mut index, &key(), deployment(&[("runner", "r/i:2")]));
        assert!(
            facts(&index).standing_status().is_none(),
            "it is about another image"
        );
    }

    #[test]
    fn a_workload_that_nobody_follows_any_more_is_watched_no_more() {
        let (mut index, mut workloads) = (Index::default(), Workloads::default());
        follow(&mut index, &from(), &json!({}));
        workloads.look(&mut index);
        let stop = workloads.take_begun().remove(0).1;
        workloads.see(&mut index, &key(), deployment(&[("runner", "r/i:1")]));
        index.show(Kind::PrePulls, prepull("a", "r/i:2", &json!({})));
        workloads.look(&mut index);
        assert!(stop.is_cancelled() && !index.is_workload_known(&key()));
        // its last words come late
        assert!(
            workloads
                .see(&mut index, &key(), deployment(&[("runner", "r/i:3")]))
                .is_empty()
        );
        assert!(!index.is_workload_known(&key()));
    }

    #[test]
    fn workloads_beyond_the_most_are_named_and_come_when_there_is_room() {
        let (mut index, mut workloads) = (Index::default(), Workloads::default());
        for at in 0..=MAX_WORKLOADS {
            let from = json!({ "kind": "StatefulSet", "name": format!("w-{at:03}") });
            let mut object = prepull(&format!("p-{at:03}"), "", &json!({}));
            object["spec"]["imageFrom"] = from;
            object["spec"].as_object_mut().unwrap().remove("image");
            index.show(Kind::PrePulls, object);
        }
        assert_eq!(workloads.look(&mut index).len(), 1);
        assert_eq!(workloads.take_begun().len(), MAX_WORKLOADS);
        assert!(workloads.look(&mut index).is_empty());
        index.remove(Kind::PrePulls, &ObjectKey::new("ns", "p-000"), None);
        workloads.look(&mut index);
        assert_eq!(workloads.take_begun().len(), 1);
    }
}
