//! The jobs that the driver started, and whose ends it hears.
//!
//! Blocking work runs on a bounded number of threads. Work that may take minutes (reading an image again, copying from
//! another image, a second directory) runs on few of them at a time, so that chunks are stored and served meanwhile.

use std::{pin::Pin, sync::Arc};

use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use super::input::Input;

/// Threads for blocking work: a burst of chunks doesn't become a burst of threads.
pub(crate) const BLOCKING_THREADS: usize = 16;

/// Images that are begun or read again at the same time. The disk limits such work.
const READERS: usize = 4;

/// Installations at the same time. They have their own places: most are renames, which shouldn't wait for reading.
const INSTALLERS: usize = 4;

/// Work that may take minutes, by the places that it waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Long {
    /// The work reads whole images.
    Read,
    /// The work puts an image into tart's cache.
    Install,
}

/// Work beside the driver's loop. It ends in an input.
pub(super) enum Work {
    /// The work waits for others.
    Waiting(Pin<Box<dyn Future<Output = Input> + Send>>),
    /// The work blocks for as long as one chunk or one content takes.
    Blocking(Box<dyn FnOnce() -> Input + Send>),
    /// The work may block for minutes.
    Long(Long, Box<dyn FnOnce() -> Input + Send>),
}

impl Work {
    pub(super) fn waiting(job: impl Future<Output = Input> + Send + 'static) -> Self {
        Self::Waiting(Box::pin(job))
    }

    pub(super) fn blocking(job: impl FnOnce() -> Input + Send + 'static) -> Self {
        Self::Blocking(Box::new(job))
    }

    pub(super) fn long(what: Long, job: impl FnOnce() -> Input + Send + 'static) -> Self {
        Self::Long(what, Box::new(job))
    }
}

/// Jobs under way.
#[derive(Debug)]
pub(super) struct Jobs {
    all: JoinSet<Input>,
    readers: Arc<Semaphore>,
    installers: Arc<Semaphore>,
}

impl Jobs {
    pub(super) fn new() -> Self {
        Self {
            all: JoinSet::new(),
            readers: Arc::new(Semaphore::new(READERS)),
            installers: Arc::new(Semaphore::new(INSTALLERS)),
        }
    }

    /// Starts a job. A [`Work::Long`] waits for one of its few places first.
    pub(super) fn start(&mut self, work: Work) {
        match work {
            Work::Waiting(job) => drop(self.all.spawn(job)),
            Work::Blocking(job) => drop(self.all.spawn_blocking(job)),
            Work::Long(what, job) => self.start_long(what, job),
        }
    }

    fn start_long(&mut self, what: Long, job: Box<dyn FnOnce() -> Input + Send>) {
        let places = match what {
            Long::Read => self.readers.clone(),
            Long::Install => self.installers.clone(),
        };
        self.all.spawn(async move {
            // the semaphore is never closed; without a place the job would only be less well behaved
            let place = places.acquire_owned().await.ok();
            let done = tokio::task::spawn_blocking(move || {
                let _place = place;
                job()
            });
            match done.await {
                Ok(input) => input,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // the program ends
                    Err(_) => Input::Nothing,
                },
            }
        });
    }

    /// The input of the next job that ends; `None` if no job runs. Cancel safe.
    pub(super) async fn join_next(&mut self) -> Option<Result<Input, JoinError>> {
        self.all.join_next().await
    }

    pub(super) fn abort_all(&mut self) {
        self.all.abort_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn long_jobs_leave_threads_for_chunks() {
        const { assert!(READERS + INSTALLERS <= BLOCKING_THREADS / 2) };
        let mut jobs = Jobs::new();
        let (started, starts) = mpsc::channel();
        let gate = Arc::new(std::sync::Barrier::new(READERS + INSTALLERS + 1));
        // twice as many of each kind as there are places
        for (what, places) in [(Long::Read, READERS), (Long::Install, INSTALLERS)] {
            for _ in 0..2 * places {
                let (started, gate) = (started.clone(), gate.clone());
                jobs.start(Work::long(what, move || {
                    started.send(()).unwrap();
                    gate.wait();
                    Input::Nothing
                }));
            }
        }
        // a chunk's job is done meanwhile, though all long jobs were asked for before
        jobs.start(Work::blocking(|| Input::Tick));
        assert!(matches!(jobs.join_next().await, Some(Ok(Input::Tick))));
        // two rounds of as many as there are places
        for _ in 0..2 {
            tokio::task::block_in_place(|| {
                for _ in 0..READERS + INSTALLERS {
                    starts.recv().unwrap();
                }
                assert!(starts.try_recv().is_err());
                gate.wait();
            });
        }
        let mut done = 0;
        while let Some(ended) = jobs.join_next().await {
            assert!(matches!(ended, Ok(Input::Nothing)));
            done += 1;
        }
        assert_eq!(done, 2 * (READERS + INSTALLERS));
    }

    #[tokio::test]
    async fn a_long_job_that_panics_is_seen() {
        let mut jobs = Jobs::new();
        jobs.start(Work::long(Long::Read, || panic!("as a test does")));
        assert!(jobs.join_next().await.unwrap().unwrap_err().is_panic());
    }
}
