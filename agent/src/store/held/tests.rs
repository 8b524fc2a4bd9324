use std::{
    fmt,
    sync::{OnceLock, Weak},
};

use super::*;
use crate::store::sync::{failing::SYNCS_LEFT, sync_data};

/// One content in one file. A test can run code after each write to the file, before the chunk counts as held.
#[derive(Default)]
struct OneFile {
    file: Option<File>,
    meanwhile: OnceLock<Box<dyn Fn() + Send + Sync>>,
    rotted: Mutex<Vec<ChunkIndex>>,
}

impl fmt::Debug for OneFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OneFile")
    }
}

impl Files for OneFile {
    fn each(
        &self,
        _content: usize,
        access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        run(0, self.file.as_ref().unwrap(), 0)?;
        if let (Access::Write, Some(meanwhile)) = (access, self.meanwhile.get()) {
            meanwhile();
        }
        Ok(())
    }

    fn sync(&self, contents: &BTreeSet<usize>) -> io::Result<()> {
        contents
            .iter()
            .try_for_each(|_| sync_data(self.file.as_ref().unwrap()))
    }

    fn rotted(&self, _content: usize, chunk: ChunkIndex) {
        lock(&self.rotted).push(chunk);
    }
}

struct World {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
    links: Vec<Link>,
    geometry: Geometry,
    host: HostId,
}

impl World {
    fn new() -> Self {
        let words = (0u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes());
        let bytes: Vec<u8> = words.take((3 << 20) + 77).collect();
        let geometry = Geometry::new(bytes.len() as u64).unwrap();
        let mut state = State::INITIAL;
        let links = bytes
            .chunks(1 << 20)
            .zip(0u32..)
            .map(|(bytes, at)| {
                let link = Link::forge(geometry, ChunkIndex(at), state, bytes);
                state = link.after;
                link
            })
            .collect();
        Self {
            dir: tempfile::tempdir().unwrap(),
            bytes,
            links,
            geometry,
            host: "mac-1".parse().unwrap(),
        }
    }

    fn content(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The state as after a start of the program.
    fn open(&self) -> Arc<Held<OneFile>> {
        let path = self.dir.path().join("journal");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.path().join("bytes"))
            .unwrap();
        file.set_len(self.geometry.size()).unwrap();
        let files = OneFile {
            file: Some(file),
            ..OneFile::default()
        };
        let held = Held::new(files, [(self.content(), self.geometry)], Arc::default());
        let (journal, records) = match Journal::open(&path, &self.content()).unwrap() {
            Some(opened) => (opened.journal, opened.records),
            None => (Journal::create(&path, &self.content()).unwrap(), Vec::new()),
        };
        held.set_journal(Some(journal));
        held.replay(records);
        Arc::new(held)
    }

    fn chunk(&self, at: u32) -> &[u8] {
        self.bytes.chunks(1 << 20).nth(at as usize).unwrap()
    }

    fn source(&self) -> Source {
        Source {
            sender: self.host.key(),
            maker: self.host.key(),
        }
    }

    fn write(&self, held: &Held<OneFile>, at: u32) -> Result<Entered, WriteError> {
        let link = self.links[at as usize];
        let bytes = self.chunk(at);
        held.write(
            0,
            ChunkIndex(at),
            bytes,
            link,
            self.source(),
            (&self.host, None),
        )
    }

    fn fill(&self, held: &Held<OneFile>) {
        for at in 0..self.geometry.chunks() {
            self.write(held, at).unwrap();
        }
    }

    /// The bytes on the disk at a chunk's place.
    fn on_disk(&self, held: &Held<OneFile>, at: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.chunk(at).len()];
        let file = held.files().file.as_ref().unwrap();
        file.read_exact_at(&mut bytes, self.geometry.offset(ChunkIndex(at)))
            .unwrap();
        bytes
    }

    fn rot(&self, held: &Held<OneFile>, at: u32) {
        let file = held.files().file.as_ref().unwrap();
        let offset = self.geometry.offset(ChunkIndex(at)) + 9;
        file.write_all_at(&[!self.chunk(at)[9]], offset).unwrap();
    }
}

#[test]
fn a_place_is_not_written_again_before_its_drop_is_journaled() {
    type Drop = fn(&World, &Held<OneFile>);
    let drops: [(&str, Drop); 4] = [
        ("forget", |_, held| assert!(held.forget(0, ChunkIndex(2)))),
        ("retract", |world, held| {
            let chunks = held.retract(0, world.host.key(), ChunkIndex(2));
            assert_eq!(chunks, [ChunkIndex(2)]);
        }),
        ("look", |world, held| {
            world.rot(held, 2);
            assert_eq!(held.look(0, ChunkIndex(2)).unwrap(), Look::Rotten);
        }),
        ("walk", |world, held| {
            // chunk 3 proves chunk 2 false
            world.write(held, 3).unwrap();
            assert_eq!(held.drop_false(0)[0].chunk, ChunkIndex(2));
        }),
    ];
    for (name, drop_chunk) in drops {
        let world = World::new();
        let held = world.open();
        // the first bytes at the place: a lie for the walk, otherwise the truth
        let lie = vec![7; 1 << 20];
        let before = if name == "walk" {
            let link = Link::forge(world.geometry, ChunkIndex(2), world.links[1].after, &lie);
            held.write(
                0,
                ChunkIndex(2),
                &lie,
                link,
                world.source(),
                (&world.host, None),
            )
            .unwrap();
            lie
        } else {
            world.write(&held, 2).unwrap();
            world.chunk(2).to_vec()
        };
        held.flush().unwrap();
        drop_chunk(&world, &held);
        let left = world.on_disk(&held, 2);
        assert!(name == "look" || left == before);

        // while the journal can't be written, nobody may write the place
        SYNCS_LEFT.set(0);
        let refused = world.write(&held, 2);
        SYNCS_LEFT.set(usize::MAX);
        assert!(matches!(refused, Err(WriteError::Io { .. })), "{name}");
        assert!(world.on_disk(&held, 2) == left, "{name}");

        // once the journal can be written, it has the drop before the new bytes are on disk, so a crash brings no chunk
        // back
        assert_eq!(world.write(&held, 2).unwrap(), Entered::New, "{name}");
        drop(held);
        let held = world.open();
        assert!(!held.is_held(0, ChunkIndex(2)), "{name}");
    }
}

#[test]
fn a_sync_that_failed_vouches_for_nothing_that_it_covered() {
    let world = World::new();
    let held = world.open();
    world.write(&held, 0).unwrap();
    held.flush().unwrap();
    world.write(&held, 1).unwrap();
    world.write(&held, 3).unwrap();
    SYNCS_LEFT.set(0);
    assert!(held.flush().is_err());
    // the next sync would succeed, even if the bytes were lost
    assert_eq!(held.held(0).iter().collect::<Vec<_>>(), [ChunkIndex(0)]);
    held.flush().unwrap();
    assert_eq!(world.write(&held, 1).unwrap(), Entered::New);
    held.flush().unwrap();
    drop(held);
    let held = world.open();
    let chunks: Vec<_> = held.held(0).iter().collect();
    assert_eq!(chunks, [ChunkIndex(0), ChunkIndex(1)]);
}

#[test]
fn what_is_written_while_a_sync_fails_is_not_held() {
    let world = World::new();
    let held = world.open();
    world.write(&held, 0).unwrap();
    let itself: Weak<Held<OneFile>> = Arc::downgrade(&held);
    let once = AtomicBool::new(false);
    // between the write and the chunk's entry, another thread's flush fails, which may have covered these bytes, too
    let meanwhile = move || {
        if !once.swap(true, Ordering::AcqRel) {
            SYNCS_LEFT.set(0);
            assert!(itself.upgrade().unwrap().flush().is_err());
        }
    };
    assert!(held.files().meanwhile.set(Box::new(meanwhile)).is_ok());
    assert!(matches!(world.write(&held, 1), Err(WriteError::Io { .. })));
    assert!(held.held(0).is_empty());
    world.fill(&held);
    assert!(held.drop_false(0).is_empty() && held.is_closed(0));
    held.flush().unwrap();
}

#[test]
fn a_journal_that_failed_is_tried_again() {
    let world = World::new();
    let held = world.open();
    world.fill(&held);
    // the sync of the data succeeds, the sync of the journal fails
    SYNCS_LEFT.set(1);
    assert!(held.flush().is_err());
    SYNCS_LEFT.set(usize::MAX);
    assert!(held.held(0).is_full());
    held.flush().unwrap();
    drop(held);
    assert!(world.open().is_closed(0));
}

#[test]
fn what_an_earlier_process_left_is_compared_before_it_leaves() {
    let world = World::new();
    let held = world.open();
    world.fill(&held);
    held.flush().unwrap();
    assert!(held.unread(0).is_empty());
    drop(held);
    let held = world.open();
    assert!(held.is_closed(0) && held.unread(0).is_full());
    world.rot(&held, 1);
    assert!(held.read(0, ChunkIndex(0)).unwrap().is_some());
    assert!(held.read(0, ChunkIndex(1)).unwrap().is_none());
    assert!(!held.is_closed(0) && !held.is_held(0, ChunkIndex(1)));
    assert_eq!(*lock(&held.files().rotted), [ChunkIndex(1)]);
    let unread: Vec<_> = held.unread(0).iter().collect();
    assert_eq!(unread, [ChunkIndex(2), ChunkIndex(3)]);
    // a file that became too short has lost the bytes
    held.files()
        .file
        .as_ref()
        .unwrap()
        .set_len(3 << 20)
        .unwrap();
    assert_eq!(held.look(0, ChunkIndex(3)).unwrap(), Look::Rotten);
}
