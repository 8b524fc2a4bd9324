//! What the connecting side asks of the certificate that it is shown.
//!
//! The chain is verified by webpki, as always. The name isn't compared by webpki but by us, so that both sides read the
//! identity by the same rule ([`crate::identity`]), a host id may be all digits (which webpki doesn't take for a DNS
//! name), and the host that answered instead is known.

use std::sync::{Arc, OnceLock};

use proto::HostId;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{fault::Fault, identity};

/// Accepts one host of the fleet, and remembers what was wrong with any other.
#[derive(Debug)]
pub(crate) struct Expect {
    host: HostId,
    authorities: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    fault: OnceLock<Fault>,
}

impl Expect {
    pub(crate) fn new(
        host: HostId,
        authorities: Arc<RootCertStore>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        Self {
            host,
            authorities,
            algorithms,
            fault: OnceLock::new(),
        }
    }

    /// What was wrong with who answered, when it was something that the TLS alert alone doesn't say.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    /// Refuses with the alert that [`Fault::from_transport`] reads as the wrong host or a bad identity.
    fn refuse(&self, fault: Fault, error: CertificateError) -> Error {
        // a handshake shows one certificate; were there a second verdict, the first would stand
        drop(self.fault.set(fault));
        Error::InvalidCertificate(error)
    }
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.authorities,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match identity::host(leaf) {
            Ok(host) if host == self.host => Ok(ServerCertVerified::assertion()),
            // the alert is access_denied
            Ok(host) => Err(self.refuse(
                Fault::WrongHost(Some(host)),
                CertificateError::ApplicationVerificationFailure,
            )),
            Err(cause) => {
                Err(self.refuse(Fault::Identity(Some(cause)), CertificateError::BadEncoding))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
