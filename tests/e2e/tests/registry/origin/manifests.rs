//! Manifests: by tag and by digest, as the registry has them, and as it misrepresents them.

use super::*;

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
    world
        .registry
        .script(Fault::once(Target::Manifests, Misbehaviour::status(405)));
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
async fn a_registry_that_takes_one_type_at_a_time_is_asked_for_one() {
    let world = world(Auth::Open).await;
    let refused = |times| {
        let unacceptable = Misbehaviour::status(406);
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

#[tokio::test]
async fn what_another_client_pushes_is_what_comes_back() {
    let world = world(bearer(LONG, None)).await;
    let (client, credentials) = (oci::client(), world.registry.credentials());
    let reference = oci::reference(&world.registry.reference(NAME, "2"));
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
