//! Tests of the cost of a host that signs lies: false hints, false chains, a run for each lie. Tickets, signatures,
//! stages and fetches are real; the registry is a loop over a socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use origin::ProxySettings;
use proto::{
    Link, Resume, Signed, State,
    image::{ContentKind, ContentSpec},
    statement::judge,
};
use swarm::event::ContentId;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::*;
use crate::{
    config::OriginConfig,
    fetch::{self, FetchEnd, News},
    identity::tests::Authority,
    mirror::{blob::Reading, blobs},
    notary::{Notary, tests::notary},
    registries::{Access, Origin},
    shelf::{self, Shelf},
    store::{
        Stage,
        recipes::NamedRecipe,
        tests::{Sample, begin, begin_by, noise, open, sample_of},
    },
    suspects::Suspects,
};

/// A host of the fleet, with a stage of the image.
pub(super) struct Host {
    name: &'static str,
    pub(super) notary: Arc<Notary>,
    cache: Arc<Cache>,
    pub(super) shelf: Shelf,
    _home: TempDir,
}

/// A host gets a chunk with this link, as if a peer had sent both.
pub(super) fn take_packed(
    subject: &Subject,
    peer: HostKey,
    link: &WireLink,
    bytes: &[u8],
) -> Receipt {
    match check(subject, Some(link)) {
        Ok(checked) => {
            let (encoding, bytes) = pack(bytes.to_vec());
            store(subject, peer, checked, (encoding, bytes))
        }
        Err(receipt) => *receipt,
    }
}

/// One raw layer that hosts stage, and who authorises them.
pub(super) struct World {
    authority: Authority,
    pub(super) spec: ContentSpec,
    raw: Vec<u8>,
    blob: Bytes,
}

impl World {
    pub(super) fn new(chunks: usize) -> Self {
        let raw = noise((chunks - 1) * (1 << 20) + 300_000, 77);
        let digest = Digest::of(&raw);
        let layout = sample_of(1, &raw, 5_000, None).layout;
        let mut contents = layout.contents().into_iter();
        Self {
            authority: Authority::new(),
            spec: contents.find(|spec| spec.digest == digest).unwrap(),
            blob: apple_lz4::encode(&raw).into(),
            raw,
        }
    }

    pub(super) fn host(&self, name: &'static str) -> Host {
        let home = tempfile::tempdir().unwrap();
        let (stage, _) = begin(
            &open(&home),
            &self.sample(),
            &["registry.example/org/image:1"],
        );
        self.host_with(name, home, stage)
    }

    /// The image with the layer.
    pub(super) fn sample(&self) -> Sample {
        sample_of(1, &self.raw, 5_000, None)
    }

    /// A host whose stage begins by this recipe.
    pub(super) fn host_by(&self, name: &'static str, by: &NamedRecipe) -> Host {
        let home = tempfile::tempdir().unwrap();
        let (stage, _) = begin_by(&open(&home), &self.sample(), by);
        self.host_with(name, home, stage)
    }

    fn host_with(&self, name: &'static str, home: TempDir, stage: Arc<Stage>) -> Host {
        Host {
            name,
            notary: Arc::new(notary(&self.authority, name, self.spec.digest)),
            cache: Arc::default(),
            shelf: Shelf::Stage(stage),
            _home: home,
        }
    }

    /// A host whose mirror wants the layer as a blob, proved by this recipe.
    pub(super) fn mirror_by(&self, name: &'static str, by: &NamedRecipe) -> (Host, Reading) {
        let home = tempfile::tempdir().unwrap();
        let blobs = blobs::tests::open(home.path(), 1 << 30);
        let (repository, size) = ("r.test/a", self.spec.geometry.size());
        let reading = blobs.begin_by(repository, self.spec.digest, size);
        let reading = reading.unwrap();
        let of = by.recipe.content(&self.spec.digest).unwrap();
        reading.blob.take_recipe(repository, by.file.digest, of);
        let host = Host {
            name,
            notary: Arc::new(notary(&self.authority, name, self.spec.digest)),
            cache: Arc::default(),
            shelf: Shelf::Blob(reading.blob.clone()),
            _home: home,
        };
        (host, reading)
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = ChunkIndex> + use<> {
        (0..self.spec.geometry.chunks()).map(ChunkIndex)
    }

    pub(super) fn bytes(&self, chunk: ChunkIndex) -> &[u8] {
        let start = usize::try_from(self.spec.geometry.offset(chunk)).unwrap();
        &self.raw[start..][..self.spec.geometry.len(chunk) as usize]
    }

    /// The true links, without hints.
    pub(super) fn links(&self) -> Vec<Link> {
        let mut state = State::INITIAL;
        let links = self.chunks().map(|chunk| {
            let link = Link::forge(self.spec.geometry, chunk, state, self.bytes(chunk));
            state = link.after;
            link
        });
        links.collect()
    }

    /// A chunk on a host.
    pub(super) fn subject(&self, host: &Host, chunk: ChunkIndex) -> Subject {
        Subject {
            content: self.spec.digest,
            geometry: self.spec.geometry,
            chunk,
            shelves: vec![host.shelf.clone()],
            cache: host.cache.clone(),
            notary: host.notary.clone(),
            retracted: None,
            suspects: Arc::default(),
            unfit: Arc::default(),
        }
    }

    /// A host gets a chunk with this link from a peer.
    fn give(&self, to: &Host, suspects: &Arc<Suspects>, signed: Signed, bytes: &[u8]) -> Receipt {
        let subject = Subject {
            suspects: suspects.clone(),
            ..self.subject(to, signed.chunk)
        };
        let peer = signed.maker().key();
        take_packed(&subject, peer, &signed.to_message(), bytes)
    }

    /// Fetches the layer from the registry. Returns the end, the number of doubts, each link that was signed, and the
    /// bytes that came.
    pub(super) async fn fetch(&self, host: &Host) -> (FetchEnd, usize, Vec<Signed>, u64) {
        let (address, origin, _registry) = registry(self.blob.clone()).await;
        let (inbox, mut told) = mpsc::channel(4);
        let (_until, until) = watch::channel(u32::MAX);
        let (_access, access) = watch::channel(Access::default());
        let moved = Arc::new(AtomicU64::new(0));
        let mut job = fetch::Job {
            id: ContentId(0),
            content: self.spec.digest,
            geometry: self.spec.geometry,
            kind: self.spec.kind,
            range: None,
            shelves: vec![host.shelf.clone()],
            reference: format!("{address}/org/image:1"),
            access,
            me: host.name.parse().unwrap(),
            notary: Some(host.notary.clone()),
            cache: host.cache.clone(),
            unfit: Arc::default(),
            until,
            moved: moved.clone(),
            doubted: false,
            inbox,
        };
        let listen = async {
            let (mut doubts, mut signed) = (0, Vec::new());
            while let Some((_, news)) = told.recv().await {
                match news {
                    News::Chunk { chunk, .. } => {
                        let Some(packed) = host.cache.find(self.spec.digest, chunk) else {
                            // nobody answers for it: a recipe proves it
                            continue;
                        };
                        signed.extend(packed.signed(self.spec.digest, chunk));
                    }
                    News::Doubted => doubts += 1,
                    News::Retracted { .. } | News::AgainstRecipe { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            (doubts, signed)
        };
        let fetch = async move { fetch::run(&origin, &mut job).await };
        let (end, (doubts, signed)) = tokio::join!(fetch, listen);
        (end, doubts, signed, moved.load(Ordering::Relaxed))
    }

    /// The makers that answer for a false link of these, as the whole content shows.
    fn convicted(&self, signed: &[Signed]) -> BTreeSet<String> {
        let links = self.links();
        let truth = |chunk: ChunkIndex| match links.get(chunk.0 as usize) {
            Some(link) => Some(link.before),
            None => Some(State::from(self.spec.digest)),
        };
        let guilty = signed.iter().filter_map(|signed| judge(signed, &truth));
        guilty.map(|signed| signed.maker().to_string()).collect()
    }
}

/// A registry with this blob. Returns where it is, how it is asked, and its task.
pub(super) async fn registry(blob: Bytes) -> (String, Origin, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut registry = JoinSet::new();
    registry.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let range = head.split_once("range: bytes=");
            let range = range.map(|(_, range)| {
                let (from, to) = range.lines().next().unwrap().split_once('-').unwrap();
                let last = to.parse().unwrap_or(usize::MAX).min(blob.len() - 1);
                (from.parse().unwrap(), last)
            });
            let (from, last) = range.unwrap_or((0, blob.len() - 1));
            let (size, rest) = (blob.len(), blob.slice(from..=last));
            let status = match range {
                None => "200 OK".to_owned(),
                Some(_) => {
                    format!("206 Partial Content\r\nContent-Range: bytes {from}-{last}/{size}")
                }
            };
            let length = rest.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            // a fetch that finds the bytes false hangs up
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.write_all(&rest).await);
        }
    });
    let origin = Origin::new(&OriginConfig {
        ca_file: None,
        plain_http: vec![address.to_string()],
        idle_timeout: Duration::from_secs(30),
        proxy: ProxySettings::default(),
        system_roots: false,
        credentials: BTreeMap::new(),
    });
    (address.to_string(), origin.unwrap(), registry)
}

impl Host {
    /// Signs these links as one run that begins at the content's beginning.
    fn made(&self, content: Digest, links: &[Link]) -> Vec<Signed> {
        let run = self.notary.run(&content, None).unwrap();
        let links = (0..).map(ChunkIndex).zip(links);
        let sign =
            |(chunk, link): (ChunkIndex, &Link)| self.notary.sign(content, chunk, *link, &run);
        links.map(sign).collect()
    }
}

/// A chunk of the layer that a liar invents, with a chain that fits it.
fn invention(world: &World, chunk: ChunkIndex, before: State) -> (Link, Vec<u8>) {
    let bytes = noise(world.spec.geometry.len(chunk) as usize, 999);
    let link = Link::forge(world.spec.geometry, chunk, before, &bytes);
    (link, bytes)
}

#[tokio::test]
async fn a_false_hint_that_its_maker_signed_costs_what_was_held_and_convicts_nobody() {
    let world = World::new(5);
    let ContentKind::RawLayer { blob } = world.spec.kind else {
        panic!("no raw layer");
    };
    assert_eq!(blob.size, world.blob.len() as u64);
    // a host that made all links has the true hints
    let liar = world.host("liar");
    let (end, doubts, made, moved) = world.fetch(&liar).await;
    assert_eq!((end, doubts, moved), (FetchEnd::Done, 0, blob.size));
    let held = 3;
    let (last, true_hint) = (held - 1, made[held - 1].link.resume.unwrap());
    let marks = |at: usize| made[at].link.resume.unwrap().blob_offset;
    let hint = |blob_offset, skip_bytes| Resume {
        blob_offset,
        skip_bytes,
    };
    let false_hints = [
        // another chunk's place, within the chunk before, in the middle of a block, and other bytes of the right block
        (hint(marks(last + 1), true_hint.skip_bytes), 1),
        (hint(marks(last - 1) + 1, true_hint.skip_bytes), 1),
        (hint(true_hint.blob_offset + 9, true_hint.skip_bytes), 1),
        (hint(true_hint.blob_offset, true_hint.skip_bytes - 1), 1),
        // impossible hints aren't followed
        (hint(true_hint.blob_offset, true_hint.skip_bytes + 1), 0),
        (hint(blob.size - 1, 0), 0),
    ];
    for (at, (poison, followed)) in false_hints.into_iter().enumerate() {
        let host = world.host("host");
        let suspects = Arc::default();
        let mut links: Vec<Link> = made[..held].iter().map(|signed| signed.link).collect();
        links[last].resume = Some(poison);
        let given = liar.made(world.spec.digest, &links);
        for signed in &given {
            let bytes = world.bytes(signed.chunk);
            let receipt = world.give(&host, &suspects, signed.clone(), bytes);
            assert_eq!(receipt.result, Ok(()));
        }
        let (end, doubts, signed, moved) = world.fetch(&host).await;
        assert_eq!((end, doubts), (FetchEnd::Done, followed), "{poison:?}");
        // the fetch starts from the beginning, after one chunk and what came with it
        assert!(moved >= blob.size, "{poison:?}: {moved}");
        let wasted = moved - blob.size;
        println!(
            "hint {at}: {wasted} bytes were fetched beyond the blob's {}",
            blob.size
        );
        assert!(wasted <= 2 << 20, "{poison:?}: {wasted}");
        assert_eq!(host.shelf.walk(world.spec.digest).unwrap(), []);
        assert!(host.shelf.is_closed(world.spec.digest));
        // the misled host signed nothing false; and a hint is no link, so its maker isn't convicted
        let chunks: Vec<_> = signed.iter().map(|signed| signed.chunk).collect();
        assert_eq!(chunks, world.chunks().collect::<Vec<_>>());
        assert!(
            signed
                .iter()
                .all(|signed| signed.maker().as_str() == "host")
        );
        assert_eq!(world.convicted(&signed), BTreeSet::new());
        assert_eq!(world.convicted(&given), BTreeSet::new());
    }
    // the fetch goes on from the true hint
    let host = world.host("host");
    for signed in &made[..held] {
        let bytes = world.bytes(signed.chunk);
        let receipt = world.give(&host, &Arc::default(), signed.clone(), bytes);
        assert_eq!(receipt.result, Ok(()));
    }
    let (end, doubts, _, moved) = world.fetch(&host).await;
    assert_eq!((end, doubts), (FetchEnd::Done, 0));
    assert_eq!(moved, blob.size - true_hint.blob_offset);
}

#[tokio::test]
async fn who_goes_on_behind_a_false_chain_signs_what_convicts_its_maker() {
    let world = World::new(6);
    let liar = world.host("liar");
    let (_, _, made, _) = world.fetch(&liar).await;
    let (false_at, held) = (1, 4);
    // one chunk is invented, with true bytes behind it: the bytes that are fetched behind them fit
    let mut links: Vec<Link> = made[..held].iter().map(|signed| signed.link).collect();
    let (mut link, invented) = invention(&world, ChunkIndex(false_at), links[0].after);
    link.resume = links[1].resume;
    links[1] = link;
    for at in 2..held {
        let chunk = ChunkIndex(u32::try_from(at).unwrap());
        let before = links[at - 1].after;
        links[at] = Link {
            resume: links[at].resume,
            ..Link::forge(world.spec.geometry, chunk, before, world.bytes(chunk))
        };
    }
    let host = world.host("host");
    for signed in liar.made(world.spec.digest, &links) {
        let bytes = match signed.chunk.0 {
            at if at == false_at => &invented,
            _ => world.bytes(signed.chunk),
        };
        let receipt = world.give(&host, &Arc::default(), signed, bytes);
        assert_eq!(receipt.result, Ok(()));
    }
    let (end, doubts, signed, moved) = world.fetch(&host).await;
    assert_eq!((end, doubts), (FetchEnd::Done, 1));
    assert!(moved <= 2 * world.blob.len() as u64, "{moved}");
    assert_eq!(host.shelf.walk(world.spec.digest).unwrap(), []);
    assert!(host.shelf.is_closed(world.spec.digest));
    // some links that the host signed are false, and name the maker that misled it
    assert_eq!(
        world.convicted(&signed),
        BTreeSet::from(["liar".to_owned()])
    );
}

/// Walks until the content is verified, while a liar fills each place first as long as it is let: the walks that it
/// takes. What hears of false links is as in the driver.
fn walks(world: &World, lie: &mut dyn FnMut(usize, ChunkIndex, Link) -> Signed) -> usize {
    let (host, honest) = (world.host("host"), world.host("mac-1"));
    let digest = world.spec.digest;
    let truth = honest.made(digest, &world.links());
    let mut suspects = Arc::new(Suspects::default());
    let note = |suspects: &mut Arc<Suspects>, signed: Signed| {
        let maker = signed.maker().key();
        if Arc::make_mut(suspects).note(signed) {
            let shelf = std::slice::from_ref(&host.shelf);
            shelf::retract(shelf, digest, maker, ChunkIndex(0)).unwrap();
        }
    };
    let last = world.spec.geometry.chunks() - 1;
    for walk in 1..=200 {
        loop {
            let held = host.shelf.held(digest);
            let Some(chunk) = held.first_missing() else {
                break;
            };
            let signed = &truth[chunk.0 as usize];
            if chunk.0 < last {
                let (link, bytes) = invention(world, chunk, signed.link.before);
                let receipt = world.give(&host, &suspects, lie(walk, chunk, link), &bytes);
                if let Some(signed) = receipt.false_link {
                    note(&mut suspects, *signed);
                }
                if receipt.result.is_ok() {
                    continue;
                }
            }
            let receipt = world.give(&host, &suspects, signed.clone(), world.bytes(chunk));
            assert_eq!(receipt.result, Ok(()), "{chunk}");
        }
        let verdicts = host.shelf.walk(digest).unwrap();
        if host.shelf.is_closed(digest) {
            return walk;
        }
        let first = verdicts.into_iter().next().unwrap();
        let false_link = Signed {
            content: digest,
            chunk: first.chunk,
            link: first.link,
            statement: first.statement.unwrap(),
        };
        note(&mut suspects, false_link);
    }
    panic!("a liar holds a content up for ever");
}

#[test]
fn a_liar_costs_a_few_walks_however_it_signs() {
    let world = World::new(24);
    let digest = world.spec.digest;
    let liar = world.host("liar");
    let number = std::cell::Cell::new(10);
    let ticket = || {
        number.set(number.get() + 1);
        let key = liar.notary.key();
        let ticket = world
            .authority
            .ticket(Some(digest), "liar", key, number.get(), u64::MAX);
        liar.notary.lease(digest, Some(&ticket)).unwrap();
    };
    let sign = |chunk, link| {
        let run = liar.notary.run(&digest, None).unwrap();
        liar.notary.sign(digest, chunk, link, &run)
    };
    let all = |lie: &mut dyn FnMut(usize, ChunkIndex, Link) -> Signed| walks(&world, lie);
    // all lies in one run: its links don't join, so that only one chunk of them is taken
    let run = liar.notary.run(&digest, None).unwrap();
    let one_run = all(&mut |_, chunk, link| liar.notary.sign(digest, chunk, link, &run));
    // a run for each lie: a walk drops all links under a ticket, and after three runs nothing under the ticket is taken
    let one_ticket = all(&mut |_, chunk, link| sign(chunk, link));
    let mut last = 0;
    let a_ticket_a_walk = all(&mut |walk, chunk, link| {
        if std::mem::replace(&mut last, walk) != walk {
            ticket();
        }
        sign(chunk, link)
    });
    let a_ticket_a_lie = all(&mut |_, chunk, link| {
        ticket();
        sign(chunk, link)
    });
    let vouched = all(&mut |_, chunk, link| liar.notary.vouch(digest, chunk, link).unwrap());
    let walks = [
        one_run,
        one_ticket,
        a_ticket_a_walk,
        a_ticket_a_lie,
        vouched,
    ];
    println!("walks: {walks:?}");
    assert!(walks.iter().all(|walks| *walks <= 6), "{walks:?}");
}

#[test]
fn what_a_maker_of_false_links_vouches_for_later_is_taken() {
    let world = World::new(2);
    let (host, misled) = (world.host("host"), world.host("misled"));
    let (digest, links) = (world.spec.digest, world.links());
    let mut suspects = Suspects::default();
    let mut dropped = 0;
    for number in 10..30 {
        let key = misled.notary.key();
        let ticket = world
            .authority
            .ticket(Some(digest), "misled", key, number, u64::MAX);
        misled.notary.lease(digest, Some(&ticket)).unwrap();
        let signed = misled.made(digest, &links).remove(0);
        let refused = suspects.refuse(&signed.statement.run);
        assert_eq!(refused, number >= 18, "{number}");
        dropped += usize::from(suspects.note(signed));
    }
    assert_eq!(dropped, 1);
    let mut suspects = Arc::new(suspects);
    let made = misled.made(digest, &links).remove(0);
    let refused = world.give(&host, &suspects, made, world.bytes(ChunkIndex(0)));
    assert_eq!(refused.result, Err(Failure::Disproved));
    assert!(!refused.false_bytes, "nobody is blamed for that");
    let vouched = misled
        .notary
        .vouch(digest, ChunkIndex(0), links[0])
        .unwrap();
    let taken = world.give(&host, &suspects, vouched, world.bytes(ChunkIndex(0)));
    assert_eq!(taken.result, Ok(()));
    assert_eq!(suspects.take().len(), 8);
}
