//! The decision after an attempt that didn't bring the whole content: whether and when the registry is tried again, and
//! what is reported.

use std::time::{Duration, Instant};

use origin::{Backoff, OriginError};

use super::{
    end::{Failure, FetchEnd},
    job::{Broke, News},
};

/// A registry that gives nothing for this long is given up, unless a coordinator took the lease back long before.
/// Pauses that the registry asks for (`Retry-After`, an hour at most) don't count.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);

/// First and longest pause between attempts, if the registry doesn't say how long to wait.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// If a connection gave this many bytes before it broke, the next attempt follows at once.
const WORTH_A_CONNECTION: u64 = 64 << 10;

/// The coordinator hands down a new token before the old one expires. The new token is on its way for less than this.
const NEW_TOKEN_WITHIN: Duration = Duration::from_secs(5);

/// A registry that refuses a host without a token from the coordinator is asked once more after this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What to do after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing more.
    End(FetchEnd),
    /// Try again at once.
    Again { news: Option<News> },
    /// Trust nothing that is held, and read the blob from its beginning.
    StartAgain { error: String },
    /// Try again when another access is handed down, or else after this time.
    AwaitAccess {
        within: Duration,
        news: Option<News>,
    },
    /// Try again after this time.
    Pause { wait: Duration, news: News },
}

/// How long a fetch goes on trying.
#[derive(Debug)]
pub(super) struct Persistence {
    backoff: Backoff,
    /// When new bytes last came. Pauses that the registry asked for are left out.
    progress: Instant,
    /// The registry refused since new bytes last came.
    refused: bool,
    from_start: bool,
}

impl Persistence {
    /// `seed` makes the pauses of hosts differ that lost a registry together.
    pub(super) const fn new(now: Instant, seed: u64) -> Self {
        Self {
            backoff: Backoff::new(RETRY.0, RETRY.1, seed),
            progress: now,
            refused: false,
            from_start: false,
        }
    }

    /// Whether nothing that is held is trusted, and the blob is read from its beginning.
    pub(super) const fn distrusts(&self) -> bool {
        self.from_start
    }

    /// An attempt ended now, after it brought `new` bytes. `has_token`: the attempt used a token that was handed to
    /// this host.
    pub(super) fn after(&mut self, now: Instant, broke: Broke, new: u64, has_token: bool) -> Next {
        if new > 0 {
            self.progress = now;
            self.refused = false;
            self.backoff.succeeded();
        }
        match broke {
            Broke::Unwanted => Next::End(FetchEnd::Unwanted),
            Broke::Passed => Next::Again { news: None },
            Broke::Disk(error) => Next::End(FetchEnd::Disk(error)),
            Broke::Settings(error) => failed(Failure::Settings(error)),
            Broke::CutShort(error) => failed(Failure::CutShort(error)),
            // peers may have sent us false chunks or hints: start from the beginning before blaming the registry
            Broke::False(error) if !self.from_start => {
                self.from_start = true;
                Next::StartAgain { error }
            }
            Broke::False(error) => Next::End(FetchEnd::Bad(error)),
            // a token may have expired amid the layer: the next token has come, or comes any moment
            Broke::Origin(
                error @ (OriginError::Unauthorised { .. } | OriginError::Forbidden { .. }),
            ) if !self.refused => {
                self.refused = true;
                // a newer token only comes from a coordinator that hands tokens down
                let (within, news) = if has_token {
                    let error = error.to_string();
                    (NEW_TOKEN_WITHIN, Some(News::Refused { error }))
                } else {
                    (ASK_AGAIN_AFTER, None)
                };
                Next::AwaitAccess { within, news }
            }
            Broke::Origin(error) if !error.is_retryable() => failed(Failure::Origin(error)),
            Broke::Origin(error) if new >= WORTH_A_CONNECTION && error.retry_after().is_none() => {
                let news = Some(News::Broke {
                    after_bytes: new,
                    error: error.to_string(),
                });
                Next::Again { news }
            }
            Broke::Origin(error) => self.pause(now, error),
        }
    }

    fn pause(&mut self, now: Instant, error: OriginError) -> Next {
        if now.saturating_duration_since(self.progress) > GIVE_UP_AFTER {
            return failed(Failure::Origin(error));
        }
        let retry_after = error.retry_after();
        let wait = self.backoff.delay(retry_after);
        // while the registry wants to be left alone, it doesn't fail
        self.progress += retry_after.unwrap_or_default();
        let news = News::Trouble {
            error: error.to_string(),
            retry_after,
            wait,
        };
        Next::Pause { wait, news }
    }
}

const fn failed(failure: Failure) -> Next {
    Next::End(FetchEnd::Failed(failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn away() -> Broke {
        Broke::Origin(OriginError::Connection {
            what: "blob".into(),
            host: "registry".into(),
            cause: "gone".into(),
        })
    }

    fn throttled(retry_after: Option<Duration>) -> Broke {
        Broke::Origin(OriginError::Throttled {
            what: "blob".into(),
            status: 429,
            retry_after,
            said: String::new(),
        })
    }

    fn refused() -> Broke {
        Broke::Origin(OriginError::Unauthorised {
            what: "blob".into(),
            cause: "expired".into(),
        })
    }

    fn waits(next: &Next) -> Duration {
        match next {
            Next::Pause { wait, .. } => *wait,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_registry_that_gives_nothing_is_given_up_after_a_minute_and_not_before() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        waits(&patient.after(start + GIVE_UP_AFTER, away(), 0, false));
        let late = start + GIVE_UP_AFTER + Duration::from_millis(1);
        let next = patient.after(late, away(), 0, false);
        assert!(matches!(
            next,
            Next::End(FetchEnd::Failed(Failure::Origin(_)))
        ));
    }

    #[test]
    fn each_new_byte_begins_the_minute_anew() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        let later = start + GIVE_UP_AFTER + SECOND;
        waits(&patient.after(later, away(), 1, false));
        waits(&patient.after(later + GIVE_UP_AFTER, away(), 0, false));
    }

    #[test]
    fn what_the_registry_asks_for_is_waited_and_does_not_count() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        let hour = Duration::from_hours(1);
        let next = patient.after(start, throttled(Some(hour)), 0, false);
        assert!(waits(&next) >= hour);
        assert!(matches!(
            next,
            Next::Pause { news: News::Trouble { retry_after: Some(asked), .. }, .. } if asked == hour
        ));
        waits(&patient.after(start + hour + GIVE_UP_AFTER, away(), 0, false));
        let late = start + hour + GIVE_UP_AFTER + SECOND;
        let next = patient.after(late, away(), 0, false);
        assert!(matches!(next, Next::End(FetchEnd::Failed(_))));
    }

    #[test]
    fn pauses_grow_to_ten_seconds_and_are_short_again_after_progress() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 7);
        let mut pause = |new| waits(&patient.after(start, throttled(None), new, false));
        let pauses: Vec<_> = (0..10).map(|_| pause(0)).collect();
        assert!(pauses[0] <= RETRY.0, "{pauses:?}");
        assert!(
            pauses[9] >= RETRY.1 / 2 && pauses[9] <= RETRY.1,
            "{pauses:?}"
        );
        assert!(pause(1) <= RETRY.0);
    }

    #[test]
    fn a_connection_that_brought_enough_is_made_again_at_once() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        let next = patient.after(start, away(), WORTH_A_CONNECTION, false);
        assert!(matches!(
            next,
            Next::Again {
                news: Some(News::Broke {
                    after_bytes: WORTH_A_CONNECTION,
                    ..
                })
            }
        ));
        waits(&patient.after(start, away(), WORTH_A_CONNECTION - 1, false));
        // not if the registry wants to be left alone
        let next = patient.after(start, throttled(Some(SECOND)), WORTH_A_CONNECTION, false);
        assert!(waits(&next) >= SECOND);
    }

    #[test]
    fn a_refusal_is_told_and_waited_out_once() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        let next = patient.after(start, refused(), 0, true);
        assert!(matches!(
            next,
            Next::AwaitAccess {
                within: NEW_TOKEN_WITHIN,
                news: Some(News::Refused { .. })
            }
        ));
        let next = patient.after(start, refused(), 0, true);
        assert!(matches!(
            next,
            Next::End(FetchEnd::Failed(Failure::Origin(_)))
        ));
    }

    #[test]
    fn after_progress_another_refusal_is_waited_out_again() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        patient.after(start, refused(), 0, true);
        let next = patient.after(start, refused(), 1, true);
        assert!(matches!(next, Next::AwaitAccess { .. }));
    }

    #[test]
    fn without_a_token_of_the_coordinators_nobody_is_told_to_get_a_newer_one() {
        let start = Instant::now();
        let next = Persistence::new(start, 1).after(start, refused(), 0, false);
        assert_eq!(
            next,
            Next::AwaitAccess {
                within: ASK_AGAIN_AFTER,
                news: None
            }
        );
    }

    #[test]
    fn false_bytes_are_the_registrys_only_when_nothing_held_was_believed() {
        let start = Instant::now();
        let mut patient = Persistence::new(start, 1);
        assert!(!patient.distrusts());
        let false_bytes = || Broke::False("it doesn't end in the digest".into());
        let next = patient.after(start, false_bytes(), 9, false);
        assert!(matches!(next, Next::StartAgain { .. }) && patient.distrusts());
        let next = patient.after(start, false_bytes(), 9, false);
        assert!(matches!(next, Next::End(FetchEnd::Bad(_))));
    }

    #[test]
    fn what_another_try_does_not_change_ends_the_fetch() {
        let start = Instant::now();
        let end = |broke| match Persistence::new(start, 1).after(start, broke, 0, true) {
            Next::End(end) => end,
            other => panic!("{other:?}"),
        };
        let missing = OriginError::NotFound {
            what: "blob".into(),
            said: String::new(),
        };
        let failed = |failure| FetchEnd::Failed(failure);
        assert_eq!(
            end(Broke::Origin(missing.clone())),
            failed(Failure::Origin(missing.clone()))
        );
        assert_eq!(
            end(Broke::CutShort(missing.clone())),
            failed(Failure::CutShort(missing))
        );
        assert_eq!(
            end(Broke::Settings("x".into())),
            failed(Failure::Settings("x".into()))
        );
        assert_eq!(
            end(Broke::Disk("full".into())),
            FetchEnd::Disk("full".into())
        );
        assert_eq!(end(Broke::Unwanted), FetchEnd::Unwanted);
    }
}
