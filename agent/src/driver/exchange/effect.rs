//! The work that the exchange leaves to other parts.

use std::collections::VecDeque;

use proto::{ChunkIndex, Digest, HostId, HostKey, Signed, message::BlameKind, recipe::Doubt};
use swarm::event::ContentId;

use crate::{
    driver::{
        image_news::ImageNews, input::Input, origins::FetchWanted, streams::Job,
        transfers::Transfer, walk::walk,
    },
    fetch::FetchEnd,
    shelf::{Shelf, Unwritable, retract},
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

/// Effects that wait for the driver, in order.
#[derive(Default)]
pub(super) struct Effects {
    waiting: VecDeque<Effect>,
}

impl Effects {
    pub(super) fn push(&mut self, effect: Effect) {
        self.waiting.push_back(effect);
    }

    pub(super) fn run(&mut self, job: Job) {
        self.push(Effect::Run(job));
    }

    fn run_blocking(&mut self, job: impl FnOnce() -> Input + Send + 'static) {
        self.push(Effect::RunBlocking(Box::new(job)));
    }

    /// Walks a content's chain back from its digest.
    pub(super) fn walk(
        &mut self,
        id: ContentId,
        (content, chunks): (Digest, u32),
        shelves: Vec<Shelf>,
    ) {
        self.run_blocking(move || Input::Walked {
            id,
            walked: walk(&shelves, content, chunks),
        });
    }

    /// Drops all links that this host, `me`, made of a content.
    pub(super) fn retract(
        &mut self,
        id: ContentId,
        content: Digest,
        me: HostKey,
        shelves: Vec<Shelf>,
    ) {
        let from = ChunkIndex(0);
        self.run_blocking(move || Input::Retracted {
            id,
            from,
            result: retract(&shelves, content, me, from),
        });
    }

    /// Drops the links that another host made of a content, from a chunk on.
    pub(super) fn drop_made(&mut self, from: Transfer, content: Digest, shelves: Vec<Shelf>) {
        self.run_blocking(move || Input::Dropped {
            id: from.id,
            result: retract(&shelves, content, from.peer, from.chunk),
        });
    }

    pub(super) fn tell_images(&mut self, images: Vec<Digest>, news: ImageNews) {
        if !images.is_empty() {
            self.push(Effect::Images { images, news });
        }
    }

    /// The files of these images can't be written.
    pub(super) fn tell_unwritable(&mut self, images: Vec<Unwritable>) {
        for (image, error) in images {
            self.tell_images(vec![image], ImageNews::Unwritable(error));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes the first one.
    pub(super) fn take(&mut self) -> Option<Effect> {
        self.waiting.pop_front()
    }
}
