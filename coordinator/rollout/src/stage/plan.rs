//! The plan: state, and how events change it.

use alloc::{collections::VecDeque, vec::Vec};

use proto::Moment;

use super::{Action, Config, Event, status::Status};

/// The coordinator's plan of what is staged where.
#[derive(Debug)]
pub struct Plan {
    config: Config,
    actions: VecDeque<Action>,
}

impl Plan {
    /// A plan of nothing.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        _ = seed;
        Self {
            config,
            actions: VecDeque::new(),
        }
    }

    /// Takes note of what happened. Any event is legal in any state. `now` never goes back.
    pub fn handle(&mut self, now: Moment, event: Event) {
        _ = (now, event, &self.config);
    }

    /// The next thing to do; to be called until `None` after every [`handle`](Self::handle).
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Moment> {
        None
    }

    /// Where everything stands.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        _ = now;
        Status {
            images: Vec::new(),
            leases: Vec::new(),
            quarantined: Vec::new(),
            origin_retry_in: None,
        }
    }
}
