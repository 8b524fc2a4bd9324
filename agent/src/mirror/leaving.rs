//! A blob's file, and how many of the blob's bytes may leave before its chain is closed.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use proto::{ChunkIndex, Geometry, HostKey, Source, State};

use crate::{
    lock::lock,
    store::{
        chunks::Chunks,
        place::{Access, Files},
        sync::sync_data,
    },
};

/// A blob's file, and how many of its bytes may leave before the chain is closed.
#[derive(Debug)]
pub(super) struct BlobFile {
    pub(super) geometry: Geometry,
    pub(super) me: HostKey,
    pub(super) resting: PathBuf,
    /// The file of a whole blob is opened when it is needed.
    file: Mutex<Option<Arc<File>>>,
    /// The number of chunks, from the first on, that we got from the registry in an unbroken run: each link begins with
    /// the state in which the last one ended. Changed only under the lock of the content's chunks.
    ours: AtomicU32,
    /// The same, where a chunk from a peer counts too if the blob's recipe proves it. Never less than `ours`.
    proved: AtomicU32,
    /// A chunk changed on disk after it was verified.
    rotten: AtomicBool,
}

impl BlobFile {
    pub(super) fn new(geometry: Geometry, me: HostKey, resting: PathBuf) -> Self {
        Self {
            geometry,
            me,
            resting,
            file: Mutex::default(),
            ours: AtomicU32::new(0),
            proved: AtomicU32::new(0),
            rotten: AtomicBool::new(false),
        }
    }

    pub(super) fn open(&self) -> io::Result<Arc<File>> {
        let mut file = lock(&self.file);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        Ok(file.insert(Arc::new(File::open(&self.resting)?)).clone())
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.file).is_some()
    }

    pub(super) fn set_open(&self, file: Option<Arc<File>>) {
        *lock(&self.file) = file;
    }

    /// The bytes from the first on that this host itself got from the registry.
    pub(super) fn ours(&self) -> u64 {
        u64::from(self.ours.load(Ordering::Acquire)) * proto::CHUNK_BYTES
    }

    /// The bytes from the first on that may leave before the chain is closed. The last chunk is never among them: with
    /// it, a client would have every byte before anybody knows that the blob is true.
    pub(super) fn may_leave(&self) -> u64 {
        let last = self.geometry.chunks().saturating_sub(1);
        u64::from(self.proved.load(Ordering::Acquire).min(last)) * proto::CHUNK_BYTES
    }

    pub(super) fn is_rotten(&self) -> bool {
        self.rotten.load(Ordering::Acquire)
    }

    /// The number of chunks from the first on whose links join and whose sources count, of which `run` are known.
    fn run(&self, chunks: &Chunks, mut run: u32, counts: impl Fn(Source) -> bool) -> u32 {
        let mut before = match run.checked_sub(1).map(ChunkIndex) {
            None => Some(State::INITIAL),
            Some(last) => chunks.read_link(last).map(|(link, _)| link.after),
        };
        while run < self.geometry.chunks()
            && let Some((link, source)) = chunks.read_link(ChunkIndex(run))
            && counts(source)
            && Some(link.before) == before
        {
            before = Some(link.after);
            run += 1;
        }
        run
    }
}

impl Files for Arc<BlobFile> {
    fn each(
        &self,
        _content: usize,
        _access: Access,
        run: &mut dyn FnMut(usize, &File, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        run(0, &*self.open()?, 0)
    }

    fn sync(&self, _contents: &BTreeSet<usize>) -> io::Result<()> {
        sync_data(&*self.open()?)
    }

    fn rotted(&self, _content: usize, _chunk: ChunkIndex) {
        self.rotten.store(true, Ordering::Release);
    }

    fn changed(&self, _content: usize, chunks: &Chunks, lost: Option<ChunkIndex>) {
        // bytes from a lost chunk on can't be relied on any more
        let most = lost.map_or(u32::MAX, |lost| lost.0);
        let known = |run: &AtomicU32| run.load(Ordering::Acquire).min(most);
        let ours = self.run(chunks, known(&self.ours), |source| source.sender == self.me);
        let proved = match chunks.recipe() {
            Some(_) => self.run(chunks, known(&self.proved).max(ours), |_| true),
            None => ours,
        };
        self.ours.store(ours, Ordering::Release);
        self.proved.store(proved, Ordering::Release);
    }
}
