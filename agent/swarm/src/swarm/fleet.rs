//! The fleet: roster, connections, and whom we don't trust for now.

use super::*;
use crate::{
    action::Declined,
    event::Peer as Entry,
    peer::{Line, doubled, micros},
};

/// Peers whose announcements are kept at one time: neighbours, and some to spare.
const SLOTS: usize = 64;
/// Of two neighbours the one with the larger key waits this long for the other's connection. Both hear of each other
/// within a few hundred milliseconds, and then a connection takes a few. After a restart only one of them hears, and the
/// other may take the earlier connection for alive.
const DIAL_HEAD_START: Duration = Duration::from_millis(500);
/// After a transfer that brought nothing a peer isn't asked for a while, which doubles each time in a row up to this; nor
/// is one sent anything that takes nothing.
pub(super) const SILENT_MOST: Duration = Duration::from_secs(30);

impl Swarm {
    pub(super) fn set_roster(&mut self, entries: &[Entry]) {
        let mut wanted: BTreeMap<HostKey, Entry> = BTreeMap::new();
        for entry in entries {
            if entry.key != self.me {
                wanted.insert(entry.key, *entry);
            }
        }
        let gone: Vec<HostKey> = self
            .by_key
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !wanted.contains_key(key))
            .collect();
        for key in gone {
            self.forget_peer(key);
        }
        let mut new_neighbours = Vec::new();
        for entry in wanted.values() {
            let index = self.find(entry.key).unwrap_or_else(|| {
                let mut peer = Peer::new(entry.key, self.config.assumed_rate_bytes_per_second);
                if self.me > entry.key {
                    peer.head_start_until = self.now + DIAL_HEAD_START;
                }
                let index = if let Some(index) = self.free_peers.pop() {
                    self.peers[index.at()] = peer;
                    index
                } else {
                    self.peers.push(peer);
                    PeerIndex::new(self.peers.len() - 1)
                };
                self.by_key.insert(entry.key, index);
                index
            });
            let peer = &mut self.peers[index.at()];
            peer.zone = entry.zone;
            if entry.neighbour && !peer.neighbour && peer.line == Line::Up {
                new_neighbours.push(index);
            }
            peer.neighbour = entry.neighbour;
        }
        self.roster = self.by_key.iter().map(|(_, index)| index).collect();
        self.roster.sort_by_key(|index| {
            let peer = &self.peers[index.at()];
            (peer.zone, peer.key)
        });
        self.neighbours = self
            .roster
            .iter()
            .copied()
            .filter(|index| self.peers[index.at()].neighbour)
            .collect();
        self.grace = self
            .grace
            .max(self.spread_time() * 3)
            .min(self.config.grace_most);
        for index in new_neighbours {
            self.introduce(index);
        }
        self.tick_at = self.now;
    }

    /// How long one host takes to spread one chunk.
    pub(super) fn spread_time(&self) -> Duration {
        let targets = self.roster.len().min(self.config.direct_targets) as u64;
        Duration::from_micros(micros(targets * proto::CHUNK_BYTES, self.rate))
    }

    fn forget_peer(&mut self, key: HostKey) {
        let Some(index) = self.by_key.remove(key) else {
            return;
        };
        if self.peers[index.at()].line != Line::Down {
            self.actions.push_back(Action::HangUp(key));
        }
        self.drop_line(index, Line::Down);
        self.purge_pushes_to(index);
        self.choosers.retain(|(peer, _)| *peer != index);
        self.quarantined.retain(|peer| *peer != index);
        for content in self.contents.values_mut() {
            content.set_unwanted_by(index, false);
            content.promises.remove(&index);
        }
        self.peers[index.at()].known = false;
        self.free_peers.push(index);
    }

    pub(super) fn connected(&mut self, key: HostKey) {
        let Some(index) = self.find(key) else {
            self.actions.push_back(Action::HangUp(key));
            return;
        };
        let peer = &mut self.peers[index.at()];
        if peer.is_quarantined() {
            if peer.line == Line::Dialling {
                self.dials -= 1;
            }
            peer.line = Line::Down;
            self.actions.push_back(Action::HangUp(key));
            return;
        }
        if peer.line == Line::Up {
            return;
        }
        if peer.line == Line::Dialling {
            self.dials -= 1;
        }
        peer.line = Line::Up;
        peer.up_since = self.now;
        peer.dial_failures = 0;
        // what a dead line didn't bring or take says nothing of this one
        peer.silent = 0;
        peer.not_asked_before = self.now;
        peer.stuck = 0;
        peer.ignores_pushes = false;
        peer.not_sent_before = self.now;
        self.up.push(index);
        self.introduce(index);
        if self.dials < self.config.dials {
            self.dial_about();
        }
        self.assign_wanted = true;
        self.upload_wanted = true;
        self.pull_wanted = true;
    }

    pub(super) fn disconnected(&mut self, key: HostKey) {
        let Some(index) = self.find(key) else {
            return;
        };
        if self.peers[index.at()].line == Line::Down {
            return;
        }
        self.drop_line(index, Line::Down);
        let failures = self.peers[index.at()].dial_failures;
        let wait = doubled(self.config.redial, failures, self.config.redial_most);
        let jitter = mix(self.rng.next_u64(), 0)
            % (u64::try_from(wait.as_micros() / 4).unwrap_or(u64::MAX - 1) + 1);
        let peer = &mut self.peers[index.at()];
        peer.dial_failures = failures.saturating_add(1);
        peer.dial_not_before = self.now + wait + Duration::from_micros(jitter);
        self.pull_wanted = true;
    }

    /// Everything that went over this peer's connection is over.
    pub(super) fn drop_line(&mut self, index: PeerIndex, line: Line) {
        let peer = &mut self.peers[index.at()];
        if peer.line == Line::Dialling {
            self.dials -= 1;
        }
        peer.line = line;
        if let Some(slot) = peer.slot.take() {
            self.slots[slot] = None;
            for content in self.contents.values_mut() {
                content.forget_slot(slot);
            }
        }
        self.up.retain(|other| *other != index);
        for at in (0..self.requests.len()).rev() {
            if self.requests[at].peer == index {
                self.drop_request(at);
            }
        }
        for at in (0..self.incoming.len()).rev() {
            if self.incoming[at].peer == index {
                self.drop_incoming(at);
            }
        }
        // the shell holds a stream for each
        let (gone, kept): (Vec<_>, Vec<_>) = self
            .waiting
            .drain(..)
            .partition(|waiting| waiting.peer == index);
        self.waiting = kept;
        for waiting in gone {
            self.actions
                .push_back(Action::Refuse(waiting.ticket, Declined::Busy));
        }
        for at in (0..self.uploads.len()).rev() {
            if self.uploads[at].peer == index {
                self.end_upload(at, Delivery::Broken);
            }
        }
    }

    /// Dials who should be connected, as far as the bounds go.
    pub(super) fn dial_about(&mut self) {
        if self.dials >= self.config.dials || self.up.len() >= self.roster.len() {
            return;
        }
        for at in 0..self.neighbours.len() {
            let index = self.neighbours[at];
            if self.peers[index.at()].head_start_until <= self.now {
                self.dial(index);
            }
        }
        // a whole small fleet is kept connected, so that whoever is chosen to spread can be reached at once
        if self.roster.len() <= self.config.connections && !self.incomplete.is_empty() {
            let start = self.random(self.roster.len().max(1));
            for at in 0..self.roster.len() {
                if self.dials >= self.config.dials {
                    break;
                }
                let index = self.roster[(start + at) % self.roster.len()];
                if self.peers[index.at()].head_start_until <= self.now {
                    self.dial(index);
                }
            }
        }
    }

    /// Begins to dial, if that makes sense now. Whether the peer is or may soon be connected.
    pub(super) fn dial(&mut self, index: PeerIndex) -> bool {
        let peer = &mut self.peers[index.at()];
        match peer.line {
            Line::Up => !peer.is_quarantined(),
            Line::Dialling => true,
            Line::Down => {
                if peer.is_quarantined()
                    || peer.dial_not_before > self.now
                    || self.dials >= self.config.dials
                    || (!peer.neighbour && self.up.len() >= self.config.connections)
                {
                    return false;
                }
                peer.line = Line::Dialling;
                self.dials += 1;
                self.actions.push_back(Action::Dial(peer.key));
                true
            }
        }
    }

    /// Whether a neighbour isn't dialled yet because it may dial us.
    pub(super) fn leaves_dialling_to_others(&self) -> bool {
        let mut neighbours = self.neighbours.iter().map(|index| &self.peers[index.at()]);
        neighbours.any(|peer| peer.line == Line::Down && peer.head_start_until > self.now)
    }

    /// Whether it is worth waiting for a connection to it.
    pub(super) fn may_come_up(&self, index: PeerIndex) -> bool {
        let peer = &self.peers[index.at()];
        peer.line == Line::Dialling
            || (peer.line == Line::Down
                && peer.dial_failures == 0
                && !peer.is_quarantined()
                && (self.up.len() < self.config.connections || peer.neighbour))
    }

    /// Where this peer's announcements are kept, if there is room.
    pub(super) fn slot(&mut self, index: PeerIndex) -> Option<usize> {
        if let Some(slot) = self.peers[index.at()].slot {
            return Some(slot);
        }
        let slot = if let Some(slot) = self.slots.iter().position(Option::is_none) {
            slot
        } else if self.slots.len() < SLOTS {
            self.slots.push(None);
            self.slots.len() - 1
        } else {
            return None;
        };
        self.slots[slot] = Some(index);
        self.peers[index.at()].slot = Some(slot);
        Some(slot)
    }

    /// The peer sent a bad chunk.
    pub(super) fn strike(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.at()];
        peer.strikes = peer.strikes.saturating_add(1);
        if peer.strikes >= self.config.strikes {
            self.quarantine(index);
        }
    }

    /// A transfer from the peer brought nothing.
    pub(super) fn silent(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.at()];
        // what one dead moment took with it counts once
        if peer.not_asked_before > self.now {
            return;
        }
        // silence is no lie: slow, dead and cut-off hosts are avoided, not accused
        let wait = doubled(self.config.timeout_least, peer.silent, SILENT_MOST);
        peer.not_asked_before = self.now + wait;
        peer.silent = peer.silent.saturating_add(1);
    }

    /// The chain proved that the peer lied: no second chance.
    pub(super) fn blamed(&mut self, key: HostKey) {
        if let Some(index) = self.find(key) {
            let peer = &mut self.peers[index.at()];
            peer.strikes = peer.strikes.saturating_add(1);
            self.quarantine(index);
        }
    }

    fn quarantine(&mut self, index: PeerIndex) {
        let peer = &mut self.peers[index.at()];
        if peer.is_quarantined() {
            peer.strikes = 0;
            return;
        }
        let lasts = doubled(
            self.config.quarantine,
            peer.quarantines,
            self.config.quarantine_most,
        );
        peer.quarantines = peer.quarantines.saturating_add(1);
        self.shun(index, lasts);
    }

    fn shun(&mut self, index: PeerIndex, lasts: Duration) {
        let peer = &mut self.peers[index.at()];
        let strikes = core::mem::take(&mut peer.strikes);
        if peer.is_quarantined() {
            return;
        }
        peer.quarantined_until = Some(self.now + lasts);
        self.quarantined.push(index);
        let key = peer.key;
        self.actions
            .push_back(Action::Report { peer: key, strikes });
        self.actions.push_back(Action::HangUp(key));
        self.drop_line(index, Line::Down);
        self.pull_wanted = true;
    }

    pub(super) fn release_quarantined(&mut self) {
        let (now, peers) = (self.now, &mut self.peers);
        self.quarantined.retain(|index| {
            let peer = &mut peers[index.at()];
            let over = peer.quarantined_until.is_none_or(|until| until <= now);
            if over {
                peer.quarantined_until = None;
                peer.dial_not_before = now;
            }
            !over
        });
    }
}
