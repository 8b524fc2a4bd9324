//! The vocabulary of an ImagePrePull's status: conditions, their reasons, and the state. The code uses enums, and only
//! the status itself has text.

use std::fmt;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::{cluster::crd::ImagePrePullStatus, resolve::ResolveError};

/// A condition's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    /// The image is known by its digest.
    Resolved,
    /// The selected hosts hold the image.
    Staged,
    /// Pods roll to the image.
    Rolling,
    /// Something is amiss.
    Degraded,
}

impl Type {
    /// The type as the status names it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Resolved => "Resolved",
            Self::Staged => "Staged",
            Self::Rolling => "Rolling",
            Self::Degraded => "Degraded",
        }
    }

    /// The condition of this type in a status.
    pub(super) fn of(self, status: &ImagePrePullStatus) -> Option<&Condition> {
        let mut all = status.conditions.iter();
        all.find(|condition| condition.type_ == self.as_str())
    }
}

/// Why an image isn't resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnresolvedReason {
    InvalidReference,
    NotFound,
    UnsupportedImage,
    Credentials,
    RegistryFailed,
    RegistryTimeout,
    /// The pull Secret can't be used.
    PullSecret,
    /// Nobody can say which image is meant: the workload that the object follows can't be read, or names none.
    ImageFrom,
    /// A reason that a coordinator of another version wrote.
    Other(String),
}

impl UnresolvedReason {
    /// The reason as a condition names it.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::InvalidReference => "InvalidReference",
            Self::NotFound => "NotFound",
            Self::UnsupportedImage => "UnsupportedImage",
            Self::Credentials => "Credentials",
            Self::RegistryFailed => "RegistryFailed",
            Self::RegistryTimeout => "RegistryTimeout",
            Self::PullSecret => "PullSecret",
            Self::ImageFrom => "ImageFrom",
            Self::Other(text) => text,
        }
    }

    /// Reads the reason that a condition names.
    pub(super) fn read(text: &str) -> Self {
        let known = [
            Self::InvalidReference,
            Self::NotFound,
            Self::UnsupportedImage,
            Self::Credentials,
            Self::RegistryFailed,
            Self::RegistryTimeout,
            Self::PullSecret,
            Self::ImageFrom,
        ];
        let found = known.into_iter().find(|reason| reason.as_str() == text);
        found.unwrap_or_else(|| Self::Other(text.to_owned()))
    }
}

impl From<&ResolveError> for UnresolvedReason {
    fn from(error: &ResolveError) -> Self {
        match error {
            ResolveError::Reference { .. } => Self::InvalidReference,
            ResolveError::NotFound { .. } => Self::NotFound,
            ResolveError::Image { .. } | ResolveError::NoManifest { .. } => Self::UnsupportedImage,
            ResolveError::Password { .. } => Self::Credentials,
            ResolveError::Registry { .. } => Self::RegistryFailed,
            ResolveError::Timeout { .. } => Self::RegistryTimeout,
        }
    }
}

/// Why an image isn't resolved: the reason, and a message for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    pub(super) reason: UnresolvedReason,
    pub(super) message: String,
}

/// The reason of the condition `Staged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StagedReason {
    /// The registry is being asked which image the reference names.
    Resolving,
    /// The image can't be resolved.
    Unresolved,
    /// Every usable host holds the image.
    AllHosts,
    /// Every usable host held the image once, and the completion policy asks for no more.
    Once,
    /// An operator has paused the ImagePrePull.
    Paused,
    /// No selected host is usable.
    NoHosts,
    /// Every usable host holds the image or failed, and some failed.
    HostsFailed,
    /// Hosts are staging the image.
    Staging,
}

impl StagedReason {
    /// The reason as a condition names it.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Resolving => "Resolving",
            Self::Unresolved => "Unresolved",
            Self::AllHosts => "AllHosts",
            Self::Once => "Once",
            Self::Paused => "Paused",
            Self::NoHosts => "NoHosts",
            Self::HostsFailed => "HostsFailed",
            Self::Staging => "Staging",
        }
    }

    /// Whether the image counts as staged.
    pub(super) const fn is_staged(&self) -> bool {
        matches!(self, Self::AllHosts | Self::Once)
    }
}

/// The phase of staging, as Events report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StagingPhase {
    Resolving,
    Unresolved,
    /// Nothing moves for now: paused, or no usable host.
    Waiting,
    Staging,
    Failed,
    Staged,
}

impl StagingPhase {
    /// The phase in a status that an earlier coordinator wrote.
    pub(super) fn told_by(status: &ImagePrePullStatus) -> Option<Self> {
        if Type::Resolved.of(status)?.status == "False" {
            return Some(Self::Unresolved);
        }
        let staged = &Type::Staged.of(status)?.reason;
        [
            StagedReason::AllHosts,
            StagedReason::Once,
            StagedReason::HostsFailed,
            StagedReason::Staging,
        ]
        .iter()
        .find(|reason| reason.as_str() == staged)
        .map(Self::from)
    }
}

impl From<&StagedReason> for StagingPhase {
    fn from(reason: &StagedReason) -> Self {
        match reason {
            StagedReason::Resolving => Self::Resolving,
            StagedReason::Unresolved => Self::Unresolved,
            StagedReason::AllHosts | StagedReason::Once => Self::Staged,
            StagedReason::Paused | StagedReason::NoHosts => Self::Waiting,
            StagedReason::HostsFailed => Self::Failed,
            StagedReason::Staging => Self::Staging,
        }
    }
}

impl fmt::Display for StagingPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolving => "resolving",
            Self::Unresolved => "unresolved",
            Self::Waiting => "waiting",
            Self::Staging => "staging",
            Self::Failed => "failed",
            Self::Staged => "staged",
        })
    }
}

/// The reason of the condition `Rolling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollingReason {
    NotGated,
    /// Every Pod runs the image.
    Done,
    Paused,
    OwnerLags,
    NoSuccessor,
    /// As many Pods are in flight as the cap allows.
    AtCap,
    /// The gate blocks the remaining Pods.
    Held,
}

impl RollingReason {
    /// The reason as a condition names it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::NotGated => "NotGated",
            Self::Done => "Done",
            Self::Paused => "Paused",
            Self::OwnerLags => "OwnerLags",
            Self::NoSuccessor => "NoSuccessor",
            Self::AtCap => "AtCap",
            Self::Held => "Held",
        }
    }
}

/// The reason of the condition `Degraded` while something is amiss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Unresolved(UnresolvedReason),
    TooManyImages,
    TagTaken,
    HostsFailed,
    DeadlinePassed,
    OwnerLags,
    NoSuccessor,
    OverlappingGate,
    PullSecret,
    NotGuarded,
}

impl Trouble {
    /// The reason as a condition names it.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Unresolved(reason) => reason.as_str(),
            Self::TooManyImages => "TooManyImages",
            Self::TagTaken => "TagTaken",
            Self::HostsFailed => "HostsFailed",
            Self::DeadlinePassed => "DeadlinePassed",
            Self::OwnerLags => "OwnerLags",
            Self::NoSuccessor => "NoSuccessor",
            Self::OverlappingGate => "OverlappingGate",
            Self::PullSecret => "PullSecret",
            Self::NotGuarded => "NotGuarded",
        }
    }

    /// The message of this trouble in a status. `None` where the status's `Degraded` has another reason, or isn't true.
    pub(super) fn told_by<'a>(&self, status: &'a ImagePrePullStatus) -> Option<&'a str> {
        let found = Type::Degraded.of(status)?;
        let is = found.status == "True" && found.reason == self.as_str();
        is.then_some(found.message.as_str())
    }
}

/// The state of an ImagePrePull, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Resolving,
    Unresolved,
    Paused,
    Waiting,
    Staging,
    Failed,
    Staged,
    Rolling,
    Held,
}

impl Standing {
    /// The word as the status writes it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Resolving => "Resolving",
            Self::Unresolved => "Unresolved",
            Self::Paused => "Paused",
            Self::Waiting => "Waiting",
            Self::Staging => "Staging",
            Self::Failed => "Failed",
            Self::Staged => "Staged",
            Self::Rolling => "Rolling",
            Self::Held => "Held",
        }
    }
}

/// Collects a status's conditions, and keeps the time of each one's last change.
pub(super) struct Conditions<'a> {
    before: &'a ImagePrePullStatus,
    generation: i64,
    now: Timestamp,
    list: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts without conditions. The object has this generation, and its status was `before`.
    pub(super) const fn new(
        before: &'a ImagePrePullStatus,
        generation: i64,
        now: Timestamp,
    ) -> Self {
        Self {
            before,
            generation,
            now,
            list: Vec::new(),
        }
    }

    /// Adds a condition. `is` is `None` while nobody knows.
    pub(super) fn add(&mut self, type_: Type, is: Option<bool>, reason: &str, message: String) {
        let status = match is {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let since = type_
            .of(self.before)
            .filter(|before| before.status == status)
            .map_or(self.now, |before| before.last_transition_time.0);
        // the API server refuses a condition without a message, and an empty message isn't serialized
        let message = match message.is_empty() {
            true => reason.to_owned(),
            false => message,
        };
        self.list.push(Condition {
            type_: type_.as_str().into(),
            status: status.into(),
            reason: reason.into(),
            message,
            observed_generation: Some(self.generation),
            last_transition_time: Time(whole_seconds(since)),
        });
    }

    /// All conditions that were added.
    pub(super) fn into_list(self) -> Vec<Condition> {
        self.list
    }
}

/// Cuts a time to whole seconds, as Kubernetes writes times. With fractions, a status that is read would never equal
/// the one that was written.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn with(type_: Type, is: Option<bool>, reason: &str, time: Timestamp) -> ImagePrePullStatus {
        let before = ImagePrePullStatus::default();
        let mut conditions = Conditions::new(&before, 1, time);
        conditions.add(type_, is, reason, "text".into());
        ImagePrePullStatus {
            conditions: conditions.into_list(),
            ..ImagePrePullStatus::default()
        }
    }

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let before = with(Type::Staged, Some(false), "Staging", at(10));
        let time = |is, reason: &str| {
            let mut conditions = Conditions::new(&before, 2, at(20));
            conditions.add(Type::Staged, is, reason, String::new());
            let found = conditions.into_list().remove(0);
            assert_eq!(found.message, reason, "a message is never empty");
            found.last_transition_time.0
        };
        assert_eq!(time(Some(false), "NoHosts"), at(10));
        assert_eq!(time(Some(true), "AllHosts"), at(20));
        assert_eq!(time(None, "Asking"), at(20));
    }

    #[test]
    fn a_reason_that_this_version_does_not_know_is_kept_as_it_is() {
        for text in ["NotFound", "PullSecret", "OfALaterVersion"] {
            assert_eq!(UnresolvedReason::read(text).as_str(), text);
        }
        assert_eq!(
            UnresolvedReason::read("NotFound"),
            UnresolvedReason::NotFound
        );
    }

    #[test]
    fn what_a_coordinator_before_told_is_read_from_its_status() {
        let mut status = with(Type::Resolved, Some(true), "Resolved", at(1));
        assert_eq!(StagingPhase::told_by(&status), None);
        for (reason, told) in [
            ("AllHosts", Some(StagingPhase::Staged)),
            ("Once", Some(StagingPhase::Staged)),
            ("HostsFailed", Some(StagingPhase::Failed)),
            ("Staging", Some(StagingPhase::Staging)),
            ("NoHosts", None),
        ] {
            let staged = with(Type::Staged, Some(false), reason, at(1)).conditions;
            status.conditions.truncate(1);
            status.conditions.extend(staged);
            assert_eq!(StagingPhase::told_by(&status), told, "{reason}");
        }
        let unresolved = with(Type::Resolved, Some(false), "NotFound", at(1));
        assert_eq!(
            StagingPhase::told_by(&unresolved),
            Some(StagingPhase::Unresolved)
        );
        let lags = with(Type::Degraded, Some(true), "OwnerLags", at(1));
        assert_eq!(Trouble::OwnerLags.told_by(&lags), Some("text"));
        assert_eq!(Trouble::NoSuccessor.told_by(&lags), None);
    }
}
