//! What goes wrong, and when.

use super::*;
use crate::scenario::Scenario;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The agent is killed; what its journal didn't vouch for is lost.
    Crash(u32),
    /// It comes back.
    Return(u32),
    /// The host joins the fleet.
    Join(u32),
    /// Some lease holder leaves for ever.
    HolderVanishes,
    /// Some host that fetches leaves for ever.
    FetcherVanishes,
    /// The disk of some lease holder fails.
    DiskFails,
    Cut,
    Heal,
    CoordinatorGone,
    /// Another coordinator takes over.
    CoordinatorChanges,
    /// The image isn't wanted any more on the hosts that are away.
    Unwanted,
    OriginRate(u64),
    OriginDown,
    /// An image is wanted from now on, too.
    Order(usize),
    OriginUp,
    /// What the registry sends of some content that is being fetched is false from here on.
    OriginCorrupt,
    /// The image is held everywhere.
    Hold,
    /// What was under way has come in: nothing more moves from here.
    Still,
    /// It is wanted again.
    Resume,
    /// It breaks all streams off, and refuses new ones for so many seconds, which it says.
    OriginThrottles(u64),
    /// The coordinator handles nothing for so long, and then what has come meanwhile.
    CoordinatorStands(Nanos),
    /// Each event takes the coordinator so long from now on.
    CoordinatorWorks(Nanos),
    /// All hosts lose their session with a coordinator that stands still, and get another one after so long.
    SessionsLost(Nanos),
    /// All agents and the coordinator are killed.
    AllDown,
    AllUp,
}

/// A connection ends when it was silent for so long.
const IDLE_S: f64 = 15.0;
/// What a host that stages tells the coordinator each second: where it stands, what it holds, and now and then of a lease.
const EVENTS_PER_S: f64 = 2.2;

impl World {
    /// Decides what will go wrong.
    pub(super) fn plan_faults(&mut self) {
        let count = self.nodes.len();
        let share = |percent: usize| (count * percent).div_ceil(100);
        let slow = |world: &mut Self, host: usize, down: bool| {
            world.uplinks[host].rate = (world.uplinks[host].rate / 2).max(1);
            if down {
                world.nodes[host].down.rate = (world.nodes[host].down.rate / 2).max(1);
            }
        };
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            let other = self.random(at + 1);
            order.swap(at, other);
        }
        let pick = |from: usize, many: usize| {
            order
                .iter()
                .copied()
                .skip(from)
                .take(many)
                .collect::<Vec<_>>()
        };
        match self.setup.scenario {
            Scenario::Fanout => {}
            Scenario::Faults => {
                let (crashes, slows) = (share(2), share(5));
                if count > 2 {
                    self.make_liar(order[0]);
                }
                for host in pick(1, slows) {
                    slow(self, host, false);
                }
                let bound = self.bound_s();
                for host in pick(1 + slows, crashes) {
                    let at = bound * (0.1 + 0.6 * precise(self.random(1_000) as u64) / 1_000.0);
                    let away = (bound * 0.05).clamp(2.0, 20.0);
                    self.nodes[host].keeps_recent = true;
                    self.fault(at, Fault::Crash(index(host)));
                    self.fault(at + away, Fault::Return(index(host)));
                }
            }
            Scenario::Liars => {
                for host in pick(0, count * 3 / 10) {
                    self.make_liar(host);
                }
            }
            Scenario::Rogues => self.make_rogues(&pick(0, count * 3 / 10)),
            Scenario::TarPits => {
                for (at, host) in pick(0, count * 3 / 10).into_iter().enumerate() {
                    let pit = if at % 2 == 0 {
                        Pit::Sender
                    } else {
                        Pit::Reader
                    };
                    self.nodes[host].pit = Some(pit);
                    self.nodes[host].wanted = false;
                }
            }
            Scenario::Corrupt => {
                self.watch_sources();
                let bound = self.bound_s();
                for at in [0.1, 0.4, 0.7] {
                    self.fault(bound * at, Fault::OriginCorrupt);
                }
            }
            Scenario::Headless => {
                let bound = self.bound_s();
                self.fault(bound / 3.0, Fault::CoordinatorGone);
            }
            Scenario::Restart => {
                let bound = self.bound_s();
                for node in &mut self.nodes {
                    node.keeps_recent = true;
                }
                self.fault(bound / 2.0, Fault::AllDown);
                self.fault(bound / 2.0 + 2.0, Fault::AllUp);
            }
            Scenario::Slow => {
                for host in pick(0, share(5)) {
                    slow(self, host, true);
                }
            }
            Scenario::Throttle => {
                let bound = self.bound_s();
                let rate = self.uplinks[count].rate;
                self.fault(bound * 0.2, Fault::OriginRate(rate / 4));
                self.fault(bound * 0.3, Fault::OriginRate(rate));
                self.fault(bound * 0.5, Fault::OriginDown);
                self.fault(bound * 0.5 + 20.0, Fault::OriginUp);
                self.lost_s = bound * 0.1 * 0.75 + 20.0;
            }
            Scenario::Refuse => {
                let bound = self.bound_s();
                let (throttled, down) = (90, 300);
                self.fault(bound * 0.2, Fault::OriginThrottles(throttled));
                let at = bound * 0.6 + precise(throttled);
                self.fault(at, Fault::OriginDown);
                self.fault(at + precise(down), Fault::OriginUp);
                self.lost_s = precise(throttled + down);
            }
            Scenario::Cut => {
                let bound = self.bound_s();
                self.fault(bound * 0.3, Fault::Cut);
                self.fault(bound * 0.3 + 15.0, Fault::Heal);
            }
            Scenario::Late => {
                let bound = self.bound_s();
                for host in pick(0, count / 5) {
                    self.nodes[host].alive = false;
                    self.fault(bound / 2.0, Fault::Join(index(host)));
                }
                self.joined_s = bound / 2.0;
            }
            Scenario::Leftover => {
                let bound = self.bound_s();
                for host in pick(0, count / 10) {
                    self.fault(bound * 0.3, Fault::Crash(index(host)));
                    self.fault(bound * 0.6, Fault::Return(index(host)));
                }
                self.fault(bound * 0.4, Fault::Unwanted);
                self.fault(bound * 0.5, Fault::CoordinatorChanges);
            }
            Scenario::Vanish => {
                let bound = self.bound_s();
                self.fault(bound * 0.3, Fault::HolderVanishes);
                self.fault(bound * 0.6, Fault::HolderVanishes);
            }
            // what their registry gives is slow from the beginning
            Scenario::SlowRegistry | Scenario::ShortConnections => {}
            Scenario::Mirror | Scenario::MirrorSlow => {}
            Scenario::MirrorAlone => {
                for node in &mut self.nodes {
                    node.wanted = false;
                }
                self.fault(0.5, Fault::CoordinatorGone);
                self.fault(4.0, Fault::FetcherVanishes);
            }
            Scenario::MissingLayer => self.fault(60.0, Fault::Order(LATER)),
            Scenario::Storm => {
                let bound = self.bound_s();
                for (at, host) in pick(0, count).into_iter().enumerate() {
                    let at = bound * (0.1 + 0.7 * precise(at as u64) / precise(count as u64));
                    self.nodes[host].keeps_recent = true;
                    self.fault(at, Fault::Crash(index(host)));
                    self.fault(at + 1.0, Fault::Return(index(host)));
                }
            }
            Scenario::DiskFails => {
                let bound = self.bound_s();
                for at in [0.3, 0.45, 0.6] {
                    self.fault(bound * at, Fault::DiskFails);
                }
            }
            Scenario::Starved => {
                let bound = self.bound_s();
                self.fault(bound * 0.15, Fault::CoordinatorStands(seconds(5.0)));
                self.fault(bound * 0.3, Fault::CoordinatorStands(seconds(12.0)));
                // a fifth more than it has time for
                let each = 1.2 / (EVENTS_PER_S * precise(count as u64));
                self.fault(bound * 0.5, Fault::CoordinatorWorks(seconds(each)));
                self.fault(bound * 0.7, Fault::CoordinatorWorks(0));
                let stands = IDLE_S + 5.0;
                self.fault(bound * 0.75, Fault::CoordinatorStands(seconds(stands)));
                self.fault(
                    bound * 0.75 + IDLE_S,
                    Fault::SessionsLost(seconds(stands - IDLE_S)),
                );
            }
            Scenario::Held => {
                let bound = self.bound_s();
                self.fault(bound * 0.4, Fault::Hold);
                self.fault(bound * 0.4 + 5.0, Fault::Still);
                self.fault(bound * 0.4 + 30.0, Fault::Resume);
                self.lost_s = 30.0;
            }
        }
        self.faults_left = self.faults.len();
    }

    fn fault(&mut self, after_s: f64, fault: Fault) {
        let at = WARM_UP + seconds(after_s);
        self.faults.push((at, fault));
        let number = self.faults.len() - 1;
        self.at(at, Due::Fault(number));
    }

    /// Notes from now on who made what.
    fn watch_sources(&mut self) {
        if self.lies {
            return;
        }
        self.lies = true;
        for at in 0..self.nodes.len() {
            let chunks = || self.specs.iter().map(|spec| spec.geometry.chunks());
            self.nodes[at].sources = chunks().map(|chunks| vec![None; chunks as usize]).collect();
            self.nodes[at].proved_from = chunks().collect();
        }
    }

    pub(super) fn make_liar(&mut self, host: usize) {
        self.watch_sources();
        let manners = [Manner::Plain, Manner::Scattered, Manner::Perjured];
        self.nodes[host].manner = manners[host % manners.len()];
        self.nodes[host].liar = true;
        self.nodes[host].wanted = false;
    }

    pub(super) fn strike(&mut self, at: usize) {
        self.faults_left -= 1;
        match self.faults[at].1 {
            Fault::Crash(host) => self.crash(host),
            Fault::Return(host) => self.come_back(host),
            Fault::Join(host) => {
                self.node_mut(host).alive = true;
                self.begin_life(host);
            }
            Fault::HolderVanishes => self.vanish(self.some_holder()),
            Fault::FetcherVanishes => {
                let fetches = |host: &u32| !self.node(*host).fetches.is_empty();
                let fetcher = (0..index(self.nodes.len())).find(fetches);
                self.vanish(fetcher);
            }
            Fault::DiskFails => self.disk_fails(),
            Fault::Cut => {
                self.cut = true;
                let split = self.nodes.len() / 2;
                for a in 0..split {
                    for b in split..self.nodes.len() {
                        self.break_line(index(a), index(b), NOTICED_AFTER);
                    }
                }
            }
            Fault::Heal => self.cut = false,
            Fault::CoordinatorGone => self.close_office(),
            Fault::CoordinatorChanges => {
                self.close_office();
                self.open_office();
            }
            Fault::CoordinatorStands(time) => self.office_stands(time),
            Fault::CoordinatorWorks(each) => self.office_works(each),
            Fault::SessionsLost(time) => self.lose_sessions(time),
            Fault::Unwanted => {
                for host in 0..self.nodes.len() {
                    let node = &mut self.nodes[host];
                    if !node.alive && node.wanted && node.finished_at.is_none() {
                        node.wanted = false;
                        self.unfinished -= 1;
                        self.office.unwanted.insert(index(host), false);
                    }
                }
                self.plan_wanted();
            }
            Fault::OriginRate(rate) => {
                let at = self.nodes.len();
                self.uplinks[at].rate = rate.max(1);
            }
            Fault::Order(image) => self.order(|at| at == image),
            Fault::OriginDown => {
                self.registry = Registry::Down;
                self.break_fetches();
            }
            Fault::OriginUp => self.registry = Registry::Up,
            Fault::OriginThrottles(seconds) => {
                let until = self.now + seconds * 1_000_000_000;
                self.registry = Registry::Throttles {
                    until,
                    told_at: None,
                };
                self.break_fetches();
            }
            Fault::OriginCorrupt => self.corrupt_some(),
            Fault::Hold => self.hold_image(true),
            Fault::Still => self.moved_at_hold = self.origin_bytes + self.peer_bytes,
            Fault::Resume => {
                if self.origin_bytes + self.peer_bytes != self.moved_at_hold {
                    self.checks.note("bytes moved while the image was held");
                }
                self.hold_image(false);
            }
            Fault::AllDown => {
                self.close_office();
                for host in 0..self.nodes.len() {
                    self.crash(index(host));
                }
            }
            Fault::AllUp => {
                for host in 0..self.nodes.len() {
                    self.come_back(index(host));
                }
                self.open_office();
            }
        }
    }

    /// What comes next of the content that is furthest from its end is false.
    fn corrupt_some(&mut self) {
        let fetches = self.nodes.iter_mut().flat_map(|node| &mut node.fetches);
        let most = fetches
            .filter(|(_, fetching)| !fetching.again && fetching.false_from.is_none())
            .max_by_key(|(content, fetching)| {
                let chunks = self.specs[**content as usize].geometry.chunks();
                chunks - fetching.next
            });
        if let Some((_, fetching)) = most {
            fetching.false_from = Some(fetching.next);
        }
    }

    fn crash(&mut self, host: u32) {
        if !self.node(host).alive {
            return;
        }
        let contents: Vec<u32> = self.node(host).fetches.keys().copied().collect();
        for content in contents {
            self.abort_origin(host, content);
        }
        for peer in 0..self.nodes.len() {
            self.break_line(host, index(peer), NOTICED_AFTER);
        }
        let now = self.now;
        let lies = self.lies;
        let node = self.node_mut(host);
        node.alive = false;
        node.session = false;
        node.fetches.clear();
        node.leases.clear();
        node.uploads = 0;
        node.requested.clear();
        let finished = node.finished_at.is_some();
        for (at, content, chunk) in core::mem::take(&mut node.recent) {
            if !finished
                && at + JOURNAL_LAG >= now
                && node.held[content as usize].remove(ChunkIndex(chunk))
            {
                node.missing += 1;
                if lies && let Some(links) = node.false_links.get_mut(&content) {
                    links.remove(&chunk);
                }
            }
        }
        for at in 0..self.transfers.len() {
            let transfer = &self.transfers[at];
            if transfer.live && (transfer.from == host || transfer.to == host) {
                let id = TransferId {
                    at: index(at),
                    use_: transfer.use_,
                };
                self.drop_transfer(id);
            }
        }
        let id = self.node(host).id.clone();
        self.tell_office(stage::Event::HostDisconnected(id));
    }

    fn come_back(&mut self, host: u32) {
        if self.node(host).alive || self.node(host).left {
            return;
        }
        let held: u64 = self
            .node(host)
            .held
            .iter()
            .map(|set| u64::from(set.count()))
            .sum();
        self.local_bytes += held * proto::CHUNK_BYTES;
        self.begin_life(host);
    }

    /// The host gives up its stage; without it, it takes no part in what is simulated here.
    pub(super) fn give_up(&mut self, host: u32) {
        self.crash(host);
        let node = self.node_mut(host);
        node.staged = false;
        node.stages.fill(false);
        node.left = true;
    }

    fn some_holder(&self) -> Option<u32> {
        self.office.leases.values().next().map(|id| self.by_id[id])
    }

    fn vanish(&mut self, host: Option<u32>) {
        let Some(host) = host else {
            return;
        };
        self.crash(host);
        self.node_mut(host).left = true;
        self.expect_nothing_of(host);
    }

    /// As agents do it: the host says that it failed, gives its leases back, and takes part in nothing of the image.
    fn disk_fails(&mut self) {
        let Some(host) = self.some_holder().filter(|host| self.node(*host).alive) else {
            return;
        };
        self.expect_nothing_of(host);
        let leases: Vec<u32> = self.node(host).leases.keys().copied().collect();
        self.hold(host);
        self.node_mut(host).broken = true;
        for image in 0..self.images.len() {
            self.report_image(host, image);
        }
        for content in leases {
            self.tell_lease_ended(host, content, stage::event::LeaseEnd::Released);
        }
    }

    /// The host needn't complete.
    fn expect_nothing_of(&mut self, host: u32) {
        let node = self.node_mut(host);
        if node.wanted {
            node.wanted = false;
            if node.finished_at.is_none() {
                self.unfinished -= 1;
            }
        }
    }
}
