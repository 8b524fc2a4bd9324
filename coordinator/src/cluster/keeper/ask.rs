//! The questions that the keeper answers: the API server's before a label is written, runners', and operators'.

use tokio::sync::oneshot;

use super::gating::Drain;
use crate::{
    cluster::{index::ObjectKey, review::Change},
    view::{PodView, PoolView},
};

/// A question to the keeper, with the channel for its answer.
#[derive(Debug)]
pub(crate) enum Question {
    /// May this Pod get these labels?
    Admit {
        change: Change,
        reply: oneshot::Sender<Admission>,
    },
    /// Shall this Pod leave?
    Drain {
        key: ObjectKey,
        reply: oneshot::Sender<Drain>,
    },
    /// Where do all rolls stand?
    Pools(oneshot::Sender<Vec<PoolView>>),
    /// Why is this Pod blocked, or what may it do?
    Pod {
        key: ObjectKey,
        reply: oneshot::Sender<Option<PodView>>,
    },
    /// Pause this ImagePrePull, or resume it.
    Pause {
        key: ObjectKey,
        paused: bool,
        reply: Paused,
    },
}

/// Receives the result of a pause. `false` means that there is no such ImagePrePull. An error is text for people.
pub(crate) type Paused = oneshot::Sender<Result<bool, String>>;

/// The answer to a request for a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// The label may be written.
    Allowed,
    /// The label may not be written, for this reason.
    Refused(String),
}
