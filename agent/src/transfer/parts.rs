//! Tests of chunks of which a host lacks a part, over real connections.

use std::{ops::Range, sync::Arc, time::SystemTime};

use proto::{ChunkIndex, Geometry, HostId};
use swarm::event::ContentId;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use wire::{Authorised, Endpoint, Settings};

use super::{liars::registry, *};
use crate::{
    fetch::{self, FetchEnd, News},
    identity::tests::Authority,
    notary::tests::notary,
    registries::Access,
    shelf::Shelf,
    store::{
        Stage,
        tests::{
            begin, begin_by,
            blocks::{CHANGED, Releases},
            fill, open,
        },
    },
    transfer::header as whole_header,
};

/// A host with the new release, and one that has the old release and a part of the chunk that changed.
struct World {
    authority: Authority,
    releases: Releases,
    holder: Subject,
    to: Subject,
    _home: TempDir,
}

impl World {
    fn new() -> Self {
        Self::of(Releases::new())
    }

    /// Where the other host looks for the part by false blocks: what it has of the chunk isn't the chunk's.
    fn with_false_blocks() -> Self {
        Self::of(Releases::with_false_blocks())
    }

    /// The other host has the old release, and begins the new one without a recipe.
    fn without_recipe() -> Self {
        let releases = Releases::new();
        let (lacks, copied) = begin(&releases.store, &releases.new, &[]);
        assert!(copied < 1 << 20, "{copied}");
        Self::among(releases, lacks)
    }

    fn of(releases: Releases) -> Self {
        let (lacks, _) = releases.begin();
        Self::among(releases, lacks)
    }

    fn among(releases: Releases, lacks: Arc<Stage>) -> Self {
        let authority = Authority::new();
        let home = tempfile::tempdir().unwrap();
        let (holds, _) = begin_by(&open(&home), &releases.new, &releases.by);
        fill(&holds, &releases.new);
        Self {
            holder: subject(&authority, &releases, "mac-1", holds),
            to: subject(&authority, &releases, "mac-2", lacks),
            authority,
            releases,
            _home: home,
        }
    }

    fn chunk(&self) -> &[u8] {
        &self.releases.raw()[1 << 20..2 << 20]
    }

    fn stage(&self) -> &Stage {
        match &self.to.shelves[0] {
            Shelf::Stage(stage) => stage,
            Shelf::Blob(_) => unreachable!("the shelf is a stage"),
        }
    }

    fn is_held(&self) -> bool {
        let mut shelves = self.to.shelves.iter();
        shelves.all(|shelf| shelf.held(self.releases.layer).contains(CHANGED))
    }

    /// The chunk as the holder sends it, with its header.
    async fn packed(&self) -> (ChunkHeader, Packed) {
        let packed = load(self.holder.clone()).await.unwrap();
        let recipes = self.holder.recipes();
        let header = whole_header((self.releases.layer, CHANGED), &packed, &recipes);
        (header, packed)
    }

    /// The other host gets these bytes in place of the part that it lacks.
    async fn take(&self, lacking: &Lacking, came: (Encoding, Bytes)) -> Receipt {
        let (header, _) = self.packed().await;
        let checked = check(&self.to, header.link.as_ref()).unwrap();
        store_part(&self.to, peer("mac-1"), (checked, lacking), came)
    }

    /// Two connected endpoints: the holder's, and the other host's.
    async fn connected(&self) -> ([Endpoint; 2], [Connection; 2]) {
        let endpoints = ["mac-1", "mac-2"].map(|name| {
            let later = SystemTime::now() + Duration::from_hours(1);
            let credentials = self.authority.identity(name, later).credentials().unwrap();
            let loopback = "127.0.0.1:0".parse().unwrap();
            let endpoint = Endpoint::bind(loopback, credentials, &Settings::default()).unwrap();
            endpoint.authorise(Authorised::Anyone);
            endpoint
        });
        let address = endpoints[0].local_addr().unwrap();
        let name = "mac-1".parse().unwrap();
        let (dialled, accepted) = tokio::join!(endpoints[1].connect(address, &name), async {
            endpoints[0].accept().await.unwrap().establish().await
        });
        let connections = [accepted.unwrap(), dialled.unwrap()];
        (endpoints, connections)
    }
}

/// What the other side opens next: it asks for a chunk.
async fn requested(connection: &Connection) -> (Sender, Receiver, ChunkRequest) {
    let (sender, mut receiver) = connection.accept().await.unwrap();
    let open: PeerOpen = receiver.receive().await.unwrap().unwrap();
    let Some(peer_open::Kind::Request(request)) = open.kind else {
        panic!("{open:?}");
    };
    (sender, receiver, request)
}

/// What the other side opens next: it offers a chunk. With the chunk's header, and whether parts of it are sent.
async fn offered(connection: &Connection) -> (Sender, Receiver, (ChunkHeader, bool)) {
    let (sender, mut receiver) = connection.accept().await.unwrap();
    let open: PeerOpen = receiver.receive().await.unwrap().unwrap();
    let Some(peer_open::Kind::Push(push)) = open.kind else {
        panic!("{open:?}");
    };
    (sender, receiver, (push.header.unwrap(), push.sends_parts))
}

fn peer(name: &str) -> HostKey {
    let host: HostId = name.parse().unwrap();
    host.key()
}

fn subject(authority: &Authority, releases: &Releases, name: &str, stage: Arc<Stage>) -> Subject {
    Subject {
        content: releases.layer,
        geometry: Geometry::new(releases.raw().len() as u64).unwrap(),
        chunk: CHANGED,
        shelves: vec![Shelf::Stage(stage)],
        cache: Arc::default(),
        notary: Arc::new(notary(authority, name, releases.layer)),
        retracted: None,
        suspects: Arc::default(),
        unfit: Arc::default(),
    }
}

#[tokio::test]
async fn a_request_for_what_is_lacking_moves_that_alone() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_endpoints, [holder, to]) = world.connected().await;
    let served = async {
        let (sender, _receiver, request) = requested(&holder).await;
        serve(sender, request.lacking, world.holder.clone()).await
    };
    let (receipt, shipment) = tokio::join!(request(to, world.to.clone()), served);
    assert_eq!(receipt.result, Ok(()));
    assert!(world.is_held());
    // noise doesn't pack
    assert_eq!(receipt.wire_bytes, lacking.bytes() as u64);
    assert_eq!(shipment.wire_bytes, receipt.wire_bytes);
    assert!(receipt.wire_bytes < 80_000, "{}", receipt.wire_bytes);
    assert_eq!(receipt.local_bytes, (1 << 20) - receipt.wire_bytes);
}

#[tokio::test]
async fn a_push_moves_only_what_the_receiver_says_it_lacks() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_endpoints, [holder, to]) = world.connected().await;
    let taken = async {
        let (sender, receiver, offered) = offered(&to).await;
        let peer = to.host().key();
        accept_push(peer, offered, sender, receiver, world.to.clone()).await
    };
    let pushed = push(holder, world.holder.clone(), None);
    let (shipment, receipt) = tokio::join!(pushed, taken);
    assert_eq!(receipt.result, Ok(()));
    assert_eq!(shipment.delivery, Delivery::Stored);
    assert!(world.is_held());
    assert_eq!(receipt.wire_bytes, lacking.bytes() as u64);
    assert_eq!(shipment.wire_bytes, receipt.wire_bytes);
}

#[tokio::test]
async fn hosts_of_the_version_before_get_and_send_whole_chunks() {
    let world = World::new();
    let (_endpoints, [holder, to]) = world.connected().await;
    // it knows no ranges, neither in a request nor in a push
    let served = async {
        let (sender, mut receiver) = holder.accept().await.unwrap();
        let _open: PeerOpen = receiver.receive().await.unwrap().unwrap();
        serve(sender, None, world.holder.clone()).await
    };
    let (receipt, _) = tokio::join!(request(to.clone(), world.to.clone()), served);
    assert_eq!(receipt.result, Ok(()));
    assert_eq!((receipt.wire_bytes, receipt.local_bytes), (1 << 20, 0));

    let world = World::new();
    let (_endpoints, [holder, to]) = world.connected().await;
    let taken = async {
        let (sender, receiver, (header, _)) = offered(&to).await;
        let offered = (header, false);
        let peer = to.host().key();
        accept_push(peer, offered, sender, receiver, world.to.clone()).await
    };
    let pushed = push(holder, world.holder.clone(), None);
    let (_, receipt) = tokio::join!(pushed, taken);
    assert_eq!(receipt.result, Ok(()));
    assert_eq!((receipt.wire_bytes, receipt.local_bytes), (1 << 20, 0));
}

/// The holder offers a chunk to the other host.
async fn pushed(world: &World, chunk: ChunkIndex) -> (Shipment, Receipt) {
    let of = |subject: &Subject| Subject {
        chunk,
        ..subject.clone()
    };
    let (_endpoints, [holder, to]) = world.connected().await;
    let taken = async {
        let (sender, receiver, offered) = offered(&to).await;
        let peer = to.host().key();
        accept_push(peer, offered, sender, receiver, of(&world.to)).await
    };
    tokio::join!(push(holder, of(&world.holder), None), taken)
}

#[tokio::test]
async fn without_a_recipe_a_chunk_that_another_image_here_holds_isnt_sent() {
    let world = World::without_recipe();
    let holds = |chunk| world.stage().held(world.releases.layer).contains(chunk);
    // it lies before the page that was inserted
    let same = ChunkIndex(0);
    let (shipment, receipt) = pushed(&world, same).await;
    assert_eq!(receipt.result, Ok(()));
    assert_eq!((receipt.wire_bytes, receipt.local_bytes), (0, 1 << 20));
    assert_eq!(
        (shipment.delivery, shipment.wire_bytes),
        (Delivery::Already, 0)
    );
    assert!(holds(same));
    let held = world
        .stage()
        .read(world.releases.layer, same)
        .unwrap()
        .unwrap();
    assert!(held.bytes == world.releases.raw()[..1 << 20]);

    let (shipment, receipt) = pushed(&world, CHANGED).await;
    assert_eq!(receipt.result, Ok(()));
    assert_eq!((receipt.wire_bytes, receipt.local_bytes), (1 << 20, 0));
    assert_eq!(shipment.delivery, Delivery::Stored);
    assert!(holds(CHANGED));
}

#[tokio::test]
async fn a_chunk_with_anothers_fingerprint_is_sent() {
    let world = World::without_recipe();
    let (_endpoints, [holder, to]) = world.connected().await;
    let same = |subject: &Subject| Subject {
        chunk: ChunkIndex(0),
        ..subject.clone()
    };
    let here = load(same(&world.holder)).await.unwrap().link.fingerprint;
    // fingerprints are signed: who answers for the chunk says so
    let link = Link {
        fingerprint: here,
        ..load(world.holder.clone()).await.unwrap().link
    };
    let signed = world
        .holder
        .notary
        .vouch(world.releases.layer, CHANGED, link);
    let link = signed.unwrap().to_message();
    let taken = async {
        let (sender, receiver, (mut header, parts)) = offered(&to).await;
        header.link = Some(link);
        let peer = to.host().key();
        accept_push(peer, (header, parts), sender, receiver, world.to.clone()).await
    };
    let (shipment, receipt) = tokio::join!(push(holder, world.holder.clone(), None), taken);
    assert_eq!(receipt.result, Ok(()));
    assert_eq!((receipt.wire_bytes, receipt.local_bytes), (1 << 20, 0));
    assert_eq!(shipment.delivery, Delivery::Stored);
    let held = world
        .stage()
        .read(world.releases.layer, CHANGED)
        .unwrap()
        .unwrap();
    assert!(held.bytes == world.chunk());
}

/// The peer sends this as the part that the other host lacks.
async fn took(world: &World, sender: &str, came: (Encoding, Bytes)) -> Receipt {
    let lacking = world.to.lacking(peer("mac-9")).unwrap();
    let (header, _) = world.packed().await;
    let checked = check(&world.to, header.link.as_ref()).unwrap();
    store_part(&world.to, peer(sender), (checked, &lacking), came)
}

/// The peer sends the whole chunk.
async fn took_whole(world: &World, sender: &str) -> Receipt {
    let (header, packed) = world.packed().await;
    let checked = check(&world.to, header.link.as_ref()).unwrap();
    let whole = (packed.encoding, packed.bytes);
    store(&world.to, peer(sender), checked, whole)
}

#[tokio::test]
async fn nobody_strips_a_host_of_its_part_by_sending_nothing_and_the_whole_chunk_names_who_tried() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1"));
    assert!(lacking.is_some());
    for _ in 0..3 {
        let receipt = took(&world, "mac-3", (Encoding::Zero, Bytes::new())).await;
        assert_eq!(receipt.result, Err(Failure::Unfit));
        assert!(!receipt.false_bytes && !world.is_held(), "nobody knows yet");
    }
    // the peer itself is asked for the whole, and all others for the part
    assert_eq!(world.to.lacking(peer("mac-3")), None);
    assert_eq!(world.to.lacking(peer("mac-1")), lacking);
    let (_, packed) = world.packed().await;
    let came = lacking.unwrap().cut(&packed, 1 << 20).unwrap();
    let receipt = took(&world, "mac-1", came).await;
    assert_eq!(receipt.result, Ok(()));
    assert!(world.is_held() && receipt.local_bytes > 900_000);
    assert_eq!(receipt.liars, [peer("mac-3")]);
}

#[tokio::test]
async fn a_part_that_two_peers_cannot_complete_is_forgotten_and_who_sent_the_chunks_bytes_is_not_blamed()
 {
    let world = World::with_false_blocks();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_, packed) = world.packed().await;
    let (encoding, part) = lacking.cut(&packed, 1 << 20).unwrap();
    assert_eq!((encoding, part.len()), (Encoding::Raw, lacking.bytes()));
    let mut other = part.to_vec();
    other[7] ^= 1;
    let receipt = took(&world, "mac-3", (Encoding::Raw, other.into())).await;
    assert_eq!(receipt.result, Err(Failure::Unfit));
    let receipt = world.take(&lacking, (encoding, part.clone())).await;
    assert_eq!(receipt.result, Err(Failure::Unfit));
    assert!(receipt.liars.is_empty() && !world.is_held());
    // what was here may be what is false, so it isn't built upon again
    assert_eq!(world.to.lacking(peer("mac-9")), None);
    let receipt = world.take(&lacking, (encoding, part)).await;
    assert_eq!(receipt.result, Err(Failure::Cancelled));

    let receipt = took_whole(&world, "mac-2").await;
    assert_eq!(
        (receipt.result, &receipt.liars[..]),
        (Ok(()), &[peer("mac-3")][..])
    );
    assert!(world.is_held());
}

/// The other host fetches what it lacks of the layer from the registry. Returns what its driver hears.
async fn fetched(world: &World) -> Vec<News> {
    let blob = apple_lz4::encode(world.releases.raw());
    let (address, origin, _registry) = registry(blob.into()).await;
    let subject = &world.to;
    let contents = world.releases.new.layout.contents();
    let spec = contents.iter().find(|spec| spec.digest == subject.content);
    let (inbox, mut heard) = mpsc::channel(4);
    let (_until, until) = watch::channel(u32::MAX);
    let (_access, access) = watch::channel(Access::default());
    let mut job = fetch::Job {
        id: ContentId(0),
        content: subject.content,
        geometry: subject.geometry,
        kind: spec.unwrap().kind,
        range: None,
        shelves: subject.shelves.clone(),
        reference: format!("{address}/org/image:1"),
        access,
        me: "mac-2".parse().unwrap(),
        notary: Some(subject.notary.clone()),
        cache: subject.cache.clone(),
        unfit: subject.unfit.clone(),
        until,
        moved: Arc::default(),
        doubted: false,
        inbox,
    };
    let listen = async {
        let mut told = Vec::new();
        while let Some((_, news)) = heard.recv().await {
            told.push(news);
        }
        told
    };
    let fetch = async move { fetch::run(&origin, &mut job).await };
    let (end, told) = tokio::join!(fetch, listen);
    assert_eq!(end, FetchEnd::Done);
    told
}

#[tokio::test]
async fn the_registrys_bytes_judge_the_parts_that_peers_sent_before() {
    let liars = |told: Vec<News>| {
        let lies = told.into_iter().filter_map(|news| match news {
            News::Liars { chunk, peers } => Some((chunk, peers)),
            _ => None,
        });
        lies.collect::<Vec<_>>()
    };
    let world = World::new();
    let receipt = took(&world, "mac-3", (Encoding::Zero, Bytes::new())).await;
    assert_eq!(receipt.result, Err(Failure::Unfit));
    assert_eq!(
        liars(fetched(&world).await),
        [(CHANGED, vec![peer("mac-3")])]
    );
    assert!(world.is_held());
    assert_eq!(liars(fetched(&world).await), [], "it is judged once");

    // what was here is false, and the peer sent the chunk's bytes
    let world = World::with_false_blocks();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_, packed) = world.packed().await;
    let came = lacking.cut(&packed, 1 << 20).unwrap();
    let receipt = took(&world, "mac-1", came).await;
    assert_eq!(receipt.result, Err(Failure::Unfit));
    assert_eq!(liars(fetched(&world).await), []);
    assert_eq!(world.stage().false_parts(), 1);
}

#[tokio::test]
async fn a_request_whose_part_fits_nothing_asks_the_same_peer_for_the_whole_at_once() {
    let world = World::new();
    let (_endpoints, [holder, to]) = world.connected().await;
    let (header, _) = world.packed().await;
    let served = async {
        let (mut sender, mut receiver) = holder.accept().await.unwrap();
        let _open: PeerOpen = receiver.receive().await.unwrap().unwrap();
        let zeros = part::header(Encoding::Zero, &Bytes::new());
        let reply = ChunkReply {
            kind: Some(chunk_reply::Kind::Chunk(part::instead(&header, &zeros))),
        };
        sender.send(&reply).await.unwrap();
        sender.finish().unwrap();
        let (sender, _receiver, request) = requested(&holder).await;
        assert_eq!(request.lacking, None);
        serve(sender, request.lacking, world.holder.clone()).await
    };
    let (receipt, _) = tokio::join!(request(to, world.to.clone()), served);
    assert_eq!((receipt.result, receipt.wire_bytes), (Ok(()), 1 << 20));
    assert_eq!(receipt.liars, [peer("mac-1")]);
}

/// The receiver's side of one push.
async fn takes(to: &Connection, world: &World) -> Receipt {
    let (sender, receiver, offered) = offered(to).await;
    accept_push(to.host().key(), offered, sender, receiver, world.to.clone()).await
}

#[tokio::test]
async fn a_push_that_meets_false_blocks_brings_the_whole_at_once_and_shows_the_receiver_willing() {
    let world = World::with_false_blocks();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_endpoints, [holder, to]) = world.connected().await;
    let pushed = push(holder, world.holder.clone(), None);
    let (shipment, receipt) = tokio::join!(pushed, takes(&to, &world));
    assert_eq!(receipt.result, Ok(()));
    assert!(receipt.liars.is_empty() && world.is_held());
    assert_eq!(shipment.delivery, Delivery::Stored);
    let bytes = lacking.bytes() as u64 + (1 << 20);
    assert_eq!((shipment.wire_bytes, receipt.wire_bytes), (bytes, bytes));
    assert_eq!(world.stage().false_parts(), 1);
}

#[tokio::test]
async fn a_pusher_of_the_version_before_ends_with_the_part_and_is_asked_for_the_whole_next_time() {
    let world = World::with_false_blocks();
    let (_endpoints, [holder, to]) = world.connected().await;
    let (header, packed) = world.packed().await;
    let pushed = async {
        let (mut sender, mut receiver) = holder.open().await.unwrap();
        let push = ChunkPush {
            content: world.releases.layer.as_bytes().to_vec(),
            index: CHANGED.0,
            header: Some(header),
            spread: None,
            sends_parts: true,
        };
        let open = PeerOpen {
            kind: Some(peer_open::Kind::Push(push)),
        };
        sender.send(&open).await.unwrap();
        let (_, answer) = reply(&mut receiver).await.unwrap();
        let ranges = answer.lacking.unwrap();
        let part = send_part_header(&mut sender, &world.holder, &ranges, packed).await;
        write(&mut sender, part.unwrap()).await.unwrap();
        sender.finish().unwrap();
    };
    let (receipt, ()) = tokio::join!(takes(&to, &world), pushed);
    assert_eq!(receipt.result, Err(Failure::Unfit));
    assert!(!receipt.false_bytes && receipt.liars.is_empty());
    assert_eq!(world.to.lacking(peer("mac-1")), None);
    let receipt = took_whole(&world, "mac-1").await;
    assert_eq!((receipt.result, receipt.liars.len()), (Ok(()), 0));
}

#[tokio::test]
async fn a_receiver_of_the_version_before_sees_the_push_end_with_the_part() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_endpoints, [holder, to]) = world.connected().await;
    let taken = async {
        let (mut sender, mut receiver) = to.accept().await.unwrap();
        let _open: PeerOpen = receiver.receive().await.unwrap().unwrap();
        let accepted = PushReply {
            outcome: PushOutcome::Accepted.into(),
            lacking: Some(lacking.to_message()),
            may_want_whole: false,
        };
        sender.send(&accepted).await.unwrap();
        let part: PartHeader = receiver.receive().await.unwrap().unwrap();
        let mut bytes = vec![0; part.wire_bytes as usize];
        read(&mut receiver, &mut bytes).await.unwrap();
        assert_eq!(receiver.piece(1).await.unwrap(), None);
        say_how_a_push_ended(sender, PushOutcome::Failed).await;
    };
    let pushed = push(holder, world.holder.clone(), None);
    let (shipment, ()) = tokio::join!(pushed, taken);
    assert_eq!(shipment.delivery, Delivery::Broken);
}

#[tokio::test]
async fn a_link_that_is_not_the_recipes_says_nothing_about_what_is_here() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (header, packed) = world.packed().await;
    // another host signed another link than the recipe's, and one of the two is false
    let mut checked = check(&world.to, header.link.as_ref()).unwrap();
    let geometry = Geometry::new(world.releases.raw().len() as u64).unwrap();
    checked.link = Link::forge(geometry, CHANGED, packed.link.before, &vec![7; 1 << 20]);
    let came = lacking.cut(&packed, 1 << 20).unwrap();
    let receipt = store_part(&world.to, peer("mac-1"), (checked, &lacking), came);
    assert_eq!(receipt.result, Err(Failure::Disproved));
    assert_eq!(world.to.lacking(peer("mac-1")), Some(lacking));
}

#[tokio::test]
async fn a_part_of_another_length_is_its_senders_lie() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    for bytes in [lacking.bytes() - 1, 0] {
        let receipt = world
            .take(&lacking, (Encoding::Raw, vec![1; bytes].into()))
            .await;
        assert_eq!(receipt.result, Err(Failure::Bad));
        assert!(receipt.false_bytes && !receipt.other_size);
    }
    assert_eq!(
        world.to.lacking(peer("mac-1")),
        Some(lacking),
        "and what is here stays of use"
    );
}

#[tokio::test]
async fn a_base_that_went_while_the_rest_came_costs_the_transfer_and_nothing_else() {
    let world = World::new();
    let lacking = world.to.lacking(peer("mac-1")).unwrap();
    let (_, packed) = world.packed().await;
    let came = lacking.cut(&packed, 1 << 20).unwrap();
    let old = *world.releases.old.layout.digest();
    world.releases.store.abandon(old).unwrap();
    let receipt = world.take(&lacking, came).await;
    assert_eq!(receipt.result, Err(Failure::Cancelled));
    assert!(!world.is_held());
    assert_eq!(
        world.to.lacking(peer("mac-1")),
        None,
        "nothing of the chunk is here any more"
    );
}

#[tokio::test]
async fn ranges_that_a_chunk_doesnt_have_are_refused_and_most_of_a_chunk_is_asked_for_whole() {
    let world = World::new();
    for bounds in [vec![], vec![0, 2 << 20], vec![4096, 0], vec![1, 4096]] {
        let ranges = Ranges { bounds };
        assert_eq!(Lacking::parse(&ranges, 1 << 20), Err(()), "{ranges:?}");
    }
    let (_, packed) = world.packed().await;
    let pages = [0..8192u32, 12_288..16_384];
    let some = Lacking::parse(&Ranges::new(&pages), 1 << 20).unwrap();
    let (_, bytes) = some.cut(&packed, 1 << 20).unwrap();
    let expected = [&world.chunk()[..8192], &world.chunk()[12_288..16_384]].concat();
    assert_eq!(bytes, expected);
    // a holder whose chunk is shorter than it says sends nothing
    assert_eq!(some.cut(&packed, 4096), None);
    // nothing is asked of a chunk that is here
    assert_eq!(
        Subject {
            chunk: ChunkIndex(0),
            ..world.to.clone()
        }
        .lacking(peer("mac-1")),
        None
    );
}

/// A host asks for these pages of a chunk, or for all of it, and takes what comes if it `takes`.
async fn asks(
    world: &World,
    [holder, to]: &[Connection; 2],
    pages: Option<Range<u32>>,
    takes: bool,
) -> Shipment {
    let asked = async {
        let (mut sender, mut receiver) = to.open().await.unwrap();
        let lacking = pages.map(|pages| Ranges::new(&[pages]));
        let request = ChunkRequest {
            content: world.releases.layer.as_bytes().to_vec(),
            index: CHANGED.0,
            lacking,
        };
        let open = PeerOpen {
            kind: Some(peer_open::Kind::Request(request)),
        };
        sender.send(&open).await.unwrap();
        sender.finish().unwrap();
        if !takes {
            receiver.stop(StreamCode::CANCELLED);
            return;
        }
        let reply: ChunkReply = receiver.receive().await.unwrap().unwrap();
        let Some(chunk_reply::Kind::Chunk(header)) = reply.kind else {
            panic!("{reply:?}");
        };
        let mut wire = vec![0; header.wire_bytes as usize];
        read(&mut receiver, &mut wire).await.unwrap();
        assert_eq!(receiver.piece(1).await.unwrap(), None);
    };
    let served = async {
        let (sender, _receiver, request) = requested(holder).await;
        serve(sender, request.lacking, world.holder.clone()).await
    };
    let (shipment, ()) = tokio::join!(served, asked);
    shipment
}

#[tokio::test]
async fn a_part_counts_as_the_work_that_it_is_and_the_whole_is_not_packed_for_it() {
    let world = World::new();
    let (_endpoints, line) = world.connected().await;
    let part = asks(&world, &line, Some(0..4096), true).await;
    assert_eq!(part.delivery, Delivery::Stored);
    assert_eq!((part.wire_bytes, part.work_bytes), (4096, 512 << 10));
    // also one that the peer gives up: the work was done
    let part = asks(&world, &line, Some(0..4096), false).await;
    assert_eq!(part.delivery, Delivery::Broken);
    assert_eq!(part.work_bytes, 512 << 10);
    let cache = &world.holder.cache;
    let cached = cache.find(world.holder.content, world.holder.chunk);
    assert!(cached.is_none(), "the whole chunk was packed");
    // more bytes are more work
    let part = asks(&world, &line, Some(0..600 << 10), true).await;
    assert_eq!((part.wire_bytes, part.work_bytes), (600 << 10, 600 << 10));
    let whole = asks(&world, &line, None, true).await;
    assert_eq!((whole.wire_bytes, whole.work_bytes), (1 << 20, 1 << 20));
    let whole = asks(&world, &line, None, false).await;
    assert_eq!(
        (whole.delivery, whole.work_bytes),
        (Delivery::Broken, 1 << 20)
    );
}

/// The processor time of this thread so far.
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

/// The time on the line is this thread's, which sends and receives. The work on the disk is other threads', so this
/// thread does it once more.
#[tokio::test]
async fn a_part_of_a_page_takes_less_of_a_processor_than_the_whole_chunk() {
    const TIMES: u32 = 64;
    let world = World::new();
    let (_endpoints, line) = world.connected().await;
    let subject = &world.holder;
    let bounds = vec![0, 4096];
    let lacking = Lacking::parse(&Ranges { bounds }, 1 << 20).unwrap();
    let mut took = Vec::new();
    for part in [true, false] {
        let began = processor_time();
        for _ in 0..TIMES {
            subject.cache.forget(subject.content, subject.chunk);
            let pages = part.then_some(0..4096);
            asks(&world, &line, pages, true).await;
        }
        let sent = processor_time();
        for _ in 0..TIMES {
            if part {
                load_part_now(subject, &lacking).unwrap();
            } else {
                pack(read_raw(subject).unwrap().bytes.into());
            }
        }
        took.push(((sent - began) / TIMES, (processor_time() - sent) / TIMES));
    }
    let [part, whole] = [0, 1].map(|at: usize| took[at].0 + took[at].1);
    println!("on the line, and at the disk: {took:?}, for a part and for the whole");
    assert!(part < whole, "{part:?}, {whole:?}");
}
