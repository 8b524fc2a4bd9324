//! The promises: the gate's decisions are compared with what is true and with what was told.

use std::{collections::BTreeSet, time::Duration};

use proto::{HostId, Moment};
use rollout::gate::{self, Heartbeat, OnDeadline, Phase, Place, Reason, Template, Verdict, cap};

use super::{
    due::Change,
    office::pod_id,
    world::{Pod, ROLL_AT, Reaped, World},
};

/// The greatest age at which a host's report counts. This is the promised limit, not the gate's setting.
const WORD_MOST: Duration = Duration::from_secs(30);
/// A wrong label is gone after this long: one look of the host, and the longest wait after refused writes.
const LABEL_LEFT: Duration = Duration::from_secs(90);
/// Where nothing is in flight and a Pod could go, one goes within this time. Four lost writes in a row take 140 s.
const IDLE_MOST: Duration = Duration::from_secs(180);
/// An owner that makes Pods makes a successor within this time, and the gate is told of it.
const MADE_WITHIN: Duration = Duration::from_secs(20);
/// Whoever empties a host that was cordoned or reserved does so within this time, after the gate was told of it.
const EMPTIED_WITHIN: Duration = Duration::from_mins(2);
/// When owner and pool have had the same image for this long, the gate knows it. Either the owner was read, or the time
/// has passed in which an owner that can't be read may lag.
const AGREED_WITHIN: Duration = Duration::from_secs(75);
/// A write that the other controller was allowed to do is under way for this long.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Checks a decision of the gate at the moment of the decision.
pub(super) fn check_write(world: &mut World, uid: u32, change: Change) {
    world.tally.open.remove(&uid);
    let Some((_, facts)) = world.office.pods.get(&uid).cloned() else {
        return world.violated("a Pod that nobody told of was decided about", || {
            format!("uid {uid}")
        });
    };
    let at = world
        .pools
        .iter()
        .position(|pool| pool.prepull == facts.prepull)
        .expect("a Pod of a pool");
    if world.office.synced_at.is_none() {
        world.violated("a write before everything is known", || {
            format!("uid {uid}")
        });
    }
    if facts.busy || facts.deleting || facts.phase == Phase::Ended {
        world.violated("a Pod that is busy or gone was decided about", || {
            format!("{facts:?}")
        });
    }
    let Some(rule) = world.office.prepulls.get(&at).cloned() else {
        return world.violated("a pool that nobody told of was decided about", || {
            format!("pool {at}")
        });
    };
    let stale = facts.image != rule.image;
    // where the deadline says so, a Pod may go whatever images its host holds
    let fresh = is_fresh(world, at, &facts.place) || proceeds(world, at);
    match change {
        Change::Unlabel => {
            if world.is_guarded(at) {
                world.violated("a label of another controller was taken back", || {
                    format!("uid {uid}")
                });
            }
            if !facts.labelled || (stale && fresh) {
                world.violated("a label was taken back without need", || {
                    format!("{facts:?}")
                });
            }
            return;
        }
        Change::Label if facts.phase != Phase::Running || facts.labelled => {
            world.violated("a Pod was labelled that isn't to be", || {
                format!("{facts:?}")
            });
        }
        Change::Reap if facts.phase != Phase::Pending => {
            world.violated("a Pod was reaped that isn't Pending", || {
                format!("{facts:?}")
            });
        }
        Change::Label | Change::Reap => {}
    }
    if facts.operator_drain {
        world.violated("a Pod was let go that an operator drains", || {
            format!("{facts:?}")
        });
    }
    if !stale {
        world.violated("a current Pod was let go", || format!("{facts:?}"));
    }
    check_owner(world, at, &rule, &facts);
    if rule.paused {
        world.violated("a Pod was let go while its pool is paused", || {
            format!("{facts:?}")
        });
    }
    check_place(world, at, change, (&facts, fresh));
    if world.is_guarded(at) {
        world.tally.granted.insert(uid, world.now + UNDER_WAY);
    }
    let most = cap(rule.percent, rule.replicas);
    let flying = in_flight_known(world, at, uid);
    if flying + 1 > most {
        world.violated("more in flight than the cap", || {
            format!("pool {at}: {} after uid {uid}, cap {most}", flying + 1)
        });
    }
    let flying: u32 = (0..world.pools.len())
        .map(|at| in_flight_known(world, at, uid) + starting_known(world, at, uid))
        .sum();
    // the successor of a Pod that is being started takes no further place
    let pod = world.pods.get(&uid);
    let takes = !pod.is_some_and(|pod| pod.successor) && told_warm(world, &facts);
    if let Some(most) = world.fleet_cap.filter(|most| takes && flying + 1 > *most) {
        world.violated("more in flight than the fleet's cap", || {
            format!("pool {at}: {} after uid {uid}, cap {most}", flying + 1)
        });
    }
}

/// Checks that the Pod's successor could start with the image.
fn check_place(world: &mut World, at: usize, change: Change, (facts, fresh): (&gate::Pod, bool)) {
    match &facts.place {
        Place::On(host) => {
            if !fresh {
                world.violated(
                    "a Pod was let go where the image isn't, by a young word",
                    || format!("{facts:?}"),
                );
            }
            let told = world.office.prepulls.get(&at);
            if told.is_some_and(|told| told.reserved.contains(host)) {
                world.violated("a Pod was let go on a node of another pool", || {
                    format!("{facts:?}")
                });
            }
            if world.office.nodes.get(host) != Some(&(true, true)) {
                world.violated("a Pod was let go on a node that isn't usable", || {
                    format!("{facts:?}")
                });
            }
        }
        Place::Unscheduled | Place::Elsewhere => {
            let (have, usable) = hosts_of(world, at);
            let few = (have == 0 || have * 2 < usable) && !proceeds(world, at);
            if change == Change::Label || few {
                world.violated(
                    "a Pod without a node was let go, and too few hosts hold the image",
                    || format!("{facts:?}"),
                );
            }
        }
    }
}

/// Checks that the owner's template agrees with the pool, as far as the gate was told.
fn check_owner(world: &mut World, at: usize, rule: &gate::PrePull, facts: &gate::Pod) {
    let says = match &rule.template {
        Template::Image(image) => *image != rule.image,
        Template::Unread => true,
        Template::Unknown => false,
    };
    if disagrees(world, at) && says {
        world.violated("a Pod was let go whose owner says another image", || {
            format!("{facts:?}")
        });
    }
}

/// Whether the pool's owner makes another image than the pool's, and the gate was told the pool's present image.
fn disagrees(world: &World, at: usize) -> bool {
    let pool = &world.pools[at];
    let told = world.office.prepulls.get(&at);
    pool.agrees_since.is_none()
        && told.is_some_and(|told| told.image == world.images[pool.image].reference)
}

/// Checks a write that took effect: this Pod drains now, or is deleted.
pub(super) fn check_effect(world: &mut World, uid: u32) {
    let Some(at) = world.pods.get(&uid).map(|pod| pod.pool) else {
        return;
    };
    if !disagrees(world, at) {
        world.tally.spent.remove(&at);
        return;
    }
    // an owner that may not have heard of the change gets a second cap of Pods, and no third
    let pool = &world.pools[at];
    let most = 2 * cap(pool.percent, pool.replicas);
    let spent = world.tally.spent.entry(at).or_default();
    *spent += 1;
    let spent = *spent;
    if spent > most {
        world.violated("Pods went on being let go under an owner that lags", || {
            format!("pool {at}: {spent}")
        });
    }
}

/// The Pods that the gate took and that no warm Pod replaces yet: Pods that may drain, Pods that left, and successors
/// that aren't warm.
fn taken(world: &World, at: usize) -> u32 {
    let pool = &world.pools[at];
    let told = world.office.prepulls.get(&at);
    let wanted = told.map_or(pool.replicas, |told| told.replicas.max(pool.replicas));
    let (mut taken, mut alive) = (0_usize, 0_usize);
    for (uid, pod) in world
        .pods
        .iter()
        .filter(|(_, pod)| pod.pool == at && pod.alive())
    {
        alive += 1;
        let drains = pod.admitted && pod.labelled && pod.image != pool.image;
        let told = world.office.pods.get(uid);
        let rests = told.is_some_and(|(_, facts)| facts.operator_drain);
        taken += usize::from(drains || pod.successor && !rests);
    }
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let owed = pool.owed.len().min(wanted.saturating_sub(alive));
    u32::try_from(taken + owed).unwrap_or(u32::MAX)
}

/// The invariant after every event: no more Pods are taken than the cap, except through outside events.
pub(super) fn check_places(world: &mut World, outside: bool) {
    for at in 0..world.pools.len() {
        let pool = &world.pools[at];
        let told = world.office.prepulls.get(&at);
        let most = cap(pool.percent, pool.replicas)
            .max(told.map_or(0, |told| cap(told.percent, told.replicas)));
        let taken = taken(world, at);
        world.outcome.most_taken = world.outcome.most_taken.max(taken);
        let allowed = world.tally.allowed.get(&at).copied().unwrap_or(0).max(most);
        if taken > allowed && !outside {
            world.violated("more Pods are taken than the cap, and not replaced", || {
                format!("pool {at}: {taken}, cap {most}")
            });
        }
        // a write that was decided before the cap fell may take effect after it
        let may_follow = under_way(world, at);
        let allowed = match outside {
            true => taken + may_follow,
            false => allowed.min(taken + may_follow),
        };
        world.tally.allowed.insert(at, allowed.max(most));
        check_warm(world, at, most);
    }
}

/// The number of unanswered writes by which the gate takes Pods of this pool.
fn under_way(world: &World, at: usize) -> u32 {
    let pods = world.office.writes.iter().filter(|(uid, change)| {
        **change != Change::Unlabel && world.pods.get(uid).is_some_and(|pod| pod.pool == at)
    });
    u32::try_from(pods.count()).unwrap_or(u32::MAX)
}

/// Checks the number of warm Pods where only the gate takes Pods: at least the replicas minus the cap.
fn check_warm(world: &mut World, at: usize, cap: u32) {
    let quiet = world.setup.scenario.is_quiet() && world.jobs_percent == 0;
    if !quiet || world.now < ROLL_AT {
        return;
    }
    let pool = &world.pools[at];
    let warm = world
        .pods
        .values()
        .filter(|pod| pod.pool == at && pod.alive() && pod.warm(world.now))
        .count();
    let least = i64::from(pool.replicas) - i64::from(cap) - i64::from(pool.ended);
    if i64::try_from(warm).unwrap_or(0) < least {
        world.violated("fewer Pods are warm than replicas but for the cap", || {
            format!("pool {at}: {warm}, least {least}")
        });
    }
}

/// Whether the gate may believe that this pool's owner makes Pods of another image.
fn may_lag(world: &World, at: usize) -> bool {
    let pool = &world.pools[at];
    let differs = world
        .office
        .prepulls
        .get(&at)
        .is_none_or(|told| told.image != world.images[pool.image].reference);
    // a gate that can't read the owner learns of it only from a Pod, which somebody has to provide
    let shown = pool.is_read() || world.now > world.calm_at;
    differs
        || !shown
        || pool
            .agrees_since
            .is_none_or(|since| world.now.since(since.max(calm_of(world, at))) < AGREED_WITHIN)
}

/// The last outside change that restarts the time of an owner that can't be read.
fn calm_of(world: &World, at: usize) -> Moment {
    match world.pools[at].is_read() {
        true => Moment::START,
        false => world.calm_at,
    }
}

/// Whether the gate may be right that successors are missing.
fn may_miss(world: &World, at: usize) -> bool {
    let pool = &world.pools[at];
    !pool.makes || world.now.since(pool.makes_since) < MADE_WITHIN
}

/// Whether the host's last report is fresh and names the pool's image.
fn is_fresh(world: &World, at: usize, place: &Place) -> bool {
    let Place::On(host) = place else {
        return false;
    };
    let Some(rule) = world.office.prepulls.get(&at) else {
        return false;
    };
    world.office.words.get(host).is_some_and(|(looked, holds)| {
        world.now.since(*looked) <= WORD_MOST
            && rule
                .digest
                .and_then(|digest| holds.get(&digest))
                .is_some_and(|names| names.contains(&rule.image))
    })
}

fn proceeds(world: &World, at: usize) -> bool {
    world.office.prepulls.get(&at).is_some_and(|rule| {
        rule.on_deadline == OnDeadline::Proceed && rule.deadline.is_some_and(|at| at <= world.now)
    })
}

fn hosts_of(world: &World, at: usize) -> (usize, usize) {
    let Some(rule) = world.office.prepulls.get(&at) else {
        return (0, 0);
    };
    let usable: Vec<_> = rule
        .hosts
        .iter()
        .filter(|host| world.office.nodes.get(*host) == Some(&(true, true)))
        .filter(|host| !rule.reserved.contains(*host))
        .collect();
    let have = usable
        .iter()
        .filter(|host| is_fresh(world, at, &Place::On((**host).clone())))
        .count();
    (have, usable.len())
}

/// The number of Pods in flight that the gate can know of, without `but`. These are Pods whose label or deletion took
/// effect or still may, successors of Pods that the gate let go, made or not, and other starting Pods that the gate was
/// told of.
fn in_flight_known(world: &World, at: usize, but: u32) -> u32 {
    let Some(rule) = world.office.prepulls.get(&at) else {
        return 0;
    };
    let (mut flying, mut alive) = (0_usize, 0_usize);
    for (uid, pod) in world
        .pods
        .iter()
        .filter(|(_, pod)| pod.pool == at && pod.alive())
    {
        alive += 1;
        let told = world.office.pods.get(uid);
        let under_way = match world.office.writes.get(uid) {
            Some(Change::Label | Change::Reap) => true,
            Some(Change::Unlabel) => false,
            None => world
                .tally
                .granted
                .get(uid)
                .is_some_and(|until| *until > world.now),
        };
        let counts = if world.images[pod.image].reference == rule.image {
            let known = pod.successor || told.is_some();
            let rests = pod.operator_drain || told.is_some_and(|(_, told)| told.operator_drain);
            // the gate may not know that a Pod is warm again or works now
            known && !pod.busy && !rests && !pod.warm(world.now)
                || told.is_some_and(|(_, facts)| gives_way(world, at, pod, facts))
        } else {
            let labelled =
                pod.labelled && (pod.admitted || told.is_some_and(|(_, facts)| facts.labelled));
            let leaves = told.is_some_and(|(_, facts)| gives_way(world, at, pod, facts));
            labelled || under_way || leaves
        };
        flying += usize::from(counts && *uid != but);
    }
    let owed = world.pools[at].owed.len() + reaped_known(world, at);
    let wanted = usize::try_from(world.pools[at].replicas.min(rule.replicas)).unwrap_or(0);
    u32::try_from(flying + owed.min(wanted.saturating_sub(alive))).unwrap_or(u32::MAX)
}

/// The number of a pool's stale Pods that are being started, as the gate knows, and that count for nothing else: for
/// their pool's cap they don't, for their fleet's they do.
fn starting_known(world: &World, at: usize, but: u32) -> u32 {
    let Some(rule) = world.office.prepulls.get(&at) else {
        return 0;
    };
    let pods = world.pods.iter();
    let starting = pods.filter(|(uid, pod)| {
        let stale = world.images[pod.image].reference != rule.image;
        let cold = pod.alive() && !pod.busy && !pod.labelled && !pod.warm(world.now);
        let is_counted = || {
            let is_written = world.office.writes.contains_key(uid);
            let told = world.office.pods.get(uid);
            is_written
                || told.is_none_or(|(_, told)| told.labelled || is_rest(world, at, pod, told))
        };
        pod.pool == at && **uid != but && stale && cold && !is_counted()
    });
    u32::try_from(starting.count()).unwrap_or(u32::MAX)
}

/// Whether a Pod counts for nothing, as the gate knows, or because others delete it.
fn is_rest(world: &World, at: usize, pod: &Pod, told: &gate::Pod) -> bool {
    let out = told.busy || told.operator_drain || !told.is_alive();
    out || gives_way(world, at, pod, told)
}

/// Whether a Pod waits for work, as the gate was told.
fn told_warm(world: &World, told: &gate::Pod) -> bool {
    told.phase == Phase::Running
        && match told.heartbeat {
            Heartbeat::Absent => true,
            Heartbeat::Polling(seen) => world.now.since(seen) < Duration::from_mins(5),
            Heartbeat::Other => false,
        }
}

/// Whether the gate knows that another controller will delete this idle Pod. What an operator drains leaves anyway.
fn gives_way(world: &World, at: usize, pod: &Pod, told: &gate::Pod) -> bool {
    let idle = !pod.busy && !told.busy && !told.operator_drain && told.is_alive();
    let is_new = |since: &Moment| world.now.since(*since) < EMPTIED_WITHIN;
    let reserved = world.office.reserved.get(&at);
    let is_reserved = |host: &HostId| {
        reserved
            .and_then(|hosts| hosts.get(host))
            .is_some_and(is_new)
    };
    let is_cordoned = |host: &HostId| world.office.cordoned.get(host).is_some_and(is_new);
    let leaves = |host: &HostId| is_reserved(host) || is_cordoned(host);
    idle && matches!(&told.place, Place::On(host) if leaves(host))
}

/// The number of Pods that other controllers deleted, as the gate knows, and that have no successors. How long a
/// finalizer holds a Pod doesn't count.
fn reaped_known(world: &World, at: usize) -> usize {
    let reaped = world.pools[at].reaped.iter();
    let counts = |reaped: &&Reaped| match reaped.gone {
        Some(gone) => {
            world.office.gone.contains(&reaped.uid) && world.now.since(gone) < MADE_WITHIN
        }
        None => {
            let told = world.office.pods.get(&reaped.uid);
            told.is_some_and(|(_, facts)| facts.deleting)
        }
    };
    reaped.filter(counts).count()
}

/// The number of Pods that are truly in flight: labelled stale Pods, and while the pool rolls, current Pods that are
/// neither busy nor warm.
fn in_flight(world: &World, at: usize) -> u32 {
    let pool = &world.pools[at];
    let pods = || {
        world
            .pods
            .values()
            .filter(|pod| pod.pool == at && pod.alive())
    };
    let rolling = pods().any(|pod| pod.image != pool.image);
    let many = pods()
        .filter(|pod| {
            if pod.image == pool.image {
                rolling && !pod.busy && !pod.warm(world.now)
            } else {
                pod.labelled
            }
        })
        .count();
    u32::try_from(many).unwrap_or(u32::MAX)
}

pub(super) fn sample(world: &mut World) {
    for at in 0..world.pools.len() {
        let pool = &world.pools[at];
        let flying = in_flight(world, at);
        let over = flying.saturating_sub(cap(pool.percent, pool.replicas));
        world.outcome.most_in_flight = world.outcome.most_in_flight.max(flying);
        world.outcome.most_over_cap = world.outcome.most_over_cap.max(over);
    }
    let Some(synced_at) = world.office.synced_at.filter(|_| world.office.up) else {
        return;
    };
    for at in 0..world.pools.len() {
        if !world.is_guarded(at) {
            sample_labels(world, at);
        }
        sample_progress(world, at, synced_at);
    }
}

/// Checks that wrong labels disappear in time.
fn sample_labels(world: &mut World, at: usize) {
    let Some(rule) = world.office.prepulls.get(&at).cloned() else {
        return;
    };
    let labelled: Vec<(u32, bool, bool)> = world
        .pods
        .iter()
        .filter(|(_, pod)| {
            pod.pool == at && pod.alive() && pod.labelled && !pod.busy && !pod.exiting
        })
        .filter_map(|(uid, _)| {
            let (_, facts) = world.office.pods.get(uid)?;
            let stale = facts.image != rule.image;
            let fresh = is_fresh(world, at, &facts.place) || proceeds(world, at);
            Some((*uid, stale, fresh))
        })
        .collect();
    let now = world.now;
    for (uid, stale, fresh) in labelled {
        for (wrong, current) in [(stale && !fresh, false), (!stale, true)] {
            let since = if current {
                &mut world.tally.current
            } else {
                &mut world.tally.lost
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
                world.violated(kind, || format!("uid {uid}"));
            }
        }
    }
    let pods = &world.pods;
    let holds = |uid: &u32| pods.get(uid).is_some_and(|pod| pod.labelled && !pod.busy);
    world.tally.lost.retain(|uid, _| holds(uid));
    world.tally.current.retain(|uid, _| holds(uid));
}

/// Checks that a Pod goes where one could, and that every blocked Pod has a true reason.
fn sample_progress(world: &mut World, at: usize, synced_at: Moment) {
    let id = world.pools[at].prepull.clone();
    let (Some(rule), Some(status)) = (
        world.office.prepulls.get(&at).cloned(),
        world.office.gate.status(&id),
    ) else {
        return;
    };
    let mut candidates = 0;
    let mut wrong = Vec::new();
    let mut rolling = false;
    let mut letter = 0;
    let mut open = BTreeSet::new();
    for (_, facts) in world
        .office
        .pods
        .values()
        .filter(|(_, facts)| facts.prepull == id)
    {
        rolling |= facts.is_alive() && facts.image != rule.image;
    }
    for (uid, (_, facts)) in world
        .office
        .pods
        .iter()
        .filter(|(_, (_, facts))| facts.prepull == id && facts.is_alive())
    {
        let stale = facts.image != rule.image;
        let warm = told_warm(world, facts);
        letter += u32::from(if stale {
            facts.labelled
        } else {
            rolling && !facts.busy && !facts.operator_drain && !warm
        });
        let usable = matches!(&facts.place, Place::On(host) if world.office.nodes.get(host) == Some(&(true, true)))
            && is_fresh(world, at, &facts.place)
            && !matches!(&facts.place, Place::On(host) if rule.reserved.contains(host));
        candidates += u32::from(
            !rule.paused
                && stale
                && !facts.busy
                && !facts.operator_drain
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
            // a Pod that only time unblocked is seen with the next tick
            Some(Verdict::Open(_)) => {
                open.insert(*uid);
                world.is_guarded(at) || !world.tally.open.contains(uid)
            }
            Some(Verdict::Blocked(reason)) => is_true(world, at, reason, (&rule, facts, usable)),
        };
        if !holds {
            wrong.push((*uid, verdict, facts.place.clone()));
        }
        // a silent host is a reason only where the host is silent
        if let (Some(Verdict::Blocked(Reason::HostUnheard)), Place::On(host)) =
            (verdict, &facts.place)
            && world.office.words.contains_key(host)
        {
            wrong.push((*uid, verdict, facts.place.clone()));
        }
    }
    let pods = &world.office.pods;
    world
        .tally
        .open
        .retain(|uid| pods.get(uid).is_some_and(|(_, facts)| facts.prepull != id));
    world.tally.open.extend(open);
    for (uid, verdict, place) in wrong {
        world.violated("a reason isn't true", || {
            format!("uid {uid} at {place:?}: {verdict:?}")
        });
    }
    let now = world.now;
    // Pods that others delete fill a cap, and so do those of other pools of the fleet
    let is_new = |since: &Moment| now.since(*since) < EMPTIED_WITHIN;
    let reserved = world.office.reserved.get(&at);
    let beside = reserved.is_some_and(|hosts| hosts.values().any(is_new))
        || world.office.cordoned.values().any(is_new)
        || reaped_known(world, at) > 0
        || (world.fleet_cap.is_some() && (0..world.pools.len()).any(|at| in_flight(world, at) > 0));
    // Pods on nodes that aren't Ready fill a cap, too
    let (away, there) = away_told(world, &id);
    let full = away >= cap(rule.percent, rule.replicas.min(there));
    let waits = letter > 0 || beside || full || may_lag(world, at) || may_miss(world, at);
    if waits || candidates == 0 {
        world.tally.idle.remove(&at);
    } else if now.since((*world.tally.idle.entry(at).or_insert(now)).max(synced_at)) > IDLE_MOST {
        world.tally.idle.insert(at, now);
        world.violated("nothing goes where something could", || {
            format!("pool {at}: {candidates} could")
        });
    }
}

/// The number of a pre-pull's living Pods that run on nodes that aren't Ready, and of all its living Pods, by what was
/// told.
fn away_told(world: &World, prepull: &gate::PrePullId) -> (u32, i32) {
    let (mut away, mut there) = (0, 0);
    for (_, facts) in world.office.pods.values() {
        if facts.prepull != *prepull || !facts.is_alive() {
            continue;
        }
        let node = match &facts.place {
            Place::On(host) => world.office.nodes.get(host),
            Place::Unscheduled | Place::Elsewhere => None,
        };
        let runs = facts.phase == Phase::Running;
        away += u32::from(runs && node.is_some_and(|(ready, _)| !ready));
        there += 1;
    }
    (away, there)
}

/// Whether the gate's reason about a Pod of this pool is true by what was told. `usable` says whether the Pod's node
/// takes Pods and has the image.
fn is_true(
    world: &World,
    at: usize,
    reason: Reason,
    (rule, facts, usable): (&gate::PrePull, &gate::Pod, bool),
) -> bool {
    let most = cap(rule.percent, rule.replicas);
    match reason {
        Reason::Busy => facts.busy,
        Reason::Current => facts.image == rule.image,
        Reason::AlreadyLabelled => facts.labelled,
        Reason::ImageMissing
        | Reason::PresenceOld(_)
        | Reason::HostUnheard
        | Reason::NodeNotReady
        | Reason::NodeCordoned => !usable,
        Reason::NodePressure => false,
        Reason::NodeUnknown => {
            !matches!(&facts.place, Place::On(host) if world.office.nodes.contains_key(host))
        }
        Reason::TooFewHosts { .. } => facts.place == Place::Unscheduled,
        Reason::NodeReserved => {
            matches!(&facts.place, Place::On(host) if rule.reserved.contains(host))
        }
        Reason::OperatorDrain => facts.operator_drain,
        Reason::CapReached {
            in_flight,
            away,
            cap,
            ..
        } => cap <= most && in_flight >= cap && away <= away_told(world, &facts.prepull).0,
        Reason::FleetCapReached { in_flight, cap } => {
            in_flight >= cap && world.fleet_cap.is_some_and(|most| cap >= most)
        }
        Reason::NotRunning => facts.phase != Phase::Running,
        Reason::RetryWaits | Reason::Admitted => true,
        Reason::Paused => rule.paused,
        Reason::OwnerUnread => rule.template == Template::Unread,
        Reason::OwnerLags => may_lag(world, at),
        Reason::NoSuccessor { cap, .. } => cap <= most && may_miss(world, at),
        Reason::ImageUnresolved => rule.digest.is_none(),
        Reason::NotSynced | Reason::NotGated | Reason::NotAlive => false,
    }
}

/// Whether a pool's roll is complete, except on silent hosts that lack the image.
pub(super) fn is_rolled(world: &World, at: usize) -> bool {
    let pool = &world.pools[at];
    let told = world.office.prepulls.get(&at);
    if told.is_none_or(|told| told.image != world.images[pool.image].reference) {
        return false;
    }
    if !pool.makes {
        return is_stranded(world, at);
    }
    let mut alive = 0;
    for pod in world
        .pods
        .values()
        .filter(|pod| pod.pool == at && pod.alive())
    {
        alive += 1;
        let held = pod.host.is_some_and(|host| {
            !is_fresh(world, at, &Place::On(world.hosts[host].id.clone()))
                && world.hosts[host].speaks_from.is_none()
        });
        let settled = if pod.image == pool.image {
            pod.busy || pod.warm(world.now)
        } else {
            held && !pod.labelled
        };
        if !settled {
            return false;
        }
    }
    alive >= pool.replicas
}

/// Whether a pool without an owner has rolled as far as it can: as many Pods are gone as the cap allows, and the others
/// are blocked for that reason. Or all Pods were replaced before the owner went.
fn is_stranded(world: &World, at: usize) -> bool {
    let pool = &world.pools[at];
    let most = cap(pool.percent, pool.replicas).min(pool.replicas.unsigned_abs());
    let Some(status) = world.office.gate.status(&pool.prepull) else {
        return false;
    };
    let named = status.pods.iter().all(|pod| {
        matches!(
            pod.verdict,
            Verdict::Blocked(Reason::NoSuccessor { .. } | Reason::ImageMissing | Reason::Current)
        )
    });
    named && (taken(world, at) == most || status.stale == 0)
}

pub(super) fn say_who_waits(world: &mut World) {
    for at in 0..world.pools.len() {
        if is_rolled(world, at) {
            continue;
        }
        let id = world.pools[at].prepull.clone();
        let status = world.office.gate.status(&id);
        world.violated("a roll didn't end", || {
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
