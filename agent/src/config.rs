//! The agent's settings, from flags, the environment and the settings file. A [`Config`] is valid as soon as it exists.

pub(crate) mod mirror;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use proto::retention::MAX_KEEP_IMAGES;
use serde::Deserialize;

use self::mirror::MirrorFile;
pub use self::mirror::{MIRROR_PORT, MirrorConfigError, MirrorSettings, OnTrouble};
use crate::{
    cli::{Run, Shared},
    platform::Floor,
    retention::{Own, Rule, RuleError},
};

/// The default UDP port for peers. Ports 8080, 8081, 9091 and 9100 are taken on the hosts of known fleets (tuist/tuist
/// of autumn 2026, infra/tart-kubelet/cmd/tart-kubelet/main.go: metrics-bind-address, health-probe-bind-address; the
/// runners' own metrics; node_exporter).
pub const PEER_PORT: u16 = 7471;
/// The default TCP port for health, metrics and status.
pub const ADMIN_PORT: u16 = 7472;
/// The share of the volume that staging leaves free unless the settings say otherwise, in percent. Below it the fleets'
/// node agent deletes goldens (tuist/tuist of autumn 2026, infra/tart-kubelet/internal/podagent/garbage.go:
/// defaultGoldenReclaimFreeFloor).
const FLOOR_PERCENT: u8 = 15;
/// How long the fleet's rule about old images stands before it counts, unless the settings say otherwise. Whoever set
/// it wrongly has this long to notice.
const RETENTION_GRACE_SECONDS: u64 = 600;
/// The longest such time, in seconds: a week.
const MAX_GRACE_SECONDS: u64 = 7 * 86_400;

/// The agent's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Key, certificates and the coordinator's address.
    pub state_dir: PathBuf,
    /// tart's home.
    pub tart_home: PathBuf,
    /// UDP address for peers.
    pub listen: SocketAddr,
    /// Address that peers shall use instead of the one that the coordinator sees.
    pub advertise: Option<SocketAddr>,
    /// Address of health, metrics and status.
    pub admin: SocketAddr,
    /// Names by which clients may ask for health, metrics and status on loopback, beyond `localhost` and addresses.
    pub admin_names: BTreeSet<String>,
    /// The zone of this host: hosts of one zone prefer each other. Empty for none.
    pub zone: String,
    /// What staging leaves free of the volume.
    pub floor: Floor,
    /// Whether space that macOS would purge on demand counts as free.
    pub count_purgeable: bool,
    /// Which old images stay.
    pub retention: Own,
    /// Name prefix of the goldens that are made after an install; `None`: no golden is made.
    pub golden_prefix: Option<String>,
    /// tart's binary.
    pub tart_binary: PathBuf,
    /// Upload budget in bytes per second; 0 is no limit.
    pub upload_bytes_per_second: u64,
    /// Download budget in bytes per second; 0 is no limit.
    pub download_bytes_per_second: u64,
    /// The host's load, in percent of its cores, at which it begins to move less for others; `None`: never.
    pub step_back_load_percent: Option<u32>,
    /// How to reach registries.
    pub origin: OriginConfig,
    /// The registry mirror.
    pub mirror: MirrorSettings,
}

/// How to reach registries.
#[derive(Clone, Debug)]
pub struct OriginConfig {
    /// More certificate authorities (PEM file).
    pub ca_file: Option<PathBuf>,
    /// Whether certificate authorities that macOS or Linux trusts are trusted too.
    pub system_roots: bool,
    /// The proxies before registries, beyond those of the environment.
    pub proxy: origin::ProxySettings,
    /// Registries (`host:port`) that speak plain HTTP.
    pub plain_http: Vec<String>,
    /// A connection to a registry is given up if nothing comes for this long.
    pub idle_timeout: Duration,
    /// Credentials by registry (`host:port`).
    pub credentials: BTreeMap<String, BasicCredentials>,
}

/// A user, and the file of its password.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicCredentials {
    /// User name.
    pub username: String,
    /// File that holds the password; trailing white space is cut.
    pub password_file: PathBuf,
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file can't be read.
    #[error("reading settings file {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The settings file isn't valid TOML, or has unknown or ill-typed keys.
    #[error("settings file {path}: {error}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with line and key.
        error: toml::de::Error,
    },
    /// Neither `--tart-home`, nor `TART_HOME`, nor `HOME` says where tart lives.
    #[error("no tart home: set --tart-home, TART_HOME or HOME")]
    NoTartHome,
    /// The floor has to leave room for something.
    #[error("floor_percent is {0}; it has to be from 0 to 90")]
    Floor(u8),
    /// The rule about old images isn't one.
    #[error(transparent)]
    Retention(#[from] RuleError),
    /// The fleet's rule about old images has to stand for a while that ends.
    #[error("retention_grace_seconds is {0}; it has to be from 0 to {MAX_GRACE_SECONDS}")]
    Grace(u64),
    /// The mirror's settings can't work.
    #[error(transparent)]
    Mirror(#[from] MirrorConfigError),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    state_dir: Option<PathBuf>,
    tart_home: Option<PathBuf>,
    listen: Option<SocketAddr>,
    advertise: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_names: BTreeSet<String>,
    zone: String,
    floor_percent: Option<u8>,
    kept_bytes: u64,
    count_purgeable: bool,
    keep_images: Option<u32>,
    keep_days: Option<u32>,
    fleet_retention: Option<bool>,
    retention_grace_seconds: Option<u64>,
    golden_prefix: Option<String>,
    tart_binary: Option<PathBuf>,
    upload_bytes_per_second: u64,
    download_bytes_per_second: u64,
    step_back_load_percent: u32,
    origin: OriginFile,
    mirror: MirrorFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OriginFile {
    ca_file: Option<PathBuf>,
    system_roots: Option<bool>,
    proxy: origin::ProxySettings,
    plain_http: Vec<String>,
    idle_timeout_seconds: Option<u64>,
    credentials: BTreeMap<String, BasicCredentials>,
}

impl Config {
    /// The settings of these flags, their environment and the settings file. Flags win.
    ///
    /// # Errors
    /// When the file can't be read or understood, or a value can't work; the error names file and key.
    pub fn load(shared: &Shared, run: &Run) -> Result<Self, ConfigError> {
        let file = shared
            .config
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_default();
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".tart"));
        let floor_percent = file.floor_percent.unwrap_or(FLOOR_PERCENT);
        if floor_percent > 90 {
            return Err(ConfigError::Floor(floor_percent));
        }
        let retention = own_retention(&file)?;
        let state_dir = shared
            .state_dir
            .clone()
            .or(file.state_dir)
            .unwrap_or_else(|| "/var/lib/parbake-agent".into());
        let mirror = mirror::mirror_settings(file.mirror, &state_dir, &file.origin.plain_http)?;
        Ok(Self {
            state_dir,
            mirror,
            tart_home: shared
                .tart_home
                .clone()
                .or(file.tart_home)
                .or_else(home)
                .ok_or(ConfigError::NoTartHome)?,
            listen: run
                .listen
                .or(file.listen)
                .unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, PEER_PORT).into()),
            advertise: run.advertise.or(file.advertise),
            admin: shared
                .admin
                .or(file.admin)
                .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, ADMIN_PORT).into()),
            admin_names: file.admin_names,
            zone: file.zone,
            floor: Floor {
                percent: floor_percent,
                kept_bytes: file.kept_bytes,
            },
            count_purgeable: file.count_purgeable,
            retention,
            golden_prefix: file.golden_prefix.filter(|prefix| !prefix.is_empty()),
            tart_binary: file
                .tart_binary
                .unwrap_or_else(|| "/usr/local/bin/tart".into()),
            upload_bytes_per_second: file.upload_bytes_per_second,
            download_bytes_per_second: file.download_bytes_per_second,
            step_back_load_percent: Some(file.step_back_load_percent).filter(|load| *load > 0),
            origin: OriginConfig {
                ca_file: file.origin.ca_file,
                system_roots: file.origin.system_roots.unwrap_or(true),
                proxy: file.origin.proxy,
                plain_http: file.origin.plain_http,
                idle_timeout: Duration::from_secs(
                    file.origin.idle_timeout_seconds.unwrap_or(10).clamp(1, 600),
                ),
                credentials: file.origin.credentials,
            },
        })
    }

    /// What these settings have a node agent do to the goldens that they have made, in sentences for the log.
    pub(crate) fn beside_node_agent(&self) -> Vec<&'static str> {
        let mut warnings = Vec::new();
        if self.golden_prefix.is_none() {
            return warnings;
        }
        if self.floor.percent < FLOOR_PERCENT {
            warnings.push(
                "staging may leave less than 15 % of the volume free, where tart-kubelet deletes goldens: set floor_percent to 15 or more",
            );
        }
        if self.count_purgeable {
            warnings.push(
                "what macOS would purge counts as free here and not for tart-kubelet, which may delete goldens: set count_purgeable to false",
            );
        }
        warnings
    }
}

fn own_retention(file: &File) -> Result<Own, ConfigError> {
    let grace = file
        .retention_grace_seconds
        .unwrap_or(RETENTION_GRACE_SECONDS);
    if grace > MAX_GRACE_SECONDS {
        return Err(ConfigError::Grace(grace));
    }
    // no host holds more images than that, so greater numbers mean the same
    let images = file.keep_images.map(|keep| keep.min(MAX_KEEP_IMAGES));
    Ok(Own {
        rule: Rule::new(images, file.keep_days)?,
        takes_fleets: file.fleet_retention.unwrap_or(true),
        grace: Duration::from_secs(grace),
    })
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
        path: path.into(),
        error,
    })?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.into(),
        error,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    pub(crate) fn load(file: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, file).unwrap();
        let fixed = ["parbake-agent", "--config", path.to_str().unwrap()];
        let cli = Cli::parse_from(fixed.iter().chain(arguments));
        let crate::cli::Command::Run(run) = cli.command else {
            panic!("not run")
        };
        Config::load(&cli.shared, &run)
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "tart_home = '/a'\nlisten = '127.0.0.1:1'\nfloor_percent = 90\n";
        let config = load(file, &["run", "--listen", "127.0.0.1:2"]).unwrap();
        assert_eq!(config.tart_home, Path::new("/a"));
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.floor.percent, 90);
    }

    #[test]
    fn the_mirror_stays_on_loopback_unless_it_can_tell_who_comes() {
        let file = |mirror: &str| format!("tart_home = '/a'\n[mirror]\n{mirror}");
        let default = load("tart_home = '/a'", &["run"]).unwrap().mirror;
        assert_eq!(default.listen, Some("127.0.0.1:7474".parse().unwrap()));
        assert!(!default.required && !default.lend_credentials);
        let off = load(&file("enabled = false\nlisten = '0.0.0.0:1'"), &["run"]).unwrap();
        assert_eq!(off.mirror.listen, None);
        let set = load(&file("listen = '[::1]:0'\nupstream = 'ghcr.io'"), &["run"]).unwrap();
        assert!(set.mirror.required);
        let open = "listen = '0.0.0.0:1'\ntls_certificate = '/c'\ntls_key = '/k'\n";
        assert!(matches!(
            load(&file(open), &["run"]),
            Err(ConfigError::Mirror(MirrorConfigError::OpenMirror(_)))
        ));
        assert!(load(&file(&format!("{open}token_file = '/t'")), &["run"]).is_ok());
        assert!(matches!(
            load(&file("tls_key = '/k'"), &["run"]),
            Err(ConfigError::Mirror(MirrorConfigError::HalfTls))
        ));
        assert!(matches!(
            load(&file("upstreams = ['https://ghcr.io']"), &["run"]),
            Err(ConfigError::Mirror(MirrorConfigError::Upstream(_)))
        ));
    }

    #[test]
    fn a_host_steps_back_only_where_it_is_told_when() {
        let config = |file| load(file, &["run", "--tart-home", "/a"]).unwrap();
        assert_eq!(config("").step_back_load_percent, None);
        let told = config("step_back_load_percent = 90");
        assert_eq!(told.step_back_load_percent, Some(90));
    }

    #[test]
    fn the_systems_trust_is_used_unless_it_is_switched_off_and_proxies_are_a_table() {
        let origin = |file| load(file, &["run", "--tart-home", "/a"]).unwrap().origin;
        let default = origin("");
        assert!(default.system_roots && default.proxy == origin::ProxySettings::default());
        let told = origin(
            "[origin]\nsystem_roots = false\n[origin.proxy]\nurl = 'http://proxy:3128'\nno_proxy = ['a']\n",
        );
        assert!(!told.system_roots);
        assert_eq!(told.proxy.url.as_deref(), Some("http://proxy:3128"));
        assert_eq!(told.proxy.no_proxy, Some(vec!["a".to_owned()]));
        let wrong = load("[origin.proxy]\nurll = ''", &["run", "--tart-home", "/a"]);
        assert!(wrong.unwrap_err().to_string().contains("urll"));
    }

    #[test]
    fn images_are_retired_only_where_a_rule_says_what_stays() {
        let own = |file| load(file, &["run", "--tart-home", "/a"]).map(|config| config.retention);
        let rule = |images, days| Rule::new(images, days).unwrap();
        let none = own("").unwrap();
        assert_eq!(none.rule, None);
        assert!(none.takes_fleets && none.grace == Duration::from_mins(10));
        for (file, expected) in [
            ("keep_images = 2", rule(Some(2), None)),
            ("keep_days = 14", rule(None, Some(14))),
            ("keep_images = 2\nkeep_days = 14", rule(Some(2), Some(14))),
            // an earlier version took any number
            ("keep_images = 4000000000", rule(Some(1_000), None)),
        ] {
            assert_eq!(own(file).unwrap().rule, expected, "{file}");
        }
        let out = own("fleet_retention = false\nretention_grace_seconds = 0").unwrap();
        assert!(!out.takes_fleets && out.grace.is_zero());
        for (file, part) in [
            ("keep_images = 0", "keep_images is 0"),
            ("keep_days = 0", "keep_days is 0"),
            ("keep_days = 3651", "from 1 to 3650"),
            ("retention_grace_seconds = 604801", "from 0 to 604800"),
        ] {
            let error = own(file).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn settings_that_have_a_node_agent_delete_goldens_are_warned_of() {
        let config = |file: &str| load(file, &["run", "--tart-home", "/a"]).unwrap();
        let kept = config("kept_bytes = 70000000000").floor;
        let expected = Floor {
            percent: 15,
            kept_bytes: 70_000_000_000,
        };
        assert_eq!(kept, expected);
        let warned = |file: &str| config(file).beside_node_agent().len();
        let golden = "golden_prefix = 'tuist-golden-'\n";
        for (settings, expected) in [
            ("", 0),
            ("floor_percent = 15", 0),
            ("floor_percent = 14", 1),
            ("count_purgeable = true", 1),
            ("floor_percent = 0\ncount_purgeable = true", 2),
        ] {
            assert_eq!(
                warned(&format!("{golden}{settings}")),
                expected,
                "{settings}"
            );
            assert_eq!(warned(settings), 0, "nothing makes goldens");
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert!(matches!(
            load("floor_percent = 91\ntart_home = '/a'", &["run"]),
            Err(ConfigError::Floor(91))
        ));
        let error = load("flor_percent = 9", &["run"]).unwrap_err().to_string();
        assert!(
            error.contains("flor_percent") && error.contains("agent.toml"),
            "{error}"
        );
    }
}
