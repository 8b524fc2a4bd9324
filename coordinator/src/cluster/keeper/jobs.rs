//! The keeper's jobs: everything that waits for the API server or a registry. For each kind of write, the number of
//! jobs at one time is limited.
//!
//! Every job that writes first asks whether this coordinator still leads. Each job ends with an [`Input`].

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use kube::{Client, api::ObjectMeta, runtime::events::Reporter};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tracing::warn;

use super::{
    ask::Paused,
    conditions::{Unresolved, UnresolvedReason},
    gating::Order,
    input::Input,
    labels::LabelWrite,
    notes::{self, Note},
    owners::{OwnerKey, read},
    resolving::{Ask, Resolved},
    secrets,
};
use crate::{
    cluster::{
        index::ObjectKey,
        write::{self, MayWrite, Own, PodWritten, WriteError, Writer},
    },
    resolve::{Registries, by_digest},
    wants::Want,
};

/// The most writes on Pods under way at one time, to spare an API server that others need too. Other writes have places
/// of their own, so that slow ones never delay a drain label.
const POD_WRITERS: usize = 16;
/// The most other writes under way at one time: labels of Nodes, statuses, objects, ServiceAccounts.
const WRITERS: usize = 8;
/// The most Events that are being written at one time. Events have places of their own, so that no other write waits
/// for them.
const EVENT_WRITERS: usize = 4;

/// The jobs that are under way, and what they need.
pub(super) struct Jobs {
    client: Client,
    writer: Writer,
    registries: Arc<Registries>,
    reporter: Reporter,
    pod_writers: Arc<Semaphore>,
    writers: Arc<Semaphore>,
    event_writers: Arc<Semaphore>,
    set: JoinSet<Input>,
}

impl Jobs {
    /// No job yet. `instance` is the author of Events.
    pub(super) fn new(
        client: Client,
        may_write: MayWrite,
        registries: Arc<Registries>,
        instance: String,
    ) -> Self {
        Self {
            writer: Writer::new(client.clone(), may_write),
            client,
            registries,
            reporter: Reporter {
                controller: "parbake-coordinator".into(),
                instance: Some(instance),
            },
            pod_writers: Arc::new(Semaphore::new(POD_WRITERS)),
            writers: Arc::new(Semaphore::new(WRITERS)),
            event_writers: Arc::new(Semaphore::new(EVENT_WRITERS)),
            set: JoinSet::new(),
        }
    }

    /// The cluster's client.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The next job that ends. `None` while no job is under way. Cancel safe.
    ///
    /// # Errors
    /// The job died. Whoever waits for its answer would wait for ever.
    pub(super) async fn next(&mut self) -> Option<Result<Input, JoinError>> {
        self.set.join_next().await
    }

    /// Carries out a write on a Pod that the gate decided.
    pub(super) fn write_pod(&mut self, order: Order) {
        let (writer, writers) = (self.writer.clone(), self.pod_writers.clone());
        self.set.spawn(async move {
            let _place = writers.acquire().await;
            let (target, write) = (order.target.clone(), order.write.clone());
            let written: PodWritten = write::pod(writer, target, write).await;
            Input::PodWritten(order, written)
        });
    }

    /// Labels a Node.
    pub(super) fn label_node(&mut self, write: LabelWrite) {
        let LabelWrite { node, uid, labels } = write;
        let work = write::node_labels(self.writer.clone(), node.clone(), uid, labels);
        self.write(work, move |result| Input::NodeWritten {
            node,
            result: result.map_or(Ok(None), |result| result.map(|node| Some(Box::new(node)))),
        });
    }

    /// Writes the status of the ImagePrePull of this uid.
    pub(super) fn write_status(&mut self, key: ObjectKey, uid: String, patch: Value) {
        let work = write::status(self.writer.clone(), key.clone(), uid, patch);
        self.write(work, move |result| Input::StatusWritten {
            key,
            result: result.unwrap_or(Ok(())),
        });
    }

    /// Creates, changes or deletes an ImagePrePull.
    pub(super) fn write_prepull(&mut self, key: ObjectKey, own: Own) {
        let work = write::prepull(self.writer.clone(), key.clone(), own);
        self.write(work, move |result| Input::PrePullWritten {
            key,
            result: result.unwrap_or(Ok(())),
        });
    }

    /// Pauses or resumes an ImagePrePull for an operator, who gets the result on `reply`.
    pub(super) fn pause(&mut self, key: ObjectKey, patch: Value, reply: Paused) {
        let work = write::prepull(self.writer.clone(), key, Own::Change(patch));
        self.write(work, move |result| {
            let answer = match result {
                Some(Ok(())) => Ok(true),
                Some(Err(error)) => Err(error.to_string()),
                None => Err("this coordinator doesn't lead any more; ask again".to_owned()),
            };
            // the operator may have gone
            drop(reply.send(answer));
            Input::Tick
        });
    }

    /// Lists the ServiceAccounts of these namespaces.
    pub(super) fn list_accounts(&mut self, namespaces: BTreeSet<String>) {
        let work = write::accounts(self.writer.clone(), namespaces);
        self.write(work, |result: Option<Result<_, WriteError>>| {
            Input::Accounts(result.unwrap_or(Ok(Vec::new())))
        });
    }

    /// Deletes a ServiceAccount, if it is still as it was seen.
    pub(super) fn delete_account(&mut self, account: ObjectKey, seen: ObjectMeta) {
        let work = write::account(self.writer.clone(), account.clone(), seen);
        self.write(work, move |result| {
            if let Some(Err(error)) = result {
                warn!(%account, %error, "ServiceAccount can't be deleted; it is tried again later");
            }
            Input::Tick
        });
    }

    /// Forgets the content of pull Secrets that no ImagePrePull names any more.
    pub(super) fn keep_secrets(&self, named: &BTreeSet<ObjectKey>) {
        let names: BTreeSet<String> = named.iter().map(ToString::to_string).collect();
        self.registries
            .keep_secrets(|secret| names.contains(secret));
    }

    /// Reads a pull Secret.
    pub(super) fn read_secret(&mut self, key: ObjectKey) {
        let (client, registries) = (self.client.clone(), self.registries.clone());
        self.set.spawn(async move {
            let result = secrets::learn(client, &key, &registries).await;
            Input::Secret { key, result }
        });
    }

    /// Reads the template of an owner.
    pub(super) fn read_owner(&mut self, asked: Instant, key: OwnerKey) {
        let client = self.client.clone();
        self.set.spawn(async move {
            let result = read::read(client, &key).await;
            Input::Owner { key, asked, result }
        });
    }

    /// Asks a registry which image a reference names.
    pub(super) fn resolve(&mut self, ask: Ask) {
        let (client, registries) = (self.client.clone(), self.registries.clone());
        self.set.spawn(async move {
            let result = resolve(client, &registries, &ask).await;
            let Ask { key, reference, .. } = ask;
            Input::Resolved(Box::new(Resolved {
                key,
                reference,
                result,
            }))
        });
    }

    /// Writes an Event.
    pub(super) fn publish(&mut self, note: Note) {
        let work = notes::publish(self.client.clone(), self.reporter.clone(), note);
        self.write_among(self.event_writers.clone(), work, |_| Input::Noted);
    }

    /// Runs a write when a place is free. If this coordinator doesn't lead by then, the write is skipped and `done`
    /// gets `None`.
    fn write<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(Option<T>) -> Input + Send + 'static,
    ) {
        self.write_among(self.writers.clone(), work, done);
    }

    /// The same as [`Self::write`], with the places of `writers`.
    fn write_among<T: Send + 'static>(
        &mut self,
        writers: Arc<Semaphore>,
        work: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(Option<T>) -> Input + Send + 'static,
    ) {
        let writer = self.writer.clone();
        self.set.spawn(async move {
            let _place = writers.acquire().await;
            done(if writer.leads() {
                Some(work.await)
            } else {
                None
            })
        });
    }

    /// Detaches all jobs: they run on, and nobody hears their answers.
    #[cfg(test)]
    pub(super) fn detach(&mut self) {
        self.set.detach_all();
    }

    /// Stops all jobs.
    #[cfg(test)]
    pub(super) async fn stop(&mut self) {
        self.set.abort_all();
        while self.set.join_next().await.is_some() {}
    }

    /// Starts a job with this work.
    #[cfg(test)]
    pub(super) fn spawn(&mut self, work: impl Future<Output = Input> + Send + 'static) {
        self.set.spawn(work);
    }

    /// Starts a write that is never answered.
    #[cfg(test)]
    pub(super) fn write_for_ever(&mut self) {
        self.write(std::future::pending::<()>(), |_| Input::Tick);
    }

    /// Whether the registry client knows a pull Secret.
    #[cfg(test)]
    pub(super) fn knows_secret(&self, name: &str) -> bool {
        self.registries.knows(&name.to_owned())
    }
}

/// Resolves a reference with the present content of its pull Secret.
async fn resolve(client: Client, registries: &Registries, ask: &Ask) -> Result<Want, Unresolved> {
    if let Some(secret) = &ask.secret {
        let learned = secrets::learn(client, secret, registries).await;
        learned.map_err(|error| Unresolved {
            reason: UnresolvedReason::PullSecret,
            message: error.to_string(),
        })?;
    }
    let reference = match &ask.digest {
        Some(digest) => by_digest(&ask.reference, digest),
        None => ask.reference.clone(),
    };
    let secret = ask.secret.as_ref().map(ToString::to_string);
    let resolved = registries
        .resolve(&reference, Some(BTreeSet::new()), secret.as_ref())
        .await;
    match resolved {
        Ok(want) => Ok(Want {
            references: [ask.reference.clone()].into(),
            ..want
        }),
        Err(error) => Err(Unresolved {
            reason: UnresolvedReason::from(&error),
            message: error.to_string(),
        }),
    }
}
