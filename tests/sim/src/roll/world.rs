//! The true state of the world: pools, Pods, nodes and hosts, and the events that change them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use proto::{Digest, HostId, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rollout::{
    gate::{self, Before, Heartbeat, Mode, OnDeadline, Phase, Place, PodName, PrePullId, Template},
    presence::Holdings,
};

use super::{
    Outcome, Setup,
    due::{Due, Fault},
    office::Office,
    tally::Tally,
};
use crate::entry::Entry;

/// The number of pools: a fleet serves so many Xcode versions at one time.
pub(super) const POOLS: usize = 6;
/// The images of a pool: the old one, the new one, and the new one by its digest instead of its tag.
pub(super) const IMAGES: usize = 3;
/// The most Pods on a host, because macOS lets a host run two virtual machines.
pub(super) const PODS_PER_HOST: usize = 2;
/// The pool whose Pods aren't runners, where other controllers look at Pods: whoever reserves hosts leaves them alone.
pub(super) const PLAIN: usize = POOLS - 1;
/// When the images change: 100 s after the beginning, when the cluster has settled.
pub(super) const ROLL_AT: Moment = Moment(1_100_000_000);
pub(super) const BEGIN: Moment = Moment(1_000_000_000);

#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) reference: String,
    pub(super) digest: Digest,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) exists: bool,
    pub(super) ready: bool,
    pub(super) schedulable: bool,
    /// The pool that the host is reserved for.
    pub(super) reserved: Option<usize>,
    /// The images that are ready on the host.
    pub(super) holds: BTreeSet<usize>,
    /// When the agent starts to report to the coordinator. `None` while the agent is silent.
    pub(super) speaks_from: Option<Moment>,
}

/// The owner that makes a pool's Pods.
#[derive(Debug)]
pub(super) enum Owner {
    /// The RunnerPool itself: its controller reads it, so it makes Pods of the pool's image.
    RunnerPool,
    /// A controller with an image of its own.
    Template {
        image: usize,
        /// The last image that was read from the owner. `Unknown` where nobody may read the owner.
        read: Template,
    },
}

/// A RunnerPool, and the pre-pull that gates its Pods.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) prepull: PrePullId,
    pub(super) image: usize,
    pub(super) owner: Owner,
    /// Whether the pool's owner makes Pods, and since when.
    pub(super) makes: bool,
    pub(super) makes_since: Moment,
    /// Since when owner and pool have had the same image. `None` while they don't.
    pub(super) agrees_since: Option<Moment>,
    /// The number of Pods that outside events ended.
    pub(super) ended: u32,
    /// The gate's memory in the status of the pool's pre-pull. It is written every few seconds and read by the next
    /// coordinator.
    pub(super) written: Before,
    pub(super) percent: i32,
    pub(super) replicas: i32,
    pub(super) base: i32,
    pub(super) mode: Mode,
    pub(super) heartbeats: bool,
    pub(super) paused: bool,
    /// Whether the digest of the pool's image is known.
    pub(super) resolved: bool,
    pub(super) deadline: Option<Moment>,
    pub(super) on_deadline: OnDeadline,
    /// When Pods left that the gate had let go and whose successors aren't made yet.
    pub(super) owed: Vec<Moment>,
    /// The number of Pods that others ended and whose successors aren't made yet. These successors count as made first,
    /// because nobody can tell successors apart.
    pub(super) gaps: u32,
    /// Pods that other controllers deleted outside of the cap and whose successors aren't made yet.
    pub(super) reaped: Vec<Reaped>,
}

/// A Pod that another controller deleted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reaped {
    pub(super) uid: u32,
    /// When its finalizer let go of it.
    pub(super) gone: Option<Moment>,
}

impl Pool {
    /// The image that the pool's Pods are made from.
    pub(super) const fn made_from(&self) -> usize {
        match self.owner {
            Owner::RunnerPool => self.image,
            Owner::Template { image, .. } => image,
        }
    }

    /// Whether the coordinator may read what the owner makes.
    pub(super) const fn is_read(&self) -> bool {
        !matches!(
            self.owner,
            Owner::Template {
                read: Template::Unknown,
                ..
            }
        )
    }

    /// Compares pool and owner after a change of either.
    pub(super) fn compare(&mut self, now: Moment) {
        if self.made_from() == self.image {
            self.agrees_since.get_or_insert(now);
        } else {
            self.agrees_since = None;
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) pool: usize,
    pub(super) image: usize,
    pub(super) host: Option<usize>,
    pub(super) phase: Phase,
    pub(super) deleting: bool,
    pub(super) labelled: bool,
    pub(super) busy: bool,
    pub(super) exiting: bool,
    /// An operator drains the Pod.
    pub(super) operator_drain: bool,
    pub(super) heartbeat: Heartbeat,
    pub(super) created: Moment,
    pub(super) version: u64,
    /// The Pod succeeds one that the gate let go, and hasn't been warm yet.
    pub(super) successor: bool,
    /// The gate let the Pod go.
    pub(super) admitted: bool,
}

impl Pod {
    pub(super) fn alive(&self) -> bool {
        !self.deleting && self.phase != Phase::Ended
    }

    pub(super) fn warm(&self, now: Moment) -> bool {
        self.phase == Phase::Running
            && match self.heartbeat {
                Heartbeat::Absent => true,
                Heartbeat::Polling(at) => now.since(at) < Duration::from_mins(5),
                Heartbeat::Other => false,
            }
    }
}

/// The whole state of one run.
#[derive(Debug)]
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) now: Moment,
    rng: ChaCha8Rng,
    sequence: u64,
    pub(super) due: BinaryHeap<Reverse<Entry<Moment, Due>>>,
    pub(super) images: Vec<Image>,
    pub(super) hosts: Vec<Host>,
    pub(super) pools: Vec<Pool>,
    pub(super) pods: BTreeMap<u32, Pod>,
    pub(super) next_uid: u32,
    pub(super) jobs_percent: u64,
    /// The most Pods of the whole fleet that may be started at one time.
    pub(super) fleet_cap: Option<u32>,
    pub(super) office: Office,
    pub(super) tally: Tally,
    /// No outside event happens to the fleet after this moment.
    pub(super) calm_at: Moment,
    pub(super) outcome: Outcome,
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            setup: setup.clone(),
            now: BEGIN,
            rng: ChaCha8Rng::seed_from_u64(setup.seed),
            sequence: 0,
            due: BinaryHeap::new(),
            images: Vec::new(),
            hosts: Vec::new(),
            pools: Vec::new(),
            pods: BTreeMap::new(),
            next_uid: 0,
            jobs_percent: 0,
            fleet_cap: None,
            office: Office::new(setup.gate.clone()),
            tally: Tally::default(),
            calm_at: ROLL_AT,
            outcome: Outcome {
                scenario: setup.scenario.name(),
                seed: setup.seed,
                hosts: setup.hosts,
                pools: POOLS,
                ..Outcome::default()
            },
        }
    }

    pub(super) fn push(&mut self, after: Duration, due: Due) {
        self.push_at(self.now + after, due);
    }

    pub(super) fn push_at(&mut self, at: Moment, due: Due) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.due.push(Reverse(Entry { at, sequence, due }));
    }

    /// A random number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap_or(0)]
    }

    /// A random time between these two, in milliseconds. Microseconds are random too, so that events rarely coincide.
    pub(super) fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_micros(least_ms * 1_000 + self.below((most_ms - least_ms) * 1_000))
    }

    pub(super) fn facts(&self, uid: u32, pod: &Pod) -> gate::Pod {
        gate::Pod {
            prepull: self.pools[pod.pool].prepull.clone(),
            name: PodName {
                namespace: "runners".into(),
                name: format!("pod-{uid}"),
            },
            image: self.images[pod.image].reference.clone(),
            place: pod.host.map_or(Place::Unscheduled, |host| {
                Place::On(self.hosts[host].id.clone())
            }),
            phase: pod.phase,
            deleting: pod.deleting,
            labelled: pod.labelled,
            busy: pod.busy,
            operator_drain: pod.operator_drain,
            heartbeat: pod.heartbeat,
            created_unix_s: i64::try_from(pod.created.since(Moment::START).as_secs())
                .unwrap_or(i64::MAX),
            // the office fills this in with the time when it first saw the Pod
            seen: Moment::START,
        }
    }

    pub(super) fn rule(&self, at: usize) -> gate::PrePull {
        let pool = &self.pools[at];
        gate::PrePull {
            image: self.images[pool.image].reference.clone(),
            digest: pool.resolved.then_some(self.images[pool.image].digest),
            mode: pool.mode,
            percent: pool.percent,
            replicas: pool.replicas,
            template: match &pool.owner {
                Owner::RunnerPool => Template::Image(self.images[pool.image].reference.clone()),
                Owner::Template { read, .. } => read.clone(),
            },
            hosts: self
                .hosts
                .iter()
                .filter(|host| host.exists)
                .map(|host| host.id.clone())
                .collect(),
            reserved: self
                .hosts
                .iter()
                .filter(|host| host.reserved.is_some_and(|pool| pool != at))
                .map(|host| host.id.clone())
                .collect(),
            fleet: self.fleet_cap.map(|most| gate::Fleet {
                name: "fleet".into(),
                // one pool says less than the others
                most: Some(if at == 0 { most } else { most + 1 }),
            }),
            paused: pool.paused,
            deadline: pool.deadline,
            on_deadline: pool.on_deadline,
        }
    }

    pub(super) fn holdings(&self, host: usize) -> Holdings {
        let mut holdings = Holdings::new();
        for image in &self.hosts[host].holds {
            let image = &self.images[*image];
            holdings
                .entry(image.digest)
                .or_default()
                .insert(image.reference.clone());
        }
        holdings
    }

    pub(super) fn is_guarded(&self, at: usize) -> bool {
        self.pools[at].mode == Mode::Guard
    }

    pub(super) fn plan(&mut self, at: Moment, fault: Fault) {
        self.calm_at = self.calm_at.max(at);
        self.push_at(at, Due::Fault(fault));
    }

    pub(super) fn violated(&mut self, kind: &str, what: impl FnOnce() -> String) {
        *self.outcome.violations.entry(kind.to_owned()).or_default() += 1;
        if !self.outcome.first.contains_key(kind) {
            let text = format!("at {}: {}", self.now, what());
            self.outcome.first.insert(kind.to_owned(), text);
        }
    }
}
