//! What the store says of whole images: those that an earlier process left, and those that a look found.

use std::sync::Arc;

use proto::{Digest, Layout};

use super::stage::Stage;

/// An image that a process before this one left here.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The image.
    pub layout: Layout,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The references that shall name the image. Empty if the image was cancelled and is still in tart's cache.
    pub references: Vec<String>,
    /// What is held of it.
    pub stage: Arc<Stage>,
    /// Whether the image is installed and tart finds it under every reference.
    pub present: bool,
}

/// A verified image in tart's cache, as the last look at the disk found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The image.
    pub digest: Digest,
    /// The references under which tart finds the image now, without those that are gone. Empty while the image is
    /// doubted.
    pub references: Vec<String>,
    /// Tags of this image that now name another image, which tart has whole. Nobody means this image by them any more.
    /// To link them again would take them from the other image.
    pub moved: Vec<String>,
}
