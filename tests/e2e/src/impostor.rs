//! Somebody who has the key of an enrolled host and isn't its agent: a host of the fleet that does what a test says.

use std::{
    collections::BTreeSet, future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration,
};

use anyhow::Context as _;
use proto::{
    Digest, HostId,
    message::{
        CoordinatorOpen, Have, Hello, Order, PeerOpen, PeerUpdate, Report, Updates,
        coordinator_open, order, peer_open,
    },
};
use tokio::{
    task::JoinSet,
    time::{interval, sleep},
};
use wire::{Authorised, Connection, Credentials, Endpoint, LinkSigner, Receiver, Sender, Settings};

/// The pause before an impostor begins a session, or dials a host, again.
const PAUSE: Duration = Duration::from_millis(500);
/// The time between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// A host of the fleet in other hands. It lets everybody in.
pub struct Impostor {
    host: HostId,
    endpoint: Endpoint,
    signer: LinkSigner,
    coordinator: SocketAddr,
}

/// The conduct of an impostor towards its peers and the coordinator.
pub trait Conduct: Send + Sync + 'static {
    /// Answers a request or a push of a peer.
    fn answer(
        &self,
        asked: peer_open::Kind,
        sender: Sender,
        receiver: Receiver,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Deals with a peer of its own accord, from the beginning of their connection on. The connection ends with this.
    fn deal(&self, connection: &Connection) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// The report with which an order is answered, if any is.
    ///
    /// # Errors
    /// When the order can't be read. The session then ends, and another one begins.
    fn obey(&self, _order: &order::Kind) -> anyhow::Result<Option<Report>> {
        Ok(None)
    }

    /// The report of each second.
    fn report(&self) -> Report {
        Report::default()
    }
}

impl Impostor {
    /// Takes over the identity with which the agent of this state directory enrolled. Needs a runtime.
    ///
    /// # Errors
    /// When the agent isn't enrolled, or no socket can be bound.
    pub fn of(state: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let keys = read("host.pem")?;
        let chain = keys
            .find("-----BEGIN CERTIFICATE")
            .context("host.pem has a certificate")?;
        let (key, chain) = keys.split_at(chain);
        let credentials = Credentials::from_pem(chain, key, &read("authority.pem")?)?;
        let host = credentials.host().clone();
        let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, credentials, &Settings::default())?;
        endpoint.authorise(Authorised::Anyone);
        Ok(Self {
            host,
            endpoint,
            signer: LinkSigner::from_seed(&[7; 32]),
            coordinator: read("coordinator")?.trim().parse()?,
        })
    }

    /// The host whose key this is.
    #[must_use]
    pub const fn host(&self) -> &HostId {
        &self.host
    }

    /// The endpoint in the host's name.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The key under links, which the coordinator gives tickets for.
    #[must_use]
    pub const fn signer(&self) -> &LinkSigner {
        &self.signer
    }

    /// Keeps a session with the coordinator, and deals with these hosts, whoever dials. Never ends.
    pub async fn play<C: Conduct>(self: Arc<Self>, conduct: Arc<C>, with: BTreeSet<String>) {
        loop {
            drop(self.session(&conduct, &with).await);
            sleep(PAUSE).await;
        }
    }

    async fn session<C: Conduct>(
        self: &Arc<Self>,
        conduct: &Arc<C>,
        with: &BTreeSet<String>,
    ) -> anyhow::Result<()> {
        let connection = self
            .endpoint
            .connect(self.coordinator, &"coordinator".parse()?)
            .await?;
        let (mut sender, mut orders) = connection.open().await?;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            peer_port: self.endpoint.local_addr()?.port().into(),
            link_key: self.signer.public().to_vec(),
            ..Hello::default()
        };
        let kind = Some(coordinator_open::Kind::Session(hello));
        sender.send(&CoordinatorOpen { kind }).await?;
        let full = Report {
            full: true,
            ..Report::default()
        };
        sender.send(&full).await?;
        let mut known = BTreeSet::new();
        let mut jobs = JoinSet::new();
        let mut seconds = interval(REPORT_EVERY);
        loop {
            tokio::select! {
                _ = seconds.tick() => sender.send(&conduct.report()).await?,
                order = orders.receive::<Order>() => {
                    let Some(order) = order? else { return Ok(()) };
                    let Some(kind) = order.kind else { continue };
                    if let Some(report) = conduct.obey(&kind)? {
                        sender.send(&report).await?;
                    }
                    let order::Kind::Roster(roster) = kind else { continue };
                    for entry in roster.hosts {
                        if with.contains(&entry.host) && known.insert(entry.host.clone()) {
                            let (host, address) = (entry.host.parse()?, entry.address.parse()?);
                            jobs.spawn(self.clone().meet(conduct.clone(), host, address));
                        }
                    }
                }
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { return Ok(()) };
                    let conduct = conduct.clone();
                    jobs.spawn(async move {
                        if let Ok(connection) = incoming.establish().await {
                            drop(trade(&conduct, &connection).await);
                        }
                    });
                }
                Some(ended) = jobs.join_next() => ended?,
            }
        }
    }

    /// Connects to a host again and again.
    async fn meet<C: Conduct>(self: Arc<Self>, conduct: Arc<C>, host: HostId, address: SocketAddr) {
        loop {
            if let Ok(connection) = self.endpoint.connect(address, &host).await {
                drop(trade(&conduct, &connection).await);
            }
            sleep(PAUSE).await;
        }
    }
}

/// Answers what a peer asks, and deals with it, until either ends.
async fn trade<C: Conduct>(conduct: &Arc<C>, connection: &Connection) -> anyhow::Result<()> {
    let serve = async {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let (sender, receiver) = accepted?;
                    let conduct = conduct.clone();
                    streams.spawn(async move { hear(&*conduct, sender, receiver).await });
                }
                Some(_ended) = streams.join_next() => {}
            }
        }
    };
    tokio::select! {
        ended = serve => ended,
        ended = conduct.deal(connection) => ended,
    }
}

/// Takes in a stream that a peer opened. What peers announce is read, and nothing comes of it.
async fn hear<C: Conduct>(
    conduct: &C,
    sender: Sender,
    mut receiver: Receiver,
) -> anyhow::Result<()> {
    match receiver
        .receive::<PeerOpen>()
        .await?
        .and_then(|open| open.kind)
    {
        None => {}
        Some(peer_open::Kind::Updates(_)) => {
            while receiver.receive::<PeerUpdate>().await?.is_some() {}
        }
        Some(asked) => conduct.answer(asked, sender, receiver).await?,
    }
    Ok(())
}

/// Opens the stream of this host's announcements. Both halves are kept for as long as it announces.
///
/// # Errors
/// When the connection is gone.
pub async fn announcements(connection: &Connection) -> anyhow::Result<(Sender, Receiver)> {
    let (mut sender, receiver) = connection.open().await?;
    let kind = Some(peer_open::Kind::Updates(Updates::default()));
    sender.send(&PeerOpen { kind }).await?;
    Ok((sender, receiver))
}

/// The announcement that all of these contents are here, each with so many chunks.
#[must_use]
pub fn has_all<'a>(contents: impl IntoIterator<Item = (&'a Digest, u32)>) -> PeerUpdate {
    let have = contents.into_iter().map(|(content, chunks)| Have {
        content: content.as_bytes().to_vec(),
        runs: vec![0, chunks],
        reset: true,
    });
    PeerUpdate {
        have: have.collect(),
        load: None,
    }
}
