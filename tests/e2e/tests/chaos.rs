//! `kill -9` at random moments, again and again: agents, the coordinator, all at once. In the end every disk is right,
//! nobody had to do anything, and little was fetched twice.
//!
//! `PARBAKE_CHAOS_SEED` gives another run, `PARBAKE_STORM_KILLS` a longer storm. The programs keep their own time, so a seed fixes who is killed and how far the
//! staging has come then, not the rest.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they ran"
)]

use std::time::{Duration, Instant};

use e2e::{
    cluster::{Cluster, Place, wait_until},
    image::ImageSpec,
    registry,
    rig::{PATIENCE, Rig},
};

const HOSTS: usize = 4;
const KILLS: usize = 8;
/// 16 s without kills, in layers small enough that leases change hands often.
const DISK_BYTES: u64 = 128 << 20;
const LAYER_BYTES: u64 = 16 << 20;
const RATE_BYTES_PER_S: u64 = 8 << 20;

/// Kills of a storm, one every so often: about as long as the image takes without any.
const STORM_KILLS: u64 = 16;
const STORM_EVERY: Duration = Duration::from_millis(850);
/// What a kill of a storm may cost the registry: chunks under way of each lease, and what the journal lacked that nobody else
/// had, of all hosts where all are killed.
const STORM_BYTES_PER_KILL: u64 = 3 << 20;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent,
    Coordinator,
    All,
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Every kind at least once, in any order.
fn victims(dice: &mut Dice) -> Vec<Victim> {
    let mut victims = vec![Victim::Agent, Victim::Coordinator, Victim::All];
    while victims.len() < KILLS {
        victims.push(match dice.below(4) {
            0 => Victim::All,
            1 => Victim::Coordinator,
            _ => Victim::Agent,
        });
    }
    for at in (1..KILLS).rev() {
        let other = dice.below(at as u64 + 1);
        victims.swap(at, usize::try_from(other).unwrap());
    }
    victims
}

/// What an agent's process received from peers: a restart begins at nothing.
fn from_peers(cluster: &Cluster, host: usize) -> u64 {
    let metric = "parbake_agent_received_bytes_total{source=\"peers\"}";
    let value = cluster.agents()[host].metric(metric).unwrap_or(0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter of some megabytes"
    )]
    let bytes = value as u64;
    bytes
}

#[test]
fn kills_at_random_moments_cost_a_second_each_and_nothing_else() {
    let seed = std::env::var("PARBAKE_CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let spec = ImageSpec::incompressible(DISK_BYTES, LAYER_BYTES, seed);
    let options = registry::Options {
        rate_bytes_per_s: Some(RATE_BYTES_PER_S),
        ..registry::Options::default()
    };
    let rig = Rig::new(&spec, options).unwrap();
    let mut cluster = rig
        .cluster(
            env!("CARGO_BIN_EXE_demo"),
            vec![Place::default(); HOSTS],
            "",
            "",
        )
        .unwrap();
    let begun = Instant::now();
    let staged = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert!(staged.status.success());

    let (mut killed_agents, mut received) = (0, 0);
    let mut away = None;
    // the last kill falls well before the end, so that each meets a staging that moves
    let step = rig.image.blob_bytes() / (KILLS as u64 + 1);
    for (at, victim) in (1u64..).zip(victims(&mut dice)) {
        let moment = at * step - dice.below(step * 3 / 4);
        let reached = wait_until(PATIENCE, || rig.served() >= moment);
        assert!(reached, "stuck at {} of {moment} bytes", rig.served());
        if let Some(host) = away.take() {
            cluster.start_agent(host).unwrap();
        }
        println!(
            "{:?}: {victim:?} at {} bytes",
            begun.elapsed(),
            rig.served()
        );
        match victim {
            Victim::Coordinator => {
                cluster.kill_coordinator().unwrap();
                cluster.start_coordinator().unwrap();
            }
            Victim::Agent => {
                let host = usize::try_from(dice.below(HOSTS as u64)).unwrap();
                received += from_peers(&cluster, host);
                killed_agents += 1;
                cluster.kill_agent(host).unwrap();
                // at once, or only when the next one is killed
                if dice.below(2) == 0 {
                    cluster.start_agent(host).unwrap();
                } else {
                    away = Some(host);
                }
            }
            Victim::All => {
                for host in 0..HOSTS {
                    received += from_peers(&cluster, host);
                    killed_agents += 1;
                    cluster.kill_agent(host).unwrap();
                }
                cluster.kill_coordinator().unwrap();
                cluster.start_coordinator().unwrap();
                for host in 0..HOSTS {
                    cluster.start_agent(host).unwrap();
                }
            }
        }
    }
    if let Some(host) = away {
        cluster.start_agent(host).unwrap();
    }
    cluster
        .wait_present(&rig.image.digest.to_string(), PATIENCE)
        .unwrap();
    println!("{:?}: present everywhere", begun.elapsed());
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    for agent in cluster.agents() {
        assert!(cluster.verify(agent, &rig.reference).unwrap());
    }

    let image = rig.image.blob_bytes();
    let again = rig.served().saturating_sub(image);
    let kills = KILLS as u64;
    println!("{again} bytes of {image} left the registry again, for {kills} kills");
    assert!(again <= kills * RATE_BYTES_PER_S);
    for host in 0..HOSTS {
        received += from_peers(&cluster, host);
    }
    // Everybody gets everything once, from the registry or from a peer, plus what kills lost: at the rate at which the
    // fleet takes in new bytes.
    let once = HOSTS as u64 * image;
    let again = (received + rig.served()).saturating_sub(once);
    println!("{again} bytes of {once} were received again, for {killed_agents} killed agents");
    assert!(again <= killed_agents * RATE_BYTES_PER_S);
}

impl Victim {
    /// As in a storm: mostly one agent, now and then the coordinator, seldom all at once.
    fn of_storm(dice: &mut Dice) -> Self {
        match dice.below(20) {
            0 => Self::All,
            1..=2 => Self::Coordinator,
            _ => Self::Agent,
        }
    }
}

fn kill_and_start(cluster: &mut Cluster, victim: Victim, dice: &mut Dice) {
    let hosts = match victim {
        Victim::Agent => vec![usize::try_from(dice.below(HOSTS as u64)).unwrap()],
        Victim::Coordinator => Vec::new(),
        Victim::All => (0..HOSTS).collect(),
    };
    for host in &hosts {
        cluster.kill_agent(*host).unwrap();
    }
    if victim != Victim::Agent {
        cluster.kill_coordinator().unwrap();
        cluster.start_coordinator().unwrap();
    }
    for host in hosts {
        cluster.start_agent(host).unwrap();
    }
}

#[test]
fn a_storm_of_kills_costs_the_registry_little() {
    let seed = std::env::var("PARBAKE_CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    let kills = std::env::var("PARBAKE_STORM_KILLS");
    let kills = kills.map_or(STORM_KILLS, |kills| kills.parse().unwrap());
    println!("seed {seed}, {kills} kills");
    let mut dice = Dice(seed);
    // an image is on its way all the time
    let disk = DISK_BYTES * kills.div_ceil(STORM_KILLS);
    let spec = ImageSpec::incompressible(disk, LAYER_BYTES, seed);
    let options = registry::Options {
        rate_bytes_per_s: Some(RATE_BYTES_PER_S),
        ..registry::Options::default()
    };
    let rig = Rig::new(&spec, options).unwrap();
    let hosts = vec![Place::default(); HOSTS];
    let demo = env!("CARGO_BIN_EXE_demo");
    let mut cluster = rig.cluster(demo, hosts, "", "").unwrap();
    let staged = cluster.parbake(&["stage", &rig.reference]).unwrap();
    assert!(staged.status.success());
    let begun = Instant::now();
    for _ in 0..kills {
        // time itself: a storm doesn't wait until anything has got on
        wait_until(STORM_EVERY, || false);
        let victim = Victim::of_storm(&mut dice);
        kill_and_start(&mut cluster, victim, &mut dice);
    }
    let (lasted, over) = (begun.elapsed(), Instant::now());
    cluster
        .wait_present(&rig.image.digest.to_string(), PATIENCE)
        .unwrap();
    assert_eq!(rig.difference_anywhere(&cluster).unwrap(), None);
    let image = rig.image.blob_bytes();
    let again = rig.served().saturating_sub(image);
    println!(
        "{kills} kills in {lasted:?}, present {:?} later, {} of {image} bytes left the registry",
        over.elapsed(),
        rig.served()
    );
    assert!(again <= kills * STORM_BYTES_PER_KILL, "{again}");
}
