//! Connections to peers: each stream and its first message are handed to the driver. Nothing is decided here.

use std::time::Duration;

use proto::{
    HostKey,
    message::{ChunkPush, ChunkRequest, PeerOpen, PeerUpdate, Updates, peer_open},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use wire::{Connection, ReceiveError, Receiver, Sender};

/// The time within which a stream's first message has to follow its opening. The message is one packet.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most streams of one peer whose first message isn't read yet. More wait in the transport.
const UNREAD_STREAMS: usize = 64;

/// The first message of a peer's stream, or an update.
#[derive(Debug)]
pub(crate) enum Brought<A = Sender, B = Receiver> {
    /// A request, to be answered on `sender`.
    Request { request: ChunkRequest, sender: A },
    /// A push whose bytes follow on `receiver`.
    Push {
        push: Box<ChunkPush>,
        sender: A,
        receiver: B,
    },
    /// From now on the peer tells on this connection which chunks it holds. `life` is the number of this life of its
    /// program; 0 if the peer doesn't say.
    Introduced { serial: u64, life: u64 },
    /// The chunks that the peer holds, and its load.
    Update(PeerUpdate),
    /// The peer broke the protocol.
    Nonsense(String),
}

/// Reads what a peer sends until the connection ends, and returns why it ended. `serial` is the driver's number for the
/// connection.
///
/// `inbox` is bounded: a driver that is busy slows the peer down.
pub(crate) async fn listen(
    connection: Connection,
    serial: u64,
    inbox: mpsc::Sender<(HostKey, Brought)>,
) -> String {
    let peer = connection.host().key();
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept(), if streams.len() < UNREAD_STREAMS => match accepted {
                Ok((sender, receiver)) => {
                    let inbox = inbox.clone();
                    streams.spawn(async move { read(peer, serial, sender, receiver, inbox).await });
                }
                Err(error) => return error.to_string(),
            },
            Some(_ended) = streams.join_next() => {}
        }
    }
}

async fn read(
    peer: HostKey,
    serial: u64,
    sender: Sender,
    mut receiver: Receiver,
    inbox: mpsc::Sender<(HostKey, Brought)>,
) {
    let brought = match timeout(FIRST_MESSAGE_TIMEOUT, receiver.receive::<PeerOpen>()).await {
        Ok(Ok(Some(PeerOpen { kind: Some(kind) }))) => match kind {
            peer_open::Kind::Request(request) => Brought::Request { request, sender },
            peer_open::Kind::Push(push) => Brought::Push {
                push: Box::new(push),
                sender,
                receiver,
            },
            peer_open::Kind::Updates(Updates { life }) => {
                let introduced = Brought::Introduced { serial, life };
                if inbox.send((peer, introduced)).await.is_ok() {
                    updates(peer, receiver, inbox).await;
                }
                return;
            }
        },
        // a peer of a version that knows more kinds of streams than we do, or a peer that gave up
        Ok(Ok(_)) | Err(_) => return,
        Ok(Err(error @ ReceiveError::Message(_))) => Brought::Nonsense(error.to_string()),
        Ok(Err(_)) => return,
    };
    // the driver is gone only when the program ends
    drop(inbox.send((peer, brought)).await);
}

async fn updates(peer: HostKey, mut receiver: Receiver, inbox: mpsc::Sender<(HostKey, Brought)>) {
    loop {
        let brought = match receiver.receive::<PeerUpdate>().await {
            Ok(Some(update)) => Brought::Update(update),
            Ok(None) => return,
            Err(error @ ReceiveError::Message(_)) => Brought::Nonsense(error.to_string()),
            Err(_) => return,
        };
        let nonsense = matches!(brought, Brought::Nonsense(_));
        if inbox.send((peer, brought)).await.is_err() || nonsense {
            return;
        }
    }
}

/// Sends the driver's updates to a peer until the connection or the channel ends. `life` names this life of the
/// program.
pub(crate) async fn tell(
    connection: Connection,
    life: u64,
    mut updates: mpsc::Receiver<PeerUpdate>,
) {
    let Ok((mut sender, _receiver)) = connection.open().await else {
        return;
    };
    if sender
        .send(&PeerOpen {
            kind: Some(peer_open::Kind::Updates(Updates { life })),
        })
        .await
        .is_err()
    {
        return;
    }
    while let Some(update) = updates.recv().await {
        if sender.send(&update).await.is_err() {
            return;
        }
    }
}
