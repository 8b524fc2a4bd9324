//! The command line: arguments, their environment variables, and their help. [`Config`](crate::config::Config) has the
//! resulting settings.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use logging::LogFormat;

/// Runs parbake's agent, which stages macOS VM images on this host.
///
/// The agent puts images into tart's cache before they are needed, and gives their chunks to the other hosts of the
/// fleet. Exit status: 0 for done or yes, 1 for no (`verify` found damage), 2 for an error, which the log explains.
#[derive(Debug, Parser)]
#[command(name = "parbake-agent", version, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub struct Shared {
    /// Settings file (TOML). An option that is given here wins over the file. [default: none, so that all settings have
    /// their defaults]
    #[arg(long, env = "PARBAKE_AGENT_CONFIG", global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory that holds this host's key and certificates. [default: /var/lib/parbake-agent]
    #[arg(long, env = "PARBAKE_AGENT_STATE", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of tart's images and VMs. [default: ~/.tart]
    #[arg(long, env = "TART_HOME", global = true, value_name = "DIR")]
    pub tart_home: Option<PathBuf>,
    /// TCP address (IP:PORT) of /healthz, /readyz, /metrics and the status API. `run` serves it, and `status` asks it.
    /// [default: 127.0.0.1:7472]
    #[arg(
        long,
        env = "PARBAKE_AGENT_ADMIN",
        global = true,
        value_name = "IP:PORT"
    )]
    pub admin: Option<SocketAddr>,
    /// Form of the log lines.
    #[arg(long, env = "PARBAKE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Which log lines to write: a level (error, warn, info, debug, trace or off), or levels by crate, such as
    /// `agent=debug,warn`.
    #[arg(long, env = "PARBAKE_LOG", default_value = "info", global = true)]
    pub log: String,
    /// File to which log lines are written. The file may be renamed at any time: the next line goes to a new file.
    /// [default: none, log lines go to stderr]
    #[arg(long, env = "PARBAKE_LOG_FILE", global = true, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
}

/// The agent's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground until it gets SIGTERM or SIGINT.
    ///
    /// The agent stages the images that the coordinator orders, serves chunks to other hosts, and answers clients of
    /// the registry mirror on this host. Enrol this host first.
    Run(Run),
    /// Enrol this host with the fleet's coordinator, by a token that works once.
    #[command(alias = "enrol")]
    Enroll(Enroll),
    /// Show what the running agent holds and does.
    Status {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hash an installed image again, and compare it with its manifest.
    ///
    /// Exit status: 0 if the image is intact, 1 if it is damaged, 2 if it isn't on this host. A running agent repairs a
    /// damaged image that is still wanted.
    Verify {
        /// The image: its reference, or the digest of its manifest (`sha256:DIGEST`) if parbake staged it on this host.
        image: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Show which old images the agent would remove from this host, and how much room they take.
    ///
    /// The command removes nothing. The agent removes old images by itself, once a minute, where the settings file has
    /// keep_images or keep_days, or where the coordinator has a rule for the fleet (`parbake clean --dry-run` asks it).
    /// The agent may run meanwhile.
    Clean(Clean),
    /// Stage one image on this host from its registry alone, without a coordinator.
    ///
    /// The command refuses to work while the agent runs.
    Stage {
        /// The image with its registry, by tag or digest: ghcr.io/org/image:tag or ghcr.io/org/image@sha256:DIGEST.
        image: String,
        /// Print one JSON object at the end.
        #[arg(long)]
        json: bool,
    },
    /// Make launchd of this Mac run the agent, now and after every boot.
    ///
    /// Run this with sudo, on macOS. The command writes a LaunchDaemon, a rule for log rotation and the first settings
    /// file, /etc/parbake/agent.toml. It keeps a settings file that is there already. Enrol this host afterwards.
    Install(Install),
    /// Stop the agent, and remove it from launchd.
    ///
    /// Run this with sudo, on macOS. Settings, keys, logs and images stay.
    Uninstall(Uninstall),
}

/// Options of `clean`.
#[derive(Args, Debug)]
pub struct Clean {
    /// Remove nothing. There is no other way to call this command.
    #[arg(long, required = true)]
    pub dry_run: bool,
    /// How many images of each repository stay, the wanted ones among them. [default: keep_images of the settings file]
    #[arg(long, env = "PARBAKE_AGENT_KEEP", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
    /// For how many days after its last use an image stays, beside those that stay for their number. [default:
    /// keep_days of the settings file, if --keep isn't given]
    #[arg(long, env = "PARBAKE_AGENT_KEEP_DAYS", value_name = "D", value_parser = clap::value_parser!(u32).range(1..))]
    pub days: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `install`.
#[derive(Args, Debug)]
pub struct Install {
    /// Name of the user that runs tart. The agent runs as this user.
    #[arg(long, env = "PARBAKE_AGENT_USER")]
    pub user: String,
    /// Group that log files belong to after their rotation.
    #[arg(long, env = "PARBAKE_AGENT_GROUP", default_value = "staff")]
    pub group: String,
    /// Home directory of the user. [default: /Users/USER]
    #[arg(long, env = "PARBAKE_AGENT_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Path of the program that launchd starts. [default: the program that you run now]
    #[arg(long, env = "PARBAKE_AGENT_BINARY", value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Path of tart's program. It is written to a settings file only if there is none yet.
    #[arg(
        long,
        env = "PARBAKE_TART_BINARY",
        default_value = "/usr/local/bin/tart",
        value_name = "FILE"
    )]
    pub tart_binary: PathBuf,
    /// Print all files with their paths, and change nothing.
    #[arg(long, conflicts_with = "root")]
    pub print: bool,
    /// Write all files below this directory, and don't call launchd. Use this to build packages. [default: none]
    #[arg(long, env = "PARBAKE_INSTALL_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Options of `uninstall`.
#[derive(Args, Debug)]
pub struct Uninstall {
    /// Remove the files below this directory, and don't call launchd. [default: none]
    #[arg(long, env = "PARBAKE_INSTALL_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Args, Debug, Default)]
pub struct Run {
    /// UDP address (IP:PORT) on which other hosts connect to this host. [default: 0.0.0.0:7471]
    #[arg(long, env = "PARBAKE_AGENT_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address (IP:PORT) at which other hosts are told to connect to this host. [default: the address from which this
    /// host connects to the coordinator, and the port of --listen]
    #[arg(long, env = "PARBAKE_AGENT_ADVERTISE", value_name = "IP:PORT")]
    pub advertise: Option<SocketAddr>,
}

/// Options of `enroll`.
#[derive(Args, Debug)]
pub struct Enroll {
    /// Address of the coordinator's API, such as `https://parbake.example.com:7470`.
    #[arg(long, env = "PARBAKE_API", value_name = "URL")]
    pub api: String,
    /// File that holds this host's token, a secret that `parbake-coordinator token` prints; `-` reads it from stdin.
    #[arg(long, env = "PARBAKE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: PathBuf,
    /// Pin of the fleet's authority, by which the coordinator is recognised: the 64 hex digits that
    /// `parbake-coordinator pin` prints.
    #[arg(long, env = "PARBAKE_CA_PIN", value_name = "HEX")]
    pub ca_pin: String,
    /// Enrol even if this host has a certificate already. The new certificate takes its place.
    #[arg(long)]
    pub force: bool,
}
