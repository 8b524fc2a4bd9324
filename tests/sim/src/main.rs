//! Runs one scenario and prints what came out. Exit 0: everything held; 1: a promise was broken, or a cost
//! is over its goal; 2: bad arguments.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people and scripts"
)]

use std::process::ExitCode;

use clap::Parser;
use sim::{Goals, Rogue, Scenario, Setup, roll};

/// Simulates a fleet: real cores, virtual time.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
struct Cli {
    /// Scenario; see --list.
    #[arg(long, default_value = "fanout", env = "SIM_SCENARIO")]
    scenario: String,
    /// How every rogue lies, in scenario rogues; see --list. Without it each lies in its own way.
    #[arg(long, env = "SIM_MANNER")]
    manner: Option<String>,
    /// Hosts.
    #[arg(long, default_value_t = 50, env = "SIM_HOSTS")]
    hosts: usize,
    /// Bytes of the image.
    #[arg(long, default_value_t = 8_000_000_000, env = "SIM_IMAGE_BYTES")]
    image_bytes: u64,
    /// Bytes of each content of the image.
    #[arg(long, default_value_t = 512 << 20, env = "SIM_CONTENT_BYTES")]
    content_bytes: u64,
    /// Bytes of a chunk: a multiple of 1 MiB coarsens the run, and is said in the output.
    #[arg(long, default_value_t = proto::CHUNK_BYTES, env = "SIM_CHUNK_BYTES")]
    chunk_bytes: u64,
    /// Seed.
    #[arg(long, default_value_t = 1, env = "SIM_SEED")]
    seed: u64,
    /// The registry's rate, bytes per second.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_ORIGIN_RATE")]
    origin_rate: u64,
    /// Each host's uplink, bytes per second.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_UP_RATE")]
    up_rate: u64,
    /// Each host's downlink, bytes per second.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_DOWN_RATE")]
    down_rate: u64,
    /// One-way delay, microseconds.
    #[arg(long, default_value_t = 100, env = "SIM_DELAY_US")]
    delay_us: u64,
    /// Pieces that a chunk is cut into on the network; 0: 16 up to 32 hosts, 4 up to 100, else 1.
    #[arg(long, default_value_t = 0, env = "SIM_PIECES")]
    pieces: u32,
    /// Zones that the hosts lie in.
    #[arg(long, default_value_t = 1, env = "SIM_ZONES")]
    zones: usize,
    /// Uploads at one time per host.
    #[arg(long, env = "SIM_UPLOADS")]
    uploads: Option<usize>,
    /// Pushes received at one time per host.
    #[arg(long, env = "SIM_INCOMING")]
    incoming: Option<usize>,
    /// Chunk times until a busy receiver is tried again.
    #[arg(long, env = "SIM_BUSY_WAIT_CHUNKS")]
    busy_wait_chunks: Option<u64>,
    /// Spreads that may lie at a spreader, percent.
    #[arg(long, env = "SIM_SPREAD_BACKLOG_PERCENT")]
    spread_backlog_percent: Option<u64>,
    /// And chunks on top.
    #[arg(long, env = "SIM_SPREAD_BACKLOG_CHUNKS")]
    spread_backlog_chunks: Option<u64>,
    /// Chunks that a lease holder may hold without having handed them on.
    #[arg(long, env = "SIM_LEASE_WINDOW")]
    lease_window: Option<u32>,
    /// Targets that a spreader serves itself.
    #[arg(long, env = "SIM_DIRECT_TARGETS")]
    direct_targets: Option<usize>,
    /// Parts that targets are split into beyond that.
    #[arg(long, env = "SIM_FAN_OUT")]
    fan_out: Option<usize>,
    /// Connections that a host opens by itself.
    #[arg(long, env = "SIM_CONNECTIONS")]
    connections: Option<usize>,
    /// Hosts looked at when a spreader is chosen.
    #[arg(long, env = "SIM_CANDIDATES")]
    candidates: Option<usize>,
    /// The most that makespan over bound may be; more is exit 1.
    #[arg(long, env = "SIM_MAX_MAKESPAN_OVER_BOUND")]
    max_makespan_over_bound: Option<f64>,
    /// The most that the registry's bytes over the image's may be; more is exit 1.
    #[arg(long, env = "SIM_MAX_ORIGIN_OVER_IMAGE")]
    max_origin_over_image: Option<f64>,
    /// The most that the other images may take over what they take without the one that lacks a layer; more is exit 1.
    #[arg(long, env = "SIM_MAX_OTHERS_OVER_ALONE")]
    max_others_over_alone: Option<f64>,
    /// Print the use of the lines over time to stderr.
    #[arg(long, env = "SIM_TRACE")]
    trace: bool,
    /// One JSON object on the last line of stdout.
    #[arg(long, env = "SIM_JSON")]
    json: bool,
    /// Name the scenarios, and the manners of rogues.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for scenario in Scenario::ALL {
            println!("{:<14} {}", scenario.name(), scenario.about());
        }
        for scenario in roll::Scenario::ALL {
            println!("{:<14} {}", scenario.name(), scenario.about());
        }
        for rogue in Rogue::ALL {
            println!("rogues --manner {:<10} {}", rogue.name(), rogue.about());
        }
        return ExitCode::SUCCESS;
    }
    if let Some(scenario) = roll::Scenario::named(&cli.scenario) {
        return roll(&cli, scenario);
    }
    let Some(scenario) = Scenario::named(&cli.scenario) else {
        eprintln!("no scenario {:?}: --list names them", cli.scenario);
        return ExitCode::from(2);
    };
    let manner = match &cli.manner {
        None => None,
        Some(_) if scenario != Scenario::Rogues => {
            eprintln!("--manner is for scenario rogues");
            return ExitCode::from(2);
        }
        Some(name) => {
            let Some(manner) = Rogue::named(name) else {
                eprintln!("no manner {name:?}: --list names them");
                return ExitCode::from(2);
            };
            Some(manner)
        }
    };
    if cli.hosts == 0
        || cli.image_bytes == 0
        || cli.content_bytes == 0
        || cli.origin_rate == 0
        || cli.up_rate == 0
        || cli.down_rate == 0
    {
        eprintln!("hosts, bytes and rates must be more than 0");
        return ExitCode::from(2);
    }
    if cli.chunk_bytes < proto::CHUNK_BYTES || !cli.chunk_bytes.is_multiple_of(proto::CHUNK_BYTES) {
        eprintln!("--chunk-bytes must be a multiple of {}", proto::CHUNK_BYTES);
        return ExitCode::from(2);
    }
    let mut setup = Setup::new(scenario, cli.hosts, cli.image_bytes, cli.seed);
    setup.content_bytes = cli.content_bytes;
    setup.chunk_bytes = cli.chunk_bytes;
    setup.origin_rate = cli.origin_rate;
    setup.up_rate = cli.up_rate;
    setup.down_rate = cli.down_rate;
    setup.delay = cli.delay_us * 1_000;
    setup.pieces = cli.pieces;
    setup.zones = cli.zones.max(1);
    setup.trace = cli.trace;
    setup.manner = manner;
    let swarm = &mut setup.swarm;
    swarm.uploads = cli.uploads.unwrap_or(swarm.uploads);
    swarm.incoming = cli.incoming.unwrap_or(swarm.incoming);
    swarm.busy_wait_chunks = cli.busy_wait_chunks.unwrap_or(swarm.busy_wait_chunks);
    swarm.spread_backlog_percent = cli
        .spread_backlog_percent
        .unwrap_or(swarm.spread_backlog_percent);
    swarm.spread_backlog_chunks = cli
        .spread_backlog_chunks
        .unwrap_or(swarm.spread_backlog_chunks);
    swarm.lease_window = cli.lease_window.unwrap_or(swarm.lease_window);
    swarm.direct_targets = cli.direct_targets.unwrap_or(swarm.direct_targets);
    swarm.fan_out = cli.fan_out.unwrap_or(swarm.fan_out);
    swarm.connections = cli.connections.unwrap_or(swarm.connections);
    swarm.candidates = cli.candidates.unwrap_or(swarm.candidates);
    eprintln!("seed {}", cli.seed);
    let outcome = sim::run(&setup);
    if cli.json {
        println!("{}", outcome.to_json());
    } else {
        print!("{}", outcome.to_text());
    }
    let excess = outcome.excess(&Goals {
        makespan_over_bound: cli.max_makespan_over_bound,
        origin_over_image: cli.max_origin_over_image,
        others_over_alone: cli.max_others_over_alone,
    });
    for excess in &excess {
        eprintln!("{excess}");
    }
    if outcome.passed() && excess.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}

fn roll(cli: &Cli, scenario: roll::Scenario) -> ExitCode {
    if cli.hosts == 0 {
        eprintln!("hosts must be more than 0");
        return ExitCode::from(2);
    }
    if cli.max_makespan_over_bound.is_some() || cli.max_origin_over_image.is_some() {
        eprintln!(
            "a roll moves no bytes: scenario {} has no cost to bound",
            scenario.name()
        );
        return ExitCode::from(2);
    }
    eprintln!("seed {}", cli.seed);
    let outcome = roll::run(&roll::Setup::new(scenario, cli.hosts, cli.seed));
    if cli.json {
        println!("{}", outcome.to_json());
    } else {
        print!("{}", outcome.to_text());
    }
    if outcome.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    }
}
