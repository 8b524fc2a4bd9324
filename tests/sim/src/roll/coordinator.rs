//! The gate's shell: it passes on what agents and watches say, and carries out the gate's writes, which may fail.

use std::time::Duration;

use proto::Moment;
use rollout::{
    gate::{self, Action, Before, Event, Phase, PodId, Takes},
    presence::Holdings,
};

use super::{
    Scenario,
    check::{check_effect, check_write},
    cluster::{changed, delete, remove},
    due::{Change, Due, Sight, Write},
    office::{Office, pod_id, uid},
    watches::show,
    world::{ROLL_AT, World},
};

/// The most restarts in a run of `gate-restart`, so that the roll can end.
const RESTARTS: u64 = 120;

/// Writes what the next coordinator would read in the statuses.
pub(super) fn write_statuses(world: &mut World) {
    if !world.office.up || world.office.synced_at.is_none() {
        return;
    }
    for pool in &mut world.pools {
        if let Some(status) = world.office.gate.status(&pool.prepull) {
            pool.written = Before {
                awaited: status.awaited,
                lags: status.lag.is_some_and(|lag| !lag.said),
            };
        }
    }
}

pub(super) fn look(world: &mut World, host: usize) {
    world.push(Duration::from_secs(5), Due::Look(host));
    if !world.office.up
        || world.hosts[host]
            .speaks_from
            .is_none_or(|from| from > world.now)
    {
        return;
    }
    let delay = match world.below(20) {
        0 => world.between(1_000, 4_500),
        _ => world.between(1, 200),
    };
    let word = Due::Word {
        term: world.office.term,
        host,
        looked: world.now,
        holds: world.holdings(host),
    };
    world.push(delay, word);
}

/// A coordinator starts. It knows nothing, lists all objects in a random order, and hears from agents as they
/// reconnect.
pub(super) fn start(world: &mut World, term: u64) {
    if term != world.office.term {
        return;
    }
    let mut office = Office::new(world.setup.gate.clone());
    office.term = term;
    office.up = true;
    world.office = office;
    world.tally.forget();
    let mut listed: Vec<Sight> = Vec::new();
    for at in 0..world.pools.len() {
        listed.push(Sight::PrePull(at, world.rule(at)));
    }
    for (at, host) in world
        .hosts
        .iter()
        .enumerate()
        .filter(|(_, host)| host.exists)
    {
        listed.push(Sight::Node(at, host.ready, host.schedulable));
    }
    for (uid, pod) in &world.pods {
        listed.push(Sight::Pod(*uid, pod.version, world.facts(*uid, pod)));
    }
    for at in (1..listed.len()).rev() {
        let other = usize::try_from(world.below(at as u64 + 1)).unwrap_or(0);
        listed.swap(at, other);
    }
    let mut last = world.now;
    for sight in listed {
        show(world, sight);
    }
    for free in world.office.free {
        last = last.max(free);
    }
    world.office.free = [last; 3];
    world.push_at(last, Due::Sight(term, Sight::Synced));
    for at in 0..world.hosts.len() {
        let after = world.between(0, 15_000);
        let from = world.now + after;
        if let Some(speaks) = &mut world.hosts[at].speaks_from {
            *speaks = (*speaks).max(from);
        }
    }
}

fn restart(world: &mut World) {
    world.outcome.restarts += 1;
    world.office.term += 1;
    world.office.up = false;
    let term = world.office.term;
    // a successor waits until the lease has run out and the earlier coordinator's requests are over
    let away = world.between(6_000, 20_000);
    world.push(away, Due::Start(term));
}

pub(super) fn see(world: &mut World, term: u64, sight: Sight) {
    if term != world.office.term || !world.office.up {
        return;
    }
    let event = match sight {
        Sight::Pod(uid, version, facts) => return tell_pod(world, uid, version, facts),
        Sight::PodGone(uid) => return tell_gone(world, uid),
        Sight::Node(at, ready, schedulable) => {
            let host = world.hosts[at].id.clone();
            let office = &mut world.office;
            office.nodes.insert(host.clone(), (ready, schedulable));
            let takes = match schedulable {
                true => {
                    office.cordoned.remove(&host);
                    Takes::Pods
                }
                false => {
                    office.cordoned.entry(host.clone()).or_insert(world.now);
                    Takes::NoneWhileCordoned
                }
            };
            Event::Node { host, ready, takes }
        }
        Sight::NodeGone(at) => {
            let host = world.hosts[at].id.clone();
            world.office.nodes.remove(&host);
            world.office.cordoned.remove(&host);
            Event::NodeGone(host)
        }
        Sight::PrePull(at, rule) => {
            let id = world.pools[at].prepull.clone();
            let reserved = world.office.reserved.entry(at).or_default();
            reserved.retain(|host, _| rule.reserved.contains(host));
            for host in &rule.reserved {
                reserved.entry(host.clone()).or_insert(world.now);
            }
            let known = world.office.prepulls.insert(at, rule.clone());
            tell(world, Event::PrePull(id.clone(), rule));
            if known.is_none() {
                // the pre-pull's status comes with the pre-pull
                let before = world.pools[at].written;
                tell(world, Event::Before(id, before));
            }
            return;
        }
        Sight::Synced => {
            world.office.synced_at = Some(world.now);
            Event::Synced(true)
        }
    };
    tell(world, event);
}

fn tell_pod(world: &mut World, uid: u32, version: u64, mut facts: gate::Pod) {
    let known = world.office.pods.get(&uid).map(|(version, _)| *version);
    // the answer to a write may have come before the watch's view
    if world.office.gone.contains(&uid) || known.is_some_and(|known| known >= version) {
        return;
    }
    facts.seen = *world.office.seen.entry(uid).or_insert(world.now);
    let is_let_be = !facts.operator_drain;
    let before = world.office.pods.insert(uid, (version, facts.clone()));
    // an operator thought better of it
    world.tally.outside |= is_let_be && before.is_some_and(|(_, before)| before.operator_drain);
    let phantom = world
        .setup
        .phantoms
        .then(|| (facts.is_alive(), known.is_none()));
    if phantom == Some((true, true))
        && let Some(phantom) = world.office.phantoms.pop()
    {
        tell(world, Event::PodGone(phantom));
    }
    tell(world, Event::Pod(pod_id(uid), facts.clone()));
    if phantom == Some((false, false)) {
        tell_phantom(world, uid, facts);
    }
}

/// Tells only the gate of a warm successor of this Pod.
fn tell_phantom(world: &mut World, uid: u32, facts: gate::Pod) {
    let at = world
        .pools
        .iter()
        .position(|pool| pool.prepull == facts.prepull);
    let image = at.and_then(|at| Some(world.office.prepulls.get(&at)?.image.clone()));
    let id = PodId(format!("phantom of {uid}"));
    world.office.phantoms.push(id.clone());
    let warm = gate::Pod {
        image: image.unwrap_or_default(),
        labelled: false,
        busy: false,
        deleting: false,
        phase: Phase::Running,
        heartbeat: gate::Heartbeat::Absent,
        ..facts
    };
    tell(world, Event::Pod(id, warm));
}

fn tell_gone(world: &mut World, uid: u32) {
    if world.office.gone.insert(uid) && world.office.pods.remove(&uid).is_some() {
        tell(world, Event::PodGone(pod_id(uid)));
    }
}

pub(super) fn hear(world: &mut World, term: u64, host: usize, looked: Moment, holds: Holdings) {
    if term != world.office.term || !world.office.up {
        return;
    }
    let id = world.hosts[host].id.clone();
    let age = world.now.since(looked);
    let before = world
        .office
        .words
        .insert(id.clone(), (looked, holds.clone()));
    // like the real coordinator, this sends the images only when they changed
    let event = if before.is_some_and(|(_, before)| before == holds) {
        Event::Seen(id, age)
    } else {
        Event::Holds(id, holds, age)
    };
    tell(world, event);
}

pub(super) fn tick(world: &mut World, term: u64) {
    if term == world.office.term && world.office.up {
        world.office.tick_at = None;
        tell(world, Event::Tick);
    }
}

fn tell(world: &mut World, event: Event) {
    world.office.gate.handle(world.now, event);
    while let Some(action) = world.office.gate.poll() {
        let (id, change) = match action {
            Action::Blocked(_, reason) => {
                *world.outcome.denials.entry(reason.as_str()).or_default() += 1;
                continue;
            }
            Action::Label(id) => (id, Change::Label),
            Action::Unlabel(id, _) => (id, Change::Unlabel),
            Action::Reap(id) => (id, Change::Reap),
        };
        write(world, uid(&id), change);
    }
    wind_up(world);
    if std::mem::take(&mut world.office.restart) {
        restart(world);
    }
}

fn wind_up(world: &mut World) {
    let Some(at) = world.office.gate.next_timeout() else {
        return;
    };
    if world.office.tick_at.is_none_or(|due| at < due) {
        let at = at.max(world.now + Duration::from_millis(1));
        world.office.tick_at = Some(at);
        let term = world.office.term;
        world.push_at(at, Due::Tick(term));
    }
}

fn write(world: &mut World, uid: u32, change: Change) {
    match change {
        Change::Label => world.outcome.labels += 1,
        Change::Reap => world.outcome.reaps += 1,
        Change::Unlabel => world.outcome.withdrawals += 1,
    }
    check_write(world, uid, change);
    let before = world.office.writes.insert(uid, change);
    if before.is_some() {
        world.violated("two writes on one Pod at one time", || format!("uid {uid}"));
    }
    let version = world
        .office
        .pods
        .get(&uid)
        .map_or(0, |(version, _)| *version);
    let write = Write {
        term: world.office.term,
        uid,
        version,
        change,
        admitted: true,
    };
    send(world, write);
    if world.setup.scenario == Scenario::GateRestart
        && world.now > ROLL_AT
        && world.outcome.restarts < RESTARTS
        && world.below(2) == 0
    {
        world.calm_at = world.now;
        world.office.restart = true;
    }
}

fn send(world: &mut World, write: Write) {
    let takes = world.between(5, 300);
    match world.below(20) {
        // refused before the write reached the server: too many requests, or no rights
        0 => world.push(takes, Due::Answer(write, gate::Outcome::Refused)),
        // lost on the way to the server, so the answer is given up after 5 s
        1 => world.push(
            Duration::from_secs(5),
            Due::Answer(write, gate::Outcome::Unknown),
        ),
        _ => world.push(takes, Due::Effect(write)),
    }
}

/// The API server receives a write. The write succeeds if the Pod is still as it was at the decision.
pub(super) fn effect(world: &mut World, write: Write) {
    let uid = write.uid;
    let answered = world.between(2, 200);
    let fits = world
        .pods
        .get(&uid)
        .is_some_and(|pod| pod.version == write.version && pod.alive());
    if !fits {
        world.push(answered, Due::Answer(write, gate::Outcome::Refused));
        return;
    }
    if world.pods[&uid].busy {
        world.violated("a busy Pod was written on", || format!("uid {uid}"));
    }
    if write.change != Change::Unlabel && write.admitted {
        check_effect(world, uid);
    }
    if let Some(pod) = world.pods.get_mut(&uid) {
        match write.change {
            Change::Label => (pod.labelled, pod.admitted) = (true, write.admitted),
            Change::Unlabel => (pod.labelled, pod.admitted) = (false, false),
            Change::Reap => pod.admitted = true,
        }
    }
    if write.change == Change::Reap {
        remove(world, uid);
    } else {
        changed(world, uid);
    }
    if world.below(20) == 0 {
        world.push(
            Duration::from_secs(5),
            Due::Answer(write, gate::Outcome::Unknown),
        );
    } else {
        // the answer shows the Pod as the write left it
        world.push(answered, Due::Answer(write, gate::Outcome::Done));
    }
}

pub(super) fn answer(world: &mut World, write: &Write, outcome: gate::Outcome) {
    if !write.admitted || write.term != world.office.term || !world.office.up {
        return;
    }
    let name = match outcome {
        gate::Outcome::Done => "done",
        gate::Outcome::Refused => "refused",
        gate::Outcome::Unknown => "unknown",
    };
    *world.outcome.writes.entry(name).or_default() += 1;
    let uid = write.uid;
    // an admission of the other controller isn't a write of this coordinator
    if world.office.writes.remove(&uid).is_none() {
        return;
    }
    if outcome == gate::Outcome::Done {
        if write.change == Change::Reap {
            tell_gone(world, uid);
        } else if let Some(told) = world.office.pods.get(&uid).map(|(_, facts)| facts.clone()) {
            let labelled = write.change == Change::Label;
            tell_pod(
                world,
                uid,
                write.version + 1,
                gate::Pod { labelled, ..told },
            );
        }
    }
    tell(world, Event::Written(pod_id(uid), outcome));
}

/// The other controller labels every stale idle Pod that it may, and deletes Pending ones as it likes.
pub(super) fn other_controller(world: &mut World, at: usize) {
    let stale: Vec<(u32, Phase, u64)> = world
        .pods
        .iter()
        .filter(|(_, pod)| {
            pod.pool == at
                && pod.alive()
                && !pod.busy
                && !pod.labelled
                && pod.image != world.pools[at].image
        })
        .map(|(uid, pod)| (*uid, pod.phase, pod.version))
        .collect();
    for (uid, phase, version) in stale {
        if phase == Phase::Pending {
            delete(world, uid);
            continue;
        }
        let verdict = if world.office.up {
            world.office.gate.admit(world.now, &pod_id(uid)).map(drop)
        } else {
            Err(gate::Reason::NotSynced)
        };
        let admitted = verdict.is_ok();
        match verdict {
            Ok(()) => {
                world.outcome.labels += 1;
                check_write(world, uid, Change::Label);
                wind_up(world);
            }
            Err(reason) => {
                *world.outcome.denials.entry(reason.as_str()).or_default() += 1;
                // the webhook's failure policy allows a write when no answer comes in time
                if world.below(300) != 0 {
                    continue;
                }
            }
        }
        let term = world.office.term;
        send(
            world,
            Write {
                term,
                uid,
                version,
                change: Change::Label,
                admitted,
            },
        );
    }
}
