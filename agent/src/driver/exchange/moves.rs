//! How chunks begin to move: what the swarm wants, or what a peer asks, becomes a job on the peer's connection. If the
//! connection or the content is gone, the swarm is told that the chunk doesn't move.
//!
//! How a move ends is heard by the exchange.

use std::time::Instant;

use proto::{
    HostKey,
    message::{ChunkPush, ChunkRequest},
};
use swarm::{
    Event,
    action::Declined,
    event::{Spread, Ticket},
};
use wire::{Receiver, Sender};

use crate::{
    driver::{
        contents::Contents,
        hosts::Hosts,
        streams::{self, Asked, Job, Offer, PeerTransfers, Streams},
        transfers::Transfer,
    },
    transfer::Subject,
};

/// What follows.
pub(super) enum Begun {
    /// Run this beside the driver.
    Run(Job),
    /// Tell the swarm.
    Tell(Event),
}

/// The parts that know the peer's connection, the chunk's place, and what waits for the swarm's answer.
pub(super) struct Moves<'a> {
    pub(super) now: Instant,
    pub(super) streams: &'a Streams,
    pub(super) hosts: &'a Hosts,
    pub(super) contents: &'a Contents,
    pub(super) transfers: &'a mut PeerTransfers,
}

impl Moves<'_> {
    /// Asks a peer for a chunk.
    pub(super) fn request(self, transfer: Transfer) -> Begun {
        let connection = self.hosts.connection(transfer.peer);
        match (connection, self.subject(&transfer)) {
            (Some(connection), Some(subject)) => {
                let receiving = self.transfers.receive(transfer);
                Begun::Run(streams::request(transfer, receiving, connection, subject))
            }
            _ => Begun::Tell(transfer.broken()),
        }
    }

    /// Offers a chunk to a peer.
    pub(super) fn push(self, transfer: Transfer, spread: Option<Spread>) -> Begun {
        let connection = self.hosts.connection(transfer.peer);
        match (connection, self.subject(&transfer)) {
            (Some(connection), Some(subject)) => {
                Begun::Run(streams::push(transfer, connection, subject, spread))
            }
            _ => Begun::Tell(transfer.not_sent(None)),
        }
    }

    /// Takes the chunk that a peer offers. `None` if the offer is gone.
    pub(super) fn accept(self, ticket: Ticket) -> Option<Begun> {
        let (transfer, offer) = self.transfers.take_offer(ticket)?;
        let Some(subject) = self.subject(&transfer) else {
            return Some(Begun::Tell(transfer.broken()));
        };
        let receiving = self.transfers.receive(transfer);
        let job = streams::accept(transfer, receiving, offer, subject);
        Some(Begun::Run(job))
    }

    /// Turns an offer away. `None` if the offer is gone.
    pub(super) fn decline(self, ticket: Ticket, why: Declined) -> Option<Begun> {
        let (_, offer) = self.transfers.take_offer(ticket)?;
        let job = streams::decline(offer.sender, offer.receiver, why);
        Some(Begun::Run(job))
    }

    /// Answers a request with the chunk. `None` if the request is gone.
    pub(super) fn serve(self, ticket: Ticket) -> Option<Begun> {
        let (transfer, asked) = self.transfers.take_request(ticket)?;
        let Some(subject) = self.subject(&transfer) else {
            return Some(Begun::Tell(transfer.not_sent(Some(ticket))));
        };
        let job = streams::serve(transfer, ticket, asked, subject);
        Some(Begun::Run(job))
    }

    /// Turns a request away. `None` if the request is gone.
    pub(super) fn refuse(self, ticket: Ticket, why: Declined) -> Option<Begun> {
        let (_, asked) = self.transfers.take_request(ticket)?;
        Some(Begun::Run(streams::refuse(asked.sender, why)))
    }

    /// A peer asks for a chunk. The swarm hears of it, if the content is here.
    pub(super) fn requested(self, peer: HostKey, request: ChunkRequest, sender: Sender) -> Begun {
        let Some((id, chunk)) = self.contents.locate(&request.content, request.index) else {
            return Begun::Run(streams::refuse(sender, Declined::Missing));
        };
        let transfer = Transfer { peer, id, chunk };
        let asked = Asked {
            lacking: request.lacking,
            sender,
        };
        Begun::Tell(self.transfers.requested(transfer, asked))
    }

    /// A peer offers a chunk. The swarm hears of it, if the content is wanted here.
    pub(super) fn offered(
        self,
        peer: HostKey,
        push: ChunkPush,
        (sender, receiver): (Sender, Receiver),
    ) -> Begun {
        let place = self.contents.locate(&push.content, push.index);
        let (Some((id, chunk)), Some(header)) = (place, push.header) else {
            return Begun::Run(streams::decline(sender, receiver, Declined::Unwanted));
        };
        let transfer = Transfer { peer, id, chunk };
        let offer = Offer {
            header: Box::new(header),
            sends_parts: push.sends_parts,
            sender,
            receiver,
        };
        let spread = push.spread.map(streams::spread);
        Begun::Tell(self.transfers.offered(transfer, spread, offer))
    }

    fn subject(&self, transfer: &Transfer) -> Option<Subject> {
        let content = self.contents.find(transfer.id)?;
        let dropped_lately = content.dropped_lately(self.now);
        let streams = self.streams;
        Some(streams.subject(content, transfer.chunk, dropped_lately))
    }
}
