//! An OCI registry inside the test: it serves, takes pushes, counts what it sends, and misbehaves by script.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use e2e::registry::{Fault, Misbehaviour, Options, Registry, Target};
//!
//! let registry = Registry::start(Options::default()).await?;
//! let digest = registry.put_blob("some bytes".into())?;
//! registry.script(Fault::once(Target::Blob(digest), Misbehaviour::CloseAfter(4)));
//! // … fetch it from registry.reference("org/image", "latest") …
//! assert_eq!(registry.counters().bytes, 0);
//! registry.stop().await;
//! # Ok(()) }
//! ```

mod api;
mod body;
mod listener;
mod pace;
mod script;
mod shared;
mod store;
mod tokens;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use origin::{Client, Config, Credentials, PlainHttp};
use proto::{Digest, RegistryReference, image::MANIFEST_TYPE};
use tokio::{sync::watch, task::JoinSet};
use wire::lock;

use crate::image::GeneratedImage;

pub(crate) use self::listener::Identity;
use self::{lock::lock, pace::Pace, shared::Shared, store::Store};
pub use self::{
    script::{Fault, FaultId, Misbehaviour, Target},
    shared::{Answer, Auth, BlobCounters, Counters},
};

/// How a registry is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens; port 0 is any free one. Loopback by default.
    pub listen: SocketAddr,
    /// What it asks of clients.
    pub auth: Auth,
    /// Where it keeps blobs: this directory, or memory.
    pub directory: Option<PathBuf>,
    /// The most body bytes per second that leave it, over all connections.
    pub rate_bytes_per_s: Option<u64>,
    /// Whether it speaks TLS, with the certificate of [`Registry::certificate_pem`].
    pub tls: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            auth: Auth::Open,
            directory: None,
            rate_bytes_per_s: None,
            tls: false,
        }
    }
}

impl Options {
    /// A registry that speaks TLS.
    #[must_use]
    pub fn tls() -> Self {
        Self {
            tls: true,
            ..Self::default()
        }
    }
}

/// A running registry. Dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    power: watch::Sender<bool>,
    listening: watch::Receiver<bool>,
    certificate: Option<Identity>,
}

impl Registry {
    /// Starts a registry.
    ///
    /// # Errors
    /// When no port or no directory is to be had.
    pub async fn start(options: Options) -> io::Result<Self> {
        let identity = options.tls.then(Identity::generate).transpose()?;
        let front = listener::Door::open(options.listen)?;
        let back = listener::Door::open((options.listen.ip(), 0).into())?;
        let shared = Arc::new(Shared {
            auth: options.auth,
            addr: front.addr(),
            elsewhere: back.addr(),
            tls: options.tls,
            store: Store::new(options.directory)?,
            tokens: Mutex::default(),
            script: Mutex::default(),
            counters: Mutex::default(),
            sending: AtomicU64::new(0),
            pace: Pace::new(options.rate_bytes_per_s.unwrap_or(0)),
            answer_rate: AtomicU64::new(0),
        });
        let (power, powered) = watch::channel(true);
        let (report, mut listening) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let acceptor = identity.as_ref().map(Identity::acceptor).transpose()?;
        tasks.spawn(front.run(
            Arc::clone(&shared),
            api::Role::Registry,
            acceptor.clone(),
            powered.clone(),
            report,
        ));
        let (unwatched, _) = watch::channel(false);
        tasks.spawn(back.run(
            Arc::clone(&shared),
            api::Role::Elsewhere,
            acceptor,
            powered,
            unwatched,
        ));
        // Fails only when the listener's task has ended, which the first request then shows.
        let _listening = listening.wait_for(|up| *up).await.is_ok();
        Ok(Self {
            shared,
            tasks,
            power,
            listening,
            certificate: identity,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// The reference of an image here.
    ///
    /// # Panics
    /// When `name` or `tag` isn't one.
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> RegistryReference {
        // Certificates are for the name rather than for the address.
        let host = if self.shared.tls {
            format!("localhost:{}", self.addr().port())
        } else {
            self.addr().to_string()
        };
        format!("{host}/{name}:{tag}")
            .parse()
            .expect("the caller gives a valid name and tag")
    }

    /// A client that can reach this registry.
    ///
    /// # Panics
    /// When the TLS stack refuses its own defaults.
    #[must_use]
    pub fn client(&self) -> Client {
        let config = Config {
            plain_http: PlainHttp::Everywhere,
            extra_roots: self.certificate.iter().map(Identity::certificate).collect(),
            ..Config::default()
        };
        Client::new(config).expect("a generated certificate is valid")
    }

    /// The credentials that it asks for.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        match &self.shared.auth {
            Auth::Open | Auth::Bearer { account: None, .. } => Credentials::Anonymous,
            Auth::Basic { user, password }
            | Auth::Bearer {
                account: Some((user, password)),
                ..
            } => Credentials::Basic {
                user: user.clone(),
                password: password.as_str().into(),
            },
        }
    }

    /// The certificate to trust, where it speaks TLS.
    #[must_use]
    pub fn certificate_pem(&self) -> Option<&str> {
        self.certificate.as_ref().map(Identity::pem)
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.shared.counters).clone()
    }

    /// Counts from zero again.
    pub fn reset_counters(&self) {
        *lock(&self.shared.counters) = Counters::default();
    }

    /// Misbehaves from now on, until the fault is used up or cleared. Pushes aren't affected.
    pub fn script(&self, fault: Fault) -> FaultId {
        lock(&self.shared.script).add(fault)
    }

    /// Ends a fault; says how often it struck.
    pub fn clear(&self, fault: FaultId) -> u64 {
        lock(&self.shared.script).clear(fault)
    }

    /// Behaves from now on.
    pub fn clear_all(&self) {
        lock(&self.shared.script).clear_all();
    }

    /// Limits the body bytes per second over all connections from now on.
    pub fn limit(&self, bytes_per_s: Option<u64>) {
        self.shared.pace.set(bytes_per_s.unwrap_or(0));
    }

    /// Limits the body bytes per second of each answer that begins from now on.
    pub fn limit_each(&self, bytes_per_s: Option<u64>) {
        self.shared
            .answer_rate
            .store(bytes_per_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// Forgets all tokens: those that are out are refused from now on.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.tokens).revoke_all();
    }

    /// Refuses connections from now on, and breaks those that are open. The port stays reserved.
    pub async fn go_down(&mut self) {
        self.switch(false).await;
    }

    /// Takes connections again, on the same port.
    pub async fn come_back(&mut self) {
        self.switch(true).await;
    }

    async fn switch(&mut self, up: bool) {
        self.power.send_replace(up);
        // An error means that the listener's task has ended: the registry is down for good.
        let _switched = self
            .listening
            .wait_for(|listening| *listening == up)
            .await
            .is_ok();
    }

    /// Stores a blob without a push.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_blob(&self, bytes: Bytes) -> io::Result<Digest> {
        let digest = Digest::of(&bytes);
        self.put_blob_as(digest, bytes)?;
        Ok(digest)
    }

    /// Stores bytes under a digest that they needn't have.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn put_blob_as(&self, digest: Digest, bytes: Bytes) -> io::Result<()> {
        self.shared.store.put_blob(digest, bytes)
    }

    /// Stores bytes as a manifest of an image, under its digest and a tag, without a push or a check.
    pub fn put_manifest(&self, name: &str, tag: &str, media_type: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        for version in [tag.to_owned(), digest.to_string()] {
            self.put_manifest_as(name, &version, media_type, bytes.clone());
        }
        digest
    }

    /// Stores bytes as the manifest with this tag or digest, which they needn't have.
    pub fn put_manifest_as(&self, name: &str, version: &str, media_type: &str, bytes: Bytes) {
        self.shared
            .store
            .put_manifest(name, version, media_type, bytes);
    }

    /// Serves a generated image without a push, from the directory that it was generated into. Returns its reference.
    ///
    /// # Panics
    /// When `name` or `tag` isn't one.
    pub fn hold(&self, name: &str, tag: &str, image: &GeneratedImage) -> String {
        self.hold_directory(name, tag, &image.directory, image.manifest.clone())
    }

    /// Serves the image with this manifest, whose blobs lie in a directory by the hex digits of their digests. Returns
    /// its reference.
    ///
    /// # Panics
    /// When `name` or `tag` isn't one.
    pub fn hold_directory(
        &self,
        name: &str,
        tag: &str,
        directory: &Path,
        manifest: Bytes,
    ) -> String {
        self.shared.store.also_look_in(directory);
        self.put_manifest(name, tag, MANIFEST_TYPE, manifest);
        self.reference(name, tag).to_string()
    }

    /// The digests of all blobs that were pushed or put here, and their sizes.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn blobs(&self) -> io::Result<BTreeMap<Digest, u64>> {
        self.shared.store.blobs()
    }

    /// Removes a blob; says whether it was there.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove_blob(&self, digest: &Digest) -> io::Result<bool> {
        self.shared.store.remove_blob(digest)
    }

    /// Ends it: all connections are broken, and the port is free.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}
