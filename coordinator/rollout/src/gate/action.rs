//! The gate's actions: what it asks the shell to do.

use super::{PodId, status::Reason};

/// Why the gate takes a label back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withdrawal {
    /// The node doesn't hold the pre-pull's image, or doesn't any more.
    PresenceLost,
    /// The Pod runs the pre-pull's image, because the pre-pull rolled back. A label that stays would drain the Pod in
    /// the next roll, without a decision of the gate.
    Current,
}

impl Withdrawal {
    /// The name for metrics and machines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PresenceLost => "presence_lost",
            Self::Current => "current",
        }
    }
}

/// An action for the shell. Each write is answered by [`Event::Written`](super::Event::Written).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the drain label on this Pod.
    Label(PodId),
    /// Take the drain label off this Pod.
    Unlabel(PodId, Withdrawal),
    /// Delete this Pending Pod, and its ServiceAccount.
    Reap(PodId),
    /// This Pod could drain but for this reason. This isn't a write. It is sent once for each change of the reason.
    Blocked(PodId, Reason),
}
