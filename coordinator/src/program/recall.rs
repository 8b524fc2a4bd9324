//! Recall: a new leader may find images that operators asked another replica for. It asks the registry for each of
//! these images, and has it staged again.

use std::{sync::Arc, time::Duration};

use origin::Backoff;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    driver,
    resolve::{self, Registries, ResolveError},
    wants::{Asked, Want},
};

/// The first and the longest pause after a failed attempt to resolve an image. A registry may ask for a longer one.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Asks the registry for each image by its digest, and has the image staged again. Tells the driver when all images are
/// done.
pub(super) async fn recall(
    asked: Vec<Asked>,
    registries: Arc<Registries>,
    inbox: mpsc::Sender<driver::Input>,
    shutdown: CancellationToken,
) {
    let work = async {
        for asked in asked {
            let Some(reference) = asked.references.first() else {
                continue;
            };
            let reference = resolve::by_digest(reference, &asked.digest);
            let mut backoff = Backoff::seeded(PAUSES.0, PAUSES.1);
            let want = loop {
                match registries
                    .resolve(&reference, asked.hosts.clone(), None)
                    .await
                {
                    Ok(want) => break Some(want),
                    // A later attempt can't succeed, and the images that follow must not wait for this one.
                    Err(error @ ResolveError::Reference { .. }) => {
                        error!(%error, "an image that was asked for before isn't staged: cancel it, and stage it under another name");
                        break None;
                    }
                    Err(error) => {
                        warn!(%error, "an image that was asked for before can't be resolved; it is tried again");
                        sleep(backoff.delay(error.retry_after())).await;
                    }
                }
            };
            let Some(want) = want else { continue };
            let want = Box::new(Want {
                references: asked.references,
                narrowed: asked.narrowed,
                asked_ms: asked.asked_ms,
                priority: asked.priority,
                wanted_at: asked.wanted_at,
                timing: asked.timing,
                predicted: asked.predicted,
                ..want
            });
            // nobody waits for the answer
            let (reply, _) = oneshot::channel();
            drop(
                inbox
                    .send(driver::Input::Asked(driver::Ask::Stage { want, reply }))
                    .await,
            );
        }
        drop(inbox.send(driver::Input::Recalled).await);
    };
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = work => {}
    }
    shutdown.cancelled().await;
}
