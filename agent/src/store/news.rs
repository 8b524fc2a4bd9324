//! What the store finds out by itself, on its way to whoever stages images.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use proto::{ChunkIndex, Digest};

use crate::lock::lock;

/// What the store finds out by itself: whoever stages images has to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The bytes of a chunk aren't what they were when they were verified, or can't be read. It isn't held any more.
    Rotted {
        /// The image in whose files it lies.
        image: Digest,
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Somebody found the image damaged ([`doubt`](super::doubt)). Nothing of it counts until
    /// [`Stage::read_again`](super::Stage::read_again) has read it.
    Doubted {
        /// The image.
        image: Digest,
    },
    /// The files of an image were removed. Its stage is gone.
    Removed {
        /// The image.
        image: Digest,
    },
}

/// News that nobody has taken yet, in order.
#[derive(Debug, Default)]
pub(super) struct NewsBox {
    waiting: Mutex<Vec<News>>,
    /// A look that costs no lock.
    any: AtomicBool,
}

impl NewsBox {
    pub(super) fn put(&self, news: News) {
        lock(&self.waiting).push(news);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn take(&self) -> Vec<News> {
        if !self.any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&self.waiting))
    }
}
