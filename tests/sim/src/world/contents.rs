//! What is distributed: contents, and the images that they make.

use proto::{ChunkIndex, ChunkSet, Digest, Geometry};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;

use crate::{
    network::Nanos,
    scenario::{Scenario, Setup},
};

/// A content: a blob of chunks with one digest.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) digest: Digest,
    pub(super) key: u64,
    pub(super) geometry: Geometry,
    /// The image that it is part of.
    pub(super) image: usize,
}

impl Spec {
    /// A content of this size. Its digest and key are those of its name.
    pub(super) fn new(name: &str, size: u64, image: usize) -> Self {
        let digest = Digest::of(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        Self {
            digest,
            key: u64::from_be_bytes(first),
            geometry: Geometry::new(size).expect("a content below the limit"),
            image,
        }
    }
}

/// An image that hosts are to hold.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) digest: Digest,
    pub(super) ordered_at: Option<Nanos>,
    pub(super) kind: ImageKind,
}

impl Image {
    /// An image that nobody has ordered. Its digest is that of its name.
    pub(super) fn new(name: &str, kind: ImageKind) -> Self {
        Self {
            digest: Digest::of(name.as_bytes()),
            ordered_at: None,
            kind,
        }
    }

    /// Whether hosts know it as an image.
    pub(super) fn is_known_to_hosts(&self) -> bool {
        self.kind != ImageKind::Mirrored
    }

    /// Whether hosts are to end with it.
    pub(super) fn is_staged(&self) -> bool {
        self.kind == ImageKind::Staged
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageKind {
    /// It is staged.
    Staged,
    /// It is to be staged, and the registry lacks a content of it for ever: nobody can hold it.
    Hopeless,
    /// It is a blob that clients of mirrors want, which the coordinator knows under a name of its own.
    Mirrored,
}

/// In [`Scenario::MissingLayer`](crate::Scenario::MissingLayer): the image that is wanted a minute later.
pub(super) const LATER: usize = 1;
/// Where two images come at once: the one that is asked for last.
pub(super) const SECOND: usize = 1;
/// Contents of the image that lacks one.
const HOPELESS_CONTENTS: usize = 4;

/// The image's contents. Incompressible: raw bytes and bytes on the wire are the same.
pub(super) fn specs(image_bytes: u64, content_bytes: u64) -> Vec<Spec> {
    let content_bytes = content_bytes.max(1);
    let mut specs = Vec::new();
    let mut left = image_bytes;
    while left > 0 {
        let size = left.min(content_bytes);
        left -= size;
        let name = format!("content {}", specs.len());
        specs.push(Spec::new(&name, size, 0));
    }
    specs
}

/// The chunks that a release takes over from the one before: all but about this share, at random.
pub(super) fn unchanged(
    specs: &[Spec],
    change_percent: u32,
    rng: &mut ChaCha8Rng,
) -> Vec<ChunkSet> {
    let mut changes = || (u64::from(rng.next_u32()) * 100) >> 32 < u64::from(change_percent);
    let sets = specs.iter().map(|spec| {
        let mut set = ChunkSet::empty(spec.geometry.chunks());
        for chunk in (0..spec.geometry.chunks()).map(ChunkIndex) {
            if !changes() {
                set.insert(chunk);
            }
        }
        set
    });
    sets.collect()
}

/// The bytes of these chunks.
pub(super) fn bytes(specs: &[Spec], chunks: &[ChunkSet]) -> u64 {
    let of = |(spec, set): (&Spec, &ChunkSet)| {
        let lengths = set.iter().map(|chunk| u64::from(spec.geometry.len(chunk)));
        lengths.sum::<u64>()
    };
    specs.iter().zip(chunks).map(of).sum()
}

/// The images that these contents make.
///
/// With a missing layer there are three images: one half of the contents is wanted at the beginning, the other half
/// later, and an image whose first content the registry doesn't have stands before both. Where two images come at once,
/// each has half of the contents.
pub(super) fn images(setup: &Setup, specs: &mut Vec<Spec>) -> Vec<Image> {
    let mut images = vec![Image::new("image", ImageKind::Staged)];
    if setup.has_two_images() {
        let half = specs.len().div_ceil(2);
        if setup.spared {
            specs.truncate(half);
            return images;
        }
        for spec in &mut specs[half..] {
            spec.image = SECOND;
        }
        images.push(Image::new("second", ImageKind::Staged));
        return images;
    }
    if setup.scenario != Scenario::MissingLayer {
        return images;
    }
    let half = specs.len().div_ceil(2);
    for spec in &mut specs[half..] {
        spec.image = LATER;
    }
    images.push(Image::new("later", ImageKind::Staged));
    if !setup.spared {
        let size = specs[0].geometry.size();
        for at in 0..HOPELESS_CONTENTS {
            specs.push(Spec::new(&format!("hopeless {at}"), size, images.len()));
        }
        images.push(Image::new("hopeless", ImageKind::Hopeless));
    }
    images
}
