//! Gauges that follow the driver's state.

use std::collections::BTreeMap;

use swarm::{Stall, Status};

use crate::{
    metrics::{Metrics, PartLabel, ReasonLabel, StateLabel},
    store::{Volume, survey::Surveyed},
};

/// Shows how many contents stall for each reason, and how many images and peers are in each state.
pub(super) fn show(metrics: &Metrics, status: &Status, images: &BTreeMap<&'static str, usize>) {
    for reason in Stall::ALL {
        let stalled = |content: &&swarm::status::ContentStatus| content.stall == Some(reason);
        let label = ReasonLabel {
            reason: reason.as_str(),
        };
        let count = status.contents.iter().filter(stalled).count();
        metrics.stalled.get_or_create(&label).set(gauge(count));
    }
    for (state, count) in images {
        let label = StateLabel { state };
        metrics.images.get_or_create(&label).set(gauge(*count));
    }
    let peers = [
        ("known", status.peers),
        ("connected", status.connected),
        ("quarantined", status.quarantined.len()),
    ];
    for (state, count) in peers {
        let label = StateLabel { state };
        metrics.peers.get_or_create(&label).set(gauge(count));
    }
}

/// Shows the volume that holds tart's home.
pub(super) fn show_volume(metrics: &Metrics, volume: Volume) {
    let parts = [
        ("total", volume.total_bytes),
        ("free", volume.free_bytes),
        ("floor", volume.floor_bytes),
    ];
    for (part, bytes) in parts {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics
            .volume_bytes
            .get_or_create(&PartLabel { part })
            .set(bytes);
    }
}

/// Shows what is known of disks that parbake didn't build.
pub(super) fn show_found(metrics: &Metrics, found: Surveyed) {
    let parts = [
        ("read", found.disk_bytes),
        ("left", found.left_bytes),
        ("notes", found.notes_bytes),
    ];
    for (part, bytes) in parts {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics
            .found_disk_bytes
            .get_or_create(&PartLabel { part })
            .set(bytes);
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
