//! How the cluster's API server is reached, and how patiently.

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
/// A connection that a request was sent on and that says nothing for this long is broken. Watches are ended sooner by
/// the API server, as they ask for.
const READ_TIMEOUT: Duration = Duration::from_secs(40);
/// The first and the longest wait after one that failed.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often the leader looks whether labels and the webhook's caBundle are as they have to be: somebody else may have
/// changed them.
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
        // kube takes the process's provider. There is one; naming it keeps it so when another dependency brings a
        // second. Fails when it was named before, which is as good.
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

/// Who asks, as the API server's audit log has it. What writes without naming itself as a field manager is managed by
/// the part before the slash.
pub(crate) const AGENT: &str = concat!(
    "parbake/",
    env!("CARGO_PKG_VERSION"),
    " (parbake-coordinator)"
);

/// A client that says who it is, sends each request once, and doesn't wait for ever.
///
/// By itself kube sends a request that is answered 429, 503 or 504 up to fifteen times, and waits as long as the server
/// says. A label that was put on and answered 504 would be sent again with a version that is old by then, and a refusal
/// be heard of a write that was done; a lease might have been lost in between; and a watch that fails would look like
/// one that sees. Whoever asks here tries again by itself, by what it knows then.
pub(crate) fn client(mut config: kube::Config) -> kube::Result<Client> {
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(AGENT)));
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // counted from the request, not from the last answer on a connection that was kept
    config.reset_reader_on_write = true;
    Client::try_from(config)
}
