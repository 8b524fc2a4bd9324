//! One chunk on its way: packed for the wire, sent, received, checked against its link and stored.
//!
//! The crate `swarm` decides which host sends which chunk to which peer. This module carries that out.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    Answer, ChunkIndex, Digest, Geometry, HostId, HostKey, Link, Signed, Source, Statement,
    ledger::RejectLinkError,
    message::{
        ChunkHeader, ChunkPush, ChunkReply, ChunkRequest, Encoding, FieldError, Link as WireLink,
        PartHeader, PeerOpen, PushOutcome, PushReply, Ranges, Refusal, Spread as WireSpread,
        chunk_reply, peer_open,
    },
    statement::StatementError,
};
use swarm::{
    action::Declined,
    event::{Delivery, Failure, Spread},
};
use wire::{Connection, Receiver, Sender, StreamCode};

use tokio::time::timeout;
use tracing::debug;

mod packed;
mod part;

pub(crate) use self::packed::{Cache, Packed, pack};
use self::{packed::unpack, part::Lacking};

use crate::{
    notary::Notary,
    shelf::{self, Arrival, Shelf, Unwritable},
    store::WriteError,
    suspects::Suspects,
};

/// An upload that takes longer is given up. A MiB in this time is 280 kbit/s, far below a chunk's share of a fleet's
/// links. Receivers don't wait longer either.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(30);

/// A receiver that doesn't take this much, or says nothing, for [`STUCK`] is given up much sooner: a peer that takes or
/// sends a byte a second must not hold a place. The least rate is 13 kbit/s.
const PIECE_BYTES: usize = 16 << 10;
const STUCK: Duration = Duration::from_secs(10);

/// A chunk of a content that this host holds or wants, and the parts that are needed to move it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) content: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) chunk: ChunkIndex,
    /// The shelves where the chunk's bytes are or shall be. The first shelf that has the bytes is read; all shelves are
    /// written.
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) notary: Arc<Notary>,
    /// Links of this maker aren't taken. The maker is this host itself, which has just dropped its links.
    pub(crate) retracted: Option<HostKey>,
    /// The links of the content that were proved false: they decide which runs are refused.
    pub(crate) suspects: Arc<Suspects>,
}

impl Subject {
    /// The recipe that gives the content's links here, and the link that it gives the chunk.
    fn recipe(&self) -> Option<(Digest, Link)> {
        let of_shelf = |shelf: &Shelf| {
            let name = shelf.recipe(self.content)?;
            Some((name, shelf.recipe_link(self.content, self.chunk)?))
        };
        self.shelves.iter().find_map(of_shelf)
    }
}

/// How the transfer of a chunk to this host ended.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) result: Result<(), Failure>,
    pub(crate) wire_bytes: u64,
    /// The bytes of the chunk that were here already, where only the rest came.
    pub(crate) local_bytes: u64,
    /// The bytes or the link were false: the sender lies.
    pub(crate) false_bytes: bool,
    /// The chain proves this link false.
    pub(crate) false_link: Option<Box<Signed>>,
    /// Links that one host signed and that contradict each other.
    pub(crate) contradiction: Option<Box<[Signed; 2]>>,
    /// The bytes may be true of a content of another size than this host was told.
    pub(crate) other_size: bool,
    /// The volume failed; the text says how.
    pub(crate) storage_error: Option<String>,
    /// Images that couldn't take the chunk, although others did.
    pub(crate) unwritable: Vec<Unwritable>,
}

impl Receipt {
    pub(crate) const fn cancelled() -> Self {
        Self::failed(Failure::Cancelled)
    }

    /// Whether the transfer ended without an answer from the peer or the disk.
    pub(crate) const fn is_lost(&self) -> bool {
        matches!(self.result, Err(Failure::Broken | Failure::Cancelled))
    }

    const fn failed(failure: Failure) -> Self {
        Self {
            result: Err(failure),
            wire_bytes: 0,
            local_bytes: 0,
            false_bytes: false,
            false_link: None,
            contradiction: None,
            other_size: false,
            storage_error: None,
            unwritable: Vec::new(),
        }
    }
}

/// What the receiver made of a chunk that we sent.
#[derive(Debug)]
pub(crate) struct Shipment {
    pub(crate) delivery: Delivery,
    pub(crate) wire_bytes: u64,
}

/// Asks a peer for a chunk, checks the chunk and stores it.
pub(crate) async fn request(connection: Connection, subject: Subject) -> Receipt {
    let Ok((mut sender, mut receiver)) = connection.open().await else {
        return Receipt::failed(Failure::Broken);
    };
    let lacking = Lacking::of(&subject);
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
                receiver,
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

/// Takes a pushed chunk, checks and stores it, and tells the sender the outcome. `sends_parts`: the sender sends only
/// what this host lacks of the chunk, if this host says so.
pub(crate) async fn accept_push(
    peer: HostKey,
    (mut header, sends_parts): (ChunkHeader, bool),
    mut sender: Sender,
    mut receiver: Receiver,
    subject: Subject,
) -> Receipt {
    let lacking = if sends_parts {
        Lacking::of(&subject)
    } else {
        None
    };
    let accepted = PushReply {
        outcome: PushOutcome::Accepted.into(),
        lacking: lacking.as_ref().map(Lacking::to_message),
    };
    if sender.send(&accepted).await.is_err() {
        return Receipt::failed(Failure::Broken);
    }
    if lacking.is_some() {
        match timeout(STUCK, receiver.receive::<PartHeader>()).await {
            Ok(Ok(Some(part))) => header = part::instead(&header, &part),
            _ => return Receipt::failed(Failure::Broken),
        }
    }
    let receipt = take(peer, (&header, lacking), receiver, subject).await;
    let outcome = match receipt.result {
        Ok(()) => PushOutcome::Stored,
        Err(Failure::Bad | Failure::Disproved) => PushOutcome::Bad,
        Err(_) => PushOutcome::Failed,
    };
    // the sender may be gone; the stored chunk doesn't depend on it
    say_how_a_push_ended(sender, outcome).await;
    receipt
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
    let late = Shipment {
        delivery: Delivery::Broken,
        wire_bytes: 0,
    };
    timeout(UPLOAD_TIMEOUT, upload).await.unwrap_or(late)
}

async fn answer(mut sender: Sender, lacking: Option<Ranges>, subject: Subject) -> Shipment {
    let failed = |wire_bytes| Shipment {
        delivery: Delivery::Broken,
        wire_bytes,
    };
    let recipe = subject.recipe();
    let content = (subject.content, subject.chunk);
    let length = subject.geometry.len(subject.chunk) as usize;
    let lacking = lacking.map(|ranges| Lacking::parse(&subject, &ranges));
    let Ok(lacking) = lacking.transpose() else {
        refuse(sender, Declined::Unwanted).await;
        return failed(0);
    };
    let Some(packed) = load(subject).await else {
        refuse(sender, Declined::Missing).await;
        return failed(0);
    };
    let mut header = header(content, &packed, recipe);
    let mut bytes = packed.bytes.clone();
    if let Some(lacking) = lacking {
        let Some((encoding, part)) = cut(lacking, packed, length).await else {
            refuse(sender, Declined::Missing).await;
            return failed(0);
        };
        header = part::instead(&header, &part::header(encoding, &part));
        bytes = part;
    }
    let wire_bytes = bytes.len() as u64;
    let reply = ChunkReply {
        kind: Some(chunk_reply::Kind::Chunk(header)),
    };
    let sent = async {
        sender.send(&reply).await.ok()?;
        write(&mut sender, bytes).await?;
        sender.finish().ok()
    };
    if sent.await.is_none() {
        return failed(0);
    }
    match sender.stopped().await {
        Ok(None) => Shipment {
            delivery: Delivery::Stored,
            wire_bytes,
        },
        Ok(Some(_)) | Err(_) => failed(wire_bytes),
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
    let failed = |wire_bytes| Shipment {
        delivery: Delivery::Broken,
        wire_bytes,
    };
    let (content, chunk) = (subject.content, subject.chunk);
    let recipe = subject.recipe();
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
        header: Some(header((content, chunk), &packed, recipe)),
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
    let Some((mut outcome, lacking)) = reply(&mut receiver).await else {
        return failed(wire_bytes);
    };
    if outcome == PushOutcome::Accepted {
        let bytes = match lacking {
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
        // a receiver that gives up stops the bytes, and its reply says why: so a failed send isn't the end yet
        if write(&mut sender, bytes).await.is_some() {
            drop(sender.finish());
        }
        match reply(&mut receiver).await {
            Some((said, _)) => outcome = said,
            None => return failed(wire_bytes),
        }
    }
    match outcome {
        PushOutcome::Stored => Shipment {
            delivery: Delivery::Stored,
            wire_bytes,
        },
        PushOutcome::Already => Shipment {
            delivery: Delivery::Already,
            wire_bytes: 0,
        },
        PushOutcome::Busy => Shipment {
            delivery: Delivery::Busy,
            wire_bytes: 0,
        },
        PushOutcome::Unwanted => Shipment {
            delivery: Delivery::Unwanted,
            wire_bytes: 0,
        },
        PushOutcome::Bad => Shipment {
            delivery: Delivery::Bad,
            wire_bytes,
        },
        PushOutcome::Failed | PushOutcome::Unspecified | PushOutcome::Accepted => {
            failed(wire_bytes)
        }
    }
}

async fn reply(receiver: &mut Receiver) -> Option<(PushOutcome, Option<Ranges>)> {
    let reply = timeout(STUCK, receiver.receive::<PushReply>()).await;
    let reply = reply.ok()?.ok()??;
    Some((PushOutcome::try_from(reply.outcome).ok()?, reply.lacking))
}

/// Says which part of the chunk follows in place of the whole, and returns the part's bytes. `None`: the receiver named
/// no ranges of the chunk, or is gone.
async fn send_part_header(
    sender: &mut Sender,
    subject: &Subject,
    ranges: &Ranges,
    packed: Packed,
) -> Option<Bytes> {
    let lacking = Lacking::parse(subject, ranges).ok()?;
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
    recipe: Option<(Digest, Link)>,
) -> ChunkHeader {
    let mut link = match packed.signed(content, chunk) {
        Some(signed) => signed.to_message(),
        None => WireLink::new(&packed.link, &packed.maker),
    };
    let recipe = recipe.filter(|(_, given)| packed.link.is_alike(given));
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
        let mut shelves = subject.shelves.iter();
        let read = |shelf: &Shelf| shelf.read(subject.content, subject.chunk).ok().flatten();
        let held = shelves.find_map(read)?;
        let (content, chunk) = (subject.content, subject.chunk);
        let signed = subject
            .notary
            .answered(content, chunk, held.link, &held.answer);
        // a chunk for which nobody answers goes to hosts with the same recipe
        if signed.is_none() && subject.recipe().is_none() {
            return None;
        }
        let (encoding, bytes) = pack(held.bytes);
        let packed = Packed {
            link: held.link,
            maker: signed
                .as_ref()
                .map_or(held.maker, |signed| signed.maker().clone()),
            statement: signed.map(|signed| signed.statement),
            encoding,
            bytes,
        };
        subject
            .cache
            .keep(subject.content, subject.chunk, packed.clone());
        Some(packed)
    });
    loaded.await.ok().flatten()
}

/// A link that came, and what is known of it before its bytes come.
#[derive(Debug)]
struct Checked {
    link: Link,
    maker: HostId,
    statement: Option<Statement>,
    /// The sender says that it compared the chunk with this host's recipe, which gives this link.
    by_recipe: bool,
}

impl Checked {
    fn packed(self, encoding: Encoding, bytes: Bytes) -> Packed {
        Packed {
            link: self.link,
            maker: self.maker,
            statement: self.statement,
            encoding,
            bytes,
        }
    }
}

/// Checks a link that came. Returns the link with the host that answers for it, or else how the transfer ends.
fn check(subject: &Subject, message: Option<&WireLink>) -> Result<Checked, Box<Receipt>> {
    let bad = || {
        Box::new(Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        })
    };
    let message = message.ok_or_else(bad)?;
    let (link, maker) = message.parse().map_err(|_| bad())?;
    let same = |(name, _): &(Digest, Link)| message.recipe == name.as_bytes();
    let by_recipe = match subject.recipe().filter(same) {
        // the sender would have seen that
        Some((_, given)) if !link.is_alike(&given) => return Err(bad()),
        found => found.is_some(),
    };
    let unsigned = message.statement.is_none();
    let statement = match check_signed(subject, message) {
        Ok(signed) => Some(signed.statement),
        // whoever answers for the link, the recipe proves it
        Err(receipt) if by_recipe && (unsigned || !receipt.false_bytes) => None,
        // the sender may vouch for the chunk later
        Err(_) if unsigned && !message.recipe.is_empty() => {
            return Err(Box::new(Receipt::failed(Failure::Disproved)));
        }
        Err(receipt) => return Err(receipt),
    };
    Ok(Checked {
        link,
        maker,
        statement,
        by_recipe,
    })
}

/// Checks that the host that signed a link answers for it.
fn check_signed(subject: &Subject, link: &WireLink) -> Result<Signed, Box<Receipt>> {
    let bad = || {
        Box::new(Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        })
    };
    let failed = |failure| Box::new(Receipt::failed(failure));
    let signed = match Signed::parse(subject.content, subject.chunk, link) {
        Ok(signed) => signed,
        // an agent of an older version: the coordinator names it
        Err(FieldError::Unsigned) => return Err(failed(Failure::Refused)),
        Err(_) => return Err(bad()),
    };
    // the link may be true: it is taken when a host vouches for it
    if subject.suspects.refuse(&signed.statement.run) {
        return Err(failed(Failure::Disproved));
    }
    match subject.notary.check(&signed) {
        Ok(()) => Ok(signed),
        // the link may be good by another clock, for a host that was without a coordinator, or for one that trusts
        // another authority too
        Err(
            error @ (StatementError::Expired | StatementError::Unleased | StatementError::Ticket),
        ) => {
            debug!(chunk = subject.chunk.0, maker = %signed.maker(), %error, "a chunk isn't taken");
            Err(failed(Failure::Disproved))
        }
        // the sender of this has checked nothing, or made it up
        Err(StatementError::Base | StatementError::Signature) => Err(bad()),
    }
}

/// Reads the chunk that this header announces, or the ranges of it that this host lacks, checks the chunk against the
/// link that came with it, and stores it.
async fn take(
    peer: HostKey,
    (header, lacking): (&ChunkHeader, Option<Lacking>),
    mut receiver: Receiver,
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
    if read(&mut receiver, &mut wire).await.is_none() {
        return Receipt::failed(Failure::Broken);
    }
    // the end of the stream has to be seen, or dropping the receiver would tell the sender that we gave up
    match timeout(STUCK / 2, receiver.piece(1)).await {
        Ok(Ok(None)) => {}
        Ok(_) => return Receipt::failed(Failure::Refused),
        Err(_) => return Receipt::failed(Failure::Broken),
    }
    let wire_bytes = wire.len() as u64;
    let stored = tokio::task::spawn_blocking(move || match lacking {
        Some(lacking) => part::store(&subject, peer, (checked, &lacking), (encoding, wire.into())),
        None => store(&subject, peer, checked, (encoding, wire.into())),
    });
    let mut receipt = stored
        .await
        .unwrap_or_else(|_| Receipt::failed(Failure::NotStored));
    receipt.wire_bytes = wire_bytes;
    receipt
}

/// Stores a chunk that came as a whole, if it fits its link.
fn store(
    subject: &Subject,
    peer: HostKey,
    checked: Checked,
    (encoding, packed): (Encoding, Bytes),
) -> Receipt {
    let last = subject.chunk.0 + 1 == subject.geometry.chunks();
    let bad = || Receipt {
        false_bytes: true,
        other_size: last,
        ..Receipt::failed(Failure::Bad)
    };
    let length = subject.geometry.len(subject.chunk) as usize;
    let Some(bytes) = unpack(encoding, packed.clone(), length) else {
        return Receipt {
            other_size: true,
            ..bad()
        };
    };
    if !checked.link.holds(subject.geometry, subject.chunk, &bytes) {
        return bad();
    }
    let receipt = store_bytes(subject, peer, &checked, &bytes);
    if receipt.result.is_ok() {
        let packed = checked.packed(encoding, packed);
        subject.cache.keep(subject.content, subject.chunk, packed);
    }
    receipt
}

/// Stores the bytes of a chunk that fit its link.
fn store_bytes(subject: &Subject, peer: HostKey, checked: &Checked, bytes: &[u8]) -> Receipt {
    let link = checked.link;
    let source = Source {
        sender: peer,
        maker: checked.maker.key(),
    };
    if subject.retracted == Some(source.maker) && !checked.by_recipe {
        return Receipt::failed(Failure::Refused);
    }
    let arrival = Arrival {
        content: subject.content,
        chunk: subject.chunk,
        bytes,
        link,
        source,
        maker: &checked.maker,
        statement: checked.statement.as_ref(),
    };
    let signed = || {
        let statement = checked.statement.clone()?;
        Some(Signed {
            content: subject.content,
            chunk: subject.chunk,
            link,
            statement,
        })
    };
    let unwritable = match shelf::write_all(&subject.shelves, arrival) {
        Ok(unwritable) => unwritable,
        // only a host that holds the next chunk can know that
        Err(WriteError::Rejected(RejectLinkError::Disproved(_))) => {
            return Receipt {
                false_link: signed().map(Box::new),
                ..Receipt::failed(Failure::Disproved)
            };
        }
        Err(WriteError::Rejected(RejectLinkError::Contradicts(other))) => {
            let other = subject.shelves.iter().find_map(|shelf| {
                let (link, _) = shelf.link(subject.content, other)?;
                let Answer::Maker(statement) = shelf.answer(subject.content, other) else {
                    return None;
                };
                Some(Signed {
                    content: subject.content,
                    chunk: other,
                    link,
                    statement,
                })
            });
            return Receipt {
                contradiction: signed()
                    .zip(other)
                    .map(|(signed, other)| Box::new([signed, other])),
                ..Receipt::failed(Failure::Disproved)
            };
        }
        // the recipe is false, or the link: nobody is blamed before that is known
        Err(WriteError::Rejected(RejectLinkError::AgainstRecipe(_))) => {
            return Receipt::failed(Failure::Disproved);
        }
        Err(WriteError::Rejected(_)) => {
            return Receipt {
                false_bytes: true,
                other_size: subject.chunk.0 + 1 == subject.geometry.chunks(),
                ..Receipt::failed(Failure::Bad)
            };
        }
        Err(WriteError::Gone | WriteError::UnknownContent(_)) => {
            return Receipt::failed(Failure::NotStored);
        }
        Err(error) => {
            return Receipt {
                storage_error: Some(error.to_string()),
                ..Receipt::failed(Failure::NotStored)
            };
        }
    };
    Receipt {
        result: Ok(()),
        wire_bytes: 0,
        local_bytes: 0,
        false_bytes: false,
        false_link: None,
        contradiction: None,
        other_size: false,
        storage_error: None,
        unwritable,
    }
}

#[cfg(test)]
mod liars;
#[cfg(test)]
mod recipes;
