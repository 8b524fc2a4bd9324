//! What readers who wait for a blob are told.

use std::fmt;

use origin::OriginError;

/// Why no bytes of a blob come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The registry refuses the blob, to this client or to everybody.
    Refused(OriginError),
    /// The registry's bytes don't have the blob's digest.
    Bad(String),
    /// The volume failed or is full.
    Disk(String),
    /// No source gave anything for too long.
    Stalled(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Bad(message) | Self::Disk(message) | Self::Stalled(message) => {
                f.write_str(message)
            }
        }
    }
}

/// The state of a blob whose changes wake its readers.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Rises with every new chunk, and when chunks are promised.
    pub(crate) revision: u64,
    /// Rises when bytes that may have left turned out false. A reader that began in an earlier epoch has to end.
    pub(crate) epoch: u64,
    /// Why nothing comes. Removed when a chunk comes.
    pub(crate) trouble: Option<Trouble>,
}
