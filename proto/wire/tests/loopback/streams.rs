//! Messages and bytes on streams: what arrives, what is refused, and what an end looks like from the other side.

use bytes::Bytes;
use proto::{
    codec::{DecodeError, Framed},
    message::{PartHeader, PeerOpen, PeerUpdate, PushReply, Updates, peer_open::Kind},
};
use tokio::task::JoinSet;
use wire::{Connection, ReceiveError, Receiver, SendError, Sender, StreamCode};

use crate::fleet::{Pair, pair};

/// A stream that one side opened with these first bytes, and the other accepted.
async fn stream(
    connections: &(Connection, Connection),
    first: &'static [u8],
) -> ((Sender, Receiver), (Sender, Receiver)) {
    let (mut sender, receiver) = connections.0.open().await.unwrap();
    sender.write(Bytes::from_static(first)).await.unwrap();
    ((sender, receiver), connections.1.accept().await.unwrap())
}

fn updates() -> PeerOpen {
    PeerOpen {
        kind: Some(Kind::Updates(Updates::default())),
    }
}

#[tokio::test]
async fn messages_and_bytes_arrive_in_order() {
    let pair = pair().await;
    let (mut sender, mut answers) = pair.connections.0.open().await.unwrap();
    sender.send(&updates()).await.unwrap();
    sender.send(&PeerUpdate::default()).await.unwrap();
    sender
        .write(Bytes::from_static(b"raw bytes"))
        .await
        .unwrap();
    sender
        .send(&PushReply {
            outcome: 3,
            ..PushReply::default()
        })
        .await
        .unwrap();
    sender.finish().unwrap();

    let (mut replies, mut receiver) = pair.connections.1.accept().await.unwrap();
    assert_eq!(receiver.receive().await.unwrap(), Some(updates()));
    assert_eq!(
        receiver.receive().await.unwrap(),
        Some(PeerUpdate::default())
    );
    let mut raw = [0; 9];
    receiver.read_exact(&mut raw).await.unwrap();
    assert_eq!(&raw, b"raw bytes");
    assert_eq!(
        receiver.receive().await.unwrap(),
        Some(PushReply {
            outcome: 3,
            ..PushReply::default()
        })
    );
    assert_eq!(receiver.receive::<PushReply>().await.unwrap(), None);

    replies
        .send(&PushReply {
            outcome: 1,
            ..PushReply::default()
        })
        .await
        .unwrap();
    replies.finish().unwrap();
    assert_eq!(
        answers.receive().await.unwrap(),
        Some(PushReply {
            outcome: 1,
            ..PushReply::default()
        })
    );
    assert_eq!(replies.stopped().await.unwrap(), None);
    assert_eq!(replies.finish(), Err(SendError::Ended));
}

#[tokio::test]
async fn a_message_in_many_pieces_survives_cancelled_receives() {
    let pair = pair().await;
    let message = PeerUpdate {
        have: vec![proto::message::Have {
            content: vec![7; 20_000],
            ..Default::default()
        }],
        ..Default::default()
    };
    let encoded = Bytes::from(proto::codec::encode(&message).unwrap());
    let (mut sender, _answers) = pair.connections.0.open().await.unwrap();
    sender.write(encoded.slice(..1)).await.unwrap();
    let (_replies, mut receiver) = pair.connections.1.accept().await.unwrap();
    let mut sent = 1;
    let received = loop {
        // whatever has arrived is taken, and the call given up when it would wait
        tokio::select! {
            biased;
            received = receiver.receive::<PeerUpdate>() => break received,
            () = tokio::task::yield_now() => {}
        }
        if sent < encoded.len() {
            let end = (sent + 333).min(encoded.len());
            sender.write(encoded.slice(sent..end)).await.unwrap();
            sent = end;
        }
    };
    assert_eq!(received.unwrap(), Some(message));
}

#[tokio::test]
async fn an_oversized_message_is_an_error_not_an_allocation() {
    let pair = pair().await;
    // one byte over the limit; 2^63; a length that never ends
    for prefix in [
        &b"\x41"[..],
        b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let (_keep, (_replies, mut receiver)) = stream(&pair.connections, prefix).await;
        let error = receiver.receive::<PartHeader>().await.unwrap_err();
        assert!(
            matches!(
                error,
                ReceiveError::Message(DecodeError::TooLong { .. } | DecodeError::Length)
            ),
            "{error}"
        );
    }
    let (mut sender, _) = pair.connections.0.open().await.unwrap();
    let over = PeerUpdate {
        have: vec![proto::message::Have {
            content: vec![0; PeerUpdate::MAX_BYTES],
            ..Default::default()
        }],
        ..Default::default()
    };
    assert!(matches!(
        sender.send(&over).await,
        Err(SendError::Message(DecodeError::TooLong { .. }))
    ));
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let pair = pair().await;
    let (_keep, (_replies, mut receiver)) = stream(&pair.connections, b"\x03\xff\xff\xff").await;
    assert!(matches!(
        receiver.receive::<PeerOpen>().await,
        Err(ReceiveError::Message(DecodeError::Body(_)))
    ));
}

#[tokio::test]
async fn a_stream_that_ends_early_is_an_error() {
    let pair = pair().await;
    let ((mut sender, _answers), (_replies, mut receiver)) =
        stream(&pair.connections, b"\x05abc").await;
    sender.finish().unwrap();
    assert_eq!(
        receiver.receive::<PeerOpen>().await,
        Err(ReceiveError::Truncated { received: 4 })
    );

    let ((mut sender, _answers), (_replies, mut receiver)) =
        stream(&pair.connections, b"abc").await;
    sender.finish().unwrap();
    assert_eq!(
        receiver.read_exact(&mut [0; 4]).await,
        Err(ReceiveError::Truncated { received: 3 })
    );
}

#[tokio::test]
async fn reset_and_stop_arrive_with_their_codes() {
    let pair = pair().await;
    let ((mut sender, _answers), (_replies, mut receiver)) =
        stream(&pair.connections, b"\x05abc").await;
    sender.reset(StreamCode(77));
    let error = loop {
        // bytes that arrived before the reset may still be read
        match receiver.piece(16).await {
            Ok(Some(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(error, ReceiveError::Reset(StreamCode(77)));

    let ((mut sender, _answers), (_replies, mut receiver)) =
        stream(&pair.connections, b"abc").await;
    receiver.stop(StreamCode::CANCELLED);
    assert_eq!(sender.stopped().await.unwrap(), Some(StreamCode::CANCELLED));
    assert_eq!(
        sender.write(Bytes::from_static(b"more")).await,
        Err(SendError::Stopped(StreamCode::CANCELLED))
    );
}

#[tokio::test]
async fn halves_that_are_dropped_never_look_like_an_end() {
    let pair = pair().await;
    let ((sender, answers), (replies, mut receiver)) = stream(&pair.connections, b"\x05abc").await;
    drop(sender);
    let error = receiver.receive::<PeerOpen>().await.unwrap_err();
    assert_eq!(error, ReceiveError::Reset(StreamCode::ABANDONED));
    drop(answers);
    assert_eq!(
        replies.stopped().await.unwrap(),
        Some(StreamCode::ABANDONED)
    );
}

#[tokio::test]
async fn the_loss_of_the_connection_ends_its_streams() {
    let pair = pair().await;
    let ((mut sender, _answers), (_replies, mut receiver)) = stream(&pair.connections, b"x").await;
    pair.connections.0.close(wire::CloseCode::Done, "bye");
    let error = receiver.read_exact(&mut [0; 64]).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ReceiveError::Closed(wire::CloseReason::Peer { reason, .. }) if reason == "bye"
        ),
        "{error}"
    );
    let error = sender.write(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(
        matches!(error, SendError::Closed(wire::CloseReason::Local { .. })),
        "{error}"
    );
}

/// 64 MiB each way at once, in pieces of 1 MiB on streams of their own, checked byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_exchange_64_mib_both_ways() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 64;
    let Pair {
        endpoints,
        connections: (a, b),
    } = pair().await;
    let source = pattern(PIECE + PIECES);
    let mut tasks = JoinSet::new();
    for (from, to) in [(&a, &b), (&b, &a)] {
        let (from, bytes) = (from.clone(), source.clone());
        tasks.spawn(async move {
            let mut sending = JoinSet::new();
            for index in 0..PIECES {
                let (mut sender, _answers) = from.open().await.unwrap();
                let bytes = bytes.slice(index..index + PIECE);
                sending.spawn(async move {
                    let outcome = i32::try_from(index).unwrap();
                    let header = PushReply {
                        outcome,
                        ..PushReply::default()
                    };
                    sender.send(&header).await.unwrap();
                    sender.write(bytes).await.unwrap();
                    sender.finish().unwrap();
                    assert_eq!(sender.stopped().await.unwrap(), None);
                });
            }
            while let Some(done) = sending.join_next().await {
                done.unwrap();
            }
        });
        let (to, bytes) = (to.clone(), source.clone());
        tasks.spawn(async move {
            // streams are read at the same time: the windows are shared, and the first to come needn't be the first to
            // be opened
            let mut receiving = JoinSet::new();
            for _ in 0..PIECES {
                let (_replies, mut receiver) = to.accept().await.unwrap();
                let bytes = bytes.clone();
                receiving.spawn(async move {
                    let header: PushReply = receiver.receive().await.unwrap().unwrap();
                    let index = usize::try_from(header.outcome).unwrap();
                    let mut body = vec![0; PIECE];
                    receiver.read_exact(&mut body).await.unwrap();
                    assert!(body == bytes[index..index + PIECE], "piece {index}");
                    assert_eq!(receiver.piece(1).await.unwrap(), None);
                    index
                });
            }
            let mut seen = std::collections::BTreeSet::new();
            while let Some(index) = receiving.join_next().await {
                assert!(seen.insert(index.unwrap()));
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(a.stats().mtu > 1_200, "{:?}", a.stats());
    assert!(a.stats().sent_bytes > (PIECE * PIECES) as u64);
    drop(endpoints);
}

/// Bytes without a short period.
fn pattern(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

#[tokio::test]
async fn a_message_overtakes_the_bulk_bytes_of_another_stream() {
    let pair = pair().await;
    let (sending, receiving) = &pair.connections;
    // as much as a window holds: it leaves without anybody reading it, for as long as that takes
    let ((mut bulk, _), (_, mut bytes)) = stream(&pair.connections, b"first").await;
    bulk.write(vec![1; 7 << 20].into()).await.unwrap();
    bulk.finish().unwrap();
    let mut came = 0;
    while came <= 64 << 10 {
        came += bytes.piece(64 << 10).await.unwrap().unwrap().len();
    }
    let (mut sender, _answers) = sending.open().await.unwrap();
    sender.send(&updates()).await.unwrap();

    let message = async {
        let (_replies, mut receiver) = receiving.accept().await.unwrap();
        receiver.receive::<PeerOpen>().await.unwrap()
    };
    tokio::pin!(message);
    loop {
        tokio::select! {
            biased;
            piece = bytes.piece(64 << 10) => {
                came += piece.unwrap().expect("the message came before the end").len();
            }
            message = &mut message => {
                assert_eq!(message, Some(updates()));
                break;
            }
        }
    }
    assert!(came < 7 << 20, "{came} bytes came before the message");
}
