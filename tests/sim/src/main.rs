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

/// The heading of the options that change the swarm's settings.
const SWARM: &str = "Settings of the swarm";
/// The heading of the options that bound what a run may cost.
const LIMITS: &str = "Limits";

/// The agent's own settings, which are the defaults.
fn swarm() -> swarm::Config {
    swarm::Config::default()
}

/// Simulates a fleet that stages an image or rolls pools: the real decisions, in virtual time.
///
/// The same options give the same run, event for event. Exit status: 0 if every promise held and every cost is within
/// its limit, 1 if not, 2 for wrong options.
#[derive(Debug, Parser)]
#[command(name = "sim", version, max_term_width = 100)]
struct Cli {
    /// Name of the scenario. --list shows all scenarios. In scenarios of a roll only --hosts, --seed and --json count.
    #[arg(long, default_value = "fanout", env = "SIM_SCENARIO")]
    scenario: String,
    /// How every rogue host lies, in scenario `rogues`. --list shows all manners. [default: each rogue lies in its own
    /// way]
    #[arg(long, env = "SIM_MANNER")]
    manner: Option<String>,
    /// Number of hosts.
    #[arg(long, default_value_t = 50, env = "SIM_HOSTS")]
    hosts: usize,
    /// Size of the image, in bytes.
    #[arg(long, default_value_t = 8_000_000_000, env = "SIM_IMAGE_BYTES")]
    image_bytes: u64,
    /// Size of each content of the image, in bytes.
    #[arg(long, default_value_t = 512 << 20, env = "SIM_CONTENT_BYTES")]
    content_bytes: u64,
    /// Size of a chunk, in bytes: a multiple of 1 MiB. Larger chunks make the run faster and coarser, and the output
    /// says so.
    #[arg(long, default_value_t = proto::CHUNK_BYTES, env = "SIM_CHUNK_BYTES")]
    chunk_bytes: u64,
    /// Seed of everything that is random.
    #[arg(long, default_value_t = 1, env = "SIM_SEED")]
    seed: u64,
    /// Rate of the registry, in bytes per second, for all hosts together.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_ORIGIN_RATE")]
    origin_rate: u64,
    /// Rate of each stream of the registry, in bytes per second. Scenarios with a slow registry have their own.
    /// [default: no limit]
    #[arg(long, env = "SIM_STREAM_RATE", value_parser = clap::value_parser!(u64).range(1..))]
    stream_rate: Option<u64>,
    /// The most ranges of one content that are leased at one time, where there is a recipe. 1: contents are leased
    /// whole.
    #[arg(long, default_value_t = rollout::stage::Config::default().content_ranges, env = "SIM_CONTENT_RANGES")]
    content_ranges: usize,
    /// The fewest missing chunks of a content for each range of it, where there is a recipe.
    #[arg(long, default_value_t = rollout::stage::Config::default().range_chunks, env = "SIM_RANGE_CHUNKS")]
    range_chunks: u32,
    /// Rate of each host's uplink, in bytes per second.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_UP_RATE")]
    up_rate: u64,
    /// Rate of each host's downlink, in bytes per second.
    #[arg(long, default_value_t = sim::scenario::GIGABIT, env = "SIM_DOWN_RATE")]
    down_rate: u64,
    /// Delay of the network in one direction, in microseconds.
    #[arg(long, default_value_t = 100, env = "SIM_DELAY_US")]
    delay_us: u64,
    /// Number of pieces into which the simulated network cuts each chunk. 0 chooses by the number of hosts: 16 up to 32
    /// hosts, 4 up to 100 hosts, 1 beyond.
    #[arg(long, default_value_t = 0, env = "SIM_PIECES")]
    pieces: u32,
    /// Number of zones over which the hosts are spread.
    #[arg(long, default_value_t = 1, env = "SIM_ZONES")]
    zones: usize,
    /// The most uploads that a host runs at one time.
    #[arg(long, default_value_t = swarm().uploads, env = "SIM_UPLOADS", help_heading = SWARM)]
    uploads: usize,
    /// The most pushes that a host receives at one time.
    #[arg(long, default_value_t = swarm().incoming, env = "SIM_INCOMING", help_heading = SWARM)]
    incoming: usize,
    /// Wait before a push to a busy host is tried again, in times that one chunk takes on the uplink.
    #[arg(long, default_value_t = swarm().busy_wait_chunks, env = "SIM_BUSY_WAIT_CHUNKS", help_heading = SWARM)]
    busy_wait_chunks: u64,
    /// The work that may wait at a spreader, in percent of one spread.
    #[arg(long, default_value_t = swarm().spread_backlog_percent, env = "SIM_SPREAD_BACKLOG_PERCENT", help_heading = SWARM)]
    spread_backlog_percent: u64,
    /// The work with which a host takes one more spread over, in percent of one spread.
    #[arg(long, default_value_t = swarm().spread_taken_percent, env = "SIM_SPREAD_TAKEN_PERCENT", help_heading = SWARM)]
    spread_taken_percent: u64,
    /// The work that may wait at a spreader on top of these percentages, in chunks.
    #[arg(long, default_value_t = swarm().spread_backlog_chunks, env = "SIM_SPREAD_BACKLOG_CHUNKS", help_heading = SWARM)]
    spread_backlog_chunks: u64,
    /// The most chunks of a lease that a host has ordered from the registry, or received and not yet passed on.
    #[arg(long, default_value_t = swarm().lease_window, env = "SIM_LEASE_WINDOW", help_heading = SWARM)]
    lease_window: u32,
    /// The most hosts to which a spreader sends a chunk itself.
    #[arg(long, default_value_t = swarm().direct_targets, env = "SIM_DIRECT_TARGETS", help_heading = SWARM)]
    direct_targets: usize,
    /// Number of parts into which a spreader splits more hosts than that.
    #[arg(long, default_value_t = swarm().fan_out, env = "SIM_FAN_OUT", help_heading = SWARM)]
    fan_out: usize,
    /// The most connections that a host opens itself.
    #[arg(long, default_value_t = swarm().connections, env = "SIM_CONNECTIONS", help_heading = SWARM)]
    connections: usize,
    /// Number of hosts that are compared when a spreader is chosen.
    #[arg(long, default_value_t = swarm().candidates, env = "SIM_CANDIDATES", help_heading = SWARM)]
    candidates: usize,
    /// The image has a recipe, which every host has from the start: chunks are proved when they arrive.
    #[arg(long, env = "SIM_RECIPE")]
    recipe: bool,
    /// Every host holds the release before, and this percentage of the chunks changed since. The image has a recipe.
    /// [default: 5 in scenario `release`; in others hosts hold nothing]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100), env = "SIM_CHANGE")]
    change: Option<u32>,
    /// Exit with 1 if the makespan is more than this many times its lower bound. [default: no limit]
    #[arg(
        long,
        env = "SIM_MAX_MAKESPAN_OVER_BOUND",
        value_name = "RATIO",
        help_heading = LIMITS
    )]
    max_makespan_over_bound: Option<f64>,
    /// Exit with 1 if the registry sends more than this many times the image's bytes. [default: no limit]
    #[arg(
        long,
        env = "SIM_MAX_ORIGIN_OVER_IMAGE",
        value_name = "RATIO",
        help_heading = LIMITS
    )]
    max_origin_over_image: Option<f64>,
    /// Exit with 1 if the complete images take more than this many times as long as without the image that lacks a
    /// layer. [default: no limit]
    #[arg(
        long,
        env = "SIM_MAX_OTHERS_OVER_ALONE",
        value_name = "RATIO",
        help_heading = LIMITS
    )]
    max_others_over_alone: Option<f64>,
    /// Hosts know no order among images, as hosts of earlier versions.
    #[arg(long, env = "SIM_UNORDERED")]
    unordered: bool,
    /// Exit with 1 if the last host has its first image later than this many times the time that the image takes alone.
    /// [default: no limit]
    #[arg(
        long,
        env = "SIM_MAX_FIRST_OVER_ALONE",
        value_name = "RATIO",
        help_heading = LIMITS
    )]
    max_first_over_alone: Option<f64>,
    /// Print how busy the links are over time, on stderr.
    #[arg(long, env = "SIM_TRACE")]
    trace: bool,
    /// Print one JSON object on the last line of stdout.
    #[arg(long, env = "SIM_JSON")]
    json: bool,
    /// List the scenarios and the manners of rogue hosts, and end.
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
    let one_image = !matches!(
        scenario,
        Scenario::MissingLayer | Scenario::Mirror | Scenario::MirrorSlow | Scenario::MirrorAlone
    );
    if cli.change.is_some() && !one_image {
        eprintln!("--change is for scenarios with one image and no mirrors");
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
    setup.change_percent = cli.change.or(setup.change_percent);
    setup.recipe |= cli.recipe || setup.change_percent.is_some();
    setup.stream_rate = cli.stream_rate;
    setup.unordered = cli.unordered;
    setup.plan.content_ranges = cli.content_ranges;
    setup.plan.range_chunks = cli.range_chunks;
    let swarm = &mut setup.swarm;
    swarm.uploads = cli.uploads;
    swarm.incoming = cli.incoming;
    swarm.busy_wait_chunks = cli.busy_wait_chunks;
    swarm.spread_backlog_percent = cli.spread_backlog_percent;
    swarm.spread_taken_percent = cli.spread_taken_percent;
    swarm.spread_backlog_chunks = cli.spread_backlog_chunks;
    swarm.lease_window = cli.lease_window;
    swarm.direct_targets = cli.direct_targets;
    swarm.fan_out = cli.fan_out;
    swarm.connections = cli.connections;
    swarm.candidates = cli.candidates;
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
        first_over_alone: cli.max_first_over_alone,
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
