//! Later releases of the demo's image: each is staged onto hosts that hold the one before, and what moved is compared
//! with what changed.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use proto::figure::Bytes;
use serde_json::{Value, json};

use super::{
    process::{Ended, wait_for},
    tell::{round, say},
};
use crate::{
    cluster::{Cluster, said},
    image::{GeneratedImage, ImageSpec},
    registry::Registry,
    tart_home,
};

/// A disk is compared by what is moved: a chunk.
const CHUNK: usize = 1 << 20;
/// `parbake stage --wait` ends with the word of the last host, which is in that host's log by then.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Where releases are staged, and what each changes.
pub(super) struct Stand<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) registry: &'a Registry,
    /// Of the registry's blobs.
    pub(super) directory: &'a Path,
    pub(super) patience: Duration,
    pub(super) percent: u8,
    pub(super) recipe: bool,
}

/// Stages the releases after the first one, and measures each.
pub(super) fn stage(
    stand: &Stand<'_>,
    first: ImageSpec,
    image: &GeneratedImage,
    releases: u8,
) -> anyhow::Result<Vec<Value>> {
    let (mut spec, mut before) = (first, image.clone());
    let mut measured = Vec::new();
    for number in 2..=releases {
        spec = spec.changed_within(100, stand.percent);
        say(&format!("making release {number}"));
        let image = spec.generate(stand.directory)?;
        measured.push(release(stand, number, (&before, &image), spec.disk_bytes)?);
        before = image;
    }
    Ok(measured)
}

fn release(
    stand: &Stand<'_>,
    number: u8,
    (before, image): (&GeneratedImage, &GeneratedImage),
    disk_bytes: u64,
) -> anyhow::Result<Value> {
    let Stand {
        cluster, registry, ..
    } = stand;
    let changed = Changed::between(before, image, disk_bytes);
    let reference = registry.hold("demo/macos", &format!("release-{number}"), image);
    if stand.recipe {
        let host = registry.addr().to_string();
        let made = cluster.parbake(&["recipe", &reference, "--push", "--plain-http", &host])?;
        ensure!(made.status.success(), "{}", said(&made));
    }
    registry.reset_counters();
    say(&format!("staging {reference}"));
    let began = Instant::now();
    let waiting = cluster.spawn_parbake(&["stage", &reference, "--wait"], Stdio::null())?;
    let mut waiting = Ended(waiting);
    wait_for(&mut waiting.0, stand.patience)?;
    let makespan = began.elapsed();
    drop(waiting);
    let present = cluster.wait_present(&image.digest.to_string(), HEARD_WITHIN)?;
    let hosts = present.len() as u64;
    let total = |at: usize| present.iter().map(|present| present.bytes[at]).sum::<u64>();
    let mut verified = true;
    for agent in cluster.agents() {
        let disk = tart_home::directory(&agent.tart_home(), &reference).join("disk.img");
        let difference = image.compare(&disk);
        let difference = difference.with_context(|| format!("disk of {}", agent.host))?;
        verified &= difference.is_none();
    }
    Ok(json!({
        "release": number,
        "recipe": stand.recipe,
        "all_verified": verified,
        "image_bytes": image.blob_bytes(),
        "changed_bytes": changed.raw,
        "changed_bytes_compressed": changed.compressed,
        "network_bytes_per_host": (total(0) + total(1)) / hosts.max(1),
        "local_bytes_per_host": total(2) / hosts.max(1),
        "origin_bytes": registry.counters().bytes,
        "makespan_s": round(makespan.as_secs_f64()),
    }))
}

/// Bytes of the chunks in which two disks differ at the same place.
#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    raw: u64,
    /// As the registry compresses them.
    compressed: u64,
}

impl Changed {
    fn between(before: &GeneratedImage, image: &GeneratedImage, disk_bytes: u64) -> Self {
        let mut changed = Self::default();
        for at in (0..disk_bytes).step_by(CHUNK) {
            let length = usize::try_from(disk_bytes - at).unwrap_or(CHUNK).min(CHUNK);
            let (mut old, mut new) = (vec![0; length], vec![0; length]);
            before.disk.read(at, &mut old);
            image.disk.read(at, &mut new);
            if old != new {
                changed.raw += length as u64;
                changed.compressed += apple_lz4::encode(&new).len() as u64;
            }
        }
        changed
    }
}

/// What a release moved, in a line.
pub(super) fn line(release: &Value) -> String {
    let bytes = |name: &str| Bytes(release[name].as_u64().unwrap_or(0));
    let with = match release["recipe"] == true {
        true => "with its recipe",
        false => "without a recipe",
    };
    format!(
        "release {} {with}: {:.1} s. Chunks of {} changed ({} compressed).\n          \
         Each host received {}, and had {} already. The registry sent {}.\n          \
         A full pull is {} a host.",
        release["release"],
        release["makespan_s"].as_f64().unwrap_or(0.0),
        bytes("changed_bytes"),
        bytes("changed_bytes_compressed"),
        bytes("network_bytes_per_host"),
        bytes("local_bytes_per_host"),
        bytes("origin_bytes"),
        bytes("image_bytes"),
    )
}
