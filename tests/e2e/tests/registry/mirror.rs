//! The registry mirror of real agents, asked by a client with tart's manners while registries and peers misbehave.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say what they measured"
)]

mod doors;
mod fleet;
mod other_client;
mod trouble;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use e2e::{
    cluster::{Cluster, Options, wait_until},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Fault, Misbehaviour, Registry, Target},
    tart_client::{Pulled, TartClient},
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy, rt::TokioExecutor};
use tempfile::TempDir;
use tokio::{runtime::Runtime, task::JoinSet};

const PATIENCE: Duration = Duration::from_secs(60);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn spec(disk_mib: u64, layer_mib: u64) -> ImageSpec {
    let mut spec = ImageSpec::default();
    (spec.disk_bytes, spec.layer_bytes, spec.nvram_bytes) =
        (disk_mib << 20, layer_mib << 20, 1 << 20);
    (spec.repeated_layers, spec.layers_without_digest) = (0, 0);
    spec
}

/// A fleet of mirrors in front of a registry with one image.
struct World {
    registry: Registry,
    image: GeneratedImage,
    cluster: Cluster,
    runtime: Runtime,
    _dir: TempDir,
}

const NAME: &str = "fleet/macos";

impl World {
    fn new(hosts: usize, spec: &ImageSpec, options: registry::Options, settings: &str) -> Self {
        Self::beside(&[], hosts, spec, options, settings)
    }

    /// With other registries that agents may ask.
    fn beside(
        others: &[&Registry],
        hosts: usize,
        spec: &ImageSpec,
        options: registry::Options,
        settings: &str,
    ) -> Self {
        let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
        let blobs = dir.path().join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let image = spec.generate(&blobs).unwrap();
        let registry = runtime.block_on(Registry::start(options)).unwrap();
        registry.hold(NAME, "1", &image);
        let others = others.iter().map(|other| other.addr());
        let all = std::iter::once(registry.addr()).chain(others);
        let all: Vec<_> = all.map(|address| address.to_string()).collect();
        let cluster = Cluster::start(Options {
            agent_settings: settings.into(),
            ..Options::on_loopback(env!("CARGO_BIN_EXE_demo"), dir.path(), hosts, all.join(","))
        })
        .unwrap();
        cluster.wait_sessions(PATIENCE).unwrap();
        Self {
            registry,
            image,
            cluster,
            runtime,
            _dir: dir,
        }
    }

    fn mirror(&self, host: usize) -> SocketAddr {
        let agent = &self.cluster.agents()[host];
        assert!(wait_until(PATIENCE, || agent.mirror().is_some()));
        agent.mirror().unwrap()
    }

    /// The image's name as this mirror's clients write it.
    fn name(&self) -> String {
        format!("{}/{NAME}", self.registry.addr())
    }

    fn client(&self, host: usize) -> TartClient {
        TartClient::new(self.mirror(host))
    }

    /// Body bytes of blobs that left the registry.
    fn served(&self) -> u64 {
        let blobs = self.registry.counters().blobs;
        blobs.values().map(|blob| blob.bytes).sum()
    }

    fn check(&self, pulled: &Pulled) {
        assert_eq!(pulled.manifest, self.image.manifest);
        for (digest, bytes) in &pulled.layers {
            assert!(*bytes == self.image.blob(digest).unwrap(), "{digest}");
        }
    }
}

/// Bytes of an image's layers.
fn size(pulled: &Pulled) -> u64 {
    pulled.layers.values().map(|bytes| bytes.len() as u64).sum()
}

/// Whether an agent logged this.
fn says(cluster: &Cluster, host: usize, message: &str) -> bool {
    let log = cluster.agents()[host].log();
    log.iter().any(|line| line["message"] == message)
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

async fn ask(method: Method, uri: String, headers: &[(&str, &str)]) -> Answer {
    let http = legacy::Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = http
        .request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

#[test]
fn a_client_gets_what_the_registry_has_and_the_second_one_from_here() {
    let world = World::new(1, &spec(24, 8), registry::Options::default(), "");
    let (mirror, name) = (world.mirror(0), world.name());
    world.runtime.block_on(async {
        let pulled = world.client(0).pull(&name, "1").await.unwrap();
        world.check(&pulled);
        println!("first byte after {:?}", pulled.first_byte);
        assert_eq!(pulled.breaks, 0);
        let sent = world.served();
        assert_eq!(sent, size(&pulled));
        world.check(&world.client(0).pull(&name, "1").await.unwrap());
        assert_eq!(world.served(), sent);

        let (digest, size) = world
            .image
            .blobs
            .iter()
            .max_by_key(|(_, size)| **size)
            .unwrap();
        let bytes = world.image.blob(digest).unwrap();
        let blob = format!("http://{mirror}/v2/{name}/blobs/{digest}");
        let head = ask(Method::HEAD, blob.clone(), &[]).await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.header("content-length"), size.to_string());
        assert_eq!(head.header("accept-ranges"), "bytes");
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
        assert!(head.body.is_empty());
        let total = usize::try_from(*size).unwrap();
        for (range, start, end) in [
            ("bytes=5-".to_owned(), 5, total),
            ("bytes=7-1048576".into(), 7, 1 << 20 | 1),
            ("bytes=-9".into(), total - 9, total),
            (format!("bytes={}-", total - 1), total - 1, total),
        ] {
            let part = ask(Method::GET, blob.clone(), &[("range", &range)]).await;
            assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(
                part.header("content-range"),
                format!("bytes {start}-{}/{size}", end - 1)
            );
            assert!(part.body == bytes[start..end], "{range}");
        }
        let beyond = ask(
            Method::GET,
            blob.clone(),
            &[("range", &format!("bytes={size}-"))],
        )
        .await;
        assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
        let whole = ask(
            Method::GET,
            blob.clone(),
            &[("range", "bytes=1-2"), ("if-range", "\"x\"")],
        )
        .await;
        assert_eq!(whole.status, StatusCode::OK);

        // containerd's form, by digest, and what a client accepts
        let manifest = format!(
            "manifests/{}?ns={}",
            world.image.digest,
            world.registry.addr()
        );
        let named = ask(
            Method::GET,
            format!("http://{mirror}/v2/{NAME}/{manifest}"),
            &[],
        )
        .await;
        assert_eq!(
            (named.status, &named.body),
            (StatusCode::OK, &world.image.manifest)
        );
        assert_eq!(named.header("content-type"), proto::image::MANIFEST_TYPE);
        assert_eq!(
            named.header("docker-content-digest"),
            world.image.digest.to_string()
        );
        let head = ask(
            Method::HEAD,
            format!("http://{mirror}/v2/{name}/manifests/1"),
            &[],
        )
        .await;
        assert_eq!(
            head.header("content-length"),
            world.image.manifest.len().to_string()
        );
        let tags = ask(
            Method::GET,
            format!("http://{mirror}/v2/{name}/tags/list"),
            &[],
        )
        .await;
        assert_eq!(tags.status, StatusCode::OK);
        assert!(tags.body.windows(3).any(|text| text == b"\"1\""));

        // what refers to it, and the registry's repositories, page by page
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let signature = |kind: &str| {
            let subject = serde_json::json!({
                "mediaType": proto::image::MANIFEST_TYPE,
                "digest": world.image.digest.to_string(),
                "size": world.image.manifest.len(),
            });
            let empty = serde_json::json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": proto::Digest::of(b"{}").to_string(), "size": 2});
            let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "artifactType": kind, "config": empty, "layers": [], "subject": subject});
            let bytes = Bytes::from(manifest.to_string());
            world.registry.put_manifest(NAME, kind, media_type, bytes)
        };
        let (signed, _listed) = (signature("signature"), signature("materials"));
        let referrers = format!("http://{mirror}/v2/{name}/referrers/{}", world.image.digest);
        let json = |answer: &Answer| -> serde_json::Value {
            assert_eq!(answer.status, StatusCode::OK);
            serde_json::from_slice(&answer.body).unwrap()
        };
        let all = ask(Method::GET, referrers.clone(), &[]).await;
        assert_eq!(json(&all)["manifests"].as_array().unwrap().len(), 2);
        assert_eq!(all.header("content-type"), "application/vnd.oci.image.index.v1+json");
        let some = ask(Method::GET, format!("{referrers}?artifactType=signature"), &[]).await;
        assert_eq!(json(&some)["manifests"][0]["digest"], signed.to_string());
        assert_eq!(json(&some)["manifests"].as_array().unwrap().len(), 1);
        assert_eq!(some.header("oci-filters-applied"), "artifactType");
        world.registry.put_manifest("other/thing", "1", media_type, Bytes::from_static(b"{}"));
        let registry = world.registry.addr();
        let catalog = format!("http://{mirror}/v2/{registry}/_catalog?n=1");
        let first = ask(Method::GET, catalog, &[]).await;
        assert_eq!(json(&first)["repositories"], serde_json::json!([NAME]));
        let next = first.header("link").to_owned();
        let next = next.strip_prefix('<').unwrap().split_once('>').unwrap().0;
        let second = ask(Method::GET, format!("http://{mirror}{next}"), &[]).await;
        assert_eq!(json(&second)["repositories"], serde_json::json!(["other/thing"]));
        assert_eq!(second.header("link"), "");

        // what a registry calls a page is only bytes, and no page may ask
        let page = Bytes::from_static(b"<script>fetch('/v2/_catalog')</script>");
        world.registry.put_manifest(NAME, "page", "text/html", page);
        let page = format!("http://{mirror}/v2/{name}/manifests/page");
        let got = ask(Method::GET, page.clone(), &[]).await;
        assert_eq!(got.header("content-type"), "application/octet-stream");
        assert_eq!(got.header("x-content-type-options"), "nosniff");
        let policy = got.header("content-security-policy");
        assert_eq!(policy, "default-src 'none'; sandbox");
        for header in [("sec-fetch-site", "cross-site"), ("origin", "http://a.example")] {
            let refused = ask(Method::GET, page.clone(), &[header]).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{header:?}");
        }

        // errors have the specification's form
        let base = ask(Method::GET, format!("http://{mirror}/v2/"), &[]).await;
        assert_eq!(base.status, StatusCode::OK);
        for (method, path, status, code) in [
            (
                Method::POST,
                format!("{name}/blobs/uploads/"),
                405,
                "UNSUPPORTED",
            ),
            (
                Method::PUT,
                format!("{name}/manifests/1"),
                405,
                "UNSUPPORTED",
            ),
            (
                Method::DELETE,
                format!("{name}/manifests/1"),
                405,
                "UNSUPPORTED",
            ),
            (
                Method::GET,
                format!("{name}/manifests/none"),
                404,
                "MANIFEST_UNKNOWN",
            ),
            (
                Method::GET,
                format!("{name}/blobs/{}", proto::Digest::of(b"none")),
                404,
                "BLOB_UNKNOWN",
            ),
            (
                Method::GET,
                format!("{name}/blobs/md5:00"),
                400,
                "DIGEST_INVALID",
            ),
            (Method::GET, "image/manifests/1".into(), 404, "NAME_UNKNOWN"),
            (Method::GET, "_catalog".into(), 404, "NAME_UNKNOWN"),
        ] {
            let answer = ask(method, format!("http://{mirror}/v2/{path}"), &[]).await;
            assert_eq!(answer.status.as_u16(), status, "{path}");
            assert_eq!(answer.code(), code, "{path}");
        }
    });
}

#[test]
fn sixteen_hosts_that_pull_at_once_cost_the_registry_one_copy() {
    let world = World::new(16, &spec(48, 8), registry::Options::default(), "");
    let began = Instant::now();
    let pulled = world.runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for host in 0..16 {
            let (client, name) = (world.client(host), world.name());
            pulls.spawn(async move { client.pull(&name, "1").await.unwrap() });
        }
        pulls.join_all().await
    });
    for one in &pulled {
        world.check(one);
    }
    let (sent, size) = (world.served(), size(&pulled[0]));
    let first = pulled.iter().map(|pulled| pulled.first_byte).max().unwrap();
    println!(
        "16 pulls in {:?}: origin/image {sent}/{size}, slowest first byte {first:?}",
        began.elapsed()
    );
    assert!(sent * 100 <= size * 102, "{sent} of {size}");
}

#[test]
fn a_registry_that_breaks_off_throttles_and_goes_away_costs_clients_nothing() {
    let mut world = World::new(2, &spec(32, 8), registry::Options::default(), "");
    let throttled = Misbehaviour::Status {
        status: 429,
        retry_after: Some("1".into()),
    };
    let failing = Misbehaviour::Status {
        status: 503,
        retry_after: None,
    };
    for fault in [
        Fault::times(Target::Blobs, Misbehaviour::CloseAfter(1_500_000), 3),
        Fault::times(Target::Blobs, Misbehaviour::Hangup, 2),
        Fault::times(Target::Blobs, throttled, 2),
        Fault::times(Target::Blobs, failing.clone(), 2),
        Fault::times(Target::Manifests, failing, 2),
    ] {
        world.registry.script(fault);
    }
    let (clients, name) = ([world.client(0), world.client(1)], world.name());
    let World {
        runtime,
        registry,
        cluster,
        ..
    } = &mut world;
    let pulled = runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for client in clients {
            let name = name.clone();
            pulls.spawn(async move { client.pull(&name, "1").await.unwrap() });
        }
        // it goes away amid the pull
        while registry.counters().bytes < 4 << 20 {
            tokio::task::yield_now().await;
        }
        registry.go_down().await;
        let trouble = "fetching from the registry has trouble; trying again";
        assert!(wait_until(PATIENCE, || says(cluster, 0, trouble)
            || says(cluster, 1, trouble)));
        registry.come_back().await;
        pulls.join_all().await
    });
    for one in &pulled {
        world.check(one);
        println!("connections that broke: {}", one.breaks);
    }
}

#[test]
fn what_was_pulled_once_is_had_while_the_registry_is_away() {
    let mut world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (client, name) = (world.client(0), world.name());
    let World {
        runtime, registry, ..
    } = &mut world;
    let pulled = runtime.block_on(async {
        client.pull(&name, "1").await.unwrap();
        registry.go_down().await;
        client.pull(&name, "1").await.unwrap()
    });
    world.check(&pulled);
    // what the tag names may have changed since: the client and the log are told
    let manifest = format!("http://{}/v2/{name}/manifests", world.mirror(0));
    let (tag, digest) = world.runtime.block_on(async {
        let by_digest = format!("{manifest}/{}", world.image.digest);
        let tag = ask(Method::GET, format!("{manifest}/1"), &[]).await;
        (tag, ask(Method::GET, by_digest, &[]).await)
    });
    assert!(
        tag.header("warning")
            .starts_with("110 parbake \"the registry is away")
    );
    assert!(tag.header("age").parse::<u64>().unwrap() < PATIENCE.as_secs());
    assert_eq!((digest.header("warning"), digest.header("age")), ("", ""));
    let log = world.cluster.agents()[0].log();
    let told = log.iter().filter(|line| {
        line["message"] == "a tag is answered as it was before its registry went away"
    });
    assert_eq!(told.count(), 1);
    // nobody vouches for another client, and nothing is made up for it
    let stranger = world.runtime.block_on(async {
        let manifest = format!("http://{}/v2/{name}/manifests/1", world.mirror(0));
        let ask = ask(Method::GET, manifest, &[("authorization", "Bearer other")]);
        tokio::time::timeout(Duration::from_secs(2), ask).await
    });
    assert!(stranger.is_err());
}

/// Reads a body until it ends or breaks.
async fn read(uri: String, range: Option<&str>) -> (StatusCode, Vec<u8>, bool) {
    let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
    read_with(uri, &headers).await
}

async fn read_with(uri: String, headers: &[(&str, &str)]) -> (StatusCode, Vec<u8>, bool) {
    let http = legacy::Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let Ok(response) = http.request(request).await else {
        return (StatusCode::IM_A_TEAPOT, Vec::new(), true);
    };
    let (status, mut body, mut bytes) = (response.status(), response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap()),
            Err(_) => return (status, bytes, true),
        }
    }
    (status, bytes, false)
}

#[test]
fn false_bytes_never_make_a_whole_blob_not_even_by_resuming() {
    let world = World::new(1, &spec(16, 16), registry::Options::default(), "");
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let good = world.image.blob(digest).unwrap();
    let blob = format!(
        "http://{}/v2/{}/blobs/{digest}",
        world.mirror(0),
        world.name()
    );
    assert!(*size > 4 << 20);
    // so slow that the first bytes have left long before the last ones tell that they are false
    world.registry.limit_each(Some(4 << 20));
    let fault = Fault::once(Target::Blob(*digest), Misbehaviour::CorruptAt(1000));
    world.registry.script(fault);
    world.runtime.block_on(async {
        let (status, bytes, broken) = read(blob.clone(), None).await;
        assert!(status == StatusCode::OK && broken, "{status} {broken}");
        assert!(!bytes.is_empty() && bytes.len() < good.len());
        assert!(bytes[..1001] != good[..1001]);
        let resumed = read(blob.clone(), Some(&format!("bytes={}-", bytes.len()))).await;
        assert_eq!(resumed.0, StatusCode::RANGE_NOT_SATISFIABLE);
        let (status, bytes, broken) = read(blob.clone(), None).await;
        assert!(status == StatusCode::OK && !broken && bytes == good);
        // still: somebody may hold the false half
        let late = read(blob, Some("bytes=2000-")).await;
        assert_eq!(late.0, StatusCode::RANGE_NOT_SATISFIABLE);
    });
}

#[test]
fn a_blob_that_is_always_false_is_never_had_whole() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let fault = Fault::always(Target::Blob(*digest), Misbehaviour::CorruptAt(size / 2));
    world.registry.script(fault);
    world.runtime.block_on(async {
        let error = world.client(0).pull(&world.name(), "1").await.unwrap_err();
        println!("{error}");
        let blob = format!(
            "http://{}/v2/{}/blobs/{digest}",
            world.mirror(0),
            world.name()
        );
        let (status, bytes, broken) = read(blob, None).await;
        assert!(status == StatusCode::NOT_FOUND || broken, "{status}");
        assert!((bytes.len() as u64) < *size);
    });
}

#[test]
fn readers_share_a_fetch_that_ends_a_while_after_the_last_of_them() {
    let settings = "[mirror]\nlisten = '127.0.0.1:0'\ngrace_seconds = 1\n";
    let world = World::new(1, &spec(16, 16), registry::Options::default(), settings);
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let good = world.image.blob(digest).unwrap();
    let blob = format!(
        "http://{}/v2/{}/blobs/{digest}",
        world.mirror(0),
        world.name()
    );
    world.registry.limit_each(Some(8 << 20));
    world.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for _ in 0..8 {
            readers.spawn(read(blob.clone(), None));
        }
        // one begins and goes away
        let http = legacy::Client::builder(TokioExecutor::new()).build_http();
        let request = Request::get(&blob).body(Empty::<Bytes>::new()).unwrap();
        let mut response = http.request(request).await.unwrap();
        assert!(response.body_mut().frame().await.unwrap().is_ok());
        drop((response, http));
        for (status, bytes, broken) in readers.join_all().await {
            assert!(status == StatusCode::OK && !broken && bytes == good);
        }
    });
    assert_eq!(world.registry.counters().blobs[digest].bytes, *size);

    // of another blob the only reader goes away
    let other = Bytes::from(vec![7u8; 24 << 20]);
    let digest = world.registry.put_blob(other.clone()).unwrap();
    world.registry.limit_each(Some(2 << 20));
    let blob = format!(
        "http://{}/v2/{}/blobs/{digest}",
        world.mirror(0),
        world.name()
    );
    let held = world.runtime.block_on(async {
        let http = legacy::Client::builder(TokioExecutor::new()).build_http();
        let request = Request::get(&blob).body(Empty::<Bytes>::new()).unwrap();
        let mut response = http.request(request).await.unwrap();
        let mut bytes = 0;
        while bytes < 3 << 20 {
            let frame = response.body_mut().frame().await.unwrap().unwrap();
            bytes += frame.data_ref().unwrap().len();
        }
        bytes
    });
    assert!(wait_until(PATIENCE, || says(
        &world.cluster,
        0,
        "nobody reads a blob any more; its fetch ends"
    )));
    let stopped = world.registry.counters().blobs[&digest].bytes;
    assert!(stopped < 24 << 20, "{stopped}");
    // and who comes back goes on from what is held
    world.registry.limit_each(None);
    let range = format!("bytes={held}-");
    let (status, bytes, broken) = world.runtime.block_on(read(blob, Some(&range)));
    assert!(status == StatusCode::PARTIAL_CONTENT && !broken);
    assert!(bytes == other[held..]);
    let total = world.registry.counters().blobs[&digest].bytes;
    assert!(total < (24 << 20) + (3 << 20), "{total}");
}

#[test]
fn a_killed_agent_goes_on_where_it_stood_and_serves_what_it_had() {
    let mut world = World::new(1, &spec(32, 16), registry::Options::default(), "");
    let name = world.name();
    let digests: Vec<_> = world.image.blobs.iter().collect();
    let (digest, size) = digests.iter().max_by_key(|(_, size)| **size).unwrap();
    let (digest, size) = (**digest, **size);
    let good = world.image.blob(&digest).unwrap();
    world.registry.limit_each(Some(4 << 20));
    let blob = format!("http://{}/v2/{name}/blobs/{digest}", world.mirror(0));
    let before = world.mirror(0);
    let runtime = &world.runtime;
    let held = runtime.block_on(async {
        let http = legacy::Client::builder(TokioExecutor::new()).build_http();
        let request = Request::get(&blob).body(Empty::<Bytes>::new()).unwrap();
        let mut response = http.request(request).await.unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < 5 << 20 {
            let frame = response.body_mut().frame().await.unwrap().unwrap();
            bytes.extend_from_slice(frame.data_ref().unwrap());
        }
        bytes
    });
    world.cluster.kill_agent(0).unwrap();
    let served = world.registry.counters().blobs[&digest].bytes;
    world.registry.limit_each(None);
    world.cluster.start_agent(0).unwrap();
    assert!(wait_until(PATIENCE, || {
        world.cluster.agents()[0]
            .mirror()
            .is_some_and(|now| now != before)
    }));
    let blob = format!("http://{}/v2/{name}/blobs/{digest}", world.mirror(0));
    let range = format!("bytes={}-", held.len());
    let (status, rest, broken) = world.runtime.block_on(read(blob.clone(), Some(&range)));
    assert!(status == StatusCode::PARTIAL_CONTENT && !broken, "{status}");
    assert!([held, rest].concat() == good);
    // half a second of a rate of 4 MiB, and the chunk that was under way
    let again = world.registry.counters().blobs[&digest].bytes + served - size;
    assert!(again <= served + (4 << 20), "{again} of {served}");

    let sent = world.served();
    world.cluster.kill_agent(0).unwrap();
    world.cluster.start_agent(0).unwrap();
    let old = blob.clone();
    assert!(wait_until(PATIENCE, || {
        world.cluster.agents()[0]
            .mirror()
            .is_some_and(|now| !old.contains(&now.to_string()))
    }));
    let blob = format!("http://{}/v2/{name}/blobs/{digest}", world.mirror(0));
    let (status, bytes, _) = world.runtime.block_on(read(blob, None));
    assert!(status == StatusCode::OK && bytes == good);
    // what the registry showed before is forgotten: it shows a sample again
    assert_eq!(world.served(), sent + 512);
}

#[test]
fn pulls_end_whole_although_the_coordinator_and_the_host_that_fetches_die() {
    let mut world = World::new(3, &spec(48, 16), registry::Options::default(), "");
    world.registry.limit_each(Some(3 << 20));
    let name = world.name();
    let clients: Vec<_> = (0..3).map(|host| world.client(host)).collect();
    let World {
        runtime,
        registry,
        cluster,
        ..
    } = &mut world;
    let (killed, pulled) = runtime.block_on(async {
        let mut pulls = JoinSet::new();
        for (host, client) in clients.into_iter().enumerate() {
            let name = name.clone();
            pulls.spawn(async move { (host, client.pull(&name, "1").await) });
        }
        while registry.counters().bytes < 3 << 20 {
            tokio::task::yield_now().await;
        }
        let fetches = |host: &usize| says(cluster, *host, "fetching from the registry");
        let killed = (0..3).find(fetches).unwrap();
        cluster.kill_agent(killed).unwrap();
        cluster.kill_coordinator().unwrap();
        registry.limit_each(None);
        (killed, pulls.join_all().await)
    });
    for (host, pull) in pulled {
        if host == killed {
            println!("its own client: {:?}", pull.map(|_| ()));
        } else {
            world.check(&pull.unwrap());
        }
    }
}

#[test]
fn private_images_are_for_those_whom_the_registry_accepts() {
    let account = ("mac".to_owned(), "hunter2-hunter2".to_owned());
    let basic = registry::Auth::Basic {
        user: account.0.clone(),
        password: account.1.clone(),
    };
    let bearer = registry::Auth::Bearer {
        account: Some(account.clone()),
        life: Duration::from_secs(60),
        announced: None,
    };
    for auth in [basic, bearer] {
        let options = registry::Options {
            auth,
            ..registry::Options::default()
        };
        let world = World::new(1, &spec(8, 8), options, "");
        let (mirror, name) = (world.mirror(0), world.name());
        world.runtime.block_on(async {
            let client = world.client(0).with_account(&account.0, &account.1);
            let pulled = client.pull(&name, "1").await.unwrap();
            world.check(&pulled);
            let sent = world.served();
            // all of it is here now, and still nobody else gets it
            let (digest, _) = world.image.blobs.first_key_value().unwrap();
            let paths = [
                "manifests/1".to_owned(),
                format!("manifests/{}", world.image.digest),
                format!("blobs/{digest}"),
            ];
            for path in &paths {
                for headers in [
                    &[][..],
                    &[("authorization", "Bearer wrong")],
                    &[("authorization", "Basic bWFjOndyb25n")],
                ] {
                    for method in [Method::GET, Method::HEAD] {
                        let uri = format!("http://{mirror}/v2/{name}/{path}");
                        let answer = ask(method.clone(), uri, headers).await;
                        assert_eq!(
                            answer.status,
                            StatusCode::UNAUTHORIZED,
                            "{path} {headers:?}"
                        );
                        assert!(!answer.header("www-authenticate").is_empty());
                    }
                }
            }
            let wrong = world.client(0).with_account(&account.0, "wrong");
            assert!(wrong.pull(&name, "1").await.is_err());
            world.check(&client.pull(&name, "1").await.unwrap());
            assert_eq!(world.served(), sent);
        });
        let log = std::fs::read_to_string(world.cluster.agents()[0].dir.join("log")).unwrap();
        assert!(!log.contains(&account.1) && !log.contains("Bearer ") && !log.contains("Basic "));
    }
}

#[test]
fn sixty_four_clients_at_once_fit_into_memory() {
    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let bytes: Vec<u8> = (0..64u32 << 18).flat_map(u32::to_le_bytes).collect();
    let digest = world.registry.put_blob(bytes.clone().into()).unwrap();
    let blob = format!(
        "http://{}/v2/{}/blobs/{digest}",
        world.mirror(0),
        world.name()
    );
    world.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for _ in 0..64 {
            let blob = blob.clone();
            readers.spawn(async move {
                let http = legacy::Client::builder(TokioExecutor::new()).build_http();
                let request = Request::get(blob).body(Empty::<Bytes>::new()).unwrap();
                let mut body = http.request(request).await.unwrap().into_body();
                let (mut hash, mut length) = (sha2::Sha256::default(), 0);
                while let Some(frame) = body.frame().await {
                    let frame = frame.unwrap();
                    let data = frame.data_ref().unwrap();
                    sha2::Digest::update(&mut hash, data);
                    length += data.len();
                }
                (length, sha2::Digest::finalize(hash).to_vec())
            });
        }
        for (length, found) in readers.join_all().await {
            assert_eq!((length, &found[..]), (bytes.len(), &digest.as_bytes()[..]));
        }
    });
    assert_eq!(
        world.registry.counters().blobs[&digest].bytes,
        bytes.len() as u64
    );
    let peak = world.cluster.agents()[0].peak_rss();
    println!("peak memory with 64 clients of 64 MiB: {} MiB", peak >> 20);
    assert!(peak <= 200 << 20, "{peak}");
}

/// Anything may be asked; what comes back is an answer below 500 or a closed connection, and the mirror stays.
#[test]
fn any_request_is_answered_or_let_go() {
    use std::io::{Read as _, Write as _};

    use proptest::{prelude::*, test_runner::TestRunner};

    let world = World::new(1, &spec(8, 8), registry::Options::default(), "");
    let mirror = world.mirror(0);
    let name = world.name();
    let (digest, size) = world.image.blobs.first_key_value().unwrap();
    let blob = format!("/v2/{name}/blobs/{digest}");
    let path = prop_oneof![
        Just(blob.clone()),
        Just(format!("/v2/{name}/manifests/1")),
        "/v2/[a-z0-9._:/%-]{0,60}",
        "/[ -~]{0,80}",
    ];
    let header = prop_oneof![
        "Range: bytes=[0-9]{0,21}-[0-9]{0,21}",
        "Accept: [ -~]{0,60}",
        "Authorization: (Basic|Bearer|) ?[a-zA-Z0-9+/=]{0,40}",
        "If-Range: [ -~]{0,20}",
        "Content-Length: [0-9]{0,20}",
        "[A-Za-z-]{1,20}: [ -~]{0,200}",
        "[\\x00-\\x7f]{0,40}",
    ];
    let method =
        prop_oneof![3 => Just("GET".to_owned()), 1 => Just("HEAD".into()), 1 => "[A-Z]{1,10}"];
    let case = (method, path, prop::collection::vec(header, 0..6));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let ran = runner.run(&case, |(method, path, headers)| {
        let mut stream = std::net::TcpStream::connect(mirror).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n\r\n",
            headers.join("\r\n")
        );
        // fails where it was let go already. Its own side stays open: a client that closed it counts as gone, and
        // nothing would be answered
        if stream.write_all(head.as_bytes()).is_err() {
            return Ok(());
        }
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => prop_assert!(false, "{error}: {head}"),
        }
        if answer.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        let status: u16 = text.get(9..12).unwrap_or_default().parse().unwrap_or(0);
        prop_assert!((200..500).contains(&status), "{text}: {head}");
        Ok(())
    });
    ran.unwrap();
    let whole = world
        .runtime
        .block_on(read(format!("http://{mirror}{blob}"), None));
    assert_eq!((whole.0, whole.1.len() as u64), (StatusCode::OK, *size));
}

/// Whatever part is asked for, of a blob that arrives and of one that is whole, is that part.
#[test]
fn any_range_is_that_part_of_the_blob() {
    use proptest::{prelude::*, test_runner::TestRunner};

    let world = World::new(1, &spec(16, 16), registry::Options::default(), "");
    let (digest, size) = world
        .image
        .blobs
        .iter()
        .max_by_key(|(_, size)| **size)
        .unwrap();
    let good = world.image.blob(digest).unwrap();
    let blob = format!(
        "http://{}/v2/{}/blobs/{digest}",
        world.mirror(0),
        world.name()
    );
    world.registry.limit_each(Some(12 << 20));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let size = usize::try_from(*size).unwrap();
    let ran = runner.run(&(0..size, 0..size + 10, 0..3u8), |(a, b, form)| {
        let (range, start, end) = match form {
            0 => (format!("bytes={a}-"), a, size),
            1 => (format!("bytes=-{}", a + 1), size - a - 1, size),
            _ => {
                let last = a + (b % (3 << 20));
                (format!("bytes={a}-{last}"), a, (last + 1).min(size))
            }
        };
        let (status, bytes, broken) = world.runtime.block_on(read(blob.clone(), Some(&range)));
        prop_assert!(
            status == StatusCode::PARTIAL_CONTENT && !broken,
            "{range}: {status}"
        );
        prop_assert!(bytes == good[start..end], "{range}");
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn a_client_that_can_fall_back_is_told_to_and_no_answer_is_made_up() {
    for (set, status) in [("auto", 404), ("redirect", 307)] {
        let settings =
            format!("[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 1\non_trouble = '{set}'\n");
        let mut world = World::new(1, &spec(8, 8), registry::Options::default(), &settings);
        let (mirror, origin) = (world.mirror(0), world.registry.addr());
        let World {
            runtime, registry, ..
        } = &mut world;
        runtime.block_on(async {
            registry.go_down().await;
            let path = format!("/v2/{NAME}/manifests/1");
            let answer = ask(
                Method::GET,
                format!("http://{mirror}{path}?ns={origin}"),
                &[],
            )
            .await;
            assert_eq!(answer.status.as_u16(), status, "{set}");
            if status == 307 {
                assert_eq!(answer.header("location"), format!("http://{origin}{path}"));
            } else {
                assert_eq!(answer.code(), "UNAVAILABLE");
            }
        });
    }
}

#[test]
fn a_mirror_with_a_token_answers_nobody_without_it_and_counts_what_it_does() {
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    std::fs::write(&token, "open-sesame\n").unwrap();
    let settings = format!(
        "[mirror]\nlisten = '127.0.0.1:0'\ntoken_file = '{}'\n",
        token.display()
    );
    let world = World::new(1, &spec(8, 8), registry::Options::default(), &settings);
    let (mirror, name) = (world.mirror(0), world.name());
    let admin = world.cluster.agents()[0].admin();
    world.runtime.block_on(async {
        let manifest = format!("http://{mirror}/v2/{name}/manifests/1");
        for headers in [
            &[][..],
            &[("authorization", "Bearer open")],
            &[("authorization", "Basic bm9ib2R5Om9wZW4=")],
        ] {
            let answer = ask(Method::GET, manifest.clone(), headers).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
            assert!(answer.header("www-authenticate").starts_with("Basic "));
        }
        let bearer = [("authorization", "Bearer open-sesame")];
        let answer = ask(Method::GET, manifest, &bearer).await;
        assert_eq!(answer.status, StatusCode::OK);
        let client = world.client(0).with_account("anybody", "open-sesame");
        world.check(&client.pull(&name, "1").await.unwrap());
        let metrics = ask(Method::GET, format!("http://{admin}/metrics"), &[]).await;
        let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
        for line in [
            "mirror_requests_total{what=\"manifest\",result=\"denied\"} ",
            "mirror_requests_total{what=\"blob\",result=\"ok\"} ",
            "mirror_blobs_total{outcome=\"miss\"} ",
            "mirror_first_byte_seconds_count ",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
    });
    let log = std::fs::read_to_string(world.cluster.agents()[0].dir.join("log")).unwrap();
    assert!(!log.contains("sesame"));
}
