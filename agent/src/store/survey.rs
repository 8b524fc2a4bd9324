//! Reads the disks in tart's home that parbake didn't build, so that new images find their bytes there (`found`):
//! images that tart pulled, VMs and goldens that others made, and images that were staged without a recipe.
//!
//! [`decide`] is a function of facts: which notes go, and which disk is read next. [`Survey::step`] carries it out,
//! 64 MiB at a time; who calls it says how fast. A restart goes on where the last one ended, and so does the next step
//! after one that gave way to something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use proto::{CHUNK_BYTES, Layout, image::Format};

use super::{
    Store,
    found::{FoundDisk, Reading},
    retire::is_running,
    reuse::lends_blocks,
};
use crate::{
    golden::{self, Lies},
    lock::lock,
    tart::cache,
};

/// The most disks on which there are notes. With other images' disks, a search takes the first ones of both.
const MAX_FOUND: usize = 16;
/// The most bytes of all notes: those on 500 GB of data.
const MAX_NOTES_BYTES: u64 = 512 << 20;
/// Notes have about a thousandth of the bytes of a disk's data: 9 for each block of 16 KiB, and twice as many while
/// they are made.
const BYTES_PER_NOTE: u64 = 600;
/// And so many for each MiB of a disk, also where it has holes.
const PRINT_BYTES: u64 = 16;
/// Chunks with data that are read in one step. Holes cost nothing.
const STEP_CHUNKS: u32 = 64;
/// A VM's disk rests for this long before it is read: VMs that live for an hour write to it all the time.
const REST: Duration = Duration::from_hours(1);
/// A file of a stacked image with fewer bytes is fetched sooner than it is read, and takes no place from a disk.
const LEAST_FILE_BYTES: u64 = 256 << 20;
/// A disk that couldn't be read, or whose notes couldn't be written, is left alone for so long.
const RETRY: Duration = Duration::from_hours(1);

/// Whose disk it is. Disks are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// An image in tart's cache.
    Image,
    /// A VM, or a golden.
    Machine,
}

/// A disk that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    whose: Whose,
    /// With holes.
    bytes: u64,
    /// Without holes, as far as the volume tells.
    data_bytes: u64,
    /// When it changed last.
    changed: SystemTime,
    /// It may be read now: it doesn't run, rests, and reading it didn't fail within the last hour.
    rests: bool,
}

impl Candidate {
    /// About how many bytes the notes on it take.
    const fn notes_bytes(&self) -> u64 {
        self.data_bytes / BYTES_PER_NOTE + self.bytes / CHUNK_BYTES * PRINT_BYTES
    }
}

/// What is noted of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Noted {
    /// The disk was read, and is as it was then.
    is_read: bool,
    /// Reading it has begun, and it is as it was then.
    is_begun: bool,
    bytes: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Notes on these disks go.
    forget: BTreeSet<PathBuf>,
    /// This disk is read next.
    read: Option<PathBuf>,
}

/// Decides which notes stay, and which disk is read next: images before VMs, and what changed last before what is
/// older, as many as there may be notes on.
fn decide(candidates: &[Candidate], noted: &BTreeMap<PathBuf, Noted>) -> Plan {
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    ranked.sort_by_key(|disk| (disk.whose, std::cmp::Reverse(disk.changed), &disk.path));
    let of = |path: &PathBuf| noted.get(path).copied();
    let is_current = |path: &PathBuf| of(path).is_some_and(|noted| noted.is_read || noted.is_begun);
    let mut left_bytes = MAX_NOTES_BYTES;
    let mut chosen: Vec<&Candidate> = Vec::new();
    for disk in ranked {
        // what can't be read now takes no place from what can
        if !disk.rests && !is_current(&disk.path) {
            continue;
        }
        let notes = noted.get(&disk.path).filter(|noted| noted.is_read);
        let bytes = notes.map_or(disk.notes_bytes(), |noted| noted.bytes);
        if chosen.len() < MAX_FOUND && bytes <= left_bytes {
            left_bytes -= bytes;
            chosen.push(disk);
        }
    }
    let is_of_use =
        |path: &PathBuf| is_current(path) && chosen.iter().any(|disk| disk.path == *path);
    let forget = noted.keys().filter(|path| !is_of_use(path));
    let mut unread = chosen
        .iter()
        .filter(|disk| disk.rests && !of(&disk.path).is_some_and(|noted| noted.is_read));
    let begun = |disk: &&&Candidate| of(&disk.path).is_some_and(|noted| noted.is_begun);
    // what was begun is read to its end first
    let next = unread.clone().find(begun).or_else(|| unread.next());
    Plan {
        forget: forget.cloned().collect(),
        read: next.map(|disk| disk.path.clone()),
    }
}

/// What is known of disks that parbake didn't build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surveyed {
    /// Disks that were read.
    pub(crate) disks: usize,
    /// Bytes of these disks, with holes.
    pub(crate) disk_bytes: u64,
    /// Bytes that the notes on all disks take.
    pub(crate) notes_bytes: u64,
    /// Bytes of a disk that is being read that are left, with holes.
    pub(crate) left_bytes: u64,
    /// Whether there is more to read now.
    pub(crate) more: bool,
}

/// Reads disks step by step. One for each store.
#[derive(Debug)]
pub(crate) struct Survey {
    store: Arc<Store>,
    /// Chunks with data that are read in one step.
    step_chunks: u32,
    /// Whether nothing is under way that reading gives way to.
    may_read: AtomicBool,
    /// Locked during a step; there is one at a time.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The disk that is being read.
    reading: Option<Reading>,
    /// Disks that couldn't be read, while they are there.
    failed: BTreeMap<PathBuf, Failed>,
    /// Notes that couldn't be removed, by their disks.
    stuck: BTreeSet<PathBuf>,
}

/// A disk couldn't be read. It is left alone until it changes, or [`RETRY`] is over.
#[derive(Clone, Copy, Debug)]
struct Failed {
    /// When the disk had changed last.
    changed: SystemTime,
    at: SystemTime,
}

impl Failed {
    /// Whether the disk may be tried again. A clock that was set back doesn't keep it from that.
    fn is_over(&self, changed: SystemTime, now: SystemTime) -> bool {
        let since = now.duration_since(self.at);
        self.changed != changed || !since.is_ok_and(|since| since < RETRY)
    }
}

impl Survey {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self {
            store,
            step_chunks: STEP_CHUNKS,
            may_read: AtomicBool::new(true),
            state: Mutex::default(),
        }
    }

    /// With shorter steps, for disks of a few MiB.
    #[cfg(test)]
    pub(super) fn by_chunks(store: Arc<Store>, step_chunks: u32) -> Self {
        Self {
            step_chunks,
            ..Self::new(store)
        }
    }

    /// Says whether disks may be read from now on. If not, a step that is under way ends before its next chunk.
    pub(crate) fn set_may_read(&self, may: bool) {
        self.may_read.store(may, Ordering::Release);
    }

    /// # Errors
    /// When reading gives way, or the program stops.
    fn go_on(&self) -> io::Result<()> {
        self.store.shared.go_on()?;
        match self.may_read.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "reading gives way to staging",
            )),
        }
    }

    /// Looks which disks there are, forgets what has changed, and reads 64 MiB of one's data at most. Blocks for as
    /// long. Ends early where reading gives way to something else.
    ///
    /// # Errors
    /// When tart's home can't be looked at. A disk that can't be read is left alone for an hour, with what is known of
    /// it. Notes that can't be removed stay.
    pub(crate) fn step(&self, now: SystemTime) -> io::Result<Surveyed> {
        let mut state = lock(&self.state);
        let home = self.store.shared.home();
        let mut disks = disks(&self.store, now)?;
        state.failed.retain(|path, failed| {
            let disk = disks.get(path);
            disk.is_some_and(|(disk, _)| !failed.is_over(disk.changed, now))
        });
        for (path, (disk, _)) in &mut disks {
            disk.rests &= !state.failed.contains_key(path);
        }
        FoundDisk::sweep(home);
        let known: BTreeMap<PathBuf, FoundDisk> = FoundDisk::known(home)
            .into_iter()
            .map(|disk| (disk.path().to_owned(), disk))
            .collect();
        let noted = known.iter().map(|(path, disk)| {
            // a disk that is cut otherwise by now isn't what was read
            let is_same = disks.get(path).is_some_and(|(_, found)| found == disk);
            let noted = Noted {
                is_read: is_same && disk.is_read(),
                is_begun: is_same && disk.is_begun(),
                bytes: disk.notes_bytes(),
            };
            (path.clone(), noted)
        });
        let noted: BTreeMap<PathBuf, Noted> = noted.collect();
        let candidates: Vec<Candidate> = disks.values().map(|(disk, _)| disk.clone()).collect();
        let plan = decide(&candidates, &noted);
        for path in &plan.forget {
            tracing::debug!(disk = %path.display(), "what is known of a disk is forgotten");
            match known[path].forget() {
                Ok(()) => {
                    state.stuck.remove(path);
                    // there are more notes than was thought: it isn't read again and again
                    if let Some((disk, _)) = disks.get(path).filter(|_| noted[path].is_read) {
                        let changed = disk.changed;
                        let failed = Failed { changed, at: now };
                        state.failed.insert(path.clone(), failed);
                    }
                }
                Err(error) => {
                    if state.stuck.insert(path.clone()) {
                        tracing::warn!(disk = %path.display(), %error, "useless notes on a disk stay; it is tried again");
                    }
                }
            }
        }
        let current = noted
            .iter()
            .filter(|(path, noted)| noted.is_read && !plan.forget.contains(*path));
        let mut surveyed = Surveyed::default();
        for (path, noted) in current {
            surveyed.disks += 1;
            surveyed.disk_bytes += disks.get(path).map_or(0, |(disk, _)| disk.bytes);
            surveyed.notes_bytes += noted.bytes;
        }
        let next = plan.read.as_ref().and_then(|path| disks.get(path));
        let Some((disk, next)) = next.filter(|(disk, _)| self.has_room(disk)) else {
            state.reading = None;
            return Ok(surveyed);
        };
        surveyed.more = true;
        let (most, go_on) = (self.step_chunks, || self.go_on());
        let left = state.reading.as_ref().map(Reading::left_bytes);
        surveyed.left_bytes = left.unwrap_or(0);
        // what is read may end in an index
        let indexing = go_on().and_then(|()| self.store.shared.indexing(&go_on));
        let Ok(_indexing) = indexing else {
            return Ok(surveyed);
        };
        match read(home, next, state.reading.take(), (most, &go_on)) {
            Ok(None) => {
                surveyed.left_bytes = 0;
                tracing::info!(disk = %next.path().display(), "a disk was read: new images find their bytes there");
            }
            Ok(Some(reading)) => {
                surveyed.left_bytes = reading.left_bytes();
                state.reading = Some(reading);
            }
            Err(error) => {
                tracing::debug!(disk = %next.path().display(), %error, "a disk isn't read now");
                let changed = disk.changed;
                let failed = Failed { changed, at: now };
                surveyed.left_bytes = 0;
                state.failed.insert(disk.path.clone(), failed);
            }
        }
        Ok(surveyed)
    }

    /// Whether notes on this disk fit above the floor, beside what images under construction will take.
    fn has_room(&self, disk: &Candidate) -> bool {
        let volume = self.store.volume();
        let taken = [
            volume.floor_bytes,
            self.store.outstanding_bytes(),
            disk.notes_bytes() * 2,
        ];
        let taken = taken.into_iter().fold(0, u64::saturating_add);
        volume.free_bytes > taken
    }
}

/// Reads the next part of a disk: so many chunks with data, or less if `go_on` doesn't want more. `None`: the disk is
/// read.
fn read(
    home: &Path,
    next: &FoundDisk,
    before: Option<Reading>,
    (most, go_on): (u32, &dyn Fn() -> io::Result<()>),
) -> io::Result<Option<Reading>> {
    let mut reading = match before.filter(|reading| reading.is_of(next)) {
        Some(reading) => reading,
        None => next.begin(home)?,
    };
    match reading.step(most, go_on) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Some(reading)),
        is_read => Ok((!is_read?).then_some(reading)),
    }
}

/// The disks in tart's home whose bytes can't be found otherwise, by their paths.
fn disks(store: &Store, now: SystemTime) -> io::Result<BTreeMap<PathBuf, (Candidate, FoundDisk)>> {
    let home = store.shared.home();
    let stages = store.all();
    let ours = |inode: u64| {
        let has = |stage: &&Arc<super::Stage>| {
            let bodies = stage.files().bodies();
            bodies.iter().any(|body| body.inode == inode)
        };
        stages.iter().find(has)
    };
    let mut disks = BTreeMap::new();
    let mut add = |path: PathBuf, whose: Whose, layers: &[(u64, u64)], rests: bool| {
        let found = fs::symlink_metadata(&path).ok()?;
        let changed = found.modified().ok()?;
        let quiet = now
            .duration_since(changed)
            .is_ok_and(|rested| rested >= REST);
        let candidate = Candidate {
            path: path.clone(),
            whose,
            bytes: found.len(),
            data_bytes: found.len().min(found.blocks() * 512),
            changed,
            rests: rests && (whose == Whose::Image || quiet),
        };
        let below = path.strip_prefix(home).ok()?.to_str()?;
        let end = layers
            .iter()
            .map(|(offset, bytes)| offset.saturating_add(*bytes));
        // a manifest that isn't of this disk says nothing about it
        let layers = if end.max() > Some(found.len()) {
            &[]
        } else {
            layers
        };
        let disk = FoundDisk::new(home, below, layers, found.len())?;
        (found.is_file() && found.len() > 0).then(|| disks.insert(path, (candidate, disk)));
        Some(())
    };
    for directory in cache::images(home)? {
        let inode = fs::symlink_metadata(directory.join(cache::DISK));
        let stage = inode.ok().and_then(|found| ours(found.ino()));
        // the journal has the chunks of our own, and a recipe may have their blocks; a second body is the same
        if let Some(stage) = stage {
            let first = stage.names().disk_path();
            if first != Some(directory.join(cache::DISK)) || lends_blocks(stage) {
                continue;
            }
        }
        let layers = match stage {
            Some(stage) => layers(stage.layout()),
            None => layers_of(&directory),
        };
        add(directory.join(cache::DISK), Whose::Image, &layers, true);
    }
    for (path, layers) in content_files(home)? {
        add(path, Whose::Image, &layers, true);
    }
    let marks = golden::marks(home).into_iter();
    let of_ours: BTreeSet<String> = marks
        .filter(|(name, mark)| {
            let lies = mark.lies(&cache::vm_directory(home, name));
            lies != Lies::Theirs && store.stage(&mark.image).is_some()
        })
        .map(|(name, _)| name)
        .collect();
    for entry in fs::read_dir(home.join("vms"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        // our goldens are clones of images that are here
        if !of_ours.contains(&name) {
            let directory = entry.path();
            let rests = !is_running(&directory);
            add(directory.join(cache::DISK), Whose::Machine, &[], rests);
        }
    }
    Ok(disks)
}

/// The large files of stacked images, with where layers lie in each, by the manifests that refer to them. Ours are
/// among them, because no index is made of their blocks otherwise.
fn content_files(home: &Path) -> io::Result<BTreeMap<PathBuf, Vec<(u64, u64)>>> {
    let mut files = BTreeMap::new();
    for directory in cache::images(home)? {
        let layout = cache::manifest(&directory).filter(|of| of.format() == Format::Stacked);
        let Some(layout) = layout else { continue };
        for file in layout.files() {
            let large = file.digest.filter(|_| file.bytes >= LEAST_FILE_BYTES);
            if let Some(digest) = large {
                let layers = layout.layers()[file.layers.clone()].iter();
                let layers = layers.map(|layer| (layer.offset - file.start, layer.raw_bytes));
                files.insert(cache::content_file(home, &digest), layers.collect());
            }
        }
    }
    Ok(files)
}

fn layers(layout: &Layout) -> Vec<(u64, u64)> {
    let layers = layout.layers().iter();
    layers
        .map(|layer| (layer.offset, layer.raw_bytes))
        .collect()
}

/// The layers of an image that tart pulled, by the manifest beside it. None if that can't be read: tart before 2.36
/// writes it anew (tart 2.35, Sources/tart/VMDirectory+OCI.swift: pullFromRegistry), so its digest is another one, and
/// what it says is a hint.
fn layers_of(directory: &Path) -> Vec<(u64, u64)> {
    cache::manifest(directory).map_or_else(Vec::new, |layout| layers(&layout))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, whose: Whose, hours: u64) -> Candidate {
        Candidate {
            path: name.into(),
            whose,
            bytes: 140_000_000_000,
            data_bytes: 140_000_000_000,
            changed: SystemTime::UNIX_EPOCH + Duration::from_hours(hours),
            rests: true,
        }
    }

    const READ: Noted = Noted {
        is_read: true,
        is_begun: false,
        bytes: 120 << 20,
    };
    const BEGUN: Noted = Noted {
        is_read: false,
        is_begun: true,
        bytes: 5 << 20,
    };
    const CHANGED: Noted = Noted {
        is_read: false,
        is_begun: false,
        bytes: 120 << 20,
    };

    fn noted<const N: usize>(notes: [(&str, Noted); N]) -> BTreeMap<PathBuf, Noted> {
        notes.map(|(path, noted)| (path.into(), noted)).into()
    }

    fn plan(read: Option<&str>, forget: &[&str]) -> Plan {
        Plan {
            forget: forget.iter().map(PathBuf::from).collect(),
            read: read.map(PathBuf::from),
        }
    }

    #[test]
    fn images_are_read_before_machines_and_the_newest_first() {
        let disks = [
            candidate("vm", Whose::Machine, 9),
            candidate("old", Whose::Image, 1),
            candidate("new", Whose::Image, 2),
        ];
        assert_eq!(decide(&disks, &noted([])), plan(Some("new"), &[]));
        let notes = noted([("new", READ)]);
        assert_eq!(decide(&disks, &notes), plan(Some("old"), &[]));
        let notes = noted([("new", READ), ("old", READ)]);
        assert_eq!(decide(&disks, &notes), plan(Some("vm"), &[]));
        let notes = noted([("new", READ), ("old", READ), ("vm", READ)]);
        assert_eq!(decide(&disks, &notes), plan(None, &[]));
        assert_eq!(decide(&[], &noted([])), Plan::default());
    }

    #[test]
    fn what_was_begun_is_read_to_its_end_first() {
        let disks = [
            candidate("begun", Whose::Image, 1),
            candidate("new", Whose::Image, 2),
        ];
        let notes = noted([("begun", BEGUN)]);
        assert_eq!(decide(&disks, &notes), plan(Some("begun"), &[]));
    }

    #[test]
    fn a_disk_that_changed_or_went_is_forgotten_and_one_that_does_not_rest_is_not_read() {
        let mut disks = [
            candidate("image", Whose::Image, 1),
            candidate("vm", Whose::Machine, 2),
        ];
        let notes = noted([("image", CHANGED), ("vm", CHANGED), ("gone", READ)]);
        let all = ["gone", "image", "vm"];
        assert_eq!(decide(&disks, &notes), plan(Some("image"), &all));
        disks[0].rests = false;
        assert_eq!(decide(&disks, &notes), plan(Some("vm"), &all));
        disks[1].rests = false;
        assert_eq!(decide(&disks, &notes), plan(None, &all));
        // what was read before stays of use while its disk is as it was
        let notes = noted([("vm", READ)]);
        assert_eq!(decide(&disks, &notes), plan(None, &[]));
    }

    #[test]
    fn notes_are_bounded_by_their_number_and_by_their_bytes() {
        let names: Vec<String> = (0..MAX_FOUND + 1).map(|at| format!("{at:02}")).collect();
        let small: Vec<Candidate> = (0..)
            .zip(&names)
            .map(|(hours, name)| Candidate {
                bytes: 1 << 30,
                data_bytes: 1 << 30,
                ..candidate(name, Whose::Image, hours)
            })
            .collect();
        let read = |name: &String| {
            (
                PathBuf::from(name),
                Noted {
                    bytes: 1 << 20,
                    ..READ
                },
            )
        };
        // the oldest one has no place, and gives up the one that it had
        let mut notes: BTreeMap<PathBuf, Noted> = names[1..].iter().map(read).collect();
        assert_eq!(decide(&small, &notes), plan(None, &[]));
        notes.extend([read(&names[0])]);
        assert_eq!(decide(&small, &notes), plan(None, &["00"]));
        // notes on 140 GB have 235 MB: on three such disks they would have more than there may be
        let large = ["a", "b", "c"].map(|name| candidate(name, Whose::Machine, 1));
        let all = noted([("a", READ), ("b", READ)]);
        assert_eq!(decide(&large, &all), plan(Some("c"), &[]));
        let more = Noted {
            bytes: MAX_NOTES_BYTES / 2,
            ..READ
        };
        let all = noted([("a", more), ("b", more)]);
        assert_eq!(decide(&large, &all), plan(None, &[]));
        // holes have next to none
        let sparse = Candidate {
            bytes: 2 << 40,
            data_bytes: 30 << 30,
            ..candidate("sparse", Whose::Machine, 1)
        };
        assert_eq!(decide(&[sparse], &noted([])), plan(Some("sparse"), &[]));
        let full = Candidate {
            bytes: 2 << 40,
            data_bytes: 2 << 40,
            ..candidate("full", Whose::Machine, 1)
        };
        assert_eq!(decide(&[full], &noted([])), Plan::default());
    }
}
