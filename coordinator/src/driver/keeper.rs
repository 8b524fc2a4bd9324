//! The one writer of the state files: in the order in which the driver asks, and only then the operator is answered.

use std::collections::BTreeMap;

use proto::{Digest, HostId};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::{
    driver::{CancelError, StageError},
    view::{BandwidthRequest, CancelReply, StageReply},
    wants::{Files, Place, StateError, Want},
};

/// Writes that wait: more operators than ask at one time.
pub(crate) const QUEUE: usize = 64;

/// Something to write.
#[derive(Debug)]
pub(crate) enum Keep {
    Want(Box<Want>, Answer<StageReply, StageError>),
    /// The same, after some of it was cancelled.
    Less(Box<Want>, Answer<CancelReply, CancelError>),
    Drop(Digest, Answer<CancelReply, CancelError>),
    Bandwidth(BandwidthRequest, Answer<(), StateError>),
    Places(BTreeMap<HostId, Place>),
}

#[cfg(test)]
impl Keep {
    /// As if it had been written.
    pub(crate) fn done(self) {
        match self {
            Self::Want(_, answer) => answer.give(Ok(())),
            Self::Less(_, answer) | Self::Drop(_, answer) => answer.give(Ok(())),
            Self::Bandwidth(_, answer) => answer.give(Ok(())),
            Self::Places(_) => {}
        }
    }
}

/// An answer that waits for its write.
#[derive(Debug)]
pub(crate) struct Answer<T, E>(Option<Box<Waiting<T, E>>>);

/// Whom to tell, and what, once it is written.
type Waiting<T, E> = (oneshot::Sender<Result<T, E>>, T);

impl<T, E: From<StateError>> Answer<T, E> {
    pub(crate) fn new(to: oneshot::Sender<Result<T, E>>, value: T) -> Self {
        Self(Some(Box::new((to, value))))
    }

    pub(crate) const fn none() -> Self {
        Self(None)
    }

    fn give(self, written: Result<(), StateError>) {
        if let Err(error) = &written {
            error!(%error, "state can't be written; a restart will forget the last change");
        }
        if let Some(waiting) = self.0 {
            let (to, value) = *waiting;
            // Whoever asked may have gone.
            drop(to.send(written.map(|()| value).map_err(E::from)));
        }
    }
}

/// Writes until the driver is gone.
pub(crate) async fn keep(files: Files, mut queue: mpsc::Receiver<Keep>) {
    while let Some(next) = queue.recv().await {
        let files = files.clone();
        let written = tokio::task::spawn_blocking(move || write(&files, next)).await;
        if let Err(error) = written {
            error!(%error, "writing state was cut short");
        }
    }
}

fn write(files: &Files, keep: Keep) {
    match keep {
        Keep::Want(want, answer) => answer.give(files.keep(&want)),
        Keep::Less(want, answer) => answer.give(files.keep(&want)),
        Keep::Drop(image, answer) => answer.give(files.drop(&image)),
        Keep::Bandwidth(limits, answer) => answer.give(files.keep_bandwidth(limits)),
        Keep::Places(places) => {
            Answer::<(), StateError>::none().give(files.keep_roster(&places));
        }
    }
}
