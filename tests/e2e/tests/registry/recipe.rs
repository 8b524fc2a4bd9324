//! `parbake recipe` as a program, against a registry that misbehaves and against Debian's docker-registry; and what
//! finds recipes beside an image.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests are tests, and say what they measured"
)]

use std::{fs, os::unix::fs::symlink, path::Path, process::Output, time::Duration};

use bytes::Bytes;
use e2e::{
    docker_registry::{self, DockerRegistry},
    image::{Flaw, GeneratedImage, ImageSpec},
    oci,
    proxy::{self, Proxy},
    registry::{Auth, Fault, Misbehaviour, Options, Registry, Target},
};
use http::HeaderValue;
use oci_client::RegistryOperation;
use origin::{
    OriginError, Repository,
    recipe::{ArtifactError, FindRecipeError, Found, Listing, fallback_tag, fetch, find},
};
use proto::{
    Digest, Layout,
    chunks::ChunkIndex,
    image::{ContentKind, MANIFEST_TYPE},
    recipe::{ARTIFACT_TYPE, Recipe},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

const NAME: &str = "org/image";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// What a run of the program said.
struct Ran {
    code: Option<i32>,
    answer: Value,
    story: String,
}

/// Runs `parbake recipe … --json` in an environment of its own.
async fn run_with(environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command
        .env_clear()
        .envs(environment.iter().copied())
        .args(["parbake", "recipe"])
        .args(arguments)
        .arg("--json")
        .kill_on_drop(true);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().await.unwrap();
    Ran {
        code: status.code(),
        answer: serde_json::from_slice(&stdout).unwrap_or_default(),
        story: String::from_utf8(stderr).unwrap(),
    }
}

impl Ran {
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.story);
        self
    }
}

/// A small image in a registry.
struct World {
    registry: Registry,
    image: GeneratedImage,
    layout: Layout,
    reference: String,
    directory: TempDir,
}

fn spec() -> ImageSpec {
    ImageSpec {
        disk_bytes: (12 << 20) + 4096,
        layer_bytes: 4 << 20,
        repeated_layers: 0,
        ..ImageSpec::default()
    }
}

impl World {
    async fn new(spec: ImageSpec) -> Self {
        Self::behind(spec, Auth::Open).await
    }

    async fn behind(spec: ImageSpec, auth: Auth) -> Self {
        let options = Options {
            auth,
            ..Options::default()
        };
        let registry = Registry::start(options).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = spec.generate(directory.path()).unwrap();
        Self {
            reference: registry.hold(NAME, "1", &image),
            layout: image.layout().unwrap(),
            registry,
            image,
            directory,
        }
    }

    fn host(&self) -> String {
        self.registry.addr().to_string()
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let host = self.host();
        let reach = [self.reference.as_str(), "--plain-http", &host];
        run_with(&[], &[&reach[..], arguments].concat()).await
    }

    fn repository(&self) -> Repository {
        let reference = self.registry.reference(NAME, "1");
        let client = self.registry.client();
        client
            .repository(&reference, self.registry.credentials())
            .unwrap()
    }

    async fn find(&self) -> Result<Option<Found>, FindRecipeError> {
        find(&self.repository(), &self.layout).await
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// The recipe, made by the program.
    async fn made(&self) -> (String, Vec<u8>) {
        let path = self.path("recipe");
        self.run(&["--out", &path]).await.expect(0);
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    }

    /// Puts an artifact that refers to the image into the registry, without a blob.
    fn put_artifact(&self, kind: &str, text: &str) -> Digest {
        let bytes = artifact(kind, self.layout.digest(), text);
        let digest = Digest::of(&bytes);
        let version = digest.to_string();
        self.registry
            .put_manifest_as(NAME, &version, MANIFEST_TYPE, bytes);
        digest
    }
}

fn artifact(kind: &str, subject: &Digest, text: &str) -> Bytes {
    let layer = json!({"mediaType": kind, "digest": Digest::of(text.as_bytes()).to_string(), "size": text.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": kind,
        "layers": [layer],
        "subject": {"digest": subject.to_string()},
    });
    manifest.to_string().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_is_made_pushed_found_and_true() {
    let account = ("ci".to_owned(), "s3cret".to_owned());
    let auth = Auth::Bearer {
        account: Some(account),
        life: Duration::from_secs(300),
        announced: None,
    };
    let world = World::behind(spec(), auth).await;
    let (file, host) = (world.path("recipe"), world.host());
    let login = [
        ("PARBAKE_REGISTRY_USERNAME", "ci"),
        ("PARBAKE_REGISTRY_PASSWORD", "s3cret"),
    ];
    let image = [world.reference.as_str(), "--plain-http", &host];
    let run = async |arguments: &[&str]| {
        let ran = run_with(&login, &[&image[..], arguments].concat()).await;
        assert!(!ran.story.contains("s3cret") && !ran.answer.to_string().contains("s3cret"));
        ran
    };
    let none = run(&["--verify"]).await.expect(1);
    assert!(
        none.story.contains("no recipe stands beside"),
        "{}",
        none.story
    );

    let made = run(&["--push", "--out", &file, "--verify"])
        .await
        .expect(0)
        .answer;
    let bytes = fs::read(&file).unwrap();
    assert_eq!(made["digest"], world.layout.digest().to_string());
    assert_eq!(made["recipe_digest"], Digest::of(&bytes).to_string());
    assert_eq!(made["recipe_bytes"], bytes.len());
    assert_eq!(made["read_bytes"], world.layout.blob_bytes());
    assert_eq!(made["found_by"], "referrers");
    assert_eq!(made["verified"], true);
    assert_eq!(made["was_there"], false);

    let found = world.find().await.unwrap().unwrap();
    assert_eq!(made["pushed"], found.artifact.to_string());
    assert_eq!(found.recipe.digest, Digest::of(&bytes));
    assert_eq!((found.listing, found.others), (Listing::Referrers, 0));
    let recipe = fetch(&world.repository(), &world.layout, &found)
        .await
        .unwrap();
    assert_eq!(recipe.encode(), bytes);
    for content in world.layout.contents() {
        let raw = raw_bytes(&world, &content.kind, &content.digest, &content.places);
        let of = recipe.content(&content.digest).unwrap();
        for (at, chunk) in raw.chunks(1 << 20).enumerate() {
            assert!(of.proves(ChunkIndex(u32::try_from(at).unwrap()), chunk));
        }
    }

    let blobs = world.registry.blobs().unwrap();
    let again = run(&["--push"]).await.expect(0).answer;
    assert_eq!(again["pushed"], made["pushed"]);
    assert_eq!(again["was_there"], true);
    assert_eq!(world.registry.blobs().unwrap(), blobs);
    let beside = run(&["--verify"]).await.expect(0).answer;
    assert_eq!(beside["verified"], true);

    let denied = run_with(&[], &[&image[..], &["--push"]].concat())
        .await
        .expect(2);
    assert!(
        denied.story.contains("can't be had with these credentials"),
        "{}",
        denied.story
    );
}

/// A content's bytes, from where the generator has them.
fn raw_bytes(
    world: &World,
    kind: &ContentKind,
    digest: &Digest,
    places: &[proto::image::Place],
) -> Vec<u8> {
    match (kind, &places[0]) {
        (ContentKind::RawLayer { .. }, proto::image::Place::Disk { offset }) => {
            let layers = world.layout.layers();
            let layer = layers.iter().find(|layer| layer.offset == *offset).unwrap();
            let mut bytes = vec![0; usize::try_from(layer.raw_bytes).unwrap()];
            world.image.disk.read(*offset, &mut bytes);
            bytes
        }
        _ => world.image.blob(digest).unwrap().to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_ca_of_its_own_is_read_and_pushed_to() {
    let registry = Registry::start(Options::tls()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let image = spec().generate(directory.path()).unwrap();
    let reference = registry.hold(NAME, "1", &image);
    let unknown = run_with(&[], &[&reference, "--push"]).await.expect(2);
    assert!(unknown.story.contains("give its CA"), "{}", unknown.story);
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, registry.certificate_pem().unwrap()).unwrap();
    let ca = ca.to_str().unwrap();
    let arguments = [&reference, "--push", "--verify", "--ca-file", ca];
    let pushed = run_with(&[], &arguments).await.expect(0).answer;
    assert_eq!(pushed["found_by"], "referrers");
    assert_eq!(pushed["verified"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_behind_a_proxy_is_read_and_pushed_to() {
    let registry = Registry::start(Options::tls()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let image = spec().generate(directory.path()).unwrap();
    registry.hold(NAME, "1", &image);
    // a name in every generated certificate, which only the proxy resolves
    let name = "registry.test:443".to_owned();
    let proxy = Proxy::start(proxy::Options {
        names: [(name.clone(), registry.addr())].into(),
        account: Some(("ci".to_owned(), "s3cret".to_owned())),
        ..proxy::Options::default()
    })
    .await
    .unwrap();
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, registry.certificate_pem().unwrap()).unwrap();
    let url = proxy.url().replace("http://", "http://ci:s3cret@");
    let reference = format!("registry.test/{NAME}:1");
    let arguments = [&reference, "--push", "--ca-file", ca.to_str().unwrap()];
    let environment = [("https_proxy", url.as_str()), ("NO_PROXY", "other.test")];
    let pushed = run_with(&environment, &arguments).await.expect(0);
    assert_eq!(pushed.answer["found_by"], "referrers");
    assert!(!pushed.story.contains("s3cret"), "{}", pushed.story);
    let counters = proxy.counters();
    assert!(counters.tunnels[&name] > 1, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_named_with_content_and_chunk() {
    let world = World::new(spec()).await;
    let (file, honest) = world.made().await;
    let verify = async |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        world.run(&["--verify", &file]).await
    };
    let ran = verify(&honest).await.expect(0);
    assert_eq!(ran.answer["verified"], true);

    let recipe = Recipe::parse(&honest, &world.layout).unwrap();
    let layer = world.layout.layers()[0].raw.unwrap();
    let state = recipe.content(&layer).unwrap().link(ChunkIndex(2)).unwrap();
    let state = state.after.to_bytes();
    let at = honest
        .windows(32)
        .position(|window| window == state)
        .unwrap();
    let mut lie = honest.clone();
    lie[at + 7] ^= 0x10;
    let ran = verify(&lie).await.expect(1);
    assert_eq!(ran.answer["verified"], false);
    let named = format!("is false: the state after chunk 2 of content {layer}");
    assert!(ran.story.contains(&named), "{}", ran.story);

    // what isn't the image's recipe is refused before the image is read
    world.registry.reset_counters();
    let ran = verify(&honest[..honest.len() - 1]).await.expect(1);
    assert!(ran.story.contains("cut off"), "{}", ran.story);
    let directory = tempfile::tempdir().unwrap();
    let other = spec().changed(30).generate(directory.path()).unwrap();
    let other_reference = world.registry.hold(NAME, "2", &other);
    let (host, other_file) = (world.host(), world.path("other"));
    let reach = [other_reference.as_str(), "--plain-http", &host];
    run_with(&[], &[&reach[..], &["--out", &other_file]].concat())
        .await
        .expect(0);
    world.registry.reset_counters();
    let ran = verify(&fs::read(&other_file).unwrap()).await.expect(1);
    let named = format!("recipe is of image {}", other.digest);
    assert!(ran.story.contains(&named), "{}", ran.story);
    let huge = fs::File::create(&file).unwrap();
    huge.set_len(Recipe::max_bytes(&world.layout) + 1).unwrap();
    let ran = world.run(&["--verify", &file]).await.expect(1);
    assert!(ran.story.contains("at most"), "{}", ran.story);
    assert_eq!(world.registry.counters().blob_requests, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_at_the_same_byte() {
    let world = World::new(spec()).await;
    let (file, undisturbed) = world.made().await;
    world.registry.reset_counters();
    let blobs = world.layout.blob_bytes();
    let layers = world.layout.layers();
    for (layer, at) in layers.iter().zip([1 << 20, 300_001, 7]) {
        let cut = Misbehaviour::CloseAfter(at);
        let target = Target::Blob(layer.blob.digest);
        world.registry.script(Fault::times(target, cut, 2));
    }
    let busy = Misbehaviour::Status {
        status: 503,
        retry_after: None,
    };
    world.registry.script(Fault::once(Target::Manifests, busy));
    let ran = world.run(&["--out", &file]).await.expect(0);
    assert_eq!(fs::read(&file).unwrap(), undisturbed);
    assert_eq!(ran.answer["read_bytes"], blobs);
    assert!(ran.story.contains("going on at byte"), "{}", ran.story);
    let sent = world.registry.counters().bytes;
    assert!(
        sent < blobs + (6 << 20),
        "{sent} of {blobs} bytes were sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_not_its_content_makes_no_recipe() {
    let world = World::new(spec().flawed(Flaw::Mislabelled(0))).await;
    let file = world.path("recipe");
    let ran = world.run(&["--out", &file]).await.expect(2);
    let layer = world.layout.layers()[0];
    for named in [layer.blob.digest, layer.raw.unwrap()] {
        assert!(ran.story.contains(&named.to_string()), "{}", ran.story);
    }
    assert!(!Path::new(&file).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_the_list_gets_one_under_a_tag() {
    let world = World::new(spec()).await;
    let image = *world.layout.digest();
    let tag = fallback_tag(&image).to_string();
    let theirs = json!({"mediaType": MANIFEST_TYPE, "digest": Digest::of(b"signature").to_string(), "size": 9, "artifactType": "a/b", "annotations": {"who": "them"}});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [theirs], "annotations": {"x": "y"}});
    world
        .registry
        .put_manifest(NAME, &tag, INDEX_TYPE, index.to_string().into());
    let none = Misbehaviour::Status {
        status: 404,
        retry_after: None,
    };
    let fault = world
        .registry
        .script(Fault::always(Target::Referrers, none));
    let pushed = world.run(&["--push", "--verify"]).await.expect(0).answer;
    assert_eq!(pushed["found_by"], "tag");
    let found = world.find().await.unwrap().unwrap();
    assert_eq!(found.listing, Listing::Tag);
    assert_eq!(
        found.artifact.to_string(),
        pushed["pushed"].as_str().unwrap()
    );
    let listed = async || {
        let version = fallback_tag(&image).into();
        let manifest = world.repository().manifest(&version).await.unwrap();
        serde_json::from_slice::<Value>(&manifest.bytes).unwrap()
    };
    let now = listed().await;
    assert_eq!(now["annotations"], index["annotations"]);
    assert_eq!(now["manifests"][0], theirs);
    assert_eq!(now["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(now["manifests"][1]["artifactType"], ARTIFACT_TYPE);
    let again = world.run(&["--push"]).await.expect(0).answer;
    assert_eq!(again["was_there"], true);
    assert_eq!(listed().await, now);

    // nonsense instead of the list is no list
    world.registry.clear(fault);
    let html = Misbehaviour::Say("<html>welcome</html>".to_owned());
    world
        .registry
        .script(Fault::always(Target::Referrers, html));
    assert_eq!(world.find().await, Ok(Some(found)));

    // a tag that holds something else isn't written over
    let other = world
        .registry
        .put_manifest(NAME, &tag, MANIFEST_TYPE, "{}".into());
    let refused = world.run(&["--push"]).await.expect(2);
    assert!(refused.story.contains(&tag), "{}", refused.story);
    let kept = world
        .repository()
        .resolve(&fallback_tag(&image).into())
        .await;
    assert_eq!(kept, Ok(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_registries_list_ends_in_a_recipe_or_none_or_a_named_error() {
    let world = World::new(spec()).await;
    assert_eq!(world.find().await, Ok(None));
    for at in 0..12 {
        world.put_artifact("application/vnd.dev.sigstore", &format!("signature {at}"));
    }
    assert_eq!(world.find().await, Ok(None));
    world.run(&["--push"]).await.expect(0);
    let found = world.find().await.unwrap().unwrap();
    // 13 artifacts in pages of two, whatever was asked for
    let registry = &world.registry;
    let everything = Fault::always(Target::Referrers, Misbehaviour::IgnoreFilter);
    let everything = registry.script(everything);
    let paged = registry.script(Fault::always(Target::Referrers, Misbehaviour::Pages(2)));
    assert_eq!(world.find().await, Ok(Some(found)));
    // after ten pages it is enough
    registry.clear(paged);
    for at in 0..3_000 {
        world.put_artifact("application/vnd.dev.sigstore", &format!("more {at}"));
    }
    registry.script(Fault::always(Target::Referrers, Misbehaviour::Pages(1)));
    let requests = registry.counters().requests;
    let first_pages = world.find().await.unwrap();
    assert!(first_pages.is_none() || first_pages == Some(found));
    assert!(registry.counters().requests - requests <= 12);
    registry.clear_all();
    registry.clear(everything);
    assert_eq!(world.find().await, Ok(Some(found)), "3,013 are listed");

    // a second recipe: the first by digest counts, if it is sound
    let second = world.put_artifact(ARTIFACT_TYPE, "not fetched");
    let first = world.find().await.unwrap().unwrap();
    assert_eq!(first.artifact, found.artifact.min(second));
    assert_eq!(first.others, 1);
    let busy = Misbehaviour::Status {
        status: 503,
        retry_after: None,
    };
    registry.script(Fault::always(Target::Referrers, busy));
    let error = world.find().await.unwrap_err();
    let FindRecipeError::Origin(error) = error else {
        panic!("{error}");
    };
    assert!(error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_is_no_recipe_of_the_image_is_named() {
    let world = World::new(spec()).await;
    let image = *world.layout.digest();
    // listed beside this image, by clients, and refers to another
    let other = artifact(ARTIFACT_TYPE, &Digest::of(b"another"), "recipe");
    let digest = Digest::of(&other);
    let entry = |digest: &Digest, size: u64| json!({"mediaType": MANIFEST_TYPE, "digest": digest.to_string(), "size": size, "artifactType": ARTIFACT_TYPE});
    let list = |entries: Vec<Value>| {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
        let tag = fallback_tag(&image).to_string();
        let bytes = index.to_string().into();
        world.registry.put_manifest(NAME, &tag, INDEX_TYPE, bytes);
    };
    let version = digest.to_string();
    world
        .registry
        .put_manifest_as(NAME, &version, MANIFEST_TYPE, other);
    let cause = async || match world.find().await.unwrap_err() {
        FindRecipeError::Unsound { cause, .. } => cause,
        error @ FindRecipeError::Origin(_) => panic!("{error}"),
    };
    list(vec![entry(&digest, 300)]);
    let found = cause().await;
    assert!(matches!(found, ArtifactError::Subject(_)), "{found}");
    let ran = world.run(&["--verify"]).await.expect(1);
    assert!(ran.story.contains("can be used"), "{}", ran.story);
    list(vec![entry(&digest, 1 << 30)]);
    assert_eq!(cause().await, ArtifactError::TooLarge(1 << 30));
    list(vec![entry(&Digest::of(b"nowhere"), 300)]);
    let found = cause().await;
    let missing = matches!(found, ArtifactError::Origin(OriginError::NotFound { .. }));
    assert!(missing, "{found}");
    // bytes that aren't a recipe, under a sound artifact
    let junk = "not a recipe";
    world.registry.put_blob(junk.into()).unwrap();
    world.put_artifact(ARTIFACT_TYPE, junk);
    let ran = world.run(&["--verify"]).await.expect(1);
    assert!(ran.story.contains("recipe"), "{}", ran.story);
}

/// Lays the image out as tart does.
fn install(world: &World, home: &Path) -> std::path::PathBuf {
    let host = world.host().replace(':', "%3A");
    let repository = home.join("cache/OCIs").join(host).join(NAME);
    let directory = repository.join(world.layout.digest().to_string());
    fs::create_dir_all(&directory).unwrap();
    symlink(&directory, repository.join("1")).unwrap();
    let mut disk = vec![0; usize::try_from(world.layout.disk_bytes()).unwrap()];
    world.image.disk.read(0, &mut disk);
    fs::write(directory.join("disk.img"), disk).unwrap();
    fs::write(directory.join("config.json"), &world.image.config).unwrap();
    fs::write(directory.join("nvram.bin"), &world.image.nvram).unwrap();
    directory
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_is_made_of_what_tart_has_on_this_disk() {
    let world = World::new(ImageSpec {
        layers_without_digest: 0,
        ..spec()
    })
    .await;
    let (file, from_registry) = world.made().await;
    let home = tempfile::tempdir().unwrap();
    let directory = install(&world, home.path());
    let tart_home = home.path().to_str().unwrap();
    let make = async || world.run(&["--out", &file, "--tart-home", tart_home]).await;

    // tart up to 2.35 kept another form of the manifest; the registry has the true one
    fs::write(directory.join("manifest.json"), "{}").unwrap();
    world.registry.reset_counters();
    let made = make().await.expect(0).answer;
    assert_eq!(made["read_bytes"], world.layout.content_bytes());
    let counters = world.registry.counters();
    assert_eq!((counters.blob_requests, counters.manifest_requests), (0, 1));
    let on_disk = fs::read(&file).unwrap();
    let parse = |bytes: &[u8]| Recipe::parse(bytes, &world.layout).unwrap();
    let (disks, registrys) = (parse(&on_disk), parse(&from_registry));
    assert_eq!(disks.first_difference(&registrys), None);
    assert!(
        on_disk.len() < from_registry.len(),
        "it has no places in blobs"
    );

    // with the manifest, no registry is asked; $TART_HOME is the default
    fs::write(directory.join("manifest.json"), &world.image.manifest).unwrap();
    world.registry.reset_counters();
    make().await.expect(0);
    let (reference, host) = (world.reference.as_str(), world.host());
    let arguments = [
        reference,
        "--plain-http",
        &host,
        "--out",
        &file,
        "--tart-home",
    ];
    run_with(&[("TART_HOME", tart_home)], &arguments)
        .await
        .expect(0);
    assert_eq!(world.registry.counters().requests, 0);
    assert_eq!(fs::read(&file).unwrap(), on_disk);

    let mut disk = fs::read(directory.join("disk.img")).unwrap();
    disk[5 << 20] ^= 1;
    fs::write(directory.join("disk.img"), disk).unwrap();
    let damaged = make().await.expect(2);
    let content = world.layout.layers()[1].raw.unwrap().to_string();
    assert!(damaged.story.contains(&content), "{}", damaged.story);

    let without = World::new(spec()).await;
    let directory = install(&without, home.path());
    fs::write(directory.join("manifest.json"), &without.image.manifest).unwrap();
    let refused = without
        .run(&["--out", &file, "--tart-home", tart_home])
        .await
        .expect(2);
    assert!(
        refused.story.contains("leave out --tart-home"),
        "{}",
        refused.story
    );
}

#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(
    not(docker_registry),
    ignore = "needs PARBAKE_DOCKER_REGISTRY: the program docker-registry"
)]
async fn docker_registry_gets_a_recipe_under_the_tag() {
    let registry = DockerRegistry::start(docker_registry::Auth::Htpasswd)
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let image = spec().generate(directory.path()).unwrap();
    let reference = registry.reference("parbake/image", "1");
    let credentials = registry.credentials();
    image.push(&reference, &credentials).await.unwrap();
    // as `docker login` leaves it
    let docker = directory.path().join("docker");
    fs::create_dir(&docker).unwrap();
    let (user, password) = registry.account().unwrap();
    let host = registry.addr().to_string();
    let login = json!({"auths": {&host: {"username": user, "password": password}}});
    fs::write(docker.join("config.json"), login.to_string()).unwrap();
    let environment = [("DOCKER_CONFIG", docker.to_str().unwrap())];
    let whole = reference.to_string();
    let run = async |arguments: &[&str]| {
        let reach = [whole.as_str(), "--plain-http", &host];
        run_with(&environment, &[&reach[..], arguments].concat()).await
    };
    let pushed = run(&["--push", "--verify"]).await.expect(0).answer;
    assert_eq!(pushed["found_by"], "tag");
    assert_eq!(pushed["verified"], true);
    let again = run(&["--push"]).await.expect(0).answer;
    assert_eq!(again["was_there"], true);
    assert_eq!(again["pushed"], pushed["pushed"]);

    // somebody else's entry comes in between, and stays
    let client = oci::client();
    let auth = oci::auth(&credentials);
    let theirs = oci::reference(&reference);
    let push = client.auth(&theirs, &auth, RegistryOperation::Push);
    push.await.unwrap();
    let layout = image.layout().unwrap();
    let repository = registry
        .client()
        .repository(&reference, credentials)
        .unwrap();
    let found = find(&repository, &layout).await.unwrap().unwrap();
    assert_eq!(
        found.artifact.to_string(),
        pushed["pushed"].as_str().unwrap()
    );
    let recipe = fetch(&repository, &layout, &found).await.unwrap();
    assert_eq!(recipe.image(), layout.digest());
    let tag = fallback_tag(layout.digest()).to_string();
    let list = format!("{host}/parbake/image:{tag}").parse().unwrap();
    let list = oci::reference(&list);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []});
    let kind = HeaderValue::from_static(INDEX_TYPE);
    let emptied = client.push_manifest_raw(&list, index.to_string(), kind);
    emptied.await.unwrap();
    assert_eq!(find(&repository, &layout).await, Ok(None));
    let restored = run(&["--push", "--verify"]).await.expect(0).answer;
    assert_eq!(restored["pushed"], pushed["pushed"]);
}

/// Also prints how fast the recipe was made. `PARBAKE_RECIPE_BYTES` gives the disk another size.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_is_a_thousandth_of_its_image_at_most() {
    let bytes = std::env::var("PARBAKE_RECIPE_BYTES").ok();
    let world = World::new(ImageSpec {
        disk_bytes: bytes.map_or(32 << 20, |bytes| bytes.parse().unwrap()),
        layer_bytes: 8 << 20,
        layers_without_digest: 0,
        ..ImageSpec::default()
    })
    .await;
    let file = world.path("recipe");
    let raw = world.layout.content_bytes();
    for streams in ["1", "4"] {
        let arguments = ["--out", &file, "--streams", streams];
        let answer = world.run(&arguments).await.expect(0).answer;
        let seconds = answer["seconds"].as_f64().unwrap();
        let recipe_bytes = answer["recipe_bytes"].as_u64().unwrap();
        assert!(recipe_bytes * 1_000 <= raw, "{recipe_bytes} of {raw}");
        println!(
            "{streams} streams: {answer}\n{:.0} MB/s raw, {:.0} MB/s of blobs, recipe / image {:.6}",
            raw as f64 / 1e6 / seconds,
            world.layout.blob_bytes() as f64 / 1e6 / seconds,
            recipe_bytes as f64 / raw as f64,
        );
    }
}
