//! How clients reach the coordinator's API: over TLS, trusting the one authority whose pin they were given. The API is
//! recognised by the coordinator's own name, at whatever address it is reached.
//!
//! HTTP itself is left to this module's users.

use std::{io, sync::Arc};

use proto::{Digest, digest::ParseDigestError};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    clock::{Untimely, utc},
    credentials::provider,
};

/// Reads a pin as people type it: 64 hex digits in either case, with or without `sha256:` before them.
///
/// # Errors
/// When the text isn't such a pin.
pub fn parse_pin(typed: &str) -> Result<Digest, ParseDigestError> {
    let lower = typed.trim().to_ascii_lowercase();
    format!("sha256:{}", lower.trim_start_matches("sha256:")).parse()
}

/// Why an address of the API can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiAddressError {
    /// The address has the scheme `http://`. The API is never used without TLS.
    #[error("--api has to be https://host:port, not {0}: the API speaks TLS only; use https://")]
    Plain(String),
    /// The address is neither `https://host:port` nor `host:port`.
    #[error("--api has to be https://host:port, not {0}")]
    Malformed(String),
}

/// The `host:port` in the API's URL. The scheme `https://` may be left out.
///
/// # Errors
/// When the URL isn't `https://host:port`.
pub fn api_address(typed: &str) -> Result<&str, ApiAddressError> {
    let url = typed.trim();
    if url
        .get(..7)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"))
    {
        return Err(ApiAddressError::Plain(url.to_owned()));
    }
    let address = url.strip_prefix("https://").unwrap_or(url);
    let address = address.trim_end_matches('/');
    let usable = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    match usable && !address.contains('/') {
        true => Ok(address),
        false => Err(ApiAddressError::Malformed(url.to_owned())),
    }
}

/// Why there is no TLS connection with the API.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Another server answers, or the pin is that of another fleet.
    #[error("it isn't the coordinator with this pin; compare with `parbake-coordinator pin`: {0}")]
    Stranger(Error),
    /// The server has the pinned authority's certificate, or says so, but by this machine's clock that certificate
    /// isn't valid.
    #[error(
        "its certificate {}, and this machine's clock shows {}; set the clock that is wrong",
        .0.bound, utc(.0.clock)
    )]
    Untimely(Untimely),
    /// The connection broke, or the server doesn't speak TLS. Remedy: check the address, and try again.
    #[error("the TLS handshake broke off: {0}")]
    Broken(io::Error),
}

impl HandshakeError {
    /// The meaning of a handshake's error.
    #[must_use]
    pub fn of(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        match tls {
            Some(tls) => match (Untimely::of(tls), tls) {
                (Some(times), _) => Self::Untimely(times),
                (None, Error::InvalidCertificate(_)) => Self::Stranger(tls.clone()),
                (None, _) => Self::Broken(error),
            },
            None => Self::Broken(error),
        }
    }
}

/// A TLS client that accepts only servers with a certificate of the one authority with this pin.
///
/// # Panics
/// Never: the provider has suites of TLS 1.3.
#[must_use]
pub fn pinned(pin: Digest) -> ClientConfig {
    let provider = Arc::new(provider());
    let verifier = Pinned {
        pin,
        provider: provider.clone(),
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Accepts a chain that leads, by the ordinary rules, to the one authority with this pin. The chain must contain the
/// authority.
#[derive(Debug)]
struct Pinned {
    pin: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.pin)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 isn't spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_api_is_a_host_with_a_port_and_speaks_tls() {
        for (typed, expected) in [
            (
                "https://parbake.example.com:7470/",
                "parbake.example.com:7470",
            ),
            ("10.0.0.1:7470", "10.0.0.1:7470"),
            ("https://[::1]:7470", "[::1]:7470"),
        ] {
            assert_eq!(api_address(typed).unwrap(), expected);
        }
        for bad in [
            "https://parbake.example.com",
            "parbake:x",
            "https://a:70000",
            ":7470",
            "a/b:1",
            "",
        ] {
            let error = api_address(bad).unwrap_err();
            assert!(matches!(error, ApiAddressError::Malformed(_)), "{bad}");
        }
        for plain in ["http://10.0.0.1:7470", "HTTP://a:1"] {
            let error = api_address(plain).unwrap_err().to_string();
            assert!(error.ends_with("use https://"), "{error}");
        }
    }

    #[test]
    fn a_pin_is_taken_in_either_case() {
        let pin = Digest::of(b"authority");
        let hex = pin.hex().to_string();
        for typed in [
            hex.clone(),
            hex.to_uppercase(),
            format!(" sha256:{hex}\n"),
            format!("SHA256:{}", hex.to_uppercase()),
        ] {
            assert_eq!(parse_pin(&typed).unwrap(), pin, "{typed}");
        }
        assert!(parse_pin(&hex[1..]).is_err());
        assert!(parse_pin("").is_err());
    }

    #[test]
    fn a_wrong_clock_isnt_taken_for_a_wrong_pin_nor_a_broken_line() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let said = |error: Error| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            HandshakeError::of(error).to_string()
        };
        let early = CertificateError::NotValidYetContext {
            time: at(1_761_314_712),
            not_before: at(1_795_874_712),
        };
        assert_eq!(
            said(Error::InvalidCertificate(early)),
            "its certificate begins 2026-11-28 14:05:12 UTC, and this machine's clock shows 2025-10-24 14:05:12 UTC; \
             set the clock that is wrong"
        );
        let stranger = said(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        assert!(
            stranger.contains("isn't the coordinator with this pin"),
            "{stranger}"
        );
        let plain = said(Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType,
        ));
        assert!(plain.contains("broke off"), "{plain}");
        let eof = HandshakeError::of(io::ErrorKind::UnexpectedEof.into()).to_string();
        assert!(eof.contains("broke off"), "{eof}");
    }
}
