//! `parbake hosts`: the hosts of the fleet. Those that somebody has to look at come first.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use client::{
    Client,
    view::{HostState, HostView},
};
use http::Method;
use proto::figure::Bytes;

use crate::{ended::Outcome, say::print, table::Table, width};

/// A terminal shows at most this many hosts that are well, unless all are asked for.
const MOST_WELL: usize = 40;

/// Options of `hosts`.
#[derive(Args, Debug, Default)]
pub struct Options {
    /// Show only hosts that aren't connected.
    #[arg(long)]
    away: bool,
    /// Show only hosts on which an image that they shall hold can't be staged.
    #[arg(long)]
    failed: bool,
    /// Show only hosts of this zone. [default: of all zones]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Show all hosts on a terminal, too. [default: those that somebody has to look at, and 40 others at most]
    #[arg(long)]
    all: bool,
    /// How to show them: `wide` has more columns, `json` is one array. [default: a table]
    #[arg(long, short, value_name = "FORMAT", conflicts_with = "json")]
    output: Option<Output>,
    /// Print a JSON array with one object for each host, as `-o json` does.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// More columns.
    Wide,
    /// A JSON array with one object for each host.
    Json,
}

/// The state of a host's own, the first one that somebody has to look at before the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Quarantined,
    Away,
    NeverEnrolled,
    Revoked,
    Failed,
    Connected,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Quarantined => "quarantined",
            Self::Away => "away",
            Self::NeverEnrolled => "never enrolled",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
            Self::Connected => "connected",
        }
    }
}

fn state(host: &HostView) -> State {
    if host.revoked {
        State::Revoked
    } else if host.quarantined {
        State::Quarantined
    } else if !host.connected {
        match host.never_enrolled {
            true => State::NeverEnrolled,
            false => State::Away,
        }
    } else if has_failed(host) {
        State::Failed
    } else {
        State::Connected
    }
}

fn has_failed(host: &HostView) -> bool {
    let wanted = host.images.iter().filter(|image| image.wanted);
    wanted
        .map(|image| image.progress.state)
        .any(|state| state == HostState::Failed)
}

impl Options {
    fn shows(&self, host: &HostView) -> bool {
        let zone = self.zone.as_ref();
        zone.is_none_or(|zone| host.zone == *zone)
            && (!self.away || (!host.connected && !host.revoked))
            && (!self.failed || has_failed(host))
    }
}

/// Shows the hosts.
pub(crate) async fn show(options: &Options, client: &Client) -> anyhow::Result<Outcome> {
    let mut hosts: Vec<HostView> = client.read(Method::GET, "/v1/hosts", None::<&()>).await?;
    hosts.retain(|host| options.shows(host));
    let json = options.json || options.output == Some(Output::Json);
    print(json, &hosts, || {
        text(&hosts, options, width::columns(&std::io::stdout()))
    })?;
    Ok(Outcome::Yes)
}

/// The hosts as a file or a pipe gets them.
#[must_use]
pub fn listed(hosts: &[HostView]) -> String {
    text(hosts, &Options::default(), None)
}

/// The hosts in a table, and how many there are of each state. `columns` is the width of a terminal.
fn text(hosts: &[HostView], options: &Options, columns: Option<usize>) -> String {
    if hosts.is_empty() {
        let filtered = options.away || options.failed || options.zone.is_some();
        return match filtered {
            true => "no host of the fleet matches --away, --failed or --zone as given\n".to_owned(),
            false => "the fleet has no hosts\n".to_owned(),
        };
    }
    let mut shown: Vec<(State, &HostView)> = hosts.iter().map(|host| (state(host), host)).collect();
    // stable: within a state the coordinator's order of names holds
    shown.sort_by_key(|(state, _)| *state);
    let mut text = summary(&shown);
    let well = shown
        .iter()
        .position(|(state, _)| *state == State::Connected);
    let well = well.unwrap_or(shown.len());
    let most = match columns {
        Some(_) if !options.all => well + MOST_WELL,
        _ => usize::MAX,
    };
    let left_out = shown.len().saturating_sub(most);
    shown.truncate(most);
    text += &match options.output {
        Some(Output::Wide) => wide(&shown, columns),
        _ => narrow(&shown, columns),
    };
    if left_out > 0 {
        _ = writeln!(
            text,
            "and {left_out} more that are connected: --all shows them"
        );
    }
    text
}

/// How many hosts there are, and how many of each state that isn't the usual one.
fn summary(hosts: &[(State, &HostView)]) -> String {
    let mut text = match hosts.len() {
        1 => "1 host".to_owned(),
        many => format!("{many} hosts"),
    };
    for state in [
        State::Connected,
        State::Failed,
        State::Away,
        State::Quarantined,
        State::NeverEnrolled,
        State::Revoked,
    ] {
        let many = hosts.iter().filter(|(of, _)| *of == state).count();
        if many > 0 {
            _ = write!(text, ", {many} {}", state.as_str());
        }
    }
    text.push('\n');
    text
}

fn narrow(hosts: &[(State, &HostView)], columns: Option<usize>) -> String {
    let mut table = Table::new(["HOST", "STATE", "IMAGES", "FREE", "ZONE"]);
    for (state, host) in hosts {
        table.push(cells(*state, host));
    }
    table.text(columns)
}

fn wide(hosts: &[(State, &HostView)], columns: Option<usize>) -> String {
    let mut table = Table::new([
        "HOST", "STATE", "IMAGES", "FREE", "ZONE", "VERSION", "ADDRESS", "SENDS", "TO PUSH",
        "BLAMES",
    ]);
    for (state, host) in hosts {
        let [name, state, images, free, zone] = cells(*state, host);
        table.push([
            name,
            state,
            images,
            free,
            zone,
            host.version.clone(),
            host.address.clone().unwrap_or_default(),
            format!("{}/s", Bytes(host.upload_bytes_per_second)),
            Bytes(host.backlog_bytes).to_string(),
            host.blames.to_string(),
        ]);
    }
    table.text(columns)
}

/// What both tables show of a host.
fn cells(state: State, host: &HostView) -> [String; 5] {
    [
        host.host.clone(),
        state_words(state, host),
        images(host),
        free(host),
        host.zone.clone(),
    ]
}

fn state_words(state: State, host: &HostView) -> String {
    let reason = host
        .revocation
        .as_ref()
        .map(|revoked| revoked.reason.as_str());
    match (state, reason) {
        (State::Revoked, Some(reason)) if !reason.is_empty() => format!("revoked ({reason})"),
        _ => state.as_str().to_owned(),
    }
}

/// How many of the images that a host shall hold are present there.
fn images(host: &HostView) -> String {
    let wanted = host.images.iter().filter(|image| image.wanted);
    let present = wanted
        .clone()
        .filter(|image| image.progress.state == HostState::Present);
    format!("{}/{}", present.count(), wanted.count())
}

fn free(host: &HostView) -> String {
    let volume = host.volume.as_ref();
    volume.map_or_else(String::new, |volume| {
        format!(
            "{} of {}",
            Bytes(volume.free_bytes),
            Bytes(volume.total_bytes)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = r#"{"host": "", "zone": "", "named": true, "connected": true, "revoked": false,
        "quarantined": false, "address": null, "version": "0.1.0", "backlog_bytes": 0,
        "volume": {"path": "/", "total_bytes": 270500000000, "free_bytes": 54200000000, "floor_bytes": 0},
        "upload_bytes_per_second": 0, "blames": 0, "images": [], "why": []}"#;

    fn host(name: &str) -> HostView {
        HostView {
            host: name.into(),
            ..serde_json::from_str(HOST).unwrap()
        }
    }

    fn away(name: &str) -> HostView {
        HostView {
            connected: false,
            ..host(name)
        }
    }

    #[test]
    fn hosts_that_somebody_has_to_look_at_come_first_below_one_total() {
        let hosts = [host("mini-1"), away("mini-2"), host("mini-3")];
        let expected = "\
3 hosts, 2 connected, 1 away
HOST    STATE      IMAGES  FREE                 ZONE
mini-2  away       0/0     54.2 GB of 270.5 GB
mini-1  connected  0/0     54.2 GB of 270.5 GB
mini-3  connected  0/0     54.2 GB of 270.5 GB
";
        assert_eq!(text(&hosts, &Options::default(), None), expected);
    }

    #[test]
    fn a_terminal_shows_each_host_that_is_not_well_and_some_that_are() {
        let many = (0..1000).map(|at| host(&format!("mini-{at}")));
        let hosts: Vec<_> = many
            .chain((1000..1060).map(|at| away(&format!("mini-{at}"))))
            .collect();
        let mut options = Options::default();
        let shown = text(&hosts, &options, Some(80));
        assert_eq!(shown.lines().count(), 2 + 60 + MOST_WELL + 1);
        assert!(shown.starts_with("1060 hosts, 1000 connected, 60 away\n"));
        assert!(shown.ends_with("and 960 more that are connected: --all shows them\n"));
        // a file or a pipe gets every host
        assert_eq!(text(&hosts, &options, None).lines().count(), 2 + 1060);
        options.all = true;
        assert_eq!(text(&hosts, &options, Some(80)).lines().count(), 2 + 1060);
    }

    #[test]
    fn filters_leave_only_what_they_name() {
        let there = HostView {
            zone: "berlin".into(),
            ..host("mini-1")
        };
        let gone = away("mini-2");
        let revoked = HostView {
            revoked: true,
            ..away("mini-3")
        };
        let of = |options: &Options| {
            let hosts = [&there, &gone, &revoked];
            let shown = hosts.into_iter().filter(|host| options.shows(host));
            shown.map(|host| host.host.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of(&Options::default()), ["mini-1", "mini-2", "mini-3"]);
        let only_away = Options {
            away: true,
            ..Options::default()
        };
        // who is revoked isn't waited for
        assert_eq!(of(&only_away), ["mini-2"]);
        let berlin = Options {
            zone: Some("berlin".into()),
            ..Options::default()
        };
        assert_eq!(of(&berlin), ["mini-1"]);
        let failed = Options {
            failed: true,
            ..Options::default()
        };
        assert!(of(&failed).is_empty());
        let none = text(&[], &failed, None);
        assert_eq!(
            none,
            "no host of the fleet matches --away, --failed or --zone as given\n"
        );
    }

    #[test]
    fn the_table_of_hosts_fits_a_terminal_of_eighty_columns() {
        let hosts = [
            HostView {
                zone: "berlin-1".into(),
                ..host("berlin-rack-07-shelf-3-mac-mini-m4pro-12.corp.example.internal")
            },
            away("mini-1"),
        ];
        let shown = text(&hosts, &Options::default(), Some(80));
        assert!(
            shown.contains(
                "
berlin-rack-07…xample.internal "
            ),
            "{shown}"
        );
        assert!(
            shown.lines().all(|line| line.chars().count() <= 80),
            "{shown}"
        );
    }
}
