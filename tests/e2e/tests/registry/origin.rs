//! The registry client against a registry that misbehaves.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod credentials;
mod manifests;
mod proxies;
mod trust;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use e2e::{
    oci,
    registry::{Auth, Fault, Misbehaviour, Options, Registry, Target},
};
use http::HeaderValue;
use oci_client::{RegistryOperation, errors::OciDistributionError};
use origin::{BlobStream, Client, Config, Credentials, Grant, OriginError, PlainHttp, Repository};
use proto::{Digest, Version, image::MANIFEST_TYPE};

const NAME: &str = "org/image";
const SIZE: usize = 1 << 20;

struct World {
    registry: Registry,
    repository: Repository,
    blob: Bytes,
    digest: Digest,
    manifest: Digest,
}

async fn world(auth: Auth) -> World {
    world_with(Options {
        auth,
        ..Options::default()
    })
    .await
}

async fn world_with(options: Options) -> World {
    let registry = Registry::start(options).await.unwrap();
    let blob: Bytes = (0..SIZE)
        .map(|at| (at * 31 % 251).to_le_bytes()[0])
        .collect();
    let digest = registry.put_blob(blob.clone()).unwrap();
    let manifest = registry.put_manifest(NAME, "1", MANIFEST_TYPE, "{\"a\": 1}".into());
    let repository = repository(&registry, registry.credentials());
    World {
        registry,
        repository,
        blob,
        digest,
        manifest,
    }
}

fn repository(registry: &Registry, credentials: Credentials) -> Repository {
    registry
        .client()
        .repository(&registry.reference(NAME, "1"), credentials)
        .unwrap()
}

/// A repository seen by a client that gives up soon.
fn hasty(registry: &Registry) -> Repository {
    let client = Client::new(Config {
        idle_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(200),
        plain_http: PlainHttp::Everywhere,
        ..Config::default()
    })
    .unwrap();
    client
        .repository(&registry.reference(NAME, "1"), registry.credentials())
        .unwrap()
}

async fn rest(mut stream: BlobStream) -> (Vec<u8>, Option<OriginError>) {
    let mut bytes = Vec::new();
    loop {
        match stream.piece().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return (bytes, None),
            Err(error) => {
                assert!(matches!(stream.piece().await, Ok(None)), "over is over");
                return (bytes, Some(error));
            }
        }
    }
}

impl World {
    async fn fetch(&self, start: u64) -> Result<(Vec<u8>, Option<OriginError>), OriginError> {
        let stream = self
            .repository
            .blob(&self.digest, start, SIZE as u64)
            .await?;
        Ok(rest(stream).await)
    }

    async fn whole(&self) {
        let (bytes, error) = self.fetch(0).await.unwrap();
        assert_eq!(error, None);
        assert_eq!(bytes, self.blob);
    }

    fn script(&self, what: Misbehaviour) {
        self.registry
            .script(Fault::once(Target::Blob(self.digest), what));
    }
}

fn bearer(life: Duration, announced: Option<Duration>) -> Auth {
    Auth::Bearer {
        account: Some(("mac".to_owned(), "secret".to_owned())),
        life,
        announced,
    }
}

const LONG: Duration = Duration::from_secs(300);

#[tokio::test]
async fn manifests_and_blobs_come_without_credentials() {
    let world = world(Auth::Open).await;
    let version = world.repository.version().clone();
    let manifest = world.repository.manifest(&version).await.unwrap();
    assert_eq!(manifest.digest, world.manifest);
    assert_eq!(manifest.media_type, MANIFEST_TYPE);
    assert_eq!(&manifest.bytes[..], b"{\"a\": 1}");
    assert_eq!(
        world.repository.resolve(&version).await.unwrap(),
        world.manifest
    );
    let by_digest = Version::Digest(world.manifest);
    assert_eq!(
        world.repository.manifest(&by_digest).await.unwrap(),
        manifest
    );
    world.whole().await;
    let counters = world.registry.counters();
    assert_eq!(counters.bytes, SIZE as u64);
    assert_eq!(counters.blobs[&world.digest].requests, 1);
    assert_eq!(counters.connections, 1, "one connection serves them all");
    world.registry.stop().await;
}

#[tokio::test]
async fn a_range_starts_where_it_should() {
    let world = world(Auth::Open).await;
    for start in [1, 1000, SIZE - 1] {
        let (bytes, error) = world.fetch(start as u64).await.unwrap();
        assert_eq!(error, None);
        assert_eq!(bytes, world.blob[start..]);
    }
    let before = world.registry.counters().requests;
    let (bytes, error) = world.fetch(SIZE as u64).await.unwrap();
    assert_eq!(
        (bytes.len(), error),
        (0, None),
        "nothing is left to ask for"
    );
    assert_eq!(world.registry.counters().requests, before);
    let error = world.fetch(SIZE as u64 + 1).await.unwrap_err();
    assert!(matches!(error, OriginError::Range { .. }), "{error}");
}

/// Asks for a part, and reads it.
async fn part(world: &World, part: Range<usize>) -> (Vec<u8>, Option<OriginError>, u64) {
    let part = part.start as u64..part.end as u64;
    let stream = world
        .repository
        .blob_part(&world.digest, part, SIZE as u64)
        .await
        .unwrap();
    let end = stream.end();
    let (bytes, error) = rest(stream).await;
    (bytes, error, end)
}

#[tokio::test]
async fn a_part_ends_where_it_should_and_leaves_its_connection_to_the_next() {
    let world = world(Auth::Open).await;
    let mut all = 0;
    for of in [0..1, 5..100_000, 100_000..SIZE - 1, SIZE - 1..SIZE] {
        let wanted = (world.blob[of.clone()].to_vec(), None, of.end as u64);
        all += wanted.0.len() as u64;
        assert!(part(&world, of.clone()).await == wanted, "{of:?}");
    }
    let counters = world.registry.counters();
    assert_eq!((counters.bytes, counters.connections), (all, 1));
    // nothing is asked for an empty part, and one beyond the blob's end is refused
    assert_eq!(part(&world, 7..7).await, (Vec::new(), None, 7));
    assert_eq!(world.registry.counters().blob_requests, 4);
    let (start, end) = (9, 8);
    for beyond in [0..SIZE as u64 + 1, start..end] {
        let asked = world
            .repository
            .blob_part(&world.digest, beyond, SIZE as u64);
        let error = asked.await.unwrap_err();
        assert!(matches!(error, OriginError::Range { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_ignores_the_end_of_a_part_is_left_there() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::IgnoreEnd);
    let (bytes, error, end) = part(&world, 1000..200_000).await;
    assert!(bytes == world.blob[1000..200_000], "other bytes");
    assert_eq!((error, end), (None, 200_000));
}

#[tokio::test]
async fn a_registry_that_gives_no_parts_gives_the_whole_blob() {
    for what in [
        Misbehaviour::IgnoreRange,
        Misbehaviour::RefuseRange(416),
        Misbehaviour::RefuseRange(400),
    ] {
        for start in [0, 1000] {
            let world = world(Auth::Open).await;
            let fault = Fault::always(Target::Blob(world.digest), what.clone());
            world.registry.script(fault);
            let (bytes, error, end) = part(&world, start..200_000).await;
            assert!(bytes == world.blob[start..], "{what:?} {start}");
            assert_eq!((error, end), (None, SIZE as u64), "{what:?} {start}");
        }
    }
}

#[tokio::test]
async fn a_part_that_is_cut_short_is_told() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::ShortRange(500));
    let (bytes, error, _) = part(&world, 1000..200_000).await;
    assert!(bytes == world.blob[1000..1500], "other bytes");
    let error = error.unwrap();
    assert!(
        matches!(
            error,
            OriginError::Truncated {
                received: 1500,
                expected: 200_000,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_ignored_range_is_skipped_and_counted() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::IgnoreRange);
    let mut stream = world
        .repository
        .blob(&world.digest, 700_000, SIZE as u64)
        .await
        .unwrap();
    assert_eq!(stream.position(), 700_000);
    let mut bytes = Vec::new();
    while let Some(piece) = stream.piece().await.unwrap() {
        bytes.extend_from_slice(&piece);
        assert_eq!(stream.position(), 700_000 + bytes.len() as u64);
    }
    assert_eq!(bytes, world.blob[700_000..]);
    assert_eq!(stream.bytes_received(), SIZE as u64);
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused_and_all_of_the_blob_asked_for() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::ShiftRange(5));
    let (bytes, error) = world.fetch(100).await.unwrap();
    assert!(bytes == world.blob[100..], "other bytes");
    assert_eq!(error, None);
    assert_eq!(world.registry.counters().blob_requests, 2);
}

#[tokio::test]
async fn a_range_beyond_the_registrys_blob_is_told() {
    let world = world(Auth::Open).await;
    let error = world
        .repository
        .blob(&world.digest, SIZE as u64 + 5, 2 * SIZE as u64)
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::SizeMismatch { .. }), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused() {
    let world = world(Auth::Open).await;
    for size in [SIZE as u64 - 1, SIZE as u64 + 1] {
        for start in [0, 10] {
            let error = world
                .repository
                .blob(&world.digest, start, size)
                .await
                .unwrap_err();
            assert!(matches!(error, OriginError::SizeMismatch { .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_continued_where_it_broke() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::CloseAfter(300_000));
    let (bytes, error) = world.fetch(0).await.unwrap();
    assert_eq!(
        error,
        Some(OriginError::Truncated {
            what: format!("blob {} of {}", world.digest, world.repository.name()),
            received: bytes.len() as u64,
            expected: SIZE as u64
        })
    );
    assert!(error.unwrap().is_retryable());
    assert!(bytes.len() <= 300_000);
    let (more, error) = world.fetch(bytes.len() as u64).await.unwrap();
    assert_eq!(error, None);
    assert_eq!([bytes, more].concat(), world.blob);
}

#[tokio::test]
async fn an_answer_without_a_length_is_bounded_by_the_manifests_size() {
    let world = world(Auth::Open).await;
    world.script(Misbehaviour::Chunked);
    world.whole().await;
    world.script(Misbehaviour::Overrun(1));
    let (bytes, error) = world.fetch(0).await.unwrap();
    assert!(bytes.len() <= SIZE);
    assert!(
        matches!(error, Some(OriginError::TooLarge { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_ends_in_a_timeout() {
    let world = world(Auth::Open).await;
    let repository = hasty(&world.registry);
    world.script(Misbehaviour::Silence);
    let error = repository
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error}");
    world.script(Misbehaviour::StallAfter(100_000));
    let stream = repository
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap();
    let (bytes, error) = rest(stream).await;
    assert_eq!(bytes, world.blob[..100_000]);
    let error = error.unwrap();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error}");
    assert!(error.is_retryable());
}

/// Answers each request so, one after the other, and then sends a byte of the body every 50 ms.
async fn trickle(listener: &tokio::net::TcpListener, head: &str) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let head = format!("HTTP/1.1 {head}\r\ncontent-length: 4000\r\n\r\n");
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = [0; 4_096];
        assert!(connection.read(&mut request).await.unwrap() > 0);
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut every = tokio::time::interval(Duration::from_millis(50));
        while connection.write_all(b"x").await.is_ok() {
            every.tick().await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_trickles_ends() {
    for (head, retryable) in [("200 OK", true), ("404 Not Found", false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let client = Client::new(Config {
            idle_timeout: Duration::from_millis(300),
            plain_http: PlainHttp::Everywhere,
            ..Config::default()
        })
        .unwrap();
        let reference = format!("{addr}/{NAME}:1").parse().unwrap();
        let repository = client
            .repository(&reference, Credentials::Anonymous)
            .unwrap();
        let began = Instant::now();
        let tag = repository.version();
        let asked = tokio::select! {
            () = trickle(&listener, head) => unreachable!("it answers for ever"),
            asked = repository.manifest(tag) => asked,
        };
        let error = asked.unwrap_err();
        assert_eq!(error.is_retryable(), retryable, "{error}");
        // all of it would take more than three minutes
        assert!(began.elapsed() < Duration::from_secs(5), "{head}: {error}");
    }
}

#[tokio::test]
async fn a_hangup_is_a_broken_connection() {
    let world = world(Auth::Open).await;
    // Twice, since a connection that was idle is allowed to be gone, and is replaced once.
    world.registry.script(Fault::always(
        Target::Blob(world.digest),
        Misbehaviour::Hangup,
    ));
    let error = world.fetch(0).await.unwrap_err();
    assert!(matches!(error, OriginError::Connection { .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn throttling_says_when_to_come_back() {
    let world = world(Auth::Open).await;
    for (status, text, expected) in [
        (429, Some("7"), Some(Duration::from_secs(7))),
        (429, None, None),
        (503, Some("1"), Some(Duration::from_secs(1))),
        (
            429,
            Some("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::ZERO),
        ),
    ] {
        world.script(Misbehaviour::Status {
            status,
            retry_after: text.map(str::to_owned),
        });
        let error = world.fetch(0).await.unwrap_err();
        assert!(matches!(error, OriginError::Throttled { .. }), "{error}");
        assert_eq!(error.retry_after(), expected);
        assert!(error.is_retryable());
    }
    for status in [500, 503] {
        world.script(Misbehaviour::status(status));
        let error = world.fetch(0).await.unwrap_err();
        assert!(matches!(error, OriginError::Status { .. }), "{error}");
        assert!(error.is_retryable() && error.to_string().contains("SCRIPTED"));
    }
    world.whole().await;
}

#[tokio::test]
async fn a_registry_that_goes_down_in_the_middle_comes_back_on_its_port() {
    let mut world = world(Auth::Open).await;
    let addr = world.registry.addr();
    world.script(Misbehaviour::StallAfter(200_000));
    let mut stream = world
        .repository
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap();
    let mut bytes = Vec::new();
    while bytes.len() < 200_000 {
        bytes.extend_from_slice(&stream.piece().await.unwrap().unwrap());
    }
    world.registry.go_down().await;
    let error = stream.piece().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    let error = world.fetch(200_000).await.unwrap_err();
    assert!(matches!(error, OriginError::Connection { .. }), "{error}");
    world.registry.come_back().await;
    assert_eq!(world.registry.addr(), addr);
    let (more, error) = world.fetch(200_000).await.unwrap();
    assert_eq!(error, None);
    assert_eq!([bytes, more].concat(), world.blob);
}

#[tokio::test]
async fn rates_hold() {
    let world = world(Auth::Open).await;
    let rate = 4 * SIZE as u64;
    world.registry.limit(Some(rate));
    let started = Instant::now();
    world.whole().await;
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(240), "{took:?} for a quarter");
    world.registry.limit(None);
    world.registry.limit_each(Some(rate));
    let started = Instant::now();
    let (one, other) = tokio::join!(world.fetch(0), world.fetch(0));
    assert_eq!((one.unwrap().1, other.unwrap().1), (None, None));
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(240), "{took:?} for a quarter");
    assert_eq!(world.registry.counters().most_at_once, 2);
}

#[tokio::test]
async fn a_head_that_is_refused_says_nothing_of_what_get_gives() {
    let world = world(Auth::Open).await;
    let status = |status| Misbehaviour::status(status);
    let refused = [403, 404, 405, 500, 501, 503].map(status);
    // and a HEAD that names no size
    for what in refused.into_iter().chain([Misbehaviour::Chunked]) {
        let head = Fault::always(Target::BlobHead(world.digest), what.clone());
        let fault = world.registry.script(head);
        let size = world.repository.blob_size(&world.digest).await;
        assert_eq!(size.unwrap(), SIZE as u64, "{what:?}");
        assert!(world.registry.clear(fault) > 0, "{what:?}");
    }
}

#[tokio::test]
async fn a_part_is_these_bytes_alone_whatever_a_registry_makes_of_ranges() {
    let world = world(Auth::Open).await;
    let (start, length, size) = (SIZE as u64 / 2, 512, SIZE as u64);
    let part = |start, length| world.repository.part(&world.digest, start, length, size);
    let wanted = world.blob.slice(SIZE / 2..SIZE / 2 + length);
    let sent = || world.registry.counters().blobs[&world.digest].bytes;
    assert_eq!(part(start, length).await.unwrap(), wanted);
    assert_eq!(sent(), 512);
    let ends = [(0, 1), (size - 3, 3), (size, 0)];
    for (start, length) in ends {
        let given = part(start, length).await.unwrap();
        let at = usize::try_from(start).unwrap();
        assert_eq!(given, world.blob[at..at + length]);
    }
    let beyond = part(size - 3, 4).await;
    assert!(matches!(beyond, Err(OriginError::Range { .. })));
    for what in [
        Misbehaviour::IgnoreRange,
        Misbehaviour::RefuseRange(416),
        Misbehaviour::ShiftRange(1),
        Misbehaviour::ContentRange(None),
    ] {
        world.script(what.clone());
        assert_eq!(part(start, length).await.unwrap(), wanted, "{what:?}");
    }
}
