//! Bounds the log lines about what a host says: at most [`LINES`] of a kind within [`WITHIN`]. The next line that is
//! written says how many were left out. So a host's reports can't fill the coordinator's disk.

use std::{collections::BTreeMap, time::Duration};

use proto::Moment;

/// The most lines of one kind about one host within [`WITHIN`]: enough for everything that happens to an honest host at
/// once, and one a second on average.
const LINES: u32 = 10;
const WITHIN: Duration = Duration::from_secs(10);

/// The kind of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// A lease failed on its holder.
    LeaseFailed,
    /// The registry refuses the token that was handed down.
    TokenRefused,
    /// The registry fails, throttles or stays silent to the holder of a lease.
    Registry,
    /// A host takes back links that it made.
    Retracted,
    /// A host blames another host.
    Blames,
    /// A host shows a link that is false, or two links that contradict each other.
    FalseLinks,
}

/// The lines that were lately written about one host, by kind.
#[derive(Debug, Default)]
pub(super) struct Lines(BTreeMap<Line, Written>);

#[derive(Debug)]
struct Written {
    since: Moment,
    lines: u32,
    left_out: u64,
}

impl Lines {
    /// `Some` when a line of this kind may be written now, with the number of lines that were left out before it.
    pub(super) fn due(&mut self, now: Moment, line: Line) -> Option<u64> {
        let written = self.0.entry(line).or_insert(Written {
            since: now,
            lines: 0,
            left_out: 0,
        });
        if now.since(written.since) >= WITHIN {
            (written.since, written.lines) = (now, 0);
        }
        if written.lines >= LINES {
            written.left_out += 1;
            return None;
        }
        written.lines += 1;
        Some(std::mem::take(&mut written.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_kind_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let mut lines = Lines::default();
        let start = Moment::START;
        let written = (0..4_500).filter(|_| lines.due(start, Line::LeaseFailed).is_some());
        assert_eq!(written.count(), LINES as usize);
        // another kind of line has its own bound
        assert_eq!(lines.due(start, Line::Retracted), Some(0));
        let soon = start + WITHIN - Duration::from_millis(1);
        assert_eq!(lines.due(soon, Line::LeaseFailed), None);
        let then = start + WITHIN;
        assert_eq!(lines.due(then, Line::LeaseFailed), Some(4_491));
        assert_eq!(lines.due(then, Line::LeaseFailed), Some(0));
    }
}
