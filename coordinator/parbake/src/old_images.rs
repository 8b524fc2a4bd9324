//! `parbake clean --dry-run`: which old images hosts would remove.

use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use client::{
    Client,
    view::{HostOldImages, OldImagesReply, OldImagesRequest, RuleSource, RuleView},
};
use http::Method;
use proto::{figure::Bytes, retention::Rule};

use crate::{ended::Outcome, say::print};

/// Options of `clean`.
#[derive(Args, Debug)]
pub struct Options {
    /// Names of the hosts to ask. [default: all hosts]
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// Remove nothing. There is no other way to call this command.
    #[arg(long)]
    dry_run: bool,
    /// How many images of each repository stay, the wanted ones among them. [default: what each host goes by]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// For how many days after its last use an image stays, beside those that stay for their number. [default: what
    /// each host goes by]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..))]
    days: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Asks the coordinator, which asks the hosts.
pub(crate) async fn clean(
    options: &Options,
    client: impl FnOnce() -> anyhow::Result<Client>,
) -> anyhow::Result<Outcome> {
    if !options.dry_run {
        bail!(
            "nothing is removed from here: each host removes its old images once a minute, by keep_images and keep_days \
             of its own settings or of the coordinator's [retention]; see with --dry-run what would go"
        );
    }
    let rule = Rule::new(options.keep, options.days)?;
    let request = OldImagesRequest {
        hosts: Some(options.hosts.clone()).filter(|hosts| !hosts.is_empty()),
        rule: rule.map(|rule| RuleView {
            keep_images: rule.images(),
            keep_days: rule.days(),
        }),
    };
    let reply: OldImagesReply = client()?
        .read(Method::POST, "/v1/old-images", Some(&request))
        .await?;
    print(options.json, &reply, || text(&reply))?;
    Ok(Outcome::Yes)
}

/// The answer as people read it.
fn text(reply: &OldImagesReply) -> String {
    let mut text = String::new();
    for host in &reply.hosts {
        text += &of_host(host);
    }
    let answered = reply.hosts.iter().filter(|host| host.answered).count();
    let sum =
        |of: fn(&HostOldImages) -> u64| reply.hosts.iter().map(of).fold(0, u64::saturating_add);
    let (freed, going) = (
        sum(|host| host.freed_bytes),
        sum(|host| u64::from(host.going)),
    );
    _ = writeln!(
        text,
        "{answered} of {} hosts answered: {}",
        reply.hosts.len(),
        match going {
            0 => "no image would go".to_owned(),
            _ => format!(
                "{going} would go, {}, less what they share with files that stay",
                Bytes(freed)
            ),
        }
    );
    text
}

fn of_host(host: &HostOldImages) -> String {
    if !host.answered {
        return format!("{}: no answer: {}\n", host.host, host.note);
    }
    let rule = host.rule.and_then(|rule| {
        let rule = Rule::new(rule.keep_images, rule.keep_days);
        rule.ok().flatten()
    });
    let mut text = format!("{}: ", host.host);
    match rule {
        None => text += "all images stay",
        Some(rule) => {
            match host.going {
                0 => text += "nothing would go",
                going => _ = write!(text, "{going} would go, {},", Bytes(host.freed_bytes)),
            }
            let whose = match host.source {
                RuleSource::Host => " by the host's own settings",
                RuleSource::Fleet => " by the fleet's rule",
                RuleSource::Asked | RuleSource::None => "",
            };
            _ = write!(text, "{whose} where {rule}");
        }
    }
    if !host.note.is_empty() {
        _ = write!(text, "; {}", host.note);
    }
    if host.left_bytes > 0 {
        let left = Bytes(host.left_bytes);
        _ = write!(
            text,
            "; {left} of images that went before are still to be removed"
        );
    }
    text.push('\n');
    for image in &host.images {
        let named = match &image.references[..] {
            [] => image.digest.clone(),
            references => references.join(", "),
        };
        let becomes = match image.goes {
            true => "would go".to_owned(),
            false => format!("stays: {}", image.why),
        };
        _ = write!(text, "  {named}  {}  {becomes}", Bytes(image.bytes));
        match image.goldens {
            0 => {}
            1 => text += "; 1 golden",
            goldens => _ = write!(text, "; {goldens} goldens"),
        }
        text.push('\n');
    }
    if host.more > 0 {
        _ = writeln!(text, "  and {} more", host.more);
    }
    text
}

#[cfg(test)]
mod tests {
    use client::view::OldImageView;

    use super::*;

    #[test]
    fn each_host_says_what_would_go_by_whose_rule_and_why_the_rest_stays() {
        let image = |tag: &str, goes: bool, why: &str| OldImageView {
            references: vec![format!("ghcr.io/org/runner:{tag}")],
            bytes: 31_000_000_000,
            goes,
            why: why.to_owned(),
            goldens: u32::from(goes),
            ..OldImageView::default()
        };
        let hosts = vec![
            HostOldImages {
                host: "mini-1".into(),
                answered: true,
                rule: Some(RuleView {
                    keep_images: Some(2),
                    keep_days: None,
                }),
                source: RuleSource::Fleet,
                going: 1,
                freed_bytes: 31_000_000_000,
                images: vec![
                    image("v1", true, ""),
                    image("v2", false, "it is among the newest of its repository"),
                ],
                more: 3,
                ..HostOldImages::default()
            },
            HostOldImages {
                host: "mini-2".into(),
                answered: true,
                note: "neither this host's settings nor the fleet's have a rule".into(),
                ..HostOldImages::default()
            },
            HostOldImages {
                host: "mini-3".into(),
                note: "it gave no answer in time".into(),
                ..HostOldImages::default()
            },
        ];
        let reply = OldImagesReply {
            fleet_rule: None,
            hosts,
        };
        assert_eq!(
            text(&reply),
            "mini-1: 1 would go, 31.0 GB, by the fleet's rule where 2 of a repository stay\n\
             \x20 ghcr.io/org/runner:v1  31.0 GB  would go; 1 golden\n\
             \x20 ghcr.io/org/runner:v2  31.0 GB  stays: it is among the newest of its repository\n\
             \x20 and 3 more\n\
             mini-2: all images stay; neither this host's settings nor the fleet's have a rule\n\
             mini-3: no answer: it gave no answer in time\n\
             2 of 3 hosts answered: 1 would go, 31.0 GB, less what they share with files that stay\n"
        );
    }

    #[tokio::test]
    async fn without_a_dry_run_the_command_says_what_does_remove() {
        let options = Options {
            hosts: Vec::new(),
            dry_run: false,
            keep: None,
            days: None,
            json: false,
        };
        let asked = || panic!("nobody is asked");
        let error = clean(&options, asked).await.unwrap_err().to_string();
        assert!(
            error.contains("[retention]") && error.contains("--dry-run"),
            "{error}"
        );
    }
}
