//! The room on tart's volume: what is free, what has to stay free, and what unfinished images will still take.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use proto::{Digest, figure::Bytes};

use crate::{
    lock::lock,
    platform::{Floor, Space},
};

/// How long the system's estimate of purgeable bytes counts. The system is asked every minute, so an estimate ends
/// after about five questions without an answer.
const PURGEABLE_FOR: Duration = Duration::from_mins(5);

/// The most images of one host that an error names: 256 may be wanted.
const NAMES_SAID: usize = 4;

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
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.tell(Digest::to_string))]
pub struct NoRoomError {
    /// Bytes that the whole image takes at most, less those that it has taken already.
    pub need_bytes: u64,
    /// Bytes that other unfinished images may still take.
    pub reserved_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes that have to stay free.
    pub floor_bytes: u64,
    /// The other unfinished images for which the reserved bytes are kept, each with its share.
    pub kept_for: BTreeMap<Digest, u64>,
    /// The other unfinished images that have taken bytes from the volume, each with those that it would give back.
    pub taken_by: BTreeMap<Digest, u64>,
}

impl NoRoomError {
    /// Bytes that have to become free before the image can go on.
    #[must_use]
    pub fn lacking_bytes(&self) -> u64 {
        let needed = self.need_bytes.saturating_add(self.reserved_bytes);
        let needed = needed.saturating_add(self.floor_bytes);
        needed.saturating_sub(self.free_bytes)
    }

    /// The error for people. `name` gives the name of an image.
    pub(crate) fn tell(&self, name: impl Fn(&Digest) -> String) -> String {
        let lacking = Bytes(self.lacking_bytes());
        let (need, free) = (Bytes(self.need_bytes), Bytes(self.free_bytes));
        let (floor, kept) = (Bytes(self.floor_bytes), Bytes(self.reserved_bytes));
        let names: Vec<String> = self.kept_for.keys().take(NAMES_SAID).map(name).collect();
        let more = self.kept_for.len() - names.len();
        let names = match (names.join(", "), more) {
            (names, _) if names.is_empty() => String::new(),
            (names, 0) => format!(" ({names})"),
            (names, more) => format!(" ({names} and {more} more)"),
        };
        format!(
            "{lacking} are lacking: image needs {need}, but of {free} that are free {floor} have to stay free and \
             {kept} are promised to other images{names}; make room, and it goes on by itself"
        )
    }
}

/// An unfinished image that comes after another one, and what it has to do with the volume's room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Later {
    pub(crate) image: Digest,
    /// Bytes that are kept free for it.
    pub(crate) reserved_bytes: u64,
    /// Bytes on the disk that would be free without it.
    pub(crate) taken_bytes: u64,
}

/// The unfinished images that give way to one that comes before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GiveWay {
    /// They stop, and keep what they have.
    pub(crate) stopped: Vec<Digest>,
    /// They stop, and their files are removed.
    pub(crate) removed: Vec<Digest>,
}

/// Which images give way to one that lacks so many bytes. `later` has those that come after it, the last one first. It
/// gets what is kept free for them before any of their files is removed. Where all of it wouldn't be enough, none gives
/// way: the image can't be here, and room isn't kept for it.
pub(crate) fn give_way(lacking_bytes: u64, later: &[Later]) -> GiveWay {
    let mut way = GiveWay::default();
    let all = |of: &Later| of.reserved_bytes.saturating_add(of.taken_bytes);
    let most = later.iter().map(all).fold(0, u64::saturating_add);
    if most < lacking_bytes {
        return way;
    }
    let mut lacking = lacking_bytes;
    for of in later.iter().filter(|of| of.reserved_bytes > 0) {
        if lacking == 0 {
            break;
        }
        lacking = lacking.saturating_sub(of.reserved_bytes);
        way.stopped.push(of.image);
    }
    for of in later.iter().filter(|of| of.taken_bytes > 0) {
        if lacking == 0 {
            break;
        }
        lacking = lacking.saturating_sub(of.taken_bytes);
        way.stopped.retain(|stopped| *stopped != of.image);
        way.removed.push(of.image);
    }
    way
}

/// Something that will still take bytes that look free now.
pub(super) trait Builder: fmt::Debug + Send + Sync {
    /// Bytes that it may still take from the volume.
    fn outstanding_bytes(&self) -> u64;
    /// Bytes that the volume would get back without it. None of one that is whole: it gives way to no other.
    fn taken_bytes(&self) -> u64;
}

/// The room on one volume.
#[derive(Debug)]
pub(super) struct Room {
    home: PathBuf,
    floor: Floor,
    /// Reads the volume's room. Tests replace it.
    space: fn(&Path) -> io::Result<Space>,
    /// Bytes that a purge would free, and when that was learned. Locked for a look.
    purgeable: Mutex<Option<(u64, Instant)>>,
    /// The images of the store. Locked for a look.
    builders: Mutex<BTreeMap<Digest, Weak<dyn Builder>>>,
}

impl Room {
    pub(super) fn new(home: PathBuf, floor: Floor, space: fn(&Path) -> io::Result<Space>) -> Self {
        Self {
            home,
            floor,
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
        let purgeable = lock(&self.purgeable)
            .filter(|(_, since)| since.elapsed() < PURGEABLE_FOR)
            .map_or(0, |(bytes, _)| bytes);
        let free_bytes = space.free_bytes.saturating_add(purgeable);
        Volume {
            total_bytes: space.total_bytes,
            free_bytes: free_bytes.min(space.total_bytes),
            floor_bytes: self.floor.bytes(space.total_bytes),
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
        let builders = self.builders(|_| true).into_iter();
        builders.map(|(_, each)| each.outstanding_bytes()).sum()
    }

    /// Checks that an image may take this much, beside the floor and what other images may still take.
    pub(super) fn admit(&self, need_bytes: u64, image: &Digest) -> Result<(), NoRoomError> {
        let volume = self.volume();
        let others = self.builders(|other| other != image);
        let each = |of: fn(&dyn Builder) -> u64| -> BTreeMap<Digest, u64> {
            let bytes = others
                .iter()
                .map(|(other, builder)| (*other, of(&**builder)));
            bytes.filter(|(_, bytes)| *bytes > 0).collect()
        };
        let kept_for = each(|builder| builder.outstanding_bytes());
        let reserved_bytes = kept_for.values().sum();
        if has_room(volume, need_bytes, reserved_bytes) {
            return Ok(());
        }
        Err(NoRoomError {
            need_bytes,
            reserved_bytes,
            free_bytes: volume.free_bytes,
            floor_bytes: volume.floor_bytes,
            kept_for,
            taken_by: each(|builder| builder.taken_bytes()),
        })
    }

    /// The images that count. Each looks at its files when it is asked, so not under the lock.
    fn builders(&self, counts: impl Fn(&Digest) -> bool) -> Vec<(Digest, Arc<dyn Builder>)> {
        let builders = lock(&self.builders);
        let counted = builders.iter().filter(|(image, _)| counts(image));
        let alive = counted.filter_map(|(image, builder)| Some((*image, builder.upgrade()?)));
        alive.collect()
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

        fn taken_bytes(&self) -> u64 {
            self.0 / 10
        }
    }

    const TENTH: Floor = Floor {
        percent: 10,
        kept_bytes: 0,
    };

    fn room() -> Room {
        let space = |_: &Path| {
            Ok(Space {
                total_bytes: 1_000,
                free_bytes: 500,
            })
        };
        Room::new("/tart".into(), TENTH, space)
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
    fn what_is_kept_for_others_stays_free_beside_the_share_which_is_rounded_up() {
        let of = |percent, kept_bytes| Floor {
            percent,
            kept_bytes,
        };
        // a node agent deletes goldens below 15 % free: 149.85 bytes of 999
        assert_eq!(of(15, 0).bytes(999), 150);
        assert_eq!((of(15, 0).bytes(1_000), of(0, 0).bytes(1_000)), (150, 0));
        assert_eq!(of(15, 70).bytes(1_000), 220);
        assert_eq!(of(100, u64::MAX).bytes(u64::MAX), u64::MAX);
        let space = |_: &Path| {
            Ok(Space {
                total_bytes: 1_000,
                free_bytes: 500,
            })
        };
        let room = Room::new("/tart".into(), of(10, 70), space);
        let image = Digest::of(b"image");
        room.admit(330, &image).unwrap();
        let refused = room.admit(331, &image).unwrap_err();
        assert_eq!((refused.floor_bytes, refused.lacking_bytes()), (170, 1));
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
    fn who_has_no_room_hears_how_much_is_lacking_and_for_which_images_room_is_kept() {
        let (room, image, other) = (room(), Digest::of(b"image"), Digest::of(b"other"));
        let theirs: Arc<dyn Builder> = Arc::new(Takes(50));
        room.enter(other, Arc::downgrade(&theirs));
        let refused = room.admit(360, &image).unwrap_err();
        assert_eq!(
            (refused.lacking_bytes(), refused.kept_for.get(&other)),
            (10, Some(&50))
        );
        assert_eq!(refused.taken_by, BTreeMap::from([(other, 5)]));
        let said = refused.tell(|_| "r.test/other:1".into());
        let lacking = said.starts_with("10 B are lacking: image needs 360 B");
        assert!(lacking && said.contains("(r.test/other:1)"), "{said}");
        let many = NoRoomError {
            kept_for: (0..6).map(|number| (Digest::of(&[number]), 1)).collect(),
            ..NoRoomError::default()
        };
        assert!(
            many.tell(|_| "x".into())
                .contains("(x, x, x, x and 2 more)")
        );
    }

    fn later(number: u8, reserved_bytes: u64, taken_bytes: u64) -> Later {
        Later {
            image: Digest::of(&[number]),
            reserved_bytes,
            taken_bytes,
        }
    }

    fn way(stopped: &[u8], removed: &[u8]) -> GiveWay {
        let images = |of: &[u8]| of.iter().map(|number| Digest::of(&[*number])).collect();
        GiveWay {
            stopped: images(stopped),
            removed: images(removed),
        }
    }

    #[test]
    fn the_last_image_gives_way_first_and_files_go_only_where_promises_arent_enough() {
        let images = [later(3, 30, 100), later(2, 20, 200)];
        assert_eq!(give_way(0, &images), way(&[], &[]));
        assert_eq!(give_way(30, &images), way(&[3], &[]));
        assert_eq!(give_way(31, &images), way(&[3, 2], &[]));
        assert_eq!(give_way(50, &images), way(&[3, 2], &[]));
        assert_eq!(give_way(51, &images), way(&[2], &[3]));
        assert_eq!(give_way(150, &images), way(&[2], &[3]));
        assert_eq!(give_way(350, &images), way(&[], &[3, 2]));
    }

    #[test]
    fn none_gives_way_to_an_image_that_would_not_fit_all_the_same() {
        let images = [later(3, 30, 100), later(2, 20, 200)];
        assert_eq!(give_way(351, &images), way(&[], &[]));
        assert_eq!(give_way(1, &[]), way(&[], &[]));
        // one that takes nothing has nothing to give
        assert_eq!(
            give_way(5, &[later(3, 0, 0), later(2, 0, 5)]),
            way(&[], &[2])
        );
        assert_eq!(give_way(u64::MAX, &[later(1, u64::MAX, 9)]), way(&[1], &[]));
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
        let room = Room::new("/tart".into(), TENTH, unread);
        assert_eq!(room.volume(), Volume::default());
        assert!(room.admit(1, &Digest::of(b"image")).is_err());
    }
}
