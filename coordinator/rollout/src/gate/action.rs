//! What the gate wants done.

use super::{PodId, status::Reason};

/// Why a label is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withdrawal {
    /// The node doesn't hold the pool's image (any more).
    PresenceLost,
    /// The Pod runs the pool's image: the pool rolled back. A label left on it would drain it in the next roll,
    /// unasked.
    Current,
}

impl Withdrawal {
    /// Its name, for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PresenceLost => "presence_lost",
            Self::Current => "current",
        }
    }
}

/// What the shell shall do. Each write is answered by [`Event::Written`](super::Event::Written).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the drain label on this Pod.
    Label(PodId),
    /// Take it off again.
    Unlabel(PodId, Withdrawal),
    /// Delete this Pending Pod, and its ServiceAccount.
    Reap(PodId),
    /// Not a write: this Pod could drain but for this. Told once for each change of the reason.
    Blocked(PodId, Reason),
}
