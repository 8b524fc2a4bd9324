//! The jobs that do the exchange's errands: streams to and from peers, fetches from registries, and walks on shelves.
//! Each job ends in an [`Input`].

use std::{pin::Pin, sync::Arc};

use proto::{ChunkIndex, HostId, HostKey, message};
use swarm::{
    action::Declined,
    event::{ContentId, Spread, Ticket},
};
use tokio::sync::mpsc;
use wire::{Connection, Endpoint, Receiver, Sender};

use super::{
    contents::Chunk,
    exchange::{Asked, Errand, Fetch, Offer},
    hosts,
    input::Input,
    jobs::Work,
    transfers::{Receiving, Transfer},
    walk::walk,
};
use crate::{
    fetch::{self, News},
    notary::Notary,
    peer::{self, Brought},
    registries::Origin,
    shelf::{Shelf, retract},
    transfer::{self, Cache, Receipt, Subject, Unfit},
};

/// Work that waits for peers or registries.
type Job = Pin<Box<dyn Future<Output = Input> + Send>>;

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
    /// The job that does an errand.
    pub(super) fn work(&self, errand: Errand) -> Work {
        Work::Waiting(match errand {
            Errand::Dial(dial) => self.dial(dial),
            Errand::Listen {
                peer,
                serial,
                connection,
            } => self.listen(peer, serial, connection),
            Errand::Announce {
                connection,
                updates,
            } => self.announce(connection, updates),
            Errand::Request {
                transfer,
                receiving,
                connection,
                chunk,
            } => request(transfer, receiving, connection, self.subject(chunk)),
            Errand::Accept {
                transfer,
                receiving,
                offer,
                chunk,
            } => accept(transfer, receiving, offer, self.subject(chunk)),
            Errand::Decline { answer, bytes, why } => decline(answer, bytes, why),
            Errand::Serve {
                transfer,
                ticket,
                asked,
                chunk,
            } => serve(transfer, ticket, asked, self.subject(chunk)),
            Errand::Refuse { answer, why } => refuse(answer, why),
            Errand::Push {
                transfer,
                connection,
                chunk,
                spread,
            } => push(transfer, connection, self.subject(chunk), spread),
            Errand::Fetch(fetch) => self.fetch(fetch),
            Errand::Walk {
                id,
                content,
                chunks,
                shelves,
            } => {
                return Work::blocking(move || Input::Walked {
                    id,
                    walked: walk(&shelves, content, chunks),
                });
            }
            Errand::Retract {
                id,
                content,
                shelves,
            } => {
                let (me, from) = (self.me.key(), ChunkIndex(0));
                return Work::blocking(move || Input::Retracted {
                    id,
                    from,
                    result: retract(&shelves, content, me, from),
                });
            }
            Errand::DropMade {
                from: Transfer { peer, id, chunk },
                content,
                shelves,
            } => {
                return Work::blocking(move || Input::Dropped {
                    id,
                    result: retract(&shelves, content, peer, chunk),
                });
            }
        })
    }

    /// Connects to a host.
    fn dial(&self, dial: hosts::Dial) -> Job {
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
    fn listen(&self, peer: HostKey, serial: u64, connection: Connection) -> Job {
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
    fn announce(
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

    /// The subject of a transfer.
    fn subject(&self, chunk: Chunk) -> Subject {
        Subject {
            content: chunk.content,
            geometry: chunk.geometry,
            chunk: chunk.index,
            shelves: chunk.shelves,
            cache: self.cache.clone(),
            notary: self.notary.clone(),
            retracted: chunk.dropped_lately.then(|| self.me.key()),
            suspects: chunk.suspects,
            unfit: self.unfit.clone(),
        }
    }

    /// Fetches a content from a registry.
    fn fetch(&self, fetch: Fetch) -> Job {
        let Fetch {
            id,
            content,
            geometry,
            kind,
            shelves,
            reference,
            reins,
        } = fetch;
        let mut job = fetch::Job {
            id,
            content,
            geometry,
            kind,
            range: reins.range,
            shelves,
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

/// Asks a peer for a chunk.
fn request(
    transfer: Transfer,
    receiving: Receiving,
    connection: Connection,
    subject: Subject,
) -> Job {
    let taken = transfer::request(connection, subject);
    Box::pin(receive(transfer, receiving, taken))
}

/// Takes a chunk that a peer offers.
fn accept(
    transfer: Transfer,
    receiving: Receiving,
    offer: Offer<Sender, Receiver>,
    subject: Subject,
) -> Job {
    let Offer {
        header,
        sends_parts,
        answer,
        bytes,
    } = offer;
    let header = (*header, sends_parts);
    let taken = transfer::accept_push(transfer.peer, header, answer, bytes, subject);
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
fn serve(transfer: Transfer, ticket: Ticket, asked: Asked<Sender>, subject: Subject) -> Job {
    Box::pin(async move {
        Input::Sent {
            transfer,
            ticket: Some(ticket),
            shipment: transfer::serve(asked.answer, asked.lacking, subject).await,
        }
    })
}

/// Offers a chunk to a peer.
fn push(
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
fn refuse(sender: Sender, why: Declined) -> Job {
    Box::pin(async move {
        transfer::refuse(sender, why).await;
        Input::Nothing
    })
}

/// Turns an offer away.
fn decline(sender: Sender, receiver: Receiver, why: Declined) -> Job {
    Box::pin(async move {
        transfer::decline_push(sender, receiver, why).await;
        Input::Nothing
    })
}
