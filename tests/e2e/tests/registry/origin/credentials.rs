//! What a registry asks of clients: passwords, and tokens that are fetched, expire and are handed out.

use super::*;

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
        Misbehaviour::come_back(429, "3"),
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
    world
        .registry
        .script(Fault::once(Target::Tokens, Misbehaviour::status(404)));
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
    let reference = oci::reference(&world.registry.reference(NAME, "2"));
    let client = oci::client();
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
