//! What it costs to answer for a chunk: signing and checking a link, beside what a chunk costs anyway.
//!
//! `cargo bench -p wire --bench signing` prints microseconds per chunk of 1 MiB.
#![allow(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, Digest, Geometry, Link, Signed, State, Ticket, chain,
    statement::{Run, Verify as _},
};
use rcgen::{PublicKeyData as _, SigningKey as _};
use wire::{LinkSigner, Signatures};

/// Each figure is the best of so many rounds: the machine has other work.
const ROUNDS: u32 = 20;

fn best(count: u32, mut run: impl FnMut(u32)) -> f64 {
    let mut best = Duration::MAX;
    for round in 0..ROUNDS {
        let began = Instant::now();
        for at in 0..count {
            run(round * count + at);
        }
        best = best.min(began.elapsed() / count);
    }
    best.as_secs_f64() * 1e6
}

fn main() {
    let authority = rcgen::KeyPair::generate().expect("a key");
    let signer = LinkSigner::from_seed(&[7; 32]);
    let (content, host) = (Digest::of(b"content"), "mini-1".parse().expect("a host"));
    let sign = |bytes: &[u8]| authority.sign(bytes);
    let ticket = Ticket::issue(Some(content), &host, signer.public(), 1, u64::MAX, sign);
    let ticket = Arc::new(ticket.expect("a ticket"));
    let run = Arc::new(Run::made(ticket.clone(), 1, None));
    let link = Link::forge(
        Geometry::new(4).expect("small"),
        ChunkIndex(0),
        State::INITIAL,
        b"tart",
    );
    let signed = |at: u32| {
        let sign = |bytes: &[u8]| signer.sign(bytes);
        Signed::new(content, ChunkIndex(at), link, run.clone(), sign)
    };
    let key = authority.der_bytes();
    let signatures = Signatures::of_authority(key);
    let all: Vec<_> = (0..ROUNDS * 100)
        .map(|at| signed(at).to_message())
        .collect();

    let hash = {
        let geometry = Geometry::new(1 << 30).expect("a size");
        let bytes: Vec<u8> = (0u32..1 << 18).flat_map(u32::to_le_bytes).collect();
        best(10, |at| {
            black_box(chain::step(
                geometry,
                ChunkIndex(at),
                State::INITIAL,
                &bytes,
            ));
        })
    };
    let made = best(100, |at| {
        black_box(signed(at));
    });
    // reading it from the wire too; its ticket is known from the one before
    let checked = best(100, |at| {
        let message = &all[at as usize];
        let parsed = Signed::parse(content, ChunkIndex(at), message).expect("well-formed");
        assert_eq!(parsed.verify(0, false, &signatures), Ok(()));
    });
    let first = best(20, |_| {
        assert!(Signatures::of_authority(key).ticket(&ticket));
    });
    println!("hashing 1 MiB              {hash:8.1} us");
    println!("signing a link             {made:8.1} us");
    println!("checking a link            {checked:8.1} us");
    println!("checking a ticket, once    {first:8.1} us");
    println!(
        "both, beside hashing       {:8.2} %",
        (made + checked) / hash * 100.0
    );
    // at 1 Gbit/s a host takes 119 chunks a second and checks each, and signs as many that it passes on
    println!(
        "one processor, 1 Gbit/s    {:8.2} %",
        (made + checked) * 119.0 / 1e4
    );
    println!(
        "bytes in a header          {:8}",
        prost_len(&signed(1).to_message())
    );
}

fn prost_len(link: &proto::message::Link) -> usize {
    let header = proto::message::ChunkReply {
        kind: Some(proto::message::chunk_reply::Kind::Chunk(
            proto::message::ChunkHeader {
                link: Some(link.clone()),
                wire_bytes: 1 << 20,
                ..proto::message::ChunkHeader::default()
            },
        )),
    };
    proto::codec::encode(&header).expect("it fits").len()
}
