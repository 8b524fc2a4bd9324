//! What will go wrong in a scenario, and who will want what.

use crate::scenario::{Party, Rogue, Scenario};

use super::{
    clients::LATE,
    contents::LATER,
    due::{Due, Fault},
    node::{Manner, Pit},
    rogue::ROGUE_EVERY,
    state::{State, WARM_UP},
    units::{index, precise, seconds},
};

/// A connection ends when it was silent for so long.
const IDLE_S: f64 = 15.0;
/// Events of each staging host that the coordinator gets per second: where the host stands, what it holds, and at times
/// how a lease goes.
const EVENTS_PER_S: f64 = 2.2;
/// Half of the hosts have a client for each blob, and they come within this time.
const CLIENTS_PERCENT: usize = 50;
const CLIENTS_WITHIN: usize = 2_000_000_000;

/// All hosts in an order by lot, so that faults meet any of them.
struct Shuffled {
    order: Vec<usize>,
}

impl Shuffled {
    fn new(world: &mut State) -> Self {
        let mut order: Vec<usize> = (0..world.nodes.len()).collect();
        for at in (1..order.len()).rev() {
            let other = world.random(at + 1);
            order.swap(at, other);
        }
        Self { order }
    }

    /// So many hosts from this one on.
    fn some(&self, from: usize, many: usize) -> Vec<usize> {
        let rest = self.order.iter().copied().skip(from);
        rest.take(many).collect()
    }

    /// How many hosts so many percent of them are, rounded up.
    fn share(&self, percent: usize) -> usize {
        (self.order.len() * percent).div_ceil(100)
    }

    /// The same, rounded down.
    fn share_down(&self, percent: usize) -> usize {
        self.order.len() * percent / 100
    }
}

/// Decides what will go wrong.
pub(super) fn plan_faults(world: &mut State) {
    let hosts = Shuffled::new(world);
    match world.setup.scenario {
        // nothing does, or what their registry gives is slow from the beginning
        Scenario::Fanout
        | Scenario::Several
        | Scenario::Opposite
        | Scenario::Release
        | Scenario::Mirror
        | Scenario::MirrorSlow
        | Scenario::SlowRegistry
        | Scenario::ShortConnections => {}
        Scenario::Faults
        | Scenario::Liars
        | Scenario::Rogues
        | Scenario::TarPits
        | Scenario::Slow => plan_bad_hosts(world, &hosts),
        Scenario::Restart
        | Scenario::Late
        | Scenario::Leftover
        | Scenario::Vanish
        | Scenario::Storm
        | Scenario::DiskFails
        | Scenario::Cut => plan_absences(world, &hosts),
        Scenario::Corrupt | Scenario::Throttle | Scenario::Refuse => plan_bad_registry(world),
        Scenario::Headless
        | Scenario::MirrorAlone
        | Scenario::MissingLayer
        | Scenario::Starved
        | Scenario::Paused => plan_orders(world),
    }
    world.faults_left = world.faults.len();
}

/// Some hosts are slow, crash, lie, or hold others up.
fn plan_bad_hosts(world: &mut State, hosts: &Shuffled) {
    match world.setup.scenario {
        Scenario::Faults => {
            let (crashes, slows) = (hosts.share(2), hosts.share(5));
            if world.nodes.len() > 2 {
                make_liar(world, hosts.order[0]);
            }
            for host in hosts.some(1, slows) {
                slow_down(world, host, false);
            }
            let bound = world.bound_s();
            for host in hosts.some(1 + slows, crashes) {
                let at = bound * (0.1 + 0.6 * precise(world.random(1_000) as u64) / 1_000.0);
                let away = (bound * 0.05).clamp(2.0, 20.0);
                world.nodes[host].keeps_recent = true;
                strikes_at(world, at, Fault::Crash(index(host)));
                strikes_at(world, at + away, Fault::Return(index(host)));
            }
        }
        Scenario::Liars => {
            for host in hosts.some(0, hosts.share_down(30)) {
                make_liar(world, host);
            }
        }
        Scenario::Rogues => make_rogues(world, &hosts.some(0, hosts.share_down(30))),
        Scenario::TarPits => {
            for (at, host) in hosts.some(0, hosts.share_down(30)).into_iter().enumerate() {
                let pit = if at % 2 == 0 {
                    Pit::Sender
                } else {
                    Pit::Reader
                };
                world.nodes[host].pit = Some(pit);
                world.nodes[host].wanted = false;
            }
        }
        Scenario::Slow => {
            for host in hosts.some(0, hosts.share(5)) {
                slow_down(world, host, true);
            }
        }
        _ => {}
    }
}

/// Hosts, or the lines between them, are away for a while or for ever.
fn plan_absences(world: &mut State, hosts: &Shuffled) {
    let bound = world.bound_s();
    match world.setup.scenario {
        Scenario::Restart => {
            for node in &mut world.nodes {
                node.keeps_recent = true;
            }
            strikes_at(world, bound / 2.0, Fault::AllDown);
            strikes_at(world, bound / 2.0 + 2.0, Fault::AllUp);
        }
        Scenario::Late => {
            for host in hosts.some(0, hosts.share_down(20)) {
                world.nodes[host].alive = false;
                strikes_at(world, bound / 2.0, Fault::Join(index(host)));
            }
            world.joined_s = bound / 2.0;
        }
        Scenario::Leftover => {
            for host in hosts.some(0, hosts.share_down(10)) {
                strikes_at(world, bound * 0.3, Fault::Crash(index(host)));
                strikes_at(world, bound * 0.6, Fault::Return(index(host)));
            }
            strikes_at(world, bound * 0.4, Fault::Unwanted);
            strikes_at(world, bound * 0.5, Fault::CoordinatorChanges);
        }
        Scenario::Vanish => {
            strikes_at(world, bound * 0.3, Fault::HolderVanishes);
            strikes_at(world, bound * 0.6, Fault::HolderVanishes);
        }
        Scenario::Storm => {
            for (at, host) in hosts.some(0, world.nodes.len()).into_iter().enumerate() {
                let at =
                    bound * (0.1 + 0.7 * precise(at as u64) / precise(world.nodes.len() as u64));
                world.nodes[host].keeps_recent = true;
                strikes_at(world, at, Fault::Crash(index(host)));
                strikes_at(world, at + 1.0, Fault::Return(index(host)));
            }
        }
        Scenario::DiskFails => {
            for at in [0.3, 0.45, 0.6] {
                strikes_at(world, bound * at, Fault::DiskFails);
            }
        }
        Scenario::Cut => {
            strikes_at(world, bound * 0.3, Fault::Cut);
            strikes_at(world, bound * 0.3 + 15.0, Fault::Heal);
        }
        _ => {}
    }
}

/// The registry gives false bytes, little, or nothing.
fn plan_bad_registry(world: &mut State) {
    let bound = world.bound_s();
    match world.setup.scenario {
        Scenario::Corrupt => {
            watch_sources(world);
            for at in [0.1, 0.4, 0.7] {
                strikes_at(world, bound * at, Fault::OriginCorrupt);
            }
        }
        Scenario::Throttle => {
            let rate = world.uplinks[world.nodes.len()].rate;
            strikes_at(world, bound * 0.2, Fault::OriginRate(rate / 4));
            strikes_at(world, bound * 0.3, Fault::OriginRate(rate));
            strikes_at(world, bound * 0.5, Fault::OriginDown);
            strikes_at(world, bound * 0.5 + 20.0, Fault::OriginUp);
            world.lost_s = bound * 0.1 * 0.75 + 20.0;
        }
        Scenario::Refuse => {
            let (throttled, down) = (90, 300);
            strikes_at(world, bound * 0.2, Fault::OriginThrottles(throttled));
            let at = bound * 0.6 + precise(throttled);
            strikes_at(world, at, Fault::OriginDown);
            strikes_at(world, at + precise(down), Fault::OriginUp);
            world.lost_s = precise(throttled + down);
        }
        _ => {}
    }
}

/// The coordinator is away, falls behind, or wants something else.
fn plan_orders(world: &mut State) {
    let bound = world.bound_s();
    match world.setup.scenario {
        Scenario::Headless => {
            strikes_at(world, bound / 3.0, Fault::CoordinatorGone);
        }
        Scenario::MirrorAlone => {
            for node in &mut world.nodes {
                node.wanted = false;
            }
            strikes_at(world, 0.5, Fault::CoordinatorGone);
            strikes_at(world, 4.0, Fault::FetcherVanishes);
        }
        Scenario::MissingLayer => strikes_at(world, 60.0, Fault::Order(LATER)),
        Scenario::Starved => {
            strikes_at(world, bound * 0.15, Fault::CoordinatorStands(seconds(5.0)));
            strikes_at(world, bound * 0.3, Fault::CoordinatorStands(seconds(12.0)));
            // a fifth more than it has time for
            let each = 1.2 / (EVENTS_PER_S * precise(world.nodes.len() as u64));
            strikes_at(world, bound * 0.5, Fault::CoordinatorWorks(seconds(each)));
            strikes_at(world, bound * 0.7, Fault::CoordinatorWorks(0));
            let stands = IDLE_S + 5.0;
            strikes_at(
                world,
                bound * 0.75,
                Fault::CoordinatorStands(seconds(stands)),
            );
            strikes_at(
                world,
                bound * 0.75 + IDLE_S,
                Fault::SessionsLost(seconds(stands - IDLE_S)),
            );
        }
        Scenario::Paused => {
            strikes_at(world, bound * 0.4, Fault::Pause);
            strikes_at(world, bound * 0.4 + 5.0, Fault::Still);
            strikes_at(world, bound * 0.4 + 30.0, Fault::Resume);
            world.lost_s = 30.0;
        }
        _ => {}
    }
}

/// Halves a host's rate up, and down where asked.
fn slow_down(world: &mut State, host: usize, down: bool) {
    world.uplinks[host].rate = (world.uplinks[host].rate / 2).max(1);
    if down {
        world.nodes[host].down.rate = (world.nodes[host].down.rate / 2).max(1);
    }
}

/// A fault strikes so long after the image is ordered first.
fn strikes_at(world: &mut State, after_s: f64, fault: Fault) {
    let at = WARM_UP + seconds(world.release_after_s() + after_s);
    world.faults.push((at, fault));
    let number = world.faults.len() - 1;
    world.at(at, Due::Fault(number));
}

/// Notes from now on who made what.
fn watch_sources(world: &mut State) {
    if world.lies {
        return;
    }
    world.lies = true;
    for at in 0..world.nodes.len() {
        let chunks = || world.specs.iter().map(|spec| spec.geometry.chunks());
        world.nodes[at].sources = chunks().map(|chunks| vec![None; chunks as usize]).collect();
        world.nodes[at].proved_from = chunks().collect();
    }
}

fn make_liar(world: &mut State, host: usize) {
    watch_sources(world);
    let manners = [Manner::Plain, Manner::Scattered, Manner::Perjured];
    world.nodes[host].manner = manners[host % manners.len()];
    world.nodes[host].liar = true;
    world.nodes[host].wanted = false;
}

/// These hosts are rogues. Unless the setup names a manner, each lies to the coordinator in one way and to its peers in
/// another, so that every way is among them.
fn make_rogues(world: &mut State, hosts: &[usize]) {
    let of = |party: Party| -> Vec<Rogue> {
        let all = Rogue::ALL.into_iter();
        let (recipe, release) = (world.setup.recipe, world.setup.change_percent.is_some());
        let fits = |rogue: &Rogue| {
            let says_something = match rogue {
                Rogue::Doubt => recipe,
                Rogue::Ranges => release,
                _ => true,
            };
            rogue.party() == party && says_something
        };
        all.filter(fits).collect()
    };
    let (coordinator, peers) = (of(Party::Coordinator), of(Party::Peers));
    let turn = usize::try_from(world.setup.seed).unwrap_or(0);
    for (at, host) in hosts.iter().copied().enumerate() {
        let rogues = match world.setup.manner {
            Some(manner) => vec![manner],
            None => vec![
                coordinator[(at + turn) % coordinator.len()],
                peers[(at + turn / coordinator.len()) % peers.len()],
            ],
        };
        for rogue in &rogues {
            match rogue {
                Rogue::Lie => make_liar(world, host),
                Rogue::NotSent => world.nodes[host].pit = Some(Pit::Sender),
                Rogue::NotTaken => world.nodes[host].pit = Some(Pit::Reader),
                _ => {}
            }
        }
        world.nodes[host].wanted = false;
        world.nodes[host].rogues = rogues;
        let host = index(host);
        world.at(WARM_UP + ROGUE_EVERY, Due::Rogue(host));
    }
}

/// Decides who will want what. Blobs are wanted before the image is ordered, while it is staged, and after that.
pub(super) fn plan_clients(world: &mut State) {
    let staging = world.bound_s();
    let starts = [0.0, 0.3 * staging, 0.6 * staging, 1.2 * staging];
    for content in 0..world.specs.len() {
        if !world.is_mirrored(index(content)) {
            continue;
        }
        let after = WARM_UP + LATE + seconds(starts[content % starts.len()]);
        let sure = world.random(world.nodes.len());
        for host in 0..world.nodes.len() {
            let comes = world.random(100) < CLIENTS_PERCENT;
            let within = world.random(CLIENTS_WITHIN) as u64;
            if comes || host == sure {
                world.mirrors.expect();
                let (host, content) = (index(host), index(content));
                world.at(after + within, Due::Client { host, content });
            }
        }
    }
    world.at(WARM_UP, Due::Queue);
}
