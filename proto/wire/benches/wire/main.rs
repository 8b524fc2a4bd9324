//! How fast and how dear a connection of ours is, beside bare quinn with the same settings and TCP with TLS.
//!
//! `cargo bench -p wire` measures on loopback. `cargo bench -p wire -- --mtu 1500` measures between two network
//! namespaces joined by a virtual cable with that MTU. The namespaces need root and iproute2; where they can't be made,
//! the bench says so and measures nothing. `--help` explains all options. Each end is a process of its own. The three
//! ways take turns, so that a busy machine slows all of them alike. The printed figures are medians, and the last line
//! of stdout is JSON.
#![expect(clippy::print_stdout, reason = "a program whose answer is on stdout")]

mod ends;
mod namespace;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::namespace::Namespaces;

/// The three ways to move a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Link,
    Quinn,
    TcpTls,
}

impl Way {
    const ALL: [Self; 3] = [Self::Link, Self::Quinn, Self::TcpTls];

    fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Quinn => "quinn",
            Self::TcpTls => "tcp_tls",
        }
    }
}

/// What both ends are told first, one line of JSON on stdin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) address: IpAddr,
    pub(crate) in_flight: usize,
    pub(crate) warm_ms: u64,
    pub(crate) measured_ms: u64,
    pub(crate) mtu_bound: u16,
    pub(crate) ack_threshold: u32,
    pub(crate) connection_window: u32,
    pub(crate) stream_window: u32,
    pub(crate) send_window: u64,
    pub(crate) authority: String,
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// What the fetching end reports of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    pub(crate) mtu: u16,
    pub(crate) lost: u64,
}

/// One run as both ends saw it.
#[derive(Clone, Debug)]
struct Sample {
    gb_per_s: f64,
    cpu_fetch_s_per_gb: f64,
    cpu_serve_s_per_gb: f64,
    mtu: u16,
    lost: u64,
}

/// What `--help` prints.
const HELP: &str = "\
Moves chunks of 1 MiB over one connection in three ways: our link, bare quinn, and TCP with TLS.
Prints medians for each way: GB/s, processor seconds per GB, the largest UDP payload and the lost packets.

Each option has a value:
  --mtu BYTES                measure between two network namespaces joined by a virtual cable with this MTU. This needs
                             root and iproute2 [default: measure on loopback]
  --rounds N                 rounds, in each of which every way is measured once [default: 7]
  --measured-ms MS           milliseconds for which each way is measured in a round [default: 1600]
  --in-flight N              chunks that are asked for at one time [default: 4]

Settings of the connection, for our link and bare quinn; their defaults are those of the programs:
  --mtu-bound BYTES          largest UDP payload that MTU discovery tries
  --ack-threshold N          packets that may arrive before they are acknowledged; 0 keeps QUIC's own rule
  --stream-window BYTES      bytes of one stream that may be in flight or unread
  --connection-window BYTES  bytes of all streams together that may be in flight or unread
  --send-window BYTES        bytes that are sent and not yet acknowledged
";

struct Options {
    rounds: usize,
    mtu: Option<u32>,
    plan: Plan,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => return ends::serve(),
        Some("fetch") => return ends::fetch(),
        _ => {}
    }
    if std::env::args().any(|argument| argument == "--help") {
        print!("{HELP}");
        return Ok(());
    }
    let options = options()?;
    let namespaces = match options.mtu {
        None => None,
        Some(mtu) => match Namespaces::new(mtu) {
            Ok(namespaces) => Some(namespaces),
            Err(error) => {
                println!("skipped: no network namespaces here ({error:#})");
                return Ok(());
            }
        },
    };
    let mut plan = options.plan;
    if namespaces.is_some() {
        plan.address = IpAddr::V4(namespace::SERVE);
    }
    let mut serve = End::start("serve", namespaces.as_ref().map(|both| both.serve()), &plan)?;
    let ports: Vec<u16> = serde_json::from_str(&serve.line()?)?;
    let mut fetch = End::start("fetch", namespaces.as_ref().map(|both| both.fetch()), &plan)?;

    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); Way::ALL.len()];
    for round in 0..options.rounds {
        // each round begins with another way
        for turn in 0..Way::ALL.len() {
            let index = (round + turn) % Way::ALL.len();
            let way = Way::ALL[index];
            fetch.say(&serde_json::to_string(&(way, ports[index]))?)?;
            if fetch.line()? != "measuring" {
                bail!("{} didn't start", way.name());
            }
            serve.say("cpu")?;
            let before: f64 = serve.line()?.parse()?;
            let run: Run = serde_json::from_str(&fetch.line()?)?;
            serve.say("cpu")?;
            let after: f64 = serve.line()?.parse()?;
            let gb = precise(run.bytes) / 1e9;
            samples[index].push(Sample {
                gb_per_s: gb / run.seconds,
                cpu_fetch_s_per_gb: run.cpu_s / gb,
                cpu_serve_s_per_gb: (after - before) / gb,
                mtu: run.mtu,
                lost: run.lost,
            });
        }
    }
    report(&samples, options.mtu, &plan)
}

fn report(samples: &[Vec<Sample>], mtu: Option<u32>, plan: &Plan) -> anyhow::Result<()> {
    let path = mtu.map_or("loopback".to_owned(), |mtu| format!("veth, MTU {mtu}"));
    println!(
        "chunks of 1 MiB, {} in flight, one connection, {path}; medians of {} rounds",
        plan.in_flight,
        samples[0].len()
    );
    println!(
        "{:8} {:>8} {:>10} {:>12} {:>12} {:>14} {:>8}",
        "", "GB/s", "CPU s/GB", "of fetching", "of serving", "UDP payload B", "lost"
    );
    let mut object = serde_json::Map::new();
    for (way, samples) in Way::ALL.iter().zip(samples) {
        let speed = median(samples.iter().map(|sample| sample.gb_per_s));
        let fetch = median(samples.iter().map(|sample| sample.cpu_fetch_s_per_gb));
        let serve = median(samples.iter().map(|sample| sample.cpu_serve_s_per_gb));
        let largest = samples.iter().map(|sample| sample.mtu).max().unwrap_or(0);
        let lost: u64 = samples.iter().map(|sample| sample.lost).sum();
        println!(
            "{:8} {speed:8.3} {:10.3} {fetch:12.3} {serve:12.3} {largest:14} {lost:8}",
            way.name(),
            fetch + serve
        );
        object.insert(
            way.name().to_owned(),
            serde_json::json!({
                "gb_per_s": speed,
                "cpu_s_per_gb": fetch + serve,
                "cpu_fetch_s_per_gb": fetch,
                "cpu_serve_s_per_gb": serve,
                "udp_payload_bytes": largest,
                "lost_packets": lost,
            }),
        );
    }
    let ratio = |over: usize, what: fn(&Sample) -> f64| {
        median(
            samples[0]
                .iter()
                .zip(&samples[over])
                .map(|(ours, theirs)| what(ours) / what(theirs)),
        )
    };
    let cpu = |sample: &Sample| sample.cpu_fetch_s_per_gb + sample.cpu_serve_s_per_gb;
    for (name, over) in [("quinn", 1), ("tcp_tls", 2)] {
        let (speed, cpu) = (ratio(over, |sample| sample.gb_per_s), ratio(over, cpu));
        println!("link / {name}: speed {speed:.3}, CPU per byte {cpu:.3}");
        object.insert(format!("link_over_{name}"), speed.into());
        object.insert(format!("link_over_{name}_cpu"), cpu.into());
    }
    object.insert("mtu".to_owned(), mtu.into());
    println!("{}", serde_json::Value::Object(object));
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub(crate) fn precise(count: u64) -> f64 {
    count as f64
}

fn options() -> anyhow::Result<Options> {
    let defaults = wire::Settings::default();
    let (authority, chain, key) = ends::certificates()?;
    let mut options = Options {
        rounds: 7,
        mtu: None,
        plan: Plan {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            in_flight: 4,
            warm_ms: 400,
            measured_ms: 1_600,
            mtu_bound: defaults.mtu_bound,
            ack_threshold: defaults.ack_threshold,
            connection_window: defaults.connection_window,
            stream_window: defaults.stream_window,
            send_window: defaults.send_window,
            authority,
            chain,
            key,
        },
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--bench" {
            continue; // cargo's
        }
        let value = arguments
            .next()
            .with_context(|| format!("option {name} needs a value; --help explains it"))?;
        let plan = &mut options.plan;
        match name.as_str() {
            "--mtu" => options.mtu = Some(value.parse()?),
            "--rounds" => options.rounds = value.parse()?,
            "--in-flight" => plan.in_flight = value.parse()?,
            "--measured-ms" => plan.measured_ms = value.parse()?,
            "--mtu-bound" => plan.mtu_bound = value.parse()?,
            "--ack-threshold" => plan.ack_threshold = value.parse()?,
            "--connection-window" => plan.connection_window = value.parse()?,
            "--stream-window" => plan.stream_window = value.parse()?,
            "--send-window" => plan.send_window = value.parse()?,
            _ => bail!("there is no option {name}; --help explains those that there are"),
        }
    }
    Ok(options)
}

/// One end: a process that is spoken to by lines.
struct End {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl End {
    fn start(what: &str, namespace: Option<&str>, plan: &Plan) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = match namespace {
            None => Command::new(program),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program);
                command
            }
        };
        let mut child = command
            .arg(what)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start the end that is to {what}"))?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut end = Self {
            child,
            input,
            output,
        };
        end.say(&serde_json::to_string(plan)?)?;
        Ok(end)
    }

    fn say(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.input, "{line}")?;
        Ok(self.input.flush()?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("an end died");
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // it may have ended already
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
