//! Why a handshake was refused, in the words of each side.

use std::{fmt, time::SystemTime};

use proto::HostId;
use quinn::TransportErrorCode;

use crate::{
    clock::{Untimely, utc},
    identity::IdentityError,
};

/// What one side of a handshake has against the other. Both the side that refuses and the side that is refused use
/// these values: [`Fault::of_peer`] and [`Fault::of_us`] give the text for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The certificate has expired, or isn't valid yet. It wasn't renewed in time, or one of the clocks is wrong. The
    /// side that refuses knows the times. The other side knows them if it was told.
    Expired(Option<Untimely>),
    /// The other side doesn't trust the authority of the certificate. It belongs to another fleet, or one side missed a
    /// change of the authority.
    ForeignAuthority,
    /// The side showed no certificate, so it isn't a parbake host.
    NoCertificate,
    /// The certificate may not be used for this purpose (extended key usage), or is damaged.
    Certificate,
    /// The other side doesn't speak `parbake/1`. It is another program, or has another major version.
    Protocol,
    /// Another host answered than the one that was meant. The side that refuses knows the host's name.
    WrongHost(Option<HostId>),
    /// The certificate doesn't name exactly one host. The side that refuses knows the details.
    Identity(Option<IdentityError>),
    /// The host isn't on the other side's list of authorised hosts.
    Unauthorised,
    /// The host has enrolled again, or was readmitted, since the certificate was signed. The side that shows it may
    /// have stolen its key. The refused side gets this as [`Self::Unauthorised`], with words.
    Superseded,
    /// The other side has as many connections or handshakes as it allows. It may have room later.
    Busy,
    /// Another error of TLS or QUIC.
    Other(String),
}

/// TLS alerts (RFC 8446 §6, RFC 7301 §3.2): QUIC carries them as 0x100 + alert (RFC 9001 §4.8).
mod alert {
    pub(super) const BAD_CERTIFICATE: u64 = 42;
    pub(super) const UNSUPPORTED_CERTIFICATE: u64 = 43;
    pub(super) const CERTIFICATE_EXPIRED: u64 = 45;
    pub(super) const CERTIFICATE_UNKNOWN: u64 = 46;
    pub(super) const UNKNOWN_CA: u64 = 48;
    pub(super) const ACCESS_DENIED: u64 = 49;
    pub(super) const DECODE_ERROR: u64 = 50;
    pub(super) const DECRYPT_ERROR: u64 = 51;
    pub(super) const CERTIFICATE_REQUIRED: u64 = 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = 120;
}

/// The alert that tells a host that another host was meant. See [`crate::verify`].
const WRONG_HOST: u64 = alert::ACCESS_DENIED;

impl Fault {
    /// The meaning of a QUIC close during the handshake. `said` is the close's reason.
    pub(crate) fn from_transport(code: TransportErrorCode, said: &str) -> Self {
        if code == TransportErrorCode::CONNECTION_REFUSED {
            return Self::Busy;
        }
        let code = u64::from(code);
        match code.wrapping_sub(0x100) {
            alert::CERTIFICATE_EXPIRED => Self::Expired(Untimely::said(said)),
            alert::UNKNOWN_CA | alert::DECRYPT_ERROR => Self::ForeignAuthority,
            alert::CERTIFICATE_REQUIRED => Self::NoCertificate,
            alert::NO_APPLICATION_PROTOCOL => Self::Protocol,
            WRONG_HOST => Self::WrongHost(None),
            alert::BAD_CERTIFICATE
            | alert::UNSUPPORTED_CERTIFICATE
            | alert::CERTIFICATE_UNKNOWN
            | alert::DECODE_ERROR => Self::Certificate,
            _ if said.is_empty() => Self::Other(format!("QUIC error 0x{code:x}")),
            _ => Self::Other(clean(said)),
        }
    }

    /// The name for logs and machines.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Expired(_) => "expired",
            Self::ForeignAuthority => "foreign_authority",
            Self::NoCertificate => "no_certificate",
            Self::Certificate => "certificate",
            Self::Protocol => "protocol",
            Self::WrongHost(_) => "wrong_host",
            Self::Identity(_) => "identity",
            Self::Unauthorised => "unauthorised",
            Self::Superseded => "superseded",
            Self::Busy => "busy",
            Self::Other(_) => "other",
        }
    }

    /// The text for the side that refuses: what is wrong with the peer, and what to do.
    #[must_use]
    pub fn of_peer(&self) -> impl fmt::Display {
        match self {
            Self::Expired(Some(times)) => format!(
                "its certificate {}, and by the clock here it is {}; \
                 set the clock that is wrong, or have it renew its certificate or enrol again",
                times.bound,
                utc(times.clock)
            ),
            Self::Expired(None) => "its certificate has expired or isn't valid yet; \
                 check both clocks, and have it renew its certificate or enrol again"
                .to_owned(),
            Self::ForeignAuthority => "its certificate isn't of an authority that we trust; \
                 have it enrol with this fleet's coordinator"
                .to_owned(),
            Self::NoCertificate => {
                "it shows no certificate; only enrolled hosts may connect".to_owned()
            }
            Self::Certificate => "its certificate is damaged or not meant for this use; \
                 have it enrol with this fleet's coordinator"
                .to_owned(),
            Self::Protocol => "it doesn't speak parbake/1; \
                 check that the address is parbake's and that the versions fit"
                .to_owned(),
            Self::WrongHost(Some(host)) => format!(
                "another host answers at that address: {host}; check the address in the roster"
            ),
            Self::WrongHost(None) => {
                "another host answers at that address; check the address in the roster".to_owned()
            }
            Self::Identity(Some(cause)) => format!("{cause}; have it enrol again"),
            Self::Identity(None) => {
                "its certificate doesn't name one host; have it enrol again".to_owned()
            }
            Self::Unauthorised => "it isn't on the list of authorised hosts; \
                 add it to the fleet, if it should be part of it"
                .to_owned(),
            Self::Superseded => {
                "its certificate is from before the host enrolled last or was readmitted; \
                 enrol it with a token"
                    .to_owned()
            }
            Self::Busy => "we have as many connections as we allow".to_owned(),
            Self::Other(said) => said.clone(),
        }
    }

    /// The text for the side that is refused: what the peer has against it, and what to do.
    #[must_use]
    pub fn of_us(&self) -> impl fmt::Display {
        match self {
            Self::Expired(Some(times)) => format!(
                "our certificate {}, and by its clock it is {}, by ours {}; \
                 set the clock that is wrong, or renew our certificate",
                times.bound,
                utc(times.clock),
                utc(SystemTime::now())
            ),
            Self::Expired(None) => "our certificate has expired or isn't valid yet; \
                 check both clocks, and renew the certificate or enrol again"
                .to_owned(),
            Self::ForeignAuthority => "it doesn't trust the authority of our certificate; \
                 enrol with the coordinator of its fleet"
                .to_owned(),
            Self::NoCertificate => "it wants a certificate; enrol with its coordinator".to_owned(),
            Self::Certificate => "it finds our certificate damaged or not meant for this use; \
                 enrol with the coordinator of its fleet"
                .to_owned(),
            Self::Protocol => "it doesn't speak parbake/1; \
                 check that the address is parbake's and that the versions fit"
                .to_owned(),
            Self::WrongHost(_) => {
                "it meant to reach another host; check our address in its roster".to_owned()
            }
            Self::Identity(_) => {
                "it finds that our certificate doesn't name one host; enrol again".to_owned()
            }
            Self::Unauthorised => "we aren't on its list of authorised hosts; \
                 add this host to the fleet, and wait for the coordinator's next roster"
                .to_owned(),
            Self::Superseded => {
                "our certificate is from before this host enrolled last or was readmitted; \
                 enrol it with a token"
                    .to_owned()
            }
            Self::Busy => "it has as many connections as it allows; try again later".to_owned(),
            Self::Other(said) => said.clone(),
        }
    }
}

/// A peer's words, made fit for a log line: cut, and without control characters.
pub(crate) fn clean(said: &str) -> String {
    /// Longer than any reason that parbake gives, short enough for a line.
    const MAX_CHARS: usize = 200;
    said.chars()
        .take(MAX_CHARS)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}

/// As [`clean`], for bytes that should be UTF-8.
pub(crate) fn clean_bytes(said: &[u8]) -> String {
    // a character has four bytes at most, so no more bytes than this matter
    clean(&String::from_utf8_lossy(&said[..said.len().min(800)]))
}
