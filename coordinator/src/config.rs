//! The settings: the fleet file and the flags of `run`, checked. A value of [`Config`] is valid from its creation on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use proto::{HostId, HostKey, retention::Rule};
use serde::Deserialize;

use crate::{
    authority::COORDINATOR,
    cli::{ClusterOptions, DefaultGate, Run, Shared},
    network::{self, Network},
};

/// The default port of QUIC (UDP) and of the API (TCP).
pub const PORT: u16 = 7470;
/// The default port of health and metrics. 7471 and 7472 are the agent's.
pub const ADMIN_PORT: u16 = 7473;
/// The most hosts of a fleet: as many as one roster message holds.
pub const MAX_HOSTS: usize = 4_000;

/// The default lifetime of a host's certificate. A certificate is renewed when a third of its life is left, so it
/// outlives a coordinator that is away for ten days. A revoked host is out within seconds, whatever its certificate
/// says.
const CERTIFICATE_LIFETIME_SECONDS: u64 = 30 * 86_400;
/// The default time after its expiry in which a certificate may still be renewed. With the lifetime, a Mac that lay in
/// a drawer for two months in all comes back by itself.
const RENEWAL_GRACE_SECONDS: u64 = 30 * 86_400;

/// The coordinator's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file from which the settings come. It is watched for changes.
    pub file: Option<PathBuf>,
    /// The directory of the authority, tokens and wants.
    pub state_dir: PathBuf,
    /// UDP address for hosts.
    pub listen: SocketAddr,
    /// TCP address of the HTTPS API.
    pub api: SocketAddr,
    /// TCP address of health and metrics.
    pub admin: SocketAddr,
    /// Names, beyond `localhost` and addresses, under which health and metrics may be requested when they listen on
    /// loopback.
    pub admin_names: BTreeSet<String>,
    /// The address, as `host:port`, that hosts are to use for QUIC.
    pub advertise: Option<String>,
    /// Networks in which hosts may name addresses for their peers, beyond the address from which they connect.
    pub peer_networks: Vec<Network>,
    /// How long a host's certificate is good. The host renews it after two thirds.
    pub certificate_lifetime: Duration,
    /// How long after its certificate expired a host may still renew it, by proof of its key.
    pub renewal_grace: Duration,
    /// How long an enrolment token is good.
    pub token_lifetime: Duration,
    /// The plan's settings.
    pub plan: rollout::stage::Config,
    /// Whether hosts are asked to make the recipes that registries lack.
    pub makes_recipes: bool,
    /// How to reach registries.
    pub origin: Origin,
    /// Rates for predictions.
    pub rates: Rates,
    /// Which old images stay on hosts that don't say so themselves. `None`: the fleet has no rule.
    pub retention: Option<Rule>,
    /// Who belongs to the fleet.
    pub fleet: Fleet,
    /// The cluster in which the coordinator works, if any.
    pub cluster: Option<Cluster>,
}

/// The settings for work in a cluster. How to reach the API server is found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The namespace of the Lease, the Secret and the own Pod; `None` means the service account's.
    pub namespace: Option<String>,
    /// The name of the own Pod, and of this holder in the Lease.
    pub pod_name: String,
    /// How long the Lease lasts without a renewal.
    pub lease: Duration,
    /// The namespaces to watch; empty means all.
    pub watch_namespaces: BTreeSet<String>,
    /// How pools are gated that don't set a gate themselves.
    pub default_gate: DefaultGate,
    /// DNS names for the API's certificate.
    pub service_names: Vec<String>,
    /// A runner's token has to be for one of these audiences. Empty: tokens that the API server itself takes.
    pub token_audiences: Vec<String>,
    /// The `ValidatingWebhookConfiguration` whose caBundle and path are kept current.
    pub webhook: Option<String>,
}

/// How to reach registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// More certificate authorities for registries (PEM file).
    pub ca_bundle: Option<PathBuf>,
    /// Whether the operating system's trusted roots are trusted, too.
    pub system_roots: bool,
    /// The proxies for registries, beyond those that the environment sets.
    pub proxy: origin::ProxySettings,
    /// Registries (`host` or `host:port`) that speak plain HTTP.
    pub plain_http: BTreeSet<String>,
    /// Credentials by registry.
    pub credentials: BTreeMap<String, Credentials>,
    /// Whether hosts get short-lived pull tokens for registries with credentials.
    pub hand_down_tokens: bool,
    /// Whether hosts get user and password of a registry that gives no tokens.
    pub hand_down_passwords: bool,
}

/// A user, and the file of its password. The file is read when the password is needed, so that it can be changed while
/// the coordinator runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// The file that holds the password. White space around the password is cut.
    pub password_file: PathBuf,
}

/// Rates for predictions, in bytes per second, where the fleet file sets them. No rate changes how bytes move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// The rate at which the registry gives to the whole fleet.
    pub origin_bytes_per_second: Option<u64>,
    /// The download rate of a host that sets no other.
    pub download_bytes_per_second: Option<u64>,
    /// The upload rate of a host that sets or reports no other.
    pub upload_bytes_per_second: Option<u64>,
}

impl Rates {
    /// What is assumed of a registry where nothing else is known: a public registry gives one host 50–125 MB/s.
    pub const ASSUMED_ORIGIN: u64 = 100_000_000;
    /// What is assumed of a host's network where nothing else is known: 1 GbE moves 117 MB/s.
    pub const ASSUMED_LINK: u64 = 117_000_000;
}

/// Which hosts belong to the fleet, by the fleet file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Whether any enrolled host may join.
    pub open: bool,
    /// The hosts that are named.
    pub hosts: BTreeMap<HostId, HostEntry>,
}

/// A host of the fleet file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEntry {
    /// The host's zone; empty means the zone that the host itself names.
    pub zone: String,
    /// Its download rate, for predictions.
    pub download_bytes_per_second: Option<u64>,
    /// Its upload rate, for predictions.
    pub upload_bytes_per_second: Option<u64>,
}

impl Fleet {
    /// Whether this host may have a certificate and a session.
    #[must_use]
    pub fn admits(&self, host: &HostId) -> bool {
        host.as_str() != COORDINATOR && (self.open || self.hosts.contains_key(host))
    }
}

/// Why there is no valid configuration. Each error names the file and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The fleet file can't be read.
    #[error("reading fleet file {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The fleet file isn't valid TOML, or has unknown or ill-typed keys.
    #[error("fleet file {path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with line and key.
        error: Box<toml::de::Error>,
    },
    /// A value can't work.
    #[error("{file}: {key}: {problem}")]
    Value {
        /// The fleet file, or the command line.
        file: String,
        /// The key.
        key: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    coordinator: CoordinatorFile,
    origin: OriginFile,
    rates: RatesFile,
    retention: RetentionFile,
    hosts: Vec<HostFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CoordinatorFile {
    state_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    api: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_names: BTreeSet<String>,
    advertise: Option<String>,
    peer_networks: Option<Vec<String>>,
    open: Option<bool>,
    origin_streams: Option<u64>,
    lease_timeout_seconds: Option<u64>,
    certificate_lifetime_seconds: Option<u64>,
    renewal_grace_seconds: Option<u64>,
    token_lifetime_seconds: Option<u64>,
    make_recipes: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OriginFile {
    ca_bundle: Option<PathBuf>,
    system_roots: Option<bool>,
    proxy: origin::ProxySettings,
    plain_http: Vec<String>,
    plain_http_beyond_loopback: bool,
    hand_down_tokens: Option<bool>,
    hand_down_passwords: bool,
    credentials: BTreeMap<String, Credentials>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RatesFile {
    origin_bytes_per_second: Option<u64>,
    download_bytes_per_second: Option<u64>,
    upload_bytes_per_second: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetentionFile {
    keep_images: Option<u32>,
    keep_days: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    id: String,
    #[serde(default)]
    zone: String,
    download_bytes_per_second: Option<u64>,
    upload_bytes_per_second: Option<u64>,
}

impl Config {
    /// The settings by these flags, their environment and the fleet file. Flags win. Blocks.
    ///
    /// # Errors
    /// When the file can't be read or understood, or a value can't work.
    pub fn load(shared: &Shared, run: &Run) -> Result<Self, ConfigError> {
        let text = match &shared.config {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
                path: path.clone(),
                error,
            })?,
        };
        Self::parse(&text, shared, run)
    }

    fn parse(text: &str, shared: &Shared, run: &Run) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: shared.config.clone().unwrap_or_default(),
            error: Box::new(error),
        })?;
        let name = shared.config.as_ref().map_or_else(
            || "command line".to_owned(),
            |path| format!("fleet file {}", path.display()),
        );
        let value = |key: &str, problem: String| ConfigError::Value {
            file: name.clone(),
            key: key.to_owned(),
            problem,
        };
        let seconds = |key: &str, given: Option<u64>, default: u64, least: u64, most: u64| {
            let seconds = given.unwrap_or(default);
            if (least..=most).contains(&seconds) {
                Ok(Duration::from_secs(seconds))
            } else {
                let problem = format!("is {seconds}; it has to be from {least} to {most} seconds");
                Err(value(key, problem))
            }
        };
        let given = file.coordinator;
        let plan = plan(&given, &value, &seconds)?;
        let advertise = run.advertise.clone().or(given.advertise);
        if let Some(address) = &advertise
            && !is_host_and_port(address)
        {
            let problem = format!("`{address}` isn't host:port");
            return Err(value("coordinator.advertise", problem));
        }
        let peer_networks = peer_networks(&run.peer_networks, given.peer_networks, &value)?;
        Ok(Self {
            file: shared.config.clone(),
            state_dir: shared
                .state_dir
                .clone()
                .or(given.state_dir)
                .unwrap_or_else(|| "/var/lib/parbake".into()),
            listen: run
                .listen
                .or(given.listen)
                .unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, PORT).into()),
            api: run
                .api
                .or(given.api)
                .unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, PORT).into()),
            admin: run
                .admin
                .or(given.admin)
                .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, ADMIN_PORT).into()),
            admin_names: given.admin_names,
            advertise,
            peer_networks,
            // The minimum of a minute is for tests. Beyond 90 days a certificate isn't short-lived, and only revocation
            // protects the fleet.
            certificate_lifetime: seconds(
                "coordinator.certificate_lifetime_seconds",
                given.certificate_lifetime_seconds,
                CERTIFICATE_LIFETIME_SECONDS,
                60,
                90 * 86_400,
            )?,
            renewal_grace: seconds(
                "coordinator.renewal_grace_seconds",
                given.renewal_grace_seconds,
                RENEWAL_GRACE_SECONDS,
                0,
                365 * 86_400,
            )?,
            token_lifetime: seconds(
                "coordinator.token_lifetime_seconds",
                given.token_lifetime_seconds,
                3_600,
                1,
                30 * 86_400,
            )?,
            plan,
            makes_recipes: given.make_recipes.unwrap_or(true),
            origin: origin(file.origin, &value)?,
            rates: rates(&file.rates, &value)?,
            retention: Rule::new(
                run.keep_images.or(file.retention.keep_images),
                run.keep_days.or(file.retention.keep_days),
            )
            .map_err(|error| value("retention", error.to_string()))?,
            fleet: fleet(
                run.open || given.open.unwrap_or(run.cluster.kubernetes),
                file.hosts,
                &value,
            )?,
            cluster: cluster(&run.cluster, &seconds)?,
        })
    }
}

/// The plan's settings, some of which the fleet file sets.
fn plan(
    given: &CoordinatorFile,
    value: &impl Fn(&str, String) -> ConfigError,
    seconds: &impl Fn(&str, Option<u64>, u64, u64, u64) -> Result<Duration, ConfigError>,
) -> Result<rollout::stage::Config, ConfigError> {
    let defaults = rollout::stage::Config::default();
    let origin_streams = given
        .origin_streams
        .unwrap_or(defaults.origin_streams as u64);
    Ok(rollout::stage::Config {
        origin_streams: usize::try_from(origin_streams)
            .ok()
            .filter(|streams| (1..=256).contains(streams))
            .ok_or_else(|| {
                let problem = format!("is {origin_streams}; it has to be from 1 to 256");
                value("coordinator.origin_streams", problem)
            })?,
        lease_timeout: seconds(
            "coordinator.lease_timeout_seconds",
            given.lease_timeout_seconds,
            defaults.lease_timeout.as_secs(),
            1,
            3_600,
        )?,
        ..defaults
    })
}

/// The networks in which hosts may name addresses for peers: from the command line, else from the fleet file, else the
/// private ones.
fn peer_networks(
    typed: &[String],
    given: Option<Vec<String>>,
    value: &impl Fn(&str, String) -> ConfigError,
) -> Result<Vec<Network>, ConfigError> {
    let networks = match (typed, given) {
        ([], None) => network::PRIVATE.map(str::to_owned).to_vec(),
        ([], Some(networks)) => networks,
        (networks, _) => networks.to_vec(),
    };
    let networks = networks.iter().map(|text| {
        text.trim()
            .parse()
            .map_err(|error| value("coordinator.peer_networks", format!("`{text}` {error}")))
    });
    networks.collect()
}

/// The cluster's settings. They come from flags and environment alone: the chart sets them, and a cluster needs no
/// fleet file.
fn cluster(
    options: &ClusterOptions,
    seconds: &impl Fn(&str, Option<u64>, u64, u64, u64) -> Result<Duration, ConfigError>,
) -> Result<Option<Cluster>, ConfigError> {
    if !options.kubernetes {
        return Ok(None);
    }
    let name = |flag: &str, name: &String| {
        if is_dns_name(name) {
            return Ok(name.clone());
        }
        Err(ConfigError::Value {
            file: "command line".into(),
            key: flag.into(),
            problem: format!("`{name}` isn't a DNS name"),
        })
    };
    let optional = |flag: &str, given: &Option<String>| {
        given.as_ref().map(|given| name(flag, given)).transpose()
    };
    let given = |names: &[String]| -> Vec<String> {
        let names = names.iter().map(|name| name.trim().to_owned());
        names.filter(|name| !name.is_empty()).collect()
    };
    let service_names = given(&options.service_names);
    for service in &service_names {
        name("--service-names", service)?;
        if service == COORDINATOR {
            // The coordinator's own name is refused: the certificate has it already, and no Service may use it.
            name("--service-names", &String::new())?;
        }
    }
    let watched = given(&options.watch_namespaces);
    let watched = watched
        .iter()
        .map(|watched| name("--watch-namespaces", watched));
    Ok(Some(Cluster {
        namespace: optional("--namespace", &options.namespace)?,
        pod_name: match optional("--pod-name", &options.pod_name)? {
            Some(pod) => pod,
            None => identity(),
        },
        lease: seconds("--lease-seconds", options.lease_seconds, 15, 3, 120)?,
        watch_namespaces: watched.collect::<Result<_, _>>()?,
        default_gate: options.default_gate.unwrap_or_default(),
        service_names,
        token_audiences: given(&options.token_audiences),
        webhook: optional("--webhook", &options.webhook)?,
    }))
}

/// Host name and process id. Two replicas never share this name, and neither do two processes of one replica outside of
/// a Pod.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.unwrap_or_else(|_| "coordinator".into());
    format!("{}-{}", host.trim(), std::process::id())
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn origin(
    file: OriginFile,
    value: &impl Fn(&str, String) -> ConfigError,
) -> Result<Origin, ConfigError> {
    for registry in &file.plain_http {
        if !file.plain_http_beyond_loopback && !is_loopback(registry) {
            let problem = format!(
                "`{registry}` isn't a loopback address: images and credentials would cross the network unprotected; \
                 set origin.plain_http_beyond_loopback = true if that is meant"
            );
            return Err(value("origin.plain_http", problem));
        }
    }
    Ok(Origin {
        ca_bundle: file.ca_bundle,
        system_roots: file.system_roots.unwrap_or(true),
        proxy: file.proxy,
        plain_http: file.plain_http.into_iter().collect(),
        credentials: file.credentials,
        hand_down_tokens: file.hand_down_tokens.unwrap_or(true),
        hand_down_passwords: file.hand_down_passwords,
    })
}

fn rates(
    file: &RatesFile,
    value: &impl Fn(&str, String) -> ConfigError,
) -> Result<Rates, ConfigError> {
    let rate = |key: &str, given: Option<u64>| match given {
        Some(0) => Err(value(key, "is 0; leave it out for the default".into())),
        given => Ok(given),
    };
    Ok(Rates {
        origin_bytes_per_second: rate(
            "rates.origin_bytes_per_second",
            file.origin_bytes_per_second,
        )?,
        download_bytes_per_second: rate(
            "rates.download_bytes_per_second",
            file.download_bytes_per_second,
        )?,
        upload_bytes_per_second: rate(
            "rates.upload_bytes_per_second",
            file.upload_bytes_per_second,
        )?,
    })
}

fn fleet(
    open: bool,
    entries: Vec<HostFile>,
    value: &impl Fn(&str, String) -> ConfigError,
) -> Result<Fleet, ConfigError> {
    if entries.len() > MAX_HOSTS {
        let problem = format!("{} hosts are more than {MAX_HOSTS}", entries.len());
        return Err(value("hosts", problem));
    }
    let mut hosts = BTreeMap::new();
    let mut keys: BTreeMap<HostKey, HostId> = BTreeMap::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let key = format!("hosts[{index}].id");
        let id: HostId = entry
            .id
            .parse()
            .map_err(|error| value(&key, format!("`{}`: {error}", entry.id)))?;
        if id.as_str() == COORDINATOR {
            return Err(value(&key, format!("`{COORDINATOR}` is reserved")));
        }
        if entry.zone.len() > 253 {
            let key = format!("hosts[{index}].zone");
            return Err(value(&key, "is longer than 253 bytes".into()));
        }
        let unique = HostEntry {
            zone: entry.zone,
            download_bytes_per_second: entry.download_bytes_per_second.filter(|rate| *rate > 0),
            upload_bytes_per_second: entry.upload_bytes_per_second.filter(|rate| *rate > 0),
        };
        if hosts.insert(id.clone(), unique).is_some() {
            return Err(value(&key, format!("`{id}` is named twice")));
        }
        if let Some(other) = keys.insert(id.key(), id.clone()) {
            let problem = format!("`{id}` has the same key as `{other}`; rename one of them");
            return Err(value(&key, problem));
        }
    }
    Ok(Fleet { open, hosts })
}

/// Whether a registry (`host` or `host:port`) is on this machine for certain.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn is_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::LogFormat;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let shared = Shared {
            config: Some("fleet.toml".into()),
            state_dir: None,
            log_format: LogFormat::Text,
            log: String::new(),
        };
        Config::parse(text, &shared, &Run::default())
    }

    fn problem(text: &str) -> String {
        load(text).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_fleet_file_is_understood() {
        let config = load(
            r#"
            [coordinator]
            listen = "0.0.0.0:1"
            api = "127.0.0.1:2"
            admin = "127.0.0.1:3"
            state_dir = "/s"
            advertise = "parbake.example.com:1"
            origin_streams = 2
            lease_timeout_seconds = 5
            certificate_lifetime_seconds = 60
            [origin]
            plain_http = ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"]
            [origin.credentials."ghcr.io"]
            username = "u"
            password_file = "/p"
            [rates]
            origin_bytes_per_second = 1
            [[hosts]]
            id = "mini-1"
            zone = "rack-1"
            "#,
        )
        .unwrap();
        assert_eq!(config.plan.origin_streams, 2);
        assert_eq!(config.certificate_lifetime, Duration::from_mins(1));
        assert!(config.fleet.admits(&"mini-1".parse().unwrap()));
        assert!(!config.fleet.admits(&"mini-2".parse().unwrap()));
    }

    #[test]
    fn a_cluster_needs_one_flag_and_opens_the_fleet_unless_the_file_says_otherwise() {
        let shared = Shared {
            config: None,
            state_dir: None,
            log_format: LogFormat::Text,
            log: String::new(),
        };
        let load = |text: &str, change: &dyn Fn(&mut ClusterOptions)| {
            let mut run = Run::default();
            run.cluster.kubernetes = true;
            change(&mut run.cluster);
            Config::parse(text, &shared, &run)
        };
        let config = load("", &|_| {}).unwrap();
        assert!(config.fleet.open);
        let cluster = config.cluster.unwrap();
        assert_eq!(cluster.lease, Duration::from_secs(15));
        assert!(cluster.watch_namespaces.is_empty() && !cluster.pod_name.is_empty());
        assert!(
            !load("[coordinator]\nopen = false", &|_| {})
                .unwrap()
                .fleet
                .open
        );
        for seconds in [3, 120] {
            assert!(load("", &|options| options.lease_seconds = Some(seconds)).is_ok());
        }
        let bad: [&dyn Fn(&mut ClusterOptions); 6] = [
            &|options| options.lease_seconds = Some(2),
            &|options| options.lease_seconds = Some(121),
            &|options| options.namespace = Some("A".into()),
            &|options| options.service_names = vec!["a..b".into()],
            &|options| options.service_names = vec![COORDINATOR.into()],
            &|options| options.webhook = Some("a_b".into()),
        ];
        for change in bad {
            assert!(load("", change).is_err());
        }
    }

    #[test]
    fn an_empty_file_gives_defaults_and_admits_nobody() {
        let config = load("").unwrap();
        assert_eq!(config.listen.port(), PORT);
        // A certificate is renewed when a third of its life is left, so a coordinator may be away for a long weekend.
        assert!(config.certificate_lifetime / 3 >= Duration::from_hours(4 * 24));
        assert!(config.admin.ip().is_loopback());
        assert!(!config.fleet.admits(&"m".parse().unwrap()));
    }

    #[test]
    fn the_fleet_has_a_rule_about_old_images_only_where_one_is_set() {
        assert_eq!(load("").unwrap().retention, None);
        let set = load("[retention]\nkeep_images = 2\nkeep_days = 14").unwrap();
        assert_eq!(set.retention, Rule::new(Some(2), Some(14)).unwrap());
        let run = Run {
            keep_images: Some(3),
            ..Run::default()
        };
        let shared = Shared {
            config: None,
            state_dir: None,
            log_format: LogFormat::Text,
            log: String::new(),
        };
        let typed = Config::parse("[retention]\nkeep_images = 2", &shared, &run).unwrap();
        assert_eq!(typed.retention, Rule::new(Some(3), None).unwrap());
    }

    #[test]
    fn an_open_fleet_admits_everybody_but_the_coordinators_name() {
        let fleet = load("[coordinator]\nopen = true").unwrap().fleet;
        assert!(fleet.admits(&"m".parse().unwrap()));
        assert!(!fleet.admits(&COORDINATOR.parse().unwrap()));
    }

    #[test]
    fn what_cannot_work_is_named_with_file_and_key() {
        for (text, parts) in [
            ("[coordinator]\nlissen = 1", ["fleet.toml", "lissen"]),
            ("[coordinator]\nlisten = 'x'", ["fleet.toml", "listen"]),
            (
                "[coordinator]\norigin_streams = 0",
                ["origin_streams", "from 1"],
            ),
            (
                "[coordinator]\ncertificate_lifetime_seconds = 59",
                ["certificate_lifetime_seconds", "60"],
            ),
            (
                "[coordinator]\nrenewal_grace_seconds = 31536001",
                ["renewal_grace_seconds", "31536000"],
            ),
            ("[coordinator]\nadvertise = 'x'", ["advertise", "host:port"]),
            (
                "[origin]\nplain_http = ['10.0.0.1:5000']",
                ["origin.plain_http", "10.0.0.1"],
            ),
            (
                "[origin]\nplain_http = ['127.0.0.1.example.com']",
                ["origin.plain_http", "example"],
            ),
            (
                "[retention]\nkeep_images = 0",
                ["retention", "keep_images is 0"],
            ),
            (
                "[retention]\nkeep_days = 3651",
                ["retention", "from 1 to 3650"],
            ),
            ("[[hosts]]\nid = 'A'", ["hosts[0].id", "`A`"]),
            (
                "[[hosts]]\nid = 'a'\n[[hosts]]\nid = 'a'",
                ["hosts[1].id", "twice"],
            ),
            ("[[hosts]]\nid = 'coordinator'", ["hosts[0].id", "reserved"]),
        ] {
            let problem = problem(text);
            for part in parts {
                assert!(problem.contains(part), "{text}: {problem}");
            }
        }
        let flagged = "[origin]\nplain_http = ['10.0.0.1:5000']\nplain_http_beyond_loopback = true";
        assert!(load(flagged).is_ok());
        assert!(load("[coordinator]\ncertificate_lifetime_seconds = 60").is_ok());
        assert!(load("[coordinator]\nrenewal_grace_seconds = 0").is_ok());
    }
}
