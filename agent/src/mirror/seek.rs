//! Looks for an image's recipe when the image's manifest passes to a client. No client waits for it.
//!
//! The recipe stands beside the image at the upstream. Its bytes are a blob like those that clients ask for: hosts that
//! look for the same recipe share one copy from the registry. Only registries that the settings name are asked, because
//! a recipe lets bytes from peers leave before their blob is whole.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use origin::{Backoff, recipe::FindRecipeError};
use proto::{Digest, Layout, image::Blob as File};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    blob::{Reading, Trouble},
    blobs::{BeginError, Blobs},
    request::Repository,
    upstream::{Client, Upstreams, is_away},
    wish::Wish,
};
use crate::{
    lock::lock,
    metrics::{Metrics, OutcomeLabel},
    store::recipes::{ReadRecipeError, read_file},
};

/// Looks that run at one time, and as many that wait. A manifest that passes when there are more is looked after when
/// it passes again.
pub(super) const LOOKS: usize = 4;
/// How long a look may take. By then an image of 60 GB has mostly passed, at 1 Gbit/s.
const LOOK_TIMEOUT: Duration = Duration::from_mins(5);
/// A manifest that passes again isn't looked after for so long. Recipes are pushed with the image, or not at all.
const LOOK_EVERY: Duration = Duration::from_mins(10);
/// The manifests of which is known when they were looked after. When there are more, all are forgotten.
const MAX_LOOKED: usize = 1 << 12;

/// A manifest that passed to a client.
#[derive(Debug)]
pub(super) struct Look {
    repository: Repository,
    client: Client,
    image: Digest,
    manifest: Bytes,
}

/// Hands manifests that pass to those who look for recipes.
#[derive(Debug)]
pub(super) struct Passing {
    looks: mpsc::Sender<Look>,
    /// When each manifest was looked after. Locked for look-ups.
    looked: Mutex<BTreeMap<Digest, Instant>>,
}

impl Passing {
    pub(super) fn new(looks: mpsc::Sender<Look>) -> Self {
        Self {
            looks,
            looked: Mutex::default(),
        }
    }

    /// A manifest passes to a client, which the upstream let in.
    pub(super) fn pass(
        &self,
        repository: &Repository,
        client: &Client,
        manifest: &origin::Manifest,
    ) {
        let image = manifest.digest;
        let mut looked = lock(&self.looked);
        let lately = |at: &Instant| at.elapsed() < LOOK_EVERY;
        if looked.get(&image).is_some_and(lately) {
            return;
        }
        let look = Look {
            repository: repository.clone(),
            client: client.clone(),
            image,
            manifest: manifest.bytes.clone(),
        };
        if self.looks.try_send(look).is_err() {
            return;
        }
        if looked.len() >= MAX_LOOKED {
            looked.clear();
        }
        looked.insert(image, Instant::now());
    }
}

/// Why an image's blobs go without a recipe.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Find(Box<FindRecipeError>),
    #[error("the registry can't be asked: {0}")]
    Settings(String),
    #[error(transparent)]
    Keep(#[from] BeginError),
    #[error("it doesn't come: {0}")]
    Trouble(Box<Trouble>),
    #[error(transparent)]
    Read(#[from] ReadRecipeError),
    #[error("its file can't be opened: {0}")]
    Io(#[from] io::Error),
    #[error("its artifact names {0}, which is a content of the image")]
    Content(Digest),
    #[error("it didn't come within {} s", LOOK_TIMEOUT.as_secs())]
    Late,
    #[error("the agent ends")]
    Ends,
}

impl From<JoinError> for LookError {
    fn from(_: JoinError) -> Self {
        Self::Ends
    }
}

/// Looks for recipes. Cloning shares everything.
#[derive(Clone, Debug)]
pub(super) struct Seeker {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) blobs: Arc<Blobs>,
    pub(super) wishes: mpsc::Sender<Wish>,
    pub(super) metrics: Metrics,
}

impl Seeker {
    /// Looks for the recipe of an image, and has the image's blobs proved by it.
    pub(super) async fn look(self, look: Look) {
        let (image, bytes) = (look.image, look.manifest.clone());
        let parsed = spawn_blocking(move || Layout::parse(&bytes, &image)).await;
        // only images of VMs have recipes
        let Ok(Ok(layout)) = parsed else { return };
        let seeking = timeout(LOOK_TIMEOUT, self.seek(&look, Arc::new(layout)));
        let outcome = match seeking.await.unwrap_or(Err(LookError::Late)) {
            Ok(Some(recipe)) => {
                info!(%image, %recipe, "a recipe proves the blobs of an image that passes");
                "found"
            }
            Ok(None) => "none",
            Err(error) => {
                info!(%image, %error, "the blobs of an image that passes go without a recipe");
                "failed"
            }
        };
        let recipes = &self.metrics.mirror.recipes;
        recipes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    async fn seek(&self, look: &Look, layout: Arc<Layout>) -> Result<Option<Digest>, LookError> {
        let Some(file) = self.find(look, &layout).await? else {
            return Ok(None);
        };
        if (layout.contents().iter()).any(|of| of.digest == file.digest) {
            return Err(LookError::Content(file.digest));
        }
        let reading = self.fetch(look, file).await?;
        let blobs = self.blobs.clone();
        let learnt = spawn_blocking(move || {
            let bytes = reading.blob.file()?;
            let recipe = read_file(&bytes, &file.digest, &layout)?;
            blobs.learn(&layout, file.digest, &recipe);
            Ok::<_, LookError>(())
        });
        learnt.await??;
        Ok(Some(file.digest))
    }

    /// Asks the upstream until it answers.
    async fn find(&self, look: &Look, layout: &Layout) -> Result<Option<File>, LookError> {
        let mut backoff = Backoff::seeded(Duration::from_millis(250), Duration::from_secs(30));
        let repository = self.upstreams.handle(&look.repository, &look.client);
        let repository = repository.map_err(|error| LookError::Settings(error.to_string()))?;
        loop {
            match origin::recipe::find(&repository, layout).await {
                Ok(found) => return Ok(found.map(|found| found.recipe)),
                Err(FindRecipeError::Origin(error)) if is_away(&error) => {
                    debug!(image = %look.image, %error, "the upstream doesn't say whether there is a recipe");
                    sleep(backoff.delay(error.retry_after())).await;
                }
                Err(error) => return Err(LookError::Find(error.into())),
            }
        }
    }

    /// Gets the recipe's bytes as a client of the mirror gets a blob. They are verified.
    async fn fetch(&self, look: &Look, file: File) -> Result<Reading, LookError> {
        let blobs = self.blobs.clone();
        let begun = spawn_blocking(move || blobs.begin(file.digest, file.size));
        let mut reading = begun.await??;
        if reading.blob.is_whole() {
            return Ok(reading);
        }
        let (heard, hears) = oneshot::channel();
        let wish = Wish {
            blob: reading.blob.clone(),
            reference: look.repository.reference(),
            access: look.client.access.clone(),
            heard,
        };
        let sent = self.wishes.send(wish).await;
        sent.map_err(|_| LookError::Ends)?;
        // the sender is dropped, and nothing is sent
        drop(hears.await);
        loop {
            let trouble = reading.news.borrow_and_update().trouble.clone();
            if reading.blob.is_whole() {
                return Ok(reading);
            }
            if let Some(trouble) = trouble {
                return Err(LookError::Trouble(trouble.into()));
            }
            let changed = reading.news.changed().await;
            changed.map_err(|_| LookError::Ends)?;
        }
    }
}
