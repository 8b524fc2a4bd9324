//! Attempts at a registry, one after the other.

use std::time::Duration;

use origin::{Backoff, OriginError};
use tokio::time::{Instant, sleep};

/// The most attempts at a manifest. There is another attempt only when the error says that trying again may help.
pub(super) const ATTEMPTS: usize = 4;
/// The first and the longest pause between attempts; a registry may ask for a longer one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Asks a registry, and asks again while the error says that this may help. Returns the last error when the registry
/// wants to be left alone beyond `until`.
pub(super) async fn patiently<T, F>(until: Instant, ask: impl Fn() -> F) -> Result<T, OriginError>
where
    F: Future<Output = Result<T, OriginError>>,
{
    let mut backoff = Backoff::seeded(FIRST_PAUSE, LONGEST_PAUSE);
    for _ in 1..ATTEMPTS {
        match ask().await {
            Err(error) if error.is_retryable() => {
                let pause = backoff.delay(error.retry_after());
                if Instant::now() + pause >= until {
                    return Err(error);
                }
                sleep(pause).await;
            }
            done => return done,
        }
    }
    ask().await
}
