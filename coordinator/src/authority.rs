//! The fleet's own certificate authority: one P-256 key in the state directory, which signs short-lived certificates.
//!
//! A certificate names exactly one host, as its only DNS name. Of a request, only the public key counts: the name comes
//! from the token or from the authenticated connection. This file doesn't decide which hosts may have a certificate:
//! see [`crate::enrolment`].

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proto::{Digest, HostId, Ticket, statement::LinkKey};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
    SigningKey as _,
};
use rustls::server::ParsedCertificate;
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject as _,
};
use time::OffsetDateTime;
use wire::{IdentityError, Leaf, ResetSecret, Signatures};

use crate::random;

/// The name in the coordinator's own certificate. No host may have it.
pub use client::COORDINATOR;

/// The lifetime of the authority's own certificate. Hosts pin the certificate, so after a replacement every host has to
/// enrol anew.
const CA_LIFETIME: Duration = Duration::from_hours(20 * 365 * 24);
/// The most bytes of a certificate request. A request with a P-256 key and no names has about 250.
pub const MAX_CSR_BYTES: usize = 8 << 10;

/// The authority: key and certificate, loaded.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// A certificate with the key that it is for.
#[derive(Debug)]
pub struct Identity {
    /// DER, leaf first; the authority's own certificate is the last one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivatePkcs8KeyDer<'static>,
}

/// Why the authority can't be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum OpenAuthorityError {
    /// A file can't be read or written. The state directory has to belong to the user that runs the coordinator.
    #[error("authority file {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The certificate exists, and its key doesn't. Restore the key, or remove the directory and enrol every host anew.
    #[error(
        "authority key {0} is missing although its certificate exists; restore it from a backup, \
         or remove both and enrol every host anew"
    )]
    KeyLost(PathBuf),
    /// Key or certificate don't parse, or don't belong together.
    #[error("authority file {path}: {error}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: String,
    },
}

/// Why a certificate isn't issued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request doesn't parse, or isn't signed by the key that it holds.
    #[error("certificate request can't be used: {0}")]
    Request(String),
    /// The request's key is of a kind that the fleet doesn't use.
    #[error("certificate request has an unfit key; use ECDSA P-256 or Ed25519")]
    Key,
    /// A late renewal asks for another key than the expired certificate's.
    #[error("certificate request isn't of the key that the certificate is for")]
    OtherKey,
    /// The name belongs to the coordinator.
    #[error("host id `{COORDINATOR}` is reserved")]
    Reserved,
    /// Signing failed.
    #[error("signing a certificate failed: {0}")]
    Sign(String),
}

/// Why a certificate isn't one that this authority signed for a host.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The certificate doesn't name exactly one host.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate is another fleet's, or made up.
    #[error("certificate isn't signed by this fleet's authority: {0}")]
    Signature(rustls::Error),
}

impl Authority {
    /// Opens the authority in `dir`, or makes one there when `dir` has none. Blocks.
    ///
    /// The key is written before the certificate. A crash in between leaves a key, for which the next start makes a
    /// certificate.
    ///
    /// # Errors
    /// When files can't be read or written, or don't belong together.
    pub fn open(dir: &Path) -> Result<Self, OpenAuthorityError> {
        let key_path = dir.join("ca.key");
        let certificate_path = dir.join("ca.pem");
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |error| OpenAuthorityError::File { path, error }
        };
        durable::make_dir(dir).map_err(at(dir))?;
        // A command line and the daemon may start together on a new directory.
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(at(&lock_path))?;
        durable::sweep(dir).map_err(at(dir))?;

        let key_pem = read(&key_path).map_err(at(&key_path))?;
        let certificate_pem = read(&certificate_path).map_err(at(&certificate_path))?;
        let key = match (&key_pem, &certificate_pem) {
            (None, Some(_)) => return Err(OpenAuthorityError::KeyLost(key_path)),
            (None, None) => {
                let key = KeyPair::generate().map_err(damaged(&key_path))?;
                durable::write(&key_path, key.serialize_pem().as_bytes(), durable::SECRET)
                    .map_err(at(&key_path))?;
                key
            }
            (Some(pem), _) => KeyPair::from_pem(pem).map_err(damaged(&key_path))?,
        };
        let pem = match certificate_pem {
            Some(pem) => pem,
            None => {
                let pem = own_certificate(&key).map_err(damaged(&certificate_path))?;
                durable::write(&certificate_path, pem.as_bytes(), durable::PUBLIC)
                    .map_err(at(&certificate_path))?;
                pem
            }
        };
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(damaged(&certificate_path))?;
        let public = key.public_key_raw();
        if !certificate.windows(public.len()).any(|part| part == public) {
            return Err(damaged(&certificate_path)("is of another key than ca.key"));
        }
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(damaged(&certificate_path))?;
        Ok(Self {
            issuer,
            certificate,
            pem,
        })
    }

    /// Whether `dir` holds an authority, or a part of one.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        ["ca.key", "ca.pem"]
            .iter()
            .any(|name| dir.join(name).exists())
    }

    /// The pin that hosts and operators use: the SHA-256 of the authority's certificate (DER).
    #[must_use]
    pub fn pin(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// The secret by which the coordinator tells hosts, after a restart, that their connections are gone. It is derived
    /// from the authority's key, which stays the same over restarts and in all replicas; the coordinator's own key
    /// doesn't.
    #[must_use]
    pub fn reset_secret(&self) -> ResetSecret {
        ResetSecret::derived(self.issuer.key().serialized_der(), b"parbake coordinator")
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate as PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for this host and the key in `csr` (PKCS#10, DER), good from now for `lifetime`.
    ///
    /// Only the request's key counts: names, extensions and usages in it are ignored.
    ///
    /// # Errors
    /// When the request is unusable or the name reserved.
    pub fn issue(
        &self,
        host: &HostId,
        csr: &[u8],
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.sign(host, csr, None, (SystemTime::now(), lifetime))
    }

    /// As [`issue`](Self::issue), but dated at `from` where that is still to come. `from` is the time from which the
    /// host's enrolment counts, so that the certificate isn't taken for one of before.
    ///
    /// # Errors
    /// As `issue`.
    pub fn issue_from(
        &self,
        host: &HostId,
        csr: &[u8],
        from: SystemTime,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.sign(host, csr, None, (from.max(SystemTime::now()), lifetime))
    }

    /// As [`issue`](Self::issue), for the host and the key of a certificate that was [recognised](Self::recognise).
    /// `csr` has to be signed by that key, which proves that the sender holds the key. Neither the request nor the
    /// answer has to be fresh or secret: both are worth nothing without the key.
    ///
    /// # Errors
    /// As `issue`, and when the request is for another key.
    pub(crate) fn reissue(
        &self,
        before: &Leaf,
        csr: &[u8],
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let now = SystemTime::now();
        self.sign(&before.host, csr, Some(&before.public_key), (now, lifetime))
    }

    /// What a host's certificate says, if this authority signed it. The certificate may have expired.
    ///
    /// # Errors
    /// When another authority signed it, or it isn't a host's.
    pub fn recognise(&self, leaf: &CertificateDer<'_>) -> Result<Leaf, ForeignError> {
        let read = Leaf::read(leaf)?;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(self.certificate.clone())
            .map_err(ForeignError::Signature)?;
        // checked at a moment when the certificate was good: its age isn't judged here
        let issued = read.validity.issued.duration_since(SystemTime::UNIX_EPOCH);
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf).map_err(ForeignError::Signature)?,
            &roots,
            &[],
            UnixTime::since_unix_epoch(issued.unwrap_or_default()),
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .all,
        )
        .map_err(ForeignError::Signature)?;
        Ok(read)
    }

    fn sign(
        &self,
        host: &HostId,
        csr: &[u8],
        only: Option<&[u8]>,
        (from, lifetime): (SystemTime, Duration),
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        if host.as_str() == COORDINATOR {
            return Err(IssueError::Reserved);
        }
        if csr.len() > MAX_CSR_BYTES {
            return Err(IssueError::Request(format!(
                "{} bytes are over the limit of {MAX_CSR_BYTES}",
                csr.len()
            )));
        }
        // Parses the request and checks its signature, which proves that the sender holds the key.
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
                .map_err(|error| IssueError::Request(error.to_string()))?;
        let key = &request.public_key;
        // An uncompressed P-256 point has 65 bytes. The length also refuses a P-384 key that signs with SHA-256.
        let fit = (key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256
            && key.der_bytes().len() == 65)
            || (key.algorithm() == &rcgen::PKCS_ED25519 && key.der_bytes().len() == 32);
        if !fit {
            return Err(IssueError::Key);
        }
        if only.is_some_and(|only| only != key.der_bytes()) {
            return Err(IssueError::OtherKey);
        }
        let params = leaf(host.as_str(), from, lifetime)
            .map_err(|error| IssueError::Sign(error.to_string()))?;
        let leaf = params
            .signed_by(key, &self.issuer)
            .map_err(|error| IssueError::Sign(error.to_string()))?;
        Ok(vec![leaf.der().clone(), self.certificate.clone()])
    }

    /// The checker of this authority's tickets, and of what hosts signed under them.
    #[must_use]
    pub fn signatures(&self) -> Signatures {
        Signatures::of_authority(self.issuer.key().der_bytes())
    }

    /// A ticket for this host's key, good for `lifetime` from now: to make links of `content`, or a standing ticket
    /// where that is `None`.
    ///
    /// # Errors
    /// When signing fails.
    pub fn ticket(
        &self,
        content: Option<Digest>,
        host: &HostId,
        key: LinkKey,
        number: u64,
        lifetime: Duration,
    ) -> Result<Ticket, IssueError> {
        let expires = SystemTime::now() + lifetime;
        let expires = expires.duration_since(SystemTime::UNIX_EPOCH);
        let expires = expires.unwrap_or_default().as_secs();
        Ticket::issue(content, host, key, number, expires, |bytes| {
            self.issuer.key().sign(bytes)
        })
        .map_err(|error| IssueError::Sign(error.to_string()))
    }

    /// A fresh key and certificate for the coordinator itself.
    ///
    /// # Errors
    /// When making the key or signing fails.
    pub(crate) fn issue_own(&self, lifetime: Duration) -> Result<Identity, IssueError> {
        self.issue_own_for(&[], lifetime)
    }

    /// A fresh key and certificate for the coordinator itself, good for these DNS names too. The API shows it to
    /// clients that reach the API by the name of a Service. Hosts are shown one without these names.
    ///
    /// # Errors
    /// When making the key or signing fails, also when a name isn't a DNS name.
    pub(crate) fn issue_own_for(
        &self,
        names: &[String],
        lifetime: Duration,
    ) -> Result<Identity, IssueError> {
        let sign = |error: rcgen::Error| IssueError::Sign(error.to_string());
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = leaf(COORDINATOR, SystemTime::now(), lifetime).map_err(sign)?;
        for name in names {
            let name = name.as_str().try_into().map_err(sign)?;
            params.subject_alt_names.push(rcgen::SanType::DnsName(name));
        }
        let leaf = params.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(Identity {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn damaged<E: ToString>(path: &Path) -> impl FnOnce(E) -> OpenAuthorityError {
    let path = path.to_path_buf();
    move |error| OpenAuthorityError::Damaged {
        path,
        error: error.to_string(),
    }
}

fn own_certificate(key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let serial = serial();
    // Each authority has a name of its own, so that people can tell the certificates of two fleets apart.
    let name = format!("parbake fleet {}", proto::digest::Hex(&serial[..4]));
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = OffsetDateTime::now_utc() - wire::dated_back(CA_LIFETIME);
    params.not_after = OffsetDateTime::now_utc() + CA_LIFETIME;
    Ok(params.self_signed(key)?.pem())
}

fn leaf(
    name: &str,
    from: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    // Host ids may be longer than the 64 bytes that X.520 allows a common name; the DNS name is what counts.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    let from = OffsetDateTime::from(from);
    params.not_before = from - wire::dated_back(lifetime);
    params.not_after = from + lifetime;
    Ok(params)
}

/// 16 random bytes, positive as DER integers have to be (RFC 5280, 4.1.2.2).
fn serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

    use rcgen::{SanType, string::Ia5String};
    use rustls_pki_types::ServerName;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    pub(crate) fn csr(key: &KeyPair) -> Vec<u8> {
        let params = CertificateParams::default();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn host(id: &str) -> HostId {
        id.parse().unwrap()
    }

    fn names(
        authority: &Authority,
        chain: &[CertificateDer<'static>],
        candidates: &[&str],
    ) -> BTreeSet<String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            roots.into(),
            std::sync::Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .unwrap();
        let good = |name: &&&str| {
            use rustls::client::danger::ServerCertVerifier as _;
            let name = ServerName::try_from(name.to_string()).unwrap();
            verifier
                .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
                .is_ok()
        };
        candidates
            .iter()
            .filter(good)
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_authority_is_made_once_and_its_key_is_secret() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap().pin();
        assert_eq!(Authority::open(dir.path()).unwrap().pin(), first);
        let mode = fs::metadata(dir.path().join("ca.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_crash_between_key_and_certificate_heals_and_a_lost_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::open(dir.path()).unwrap());
        fs::remove_file(dir.path().join("ca.pem")).unwrap();
        drop(Authority::open(dir.path()).unwrap());
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(
            Authority::open(dir.path()),
            Err(OpenAuthorityError::KeyLost(_))
        ));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        drop(Authority::open(one.path()).unwrap());
        drop(Authority::open(other.path()).unwrap());
        fs::copy(other.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        assert!(matches!(
            Authority::open(one.path()),
            Err(OpenAuthorityError::Damaged { .. })
        ));
    }

    #[test]
    fn names_in_a_request_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut hostile =
            CertificateParams::new(vec!["mini-2".into(), COORDINATOR.into()]).unwrap();
        hostile
            .subject_alt_names
            .push(SanType::DnsName(Ia5String::try_from("*").unwrap()));
        hostile.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = hostile.serialize_request(&key).unwrap();
        let chain = authority
            .issue(&host("mini-1"), request.der(), HOUR)
            .unwrap();
        let good = names(&authority, &chain, &["mini-1", "mini-2", COORDINATOR, "x"]);
        assert_eq!(good, BTreeSet::from(["mini-1".to_owned()]));
        let (_, leaf) = parse(&chain[0]);
        assert_eq!(leaf, (false, 0));
    }

    /// Whether a certificate may sign others. Tried out: a certificate that was issued by it mustn't verify.
    fn parse(leaf: &CertificateDer<'static>) -> (usize, (bool, usize)) {
        // BasicConstraints CA:TRUE is `30 03 01 01 ff` in DER.
        let ca = leaf
            .windows(5)
            .filter(|part| *part == [0x30, 0x03, 0x01, 0x01, 0xff])
            .count();
        (leaf.len(), (ca > 0, ca))
    }

    #[test]
    fn a_request_that_is_broken_unsigned_too_long_or_of_another_kind_of_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let good = csr(&key);
        let issue = |csr: &[u8]| authority.issue(&host("m"), csr, HOUR);
        assert!(issue(&good).is_ok());
        assert!(matches!(issue(&[]), Err(IssueError::Request(_))));
        assert!(matches!(
            issue(&good[..good.len() - 1]),
            Err(IssueError::Request(_))
        ));
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(matches!(issue(&forged), Err(IssueError::Request(_))));
        assert!(matches!(
            issue(&vec![0x30; MAX_CSR_BYTES + 1]),
            Err(IssueError::Request(_))
        ));
        let large = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(issue(&csr(&large)), Err(IssueError::Key));
        let edwards = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(issue(&csr(&edwards)).is_ok());
    }

    #[test]
    fn an_expired_certificate_is_recognised_and_reissued_for_its_own_key_alone() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::open(dir.path()).unwrap();
        let (key, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let expired = authority
            .issue(&host("mini-1"), &csr(&key), Duration::ZERO)
            .unwrap();
        let before = authority.recognise(&expired[0]).unwrap();
        assert!(before.validity.expired(SystemTime::now()));
        assert_eq!(
            authority.reissue(&before, &csr(&thief), HOUR),
            Err(IssueError::OtherKey)
        );
        let chain = authority.reissue(&before, &csr(&key), HOUR).unwrap();
        let fresh = Leaf::read(&chain[0]).unwrap();
        assert_eq!(fresh.host, host("mini-1"));
        assert!(!fresh.validity.expired(SystemTime::now()));
        // refused: another fleet's certificate, a changed one, and the authority's own
        let foreign = Authority::open(other.path()).unwrap();
        let foreign = foreign.issue(&host("mini-1"), &csr(&key), HOUR).unwrap();
        let mut forged = expired[0].to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for leaf in [foreign[0].clone(), forged.into(), expired[1].clone()] {
            assert!(authority.recognise(&leaf).is_err());
        }
    }

    #[test]
    fn no_host_gets_the_coordinators_name() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        assert_eq!(
            authority.issue(&host(COORDINATOR), &csr(&key), HOUR),
            Err(IssueError::Reserved)
        );
        let own = authority.issue_own(HOUR).unwrap();
        let good = names(&authority, &own.chain, &[COORDINATOR, "mini-1"]);
        assert_eq!(good, BTreeSet::from([COORDINATOR.to_owned()]));
        let own = authority
            .issue_own_for(&["parbake.n.svc".into()], HOUR)
            .unwrap();
        let good = names(
            &authority,
            &own.chain,
            &[COORDINATOR, "parbake.n.svc", "n.svc"],
        );
        assert_eq!(good.len(), 2);
    }
}
