//! The agent's one owner of state: it builds an [`Input`] out of whatever happens next, changes state in a synchronous
//! [`Driver::apply`], and turns the swarm's actions into jobs.
//!
//! What to ask of whom is the swarm's business; whether a chunk is true is the chain's; where it lies is the store's.
//! Here is only who gets told what. Jobs end in an [`Input`] too; one that panics ends the program.

mod contents;
mod fetches;
mod fit;
mod hosts;
mod image;
mod input;
mod jobs;
mod leases;
mod look;
mod mirror;
mod naming;
mod orders;
mod report;
mod streams;
mod transfers;
mod trouble;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use link::Endpoint;
use proto::{
    ChunkIndex, Digest, HostId, HostKey, Moment, Reason,
    image::Layout,
    message::{Blame, BlameKind, Hello, LeaseEnd, Report},
};
use swarm::{
    Action, Event, Swarm,
    action::Declined,
    event::{ContentId, Delivery, Spread, Ticket},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    contents::{Content, Contents},
    fetches::{Fetches, Told},
    fit::LeftOut,
    hosts::Hosts,
    image::Image,
    jobs::{Jobs, Long},
    leases::{End, Leases},
    mirror::Mirrored,
    streams::{Offer, PeerTransfers},
    transfers::Transfer,
    walk::Walked,
};
pub(crate) use self::{input::Input, jobs::BLOCKING_THREADS};
use crate::{
    admin::Snapshot,
    config::Config,
    fetch::{self, FetchEnd, News},
    metrics::{From, Metrics, SourceLabel},
    mirror::{Ears, Wish},
    notary::Notary,
    peer::Brought,
    reconcile::Reconciler,
    registries::Origin,
    session::Heard,
    shelf::{Shelf, retract},
    store::{Look, Store, Volume},
    transfer::{Cache, Receipt, Shipment, Subject},
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

/// Chunks that are read again at a time, every 5 s: 140 GB in a day, at a load that nobody notices.
const SCRUB_CHUNKS: u32 = 8;

/// Chunks that are looked at one moment because peers blame this host for them. A disk reads thousands in a second.
const MAX_LOOKS: usize = 64;

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
    pub(crate) origin: Origin,
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
    origin: Origin,
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
    hosts: Hosts,
    contents: Contents,
    images: BTreeMap<Digest, Image>,
    reconciler: Reconciler,
    mirror: Mirrored,
    transfers: PeerTransfers,
    fetches: Fetches,
    session: Option<mpsc::Sender<Report>>,
    leases: Leases,
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
    fetch_inbox: mpsc::Sender<(ContentId, News)>,
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
    let cache: Arc<Cache> = Arc::default();
    let mut driver = Driver {
        swarm: Swarm::new(parts.me.key(), swarm_config, seed),
        config: parts.config,
        me: parts.me.clone(),
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
        cache: cache.clone(),
        hosts: Hosts::default(),
        contents: Contents::new(parts.me.key(), cache),
        images: BTreeMap::new(),
        reconciler: Reconciler::default(),
        mirror,
        transfers: PeerTransfers::default(),
        fetches: Fetches::default(),
        session: None,
        leases: Leases::default(),
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
        self.hosts.flush_updates();
        let leases = i64::try_from(self.leases.count()).unwrap_or(i64::MAX);
        self.metrics.leases.set(leases);
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
            Input::Connected { peer, result } => match result {
                Ok(connection) => {
                    let effects = self.hosts.connected(peer, connection);
                    self.follow_hosts(effects);
                }
                Err(error) => {
                    let effect = self.hosts.not_connected(peer, &error);
                    self.follow_hosts(effect);
                }
            },
            Input::ConnectionEnded {
                peer,
                serial,
                reason,
            } => {
                let effects = self.hosts.ended(peer, serial, &reason);
                self.follow_hosts(effects);
            }
            Input::Brought { peer, brought } => self.brought(peer, brought),
            Input::Heard(heard) => self.heard(heard),
            Input::Received {
                transfer,
                number,
                receipt,
            } => self.received(transfer, number, receipt),
            Input::Sent {
                transfer,
                ticket,
                shipment,
            } => self.sent(transfer, ticket, shipment),
            Input::Fetch { id, news } => self.fetch_news(id, news),
            Input::Retracted { id, from, result } => {
                let effects = self.contents.retracted(Instant::now(), id, from, result);
                self.follow_contents(effects);
            }
            Input::Dropped { id, result } => {
                let effects = self.contents.dropped(id, result);
                self.follow_contents(effects);
            }
            Input::FetchEnded { id, number, end } => self.fetch_ended(id, number, end),
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
        self.fetches.stop_all();
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
            Action::Dial(peer) => {
                let effect = self.hosts.dial(peer);
                self.follow_hosts([effect]);
            }
            Action::HangUp(peer) => {
                let effects = self.hosts.hang_up(peer);
                self.follow_hosts(effects);
            }
            Action::Request { peer, id, chunk } => self.request(Transfer { peer, id, chunk }),
            Action::Cancel { peer, id, chunk } => {
                self.transfers.cancel(&Transfer { peer, id, chunk });
            }
            Action::Push {
                peer,
                id,
                chunk,
                spread,
            } => self.push(Transfer { peer, id, chunk }, spread),
            Action::Accept(ticket) => self.accept(ticket),
            Action::Decline(ticket, why) => {
                if let Some((_, offer)) = self.transfers.take_offer(ticket) {
                    self.spawn(streams::decline(offer.sender, offer.receiver, why));
                }
            }
            Action::Serve(ticket) => self.serve(ticket),
            Action::Refuse(ticket, why) => {
                if let Some((_, sender)) = self.transfers.take_request(ticket) {
                    self.spawn(streams::refuse(sender, why));
                }
            }
            Action::Announce {
                peer,
                id,
                chunks,
                reset,
            } => {
                if let Some(content) = self.contents.find(id) {
                    let content = content.digest();
                    self.hosts.announce(peer, content, chunks, reset);
                }
            }
            Action::AnnounceLoad {
                peer,
                backlog_bytes,
                upload_bytes_per_second,
            } => {
                self.hosts
                    .announce_load(peer, backlog_bytes, upload_bytes_per_second);
            }
            Action::Fetch { id, until } => self.fetch(id, until),
            Action::StopFetch(id) => {
                if self.fetches.stop(id) {
                    self.retract_doubted(id);
                }
            }
            Action::ReleaseLease(id) => self.release_lease(id),
            Action::Report { peer, strikes } => {
                if let Some(host) = self.hosts.id(peer).cloned() {
                    warn!(peer = %host, strikes, "peer is quarantined");
                    self.blame(&host, None, ChunkIndex(0), BlameKind::Silence);
                }
            }
        }
    }

    fn spawn(&mut self, job: impl Future<Output = Input> + Send + 'static) {
        self.jobs.spawn(job);
    }

    fn spawn_blocking(&mut self, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_blocking(job);
    }

    /// For what may take minutes.
    fn spawn_long(&mut self, what: Long, job: impl FnOnce() -> Input + Send + 'static) {
        self.jobs.spawn_long(what, job);
    }

    // ---- hosts ----------------------------------------------------------------------------------------------------

    fn follow_hosts(&mut self, effects: impl IntoIterator<Item = hosts::Effect>) {
        for effect in effects {
            match effect {
                hosts::Effect::Tell(event) => self.tell(event),
                hosts::Effect::Dial {
                    peer,
                    host,
                    address,
                } => {
                    self.spawn(streams::dial(self.endpoint.clone(), peer, host, address));
                }
                hosts::Effect::Listen {
                    peer,
                    serial,
                    connection,
                } => {
                    let inbox = self.peer_inbox.clone();
                    self.spawn(streams::listen(peer, serial, connection, inbox));
                }
                hosts::Effect::Announce {
                    connection,
                    updates,
                } => self.spawn(streams::announce(connection, self.life, updates)),
                hosts::Effect::Close {
                    connection,
                    code,
                    reason,
                } => connection.close(code, reason),
                hosts::Effect::Cancel(peer) => self.transfers.cancel_peer(peer),
                hosts::Effect::Blame(host) => {
                    self.blame(&host, None, ChunkIndex(0), BlameKind::Protocol);
                }
            }
        }
    }

    fn brought(&mut self, peer: HostKey, brought: Brought) {
        match brought {
            Brought::Request { request, sender } => {
                match self.contents.locate(&request.content, request.index) {
                    Some((id, chunk)) => {
                        let transfer = Transfer { peer, id, chunk };
                        let event = self.transfers.requested(transfer, sender);
                        self.tell(event);
                    }
                    None => self.spawn(streams::refuse(sender, Declined::Missing)),
                }
            }
            Brought::Push {
                push,
                sender,
                receiver,
            } => match (self.contents.locate(&push.content, push.index), push.header) {
                (Some((id, chunk)), Some(header)) => {
                    let transfer = Transfer { peer, id, chunk };
                    let offer = Offer {
                        header: Box::new(header),
                        sender,
                        receiver,
                    };
                    let spread = push.spread.map(streams::spread);
                    let event = self.transfers.offered(transfer, spread, offer);
                    self.tell(event);
                }
                _ => self.spawn(streams::decline(sender, receiver, Declined::Unwanted)),
            },
            Brought::Introduced { serial, life } => {
                let effects = self.hosts.introduced(peer, serial, life);
                self.follow_hosts(effects);
            }
            Brought::Update(update) => {
                let known = |content: &Digest, runs: &[u32]| self.contents.announced(content, runs);
                let effects = self.hosts.updated(peer, update, known);
                self.follow_hosts(effects);
            }
            Brought::Nonsense(error) => {
                let effects = self.hosts.nonsense(peer, &error);
                self.follow_hosts(effects);
            }
        }
    }

    // ---- transfers ------------------------------------------------------------------------------------------------

    fn subject(&self, id: ContentId, chunk: ChunkIndex) -> Option<Subject> {
        let content = self.contents.find(id)?;
        let dropped_lately = content.dropped_lately(Instant::now());
        Some(Subject {
            content: content.digest(),
            geometry: content.geometry(),
            chunk,
            shelves: content.shelves(),
            cache: self.cache.clone(),
            notary: self.notary.clone(),
            retracted: dropped_lately.then(|| self.me.key()),
            suspects: content.suspects(),
        })
    }

    fn request(&mut self, transfer: Transfer) {
        let subject = self.subject(transfer.id, transfer.chunk);
        match (self.hosts.connection(transfer.peer), subject) {
            (Some(connection), Some(subject)) => {
                let receiving = self.transfers.receive(transfer);
                self.spawn(streams::request(transfer, receiving, connection, subject));
            }
            _ => self.tell(transfer.broken()),
        }
    }

    fn accept(&mut self, ticket: Ticket) {
        let Some((transfer, offer)) = self.transfers.take_offer(ticket) else {
            return;
        };
        match self.subject(transfer.id, transfer.chunk) {
            Some(subject) => {
                let receiving = self.transfers.receive(transfer);
                self.spawn(streams::accept(transfer, receiving, offer, subject));
            }
            None => self.tell(transfer.broken()),
        }
    }

    fn push(&mut self, transfer: Transfer, spread: Option<Spread>) {
        let subject = self.subject(transfer.id, transfer.chunk);
        match (self.hosts.connection(transfer.peer), subject) {
            (Some(connection), Some(subject)) => {
                self.spawn(streams::push(transfer, connection, subject, spread));
            }
            _ => self.tell(transfer.not_sent(None)),
        }
    }

    fn serve(&mut self, ticket: Ticket) {
        let Some((transfer, sender)) = self.transfers.take_request(ticket) else {
            return;
        };
        match self.subject(transfer.id, transfer.chunk) {
            Some(subject) => self.spawn(streams::serve(transfer, ticket, sender, subject)),
            None => self.tell(transfer.not_sent(Some(ticket))),
        }
    }

    fn sent(&mut self, transfer: Transfer, ticket: Option<Ticket>, shipment: Shipment) {
        let Shipment {
            delivery,
            wire_bytes,
        } = shipment;
        let Transfer { peer, id, chunk } = transfer;
        self.metrics.sent_bytes.inc_by(wire_bytes);
        self.count_upload(id, wire_bytes);
        if delivery == Delivery::Bad
            && let Some(content) = self.contents.find(id)
        {
            let digest = content.digest();
            self.look_at(&digest, chunk);
        }
        self.tell(Event::Sent {
            peer,
            id,
            chunk,
            ticket,
            delivery,
            wire_bytes,
        });
    }

    fn received(&mut self, transfer: Transfer, number: u64, mut receipt: Receipt) {
        if !self.transfers.received(&transfer, number) && receipt.is_lost() {
            // it went over a connection that is gone, and is asked for again over the next
            return;
        }
        self.count_source(From::Peers, receipt.wire_bytes);
        self.count_received(transfer.id, receipt.wire_bytes);
        for (image, error) in std::mem::take(&mut receipt.unwritable) {
            self.image_unwritable(image, error);
        }
        let effects = match receipt.result {
            Ok(()) => self.contents.arrived(transfer, receipt.wire_bytes),
            Err(failure) => self.contents.not_arrived(transfer, failure, receipt),
        };
        self.follow_contents(effects);
    }

    fn count_source(&self, source: From, bytes: u64) {
        let received = &self.metrics.received_bytes;
        received
            .get_or_create(&SourceLabel { source })
            .inc_by(bytes);
    }

    // ---- contents -------------------------------------------------------------------------------------------------

    fn follow_contents(&mut self, effects: impl IntoIterator<Item = contents::Effect>) {
        for effect in effects {
            match effect {
                contents::Effect::Tell(event) => self.tell(event),
                contents::Effect::Recall {
                    id,
                    content,
                    chunks,
                } => {
                    let effects = self.hosts.recall(id, &content, chunks);
                    self.follow_hosts(effects);
                }
                contents::Effect::Walk {
                    id,
                    content,
                    chunks,
                    shelves,
                } => self.spawn_blocking(move || Input::Walked {
                    id,
                    walked: walk::walk(&shelves, content, chunks),
                }),
                contents::Effect::Retract {
                    id,
                    content,
                    shelves,
                } => {
                    let (me, from) = (self.me.key(), ChunkIndex(0));
                    self.spawn_blocking(move || Input::Retracted {
                        id,
                        from,
                        result: retract(&shelves, content, me, from),
                    });
                }
                contents::Effect::Drop {
                    from,
                    content,
                    shelves,
                } => {
                    // what its maker is sending was made before that
                    self.transfers.cancel_from(from);
                    self.spawn_blocking(move || Input::Dropped {
                        id: from.id,
                        result: retract(&shelves, content, from.peer, from.chunk),
                    });
                }
                contents::Effect::Gained { images, bytes } => {
                    self.with_images(&images, |image| image.held_bytes += bytes);
                }
                contents::Effect::Lost { images, bytes } => {
                    self.with_images(&images, |image| {
                        image.held_bytes = image.held_bytes.saturating_sub(bytes);
                    });
                }
                contents::Effect::CameFromOrigin { images, bytes } => {
                    self.with_images(&images, |image| {
                        image.origin_bytes += bytes;
                        image.clear_trouble();
                    });
                }
                contents::Effect::ClearOriginTrouble(images) => self.clear_origin_trouble(&images),
                contents::Effect::Closed { image, content } => self.content_closed(image, content),
                contents::Effect::Opened { image, content } => self.content_opened(image, content),
                contents::Effect::NotStored { mirrored, error } => match mirrored {
                    true => self.mirror_storage_failed(&error),
                    false => self.storage_failed(&error),
                },
                contents::Effect::CountFalse { source, chunks } => {
                    let failures = &self.metrics.verify_failures;
                    failures
                        .get_or_create(&SourceLabel { source })
                        .inc_by(u64::try_from(chunks).unwrap_or(u64::MAX));
                }
                contents::Effect::Convict(links) => self.show(&links),
                contents::Effect::BlameBytes(Transfer { peer, id, chunk }) => {
                    if let Some(host) = self.hosts.id(peer).cloned() {
                        warn!(peer = %host, chunk = chunk.0, "peer sent a chunk that doesn't fit its link");
                        self.blame(&host, Some(id), chunk, BlameKind::Bytes);
                    }
                }
                contents::Effect::TakeBack { content, from } => {
                    let first = self.retractions.entry(content).or_insert(from);
                    *first = from.min(*first);
                }
                contents::Effect::Report => self.report_due = true,
            }
        }
    }

    fn with_images(&mut self, images: &[Digest], change: impl Fn(&mut Image)) {
        for image in images {
            if let Some(image) = self.images.get_mut(image) {
                change(image);
            }
        }
    }

    /// The registry is nobody's trouble here any more: what was said about it on these images is over.
    fn clear_origin_trouble(&mut self, images: &[Digest]) {
        self.with_images(images, |image| {
            image.clear_trouble_of(&[
                Reason::OriginTrouble,
                Reason::OriginFailed,
                Reason::OriginSettings,
            ]);
        });
    }

    /// Makes a content known to the swarm.
    fn introduce(&mut self, id: ContentId, order: u32) {
        let images = &self.images;
        let of_image = |image: &Digest| Some(images.get(image)?.entitled.clone());
        let effects = self.contents.introduce(id, order, of_image);
        self.follow_contents(effects);
        if let Some(digest) = self.contents.find(id).map(Content::digest) {
            self.tell_wanted(&digest, false);
        }
    }

    /// Tells the swarm anew of an image's contents: who may have them may have changed.
    fn retell(&mut self, layout: &Layout) {
        for spec in layout.contents() {
            let content = self.contents.by_digest(&spec.digest);
            if let Some((id, order)) = content.map(|content| (content.id(), content.order())) {
                self.introduce(id, order);
            }
        }
    }

    fn walk_if_whole(&mut self, id: ContentId) {
        let effect = self.contents.walk_if_whole(id);
        self.follow_contents(effect);
    }

    fn walked(&mut self, id: ContentId, mut walked: Walked) {
        for (image, error) in std::mem::take(&mut walked.unwritable) {
            self.image_unwritable(image, error);
        }
        let effects = self.contents.walked(id, walked);
        self.follow_contents(effects);
    }

    fn drop_made(&mut self, content: &Digest, maker: HostKey, from: ChunkIndex) {
        let effect = self.contents.drop_made(content, maker, from);
        self.follow_contents(effect);
    }

    fn retract_doubted(&mut self, id: ContentId) {
        let effect = self.contents.retract_doubted(id);
        self.follow_contents(effect);
    }

    // ---- the registry ---------------------------------------------------------------------------------------------

    fn fetch(&mut self, id: ContentId, until: ChunkIndex) {
        if self.fetches.go_on(id, until) {
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        // the image that the lease was granted for: another may name a repository that refuses this content
        let images = content.images();
        let leased = self.leases.image(id).filter(|image| images.contains(image));
        let image = leased
            .iter()
            .chain(&images)
            .find_map(|image| self.images.get(image));
        let by = image.map(|image| image.digest);
        let asked = match image {
            Some(image) => Some((image.reference().to_owned(), image.access.clone())),
            None => self.mirror.access(&content.digest()),
        };
        let Some((reference, access)) = asked else {
            return;
        };
        let reins = self.fetches.begin(id, by, access, until);
        let mut job = fetch::Job {
            id,
            content: content.digest(),
            geometry: content.geometry(),
            kind: content.kind(),
            shelves: content.shelves(),
            reference,
            access: reins.access,
            doubted: false,
            me: self.me.clone(),
            notary: Some(self.notary.clone()),
            cache: self.cache.clone(),
            until: reins.until,
            moved: reins.moved,
            inbox: self.fetch_inbox.clone(),
        };
        let registry = job.reference.split_once('/').map(|(registry, _)| registry);
        for shelf in &job.shelves {
            if let Shelf::Blob(blob) = shelf {
                blob.comes_from(registry);
            }
        }
        if !self.leases.holds(id) && self.mirror.alone_after(&job.content).is_some() {
            info!(content = %job.content, "nothing comes of a blob that a client wants; fetching it without a lease");
        }
        info!(content = %job.content, image = job.reference, "fetching from the registry");
        let (origin, number, token) = (self.origin.clone(), reins.number, reins.token);
        self.spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => Input::Nothing,
                end = fetch::run(&origin, &mut job) => Input::FetchEnded { id, number, end },
            }
        });
    }

    fn fetch_news(&mut self, id: ContentId, news: News) {
        match news {
            News::Chunk {
                chunk,
                origin_bytes,
                conflict,
            } => {
                self.count_source(From::Origin, origin_bytes);
                self.leases.chunk_came(id);
                let effects = self.contents.fetched(id, chunk, origin_bytes, conflict);
                self.follow_contents(effects);
            }
            News::Refused { error } => {
                // told at once: the coordinator fetches another token
                if self.leases.refused(id, error) {
                    self.report(false);
                }
            }
            News::Broke { after_bytes, error } => {
                // no trouble, but worth a word where it is the rule
                debug!(
                    id = id.0,
                    after_bytes, error, "a connection to the registry broke; going on"
                );
                self.leases.broke(id, after_bytes);
            }
            News::Trouble {
                error,
                retry_after,
                wait,
            } => self.fetch_trouble(id, error, retry_after, wait),
            News::Doubted => {
                let effects = self.contents.fetch_doubted(id);
                self.follow_contents(effects);
                // the fetch's end was heard before this
                if !self.fetches.is_running(id) {
                    self.retract_doubted(id);
                }
            }
            News::Retracted { from, chunks } => {
                let now = Instant::now();
                let effects = self.contents.retracted(now, id, from, Ok(chunks));
                self.follow_contents(effects);
            }
            News::Unwritable(images) => {
                for (image, error) in images {
                    self.image_unwritable(image, error);
                }
            }
        }
    }

    fn fetch_trouble(
        &mut self,
        id: ContentId,
        error: String,
        retry_after: Option<Duration>,
        wait: Duration,
    ) {
        // a fetch that was stopped a moment ago has nothing to say any more
        if !self.fetches.is_running(id) {
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        warn!(content = %content.digest(), error, wait_ms, "fetching from the registry has trouble; trying again");
        let message = format!("{error} (next attempt in {wait_ms} ms)");
        let images = content.images();
        self.with_images(&images, |image| {
            image.trouble(Reason::OriginTrouble, message.clone());
        });
        let retry_at = retry_after.map(|pause| Instant::now() + pause);
        self.leases.failed(id, error, retry_at);
        // at once: as long as the coordinator doesn't know, it sends others to a registry that wants to be left alone
        self.report(false);
    }

    fn fetch_ended(&mut self, id: ContentId, number: u64, end: FetchEnd) {
        let asked = self.fetches.image(id);
        if !self.fetches.ended(id, number) {
            // it was stopped, and that was told
            return;
        }
        match &end {
            FetchEnd::Done => self.contents.fetch_done(id),
            FetchEnd::Bad(_) => self.contents.fetch_bad(id),
            FetchEnd::Failed(_) | FetchEnd::Disk(_) | FetchEnd::Unwanted => {}
        }
        self.retract_doubted(id);
        let told = match fetches::told(&end) {
            Ok(told) => told,
            // this host's own trouble: the lease passes on without a word about the registry
            Err(error) => {
                let mut effects = Vec::new();
                self.contents.not_stored(id, error, &mut effects);
                return self.follow_contents(effects);
            }
        };
        let Told {
            swarm,
            lease,
            reason,
        } = told;
        if let (Some(content), Some(reason)) = (self.contents.find(id), reason) {
            error!(content = %content.digest(), reason = reason.as_str(), error = lease.message, "fetching from the registry failed");
            // what one image's repository refuses says nothing of the others
            let images = match asked {
                Some(image) if matches!(end, FetchEnd::Failed(_)) => vec![image],
                _ => content.images(),
            };
            self.with_images(&images, |image| {
                image.trouble(reason, lease.message.clone())
            });
        }
        self.tell(Event::OriginEnded { id, end: swarm });
        self.end_lease(id, lease);
        self.mirror_fetch_ended(id, end);
    }

    // ---- leases ---------------------------------------------------------------------------------------------------

    /// The coordinator leased this host a content, to be fetched under this image's name.
    fn leased(&mut self, digest: Digest, image: Option<Digest>) {
        match self.contents.by_digest(&digest).map(Content::id) {
            Some(id) => {
                self.leases.grant(id, image);
                self.tell(Event::Leased(id));
            }
            // the stage isn't ready yet; the lease runs meanwhile
            None => self.leases.grant_early(digest, image),
        }
    }

    fn lease_lost(&mut self, digest: &Digest) {
        self.notary.forget_lease(digest);
        self.leases.lose_early(digest);
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        let (id, images) = (content.id(), content.images());
        self.leases.lose(id);
        self.clear_origin_trouble(&images);
        self.report_due = true;
        self.tell(Event::LeaseLost(id));
    }

    /// Ends a lease and says so at once.
    fn end_lease(&mut self, id: ContentId, how: End) {
        if !self.leases.holds(id) {
            return;
        }
        if let Some(content) = self.contents.find(id).map(Content::digest) {
            self.close_lease(id, content, how);
        }
        self.report(false);
    }

    /// Ends a lease, which the next report says.
    fn close_lease(&mut self, id: ContentId, content: Digest, how: End) {
        if self.leases.end(id, content, how) {
            self.notary.forget_lease(&content);
        }
    }

    fn release_lease(&mut self, id: ContentId) {
        let content = self.contents.find(id);
        let end = match content.is_some_and(|content| content.held().is_full()) {
            true => LeaseEnd::Done,
            false => LeaseEnd::Released,
        };
        self.end_lease(id, End::plain(end));
    }

    /// A lease that can't be used: nobody would take what was made of it.
    fn give_lease_back(&mut self, content: Digest, error: &str) {
        warn!(%content, error, "a lease is given back");
        self.leases.give_back(content, error);
        self.report_due = true;
    }

    // ---- looks ----------------------------------------------------------------------------------------------------

    /// Reads a few verified chunks again, while nothing is being staged: disks forget. Nothing rests on it: what is served, copied or
    /// installed was compared before.
    fn scrub(&mut self) {
        let (at, chunk) = self.scrub_at;
        let Some(content) = self.contents.closed_from(at) else {
            return;
        };
        let id = content.id();
        let first = if id == at { chunk.0 } else { 0 };
        let end = (first + SCRUB_CHUNKS).min(content.geometry().chunks());
        let whole = end == content.geometry().chunks();
        let next = match whole {
            true => (ContentId(id.0 + 1), ChunkIndex(0)),
            false => (id, ChunkIndex(end)),
        };
        self.scrub_at = next;
        self.scrubbing = true;
        let (digest, shelves) = (content.digest(), content.shelves());
        self.spawn_blocking(move || {
            for chunk in (first..end).map(ChunkIndex) {
                for shelf in &shelves {
                    // what rotted is told by the store; what can't be read now shows by other means
                    if let Err(error) = shelf.look(digest, chunk) {
                        debug!(content = %digest, %chunk, %error, "a chunk can't be read now");
                    }
                }
            }
            for shelf in shelves.iter().filter(|_| whole) {
                if let Err(error) = shelf.mend_decoded(digest) {
                    debug!(content = %digest, %error, "decoded bytes can't be compared now");
                }
            }
            Input::Scrubbed
        });
    }

    /// A peer says that a chunk which it had from us doesn't fit its link: its own memory may be broken, or our disk.
    fn look_at(&mut self, digest: &Digest, chunk: ChunkIndex) {
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        if !content.geometry().contains(chunk)
            || self.looking.len() >= MAX_LOOKS
            || !self.looking.insert((*digest, chunk))
        {
            return;
        }
        let (digest, shelves) = (*digest, content.shelves());
        warn!(content = %digest, %chunk, "looking at a chunk for which a peer blames this host");
        // what was packed before may be what is wrong
        self.cache.forget(digest, chunk);
        self.spawn_blocking(move || {
            let mut rotten = false;
            for shelf in &shelves {
                match shelf.look(digest, chunk) {
                    Ok(look) => rotten |= look == Look::Rotten,
                    Err(error) => {
                        warn!(content = %digest, %chunk, %error, "a chunk for which a peer blames this host can't be read");
                    }
                }
            }
            Input::Looked {
                content: digest,
                chunk,
                rotten,
            }
        });
    }

    fn looked(&mut self, digest: Digest, chunk: ChunkIndex, rotten: bool) {
        self.looking.remove(&(digest, chunk));
        if !rotten {
            info!(content = %digest, %chunk, "a chunk for which a peer blamed this host is what its link says");
        }
        // a rotten blob of the mirror is dropped as a whole
        if rotten
            && self
                .contents
                .by_digest(&digest)
                .is_some_and(|content| content.is_mirrored())
        {
            self.keep_cache();
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        self.config.advertise
    }
}
