//! What the mirror gives beside nginx: `cargo bench -p agent --bench mirror [-- --mib N --rounds N]`.
//!
//! Both serve the same file over loopback to the same client, which only counts: one connection, then four, rounds
//! alternating so that both see the same machine. nginx (`sendfile on`) has to be installed; without it the mirror's
//! own numbers are printed. Also: the time to the first byte of a blob that is here.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its answer and stops at the first surprise"
)]

use std::{
    convert::Infallible,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent::{
    config::{MirrorSettings, OnTrouble, OriginConfig},
    mirror,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, header::CONTENT_LENGTH, service::service_fn};
use hyper_util::rt::TokioIo;
use proto::Digest;
use tokio_util::sync::CancellationToken;

const NAME: &str = "bench/blob";

fn argument(name: &str, default: usize) -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments
        .nth(1)
        .map_or(default, |value| value.parse().unwrap())
}

/// An upstream that says of every blob that it has it, with this size.
async fn upstream(listener: tokio::net::TcpListener, size: u64) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let answer = move |_: Request<Incoming>| async move {
            let response = Response::builder().header(CONTENT_LENGTH, size);
            Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
        };
        // it only ever answers HEAD
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer));
        connections.spawn(served);
    }
}

fn nginx(directory: &Path, root: &Path) -> Option<(Child, SocketAddr)> {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = directory.join("nginx.conf");
    let text = format!(
        "daemon off; pid {0}/pid; error_log {0}/error.log; worker_processes auto; events {{}}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {0}/a; proxy_temp_path {0}/b;\n\
         fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d; scgi_temp_path {0}/e;\n\
         server {{ listen {port}; location / {{ root {1}; }} }} }}\n",
        directory.display(),
        root.display()
    );
    fs::write(&config, text).unwrap();
    // started by root it would serve as another user, who may not read the file
    let user = if rustix::process::getuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let child = Command::new("nginx")
        .args([
            "-c",
            config.to_str().unwrap(),
            "-g",
            user,
            "-p",
            directory.to_str().unwrap(),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(port).is_err() {
        assert!(Instant::now() < until, "nginx doesn't listen");
        std::thread::yield_now();
    }
    Some((child, port))
}

/// A GET whose bytes are counted and dropped.
fn get(address: SocketAddr, path: &str, size: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let (mut filled, mut body) = (0, None);
    loop {
        let read = stream.read(&mut buffer[filled..]).unwrap();
        assert!(read > 0, "it ended after {body:?} bytes");
        match &mut body {
            None => {
                filled += read;
                let text = &buffer[..filled];
                if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n")
                    && filled > end + 4
                {
                    assert!(
                        text.starts_with(b"HTTP/1.1 200"),
                        "{}",
                        String::from_utf8_lossy(&text[..end])
                    );
                    body = Some(filled - end - 4);
                    filled = 0;
                }
            }
            Some(body) => *body += read,
        }
        if body == Some(size) {
            return;
        }
    }
}

/// Bytes per second of so many connections at once, each with a GET of the whole file.
fn rate(address: SocketAddr, path: &str, size: usize, connections: usize) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| get(address, path, size));
        }
    });
    (size * connections) as f64 / began.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let (mib, rounds) = (argument("--mib", 1024), argument("--rounds", 7));
    let size = mib << 20;
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("cache/whole");
    fs::create_dir_all(&whole).unwrap();
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    let digest = Digest::of(&bytes);
    // as a cache looks that an agent left behind: the place says that it is verified
    let file = whole.join(digest.hex().to_string());
    fs::write(&file, &bytes).unwrap();
    drop(bytes);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let registry = listener.local_addr().unwrap();
    let upstream = runtime.spawn(upstream(listener, size as u64));
    let settings = MirrorSettings {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        names: std::collections::BTreeSet::new(),
        required: true,
        directory: dir.path().join("cache"),
        cache_bytes: u64::MAX,
        upstream: None,
        upstreams: std::iter::once(registry.to_string()).collect(),
        lend_credentials: false,
        on_trouble: OnTrouble::Wait,
        stall: Duration::from_secs(10),
        break_after: Duration::from_secs(45),
        grace: Duration::from_secs(15),
        tls: None,
        token_file: None,
        plain_http: std::iter::empty().collect(),
    };
    let origin = OriginConfig {
        ca_file: None,
        plain_http: vec![registry.to_string()],
        idle_timeout: Duration::from_secs(10),
        proxy: Default::default(),
        system_roots: false,
        credentials: std::iter::empty().collect(),
    };
    let (stop, (ready, listens)) = (CancellationToken::new(), tokio::sync::oneshot::channel());
    let stopped = stop.clone();
    let served = runtime.spawn(async move {
        mirror::serve_cached(settings, &"bench".parse().unwrap(), &origin, stopped, ready).await
    });
    let address = runtime.block_on(listens).unwrap();
    let path = format!("/v2/{registry}/{NAME}/blobs/{digest}");
    let nginx = nginx(dir.path(), &whole);
    let plain = format!("/{}", digest.hex());

    // both once, so that the file is in memory and the upstream has said whose it is
    get(address, &path, size);
    if let Some((_, port)) = &nginx {
        get(*port, &plain, size);
    }
    // each name is another repository, of which the upstream hasn't said anything yet
    let fresh = |at: usize| format!("/v2/{registry}/{NAME}-{at}/blobs/{digest}");
    let cold = median((0..20).map(|at| get_first(address, &fresh(at))).collect());
    let warm = median((0..50).map(|_| get_first(address, &path)).collect());
    println!(
        "first byte: {:.2} ms with a question to the upstream, {:.2} ms without",
        cold * 1e3,
        warm * 1e3
    );
    for connections in [1, 4] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(rate(address, &path, size, connections));
            if let Some((_, port)) = &nginx {
                theirs.push(rate(*port, &plain, size, connections));
            }
        }
        let ours = median(ours) / 1e9;
        if theirs.is_empty() {
            println!(
                "{connections} connection(s): mirror {ours:.2} GB/s; no nginx here to compare with"
            );
            continue;
        }
        let theirs = median(theirs) / 1e9;
        println!(
            "{connections} connection(s), {mib} MiB each: mirror {ours:.2} GB/s, nginx {theirs:.2} GB/s, ratio {:.2}",
            ours / theirs
        );
    }
    if let Some((mut child, _)) = nginx {
        // its workers end with it only when it is asked to end
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }
    stop.cancel();
    runtime.block_on(served).unwrap().unwrap();
    upstream.abort();
}

/// Until the first byte of the body, in seconds.
fn get_first(address: SocketAddr, path: &str) -> f64 {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nRange: bytes=0-1023\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 206"));
    began.elapsed().as_secs_f64()
}
