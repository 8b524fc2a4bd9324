//! Reads a host's identity from its certificate: the single DNS name among the leaf's subject alternative names. Also
//! reads from when to when the certificate is valid.

use std::time::{Duration, SystemTime};

use proto::HostId;
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer as _, ParsedExtension},
};

/// A certificate that doesn't name exactly one host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes aren't an X.509 certificate. Remedy: have the host enrol again.
    #[error("certificate isn't X.509")]
    Malformed,
    /// The certificate carries no DNS name, or more than one name. Remedy: use a certificate of the coordinator's
    /// authority, which writes exactly one name.
    #[error("certificate names {0} hosts instead of one (its subject alternative names)")]
    Names(usize),
    /// The only name isn't a host id. Remedy: enrol the host under a DNS-1123 name.
    #[error("certificate's name isn't a host id: {0:?}")]
    NotAHost(String),
}

/// The host that this leaf certificate names.
///
/// Only reads the certificate. The caller checks its signature.
pub(crate) fn host(leaf: &CertificateDer<'_>) -> Result<HostId, IdentityError> {
    let certificate = parse(leaf)?;
    let mut names = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.iter()),
            _ => None,
        })
        .flatten();
    let (first, more) = (names.next(), names.count());
    match first {
        Some(GeneralName::DNSName(name)) if more == 0 => name
            .parse()
            .map_err(|_| IdentityError::NotAHost((*name).to_owned())),
        Some(_) => Err(IdentityError::Names(more + 1)),
        None => Err(IdentityError::Names(0)),
    }
}

/// What a host's leaf certificate says, expired or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The host that the certificate names.
    pub host: HostId,
    /// From when to when the certificate is valid.
    pub validity: Validity,
    /// The bits of the public key, as in the certificate's SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

impl Leaf {
    /// Reads a leaf certificate. The caller checks its signature.
    ///
    /// # Errors
    /// When the bytes aren't a certificate of exactly one host.
    pub fn read(leaf: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let host = host(leaf)?;
        let certificate = parse(leaf)?;
        let validity = certificate.validity();
        Ok(Self {
            host,
            validity: Validity {
                issued: time(validity.not_before.timestamp()),
                expires: time(validity.not_after.timestamp()),
            },
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }
}

/// From when to when a certificate is valid. This also decides when the certificate is renewed.
///
/// A program that renews its certificate looks at the wall clock every [`look_every`](Self::look_every). One long sleep
/// would miss a change of the clock. It would also miss the nights of a machine whose timers stop while the machine
/// sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The certificate isn't valid before this time. The authority sets it a little before the time of signing: see
    /// [`signed`](Self::signed).
    pub issued: SystemTime,
    /// From this time on, every handshake is refused. Connections that stand go on.
    pub expires: SystemTime,
}

/// A host whose clock is behind by less than this accepts a fresh certificate. For a short-lived certificate this is
/// less, so that most of its life still lies ahead.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// By how much the authority dates back a certificate that is valid for `lifetime`. This is in whole seconds, as in
/// certificates, and at least one second: a certificate would otherwise begin only with the next second.
#[must_use]
pub fn dated_back(lifetime: Duration) -> Duration {
    Duration::from_secs(CLOCK_SKEW.min(lifetime / 12).as_secs().max(1))
}

/// The longest pause between two checks whether a renewal is due.
const LOOK_EVERY: Duration = Duration::from_mins(1);

impl Validity {
    /// When the certificate was signed, to the second: the authority [dates certificates back](dated_back).
    #[must_use]
    pub fn signed(&self) -> SystemTime {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        // the whole life is the lifetime and a twelfth of it
        self.issued + dated_back(life * 12 / 13)
    }

    /// Whether two thirds of the certificate's life are over.
    #[must_use]
    pub fn renewal_due(&self, now: SystemTime) -> bool {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        now >= self.expires - life / 3
    }

    /// Whether the certificate has expired.
    #[must_use]
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.expires
    }

    /// The pause between two checks, and between two attempts: a minute, or a tenth of a shorter life, but at least a
    /// second.
    #[must_use]
    pub fn look_every(&self) -> Duration {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        LOOK_EVERY.min((life / 10).max(Duration::from_secs(1)))
    }
}

fn time(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        // a date that the platform's clock can't express becomes the last date that it can
        Ok(seconds) => SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX))),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_certificate_was_signed_shows_whatever_its_lifetime() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for seconds in (0..200).chain([3_599, 3_600, 3_601, 86_400, 2_592_000]) {
            let lifetime = Duration::from_secs(seconds);
            let validity = Validity {
                issued: now - dated_back(lifetime),
                expires: now + lifetime,
            };
            assert_eq!(validity.signed(), now, "{seconds} s");
        }
    }

    #[test]
    fn a_renewal_is_due_when_two_thirds_of_a_life_are_over() {
        let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let validity = |seconds| Validity {
            issued,
            expires: issued + Duration::from_secs(seconds),
        };
        let (day, second) = (validity(86_400), Duration::from_secs(1));
        let due = issued + Duration::from_secs(57_600);
        assert!(!day.renewal_due(due - second) && day.renewal_due(due));
        assert!(!day.expired(day.expires - second) && day.expired(day.expires));
        // a clock that was set ahead, or back before the certificate's first moment
        assert!(day.renewal_due(day.expires + Duration::from_hours(10_000)));
        assert!(!day.renewal_due(SystemTime::UNIX_EPOCH));
        assert_eq!(day.look_every(), Duration::from_mins(1));
        assert_eq!(validity(60).look_every(), Duration::from_secs(6));
        assert_eq!(validity(0).look_every(), second);
    }
}
