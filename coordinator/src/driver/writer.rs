//! The one writer of the state files. Writes happen in the order in which the driver asks for them. An operator is
//! answered once the change is on the disk.

use std::collections::BTreeMap;

use client::gate::{GateDoneReply, GateReply};
use proto::{Digest, HostId};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::{
    ask::{CancelError, StageError},
    place_ask::PlaceError,
};
use crate::{
    view::{BandwidthRequest, CancelReply, StageReply},
    wants::{Files, KeptPlaces, Place, StateError, Want},
};

/// The most writes that wait: more than operators cause at one time.
pub(crate) const WRITES: usize = 64;

/// Something to write.
#[derive(Debug)]
pub(crate) enum Write {
    /// An image is wanted.
    Want(Box<Want>, Answer<StageReply, StageError>),
    /// An image is still wanted after some of it was cancelled.
    Less(Box<Want>, Answer<CancelReply, CancelError>),
    /// An image isn't wanted any more.
    Drop(Digest, Answer<CancelReply, CancelError>),
    /// The limits that operators set.
    Bandwidth(BandwidthRequest, Answer<(), StateError>),
    /// Which hosts have a place under a group's cap.
    Gate(KeptPlaces, GateAnswer),
    /// Where hosts are reached.
    Places(BTreeMap<HostId, Place>),
}

#[cfg(test)]
impl Write {
    /// Answers as if the write had succeeded.
    pub(crate) fn done(self) {
        match self {
            Self::Want(_, answer) => answer.give(Ok(())),
            Self::Less(_, answer) | Self::Drop(_, answer) => answer.give(Ok(())),
            Self::Bandwidth(_, answer) => answer.give(Ok(())),
            Self::Gate(_, answer) => answer.give(Ok(())),
            Self::Places(_) => {}
        }
    }
}

/// An answer that waits for its write.
#[derive(Debug)]
pub(crate) struct Answer<T, E>(Option<Box<Waiting<T, E>>>);

/// The channel to whoever waits, and the answer.
type Waiting<T, E> = (oneshot::Sender<Result<T, E>>, T);

impl<T, E: From<StateError>> Answer<T, E> {
    pub(crate) fn new(to: oneshot::Sender<Result<T, E>>, value: T) -> Self {
        Self(Some(Box::new((to, value))))
    }

    /// An answer for which nobody waits.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    fn give(self, written: Result<(), StateError>) {
        if let Err(error) = &written {
            error!(%error, "state can't be written; a restart will forget the last change");
        }
        if let Some(waiting) = self.0 {
            let (to, value) = *waiting;
            // The asker may have gone.
            drop(to.send(written.map(|()| value).map_err(E::from)));
        }
    }
}

/// Who waits for a write of places.
#[derive(Debug)]
pub(crate) enum GateAnswer {
    /// Who asked for places.
    Open(Answer<GateReply, PlaceError>),
    /// Who gave one back.
    Done(Answer<GateDoneReply, PlaceError>),
    /// Nobody: a place's time was over.
    None,
}

impl GateAnswer {
    fn give(self, written: Result<(), StateError>) {
        match self {
            Self::Open(answer) => answer.give(written),
            Self::Done(answer) => answer.give(written),
            Self::None => Answer::<(), StateError>::none().give(written),
        }
    }
}

/// Writes until the driver is gone. A write that panics ends the writer, and with it the program. The next start reads
/// what is on the disk.
pub(crate) async fn write(files: Files, mut queue: mpsc::Receiver<Write>) {
    while let Some(next) = queue.recv().await {
        let files = files.clone();
        let written = tokio::task::spawn_blocking(move || write_one(&files, next)).await;
        if let Err(error) = written {
            error!(%error, "writing state was cut short");
            return;
        }
    }
}

fn write_one(files: &Files, write: Write) {
    match write {
        Write::Want(want, answer) => answer.give(files.keep(&want)),
        Write::Less(want, answer) => answer.give(files.keep(&want)),
        Write::Drop(image, answer) => answer.give(files.drop(&image)),
        Write::Bandwidth(limits, answer) => answer.give(files.keep_bandwidth(limits)),
        Write::Gate(places, answer) => answer.give(files.keep_places(&places)),
        Write::Places(places) => {
            Answer::<(), StateError>::none().give(files.keep_roster(&places));
        }
    }
}
