//! The one task that owns the plan and all that is known of the fleet.
//!
//! `run` selects an [`Input`]; `apply` changes state without waiting and turns the plan's actions into orders, which go
//! into each session's bounded queue. What it shows of itself is published as a [`View`] at most four times a second.
//! Files are written by one writer task in the order in which they were asked for; network waits are jobs of one set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use link::Signatures;
use proto::{Digest, HostId, HostKey, Moment, message, statement::LinkKey};
use rollout::{
    names::{Claims, NotAsked, Told},
    stage::{Event, Plan},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use self::lines::Lines;
use crate::{
    authority::Authority,
    config::Config,
    fleet::Membership,
    intake::MAX_IMAGES,
    metrics::Metrics,
    progress::Progress,
    resolve::{Granted, PullToken, Registries},
    view::{BandwidthRequest, CancelReply, ShortOfRoom, StageReply, VolumeView},
    wants::{Kept, Place, Want},
};

mod ask;
mod claims;
#[cfg(test)]
mod histories;
mod hosts;
mod lines;
mod mirror;
mod names;
mod orders;
mod presence;
mod refusals;
mod roster;
mod show;
#[cfg(test)]
mod tests;
mod tickets;
mod took;
mod words;
mod writer;

pub(crate) use claims::stricter;
#[cfg(test)]
pub(crate) use presence::HostPresence;
pub(crate) use presence::PresenceView;
pub(crate) use refusals::Refused;
pub(crate) use show::View;
pub(crate) use writer::{WRITES, Write, write};

/// Inputs that wait for the driver: a report of each of 1,000 hosts. Sessions wait when it is full.
pub(crate) const INBOX: usize = 1_024;
/// Orders that wait for a session: a whole roll of images and leases. A host that doesn't take them is let go.
pub(crate) const ORDERS: usize = 256;
/// The most images wanted at one time; each costs a few hundred kilobytes of manifest in memory and on every host.
pub(crate) const MAX_WANTS: usize = 64;
/// What one report holds against other hosts; more is ignored. Nor is more of one host heard in a minute than four times that.
const MAX_BLAMES: usize = 16;
const BLAMES_WITHIN: Duration = Duration::from_mins(1);
/// References of one image.
const MAX_REFERENCES: usize = 32;
/// Bytes of the references of all images that are wanted at one time: each host's report of 256 KiB has to hold them.
const MAX_NAME_BYTES: usize = 96 << 10;
/// The view is published no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// A change of the roster waits this long for others, and as many more microseconds as the fleet has hosts squared, two
/// seconds at most: a thousand hosts that join together cost a few changes each, not a thousand.
const ROSTER_PAUSE: Duration = Duration::from_millis(20);
const ROSTER_PAUSE_MOST_MICROS: u64 = 2_000_000;
/// Where hosts are is kept this long after it changed, at most.
const ROSTER_KEEP: Duration = Duration::from_secs(1);
/// The first pause before an image that a host lost is staged there again; four times as long after each loss.
const RESTAGE_PAUSE: Duration = Duration::from_secs(1);
const RESTAGE_PAUSE_MOST: Duration = Duration::from_mins(10);
/// A pull token is renewed when less than this remains of it.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// A pull token that the registry refuses is replaced no sooner than this after it was given.
const TOKEN_RENEWED_AFTER: Duration = Duration::from_secs(3);
/// After a failed attempt at a pull token, the next one waits.
const TOKEN_RETRY: Duration = Duration::from_secs(10);

/// An order that waits for a session. Shared: one image's order goes to every host.
pub(crate) type Orders = mpsc::Sender<Arc<message::Order>>;

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A host's session is up.
    Opened(Box<Opened>),
    /// A host reported.
    Reported {
        host: HostId,
        session: u64,
        /// As [`intake::cut`](crate::intake::cut) leaves it.
        report: Box<message::Report>,
        /// Hears how long it took to handle.
        handled: oneshot::Sender<Duration>,
    },
    /// A session ended.
    Closed { host: HostId, session: u64 },
    /// A handshake failed because one side didn't take the other.
    Refused(Refused),
    /// An operator asks.
    Asked(Ask),
    /// All that operators had asked for before this start was asked for again.
    Recalled,
    /// A pull token arrived, or didn't.
    Token {
        image: Digest,
        granted: Option<Granted>,
    },
    /// Time passed.
    Tick,
}

/// A new session.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) host: HostId,
    pub(crate) session: u64,
    /// Where the connection comes from.
    pub(crate) remote: SocketAddr,
    pub(crate) hello: message::Hello,
    pub(crate) orders: Orders,
}

/// What the cluster's objects limit: the strictest of those that stage now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of every host; 0 for none.
    pub(crate) bandwidth: BandwidthRequest,
    /// Contents leased at one time; the coordinator's setting without it.
    pub(crate) origin_streams: Option<usize>,
}

/// An image that the cluster wants.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) want: Want,
    /// Hosts that aren't to go on for now, and keep what they have.
    pub(crate) held: BTreeSet<HostId>,
}

/// What operators ask.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Stage this; `references` holds the one asked for.
    Stage {
        want: Box<Want>,
        reply: oneshot::Sender<Result<StageReply, StageError>>,
    },
    /// Operators don't want this any more: a reference, or by its bare digest an image under all its references.
    Cancel {
        name: String,
        reply: oneshot::Sender<Result<CancelReply, CancelError>>,
    },
    /// Limit every host.
    Bandwidth {
        limits: BandwidthRequest,
        reply: oneshot::Sender<Result<(), crate::wants::StateError>>,
    },
    /// The cluster wants exactly these, whatever it wanted before, and limits what moves. What operators want stays.
    Place {
        wants: Vec<Placed>,
        limits: Limits,
        /// Nothing is missing that only needs to be resolved again after a start.
        whole: bool,
    },
    /// Whoever looks after the cluster's objects asks for this image anew: what failed of it is tried at once.
    Urge(Digest),
    /// What staging this would move.
    Preview {
        want: Box<Want>,
        reply: oneshot::Sender<Result<crate::view::PlanReply, StageError>>,
    },
}

/// Why an image isn't staged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    /// A host that was named isn't part of the fleet.
    #[error("host {0} isn't part of the fleet; see `parbake hosts`")]
    UnknownHost(HostId),
    /// A host that was named is revoked.
    #[error("host {host} can't be chosen: {what}")]
    Revoked {
        /// The host.
        host: HostId,
        /// Since when and why, and what takes that back.
        what: String,
    },
    /// Nobody to stage it on.
    #[error(
        "the fleet has no hosts; add [[hosts]] to the fleet file, or set `open = true` and enrol some"
    )]
    NoHosts,
    /// Too many images at once.
    #[error("{MAX_WANTS} images are wanted already; cancel some (`parbake cancel IMAGE`)")]
    TooManyImages,
    /// Too many names of one image.
    #[error(
        "the image has {MAX_REFERENCES} references already; cancel some (`parbake cancel IMAGE`)"
    )]
    TooManyReferences,
    /// Hosts couldn't report all of the names.
    #[error(
        "the references of all images that are wanted would have more than {} kB, which hosts can't report; cancel some \
         (`parbake cancel IMAGE`)",
        MAX_NAME_BYTES >> 10
    )]
    TooManyNames,
    /// It can't fit on any selected host, empty or not.
    #[error("image needs {needed_bytes} bytes, more than the volume of any selected host can give: {}", listed(.hosts))]
    NowhereFits {
        /// What it needs.
        needed_bytes: u64,
        /// The hosts with their figures.
        hosts: Vec<ShortOfRoom>,
    },
    /// It is wanted now, but that couldn't be written down.
    #[error("image is being staged, but a restart will forget it: {0}")]
    NotKept(#[from] crate::wants::StateError),
}

/// Why something isn't cancelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CancelError {
    /// Nobody wants it under this name.
    #[error("image `{name}` isn't wanted{}; see `parbake status`", but(.others))]
    Unwanted {
        /// What was typed.
        name: String,
        /// References that its digest is wanted under, where there are some.
        others: Vec<String>,
    },
    /// Operators didn't ask for it: it isn't theirs to cancel.
    #[error(
        "image `{0}` is wanted by ImagePrePulls alone; change or delete those (`kubectl get ipp -A`)"
    )]
    ByCluster(String),
    /// It is cancelled now, but that couldn't be written down.
    #[error("image is cancelled, but a restart will forget that: {0}")]
    NotKept(#[from] crate::wants::StateError),
}

fn but(others: &[String]) -> String {
    match others {
        [] => String::new(),
        others => format!(" under that name, but as {}", others.join(", ")),
    }
}

impl CancelError {
    fn new(name: &str, why: NotAsked, others: Vec<String>) -> Self {
        let name = crate::progress::clean(name);
        match why {
            NotAsked::Unwanted => Self::Unwanted { name, others },
            NotAsked::ByCluster => Self::ByCluster(name),
        }
    }
}

fn listed(hosts: &[ShortOfRoom]) -> String {
    let one = |host: &ShortOfRoom| {
        format!(
            "{} ({} bytes free, floor {})",
            host.host, host.free_bytes, host.floor_bytes
        )
    };
    let mut text: Vec<String> = hosts.iter().take(5).map(one).collect();
    if hosts.len() > 5 {
        text.push(format!("and {} more", hosts.len() - 5));
    }
    text.join(", ")
}

/// A session as the driver holds it.
#[derive(Debug)]
struct Session {
    number: u64,
    orders: Orders,
    since: Moment,
    /// It was told the roster and whom it follows.
    greeted: bool,
    /// The epoch of the roster that the host has, 0 for none; `None` for a version that knows whole rosters only.
    roster: Option<u64>,
    /// The key with which the host signs links; `None` for a version that doesn't: it takes no part in staging.
    link_key: Option<LinkKey>,
    /// When the host is given its next standing ticket.
    ticket_due: Moment,
    /// Images whose manifest it has, and the order that it took last for each (see [`orders::StageOrders`]): as it said at the
    /// beginning, and as it was told since.
    has: BTreeMap<Digest, u64>,
}

/// A host as it is known.
#[derive(Debug)]
struct Host {
    zone: String,
    session: Option<Session>,
    place: Option<Place>,
    version: String,
    volume: Option<VolumeView>,
    backlog_bytes: u64,
    upload_bytes_per_second: u64,
    images: BTreeMap<Digest, Progress>,
    references: BTreeMap<Digest, String>,
    blames: u64,
    /// What it holds against others.
    blamed: Blamed,
    /// What the log has lately of its doings.
    lines: Lines,
    /// Chunks for whose bytes others blame it: it is asked to look at its disk.
    suspect: BTreeSet<(Digest, u32)>,
    neighbours: Vec<HostId>,
    wholes: roster::Wholes,
    lost_at: Option<Moment>,
    word: presence::Word,
    told: Told,
}

impl Host {
    fn new(zone: String) -> Self {
        Self {
            zone,
            session: None,
            place: None,
            version: String::new(),
            volume: None,
            backlog_bytes: 0,
            upload_bytes_per_second: 0,
            images: BTreeMap::new(),
            references: BTreeMap::new(),
            blames: 0,
            blamed: Blamed::default(),
            lines: Lines::default(),
            suspect: BTreeSet::new(),
            neighbours: Vec::new(),
            wholes: roster::Wholes::new(),
            lost_at: None,
            word: presence::Word::default(),
            told: Told::default(),
        }
    }
}

/// What a host holds against others, as far as it was heard in this minute.
#[derive(Debug, Default)]
struct Blamed {
    since: Moment,
    count: usize,
    /// How many links it showed, whom it blames, and what of.
    said: BTreeSet<(usize, HostId, Option<Digest>)>,
}

impl Blamed {
    /// How many more are heard now.
    fn room(&mut self, now: Moment) -> usize {
        if now.since(self.since) >= BLAMES_WITHIN {
            *self = Self {
                since: now,
                ..Self::default()
            };
        }
        (4 * MAX_BLAMES).saturating_sub(self.count)
    }
}

/// A want as the driver holds it.
#[derive(Debug)]
struct Wanted {
    /// With the references and hosts that are wanted by all who want it.
    want: Want,
    /// Hosts that keep what they have and get no more, unless they are selected.
    held: BTreeSet<HostId>,
    /// Hosts that may have what it holds; `None`: all.
    entitled: Option<BTreeSet<HostId>>,
    /// The plan knows it. It doesn't where other images have all its names.
    planned: bool,
    /// By the references that each names.
    orders: Vec<(Vec<String>, orders::StageOrders)>,
    ordered: BTreeSet<HostId>,
    token: Option<(PullToken, Moment)>,
    /// When the next pull token is asked for; none while one is on its way or none is handed down.
    token_due: Option<Moment>,
    /// The registry refuses the token that hosts have.
    token_refused: bool,
    took: took::Took,
    /// What the last lease holder that its registry failed had to say, and when.
    origin_said: Option<(Moment, String)>,
    /// The same of one that its registry gives something all the same.
    origin_remark: Option<(Moment, String)>,
    /// Hosts that lost it, and when they are ordered to stage it again.
    restage: BTreeMap<HostId, Restage>,
}

/// A host that lost an image.
#[derive(Debug, Default)]
struct Restage {
    due: Option<Moment>,
    tries: u32,
}

/// Chunks that a host is asked to look at in one order. It looks at no more at one time.
const MAX_SUSPECT: usize = 64;

/// Bad contents whose story is kept; more are only counted.
const MAX_BAD_CONTENTS: usize = 256;

/// State and its ways out.
#[derive(Debug)]
pub(crate) struct Driver {
    started: Instant,
    config: Config,
    authority: Arc<Authority>,
    /// Checks what hosts show against others.
    signatures: Signatures,
    /// The number of the last ticket.
    last_ticket: u64,
    plan: Plan,
    membership: Arc<Membership>,
    hosts: BTreeMap<HostId, Host>,
    keys: BTreeMap<HostKey, HostId>,
    wants: BTreeMap<Digest, Wanted>,
    /// Who wants each of them, under which names and where.
    claims: Claims,
    /// Hosts whose names may have changed.
    names_due: BTreeSet<HostId>,
    /// What the cluster wants beyond the most images, until there is room.
    waiting: BTreeMap<Digest, Placed>,
    bandwidth: Option<BandwidthRequest>,
    limits: Limits,
    /// Whether what operators, and what the cluster wanted before this start is among the wants.
    recalled: bool,
    placed: bool,
    /// Blobs that clients of mirrors wait for.
    mirror: mirror::Mirrored,
    /// Contents that a holder found bad, and what it said.
    bad_contents: BTreeMap<Digest, String>,
    quarantined: BTreeSet<HostId>,
    refusals: refusals::Refusals,
    roster: roster::Roster,
    /// Hosts whose neighbours changed since they were told.
    neighbours_due: BTreeSet<HostId>,
    /// Images of which other hosts may have what they hold than their hosts were told.
    entitled_due: BTreeSet<Digest>,
    /// When hosts are told what changed in the roster and among their neighbours.
    roster_due: Option<Moment>,
    /// Hosts that wait for a whole roster.
    rosters_owed: BTreeSet<HostId>,
    places_due: Option<Moment>,
    publish: watch::Sender<Arc<View>>,
    dirty: bool,
    publish_due: Moment,
    presence: watch::Sender<Arc<PresenceView>>,
    presence_changed: bool,
    presence_heard: bool,
    presence_due: Moment,
    writer: mpsc::Sender<Write>,
    registries: Arc<Registries>,
    metrics: Metrics,
    jobs: JoinSet<Input>,
    /// A test's own clock.
    #[cfg(test)]
    frozen: Option<Moment>,
}

/// What a driver is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) authority: Arc<Authority>,
    pub(crate) kept: Kept,
    pub(crate) membership: Arc<Membership>,
    pub(crate) publish: watch::Sender<Arc<View>>,
    pub(crate) presence: watch::Sender<Arc<PresenceView>>,
    pub(crate) writer: mpsc::Sender<Write>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) seed: u64,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let epoch = u64::try_from(since_1970.as_millis()).unwrap_or(0);
        let mut this = Self {
            started: Instant::now(),
            plan: Plan::new(parts.config.plan.clone(), parts.seed),
            // without a cluster there is nothing to wait for
            placed: parts.config.cluster.is_none(),
            config: parts.config,
            signatures: parts.authority.signatures(),
            authority: parts.authority,
            last_ticket: 0,
            membership: Arc::default(),
            hosts: BTreeMap::new(),
            bad_contents: BTreeMap::new(),
            keys: BTreeMap::new(),
            wants: BTreeMap::new(),
            claims: Claims::new(epoch),
            names_due: BTreeSet::new(),
            waiting: BTreeMap::new(),
            bandwidth: parts.kept.bandwidth,
            limits: Limits::default(),
            recalled: false,
            mirror: mirror::Mirrored::default(),
            quarantined: BTreeSet::new(),
            refusals: refusals::Refusals::default(),
            roster: roster::Roster::new(),
            neighbours_due: BTreeSet::new(),
            entitled_due: BTreeSet::new(),
            roster_due: None,
            rosters_owed: BTreeSet::new(),
            places_due: None,
            publish: parts.publish,
            dirty: true,
            publish_due: Moment::START,
            presence: parts.presence,
            presence_changed: true,
            presence_heard: false,
            presence_due: Moment::START,
            writer: parts.writer,
            registries: parts.registries,
            metrics: parts.metrics,
            jobs: JoinSet::new(),
            #[cfg(test)]
            frozen: None,
        };
        let now = this.now();
        // in the zones where they were: what each says of itself then moves nobody in the graph
        for (host, place) in &parts.kept.roster {
            if parts.membership.admits(host) {
                this.know(now, host, place.zone.clone());
            }
        }
        this.join(now, parts.membership);
        for (host, place) in parts.kept.roster {
            if let Some(known) = this.hosts.get_mut(&host) {
                known.place = Some(place);
            }
        }
        this.refresh_roster();
        for want in parts.kept.wants {
            this.enter(now, want);
        }
        this.act(now);
        // What was kept is on show before the first question.
        this.show(now);
        this
    }

    /// Runs until `shutdown`, until every sender of `inbox` is gone, or until a job died.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut membership: watch::Receiver<Arc<Membership>>,
        shutdown: CancellationToken,
    ) {
        loop {
            self.flush();
            let due = self.started + Duration::from_micros(self.due().0);
            let next = tokio::select! {
                () = shutdown.cancelled() => return,
                input = inbox.recv() => input,
                Some(job) = self.jobs.join_next() => finished(job),
                Ok(()) = membership.changed() => {
                    let fresh = membership.borrow_and_update().clone();
                    let now = self.now();
                    self.join(now, fresh);
                    self.act(now);
                    continue;
                }
                () = tokio::time::sleep_until(due.into()) => Some(Input::Tick),
            };
            // without an input there is nobody left to ask, or a job died: then the program ends
            let Some(input) = next else { return };
            // who is asked about is who belongs to the fleet now
            if membership.has_changed().unwrap_or(false) {
                let fresh = membership.borrow_and_update().clone();
                let now = self.now();
                self.join(now, fresh);
            }
            self.apply(input);
        }
    }

    fn now(&self) -> Moment {
        #[cfg(test)]
        if let Some(now) = self.frozen {
            return now;
        }
        Moment::START + self.started.elapsed()
    }

    /// The wall clock, in Unix milliseconds: only for what is kept over restarts.
    fn unix_ms() -> u64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since_1970.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
    }

    /// When something is due, if nothing happens before.
    fn due(&self) -> Moment {
        let tokens = self.wants.values().filter_map(|wanted| wanted.token_due);
        let restage = self
            .wants
            .values()
            .flat_map(|wanted| wanted.restage.values());
        let restage = restage.filter_map(|restage| restage.due);
        [
            self.plan.next_timeout(),
            self.roster_due,
            self.places_due,
            Some(if self.dirty {
                self.publish_due
            } else {
                // Ages and rates change with time alone.
                self.publish_due + Duration::from_secs(1)
            }),
        ]
        .into_iter()
        .flatten()
        .chain(tokens)
        .chain(restage)
        .min()
        .unwrap_or(self.publish_due)
    }

    /// Tells the plan when nothing that was wanted is missing any more.
    fn wants_may_be_known(&mut self, now: Moment) {
        if self.wants_are_known() {
            self.plan.handle(now, Event::WantsKnown);
            self.names_changed();
        }
    }

    /// Whether all that was wanted before this start is among the wants.
    const fn wants_are_known(&self) -> bool {
        self.recalled && self.placed
    }

    /// Changes state by one input, and carries out what the plan makes of it.
    pub(crate) fn apply(&mut self, input: Input) {
        let now = self.now();
        let began = Instant::now();
        self.dirty = true;
        let mut waits = None;
        match input {
            Input::Opened(opened) => self.open(now, *opened),
            Input::Reported {
                host,
                session,
                report,
                handled,
            } => {
                self.report(now, &host, session, &report);
                waits = Some(handled);
            }
            Input::Closed { host, session } => self.close(now, &host, session),
            Input::Refused(refused) => self.refused(now, refused),
            Input::Asked(ask) => self.answer(now, ask),
            Input::Recalled => {
                self.recalled = true;
                self.wants_may_be_known(now);
            }
            Input::Token { image, granted } => self.take_token(now, image, granted),
            Input::Tick => {
                self.tidy_mirror(now);
                self.plan.handle(now, Event::Tick);
            }
        }
        self.place_waiting(now);
        self.act(now);
        self.tell_names(now);
        self.show_presence(now);
        if let Some(handled) = waits {
            // a session that ended meanwhile doesn't wait for it
            handled.send(began.elapsed()).ok();
        }
    }
}

/// What a job brought. Nothing when it died: who waits for its answer would wait for ever, and a new start asks anew.
fn finished(job: Result<Input, tokio::task::JoinError>) -> Option<Input> {
    job.map_err(|error| error!(%error, "a job of the driver died; the coordinator ends"))
        .ok()
}
