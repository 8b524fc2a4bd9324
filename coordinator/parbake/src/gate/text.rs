//! The gate's answers as text for people.

use std::fmt::Write as _;

use client::gate::{GateDoneReply, GateList, GateVerdict, GateView, GroupView, PlaceView};
use proto::figure::Span;

/// The answer about one host: the reason, the cause, and what to do.
pub(super) fn view(view: &GateView) -> String {
    let mut text = format!("{}: {}: {}", view.host, view.reason, view.message);
    if !view.next.is_empty() && view.verdict != GateVerdict::Open {
        _ = write!(text, "; next: {}", view.next);
    }
    text.push('\n');
    if let Some(place) = view
        .place
        .as_ref()
        .filter(|_| view.verdict == GateVerdict::Open)
    {
        let left = Span::seconds(place.ends_in_seconds);
        match &place.number {
            Some(number) => {
                _ = writeln!(
                    text,
                    "  its place is {number}, and ends by itself in {left}"
                );
            }
            None => _ = writeln!(text, "  its place ends by itself in {left}"),
        }
    }
    text
}

/// Why waiting is over although the host isn't ready.
pub(super) fn late(view: &GateView, away: Option<String>) -> String {
    let mut text = format!("{} isn't ready in time ({})", view.host, view.reason);
    if let Some(away) = away {
        _ = write!(text, "; {away}");
    }
    text.push('\n');
    text
}

/// The command that gives a place back.
pub(super) fn done_command(host: &str, group: Option<&str>, place: Option<&str>) -> String {
    let mut text = format!("parbake gate done {host}");
    for (option, value) in [("group", group), ("place", place)] {
        if let Some(value) = value {
            _ = write!(text, " --{option} {value}");
        }
    }
    text
}

/// What was given back.
pub(super) fn done(reply: &GateDoneReply) -> String {
    format!("{}\n", reply.message)
}

/// All groups.
pub(super) fn list(list: &GateList) -> String {
    match list.groups.as_slice() {
        [] => "no host has a place, and none waits for one\n".to_owned(),
        groups => groups.iter().map(group).collect(),
    }
}

fn group(group: &GroupView) -> String {
    let taken = group.places.len();
    let cap = group
        .cap
        .map_or_else(|| "?".to_owned(), |cap| cap.to_string());
    let mut text = format!("{}: {taken} of {cap} places are taken\n", group.group);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    for PlaceView {
        host,
        number,
        image,
        taken_at,
        ends_in_seconds,
        ..
    } in &group.places
    {
        _ = writeln!(
            text,
            "  {host} has place {} for {}; its time is over in {}; {image}",
            number.as_deref().unwrap_or("without a number"),
            Span::seconds(now.saturating_sub(*taken_at)),
            Span::seconds(*ends_in_seconds)
        );
    }
    for wait in &group.waits {
        _ = writeln!(
            text,
            "  {} waits for {} ({}); {}",
            wait.host,
            Span::seconds(wait.waits_seconds),
            wait.reason,
            wait.image
        );
    }
    text
}
