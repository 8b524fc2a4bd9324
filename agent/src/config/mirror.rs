//! The mirror's settings: the meaning of its table in the settings file, and the values that can't work.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use proto::reference::is_registry;
use serde::Deserialize;

/// The default TCP port for the registry mirror.
pub const MIRROR_PORT: u16 = 7474;
/// The default size of the mirror's blob cache, in bytes: two compressed images of a common size.
const MIRROR_CACHE_BYTES: u64 = 64 << 30;

/// The answer to a client, before the headers, when something can't be had for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTrouble {
    /// `not-found` for clients that name their upstream by `ns=` (containerd falls back by itself), `wait` for others.
    #[default]
    Auto,
    /// The client waits. At last its connection is broken, so that it tries again.
    Wait,
    /// The client is redirected to the registry.
    Redirect,
    /// The client gets a 404.
    NotFound,
}

/// The mirror's settings.
#[derive(Clone, Debug)]
pub struct MirrorSettings {
    /// The address on which the mirror listens; `None`: it doesn't.
    pub listen: Option<SocketAddr>,
    /// Names by which clients may ask for the mirror on loopback, beyond `localhost` and addresses.
    pub names: BTreeSet<String>,
    /// Whether the address was set, and isn't the default: then the address has to be free.
    pub required: bool,
    /// The directory of the blobs.
    pub directory: PathBuf,
    /// Bytes that blobs may take.
    pub cache_bytes: u64,
    /// The registry for image names without a registry.
    pub upstream: Option<String>,
    /// The registries that are served; empty for any.
    pub upstreams: BTreeSet<String>,
    /// Whether this host's own credentials serve clients that have none.
    pub lend_credentials: bool,
    /// The answer to a client, before the headers, when something can't be had for now.
    pub on_trouble: OnTrouble,
    /// After this long without progress, another source is tried.
    pub stall: Duration,
    /// After this long without progress, a client's connection is broken. It's less than the 60 s after which tart
    /// gives up by itself: the default of `timeoutIntervalForRequest`, which tart leaves (tart,
    /// Sources/tart/Fetcher.swift).
    pub break_after: Duration,
    /// A fetch goes on for this long after its last reader left.
    pub grace: Duration,
    /// Certificate chain and key (PEM), for listening beyond loopback.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// File with the token that clients beyond loopback have to know.
    pub token_file: Option<PathBuf>,
    /// Registries that speak plain HTTP, for redirects.
    pub plain_http: BTreeSet<String>,
}

impl MirrorSettings {
    /// Whether the mirror answers for this registry at all.
    pub(crate) fn serves(&self, registry: &str) -> bool {
        self.upstreams.is_empty() || self.names(registry)
    }

    /// Whether the settings name this registry, so that its word about its contents is believed.
    pub(crate) fn names(&self, registry: &str) -> bool {
        self.upstreams.contains(registry) || self.upstream.as_deref() == Some(registry)
    }
}

/// Why the mirror's settings can't work.
#[derive(Debug, thiserror::Error)]
pub enum MirrorConfigError {
    /// The address is beyond loopback, and TLS or the token is missing: clients from elsewhere have to prove
    /// themselves, which plain HTTP doesn't allow.
    #[error(
        "mirror.listen {0} is beyond loopback: set mirror.tls_certificate, mirror.tls_key and mirror.token_file"
    )]
    OpenMirror(SocketAddr),
    /// A certificate without a key, or the other way round.
    #[error("mirror.tls_certificate and mirror.tls_key go together")]
    HalfTls,
    /// The mirror's upstream isn't a host.
    #[error("mirror upstream {0:?} isn't a registry's host or host:port")]
    Upstream(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MirrorFile {
    enabled: Option<bool>,
    listen: Option<SocketAddr>,
    names: BTreeSet<String>,
    directory: Option<PathBuf>,
    cache_bytes: Option<u64>,
    upstream: Option<String>,
    upstreams: Vec<String>,
    lend_credentials: bool,
    on_trouble: OnTrouble,
    stall_seconds: Option<u64>,
    break_after_seconds: Option<u64>,
    grace_seconds: Option<u64>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

/// Checks the table of the settings file, and fills in the defaults.
pub(super) fn mirror_settings(
    file: MirrorFile,
    state_dir: &Path,
    plain_http: &[String],
) -> Result<MirrorSettings, MirrorConfigError> {
    let registry = |text: String| registry(&text).ok_or(MirrorConfigError::Upstream(text));
    let seconds = |set: Option<u64>, default: u64| {
        Duration::from_secs(set.unwrap_or(default).clamp(1, 3_600))
    };
    let listen = file
        .listen
        .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, MIRROR_PORT).into());
    let enabled = file.enabled.unwrap_or(true);
    let tls = match (file.tls_certificate, file.tls_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(MirrorConfigError::HalfTls),
    };
    if enabled && !listen.ip().is_loopback() && (tls.is_none() || file.token_file.is_none()) {
        return Err(MirrorConfigError::OpenMirror(listen));
    }
    Ok(MirrorSettings {
        listen: enabled.then_some(listen),
        required: file.listen.is_some(),
        names: file.names,
        directory: file.directory.unwrap_or_else(|| state_dir.join("mirror")),
        cache_bytes: file.cache_bytes.unwrap_or(MIRROR_CACHE_BYTES),
        upstream: file.upstream.map(registry).transpose()?,
        upstreams: file
            .upstreams
            .into_iter()
            .map(registry)
            .collect::<Result<_, _>>()?,
        lend_credentials: file.lend_credentials,
        on_trouble: file.on_trouble,
        stall: seconds(file.stall_seconds, 10),
        break_after: seconds(file.break_after_seconds, 45),
        grace: seconds(file.grace_seconds, 15),
        tls,
        token_file: file.token_file,
        plain_http: plain_http.iter().cloned().collect(),
    })
}

/// A host with or without port, with `_` before the port read as `:`. The names of hosts have no underscores.
pub(crate) fn registry(text: &str) -> Option<String> {
    let text = text.replace('_', ":").to_ascii_lowercase();
    is_registry(&text).then_some(text)
}
