//! Promises: what is true, and what was told, against what the gate wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::Moment;
use rollout::gate::{self, Heartbeat, OnDeadline, Phase, Place, Reason, Template, Verdict, cap};

use super::{
    office::{Change, pod_id},
    world::{ROLL_AT, World},
};

/// How old a host's word may be: the promise, not the gate's setting.
const WORD_MOST: Duration = Duration::from_secs(30);
/// A label that has to go is gone after this long: one look, and the longest wait after refused writes.
const LABEL_LEFT: Duration = Duration::from_secs(90);
/// Where nothing is in flight and a Pod could go, one goes within this: four writes in a row that are lost take 140 s.
const IDLE_MOST: Duration = Duration::from_secs(180);
/// An owner that makes Pods makes a successor within this time, and that is told.
const MADE_WITHIN: Duration = Duration::from_secs(20);
/// Owner and pool mean the same image, and the gate knows it: it was read, or the time is over in which an owner that
/// can't be read may not have heard.
const AGREED_WITHIN: Duration = Duration::from_secs(75);
/// A write that the other controller was let do is under way for so long.
const UNDER_WAY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Checks {
    /// Since when a label has to go, or nothing goes where something could.
    lost: BTreeMap<u32, Moment>,
    current: BTreeMap<u32, Moment>,
    idle: BTreeMap<usize, Moment>,
    /// Pods that could go at the last look.
    open: BTreeSet<u32>,
    /// What the other controller was let do, and until when it may be under way.
    granted: BTreeMap<u32, Moment>,
    /// The most that may be taken of each pool: its cap, and what lies above it by outside events.
    allowed: BTreeMap<usize, u32>,
    /// Pods of each pool that were let go since its owner disagrees.
    spent: BTreeMap<usize, u32>,
}

impl Checks {
    pub(super) fn forget(&mut self) {
        *self = Self {
            allowed: std::mem::take(&mut self.allowed),
            spent: std::mem::take(&mut self.spent),
            ..Self::default()
        };
    }
}

impl World {
    pub(super) fn violated(&mut self, kind: &str, what: impl FnOnce() -> String) {
        *self.outcome.violations.entry(kind.to_owned()).or_default() += 1;
        if !self.outcome.first.contains_key(kind) {
            let text = format!("at {}: {}", self.now, what());
            self.outcome.first.insert(kind.to_owned(), text);
        }
    }

    /// What the gate decided, at the moment when it did.
    pub(super) fn check_write(&mut self, uid: u32, change: Change) {
        self.checks.open.remove(&uid);
        let Some((_, facts)) = self.office.pods.get(&uid).cloned() else {
            return self.violated("a Pod that nobody told of was decided about", || {
                format!("uid {uid}")
            });
        };
        let at = self
            .pools
            .iter()
            .position(|pool| pool.id == facts.pool)
            .expect("a Pod of a pool");
        if self.office.synced_at.is_none() {
            self.violated("a write before everything is known", || {
                format!("uid {uid}")
            });
        }
        if facts.busy || facts.deleting || facts.phase == Phase::Ended {
            self.violated("a Pod that is busy or gone was decided about", || {
                format!("{facts:?}")
            });
        }
        let Some(rule) = self.office.pools.get(&at).cloned() else {
            return self.violated("a pool that nobody told of was decided about", || {
                format!("pool {at}")
            });
        };
        let stale = facts.image != rule.image;
        // where the deadline says so, a Pod may go whatever its host holds
        let fresh = self.is_fresh(at, &facts.place) || self.proceeds(at);
        match change {
            Change::Unlabel => {
                if self.is_guarded(at) {
                    self.violated("a label of another controller was taken back", || {
                        format!("uid {uid}")
                    });
                }
                if !facts.labelled || (stale && fresh) {
                    self.violated("a label was taken back without need", || {
                        format!("{facts:?}")
                    });
                }
                return;
            }
            Change::Label if facts.phase != Phase::Running || facts.labelled => {
                self.violated("a Pod was labelled that isn't to be", || {
                    format!("{facts:?}")
                });
            }
            Change::Reap if facts.phase != Phase::Pending => {
                self.violated("a Pod was reaped that isn't Pending", || {
                    format!("{facts:?}")
                });
            }
            Change::Label | Change::Reap => {}
        }
        if !stale {
            self.violated("a current Pod was let go", || format!("{facts:?}"));
        }
        self.check_owner(at, &rule, &facts);
        if rule.paused {
            self.violated("a Pod was let go while its pool is paused", || {
                format!("{facts:?}")
            });
        }
        match &facts.place {
            Place::On(host) => {
                if !fresh {
                    self.violated(
                        "a Pod was let go where the image isn't, by a young word",
                        || format!("{facts:?}"),
                    );
                }
                if self.office.nodes.get(host) != Some(&(true, true)) {
                    self.violated("a Pod was let go on a node that isn't usable", || {
                        format!("{facts:?}")
                    });
                }
            }
            Place::Unscheduled | Place::Elsewhere => {
                let (have, usable) = self.hosts_of(at);
                let few = (have == 0 || have * 2 < usable) && !self.proceeds(at);
                if change == Change::Label || few {
                    self.violated(
                        "a Pod without a node was let go, and too few hosts hold the image",
                        || format!("{facts:?}"),
                    );
                }
            }
        }
        if self.is_guarded(at) {
            self.checks.granted.insert(uid, self.now + UNDER_WAY);
        }
        let most = cap(rule.percent, rule.replicas);
        let flying = self.in_flight_known(at, uid);
        if flying + 1 > most {
            self.violated("more in flight than the cap", || {
                format!("pool {at}: {} after uid {uid}, cap {most}", flying + 1)
            });
        }
    }

    /// Nothing is let go that would come back stale, as the owner says.
    fn check_owner(&mut self, at: usize, rule: &gate::Pool, facts: &gate::Pod) {
        let says = match &rule.template {
            Template::Image(image) => *image != rule.image,
            Template::Unread => true,
            Template::Unknown => false,
        };
        if self.disagrees(at) && says {
            self.violated("a Pod was let go whose owner says another image", || {
                format!("{facts:?}")
            });
        }
    }

    /// Whether this pool's owner makes other Pods than the pool, as the gate was told, shall have.
    fn disagrees(&self, at: usize) -> bool {
        let pool = &self.pools[at];
        let told = self.office.pools.get(&at);
        pool.agrees_since.is_none()
            && told.is_some_and(|told| told.image == self.images[pool.image].reference)
    }

    /// A write took effect: this Pod drains, or was deleted.
    pub(super) fn check_effect(&mut self, uid: u32) {
        let Some(at) = self.pods.get(&uid).map(|pod| pod.pool) else {
            return;
        };
        if !self.disagrees(at) {
            self.checks.spent.remove(&at);
            return;
        }
        // an owner that may not have heard is given a second chance, and no third
        let pool = &self.pools[at];
        let most = 2 * cap(pool.percent, pool.replicas);
        let spent = self.checks.spent.entry(at).or_default();
        *spent += 1;
        let spent = *spent;
        if spent > most {
            self.violated("Pods went on being let go under an owner that lags", || {
                format!("pool {at}: {spent}")
            });
        }
    }

    /// Pods that the gate took and that no warm Pod replaces: those that may drain, those that left, those that came.
    fn taken(&self, at: usize) -> u32 {
        let pool = &self.pools[at];
        let told = self.office.pools.get(&at);
        let wanted = told.map_or(pool.replicas, |told| told.replicas.max(pool.replicas));
        let (mut taken, mut alive) = (0_usize, 0_usize);
        for pod in self
            .pods
            .values()
            .filter(|pod| pod.pool == at && pod.alive())
        {
            alive += 1;
            let drains = pod.admitted && pod.labelled && pod.image != pool.image;
            taken += usize::from(drains || pod.successor);
        }
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let owed = pool.owed.len().min(wanted.saturating_sub(alive));
        u32::try_from(taken + owed).unwrap_or(u32::MAX)
    }

    /// The invariant of every step: no more Pods are taken than the cap, but by what happened outside.
    pub(super) fn check_places(&mut self, outside: bool) {
        for at in 0..self.pools.len() {
            let pool = &self.pools[at];
            let told = self.office.pools.get(&at);
            let most = cap(pool.percent, pool.replicas)
                .max(told.map_or(0, |told| cap(told.percent, told.replicas)));
            let taken = self.taken(at);
            self.outcome.most_taken = self.outcome.most_taken.max(taken);
            let allowed = self.checks.allowed.get(&at).copied().unwrap_or(0).max(most);
            if taken > allowed && !outside {
                self.violated("more Pods are taken than the cap, and not replaced", || {
                    format!("pool {at}: {taken}, cap {most}")
                });
            }
            // what was decided before the cap fell takes effect after it
            let may_follow = self.under_way(at);
            let allowed = match outside {
                true => taken + may_follow,
                false => allowed.min(taken + may_follow),
            };
            self.checks.allowed.insert(at, allowed.max(most));
            self.check_warm(at, most);
        }
    }

    /// Writes by which the gate takes Pods of this pool, and which aren't answered.
    fn under_way(&self, at: usize) -> u32 {
        let pods = self.office.writes.iter().filter(|(uid, change)| {
            **change != Change::Unlabel && self.pods.get(uid).is_some_and(|pod| pod.pool == at)
        });
        u32::try_from(pods.count()).unwrap_or(u32::MAX)
    }

    /// Where nobody else takes Pods, as many are warm as replicas but for the cap.
    fn check_warm(&mut self, at: usize, cap: u32) {
        let quiet = self.setup.scenario.is_quiet() && self.jobs_percent == 0;
        if !quiet || self.now < ROLL_AT {
            return;
        }
        let pool = &self.pools[at];
        let warm = self
            .pods
            .values()
            .filter(|pod| pod.pool == at && pod.alive() && pod.warm(self.now))
            .count();
        let least = i64::from(pool.replicas) - i64::from(cap) - i64::from(pool.ended);
        if i64::try_from(warm).unwrap_or(0) < least {
            self.violated("fewer Pods are warm than replicas but for the cap", || {
                format!("pool {at}: {warm}, least {least}")
            });
        }
    }

    /// Whether the gate has a reason to think that this pool's owner makes Pods of another image.
    fn may_lag(&self, at: usize) -> bool {
        let pool = &self.pools[at];
        let differs = self
            .office
            .pools
            .get(&at)
            .is_none_or(|told| told.image != self.images[pool.image].reference);
        // who can't read it learns of it from a Pod, for which somebody has to see to it
        let shown = pool.is_read() || self.now > self.calm_at;
        differs
            || !shown
            || pool
                .agrees_since
                .is_none_or(|since| self.now.since(since.max(self.calm_of(at))) < AGREED_WITHIN)
    }

    /// When it was last changed from outside in a way that starts the owner's time anew.
    fn calm_of(&self, at: usize) -> Moment {
        match self.pools[at].is_read() {
            true => Moment::START,
            false => self.calm_at,
        }
    }

    /// Whether the gate may miss successors.
    fn may_miss(&self, at: usize) -> bool {
        let pool = &self.pools[at];
        !pool.makes || self.now.since(pool.makes_since) < MADE_WITHIN
    }

    /// Whether the host's last word is young and says that the pool's image is there.
    fn is_fresh(&self, at: usize, place: &Place) -> bool {
        let Place::On(host) = place else {
            return false;
        };
        let Some(rule) = self.office.pools.get(&at) else {
            return false;
        };
        self.office.words.get(host).is_some_and(|(looked, holds)| {
            self.now.since(*looked) <= WORD_MOST
                && rule
                    .digest
                    .and_then(|digest| holds.get(&digest))
                    .is_some_and(|names| names.contains(&rule.image))
        })
    }

    fn proceeds(&self, at: usize) -> bool {
        self.office.pools.get(&at).is_some_and(|rule| {
            rule.on_deadline == OnDeadline::Proceed
                && rule.deadline.is_some_and(|at| at <= self.now)
        })
    }

    fn hosts_of(&self, at: usize) -> (usize, usize) {
        let Some(rule) = self.office.pools.get(&at) else {
            return (0, 0);
        };
        let usable: Vec<_> = rule
            .hosts
            .iter()
            .filter(|host| self.office.nodes.get(*host) == Some(&(true, true)))
            .collect();
        let have = usable
            .iter()
            .filter(|host| self.is_fresh(at, &Place::On((**host).clone())))
            .count();
        (have, usable.len())
    }

    /// What is truly in flight and the gate can know of, without `but`: labels and deletions that took effect or may
    /// still do so, successors of Pods that it let go, made or not, and other Pods that start, once they were told.
    fn in_flight_known(&self, at: usize, but: u32) -> u32 {
        let Some(rule) = self.office.pools.get(&at) else {
            return 0;
        };
        let (mut flying, mut alive) = (0_usize, 0_usize);
        for (uid, pod) in self
            .pods
            .iter()
            .filter(|(_, pod)| pod.pool == at && pod.alive())
        {
            alive += 1;
            let told = self.office.pods.get(uid);
            let under_way = match self.office.writes.get(uid) {
                Some(Change::Label | Change::Reap) => true,
                Some(Change::Unlabel) => false,
                None => self
                    .checks
                    .granted
                    .get(uid)
                    .is_some_and(|until| *until > self.now),
            };
            let counts = if self.images[pod.image].reference == rule.image {
                let known = pod.successor || told.is_some();
                // one that is warm again or works now may not have been told
                known && !pod.busy && !pod.warm(self.now)
            } else {
                let labelled =
                    pod.labelled && (pod.admitted || told.is_some_and(|(_, facts)| facts.labelled));
                labelled || under_way
            };
            flying += usize::from(counts && *uid != but);
        }
        let owed = self.pools[at].owed.len();
        let wanted = usize::try_from(self.pools[at].replicas.min(rule.replicas)).unwrap_or(0);
        u32::try_from(flying + owed.min(wanted.saturating_sub(alive))).unwrap_or(u32::MAX)
    }

    /// What is in flight to the letter, as things truly are.
    fn in_flight(&self, at: usize) -> u32 {
        let pool = &self.pools[at];
        let pods = || {
            self.pods
                .values()
                .filter(|pod| pod.pool == at && pod.alive())
        };
        let rolling = pods().any(|pod| pod.image != pool.image);
        let many = pods()
            .filter(|pod| {
                if pod.image == pool.image {
                    rolling && !pod.busy && !pod.warm(self.now)
                } else {
                    pod.labelled
                }
            })
            .count();
        u32::try_from(many).unwrap_or(u32::MAX)
    }

    pub(super) fn sample(&mut self) {
        for at in 0..self.pools.len() {
            let pool = &self.pools[at];
            let flying = self.in_flight(at);
            let over = flying.saturating_sub(cap(pool.percent, pool.replicas));
            self.outcome.most_in_flight = self.outcome.most_in_flight.max(flying);
            self.outcome.most_over_cap = self.outcome.most_over_cap.max(over);
        }
        let Some(synced_at) = self.office.synced_at.filter(|_| self.office.up) else {
            return;
        };
        for at in 0..self.pools.len() {
            if !self.is_guarded(at) {
                self.sample_labels(at);
            }
            self.sample_progress(at, synced_at);
        }
    }

    /// Labels that have to go are gone within a bound.
    fn sample_labels(&mut self, at: usize) {
        let Some(rule) = self.office.pools.get(&at).cloned() else {
            return;
        };
        let labelled: Vec<(u32, bool, bool)> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                pod.pool == at && pod.alive() && pod.labelled && !pod.busy && !pod.exiting
            })
            .filter_map(|(uid, _)| {
                let (_, facts) = self.office.pods.get(uid)?;
                let stale = facts.image != rule.image;
                let fresh = self.is_fresh(at, &facts.place) || self.proceeds(at);
                Some((*uid, stale, fresh))
            })
            .collect();
        let now = self.now;
        for (uid, stale, fresh) in labelled {
            for (wrong, current) in [(stale && !fresh, false), (!stale, true)] {
                let since = if current {
                    &mut self.checks.current
                } else {
                    &mut self.checks.lost
                };
                if !wrong {
                    since.remove(&uid);
                } else if now.since(*since.entry(uid).or_insert(now)) > LABEL_LEFT {
                    since.insert(uid, now);
                    let kind = if current {
                        "a label stayed on a current Pod"
                    } else {
                        "a label stayed where the image isn't"
                    };
                    self.violated(kind, || format!("uid {uid}"));
                }
            }
        }
        let pods = &self.pods;
        let holds = |uid: &u32| pods.get(uid).is_some_and(|pod| pod.labelled && !pod.busy);
        self.checks.lost.retain(|uid, _| holds(uid));
        self.checks.current.retain(|uid, _| holds(uid));
    }

    /// Where a Pod could go, one goes; and who waits has a reason that is true.
    fn sample_progress(&mut self, at: usize, synced_at: Moment) {
        let id = self.pools[at].id.clone();
        let (Some(rule), Some(status)) = (
            self.office.pools.get(&at).cloned(),
            self.office.gate.status(&id),
        ) else {
            return;
        };
        let most = cap(rule.percent, rule.replicas);
        let mut candidates = 0;
        let mut wrong = Vec::new();
        let mut rolling = false;
        let mut letter = 0;
        let mut open = BTreeSet::new();
        for (_, facts) in self
            .office
            .pods
            .values()
            .filter(|(_, facts)| facts.pool == id)
        {
            rolling |= facts.is_alive() && facts.image != rule.image;
        }
        for (uid, (_, facts)) in self
            .office
            .pods
            .iter()
            .filter(|(_, (_, facts))| facts.pool == id && facts.is_alive())
        {
            let stale = facts.image != rule.image;
            let warm = facts.phase == Phase::Running
                && match facts.heartbeat {
                    Heartbeat::Absent => true,
                    Heartbeat::Polling(seen) => self.now.since(seen) < Duration::from_mins(5),
                    Heartbeat::Other => false,
                };
            letter += u32::from(if stale {
                facts.labelled
            } else {
                rolling && !facts.busy && !warm
            });
            let usable = matches!(&facts.place, Place::On(host) if self.office.nodes.get(host) == Some(&(true, true)))
                && self.is_fresh(at, &facts.place);
            candidates += u32::from(
                !rule.paused
                    && stale
                    && !facts.busy
                    && !facts.labelled
                    && usable
                    && facts.phase == Phase::Running,
            );
            let verdict = status
                .pods
                .iter()
                .find(|pod| pod.pod == pod_id(*uid))
                .map(|pod| pod.verdict);
            let holds = match verdict {
                None => false,
                // what only time opened is seen with the next tick
                Some(Verdict::Open(_)) => {
                    open.insert(*uid);
                    self.is_guarded(at) || !self.checks.open.contains(uid)
                }
                Some(Verdict::Blocked(reason)) => match reason {
                    Reason::Busy => facts.busy,
                    Reason::Current => !stale,
                    Reason::AlreadyLabelled => facts.labelled,
                    Reason::ImageMissing | Reason::PresenceOld(_) | Reason::HostUnheard => !usable,
                    Reason::NodeUnknown => {
                        !matches!(&facts.place, Place::On(host) if self.office.nodes.contains_key(host))
                    }
                    Reason::NodeNotReady | Reason::NodeCordoned => !usable,
                    Reason::TooFewHosts { .. } => facts.place == Place::Unscheduled,
                    Reason::CapReached { in_flight, cap, .. } => cap <= most && in_flight >= cap,
                    Reason::NotRunning => facts.phase != Phase::Running,
                    Reason::RetryWaits | Reason::Admitted => true,
                    Reason::Paused => rule.paused,
                    Reason::OwnerUnread => rule.template == Template::Unread,
                    Reason::OwnerLags => self.may_lag(at),
                    Reason::NoSuccessor { cap, .. } => cap <= most && self.may_miss(at),
                    Reason::ImageUnresolved => rule.digest.is_none(),
                    Reason::NotSynced | Reason::NotGated | Reason::NotAlive => false,
                },
            };
            if !holds {
                wrong.push((*uid, verdict, facts.place.clone()));
            }
            // silence is a reason only where the host is silent
            if let (Some(Verdict::Blocked(Reason::HostUnheard)), Place::On(host)) =
                (verdict, &facts.place)
                && self.office.words.contains_key(host)
            {
                wrong.push((*uid, verdict, facts.place.clone()));
            }
        }
        let pods = &self.office.pods;
        self.checks
            .open
            .retain(|uid| pods.get(uid).is_some_and(|(_, facts)| facts.pool != id));
        self.checks.open.extend(open);
        for (uid, verdict, place) in wrong {
            self.violated("a reason isn't true", || {
                format!("uid {uid} at {place:?}: {verdict:?}")
            });
        }
        let now = self.now;
        if letter > 0 || candidates == 0 || self.may_lag(at) || self.may_miss(at) {
            self.checks.idle.remove(&at);
        } else if now.since((*self.checks.idle.entry(at).or_insert(now)).max(synced_at)) > IDLE_MOST
        {
            self.checks.idle.insert(at, now);
            self.violated("nothing goes where something could", || {
                format!("pool {at}: {candidates} could")
            });
        }
    }

    /// Whether nothing is left to roll in a pool, but where the image isn't.
    pub(super) fn is_rolled(&self, at: usize) -> bool {
        let pool = &self.pools[at];
        let told = self.office.pools.get(&at);
        if told.is_none_or(|told| told.image != self.images[pool.image].reference) {
            return false;
        }
        if !pool.makes {
            return self.is_stranded(at);
        }
        let mut alive = 0;
        for pod in self
            .pods
            .values()
            .filter(|pod| pod.pool == at && pod.alive())
        {
            alive += 1;
            let held = pod.host.is_some_and(|host| {
                !self.is_fresh(at, &Place::On(self.hosts[host].id.clone()))
                    && self.hosts[host].speaks_from.is_none()
            });
            let settled = if pod.image == pool.image {
                pod.busy || pod.warm(self.now)
            } else {
                held && !pod.labelled
            };
            if !settled {
                return false;
            }
        }
        alive >= pool.replicas
    }

    /// Whether as many Pods of a pool without an owner are gone as may be, and the others are held for that by name; or all
    /// were replaced before it went.
    fn is_stranded(&self, at: usize) -> bool {
        let pool = &self.pools[at];
        let most = cap(pool.percent, pool.replicas).min(pool.replicas.unsigned_abs());
        let Some(status) = self.office.gate.status(&pool.id) else {
            return false;
        };
        let named = status.pods.iter().all(|pod| {
            matches!(
                pod.verdict,
                Verdict::Blocked(Reason::NoSuccessor { .. } | Reason::ImageMissing | Reason::Current)
            )
        });
        named && (self.taken(at) == most || status.stale == 0)
    }

    pub(super) fn say_who_waits(&mut self) {
        for at in 0..self.pools.len() {
            if self.is_rolled(at) {
                continue;
            }
            let id = self.pools[at].id.clone();
            let status = self.office.gate.status(&id);
            self.violated("a roll didn't end", || {
                let pods: Vec<String> = status
                    .iter()
                    .flat_map(|status| &status.pods)
                    .filter(|pod| pod.verdict != Verdict::Blocked(Reason::Current))
                    .map(|pod| format!("{} on {:?}: {:?}", pod.pod.0, pod.host, pod.verdict))
                    .collect();
                format!("pool {at}: {}", pods.join("; "))
            });
        }
    }
}
