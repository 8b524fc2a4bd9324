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
        _ = writeln!(
            text,
            "  its place ends by itself in {}",
            Span::seconds(place.ends_in_seconds)
        );
    }
    text
}

/// Why waiting is over although the host isn't ready.
pub(super) fn late(view: &GateView, group: Option<&str>, away: Option<String>) -> String {
    let mut text = format!("{} isn't ready in time ({})", view.host, view.reason);
    if let Some(away) = away {
        _ = write!(text, "; {away}");
    }
    if let (Some(_), Some(group)) = (&view.place, group) {
        _ = write!(
            text,
            "; it has a place from an earlier ask: `parbake gate done {} --group {group}`",
            view.host
        );
    }
    text.push('\n');
    text
}

/// What was given back.
pub(super) fn done(host: &str, reply: &GateDoneReply) -> String {
    match reply.given_back.as_slice() {
        [] => format!("{host} has no place: it was given back before, or its time was over\n"),
        groups => format!("{host} gave its place back in {}\n", groups.join(", ")),
    }
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
        image,
        taken_at,
        ends_in_seconds,
        ..
    } in &group.places
    {
        _ = writeln!(
            text,
            "  {host} has a place for {}; its time is over in {}; {image}",
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
