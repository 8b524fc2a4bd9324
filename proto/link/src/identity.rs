//! From a certificate to a host id: the single DNS name among the leaf's subject alternative names.

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

/// When this leaf certificate stops being valid.
pub(crate) fn expires(leaf: &CertificateDer<'_>) -> Result<SystemTime, IdentityError> {
    let seconds = parse(leaf)?.validity().not_after.timestamp();
    Ok(match u64::try_from(seconds) {
        // a date past what the platform's clock can say is as good as the end of it
        Ok(seconds) => SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX))),
        Err(_) => SystemTime::UNIX_EPOCH,
    })
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(leaf) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::Malformed),
    }
}
