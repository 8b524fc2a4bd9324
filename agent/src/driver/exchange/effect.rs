//! The work that the exchange leaves to other parts.

use proto::{ChunkIndex, Digest, HostId, Signed, message::BlameKind, recipe::Doubt};

use crate::{
    driver::{image_news::ImageNews, input::Input, origins::FetchWanted, streams::Job},
    fetch::FetchEnd,
};

/// Work for other parts, after the exchange heard something.
pub(in crate::driver) enum Effect {
    /// Run this beside the driver.
    Run(Job),
    /// Run this beside the driver. It blocks for as long as one chunk or one content takes.
    RunBlocking(Box<dyn FnOnce() -> Input + Send>),
    /// Apply this input, after the effects before it.
    Hear(Input),
    /// Tell these images.
    Images {
        images: Vec<Digest>,
        news: ImageNews,
    },
    /// The volume of the images, or of the mirror's blobs, failed.
    NotStored { mirrored: bool, error: String },
    /// Call [`Exchange::fetch`](super::Exchange::fetch), with the image's or the mirror clients' way to reach the
    /// registry.
    Fetch(FetchWanted),
    /// A fetch of this content ended.
    FetchEnded { content: Digest, end: FetchEnd },
    /// Tell the coordinator that a host sent something false. Only the two hosts saw it.
    Blame {
        host: HostId,
        content: Option<Digest>,
        chunk: ChunkIndex,
        kind: BlameKind,
    },
    /// Show the coordinator these links. Their signers lied.
    Convict(Vec<Signed>),
    /// Tell the coordinator that this host takes back the links that it made of a content, from a chunk on.
    TakeBack { content: Digest, from: ChunkIndex },
    /// The registry's bytes don't fit what an image's recipe may say: tell the image and the coordinator.
    Doubt(Doubt),
    /// A peer says that this chunk, which this host sent, is false.
    Look { content: Digest, chunk: ChunkIndex },
    /// A chunk was stored, and no journal vouches for it yet. It belongs into the next report.
    Stored,
    /// Something changed that belongs into the next report.
    ReportSoon,
    /// Something changed that others wait for.
    ReportNow,
}
