//! Progress on stderr while an image is read: a bar on a terminal, elsewhere a line every few seconds.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::figure::{Bytes, Span, percent};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::say::tell;

/// The time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How much was read.
#[derive(Debug)]
pub(super) struct Progress {
    count: Count,
    lines: Option<Interval>,
    began: Instant,
}

/// Counts the bytes of one reader. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Count(ProgressBar);

impl Count {
    /// Notes bytes that were read.
    pub(super) fn add(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// Tells something about the reading.
    pub(super) fn tell(&self, text: &str) {
        self.0.suspend(|| tell(&format!("{text}\n")));
    }
}

impl Progress {
    /// Nothing of so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let draws = !dumb && std::io::stderr().is_terminal();
        let target = match draws {
            true => ProgressDrawTarget::stderr_with_hz(4),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(bytes), target);
        let template = "{wide_bar} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let lines = (!draws).then(|| {
            let mut lines = interval(LINE_EVERY);
            lines.set_missed_tick_behavior(MissedTickBehavior::Skip);
            lines.reset();
            lines
        });
        Self {
            count: Count(bar),
            lines,
            began: Instant::now(),
        }
    }

    /// Counts for a reader.
    pub(super) fn count(&self) -> Count {
        self.count.clone()
    }

    /// Waits until the next line is due, which never comes on a terminal. Cancel safe.
    pub(super) async fn due(&mut self) {
        match &mut self.lines {
            Some(lines) => {
                lines.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Tells a line.
    pub(super) fn line(&self) {
        let bar = &self.count.0;
        let (read, all) = (bar.position(), bar.length().unwrap_or_default());
        tell(&line(read, all, self.began.elapsed()));
    }

    /// The bytes that were read.
    pub(super) fn read_bytes(&self) -> u64 {
        self.count.0.position()
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.count.0.finish_and_clear();
    }
}

fn line(read: u64, all: u64, since: Duration) -> String {
    let share = percent(read, all);
    let so_far = format!("read {} of {}, {share} %", Bytes(read), Bytes(all));
    let millis = since.as_millis().max(1);
    let rate = u64::try_from(u128::from(read) * 1_000 / millis).unwrap_or(u64::MAX);
    match all.saturating_sub(read).checked_div(rate) {
        Some(left) => format!(
            "{so_far}, {}/s, {} left\n",
            Bytes(rate),
            Span::seconds(left)
        ),
        None => format!("{so_far}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_how_fast_and_how_long_still() {
        let second = Duration::from_secs(1);
        assert_eq!(
            line(250_000_000, 1_000_000_000, second),
            "read 250.0 MB of 1.0 GB, 25 %, 250.0 MB/s, 3 s left\n"
        );
        assert_eq!(line(0, 10, second), "read 0 B of 10 B, 0 %\n");
        assert_eq!(line(0, 10, Duration::ZERO), "read 0 B of 10 B, 0 %\n");
    }
}
