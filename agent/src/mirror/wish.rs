//! A mirror's request to the driver.

use std::{convert::Infallible, sync::Arc};

use tokio::sync::oneshot;

use super::blob::Blob;
use crate::registries::Access;

/// Tells the driver that a client wants a blob that isn't here.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) blob: Arc<Blob>,
    /// The repository that has the blob, as `registry/name`.
    pub(crate) reference: String,
    /// The client's credentials, which the upstream accepted.
    pub(crate) access: Access,
    /// Dropped when the driver has noted the wish. Trouble that the blob told before that isn't about this client.
    pub(crate) heard: oneshot::Sender<Infallible>,
}
