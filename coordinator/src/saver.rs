//! The saver: callers use it to wait until changed enrolment records are kept where they survive this process.
//!
//! In a cluster, the leader writes the state directory into a Secret; see `cluster::shared_secret`. A coordinator
//! without a cluster has its records in files already, so nothing is waited for.

use tokio::sync::{mpsc, oneshot};

/// The most asks that wait: as many as the enrolments that the API takes at one time, and as many for operators.
const ASKS: usize = 64;

/// An ask to keep the files as they are now. The answer is sent once they are kept; an error text says why they can't
/// be.
pub(crate) type Ask = oneshot::Sender<Result<(), String>>;

/// Lets callers wait until changed records are kept where they survive this process. The default saver waits for
/// nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saver(Option<mpsc::Sender<Ask>>);

impl Saver {
    /// A saver, and the queue of its asks. The receiver of the queue keeps the records.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, queue) = mpsc::channel(ASKS);
        (Self(Some(asks)), queue)
    }

    /// Returns once the records, as they are now, are kept.
    ///
    /// # Errors
    /// When the records can't be kept; the text says why. They are tried again, and may be kept later.
    pub(crate) async fn saved(&self) -> Result<(), String> {
        let Some(asks) = &self.0 else {
            return Ok(());
        };
        let (reply, answer) = oneshot::channel();
        let stopping = || "coordinator is stopping; ask again in a moment".to_owned();
        asks.send(reply).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_coordinator_alone_waits_for_nothing() {
        assert_eq!(Saver::default().saved().await, Ok(()));
    }

    #[tokio::test]
    async fn a_saver_hears_what_came_of_its_ask_and_that_nobody_keeps_any_more() {
        let (saver, mut asks) = Saver::new();
        for told in [Ok(()), Err("volume is full".to_owned())] {
            let (said, ()) = tokio::join!(saver.saved(), async {
                asks.recv().await.unwrap().send(told.clone()).unwrap();
            });
            assert_eq!(said, told);
        }
        let (said, ()) = tokio::join!(saver.saved(), async {
            drop(asks.recv().await);
        });
        assert!(said.unwrap_err().contains("is stopping"));
        drop(asks);
        assert!(saver.saved().await.unwrap_err().contains("is stopping"));
    }
}
