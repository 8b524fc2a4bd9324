//! The commands of `parbake-coordinator`: one runs the coordinator, and the others work on its state beside it.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use crate::{
    authority::Authority,
    cli::{Cli, Command, Run, Shared},
    config::Config,
    enrolment::Enrolment,
    view::TokenReply,
};
use anyhow::{Context as _, bail};
use logging::Filter;
use proto::{HostId, causes};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs the command. Returns 0 for success, and 2 for an error, which is written to stderr.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(
                std::io::stderr(),
                "parbake-coordinator: {}",
                causes(&*error)
            ));
            ExitCode::from(2)
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let shared = cli.shared;
    logging::to_stderr(shared.log_format, Filter::parse(&shared.log)?);
    match cli.command {
        Command::Run(options) => serve(shared, *options),
        Command::Check => {
            let config = Config::load(&shared, &Run::default())?;
            let Some(file) = &config.file else {
                bail!(
                    "no fleet file was given, so none was checked: name it (--config FLEET.toml)"
                );
            };
            say(&format!(
                "{} is in order: {} hosts, open = {}\n",
                file.display(),
                config.fleet.hosts.len(),
                config.fleet.open
            ))
        }
        Command::Token {
            host,
            lifetime,
            json,
        } => token(&shared, &host, lifetime, json),
        Command::Hosts { json } => hosts(&shared, json),
        Command::Revoke {
            host,
            reason,
            force,
        } => {
            let (config, host) = (existing(&shared)?, host_id(&host)?);
            let enrolment = Enrolment::open(&config.state_dir)?;
            if !force && !config.fleet.hosts.contains_key(&host) && !enrolment.knows(&host)? {
                bail!(
                    "host {host} isn't in the fleet file and never enrolled, so nothing was revoked; see \
                     `parbake-coordinator hosts`, or revoke it all the same with --force"
                );
            }
            enrolment.revoke(&host, &reason, SystemTime::now())?;
            say(&format!(
                "{host} is revoked; a running coordinator closes its sessions within a second or two\n"
            ))
        }
        Command::Readmit { host } => {
            let (config, host) = (existing(&shared)?, host_id(&host)?);
            if !Enrolment::open(&config.state_dir)?.readmit(&host, SystemTime::now())? {
                bail!("host {host} isn't revoked; see `parbake-coordinator hosts`");
            }
            say(&format!("{host} is readmitted; enrol it with a token\n"))
        }
        Command::Pin => say(&format!("{}\n", authority(&shared)?.pin().hex())),
        Command::Ca => say(authority(&shared)?.pem()),
        Command::Crd => {
            say(&crate::cluster::crd::yaml().context("writing the definition as YAML")?)
        }
    }
}

fn serve(shared: Shared, options: Run) -> anyhow::Result<()> {
    let config = Config::load(&shared, &options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut hangup = signal(SignalKind::hangup()).context("handling SIGHUP")?;
        let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
        if let Some(cluster) = config.cluster.clone() {
            let source = (shared, options);
            let run = crate::cluster::program::run(config, cluster, source, shutdown.clone());
            let mut run = std::pin::pin!(run);
            loop {
                tokio::select! {
                    ended = run.as_mut() => return ended.map_err(Into::into),
                    _ = terminate.recv() => shutdown.cancel(),
                    _ = interrupt.recv() => shutdown.cancel(),
                    // The fleet file is watched anyway. Without a handler, the signal would end the process.
                    _ = hangup.recv() => {}
                }
            }
        }
        let running =
            crate::Coordinator::start(config, Some((shared, options)), shutdown.clone()).await?;
        let reload = running.reload();
        let mut running = std::pin::pin!(running.wait());
        loop {
            tokio::select! {
                ended = running.as_mut() => return ended.map_err(Into::into),
                _ = terminate.recv() => shutdown.cancel(),
                _ = interrupt.recv() => shutdown.cancel(),
                _ = hangup.recv() => reload.ask(),
            }
        }
    })
}

fn host_id(text: &str) -> anyhow::Result<HostId> {
    text.parse().with_context(|| format!("host `{text}`"))
}

/// The settings. Fails when no coordinator has ever run on their state directory, so that nothing is made there: no
/// host would know an authority that came about by a command in the wrong directory.
fn existing(shared: &Shared) -> anyhow::Result<Config> {
    let config = Config::load(shared, &Run::default())?;
    if !Authority::exists(&config.state_dir.join("authority")) {
        bail!(
            "no coordinator ever ran on {}: there is no authority; start one first, or name its directory \
             (--config FLEET.toml, --state-dir DIR)",
            config.state_dir.display()
        );
    }
    Ok(config)
}

fn authority(shared: &Shared) -> anyhow::Result<Authority> {
    let config = existing(shared)?;
    Ok(Authority::open(&config.state_dir.join("authority"))?)
}

fn token(shared: &Shared, host: &str, lifetime: Option<u64>, json: bool) -> anyhow::Result<()> {
    let config = existing(shared)?;
    let host = host_id(host)?;
    // Only a fleet file that names hosts shows that a host is missing. `open` may be a flag of the running coordinator,
    // which isn't known here.
    if !config.fleet.hosts.is_empty() && !config.fleet.admits(&host) {
        bail!("host {host} isn't in the fleet file; add it to [[hosts]], or set `open = true`");
    }
    let lifetime = lifetime.map_or(config.token_lifetime, Duration::from_secs);
    let now = SystemTime::now();
    let token = Enrolment::open(&config.state_dir)?.mint(&host, lifetime, now)?;
    let pin = Authority::open(&config.state_dir.join("authority"))?.pin();
    if !json {
        return say(&format!("{}\n", token.expose()));
    }
    let expires = (now + lifetime).duration_since(SystemTime::UNIX_EPOCH);
    let reply = TokenReply {
        host: host.to_string(),
        token: token.expose().to_owned(),
        expires_at: expires.map_or(0, |since| since.as_secs()),
        ca_pin: pin.hex().to_string(),
    };
    say(&format!("{}\n", serde_json::to_string(&reply)?))
}

fn hosts(shared: &Shared, json: bool) -> anyhow::Result<()> {
    let config = existing(shared)?;
    let enrolment = Enrolment::open(&config.state_dir)?;
    let (enrolled, revoked) = (enrolment.enrolled()?, enrolment.revoked()?);
    let mut ids: Vec<&HostId> = config
        .fleet
        .hosts
        .keys()
        .chain(enrolled.keys())
        .chain(revoked.keys())
        .collect();
    ids.sort();
    ids.dedup();
    let mut text = String::new();
    let mut list = Vec::new();
    for id in ids {
        let zone = config.fleet.hosts.get(id).map(|entry| entry.zone.as_str());
        list.push(serde_json::json!({
            "host": id.as_str(),
            "zone": zone.unwrap_or_default(),
            "named": zone.is_some(),
            "enrolled_at": enrolled.get(id),
            "revoked_at": revoked.get(id).map(|revocation| revocation.at_unix),
            "revoked_reason": revoked.get(id).map(|revocation| revocation.reason.as_str()),
        }));
        let named = if zone.is_some() { "named" } else { "not named" };
        let state = match (enrolled.contains_key(id), revoked.contains_key(id)) {
            (_, true) => "revoked",
            (true, false) => "enrolled",
            (false, false) => "never enrolled",
        };
        let reason = revoked.get(id).map(|revocation| revocation.reason.as_str());
        let reason = match reason {
            None | Some("") => String::new(),
            Some(reason) => format!(": {}", crate::progress::clean(reason)),
        };
        text.push_str(&format!("{id:<24} {state:<16} {named}{reason}\n"));
    }
    if json {
        text = format!("{}\n", serde_json::to_string(&list)?);
    }
    say(&text)
}

fn say(text: &str) -> anyhow::Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to stdout")
}
