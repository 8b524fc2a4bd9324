//! Progress on stderr while `--wait` waits: a bar per host on a terminal, a line every few seconds elsewhere.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::{tell, text};
use crate::view::{HostState, ImageView};

/// Lines where there is no terminal are this far apart.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Bars at most; a larger fleet is summed up in one.
const MAX_BARS: usize = 40;
/// The whole fleet's bar.
const ALL: &str = "all hosts";

/// What is on show.
pub(super) enum Show {
    Bars {
        all: MultiProgress,
        bars: BTreeMap<String, ProgressBar>,
    },
    Lines {
        next: Instant,
    },
}

impl Show {
    pub(super) fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(4)),
                bars: BTreeMap::new(),
            }
        } else {
            Self::Lines {
                next: Instant::now(),
            }
        }
    }

    pub(super) fn update(&mut self, image: &ImageView) {
        match self {
            Self::Bars { all, bars } => draw(all, bars, image),
            Self::Lines { next } => {
                if Instant::now() >= *next {
                    *next = Instant::now() + LINE_EVERY;
                    tell(&line(image));
                }
            }
        }
    }

    pub(super) fn finish(&mut self, image: &ImageView) {
        match self {
            Self::Bars { all, bars } => {
                draw(all, bars, image);
                for bar in bars.values() {
                    bar.abandon();
                }
            }
            Self::Lines { .. } => tell(&line(image)),
        }
    }
}

fn draw(all: &MultiProgress, bars: &mut BTreeMap<String, ProgressBar>, image: &ImageView) {
    if image.hosts.len() > MAX_BARS {
        let held = image.hosts.iter().map(|host| host.held_bytes).sum();
        let total = image.hosts.iter().map(|host| host.total_bytes).sum();
        let bytes = image.bytes();
        let message = format!(
            "{}/{} hosts; registry {}, peers {}, local {}",
            image.hosts_present,
            image.hosts_selected,
            text::bytes(bytes.origin),
            text::bytes(bytes.peers),
            text::bytes(bytes.local)
        );
        set(all, bars, ALL, held, total, message);
        return;
    }
    for host in &image.hosts {
        let held = if host.state == HostState::Present {
            host.total_bytes
        } else {
            host.held_bytes
        };
        set(
            all,
            bars,
            &host.host,
            held,
            host.total_bytes,
            text::progress(host),
        );
    }
}

fn set(
    all: &MultiProgress,
    bars: &mut BTreeMap<String, ProgressBar>,
    name: &str,
    held: u64,
    total: u64,
    message: String,
) {
    let bar = bars.entry(name.to_owned()).or_insert_with(|| {
        let bar = all.add(ProgressBar::new(total));
        if let Ok(style) = ProgressStyle::with_template("{prefix:<20!} {bar:24} {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(name.to_owned());
        bar
    });
    bar.set_length(total);
    // The coordinator may have restarted and not heard of this host yet: a bar doesn't go back.
    bar.set_position(held.max(bar.position()).min(total));
    bar.set_message(message);
}

fn line(image: &ImageView) -> String {
    let held: u64 = image.hosts.iter().map(|host| host.held_bytes).sum();
    let total: u64 = image.hosts.iter().map(|host| host.total_bytes).sum();
    let rate: u64 = image.hosts.iter().map(|host| host.bytes_per_second).sum();
    let bytes = image.bytes();
    let eta = image.hosts.iter().filter_map(|host| host.eta_seconds).max();
    let mut line = format!(
        "{} of {} hosts, {}% of {}, {}/s; registry {}, peers {}, local {}",
        image.hosts_present,
        image.hosts_selected,
        text::percent(held, total),
        text::bytes(total),
        text::bytes(rate),
        text::bytes(bytes.origin),
        text::bytes(bytes.peers),
        text::bytes(bytes.local)
    );
    if let Some(eta) = eta {
        line.push_str(&format!("; {} to go", text::seconds(eta)));
    }
    if let Some(reason) = &image.reason {
        line.push_str(&format!("; {reason}"));
    }
    line.push('\n');
    line
}
