//! The controllers of the cluster: they make, schedule, run and end Pods.

use std::time::Duration;

use proto::Moment;
use rollout::gate::{Heartbeat, Phase, Template};

use super::{
    Scenario,
    due::{Due, Sight},
    watches::{show, show_prepull},
    world::{Owner, PLAIN, PODS_PER_HOST, Pod, Reaped, World},
};

/// Marks a Pod as changed: its version grows, and the watches see it.
pub(super) fn changed(world: &mut World, uid: u32) {
    if let Some(pod) = world.pods.get_mut(&uid) {
        pod.version += 1;
        let pod = pod.clone();
        let facts = world.facts(uid, &pod);
        show(world, Sight::Pod(uid, pod.version, facts));
    }
}

pub(super) fn remove(world: &mut World, uid: u32) {
    if let Some(pod) = world.pods.remove(&uid) {
        left(world, &pod);
        let now = world.now;
        let mut reaped = world.pools[pod.pool].reaped.iter_mut();
        if let Some(reaped) = reaped.find(|reaped| reaped.uid == uid) {
            reaped.gone = Some(now);
        }
        show(world, Sight::PodGone(uid));
    }
}

/// Records that a living Pod goes. A Pod that became current after it was labelled counts as one that ended by itself.
fn left(world: &mut World, pod: &Pod) {
    let stale = pod.image != world.pools[pod.pool].image;
    let let_go = pod.admitted && (stale || !pod.labelled);
    world.tally.outside |= pod.operator_drain;
    let pool = &mut world.pools[pod.pool];
    match pod.alive() {
        true if let_go || pod.successor => pool.owed.push(world.now),
        true => pool.gaps += 1,
        false => {}
    }
}

pub(super) fn end(world: &mut World, uid: u32) {
    let Some(pod) = world.pods.get(&uid).cloned() else {
        return;
    };
    left(world, &pod);
    if let Some(pod) = world.pods.get_mut(&uid) {
        pod.phase = Phase::Ended;
    }
    changed(world, uid);
}

pub(super) fn delete(world: &mut World, uid: u32) {
    let Some(pod) = world.pods.get(&uid).cloned() else {
        return;
    };
    left(world, &pod);
    if let Some(pod) = world.pods.get_mut(&uid) {
        pod.deleting = true;
    }
    changed(world, uid);
    // a finalizer waits until the virtual machine is gone
    let waits = world.setup.scenario == Scenario::Beside && world.below(3) > 0;
    let takes = match waits {
        true => world.between(20_000, 240_000),
        false => world.between(100, 3_000),
    };
    world.push(takes, Due::Removed(uid));
}

/// Other controllers delete idle Pods outside of the cap: runners on hosts that are reserved for another pool, and all
/// on cordoned hosts.
pub(super) fn empty_hosts(world: &mut World) {
    if world.setup.scenario != Scenario::Beside {
        return;
    }
    let gives_way = |pod: &Pod| {
        let host = pod.host.map(|host| &world.hosts[host]);
        host.is_some_and(|host| {
            let is_reserved = host.reserved.is_some_and(|pool| pool != pod.pool);
            !host.schedulable || is_reserved && pod.pool != PLAIN
        })
    };
    let pods = world.pods.iter();
    let reaped: Vec<u32> = pods
        .filter(|(_, pod)| pod.alive() && !pod.busy && gives_way(pod))
        .map(|(uid, _)| *uid)
        .collect();
    for uid in reaped {
        let pod = &world.pods[&uid];
        let stale = pod.image != world.pools[pod.pool].image;
        let taken = pod.successor || pod.admitted && (stale || !pod.labelled);
        let pool = pod.pool;
        delete(world, uid);
        if !taken {
            // it isn't a gap that ended by itself
            world.pools[pool].gaps -= 1;
            world.pools[pool].reaped.push(Reaped { uid, gone: None });
        }
    }
}

pub(super) fn reconcile(world: &mut World, at: usize) {
    let ended: Vec<u32> = world
        .pods
        .iter()
        .filter(|(_, pod)| pod.pool == at && pod.phase == Phase::Ended && !pod.deleting)
        .map(|(uid, _)| *uid)
        .collect();
    for uid in ended {
        remove(world, uid);
    }
    let mut alive: Vec<(bool, bool, Moment, u32)> = world
        .pods
        .iter()
        .filter(|(_, pod)| pod.pool == at && pod.alive())
        .map(|(uid, pod)| (pod.busy, pod.phase == Phase::Running, pod.created, *uid))
        .collect();
    alive.sort_unstable();
    let wanted = usize::try_from(world.pools[at].replicas).unwrap_or(0);
    if world.pools[at].makes {
        for _ in alive.len()..wanted {
            create(world, at);
        }
        // the pool has all its Pods now
        world.pools[at].owed.clear();
        world.pools[at].reaped.clear();
        world.pools[at].gaps = 0;
    }
    for (busy, _, _, uid) in alive.iter().take(alive.len().saturating_sub(wanted)) {
        if !busy {
            // the pool wants no Pod in this one's place
            if let Some(pod) = world.pods.get_mut(uid) {
                (pod.admitted, pod.successor) = (false, false);
            }
            delete(world, *uid);
        }
    }
    schedule(world);
}

fn create(world: &mut World, at: usize) {
    let uid = world.next_uid;
    world.next_uid += 1;
    let pool = &mut world.pools[at];
    let fills = pool.gaps > 0;
    pool.gaps = pool.gaps.saturating_sub(1);
    let replaces = !fills && !pool.reaped.is_empty();
    if replaces {
        pool.reaped.remove(0);
    }
    let successor = !fills && !replaces && !pool.owed.is_empty();
    if successor {
        pool.owed.remove(0);
    }
    let image = pool.made_from();
    world.pods.insert(
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
            operator_drain: false,
            heartbeat: Heartbeat::Absent,
            created: world.now,
            version: 0,
            successor,
            admitted: false,
        },
    );
    changed(world, uid);
}

fn schedule(world: &mut World) {
    let waiting: Vec<u32> = world
        .pods
        .iter()
        .filter(|(_, pod)| pod.alive() && pod.host.is_none())
        .map(|(uid, _)| *uid)
        .collect();
    for uid in waiting {
        let (image, pool) = (world.pods[&uid].image, world.pods[&uid].pool);
        let mut used = vec![0; world.hosts.len()];
        for host in world.pods.values().filter_map(|pod| pod.host) {
            used[host] += 1;
        }
        let turn = usize::try_from(world.below(world.hosts.len() as u64)).unwrap_or(0);
        let many = world.hosts.len();
        let chosen = (0..many)
            .map(|at| (at + turn) % many)
            .filter(|at| {
                let host = &world.hosts[*at];
                let takes = host.reserved.is_none_or(|reserved| reserved == pool);
                let usable = host.exists && host.ready && host.schedulable;
                takes && usable && used[*at] < PODS_PER_HOST
            })
            .min_by_key(|at| (!world.hosts[*at].holds.contains(&image), used[*at]));
        let Some(chosen) = chosen else {
            continue;
        };
        if let Some(pod) = world.pods.get_mut(&uid) {
            pod.host = Some(chosen);
        }
        changed(world, uid);
        let takes = if world.hosts[chosen].holds.contains(&image) {
            world.between(15_000, 30_000)
        } else {
            world.between(120_000, 200_000)
        };
        world.push(takes, Due::Boot(uid));
    }
}

/// The coordinator reads the image that a pool's owner makes. Nothing happens where the owner can't be read.
pub(super) fn read_owner(world: &mut World, at: usize) {
    let pool = &mut world.pools[at];
    let Owner::Template { image, read } = &mut pool.owner else {
        return;
    };
    if *read == Template::Unknown {
        return;
    }
    let fresh = Template::Image(world.images[*image].reference.clone());
    if *read != fresh {
        *read = fresh;
        show_prepull(world, at);
    }
}

pub(super) fn boot(world: &mut World, uid: u32) {
    let Some((pod, host)) = world.pods.get(&uid).and_then(|pod| Some((pod, pod.host?))) else {
        return;
    };
    if !pod.alive() {
        return;
    }
    if !world.hosts[host].ready {
        let later = world.between(10_000, 11_000);
        world.push(later, Due::Boot(uid));
        return;
    }
    let (image, pool) = (pod.image, pod.pool);
    // a Pod whose host lacked the image has pulled it by now
    world.hosts[host].holds.insert(image);
    let heartbeats = world.pools[pool].heartbeats;
    if let Some(pod) = world.pods.get_mut(&uid) {
        pod.phase = Phase::Running;
        pod.heartbeat = if heartbeats {
            Heartbeat::Other
        } else {
            Heartbeat::Absent
        };
        pod.successor &= heartbeats;
    }
    changed(world, uid);
    let takes = world.between(2_000, 8_000);
    world.push(takes, Due::Warm(uid));
}

pub(super) fn warm_up(world: &mut World, uid: u32) {
    let now = world.now;
    let Some(pod) = world.pods.get_mut(&uid).filter(|pod| pod.alive()) else {
        return;
    };
    pod.successor = false;
    if world.pools[pod.pool].heartbeats {
        pod.heartbeat = Heartbeat::Polling(now);
        changed(world, uid);
    }
    world.push(Duration::ZERO, Due::Poll(uid));
}

pub(super) fn poll(world: &mut World, uid: u32) {
    let now = world.now;
    let Some(pod) = world.pods.get(&uid).filter(|pod| pod.alive()).cloned() else {
        return;
    };
    let again = world.between(8_000, 15_000);
    if !pod.host.is_some_and(|host| world.hosts[host].ready) {
        world.push(again, Due::Poll(uid));
        return;
    }
    if pod.operator_drain || pod.labelled && pod.image != world.pools[pod.pool].image {
        if let Some(pod) = world.pods.get_mut(&uid) {
            pod.exiting = true;
        }
        let takes = world.between(1_000, 4_000);
        world.push(takes, Due::Exit(uid));
        return;
    }
    if world.below(100) < world.jobs_percent {
        if let Some(pod) = world.pods.get_mut(&uid) {
            pod.busy = true;
            if pod.heartbeat != Heartbeat::Absent {
                pod.heartbeat = Heartbeat::Other;
            }
        }
        changed(world, uid);
        let takes = world.between(20_000, 240_000);
        world.push(takes, Due::JobDone(uid));
        return;
    }
    if matches!(pod.heartbeat, Heartbeat::Polling(at) if now.since(at) > Duration::from_mins(1)) {
        if let Some(pod) = world.pods.get_mut(&uid) {
            pod.heartbeat = Heartbeat::Polling(now);
        }
        changed(world, uid);
    }
    world.push(again, Due::Poll(uid));
}

/// A runner serves one job. Its successor is made at once, if its pool wants one.
pub(super) fn job_done(world: &mut World, uid: u32) {
    let Some(pool) = world.pods.get(&uid).map(|pod| pod.pool) else {
        return;
    };
    end(world, uid);
    remove(world, uid);
    let alive = world
        .pods
        .values()
        .filter(|pod| pod.pool == pool && pod.alive())
        .count();
    if world.pools[pool].makes && alive < usize::try_from(world.pools[pool].replicas).unwrap_or(0) {
        create(world, pool);
    }
    schedule(world);
}
