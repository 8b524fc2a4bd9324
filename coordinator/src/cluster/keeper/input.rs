//! The inputs of the keeper.

use std::{sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::ObjectMeta;

use super::{
    ask::Question,
    gating::Order,
    owners::{Makes, OwnerError, OwnerKey},
    resolving::Resolved,
    secrets::SecretError,
};
use crate::{
    cluster::{
        index::{ObjectKey, Scope, WorkloadKey},
        watch::Seen,
        write::{PodWritten, WriteError},
    },
    driver::{PresenceView, View},
};

/// An input of the keeper. A job's answer is `Ok` with nothing in it where this coordinator didn't lead any more, so
/// nothing was tried.
#[derive(Debug)]
pub(super) enum Input {
    /// A watch sees something.
    Seen(Scope, Seen),
    /// The watch of a workload sees something.
    Workload(WorkloadKey, Seen),
    /// Some hosts hold other images, or looked at their disks again.
    Presence(Arc<PresenceView>),
    /// Staging made progress, or the fleet changed.
    View(Arc<View>),
    /// A write on a Pod ended.
    PodWritten(Order, PodWritten),
    /// A reference was resolved, or couldn't be.
    Resolved(Box<Resolved>),
    /// A Node's labels were written.
    NodeWritten {
        node: String,
        result: Result<Option<Box<Node>>, WriteError>,
    },
    /// A status was written.
    StatusWritten {
        key: ObjectKey,
        result: Result<(), WriteError>,
    },
    /// An ImagePrePull was made, changed or deleted.
    PrePullWritten {
        key: ObjectKey,
        result: Result<(), WriteError>,
    },
    /// ServiceAccounts were listed.
    Accounts(Result<Vec<ObjectMeta>, WriteError>),
    /// A pull Secret was read, or couldn't be.
    Secret {
        key: ObjectKey,
        result: Result<(), SecretError>,
    },
    /// An owner of gated Pods was read, or couldn't be.
    Owner {
        key: OwnerKey,
        asked: Instant,
        result: Result<Makes, OwnerError>,
    },
    /// An Event was written, or couldn't be. A failed Event isn't tried again.
    Noted,
    /// Somebody asked a question.
    Asked(Question),
    /// Time passed.
    Tick,
}
