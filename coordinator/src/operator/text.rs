//! The API's answers as people read them.

use std::fmt::Write as _;

use crate::view::{
    HostProgress, HostState, HostView, ImageState, ImageView, PlanReply, PodView, PoolView,
    ShortOfRoom,
};

/// Bytes with a unit of thousands, as disks and networks are sold.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
    ];
    for (name, unit) in UNITS {
        if bytes >= unit {
            let tenths = bytes / (unit / 10);
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Seconds as people say them.
pub(super) fn seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// Whole percent, 100 only when all is there.
pub(super) const fn percent(part: u64, whole: u64) -> u64 {
    match (part as u128 * 100).checked_div(whole as u128) {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a part of a hundred, when part is at most whole"
        )]
        Some(percent) => percent as u64,
        None => 0,
    }
}

/// One line of an image on a host.
pub(super) fn progress(host: &HostProgress) -> String {
    let mut text = format!(
        "{} {:>3}% of {}",
        host.state.as_str(),
        percent(host.held_bytes, host.total_bytes),
        bytes(host.total_bytes)
    );
    if host.bytes_per_second > 0 {
        _ = write!(text, ", {}/s", bytes(host.bytes_per_second));
    }
    if let Some(eta) = host.eta_seconds {
        _ = write!(text, ", {} to go", seconds(eta));
    }
    let sources = host.bytes;
    if sources.origin + sources.peers + sources.local > 0 {
        _ = write!(
            text,
            "; registry {}, peers {}, local {}",
            bytes(sources.origin),
            bytes(sources.peers),
            bytes(sources.local)
        );
    }
    if host.state != HostState::Present {
        if let Some(reason) = &host.reason {
            _ = write!(text, "; {reason}");
        }
        if !host.message.is_empty() {
            _ = write!(text, ": {}", host.message);
        }
    }
    text
}

/// An image and its hosts.
pub(super) fn image(image: &ImageView) -> String {
    let state = match image.state {
        ImageState::Staging => "staging",
        ImageState::Present => "present everywhere",
        ImageState::Failed => "failed",
        ImageState::Cancelled => "cancelled",
    };
    let mut text = format!(
        "{}\n  {}\n  {state}: {} of {} hosts, {} raw, {} in the registry",
        image.references.join(", "),
        image.digest,
        image.hosts_present,
        image.hosts_selected,
        bytes(image.raw_bytes),
        bytes(image.registry_bytes),
    );
    if let Some(took) = image.staged_seconds {
        _ = write!(text, ", staged in {took:.1} s");
    }
    if let Some(reason) = &image.reason {
        _ = write!(text, " ({reason})");
    }
    text.push('\n');
    if !image.message.is_empty() {
        _ = writeln!(text, "  {}", image.message);
    }
    for host in &image.hosts {
        _ = writeln!(text, "  {:<24} {}", host.host, progress(host));
    }
    text
}

/// Why an image isn't staged, host by host.
pub(super) fn failures(image: &ImageView) -> String {
    let mut text = String::new();
    for host in &image.hosts {
        if host.state != HostState::Present {
            _ = writeln!(
                text,
                "{}: {} ({}); see `parbake why {}`",
                host.host,
                if host.message.is_empty() {
                    "not staged"
                } else {
                    &host.message
                },
                host.reason.as_deref().unwrap_or("no reason given"),
                host.host
            );
        }
    }
    text
}

/// Hosts that lack room.
pub(super) fn short_of_room(hosts: &[ShortOfRoom]) -> String {
    let mut text = String::new();
    for host in hosts {
        _ = writeln!(
            text,
            "{} lacks room: {} to store, {} free of which {} have to stay free",
            host.host,
            bytes(host.needed_bytes),
            bytes(host.free_bytes),
            bytes(host.floor_bytes)
        );
    }
    text
}

/// The fleet.
pub(super) fn hosts(hosts: &[HostView]) -> String {
    if hosts.is_empty() {
        return "the fleet has no hosts\n".to_owned();
    }
    let mut text = String::new();
    for host in hosts {
        let state = if host.revoked {
            "revoked"
        } else if host.quarantined {
            "quarantined"
        } else if host.connected {
            "connected"
        } else {
            "away"
        };
        let wanted = host.images.iter().filter(|image| image.wanted);
        let present = wanted
            .clone()
            .filter(|image| image.progress.state == HostState::Present)
            .count();
        _ = write!(
            text,
            "{:<24} {state:<12} {present}/{} images",
            host.host,
            wanted.count()
        );
        if let Some(volume) = &host.volume {
            _ = write!(
                text,
                ", {} free of {}",
                bytes(volume.free_bytes),
                bytes(volume.total_bytes)
            );
        }
        if !host.zone.is_empty() {
            _ = write!(text, ", zone {}", host.zone);
        }
        text.push('\n');
    }
    text
}

/// Why a host is as it is.
pub(super) fn why(host: &HostView) -> String {
    if host.why.is_empty() {
        return format!("{}: has everything that it shall have\n", host.host);
    }
    let mut text = String::new();
    for reason in &host.why {
        _ = writeln!(text, "{}: {reason}", host.host);
    }
    text
}

/// A pool's roll, in one line.
pub(super) fn pool(pool: &PoolView) -> String {
    let mut text = format!(
        "{}/{} (gate: {})\n  {}\n  ",
        pool.namespace, pool.name, pool.mode, pool.image
    );
    if pool.stale == 0 {
        _ = write!(text, "rolled: {} Pods", pool.alive);
    } else {
        _ = write!(
            text,
            "rolling: {} of {} Pods run another image, {} in flight, cap {}",
            pool.stale, pool.alive, pool.in_flight, pool.cap
        );
    }
    _ = write!(
        text,
        "; {} of {} hosts hold it",
        pool.hosts_ready, pool.hosts_usable
    );
    if pool.paused {
        text.push_str("; paused");
    }
    if pool.digest.is_none() {
        text.push_str("; the image isn't resolved");
    }
    text.push('\n');
    text
}

/// A pool with its Pods.
pub(super) fn roll(pool_: &PoolView) -> String {
    let mut text = pool(pool_);
    for pod in pool_.pods.iter().filter(|pod| pod.stale || pod.in_flight) {
        let node = pod.node.as_deref().unwrap_or("no node");
        let flight = if pod.in_flight { "in flight; " } else { "" };
        _ = writeln!(
            text,
            "  {:<32} {node:<16} {flight}{}",
            pod.name, pod.message
        );
    }
    text
}

/// Why a Pod may drain, or may not.
pub(super) fn pod(pod: &PodView) -> String {
    let pool = pod.pool.as_deref().unwrap_or("no pool");
    format!(
        "{}/{} ({pool}): {} [{}]\n",
        pod.namespace, pod.name, pod.message, pod.reason
    )
}

/// What an image would move.
pub(super) fn plan(plan: &PlanReply) -> String {
    let mut text = format!(
        "{}\n  {}\n  {} raw, {} in the registry, of which {} would leave it\n",
        plan.reference,
        plan.digest,
        bytes(plan.raw_bytes),
        bytes(plan.registry_bytes),
        bytes(plan.origin_bytes)
    );
    match &plan.bound_by {
        None => text.push_str("  nothing has to move\n"),
        Some(bound) => {
            _ = writeln!(
                text,
                "  at best in {:.1} s, bound by {bound} (registry {}/s)",
                plan.predicted_seconds,
                bytes(plan.origin_bytes_per_second)
            );
        }
    }
    for host in &plan.hosts {
        let what = if host.present {
            "present".to_owned()
        } else {
            format!(
                "{} to move ({} raw)",
                bytes(host.move_bytes),
                bytes(host.missing_bytes)
            )
        };
        let away = if host.connected { "" } else { ", away" };
        let short = if host.short_of_room.is_some() {
            ", lacks room"
        } else {
            ""
        };
        _ = writeln!(text, "  {:<24} {what}{away}{short}", host.host);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_never_say_more_than_there_is() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_000), "1.0 kB");
        assert_eq!(bytes(57_990_000_000), "57.9 GB");
        assert_eq!(seconds(59), "59 s");
        assert_eq!(seconds(3_600), "1 h 0 min");
        assert_eq!(percent(999, 1_000), 99);
        assert_eq!(percent(1_000, 1_000), 100);
        assert_eq!(percent(0, 0), 0);
    }
}
