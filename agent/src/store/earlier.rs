//! What an earlier process left of an image. The journal says which chunks are on disk. Here those chunks are compared
//! with their links, and links that the journal lost are made again from the disk's bytes.
//!
//! When an image has to be read is decided in [`Stage`](super::Stage).

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use proto::{ChunkIndex, Digest};

use super::{claim::Look, files::ImageFiles, held::Held, shared::Shared};

/// The number of threads that read what an earlier process left. SHA-256 takes 1 to 2 GB/s on one processor, and a
/// Mac's disk gives about 3.
const READERS: usize = 4;

/// Whether some chunk is held only by the word of an earlier process.
pub(super) fn is_unread(held: &Held<Arc<ImageFiles>>) -> bool {
    (0..held.len()).any(|at| !held.unread(at).is_empty())
}

/// Compares the chunks that an earlier process left with their links. Ends early if the image is gone.
///
/// # Errors
/// When the volume fails, or the program stops.
pub(super) fn read_again(held: &Held<Arc<ImageFiles>>, shared: &Shared) -> io::Result<()> {
    let unread: Vec<(usize, ChunkIndex)> = (0..held.len())
        .flat_map(|at| {
            let unread = held.unread(at);
            unread.iter().map(|chunk| (at, chunk)).collect::<Vec<_>>()
        })
        .collect();
    if unread.is_empty() {
        return Ok(());
    }
    let next = AtomicUsize::new(0);
    let read = || -> io::Result<()> {
        while let Some((at, chunk)) = unread.get(next.fetch_add(1, Ordering::Relaxed)) {
            if held.is_gone() {
                break;
            }
            shared.go_on()?;
            if held.look(*at, *chunk)? == Look::Rotten {
                held.flush()?;
            }
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads.min(READERS))
            .map(|_| scope.spawn(read))
            .collect();
        readers.into_iter().try_for_each(|reader| {
            reader
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Whether the journal was damaged when it was opened, and its lost links weren't made again yet.
#[derive(Debug, Default)]
pub(super) struct LostLinks {
    lost: AtomicBool,
}

impl LostLinks {
    /// Notes what the opened journal was.
    pub(super) fn note(&self, damaged: bool) {
        self.lost.store(damaged, Ordering::Release);
    }

    /// Makes the links of an installed image again from its bytes, where they were lost.
    ///
    /// # Errors
    /// When the volume fails, or the program stops.
    pub(super) fn make_again(
        &self,
        image: &Digest,
        held: &Held<Arc<ImageFiles>>,
        shared: &Shared,
    ) -> io::Result<()> {
        let damaged = self.lost.load(Ordering::Acquire);
        // contents without any chunk count, too: a stop may have come between the damage and this call
        let lost_links =
            |at: &usize| !held.is_closed(*at) && (damaged || held.held(*at).is_empty());
        let contents: Vec<_> = (0..held.len()).filter(lost_links).collect();
        if contents.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let me = shared.host();
        let (mut linked, mut lost) = (0, 0);
        for at in contents {
            if held.link_again(at, &me, &|| shared.go_on())? {
                linked += 1;
            } else {
                // somewhere the bytes aren't the content's: keep the chunks that the remaining links prove
                held.look_at_all(at)?;
                lost += 1;
            }
        }
        held.flush()?;
        self.lost.store(false, Ordering::Release);
        let elapsed_ms = proto::millis(started.elapsed());
        tracing::info!(%image, linked, lost, elapsed_ms, "the journal's lost links were made again from the disk");
        Ok(())
    }
}
