//! The registry client and the generator against Debian's docker-registry.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and say whether they ran"
)]

use std::time::Instant;

use e2e::{
    docker_registry::{Auth, DockerRegistry},
    image::ImageSpec,
};
use origin::{Credentials, Grant, OriginError};
use proto::{Digest, Layout};

async fn there_and_back(registry: &DockerRegistry) {
    let directory = tempfile::tempdir().unwrap();
    let image = ImageSpec::default().generate(directory.path()).unwrap();
    let reference = registry.reference("parbake/image", "1");
    let repository = registry
        .client()
        .repository(&reference, registry.credentials())
        .unwrap();
    let started = Instant::now();
    image
        .push(&reference, &registry.credentials())
        .await
        .unwrap();
    println!("pushed in {:?}", started.elapsed());

    let version = repository.version();
    let digest = repository.resolve(version).await.unwrap();
    assert_eq!(digest, image.digest);
    for version in [version, &digest.into()] {
        let manifest = repository.manifest(version).await.unwrap();
        assert_eq!(manifest.bytes, image.manifest);
        assert_eq!(manifest.digest, digest);
    }
    let layout = Layout::parse(&image.manifest, &digest).unwrap();
    assert_eq!(layout.blob_bytes(), image.blob_bytes());
    for (digest, size) in &image.blobs {
        let bytes = image.blob(digest).unwrap();
        for start in [0, 1, size / 2, size - 1] {
            let mut stream = repository.blob(digest, start, *size).await.unwrap();
            let mut got = Vec::new();
            while let Some(piece) = stream.piece().await.unwrap() {
                got.extend_from_slice(&piece);
            }
            let from = usize::try_from(start).unwrap();
            assert!(got == bytes[from..], "{digest} from {start}");
        }
    }
    let missing = Digest::of(b"nowhere");
    let error = repository.blob(&missing, 0, 1).await.unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
    let error = repository
        .blob(layout.layers()[0].raw.as_ref().unwrap(), 0, 1)
        .await
        .unwrap_err();
    assert!(matches!(error, OriginError::NotFound { .. }), "{error}");
}

#[tokio::test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
async fn an_anonymous_registry_gives_back_what_it_got() {
    let registry = DockerRegistry::start(Auth::Anonymous).await.unwrap();
    there_and_back(&registry).await;
    let reference = registry.reference("parbake/image", "1");
    let repository = registry
        .client()
        .repository(&reference, Credentials::Anonymous)
        .unwrap();
    let grant = repository.authorization_for().await;
    assert_eq!(grant, Ok(Grant::Open));
}

#[tokio::test]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
async fn a_registry_with_htpasswd_gives_back_what_it_got() {
    let registry = DockerRegistry::start(Auth::Htpasswd).await.unwrap();
    there_and_back(&registry).await;
    let reference = registry.reference("parbake/image", "1");
    let anonymous = registry
        .client()
        .repository(&reference, Credentials::Anonymous)
        .unwrap();
    let error = anonymous.resolve(anonymous.version()).await.unwrap_err();
    assert!(matches!(error, OriginError::Unauthorised { .. }), "{error}");
}
