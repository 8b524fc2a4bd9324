//! The leader's label. The leader's Pod carries it while it leads, and no other Pod does.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, Patch},
};
use origin::Backoff;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    access::{Access, LOOK_EVERY, REQUEST_TIMEOUT, RETRY},
    lease::Leadership,
    trouble,
    write::patch_params,
};

/// The label of the Pod that leads. The Services for hosts and for the API select it.
const ROLE_LABEL: &str = "parbake.dev/role";

/// Keeps the leader's label on this Pod while it leads, and off this Pod while it doesn't. Returns after `stop`, when
/// the label is off or one try to remove it failed.
pub(super) async fn keep(
    access: Access,
    pod: String,
    mut led: watch::Receiver<Leadership>,
    stop: CancellationToken,
) {
    let mut failing = trouble::Failing::default();
    let mut backoff = Backoff::seeded(RETRY.0, RETRY.1);
    loop {
        let term = match &*led.borrow_and_update() {
            Leadership::Leading(term) => Some(term.clone()),
            Leadership::Following(_) => None,
        };
        let stopping = stop.is_cancelled();
        let left = term.and_then(|term| term.left()).filter(|_| !stopping);
        let limit = left.map_or(REQUEST_TIMEOUT, |left| left.min(REQUEST_TIMEOUT));
        let marked = timeout(limit, mark(&access, &pod, left.is_some())).await;
        let pause = match marked {
            Ok(Ok(())) => {
                failing.over();
                backoff.succeeded();
                LOOK_EVERY
            }
            failed => {
                if let Some(error) = failing.failed(failed.ok().and_then(Result::err).as_ref()) {
                    warn!(
                        pod,
                        error, "leader's label can't be put or taken off; trying again"
                    );
                }
                backoff.delay(None)
            }
        };
        if stopping {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            Ok(()) = led.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// With `leads`, puts the label on this Pod and takes it off all others. Otherwise takes it off this Pod.
async fn mark(access: &Access, pod: &str, leads: bool) -> kube::Result<()> {
    let pods: Api<Pod> = Api::namespaced(access.client.clone(), &access.namespace);
    let marked = pods
        .list_metadata(&ListParams::default().labels(&format!("{ROLE_LABEL}=leader")))
        .await?;
    let marked = marked.items.into_iter().filter_map(|pod| pod.metadata.name);
    let (own, others): (Vec<_>, Vec<_>) = marked.partition(|name| name == pod);
    let set = |value: Value| {
        let labels = json!({ "metadata": { "labels": { ROLE_LABEL: value } } });
        Patch::Merge(labels)
    };
    // A Pod that isn't there has no label to lose. Outside of a cluster there is no Pod to label.
    let absent =
        |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 404);
    if leads {
        // The old leader's label goes first: a Service with two leaders would send hosts to the wrong one.
        for other in others {
            match pods
                .patch_metadata(&other, &patch_params(), &set(Value::Null))
                .await
            {
                Err(error) if !absent(&error) => return Err(error),
                _ => info!(pod = other, "leader's label taken off"),
            }
        }
    }
    if leads != own.is_empty() {
        return Ok(());
    }
    let value = if leads { json!("leader") } else { Value::Null };
    match pods.patch_metadata(pod, &patch_params(), &set(value)).await {
        Err(error) if absent(&error) => {
            debug!(pod, "own Pod isn't known to the cluster; it gets no label");
            Ok(())
        }
        done => done.map(drop),
    }
}
