//! The command line: arguments, their environment variables, and their help. [`Config`](crate::config::Config) has the
//! resulting settings.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use logging::LogFormat;

/// Puts macOS VM images into this host's tart cache before they are needed, and shares them with the fleet.
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
    /// Settings file (TOML); flags win over it.
    #[arg(long, env = "PARBAKE_AGENT_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of this host's key and certificates [default: /var/lib/parbake-agent].
    #[arg(long, env = "PARBAKE_AGENT_STATE", global = true)]
    pub state_dir: Option<PathBuf>,
    /// tart's home [default: $TART_HOME, else $HOME/.tart].
    #[arg(long, env = "TART_HOME", global = true)]
    pub tart_home: Option<PathBuf>,
    /// Address of /healthz, /readyz, /metrics and the status API [default: 127.0.0.1:7472].
    #[arg(long, env = "PARBAKE_AGENT_ADMIN", global = true)]
    pub admin: Option<SocketAddr>,
    /// Form of the log on stderr.
    #[arg(long, env = "PARBAKE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// What to log, as in `info` or `agent=debug,warn`.
    #[arg(long, env = "PARBAKE_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Log to this file instead of stderr. It may be rotated at any time: the next line goes to a new one.
    #[arg(long, env = "PARBAKE_LOG_FILE", global = true)]
    pub log_file: Option<PathBuf>,
}

/// The agent's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: stage what the coordinator orders, serve peers.
    Run(Run),
    /// Enrol this host with the fleet's coordinator by a single-use token.
    #[command(alias = "enrol")]
    Enroll(Enroll),
    /// Show what the running agent holds and does.
    Status {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hash an installed image again and compare it with its manifest.
    Verify {
        /// Reference, or `sha256:…` digest of the manifest of an image that this host staged.
        image: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Stage an image on this host straight from its registry, without a coordinator.
    Stage {
        /// Reference, by tag or digest.
        image: String,
        /// Print one JSON object at the end.
        #[arg(long)]
        json: bool,
    },
    /// Make this host's launchd run the agent, now and at every boot. Enrol it afterwards.
    Install(Install),
    /// Stop the agent and remove it from launchd. Settings, keys, logs and images stay.
    Uninstall(Uninstall),
}

/// Options of `install`.
#[derive(Args, Debug)]
pub struct Install {
    /// The user that runs tart.
    #[arg(long, env = "PARBAKE_AGENT_USER")]
    pub user: String,
    /// Group of the log files.
    #[arg(long, env = "PARBAKE_AGENT_GROUP", default_value = "staff")]
    pub group: String,
    /// The user's home [default: /Users/USER].
    #[arg(long, env = "PARBAKE_AGENT_HOME")]
    pub home: Option<PathBuf>,
    /// The program that launchd shall start [default: this one].
    #[arg(long, env = "PARBAKE_AGENT_BINARY")]
    pub binary: Option<PathBuf>,
    /// tart's program, for the first settings.
    #[arg(
        long,
        env = "PARBAKE_TART_BINARY",
        default_value = "/usr/local/bin/tart"
    )]
    pub tart_binary: PathBuf,
    /// Print the files with their paths, and touch nothing.
    #[arg(long, conflicts_with = "root")]
    pub print: bool,
    /// Write the files below this directory, and don't call launchd: for packages.
    #[arg(long, env = "PARBAKE_INSTALL_ROOT")]
    pub root: Option<PathBuf>,
}

/// Options of `uninstall`.
#[derive(Args, Debug)]
pub struct Uninstall {
    /// Remove the files below this directory, and don't call launchd.
    #[arg(long, env = "PARBAKE_INSTALL_ROOT")]
    pub root: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Args, Debug, Default)]
pub struct Run {
    /// UDP address for peers [default: 0.0.0.0:7471].
    #[arg(long, env = "PARBAKE_AGENT_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address that peers shall use, when it differs from what the coordinator sees.
    #[arg(long, env = "PARBAKE_AGENT_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
}

/// Options of `enroll`.
#[derive(Args, Debug)]
pub struct Enroll {
    /// The coordinator's API, as in `https://parbake.example.com:7470`.
    #[arg(long, env = "PARBAKE_API")]
    pub api: String,
    /// File that holds the token from `parbake-coordinator token`, or `-` for stdin.
    #[arg(long, env = "PARBAKE_TOKEN_FILE")]
    pub token_file: PathBuf,
    /// SHA-256 of the fleet's authority certificate (64 hex digits), from `parbake-coordinator pin`.
    #[arg(long, env = "PARBAKE_CA_PIN")]
    pub ca_pin: String,
    /// Enrol again although this host has a certificate.
    #[arg(long)]
    pub force: bool,
}
