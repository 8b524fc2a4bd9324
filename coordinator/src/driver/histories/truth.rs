//! The true state of a history's host, and what the host reports.

use super::*;

/// The true state of a host.
pub(super) struct Truth {
    pub(super) name: String,
    pub(super) alive: bool,
    pub(super) session: Option<(u64, Receiver<Arc<message::Order>>)>,
    /// Since when the host has had no session, as far as the coordinator knows; `None`: the coordinator hasn't heard of
    /// the host since its start.
    pub(super) lost_at: Option<u64>,
    pub(super) ordered: bool,
    pub(super) state: HostState,
    pub(super) held: u64,
    /// The most bytes that were held in this staging. The number that is shown doesn't fall below it.
    pub(super) most: u64,
    /// The most of these bytes of which this coordinator was told since its start.
    pub(super) told: u64,
    pub(super) begun_at_ms: u64,
    pub(super) rate: u64,
    pub(super) cause: &'static str,
    pub(super) failed: Option<(&'static str, &'static str)>,
    pub(super) moved_at: u64,
    pub(super) received: u64,
    pub(super) reported_at: u64,
    pub(super) dirty: bool,
    pub(super) leases: Vec<Vec<u8>>,
    /// The number of this session's newest order about names.
    pub(super) names: u64,
}

impl Truth {
    pub(super) fn new(number: usize) -> Self {
        Self {
            name: format!("mini-{number:04}"),
            alive: true,
            session: None,
            lost_at: None,
            ordered: false,
            state: HostState::Waiting,
            held: 0,
            most: 0,
            told: 0,
            begun_at_ms: 0,
            rate: 0,
            cause: "awaiting_lease",
            failed: None,
            moved_at: 0,
            received: 0,
            reported_at: 0,
            dirty: true,
            leases: Vec::new(),
            names: 0,
        }
    }

    /// A staging begins from nothing.
    pub(super) fn begin(&mut self, now: u64) {
        (self.state, self.held, self.most, self.received) = (HostState::Queued, 0, 0, 0);
        self.told = 0;
        self.begun_at_ms = 1_000_000 + now;
        self.moved_at = now;
        self.dirty = true;
    }

    /// One step of the model. `total` is the image's size in bytes.
    pub(super) fn live(&mut self, now: u64, total: u64) {
        if !self.alive {
            return;
        }
        match self.state {
            HostState::Queued => (self.state, self.dirty) = (HostState::Staging, true),
            HostState::Staging if self.failed.is_some() => {
                (self.state, self.dirty) = (HostState::Failed, true);
            }
            HostState::Failed if self.failed.is_none() => {
                (self.state, self.dirty) = (HostState::Staging, true);
                self.moved_at = now;
            }
            HostState::Staging if self.rate > 0 => {
                let came = (self.rate * STEP_MS / 1_000).min(total - self.held);
                self.held += came;
                self.most = self.most.max(self.held);
                self.received += came / 2;
                (self.moved_at, self.dirty) = (now, true);
                if self.held == total {
                    self.state = HostState::Installing;
                }
            }
            HostState::Installing => (self.state, self.dirty) = (HostState::Present, true),
            _ => {}
        }
    }

    pub(super) fn still_ms(&self, now: u64) -> u64 {
        let still = now - self.moved_at;
        match self.state == HostState::Staging && still >= STANDS_MS {
            true => still,
            false => 0,
        }
    }

    pub(super) fn state(&self, image: &Want, now: u64) -> message::ImageState {
        let state = match self.state {
            HostState::Queued => message::StageState::Queued,
            HostState::Staging => message::StageState::Staging,
            HostState::Installing => message::StageState::Installing,
            HostState::Present => message::StageState::Present,
            HostState::Failed => message::StageState::Failed,
            HostState::Gone | HostState::Waiting => message::StageState::Gone,
        };
        let still_ms = self.still_ms(now);
        let (reason, message) = match self.failed {
            Some((reason, message)) if self.state == HostState::Failed => (reason, message),
            _ if still_ms > 0 => (self.cause, ""),
            _ => ("", ""),
        };
        message::ImageState {
            manifest: image.digest().as_bytes().to_vec(),
            reference: image.references.first().unwrap().clone(),
            state: state.into(),
            reason: reason.into(),
            message: message.into(),
            total_bytes: image.layout.content_bytes(),
            held_bytes: self.held,
            origin_bytes: self.received / 4,
            peer_bytes: self.received - self.received / 4,
            still_ms,
            begun_at_ms: self.begun_at_ms,
            ready_references: match self.state {
                HostState::Present => image.references.iter().cloned().collect(),
                _ => Vec::new(),
            },
            ..message::ImageState::default()
        }
    }

    pub(super) fn images(&self, image: &Want, now: u64) -> Vec<message::ImageState> {
        match self.state {
            HostState::Waiting => Vec::new(),
            _ => vec![self.state(image, now)],
        }
    }
}
