//! What a driver is made of.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::{presence::PresenceView, show::View, writer::Write};
use crate::{
    authority::Authority, config::Config, fleet::Membership, metrics::Metrics, resolve::Registries,
    wants::Kept,
};

/// Everything from which a driver is made.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) authority: Arc<Authority>,
    pub(crate) kept: Kept,
    pub(crate) membership: Arc<Membership>,
    pub(crate) publish: watch::Sender<Arc<View>>,
    pub(crate) presence: watch::Sender<Arc<PresenceView>>,
    pub(crate) writer: mpsc::Sender<Write>,
    pub(crate) registries: Arc<Registries>,
    pub(crate) metrics: Metrics,
    pub(crate) seed: u64,
}
