//! What is true: pools, Pods, nodes and hosts, and everybody but the gate who changes them.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use proto::{Digest, HostId, Moment};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rollout::{
    gate::{self, Before, Heartbeat, Mode, OnDeadline, Phase, Place, PodName, PoolId, Template},
    presence::Holdings,
};

use super::{
    Outcome, Scenario, Setup,
    check::Checks,
    fault::Fault,
    office::{Office, Sight, Write},
};

/// Xcode versions that a fleet serves at one time.
const POOLS: usize = 6;
/// Images of a pool: the old one, the new one, and the new one by its digest instead of its tag.
pub(super) const IMAGES: usize = 3;
/// macOS lets a host run two virtual machines.
const PODS_PER_HOST: usize = 2;
/// Room that is left for scale-ups, in per cent.
const FREE_PERCENT: usize = 20;
/// The images change when the cluster has settled.
pub(super) const ROLL_AT: Moment = Moment(1_100_000_000);
const BEGIN: Moment = Moment(1_000_000_000);
/// One Pod's way at its worst: a slot or place that waits for nobody, poll, exit, reconcile, a boot that pulls.
const CYCLE: Duration = Duration::from_secs(330);
/// And once: the slowest staging, the longest job, the longest wait after refused writes.
const SETTLE: Duration = Duration::from_secs(700);
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// What an owner makes is read this often.
const READ_EVERY: Duration = Duration::from_secs(5);

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
    /// Images that are ready there.
    pub(super) holds: BTreeSet<usize>,
    /// The agent speaks to the coordinator from then on; `None`: it is silent.
    pub(super) speaks_from: Option<Moment>,
}

/// Who makes a pool's Pods.
#[derive(Debug)]
pub(super) enum Owner {
    /// Whoever reads the pool: they are made from its image.
    Pool,
    /// Something with an image of its own.
    Template {
        image: usize,
        /// What was read of it last; `Unknown` where nobody may.
        read: Template,
    },
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) image: usize,
    pub(super) owner: Owner,
    /// Its owner makes Pods, and since when that is so.
    pub(super) makes: bool,
    pub(super) makes_since: Moment,
    /// Since when owner and pool mean the same image; `None`: they don't.
    pub(super) agrees_since: Option<Moment>,
    /// Pods that others ended.
    pub(super) ended: u32,
    /// What its status says of the gate's memory: written every few seconds, and read by the next coordinator.
    pub(super) written: Before,
    pub(super) percent: i32,
    pub(super) replicas: i32,
    pub(super) base: i32,
    pub(super) mode: Mode,
    pub(super) heartbeats: bool,
    pub(super) paused: bool,
    /// Its image's digest is known.
    pub(super) resolved: bool,
    pub(super) deadline: Option<Moment>,
    pub(super) on_deadline: OnDeadline,
    /// When Pods left that the gate had let go, and whose successors aren't made yet.
    pub(super) owed: Vec<Moment>,
    /// Pods that others ended, and whose successors aren't made yet: those come first, as far as anybody can tell.
    pub(super) gaps: u32,
}

impl Pool {
    /// What its Pods are made from.
    pub(super) const fn made_from(&self) -> usize {
        match self.owner {
            Owner::Pool => self.image,
            Owner::Template { image, .. } => image,
        }
    }

    /// Whether what it is made from can be read.
    pub(super) const fn is_read(&self) -> bool {
        !matches!(
            self.owner,
            Owner::Template {
                read: Template::Unknown,
                ..
            }
        )
    }

    /// Pool or owner may have changed.
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
    pub(super) heartbeat: Heartbeat,
    pub(super) created: Moment,
    pub(super) version: u64,
    /// It succeeds one that the gate let go, and hasn't been warm.
    pub(super) successor: bool,
    /// The gate let it go.
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

#[derive(Debug)]
pub(super) enum Due {
    Reconcile(usize),
    Read(usize),
    Boot(u32),
    Warm(u32),
    Poll(u32),
    JobDone(u32),
    Exit(u32),
    Removed(u32),
    Staged(usize, usize),
    Look(usize),
    Word {
        term: u64,
        host: usize,
        looked: Moment,
        holds: Holdings,
    },
    Sight(u64, Sight),
    Effect(Write),
    Answer(Write, gate::Outcome),
    Tick(u64),
    Start(u64),
    Other(usize),
    Autoscale(usize),
    Fault(Fault),
    Sample,
}

#[derive(Debug)]
struct Entry {
    at: Moment,
    sequence: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct World {
    pub(super) setup: Setup,
    pub(super) now: Moment,
    rng: ChaCha8Rng,
    sequence: u64,
    due: BinaryHeap<Reverse<Entry>>,
    pub(super) images: Vec<Image>,
    pub(super) hosts: Vec<Host>,
    pub(super) pools: Vec<Pool>,
    pub(super) pods: BTreeMap<u32, Pod>,
    next_uid: u32,
    pub(super) jobs_percent: u64,
    pub(super) office: Office,
    pub(super) checks: Checks,
    /// Nothing happens to the fleet from outside after this.
    pub(super) calm_at: Moment,
    pub(super) outcome: Outcome,
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let mut world = Self {
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
            office: Office::new(setup.gate.clone()),
            checks: Checks::default(),
            calm_at: ROLL_AT,
            outcome: Outcome {
                scenario: setup.scenario.name(),
                seed: setup.seed,
                hosts: setup.hosts,
                pools: POOLS,
                ..Outcome::default()
            },
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        let scenario = self.setup.scenario;
        self.jobs_percent = *self.one_of(&[0, 1, 5]);
        if scenario == Scenario::NoOwner {
            self.jobs_percent = 0;
        }
        for at in 0..POOLS {
            for tag in ["old", "new"] {
                let reference = format!("registry.test/xcode-{at}:{tag}");
                let named = if scenario == Scenario::Retag {
                    "old"
                } else {
                    tag
                };
                let digest = Digest::of(format!("{at} {named}").as_bytes());
                self.images.push(Image { reference, digest });
            }
            let digest = self.images[at * IMAGES + 1].digest;
            let reference = format!("registry.test/xcode-{at}@{digest}");
            self.images.push(Image { reference, digest });
        }
        for at in 0..self.setup.hosts {
            let id = format!("mini-{at}").parse().expect("a host's name");
            self.hosts.push(Host {
                id,
                exists: true,
                ready: true,
                schedulable: true,
                holds: (0..POOLS).map(|at| first_image(scenario, at)).collect(),
                speaks_from: Some(self.now),
            });
            let first = self.between(0, 5_000);
            self.push(first, Due::Look(at));
        }
        let free = match scenario {
            Scenario::Scale | Scenario::Autoscale => 2 * FREE_PERCENT + 5,
            _ => FREE_PERCENT,
        };
        let room = self.setup.hosts * PODS_PER_HOST * (100 - free) / 100;
        let replicas = i32::try_from((room / POOLS).max(1)).unwrap_or(i32::MAX);
        for at in 0..POOLS {
            let percent = match scenario {
                Scenario::CapOne => 5,
                _ => *self.one_of(&[5, 10, 20, 50]),
            };
            let heartbeats = self.below(2) == 0;
            let image = first_image(scenario, at);
            let owner = match scenario {
                Scenario::TemplateLags | Scenario::TemplateLeads | Scenario::TwoSpellings => {
                    let read = match self.below(3) {
                        0 => Template::Unknown,
                        _ => Template::Unread,
                    };
                    let first = self.between(0, 5_000);
                    self.push(first, Due::Read(at));
                    Owner::Template { image, read }
                }
                _ => Owner::Pool,
            };
            self.pools.push(Pool {
                id: PoolId(format!("runners/xcode-{at}")),
                image,
                owner,
                makes: true,
                makes_since: self.now,
                agrees_since: Some(self.now),
                ended: 0,
                written: Before::default(),
                percent,
                replicas,
                base: replicas,
                mode: if scenario == Scenario::Guard {
                    Mode::Guard
                } else {
                    Mode::Own
                },
                heartbeats,
                paused: false,
                resolved: true,
                deadline: None,
                on_deadline: OnDeadline::Hold,
                owed: Vec::new(),
                gaps: 0,
            });
            self.push(Duration::ZERO, Due::Reconcile(at));
        }
        self.push(Duration::ZERO, Due::Start(0));
        self.push(SAMPLE_EVERY, Due::Sample);
        self.plan_faults();
    }

    pub(super) fn run(mut self) -> Outcome {
        loop {
            let slowest = self
                .pools
                .iter()
                .map(|pool| {
                    u32::try_from(pool.replicas)
                        .unwrap_or(0)
                        .div_ceil(gate::cap(pool.percent, pool.replicas))
                })
                .max()
                .unwrap_or(0);
            let bound = self.calm_at + SETTLE + CYCLE * slowest;
            let Some(Reverse(entry)) = self.due.pop() else {
                break;
            };
            self.now = entry.at;
            self.outcome.steps += 1;
            let sampled = matches!(entry.due, Due::Sample);
            let outside = matches!(entry.due, Due::Fault(_) | Due::Autoscale(_));
            self.take(entry.due);
            self.check_places(outside);
            if sampled && self.now > self.calm_at {
                let complete = (0..self.pools.len())
                    .filter(|at| self.is_rolled(*at))
                    .count();
                self.outcome.complete = complete;
                if complete == self.pools.len() || self.now > bound {
                    self.outcome.bound_s = bound.since(ROLL_AT).as_secs();
                    break;
                }
            }
        }
        self.outcome.roll_s = self.now.since(ROLL_AT).as_secs();
        if self.outcome.complete < self.outcome.pools {
            self.say_who_waits();
        }
        self.outcome
    }

    fn take(&mut self, due: Due) {
        match due {
            Due::Reconcile(pool) => {
                self.reconcile(pool);
                let again = self.between(2_000, 8_000);
                self.push(again, Due::Reconcile(pool));
            }
            Due::Read(pool) => {
                self.read_owner(pool);
                self.push(READ_EVERY, Due::Read(pool));
            }
            Due::Boot(uid) => self.boot(uid),
            Due::Warm(uid) => self.warm_up(uid),
            Due::Poll(uid) => self.poll(uid),
            Due::JobDone(uid) => self.job_done(uid),
            Due::Exit(uid) => self.end(uid),
            Due::Removed(uid) => self.remove(uid),
            Due::Staged(host, image) => {
                self.hosts[host].holds.insert(image);
            }
            Due::Look(host) => self.look(host),
            Due::Word {
                term,
                host,
                looked,
                holds,
            } => self.hear(term, host, looked, holds),
            Due::Sight(term, sight) => self.see(term, sight),
            Due::Effect(write) => self.effect(write),
            Due::Answer(write, outcome) => self.answer(&write, outcome),
            Due::Tick(term) => self.tick(term),
            Due::Start(term) => self.start(term),
            Due::Other(pool) => {
                self.other_controller(pool);
                let again = self.between(4_000, 10_000);
                self.push(again, Due::Other(pool));
            }
            Due::Autoscale(pool) => self.autoscale(pool),
            Due::Fault(fault) => self.fault(fault),
            Due::Sample => {
                self.sample();
                self.write_statuses();
                self.push(SAMPLE_EVERY, Due::Sample);
            }
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

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).unwrap_or(0)]
    }

    /// A time between these, in milliseconds; a little apart from others.
    pub(super) fn between(&mut self, least_ms: u64, most_ms: u64) -> Duration {
        Duration::from_micros(least_ms * 1_000 + self.below((most_ms - least_ms) * 1_000))
    }

    // ---- Pods -------------------------------------------------------------------------------------------------------

    pub(super) fn facts(&self, uid: u32, pod: &Pod) -> gate::Pod {
        gate::Pod {
            pool: self.pools[pod.pool].id.clone(),
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
            heartbeat: pod.heartbeat,
            created_unix_s: i64::try_from(pod.created.since(Moment::START).as_secs())
                .unwrap_or(i64::MAX),
            // the office knows when it saw it first
            seen: Moment::START,
        }
    }

    pub(super) fn rule(&self, at: usize) -> gate::Pool {
        let pool = &self.pools[at];
        gate::Pool {
            image: self.images[pool.image].reference.clone(),
            digest: pool.resolved.then_some(self.images[pool.image].digest),
            mode: pool.mode,
            percent: pool.percent,
            replicas: pool.replicas,
            template: match &pool.owner {
                Owner::Pool => Template::Image(self.images[pool.image].reference.clone()),
                Owner::Template { read, .. } => read.clone(),
            },
            hosts: self
                .hosts
                .iter()
                .filter(|host| host.exists)
                .map(|host| host.id.clone())
                .collect(),
            paused: pool.paused,
            deadline: pool.deadline,
            on_deadline: pool.on_deadline,
        }
    }

    /// The Pod is another than before: its version is, and watches see it.
    pub(super) fn changed(&mut self, uid: u32) {
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.version += 1;
            let pod = pod.clone();
            let facts = self.facts(uid, &pod);
            self.show(Sight::Pod(uid, pod.version, facts));
        }
    }

    pub(super) fn remove(&mut self, uid: u32) {
        if let Some(pod) = self.pods.remove(&uid) {
            self.left(&pod);
            self.show(Sight::PodGone(uid));
        }
    }

    /// A Pod that lived till now doesn't any more. One that became current after it was labelled ended by itself.
    fn left(&mut self, pod: &Pod) {
        let stale = pod.image != self.pools[pod.pool].image;
        let let_go = pod.admitted && (stale || !pod.labelled);
        let pool = &mut self.pools[pod.pool];
        match pod.alive() {
            true if let_go || pod.successor => pool.owed.push(self.now),
            true => pool.gaps += 1,
            false => {}
        }
    }

    pub(super) fn end(&mut self, uid: u32) {
        let Some(pod) = self.pods.get(&uid).cloned() else {
            return;
        };
        self.left(&pod);
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.phase = Phase::Ended;
        }
        self.changed(uid);
    }

    pub(super) fn delete(&mut self, uid: u32) {
        let Some(pod) = self.pods.get(&uid).cloned() else {
            return;
        };
        self.left(&pod);
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.deleting = true;
        }
        self.changed(uid);
        let takes = self.between(100, 3_000);
        self.push(takes, Due::Removed(uid));
    }

    // ---- the pools' own controller, and the scheduler -----------------------------------------------------------------

    fn reconcile(&mut self, at: usize) {
        let ended: Vec<u32> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.pool == at && pod.phase == Phase::Ended && !pod.deleting)
            .map(|(uid, _)| *uid)
            .collect();
        for uid in ended {
            self.remove(uid);
        }
        let mut alive: Vec<(bool, bool, Moment, u32)> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.pool == at && pod.alive())
            .map(|(uid, pod)| (pod.busy, pod.phase == Phase::Running, pod.created, *uid))
            .collect();
        alive.sort_unstable();
        let wanted = usize::try_from(self.pools[at].replicas).unwrap_or(0);
        if self.pools[at].makes {
            for _ in alive.len()..wanted {
                self.create(at);
            }
            // it has all that it shall have
            self.pools[at].owed.clear();
            self.pools[at].gaps = 0;
        }
        for (busy, _, _, uid) in alive.iter().take(alive.len().saturating_sub(wanted)) {
            if !busy {
                // the pool wants none in its place
                if let Some(pod) = self.pods.get_mut(uid) {
                    (pod.admitted, pod.successor) = (false, false);
                }
                self.delete(*uid);
            }
        }
        self.schedule();
    }

    fn create(&mut self, at: usize) {
        let uid = self.next_uid;
        self.next_uid += 1;
        let pool = &mut self.pools[at];
        let fills = pool.gaps > 0;
        pool.gaps = pool.gaps.saturating_sub(1);
        let successor = !fills && !pool.owed.is_empty();
        if successor {
            pool.owed.remove(0);
        }
        let image = pool.made_from();
        self.pods.insert(
            uid,
            Pod {
                pool: at,
                image,
                host: None,
                phase: Phase::Pending,
                deleting: false,
                labelled: false,
                busy: false,
                exiting: false,
                heartbeat: Heartbeat::Absent,
                created: self.now,
                version: 0,
                successor,
                admitted: false,
            },
        );
        self.changed(uid);
    }

    fn schedule(&mut self) {
        let waiting: Vec<u32> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.alive() && pod.host.is_none())
            .map(|(uid, _)| *uid)
            .collect();
        for uid in waiting {
            let image = self.pods[&uid].image;
            let mut used = vec![0; self.hosts.len()];
            for host in self.pods.values().filter_map(|pod| pod.host) {
                used[host] += 1;
            }
            let turn = usize::try_from(self.below(self.hosts.len() as u64)).unwrap_or(0);
            let many = self.hosts.len();
            let chosen = (0..many)
                .map(|at| (at + turn) % many)
                .filter(|at| {
                    let host = &self.hosts[*at];
                    host.exists && host.ready && host.schedulable && used[*at] < PODS_PER_HOST
                })
                .min_by_key(|at| (!self.hosts[*at].holds.contains(&image), used[*at]));
            let Some(chosen) = chosen else {
                return;
            };
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.host = Some(chosen);
            }
            self.changed(uid);
            let takes = if self.hosts[chosen].holds.contains(&image) {
                self.between(15_000, 30_000)
            } else {
                self.between(120_000, 200_000)
            };
            self.push(takes, Due::Boot(uid));
        }
    }

    /// The coordinator reads what a pool's owner makes.
    fn read_owner(&mut self, at: usize) {
        let pool = &mut self.pools[at];
        let Owner::Template { image, read } = &mut pool.owner else {
            return;
        };
        if *read == Template::Unknown {
            return;
        }
        let fresh = Template::Image(self.images[*image].reference.clone());
        if *read != fresh {
            *read = fresh;
            self.show_pool(at);
        }
    }

    /// What the next coordinator would read in the statuses.
    fn write_statuses(&mut self) {
        if !self.office.up || self.office.synced_at.is_none() {
            return;
        }
        for pool in &mut self.pools {
            if let Some(status) = self.office.gate.status(&pool.id) {
                pool.written = Before {
                    awaited: status.awaited,
                    lags: status.lag.is_some_and(|lag| !lag.said),
                };
            }
        }
    }

    // ---- the node agent that runs Pods --------------------------------------------------------------------------------

    fn boot(&mut self, uid: u32) {
        let Some((pod, host)) = self.pods.get(&uid).and_then(|pod| Some((pod, pod.host?))) else {
            return;
        };
        if !pod.alive() {
            return;
        }
        if !self.hosts[host].ready {
            let later = self.between(10_000, 11_000);
            self.push(later, Due::Boot(uid));
            return;
        }
        let (image, pool) = (pod.image, pod.pool);
        // where it had to be pulled, it is there now
        self.hosts[host].holds.insert(image);
        let heartbeats = self.pools[pool].heartbeats;
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.phase = Phase::Running;
            pod.heartbeat = if heartbeats {
                Heartbeat::Other
            } else {
                Heartbeat::Absent
            };
            pod.successor &= heartbeats;
        }
        self.changed(uid);
        let takes = self.between(2_000, 8_000);
        self.push(takes, Due::Warm(uid));
    }

    fn warm_up(&mut self, uid: u32) {
        let now = self.now;
        let Some(pod) = self.pods.get_mut(&uid).filter(|pod| pod.alive()) else {
            return;
        };
        pod.successor = false;
        if self.pools[pod.pool].heartbeats {
            pod.heartbeat = Heartbeat::Polling(now);
            self.changed(uid);
        }
        self.push(Duration::ZERO, Due::Poll(uid));
    }

    // ---- the dispatcher -------------------------------------------------------------------------------------------------

    fn poll(&mut self, uid: u32) {
        let now = self.now;
        let Some(pod) = self.pods.get(&uid).filter(|pod| pod.alive()).cloned() else {
            return;
        };
        let again = self.between(8_000, 15_000);
        if !pod.host.is_some_and(|host| self.hosts[host].ready) {
            self.push(again, Due::Poll(uid));
            return;
        }
        if pod.labelled && pod.image != self.pools[pod.pool].image {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.exiting = true;
            }
            let takes = self.between(1_000, 4_000);
            self.push(takes, Due::Exit(uid));
            return;
        }
        if self.below(100) < self.jobs_percent {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.busy = true;
                if pod.heartbeat != Heartbeat::Absent {
                    pod.heartbeat = Heartbeat::Other;
                }
            }
            self.changed(uid);
            let takes = self.between(20_000, 240_000);
            self.push(takes, Due::JobDone(uid));
            return;
        }
        if matches!(pod.heartbeat, Heartbeat::Polling(at) if now.since(at) > Duration::from_mins(1))
        {
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.heartbeat = Heartbeat::Polling(now);
            }
            self.changed(uid);
        }
        self.push(again, Due::Poll(uid));
    }

    /// A runner serves one job; its successor is made at once.
    fn job_done(&mut self, uid: u32) {
        let Some(pool) = self.pods.get(&uid).map(|pod| pod.pool) else {
            return;
        };
        self.end(uid);
        self.remove(uid);
        let alive = self
            .pods
            .values()
            .filter(|pod| pod.pool == pool && pod.alive())
            .count();
        if self.pools[pool].makes && alive < usize::try_from(self.pools[pool].replicas).unwrap_or(0)
        {
            self.create(pool);
        }
        self.schedule();
    }

    // ---- agents ---------------------------------------------------------------------------------------------------------

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

    fn look(&mut self, host: usize) {
        self.push(Duration::from_secs(5), Due::Look(host));
        if !self.office.up
            || self.hosts[host]
                .speaks_from
                .is_none_or(|from| from > self.now)
        {
            return;
        }
        let delay = match self.below(20) {
            0 => self.between(1_000, 4_500),
            _ => self.between(1, 200),
        };
        let word = Due::Word {
            term: self.office.term,
            host,
            looked: self.now,
            holds: self.holdings(host),
        };
        self.push(delay, word);
    }
}

/// What a pool runs at first.
const fn first_image(scenario: Scenario, pool: usize) -> usize {
    match scenario {
        // half of them have rolled before
        Scenario::TwoSpellings => pool * IMAGES + pool % 2,
        _ => pool * IMAGES,
    }
}
