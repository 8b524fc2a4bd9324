//! Looks for an image's recipe when the image's manifest passes to a client. No client waits for it.
//!
//! The recipe stands beside the image at the upstream. Its bytes are a blob like those that clients ask for: hosts that
//! look for the same recipe share one copy from the registry. Only registries that the settings name are asked, because
//! a recipe lets bytes from peers leave before their blob is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use origin::{Backoff, OriginError, recipe::FindRecipeError};
use proto::{Digest, Layout, figure::Bytes as Figure, image::Blob as File};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot},
    task::{JoinError, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::{debug, info};

use super::{
    blob::{Reading, Trouble},
    blobs::{BeginError, Blobs},
    recipes::MAX_CHUNKS,
    request::Repository,
    upstream::{Client, Upstreams, is_away},
    wish::Wish,
};
use crate::{
    lock::lock,
    metrics::{Metrics, OutcomeLabel},
    store::recipes::{ReadRecipeError, read_blobs},
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

/// The most bytes of a recipe that is fetched: with blocks, that of a disk of 250 GB at least.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The most bytes that a recipe may have for one content, which are in memory while the recipe is read: those of a
/// content of 16 GiB. Layers of tart have 512 MiB (tart, Sources/tart/OCI/Layerizer/DiskV2.swift: layerLimitBytes).
const MAX_PART_BYTES: u64 = 16 << 20;

/// A manifest that passed to a client.
#[derive(Debug)]
pub(super) struct Look {
    repository: Repository,
    client: Client,
    image: Digest,
    manifest: Bytes,
}

/// The registries of which a log line says that their recipes aren't used. Of more, none does: clients may name any.
const MAX_UNNAMED: usize = 16;

/// Hands manifests that pass to those who look for recipes.
#[derive(Debug)]
pub(super) struct Passing {
    looks: mpsc::Sender<Look>,
    /// When each repository's manifests were looked after. Locked for look-ups.
    looked: Mutex<BTreeMap<(String, Digest), Instant>>,
    /// Registries that the settings don't name, and whose manifests passed. Locked for look-ups.
    unnamed: Mutex<BTreeSet<String>>,
}

impl Passing {
    pub(super) fn new(looks: mpsc::Sender<Look>) -> Self {
        Self {
            looks,
            looked: Mutex::default(),
            unnamed: Mutex::default(),
        }
    }

    /// A manifest passes whose registry the settings don't name. Logs it once for each registry.
    pub(super) fn pass_unnamed(&self, registry: &str) {
        let mut unnamed = lock(&self.unnamed);
        if unnamed.len() < MAX_UNNAMED && unnamed.insert(registry.to_owned()) {
            info!(
                registry,
                "recipes of this registry aren't used: mirror.upstream and mirror.upstreams don't name it"
            );
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
        let what = (repository.reference(), image);
        let mut looked = lock(&self.looked);
        let lately = |at: &Instant| at.elapsed() < LOOK_EVERY;
        if looked.get(&what).is_some_and(lately) {
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
        looked.insert(what, Instant::now());
    }
}

/// Why an image's blobs go without a recipe.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Find(Box<FindRecipeError>),
    #[error("the registry can't be asked: {0}")]
    Settings(String),
    #[error("the repository doesn't give it: {0}")]
    Withheld(Box<OriginError>),
    #[error("it has {size} bytes in the repository, and its artifact says {says}")]
    Size { size: u64, says: u64 },
    #[error("it has {}, more than a mirror reads", Figure(*.0))]
    TooLarge(u64),
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
    /// Held by the one look that reads a recipe: manifests that pass fill no memory.
    pub(super) reads: Arc<AsyncMutex<()>>,
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
        examine(file, &layout)?;
        self.confirm(look, file).await?;
        let reading = self.fetch(look, file).await?;
        let (blobs, repository) = (self.blobs.clone(), look.repository.reference());
        let alone = self.reads.clone().lock_owned().await;
        let learnt = spawn_blocking(move || {
            let _alone = alone;
            let bytes = reading.blob.file()?;
            let most = (MAX_PART_BYTES, MAX_CHUNKS);
            let parts = read_blobs(&bytes, &file.digest, &layout, most)?;
            blobs.learn_parts(&repository, file.digest, parts);
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

    /// Asks the upstream whether the repository has the file, and in this size: an artifact may name any blob, and any
    /// size of it.
    async fn confirm(&self, look: &Look, file: File) -> Result<(), LookError> {
        let mut backoff = Backoff::seeded(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            let (of, client) = (&look.repository, &look.client);
            match self.upstreams.blob(of, &file.digest, client, false).await {
                Ok(size) if size == file.size => return Ok(()),
                Ok(size) => {
                    let says = file.size;
                    return Err(LookError::Size { size, says });
                }
                Err(error) if is_away(&error) => sleep(backoff.delay(error.retry_after())).await,
                Err(error) => return Err(LookError::Withheld(error.into())),
            }
        }
    }

    /// Gets the recipe's bytes as a client of the mirror gets a blob. They are verified.
    async fn fetch(&self, look: &Look, file: File) -> Result<Reading, LookError> {
        let (blobs, by) = (self.blobs.clone(), look.repository.reference());
        let begun = spawn_blocking(move || blobs.begin_aside(&by, file.digest, file.size));
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

/// Whether what an artifact names can be a recipe that a mirror reads.
fn examine(file: File, layout: &Layout) -> Result<(), LookError> {
    if (layout.contents().iter()).any(|of| of.digest == file.digest) {
        return Err(LookError::Content(file.digest));
    }
    if file.size > MAX_FILE_BYTES {
        return Err(LookError::TooLarge(file.size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use origin::ProxySettings;
    use tempfile::TempDir;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;
    use crate::{
        config::OriginConfig,
        mirror::blobs,
        registries::Origin,
        store::tests::{noise, sample_of},
    };

    #[test]
    fn no_artifact_makes_a_mirror_fetch_a_content_or_more_bytes_than_it_reads() {
        let layout = sample_of(1, &noise(5_000, 3), 70_000, None).layout;
        let file = |digest, size| File { digest, size };
        let digest = Digest::of(b"recipe");
        assert!(examine(file(digest, MAX_FILE_BYTES), &layout).is_ok());
        let large = examine(file(digest, MAX_FILE_BYTES + 1), &layout);
        assert!(matches!(large, Err(LookError::TooLarge(_))));
        let content = examine(file(layout.contents()[0].digest, 9), &layout);
        assert!(matches!(content, Err(LookError::Content(_))));
    }

    #[test]
    fn a_bounded_number_of_registries_is_logged_whose_recipes_are_not_used() {
        let (looks, _waits) = mpsc::channel(1);
        let passing = Passing::new(looks);
        for at in 0..2 * MAX_UNNAMED {
            passing.pass_unnamed("r.test");
            passing.pass_unnamed(&format!("r{at}.test"));
        }
        let unnamed = lock(&passing.unnamed);
        assert!(unnamed.contains("r.test") && unnamed.contains("r1.test"));
        assert_eq!(unnamed.len(), MAX_UNNAMED);
    }

    /// A registry that gives these answers, one after the other, and what it was asked.
    struct Registry {
        address: String,
        asked: Arc<Mutex<Vec<String>>>,
        _task: JoinSet<()>,
    }

    impl Registry {
        async fn new(answers: &'static [&'static str]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let asked = Arc::<Mutex<Vec<String>>>::default();
            let (mut task, heard) = (JoinSet::new(), asked.clone());
            task.spawn(async move {
                for answer in answers {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap();
                    lock(&heard).push(head.lines().next().unwrap().to_owned());
                    let answer = format!("HTTP/1.1 {answer}\r\nConnection: close\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            Self {
                address,
                asked,
                _task: task,
            }
        }

        /// Asks this registry whether it has the file.
        async fn confirms(&self, file: File) -> Result<(), LookError> {
            let origin = Origin::new(&OriginConfig {
                ca_file: None,
                plain_http: vec![self.address.clone()],
                idle_timeout: Duration::from_secs(30),
                proxy: ProxySettings::default(),
                system_roots: false,
                credentials: BTreeMap::new(),
            });
            let (home, (wishes, mut wished)) = (TempDir::new().unwrap(), mpsc::channel(1));
            let seeker = Seeker {
                upstreams: Arc::new(Upstreams::new(origin.unwrap())),
                blobs: Arc::new(blobs::tests::open(home.path(), 1 << 30)),
                wishes,
                metrics: Metrics::new().0,
                reads: Arc::default(),
            };
            let look = Look {
                repository: Repository {
                    registry: self.address.clone(),
                    name: "org/image".into(),
                    by_namespace: false,
                },
                client: Client::new(None, false),
                image: Digest::of(b"image"),
                manifest: Bytes::new(),
            };
            let confirmed = seeker.confirm(&look, file).await;
            assert!(wished.try_recv().is_err(), "nothing is fetched yet");
            confirmed
        }
    }

    fn file() -> File {
        File {
            digest: Digest::of(b"recipe"),
            size: 9_000,
        }
    }

    #[tokio::test]
    async fn a_recipe_that_the_repository_has_in_the_size_that_its_artifact_says_is_confirmed() {
        let registry = Registry::new(&["200 OK\r\nContent-Length: 9000"]).await;
        registry.confirms(file()).await.unwrap();
        let path = format!("/v2/org/image/blobs/{}", file().digest);
        assert_eq!(
            *lock(&registry.asked),
            [format!("HEAD {path} HTTP/1.1")],
            "its bytes aren't asked for"
        );
    }

    #[tokio::test]
    async fn a_recipe_of_another_size_than_its_artifact_says_is_left() {
        for answer in [
            &["200 OK\r\nContent-Length: 9001"],
            &["200 OK\r\nContent-Length: 0"],
            &["200 OK\r\nContent-Length: 300000000000"],
        ] {
            let registry = Registry::new(answer).await;
            let left = registry.confirms(file()).await;
            let Err(LookError::Size { size, says: 9_000 }) = left else {
                panic!("{left:?}");
            };
            assert!(answer[0].ends_with(&size.to_string()));
        }
    }

    #[tokio::test]
    async fn a_recipe_that_the_repository_does_not_give_is_left() {
        // the second is asked for by GET, too
        for answers in [
            &["404 Not Found\r\nContent-Length: 0"; 2],
            &["403 Forbidden\r\nContent-Length: 0"; 2],
            &["401 Unauthorized\r\nContent-Length: 0"; 2],
        ] {
            let registry = Registry::new(answers).await;
            let left = registry.confirms(file()).await;
            assert!(matches!(left, Err(LookError::Withheld(_))), "{left:?}");
        }
    }

    #[tokio::test]
    async fn a_registry_in_trouble_is_asked_again_whether_it_has_the_recipe() {
        let registry = Registry::new(&[
            "503 Service Unavailable\r\nContent-Length: 0",
            "503 Service Unavailable\r\nContent-Length: 0",
            "429 Too Many Requests\r\nContent-Length: 0",
            "200 OK\r\nContent-Length: 9000",
        ])
        .await;
        registry.confirms(file()).await.unwrap();
        assert_eq!(lock(&registry.asked).len(), 4);
    }
}
