//! How the coordinator reaches the cluster's API server, and how long it waits.

use std::time::Duration;

use http::{HeaderValue, header::USER_AGENT};
use kube::Client;
use tracing::info;

use super::trouble;
use crate::config::Cluster;

/// A request about a label or a webhook is given up after this long.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection to the API server is made within this time, or given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that is silent for this long after a request was sent on it is broken. The API server ends watches
/// sooner, because they ask for that.
const READ_TIMEOUT: Duration = Duration::from_secs(40);
/// The first and the longest wait after a failed request.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often the leader checks its labels and the webhook's caBundle, because somebody else may have changed them.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Why the API server can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No API server is known. Set KUBECONFIG, or run with a service account.
    #[error("finding the cluster: {0}")]
    Find(#[from] Box<kube::config::InferConfigError>),
    /// The client can't be made.
    #[error("setting up the cluster's client: {}", trouble::plain(.0))]
    Client(#[from] kube::Error),
}

/// How to reach the cluster.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) client: Client,
    /// Namespace of the Lease, the Secret and the own Pod.
    pub(crate) namespace: String,
}

impl Access {
    /// Finds the cluster by KUBECONFIG, the user's kubeconfig or the service account.
    pub(super) async fn find(settings: &Cluster) -> Result<Self, AccessError> {
        // kube takes the process's provider. There is one provider, and naming it keeps the choice when another
        // dependency brings a second. The call fails when a provider was named before, which is fine.
        _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::infer().await.map_err(Box::new)?;
        let namespace = settings.namespace.clone();
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        info!(server = %config.cluster_url, namespace, "cluster found");
        Ok(Self {
            client: client(config)?,
            namespace,
        })
    }
}

/// The user agent, as the API server's audit log shows it. For a writer that names no field manager, the API server
/// uses the part before the slash.
pub(crate) const AGENT: &str = concat!(
    "parbake/",
    env!("CARGO_PKG_VERSION"),
    " (parbake-coordinator)"
);

/// A client that identifies itself, sends each request once, and waits for a limited time.
///
/// By default kube repeats a request that is answered 429, 503 or 504 up to fifteen times, and waits as long as the
/// server says. That is wrong here for three reasons. A label write that succeeded and was answered 504 would be
/// repeated with an old version, and the refusal would hide the success. A lease might be lost between two tries. A
/// watch that fails would look like a watch that sees. So each caller here repeats a request itself, by what it knows
/// then.
pub(crate) fn client(mut config: kube::Config) -> kube::Result<Client> {
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(AGENT)));
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // the time counts from the request, not from the last answer on a kept connection
    config.reset_reader_on_write = true;
    Client::try_from(config)
}
