//! Stateless reset (RFC 9000 §10.3): how a restarted endpoint tells its peers that their connections are gone.
//!
//! Each connection ID that an endpoint gives out has a token, which only the endpoint can compute. When a packet comes
//! for an unknown connection, the endpoint answers with the token of the packet's connection ID. The peer then knows
//! that the connection has ended. So two secrets must outlive the process: the secret behind the tokens, and the key by
//! which the endpoint recognises its own connection IDs. Only the side that accepted a connection can reset it like
//! this. The other side gives out its tokens late, for connection IDs that aren't in use.

use std::{fmt, sync::Arc, time::Duration};

use quinn::EndpointConfig;
use quinn_proto::HashedConnectionIdGenerator;
use ring::{hkdf, hmac};
use zeroize::Zeroizing;

/// The shortest time between two resets of one endpoint. A reset is smaller than the packet that it answers, so this
/// interval needn't protect others; it limits the endpoint's own work. With 1 ms, a thousand hosts hear within about a
/// second that their coordinator was restarted.
const RESET_EVERY: Duration = Duration::from_millis(1);

/// The secret of an endpoint's reset tokens: 32 bytes that nobody can guess.
///
/// A program that knows the secret can end this endpoint's connections, and do nothing else. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ResetSecret(Zeroizing<[u8; 32]>);

impl ResetSecret {
    /// The secret with these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A secret that is derived from another secret of any length. `purpose` separates it from other secrets that are
    /// derived from the same one.
    #[must_use]
    pub fn derived(from: &[u8], purpose: &[u8]) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        expand(&extract(purpose, from), b"reset secret", &mut *bytes);
        Self(bytes)
    }
}

impl fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetSecret(redacted)")
    }
}

/// quinn's configuration of an endpoint, apart from its connections.
pub(crate) fn endpoint_config(mtu: u16, secret: Option<&ResetSecret>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(mtu)
        .expect("the settings keep it between 1,200 and 6,500");
    let Some(ResetSecret(secret)) = secret else {
        return config;
    };
    let secret = extract(b"parbake link", &secret[..]);
    let mut reset = Zeroizing::new([0; 32]);
    expand(&secret, b"reset key", &mut *reset);
    let mut cid = [0; 8];
    expand(&secret, b"connection ids", &mut cid);
    let cid = u64::from_be_bytes(cid);
    config
        .reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset[..])))
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid)))
        .min_reset_interval(RESET_EVERY);
    config
}

fn extract(salt: &[u8], secret: &[u8]) -> hkdf::Prk {
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret)
}

fn expand(secret: &hkdf::Prk, info: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    secret
        .expand(&[info], Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("at most 255 times the length of the hash is asked for");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_the_same_in_every_life_and_another_for_another_purpose() {
        let secret = ResetSecret::derived(b"key", b"parbake agent");
        assert_eq!(secret, ResetSecret::derived(b"key", b"parbake agent"));
        assert_ne!(secret, ResetSecret::derived(b"key", b"another"));
        assert_ne!(secret, ResetSecret::derived(b"other key", b"parbake agent"));
        assert_eq!(format!("{secret:?}"), "ResetSecret(redacted)");
    }
}
