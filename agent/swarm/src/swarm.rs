//! The swarm itself: state, and how events change it.

use alloc::{collections::VecDeque, vec::Vec};

use proto::{HostKey, Moment};

use crate::{Action, Config, Event, status::Status};

/// One host's part of the swarm.
#[derive(Debug)]
pub struct Swarm {
    me: HostKey,
    config: Config,
    actions: VecDeque<Action>,
}

impl Swarm {
    /// An empty swarm of this host.
    #[must_use]
    pub fn new(me: HostKey, config: Config, seed: u64) -> Self {
        _ = seed;
        Self {
            me,
            config,
            actions: VecDeque::new(),
        }
    }

    /// Takes note of what happened. Any event is legal in any state. `now` never goes back.
    pub fn handle(&mut self, now: Moment, event: Event) {
        _ = (now, event, self.me, &self.config);
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
            contents: Vec::new(),
            peers: 0,
            connected: 0,
            quarantined: Vec::new(),
            backlog_bytes: 0,
            upload_bytes_per_second: 0,
            uploads: 0,
            headless: false,
        }
    }
}
