//! The news that images get about their contents.

use proto::Digest;

use super::trouble::Trouble;

/// News of a content, for an image that it is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageNews {
    /// This many more bytes are held.
    Gained(u64),
    /// This many fewer bytes are held.
    Lost(u64),
    /// This many bytes came from the registry. So the registry isn't in trouble.
    FromOrigin(u64),
    /// This many bytes came from peers.
    FromPeers(u64),
    /// This many bytes were here already, and a peer sent the rest of their chunk.
    FromHere(u64),
    /// This many bytes of the image's recipe came.
    OfRecipe(u64),
    /// This many bytes went to peers.
    Uploaded(u64),
    /// The registry makes trouble.
    OriginTrouble(Trouble),
    /// The registry's trouble is over, or doesn't matter any more.
    OriginIsFine,
    /// This content is verified.
    Closed(Digest),
    /// This content isn't verified any more.
    Opened(Digest),
    /// The image's files took no chunk, although other images' did.
    Unwritable(String),
}
