//! Reasons why something isn't as it should be: one closed set of names for images, hosts and Pods, from a host's
//! report to an exit code.
//!
//! Programs decide by [`Reason`]. A reason becomes text only where it leaves the program: on the wire, in JSON and in
//! metrics. A name never changes, because programs of other versions and operators' scripts read it.

use alloc::boxed::Box;
use core::{fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A reason that this version knows. A closed set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The reason's name on the wire, in JSON and in metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(text: &str) -> Result<Self, UnknownReason> {
                match text {
                    $($text => Ok(Self::$name),)*
                    _ => Err(UnknownReason),
                }
            }
        }
    };
}

reasons! {
    // ---- why an image isn't on all its hosts: the coordinator says so ----

    /// Chunks move.
    Moving = "moving",
    /// No selected host is in the fleet.
    NoHosts = "no_hosts",
    /// No host is selected for now; some keep what they have of the image.
    Held = "held",
    /// No selected host is connected.
    NoHostConnected = "no_host_connected",
    /// Every selected host that is connected has the image. The others are away or shunned.
    HostsAway = "hosts_away",
    /// The registry failed; the next try waits.
    OriginDown = "origin_down",
    /// The registry asked to be left alone for a while.
    OriginThrottled = "origin_throttled",
    /// The registry lacks a part of the image.
    ContentMissing = "content_missing",
    /// The registry refuses a part of the image to the hosts.
    ContentRefused = "content_refused",
    /// The registry answers for a part of the image with something that can't be used.
    ContentUnusable = "content_unusable",
    /// The registry gives other contents and not this one, whichever host asks.
    ContentUnavailable = "content_unavailable",
    /// Every host that could be served was served. The others can't stage the image for now, and say why.
    HostsFailed = "hosts_failed",

    // ---- why one host doesn't hold an image: the coordinator says so ----

    /// The host isn't selected.
    NotSelected = "not_selected",
    /// The host has no session.
    Disconnected = "disconnected",
    /// The fleet shuns the host.
    Quarantined = "quarantined",
    /// The host hasn't said anything about the image yet.
    AwaitingReport = "awaiting_report",
    /// The host was asked again whether it holds the image under its names, and hasn't answered yet.
    Confirming = "confirming",
    /// The host waits for room or its turn.
    Queued = "queued",
    /// Chunks move to the host.
    Staging = "staging",
    /// The host puts the image into tart's cache.
    Installing = "installing",
    /// The host can't stage the image for now, and gave no reason.
    Failed = "failed",
    /// The host held the image and lost it.
    Gone = "gone",
    /// The host's agent can't stage images of this kind; a later one can.
    NeedsNewerAgent = "needs_newer_agent",
    /// The image failed, so no host gets it.
    ImageFailed = "image_failed",

    // ---- why nothing of an image comes to a host: the host says so ----

    /// Disk space is reserved, and contents that other images of the host hold are copied.
    Preparing = "preparing",
    /// Nobody fetches the content yet.
    AwaitingLease = "awaiting_lease",
    /// The host fetches the content, and waits until the chunks that it fetched have spread.
    Paced = "paced",
    /// The registry was asked a moment ago.
    Fetching = "fetching",
    /// The registry was asked a while ago and sends nothing.
    OriginSilent = "origin_silent",
    /// A fetch from the registry has trouble and goes on trying.
    OriginTrouble = "origin_trouble",
    /// A fetch from the registry has failed.
    OriginFailed = "origin_failed",
    /// The host can't ask the registry because of its own settings.
    OriginSettings = "origin_settings",
    /// The registry's bytes don't match the manifest.
    ContentBad = "content_bad",
    /// Another image gives a content of this image another size. One of the two manifests is wrong.
    Contradicts = "contradicts",
    /// Other images, or other contents of this image, go first.
    AwaitingTurn = "awaiting_turn",
    /// No peer is connected.
    NoPeers = "no_peers",
    /// The host's system sends nothing to any peer, although the coordinator is reached.
    NoRoute = "no_route",
    /// No connected peer has a chunk that the host lacks.
    NoSource = "no_source",
    /// A peer is expected to push chunks that the host lacks.
    AwaitingPush = "awaiting_push",
    /// Requests are under way and nothing has arrived.
    PeersSlow = "peers_slow",
    /// Every peer that has chunks that the host lacks serves as many hosts as it may.
    PeersBusy = "peers_busy",
    /// No peer is connected, and some are quarantined.
    SourcesQuarantined = "sources_quarantined",
    /// The host's download budget is used up.
    Throttled = "throttled",
    /// The host lost more of the content again than it has now.
    LostAgain = "lost_again",
    /// The host couldn't store what arrived.
    NotStored = "not_stored",
    /// The host's volume has no room for the image above its floor.
    NoRoom = "no_room",
    /// Chunks of the image are missing where all were thought to be there.
    Incomplete = "incomplete",
    /// The host reads the image's files on its disk again before they count.
    Checking = "checking",
    /// tart holds the lock of its cache.
    TartBusy = "tart_busy",
    /// Something else stands where the link of a name belongs.
    InTheWay = "in_the_way",
    /// No wanted reference is one by which tart could find the image.
    BadReference = "bad_reference",
    /// A name is still being linked to the image that it was wanted for before.
    NameBusy = "name_busy",
    /// A name, or the golden VM of a name, was removed.
    NameLost = "name_lost",
    /// A name was moved to another image.
    TagMoved = "tag_moved",
    /// The golden VM of the image couldn't be made.
    GoldenFailed = "golden_failed",
    /// The image is a stacked one, and the host's tart is too old for it, or doesn't say its version.
    NeedsNewerTart = "needs_newer_tart",
    /// The golden VM of a stacked image needs a later macOS than the host has.
    NeedsNewerMacos = "needs_newer_macos",
    /// The manifest names something that this version can't stage.
    Unsupported = "unsupported",
    /// The image's files were removed.
    Removed = "removed",
    /// No name of the image is wanted any more, and none is left on the host.
    Superseded = "superseded",
    /// The image was old, nobody wanted it, and the host took it out of tart's cache.
    Retired = "retired",

    // ---- why a Pod may drain, or a host may be worked on, or may not: the gate says so ----

    /// The Pod may drain.
    Open = "open",
    /// The gate doesn't know everything in the cluster yet, or no longer does.
    NotSynced = "not_synced",
    /// The Pod belongs to no gated pool.
    NotGated = "not_gated",
    /// The Pod ended, or is being deleted.
    NotAlive = "not_alive",
    /// The Pod runs its pool's image already.
    Current = "current",
    /// The Pod is busy with work.
    Busy = "busy",
    /// The Pod carries the label already.
    AlreadyLabelled = "already_labelled",
    /// An operator drains the Pod: it leaves without the gate.
    OperatorDrain = "operator_drain",
    /// The Pod is neither Pending nor Running; or it is Pending in a pool that another controller labels.
    NotRunning = "not_running",
    /// An operator paused the roll.
    Paused = "paused",
    /// The owners of the pool's Pods are being read.
    OwnerUnread = "owner_unread",
    /// The owner of the pool's Pods makes Pods of another image than the pool's.
    OwnerLags = "owner_lags",
    /// The pool's image isn't resolved to a digest.
    ImageUnresolved = "image_unresolved",
    /// The Pod's Node isn't known as a host of the fleet.
    NodeUnknown = "node_unknown",
    /// The Pod's Node isn't Ready.
    NodeNotReady = "node_not_ready",
    /// The Pod's Node is cordoned.
    NodeCordoned = "node_cordoned",
    /// The Pod's Node lacks memory, disk or process ids.
    NodePressure = "node_pressure",
    /// The Pod's Node is reserved for another pool.
    NodeReserved = "node_reserved",
    /// The Pod's Node doesn't hold the image.
    ImageMissing = "image_missing",
    /// The Pod's Node said too long ago that it holds the image.
    PresenceOld = "presence_old",
    /// The agent of the Pod's Node hasn't reported since the coordinator started.
    HostUnheard = "host_unheard",
    /// The Pod has no Node, and too few hosts hold the image.
    TooFewHosts = "too_few_hosts",
    /// As many Pods are in flight as the cap allows.
    CapReached = "cap_reached",
    /// As many Pods are in flight in the whole fleet as it may start at one time.
    FleetCapReached = "fleet_cap_reached",
    /// Pods that were let go long ago have no successors, and fill the cap.
    NoSuccessor = "no_successor",
    /// Other hosts of the group have waited longer for a place, and come first.
    AwaitingPlace = "awaiting_place",
    /// Another caller works on the host.
    PlaceTaken = "place_taken",
    /// The place that is asked for was given back before.
    PlaceOver = "place_over",
    /// The host is revoked.
    Revoked = "revoked",
    /// The fleet has no host of this name.
    NotInFleet = "not_in_fleet",
    /// A write on the Pod was refused, and the next try waits.
    RetryWaits = "retry_waits",
    /// The Pod was admitted a moment ago.
    Admitted = "admitted",
}

/// The text isn't a reason that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no reason that this version knows")]
pub struct UnknownReason;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A reason from another program. A program of a later version may know more reasons. Their names stay readable, but
/// nothing is decided by them. Dereferences to its text; in JSON it is a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Box<str>", into = "Box<str>")]
pub enum ToldReason {
    /// A reason that this version knows.
    Known(Reason),
    /// Another reason. Never the text of a known one.
    Unknown(Box<str>),
}

impl ToldReason {
    /// The reason, where this version knows it.
    #[must_use]
    pub const fn known(&self) -> Option<Reason> {
        match self {
            Self::Known(reason) => Some(*reason),
            Self::Unknown(_) => None,
        }
    }
}

impl Deref for ToldReason {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Known(reason) => reason.as_str(),
            Self::Unknown(text) => text,
        }
    }
}

impl fmt::Display for ToldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl From<Reason> for ToldReason {
    fn from(reason: Reason) -> Self {
        Self::Known(reason)
    }
}

impl From<&str> for ToldReason {
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|UnknownReason| Self::Unknown(text.into()), Self::Known)
    }
}

impl From<Box<str>> for ToldReason {
    fn from(text: Box<str>) -> Self {
        text.parse()
            .map_or_else(|UnknownReason| Self::Unknown(text), Self::Known)
    }
}

impl From<ToldReason> for Box<str> {
    fn from(told: ToldReason) -> Self {
        match told {
            ToldReason::Known(reason) => reason.as_str().into(),
            ToldReason::Unknown(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_one_reasons_alone_and_reads_back() {
        let names: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(
                name.bytes()
                    .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
            );
            assert_eq!(name.parse(), Ok(*reason));
            assert_eq!(ToldReason::from(name).known(), Some(*reason));
        }
    }

    #[test]
    fn a_later_versions_reason_stays_readable_and_is_told_on_as_it_came() {
        let told: ToldReason = serde_json::from_str(r#""moon_is_full""#).unwrap();
        assert_eq!((told.known(), &*told), (None, "moon_is_full"));
        assert_eq!(serde_json::to_string(&told).unwrap(), r#""moon_is_full""#);
        let told: ToldReason = serde_json::from_str(r#""tart_busy""#).unwrap();
        assert_eq!(told, ToldReason::Known(Reason::TartBusy));
        assert_eq!(serde_json::to_string(&told).unwrap(), r#""tart_busy""#);
    }
}
