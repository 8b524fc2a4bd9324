//! The outside events of each scenario, and when they happen.

use std::time::Duration;

use proto::Moment;
use rollout::gate::{OnDeadline, Phase, Template};

use super::{
    Scenario,
    cluster::{changed, delete, end},
    due::{Due, Fault},
    watches::{show_node, show_prepull},
    world::{IMAGES, Owner, ROLL_AT, World},
};

/// How long the autoscaler patches the replicas.
const AUTOSCALED_FOR: Duration = Duration::from_mins(8);

/// How many reservations there are.
const RESERVATIONS: usize = 8;

/// How long the last reservation stands beyond its time.
const FORGOTTEN_FOR: Duration = Duration::from_secs(400);

pub(super) fn plan_faults(world: &mut World) {
    let scenario = world.setup.scenario;
    let hosts = world.setup.hosts;
    for pool in 0..world.pools.len() {
        let late = world.between(0, 20_000);
        let rolls = ROLL_AT + late;
        match scenario {
            Scenario::TemplateLags
            | Scenario::TemplateLeads
            | Scenario::TwoSpellings
            | Scenario::NoOwner => plan_owner(world, pool, rolls),
            _ => world.plan(rolls, Fault::Image { pool, image: 1 }),
        }
        for host in 0..hosts {
            // some hosts have the image before the images change, others only long after
            let takes = match world.below(10) {
                // the bytes are there already
                _ if scenario == Scenario::Retag => world.between(90_000, 110_000),
                0 => world.between(150_000, 400_000),
                _ => world.between(20_000, 200_000),
            };
            world.push(takes, Due::Staged(host, pool * IMAGES + 1));
            if scenario == Scenario::TwoSpellings {
                world.push(takes, Due::Staged(host, pool * IMAGES + 2));
            }
        }
        match scenario {
            Scenario::Scale => {
                let when = world.between(60_000, 240_000);
                world.plan(ROLL_AT + when, Fault::Replicas { pool, percent: 150 });
            }
            Scenario::Rollback => {
                let back = world.between(60_000, 240_000);
                world.plan(ROLL_AT + back, Fault::Image { pool, image: 0 });
                if world.below(2) == 0 {
                    let again = world.between(10_000, 200_000);
                    world.plan(ROLL_AT + back + again, Fault::Image { pool, image: 1 });
                }
            }
            Scenario::Autoscale => {
                let first = world.between(0, 5_000);
                world.push(first, Due::Autoscale(pool));
                world.calm_at = ROLL_AT + AUTOSCALED_FOR;
            }
            Scenario::Operator => {
                let mut when = ROLL_AT;
                for _ in 0..2 {
                    when += world.between(20_000, 200_000);
                    world.plan(when, Fault::Paused(pool, true));
                    when += world.between(5_000, 120_000);
                    world.plan(when, Fault::Paused(pool, false));
                }
                let after = world.between(40_000, 300_000);
                let deadline = ROLL_AT + after;
                world.calm_at = world.calm_at.max(deadline);
                world.pools[pool].deadline = Some(deadline);
                if pool % 2 == 0 {
                    world.pools[pool].on_deadline = OnDeadline::Proceed;
                }
            }
            Scenario::Beside => {
                for _ in 0..3 {
                    let when = world.between(0, 300_000);
                    world.plan(ROLL_AT + when, Fault::Drain(pool));
                }
            }
            Scenario::Guard => {
                let first = world.between(0, 10_000);
                world.push(first, Due::Other(pool));
            }
            _ => {}
        }
    }
    if scenario == Scenario::Beside {
        plan_reservations(world);
    }
    for host in 0..hosts {
        match scenario {
            Scenario::Beside if world.below(8) == 0 => {
                let when = world.between(0, 300_000);
                let lasts = world.between(20_000, 200_000);
                world.plan(ROLL_AT + when, Fault::Cordon(host, true));
                world.plan(ROLL_AT + when + lasts, Fault::Cordon(host, false));
            }
            Scenario::Hosts => plan_host(world, host),
            Scenario::Prune if world.below(3) == 0 => {
                for pool in 0..world.pools.len() {
                    let when = world.between(60_000, 400_000);
                    let image = pool * IMAGES + 1;
                    world.plan(ROLL_AT + when, Fault::Prune { host, image });
                }
            }
            Scenario::Silent if world.below(4) == 0 => {
                let when = world.between(0, 200_000);
                let lasts = world.between(20_000, 200_000);
                world.plan(ROLL_AT + when, Fault::Silent(host));
                if host > 1 {
                    world.plan(ROLL_AT + when + lasts, Fault::Speaks(host));
                }
            }
            _ => {}
        }
    }
}

/// One host after the other is reserved for some pool, and given back. Somebody forgets the last one for minutes.
fn plan_reservations(world: &mut World) {
    let mut when = ROLL_AT;
    for at in 0..RESERVATIONS {
        let host = usize::try_from(world.below(world.hosts.len() as u64)).unwrap_or(0);
        let pool = usize::try_from(world.below(world.pools.len() as u64)).unwrap_or(0);
        when += world.between(2_000, 30_000);
        world.plan(when, Fault::Reserve(host, Some(pool)));
        when += world.between(10_000, 60_000);
        if at + 1 == RESERVATIONS {
            when += FORGOTTEN_FOR;
        }
        world.plan(when, Fault::Reserve(host, None));
    }
}

fn plan_host(world: &mut World, host: usize) {
    let when = ROLL_AT + world.between(0, 300_000);
    let until = when + world.between(5_000, 150_000);
    match world.below(16) {
        0 | 1 => {
            world.plan(when, Fault::Cordon(host, true));
            world.plan(until, Fault::Cordon(host, false));
        }
        2 | 3 => {
            world.plan(when, Fault::Ready(host, false));
            world.plan(until, Fault::Ready(host, true));
        }
        at @ (4 | 5) => {
            world.plan(
                when,
                Fault::Lost {
                    host,
                    silent: at == 4,
                },
            );
            world.plan(until, Fault::Back(host));
        }
        _ => {}
    }
}

/// Plans a roll in which pool and owner change at different times.
fn plan_owner(world: &mut World, pool: usize, rolls: Moment) {
    let apart = match world.below(4) {
        0 => world.between(50, 2_000),
        _ => world.between(2_000, 240_000),
    };
    let image = |image| Fault::Image { pool, image };
    let template = |image| Fault::Template { pool, image };
    let mut mended = rolls + apart;
    match world.setup.scenario {
        Scenario::TemplateLags => {
            world.plan(rolls, image(1));
            world.plan(mended, template(1));
        }
        Scenario::TemplateLeads => {
            world.plan(rolls, template(1));
            for _ in 0..2 {
                let within = proto::millis(apart);
                let when = world.between(0, within.max(1));
                world.plan(rolls + when, Fault::End(pool));
            }
            world.plan(mended, image(1));
        }
        Scenario::TwoSpellings => {
            // the owner has the tag, and the pool has the digest
            world.plan(rolls, template(1));
            world.plan(rolls, image(2));
            mended += Duration::from_mins(2);
            match world.below(2) {
                0 => world.plan(mended, template(2)),
                _ => world.plan(mended, image(1)),
            }
        }
        _ => {
            let before = world.between(0, 30_000);
            world.plan(rolls + before, Fault::Makes(pool, false));
            world.plan(rolls, image(1));
            if pool % 2 == 1 {
                let after = world.between(200_000, 600_000);
                world.plan(rolls + after, Fault::Makes(pool, true));
            }
            return;
        }
    }
    if !world.pools[pool].is_read() {
        // only the owner's Pods show the correction, so after a while an operator shows it
        let after = world.between(20_000, 120_000);
        world.plan(mended + after, Fault::Nudge(pool));
    }
}

fn nudge(world: &mut World, pool: usize) {
    let id = world.pools[pool].prepull.clone();
    let status = world.office.gate.status(&id);
    if status.is_none_or(|status| status.lag.is_none()) {
        return;
    }
    if world.below(2) == 0 {
        world.pools[pool].ended += 1;
        end_one(world, pool);
    } else {
        world.plan(world.now, Fault::Paused(pool, true));
        let lasts = world.between(1_000, 20_000);
        world.plan(world.now + lasts, Fault::Paused(pool, false));
    }
}

fn drain(world: &mut World, uid: u32, drains: bool) {
    if let Some(pod) = world.pods.get_mut(&uid).filter(|pod| !pod.exiting) {
        pod.operator_drain = drains;
        changed(world, uid);
    }
}

/// Ends one of a pool's idle running Pods that wasn't let go.
fn end_one(world: &mut World, pool: usize) {
    if let Some(uid) = idle_one(world, pool) {
        end(world, uid);
    }
}

/// One of a pool's idle running Pods that wasn't let go.
fn idle_one(world: &mut World, pool: usize) -> Option<u32> {
    let idle: Vec<u32> = world
        .pods
        .iter()
        .filter(|(_, pod)| {
            pod.pool == pool
                && pod.alive()
                && pod.phase == Phase::Running
                && !(pod.busy || pod.labelled || pod.exiting)
        })
        .map(|(uid, _)| *uid)
        .collect();
    let at = usize::try_from(world.below(idle.len() as u64)).unwrap_or(0);
    idle.get(at).copied()
}

pub(super) fn fault(world: &mut World, fault: Fault) {
    match fault {
        Fault::Image { pool, image } => {
            world.pools[pool].image = pool * IMAGES + image;
            world.pools[pool].agrees_since = None;
            world.pools[pool].compare(world.now);
            if let Owner::Template { read, .. } = &mut world.pools[pool].owner
                && *read != Template::Unknown
            {
                // the owner is read anew before the gate decides anything
                *read = Template::Unread;
                let takes = world.between(5, 300);
                world.push(takes, Due::Read(pool));
            }
            if world.setup.scenario == Scenario::Operator {
                world.pools[pool].resolved = false;
                let takes = world.between(100, 60_000);
                world.plan(world.now + takes, Fault::Resolved(pool));
            }
            show_prepull(world, pool);
        }
        Fault::Template { pool, image: to } => {
            if let Owner::Template { image, .. } = &mut world.pools[pool].owner {
                *image = pool * IMAGES + to;
            }
            world.pools[pool].compare(world.now);
        }
        Fault::End(pool) => {
            world.pools[pool].ended += 1;
            end_one(world, pool);
        }
        Fault::Makes(pool, makes) => {
            world.pools[pool].makes = makes;
            world.pools[pool].makes_since = world.now;
        }
        Fault::Nudge(pool) => nudge(world, pool),
        Fault::Replicas { pool, percent } => {
            world.pools[pool].replicas = world.pools[pool].base * percent / 100;
            show_prepull(world, pool);
        }
        Fault::Paused(pool, paused) => {
            world.pools[pool].paused = paused;
            show_prepull(world, pool);
        }
        Fault::Resolved(pool) => {
            world.pools[pool].resolved = true;
            show_prepull(world, pool);
        }
        Fault::Cordon(host, cordoned) => {
            world.hosts[host].schedulable = !cordoned;
            show_node(world, host);
        }
        Fault::Reserve(host, pool) => {
            world.hosts[host].reserved = pool;
            for pool in 0..world.pools.len() {
                show_prepull(world, pool);
            }
        }
        Fault::Drain(pool) => {
            let Some(uid) = idle_one(world, pool) else {
                return;
            };
            drain(world, uid, true);
            if world.below(2) == 0 {
                let lasts = world.between(500, 8_000);
                world.plan(world.now + lasts, Fault::LetBe(uid));
            }
        }
        Fault::LetBe(uid) => drain(world, uid, false),
        Fault::Ready(host, ready) => {
            world.hosts[host].ready = ready;
            show_node(world, host);
        }
        Fault::Lost { host, silent } => {
            (world.hosts[host].exists, world.hosts[host].ready) = (false, false);
            if silent {
                world.hosts[host].speaks_from = None;
            }
            host_came_or_went(world, host);
            let there: Vec<u32> = world
                .pods
                .iter()
                .filter(|(_, pod)| pod.host == Some(host))
                .map(|(uid, _)| *uid)
                .collect();
            for uid in there {
                delete(world, uid);
            }
        }
        Fault::Back(host) => {
            (world.hosts[host].exists, world.hosts[host].ready) = (true, true);
            world.hosts[host].speaks_from.get_or_insert(world.now);
            host_came_or_went(world, host);
        }
        Fault::Prune { host, image } => {
            if world.hosts[host].holds.remove(&image) {
                let takes = world.between(30_000, 120_000);
                world.calm_at = world.calm_at.max(world.now + takes);
                world.push(takes, Due::Staged(host, image));
            }
        }
        Fault::Silent(host) => world.hosts[host].speaks_from = None,
        Fault::Speaks(host) => world.hosts[host].speaks_from = Some(world.now),
    }
}

fn host_came_or_went(world: &mut World, host: usize) {
    show_node(world, host);
    for pool in 0..world.pools.len() {
        show_prepull(world, pool);
    }
}

pub(super) fn autoscale(world: &mut World, pool: usize) {
    let base = world.pools[pool].base;
    if world.now < ROLL_AT + AUTOSCALED_FOR {
        let by = i32::try_from(world.below(5)).unwrap_or(0) - 2;
        world.pools[pool].replicas = (base + by).max(0);
        world.push(Duration::from_secs(5), Due::Autoscale(pool));
    } else {
        world.pools[pool].replicas = base;
    }
    show_prepull(world, pool);
}
