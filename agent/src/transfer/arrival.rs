//! A chunk that arrives: its link is checked before its bytes come, the bytes are compared with the link, and the chunk
//! is stored.
//!
//! Of a chunk that came as a part, the rest was found on this host by short hashes. So if what was put together doesn't
//! fit the link, that says nothing about the sender yet: the part may be false, or what was here. The whole chunk is
//! asked for, and tells ([`Unfit`]).

use std::sync::Arc;

use bytes::Bytes;
use proto::{
    Answer, ChunkIndex, Digest, Geometry, HostId, HostKey, Link, Signed, Source, Statement,
    ledger::RejectLinkError,
    message::{Encoding, FieldError, Link as WireLink},
    statement::StatementError,
};
use swarm::event::Failure;
use tracing::debug;

use super::{
    packed::{Cache, Packed, unpack},
    part::Lacking,
    unfit::{Unfit, UnfitPart},
};
use crate::{
    notary::Notary,
    shelf::{self, Arrival, Shelf, Unwritable},
    store::WriteError,
    suspects::Suspects,
};

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
    /// Parts of chunks that came and didn't fit: they decide which peer is asked for a part.
    pub(crate) unfit: Arc<Unfit>,
}

impl Subject {
    /// The recipes that give the content's links here, and the link that each gives the chunk. Images that share the
    /// content may go by different ones, of which all but one are false.
    pub(super) fn recipes(&self) -> Vec<(Digest, Link)> {
        let of_shelf = |shelf: &Shelf| {
            let name = shelf.recipe(self.content)?;
            Some((name, shelf.recipe_link(self.content, self.chunk)?))
        };
        self.shelves.iter().filter_map(of_shelf).collect()
    }

    /// Whether this host may hold a chunk with this link in another image, where no recipe said so before.
    pub(super) fn may_be_here(&self, link: &Link) -> bool {
        let mut shelves = self.shelves.iter();
        shelves.any(|shelf| shelf.may_be_here(self.content, link))
    }

    /// The ranges of the chunk that this host lacks, where it has the rest; `None` where it needs the whole chunk, or
    /// this peer's part of the chunk didn't fit.
    pub(super) fn lacking(&self, peer: HostKey) -> Option<Lacking> {
        if self.unfit.is_of(peer, self.content, self.chunk) {
            return None;
        }
        let mut shelves = self.shelves.iter();
        let ranges = shelves.find_map(|shelf| shelf.lacking_ranges(self.content, self.chunk))?;
        Lacking::new(ranges, self.geometry.len(self.chunk))
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
    /// Peers that sent a false part of the chunk before, as the whole chunk shows.
    pub(crate) liars: Vec<HostKey>,
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

    /// The whole chunk was to follow a part that didn't fit, whose transfer ended so.
    pub(super) fn after_unfit(mut self, part: &Self) -> Self {
        self.wire_bytes += part.wire_bytes;
        // who sends a part that fits nothing and then no chunk has brought nothing, whatever it says
        if let Err(failure) = &mut self.result
            && !matches!(
                failure,
                Failure::Bad | Failure::Disproved | Failure::NotStored
            )
        {
            *failure = Failure::Unfit;
        }
        self
    }

    pub(super) const fn failed(failure: Failure) -> Self {
        Self::ended(Err(failure))
    }

    /// A transfer that ended so, of which nothing else is known.
    const fn ended(result: Result<(), Failure>) -> Self {
        Self {
            result,
            wire_bytes: 0,
            local_bytes: 0,
            false_bytes: false,
            liars: Vec::new(),
            false_link: None,
            contradiction: None,
            other_size: false,
            storage_error: None,
            unwritable: Vec::new(),
        }
    }
}

/// A link that came, and what is known of it before its bytes come.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) link: Link,
    pub(super) maker: HostId,
    statement: Option<Statement>,
    /// The sender says that it compared the chunk with this host's recipe, which gives this link.
    by_recipe: bool,
}

impl Checked {
    pub(super) fn packed(self, encoding: Encoding, bytes: Bytes) -> Packed {
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
pub(super) fn check(
    subject: &Subject,
    message: Option<&WireLink>,
) -> Result<Checked, Box<Receipt>> {
    let bad = || {
        Box::new(Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        })
    };
    let message = message.ok_or_else(bad)?;
    let (link, maker) = message.parse().map_err(|_| bad())?;
    let same = |(name, _): &(Digest, Link)| message.recipe == name.as_bytes();
    let by_recipe = match subject.recipes().into_iter().find(same) {
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

/// Stores a chunk that came as a whole, if it fits its link.
pub(super) fn store(
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
    let mut receipt = store_bytes(subject, peer, &checked, &bytes);
    if receipt.result.is_ok() {
        receipt.liars = settle_of(subject, &checked.link, &bytes);
        let packed = checked.packed(encoding, packed);
        subject.cache.keep(subject.content, subject.chunk, packed);
    }
    receipt
}

/// Stores a chunk that another image here holds, if there is one that fits the link. `None`: its bytes have to come.
/// Blocks.
pub(super) fn store_from_here(
    subject: &Subject,
    peer: HostKey,
    checked: &Checked,
) -> Option<Receipt> {
    let mut shelves = subject.shelves.iter();
    let find = |shelf: &Shelf| shelf.find_here(subject.content, subject.chunk, &checked.link);
    let bytes = shelves.find_map(find)?;
    let mut receipt = store_bytes(subject, peer, checked, &bytes);
    if receipt.result.is_err() {
        return None;
    }
    receipt.liars = settle_of(subject, &checked.link, &bytes);
    receipt.local_bytes = bytes.len() as u64;
    Some(receipt)
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
            return match goes_on_without_recipe(subject, checked) {
                true => store_bytes(subject, peer, checked, bytes),
                false => Receipt::failed(Failure::Disproved),
            };
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
        unwritable,
        ..Receipt::ended(Ok(()))
    }
}

/// Whether the mirror's blob, or an image whose recipe hosts made, goes on without its recipe from now on. It does if a
/// host signed other states than the recipe's: one that has the content's lease, or one that vouches for what it has.
///
/// No coordinator says of a blob that its recipe is in doubt, as it does for images: the blob would wait until each
/// host has read the registry's bytes itself. A recipe that hosts made is no more than one host's word, too, and where
/// other hosts hold all of the image nobody reads the registry's bytes.
///
/// If the signed link is false, it costs the recipe's use, and the chain convicts who signed it at the content's end.
fn goes_on_without_recipe(subject: &Subject, checked: &Checked) -> bool {
    if checked.statement.is_none() {
        return false;
    }
    let mut left = false;
    for shelf in &subject.shelves {
        if shelf.is_of_hosts() || matches!(shelf, Shelf::Blob(_)) {
            left |= shelf.leave_recipe(subject.content).is_some();
        }
    }
    left
}

fn settle_of(subject: &Subject, link: &Link, bytes: &[u8]) -> Vec<HostKey> {
    let of = (subject.content, subject.chunk);
    settle((&subject.unfit, &subject.shelves), of, link, bytes)
}

/// Judges the parts of a chunk that came before and didn't fit: these bytes, which fit this link, are stored on these
/// shelves. Returns the peers that had sent other bytes than the chunk's.
pub(crate) fn settle(
    (unfit, shelves): (&Unfit, &[Shelf]),
    of: (Digest, ChunkIndex),
    link: &Link,
    bytes: &[u8],
) -> Vec<HostKey> {
    let settled = unfit.settle(of, link, bytes);
    if settled.ours_were_false {
        for shelf in shelves {
            shelf.part_was_false();
        }
    }
    settled.liars
}

/// Puts a part that came together with what is here, and stores the chunk if it fits its link. Blocks.
pub(super) fn store_part(
    subject: &Subject,
    peer: HostKey,
    (checked, lacking): (Checked, &Lacking),
    (encoding, bytes): (Encoding, Bytes),
) -> Receipt {
    let Some(came) = unpack(encoding, bytes, lacking.bytes()) else {
        return Receipt {
            false_bytes: true,
            ..Receipt::failed(Failure::Bad)
        };
    };
    // images that share the content may go by different recipes
    let mut shelves = subject.shelves.iter();
    let by = shelves.find(|shelf| {
        shelf
            .lacking_ranges(subject.content, subject.chunk)
            .is_some()
    });
    let given = by.and_then(|shelf| shelf.recipe_link(subject.content, subject.chunk));
    let Some(whole) = whole(subject, lacking, &came) else {
        return Receipt::failed(Failure::Cancelled);
    };
    if !checked.link.holds(subject.geometry, subject.chunk, &whole) {
        // what is here was found by the recipe, and makes its chunk: with another link it says nothing
        if given.is_some_and(|given| !given.is_alike(&checked.link)) {
            return Receipt::failed(Failure::Disproved);
        }
        let part = UnfitPart {
            content: subject.content,
            chunk: subject.chunk,
            sender: peer,
            link: checked.link,
            lacking: lacking.clone(),
            came: Digest::of(&came),
        };
        if subject.unfit.note(part) {
            forget(subject);
        }
        return Receipt::failed(Failure::Unfit);
    }
    let local_bytes = (whole.len() - came.len()) as u64;
    let mut receipt = store_bytes(subject, peer, &checked, &whole);
    if receipt.result.is_ok() {
        receipt.liars = settle_of(subject, &checked.link, &whole);
        receipt.local_bytes = local_bytes;
    }
    receipt
}

/// The whole chunk. `None` if more is lacking by now than came: a disk changed, or an image went.
fn whole(subject: &Subject, lacking: &Lacking, came: &[u8]) -> Option<Vec<u8>> {
    let (content, chunk) = (subject.content, subject.chunk);
    let mut shelves = subject.shelves.iter();
    let mut part = shelves.find_map(|shelf| shelf.part(content, chunk))?;
    let mut from = 0;
    for range in lacking.ranges() {
        let to = from + (range.end - range.start) as usize;
        if let Err(error) = part.fill(range.start, &came[from..to]) {
            tracing::debug!(%content, chunk = chunk.0, %error, "a part of a chunk can't be put in");
            forget(subject);
            return None;
        }
        from = to;
    }
    part.whole().ok()
}

fn forget(subject: &Subject) {
    for shelf in &subject.shelves {
        shelf.forget_part(subject.content, subject.chunk);
    }
}
