//! Places: how many hosts of a group may be worked on at one time, in racks without a cluster.
//!
//! Whoever works on a host asks for a place in a group, and gives the place back when the work is done. A place is the
//! host's, not the caller's: a caller whose answer was lost asks again and gets the place that the host has. A place
//! that nobody gives back ends by itself.
//!
//! Each caller says how many hosts may have a place. **Invariant:** a place is given only where, with it, no more
//! places are taken than *every* caller says who has a place or waits. So no order of asks exceeds anybody's cap, and a
//! second caller can't raise the first one's.
//!
//! Who waits longest comes first. A host that isn't ready keeps its turn and holds up nobody. A wait that isn't
//! repeated is over after [`WAIT_LIVES`].
//!
//! No clock of a machine decides anything. After a restart each place gets its whole time again, because nobody knows
//! how long the restart took: a place may last longer than it should, and never ends early.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::{fmt, str::FromStr, time::Duration};

use proto::{Digest, HostId, Moment, Reason};

#[cfg(test)]
mod tests;

/// The most bytes of a group's name.
pub const MAX_GROUP_BYTES: usize = 64;
/// The most groups at one time. A group is there while it has a place or a wait.
pub const MAX_GROUPS: usize = 64;
/// The most places at one time, of all groups together. They are kept on disk, and in a cluster in its Secret.
pub const MAX_PLACES: usize = 512;
/// The most waits at one time, of all groups together. One that is beyond waits without a turn.
pub const MAX_WAITS: usize = 4_096;
/// The longest time of a place.
pub const MAX_LASTS: Duration = Duration::from_hours(24);
/// A wait that isn't repeated within this time is over. Callers repeat theirs within 10 s.
pub const WAIT_LIVES: Duration = Duration::from_secs(30);

/// The name of a group: 1 to 64 letters, digits, `.`, `_` and `-`, a letter or digit first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupName(String);

/// The text isn't the name of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoGroupName;

impl fmt::Display for NoGroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not the name of a group (1 to {MAX_GROUP_BYTES} letters, digits, '.', '_' and '-', a letter or digit first)"
        )
    }
}

impl core::error::Error for NoGroupName {}

impl GroupName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = NoGroupName;

    fn from_str(text: &str) -> Result<Self, NoGroupName> {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins && text.len() <= MAX_GROUP_BYTES && text.bytes().all(usual) {
            true => Ok(Self(text.into())),
            false => Err(NoGroupName),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a host is worked on for: an image, and the name by which somebody asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purpose {
    /// The image.
    pub image: Digest,
    /// The reference that was asked for.
    pub reference: String,
}

/// An ask for a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The host that is worked on.
    pub host: HostId,
    /// What for.
    pub purpose: Purpose,
    /// Whether the host holds the image now; if not, why.
    pub ready: Result<(), Reason>,
    /// The most hosts of the group that may have a place. `None`: as many as the others say.
    pub cap: Option<u32>,
    /// How long the place lasts, at most [`MAX_LASTS`].
    pub lasts: Duration,
}

/// A place that a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the host is worked on for.
    pub purpose: Purpose,
    /// The most places that the group may have while this one is taken.
    pub cap: u32,
    /// How long a place lasts that is given anew.
    pub lasts: Duration,
    /// When it was taken, in Unix milliseconds: to be shown, nothing else.
    pub taken_ms: u64,
    /// When it ends by itself.
    pub ends_at: Moment,
}

/// The answer to an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The host has a place, and holds the image.
    Open {
        /// Whether the host had the place already.
        again: bool,
    },
    /// The host has to wait.
    Waits(Wait),
}

/// What a host waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The host isn't ready, for this reason. A place that it has from an earlier ask stays.
    Unready(Reason),
    /// As many hosts have a place as the strictest caller allows, or more.
    CapReached {
        /// The places that are taken.
        taken: u32,
        /// The most that may be.
        cap: u32,
    },
    /// There is room, and hosts that have waited longer come first.
    Behind {
        /// How many come first.
        others: u32,
    },
    /// As many places are taken, in all groups, as the coordinator keeps.
    Full,
}

impl Wait {
    /// The reason, as it is told.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Unready(reason) => reason,
            Self::CapReached { .. } | Self::Full => Reason::CapReached,
            Self::Behind { .. } => Reason::AwaitingPlace,
        }
    }
}

/// Why an ask is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nobody says how many hosts of the group may have a place.
    NoCap,
    /// There are [`MAX_GROUPS`] groups.
    TooManyGroups,
}

/// A host that waits for a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What for.
    pub purpose: Purpose,
    /// Since when it asks.
    pub since: Moment,
    /// What it waits for.
    pub wait: Wait,
    cap: Option<u32>,
    /// Its turn: lower numbers come first.
    turn: u64,
    asked_at: Moment,
}

/// The hosts of one group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    places: BTreeMap<HostId, Place>,
    waits: BTreeMap<HostId, Waiting>,
}

impl Group {
    /// The hosts that have a place.
    pub fn places(&self) -> impl ExactSizeIterator<Item = (&HostId, &Place)> {
        self.places.iter()
    }

    /// The hosts that wait, those first that come first.
    #[must_use]
    pub fn waits(&self) -> Vec<(&HostId, &Waiting)> {
        let mut waits: Vec<_> = self.waits.iter().collect();
        waits.sort_by_key(|(_, waiting)| waiting.turn);
        waits
    }

    /// The most hosts that may have a place: the least that anybody says who has one, or waits.
    #[must_use]
    pub fn cap(&self) -> Option<u32> {
        let places = self.places.values().map(|place| place.cap);
        let waits = self.waits.values().filter_map(|waiting| waiting.cap);
        places.chain(waits).min()
    }

    /// The places that are taken.
    #[must_use]
    pub fn taken(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX)
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty() && self.waits.is_empty()
    }

    /// How many hosts without a place come before this one: they are ready, or were when they last asked, and have
    /// waited longer.
    fn before(&self, turn: u64) -> u32 {
        let before = self.waits.iter().filter(|(host, waiting)| {
            waiting.turn < turn
                && !matches!(waiting.wait, Wait::Unready(_))
                && !self.places.contains_key(*host)
        });
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    fn forget_waits(&mut self, now: Moment) {
        let lives = |waiting: &Waiting| now.since(waiting.asked_at) <= WAIT_LIVES;
        self.waits.retain(|_, waiting| lives(waiting));
    }
}

/// All places, by group.
#[derive(Clone, Debug, Default)]
pub struct Places {
    groups: BTreeMap<GroupName, Group>,
    turns: u64,
}

impl Places {
    /// A place that was kept over a restart. It gets its whole time again.
    pub fn restore(&mut self, now: Moment, group: GroupName, host: HostId, place: Place) {
        let lasts = place.lasts.min(MAX_LASTS);
        let place = Place {
            ends_at: now + lasts,
            lasts,
            ..place
        };
        if self.taken() < MAX_PLACES {
            self.groups
                .entry(group)
                .or_default()
                .places
                .insert(host, place);
        }
    }

    /// Asks for a place. `unix_ms` is only shown. Where the answer is [`Answer::Open`], the group's places have to be
    /// kept before anybody is told.
    ///
    /// # Errors
    /// Nobody says a cap, or there are too many groups. Nothing is changed then.
    pub fn ask(
        &mut self,
        now: Moment,
        unix_ms: u64,
        name: &GroupName,
        ask: Ask,
    ) -> Result<Answer, Refused> {
        if let Some(group) = self.groups.get_mut(name) {
            group.forget_waits(now);
        } else if self.groups.len() >= MAX_GROUPS {
            self.expire_waits(now);
            if self.groups.len() >= MAX_GROUPS {
                return Err(Refused::TooManyGroups);
            }
        }
        let (all_taken, all_waits) = (self.taken(), self.waiting());
        let own = ask.cap.map(|cap| cap.max(1));
        let said = self.groups.get(name).and_then(Group::cap);
        let Some(cap) = said.into_iter().chain(own).min() else {
            return Err(Refused::NoCap);
        };
        let group = self.groups.entry(name.clone()).or_default();
        let (taken, lasts) = (group.taken(), ask.lasts.min(MAX_LASTS));
        let known = group.waits.get(&ask.host);
        let (since, turn) = known.map_or((now, self.turns), |of| (of.since, of.turn));
        let (known, others) = (known.is_some(), group.before(turn));
        let place = group.places.get_mut(&ask.host);
        let wait = match (ask.ready, &place) {
            (Err(reason), _) => Some(Wait::Unready(reason)),
            // another caller's place, whose cap was greater
            (Ok(()), Some(_)) if own.is_some_and(|cap| taken > cap) => {
                Some(Wait::CapReached { taken, cap })
            }
            (Ok(()), Some(_)) => None,
            (Ok(()), None) if taken >= cap => Some(Wait::CapReached { taken, cap }),
            (Ok(()), None) if others >= cap - taken => Some(Wait::Behind { others }),
            (Ok(()), None) if all_taken >= MAX_PLACES => Some(Wait::Full),
            (Ok(()), None) => None,
        };
        if let Some(wait) = wait {
            if known || all_waits < MAX_WAITS {
                let waiting = Waiting {
                    purpose: ask.purpose,
                    since,
                    wait,
                    cap: own,
                    turn,
                    asked_at: now,
                };
                self.turns += u64::from(!known);
                group.waits.insert(ask.host, waiting);
            } else if group.is_empty() {
                self.groups.remove(name);
            }
            return Ok(Answer::Waits(wait));
        }
        let before = place.map(|place| (place.cap, place.taken_ms));
        let (before, taken_ms) = before.unwrap_or((cap, unix_ms));
        // a second caller for the host may say less than the first one
        let cap = own.map_or(before, |own| own.min(before));
        group.waits.remove(&ask.host);
        let place = Place {
            purpose: ask.purpose,
            cap,
            lasts,
            taken_ms,
            ends_at: now + lasts,
        };
        let again = group.places.insert(ask.host, place).is_some();
        Ok(Answer::Open { again })
    }

    /// A host's work is done: its place is given back, and it waits no longer. Returns the place; `None` where the host
    /// had none.
    pub fn done(&mut self, name: &GroupName, host: &HostId) -> Option<Place> {
        let group = self.groups.get_mut(name)?;
        group.waits.remove(host);
        let place = group.places.remove(host);
        if group.is_empty() {
            self.groups.remove(name);
        }
        place
    }

    /// Ends the places whose time is over, and returns them. The waits that weren't repeated are forgotten.
    pub fn expire(&mut self, now: Moment) -> Vec<(GroupName, HostId, Place)> {
        let mut over = Vec::new();
        for (name, group) in &mut self.groups {
            let ends = group
                .places
                .iter()
                .filter(|(_, place)| place.ends_at <= now);
            let ends: Vec<HostId> = ends.map(|(host, _)| host.clone()).collect();
            for host in ends {
                if let Some(place) = group.places.remove(&host) {
                    over.push((name.clone(), host, place));
                }
            }
        }
        self.expire_waits(now);
        over
    }

    /// Forgets the waits that weren't repeated.
    pub fn expire_waits(&mut self, now: Moment) {
        for group in self.groups.values_mut() {
            group.forget_waits(now);
        }
        self.groups.retain(|_, group| !group.is_empty());
    }

    /// When the next place ends by itself.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        let places = self.groups.values().flat_map(|group| group.places.values());
        places.map(|place| place.ends_at).min()
    }

    /// All groups that have a place or a wait.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (&GroupName, &Group)> {
        self.groups.iter()
    }

    /// A group, where it has a place or a wait.
    #[must_use]
    pub fn group(&self, name: &GroupName) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The groups in which a host has a place or waits.
    #[must_use]
    pub fn groups_of(&self, host: &HostId) -> Vec<GroupName> {
        let has = |group: &Group| group.places.contains_key(host) || group.waits.contains_key(host);
        let groups = self.groups.iter().filter(|(_, group)| has(group));
        groups.map(|(name, _)| name.clone()).collect()
    }

    fn taken(&self) -> usize {
        self.groups.values().map(|group| group.places.len()).sum()
    }

    fn waiting(&self) -> usize {
        self.groups.values().map(|group| group.waits.len()).sum()
    }
}
