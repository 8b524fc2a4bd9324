//! Predictions as text for people: what staging an image would move, and beside it what it moved. No line is wider than
//! 80 columns, unless a name is.

use std::{fmt::Write as _, time::Duration};

use client::view::{ImageView, PlanReply, PlannedHost, PredictionView, RateView, StagingBytes};
use proto::figure::{Bytes, Span};

/// The columns of a host's name; a longer one pushes its figures to the right.
const NAME: usize = 24;
/// The columns of a figure, such as `999.9 MB`, with a space before it.
const FIGURE: usize = 10;

/// The bytes that staging an image would move, host by host, and the predicted time.
pub(crate) fn plan(plan: &PlanReply) -> String {
    let mut text = String::new();
    match &plan.prediction {
        Some(prediction) => by_prediction(&mut text, plan, prediction),
        None => by_earlier_version(&mut text, plan),
    }
    text
}

fn by_prediction(text: &mut String, plan: &PlanReply, prediction: &PredictionView) {
    let name = plan.hosts.iter().map(|host| host.host.len()).max();
    let name = name.unwrap_or(0).clamp("all hosts".len(), NAME);
    _ = writeln!(text, "  {:<name$}{}", "", heads());
    _ = writeln!(
        text,
        "  {:<name$}{}",
        "all hosts",
        figures(prediction.bytes)
    );
    for host in &plan.hosts {
        let away = if host.connected { "" } else { ", away" };
        let what = match host.present {
            true => "  present".to_owned(),
            false => figures(host.bytes),
        };
        _ = writeln!(text, "  {:<name$}{what}{away}", host.host);
    }
    if plan.hosts.iter().any(|host| !host.present) {
        text.push_str(
            "  Registry, peers and written at most, local at least: hosts look closer, for\n  \
             single chunks. Written bytes are the space that is taken.\n",
        );
    }
    _ = writeln!(text, "  time: {}", time(prediction, plan.rate.as_ref()));
}

/// The predicted time, what limits it, and what it leaves out.
fn time(prediction: &PredictionView, rate: Option<&RateView>) -> String {
    let unknown = prediction.unknown.iter().map(|word| long(word));
    let unknown: Vec<&str> = unknown.collect();
    let unknown = match unknown.as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        [first @ .., last] => Some(format!("{} and {last}", first.join(", "))),
    };
    let known = prediction
        .milliseconds
        .zip(prediction.bound_by.as_deref())
        .map(|(millis, bound)| {
            let rate = rate.map(|rate| {
                let how = match rate.known_by.as_str() {
                    "set" => "as the fleet file says",
                    "limited" => "as the limit says",
                    "measured" => "as measured",
                    _ => "as it reports",
                };
                format!("\n  ({}/s, {how})", Bytes(rate.bytes_per_second))
            });
            format!(
                "at least {}, for {}{}",
                short_time(Duration::from_millis(millis)),
                long(bound),
                rate.unwrap_or_default()
            )
        });
    match (known, unknown) {
        (None, None) => "nothing has to move".to_owned(),
        (Some(known), None) => known,
        (None, Some(unknown)) => format!(
            "unknown. Nobody knows the rates of\n  {unknown}.\n  \
             They are measured while images are staged, or set in the fleet file's [rates]"
        ),
        (Some(known), Some(unknown)) => {
            format!("{known}.\n  Not known: {unknown}")
        }
    }
}

/// What limits a time, for people.
fn long(bound: &str) -> &str {
    match bound {
        "registry" => "the registry",
        "link" => "the slowest host's network",
        "uploads" => "all uploads",
        "disk" => "the slowest disk",
        other => other,
    }
}

fn short_time(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => Span::seconds(seconds).to_string(),
    }
}

/// A coordinator of an earlier version doesn't tell local bytes apart, and assumes rates.
fn by_earlier_version(text: &mut String, plan: &PlanReply) {
    _ = writeln!(
        text,
        "  {} would leave the registry",
        Bytes(plan.origin_bytes)
    );
    match &plan.bound_by {
        None => text.push_str("  nothing has to move\n"),
        Some(bound) => {
            _ = writeln!(
                text,
                "  at best in {:.1} s, bound by {bound} (registry {}/s)",
                plan.predicted_seconds,
                Bytes(plan.origin_bytes_per_second)
            );
        }
    }
    for host in &plan.hosts {
        _ = writeln!(text, "  {:<NAME$} {}", host.host, earlier_host(host));
    }
}

fn earlier_host(host: &PlannedHost) -> String {
    let away = if host.connected { "" } else { ", away" };
    match host.present {
        true => format!("present{away}"),
        false => format!(
            "{} to move ({} raw){away}",
            Bytes(host.move_bytes),
            Bytes(host.missing_bytes)
        ),
    }
}

/// What was predicted of an image's staging, and what it moved. Empty where nothing was predicted.
pub(crate) fn beside_fact(image: &ImageView) -> String {
    let Some((prediction, measured)) = image.prediction.as_ref().zip(image.measured) else {
        return String::new();
    };
    let predicted_time = match prediction.milliseconds {
        Some(millis) => short_time(Duration::from_millis(millis)),
        None if prediction.unknown.is_empty() => "0.0 s".to_owned(),
        None => "unknown".to_owned(),
    };
    let bound = prediction.bound_by.as_ref();
    let bound = bound.map_or_else(String::new, |bound| format!(" ({bound})"));
    let took = image
        .staged_seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let took = took.map_or_else(|| "so far".to_owned(), short_time);
    format!(
        "  {:<9}{}  time\n  predicted{}  {predicted_time}{bound}\n  measured {}  {took}\n",
        "",
        heads(),
        figures(prediction.bytes),
        figures(measured),
    )
}

fn heads() -> String {
    let heads = ["registry", "peers", "local", "written"];
    heads.map(|head| format!("{head:>FIGURE$}")).concat()
}

fn figures(bytes: StagingBytes) -> String {
    let figure = |(_, bytes)| format!("{:>FIGURE$}", Bytes(bytes).to_string());
    bytes.parts().map(figure).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn bytes(origin: u64, peers: u64, local: u64, written: u64) -> StagingBytes {
        StagingBytes {
            origin,
            peers,
            local,
            written,
        }
    }

    fn host(name: &str, connected: bool, bytes: StagingBytes) -> PlannedHost {
        PlannedHost {
            host: name.into(),
            connected,
            present: bytes == StagingBytes::default(),
            missing_bytes: 0,
            move_bytes: 0,
            bytes,
            download_bytes_per_second: 1,
            upload_bytes_per_second: 1,
            short_of_room: None,
        }
    }

    fn reply(hosts: Vec<PlannedHost>, prediction: PredictionView) -> PlanReply {
        PlanReply {
            digest: "sha256:0f".into(),
            reference: "ghcr.io/org/runner:v2".into(),
            raw_bytes: 140_000_000_000,
            registry_bytes: 57_900_000_000,
            origin_bytes: 0,
            recipe: None,
            predicted_seconds: 0.0,
            bound_by: None,
            origin_bytes_per_second: 1,
            prediction: Some(prediction),
            rate: None,
            hosts,
        }
    }

    #[test]
    fn a_plan_is_a_table_of_eighty_columns() {
        let prediction = PredictionView {
            bytes: bytes(18_600_000_000, 204_600_000_000, 1_082_000_000_000, 0),
            milliseconds: Some(159_000),
            bound_by: Some("link".into()),
            unknown: vec!["disk".into()],
            ..PredictionView::default()
        };
        let hosts = vec![
            host(
                "mini-1",
                true,
                bytes(
                    1_550_000_000,
                    17_050_000_000,
                    98_300_000_000,
                    41_600_000_000,
                ),
            ),
            host("mini-2", true, StagingBytes::default()),
            host(
                "a-name-of-24-characters-",
                false,
                bytes(999_900_000_000, 999_900_000_000, 999_900_000_000, 1),
            ),
        ];
        let mut reply = reply(hosts, prediction);
        reply.rate = Some(RateView {
            bytes_per_second: 117_000_000,
            known_by: "measured".into(),
        });
        let text = plan(&reply);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        let expected = "                            registry     peers     local   written
  all hosts                  18.6 GB  204.6 GB    1.0 TB       0 B
  mini-1                      1.5 GB   17.0 GB   98.3 GB   41.6 GB
  mini-2                    present
  a-name-of-24-characters-  999.9 GB  999.9 GB  999.9 GB       1 B, away
  Registry, peers and written at most, local at least: hosts look closer, for
  single chunks. Written bytes are the space that is taken.
  time: at least 2 min 39 s, for the slowest host's network
  (117.0 MB/s, as measured).
  Not known: the slowest disk
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_time_that_nobody_knows_isnt_made_up() {
        let unknown = PredictionView {
            unknown: ["registry", "link", "uploads", "disk"]
                .map(Into::into)
                .into(),
            ..PredictionView::default()
        };
        assert_eq!(
            time(&unknown, None),
            "unknown. Nobody knows the rates of\n  the registry, the slowest host's network, all uploads and the slowest disk.\n  \
             They are measured while images are staged, or set in the fleet file's [rates]"
        );
        assert_eq!(
            time(&PredictionView::default(), None),
            "nothing has to move"
        );
    }
}
