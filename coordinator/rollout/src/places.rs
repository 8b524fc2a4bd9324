//! Places: how many hosts of a group may be worked on at one time, in racks without a cluster.
//!
//! Whoever works on a host asks for a place in a group, and gives the place back when the work is done. A place has a
//! number, which its caller makes and keeps through all tries. A caller whose answer was lost asks again and gets its
//! own place again. **Invariant:** no call gets or gives back a place of another number, however late it comes and
//! however often, but for an operator's that says so. A place that nobody gives back ends by itself.
//!
//! A number is used once: what was given back isn't taken again by an ask that comes late. Callers of earlier versions
//! name no number. All of them are one caller, because nothing tells them apart.
//!
//! Each caller says how many hosts may have a place. **Invariant:** a place is given only where, with it, no more
//! places are taken than *every* caller says who has a place or waits. So no order of asks exceeds anybody's cap, and a
//! second caller can't raise the first one's.
//!
//! The host that waits longest comes first, whoever asks for it. A host that isn't ready keeps its turn and holds up
//! nobody. A wait that isn't repeated is over after [`WAIT_LIVES`].
//!
//! No clock of a machine decides anything. After a restart each place gets its whole time again, because nobody knows
//! how long the restart took: a place may last longer than it should, and never ends early.

mod ended;
mod group_name;
mod number;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::time::Duration;

use proto::{Digest, HostId, Moment, Reason};

use self::ended::Memory;
pub use self::{
    ended::{Ended, MAX_ENDED, MAX_UNKNOWN, PlaceEnd},
    group_name::{GroupName, MAX_GROUP_BYTES, NoGroupName},
    number::{NoPlaceNumber, PlaceNumber},
};

#[cfg(test)]
mod tests;

/// The most groups at one time. A group is there while it has a place or a wait.
pub const MAX_GROUPS: usize = 64;
/// The most places at one time, of all groups together. They are kept on disk, and in a cluster in its Secret.
pub const MAX_PLACES: usize = 512;
/// The most callers that wait at one time, of all groups together. One that is beyond waits without a turn.
pub const MAX_WAITS: usize = 4_096;
/// The longest time of a place.
pub const MAX_LASTS: Duration = Duration::from_hours(24);
/// A wait that isn't repeated within this time is over. Callers repeat theirs within 10 s.
pub const WAIT_LIVES: Duration = Duration::from_secs(30);

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
    /// The number of the place. `None`: the caller is of a version that knows none.
    pub number: Option<PlaceNumber>,
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
    /// Its number. `None`: its caller named none.
    pub number: Option<PlaceNumber>,
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
        /// Whether the caller had the place already.
        again: bool,
    },
    /// The host has to wait.
    Waits(Wait),
    /// The place of this number ended so. Its ask comes late: nothing is taken.
    Over(PlaceEnd),
}

/// Which place of a host is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// The one of this number.
    Numbered(PlaceNumber),
    /// One whose caller named no number: so says a caller of a version that knows none.
    Unnumbered,
    /// Whatever place the host has: so says an operator.
    Any,
}

/// What became of a place that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is given back, in these groups.
    Now(Vec<GroupName>),
    /// It had ended before.
    Before(PlaceEnd),
    /// The host has no place that this call is about.
    Nothing,
    /// The host's places have numbers, and the call names none.
    Numbered,
}

/// What a host waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The host isn't ready, for this reason. A place that it has from an earlier ask stays.
    Unready(Reason),
    /// Another caller has the host's place.
    Taken,
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
            Self::Taken => Reason::PlaceTaken,
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

/// A caller that waits for a host's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What for.
    pub purpose: Purpose,
    /// Since when it asks.
    pub since: Moment,
    /// What it waits for.
    pub wait: Wait,
    cap: Option<u32>,
    /// The host's turn: lower numbers come first.
    turn: u64,
    asked_at: Moment,
}

/// The hosts of one group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    places: BTreeMap<HostId, Place>,
    /// By host and the number of the caller's place.
    waits: BTreeMap<(HostId, Option<PlaceNumber>), Waiting>,
}

impl Group {
    /// The hosts that have a place.
    pub fn places(&self) -> impl ExactSizeIterator<Item = (&HostId, &Place)> {
        self.places.iter()
    }

    /// The hosts that wait, those first that come first; a host once for each caller.
    #[must_use]
    pub fn waits(&self) -> Vec<(&HostId, &Waiting)> {
        let waits = self.waits.iter();
        let mut waits: Vec<_> = waits.map(|((host, _), waiting)| (host, waiting)).collect();
        waits.sort_by_key(|(_, waiting)| waiting.turn);
        waits
    }

    /// The host's place, where this caller has it.
    #[must_use]
    pub fn own(&self, host: &HostId, number: Option<PlaceNumber>) -> Option<&Place> {
        self.places.get(host).filter(|of| of.number == number)
    }

    /// The host's place, whoever has it.
    #[must_use]
    pub fn place(&self, host: &HostId) -> Option<&Place> {
        self.places.get(host)
    }

    /// The host's turn, where anybody waits for it.
    fn turn(&self, host: &HostId) -> Option<u64> {
        let waits = self.waits.iter().filter(|((of, _), _)| of == host);
        waits.map(|(_, waiting)| waiting.turn).min()
    }

    /// Whoever waits for this host has this turn from here on.
    fn turns_anew(&mut self, host: &HostId, turn: u64) {
        let waits = self.waits.iter_mut().filter(|((of, _), _)| of == host);
        waits.for_each(|(_, waiting)| waiting.turn = turn);
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
        let before = self.waits.iter().filter(|((host, _), waiting)| {
            waiting.turn < turn
                && !matches!(waiting.wait, Wait::Unready(_))
                && !self.places.contains_key(host)
        });
        let hosts: BTreeSet<&HostId> = before.map(|((host, _), _)| host).collect();
        u32::try_from(hosts.len()).unwrap_or(u32::MAX)
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
    memory: Memory,
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

    /// A place that had ended before a restart. It isn't there, also where it was kept as one: then only one of the two
    /// writes was made, and its caller heard no answer.
    pub fn restore_ended(&mut self, ended: Ended) {
        for (name, group) in &mut self.groups {
            let own = group.own(&ended.host, Some(ended.number)).is_some();
            if own && ended.group.as_ref().is_none_or(|of| of == name) {
                group.places.remove(&ended.host);
            }
        }
        self.groups.retain(|_, group| !group.is_empty());
        self.memory.add(ended);
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
        if let Some(how) = self.over(name, &ask) {
            return Ok(Answer::Over(how));
        }
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
        let key = (ask.host, ask.number);
        let known = group.waits.get(&key);
        let since = known.map_or(now, |of| of.since);
        let (known, begun) = (known.is_some(), group.turn(&key.0));
        let turn = begun.unwrap_or(self.turns);
        let others = group.before(turn);
        let place = group.places.get(&key.0);
        let wait = match (ask.ready, place) {
            (Err(reason), _) => Some(Wait::Unready(reason)),
            (Ok(()), Some(place)) if place.number != key.1 => Some(Wait::Taken),
            // the caller says less than when it took the place
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
                self.turns += u64::from(begun.is_none());
                group.waits.insert(key, waiting);
            } else if group.is_empty() {
                self.groups.remove(name);
            }
            return Ok(Answer::Waits(wait));
        }
        let before = place.map(|place| (place.cap, place.taken_ms));
        let (before, taken_ms) = before.unwrap_or((cap, unix_ms));
        // the caller may say less than the first time
        let cap = own.map_or(before, |own| own.min(before));
        group.waits.remove(&key);
        let (host, number) = key;
        if let Some(number) = number {
            self.memory.forget(Some(name), &host, number);
        }
        let place = Place {
            number,
            purpose: ask.purpose,
            cap,
            lasts,
            taken_ms,
            ends_at: now + lasts,
        };
        let again = group.places.contains_key(&host);
        if !again {
            // the host had its turn: who waits for it further comes behind all others
            group.turns_anew(&host, self.turns);
            self.turns += 1;
        }
        group.places.insert(host, place);
        Ok(Answer::Open { again })
    }

    /// How the place ended that is asked for, if it isn't to be taken any more. A caller whose time was over before it
    /// heard of its place may have it anew.
    fn over(&self, name: &GroupName, ask: &Ask) -> Option<PlaceEnd> {
        let number = ask.number?;
        let group = self.groups.get(name);
        if group.is_some_and(|of| of.own(&ask.host, ask.number).is_some()) {
            return None;
        }
        let ended = self.memory.get(Some(name), &ask.host, number)?;
        (!ended.again).then_some(ended.how)
    }

    /// The work on a host is done: its place is given back, in this group or in every one. The places and those that
    /// ended have to be kept before anybody is told.
    pub fn done(&mut self, name: Option<&GroupName>, host: &HostId, back: Back) -> Done {
        let (mut given_back, mut numbered) = (Vec::new(), false);
        for (group_name, group) in &mut self.groups {
            if name.is_some_and(|name| name != group_name) {
                continue;
            }
            let own = match back {
                Back::Numbered(number) => Some(Some(number)),
                Back::Unnumbered => Some(None),
                Back::Any => None,
            };
            // who gives a place back waits for it no longer
            if let Some(number) = own {
                group.waits.remove(&(host.clone(), number));
            }
            let Some(place) = group.places.get(host) else {
                continue;
            };
            let number = place.number;
            if own.is_some_and(|own| own != number) {
                numbered |= number.is_some();
                continue;
            }
            group.places.remove(host);
            given_back.push(group_name.clone());
            let how = match back {
                Back::Any => PlaceEnd::ByOperator,
                Back::Numbered(_) | Back::Unnumbered => PlaceEnd::GivenBack,
            };
            if let Some(number) = number {
                // what is given back in every group is taken in none any more
                let everywhere = name.is_none() && how == PlaceEnd::GivenBack;
                self.memory.add(Ended {
                    group: (!everywhere).then(|| group_name.clone()),
                    host: host.clone(),
                    number,
                    how,
                    again: false,
                });
            }
        }
        self.groups.retain(|_, group| !group.is_empty());
        match back {
            _ if !given_back.is_empty() => Done::Now(given_back),
            Back::Numbered(number) => {
                let ended = self.memory.get(name, host, number);
                let how = ended.map_or(PlaceEnd::Unknown, |of| of.how);
                // an ask for it that is still on its way takes nothing
                self.memory.add(Ended {
                    group: name.cloned(),
                    host: host.clone(),
                    number,
                    how,
                    again: false,
                });
                Done::Before(how)
            }
            Back::Unnumbered if numbered => Done::Numbered,
            Back::Unnumbered | Back::Any => Done::Nothing,
        }
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
                    if let Some(number) = place.number {
                        self.memory.add(Ended {
                            group: Some(name.clone()),
                            host: host.clone(),
                            number,
                            how: PlaceEnd::TimeOver,
                            again: true,
                        });
                    }
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

    /// The places that ended last, the oldest first.
    pub fn ended(&self) -> impl ExactSizeIterator<Item = &Ended> {
        self.memory.iter()
    }

    fn taken(&self) -> usize {
        self.groups.values().map(|group| group.places.len()).sum()
    }

    fn waiting(&self) -> usize {
        self.groups.values().map(|group| group.waits.len()).sum()
    }
}
