//! The driver's sentences for people: why an image isn't everywhere, why a host is away, and why a host lacks an image
//! that is wanted there. Each sentence is made of facts that the caller hands in; nothing here decides.

use std::time::{Duration, SystemTime};

use proto::{
    Digest, HostId,
    figure::{Bytes, Span},
    image::{ContentKind, Layout},
};
use rollout::stage::status::{ImageReason, ImageStatus};
use wire::utc;

use crate::{
    enrolment::Revocation,
    view::{HostImage, HostView, RefusalView, RevocationView},
};

/// The most hosts that one sentence names; further ones are only counted.
const NAMED: usize = 3;

/// Why an image isn't everywhere; empty while the image is only under way. `said`: the words of the last lease holder
/// that the registry failed. `away`: the hosts that lack the image and have no session, and how long each has been
/// away, where that is known.
pub(super) fn image(
    status: &ImageStatus,
    said: Option<&str>,
    away: &[(HostId, Option<Duration>)],
) -> String {
    let Some(reason) = status.reason else {
        return String::new();
    };
    match reason {
        ImageReason::Moving | ImageReason::ContentFaulty(..) => String::new(),
        ImageReason::Contradicts(content) => format!(
            "its manifest gives content {content} another size than an image that was wanted before; one of the two is \
             wrong: cancel that image, or push it anew"
        ),
        ImageReason::NoHosts => "none of the selected hosts is part of the fleet".to_owned(),
        ImageReason::Held => "no host is selected for now; what is there is kept".to_owned(),
        ImageReason::NoHostConnected => format!("no host is connected: {}", named(away)),
        ImageReason::HostsAway => {
            let (count, they) = match away.len() {
                1 => ("1 host is".to_owned(), "it is"),
                many => (format!("{many} hosts are"), "they are"),
            };
            format!(
                "{count} away or shunned: {}; it goes on when {they} back",
                named(away)
            )
        }
        ImageReason::AwaitingTurn => "images that were wanted earlier are fetched first".to_owned(),
        ImageReason::HostsFailed => {
            "the hosts that lack it can't stage it for now; `parbake why HOST` has the cause"
                .to_owned()
        }
        ImageReason::OriginDown => registry("the registry fails", said, status.origin_retry_in),
        ImageReason::OriginThrottled => registry(
            "the registry asked to be left alone",
            said,
            status.origin_retry_in,
        ),
    }
}

/// Why an image failed whose registry doesn't give one content, while it gives others. `said`: the words of the last
/// lease holder that the registry failed.
pub(super) fn unavailable(layout: &Layout, content: Digest, said: Option<&str>) -> String {
    let of = layout
        .contents()
        .into_iter()
        .find(|of| of.digest == content);
    // people know a layer by its digest in the registry
    let name = match of.map(|of| of.kind) {
        Some(ContentKind::RawLayer { blob }) => blob.digest,
        Some(ContentKind::Blob) | None => content,
    };
    let text = format!("blob {name} doesn't come from the registry, which gives others");
    match said {
        Some(said) => format!("{text}: {said}"),
        None => format!("{text}: its hosts wait for it in vain"),
    }
}

/// Below this rate of a stream, in bytes per second, the registry is what limits the image, whatever the fleet's
/// network is.
const SLOW_STREAM_BYTES_PER_S: u64 = 200_000;

/// What limits an image that moves: the slowest of its registry's streams, where that stream is slow, and a lease
/// holder's remark about its connections.
pub(super) fn limits(bytes_per_s: &[u64], remark: Option<&str>) -> String {
    let slow = bytes_per_s.iter().copied().filter(|rate| *rate > 0).min();
    let slow = slow.filter(|rate| *rate < SLOW_STREAM_BYTES_PER_S);
    let slow = slow.map(|rate| format!("the registry gives {}/s a stream", Bytes(rate)));
    let parts: Vec<&str> = slow.as_deref().into_iter().chain(remark).collect();
    parts.join("; ")
}

fn registry(what: &str, said: Option<&str>, retry_in: Option<Duration>) -> String {
    let mut text = what.to_owned();
    if let Some(said) = said {
        text.push_str(": ");
        text.push_str(said);
    }
    text.push_str(&match retry_in {
        // rounded up, so that the registry isn't expected too early
        Some(left) => format!(
            "; it is asked again in {}",
            Span::seconds(u64::try_from(left.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX))
        ),
        None => "; one host tries whether it is back".to_owned(),
    });
    text
}

fn named(away: &[(HostId, Option<Duration>)]) -> String {
    let mut names: Vec<String> = away
        .iter()
        .take(NAMED)
        .map(|(host, since)| match since {
            Some(since) => format!("{host} ({})", Span(*since)),
            None => host.to_string(),
        })
        .collect();
    if away.len() > NAMED {
        names.push(format!("and {} more", away.len() - NAMED));
    }
    names.join(", ")
}

/// What is known of a host without a session, for the row of an image on it.
pub(super) fn away(since: Option<Duration>, enrolled: bool) -> String {
    match since {
        Some(since) => format!("no session for {}", Span(since)),
        None if !enrolled => "never enrolled".to_owned(),
        None => "no session since the coordinator started".to_owned(),
    }
}

/// Why a host with a session takes no part in staging.
pub(super) fn old_version(version: &str) -> String {
    let version = if version.is_empty() {
        "unknown"
    } else {
        version
    };
    format!(
        "its agent (version {version}) doesn't sign what it passes on, so it gets no images and serves none; upgrade it"
    )
}

/// Why a host has no session, and what to do.
pub(super) fn no_session(
    host: &HostId,
    since: Option<Duration>,
    enrolled: bool,
    refusal: Option<&RefusalView>,
) -> Vec<String> {
    let lost = match since {
        None if !enrolled => {
            let next = format!(
                "it never enrolled; make a token with `parbake-coordinator token --host {host}`, and use it there with \
                 `parbake-agent enroll`"
            );
            return [next].into_iter().chain(refusal.map(turned_away)).collect();
        }
        Some(since) => format!("its session was lost {} ago", Span(since)),
        None => "it has had no session since the coordinator started".to_owned(),
    };
    match refusal {
        Some(refusal) => vec![lost, turned_away(refusal)],
        None => vec![format!(
            "{lost}; it goes on when it is back: look at the machine, at its agent (`parbake-agent status`) and at UDP 7470"
        )],
    }
}

fn turned_away(refusal: &RefusalView) -> String {
    format!(
        "{} ago, from {}: {}",
        Span::seconds(refusal.seconds_ago),
        refusal.address,
        refusal.message
    )
}

/// Why an image isn't present on a host.
pub(super) fn not_present(image: &HostImage) -> String {
    let progress = &image.progress;
    let mut text = format!("{}: {}", name(image), progress.state.as_str());
    let reason = progress.reason.as_deref();
    if let Some(reason) = reason.filter(|reason| *reason != progress.state.as_str()) {
        text.push_str(&format!(" ({reason})"));
    }
    if progress.total_bytes > 0 && progress.held_bytes > 0 {
        text.push_str(&format!(
            ", {} of {} verified",
            Bytes(progress.held_bytes),
            Bytes(progress.total_bytes)
        ));
    }
    if progress.bytes_per_second > 0 {
        text.push_str(&format!(", {}/s", Bytes(progress.bytes_per_second)));
    }
    // the sentence that the host is away comes once, not with each image
    if progress.connected && !progress.message.is_empty() {
        text.push_str(": ");
        text.push_str(&progress.message);
    }
    text
}

/// What people call an image.
pub(super) fn name(image: &HostImage) -> &str {
    image.references.first().unwrap_or(&image.digest)
}

/// Since when and why a host is revoked, and what takes that back.
pub(super) fn revocation(host: &HostId, revocation: &Revocation) -> String {
    let mut what = "it is revoked".to_owned();
    if revocation.at_unix > 0 {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(revocation.at_unix));
        if let Some(at) = at {
            what.push_str(&format!(" since {}", utc(at)));
        }
    }
    if !revocation.reason.is_empty() {
        let reason = crate::progress::clean(&revocation.reason);
        what.push_str(&format!(" ({reason})"));
    }
    format!("{what}; `parbake-coordinator readmit {host}` takes that back")
}

/// A host that is revoked.
pub(super) fn revoked(
    host: &HostId,
    named: bool,
    revocation: &Revocation,
    refusal: Option<RefusalView>,
) -> HostView {
    let mut why = vec![self::revocation(host, revocation)];
    why.extend(refusal.as_ref().map(turned_away));
    HostView {
        host: host.to_string(),
        named,
        revoked: true,
        revocation: Some(RevocationView {
            at: revocation.at_unix,
            reason: revocation.reason.clone(),
        }),
        refusal,
        why,
        ..HostView::default()
    }
}
