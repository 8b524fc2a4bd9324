//! The gate, and what it is told about a made-up index.

use std::time::Duration;

use proto::Digest;
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{
        index::{Kind, Scope, made_up::prepull},
        keeper::resolving::Resolved,
    },
    wants::tests::want,
};

/// Pods of image `r/i:1` on `mac-0`, under ImagePrePulls of image `r/i:2`.
struct Stand {
    index: Index,
    images: Resolving,
    owners: Owners,
    gating: Gating,
    now: Now,
}

impl Stand {
    /// A gate that knows the whole cluster.
    fn new(mode: &str) -> Self {
        let mut this = Self {
            index: Index::default(),
            images: Resolving::default(),
            owners: Owners::default(),
            gating: Gating::default(),
            now: Now::start(),
        };
        let node = json!({
            "metadata": { "name": "mac-0", "uid": "n", "labels": { "a": "b" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        this.index
            .apply_node(&serde_json::from_value(node).unwrap());
        this.gating.tell_node(this.now, &this.index, "mac-0");
        this.prepull("pool", &json!({ "mode": mode }));
        this.gating.tell(this.now, gate::Event::Synced(true));
        this
    }

    fn show(&mut self, kind: Kind, object: Value) {
        let scope = Scope {
            kind,
            namespace: None,
        };
        let object = serde_json::from_value(object).unwrap();
        let now = self.now.instant;
        self.index.apply(&scope, object, now).unwrap();
    }

    fn prepull(&mut self, name: &str, gate: &Value) -> Told {
        let mut whole = json!({ "podSelector": { "matchLabels": { "app": "x" } }, "replicas": 2 });
        for (field, value) in gate.as_object().unwrap() {
            whole[field] = value.clone();
        }
        let more = json!({ "spec": { "gate": whole } });
        self.show(Kind::PrePulls, prepull(name, "r/i:2", &more));
        self.images.look(self.now, &self.index);
        self.tell()
    }

    fn tell(&mut self) -> Told {
        let mut told = Told::default();
        self.gating.tell_prepulls(
            self.now,
            &self.index,
            &self.images,
            &mut self.owners,
            &mut told,
        );
        told
    }

    fn pod(&mut self, name: &str, more: &Value) -> Told {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "ns",
                "uid": name,
                "resourceVersion": "1",
                "labels": { "app": "x" },
            },
            "spec": { "nodeName": "mac-0", "containers": [{ "name": "r", "image": "r/i:1" }] },
            "status": { "phase": "Running" },
        });
        for (field, value) in more.as_object().unwrap() {
            object["metadata"][field] = value.clone();
        }
        self.show(Kind::Pods, object);
        self.told(name)
    }

    fn told(&mut self, name: &str) -> Told {
        let (key, mut told) = (ObjectKey::new("ns", name), Told::default());
        self.gating
            .tell_pod(self.now, &self.index, &key, &mut self.owners, &mut told);
        told
    }

    /// Resolves the image, and reports that the host holds it.
    fn hold(&mut self) {
        let want = want("image", 1, 1 << 20);
        let digest: Digest = want.digest();
        let resolved = Resolved {
            key: ObjectKey::new("ns", "pool"),
            reference: "r/i:2".to_owned(),
            result: Ok(want),
        };
        self.images.answered(self.now.instant, resolved);
        self.tell();
        let holdings = [(digest, ["r/i:2".to_owned()].into())].into();
        let host = "mac-0".parse().unwrap();
        let event = gate::Event::Holds(host, holdings, Duration::ZERO);
        self.gating.tell(self.now, event);
    }

    /// How the pool is.
    fn status(&self) -> gate::PoolStatus {
        self.gating.status(&ObjectKey::new("ns", "pool")).unwrap()
    }

    fn steps(&mut self) -> Vec<Step> {
        std::iter::from_fn(|| self.gating.poll(&self.index)).collect()
    }

    fn change(&self, pod: &str, uid: &str, label: &str) -> Change {
        Change {
            pod: ObjectKey::new("ns", pod),
            uid: uid.to_owned(),
            adds: [label.to_owned()].into(),
            dry_run: false,
        }
    }

    fn admit(&mut self, synced: bool, change: &Change) -> Result<Option<ObjectKey>, Refusal> {
        self.gating.admit(self.now, &self.index, synced, change)
    }
}

#[test]
fn a_decision_names_the_pod_as_it_was_seen_and_the_label_of_its_gate() {
    let mut stand = Stand::new("Own");
    stand.prepull("pool", &json!({ "mode": "Own", "drainLabel": "leave" }));
    stand.pod("a", &json!({ "resourceVersion": "7" }));
    stand.hold();
    let steps = stand.steps();
    let order = steps.iter().find_map(|step| match step {
        Step::Write(order) => Some(order),
        _ => None,
    });
    let order = order.unwrap_or_else(|| panic!("{steps:?}"));
    assert_eq!(order.write, PodWrite::Label("leave".into()));
    assert_eq!(order.target.resource_version, "7");
}

#[test]
fn a_pod_that_went_before_its_write_is_answered_as_gone() {
    let mut stand = Stand::new("Own");
    stand.pod("a", &json!({}));
    stand.hold();
    let key = ObjectKey::new("ns", "a");
    stand.index.remove(Kind::Pods, &key, None);
    let steps = stand.steps();
    assert!(
        steps
            .iter()
            .any(|step| matches!(step, Step::Gone(id) if id.0 == "a")),
        "{steps:?}"
    );
    stand.told("a");
    assert!(stand.gating.knows_no_pod());
}

#[test]
fn a_pod_that_is_made_anew_under_its_name_is_another() {
    let mut stand = Stand::new("Own");
    stand.pod("a", &json!({}));
    stand.pod("a", &json!({ "uid": "b" }));
    assert_eq!(stand.gating.key(&gate::PodId("a".into())), None);
    let key = ObjectKey::new("ns", "a");
    assert_eq!(stand.gating.key(&gate::PodId("b".into())), Some(&key));
    assert_eq!(stand.status().alive, 1);
}

#[test]
fn the_older_of_two_gates_has_the_say_and_the_other_is_overlapped() {
    let mut stand = Stand::new("Own");
    let first = ObjectKey::new("ns", "another");
    // without a time of creation, the name decides
    stand.prepull("another", &json!({ "mode": "Own" }));
    stand.pod("a", &json!({}));
    let pod = ObjectKey::new("ns", "a");
    assert_eq!(stand.gating.gate_of(&stand.index, &pod).unwrap().key, first);
    let overlapped = |stand: &Stand, name: &str| {
        let key = ObjectKey::new("ns", name);
        stand.gating.is_overlapped(&stand.index, &key)
    };
    assert!(overlapped(&stand, "pool") && !overlapped(&stand, "another"));
    stand.index.remove(Kind::PrePulls, &first, None);
    assert_eq!(stand.tell().gone, [first]);
    assert!(!overlapped(&stand, "pool"));
    assert_eq!(stand.status().alive, 1);
}

#[test]
fn an_owner_that_nobody_has_asked_is_told_with_its_pod() {
    let mut stand = Stand::new("Own");
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": "s" }]);
    let told = stand.pod("a", &json!({ "ownerReferences": owner }));
    assert!(told.owner_came && !told.unread);
    assert!(stand.tell().unread, "its template is to be read");
    let told = stand.pod("b", &json!({ "ownerReferences": owner }));
    assert!(!told.owner_came);
}

#[test]
fn a_label_is_admitted_where_the_gate_guards_it_and_the_image_is_there() {
    let mut stand = Stand::new("Guard");
    stand.pod("a", &json!({}));
    let asked = stand.change("a", "a", DRAIN_LABEL);
    let refusal = stand.admit(true, &asked).unwrap_err();
    assert_eq!(refusal.reason, gate::Reason::ImageUnresolved);
    assert_eq!(refusal.node.as_deref(), Some("mac-0"));
    assert_eq!(refusal.prepull, Some(ObjectKey::new("ns", "pool")));
    stand.hold();
    let dry = Change {
        dry_run: true,
        ..asked.clone()
    };
    // a dry run takes no place
    let pool = ObjectKey::new("ns", "pool");
    assert_eq!(stand.admit(true, &dry), Ok(Some(pool.clone())));
    assert_eq!(stand.status().reserved, 0);
    assert_eq!(stand.admit(true, &asked), Ok(Some(pool)));
    assert_eq!(stand.status().reserved, 1);
}

#[test]
fn what_is_not_known_is_not_admitted_and_what_is_not_guarded_is() {
    let mut stand = Stand::new("Guard");
    stand.pod("a", &json!({}));
    stand.pod("foreign", &json!({ "labels": { "app": "y" } }));
    let ours = stand.change("a", "a", DRAIN_LABEL);
    let unknown = |refused: Result<_, Refusal>| {
        let refusal = refused.unwrap_err();
        assert_eq!(
            (refusal.reason, refusal.prepull),
            (gate::Reason::NotSynced, None)
        );
    };
    unknown(stand.admit(false, &ours));
    // the watch lags
    let unseen = stand.change("b", "b", DRAIN_LABEL);
    unknown(stand.admit(true, &unseen));
    let another = stand.change("a", "another", DRAIN_LABEL);
    unknown(stand.admit(true, &another));
    for (pod, label) in [("foreign", DRAIN_LABEL), ("a", "other"), ("b", "other")] {
        let change = stand.change(pod, pod, label);
        assert_eq!(stand.admit(true, &change), Ok(None), "{pod} {label}");
    }
    let elsewhere = Change {
        pod: ObjectKey::new("elsewhere", "b"),
        ..unseen
    };
    assert_eq!(stand.admit(true, &elsewhere), Ok(None));
}

#[test]
fn a_pod_leaves_when_it_is_stale_and_labelled() {
    let mut stand = Stand::new("Own");
    let labelled = json!({ "app": "x", DRAIN_LABEL: "true" });
    stand.pod("stays", &json!({}));
    stand.pod("leaves", &json!({ "labels": labelled }));
    stand.pod("foreign", &json!({ "labels": { DRAIN_LABEL: "true" } }));
    let drain = |synced, name| {
        let key = ObjectKey::new("ns", name);
        stand.gating.drain(&stand.index, synced, &key)
    };
    assert_eq!(drain(true, "stays"), Drain::Stay);
    assert_eq!(drain(true, "leaves"), Drain::Leave);
    assert_eq!(drain(true, "foreign"), Drain::Stay);
    assert_eq!(drain(true, "nobody"), Drain::NoSuchPod);
    assert_eq!(drain(false, "leaves"), Drain::Unknown);
}

#[test]
fn a_deadline_counts_from_when_the_image_was_first_asked_for() {
    let stand = Stand::new("Own");
    let mut prepull = stand.index.prepulls[&ObjectKey::new("ns", "pool")].clone();
    prepull.spec.deadline = Some("1h".parse().unwrap());
    let image = stand.images.get(&ObjectKey::new("ns", "pool")).unwrap();
    let asked = stand.now;
    assert_eq!(
        image.deadline(&prepull),
        Some(asked.time + Duration::from_hours(1))
    );
}
