//! The table of transfers.

use std::ops::{Index, IndexMut};

use swarm::event::{Spread, Ticket};

use crate::network::TransferId;

use super::units::index;

/// Why a chunk is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Push,
    Answer(Ticket),
    Origin,
}

impl Kind {
    /// The request that the transfer answers.
    pub(super) const fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Answer(ticket) => Some(ticket),
            Self::Push | Self::Origin => None,
        }
    }
}

/// A chunk on its way from one host, or the registry, to another host.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) content: u32,
    pub(super) chunk: u32,
    pub(super) kind: Kind,
    pub(super) spread: Option<Spread>,
    pub(super) bytes: u64,
    pub(super) begun: bool,
    /// Pieces that were given to the sender's line.
    pub(super) queued: u32,
    /// Pieces that came in.
    pub(super) came: u32,
}

/// All transfers. A place in the table is used again when its transfer is over.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place {
    /// Which use of the place this is.
    use_: u32,
    live: bool,
    transfer: Transfer,
}

impl Transfers {
    /// Enters a transfer.
    pub(super) fn add(&mut self, transfer: Transfer) -> TransferId {
        let live = |use_| Place {
            use_,
            live: true,
            transfer,
        };
        if let Some(at) = self.free.pop() {
            let place = &mut self.places[at as usize];
            let use_ = place.use_ + 1;
            *place = live(use_);
            TransferId { at, use_ }
        } else {
            let at = index(self.places.len());
            self.places.push(live(0));
            TransferId { at, use_: 0 }
        }
    }

    /// `None`: the transfer is over.
    pub(super) fn get(&self, id: TransferId) -> Option<&Transfer> {
        let place = self.places.get(id.at as usize);
        let place = place.filter(|place| place.live && place.use_ == id.use_);
        place.map(|place| &place.transfer)
    }

    /// Ends a transfer. `None`: it was over.
    pub(super) fn remove(&mut self, id: TransferId) -> Option<&Transfer> {
        let place = self.places.get_mut(id.at as usize);
        let place = place.filter(|place| place.live && place.use_ == id.use_)?;
        place.live = false;
        self.free.push(id.at);
        Some(&place.transfer)
    }

    /// The transfers under way of which this is true, in the order of their places.
    pub(super) fn find(&self, is_one: impl Fn(&Transfer) -> bool) -> Vec<TransferId> {
        let live = (0..).zip(&self.places).filter(|(_, place)| place.live);
        let found = live.filter(|(_, place)| is_one(&place.transfer));
        let ids = found.map(|(at, place)| TransferId {
            at,
            use_: place.use_,
        });
        ids.collect()
    }
}

impl Index<TransferId> for Transfers {
    type Output = Transfer;

    fn index(&self, id: TransferId) -> &Transfer {
        &self.places[id.at as usize].transfer
    }
}

impl IndexMut<TransferId> for Transfers {
    fn index_mut(&mut self, id: TransferId) -> &mut Transfer {
        &mut self.places[id.at as usize].transfer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(host: u32) -> Transfer {
        Transfer {
            from: 0,
            to: host,
            content: 0,
            chunk: 0,
            kind: Kind::Push,
            spread: None,
            bytes: 1,
            begun: false,
            queued: 0,
            came: 0,
        }
    }

    #[test]
    fn a_transfer_that_is_over_stays_over_when_its_place_is_used_again() {
        let mut transfers = Transfers::default();
        let first = transfers.add(to(1));
        assert_eq!(transfers.remove(first).map(|transfer| transfer.to), Some(1));
        let second = transfers.add(to(2));
        assert_eq!((first.at, second.at), (0, 0));
        assert!(transfers.get(first).is_none());
        assert!(transfers.remove(first).is_none());
        assert_eq!(transfers.get(second).map(|transfer| transfer.to), Some(2));
    }

    #[test]
    fn only_transfers_under_way_are_found_in_the_order_of_their_places() {
        let mut transfers = Transfers::default();
        let ids: Vec<TransferId> = [1, 2, 1, 1].map(|host| transfers.add(to(host))).into();
        transfers.remove(ids[2]);
        let found = transfers.find(|transfer| transfer.to == 1);
        assert_eq!(found, [ids[0], ids[3]]);
    }
}
