//! The state that all parts of the swarm share: who this host is, the time, the fleet, the contents, and the list of
//! actions.

use alloc::collections::VecDeque;
use core::time::Duration;

use proto::{ChunkIndex, HostKey, Moment, pause::doubled, tie::mix};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::{
    Action, Config,
    agenda::Agenda,
    contents::Contents,
    event::ContentId,
    fleet::Fleet,
    grace::Grace,
    pace::{Pace, micros},
    peer::{Line, PeerIndex},
};

/// The shared state. Each part takes it as an argument, and keeps for itself what only that part decides by.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) me: HostKey,
    pub(crate) config: Config,
    pub(crate) now: Moment,
    /// The host asks us to step back.
    pub(crate) step_back: bool,
    pub(crate) fleet: Fleet,
    pub(crate) contents: Contents,
    pub(crate) pace: Pace,
    pub(crate) grace: Grace,
    pub(crate) agenda: Agenda,
    /// The actions for the shell, in this order.
    pub(crate) actions: VecDeque<Action>,
    rng: ChaCha8Rng,
}

impl Ground {
    pub(crate) fn new(me: HostKey, config: Config, seed: u64) -> Self {
        Self {
            me,
            now: Moment::START,
            step_back: false,
            fleet: Fleet::default(),
            contents: Contents::default(),
            pace: Pace::new(&config),
            grace: Grace::new(&config),
            agenda: Agenda::new(),
            actions: VecDeque::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            config,
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn cancel(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        let peer = self.fleet[peer].key;
        self.act(Action::Cancel { peer, id, chunk });
    }

    /// A random number below `below`, which isn't 0.
    pub(crate) fn random(&mut self, below: usize) -> usize {
        let wide = u64::from(self.rng.next_u32()) * u64::try_from(below).unwrap_or(1);
        usize::try_from(wide >> 32).unwrap_or(0)
    }

    /// A random time of at most a quarter of `of`.
    pub(crate) fn jitter(&mut self, of: Duration) -> Duration {
        let most = u64::try_from(of.as_micros() / 4).unwrap_or(u64::MAX - 1);
        Duration::from_micros(mix(self.rng.next_u64(), 0) % (most + 1))
    }

    /// How long one host takes to spread one chunk.
    pub(crate) fn spread_time(&self) -> Duration {
        let targets = self.fleet.roster().len().min(self.config.direct_targets) as u64;
        Duration::from_micros(micros(targets * proto::CHUNK_BYTES, self.pace.rate()))
    }

    /// The most uploads at one time.
    pub(crate) fn upload_bound(&self) -> usize {
        if self.step_back {
            1
        } else {
            self.config.uploads.max(1)
        }
    }

    /// A chunk that we fetched has left us, or can't leave us: there is room for the next one.
    pub(crate) fn handed_on(&mut self, id: ContentId) {
        self.agenda.order();
        if let Some(lease) = self.contents.lease_mut(id) {
            lease.waiting = lease.waiting.saturating_sub(1);
        }
    }

    /// Notes that the peer doesn't have the chunk, whatever the peer announced.
    pub(crate) fn lacks(&mut self, peer: PeerIndex, id: ContentId, chunk: ChunkIndex) {
        if let Some(slot) = self.fleet[peer].slot
            && let Some(content) = self.contents.get_mut(id)
        {
            content.lose(slot, chunk);
        }
    }

    /// A transfer from the peer brought nothing.
    pub(crate) fn silent(&mut self, index: PeerIndex) {
        let (now, least) = (self.now, self.config.timeout_least);
        self.fleet[index].was_silent(now, least);
    }

    // ---- dialling -------------------------------------------------------------------------------------------------

    /// Dials the peers that should be connected, within the bounds.
    pub(crate) fn dial_about(&mut self) {
        let hosts = self.fleet.roster().len();
        if self.fleet.dials() >= self.config.dials || self.fleet.up().len() >= hosts {
            return;
        }
        for at in 0..self.fleet.neighbours().len() {
            let index = self.fleet.neighbours()[at];
            if self.fleet[index].head_start_until <= self.now {
                self.dial(index);
            }
        }
        // a small fleet is kept connected as a whole, so that the chosen spreader can be reached at once
        if hosts <= self.config.connections && !self.contents.is_complete() {
            let start = self.random(hosts.max(1));
            for at in 0..hosts {
                if self.fleet.dials() >= self.config.dials {
                    break;
                }
                let index = self.fleet.roster()[(start + at) % hosts];
                if self.fleet[index].head_start_until <= self.now {
                    self.dial(index);
                }
            }
        }
    }

    /// Dials the peer, if that makes sense now. Returns whether the peer is connected or may soon be.
    pub(crate) fn dial(&mut self, index: PeerIndex) -> bool {
        let peer = &self.fleet[index];
        match peer.line {
            Line::Up => !peer.is_quarantined(),
            Line::Dialling => true,
            Line::Down => {
                if peer.is_quarantined()
                    || peer.dial_not_before > self.now
                    || self.fleet.dials() >= self.config.dials
                    || (!peer.neighbour && self.fleet.up().len() >= self.config.connections)
                {
                    return false;
                }
                let key = peer.key;
                self.fleet.set_line(index, Line::Dialling);
                self.act(Action::Dial(key));
                true
            }
        }
    }

    /// Whether a neighbour isn't dialled yet because it may dial us.
    pub(crate) fn leaves_dialling_to_others(&self) -> bool {
        let neighbours = self.fleet.neighbours().iter();
        let mut neighbours = neighbours.map(|index| &self.fleet[*index]);
        neighbours.any(|peer| peer.line == Line::Down && peer.head_start_until > self.now)
    }

    /// Whether it is worth waiting for a connection to the peer.
    pub(crate) fn may_come_up(&self, index: PeerIndex) -> bool {
        let peer = &self.fleet[index];
        let room = self.fleet.up().len() < self.config.connections || peer.neighbour;
        peer.line == Line::Dialling
            || (peer.line == Line::Down
                && peer.dial_failures == 0
                && !peer.is_quarantined()
                && room)
    }

    /// A dial failed, or a line broke: the peer is dialled again after a while.
    pub(crate) fn dial_later(&mut self, index: PeerIndex) {
        let failures = self.fleet[index].dial_failures;
        let wait = doubled(self.config.redial, self.config.redial_most, failures);
        let jitter = self.jitter(wait);
        let peer = &mut self.fleet[index];
        peer.dial_failures = failures.saturating_add(1);
        peer.dial_not_before = self.now + wait + jitter;
    }
}
