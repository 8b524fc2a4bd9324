//! The gate without a cluster: whether a host holds an image by its own word, and places under the cap of a group.
//!
//! [`rollout::places`] decides who gets a place. This part says what it has to know of the host, in the words of the
//! API, and what of it is written to disk. The rule for presence is that of the cluster's gate: this reference, this
//! digest, by the host's own word, at most 30 s old.

use std::time::{Duration, Instant};

use client::gate::{
    self, AtMost, GateDoneReply, GateList, GateReply, GateVerdict, GateView, GroupView, PlaceView,
    WaitView,
};
use proto::{Digest, HostId, Moment, Reason};
use rollout::{
    places::{
        self, Answer as Given, Done, GroupName, Place, PlaceEnd, PlaceNumber, Purpose, Refused,
        Wait,
    },
    presence::{Held, MAX_AGE},
};
use tracing::{info, warn};

use super::{
    effect::Effects,
    hosts::Hosts,
    images::Images,
    members::Members,
    place_ask::{DoneAsk, GateAsk, GroupAsk, PlaceAsk, PlaceError},
    presence::Presence,
    took::unix_ms,
    words,
    writer::{Answer, GateAnswer, Write},
};
use crate::{fleet::Membership, wants::KeptPlaces};

/// How many hosts with a place are named to one that waits.
const MAX_NAMED: usize = 3;

/// What is known of the hosts and the images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    membership: &'a Membership,
    hosts: &'a Hosts,
    presence: &'a Presence,
    images: &'a Images,
}

/// A moment by three clocks: the driver's, the one by which hosts' words age, and the wall clock, which is only shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    now: Moment,
    clock: Instant,
    unix_ms: u64,
}

/// The places.
#[derive(Debug, Default)]
pub(super) struct Places {
    places: places::Places,
}

/// A host that may be asked about, and the image that it shall hold.
struct Meant {
    digest: Digest,
    held: Held,
    /// The hosts that the image was asked for on.
    asked_on: usize,
}

impl Clocks {
    pub(super) fn at(now: Moment) -> Self {
        Self {
            now,
            clock: Instant::now(),
            unix_ms: unix_ms(),
        }
    }
}

impl Places {
    /// The places that were kept over a restart. Each gets its whole time again.
    pub(super) fn kept(now: Moment, kept: KeptPlaces) -> Self {
        let mut this = Self::default();
        let ended = kept.ended();
        for (group, host, place) in kept.parse(now) {
            info!(group = group.as_str(), %host, "a place outlived the restart, and gets its whole time again");
            this.places.restore(now, group, host, place);
        }
        for ended in ended {
            this.places.restore_ended(ended);
        }
        this
    }

    /// Answers an ask, at once or when what changed is on disk.
    pub(super) fn answer(&mut self, at: Clocks, known: Known<'_>, ask: PlaceAsk) -> Effects {
        let mut effects = Effects::default();
        match ask {
            PlaceAsk::Open(ask, reply) => match self.ask(at, known, &ask) {
                // a place that was taken before is written again: the write before may have failed
                Ok((answer, true)) => {
                    let answer = GateAnswer::Open(Answer::new(reply, answer));
                    effects.write(Write::Gate(self.to_keep(), answer));
                }
                Ok((answer, false)) => drop(reply.send(Ok(answer))),
                Err(error) => drop(reply.send(Err(error))),
            },
            PlaceAsk::Done(ask, reply) => match self.done(&ask) {
                // written again also where nothing changes: the write before may have failed
                Ok(answer) => {
                    let answer = GateAnswer::Done(Answer::new(reply, answer));
                    effects.write(Write::Gate(self.to_keep(), answer));
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            PlaceAsk::List(reply) => drop(reply.send(self.list(at.now))),
        }
        effects
    }

    /// Answers for each host. The second value says whether the places have to be kept before the answer is sent.
    ///
    /// # Errors
    /// The group has no cap, or there are too many groups.
    fn ask(
        &mut self,
        at: Clocks,
        known: Known<'_>,
        ask: &GateAsk,
    ) -> Result<(GateReply, bool), PlaceError> {
        let (mut hosts, mut changed) = (Vec::with_capacity(ask.hosts.len()), false);
        for host in &ask.hosts {
            let (view, took) = self.ask_one(at, known, ask, host)?;
            changed |= took;
            hosts.push(view);
        }
        Ok((GateReply { hosts }, changed))
    }

    fn ask_one(
        &mut self,
        at: Clocks,
        known: Known<'_>,
        ask: &GateAsk,
        host: &HostId,
    ) -> Result<(GateView, bool), PlaceError> {
        let meant = match known.meant(at.clock, ask, host) {
            Ok(meant) => meant,
            Err(told) => {
                // the answer that gave a place may have been lost: its caller can give back only what it knows of
                let mut view = told.view(host, None);
                let group = ask.group.as_ref();
                view.place = group.and_then(|group| self.own(at.now, group, host));
                return Ok((view, false));
            }
        };
        let age = known.presence.age(at.clock, host);
        let ready = ready(meant.held);
        let Some(group) = &ask.group else {
            let told = match ready {
                Ok(()) => open(age, None),
                Err(reason) => unready(reason, host, age),
            };
            return Ok((told.view(host, Some(meant.digest)), false));
        };
        let purpose = Purpose {
            image: meant.digest,
            reference: ask.image.clone(),
        };
        let asked = places::Ask {
            host: host.clone(),
            number: group.number,
            purpose,
            ready,
            cap: group.at_most.map(|cap| most(cap, meant.asked_on)),
            lasts: group.lasts,
        };
        let answer = self.places.ask(at.now, at.unix_ms, &group.name, asked);
        let answer = answer.map_err(|refused| match refused {
            Refused::NoCap => PlaceError::NoCap(group.name.clone()),
            Refused::TooManyGroups => PlaceError::TooManyGroups,
        })?;
        let told = match answer {
            Given::Open { again } => {
                if !again {
                    info!(group = group.name.as_str(), %host, image = %meant.digest, "host has a place");
                }
                open(age, Some((&group.name, group.number)))
            }
            Given::Over(how) => over(host, how),
            Given::Waits(Wait::Unready(reason)) => unready(reason, host, age),
            Given::Waits(Wait::Taken) => self.taken(at.now, &group.name, host),
            Given::Waits(wait) => self.full(at.now, &group.name, host, wait),
        };
        let mut view = told.view(host, Some(meant.digest));
        view.place = self.own(at.now, group, host);
        Ok((view, matches!(answer, Given::Open { .. })))
    }

    /// The place that the caller has on this host.
    fn own(&self, now: Moment, group: &GroupAsk, host: &HostId) -> Option<PlaceView> {
        let places = self.places.group(&group.name)?;
        let place = places.own(host, group.number)?;
        Some(place_view(now, host, place))
    }

    /// What a caller waits for while another one has the host's place.
    fn taken(&self, now: Moment, name: &GroupName, host: &HostId) -> Told {
        let place = self.places.group(name).and_then(|of| of.place(host));
        let left = place.map_or(0, |place| place.ends_at.since(now).as_secs());
        let number = place.and_then(|place| place.number);
        let back = command(host, name, number);
        Told {
            verdict: GateVerdict::Waits,
            reason: Wait::Taken.reason(),
            message: format!(
                "another caller has its place in group {name}, whose time is over in {left} s"
            ),
            next: format!(
                "it goes on when that one is given back; where its caller is gone, give it back: `{back}`"
            ),
        }
    }

    /// What a host waits for that is ready.
    fn full(&self, now: Moment, name: &GroupName, host: &HostId, wait: Wait) -> Told {
        let places = self
            .places
            .group(name)
            .into_iter()
            .flat_map(|of| of.places());
        let mut named: Vec<String> = places
            .filter(|(other, _)| *other != host)
            .map(|(other, place)| {
                let left = place.ends_at.since(now).as_secs();
                format!("{other} (its time is over in {left} s)")
            })
            .collect();
        let more = named.len().saturating_sub(MAX_NAMED);
        named.truncate(MAX_NAMED);
        if more > 0 {
            named.push(format!("{more} more"));
        }
        let named = named.join(", ");
        let message = match wait {
            Wait::CapReached { taken, cap } => {
                format!("{taken} of {cap} places of group {name} are taken: by {named}")
            }
            Wait::Behind { others } => {
                format!("{others} hosts of group {name} have waited longer, and come first")
            }
            Wait::Full | Wait::Unready(_) | Wait::Taken => {
                format!("{} places are taken in all groups", places::MAX_PLACES)
            }
        };
        Told {
            verdict: GateVerdict::Waits,
            reason: wait.reason(),
            message,
            next: format!(
                "it goes on when a place is given back; `parbake gate list` shows who has one in group {name}"
            ),
        }
    }

    /// The work on a host is done: what became of the place.
    ///
    /// # Errors
    /// The call names no place, and the host's place has a number.
    fn done(&mut self, ask: &DoneAsk) -> Result<GateDoneReply, PlaceError> {
        let DoneAsk { host, group, back } = ask;
        let mut reply = GateDoneReply::default();
        match self.places.done(group.as_ref(), host, *back) {
            Done::Now(groups) => {
                for group in groups {
                    info!(group = group.as_str(), %host, "host gave its place back");
                    reply.given_back.push(group.to_string());
                }
                let groups = reply.given_back.join(", ");
                reply.message = format!("{host} gave its place back in {groups}");
            }
            Done::Before(how) => {
                reply.before = Some(ended(how));
                reply.message = format!("{host}: {}{}", before(how), self.now_has(ask));
            }
            Done::Nothing => {
                reply.message =
                    format!("{host} has no place: it was given back before, or its time was over");
            }
            Done::Numbered => return Err(PlaceError::Numbered(host.clone())),
        }
        Ok(reply)
    }

    /// Words for what a host has beside the place that is given back.
    fn now_has(&self, ask: &DoneAsk) -> String {
        let groups = self.places.groups().filter(|(name, of)| {
            let meant = ask.group.as_ref().is_none_or(|group| group == *name);
            meant && of.place(&ask.host).is_some()
        });
        let names: Vec<&str> = groups.map(|(name, _)| name.as_str()).collect();
        match names.is_empty() {
            true => String::new(),
            false => format!(
                "; the place that it has now in {} is another caller's, and stays",
                names.join(", ")
            ),
        }
    }

    /// Ends the places whose time is over.
    pub(super) fn expire(&mut self, now: Moment) -> Effects {
        let mut effects = Effects::default();
        if self.places.due().is_none_or(|due| due > now) {
            return effects;
        }
        let over = self.places.expire(now);
        for (group, host, place) in &over {
            warn!(
                group = group.as_str(),
                %host,
                image = %place.purpose.image,
                lasted_s = place.lasts.as_secs(),
                "a place's time was over before anybody gave it back; others may have it now"
            );
        }
        effects.write(Write::Gate(self.to_keep(), GateAnswer::None));
        effects
    }

    /// When the next place ends by itself.
    pub(super) fn due(&self) -> Option<Moment> {
        self.places.due()
    }

    /// All places, as they are kept on disk.
    fn to_keep(&self) -> KeptPlaces {
        KeptPlaces::of(&self.places)
    }

    /// Who has a place, and who waits.
    fn list(&mut self, now: Moment) -> GateList {
        // a wait that nobody repeats any more isn't shown
        self.places.expire_waits(now);
        let groups = self.places.groups();
        let groups = groups.map(|(name, group)| GroupView {
            group: name.to_string(),
            cap: group.cap(),
            places: group
                .places()
                .map(|(host, place)| place_view(now, host, place))
                .collect(),
            waits: group
                .waits()
                .into_iter()
                .map(|(host, waiting)| WaitView {
                    host: host.to_string(),
                    image: waiting.purpose.reference.clone(),
                    digest: waiting.purpose.image.to_string(),
                    waits_seconds: now.since(waiting.since).as_secs(),
                    reason: waiting.wait.reason().into(),
                })
                .collect(),
        });
        GateList {
            groups: groups.collect(),
        }
    }
}

impl<'a> Known<'a> {
    pub(super) fn new(members: &'a Members, images: &'a Images) -> Self {
        Self {
            membership: members.membership(),
            hosts: members.hosts(),
            presence: members.presence(),
            images,
        }
    }

    /// The image that is meant on this host, and what the host says of it; otherwise the answer why there is none.
    fn meant(&self, clock: Instant, ask: &GateAsk, host: &HostId) -> Result<Meant, Told> {
        let told = |verdict, reason, message, next| {
            Err(Told {
                verdict,
                reason,
                message,
                next,
            })
        };
        if let Some(revocation) = self.membership.revoked.get(host) {
            let message = words::revocation(host, revocation);
            return told(
                GateVerdict::Refused,
                Reason::Revoked,
                message,
                "name another host".to_owned(),
            );
        }
        if !self.hosts.contains(host) {
            return told(
                GateVerdict::Refused,
                Reason::NotInFleet,
                format!("host {host} isn't part of the fleet"),
                "`parbake hosts` lists the hosts; add it to the fleet file and enrol it".to_owned(),
            );
        }
        let names = self.images.names_on(host);
        let bare: Option<Digest> = ask.image.parse().ok();
        let meant = names.iter().filter(|(name, (digest, _))| match &bare {
            Some(bare) => digest == bare,
            None => **name == ask.image,
        });
        let held = meant
            .map(|(name, (digest, _))| (self.presence.held(clock, host, name, digest), *digest));
        let Some((held, digest)) = held.min() else {
            return match self.images.are_known() {
                false => told(
                    GateVerdict::Waits,
                    Reason::NotSynced,
                    "the coordinator is still finding out what was wanted before it started"
                        .to_owned(),
                    String::new(),
                ),
                true => told(
                    GateVerdict::Refused,
                    Reason::NotSelected,
                    format!(
                        "nobody asked for {} on {host}",
                        crate::progress::clean(&ask.image)
                    ),
                    format!(
                        "`parbake stage {} --hosts {host} --wait` brings it there",
                        ask.image
                    ),
                ),
            };
        };
        if ask.digest.is_some_and(|known| known != digest) {
            return told(
                GateVerdict::Refused,
                Reason::Superseded,
                format!("{} names another image now: {digest}", ask.image),
                "ask again, if that one is meant".to_owned(),
            );
        }
        let hosts = self.images.get(&digest).map(|of| &of.want().hosts);
        let asked_on = match hosts {
            Some(Some(hosts)) => hosts
                .iter()
                .filter(|host| self.hosts.contains(host))
                .count(),
            Some(None) | None => self.hosts.len(),
        };
        Ok(Meant {
            digest,
            held,
            asked_on,
        })
    }
}

/// An answer in words.
struct Told {
    verdict: GateVerdict,
    reason: Reason,
    message: String,
    next: String,
}

impl Told {
    fn view(self, host: &HostId, digest: Option<Digest>) -> GateView {
        GateView {
            host: host.to_string(),
            digest: digest.map(|digest| digest.to_string()),
            verdict: self.verdict,
            reason: self.reason.into(),
            message: self.message,
            next: self.next,
            failed_seconds: None,
            image_failed: None,
            place: None,
        }
    }
}

/// Whether the image may be used, by the rule of the cluster's gate.
const fn ready(held: Held) -> Result<(), Reason> {
    match held {
        Held::Fresh => Ok(()),
        Held::Old(_) => Err(Reason::PresenceOld),
        Held::Missing => Err(Reason::ImageMissing),
        Held::Unheard => Err(Reason::HostUnheard),
    }
}

/// The command that gives a place back.
fn command(host: impl std::fmt::Display, group: &GroupName, number: Option<PlaceNumber>) -> String {
    let number = number.map_or_else(String::new, |number| format!(" --place {number}"));
    format!("parbake gate done {host} --group {group}{number}")
}

/// How a place ended, as it is told.
const fn ended(how: PlaceEnd) -> gate::PlaceEnd {
    match how {
        PlaceEnd::GivenBack => gate::PlaceEnd::GivenBack,
        PlaceEnd::ByOperator => gate::PlaceEnd::ByOperator,
        PlaceEnd::TimeOver => gate::PlaceEnd::TimeOver,
        PlaceEnd::Unknown => gate::PlaceEnd::Unknown,
    }
}

/// How a place ended, for people.
const fn before(how: PlaceEnd) -> &'static str {
    match how {
        PlaceEnd::GivenBack => "this place was given back before",
        PlaceEnd::ByOperator => {
            "an operator gave this place back before, and others may have worked on the host since"
        }
        PlaceEnd::TimeOver => {
            "this place's time was over before it was given back, and others may have worked on the host since"
        }
        PlaceEnd::Unknown => "nothing is known of this place: it was never taken, or long ago",
    }
}

/// The answer to an ask for a place that has ended.
fn over(host: &HostId, how: PlaceEnd) -> Told {
    Told {
        verdict: GateVerdict::Refused,
        reason: Reason::PlaceOver,
        message: before(how).to_owned(),
        next: format!("ask for {host} anew, with a number that wasn't used before"),
    }
}

fn open(age: Option<Duration>, group: Option<(&GroupName, Option<PlaceNumber>)>) -> Told {
    let age = age.unwrap_or_default().as_secs();
    let place = group.map_or_else(String::new, |(group, _)| {
        format!(", and has a place in group {group}")
    });
    Told {
        verdict: GateVerdict::Open,
        reason: Reason::Open,
        message: format!("it holds the image, verified, by its own word {age} s ago{place}"),
        next: group.map_or_else(String::new, |(group, number)| {
            format!("`{}` when the work is done", command("HOST", group, number))
        }),
    }
}

fn unready(reason: Reason, host: &HostId, age: Option<Duration>) -> Told {
    let message = match reason {
        Reason::PresenceOld => format!(
            "it held the image when it last said so, {} s ago, and {} s is the limit",
            age.unwrap_or_default().as_secs(),
            MAX_AGE.as_secs()
        ),
        Reason::HostUnheard => "it hasn't reported since the coordinator started".to_owned(),
        _ => "it doesn't hold the image under this name".to_owned(),
    };
    Told {
        verdict: GateVerdict::Waits,
        reason,
        message,
        next: format!("`parbake why {host}`"),
    }
}

/// The most hosts that a cap means.
fn most(cap: AtMost, asked_on: usize) -> u32 {
    match cap {
        AtMost::Hosts(hosts) => hosts,
        AtMost::Percent(percent) => {
            let hosts = i32::try_from(asked_on).unwrap_or(i32::MAX);
            rollout::gate::cap(i32::try_from(percent).unwrap_or(100), hosts)
        }
    }
}

fn place_view(now: Moment, host: &HostId, place: &Place) -> PlaceView {
    PlaceView {
        host: host.to_string(),
        number: place.number.map(|number| number.to_string()),
        image: place.purpose.reference.clone(),
        digest: place.purpose.image.to_string(),
        cap: place.cap,
        taken_at: place.taken_ms / 1_000,
        ends_in_seconds: place.ends_at.since(now).as_secs(),
    }
}
