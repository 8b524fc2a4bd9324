//! The operators' command line, `parbake`: it parses the arguments, calls the API, and prints the answers.
//!
//! stdout carries the answer, stderr the progress and explanations. Exit status: 0 done or yes, 1 no (not staged), 2 an
//! error.

mod bars;
mod connection;
mod ended;
mod fleets;
mod follow;
pub mod frame;
mod gate;
pub mod hosts;
mod manual;
mod old_images;
mod pauses;
mod prediction;
pub mod recipe;
mod roll;
mod say;
mod table;
mod target;
pub mod text;
mod width;

use std::{cmp::Reverse, io::Write as _, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use client::{
    Client,
    view::{CancelReply, ImageState, ImageView, PlanReply, StageReply, StageRequest},
};
use http::Method;
use proto::causes;
use tokio::time::Instant;

use crate::say::{print, tell};
pub use crate::{connection::Connection, ended::Outcome};

/// Stages macOS VM images onto the hosts of a fleet, and shows where they are.
///
/// stdout has the answer, stderr has progress and explanations. Exit status: 0 for done or yes, 1 for no (an image
/// isn't everywhere, a Pod may not drain), 2 for an error.
#[derive(Debug, Parser)]
#[command(name = "parbake", version, max_term_width = 80)]
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
    /// Stage an image on all hosts, or on some.
    ///
    /// The image is resolved once, and stays wanted until `cancel`. Without --hosts, hosts that join later get it too.
    /// The command returns at once, unless --wait is given.
    #[command(after_help = STAGE_EXAMPLES)]
    Stage {
        /// The image with its registry, by tag or digest: ghcr.io/org/image:tag or ghcr.io/org/image@sha256:DIGEST.
        image: String,
        /// Wait until every selected host holds the image, verified, and show the progress on stderr. Exit status 1
        /// if the image can't get there.
        #[arg(long)]
        wait: bool,
        /// Names of the hosts that shall hold the image, separated by commas. [default: all hosts]
        #[arg(long, value_delimiter = ',')]
        hosts: Option<Vec<String>>,
        /// How urgent the image is beside others: hosts finish images of higher priority first. May be negative. Asking
        /// again with another one changes the order. [default: as before; 0 at first]
        #[arg(long, allow_negative_numbers = true)]
        priority: Option<i32>,
        /// Seconds after which --wait gives up, with exit status 1. Staging goes on. [default: no limit]
        #[arg(long, requires = "wait", value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Print one JSON object. With --wait, the object shows the image when the wait has ended.
        #[arg(long)]
        json: bool,
    },
    /// Show the wanted images and how far they are, and the pools whose Pods are gated.
    ///
    /// The image that was wanted last comes first.
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// Show only this image, by reference or digest. Exit status 1 if a selected host lacks it. [default: all]
        image: Option<String>,
        /// Show every host of each image. [default: five hosts that lack it; all with IMAGE]
        #[arg(long)]
        all: bool,
        /// Print JSON: one object with IMAGE, otherwise an array of images without the pools.
        #[arg(long)]
        json: bool,
    },
    /// Show the hosts of the fleet, and what each of them holds.
    ///
    /// Hosts that somebody has to look at come first. A terminal shows all of these, and 40 others at most.
    #[command(after_help = HOSTS_EXAMPLES)]
    Hosts(hosts::Options),
    /// Say why a host lacks an image, or why a Pod may not drain.
    ///
    /// Exit status: 0 if nothing is missing on the host or nothing blocks the Pod, otherwise 1.
    #[command(after_help = WHY_EXAMPLES)]
    Why {
        /// Name of a host (in a cluster: of a Node), or of a Pod as NAMESPACE/NAME. NAME alone is enough for a gated
        /// Pod if it is the only one with this name and no host has the same name.
        #[arg(value_name = "HOST|POD")]
        name: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Say how many bytes the staging of an image would move, and the shortest time that it would take.
    ///
    /// Nothing is moved, and the image isn't wanted afterwards.
    #[command(after_help = PLAN_EXAMPLES)]
    Plan {
        /// The image with its registry, by tag or digest.
        image: String,
        /// Names of the hosts to plan for, separated by commas. [default: all hosts]
        #[arg(long, value_delimiter = ',')]
        hosts: Option<Vec<String>>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show how far pools are on the way to their new image.
    ///
    /// Exit status 1 while a Pod of these pools still runs another image than its pool's.
    #[command(after_help = ROLL_EXAMPLES)]
    Roll {
        /// Name of the pool's ImagePrePull. Write NAMESPACE/NAME if several have this name. [default: all pools]
        pool: Option<String>,
        /// Wait until all Pods of the pool run its image.
        #[arg(long, requires = "pool")]
        wait: bool,
        /// Seconds after which --wait gives up, with exit status 1. The roll goes on. [default: no limit]
        #[arg(long, requires = "wait", value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Print JSON: one object with POOL, otherwise an array.
        #[arg(long)]
        json: bool,
    },
    /// Pause a pool: its image is staged no further, and no more of its Pods get the drain label.
    ///
    /// Pods that have the label keep it.
    Pause {
        /// Name of the pool's ImagePrePull. Write NAMESPACE/NAME if several have this name, or if it has no gate.
        pool: String,
    },
    /// Let a paused pool go on.
    Resume {
        /// Name of the pool's ImagePrePull. Write NAMESPACE/NAME if several have this name, or if it has no gate.
        pool: String,
    },
    /// Wait until hosts hold an image and may be worked on, under a cap, in racks without a cluster.
    Gate(gate::Options),
    /// Make the recipe of an image: what proves each MiB of the image when it arrives.
    ///
    /// For a release's pipeline. Needs no coordinator. Exit status 1 if a recipe that is checked (--verify) is false.
    Recipe(recipe::Options),
    /// Show which old images hosts would remove, what room that would free, and why the others stay.
    ///
    /// The command removes nothing. Each host removes old images by itself, once a minute, where its own settings or
    /// the coordinator's have keep_images or keep_days.
    Clean(old_images::Options),
    /// Stop staging an image. Hosts keep it where it is installed already.
    Cancel {
        /// The image, by reference or digest.
        image: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remember where a fleet's coordinator is, so that later commands need no options for it.
    ///
    /// The coordinator is asked once, with the address, the pin and the token that the options or the environment give.
    /// If it answers, all three are kept in ~/.config/parbake, the token in a file that you alone can read.
    #[command(after_help = LOGIN_EXAMPLES)]
    Login(fleets::Login),
    /// Forget a fleet and its token.
    Logout(fleets::Logout),
    /// Show the fleets that `login` remembers. A star marks the one that commands go to.
    Fleets(fleets::List),
    /// Print what a shell needs to complete commands and options.
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion(manual::Completion),
    /// Print the manual page, or write one for each command.
    #[command(after_help = MAN_EXAMPLES)]
    Man(manual::Manual),
}

const STAGE_EXAMPLES: &str = "\
Examples:
  parbake stage ghcr.io/org/runner:v2 --wait --timeout 3600 && ./your-rollout.sh
  parbake stage ghcr.io/org/runner:v2 --hosts mini-1,mini-2
  parbake stage ghcr.io/org/urgent:v1 --priority 10";
const STATUS_EXAMPLES: &str = "\
Examples:
  parbake status
  parbake status ghcr.io/org/runner:v2 --json";
const HOSTS_EXAMPLES: &str = "\
Examples:
  parbake hosts --away
  parbake hosts --zone berlin-1 -o wide
  parbake hosts --json | jq -r '.[] | select(.connected | not).host'";
const WHY_EXAMPLES: &str = "\
Examples:
  parbake why mini-7
  parbake why ci/runner-7x2k";
const PLAN_EXAMPLES: &str = "\
Examples:
  parbake plan ghcr.io/org/runner:v3
  parbake plan ghcr.io/org/runner:v3 --hosts mini-1,mini-2 --json";
const ROLL_EXAMPLES: &str = "\
Examples:
  parbake roll
  parbake roll ci/runners --wait --timeout 7200";
const LOGIN_EXAMPLES: &str = "\
Examples:
  parbake login berlin --api https://parbake.example.com:7470 --ca-pin PIN --token-file api.token
  sudo parbake login --state-dir /var/lib/parbake
  parbake hosts
  parbake --fleet paris hosts";
const COMPLETION_EXAMPLES: &str = "\
Examples:
  parbake completion zsh > \"${fpath[1]}/_parbake\"
  parbake completion bash > /etc/bash_completion.d/parbake";
const MAN_EXAMPLES: &str = "\
Examples:
  parbake man > parbake.1 && man ./parbake.1
  parbake man --dir /usr/local/share/man/man1";

/// Runs the command to its end. Exit status: 0 done or yes, 1 no (not staged), 2 an error.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    let mut runtime = match cli.command {
        // decodes and hashes several contents at a time
        Command::Recipe(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build();
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
    let Cli {
        connection,
        command,
    } = cli;
    // asked for by each command that needs a coordinator
    let client = || anyhow::Ok(Client::new(target::target(&connection)?));
    match command {
        Command::Recipe(options) => Box::pin(recipe::run(options)).await,
        Command::Login(options) => fleets::login(&options, &connection).await,
        Command::Logout(options) => fleets::logout(&options),
        Command::Fleets(options) => fleets::list(&options),
        Command::Completion(options) => manual::completion(&options, Cli::command()),
        Command::Man(options) => manual::manual(&options, Cli::command()),
        Command::Gate(options) => gate::run(client()?, options).await,
        Command::Stage {
            image,
            wait,
            hosts,
            priority,
            timeout,
            json,
        } => {
            let request = StageRequest {
                reference: image,
                hosts,
                priority,
            };
            stage(&client()?, &request, wait, timeout, json).await
        }
        Command::Status { image, all, json } => {
            status(&client()?, image.as_deref(), all, json).await
        }
        Command::Hosts(options) => hosts::show(&options, &client()?).await,
        Command::Why { name, json } => roll::why(&client()?, &name, json).await,
        Command::Roll {
            pool,
            wait,
            timeout,
            json,
        } => roll::show(&client()?, pool.as_deref(), wait, timeout, json).await,
        Command::Pause { pool } => roll::pause(&client()?, &pool, true).await,
        Command::Resume { pool } => roll::pause(&client()?, &pool, false).await,
        Command::Plan { image, hosts, json } => {
            let request = StageRequest {
                reference: image,
                hosts,
                priority: None,
            };
            let plan: PlanReply = client()?
                .read(Method::POST, "/v1/plan", Some(&request))
                .await?;
            print(json, &plan, || text::plan(&plan))?;
            Ok(Outcome::Yes)
        }
        Command::Clean(options) => old_images::clean(&options, client).await,
        Command::Cancel { image, json } => {
            let path = format!("/v1/images/{}", client::segment(&image));
            let reply = client()?.call(Method::DELETE, &path, None::<&()>).await?;
            // an older coordinator sends an empty answer, and cancels the image under all its names
            let reply = match reply.is_empty() {
                true => CancelReply::default(),
                false => {
                    serde_json::from_slice(&reply).context("reading the coordinator's answer")?
                }
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

async fn status(
    client: &Client,
    image: Option<&str>,
    all: bool,
    json: bool,
) -> anyhow::Result<Outcome> {
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
            let mut images: Vec<ImageView> =
                client.read(Method::GET, "/v1/images", None::<&()>).await?;
            images.sort_by_key(|image| Reverse(image.wanted_at));
            let pools = match json {
                true => Vec::new(),
                // a coordinator without a cluster has no pools
                false => client.find("/v1/pools").await?.unwrap_or_default(),
            };
            print(json, &images, || {
                let images: String = match images.is_empty() {
                    true => "no image is wanted\n".to_owned(),
                    false if all => images.iter().map(text::image).collect(),
                    false => images.iter().map(text::image_in_short).collect(),
                };
                let pools: String = pools.iter().map(text::pool).collect();
                images + &pools
            })?;
            Ok(Outcome::Yes)
        }
    }
}
