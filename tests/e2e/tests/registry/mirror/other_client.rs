//! A registry's client of other people, through the mirror.

use std::collections::BTreeMap;

use e2e::oci;
use oci_client::{Reference, manifest::OciManifest, secrets::RegistryAuth};
use proto::Layout;

use super::*;

#[test]
fn a_common_client_pulls_an_image_of_many_layers_through_the_mirror_and_the_registry_gives_it_once()
{
    let world = World::new(1, &ImageSpec::plain(32, 4));
    // a repository's name can't hold the colon of a port
    let host = world.site.registry.addr().to_string().replace(':', "_");
    let reference = format!("{}/{host}/{NAME}:1", world.mirror(0));
    let reference: Reference = reference.parse().unwrap();
    let layout = Layout::parse(&world.image.manifest, &world.image.digest).unwrap();
    let blobs = &world.image.blobs;
    assert!(blobs.len() > 8, "{}", blobs.len());
    let client = oci::client();
    // the second client finds all of it in the cache
    for _ in 0..2 {
        let pulled = world.run(async {
            let auth = RegistryAuth::Anonymous;
            let (manifest, digest) = client.pull_manifest(&reference, &auth).await.unwrap();
            assert_eq!(digest, layout.digest().to_string());
            let OciManifest::Image(manifest) = manifest else {
                panic!("{manifest:?}");
            };
            let mut pulled = BTreeMap::new();
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                let mut bytes = Vec::new();
                client
                    .pull_blob(&reference, blob, &mut bytes)
                    .await
                    .unwrap();
                pulled.insert(blob.digest.parse::<Digest>().unwrap(), bytes);
            }
            pulled
        });
        assert_eq!(pulled.len(), blobs.len());
        for (digest, bytes) in &pulled {
            assert!(*bytes == world.image.blob(digest).unwrap(), "{digest}");
        }
    }
    assert_eq!(world.site.served(), blobs.values().sum::<u64>());
}
