//! The inputs of the driver: messages of peers and of the coordinator, ends of jobs, time.

use std::sync::Arc;

use proto::{ChunkIndex, Digest, HostKey, message::OldImages};
use swarm::event::{ContentId, Ticket};
use wire::{ConnectError, Connection};

use super::{
    image::NoRecipe,
    look::Seen,
    transfers::Transfer,
    trouble::{Trouble, Unbegun},
    walk::Walked,
};
use crate::{
    fetch::{self, FetchEnd},
    mirror::{Wish, blob::Blob},
    peer::Brought,
    session::Heard,
    store::{InstallError, Stage, Volume, recipes::NamedRecipe, survey::Surveyed},
    transfer::{Receipt, Shipment},
};

/// Everything that changes the driver's state. Each input is applied as a whole, before the next one is looked at.
#[derive(Debug)]
pub(crate) enum Input {
    /// A peer connected, or was dialled (`Err`: why not).
    Connected {
        peer: HostKey,
        result: Result<Connection, ConnectError>,
    },
    /// A connection ended.
    ConnectionEnded {
        peer: HostKey,
        serial: u64,
        reason: String,
    },
    /// A peer sent something.
    Brought { peer: HostKey, brought: Brought },
    /// The coordinator's session.
    Heard(Heard),
    /// A chunk that was requested or accepted came or didn't.
    Received {
        transfer: Transfer,
        number: u64,
        receipt: Receipt,
    },
    /// An upload ended.
    Sent {
        transfer: Transfer,
        ticket: Option<Ticket>,
        shipment: Shipment,
    },
    /// A fetch from the registry reports its progress.
    Fetch { id: ContentId, news: fetch::News },
    /// The links that this host made of a content were dropped here, from a chunk on. `result`: the chunks among them
    /// that were held.
    Retracted {
        id: ContentId,
        from: ChunkIndex,
        result: Result<Vec<ChunkIndex>, String>,
    },
    /// Chunks of a content were dropped.
    Dropped {
        id: ContentId,
        result: Result<Vec<ChunkIndex>, String>,
    },
    /// A fetch ended.
    FetchEnded {
        id: ContentId,
        /// Tells the fetch from another one of the same content.
        number: u64,
        end: FetchEnd,
    },
    /// A stage was made ready, or can't be.
    Begun {
        image: Digest,
        result: Result<(Arc<Stage>, u64), Unbegun>,
    },
    /// The file of an image's recipe was opened, or can't be.
    RecipeOpened {
        image: Digest,
        result: Result<Arc<Blob>, String>,
    },
    /// An image's recipe was read, or can't be.
    RecipeRead {
        image: Digest,
        result: Result<Arc<NamedRecipe>, NoRecipe>,
    },
    /// The recipe of an image was made here, and its file noted with the image, or can't be.
    RecipeMade {
        image: Digest,
        result: Result<Arc<Blob>, String>,
    },
    /// A content's chain was walked.
    Walked { id: ContentId, walked: Walked },
    /// The names that are wanted for an image were written down.
    Recorded {
        image: Digest,
        result: Result<(), Trouble>,
    },
    /// An install of this stage ended. `placed` are the references that are linked.
    Installed {
        image: Digest,
        stage: Arc<Stage>,
        placed: Vec<String>,
        result: Result<(), InstallError>,
    },
    /// Making the goldens of an installed image ended, or this host's tart can't use it under its names.
    Golden {
        image: Digest,
        stage: Arc<Stage>,
        result: Result<(), Trouble>,
        installed: Result<(), InstallError>,
    },
    /// A stage was removed.
    Abandoned(Digest),
    /// A look at the disk ended.
    Presence {
        seen: Seen,
        load_percent: Option<u32>,
    },
    /// The volume's room.
    Measured(Volume),
    /// The answer to the coordinator's question which old images would go.
    OldImages(Box<OldImages>),
    /// A part of a disk that parbake didn't build was read, or there was none to read.
    Surveyed(Result<Surveyed, String>),
    /// A few chunks were read again.
    Scrubbed,
    /// A chunk for which a peer blames this host was looked at.
    Looked {
        content: Digest,
        chunk: ChunkIndex,
        rotten: bool,
    },
    /// Reading a stage ended: the bytes that an earlier process left, or an image that was doubted.
    ReadAgain {
        image: Digest,
        stage: Arc<Stage>,
        result: Result<(), String>,
    },
    /// The journals were flushed.
    Flushed {
        images: Result<(), String>,
        blobs: Result<(), String>,
    },
    /// A client of the mirror wants a blob.
    Wished(Wish),
    /// Whole blobs of the mirror were found, which peers may ask for.
    Seeds(Vec<Arc<Blob>>),
    /// Copying a blob from an image ended.
    Copied(Digest),
    /// Some of the mirror's cache was read again.
    BlobsScrubbed {
        next: (Option<Digest>, u32),
        bad: Option<Digest>,
    },
    /// A small job of no consequence ended.
    Nothing,
    /// Time passed.
    Tick,
}
