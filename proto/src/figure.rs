//! Figures as every program writes them for people: with decimal units, and cut instead of rounded up, so that no
//! figure says more than there is.

use alloc::{format, string::String};
use core::{fmt, time::Duration};

/// Bytes with a decimal unit, as disks and networks are sold: `57.9 GB`. One digit follows the point; further digits
/// are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
            ("kB", 1_000),
        ];
        for (name, unit) in UNITS {
            if self.0 >= unit {
                let tenths = self.0 / (unit / 10);
                return write!(f, "{}.{} {name}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A time in the form that people use, cut to whole seconds: `59 s`, `1 min 2 s`, `3 h 4 min`, `2 d 5 h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// A time of `seconds` seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..60 => write!(f, "{seconds} s"),
            60..3_600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3_600..86_400 => write!(f, "{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
            _ => write!(f, "{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
        }
    }
}

/// A message with how long nothing has moved. The message says why, and may be empty.
#[must_use]
pub fn standing_still(message: &str, since: Duration) -> String {
    let since = Span(since);
    match message {
        "" => format!("no progress for {since}"),
        _ => format!("{message}; no progress for {since}"),
    }
}

/// A share in whole percent, cut: 100 only when `part` reaches `whole`; 0 where `whole` is 0.
#[must_use]
pub const fn percent(part: u64, whole: u64) -> u64 {
    match (part as u128 * 100).checked_div(whole as u128) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a part of a hundred, when part is at most whole"
        )]
        Some(percent) => percent as u64,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn figures_are_short_and_never_say_more_than_there_is() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (999_999, "999.9 kB"),
            (57_990_000_000, "57.9 GB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_599, "59 min 59 s"),
            (3_600, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (86_400, "1 d 0 h"),
        ] {
            assert_eq!(Span::seconds(seconds).to_string(), text);
        }
        assert_eq!(percent(999, 1_000), 99);
        assert_eq!(percent(1_000, 1_000), 100);
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
