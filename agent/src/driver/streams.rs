//! The jobs that move chunks: streams to and from peers, and fetches from registries. Each job ends in an [`Input`].

use std::{pin::Pin, sync::Arc};

use proto::{
    ChunkIndex, HostId, HostKey,
    message::{self, ChunkHeader, Ranges},
};
use swarm::{
    action::Declined,
    event::{ContentId, Spread, Ticket},
};
use tokio::sync::mpsc;
use wire::{Connection, Endpoint, Receiver, Sender};

use super::{
    contents::Content,
    fetches::Reins,
    hosts,
    input::Input,
    transfers::{Receiving, Transfer, Transfers},
};
use crate::{
    fetch::{self, News},
    notary::Notary,
    peer::{self, Brought},
    registries::Origin,
    shelf::Shelf,
    transfer::{self, Cache, Receipt, Subject, Unfit},
};

/// Work that runs beside the driver.
pub(super) type Job = Pin<Box<dyn Future<Output = Input> + Send>>;

/// A chunk that a peer offers: its header, and the streams for the chunk and the answer.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) header: Box<ChunkHeader>,
    /// The peer sends only what this host lacks of the chunk, if this host says so.
    pub(super) sends_parts: bool,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// A chunk that a peer asks for: the stream for the answer.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the peer lacks of the chunk; `None`: the whole.
    pub(super) lacking: Option<Ranges>,
    pub(super) sender: Sender,
}

/// Transfers over connections.
pub(super) type PeerTransfers = Transfers<Asked, Offer>;

/// The parts of this host that the jobs need.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) me: HostId,
    /// The number of this life of the program, for peers; never 0.
    pub(super) life: u64,
    pub(super) endpoint: Endpoint,
    pub(super) origin: Origin,
    pub(super) notary: Arc<Notary>,
    pub(super) cache: Arc<Cache>,
    pub(super) unfit: Arc<Unfit>,
    pub(super) peer_inbox: mpsc::Sender<(HostKey, Brought)>,
    pub(super) fetch_inbox: mpsc::Sender<(ContentId, News)>,
}

impl Streams {
    /// Connects to a host.
    pub(super) fn dial(&self, dial: hosts::Dial) -> Job {
        let endpoint = self.endpoint.clone();
        Box::pin(async move {
            let hosts::Dial {
                peer,
                host,
                address,
            } = dial;
            let result = endpoint.connect(address, &host).await;
            Input::Connected { peer, result }
        })
    }

    /// Reads what a peer sends, until the connection ends.
    pub(super) fn listen(&self, peer: HostKey, serial: u64, connection: Connection) -> Job {
        let inbox = self.peer_inbox.clone();
        Box::pin(async move {
            let reason = peer::listen(connection, serial, inbox).await;
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            }
        })
    }

    /// Tells a peer which chunks this host holds, until the connection or the updates end.
    pub(super) fn announce(
        &self,
        connection: Connection,
        updates: mpsc::Receiver<message::PeerUpdate>,
    ) -> Job {
        let life = self.life;
        Box::pin(async move {
            peer::tell(connection, life, updates).await;
            Input::Nothing
        })
    }

    /// The subject of a transfer: one chunk of a content. `dropped_lately`: links that this host made aren't taken.
    pub(super) fn subject(
        &self,
        content: &Content,
        chunk: ChunkIndex,
        dropped_lately: bool,
    ) -> Subject {
        Subject {
            content: content.digest(),
            geometry: content.geometry(),
            chunk,
            shelves: content.shelves(),
            cache: self.cache.clone(),
            notary: self.notary.clone(),
            retracted: dropped_lately.then(|| self.me.key()),
            suspects: content.suspects(),
            unfit: self.unfit.clone(),
        }
    }

    /// Fetches a content from the registry that `reference` names.
    pub(super) fn fetch(&self, content: &Content, reference: String, reins: Reins) -> Job {
        let id = content.id();
        let mut job = fetch::Job {
            id,
            content: content.digest(),
            geometry: content.geometry(),
            kind: content.kind(),
            range: reins.range,
            shelves: content.shelves(),
            reference,
            access: reins.access,
            doubted: false,
            me: self.me.clone(),
            notary: Some(self.notary.clone()),
            cache: self.cache.clone(),
            unfit: self.unfit.clone(),
            until: reins.until,
            moved: reins.moved,
            inbox: self.fetch_inbox.clone(),
        };
        let registry = job.reference.split_once('/').map(|(registry, _)| registry);
        for shelf in &job.shelves {
            if let Shelf::Blob(blob) = shelf {
                blob.comes_from(registry);
            }
        }
        let (origin, number, token) = (self.origin.clone(), reins.number, reins.token);
        Box::pin(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Input::Nothing,
                end = fetch::run(&origin, &mut job) => Input::FetchEnded { id, number, end },
            }
        })
    }
}

/// The hosts to which a pushed chunk is to be passed on, as the message says.
pub(super) fn spread(wire: message::Spread) -> Spread {
    if wire.everyone {
        Spread::Everyone
    } else {
        Spread::To(wire.targets.into_iter().map(HostKey).collect())
    }
}

/// Asks a peer for a chunk.
pub(super) fn request(
    transfer: Transfer,
    receiving: Receiving,
    connection: Connection,
    subject: Subject,
) -> Job {
    let taken = transfer::request(connection, subject);
    Box::pin(receive(transfer, receiving, taken))
}

/// Takes a chunk that a peer offers.
pub(super) fn accept(
    transfer: Transfer,
    receiving: Receiving,
    offer: Offer,
    subject: Subject,
) -> Job {
    let Offer {
        header,
        sends_parts,
        sender,
        receiver,
    } = offer;
    let header = (*header, sends_parts);
    let taken = transfer::accept_push(transfer.peer, header, sender, receiver, subject);
    Box::pin(receive(transfer, receiving, taken))
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

/// Answers a request with the chunk.
pub(super) fn serve(transfer: Transfer, ticket: Ticket, asked: Asked, subject: Subject) -> Job {
    Box::pin(async move {
        Input::Sent {
            transfer,
            ticket: Some(ticket),
            shipment: transfer::serve(asked.sender, asked.lacking, subject).await,
        }
    })
}

/// Offers a chunk to a peer.
pub(super) fn push(
    transfer: Transfer,
    connection: Connection,
    subject: Subject,
    spread: Option<Spread>,
) -> Job {
    Box::pin(async move {
        Input::Sent {
            transfer,
            ticket: None,
            shipment: transfer::push(connection, subject, spread).await,
        }
    })
}

/// Turns a request away.
pub(super) fn refuse(sender: Sender, why: Declined) -> Job {
    Box::pin(async move {
        transfer::refuse(sender, why).await;
        Input::Nothing
    })
}

/// Turns an offer away.
pub(super) fn decline(sender: Sender, receiver: Receiver, why: Declined) -> Job {
    Box::pin(async move {
        transfer::decline_push(sender, receiver, why).await;
        Input::Nothing
    })
}
