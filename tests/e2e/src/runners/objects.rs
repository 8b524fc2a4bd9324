//! The objects of a cluster of Mac runners on the API server: their kinds, where they are, and how they are made and
//! changed.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use coordinator::cluster::crd;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{Namespace, Node, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use super::pod::{BUSY_LABEL, POOL_LABEL};

/// The namespace of pools and their Pods.
pub const NAMESPACE: &str = "tuist-runners";
/// The API server serves a new definition after a moment.
const ESTABLISHED: Duration = Duration::from_secs(30);
/// Between two looks whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The kind of the pools.
#[must_use]
pub fn pools(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("tuist.dev", "v1alpha1", "RunnerPool");
    let resource = ApiResource::from_gvk_with_plural(&kind, "runnerpools");
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}

/// Our own kind.
#[must_use]
pub fn prepulls(client: &Client) -> Api<crd::ImagePrePull> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Our own kind, as objects that needn't make sense.
#[must_use]
pub fn any_prepulls(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("parbake.dev", "v1alpha1", "ImagePrePull");
    let resource = ApiResource::from_gvk_with_plural(&kind, "imageprepulls");
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// The Pods.
#[must_use]
pub fn pods(client: &Client) -> Api<Pod> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// Installs our own kind and the namespace.
///
/// # Errors
/// When the API server refuses them.
pub async fn install_prepulls(client: &Client) -> anyhow::Result<()> {
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "name": NAMESPACE } }))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .context("making the namespace")?;
    define(client, &crd::definition()).await?;
    until_served(|| async { prepulls(client).list(&ListParams::default()).await.is_ok() }).await
}

/// Installs the pools' kind.
///
/// # Errors
/// When the API server refuses it.
pub async fn install_pools(client: &Client) -> anyhow::Result<()> {
    let definition = json!({
        "metadata": { "name": "runnerpools.tuist.dev" },
        "spec": {
            "group": "tuist.dev",
            "scope": "Namespaced",
            "names": { "kind": "RunnerPool", "plural": "runnerpools", "singular": "runnerpool" },
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": { "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                } },
            }],
        },
    });
    define(client, &serde_json::from_value(definition)?).await?;
    until_served(|| async { pools(client).list(&ListParams::default()).await.is_ok() }).await
}

async fn define(client: &Client, definition: &CustomResourceDefinition) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions
        .create(&PostParams::default(), definition)
        .await
        .context("defining a kind")?;
    Ok(())
}

async fn until_served<F: Future<Output = bool>>(served: impl Fn() -> F) -> anyhow::Result<()> {
    let until = Instant::now() + ESTABLISHED;
    while !served().await {
        anyhow::ensure!(Instant::now() < until, "a definition isn't served");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Makes a Mac's Node, Ready.
///
/// # Errors
/// When the API server refuses it.
pub async fn add_node(client: &Client, name: &str, fleet: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/os": "darwin",
            "tuist.dev/runtime": "tart",
            "tuist.dev/fleet": fleet,
        } },
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    set_ready(client, name, true).await
}

/// Says whether a Node is Ready, as its kubelet does.
///
/// # Errors
/// When the API server refuses it.
pub async fn set_ready(client: &Client, name: &str, ready: bool) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let status = if ready { "True" } else { "False" };
    let patch = json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } });
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Says whether a Node takes Pods, as an operator does.
///
/// # Errors
/// When the API server refuses it.
pub async fn cordon(client: &Client, name: &str, cordoned: bool) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let patch = json!({ "spec": { "unschedulable": cordoned } });
    nodes
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Says whom a Pod works for, as the dispatcher does; nobody where the name is empty.
///
/// # Errors
/// When the API server refuses it.
pub async fn set_busy(client: &Client, pod: &str, owner: &str) -> anyhow::Result<()> {
    let patch = json!({ "metadata": { "labels": { BUSY_LABEL: owner } } });
    pods(client)
        .patch(pod, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// Makes a pool.
///
/// # Errors
/// When the API server refuses it.
pub async fn add_pool(client: &Client, name: &str, gate: &str, spec: Value) -> anyhow::Result<()> {
    let pool: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "tuist.dev/v1alpha1",
        "kind": "RunnerPool",
        "metadata": { "name": name, "annotations": { "parbake.dev/gate": gate } },
        "spec": spec,
    }))?;
    pools(client).create(&PostParams::default(), &pool).await?;
    Ok(())
}

/// Changes a pool's spec.
///
/// # Errors
/// When the API server refuses it.
pub async fn change_pool(client: &Client, name: &str, spec: Value) -> anyhow::Result<()> {
    let patch = json!({ "spec": spec });
    pools(client)
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}

/// The ReplicaSets.
#[must_use]
pub fn sets(client: &Client) -> Api<ReplicaSet> {
    Api::namespaced(client.clone(), NAMESPACE)
}

/// A ReplicaSet of this many Pods. They carry its name as their pool's.
///
/// # Errors
/// When the API server refuses it.
pub async fn add_set(
    client: &Client,
    name: &str,
    image: &str,
    replicas: usize,
) -> anyhow::Result<()> {
    let set = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { POOL_LABEL: name } },
            "template": {
                "metadata": { "labels": { POOL_LABEL: name } },
                "spec": { "containers": [{ "name": "runner", "image": image }] },
            },
        },
    }))?;
    sets(client).create(&PostParams::default(), &set).await?;
    Ok(())
}

/// Sets the image of a ReplicaSet's template.
///
/// # Errors
/// When the API server refuses it.
pub async fn change_set(client: &Client, name: &str, image: &str) -> anyhow::Result<()> {
    let container = json!({ "name": "runner", "image": image });
    let patch = json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
    let params = PatchParams::default();
    sets(client)
        .patch(name, &params, &Patch::Strategic(&patch))
        .await?;
    Ok(())
}
