//! One image on one host as it was reported, made fit to show: numbers that never fall, a smoothed rate.
//!
//! An agent counts bytes since its own start, drops chunks that were proved false, and may lie. What is shown here only
//! grows while the image is being staged, and never passes the image's size. It starts anew when presence was lost.

use std::time::Duration;

use proto::{Moment, message};

use crate::view::{HostProgress, HostState, SourceBytes};

/// The rate is smoothed over about this time: long enough for bars that don't jump, short enough to show a stall.
const SMOOTHING: Duration = Duration::from_secs(5);
/// Longest text of a host that is kept.
const MAX_TEXT: usize = 500;

/// An image on a host.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) state: HostState,
    reason: String,
    message: String,
    /// What the image's layout says, where it is known; else what the host says.
    total_bytes: u64,
    held_bytes: u64,
    origin: Counter,
    peers: Counter,
    local: Counter,
    upload: Counter,
    bytes_per_second: f64,
    measured: Option<(Moment, u64)>,
    presence: Option<(Moment, u64)>,
    golden: bool,
    failed_since: Option<Moment>,
}

/// A count that goes on where it stood when its source started again from less.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    base: u64,
    last: u64,
}

impl Counter {
    fn report(&mut self, value: u64) {
        if value < self.last {
            self.base = self.base.saturating_add(self.last);
        }
        self.last = value;
    }

    const fn value(self) -> u64 {
        self.base.saturating_add(self.last)
    }
}

/// The state of a message; hosts of a newer version may have others.
pub(crate) fn state(raw: i32) -> HostState {
    match message::StageState::try_from(raw) {
        Ok(message::StageState::Queued) => HostState::Queued,
        Ok(message::StageState::Staging) => HostState::Staging,
        Ok(message::StageState::Installing) => HostState::Installing,
        Ok(message::StageState::Present) => HostState::Present,
        Ok(message::StageState::Failed) => HostState::Failed,
        Ok(message::StageState::Gone) => HostState::Gone,
        Ok(message::StageState::Unspecified) | Err(_) => HostState::Waiting,
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            state: HostState::Waiting,
            reason: String::new(),
            message: String::new(),
            total_bytes: 0,
            held_bytes: 0,
            origin: Counter::default(),
            peers: Counter::default(),
            local: Counter::default(),
            upload: Counter::default(),
            bytes_per_second: 0.0,
            measured: None,
            presence: None,
            golden: false,
            failed_since: None,
        }
    }

    /// Takes a report in. `total_bytes` is what the layout says, where the coordinator knows it.
    pub(crate) fn report(
        &mut self,
        now: Moment,
        report: &message::ImageState,
        total_bytes: Option<u64>,
    ) {
        let state = state(report.state);
        if state == HostState::Gone || self.state == HostState::Gone {
            // Another staging begins from nothing, and its numbers too.
            *self = Self::new();
        }
        self.failed_since = match (state, self.failed_since) {
            (HostState::Failed, None) => Some(now),
            (HostState::Failed, since) => since,
            _ => None,
        };
        self.state = state;
        self.reason = clean(&report.reason);
        self.message = clean(&report.message);
        self.total_bytes = total_bytes.unwrap_or(report.total_bytes);
        let held = if state == HostState::Present {
            self.total_bytes
        } else {
            report.held_bytes.min(self.total_bytes)
        };
        self.held_bytes = self.held_bytes.max(held);
        self.origin.report(report.origin_bytes);
        self.peers.report(report.peer_bytes);
        self.local.report(report.local_bytes);
        self.upload.report(report.upload_bytes);
        self.golden = report.golden;
        self.presence = (state == HostState::Present).then_some((now, report.presence_age_ms));
        self.measure(now);
    }

    /// Forgets that the host was heard of: its session is lost. What it holds stays on show.
    pub(crate) fn disconnected(&mut self) {
        self.bytes_per_second = 0.0;
        self.measured = None;
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "a rate for people; bytes are far below 2^52"
    )]
    fn measure(&mut self, now: Moment) {
        let Some((before, held)) = self.measured else {
            self.measured = Some((now, self.held_bytes));
            return;
        };
        let elapsed = now.since(before);
        if elapsed < Duration::from_millis(200) {
            return;
        }
        let moved = self.held_bytes.saturating_sub(held) as f64;
        let rate = moved / elapsed.as_secs_f64();
        let weight = 1.0 - (-elapsed.as_secs_f64() / SMOOTHING.as_secs_f64()).exp();
        self.bytes_per_second = if self.bytes_per_second == 0.0 {
            rate
        } else {
            self.bytes_per_second + weight * (rate - self.bytes_per_second)
        };
        self.measured = Some((now, self.held_bytes));
    }

    pub(crate) const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the rate is a positive number far below 2^63; a cast saturates"
    )]
    pub(crate) fn view(&self, now: Moment, host: &str, connected: bool) -> HostProgress {
        let moving = connected && self.state == HostState::Staging;
        // A host that stopped reporting doesn't keep its rate.
        let silent = self
            .measured
            .is_some_and(|(at, _)| now.since(at) > 2 * SMOOTHING);
        let rate = if moving && !silent {
            self.bytes_per_second as u64
        } else {
            0
        };
        let left = self.total_bytes.saturating_sub(self.held_bytes);
        HostProgress {
            host: host.to_owned(),
            state: self.state,
            reason: (!self.reason.is_empty()).then(|| self.reason.clone()),
            message: self.message.clone(),
            connected,
            total_bytes: self.total_bytes,
            held_bytes: self.held_bytes,
            bytes: SourceBytes {
                origin: self.origin.value(),
                peers: self.peers.value(),
                local: self.local.value(),
            },
            upload_bytes: self.upload.value(),
            bytes_per_second: rate,
            eta_seconds: left.checked_div(rate).filter(|_| moving),
            presence_age_ms: self.presence.map(|(at, age)| {
                age.saturating_add(u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX))
            }),
            golden: self.golden,
            failed_seconds: self.failed_since.map(|since| now.since(since).as_secs()),
        }
    }
}

/// A host's text, short and without control characters: it ends on people's terminals.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .take(MAX_TEXT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: message::StageState, held: u64, origin: u64) -> message::ImageState {
        message::ImageState {
            state: state.into(),
            held_bytes: held,
            total_bytes: 100,
            origin_bytes: origin,
            ..Default::default()
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    #[test]
    fn numbers_never_fall_when_an_agent_restarts_or_drops_a_chunk() {
        let mut progress = Progress::new();
        let staging = message::StageState::Staging;
        let mut before = progress.view(at(0), "h", true);
        for (second, held, origin) in [(1, 10, 5), (2, 40, 20), (3, 38, 22), (4, 0, 0), (5, 50, 3)]
        {
            progress.report(at(second), &report(staging, held, origin), Some(100));
            let view = progress.view(at(second), "h", true);
            assert!(
                view.held_bytes >= before.held_bytes && view.bytes.origin >= before.bytes.origin
            );
            before = view;
        }
        assert_eq!(before.held_bytes, 50);
        assert_eq!(before.bytes.origin, 25);
    }

    #[test]
    fn a_host_cannot_claim_more_than_there_is_nor_write_on_terminals() {
        let mut progress = Progress::new();
        let mut lie = report(message::StageState::Staging, u64::MAX, u64::MAX);
        lie.message = "\u{1b}[2J".repeat(1_000);
        progress.report(at(1), &lie, Some(100));
        progress.report(at(2), &lie, Some(100));
        let view = progress.view(at(2), "h", true);
        assert_eq!(view.held_bytes, 100);
        assert!(view.message.len() <= MAX_TEXT && !view.message.contains('\u{1b}'));
    }

    #[test]
    fn rate_and_eta_follow_what_moves_and_end_with_silence() {
        let mut progress = Progress::new();
        for second in 0..=10 {
            let report = report(message::StageState::Staging, second * 5, 0);
            progress.report(at(second), &report, Some(100));
        }
        let view = progress.view(at(10), "h", true);
        assert_eq!((view.bytes_per_second, view.eta_seconds), (5, Some(10)));
        assert_eq!(progress.view(at(21), "h", true).eta_seconds, None);
        assert_eq!(progress.view(at(10), "h", false).bytes_per_second, 0);
    }

    #[test]
    fn presence_that_is_lost_starts_the_numbers_anew() {
        let mut progress = Progress::new();
        progress.report(
            at(1),
            &report(message::StageState::Present, 0, 7),
            Some(100),
        );
        let view = progress.view(at(3), "h", true);
        assert_eq!((view.held_bytes, view.presence_age_ms), (100, Some(2_000)));
        progress.report(at(4), &report(message::StageState::Gone, 0, 7), Some(100));
        progress.report(
            at(5),
            &report(message::StageState::Staging, 1, 0),
            Some(100),
        );
        assert_eq!(progress.view(at(5), "h", true).held_bytes, 1);
    }
}
