//! Statuses of made-up facts.

use std::{collections::BTreeSet, sync::Arc};

use rollout::gate::{self, Gate};
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{
        index::{Index, Kind, ObjectKey, made_up::prepull},
        keeper::{
            conditions::{Unresolved, UnresolvedReason},
            resolving::{Resolved, Resolving},
        },
    },
    driver::{HostPresence, View},
    wants::tests::want,
};

const IMAGE: &str = "r/i:1";

/// One ImagePrePull, its image, and the hosts `mac-0` and `mac-1`, which both are usable.
struct Stand {
    index: Index,
    images: Resolving,
    hosts: Hosts,
    now: Now,
    roll: Option<PoolStatus>,
    lag: String,
    is_owner_unread: bool,
    troubles: Vec<(Trouble, String)>,
}

fn key() -> ObjectKey {
    ObjectKey::new("ns", "a")
}

fn digest() -> Digest {
    want("image", 1, 1 << 20).digest()
}

impl Stand {
    fn new() -> Self {
        let mut this = Self {
            index: Index::default(),
            images: Resolving::default(),
            hosts: Hosts::default(),
            now: Now::start(),
            roll: None,
            lag: String::new(),
            is_owner_unread: false,
            troubles: Vec::new(),
        };
        for name in ["mac-0", "mac-1"] {
            let node = json!({
                "metadata": { "name": name, "uid": name, "labels": { "a": "b" } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            });
            let node = serde_json::from_value(node).unwrap();
            this.index.apply_node(&node);
        }
        this.view(|_| {});
        this.show(&json!({}));
        this
    }

    /// The image is resolved, and no host holds it.
    fn resolved() -> Self {
        let mut this = Self::new();
        this.resolve();
        this
    }

    fn show(&mut self, spec: &Value) {
        let status = self.index.prepulls.get(&key());
        let status = status.map(|facts| facts.status.clone());
        let more = json!({ "metadata": { "generation": 1 }, "spec": spec });
        let mut object = prepull("a", IMAGE, &more);
        object["status"] = json!(status);
        self.index.show(Kind::PrePulls, object);
        self.images.look(self.now, &self.index);
    }

    /// Writes the status, and shows it as the watch would.
    fn write(&mut self) {
        let status = self.stands().status;
        self.index.prepulls.get_mut(&key()).unwrap().status = status;
    }

    fn answer(&mut self, result: Result<crate::wants::Want, Unresolved>) {
        let resolved = Resolved {
            key: key(),
            reference: IMAGE.to_owned(),
            result,
        };
        assert!(self.images.answered(self.now.instant, resolved));
    }

    fn resolve(&mut self) {
        self.answer(Ok(want("image", 1, 1 << 20)));
    }

    fn fail(&mut self) {
        self.answer(Err(Unresolved {
            reason: UnresolvedReason::NotFound,
            message: "no such image".into(),
        }));
    }

    /// Shows a view in which both hosts are members, with this change.
    fn view(&mut self, change: impl FnOnce(&mut View)) {
        let members = ["mac-0", "mac-1"].into_iter();
        let members = members.map(|host| (host.parse().unwrap(), Arc::default()));
        let mut view = View {
            hosts: members.collect(),
            ..View::default()
        };
        change(&mut view);
        self.hosts.show(Arc::new(view));
    }

    /// Shows these hosts of the image in these states.
    fn progress(&mut self, hosts: &[(&str, HostState)]) {
        let hosts = hosts.iter().map(|(host, state)| {
            json!({
                "host": host,
                "state": state,
                "reason": null,
                "message": "",
                "connected": true,
                "total_bytes": 100,
                "held_bytes": 10,
                "bytes": { "origin": 10, "peers": 0, "local": 0 },
                "written_bytes": 30,
                "upload_bytes": 0,
                "bytes_per_second": 1,
                "eta_seconds": 7,
                "presence_age_ms": null,
                "golden": false,
                "failed_seconds": null,
            })
        });
        let image: ImageView = serde_json::from_value(json!({
            "digest": digest().to_string(),
            "references": [IMAGE],
            "state": "staging",
            "reason": null,
            "raw_bytes": 100,
            "registry_bytes": 50,
            "contents": 1,
            "contents_done": 0,
            "prediction": {
                "bytes": { "origin": 50, "peers": 50, "local": 0, "written": 200 },
                "milliseconds": 1_001,
                "bound_by": "link",
            },
            "measured": { "origin": 20, "peers": 1, "local": 0, "written": 60 },
            "hosts_selected": 2,
            "hosts_present": 0,
            "hosts_failed": 0,
            "wanted_at": 5,
            "staged_seconds": null,
            "hosts": hosts.collect::<Vec<_>>(),
            "leases": [],
        }))
        .unwrap();
        self.view(|view| {
            view.images.insert(digest(), Arc::new(image));
        });
    }

    /// Reports that these hosts hold the image.
    fn hold(&mut self, hosts: &[&str]) {
        let holdings: BTreeSet<String> = [IMAGE.to_owned()].into();
        let words = hosts.iter().map(|host| {
            let word = HostPresence {
                holdings: Arc::new([(digest(), holdings.clone())].into()),
                checked_at: self.now.instant,
            };
            (host.parse().unwrap(), word)
        });
        self.hosts.hear(self.now, Arc::new(words.collect()));
    }

    fn stands(&self) -> Stands {
        let prepull = &self.index.prepulls[&key()];
        of(&Facts {
            now: self.now,
            prepull,
            image: self.images.get(&key()).unwrap(),
            nodes: self.index.selected(&prepull.spec),
            hosts: &self.hosts,
            roll: self.roll.clone().map(|status| Roll {
                status,
                lag: self.lag.clone(),
                is_owner_unread: self.is_owner_unread,
            }),
            troubles: self.troubles.clone(),
        })
    }

    /// The status and the reason of a condition.
    fn condition(&self, type_: Type) -> (String, String) {
        let status = self.stands().status;
        let found = type_.of(&status).unwrap();
        (found.status.clone(), found.reason.clone())
    }

    fn is(&self, type_: Type, status: &str, reason: &str) {
        assert_eq!(
            self.condition(type_),
            (status.to_owned(), reason.to_owned())
        );
    }

    /// The state and its reason.
    fn word(&self) -> (String, Option<String>) {
        let status = self.stands().status;
        (status.state.unwrap(), status.reason)
    }
}

/// A roll of this many stale Pods under a cap of 1.
fn pool(stale: u32) -> PoolStatus {
    let id = gate::PrePullId("ns/a".into());
    let prepull = gate::PrePull {
        image: IMAGE.into(),
        digest: None,
        mode: gate::Mode::Own,
        percent: 10,
        replicas: 1,
        template: gate::Template::Unknown,
        hosts: BTreeSet::new(),
        reserved: BTreeSet::new(),
        fleet: None,
        paused: false,
        deadline: None,
        on_deadline: gate::OnDeadline::Hold,
    };
    let mut gate = Gate::new(gate::Config::default());
    gate.handle(
        Now::start().moment(),
        gate::Event::PrePull(id.clone(), prepull),
    );
    let status = gate.status(&id).unwrap();
    PoolStatus { stale, ..status }
}

#[test]
fn an_image_is_resolved_unresolved_or_asked_for_and_staged_only_when_it_is_known() {
    let mut stand = Stand::new();
    stand.is(Type::Resolved, "Unknown", "Asking");
    stand.is(Type::Staged, "False", "Resolving");
    assert_eq!(stand.word(), ("Resolving".into(), None));
    assert_eq!(stand.stands().phase, StagingPhase::Resolving);
    stand.fail();
    stand.is(Type::Resolved, "False", "NotFound");
    stand.is(Type::Staged, "False", "Unresolved");
    stand.is(Type::Degraded, "True", "NotFound");
    assert_eq!(stand.word(), ("Unresolved".into(), Some("NotFound".into())));
    stand.resolve();
    stand.is(Type::Resolved, "True", "Resolved");
    stand.is(Type::Degraded, "False", "AsExpected");
    assert_eq!(stand.word(), ("Staging".into(), None));
}

#[test]
fn it_is_staged_when_every_host_that_counts_holds_it_by_its_own_word() {
    let mut stand = Stand::resolved();
    stand.hold(&["mac-0"]);
    stand.is(Type::Staged, "False", "Staging");
    assert!(!stand.stands().everywhere);
    stand.hold(&["mac-0", "mac-1"]);
    stand.is(Type::Staged, "True", "AllHosts");
    let stands = stand.stands();
    assert!(stands.everywhere && stands.status.staged_at.is_some());
    assert_eq!(stand.word(), ("Staged".into(), Some("AllHosts".into())));
    // a Node that isn't Ready doesn't count, and without any usable Node the image isn't staged
    let node = json!({ "metadata": { "name": "mac-1", "uid": "mac-1", "labels": { "a": "b" } } });
    stand
        .index
        .apply_node(&serde_json::from_value(node).unwrap());
    stand.hold(&["mac-0"]);
    stand.is(Type::Staged, "True", "AllHosts");
    assert_eq!(stand.stands().status.hosts.excluded, 1);
    stand.show(&json!({ "nodeSelector": { "matchLabels": { "a": "c" } } }));
    stand.is(Type::Staged, "False", "NoHosts");
    assert_eq!(stand.word(), ("Waiting".into(), Some("NoHosts".into())));
}

#[test]
fn hosts_that_stage_and_hosts_that_fail_are_counted_with_their_bytes() {
    let mut stand = Stand::resolved();
    stand.progress(&[("mac-0", HostState::Staging), ("mac-1", HostState::Failed)]);
    let status = stand.stands().status;
    assert_eq!((status.hosts.staging, status.hosts.failed), (1, 1));
    assert_eq!((status.bytes.origin, status.eta_seconds), (20, Some(7)));
    assert_eq!(status.failing[0].host, "mac-1");
    stand.is(Type::Staged, "False", "Staging");
    stand.is(Type::Degraded, "True", "HostsFailed");
    // only the failed host is left
    stand.hold(&["mac-0"]);
    stand.is(Type::Staged, "False", "HostsFailed");
    assert_eq!(stand.word(), ("Failed".into(), Some("HostsFailed".into())));
    assert_eq!(stand.stands().phase, StagingPhase::Failed);
}

#[test]
fn a_prediction_stands_beside_the_fact_also_under_another_coordinator() {
    let mut stand = Stand::resolved();
    assert_eq!(stand.stands().status.prediction, None);
    stand.progress(&[("mac-0", HostState::Staging), ("mac-1", HostState::Staging)]);
    let status = stand.stands().status;
    assert_eq!(status.bytes.written, 60);
    let prediction = status.prediction.unwrap();
    assert_eq!((prediction.bytes.peers, prediction.measured.peers), (50, 1));
    assert_eq!(
        (prediction.seconds, prediction.took_seconds),
        (Some(2), None)
    );
    assert_eq!(prediction.bound_by.as_deref(), Some("link"));
    stand.write();
    // the next coordinator predicted nothing
    stand.hosts = Hosts::default();
    stand.view(|_| {});
    assert_eq!(stand.stands().status.prediction, Some(prediction));
}

#[test]
fn what_the_coordinator_before_counted_stands_until_the_hosts_had_time_to_speak() {
    let mut stand = Stand::resolved();
    stand.progress(&[("mac-0", HostState::Present), ("mac-1", HostState::Failed)]);
    stand.hold(&["mac-0"]);
    stand.write();
    // the next coordinator hasn't heard any host
    stand.hosts = Hosts::default();
    stand.view(|_| {});
    let counts = |stand: &Stand| {
        let hosts = stand.stands().status.hosts;
        (hosts.staged, hosts.failed)
    };
    let start = stand.now;
    stand.now = start.after(rollout::presence::MAX_AGE);
    assert_eq!(counts(&stand), (1, 1));
    stand.now = stand.now.after(Duration::from_millis(1));
    assert_eq!(counts(&stand), (0, 0));
    // the counts of bytes never fall
    assert_eq!(stand.stands().status.bytes.origin, 20);
    // for another generation, only facts about the same digest are taken over
    stand.now = start;
    stand.index.prepulls.get_mut(&key()).unwrap().generation = 2;
    assert_eq!(counts(&stand), (0, 0));
    assert_eq!(stand.stands().status.bytes.origin, 20);
}

#[test]
fn a_condition_changes_its_time_with_its_status_and_not_with_its_reason() {
    let mut stand = Stand::resolved();
    stand.write();
    let time = |stand: &Stand| {
        let status = stand.stands().status;
        Type::Staged.of(&status).unwrap().last_transition_time.0
    };
    let before = time(&stand);
    stand.now = stand.now.after(Duration::from_secs(60));
    stand.show(&json!({ "paused": true }));
    stand.is(Type::Staged, "False", "Paused");
    assert_eq!(time(&stand), before);
    stand.hold(&["mac-0", "mac-1"]);
    assert!(time(&stand) > before);
}

#[test]
fn a_deadline_that_passes_before_it_is_staged_is_told() {
    let mut stand = Stand::resolved();
    stand.show(&json!({ "deadline": "1h" }));
    let hour = Duration::from_hours(1);
    let start = stand.now;
    stand.now = start.after(hour - Duration::from_secs(1));
    assert!(!stand.stands().late);
    stand.now = start.after(hour);
    assert!(stand.stands().late);
    stand.is(Type::Degraded, "True", "DeadlinePassed");
    stand.hold(&["mac-0", "mac-1"]);
    assert!(!stand.stands().late);
    stand.is(Type::Degraded, "False", "AsExpected");
}

#[test]
fn an_image_that_waits_or_whose_tag_was_taken_is_degraded() {
    let mut stand = Stand::resolved();
    stand.view(|view| {
        view.waiting.insert(digest());
    });
    stand.is(Type::Degraded, "True", "TooManyImages");
    let other = Digest::of(b"other");
    stand.view(|view| {
        let names = vec![("another".to_owned(), other)];
        view.overruled.insert(digest(), names);
    });
    stand.is(Type::Degraded, "False", "AsExpected");
    stand.view(|view| {
        let names = vec![(IMAGE.to_owned(), other)];
        view.overruled.insert(digest(), names);
    });
    stand.is(Type::Degraded, "True", "TagTaken");
}

#[test]
fn once_is_enough_where_that_is_asked_for_and_nothing_rolls() {
    let mut stand = Stand::resolved();
    stand.images.staged(&key(), stand.now.time);
    stand.show(&json!({ "completionPolicy": "Always" }));
    stand.is(Type::Staged, "False", "Staging");
    stand.show(&json!({ "completionPolicy": "Once" }));
    stand.is(Type::Staged, "True", "Once");
    stand.roll = Some(pool(1));
    stand.is(Type::Staged, "False", "Staging");
    stand.roll = Some(pool(0));
    stand.is(Type::Staged, "True", "Once");
}

#[test]
fn a_roll_says_what_it_waits_for() {
    let mut stand = Stand::resolved();
    stand.is(Type::Rolling, "False", "NotGated");
    stand.hold(&["mac-0", "mac-1"]);
    stand.roll = Some(pool(0));
    stand.is(Type::Rolling, "False", "Done");
    assert_eq!(stand.word().0, "Staged");
    let full = PoolStatus {
        in_flight: 1,
        cap: 1,
        ..pool(2)
    };
    stand.roll = Some(full.clone());
    stand.is(Type::Rolling, "True", "AtCap");
    assert_eq!(stand.word(), ("Rolling".into(), Some("AtCap".into())));
    let free = PoolStatus {
        in_flight: 0,
        pods: vec![gate::PodStatus {
            pod: gate::PodId("p".into()),
            host: None,
            stale: true,
            in_flight: false,
            verdict: Verdict::Blocked(Reason::NodeCordoned),
        }],
        ..full
    };
    stand.roll = Some(free.clone());
    stand.is(Type::Rolling, "True", "Held");
    assert_eq!(stand.word(), ("Held".into(), Some("NodeCordoned".into())));
    stand.roll = Some(PoolStatus { missing: 1, ..free });
    stand.is(Type::Rolling, "True", "NoSuccessor");
    stand.is(Type::Degraded, "True", "NoSuccessor");
    stand.show(&json!({ "paused": true }));
    stand.is(Type::Rolling, "True", "Paused");
    assert_eq!(stand.word().0, "Paused");
}

#[test]
fn an_owner_that_lags_is_named_after_three_seconds_and_a_change_of_leader_unsays_nothing() {
    let mut stand = Stand::resolved();
    let start = stand.now;
    stand.lag = "somebody makes another image".into();
    let lagging = PoolStatus {
        lag: Some(gate::Lag {
            since: start.moment(),
            pod: None,
            said: false,
        }),
        ..pool(1)
    };
    stand.roll = Some(lagging);
    stand.is(Type::Rolling, "True", "OwnerLags");
    stand.now = start.after(LAG_SHOWN - Duration::from_millis(1));
    stand.is(Type::Degraded, "False", "AsExpected");
    stand.now = start.after(LAG_SHOWN);
    stand.is(Type::Degraded, "True", "OwnerLags");
    assert!(stand.stands().status.gate.unwrap().owner_lags);
    stand.write();
    // the next coordinator reads the owner first
    stand.roll = Some(pool(1));
    stand.is_owner_unread = true;
    stand.is(Type::Degraded, "True", "OwnerLags");
    stand.is_owner_unread = false;
    stand.is(Type::Degraded, "False", "AsExpected");
}

#[test]
fn of_several_troubles_the_image_comes_first_and_those_of_others_last() {
    let mut stand = Stand::new();
    stand.troubles = vec![(Trouble::NotGuarded, "nobody is asked".into())];
    stand.is(Type::Degraded, "True", "NotGuarded");
    stand.roll = Some(PoolStatus {
        missing: 1,
        ..pool(1)
    });
    stand.is(Type::Degraded, "True", "NoSuccessor");
    stand.fail();
    stand.is(Type::Degraded, "True", "NotFound");
}

#[test]
fn a_recipe_is_shown_and_stays_shown_until_a_new_leader_knows_better() {
    let mut stand = Stand::resolved();
    assert_eq!(stand.stands().status.recipe, None);
    let with = |doubted: &[&str]| {
        let mut view: ImageView = serde_json::from_value(json!({
            "digest": digest().to_string(), "references": [IMAGE], "state": "staging", "reason": null,
            "raw_bytes": 1, "registry_bytes": 1, "contents": 1, "contents_done": 0, "hosts_selected": 0,
            "hosts_present": 0, "hosts_failed": 0, "wanted_at": 5, "staged_seconds": null, "hosts": [], "leases": [],
        }))
        .unwrap();
        view.recipe = Some(RecipeView {
            digest: "sha256:r".into(),
            size: 180,
            made_by_fleet: true,
            doubted_contents: doubted.iter().map(ToString::to_string).collect(),
        });
        Arc::new(view)
    };
    let shown = |doubted_contents| RecipeStatus {
        digest: "sha256:r".into(),
        size: 180,
        made_by_fleet: true,
        doubted_contents,
    };
    stand.view(|view| drop(view.images.insert(digest(), with(&["sha256:c"]))));
    assert_eq!(stand.stands().status.recipe, Some(shown(1)));
    stand.write();
    stand.view(|_| {});
    assert_eq!(stand.stands().status.recipe, Some(shown(1)));
    stand.view(|view| drop(view.images.insert(digest(), with(&[]))));
    assert_eq!(stand.stands().status.recipe, Some(shown(0)));
}
