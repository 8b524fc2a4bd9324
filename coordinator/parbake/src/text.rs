//! The API's answers as text for people.

use std::fmt::Write as _;

use proto::{
    Reason, ToldReason,
    figure::{Bytes, Span, percent},
};

use client::view::{
    CancelReply, HostProgress, HostState, HostView, ImageState, ImageView, LeaseView, PlanReply,
    PodView, PoolView, RangeView, RecipeView, ShortOfRoom,
};

use crate::prediction;

/// What a cancellation ended, which references stay wanted, and by whom. `name` is what the operator typed.
pub fn cancelled(name: &str, reply: &CancelReply) -> String {
    let typed = [name.to_owned()];
    let references = match reply.references.as_slice() {
        [] => &typed,
        references => references,
    };
    let mut text: String = references
        .iter()
        .map(|reference| format!("{reference}: cancelled; what is present stays\n"))
        .collect();
    if !reply.still_wanted.is_empty() {
        _ = writeln!(text, "{} stays, because it is wanted as", reply.digest);
    }
    for wanted in &reply.still_wanted {
        let by = match (wanted.operators, wanted.cluster) {
            (true, true) => "operators and ImagePrePulls",
            (true, false) => "operators",
            (false, _) => "ImagePrePulls",
        };
        _ = writeln!(text, "  {} by {by}", wanted.reference);
    }
    text
}

/// The state of an image on one host, in one line.
pub fn progress(host: &HostProgress) -> String {
    let mut text = format!(
        "{:>3}% of {}: {}",
        percent(held(host), host.total_bytes),
        Bytes(host.total_bytes),
        host_words(host, true)
    );
    if let Some(received) = received(std::slice::from_ref(host)) {
        _ = write!(text, "; {received}");
    }
    text
}

/// The bytes of an image that a host holds, as they are shown: all of them where the image is present.
const fn held(host: &HostProgress) -> u64 {
    match host.state {
        HostState::Present => host.total_bytes,
        _ => host.held_bytes,
    }
}

/// The state of an image on a host: the rate while bytes come, otherwise the reason why none come. Without `fresh`, the
/// data is old, so rates and messages about movement are left out.
pub fn host_words(host: &HostProgress, fresh: bool) -> String {
    let mut text = host.state.as_str().to_owned();
    if fresh && host.bytes_per_second > 0 {
        _ = write!(text, ", {}/s", Bytes(host.bytes_per_second));
        if let Some(eta) = host.eta_seconds {
            _ = write!(text, ", {} to go", Span::seconds(eta));
        }
    }
    if host.state == HostState::Present && host.connected {
        return text;
    }
    // a state that is its own reason isn't named twice
    let reason = host.reason.as_deref();
    let reason = reason.filter(|reason| *reason != host.state.as_str());
    if let Some(reason) = reason {
        _ = write!(text, " ({reason})");
    }
    if !host.message.is_empty() && (fresh || host.state != HostState::Staging) {
        _ = write!(text, ": {}", host.message);
    }
    text
}

/// The bytes that hosts received over the network, by source, and those that were here. `None` when there are none.
/// Bytes from the network are counted compressed, local bytes raw.
pub fn received(hosts: &[HostProgress]) -> Option<String> {
    let sum = |of: fn(&HostProgress) -> u64| hosts.iter().map(of).fold(0, u64::saturating_add);
    let origin = sum(|host| host.bytes.origin);
    let peers = sum(|host| host.bytes.peers);
    let local = sum(|host| host.bytes.local);
    let mut parts = Vec::new();
    if origin + peers > 0 {
        parts.push(format!(
            "received {} (registry {}, peers {})",
            Bytes(origin + peers),
            Bytes(origin),
            Bytes(peers)
        ));
    }
    if local > 0 {
        parts.push(format!("{} were here already", Bytes(local)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Why an image isn't present everywhere. `None` where it is only under way.
pub fn image_words(image: &ImageView) -> Option<String> {
    if !image.message.is_empty() {
        return Some(image.message.clone());
    }
    let reason = image.reason.as_ref()?;
    (*reason != ToldReason::Known(Reason::Moving)).then(|| reason.to_string())
}

/// Hosts that lack an image, as a list of images shows them. The others are counted.
const MOST_LACKING: usize = 5;

/// An image in short: of its hosts only some that lack it, first those that need somebody.
pub fn image_in_short(image: &ImageView) -> String {
    let mut text = heading(image);
    if image.state == ImageState::Cancelled {
        return text;
    }
    let lacking = image.hosts.iter();
    let lacking = lacking.filter(|host| host.state != HostState::Present);
    let mut lacking: Vec<_> = lacking.collect();
    lacking.sort_by_key(|host| match (host.state, host.connected) {
        (HostState::Failed, _) => 0,
        (_, false) => 1,
        (HostState::Gone, _) => 2,
        _ => 3,
    });
    let left_out = lacking.len().saturating_sub(MOST_LACKING);
    lacking.truncate(MOST_LACKING);
    text += &lines(&lacking);
    if left_out > 0 {
        let reference = image.references.first().unwrap_or(&image.digest);
        _ = writeln!(
            text,
            "  and {left_out} more lack it: parbake status {reference}"
        );
    }
    text
}

/// An image with all its hosts.
pub fn image(image: &ImageView) -> String {
    let mut text = heading(image);
    // after a cancellation nothing moves, and the last reports of hosts are stale
    if image.state == ImageState::Cancelled {
        return text;
    }
    let hosts: Vec<_> = image.hosts.iter().collect();
    text += &lines(&hosts);
    let name = widest(&hosts);
    for lease in &image.leases {
        _ = writeln!(text, "  {:<name$}  {}", lease.host, fetching(lease));
    }
    text
}

/// The image's line of each host.
fn lines(hosts: &[&HostProgress]) -> String {
    let name = widest(hosts);
    hosts
        .iter()
        .map(|host| format!("  {:<name$}  {}\n", host.host, progress(host)))
        .collect()
}

fn widest(hosts: &[&HostProgress]) -> usize {
    let names = hosts.iter().map(|host| host.host.len());
    names.max().unwrap_or(0)
}

/// What there is to say of an image without its hosts.
fn heading(image: &ImageView) -> String {
    let state = match image.state {
        ImageState::Staging => "staging",
        ImageState::Present => "present everywhere",
        ImageState::Failed => "failed",
        ImageState::Cancelled => "cancelled",
    };
    let mut text = format!(
        "{}\n  {}\n  {state}: on {} of {} hosts; {}, {} in the registry (compressed)",
        image.references.join(", "),
        image.digest,
        image.hosts_present,
        image.hosts_selected,
        size(image.disk_bytes, image.raw_bytes),
        Bytes(image.registry_bytes),
    );
    if image.priority != 0 {
        _ = write!(text, "; priority {}", image.priority);
    }
    if let Some(took) = image.staged_seconds {
        _ = write!(text, "; staged in {took:.1} s");
    }
    text.push('\n');
    if let Some(words) = image_words(image) {
        let reason = image.reason.as_deref();
        let reason = reason.filter(|reason| *reason != words);
        let reason = reason.map(|reason| format!(" ({reason})"));
        _ = writeln!(text, "  {words}{}", reason.unwrap_or_default());
    }
    let reference = image.references.first().unwrap_or(&image.digest);
    _ = writeln!(text, "  {}", recipe(reference, image.recipe.as_ref()));
    text.push_str(&prediction::beside_fact(image));
    text
}

/// What a host fetches from the registry.
fn fetching(lease: &LeaseView) -> String {
    let (fetched, content) = (lease.chunks, &lease.content);
    match lease.range {
        None => format!("fetches {content} from the registry: {fetched} MiB came"),
        Some(RangeView { from, until }) => format!(
            "fetches the MiB {from} to {} of {content} from the registry: {fetched} MiB came",
            until.saturating_sub(1)
        ),
    }
}

/// Whether an image has a recipe, and what is amiss with it.
fn recipe(reference: &str, recipe: Option<&RecipeView>) -> String {
    let Some(recipe) = recipe else {
        return format!("no recipe: parbake recipe {reference} --push makes one");
    };
    let whose = match recipe.made_by_fleet {
        true => "made by the fleet",
        false => "from the registry",
    };
    let mut text = format!("recipe {} ({}), {whose}", recipe.digest, Bytes(recipe.size));
    match recipe.doubted_contents.len() {
        0 => {}
        doubted => {
            _ = write!(
                text,
                "; it doesn't fit the registry's bytes of {doubted} contents: parbake recipe {reference} --verify"
            );
        }
    }
    text
}

/// The size of an image. The sum of its contents is less than its disk where contents are equal, or where a content's
/// raw size isn't known.
fn size(disk_bytes: u64, raw_bytes: u64) -> String {
    // an older coordinator doesn't say how large the disk is, and a difference as small as the NVRAM isn't worth a word
    match disk_bytes {
        0 => format!("{} raw", Bytes(raw_bytes)),
        disk if disk.abs_diff(raw_bytes) <= disk / 50 => format!("{} raw", Bytes(raw_bytes)),
        disk => format!(
            "disk {}, contents {} (each once)",
            Bytes(disk),
            Bytes(raw_bytes)
        ),
    }
}

/// Why an image isn't staged, host by host.
pub fn failures(image: &ImageView) -> String {
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

/// The hosts that lack room.
pub fn short_of_room(hosts: &[ShortOfRoom]) -> String {
    let mut text = String::new();
    for host in hosts {
        let before = match host.before_bytes {
            0 => String::new(),
            bytes => format!(", {} of images that come before it", Bytes(bytes)),
        };
        _ = writeln!(
            text,
            "{} lacks room: {} to store{before}, {} free of which {} have to stay free",
            host.host,
            Bytes(host.needed_bytes),
            Bytes(host.free_bytes),
            Bytes(host.floor_bytes)
        );
    }
    text
}

/// The reasons for which a host lacks an image.
pub fn why(host: &HostView) -> String {
    if host.why.is_empty() {
        return format!("{}: nothing is missing\n", host.host);
    }
    let mut text = String::new();
    for reason in &host.why {
        _ = writeln!(text, "{}: {reason}", host.host);
    }
    text
}

/// The roll of a pool, in a few lines.
pub fn pool(pool: &PoolView) -> String {
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

/// The roll of a pool, with the Pods that are stale or in flight.
pub fn roll(pool_: &PoolView) -> String {
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

/// Whether a Pod may drain, with the reason.
pub fn pod(pod: &PodView) -> String {
    let pool = pod.pool.as_deref().unwrap_or("no pool");
    format!(
        "{}/{} ({pool}): {} [{}]\n",
        pod.namespace, pod.name, pod.message, pod.reason
    )
}

/// The bytes that staging an image would move, and the predicted time.
pub fn plan(plan: &PlanReply) -> String {
    let mut text = format!(
        "{}\n  {}\n  {} raw, {} in the registry (compressed)\n  {}\n{}",
        plan.reference,
        plan.digest,
        Bytes(plan.raw_bytes),
        Bytes(plan.registry_bytes),
        recipe(&plan.reference, plan.recipe.as_ref()),
        prediction::plan(plan)
    );
    let short = plan.hosts.iter();
    let short = short.filter_map(|host| host.short_of_room.clone());
    for line in short_of_room(&short.collect::<Vec<_>>()).lines() {
        _ = writeln!(text, "  {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_recipe_or_the_command_that_makes_one() {
        let none = recipe("r.test/i:1", None);
        assert_eq!(
            none,
            "no recipe: parbake recipe r.test/i:1 --push makes one"
        );
        let mut found = RecipeView {
            digest: "sha256:x".into(),
            size: 3_400_000,
            made_by_fleet: true,
            doubted_contents: Vec::new(),
        };
        let made = "recipe sha256:x (3.4 MB), made by the fleet";
        assert_eq!(recipe("r.test/i:1", Some(&found)), made);
        found.made_by_fleet = false;
        let fine = "recipe sha256:x (3.4 MB), from the registry";
        assert_eq!(recipe("r.test/i:1", Some(&found)), fine);
        found.doubted_contents.push("sha256:y".into());
        assert_eq!(
            recipe("r.test/i:1", Some(&found)),
            format!(
                "{fine}; it doesn't fit the registry's bytes of 1 contents: parbake recipe r.test/i:1 --verify"
            )
        );
    }

    /// The longest word of what is shown: a digest.
    const DIGEST: usize = "sha256:".len() + 64;

    fn digest() -> String {
        format!("sha256:{}", "0f".repeat(32))
    }

    fn host(number: usize, state: HostState) -> HostProgress {
        HostProgress {
            host: format!("berlin-rack-07-shelf-3-mac-mini-m4pro-{number}"),
            state,
            reason: None,
            message: String::new(),
            connected: true,
            total_bytes: 140_000_000_000,
            held_bytes: 30_000_000_000,
            bytes: client::view::SourceBytes {
                origin: 1_000_000_000,
                peers: 17_000_000_000,
                local: 98_000_000_000,
            },
            written_bytes: 0,
            predicted: None,
            measured: None,
            upload_bytes: 0,
            bytes_per_second: 0,
            eta_seconds: None,
            began_at: None,
            presence_age_ms: None,
            golden: false,
            recipe: None,
            failed_seconds: None,
        }
    }

    /// An image on so many hosts, about which there is as much to say as there can be.
    fn shown(hosts: usize) -> ImageView {
        let host = |number| {
            match number % 3 {
            0 => HostProgress {
                bytes_per_second: 52_600_000,
                eta_seconds: Some(3_000),
                ..host(number, HostState::Staging)
            },
            1 => HostProgress {
                reason: Some("no_room".into()),
                message: "the image needs 140.0 GB, but of 96.2 GB that are free 40.0 GB have to stay free".into(),
                ..host(number, HostState::Failed)
            },
            _ => host(number, HostState::Present),
        }
        };
        ImageView {
            digest: digest(),
            references: ["v2", "latest"].map(|tag| format!("ghcr.io/organisation/runner:{tag}")).into(),
            state: ImageState::Staging,
            reason: Some("throttled".into()),
            message: "the registry asked to be left alone; it is asked again in 12 s, and peers go on meanwhile".into(),
            disk_bytes: 140_000_000_000,
            raw_bytes: 100_000_000_000,
            registry_bytes: 57_900_000_000,
            recipe: Some(RecipeView {
                digest: digest(),
                size: 34_100_000,
                made_by_fleet: false,
                doubted_contents: vec![digest()],
            }),
            contents: 261,
            contents_done: 0,
            hosts_selected: hosts as u64,
            hosts_present: 0,
            hosts_failed: 0,
            wanted_at: 0,
            priority: 0,
            staged_seconds: Some(1_234.5),
            prediction: None,
            measured: None,
            hosts: (0..hosts).map(host).collect(),
            leases: Vec::new(),
        }
    }

    /// What an operator sees in a terminal of 80 columns.
    fn at_eighty(text: &str) -> String {
        let text = crate::width::fitted(text.to_owned(), Some(80));
        for line in text.lines() {
            let (width, words) = (line.chars().count(), line.split_whitespace().count());
            assert!(width <= 80 || words == 1, "{width} columns:\n{line}");
        }
        text
    }

    #[test]
    fn the_status_fits_a_terminal_of_eighty_columns() {
        let three = at_eighty(&image(&shown(3)));
        let expected = format!(
            "ghcr.io/organisation/runner:v2, ghcr.io/organisation/runner:latest
  {0}
  staging: on 0 of 3 hosts; disk 140.0 GB, contents 100.0 GB (each once),
      57.9 GB in the registry (compressed); staged in 1234.5 s
  the registry asked to be left alone; it is asked again in 12 s, and peers go
      on meanwhile (throttled)
  recipe {0}
      (34.1 MB), from the registry; it doesn't fit the registry's bytes of
      1 contents: parbake recipe ghcr.io/organisation/runner:v2 --verify
  berlin-rack-07-shelf-3-mac-mini-m4pro-0   21% of 140.0 GB: staging, 52.6 MB/s,
      50 min 0 s to go; received 18.0 GB (registry 1.0 GB, peers 17.0 GB);
      98.0 GB were here already
",
            digest()
        );
        assert!(three.starts_with(&expected), "{three}");
        let thirty = at_eighty(&image(&shown(30)));
        let hosts = thirty.lines().filter(|line| line.starts_with("  berlin"));
        assert_eq!(hosts.count(), 30);
    }

    #[test]
    fn a_list_of_images_shows_a_few_hosts_that_lack_one_and_counts_the_others() {
        let text = at_eighty(&image_in_short(&shown(30)));
        let hosts: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("  berlin"))
            .collect();
        assert_eq!(hosts.len(), MOST_LACKING);
        // hosts that need somebody come before those on which bytes move
        assert!(hosts.iter().all(|line| line.contains("failed")), "{text}");
        assert!(
            text.ends_with(
                "  and 15 more lack it: parbake status ghcr.io/organisation/runner:v2\n"
            ),
            "{text}"
        );
        let two = image_in_short(&shown(3));
        assert!(
            !two.contains("more lack it") && !two.contains("m4pro-2 "),
            "{two}"
        );
    }

    #[test]
    fn the_status_shows_a_priority_that_somebody_gave() {
        let line = |priority| {
            let shown = ImageView {
                priority,
                ..shown(1)
            };
            let text = image(&shown);
            text.lines().nth(2).unwrap().to_owned()
        };
        assert!(!line(0).contains("priority"));
        let (urgent, late) = (line(5), line(-1));
        assert!(urgent.ends_with("(compressed); priority 5; staged in 1234.5 s"));
        assert!(late.contains("; priority -1;"), "{late}");
    }

    #[test]
    fn the_status_says_who_fetches_which_part_of_a_content_from_the_registry() {
        let lease = |host: &str, range| LeaseView {
            content: digest(),
            host: host.into(),
            range,
            chunks: 17,
            idle_ms: 0,
        };
        let range = Some(RangeView {
            from: 128,
            until: 256,
        });
        let mut shown = ImageView {
            hosts: Vec::new(),
            leases: vec![lease("mini-2", range), lease("mini-3", None)],
            ..shown(0)
        };
        let digest = digest();
        let expected = format!(
            "  mini-2  fetches the MiB 128 to 255 of {digest} from the registry: 17 MiB came
  mini-3  fetches {digest} from the registry: 17 MiB came
"
        );
        let text = image(&shown);
        assert!(text.ends_with(&expected), "{text}");
        at_eighty(&text);
        shown.state = ImageState::Cancelled;
        assert!(!image(&shown).contains("fetches"));
    }

    #[test]
    fn a_plan_fits_a_terminal_of_eighty_columns() {
        for hosts in [3, 30] {
            let short = |host: String| ShortOfRoom {
                host,
                needed_bytes: 140_000_000_000,
                before_bytes: 0,
                free_bytes: 96_200_000_000,
                floor_bytes: 40_000_000_000,
            };
            let hosts = shown(hosts).hosts.into_iter();
            let hosts = hosts.map(|host| client::view::PlannedHost {
                host: host.host.clone(),
                connected: false,
                present: false,
                missing_bytes: 0,
                move_bytes: 0,
                bytes: client::view::StagingBytes {
                    origin: host.bytes.origin,
                    peers: host.bytes.peers,
                    local: host.bytes.local,
                    written: 0,
                },
                download_bytes_per_second: 1,
                upload_bytes_per_second: 1,
                short_of_room: Some(short(host.host)),
            });
            let reply = PlanReply {
                digest: digest(),
                reference: "ghcr.io/organisation/runner:v2".into(),
                raw_bytes: 140_000_000_000,
                registry_bytes: 57_900_000_000,
                origin_bytes: 0,
                recipe: shown(0).recipe,
                predicted_seconds: 0.0,
                bound_by: None,
                origin_bytes_per_second: 1,
                prediction: Some(client::view::PredictionView {
                    unknown: ["registry", "link", "uploads", "disk"]
                        .map(Into::into)
                        .into(),
                    ..client::view::PredictionView::default()
                }),
                rate: None,
                hosts: hosts.collect(),
            };
            let text = at_eighty(&plan(&reply));
            assert!(text.contains(&digest()) && DIGEST + "  recipe ".len() == 80);
        }
    }

    #[test]
    fn reasons_fit_a_terminal_of_eighty_columns() {
        let reason = "ghcr.io/organisation/runner:v2 failed (no_room): the image needs 140.0 GB, but of 96.2 GB that are free 40.0 GB have to stay free";
        let host = HostView {
            host: "berlin-rack-07-shelf-3-mac-mini-m4pro-12".into(),
            why: vec![reason.into(); 30],
            ..serde_json::from_str(HOST).unwrap()
        };
        let text = at_eighty(&why(&host));
        let begin =
            "berlin-rack-07-shelf-3-mac-mini-m4pro-12: ghcr.io/organisation/runner:v2 failed
    (no_room): the image needs 140.0 GB, but of 96.2 GB that are free 40.0 GB
    have to stay free
";
        assert_eq!(text, begin.repeat(30));
    }

    #[test]
    fn what_comes_before_is_told_where_room_is_lacking() {
        let lacks = |before_bytes| {
            short_of_room(&[ShortOfRoom {
                host: "mini-1".into(),
                needed_bytes: 30_000_000_000,
                before_bytes,
                free_bytes: 50_000_000_000,
                floor_bytes: 10_000_000_000,
            }])
        };
        assert_eq!(
            lacks(20_000_000_000),
            "mini-1 lacks room: 30.0 GB to store, 20.0 GB of images that come before it, \
             50.0 GB free of which 10.0 GB have to stay free\n"
        );
        assert!(!lacks(0).contains("before"));
    }

    const HOST: &str = r#"{"host": "", "zone": "", "named": true, "connected": true, "revoked": false,
        "quarantined": false, "address": null, "version": "", "volume": null, "backlog_bytes": 0,
        "upload_bytes_per_second": 0, "blames": 0, "images": [], "why": []}"#;
}
