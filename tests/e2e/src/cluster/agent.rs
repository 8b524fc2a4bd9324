//! One agent of a cluster: where it runs, what it logged, what it measures of itself. The cluster starts and ends it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, SystemTime},
};

use proto::Digest;
use serde_json::Value;

/// Where a program runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its address.
    pub ip: IpAddr,
    /// What goes before its command line, such as `ip netns exec NAME`.
    pub prefix: Vec<String>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST.into(),
            prefix: Vec::new(),
        }
    }
}

impl Place {
    /// A host whose tart home is a volume of its own, which nobody else sees and which goes with the process; `options`
    /// are those of a tmpfs. Needs root.
    #[must_use]
    pub fn on_volume(tart_home: &Path, options: &str) -> Self {
        let mount = format!(
            "mount -t tmpfs -o {options} parbake-test {} && exec \"$@\"",
            tart_home.display()
        );
        let words = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        Self {
            prefix: words.map(str::to_owned).to_vec(),
            ..Self::default()
        }
    }
}

/// One agent of a cluster.
#[derive(Debug)]
pub struct Agent {
    /// Its host id.
    pub host: String,
    /// Its directory: `state`, `tart`, `agent.toml`, `log`.
    pub dir: PathBuf,
    pub(super) place: Place,
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) child: Option<Child>,
    pub(super) peak_rss_bytes: u64,
}

/// An image that became present on a host, as its agent logged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// When.
    pub at: SystemTime,
    /// Bytes from the registry, from peers and from local disk.
    pub bytes: [u64; 3],
    /// From the last chunk to presence.
    pub install: Duration,
}

impl Agent {
    /// Its peer address.
    #[must_use]
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The address of its health, metrics and status.
    #[must_use]
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The address of its mirror since its last start, once it listens.
    #[must_use]
    pub fn mirror(&self) -> Option<SocketAddr> {
        self.log().iter().rev().find_map(|line| {
            let address = line["mirror"].as_str()?;
            address.parse().ok()
        })
    }

    /// Its tart home.
    #[must_use]
    pub fn tart_home(&self) -> PathBuf {
        self.dir.join("tart")
    }

    /// Its tart home as its process sees it, which may have mounted a volume there; `None` while it doesn't run.
    #[must_use]
    pub fn seen_tart_home(&self) -> Option<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.process()?));
        let home = self.tart_home();
        Some(root.join(home.strip_prefix("/").unwrap_or(&home)))
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A value of its metrics, by name and labels as they are printed; `None` while it doesn't answer or has none.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        metric(self.admin, name)
    }

    /// The log lines so far, as objects.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let Ok(file) = std::fs::File::open(self.dir.join("log")) else {
            return Vec::new();
        };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines
            .filter_map(|line| serde_json::from_str(&line).ok())
            .collect()
    }

    /// Whether it logged this message.
    #[must_use]
    pub fn logged(&self, message: &str) -> bool {
        self.log().iter().any(|line| line["message"] == message)
    }

    /// Bytes of images that its process received from `source` (`origin`, `peers`) since it was started; 0 while it
    /// doesn't answer.
    #[must_use]
    pub fn received(&self, source: &str) -> u64 {
        let name = format!("parbake_agent_received_bytes_total{{source=\"{source}\"}}");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a counter of some megabytes"
        )]
        let bytes = self.metric(&name).unwrap_or(0.0) as u64;
        bytes
    }

    /// When this image became present for the last time, if it did.
    #[must_use]
    pub fn holds(&self, image: &Digest) -> Option<Present> {
        let image = image.to_string();
        self.present(|line| line["image"].as_str() == Some(&image))
    }

    /// The last time that an image became present whose log line is `wanted`, if one did.
    #[must_use]
    pub fn present(&self, wanted: impl Fn(&Value) -> bool) -> Option<Present> {
        self.log().iter().rev().find_map(|line| {
            let fields = &line;
            if fields["message"].as_str() != Some("image is present") || !wanted(line) {
                return None;
            }
            let at = time::OffsetDateTime::parse(
                line["timestamp"].as_str()?,
                &time::format_description::well_known::Rfc3339,
            );
            let bytes = |name: &str| fields[name].as_u64().unwrap_or(0);
            Some(Present {
                at: at.ok()?.into(),
                bytes: [
                    bytes("origin_bytes"),
                    bytes("peer_bytes"),
                    bytes("local_bytes"),
                ],
                install: Duration::from_millis(bytes("install_ms")),
            })
        })
    }

    /// Its peak memory so far.
    #[must_use]
    pub fn peak_rss(&self) -> u64 {
        let now = self.child.as_ref().and_then(|child| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
        });
        now.unwrap_or(0).max(self.peak_rss_bytes)
    }
}

/// A value of the metrics of the program whose door for them is here.
pub(super) fn metric(admin: SocketAddr, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(admin).ok()?;
    // 1.0: the answer ends with the connection
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(' ')?;
        value.parse().ok()
    })
}
