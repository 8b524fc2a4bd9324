//! What others have to do for the exchange.

use proto::{ChunkIndex, Digest, HostId, Signed, message::BlameKind};

use crate::{
    driver::{image_news::ImageNews, input::Input, origins::FetchWanted, streams::Job},
    fetch::FetchEnd,
};

/// What others have to do after this part heard something.
pub(in crate::driver) enum Effect {
    /// Run this beside the driver.
    Run(Job),
    /// Run this beside the driver; it blocks for a chunk's or a content's time.
    RunBlocking(Box<dyn FnOnce() -> Input + Send>),
    /// Apply this input, after the effects before it.
    Hear(Input),
    /// Tell these images.
    Images {
        images: Vec<Digest>,
        news: ImageNews,
    },
    /// The volume of images, or that of the mirror's blobs, failed.
    NotStored { mirrored: bool, error: String },
    /// Call [`Exchange::fetch`](super::Exchange::fetch), with how the images, or the mirror's clients, reach the
    /// registry.
    Fetch(FetchWanted),
    /// A fetch of this content ended.
    FetchEnded { content: Digest, end: FetchEnd },
    /// Tell the coordinator that a host sent something false, which only the two saw.
    Blame {
        host: HostId,
        content: Option<Digest>,
        chunk: ChunkIndex,
        kind: BlameKind,
    },
    /// Show the coordinator these links: who signed them lied.
    Convict(Vec<Signed>),
    /// Tell the coordinator that this host takes back what it made of a content from a chunk on.
    TakeBack { content: Digest, from: ChunkIndex },
    /// A peer says that this chunk, which it had from this host, is false.
    Look { content: Digest, chunk: ChunkIndex },
    /// A chunk was stored, which no journal vouches for yet. The next report says it.
    Stored,
    /// Something changed that the next report says.
    ReportSoon,
    /// Something changed that somebody waits for.
    ReportNow,
}
