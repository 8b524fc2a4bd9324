//! The definition of `ImagePrePull` in a real API server: taken, pruning, refusing what can't work.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use coordinator::cluster::crd::{self, ImagePrePull};
use e2e::{
    api_server::{self, ApiServer},
    runners,
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

fn objects(client: &Client) -> Api<DynamicObject> {
    runners::any_prepulls(client, "default")
}

fn object(name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "parbake.dev/v1alpha1",
        "kind": "ImagePrePull",
        "metadata": { "name": name },
        "spec": spec,
    }))
    .unwrap()
}

fn good() -> Value {
    json!({
        "image": "ghcr.io/org/image:tag",
        "nodeSelector": { "matchLabels": { "kubernetes.io/os": "darwin" } },
    })
}

/// `good` with one value set, by a path of keys.
fn with(path: &str, value: Value) -> Value {
    let mut spec = good();
    let mut here = &mut spec;
    for key in path.split('.') {
        if !here.is_object() {
            *here = json!({});
        }
        here = &mut here[key];
    }
    *here = value;
    spec
}

/// `good` with a workload instead of an image.
fn from(workload: Value) -> Value {
    let mut spec = with("imageFrom", workload);
    spec.as_object_mut().unwrap().remove("image");
    spec
}

#[tokio::test]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn the_definition_is_taken_prunes_defaults_refuses_and_has_a_status() {
    let assets = api_server::assets().unwrap();
    let server = ApiServer::start(&assets).await.unwrap();
    let client = server.client().await.unwrap();
    runners::install_prepulls(&client).await.unwrap();
    let api = objects(&client);
    let post = PostParams::default();

    // taken, with defaults filled in and unknown fields pruned
    let mut spec = with(
        "gate",
        json!({ "mode": "Own", "poolRef": { "name": "pool" }, "strange": 1 }),
    );
    spec["unknown"] = json!(true);
    let made = api.create(&post, &object("whole", spec)).await.unwrap();
    let spec = &made.data["spec"];
    assert_eq!(spec.get("unknown"), None);
    assert_eq!(spec["gate"].get("strange"), None);
    assert_eq!(spec["gate"]["maxConcurrentPercent"], 5);
    assert_eq!(spec["gate"]["drainLabel"], crd::DRAIN_LABEL);
    assert_eq!(spec["onDeadline"], "Hold");
    assert_eq!(spec["completionPolicy"], "Once");

    let term = |term: Value| with("nodeSelector", json!({ "matchExpressions": [term] }));
    for (index, spec) in [
        good(),
        with("image", json!(format!("localhost:5000/a/b-c_d@sha256:{}", "a".repeat(64)))),
        with("gate.maxConcurrentPercent", json!(1)),
        with("gate.maxConcurrentPercent", json!(100)),
        with("gate", json!({ "mode": "Guard", "podSelector": { "matchLabels": { "a": "b" } }, "replicas": 0 })),
        with("deadline", json!("2h30m")),
        with("bandwidth", json!({ "upload": "100M", "download": "1Gi" })),
        term(json!({ "key": "a", "operator": "Exists" })),
        term(json!({ "key": "a", "operator": "In", "values": ["b"] })),
        from(json!({ "kind": "Deployment", "name": "x" })),
        from(json!({ "kind": "StatefulSet", "name": "x", "container": "y" })),
    ]
    .into_iter()
    .enumerate()
    {
        let made = api.create(&post, &object(&format!("good-{index}"), spec.clone())).await;
        assert!(made.is_ok(), "{spec}: {made:?}");
    }
    // what the server keeps is what our own types read
    let typed: Api<ImagePrePull> = Api::namespaced(client.clone(), "default");
    assert_eq!(
        typed.list(&Default::default()).await.unwrap().items.len(),
        12
    );

    for (field, spec) in [
        ("image", with("image", json!(""))),
        ("image", with("image", json!("image:tag"))),
        ("image", with("image", json!("org/image:tag"))),
        ("image", with("image", json!("ghcr.io/org/Image:tag"))),
        ("image", with("image", json!("ghcr.io//image"))),
        ("image", with("image", json!("ghcr.io/../image"))),
        ("image", with("image", json!("ghcr.io/image:tag\nx"))),
        ("image", with("image", json!("ghcr.io/image@sha256:beef"))),
        (
            "image",
            with("image", json!(format!("ghcr.io/{}", "a".repeat(600)))),
        ),
        (
            "image",
            json!({ "nodeSelector": { "matchLabels": { "a": "b" } } }),
        ),
        (
            "oneOf",
            with("imageFrom", json!({ "kind": "Deployment", "name": "x" })),
        ),
        ("kind", from(json!({ "kind": "DaemonSet", "name": "x" }))),
        ("name", from(json!({ "kind": "Deployment" }))),
        ("name", from(json!({ "kind": "Deployment", "name": "" }))),
        ("nodeSelector", json!({ "image": "ghcr.io/org/image" })),
        ("nodeSelector", with("nodeSelector", json!({}))),
        (
            "nodeSelector",
            with("nodeSelector", json!({ "matchLabels": {} })),
        ),
        (
            "nodeSelector",
            with("nodeSelector", json!({ "matchExpressions": [] })),
        ),
        (
            "nodeSelector",
            with("nodeSelector", json!({ "strange": "x" })),
        ),
        ("operator", term(json!({ "key": "a", "operator": "Near" }))),
        ("values", term(json!({ "key": "a", "operator": "In" }))),
        (
            "values",
            term(json!({ "key": "a", "operator": "NotIn", "values": [] })),
        ),
        (
            "maxConcurrentPercent",
            with("gate.maxConcurrentPercent", json!(0)),
        ),
        (
            "maxConcurrentPercent",
            with("gate.maxConcurrentPercent", json!(101)),
        ),
        (
            "maxConcurrentPercent",
            with("gate.maxConcurrentPercent", json!("5")),
        ),
        ("mode", with("gate.mode", json!("own"))),
        ("gate", with("gate.mode", json!("Own"))),
        (
            "podSelector",
            with(
                "gate",
                json!({ "mode": "Own", "podSelector": {}, "replicas": 1 }),
            ),
        ),
        (
            "gate",
            with(
                "gate",
                json!({ "mode": "Own", "podSelector": { "matchLabels": { "a": "b" } } }),
            ),
        ),
        ("drainLabel", with("gate.drainLabel", json!("a b"))),
        ("onDeadline", with("onDeadline", json!("Panic"))),
        ("completionPolicy", with("completionPolicy", json!("Never"))),
        ("deadline", with("deadline", json!("soon"))),
        ("upload", with("bandwidth.upload", json!("0"))),
        ("originStreams", with("originStreams", json!(0))),
        ("name", with("pullSecretRef", json!({ "name": "" }))),
    ] {
        match api.create(&post, &object("bad", spec.clone())).await {
            Err(kube::Error::Api(status)) => {
                assert_eq!(status.code, 422, "{spec}: {status:?}");
                assert!(status.message.contains(field), "{spec}: {}", status.message);
            }
            other => {
                _ = api.delete("bad", &DeleteParams::default()).await;
                panic!("{spec}: {other:?}");
            }
        }
    }

    // a status goes through its own door, and a spec doesn't
    let status = json!({
        "spec": { "paused": true },
        "status": { "digest": "sha256:x", "hosts": { "selected": 3 }, "strange": 1 },
    });
    let patched = api
        .patch_status("whole", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    assert_eq!(patched.data["status"]["hosts"]["selected"], 3);
    assert_eq!(patched.data["status"].get("strange"), None);
    assert_eq!(patched.data["spec"]["paused"], false);
    assert_eq!(patched.metadata.generation, made.metadata.generation);
    let edit = json!({ "spec": { "paused": true }, "status": { "digest": "sha256:y" } });
    let edited = api
        .patch("whole", &PatchParams::default(), &Patch::Merge(&edit))
        .await
        .unwrap();
    assert_eq!(edited.data["status"]["digest"], "sha256:x");
    assert_eq!(edited.metadata.generation, Some(2));
}
