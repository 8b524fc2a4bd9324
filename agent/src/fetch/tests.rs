//! Tests of fetches from a made-up registry, without sockets. The content lies in a blob cache of the mirror.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::{
    ChunkIndex, Geometry, HostId, Link, Resume, Source as LinkSource, State,
    image::{Blob as NamedBlob, ContentKind},
    message::PullToken,
};
use swarm::event::ContentId;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use self::registry::{Act, PIECE, Registry};
use super::*;
use crate::{
    lock::lock,
    mirror::{
        blob::Reading as BlobReading,
        blobs::{Blobs, Limits},
    },
    platform::{Floor, Space},
    shelf::Shelf,
    transfer::Cache,
};

mod parts;
mod registry;

fn roomy(_: &Path) -> io::Result<Space> {
    Ok(Space {
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
    })
}

/// Bytes that don't pack.
fn noise(seed: u32, size: usize) -> Vec<u8> {
    let words = (seed << 20..).flat_map(|at| *Digest::of(&at.to_le_bytes()).as_bytes());
    words.take(size).collect()
}

/// A layer of four chunks, as it is on the disk and as it travels.
struct Layer {
    raw: Vec<u8>,
    blob: Vec<u8>,
    kind: ContentKind,
}

impl Layer {
    fn raw() -> Self {
        let raw = noise(1, (3 << 20) + 300_000);
        let blob = apple_lz4::encode(&raw);
        let named = NamedBlob {
            digest: Digest::of(&blob),
            size: blob.len() as u64,
        };
        Self {
            raw,
            blob,
            kind: ContentKind::RawLayer { blob: named },
        }
    }

    /// One that is stored as it travels.
    fn plain() -> Self {
        let raw = noise(2, (3 << 20) + 300_000);
        Self {
            blob: raw.clone(),
            raw,
            kind: ContentKind::Blob,
        }
    }

    fn digest(&self) -> Digest {
        Digest::of(&self.raw)
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.raw.len() as u64).unwrap()
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        self.raw.chunks(1 << 20).nth(chunk as usize).unwrap()
    }
}

/// A host that fetches.
struct Host {
    name: HostId,
    layer: Layer,
    cache: Blobs,
    reading: BlobReading,
    moved: Arc<AtomicU64>,
    until: watch::Sender<u32>,
    access: watch::Sender<Access>,
    _home: TempDir,
}

/// The end of the fetch, and its news.
type Fetched = (FetchEnd, Vec<News>);

impl Host {
    fn new(name: &str, layer: Layer) -> Self {
        let home = tempfile::tempdir().unwrap();
        let name: HostId = name.parse().unwrap();
        let limits = Limits {
            budget_bytes: 1 << 30,
            floor: Floor {
                percent: 10,
                kept_bytes: 0,
            },
            space: roomy,
        };
        let cache = Blobs::open(home.path(), &name, limits).unwrap();
        let reading = cache.begin(layer.digest(), layer.raw.len() as u64).unwrap();
        Self {
            name,
            layer,
            cache,
            reading,
            moved: Arc::default(),
            until: watch::Sender::new(u32::MAX),
            access: watch::Sender::new(Access::default()),
            _home: home,
        }
    }

    fn job(&self, inbox: mpsc::Sender<(ContentId, News)>) -> Job {
        Job {
            id: ContentId(7),
            content: self.layer.digest(),
            geometry: self.layer.geometry(),
            kind: self.layer.kind,
            range: None,
            shelves: vec![Shelf::Blob(self.reading.blob.clone())],
            reference: "registry.example/org/image:1".into(),
            access: self.access.subscribe(),
            me: self.name.clone(),
            notary: None,
            cache: Arc::new(Cache::default()),
            unfit: Arc::default(),
            until: self.until.subscribe(),
            moved: self.moved.clone(),
            doubted: false,
            inbox,
        }
    }

    async fn fetch(&self, registry: &Registry) -> Fetched {
        self.fetch_while(registry, |_| {}).await
    }

    /// Fetches, and calls `act` with each piece of news.
    async fn fetch_while(&self, registry: &Registry, act: impl Fn(&News)) -> Fetched {
        let (inbox, mut heard) = mpsc::channel(1);
        let listening = async {
            let mut told = Vec::new();
            while let Some((id, news)) = heard.recv().await {
                assert_eq!(id, ContentId(7));
                act(&news);
                told.push(news);
            }
            told
        };
        let mut job = self.job(inbox);
        // the news end with the job
        let fetching = async move { run(registry, &mut job).await };
        tokio::join!(fetching, listening)
    }

    /// A peer sends a chunk, with this link.
    fn take(&self, chunk: u32, bytes: &[u8], link: Link) {
        let peer: HostId = "peer".parse().unwrap();
        let source = LinkSource {
            sender: peer.key(),
            maker: peer.key(),
        };
        let blob = &self.reading.blob;
        blob.write(ChunkIndex(chunk), bytes, link, source, (&peer, None))
            .unwrap();
    }

    fn link(&self, chunk: u32) -> Link {
        self.reading.blob.link(ChunkIndex(chunk)).unwrap().0
    }

    /// Asserts that the whole content is here, proved, and equal to the layer's own bytes.
    fn assert_whole(&self) {
        let blob = &self.reading.blob;
        blob.walk().unwrap();
        assert!(blob.is_whole());
        for at in 0..self.layer.geometry().chunks() {
            let held = blob.read(ChunkIndex(at)).unwrap().unwrap();
            assert!(held.bytes == self.layer.chunk(at), "chunk {at}");
        }
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// The true links of a layer, with the hints that their maker found.
async fn links(layer: Layer) -> Vec<Link> {
    let maker = Host::new("maker", layer);
    let registry = Registry::new(&maker.layer.blob, []);
    assert_eq!(maker.fetch(&registry).await.0, FetchEnd::Done);
    (0..4).map(|chunk| maker.link(chunk)).collect()
}

fn chunks(told: &[News]) -> Vec<u32> {
    told.iter()
        .filter_map(|news| match news {
            News::Chunk { chunk, .. } => Some(chunk.0),
            _ => None,
        })
        .collect()
}

fn conflicts(told: &[News]) -> Vec<u32> {
    told.iter()
        .filter_map(|news| match news {
            News::Chunk {
                chunk,
                conflict: true,
                ..
            } => Some(chunk.0),
            _ => None,
        })
        .collect()
}

fn origin_bytes(told: &[News]) -> u64 {
    told.iter()
        .map(|news| match news {
            News::Chunk { origin_bytes, .. } => *origin_bytes,
            _ => 0,
        })
        .sum()
}

#[tokio::test]
async fn a_layer_is_decoded_cut_and_told_chunk_by_chunk() {
    let host = Host::new("mini-1", Layer::raw());
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(chunks(&told), [0, 1, 2, 3]);
    assert_eq!(told.len(), 4, "and nothing else: {told:?}");
    assert_eq!(registry.asked(), [0]);
    let size = host.layer.blob.len() as u64;
    // the stream's end marker comes with the last chunk
    assert_eq!((host.moved(), origin_bytes(&told)), (size, size));
    host.assert_whole();
}

#[tokio::test]
async fn a_blob_that_is_stored_as_it_travels_has_links_without_hints() {
    let host = Host::new("mini-1", Layer::plain());
    let registry = Registry::new(&host.layer.blob, []);
    assert_eq!(host.fetch(&registry).await.0, FetchEnd::Done);
    assert!((0..4).all(|chunk| host.link(chunk).resume.is_none()));
    host.assert_whole();
}

#[tokio::test]
async fn a_connection_that_breaks_costs_no_byte_twice() {
    let host = Host::new("mini-1", Layer::raw());
    let cuts = [Act::Cut(1_500_001), Act::Cut(70_000)];
    let registry = Registry::new(&host.layer.blob, cuts);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [0, 1_500_001, 1_570_001]);
    assert_eq!(host.moved(), host.layer.blob.len() as u64);
    assert_eq!(chunks(&told), [0, 1, 2, 3]);
    let broke = |news: &News| matches!(news, News::Broke { .. });
    assert_eq!(told.iter().filter(|news| broke(news)).count(), 2);
    host.assert_whole();
}

#[tokio::test]
async fn a_connection_that_brings_little_is_made_again_after_a_pause() {
    let host = Host::new("mini-1", Layer::plain());
    let registry = Registry::new(&host.layer.blob, [Act::Cut(10)]);
    let began = Instant::now();
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    let News::Trouble {
        wait,
        retry_after: None,
        ..
    } = told[0]
    else {
        panic!("{told:?}");
    };
    assert!(wait > Duration::ZERO && began.elapsed() >= wait);
    assert_eq!(registry.asked(), [0, 10]);
    host.assert_whole();
}

#[tokio::test]
async fn who_takes_a_layer_over_goes_on_in_the_last_block_of_what_is_held() {
    let links = links(Layer::raw()).await;
    let host = Host::new("mini-1", Layer::raw());
    for (at, link) in (0..2).zip(&links) {
        host.take(at, host.layer.chunk(at), *link);
    }
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    let hint = links[1].resume.unwrap();
    assert_eq!(registry.asked(), [hint.blob_offset]);
    assert_eq!(chunks(&told), [2, 3]);
    assert_eq!(host.link(2), links[2]);
    host.assert_whole();
}

#[tokio::test]
async fn a_blob_is_taken_over_at_the_first_missing_chunk() {
    let links = links(Layer::plain()).await;
    let host = Host::new("mini-1", Layer::plain());
    for at in [0, 1, 3] {
        host.take(at, host.layer.chunk(at), links[at as usize]);
    }
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [2 << 20]);
    assert_eq!(chunks(&told), [2, 3]);
    host.assert_whole();
}

#[tokio::test]
async fn a_chunk_without_a_hint_is_not_gone_on_behind() {
    let links = links(Layer::raw()).await;
    let host = Host::new("mini-1", Layer::raw());
    let bare = Link {
        resume: None,
        ..links[0]
    };
    host.take(0, host.layer.chunk(0), bare);
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!((end, registry.asked()), (FetchEnd::Done, vec![0]));
    // it is the same chunk, so that no conflict is reported
    assert_eq!(
        (chunks(&told), conflicts(&told)),
        (vec![0, 1, 2, 3], vec![])
    );
}

#[tokio::test]
async fn a_false_hint_costs_a_second_download_and_blames_nobody() {
    let links = links(Layer::raw()).await;
    let host = Host::new("mini-1", Layer::raw());
    let true_hint = links[0].resume.unwrap();
    let hint = Resume {
        blob_offset: true_hint.blob_offset - 1,
        ..true_hint
    };
    let lie = Link {
        resume: Some(hint),
        ..links[0]
    };
    host.take(0, host.layer.chunk(0), lie);
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [hint.blob_offset, 0]);
    assert_eq!(told[0], News::Doubted);
    assert_eq!(conflicts(&told), [] as [u32; 0]);
    host.assert_whole();
}

#[tokio::test]
async fn what_a_liar_invented_is_replaced_by_what_the_registry_has() {
    let host = Host::new("mini-1", Layer::plain());
    let invented = noise(9, 1 << 20);
    let lie = Link::forge(
        host.layer.geometry(),
        ChunkIndex(0),
        State::INITIAL,
        &invented,
    );
    host.take(0, &invented, lie);
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    // the fetch first went on behind the lie, and found that the result doesn't end in the digest
    assert_eq!(registry.asked(), [1 << 20, 0]);
    assert!(told.contains(&News::Doubted));
    assert_eq!(conflicts(&told)[0], 0);
    host.assert_whole();
}

#[tokio::test]
async fn links_that_do_not_join_are_not_gone_on_behind() {
    let links = links(Layer::plain()).await;
    let host = Host::new("mini-1", Layer::plain());
    for at in [0, 1] {
        host.take(at, host.layer.chunk(at), links[at as usize]);
    }
    // the bytes have the right length, and are chained to something else
    let bytes = noise(8, 1 << 20);
    let other = State::from_bytes(&[3; 32]);
    let lie = Link::forge(host.layer.geometry(), ChunkIndex(2), other, &bytes);
    host.take(2, &bytes, lie);
    let registry = Registry::new(&host.layer.blob, []);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    // chunk 1 may be the false one of the two
    assert_eq!(registry.asked(), [1 << 20]);
    assert_eq!((chunks(&told), conflicts(&told)), (vec![1, 2, 3], vec![2]));
    host.assert_whole();
}

#[tokio::test]
async fn a_second_download_that_differs_takes_back_what_was_made_of_the_first() {
    let host = Host::new("mini-1", Layer::plain());
    let mut damaged = host.layer.blob.clone();
    damaged[(1 << 20) + 5] ^= 1;
    let registry = Registry::new(&host.layer.blob, [Act::Lie(damaged.into())]);
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [0, 0]);
    // the last chunk of the first download wasn't taken: it didn't end in the digest
    assert_eq!(chunks(&told), [0, 1, 2, 0, 1, 2, 3]);
    let retracted = News::Retracted {
        from: ChunkIndex(1),
        chunks: vec![ChunkIndex(2)],
    };
    assert!(told.contains(&retracted), "{told:?}");
    assert_eq!(conflicts(&told), [1]);
    host.assert_whole();
}

#[tokio::test]
async fn bytes_that_are_false_twice_are_the_registrys_damage() {
    let host = Host::new("mini-1", Layer::raw());
    let mut damaged = host.layer.blob.clone();
    damaged[1_000_000] ^= 1;
    let lie = Act::Lie(damaged.into());
    let registry = Registry::new(&host.layer.blob, [lie.clone(), lie]);
    let (end, told) = host.fetch(&registry).await;
    let FetchEnd::Bad(message) = end else {
        panic!("{end:?}");
    };
    assert!(message.contains("its copy is damaged"), "{message}");
    assert_eq!(
        told.iter().filter(|news| **news == News::Doubted).count(),
        1
    );
}

#[tokio::test]
async fn a_blob_that_is_exactly_the_manifests_was_pushed_broken() {
    let mut layer = Layer::raw();
    // the manifest names another raw digest than the blob decodes to
    layer.raw[5] ^= 1;
    let host = Host::new("mini-1", layer);
    let (end, _) = host.fetch(&Registry::new(&host.layer.blob, [])).await;
    let FetchEnd::Bad(message) = end else {
        panic!("{end:?}");
    };
    assert!(message.contains("pushed broken"), "{message}");
}

#[tokio::test]
async fn a_blob_that_ends_early_or_late_is_bad() {
    for (change, said) in [(-1, "it ends after"), (1, "longer than the manifest says")] {
        let host = Host::new("mini-1", Layer::plain());
        let mut other = host.layer.blob.clone();
        other.resize(other.len().checked_add_signed(change).unwrap(), 7);
        let lie = Act::Lie(other.into());
        let registry = Registry::new(&host.layer.blob, [lie.clone(), lie]);
        let (end, _) = host.fetch(&registry).await;
        let FetchEnd::Bad(message) = end else {
            panic!("{end:?}");
        };
        assert!(message.contains(said), "{message}");
    }
}

#[tokio::test]
async fn a_layer_that_goes_on_behind_its_last_byte_does_not_become_whole() {
    let host = Host::new("mini-1", Layer::raw());
    let longer = apple_lz4::encode(&[&host.layer.raw[..], &[1; 100]].concat());
    let lie = Act::Lie(longer.into());
    let registry = Registry::new(&host.layer.blob, [lie.clone(), lie]);
    let (end, told) = host.fetch(&registry).await;
    assert!(matches!(end, FetchEnd::Bad(_)), "{end:?}");
    assert!(!chunks(&told).contains(&3), "{told:?}");
}

#[tokio::test]
async fn a_fetch_pauses_before_the_chunk_that_may_not_be_made_yet() {
    let host = Host::new("mini-1", Layer::plain());
    host.until.send_replace(1);
    let registry = Registry::new(&host.layer.blob, []);
    let (inbox, mut heard) = mpsc::channel(8);
    let mut job = host.job(inbox);
    let fetching = run(&registry, &mut job);
    tokio::pin!(fetching);
    tokio::select! {
        end = &mut fetching => panic!("{end:?}"),
        first = heard.recv() => assert_eq!(chunks(&[first.unwrap().1]), [0]),
    }
    for _ in 0..100 {
        tokio::select! {
            biased;
            end = &mut fetching => panic!("{end:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(heard.try_recv().is_err());
    assert!(
        host.moved() < (2 << 20) + PIECE as u64,
        "what comes waits, too"
    );
    host.until.send_replace(4);
    assert_eq!(fetching.await, FetchEnd::Done);
    host.assert_whole();
}

#[tokio::test]
async fn a_newer_token_is_used_as_soon_as_it_comes() {
    let token = |text: &str| {
        let token = PullToken {
            authorization: format!("Bearer {text}"),
            ..PullToken::default()
        };
        Access::new(Some(&token), false)
    };
    let host = Host::new("mini-1", Layer::plain());
    host.access.send_replace(token("old"));
    let expired = OriginError::Unauthorised {
        what: "blob".into(),
        cause: "expired".into(),
    };
    let registry = Registry::new(&host.layer.blob, [Act::Refuse(expired)]);
    let hand_down = |news: &News| {
        if matches!(news, News::Refused { .. }) {
            host.access.send_replace(token("new"));
        }
    };
    let (end, _) = host.fetch_while(&registry, hand_down).await;
    assert_eq!(end, FetchEnd::Done);
    let asked = lock(&registry.asked).clone();
    let all = 0..host.layer.blob.len() as u64;
    assert_eq!(asked, [(token("old"), all.clone()), (token("new"), all)]);
}

#[tokio::test]
async fn settings_that_do_not_do_end_the_fetch_without_a_word_about_the_registry() {
    let host = Host::new("mini-1", Layer::plain());
    let registry = Registry::new(&host.layer.blob, [Act::Settings]);
    let (end, told) = host.fetch(&registry).await;
    let failure = Failure::Settings("no password".into());
    assert_eq!((end, told), (FetchEnd::Failed(failure), vec![]));
}

#[tokio::test]
async fn what_peers_bring_meanwhile_is_not_fetched() {
    let links = links(Layer::plain()).await;
    let host = Host::new("mini-1", Layer::plain());
    let mut registry = Registry::new(&host.layer.blob, []);
    // while the first chunk comes, peers send the next two
    let blob = host.reading.blob.clone();
    let (raw, sent) = (host.layer.raw.clone(), links.clone());
    let bring = move || {
        let peer: HostId = "peer".parse().unwrap();
        let source = LinkSource {
            sender: peer.key(),
            maker: peer.key(),
        };
        for at in [1u32, 2] {
            let bytes = raw.chunks(1 << 20).nth(at as usize).unwrap();
            let link = sent[at as usize];
            blob.write(ChunkIndex(at), bytes, link, source, (&peer, None))
                .unwrap();
        }
    };
    registry.meanwhile = Mutex::new(Some((500_000, Box::new(bring))));
    let (end, told) = host.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [0, 3 << 20]);
    assert_eq!(chunks(&told), [0, 3]);
    host.assert_whole();
}

#[tokio::test]
async fn nothing_is_fetched_for_a_blob_that_is_gone_or_a_driver_that_went() {
    let host = Host::new("mini-1", Layer::plain());
    host.cache.discard(&host.layer.digest()).unwrap();
    let (end, told) = host.fetch(&Registry::new(&host.layer.blob, [])).await;
    assert_eq!((end, told), (FetchEnd::Unwanted, vec![]));

    let host = Host::new("mini-2", Layer::plain());
    let (inbox, heard) = mpsc::channel(1);
    drop(heard);
    let registry = Registry::new(&host.layer.blob, []);
    let mut job = host.job(inbox);
    assert_eq!(run(&registry, &mut job).await, FetchEnd::Unwanted);
}

#[tokio::test]
async fn a_registry_without_parts_is_read_again_for_about_one_blob_and_then_left_to_others() {
    let host = Host::new("mini-1", Layer::plain());
    let cut = Act::Cut(1 << 20);
    let mut registry = Registry::new(&host.layer.blob, vec![cut; 9]);
    registry.no_parts = true;
    let (end, _) = host.fetch(&registry).await;
    let FetchEnd::Failed(Failure::CutShort(error)) = end else {
        panic!("{end:?}");
    };
    assert!(
        error.to_string().contains("from its beginning only"),
        "{error}"
    );
    assert!(registry.asked().len() < 9);
    // the bytes that came stay
    assert_eq!(host.moved(), 1 << 20);
}

#[tokio::test]
async fn a_registry_without_parts_that_gives_the_whole_is_enough() {
    let host = Host::new("mini-1", Layer::plain());
    let mut registry = Registry::new(&host.layer.blob, [Act::Cut(1 << 20)]);
    registry.no_parts = true;
    let (end, told) = host.fetch(&registry).await;
    assert_eq!((end, registry.asked()), (FetchEnd::Done, vec![0, 1 << 20]));
    // bytes that came a second time and were left out are counted too
    let size = host.layer.blob.len() as u64;
    assert_eq!(chunks(&told), [0, 1, 2, 3]);
    assert_eq!((host.moved(), origin_bytes(&told)), (size, size));
    host.assert_whole();
}

#[test]
fn a_blob_that_comes_whole_only_is_read_again_while_that_costs_less_than_one() {
    let mut wholes = Wholes::default();
    assert!(wholes.may_go_on(99, 100), "as long as parts are given");
    wholes.no_parts = true;
    wholes.ended(60, true);
    assert!(wholes.may_go_on(40, 100) && !wholes.may_go_on(41, 100));
    assert!(wholes.may_go_on(0, 100), "nothing is lost by it");
    // connections that end before the first new byte
    let mut wholes = Wholes {
        no_parts: true,
        ..Wholes::default()
    };
    wholes.ended(1, false);
    assert!(wholes.may_go_on(10, 100));
    wholes.ended(0, false);
    assert!(wholes.may_go_on(10, 100), "no answer is no vain connection");
    wholes.ended(1, false);
    assert!(!wholes.may_go_on(10, 100));
}
