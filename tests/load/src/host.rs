//! One host: a session as an agent keeps it. The host reports every image that it is ordered to stage as present at
//! once. It moves no chunk.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::message::{
    CoordinatorOpen, Hello, ImageState, LeaseEnd, LeaseState, Load, MirrorWants, Order, Report,
    StageState, Volume, coordinator_open, order,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use wire::{CloseCode, Connection, Endpoint, Receiver, Sender};

use crate::counters::Counters;

/// The first and the longest pause between attempts to reach the coordinator, as agents use them.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How often an agent checks its images on its disk and reports that.
const PRESENCE_EVERY: Duration = Duration::from_secs(5);

/// How long a session of a flapping host lasts.
const FLAP_AFTER: Duration = Duration::from_millis(4_500);

/// How many silent looks end a session, and the time between two looks, as agents use them.
const LOOKS: (u32, Duration) = (6, Duration::from_millis(500));

#[derive(Clone, Debug)]
struct Image {
    references: Vec<String>,
    order: u64,
}

pub(crate) struct Host {
    endpoint: Endpoint,
    zone: String,
    /// Whether this host flaps while the counters say so.
    unsteady: bool,
    counters: Arc<Counters>,
    images: BTreeMap<Vec<u8>, Image>,
    leases: Vec<Vec<u8>>,
    roster: u64,
    names: u64,
    looked: Instant,
    /// Bytes of the present connection that are counted already.
    counted: u64,
}

impl Host {
    pub(crate) fn new(
        endpoint: Endpoint,
        zone: String,
        unsteady: bool,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            endpoint,
            zone,
            unsteady,
            counters,
            images: BTreeMap::new(),
            leases: Vec::new(),
            roster: 0,
            names: 0,
            looked: Instant::now(),
            counted: 0,
        }
    }

    /// Keeps a session for ever, and reconnects after each end.
    pub(crate) async fn keep(mut self, coordinator: watch::Receiver<SocketAddr>) {
        let mut pause = RETRY.0;
        loop {
            let address = *coordinator.borrow();
            if self.hold(address).await {
                pause = RETRY.0;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Holds one session until it ends. Returns whether there was a session.
    async fn hold(&mut self, coordinator: SocketAddr) -> bool {
        let Ok(name) = "coordinator".parse() else {
            return false;
        };
        let connection = match self.endpoint.connect(coordinator, &name).await {
            Ok(connection) => connection,
            Err(error) => {
                // while no coordinator runs, the connection times out, and nobody refuses anything
                if !matches!(error, wire::ConnectError::TimedOut { .. }) {
                    self.counters.failed(error.to_string());
                }
                return false;
            }
        };
        self.counted = 0;
        let ended = self.talk(&connection).await;
        self.count(&connection);
        if ended.is_err() {
            connection.close(CloseCode::Stopping, "");
        }
        true
    }

    async fn talk(&mut self, connection: &Connection) -> anyhow::Result<()> {
        let (mut sender, mut receiver) = connection.open().await?;
        let hello = self.hello()?;
        sender
            .send(&CoordinatorOpen {
                kind: Some(coordinator_open::Kind::Session(hello)),
            })
            .await?;
        // a session counts as up when the coordinator sends its first order
        self.names = 0;
        self.report(&mut sender, true).await?;
        let first: Option<Order> = receiver.receive().await?;
        self.counters.begin();
        let ended = tokio::select! {
            ended = self.follow(connection, first, &mut sender, &mut receiver) => ended,
            () = connection.silent(LOOKS.0, LOOKS.1) => Err(anyhow::anyhow!("silence")),
        };
        self.counters.end();
        ended
    }

    async fn follow(
        &mut self,
        connection: &Connection,
        first: Option<Order>,
        sender: &mut Sender,
        receiver: &mut Receiver,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let mut order = first;
        loop {
            if let Some(order) = order.take()
                && self.take(order)
            {
                self.report(sender, false).await?;
            }
            if self.unsteady && self.counters.flaps() && began.elapsed() >= FLAP_AFTER {
                anyhow::bail!("the agent is started again");
            }
            if self.looked.elapsed() >= PRESENCE_EVERY {
                self.report(sender, false).await?;
            }
            self.count(connection);
            if let Ok(received) = timeout(LOOKS.1, receiver.receive::<Order>()).await {
                let Some(received) = received? else {
                    return Ok(());
                };
                order = Some(received);
            }
        }
    }

    /// Counts the bytes that came on the connection since the last count.
    fn count(&mut self, connection: &Connection) {
        let received = connection.stats().received_bytes;
        self.counters.received(received - self.counted);
        self.counted = received;
    }

    fn hello(&self) -> anyhow::Result<Hello> {
        Ok(Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            peer_port: self.endpoint.local_addr()?.port().into(),
            link_key: vec![1; 32],
            zone: self.zone.clone(),
            volume: Some(volume()),
            images: self.states(),
            takes_names: true,
            roster_epoch: Some(self.roster),
            ..Hello::default()
        })
    }

    /// Takes in an order. Returns whether the host has something to report about the order.
    fn take(&mut self, order: Order) -> bool {
        self.counters
            .order(kind(&order), prost::Message::encoded_len(&order));
        match order.kind {
            Some(order::Kind::Roster(roster)) => self.roster = roster.epoch,
            Some(order::Kind::RosterChange(change)) => self.roster = change.epoch,
            Some(order::Kind::Stage(order)) => {
                let image = Image {
                    references: order.references,
                    order: order.order,
                };
                if self.images.insert(order.manifest_digest, image).is_none() {
                    self.counters.became_present();
                }
                return true;
            }
            Some(order::Kind::Names(names)) => {
                self.names = names.number;
                return true;
            }
            Some(order::Kind::Lease(lease)) => {
                self.leases.push(lease.content);
                return true;
            }
            _ => {}
        }
        false
    }

    fn states(&self) -> Vec<ImageState> {
        let age = proto::millis(self.looked.elapsed());
        let state = |(manifest, image): (&Vec<u8>, &Image)| ImageState {
            manifest: manifest.clone(),
            reference: image.references.first().cloned().unwrap_or_default(),
            state: StageState::Present.into(),
            presence_age_ms: age,
            ready_references: image.references.clone(),
            order: Some(image.order),
            ..ImageState::default()
        };
        self.images.iter().map(state).collect()
    }

    async fn report(&mut self, sender: &mut Sender, full: bool) -> anyhow::Result<()> {
        self.looked = Instant::now();
        let done = |content| LeaseState {
            content,
            end: LeaseEnd::Done.into(),
            ..LeaseState::default()
        };
        let report = Report {
            images: self.states(),
            full,
            volume: Some(volume()),
            leases: std::mem::take(&mut self.leases)
                .into_iter()
                .map(done)
                .collect(),
            load: Some(Load::default()),
            mirror: full.then(MirrorWants::default),
            names: self.names,
            ..Report::default()
        };
        sender.send(&report).await?;
        Ok(())
    }
}

fn volume() -> Volume {
    Volume {
        total_bytes: 2_000_000_000_000,
        free_bytes: 1_200_000_000_000,
        floor_bytes: 300_000_000_000,
        path: "/Users/m1/.tart".into(),
        clones: Some(true),
    }
}

/// The name of an order's kind.
const fn kind(order: &Order) -> &'static str {
    match &order.kind {
        Some(order::Kind::Roster(_)) => "roster",
        Some(order::Kind::RosterChange(_)) => "roster_change",
        Some(order::Kind::Neighbours(_)) => "neighbours",
        Some(order::Kind::Stage(_)) => "stage",
        Some(order::Kind::Names(_)) => "names",
        Some(order::Kind::Lease(_)) => "lease",
        Some(order::Kind::Queue(_)) => "queue",
        _ => "other",
    }
}
