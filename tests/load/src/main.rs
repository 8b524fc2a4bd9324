//! `load` measures what a coordinator with a thousand hosts costs. The coordinator is the real program in a process of
//! its own. Each host is a socket, a certificate and a session of this process. A host answers orders as an agent does
//! and moves no chunk. `load` measures the coordinator's processor time, by the system's own count, and the bytes that
//! the hosts receive.
//!
//! This program is also the multi-call binary that starts the coordinator: `load coordinator …`, `load parbake …`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that measures for a time, and prints what it measured"
)]

mod counters;
mod fleet;
mod host;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use coordinator::{authority::Authority, enrolment::Enrolment};
use e2e::{
    cluster::{Cluster, Options, Place},
    image::ImageSpec,
    registry,
    rig::Rig,
};
use serde_json::json;

use crate::fleet::{Fleet, Usage};

/// Longer than every step that succeeds.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the coordinator stays away after it is killed.
const AWAY: Duration = Duration::from_secs(1);

/// Measures what a coordinator costs whose hosts are all connected.
///
/// Three phases are measured: nothing happens; the agent of one host starts again every five seconds; the coordinator
/// is killed and started again. Each phase prints a line of JSON. Exit status: 0 if every limit that is set was kept, 1
/// if not.
#[derive(Debug, Parser)]
#[command(name = "load", max_term_width = 100)]
struct Cli {
    /// Number of hosts, each with a session of its own.
    #[arg(long, default_value_t = 1_000)]
    hosts: usize,
    /// Number of contents of the image that all hosts hold.
    #[arg(long, default_value_t = 120)]
    contents: usize,
    /// Seconds for which each of the first two phases is measured.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The most bytes per second that the second phase may cost beyond the first one. [default: no limit]
    #[arg(long, value_name = "BYTES")]
    max_flap_bytes_per_s: Option<f64>,
    /// The most processor seconds per minute that the second phase may cost beyond the first one. [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    max_flap_cpu_s_per_min: Option<f64>,
    /// The most seconds from the start of the new coordinator until all hosts are back. [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    max_back_s: Option<f64>,
    /// The most processor seconds of the new coordinator until all hosts are back. [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    max_back_cpu_s: Option<f64>,
    /// Fail if a handshake is refused or times out in the third phase.
    #[arg(long)]
    no_failed_handshake: bool,
}

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let program = arguments.get(1).and_then(|first| first.to_str());
    match program {
        Some("coordinator") => {
            arguments.remove(1);
            coordinator::command::run(coordinator::cli::Cli::parse_from(arguments))
        }
        Some("parbake") => {
            arguments.remove(1);
            parbake::main(parbake::Cli::parse_from(arguments))
        }
        _ => match measure(&Cli::parse()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("load: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

fn measure(cli: &Cli) -> anyhow::Result<()> {
    // the contents need no size, because no chunk moves
    let bytes = u64::try_from(cli.contents)? << 16;
    let rig = Rig::new(
        &ImageSpec::incompressible(bytes, 1 << 16, 1),
        registry::Options::default(),
    )?;
    let state = rig.site.dir().join("coordinator/state");
    std::fs::create_dir_all(&state)?;
    let authority = Authority::open(&state.join("authority"))?;
    let enrolment = Enrolment::open(&state)?;
    let mut fleet = Fleet::new(cli.hosts, &authority, &enrolment)?;
    let binary = std::env::current_exe()?;
    let options = Options {
        hosts: Vec::<Place>::new(),
        ..Options::on_loopback(&binary, rig.site.dir(), 0, rig.site.registry.addr())
    };
    let mut cluster = Cluster::start(options)?;
    let all = cli.hosts;

    let before = usage(&cluster)?;
    fleet.connect(cluster.hosts_connect_to())?;
    let up = fleet.wait("every host to join", PATIENCE, |counts| counts.up == all)?;
    report("join", all, up, before, usage(&cluster)?, &fleet);

    let staged = cluster.parbake(&["stage", &rig.reference])?;
    ensure!(
        staged.status.success(),
        "parbake stage: {}",
        String::from_utf8_lossy(&staged.stderr)
    );
    fleet.wait("the image on every host", PATIENCE, |counts| {
        counts.present == all
    })?;
    fleet.rest();

    let idle = steady("idle", cli, &cluster, &fleet)?;
    fleet.flap(true);
    let flap = steady("one host flaps", cli, &cluster, &fleet)?;
    fleet.flap(false);
    fleet.wait("the flapping host", PATIENCE, |counts| counts.up == all)?;
    bound(
        "bytes per second",
        flap.0 - idle.0,
        cli.max_flap_bytes_per_s,
    )?;
    bound(
        "processor seconds per minute",
        flap.1 - idle.1,
        cli.max_flap_cpu_s_per_min,
    )?;

    let failed = fleet.counts().failed_handshakes;
    cluster.kill_coordinator()?;
    std::thread::sleep(AWAY);
    let begun = std::time::Instant::now();
    let sessions = fleet.counts().sessions;
    cluster.start_coordinator()?;
    let served = begun.elapsed();
    let busy_until_served = usage(&cluster)?;
    fleet.wait("every host to come back", PATIENCE, |counts| {
        counts.up == all && counts.sessions >= sessions + all
    })?;
    let back = begun.elapsed();
    let after = usage(&cluster)?;
    let failed = fleet.counts().failed_handshakes - failed;
    println!(
        "{}",
        json!({
            "phase": "killed and back", "hosts": all, "serves_after_s": served.as_secs_f64(),
            "cpu_until_it_serves_s": busy_until_served.cpu_s, "back_after_s": back.as_secs_f64(), "cpu_s": after.cpu_s,
            "peak_rss_bytes": after.peak_rss_bytes, "failed_handshakes": failed, "orders": fleet.orders(),
        })
    );
    bound(
        "seconds until all are back",
        back.as_secs_f64(),
        cli.max_back_s,
    )?;
    bound(
        "processor seconds until all are back",
        after.cpu_s,
        cli.max_back_cpu_s,
    )?;
    ensure!(
        failed == 0 || !cli.no_failed_handshake,
        "{failed} handshakes failed: {:?}",
        fleet.failures()
    );
    Ok(())
}

/// Bytes per second and processor seconds per minute over a time in which nothing changes.
fn steady(phase: &str, cli: &Cli, cluster: &Cluster, fleet: &Fleet) -> anyhow::Result<(f64, f64)> {
    let (before, counts) = (usage(cluster)?, fleet.counts());
    let orders = fleet.orders();
    std::thread::sleep(Duration::from_secs(cli.seconds));
    let (after, then) = (usage(cluster)?, fleet.counts());
    #[expect(clippy::cast_precision_loss, reason = "counters of some minutes")]
    let (bytes, seconds) = (
        (then.received_bytes - counts.received_bytes) as f64,
        cli.seconds as f64,
    );
    let cpu = (after.cpu_s - before.cpu_s) * 60.0 / seconds;
    println!(
        "{}",
        json!({
            "phase": phase, "hosts": cli.hosts, "bytes_per_s": bytes / seconds, "cpu_s_per_min": cpu,
            "sessions": then.sessions - counts.sessions, "rss_bytes": after.rss_bytes,
            "orders_before": orders, "orders": fleet.orders(),
        })
    );
    Ok((bytes / seconds, cpu))
}

fn report(phase: &str, hosts: usize, took: Duration, before: Usage, after: Usage, fleet: &Fleet) {
    println!(
        "{}",
        json!({
            "phase": phase, "hosts": hosts, "took_s": took.as_secs_f64(), "cpu_s": after.cpu_s - before.cpu_s,
            "peak_rss_bytes": after.peak_rss_bytes, "failed_handshakes": fleet.counts().failed_handshakes,
            "orders": fleet.orders(),
        })
    );
}

fn usage(cluster: &Cluster) -> anyhow::Result<Usage> {
    let process = cluster.coordinator_process();
    Usage::of(process.context("the coordinator isn't running")?)
}

fn bound(what: &str, is: f64, most: Option<f64>) -> anyhow::Result<()> {
    ensure!(
        most.is_none_or(|most| is <= most),
        "{what}: {is:.2}, more than {most:?}"
    );
    Ok(())
}
