use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _, symlink},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use prost::Message as _;
use proto::{
    CHUNK_BYTES, ChunkIndex, Geometry, HostId, Link, Source, State, image,
    ledger::{Entered, RejectLinkError},
    message::{RecipeContent, RecipeHeader},
    recipe::{Maker, Recipe},
};
use tempfile::TempDir;

use super::{
    steps::{STEPS_LEFT, at_steps},
    tree::{IMAGE, JOURNAL, STATUS},
    *,
};
use crate::{platform::Space, retention::Terms, tart::cache};

mod beginnings;
pub(crate) mod blocks;
mod damage;
mod found;
#[cfg(target_os = "linux")]
mod full_host;
mod model;
mod notes;
mod prints;
mod recipes;
mod retire;
mod retire_model;
pub(crate) mod stacked;
mod tarts_cache;
mod volumes;

/// An image with all features that matter: a raw layer used twice, zeros, noise, and (`encoded`) a layer that travels
/// as a blob.
pub(crate) struct Sample {
    pub(crate) layout: Layout,
    manifest: Vec<u8>,
    contents: BTreeMap<Digest, Vec<u8>>,
    disk: Vec<u8>,
    config: Vec<u8>,
}

/// So many images of each repository stay.
fn keep(images: u32) -> Terms {
    Terms::of(Some(images), None)
}

/// Retires images by terms that don't change.
fn retire(store: &Store, terms: &Terms, now: SystemTime) -> Vec<Digest> {
    super::retire::retire(store, &|| Some(terms.clone()), now)
}

pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A sample whose first layer is common to all samples. `own` seeds the part that no other sample has.
fn sample_with(own: u64, encoded: Option<Vec<u8>>) -> Sample {
    let mut common = noise(3 * (1 << 20) + 100_000, 77);
    common[1 << 20..2 << 20].fill(0);
    sample_of(own, &common, (1 << 20) + 5000, encoded)
}

pub(crate) fn sample_of(
    own: u64,
    common: &[u8],
    own_bytes: usize,
    encoded: Option<Vec<u8>>,
) -> Sample {
    let mine = noise(own_bytes, own);
    sample_of_layers(own, &[common, &mine, common], encoded)
}

/// An image whose disk has these raw layers, and perhaps one that travels as a blob behind them.
fn sample_of_layers(own: u64, raws: &[&[u8]], encoded: Option<Vec<u8>>) -> Sample {
    let config = format!("{{\"version\":1,\"own\":{own}}}").into_bytes();
    let nvram = noise(70_000, own + 1);
    let (mut contents, mut layers, mut disk) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut layer = |media_type: &str, blob: &[u8], annotations: serde_json::Value| {
        layers.push(serde_json::json!({
            "mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len(), "annotations": annotations,
        }));
    };
    layer(image::CONFIG_TYPE, &config, serde_json::json!({}));
    contents.insert(Digest::of(&config), config.clone());
    for raw in raws.iter().copied() {
        let digest = Digest::of(raw);
        layer(
            image::DISK_TYPE,
            &apple_lz4::encode(raw),
            serde_json::json!({
                image::RAW_SIZE_ANNOTATION: raw.len().to_string(), image::RAW_DIGEST_ANNOTATION: digest.to_string(),
            }),
        );
        contents.insert(digest, raw.to_vec());
        disk.extend_from_slice(raw);
    }
    if let Some(blob) = encoded {
        let mut raw = noise(1_500_000, own + 2);
        raw[..1_200_000].fill(0);
        let blob = if blob.is_empty() {
            apple_lz4::encode(&raw)
        } else {
            blob
        };
        layer(
            image::DISK_TYPE,
            &blob,
            serde_json::json!({image::RAW_SIZE_ANNOTATION: raw.len().to_string()}),
        );
        contents.insert(Digest::of(&blob), blob);
        disk.extend_from_slice(&raw);
    }
    layer(image::NVRAM_TYPE, &nvram, serde_json::json!({}));
    contents.insert(Digest::of(&nvram), nvram);
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": image::MANIFEST_TYPE, "layers": layers,
        "annotations": {image::DISK_SIZE_ANNOTATION: disk.len().to_string()},
    }))
    .unwrap();
    Sample {
        layout: Layout::parse(&manifest, &Digest::of(&manifest)).unwrap(),
        manifest,
        contents,
        disk,
        config,
    }
}

pub(crate) fn sample(own: u64) -> Sample {
    sample_with(own, Some(Vec::new()))
}

fn options() -> Options {
    Options {
        floor_percent: 0,
        lock_wait: Duration::ZERO,
        guard: Duration::ZERO,
        ..Options::default()
    }
}

pub(crate) fn open(home: &TempDir) -> Store {
    Store::open(home.path(), options()).unwrap()
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn source(name: &str) -> Source {
    Source {
        sender: host(name).key(),
        maker: host(name).key(),
    }
}

fn links(bytes: &[u8]) -> Vec<(ChunkIndex, Link, &[u8])> {
    let geometry = Geometry::new(bytes.len() as u64).unwrap();
    let mut state = State::INITIAL;
    (0..)
        .map(ChunkIndex)
        .zip(bytes.chunks(usize::try_from(CHUNK_BYTES).unwrap()))
        .map(|(chunk, bytes)| {
            let link = Link::forge(geometry, chunk, state, bytes);
            state = link.after;
            (chunk, link, bytes)
        })
        .collect()
}

pub(crate) fn begin(store: &Store, sample: &Sample, references: &[&str]) -> (Arc<Stage>, u64) {
    let references: Vec<_> = references.iter().map(ToString::to_string).collect();
    store
        .begin(&sample.layout, &sample.manifest, &references)
        .unwrap()
}

/// The recipe of an image, of which somebody changed one content.
pub(crate) fn recipe_with(
    sample: &Sample,
    content: Digest,
    change: impl Fn(&mut RecipeContent),
) -> NamedRecipe {
    recipe_with_all(sample, |of| {
        if of.digest == content.as_bytes() {
            change(of);
        }
    })
}

/// The recipe of an image, of which somebody changed the contents.
fn recipe_with_all(sample: &Sample, change: impl Fn(&mut RecipeContent)) -> NamedRecipe {
    let true_one = recipe(sample).recipe.encode();
    let mut rest = &true_one[..];
    let header = RecipeHeader::decode_length_delimited(&mut rest).unwrap();
    let mut bytes = header.encode_length_delimited_to_vec();
    while !rest.is_empty() {
        let mut of = RecipeContent::decode_length_delimited(&mut rest).unwrap();
        change(&mut of);
        bytes.extend(of.encode_length_delimited_to_vec());
    }
    named(Recipe::parse(&bytes, &sample.layout).unwrap())
}

/// The recipe of an image, with places as who reads the registry's blobs finds them.
pub(crate) fn recipe(sample: &Sample) -> NamedRecipe {
    let made = sample.layout.contents().into_iter().map(|spec| {
        let mut maker = Maker::of(&spec);
        let bytes = &sample.contents[&spec.digest];
        if matches!(spec.kind, image::ContentKind::RawLayer { .. }) {
            let blob = apple_lz4::encode(bytes);
            let (mut decoder, mut input) =
                (apple_lz4::Decoder::new(spec.geometry.size()), &blob[..]);
            while let Some(block) = decoder.feed(&mut input).unwrap() {
                maker
                    .take_block(block.start.blob_offset, block.raw)
                    .unwrap();
            }
        } else {
            maker.take(bytes).unwrap();
        }
        maker.finish().unwrap()
    });
    named(Recipe::new(&sample.layout, made).unwrap())
}

fn named(recipe: Recipe) -> NamedRecipe {
    let bytes = recipe.encode();
    let file = image::Blob {
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
    };
    NamedRecipe { file, recipe }
}

pub(crate) fn begin_by(store: &Store, sample: &Sample, by: &NamedRecipe) -> (Arc<Stage>, u64) {
    let by = Some((by, &BTreeSet::new()));
    let (layout, manifest) = (&sample.layout, &sample.manifest);
    store
        .begin_by(layout, manifest, &["ghcr.io/org/image:two".into()], by)
        .unwrap()
}

/// Writes every chunk of each content, the last chunk first.
pub(crate) fn fill(stage: &Stage, sample: &Sample) {
    for (digest, bytes) in &sample.contents {
        for (chunk, link, bytes) in links(bytes).into_iter().rev() {
            stage
                .write(
                    *digest,
                    chunk,
                    bytes,
                    link,
                    source("mac-1"),
                    (&host("mac-1"), None),
                )
                .unwrap();
        }
        assert_eq!(stage.walk(*digest).unwrap(), []);
        assert!(stage.is_closed(*digest));
    }
}

fn install(stage: &Stage, references: &[&str]) -> Result<(), InstallError> {
    let references: Vec<_> = references.iter().map(ToString::to_string).collect();
    super::install(stage, &references)
}

fn image_dir(home: &TempDir, repository: &str, sample: &Sample) -> PathBuf {
    let home = fs::canonicalize(home.path()).unwrap();
    home.join("cache/OCIs")
        .join(repository)
        .join(sample.layout.digest().to_string())
}

fn assert_installed(directory: &Path, sample: &Sample) {
    assert_parts(directory, sample);
    let manifest = fs::read(directory.join(cache::MANIFEST)).unwrap();
    assert!(manifest == sample.manifest, "manifest differs");
}

/// Checks all files that tart reads of an image.
fn assert_parts(directory: &Path, sample: &Sample) {
    for (name, source) in [(cache::DISK, &sample.disk), (cache::CONFIG, &sample.config)] {
        let found = fs::read(directory.join(name)).unwrap();
        assert!(found == *source, "{name} differs");
    }
    let nvram = fs::read(directory.join(cache::NVRAM)).unwrap();
    assert_eq!(Digest::of(&nvram), sample.layout.nvram().digest);
}

const TAG: &str = "ghcr.io/org/image:one";

pub(crate) fn ours(home: &TempDir, sample: &Sample) -> PathBuf {
    home.path()
        .join(ROOT)
        .join(sample.layout.digest().hex().to_string())
}

#[test]
fn a_lie_is_dropped_for_good() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let digest = sample.layout.layers()[0].raw.unwrap();
    let truth = links(&sample.contents[&digest]);
    let geometry = Geometry::new(sample.contents[&digest].len() as u64).unwrap();
    let lie = vec![9; 1 << 20];
    let false_link = Link::forge(geometry, ChunkIndex(2), truth[2].1.before, &lie);
    assert!(false_link.holds(geometry, ChunkIndex(2), &lie));
    let write = |stage: &Stage, chunk, bytes: &[u8], link, from| {
        stage.write(
            digest,
            chunk,
            bytes,
            link,
            source(from),
            (&host(from), None),
        )
    };
    write(&stage, ChunkIndex(2), &lie, false_link, "liar").unwrap();
    assert!(stage.read(digest, ChunkIndex(2)).unwrap().is_some());
    write(&stage, ChunkIndex(3), truth[3].2, truth[3].1, "mac-1").unwrap();
    store.flush().unwrap();
    let verdicts = stage.walk(digest).unwrap();
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].source, source("liar"));
    assert!(stage.read(digest, ChunkIndex(2)).unwrap().is_none());
    drop((stage, store));

    let store = open(&home);
    let stage = store.stage(sample.layout.digest()).unwrap();
    assert!(!stage.held(digest).contains(ChunkIndex(2)));
    assert!(stage.held(digest).contains(ChunkIndex(3)));
    let error = write(&stage, ChunkIndex(2), &lie, false_link, "liar").unwrap_err();
    assert!(matches!(
        error,
        WriteError::Rejected(RejectLinkError::Disproved(_))
    ));
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
}

#[test]
fn what_was_copied_from_another_image_survives_a_beginning_that_fails() {
    let blob = apple_lz4::encode(&noise(1_500_000, 9));
    let (home, one, other) = (
        tempfile::tempdir().unwrap(),
        sample_with(1, Some(blob.clone())),
        sample_with(2, Some(blob)),
    );
    let store = open(&home);
    let (stage, copied) = begin(&store, &one, &[TAG]);
    assert_eq!(copied, 0);
    fill(&begin(&store, &other, &["ghcr.io/org/other:one"]).0, &other);
    // the raw layer that both images have can be copied; the blob that both have can't
    fs::remove_dir(ours(&home, &one).join("blobs")).unwrap();
    fs::write(ours(&home, &one).join("blobs"), "no directory").unwrap();
    let again = store.begin(&one.layout, &one.manifest, &[TAG.into()]);
    assert!(matches!(again, Err(BeginError::Copy(_))), "{again:?}");
    drop((stage, store));
    let store = open(&home);
    let stage = store.stage(one.layout.digest()).unwrap();
    let closed = |digest: &&Digest| stage.is_closed(**digest);
    assert_eq!(one.contents.keys().filter(closed).count(), 1);
}

#[test]
fn what_rotted_in_an_installed_image_is_mended_after_a_restart() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    drop((stage, store));
    let store = open(&home);
    let stage = store.recovered().remove(0).stage;
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    let disk = fs::File::options()
        .write(true)
        .open(directory.join(cache::DISK))
        .unwrap();
    disk.write_all_at(b"rot", 5).unwrap();
    let (digest, bytes) = sample
        .contents
        .iter()
        .find(|(_, bytes)| sample.disk.starts_with(bytes))
        .unwrap();
    assert!(!stage.scrub(*digest, ChunkIndex(0)).unwrap());
    let (chunk, link, bytes) = links(bytes).remove(0);
    stage
        .write(
            *digest,
            chunk,
            bytes,
            link,
            source("mac-1"),
            (&host("mac-1"), None),
        )
        .unwrap();
    store.flush().unwrap();
    assert_installed(&directory, &sample);
}

#[test]
fn a_scrub_drops_what_rotted() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let digest = sample.layout.layers()[1].raw.unwrap();
    assert!(stage.scrub(digest, ChunkIndex(0)).unwrap());
    let disk = ours(&home, &sample).join("image/disk.img");
    let disk = fs::OpenOptions::new().write(true).open(disk).unwrap();
    disk.write_all_at(b"?", sample.layout.layers()[1].offset)
        .unwrap();
    assert!(!stage.scrub(digest, ChunkIndex(0)).unwrap());
    assert!(!stage.is_closed(digest) && stage.held(digest).contains(ChunkIndex(1)));
    assert!(stage.read(digest, ChunkIndex(0)).unwrap().is_none());
    drop((stage, store));
    let store = open(&home);
    let stage = store.stage(sample.layout.digest()).unwrap();
    assert!(!stage.held(digest).contains(ChunkIndex(0)));
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
}

#[test]
fn an_abandoned_stage_leaves_nothing_and_an_installed_image_stays() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    store.abandon(*sample.layout.digest()).unwrap();
    assert!(!ours(&home, &sample).exists());
    let digest = sample.layout.config().digest;
    let (chunk, link, bytes) = links(&sample.config).remove(0);
    let written = stage.write(
        digest,
        chunk,
        bytes,
        link,
        source("mac-1"),
        (&host("mac-1"), None),
    );
    assert!(matches!(written, Err(WriteError::Gone)));
    assert!(matches!(install(&stage, &[]), Err(InstallError::Gone)));
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    store.abandon(*sample.layout.digest()).unwrap();
    assert_eq!(store.presence().len(), 1);
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
}

#[test]
fn a_stage_keeps_its_beginning_over_a_restart_and_one_made_anew_has_another() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    // an hour ago, so that the clock's resolution doesn't matter
    let begun = stage.begun_at().unwrap() - Duration::from_hours(1);
    let manifest = fs::File::options()
        .write(true)
        .open(ours(&home, &sample).join("manifest.json"));
    manifest.unwrap().set_modified(begun).unwrap();
    fill(&stage, &sample);
    store.flush().unwrap();
    drop((stage, store));
    let store = open(&home);
    let recovered = store.recovered().remove(0);
    assert_eq!(recovered.stage.begun_at(), Some(begun));
    let (stage, _) = begin(&store, &sample, &[TAG]);
    install(&stage, &[]).unwrap();
    assert_eq!(stage.begun_at(), Some(begun));
    drop((recovered, stage));
    fs::remove_dir_all(home.path().join("cache")).unwrap();
    let (stage, _) = begin(&store, &sample, &[TAG]);
    assert!(stage.begun_at().unwrap() > begun + Duration::from_mins(59));
}

#[test]
fn threads_that_bring_the_same_chunk_store_it_once() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let new: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut new = 0;
                    for (digest, bytes) in &sample.contents {
                        for (chunk, link, bytes) in links(bytes) {
                            let entered = stage
                                .write(
                                    *digest,
                                    chunk,
                                    bytes,
                                    link,
                                    source("mac-1"),
                                    (&host("mac-1"), None),
                                )
                                .unwrap();
                            new += usize::from(entered == Entered::New);
                            stage.flush().unwrap();
                        }
                    }
                    new
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    let chunks: usize = sample
        .contents
        .values()
        .map(|bytes| links(bytes).len())
        .sum();
    assert_eq!(new, chunks);
}

#[test]
fn a_second_agent_is_refused_by_name() {
    let home = tempfile::tempdir().unwrap();
    let first = open(&home);
    let error = Store::open(home.path(), options()).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {}", std::process::id())) && error.contains(".parbake"),
        "{error}"
    );
    drop(first);
    open(&home);
    assert!(matches!(
        Store::open(&home.path().join("none"), options()),
        Err(OpenStoreError::NoHome { .. })
    ));
}

#[test]
fn the_floor_holds_on_both_sides() {
    fn roomy(_: &Path) -> io::Result<Space> {
        Ok(Space {
            total_bytes: 100 << 30,
            free_bytes: (15 << 30) + (40 << 20),
        })
    }
    let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(2));
    let with = |floor_percent| Options {
        floor_percent,
        space: roomy,
        ..options()
    };
    let store = Store::open(home.path(), with(16)).unwrap();
    let error = store
        .begin(&one.layout, &one.manifest, &[TAG.into()])
        .unwrap_err();
    assert!(
        matches!(error, BeginError::NoRoom(NoRoomError { floor_bytes, reserved_bytes: 0, .. }) if floor_bytes == 16 << 30),
        "{error}"
    );
    assert!(!ours(&home, &one).exists());
    // bytes that the system would purge make room, but never more than the volume has
    let free = store.volume().free_bytes;
    store.set_capacity(free + (1 << 30) + (20 << 20));
    assert_eq!(store.volume().free_bytes, (16 << 30) + (60 << 20));
    begin(&store, &one, &[TAG]);
    store.abandon(*one.layout.digest()).unwrap();
    store.set_capacity(u64::MAX);
    assert_eq!(store.volume().free_bytes, 100 << 30);
    store.set_capacity(0);
    assert_eq!(store.volume().free_bytes, free);
    drop(store);
    // 40 MiB above the floor are enough for several images of 10 MiB. Each counts before it takes a byte.
    let store = Store::open(home.path(), with(15)).unwrap();
    let (stage, _) = begin(&store, &one, &[TAG]);
    let need = stage.outstanding_bytes();
    assert!(need > one.layout.disk_bytes());
    let mut begun = 1;
    let refused = loop {
        let next = sample(100 + begun);
        match store.begin(&next.layout, &next.manifest, &[TAG.into()]) {
            Ok(_) => begun += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, BeginError::NoRoom(NoRoomError { reserved_bytes, .. }) if reserved_bytes > 0),
        "{refused}"
    );
    assert!((2..5).contains(&begun), "{begun}");
    store.abandon(*one.layout.digest()).unwrap();
    assert!(!ours(&home, &one).exists() && stage.is_gone());
    begin(&store, &two, &[TAG]);
}

#[test]
fn references_that_lead_elsewhere_are_refused() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let other = format!("ghcr.io/a@{}", Digest::of(b"other"));
    for bad in ["ghcr.io/../../etc:x", "image", "/a/b:c", other.as_str()] {
        let error = store
            .begin(&sample.layout, &sample.manifest, &[bad.into()])
            .unwrap_err();
        assert!(matches!(error, BeginError::Reference(_)), "{error}");
    }
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    assert!(matches!(
        install(&stage, &["ghcr.io/..:x"]),
        Err(InstallError::Reference(_))
    ));
}

#[test]
fn a_layer_that_does_not_decode_is_named() {
    let good = apple_lz4::encode(&noise(1_500_000, 3));
    let bomb = apple_lz4::encode(&vec![0; 1_500_001]);
    let short = apple_lz4::encode(&vec![0; 1_499_999]);
    let mut corrupt = good;
    corrupt[3000..3200].fill(0xff);
    for blob in [
        bomb,
        short,
        corrupt[..1_000_000].to_vec(),
        b"nonsense".to_vec(),
    ] {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, Some(blob)));
        let store = open(&home);
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        let error = install(&stage, &[]).unwrap_err();
        assert!(
            matches!(error, InstallError::Layer(DecodeLayerError::Bad { .. })),
            "{error}"
        );
        assert!(error.to_string().starts_with("layer 4 (sha256:"), "{error}");
        assert_eq!(store.presence(), []);
    }
}

/// A layer without a raw digest is decoded as soon as its blob is here, and the installation writes nothing of it.
#[test]
fn a_layer_is_decoded_before_the_image_is_whole() {
    let (home, sample) = (
        tempfile::tempdir().unwrap(),
        sample_with(1, Some(Vec::new())),
    );
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let layers = sample.layout.layers();
    let layer = layers.iter().find(|layer| layer.raw.is_none()).unwrap();
    let blob = layer.blob.digest;
    assert!(sample.layout.has_encoded(&blob));
    assert!(matches!(
        stage.decode(blob),
        Err(DecodeLayerError::Rotten { content }) if content == blob
    ));
    let all = sample.contents.clone().into_iter();
    let (encoded, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.partition(|(content, _)| *content == blob);
    let part = |contents| Sample {
        contents,
        ..sample_with(1, Some(Vec::new()))
    };
    fill(&stage, &part(encoded));
    let before = stage.files().written_bytes();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| stage.decode(blob).unwrap());
        }
    });
    let written = stage.files().written_bytes() - before;
    assert!(
        (1..=layer.raw_bytes).contains(&written),
        "it is decoded once: {written}"
    );
    // contents that are no blobs of layers are left alone
    for content in others.keys() {
        assert!(!sample.layout.has_encoded(content));
        stage.decode(*content).unwrap();
    }
    fill(&stage, &part(others));
    let before = stage.files().written_bytes();
    install(&stage, &[TAG]).unwrap();
    assert_eq!(stage.files().written_bytes(), before);
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &sample), &sample);
}

#[test]
fn verifying_names_the_first_bad_layer_and_chunk() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let check = || verify(home.path(), TAG, |done, total| assert!(done <= total));
    assert_eq!(check().unwrap().digest, *sample.layout.digest());
    let by_digest = |image: &Digest| verify(home.path(), &image.to_string(), |_, _| {});
    let named = by_digest(sample.layout.digest()).unwrap();
    assert_eq!(Ok(named), check().map_err(|error| error.to_string()));
    assert!(matches!(
        by_digest(&Digest::of(b"another image")),
        Err(VerifyError::NotThere { .. })
    ));
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    let disk = fs::OpenOptions::new()
        .write(true)
        .open(directory.join(cache::DISK))
        .unwrap();
    let flip = |at: u64| {
        disk.write_all_at(&[!sample.disk[usize::try_from(at).unwrap()]], at)
            .unwrap();
        let error = check().unwrap_err();
        disk.write_all_at(&sample.disk[usize::try_from(at).unwrap()..][..1], at)
            .unwrap();
        error.to_string()
    };
    let layers = sample.layout.layers();
    let text = flip(layers[2].offset + 2 * CHUNK_BYTES + 9);
    assert!(
        text.starts_with("layer 3 (") && text.ends_with("from chunk 2 on"),
        "{text}"
    );
    let text = flip(layers[3].offset + 1_300_000);
    assert!(text.starts_with("layer 4 ("), "{text}");
    assert!(check().is_ok());
    fs::write(directory.join(cache::CONFIG), "{}").unwrap();
    assert!(matches!(check(), Err(VerifyError::File { .. })));
    assert!(matches!(
        verify(home.path(), "ghcr.io/org/none:x", |_, _| {}),
        Err(VerifyError::NotThere { .. })
    ));
}

#[test]
fn leftovers_are_pruned() {
    let (home, one) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    begin(&store, &one, &[TAG]);
    drop(store);
    let root = home.path().join(ROOT);
    let leftover = root.join("0".repeat(64));
    fs::create_dir_all(leftover.join("image")).unwrap();
    fs::write(root.join("note"), "not ours to judge").unwrap();
    let store = open(&home);
    assert!(!leftover.exists() && root.join("note").exists());
    assert_eq!(store.recovered().len(), 1);
    drop(store);
    // somebody replaced the disk, so the journal describes another file
    let disk = ours(&home, &one).join("image/disk.img");
    let copy = fs::read(&disk).unwrap();
    fs::write(disk.with_file_name("other"), copy).unwrap();
    fs::rename(disk.with_file_name("other"), &disk).unwrap();
    let store = open(&home);
    assert_eq!(store.recovered().len(), 0);
    assert!(!ours(&home, &one).exists());
}

/// A sample with all its chunks and their links, made once for all cases of a property.
struct Prepared {
    sample: Sample,
    chunks: Vec<(Digest, ChunkIndex, Link, Vec<u8>)>,
}

impl Prepared {
    fn of(sample: Sample) -> Self {
        let mut chunks = Vec::new();
        for (digest, bytes) in &sample.contents {
            for (chunk, link, bytes) in links(bytes) {
                chunks.push((*digest, chunk, link, bytes.to_vec()));
            }
        }
        Self { sample, chunks }
    }
}

fn prepared() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| Prepared::of(sample(1)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever part of the journal survives, each held chunk has the bytes that its link proves, and the image can be
    /// completed and installed.
    #[test]
    fn any_crash_leaves_only_true_chunks(
        order in prop::collection::vec((any::<prop::sample::Index>(), 0..10u8), 1..14),
        cut in any::<prop::sample::Index>(),
        flip in prop::option::of((any::<prop::sample::Index>(), 1u8..=255)),
    ) {
        let (home, Prepared { sample, chunks }) = (tempfile::tempdir().unwrap(), prepared());
        let store = open(&home);
        let (stage, _) = begin(&store, sample, &[TAG]);
        for (at, action) in order {
            let (digest, chunk, link, bytes) = at.get(chunks);
            match action {
                0 => stage.flush().unwrap(),
                1 => drop(stage.walk(*digest).unwrap()),
                2 => {
                    let lie = vec![action; bytes.len()];
                    let geometry = Geometry::new(sample.contents[digest].len() as u64).unwrap();
                    let link = Link::forge(geometry, *chunk, link.before, &lie);
                    drop(stage.write(*digest, *chunk, &lie, link, source("liar"), (&host("liar"), None)));
                }
                _ => drop(stage.write(*digest, *chunk, bytes, *link, source("mac-1"), (&host("mac-1"), None))),
            }
        }
        drop((stage, store));
        let path = ours(&home, sample).join(JOURNAL);
        let mut journal = fs::read(&path).unwrap();
        journal.truncate(cut.index(journal.len() + 1));
        if let Some((at, flip)) = flip && !journal.is_empty() {
            let at = at.index(journal.len());
            journal[at] ^= flip;
        }
        fs::write(&path, &journal).unwrap();

        let store = open(&home);
        let (stage, _) = begin(&store, sample, &[TAG]);
        for (digest, bytes) in &sample.contents {
            let geometry = Geometry::new(bytes.len() as u64).unwrap();
            for chunk in stage.held(*digest).iter() {
                let held = stage.read(*digest, chunk).unwrap().unwrap();
                prop_assert!(held.link.holds(geometry, chunk, &held.bytes));
            }
        }
        // write true chunks until every content is closed, while the walks drop the lies
        while !stage.is_complete() {
            for (digest, chunk, link, bytes) in chunks {
                drop(stage.write(*digest, *chunk, bytes, *link, source("mac-1"), (&host("mac-1"), None)));
            }
            for digest in sample.contents.keys() {
                stage.walk(*digest).unwrap();
            }
        }
        install(&stage, &[]).unwrap();
        assert_installed(&image_dir(&home, "ghcr.io/org/image", sample), sample);
    }
}

#[test]
fn an_image_without_room_begins_where_something_else_makes_some() {
    /// A volume of 32 MiB, on which the home's file `spare` takes its size.
    fn space(home: &Path) -> io::Result<Space> {
        let spare = fs::metadata(home.join("spare")).map_or(0, |found| found.len());
        Ok(Space {
            total_bytes: 32 << 20,
            free_bytes: (32 << 20) - spare,
        })
    }
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let with = Options { space, ..options() };
    let store = Store::open(home.path(), with).unwrap();
    let spare = home.path().join("spare");
    fs::write(&spare, vec![0; 31 << 20]).unwrap();
    let begin = |make_room: &dyn Fn(u64) -> bool| {
        store.begin_making_room(
            &sample.layout,
            &sample.manifest,
            &[TAG.into()],
            None,
            make_room,
        )
    };
    let refused = begin(&|_| false).unwrap_err();
    let BeginError::NoRoom(NoRoomError {
        need_bytes,
        free_bytes,
        ..
    }) = refused
    else {
        panic!("{refused}");
    };
    let (stage, _) = begin(&|bytes| {
        assert_eq!(bytes, need_bytes - free_bytes);
        let left = (31 << 20) - usize::try_from(bytes).unwrap();
        fs::write(&spare, vec![0; left]).is_ok()
    })
    .unwrap();
    assert_eq!(store.outstanding_bytes(), stage.outstanding_bytes());
}

#[test]
fn who_may_have_an_image_outlives_a_restart_and_is_nobody_where_the_notes_are_damaged() {
    let home = tempfile::tempdir().unwrap();
    let sample = sample(1);
    let digest = *sample.layout.digest();
    let hosts = |names: &[&str]| {
        Some(Arc::new(
            names.iter().map(|name| host(name).key()).collect(),
        ))
    };
    let store = open(&home);
    // the hosts are set before anything of the image is here, so that no crash leaves the image open to all hosts
    store.entitle(digest, hosts(&["mac-1", "mac-2"]));
    let (stage, _) = begin(&store, &sample, &[TAG]);
    assert_eq!(stage.entitled(), hosts(&["mac-1", "mac-2"]));
    fill(&stage, &sample);
    install(&stage, &[TAG]).unwrap();
    drop((stage, store));

    let store = open(&home);
    let stage = store.recovered().remove(0).stage;
    assert_eq!(stage.entitled(), hosts(&["mac-1", "mac-2"]));
    for said in [hosts(&["mac-1"]), None, hosts(&["mac-3"])] {
        store.entitle(digest, said.clone());
        store.keep_entitled(&digest).unwrap();
        assert_eq!(stage.entitled(), said);
    }
    drop((stage, store));

    let store = open(&home);
    assert_eq!(store.recovered()[0].stage.entitled(), hosts(&["mac-3"]));
    drop(store);
    let notes = home.path().join(ROOT).join(digest.hex().to_string());
    fs::write(notes.join(STATUS), "{").unwrap();
    let store = open(&home);
    let stage = store.stage(&digest).unwrap();
    assert_eq!(stage.entitled(), hosts(&[]));
}
