//! Places that ended, by their numbers: so that a call that comes late or twice is known as that.

use alloc::collections::VecDeque;

use proto::HostId;

use super::{group_name::GroupName, number::PlaceNumber};

/// The most ended places that are remembered. The oldest is forgotten first. They are kept on disk with the places.
pub const MAX_ENDED: usize = 512;
/// The most numbers that are remembered beside them because somebody gave back a place of which nothing is known. The
/// oldest is forgotten first.
pub const MAX_UNKNOWN: usize = 128;

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
    /// Its group. `None`: its caller gave it back in every group; or it was kept by a version that knew no groups here.
    pub group: Option<GroupName>,
    /// Its host.
    pub host: HostId,
    /// Its number.
    pub number: PlaceNumber,
    /// How it ended.
    pub how: PlaceEnd,
    /// Whether its caller may take it anew: its time was over, and its caller may not have heard of it yet.
    pub again: bool,
}

impl Ended {
    /// Whether this is the end of the place of this number. Without a group, on either side, every group is meant.
    pub(super) fn is(&self, group: Option<&GroupName>, host: &HostId, number: PlaceNumber) -> bool {
        let same = self
            .group
            .as_ref()
            .is_none_or(|own| group.is_none_or(|of| of == own));
        same && self.number == number && self.host == *host
    }
}

/// The places that ended last.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    ended: VecDeque<Ended>,
}

impl Memory {
    /// How this place ended, in this group or in any one. `None` where nothing is known of it.
    pub(super) fn get(
        &self,
        group: Option<&GroupName>,
        host: &HostId,
        number: PlaceNumber,
    ) -> Option<&Ended> {
        let mut ended = self.ended.iter().rev();
        ended.find(|of| of.is(group, host, number))
    }

    /// A place ended. One of which nothing is known pushes out no other.
    pub(super) fn add(&mut self, ended: Ended) {
        self.forget(ended.group.as_ref(), &ended.host, ended.number);
        let unknown = |of: &Ended| of.how == PlaceEnd::Unknown;
        let kind = unknown(&ended);
        let most = if kind { MAX_UNKNOWN } else { MAX_ENDED };
        let alike = |of: &Ended| unknown(of) == kind;
        if self.ended.iter().filter(|of| alike(of)).count() >= most
            && let Some(oldest) = self.ended.iter().position(alike)
        {
            self.ended.remove(oldest);
        }
        self.ended.push_back(ended);
    }

    /// The place is taken anew.
    pub(super) fn forget(&mut self, group: Option<&GroupName>, host: &HostId, number: PlaceNumber) {
        self.ended.retain(|of| !of.is(group, host, number));
    }

    /// All of them, the oldest first.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Ended> {
        self.ended.iter()
    }
}
