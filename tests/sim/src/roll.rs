//! Rolls: the real gate in a seeded cluster with virtual time.
//!
//! The world holds what is true: pools, Pods, nodes, and the images on hosts. The office is a coordinator. It tells the
//! gate what watches and agents would tell, late and in another order. It carries out the gate's writes, some of which
//! fail or lose their answers. The checks compare what is true with what was told. They never use the gate's own books.

mod check;
mod cluster;
mod coordinator;
mod due;
mod faults;
mod office;
mod outcome;
mod scenario;
mod tally;
mod watches;
mod world;

use std::{cmp::Reverse, time::Duration};

use proto::Digest;
use rollout::gate::{self, Before, Mode, OnDeadline, PrePullId, Template};

use self::{
    check::{check_places, is_rolled, sample, say_who_waits},
    cluster::{boot, empty_hosts, end, job_done, poll, read_owner, reconcile, remove, warm_up},
    coordinator::{answer, effect, hear, look, other_controller, see, start, tick, write_statuses},
    due::Due,
    faults::{autoscale, fault as happen, plan_faults},
    world::{Host, IMAGES, Image, Owner, PODS_PER_HOST, POOLS, Pool, ROLL_AT, World},
};

pub use outcome::Outcome;
pub use scenario::{Scenario, Setup};

/// The part of the fleet's room that is left for scale-ups, in per cent.
const FREE_PERCENT: usize = 20;

/// The worst time for one Pod: a slot or place that waits in vain, then poll, exit, reconcile, and a boot that pulls.
const CYCLE: Duration = Duration::from_secs(330);

/// The time that a roll may need once: the slowest staging, the longest job, and the longest wait after refused writes.
const SETTLE: Duration = Duration::from_secs(700);

const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// How often the coordinator reads what an owner makes.
const READ_EVERY: Duration = Duration::from_secs(5);

/// The image that a pool runs at first.
const fn first_image(scenario: Scenario, pool: usize) -> usize {
    match scenario {
        // half of the pools have rolled before
        Scenario::TwoSpellings => pool * IMAGES + pool % 2,
        _ => pool * IMAGES,
    }
}

/// Runs a roll to its end.
#[must_use]
pub fn run(setup: &Setup) -> Outcome {
    let mut world = World::new(setup);
    populate(&mut world);
    run_to_end(&mut world)
}

/// Makes the cluster before the roll, and plans what happens to it.
fn populate(world: &mut World) {
    let scenario = world.setup.scenario;
    world.jobs_percent = *world.one_of(&[0, 1, 5]);
    match scenario {
        Scenario::NoOwner => world.jobs_percent = 0,
        Scenario::FleetCap => {
            // where many jobs end, their successors use the fleet's cap up
            world.jobs_percent = world.jobs_percent.min(1);
            world.fleet_cap = Some(*world.one_of(&[1, 2, 4]));
        }
        _ => {}
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
            world.images.push(Image { reference, digest });
        }
        let digest = world.images[at * IMAGES + 1].digest;
        let reference = format!("registry.test/xcode-{at}@{digest}");
        world.images.push(Image { reference, digest });
    }
    for at in 0..world.setup.hosts {
        let id = format!("mini-{at}").parse().expect("a host's name");
        world.hosts.push(Host {
            id,
            exists: true,
            ready: true,
            schedulable: true,
            reserved: None,
            holds: (0..POOLS).map(|at| first_image(scenario, at)).collect(),
            speaks_from: Some(world.now),
        });
        let first = world.between(0, 5_000);
        world.push(first, Due::Look(at));
    }
    let free = match scenario {
        Scenario::Scale | Scenario::Autoscale => 2 * FREE_PERCENT + 5,
        _ => FREE_PERCENT,
    };
    let room = world.setup.hosts * PODS_PER_HOST * (100 - free) / 100;
    let replicas = i32::try_from((room / POOLS).max(1)).unwrap_or(i32::MAX);
    for at in 0..POOLS {
        let percent = match scenario {
            Scenario::CapOne => 5,
            _ => *world.one_of(&[5, 10, 20, 50]),
        };
        let heartbeats = world.below(2) == 0;
        let image = first_image(scenario, at);
        let owner = match scenario {
            Scenario::TemplateLags | Scenario::TemplateLeads | Scenario::TwoSpellings => {
                let read = match world.below(3) {
                    0 => Template::Unknown,
                    _ => Template::Unread,
                };
                let first = world.between(0, 5_000);
                world.push(first, Due::Read(at));
                Owner::Template { image, read }
            }
            _ => Owner::RunnerPool,
        };
        world.pools.push(Pool {
            prepull: PrePullId(format!("runners/xcode-{at}")),
            image,
            owner,
            makes: true,
            makes_since: world.now,
            agrees_since: Some(world.now),
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
            reaped: Vec::new(),
        });
        world.push(Duration::ZERO, Due::Reconcile(at));
    }
    world.push(Duration::ZERO, Due::Start(0));
    world.push(SAMPLE_EVERY, Due::Sample);
    plan_faults(world);
}

/// Runs the world until every roll has ended or the time is up.
fn run_to_end(world: &mut World) -> Outcome {
    loop {
        let slowest = world
            .pools
            .iter()
            .map(|pool| {
                u32::try_from(pool.replicas)
                    .unwrap_or(0)
                    .div_ceil(gate::cap(pool.percent, pool.replicas))
            })
            .max()
            .unwrap_or(0);
        let all = world.pools.iter().map(|pool| pool.replicas.unsigned_abs());
        let slowest = match world.fleet_cap {
            Some(most) => slowest.max(all.sum::<u32>().div_ceil(most)),
            None => slowest,
        };
        let bound = world.calm_at + SETTLE + CYCLE * slowest;
        let Some(Reverse(entry)) = world.due.pop() else {
            break;
        };
        world.now = entry.at;
        world.outcome.steps += 1;
        let sampled = matches!(entry.due, Due::Sample);
        let outside = matches!(entry.due, Due::Fault(_) | Due::Autoscale(_));
        take(world, entry.due);
        let outside = std::mem::take(&mut world.tally.outside) || outside;
        check_places(world, outside);
        if sampled && world.now > world.calm_at {
            let complete = (0..world.pools.len())
                .filter(|at| is_rolled(world, *at))
                .count();
            world.outcome.complete = complete;
            if complete == world.pools.len() || world.now > bound {
                world.outcome.bound_s = bound.since(ROLL_AT).as_secs();
                break;
            }
        }
    }
    world.outcome.roll_s = world.now.since(ROLL_AT).as_secs();
    if world.outcome.complete < world.outcome.pools {
        say_who_waits(world);
    }
    std::mem::take(&mut world.outcome)
}

fn take(world: &mut World, due: Due) {
    match due {
        Due::Reconcile(pool) => {
            empty_hosts(world);
            reconcile(world, pool);
            let again = world.between(2_000, 8_000);
            world.push(again, Due::Reconcile(pool));
        }
        Due::Read(pool) => {
            read_owner(world, pool);
            world.push(READ_EVERY, Due::Read(pool));
        }
        Due::Boot(uid) => boot(world, uid),
        Due::Warm(uid) => warm_up(world, uid),
        Due::Poll(uid) => poll(world, uid),
        Due::JobDone(uid) => job_done(world, uid),
        Due::Exit(uid) => end(world, uid),
        Due::Removed(uid) => remove(world, uid),
        Due::Staged(host, image) => {
            world.hosts[host].holds.insert(image);
        }
        Due::Look(host) => look(world, host),
        Due::Word {
            term,
            host,
            looked,
            holds,
        } => hear(world, term, host, looked, holds),
        Due::Sight(term, sight) => see(world, term, sight),
        Due::Effect(write) => effect(world, write),
        Due::Answer(write, outcome) => answer(world, &write, outcome),
        Due::Tick(term) => tick(world, term),
        Due::Start(term) => start(world, term),
        Due::Other(pool) => {
            other_controller(world, pool);
            let again = world.between(4_000, 10_000);
            world.push(again, Due::Other(pool));
        }
        Due::Autoscale(pool) => autoscale(world, pool),
        Due::Fault(fault) => happen(world, fault),
        Due::Sample => {
            sample(world);
            write_statuses(world);
            world.push(SAMPLE_EVERY, Due::Sample);
        }
    }
}
