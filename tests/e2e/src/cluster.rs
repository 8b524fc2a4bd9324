//! A whole fleet as processes: one coordinator and N agents, each with its own state and tart home under one directory.
//!
//! Programs are started through one multi-call binary (`demo agent …`, `demo coordinator …`, `demo parbake …`), so that
//! a test or the demo needs nothing but itself. Every process is ended by its pid when the cluster is dropped.

mod agent;

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

pub use self::agent::{Agent, Place, Present};
use crate::interrupt;

/// How long a program may take to come up before the cluster gives up on it.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The multi-call binary.
    pub binary: PathBuf,
    /// Where everything is kept. Has to exist.
    pub dir: PathBuf,
    /// Where each agent runs; their number is the number of hosts.
    pub hosts: Vec<Place>,
    /// Where the coordinator runs.
    pub coordinator: Place,
    /// The `host:port` of a registry that speaks plain HTTP, or of several with commas between; empty: none does.
    pub registry: String,
    /// Further lines of every agent's settings file.
    pub agent_settings: String,
    /// Further lines of the fleet file's `[coordinator]` table.
    pub coordinator_settings: String,
    /// Log filter of the agents.
    pub log: String,
    /// The cluster that the coordinator watches, where it does.
    pub kubeconfig: Option<PathBuf>,
    /// Further arguments of the coordinator's `run`.
    pub run_arguments: Vec<String>,
    /// What every program has in its environment beside this process's own.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// Everything on loopback, without settings of its own: a coordinator from a fleet file, so many agents, and a
    /// registry.
    #[must_use]
    pub fn on_loopback(
        binary: impl Into<PathBuf>,
        dir: impl Into<PathBuf>,
        hosts: usize,
        registry: impl ToString,
    ) -> Self {
        Self {
            binary: binary.into(),
            dir: dir.into(),
            hosts: vec![Place::default(); hosts],
            coordinator: Place::default(),
            registry: registry.to_string(),
            agent_settings: String::new(),
            coordinator_settings: String::new(),
            log: "info".into(),
            kubeconfig: None,
            run_arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// As settings files have it.
    fn plain_http(&self) -> String {
        let registries = self.registry.split_terminator(',');
        let quoted: Vec<_> = registries.map(|name| format!("'{name}'")).collect();
        format!("[{}]", quoted.join(", "))
    }
}

/// A coordinator and its agents.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    coordinator: Option<Child>,
    /// Where hosts reach it.
    udp: SocketAddr,
    api: SocketAddr,
    /// Of the coordinator's metrics.
    admin: SocketAddr,
    pin: String,
    agents: Vec<Agent>,
}

impl Cluster {
    /// Starts the coordinator, enrols every host and starts the agents.
    ///
    /// # Errors
    /// When a program doesn't come up; the error ends with its last log lines.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let coordinator_dir = options.dir.join("coordinator");
        std::fs::create_dir_all(&coordinator_dir)?;
        let udp = free_udp(options.coordinator.ip)?;
        let api = free_tcp(options.coordinator.ip)?;
        let admin = free_tcp(Ipv4Addr::LOCALHOST.into())?;
        let mut fleet = String::new();
        write!(
            fleet,
            "[coordinator]\nlisten = '{udp}'\napi = '{api}'\nadmin = '{admin}'\nadvertise = '{udp}'\nstate_dir = '{}'\nopen = true\n\
             {}\n[origin]\nplain_http = {}\nplain_http_beyond_loopback = true\n",
            coordinator_dir.join("state").display(),
            options.coordinator_settings,
            options.plain_http(),
        )?;
        std::fs::write(coordinator_dir.join("fleet.toml"), fleet)?;
        let mut cluster = Self {
            options,
            coordinator: None,
            udp,
            api,
            admin,
            pin: String::new(),
            agents: Vec::new(),
        };
        cluster.start_coordinator()?;
        cluster.pin = text(&cluster.coordinator_command(&["pin"])?)?;
        for (index, place) in cluster.options.hosts.clone().into_iter().enumerate() {
            interrupt::check()?;
            cluster.add_agent(index, place)?;
        }
        Ok(cluster)
    }

    /// Starts the coordinator (again).
    ///
    /// # Errors
    /// When it doesn't come up.
    pub fn start_coordinator(&mut self) -> anyhow::Result<()> {
        let dir = self.options.dir.join("coordinator");
        let mut command = self.command(&self.options.coordinator, "coordinator");
        command
            .args(["--config"])
            .arg(dir.join("fleet.toml"))
            .args(["--log-format", "json", "run"])
            .args(&self.options.run_arguments);
        if let Some(kubeconfig) = &self.options.kubeconfig {
            command.env("KUBECONFIG", kubeconfig).arg("--kubernetes");
        }
        let before = logged_lines(&dir.join("log"), "coordinator serves");
        // kept before it is up: whatever goes wrong from here on, it ends with the cluster
        let child = self.coordinator.insert(log_to(command, &dir.join("log"))?);
        let until = Instant::now() + START_TIMEOUT;
        loop {
            interrupt::check()?;
            if let Some(status) = child.try_wait()? {
                bail!(
                    "the coordinator ended at once ({status}): {}",
                    tail(&dir.join("log"))
                );
            }
            // in another network namespace only its own log tells
            if logged_lines(&dir.join("log"), "coordinator serves") > before {
                break;
            }
            ensure!(
                Instant::now() < until,
                "the coordinator isn't up after {START_TIMEOUT:?}: {}",
                tail(&dir.join("log"))
            );
            pause();
        }
        Ok(())
    }

    fn add_agent(&mut self, index: usize, place: Place) -> anyhow::Result<()> {
        let host = format!("mac-{index:03}");
        let dir = self.options.dir.join(&host);
        std::fs::create_dir_all(dir.join("tart"))?;
        let listen = free_udp(place.ip)?;
        let admin = free_tcp(Ipv4Addr::LOCALHOST.into())?;
        // one machine has one default port, and every host its mirror
        let mirror = if self.options.agent_settings.contains("[mirror]") {
            ""
        } else {
            "[mirror]\nlisten = '127.0.0.1:0'"
        };
        let settings = format!(
            "state_dir = '{}'\ntart_home = '{}'\nlisten = '{listen}'\nadmin = '{admin}'\nfloor_percent = 0\n{}\n{mirror}\n[origin]\nplain_http = {}\n",
            dir.join("state").display(),
            dir.join("tart").display(),
            self.options.agent_settings,
            self.options.plain_http(),
        );
        std::fs::write(dir.join("agent.toml"), settings)?;
        let token = text(&self.coordinator_command(&["token", "--host", &host])?)?;
        std::fs::write(dir.join("token"), token.lines().last().unwrap_or_default())?;
        let mut enrol = self.command(&place, "agent");
        enrol
            .arg("--config")
            .arg(dir.join("agent.toml"))
            .args([
                "enroll",
                "--api",
                &format!("https://{}", self.api),
                "--ca-pin",
                &self.pin,
                "--token-file",
            ])
            .arg(dir.join("token"));
        let output = enrol.output()?;
        ensure!(
            output.status.success(),
            "enrolling {host}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.agents.push(Agent {
            host,
            dir,
            place,
            listen,
            admin,
            child: None,
            peak_rss_bytes: 0,
        });
        self.start_agent(index)
    }

    /// Starts an agent (again).
    ///
    /// # Errors
    /// When it can't be started. Whether it comes up shows in its log.
    pub fn start_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let agent = &self.agents[index];
        let mut command = self.command(&agent.place, "agent");
        command
            .arg("--config")
            .arg(agent.dir.join("agent.toml"))
            .args(["--log-format", "json", "--log", &self.options.log, "run"]);
        let child = log_to(command, &agent.dir.join("log"))?;
        self.agents[index].child = Some(child);
        Ok(())
    }

    /// Ends an agent by `kill -9`.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn kill_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let agent = &mut self.agents[index];
        agent.peak_rss_bytes = agent.peak_rss();
        let mut child = agent.child.take().context("agent isn't running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends the coordinator by `kill -9`.
    ///
    /// # Errors
    /// When it isn't running.
    pub fn kill_coordinator(&mut self) -> anyhow::Result<()> {
        let mut child = self
            .coordinator
            .take()
            .context("coordinator isn't running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Runs `parbake stage …` to its end; what it said.
    ///
    /// # Errors
    /// When it ends with another exit code than 0; the error says what it said.
    pub fn stage(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let output = self.parbake(&[&["stage"], arguments].concat())?;
        ensure!(
            output.status.success(),
            "parbake stage {arguments:?} ended with {}: {}",
            output.status,
            said(&output)
        );
        Ok(output)
    }

    /// What `parbake status` says of an image, by reference or digest; null when the coordinator doesn't know it.
    ///
    /// # Errors
    /// When the command can't be started.
    pub fn status(&self, image: &str) -> anyhow::Result<Value> {
        let output = self.parbake(&["status", image, "--json"])?;
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Revokes a host.
    ///
    /// # Errors
    /// When the command fails.
    pub fn revoke(&self, index: usize) -> anyhow::Result<()> {
        let host = self.agents[index].host.clone();
        self.coordinator_command(&["revoke", &host]).map(drop)
    }

    /// The coordinator's own log, one JSON object a line.
    #[must_use]
    pub fn coordinator_log(&self) -> Vec<Value> {
        let path = self.options.dir.join("coordinator/log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        log.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Where the coordinator's API listens.
    #[must_use]
    pub const fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where hosts connect to the coordinator.
    #[must_use]
    pub const fn hosts_connect_to(&self) -> SocketAddr {
        self.udp
    }

    /// The address of the coordinator's health and metrics.
    #[must_use]
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A value of the coordinator's metrics, by name and labels as they are printed; `None` while it doesn't answer or
    /// has none.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        agent::metric(self.admin, name)
    }

    /// The coordinator's process, while it runs.
    #[must_use]
    pub fn coordinator_process(&self) -> Option<u32> {
        self.coordinator.as_ref().map(Child::id)
    }

    /// Where all processes keep their files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.options.dir
    }

    /// The agents.
    #[must_use]
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// Runs an operator's command (`parbake …`) to its end.
    ///
    /// # Errors
    /// When it can't be started; its exit code is the caller's.
    pub fn parbake(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.operator(arguments).output()?)
    }

    /// Starts an operator's command, with this process's own stdout and stderr.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_parbake(&self, arguments: &[&str], stdout: Stdio) -> anyhow::Result<Child> {
        Ok(self
            .operator(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .spawn()?)
    }

    /// An operator's command that isn't started yet.
    #[must_use]
    pub fn operator(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.options.coordinator, "parbake");
        let token = self.options.dir.join("coordinator/state/api.token");
        command
            .env("PARBAKE_API", format!("https://{}", self.api))
            .env("PARBAKE_CA_PIN", &self.pin)
            .env("PARBAKE_TOKEN_FILE", token)
            .args(arguments);
        command
    }

    fn coordinator_command(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let dir = self.options.dir.join("coordinator");
        let mut command = self.command(&self.options.coordinator, "coordinator");
        let output = command
            .arg("--config")
            .arg(dir.join("fleet.toml"))
            .args(arguments)
            .output()?;
        ensure!(
            output.status.success(),
            "coordinator {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    fn command(&self, place: &Place, program: &str) -> Command {
        let mut words = place
            .prefix
            .iter()
            .map(std::ffi::OsStr::new)
            .chain([self.options.binary.as_os_str()]);
        let mut command = Command::new(
            words
                .next()
                .unwrap_or_else(|| self.options.binary.as_os_str()),
        );
        command.args(words).arg(program).stdin(Stdio::null());
        let environment = self.options.environment.iter();
        command.envs(environment.map(|(name, value)| (name, value)));
        command
    }

    /// Waits until the image with this manifest digest is present on every host; what each logged.
    ///
    /// # Errors
    /// When a host hasn't got it after `patience`; the error names it and ends with its last log lines.
    pub fn wait_present(&self, digest: &str, patience: Duration) -> anyhow::Result<Vec<Present>> {
        self.wait(patience, |line| line["image"].as_str() == Some(digest))
    }

    fn wait(
        &self,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Vec<Present>> {
        let until = Instant::now() + patience;
        self.agents
            .iter()
            .map(|agent| {
                loop {
                    if let Some(present) = agent.present(&wanted) {
                        return Ok(present);
                    }
                    interrupt::check()?;
                    ensure!(
                        Instant::now() < until,
                        "{} hasn't got the image after {patience:?}: {}",
                        agent.host,
                        tail(&agent.dir.join("log"))
                    );
                    pause();
                }
            })
            .collect()
    }

    /// Waits until every agent has a session with the coordinator.
    ///
    /// # Errors
    /// When one has none after `patience`.
    pub fn wait_sessions(&self, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        for agent in &self.agents {
            while !logged(&agent.dir.join("log"), |line| {
                line.contains("session with the coordinator is up")
            }) {
                interrupt::check()?;
                ensure!(
                    Instant::now() < until,
                    "{} has no session after {patience:?}: {}",
                    agent.host,
                    tail(&agent.dir.join("log"))
                );
                pause();
            }
        }
        Ok(())
    }

    /// Waits until some image is present on every host under this reference.
    ///
    /// # Errors
    /// As [`wait_present`](Self::wait_present).
    pub fn wait_any_present(
        &self,
        reference: &str,
        patience: Duration,
    ) -> anyhow::Result<Vec<Present>> {
        self.wait(patience, |line| {
            line["references"]
                .as_str()
                .is_some_and(|references| references.contains(reference))
        })
    }

    /// Hashes the installed image again by `parbake-agent verify`.
    ///
    /// # Errors
    /// When the command can't be run.
    pub fn verify(&self, agent: &Agent, reference: &str) -> anyhow::Result<bool> {
        let mut command = self.command(&agent.place, "agent");
        command
            .arg("--config")
            .arg(agent.dir.join("agent.toml"))
            .stdout(Stdio::null())
            .args(["verify", reference]);
        let mut child = command.spawn()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if let Err(error) = interrupt::check() {
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
            pause();
        }
    }

    /// What a running agent says of itself.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn agent_status(&self, index: usize) -> anyhow::Result<Value> {
        let agent = &self.agents[index];
        let mut command = self.command(&agent.place, "agent");
        command
            .arg("--config")
            .arg(agent.dir.join("agent.toml"))
            .args(["status", "--json"]);
        let output = command.output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Ends every process.
    pub fn stop(&mut self) {
        for agent in &mut self.agents {
            agent.peak_rss_bytes = agent.peak_rss();
        }
        let children = self
            .agents
            .iter_mut()
            .filter_map(|agent| agent.child.take())
            .chain(self.coordinator.take());
        for mut child in children {
            // gone already, or ended here; either way nothing of ours is left
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// The largest peak memory of an agent so far.
    #[must_use]
    pub fn peak_rss_bytes(&self) -> u64 {
        self.agents.iter().map(Agent::peak_rss).max().unwrap_or(0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn log_to(mut command: Command, path: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)?;
    let spawned = command.stdout(Stdio::null()).stderr(log).spawn();
    spawned.with_context(|| format!("starting {:?}", command.get_program()))
}

fn logged(path: &Path, wanted: impl Fn(&str) -> bool) -> bool {
    std::fs::read_to_string(path).is_ok_and(|log| log.lines().any(wanted))
}

fn logged_lines(path: &Path, wanted: &str) -> usize {
    std::fs::read_to_string(path).map_or(0, |log| {
        log.lines().filter(|line| line.contains(wanted)).count()
    })
}

pub(crate) fn tail(path: &Path) -> String {
    let log = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().take(15).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn text(output: &Output) -> anyhow::Result<String> {
    Ok(std::str::from_utf8(&output.stdout)?.trim().to_owned())
}

/// Ports below those that systems hand out by themselves: nobody takes one between the look here and a process's start.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

/// A port for a server that is started soon, of which nobody else thinks meanwhile.
///
/// # Errors
/// When none is free.
pub fn free_tcp(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    // an address of another namespace: all its ports are free
    if TcpListener::bind((ip, 0)).is_err() {
        return Ok((ip, 7470).into());
    }
    free(ip, |address| TcpListener::bind(address).is_ok())
}

/// The same for UDP.
///
/// # Errors
/// When none is free.
pub fn free_udp(ip: IpAddr) -> anyhow::Result<SocketAddr> {
    if UdpSocket::bind((ip, 0)).is_err() {
        return Ok((ip, 7471).into());
    }
    free(ip, |address| UdpSocket::bind(address).is_ok())
}

/// The next port that can be had. Two processes begin at different ones.
fn free(ip: IpAddr, is_free: impl Fn(SocketAddr) -> bool) -> anyhow::Result<SocketAddr> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(7919);
    for _ in PORTS {
        let at = begin.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed))
            % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(at)?;
        let address = SocketAddr::from((ip, port));
        if is_free(address) {
            return Ok(address);
        }
    }
    bail!("no port of {PORTS:?} is free on {ip}")
}

/// All that a command said, on stdout and on stderr.
#[must_use]
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until a condition that other processes bring about holds; whether it did within `patience`.
pub fn wait_until(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let until = Instant::now() + patience;
    while !holds() {
        if Instant::now() > until {
            return false;
        }
        pause();
    }
    true
}

/// Between two looks at a condition in another process's log.
#[expect(
    clippy::disallowed_methods,
    reason = "a poll of a condition that another process sets"
)]
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
