//! Scenarios: what the world does to the fleet.

use crate::network::Nanos;

/// One gigabit per second less headers, in bytes: what 1 GbE moves (docs: 117 MB/s).
pub const GIGABIT: u64 = 117_000_000;

/// What the world does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing goes wrong.
    Fanout,
    /// 2 % of the hosts crash and return with their journal, 5 % upload at half rate, one lies.
    Faults,
    /// 30 % of the hosts send bad chunks: some that don't fit their links, some with invented links, under their own
    /// names or others'. They accuse honest hosts.
    Liars,
    /// 30 % of the hosts lie to the coordinator, to their peers, or to both, in every way of [`Rogue`].
    Rogues,
    /// 30 % of the hosts are tar-pits: half of them send byte by byte, half take what they are sent byte by byte.
    TarPits,
    /// The registry sends false bytes of three contents, once each.
    Corrupt,
    /// The coordinator goes a third of the way in, and never returns.
    Headless,
    /// All agents and the coordinator are restarted at once, midway.
    Restart,
    /// 5 % of the hosts have half the rate, both ways.
    Slow,
    /// The registry falls to a quarter of its rate, then is down, then comes back.
    Throttle,
    /// The registry refuses everybody for a time that it names, and later is down for minutes.
    Refuse,
    /// The fleet is cut in two for a while.
    Cut,
    /// A fifth of the hosts joins midway.
    Late,
    /// Lease holders leave for ever.
    Vanish,
    /// The image is wanted no longer on a tenth of the hosts, which are away at that moment and come back staging it.
    Leftover,
    /// The image is paused everywhere for a while, and then wanted again.
    Paused,
    /// The registry lacks a layer of one image for ever; two others of the same registry are wanted beside it, one of
    /// them a minute later.
    MissingLayer,
    /// Every agent is killed once, one after the other, and is back a second later.
    Storm,
    /// The disks of three lease holders fail, one after the other: they can't serve what they hold any more.
    DiskFails,
    /// The registry gives each stream 62 kB/s.
    SlowRegistry,
    /// Each connection to the registry ends after 300 kB.
    ShortConnections,
    /// Clients of half of the hosts' mirrors want blobs, before and while an image is staged and after that.
    Mirror,
    /// The same in a registry that gives each stream 62 kB/s.
    MirrorSlow,
    /// They do without a coordinator and without staging, and a host that fetches leaves for ever.
    MirrorAlone,
    /// The coordinator stands still for 5 and 12 s, then falls behind what it is told, and last stands still for so
    /// long that all sessions are lost. What it is told meanwhile it hears afterwards.
    Starved,
    /// Every host holds the release before, and of the image's chunks a share changed. The image has a recipe.
    Release,
    /// Two images are ordered at once, in one order on all hosts.
    Several,
    /// Two images are ordered at once, and Pods on half of the hosts wait for the second one.
    Opposite,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Self; 28] = [
        Self::Fanout,
        Self::Faults,
        Self::Liars,
        Self::Rogues,
        Self::TarPits,
        Self::Corrupt,
        Self::Headless,
        Self::Restart,
        Self::Slow,
        Self::Throttle,
        Self::Refuse,
        Self::Cut,
        Self::Late,
        Self::Vanish,
        Self::Leftover,
        Self::Paused,
        Self::MissingLayer,
        Self::Storm,
        Self::DiskFails,
        Self::SlowRegistry,
        Self::ShortConnections,
        Self::Mirror,
        Self::MirrorSlow,
        Self::MirrorAlone,
        Self::Starved,
        Self::Release,
        Self::Several,
        Self::Opposite,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Faults => "faults",
            Self::Liars => "liars",
            Self::Rogues => "rogues",
            Self::TarPits => "tar-pits",
            Self::Corrupt => "corrupt",
            Self::Headless => "headless",
            Self::Restart => "restart",
            Self::Slow => "slow",
            Self::Throttle => "throttle",
            Self::Refuse => "refuse",
            Self::Cut => "cut",
            Self::Late => "late",
            Self::Vanish => "vanish",
            Self::Leftover => "leftover",
            Self::Paused => "paused",
            Self::MissingLayer => "missing-layer",
            Self::Storm => "storm",
            Self::DiskFails => "disk-fails",
            Self::SlowRegistry => "slow-registry",
            Self::ShortConnections => "short-connections",
            Self::Mirror => "mirror",
            Self::MirrorSlow => "mirror-slow",
            Self::MirrorAlone => "mirror-alone",
            Self::Starved => "starved",
            Self::Release => "release",
            Self::Several => "several",
            Self::Opposite => "opposite",
        }
    }

    /// What happens in it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Fanout => "nothing goes wrong",
            Self::Faults => {
                "2 % of hosts crash and return with their journal, 5 % upload at half rate, one lies"
            }
            Self::Liars => {
                "30 % of hosts send bad chunks or invented links, name others as their makers, and accuse the honest"
            }
            Self::Rogues => {
                "30 % of hosts lie to the coordinator and to their peers, in every way or in that of --manner"
            }
            Self::TarPits => "30 % of hosts send, or take what they are sent, byte by byte",
            Self::Corrupt => "the registry sends false bytes of three contents, once each",
            Self::Headless => "the coordinator goes a third of the way in and stays away",
            Self::Restart => "all agents and the coordinator restart at once, midway",
            Self::Slow => "5 % of hosts have half the rate both ways",
            Self::Throttle => "the registry throttles to a quarter, goes down, and returns",
            Self::Refuse => {
                "the registry asks to be left alone for 90 s, later is down for five minutes"
            }
            Self::Cut => "the fleet is cut in two for a while",
            Self::Late => "a fifth of the hosts joins midway",
            Self::Vanish => "two lease holders leave for ever, one after the other",
            Self::Leftover => {
                "a tenth of the hosts is away when the image is wanted there no longer, and the coordinator restarts"
            }
            Self::Paused => "the image is paused everywhere for a while, midway",
            Self::SlowRegistry => "the registry gives each stream 62 kB/s",
            Self::ShortConnections => "each connection to the registry ends after 300 kB",
            Self::Mirror => {
                "clients of mirrors on half of the hosts want blobs before and during staging and after it"
            }
            Self::MirrorSlow => "the same with 62 kB/s for each stream of the registry",
            Self::MirrorAlone => {
                "clients of mirrors want blobs without a coordinator or staging, and a host that fetches leaves"
            }
            Self::Starved => {
                "the coordinator stands still for seconds, falls behind, and stands still until all sessions are lost"
            }
            Self::Release => {
                "every host holds the release before; --change percent of the chunks changed, and there is a recipe"
            }
            Self::Several => "two images come at once, in one order on all hosts",
            Self::Opposite => {
                "two images come at once, and half of the hosts want the second one first"
            }
            Self::MissingLayer => {
                "one image lacks a layer for ever; another comes at the same time, a third a minute later"
            }
            Self::Storm => "every agent is killed once, one after the other, and back in a second",
            Self::DiskFails => "the disks of three lease holders fail, one after the other",
        }
    }

    /// The scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }
}

/// Whom a rogue lies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The coordinator.
    Coordinator,
    /// Other hosts.
    Peers,
}

/// One way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rogue {
    /// The rogue says that it fetched all of a content as soon as it has the content's lease.
    Done,
    /// The rogue says that it has the whole image.
    Present,
    /// The rogue says that it holds every content, and stages.
    Whole,
    /// The rogue keeps leases and fetches nothing: it claims bytes, and a chunk a minute.
    Hoard,
    /// The rogue says that the registry wants to be left alone for an hour.
    Throttle,
    /// The rogue says that the registry lacks what the rogue is leased.
    Missing,
    /// The rogue claims leases that it wasn't given.
    Adopt,
    /// The rogue accuses honest hosts.
    Blame,
    /// The rogue says of each content that it is leased: the registry's bytes don't fit the recipe.
    Doubt,
    /// The rogue says that it fetches, and that it has fetched, ranges of contents that it wasn't given, odd ones among
    /// them.
    Ranges,
    /// The rogue sends false chunks, as in [`Scenario::Liars`].
    Lie,
    /// The rogue announces everything again and again, and has nothing that is asked for.
    Announce,
    /// The rogue offers and answers, and what it sends never comes.
    NotSent,
    /// The rogue accepts what it is offered, and doesn't take it.
    NotTaken,
    /// The rogue connects, and says nothing from then on.
    Mute,
    /// The rogue has others spread what they hold once more.
    Spread,
}

impl Rogue {
    /// Every way.
    pub const ALL: [Self; 16] = [
        Self::Done,
        Self::Present,
        Self::Whole,
        Self::Hoard,
        Self::Throttle,
        Self::Missing,
        Self::Adopt,
        Self::Blame,
        Self::Doubt,
        Self::Ranges,
        Self::Lie,
        Self::Announce,
        Self::NotSent,
        Self::NotTaken,
        Self::Mute,
        Self::Spread,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Present => "present",
            Self::Whole => "whole",
            Self::Hoard => "hoard",
            Self::Throttle => "throttle",
            Self::Missing => "missing",
            Self::Adopt => "adopt",
            Self::Blame => "blame",
            Self::Doubt => "doubt",
            Self::Ranges => "ranges",
            Self::Lie => "lie",
            Self::Announce => "announce",
            Self::NotSent => "not-sent",
            Self::NotTaken => "not-taken",
            Self::Mute => "mute",
            Self::Spread => "spread",
        }
    }

    /// What such a host does.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Done => "says that it fetched all of a content as soon as it is leased it",
            Self::Present => "says that it has the whole image",
            Self::Whole => "says that it holds every content, and stages",
            Self::Hoard => "keeps leases, fetches nothing, claims bytes and a chunk a minute",
            Self::Throttle => "says that the registry wants to be left alone for an hour",
            Self::Missing => "says that the registry lacks what it is leased",
            Self::Adopt => "claims leases that nobody gave it",
            Self::Blame => "accuses honest hosts",
            Self::Doubt => {
                "says of what it is leased that it doesn't fit the recipe, where there is one"
            }
            Self::Ranges => {
                "says that it fetches and fetched ranges that nobody gave it, of a release"
            }
            Self::Lie => "sends false chunks, as in liars",
            Self::Announce => "announces everything, and has nothing of what it is asked for",
            Self::NotSent => "offers and answers, and what it sends never comes",
            Self::NotTaken => "accepts what it is offered, and doesn't take it",
            Self::Mute => "connects, and says nothing from then on",
            Self::Spread => "has others spread what they hold once more",
        }
    }

    /// Whom it lies to.
    #[must_use]
    pub const fn party(self) -> Party {
        match self {
            Self::Done
            | Self::Present
            | Self::Whole
            | Self::Hoard
            | Self::Throttle
            | Self::Missing
            | Self::Adopt
            | Self::Blame
            | Self::Doubt
            | Self::Ranges => Party::Coordinator,
            Self::Lie
            | Self::Announce
            | Self::NotSent
            | Self::NotTaken
            | Self::Mute
            | Self::Spread => Party::Peers,
        }
    }

    /// The way of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rogue| rogue.name() == name)
    }
}

/// A run's circumstances.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the world does.
    pub scenario: Scenario,
    /// Hosts.
    pub hosts: usize,
    /// Bytes of the image.
    pub image_bytes: u64,
    /// Bytes of each content; the last is shorter.
    pub content_bytes: u64,
    /// Bytes of a chunk. Another size than the default scales all rates instead: the cores only know their own chunks.
    pub chunk_bytes: u64,
    /// The seed.
    pub seed: u64,
    /// How all rogues lie in [`Scenario::Rogues`]; `None`: each in its own way.
    pub manner: Option<Rogue>,
    /// Whether the image has a recipe, which every host has from the start.
    pub recipe: bool,
    /// Whether every host holds the release before, of which this percentage of the chunks changed; `None`: hosts hold
    /// nothing. A release has a recipe.
    pub change_percent: Option<u32>,
    /// Without the image that lacks a layer, or without the second of two.
    pub spared: bool,
    /// Whether hosts know no order among images, as hosts of earlier versions.
    pub unordered: bool,
    /// Bytes per second that the registry gives each stream at most; `None`: as much as the lines carry.
    pub stream_rate: Option<u64>,
    /// The registry's rate, bytes per second.
    pub origin_rate: u64,
    /// A host's uplink, bytes per second.
    pub up_rate: u64,
    /// A host's downlink, bytes per second.
    pub down_rate: u64,
    /// One way between any two, nanoseconds.
    pub delay: Nanos,
    /// Pieces of a chunk on the network; 0 chooses by the size of the fleet.
    pub pieces: u32,
    /// Zones.
    pub zones: usize,
    /// Prints the use of the lines over time to stderr.
    pub trace: bool,
    /// The swarm's numbers.
    pub swarm: swarm::Config,
    /// The plan's numbers.
    pub plan: rollout::stage::Config,
}

impl Setup {
    /// Whether two images come at once.
    #[must_use]
    pub const fn has_two_images(&self) -> bool {
        matches!(self.scenario, Scenario::Several | Scenario::Opposite)
    }

    /// Equal gigabit links and a registry of the same rate.
    #[must_use]
    pub fn new(scenario: Scenario, hosts: usize, image_bytes: u64, seed: u64) -> Self {
        Self {
            scenario,
            hosts,
            image_bytes,
            content_bytes: 512 << 20,
            chunk_bytes: proto::CHUNK_BYTES,
            seed,
            manner: None,
            recipe: scenario == Scenario::Release,
            change_percent: (scenario == Scenario::Release).then_some(5),
            spared: false,
            unordered: false,
            stream_rate: None,
            origin_rate: GIGABIT,
            up_rate: GIGABIT,
            down_rate: GIGABIT,
            delay: 100_000,
            pieces: 0,
            zones: 1,
            trace: false,
            swarm: swarm::Config::default(),
            plan: rollout::stage::Config::default(),
        }
    }
}
