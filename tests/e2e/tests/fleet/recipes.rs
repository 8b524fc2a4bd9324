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
use origin::recipe::fallback_tag;
use proto::{
    ChunkIndex, ContentRecipe, Digest,
    image::MANIFEST_TYPE,
    recipe::{ARTIFACT_TYPE, Recipe},
};
use serde_json::{Value, json};

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const REPOSITORY: &str = "fleet/macos";
const HOSTS: usize = 3;
const PATIENCE: &str = "120";

/// Two releases of an image in a registry, and hosts of which each holds the first one.
struct World {
    cluster: Cluster,
    first: String,
    second: String,
    image: GeneratedImage,
    spec: ImageSpec,
    /// Where on the disk the chunks lie that the first release doesn't have at the same place.
    changed: Vec<u64>,
    releases: usize,
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
        Self::among(HOSTS, spec(), second)
    }

    fn among(hosts: usize, spec: ImageSpec, second: &ImageSpec) -> Self {
        let site = Site::new(registry::Options::default()).unwrap();
        let old = site.image(&spec).unwrap();
        let image = site.image(second).unwrap();
        // what moves doesn't depend on whether a host has made a recipe in time
        let cluster = site.fleet(
            env!("CARGO_BIN_EXE_demo"),
            hosts,
            "",
            "make_recipes = false",
        );
        Self {
            first: site.registry.hold(REPOSITORY, "1", &old),
            second: site.registry.hold(REPOSITORY, "2", &image),
            changed: changed(&old, &image, spec.disk_bytes),
            spec,
            releases: 0,
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
        self.name(digest, size);
        digest
    }

    /// Puts an artifact beside the image that names this recipe.
    fn name(&self, digest: Digest, size: usize) -> Digest {
        let layer = json!({"mediaType": ARTIFACT_TYPE, "digest": digest.to_string(), "size": size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "layers": [layer],
            "subject": {"digest": self.image.digest.to_string()},
        });
        let manifest = Bytes::from(manifest.to_string());
        let artifact = Digest::of(&manifest);
        let version = artifact.to_string();
        let registry = &self.site.registry;
        registry.put_manifest_as(REPOSITORY, &version, MANIFEST_TYPE, manifest);
        artifact
    }

    /// The next release is the second one from now on: every layer has changed once more, in a tenth of its bytes.
    fn release(&mut self) {
        self.releases += 1;
        let next = |spec: ImageSpec, _| spec.changed_within(100, 10);
        let image = self.site.image(&(0..=self.releases).fold(spec(), next));
        let image = image.unwrap();
        assert_ne!(image.digest, self.image.digest);
        let tag = format!("next-{}", self.releases);
        self.second = self.site.registry.hold(REPOSITORY, &tag, &image);
        self.changed = changed(&self.image, &image, self.spec.disk_bytes);
        self.image = image;
    }

    /// Stages the second release, which every host then has, bit by bit. Returns the digest of the recipe that its
    /// status names.
    fn stages(&self, case: &str) -> Option<String> {
        println!("{case}");
        self.stage(&self.second);
        self.assert_holds();
        let status = self.cluster.status(&self.second).unwrap();
        status["recipe"]["digest"].as_str().map(ToOwned::to_owned)
    }

    /// Bytes of the blobs in which the changed chunks lie, by a true recipe.
    fn spans(&self, recipe: &[u8]) -> u64 {
        let layout = self.image.layout().unwrap();
        let recipe = Recipe::parse(recipe, &layout).unwrap();
        let span = |at: &u64| {
            let layer = &layout.layers()[usize::try_from(at / self.spec.layer_bytes).unwrap()];
            let of = recipe.content(&layer.raw.unwrap()).unwrap();
            let chunk = u32::try_from((at % self.spec.layer_bytes) >> 20).unwrap();
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

/// Where the chunks lie in which two disks of this size differ at the same place.
fn changed(old: &GeneratedImage, new: &GeneratedImage, disk_bytes: u64) -> Vec<u64> {
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let all = (0..disk_bytes).step_by(1 << 20);
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
fn without_a_recipe_each_layer_leaves_the_registry_once_and_peers_move_what_changed() {
    let world = World::new();
    let (changed, disk) = ((world.changed.len() as u64) << 20, spec().disk_bytes);
    world.stage(&world.second);
    world.assert_holds();
    let (moved, local) = world.figures();
    let served = world.site.served();
    println!(
        "{HOSTS} hosts, {changed} of {disk} bytes changed, no recipe: {served} left the registry, {moved} moved, {local} \
         were there"
    );
    let blobs = world.image.blob_bytes();
    assert!(served <= blobs + (1 << 20), "{served} of {blobs}");
    // a host that reads a layer from the registry gets all of it there, and the others get from peers what changed;
    // what one asks for by itself comes as a whole
    let others = HOSTS as u64 - 1;
    let peers = moved - blobs.min(moved);
    let rest = 10 << 20;
    assert!(peers <= others * changed + rest, "{peers}");
    assert!(local + rest >= others * (disk - changed), "{local}");
    let status = world.cluster.status(&world.second).unwrap();
    assert!(status["recipe"].is_null(), "{status}");
}

#[test]
fn several_hosts_fetch_one_layer_by_ranges_and_the_registry_sends_no_more() {
    // one layer of 192 MiB, of which at least 64 chunks and at most half are new. It is leased whole before hosts have
    // said what they have of it, and is divided only while 32 chunks are missing everywhere
    let first = ImageSpec::incompressible(192 << 20, 192 << 20, 5);
    let second = first.changed_within(100, 30);
    let world = World::among(4, first, &second);
    let changed = world.changed.len();
    assert!((64..=96).contains(&changed), "{changed} chunks changed");
    world.stage(&world.first);
    world.recipe(&["--push"]);
    let recipe = world.made();
    let spans = world.spans(&recipe);
    world.site.registry.reset_counters();
    // a stream is slower than the hosts are
    world.site.registry.limit_each(Some(8 << 20));
    world.stage(&world.second);
    world.assert_holds();
    let digest = world.image.digest.to_string();
    let present = world.cluster.wait_present(&digest, Duration::from_secs(10));
    let from_registry = present.unwrap().into_iter().map(|host| host.bytes[0]);
    // the recipe is less than that
    let fetched = from_registry.filter(|bytes| *bytes > 4 << 20).count();
    let served = world.site.served();
    println!(
        "{fetched} of 4 hosts fetched {changed} chunks, {spans} bytes of blobs: {served} left the registry"
    );
    assert!(fetched >= 2, "{fetched}");
    let rest = recipe.len() as u64 + (1 << 10);
    assert!(100 * (served - rest) <= 115 * spans, "{served}");
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
    let named = log.iter().find(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        let found = message.starts_with("recipe doesn't fit the registry's bytes of a content");
        found && line["recipe"] == lie.to_string() && line["content"] == layer.to_string()
    });
    println!("{named:?}");
    assert!(named.is_some(), "the false recipe is dropped by name");
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

/// What somebody makes of a true recipe, and puts beside the image.
type Lie = fn(&World, Vec<u8>);

/// Writes these bytes over those, which the recipe has once.
fn overwrite(bytes: &mut [u8], those: &[u8], with: &[u8]) {
    let at = bytes
        .windows(those.len())
        .position(|window| window == those);
    bytes[at.unwrap()..][..with.len()].copy_from_slice(with);
}

/// The recipe of the layer with this number, and of the chunk of it at this place the number.
fn layer(world: &World, bytes: &[u8], at: u64) -> (ContentRecipe, ChunkIndex) {
    let layout = world.image.layout().unwrap();
    let layer = usize::try_from(at / spec().layer_bytes).unwrap();
    let recipe = Recipe::parse(bytes, &layout).unwrap();
    let of = recipe
        .content(&layout.layers()[layer].raw.unwrap())
        .unwrap();
    let chunk = u32::try_from((at % spec().layer_bytes) >> 20).unwrap();
    (ContentRecipe::clone(of), ChunkIndex(chunk))
}

const LIES: [(&str, Lie); 7] = [
    (
        "fingerprints of what is here under chunks that aren't",
        |world, mut bytes| {
            let unchanged = (0..).map(|chunk| chunk << 20);
            let unchanged = unchanged.filter(|at| !world.changed.contains(at));
            let print = |at: u64| {
                let (of, chunk) = layer(world, &bytes, at);
                of.link(chunk).unwrap().fingerprint.0
            };
            let pairs = world.changed.iter().copied().zip(unchanged);
            let prints: Vec<_> = pairs
                .map(|(lacks, has)| (print(lacks), print(has)))
                .collect();
            for (lacks, has) in prints {
                overwrite(&mut bytes, &lacks, &has);
            }
            world.put(bytes);
        },
    ),
    ("fingerprints of nothing", |world, mut bytes| {
        for at in (0..spec().disk_bytes).step_by(1 << 20) {
            let (of, chunk) = layer(world, &bytes, at);
            let print = of.link(chunk).unwrap().fingerprint.0;
            overwrite(&mut bytes, &print, &[at.to_le_bytes(); 2].concat());
        }
        world.put(bytes);
    }),
    ("places that aren't the chunks'", |world, mut bytes| {
        for at in world.changed.iter().copied() {
            let (of, chunk) = layer(world, &bytes, at);
            let Some(place) = of.link(chunk).unwrap().resume else {
                continue;
            };
            let those = place.blob_offset.to_le_bytes();
            overwrite(&mut bytes, &those, &(place.blob_offset + 7).to_le_bytes());
        }
        world.put(bytes);
    }),
    ("another image's recipe", |world, mut bytes| {
        overwrite(&mut bytes, world.image.digest.as_bytes(), &[7]);
        world.put(bytes);
    }),
    ("half of a recipe", |world, bytes| {
        world.put(bytes[..bytes.len() / 2].to_vec());
    }),
    ("another size than the artifact says", |world, bytes| {
        let size = bytes.len() - 9;
        let digest = world.site.registry.put_blob(bytes.into()).unwrap();
        world.name(digest, size);
    }),
    (
        "bytes that change under their digest",
        |world, mut bytes| {
            let digest = world.put(bytes.clone());
            bytes[60] ^= 1;
            let registry = &world.site.registry;
            registry.put_blob_as(digest, bytes.into()).unwrap();
        },
    ),
];

#[test]
fn whatever_a_recipe_lies_about_every_host_has_the_image() {
    let mut world = World::new();
    for (at, (name, lie)) in LIES.into_iter().enumerate() {
        if at > 0 {
            world.release();
        }
        lie(&world, world.made());
        world.stages(name);
    }
}

#[test]
fn a_recipe_stays_under_the_hosts_when_the_registry_names_another() {
    let world = World::new();
    let bytes = world.made();
    let (digest, size) = (Digest::of(&bytes), bytes.len());
    let first = world.put(bytes.clone());
    assert_eq!(world.stages("the first").unwrap(), digest.to_string());
    // another one, which is found before the first
    let layout = world.image.layout().unwrap();
    let lean = Recipe::parse(&bytes, &layout).unwrap();
    let lean = lean.contents().cloned().map(|mut content| {
        drop(content.take_blocks());
        content
    });
    let other = Recipe::new(&layout, lean).unwrap().encode();
    let other = world.site.registry.put_blob(other.into()).unwrap();
    assert_ne!(other, digest);
    world.site.registry.remove_blob(&digest).unwrap();
    let mut sizes = size..;
    while world.name(other, sizes.next().unwrap()) > first {}
    assert_eq!(world.stages("the other").unwrap(), digest.to_string());
}

#[test]
fn hosts_stage_an_image_whatever_its_registry_lists_beside_it() {
    let mut world = World::new();
    let none = || Fault::always(Target::Referrers, Misbehaviour::status(404));
    world.site.registry.script(none());
    world.put(world.made());
    assert_eq!(world.stages("no list"), None);

    world.release();
    let bytes = world.made();
    let size = bytes.len();
    let recipe = world.site.registry.put_blob(bytes.into()).unwrap();
    let artifact = world.name(recipe, size);
    let entry = json!({"mediaType": MANIFEST_TYPE, "digest": artifact.to_string(), "size": 500, "artifactType": ARTIFACT_TYPE});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [entry]});
    let tag = fallback_tag(&world.image.digest).to_string();
    let index = index.to_string().into();
    world
        .site
        .registry
        .put_manifest(REPOSITORY, &tag, INDEX_TYPE, index);
    assert_eq!(
        world.stages("a list under a tag").unwrap(),
        recipe.to_string()
    );
    world.site.registry.clear_all();

    world.release();
    let recipe = world.put(world.made()).to_string();
    for at in 0..3_000 {
        beside(&world, &json!({"at": at}));
    }
    let everything = Fault::always(Target::Referrers, Misbehaviour::IgnoreFilter);
    world.site.registry.script(everything);
    assert_eq!(world.stages("thousands in one list").unwrap(), recipe);

    world.release();
    let recipe = world.put(world.made()).to_string();
    for at in 0..3_000 {
        beside(&world, &json!({"at": at}));
    }
    let pages = Fault::always(Target::Referrers, Misbehaviour::Pages(1));
    world.site.registry.script(pages);
    let found = world.stages("thousands in pages of one");
    assert!(found.is_none_or(|found| found == recipe));
}

/// Puts an artifact of another kind beside the image.
fn beside(world: &World, annotations: &Value) {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": "application/vnd.dev.sigstore",
        "layers": [],
        "annotations": annotations,
        "subject": {"digest": world.image.digest.to_string()},
    });
    let manifest = Bytes::from(manifest.to_string());
    let version = Digest::of(&manifest).to_string();
    let registry = &world.site.registry;
    registry.put_manifest_as(REPOSITORY, &version, MANIFEST_TYPE, manifest);
}

#[test]
fn a_registry_that_refuses_ranges_costs_hosts_with_a_recipe_the_saving_alone() {
    let mut world = World::new();
    for (at, refusal) in [
        Misbehaviour::RefuseRange(416),
        Misbehaviour::RefuseRange(501),
        Misbehaviour::IgnoreRange,
        Misbehaviour::IgnoreEnd,
    ]
    .into_iter()
    .enumerate()
    {
        if at > 0 {
            world.release();
        }
        let recipe = world.put(world.made()).to_string();
        let case = format!("{refusal:?}");
        world
            .site
            .registry
            .script(Fault::always(Target::Blobs, refusal));
        world.site.registry.reset_counters();
        assert_eq!(world.stages(&case).unwrap(), recipe);
        let (served, blobs) = (world.site.served(), world.image.blobs.values().sum::<u64>());
        println!("{served} left the registry, of {blobs}");
        assert!(served <= 2 * blobs, "{case}: {served} of {blobs}");
        world.site.registry.clear_all();
    }
}
