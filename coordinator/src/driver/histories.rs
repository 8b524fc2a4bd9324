//! Plays histories of a staging, and checks that no view, line or picture for people is false or stale, and that no bar
//! goes back.
//!
//! A history is a fleet and what happens to it, second by second. A model of the hosts has the truth: what each host
//! holds, when something last came to it, and whether it has a session. The model's hosts report as agents do. After
//! each second, the views of the image and the hosts, and the lines and pictures that are made of them, are compared
//! with the model.

use std::collections::BTreeMap;

use client::patience::LINE_FRESH;
use parbake::{
    frame::{self, Contact, Memory, Room},
    text,
};
use proto::figure::{Bytes, Span, percent};
use tokio::sync::{mpsc::Receiver, oneshot};

use super::{tests::World, *};
use crate::{
    view::{HostProgress, HostState, ImageState, ImageView},
    wants::{Kept, tests::want},
};

mod seen;
mod truth;

use truth::Truth;

/// The length of the model's steps: the time that agents wait between reports.
const STEP_MS: u64 = 500;
/// The raw bytes of the image's only layer.
const LAYER: u64 = 120_000_000;
/// After this time without a chunk, a host says that it stands still.
const STANDS_MS: u64 = 3_000;
/// How often a host without news reports.
const REPORT_MS: u64 = 5_000;

/// An event of a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// These hosts get this many bytes a second from now on. The reason says why a host gets none.
    Rate(Hosts, u64, &'static str),
    /// These agents die. After a restart, the last half second of what they held is lost, and they count anew.
    Kill(Hosts),
    Restart(Hosts),
    /// The coordinator dies, and starts again.
    CoordinatorDies,
    CoordinatorReturns,
    /// The registry fails every lease with these words; empty: the registry gives.
    Registry(&'static str),
    /// Somebody removes the image from these hosts.
    Remove(Hosts),
    /// These hosts can't go on, for this reason, or can go on again.
    Fail(Hosts, &'static str, &'static str),
    Mend(Hosts),
}

/// Some of the hosts, by number.
#[derive(Clone, Copy, Debug)]
enum Hosts {
    All,
    One(usize),
}

impl Hosts {
    fn has(self, number: usize) -> bool {
        match self {
            Self::All => true,
            Self::One(one) => one == number,
        }
    }
}

/// A fleet, its coordinator, and the command line that waits for the image.
struct Play {
    world: Option<World>,
    image: Want,
    total: u64,
    hosts: Vec<Truth>,
    registry: &'static str,
    now: u64,
    /// The moment at which the current driver started; its own clock begins there.
    driver_began: u64,
    /// What the waiting command line knows.
    memory: Memory,
    shown: Option<ImageView>,
    raw: Option<ImageView>,
    heard_at: u64,
    away_since: Option<u64>,
    /// What was last shown of each host: the bytes that it held, and the staging to which they belong.
    before: BTreeMap<String, (u64, u64)>,
    staged_seconds: Option<f64>,
    times_logged: u64,
}

impl Play {
    fn new(hosts: usize) -> Self {
        let image = want("history", 1, LAYER);
        let total = image.layout.content_bytes();
        let mut play = Self {
            world: None,
            image,
            total,
            hosts: (0..hosts).map(Truth::new).collect(),
            registry: "",
            now: 0,
            driver_began: 0,
            memory: Memory::default(),
            shown: None,
            raw: None,
            heard_at: 0,
            away_since: None,
            before: BTreeMap::new(),
            staged_seconds: None,
            times_logged: 0,
        };
        play.start_coordinator(Kept::default());
        play.connect();
        let (reply, _answer) = oneshot::channel();
        let want = Box::new(play.image.clone());
        play.world()
            .driver
            .apply(Input::Asked(Ask::Stage { want, reply }));
        play.look();
        play
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().expect("the coordinator runs")
    }

    fn start_coordinator(&mut self, kept: Kept) {
        let enrolled = self.hosts.iter().map(|host| host.name.parse().unwrap());
        let mut world = World::after(false, enrolled.collect(), kept);
        self.driver_began = self.now;
        world.driver.frozen = Some(Moment::START);
        world.driver.apply(Input::Recalled);
        self.world = Some(world);
    }

    /// Opens a session for every agent that runs and has none.
    fn connect(&mut self) {
        let (now, image) = (self.now, self.image.clone());
        let Some(world) = &mut self.world else { return };
        for (number, host) in self.hosts.iter_mut().enumerate() {
            if !host.alive || host.session.is_some() {
                continue;
            }
            let hello = message::Hello {
                images: host.images(&image, now),
                takes_names: true,
                ..World::hello()
            };
            host.names = 0;
            let remote = format!("10.0.{}.{}:7471", number / 250, number % 250 + 1);
            host.session = Some(world.open_from(&host.name, hello, &remote));
            host.told = host.told.max(host.held);
            (host.reported_at, host.dirty) = (now, true);
        }
    }

    fn happen(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Rate(which, rate, cause) => {
                for (_, host) in which.of(&mut self.hosts) {
                    (host.rate, host.cause) = (rate, cause);
                }
            }
            Step::Kill(which) => {
                for (_, host) in which.of(&mut self.hosts) {
                    host.alive = false;
                    host.leases.clear();
                    // the agent loses what it hadn't journaled, which is half a second, and its counts
                    host.held = host.held.saturating_sub(host.rate / 2);
                    host.received = 0;
                    if let (Some((session, _)), Some(world)) =
                        (host.session.take(), &mut self.world)
                    {
                        let id = host.name.parse().unwrap();
                        world.driver.apply(Input::Closed { host: id, session });
                        host.lost_at = Some(now);
                    }
                }
            }
            Step::Restart(which) => {
                for (_, host) in which.of(&mut self.hosts) {
                    host.alive = true;
                    host.moved_at = now;
                    if host.state == HostState::Staging {
                        host.state = HostState::Queued;
                    }
                }
                self.connect();
            }
            Step::CoordinatorDies => {
                self.world = None;
                self.away_since = Some(now);
                for host in &mut self.hosts {
                    host.session = None;
                    host.lost_at = None;
                    host.told = 0;
                    host.leases.clear();
                }
            }
            Step::CoordinatorReturns => {
                let mut kept = self.image.clone();
                kept.timing = self.kept_timing();
                self.start_coordinator(Kept {
                    wants: vec![kept],
                    ..Kept::default()
                });
            }
            Step::Registry(words) => self.registry = words,
            Step::Remove(which) => {
                for (_, host) in which.of(&mut self.hosts) {
                    (host.state, host.held, host.most, host.received) = (HostState::Gone, 0, 0, 0);
                    (host.dirty, host.ordered, host.told) = (true, false, 0);
                }
            }
            Step::Fail(which, reason, message) => {
                for (_, host) in which.of(&mut self.hosts) {
                    host.failed = Some((reason, message));
                }
            }
            Step::Mend(which) => {
                for (_, host) in which.of(&mut self.hosts) {
                    host.failed = None;
                }
            }
        }
    }

    /// The time in the last file that the coordinator wrote. The model's clock isn't the wall clock: the image was
    /// asked for `now` ago.
    fn kept_timing(&self) -> crate::wants::Timing {
        use crate::wants::{Timed, Timing};
        Timing::Known(Timed {
            asked_at_ms: unix_ms().saturating_sub(self.now),
            staged_ms: self
                .staged_seconds
                .map(|took| u64::try_from(Duration::from_secs_f64(took).as_millis()).unwrap()),
        })
    }

    /// One step of half a second.
    fn pass(&mut self) {
        self.now += STEP_MS;
        let (now, total, image, registry) =
            (self.now, self.total, self.image.clone(), self.registry);
        for host in &mut self.hosts {
            host.live(now, total);
        }
        let Some(world) = &mut self.world else { return };
        world.driver.frozen = Some(Moment::START + Duration::from_millis(now - self.driver_began));
        for host in &mut self.hosts {
            let Some((session, mut queue)) = host.session.take() else {
                continue;
            };
            while let Ok(order) = queue.try_recv() {
                match order.kind.as_ref() {
                    Some(message::order::Kind::Stage(_))
                        if !host.ordered
                            && matches!(host.state, HostState::Waiting | HostState::Gone) =>
                    {
                        host.ordered = true;
                        host.state = HostState::Waiting;
                    }
                    Some(message::order::Kind::Lease(grant)) => {
                        host.leases.push(grant.content.clone());
                    }
                    Some(message::order::Kind::Names(names)) => {
                        (host.names, host.dirty) = (names.number, true);
                    }
                    Some(message::order::Kind::Revoke(revoke)) => {
                        host.leases.retain(|lease| *lease != revoke.content);
                    }
                    _ => {}
                }
            }
            host.session = Some((session, queue));
            if host.ordered && host.state == HostState::Waiting {
                host.begin(now);
            }
            if !host.dirty && now - host.reported_at < REPORT_MS {
                continue;
            }
            (host.dirty, host.reported_at) = (false, now);
            host.told = host.told.max(host.held);
            let lease = |content: &Vec<u8>| message::LeaseState {
                content: content.clone(),
                chunks: u32::try_from(host.held >> 20).unwrap() + 1,
                message: registry.into(),
                trouble: match registry {
                    "" => message::OriginTrouble::Unspecified.into(),
                    _ => message::OriginTrouble::Failing.into(),
                },
                ..message::LeaseState::default()
            };
            let report = message::Report {
                images: host.images(&image, now),
                leases: host.leases.iter().map(lease).collect(),
                names: host.names,
                ..message::Report::default()
            };
            let id = host.name.parse().unwrap();
            let report = Box::new(report);
            world.driver.apply(Input::Reported {
                host: id,
                session,
                report,
                handled: oneshot::channel().0,
            });
        }
        // the holder reports trouble with the registry at once
        world.driver.apply(Input::Tick);
        world.driver.flush();
        while let Ok(keep) = world.writer.try_recv() {
            keep.done();
        }
    }

    /// The command line takes in the new view.
    fn look(&mut self) {
        let Some(world) = &mut self.world else { return };
        let now = world.driver.now();
        world.driver.show(now);
        let view = world.view.borrow().clone();
        let raw = ImageView::clone(&view.images[&self.image.digest()]);
        self.shown = Some(self.memory.recall(&raw, None));
        if let (Some(took), None) = (raw.staged_seconds, self.staged_seconds) {
            self.staged_seconds = Some(took);
            self.times_logged += 1;
        }
        self.raw = Some(raw);
        (self.heard_at, self.away_since) = (self.now, None);
    }

    fn contact(&self) -> Contact {
        let away = self.away_since.map(|since| {
            let since = Duration::from_millis(self.now - since);
            (since, "connection refused".to_owned())
        });
        Contact {
            heard_ago: Duration::from_millis(self.now - self.heard_at),
            away: away.filter(|(since, _)| *since >= Duration::from_secs(1)),
        }
    }

    // ---- what has to be true ----------------------------------------------------------------------------------

    fn check(&mut self) {
        if self.world.is_some() {
            let raw = self.raw.clone().unwrap();
            for (number, shown) in raw.hosts.iter().enumerate() {
                self.check_host(number, shown);
            }
            self.check_image(&raw);
            self.check_whys(&raw);
        }
        self.check_bars();
        for (columns, rows) in [(40, 10), (80, 24), (120, 60)] {
            self.check_picture(Room { columns, rows });
        }
        self.check_line();
    }

    /// Compares what the API says of a host with the truth.
    fn check_host(&self, number: usize, shown: &HostProgress) {
        let (host, now) = (&self.hosts[number], self.now);
        let at = format!("{} s, {}: {shown:?}", now / 1_000, host.name);
        assert_eq!(shown.host, host.name, "{at}");
        assert_eq!(shown.connected, host.session.is_some(), "{at}");
        assert!(shown.held_bytes <= shown.total_bytes, "{at}");
        assert_eq!(
            shown.eta_seconds.is_some(),
            shown.bytes_per_second > 0,
            "{at}"
        );
        let silent_for = now - host.moved_at;
        if shown.bytes_per_second > 0 {
            assert!(shown.connected && silent_for < 5_000, "{at}");
            assert_eq!(shown.state, HostState::Staging, "{at}");
            let most = host.rate.max(LAYER / 5);
            assert!(shown.bytes_per_second <= most * 11 / 10, "{at}");
        }
        if !shown.connected {
            let words = match host.lost_at {
                Some(lost_at) => {
                    let since = Span::seconds((now - lost_at) / 1_000);
                    format!("no session for {since}")
                }
                None => "no session since the coordinator started".to_owned(),
            };
            assert_eq!(shown.message, words, "{at}");
            assert_eq!(
                shown.reason.as_deref().unwrap_or("disconnected"),
                "disconnected"
            );
            return;
        }
        // the API tells what was true at the last report
        assert_eq!(
            shown.held_bytes,
            if shown.state == HostState::Present {
                self.total
            } else {
                host.told
            },
            "{at}"
        );
        match host.state {
            HostState::Waiting => {}
            // the host was asked whether tart still finds the image, and hasn't answered yet
            HostState::Present if host.names == 0 => {
                let asked = (HostState::Installing, Some("confirming"));
                let shown = (shown.state, shown.reason.as_deref());
                assert!(
                    shown == asked || shown == (HostState::Present, None),
                    "{at}"
                );
            }
            state => assert_eq!(shown.state, state, "{at}"),
        }
        match (shown.state, shown.reason.as_deref()) {
            (HostState::Staging, Some("staging") | None) => {
                assert_eq!(shown.message, "", "{at}");
                // the host says so in its next report, 5 s later at the latest
                assert!(silent_for < STANDS_MS + REPORT_MS, "{at}");
            }
            (HostState::Staging, Some(reason)) => {
                assert_eq!(reason, host.cause, "{at}");
                assert!(silent_for >= STANDS_MS, "{at}");
                assert_eq!(shown.bytes_per_second, 0, "{at}");
                let span = Span::seconds(silent_for / 1_000);
                assert_eq!(shown.message, format!("no progress for {span}"), "{at}");
            }
            (HostState::Failed, reason) => {
                let (expected, message) = host.failed.unwrap();
                assert_eq!(
                    (reason, shown.message.as_str()),
                    (Some(expected), message),
                    "{at}"
                );
            }
            (HostState::Present, reason) => assert_eq!(reason, None, "{at}"),
            _ => {}
        }
    }

    fn check_image(&self, image: &ImageView) {
        let at = format!(
            "{} s: {:?} {}",
            self.now / 1_000,
            image.reason,
            image.message
        );
        let present = self
            .hosts
            .iter()
            .filter(|host| host.state == HostState::Present);
        let present = present.count();
        let heard = image
            .hosts
            .iter()
            .filter(|host| host.state == HostState::Present);
        assert!(heard.count() <= present, "{at}");
        let everywhere = image.hosts_present == image.hosts_selected;
        assert_eq!(image.state == ImageState::Present, everywhere, "{at}");
        if everywhere {
            assert_eq!((&image.reason, image.message.as_str()), (&None, ""), "{at}");
        }
        match image.reason.as_deref() {
            Some("origin_down") => {
                // the current words, or those from before the registry gave again a moment ago
                assert!(
                    image
                        .message
                        .starts_with("the registry fails: connection refused"),
                    "{at}"
                );
                assert!(
                    image.message.contains("asked again in")
                        || image.message.contains("one host tries"),
                    "{at}"
                );
            }
            Some("hosts_away" | "no_host_connected") => {
                let away = self.hosts.iter().filter(|host| host.session.is_none());
                let lacking = away.filter(|host| host.state != HostState::Present);
                for host in lacking.take(3) {
                    assert!(image.message.contains(&host.name), "{at}");
                }
                let some = self.hosts.iter().any(|host| host.session.is_some());
                assert_eq!(image.reason.as_deref() == Some("hosts_away"), some, "{at}");
            }
            Some("moving") => assert_eq!(image.message, "", "{at}"),
            _ => {}
        }
        if let (Some(told), Some(first)) = (image.staged_seconds, self.staged_seconds) {
            assert!(
                (told - first).abs() < 0.01,
                "staged in {told} s, and {first} s before"
            );
        }
    }

    /// Checks what `parbake why HOST` says.
    fn check_whys(&mut self, image: &ImageView) {
        let hosts: Vec<_> = image
            .hosts
            .iter()
            .take(3)
            .map(|host| host.host.clone())
            .collect();
        for (number, name) in hosts.iter().enumerate() {
            let view = self.world.as_ref().unwrap().host(name);
            let host = &self.hosts[number];
            let why = view.why.join("\n");
            let at = format!("{} s, {name}: {why}", self.now / 1_000);
            let lacks = image.hosts[number].state != HostState::Present;
            assert_eq!(why.contains("history"), lacks, "{at}");
            match (host.session.is_some(), host.lost_at) {
                (true, _) => assert!(!why.contains("session"), "{at}"),
                (false, Some(lost_at)) => {
                    let since = Span::seconds((self.now - lost_at) / 1_000);
                    assert!(
                        why.contains(&format!("its session was lost {since} ago")),
                        "{at}"
                    );
                    assert!(!why.contains("no progress"), "{at}");
                }
                (false, None) => assert!(why.contains("no session since"), "{at}"),
            }
            if lacks && host.told > 0 && host.session.is_some() {
                let figures = format!("{} of {} verified", Bytes(host.told), Bytes(self.total));
                assert!(why.contains(&figures), "{at}");
            }
            let shown = text::why(&view);
            assert_eq!(shown.lines().count(), view.why.len().max(1), "{at}");
        }
        let listed = text::image(image);
        let rows = listed.lines().filter(|line| line.contains("mini-")).count();
        assert!(rows >= image.hosts.len(), "{listed}");
    }
}

impl Hosts {
    fn of(self, hosts: &mut [Truth]) -> impl Iterator<Item = (usize, &mut Truth)> {
        let hosts = hosts.iter_mut().enumerate();
        hosts.filter(move |(number, _)| self.has(*number))
    }
}

/// An event, and the second at which it happens.
type History = &'static [(u64, Step)];

const RUN: u64 = LAYER / 40;

/// The name, the events, and for how many seconds the history is watched.
const HISTORIES: &[(&str, History, u64)] = &[
    (
        "an ordinary run",
        &[(1, Step::Rate(Hosts::All, RUN, "awaiting_lease"))],
        50,
    ),
    (
        "an agent is killed amid it, is away, and comes back",
        &[
            (1, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (10, Step::Kill(Hosts::One(0))),
            (31, Step::Restart(Hosts::One(0))),
        ],
        75,
    ),
    (
        "the coordinator is away for a minute, and hosts go on",
        &[
            (1, Step::Rate(Hosts::All, RUN / 2, "awaiting_lease")),
            (15, Step::CoordinatorDies),
            (75, Step::CoordinatorReturns),
        ],
        110,
    ),
    (
        "the coordinator restarts when all is done, and again",
        &[
            (1, Step::Rate(Hosts::All, RUN * 2, "awaiting_lease")),
            (40, Step::CoordinatorDies),
            (42, Step::CoordinatorReturns),
            (60, Step::CoordinatorDies),
            (70, Step::CoordinatorReturns),
        ],
        90,
    ),
    (
        "the registry goes down and comes back",
        &[
            (1, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (12, Step::Registry("connection refused")),
            (12, Step::Rate(Hosts::All, 0, "origin_trouble")),
            (40, Step::Registry("")),
            (40, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
        ],
        90,
    ),
    (
        "the image is removed from a host and staged anew there",
        &[
            (1, Step::Rate(Hosts::All, RUN * 4, "awaiting_lease")),
            (20, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (21, Step::Remove(Hosts::One(0))),
        ],
        75,
    ),
    (
        "it is removed while the coordinator is away",
        &[
            (1, Step::Rate(Hosts::All, RUN * 4, "awaiting_lease")),
            (20, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (21, Step::CoordinatorDies),
            (22, Step::Remove(Hosts::One(0))),
            (30, Step::CoordinatorReturns),
        ],
        85,
    ),
    (
        "a limit of the hosts' own lets a chunk through every few seconds",
        &[
            (1, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (8, Step::Rate(Hosts::All, 0, "throttled")),
            (15, Step::Rate(Hosts::All, 2 << 20, "throttled")),
            (16, Step::Rate(Hosts::All, 0, "throttled")),
            (25, Step::Rate(Hosts::All, 2 << 20, "throttled")),
            (26, Step::Rate(Hosts::All, 0, "throttled")),
        ],
        45,
    ),
    (
        "a host has no room, is mended and goes on where it was",
        &[
            (1, Step::Rate(Hosts::All, RUN, "awaiting_lease")),
            (
                10,
                Step::Fail(
                    Hosts::One(0),
                    "no_room",
                    "the image needs 140.0 GB, and 96.2 GB are free",
                ),
            ),
            (30, Step::Mend(Hosts::One(0))),
        ],
        70,
    ),
    (
        "everything at once",
        &[
            (1, Step::Rate(Hosts::All, RUN / 2, "awaiting_lease")),
            (5, Step::Kill(Hosts::One(0))),
            (9, Step::CoordinatorDies),
            (10, Step::Rate(Hosts::All, 0, "no_source")),
            (14, Step::Restart(Hosts::One(0))),
            (25, Step::CoordinatorReturns),
            (30, Step::Registry("connection refused")),
            (45, Step::Registry("")),
            (45, Step::Rate(Hosts::All, RUN * 3, "awaiting_lease")),
            (70, Step::Remove(Hosts::All)),
            (80, Step::Kill(Hosts::All)),
            (95, Step::Restart(Hosts::All)),
        ],
        180,
    ),
];

fn play(name: &str, hosts: usize, history: History, seconds: u64, watch_every: u64) {
    let mut play = Play::new(hosts);
    let mut next = history.iter().peekable();
    for second in 1..=seconds {
        while let Some((_, step)) = next.next_if(|(at, _)| *at == second) {
            play.happen(*step);
        }
        for _ in 0..1_000 / STEP_MS {
            play.pass();
        }
        // agents reconnect to a coordinator within a second or two
        if second % 2 == 0 {
            play.connect();
        }
        play.look();
        if second % watch_every == 0 {
            play.check();
        }
    }
    assert!(next.next().is_none(), "{name}: the end wasn't reached");
    assert!(play.times_logged <= 1, "{name}");
}

#[test]
fn nothing_that_is_shown_of_a_staging_is_false_or_stale() {
    for (name, history, seconds) in HISTORIES {
        for hosts in [1, 3, 40] {
            println!("{name}, {hosts} hosts");
            play(name, hosts, history, *seconds, 1);
        }
    }
}

#[test]
fn a_thousand_hosts_are_shown_as_truly_as_one() {
    // views of a thousand hosts are made like those of one; the last history has every kind of event
    let (name, history, seconds) = HISTORIES.last().unwrap();
    play(name, 1_000, history, *seconds, 15);
}

#[test]
fn a_staging_that_ends_is_shown_to_its_end() {
    let mut play = Play::new(3);
    play.happen(Step::Rate(Hosts::All, LAYER, "awaiting_lease"));
    for _ in 0..10 {
        play.pass();
        play.look();
    }
    let room = Room {
        columns: 80,
        rows: 24,
    };
    let picture = frame::picture(play.shown.as_ref().unwrap(), &play.contact(), room);
    let bar = "=".repeat(23);
    assert_eq!(
        picture,
        [
            "3 of 3 hosts, 100% of 360.0 MB; received 180.0 MB (registry 45.0 MB, peers".to_owned(),
            "135.0 MB)".to_owned(),
            format!("mini-0000 [{bar}] 100% present"),
            format!("mini-0001 [{bar}] 100% present"),
            format!("mini-0002 [{bar}] 100% present"),
        ]
    );
    assert_eq!(play.times_logged, 1);
}
