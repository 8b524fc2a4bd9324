//! The other hosts of the fleet: the roster, the connected peers, and the slots in which announcements are kept.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use proto::{HostKey, Moment};

use crate::peer::{Keys, Line, Peer, PeerIndex};

/// Peers whose announcements are kept at one time: all neighbours, and some to spare.
const SLOTS: usize = 64;

/// All peers. A peer's index stays valid while the peer is on the roster.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    peers: Vec<Peer>,
    /// Free places, of peers that were forgotten.
    free: Vec<PeerIndex>,
    by_key: Keys,
    /// The roster by zone and key: the same order on every host.
    roster: Vec<PeerIndex>,
    neighbours: Vec<PeerIndex>,
    /// Connected peers, in the order in which they came.
    up: Vec<PeerIndex>,
    quarantined: Vec<PeerIndex>,
    /// The peer whose announcements are kept in each slot.
    slots: Vec<Option<PeerIndex>>,
    /// Dials under way.
    dials: usize,
}

impl Index<PeerIndex> for Fleet {
    type Output = Peer;

    fn index(&self, index: PeerIndex) -> &Peer {
        &self.peers[index.at()]
    }
}

impl IndexMut<PeerIndex> for Fleet {
    fn index_mut(&mut self, index: PeerIndex) -> &mut Peer {
        &mut self.peers[index.at()]
    }
}

impl Fleet {
    pub(crate) fn find(&self, key: HostKey) -> Option<PeerIndex> {
        self.by_key.get(key)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = HostKey> + '_ {
        self.by_key.iter().map(|(key, _)| key)
    }

    /// The roster by zone and key.
    pub(crate) fn roster(&self) -> &[PeerIndex] {
        &self.roster
    }

    pub(crate) fn neighbours(&self) -> &[PeerIndex] {
        &self.neighbours
    }

    /// Connected peers.
    pub(crate) fn up(&self) -> &[PeerIndex] {
        &self.up
    }

    /// Dials under way.
    pub(crate) const fn dials(&self) -> usize {
        self.dials
    }

    /// Adds a peer to the roster. [`Self::settle`] then puts the peer in its place there.
    pub(crate) fn add(&mut self, peer: Peer) -> PeerIndex {
        let key = peer.key;
        let index = if let Some(index) = self.free.pop() {
            self.peers[index.at()] = peer;
            index
        } else {
            self.peers.push(peer);
            PeerIndex::new(self.peers.len() - 1)
        };
        self.by_key.insert(key, index);
        index
    }

    /// Orders the roster and the neighbours anew.
    pub(crate) fn settle(&mut self) {
        self.roster = self.by_key.iter().map(|(_, index)| index).collect();
        let peers = &self.peers;
        self.roster.sort_by_key(|index| {
            let peer = &peers[index.at()];
            (peer.zone, peer.key)
        });
        let roster = self.roster.iter().copied();
        self.neighbours = roster.filter(|index| peers[index.at()].neighbour).collect();
    }

    /// Takes a peer off the roster. The peer's place is given to another once [`Self::release`] was called.
    pub(crate) fn take_off(&mut self, key: HostKey) -> Option<PeerIndex> {
        let index = self.by_key.remove(key)?;
        self.quarantined.retain(|peer| *peer != index);
        Some(index)
    }

    /// Frees a peer's place. To be called when nothing mentions the peer any more.
    pub(crate) fn release(&mut self, index: PeerIndex) {
        self.free.push(index);
    }

    pub(crate) fn set_line(&mut self, index: PeerIndex, line: Line) {
        let before = core::mem::replace(&mut self.peers[index.at()].line, line);
        self.dials -= usize::from(before == Line::Dialling);
        self.dials += usize::from(line == Line::Dialling);
        if before == Line::Up {
            self.up.retain(|other| *other != index);
        }
        if line == Line::Up {
            self.up.push(index);
        }
    }

    // ---- slots ----------------------------------------------------------------------------------------------------

    /// The peers whose announcements are kept.
    pub(crate) fn heard(&self) -> impl Iterator<Item = PeerIndex> + '_ {
        self.slots.iter().flatten().copied()
    }

    /// The slot in which this peer's announcements are kept, if there is room.
    pub(crate) fn slot(&mut self, index: PeerIndex) -> Option<usize> {
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

    /// Frees this peer's slot, and returns the slot.
    pub(crate) fn free_slot(&mut self, index: PeerIndex) -> Option<usize> {
        let slot = self.peers[index.at()].slot.take()?;
        self.slots[slot] = None;
        Some(slot)
    }

    /// Whether the peer at this slot can be expected to deliver the chunks that it announced.
    pub(crate) fn delivers(&self, slot: usize, now: Moment) -> bool {
        let peer = self.slots.get(slot).copied().flatten();
        peer.is_some_and(|index| self[index].delivers(now))
    }

    // ---- trust ----------------------------------------------------------------------------------------------------

    /// Quarantines a peer, which isn't quarantined yet, until this moment.
    pub(crate) fn quarantine(&mut self, index: PeerIndex, until: Moment) {
        self.peers[index.at()].quarantined_until = Some(until);
        self.quarantined.push(index);
    }

    /// Ends the quarantines that are over.
    pub(crate) fn release_quarantined(&mut self, now: Moment) {
        let peers = &mut self.peers;
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

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn fleet(peers: u64) -> (Fleet, Vec<PeerIndex>) {
        let mut fleet = Fleet::default();
        let all = (0..peers).map(|key| fleet.add(Peer::new(HostKey(key), 1_000)));
        let all = all.collect();
        fleet.settle();
        (fleet, all)
    }

    #[test]
    fn the_roster_goes_by_zone_and_key() {
        let (mut fleet, all) = fleet(3);
        fleet[all[0]].zone = 2;
        fleet[all[0]].neighbour = true;
        fleet[all[2]].neighbour = true;
        fleet.settle();
        assert_eq!(fleet.roster(), [all[1], all[2], all[0]]);
        assert_eq!(fleet.neighbours(), [all[2], all[0]]);
    }

    #[test]
    fn a_place_goes_to_another_only_when_nothing_mentions_the_peer() {
        let (mut fleet, all) = fleet(1);
        assert_eq!(fleet.take_off(HostKey(0)), Some(all[0]));
        assert_eq!(fleet.find(HostKey(0)), None);
        let second = fleet.add(Peer::new(HostKey(7), 1_000));
        assert_ne!(second, all[0]);
        fleet.release(all[0]);
        assert_eq!(fleet.add(Peer::new(HostKey(8), 1_000)), all[0]);
    }

    #[test]
    fn dials_and_lines_are_counted_once() {
        let (mut fleet, all) = fleet(2);
        fleet.set_line(all[0], Line::Dialling);
        fleet.set_line(all[1], Line::Dialling);
        assert_eq!((fleet.dials(), fleet.up().len()), (2, 0));
        fleet.set_line(all[0], Line::Up);
        assert_eq!((fleet.dials(), fleet.up()), (1, &[all[0]][..]));
        fleet.set_line(all[0], Line::Down);
        fleet.set_line(all[1], Line::Down);
        assert_eq!((fleet.dials(), fleet.up().len()), (0, 0));
    }

    #[test]
    fn so_many_peers_are_heard_and_the_next_one_when_a_slot_is_free() {
        let (mut fleet, all) = fleet(u64::try_from(SLOTS).unwrap() + 1);
        let slots: Vec<_> = all.iter().map(|index| fleet.slot(*index)).collect();
        assert_eq!(slots[SLOTS - 1], Some(SLOTS - 1));
        assert_eq!(slots[SLOTS], None);
        assert_eq!(fleet.free_slot(all[3]), Some(3));
        assert_eq!(fleet.heard().count(), SLOTS - 1);
        assert_eq!(fleet.slot(all[SLOTS]), Some(3));
        assert_eq!(fleet.free_slot(all[3]), None);
    }

    #[test]
    fn a_quarantine_ends_at_its_end() {
        let (mut fleet, all) = fleet(1);
        fleet.quarantine(all[0], Moment(10));
        fleet.release_quarantined(Moment(9));
        assert!(fleet[all[0]].is_quarantined());
        fleet.release_quarantined(Moment(10));
        assert!(!fleet[all[0]].is_quarantined());
        assert_eq!(vec![all[0]], fleet.roster());
    }
}
