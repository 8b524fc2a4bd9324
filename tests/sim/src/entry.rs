//! An event that is to happen at a moment.

use std::cmp::Ordering;

/// An event with its time. Of two events at the same time, the one that was planned first happens first.
#[derive(Debug)]
pub(crate) struct Entry<At, Due> {
    pub(crate) at: At,
    /// Rises with each event that is planned.
    pub(crate) sequence: u64,
    pub(crate) due: Due,
}

impl<At: Ord, Due> PartialEq for Entry<At, Due> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<At: Ord, Due> Eq for Entry<At, Due> {}

impl<At: Ord, Due> PartialOrd for Entry<At, Due> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<At: Ord, Due> Ord for Entry<At, Due> {
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.at, self.sequence).cmp(&(&other.at, other.sequence))
    }
}
