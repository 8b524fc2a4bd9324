//! What was typed to `parbake-coordinator`: arguments, environment, and their help texts.
//! [`Config`](crate::config::Config) has the settings that these mean.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
pub use logging::LogFormat;

/// Decides which hosts of a fleet stage which images, enrols hosts, and answers operators.
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
    /// Fleet file (TOML); flags win over it.
    #[arg(long, env = "PARBAKE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of the authority, of tokens and of what is wanted [default: /var/lib/parbake].
    #[arg(long, env = "PARBAKE_STATE", global = true)]
    pub state_dir: Option<PathBuf>,
    /// Form of the log on stderr.
    #[arg(long, env = "PARBAKE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// What to log, as in `info` or `coordinator=debug,warn`.
    #[arg(long, env = "PARBAKE_LOG", default_value = "info", global = true)]
    pub log: String,
}

/// The coordinator's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the coordinator in the foreground until SIGTERM or SIGINT; SIGHUP reads the fleet file again.
    Run(Box<Run>),
    /// Read the fleet file and say what is wrong with it.
    Check,
    /// Make a single-use enrolment token for a host, and print it. Works beside the running coordinator.
    Token {
        /// The host that may enrol with it.
        #[arg(long)]
        host: String,
        /// Seconds for which it is good [default: 3600, or `token_lifetime_seconds` of the fleet file].
        #[arg(long)]
        lifetime: Option<u64>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List the hosts of the fleet file and those that enrolled. `parbake hosts` shows what they do.
    Hosts {
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Revoke a host: its sessions end within a second, it gets no certificate any more, and leaves every roster.
    Revoke {
        /// The host.
        host: String,
        /// Why, kept with the revocation.
        #[arg(long, default_value = "")]
        reason: String,
        /// Revoke it although nothing is known of it: it isn't in the fleet file and never enrolled.
        #[arg(long)]
        force: bool,
    },
    /// Take a revocation back. The host then needs a token: no certificate from before works again.
    Readmit {
        /// The host.
        host: String,
    },
    /// Print the pin of the fleet's authority: the SHA-256 of its certificate, as hosts and operators want it.
    Pin,
    /// Print the certificate of the fleet's authority (PEM).
    Ca,
    /// Print the definition of the custom resource `ImagePrePull` (YAML), for `kubectl apply -f -`.
    Crd,
}

/// Options of `run`.
#[derive(Args, Clone, Debug, Default)]
pub struct Run {
    /// UDP address for hosts [default: 0.0.0.0:7470].
    #[arg(long, env = "PARBAKE_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// TCP address of the HTTPS API, where hosts enrol and operators ask [default: 0.0.0.0:7470].
    #[arg(long, env = "PARBAKE_API_LISTEN")]
    pub api: Option<SocketAddr>,
    /// TCP address of /healthz, /readyz and /metrics, plain HTTP without authentication [default: 127.0.0.1:7473].
    #[arg(long, env = "PARBAKE_ADMIN")]
    pub admin: Option<SocketAddr>,
    /// Address (host:port) that hosts shall use for QUIC, when it differs from where they enrolled.
    #[arg(long, env = "PARBAKE_ADVERTISE")]
    pub advertise: Option<String>,
    /// Networks of which a host may name an address for its peers (the agent's `advertise`) beyond the one that it
    /// comes from, separated by commas [default: private ones].
    #[arg(long, env = "PARBAKE_PEER_NETWORKS", value_delimiter = ',')]
    pub peer_networks: Vec<String>,
    /// Let any enrolled host join, also one that the fleet file doesn't name.
    #[arg(long, env = "PARBAKE_OPEN")]
    pub open: bool,
    /// What a cluster needs.
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

/// Options of `run` in a cluster.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClusterOptions {
    /// Watch a cluster. How to reach it is found the usual way: KUBECONFIG, ~/.kube/config, or the service account.
    /// Several replicas elect a leader. Any enrolled host joins, unless the fleet file has `open = false`.
    #[arg(long, env = "PARBAKE_KUBERNETES")]
    pub kubernetes: bool,
    /// Namespace of the Lease, the Secret and the own Pod [default: the service account's, else `default`].
    #[arg(long, env = "PARBAKE_NAMESPACE", requires = "kubernetes")]
    pub namespace: Option<String>,
    /// Own Pod, which is also what the Lease calls its holder [default: host name and process id].
    #[arg(long, env = "PARBAKE_POD_NAME", requires = "kubernetes")]
    pub pod_name: Option<String>,
    /// Seconds until another replica takes over from one that is silent: 3 to 120 [default: 15].
    #[arg(long, env = "PARBAKE_LEASE_SECONDS", requires = "kubernetes")]
    pub lease_seconds: Option<u64>,
    /// Namespaces to watch, separated by commas [default: all].
    #[arg(
        long,
        env = "PARBAKE_WATCH_NAMESPACES",
        value_delimiter = ',',
        requires = "kubernetes"
    )]
    pub watch_namespaces: Vec<String>,
    /// How RunnerPools without the annotation `parbake.dev/gate` are gated [default: none].
    #[arg(
        long,
        env = "PARBAKE_DEFAULT_GATE",
        value_enum,
        requires = "kubernetes"
    )]
    pub default_gate: Option<DefaultGate>,
    /// DNS names for the API's certificate, separated by commas, such as `parbake.tuist-runners.svc`.
    #[arg(
        long,
        env = "PARBAKE_SERVICE_NAMES",
        value_delimiter = ',',
        requires = "kubernetes"
    )]
    pub service_names: Vec<String>,
    /// Audiences of the tokens that runners show at the drain endpoint, separated by commas [default: the API
    /// server's].
    #[arg(
        long,
        env = "PARBAKE_TOKEN_AUDIENCES",
        value_delimiter = ',',
        requires = "kubernetes"
    )]
    pub token_audiences: Vec<String>,
    /// ValidatingWebhookConfiguration whose caBundle and path are kept current [default: none].
    #[arg(long, env = "PARBAKE_WEBHOOK", requires = "kubernetes")]
    pub webhook: Option<String>,
}

/// How a `RunnerPool` is gated that doesn't say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DefaultGate {
    /// The coordinator labels its Pods.
    Own,
    /// Its own controller does, and a webhook guards that.
    Guard,
    /// Not at all.
    #[default]
    None,
}
