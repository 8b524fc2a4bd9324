//! A host's identity: the name in its certificate, and a short key derived from that name.

use alloc::string::{String, ToString as _};
use core::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// A host's id: its Kubernetes Node name, where it has one. It is a DNS-1123 subdomain of at most 253 bytes, and the
/// DNS name in the host's certificate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(String);

/// The string isn't a host id. A host id is a DNS-1123 subdomain: lower-case letters, digits, `-` and `.`; labels of
/// 1–63 bytes that start and end with a letter or digit; 253 bytes in all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a host id (lower-case letters, digits, '-' and '.', as in a Kubernetes node name)")]
pub struct ParseHostIdError;

impl HostId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key derived from this id.
    #[must_use]
    pub fn key(&self) -> HostKey {
        HostKey::of(self)
    }
}

impl FromStr for HostId {
    type Err = ParseHostIdError;

    fn from_str(text: &str) -> Result<Self, ParseHostIdError> {
        let label = |label: &str| {
            let bytes = label.as_bytes();
            let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            (1..=63).contains(&bytes.len())
                && bytes.first().is_some_and(edge)
                && bytes.last().is_some_and(edge)
                && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
        };
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(Self(text.to_string()))
        } else {
            Err(ParseHostIdError)
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host's key: the first eight bytes, big-endian, of the SHA-256 of its id.
///
/// A key is cheap to compare, and the same in every program and after every restart. The coordinator refuses a second
/// host with the same key, so a key names one host of the fleet. With 1,000 hosts, the chance of such a pair is 1 in 3
/// × 10^13.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostKey(pub u64);

impl HostKey {
    /// The key of this host id.
    #[must_use]
    pub fn of(host: &HostId) -> Self {
        let hash: [u8; 32] = Sha256::digest(host.0.as_bytes()).into();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_host_ids_and_nothing_else_is() {
        for good in ["m", "mac-mini-07", "mini7.rack2.example.com", "0"] {
            assert!(good.parse::<HostId>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a..b",
            ".a",
            "a.",
            "a_b",
            "a/b",
            "a b",
            "../a",
            long.as_str(),
        ] {
            assert!(bad.parse::<HostId>().is_err(), "{bad}");
        }
    }
}
