//! Numbers between types.

use crate::network::Nanos;

/// A place in a table as the number by which events name it.
pub(super) fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Seconds in nanoseconds; none below zero.
pub(super) fn seconds(seconds: f64) -> Nanos {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times of scenarios are small and positive"
    )]
    let nanos = (seconds.max(0.0) * 1e9) as Nanos;
    nanos
}

#[expect(clippy::cast_precision_loss, reason = "ratios for people")]
pub(super) fn precise(value: u64) -> f64 {
    value as f64
}
