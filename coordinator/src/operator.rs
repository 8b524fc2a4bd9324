//! The operators' command line, `parbake`: what was typed, and what is done with the API's answers.
//!
//! stdout is the answer, stderr the story. Exit status: 0 done or yes, 1 no (not staged), 2 an error.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use http::Method;
use proto::causes;
use serde::Serialize;
use tokio::time::Instant;

use crate::view::{
    CancelReply, HostProgress, HostState, HostView, ImageState, ImageView, PlanReply, StageReply,
    StageRequest,
};

mod bars;
pub(crate) mod client;
mod follow;
pub(crate) mod frame;
mod roll;
pub(crate) mod text;

use client::{Client, Target};

/// A host that has been failed for this long isn't waited for any more: agents retry what passes by itself sooner.
const GIVE_UP_AFTER_SECONDS: u64 = 10;

/// Stages macOS VM images onto a fleet, and says where they are.
#[derive(Debug, Parser)]
#[command(name = "parbake", version, max_term_width = 100)]
pub struct Cli {
    /// How to reach the coordinator.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the coordinator.
#[derive(Args, Clone, Debug, Default)]
pub struct Connection {
    /// The coordinator's API, as in `https://parbake.example.com:7470`.
    #[arg(long, env = "PARBAKE_API", global = true)]
    pub api: Option<String>,
    /// File with the API's token (`api.token` of the coordinator's state directory).
    #[arg(long, env = "PARBAKE_TOKEN_FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of the fleet's authority certificate (64 hex digits), from `parbake-coordinator pin`.
    #[arg(long, env = "PARBAKE_CA_PIN", global = true)]
    pub ca_pin: Option<String>,
    /// Certificate of the fleet's authority (PEM), instead of its pin.
    #[arg(long, env = "PARBAKE_CA", global = true)]
    pub ca: Option<PathBuf>,
    /// The coordinator's state directory, on its own machine: gives address, token and certificate at once.
    #[arg(long, env = "PARBAKE_STATE", global = true)]
    pub state_dir: Option<PathBuf>,
}

/// The operators' commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stage an image: on every host, also those that join later, or on some.
    Stage {
        /// The image, as in ghcr.io/org/image:tag or …@sha256:….
        image: String,
        /// Wait until it is present on every selected host, and show how it goes.
        #[arg(long)]
        wait: bool,
        /// On these hosts only (comma-separated).
        #[arg(long, value_delimiter = ',')]
        hosts: Option<Vec<String>>,
        /// Seconds to wait at most; exit status 1 afterwards [default: no limit].
        #[arg(long, requires = "wait")]
        timeout: Option<u64>,
        /// Print one JSON object: with --wait, the image as it stands at the end.
        #[arg(long)]
        json: bool,
    },
    /// Show the images that are wanted and where they stand, and the pools whose roll is gated.
    Status {
        /// Only this image, by reference or digest. Exit status 1 when it isn't everywhere.
        image: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the hosts of the fleet.
    Hosts {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what keeps a host from having what it shall have, or a Pod from draining. Exit status 1 when something does.
    Why {
        /// The host (Node), or the Pod as `namespace/name`; a Pod's name alone does when it is gated and no host has it.
        #[arg(value_name = "HOST|POD")]
        name: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what staging an image would move, and how long it would take at best. Moves nothing.
    Plan {
        /// The image.
        image: String,
        /// On these hosts only (comma-separated).
        #[arg(long, value_delimiter = ',')]
        hosts: Option<Vec<String>>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how far the roll of each pool is, or of one. Exit status 1 while Pods are left that run another image.
    Roll {
        /// The pool: the name of its ImagePrePull, with `namespace/` where names repeat.
        pool: Option<String>,
        /// Wait until it is over.
        #[arg(long, requires = "pool")]
        wait: bool,
        /// Seconds to wait at most [default: no limit].
        #[arg(long, requires = "wait")]
        timeout: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Hold a pool's staging and roll. Pods that may drain already keep their label.
    Pause {
        /// The pool, as in `roll`.
        pool: String,
    },
    /// Let a pool's staging and roll go on.
    Resume {
        /// The pool, as in `roll`.
        pool: String,
    },
    /// Stop staging an image. What is present stays.
    Cancel {
        /// The image, by reference or digest.
        image: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// How a command came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or yes.
    Yes,
    /// No: not staged.
    No,
}

/// Runs the command to its end. Exit status: 0 done or yes, 1 no (not staged), 2 an error.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(Outcome::Yes) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) => {
            drop(writeln!(std::io::stderr(), "parbake: {}", causes(&*error)));
            ExitCode::from(2)
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// When the coordinator can't be reached or refuses. The error names thing, cause and next step.
pub async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let client = Client::new(Target::of(&cli.connection)?);
    match cli.command {
        Command::Stage {
            image,
            wait,
            hosts,
            timeout,
            json,
        } => {
            let request = StageRequest {
                reference: image,
                hosts,
            };
            stage(&client, &request, wait, timeout, json).await
        }
        Command::Status { image, json } => status(&client, image.as_deref(), json).await,
        Command::Hosts { json } => {
            let hosts: Vec<HostView> = client.read(Method::GET, "/v1/hosts", None::<&()>).await?;
            print(json, &hosts, || text::hosts(&hosts))?;
            Ok(Outcome::Yes)
        }
        Command::Why { name, json } => roll::why(&client, &name, json).await,
        Command::Roll {
            pool,
            wait,
            timeout,
            json,
        } => roll::show(&client, pool.as_deref(), wait, timeout, json).await,
        Command::Pause { pool } => roll::pause(&client, &pool, true).await,
        Command::Resume { pool } => roll::pause(&client, &pool, false).await,
        Command::Plan { image, hosts, json } => {
            let request = StageRequest {
                reference: image,
                hosts,
            };
            let plan: PlanReply = client
                .read(Method::POST, "/v1/plan", Some(&request))
                .await?;
            print(json, &plan, || text::plan(&plan))?;
            Ok(Outcome::Yes)
        }
        Command::Cancel { image, json } => {
            let path = format!("/v1/images/{}", client::segment(&image));
            let reply = client.call(Method::DELETE, &path, None::<&()>).await?;
            // an earlier coordinator answers with nothing, and cancels all of the image
            let reply = match reply.is_empty() {
                true => CancelReply::default(),
                false => serde_json::from_slice(&reply).context("the coordinator's answer")?,
            };
            let answer = serde_json::json!({
                "image": image, "cancelled": true,
                "digest": reply.digest, "references": reply.references, "still_wanted": reply.still_wanted,
            });
            print(json, &answer, || text::cancelled(&image, &reply))?;
            Ok(Outcome::Yes)
        }
    }
}

async fn stage(
    client: &Client,
    request: &StageRequest,
    wait: bool,
    timeout_seconds: Option<u64>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let deadline = timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let post = async || client.read(Method::POST, "/v1/images", Some(request)).await;
    let reply: StageReply = match wait {
        // asked twice it is wanted once
        true => follow::ask(client, deadline, post).await?,
        false => post().await?,
    };
    tell(&text::short_of_room(&reply.short_of_room));
    if !wait {
        print(json, &reply, || text::image(&reply.image))?;
        return Ok(Outcome::Yes);
    }
    let ended = follow::follow(client, reply.image, request, deadline).await?;
    tell(&ended.story);
    print(json, &ended.image, || text::image(&ended.image))?;
    Ok(ended.outcome)
}

struct Ended {
    image: ImageView,
    outcome: Outcome,
    /// Why it ended when it isn't staged.
    story: String,
}

/// The end, if this is one: all present, or nobody left who may still get it.
fn settled(image: &ImageView, request: &StageRequest) -> Option<Ended> {
    let hosts = request.hosts.as_deref();
    let ended = |outcome, story: String| {
        Some(Ended {
            image: image.clone(),
            outcome,
            story,
        })
    };
    // also where the image stays wanted under other names
    if image.state == ImageState::Cancelled || !image.references.contains(&request.reference) {
        return ended(
            Outcome::No,
            format!(
                "{} isn't wanted as {} any more: it was cancelled, or staged anew after the tag had moved\n",
                request.reference, image.digest
            ),
        );
    }
    let selected = || {
        image
            .hosts
            .iter()
            .filter(|host| hosts.is_none_or(|hosts| hosts.contains(&host.host)))
    };
    if selected().next().is_some() && selected().all(|host| host.state == HostState::Present) {
        return ended(Outcome::Yes, String::new());
    }
    // The registry doesn't give what the manifest names, say several hosts: waiting doesn't help.
    if image.state == ImageState::Failed
        && let Some(story) = image.reason.as_deref().and_then(failed_image)
    {
        return ended(
            Outcome::No,
            format!("{}: {story}\n{}\n", image.digest, image.message),
        );
    }
    let hopeless = selected().all(|host| {
        host.state == HostState::Present
            || (!waits_for_tart(host)
                && host
                    .failed_seconds
                    .is_some_and(|seconds| seconds >= GIVE_UP_AFTER_SECONDS))
    });
    (hopeless && selected().next().is_some())
        .then(|| ended(Outcome::No, text::failures(image)))
        .flatten()
}

/// What is wrong with an image that failed as such, and what to do; `None` for other reasons.
fn failed_image(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "content_bad" => {
            "the registry's bytes don't match the manifest; push the image anew, and stage it again"
        }
        "content_missing" => {
            "the registry lacks a part of the image; push the image anew, and stage it again"
        }
        "content_refused" => {
            "the registry refuses a part of the image to the hosts; look at the credentials, and stage it again"
        }
        "content_unusable" => {
            "the registry answers for a part of the image with something that can't be used; look at the registry"
        }
        "contradicts" => "it can't be staged beside another image",
        _ => return None,
    })
}

/// tart holds its lock for as long as it pulls, and gives it back by itself. Agents say so of an install under way; earlier ones called
/// it a failure.
fn waits_for_tart(host: &HostProgress) -> bool {
    host.reason.as_deref() == Some("tart_busy")
}

fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = if json {
        let mut text = serde_json::to_string(value).context("writing JSON")?;
        text.push('\n');
        text
    } else {
        text()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")
}

fn tell(text: &str) {
    // A closed stderr is no reason to stop.
    drop(std::io::stderr().write_all(text.as_bytes()));
}

async fn status(client: &Client, image: Option<&str>, json: bool) -> anyhow::Result<Outcome> {
    match image {
        Some(image) => {
            let path = format!("/v1/images/{}", client::segment(image));
            let image: ImageView = client.read(Method::GET, &path, None::<&()>).await?;
            print(json, &image, || text::image(&image))?;
            Ok(if image.state == ImageState::Present {
                Outcome::Yes
            } else {
                Outcome::No
            })
        }
        None => {
            let images: Vec<ImageView> =
                client.read(Method::GET, "/v1/images", None::<&()>).await?;
            let pools = match json {
                true => Vec::new(),
                // a coordinator without a cluster has none
                false => client.find("/v1/pools").await?.unwrap_or_default(),
            };
            print(json, &images, || {
                let images: String = match images.is_empty() {
                    true => "no image is wanted\n".to_owned(),
                    false => images.iter().map(text::image).collect(),
                };
                let pools: String = pools.iter().map(text::pool).collect();
                images + &pools
            })?;
            Ok(Outcome::Yes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::SourceBytes;

    fn host(name: &str, state: HostState, failed_seconds: Option<u64>) -> HostProgress {
        HostProgress {
            host: name.into(),
            state,
            reason: None,
            message: String::new(),
            connected: true,
            total_bytes: 10,
            held_bytes: 0,
            bytes: SourceBytes::default(),
            upload_bytes: 0,
            bytes_per_second: 0,
            eta_seconds: None,
            began_at: None,
            presence_age_ms: None,
            golden: false,
            failed_seconds,
        }
    }

    fn image(hosts: Vec<HostProgress>) -> ImageView {
        ImageView {
            digest: "sha256:x".into(),
            references: vec!["r.test/image:1".into()],
            state: ImageState::Staging,
            reason: None,
            message: String::new(),
            disk_bytes: 10,
            raw_bytes: 10,
            registry_bytes: 5,
            contents: 1,
            contents_done: 0,
            hosts_selected: hosts.len() as u64,
            hosts_present: 0,
            hosts_failed: 0,
            wanted_at: 0,
            staged_seconds: None,
            hosts,
            leases: Vec::new(),
        }
    }

    #[test]
    fn waiting_ends_when_all_selected_hosts_have_it_or_the_rest_has_failed_for_long() {
        let outcome = |hosts: Vec<HostProgress>, selected: Option<&[String]>| {
            let request = StageRequest {
                reference: "r.test/image:1".into(),
                hosts: selected.map(<[String]>::to_vec),
            };
            settled(&image(hosts), &request).map(|ended| ended.outcome)
        };
        let present = || host("a", HostState::Present, None);
        assert_eq!(outcome(vec![present()], None), Some(Outcome::Yes));
        assert_eq!(
            outcome(vec![present(), host("b", HostState::Staging, None)], None),
            None
        );
        let failed = |seconds| host("b", HostState::Failed, Some(seconds));
        assert_eq!(
            outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS - 1)], None),
            None
        );
        assert_eq!(
            outcome(vec![present(), failed(GIVE_UP_AFTER_SECONDS)], None),
            Some(Outcome::No)
        );
        let mut busy = failed(10 * GIVE_UP_AFTER_SECONDS);
        busy.reason = Some("tart_busy".into());
        assert_eq!(outcome(vec![present(), busy], None), None);
        let only = ["a".to_owned()];
        assert_eq!(
            outcome(vec![present(), failed(0)], Some(&only)),
            Some(Outcome::Yes)
        );
        assert_eq!(outcome(vec![], None), None);
    }
}
