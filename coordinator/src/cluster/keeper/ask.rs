//! What the keeper is asked: by the API server before a label is written, by runners, and by operators.

use tokio::sync::oneshot;

use super::gating::Drain;
use crate::{
    cluster::{index::ObjectKey, review::Change},
    view::{PodView, PoolView},
};

/// What is asked.
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
    /// Pause this ImagePrePull, or let it go on.
    Pause {
        key: ObjectKey,
        paused: bool,
        reply: Paused,
    },
}

/// Hears whether an ImagePrePull was paused; `false`: there is none. An error is text for people.
pub(crate) type Paused = oneshot::Sender<Result<bool, String>>;

/// The answer to a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may be written.
    Allowed,
    /// It may not, and why.
    Refused(String),
}
