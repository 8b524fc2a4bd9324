//! Addresses of requests: which hosts may be asked without TLS, and what a `Location` means.

use std::collections::BTreeSet;

use http::{Uri, uri::Scheme};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Which registries are asked over plain HTTP. All others are asked over HTTPS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// No registry.
    #[default]
    Nowhere,
    /// These registries. Each is `host` (any port) or `host:port`.
    Hosts(BTreeSet<String>),
    /// All registries. For tests.
    Everywhere,
}

impl PlainHttp {
    /// Whether this `host:port` or `host` may be asked without TLS.
    #[must_use]
    pub fn allows(&self, authority: &str) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Everywhere => true,
            Self::Hosts(hosts) => {
                let host = authority
                    .rsplit_once(':')
                    .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
                    .map_or(authority, |(host, _)| host);
                hosts.contains(authority) || hosts.contains(host)
            }
        }
    }
}

/// The host of a URI, with its port if one is written. Used in errors and for [`PlainHttp`].
pub(crate) fn authority(uri: &Uri) -> String {
    match (uri.host(), uri.port_u16()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

/// Whether both URIs lead to the same server, so that credentials for one may be sent to the other.
pub(crate) fn same_server(one: &Uri, other: &Uri) -> bool {
    let server = |uri: &Uri| {
        let port = uri
            .port_u16()
            .or_else(|| (uri.scheme() == Some(&Scheme::HTTP)).then_some(80))
            .unwrap_or(443);
        (
            uri.scheme().cloned(),
            uri.host().map(str::to_ascii_lowercase),
            port,
        )
    };
    server(one) == server(other)
}

/// Resolves a `Location` header (RFC 9110 §10.2.2) against the URI of its request. `None` when the result isn't an
/// HTTP address.
pub(crate) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else if location
        .split(['/', '?'])
        .next()
        .is_some_and(|first| first.contains(':'))
    {
        location.to_owned()
    } else {
        let directory = base
            .path()
            .rsplit_once('/')
            .map_or("", |(before, _)| before);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let uri: Uri = absolute.parse().ok()?;
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    // Credentials inside a URL aren't sent.
    let plain = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
    (http && plain && uri.host().is_some_and(|host| !host.is_empty())).then_some(uri)
}

/// The characters that are escaped in a query: all but unreserved characters, slashes and colons (RFC 3986 §3.4).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/')
    .remove(b':');

/// The text, escaped as part of a query.
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_allowed_by_host_or_by_port() {
        assert!(!PlainHttp::default().allows("127.0.0.1:5000"));
        assert!(PlainHttp::Everywhere.allows("ghcr.io"));
        let some = PlainHttp::Hosts(["mac-1".to_owned(), "127.0.0.1:5000".to_owned()].into());
        assert!(some.allows("mac-1") && some.allows("mac-1:80"));
        assert!(some.allows("127.0.0.1:5000"));
        assert!(!some.allows("127.0.0.1:5001") && !some.allows("127.0.0.1"));
        assert!(!some.allows("mac-1.example.com"));
    }

    #[test]
    fn a_location_is_resolved_in_all_its_forms() {
        let base: Uri = "https://r.example:5000/v2/a/blobs/x?y=1".parse().unwrap();
        let to = |location| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(
            to("https://cdn.example/b?c=d#e").as_deref(),
            Some("https://cdn.example/b?c=d")
        );
        assert_eq!(to("/b?c").as_deref(), Some("https://r.example:5000/b?c"));
        assert_eq!(to("//cdn/b").as_deref(), Some("https://cdn/b"));
        assert_eq!(
            to("b/c").as_deref(),
            Some("https://r.example:5000/v2/a/blobs/b/c")
        );
        assert_eq!(
            to("?z").as_deref(),
            Some("https://r.example:5000/v2/a/blobs/x?z")
        );
        assert_eq!(to("file:///etc/passwd"), None);
        assert_eq!(to("ftp://host/x"), None);
        assert_eq!(to("https://user:secret@host/"), None);
        assert_eq!(to("https:///x"), None);
        assert_eq!(to("https://ho st/"), None);
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let same =
            |one: &str, other: &str| same_server(&one.parse().unwrap(), &other.parse().unwrap());
        assert!(same("https://a/x", "https://A:443/y"));
        assert!(same("http://a/x", "http://a:80/"));
        assert!(!same("https://a/", "http://a/"));
        assert!(!same("https://a/", "https://a:5000/"));
        assert!(!same("https://a/", "https://b.a/"));
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            escape("repository:a/b:pull,push&x=ü"),
            "repository:a/b:pull%2Cpush%26x%3D%C3%BC"
        );
    }
}
