//! What a replica answers while it doesn't lead.
//!
//! The replica answers 503 with the leader's name. It passes admission reviews on to the leader, because only the
//! leader knows which hosts hold which images. Where a review can't be passed on, the replica refuses any label that
//! may be a drain label, so that the other controller tries again. It allows everything else.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::Request,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use client::{Client as ApiClient, Target, segment};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use proto::Digest;
use serde_json::Value;
use tokio::{sync::watch, time::timeout};
use tracing::debug;

use super::{
    lease::Leadership,
    review::{self, Intake, Review},
};
use crate::{api::unavailable, secret::Secret};

/// How a review reaches the leader: at the address of the leader's Pod, on the same port, with the same authority and
/// token.
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

    /// Asks the leader for its answer to a review.
    ///
    /// # Errors
    /// The leader's Pod can't be read or has no address, or the leader doesn't answer.
    async fn judge(
        &self,
        leader: &str,
        review: &Review,
        key: Option<&Secret>,
    ) -> anyhow::Result<Value> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get(leader).await?;
        let address = pod.status.and_then(|status| status.pod_ip);
        let address: std::net::IpAddr = address.unwrap_or_default().parse()?;
        let target = Target::new(
            std::net::SocketAddr::new(address, self.port).to_string(),
            self.pin,
            self.token.clone(),
        );
        // only the leader judges whether the key is right
        let path = match key {
            None => review::PATH.to_owned(),
            Some(key) => format!("{}/{}", review::PATH, segment(key.expose())),
        };
        let judged = ApiClient::new(target)
            .read(Method::POST, &path, Some(review))
            .await?;
        Ok(judged)
    }
}

/// The routes of a replica that doesn't lead.
pub(crate) fn router(led: watch::Receiver<Leadership>, forward: Option<Forward>) -> Router {
    let leader = leader_of(led);
    let judge = leader.clone();
    let intake = Intake::new();
    let webhook = post(move |request: Request| {
        let leader = judge();
        async move {
            match intake.read(request).await {
                Ok((review, key)) => {
                    Json(answer(&review, key.as_ref(), leader, forward).await).into_response()
                }
                Err(unread) => unread.into_response(),
            }
        }
    });
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(review::PATH, webhook.clone())
        .route(review::KEYED_PATH, webhook)
        .fallback(move || {
            let leader = leader();
            async move { elsewhere(leader) }
        })
}

/// Returns a function that names the leader, where one is known at the time of the call.
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

/// Asks the leader. Refuses where the leader can't be asked and a label newly has the value `true`. The webhook's
/// selector sends only Pods that carry the drain label, whatever that label's name is.
async fn answer(
    review: &Review,
    key: Option<&Secret>,
    leader: Option<String>,
    forward: Option<Forward>,
) -> Value {
    if review.change().is_none() {
        return review.answer(None);
    }
    let declined = || {
        let reason = "this coordinator isn't the leader, which can't be asked; ask again";
        review.answer(Some(reason))
    };
    let (Some(leader), Some(forward)) = (leader, forward) else {
        return declined();
    };
    match timeout(review::ANSWER_WITHIN, forward.judge(&leader, review, key)).await {
        Ok(Ok(judged)) => judged,
        Ok(Err(error)) => {
            debug!(leader, %error, "an admission review can't be passed on");
            declined()
        }
        Err(_) => declined(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::{crd::DRAIN_LABEL, review::tests::review};

    #[tokio::test]
    async fn who_does_not_lead_refuses_a_new_drain_label_and_nothing_else() {
        let drain = json!({ DRAIN_LABEL: "true" });
        let other = json!({ "a": "b" });
        for (review, allowed) in [
            (review("UPDATE", &other, &drain), false),
            (review("UPDATE", &Value::Null, &drain), false),
            (
                review("UPDATE", &json!({ DRAIN_LABEL: "false" }), &drain),
                false,
            ),
            (review("UPDATE", &drain, &drain), true),
            (review("UPDATE", &drain, &other), true),
            (review("UPDATE", &other, &json!({ "c": "d" })), true),
            (review("DELETE", &drain, &Value::Null), true),
        ] {
            let read = serde_json::from_value(review.clone()).unwrap();
            let answer = answer(&read, None, None, None).await;
            assert_eq!(answer["response"]["allowed"], allowed, "{review}");
            assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        }
    }
}
