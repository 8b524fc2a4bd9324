//! Keeps the coordinator's own certificates fresh: the one that the API shows, and the one that hosts see.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use wire::{Credentials, Endpoint, Validity};

use crate::{authority::Authority, serve::Certificate};

/// The certificate that the API shows.
pub(super) struct Shown {
    pub(super) authority: Arc<Authority>,
    pub(super) names: Vec<String>,
    pub(super) lifetime: Duration,
    pub(super) certificate: Arc<Certificate>,
}

impl Shown {
    /// Keeps the certificate fresh until `shutdown`.
    pub(super) async fn keep(self, shutdown: CancellationToken) {
        renew(self.lifetime, "API", move || self.renew(), shutdown).await;
    }

    fn renew(&self) -> anyhow::Result<()> {
        let identity = self.authority.issue_own_for(&self.names, self.lifetime)?;
        Ok(self.certificate.replace(&identity)?)
    }
}

/// The certificate that hosts see.
pub(super) struct Own {
    pub(super) authority: Arc<Authority>,
    pub(super) lifetime: Duration,
    pub(super) endpoint: Endpoint,
}

impl Own {
    /// Keeps the certificate fresh until `shutdown`.
    pub(super) async fn keep(self, shutdown: CancellationToken) {
        renew(self.lifetime, "link", move || self.renew(), shutdown).await;
    }

    fn renew(&self) -> anyhow::Result<()> {
        let identity = self.authority.issue_own(self.lifetime)?;
        let roots = vec![self.authority.certificate().clone()];
        let credentials = Credentials::new(identity.chain, identity.key, roots)?;
        Ok(self.endpoint.renew(credentials)?)
    }
}

/// Keeps one of the coordinator's own certificates fresh. As on hosts, a certificate is renewed after two thirds of its
/// life.
async fn renew(
    lifetime: Duration,
    place: &'static str,
    issue: impl Fn() -> anyhow::Result<()>,
    shutdown: CancellationToken,
) {
    let from_now = || {
        let issued = SystemTime::now();
        Validity {
            issued,
            expires: issued + lifetime,
        }
    };
    let mut own = from_now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(own.look_every()) => {}
        }
        if !own.renewal_due(SystemTime::now()) {
            continue;
        }
        match issue() {
            Ok(()) => {
                info!(place, "own certificate renewed");
                own = from_now();
            }
            Err(error) => {
                error!(%error, place, "own certificate can't be renewed; trying again");
            }
        }
    }
}
