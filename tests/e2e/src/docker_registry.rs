//! Debian's `docker-registry` (the reference implementation of the distribution API) as a child process on loopback.
//!
//! It is a counterpart that wasn't written here: what works against both registries doesn't rest on a mistake that they
//! share. The environment variable [`BINARY`] says which binary to run; without it, the tests that need the registry
//! are ignored.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use origin::{Client, Config, Credentials, PlainHttp};
use proto::RegistryReference;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// Names the environment variable that names the binary.
pub const BINARY: &str = "PARBAKE_DOCKER_REGISTRY";

/// How long it may take to listen; it takes a tenth of a second.
const START: Duration = Duration::from_secs(20);
/// Between two looks whether it listens.
const LOOK: Duration = Duration::from_millis(20);
/// How often another port is tried, when somebody else took the free one in between.
const TRIES: usize = 5;

const USER: &str = "mac";
const PASSWORD: &str = "pre-baked";
/// `PASSWORD` as `htpasswd -nbB` writes it: kept here, so that no such program is needed.
const HTPASSWD: &str = "mac:$2y$04$owSyfWGUdq0/5whkqGi1suW/v3ayde3EcTtUjYYUgajjGZUK.hMqa";

/// What the registry asks of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Nothing.
    Anonymous,
    /// User and password, from an htpasswd file.
    Htpasswd,
}

/// Why it doesn't run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The environment doesn't name the binary.
    #[error("{BINARY} isn't set: it names the docker-registry binary")]
    Unset,
    /// Its directory can't be written.
    #[error("docker-registry's directory can't be written: {0}")]
    Directory(io::Error),
    /// The binary can't be run.
    #[error("{} can't be run: {cause}; set {BINARY} to the docker-registry binary", binary.display())]
    Run {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// It ended, or never listened.
    #[error("docker-registry doesn't listen ({status:?}); it said: {log}")]
    Silent {
        /// How it ended, if it did.
        status: Option<ExitStatus>,
        /// The end of its log.
        log: String,
    },
}

/// A running registry. Dropping it ends the process and removes its files.
#[derive(Debug)]
pub struct DockerRegistry {
    process: Child,
    binary: PathBuf,
    addr: SocketAddr,
    auth: Auth,
    directory: TempDir,
}

impl DockerRegistry {
    /// Starts a registry that keeps everything in a temporary directory.
    ///
    /// # Errors
    /// When [`BINARY`] isn't set, when the binary can't be run, or when it doesn't listen soon.
    pub async fn start(auth: Auth) -> Result<Self, StartError> {
        let binary = &std::env::var_os(BINARY)
            .map(PathBuf::from)
            .ok_or(StartError::Unset)?;
        let mut last = None;
        for _ in 0..TRIES {
            match Self::try_start(binary, auth).await {
                Err(StartError::Silent {
                    status: Some(status),
                    log,
                }) if log.contains("address already in use") => {
                    last = Some(StartError::Silent {
                        status: Some(status),
                        log,
                    });
                }
                result => return result,
            }
        }
        Err(last.unwrap_or(StartError::Silent {
            status: None,
            log: String::new(),
        }))
    }

    async fn try_start(binary: &Path, auth: Auth) -> Result<Self, StartError> {
        // It can't be given a port of 0, so the port is free when looked for, and most likely still when used.
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .and_then(|listener| listener.local_addr())
            .map_err(StartError::Directory)?;
        let directory = configure(addr, auth).map_err(StartError::Directory)?;
        let mut registry = Self {
            process: serve(binary, directory.path())?,
            binary: binary.to_owned(),
            addr,
            auth,
            directory,
        };
        registry.listens().await?;
        Ok(registry)
    }

    /// Ends the process at once. What it stored stays, and so does its port, as long as nobody else takes it.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again after [`kill`](Self::kill), with what it stored.
    ///
    /// # Errors
    /// When it doesn't listen soon.
    pub async fn start_again(&mut self) -> Result<(), StartError> {
        self.process = serve(&self.binary, self.directory.path())?;
        self.listens().await
    }

    async fn listens(&mut self) -> Result<(), StartError> {
        let started = Instant::now();
        while started.elapsed() < START {
            let status = self.process.try_wait().ok().flatten();
            if status.is_some() {
                return Err(self.silent(status));
            }
            if TcpStream::connect(self.addr).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(self.silent(None))
    }

    fn silent(&self, status: Option<ExitStatus>) -> StartError {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let end = log.len().saturating_sub(2000);
        StartError::Silent {
            status,
            log: log.get(end..).unwrap_or_default().to_owned(),
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The reference of an image in it.
    ///
    /// # Panics
    /// When `name` or `tag` isn't one.
    #[must_use]
    pub fn reference(&self, name: &str, tag: &str) -> RegistryReference {
        format!("{}/{name}:{tag}", self.addr)
            .parse()
            .expect("the caller gives a valid name and tag")
    }

    /// The user and password that it asks for.
    #[must_use]
    pub fn account(&self) -> Option<(&'static str, &'static str)> {
        (self.auth == Auth::Htpasswd).then_some((USER, PASSWORD))
    }

    /// The same for the client.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        match self.account() {
            None => Credentials::Anonymous,
            Some((user, password)) => Credentials::Basic {
                user: user.to_owned(),
                password: password.into(),
            },
        }
    }

    /// A client that can reach it.
    ///
    /// # Panics
    /// When the TLS stack refuses its own defaults.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(Config {
            plain_http: PlainHttp::Hosts([self.addr.to_string()].into()),
            ..Config::default()
        })
        .expect("the defaults are valid")
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill().is_ok();
        let _reaped = self.process.wait().is_ok();
    }
}

fn serve(binary: &Path, directory: &Path) -> Result<Child, StartError> {
    let log = File::create(directory.join("log")).map_err(StartError::Directory)?;
    Command::new(binary)
        .arg("serve")
        .arg(directory.join("config.yml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|cause| StartError::Run {
            binary: binary.to_owned(),
            cause,
        })
}

fn configure(addr: SocketAddr, auth: Auth) -> io::Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("parbake-registry-")
        .tempdir()?;
    let path = directory.path();
    // JSON is YAML, and needs no care with quotes.
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"filesystem": {"rootdirectory": path.join("data")}},
        "http": {"addr": addr.to_string()},
    });
    if auth == Auth::Htpasswd {
        let htpasswd = path.join("htpasswd");
        fs::write(&htpasswd, format!("{HTPASSWD}\n"))?;
        config["auth"] =
            serde_json::json!({"htpasswd": {"realm": "parbake, for tests", "path": htpasswd}});
    }
    fs::write(path.join("config.yml"), config.to_string())?;
    Ok(directory)
}
