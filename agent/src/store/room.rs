//! The room on tart's volume: what is free, what has to stay free, and what unfinished images will still take.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use proto::{Digest, figure::Bytes};

use crate::{lock::lock, platform::Space};

/// How long the system's estimate of purgeable bytes counts. The system is asked every minute, so an estimate ends
/// after about five questions without an answer.
const PURGEABLE_FOR: Duration = Duration::from_mins(5);

/// Room on tart's volume, and how much of it staging leaves free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// The volume's size in bytes.
    pub total_bytes: u64,
    /// Bytes that are free now, with those that a purge would free.
    pub free_bytes: u64,
    /// Bytes that have to stay free.
    pub floor_bytes: u64,
    /// Whether files on the volume can share blocks.
    pub clones: bool,
}

/// The volume has no room above its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "image needs {}, but of {} that are free {} have to stay free and {} are promised to other images; make room, and \
     it goes on by itself",
    Bytes(*need_bytes), Bytes(*free_bytes), Bytes(*floor_bytes), Bytes(*reserved_bytes)
)]
pub struct NoRoomError {
    /// Bytes that the whole image takes at most, less those that it has taken already.
    pub need_bytes: u64,
    /// Bytes that other unfinished images may still take.
    pub reserved_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes that have to stay free.
    pub floor_bytes: u64,
}

/// Something that will still take bytes that look free now.
pub(super) trait Builder: fmt::Debug + Send + Sync {
    /// Bytes that it may still take from the volume.
    fn outstanding_bytes(&self) -> u64;
}

/// The room on one volume.
#[derive(Debug)]
pub(super) struct Room {
    home: PathBuf,
    floor_percent: u8,
    /// Reads the volume's room. Tests replace it.
    space: fn(&Path) -> io::Result<Space>,
    /// Bytes that a purge would free, and when that was learned. Locked for a look.
    purgeable: Mutex<Option<(u64, Instant)>>,
    /// The images of the store. Locked for a look.
    builders: Mutex<BTreeMap<Digest, Weak<dyn Builder>>>,
}

impl Room {
    pub(super) fn new(
        home: PathBuf,
        floor_percent: u8,
        space: fn(&Path) -> io::Result<Space>,
    ) -> Self {
        Self {
            home,
            floor_percent,
            space,
            purgeable: Mutex::default(),
            builders: Mutex::default(),
        }
    }

    /// Counts an image's outstanding bytes from now on, until [`leave`](Self::leave).
    pub(super) fn enter(&self, image: Digest, builder: Weak<dyn Builder>) {
        lock(&self.builders).insert(image, builder);
    }

    pub(super) fn leave(&self, image: &Digest) {
        lock(&self.builders).remove(image);
    }

    /// The room now. All zeros if it can't be read, so that nothing is begun.
    pub(super) fn volume(&self) -> Volume {
        let space = (self.space)(&self.home).unwrap_or_else(|error| {
            tracing::warn!(home = %self.home.display(), %error, "the volume's room can't be read");
            Space::default()
        });
        let percent = u64::from(self.floor_percent.min(100));
        let purgeable = lock(&self.purgeable)
            .filter(|(_, since)| since.elapsed() < PURGEABLE_FOR)
            .map_or(0, |(bytes, _)| bytes);
        let free_bytes = space.free_bytes.saturating_add(purgeable);
        Volume {
            total_bytes: space.total_bytes,
            free_bytes: free_bytes.min(space.total_bytes),
            floor_bytes: space.total_bytes / 100 * percent,
            clones: false,
        }
    }

    /// Takes the number of bytes that could be free after a purge. A number below the free bytes counts as no purgeable
    /// bytes.
    pub(super) fn set_capacity(&self, capacity_bytes: u64) {
        let space = (self.space)(&self.home).unwrap_or_default();
        let purgeable = capacity_bytes.saturating_sub(space.free_bytes);
        *lock(&self.purgeable) = Some((purgeable, Instant::now()));
    }

    /// Bytes that all unfinished images will still take.
    pub(super) fn outstanding_bytes(&self) -> u64 {
        self.outstanding(|_| true)
    }

    /// Checks that an image may take this much, beside the floor and what other images may still take.
    pub(super) fn admit(&self, need_bytes: u64, image: &Digest) -> Result<(), NoRoomError> {
        let volume = self.volume();
        let reserved_bytes = self.outstanding(|other| other != image);
        if has_room(volume, need_bytes, reserved_bytes) {
            return Ok(());
        }
        Err(NoRoomError {
            need_bytes,
            reserved_bytes,
            free_bytes: volume.free_bytes,
            floor_bytes: volume.floor_bytes,
        })
    }

    fn outstanding(&self, counts: impl Fn(&Digest) -> bool) -> u64 {
        let builders: Vec<Arc<dyn Builder>> = lock(&self.builders)
            .iter()
            .filter(|(image, _)| counts(image))
            .filter_map(|(_, builder)| builder.upgrade())
            .collect();
        // each builder looks at its files, so not under the lock
        builders
            .iter()
            .map(|builder| builder.outstanding_bytes())
            .sum()
    }
}

/// Whether an image fits after the floor and the bytes of other images are set aside.
const fn has_room(volume: Volume, need_bytes: u64, reserved_bytes: u64) -> bool {
    let promised = need_bytes
        .saturating_add(reserved_bytes)
        .saturating_add(volume.floor_bytes);
    volume.free_bytes >= promised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Takes(u64);

    impl Builder for Takes {
        fn outstanding_bytes(&self) -> u64 {
            self.0
        }
    }

    fn room() -> Room {
        let space = |_: &Path| {
            Ok(Space {
                total_bytes: 1_000,
                free_bytes: 500,
            })
        };
        Room::new("/tart".into(), 10, space)
    }

    #[test]
    fn sums_that_no_volume_holds_have_no_room() {
        let volume = |free_bytes| Volume {
            total_bytes: 1000,
            free_bytes,
            floor_bytes: 150,
            clones: false,
        };
        assert!(has_room(volume(450), 200, 100));
        assert!(!has_room(volume(449), 200, 100));
        assert!(!has_room(volume(u64::MAX - 1), u64::MAX - 150, 0));
    }

    #[test]
    fn the_last_byte_above_the_floor_may_be_taken_and_no_more() {
        let (room, image) = (room(), Digest::of(b"image"));
        room.admit(400, &image).unwrap();
        let refused = room.admit(401, &image).unwrap_err();
        assert_eq!((refused.free_bytes, refused.floor_bytes), (500, 100));
        assert_eq!(refused.reserved_bytes, 0);
    }

    #[test]
    fn what_other_images_will_take_is_set_aside_as_long_as_they_are_there() {
        let (room, image, other) = (room(), Digest::of(b"image"), Digest::of(b"other"));
        let (mine, theirs): (Arc<dyn Builder>, Arc<dyn Builder>) =
            (Arc::new(Takes(300)), Arc::new(Takes(50)));
        room.enter(image, Arc::downgrade(&mine));
        room.enter(other, Arc::downgrade(&theirs));
        assert_eq!(room.outstanding_bytes(), 350);
        // an image's own share is what it asks for
        room.admit(350, &image).unwrap();
        assert_eq!(room.admit(351, &image).unwrap_err().reserved_bytes, 50);
        room.leave(&other);
        room.admit(400, &image).unwrap();
        drop(mine);
        assert_eq!(room.outstanding_bytes(), 0);
    }

    #[test]
    fn what_a_purge_would_free_counts_up_to_the_whole_volume() {
        let (room, image) = (room(), Digest::of(b"image"));
        room.set_capacity(600);
        assert_eq!(room.volume().free_bytes, 600);
        room.admit(500, &image).unwrap();
        room.set_capacity(10);
        assert_eq!(room.volume().free_bytes, 500, "less than what is free");
        room.set_capacity(5_000);
        assert_eq!(room.volume().free_bytes, 1_000);
    }

    #[test]
    fn a_volume_that_cannot_be_read_has_no_room() {
        let unread = |_: &Path| Err(io::Error::other("gone"));
        let room = Room::new("/tart".into(), 10, unread);
        assert_eq!(room.volume(), Volume::default());
        assert!(room.admit(1, &Digest::of(b"image")).is_err());
    }
}
