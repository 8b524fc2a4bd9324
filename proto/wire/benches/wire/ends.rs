//! The two ends: one serves chunks in each of the three ways, the other fetches them.

use std::{
    io::{BufRead as _, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use proto::{
    CHUNK_BYTES, HostId,
    message::{
        ChunkHeader, ChunkReply, ChunkRequest, Link, PeerOpen, chunk_reply, peer_open::Kind,
    },
};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustix::time::{ClockId, clock_gettime};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use wire::{Authorised, Connection, Credentials, Endpoint, Settings};

use crate::{Plan, Run, Way, precise};

/// Both ends are the same host: whose name it is changes nothing.
const NAME: &str = "end";
/// A request of bare quinn and of TCP, as long as ours.
const REQUEST_BYTES: usize = 42;
const CHUNK: usize = 1 << 20;

/// An authority's certificate, a leaf and its key, as PEM.
pub(crate) fn certificates() -> anyhow::Result<(String, String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(params, authority_key);
    let mut leaf = CertificateParams::new(vec![NAME.to_owned()])?;
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let key = KeyPair::generate()?;
    let chain = leaf.signed_by(&key, &issuer)?.pem();
    Ok((authority, chain, key.serialize_pem()))
}

pub(crate) fn serve() -> anyhow::Result<()> {
    let plan = plan()?;
    // what a chunk holds makes no difference to any of the three
    let chunk = Bytes::from(vec![0x5a; CHUNK]);
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let endpoint = plan.endpoint()?;
    let quinn = plan.quinn_server()?;
    let listener = runtime.block_on(TcpListener::bind((plan.address, 0)))?;
    let ports = [
        endpoint.local_addr()?.port(),
        quinn.local_addr()?.port(),
        listener.local_addr()?.port(),
    ];
    say(&serde_json::to_string(&ports)?)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(plan.tls_server(&[])?));
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_link(endpoint, chunk.clone()));
    tasks.spawn(serve_quinn(quinn, chunk.clone()));
    tasks.spawn(serve_tcp(listener, acceptor, chunk));
    for line in std::io::stdin().lock().lines() {
        line?;
        say(&cpu_s().to_string())?;
    }
    Ok(())
}

pub(crate) fn fetch() -> anyhow::Result<()> {
    let plan = plan()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let _entered = runtime.enter();
    let endpoint = plan.endpoint()?;
    let quinn = plan.quinn_client()?;
    for line in std::io::stdin().lock().lines() {
        let (way, port): (Way, u16) = serde_json::from_str(&line?)?;
        let to = SocketAddr::new(plan.address, port);
        let run = runtime.block_on(async {
            match way {
                Way::Link => fetch_link(&plan, &endpoint, to).await,
                Way::Quinn => fetch_quinn(&plan, &quinn, to).await,
                Way::TcpTls => fetch_tcp(&plan, to).await,
            }
        })?;
        say(&serde_json::to_string(&run)?)?;
    }
    Ok(())
}

async fn serve_link(endpoint: Endpoint, chunk: Bytes) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let chunk = chunk.clone();
        connections.spawn(async move {
            let connection = incoming.establish().await?;
            let mut streams = JoinSet::new();
            while let Ok((mut sender, mut receiver)) = connection.accept().await {
                let chunk = chunk.clone();
                while streams.try_join_next().is_some() {}
                streams.spawn(async move {
                    let open: Option<PeerOpen> = receiver.receive().await?;
                    ensure!(open.is_some(), "no request");
                    let header = ChunkHeader {
                        link: Some(Link {
                            before: vec![1; 32],
                            after: vec![2; 32],
                            fingerprint: vec![3; 16],
                            maker: NAME.to_owned(),
                            ..Default::default()
                        }),
                        wire_bytes: 1 << 20,
                        ..Default::default()
                    };
                    let kind = Some(chunk_reply::Kind::Chunk(header));
                    sender.send(&ChunkReply { kind }).await?;
                    sender.write(chunk).await?;
                    sender.finish()?;
                    sender.stopped().await?;
                    Ok(())
                });
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

async fn fetch_link(plan: &Plan, endpoint: &Endpoint, to: SocketAddr) -> anyhow::Result<Run> {
    let connection = endpoint.connect(to, &host()?).await?;
    let source = connection.clone();
    let mut run = measure(plan, move |_| fetch_link_chunk(source.clone())).await?;
    let stats = connection.stats();
    (run.mtu, run.lost) = (stats.mtu, stats.lost_packets);
    connection.close(wire::CloseCode::Done, "");
    Ok(run)
}

async fn fetch_link_chunk(connection: Connection) -> anyhow::Result<()> {
    let (mut sender, mut receiver) = connection.open().await?;
    let request = ChunkRequest {
        content: vec![7; 32],
        index: 5,
        lacking: None,
    };
    let kind = Some(Kind::Request(request));
    sender.send(&PeerOpen { kind }).await?;
    sender.finish()?;
    let reply: Option<ChunkReply> = receiver.receive().await?;
    ensure!(reply.is_some(), "no reply");
    let mut left = CHUNK;
    while let Some(piece) = receiver.piece(CHUNK).await? {
        left -= piece.len();
    }
    ensure!(left == 0, "a chunk was short");
    Ok(())
}

async fn serve_quinn(endpoint: quinn::Endpoint, chunk: Bytes) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let chunk = chunk.clone();
        connections.spawn(async move {
            let connection = incoming.await?;
            let mut streams = JoinSet::new();
            while let Ok((mut sender, mut receiver)) = connection.accept_bi().await {
                let chunk = chunk.clone();
                while streams.try_join_next().is_some() {}
                streams.spawn(async move {
                    receiver.read_to_end(REQUEST_BYTES).await?;
                    sender.write_chunk(chunk).await?;
                    sender.finish()?;
                    sender.stopped().await?;
                    anyhow::Ok(())
                });
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}

async fn fetch_quinn(
    plan: &Plan,
    endpoint: &quinn::Endpoint,
    to: SocketAddr,
) -> anyhow::Result<Run> {
    let connection = endpoint.connect(to, NAME)?.await?;
    let source = connection.clone();
    let mut run = measure(plan, move |_| {
        let connection = source.clone();
        async move {
            let (mut sender, mut receiver) = connection.open_bi().await?;
            sender.write_all(&[7; REQUEST_BYTES]).await?;
            sender.finish()?;
            let mut left = CHUNK;
            while let Some(piece) = receiver.read_chunk(CHUNK, true).await? {
                left -= piece.bytes.len();
            }
            ensure!(left == 0, "a chunk was short");
            Ok(())
        }
    })
    .await?;
    let path = connection.stats().path;
    (run.mtu, run.lost) = (path.current_mtu, path.lost_packets);
    connection.close(0u32.into(), b"");
    Ok(run)
}

async fn serve_tcp(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    chunk: Bytes,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let (acceptor, chunk) = (acceptor.clone(), chunk.clone());
        connections.spawn(async move {
            let mut stream = acceptor.accept(socket).await?;
            let mut request = [0; REQUEST_BYTES];
            while stream.read_exact(&mut request).await.is_ok() {
                stream.write_all(&chunk).await?;
                stream.flush().await?;
            }
            anyhow::Ok(())
        });
    }
}

async fn fetch_tcp(plan: &Plan, to: SocketAddr) -> anyhow::Result<Run> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(plan.roots()?)
        .with_no_client_auth();
    tls.resumption = rustls::client::Resumption::disabled();
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(NAME)?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(name, socket)
        .await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    // requests go out as far ahead as those of the other two; chunks come back in order
    let ahead = Arc::new(Semaphore::new(plan.in_flight));
    let mut asking = JoinSet::new();
    let room = ahead.clone();
    asking.spawn(async move {
        while let Ok(permit) = room.acquire().await {
            permit.forget();
            writer.write_all(&[7; REQUEST_BYTES]).await?;
            writer.flush().await?;
        }
        anyhow::Ok(())
    });
    let mut buffer = vec![0; 64 << 10];
    let mut one = async || {
        let mut left = CHUNK;
        while left > 0 {
            let most = left.min(buffer.len());
            let read = reader.read(&mut buffer[..most]).await?;
            ensure!(read > 0, "the connection broke");
            left -= read;
        }
        ahead.add_permits(1);
        anyhow::Ok(())
    };
    let warm = Instant::now() + Duration::from_millis(plan.warm_ms);
    while Instant::now() < warm {
        one().await?;
    }
    say("measuring")?;
    let (begin, cpu, mut chunks) = (Instant::now(), cpu_s(), 0);
    while begin.elapsed() < Duration::from_millis(plan.measured_ms) {
        one().await?;
        chunks += 1;
    }
    Ok(Run {
        bytes: chunks * CHUNK_BYTES,
        seconds: begin.elapsed().as_secs_f64(),
        cpu_s: cpu_s() - cpu,
        mtu: 0,
        lost: 0,
    })
}

/// Keeps as many fetches going as planned, first to warm up, then to measure.
async fn measure<F>(
    plan: &Plan,
    fetch: impl Fn(usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<Run>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let fetched = Arc::new(AtomicU64::new(0));
    let mut lanes = JoinSet::new();
    for lane in 0..plan.in_flight {
        let (fetch, fetched) = (fetch.clone(), fetched.clone());
        lanes.spawn(async move {
            loop {
                fetch(lane).await?;
                fetched.fetch_add(1, Ordering::Relaxed);
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            anyhow::Ok(())
        });
    }
    let body = async {
        tokio::time::sleep(Duration::from_millis(plan.warm_ms)).await;
        say("measuring")?;
        let (begin, cpu, before) = (Instant::now(), cpu_s(), fetched.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(plan.measured_ms)).await;
        let chunks = fetched.load(Ordering::Relaxed) - before;
        Ok(Run {
            bytes: chunks * CHUNK_BYTES,
            seconds: begin.elapsed().as_secs_f64(),
            cpu_s: cpu_s() - cpu,
            mtu: 0,
            lost: 0,
        })
    };
    tokio::select! {
        run = body => run,
        Some(lane) = lanes.join_next() => {
            lane??;
            anyhow::bail!("a lane ended")
        }
    }
}

impl Plan {
    fn settings(&self) -> Settings {
        Settings {
            mtu_bound: self.mtu_bound,
            ack_threshold: self.ack_threshold,
            connection_window: self.connection_window,
            stream_window: self.stream_window,
            send_window: self.send_window,
            ..Settings::default()
        }
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let credentials = Credentials::from_pem(&self.chain, &self.key, &self.authority)?;
        let endpoint = Endpoint::bind(self.any(), credentials, &self.settings())?;
        endpoint.authorise(Authorised::Only([host()?].into()));
        Ok(endpoint)
    }

    /// Where both ends bind: the fetching end has another address than the planned one.
    fn any(&self) -> SocketAddr {
        if self.address.is_loopback() {
            (self.address, 0).into()
        } else {
            ([0, 0, 0, 0], 0).into()
        }
    }

    /// quinn's transport with our settings, written out: what differs between the two is the rest of the crate.
    fn transport(&self) -> Arc<quinn::TransportConfig> {
        let settings = self.settings();
        let mut transport = quinn::TransportConfig::default();
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        discovery.upper_bound(settings.mtu_bound);
        let mut acks = quinn::AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(settings.ack_threshold.into())
            .max_ack_delay(Some(settings.max_ack_delay));
        transport
            .stream_receive_window(settings.stream_window.into())
            .receive_window(settings.connection_window.into())
            .send_window(settings.send_window)
            .send_fairness(false)
            .mtu_discovery_config(Some(discovery))
            .ack_frequency_config((settings.ack_threshold > 0).then_some(acks));
        Arc::new(transport)
    }

    fn quinn(&self, server: Option<quinn::ServerConfig>) -> anyhow::Result<quinn::Endpoint> {
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(self.mtu_bound)?;
        Ok(quinn::Endpoint::new(
            config,
            server,
            std::net::UdpSocket::bind(self.any())?,
            Arc::new(quinn::TokioRuntime),
        )?)
    }

    fn quinn_server(&self) -> anyhow::Result<quinn::Endpoint> {
        let tls = self.tls_server(&[b"bench"])?;
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(self.transport());
        self.quinn(Some(server))
    }

    fn quinn_client(&self) -> anyhow::Result<quinn::Endpoint> {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots()?)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"bench".to_vec()];
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
        let mut client = quinn::ClientConfig::new(Arc::new(tls));
        client.transport_config(self.transport());
        let mut endpoint = self.quinn(None)?;
        endpoint.set_default_client_config(client);
        Ok(endpoint)
    }

    fn tls_server(&self, alpn: &[&[u8]]) -> anyhow::Result<rustls::ServerConfig> {
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(self.chain.as_bytes())?],
                PrivateKeyDer::from_pem_slice(self.key.as_bytes())?,
            )?;
        tls.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(tls)
    }

    fn roots(&self) -> anyhow::Result<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes())?)?;
        Ok(roots)
    }
}

/// AES-128-GCM for all three.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::ring;
    Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..ring::default_provider()
    })
}

fn host() -> anyhow::Result<HostId> {
    NAME.parse().context("the name of the end")
}

fn plan() -> anyhow::Result<Plan> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    serde_json::from_str(&line).context("the plan")
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// CPU time of this process so far: user and system, all threads.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    precise(time.tv_sec.unsigned_abs()) + precise(time.tv_nsec.unsigned_abs()) / 1e9
}
