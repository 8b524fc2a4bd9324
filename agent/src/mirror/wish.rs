//! What the mirror asks of the driver.

use std::{convert::Infallible, sync::Arc};

use tokio::sync::oneshot;

use super::blob::Blob;
use crate::registries::Access;

/// A client wants a blob that isn't here: for the driver.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) blob: Arc<Blob>,
    /// The repository that has it.
    pub(crate) reference: String,
    /// What the upstream accepted of the client.
    pub(crate) access: Access,
    /// Dropped when the driver took note of the wish. What the blob told before isn't about this client.
    pub(crate) heard: oneshot::Sender<Infallible>,
}
