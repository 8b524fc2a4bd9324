//! The registry client against a registry that misbehaves.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod proxies;

use std::{
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
use origin::{
    BlobStream, Client, Config, Credentials, Grant, OriginError, PlainHttp, Repository, Version,
};
use proto::{Digest, image::MANIFEST_TYPE};

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
        world.script(Misbehaviour::Status {
            status,
            retry_after: None,
        });
        let error = world.fetch(0).await.unwrap_err();
        assert!(matches!(error, OriginError::Status { .. }), "{error}");
        assert!(error.is_retryable() && error.to_string().contains("SCRIPTED"));
    }
    world.whole().await;
}

#[tokio::test]
async fn what_does_not_exist_is_named() {
    let world = world(Auth::Open).await;
    let missing = Digest::of(b"nowhere");
    let error = world.repository.blob(&missing, 0, 1).await.unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&missing.to_string()));
    assert!(!error.is_retryable());
    let tag = Version::Tag("other".parse().unwrap());
    for error in [
        world.repository.manifest(&tag).await.unwrap_err(),
        world.repository.resolve(&tag).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("org/image:other"), "{error}");
        assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let world = world(Auth::Open).await;
    let tag = world.repository.version();
    let by_digest = Version::Digest(world.manifest);
    let corrupt = Fault::always(Target::Manifests, Misbehaviour::CorruptAt(2));
    let fault = world.registry.script(corrupt);
    for version in [tag, &by_digest] {
        let error = world.repository.manifest(version).await.unwrap_err();
        assert!(
            matches!(error, OriginError::DigestMismatch { wanted, .. } if wanted == world.manifest),
            "{error}"
        );
    }
    world.registry.clear(fault);
    // The right bytes, announced as others.
    let other = Digest::of(b"other");
    world.registry.script(Fault::always(
        Target::Manifests,
        Misbehaviour::AnnounceDigest(other),
    ));
    let error = world.repository.manifest(tag).await.unwrap_err();
    assert!(
        matches!(error, OriginError::DigestMismatch { wanted, .. } if wanted == other),
        "{error}"
    );
    let error = world.repository.resolve(&by_digest).await.unwrap_err();
    assert!(
        matches!(error, OriginError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn resolving_falls_back_to_the_manifest_itself() {
    let world = world(Auth::Open).await;
    world.registry.script(Fault::once(
        Target::Manifests,
        Misbehaviour::Status {
            status: 405,
            retry_after: None,
        },
    ));
    let tag = world.repository.version();
    assert_eq!(world.repository.resolve(tag).await.unwrap(), world.manifest);
    assert_eq!(world.registry.counters().manifest_requests, 2);
}

#[tokio::test]
async fn a_manifest_that_never_ends_is_cut() {
    let world = world(Auth::Open).await;
    let huge = Bytes::from(vec![b' '; origin::MAX_MANIFEST_BYTES + 1]);
    world.registry.put_manifest(NAME, "1", MANIFEST_TYPE, huge);
    let tag = world.repository.version();
    let error = world.repository.manifest(tag).await.unwrap_err();
    assert!(matches!(error, OriginError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for() {
    let auth = Auth::Basic {
        user: "mac".to_owned(),
        password: "secret".to_owned(),
    };
    let world = world(auth).await;
    world.whole().await;
    world.whole().await;
    assert_eq!(
        world.registry.counters().refusals,
        1,
        "asked for once, remembered then"
    );
    for credentials in [
        Credentials::Anonymous,
        Credentials::Basic {
            user: "mac".to_owned(),
            password: "wrong".into(),
        },
    ] {
        let other = repository(&world.registry, credentials);
        let error = other.blob(&world.digest, 0, SIZE as u64).await.unwrap_err();
        assert!(matches!(error, OriginError::Unauthorised { .. }), "{error}");
        assert!(!error.to_string().contains("wrong "), "{error}");
        assert!(!error.is_retryable());
    }
    let grant = world.repository.authorization_for().await;
    assert!(matches!(grant, Ok(Grant::Password { .. })));
}

#[tokio::test]
async fn a_token_is_fetched_once_for_many() {
    let world = world(bearer(LONG, Some(LONG))).await;
    let world = Arc::new(world);
    let mut fetches = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let world = Arc::clone(&world);
        fetches.spawn(async move { world.whole().await });
    }
    fetches.join_all().await;
    assert_eq!(world.registry.counters().token_requests, 1);
    let wrong = Credentials::Basic {
        user: "mac".to_owned(),
        password: "hunter2".into(),
    };
    let error = repository(&world.registry, wrong)
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::Unauthorised { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_registry_that_wants_tokens_from_anybody_gets_one() {
    let auth = Auth::Bearer {
        account: None,
        life: LONG,
        announced: None,
    };
    world(auth).await.whole().await;
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_replaced() {
    let world = world(bearer(LONG, Some(LONG))).await;
    world.script(Misbehaviour::CloseAfter(400_000));
    let (bytes, error) = world.fetch(0).await.unwrap();
    assert!(matches!(error, Some(OriginError::Truncated { .. })));
    world.registry.revoke_tokens();
    let (more, error) = world.fetch(bytes.len() as u64).await.unwrap();
    assert_eq!(error, None);
    assert_eq!([bytes, more].concat(), world.blob);
    let counters = world.registry.counters();
    assert_eq!(counters.token_requests, 2);
    assert_eq!(counters.refusals, 2);
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires() {
    // Good for an instant only, by its own account: each request needs a new one, and none is refused.
    let life = Duration::from_secs(1);
    let world = world(bearer(LONG, Some(life))).await;
    world.whole().await;
    let first = world.registry.counters();
    let fresh = Instant::now();
    while fresh.elapsed() < life {
        world.whole().await;
    }
    let counters = world.registry.counters();
    assert_eq!(counters.refusals, first.refusals);
    assert!(counters.token_requests > first.token_requests);
}

#[tokio::test]
async fn a_token_endpoint_in_trouble_is_told() {
    let world = world(bearer(LONG, None)).await;
    world.registry.script(Fault::once(
        Target::Tokens,
        Misbehaviour::Status {
            status: 429,
            retry_after: Some("3".to_owned()),
        },
    ));
    let error = world.fetch(0).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)), "{error}");
    assert!(error.to_string().contains("token from"), "{error}");
    world.registry.script(Fault::once(
        Target::Tokens,
        Misbehaviour::RedirectTo("http://127.0.0.1:1/token".to_owned()),
    ));
    let error = world.fetch(0).await.unwrap_err();
    assert!(matches!(error, OriginError::Redirect { .. }), "{error}");
    // the blob is there: only the way to it isn't
    world.registry.script(Fault::once(
        Target::Tokens,
        Misbehaviour::Status {
            status: 404,
            retry_after: None,
        },
    ));
    let error = world.fetch(0).await.unwrap_err();
    assert!(matches!(error, OriginError::Malformed { .. }), "{error}");
    assert!(error.to_string().contains("has no tokens there"), "{error}");
    world.whole().await;
}

#[tokio::test]
async fn a_handed_out_token_pulls_and_does_not_push() {
    let world = world(bearer(LONG, Some(Duration::from_secs(120)))).await;
    let grant = world.repository.authorization_for().await;
    let Ok(Grant::Token { header, life }) = grant else {
        panic!("{grant:?}");
    };
    assert_eq!(life, Duration::from_secs(120));
    let credentials = Credentials::Header(header);
    let auth = oci::auth(&credentials);
    let host = repository(&world.registry, credentials);
    let stream = host.blob(&world.digest, 0, SIZE as u64).await.unwrap();
    assert_eq!(rest(stream).await.1, None);
    let (client, reference) = (oci::client(), world.registry.reference(NAME, "2"));
    let push = RegistryOperation::Push;
    client.auth(&reference, &auth, push).await.unwrap();
    let kind = HeaderValue::from_static(MANIFEST_TYPE);
    let pushed = client.push_manifest_raw(&reference, "{}", kind).await;
    assert!(
        matches!(
            &pushed,
            Err(OciDistributionError::ServerError { code: 401, .. })
        ),
        "{pushed:?}"
    );
    world.registry.revoke_tokens();
    let error = host.blob(&world.digest, 0, SIZE as u64).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorised { .. }), "{error}");
}

#[tokio::test]
async fn an_open_registry_needs_no_handed_out_token() {
    let world = world(Auth::Open).await;
    let grant = world.repository.authorization_for().await;
    assert_eq!(grant, Ok(Grant::Open));
}

#[tokio::test]
async fn a_realm_without_tls_gets_no_credentials() {
    let world = world(bearer(LONG, None)).await;
    let elsewhere = format!("{}", world.registry.addr());
    // TLS everywhere but at the registry itself, whose realm is the same host: allowed. Under another name it isn't.
    let client = |hosts: &[&str]| {
        Client::new(Config {
            plain_http: PlainHttp::Hosts(hosts.iter().map(|host| (*host).to_owned()).collect()),
            ..Config::default()
        })
        .unwrap()
    };
    let port = world.registry.addr().port();
    let reference = format!("localhost:{port}/{NAME}:1").parse().unwrap();
    let refused = client(&["localhost"])
        .repository(&reference, world.registry.credentials())
        .unwrap();
    let error = refused
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, OriginError::Unauthorised { cause, .. } if cause.contains("HTTPS")),
        "{error}"
    );
    assert_eq!(world.registry.counters().token_requests, 0);
    let allowed = client(&["localhost", &elsewhere])
        .repository(&reference, world.registry.credentials())
        .unwrap();
    let stream = allowed.blob(&world.digest, 0, SIZE as u64).await.unwrap();
    assert_eq!(rest(stream).await.1, None);
}

#[tokio::test]
async fn a_redirect_does_not_take_the_credentials_along() {
    for auth in [
        Auth::Basic {
            user: "mac".to_owned(),
            password: "secret".to_owned(),
        },
        bearer(LONG, None),
    ] {
        let world = world(auth).await;
        world.registry.script(Fault::always(
            Target::Blobs,
            Misbehaviour::RedirectElsewhere,
        ));
        world.whole().await;
        let (bytes, error) = world.fetch(500_000).await.unwrap();
        assert_eq!(error, None);
        assert_eq!(bytes, world.blob[500_000..]);
        assert_eq!(world.registry.counters().leaks, 0);
    }
}

#[tokio::test]
async fn redirects_end() {
    let world = world(Auth::Open).await;
    world
        .registry
        .script(Fault::times(Target::Blobs, Misbehaviour::RedirectLoop, 5));
    world.whole().await;
    world
        .registry
        .script(Fault::always(Target::Blobs, Misbehaviour::RedirectLoop));
    let error = world.fetch(0).await.unwrap_err();
    assert!(matches!(error, OriginError::Redirect { .. }), "{error}");
}

#[tokio::test]
async fn redirects_to_plain_http_or_nowhere_are_refused() {
    let world = world_with(Options {
        tls: true,
        ..Options::default()
    })
    .await;
    let pem = world.registry.certificate_pem().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    let client = Client::new(Config {
        extra_roots: origin::roots_from_pem(&path).unwrap(),
        ..Config::default()
    })
    .unwrap();
    let reference = world.registry.reference(NAME, "1");
    let repository = client
        .repository(&reference, Credentials::Anonymous)
        .unwrap();
    let stream = repository
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap();
    assert_eq!(rest(stream).await.1, None);
    for to in ["http://127.0.0.1:9/x", "file:///etc/passwd", "https://u@h/"] {
        world.script(Misbehaviour::RedirectTo(to.to_owned()));
        let error = repository
            .blob(&world.digest, 0, SIZE as u64)
            .await
            .unwrap_err();
        assert!(matches!(error, OriginError::Redirect { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_unknown_certificate_is_not_trusted() {
    let world = world_with(Options {
        tls: true,
        ..Options::default()
    })
    .await;
    let client = Client::new(Config::default()).unwrap();
    let error = client
        .repository(&world.registry.reference(NAME, "1"), Credentials::Anonymous)
        .unwrap()
        .blob(&world.digest, 0, SIZE as u64)
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_registry_without_tls_is_told_from_one_that_is_down() {
    let mut world = world(Auth::Open).await;
    let client = Client::new(Config::default()).unwrap();
    let repository = client
        .repository(&world.registry.reference(NAME, "1"), Credentials::Anonymous)
        .unwrap();
    let error = repository.blob(&world.digest, 0, 1).await.unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error}");
    world.registry.go_down().await;
    let error = repository.blob(&world.digest, 0, 1).await.unwrap_err();
    assert!(matches!(error, OriginError::Connection { .. }), "{error}");
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
async fn what_another_client_pushes_is_what_comes_back() {
    let world = world(bearer(LONG, None)).await;
    let (client, credentials) = (oci::client(), world.registry.credentials());
    let reference = world.registry.reference(NAME, "2");
    let auth = oci::auth(&credentials);
    let push = RegistryOperation::Push;
    client.auth(&reference, &auth, push).await.unwrap();
    let data = Bytes::from(vec![7; 300_000]);
    let digest = Digest::of(&data);
    let name = digest.to_string();
    assert!(!client.blob_exists(&reference, &name).await.unwrap());
    let pushed = client.push_blob(&reference, data.clone(), &name).await;
    pushed.unwrap();
    assert!(client.blob_exists(&reference, &name).await.unwrap());
    let stream = world.repository.blob(&digest, 0, 300_000).await.unwrap();
    assert_eq!(rest(stream).await, (data.to_vec(), None));
    let kind = HeaderValue::from_static(MANIFEST_TYPE);
    let pushed = client.push_manifest_raw(&reference, "{}", kind).await;
    pushed.unwrap();
    let tag = Version::Tag("2".parse().unwrap());
    let resolved = world.repository.resolve(&tag).await.unwrap();
    assert_eq!(resolved, Digest::of(b"{}"));
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
    let status = |status| Misbehaviour::Status {
        status,
        retry_after: None,
    };
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

#[tokio::test]
async fn a_registry_that_takes_one_type_at_a_time_is_asked_for_one() {
    let world = world(Auth::Open).await;
    let refused = |times| {
        let unacceptable = Misbehaviour::Status {
            status: 406,
            retry_after: None,
        };
        Fault::times(Target::Manifests, unacceptable, times)
    };
    let version = world.repository.version().clone();
    for times in 1..=3 {
        world.registry.script(refused(times));
        world.repository.manifest(&version).await.unwrap();
    }
    world.registry.script(refused(9));
    let error = world.repository.manifest(&version).await.unwrap_err();
    assert!(error.to_string().contains("406"), "{error}");
}
