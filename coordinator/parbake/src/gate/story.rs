//! What `gate run` writes to stderr. A thread writes it, so that a stderr that nobody reads holds up no command, no
//! signal and no place.
//!
//! The queue of the thread is bounded. Lines of parbake's own that find no room are dropped, and their number is said
//! when there is room again. A command's output is never dropped while the command runs: the command waits, as it would
//! if it wrote to stderr itself, and its time goes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

/// The most lines that wait to be written: 4 MiB at most.
const MAX_LINES: usize = 1_024;
/// The most of them that are output of commands, so that parbake's own find room beside commands that write much.
const MAX_OUTPUT_LINES: usize = 256;
/// What waits at the end is written for this long.
pub(super) const FLUSH: Duration = Duration::from_secs(5);

/// A line, and the room that it takes where it is a command's.
struct Line(String, Option<OwnedSemaphorePermit>);

/// The way to stderr.
#[derive(Clone, Debug)]
pub(super) struct Story {
    lines: mpsc::Sender<Line>,
    dropped: Arc<AtomicU64>,
    room: Arc<Semaphore>,
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer(oneshot::Receiver<()>);

impl Story {
    /// Starts the thread. `write` gets one line after the other, and may take its time.
    ///
    /// # Errors
    /// The system starts no thread.
    pub(super) fn start(
        mut write: impl FnMut(&str) + Send + 'static,
    ) -> std::io::Result<(Self, Writer)> {
        let (lines, mut queue) = mpsc::channel(MAX_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let (done, ended) = oneshot::channel();
        let counted = dropped.clone();
        let work = move || {
            let say_dropped = |write: &mut dyn FnMut(&str)| match counted.swap(0, Ordering::Relaxed)
            {
                0 => {}
                dropped => write(&format!(
                    "{dropped} lines of parbake's aren't shown, because nobody read stderr\n"
                )),
            };
            while let Some(Line(text, room)) = queue.blocking_recv() {
                write(&text);
                drop(room);
                say_dropped(&mut write);
            }
            // nobody may wait any more
            _ = done.send(());
        };
        std::thread::Builder::new()
            .name("stderr".into())
            .spawn(work)?;
        let story = Self {
            lines,
            dropped,
            room: Arc::new(Semaphore::new(MAX_OUTPUT_LINES)),
        };
        Ok((story, Writer(ended)))
    }

    /// Says something. Waits for nothing: without room it is dropped and counted.
    pub(super) fn tell(&self, text: &str) {
        if self.lines.try_send(Line(text.to_owned(), None)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows a line of a command's output, once there is room.
    pub(super) async fn show(&self, text: String) {
        // neither closes while this handle is there, but where the thread has died: then there is nothing to be shown
        let Ok(room) = self.room.clone().acquire_owned().await else {
            return;
        };
        drop(self.lines.send(Line(text, Some(room))).await);
    }
}

impl Writer {
    /// Waits until all is written, for a while. `others` is what still has a way to stderr. Returns whether all was
    /// written.
    pub(super) async fn finish(self, within: Duration, others: impl Future<Output = ()>) -> bool {
        let all = async {
            others.await;
            drop(self.0.await);
        };
        timeout(within, all).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    #[tokio::test]
    async fn a_stderr_that_nobody_reads_drops_own_lines_and_holds_a_commands_back() {
        let (read, pipe) = std_mpsc::sync_channel::<String>(0);
        let (story, writer) =
            Story::start(move |text| read.send(text.to_owned()).unwrap()).unwrap();
        // nobody reads: one line is being written, and as many commands' lines as may wait have room
        for line in 0..MAX_OUTPUT_LINES {
            story.show(format!("mini-1: {line}\n")).await;
        }
        let other = story.clone();
        let more = async move { other.show("mini-1: last\n".into()).await };
        let mut more = Box::pin(more);
        let none = Duration::from_millis(20);
        assert!(timeout(none, &mut more).await.is_err(), "it waits");
        for line in 0..MAX_LINES {
            story.tell(&format!("own {line}\n"));
        }
        let dropped = story.dropped.load(Ordering::Relaxed);
        assert!((255..=256).contains(&dropped), "{dropped}");
        // somebody reads again
        let reader = std::thread::spawn(move || pipe.iter().collect::<Vec<String>>());
        more.as_mut().await;
        drop(more);
        drop(story);
        assert!(writer.finish(FLUSH, async {}).await);
        let lines = reader.join().unwrap();
        let of = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
        assert_eq!(of("mini-1: "), MAX_OUTPUT_LINES + 1);
        let own = u64::try_from(of("own ")).unwrap();
        assert_eq!(own + dropped, u64::try_from(MAX_LINES).unwrap());
        let said = format!("{dropped} lines of parbake's aren't shown");
        assert!(lines.iter().any(|line| line.starts_with(&said)));
    }

    #[tokio::test]
    async fn what_isnt_read_at_the_end_is_waited_for_no_longer_than_a_while() {
        let (_stuck, never) = std_mpsc::channel::<()>();
        let (story, writer) = Story::start(move |_| _ = never.recv()).unwrap();
        story.tell("one\n");
        drop(story);
        assert!(!writer.finish(Duration::from_millis(20), async {}).await);
    }
}
