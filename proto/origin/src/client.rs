//! The client: where repositories come from.

use oci_spec::distribution::Reference;

use crate::{
    auth::Credentials,
    config::Config,
    error::{ConfigError, OriginError},
    location::PlainHttp,
    repository::Repository,
    transport::Transport,
};

/// Speaks HTTP/1.1 to registries and keeps connections. Clones share them.
#[derive(Clone, Debug)]
pub struct Client(Transport);

impl Client {
    /// A client with no connections yet.
    ///
    /// # Errors
    /// When an extra root or the user agent can't be used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Transport::new(config).map(Self)
    }

    /// The same client, with the same connections, for other registries without TLS.
    #[must_use]
    pub fn with_plain_http(&self, plain_http: PlainHttp) -> Self {
        Self(self.0.with_plain_http(plain_http))
    }

    /// The repository that a reference names, for these credentials. Nothing is asked yet. Clones of the handle share
    /// their tokens, so keep one rather than making another for each call.
    ///
    /// # Errors
    /// When the reference's digest isn't SHA-256, or its registry isn't a host.
    pub fn repository(
        &self,
        reference: &Reference,
        credentials: Credentials,
    ) -> Result<Repository, OriginError> {
        Repository::new(self.0.clone(), reference, credentials)
    }
}
