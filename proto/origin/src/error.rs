//! The errors of requests to registries.

use std::{error::Error, io, path::PathBuf, time::Duration};

use http::StatusCode;
use proto::Digest;

/// The longest text from outside that an error carries, in characters.
const MAX_FOREIGN_CHARS: usize = 200;

/// Why a registry didn't give what it was asked for. `what` names that: `blob sha256:… of ghcr.io/org/image`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The reference can't be used in a request: its registry isn't a host, or its digest isn't SHA-256.
    #[error("{what} can't be asked for: {cause}; write it as host/name:tag or host/name@sha256:…")]
    Reference {
        /// The reference.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The registry says that it doesn't have it. Many registries also say so where the credentials aren't allowed to
    /// see it.
    #[error("{what} doesn't exist{said}; check its name, and that these credentials may see it")]
    NotFound {
        /// What was asked for.
        what: String,
        /// What the registry said, with a leading colon; may be empty.
        said: String,
    },
    /// Credentials are missing, wrong or expired.
    #[error("{what} can't be had with these credentials: {cause}")]
    Unauthorised {
        /// What was asked for.
        what: String,
        /// Why these credentials aren't accepted, and which would be.
        cause: String,
    },
    /// The credentials are valid, but don't allow this.
    #[error("{what} is forbidden by {host}{said}; give these credentials access to it")]
    Forbidden {
        /// What was asked for.
        what: String,
        /// The host that forbids it: the registry, or a host that the registry redirects to.
        host: String,
        /// What that host said, with a leading colon; may be empty.
        said: String,
    },
    /// The bytes don't have the digest by which they were asked for, or the digest that the registry announced.
    #[error(
        "{what} has digest {found}, not {wanted}; the registry or something before it is broken"
    )]
    DigestMismatch {
        /// What was asked for.
        what: String,
        /// The digest that it should have.
        wanted: Digest,
        /// The digest of the bytes that came.
        found: Digest,
    },
    /// The registry wants fewer requests: status 429, or status 503 with a `Retry-After`.
    #[error("{what} was refused with status {status} because of too many requests{said}{}", wait(*.retry_after))]
    Throttled {
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// How long the registry wants to be left alone, if it says so; at most an hour.
        retry_after: Option<Duration>,
        /// What the registry said, with a leading colon; may be empty.
        said: String,
    },
    /// The registry fails (5xx), or gives an answer that the protocol doesn't have here.
    #[error("{what} was answered by {host} with status {status}{said}")]
    Status {
        /// What was asked for.
        what: String,
        /// The host that answered.
        host: String,
        /// The status.
        status: u16,
        /// What the host said, with a leading colon; may be empty.
        said: String,
    },
    /// There is no connection, or it broke.
    #[error(
        "{what} can't be had from {host}: {cause}; check that {host} runs and can be reached from here"
    )]
    Connection {
        /// What was asked for.
        what: String,
        /// The host and port.
        host: String,
        /// The cause.
        cause: String,
    },
    /// The server's certificate isn't trusted, or it doesn't speak TLS.
    #[error(
        "{what} can't be had safely from {host}: {cause}; give its CA, or allow plain HTTP for it"
    )]
    Tls {
        /// What was asked for.
        what: String,
        /// The host and port.
        host: String,
        /// The cause.
        cause: String,
    },
    /// The proxy before the registry can't be reached, or doesn't connect to the registry.
    #[error("{what} can't be had: proxy {proxy} {cause}")]
    Proxy {
        /// What was asked for.
        what: String,
        /// The proxy's host and port.
        proxy: String,
        /// What the proxy did. Names the registry where that matters.
        cause: String,
        /// Whether the same call may succeed later.
        is_retryable: bool,
    },
    /// Nothing arrived for too long.
    #[error("{what}: nothing came from {host} for {} s", .waited.as_secs())]
    Timeout {
        /// What was asked for.
        what: String,
        /// The host that was silent.
        host: String,
        /// How long it was silent.
        waited: Duration,
    },
    /// The bytes ended too soon. The bytes that came are good: continue after them.
    #[error("{what} ended after {received} of {expected} bytes")]
    Truncated {
        /// What was asked for.
        what: String,
        /// The bytes from the blob's start to the place where they ended.
        received: u64,
        /// The bytes that the blob should have.
        expected: u64,
    },
    /// There are more bytes than allowed or expected.
    #[error("{what} is too large: it has {found} bytes or more, and {limit} are allowed")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// The most bytes allowed.
        limit: u64,
        /// The size, as far as it is known.
        found: u64,
    },
    /// The blob's size in the registry differs from its size in the manifest.
    #[error("{what} has {found} bytes in the registry, but its manifest says {expected}")]
    SizeMismatch {
        /// What was asked for.
        what: String,
        /// The manifest's size.
        expected: u64,
        /// The registry's size.
        found: u64,
    },
    /// The registry doesn't give this part of the blob.
    #[error("{what} wasn't given from byte {start} on: {cause}; fetch it from its start")]
    Range {
        /// What was asked for.
        what: String,
        /// The start of the part.
        start: u64,
        /// What the registry sent instead.
        cause: String,
    },
    /// A redirect isn't followed: there were too many, or it leads to plain HTTP or to no address.
    #[error("{what} is redirected by {host}, which isn't followed: {cause}")]
    Redirect {
        /// What was asked for.
        what: String,
        /// The host that redirected.
        host: String,
        /// Why the redirect isn't followed.
        cause: String,
    },
    /// The answer isn't HTTP, or lacks something that it must have.
    #[error("{what} was answered by {host} with something malformed: {cause}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// The host that answered.
        host: String,
        /// What is wrong with the answer.
        cause: String,
    },
}

/// Why a [`Config`](crate::Config) can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of extra roots can't be read, or isn't PEM.
    #[error("certificates in {} can't be read: {cause}; it has to be a PEM file", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate; it has to be a PEM file with a CA", path.display())]
    NoRoots {
        /// The file.
        path: PathBuf,
    },
    /// A certificate can't be trusted as a root.
    #[error("an extra root certificate can't be used: {0}")]
    Root(rustls::Error),
    /// The setting of a proxy can't be used.
    #[error("{setting} {cause}")]
    Proxy {
        /// The setting or the environment variable.
        setting: String,
        /// What is wrong with the setting. Doesn't contain its value.
        cause: String,
    },
    /// The user agent has characters that a header can't contain.
    #[error("user agent {0:?} can't be sent in a header")]
    UserAgent(String),
    /// The TLS stack refuses its own defaults.
    #[error("TLS can't be set up: {0}")]
    Tls(rustls::Error),
}

/// Any error of the libraries used here.
pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// A failure at a proxy.
#[derive(Clone, Debug, thiserror::Error)]
#[error("proxy {proxy} {cause}")]
pub(crate) struct ProxyFault {
    pub(crate) proxy: String,
    pub(crate) cause: String,
    pub(crate) is_retryable: bool,
}

impl OriginError {
    /// Whether the same call may succeed later without anybody's help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled { .. }
            | Self::Connection { .. }
            | Self::Timeout { .. }
            | Self::Truncated { .. } => true,
            Self::Proxy { is_retryable, .. } => *is_retryable,
            // 501 and 505 mean that it will never be possible.
            Self::Status { status, .. } => {
                matches!(*status, 408 | 425 | 500 | 502..=504 | 507..=599)
            }
            _ => false,
        }
    }

    /// Whether the registry may have refused or misanswered a request only because it asked for a part of a blob. A
    /// request for the whole blob may then succeed.
    pub(crate) const fn may_be_about_range(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 400 | 416 | 501,
                ..
            } | Self::Range { .. }
                | Self::Malformed { .. }
        )
    }

    /// How long the registry wants to be left alone, if it said so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn wait(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |delay| {
        format!("; try again in {} s", delay.as_secs())
    })
}

/// A text from outside, made fit for an error: cut, and without control characters.
pub(crate) fn shorten(text: &str) -> String {
    text.chars()
        .take(MAX_FOREIGN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// An error and its sources in one line, without repetition.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    shorten(&text)
}

/// Finds an error of type `E` among an error's sources, also inside `io::Error`s.
pub(crate) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An `io::Error`'s `source` skips the error that it wraps.
        if let Some(inner) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            && let Some(found) = find::<E>(inner)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// What a registry, or a host that it redirects to, says in an error's body, as `: …` or nothing. This is the first
/// code and message in the form of the distribution API, the message in a storage service's XML, or plain text.
pub(crate) fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Other {
        message: Option<String>,
        error: Option<String>,
        details: Option<String>,
    }
    let listed = serde_json::from_slice::<Body>(body).ok();
    let parts: Vec<String> = match listed.and_then(|body| body.errors.into_iter().next()) {
        Some(item) => vec![item.code, item.message],
        None => {
            let other = serde_json::from_slice::<Other>(body).ok();
            let other = other.and_then(|other| other.message.or(other.details).or(other.error));
            let text = String::from_utf8_lossy(body);
            let trimmed = text.trim_start_matches('\u{feff}').trim();
            let plain = !trimmed.starts_with(['<', '{', '[']) && !trimmed.contains('\u{fffd}');
            vec![
                other
                    .or_else(|| in_element(&text, "Message"))
                    .or_else(|| plain.then(|| trimmed.lines().next().unwrap_or("").to_owned()))
                    .unwrap_or_default(),
            ]
        }
    };
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        String::new()
    } else {
        shorten(&format!(": {}", parts.join(", ")))
    }
}

/// The text of an XML element, unless the element contains others.
fn in_element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once("</")?;
    (!inside.contains('<')).then(|| inside.trim().to_owned())
}

/// The error for an unwanted status.
pub(crate) fn from_status(
    what: String,
    host: String,
    status: StatusCode,
    retry_after: Option<Duration>,
    said: String,
) -> OriginError {
    match status {
        StatusCode::NOT_FOUND => OriginError::NotFound { what, said },
        StatusCode::UNAUTHORIZED => OriginError::Unauthorised {
            what,
            cause: format!("{host} refuses those that it was given{said}"),
        },
        StatusCode::FORBIDDEN => OriginError::Forbidden { what, host, said },
        StatusCode::TOO_MANY_REQUESTS => OriginError::Throttled {
            what,
            status: status.as_u16(),
            retry_after,
            said,
        },
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => OriginError::Throttled {
            what,
            status: status.as_u16(),
            retry_after,
            said,
        },
        _ => OriginError::Status {
            what,
            host,
            status: status.as_u16(),
            said,
        },
    }
}

pub(crate) fn at_proxy(what: &str, fault: &ProxyFault) -> OriginError {
    OriginError::Proxy {
        what: what.to_owned(),
        proxy: fault.proxy.clone(),
        cause: fault.cause.clone(),
        is_retryable: fault.is_retryable,
    }
}

/// The error for a connection that couldn't be made, or that broke.
pub(crate) fn broken(what: &str, host: &str, error: &(dyn Error + 'static)) -> OriginError {
    if let Some(fault) = find::<ProxyFault>(error) {
        return at_proxy(what, fault);
    }
    let (what, host) = (what.to_owned(), host.to_owned());
    if find::<rustls::Error>(error).is_some() {
        return OriginError::Tls {
            what,
            host,
            cause: chain(error),
        };
    }
    if let Some(error) = find::<hyper::Error>(error)
        && error.is_parse()
    {
        return OriginError::Malformed {
            what,
            host,
            cause: chain(error),
        };
    }
    if find::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        return OriginError::Connection {
            what,
            host,
            cause: "it took too long to connect".to_owned(),
        };
    }
    OriginError::Connection {
        what,
        host,
        cause: chain(error),
    }
}

pub(crate) fn unexpected(what: &str, host: &str, status: StatusCode) -> OriginError {
    OriginError::Malformed {
        what: what.to_owned(),
        host: host.to_owned(),
        cause: format!("status {} isn't one for this request", status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> OriginError {
        from_status(
            "blob".to_owned(),
            "registry".to_owned(),
            StatusCode::from_u16(status).unwrap(),
            retry_after,
            String::new(),
        )
    }

    #[test]
    fn statuses_say_whether_to_come_back() {
        for (code, retryable) in [
            (400, false),
            (401, false),
            (403, false),
            (404, false),
            (405, false),
            (408, true),
            (429, true),
            (500, true),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
            (505, false),
        ] {
            assert_eq!(status(code, None).is_retryable(), retryable, "{code}");
        }
        let minute = Some(Duration::from_secs(60));
        assert_eq!(status(429, minute).retry_after(), minute);
        assert_eq!(status(503, minute).retry_after(), minute);
        assert!(matches!(status(503, None), OriginError::Status { .. }));
        assert_eq!(
            status(429, minute).to_string(),
            "blob was refused with status 429 because of too many requests; try again in 60 s"
        );
    }

    #[test]
    fn what_a_registry_says_is_cut_and_cleaned() {
        assert_eq!(
            said(br#"{"errors":[{"code":"DENIED","message":"no\nway"}]}"#),
            ": DENIED, no way"
        );
        assert_eq!(said(b"<html>"), "");
        let storage = b"\xef\xbb\xbf<?xml version=\"1.0\"?><Error><Code>ServerBusy</Code><Message>Egress is over the account \
            limit.</Message></Error>";
        assert!(said(storage).starts_with(": Egress is over the account"));
        assert_eq!(said(br#"{"message":"no such thing"}"#), ": no such thing");
        assert_eq!(said(b"upstream is asleep\nmore"), ": upstream is asleep");
        assert_eq!(said(&[0xff, 0xfe, 0x00]), "");
        assert_eq!(said(br#"{"errors":[]}"#), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(said(long.as_bytes()).chars().count(), MAX_FOREIGN_CHARS);
    }

    #[test]
    fn an_error_inside_an_io_error_is_found() {
        let inner = rustls::Error::HandshakeNotComplete;
        let error = io::Error::other(io::Error::other(inner.clone()));
        assert_eq!(find::<rustls::Error>(&error), Some(&inner));
        assert_eq!(find::<rustls::Error>(&io::Error::other("no")), None);
    }
}
