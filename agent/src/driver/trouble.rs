//! Why an image isn't present on this host: a reason of a closed set, which operators see, and the story.

use crate::store::{BeginError, InstallError};

/// An install waits for tart's lock.
pub(super) const TART_BUSY: &str = "tart_busy";
/// The files of an image were removed.
pub(super) const REMOVED: &str = "removed";
/// The bytes of an image on the disk are read again before they count.
pub(super) const CHECKING: &str = "checking";
/// A fetch from the registry has trouble and goes on trying.
pub(super) const ORIGIN_TROUBLE: &str = "origin_trouble";
/// A fetch from the registry has ended because of the registry.
pub(super) const ORIGIN_FAILED: &str = "origin_failed";
/// This host can't ask a registry, because of its own settings.
pub(super) const ORIGIN_SETTINGS: &str = "origin_settings";
/// The registry's bytes aren't what the manifest says.
pub(super) const CONTENT_BAD: &str = "content_bad";

/// Why something on this host failed: a reason of a closed set, and the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl From<&BeginError> for Trouble {
    fn from(error: &BeginError) -> Self {
        let reason = match error {
            BeginError::Reference(_) => "bad_reference",
            BeginError::NoRoom(_) => "no_room",
            BeginError::Copy(_) | BeginError::Io(_) => "not_stored",
        };
        Self {
            reason,
            message: error.to_string(),
        }
    }
}

impl From<&InstallError> for Trouble {
    fn from(error: &InstallError) -> Self {
        let reason = match error {
            InstallError::Reference(_) | InstallError::NoReference(_) => "bad_reference",
            InstallError::Incomplete(_) | InstallError::Gone => "incomplete",
            InstallError::Removed => REMOVED,
            InstallError::NoRoom(_) => "no_room",
            InstallError::Layer(_) => "content_bad",
            InstallError::Busy(_) => TART_BUSY,
            InstallError::InTheWay { .. } => "in_the_way",
            InstallError::Io(_) => "not_stored",
        };
        Self {
            reason,
            message: error.to_string(),
        }
    }
}
