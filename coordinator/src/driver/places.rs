//! The gate without a cluster: whether a host holds an image by its own word, and places under the cap of a group.
//!
//! [`rollout::places`] decides who gets a place. This part says what it has to know of the host, in the words of the
//! API, and what of it is written to disk. The rule for presence is that of the cluster's gate: this reference, this
//! digest, by the host's own word, at most 30 s old.

use std::time::{Duration, Instant};

use client::gate::{
    AtMost, GateDoneReply, GateList, GateReply, GateVerdict, GateView, GroupView, PlaceView,
    WaitView,
};
use proto::{Digest, HostId, Moment, Reason};
use rollout::{
    places::{self, Answer as Given, GroupName, Place, Purpose, Refused, Wait},
    presence::{Held, MAX_AGE},
};
use tracing::{info, warn};

use super::{
    effect::Effects,
    hosts::Hosts,
    images::Images,
    members::Members,
    place_ask::{GateAsk, PlaceAsk, PlaceError},
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
        for (group, host, place) in kept.parse(now) {
            info!(group = group.as_str(), %host, "a place outlived the restart, and gets its whole time again");
            this.places.restore(now, group, host, place);
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
            PlaceAsk::Done((host, group), reply) => {
                let answer = Answer::new(reply, self.done(&host, group.as_ref()));
                effects.write(Write::Gate(self.to_keep(), GateAnswer::Done(answer)));
            }
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
            Err(told) => return Ok((told.view(host, None), false)),
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
                open(age, Some(&group.name))
            }
            Given::Waits(Wait::Unready(reason)) => unready(reason, host, age),
            Given::Waits(wait) => self.full(at.now, &group.name, host, wait),
        };
        let mut view = told.view(host, Some(meant.digest));
        let places = self.places.group(&group.name);
        let place = places.and_then(|of| of.places().find(|(id, _)| *id == host));
        view.place = place.map(|(host, place)| place_view(at.now, host, place));
        Ok((view, matches!(answer, Given::Open { .. })))
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
            Wait::Full | Wait::Unready(_) => {
                format!("{} places are taken in all groups", places::MAX_PLACES)
            }
        };
        Told {
            verdict: GateVerdict::Waits,
            reason: wait.reason(),
            message,
            next: format!(
                "it goes on when a place is given back (`parbake gate done HOST --group {name}`); `parbake gate list` shows who has one"
            ),
        }
    }

    /// The work on a host is done. Returns the groups in which it gave a place back.
    fn done(&mut self, host: &HostId, group: Option<&GroupName>) -> GateDoneReply {
        let groups = match group {
            Some(group) => vec![group.clone()],
            None => self.places.groups_of(host),
        };
        let mut given_back = Vec::new();
        for group in groups {
            if self.places.done(&group, host).is_some() {
                info!(group = group.as_str(), %host, "host gave its place back");
                given_back.push(group.to_string());
            }
        }
        GateDoneReply { given_back }
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

fn open(age: Option<Duration>, group: Option<&GroupName>) -> Told {
    let age = age.unwrap_or_default().as_secs();
    let place = group.map_or_else(String::new, |group| {
        format!(", and has a place in group {group}")
    });
    Told {
        verdict: GateVerdict::Open,
        reason: Reason::Open,
        message: format!("it holds the image, verified, by its own word {age} s ago{place}"),
        next: group.map_or_else(String::new, |group| {
            format!("`parbake gate done HOST --group {group}` when the work is done")
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
        image: place.purpose.reference.clone(),
        digest: place.purpose.image.to_string(),
        cap: place.cap,
        taken_at: place.taken_ms / 1_000,
        ends_in_seconds: place.ends_at.since(now).as_secs(),
    }
}
