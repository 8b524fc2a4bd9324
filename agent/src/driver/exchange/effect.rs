//! The work that the exchange leaves to other parts.

use std::collections::VecDeque;

use proto::{ChunkIndex, Digest, HostId, Signed, message::BlameKind, recipe::Doubt};

use super::errand::Errand;
use crate::{
    driver::{handles::Handles, image_news::ImageNews, input::Input, origins::FetchWanted},
    fetch::FetchEnd,
    shelf::Unwritable,
};

/// Work for other parts, after the exchange heard something.
#[derive(Debug)]
pub(in crate::driver) enum Effect<H: Handles> {
    /// Do this beside the driver.
    Run(Errand<H>),
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
    /// The ticket of this content's lease is of no use any more.
    ForgetTicket(Digest),
    /// A chunk was stored, and no journal vouches for it yet. It belongs into the next report.
    Stored,
    /// Something changed that belongs into the next report.
    ReportSoon,
    /// Something changed that others wait for.
    ReportNow,
}

/// Effects that wait for the driver, in order.
pub(super) struct Effects<H: Handles> {
    waiting: VecDeque<Effect<H>>,
}

impl<H: Handles> Default for Effects<H> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<H: Handles> Effects<H> {
    pub(super) fn push(&mut self, effect: Effect<H>) {
        self.waiting.push_back(effect);
    }

    pub(super) fn run(&mut self, errand: Errand<H>) {
        self.push(Effect::Run(errand));
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
    pub(super) fn take(&mut self) -> Option<Effect<H>> {
        self.waiting.pop_front()
    }
}
