//! What the driver is told to stage for the cluster: which image on which hosts, and the limits. The driver itself
//! plans which bytes move where.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use proto::{Digest, HostId, Reason, ToldReason};
use rollout::gate;

use super::{
    hosts::Hosts,
    resolving::{Image, Resolving},
};
use crate::{
    cluster::{
        clock::Now,
        crd::{ImagePrePullSpec, Rate},
        index::{Index, ObjectKey, PrePullFacts},
        prepull_gate::names,
    },
    driver::{Ask, Limits, Placed, stricter},
    view::HostState,
    wants::Want,
};

/// A host that isn't selected any more keeps its chunks for this long. So a Node that was created anew, or a label that
/// was lost in an edit, doesn't cost the bytes twice.
pub(super) const KEPT_FOR: Duration = Duration::from_mins(10);

/// The last message to the driver, and the hosts that keep their chunks.
#[derive(Debug, Default)]
pub(super) struct Placing {
    told: Told,
    /// Hosts that were selected and aren't any more, with the time of the change, by image.
    left: BTreeMap<Digest, BTreeMap<HostId, Instant>>,
}

/// A message to the driver.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    images: Vec<ToldImage>,
    limits: Limits,
    whole: bool,
}

/// The part of a message that is about one image.
#[derive(Debug, PartialEq, Eq)]
struct ToldImage {
    digest: Digest,
    /// The names of the image, each with the time when it was asked for in Unix milliseconds.
    references: BTreeMap<String, u64>,
    secrets: BTreeMap<String, String>,
    /// Hosts that stage the image.
    hosts: BTreeSet<HostId>,
    /// Hosts that keep what they have and stage no more.
    kept: BTreeSet<HostId>,
    /// Hosts on which a Pod waits for the image.
    awaited: BTreeSet<HostId>,
    priority: i32,
}

/// A new message for the driver, with what [`Placing`] remembers of it.
#[derive(Debug)]
pub(super) struct Placement {
    told: Told,
    wants: Vec<Placed>,
}

impl Placement {
    /// The message in the driver's form.
    pub(super) fn ask(&self) -> Ask {
        Ask::Place {
            wants: self.wants.clone(),
            limits: self.told.limits,
            whole: self.told.whole,
        }
    }
}

/// The facts that a placement depends on: the objects, their images, and the hosts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) now: Now,
    pub(super) index: &'a Index,
    pub(super) images: &'a Resolving,
    pub(super) hosts: &'a Hosts,
}

impl Placing {
    /// The next message for the driver. `None` where the driver was told the same already. `rolls` says whether Pods
    /// roll to an ImagePrePull's image.
    pub(super) fn due(
        &mut self,
        facts: Facts<'_>,
        rolls: impl Fn(&ObjectKey) -> bool,
    ) -> Option<Placement> {
        let Facts {
            index,
            images,
            hosts,
            ..
        } = facts;
        let mut limits = Limits::default();
        let mut wants: BTreeMap<Digest, Placed> = BTreeMap::new();
        for (key, prepull) in index.prepulls.iter().filter(|(_, facts)| !facts.deleting) {
            let Some((image, (want, resolved))) = images
                .get(key)
                .and_then(|image| Some((image, image.want()?)))
            else {
                continue;
            };
            let moves = resolved && !prepull.spec.paused;
            if moves && image.staged_at().is_none() {
                limit(&mut limits, &prepull.spec);
            }
            // One complete staging is enough, except while Pods roll to the image. Then a Pod would be blocked for ever
            // if its Node came later or lost the image.
            let done = prepull.is_done() && !rolls(key);
            let placed = wants.entry(want.digest()).or_insert_with(|| nowhere(want));
            name(placed, (key, prepull), image, want);
            let priority = placed.want.priority.map_or(prepull.spec.priority, |known| {
                known.max(prepull.spec.priority)
            });
            placed.want.priority = Some(priority);
            let selected = selected(facts, prepull, want, done);
            match moves {
                true => placed.want.hosts.get_or_insert_default().extend(selected),
                false => placed.paused.extend(selected),
            }
        }
        self.keep_what_left(facts, &mut wants);
        await_pods(facts, &mut wants);
        // until the driver has shown its hosts, nothing is wanted on any host
        let whole = !hosts.view().hosts.is_empty()
            && index.prepulls.iter().all(|(key, prepull)| {
                let image = images.get(key);
                image.is_some_and(|image| !image.may_be_staging(prepull))
            });
        let told = Told {
            images: wants.values().map(ToldImage::of).collect(),
            limits,
            whole,
        };
        let wants = wants.into_values().collect();
        (told != self.told).then_some(Placement { told, wants })
    }

    /// The driver took this message.
    pub(super) fn told(&mut self, placement: Placement) {
        self.told = placement.told;
    }

    /// Hosts that aren't selected any more keep their chunks for a while, if somebody still wants the image.
    fn keep_what_left(&mut self, facts: Facts<'_>, wants: &mut BTreeMap<Digest, Placed>) {
        let Facts { now, hosts, .. } = facts;
        self.left.retain(|image, _| wants.contains_key(image));
        for before in &self.told.images {
            if wants.contains_key(&before.digest) {
                let left = self.left.entry(before.digest).or_default();
                for host in before.hosts.union(&before.kept) {
                    left.entry(host.clone()).or_insert(now.instant);
                }
            }
        }
        for (image, left) in &mut self.left {
            let Some(placed) = wants.get_mut(image) else {
                continue;
            };
            let selected = placed.want.hosts.get_or_insert_default();
            left.retain(|host, _| !selected.contains(host) && !placed.paused.contains(host));
            let kept = left
                .iter()
                .filter(|(host, since)| now.since(**since) < KEPT_FOR && hosts.is_member(host))
                .map(|(host, _)| host.clone());
            placed.paused.extend(kept);
        }
    }

    /// As if hosts had been deselected this much earlier.
    #[cfg(test)]
    pub(super) fn age(&mut self, by: Duration) {
        for since in self.left.values_mut().flat_map(BTreeMap::values_mut) {
            *since -= by;
        }
    }
}

impl ToldImage {
    fn of(placed: &Placed) -> Self {
        Self {
            digest: placed.want.digest(),
            references: placed.want.asked_ms.clone(),
            secrets: placed.want.secrets.clone(),
            hosts: placed.want.hosts.clone().unwrap_or_default(),
            kept: placed.paused.clone(),
            awaited: placed.awaited.clone(),
            priority: placed.want.priority.unwrap_or(0),
        }
    }
}

/// The image without hosts and names.
fn nowhere(want: &Want) -> Placed {
    Placed {
        want: Want {
            hosts: Some(BTreeSet::new()),
            references: BTreeSet::new(),
            asked_ms: BTreeMap::new(),
            secrets: BTreeMap::new(),
            priority: None,
            ..want.clone()
        },
        paused: BTreeSet::new(),
        awaited: BTreeSet::new(),
    }
}

/// Adds the names under which an ImagePrePull wants its image. Each name comes with the time when it was asked for, and
/// with the pull Secret.
fn name(
    placed: &mut Placed,
    (key, prepull): (&ObjectKey, &PrePullFacts),
    image: &Image,
    want: &Want,
) {
    let asked_ms = unix_ms(image.started_at());
    for reference in &want.references {
        placed.want.references.insert(reference.clone());
        let asked = placed.want.asked_ms.entry(reference.clone());
        let asked = asked.or_default();
        *asked = asked_ms.max(*asked);
    }
    if let Some(secret) = prepull.secret(key) {
        let secrets = &mut placed.want.secrets;
        let reference = image.reference().to_owned();
        secrets.entry(reference).or_insert(secret.to_string());
    }
}

/// Marks the images that Pods wait for, each with the hosts on which one waits: Pods on these Nodes that run and can't
/// start yet, and the next Pods of the pools for which Nodes are reserved. Such an image comes first on that host.
fn await_pods(facts: Facts<'_>, wants: &mut BTreeMap<Digest, Placed>) {
    let Facts { index, hosts, .. } = facts;
    let mut awaited: Vec<(Digest, HostId)> = Vec::new();
    for (node, taint) in index.reserved() {
        if let Ok(host) = node.parse::<HostId>() {
            let images = of_pool(facts, taint, &host).into_iter();
            awaited.extend(images.map(|image| (image, host.clone())));
        }
    }
    let waiting = index.pods.values().filter(|pod| {
        let starts = pod.phase == gate::Phase::Pending && !pod.deleting;
        starts && pod.node.is_some()
    });
    for pod in waiting {
        let Some(host) = pod.node.as_ref().and_then(|node| node.parse().ok()) else {
            continue;
        };
        let of_pod = wants.iter().filter(|(_, placed)| {
            let names = &placed.want.references;
            names.contains(&pod.image)
        });
        awaited.extend(of_pod.map(|(image, _)| (*image, HostId::clone(&host))));
    }
    for (image, host) in awaited {
        let here = hosts.word(&host);
        let here = here.is_some_and(|word| word.holdings.contains_key(&image));
        let placed = wants.get_mut(&image).filter(|_| !here);
        let placed = placed.filter(|of| of.want.hosts.iter().flatten().any(|on| *on == host));
        if let Some(placed) = placed {
            placed.awaited.insert(host);
        }
    }
}

/// The images of the pool that a taint names, where this host lacks them and they can come.
fn of_pool(facts: Facts<'_>, taint: &str, host: &HostId) -> BTreeSet<Digest> {
    let Facts {
        now,
        index,
        images,
        hosts,
    } = facts;
    let prepulls = index.prepulls.iter().filter(|(_, prepull)| {
        let pool = prepull
            .spec
            .gate
            .as_ref()
            .and_then(|gate| gate.pool_ref.as_ref());
        !prepull.deleting && pool.is_some_and(|pool| names(taint, &pool.name))
    });
    let lacks = prepulls.filter_map(|(key, prepull)| {
        let digest = images.get(key)?.known()?.digest();
        let failed = hosts.view().images.get(&digest).is_some_and(|image| {
            let mut on = image.hosts.iter();
            on.any(|on| {
                // an image that lacks room needs its place in the order most
                let lacks_room =
                    on.reason.as_ref().and_then(ToldReason::known) == Some(Reason::NoRoom);
                on.host == host.as_str() && on.state == HostState::Failed && !lacks_room
            })
        });
        let here = hosts.holds(now, host, &digest, &prepull.spec.image);
        (!here && !failed).then_some(digest)
    });
    lacks.collect()
}

/// The fleet's hosts on the Nodes that an ImagePrePull selects. When the ImagePrePull is done, only those that hold
/// its image.
fn selected(
    Facts {
        now, index, hosts, ..
    }: Facts<'_>,
    prepull: &PrePullFacts,
    want: &Want,
    done: bool,
) -> BTreeSet<HostId> {
    let digest = want.digest();
    let nodes = index.selected(&prepull.spec).into_iter();
    nodes
        .filter_map(|(name, _)| name.parse().ok())
        .filter(|host| hosts.is_member(host))
        .filter(|host| !done || hosts.holds(now, host, &digest, &prepull.spec.image))
        .collect()
}

/// Applies the limits of an ImagePrePull. The strictest limit counts, because all images share the network.
fn limit(limits: &mut Limits, spec: &ImagePrePullSpec) {
    if let Some(streams) = spec.origin_streams.and_then(|n| usize::try_from(n).ok()) {
        limits.origin_streams = Some(limits.origin_streams.map_or(streams, |n| n.min(streams)));
    }
    let Some(bandwidth) = &spec.bandwidth else {
        return;
    };
    let rate = |rate: &Option<Rate>| rate.map_or(0, |rate| rate.bytes_per_second);
    let known = &mut limits.bandwidth;
    known.upload_bytes_per_second =
        stricter(known.upload_bytes_per_second, rate(&bandwidth.upload));
    known.download_bytes_per_second =
        stricter(known.download_bytes_per_second, rate(&bandwidth.download));
}

/// A time in Unix milliseconds, cut to whole seconds as a status keeps times. So a restart changes no time.
fn unix_ms(time: SystemTime) -> u64 {
    let since_1970 = time.duration_since(SystemTime::UNIX_EPOCH);
    since_1970
        .unwrap_or_default()
        .as_secs()
        .saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::{
            index::{Kind, made_up::prepull},
            keeper::resolving::Resolved,
        },
        driver::{HostPresence, View},
        view::HostView,
        wants::tests::want,
    };

    /// The number of hosts that stage, and of hosts that keep what they have, for each image.
    type Counts = Vec<(usize, usize)>;

    /// Two Nodes whose hosts are members, and ImagePrePulls that select both.
    struct Stand {
        index: Index,
        images: Resolving,
        hosts: Hosts,
        placing: Placing,
        now: Now,
    }

    impl Stand {
        fn new() -> Self {
            let mut this = Self {
                index: Index::default(),
                images: Resolving::default(),
                hosts: Hosts::default(),
                placing: Placing::default(),
                now: Now::start(),
            };
            for name in ["mac-0", "mac-1"] {
                this.label(name, "b");
            }
            this.members(&["mac-0", "mac-1"]);
            this
        }

        fn label(&mut self, node: &str, value: &str) {
            let node =
                json!({ "metadata": { "name": node, "uid": node, "labels": { "a": value } } });
            self.index
                .apply_node(&serde_json::from_value(node).unwrap());
        }

        fn reserve(&mut self, node: &str, pool: &str) {
            let taint = json!({
                "key": "tuist.dev/reserved-for",
                "value": pool,
                "effect": "NoSchedule",
            });
            let node = json!({
                "metadata": { "name": node, "uid": node, "labels": { "a": "b" } },
                "spec": { "taints": [taint] },
            });
            self.index
                .apply_node(&serde_json::from_value(node).unwrap());
        }

        fn holds(&mut self, host: &str, image: Digest, name: &str) {
            let word = HostPresence {
                holdings: Arc::new([(image, [name.to_owned()].into())].into()),
                checked_at: self.now.instant,
            };
            let word = [(host.parse().unwrap(), word)].into();
            self.hosts.hear(self.now, Arc::new(word));
        }

        fn members(&mut self, hosts: &[&str]) {
            let hosts = hosts
                .iter()
                .map(|host| (host.parse().unwrap(), Arc::new(HostView::default())))
                .collect();
            self.hosts.show(Arc::new(View {
                hosts,
                ..View::default()
            }));
        }

        /// The image of this seed failed on this host for a reason.
        fn fails(&mut self, host: &str, seed: &str, reason: Reason) {
            let digest = want(seed, 1, 1 << 20).digest();
            let image = json!({
                "digest": digest.to_string(), "references": [], "state": "staging", "reason": null,
                "raw_bytes": 0, "registry_bytes": 0, "contents": 0, "contents_done": 0,
                "hosts_selected": 2, "hosts_present": 0, "hosts_failed": 1, "wanted_at": 0,
                "staged_seconds": null, "leases": [],
                "hosts": [{
                    "host": host, "state": "failed", "reason": reason.as_str(), "message": "",
                    "connected": true, "total_bytes": 0, "held_bytes": 0, "upload_bytes": 0,
                    "bytes": { "origin": 0, "peers": 0, "local": 0 }, "bytes_per_second": 0,
                    "eta_seconds": null, "presence_age_ms": null, "golden": false, "failed_seconds": 1,
                }],
            });
            let view = self.hosts.view();
            self.hosts.show(Arc::new(View {
                hosts: view.hosts.clone(),
                images: [(digest, Arc::new(serde_json::from_value(image).unwrap()))].into(),
                ..View::default()
            }));
        }

        fn show(&mut self, name: &str, spec: &Value) {
            let object = prepull(name, "r/i:1", &json!({ "spec": spec }));
            self.index.show(Kind::PrePulls, object);
            self.images.look(self.now, &self.index);
        }

        fn resolve(&mut self, name: &str, reference: &str, seed: &str) {
            let mut want = want(seed, 1, 1 << 20);
            want.references = [reference.to_owned()].into();
            let resolved = Resolved {
                key: ObjectKey::new("ns", name),
                reference: reference.to_owned(),
                result: Ok(want),
            };
            assert!(self.images.answered(self.now.instant, resolved));
        }

        /// The hosts that were last said to await the image of this seed.
        fn awaited(&self, seed: &str) -> Vec<String> {
            let image = want(seed, 1, 1 << 20).digest();
            let told = self.placing.told.images.iter();
            let told = told.filter(|of| of.digest == image);
            told.flat_map(|of| of.awaited.iter().map(ToString::to_string))
                .collect()
        }

        /// What the driver is told now, if that is news: for each image, the number of hosts that stage, and of hosts
        /// that keep what they have.
        fn place(&mut self) -> Option<(Counts, Limits, bool)> {
            let facts = Facts {
                now: self.now,
                index: &self.index,
                images: &self.images,
                hosts: &self.hosts,
            };
            let placement = self.placing.due(facts, |_| false)?;
            let Ask::Place {
                wants,
                limits,
                whole,
            } = placement.ask()
            else {
                panic!("another ask");
            };
            self.placing.told(placement);
            let count = |placed: &Placed| {
                let hosts = placed.want.hosts.as_ref().unwrap();
                (hosts.len(), placed.paused.len())
            };
            Some((wants.iter().map(count).collect(), limits, whole))
        }
    }

    #[test]
    fn nothing_is_whole_before_every_image_was_asked_for_and_the_hosts_are_shown() {
        let mut stand = Stand::new();
        stand.show("a", &json!({}));
        assert_eq!(stand.place(), None, "nothing is wanted yet, as before");
        stand.resolve("a", "r/i:1", "one");
        let (hosts, _, whole) = stand.place().unwrap();
        assert_eq!((hosts, whole), (vec![(2, 0)], true));
        assert_eq!(stand.place(), None);
        stand.members(&[]);
        let (hosts, _, whole) = stand.place().unwrap();
        assert_eq!((hosts, whole), (vec![(0, 0)], false));
    }

    #[test]
    fn two_objects_of_one_image_are_one_want_and_the_strictest_limits_count() {
        let mut stand = Stand::new();
        stand.show(
            "a",
            &json!({ "originStreams": 4, "bandwidth": { "upload": "8Mi" } }),
        );
        stand.show(
            "b",
            &json!({ "image": "r/i:2", "originStreams": 2, "bandwidth": { "upload": "16Mi" } }),
        );
        stand.resolve("a", "r/i:1", "one");
        stand.resolve("b", "r/i:2", "one");
        let (hosts, limits, _) = stand.place().unwrap();
        assert_eq!((hosts, limits.origin_streams), (vec![(2, 0)], Some(2)));
        assert_eq!(limits.bandwidth.upload_bytes_per_second, 8 << 20);
        let names = &stand.placing.told.images[0].references;
        assert!(names.keys().eq(["r/i:1", "r/i:2"]));
    }

    #[test]
    fn hosts_of_a_paused_object_keep_what_they_have() {
        let mut stand = Stand::new();
        stand.show("a", &json!({ "originStreams": 4 }));
        stand.resolve("a", "r/i:1", "one");
        assert_eq!(stand.place().unwrap().0, [(2, 0)]);
        stand.show("a", &json!({ "paused": true, "originStreams": 4 }));
        let (hosts, limits, _) = stand.place().unwrap();
        assert_eq!((hosts, limits), (vec![(0, 2)], Limits::default()));
    }

    #[test]
    fn a_host_that_is_not_selected_any_more_keeps_what_it_has_for_ten_minutes() {
        let mut stand = Stand::new();
        stand.show("a", &json!({}));
        stand.resolve("a", "r/i:1", "one");
        assert_eq!(stand.place().unwrap().0, [(2, 0)]);
        stand.label("mac-1", "c");
        assert_eq!(stand.place().unwrap().0, [(1, 1)]);
        stand.now = stand.now.after(KEPT_FOR - Duration::from_millis(1));
        assert_eq!(stand.place(), None);
        stand.now = stand.now.after(Duration::from_millis(1));
        assert_eq!(stand.place().unwrap().0, [(1, 0)]);
        // the host is selected again and then revoked: a host that isn't a member keeps nothing
        stand.label("mac-1", "b");
        assert_eq!(stand.place().unwrap().0, [(2, 0)]);
        stand.members(&["mac-0"]);
        assert_eq!(stand.place().unwrap().0, [(1, 0)]);
    }

    #[test]
    fn on_a_reserved_host_the_image_of_its_pool_comes_first_until_it_is_there() {
        let mut stand = Stand::new();
        let gate = |pool: &str| json!({ "gate": { "mode": "Own", "poolRef": { "name": pool } } });
        stand.show("mine", &gate("mine"));
        stand.show("other", &gate("other"));
        stand.resolve("mine", "r/i:1", "one");
        stand.resolve("other", "r/i:1", "two");
        assert_eq!(stand.place().unwrap().0, [(2, 0), (2, 0)]);
        assert_eq!(stand.awaited("one"), [""; 0]);
        stand.reserve("mac-1", "mine");
        // the other image comes as well, after the first one
        assert_eq!(stand.place().unwrap().0, [(2, 0), (2, 0)]);
        assert_eq!(stand.awaited("one"), ["mac-1"]);
        assert_eq!(stand.awaited("two"), [""; 0]);
        // it is there
        let first = want("one", 1, 1 << 20).digest();
        stand.holds("mac-1", first, "r/i:1");
        stand.place().unwrap();
        assert_eq!(stand.awaited("one"), [""; 0]);
        // a pool that nobody knows reserves the host
        stand.reserve("mac-1", "stranger");
        assert_eq!(stand.place(), None);
    }

    #[test]
    fn on_a_reserved_host_an_image_that_lacks_room_keeps_its_place_and_one_that_cannot_come_does_not()
     {
        let mut stand = Stand::new();
        let gate = json!({ "gate": { "mode": "Own", "poolRef": { "name": "mine" } } });
        stand.show("mine", &gate);
        stand.resolve("mine", "r/i:1", "one");
        stand.reserve("mac-1", "mine");
        stand.place().unwrap();
        assert_eq!(stand.awaited("one"), ["mac-1"]);
        // by its place, images that come after it make room for it
        stand.fails("mac-1", "one", Reason::NoRoom);
        assert_eq!(stand.place(), None);
        assert_eq!(stand.awaited("one"), ["mac-1"]);
        stand.fails("mac-1", "one", Reason::NeedsNewerTart);
        stand.place().unwrap();
        assert_eq!(stand.awaited("one"), [""; 0]);
        // another host's failure says nothing of this one
        stand.fails("mac-0", "one", Reason::NeedsNewerTart);
        stand.place().unwrap();
        assert_eq!(stand.awaited("one"), ["mac-1"]);
    }

    #[test]
    fn an_image_is_awaited_where_a_pod_that_runs_it_cannot_start() {
        let mut stand = Stand::new();
        stand.show("a", &json!({}));
        stand.resolve("a", "r/i:1", "one");
        stand.place().unwrap();
        let pod = |name: &str, node: Option<&str>, image: &str, phase: &str| {
            serde_json::from_value(json!({
                "metadata": { "name": name, "namespace": "ns", "uid": name },
                "spec": { "nodeName": node, "containers": [{ "name": "c", "image": image }] },
                "status": { "phase": phase },
            }))
            .unwrap()
        };
        let show = |stand: &mut Stand, pod| {
            stand.index.apply_pod(&pod, stand.now.instant);
            stand.place();
            stand.awaited("one")
        };
        for (node, image, phase) in [
            (None, "r/i:1", "Pending"),
            (Some("mac-0"), "r/i:2", "Pending"),
            (Some("mac-0"), "r/i:1", "Running"),
            (Some("mac-9"), "r/i:1", "Pending"),
        ] {
            let awaited = show(&mut stand, pod("one", node, image, phase));
            assert_eq!(awaited, [""; 0], "{node:?} {image} {phase}");
        }
        let awaited = show(&mut stand, pod("two", Some("mac-1"), "r/i:1", "Pending"));
        assert_eq!(awaited, ["mac-1"]);
    }

    #[test]
    fn the_highest_priority_of_the_objects_counts_and_a_change_is_told() {
        let mut stand = Stand::new();
        stand.show("a", &json!({ "priority": -4 }));
        stand.resolve("a", "r/i:1", "one");
        stand.place().unwrap();
        assert_eq!(stand.placing.told.images[0].priority, -4);
        stand.show("b", &json!({ "image": "r/i:2", "priority": 3 }));
        stand.resolve("b", "r/i:2", "one");
        stand.place().unwrap();
        assert_eq!(stand.placing.told.images[0].priority, 3);
        stand.show("b", &json!({ "image": "r/i:2", "priority": 2 }));
        assert!(stand.place().is_some());
    }

    #[test]
    fn what_could_not_be_told_is_due_again() {
        let mut stand = Stand::new();
        stand.show("a", &json!({}));
        stand.resolve("a", "r/i:1", "one");
        for _ in 0..2 {
            let facts = Facts {
                now: stand.now,
                index: &stand.index,
                images: &stand.images,
                hosts: &stand.hosts,
            };
            assert!(stand.placing.due(facts, |_| false).is_some());
        }
    }
}
