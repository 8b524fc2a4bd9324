//! How chunks begin to move: what the swarm wants, or what a peer asks, becomes an errand on the peer's connection. If
//! the connection or the content is gone, the swarm is told that the chunk doesn't move.
//!
//! How a move ends is heard by the exchange.

use std::time::Instant;

use proto::{
    HostKey,
    message::{self, ChunkPush, ChunkRequest},
};
use swarm::{
    Event,
    action::Declined,
    event::{Spread, Ticket},
};

use super::errand::{Asked, Errand, Offer};
use crate::driver::{
    contents::{Chunk, Contents},
    handles::Handles,
    hosts::Hosts,
    transfers::{Transfer, Transfers},
};

/// Transfers over connections.
pub(super) type PeerTransfers<H> =
    Transfers<Asked<<H as Handles>::Answer>, Offer<<H as Handles>::Answer, <H as Handles>::Bytes>>;

/// What follows.
pub(super) enum Begun<H: Handles> {
    /// Do this beside the driver.
    Run(Errand<H>),
    /// Tell the swarm.
    Tell(Event),
}

/// The parts that know the peer's connection, the chunk's place, and what waits for the swarm's answer.
pub(super) struct Moves<'a, H: Handles> {
    pub(super) now: Instant,
    pub(super) hosts: &'a Hosts<H::Line>,
    pub(super) contents: &'a Contents<H::Shelf>,
    pub(super) transfers: &'a mut PeerTransfers<H>,
}

impl<H: Handles> Moves<'_, H> {
    /// Asks a peer for a chunk.
    pub(super) fn request(self, transfer: Transfer) -> Begun<H> {
        let connection = self.hosts.connection(transfer.peer);
        match (connection, self.chunk(&transfer)) {
            (Some(connection), Some(chunk)) => Begun::Run(Errand::Request {
                transfer,
                receiving: self.transfers.receive(transfer),
                connection,
                chunk,
            }),
            _ => Begun::Tell(transfer.broken()),
        }
    }

    /// Offers a chunk to a peer.
    pub(super) fn push(self, transfer: Transfer, spread: Option<Spread>) -> Begun<H> {
        let connection = self.hosts.connection(transfer.peer);
        match (connection, self.chunk(&transfer)) {
            (Some(connection), Some(chunk)) => Begun::Run(Errand::Push {
                transfer,
                connection,
                chunk,
                spread,
            }),
            _ => Begun::Tell(transfer.not_sent(None)),
        }
    }

    /// Takes the chunk that a peer offers. `None` if the offer is gone.
    pub(super) fn accept(self, ticket: Ticket) -> Option<Begun<H>> {
        let (transfer, offer) = self.transfers.take_offer(ticket)?;
        let Some(chunk) = self.chunk(&transfer) else {
            return Some(Begun::Tell(transfer.broken()));
        };
        Some(Begun::Run(Errand::Accept {
            transfer,
            receiving: self.transfers.receive(transfer),
            offer,
            chunk,
        }))
    }

    /// Turns an offer away. `None` if the offer is gone.
    pub(super) fn decline(self, ticket: Ticket, why: Declined) -> Option<Begun<H>> {
        let (_, Offer { answer, bytes, .. }) = self.transfers.take_offer(ticket)?;
        Some(Begun::Run(Errand::Decline { answer, bytes, why }))
    }

    /// Answers a request with the chunk. `None` if the request is gone.
    pub(super) fn serve(self, ticket: Ticket) -> Option<Begun<H>> {
        let (transfer, asked) = self.transfers.take_request(ticket)?;
        let Some(chunk) = self.chunk(&transfer) else {
            return Some(Begun::Tell(transfer.not_sent(Some(ticket))));
        };
        Some(Begun::Run(Errand::Serve {
            transfer,
            ticket,
            asked,
            chunk,
        }))
    }

    /// Turns a request away. `None` if the request is gone.
    pub(super) fn refuse(self, ticket: Ticket, why: Declined) -> Option<Begun<H>> {
        let (_, Asked { answer, .. }) = self.transfers.take_request(ticket)?;
        Some(Begun::Run(Errand::Refuse { answer, why }))
    }

    /// A peer asks for a chunk. The swarm hears of it, if the content is here.
    pub(super) fn requested(
        self,
        peer: HostKey,
        request: ChunkRequest,
        answer: H::Answer,
    ) -> Begun<H> {
        let Some((id, chunk)) = self.contents.locate(&request.content, request.index) else {
            let why = Declined::Missing;
            return Begun::Run(Errand::Refuse { answer, why });
        };
        let transfer = Transfer { peer, id, chunk };
        let asked = Asked {
            lacking: request.lacking,
            answer,
        };
        Begun::Tell(self.transfers.requested(transfer, asked))
    }

    /// A peer offers a chunk. The swarm hears of it, if the content is wanted here.
    pub(super) fn offered(
        self,
        peer: HostKey,
        push: ChunkPush,
        (answer, bytes): (H::Answer, H::Bytes),
    ) -> Begun<H> {
        let place = self.contents.locate(&push.content, push.index);
        let (Some((id, chunk)), Some(header)) = (place, push.header) else {
            let why = Declined::Unwanted;
            return Begun::Run(Errand::Decline { answer, bytes, why });
        };
        let transfer = Transfer { peer, id, chunk };
        let offer = Offer {
            header: Box::new(header),
            sends_parts: push.sends_parts,
            answer,
            bytes,
        };
        let spread = push.spread.map(spread);
        Begun::Tell(self.transfers.offered(transfer, spread, offer))
    }

    fn chunk(&self, transfer: &Transfer) -> Option<Chunk<H::Shelf>> {
        let content = self.contents.find(transfer.id)?;
        Some(content.chunk(transfer.chunk, self.now))
    }
}

/// The hosts to which a pushed chunk is to be passed on, as the message says.
fn spread(wire: message::Spread) -> Spread {
    match wire.everyone {
        true => Spread::Everyone,
        false => Spread::To(wire.targets.into_iter().map(HostKey).collect()),
    }
}
