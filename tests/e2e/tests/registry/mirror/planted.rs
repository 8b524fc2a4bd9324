//! Somebody plants a false recipe in a repository of their own, beside others' blobs, and has a host of the fleet whose
//! bytes fit it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use e2e::impostor::{Conduct, Impostor, announcements, has_all};
use proto::{
    ChunkIndex, Geometry, HostId, Layout, Link, Recipe, State,
    message::{
        ChunkHeader, ChunkReply, Encoding, Link as WireLink, Refusal, chunk_reply, peer_open,
    },
};
use tokio::time::sleep;
use wire::{Connection, Receiver, Sender};

use super::{
    recipes::{RATE, planted, world},
    *,
};

/// The chunk that is false.
const FALSE: ChunkIndex = ChunkIndex(5);

/// Says that it has a blob, and gives false bytes for it by a recipe.
struct Liar {
    me: HostId,
    blob: Digest,
    recipe: Digest,
    /// The chunks, with the states that the recipe has of them.
    chunks: Vec<(Link, Bytes)>,
    /// How often a host took the false chunk.
    lies: AtomicU64,
}

impl Conduct for Liar {
    async fn answer(
        &self,
        asked: peer_open::Kind,
        mut sender: Sender,
        _receiver: Receiver,
    ) -> anyhow::Result<()> {
        let peer_open::Kind::Request(request) = asked else {
            return Ok(());
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
    async fn deal(&self, connection: &Connection) -> anyhow::Result<()> {
        let (mut sender, _receiver) = announcements(connection).await?;
        let all = has_all([(&self.blob, u32::try_from(self.chunks.len())?)]);
        loop {
            sender.send(&all).await?;
            sleep(Duration::from_millis(100)).await;
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
    let with = BTreeSet::from([world.cluster.agents()[0].host.clone()]);
    let impostor = Arc::new(world.run(async { Impostor::of(&state).unwrap() }));
    let liar = Arc::new(Liar {
        me: impostor.host().clone(),
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
        playing.spawn(impostor.play(liar.clone(), with));
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
    });
    assert!(liar.lies.load(Ordering::Relaxed) > 0, "nobody took the lie");
}
