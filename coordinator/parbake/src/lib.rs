//! The operators' command line, `parbake`: it parses the arguments, calls the API, and prints the answers.
//!
//! stdout carries the answer, stderr the progress and explanations. Exit status: 0 done or yes, 1 no (not staged), 2 an
//! error.

mod bars;
mod connection;
mod ended;
mod follow;
pub mod frame;
mod roll;
mod say;
pub mod text;

use std::{io::Write as _, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use client::{
    Client,
    view::{CancelReply, HostView, ImageState, ImageView, PlanReply, StageReply, StageRequest},
};
use http::Method;
use proto::causes;
use tokio::time::Instant;

use crate::say::{print, tell};
pub use crate::{connection::Connection, ended::Outcome};

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
        /// The host (Node), or the Pod as `namespace/name`; a Pod's name alone does when it is gated and no host has
        /// it.
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
        Ok(outcome) => ExitCode::from(outcome.status()),
        Err(error) => {
            drop(writeln!(std::io::stderr(), "parbake: {}", causes(&*error)));
            ExitCode::from(ended::NO_ANSWER)
        }
    }
}

/// Carries out a command.
///
/// # Errors
/// The coordinator can't be reached or refuses. The error names the thing, the cause and the next step.
pub async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let client = Client::new(connection::target(&cli.connection)?);
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
            // an older coordinator sends an empty answer, and cancels the image under all its names
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
        // a repeated request wants the image only once
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
                // a coordinator without a cluster has no pools
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
