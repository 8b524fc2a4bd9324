//! What the store finds out by itself and reports to whoever stages images.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use proto::{ChunkIndex, Digest};

use crate::lock::lock;

/// Something that the store found out by itself. Whoever stages images has to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A verified chunk's bytes changed on disk, or can't be read. The chunk isn't held any more.
    Rotted {
        /// The image whose files have the chunk.
        image: Digest,
        /// The content.
        content: Digest,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// Somebody found the image damaged ([`doubt`](super::doubt)). The image doesn't count until
    /// [`Stage::read_again`](super::Stage::read_again) has read it.
    Doubted {
        /// The image.
        image: Digest,
    },
    /// The image's files were removed. Its stage is gone.
    Removed {
        /// The image.
        image: Digest,
    },
    /// The image was old, and was taken out of tart's cache by `keep_images`. Its stage is gone.
    Retired {
        /// The image.
        image: Digest,
    },
}

/// News that nobody has taken yet, in order.
#[derive(Debug, Default)]
pub(super) struct NewsBox {
    waiting: Mutex<Vec<News>>,
    /// Whether there may be news. Looking at it takes no lock.
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
