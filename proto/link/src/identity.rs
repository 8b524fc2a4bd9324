//! From a certificate to a host id: the single DNS name among the leaf's subject alternative names; and how long it is good.

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
    /// The certificate carries no DNS name, or more than one name. Remedy: certificates have to come from the
    /// coordinator's authority, which writes exactly one.
    #[error("certificate names {0} hosts instead of one (its subject alternative names)")]
    Names(usize),
    /// The only name isn't a host id. Remedy: enrol the host under a DNS-1123 name.
    #[error("certificate's name isn't a host id: {0:?}")]
    NotAHost(String),
}

/// The host that this leaf certificate names.
///
/// Only reads the certificate: its signature has to be checked elsewhere.
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
    /// The host that it names.
    pub host: HostId,
    /// From when to when it is good.
    pub validity: Validity,
    /// The bits of its public key, as in its SubjectPublicKeyInfo.
    pub public_key: Vec<u8>,
}

impl Leaf {
    /// Reads a leaf certificate. Its signature has to be checked elsewhere.
    ///
    /// # Errors
    /// When it isn't a certificate of exactly one host.
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

/// From when to when a certificate is good, and so when it is renewed.
///
/// Whoever renews looks at the wall clock every [`look_every`](Self::look_every): one long sleep would miss a clock that was set, and
/// the nights of a machine whose timers stand still while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// It isn't good before. Somewhat earlier than it was signed: see [`signed`](Self::signed).
    pub issued: SystemTime,
    /// From then on every handshake is refused; connections that stand go on.
    pub expires: SystemTime,
}

/// A host whose clock is behind by less than this accepts a fresh certificate; a short-lived one bears less, so that most
/// of its life is still before it.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// By how much a certificate that is good for `lifetime` is dated back by the authority that signs it. Whole seconds, as
/// certificates have them, and one at least: one that counts from the next second on is good at once.
#[must_use]
pub fn dated_back(lifetime: Duration) -> Duration {
    Duration::from_secs(CLOCK_SKEW.min(lifetime / 12).as_secs().max(1))
}

/// The longest pause between two looks at whether a renewal is due.
const LOOK_EVERY: Duration = Duration::from_mins(1);

impl Validity {
    /// When it was signed, to the second: certificates are [dated back](dated_back).
    #[must_use]
    pub fn signed(&self) -> SystemTime {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        // its lifetime and a twelfth of that
        self.issued + dated_back(life * 12 / 13)
    }

    /// Whether two thirds of its life are over.
    #[must_use]
    pub fn renewal_due(&self, now: SystemTime) -> bool {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        now >= self.expires - life / 3
    }

    /// Whether it isn't good any more.
    #[must_use]
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.expires
    }

    /// The pause between two looks, and between two attempts: a minute, or a tenth of a shorter life.
    #[must_use]
    pub fn look_every(&self) -> Duration {
        let life = self.expires.duration_since(self.issued).unwrap_or_default();
        LOOK_EVERY.min((life / 10).max(Duration::from_secs(1)))
    }
}

fn time(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        // a date past what the platform's clock can say is as good as the end of it
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
