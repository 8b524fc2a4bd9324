//! The running coordinator: everything opened, every task started, and their ends looked at.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use link::{Credentials, Endpoint, Settings};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{
    base::{local, part},
    certificates::{Own, renew},
    recall::recall,
};
use crate::{
    api::{self, Api, Tries},
    authority::Authority,
    cli::{Run, Shared},
    config::Config,
    driver::{self, Driver},
    enrolment::Enrolment,
    fleet::{self, Membership, Reread},
    metrics::Metrics,
    random,
    resolve::Registries,
    saver::Saver,
    secret::Secret,
    session::{self, Sessions},
    state_dir,
    view::Addresses,
    wants::Files,
};

mod base;
mod certificates;
mod error;
mod recall;

pub(crate) use self::base::Base;
pub use self::error::RunError;

/// What a coordinator in a cluster hands to those who write there.
#[derive(Debug)]
pub(crate) struct Doors {
    /// The driver's inbox.
    pub(crate) inbox: mpsc::Sender<driver::Input>,
    /// What the driver publishes.
    pub(crate) view: watch::Receiver<Arc<driver::View>>,
    /// What hosts hold.
    pub(crate) presence: watch::Receiver<Arc<driver::PresenceView>>,
    /// The registries, as the driver reaches them.
    pub(crate) registries: Arc<Registries>,
    /// The program's metrics.
    pub(crate) metrics: Metrics,
}

/// A coordinator that listens.
#[derive(Debug)]
pub struct Coordinator {
    addresses: Addresses,
    authority: Arc<Authority>,
    token: Secret,
    reload: mpsc::Sender<Reread>,
    shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    ready: watch::Sender<bool>,
    _lock: File,
}

impl Coordinator {
    /// Opens state and sockets and starts every task. `source` is what the settings came from, to be read again when
    /// the fleet file changes.
    ///
    /// # Errors
    /// When state or addresses can't be had; nothing runs then.
    pub async fn start(
        config: Config,
        source: Option<(Shared, Run)>,
        shutdown: CancellationToken,
    ) -> Result<Self, RunError> {
        let lock = state_dir::lock(&config.state_dir)?;
        let base = Base::open(&config, lock, api::starting(), shutdown.clone()).await?;
        let (this, _doors) = Self::start_on(
            base,
            config,
            source,
            Saver::default(),
            Router::new(),
            shutdown,
        )
        .await?;
        Ok(this)
    }

    /// Starts what a leader does, on what serves already; `more` is answered beside the API's own routes.
    pub(crate) async fn start_on(
        base: Base,
        config: Config,
        source: Option<(Shared, Run)>,
        saver: Saver,
        more: Router,
        shutdown: CancellationToken,
    ) -> Result<(Self, Doors), RunError> {
        let Base {
            authority,
            metrics,
            ready,
            routes,
            token,
            api: api_address,
            admin: admin_address,
            refused,
            mut tasks,
            lock,
        } = base;
        let dir = config.state_dir.clone();
        let enrolment = Enrolment::open(&dir)?;
        enrolment.sweep(SystemTime::now())?;
        let files = Files::open(&dir)?;
        let kept = files.load()?;
        let registries = Arc::new(Registries::new(config.origin.clone())?);
        registries.remember(&kept.wants);
        let asked = files.asked(&kept.wants)?;
        let membership = Arc::new(Membership::read(config.fleet.clone(), &enrolment)?);

        let places = kept.roster.values().map(|place| place.address.ip());
        let places: Vec<_> = places.collect();

        let (inbox, inputs) = mpsc::channel(driver::INBOX);
        let (publish, view) = watch::channel(Arc::default());
        let (presence, presence_seen) = watch::channel(Arc::default());
        let (members, membership_seen) = watch::channel(membership.clone());
        let (reload, reloads) = mpsc::channel(1);
        let (writer, writes) = mpsc::channel(driver::WRITES);
        let mut seed = [0; 8];
        random::fill(&mut seed);
        let driver = Driver::new(driver::Parts {
            config: config.clone(),
            authority: authority.clone(),
            kept,
            membership,
            publish,
            presence,
            writer,
            registries: registries.clone(),
            metrics: metrics.clone(),
            seed: u64::from_be_bytes(seed),
        });
        // hosts knock from here on, and a thousand of them leave no time to get ready
        let identity = authority.issue_own(config.certificate_lifetime)?;
        let credentials = Credentials::new(
            identity.chain,
            identity.key,
            vec![authority.certificate().clone()],
        )?;
        let settings = Settings {
            reset_secret: Some(authority.reset_secret()),
            ..link_settings()
        };
        let endpoint = Endpoint::bind(config.listen, credentials, &settings)?;
        endpoint.expect(places);
        let addresses = Addresses {
            quic: local(config.listen, "hosts", endpoint.local_addr())?,
            api: api_address,
            admin: admin_address,
        };
        let path = dir.join("addresses.json");
        let mut text = serde_json::to_vec(&addresses).unwrap_or_default();
        text.push(b'\n');
        durable::write(&path, &text, durable::PUBLIC).map_err(state_dir::at(&path))?;

        let doors = Doors {
            inbox: inbox.clone(),
            view: view.clone(),
            presence: presence_seen,
            registries: registries.clone(),
            metrics: metrics.clone(),
        };
        let again = recall(asked, registries.clone(), inbox.clone(), shutdown.clone());
        tasks.spawn(part("what was asked before", again));
        let told = tell_refusals(refused, inbox.clone(), shutdown.clone());
        tasks.spawn(part("refusals", told));
        let api = Api {
            inbox: inbox.clone(),
            view,
            membership: membership_seen.clone(),
            reload: reload.clone(),
            token: token.clone(),
            authority: authority.clone(),
            enrolment: enrolment.clone(),
            saver,
            registries,
            metrics: metrics.clone(),
            certificate_lifetime: config.certificate_lifetime,
            renewal_grace: config.renewal_grace,
            token_lifetime: config.token_lifetime,
            quic: config
                .advertise
                .clone()
                .unwrap_or_else(|| format!(":{}", addresses.quic.port())),
            followers: Api::follow_slots(),
            tries: Arc::new(Tries::new()),
        };
        let sessions = Sessions::new(
            (authority.clone(), enrolment.clone()),
            (config.certificate_lifetime, config.plan.origin_streams),
            membership_seen.clone(),
            inbox,
            metrics,
        );

        tasks.spawn(part("writer", driver::write(files, writes)));
        let stop = shutdown.clone();
        tasks.spawn(part("driver", driver.run(inputs, membership_seen, stop)));
        let own = Own {
            authority: authority.clone(),
            lifetime: config.certificate_lifetime,
            endpoint: endpoint.clone(),
        };
        let lifetime = config.certificate_lifetime;
        let renewal = renew(lifetime, "link", move || own.renew(), shutdown.clone());
        tasks.spawn(part("renewal", renewal));
        let stop = shutdown.clone();
        tasks.spawn(part("sessions", session::accept(endpoint, sessions, stop)));
        let stop = shutdown.clone();
        let follow = fleet::follow(config, source, enrolment, members, reloads, stop);
        tasks.spawn(part("fleet", follow));
        drop(routes.send_replace(api::router(api, more)));
        ready.send_replace(true);
        info!(
            quic = %addresses.quic,
            api = %addresses.api,
            admin = %addresses.admin,
            pin = %authority.pin().hex(),
            state_dir = %dir.display(),
            "coordinator serves"
        );
        let this = Self {
            addresses,
            authority,
            token,
            reload,
            shutdown,
            tasks,
            ready,
            _lock: lock,
        };
        Ok((this, doors))
    }

    /// Where it listens, with the ports that were chosen.
    #[must_use]
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The fleet's authority.
    #[must_use]
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The API's bearer token.
    #[must_use]
    pub const fn token(&self) -> &Secret {
        &self.token
    }

    /// What asks for the fleet file and the records to be read again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload(self.reload.clone())
    }

    /// Runs until the shutdown that it was started with, and then until every task has left.
    ///
    /// # Errors
    /// When a task ended unasked; the others are stopped then.
    pub async fn wait(mut self) -> Result<(), RunError> {
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let part = match ended {
                Ok(part) => part,
                Err(error) => {
                    error!(%error, "a part of the coordinator failed");
                    "a part of the coordinator"
                }
            };
            self.ready.send_replace(false);
            if !self.shutdown.is_cancelled() {
                outcome = Err(RunError::Ended(part));
                self.shutdown.cancel();
            }
        }
        info!("coordinator has stopped");
        outcome
    }
}

/// Asks a running coordinator to read its fleet file and records again.
#[derive(Clone, Debug)]
pub struct Reload(mpsc::Sender<Reread>);

impl Reload {
    /// Asks. The outcome stands in the log.
    pub fn ask(&self) {
        // Full: it is being read again anyway.
        _ = self.0.try_send(Reread::Everything);
    }
}

/// Runs a coordinator with these settings until `shutdown`.
///
/// # Errors
/// When it can't start, or a part of it ended unasked.
pub async fn run(
    config: Config,
    source: Option<(Shared, Run)>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    Coordinator::start(config, source, shutdown)
        .await?
        .wait()
        .await
}

/// Connections that carry messages and no chunks, from every host of the fleet.
fn link_settings() -> Settings {
    Settings {
        // A host that is gone is noticed after this time. It is long, because a coordinator that gets no processor
        // for a while would lose every session at once. Hosts notice a coordinator that was restarted at its reset,
        // and one that is gone by their own look, after 3 s.
        idle_timeout: Duration::from_secs(10),
        keep_alive: Duration::from_millis(750),
        // A large fleet comes at one moment, and half is for hosts that were here before: 10 KiB each.
        max_handshakes: 2_048,
        // The largest message from a host has 256 KiB, the largest to one 4 MiB; there may be thousands of hosts.
        stream_window: 1 << 20,
        connection_window: 2 << 20,
        send_window: 4 << 20,
        max_streams: 16,
        ..Settings::default()
    }
}

/// Hands on who didn't take the API's certificate, until `shutdown`.
async fn tell_refusals(
    mut refused: mpsc::Receiver<driver::Refused>,
    inbox: mpsc::Sender<driver::Input>,
    shutdown: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => return,
            next = refused.recv() => next,
        };
        let Some(refused) = next else {
            return shutdown.cancelled().await;
        };
        drop(inbox.send(driver::Input::Refused(refused)).await);
    }
}

#[cfg(test)]
mod tests;
