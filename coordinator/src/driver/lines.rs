//! Lines of the log about what a host says: so many of a kind within a while, and how many were left out. A host's
//! reports alone can't fill the coordinator's disk.

use std::{collections::BTreeMap, time::Duration};

use proto::Moment;

/// Lines of one kind about one host in this time: all that happens to an honest host at once, and one a second on
/// average.
const LINES: u32 = 10;
const WITHIN: Duration = Duration::from_secs(10);

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Line {
    /// A lease failed on its holder.
    LeaseFailed,
    /// The registry refuses the token that was handed down.
    TokenRefused,
    /// What the registry does to a holder.
    Registry,
    /// A host takes back what it made.
    Retracted,
    /// It blames another.
    Blames,
    /// It shows false links.
    FalseLinks,
}

/// What the log has lately of one host.
#[derive(Debug, Default)]
pub(super) struct Lines(BTreeMap<Line, Written>);

#[derive(Debug)]
struct Written {
    since: Moment,
    lines: u32,
    left_out: u64,
}

impl Lines {
    /// Whether a line of this kind is written now, and how many were left out before it.
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
        // another kind has its own
        assert_eq!(lines.due(start, Line::Retracted), Some(0));
        let soon = start + WITHIN - Duration::from_millis(1);
        assert_eq!(lines.due(soon, Line::LeaseFailed), None);
        let then = start + WITHIN;
        assert_eq!(lines.due(then, Line::LeaseFailed), Some(4_491));
        assert_eq!(lines.due(then, Line::LeaseFailed), Some(0));
    }
}
