//! Places that ended, by their numbers: so that a call that comes late or twice is known as that.

use alloc::collections::VecDeque;

use proto::HostId;

use super::number::PlaceNumber;

/// The most ended places that are remembered. The oldest is forgotten first. They are kept on disk with the places.
pub const MAX_ENDED: usize = 512;

/// How a place ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceEnd {
    /// Its caller gave it back.
    GivenBack,
    /// An operator gave back whatever place the host had.
    ByOperator,
    /// Nobody gave it back before its time was over.
    TimeOver,
    /// It was given back before any ask for it came; or it ended so long ago that it is forgotten.
    Unknown,
}

/// A place that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its host.
    pub host: HostId,
    /// Its number.
    pub number: PlaceNumber,
    /// How it ended.
    pub how: PlaceEnd,
    /// Whether its caller may take it anew: its time was over, and its caller may not have heard of it yet.
    pub again: bool,
}

/// The places that ended last.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    ended: VecDeque<Ended>,
}

impl Memory {
    /// How this place ended. `None` where nothing is known of it.
    pub(super) fn get(&self, host: &HostId, number: PlaceNumber) -> Option<&Ended> {
        let mut ended = self.ended.iter();
        ended.find(|of| of.number == number && of.host == *host)
    }

    /// A place ended.
    pub(super) fn add(&mut self, ended: Ended) {
        self.forget(&ended.host, ended.number);
        if self.ended.len() >= MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(ended);
    }

    /// The place is taken anew.
    pub(super) fn forget(&mut self, host: &HostId, number: PlaceNumber) {
        self.ended
            .retain(|of| of.number != number || of.host != *host);
    }

    /// All of them, the oldest first.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Ended> {
        self.ended.iter()
    }
}
