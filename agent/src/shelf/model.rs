//! Everything that may happen to the chunks of a content, in any order, for both kinds of shelf: a stage, and a blob of
//! the mirror.
//!
//! The model knows the true bytes and two sets of chunks. A *durable* chunk was held at a successful flush and wasn't
//! dropped since. A crash loses no durable chunk that is true. A *possible* chunk was held at that flush or since. A
//! crash brings back no other chunk. A chunk that is read fits its link, a closed content has the true bytes, and in
//! the end the content becomes closed.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use proto::{Geometry, State};
use tempfile::TempDir;

use super::*;
use crate::{
    mirror::{
        blob::Reading,
        blobs::{Blobs, Limits},
    },
    platform::{Floor, Space},
    store::{
        Options, Store,
        sync::failing::SYNCS_LEFT,
        tests::{Sample, begin, noise, sample_of},
    },
};

const CHUNKS: u32 = 4;
const BYTES: usize = (3 << 20) + 77;

/// One event.
#[derive(Clone, Debug)]
enum Step {
    /// A true chunk arrives.
    Write(u32),
    /// A peer sends an invented chunk, with a link that fits it.
    Lie(u32),
    Walk,
    Forget(u32),
    /// The maker takes back its chunks from this one on.
    Retract(u32),
    Look(u32),
    Read(u32),
    /// A byte on the disk changes.
    Rot(u32),
    Flush,
    /// One sync fails, after this many successful ones.
    FailSync(usize),
    /// The program dies.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let chunk = 0..CHUNKS;
    prop_oneof![
        6 => chunk.clone().prop_map(Step::Write),
        2 => chunk.clone().prop_map(Step::Lie),
        2 => Just(Step::Walk),
        1 => chunk.clone().prop_map(Step::Forget),
        1 => chunk.clone().prop_map(Step::Retract),
        2 => chunk.clone().prop_map(Step::Look),
        2 => chunk.clone().prop_map(Step::Read),
        2 => chunk.prop_map(Step::Rot),
        3 => Just(Step::Flush),
        2 => (0..3usize).prop_map(Step::FailSync),
        3 => Just(Step::Crash),
    ]
}

/// A stage or a blob that keeps the chunks of a content.
trait Keeper: Sized {
    /// The state as after a start of the program.
    fn open(home: &Path) -> Self;
    fn shelf(&self) -> Shelf;
    fn flush(&self) -> io::Result<()>;
    /// The file with the bytes, and the offset in it where they start.
    fn place(&self, home: &Path) -> (PathBuf, u64);
    /// Gives the content up in a state where its user would, and begins it again. Returns whether it did.
    fn give_up(&mut self) -> bool;
}

/// Opens something that only one process at a time may have open. Retries, because a child process that another test
/// forks has our lock, too, until it runs another program.
fn patiently<T, E: std::fmt::Debug>(open: impl Fn() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match open() {
            Err(_) if started.elapsed() < Duration::from_secs(5) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

struct Staged {
    sample: Sample,
    store: Store,
    shelf: Shelf,
}

impl Keeper for Staged {
    fn open(home: &Path) -> Self {
        let sample = sample_of(1, &noise(9_000, 77), BYTES, None);
        let options = Options {
            floor_percent: 0,
            ..Options::default()
        };
        let store = patiently(|| Store::open(home, options));
        let (stage, _) = begin(&store, &sample, &["ghcr.io/org/image:one"]);
        Self {
            shelf: Shelf::Stage(stage),
            sample,
            store,
        }
    }

    fn shelf(&self) -> Shelf {
        self.shelf.clone()
    }

    fn flush(&self) -> io::Result<()> {
        self.store.flush()
    }

    fn place(&self, home: &Path) -> (PathBuf, u64) {
        let layout = &self.sample.layout;
        let ours = home
            .join(".parbake")
            .join(layout.digest().hex().to_string());
        (ours.join("image/disk.img"), layout.layers()[1].offset)
    }

    fn give_up(&mut self) -> bool {
        false
    }
}

struct Mirrored {
    blobs: Blobs,
    reading: Reading,
    content: Digest,
}

fn roomy(_: &Path) -> io::Result<Space> {
    Ok(Space {
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
    })
}

impl Keeper for Mirrored {
    fn open(home: &Path) -> Self {
        let limits = Limits {
            budget_bytes: 1 << 30,
            floor: Floor {
                percent: 0,
                kept_bytes: 0,
            },
            space: roomy,
        };
        let me = "mac-1".parse().unwrap();
        let blobs = patiently(|| Blobs::open(&home.join("mirror"), &me, limits));
        let content = Digest::of(&noise(BYTES, 1));
        let reading = blobs.begin(content, BYTES as u64).unwrap();
        if reading.blob.is_whole() {
            assert!(reading.blob.load_links().unwrap(), "a whole blob has links");
        }
        Self {
            blobs,
            reading,
            content,
        }
    }

    fn shelf(&self) -> Shelf {
        Shelf::Blob(self.reading.blob.clone())
    }

    fn flush(&self) -> io::Result<()> {
        self.blobs.flush()
    }

    fn place(&self, home: &Path) -> (PathBuf, u64) {
        let directory = match self.reading.blob.is_whole() {
            true => "mirror/whole",
            false => "mirror/arriving",
        };
        let name = self.content.hex().to_string();
        (home.join(directory).join(name), 0)
    }

    fn give_up(&mut self) -> bool {
        let given_up = self.reading.blob.is_whole() && self.reading.blob.is_rotten();
        if given_up {
            self.blobs.discard(&self.content).unwrap();
            self.reading = self.blobs.begin(self.content, BYTES as u64).unwrap();
        }
        given_up
    }
}

/// A chunk as its sender claims it to be.
struct Sent {
    chunk: ChunkIndex,
    link: Link,
    bytes: Vec<u8>,
}

struct World<K> {
    home: TempDir,
    keeper: Option<K>,
    content: Digest,
    geometry: Geometry,
    truth: Vec<Sent>,
    lies: Vec<Sent>,
    durable: BTreeSet<u32>,
    possible: BTreeSet<u32>,
    /// Chunks whose bytes changed after this process wrote or read them. A process doesn't compare them again before
    /// they leave.
    changed: BTreeSet<u32>,
}

fn sender() -> HostId {
    "mac-2".parse().unwrap()
}

impl<K: Keeper> World<K> {
    fn new() -> Self {
        SYNCS_LEFT.set(usize::MAX);
        // in memory, if the system has such a place, because a case syncs many times
        let memory = Path::new("/dev/shm");
        let home = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let bytes = noise(BYTES, 1);
        let geometry = Geometry::new(BYTES as u64).unwrap();
        let mut state = State::INITIAL;
        let (mut truth, mut lies) = (Vec::new(), Vec::new());
        for (chunk, bytes) in (0..).map(ChunkIndex).zip(bytes.chunks(1 << 20)) {
            let invented = noise(bytes.len(), 900 + u64::from(chunk.0));
            let link = Link::forge(geometry, chunk, state, &invented);
            lies.push(Sent {
                chunk,
                link,
                bytes: invented,
            });
            let link = Link::forge(geometry, chunk, state, bytes);
            state = link.after;
            truth.push(Sent {
                chunk,
                link,
                bytes: bytes.to_vec(),
            });
        }
        let home = home.unwrap();
        let keeper = Some(K::open(home.path()));
        Self {
            home,
            keeper,
            content: Digest::of(&bytes),
            geometry,
            truth,
            lies,
            durable: BTreeSet::new(),
            possible: BTreeSet::new(),
            changed: BTreeSet::new(),
        }
    }

    fn keeper(&self) -> &K {
        self.keeper.as_ref().unwrap()
    }

    fn shelf(&self) -> Shelf {
        self.keeper().shelf()
    }

    fn held(&self) -> BTreeSet<u32> {
        let held = self.shelf().held(self.content);
        held.iter().map(|chunk| chunk.0).collect()
    }

    /// Writes a chunk. Ignores errors: a failing volume or a link that can't be true shows later.
    fn write(&mut self, lie: bool, at: u32) {
        let maker = sender();
        let sent = if lie { &self.lies } else { &self.truth };
        let Sent { chunk, link, bytes } = &sent[at as usize];
        let arrival = Arrival {
            content: self.content,
            chunk: *chunk,
            bytes,
            link: *link,
            source: Source {
                sender: maker.key(),
                maker: maker.key(),
            },
            maker: &maker,
            statement: None,
        };
        if let Ok(Entered::New) = self.shelf().write(arrival) {
            self.changed.remove(&at);
        }
    }

    fn rot(&mut self, at: u32) {
        let (path, start) = self.keeper().place(self.home.path());
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let offset = start + self.geometry.offset(ChunkIndex(at)) + 5;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
        self.changed.insert(at);
    }

    fn crash(&mut self) {
        SYNCS_LEFT.set(usize::MAX);
        // a start walks the chain and drops what the chain disproves, flushed or not
        let shelf = self.shelf();
        let is_true = |at: &&u32| {
            let link = shelf.link(self.content, ChunkIndex(**at));
            let states = |link: &Link| (link.before, link.after);
            link.is_some_and(|(link, _)| states(&link) == states(&self.truth[**at as usize].link))
        };
        let mut lasting: BTreeSet<u32> = self.durable.iter().filter(is_true).copied().collect();
        if !self.possible.iter().all(|at| is_true(&at)) {
            // all chunks have one maker: a lie of its takes along what isn't proved to the digest
            let last = u32::try_from(self.truth.len()).unwrap();
            let proved = (0..last).rev().take_while(|at| lasting.contains(at));
            lasting = proved.collect();
        }
        drop(shelf);
        self.keeper = None;
        self.keeper = Some(K::open(self.home.path()));
        self.changed.clear();
        let held = self.held();
        assert!(
            held.is_superset(&lasting),
            "a crash lost a chunk that was flushed"
        );
        assert!(
            held.is_subset(&self.possible),
            "a crash brought a dropped chunk back"
        );
    }

    fn take(&mut self, step: &Step) {
        let (shelf, content) = (self.shelf(), self.content);
        let closed = shelf.is_closed(content);
        let mut may_drop = false;
        match *step {
            Step::Write(at) => self.write(false, at),
            Step::Lie(at) => self.write(true, at),
            Step::Walk => {
                may_drop = true;
                drop(shelf.walk(content));
            }
            // a proved chunk isn't taken back
            Step::Forget(_) | Step::Retract(_) if closed => {}
            Step::Forget(at) => {
                may_drop = true;
                drop(shelf.forget_chunk(content, ChunkIndex(at)));
            }
            Step::Retract(from) => {
                may_drop = true;
                drop(shelf.retract(content, sender().key(), ChunkIndex(from)));
            }
            Step::Look(at) => {
                may_drop = true;
                if let Ok(Look::Sound(found)) = shelf.look(content, ChunkIndex(at)) {
                    self.assert_fits(at, &found);
                    self.changed.remove(&at);
                }
            }
            Step::Read(at) => {
                // a chunk of an earlier process is compared, and dropped if it rotted
                may_drop = true;
                if let Ok(Some(found)) = shelf.read(content, ChunkIndex(at))
                    && !self.changed.contains(&at)
                {
                    self.assert_fits(at, &found);
                    assert!(!closed || found.bytes == self.truth[at as usize].bytes);
                }
            }
            Step::Rot(at) => self.rot(at),
            Step::Flush => {
                if self.keeper().flush().is_ok() {
                    self.durable = self.held();
                    self.possible = self.held();
                }
            }
            Step::FailSync(after) => SYNCS_LEFT.set(after),
            Step::Crash => {
                may_drop = true;
                self.crash();
            }
        }
        drop(shelf);
        let given_up = self.keeper.as_mut().unwrap().give_up();
        let held = self.held();
        if given_up {
            self.durable.clear();
            self.possible.clear();
            self.changed.clear();
        }
        assert!(
            may_drop || held.is_superset(&self.durable),
            "{step:?} dropped a chunk that was flushed"
        );
        self.durable.retain(|chunk| held.contains(chunk));
        self.possible.extend(held);
    }

    fn assert_fits(&self, at: u32, found: &HeldChunk) {
        let fits = found
            .link
            .holds(self.geometry, ChunkIndex(at), &found.bytes);
        assert!(fits, "chunk {at} left with bytes that aren't its link's");
    }

    /// Nothing goes wrong from now on: the content becomes closed, with its true bytes.
    fn settle(&mut self) {
        self.take(&Step::Crash);
        for _ in 0..=2 * CHUNKS {
            for at in 0..CHUNKS {
                self.take(&Step::Look(at));
                self.take(&Step::Write(at));
            }
            self.take(&Step::Walk);
            if self.shelf().is_closed(self.content) {
                break;
            }
        }
        assert!(
            self.shelf().is_closed(self.content),
            "it never becomes closed"
        );
        self.take(&Step::Flush);
        self.take(&Step::Crash);
        assert!(
            self.shelf().is_closed(self.content),
            "a crash opened it again"
        );
        for at in 0..CHUNKS {
            let read = self.shelf().read(self.content, ChunkIndex(at));
            let found = read.unwrap().expect("it is held");
            assert!(found.bytes == self.truth[at as usize].bytes, "chunk {at}");
        }
    }
}

fn run<K: Keeper>(steps: &[Step]) {
    let mut world = World::<K>::new();
    for step in steps {
        world.take(step);
    }
    world.settle();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_stage_keeps_what_its_journal_vouches_for_and_serves_what_its_links_say(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run::<Staged>(&steps);
    }

    #[test]
    fn a_blob_keeps_what_its_journal_vouches_for_and_serves_what_its_links_say(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run::<Mirrored>(&steps);
    }
}
