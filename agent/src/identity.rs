//! This host's identity: its key, its certificate, the fleet's authority, and the coordinator's addresses. One
//! directory keeps it.
//!
//! The files, all with mode 0600: `host.pem` (PKCS#8 key, then the chain, leaf first), `authority.pem`, `coordinator`
//! (`host:port` of QUIC), `api` (`host:port` of HTTPS). Key and chain are one file, which a renewal renames into place.
//! So no crash leaves a key that doesn't fit its certificate. `reset.key` has 32 random bytes as hex digits: see
//! [`reset_secret`].

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use proto::{HostId, causes};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{
    CertificateDer,
    pem::{Error as PemError, PemObject as _},
};
use tracing::warn;
use wire::{Credentials, CredentialsError, ResetSecret, Validity};

/// What is wrong with this host's key, certificates or addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// A key can't be made, or a text isn't a key.
    #[error("{what}")]
    Key {
        what: &'static str,
        #[source]
        error: rcgen::Error,
    },
    /// A file of an enrolled host isn't there.
    #[error("{} can't be read, so this host isn't enrolled: enrol it first (`parbake-agent enroll --help`)", path.display())]
    NotEnrolled {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// The coordinator's address can't be read.
    #[error("reading {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// The file of the coordinator's address doesn't hold an address.
    #[error("{} is damaged: it doesn't hold an address (host:port)", path.display())]
    Damaged { path: PathBuf },
    /// Neither of the coordinator's two addresses is left.
    #[error(
        "no address of the coordinator is left: enrol this host again (`parbake-agent enroll --force`)"
    )]
    NoAddress(#[source] Box<Self>),
    /// The identity can't be kept.
    #[error("{action} {}", path.display())]
    Write {
        action: &'static str,
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    /// The key and the certificates can't be used.
    #[error("this host's key and certificates can't be used")]
    Credentials(#[source] CredentialsError),
    /// There is no certificate where one should be.
    #[error(
        "host.pem holds no certificate: enrol this host again (`parbake-agent enroll --force`)"
    )]
    NoCertificate,
    /// A text that should be a certificate isn't PEM.
    #[error("{what} isn't PEM")]
    Pem {
        what: &'static str,
        #[source]
        error: PemError,
    },
    /// The coordinator's answer is about another host.
    #[error("the renewed certificate is for host {after}, and this host is {before}")]
    OtherHost { before: HostId, after: HostId },
}

/// This host's key and certificates.
#[derive(Clone)]
pub(crate) struct Identity {
    /// PEM: private key, then the chain, leaf first.
    host_pem: String,
    authority_pem: String,
    coordinator: String,
    api: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("coordinator", &self.coordinator)
            .finish_non_exhaustive()
    }
}

/// A certificate request (DER) and the new key (PEM) that it is for.
pub(crate) fn request() -> Result<(Vec<u8>, String), IdentityError> {
    let key = KeyPair::generate().map_err(bad_key("making a key"))?;
    Ok((request_for(&key)?, key.serialize_pem()))
}

/// A certificate request (DER) for this key, signed with it.
fn request_for(key: &KeyPair) -> Result<Vec<u8>, IdentityError> {
    // names in the request don't count: the coordinator knows which host asks
    let request = CertificateParams::default()
        .serialize_request(key)
        .map_err(bad_key("making a certificate request"))?;
    Ok(request.der().to_vec())
}

fn bad_key(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Key { what, error }
}

/// The address in a file; `None` if there is no such file.
fn read_address(path: &Path) -> Result<Option<String>, IdentityError> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| IdentityError::Read {
            path: path.into(),
            error,
        })?,
    };
    let text = text.trim();
    let is_address = text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.chars().all(|letter| letter.is_ascii_graphic())
            && port.parse::<u16>().is_ok()
    });
    if !is_address {
        return Err(IdentityError::Damaged { path: path.into() });
    }
    Ok(Some(text.to_owned()))
}

impl Identity {
    pub(crate) fn new(
        key_pem: &str,
        chain_pem: &str,
        authority_pem: &str,
        coordinator: &str,
        api: &str,
    ) -> Self {
        Self {
            host_pem: format!("{}\n{}\n", key_pem.trim(), chain_pem.trim()),
            authority_pem: authority_pem.to_owned(),
            coordinator: coordinator.to_owned(),
            api: api.to_owned(),
        }
    }

    /// Reads the identity that [`save`](Self::save) wrote.
    pub(crate) fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            let text = std::fs::read_to_string(&path);
            text.map_err(|error| IdentityError::NotEnrolled { path, error })
        };
        let (host_pem, authority_pem) = (read("host.pem")?, read("authority.pem")?);
        if let Err(error) = durable::sweep(dir) {
            warn!(directory = %dir.display(), %error, "what a crash left of a write can't be removed");
        }
        let address = |name: &str| {
            let address = read_address(&dir.join(name));
            address.inspect_err(|error| warn!("{}; enrol this host again", causes(error)))
        };
        // QUIC and the API share a port unless somebody changed that: so each address stands in for the other
        let (coordinator, api) = match (address("coordinator"), address("api")) {
            (Ok(Some(coordinator)), Ok(Some(api))) => (coordinator, api),
            (Ok(Some(one)), _) | (_, Ok(Some(one))) => (one.clone(), one),
            (Err(error), _) | (_, Err(error)) => {
                return Err(IdentityError::NoAddress(Box::new(error)));
            }
            (Ok(None), Ok(None)) => {
                let address = read("coordinator")?;
                (address.clone(), address)
            }
        };
        Ok(Self {
            host_pem,
            authority_pem,
            coordinator,
            api,
        })
    }

    /// Writes the identity, each file whole or not at all. `host.pem` comes last, since the host counts as enrolled
    /// with it.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        durable::make_dir(dir).map_err(not_written("making", dir))?;
        let files = [
            ("authority.pem", &self.authority_pem),
            ("coordinator", &self.coordinator),
            ("api", &self.api),
            ("host.pem", &self.host_pem),
        ];
        for (name, text) in files {
            let path = dir.join(name);
            durable::write(&path, text.as_bytes(), durable::SECRET)
                .map_err(not_written("writing", &path))?;
        }
        Ok(())
    }

    pub(crate) fn credentials(&self) -> Result<Credentials, IdentityError> {
        let (key, chain) = self.parts()?;
        Credentials::from_pem(chain, key, &self.authority_pem).map_err(IdentityError::Credentials)
    }

    /// Key and chain, both PEM.
    fn parts(&self) -> Result<(&str, &str), IdentityError> {
        let split = self
            .host_pem
            .find("-----BEGIN CERTIFICATE")
            .ok_or(IdentityError::NoCertificate)?;
        Ok(self.host_pem.split_at(split))
    }

    /// The proof of this host's identity when its certificate has expired: the certificate (DER), and a request (DER)
    /// that its key has signed.
    pub(crate) fn proof(&self) -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
        let (key, chain) = self.parts()?;
        let key = KeyPair::from_pem(key).map_err(bad_key("this host's key"))?;
        let leaf = CertificateDer::from_pem_slice(chain.as_bytes())
            .map_err(not_pem("this host's certificate"))?;
        Ok((leaf.to_vec(), request_for(&key)?))
    }

    /// The pin by which this host recognises the fleet.
    pub(crate) fn pin(&self) -> Result<proto::Digest, IdentityError> {
        fingerprint(&self.authority_pem)
    }

    pub(crate) fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// `host:port` of the coordinator's HTTPS API.
    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    pub(crate) fn host(&self) -> Result<HostId, IdentityError> {
        Ok(self.credentials()?.host().clone())
    }

    /// This identity with a renewed certificate. The certificate is checked: it has to work, and to name the same host.
    /// Without `key_pem` the certificate is for the present key.
    pub(crate) fn renewed(
        &self,
        chain_pem: &str,
        key_pem: Option<&str>,
    ) -> Result<Self, IdentityError> {
        let key_pem = match key_pem {
            Some(key) => key,
            None => self.parts()?.0,
        };
        let fresh = Self::new(
            key_pem,
            chain_pem,
            &self.authority_pem,
            &self.coordinator,
            &self.api,
        );
        let (before, after) = (self.host()?, fresh.host()?);
        if before != after {
            return Err(IdentityError::OtherHost { before, after });
        }
        Ok(fresh)
    }

    /// The time for which the certificate is valid.
    pub(crate) fn validity(&self) -> Result<Validity, IdentityError> {
        Ok(self.credentials()?.leaf().validity)
    }

    /// Whether the certificate has expired by this host's clock.
    pub(crate) fn expired(&self, now: SystemTime) -> bool {
        self.validity().is_ok_and(|validity| validity.expired(now))
    }
}

/// The secret by which this host tells its peers, after a restart, that the connections of its earlier life are gone.
/// It is made at the first start and then kept. It isn't derived from the host's key: each renewal brings another key,
/// and connections outlive renewals.
///
/// A secret that can't be read or kept only costs time: peers then notice a restart later. So that is logged, and isn't
/// an error.
pub(crate) fn reset_secret(dir: &Path) -> ResetSecret {
    ResetSecret::new(kept_secret(dir, "reset.key"))
}

/// 32 random bytes that are made once and kept in this file. If they can't be read or kept, other bytes serve until the
/// program ends.
pub(crate) fn kept_secret(dir: &Path, name: &str) -> [u8; 32] {
    let path = dir.join(name);
    // 32 bytes written as a digest is
    let kept = std::fs::read_to_string(&path).ok().and_then(|text| {
        format!("sha256:{}", text.trim())
            .parse::<proto::Digest>()
            .ok()
    });
    if let Some(kept) = kept {
        return *kept.as_bytes();
    }
    let mut bytes = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    let kept = random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random bytes"))
        .and_then(|()| {
            let text = proto::Digest::from_bytes(bytes).hex().to_string();
            durable::write(&path, text.as_bytes(), durable::SECRET)
        });
    if let Err(error) = kept {
        tracing::warn!(path = %path.display(), %error, "a secret of this host isn't kept: after a restart it has another one");
    }
    bytes
}

/// The SHA-256 of the first certificate in a PEM text, as `--ca-pin` names it.
pub(crate) fn fingerprint(pem_text: &str) -> Result<proto::Digest, IdentityError> {
    let certificate = CertificateDer::from_pem_slice(pem_text.as_bytes())
        .map_err(not_pem("authority certificate"))?;
    Ok(proto::Digest::of(&certificate))
}

fn not_pem(what: &'static str) -> impl Fn(PemError) -> IdentityError {
    move |error| IdentityError::Pem { what, error }
}

fn not_written(action: &'static str, path: &Path) -> impl Fn(io::Error) -> IdentityError {
    move |error| IdentityError::Write {
        action,
        path: path.into(),
        error,
    }
}

/// Whether this directory has an enrolled host's identity, that is, `host.pem`.
pub(crate) fn enrolled(dir: &Path) -> bool {
    PathBuf::from(dir).join("host.pem").exists()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer};
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    /// An authority that signs whatever it is asked to.
    pub(crate) struct Authority {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self {
                issuer: Issuer::new(params, key),
                pem,
            }
        }

        /// Credentials of a host, good for a day.
        pub(crate) fn credentials(&self, host: &str) -> Credentials {
            let key = KeyPair::generate().unwrap();
            let chain = self.chain(host, &key, SystemTime::now() + DAY);
            Credentials::from_pem(&chain, &key.serialize_pem(), &self.pem).unwrap()
        }

        /// A ticket, as the coordinator gives it.
        pub(crate) fn ticket(
            &self,
            content: Option<proto::Digest>,
            host: &str,
            key: proto::statement::LinkKey,
            number: u64,
            expires_at: u64,
        ) -> proto::message::Ticket {
            use rcgen::SigningKey as _;

            let host = host.parse().unwrap();
            let sign = |bytes: &[u8]| self.issuer.key().sign(bytes);
            let ticket = proto::Ticket::issue(content, &host, key, number, expires_at, sign);
            ticket.unwrap().to_message()
        }

        fn chain(&self, host: &str, key: &KeyPair, expires: SystemTime) -> String {
            let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            params.not_before = (expires - DAY).into();
            params.not_after = expires.into();
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ];
            params.signed_by(key, &self.issuer).unwrap().pem()
        }

        /// The certificate and key of a server with this name.
        pub(crate) fn server(
            &self,
            name: &str,
        ) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let later = SystemTime::now() + DAY;
            let chain = self.chain(name, &key, later) + &self.pem;
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            (chain.map(Result::unwrap).collect(), key)
        }

        pub(crate) fn identity(&self, host: &str, expires: SystemTime) -> Identity {
            let key = KeyPair::generate().unwrap();
            let chain = self.chain(host, &key, expires);
            Identity::new(&key.serialize_pem(), &chain, &self.pem, "c:1", "a:2")
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::new().identity("mini-1", SystemTime::now() + DAY);
        identity.save(dir.path()).unwrap();
        let loaded = Identity::load(dir.path()).unwrap();
        assert_eq!(loaded.host().unwrap().as_str(), "mini-1");
        assert_eq!((loaded.coordinator(), loaded.api()), ("c:1", "a:2"));
        let mode = std::fs::metadata(dir.path().join("host.pem")).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_reset_secret_is_made_once_and_made_anew_where_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let first = reset_secret(dir.path());
        assert!(first == reset_secret(dir.path()));
        let path = dir.path().join("reset.key");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        let second = reset_secret(dir.path());
        assert!(first != second && second == reset_secret(dir.path()));
        // a secret that can't be kept is there all the same, and is another one the next time
        let nowhere = dir.path().join("missing");
        assert!(reset_secret(&nowhere) != reset_secret(&nowhere));
    }

    #[test]
    fn a_host_that_enrolled_before_the_api_was_kept_asks_where_its_coordinator_is() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::new().identity("mini-1", SystemTime::now() + DAY);
        identity.save(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("api")).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap().api(), "c:1");
    }

    #[test]
    fn a_damaged_address_is_named_and_the_other_stands_in_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Authority::new().identity("mini-1", SystemTime::now() + DAY);
        let loaded = |coordinator: &[u8], api: &[u8]| {
            identity.save(dir.path()).unwrap();
            std::fs::write(dir.path().join("coordinator"), coordinator).unwrap();
            std::fs::write(dir.path().join("api"), api).unwrap();
            let loaded = Identity::load(dir.path())?;
            Ok::<_, IdentityError>((loaded.coordinator().to_owned(), loaded.api().to_owned()))
        };
        let both = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        for damage in [
            &b""[..],
            b"\0\0\0\0",
            b"no port",
            b":7443",
            b"c:70000",
            b"\xff\xfe",
        ] {
            assert_eq!(loaded(b"c:1", damage).unwrap(), both("c:1", "c:1"));
            assert_eq!(loaded(damage, b"a:2").unwrap(), both("a:2", "a:2"));
            let error = causes(&loaded(damage, damage).unwrap_err());
            let path = dir.path().join("coordinator").display().to_string();
            assert!(
                error.contains(&path) && error.contains("enrol this host again"),
                "{error}"
            );
        }
        std::fs::remove_file(dir.path().join("api")).unwrap();
        std::fs::remove_file(dir.path().join("coordinator")).unwrap();
        let error = causes(&Identity::load(dir.path()).unwrap_err());
        assert!(error.contains("enrol it first"), "{error}");
    }

    #[test]
    fn a_certificate_counts_as_expired_from_its_last_second_on() {
        // certificates know whole seconds
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let identity = Authority::new().identity("mini-1", expires);
        assert!(!identity.expired(expires - Duration::from_secs(1)));
        assert!(identity.expired(expires));
        assert_eq!(identity.validity().unwrap().issued, expires - DAY);
    }

    #[test]
    fn a_renewed_certificate_has_to_be_this_hosts_and_fit_the_key() {
        let (authority, later) = (Authority::new(), SystemTime::now() + DAY);
        let identity = authority.identity("mini-1", SystemTime::now());
        let key = KeyPair::generate().unwrap();
        let key_pem = key.serialize_pem();
        let renew = |host: &str, key: Option<&str>, chain: &KeyPair| {
            identity.renewed(&authority.chain(host, chain, later), key)
        };
        let fresh = renew("mini-1", Some(&key_pem), &key).unwrap();
        assert!(!fresh.expired(SystemTime::now()));
        assert!(renew("mini-2", Some(&key_pem), &key).is_err());
        assert!(renew("mini-1", None, &key).is_err());
        // without a new key the certificate is for the old key
        let old = KeyPair::from_pem(identity.parts().unwrap().0).unwrap();
        assert!(renew("mini-1", None, &old).is_ok());
    }

    #[test]
    fn the_proof_is_the_certificate_and_a_request_of_the_same_key() {
        let identity = Authority::new().identity("mini-1", SystemTime::now());
        let (leaf, request) = identity.proof().unwrap();
        let leaf = wire::Leaf::read(&leaf.into()).unwrap();
        assert_eq!(leaf.host.as_str(), "mini-1");
        let key = &leaf.public_key;
        assert!(request.windows(key.len()).any(|part| part == key));
    }
}
