//! The work over connections and on shelves that the exchange wants done.

use proto::{
    Digest, Geometry, HostKey,
    image::ContentKind,
    message::{ChunkHeader, PeerUpdate, Ranges},
};
use swarm::{
    action::Declined,
    event::{ContentId, Spread, Ticket},
};
use tokio::sync::mpsc;

use crate::{
    driver::{
        contents::Chunk,
        fetches::Reins,
        handles::{Handles, Real},
        hosts,
        transfers::{Receiving, Transfer},
    },
    shelf::Shelf,
};

/// Work beside the driver. It ends in an [`Input`](crate::driver::Input).
#[derive(Debug)]
pub(in crate::driver) enum Errand<H: Handles = Real> {
    /// Connect to a host.
    Dial(hosts::Dial),
    /// Read what a peer sends, until the connection ends.
    Listen {
        peer: HostKey,
        serial: u64,
        connection: H::Line,
    },
    /// Tell a peer which chunks this host holds, until the connection or the updates end.
    Announce {
        connection: H::Line,
        updates: mpsc::Receiver<PeerUpdate>,
    },
    /// Ask a peer for a chunk.
    Request {
        transfer: Transfer,
        receiving: Receiving,
        connection: H::Line,
        chunk: Chunk<H::Shelf>,
    },
    /// Take a chunk that a peer offers.
    Accept {
        transfer: Transfer,
        receiving: Receiving,
        offer: Offer<H::Answer, H::Bytes>,
        chunk: Chunk<H::Shelf>,
    },
    /// Turn an offer away.
    Decline {
        answer: H::Answer,
        bytes: H::Bytes,
        why: Declined,
    },
    /// Answer a request with the chunk.
    Serve {
        transfer: Transfer,
        ticket: Ticket,
        asked: Asked<H::Answer>,
        chunk: Chunk<H::Shelf>,
    },
    /// Turn a request away.
    Refuse { answer: H::Answer, why: Declined },
    /// Offer a chunk to a peer.
    Push {
        transfer: Transfer,
        connection: H::Line,
        chunk: Chunk<H::Shelf>,
        spread: Option<Spread>,
    },
    /// Fetch a content from a registry.
    Fetch(Fetch<H::Shelf>),
    /// Walk a content's chain back from its digest.
    Walk {
        id: ContentId,
        content: Digest,
        chunks: u32,
        shelves: Vec<H::Shelf>,
    },
    /// Drop all links that this host made of a content.
    Retract {
        id: ContentId,
        content: Digest,
        shelves: Vec<H::Shelf>,
    },
    /// Drop the links that another host made of a content, from a chunk on.
    DropMade {
        from: Transfer,
        content: Digest,
        shelves: Vec<H::Shelf>,
    },
}

/// A chunk that a peer offers: its header, and the streams for the answer and the chunk.
#[derive(Debug)]
pub(in crate::driver) struct Offer<A, B> {
    pub(in crate::driver) header: Box<ChunkHeader>,
    /// The peer sends only what this host lacks of the chunk, if this host says so.
    pub(in crate::driver) sends_parts: bool,
    pub(in crate::driver) answer: A,
    pub(in crate::driver) bytes: B,
}

/// A fetch of a content from the registry that `reference` names.
#[derive(Debug)]
pub(in crate::driver) struct Fetch<S = Shelf> {
    pub(in crate::driver) id: ContentId,
    pub(in crate::driver) content: Digest,
    pub(in crate::driver) geometry: Geometry,
    pub(in crate::driver) kind: ContentKind,
    pub(in crate::driver) shelves: Vec<S>,
    pub(in crate::driver) reference: String,
    pub(in crate::driver) reins: Reins,
}

/// A chunk that a peer asks for: the stream for the answer.
#[derive(Debug)]
pub(in crate::driver) struct Asked<A> {
    /// What the peer lacks of the chunk; `None`: the whole.
    pub(in crate::driver) lacking: Option<Ranges>,
    pub(in crate::driver) answer: A,
}
