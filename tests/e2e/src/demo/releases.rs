//! Later releases of the demo's image: each is staged onto hosts that hold the one before, and what moved is compared
//! with what changed.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use proto::figure::Bytes;
use serde_json::{Value, json};

use super::{
    changed::Changed,
    process::{Ended, wait_for},
    source::Source,
    tell::{round, say},
};
use crate::{
    cluster::Cluster,
    image::{GeneratedImage, ImageSpec},
    tart_home,
};

/// `parbake stage --wait` ends with the word of the last host, which is in that host's log by then.
const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Where releases are staged, and what each changes.
pub(super) struct Stand<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) source: &'a Source,
    pub(super) patience: Duration,
    pub(super) recipe: bool,
    /// Of the registry's link, or of every link; 0 where nobody knows it.
    pub(super) rate: u64,
}

/// Stages the releases after the first one, and measures each.
pub(super) fn stage(stand: &Stand<'_>, later: &[ImageSpec]) -> anyhow::Result<Vec<Value>> {
    let (image, directory) = (stand.source.first(), stand.source.directory());
    let (image, directory) = image.zip(directory).context("releases are generated")?;
    let mut before = image.clone();
    let mut measured = Vec::new();
    for (number, spec) in (2..).zip(later) {
        say(&format!("making release {number}"));
        let image = spec.generate(directory)?;
        measured.push(release(stand, number, &before, &image)?);
        before = image;
    }
    Ok(measured)
}

fn release(
    stand: &Stand<'_>,
    number: u8,
    before: &GeneratedImage,
    image: &GeneratedImage,
) -> anyhow::Result<Value> {
    let Stand {
        cluster, source, ..
    } = stand;
    let changed = Changed::between(&before.disk, &image.disk);
    let reference = source.offer(&format!("release-{number}"), image)?;
    if stand.recipe {
        source.push_recipe(&reference)?;
    }
    let sent_before = source.sent()?.unwrap_or(0);
    let free_before = free(cluster.directory())?;
    say(&format!("staging {reference}"));
    let began = Instant::now();
    let waiting = cluster.spawn_parbake(&["stage", &reference, "--wait"], Stdio::null())?;
    let mut waiting = Ended(waiting);
    wait_for(&mut waiting.0, stand.patience)?;
    let makespan = began.elapsed().as_secs_f64();
    drop(waiting);
    let present = cluster.wait_present(&image.digest.to_string(), HEARD_WITHIN)?;
    let taken = free_before.saturating_sub(free(cluster.directory())?);
    let hosts = present.len() as u64;
    let total = |at: usize| present.iter().map(|present| present.bytes[at]).sum::<u64>();
    let mut verified = true;
    for agent in cluster.agents() {
        let difference = tart_home::difference(&agent.tart_home(), &reference, image);
        let difference = difference.with_context(|| format!("disk of {}", agent.host))?;
        verified &= difference.is_none();
    }
    let bound = (stand.rate > 0 && changed.chunks_compressed > 0)
        .then(|| changed.chunks_compressed as f64 / stand.rate as f64);
    let network = (total(0) + total(1)) / hosts.max(1);
    let written = written(cluster, &reference)?;
    let origin = source.sent()?.unwrap_or(0).saturating_sub(sent_before);
    let over =
        |bytes: u64, changed: u64| (changed > 0).then(|| round(bytes as f64 / changed as f64));
    Ok(json!({
        "release": number,
        "recipe": stand.recipe,
        "all_verified": verified,
        "image_bytes": image.blob_bytes(),
        "changed_bytes": changed.chunks,
        "changed_bytes_compressed": changed.chunks_compressed,
        "changed_pages_bytes": changed.pages,
        "new_blocks_bytes_compressed": changed.blocks_compressed,
        "lacking_chunks_bytes_compressed": changed.lacking_compressed,
        "network_bytes_per_host": network,
        "network_over_new_blocks": over(network, changed.blocks_compressed),
        "local_bytes_per_host": total(2) / hosts.max(1),
        "origin_bytes": origin,
        "origin_over_lacking_chunks": over(origin, changed.lacking_compressed),
        "bytes_written": written,
        "written_over_changed_pages": over(written / hosts.max(1), changed.pages),
        "space_taken": taken,
        "makespan_s": round(makespan),
        "bound_s": bound.map(round),
        "makespan_over_bound": bound.map(|bound| round(makespan / bound)),
    }))
}

/// The free bytes of the volume with this directory, once all that was written is on it.
fn free(directory: &Path) -> anyhow::Result<u64> {
    rustix::fs::sync();
    let volume = rustix::fs::statvfs(directory)
        .with_context(|| format!("looking at the volume of {}", directory.display()))?;
    Ok(volume.f_bfree.saturating_mul(volume.f_frsize))
}

/// The bytes that all hosts together wrote for an image, by their own count.
fn written(cluster: &Cluster, reference: &str) -> anyhow::Result<u64> {
    let status = cluster.status(reference)?;
    let hosts = status["hosts"].as_array();
    let hosts = hosts.with_context(|| format!("the coordinator doesn't know {reference}"))?;
    let written = hosts.iter().map(|host| host["written_bytes"].as_u64());
    Ok(written.map(Option::unwrap_or_default).sum())
}

/// What a release moved, in a line.
pub(super) fn line(release: &Value) -> String {
    let bytes = |name: &str| Bytes(release[name].as_u64().unwrap_or(0));
    let with = match release["recipe"] == true {
        true => "with its recipe",
        false => "without a recipe",
    };
    let full = release["image_bytes"].as_u64().unwrap_or(0);
    let moved = release["network_bytes_per_host"].as_u64().unwrap_or(0);
    let saved = 100.0 * full.saturating_sub(moved) as f64 / full.max(1) as f64;
    format!(
        "release {} {with}: {:.1} s. Chunks of {} changed ({} compressed), and blocks of {} are new (compressed).\n          \
         Each host received {} and had {} already; a full pull is {}: {saved:.0} % saved.\n          \
         The registry sent {}. All hosts wrote {}; their volume has {} less room.",
        release["release"],
        release["makespan_s"].as_f64().unwrap_or(0.0),
        bytes("changed_bytes"),
        bytes("changed_bytes_compressed"),
        bytes("new_blocks_bytes_compressed"),
        bytes("network_bytes_per_host"),
        bytes("local_bytes_per_host"),
        bytes("image_bytes"),
        bytes("origin_bytes"),
        bytes("bytes_written"),
        bytes("space_taken"),
    )
}
