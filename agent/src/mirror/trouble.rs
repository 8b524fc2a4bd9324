//! What those who wait for a blob are told.

use std::fmt;

use origin::OriginError;

/// Why nothing comes of a blob, for those who wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The registry refuses it, to this client or to anybody.
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

/// What readers wait for a change of.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    /// Rises with every chunk, and with every promise of some.
    pub(crate) revision: u64,
    /// Rises when bytes that may have left turned out false: whoever began before has to end.
    pub(crate) epoch: u64,
    /// Why nothing comes; taken back when something does.
    pub(crate) trouble: Option<Trouble>,
}
