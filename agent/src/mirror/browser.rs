//! Keeps pages in a browser out: such a page can reach programs that listen on this machine, and must not read through
//! the mirror.
//!
//! A browser says with each request whether a page made it. An answer must not become a page either: a registry's text
//! under the mirror's own address would be a page that may read everything that the mirror serves.

use hyper::{
    HeaderMap,
    header::{CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, ORIGIN, X_CONTENT_TYPE_OPTIONS},
};

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// The media type of bytes without a known type.
pub(super) const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Whether a page makes the request. False for a person who types the address, and for every registry client.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let site = headers.get(FETCH_SITE);
    headers.contains_key(ORIGIN) || site.is_some_and(|site| site != "none")
}

/// Makes a browser show an answer as its declared type, run nothing in it, and give it to no page.
pub(super) fn fence(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let nothing = HeaderValue::from_static("default-src 'none'; sandbox");
    headers.insert(CONTENT_SECURITY_POLICY, nothing);
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
}

/// The media type of a manifest or a list, as its registry says. Everything but JSON counts as plain bytes.
pub(super) fn media_type(given: &str) -> HeaderValue {
    let essence = given.split(';').next().unwrap_or_default().trim();
    let known = essence
        .strip_prefix("application/")
        .and_then(|of| of.rsplit(['.', '+']).next())
        .is_some_and(|last| last == "json" || last == "prettyjws");
    let value = HeaderValue::from_str(given).ok().filter(|_| known);
    value.unwrap_or(BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_keeps_its_type() {
        for given in [
            "application/json",
            "application/json; charset=utf-8",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ] {
            assert_eq!(media_type(given), given);
        }
        for given in [
            "",
            "text/html",
            "text/html; a=application/json",
            "application/xhtml+xml",
            "image/svg+xml",
            "application/javascript",
            "text/json",
            "application/json\r\nset-cookie: a",
        ] {
            assert_eq!(media_type(given), BYTES, "{given}");
        }
    }

    #[test]
    fn pages_are_told_from_people_and_programs() {
        let asked = |name: &'static str, value: &'static str| {
            let value = HeaderValue::from_static(value);
            is_page(&HeaderMap::from_iter([(
                HeaderName::from_static(name),
                value,
            )]))
        };
        assert!(!is_page(&HeaderMap::new()));
        assert!(!asked("sec-fetch-site", "none"));
        for site in ["cross-site", "same-site", "same-origin", ""] {
            assert!(asked("sec-fetch-site", site), "{site}");
        }
        assert!(asked("origin", "null"));
    }
}
