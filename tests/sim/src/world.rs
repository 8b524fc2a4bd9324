//! The world: hosts with real swarms, a coordinator with a real plan, the network between them, and time.
//!
//! The modules are a stack; each needs only those below it. From the bottom:
//!
//! - Types and tables: `clock`, `contents`, `due`, `findings`, `links`, `node`, `office`, `registry`, `clients`, and
//!   `transfers`.
//! - `state` holds everything there is.
//! - `check`, `lines`, `rogue`, `origin` and `reports` change the state and send messages, but feed no swarm.
//! - `act` feeds the swarms, and does what they want.
//! - `lies`, `mirror`, `arrivals`, `peers`, `life`, `coordinator` and `fault` are what happens to hosts and to the
//!   coordinator.
//! - `plan` decides at the beginning what will go wrong. The loop is in this file.

mod act;
mod arrivals;
mod check;
mod clients;
mod clock;
mod contents;
mod coordinator;
mod due;
mod fault;
mod findings;
mod lies;
mod life;
mod lines;
mod links;
mod mirror;
mod node;
mod office;
mod origin;
mod peers;
mod plan;
mod registry;
mod reports;
mod rogue;
mod state;
mod tally;
mod transfers;
mod units;

use swarm::event::Failure;

use crate::{
    network::Nanos,
    outcome::Outcome,
    scenario::{Scenario, Setup},
};

pub use self::clients::Waits;
use self::{
    act::feed,
    arrivals::{ask_again, piece_came},
    check::{SAMPLE_EVERY, explain_unfinished, sample},
    clients::ORDERED_AFTER,
    clock::Next,
    contents::{Image, ImageKind, LATER},
    coordinator::{office_turns, open_office, order_images, plan_timer, tell_plan},
    due::{Due, Message},
    fault::strike,
    life::{begin_life, stage_image},
    lines::{not_arrived, start_piece},
    mirror::{client_comes, tell_queue},
    origin::given,
    peers::{asked, handshake, line_dead, offered, pit_given_up},
    plan::{plan_clients, plan_faults},
    reports::{open_session, report},
    rogue::rogue_acts,
    state::{State, WARM_UP},
    units::{index, precise, seconds},
};

/// The world, and the loop that lets its time pass.
#[derive(Debug)]
pub struct World {
    state: State,
}

impl World {
    /// The world at its beginning.
    ///
    /// # Panics
    /// When the setup names a content larger than any can be.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let mut state = State::new(setup);
        plan_faults(&mut state);
        let mirrored = |image: &Image| image.kind == ImageKind::Mirrored;
        if state.images.iter().any(mirrored) {
            plan_clients(&mut state);
        }
        state.unfinished = state.nodes.iter().filter(|node| node.wanted).count();
        Self { state }
    }

    /// Lets time pass until every wanted host is complete, or far too much of it has passed.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        open_office(&mut self.state);
        for host in 0..self.state.nodes.len() {
            if self.state.nodes[host].alive {
                begin_life(&mut self.state, index(host));
            }
        }
        let first = match self.state.mirrors_first() {
            true => ORDERED_AFTER,
            false => seconds(self.state.release_after_s()),
        };
        if self.state.setup.scenario != Scenario::MirrorAlone {
            self.state.at(WARM_UP + first, Due::Order);
        }
        self.state.at(WARM_UP + SAMPLE_EVERY, Due::Sample);
        let patience = WARM_UP + seconds(20.0 * self.state.bound_s() + 900.0);
        while (self.state.unfinished > 0 || self.state.faults_left > 0 || self.clients_left() > 0)
            && self.state.clock.now() < patience
        {
            if !self.step() {
                break;
            }
        }
        if self.state.unfinished > 0 {
            self.state.findings.note("not every wanted host completed");
            explain_unfinished(&mut self.state);
        }
        if self.clients_left() > 0 {
            self.state
                .findings
                .note("a client never had what it wanted");
        }
        if self.state.office.unwanted.values().any(|told| !told) {
            self.state
                .findings
                .note("a host stages on what isn't wanted there");
        }
        self.outcome()
    }

    /// Clients of mirrors that are still to come, or whose hosts are there and haven't what they want.
    fn clients_left(&self) -> usize {
        let mirrors = &self.state.mirrors;
        let waiting = mirrors
            .wants()
            .filter(|(host, _)| self.state.node(*host).alive);
        mirrors.coming() + waiting.count()
    }

    /// Goes on to what comes next. Whether there is anything.
    fn step(&mut self) -> bool {
        let Some(next) = self.state.clock.next() else {
            return false;
        };
        self.state.tally.steps += 1;
        match next {
            Next::Message(message) => self.deliver(message),
            Next::Due(due) => self.happen(due),
        }
        true
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToHost { host, life, event } => {
                let node = self.state.node(host);
                if node.alive && node.life == life {
                    feed(&mut self.state, host, event);
                }
            }
            Message::Offer(id) => offered(&mut self.state, id),
            Message::Ask(question) => asked(&mut self.state, question),
            Message::ToPlan { term, event } => tell_plan(&mut self.state, term, event),
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Timer { host, life } => {
                let now = self.state.clock.now();
                let node = self.state.node_mut(host);
                if node.alive && node.life == life && node.timer_at <= now {
                    node.timer_at = u64::MAX;
                    feed(&mut self.state, host, swarm::Event::Tick);
                }
            }
            Due::UplinkFree(line) => {
                self.state.uplinks[line as usize].busy = false;
                start_piece(&mut self.state, line);
            }
            Due::Piece(id) => piece_came(&mut self.state, id),
            Due::Stuck(id) => pit_given_up(&mut self.state, id),
            Due::Handshake { a, b, lives } => handshake(&mut self.state, a, b, lives),
            Due::LineDead { host, peer, life } => line_dead(&mut self.state, host, peer, life),
            Due::Report { host, life } => report(&mut self.state, host, life),
            Due::AskAgain {
                host,
                life,
                content,
            } => ask_again(&mut self.state, host, life, content),
            Due::Given {
                host,
                life,
                content,
                chunk,
            } => given(&mut self.state, host, life, content, chunk),
            Due::Stage { host, life, image } => {
                let node = self.state.node(host);
                if node.alive && node.life == life && !node.paused {
                    stage_image(&mut self.state, host, image);
                }
            }
            Due::Rogue(host) => rogue_acts(&mut self.state, host),
            Due::Missed(question) => not_arrived(&mut self.state, &question, Failure::Missing),
            Due::PlanTimer => plan_timer(&mut self.state),
            Due::Office { term } => office_turns(&mut self.state, term),
            Due::Session { host, life } => {
                let node = self.state.node(host);
                if node.alive && node.life == life && !node.session {
                    open_session(&mut self.state, host);
                }
            }
            Due::Sample => sample(&mut self.state),
            Due::Client { host, content } => client_comes(&mut self.state, host, content),
            Due::Queue => tell_queue(&mut self.state),
            Due::Order => {
                self.state.ordered_at = self.state.clock.now();
                let later = self.state.setup.scenario == Scenario::MissingLayer;
                order_images(&mut self.state, |at| !later || at != LATER);
            }
            Due::Fault(at) => strike(&mut self.state, at),
        }
    }

    /// How long the images took that can be had, each from its order to its last host, together.
    fn images_s(&self) -> f64 {
        let took = |(at, image): (usize, &Image)| {
            let wanted = self.state.nodes.iter().filter(|node| node.wanted);
            let last = wanted.filter_map(|node| node.whole_at[at]).max()?;
            Some(precise(last.saturating_sub(image.ordered_at?)) / 1e9)
        };
        let images = self.state.images.iter().enumerate();
        let had = images.filter(|(_, image)| image.is_staged());
        had.filter_map(took).sum()
    }

    /// When the last host had the image that comes first on it, from the order on.
    fn first_image_s(&self) -> f64 {
        let wanted = self.state.nodes.iter().filter(|node| node.wanted);
        let had = wanted.map(|node| {
            let first = node.sequence.first().copied().unwrap_or(0);
            node.whole_at[first].unwrap_or(self.state.clock.now())
        });
        let last = had.max().unwrap_or(0);
        precise(last.saturating_sub(self.state.ordered_at)) / 1e9
    }

    fn outcome(self) -> Outcome {
        let times: Vec<Nanos> = self
            .state
            .nodes
            .iter()
            .filter(|node| node.wanted)
            .filter_map(|node| node.finished_at)
            .collect();
        let since = |at: Nanos| precise(at.saturating_sub(self.state.ordered_at)) / 1e9;
        let last = since(
            times
                .iter()
                .copied()
                .max()
                .unwrap_or(self.state.clock.now()),
        );
        let first = since(
            times
                .iter()
                .copied()
                .min()
                .unwrap_or(self.state.clock.now()),
        );
        let count = precise(self.state.nodes.len() as u64);
        let all = precise(
            self.state
                .clock
                .now()
                .saturating_sub(self.state.ordered_at)
                .max(1),
        );
        let ups: Nanos = self.state.uplinks[..self.state.nodes.len()]
            .iter()
            .map(|line| line.used)
            .sum();
        let downs: Nanos = self.state.nodes.iter().map(|node| node.down.used).sum();
        Outcome {
            scenario: self.state.setup.scenario.name(),
            seed: self.state.setup.seed,
            hosts: self.state.nodes.iter().filter(|node| node.wanted).count(),
            image_bytes: self.state.setup.image_bytes,
            changed_bytes: {
                let unchanged = self.state.unchanged_bytes * self.state.scale;
                self.state.setup.image_bytes.saturating_sub(unchanged)
            },
            chunk_bytes: self.state.setup.chunk_bytes,
            recipe: self.state.setup.recipe,
            makespan_s: last,
            first_s: first,
            bound_s: self.state.bound_s(),
            images_s: self.images_s(),
            others_over_alone: None,
            first_image_s: self.first_image_s(),
            first_over_alone: None,
            origin_bytes: self.state.tally.origin_bytes * self.state.scale,
            peer_bytes: self.state.tally.peer_bytes * self.state.scale,
            local_bytes: self.state.tally.local_bytes * self.state.scale,
            refused_requests: self.state.tally.refused,
            pulled_chunks: self.state.tally.pulled,
            declined_pushes: self.state.tally.declined,
            arrived_chunks: self.state.tally.arrived,
            complete: times.len(),
            shunned_honest: self.state.findings.shunned_honest(),
            violations: self.state.findings.violations(),
            stalls: self.state.findings.stalls(),
            waits: self.state.mirrors.waits(),
            utilisation: (
                precise(self.state.uplinks[self.state.nodes.len()].used) / all,
                precise(ups) / all / count,
                precise(downs) / all / count,
            ),
            steps: self.state.tally.steps,
        }
    }
}
