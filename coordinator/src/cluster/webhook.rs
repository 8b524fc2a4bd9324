//! Keeps the webhook's configuration. The leader writes the fleet's authority into it, and a key into the webhook's
//! path. The key tells the API server from other callers, because only somebody who may read webhook configurations
//! knows the key. Reviews themselves are answered elsewhere.

use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingWebhook, ValidatingWebhookConfiguration,
};
use kube::{Api, api::Patch};
use origin::Backoff;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    access::{LOOK_EVERY, REQUEST_TIMEOUT, RETRY},
    keeper::Guarded,
    review,
    term::Term,
    trouble,
    write::patch_params,
};
use crate::secret::Secret;

/// A path without a key gets the key this long after a leader began. By then no replica of an older version runs, which
/// would answer nothing at a path with a key.
const KEY_AFTER: Duration = Duration::from_mins(2);
/// If the key was removed this often within [`RESETS_IN`], another program owns the path. The key is left out then, and
/// callers aren't told apart by it until that time has passed.
const MOST_RESETS: u32 = 3;
const RESETS_IN: Duration = Duration::from_mins(10);

/// The configuration that is kept.
pub(super) struct Webhook {
    pub(super) api: Api<ValidatingWebhookConfiguration>,
    pub(super) name: String,
    /// The certificate of the fleet's authority, in PEM.
    pub(super) pem: String,
    pub(super) key: Secret,
    /// Tells which Pods the webhooks select.
    pub(super) guard: watch::Sender<Guarded>,
    /// Tells whether the key is in the path of every webhook.
    pub(super) keyed: watch::Sender<bool>,
}

/// Keeps the configuration current until `stop`.
pub(super) async fn keep(webhook: Webhook, term: Term, stop: CancellationToken) {
    let began = Instant::now();
    let mut resets = Resets::default();
    let mut failing = trouble::Failing::default();
    let mut backoff = Backoff::seeded(RETRY.0, RETRY.1);
    loop {
        let limit = term.left().unwrap_or_default().min(REQUEST_TIMEOUT);
        let settled = began.elapsed() >= KEY_AFTER;
        let looked = timeout(limit, webhook.look(settled, &mut resets, || term.holds())).await;
        let pause = match looked {
            Ok(Ok(())) => {
                failing.over();
                backoff.succeeded();
                LOOK_EVERY
            }
            failed => {
                if matches!(&failed, Ok(Err(kube::Error::Api(status))) if status.code == 404) {
                    webhook.guard.send_replace(Guarded::None);
                }
                if let Some(error) = failing.failed(failed.ok().and_then(Result::err).as_ref()) {
                    warn!(
                        webhook = webhook.name,
                        error, "webhook's configuration can't be kept; trying again"
                    );
                }
                backoff.delay(None)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

/// The times at which the key was recently removed from the path.
#[derive(Debug, Default)]
struct Resets(Vec<Instant>);

impl Resets {
    fn one_more(&mut self, now: Instant) {
        self.0.retain(|at| now.duration_since(*at) < RESETS_IN);
        self.0.push(now);
    }

    fn are_many(&self, now: Instant) -> bool {
        let recent = self
            .0
            .iter()
            .filter(|at| now.duration_since(**at) < RESETS_IN);
        recent.count() >= MOST_RESETS as usize
    }
}

impl Webhook {
    /// Reads the configuration once, and writes what differs.
    async fn look(
        &self,
        settled: bool,
        resets: &mut Resets,
        holds: impl Fn() -> bool,
    ) -> kube::Result<()> {
        let found = self.api.get(&self.name).await?;
        let webhooks = found.webhooks.unwrap_or_default();
        let selectors = webhooks
            .iter()
            .map(|webhook| webhook.object_selector.clone().unwrap_or_default());
        self.guard.send_replace(Guarded::By(selectors.collect()));
        let was = *self.keyed.borrow();
        let has_key = self.all_keyed(&webhooks);
        let now = Instant::now();
        if was && !has_key {
            resets.one_more(now);
            if resets.are_many(now) {
                warn!(
                    webhook = self.name,
                    "somebody keeps taking the key out of the webhook's path, so that anybody who reaches this coordinator \
                     passes for the API server; have what writes the configuration ignore clientConfig.service.path"
                );
            }
        }
        let keys = (was || settled || has_key) && !resets.are_many(now);
        let stale: Vec<_> = webhooks
            .iter()
            .filter_map(|webhook| self.patch(webhook, keys))
            .collect();
        if !stale.is_empty() && holds() {
            // webhooks are merged by name, so their other fields stay
            let patch = Patch::Strategic(json!({ "webhooks": stale }));
            let written = self.api.patch(&self.name, &patch_params(), &patch).await;
            let written = written.inspect_err(|_| {
                self.keyed.send_replace(has_key);
            })?;
            info!(
                webhook = self.name,
                "webhook's configuration is this coordinator's"
            );
            let webhooks = written.webhooks.unwrap_or_default();
            self.keyed.send_replace(self.all_keyed(&webhooks));
            return Ok(());
        }
        self.keyed.send_replace(has_key);
        Ok(())
    }

    fn all_keyed(&self, webhooks: &[ValidatingWebhook]) -> bool {
        !webhooks.is_empty()
            && webhooks.iter().all(|webhook| {
                let end = format!("{}/{}", review::PATH, self.key.expose());
                path(webhook).is_some_and(|path| path.ends_with(&end))
            })
    }

    /// The same path or address, ending with our key. A path that doesn't lead to our webhook stays unchanged.
    fn keyed_path(&self, path: &str) -> String {
        match path.split_once(review::PATH) {
            Some((before, rest)) if rest.is_empty() || rest.starts_with('/') => {
                format!("{before}{}/{}", review::PATH, self.key.expose())
            }
            _ => path.to_owned(),
        }
    }

    /// The part of a webhook that has to be written. `None` where nothing differs.
    fn patch(&self, webhook: &ValidatingWebhook, keys: bool) -> Option<serde_json::Value> {
        let mut config = json!({});
        let bundle = webhook.client_config.ca_bundle.as_ref();
        if bundle.is_none_or(|bundle| bundle.0 != self.pem.as_bytes()) {
            let bundle = k8s_openapi::ByteString(self.pem.as_bytes().to_vec());
            config["caBundle"] = json!(bundle);
        }
        if keys
            && let Some(path) = path(webhook)
            && *path != self.keyed_path(path)
        {
            let path = self.keyed_path(path);
            match webhook.client_config.service {
                Some(_) => config["service"] = json!({ "path": path }),
                None => config["url"] = json!(path),
            }
        }
        let stale = config.as_object().is_some_and(|config| !config.is_empty());
        stale.then(|| json!({ "name": webhook.name, "clientConfig": config }))
    }
}

/// The path of a webhook's Service, or its whole address.
fn path(webhook: &ValidatingWebhook) -> Option<&String> {
    let config = &webhook.client_config;
    match &config.service {
        Some(service) => service.path.as_ref(),
        None => config.url.as_ref(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Json, Router, routing::get};
    use kube::Client;
    use serde_json::Value;

    use super::*;

    const NAME: &str = "parbake";

    /// An API server that has one configuration and merges patches into its webhooks, as a strategic merge does.
    fn server(clients: &[Value]) -> (Client, Arc<Mutex<Value>>) {
        let webhooks = clients.iter().enumerate().map(|(at, client)| {
            json!({
                "name": format!("w{at}"),
                "clientConfig": client,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
            })
        });
        let stored = Arc::new(Mutex::new(json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": NAME },
            "webhooks": webhooks.collect::<Vec<_>>(),
        })));
        let (read, written) = (stored.clone(), stored.clone());
        let show = move || async move { Json(read.lock().unwrap().clone()) };
        let patch = move |body: axum::body::Bytes| async move {
            let patch: Value = serde_json::from_slice(&body).unwrap();
            let mut stored = written.lock().unwrap();
            for change in patch["webhooks"].as_array().unwrap() {
                let webhooks = stored["webhooks"].as_array_mut().unwrap();
                let webhook = webhooks
                    .iter_mut()
                    .find(|webhook| webhook["name"] == change["name"])
                    .unwrap();
                for (field, value) in change["clientConfig"].as_object().unwrap() {
                    match value.as_object() {
                        None => webhook["clientConfig"][field] = value.clone(),
                        Some(fields) => {
                            for (inner, value) in fields {
                                webhook["clientConfig"][field][inner] = value.clone();
                            }
                        }
                    }
                }
            }
            Json(stored.clone())
        };
        let path =
            format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}");
        let router = Router::new().route(&path, get(show).patch(patch));
        (Client::new(router, "default"), stored)
    }

    fn kept(client: Client) -> (Webhook, watch::Receiver<bool>) {
        let (keyed, seen) = watch::channel(false);
        let webhook = Webhook {
            api: Api::all(client),
            name: NAME.into(),
            pem: "PEM".into(),
            key: review::key(&Secret::from_text("token")),
            guard: watch::channel(Guarded::Unknown).0,
            keyed,
        };
        (webhook, seen)
    }

    fn service(path: &str) -> Value {
        json!({ "service": { "name": "s", "namespace": "n", "path": path } })
    }

    #[tokio::test]
    async fn the_key_is_put_into_the_path_once_old_replicas_are_gone() {
        let (client, stored) = server(&[
            service(review::PATH),
            json!({ "url": format!("https://localhost:1{}", review::PATH) }),
        ]);
        let (webhook, keyed) = kept(client);
        let mut resets = Resets::default();
        webhook.look(false, &mut resets, || true).await.unwrap();
        let client_of = |at: usize| stored.lock().unwrap()["webhooks"][at]["clientConfig"].clone();
        assert_eq!(
            client_of(0)["caBundle"],
            json!(k8s_openapi::ByteString(b"PEM".to_vec()))
        );
        assert_eq!(client_of(0)["service"]["path"], review::PATH);
        assert!(!*keyed.borrow(), "anybody's question has to be answered");
        webhook.look(true, &mut resets, || false).await.unwrap();
        assert!(!*keyed.borrow(), "who doesn't lead writes nothing");
        webhook.look(true, &mut resets, || true).await.unwrap();
        let key = webhook.key.expose();
        assert_eq!(key.len(), 32);
        let path = format!("{}/{key}", review::PATH);
        assert_eq!(
            client_of(0)["service"],
            json!({ "name": "s", "namespace": "n", "path": path })
        );
        assert_eq!(client_of(1)["url"], format!("https://localhost:1{path}"));
        assert!(*keyed.borrow());
        // the next leader finds the key in the path, and doesn't wait
        let (client, _stored) = server(&[service(&path)]);
        let (next, keyed) = kept(client);
        next.look(false, &mut Resets::default(), || true)
            .await
            .unwrap();
        assert!(*keyed.borrow());
    }

    #[tokio::test]
    async fn a_path_that_is_reset_is_put_right_until_somebody_insists() {
        let (client, stored) = server(&[service(review::PATH)]);
        let (webhook, keyed) = kept(client);
        let mut resets = Resets::default();
        webhook.look(true, &mut resets, || true).await.unwrap();
        for _ in 1..MOST_RESETS {
            stored.lock().unwrap()["webhooks"][0]["clientConfig"] = service(review::PATH);
            webhook.look(false, &mut resets, || true).await.unwrap();
            assert!(*keyed.borrow());
        }
        stored.lock().unwrap()["webhooks"][0]["clientConfig"] = service(review::PATH);
        webhook.look(true, &mut resets, || true).await.unwrap();
        assert!(!*keyed.borrow());
        let stored = stored.lock().unwrap();
        assert_eq!(
            stored["webhooks"][0]["clientConfig"]["service"]["path"],
            review::PATH
        );
    }

    #[tokio::test]
    async fn a_path_of_somebody_elses_is_left_alone() {
        for path in ["/elsewhere", "/v1/webhook/podsters"] {
            let (client, stored) = server(&[service(path)]);
            let (webhook, keyed) = kept(client);
            webhook
                .look(true, &mut Resets::default(), || true)
                .await
                .unwrap();
            assert!(!*keyed.borrow());
            let stored = stored.lock().unwrap();
            assert_eq!(
                stored["webhooks"][0]["clientConfig"]["service"]["path"],
                path
            );
        }
    }
}
