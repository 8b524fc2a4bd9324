//! How many bytes an image may still take from the volume. They are fewer than its lacking chunks where other disks
//! here have most of the image, and more while a copy for another repository is made.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use proto::{CHUNK_BYTES, ChunkIndex, Layout};

use super::{
    files::{ImageFiles, Where, notes_bytes},
    held::Held,
    layers::Decoded,
};

/// Bytes that the lacking chunks may take at each of their places, with layers that aren't decoded yet, and notes. A
/// chunk that is held takes nothing more, also where it is shared with another disk. One that is lacking may take its
/// bytes also where another disk's lie in its place.
pub(super) fn lacking(layout: &Layout, held: &Held<Arc<ImageFiles>>, decoded: &Decoded) -> u64 {
    let mut bytes = notes_bytes(layout);
    for at in 0..held.len() {
        let (geometry, has) = (held.geometry(at), held.held(at));
        let chunks = (0..geometry.chunks()).map(ChunkIndex);
        let lacking = chunks.filter(|chunk| !has.contains(*chunk));
        let lacking: u64 = lacking.map(|chunk| u64::from(geometry.len(chunk))).sum();
        bytes += lacking * held.files().places(at).len() as u64;
    }
    let encoded = layout.layers().iter().filter(|layer| {
        let blob = held.find(&layer.blob.digest);
        layer.raw.is_none() && !blob.is_some_and(|at| decoded.contains(at))
    });
    bytes + encoded.map(|layer| layer.raw_bytes).sum::<u64>()
}

/// Bytes of the chunks that are held, each chunk once.
pub(super) fn held(held: &Held<Arc<ImageFiles>>) -> u64 {
    let of = |at: usize| {
        let (geometry, has) = (held.geometry(at), held.held(at));
        let bytes = has.iter().map(|chunk| u64::from(geometry.len(chunk)));
        bytes.sum::<u64>()
    };
    (0..held.len()).map(of).sum()
}

/// Bytes of the chunks that are held, at each of their places on the disk, with or without whole chunks of zeros.
pub(super) fn on_disk(held: &Held<Arc<ImageFiles>>, without_zeros: bool) -> u64 {
    let mut bytes = 0;
    for at in 0..held.len() {
        let places = held.files().places(at).iter();
        let on_disk = |place: &&Where| matches!(place, Where::Disk(_));
        let places = places.filter(on_disk).count() as u64;
        let (geometry, known) = (held.geometry(at), held.chunks(at));
        for chunk in known.held().iter() {
            let length = u64::from(geometry.len(chunk));
            let is_hole = length == CHUNK_BYTES && known.is_zero(chunk);
            if !(without_zeros && is_hole) {
                bytes += places * length;
            }
        }
    }
    bytes
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Outstanding {
    /// A running copy for another repository.
    copying: AtomicU64,
    /// The most that the stage is expected to take while what is here isn't taken yet.
    expected: AtomicU64,
}

impl Default for Outstanding {
    fn default() -> Self {
        Self {
            copying: AtomicU64::new(0),
            expected: AtomicU64::new(u64::MAX),
        }
    }
}

impl Outstanding {
    /// The bytes of a running copy.
    pub(super) fn copying(&self) -> u64 {
        self.copying.load(Ordering::Acquire)
    }

    /// The bytes of a stage that lacks so many, with those of a running copy.
    pub(super) fn of(&self, lacking: u64) -> u64 {
        let expected = self.expected.load(Ordering::Acquire);
        lacking.min(expected).saturating_add(self.copying())
    }

    /// No more than these bytes are expected to be taken, because the rest is here. [`u64::MAX`] ends that.
    pub(super) fn expect(&self, bytes: u64) {
        self.expected.store(bytes, Ordering::Release);
    }

    /// Sets room aside for a copy, until the promise is dropped.
    pub(super) fn promise(&self, bytes: u64) -> Promise<'_> {
        self.copying.store(bytes, Ordering::Release);
        Promise(&self.copying)
    }
}

/// A promise of room on the volume. It ends when it is dropped.
pub(super) struct Promise<'a>(&'a AtomicU64);

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_takes_nothing_and_a_copy_takes_room_while_it_is_made() {
        let outstanding = Outstanding::default();
        assert_eq!(outstanding.of(100), 100);
        outstanding.expect(30);
        assert_eq!((outstanding.of(100), outstanding.of(20)), (30, 20));
        let promise = outstanding.promise(7);
        assert_eq!((outstanding.of(100), outstanding.copying()), (37, 7));
        drop(promise);
        outstanding.expect(u64::MAX);
        assert_eq!((outstanding.of(100), outstanding.copying()), (100, 0));
    }
}
