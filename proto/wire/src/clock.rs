//! Certificates that aren't valid by some clock: what that clock shows, and what the certificate says.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rustls::{CertificateError, Error};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// A certificate that isn't valid yet, or any more, by a clock. Either the clock is wrong, or the certificate wasn't
/// renewed in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untimely {
    /// The time that the clock showed.
    pub clock: SystemTime,
    /// The end of the certificate's life that `clock` lies beyond.
    pub bound: Bound,
}

/// One end of a certificate's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The certificate isn't valid before this time.
    Begins(SystemTime),
    /// The certificate isn't valid after this time.
    Ended(SystemTime),
}

impl Untimely {
    /// The times in a TLS error, if the error is about a certificate's time.
    #[must_use]
    pub fn of(error: &Error) -> Option<Self> {
        match error {
            Error::InvalidCertificate(CertificateError::NotValidYetContext {
                time,
                not_before,
            }) => Some(Self {
                clock: moment(*time),
                bound: Bound::Begins(moment(*not_before)),
            }),
            Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
                Some(Self {
                    clock: moment(*time),
                    bound: Bound::Ended(moment(*not_after)),
                })
            }
            _ => None,
        }
    }

    /// The times in the other side's refusal of this host's certificate. The refusal's reason is rustls' own text.
    /// `None` where that text has another form, as in another version of rustls.
    pub(crate) fn said(words: &str) -> Option<Self> {
        let after = |mark: &str| {
            let (_, rest) = words.split_once(mark)?;
            let end = rest.find(|c: char| !c.is_ascii_digit());
            let seconds = rest[..end.unwrap_or(rest.len())].parse().ok()?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let bound = match after("is not valid before ") {
            Some(begins) => Bound::Begins(begins),
            None => Bound::Ended(after("is not valid after ")?),
        };
        Some(Self {
            clock: after("verification time ")?,
            bound,
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begins(at) => write!(f, "begins {}", utc(*at)),
            Self::Ended(at) => write!(f, "ended {}", utc(*at)),
        }
    }
}

fn moment(time: UnixTime) -> SystemTime {
    // a date that the platform's clock can't express becomes the last date that it can
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(time.as_secs()))
        .unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX)))
}

/// A moment of the wall clock, to the second: `2026-11-28 14:05:12 UTC`.
#[must_use]
pub fn utc(at: SystemTime) -> String {
    let since_1970 = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    // certificates and peers name moments too, and these may lie beyond any calendar
    let Ok(at) = OffsetDateTime::from_unix_timestamp(seconds) else {
        return format!("{seconds} s after 1970");
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn what_tls_says_is_understood_on_both_sides() {
        let early = Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time: at(1_000),
            not_before: at(2_000),
        });
        let late = Error::InvalidCertificate(CertificateError::ExpiredContext {
            time: at(5_000),
            not_after: at(4_000),
        });
        let moment = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (error, clock, bound) in [
            (early, 1_000, Bound::Begins(moment(2_000))),
            (late, 5_000, Bound::Ended(moment(4_000))),
        ] {
            let clock = moment(clock);
            let expected = Some(Untimely { clock, bound });
            assert_eq!(Untimely::of(&error), expected);
            // as it travels: fails when rustls changes its words
            assert_eq!(Untimely::said(&error.to_string()), expected, "{error}");
        }
        let other = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(Untimely::of(&other), None);
        for words in [
            "",
            "certificate expired",
            "is not valid before",
            "verification time 1",
        ] {
            assert_eq!(Untimely::said(words), None, "{words}");
        }
        let huge = "verification time 99999999999999999999, is not valid after 1";
        assert_eq!(Untimely::said(huge), None);
    }

    #[test]
    fn a_moment_is_written_to_the_second() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_874_712);
        assert_eq!(utc(at), "2026-11-28 14:05:12 UTC");
        assert_eq!(utc(SystemTime::UNIX_EPOCH), "1970-01-01 00:00:00 UTC");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(utc(far), "1099511627776 s after 1970");
    }
}
