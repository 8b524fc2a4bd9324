//! Whom the client trusts: certificates, hosts that a registry redirects to, and where credentials may go.

use super::*;

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
    let world = world_with(Options::tls()).await;
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
    let world = world_with(Options::tls()).await;
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
