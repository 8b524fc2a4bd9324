//! Statements: which host answers for a link.
//!
//! A link that fits its bytes proves nothing alone ([`crate::chain`]). So every link that travels is signed by a host
//! that answers for it. There are two kinds:
//! - **Made**: a host read the registry's bytes under a lease. With the lease, the coordinator gave it a [`Ticket`] for
//!   that content. The links of one pass over the bytes are one *run*, and each joins the next. A run that doesn't
//!   begin at the first chunk carries the signed link that it continues, its *base*.
//! - **Vouched**: a host has verified its own copy of the content against the digest. It signs with its standing
//!   ticket.
//!
//! A false vouched link is a lie. A false made link may be the registry's fault. But two links of one run that don't
//! join, or that differ for one chunk, are a lie as well ([`contradiction`]).
//!
//! The caller passes functions that sign and check signatures: this crate has no cryptography besides hashes.

use alloc::{boxed::Box, sync::Arc, vec::Vec};

use prost::Message as _;

use crate::{
    chain::{Link, State},
    chunks::ChunkIndex,
    digest::Digest,
    host::HostId,
    message::{self, FieldError},
};

/// Prefix of what the authority signs, so that no certificate or other message can be taken for a ticket.
const TICKET_DOMAIN: &[u8] = b"parbake ticket 1\0";
/// Prefix of what a maker signs, so that no other message can be taken for a link.
const LINK_DOMAIN: &[u8] = b"parbake link 1\0";

/// A host's public key for links (Ed25519).
pub type LinkKey = [u8; 32];
/// A host's signature of a link (Ed25519).
pub type LinkSignature = [u8; 64];

/// The most bytes of a ticket's body. A digest, a host id of 253 bytes, a key and two numbers need 350.
const MAX_BODY_BYTES: usize = 512;
/// The most bytes of the authority's signature. ECDSA P-256 in ASN.1 takes 72 at most.
const MAX_SIGNATURE_BYTES: usize = 80;

/// The coordinator's permission to make links of one content, or to vouch for any content.
///
/// A value of this type is well-formed. [`Verify::ticket`] says whether the authority signed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    content: Option<Digest>,
    maker: HostId,
    key: LinkKey,
    number: u64,
    expires_at: u64,
    body: Vec<u8>,
    signature: Vec<u8>,
}

impl Ticket {
    /// A new ticket. `sign` is given the bytes that the authority signs. `expires_at` is in Unix seconds.
    ///
    /// # Errors
    /// The errors of `sign`.
    pub fn issue<E>(
        content: Option<Digest>,
        maker: &HostId,
        key: LinkKey,
        number: u64,
        expires_at: u64,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let body = message::TicketBody {
            content: content.map_or_else(Vec::new, |content| content.as_bytes().to_vec()),
            maker: maker.as_str().into(),
            key: key.to_vec(),
            number,
            expires_at,
        };
        let body = body.encode_to_vec();
        let signature = sign(&ticket_bytes(&body))?;
        Ok(Self {
            content,
            maker: maker.clone(),
            key,
            number,
            expires_at,
            body,
            signature,
        })
    }

    /// The content of which the host may make links; `None` for a standing ticket, with which it vouches.
    #[must_use]
    pub const fn content(&self) -> Option<Digest> {
        self.content
    }

    /// The host that the ticket is for.
    #[must_use]
    pub const fn maker(&self) -> &HostId {
        &self.maker
    }

    /// The public key of the host's link signatures.
    #[must_use]
    pub const fn key(&self) -> &LinkKey {
        &self.key
    }

    /// The ticket's number: larger than that of every earlier ticket of the host.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The Unix time in seconds from which on the ticket isn't valid.
    #[must_use]
    pub const fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// The bytes that the authority signed.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        ticket_bytes(&self.body)
    }

    /// The authority's signature.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The ticket as a message.
    #[must_use]
    pub fn to_message(&self) -> message::Ticket {
        message::Ticket {
            body: self.body.clone(),
            signature: self.signature.clone(),
        }
    }

    /// The ticket as bytes, for storage.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    /// Reads the bytes of [`to_bytes`](Self::to_bytes). Doesn't check the signature.
    ///
    /// # Errors
    /// When the bytes aren't a ticket.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FieldError> {
        Self::parse(&message::Ticket::decode(bytes).map_err(|_| FieldError::Statement)?)
    }

    /// Reads a ticket. Doesn't check the signature.
    ///
    /// # Errors
    /// When a field is malformed or too long.
    pub fn parse(message: &message::Ticket) -> Result<Self, FieldError> {
        let long =
            message.body.len() > MAX_BODY_BYTES || message.signature.len() > MAX_SIGNATURE_BYTES;
        if long {
            return Err(FieldError::Statement);
        }
        let body = message::TicketBody::decode(message.body.as_slice())
            .map_err(|_| FieldError::Statement)?;
        let content = match body.content.as_slice() {
            [] => None,
            bytes => Some(Digest::try_from(bytes)?),
        };
        Ok(Self {
            content,
            maker: body.maker.parse()?,
            key: body.key.try_into().map_err(|_| FieldError::Statement)?,
            number: body.number,
            expires_at: body.expires_at,
            body: message.body.clone(),
            signature: message.signature.clone(),
        })
    }
}

fn ticket_bytes(body: &[u8]) -> Vec<u8> {
    [TICKET_DOMAIN, body].concat()
}

/// What the links of one pass over the registry's bytes have in common. Or, with number 0, everything that a host
/// vouches for under one ticket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    ticket: Arc<Ticket>,
    /// 0 for a vouched run.
    number: u64,
    first: ChunkIndex,
    base_digest: Option<Digest>,
    /// Absent in a run that begins at the first chunk, and in the run of a base.
    base: Option<Arc<Signed>>,
}

impl Run {
    /// A pass that begins with the content's first chunk, or with the chunk after `base`. `number` differs for each
    /// pass of a host.
    ///
    /// # Panics
    /// When `number` is 0.
    #[must_use]
    pub fn made(ticket: Arc<Ticket>, number: u64, base: Option<Signed>) -> Self {
        assert!(number > 0, "a run that is made has a number");
        let first = base.as_ref().map_or(0, |base| base.chunk.0 + 1);
        Self {
            ticket,
            number,
            first: ChunkIndex(first),
            base_digest: base.as_ref().map(|base| Digest::of(&base.signed_bytes())),
            base: base.map(|base| Arc::new(base.without_base())),
        }
    }

    /// Everything that a host vouches for under this standing ticket.
    #[must_use]
    pub const fn vouched(ticket: Arc<Ticket>) -> Self {
        Self {
            ticket,
            number: 0,
            first: ChunkIndex(0),
            base_digest: None,
            base: None,
        }
    }

    /// The ticket under which the run's links are signed.
    #[must_use]
    pub const fn ticket(&self) -> &Arc<Ticket> {
        &self.ticket
    }

    /// The number of the maker's pass; 0 for a vouched run.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The first chunk of the pass.
    #[must_use]
    pub const fn first(&self) -> ChunkIndex {
        self.first
    }

    /// Whether the maker vouches: it has verified its own copy of the content.
    #[must_use]
    pub const fn is_vouched(&self) -> bool {
        self.number == 0
    }

    /// The signed link that the pass continues.
    #[must_use]
    pub const fn base(&self) -> Option<&Arc<Signed>> {
        self.base.as_ref()
    }

    /// Whether both runs are the same pass of the same host, whatever else they say.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.number == other.number
            && self.ticket.key == other.ticket.key
            && (self.number == 0 || self.ticket.number == other.ticket.number)
    }

    /// Whether the same host made both runs under the same ticket, or vouched for both.
    #[must_use]
    pub fn shares_ticket(&self, other: &Self) -> bool {
        self.is_vouched() == other.is_vouched()
            && self.ticket.key == other.ticket.key
            && (self.is_vouched() || self.ticket.number == other.ticket.number)
    }

    /// The run as a message for the network or the journal, without a signature.
    #[must_use]
    pub fn to_message(&self) -> message::Statement {
        message::Statement {
            ticket: Some(self.ticket.to_message()),
            run: self.number,
            first: self.first.0,
            base_digest: self
                .base_digest
                .map_or_else(Vec::new, |digest| digest.as_bytes().to_vec()),
            base: self.base.as_ref().map(|base| Box::new(base.to_message())),
            signature: Vec::new(),
        }
    }

    /// The run as bytes, for the journal.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    /// Reads the bytes of [`to_bytes`](Self::to_bytes), for a run over this content.
    ///
    /// # Errors
    /// When the bytes aren't a run.
    pub fn from_bytes(content: Digest, bytes: &[u8]) -> Result<Self, FieldError> {
        let message = message::Statement::decode(bytes).map_err(|_| FieldError::Statement)?;
        Self::parse(content, &message)
    }

    /// Reads a run over this content.
    ///
    /// # Errors
    /// When a field is malformed, or the base doesn't have the digest that the run names.
    pub fn parse(content: Digest, message: &message::Statement) -> Result<Self, FieldError> {
        Self::parse_at(content, message, 0)
    }

    fn parse_at(
        content: Digest,
        message: &message::Statement,
        depth: u32,
    ) -> Result<Self, FieldError> {
        let ticket = message.ticket.as_ref().ok_or(FieldError::Statement)?;
        let base_digest = match message.base_digest.as_slice() {
            [] => None,
            bytes => Some(Digest::try_from(bytes)?),
        };
        let begins = message.first == 0;
        if begins != base_digest.is_none() || (message.run == 0 && !begins) {
            return Err(FieldError::Statement);
        }
        let base = match &message.base {
            Some(_) if depth > 0 => return Err(FieldError::Statement),
            Some(link) => {
                let chunk = message.first.checked_sub(1).ok_or(FieldError::Statement)?;
                let base = Signed::parse_at(content, ChunkIndex(chunk), link, depth + 1)?;
                if Some(Digest::of(&base.signed_bytes())) != base_digest {
                    return Err(FieldError::Statement);
                }
                Some(Arc::new(base))
            }
            None if depth == 0 && !begins => return Err(FieldError::Statement),
            None => None,
        };
        Ok(Self {
            ticket: Arc::new(Ticket::parse(ticket)?),
            number: message.run,
            first: ChunkIndex(message.first),
            base_digest,
            base,
        })
    }
}

/// Which host answers for a link, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The run that the link belongs to.
    pub run: Arc<Run>,
    /// The maker's signature.
    pub signature: LinkSignature,
}

/// A link with the statement of the host that answers for it. It can be shown to other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The content.
    pub content: Digest,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// The link.
    pub link: Link,
    /// The maker's statement.
    pub statement: Statement,
}

impl PartialOrd for Signed {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Signed {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        let key = |signed: &Self| (signed.signed_bytes(), signed.statement.signature);
        key(self).cmp(&key(other))
    }
}

/// Checks signatures.
pub trait Verify {
    /// Whether the fleet's authority signed this ticket.
    fn ticket(&self, ticket: &Ticket) -> bool;
    /// Whether the holder of this key signed these bytes.
    fn link(&self, key: &LinkKey, bytes: &[u8], signature: &LinkSignature) -> bool;
}

/// Why a statement isn't accepted. Its link isn't stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// This fleet's authority didn't sign the ticket.
    #[error("ticket isn't signed by the fleet's authority")]
    Ticket,
    /// The ticket is for another content. Or the link is made under a standing ticket, which is allowed only while the
    /// coordinator is away.
    #[error("ticket doesn't allow to make links of this content")]
    Unleased,
    /// The ticket has expired, by this host's clock.
    #[error("ticket has expired")]
    Expired,
    /// The first link of a run doesn't start where its base ends.
    #[error("link doesn't start where the one that it went on from ends")]
    Base,
    /// The maker didn't sign this.
    #[error("link isn't signed by its maker")]
    Signature,
}

impl Signed {
    /// Signs a link.
    #[must_use]
    pub fn new(
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        run: Arc<Run>,
        sign: impl FnOnce(&[u8]) -> LinkSignature,
    ) -> Self {
        let signature = sign(&link_bytes(&content, chunk, &link, &run));
        Self {
            content,
            chunk,
            link,
            statement: Statement { run, signature },
        }
    }

    /// The host that answers for the link.
    #[must_use]
    pub fn maker(&self) -> &HostId {
        &self.statement.run.ticket.maker
    }

    /// The bytes that the maker signed.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        link_bytes(&self.content, self.chunk, &self.link, &self.statement.run)
    }

    /// Checks that the maker signed the link and was allowed to make it. `now` is in Unix seconds. `alone` says that
    /// this host has no coordinator, or had none a moment ago: it then accepts links that were made under a standing
    /// ticket.
    ///
    /// # Errors
    /// When the link isn't to be stored.
    pub fn verify(
        &self,
        now: u64,
        alone: bool,
        verify: &impl Verify,
    ) -> Result<(), StatementError> {
        let run = &*self.statement.run;
        let ticket = &*run.ticket;
        if now >= ticket.expires_at {
            return Err(StatementError::Expired);
        }
        self.verify_signed(alone, verify)?;
        let Some(base) = &run.base else { return Ok(()) };
        // an old base says nothing against the host that continues it
        base.verify_signed(true, verify)?;
        if self.chunk == run.first && self.link.before != base.link.after {
            return Err(StatementError::Base);
        }
        Ok(())
    }

    /// Checks the signatures and the permission, but no expiry: an old statement still convicts its maker.
    ///
    /// # Errors
    /// When the maker didn't sign the link, the authority didn't sign the ticket, or the ticket doesn't allow the link.
    pub fn verify_signed(&self, alone: bool, verify: &impl Verify) -> Result<(), StatementError> {
        let run = &*self.statement.run;
        let ticket = &*run.ticket;
        let allowed = match ticket.content {
            Some(content) => content == self.content,
            None => run.is_vouched() || alone,
        };
        if !allowed {
            return Err(StatementError::Unleased);
        }
        if self.chunk < run.first {
            return Err(StatementError::Base);
        }
        if !verify.ticket(ticket) {
            return Err(StatementError::Ticket);
        }
        if !verify.link(&ticket.key, &self.signed_bytes(), &self.statement.signature) {
            return Err(StatementError::Signature);
        }
        Ok(())
    }

    fn without_base(mut self) -> Self {
        if self.statement.run.base.is_some() {
            let run = Run {
                base: None,
                ..(*self.statement.run).clone()
            };
            self.statement.run = Arc::new(run);
        }
        self
    }

    /// The link as a message.
    #[must_use]
    pub fn to_message(&self) -> message::Link {
        let statement = message::Statement {
            signature: self.statement.signature.to_vec(),
            ..self.statement.run.to_message()
        };
        message::Link {
            statement: Some(Box::new(statement)),
            ..message::Link::new(&self.link, self.maker())
        }
    }

    /// Reads a link of this chunk with its statement. Doesn't check signatures.
    ///
    /// # Errors
    /// When a field is malformed, or there is no statement.
    pub fn parse(
        content: Digest,
        chunk: ChunkIndex,
        link: &message::Link,
    ) -> Result<Self, FieldError> {
        Self::parse_at(content, chunk, link, 0)
    }

    fn parse_at(
        content: Digest,
        chunk: ChunkIndex,
        message: &message::Link,
        depth: u32,
    ) -> Result<Self, FieldError> {
        let (link, maker) = message.parse()?;
        let statement = message.statement.as_ref().ok_or(FieldError::Unsigned)?;
        let run = Run::parse_at(content, statement, depth)?;
        if run.ticket.maker != maker {
            return Err(FieldError::Statement);
        }
        let signature = statement.signature.as_slice().try_into();
        Ok(Self {
            content,
            chunk,
            link,
            statement: Statement {
                run: Arc::new(run),
                signature: signature.map_err(|_| FieldError::Statement)?,
            },
        })
    }
}

fn link_bytes(content: &Digest, chunk: ChunkIndex, link: &Link, run: &Run) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(LINK_DOMAIN);
    bytes.extend_from_slice(content.as_bytes());
    bytes.extend_from_slice(&chunk.0.to_be_bytes());
    bytes.extend_from_slice(&link.before.to_bytes());
    bytes.extend_from_slice(&link.after.to_bytes());
    bytes.extend_from_slice(&link.fingerprint.0);
    let (known, blob_offset, skip_bytes) = link.resume.map_or((0, 0, 0), |resume| {
        (1, resume.blob_offset, resume.skip_bytes)
    });
    bytes.push(known);
    bytes.extend_from_slice(&blob_offset.to_be_bytes());
    bytes.extend_from_slice(&skip_bytes.to_be_bytes());
    bytes.extend_from_slice(&run.ticket.number.to_be_bytes());
    bytes.extend_from_slice(&run.number.to_be_bytes());
    bytes.extend_from_slice(&run.first.0.to_be_bytes());
    let base = run.base_digest.map_or([0; 32], |digest| *digest.as_bytes());
    bytes.extend_from_slice(&base);
    bytes
}

/// What two links that one host signed, and that can't both be true, say about the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contradiction {
    /// The host signed something false, or the registry gave it other bytes the second time.
    False,
    /// The host lies: it made both links of a run itself, or it vouched for both and so had verified both.
    Lie,
}

/// What these two links say about the host that signed both; `None` where both may be true, or two hosts signed them.
/// The caller has checked the signatures.
#[must_use]
pub fn contradiction(one: &Signed, other: &Signed) -> Option<Contradiction> {
    let (a, b) = (&*one.statement.run, &*other.statement.run);
    if one.content != other.content || a.ticket.maker != b.ticket.maker {
        return None;
    }
    let differ = one.chunk == other.chunk && states(&one.link) != states(&other.link);
    let apart = |one: &Signed, other: &Signed| {
        one.chunk.0.checked_add(1) == Some(other.chunk.0) && one.link.after != other.link.before
    };
    if a.is_same(b) && (differ || apart(one, other) || apart(other, one)) {
        return Some(Contradiction::Lie);
    }
    let forked = differ && one.link.before == other.link.before;
    (forked && !a.is_vouched() && !b.is_vouched()).then_some(Contradiction::False)
}

fn states(link: &Link) -> (State, State) {
    (link.before, link.after)
}

/// Returns the link whose maker is to blame for a signed link, once the content's true states are known. `truth` gives
/// the state before each chunk; for the number after the last chunk, it gives the state after the last chunk.
///
/// `None` where the link is true, where `truth` lacks a state, or where the maker continued another host's false link
/// and can't be shown to have lied. A false base is blamed in place of the link.
#[must_use]
pub fn judge(signed: &Signed, truth: &impl Fn(ChunkIndex) -> Option<State>) -> Option<Signed> {
    let after = |chunk: ChunkIndex| truth(ChunkIndex(chunk.0.checked_add(1)?));
    let before_is_true = truth(signed.chunk)? == signed.link.before;
    let after_is_true = after(signed.chunk)? == signed.link.after;
    if before_is_true && after_is_true {
        return None;
    }
    let run = &*signed.statement.run;
    // the maker began with a true state, or with the content's first chunk, or has verified all
    if before_is_true || run.is_vouched() || run.first.0 == 0 {
        return Some(signed.clone());
    }
    let Some(base) = &run.base else {
        // a base carries no base of its own: other hosts have the links of the maker before, and judge those
        return None;
    };
    if after(base.chunk)? == base.link.after {
        return Some(signed.clone());
    }
    judge(base, truth)
}

#[cfg(test)]
mod tests;
