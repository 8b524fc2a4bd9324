//! One chunk on its way: packed for the wire, sent, received, checked against its link and stored.
//!
//! The crate `swarm` decides which host sends which chunk to which peer. This module carries that out.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    ChunkIndex, Digest, HostKey, Link,
    message::{
        ChunkHeader, ChunkPush, ChunkReply, ChunkRequest, Encoding, Link as WireLink, PartHeader,
        PeerOpen, PushOutcome, PushReply, Ranges, Refusal, Spread as WireSpread, chunk_reply,
        peer_open,
    },
};
use swarm::{
    action::Declined,
    event::{Delivery, Failure, Spread},
};
use wire::{Connection, Receiver, Sender, StreamCode};

use tokio::time::timeout;

mod arrival;
mod packed;
mod part;
mod unfit;

pub(crate) use self::arrival::{Receipt, Subject, settle};
pub(crate) use self::packed::{Cache, Packed, pack};
pub(crate) use self::unfit::Unfit;
use self::{
    arrival::{check, store, store_from_here, store_part},
    part::Lacking,
};

/// An upload that takes longer is given up. A MiB in this time is 280 kbit/s, far below a chunk's share of a fleet's
/// links. Receivers don't wait longer either.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A receiver that doesn't take this much, or says nothing, for [`STUCK`] is given up much sooner: a peer that takes or
/// sends a byte a second must not hold a place. The least rate is 13 kbit/s.
const PIECE_BYTES: usize = 16 << 10;
const STUCK: Duration = Duration::from_secs(10);

/// What the receiver made of a chunk that we sent.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub(crate) delivery: Delivery,
    pub(crate) wire_bytes: u64,
    /// Bytes whose sending is as much work as the upload was: more than went out where a peer asked for a part.
    pub(crate) work_bytes: u64,
}

impl Shipment {
    /// The chunk, or a part of it, didn't get there.
    const fn broken(wire_bytes: u64, work_bytes: u64) -> Self {
        Self {
            delivery: Delivery::Broken,
            wire_bytes,
            work_bytes,
        }
    }
}

/// Asks a peer for a chunk, or for what this host lacks of it, checks the chunk and stores it. If what comes doesn't
/// fit what is here, the peer is asked for the whole chunk at once.
pub(crate) async fn request(connection: Connection, subject: Subject) -> Receipt {
    let lacking = subject.lacking(connection.host().key());
    let receipt = ask(&connection, lacking, subject.clone()).await;
    if receipt.result != Err(Failure::Unfit) {
        return receipt;
    }
    ask(&connection, None, subject).await.after_unfit(&receipt)
}

async fn ask(connection: &Connection, lacking: Option<Lacking>, subject: Subject) -> Receipt {
    let Ok((mut sender, mut receiver)) = connection.open().await else {
        return Receipt::failed(Failure::Broken);
    };
    let request = ChunkRequest {
        content: subject.content.as_bytes().to_vec(),
        index: subject.chunk.0,
        lacking: lacking.as_ref().map(Lacking::to_message),
    };
    let open = PeerOpen {
        kind: Some(peer_open::Kind::Request(request)),
    };
    if sender.send(&open).await.is_err() || sender.finish().is_err() {
        return Receipt::failed(Failure::Broken);
    }
    match receiver.receive::<ChunkReply>().await {
        Ok(Some(ChunkReply {
            kind: Some(chunk_reply::Kind::Chunk(header)),
        })) => {
            // an agent of an older version sends the whole chunk, whatever it is asked for
            let lacking = lacking.filter(|_| header.lacking_only);
            take(
                connection.host().key(),
                (&header, lacking),
                (&mut receiver, Then::Nothing),
                subject,
            )
            .await
        }
        Ok(Some(ChunkReply {
            kind: Some(chunk_reply::Kind::Refusal(refusal)),
        })) => Receipt::failed(match Refusal::try_from(refusal) {
            Ok(Refusal::Busy) => Failure::Busy,
            Ok(Refusal::Missing) => Failure::Missing,
            _ => Failure::Refused,
        }),
        Ok(_) => Receipt::failed(Failure::Refused),
        Err(_) => Receipt::failed(Failure::Broken),
    }
}

/// Takes a pushed chunk, checks and stores it, and tells the sender the outcome. If another image here holds the chunk,
/// its bytes don't come. `sends_parts`: the sender sends only what this host lacks of the chunk, if this host says so.
pub(crate) async fn accept_push(
    peer: HostKey,
    (header, sends_parts): (ChunkHeader, bool),
    mut sender: Sender,
    mut receiver: Receiver,
    subject: Subject,
) -> Receipt {
    if let Some(receipt) = find_here(peer, &header, &subject).await {
        receiver.stop(StreamCode::CANCELLED);
        say_how_a_push_ended(sender, PushOutcome::Already).await;
        return receipt;
    }
    let lacking = sends_parts.then(|| subject.lacking(peer)).flatten();
    let accepted = PushReply {
        outcome: PushOutcome::Accepted.into(),
        lacking: lacking.as_ref().map(Lacking::to_message),
        may_want_whole: lacking.is_some(),
    };
    if sender.send(&accepted).await.is_err() {
        return Receipt::failed(Failure::Broken);
    }
    let receipt = match lacking {
        None => {
            let whole = (&mut receiver, Then::Nothing);
            take(peer, (&header, None), whole, subject).await
        }
        Some(lacking) => {
            let streams = (&mut sender, &mut receiver);
            take_part(peer, (&header, lacking), streams, subject).await
        }
    };
    let outcome = match receipt.result {
        Ok(()) => PushOutcome::Stored,
        Err(Failure::Bad | Failure::Disproved) => PushOutcome::Bad,
        Err(_) => PushOutcome::Failed,
    };
    // the sender may be gone; the stored chunk doesn't depend on it
    say_how_a_push_ended(sender, outcome).await;
    receipt
}

/// Takes the chunk that a peer offers from another image here, if one holds it.
async fn find_here(peer: HostKey, header: &ChunkHeader, subject: &Subject) -> Option<Receipt> {
    let message = header.link.as_ref()?;
    let (link, _) = message.parse().ok()?;
    // most chunks of most images are nowhere here: their signatures are checked once
    if !subject.may_be_here(&link) {
        return None;
    }
    let checked = check(subject, Some(message)).ok()?;
    let subject = subject.clone();
    let found = tokio::task::spawn_blocking(move || store_from_here(&subject, peer, &checked));
    found.await.ok().flatten()
}

/// Takes a part of a pushed chunk. If what comes doesn't fit what is here, the whole chunk follows at once.
async fn take_part(
    peer: HostKey,
    (header, lacking): (&ChunkHeader, Lacking),
    (sender, receiver): (&mut Sender, &mut Receiver),
    subject: Subject,
) -> Receipt {
    let part = match timeout(STUCK, receiver.receive::<PartHeader>()).await {
        Ok(Ok(Some(part))) => part::instead(header, &part),
        _ => return Receipt::failed(Failure::Broken),
    };
    let part = (&part, Some(lacking));
    let receipt = take(peer, part, (receiver, Then::Whole), subject.clone()).await;
    let wanted = PushReply {
        outcome: PushOutcome::Whole.into(),
        lacking: None,
        may_want_whole: false,
    };
    if receipt.result != Err(Failure::Unfit) || sender.send(&wanted).await.is_err() {
        return receipt;
    }
    // an agent of an older version doesn't know that outcome, and sends nothing more
    let whole = take(peer, (header, None), (receiver, Then::Nothing), subject).await;
    whole.after_unfit(&receipt)
}

/// Turns a pushed chunk away.
pub(crate) async fn decline_push(sender: Sender, mut receiver: Receiver, why: Declined) {
    receiver.stop(StreamCode::CANCELLED);
    let outcome = match why {
        Declined::Already => PushOutcome::Already,
        Declined::Busy => PushOutcome::Busy,
        Declined::Unwanted | Declined::Missing | Declined::Quarantined | Declined::NotEntitled => {
            PushOutcome::Unwanted
        }
    };
    say_how_a_push_ended(sender, outcome).await;
}

/// The last word on a push. The sender may be gone, which is no trouble of this host.
async fn say_how_a_push_ended(mut sender: Sender, outcome: PushOutcome) {
    let reply = PushReply {
        outcome: outcome.into(),
        lacking: None,
        may_want_whole: false,
    };
    if sender.send(&reply).await.is_ok() {
        drop(sender.finish());
    }
}

/// Turns a request away.
pub(crate) async fn refuse(mut sender: Sender, why: Declined) {
    let refusal = match why {
        Declined::Busy | Declined::Already => Refusal::Busy,
        Declined::Missing => Refusal::Missing,
        Declined::Unwanted | Declined::NotEntitled => Refusal::Unauthorised,
        Declined::Quarantined => Refusal::Quarantined,
    };
    let reply = ChunkReply {
        kind: Some(chunk_reply::Kind::Refusal(refusal.into())),
    };
    if sender.send(&reply).await.is_ok() {
        drop(sender.finish());
    }
}

/// Answers a request with the chunk, or with the ranges of it that the peer lacks, and waits until the peer has it.
pub(crate) async fn serve(sender: Sender, lacking: Option<Ranges>, subject: Subject) -> Shipment {
    in_time(answer(sender, lacking, subject)).await
}

async fn in_time(upload: impl Future<Output = Shipment>) -> Shipment {
    let late = Shipment::broken(0, 0);
    timeout(UPLOAD_TIMEOUT, upload).await.unwrap_or(late)
}

async fn answer(mut sender: Sender, lacking: Option<Ranges>, subject: Subject) -> Shipment {
    let recipes = subject.recipes();
    let content = (subject.content, subject.chunk);
    let chunk_bytes = subject.geometry.len(subject.chunk);
    let lacking = lacking.map(|ranges| Lacking::parse(&ranges, chunk_bytes));
    let Ok(lacking) = lacking.transpose() else {
        refuse(sender, Declined::Unwanted).await;
        return Shipment::broken(0, 0);
    };
    let is_part = lacking.is_some();
    let loaded = match lacking {
        Some(lacking) => load_part(subject, lacking).await,
        None => load(subject).await,
    };
    let Some(packed) = loaded else {
        refuse(sender, Declined::Missing).await;
        return Shipment::broken(0, 0);
    };
    let header = ChunkHeader {
        lacking_only: is_part,
        ..header(content, &packed, &recipes)
    };
    let wire_bytes = packed.bytes.len() as u64;
    // also where the peer gives the chunk up: the work is done
    let work_bytes = match is_part {
        true => part::work(wire_bytes, chunk_bytes),
        false => wire_bytes,
    };
    let reply = ChunkReply {
        kind: Some(chunk_reply::Kind::Chunk(header)),
    };
    let sent = async {
        sender.send(&reply).await.ok()?;
        write(&mut sender, packed.bytes).await?;
        sender.finish().ok()
    };
    if sent.await.is_none() {
        return Shipment::broken(0, work_bytes);
    }
    match sender.stopped().await {
        Ok(None) => Shipment {
            delivery: Delivery::Stored,
            wire_bytes,
            work_bytes,
        },
        Ok(Some(_)) | Err(_) => Shipment::broken(wire_bytes, work_bytes),
    }
}

/// Pushes a chunk to a peer, and waits until the peer says how it took the chunk.
pub(crate) async fn push(
    connection: Connection,
    subject: Subject,
    spread: Option<Spread>,
) -> Shipment {
    in_time(offer(connection, subject, spread)).await
}

async fn offer(connection: Connection, subject: Subject, spread: Option<Spread>) -> Shipment {
    let failed = |bytes| Shipment::broken(bytes, bytes);
    let (content, chunk) = (subject.content, subject.chunk);
    let recipes = subject.recipes();
    let whole = subject.clone();
    let Some(packed) = load(subject).await else {
        return failed(0);
    };
    let Ok((mut sender, mut receiver)) = connection.open().await else {
        return failed(0);
    };
    let push = ChunkPush {
        content: content.as_bytes().to_vec(),
        index: chunk.0,
        header: Some(header((content, chunk), &packed, &recipes)),
        spread: spread.map(|spread| match spread {
            Spread::Everyone => WireSpread {
                everyone: true,
                targets: Vec::new(),
            },
            Spread::To(targets) => WireSpread {
                everyone: false,
                targets: targets.into_iter().map(|target| target.0).collect(),
            },
        }),
        sends_parts: true,
    };
    let mut wire_bytes = packed.bytes.len() as u64;
    let offer = PeerOpen {
        kind: Some(peer_open::Kind::Push(push)),
    };
    if sender.send(&offer).await.is_err() {
        return failed(0);
    }
    // the bytes wait for the receiver's word: a declined push whose bytes were sent at once would fill the line for
    // nothing
    let Some((mut outcome, answer)) = reply(&mut receiver).await else {
        return failed(wire_bytes);
    };
    if outcome == PushOutcome::Accepted {
        let all = packed.bytes.clone();
        let bytes = match answer.lacking {
            None => packed.bytes,
            Some(ranges) => {
                let Some(part) = send_part_header(&mut sender, &whole, &ranges, packed).await
                else {
                    return failed(0);
                };
                wire_bytes = part.len() as u64;
                part
            }
        };
        match send(&mut sender, &mut receiver, bytes, answer.may_want_whole).await {
            // what the receiver had was false, or the part; the receiver finds out which
            Some(PushOutcome::Whole) if answer.may_want_whole => {
                wire_bytes += all.len() as u64;
                match send(&mut sender, &mut receiver, all, false).await {
                    Some(said) => outcome = said,
                    None => return failed(wire_bytes),
                }
            }
            Some(said) => outcome = said,
            None => return failed(wire_bytes),
        }
    }
    let (delivery, wire_bytes) = match outcome {
        PushOutcome::Already => (Delivery::Already, 0),
        PushOutcome::Busy => (Delivery::Busy, 0),
        PushOutcome::Unwanted => (Delivery::Unwanted, 0),
        PushOutcome::Stored => (Delivery::Stored, wire_bytes),
        PushOutcome::Bad => (Delivery::Bad, wire_bytes),
        PushOutcome::Failed
        | PushOutcome::Unspecified
        | PushOutcome::Accepted
        | PushOutcome::Whole => (Delivery::Broken, wire_bytes),
    };
    Shipment {
        delivery,
        wire_bytes,
        work_bytes: wire_bytes,
    }
}

/// Sends a push's bytes. Returns what the receiver made of them. `more`: further bytes may follow.
async fn send(
    sender: &mut Sender,
    receiver: &mut Receiver,
    bytes: Bytes,
    more: bool,
) -> Option<PushOutcome> {
    // a receiver that gives up stops the bytes, and its reply says why: so a failed send isn't the end yet
    if write(sender, bytes).await.is_some() && !more {
        drop(sender.finish());
    }
    let (outcome, _) = reply(receiver).await?;
    Some(outcome)
}

async fn reply(receiver: &mut Receiver) -> Option<(PushOutcome, PushReply)> {
    let reply = timeout(STUCK, receiver.receive::<PushReply>()).await;
    let reply = reply.ok()?.ok()??;
    Some((PushOutcome::try_from(reply.outcome).ok()?, reply))
}

/// Says which part of the chunk follows in place of the whole, and returns the part's bytes. `None`: the receiver named
/// no ranges of the chunk, or is gone.
async fn send_part_header(
    sender: &mut Sender,
    subject: &Subject,
    ranges: &Ranges,
    packed: Packed,
) -> Option<Bytes> {
    let lacking = Lacking::parse(ranges, subject.geometry.len(subject.chunk)).ok()?;
    let length = subject.geometry.len(subject.chunk) as usize;
    let (encoding, part) = cut(lacking, packed, length).await?;
    let header = part::header(encoding, &part);
    sender.send(&header).await.ok()?;
    Some(part)
}

/// Cuts a part out of a packed chunk, beside the driver's threads.
async fn cut(lacking: Lacking, packed: Packed, length: usize) -> Option<(Encoding, Bytes)> {
    let cut = tokio::task::spawn_blocking(move || lacking.cut(&packed, length));
    cut.await.ok().flatten()
}

/// Sends a chunk's bytes, as long as the receiver goes on taking them.
async fn write(sender: &mut Sender, mut bytes: Bytes) -> Option<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        timeout(STUCK, sender.write(piece)).await.ok()?.ok()?;
    }
    Some(())
}

/// Receives a chunk's bytes, as long as the sender goes on sending them.
async fn read(receiver: &mut Receiver, bytes: &mut [u8]) -> Option<()> {
    for piece in bytes.chunks_mut(PIECE_BYTES) {
        timeout(STUCK / 2, receiver.read_exact(piece))
            .await
            .ok()?
            .ok()?;
    }
    Some(())
}

/// The header of a chunk. It names the recipe, if the chunk's link is the recipe's.
fn header(
    (content, chunk): (Digest, ChunkIndex),
    packed: &Packed,
    recipes: &[(Digest, Link)],
) -> ChunkHeader {
    let mut link = match packed.signed(content, chunk) {
        Some(signed) => signed.to_message(),
        None => WireLink::new(&packed.link, &packed.maker),
    };
    let mut recipes = recipes.iter();
    let recipe = recipes.find(|(_, given)| packed.link.is_alike(given));
    link.recipe = recipe.map_or_else(Vec::new, |(name, _)| name.as_bytes().to_vec());
    ChunkHeader {
        link: Some(link),
        encoding: packed.encoding.into(),
        wire_bytes: u32::try_from(packed.bytes.len()).unwrap_or(u32::MAX),
        lacking_only: false,
    }
}

/// The chunk ready to send, from the cache or from disk.
async fn load(subject: Subject) -> Option<Packed> {
    if let Some(packed) = subject.cache.find(subject.content, subject.chunk) {
        return Some(packed);
    }
    let loaded = tokio::task::spawn_blocking(move || {
        let raw = read_raw(&subject)?;
        let (encoding, bytes) = pack(raw.bytes.into());
        let packed = Packed {
            encoding,
            bytes,
            ..raw
        };
        subject
            .cache
            .keep(subject.content, subject.chunk, packed.clone());
        Some(packed)
    });
    loaded.await.ok().flatten()
}

/// A part of the chunk ready to send. The whole isn't packed for it, and takes no room in the cache.
async fn load_part(subject: Subject, lacking: Lacking) -> Option<Packed> {
    let loaded = tokio::task::spawn_blocking(move || load_part_now(&subject, &lacking));
    loaded.await.ok().flatten()
}

/// As [`load_part`]. Blocks.
fn load_part_now(subject: &Subject, lacking: &Lacking) -> Option<Packed> {
    let cached = subject.cache.find(subject.content, subject.chunk);
    // reading a chunk takes less than unpacking it
    let chunk = match cached {
        Some(cached) if cached.encoding != Encoding::Zstd => cached,
        cached => read_raw(subject).or(cached)?,
    };
    let length = subject.geometry.len(subject.chunk) as usize;
    let (encoding, bytes) = lacking.cut(&chunk, length)?;
    Some(Packed {
        encoding,
        bytes,
        ..chunk
    })
}

/// The chunk from disk, as it is. Blocks.
fn read_raw(subject: &Subject) -> Option<Packed> {
    let (content, chunk) = (subject.content, subject.chunk);
    let mut shelves = subject.shelves.iter();
    let held = shelves.find_map(|shelf| shelf.read(content, chunk).ok().flatten())?;
    let answered = (subject.notary).answered(content, chunk, held.link, &held.answer);
    // a chunk for which nobody answers goes to hosts with the same recipe
    if answered.is_none() && subject.recipes().is_empty() {
        return None;
    }
    let maker = answered.as_ref().map(|signed| signed.maker().clone());
    Some(Packed {
        link: held.link,
        maker: maker.unwrap_or(held.maker),
        statement: answered.map(|signed| signed.statement),
        encoding: Encoding::Raw,
        bytes: held.bytes.into(),
    })
}

/// What follows the bytes of a header on their stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Its end.
    Nothing,
    /// The whole chunk, if this host wants it.
    Whole,
}

/// Reads the chunk that this header announces, or the ranges of it that this host lacks, checks the chunk against the
/// link that came with it, and stores it.
async fn take(
    peer: HostKey,
    (header, lacking): (&ChunkHeader, Option<Lacking>),
    (receiver, then): (&mut Receiver, Then),
    subject: Subject,
) -> Receipt {
    let whole = subject.geometry.len(subject.chunk) as usize;
    let length = lacking.as_ref().map_or(whole, Lacking::bytes);
    let checked = match check(&subject, header.link.as_ref()) {
        Ok(checked) => checked,
        Err(receipt) => {
            receiver.stop(StreamCode::CANCELLED);
            return *receipt;
        }
    };
    let encoding = Encoding::try_from(header.encoding);
    let Some(encoding) = encoding
        .ok()
        .filter(|_| header.lacking_only == lacking.is_some())
    else {
        receiver.stop(StreamCode::CANCELLED);
        return Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        };
    };
    // packed bytes are never longer than raw ones: a peer that announces more wants our memory
    if header.wire_bytes as usize > length {
        receiver.stop(StreamCode::CANCELLED);
        return Receipt {
            false_bytes: true,
            other_size: lacking.is_none(),
            ..Receipt::failed(Failure::Bad)
        };
    }
    let mut wire = vec![0; header.wire_bytes as usize];
    if read(receiver, &mut wire).await.is_none() {
        return Receipt::failed(Failure::Broken);
    }
    // the end of the stream has to be seen, or dropping the receiver would tell the sender that we gave up
    if then == Then::Nothing {
        match timeout(STUCK / 2, receiver.piece(1)).await {
            Ok(Ok(None)) => {}
            Ok(_) => return Receipt::failed(Failure::Refused),
            Err(_) => return Receipt::failed(Failure::Broken),
        }
    }
    let wire_bytes = wire.len() as u64;
    let stored = tokio::task::spawn_blocking(move || match lacking {
        Some(lacking) => store_part(&subject, peer, (checked, &lacking), (encoding, wire.into())),
        None => store(&subject, peer, checked, (encoding, wire.into())),
    });
    let mut receipt = stored
        .await
        .unwrap_or_else(|_| Receipt::failed(Failure::NotStored));
    receipt.wire_bytes = wire_bytes;
    receipt
}

#[cfg(test)]
mod liars;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod recipes;
