//! Signed links between chunks: who made them, and which of them are false.

/// One pass of a host over the registry's bytes, or what a liar says is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) maker: u32,
    pub(super) ticket: u32,
}

/// A signed link that can't be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FalseLink {
    pub(super) run: u32,
    /// Who lied or was given false bytes, as the link and the link before it show. `None` where others have to judge
    /// that.
    pub(super) guilty: Option<u32>,
    /// The registry gave false bytes.
    pub(super) registry: bool,
}

/// What a transfer really carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lie {
    None,
    /// Bytes that don't fit their link.
    Bytes,
    /// An invented link, and bytes that fit it, in this run of this host's.
    Link(u32),
}
