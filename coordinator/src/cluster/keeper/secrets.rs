//! The pull Secrets that ImagePrePulls name. Each Secret is used only for the objects of its namespace that name it.
//! Secrets are read when an image is resolved, and every minute. So a changed password is used before the next pull
//! token is asked for, and a withdrawn password isn't used any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::time::timeout;
use tracing::warn;

use crate::{
    cluster::{
        index::{Index, ObjectKey},
        trouble,
    },
    resolve::{LearnError, Registries},
};

/// The time between two reads of a Secret.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// The API server answers for one Secret within this time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a pull Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// The Secret doesn't exist. Create it, or name another.
    #[error("Secret {0} doesn't exist")]
    Gone(ObjectKey),
    /// The Secret isn't one of docker's. Create it with `kubectl create secret docker-registry`.
    #[error("Secret {0} has no .dockerconfigjson")]
    Other(ObjectKey),
    /// The Secret's content can't be used.
    #[error("Secret {0}: {1}")]
    Learn(ObjectKey, LearnError),
    /// The API server refuses or can't be asked. Name the Secret in the chart's rbac.pullSecrets. The content that was
    /// read before still counts.
    #[error("Secret {0} can't be read: {1}")]
    Unread(ObjectKey, String),
}

/// The Secrets that are named, and the result of the last read of each.
#[derive(Debug, Default)]
pub(super) struct Secrets {
    looked: BTreeMap<ObjectKey, Instant>,
    troubles: BTreeMap<ObjectKey, String>,
}

/// The Secrets that ImagePrePulls name.
pub(super) fn named(index: &Index) -> BTreeSet<ObjectKey> {
    let prepulls = index.prepulls.iter();
    prepulls
        .filter_map(|(key, facts)| facts.secret(key))
        .collect()
}

impl Secrets {
    /// What is wrong with this Secret. `None` where nothing is, or the Secret wasn't read yet.
    pub(super) fn trouble(&self, key: &ObjectKey) -> Option<String> {
        self.troubles.get(key).cloned()
    }

    /// The Secrets among `named` that are to be read now. Forgets all others.
    pub(super) fn due(&mut self, now: Instant, named: BTreeSet<ObjectKey>) -> Vec<ObjectKey> {
        self.looked.retain(|key, _| named.contains(key));
        self.troubles.retain(|key, _| named.contains(key));
        let mut due = Vec::new();
        for key in named {
            let looked = self.looked.get(&key);
            if looked.is_none_or(|at| now.saturating_duration_since(*at) >= LOOK_EVERY) {
                self.looked.insert(key.clone(), now);
                due.push(key);
            }
        }
        due
    }

    /// A Secret was read, or couldn't be. The result of a Secret that nobody names any more is ignored.
    pub(super) fn read(&mut self, key: ObjectKey, result: Result<(), SecretError>) {
        if !self.looked.contains_key(&key) {
            return;
        }
        match result {
            Ok(()) => drop(self.troubles.remove(&key)),
            Err(error) => {
                let text = error.to_string();
                let before = self.troubles.insert(key.clone(), text.clone());
                if before.as_ref() != Some(&text) {
                    warn!(secret = %key, error = text, "pull Secret can't be used");
                }
            }
        }
    }
}

/// Reads a pull Secret and passes its content to the registry client. If the content can't be used any more, the client
/// forgets it.
///
/// # Errors
/// The Secret is gone, unusable or can't be read. When it can't be read, the client keeps the earlier content.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    #[test]
    fn a_secret_is_read_when_it_is_named_and_every_minute_after() {
        let (mut secrets, now) = (Secrets::default(), Instant::now());
        let named = || BTreeSet::from([key("a")]);
        assert_eq!(secrets.due(now, named()), [key("a")]);
        let last = now + LOOK_EVERY - Duration::from_millis(1);
        assert_eq!(secrets.due(last, named()), []);
        let both = named().into_iter().chain([key("b")]).collect();
        assert_eq!(secrets.due(last, both), [key("b")]);
        assert_eq!(secrets.due(now + LOOK_EVERY, named()), [key("a")]);
        // the Secret was forgotten in the meantime
        assert_eq!(secrets.due(now + LOOK_EVERY, BTreeSet::new()), []);
        assert_eq!(secrets.due(now + LOOK_EVERY, named()), [key("a")]);
    }

    #[test]
    fn a_trouble_stands_until_the_secret_can_be_used_or_nobody_names_it() {
        let (mut secrets, now) = (Secrets::default(), Instant::now());
        let gone = || Err(SecretError::Gone(key("a")));
        secrets.read(key("a"), gone());
        assert_eq!(secrets.trouble(&key("a")), None, "nobody named it");
        secrets.due(now, [key("a")].into());
        secrets.read(key("a"), gone());
        assert_eq!(
            secrets.trouble(&key("a")).as_deref(),
            Some("Secret ns/a doesn't exist")
        );
        secrets.read(key("a"), Ok(()));
        assert_eq!(secrets.trouble(&key("a")), None);
        secrets.read(key("a"), gone());
        secrets.due(now, BTreeSet::new());
        assert_eq!(secrets.trouble(&key("a")), None);
    }
}
