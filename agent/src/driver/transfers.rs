//! Chunks on their way between this host and its peers: questions that wait for the swarm's answer, and chunks that are
//! being received.
//!
//! This part opens no stream. A request is answered on an `A`, and an offered chunk comes on an `O`: streams of a
//! connection in the driver, anything in tests.

use std::collections::BTreeMap;

use proto::{ChunkIndex, HostKey};
use swarm::{
    Event,
    event::{ContentId, Delivery, Failure, Spread, Ticket},
};
use tokio_util::sync::CancellationToken;

/// A chunk, and the peer that sends or receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transfer {
    pub(crate) peer: HostKey,
    pub(crate) id: ContentId,
    pub(crate) chunk: ChunkIndex,
}

impl Transfer {
    /// The chunk won't come: it couldn't be asked for or taken.
    pub(super) const fn broken(self) -> Event {
        Event::NotArrived {
            peer: self.peer,
            id: self.id,
            chunk: self.chunk,
            failure: Failure::Broken,
        }
    }

    /// The chunk couldn't be sent: as a push, or in answer to the request of this ticket.
    pub(super) const fn not_sent(self, ticket: Option<Ticket>) -> Event {
        Event::Sent {
            peer: self.peer,
            id: self.id,
            chunk: self.chunk,
            ticket,
            delivery: Delivery::Broken,
            wire_bytes: 0,
            work_bytes: 0,
        }
    }
}

/// A chunk that is being received. Cancelling the token ends it.
#[derive(Clone, Debug)]
pub(super) struct Receiving {
    /// Tells this transfer from an earlier one of the same chunk from the same peer, over a connection that is dead.
    pub(super) number: u64,
    pub(super) token: CancellationToken,
}

/// The questions that wait, and the transfers that run.
#[derive(Debug)]
pub(super) struct Transfers<A, O> {
    requests: BTreeMap<Ticket, (Transfer, A)>,
    offers: BTreeMap<Ticket, (Transfer, O)>,
    last_ticket: u64,
    receiving: BTreeMap<Transfer, Receiving>,
    last_number: u64,
}

impl<A, O> Default for Transfers<A, O> {
    fn default() -> Self {
        Self {
            requests: BTreeMap::new(),
            offers: BTreeMap::new(),
            last_ticket: 0,
            receiving: BTreeMap::new(),
            last_number: 0,
        }
    }
}

impl<A, O> Transfers<A, O> {
    const fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// A peer asks for a chunk. The request waits until the swarm has it served or refused.
    pub(super) fn requested(&mut self, transfer: Transfer, answer: A) -> Event {
        let ticket = self.ticket();
        self.requests.insert(ticket, (transfer, answer));
        let Transfer { peer, id, chunk } = transfer;
        Event::Requested {
            ticket,
            peer,
            id,
            chunk,
        }
    }

    /// A peer offers a chunk, to be passed on to `spread`. The offer waits until the swarm accepts or declines it.
    pub(super) fn offered(
        &mut self,
        transfer: Transfer,
        spread: Option<Spread>,
        offer: O,
    ) -> Event {
        let ticket = self.ticket();
        self.offers.insert(ticket, (transfer, offer));
        let Transfer { peer, id, chunk } = transfer;
        Event::Offered {
            ticket,
            peer,
            id,
            chunk,
            spread,
        }
    }

    /// The swarm answers a request.
    pub(super) fn take_request(&mut self, ticket: Ticket) -> Option<(Transfer, A)> {
        self.requests.remove(&ticket)
    }

    /// The swarm answers an offer.
    pub(super) fn take_offer(&mut self, ticket: Ticket) -> Option<(Transfer, O)> {
        self.offers.remove(&ticket)
    }

    /// Begins to receive a chunk.
    pub(super) fn receive(&mut self, transfer: Transfer) -> Receiving {
        self.last_number += 1;
        let receiving = Receiving {
            number: self.last_number,
            token: CancellationToken::new(),
        };
        self.receiving.insert(transfer, receiving.clone());
        receiving
    }

    /// A chunk came or didn't. Returns whether this transfer is the current one: a transfer over a dead connection may
    /// end after the next one began.
    pub(super) fn received(&mut self, transfer: &Transfer, number: u64) -> bool {
        let current = self.receiving.get(transfer);
        let current = current.is_some_and(|receiving| receiving.number == number);
        if current {
            self.receiving.remove(transfer);
        }
        current
    }

    /// Gives up a chunk that is being received. Its end is still told.
    pub(super) fn cancel(&self, transfer: &Transfer) {
        if let Some(receiving) = self.receiving.get(transfer) {
            receiving.token.cancel();
        }
    }

    /// Gives up all chunks that are being received from a peer.
    pub(super) fn cancel_peer(&self, peer: HostKey) {
        self.cancel_where(|transfer| transfer.peer == peer);
    }

    /// Gives up the chunks of a content that a peer is sending, from a chunk on.
    pub(super) fn cancel_from(&self, from: Transfer) {
        let Transfer { peer, id, chunk } = from;
        self.cancel_where(|transfer| {
            transfer.peer == peer && transfer.id == id && transfer.chunk >= chunk
        });
    }

    fn cancel_where(&self, which: impl Fn(&Transfer) -> bool) {
        for (transfer, receiving) in &self.receiving {
            if which(transfer) {
                receiving.token.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Made = Transfers<&'static str, &'static str>;

    fn transfer(peer: u64, id: u32, chunk: u32) -> Transfer {
        Transfer {
            peer: HostKey(peer),
            id: ContentId(id),
            chunk: ChunkIndex(chunk),
        }
    }

    fn ticket(event: &Event) -> Ticket {
        match event {
            Event::Requested { ticket, .. } | Event::Offered { ticket, .. } => *ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_question_has_a_ticket_of_its_own_and_is_answered_once() {
        let mut transfers = Made::default();
        let one = ticket(&transfers.requested(transfer(1, 0, 5), "first"));
        let two = ticket(&transfers.requested(transfer(1, 0, 5), "second"));
        assert_ne!(one, two);
        assert_eq!(
            transfers.take_request(two),
            Some((transfer(1, 0, 5), "second"))
        );
        assert_eq!(transfers.take_request(two), None);
        assert_eq!(
            transfers.take_request(one),
            Some((transfer(1, 0, 5), "first"))
        );
    }

    #[test]
    fn a_request_is_not_answered_as_an_offer_and_not_lost_by_that() {
        let mut transfers = Made::default();
        let asked = ticket(&transfers.requested(transfer(1, 0, 5), "request"));
        let spread = Some(Spread::Everyone);
        let event = transfers.offered(transfer(2, 0, 5), spread.clone(), "offer");
        assert!(matches!(&event, Event::Offered { spread: told, .. } if *told == spread));
        assert_eq!(transfers.take_offer(asked), None);
        assert_eq!(transfers.take_request(ticket(&event)), None);
        assert!(transfers.take_request(asked).is_some());
        assert!(transfers.take_offer(ticket(&event)).is_some());
    }

    #[test]
    fn an_answer_to_a_question_that_nobody_asked_is_none() {
        let mut transfers = Made::default();
        assert_eq!(transfers.take_request(Ticket(1)), None);
        assert_eq!(transfers.take_offer(Ticket(7)), None);
    }

    #[test]
    fn a_transfer_that_ends_twice_counts_once() {
        let mut transfers = Made::default();
        let of = transfer(1, 0, 5);
        let number = transfers.receive(of).number;
        assert!(transfers.received(&of, number));
        assert!(!transfers.received(&of, number));
    }

    #[test]
    fn the_end_of_a_transfer_over_a_dead_connection_does_not_end_the_next() {
        let mut transfers = Made::default();
        let of = transfer(1, 0, 5);
        let dead = transfers.receive(of);
        transfers.cancel_peer(HostKey(1));
        assert!(dead.token.is_cancelled());
        let next = transfers.receive(of);
        assert!(!transfers.received(&of, dead.number));
        assert!(!next.token.is_cancelled());
        assert!(transfers.received(&of, next.number));
    }

    #[test]
    fn a_peer_that_goes_takes_its_own_transfers_with_it_and_no_others() {
        let mut transfers = Made::default();
        let (gone, stays) = (transfer(1, 0, 5), transfer(2, 0, 5));
        let (of_gone, of_stays) = (transfers.receive(gone), transfers.receive(stays));
        transfers.cancel_peer(HostKey(1));
        assert!(of_gone.token.is_cancelled());
        assert!(!of_stays.token.is_cancelled());
        // the transfer's end is told all the same, and counts
        assert!(transfers.received(&gone, of_gone.number));
    }

    #[test]
    fn what_a_maker_takes_back_is_given_up_from_that_chunk_on() {
        let mut transfers = Made::default();
        let tokens = [
            transfer(1, 0, 4),
            transfer(1, 0, 5),
            transfer(1, 0, 6),
            transfer(1, 1, 6),
            transfer(2, 0, 6),
        ]
        .map(|of| transfers.receive(of).token);
        transfers.cancel_from(transfer(1, 0, 5));
        let cancelled = tokens.map(|token| token.is_cancelled());
        assert_eq!(cancelled, [false, true, true, false, false]);
    }

    #[test]
    fn cancelling_what_is_not_received_changes_nothing() {
        let mut transfers = Made::default();
        let token = transfers.receive(transfer(1, 0, 5)).token;
        transfers.cancel(&transfer(1, 0, 6));
        transfers.cancel(&transfer(2, 0, 5));
        assert!(!token.is_cancelled());
        transfers.cancel(&transfer(1, 0, 5));
        assert!(token.is_cancelled());
    }
}
