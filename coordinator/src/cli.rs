//! What was typed to `parbake-coordinator`: arguments, environment, and their help texts.
//! [`Config`](crate::config::Config) has the settings that these mean.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
pub use logging::LogFormat;

/// Runs parbake's coordinator, and keeps its list of enrolled hosts.
///
/// The coordinator decides which hosts stage which images, gives hosts their certificates, and answers operators who
/// use `parbake`. Exit status: 0 for success, 2 for an error, which stderr explains.
#[derive(Debug, Parser)]
#[command(name = "parbake-coordinator", version, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub shared: Shared,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Shared {
    /// Fleet file (TOML), which has the settings and the hosts. An option that is given here wins over the file.
    /// [default: none, so that all settings have their defaults and no host is named]
    #[arg(long, env = "PARBAKE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of the coordinator's state: the keys of the fleet's authority, the API's token, the enrolled hosts and
    /// the wanted images. Keep a backup of it. [default: /var/lib/parbake]
    #[arg(long, env = "PARBAKE_STATE", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Form of the log lines on stderr.
    #[arg(long, env = "PARBAKE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// Which log lines to write: a level (error, warn, info, debug, trace or off), or levels by crate, such as
    /// `coordinator=debug,warn`.
    #[arg(long, env = "PARBAKE_LOG", default_value = "info", global = true)]
    pub log: String,
}

/// The coordinator's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the coordinator in the foreground until it gets SIGTERM or SIGINT.
    ///
    /// The coordinator reads the fleet file again when the file changes, and when it gets SIGHUP.
    Run(Box<Run>),
    /// Check the fleet file, and print what is wrong with it.
    Check,
    /// Make a token with which one host can enrol once, and print it.
    ///
    /// The running coordinator accepts the token at once. Treat the token as a secret: whoever has it can enrol as this
    /// host.
    Token {
        /// Name of the host that may enrol with the token.
        #[arg(long)]
        host: String,
        /// Seconds for which the token is valid. [default: 3600, or `token_lifetime_seconds` of the fleet file]
        #[arg(long, value_name = "SECONDS")]
        lifetime: Option<u64>,
        /// Print one JSON object with the token, its host, the time when it expires and the authority's pin.
        #[arg(long)]
        json: bool,
    },
    /// List the hosts that the fleet file names, and those that enrolled or were revoked.
    ///
    /// `parbake hosts` shows whether they are connected and what they hold.
    Hosts {
        /// Print one JSON array with an object for each host.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a host, so that it can't take part in the fleet any more.
    ///
    /// A running coordinator ends the host's sessions within a second or two, gives it no new certificate, and tells
    /// all other hosts to refuse it.
    Revoke {
        /// Name of the host.
        host: String,
        /// Why the host is revoked. The text is kept, and `hosts` shows it. [default: no text]
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Revoke the host even if the fleet file doesn't name it and it never enrolled.
        #[arg(long)]
        force: bool,
    },
    /// Take a revocation back, so that the host can enrol again.
    ///
    /// The host needs a new token. Its certificates from before the revocation stay invalid.
    Readmit {
        /// Name of the host.
        host: String,
    },
    /// Print the pin of the fleet's authority, by which hosts and operators recognise the coordinator.
    ///
    /// The pin is the SHA-256 of the authority's certificate, in 64 hex digits. It isn't secret.
    Pin,
    /// Print the certificate of the fleet's authority (PEM). It isn't secret.
    Ca,
    /// Print the definition of the custom resource ImagePrePull (YAML), for `kubectl apply -f -`.
    Crd,
}

/// Options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// UDP address (IP:PORT) on which hosts connect to the coordinator by QUIC. [default: 0.0.0.0:7470]
    #[arg(long, env = "PARBAKE_LISTEN", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// TCP address (IP:PORT) of the HTTPS API, where hosts enrol and `parbake` asks. [default: 0.0.0.0:7470]
    #[arg(long, env = "PARBAKE_API_LISTEN", value_name = "IP:PORT")]
    pub api: Option<SocketAddr>,
    /// TCP address (IP:PORT) of /healthz, /readyz and /metrics. They use plain HTTP and ask for no password.
    /// [default: 127.0.0.1:7473]
    #[arg(long, env = "PARBAKE_ADMIN", value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Address that hosts are told to use for QUIC. Set it when hosts reach QUIC at another address than the API.
    /// [default: the host name by which a host reached the API, and the port of --listen]
    #[arg(long, env = "PARBAKE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Networks, separated by commas, within which a host's setting `advertise` may lie. Other hosts connect to that
    /// address. The address from which a host connects to the coordinator is always allowed. [default: private,
    /// carrier, link-local and loopback networks]
    #[arg(
        long,
        env = "PARBAKE_PEER_NETWORKS",
        value_delimiter = ',',
        value_name = "NETWORKS"
    )]
    pub peer_networks: Vec<String>,
    /// Let any host with a token join, even if the fleet file doesn't name it. [default: off, but on with --kubernetes]
    #[arg(long, env = "PARBAKE_OPEN")]
    pub open: bool,
    /// How many images of each repository stay on a host, the wanted ones among them (1 to 1000). Other old images that
    /// parbake installed are removed by each host, unless something there needs them. See `parbake clean --dry-run`.
    /// [default: all]
    #[arg(long, env = "PARBAKE_KEEP_IMAGES", value_name = "N")]
    pub keep_images: Option<u32>,
    /// For how many days after its last use an old image stays on a host (1 to 3650), beside those that stay for their
    /// number. [default: no time]
    #[arg(long, env = "PARBAKE_KEEP_DAYS", value_name = "D")]
    pub keep_days: Option<u32>,
    /// What a cluster needs.
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

/// Options of `run` in a cluster.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClusterOptions {
    /// Work in a Kubernetes cluster: follow ImagePrePulls and RunnerPools, and gate their Pods. [default: off]
    ///
    /// The coordinator finds the API server by KUBECONFIG, ~/.kube/config or its service account. Several replicas
    /// elect a leader. Any host with a token may join, unless the fleet file says `open = false`.
    #[arg(long, env = "PARBAKE_KUBERNETES")]
    pub kubernetes: bool,
    /// Namespace in which the coordinator's Lease, Secret and Pod are. [default: that of the service account, or
    /// `default` without one]
    #[arg(long, env = "PARBAKE_NAMESPACE", requires = "kubernetes")]
    pub namespace: Option<String>,
    /// Name of the Pod that this coordinator runs in. The Lease names its holder by it. [default: host name and process
    /// id]
    #[arg(long, env = "PARBAKE_POD_NAME", requires = "kubernetes")]
    pub pod_name: Option<String>,
    /// Seconds, from 3 to 120, after which another replica takes over from a leader that doesn't renew its Lease.
    /// [default: 15]
    #[arg(
        long,
        env = "PARBAKE_LEASE_SECONDS",
        value_name = "SECONDS",
        requires = "kubernetes"
    )]
    pub lease_seconds: Option<u64>,
    /// Namespaces whose ImagePrePulls, RunnerPools and Pods are followed, separated by commas. [default: all]
    #[arg(
        long,
        env = "PARBAKE_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES",
        requires = "kubernetes"
    )]
    pub watch_namespaces: Vec<String>,
    /// How the Pods of a RunnerPool are gated that has no annotation `parbake.dev/gate`. [default: none]
    #[arg(
        long,
        env = "PARBAKE_DEFAULT_GATE",
        value_enum,
        requires = "kubernetes"
    )]
    pub default_gate: Option<DefaultGate>,
    /// DNS names, separated by commas, that the API's certificate is valid for, such as `parbake.tuist-runners.svc`.
    /// The API server needs one to call the webhook. [default: none]
    #[arg(
        long,
        env = "PARBAKE_SERVICE_NAMES",
        value_delimiter = ',',
        value_name = "NAMES",
        requires = "kubernetes"
    )]
    pub service_names: Vec<String>,
    /// Audiences, separated by commas, of which a runner's token must name one when the runner asks whether it may
    /// drain. [default: the API server's own audiences]
    #[arg(
        long,
        env = "PARBAKE_TOKEN_AUDIENCES",
        value_delimiter = ',',
        value_name = "AUDIENCES",
        requires = "kubernetes"
    )]
    pub token_audiences: Vec<String>,
    /// Name of the ValidatingWebhookConfiguration whose caBundle and path the coordinator keeps up to date. [default:
    /// none]
    #[arg(
        long,
        env = "PARBAKE_WEBHOOK",
        value_name = "NAME",
        requires = "kubernetes"
    )]
    pub webhook: Option<String>,
}

/// How a `RunnerPool` without the annotation is gated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DefaultGate {
    /// The coordinator gives Pods the drain label.
    Own,
    /// Another controller gives Pods the drain label, and a webhook refuses it too early.
    Guard,
    /// The pool's image isn't staged, and its Pods aren't gated.
    #[default]
    None,
}
