//! The facts of the state directory in a Secret, so that the next leader has them: the authority's key and certificate,
//! the API's token, and the enrolment records.
//!
//! The programs that use these facts keep using files. `SharedSecret::open` writes the Secret's facts into this
//! replica's directory, or creates the Secret from the directory. The leader writes changes back. A change reaches the
//! Secret before a host or an operator is told of the change (`Saver::saved`). For example, a token is used up in the
//! Secret before its certificate is sent.
//!
//! Two leaders can't both write. Each leader writes the number of its term into the Secret before it serves, and that
//! write names the version that the leader read. So a write by an earlier leader that is still under way fails. When
//! that leader reads again, it finds a greater number than its own.
//!
//! The Secret's data has these keys: `ca.key`, `ca.pem` and `api.token` with the content of the files, and
//! `tokens.json`, `enrolled.json`, `revoked.json`, `asked.json` and `places.json`, each an object from file name to
//! file content. Records aren't keys of their own, because a host's name may be longer than a key. Wants aren't stored
//! here: in a cluster they are objects.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::{ByteString, api::core::v1};
use kube::{Api, api::ObjectMeta};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    term::{LAST_TERM, Term},
    trouble,
    write::post_params,
};
use crate::{
    authority::{Authority, OpenAuthorityError},
    enrolment::{Enrolment, RecordError},
    saver::Ask,
    state_dir,
    wants::{ASKED, PLACES},
};

/// The Secret's name.
pub const NAME: &str = "parbake-state";
/// The annotation with the number of the term that wrote the Secret last.
const TERM: &str = "parbake.dev/term";
/// The most bytes of facts: the limit of a Secret, less the room for its keys and our annotation.
const MAX_BYTES: usize = (1 << 20) - 1_024;
/// A request about the Secret is given up after this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the leader looks whether the command line changed a file.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often one save is tried, against writers that aren't coordinators and against a busy API server.
const TRIES: usize = 5;
/// The wait before a busy API server is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Files that are stored one by one: key in the Secret, path in the directory, permission bits.
const SINGLE: [(&str, &str, u32); 3] = [
    ("ca.key", "authority/ca.key", durable::SECRET),
    ("ca.pem", "authority/ca.pem", durable::PUBLIC),
    ("api.token", "api.token", durable::SECRET),
];
/// Directories of records: key in the Secret, path in the directory.
const RECORDS: [(&str, &str); 5] = [
    ("tokens.json", "tokens"),
    ("enrolled.json", "enrolled"),
    ("revoked.json", "revoked"),
    ("asked.json", ASKED),
    ("places.json", PLACES),
];

/// Why shared state can't be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum SharedStateError {
    /// A file or directory can't be read or written.
    #[error("state file {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The authority can't be made.
    #[error(transparent)]
    Authority(#[from] OpenAuthorityError),
    /// The records can't be opened.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The API server refuses the request. Look at the coordinator's role.
    #[error("secret {NAME}: {}", trouble::plain(.0))]
    Cluster(#[from] kube::Error),
    /// The API server doesn't answer.
    #[error("secret {NAME}: API server gives no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The Secret holds something that no coordinator wrote. Restore it, or delete it to start a new fleet.
    #[error("secret {NAME}: {0}; restore it from a backup, or delete it and enrol every host anew")]
    Damaged(String),
    /// Somebody deleted the Secret while a leader ran.
    #[error(
        "secret {NAME} was deleted; restart this coordinator's container, whose directory still has what it held, or restore it from a \
         backup; a new Pod would be the coordinator of a new fleet"
    )]
    Deleted,
    /// The facts are larger than a Secret can be.
    #[error(
        "state has {bytes} bytes and a Secret holds {MAX_BYTES}; wait until enrolment tokens expire, or remove records \
         of hosts that are gone"
    )]
    TooLarge {
        /// The size.
        bytes: usize,
    },
    /// A later leader has written the Secret.
    #[error("secret {NAME} belongs to a later leader")]
    Superseded,
}

impl SharedStateError {
    /// Whether the API server only asks to try again: it is overloaded, or it is starting.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Cluster(kube::Error::Api(status)) if [429, 503, 504].contains(&status.code))
    }
}

/// The facts of a state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts(BTreeMap<String, Vec<u8>>);

impl Facts {
    /// Reads the facts from a directory. Blocks.
    fn read(dir: &Path) -> Result<Self, SharedStateError> {
        let mut facts = BTreeMap::new();
        for (key, path, _) in SINGLE {
            let path = dir.join(path);
            facts.insert(key.to_owned(), std::fs::read(&path).map_err(at(&path))?);
        }
        for (key, path) in RECORDS {
            let path = dir.join(path);
            let mut records = BTreeMap::new();
            let names = match durable::names(&path) {
                // the directory is made with its first record
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                names => names.map_err(at(&path))?,
            };
            for name in names {
                let file = path.join(&name);
                match std::fs::read_to_string(&file) {
                    Ok(text) => _ = records.insert(name, text),
                    // the file was used or removed since it was listed
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(at(&file)(error)),
                }
            }
            let text = serde_json::to_vec(&records).map_err(|error| at(&path)(error.into()))?;
            facts.insert(key.to_owned(), text);
        }
        Ok(Self(facts))
    }

    /// Writes these facts into a directory, and removes all other facts from it. Blocks.
    ///
    /// A crash in between leaves a mixture of old and new facts. The next start repairs that before anything uses the
    /// directory.
    fn write(&self, dir: &Path) -> Result<(), SharedStateError> {
        for (key, path, mode) in SINGLE {
            let path = dir.join(path);
            if let (Some(parent), Some(bytes)) = (path.parent(), self.0.get(key)) {
                durable::make_dir(parent).map_err(at(parent))?;
                replace(&path, bytes, mode)?;
            }
        }
        for (key, path) in RECORDS {
            let path = dir.join(path);
            durable::make_dir(&path).map_err(at(&path))?;
            let records = self.records(key)?;
            for name in durable::names(&path).map_err(at(&path))? {
                if !records.contains_key(&name) {
                    let file = path.join(&name);
                    durable::remove(&file).map_err(at(&file))?;
                }
            }
            for (name, text) in records {
                replace(&path.join(name), text.as_bytes(), durable::SECRET)?;
            }
        }
        Ok(())
    }

    /// The records under a key. Refuses names that lead out of the directory, because the Secret may hold anything.
    fn records(&self, key: &str) -> Result<BTreeMap<String, String>, SharedStateError> {
        let Some(text) = self.0.get(key) else {
            return Ok(BTreeMap::new());
        };
        let records: BTreeMap<String, String> = serde_json::from_slice(text)
            .map_err(|error| SharedStateError::Damaged(format!("{key}: {error}")))?;
        let plain = |name: &String| {
            !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
        };
        match records.keys().find(|name| !plain(name)) {
            Some(name) => Err(SharedStateError::Damaged(format!("{key}: name {name:?}"))),
            None => Ok(records),
        }
    }

    fn from_secret(secret: &v1::Secret) -> Result<Self, SharedStateError> {
        let data = secret.data.clone().unwrap_or_default();
        let facts = Self(
            data.into_iter()
                .map(|(key, value)| (key, value.0))
                .collect(),
        );
        if let Some((key, ..)) = SINGLE.iter().find(|(key, ..)| !facts.0.contains_key(*key)) {
            return Err(SharedStateError::Damaged(format!("{key} is missing")));
        }
        for (key, _) in RECORDS {
            facts.records(key)?;
        }
        Ok(facts)
    }

    fn to_secret(&self, version: Option<String>, term: Option<u32>) -> v1::Secret {
        let data = self.0.iter();
        v1::Secret {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                resource_version: version,
                annotations: term.map(|term| [(TERM.to_owned(), term.to_string())].into()),
                labels: Some([("app.kubernetes.io/name".into(), "parbake".into())].into()),
                ..ObjectMeta::default()
            },
            data: Some(
                data.map(|(key, value)| (key.clone(), ByteString(value.clone())))
                    .collect(),
            ),
            ..v1::Secret::default()
        }
    }

    fn fits(&self) -> Result<(), SharedStateError> {
        let bytes = self.0.values().map(Vec::len).sum();
        if bytes > MAX_BYTES {
            return Err(SharedStateError::TooLarge { bytes });
        }
        Ok(())
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> SharedStateError {
    let path = path.to_path_buf();
    move |error| SharedStateError::File { path, error }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SharedStateError> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    durable::write(path, bytes, mode).map_err(at(path))
}

/// The Secret beside a state directory.
#[derive(Debug)]
pub(crate) struct SharedSecret {
    api: Api<v1::Secret>,
    dir: PathBuf,
    /// The Secret's facts, its resource version, and the term in it.
    stored: Facts,
    version: Option<String>,
    term: u32,
}

impl SharedSecret {
    /// Makes the directory hold the Secret's facts. Creates the Secret from the directory when there is no Secret.
    ///
    /// # Errors
    /// The API server can't be asked or refuses, the Secret is damaged, or the directory can't be read or written.
    pub(crate) async fn open(api: Api<v1::Secret>, dir: PathBuf) -> Result<Self, SharedStateError> {
        let mut this = Self {
            api,
            dir,
            stored: Facts::default(),
            version: None,
            term: 0,
        };
        for _ in 1..TRIES {
            match this.read_or_make().await {
                Err(error) if error.is_busy() => tokio::time::sleep(RETRY).await,
                done => return done.map(|()| this),
            }
        }
        this.read_or_make().await.map(|()| this)
    }

    async fn read_or_make(&mut self) -> Result<(), SharedStateError> {
        if !self.refresh().await? {
            let dir = self.dir.clone();
            let made = blocking(move || {
                drop(Authority::open(&dir.join("authority"))?);
                drop(Enrolment::open(&dir)?);
                state_dir::api_token(&dir)
                    .map_err(|error| at(&dir)(io::Error::other(error.to_string())))?;
                Facts::read(&dir)
            })
            .await?;
            made.fits()?;
            let secret = made.to_secret(None, None);
            match bounded(self.api.create(&post_params(), &secret)).await {
                Ok(secret) => {
                    info!(
                        secret = NAME,
                        "shared state made from this replica's directory"
                    );
                    self.stored = made;
                    self.version = secret.metadata.resource_version;
                }
                // another replica was faster, so its authority is the fleet's
                Err(SharedStateError::Cluster(kube::Error::Api(status))) if status.code == 409 => {
                    if !self.refresh().await? {
                        return Err(SharedStateError::Damaged("it comes and goes".into()));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads the Secret and makes the directory hold its facts. Returns whether there is a Secret.
    pub(crate) async fn refresh(&mut self) -> Result<bool, SharedStateError> {
        let Some(facts) = self.read().await? else {
            return Ok(false);
        };
        let (dir, written) = (self.dir.clone(), facts.clone());
        blocking(move || written.write(&dir)).await?;
        self.stored = facts;
        Ok(true)
    }

    /// Reads the Secret's facts, its version and its term. `None` where there is no Secret.
    async fn read(&mut self) -> Result<Option<Facts>, SharedStateError> {
        let Some(secret) = bounded(self.api.get_opt(NAME)).await? else {
            return Ok(None);
        };
        self.term = term_of(&secret);
        self.version.clone_from(&secret.metadata.resource_version);
        Facts::from_secret(&secret).map(Some)
    }

    /// Claims the Secret for this term. Facts that earlier leaders wrote stay, and the directory gets them too.
    ///
    /// A term's number is greater than the number that the Secret held when the lease was taken. If the Secret's number
    /// is as great as ours by now, another leader has claimed it.
    ///
    /// # Errors
    /// [`SharedStateError::Superseded`] when a later leader has claimed the Secret or the term is over.
    pub(crate) async fn claim(&mut self, term: &Term) -> Result<(), SharedStateError> {
        let mut tried = false;
        for _ in 0..TRIES {
            let found = match self.refresh().await {
                Err(error) if error.is_busy() => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                found => found?,
            };
            if !found {
                return Err(SharedStateError::Deleted);
            }
            let others = self.term > term.number() || self.term == term.number() && !tried;
            if others || !term.holds() {
                return Err(SharedStateError::Superseded);
            }
            let facts = self.stored.clone();
            match self.put(facts, term).await {
                Err(SharedStateError::Cluster(kube::Error::Api(status))) if status.code == 409 => {}
                // The write may have been done. If so, the next read shows our own number.
                Err(error) if error.is_busy() => {
                    tried = true;
                    tokio::time::sleep(RETRY).await;
                }
                done => return done,
            }
        }
        Err(SharedStateError::Timeout)
    }

    /// Writes the directory's facts into the Secret, if they differ from what the Secret holds.
    ///
    /// # Errors
    /// [`SharedStateError::Superseded`] when the term is over or a later leader has written the Secret.
    pub(crate) async fn save(&mut self, term: &Term) -> Result<(), SharedStateError> {
        let dir = self.dir.clone();
        let facts = blocking(move || Facts::read(&dir)).await?;
        if facts == self.stored {
            return Ok(());
        }
        facts.fits()?;
        for _ in 0..TRIES {
            if !term.holds() {
                return Err(SharedStateError::Superseded);
            }
            match self.put(facts.clone(), term).await {
                // Another program wrote the Secret, or an earlier write of ours succeeded and its answer was lost, or
                // the Secret is gone.
                Err(SharedStateError::Cluster(kube::Error::Api(status)))
                    if [404, 409].contains(&status.code) =>
                {
                    if self.read().await?.is_none() {
                        return Err(SharedStateError::Deleted);
                    }
                    if self.term > term.number() {
                        return Err(SharedStateError::Superseded);
                    }
                }
                Err(error) if error.is_busy() => tokio::time::sleep(RETRY).await,
                done => return done,
            }
        }
        Err(SharedStateError::Timeout)
    }

    async fn put(&mut self, facts: Facts, term: &Term) -> Result<(), SharedStateError> {
        let secret = facts.to_secret(self.version.clone(), Some(term.number()));
        let written = bounded(self.api.replace(NAME, &post_params(), &secret)).await?;
        self.version = written.metadata.resource_version;
        self.term = term.number();
        self.stored = facts;
        Ok(())
    }
}

/// The term that the Secret was claimed for last. 0 where the Secret wasn't claimed yet, or there is no Secret.
pub(crate) async fn claimed(api: &Api<v1::Secret>) -> kube::Result<u32> {
    let found = api.get_opt(NAME).await?;
    Ok(found.as_ref().map_or(0, term_of))
}

fn term_of(secret: &v1::Secret) -> u32 {
    let annotations = secret.metadata.annotations.as_ref();
    annotations
        .and_then(|all| all.get(TERM)?.parse().ok())
        .filter(|term| *term < LAST_TERM)
        .unwrap_or_default()
}

async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, SharedStateError> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(SharedStateError::Timeout),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SharedStateError> + Send + 'static,
) -> Result<T, SharedStateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(at(Path::new("state"))(io::Error::other(error.to_string()))),
    }
}

/// Keeps the Secret current while this process leads: when asked, and when the command line changed a file.
///
/// Returns after `shutdown` and one last save, or when a later leader has taken over.
pub(crate) async fn keep(
    mut secret: SharedSecret,
    term: Term,
    mut asks: mpsc::Receiver<Ask>,
    shutdown: CancellationToken,
) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        let mut waiting = Vec::new();
        let stopping = tokio::select! {
            () = shutdown.cancelled() => true,
            Some(ask) = asks.recv() => {
                waiting.push(ask);
                false
            }
            _ = look.tick() => false,
        };
        // One write serves everybody who asked before the files are read.
        while let Ok(ask) = asks.try_recv() {
            waiting.push(ask);
        }
        let saved = secret.save(&term).await;
        match &saved {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    info!(secret = NAME, "shared state is kept again");
                }
            }
            Err(SharedStateError::Superseded) => {
                warn!(secret = NAME, "shared state belongs to a later leader");
            }
            Err(problem @ (SharedStateError::Timeout | SharedStateError::Cluster(_)))
                if !failing =>
            {
                failing = true;
                warn!(secret = NAME, error = %problem, "shared state can't be kept; trying again");
            }
            Err(problem) if !failing => {
                failing = true;
                error!(secret = NAME, error = %problem, "shared state can't be kept");
            }
            Err(_) => {}
        }
        for ask in waiting {
            let told = saved.as_ref().copied().map_err(ToString::to_string);
            // The asker may have left.
            _ = ask.send(told);
        }
        if stopping || matches!(saved, Err(SharedStateError::Superseded)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::wants::KeptPlaces;

    fn fresh() -> (tempfile::TempDir, Enrolment, Facts) {
        let dir = tempfile::tempdir().unwrap();
        drop(Authority::open(&dir.path().join("authority")).unwrap());
        state_dir::api_token(dir.path()).unwrap();
        let enrolment = Enrolment::open(dir.path()).unwrap();
        let facts = Facts::read(dir.path()).unwrap();
        (dir, enrolment, facts)
    }

    #[test]
    fn facts_pass_through_a_secret_into_another_directory_unchanged() {
        let (one, enrolment, _) = fresh();
        let (host, now) = ("a".repeat(63).parse().unwrap(), SystemTime::now());
        let token = enrolment.mint(&host, Duration::from_mins(1), now).unwrap();
        enrolment
            .revoke(&"mini-2".parse().unwrap(), "stolen", now)
            .unwrap();
        // places under groups' caps, and those that ended
        for file in [KeptPlaces::FILE, KeptPlaces::ENDED] {
            let path = one.path().join(file);
            durable::make_dir(path.parent().unwrap()).unwrap();
            durable::write(&path, file.as_bytes(), durable::SECRET).unwrap();
        }
        let facts = Facts::read(one.path()).unwrap();
        let secret = facts.to_secret(None, Some(3));
        let (two, other, _) = fresh();
        let gone = other.mint(&host, Duration::from_mins(1), now).unwrap();
        Facts::from_secret(&secret)
            .unwrap()
            .write(two.path())
            .unwrap();
        assert_eq!(Facts::read(two.path()).unwrap(), facts);
        for file in [KeptPlaces::FILE, KeptPlaces::ENDED] {
            let text = std::fs::read_to_string(two.path().join(file));
            assert_eq!(text.unwrap(), file);
        }
        // the directory's earlier facts are gone, the other directory's token works, and the authority is the same
        assert!(other.peek(&gone, now).is_err());
        assert_eq!(other.redeem(&token, now).unwrap().0, host);
        assert!(other.is_revoked(&"mini-2".parse().unwrap()).unwrap());
        let pin = |dir: &Path| Authority::open(&dir.join("authority")).unwrap().pin();
        assert_eq!(pin(one.path()), pin(two.path()));
    }

    #[test]
    fn a_secret_that_leads_out_of_the_directory_or_lacks_the_key_is_refused() {
        let (_dir, _, facts) = fresh();
        for name in ["../x", "/x", ".x", "", "a\0"] {
            let mut hostile = facts.clone();
            let records = BTreeMap::from([(name, "{}")]);
            let text = serde_json::to_vec(&records).unwrap();
            hostile.0.insert("enrolled.json".into(), text);
            let read = Facts::from_secret(&hostile.to_secret(None, None));
            assert!(
                matches!(read, Err(SharedStateError::Damaged(_))),
                "{name:?}"
            );
        }
        let mut lacking = facts;
        lacking.0.remove("ca.key");
        let read = Facts::from_secret(&lacking.to_secret(None, None));
        assert!(matches!(read, Err(SharedStateError::Damaged(_))));
    }

    #[test]
    fn more_than_a_secret_holds_is_refused_with_the_figures() {
        let (_dir, _, mut facts) = fresh();
        assert!(facts.fits().is_ok());
        let rest: usize = facts.0.values().map(Vec::len).sum();
        facts.0.insert("x".into(), vec![0; MAX_BYTES - rest]);
        assert!(facts.fits().is_ok());
        facts.0.insert("y".into(), vec![0]);
        let error = facts.fits().unwrap_err().to_string();
        assert!(error.contains("1047553"), "{error}");
    }
}
