//! How long it took to bring an image to every selected host. This time is counted and logged once, and survives a
//! restart of the coordinator.

use std::time::{Duration, SystemTime};

use proto::Moment;

use crate::wants::{Timed, Timing};

/// The time of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// The image hasn't been everywhere since the request that last changed what is wanted.
    Open {
        /// The moment from which this process measures.
        since: Moment,
        /// The time that had passed before `since`, by the wall clock.
        before: Duration,
        asked_at_ms: u64,
    },
    /// The image was everywhere after `took`.
    Done { took: Duration, asked_at_ms: u64 },
    /// There is no time to tell: the image was everywhere when it was asked for, or nobody knows since when it is
    /// wanted.
    Untold,
}

impl Took {
    /// The time as a want's timing says. `everywhere`: every selected host has the image already. `unix_ms` is the wall
    /// clock now.
    pub(super) fn of(timing: Timing, now: Moment, unix_ms: u64, everywhere: bool) -> Self {
        match timing {
            Timing::New if everywhere => Self::Untold,
            Timing::New => Self::Open {
                since: now,
                before: Duration::ZERO,
                asked_at_ms: unix_ms,
            },
            Timing::Unknown => Self::Untold,
            Timing::Known(timed) => match timed.staged_ms {
                Some(staged) => Self::Done {
                    took: Duration::from_millis(staged),
                    asked_at_ms: timed.asked_at_ms,
                },
                None => Self::Open {
                    since: now,
                    // where the clock was set back, no time had passed
                    before: Duration::from_millis(unix_ms.saturating_sub(timed.asked_at_ms)),
                    asked_at_ms: timed.asked_at_ms,
                },
            },
        }
    }

    /// What is wanted of the image has changed. Measures anew, unless the image is everywhere all the same.
    pub(super) fn anew(&mut self, now: Moment, unix_ms: u64, everywhere: bool) {
        if !everywhere {
            *self = Self::of(Timing::New, now, unix_ms, false);
        }
    }

    /// The image is everywhere. Returns how long that took, at the first call only.
    pub(super) fn everywhere(&mut self, now: Moment) -> Option<Duration> {
        let Self::Open {
            since,
            before,
            asked_at_ms,
        } = *self
        else {
            return None;
        };
        // rounded to the millisecond, as on disk
        let took = before + now.since(since);
        let took = Duration::from_millis(proto::millis(took));
        *self = Self::Done { took, asked_at_ms };
        Some(took)
    }

    /// The measured time, once the image was everywhere.
    pub(super) const fn told(&self) -> Option<Duration> {
        match self {
            Self::Done { took, .. } => Some(*took),
            Self::Open { .. } | Self::Untold => None,
        }
    }

    /// When what is wanted changed in this process, in Unix milliseconds, while the image isn't everywhere since then.
    pub(super) const fn begun_here(&self) -> Option<u64> {
        match self {
            Self::Open {
                before: Duration::ZERO,
                asked_at_ms,
                ..
            } => Some(*asked_at_ms),
            Self::Open { .. } | Self::Done { .. } | Self::Untold => None,
        }
    }

    /// The time in the form in which it is kept on disk.
    pub(super) fn timing(&self) -> Timing {
        match self {
            Self::Open { asked_at_ms, .. } => Timing::Known(Timed {
                asked_at_ms: *asked_at_ms,
                staged_ms: None,
            }),
            Self::Done { took, asked_at_ms } => Timing::Known(Timed {
                asked_at_ms: *asked_at_ms,
                staged_ms: Some(proto::millis(*took)),
            }),
            Self::Untold => Timing::Unknown,
        }
    }
}

/// The wall clock, in Unix milliseconds: only for what is kept over restarts.
pub(super) fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    proto::millis(since_1970.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    #[test]
    fn a_time_is_told_once_and_outlives_the_coordinator() {
        let mut took = Took::of(Timing::New, at(100), 1_000_000, false);
        assert_eq!((took.told(), took.begun_here()), (None, Some(1_000_000)));
        // a restart ten seconds later: this process's clock begins anew
        let mut took_after = Took::of(took.timing(), at(0), 1_010_000, false);
        assert_eq!(took_after.begun_here(), None);
        assert_eq!(took_after.everywhere(at(3)), Some(Duration::from_secs(13)));
        assert_eq!(took_after.everywhere(at(4)), None);
        let exact = at(127) + Duration::from_micros(81);
        assert_eq!(took.everywhere(exact), Some(Duration::from_secs(27)));
        // a restart after the image was everywhere
        let mut restarted = Took::of(took.timing(), at(0), 9_000_000, false);
        assert_eq!(restarted.told(), Some(Duration::from_secs(27)));
        assert_eq!(restarted.everywhere(at(1)), None);
    }

    #[test]
    fn what_was_there_already_took_no_time() {
        let mut took = Took::of(Timing::New, at(0), 0, true);
        assert_eq!((took.everywhere(at(1)), took.told()), (None, None));
        let mut took = Took::of(Timing::Unknown, at(0), 0, false);
        assert_eq!((took.everywhere(at(1)), took.told()), (None, None));
        // an image that is asked for again keeps its time; on more hosts, it has a new one
        let mut took = Took::of(Timing::New, at(0), 0, false);
        took.everywhere(at(31));
        took.anew(at(50), 50_000, true);
        assert_eq!(took.told(), Some(Duration::from_secs(31)));
        took.anew(at(60), 60_000, false);
        assert_eq!(took.told(), None);
        assert_eq!(took.everywhere(at(65)), Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_clock_that_was_set_back_adds_nothing() {
        let timed = Timed {
            asked_at_ms: 5_000,
            staged_ms: None,
        };
        let mut took = Took::of(Timing::Known(timed), at(0), 1_000, false);
        assert_eq!(took.everywhere(at(2)), Some(Duration::from_secs(2)));
    }
}
