//! Why an image isn't present on this host: a reason, which operators see by its name, and a message.

use proto::{Digest, Reason};

use super::hosts::NoRoute;
use crate::{
    store::{BeginError, FileError, InstallError, NoRoomError},
    tart::Unfit,
};

/// Why something on this host failed: the reason, and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// Why an image's stage couldn't be begun.
#[derive(Debug)]
pub(crate) struct Unbegun {
    pub(crate) trouble: Trouble,
    /// More of it, where the volume has no room.
    pub(crate) short: Option<Box<Short>>,
}

/// The volume has no room for an image.
#[derive(Debug)]
pub(crate) struct Short {
    pub(crate) figures: NoRoomError,
    /// Which old images could go, as the end of a sentence.
    pub(crate) could_go: String,
}

impl From<Trouble> for Unbegun {
    fn from(trouble: Trouble) -> Self {
        Self {
            trouble,
            short: None,
        }
    }
}

impl From<BeginError> for Unbegun {
    fn from(error: BeginError) -> Self {
        let trouble = Trouble::from(&error);
        let short = match error {
            BeginError::NoRoom(figures) => Some(Box::new(Short {
                figures,
                could_go: String::new(),
            })),
            BeginError::Reference(_) | BeginError::Copy(_) | BeginError::Io(_) => None,
        };
        Self { trouble, short }
    }
}

impl Trouble {
    /// The disk didn't take something of an image.
    pub(crate) const fn not_stored(message: String) -> Self {
        Self {
            reason: Reason::NotStored,
            message,
        }
    }

    /// The volume has no room for an image. `name` gives the names of the images for which room is kept.
    pub(super) fn no_room(short: &Short, name: impl Fn(&Digest) -> String) -> Self {
        Self {
            reason: Reason::NoRoom,
            message: short.figures.tell(name) + &short.could_go,
        }
    }

    /// The room of an image goes to one that comes before it. `removed`: what was here of the image is removed.
    pub(super) fn gives_way(first: &str, removed: bool) -> Self {
        let what = match removed {
            true => "what was here of it was removed, because",
            false => "it stopped, because",
        };
        Self {
            reason: Reason::NoRoom,
            message: format!(
                "{what} its room is kept for {first}, which comes before it on this host; it goes on by itself when \
                 there is room for both"
            ),
        }
    }

    /// The system of this host sends nothing to any peer. `on_mac`: the system is macOS, which lets daemons reach the
    /// local network, and other programs only where a person allows it (Apple, technical note TN3179).
    pub(super) fn no_route(found: &NoRoute, on_mac: bool) -> Self {
        let NoRoute { dialled, cause } = found;
        let cure = match on_mac {
            true => {
                "macOS keeps the agent from the local network: run it as a LaunchDaemon (`parbake-agent install`), or \
                 allow it in System Settings, Privacy & Security, Local Network"
            }
            false => "look at this host's routes and firewall",
        };
        Self {
            reason: Reason::NoRoute,
            message: format!(
                "nothing can be sent to any of the {dialled} peers that were tried ({cause}), although the coordinator \
                 is reached; {cure}"
            ),
        }
    }

    /// Two images give one content different sizes.
    pub(crate) fn contradicts(content: &Digest) -> Self {
        Self {
            reason: Reason::Contradicts,
            message: format!(
                "its manifest gives content {content} another size than an image that is here; one of the two is wrong"
            ),
        }
    }

    /// An image's files were removed a second time before it was present.
    pub(crate) fn removed_again() -> Self {
        Self {
            reason: Reason::Removed,
            message: "its files were removed from the disk while it was staged, again; it is staged anew after a pause"
                .to_owned(),
        }
    }
}

impl From<Unfit> for Trouble {
    fn from(unfit: Unfit) -> Self {
        Self {
            reason: unfit.reason(),
            message: unfit.to_string(),
        }
    }
}

impl From<&BeginError> for Trouble {
    fn from(error: &BeginError) -> Self {
        let reason = match error {
            BeginError::Reference(_) => Reason::BadReference,
            BeginError::NoRoom(_) => Reason::NoRoom,
            BeginError::Copy(_) | BeginError::Io(_) => Reason::NotStored,
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
            InstallError::Reference(_) | InstallError::NoReference(_) => Reason::BadReference,
            InstallError::Incomplete(_) | InstallError::Gone => Reason::Incomplete,
            InstallError::Removed => Reason::Removed,
            InstallError::NoRoom(_) => Reason::NoRoom,
            InstallError::Layer(_) | InstallError::File(FileError::Digest { .. }) => {
                Reason::ContentBad
            }
            InstallError::File(FileError::Io { .. }) => Reason::NotStored,
            InstallError::Busy(_) => Reason::TartBusy,
            InstallError::InTheWay { .. } => Reason::InTheWay,
            InstallError::Io(_) => Reason::NotStored,
        };
        Self {
            reason,
            message: error.to_string(),
        }
    }
}
