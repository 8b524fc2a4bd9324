//! The client, which makes repositories.

use proto::RegistryReference;

use crate::{
    auth::Credentials,
    config::Config,
    error::{ConfigError, OriginError},
    location::PlainHttp,
    repository::Repository,
    transport::Transport,
};

/// Speaks HTTP/1.1 to registries, and keeps connections. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Client(Transport);

impl Client {
    /// A client without connections.
    ///
    /// # Errors
    /// When an extra root or the user agent can't be used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        Transport::new(config).map(Self)
    }

    /// The same client, with the same connections, but with other registries without TLS.
    #[must_use]
    pub fn with_plain_http(&self, plain_http: PlainHttp) -> Self {
        Self(self.0.with_plain_http(plain_http))
    }

    /// The repository that a reference names, for these credentials. Sends no request. Clones of the handle share their
    /// tokens, so keep one handle instead of making one for each call.
    ///
    /// # Errors
    /// When its registry isn't a host that an address can have.
    pub fn repository(
        &self,
        reference: &RegistryReference,
        credentials: Credentials,
    ) -> Result<Repository, OriginError> {
        Repository::new(self.0.clone(), reference, credentials)
    }
}
