//! A real Prometheus as a child process on loopback, and the dashboard's panels as it is asked them.
//!
//! The environment variable [`BINARY`] says which binary to run; without it, the tests that need it are ignored.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::cluster::{free_tcp, wait_until};

/// Names the environment variable that names the binary.
pub const BINARY: &str = "PARBAKE_PROMETHEUS";

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
/// How long it may take to listen; it takes half a second.
const START: Duration = Duration::from_secs(60);

/// One query of one panel of the dashboard.
#[derive(Clone, Debug)]
pub struct Panel {
    /// The row that it stands in.
    pub row: String,
    /// Its title.
    pub title: String,
    /// Its query, with what Grafana fills in.
    pub expression: String,
}

/// Every query of the dashboard as it is shipped, in its order.
///
/// # Errors
/// When the dashboard can't be read.
pub fn panels() -> anyhow::Result<Vec<Panel>> {
    let path = Path::new(DEPLOY).join("chart/parbake/dashboards/parbake.json");
    let dashboard: Value = serde_json::from_slice(&fs::read(path)?)?;
    let (mut row, mut found) = (String::new(), Vec::new());
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("no title")?;
        if panel["type"] == "row" {
            title.clone_into(&mut row);
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut expression = target["expr"].as_str().context("no query")?.to_owned();
            for (variable, value) in [
                ("$__rate_interval", "1m"),
                ("$namespace", ".*"),
                ("$pool", ".*"),
                ("$host", ".*"),
            ] {
                expression = expression.replace(variable, value);
            }
            found.push(Panel {
                row: row.clone(),
                title: title.to_owned(),
                expression,
            });
        }
    }
    Ok(found)
}

/// The configuration for plain racks as it is shipped, which scrapes each second and finds its three hosts and its
/// coordinator here.
///
/// # Errors
/// When it can't be read, or names other hosts.
pub fn configuration(coordinator: SocketAddr, agents: &[SocketAddr; 3]) -> anyhow::Result<String> {
    let mut text = fs::read_to_string(Path::new(DEPLOY).join("prometheus/prometheus.yaml"))?;
    let mut written = vec![
        (
            "coordinator.example.com:7473".to_owned(),
            coordinator.to_string(),
        ),
        ("interval: 30s".to_owned(), "interval: 1s".to_owned()),
    ];
    for (number, agent) in (1..).zip(agents) {
        written.push((format!("mini-{number}.example.com:7472"), agent.to_string()));
    }
    for (shipped, here) in written {
        ensure!(
            text.contains(&shipped),
            "{shipped} isn't in the configuration"
        );
        text = text.replace(&shipped, &here);
    }
    Ok(text)
}

/// A running Prometheus. It ends with its handle.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Prometheus {
    /// Starts it in a directory of its own, with this configuration and the alerts of plain racks.
    ///
    /// # Errors
    /// When it doesn't come up; the error has its log.
    pub fn start(dir: &Path, configuration: &str) -> anyhow::Result<Self> {
        let binary = env::var_os(BINARY).with_context(|| format!("{BINARY} isn't set"))?;
        fs::create_dir(dir)?;
        fs::write(dir.join("prometheus.yaml"), configuration)?;
        fs::copy(
            Path::new(DEPLOY).join("prometheus/rules.yaml"),
            dir.join("rules.yaml"),
        )?;
        let (address, log) = (free_tcp(Ipv4Addr::LOCALHOST.into())?, dir.join("log"));
        let child = Command::new(binary)
            .arg(format!(
                "--config.file={}",
                dir.join("prometheus.yaml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let started = Self {
            child,
            address,
            log,
        };
        if !wait_until(START, || started.get("/-/ready").is_ok()) {
            bail!("prometheus isn't up: {}", fs::read_to_string(&started.log)?);
        }
        Ok(started)
    }

    /// The answer to a query now: one object for each series.
    ///
    /// # Errors
    /// When Prometheus refuses the query; the error has its words.
    pub fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let mut path = String::from("/api/v1/query?query=");
        for byte in expression.bytes() {
            path += &format!("%{byte:02X}");
        }
        let answer: Value = serde_json::from_str(&self.get(&path)?)?;
        let result = answer["data"]["result"].as_array();
        result.cloned().with_context(|| format!("{answer}"))
    }

    /// What it says of each alert: name, health and state.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub fn alerts(&self) -> anyhow::Result<Vec<[String; 3]>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/rules")?)?;
        let groups = answer["data"]["groups"].as_array();
        let rules = groups
            .into_iter()
            .flatten()
            .filter_map(|group| group["rules"].as_array())
            .flatten();
        let field = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Ok(rules
            .map(|rule| ["name", "health", "state"].map(|name| field(rule, name)))
            .collect())
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        // 1.0: the answer ends with the connection
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(
            head.contains(" 200 ") || !body.is_empty() && head.contains(" 400 "),
            "{head}"
        );
        Ok(body.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
