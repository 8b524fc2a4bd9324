//! The text about an image that is waited for. The text is a function of the image as it was last heard, the time
//! since then, and the room on the screen. Nothing here draws, asks or reads a clock.

use std::{collections::BTreeMap, time::Duration};

use client::{
    patience::LINE_FRESH,
    view::{HostProgress, HostState, ImageView, SourceBytes},
};
use proto::figure::{Bytes, Span, percent};

use crate::{
    text,
    width::{middle_cut, wrapped},
};

/// The most columns of a host's name. The middle of a longer name is cut, because the names of one rack differ at the
/// end.
const MAX_NAME: usize = 24;
/// The most and the least columns of a bar. A bar shrinks for the text beside it.
const BAR: (usize, usize) = (24, 8);
/// A screen with at least this many rows has two rows for each sentence about the fleet.
const TALL: usize = 10;
/// The columns that the text beside a bar gets before the bar shrinks: room for a state, a rate and a time to go.
const WORDS: usize = 40;

/// The contact with the coordinator at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// The time since the coordinator's last update.
    pub heard_ago: Duration,
    /// How long the coordinator has been unreachable, and why. `None` while it is reachable.
    pub away: Option<(Duration, String)>,
}

impl Contact {
    /// Whether the last update still describes what moves.
    fn is_fresh(&self) -> bool {
        self.away.is_none() && self.heard_ago < LINE_FRESH
    }

    /// The text about the coordinator. `None` while there is nothing to say. `goes_on` names the work that goes on
    /// without the coordinator.
    pub fn words(&self, goes_on: &str) -> Option<String> {
        let heard = Span(self.heard_ago);
        match &self.away {
            Some((since, why)) => Some(format!(
                "the coordinator can't be reached for {}; {goes_on} goes on; last heard {heard} ago ({why})",
                Span(*since)
            )),
            None if self.is_fresh() => None,
            None => Some(format!("last heard {heard} ago")),
        }
    }
}

/// The room on a screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Characters in a row.
    pub columns: usize,
    /// Rows of text.
    pub rows: usize,
}

/// The last shown numbers of hosts. A coordinator that restarts forgets what it heard, and hosts report again only when
/// they are back. Until then their last numbers are shown. No number falls while one staging lasts.
#[derive(Debug, Default)]
pub struct Memory {
    hosts: BTreeMap<String, HostProgress>,
}

impl Memory {
    /// The image as it is to be shown, with the selected hosts only. Numbers that were shown before don't fall.
    pub fn recall(&mut self, image: &ImageView, hosts: Option<&[String]>) -> ImageView {
        let mut shown = image.clone();
        shown
            .hosts
            .retain(|host| hosts.is_none_or(|hosts| hosts.contains(&host.host)));
        for host in &mut shown.hosts {
            if let Some(before) = self.hosts.get(&host.host)
                && same_staging(before, host)
            {
                host.total_bytes = host.total_bytes.max(before.total_bytes);
                // a host that is known to lack bytes doesn't have the whole image, whatever was shown before
                let damaged = host.state == HostState::Staging
                    && before.held_bytes >= host.total_bytes
                    && host.held_bytes > 0;
                if !damaged {
                    host.held_bytes = host.held_bytes.max(before.held_bytes);
                }
                host.bytes = SourceBytes {
                    origin: host.bytes.origin.max(before.bytes.origin),
                    peers: host.bytes.peers.max(before.bytes.peers),
                    local: host.bytes.local.max(before.bytes.local),
                };
                host.began_at = host.began_at.or(before.began_at);
            }
            self.hosts.insert(host.host.clone(), host.clone());
        }
        // the coordinator's own message is about all hosts that the image is wanted on
        if hosts.is_some()
            && let Some(words) = away(&shown)
        {
            shown.message = words;
        }
        shown
    }
}

/// Whether the host's bytes continue from those before: the image wasn't lost, and no other staging began.
fn same_staging(before: &HostProgress, now: &HostProgress) -> bool {
    let lost = before.state == HostState::Present
        && !matches!(
            now.state,
            HostState::Present | HostState::Installing | HostState::Waiting
        );
    let other = matches!((before.began_at, now.began_at), (Some(a), Some(b)) if a != b);
    !lost && !other && before.state != HostState::Gone && now.state != HostState::Gone
}

/// The most hosts that one sentence names.
const NAMED: usize = 4;

/// The state of the whole fleet in one line.
pub fn line(image: &ImageView, contact: &Contact) -> String {
    let mut line = counts(&image.hosts, contact.is_fresh());
    if let Some(words) = words(image, contact) {
        line.push_str("; ");
        line.push_str(&words);
    }
    line
}

/// The text beside the counts: about an unreachable coordinator, or about what keeps the image.
fn words(image: &ImageView, contact: &Contact) -> Option<String> {
    contact
        .words("staging")
        .or_else(|| text::image_words(image))
}

/// The hosts that are waited for, where only hosts without a session lack the image.
fn away(image: &ImageView) -> Option<String> {
    let mut lacking = image.hosts.iter().filter(|host| !is_present(host));
    let names: Vec<String> = lacking
        .clone()
        .take(NAMED)
        .map(|host| match host.message.is_empty() {
            true => host.host.clone(),
            false => format!("{} ({})", host.host, host.message),
        })
        .collect();
    let count = lacking.clone().count();
    if count == 0 || lacking.any(|host| host.connected) {
        return None;
    }
    let more = match count.saturating_sub(names.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("waits for {}{more}", names.join(", ")))
}

/// The counts of hosts and bytes. `fresh` adds the rate and the time to go.
fn counts(hosts: &[HostProgress], fresh: bool) -> String {
    let sum = |of: fn(&HostProgress) -> u64| hosts.iter().map(of).fold(0, u64::saturating_add);
    let (held, total) = (sum(held), sum(|host| host.total_bytes));
    let present = hosts.iter().filter(|host| is_present(host)).count();
    let mut parts = vec![format!(
        "{present} of {} hosts, {}% of {}",
        hosts.len(),
        percent(held, total),
        Bytes(total)
    )];
    let rate = sum(|host| host.bytes_per_second);
    if fresh && rate > 0 {
        parts.push(format!("{}/s", Bytes(rate)));
        // the time to go of the moving hosts is the fleet's only if no other host is waited for
        let lacking = || hosts.iter().filter(|host| !is_present(host));
        let all =
            lacking().all(|host| host.eta_seconds.is_some() || host.state == HostState::Installing);
        if let Some(eta) = lacking().filter_map(|host| host.eta_seconds).max() {
            let of = if all { "" } else { " for those that move" };
            parts.push(format!("{} to go{of}", Span::seconds(eta)));
        }
    }
    for (state, name) in [
        (HostState::Failed, "failed"),
        (HostState::Queued, "preparing"),
        (HostState::Installing, "installing"),
    ] {
        let count = hosts.iter().filter(|host| host.state == state).count();
        if count > 0 {
            parts.push(format!("{count} {name}"));
        }
    }
    let away = hosts.iter().filter(|host| !host.connected).count();
    if away > 0 {
        parts.push(format!("{away} away"));
    }
    let line = parts.join(", ");
    match text::received(hosts) {
        Some(received) => format!("{line}; {received}"),
        None => line,
    }
}

fn is_present(host: &HostProgress) -> bool {
    host.state == HostState::Present
}

fn held(host: &HostProgress) -> u64 {
    match host.state {
        HostState::Present => host.total_bytes,
        _ => host.held_bytes.min(host.total_bytes),
    }
}

/// The picture of an image for a terminal. First comes a sentence about the fleet. A second one follows where there is
/// something to say about the coordinator or the registry. Then come as many hosts as fit, those that need help first.
/// No line is longer than the room, and there are no more lines than rows.
pub fn picture(image: &ImageView, contact: &Contact, room: Room) -> Vec<String> {
    let columns = room.columns.max(20);
    let each = if room.rows < TALL { 1 } else { 2 };
    let mut lines = wrapped(&counts(&image.hosts, contact.is_fresh()), columns, each);
    if let Some(words) = words(image, contact) {
        lines.extend(wrapped(&words, columns, each));
    }
    // the cursor needs a row of its own
    let rows = room.rows.saturating_sub(lines.len() + 1).max(1);
    let mut order: Vec<&HostProgress> = image.hosts.iter().collect();
    let more = order.len() > rows;
    if more {
        order.sort_by_key(|host| (need(host), percent(held(host), host.total_bytes)));
    }
    let shown = if more { rows - 1 } else { order.len() };
    let names = order
        .iter()
        .take(shown)
        .map(|host| host.host.chars().count());
    let name = names.max().unwrap_or(0).min(MAX_NAME.min(columns / 3));
    let bar = columns
        .saturating_sub(name + 1 + 2 + 5 + WORDS)
        .clamp(BAR.1, BAR.0);
    for host in order.iter().take(shown) {
        let percent = percent(held(host), host.total_bytes);
        lines.push(format!(
            "{:<name$} [{}] {percent:>3}% {}",
            middle_cut(&host.host, name),
            filled(percent, bar),
            text::host_words(host, contact.is_fresh()),
        ));
    }
    if more {
        lines.push(format!("and {}", rest(&order[shown..])));
    }
    lines.iter().map(|line| cut(line, columns)).collect()
}

/// The order of hosts: those that need help come first, those that are ready come last.
const fn need(host: &HostProgress) -> u8 {
    match host.state {
        HostState::Failed => 0,
        HostState::Gone => 1,
        _ if !host.connected => 2,
        HostState::Staging if host.reason.is_some() => 3,
        HostState::Waiting | HostState::Queued => 4,
        HostState::Staging => 5,
        HostState::Installing => 6,
        HostState::Present => 7,
    }
}

fn rest(hosts: &[&HostProgress]) -> String {
    let mut counts: BTreeMap<HostState, usize> = BTreeMap::new();
    for host in hosts {
        *counts.entry(host.state).or_default() += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(state, count)| format!("{count} {}", state.as_str()))
        .collect();
    format!("{} more: {}", hosts.len(), counts.join(", "))
}

/// A bar that is full at 100 % and not before.
fn filled(percent: u64, columns: usize) -> String {
    let percent = usize::try_from(percent.min(100)).unwrap_or(100);
    let full = percent * columns / 100;
    let tip = usize::from(percent > 0 && full < columns);
    let bar = "=".repeat(full) + &">".repeat(tip);
    format!("{bar:<columns$}")
}

/// The text in at most `columns` characters. A longer text loses its end.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(columns.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use client::view::ImageState;

    pub(crate) fn host(name: &str, state: HostState, held_bytes: u64) -> HostProgress {
        HostProgress {
            host: name.into(),
            state,
            reason: None,
            message: String::new(),
            connected: true,
            total_bytes: 1_000_000_000,
            held_bytes,
            bytes: SourceBytes::default(),
            written_bytes: 0,
            predicted: None,
            measured: None,
            upload_bytes: 0,
            bytes_per_second: 0,
            eta_seconds: None,
            began_at: Some(7),
            presence_age_ms: None,
            golden: false,
            recipe: None,
            failed_seconds: None,
        }
    }

    pub(crate) fn image(hosts: Vec<HostProgress>) -> ImageView {
        ImageView {
            digest: "sha256:x".into(),
            references: Vec::new(),
            state: ImageState::Staging,
            reason: Some("moving".into()),
            message: String::new(),
            disk_bytes: 1_000_000_000,
            raw_bytes: 1_000_000_000,
            registry_bytes: 500_000_000,
            recipe: None,
            contents: 1,
            contents_done: 0,
            hosts_selected: hosts.len() as u64,
            hosts_present: 0,
            hosts_failed: 0,
            wanted_at: 0,
            priority: 0,
            staged_seconds: None,
            prediction: None,
            measured: None,
            hosts,
            leases: Vec::new(),
        }
    }

    /// One host of each kind.
    fn fleet() -> ImageView {
        let mut moving = host(
            "berlin-rack-07-shelf-3-mac-mini-m4pro-12",
            HostState::Staging,
            430_000_000,
        );
        moving.bytes_per_second = 52_600_000;
        moving.eta_seconds = Some(11);
        moving.bytes = SourceBytes {
            origin: 85_600_000,
            peers: 163_900_000,
            local: 0,
        };
        let mut still = host("mini-2", HostState::Staging, 999_999_999);
        still.reason = Some("throttled".into());
        still.message = "no progress for 12 s".into();
        let mut away = host("mini-3", HostState::Waiting, 146_000_000);
        away.connected = false;
        away.reason = Some("disconnected".into());
        away.message = "no session for 1 min 9 s".into();
        let mut failed = host("mini-4", HostState::Failed, 0);
        failed.reason = Some("no_room".into());
        failed.message =
            "the image needs 140.0 GB, but of 96.2 GB that are free 40.0 GB have to stay free"
                .into();
        let present = host("mini-5", HostState::Present, 1_000_000_000);
        image(vec![moving, still, away, failed, present])
    }

    const SCREEN: Room = Room {
        columns: 80,
        rows: 24,
    };

    fn fresh() -> Contact {
        Contact::default()
    }

    #[test]
    fn at_eighty_columns_each_host_says_what_matters_of_it() {
        assert_eq!(
            picture(&fleet(), &fresh(), SCREEN),
            [
                "1 of 5 hosts, 51% of 5.0 GB, 52.6 MB/s, 11 s to go for those that move,",
                "1 failed, 1 away; received 249.5 MB (registry 85.6 MB, peers 163.9 MB)",
                "berlin-rack…ini-m4pro-12 [===>    ]  43% staging, 52.6 MB/s, 11 s to go",
                "mini-2                   [=======>]  99% staging (throttled): no progress for 1…",
                "mini-3                   [=>      ]  14% waiting (disconnected): no session for…",
                "mini-4                   [        ]   0% failed (no_room): the image needs 140.…",
                "mini-5                   [========] 100% present",
            ]
        );
    }

    #[test]
    fn who_waits_for_chosen_hosts_hears_of_those() {
        let mut all = fleet();
        all.hosts.retain(|host| host.state != HostState::Staging);
        all.reason = Some("hosts_away".into());
        all.message = "1 host is away or shunned: mini-9; it goes on when it is back".into();
        let mut memory = Memory::default();
        let hosts = ["mini-3", "mini-5"].map(str::to_owned);
        let shown = memory.recall(&all, Some(&hosts));
        let said = line(&shown, &fresh());
        assert!(
            said.ends_with("; waits for mini-3 (no session for 1 min 9 s)"),
            "{said}"
        );
        // where one of the hosts is connected, the image's own message is shown
        let hosts = ["mini-3", "mini-4"].map(str::to_owned);
        let said = line(&memory.recall(&all, Some(&hosts)), &fresh());
        assert!(said.contains("mini-9"), "{said}");
        let said = line(&memory.recall(&all, None), &fresh());
        assert!(said.contains("mini-9"), "{said}");
    }

    #[test]
    fn a_line_says_what_moves_and_for_whom_its_time_is() {
        assert_eq!(
            line(&fleet(), &fresh()),
            "1 of 5 hosts, 51% of 5.0 GB, 52.6 MB/s, 11 s to go for those that move, 1 failed, 1 away; \
             received 249.5 MB (registry 85.6 MB, peers 163.9 MB)"
        );
        let mut all = fleet();
        all.hosts.retain(|host| host.bytes_per_second > 0);
        assert!(line(&all, &fresh()).contains("11 s to go; received"));
        let mut held_up = fleet();
        held_up.reason = Some("origin_down".into());
        held_up.message = "the registry fails: connection refused; it is asked again in 3 s".into();
        assert!(
            line(&held_up, &fresh())
                .ends_with("; the registry fails: connection refused; it is asked again in 3 s")
        );
    }

    #[test]
    fn old_words_have_no_rate_and_say_how_old_they_are() {
        let contact = Contact {
            heard_ago: Duration::from_secs(23),
            away: Some((Duration::from_secs(12), "connection refused".into())),
        };
        assert_eq!(
            line(&fleet(), &contact),
            "1 of 5 hosts, 51% of 5.0 GB, 1 failed, 1 away; received 249.5 MB (registry 85.6 MB, peers 163.9 MB); the coordinator \
             can't be reached for 12 s; staging goes on; last heard 23 s ago (connection refused)"
        );
        let drawn = picture(&fleet(), &contact, SCREEN);
        assert_eq!(
            drawn[2..4],
            [
                "the coordinator can't be reached for 12 s; staging goes on; last heard 23 s ago",
                "(connection refused)"
            ]
        );
        assert!(drawn[4].ends_with("43% staging"), "{}", drawn[4]);
        assert!(
            drawn[5].ends_with("99% staging (throttled)"),
            "{}",
            drawn[5]
        );
        // the coordinator is silent, and may still be there
        let contact = Contact {
            heard_ago: LINE_FRESH,
            away: None,
        };
        assert!(line(&fleet(), &contact).ends_with("; last heard 7 s ago"));
        let contact = Contact {
            heard_ago: LINE_FRESH - Duration::from_millis(1),
            away: None,
        };
        assert!(line(&fleet(), &contact).contains("52.6 MB/s"));
    }

    #[test]
    fn hosts_that_need_somebody_come_first_where_there_is_no_room_for_all() {
        let mut many = fleet();
        for number in 0..995 {
            let mut host = host(&format!("mac-{number:03}"), HostState::Staging, 500_000_000);
            host.bytes_per_second = 1;
            many.hosts.push(host);
        }
        let drawn = picture(
            &many,
            &fresh(),
            Room {
                columns: 80,
                rows: 8,
            },
        );
        assert_eq!(drawn.len(), 7);
        let names: Vec<&str> = drawn[1..5]
            .iter()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            names,
            ["mini-4", "mini-3", "mini-2", "berlin-rack…ini-m4pro-12"]
        );
        assert_eq!(drawn[6], "and 995 more: 994 staging, 1 present");
    }

    #[test]
    fn a_narrow_or_tiny_screen_is_no_harm() {
        for columns in 0..200 {
            for rows in 0..12 {
                let drawn = picture(&fleet(), &fresh(), Room { columns, rows });
                assert!(
                    drawn
                        .iter()
                        .all(|line| line.chars().count() <= columns.max(20))
                );
                assert!(drawn.len() <= rows.max(3), "{rows}: {drawn:?}");
            }
        }
        assert!(picture(&image(Vec::new()), &fresh(), SCREEN)[0].starts_with("0 of 0 hosts, 0%"));
    }

    #[test]
    fn a_sentence_is_broken_at_spaces_and_no_word_of_it_is_lost() {
        let text = "a bb ccc dddd äöü";
        assert_eq!(wrapped(text, 6, 9), ["a bb", "ccc", "dddd", "äöü"]);
        assert_eq!(wrapped(text, 8, 9), ["a bb ccc", "dddd äöü"]);
        assert_eq!(wrapped(text, 2, 2), ["a", "bb ccc dddd äöü"]);
        assert_eq!(wrapped(text, 80, 2), [text]);
        assert_eq!(wrapped("", 80, 2), [""]);
        assert_eq!(
            wrapped("it has 9 MB, 2 to go", 9, 9),
            ["it has", "9 MB,", "2 to go"]
        );
        for columns in 1..30 {
            for most in 1..6 {
                assert_eq!(wrapped(text, columns, most).join(" "), text);
            }
        }
    }

    #[test]
    fn a_bar_is_full_at_the_end_and_not_before() {
        assert_eq!(filled(0, 8), "        ");
        assert_eq!(filled(1, 8), ">       ");
        assert_eq!(filled(99, 8), "=======>");
        assert_eq!(filled(100, 8), "========");
        assert_eq!(filled(u64::MAX, 8), "========");
    }

    #[test]
    fn what_a_restarted_coordinator_has_not_heard_yet_is_remembered() {
        let mut memory = Memory::default();
        let shown = |memory: &mut Memory, host: HostProgress| {
            let shown = memory.recall(&image(vec![host]), None);
            shown.hosts[0].held_bytes
        };
        assert_eq!(shown(&mut memory, host("a", HostState::Staging, 700)), 700);
        let unheard = HostProgress {
            connected: false,
            began_at: None,
            ..host("a", HostState::Waiting, 0)
        };
        assert_eq!(shown(&mut memory, unheard), 700);
        assert_eq!(shown(&mut memory, host("a", HostState::Staging, 690)), 700);
        // another staging has its own numbers, and so has a staging after a loss
        let other = HostProgress {
            began_at: Some(8),
            ..host("a", HostState::Staging, 10)
        };
        assert_eq!(shown(&mut memory, other.clone()), 10);
        let present = HostProgress {
            began_at: Some(8),
            ..host("a", HostState::Present, 1_000_000_000)
        };
        assert_eq!(shown(&mut memory, present), 1_000_000_000);
        assert_eq!(shown(&mut memory, other), 10);
        // only hosts that are waited for are shown
        let two = image(vec![
            host("a", HostState::Staging, 1),
            host("b", HostState::Staging, 1),
        ]);
        assert_eq!(memory.recall(&two, Some(&["b".to_owned()])).hosts.len(), 1);
    }
}
