//! What images are told of their contents.

use proto::Digest;

use super::trouble::Trouble;

/// News of a content, for an image that it is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageNews {
    /// So many bytes more are held.
    Gained(u64),
    /// So many bytes less are held.
    Lost(u64),
    /// So many bytes came from the registry, which is no trouble then.
    FromOrigin(u64),
    /// So many bytes came from peers.
    FromPeers(u64),
    /// So many bytes went to peers.
    Uploaded(u64),
    /// The registry is in the way.
    OriginTrouble(Trouble),
    /// The registry is in nobody's way any more.
    OriginIsFine,
    /// This content is verified.
    Closed(Digest),
    /// This content isn't verified any more.
    Opened(Digest),
    /// The image's files took no chunk, although other images' did.
    Unwritable(String),
}
