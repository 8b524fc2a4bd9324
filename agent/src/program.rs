//! The commands of `parbake-agent`: wires the parts together and turns ends into exit codes.

use std::{io::IsTerminal as _, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use link::{Endpoint, LocalNames, Settings};
use proto::{HostId, causes, message::Hello};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    admin::{self, Snapshot},
    cli::{Cli, Command, LogFormat, Run, Shared},
    config::Config,
    driver::{self, Parts},
    enrol::{self, COORDINATOR},
    fetch::Origin,
    golden::Goldens,
    identity::{self, Identity},
    install,
    log_file::LogFile,
    metrics::Metrics,
    mirror::{self, Mirror},
    notary::Notary,
    purgeable, session, standalone,
    store::Store,
};

/// Exit codes: done or yes; no; error.
const NO: u8 = 1;
const ERROR: u8 = 2;

/// Runs the command.
pub fn run(cli: Cli) -> ExitCode {
    start_logging(&cli.shared);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // verification, packing and disk
        .max_blocking_threads(driver::BLOCKING_THREADS)
        .build();
    let result = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(command(cli)));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        Err(error) => {
            error!(error = causes(&*error), "parbake-agent ends");
            ExitCode::from(ERROR)
        }
    }
}

fn start_logging(shared: &Shared) {
    let (format, filter) = (shared.log_format, &shared.log);
    match &shared.log_file {
        None => start_logging_to(format, filter, colours(), std::io::stderr),
        Some(path) => match LogFile::open(path) {
            Ok(file) => start_logging_to(format, filter, false, file),
            // somebody removed it, in a directory where this user can't make another: images matter more
            Err(error) => {
                start_logging_to(format, filter, false, std::io::stderr);
                warn!(path = %path.display(), %error, "the log file can't be opened (--log-file); logging to stderr: `parbake-agent install` makes it anew");
            }
        },
    }
}

/// Colours are for terminals that can show them, and for people who want them (<https://no-color.org>).
fn colours() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !refused && !dumb
}

fn start_logging_to<W>(format: LogFormat, filter: &str, colours: bool, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(writer);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

async fn command(cli: Cli) -> anyhow::Result<bool> {
    let no_flags = Run::default();
    let run = if let Command::Run(run) = &cli.command {
        run
    } else {
        &no_flags
    };
    // these come before there are settings
    match &cli.command {
        Command::Install(options) => return install::install(options, &cli.shared).await,
        Command::Uninstall(options) => return install::uninstall(options).await,
        _ => {}
    }
    let config = Config::load(&cli.shared, run)?;
    match &cli.command {
        Command::Run(_) => agent(config).await.map(|()| true),
        Command::Enroll(options) => enrol::enrol(options, &config.state_dir)
            .await
            .map(|()| true),
        Command::Status { json } => standalone::status(&config, *json).await,
        Command::Verify { image, json } => standalone::verify(&config, image, *json).await,
        Command::Stage { image, json } => standalone::stage(&config, image, *json).await,
        Command::Install(_) | Command::Uninstall(_) => Ok(true),
    }
}

async fn agent(config: Config) -> anyhow::Result<()> {
    let identity = Identity::load(&config.state_dir)?;
    let credentials = identity.credentials()?;
    let me = credentials.host().clone();
    let notary = Arc::new(Notary::open(&credentials, &config.state_dir));
    let coordinator: HostId = COORDINATOR.parse().context("the coordinator's name")?;
    let (metrics, registry) = Metrics::new();
    let listener = admin::bind(config.admin).await?;
    let link_settings = Settings {
        reset_secret: Some(identity::reset_secret(&config.state_dir)),
        ..Settings::default()
    };
    let endpoint = Endpoint::bind(config.listen, credentials, &link_settings)
        .with_context(|| format!("listening on UDP {} for peers (--listen)", config.listen))?;
    // nobody but the coordinator until it names the others
    endpoint.authorise(link::Authorised::Only([coordinator.clone()].into()));
    // an installation that finds tart's lock taken gives its thread back, and is tried again
    let store = open_store(&config, Duration::ZERO).await?;
    store.set_host(me.clone());
    let goldens = config
        .golden_prefix
        .clone()
        .map(|prefix| Arc::new(Goldens::new(&config, prefix, metrics.clone())));
    let origin = Origin::new(&config.origin)?;
    let (mirror, ears) = mirror::open(
        config.mirror.clone(),
        &me,
        config.floor_percent,
        origin.clone(),
        metrics.clone(),
    )
    .await?
    .unzip();
    let stop = CancellationToken::new();
    let (hello, hello_now) = watch::channel(Hello::default());
    let (snapshot, snapshot_now) = watch::channel(Arc::new(Snapshot::default()));
    // orders come seldom: a roster, some stages, a lease every few seconds
    let (inbox, heard) = mpsc::channel(64);
    let settings = session::Settings {
        coordinator: coordinator.clone(),
        address: identity.coordinator().to_owned(),
        state_dir: config.state_dir.clone(),
    };
    info!(
        host = %me,
        listen = %endpoint.local_addr().map_or(config.listen, |address| address),
        admin = %config.admin,
        mirror = mirror.as_ref().and_then(Mirror::address).map(tracing::field::display),
        tart_home = %config.tart_home.display(),
        coordinator = settings.address,
        "parbake-agent {} starts", env!("CARGO_PKG_VERSION")
    );
    let mut tasks = JoinSet::new();
    if config.count_purgeable {
        let following = purgeable::follow(store.clone(), config.tart_home.clone(), stop.clone());
        tasks.spawn(async move {
            following.await;
            anyhow::Ok(())
        });
    }
    let names = LocalNames::new(config.admin_names.iter().cloned());
    tasks.spawn(admin::serve(
        listener,
        registry,
        snapshot_now,
        names,
        stop.clone(),
    ));
    if let Some(mirror) = mirror {
        tasks.spawn(mirror.serve(stop.clone()));
    }
    let session_endpoint = endpoint.clone();
    let session_stop = stop.clone();
    tasks.spawn(async move {
        let mut hello_now = hello_now;
        // the driver first says what this host holds and where its peers find it
        if hello_now
            .wait_for(|hello| !hello.version.is_empty())
            .await
            .is_err()
        {
            return Ok(());
        }
        let say_hello = move || hello_now.borrow().clone();
        tokio::select! {
            () = session::keep(session_endpoint, settings, identity, say_hello, inbox) => {}
            () = session_stop.cancelled() => {}
        }
        anyhow::Ok(())
    });
    let parts = Parts {
        origin,
        notary,
        config,
        me,
        endpoint,
        store,
        tart: goldens,
        metrics,
        mirror: ears,
        coordinator,
        heard,
        hello,
        snapshot,
        stop: stop.clone(),
    };
    tasks.spawn(Box::pin(driver::run(parts)));
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = tasks.join_next() => essential(ended),
    };
    stop.cancel();
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(ended) = tasks.join_next().await {
            ended.context("a task of the agent died")??;
        }
        anyhow::Ok(())
    });
    result.and(rest.await.unwrap_or(Ok(())))
}

/// A part that ends unasked ends the program.
fn essential(
    ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>,
) -> anyhow::Result<()> {
    match ended {
        Some(Ok(Ok(()))) | None => anyhow::bail!("a part of the agent ended unasked"),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a task of the agent died"),
    }
}

pub(crate) async fn open_store(config: &Config, lock_wait: Duration) -> anyhow::Result<Arc<Store>> {
    let (home, floor_percent) = (config.tart_home.clone(), config.floor_percent);
    let opened = tokio::task::spawn_blocking(move || {
        Store::open(
            &home,
            crate::store::Options {
                floor_percent,
                lock_wait,
                ..crate::store::Options::default()
            },
        )
    });
    Ok(Arc::new(opened.await.context("opening the store")??))
}
