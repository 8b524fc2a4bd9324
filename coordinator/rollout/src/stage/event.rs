//! Staging's events: what the plan is told.

use alloc::{string::String, vec::Vec};
use core::time::Duration;

use proto::{ChunkRange, Digest, HostId, statement::Contradiction};

/// A content of an image, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The content's digest.
    pub digest: Digest,
    /// The number of its chunks.
    pub chunks: u32,
    /// The raw bytes, by the image's manifest.
    pub size: u64,
    /// The bytes of its blob in the registry.
    pub origin_bytes: u64,
}

/// The hosts on which an image is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All hosts of the fleet, also those that join later.
    All,
    /// These hosts.
    Hosts(Vec<HostId>),
}

/// The reason for which an image is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// The image is to be staged.
    Stage,
    /// Clients of hosts' mirrors wait for it. Any client may name any registry. So trouble with that registry says
    /// nothing about the staged images or their registry.
    Mirror,
}

/// The state of an image on one host, as that host reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// The image waits for disk space or for its turn.
    Queued,
    /// Chunks of the image move.
    Staging,
    /// All chunks are there. The image is being put into tart's cache.
    Installing,
    /// The image is verified and ready to use.
    Present,
    /// The image can't be staged for now. The host says why.
    Failed,
    /// The image was present and isn't any more.
    Gone,
}

/// A fault of one content in a registry that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The registry's bytes, or their number, don't match the manifest.
    Bad,
    /// The registry says that it doesn't have the content.
    Missing,
    /// The registry refuses it to these credentials.
    Refused,
    /// The registry answers with something unusable, such as a redirect that mustn't be followed.
    Unusable,
    /// The registry serves no parts of the content, and its connections end before the content does. A try costs all
    /// the bytes that come until then, and brings nothing that wasn't here before.
    CutShort,
    /// The registry hangs, breaks off or answers with errors, for one host after another, while it gives other
    /// contents. No host reports this fault: the plan infers it from how leases end.
    Unavailable,
}

/// How a lease ended, as its holder reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseEnd {
    /// The whole content is there.
    Done,
    /// The registry can't be reached, or fails.
    OriginFailed,
    /// The registry answers, but this content can't be had from it.
    Faulty(Fault),
    /// The host's own settings keep it from asking the registry.
    HostUnable,
    /// The holder gave the lease back.
    Released,
}

/// What the registry does to the holder of a running lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The registry can't be reached, breaks off, or answers with errors. The holder tries again.
    Failing,
    /// Nothing has come for a while, and the registry didn't say why.
    Silent,
    /// The registry wants to be left alone for this long from now on.
    Throttled(Duration),
}

impl Trouble {
    pub(crate) const fn is_silence(self) -> bool {
        matches!(self, Self::Silent)
    }
}

/// An event that the plan is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A host of the fleet, known from the fleet file or the cluster. It may have no session.
    HostKnown {
        /// The host.
        host: HostId,
        /// The host's zone; empty for none.
        zone: String,
    },
    /// The host isn't part of the fleet any more.
    HostForgotten(HostId),
    /// The host's session is up; its reports follow.
    HostConnected(HostId),
    /// In this session the host takes leases of ranges. It follows `HostConnected`.
    TakesRanges(HostId),
    /// The host's session is lost.
    HostDisconnected(HostId),
    /// An image is wanted. If the image is wanted already, its selection and its references are replaced. A host that
    /// leaves the selection drops what it had of the image, unless it is in `paused`.
    Wanted {
        /// The image's manifest digest.
        image: Digest,
        /// The references that name the image.
        references: Vec<String>,
        /// The image's contents, in the order in which they are to be fetched.
        contents: Vec<Content>,
        /// The image's recipe: one more content, fetched before the others, without which the image is staged as well.
        /// Another one replaces that of an image that is wanted already.
        recipe: Option<Content>,
        /// The hosts on which the image is wanted.
        hosts: Selection,
        /// Hosts outside the selection that keep what they have and get no more. The image may be wanted there again.
        paused: Vec<HostId>,
        /// The purpose. The first one stays.
        purpose: Purpose,
    },
    /// How urgent an image is beside others: see [`sequence`](crate::stage::sequence). Before this event comes, the
    /// image has no priority, no Pod waits for it, and it was asked for when it was first wanted. An image that isn't
    /// wanted has no urgency.
    Ranked {
        /// The image.
        image: Digest,
        /// The operators' preference: higher comes first.
        priority: i32,
        /// When the image was first asked for, in milliseconds. All images' times are by one clock.
        asked_ms: u64,
        /// The hosts on which a Pod waits for the image.
        awaited: Vec<HostId>,
    },
    /// The image isn't wanted any more. Staging stops; images that are present stay.
    Cancelled(Digest),
    /// Somebody asks for this image anew. Contents that couldn't be had are tried at once.
    Urged(Digest),
    /// Everything that was wanted when this coordinator started has been told. Images that hosts stage besides are left
    /// over from an earlier coordinator. They are cancelled when hosts report them.
    WantsKnown,
    /// A host reported the state of an image.
    Reported {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
        /// The state.
        standing: Standing,
        /// The raw bytes of the image that the host holds.
        held_bytes: u64,
    },
    /// A lease holder reported on its fetch.
    LeaseProgress {
        /// The holder.
        host: HostId,
        /// The content.
        content: Digest,
        /// The chunks that the lease is for; `None`: all of them.
        range: Option<ChunkRange>,
        /// Chunks fetched so far.
        chunks: u32,
        /// The blob's bytes that came so far, with those of an incomplete chunk. 0 from a host that doesn't report
        /// them.
        bytes: u64,
        /// Whether the holder waits until the chunks that it fetched have spread. That counts as progress.
        paced: bool,
        /// What keeps the registry from giving the holder more.
        trouble: Option<Trouble>,
    },
    /// A lease ended, as its holder reports.
    LeaseEnded {
        /// The holder.
        host: HostId,
        /// The content.
        content: Digest,
        /// The chunks that the lease was for; `None`: all of them.
        range: Option<ChunkRange>,
        /// How.
        end: LeaseEnd,
    },
    /// A host listed all leases that it has. Leases that it was granted in an earlier session and doesn't list are
    /// lost.
    LeasesClaimed {
        /// The host.
        host: HostId,
        /// The contents, each with the chunks that the lease is for; `None`: all of them.
        leases: Vec<(Digest, Option<ChunkRange>)>,
    },
    /// A host lacks chunks of these contents that none of its connected peers has. Replaces the host's earlier list.
    WithoutSource {
        /// The host.
        host: HostId,
        /// The contents; empty once there are none.
        contents: Vec<Digest>,
    },
    /// A host reports how many chunks it holds of each content: of all contents at the start of a session, then of
    /// those where the number changed. These reports show what other hosts serve.
    Holds {
        /// The host.
        host: HostId,
        /// The contents, and the number of chunks held of each.
        contents: Vec<(Digest, u32)>,
    },
    /// A host blames another for something that only the two of them saw: bytes that didn't fit their link.
    Blamed {
        /// The accuser.
        by: HostId,
        /// The host that sent the bytes.
        host: HostId,
    },
    /// A host that has verified a content says that a link of the content is false. The maker's signature of the link
    /// was checked.
    FalseLink {
        /// The accuser.
        by: HostId,
        /// The maker, which signed the link.
        maker: HostId,
        /// The content.
        content: Digest,
        /// Whether the maker vouched for the link. Then the registry can't be at fault.
        vouched: bool,
    },
    /// Two links that one host signed can't both be true. The signatures were checked, so no witness is needed.
    Contradicted {
        /// The host that signed both links.
        maker: HostId,
        /// What the two links say about the host.
        says: Contradiction,
    },
    /// A host that fetched a content found the registry's bytes false, and takes back the links that it made.
    Retracted {
        /// The host.
        host: HostId,
        /// The content.
        content: Digest,
        /// The first false chunk.
        from: u32,
    },
    /// The holder of a content's lease says that the registry's bytes don't fit an image's recipe, which the shell
    /// found to be the image's. Others go by that when another host says the same, or no other can. Soon after a start
    /// ([`Plan::hears_of_earlier_doubts`](crate::stage::Plan::hears_of_earlier_doubts)), a host without the lease is
    /// heard as well.
    RecipeDoubted {
        /// The host.
        host: HostId,
        /// The image.
        image: Digest,
        /// The content.
        content: Digest,
        /// The first chunk that doesn't fit.
        chunk: u32,
    },
    /// Hosts prove this image by another recipe than before, or by another one that only hosts have. What was said
    /// against the one before says nothing of it.
    OtherRecipe(Digest),
    /// From now on, this many contents may be leased at one time. Running leases go on.
    Limited {
        /// The number of contents, at least one.
        origin_streams: usize,
    },
    /// Time passed; only `now` matters.
    Tick,
}
