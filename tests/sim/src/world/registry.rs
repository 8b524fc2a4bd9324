//! Whether the registry answers, and what its refusals do to a fetch.

use rollout::stage::event::Trouble;

use crate::network::Nanos;

/// Whether it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Registry {
    #[default]
    Up,
    Down,
    /// New requests are refused until then, with a `Retry-After`; the first was refused at `told_at`.
    Throttles {
        until: Nanos,
        told_at: Option<Nanos>,
    },
}

/// What the registry did to a fetch since it last gave it something.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) since: Nanos,
    pub(super) tries: u32,
    pub(super) again_at: Nanos,
    pub(super) wish_until: Option<Nanos>,
}

impl Refused {
    /// Whether its next attempt is still to come.
    pub(super) const fn waits(&self, now: Nanos) -> bool {
        self.again_at > now
    }

    /// As it is reported.
    pub(super) fn trouble(&self, now: Nanos) -> Trouble {
        let left = self.wish_until.map(|until| until.saturating_sub(now));
        match left.filter(|left| *left > 0) {
            Some(left) => Trouble::Throttled(core::time::Duration::from_nanos(left)),
            None => Trouble::Failing,
        }
    }
}
