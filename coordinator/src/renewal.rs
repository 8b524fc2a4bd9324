//! Decides whether a host may renew a certificate that has expired.
//!
//! While its certificate is good, a host renews it over its session. A host may have missed that, because it or the
//! coordinator was away for too long. Such a host shows the old certificate, and signs a request with that
//! certificate's key. This proves which host it was. This file decides whether that still counts.

use std::time::{Duration, SystemTime};

use proto::HostId;
use wire::Validity;

use crate::enrolment::unix;

/// Why a host has to enrol anew.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LateError {
    /// There is no record of the host's enrolment.
    #[error("host {0} isn't enrolled; enrol it with a token")]
    NotEnrolled(HostId),
    /// The host has enrolled or was readmitted since the certificate was signed. The certificate's key was given up
    /// then, or may have been stolen before.
    #[error(
        "host {0} has enrolled anew since this certificate was signed, or was readmitted; enrol it with a token"
    )]
    Superseded(HostId),
    /// The host was away for longer than the grace.
    #[error(
        "certificate of host {host} expired more than {} days ago (coordinator.renewal_grace_seconds); enrol it with a token",
        grace.as_secs() / 86_400
    )]
    TooLate {
        /// The host.
        host: HostId,
        /// How long after its expiry a certificate may still be renewed.
        grace: Duration,
    },
}

/// Decides whether a certificate of this authority may be renewed. The caller has checked that the request is signed by
/// its key. `enrolled_at` is when the host last enrolled, in Unix seconds.
///
/// # Errors
/// Why the host has to enrol anew.
pub(crate) fn permit(
    host: &HostId,
    validity: Validity,
    enrolled_at: Option<u64>,
    grace: Duration,
    now: SystemTime,
) -> Result<(), LateError> {
    let enrolled_at = enrolled_at.ok_or_else(|| LateError::NotEnrolled(host.clone()))?;
    if is_superseded(validity.signed(), Some(enrolled_at)) {
        return Err(LateError::Superseded(host.clone()));
    }
    if now > validity.expires + grace {
        return Err(LateError::TooLate {
            host: host.clone(),
            grace,
        });
    }
    Ok(())
}

/// Whether the host has enrolled or was readmitted after one of its certificates was signed.
pub(crate) fn is_superseded(signed: SystemTime, enrolled_at: Option<u64>) -> bool {
    enrolled_at.is_some_and(|enrolled_at| unix(signed) < enrolled_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK_SKEW: Duration = Duration::from_mins(5);

    const DAY: Duration = Duration::from_hours(24);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_expired_certificate_is_renewable_for_the_grace_and_no_longer() {
        let host: HostId = "mini-1".parse().unwrap();
        let enrolled = SystemTime::UNIX_EPOCH + 1_000 * DAY;
        let validity = Validity {
            issued: enrolled - CLOCK_SKEW,
            expires: enrolled + DAY,
        };
        let at = |now| permit(&host, validity, Some(unix(enrolled)), 7 * DAY, now);
        // A certificate that is still good is renewed too: which of the two clocks is wrong isn't known.
        for now in [enrolled, validity.expires, enrolled + 8 * DAY] {
            assert_eq!(at(now), Ok(()));
        }
        let late = at(enrolled + 8 * DAY + SECOND).unwrap_err();
        assert!(late.to_string().contains("7 days ago"), "{late}");
    }

    #[test]
    fn a_new_enrolment_ends_what_was_issued_before_it() {
        let host: HostId = "mini-1".parse().unwrap();
        let now = SystemTime::UNIX_EPOCH + 1_000 * DAY;
        let validity = Validity {
            issued: now - CLOCK_SKEW,
            expires: now + DAY,
        };
        let since = |enrolled_at| permit(&host, validity, enrolled_at, DAY, now);
        assert_eq!(since(Some(unix(now))), Ok(()));
        assert_eq!(
            since(Some(unix(now) + 1)),
            Err(LateError::Superseded(host.clone()))
        );
        assert_eq!(since(None), Err(LateError::NotEnrolled(host.clone())));
    }
}
