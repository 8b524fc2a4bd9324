//! Writes to the cluster. Each write says exactly what it changes, and changes only the object that was decided about.
//! The preconditions are the uid and, for Pods, the resource version. So the API server refuses a write whose decision
//! is out of date.
//!
//! A write has one of three outcomes, because a lost answer isn't a refusal: see [`Outcome`]. Each write is sent once.
//! The part that decided a write also decides whether to try again, by what it sees then.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use rollout::gate::Outcome;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{MANAGER, crd::ImagePrePull, index::ObjectKey, trouble};

/// A write without an answer within this time is given up. The gate keeps the slot of an admission for 30 s, so the
/// write ends long before its slot.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Objects in one answer to a list.
const PAGE: u32 = 500;

/// The parameters of a patch that names us as the field manager.
pub(super) fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// The parameters of a create or replace that names us as the field manager.
pub(super) fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// How long this coordinator may still write. `None` when it doesn't lead, or when another may have taken its lease.
pub(crate) type MayWrite = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// Sends writes, but only while this coordinator leads.
#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
    may_write: MayWrite,
}

impl Writer {
    pub(crate) fn new(client: Client, may_write: MayWrite) -> Self {
        Self { client, may_write }
    }

    /// Whether a write would be sent now.
    pub(crate) fn leads(&self) -> bool {
        (self.may_write)().is_some()
    }

    /// The answer to one request. No request begins after the term. The wait ends with the term too: a request without
    /// an answer is dropped then, so that a packet that still waits in this process doesn't leave in another's term.
    async fn answered<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, WriteError> {
        let left = (self.may_write)().ok_or(WriteError::TermOver)?;
        timeout(left.min(TIMEOUT), request)
            .await
            .map_err(|_| WriteError::Timeout)?
            .map_err(WriteError::Kube)
    }
}

/// A write on a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodWrite {
    /// Puts this label on.
    Label(String),
    /// Takes this label off.
    Unlabel(String),
    /// Deletes the Pod. Deletes the Pod's ServiceAccount too, where it has the same owner.
    Reap,
}

/// The Pod that was decided about, as it was at the decision.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) owner: Option<String>,
}

/// How a write on a Pod ended, and the Pod as the answer shows it, where there was an answer.
#[derive(Debug)]
pub(crate) struct PodWritten {
    pub(crate) outcome: Outcome,
    pub(crate) pod: Option<Box<Pod>>,
    /// The Pod is gone: it was deleted.
    pub(crate) gone: bool,
    pub(crate) error: Option<String>,
}

/// Carries out a write on a Pod.
pub(crate) async fn pod(writer: Writer, target: Target, write: PodWrite) -> PodWritten {
    let result = match &write {
        PodWrite::Label(label) => patch_label(&writer, &target, label, Some("true")).await,
        PodWrite::Unlabel(label) => patch_label(&writer, &target, label, None).await,
        PodWrite::Reap => reap(&writer, &target).await,
    };
    match result {
        Ok(pod) => {
            if write == PodWrite::Reap {
                reap_account(&writer, &target).await;
            }
            PodWritten {
                outcome: Outcome::Done,
                gone: pod.is_none(),
                pod,
                error: None,
            }
        }
        Err(error) => PodWritten {
            outcome: outcome(&error),
            pod: None,
            gone: false,
            error: Some(error.to_string()),
        },
    }
}

/// Why a write failed, or has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The API server answered with an error, or couldn't be reached.
    #[error("{}", trouble::plain(.0))]
    Kube(#[source] kube::Error),
    /// The API server didn't answer in time.
    #[error("no answer within {} s, or not before this coordinator's term was over", TIMEOUT.as_secs())]
    Timeout,
    /// The API server wasn't asked.
    #[error("this coordinator doesn't lead any more")]
    TermOver,
}

impl WriteError {
    /// The HTTP status of the answer, where there was an answer.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Kube(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

/// A 4xx changed nothing. A 5xx, a broken connection or silence may have changed something.
fn outcome(error: &WriteError) -> Outcome {
    match (error, error.code()) {
        (WriteError::TermOver, _) | (_, Some(400..=499)) => Outcome::Refused,
        _ => Outcome::Unknown,
    }
}

async fn patch_label(
    writer: &Writer,
    target: &Target,
    label: &str,
    value: Option<&str>,
) -> Result<Option<Box<Pod>>, WriteError> {
    let patch = json!({
        "metadata": {
            "uid": target.uid,
            "resourceVersion": target.resource_version,
            "labels": { label: value },
        },
    });
    let api: Api<Pod> = Api::namespaced(writer.client.clone(), &target.key.namespace);
    let params = patch_params();
    writer
        .answered(api.patch(&target.key.name, &params, &Patch::Merge(&patch)))
        .await
        .map(|pod| Some(Box::new(pod)))
}

async fn reap(writer: &Writer, target: &Target) -> Result<Option<Box<Pod>>, WriteError> {
    let api: Api<Pod> = Api::namespaced(writer.client.clone(), &target.key.namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: Some(target.uid.clone()),
        resource_version: Some(target.resource_version.clone()),
    });
    match writer.answered(api.delete(&target.key.name, &params)).await {
        Ok(answer) => Ok(answer.left().map(Box::new)),
        // the Pod that was to be deleted is already gone
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes the Pod's ServiceAccount: each runner has one of its own name, and whoever deletes the one deletes the other
/// (tuist/tuist of autumn 2026, infra/runners-controller/controllers/runnerpool_controller.go: createRunner,
/// reapRunner). An account with another owner, or none, is left alone.
async fn reap_account(writer: &Writer, target: &Target) {
    let Some(owner) = &target.owner else {
        return;
    };
    let api: Api<ServiceAccount> = Api::namespaced(writer.client.clone(), &target.key.namespace);
    let account = match writer.answered(api.get_opt(&target.key.name)).await {
        Ok(Some(account)) => account,
        Ok(None) => return,
        Err(error) => {
            warn!(pod = %target.key, %error, "the Pod's ServiceAccount can't be read; it goes with what is swept later");
            return;
        }
    };
    let owned = account
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|reference| reference.uid == *owner);
    if !owned {
        return;
    }
    match delete_account(writer, &target.key, &account.metadata).await {
        Ok(()) => debug!(pod = %target.key, "the Pod's ServiceAccount is deleted"),
        Err(error) => {
            warn!(pod = %target.key, %error, "the Pod's ServiceAccount can't be deleted; it goes with what is swept later");
        }
    }
}

async fn delete_account(
    writer: &Writer,
    key: &ObjectKey,
    seen: &ObjectMeta,
) -> Result<(), WriteError> {
    let api: Api<ServiceAccount> = Api::namespaced(writer.client.clone(), &key.namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: seen.uid.clone(),
        resource_version: seen.resource_version.clone(),
    });
    match writer.answered(api.delete(&key.name, &params)).await {
        Err(error) if error.code() != Some(404) => Err(error),
        _ => Ok(()),
    }
}

/// Lists the metadata of all ServiceAccounts in these namespaces.
pub(crate) async fn accounts(
    writer: Writer,
    namespaces: BTreeSet<String>,
) -> Result<Vec<ObjectMeta>, WriteError> {
    let mut found = Vec::new();
    for namespace in namespaces {
        let api: Api<ServiceAccount> = Api::namespaced(writer.client.clone(), &namespace);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = writer.answered(api.list_metadata(&params)).await?;
            found.extend(page.items.into_iter().map(|account| account.metadata));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
    }
    Ok(found)
}

/// Deletes a ServiceAccount, if it is still as it was seen. One that is already gone is no error.
pub(crate) async fn account(
    writer: Writer,
    key: ObjectKey,
    seen: ObjectMeta,
) -> Result<(), WriteError> {
    delete_account(&writer, &key, &seen).await
}

/// Sets and removes labels of a Node. The value `None` removes a label.
pub(crate) async fn node_labels(
    writer: Writer,
    name: String,
    uid: String,
    labels: Vec<(String, Option<&'static str>)>,
) -> Result<Node, WriteError> {
    let labels: serde_json::Map<String, Value> = labels
        .into_iter()
        .map(|(label, value)| (label, value.into()))
        .collect();
    let patch = json!({ "metadata": { "uid": uid, "labels": labels } });
    let api: Api<Node> = Api::all(writer.client.clone());
    writer
        .answered(api.patch(&name, &patch_params(), &Patch::Merge(&patch)))
        .await
}

/// Writes these fields into the status of an ImagePrePull. Fields that `status` doesn't name stay.
pub(crate) async fn status(
    writer: Writer,
    key: ObjectKey,
    uid: String,
    status: Value,
) -> Result<(), WriteError> {
    let patch = json!({ "metadata": { "uid": uid }, "status": status });
    let api: Api<ImagePrePull> = Api::namespaced(writer.client.clone(), &key.namespace);
    writer
        .answered(api.patch_status(&key.name, &patch_params(), &Patch::Merge(&patch)))
        .await
        .map(drop)
}

/// A write on an ImagePrePull.
#[derive(Clone, Debug)]
pub(crate) enum Own {
    /// Create this ImagePrePull.
    Create(Box<ImagePrePull>),
    /// Change these fields.
    Change(Value),
    /// Delete the ImagePrePull, if it has this uid.
    Delete(String),
}

/// Creates, changes or deletes an ImagePrePull. Deleting one that is already gone is no error.
pub(crate) async fn prepull(writer: Writer, key: ObjectKey, own: Own) -> Result<(), WriteError> {
    let api: Api<ImagePrePull> = Api::namespaced(writer.client.clone(), &key.namespace);
    match own {
        Own::Create(prepull) => writer
            .answered(api.create(&post_params(), &prepull))
            .await
            .map(drop),
        Own::Change(patch) => writer
            .answered(api.patch(&key.name, &patch_params(), &Patch::Merge(&patch)))
            .await
            .map(drop),
        Own::Delete(uid) => {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: Some(uid),
                resource_version: None,
            });
            match writer.answered(api.delete(&key.name, &params)).await {
                Ok(_) => Ok(()),
                Err(error) if error.code() == Some(404) => Ok(()),
                Err(error) => Err(error),
            }
        }
    }
}
