//! What staging is told.

use alloc::{string::String, vec::Vec};
use core::time::Duration;

use proto::{Digest, HostId, statement::Contradiction};

/// A content of an image, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// Its chunks.
    pub chunks: u32,
    /// Its raw bytes, by the image's manifest.
    pub size: u64,
    /// Bytes that it is in the registry.
    pub origin_bytes: u64,
}

/// The hosts that an image is wanted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All hosts of the fleet, also those that join later.
    All,
    /// These.
    Hosts(Vec<HostId>),
}

/// What an image is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// To be staged.
    Stage,
    /// Clients of hosts' mirrors wait for it. Its registry may be any: what that registry does says nothing of the
    /// images that are staged, nor of their registry.
    Mirror,
}

/// Where an image stands on one host, as that host reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Waits for room or for its turn.
    Queued,
    /// Chunks move.
    Staging,
    /// All chunks are there; it is being put into tart's cache.
    Installing,
    /// Verified and ready to use.
    Present,
    /// Can't be staged for now; the host says why.
    Failed,
    /// Was present, isn't any more.
    Gone,
}

/// What is wrong with one content in a registry that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The registry's bytes, or their number, don't match the manifest.
    Bad,
    /// The registry says that it doesn't have the content.
    Missing,
    /// The registry refuses it to these credentials.
    Refused,
    /// The registry answers with something that can't be used, such as a redirect that mustn't be followed.
    Unusable,
    /// The registry gives no parts of it, and its connections end before the content does: a try costs all that comes
    /// until then, and brings nothing that wasn't here.
    CutShort,
    /// The registry hangs, breaks off or answers with errors, with one host after another, while it gives other
    /// contents. No host says so by itself: it is found out from how leases end.
    Unavailable,
}

/// How a lease ended on its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseEnd {
    /// The whole content is there.
    Done,
    /// The registry is away: it can't be reached, or fails.
    OriginFailed,
    /// The registry answers, but this content can't be had from it.
    Faulty(Fault),
    /// This host can't ask the registry, because of its own settings.
    HostUnable,
    /// Given back.
    Released,
}

/// What the registry does to the holder of a running lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// It can't be reached, breaks off, or answers with errors; the holder tries again.
    Failing,
    /// Nothing has come for a while, and nothing was said.
    Silent,
    /// It wants to be left alone for so long from now.
    Throttled(Duration),
}

impl Trouble {
    pub(crate) const fn is_silence(self) -> bool {
        matches!(self, Self::Silent)
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host of the fleet, known from the fleet file or the cluster; may have no session.
    HostKnown {
        /// The host.
        host: HostId,
        /// Its zone, empty for none.
        zone: String,
    },
    /// The host isn't part of the fleet any more.
    HostForgotten(HostId),
    /// The host's session is up; its reports follow.
    HostConnected(HostId),
    /// The host's session is lost.
    HostDisconnected(HostId),
    /// An image is wanted. The same image with another selection or other references changes those. A host that
    /// leaves the selection drops what it had of the image, unless it is in `held`.
    Wanted {
        /// Its manifest digest.
        image: Digest,
        /// What names it.
        references: Vec<String>,
        /// What it consists of, in the order in which it is to be fetched.
        contents: Vec<Content>,
        /// Where.
        hosts: Selection,
        /// Hosts outside of the selection that keep what they have, and get no more: it may be wanted there again.
        held: Vec<HostId>,
        /// What for; stays what it was at first.
        purpose: Purpose,
    },
    /// The image isn't wanted any more: staging stops, what is present stays.
    Cancelled(Digest),
    /// Somebody asks for this image anew: what can't be had of it is tried at once.
    Urged(Digest),
    /// Everything that was wanted when this coordinator started has been told. What hosts stage besides is left over
    /// from an earlier coordinator, and is cancelled when they report it.
    WantsKnown,
    /// A host reported where an image stands.
    Reported {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
        /// Its standing.
        standing: Standing,
        /// Raw bytes held there.
        held_bytes: u64,
    },
    /// A lease holder reported where its fetch stands.
    LeaseProgress {
        /// The holder.
        host: HostId,
        /// The content.
        content: Digest,
        /// Chunks fetched so far.
        chunks: u32,
        /// Bytes of the blob that came so far, also of a chunk that isn't whole; 0 from a host that doesn't say.
        bytes: u64,
        /// Whether it holds back while what it fetched is being spread: that counts as progress.
        paced: bool,
        /// What keeps the registry from giving it more.
        trouble: Option<Trouble>,
    },
    /// A lease ended on its holder.
    LeaseEnded {
        /// The holder.
        host: HostId,
        /// The content.
        content: Digest,
        /// How.
        end: LeaseEnd,
    },
    /// All leases that a host has, as it says. A lease that it was granted in an earlier session and doesn't name is
    /// lost.
    LeasesHeld {
        /// The host.
        host: HostId,
        /// The contents.
        contents: Vec<Digest>,
    },
    /// A host lacks chunks of these contents that none of its connected peers has. Replaces what it said before.
    WithoutSource {
        /// The host.
        host: HostId,
        /// The contents; empty when there are none any more.
        contents: Vec<Digest>,
    },
    /// A host says how many chunks it holds of each content: of all at the start of a session, then of those where
    /// the number changed. Other hosts are believed by what it says.
    Holds {
        /// The host.
        host: HostId,
        /// The contents, and the chunks of each.
        contents: Vec<(Digest, u32)>,
    },
    /// A host blames another for something that only the two of them saw: bytes that didn't fit their link.
    Blamed {
        /// Who says so.
        by: HostId,
        /// Who sent it.
        host: HostId,
    },
    /// A host that has verified a content says that a link of it is false. The maker's signature under the link was
    /// checked.
    FalseLink {
        /// Who says so.
        by: HostId,
        /// Who signed it.
        maker: HostId,
        /// Of which content.
        content: Digest,
        /// The maker vouched for it: it can't be the registry's fault.
        vouched: bool,
    },
    /// Two links that a host signed can't both be true. The signatures were checked: this needs no witness.
    Contradicted {
        /// Who signed both.
        maker: HostId,
        /// What they say about it.
        says: Contradiction,
    },
    /// A host that fetched a content found the registry's bytes false, and takes back what it made of them.
    Retracted {
        /// The host.
        host: HostId,
        /// The content.
        content: Digest,
        /// The first false chunk.
        from: u32,
    },
    /// So many contents may be leased at one time from now on. Leases that run go on.
    Limited {
        /// The number, at least one.
        origin_streams: usize,
    },
    /// Time passed; only `now` matters.
    Tick,
}
