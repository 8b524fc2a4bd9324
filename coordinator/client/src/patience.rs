//! How long one end of the API takes, and how long the other end waits. Both ends have the numbers from here, because a
//! client that waits for less than the coordinator takes gives up a moment before the answer.

use std::time::Duration;

/// The coordinator answers each request within this time, which is longer than a registry may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(90);
/// A client waits for an answer for this long.
pub const ANSWER_AWAITED: Duration = Duration::from_secs(ANSWER_WITHIN.as_secs() + 10);
/// The longest time between two lines of progress. A line comes this often even without news, so that each end sees
/// that the other is alive.
pub const LINE_EVERY: Duration = Duration::from_secs(5);
/// A client waits for a line for this long.
pub const LINE_AWAITED: Duration = Duration::from_secs(4 * LINE_EVERY.as_secs());
/// What a line said is called old, and its rates aren't shown, when no further line came for this long.
pub const LINE_FRESH: Duration = Duration::from_secs(LINE_EVERY.as_secs() + 2);
