//! Images with a recipe behind mirrors: peers' bytes leave as they arrive, and a false recipe costs its use alone.

use std::{fs, os::unix::fs::FileExt as _};

use e2e::cluster::said;
use proto::{
    ChunkIndex, Layout,
    image::MANIFEST_TYPE,
    recipe::{ARTIFACT_TYPE, Recipe},
};
use serde_json::json;

use super::*;

/// Mirrors believe the registries that their settings name.
const NAMED: &str = "[mirror]\nlisten = '127.0.0.1:0'\nupstreams = ['REGISTRY']";
const BLOB_BYTES: u64 = 12 << 20;
/// What the registry gives of a blob in a second.
pub(super) const RATE: u64 = 1 << 20;
const FOUND: &str = "parbake_agent_mirror_recipes_total{outcome=\"found\"}";
const FAILED: &str = "parbake_agent_mirror_recipes_total{outcome=\"failed\"}";
const LEFT: &str =
    "a recipe doesn't fit the registry's bytes of a blob; the mirror goes on without it";

/// Hosts and an image of one layer that no packing makes smaller.
pub(super) fn world(hosts: usize) -> World {
    let spec = ImageSpec::incompressible(BLOB_BYTES, BLOB_BYTES, 11);
    World::of(hosts, &spec, registry::Options::default(), NAMED)
}

impl World {
    /// The true recipe's bytes, of the image in this repository.
    fn recipe_in(&self, name: &str) -> Vec<u8> {
        let (host, path) = (self.site.registry.addr().to_string(), self.site.dir());
        let path = path.join("recipe");
        let out = path.to_str().unwrap();
        let image = format!("{host}/{name}:1");
        let command = ["recipe", &image, "--plain-http", &host, "--out", out];
        let ended = self.cluster.parbake(&command).unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
        fs::read(path).unwrap()
    }

    fn recipe(&self) -> Vec<u8> {
        self.recipe_in(NAME)
    }

    /// Puts a recipe beside the image with this digest, in this repository. Its artifact says this size.
    fn put_beside(&self, (name, image): (&str, Digest), recipe: Digest, size: usize) {
        let layer = json!({"mediaType": ARTIFACT_TYPE, "digest": recipe.to_string(), "size": size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "layers": [layer],
            "subject": {"digest": image.to_string()},
        });
        let manifest = Bytes::from(manifest.to_string());
        let version = Digest::of(&manifest).to_string();
        let registry = &self.site.registry;
        registry.put_manifest_as(name, &version, MANIFEST_TYPE, manifest);
    }

    /// Puts a recipe beside the image.
    fn put_recipe(&self, bytes: Vec<u8>) {
        let size = bytes.len();
        let digest = self.put(&Bytes::from(bytes));
        self.put_beside((NAME, self.image.digest), digest, size);
    }

    /// The recipe with another state behind the sixth MiB of the layer as registries have it.
    fn falsified(&self, mut recipe: Vec<u8>, layout: &Layout) -> Vec<u8> {
        let (layer, _) = self.image.largest_blob();
        let of = Recipe::parse(&recipe, layout).unwrap().blob(&layer);
        let state = of.unwrap().link(ChunkIndex(5)).unwrap().after.to_bytes();
        let at = recipe.windows(32).position(|window| window == state);
        recipe[at.unwrap() + 3] ^= 1;
        recipe
    }

    /// A client of this host pulls the image's layer as tart does: first the manifest. Returns the bytes, and how long
    /// the first of them took since the pull began.
    async fn pull_layer(&self, host: usize) -> (Vec<u8>, Duration) {
        let (layer, _) = self.image.largest_blob();
        let (manifest, blob) = (self.at(host, "manifests/1"), self.blob(host, &layer));
        let began = Instant::now();
        assert_eq!(get(&manifest).await.status, StatusCode::OK);
        let response = request(Method::GET, &blob, &[]).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let (mut body, mut bytes) = (response.into_body(), Vec::new());
        let mut first = None;
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(frame.unwrap().data_ref().unwrap());
            first.get_or_insert_with(|| began.elapsed());
        }
        (bytes, first.unwrap())
    }

    /// One host's client pulls the layer, and when its first bytes are there, another host's client does. Returns how
    /// long each waited for its first byte.
    fn pull_after_another(&self) -> [Duration; 2] {
        let (layer, _) = self.image.largest_blob();
        let good = self.image.blob(&layer).unwrap();
        self.site.registry.limit_each(Some(RATE));
        let under_way = || self.sent(&layer) >= 2 << 20;
        let (one, other) = self.run(async {
            let late = async {
                while !under_way() {
                    tokio::task::yield_now().await;
                }
                self.pull_layer(1).await
            };
            tokio::join!(self.pull_layer(0), late)
        });
        assert!(one.0 == good && other.0 == good);
        let sent = self.sent(&layer);
        assert!(sent * 100 <= BLOB_BYTES * 102, "{sent} left the registry");
        [one.1, other.1]
    }

    pub(super) fn found(&self, host: usize) -> f64 {
        self.cluster.agents()[host].metric(FOUND).unwrap_or(0.0)
    }
}

#[test]
fn with_a_recipe_a_host_without_the_lease_has_its_first_byte_within_a_second() {
    let waited = [true, false].map(|with| {
        let world = world(2);
        if with {
            let recipe = world.recipe();
            world.put_recipe(recipe);
            world.site.registry.reset_counters();
        }
        let [_, other] = world.pull_after_another();
        let found = if with { 1.0 } else { 0.0 };
        assert_eq!((world.found(0), world.found(1)), (found, found));
        other
    });
    println!(
        "{BLOB_BYTES} bytes at {RATE} in a second, without the lease: first byte after {:?} with a recipe, {:?} without",
        waited[0], waited[1]
    );
    assert!(waited[0] < Duration::from_secs(1), "{waited:?}");
    assert!(waited[1] > Duration::from_secs(5), "{waited:?}");
}

#[test]
fn a_false_recipe_costs_its_use_and_no_byte() {
    let world = world(2);
    let layout = world.image.layout().unwrap();
    world.put_recipe(world.falsified(world.recipe(), &layout));
    world.site.registry.reset_counters();
    let [_, other] = world.pull_after_another();
    println!("the recipe is false in the sixth chunk: first byte after {other:?}");
    assert_eq!((world.found(0), world.found(1)), (1.0, 1.0));
    // who has the lease reads it, and the other host takes its word
    let left = world.cluster.agents().iter();
    assert_eq!(left.filter(|agent| agent.logged(LEFT)).count(), 2);
}

#[test]
fn with_a_recipe_no_chunk_that_went_bad_on_a_peer_leaves() {
    let mut world = world(2);
    let recipe = world.recipe();
    world.put_recipe(recipe);
    let (layer, _) = world.image.largest_blob();
    let good = world.image.blob(&layer).unwrap();
    assert!(world.run(world.pull_layer(0)).0 == good);
    world.cluster.kill_agent(0).unwrap();
    let kept = world.cluster.agents()[0]
        .dir
        .join(format!("state/mirror/whole/{}", layer.hex()));
    let file = fs::File::options().write(true).open(kept).unwrap();
    for chunk in 0..good.len() >> 20 {
        let at = (chunk << 20) + 7;
        file.write_all_at(&[!good[at]], at as u64).unwrap();
    }
    world.cluster.start_agent(0).unwrap();
    assert!(world.run(world.pull_layer(1)).0 == good);
}

/// Somebody's own repository has a manifest that lists the image's blobs, and a false recipe beside it. Returns the
/// repository's name, and the recipe's digest.
pub(super) fn planted(
    world: &World,
    lie: impl FnOnce(Vec<u8>, &Layout) -> Vec<u8>,
) -> (String, Digest) {
    const THEIRS: &str = "theirs/macos";
    let mut manifest: serde_json::Value = serde_json::from_slice(&world.image.manifest).unwrap();
    manifest["annotations"]["by"] = json!("them");
    let manifest = Bytes::from(manifest.to_string());
    let registry = &world.site.registry;
    let digest = registry.put_manifest(THEIRS, "1", MANIFEST_TYPE, manifest.clone());
    let layout = Layout::parse(&manifest, &digest).unwrap();
    let recipe = lie(world.recipe_in(THEIRS), &layout);
    let size = recipe.len();
    let recipe = world.put(&recipe.into());
    world.put_beside((THEIRS, digest), recipe, size);
    (format!("{}/{THEIRS}", registry.addr()), recipe)
}

#[test]
fn a_recipe_that_somebody_planted_beside_others_blobs_costs_their_clients_no_byte() {
    let world = world(2);
    let lie = |recipe, layout: &Layout| world.falsified(recipe, layout);
    let (theirs, _) = planted(&world, lie);
    world.put_recipe(world.recipe());
    let (layer, _) = world.image.largest_blob();
    let good = world.image.blob(&layer).unwrap();
    world.site.registry.reset_counters();
    world.site.registry.limit_each(Some(RATE));
    let theirs_at =
        |host: usize, path: &str| format!("http://{}/v2/{theirs}/{path}", world.mirror(host));
    world.run(async {
        // their clients come first on both hosts, and the blob has their recipe there
        for host in 0..2 {
            let manifest = theirs_at(host, "manifests/1");
            assert_eq!(get(&manifest).await.status, StatusCode::OK);
            while world.found(host) < 1.0 {
                tokio::task::yield_now().await;
            }
        }
        let blob = format!("blobs/{layer}");
        let (one, other) = (theirs_at(0, &blob), theirs_at(1, &blob));
        let theirs = async { tokio::join!(read(&one, None), read(&other, None)) };
        let ours = async { tokio::join!(world.pull_layer(0), world.pull_layer(1)) };
        let (theirs, ours) = tokio::join!(theirs, ours);
        for (bytes, waited) in [ours.0, ours.1] {
            println!("a client of the true repository: first byte after {waited:?}");
            assert!(bytes == good);
        }
        // they get no false byte either: none is here
        for (_, bytes, broken) in [theirs.0, theirs.1] {
            assert!(good.starts_with(&bytes) && (broken || bytes.len() == good.len()));
        }
    });
    let sent = world.sent(&layer);
    assert!(sent * 100 <= BLOB_BYTES * 102, "{sent} left the registry");
}

/// What somebody makes of a true recipe, and puts beside the image.
type Lie = fn(&World, Vec<u8>);

#[test]
fn a_recipe_that_is_none_or_cannot_be_had_costs_its_use_alone() {
    let lies: [(&str, Lie); 4] = [
        ("another image's", |world, mut bytes| {
            let image = world.image.digest;
            let at = bytes.windows(32).position(|of| of == image.as_bytes());
            bytes[at.unwrap()] ^= 1;
            world.put_recipe(bytes);
        }),
        ("cut off", |world, bytes| {
            world.put_recipe(bytes[..bytes.len() / 2].to_vec());
        }),
        ("lost", |world, bytes| {
            let digest = Digest::of(&bytes);
            world.put_recipe(bytes);
            assert!(world.site.registry.remove_blob(&digest).unwrap());
        }),
        ("of another size", |world, bytes| {
            let size = bytes.len() + 1;
            let digest = world.put(&bytes.into());
            world.put_beside((NAME, world.image.digest), digest, size);
        }),
    ];
    for (name, lie) in lies {
        let world = world(1);
        lie(&world, world.recipe());
        let (layer, _) = world.image.largest_blob();
        let good = world.image.blob(&layer).unwrap();
        assert!(world.run(world.pull_layer(0)).0 == good, "{name}");
        let agent = &world.cluster.agents()[0];
        let failed = || agent.metric(FAILED) == Some(1.0);
        assert!(wait_until(PATIENCE, failed), "{name}");
    }
}
