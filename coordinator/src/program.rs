//! The running coordinator: opens everything, starts every task, and watches for the end of each.

use std::{fs::File, net::IpAddr, sync::Arc, time::SystemTime};

use axum::Router;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::{
    base::{local, part},
    certificates::Own,
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
    wants::{Asked, Files},
};

mod base;
mod certificates;
mod endpoint;
mod error;
mod recall;

pub(crate) use self::base::Base;
pub use self::error::RunError;

/// What a coordinator in a cluster hands to the modules that write to the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    /// The driver's inbox.
    pub(crate) inbox: mpsc::Sender<driver::Input>,
    /// The view that the driver publishes.
    pub(crate) view: watch::Receiver<Arc<driver::View>>,
    /// What hosts hold, as the driver publishes it.
    pub(crate) presence: watch::Receiver<Arc<driver::PresenceView>>,
    /// The registries, as the driver reaches them.
    pub(crate) registries: Arc<Registries>,
    /// The program's metrics.
    pub(crate) metrics: Metrics,
}

/// The state that was kept on disk, and a driver that continues from it.
#[derive(Debug)]
struct Begun {
    driver: Driver,
    inputs: mpsc::Receiver<driver::Input>,
    files: Files,
    writes: mpsc::Receiver<driver::Write>,
    /// The images that operators asked another replica for.
    asked: Vec<Asked>,
    enrolment: Enrolment,
    membership: (
        watch::Sender<Arc<Membership>>,
        watch::Receiver<Arc<Membership>>,
    ),
    /// The addresses at which hosts were last reached.
    places: Vec<IpAddr>,
    doors: Doors,
}

impl Begun {
    /// Reads the state that was kept on disk. Blocks.
    fn new(
        config: &Config,
        authority: &Arc<Authority>,
        metrics: &Metrics,
    ) -> Result<Self, RunError> {
        let dir = &config.state_dir;
        let enrolment = Enrolment::open(dir)?;
        enrolment.sweep(SystemTime::now())?;
        let files = Files::open(dir)?;
        let kept = files.load()?;
        let registries = Arc::new(Registries::new(config.origin.clone())?);
        registries.remember(&kept.wants);
        let asked = files.asked(&kept.wants)?;
        let places = kept.roster.values().map(|place| place.address.ip());
        let places = places.collect();
        let membership = Arc::new(Membership::read(config.fleet.clone(), &enrolment)?);
        let (inbox, inputs) = mpsc::channel(driver::INBOX);
        let (publish, view) = watch::channel(Arc::default());
        let (presence, presence_seen) = watch::channel(Arc::default());
        let (writer, writes) = mpsc::channel(driver::WRITES);
        let mut seed = [0; 8];
        random::fill(&mut seed);
        let driver = Driver::new(driver::Parts {
            config: config.clone(),
            authority: authority.clone(),
            kept,
            membership: membership.clone(),
            publish,
            presence,
            writer,
            registries: registries.clone(),
            metrics: metrics.clone(),
            seed: u64::from_be_bytes(seed),
        });
        Ok(Self {
            driver,
            inputs,
            files,
            writes,
            asked,
            enrolment,
            membership: watch::channel(membership),
            places,
            doors: Doors {
                inbox,
                view,
                presence: presence_seen,
                registries,
                metrics: metrics.clone(),
            },
        })
    }

    /// Starts the driver, its writer, and the task that asks again for images that operators asked another replica for.
    fn spawn(self, tasks: &mut JoinSet<&'static str>, shutdown: &CancellationToken) {
        let Doors {
            inbox, registries, ..
        } = self.doors;
        let again = recall(self.asked, registries, inbox, shutdown.clone());
        tasks.spawn(part("what was asked before", again));
        tasks.spawn(part("writer", driver::write(self.files, self.writes)));
        let (_, members) = self.membership;
        let driver = self.driver.run(self.inputs, members, shutdown.clone());
        tasks.spawn(part("driver", driver));
    }
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
    /// Opens state and sockets, and starts every task. `source` is where the settings came from; it is read again when
    /// the fleet file changes.
    ///
    /// # Errors
    /// When the state or an address can't be used. Nothing runs then.
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

    /// Starts a leader's work on a base that serves already. The API's port answers the routes of `more` beside its
    /// own.
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
        let begun = Begun::new(&config, &authority, &metrics)?;
        let (enrolment, doors) = (begun.enrolment.clone(), begun.doors.clone());
        let (membership, members) = begun.membership.clone();
        let (reload, reloads) = mpsc::channel(1);
        // Hosts can connect from here on. A thousand of them at once leave no time for preparations.
        let endpoint = endpoint::bind(&config, &authority)?;
        endpoint.expect(begun.places.iter().copied());
        let addresses = Addresses {
            quic: local(config.listen, "hosts", endpoint.local_addr())?,
            api: api_address,
            admin: admin_address,
        };
        state_dir::write_addresses(&dir, &addresses)?;
        begun.spawn(&mut tasks, &shutdown);
        let told = tell_refusals(refused, doors.inbox.clone(), shutdown.clone());
        tasks.spawn(part("refusals", told));
        let api = Api {
            inbox: doors.inbox.clone(),
            view: doors.view.clone(),
            membership: members.clone(),
            reload: reload.clone(),
            token: token.clone(),
            authority: authority.clone(),
            enrolment: enrolment.clone(),
            saver,
            registries: doors.registries.clone(),
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
            members,
            doors.inbox.clone(),
            metrics,
        );

        let own = Own {
            authority: authority.clone(),
            lifetime: config.certificate_lifetime,
            endpoint: endpoint.clone(),
        };
        let renewal = own.keep(shutdown.clone());
        tasks.spawn(part("renewal", renewal));
        let stop = shutdown.clone();
        tasks.spawn(part("sessions", session::accept(endpoint, sessions, stop)));
        let stop = shutdown.clone();
        let follow = fleet::follow(config, source, enrolment, membership, reloads, stop);
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

    /// The addresses on which the coordinator listens, with the ports that were chosen.
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

    /// A handle that asks the coordinator to read the fleet file and the records again.
    #[must_use]
    pub fn reload(&self) -> Reload {
        Reload(self.reload.clone())
    }

    /// Runs until the shutdown token that was given at the start is cancelled, and then until every task has ended.
    ///
    /// # Errors
    /// When a task ended unasked. The other tasks are then stopped.
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
    /// Asks for another reading. The log has the outcome.
    pub fn ask(&self) {
        // The queue is full: another reading is due anyway.
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

/// Tells the driver about clients that didn't take the API's certificate, until `shutdown`.
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
