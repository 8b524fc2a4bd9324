//! Messages: any bytes are one within its limit, or an error; what decodes is the same after another trip.

use std::fmt::Debug;

use proto::{
    ChunkSet, Link, State,
    chunks::Geometry,
    codec::{Framed, decode, encode, prefix},
    message::{
        ChunkHeader, ChunkPush, ChunkReply, ChunkRequest, CoordinatorOpen, Have, Hello, Load,
        Order, PartHeader, PeerOpen, PeerUpdate, PushReply, Ranges, Renewed, Report, Spread,
        chunk_reply, coordinator_open, peer_open,
    },
};

/// Chunks of the content whose announcements are read: not a multiple of a word's bits.
const CHUNKS: u32 = 1_000;

pub(crate) fn run(input: &[u8]) {
    framed::<PeerOpen>(input, |open| {
        if let Some(peer_open::Kind::Push(ChunkPush {
            header: Some(ChunkHeader {
                link: Some(link), ..
            }),
            ..
        })) = open.kind
        {
            reads_as_a_link(&link);
        }
    });
    framed::<PeerUpdate>(input, |update| {
        for have in update.have {
            reads_as_chunks(&have.runs);
        }
    });
    framed::<ChunkReply>(input, |reply| {
        if let Some(chunk_reply::Kind::Chunk(ChunkHeader {
            link: Some(link), ..
        })) = reply.kind
        {
            reads_as_a_link(&link);
        }
    });
    framed::<PushReply>(input, |reply| {
        if let Some(ranges) = reply.lacking {
            reads_as_ranges(&ranges);
        }
    });
    framed::<PartHeader>(input, drop);
    framed::<CoordinatorOpen>(input, drop);
    framed::<Report>(input, drop);
    framed::<Order>(input, drop);
    framed::<Renewed>(input, drop);
}

/// Ranges of a chunk: they lie in it, or are refused.
fn reads_as_ranges(ranges: &Ranges) {
    const CHUNK_BYTES: u32 = 1 << 20;
    if let Ok(parsed) = ranges.parse(CHUNK_BYTES) {
        assert!(
            parsed
                .iter()
                .all(|range| range.start < range.end && range.end <= CHUNK_BYTES)
        );
        assert_eq!(Ranges::new(&parsed), *ranges);
    }
}

/// As a stream's reader takes it: the length first, then so many bytes; and as bare bytes of a message.
fn framed<M: Framed + Clone + PartialEq + Debug>(input: &[u8], read: impl Fn(M)) {
    if let Ok(Some((length, start))) = prefix::<M>(input) {
        assert!(
            length <= M::MAX_BYTES && start <= 10,
            "{length} bytes after {start}"
        );
        if let Some(body) = input.get(start..start + length) {
            travels::<M>(body, &read);
        }
    }
    travels::<M>(input, &read);
}

fn travels<M: Framed + Clone + PartialEq + Debug>(body: &[u8], read: &impl Fn(M)) {
    let Ok(message) = decode::<M>(body) else {
        return;
    };
    // what was decoded within the limit is never longer when it is written again: varints only get shorter
    let wire = encode(&message).expect("a decoded message is within its limit");
    let (length, start) = prefix::<M>(&wire)
        .expect("our own prefix")
        .expect("the whole prefix is there");
    assert_eq!(length + start, wire.len());
    assert_eq!(decode::<M>(&wire[start..]).as_ref(), Ok(&message));
    read(message);
}

fn reads_as_a_link(link: &proto::message::Link) {
    if let Ok((parsed, maker)) = link.parse() {
        let again = proto::message::Link::new(&parsed, &maker).parse();
        assert_eq!(again, Ok((parsed, maker)));
    }
    let (content, chunk) = (proto::Digest::of(b"tart"), proto::ChunkIndex(3));
    if let Ok(signed) = proto::Signed::parse(content, chunk, link) {
        let again = proto::Signed::parse(content, chunk, &signed.to_message());
        assert_eq!(again.as_ref(), Ok(&signed));
        assert_eq!(
            again.map(|again| again.signed_bytes()),
            Ok(signed.signed_bytes())
        );
    }
}

fn reads_as_chunks(runs: &[u32]) {
    if let Ok(set) = ChunkSet::from_runs(CHUNKS, runs) {
        assert_eq!(set.iter().count(), set.count() as usize);
        assert!(set.iter().all(|chunk| chunk.0 < CHUNKS));
        assert_eq!(ChunkSet::from_runs(CHUNKS, &set.to_runs()), Ok(set));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let geometry = Geometry::new(4).expect("a small content");
    let link = Link::forge(geometry, proto::ChunkIndex(0), State::INITIAL, b"tart");
    let maker = "mac-001".parse().expect("a host id");
    let header = ChunkHeader {
        link: Some(proto::message::Link::new(&link, &maker)),
        wire_bytes: 4,
        ..ChunkHeader::default()
    };
    let content = proto::Digest::of(b"tart").as_bytes().to_vec();
    let open = |kind| wire(&PeerOpen { kind: Some(kind) });
    vec![
        open(peer_open::Kind::Request(ChunkRequest {
            content: content.clone(),
            index: 7,
            lacking: Some(Ranges::new(&[0..4096, 8192..12_288])),
        })),
        open(peer_open::Kind::Push(ChunkPush {
            content: content.clone(),
            index: 7,
            header: Some(header.clone()),
            spread: Some(Spread {
                everyone: false,
                targets: vec![1, 2, u64::MAX],
            }),
            sends_parts: true,
        })),
        wire(&PartHeader {
            encoding: 1,
            wire_bytes: 4096,
        }),
        wire(&PushReply {
            outcome: 7,
            lacking: Some(Ranges::new(&[0..4096, 8192..8196])),
            may_want_whole: false,
        }),
        wire(&PeerUpdate {
            have: vec![Have {
                content,
                runs: vec![0, 3, 60, 70, 1, 1],
                reset: true,
            }],
            load: Some(Load {
                backlog_bytes: 1 << 40,
                upload_bytes_per_second: 117_000_000,
            }),
        }),
        wire(&ChunkReply {
            kind: Some(chunk_reply::Kind::Chunk(header)),
        }),
        wire(&CoordinatorOpen {
            kind: Some(coordinator_open::Kind::Session(Hello {
                version: "0.1.0".into(),
                peer_port: 7_471,
                zone: "rack-1".into(),
                ..Hello::default()
            })),
        }),
        wire(&Renewed {
            certificates: vec![vec![0x30, 0x82, 1, 1]],
            error: String::new(),
        }),
    ]
}

fn wire<M: Framed>(message: &M) -> Vec<u8> {
    encode(message).expect("a small message")
}
