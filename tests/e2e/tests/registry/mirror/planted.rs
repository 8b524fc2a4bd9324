//! Somebody plants a false recipe in a repository of their own, beside others' blobs, and has a host of the fleet whose
//! bytes fit it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use proto::{
    ChunkIndex, Geometry, HostId, Layout, Link, Recipe, State,
    message::{
        ChunkHeader, ChunkReply, CoordinatorOpen, Encoding, Have, Hello, Link as WireLink, Order,
        PeerOpen, PeerUpdate, Refusal, Report, Updates, chunk_reply, coordinator_open, order,
        peer_open,
    },
};
use tokio::time::sleep;
use wire::{Connection, Endpoint, LinkSigner, Receiver, Sender};

use super::{
    recipes::{RATE, planted, world},
    *,
};
use crate::impostor;

/// The chunk that is false.
const FALSE: ChunkIndex = ChunkIndex(5);

/// An enrolled host that says it has a blob, and gives false bytes for it by a recipe.
struct Rogue {
    me: HostId,
    endpoint: Endpoint,
    blob: Digest,
    recipe: Digest,
    /// The chunks, with the states that the recipe has of them.
    chunks: Vec<(Link, Bytes)>,
    /// How often a host took the false chunk.
    lies: AtomicU64,
}

impl Rogue {
    async fn answer(&self, mut sender: Sender, mut receiver: Receiver) -> anyhow::Result<()> {
        let Some(PeerOpen { kind: Some(kind) }) = receiver.receive().await? else {
            return Ok(());
        };
        let request = match kind {
            peer_open::Kind::Updates(_) => {
                while receiver.receive::<PeerUpdate>().await?.is_some() {}
                return Ok(());
            }
            peer_open::Kind::Request(request) => request,
            peer_open::Kind::Push(_) => return Ok(()),
        };
        if request.content != self.blob.as_bytes() {
            let reply = ChunkReply {
                kind: Some(chunk_reply::Kind::Refusal(Refusal::Missing.into())),
            };
            sender.send(&reply).await?;
            return Ok(sender.finish()?);
        }
        let (link, bytes) = &self.chunks[request.index as usize];
        let mut link = WireLink::new(link, &self.me);
        link.recipe = self.recipe.as_bytes().to_vec();
        let reply = ChunkReply {
            kind: Some(chunk_reply::Kind::Chunk(ChunkHeader {
                link: Some(link),
                encoding: Encoding::Raw.into(),
                wire_bytes: u32::try_from(bytes.len())?,
                lacking_only: false,
            })),
        };
        sender.send(&reply).await?;
        sender.write(bytes.clone()).await?;
        sender.finish()?;
        if sender.stopped().await?.is_none() && request.index == FALSE.0 {
            self.lies.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Says again and again that it has the whole blob: hosts hear it once they want the blob.
    async fn announce(&self, connection: &Connection) -> anyhow::Result<()> {
        let (mut sender, _receiver) = connection.open().await?;
        let updates = Some(peer_open::Kind::Updates(Updates::default()));
        sender.send(&PeerOpen { kind: updates }).await?;
        loop {
            let have = Have {
                content: self.blob.as_bytes().to_vec(),
                runs: vec![0, u32::try_from(self.chunks.len())?],
                reset: true,
            };
            let update = PeerUpdate {
                have: vec![have],
                load: None,
            };
            sender.send(&update).await?;
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn trade(self: Arc<Self>, connection: Connection) -> anyhow::Result<()> {
        let serve = async {
            let mut streams = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = connection.accept() => {
                        let (sender, receiver) = accepted?;
                        let rogue = self.clone();
                        streams.spawn(async move { rogue.answer(sender, receiver).await });
                    }
                    Some(_ended) = streams.join_next() => {}
                }
            }
        };
        tokio::select! {
            ended = serve => ended,
            ended = self.announce(&connection) => ended,
        }
    }

    /// Keeps a session, and trades with the host of this name, whoever dials.
    async fn play(self: Arc<Self>, coordinator: SocketAddr, with: String) -> anyhow::Result<()> {
        let name = "coordinator".parse()?;
        let connection = self.endpoint.connect(coordinator, &name).await?;
        let (mut sender, mut orders) = connection.open().await?;
        let hello = Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            peer_port: self.endpoint.local_addr()?.port().into(),
            link_key: LinkSigner::from_seed(&[7; 32]).public().to_vec(),
            ..Hello::default()
        };
        let kind = Some(coordinator_open::Kind::Session(hello));
        sender.send(&CoordinatorOpen { kind }).await?;
        let mut report = Report {
            full: true,
            ..Report::default()
        };
        let mut jobs = JoinSet::new();
        let mut met = false;
        loop {
            sender.send(&report).await?;
            report.full = false;
            let second = sleep(Duration::from_secs(1));
            tokio::pin!(second);
            loop {
                tokio::select! {
                    () = &mut second => break,
                    order = orders.receive::<Order>() => {
                        let Some(Order { kind: Some(order::Kind::Roster(roster)) }) = order? else {
                            continue;
                        };
                        let entry = roster.hosts.into_iter().find(|entry| entry.host == with);
                        let Some(entry) = entry.filter(|_| !met) else { continue };
                        met = true;
                        let (rogue, host) = (self.clone(), with.parse::<HostId>()?);
                        let address: SocketAddr = entry.address.parse()?;
                        jobs.spawn(async move {
                            if let Ok(connection) = rogue.endpoint.connect(address, &host).await {
                                drop(rogue.clone().trade(connection).await);
                            }
                        });
                    }
                    incoming = self.endpoint.accept() => {
                        let Some(incoming) = incoming else { return Ok(()) };
                        let rogue = self.clone();
                        jobs.spawn(async move {
                            if let Ok(connection) = incoming.establish().await {
                                drop(rogue.trade(connection).await);
                            }
                        });
                    }
                }
            }
        }
    }
}

/// The blob's chunks, of which one is false, with a chain that fits them up to the last one.
fn forged(good: &[u8]) -> Vec<(Link, Bytes)> {
    let geometry = Geometry::new(good.len() as u64).unwrap();
    let mut state = State::INITIAL;
    let chunks = good.chunks(1 << 20).zip((0..).map(ChunkIndex));
    let forge = chunks.map(|(good, chunk)| {
        let mut bytes = good.to_vec();
        if chunk == FALSE {
            bytes.fill(7);
        }
        let link = Link::forge(geometry, chunk, state, &bytes);
        state = link.after;
        (link, Bytes::from(bytes))
    });
    forge.collect()
}

/// The recipe with these states of the blob.
fn by_states(recipe: &[u8], layout: &Layout, blob: &Digest, chunks: &[(Link, Bytes)]) -> Vec<u8> {
    let of = Recipe::parse(recipe, layout).unwrap().blob(blob).unwrap();
    let mut bytes = recipe.to_vec();
    let but_the_last = &chunks[..chunks.len() - 1];
    for ((link, _), chunk) in but_the_last.iter().zip((0..).map(ChunkIndex)) {
        let state = of.link(chunk).unwrap().after.to_bytes();
        let at = recipe.windows(32).position(|window| window == state);
        bytes[at.unwrap()..][..32].copy_from_slice(&link.after.to_bytes());
    }
    bytes
}

#[test]
fn false_bytes_that_fit_a_planted_recipe_reach_no_client_of_the_true_repository() {
    let mut world = world(2);
    let (blob, _) = world.image.largest_blob();
    let good = world.image.blob(&blob).unwrap();
    let chunks = forged(&good);
    let (theirs, recipe) = planted(&world, |recipe, layout| {
        by_states(&recipe, layout, &blob, &chunks)
    });
    world.cluster.kill_agent(1).unwrap();
    let state = world.cluster.agents()[1].dir.join("state");
    let coordinator = std::fs::read_to_string(state.join("coordinator")).unwrap();
    let coordinator = coordinator.trim().parse().unwrap();
    let with = world.cluster.agents()[0].host.clone();
    let (me, endpoint) = world.run(async { impostor::endpoint(&state) });
    let rogue = Arc::new(Rogue {
        me,
        endpoint,
        blob,
        recipe,
        chunks,
        lies: AtomicU64::new(0),
    });
    world.site.registry.limit_each(Some(RATE / 2));
    let theirs_at = |path: &str| format!("http://{}/v2/{theirs}/{path}", world.mirror(0));
    let (ours, theirs_blob) = (world.blob(0, &blob), theirs_at(&format!("blobs/{blob}")));
    world.run(async {
        let mut playing = JoinSet::new();
        playing.spawn(rogue.clone().play(coordinator, with));
        // their client comes first, and the blob has their recipe
        assert_eq!(get(&theirs_at("manifests/1")).await.status, StatusCode::OK);
        while world.found(0) < 1.0 {
            tokio::task::yield_now().await;
        }
        let theirs = async { read(&theirs_blob, None).await };
        let ours = async {
            assert_eq!(
                get(&world.at(0, "manifests/1")).await.status,
                StatusCode::OK
            );
            loop {
                let (_, bytes, broken) = read(&ours, None).await;
                assert!(good.starts_with(&bytes), "false bytes left");
                if !broken && bytes.len() == good.len() {
                    break;
                }
            }
        };
        let ((_, bytes, _), ()) = tokio::join!(theirs, ours);
        println!(
            "who planted the recipe got {} bytes of {}",
            bytes.len(),
            good.len()
        );
        assert!(playing.try_join_next().is_none(), "the rogue gave up");
    });
    assert!(
        rogue.lies.load(Ordering::Relaxed) > 0,
        "nobody took the lie"
    );
}
