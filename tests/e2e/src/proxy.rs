//! A forward proxy inside the test: it tunnels, forwards plain HTTP, asks who comes, refuses, and counts.
//!
//! It knows names that nothing else resolves, so what arrives at a server of such a name came through it.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use wire::lock::lock;

use crate::registry::Identity;

/// The longest head of a request that is read.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// How a proxy is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where names lead, as `host:port`. It reaches nothing else.
    pub names: BTreeMap<String, SocketAddr>,
    /// User and password that it asks for.
    pub account: Option<(String, String)>,
    /// Whether it speaks TLS itself, with the certificate of [`Proxy::certificate_pem`].
    pub tls: bool,
}

/// What a proxy has done so far, by `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tunnels that it opened.
    pub tunnels: BTreeMap<String, u64>,
    /// Requests that it forwarded.
    pub forwarded: BTreeMap<String, u64>,
    /// What it was asked for and refused.
    pub refused: BTreeMap<String, u64>,
}

/// A running proxy. Dropping it ends it and what goes through it.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    addr: SocketAddr,
    certificate: Option<Identity>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    counters: Mutex<Counters>,
    refusal: Mutex<Option<u16>>,
    is_silent: Mutex<bool>,
}

impl Proxy {
    /// Starts a proxy on loopback.
    ///
    /// # Errors
    /// When no port is to be had.
    pub async fn start(options: Options) -> io::Result<Self> {
        let identity = options.tls.then(Identity::generate).transpose()?;
        let acceptor = identity.as_ref().map(Identity::acceptor).transpose()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            options,
            counters: Mutex::default(),
            refusal: Mutex::default(),
            is_silent: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let serving = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (shared, acceptor) = (Arc::clone(&serving), acceptor.clone());
                connections.spawn(async move {
                    // Ends of connections are everyday business here.
                    let _ended = match acceptor {
                        None => serve(stream, &shared).await.is_ok(),
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, &shared).await.is_ok(),
                            Err(_) => false,
                        },
                    };
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            shared,
            addr,
            certificate: identity,
            _tasks: tasks,
        })
    }

    /// Its address, as settings have it.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.name())
    }

    /// Its host and port, as errors have it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("localhost:{}", self.addr.port())
    }

    /// The certificate to trust, where it speaks TLS.
    #[must_use]
    pub fn certificate_pem(&self) -> Option<&str> {
        self.certificate.as_ref().map(Identity::pem)
    }

    /// Refuses everything with this status from now on, or nothing.
    pub fn refuse(&self, status: Option<u16>) {
        *lock(&self.shared.refusal) = status;
    }

    /// Reads requests from now on and says nothing.
    pub fn fall_silent(&self) {
        *lock(&self.shared.is_silent) = true;
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        lock(&self.shared.counters).clone()
    }
}

/// One request of a connection; what comes after it belongs to the tunnel.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: &Shared,
) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "not a request to a proxy");
    let (line, fields) = head.split_once("\r\n").ok_or_else(nonsense)?;
    let mut words = line.split(' ');
    let (method, asked) = (
        words.next().ok_or_else(nonsense)?,
        words.next().ok_or_else(nonsense)?,
    );
    let is_tunnel = method == "CONNECT";
    let (target, path) = if is_tunnel {
        (asked.to_owned(), "")
    } else {
        let rest = asked.strip_prefix("http://").ok_or_else(nonsense)?;
        let at = rest.find('/').ok_or_else(nonsense)?;
        let host = &rest[..at];
        let port = if host.contains(':') { "" } else { ":80" };
        (format!("{host}{port}"), &rest[at..])
    };
    if *lock(&shared.is_silent) {
        return std::future::pending().await;
    }
    let refusal = *lock(&shared.refusal);
    let refusal = refusal.or_else(|| (!admits(shared, fields)).then_some(407));
    let to = shared.options.names.get(&target).copied();
    let (Some(to), None) = (to, refusal) else {
        count(&mut lock(&shared.counters).refused, &target);
        let status = refusal.unwrap_or(502);
        // The body never comes: who waits for it isn't told.
        let answer = format!("HTTP/1.1 {status} Refused\r\nContent-Length: 9\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        return stream.flush().await;
    };
    let mut upstream = TcpStream::connect(to).await?;
    if is_tunnel {
        count(&mut lock(&shared.counters).tunnels, &target);
        let answer = b"HTTP/1.1 200 Connection established\r\n\r\n";
        stream.write_all(answer).await?;
    } else {
        count(&mut lock(&shared.counters).forwarded, &target);
        let own = |field: &&str| !is_named(field, "proxy-authorization");
        let fields: Vec<&str> = fields.trim_end().split("\r\n").filter(own).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{}\r\nConnection: close\r\n\r\n",
            fields.join("\r\n")
        );
        upstream.write_all(head.as_bytes()).await?;
    }
    copy_bidirectional(&mut stream, &mut upstream).await?;
    Ok(())
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head.len() > MAX_HEAD_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
        }
    }
    String::from_utf8(head).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn is_named(field: &str, name: &str) -> bool {
    let found = field.split_once(':');
    found.is_some_and(|(found, _)| found.eq_ignore_ascii_case(name))
}

fn admits(shared: &Shared, fields: &str) -> bool {
    let Some((user, password)) = &shared.options.account else {
        return true;
    };
    let wanted = format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    );
    fields.split("\r\n").any(|field| {
        is_named(field, "proxy-authorization")
            && field
                .split_once(": ")
                .is_some_and(|(_, value)| value == wanted)
    })
}

fn count(counts: &mut BTreeMap<String, u64>, target: &str) {
    *counts.entry(target.to_owned()).or_default() += 1;
}
