//! The end of a fetch, and what the coordinator is told about the registry.

use origin::OriginError;
use proto::message::{LeaseEnd, OriginFault};

/// How a fetch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchEnd {
    Done,
    /// The registry was given up.
    Failed(Failure),
    /// The registry's bytes are false.
    Bad(String),
    /// This host couldn't store the bytes: nothing is said about the registry.
    Disk(String),
    /// The content isn't wanted here any more: the image is gone from this host, or the agent stops.
    Unwanted,
}

/// Why the registry was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The registry's answer, or why the registry can't be reached.
    #[error(transparent)]
    Origin(OriginError),
    /// The registry gives no parts of the content, and its connections end before the content does.
    #[error(transparent)]
    CutShort(OriginError),
    /// This host's settings for the registry are unusable.
    #[error("{0}")]
    Settings(String),
}

impl Failure {
    /// What the coordinator is told: whether the failure is about the content, about this host, or about the registry.
    pub(crate) const fn as_told(&self) -> (LeaseEnd, OriginFault) {
        let error = match self {
            Self::Origin(error) => error,
            Self::CutShort(_) => return (LeaseEnd::OriginFailed, OriginFault::CutShort),
            Self::Settings(_) => return (LeaseEnd::OriginFailed, OriginFault::Host),
        };
        let fault = match error {
            OriginError::SizeMismatch { .. } | OriginError::TooLarge { .. } => {
                return (LeaseEnd::ContentBad, OriginFault::Unspecified);
            }
            OriginError::NotFound { .. } | OriginError::Status { status: 410, .. } => {
                OriginFault::Missing
            }
            OriginError::Unauthorised { .. }
            | OriginError::Forbidden { .. }
            | OriginError::Status { status: 451, .. } => OriginFault::Refused,
            // this host's list of authorities may be the reason: two hosts have to say it before the registry is left
            // alone
            OriginError::Tls { .. } => OriginFault::Unspecified,
            // another host may be let through, or have other settings
            OriginError::Proxy {
                is_retryable: false,
                ..
            } => OriginFault::Host,
            error if error.is_retryable() => OriginFault::Unspecified,
            _ => OriginFault::Unusable,
        };
        (LeaseEnd::OriginFailed, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: OriginError) -> (LeaseEnd, OriginFault) {
        Failure::Origin(error).as_told()
    }

    fn status(status: u16) -> OriginError {
        OriginError::Status {
            what: "blob".into(),
            host: "registry".into(),
            status,
            said: String::new(),
        }
    }

    #[test]
    fn what_one_host_finds_is_told_as_what_it_says_of_the_registry() {
        let (what, host, cause) = ("blob".to_owned(), "registry".to_owned(), String::new());
        let failed = |fault| (LeaseEnd::OriginFailed, fault);
        let missing = OriginError::NotFound {
            what: what.clone(),
            said: String::new(),
        };
        assert_eq!(told(missing), failed(OriginFault::Missing));
        assert_eq!(told(status(410)), failed(OriginFault::Missing));
        assert_eq!(told(status(451)), failed(OriginFault::Refused));
        assert_eq!(told(status(503)), failed(OriginFault::Unspecified));
        let unauthorised = OriginError::Unauthorised {
            what: what.clone(),
            cause: cause.clone(),
        };
        assert_eq!(told(unauthorised), failed(OriginFault::Refused));
        let untrusted = OriginError::Tls {
            what: what.clone(),
            host,
            cause: cause.clone(),
        };
        assert_eq!(told(untrusted), failed(OriginFault::Unspecified));
        for (is_retryable, fault) in [(false, OriginFault::Host), (true, OriginFault::Unspecified)]
        {
            let proxy = OriginError::Proxy {
                what: what.clone(),
                proxy: "proxy".into(),
                cause: cause.clone(),
                is_retryable,
            };
            assert_eq!(told(proxy), failed(fault));
        }
        let larger = OriginError::TooLarge {
            what,
            limit: 1,
            found: 2,
        };
        assert_eq!(
            told(larger),
            (LeaseEnd::ContentBad, OriginFault::Unspecified)
        );
    }

    #[test]
    fn what_is_no_fault_of_the_registry_is_told_apart_from_what_is() {
        let settings = Failure::Settings("no password".into());
        assert_eq!(
            settings.as_told(),
            (LeaseEnd::OriginFailed, OriginFault::Host)
        );
        let short = Failure::CutShort(status(200));
        assert_eq!(
            short.as_told(),
            (LeaseEnd::OriginFailed, OriginFault::CutShort)
        );
    }
}
