//! `parbake gate`: waits until hosts hold an image, and takes places under the cap of a group, in racks without a
//! cluster. The coordinator decides who has a place; [`crate::ended`] decides when waiting is over.

mod call;
mod command;
mod run;
mod text;

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use client::{
    Client,
    gate::{AtMost, GateDone, GateDoneReply, GateList, GateReply, GateRequest, GateView},
};
use http::Method;
use tokio::time::{Instant, sleep_until};

use self::call::{ask, passes};
use crate::{
    ended::{self, GateEnd, Outcome},
    follow::{self, Touch},
    pauses::Pauses,
    say::{print, tell},
};

/// What is asked of the gate.
#[derive(Args, Debug)]
pub struct Options {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Wait until a host holds an image, verified, and may be worked on.
    ///
    /// The host's own word counts, and only if it is at most 30 s old. With --group, the host then has a place in the
    /// group, until `gate done` gives it back or its time is over. Exit status 1 if waiting is over before.
    Wait {
        /// Name of the host.
        host: String,
        /// The image: a reference under which it was staged, or its bare digest.
        image: String,
        /// Take a place in this group: letters, digits, '.', '_' and '-'. [default: no place is taken]
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// Most hosts of the group that may have a place: a number, or a percentage of the hosts that the image was
        /// staged on. The strictest of those that have a place or wait holds. [default: what the others say]
        #[arg(long, requires = "group", value_name = "N|P%")]
        at_most: Option<AtMost>,
        /// Seconds after which the place ends if nobody gives it back, at most 86400. [default: 1800]
        #[arg(long = "for", requires = "group", value_name = "SECONDS")]
        lasts: Option<u64>,
        /// Seconds after which waiting is over, with exit status 1. 0 asks once. [default: no limit]
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Print one JSON object when waiting is over.
        #[arg(long)]
        json: bool,
    },
    /// Give a host's place back, because the work on it is done.
    ///
    /// A host without a place is no error: its place was given back before, or its time was over.
    Done {
        /// Name of the host.
        host: String,
        /// The group. [default: every group in which the host has a place]
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show the groups, who has a place and since when, and who waits and why.
    List {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Run a command for each host as soon as the host holds an image, under a cap.
    ///
    /// The command's environment has PARBAKE_HOST, PARBAKE_IMAGE and PARBAKE_DIGEST. It is run without a shell. Its end
    /// gives the host's place back. A command that fails keeps further ones from beginning. Exit status 1 unless the
    /// command succeeded for every host.
    Run(run::Options),
}

/// Carries out a command of the gate.
pub(crate) async fn run(client: Client, options: Options) -> anyhow::Result<Outcome> {
    match options.command {
        Command::Wait {
            host,
            image,
            group,
            at_most,
            lasts,
            timeout,
            json,
        } => {
            let request = GateRequest {
                image,
                hosts: vec![host],
                digest: None,
                group,
                at_most,
                seconds: lasts,
            };
            wait(&client, request, timeout, json).await
        }
        Command::Done { host, group, json } => {
            let body = GateDone { host, group };
            let reply: GateDoneReply = client
                .read(Method::POST, "/v1/gate/done", Some(&body))
                .await?;
            print(json, &reply, || text::done(&body.host, &reply))?;
            Ok(Outcome::Yes)
        }
        Command::List { json } => {
            let list: GateList = client.read(Method::GET, "/v1/gate", None::<&()>).await?;
            print(json, &list, || text::list(&list))?;
            Ok(Outcome::Yes)
        }
        Command::Run(options) => Box::pin(run::run(client, options)).await,
    }
}

fn only(reply: GateReply) -> anyhow::Result<GateView> {
    let view = reply.hosts.into_iter().next();
    view.context("the coordinator answers about no host")
}

async fn wait(
    client: &Client,
    mut request: GateRequest,
    timeout_seconds: Option<u64>,
    json: bool,
) -> anyhow::Result<Outcome> {
    let deadline = timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = follow::ask(client, deadline, async || ask(client, &request).await).await?;
    let mut view = only(first)?;
    // whoever isn't waited for yet was named by mistake
    if let GateEnd::Over(story) = ended::of_gate(&view, &request.image)
        && view.verdict == client::gate::GateVerdict::Refused
    {
        bail!("{}", story.trim_end());
    }
    let mut touch = Touch::new(Instant::now());
    let mut looks = Pauses::between_looks();
    let mut said = None;
    loop {
        match ended::of_gate(&view, &request.image) {
            GateEnd::Open => {
                print(json, &view, || text::view(&view))?;
                return Ok(Outcome::Yes);
            }
            GateEnd::Over(story) => {
                tell(&story);
                print(json, &view, || text::view(&view))?;
                return Ok(Outcome::No);
            }
            GateEnd::Waits => {}
        }
        if request.digest.is_none() {
            request.digest.clone_from(&view.digest);
        }
        if said.as_ref() != Some(&view.reason) {
            tell(&text::view(&view));
            said = Some(view.reason.clone());
            looks.begin_anew();
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            let away = touch.contact(now).words("the host's turn is kept for 30 s");
            tell(&text::late(&view, request.group.as_deref(), away));
            print(json, &view, || text::view(&view))?;
            return Ok(Outcome::No);
        }
        let again = now + looks.next();
        sleep_until(deadline.map_or(again, |deadline| deadline.min(again))).await;
        match ask(client, &request).await {
            Ok(reply) => {
                touch.heard(Instant::now());
                view = only(reply)?;
            }
            Err(error) if passes(&error) => touch.lost(Instant::now(), error.to_string()),
            Err(error) => return Err(error.into()),
        }
        if let Some(words) = touch.due(Instant::now(), "staging") {
            tell(&words);
        }
    }
}
