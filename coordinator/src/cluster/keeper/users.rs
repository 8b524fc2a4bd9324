//! The images that hosts have to keep for the cluster: those to which Pods on a Node refer, and those of pools whose
//! Pods may come there. The driver tells each host its own.

use std::collections::{BTreeMap, BTreeSet};

use proto::{HostId, Reference};
use rollout::gate;

use super::hosts::Hosts;
use crate::{
    cluster::{
        index::{FLEET_LABEL, Index, NodeFacts, ObjectKey, RunnerPoolFacts},
        prepull_gate::names,
    },
    driver::Users,
};

/// What the driver was told last: `None` before the first time.
#[derive(Debug, Default)]
pub(super) struct Used(Option<Option<Users>>);

impl Used {
    /// What the driver is to be told. `None` where it was told the same already. While the cluster isn't known
    /// (`synced` is false), or has a pool that can't be read, nobody knows what Pods need.
    pub(super) fn due(&self, synced: bool, index: &Index, hosts: &Hosts) -> Option<Option<Users>> {
        let known = synced && index.unreadable_runner_pools.is_empty();
        let users = known.then(|| users(index, hosts));
        (self.0.as_ref() != Some(&users)).then_some(users)
    }

    /// The driver took this.
    pub(super) fn told(&mut self, users: Option<Users>) {
        self.0 = Some(users);
    }
}

/// The references of each host of the fleet, also where there are none. What isn't a reference of an image for tart is
/// left out.
fn users(index: &Index, hosts: &Hosts) -> Users {
    let members = hosts.view().hosts.keys();
    let members = members.filter(|host| hosts.is_member(host));
    let mut users: BTreeMap<HostId, BTreeSet<String>> = members
        .map(|host| (host.clone(), BTreeSet::new()))
        .collect();
    let mut uses = |node: &str, image: &String| {
        if let Ok(host) = node.parse::<HostId>()
            && hosts.is_member(&host)
            && image.parse::<Reference>().is_ok()
        {
            users.entry(host).or_default().insert(image.clone());
        }
    };
    for pod in index.pods.values() {
        if let Some(node) = pod
            .node
            .as_ref()
            .filter(|_| pod.phase != gate::Phase::Ended)
        {
            uses(node, &pod.image);
            for image in &pod.further_images {
                uses(node, image);
            }
        }
    }
    let pools = index.runner_pools.iter();
    for (key, pool) in pools.filter(|(_, pool)| pool.is_gated()) {
        for (node, facts) in &index.nodes {
            if may_come(key, pool, facts) {
                uses(node, &pool.spec.image);
            }
        }
    }
    users
}

/// Whether Pods of this pool may come to a Node: by the label of the pool's fleet, or by a reservation.
fn may_come(key: &ObjectKey, pool: &RunnerPoolFacts, node: &NodeFacts) -> bool {
    let fleet = node.labels.get(FLEET_LABEL);
    let reserved = node.reserved_for.as_deref();
    fleet.is_some_and(|fleet| *fleet == pool.spec.fleet_selector)
        || reserved.is_some_and(|taint| names(taint, &key.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{cluster::index::Kind, driver::View, view::HostView};

    fn fleet(names: &[&str]) -> Hosts {
        let hosts = names.iter().map(|name| {
            let host: HostId = name.parse().unwrap();
            (host, Arc::new(HostView::default()))
        });
        let mut fleet = Hosts::default();
        fleet.show(Arc::new(View {
            hosts: hosts.collect(),
            ..View::default()
        }));
        fleet
    }

    fn pod(name: &str, node: &str, images: &[&str], phase: &str) -> Value {
        let containers: Vec<Value> = images
            .iter()
            .map(|image| json!({ "name": "vm", "image": image }))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "ns", "uid": name },
            "spec": { "nodeName": node, "containers": containers },
            "status": { "phase": phase },
        })
    }

    fn node(name: &str, fleet: &str, reserved: Option<&str>) -> Value {
        let taint = |value| json!([{ "key": "tuist.dev/reserved-for", "value": value, "effect": "NoSchedule" }]);
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "uid": name, "labels": { "tuist.dev/fleet": fleet } },
            "spec": { "taints": reserved.map(taint) },
        })
    }

    fn pool(name: &str, image: Value, fleet: &str, more: Value) -> Value {
        let mut pool = json!({
            "apiVersion": "tuist.dev/v1alpha1", "kind": "RunnerPool",
            "metadata": { "name": name, "namespace": "ns", "uid": name },
            "spec": { "image": image, "replicas": 2, "fleetSelector": fleet },
        });
        for (field, value) in more.as_object().unwrap() {
            pool[field] = value.clone();
        }
        pool
    }

    #[test]
    fn hosts_keep_what_their_pods_and_the_pools_that_may_come_refer_to() {
        let hosts = fleet(&["mac-1", "mac-2"]);
        let mut index = Index::default();
        for (name, node, images, phase) in [
            (
                "a",
                "mac-1",
                &["r.io/o/runner:1", "busybox", "r.io/o/side:1"][..],
                "Running",
            ),
            ("b", "mac-1", &["r.io/o/runner:2"][..], "Pending"),
            ("over", "mac-2", &["r.io/o/runner:0"][..], "Succeeded"),
            ("elsewhere", "linux-1", &["r.io/o/runner:9"][..], "Running"),
        ] {
            index.show(Kind::Pods, pod(name, node, images, phase));
        }
        index.show(Kind::Nodes, node("mac-1", "m4", None));
        index.show(Kind::Nodes, node("mac-2", "m2", Some("big")));
        index.show(
            Kind::RunnerPools,
            pool("small", json!("r.io/o/small:1"), "m4", json!({})),
        );
        index.show(
            Kind::RunnerPools,
            pool("big", json!("r.io/o/big:1"), "m1", json!({})),
        );
        let leaving = json!({ "metadata": {
            "name": "old", "namespace": "ns", "uid": "old", "deletionTimestamp": "2026-01-01T00:00:00Z",
        } });
        index.show(
            Kind::RunnerPools,
            pool("old", json!("r.io/o/old:1"), "m4", leaving),
        );
        let used = Used::default();
        let users = used.due(true, &index, &hosts).unwrap().unwrap();
        let of = |host: &str| -> Vec<&str> {
            let host: HostId = host.parse().unwrap();
            users[&host].iter().map(String::as_str).collect()
        };
        assert_eq!(users.len(), 2);
        assert_eq!(
            of("mac-1"),
            [
                "r.io/o/runner:1",
                "r.io/o/runner:2",
                "r.io/o/side:1",
                "r.io/o/small:1"
            ]
        );
        assert_eq!(of("mac-2"), ["r.io/o/big:1"]);
    }

    #[test]
    fn what_isnt_known_is_said_once_and_so_is_what_is() {
        let hosts = fleet(&["mac-1"]);
        let mut index = Index::default();
        let mut used = Used::default();
        assert_eq!(used.due(false, &index, &hosts), Some(None));
        used.told(None);
        assert_eq!(used.due(false, &index, &hosts), None);
        // a host that nothing refers to is named, too: of one that isn't named, nobody knows
        let none: Users = [("mac-1".parse().unwrap(), BTreeSet::new())].into();
        assert_eq!(used.due(true, &index, &hosts), Some(Some(none.clone())));
        used.told(Some(none));
        assert_eq!(used.due(true, &index, &hosts), None);
        // a pool that can't be read may need any image
        let scope = crate::cluster::index::Scope::everywhere(Kind::RunnerPools);
        let unread = serde_json::from_value(pool("p", json!(7), "m4", json!({}))).unwrap();
        index
            .apply(&scope, unread, std::time::Instant::now())
            .unwrap_err();
        assert_eq!(used.due(true, &index, &hosts), Some(None));
    }
}
