//! What a replica answers that doesn't lead: 503 with the leader's name, and admission reviews as the leader judges them.
//!
//! Only the leader knows which hosts hold what. A review is passed on to it; where that fails, a label that may be a
//! drain label is refused, for the other controller to try again, and everything else passes.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    response::Response,
    routing::{get, post},
};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use proto::Digest;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tracing::debug;

use super::lease::Leadership;
use crate::{
    api::unavailable,
    operator::client::{Client as ApiClient, Target},
    secret::Secret,
};

/// The largest admission review that is read: two Pods of the largest size that etcd keeps.
const MAX_REVIEW_BYTES: usize = 4 << 20;
/// The leader answers within this time; the API server waits 2 s in all.
const FORWARD: Duration = Duration::from_millis(1_500);

/// How a review reaches the leader: at its Pod's address, on the same port, by the same authority and token.
#[derive(Clone)]
pub(crate) struct Forward {
    client: Client,
    namespace: Arc<str>,
    port: u16,
    pin: Digest,
    token: Secret,
}

impl Forward {
    pub(crate) fn new(
        client: Client,
        namespace: String,
        port: u16,
        pin: Digest,
        token: Secret,
    ) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            port,
            pin,
            token,
        }
    }

    /// The leader's judgement.
    async fn judge(&self, leader: &str, review: &Value) -> anyhow::Result<Value> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get(leader).await?;
        let address = pod.status.and_then(|status| status.pod_ip);
        let address: std::net::IpAddr = address.unwrap_or_default().parse()?;
        let target = Target::new(
            std::net::SocketAddr::new(address, self.port).to_string(),
            self.pin,
            self.token.clone(),
        );
        let judged = ApiClient::new(target)
            .read(Method::POST, "/v1/webhook/pods", Some(review))
            .await?;
        Ok(judged)
    }
}

/// The routes of who doesn't lead.
pub(crate) fn router(led: watch::Receiver<Leadership>, forward: Option<Forward>) -> Router {
    let leader = leader_of(led);
    let judge = leader.clone();
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/v1/webhook/pods",
            post(move |Json(review): Json<Value>| {
                let leader = judge();
                async move { Json(answer(&review, leader, forward).await) }
            })
            .layer(DefaultBodyLimit::max(MAX_REVIEW_BYTES)),
        )
        .fallback(move || {
            let leader = leader();
            async move { elsewhere(leader) }
        })
}

/// The leader's name, where one is known, as it is at each call.
fn leader_of(
    led: watch::Receiver<Leadership>,
) -> impl Fn() -> Option<String> + Clone + Send + Sync + 'static {
    move || match &*led.borrow() {
        Leadership::Following(leader) => leader.clone(),
        Leadership::Leading(_) => None,
    }
}

fn elsewhere(leader: Option<String>) -> Response {
    let error = leader.map_or_else(
        || "no coordinator leads yet; ask again in a moment".to_owned(),
        |leader| format!("this coordinator doesn't lead; {leader} does: ask again in a moment"),
    );
    unavailable(error)
}

async fn answer(review: &Value, leader: Option<String>, forward: Option<Forward>) -> Value {
    let declined = decline(review);
    if declined["response"]["allowed"] == true {
        return declined;
    }
    let (Some(leader), Some(forward)) = (leader, forward) else {
        return declined;
    };
    match timeout(FORWARD, forward.judge(&leader, review)).await {
        Ok(Ok(judged)) => judged,
        Ok(Err(error)) => {
            debug!(leader, %error, "an admission review can't be passed on");
            declined
        }
        Err(_) => declined,
    }
}

/// The answer of who can't judge: a label that is newly `true` is refused. The webhook's selector only sends Pods that
/// carry the drain label, whatever its name is.
fn decline(review: &Value) -> Value {
    let request = &review["request"];
    let labels = |object: &str| request[object]["metadata"]["labels"].as_object();
    let before = labels("oldObject");
    let adds = request["operation"] == "UPDATE"
        && labels("object")
            .into_iter()
            .flatten()
            .any(|(label, value)| {
                *value == "true" && before.and_then(|before| before.get(label)) != Some(value)
            });
    let mut response = json!({ "uid": request["uid"], "allowed": !adds });
    if adds {
        response["status"] = json!({
            "code": 403,
            "message": "parbake: this coordinator isn't the leader, which can't be asked; ask again",
        });
    }
    json!({
        "apiVersion": review["apiVersion"],
        "kind": "AdmissionReview",
        "response": response,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::crd::DRAIN_LABEL;

    fn review(operation: &str, before: Value, after: Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u",
                "operation": operation,
                "oldObject": { "metadata": { "labels": before } },
                "object": { "metadata": { "labels": after } },
            },
        })
    }

    #[test]
    fn who_does_not_lead_refuses_a_new_drain_label_and_nothing_else() {
        let drain = json!({ DRAIN_LABEL: "true" });
        let other = json!({ "a": "b" });
        for (review, allowed) in [
            (review("UPDATE", other.clone(), drain.clone()), false),
            (review("UPDATE", Value::Null, drain.clone()), false),
            (
                review("UPDATE", json!({ DRAIN_LABEL: "false" }), drain.clone()),
                false,
            ),
            (review("UPDATE", drain.clone(), drain.clone()), true),
            (review("UPDATE", drain.clone(), other.clone()), true),
            (review("UPDATE", other.clone(), json!({ "c": "d" })), true),
            (review("DELETE", drain.clone(), Value::Null), true),
            (json!({}), true),
        ] {
            let answer = decline(&review);
            assert_eq!(answer["response"]["allowed"], allowed, "{review}");
            assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        }
    }
}
