//! How registries are reached: timeouts, certificates, proxies.

use std::{path::Path, time::Duration};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{error::ConfigError, location::PlainHttp, proxy::Proxies};

/// How to reach registries.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long TCP may take to connect. TLS comes in addition.
    pub connect_timeout: Duration,
    /// How long nothing may arrive: before the headers, or between two pieces of a body.
    pub idle_timeout: Duration,
    /// The name of this program in requests.
    pub user_agent: String,
    /// Certificates to trust in addition to the well-known ones. See [`roots_from_pem`].
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Certificates that the operating system trusts. See [`system_roots`]. Unusable ones are skipped.
    pub system_roots: Vec<CertificateDer<'static>>,
    /// The proxies through which registries are reached.
    pub proxies: Proxies,
    /// Registries that don't speak TLS.
    pub plain_http: PlainHttp,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(10),
            user_agent: concat!("parbake/", env!("CARGO_PKG_VERSION")).to_owned(),
            extra_roots: Vec::new(),
            system_roots: Vec::new(),
            proxies: Proxies::none(),
            plain_http: PlainHttp::Nowhere,
        }
    }
}

/// Reads the certificates of a PEM file, for [`Config::extra_roots`].
///
/// # Errors
/// When the file can't be read, isn't PEM or holds no certificate.
pub fn roots_from_pem(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let roots = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| ConfigError::Roots {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
    if roots.is_empty() {
        return Err(ConfigError::NoRoots {
            path: path.to_owned(),
        });
    }
    Ok(roots)
}

/// The certificates that the operating system trusts for servers, for [`Config::system_roots`]. On macOS these are in
/// the trusted keychains. On Linux they are in `/etc/ssl` and similar places, or in `SSL_CERT_FILE` and `SSL_CERT_DIR`
/// where these variables are set. Unreadable ones are logged and left out. Blocks: on macOS for up to a second.
#[must_use]
pub fn system_roots() -> Vec<CertificateDer<'static>> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "certificates of the operating system can't be read");
    }
    found.certs
}
