//! The state of every handler of the API: the driver's inbox and view, the enrolment records, and the registries.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    answer::{Answer, Failure},
    tries::Tries,
};
use crate::{
    authority::Authority,
    driver::{Ask, Input, View},
    enrolment::Enrolment,
    fleet::{Membership, Reread},
    metrics::Metrics,
    resolve::Registries,
    saver::Saver,
    secret::Secret,
};

/// The most followers of progress at one time.
pub(super) const FOLLOWERS: usize = 64;

/// Everything that the API's handlers need.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) inbox: mpsc::Sender<Input>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) membership: watch::Receiver<Arc<Membership>>,
    pub(crate) reload: mpsc::Sender<Reread>,
    pub(crate) token: Secret,
    pub(crate) authority: Arc<Authority>,
    pub(crate) enrolment: Enrolment,
    /// Every answer about changed records waits for this saver.
    pub(crate) saver: Saver,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) certificate_lifetime: Duration,
    pub(crate) renewal_grace: Duration,
    pub(crate) token_lifetime: Duration,
    /// The address for QUIC: `host:port`, or `:port` at the host to which the request was sent.
    pub(crate) quic: String,
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) tries: Arc<Tries>,
}

impl Api {
    pub(crate) fn follow_slots() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(FOLLOWERS))
    }
}

/// Asks the driver, and waits for its answer.
pub(super) async fn ask<T>(api: &Api, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    api.inbox
        .send(Input::Asked(make(reply)))
        .await
        .map_err(|_| Failure::stopping())?;
    answer.await.map_err(|_| {
        Failure::internal("the coordinator couldn't write its state; see its log, and ask again")
    })
}

/// Runs blocking work, such as disk access, on a thread for such work.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Answer<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(Failure::internal)
}

/// Waits until changed records are kept where the next leader finds them. Answers 503 when they can't be kept.
pub(super) async fn saved(api: &Api) -> Answer<()> {
    let saved = api.saver.saved().await;
    saved.map_err(|error| Failure::new(http::StatusCode::SERVICE_UNAVAILABLE, error))
}
