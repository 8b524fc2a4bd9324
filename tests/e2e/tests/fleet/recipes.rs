//! Images with a recipe, with the real programs on loopback: what moves when a release changes little, and what a false
//! or missing recipe costs.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{fs, path::PathBuf, time::Duration};

use bytes::Bytes;
use e2e::{
    cluster::{Cluster, said},
    image::{GeneratedImage, ImageSpec},
    registry::{self, Fault, Misbehaviour, Target},
    site::{Site, difference},
};
use proto::{
    ChunkIndex, Digest,
    image::MANIFEST_TYPE,
    recipe::{ARTIFACT_TYPE, Recipe},
};
use serde_json::json;

const REPOSITORY: &str = "fleet/macos";
const HOSTS: usize = 3;
const PATIENCE: &str = "120";

/// Two releases of an image in a registry, and hosts of which each holds the first one.
struct World {
    cluster: Cluster,
    first: String,
    second: String,
    image: GeneratedImage,
    /// Where on the disk the chunks lie that the first release doesn't have at the same place.
    changed: Vec<u64>,
    // last: everything is kept there
    site: Site,
}

/// 64 MiB that no packing makes smaller, in layers of 16 MiB.
fn spec() -> ImageSpec {
    ImageSpec::incompressible(64 << 20, 16 << 20, 5)
}

impl World {
    /// Every layer of the second release has changed, in a tenth of its bytes.
    fn new() -> Self {
        let world = Self::of(&spec().changed_within(100, 10));
        world.stage(&world.first);
        world.site.registry.reset_counters();
        world
    }

    /// The second release is this one. No host has any yet.
    fn of(second: &ImageSpec) -> Self {
        let site = Site::new(registry::Options::default()).unwrap();
        let old = site.image(&spec()).unwrap();
        let image = site.image(second).unwrap();
        // what moves doesn't depend on whether a host has made a recipe in time
        let cluster = site.fleet(
            env!("CARGO_BIN_EXE_demo"),
            HOSTS,
            "",
            "make_recipes = false",
        );
        Self {
            first: site.registry.hold(REPOSITORY, "1", &old),
            second: site.registry.hold(REPOSITORY, "2", &image),
            changed: changed(&old, &image),
            cluster: cluster.unwrap(),
            image,
            site,
        }
    }

    fn stage(&self, reference: &str) {
        let ended = self
            .cluster
            .stage(&[reference, "--wait", "--timeout", PATIENCE])
            .unwrap();
        assert!(ended.status.success(), "{reference}: {}", said(&ended));
    }

    fn recipe(&self, arguments: &[&str]) {
        self.recipe_of(&self.second, arguments);
    }

    fn recipe_of(&self, image: &str, arguments: &[&str]) {
        let host = self.site.registry.addr().to_string();
        let command = ["recipe", image, "--plain-http", &host];
        let ended = self.cluster.parbake(&[&command[..], arguments].concat());
        let ended = ended.unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
    }

    /// The true recipe's bytes.
    fn made(&self) -> Vec<u8> {
        let path: PathBuf = self.site.dir().join("recipe");
        self.recipe(&["--out", path.to_str().unwrap()]);
        fs::read(path).unwrap()
    }

    /// Puts these bytes beside the image, as if somebody had pushed them.
    fn put(&self, bytes: Vec<u8>) -> Digest {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        self.site.registry.put_blob(Bytes::from(bytes)).unwrap();
        let layer = json!({"mediaType": ARTIFACT_TYPE, "digest": digest.to_string(), "size": size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "layers": [layer],
            "subject": {"digest": self.image.digest.to_string()},
        });
        let manifest = Bytes::from(manifest.to_string());
        let version = Digest::of(&manifest).to_string();
        let registry = &self.site.registry;
        registry.put_manifest_as(REPOSITORY, &version, MANIFEST_TYPE, manifest);
        digest
    }

    /// Bytes of the blobs in which the changed chunks lie, by a true recipe.
    fn spans(&self, recipe: &[u8]) -> u64 {
        let layout = self.image.layout().unwrap();
        let recipe = Recipe::parse(recipe, &layout).unwrap();
        let span = |at: &u64| {
            let layer = &layout.layers()[usize::try_from(at / spec().layer_bytes).unwrap()];
            let of = recipe.content(&layer.raw.unwrap()).unwrap();
            let chunk = u32::try_from((at % spec().layer_bytes) >> 20).unwrap();
            let behind = |chunk: u32| {
                let place = of.link(ChunkIndex(chunk)).unwrap().resume;
                place.map_or(layer.blob.size, |place| place.blob_offset)
            };
            behind(chunk) - chunk.checked_sub(1).map_or(0, behind)
        };
        self.changed.iter().map(span).sum()
    }

    /// Every host's disk is the second release's, bit by bit.
    fn assert_holds(&self) {
        let differs = difference(&self.cluster, &self.second, &self.image);
        assert_eq!(differs.unwrap(), None);
    }

    /// What the hosts say of the second release: bytes from the registry and from peers, and bytes that were here.
    fn figures(&self) -> (u64, u64) {
        let digest = self.image.digest.to_string();
        let present = self.cluster.wait_present(&digest, Duration::from_secs(10));
        let present = present.unwrap();
        let total = |at: usize| present.iter().map(|host| host.bytes[at]).sum::<u64>();
        (total(0) + total(1), total(2))
    }

    /// The number of hosts whose log has this line.
    fn logged(&self, message: &str) -> usize {
        let agents = self.cluster.agents().iter();
        agents.filter(|agent| agent.logged(message)).count()
    }
}

/// Where the chunks lie in which two disks differ at the same place.
fn changed(old: &GeneratedImage, new: &GeneratedImage) -> Vec<u64> {
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let all = (0..spec().disk_bytes).step_by(1 << 20);
    all.filter(|at| {
        old.disk.read(*at, &mut one);
        new.disk.read(*at, &mut other);
        one != other
    })
    .collect()
}

#[test]
fn a_release_that_changes_little_moves_little() {
    let world = World::new();
    world.recipe(&["--push"]);
    let recipe = world.made();
    let spans = world.spans(&recipe);
    world.site.registry.reset_counters();
    world.stage(&world.second);
    world.assert_holds();
    let (changed, disk) = ((world.changed.len() as u64) << 20, spec().disk_bytes);
    assert!(0 < changed && changed < disk / 2, "{changed}");
    let (moved, local) = world.figures();
    println!(
        "{HOSTS} hosts, {changed} of {disk} bytes changed, in {spans} bytes of blobs: {moved} moved, {local} were there, \
         {} left the registry",
        world.site.served()
    );
    // the recipe leaves it, too
    let rest = recipe.len() as u64 + (1 << 10);
    assert!(100 * (world.site.served() - rest) <= 115 * spans, "{spans}");
    // nvram, config and the recipe move too
    let rest = 3 * (1 << 20);
    let hosts = HOSTS as u64;
    assert!(moved <= hosts * (changed + changed / 10 + rest), "{moved}");
    // nvram and config are as they were
    let unchanged = hosts * (disk - changed);
    assert!(
        (unchanged..unchanged + hosts * (1 << 20)).contains(&local),
        "{local}"
    );
    let status = world.cluster.status(&world.second).unwrap();
    assert!(status["recipe"]["digest"].is_string(), "{status}");
}

#[test]
fn what_an_insertion_moved_is_found_on_the_hosts_by_blocks() {
    let second = spec().with_inserted((1 << 20) + 8192, 4096);
    let figures = [true, false].map(|with_blocks| {
        let world = World::of(&second);
        world.recipe_of(&world.first, &["--push"]);
        world.stage(&world.first);
        let bytes = world.made();
        let layout = world.image.layout().unwrap();
        let recipe = Recipe::parse(&bytes, &layout).unwrap();
        if with_blocks {
            world.put(bytes);
        } else {
            let lean = recipe.contents().cloned().map(|mut content| {
                drop(content.take_blocks());
                content
            });
            world.put(Recipe::new(&layout, lean).unwrap().encode());
        }
        world.stage(&world.second);
        world.assert_holds();
        world.figures()
    });
    let [(moved, local), (moved_without, local_without)] = figures;
    println!(
        "by blocks: {moved} moved, {local} were there; without: {moved_without} and {local_without}"
    );
    let disk = HOSTS as u64 * spec().disk_bytes;
    // a chunk with the page, and two for each layer, whose first and last blocks are cut by the layer's ends
    let lacking = HOSTS as u64 * (1 + 2 * 4) * (1 << 20);
    assert!(local >= disk - lacking, "{local} of {disk}");
    // one host gets such a chunk from the registry, and each other one the part of it that it lacks
    assert!(moved <= lacking / 2, "{moved}");
    // only what lies before the page is where it was
    assert!(
        moved_without > disk / 2 && local_without < disk / 4,
        "{moved_without}, {local_without}"
    );
}

#[test]
fn a_false_recipe_is_found_by_who_reads_the_registry_and_staging_goes_on() {
    let world = World::new();
    let mut bytes = world.made();
    let layout = world.image.layout().unwrap();
    let layer = layout.layers()[1].raw.unwrap();
    // a chunk that each host lacks
    let recipe = Recipe::parse(&bytes, &layout).unwrap();
    let of = recipe.content(&layer).unwrap();
    let state = of.link(ChunkIndex(0)).unwrap().after.to_bytes();
    let at = bytes.windows(32).position(|window| window == state);
    bytes[at.unwrap() + 3] ^= 1;
    let lie = world.put(bytes);
    world.stage(&world.second);
    world.assert_holds();
    let log = world.cluster.coordinator_log();
    let named = log
        .iter()
        .find(|line| line["fields"]["recipe"] == lie.to_string());
    println!("{named:?}");
    let told = "a recipe doesn't fit the registry's bytes; a content goes on without it";
    assert_eq!(world.logged(told), HOSTS);
    let status = world.cluster.status(&world.second).unwrap();
    let doubted = &status["recipe"]["doubted_contents"];
    assert_eq!(*doubted, json!([layer.to_string()]), "{status}");
}

#[test]
fn a_recipe_that_the_registry_lost_costs_nothing_but_its_use() {
    let world = World::new();
    let bytes = world.made();
    let digest = world.put(bytes);
    assert!(world.site.registry.remove_blob(&digest).unwrap());
    world.stage(&world.second);
    world.assert_holds();
}

#[test]
fn a_recipe_that_doesnt_come_is_waited_for_half_a_minute_at_most() {
    let world = World::new();
    let bytes = world.made();
    let digest = world.put(bytes);
    let fault = Fault::always(Target::Blob(digest), Misbehaviour::Silence);
    world.site.registry.script(fault);
    world.stage(&world.second);
    world.assert_holds();
}
