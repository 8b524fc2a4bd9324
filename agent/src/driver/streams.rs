//! What the driver starts on connections: each job ends in an [`Input`].

use std::net::SocketAddr;

use link::{Connection, Endpoint, Receiver, Sender};
use proto::{
    HostId, HostKey,
    message::{self, ChunkHeader, PeerUpdate},
};
use swarm::{
    action::Declined,
    event::{Spread, Ticket},
};
use tokio::sync::mpsc;

use super::{
    input::Input,
    transfers::{Receiving, Transfer, Transfers},
};
use crate::{
    peer::{self, Brought},
    transfer::{self, Receipt, Subject},
};

/// A chunk that a peer offers: its header, and the streams on which the chunk and the answer go.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) header: Box<ChunkHeader>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// Transfers over connections.
pub(super) type PeerTransfers = Transfers<Sender, Offer>;

/// To whom a pushed chunk is to be passed on, as the message says.
pub(super) fn spread(wire: message::Spread) -> Spread {
    if wire.everyone {
        Spread::Everyone
    } else {
        Spread::To(wire.targets.into_iter().map(HostKey).collect())
    }
}

pub(super) async fn dial(
    endpoint: Endpoint,
    peer: HostKey,
    host: HostId,
    address: SocketAddr,
) -> Input {
    let result = endpoint.connect(address, &host).await;
    Input::Connected {
        peer,
        result: result.map_err(|error| error.to_string()),
    }
}

pub(super) async fn listen(
    peer: HostKey,
    serial: u64,
    connection: Connection,
    inbox: mpsc::Sender<(HostKey, Brought)>,
) -> Input {
    let reason = peer::listen(connection, serial, inbox).await;
    Input::ConnectionEnded {
        peer,
        serial,
        reason,
    }
}

pub(super) async fn announce(
    connection: Connection,
    life: u64,
    updates: mpsc::Receiver<PeerUpdate>,
) -> Input {
    peer::tell(connection, life, updates).await;
    Input::Nothing
}

pub(super) async fn request(
    transfer: Transfer,
    receiving: Receiving,
    connection: Connection,
    subject: Subject,
) -> Input {
    receive(transfer, receiving, transfer::request(connection, subject)).await
}

pub(super) async fn accept(
    transfer: Transfer,
    receiving: Receiving,
    offer: Offer,
    subject: Subject,
) -> Input {
    let Offer {
        header,
        sender,
        receiver,
    } = offer;
    let taken = transfer::accept_push(transfer.peer, *header, sender, receiver, subject);
    receive(transfer, receiving, taken).await
}

async fn receive(
    transfer: Transfer,
    receiving: Receiving,
    taken: impl Future<Output = Receipt>,
) -> Input {
    let Receiving { number, token } = receiving;
    let receipt = tokio::select! {
        receipt = taken => receipt,
        () = token.cancelled() => Receipt::cancelled(),
    };
    Input::Received {
        transfer,
        number,
        receipt,
    }
}

pub(super) async fn serve(
    transfer: Transfer,
    ticket: Ticket,
    sender: Sender,
    subject: Subject,
) -> Input {
    Input::Sent {
        transfer,
        ticket: Some(ticket),
        shipment: transfer::serve(sender, subject).await,
    }
}

pub(super) async fn push(
    transfer: Transfer,
    connection: Connection,
    subject: Subject,
    spread: Option<Spread>,
) -> Input {
    Input::Sent {
        transfer,
        ticket: None,
        shipment: transfer::push(connection, subject, spread).await,
    }
}

pub(super) async fn refuse(sender: Sender, why: Declined) -> Input {
    transfer::refuse(sender, why).await;
    Input::Nothing
}

pub(super) async fn decline(sender: Sender, receiver: Receiver, why: Declined) -> Input {
    transfer::decline_push(sender, receiver, why).await;
    Input::Nothing
}
