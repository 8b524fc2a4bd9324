//! How each side checks the certificate that the other side shows, and what each side remembers about a certificate
//! that it refuses: TLS itself tells only an alert.
//!
//! webpki verifies the chain. This module compares the name itself, for three reasons. Both sides then read the
//! identity by the same rule ([`crate::identity`]). A host id may consist of digits, which webpki doesn't accept as a
//! DNS name. And the name of a host that answered instead is then known.

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

/// Accepts one host of the fleet, and remembers what is wrong with any other.
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

    /// What is wrong with the side that answered, where the TLS alert alone doesn't say that.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get().cloned()
    }

    /// Refuses with an alert that [`Fault::from_transport`] reads as a wrong host or a bad identity.
    fn refuse(&self, fault: Fault, error: CertificateError) -> Error {
        // a handshake shows one certificate; if there were a second verdict, the first would stay
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

/// Verifies those who connect, by another verifier. Remembers which host was refused on its connection, and why.
#[derive(Debug)]
pub(crate) struct Witness {
    verifier: Arc<dyn ClientCertVerifier>,
    refused: OnceLock<Refused>,
}

/// A host that was refused because of its certificate's time. For other refusals, the name in the certificate proves
/// nothing.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// The host that the certificate names, if the fleet's authority issued the certificate.
    pub(crate) host: Option<HostId>,
    /// What is wrong with the certificate.
    pub(crate) fault: Fault,
}

impl Witness {
    pub(crate) const fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self {
            verifier,
            refused: OnceLock::new(),
        }
    }

    /// The refused host, where more is known than TLS tells.
    pub(crate) fn refused(&self) -> Option<Refused> {
        self.refused.get().cloned()
    }

    /// The host that this certificate names, if the certificate was valid at the beginning of its life. Then it is the
    /// fleet's, and only its time is wrong. Nobody knows whether the other side holds the certificate's key, so the
    /// name is used only in messages.
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
                // a handshake shows one certificate; if there were a second verdict, the first would stay
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
