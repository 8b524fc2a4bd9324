//! Tries again what failed for a passing reason. The waits are [`Backoff`]'s.

use std::time::Duration;

use origin::{
    Backoff, OriginError,
    recipe::{FetchRecipeError, FindRecipeError},
};

use crate::say::tell;

/// The first and the longest wait. Registries throttle for some seconds.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// The failures in a row after which nothing is tried again: about a minute and a half of waiting.
const MOST_FAILURES: u32 = 8;

/// Something that may fail for a passing reason.
pub(super) trait MayPass: std::fmt::Display {
    /// Whether the same may succeed later.
    fn passes(&self) -> bool;
    /// How long the registry wants to be left alone.
    fn retry_after(&self) -> Option<Duration>;
}

impl MayPass for OriginError {
    fn passes(&self) -> bool {
        self.is_retryable()
    }

    fn retry_after(&self) -> Option<Duration> {
        self.retry_after()
    }
}

impl MayPass for FindRecipeError {
    fn passes(&self) -> bool {
        matches!(self, Self::Origin(error) if error.is_retryable())
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Origin(error) => error.retry_after(),
            Self::Unsound { .. } => None,
        }
    }
}

impl MayPass for FetchRecipeError {
    fn passes(&self) -> bool {
        matches!(self, Self::Origin(error) if error.is_retryable())
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Origin(error) => error.retry_after(),
            Self::Parse(_) => None,
        }
    }
}

/// How often something failed in a row, and how long to wait after that.
#[derive(Debug)]
pub(super) struct Patience(Backoff);

impl Patience {
    pub(super) fn new() -> Self {
        Self(Backoff::seeded(FIRST_DELAY, LONGEST_DELAY))
    }

    /// Notes that something moved since the last failure.
    pub(super) const fn moved(&mut self) {
        self.0.succeeded();
    }

    /// How long to wait after this failure; `None` when it isn't to be tried again.
    pub(super) fn delay(&mut self, error: &impl MayPass) -> Option<Duration> {
        let again = error.passes() && self.0.failures() < MOST_FAILURES;
        again.then(|| self.0.delay(error.retry_after()))
    }
}

/// Does something until it succeeds, fails for good, or has failed too often.
pub(super) async fn patiently<T, E: MayPass>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut patience = Patience::new();
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(delay) = patience.delay(&error) else {
            return Err(error);
        };
        tell(&format!("{error}; again in {:.1} s\n", delay.as_secs_f64()));
        tokio::time::sleep(delay).await;
    }
}
