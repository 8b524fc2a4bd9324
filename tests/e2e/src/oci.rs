//! A registry's client that isn't ours: oci-client pushes what tests need in a registry, and pulls as other people's
//! tools do.

use oci_client::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use proto::RegistryReference;

/// A client for registries on loopback, which speak plain HTTP. It pushes a blob by one request.
#[must_use]
pub fn client() -> Client {
    // reqwest takes the process's provider; whoever comes first may have set one, of the same kind
    drop(rustls::crypto::ring::default_provider().install_default());
    Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        use_monolithic_push: true,
        ..ClientConfig::default()
    })
}

/// The same reference, as that client has it. A digest stands in the tag's place: the client writes the same address.
#[must_use]
pub fn reference(reference: &RegistryReference) -> Reference {
    Reference::with_tag(
        reference.registry().to_owned(),
        reference.repository().to_owned(),
        reference.version().to_string(),
    )
}

/// The same credentials, as that client has them.
#[must_use]
pub fn auth(credentials: &origin::Credentials) -> RegistryAuth {
    match credentials {
        origin::Credentials::Anonymous => RegistryAuth::Anonymous,
        origin::Credentials::Basic { user, password } => {
            RegistryAuth::Basic(user.clone(), password.expose().to_owned())
        }
        origin::Credentials::Header(header) => {
            let token = header.expose().trim_start_matches("Bearer ");
            RegistryAuth::Bearer(token.to_owned())
        }
    }
}
