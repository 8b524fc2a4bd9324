//! Watches. Each watch follows one kind of object and tells the keeper what it sees. After an error, a watch says once
//! that it is blind and tries again with growing pauses. It then lists everything anew, so that no missed change stays
//! missed. Nothing here keeps objects: the keeper's index does.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
    runtime::watcher,
};
use origin::Backoff;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    crd::{ImagePrePull, RunnerPool, WorkloadKind},
    index::{Kind, ObjectKey, Scope, WorkloadKey},
    trouble,
};

/// The pause after a first error. It doubles with each further error. Each pause is shortened at random by up to a
/// half.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MOST: Duration = Duration::from_secs(30);
/// An error this long after the previous error counts as a first error again.
const CALM: Duration = Duration::from_secs(120);

/// The API server ends a watch after this time, and the watch goes on from where it was. So a connection that broke
/// silently is noticed soon. By default kube asks for 290 s, during which the gate would decide on stale facts.
const WATCH_SECONDS: u32 = 25;

/// A report of a watch.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A list of everything begins.
    Listing,
    /// An object is as shown.
    Applied(Box<DynamicObject>),
    /// An object is gone.
    Gone(Box<DynamicObject>),
    /// The list is whole.
    Listed,
    /// The watch sees nothing for now. `absent` means that the cluster has no such kind.
    Blind { error: String, absent: bool },
}

/// Follows one kind until `shutdown`, or until nobody listens.
pub(crate) async fn follow(
    client: Client,
    scope: Scope,
    seen: mpsc::Sender<(Scope, Seen)>,
    shutdown: CancellationToken,
) {
    let resource = resource(scope.kind);
    let api: Api<DynamicObject> = match &scope.namespace {
        Some(namespace) if scope.kind != Kind::Nodes => {
            Api::namespaced_with(client, namespace, &resource)
        }
        _ => Api::all_with(client, &resource),
    };
    watch(api, watcher::Config::default(), scope, seen, shutdown).await;
}

/// Follows one workload until `shutdown`, or until nobody listens.
pub(crate) async fn follow_workload(
    client: Client,
    workload: WorkloadKey,
    seen: mpsc::Sender<(WorkloadKey, Seen)>,
    shutdown: CancellationToken,
) {
    let resource = match workload.kind {
        WorkloadKind::Deployment => ApiResource::erase::<Deployment>(&()),
        WorkloadKind::ReplicaSet => ApiResource::erase::<ReplicaSet>(&()),
        WorkloadKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    };
    let ObjectKey { namespace, name } = &workload.key;
    let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watch(api, config, workload, seen, shutdown).await;
}

/// Follows what this API lists. Each report has the `id`.
async fn watch<I: Clone>(
    api: Api<DynamicObject>,
    config: watcher::Config,
    id: I,
    seen: mpsc::Sender<(I, Seen)>,
    shutdown: CancellationToken,
) {
    let mut backoff = Backoff::seeded(PAUSE, PAUSE_MOST);
    let mut failed: Option<Instant> = None;
    loop {
        // A new watcher after each error: the old one would go on from where it was, and would report its recovery only
        // at the next change. A list reports at once, and shows which objects are gone.
        let events = watcher(api.clone(), config.clone().timeout(WATCH_SECONDS));
        let mut events = std::pin::pin!(events);
        let error = loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            let told = match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => Seen::Listing,
                Some(Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object))) => {
                    Seen::Applied(Box::new(object))
                }
                Some(Ok(watcher::Event::Delete(object))) => Seen::Gone(Box::new(object)),
                Some(Ok(watcher::Event::InitDone)) => Seen::Listed,
                Some(Err(error)) => break error,
            };
            if seen.send((id.clone(), told)).await.is_err() {
                return;
            }
        };
        let blind = Seen::Blind {
            absent: is_absent(&error),
            error: trouble::watching(&error),
        };
        if seen.send((id.clone(), blind)).await.is_err() {
            return;
        }
        if failed.is_none_or(|at| at.elapsed() >= CALM) {
            backoff.succeeded();
        }
        failed = Some(Instant::now());
        let pause = backoff.delay(None);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Pods => ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
        Kind::Nodes => ApiResource::erase::<k8s_openapi::api::core::v1::Node>(&()),
        Kind::PrePulls => ApiResource::erase::<ImagePrePull>(&()),
        Kind::RunnerPools => ApiResource::erase::<RunnerPool>(&()),
    }
}

/// Whether the API server doesn't know the kind: the kind's definition isn't installed, or was removed.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))
    | watcher::Error::WatchFailed(kube::Error::Api(status))
    | watcher::Error::WatchError(status)) = error
    else {
        return false;
    };
    status.code == 404
}
