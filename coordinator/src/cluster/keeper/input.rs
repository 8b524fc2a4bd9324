//! What the keeper is told.

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
        index::{ObjectKey, Scope},
        watch::Seen,
        write::{PodWritten, WriteError},
    },
    driver::{PresenceView, View},
};

/// What the keeper is told. Answers of jobs say `Ok` where this coordinator didn't lead any more and nothing was tried.
#[derive(Debug)]
pub(super) enum Input {
    /// A watch sees something.
    Seen(Scope, Seen),
    /// Hosts hold something else, or looked again.
    Presence(Arc<PresenceView>),
    /// Staging went on.
    View(Arc<View>),
    /// A write on a Pod ended.
    PodWritten(Order, PodWritten),
    /// A reference was resolved, or wasn't.
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
    /// A pull Secret was read, or not.
    Secret {
        key: ObjectKey,
        result: Result<(), SecretError>,
    },
    /// An owner of gated Pods was read, or not.
    Owner {
        key: OwnerKey,
        asked: Instant,
        result: Result<Makes, OwnerError>,
    },
    /// An Event was written, or not: it isn't tried again.
    Noted,
    /// Somebody asks.
    Asked(Question),
    /// Time passed.
    Tick,
}
