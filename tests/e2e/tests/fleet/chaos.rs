//! `kill -9` at random moments, again and again: agents, the coordinator, all at once. In the end every disk is right,
//! nobody had to do anything, and little was fetched twice.
//!
//! `PARBAKE_CHAOS_SEED` gives another run, `PARBAKE_STORM_KILLS` a longer storm. The programs keep their own time, so a
//! seed fixes who is killed and how far the staging has come then, not the rest.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they ran"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use e2e::{
    cluster::{Cluster, wait_until},
    image::{ImageSpec, Mix},
    registry::Answer,
    rig::Rig,
    site::PATIENCE,
};
use proto::{CHUNK_BYTES, Digest};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

const HOSTS: usize = 4;
const KILLS: usize = 8;
/// 16 s without kills, in layers small enough that leases change hands often.
const DISK_BYTES: u64 = 128 << 20;
const LAYER_BYTES: u64 = 16 << 20;
const RATE_BYTES_PER_S: u64 = 8 << 20;

/// Kills of a storm, one every so often: about as long as the image takes without any.
const STORM_KILLS: u64 = 16;
const STORM_EVERY: Duration = Duration::from_millis(850);
/// What a storm may cost the registry on top of the image, in percent of it: a part of a chunk for each lease whose
/// holder is killed, and what nobody else had yet. The goal is 20; seeds 1 to 5 cost 4 to 7.
const STORM_PERCENT: u64 = 15;

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

#[test]
fn kills_at_random_moments_cost_a_second_each_and_nothing_else() {
    let seed = std::env::var("PARBAKE_CHAOS_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let spec = ImageSpec::incompressible(DISK_BYTES, LAYER_BYTES, seed);
    let rig = Rig::paced(&spec, RATE_BYTES_PER_S).unwrap();
    let mut cluster = rig.site.fleet(DEMO, HOSTS, "", "").unwrap();
    let begun = Instant::now();
    cluster.stage(&[&rig.reference]).unwrap();

    let (mut killed_agents, mut received) = (0, 0);
    let mut away = None;
    // the last kill falls well before the end, so that each meets a staging that moves
    let step = rig.image.blob_bytes() / (KILLS as u64 + 1);
    for (at, victim) in (1u64..).zip(victims(&mut dice)) {
        let moment = at * step - dice.below(step * 3 / 4);
        let reached = wait_until(PATIENCE, || rig.site.served() >= moment);
        assert!(reached, "stuck at {} of {moment} bytes", rig.site.served());
        if let Some(host) = away.take() {
            cluster.start_agent(host).unwrap();
        }
        println!(
            "{:?}: {victim:?} at {} bytes",
            begun.elapsed(),
            rig.site.served()
        );
        match victim {
            Victim::Coordinator => {
                cluster.kill_coordinator().unwrap();
                cluster.start_coordinator().unwrap();
            }
            Victim::Agent => {
                let host = usize::try_from(dice.below(HOSTS as u64)).unwrap();
                received += cluster.agents()[host].received("peers");
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
                    received += cluster.agents()[host].received("peers");
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
    let again = rig.site.served().saturating_sub(image);
    let kills = KILLS as u64;
    println!("{again} bytes of {image} left the registry again, for {kills} kills");
    assert!(again <= kills * RATE_BYTES_PER_S);
    for host in 0..HOSTS {
        received += cluster.agents()[host].received("peers");
    }
    // Everybody gets everything once, from the registry or from a peer, plus what kills lost: at the rate at which the
    // fleet takes in new bytes.
    let once = HOSTS as u64 * image;
    let again = (received + rig.site.served()).saturating_sub(once);
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

/// Bytes that left the registry again, by why. The image's blobs are as long as what they decode to, but for a
/// ten-thousandth, so a chunk's bytes are those at its offset.
#[derive(Debug, Default)]
struct Again {
    /// Of the chunk that was coming when its fetch ended.
    parts: u64,
    /// The end of the chunk before, behind which the next fetch went on.
    ends: u64,
    /// Whole chunks before that: who went on had them no more, or had never got them.
    chunks: u64,
    /// What came again in the midst of an answer, behind something new.
    read_over: u64,
}

impl Again {
    fn count(answers: &[Answer]) -> Self {
        let mut again = Self::default();
        let mut sent: BTreeMap<Digest, Vec<(u64, u64)>> = BTreeMap::new();
        for answer in answers {
            let (from, to) = (answer.from, answer.from + answer.bytes);
            let before = sent.entry(answer.digest).or_default();
            before.sort_unstable();
            // how far it only repeats, and what it repeats in all
            let (mut at, mut seen, mut repeated) = (from, from, 0);
            for (start, end) in before.iter().copied() {
                let (start, end) = (start.max(seen), end.min(to));
                if start < end {
                    repeated += end - start;
                    seen = end;
                    if start == at {
                        at = end;
                    }
                }
            }
            again.read_over += repeated - (at - from);
            let part = (at % CHUNK_BYTES).min(at - from);
            let end = (from.next_multiple_of(CHUNK_BYTES) - from).min(at - from - part);
            again.parts += part;
            again.ends += end;
            again.chunks += at - from - part - end;
            before.push((from, to));
        }
        again
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
    let rig = Rig::paced(&spec, RATE_BYTES_PER_S).unwrap();
    let mut cluster = rig.site.fleet(DEMO, HOSTS, "", "").unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    let begun = Instant::now();
    for _ in 0..kills {
        // time itself: a storm doesn't wait until anything has got on
        wait_until(STORM_EVERY, || false);
        let victim = Victim::of_storm(&mut dice);
        kill_and_start(&mut cluster, victim, &mut dice);
    }
    let (lasted, over) = (begun.elapsed(), Instant::now());
    rig.arrives(&cluster).unwrap();
    let image = rig.image.blob_bytes();
    let again = rig.site.served().saturating_sub(image);
    println!(
        "{kills} kills in {lasted:?}, present {:?} later, {} of {image} bytes left the registry",
        over.elapsed(),
        rig.site.served()
    );
    let answers = rig.site.registry.counters().answers;
    println!("of these again: {:?}", Again::count(&answers));
    assert!(again * 100 <= image * STORM_PERCENT, "{again}");
}

/// Kills a lone host amid a layer: how many bytes of it had been sent, and where the next answer began.
fn killed_amid(spec: &ImageSpec) -> (u64, u64) {
    let rig = Rig::paced(spec, 4 << 20).unwrap();
    let mut cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    let half = rig.image.blob_bytes() / 2;
    assert!(wait_until(PATIENCE, || rig.site.served() >= half));
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    rig.arrives(&cluster).unwrap();
    let mut answers = rig.site.registry.counters().answers;
    let layer = answers.iter().max_by_key(|answer| answer.bytes);
    let layer = layer.unwrap().digest;
    answers.retain(|answer| answer.digest == layer);
    match answers[..] {
        [first, second] => (first.bytes, second.from),
        _ => panic!("{answers:?}"),
    }
}

#[test]
fn a_killed_host_goes_on_behind_the_last_chunk_that_it_holds() {
    let spec = ImageSpec::incompressible(16 << 20, 16 << 20, 1);
    let (sent, from) = killed_amid(&spec);
    println!("{sent} bytes were sent, and it went on from {from}");
    // blocks of 64 KiB with headers: the last one of a chunk
    let end = from.next_multiple_of(CHUNK_BYTES) - from;
    assert!(from > 0 && from < sent && end <= (64 << 10) + 8, "{from}");

    // blocks that rest on what was decoded before them
    let mix = Mix {
        zero_percent: 10,
        compressible_percent: 60,
    };
    let (sent, from) = killed_amid(&ImageSpec { mix, ..spec });
    println!("{sent} bytes were sent, and it went on from {from}");
    assert!(from > 0 && from < sent, "{from}");
}
