//! The demo: stages a generated image onto a fleet of processes, checks every disk, prints what it cost.

use std::{
    io::Write as _,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use proto::figure::Bytes;
use serde_json::{Value, json};

mod changed;
mod process;
mod releases;
mod source;
mod tell;

pub use self::source::RegistryCli;
use self::{
    process::{Ended, wait_for},
    releases::Stand,
    source::Source,
    tell::{round, round4, say},
};
use crate::{
    cluster::{self, Cluster, Place},
    image::{Disk, ImageSpec, Overlay},
    interrupt, tart_home,
};

/// Stages an image onto a fleet of processes on this machine, and compares every byte with the source.
///
/// The demo starts a registry with a generated image, a coordinator and several agents, and removes everything at the
/// end. Exit status: 0 if every host holds the right bytes, 1 if not, 2 for an error.
#[derive(Debug, Parser)]
#[command(name = "demo", version, max_term_width = 100)]
pub struct Cli {
    /// Number of hosts, 1 to 250. Each is an agent in a process of its own, with its own TART_HOME.
    #[arg(long, default_value_t = 8, value_parser = hosts)]
    hosts: usize,
    /// Size of the generated disk: bytes, or a number with KiB, MiB, GiB, MB or GB. At least 1MiB.
    #[arg(long, default_value = "2GiB", value_parser = disk_bytes)]
    size: u64,
    /// Size of each layer of the generated disk: a multiple of 64KiB, written like --size.
    #[arg(long, default_value = "256MiB", value_parser = layer_bytes)]
    layer_size: u64,
    /// Fill the generated disk with noise, which can't be compressed.
    #[arg(long)]
    incompressible: bool,
    /// Stage this image of a real registry. [default: a generated image]
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Use plain HTTP for the registry of --image. A registry on loopback always gets plain HTTP.
    #[arg(long, requires = "image")]
    plain_http: bool,
    /// Bytes per second that the registry sends to all hosts together; 0 is no limit. 117000000 is what a link of 1
    /// Gbit/s carries. With --image, the rate limits nothing: the lower bound is computed from it, and 0 means no lower
    /// bound. [default: 117000000, with --image 0]
    #[arg(long, value_parser = bytes, value_name = "BYTES")]
    origin_rate: Option<u64>,
    /// Seed of the generated image.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of releases, 1 to 9. Each is staged after the one before, and differs from it in --change of its bytes.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9), conflicts_with = "image")]
    releases: u8,
    /// Raw disk in a file that takes the place of a generated one. May be given up to 9 times: each further disk is the
    /// next release. [default: generated disks]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "size", "incompressible", "seed", "releases", "change"])]
    disk: Vec<PathBuf>,
    /// Percentage of each layer's bytes that a later release changes, 1 to 100.
    #[arg(long, default_value = "5%", value_name = "PERCENT", value_parser = percent)]
    change: u8,
    /// Push the recipe of each later release before it is staged, as a release's pipeline does.
    #[arg(long)]
    recipe: bool,
    /// Make the first image a stacked one: overlays on a base, as tart makes them since 2.36. Of several releases, each
    /// second one is flat.
    #[arg(long, conflicts_with_all = ["image", "disk"])]
    stacked: bool,
    /// Print one JSON object with all measured numbers as the last line of stdout.
    #[arg(long)]
    json: bool,
    /// Keep the working directory, with the state and the logs of every process.
    #[arg(long)]
    keep: bool,
    /// Seconds after which the demo gives up.
    #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
    timeout: u64,
    /// Working directory. It is kept. [default: a new temporary directory, which is removed]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Run in a lab of network namespaces that exists already (`tests/lab/fanout` makes it): the prefix of their names.
    #[arg(long, hide = true)]
    lab: Option<String>,
    /// Rate of every link of the lab, in bytes per second.
    #[arg(long, hide = true, default_value_t = 0)]
    lab_rate: u64,
}

/// `64KiB`, `2GiB`, `512MB` or plain bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(format!("{text}: use bytes, KiB, MiB, GiB, MB or GB")),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text} isn't a number of bytes"))?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text} is too large"))
}

/// `parbake stage --wait` ends with the word of the last host, which is in that host's log by then.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// Each host is a process, and has an address of its own in the lab's one network.
const MOST_HOSTS: usize = 250;
/// Each release is an image on every host.
const MOST_RELEASES: usize = 9;
/// Below it a run measures how fast processes start.
const LEAST_DISK: u64 = 1 << 20;
/// What images are cut by.
const LEAST_LAYER: u64 = 64 << 10;

fn hosts(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(hosts) if (1..=MOST_HOSTS).contains(&hosts) => Ok(hosts),
        _ => Err(format!("a demo has 1 to {MOST_HOSTS} hosts")),
    }
}

fn disk_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size < LEAST_DISK => Err("a disk has 1MiB at least".to_owned()),
        size => Ok(size),
    }
}

fn layer_bytes(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size < LEAST_LAYER || !size.is_multiple_of(LEAST_LAYER) => {
            Err("a layer has a multiple of 64KiB".to_owned())
        }
        size => Ok(size),
    }
}

fn percent(text: &str) -> Result<u8, String> {
    match text.trim_end_matches('%').parse() {
        Ok(percent) if (1..=100).contains(&percent) => Ok(percent),
        _ => Err("a release changes 1% to 100%".to_owned()),
    }
}

/// The rate of a generated image's registry, where none is set.
const ORIGIN_RATE: u64 = 117_000_000;

impl Cli {
    fn origin_rate(&self) -> u64 {
        let default = if self.image.is_some() { 0 } else { ORIGIN_RATE };
        self.origin_rate.unwrap_or(default)
    }

    /// Of the registry's link, or of every link of the lab; 0 where nobody knows it.
    fn rate(&self) -> u64 {
        match self.lab_rate {
            0 => self.origin_rate(),
            rate => rate,
        }
    }
}

/// Runs the demo.
pub fn run(cli: Cli) -> ExitCode {
    end(async move {
        let stop = stop_signal().context("listening for signals")?;
        let work = tokio::task::spawn_blocking(move || demo(&cli));
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => result?,
            () = stop => {
                interrupt::interrupt();
                // the work notices, ends its processes and removes its directory
                work.await?
            }
        }
    })
}

/// What ends when Ctrl-C, a polite kill or the end of the terminal asks for it, from this call on.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Does the work in a runtime; the exit code says how it ended.
#[expect(clippy::print_stderr, reason = "the story goes to stderr")]
fn end(work: impl Future<Output = anyhow::Result<bool>>) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().context("starting a runtime");
    match runtime.and_then(|runtime| runtime.block_on(work)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {}", proto::causes(&*error));
            ExitCode::from(2)
        }
    }
}

fn demo(cli: &Cli) -> anyhow::Result<bool> {
    let temporary = cli
        .dir
        .is_none()
        .then(|| tempfile::Builder::new().prefix("parbake-demo-").tempdir())
        .transpose()?;
    let dir = match (&cli.dir, &temporary) {
        (Some(dir), _) => {
            std::fs::create_dir_all(dir)?;
            dir.canonicalize()?
        }
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => bail!("no directory"),
    };
    let result = stage(cli, &dir);
    if temporary.is_none() {
        say(&format!("kept: {}", dir.display()));
    }
    if let Some(temporary) = temporary {
        if cli.keep {
            say(&format!("kept: {}", temporary.keep().display()));
        } else {
            temporary.close()?;
        }
    }
    result
}

fn stage(cli: &Cli, dir: &Path) -> anyhow::Result<bool> {
    let specs = specs(cli)?;
    let source = source(cli, specs.first(), dir)?;
    let reference = source.reference();
    let registry = reference.split('/').next().unwrap_or_default().to_owned();
    say(&format!("starting a coordinator and {} agents", cli.hosts));
    let place = |namespace: &str, ip: String| -> anyhow::Result<Place> {
        match &cli.lab {
            None => Ok(Place::default()),
            Some(lab) => Ok(Place {
                ip: ip.parse()?,
                prefix: ["ip", "netns", "exec"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([format!("{lab}{namespace}")])
                    .collect(),
            }),
        }
    };
    let hosts =
        (0..cli.hosts).map(|host| place(&format!("n{host}"), format!("10.77.1.{}", host + 1)));
    let mut cluster = Cluster::start(cluster::Options {
        binary: std::env::current_exe()?,
        dir: dir.to_owned(),
        hosts: hosts.collect::<Result<_, _>>()?,
        coordinator: place("ctl", "10.77.200.1".into())?,
        // a real registry speaks TLS
        registry: match source.first() {
            None if !cli.plain_http && !is_loopback(&registry) => String::new(),
            _ => registry,
        },
        agent_settings: agent_settings(cli, dir)?,
        coordinator_settings: String::new(),
        kubeconfig: None,
        run_arguments: Vec::new(),
        environment: Vec::new(),
        log: "info".into(),
    })?;
    cluster.wait_sessions(Duration::from_secs(30))?;
    say(&format!("staging {reference}"));
    let started = SystemTime::now();
    let waiting = cluster.spawn_parbake(&["stage", reference, "--wait"], Stdio::null())?;
    let mut waiting = Ended(waiting);
    // what it shows is its own until it has ended
    wait_for(&mut waiting.0, Duration::from_secs(cli.timeout))?;
    drop(waiting);
    let mut answer = measure(cli, &source, &cluster, started)?;
    if let Some((_, later)) = specs.split_first()
        && !later.is_empty()
    {
        let stand = Stand {
            cluster: &cluster,
            source: &source,
            patience: Duration::from_secs(cli.timeout),
            recipe: cli.recipe,
            rate: cli.rate(),
        };
        let later = releases::stage(&stand, later)?;
        answer["all_verified"] = (answer["all_verified"] == true
            && later.iter().all(|release| release["all_verified"] == true))
        .into();
        answer["releases"] = later.into();
    }
    answer["peak_rss_bytes"] = cluster.peak_rss_bytes().into();
    cluster.stop();
    drop(source);
    show(cli, &answer)?;
    Ok(answer["all_verified"] == true)
}

/// What agents need beside the defaults. They stage stacked images where tart is new enough: here a program stands in
/// for it that says so, and does nothing else.
fn agent_settings(cli: &Cli, dir: &Path) -> anyhow::Result<String> {
    if !cli.stacked {
        return Ok(String::new());
    }
    let tart = dir.join("tart");
    std::fs::write(&tart, "#!/bin/sh\necho 2.36.0\n")?;
    std::fs::set_permissions(&tart, std::fs::Permissions::from_mode(0o755))?;
    Ok(format!("tart_binary = {:?}\n", tart.display().to_string()))
}

/// Whether a registry (`host` or `host:port`) can only be this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The releases' images; none where somebody else's is staged.
fn specs(cli: &Cli) -> anyhow::Result<Vec<ImageSpec>> {
    if cli.image.is_some() {
        return Ok(Vec::new());
    }
    if !cli.disk.is_empty() {
        ensure!(
            cli.disk.len() <= MOST_RELEASES,
            "a demo has {MOST_RELEASES} disks at most"
        );
        let of_file = |path: &PathBuf| ImageSpec::of_file(path, cli.layer_size);
        return Ok(cli.disk.iter().map(of_file).collect::<Result<_, _>>()?);
    }
    let first = match cli.incompressible {
        true => ImageSpec::incompressible(cli.size, cli.layer_size, cli.seed),
        false => ImageSpec {
            disk_bytes: cli.size,
            layer_bytes: cli.layer_size,
            seed: cli.seed,
            ..ImageSpec::default()
        },
    };
    let next = |spec: &ImageSpec| Some(spec.changed_within(100, cli.change));
    let all = std::iter::successors(Some(first), next);
    let all = all.take(cli.releases.into()).enumerate();
    let all = all.map(|(number, spec)| match cli.stacked && number % 2 == 0 {
        true => stacked(&spec),
        false => spec,
    });
    Ok(all.collect())
}

/// The disk as the base of a stacked image, with an overlay of an eighth of it and a smaller one.
fn stacked(flat: &ImageSpec) -> ImageSpec {
    let overlay = |part: u64, number: u64| Overlay {
        bytes: (flat.disk_bytes / part).max(1),
        seed: flat.seed.wrapping_mul(1000) + number + flat.changes.len() as u64 * 10,
    };
    flat.stacked(&[overlay(8, 1), overlay(30, 2)])
}

fn source(cli: &Cli, first: Option<&ImageSpec>, dir: &Path) -> anyhow::Result<Source> {
    let Some(first) = first else {
        let image = cli.image.clone().context("there is nothing to stage")?;
        return Ok(Source::foreign(image));
    };
    let rate = (cli.origin_rate() > 0).then(|| cli.origin_rate());
    tokio::runtime::Handle::current().block_on(Source::generated(
        first,
        &dir.join("registry"),
        rate,
        cli.lab.as_deref(),
    ))
}

/// Serves a directory of blobs until it is killed.
pub fn registry(cli: RegistryCli) -> ExitCode {
    end(source::serve(cli))
}

fn measure(
    cli: &Cli,
    source: &Source,
    cluster: &Cluster,
    started: SystemTime,
) -> anyhow::Result<Value> {
    // what it waited for is in the hosts' logs, or comes any moment
    let patience = HEARD_WITHIN;
    let reference = source.reference();
    let (present, image_bytes, raw_bytes) = match source.first() {
        Some(image) => {
            let present = cluster.wait_present(&image.digest.to_string(), patience)?;
            let overlays = image.overlays.iter().map(Disk::size);
            let raw_bytes = image.disk.size() + overlays.sum::<u64>();
            (present, image.blob_bytes(), raw_bytes)
        }
        None => {
            let present = cluster.wait_any_present(reference, patience)?;
            // how large the image is says its manifest, by the coordinator
            let status = cluster.parbake(&["status", reference, "--json"])?;
            let image: Value = serde_json::from_slice(&status.stdout)
                .context("the coordinator doesn't know the image")?;
            let bytes = |name: &str| image[name].as_u64().unwrap_or(0);
            (present, bytes("registry_bytes"), bytes("raw_bytes"))
        }
    };
    let total = |at: usize| present.iter().map(|present| present.bytes[at]).sum::<u64>();
    // somebody else's registry is counted by the hosts alone
    let origin = source.sent()?.unwrap_or_else(|| total(0));
    let elapsed: Vec<f64> = present
        .iter()
        .map(|present| {
            present
                .at
                .duration_since(started)
                .unwrap_or_default()
                .as_secs_f64()
        })
        .collect();
    let makespan = elapsed.iter().copied().fold(0.0, f64::max);
    let first = elapsed.iter().copied().fold(f64::INFINITY, f64::min);
    let install = present
        .iter()
        .map(|present| present.install)
        .max()
        .unwrap_or_default();
    say(&format!(
        "all {} hosts have it after {makespan:.1} s; comparing every disk with the source",
        cli.hosts
    ));
    let mut verified = 0;
    for agent in cluster.agents() {
        if verify(source, cluster, agent)? {
            verified += 1;
        }
    }
    let rate = cli.rate();
    let bound = (rate > 0 && image_bytes > 0).then(|| image_bytes as f64 / rate as f64);
    Ok(json!({
        "hosts": cli.hosts,
        "all_verified": verified == cli.hosts,
        "verified_hosts": verified,
        "image_bytes": image_bytes,
        "raw_bytes": raw_bytes,
        "makespan_s": round(makespan),
        "bound_s": bound.map(round),
        "makespan_over_bound": bound.map(|bound| round(makespan / bound)),
        "last_over_first": round(makespan / first),
        "origin_over_image": (image_bytes > 0).then(|| round4(origin as f64 / image_bytes as f64)),
        "install_s": round(install.as_secs_f64()),
        "bytes": {"origin": origin, "peers": total(1), "local": total(2)},
    }))
}

fn verify(source: &Source, cluster: &Cluster, agent: &cluster::Agent) -> anyhow::Result<bool> {
    let reference = source.reference();
    let Some(image) = source.first() else {
        return cluster.verify(agent, reference);
    };
    let difference = tart_home::difference(&agent.tart_home(), reference, image);
    let difference = difference.with_context(|| format!("disk of {}", agent.host))?;
    if let Some(difference) = &difference {
        say(&format!("{}: not the registry's: {difference}", agent.host));
    }
    Ok(difference.is_none())
}

#[expect(clippy::print_stdout, reason = "stdout is the answer")]
fn show(cli: &Cli, answer: &Value) -> anyhow::Result<()> {
    if cli.json {
        println!("{answer}");
    } else {
        let number = |name: &str| answer[name].as_f64().unwrap_or(0.0);
        let amount = |value: &Value| Bytes(value.as_u64().unwrap_or(0));
        println!(
            "hosts verified         {} of {}",
            answer["verified_hosts"], answer["hosts"]
        );
        println!(
            "time                   {:.1} s (last host / first host {:.2})",
            number("makespan_s"),
            number("last_over_first")
        );
        match answer["bound_s"].as_f64() {
            Some(bound) => println!(
                "makespan / lower bound {:.2} (the registry's link needs {bound:.1} s for one copy)",
                number("makespan_over_bound"),
            ),
            None => println!(
                "makespan / lower bound unknown (--origin-rate says what the registry gives)"
            ),
        }
        println!("origin / image         {:.4}", number("origin_over_image"));
        println!(
            "received               {} from the registry, {} from peers; {} was here",
            amount(&answer["bytes"]["origin"]),
            amount(&answer["bytes"]["peers"]),
            amount(&answer["bytes"]["local"])
        );
        println!("last chunk → installed {:.2} s", number("install_s"));
        println!(
            "peak memory            {} (largest agent)",
            amount(&answer["peak_rss_bytes"])
        );
        for release in answer["releases"].as_array().into_iter().flatten() {
            println!("{}", releases::line(release));
        }
    }
    std::io::stdout().flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_name() {
        let parsed = |arguments: &[&str]| {
            let all = ["demo"].iter().chain(arguments);
            Cli::try_parse_from(all).map_err(|error| error.to_string())
        };
        for (arguments, word) in [
            (["--hosts", "0"], "1 to 250 hosts"),
            (["--hosts", "1000000"], "1 to 250 hosts"),
            (["--hosts", "many"], "1 to 250 hosts"),
            (["--size", "1"], "1MiB at least"),
            (["--size", "lots"], "use bytes, KiB"),
            (["--layer-size", "0"], "multiple of 64KiB"),
            (["--layer-size", "100000"], "multiple of 64KiB"),
            (["--releases", "0"], "1..=9"),
            (["--change", "0%"], "1% to 100%"),
            (["--change", "half"], "1% to 100%"),
        ] {
            let error = parsed(&arguments).unwrap_err();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
        for arguments in [
            ["--hosts", "1"],
            ["--hosts", "250"],
            ["--size", "1MiB"],
            ["--layer-size", "64KiB"],
            ["--change", "20"],
            ["--releases", "9"],
        ] {
            assert!(parsed(&arguments).is_ok(), "{arguments:?}");
        }
    }

    #[test]
    fn disks_in_files_are_the_releases() {
        let disks: Vec<_> = [1, 3]
            .map(|mib| {
                let disk = tempfile::NamedTempFile::new().unwrap();
                disk.as_file().set_len(mib << 20).unwrap();
                disk
            })
            .into();
        let mut arguments = vec!["demo".into()];
        for disk in &disks {
            arguments.extend(["--disk".into(), disk.path().as_os_str().to_owned()]);
        }
        let specs = specs(&Cli::try_parse_from(&arguments).unwrap()).unwrap();
        let sizes: Vec<_> = specs.iter().map(|spec| spec.disk_bytes).collect();
        assert_eq!(sizes, [1 << 20, 3 << 20]);
        arguments.push("--releases=2".into());
        assert!(Cli::try_parse_from(&arguments).is_err());
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_plain_http() {
        for registry in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
        ] {
            assert!(is_loopback(registry), "{registry}");
        }
        for registry in [
            "ghcr.io",
            "10.0.0.1:5000",
            "127.0.0.1.example.com",
            "localhost.example.com:80",
        ] {
            assert!(!is_loopback(registry), "{registry}");
        }
    }
}
