//! Pull Secrets that ImagePrePulls name: each is used for the objects of its namespace that name it. They are read when an
//! image is resolved, and every minute after, so that a password that was changed is used before the next pull token is
//! asked for, and one that was taken back isn't.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::time::timeout;
use tracing::warn;

use super::{Input, Keeper};
use crate::{
    cluster::{index::ObjectKey, trouble},
    resolve::{LearnError, Registries},
};

/// Between two looks at a Secret.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The API server answers for one within this time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a pull Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// It isn't there. Make it, or name another.
    #[error("Secret {0} doesn't exist")]
    Gone(ObjectKey),
    /// It isn't one of docker's. Make it with `kubectl create secret docker-registry`.
    #[error("Secret {0} has no .dockerconfigjson")]
    Other(ObjectKey),
    /// What it holds can't be used.
    #[error("Secret {0}: {1}")]
    Learn(ObjectKey, LearnError),
    /// The API server refuses, or can't be asked: name it in the chart's rbac.pullSecrets. What was read before counts.
    #[error("Secret {0} can't be read: {1}")]
    Unread(ObjectKey, String),
}

/// The Secrets that are named, and how their last look went.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    looked: BTreeMap<ObjectKey, Instant>,
    troubles: BTreeMap<ObjectKey, String>,
}

impl Secrets {
    /// What is wrong with this one.
    pub(super) fn trouble(&self, key: &ObjectKey) -> Option<String> {
        self.troubles.get(key).cloned()
    }
}

impl Keeper {
    /// Reads the Secrets that are due, and forgets those that nobody names.
    pub(super) fn read_secrets(&mut self) {
        if !self.synced {
            return;
        }
        let prepulls = self.index.prepulls.iter();
        let named: BTreeSet<ObjectKey> = prepulls
            .filter_map(|(key, facts)| facts.secret(key))
            .collect();
        self.secrets.looked.retain(|key, _| named.contains(key));
        self.secrets.troubles.retain(|key, _| named.contains(key));
        let names: BTreeSet<String> = named.iter().map(ToString::to_string).collect();
        self.registries
            .keep_secrets(|secret| names.contains(secret));
        for key in named {
            let looked = self.secrets.looked.get(&key);
            if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                continue;
            }
            self.secrets.looked.insert(key.clone(), Instant::now());
            let (client, registries) = (self.client.clone(), self.registries.clone());
            self.jobs.spawn(async move {
                let result = learn(client, &key, &registries).await;
                Input::Secret { key, result }
            });
        }
    }

    pub(super) fn secret_read(&mut self, key: ObjectKey, result: Result<(), SecretError>) {
        if !self.secrets.looked.contains_key(&key) {
            return;
        }
        match result {
            Ok(()) => drop(self.secrets.troubles.remove(&key)),
            Err(error) => {
                let text = error.to_string();
                let before = self.secrets.troubles.insert(key.clone(), text.clone());
                if before.as_ref() != Some(&text) {
                    warn!(secret = %key, error = text, "pull Secret can't be used");
                }
            }
        }
    }
}

/// Reads a pull Secret and lets the registry client know what it holds, or that it holds nothing any more.
pub(super) async fn learn(
    client: Client,
    key: &ObjectKey,
    registries: &Registries,
) -> Result<(), SecretError> {
    let api: Api<Secret> = Api::namespaced(client, &key.namespace);
    let unread = |error: String| SecretError::Unread(key.clone(), error);
    let found = timeout(TIMEOUT, api.get_opt(&key.name))
        .await
        .map_err(|_| unread("no answer in time".into()))?
        .map_err(|error| unread(trouble::plain(&error)))?;
    let name = key.to_string();
    let learned = match found {
        None => Err(SecretError::Gone(key.clone())),
        Some(secret) => match secret.data.unwrap_or_default().get(".dockerconfigjson") {
            None => Err(SecretError::Other(key.clone())),
            Some(config) => registries
                .learn(&name, &config.0)
                .map_err(|error| SecretError::Learn(key.clone(), error)),
        },
    };
    if learned.is_err() {
        registries.keep_secrets(|secret| secret != name);
    }
    learned
}
