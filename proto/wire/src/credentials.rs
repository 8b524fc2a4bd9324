//! A host's credentials: the certificate and key that it shows to others, and the authorities that it trusts.

use std::{fmt, sync::Arc};

use pem::{EncodeConfig, LineEnding, Pem};
use proto::HostId;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use crate::identity::{IdentityError, Leaf};

/// A host's certificate and key, and the authorities that it trusts.
///
/// A value of this type is consistent: the key belongs to the leaf, the leaf names one host, and the authorities can be
/// trust anchors. The certificate may have expired, so that an agent can load it and see that it must enrol again.
/// Cloning is cheap and shares the key. `Debug` doesn't show the key.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) authorities: Arc<RootCertStore>,
    leaf: Arc<Leaf>,
}

/// Why files aren't a host's credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A part isn't PEM: the file is damaged or another file. Remedy: enrol the host again.
    #[error("{part} isn't PEM: {cause}")]
    Pem {
        /// The name of the part.
        part: &'static str,
        /// The parser's error.
        cause: rustls_pki_types::pem::Error,
    },
    /// A part has no certificate in it: the file is damaged or another file. Remedy: enrol the host again.
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    /// TLS can't sign with the key, or the key isn't that of the leaf certificate. Remedy: put back the certificate and
    /// key that were issued together, or enrol the host again.
    #[error("private key doesn't fit the certificate: {0}")]
    Key(rustls::Error),
    /// The leaf certificate doesn't name exactly one host. Remedy: enrol the host again.
    #[error("own certificate can't identify a host: {0}")]
    Identity(#[from] IdentityError),
    /// An authority's certificate can't be a trust anchor. Remedy: fetch the authority's certificate again.
    #[error("authority's certificate can't be trusted: {0}")]
    Authority(rustls::Error),
}

impl Credentials {
    /// Reads credentials from PEM: a chain with the leaf first, a PKCS#8 key, and one or more authorities. There are
    /// several while the fleet changes its authority.
    ///
    /// # Errors
    /// When a part is malformed, or the key and the certificate don't belong together. Expiry isn't an error here.
    pub fn from_pem(
        chain_pem: &str,
        key_pem: &str,
        authority_pem: &str,
    ) -> Result<Self, CredentialsError> {
        let chain = certificates("certificate chain", chain_pem)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|cause| {
            CredentialsError::Pem {
                part: "private key",
                cause,
            }
        })?;
        let authorities = certificates("authority", authority_pem)?;
        Self::new(chain, key, authorities)
    }

    /// Credentials from DER: a chain with the leaf first, its key, and one or more authorities.
    ///
    /// # Errors
    /// As for [`Credentials::from_pem`].
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        let leaf = chain
            .first()
            .ok_or(CredentialsError::Empty("certificate chain"))?;
        let leaf = Leaf::read(leaf)?;
        if authorities.is_empty() {
            return Err(CredentialsError::Empty("authority"));
        }
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(CredentialsError::Authority)?;
        }
        // checks that the key is the leaf's; the provider wipes the key's bytes once it has read them
        let key = CertifiedKey::from_der(chain, PrivateKeyDer::Pkcs8(key), &provider())
            .map_err(CredentialsError::Key)?;
        Ok(Self {
            key: Arc::new(key),
            authorities: Arc::new(roots),
            leaf: Arc::new(leaf),
        })
    }

    /// The host that the leaf certificate names: this host.
    #[must_use]
    pub fn host(&self) -> &HostId {
        &self.leaf.host
    }

    /// What the leaf certificate says.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("host", &self.leaf.host)
            .field("validity", &self.leaf.validity)
            .field("authorities", &self.authorities.len())
            .field("key", &"redacted")
            .finish()
    }
}

/// The cryptography of every handshake.
///
/// AES-128-GCM comes first. It costs less CPU than AES-256 and ChaCha20 (measured for both ends: 1.64, 1.74 and 2.78
/// s/GB), and every Mac and server has it in hardware.
pub(crate) fn provider() -> CryptoProvider {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    }
}

fn certificates(
    part: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| CredentialsError::Pem { part, cause })?;
    if certificates.is_empty() {
        return Err(CredentialsError::Empty(part));
    }
    Ok(certificates)
}

/// A certificate as PEM (RFC 7468), which [`Credentials::from_pem`] reads.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", der), lines)
}
