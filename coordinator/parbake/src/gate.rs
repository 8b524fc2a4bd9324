//! `parbake gate`: waits until hosts hold an image, and takes places under the cap of a group, in racks without a
//! cluster. The coordinator decides who has a place; [`crate::ended`] decides when waiting is over.

mod call;
mod command;
mod run;
mod story;
mod text;
mod wait;

use clap::{Args, Subcommand};
use client::{
    Client,
    gate::{AtMost, GateDone, GateList, GateRequest, PlaceEnd},
};
use http::Method;

use self::call::Number;
use crate::{
    ended::Outcome,
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
    /// The host's own word counts, and only if it is at most 30 s old. With --group, the caller then has the host's
    /// place in the group, until `gate done` gives it back or its time is over. The answer has the place's number.
    /// Exit status 1 if waiting is over before: no place is kept then, unless --place says its number.
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
        /// Number of the place, which the caller made at random: 16 digits 0-9 and a-f. A call with the same number
        /// gets the same place again, and `gate done` knows it also where no answer came. A number is used once.
        /// [default: one is made]
        #[arg(long, requires = "group", value_name = "NUMBER")]
        place: Option<Number>,
        /// Seconds after which waiting is over, with exit status 1. 0 asks once. [default: no limit]
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Print one JSON object when waiting is over.
        #[arg(long)]
        json: bool,
    },
    /// Give a host's place back, because the work on it is done.
    ///
    /// With --place only that place is given back; a repeated call succeeds again, so a coordinator that is away is
    /// asked again for a minute. Exit status 1 if the place had ended otherwise, or is another caller's: others may
    /// have worked on the host. Without --place whatever place the host has is given back, whoever works there: for
    /// operators, not for scripts.
    Done {
        /// Name of the host.
        host: String,
        /// The group. [default: every group in which the host has a place]
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// Number of the place, as `gate wait` and `gate list` show it. [default: whatever place the host has]
        #[arg(long, value_name = "NUMBER")]
        place: Option<Number>,
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
    /// The command's environment has PARBAKE_HOST, PARBAKE_IMAGE, PARBAKE_DIGEST, and PARBAKE_GROUP and PARBAKE_PLACE,
    /// the number of its place. It is run without a shell. Its end
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
            place,
            timeout,
            json,
        } => {
            // who made the number knows it, and may give the place back
            let keeps = place.is_some();
            let made = || group.as_ref().map(|_| Number::fresh());
            let number = place.or_else(made);
            let request = GateRequest {
                image,
                hosts: vec![host],
                digest: None,
                group,
                at_most,
                seconds: lasts,
                place: number.map(|number| number.as_str().to_owned()),
            };
            wait::run(&client, request, keeps, timeout, json).await
        }
        Command::Done {
            host,
            group,
            place,
            json,
        } => {
            let body = GateDone {
                any: place.is_none(),
                host,
                group,
                place: place.map(|number| number.as_str().to_owned()),
            };
            let reply = call::done_by_hand(&client, &body, tell).await?;
            print(json, &reply, || text::done(&reply))?;
            Ok(match reply.before {
                None | Some(PlaceEnd::GivenBack) => Outcome::Yes,
                Some(_) => Outcome::No,
            })
        }
        Command::List { json } => {
            let list: GateList = client.read(Method::GET, "/v1/gate", None::<&()>).await?;
            print(json, &list, || text::list(&list))?;
            Ok(Outcome::Yes)
        }
        Command::Run(options) => Box::pin(run::run(client, options)).await,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    const WITH_PLACE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../deploy/racks/with-place.sh"
    );

    /// `parbake` is a stand-in: its `gate wait` succeeds, and its `gate done` has this exit status.
    #[test]
    fn the_script_with_place_says_that_a_place_ended_only_where_the_exit_status_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let parbake = dir.path().join("parbake");
        let stand_in = "#!/bin/sh\n[ \"$2\" = wait ] || exit \"$GAVE\"\n";
        fs::write(&parbake, stand_in).unwrap();
        fs::set_permissions(&parbake, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            dir.path().display(),
            std::env::var("PATH").unwrap()
        );
        let run = |gave: &str, command: &str| {
            let mut script = Command::new("sh");
            script.args([WITH_PLACE, "mini-1", "r.test/image:1", "ci", "1"]);
            script.args(["sh", "-c", command]);
            let output = script
                .env("PATH", &path)
                .env("GAVE", gave)
                .output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            (output.status.code(), said)
        };
        let ended = "the place of mini-1 ended before its command";
        let left = "mini-1 may have a place, which ends by itself; next: `parbake gate done mini-1 --group ci --place ";
        assert_eq!(run("0", "exit 7"), (Some(7), String::new()));
        for (gave, words) in [("1", ended), ("2", left), ("130", left)] {
            let (code, said) = run(gave, "exit 7");
            assert_eq!(code, Some(7));
            assert!(said.starts_with(words), "{said}");
            let (code, said) = run(gave, "exit 0");
            assert_eq!(code, Some(if gave == "1" { 1 } else { 2 }));
            assert!(said.starts_with(words), "{said}");
        }
    }
}
