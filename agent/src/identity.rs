//! Who this host is: its key, its certificate, the fleet's authority, and where the coordinator is. Kept in one directory.
//!
//! Files: `host.key` (PKCS#8 PEM, 0600), `host.pem` (chain, leaf first), `authority.pem`, `coordinator` (`host:port`).
//! A renewal writes key and chain as one file, `host.pem`, and renames it into place, so that no crash leaves a key that
//! doesn't fit its certificate.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use link::Credentials;
use proto::HostId;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// Renewal starts when this share of a certificate's life is over, in thirds.
const RENEW_AFTER_THIRDS: u32 = 2;

/// This host's key and certificates.
#[derive(Clone)]
pub(crate) struct Identity {
    /// PEM: private key, then the chain, leaf first.
    host_pem: String,
    authority_pem: String,
    coordinator: String,
    issued: SystemTime,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("coordinator", &self.coordinator)
            .finish_non_exhaustive()
    }
}

/// A certificate request (DER) and the new key (PEM) that it is for.
pub(crate) fn request() -> anyhow::Result<(Vec<u8>, String)> {
    let key = KeyPair::generate().context("making a key")?;
    // names in the request don't count: the coordinator knows who asks
    let request = CertificateParams::default()
        .serialize_request(&key)
        .context("making a certificate request")?;
    Ok((request.der().to_vec(), key.serialize_pem()))
}

impl Identity {
    pub(crate) fn new(
        key_pem: &str,
        chain_pem: &str,
        authority_pem: &str,
        coordinator: &str,
    ) -> Self {
        Self {
            host_pem: format!("{}\n{}\n", key_pem.trim(), chain_pem.trim()),
            authority_pem: authority_pem.to_owned(),
            coordinator: coordinator.to_owned(),
            issued: SystemTime::now(),
        }
    }

    /// Reads the identity that [`save`](Self::save) wrote.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "reading {}: enrol this host first (parbake-agent enroll --help)",
                    path.display()
                )
            })
        };
        let issued = std::fs::metadata(dir.join("host.pem")).and_then(|meta| meta.modified());
        Ok(Self {
            host_pem: read("host.pem")?,
            authority_pem: read("authority.pem")?,
            coordinator: read("coordinator")?.trim().to_owned(),
            issued: issued.unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Writes the identity: each file whole or not at all. `host.pem` comes last: with it the host counts as enrolled.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making {}", dir.display()))?;
        let files = [
            ("authority.pem", &self.authority_pem),
            ("coordinator", &self.coordinator),
            ("host.pem", &self.host_pem),
        ];
        for (name, text) in files {
            replace(&dir.join(name), text.as_bytes())
                .with_context(|| format!("writing {}", dir.join(name).display()))?;
        }
        Ok(())
    }

    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        let split = self
            .host_pem
            .find("-----BEGIN CERTIFICATE")
            .context("host.pem holds no certificate")?;
        let (key, chain) = self.host_pem.split_at(split);
        Credentials::from_pem(chain, key, &self.authority_pem)
            .context("this host's key and certificates")
    }

    pub(crate) fn coordinator(&self) -> &str {
        &self.coordinator
    }

    pub(crate) fn host(&self) -> anyhow::Result<HostId> {
        Ok(self.credentials()?.host().clone())
    }

    /// This identity with a renewed certificate, checked to be one that works and names the same host.
    pub(crate) fn renewed(&self, chain: &[Vec<u8>], key_pem: String) -> anyhow::Result<Self> {
        let chain_pem: String = chain.iter().map(|der| pem(der)).collect();
        let fresh = Self::new(&key_pem, &chain_pem, &self.authority_pem, &self.coordinator);
        let (before, after) = (self.host()?, fresh.host()?);
        anyhow::ensure!(
            before == after,
            "renewed certificate names {after} instead of {before}"
        );
        Ok(fresh)
    }

    /// How long until two thirds of the certificate's life are over.
    pub(crate) fn until_renewal(&self, now: SystemTime) -> Duration {
        let Ok(credentials) = self.credentials() else {
            return Duration::ZERO;
        };
        let life = credentials
            .expires()
            .duration_since(self.issued)
            .unwrap_or_default();
        let due = self.issued + life / 3 * RENEW_AFTER_THIRDS;
        due.duration_since(now).unwrap_or_default()
    }
}

/// A certificate as PEM.
fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Writes a file whole or not at all, readable by its owner only: temporary file, sync, rename, sync the directory.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all())
}

/// The SHA-256 of the first certificate in a PEM text: what `--ca-pin` names.
pub(crate) fn fingerprint(pem_text: &str) -> anyhow::Result<proto::Digest> {
    let certificate = CertificateDer::from_pem_slice(pem_text.as_bytes())
        .context("authority certificate isn't PEM")?;
    Ok(proto::Digest::of(&certificate))
}

/// Where the identity's files are.
pub(crate) fn enrolled(dir: &Path) -> bool {
    PathBuf::from(dir).join("host.pem").exists()
}
