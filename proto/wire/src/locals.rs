//! The names of a server that listens on loopback.
//!
//! A web page can use any host name, and that name's server can answer that the name means 127.0.0.1 (DNS rebinding).
//! The browser then takes the local server for the page's own and lets the page read its answers. But the browser sends
//! the true name as `Host`, and the page can't change that.

use std::{collections::BTreeSet, net::IpAddr};

/// Names by which a server on loopback may be asked, beyond `localhost` and IP addresses. No web page's name is among
/// these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNames(BTreeSet<String>);

impl LocalNames {
    /// Accepts these names, without port.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let names = names.into_iter();
        Self(names.map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request for this host means this server. The host may have a port.
    #[must_use]
    pub fn admits(&self, authority: &str) -> bool {
        let (host, rest) = match authority.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((host, rest)) if host.contains(':') => (host, rest),
                _ => return false,
            },
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let port = rest.strip_prefix(':');
        let sound = port.map_or(rest.is_empty(), |port| {
            port.bytes().all(|byte| byte.is_ascii_digit())
        });
        let host = host.to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        sound && (host == "localhost" || host.parse::<IpAddr>().is_ok() || self.0.contains(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_localhost_and_configured_names_are_admitted() {
        let names = LocalNames::new(["Mirror.Local".to_owned()]);
        for good in [
            "127.0.0.1",
            "127.0.0.1:7474",
            "localhost:1",
            "LOCALHOST",
            "localhost.",
            "[::1]",
            "[::1]:7474",
            "10.0.0.7:80",
            "mirror.local:7474",
        ] {
            assert!(names.admits(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:7474",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost:1@evil.example",
            "127.0.0.1:x",
            "[::1",
            "[localhost]",
            "[::1]evil.example",
            "mirror.local.evil.example",
        ] {
            assert!(!names.admits(bad), "{bad}");
        }
        assert!(!LocalNames::default().admits("mirror.local"));
    }
}
