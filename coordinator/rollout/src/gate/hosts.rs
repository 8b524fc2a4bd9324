//! The hosts that Pods run on: whether their Nodes take Pods, and which images they hold.

use alloc::collections::BTreeMap;
use core::time::Duration;

use proto::{HostId, Moment};

use super::{Config, Phase, Place, Pod, PrePull, Reason, Takes, prepull::PrePullState};
use crate::presence::{Held, Holdings, Presence};

#[derive(Clone, Copy, Debug)]
struct Node {
    ready: bool,
    takes: Takes,
    /// Since when the Node takes Pods, or none, for this reason.
    since: Moment,
}

/// How many hosts of a pre-pull are Ready and take Pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ready {
    /// Of these, the hosts that hold the pre-pull's image and said so lately.
    pub(super) have: u32,
    /// All of these hosts.
    pub(super) usable: u32,
}

/// The hosts that Pods run on.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts {
    nodes: BTreeMap<HostId, Node>,
    presence: Presence,
}

impl Hosts {
    /// Sets a Node's present state.
    pub(super) fn set_node(&mut self, now: Moment, host: HostId, ready: bool, takes: Takes) {
        let known = self.nodes.get(&host).filter(|known| known.takes == takes);
        let since = known.map_or(now, |known| known.since);
        let node = Node {
            ready,
            takes,
            since,
        };
        self.nodes.insert(host, node);
    }

    /// Removes a Node. Its agent's word stays: the agent may run on without the Node, and reports its holdings only
    /// when they change.
    pub(super) fn drop_node(&mut self, host: &HostId) {
        self.nodes.remove(host);
    }

    /// A host reports everything that it holds. It looked at its disk `at` that moment.
    pub(super) fn report(&mut self, at: Moment, host: HostId, holdings: Holdings) {
        self.presence.report(at, host, holdings);
    }

    /// A host looked at its disk again `at` that moment, and nothing changed. Returns how old its word had become;
    /// `None` where it hadn't reported.
    pub(super) fn seen(&mut self, at: Moment, host: &HostId) -> Option<Duration> {
        self.presence.seen(at, host)
    }

    /// What is known of a pre-pull's image on a host; `None` until the image is resolved.
    pub(super) fn presence(
        &self,
        now: Moment,
        prepull: &PrePull,
        host: &HostId,
        config: &Config,
    ) -> Option<Held> {
        let digest = prepull.digest.as_ref()?;
        let max_age = config.presence_max_age;
        Some(self.presence.of(now, host, &prepull.image, digest, max_age))
    }

    /// Whether this Pod is about to be deleted by another controller: it is idle, on a host that was reserved for
    /// another pool (tuist/tuist of autumn 2026, infra/runners-controller/controllers/reservation.go:
    /// retireIdlePodsOnReservedNode), or whose Node was cordoned, a moment ago ([`Config::reap`]).
    pub(super) fn gives_way(
        &self,
        now: Moment,
        pod: &Pod,
        state: &PrePullState,
        config: &Config,
    ) -> bool {
        let Place::On(host) = &pod.place else {
            return false;
        };
        let is_new = |since: Moment| now.since(since) < config.reap;
        let is_emptied = self
            .nodes
            .get(host)
            .is_some_and(|node| node.takes == Takes::NoneWhileCordoned && is_new(node.since));
        let is_reserved = state.reserved_since(host).is_some_and(is_new);
        !pod.busy && pod.is_alive() && (is_emptied || is_reserved)
    }

    /// Whether this Pod's Node isn't Ready, so that nobody knows whether the Pod serves.
    pub(super) fn is_away(&self, pod: &Pod) -> bool {
        match &pod.place {
            Place::On(host) => self.nodes.get(host).is_some_and(|node| !node.ready),
            Place::Unscheduled | Place::Elsewhere => false,
        }
    }

    /// Counts the pre-pull's hosts that are Ready and take its Pods: what the runners' controllers count as capacity
    /// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/helpers.go: nodeFilterReason,
    /// summarizeFleetNodes; which Nodes they keep Pods from because Pods don't start there shows on no Node).
    pub(super) fn ready(&self, now: Moment, prepull: &PrePull, config: &Config) -> Ready {
        let mut ready = Ready::default();
        for host in prepull.hosts.difference(&prepull.reserved) {
            let node = self.nodes.get(host);
            if node.is_some_and(|node| node.ready && node.takes == Takes::Pods) {
                let held = self.presence(now, prepull, host, config);
                ready.usable += 1;
                ready.have += u32::from(held == Some(Held::Fresh));
            }
        }
        ready
    }

    /// Checks that the pre-pull's image is where this Pod's successor would run.
    ///
    /// # Errors
    /// The reason why the image isn't there, or isn't known to be.
    pub(super) fn check(
        &self,
        now: Moment,
        pod: &Pod,
        prepull: &PrePull,
        config: &Config,
    ) -> Result<(), Reason> {
        match &pod.place {
            Place::On(host) => self.check_node(now, host, prepull, config),
            Place::Unscheduled if pod.phase == Phase::Pending => {
                if prepull.proceeds(now) {
                    return Ok(());
                }
                if prepull.digest.is_none() {
                    return Err(Reason::ImageUnresolved);
                }
                let Ready { have, usable } = self.ready(now, prepull, config);
                let share = u64::from(usable) * u64::from(config.enough_percent.min(100));
                let need = u32::try_from(share.div_ceil(100)).unwrap_or(usable).max(1);
                if have < need {
                    return Err(Reason::TooFewHosts { have, need });
                }
                Ok(())
            }
            Place::Unscheduled | Place::Elsewhere => Err(Reason::NodeUnknown),
        }
    }

    fn check_node(
        &self,
        now: Moment,
        host: &HostId,
        prepull: &PrePull,
        config: &Config,
    ) -> Result<(), Reason> {
        let node = self.nodes.get(host).ok_or(Reason::NodeUnknown)?;
        if !node.ready {
            return Err(Reason::NodeNotReady);
        }
        match node.takes {
            Takes::Pods => {}
            Takes::NoneWhileCordoned => return Err(Reason::NodeCordoned),
            Takes::NoneUnderPressure => return Err(Reason::NodePressure),
        }
        if prepull.reserved.contains(host) {
            return Err(Reason::NodeReserved);
        }
        if prepull.proceeds(now) {
            return Ok(());
        }
        let held = self.presence(now, prepull, host, config);
        match held.ok_or(Reason::ImageUnresolved)? {
            Held::Fresh => Ok(()),
            Held::Old(age) => Err(Reason::PresenceOld(age)),
            Held::Missing => Err(Reason::ImageMissing),
            Held::Unheard => Err(Reason::HostUnheard),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{
        collections::BTreeSet,
        string::{String, ToString as _},
    };

    use proto::Digest;

    use super::*;
    use crate::gate::{Heartbeat, Mode, OnDeadline, PodName, PrePullId, Template};

    const START: Moment = Moment(1_000_000_000);
    const MOMENT: Duration = Duration::from_micros(1);
    const IMAGE: &str = "registry.test/runner:2";

    fn host(number: u32) -> HostId {
        alloc::format!("host-{number}").parse().unwrap()
    }

    /// A pre-pull on hosts 0 to 3 whose deadline is `START`.
    fn prepull(on_deadline: OnDeadline) -> PrePull {
        PrePull {
            image: IMAGE.into(),
            digest: Some(Digest::of(IMAGE.as_bytes())),
            mode: Mode::Own,
            percent: 50,
            replicas: 4,
            template: Template::Unknown,
            hosts: (0..4).map(host).collect(),
            reserved: BTreeSet::new(),
            fleet: None,
            paused: false,
            deadline: Some(START),
            on_deadline,
        }
    }

    fn pod(place: Place, phase: Phase) -> Pod {
        Pod {
            prepull: PrePullId(String::new()),
            name: PodName {
                namespace: String::new(),
                name: String::new(),
            },
            image: "registry.test/runner:1".into(),
            place,
            phase,
            deleting: false,
            labelled: false,
            busy: false,
            operator_drain: false,
            heartbeat: Heartbeat::Absent,
            created_unix_s: 0,
            seen: START,
        }
    }

    /// This host holds the image, and looked at its disk at `START`.
    fn report(hosts: &mut Hosts, number: u32) {
        let names = BTreeSet::from([IMAGE.to_string()]);
        let holdings = [(Digest::of(IMAGE.as_bytes()), names)].into();
        hosts.report(START, host(number), holdings);
    }

    #[test]
    fn a_pod_without_a_node_waits_for_half_of_the_hosts_that_take_pods() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        let pending = pod(Place::Unscheduled, Phase::Pending);
        let prepull = prepull(OnDeadline::Hold);
        let check = |hosts: &Hosts| hosts.check(START, &pending, &prepull, &config);
        for number in 0..4 {
            let takes = match number {
                0..3 => Takes::Pods,
                _ => Takes::NoneWhileCordoned,
            };
            hosts.set_node(START, host(number), true, takes);
        }
        report(&mut hosts, 0);
        report(&mut hosts, 3);
        let few = Reason::TooFewHosts { have: 1, need: 2 };
        assert_eq!(check(&hosts), Err(few), "a cordoned Node doesn't count");
        report(&mut hosts, 1);
        assert_eq!(check(&hosts), Ok(()));
        let ready = hosts.ready(START, &prepull, &config);
        assert_eq!((ready.have, ready.usable), (2, 3));
        hosts.set_node(START, host(1), true, Takes::NoneUnderPressure);
        let ready = hosts.ready(START, &prepull, &config);
        assert_eq!((ready.have, ready.usable), (1, 2));
        let elsewhere = pod(Place::Elsewhere, Phase::Pending);
        let nowhere = hosts.check(START, &elsewhere, &prepull, &config);
        assert_eq!(nowhere, Err(Reason::NodeUnknown));
    }

    #[test]
    fn a_host_is_believed_for_as_long_as_its_word_is_young() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        let (prepull, running) = (
            prepull(OnDeadline::Hold),
            pod(Place::On(host(0)), Phase::Running),
        );
        hosts.set_node(START, host(0), true, Takes::Pods);
        let check = |hosts: &Hosts, now| hosts.check(now, &running, &prepull, &config);
        assert_eq!(check(&hosts, START), Err(Reason::HostUnheard));
        report(&mut hosts, 0);
        let last = START + config.presence_max_age;
        assert_eq!(check(&hosts, last), Ok(()));
        let old = Reason::PresenceOld(config.presence_max_age + MOMENT);
        assert_eq!(check(&hosts, last + MOMENT), Err(old));
        hosts.seen(last, &host(0));
        assert_eq!(check(&hosts, last + MOMENT), Ok(()));
        // the agent's word counts while its Node is away
        hosts.drop_node(&host(0));
        assert_eq!(check(&hosts, last), Err(Reason::NodeUnknown));
        hosts.set_node(START, host(0), true, Takes::Pods);
        assert_eq!(check(&hosts, last), Ok(()));
    }

    #[test]
    fn a_deadline_lets_pods_go_without_the_image_but_not_without_a_node_that_takes_them() {
        let (mut hosts, config) = (Hosts::default(), Config::default());
        let (prepull, running) = (
            prepull(OnDeadline::Proceed),
            pod(Place::On(host(0)), Phase::Running),
        );
        let check = |hosts: &Hosts, now| hosts.check(now, &running, &prepull, &config);
        assert_eq!(check(&hosts, START), Err(Reason::NodeUnknown));
        hosts.set_node(START, host(0), false, Takes::Pods);
        assert_eq!(check(&hosts, START), Err(Reason::NodeNotReady));
        assert!(hosts.is_away(&running));
        for (takes, reason) in [
            (Takes::NoneWhileCordoned, Reason::NodeCordoned),
            (Takes::NoneUnderPressure, Reason::NodePressure),
        ] {
            hosts.set_node(START, host(0), true, takes);
            assert_eq!(check(&hosts, START), Err(reason));
        }
        hosts.set_node(START, host(0), true, Takes::Pods);
        assert_eq!(check(&hosts, START), Ok(()));
        assert_eq!(check(&hosts, START - MOMENT), Err(Reason::HostUnheard));
    }
}
