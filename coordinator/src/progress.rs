//! The progress of one image on one host, made from reports so that it is fit to show: numbers that don't fall while
//! one staging lasts, a rate that becomes 0 when nothing moves, and words that don't outlive what they are about.
//!
//! An agent counts bytes since its own start, drops chunks that were proved false, and may lie. The numbers here only
//! grow while one staging lasts, and never pass the image's size. They fall only where a host finds damage in an image
//! that it had whole. The numbers begin anew with another staging, which has another beginning by the host's word, and
//! after the image was gone.

use std::{collections::VecDeque, time::Duration};

use proto::{Digest, Moment, ToldReason, figure::standing_still, image::Blob, message};
use rollout::recipes::Making;

use crate::view::{HostProgress, HostState, SourceBytes};

/// The rate counts what came within this time. The time is long enough for chunks of a slow line, and short enough that
/// the rate and the time to go vanish a few seconds after the last chunk.
const WINDOW: Duration = Duration::from_secs(5);
/// The shortest time between two samples of a rate, so that there are few samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// The shortest time over which a rate is computed: over less time, the rate would jump.
const SHORTEST: Duration = Duration::from_secs(1);
/// The most characters of a host's text that are kept.
const MAX_TEXT: usize = 500;

/// The progress of one image on one host.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) state: HostState,
    reason: Option<ToldReason>,
    message: String,
    /// When the host last said that nothing comes, and for how long that had been so by then.
    still: Option<(Moment, Duration)>,
    /// The staging to which the numbers belong: its beginning in Unix milliseconds, by the host's word; 0 where the
    /// host doesn't say.
    begun_at_ms: u64,
    /// The size of the image's contents: from the layout where the coordinator knows it, else by the host's word.
    total_bytes: u64,
    held_bytes: u64,
    origin: Counter,
    peers: Counter,
    local: Counter,
    upload: Counter,
    written: Counter,
    rate: Rate,
    /// What came from the registry, and from the network in all.
    from_origin: Rate,
    from_network: Rate,
    presence: Option<(Moment, u64)>,
    golden: bool,
    /// The recipe by which the host proves chunks, with its bytes, where the host says how many they are.
    recipe: Option<(Digest, Option<u64>)>,
    /// The recipe that the host found not to fit its copy of the image.
    refused: Option<Digest>,
    /// What the host says of the making of a recipe.
    making: Making,
    failed_since: Option<Moment>,
}

/// How many bytes were held at which moment, as far back as the rate looks.
#[derive(Clone, Debug, Default)]
struct Rate {
    samples: VecDeque<(Moment, u64)>,
}

impl Rate {
    fn sample(&mut self, now: Moment, held: u64) {
        // the last sample before the window says what was held at the window's beginning, so it stays
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| now.since(*at) >= WINDOW)
        {
            self.samples.pop_front();
        }
        // the first sample stays as it is: everything is measured against it
        let many = self.samples.len() > 1;
        match self.samples.back_mut() {
            Some((at, last)) if many && now.since(*at) < SAMPLE_EVERY => *last = held,
            _ => self.samples.push_back((now, held)),
        }
    }

    /// As [`bytes_per_second`](Self::bytes_per_second), once the samples fill the window: of less time, a burst would
    /// pass for a rate.
    fn steady(&self, now: Moment) -> Option<u64> {
        let (first, _) = self.samples.front()?;
        (now.since(*first) >= WINDOW).then(|| self.bytes_per_second(now))
    }

    /// Bytes per second within the window that ends now; 0 when nothing came. Where a host was silent, the bytes count
    /// over the time since its report before.
    fn bytes_per_second(&self, now: Moment) -> u64 {
        let Some(first) = self.samples.front() else {
            return 0;
        };
        let (_, last) = self.samples.back().copied().unwrap_or_default();
        let begins = now - WINDOW;
        let before = self.samples.iter().take_while(|(at, _)| *at <= begins);
        let (since, held) = before.last().copied().unwrap_or(*first);
        let came = last.saturating_sub(held);
        let span = now.since(since).max(SHORTEST);
        let rate = u128::from(came) * 1_000_000 / span.as_micros();
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// A count that never falls. When its source restarts from less, the count continues from its last value.
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

const fn making(report: &message::ImageState) -> Making {
    Making {
        runs: report.makes_recipe,
        failed: report.recipes_failed,
    }
}

/// The recipe in a message, with its bytes, where the host says how many they are.
fn recipe(report: &message::ImageState) -> Option<(Digest, Option<u64>)> {
    let digest = message::digest(&report.recipe).ok()?;
    Some((digest, Some(report.recipe_bytes).filter(|bytes| *bytes > 0)))
}

/// The state in a message. A state that this version doesn't know, from a newer host, counts as waiting.
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
            reason: None,
            message: String::new(),
            still: None,
            begun_at_ms: 0,
            total_bytes: 0,
            held_bytes: 0,
            origin: Counter::default(),
            peers: Counter::default(),
            local: Counter::default(),
            upload: Counter::default(),
            written: Counter::default(),
            from_origin: Rate::default(),
            from_network: Rate::default(),
            rate: Rate::default(),
            presence: None,
            golden: false,
            recipe: None,
            refused: None,
            making: Making::default(),
            failed_since: None,
        }
    }

    /// Takes in a report. `total_bytes` is the size by the layout, where the coordinator knows it.
    pub(crate) fn report(
        &mut self,
        now: Moment,
        report: &message::ImageState,
        total_bytes: Option<u64>,
    ) {
        let state = state(report.state);
        let begun = report.begun_at_ms;
        if state == HostState::Gone
            || self.state == HostState::Gone
            || (begun != 0 && self.begun_at_ms != 0 && begun != self.begun_at_ms)
        {
            // Another staging begins from nothing, so its numbers do too.
            *self = Self::new();
        }
        if begun != 0 {
            self.begun_at_ms = begun;
        }
        let gained = report.held_bytes > self.held_bytes;
        self.failed_since = match (state, self.failed_since) {
            (HostState::Failed, since) => since.or(Some(now)),
            // an attempt that brings nothing continues the same failure
            (HostState::Queued | HostState::Staging | HostState::Installing, since) if !gained => {
                since
            }
            _ => None,
        };
        if self.state == HostState::Present
            && !matches!(state, HostState::Present | HostState::Installing)
        {
            // The image was whole and isn't any more. What is held now counts, not what was held before.
            self.held_bytes = 0;
        }
        if state == HostState::Staging && self.state != HostState::Staging {
            // what the host had before, or copied from another image, doesn't count in the rate
            self.rate = Rate::default();
        }
        self.state = state;
        let reason = clean(&report.reason);
        self.reason = (!reason.is_empty()).then(|| reason.as_str().into());
        self.message = clean(&report.message);
        self.still = (report.still_ms > 0).then(|| (now, Duration::from_millis(report.still_ms)));
        self.total_bytes = total_bytes.unwrap_or(report.total_bytes);
        let held = match state {
            HostState::Present => self.total_bytes,
            HostState::Gone => 0,
            _ => report.held_bytes.min(self.total_bytes),
        };
        // A host that lacks something of an image that it had whole has found damage. So the number falls here,
        // whatever was shown before.
        let is_whole = self.total_bytes > 0 && self.held_bytes >= self.total_bytes;
        self.held_bytes = match state {
            HostState::Staging if is_whole => held,
            _ => self.held_bytes.max(held),
        };
        self.origin.report(report.origin_bytes);
        self.peers.report(report.peer_bytes);
        self.local.report(report.local_bytes);
        self.upload.report(report.upload_bytes);
        self.written.report(report.written_bytes);
        self.golden = report.golden;
        self.recipe = recipe(report);
        self.refused = message::digest(&report.recipe_refused).ok();
        self.making = making(report);
        self.presence = (state == HostState::Present).then_some((now, report.presence_age_ms));
        self.rate.sample(now, self.held_bytes);
        let origin = self.origin.value();
        self.from_origin.sample(now, origin);
        let network = origin.saturating_add(self.peers.value());
        self.from_network.sample(now, network);
    }

    /// Whether a report says that the image is still present as it was.
    pub(crate) fn confirms(&self, report: &message::ImageState) -> bool {
        self.state == HostState::Present
            && state(report.state) == HostState::Present
            && self.begun_at_ms == report.begun_at_ms
            && self.golden == report.golden
            && self.recipe == recipe(report)
            && self.refused == message::digest(&report.recipe_refused).ok()
            && self.making == making(report)
    }

    /// The recipe that the host has of the image, if it says how many bytes that has.
    pub(crate) fn recipe(&self) -> Option<Blob> {
        let (digest, size) = self.recipe?;
        Some(Blob {
            digest,
            size: size?,
        })
    }

    /// The recipe that the host found not to fit its copy of the image.
    pub(crate) const fn refused_recipe(&self) -> Option<Digest> {
        self.refused
    }

    /// What the host says of the making of a recipe of the image.
    pub(crate) const fn making(&self) -> Making {
        self.making
    }

    /// Somebody has the host try again at once. The time of a failure begins anew.
    pub(crate) const fn urged(&mut self, now: Moment) {
        if self.failed_since.is_some() {
            self.failed_since = Some(now);
        }
    }

    /// The host's session is lost. What the host holds stays on show, and what it was doing doesn't.
    pub(crate) fn disconnected(&mut self) {
        self.rate = Rate::default();
        self.from_origin = Rate::default();
        self.from_network = Rate::default();
        self.still = None;
        self.reason = None;
        self.message.clear();
    }

    /// Bytes per second from the registry and from the network in all, if they have come for long enough to tell.
    pub(crate) fn network_rates(&self, now: Moment) -> Option<(u64, u64)> {
        let origin = self.from_origin.steady(now)?;
        Some((origin, self.from_network.steady(now)?))
    }

    pub(crate) const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(crate) fn view(&self, now: Moment, host: &str, connected: bool) -> HostProgress {
        let staging = connected && self.state == HostState::Staging;
        let still = self.still.filter(|_| connected);
        // a host that says that nothing comes knows it before the window has passed
        let rate = match staging && still.is_none() {
            true => self.rate.bytes_per_second(now),
            false => 0,
        };
        // a host of an earlier version gives the reason of one content, even while other contents come
        let stands = !staging || rate == 0;
        let message = match still {
            Some((at, since)) => standing_still(&self.message, since + now.since(at)),
            None => self.message.clone(),
        };
        let left = self.total_bytes.saturating_sub(self.held_bytes);
        HostProgress {
            host: host.to_owned(),
            state: self.state,
            reason: self.reason.clone().filter(|_| stands),
            message: if stands { message } else { String::new() },
            connected,
            total_bytes: self.total_bytes,
            held_bytes: self.held_bytes,
            bytes: SourceBytes {
                origin: self.origin.value(),
                peers: self.peers.value(),
                local: self.local.value(),
            },
            upload_bytes: self.upload.value(),
            written_bytes: self.written.value(),
            predicted: None,
            measured: None,
            bytes_per_second: rate,
            eta_seconds: left.checked_div(rate),
            began_at: (self.begun_at_ms > 0).then_some(self.begun_at_ms / 1_000),
            presence_age_ms: self
                .presence
                .map(|(at, age)| age.saturating_add(proto::millis(now.since(at)))),
            golden: self.golden,
            recipe: self.recipe.map(|(recipe, _)| recipe.to_string()),
            failed_seconds: self
                .failed_since
                .filter(|_| self.state == HostState::Failed)
                .map(|since| now.since(since).as_secs()),
        }
    }
}

/// A host's text, cut short and without control characters, because it appears on people's terminals.
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
    fn what_is_found_damaged_is_not_shown_as_whole() {
        let (staging, present) = (message::StageState::Staging, message::StageState::Present);
        let mut progress = Progress::new();
        progress.report(at(1), &report(present, 100, 5), Some(100));
        // the host doubts the image, and a moment later finds a bad chunk
        progress.report(at(2), &report(staging, 100, 5), Some(100));
        assert_eq!(progress.view(at(2), "h", true).held_bytes, 100);
        progress.report(at(3), &report(staging, 90, 5), Some(100));
        assert_eq!(progress.view(at(3), "h", true).held_bytes, 90);
        // a restart of the agent makes the number fall no further
        progress.report(at(4), &report(staging, 80, 5), Some(100));
        assert_eq!(progress.view(at(4), "h", true).held_bytes, 90);
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
    fn rate_and_eta_follow_what_moves_and_end_with_it() {
        let mut progress = Progress::new();
        let staging = message::StageState::Staging;
        for second in 0..=10 {
            let report = report(staging, second * 5, 0);
            progress.report(at(second), &report, Some(100));
        }
        let rate = |progress: &Progress, second| {
            let view = progress.view(at(second), "h", true);
            (view.bytes_per_second, view.eta_seconds)
        };
        assert_eq!(rate(&progress, 10), (5, Some(10)));
        // no report comes any more
        assert_eq!(rate(&progress, 12), (3, Some(16)));
        assert_eq!(rate(&progress, 14), (1, Some(50)));
        assert_eq!(rate(&progress, 15), (0, None));
        assert_eq!(rate(&progress, 1_000), (0, None));
        // the same with reports that bring nothing new
        let mut same = progress.clone();
        for second in 11..=15 {
            same.report(at(second), &report(staging, 50, 0), Some(100));
        }
        assert_eq!(rate(&same, 15), (0, None));
        let away = progress.view(at(10), "h", false);
        assert_eq!((away.bytes_per_second, away.eta_seconds), (0, None));
    }

    #[test]
    fn what_was_here_before_came_at_no_rate() {
        let mut progress = Progress::new();
        progress.report(at(1), &report(message::StageState::Queued, 0, 0), Some(100));
        // layers are copied from another image at the moment when staging begins
        for (second, held) in [(2, 60), (3, 61)] {
            progress.report(
                at(second),
                &report(message::StageState::Staging, held, 0),
                Some(100),
            );
        }
        assert_eq!(progress.view(at(3), "h", true).bytes_per_second, 1);
    }

    #[test]
    fn a_rate_is_measured_by_few_samples_however_often_a_host_reports() {
        let mut progress = Progress::new();
        for report_ in 0..5_000u64 {
            let now = Moment::START + Duration::from_millis(5 * report_);
            let report = report(message::StageState::Staging, report_ * 50, 0);
            progress.report(now, &report, Some(1_000_000));
            assert!(progress.rate.samples.len() <= 24);
        }
        let now = Moment::START + Duration::from_secs(25);
        let rate = progress.view(now, "h", true).bytes_per_second;
        assert!((9_500..=10_500).contains(&rate), "{rate}");
    }

    #[test]
    fn what_came_while_a_host_was_silent_counts_over_all_of_that_time() {
        let mut progress = Progress::new();
        let staging = message::StageState::Staging;
        progress.report(at(0), &report(staging, 0, 0), Some(100_000));
        progress.report(at(5), &report(staging, 500, 500), Some(100_000));
        assert_eq!(progress.network_rates(at(5)), Some((100, 100)));
        // its reports were held up for 20 s, and its bytes weren't
        progress.report(at(25), &report(staging, 2_500, 2_500), Some(100_000));
        assert_eq!(progress.network_rates(at(25)), Some((100, 100)));
        assert_eq!(progress.view(at(25), "h", true).bytes_per_second, 100);
        assert_eq!(progress.network_rates(at(31)), Some((0, 0)));
    }

    #[test]
    fn a_standstill_counts_on_and_has_neither_rate_nor_time_to_go() {
        let mut progress = Progress::new();
        let staging = message::StageState::Staging;
        progress.report(at(0), &report(staging, 0, 0), Some(100));
        progress.report(at(1), &report(staging, 40, 0), Some(100));
        let mut still = report(staging, 40, 0);
        (still.reason, still.still_ms) = ("throttled".into(), 3_000);
        progress.report(at(4), &still, Some(100));
        let shown = progress.view(at(9), "h", true);
        assert_eq!(shown.reason.as_deref(), Some("throttled"));
        assert_eq!(shown.message, "no progress for 8 s");
        assert_eq!((shown.bytes_per_second, shown.eta_seconds), (0, None));
        // bytes come again
        progress.report(at(10), &report(staging, 50, 0), Some(100));
        let shown = progress.view(at(10), "h", true);
        assert_eq!((shown.reason, shown.message.as_str()), (None, ""));
        assert!(shown.bytes_per_second > 0);
        // nothing is said for a host without a session
        progress.report(at(14), &still, Some(100));
        progress.disconnected();
        let shown = progress.view(at(20), "h", false);
        assert_eq!((shown.reason, shown.message.as_str()), (None, ""));
        assert_eq!(shown.held_bytes, 50);
    }

    #[test]
    fn an_earlier_hosts_reason_of_one_content_isnt_shown_while_others_come() {
        let mut progress = Progress::new();
        for second in 0..5 {
            let mut moving = report(message::StageState::Staging, second * 10, 0);
            moving.reason = "throttled".into();
            moving.message = "no progress for 5 s".into();
            progress.report(at(second), &moving, Some(100));
        }
        let shown = progress.view(at(4), "h", true);
        assert_eq!((shown.reason, shown.message.as_str()), (None, ""));
        assert!(progress.view(at(10), "h", true).reason.is_some());
    }

    #[test]
    fn a_staging_that_begins_anew_has_its_own_numbers() {
        let life = |begun, state, held, origin| message::ImageState {
            begun_at_ms: begun,
            ..report(state, held, origin)
        };
        let (staging, queued) = (message::StageState::Staging, message::StageState::Queued);
        let mut progress = Progress::new();
        progress.report(at(1), &life(7_000, staging, 60, 30), Some(100));
        // the agent was killed, and lost the last second
        progress.report(at(2), &life(7_000, staging, 55, 0), Some(100));
        progress.report(at(3), &life(7_000, staging, 56, 4), Some(100));
        let shown = progress.view(at(3), "h", true);
        assert_eq!((shown.held_bytes, shown.bytes.origin), (60, 34));
        assert_eq!(shown.began_at, Some(7));
        // the image's files were removed while it was staged; this is another staging, though presence was never lost
        progress.report(at(4), &life(0, queued, 0, 0), Some(100));
        progress.report(at(5), &life(9_000, staging, 2, 1), Some(100));
        let shown = progress.view(at(5), "h", true);
        assert_eq!((shown.held_bytes, shown.bytes.origin), (2, 1));
        assert_eq!(shown.began_at, Some(9));
    }

    #[test]
    fn a_host_that_lost_an_image_holds_nothing_of_it_whatever_it_says() {
        let mut progress = Progress::new();
        let present = report(message::StageState::Present, 100, 7);
        progress.report(at(1), &present, Some(100));
        // agents of earlier versions continue their counts
        for state in [
            message::StageState::Gone,
            message::StageState::Queued,
            message::StageState::Staging,
        ] {
            let held = u64::from(state == message::StageState::Gone) * 100;
            progress.report(at(2), &report(state, held, 7), Some(100));
            assert_eq!(progress.view(at(2), "h", true).held_bytes, 0, "{state:?}");
        }
        // the host found rot in an image that was whole
        let mut progress = Progress::new();
        progress.report(at(1), &present, Some(100));
        let mending = report(message::StageState::Staging, 97, 7);
        progress.report(at(2), &mending, Some(100));
        assert_eq!(progress.view(at(2), "h", true).held_bytes, 97);
    }

    #[test]
    fn attempts_that_bring_nothing_are_one_failure_until_somebody_has_it_try_again() {
        use message::StageState::{Failed, Installing, Queued, Staging};
        let mut progress = Progress::new();
        let mut failed = |seconds, state, held| {
            progress.report(at(seconds), &report(state, held, 0), Some(1_000));
            progress.view(at(seconds), "a", true).failed_seconds
        };
        assert_eq!(failed(0, Staging, 100), None);
        assert_eq!(failed(1, Failed, 100), Some(0));
        // the host tries again by itself
        assert_eq!(failed(6, Queued, 0), None);
        assert_eq!(failed(6, Staging, 100), None);
        assert_eq!(failed(7, Failed, 100), Some(6));
        // the image's links in tart's cache can't be made, again and again
        assert_eq!(failed(8, Installing, 100), None);
        assert_eq!(failed(9, Failed, 100), Some(8));
        // the attempt brought something
        assert_eq!(failed(17, Staging, 200), None);
        assert_eq!(failed(18, Failed, 200), Some(0));
        assert_eq!(failed(48, Failed, 200), Some(30));
        progress.urged(at(50));
        let seconds = |progress: &Progress, now| progress.view(at(now), "a", true).failed_seconds;
        assert_eq!(seconds(&progress, 50), Some(0));
        assert_eq!(seconds(&progress, 59), Some(9));
        let mut well = Progress::new();
        well.urged(at(50));
        assert_eq!(seconds(&well, 51), None);
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
