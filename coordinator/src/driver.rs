//! The one task that owns the plan and all that is known of the fleet.
//!
//! `run` selects an [`Input`]; `apply` changes state without waiting and turns the plan's actions into orders, which go
//! into each session's bounded queue. What it shows of itself is published as a [`View`] at most four times a second.
//! Files are written by one keeper task in the order in which they were asked for; network waits are jobs of one set.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use proto::{Digest, HostId, HostKey, Moment, message};
use rollout::stage::{Action, Event, Plan, event as word};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    config::{Config, MAX_HOSTS},
    fleet::Membership,
    metrics::{KindLabel, Metrics},
    progress::{self, Progress},
    resolve::{Granted, PullToken, Registries},
    view::{BandwidthRequest, ShortOfRoom, StageReply, VolumeView},
    wants::{Kept, Place, Want},
};

mod keeper;
mod show;
#[cfg(test)]
mod tests;

pub(crate) use keeper::{Keep, QUEUE as KEEPER_QUEUE, keep};
pub(crate) use show::View;

/// Inputs that wait for the driver: a report of each of 1,000 hosts. Sessions wait when it is full.
pub(crate) const INBOX: usize = 1_024;
/// Orders that wait for a session: a whole roll of images and leases. A host that doesn't take them is let go.
pub(crate) const ORDERS: usize = 256;
/// The most images wanted at one time; each costs a few hundred kilobytes of manifest in memory and on every host.
pub(crate) const MAX_WANTS: usize = 64;
/// The most images of one host that are kept track of.
const MAX_IMAGES_PER_HOST: usize = 256;
/// References of one image.
const MAX_REFERENCES: usize = 32;
/// The view is published no more often than this.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// A roster waits this long for others to change it, and as many more microseconds as it has hosts squared: a thousand
/// hosts that come back together cost a few rosters, not a thousand.
const ROSTER_PAUSE: Duration = Duration::from_millis(50);
/// Where hosts are is kept this long after it changed, at most.
const ROSTER_KEEP: Duration = Duration::from_secs(1);
/// A pull token is renewed when less than this remains of it.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
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
        report: Box<message::Report>,
    },
    /// A session ended.
    Closed { host: HostId, session: u64 },
    /// An operator asks.
    Asked(Ask),
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

/// What operators ask.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Stage this; `references` holds the one asked for.
    Stage {
        want: Box<Want>,
        reply: oneshot::Sender<Result<StageReply, StageError>>,
    },
    /// Whether the image was wanted.
    Cancel {
        image: Digest,
        reply: oneshot::Sender<Result<bool, crate::wants::StateError>>,
    },
    /// Limit every host.
    Bandwidth {
        limits: BandwidthRequest,
        reply: oneshot::Sender<Result<(), crate::wants::StateError>>,
    },
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
    /// Nobody to stage it on.
    #[error(
        "the fleet has no hosts; add [[hosts]] to the fleet file, or set `open = true` and enrol some"
    )]
    NoHosts,
    /// Too many images at once.
    #[error("{MAX_WANTS} images are wanted already; cancel some (`parbake cancel IMAGE`)")]
    TooManyImages,
    /// Too many names of one image.
    #[error("the image has {MAX_REFERENCES} references already; cancel it and stage it anew")]
    TooManyReferences,
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
    neighbours: Vec<HostId>,
    roster_sent: u64,
    lost_at: Option<Moment>,
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
            neighbours: Vec::new(),
            roster_sent: 0,
            lost_at: None,
        }
    }
}

/// A want as the driver holds it.
#[derive(Debug)]
struct Wanted {
    want: Want,
    order: Option<Arc<message::Order>>,
    ordered: BTreeSet<HostId>,
    token: Option<(PullToken, Moment)>,
    /// When the next pull token is asked for; none while one is on its way or none is handed down.
    token_due: Option<Moment>,
    changed_at: Moment,
    staged: Option<Duration>,
}

/// State and its ways out.
#[derive(Debug)]
pub(crate) struct Driver {
    started: Instant,
    config: Config,
    plan: Plan,
    membership: Arc<Membership>,
    hosts: BTreeMap<HostId, Host>,
    keys: BTreeMap<HostKey, HostId>,
    wants: BTreeMap<Digest, Wanted>,
    bandwidth: Option<BandwidthRequest>,
    quarantined: BTreeSet<HostId>,
    /// Counts rosters; later ones are larger over restarts too.
    epoch: u64,
    /// The membership or an address changed: every host gets a new roster.
    roster_changed: bool,
    roster_due: Option<Moment>,
    places_due: Option<Moment>,
    publish: watch::Sender<Arc<View>>,
    dirty: bool,
    publish_due: Moment,
    keeper: mpsc::Sender<Keep>,
    registries: Arc<Registries>,
    metrics: Metrics,
    jobs: JoinSet<Input>,
}

/// What a driver is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) kept: Kept,
    pub(crate) membership: Arc<Membership>,
    pub(crate) publish: watch::Sender<Arc<View>>,
    pub(crate) keeper: mpsc::Sender<Keep>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) seed: u64,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut this = Self {
            started: Instant::now(),
            plan: Plan::new(parts.config.plan.clone(), parts.seed),
            config: parts.config,
            membership: Arc::default(),
            hosts: BTreeMap::new(),
            keys: BTreeMap::new(),
            wants: BTreeMap::new(),
            bandwidth: parts.kept.bandwidth,
            quarantined: BTreeSet::new(),
            epoch: u64::try_from(since_1970.as_millis()).unwrap_or(0),
            roster_changed: false,
            roster_due: None,
            places_due: None,
            publish: parts.publish,
            dirty: true,
            publish_due: Moment::START,
            keeper: parts.keeper,
            registries: parts.registries,
            metrics: parts.metrics,
            jobs: JoinSet::new(),
        };
        let now = this.now();
        this.join(now, parts.membership);
        for (host, place) in parts.kept.roster {
            if let Some(known) = this.hosts.get_mut(&host) {
                known.place = Some(place);
            }
        }
        for want in parts.kept.wants {
            let image = want.digest();
            this.enter(now, want);
            this.tell_wanted(now, image);
        }
        this.act(now);
        this
    }

    /// Runs until `shutdown`, or until every sender of `inbox` is gone.
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
                Some(job) = self.jobs.join_next() => Some(finished(job)),
                Ok(()) = membership.changed() => {
                    let fresh = membership.borrow_and_update().clone();
                    let now = self.now();
                    self.join(now, fresh);
                    self.act(now);
                    continue;
                }
                () = tokio::time::sleep_until(due.into()) => Some(Input::Tick),
            };
            let Some(input) = next else { return };
            self.apply(input);
        }
    }

    fn now(&self) -> Moment {
        Moment::START + self.started.elapsed()
    }

    /// When something is due, if nothing happens before.
    fn due(&self) -> Moment {
        let tokens = self.wants.values().filter_map(|wanted| wanted.token_due);
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
        .min()
        .unwrap_or(self.publish_due)
    }

    /// Changes state by one input, and carries out what the plan makes of it.
    pub(crate) fn apply(&mut self, input: Input) {
        let now = self.now();
        self.dirty = true;
        match input {
            Input::Opened(opened) => self.open(now, *opened),
            Input::Reported {
                host,
                session,
                report,
            } => self.report(now, &host, session, &report),
            Input::Closed { host, session } => self.close(now, &host, session),
            Input::Asked(ask) => self.answer(now, ask),
            Input::Token { image, granted } => self.take_token(now, image, granted),
            Input::Tick => self.plan.handle(now, Event::Tick),
        }
        self.act(now);
    }

    // ---- membership -----------------------------------------------------------------------------------------------

    fn join(&mut self, now: Moment, membership: Arc<Membership>) {
        let gone: Vec<HostId> = self
            .hosts
            .keys()
            .filter(|host| !membership.admits(host))
            .cloned()
            .collect();
        for host in gone {
            self.leave(now, &host);
        }
        for (host, entry) in membership.members() {
            let zone = entry.map_or(String::new(), |entry| entry.zone.clone());
            self.know(now, host, zone);
        }
        self.membership = membership;
        self.dirty = true;
    }

    /// Whether the host could be made known.
    fn know(&mut self, now: Moment, host: &HostId, zone: String) -> bool {
        if let Some(known) = self.hosts.get_mut(host) {
            if !zone.is_empty() && known.zone != zone {
                known.zone.clone_from(&zone);
                self.roster_changed = true;
                let host = host.clone();
                self.plan.handle(now, Event::HostKnown { host, zone });
            }
            return true;
        }
        if self.hosts.len() >= MAX_HOSTS {
            error!(%host, limit = MAX_HOSTS, "fleet is full; the host isn't taken in");
            return false;
        }
        if let Some(other) = self.keys.get(&host.key()) {
            error!(%host, %other, "host has the same key as another; rename one of them");
            return false;
        }
        self.keys.insert(host.key(), host.clone());
        self.hosts.insert(host.clone(), Host::new(zone.clone()));
        let host = host.clone();
        self.plan.handle(now, Event::HostKnown { host, zone });
        true
    }

    /// The host isn't part of the fleet any more: its session ends with its queue.
    fn leave(&mut self, now: Moment, host: &HostId) {
        info!(%host, "host left the fleet");
        self.hosts.remove(host);
        self.keys.remove(&host.key());
        for wanted in self.wants.values_mut() {
            wanted.ordered.remove(host);
        }
        self.plan.handle(now, Event::HostForgotten(host.clone()));
        self.roster_changed = true;
    }

    // ---- sessions -------------------------------------------------------------------------------------------------

    fn open(&mut self, now: Moment, opened: Opened) {
        let Opened {
            host,
            session,
            remote,
            hello,
            orders,
        } = opened;
        // The membership may have changed between the handshake and now. Without a queue the session ends.
        if !self.membership.admits(&host) {
            return;
        }
        let named = self.membership.fleet.hosts.get(&host);
        let zone = named
            .map(|entry| entry.zone.clone())
            .filter(|zone| !zone.is_empty())
            .unwrap_or_else(|| progress::clean(&hello.zone));
        if !self.know(now, &host, zone) {
            return;
        }
        let Some(known) = self.hosts.get_mut(&host) else {
            return;
        };
        let advertised = peer_address(remote, &hello);
        if advertised.is_none() {
            warn!(%host, address = progress::clean(&hello.peer_address), "host's address for peers can't be used");
        }
        let place = advertised.map(|address| Place {
            address,
            zone: known.zone.clone(),
        });
        if known.place != place {
            known.place = place;
            self.roster_changed = true;
            self.places_due.get_or_insert(now + ROSTER_KEEP);
        }
        let replaced = known.session.replace(Session {
            number: session,
            orders,
            since: now,
        });
        known.lost_at = None;
        known.roster_sent = 0;
        known.version = progress::clean(&hello.version);
        known.volume = hello.volume.as_ref().map(volume);
        for wanted in self.wants.values_mut() {
            wanted.ordered.remove(&host);
        }
        info!(%host, %remote, version = known.version, "host is connected");
        if replaced.is_some() {
            debug!(%host, "a new session replaces the one before");
            self.plan.handle(now, Event::HostDisconnected(host.clone()));
        }
        self.plan.handle(now, Event::HostConnected(host.clone()));
        for image in &hello.images {
            self.image(now, &host, image);
        }
        if let Some(limits) = self.bandwidth {
            self.order(&host, bandwidth(limits));
        }
        if !self.quarantined.is_empty() {
            let limits = self.limits();
            self.order(&host, limits);
        }
    }

    fn close(&mut self, now: Moment, host: &HostId, session: u64) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        // A session that was replaced says goodbye late.
        if known
            .session
            .as_ref()
            .is_none_or(|held| held.number != session)
        {
            return;
        }
        let held = known.session.take();
        known.lost_at = Some(now);
        for progress in known.images.values_mut() {
            progress.disconnected();
        }
        let lasted = held.map_or(Duration::ZERO, |held| now.since(held.since));
        info!(%host, lasted_s = lasted.as_secs(), "host is disconnected");
        self.plan.handle(now, Event::HostDisconnected(host.clone()));
    }

    fn report(&mut self, now: Moment, host: &HostId, session: u64, report: &message::Report) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if known
            .session
            .as_ref()
            .is_none_or(|held| held.number != session)
        {
            return;
        }
        if let Some(reported) = &report.volume {
            known.volume = Some(volume(reported));
        }
        if let Some(load) = &report.load {
            known.backlog_bytes = load.backlog_bytes;
            known.upload_bytes_per_second = load.upload_bytes_per_second;
        }
        for image in &report.images {
            self.image(now, host, image);
        }
        if report.full {
            self.forget_unreported(now, host, report);
        }
        for lease in &report.leases {
            self.lease(now, host, lease);
        }
        for blame in &report.blames {
            self.blame(now, host, blame);
        }
    }

    fn image(&mut self, now: Moment, host: &HostId, report: &message::ImageState) {
        let Ok(image) = message::digest(&report.manifest) else {
            debug!(%host, "report names an image by no digest");
            return;
        };
        let total = self
            .wants
            .get(&image)
            .map(|wanted| wanted.want.layout.content_bytes());
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        if !known.images.contains_key(&image) && known.images.len() >= MAX_IMAGES_PER_HOST {
            debug!(%host, "host reports more images than are kept track of");
            return;
        }
        let progress = known.images.entry(image).or_insert_with(Progress::new);
        progress.report(now, report, total);
        if !report.reference.is_empty() {
            known
                .references
                .insert(image, progress::clean(&report.reference));
        }
        let standing = match progress::state(report.state) {
            crate::view::HostState::Queued => word::Standing::Queued,
            crate::view::HostState::Staging => word::Standing::Staging,
            crate::view::HostState::Installing => word::Standing::Installing,
            crate::view::HostState::Present => word::Standing::Present,
            crate::view::HostState::Failed => word::Standing::Failed,
            crate::view::HostState::Gone => word::Standing::Gone,
            // A state that this version doesn't know says nothing that can be acted on.
            crate::view::HostState::Waiting => return,
        };
        let held_bytes = progress.held_bytes();
        self.plan.handle(
            now,
            Event::Reported {
                host: host.clone(),
                image,
                standing,
                held_bytes,
            },
        );
    }

    /// A full report is all that there is: an image that it leaves out isn't on the host any more.
    fn forget_unreported(&mut self, now: Moment, host: &HostId, report: &message::Report) {
        let reported: BTreeSet<Digest> = report
            .images
            .iter()
            .filter_map(|image| message::digest(&image.manifest).ok())
            .collect();
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let gone: Vec<Digest> = known
            .images
            .keys()
            .filter(|image| !reported.contains(image))
            .copied()
            .collect();
        for image in gone {
            known.images.remove(&image);
            known.references.remove(&image);
            self.plan.handle(
                now,
                Event::Reported {
                    host: host.clone(),
                    image,
                    standing: word::Standing::Gone,
                    held_bytes: 0,
                },
            );
        }
    }

    fn lease(&mut self, now: Moment, host: &HostId, lease: &message::LeaseState) {
        let Ok(content) = message::digest(&lease.content) else {
            return;
        };
        let (end, outcome) = match lease.end() {
            message::LeaseEnd::Unspecified => {
                self.plan.handle(
                    now,
                    Event::LeaseProgress {
                        host: host.clone(),
                        content,
                        chunks: lease.chunks,
                        paced: lease.paced,
                    },
                );
                return;
            }
            message::LeaseEnd::Done => (word::LeaseEnd::Done, "done"),
            message::LeaseEnd::OriginFailed => (word::LeaseEnd::OriginFailed, "origin_failed"),
            message::LeaseEnd::ContentBad => (word::LeaseEnd::ContentBad, "content_bad"),
            message::LeaseEnd::Released => (word::LeaseEnd::Released, "released"),
        };
        Metrics::count(&self.metrics.lease_ends, outcome);
        let message = progress::clean(&lease.message);
        if matches!(
            end,
            word::LeaseEnd::OriginFailed | word::LeaseEnd::ContentBad
        ) {
            warn!(%host, %content, reason = outcome, message, "lease failed on its holder");
        } else {
            debug!(%host, %content, reason = outcome, "lease ended");
        }
        self.plan.handle(
            now,
            Event::LeaseEnded {
                host: host.clone(),
                content,
                end,
            },
        );
    }

    fn blame(&mut self, now: Moment, by: &HostId, blame: &message::Blame) {
        let kind = match blame.kind() {
            message::BlameKind::Unspecified => "other",
            message::BlameKind::Bytes => "bytes",
            message::BlameKind::Link => "link",
            message::BlameKind::Silence => "silence",
            message::BlameKind::Protocol => "protocol",
        };
        self.metrics.blames.get_or_create(&KindLabel { kind }).inc();
        let Ok(host) = blame.host.parse::<HostId>() else {
            return;
        };
        let Some(known) = self.hosts.get_mut(&host).filter(|_| host != *by) else {
            return;
        };
        known.blames = known.blames.saturating_add(1);
        // A sender that names no maker, or none of ours, made it itself as far as anybody can tell.
        let maker = blame.maker.parse().ok();
        let maker = maker
            .filter(|maker| self.hosts.contains_key(maker))
            .unwrap_or_else(|| host.clone());
        warn!(%by, %host, %maker, kind, chunk = blame.chunk, "host is blamed");
        let by = by.clone();
        // Silence and broken manners are faults, not lies: the accuser shuns such a host by itself.
        if matches!(
            blame.kind(),
            message::BlameKind::Bytes | message::BlameKind::Link
        ) {
            self.plan.handle(now, Event::Blamed { by, host, maker });
        }
    }

    // ---- operators ------------------------------------------------------------------------------------------------

    fn answer(&mut self, now: Moment, ask: Ask) {
        match ask {
            Ask::Stage { want, reply } => match self.stage(now, *want) {
                Ok((image, short_of_room)) => {
                    self.act(now);
                    let Some(view) = self.show_image(now, &image) else {
                        return;
                    };
                    self.publish_due = now;
                    let reply = keeper::Answer::new(
                        reply,
                        StageReply {
                            image: view,
                            short_of_room,
                        },
                    );
                    let want = self.wants[&image].want.clone();
                    self.keep(Keep::Want(Box::new(want), reply));
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Ask::Cancel { image, reply } => {
                let wanted = self.cancel(now, image);
                self.publish_due = now;
                self.keep(Keep::Drop(image, Some(keeper::Answer::new(reply, wanted))));
            }
            Ask::Bandwidth { limits, reply } => {
                self.bandwidth = Some(limits);
                let order = Arc::new(bandwidth(limits));
                let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
                for host in hosts {
                    self.order_shared(&host, &order);
                }
                info!(
                    upload = limits.upload_bytes_per_second,
                    download = limits.download_bytes_per_second,
                    "bandwidth limits changed"
                );
                self.keep(Keep::Bandwidth(limits, keeper::Answer::new(reply, ())));
            }
            Ask::Preview { want, reply } => drop(reply.send(self.preview(&want))),
        }
    }

    fn stage(&mut self, now: Moment, want: Want) -> Result<(Digest, Vec<ShortOfRoom>), StageError> {
        let image = want.digest();
        let selected = self.selected(want.hosts.as_ref())?;
        if !self.wants.contains_key(&image) && self.wants.len() >= MAX_WANTS {
            return Err(StageError::TooManyImages);
        }
        let before = self.wants.get(&image).map(|wanted| &wanted.want);
        let names = before.map_or(0, |want| want.references.len());
        if names >= MAX_REFERENCES {
            return Err(StageError::TooManyReferences);
        }
        let short = self.short_of_room(&want, &selected)?;
        for host in &short {
            warn!(
                host = host.host,
                %image,
                needed_bytes = host.needed_bytes,
                free_bytes = host.free_bytes,
                floor_bytes = host.floor_bytes,
                "host lacks room by the coordinator's figures"
            );
        }
        self.supersede(now, &want);
        info!(%image, references = ?want.references, hosts = selected.len(), "image is wanted");
        self.enter(now, want);
        self.tell_wanted(now, image);
        Ok((image, short))
    }

    /// The hosts that a selection means now.
    fn selected(&self, hosts: Option<&BTreeSet<HostId>>) -> Result<Vec<HostId>, StageError> {
        let selected: Vec<HostId> = match hosts {
            None => self.hosts.keys().cloned().collect(),
            Some(hosts) => {
                if let Some(unknown) = hosts.iter().find(|host| !self.hosts.contains_key(host)) {
                    return Err(StageError::UnknownHost(unknown.clone()));
                }
                hosts.iter().cloned().collect()
            }
        };
        if selected.is_empty() {
            return Err(StageError::NoHosts);
        }
        Ok(selected)
    }

    /// The selected hosts whose reported room isn't enough; an error when none could ever hold the image.
    fn short_of_room(
        &self,
        want: &Want,
        selected: &[HostId],
    ) -> Result<Vec<ShortOfRoom>, StageError> {
        let image = want.digest();
        let whole = want.layout.disk_bytes();
        let mut short = Vec::new();
        let mut hopeless = 0;
        for host in selected {
            let Some(known) = self.hosts.get(host) else {
                continue;
            };
            let Some(volume) = &known.volume else {
                continue;
            };
            let progress = known.images.get(&image);
            if progress.is_some_and(|progress| progress.state == crate::view::HostState::Present) {
                continue;
            }
            let held = progress.map_or(0, Progress::held_bytes);
            let needed_bytes = whole.saturating_sub(held);
            if volume.free_bytes.saturating_sub(volume.floor_bytes) < needed_bytes {
                short.push(ShortOfRoom {
                    host: host.to_string(),
                    needed_bytes,
                    free_bytes: volume.free_bytes,
                    floor_bytes: volume.floor_bytes,
                });
            }
            if volume.total_bytes.saturating_sub(volume.floor_bytes) < whole {
                hopeless += 1;
            }
        }
        if hopeless == selected.len() {
            return Err(StageError::NowhereFits {
                needed_bytes: whole,
                hosts: short,
            });
        }
        Ok(short)
    }

    /// A tag names one image: where it moved, the image that it named before loses it, and with its last name the want.
    fn supersede(&mut self, now: Moment, want: &Want) {
        let image = want.digest();
        let moved: Vec<Digest> = self
            .wants
            .iter()
            .filter(|(other, wanted)| {
                **other != image && !wanted.want.references.is_disjoint(&want.references)
            })
            .map(|(other, _)| *other)
            .collect();
        for other in moved {
            let Some(wanted) = self.wants.get_mut(&other) else {
                continue;
            };
            for reference in &want.references {
                wanted.want.references.remove(reference);
            }
            wanted.order = None;
            if wanted.want.references.is_empty() {
                info!(image = %other, by = %image, "image is superseded: its last tag moved");
                self.cancel(now, other);
                self.keep(Keep::Drop(other, None));
            } else {
                let want = Box::new(wanted.want.clone());
                self.keep(Keep::Want(want, keeper::Answer::none()));
                self.tell_wanted(now, other);
            }
        }
    }

    fn enter(&mut self, now: Moment, want: Want) {
        let image = want.digest();
        let token_due = self.registries.hands_down(&want).then_some(now);
        match self.wants.get_mut(&image) {
            None => {
                self.wants.insert(
                    image,
                    Wanted {
                        want,
                        order: None,
                        ordered: BTreeSet::new(),
                        token: None,
                        token_due,
                        changed_at: now,
                        staged: None,
                    },
                );
            }
            Some(wanted) => {
                wanted.want.references.extend(want.references);
                wanted.want.hosts = match (wanted.want.hosts.take(), want.hosts) {
                    (Some(mut before), Some(more)) => {
                        before.extend(more);
                        Some(before)
                    }
                    _ => None,
                };
                wanted.order = None;
                wanted.changed_at = now;
                wanted.staged = None;
            }
        }
    }

    fn tell_wanted(&mut self, now: Moment, image: Digest) {
        let Some(wanted) = self.wants.get(&image) else {
            return;
        };
        let want = &wanted.want;
        let contents = want
            .layout
            .contents()
            .into_iter()
            .map(|content| word::Content {
                digest: content.digest,
                chunks: content.geometry.chunks(),
                origin_bytes: match content.kind {
                    proto::image::ContentKind::RawLayer { blob } => blob.size,
                    proto::image::ContentKind::Blob => content.geometry.size(),
                },
            })
            .collect();
        let hosts = want.hosts.as_ref().map_or(word::Selection::All, |hosts| {
            word::Selection::Hosts(hosts.iter().cloned().collect())
        });
        self.plan.handle(
            now,
            Event::Wanted {
                image,
                references: want.references.iter().cloned().collect(),
                contents,
                hosts,
            },
        );
    }

    /// Whether it was wanted.
    fn cancel(&mut self, now: Moment, image: Digest) -> bool {
        if self.wants.remove(&image).is_none() {
            return false;
        }
        info!(%image, "image isn't wanted any more");
        self.plan.handle(now, Event::Cancelled(image));
        true
    }

    fn keep(&self, keep: Keep) {
        if let Err(error) = self.keeper.try_send(keep) {
            // The answer that it carried is dropped with it: whoever asked hears of it.
            error!(%error, "state couldn't be queued for writing; a restart may forget the last changes");
        }
    }

    // ---- what the plan wants done ---------------------------------------------------------------------------------

    fn act(&mut self, now: Moment) {
        while let Some(action) = self.plan.poll() {
            match action {
                Action::SendRoster { host, neighbours } => {
                    if let Some(known) = self.hosts.get_mut(&host) {
                        known.neighbours = neighbours;
                        known.roster_sent = 0;
                        self.roster_due.get_or_insert(now + ROSTER_PAUSE);
                    }
                }
                Action::Stage { host, image } => self.order_stage(&host, image),
                Action::Cancel { host, image } => {
                    let order = message::CancelOrder {
                        manifest_digest: image.as_bytes().to_vec(),
                    };
                    self.order(&host, kind(message::order::Kind::Cancel(order)));
                }
                Action::Grant {
                    host,
                    content,
                    image,
                } => {
                    self.metrics.granted.inc();
                    debug!(%host, %content, %image, "lease granted");
                    let order = message::LeaseGrant {
                        content: content.as_bytes().to_vec(),
                        manifest_digest: image.as_bytes().to_vec(),
                    };
                    self.order(&host, kind(message::order::Kind::Lease(order)));
                }
                Action::Revoke { host, content } => {
                    Metrics::count(&self.metrics.lease_ends, "revoked");
                    debug!(%host, %content, "lease revoked");
                    let order = message::LeaseRevoke {
                        content: content.as_bytes().to_vec(),
                    };
                    self.order(&host, kind(message::order::Kind::Revoke(order)));
                }
                Action::Quarantine(host) => {
                    error!(%host, "host is quarantined: several others proved that it sent false data; look at its disk and memory");
                }
            }
        }
        if self.roster_changed {
            let hosts = u64::try_from(self.hosts.len()).unwrap_or(u64::MAX);
            let pause =
                ROSTER_PAUSE + Duration::from_micros(hosts.saturating_mul(hosts).min(2_000_000));
            self.roster_due.get_or_insert(now + pause);
        }
    }

    fn order_stage(&mut self, host: &HostId, image: Digest) {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return;
        };
        wanted.ordered.insert(host.clone());
        let token = wanted.token.as_ref();
        let order = wanted
            .order
            .get_or_insert_with(|| {
                Arc::new(stage_order(&wanted.want, token.map(|(token, _)| token)))
            })
            .clone();
        self.order_shared(host, &order);
    }

    fn order(&mut self, host: &HostId, order: message::Order) {
        self.order_shared(host, &Arc::new(order));
    }

    fn order_shared(&mut self, host: &HostId, order: &Arc<message::Order>) {
        let Some(known) = self.hosts.get_mut(host) else {
            return;
        };
        let Some(session) = &known.session else {
            return;
        };
        if session.orders.try_send(order.clone()).is_err() {
            // Its end comes in as an input once the session's task sees that the queue is gone.
            warn!(%host, "host doesn't take its orders; its session is given up");
            known.session = None;
            known.lost_at = Some(Moment::START + self.started.elapsed());
            let now = self.now();
            self.plan.handle(now, Event::HostDisconnected(host.clone()));
        }
    }

    /// Does what is due by time: rosters, files, tokens, the view.
    fn flush(&mut self) {
        let now = self.now();
        if self.roster_due.is_some_and(|due| due <= now) {
            self.roster_due = None;
            self.send_rosters();
            self.act(now);
        }
        if self.places_due.is_some_and(|due| due <= now) {
            self.places_due = None;
            let places = self.hosts.iter();
            let places =
                places.filter_map(|(host, known)| Some((host.clone(), known.place.clone()?)));
            self.keep(Keep::Places(places.collect()));
        }
        self.ask_for_tokens(now);
        if self.publish_due <= now {
            self.publish_due = now + PUBLISH_EVERY;
            self.dirty = false;
            self.show(now);
        }
    }

    /// Sends a roster to every host that lacks the newest.
    fn send_rosters(&mut self) {
        if self.roster_changed {
            self.roster_changed = false;
            self.epoch += 1;
            for known in self.hosts.values_mut() {
                known.roster_sent = 0;
            }
        }
        let entries: Vec<message::RosterEntry> = self
            .hosts
            .iter()
            .filter(|(host, _)| !self.quarantined.contains(host))
            .filter_map(|(host, known)| {
                let place = known.place.as_ref()?;
                Some(message::RosterEntry {
                    host: host.to_string(),
                    address: place.address.to_string(),
                    zone: place.zone.clone(),
                })
            })
            .collect();
        let epoch = self.epoch;
        let due: Vec<(HostId, Vec<String>)> = self
            .hosts
            .iter_mut()
            .filter(|(_, known)| known.session.is_some() && known.roster_sent != epoch)
            .map(|(host, known)| {
                known.roster_sent = epoch;
                let neighbours = known.neighbours.iter().map(ToString::to_string);
                (host.clone(), neighbours.collect())
            })
            .collect();
        for (host, neighbours) in due {
            let roster = message::Roster {
                epoch,
                hosts: entries.clone(),
                neighbours,
            };
            self.order(&host, kind(message::order::Kind::Roster(roster)));
        }
    }

    fn limits(&self) -> message::Order {
        let revoked_hosts = self.quarantined.iter().map(ToString::to_string).collect();
        kind(message::order::Kind::Limits(message::Limits {
            revoked_hosts,
        }))
    }

    /// Tells every host whom the fleet shuns, when that changed.
    fn shun(&mut self, quarantined: BTreeSet<HostId>) {
        if quarantined == self.quarantined {
            return;
        }
        self.quarantined = quarantined;
        self.roster_changed = true;
        let order = Arc::new(self.limits());
        let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
        for host in hosts {
            self.order_shared(&host, &order);
        }
    }

    // ---- pull tokens ----------------------------------------------------------------------------------------------

    fn ask_for_tokens(&mut self, now: Moment) {
        for (image, wanted) in &mut self.wants {
            if wanted.token_due.is_none_or(|due| due > now) {
                continue;
            }
            wanted.token_due = None;
            let (registries, image) = (self.registries.clone(), *image);
            let reference = wanted.want.references.first().cloned();
            self.jobs.spawn(async move {
                let granted = match reference {
                    None => None,
                    Some(reference) => registries
                        .pull_token(&reference)
                        .await
                        .inspect_err(|error| warn!(%error, reference, "no pull token for hosts; trying again"))
                        .ok(),
                };
                Input::Token { image, granted }
            });
        }
    }

    fn take_token(&mut self, now: Moment, image: Digest, granted: Option<Granted>) {
        let Some(wanted) = self.wants.get_mut(&image) else {
            return;
        };
        let token = match granted {
            Some(Granted::Token(token)) => token,
            Some(Granted::Unneeded) => return,
            Some(Granted::PasswordOnly) => {
                warn!(
                    %image,
                    "registry gives no tokens, only a password, which isn't handed down: \
                     set origin.hand_down_passwords = true, or give hosts credentials of their own"
                );
                return;
            }
            None => {
                wanted.token_due = Some(now + TOKEN_RETRY);
                return;
            }
        };
        // At least half of its life: a registry may give tokens of a minute.
        let pause = token
            .expires_in
            .checked_sub(TOKEN_MARGIN)
            .unwrap_or_default()
            .max(token.expires_in / 2)
            .max(Duration::from_secs(1));
        wanted.token_due = Some(now + pause);
        wanted.token = Some((token, now));
        wanted.order = None;
        let hosts = wanted.ordered.clone();
        for host in hosts {
            let held = self
                .hosts
                .get(&host)
                .and_then(|known| known.images.get(&image));
            if held.is_none_or(|progress| progress.state != crate::view::HostState::Present) {
                self.order_stage(&host, image);
            }
        }
    }
}

fn finished(job: Result<Input, tokio::task::JoinError>) -> Input {
    job.unwrap_or_else(|error| {
        error!(%error, "a job of the driver was cut short");
        Input::Tick
    })
}

fn kind(kind: message::order::Kind) -> message::Order {
    message::Order { kind: Some(kind) }
}

fn bandwidth(limits: BandwidthRequest) -> message::Order {
    kind(message::order::Kind::Bandwidth(message::Bandwidth {
        upload_bytes_per_second: limits.upload_bytes_per_second,
        download_bytes_per_second: limits.download_bytes_per_second,
    }))
}

fn stage_order(want: &Want, token: Option<&PullToken>) -> message::Order {
    kind(message::order::Kind::Stage(message::StageOrder {
        manifest_digest: want.digest().as_bytes().to_vec(),
        manifest: want.manifest.to_vec(),
        references: want.references.iter().cloned().collect(),
        media_type: want.media_type.clone(),
        token: token.map(|token| message::PullToken {
            authorization: token.authorization.clone(),
            expires_in_seconds: token.expires_in.as_secs(),
        }),
        plain_http: want.plain_http,
    }))
}

fn volume(volume: &message::Volume) -> VolumeView {
    VolumeView {
        path: progress::clean(&volume.path),
        total_bytes: volume.total_bytes,
        free_bytes: volume.free_bytes.min(volume.total_bytes),
        floor_bytes: volume.floor_bytes,
    }
}

/// Where peers reach a host: what it advertises, else where its connection comes from with the port that it names.
fn peer_address(remote: SocketAddr, hello: &message::Hello) -> Option<SocketAddr> {
    let address = if hello.peer_address.is_empty() {
        let port = u16::try_from(hello.peer_port).ok()?;
        SocketAddr::new(remote.ip().to_canonical(), port)
    } else {
        hello.peer_address.parse().ok()?
    };
    let usable =
        address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
    usable.then_some(address)
}
