//! The agent's one owner of state: it builds an [`Input`] out of whatever happens next, changes state in a synchronous
//! [`Driver::apply`], and turns the swarm's actions into jobs.
//!
//! What to ask of whom is the swarm's business; whether a chunk is true is the chain's; where it lies is the store's.
//! Here is only who gets told what. Jobs end in an [`Input`] too; one that panics ends the program.

mod contents;
mod fit;
mod image;
mod input;
mod jobs;
mod leases;
mod look;
mod members;
mod mirror;
mod naming;
mod orders;
mod report;
mod transfers;
mod trouble;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use link::{Connection, Endpoint};
use proto::{
    ChunkIndex, Digest, HostId, HostKey, Moment, message::Blame, message::Hello, message::Report,
};
use swarm::{
    Action, Event, Swarm,
    event::{ContentId, Delivery, Spread, Ticket},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    contents::Contents,
    fit::LeftOut,
    image::Image,
    jobs::{Jobs, Long},
    leases::Lease,
    members::Members,
    mirror::Mirrored,
    transfers::{Fetch, Transfer, Waiting},
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    fetch,
    metrics::Metrics,
    mirror::{Ears, Wish},
    notary::Notary,
    peer::{self, Brought},
    reconcile::Reconciler,
    session::Heard,
    store::{Store, Volume},
    transfer::{self, Cache, Receipt, Shipment},
};

/// Reports go out this often while something moves, and at once when a lease ends or presence changes.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Verified chunks are journaled at least this often: what `kill -9` may cost.
const FLUSH_EVERY: Duration = Duration::from_millis(500);

/// Presence is checked on disk this often.
const PRESENCE_EVERY: Duration = Duration::from_secs(5);

/// The volume's room is measured this often while something is staged: others write to it too. At 10 Gbit/s about a
/// gigabyte comes meanwhile, far less than any floor.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Accusations that wait for a session; more are dropped, the oldest stay.
const MAX_BLAMES: usize = 256;

/// Inputs of peers and fetches that wait for the driver. A full queue slows its senders; at 1 Gbit/s a hundred chunks
/// come in a second, so this is far more than one turn of the loop needs.
const QUEUE: usize = 256;

/// What the driver is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) me: HostId,
    pub(crate) endpoint: Endpoint,
    pub(crate) store: Arc<Store>,
    pub(crate) origin: fetch::Origin,
    pub(crate) notary: Arc<Notary>,
    pub(crate) tart: Option<Arc<crate::golden::Goldens>>,
    pub(crate) metrics: Metrics,
    /// The mirror's wishes and cache, where there is one.
    pub(crate) mirror: Option<Ears>,
    pub(crate) coordinator: HostId,
    /// Messages of the coordinator's session.
    pub(crate) heard: mpsc::Receiver<Heard>,
    /// What the session says first, kept current.
    pub(crate) hello: watch::Sender<Hello>,
    /// What `/v1/status` shows, kept current.
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Driver {
    config: Config,
    me: HostId,
    endpoint: Endpoint,
    store: Arc<Store>,
    origin: fetch::Origin,
    notary: Arc<Notary>,
    goldens: Option<Arc<crate::golden::Goldens>>,
    metrics: Metrics,
    coordinator: HostId,
    hello: watch::Sender<Hello>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    epoch: Instant,
    /// Names this life of the program to peers.
    life: u64,
    swarm: Swarm,
    cache: Arc<Cache>,
    members: Members,
    contents: Contents,
    images: BTreeMap<Digest, Image>,
    reconciler: Reconciler,
    mirror: Mirrored,
    waiting: BTreeMap<Ticket, Waiting>,
    next_ticket: u64,
    transfers: BTreeMap<(HostKey, ContentId, ChunkIndex), Transfer>,
    next_transfer: u64,
    fetches: BTreeMap<ContentId, Fetch>,
    session: Option<mpsc::Sender<Report>>,
    leases: BTreeMap<ContentId, Lease>,
    /// Ends of leases that aren't reported yet.
    ended_leases: Vec<proto::message::LeaseState>,
    /// Leases of contents whose stage is being made ready. Their tickets are with the notary.
    early_leases: Vec<(Digest, Option<Digest>)>,
    /// Images that this version can't stage, with their references and why.
    declined: BTreeMap<Digest, (Vec<String>, String)>,
    blames: Vec<Blame>,
    /// Contents of which we take back what we made, and from which chunk on; not reported yet.
    retractions: BTreeMap<Digest, ChunkIndex>,
    /// A change came of a roster that isn't here; not reported yet.
    roster_wanted: bool,
    /// Contents that this host was last reported to find no source of; `None` where that is to be said anew.
    without_source: Option<Vec<Digest>>,
    /// Chunks of each content that this host last reported to hold; `None` where that is to be said anew.
    held_said: Option<BTreeMap<ContentId, u32>>,
    /// What the last report had no room for.
    left_out: LeftOut,
    report_due: bool,
    last_report: Instant,
    flushing: bool,
    last_flush: Instant,
    checking: bool,
    last_check: Instant,
    /// As it was measured last: a volume that hangs must not hold up the driver.
    volume: Volume,
    measuring: bool,
    last_measure: Instant,
    scrubbing: bool,
    /// Chunks that are looked at because peers blame this host for them.
    looking: BTreeSet<(Digest, ChunkIndex)>,
    /// The host is busy with its guests.
    stepped_back: bool,
    /// Where the scrub goes on.
    scrub_at: (ContentId, ChunkIndex),
    jobs: Jobs,
    peer_inbox: mpsc::Sender<(HostKey, Brought)>,
    fetch_inbox: mpsc::Sender<(ContentId, fetch::News)>,
}

/// Runs the agent until `stop` is cancelled or something essential ends.
pub(crate) async fn run(parts: Parts) -> anyhow::Result<()> {
    let (peer_inbox, mut brought) = mpsc::channel(QUEUE);
    let (fetch_inbox, mut fetched) = mpsc::channel(QUEUE);
    let (mut heard, stop) = (parts.heard, parts.stop);
    let mirror = Mirrored::new(parts.mirror.as_ref());
    let mut wishes = parts.mirror.map(|ears| ears.wishes);
    let now = Instant::now();
    let store = parts.store.clone();
    let volume = tokio::task::spawn_blocking(move || store.volume()).await?;
    let swarm_config = swarm::Config::default();
    let (seed, life) = (random()?, random()?);
    let mut driver = Driver {
        swarm: Swarm::new(parts.me.key(), swarm_config, seed),
        config: parts.config,
        me: parts.me,
        endpoint: parts.endpoint.clone(),
        store: parts.store,
        origin: parts.origin,
        notary: parts.notary,
        goldens: parts.tart,
        metrics: parts.metrics,
        coordinator: parts.coordinator,
        hello: parts.hello,
        snapshot: parts.snapshot,
        epoch: now,
        // 0 says nothing
        life: life.max(1),
        cache: Arc::default(),
        members: Members::default(),
        contents: Contents::default(),
        images: BTreeMap::new(),
        reconciler: Reconciler::default(),
        mirror,
        waiting: BTreeMap::new(),
        next_ticket: 0,
        transfers: BTreeMap::new(),
        next_transfer: 0,
        fetches: BTreeMap::new(),
        session: None,
        leases: BTreeMap::new(),
        ended_leases: Vec::new(),
        early_leases: Vec::new(),
        declined: BTreeMap::new(),
        blames: Vec::new(),
        retractions: BTreeMap::new(),
        roster_wanted: false,
        without_source: None,
        held_said: None,
        left_out: LeftOut::default(),
        report_due: false,
        last_report: now,
        flushing: false,
        last_flush: now,
        checking: false,
        last_check: now,
        volume,
        measuring: false,
        last_measure: now,
        scrubbing: false,
        looking: BTreeSet::new(),
        stepped_back: false,
        scrub_at: (ContentId(0), ChunkIndex(0)),
        jobs: Jobs::new(),
        peer_inbox,
        fetch_inbox,
    };
    driver.start();
    let endpoint = parts.endpoint;
    let mut accepting = JoinSet::new();
    loop {
        driver.turn();
        let wake = driver.next_wake();
        let input = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(heard) = heard.recv() => Input::Heard(heard),
            Some(ended) = driver.jobs.join_next() => match ended {
                Ok(input) => input,
                Err(error) if error.is_cancelled() => Input::Nothing,
                Err(error) => anyhow::bail!("a job of the agent died: {error}"),
            },
            Some((id, news)) = fetched.recv() => Input::Fetch { id, news },
            Some(wish) = next_wish(&mut wishes) => Input::Wished(wish),
            Some((peer, brought)) = brought.recv() => Input::Brought { peer, brought },
            incoming = endpoint.accept(), if accepting.len() < 64 => match incoming {
                Some(incoming) => {
                    accepting.spawn(async move { incoming.establish().await.map_err(|error| error.to_string()) });
                    Input::Nothing
                }
                None => anyhow::bail!("the QUIC endpoint closed"),
            },
            Some(accepted) = accepting.join_next() => match accepted {
                Ok(Ok(connection)) => Input::Connected { peer: connection.host().key(), result: Ok(connection) },
                Ok(Err(error)) => {
                    debug!(error, "refused a connection");
                    Input::Nothing
                }
                Err(error) => anyhow::bail!("a job of the agent died: {error}"),
            },
            () = sleep_until(wake.into()) => Input::Tick,
        };
        driver.apply(input);
    }
    driver.stop().await
}

/// A number that nobody can guess, from the system.
fn random() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The mirror's next wish; never, without a mirror.
async fn next_wish(wishes: &mut Option<mpsc::Receiver<Wish>>) -> Option<Wish> {
    match wishes {
        Some(wishes) => wishes.recv().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn next_wake(&self) -> Instant {
        let swarm = self
            .swarm
            .next_timeout()
            .map(|at| self.epoch + at.since(Moment::START));
        let mut wake = self.last_check + PRESENCE_EVERY;
        if !self.measuring && self.stages() {
            wake = wake.min(self.last_measure + MEASURE_EVERY);
        }
        if self.report_due {
            wake = wake.min(self.last_report + REPORT_EVERY);
        }
        if self.contents.is_dirty() && !self.flushing {
            wake = wake.min(self.last_flush + FLUSH_EVERY);
        }
        if let Some(look) = self.mirror.next_look() {
            wake = wake.min(look);
        }
        if let Some(due) = self.reconciler.due() {
            wake = wake.min(self.epoch + due.since(Moment::START));
        }
        swarm.map_or(wake, |at| wake.min(at))
    }

    fn tell(&mut self, event: Event) {
        let now = self.now();
        self.swarm.handle(now, event);
    }

    /// Carries out what the swarm wants, and what is due.
    fn turn(&mut self) {
        while let Some(action) = self.swarm.poll() {
            self.act(action);
        }
        self.reconcile();
        self.members.flush_updates();
        let now = Instant::now();
        if self.contents.is_dirty() && !self.flushing && now >= self.last_flush + FLUSH_EVERY {
            self.flush();
        }
        if self.mirror.next_look().is_some_and(|look| now >= look) {
            self.look_at_wants();
        }
        if !self.checking && now >= self.last_check + PRESENCE_EVERY {
            self.check_presence();
        }
        if !self.measuring && self.stages() && now >= self.last_measure + MEASURE_EVERY {
            self.measure();
        }
        if self.report_due && now >= self.last_report + REPORT_EVERY {
            self.report(false);
        }
    }

    fn apply(&mut self, input: Input) {
        // what a job found on the disk goes before what it ended in
        self.hear_store();
        match input {
            Input::Connected { peer, result } => self.connected(peer, result),
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            } => self.connection_ended(peer, serial, &reason),
            Input::Brought { peer, brought } => self.brought(peer, brought),
            Input::Heard(heard) => self.heard(heard),
            Input::Received {
                peer,
                id,
                chunk,
                number,
                receipt,
            } => self.received(peer, id, chunk, number, receipt),
            Input::Sent {
                peer,
                id,
                chunk,
                ticket,
                shipment,
            } => {
                self.metrics.sent_bytes.inc_by(shipment.wire_bytes);
                self.count_upload(id, shipment.wire_bytes);
                if shipment.delivery == Delivery::Bad
                    && let Some(content) = self.contents.find(id)
                {
                    let digest = content.digest;
                    self.look_at(&digest, chunk);
                }
                let Shipment {
                    delivery,
                    wire_bytes,
                } = shipment;
                self.tell(Event::Sent {
                    peer,
                    id,
                    chunk,
                    ticket,
                    delivery,
                    wire_bytes,
                });
            }
            Input::Fetch { id, news } => self.fetch_news(id, news),
            Input::Retracted { id, from, result } => self.retracted(id, from, result),
            Input::Dropped { id, result } => self.dropped(id, result),
            Input::FetchEnded { id, end } => self.fetch_ended(id, end),
            Input::Begun { image, result } => self.begun(image, result),
            Input::Walked { id, walked } => self.walked(id, walked),
            Input::Recorded { image, result } => self.recorded(image, result),
            Input::Installed {
                image,
                stage,
                placed,
                result,
            } => self.installed(image, stage, placed, result),
            Input::ReadAgain {
                image,
                stage,
                result,
            } => self.was_read(image, &stage, result),
            Input::Golden {
                image,
                stage,
                result,
                installed,
            } => self.golden_made(image, &stage, result, installed),
            Input::Abandoned(image) => self.reconciler.abandoned(image),
            Input::Presence { seen, load_percent } => {
                self.weigh_load(load_percent);
                self.presence_checked(&seen);
            }
            Input::Measured(volume) => self.measured(volume),
            Input::Scrubbed => self.scrubbing = false,
            Input::Looked {
                content,
                chunk,
                rotten,
            } => self.looked(content, chunk, rotten),
            Input::Flushed { images, blobs } => {
                self.flushing = false;
                if let Err(error) = images {
                    self.storage_failed(&error);
                }
                if let Err(error) = blobs {
                    self.mirror_storage_failed(&error);
                }
            }
            Input::Wished(wish) => self.wish(wish),
            Input::Seeds(seeds) => self.seeds(seeds),
            Input::Copied(digest) => self.copied(&digest),
            Input::BlobsScrubbed { next, bad } => self.blobs_scrubbed(next, bad),
            Input::Nothing => {}
            Input::Tick => self.tell(Event::Tick),
        }
    }

    fn start(&mut self) {
        let event = Event::Bandwidth {
            upload_bytes_per_second: self.config.upload_bytes_per_second,
            download_bytes_per_second: self.config.download_bytes_per_second,
        };
        self.tell(event);
        self.tell(Event::Coordinator(false));
        self.recover();
        self.first_look();
        self.recover_blobs();
        self.report(true);
    }

    /// Stops taking work, seals the journals, leaves.
    async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping");
        self.endpoint.close("agent stops");
        for fetch in self.fetches.values() {
            fetch.abort.abort();
        }
        self.jobs.abort_all();
        self.store.stop();
        let (store, blobs) = (self.store.clone(), self.mirror.blobs().cloned());
        tokio::task::spawn_blocking(move || {
            let images = store.flush();
            blobs.map_or(Ok(()), |blobs| blobs.flush()).and(images)
        })
        .await??;
        Ok(())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial(peer) => self.dial(peer),
            Action::HangUp(peer) => self.members.hang_up(peer),
            Action::Request { peer, id, chunk } => self.request(peer, id, chunk),
            Action::Cancel { peer, id, chunk } => {
                if let Some(transfer) = self.transfers.get(&(peer, id, chunk)) {
                    transfer.token.cancel();
                }
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => self.push(peer, id, chunk, spread),
            Action::Accept(ticket) => self.accept(ticket),
            Action::Decline(ticket, why) => {
                if let Some(Waiting::Push {
                    sender, receiver, ..
                }) = self.waiting.remove(&ticket)
                {
                    self.spawn(async move {
                        transfer::decline_push(sender, receiver, why).await;
                        Input::Nothing
                    });
                }
            }
            Action::Serve(ticket) => self.serve(ticket),
            Action::Refuse(ticket, why) => {
                if let Some(Waiting::Request { sender, .. }) = self.waiting.remove(&ticket) {
                    self.spawn(async move {
                        transfer::refuse(sender, why).await;
                        Input::Nothing
                    });
                }
            }
            Action::Announce {
                peer,
                id,
                chunks,
                reset,
            } => {
                if let Some(content) = self.contents.find(id) {
                    self.members.announce(peer, content.digest, chunks, reset);
                }
            }
            Action::AnnounceLoad {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => {
                self.members
                    .announce_load(peer, backlog_bytes, upload_bytes_per_second);
            }
            Action::Fetch { id, until } => self.fetch(id, until),
            Action::StopFetch(id) => {
                if let Some(fetch) = self.fetches.remove(&id) {
                    fetch.abort.abort();
                    self.retract_doubted(id);
                }
            }
            Action::ReleaseLease(id) => self.release_lease(id),
            Action::Report { peer, strikes } => {
                if let Some(host) = self.members.host(peer) {
                    warn!(peer = %host, strikes, "peer is quarantined");
                    self.blame(
                        &host,
                        None,
                        ChunkIndex(0),
                        proto::message::BlameKind::Silence,
                    );
                }
            }
        }
    }

    fn spawn(&mut self, job: impl Future<Output = Input> + Send + 'static) -> AbortHandle {
        self.jobs.spawn(job)
    }

    fn spawn_blocking(&mut self, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_blocking(job);
    }

    /// For what may take minutes.
    fn spawn_long(&mut self, what: Long, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_long(what, job);
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    // ---- connections ----------------------------------------------------------------------------------------------

    fn dial(&mut self, peer: HostKey) {
        let Some((host, address)) = self.members.address(peer) else {
            self.tell(Event::Disconnected(peer));
            return;
        };
        let endpoint = self.endpoint.clone();
        self.spawn(async move {
            let result = endpoint
                .connect(address, &host)
                .await
                .map_err(|error| error.to_string());
            Input::Connected { peer, result }
        });
    }

    fn connected(&mut self, peer: HostKey, result: Result<Connection, String>) {
        let connection = match result {
            Ok(connection) => connection,
            Err(error) => {
                debug!(%peer, error, "dialling failed");
                if !self.members.is_connected(peer) {
                    self.tell(Event::Disconnected(peer));
                }
                return;
            }
        };
        let Some((serial, updates)) = self.members.connected(peer, connection.clone()) else {
            connection.close(link::CloseCode::Unauthorised, "not on this host's roster");
            return;
        };
        let (inbox, heard) = (self.peer_inbox.clone(), connection.clone());
        self.spawn(async move {
            let reason = peer::listen(heard, serial, inbox).await;
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            }
        });
        if let Some(updates) = updates {
            self.tell_peer(members::Takeover {
                connection,
                updates,
            });
            self.tell(Event::Connected(peer));
        }
    }

    fn tell_peer(&mut self, to: members::Takeover) {
        let life = self.life;
        self.spawn(async move {
            peer::tell(to.connection, life, to.updates).await;
            Input::Nothing
        });
    }

    /// What went over another connection to this peer is lost, and its announcements start anew on this one.
    fn take_over(&mut self, peer: HostKey, to: members::Takeover) {
        for ((of, ..), transfer) in &self.transfers {
            if *of == peer {
                transfer.token.cancel();
            }
        }
        self.tell_peer(to);
        self.tell(Event::Disconnected(peer));
        self.tell(Event::Connected(peer));
    }

    fn connection_ended(&mut self, peer: HostKey, serial: u64, reason: &str) {
        debug!(%peer, reason, "connection ended");
        match self.members.ended(peer, serial) {
            members::Ended::Last => self.tell(Event::Disconnected(peer)),
            members::Ended::Other(takeover) => self.take_over(peer, takeover),
            members::Ended::Unused => {}
        }
    }

    fn brought(&mut self, peer: HostKey, brought: Brought) {
        match brought {
            Brought::Request { request, sender } => {
                let Some((id, chunk)) = self.contents.locate(&request.content, request.index)
                else {
                    self.spawn(async move {
                        transfer::refuse(sender, swarm::action::Declined::Missing).await;
                        Input::Nothing
                    });
                    return;
                };
                let ticket = self.ticket();
                self.waiting.insert(
                    ticket,
                    Waiting::Request {
                        peer,
                        id,
                        chunk,
                        sender,
                    },
                );
                self.tell(Event::Requested {
                    ticket,
                    peer,
                    id,
                    chunk,
                });
            }
            Brought::Push {
                push,
                sender,
                receiver,
            } => {
                let (Some((id, chunk)), Some(header)) =
                    (self.contents.locate(&push.content, push.index), push.header)
                else {
                    self.spawn(async move {
                        transfer::decline_push(sender, receiver, swarm::action::Declined::Unwanted)
                            .await;
                        Input::Nothing
                    });
                    return;
                };
                let spread = push.spread.map(|spread| {
                    if spread.everyone {
                        Spread::Everyone
                    } else {
                        Spread::To(spread.targets.into_iter().map(HostKey).collect())
                    }
                });
                let ticket = self.ticket();
                self.waiting.insert(
                    ticket,
                    Waiting::Push {
                        peer,
                        id,
                        chunk,
                        header: Box::new(header),
                        sender,
                        receiver,
                    },
                );
                self.tell(Event::Offered {
                    ticket,
                    peer,
                    id,
                    chunk,
                    spread,
                });
            }
            Brought::Introduced { serial, life } => {
                if let Some(takeover) = self.members.introduced(peer, serial, life) {
                    debug!(%peer, "peer was restarted");
                    self.take_over(peer, takeover);
                }
            }
            Brought::Update(update) => {
                for have in update.have {
                    let Ok(digest) = Digest::try_from(have.content.as_slice()) else {
                        self.nonsense(peer, "announcement of something that isn't a digest");
                        return;
                    };
                    match self.contents.announced(&digest, &have.runs) {
                        Ok(Some((id, chunks))) => {
                            self.tell(Event::Announced {
                                peer,
                                id,
                                chunks,
                                reset: have.reset,
                            });
                        }
                        // a content that we don't know (yet): remembered, the peer won't say it again
                        Ok(None) => {
                            let kept = self.members.remember(peer, digest, &have.runs, have.reset);
                            if let Err(error) = kept {
                                self.nonsense(peer, &error.to_string());
                                return;
                            }
                        }
                        // it was told another size than we were: a size is what some manifest says
                        Err(proto::chunks::ParseRunsError::PastEnd) => {}
                        Err(error @ proto::chunks::ParseRunsError::Odd) => {
                            self.nonsense(peer, &error.to_string());
                            return;
                        }
                    }
                }
                if let Some(load) = update.load {
                    self.tell(Event::Load {
                        peer,
                        backlog_bytes: load.backlog_bytes,
                        upload_bytes_per_second: load.upload_bytes_per_second,
                    });
                }
            }
            Brought::Nonsense(error) => self.nonsense(peer, &error),
        }
    }

    fn nonsense(&mut self, peer: HostKey, error: &str) {
        warn!(%peer, error, "peer broke the protocol");
        if let Some(host) = self.members.host(peer) {
            self.blame(
                &host,
                None,
                ChunkIndex(0),
                proto::message::BlameKind::Protocol,
            );
        }
        self.tell(Event::Blamed(peer));
    }

    // ---- transfers ------------------------------------------------------------------------------------------------

    fn request(&mut self, peer: HostKey, id: ContentId, chunk: ChunkIndex) {
        let subject = self.subject(id, chunk);
        let (Some(connection), Some(subject)) = (self.members.connection(peer), subject) else {
            self.tell(Event::NotArrived {
                peer,
                id,
                chunk,
                failure: swarm::event::Failure::Broken,
            });
            return;
        };
        let transfer = transfer::request(connection, subject);
        self.receive(peer, id, chunk, transfer);
    }

    fn accept(&mut self, ticket: Ticket) {
        let Some(Waiting::Push {
            peer,
            id,
            chunk,
            header,
            sender,
            receiver,
        }) = self.waiting.remove(&ticket)
        else {
            return;
        };
        let Some(subject) = self.subject(id, chunk) else {
            self.tell(Event::NotArrived {
                peer,
                id,
                chunk,
                failure: swarm::event::Failure::Broken,
            });
            return;
        };
        let transfer = transfer::accept_push(peer, *header, sender, receiver, subject);
        self.receive(peer, id, chunk, transfer);
    }

    fn receive(
        &mut self,
        peer: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        transfer: impl Future<Output = Receipt> + Send + 'static,
    ) {
        let token = CancellationToken::new();
        self.next_transfer += 1;
        let number = self.next_transfer;
        let entry = Transfer {
            number,
            token: token.clone(),
        };
        self.transfers.insert((peer, id, chunk), entry);
        self.spawn(async move {
            let receipt = tokio::select! {
                receipt = transfer => receipt,
                () = token.cancelled() => Receipt::cancelled(),
            };
            Input::Received {
                peer,
                id,
                chunk,
                number,
                receipt,
            }
        });
    }

    fn push(&mut self, peer: HostKey, id: ContentId, chunk: ChunkIndex, spread: Option<Spread>) {
        let subject = self.subject(id, chunk);
        let (Some(connection), Some(subject)) = (self.members.connection(peer), subject) else {
            let delivery = Delivery::Broken;
            self.tell(Event::Sent {
                peer,
                id,
                chunk,
                ticket: None,
                delivery,
                wire_bytes: 0,
            });
            return;
        };
        self.spawn(async move {
            let shipment = transfer::push(connection, subject, spread).await;
            Input::Sent {
                peer,
                id,
                chunk,
                ticket: None,
                shipment,
            }
        });
    }

    fn serve(&mut self, ticket: Ticket) {
        let Some(Waiting::Request {
            peer,
            id,
            chunk,
            sender,
        }) = self.waiting.remove(&ticket)
        else {
            return;
        };
        let Some(subject) = self.subject(id, chunk) else {
            let delivery = Delivery::Broken;
            self.tell(Event::Sent {
                peer,
                id,
                chunk,
                ticket: Some(ticket),
                delivery,
                wire_bytes: 0,
            });
            return;
        };
        self.spawn(async move {
            let shipment = transfer::serve(sender, subject).await;
            Input::Sent {
                peer,
                id,
                chunk,
                ticket: Some(ticket),
                shipment,
            }
        });
    }

    fn address(&self) -> Option<SocketAddr> {
        self.config.advertise
    }
}
