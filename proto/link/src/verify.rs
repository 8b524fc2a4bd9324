//! What each side asks of the certificate that it is shown, and what it remembers of one that it refuses: TLS itself tells
//! only an alert.
//!
//! The chain is verified by webpki, as always. The name isn't compared by webpki but by us, so that both sides read the
//! identity by the same rule ([`crate::identity`]), a host id may be all digits (which webpki doesn't take for a DNS
//! name), and the host that answered instead is known.

use std::{
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use proto::HostId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    clock::Untimely,
    fault::Fault,
    identity::{self, Leaf},
};

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
        )
        .inspect_err(|error| {
            if let Some(times) = Untimely::of(error) {
                drop(self.fault.set(Fault::Expired(Some(times))));
            }
        })?;
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

/// Verifies who connects as another verifier does, and remembers of one connection who was refused, and why.
#[derive(Debug)]
pub(crate) struct Witness {
    verifier: Arc<dyn ClientCertVerifier>,
    refused: OnceLock<Refused>,
}

/// Who was refused for the certificate's time. Of others the name proves nothing.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// The host that the certificate names, if it is one of the fleet's authority.
    pub(crate) host: Option<HostId>,
    /// What is wrong with it.
    pub(crate) fault: Fault,
}

impl Witness {
    pub(crate) const fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self {
            verifier,
            refused: OnceLock::new(),
        }
    }

    /// Who was refused, where more is known than TLS tells.
    pub(crate) fn refused(&self) -> Option<Refused> {
        self.refused.get().cloned()
    }

    /// The host that this certificate names, if it was good at the beginning of its life: so it is the fleet's, and only
    /// its time is wrong. Whether the other side holds its key isn't known; nothing but words is made of it.
    fn named(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<HostId> {
        let read = Leaf::read(leaf).ok()?;
        let issued = read.validity.issued;
        let issued = issued.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let then = UnixTime::since_unix_epoch(issued);
        let verified = self.verifier.verify_client_cert(leaf, intermediates, then);
        verified.is_ok().then_some(read.host)
    }
}

impl ClientCertVerifier for Witness {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(leaf, intermediates, now);
        verified.inspect_err(|error| {
            if let Some(times) = Untimely::of(error) {
                // a handshake shows one certificate; were there a second verdict, the first would stand
                drop(self.refused.set(Refused {
                    host: self.named(leaf, intermediates),
                    fault: Fault::Expired(Some(times)),
                }));
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
