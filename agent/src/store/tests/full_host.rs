//! The memory of a host that has many disks, while images begin together.
//!
//! The sizes are real, the bytes aren't: recipes and indexes are of random numbers, and disks are holes. So everything
//! is looked for, and nothing is found.
//!
//! `PARBAKE_FULL_HOST_LAYERS=261 cargo test -p agent --lib full_host -- --nocapture` prints what eight disks of
//! 140 GB and four images of 140 GB take.

use std::process::Command;

use super::*;
use crate::{
    platform::cloning,
    store::{
        blocks::{Index, Key},
        found::{self, FoundDisk, scan::header},
        recipes as files,
        tree::INDEX,
    },
};

/// The directory in which the child process finds what was generated.
const DIRECTORY: &str = "PARBAKE_TEST_DIRECTORY";
/// Bytes of a layer as tart makes them.
const LAYER: u64 = 512 << 20;
const DISKS: u64 = 8;
/// As many images as the agent begins at one time.
const IMAGES: u64 = 4;
/// Pages of a block: 16 KiB.
const BLOCK_PAGES: u64 = 4;
/// The most bytes of indexes and searches.
const MOST: u64 = 64 << 20;

fn layers() -> u64 {
    let layers = std::env::var("PARBAKE_FULL_HOST_LAYERS");
    layers.map_or(48, |layers| layers.parse().unwrap())
}

/// Memory of this process in bytes, as the system counts it under this name.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)).unwrap();
    let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    number.parse::<u64>().unwrap() << 10
}

/// The manifest of an image of many layers, of which nothing is anywhere.
fn manifest(image: u64) -> (Layout, Vec<u8>) {
    let digest = |what: &str, at: u64| Digest::of(format!("{image} {what} {at}").as_bytes());
    let small = |kind: &str, size: u64| serde_json::json!({"mediaType": kind, "digest": digest(kind, 0).to_string(), "size": size});
    let mut all = vec![small(image::CONFIG_TYPE, 900)];
    all.extend((0..layers()).map(|at| {
        serde_json::json!({
            "mediaType": image::DISK_TYPE, "digest": digest("blob", at).to_string(), "size": 200 << 20,
            "annotations": {
                image::RAW_SIZE_ANNOTATION: LAYER.to_string(),
                image::RAW_DIGEST_ANNOTATION: digest("raw", at).to_string(),
            },
        })
    }));
    all.push(small(image::NVRAM_TYPE, 70_000));
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": image::MANIFEST_TYPE, "layers": all,
        "annotations": {image::DISK_SIZE_ANNOTATION: (layers() * LAYER).to_string()},
    }))
    .unwrap();
    let layout = Layout::parse(&manifest, &Digest::of(&manifest)).unwrap();
    (layout, manifest)
}

/// A recipe of the image, as long as a true one.
fn random_recipe(layout: &Layout, seed: u64) -> Vec<u8> {
    let mut bytes = Recipe::encode_header(layout.digest());
    for (spec, seed) in layout.contents().into_iter().zip(seed..) {
        let chunks = spec.geometry.chunks() as usize;
        let blocks = match spec.kind {
            image::ContentKind::RawLayer { .. } => spec.geometry.size() / (BLOCK_PAGES << 12),
            image::ContentKind::Blob => 0,
        };
        let blocks = usize::try_from(blocks).unwrap();
        let columns = noise(48 * chunks + 5 * blocks, seed);
        let (states, rest) = columns.split_at(32 * (chunks - 1));
        let (fingerprints, rest) = rest.split_at(16 * chunks);
        let content = RecipeContent {
            digest: spec.digest.as_bytes().to_vec(),
            size: spec.geometry.size(),
            states: states.to_vec(),
            fingerprints: fingerprints.to_vec(),
            block_lengths: vec![0x44; blocks / 2],
            block_prints: rest[..5 * blocks].to_vec(),
            ..RecipeContent::default()
        };
        bytes.extend(content.encode_length_delimited_to_vec());
    }
    bytes
}

/// The blocks of a disk, one after the other.
fn each_block(seed: u64, take: &mut dyn FnMut(proto::BlockPrint, u32)) {
    let mut state = seed;
    for block in 0..layers() * LAYER / (BLOCK_PAGES << 12) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let [a, b, c, d, e, ..] = state.to_be_bytes();
        let page = u32::try_from(block * BLOCK_PAGES).unwrap();
        take(proto::BlockPrint::from_bytes([a, b, c, d, e]), page);
    }
}

/// Makes a disk of holes, and notes on it as reading it would.
fn note_disk(home: &Path, number: u64) {
    let below = format!("vms/{number}/disk.img");
    let path = home.join(&below);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(&path).unwrap();
    file.set_len(layers() * LAYER).unwrap();
    let disk = FoundDisk::new(home, &below, &[], layers() * LAYER).unwrap();
    drop(disk.begin(home).unwrap());
    let notes = found::directory(home).join(Digest::of(below.as_bytes()).hex().to_string());
    let key = disk.key().unwrap();
    let mut prints = header(&key);
    let chunks = usize::try_from((layers() * LAYER) >> 20).unwrap();
    prints.extend(noise(16 * chunks, 1_000 + number));
    fs::write(notes.join("prints"), prints).unwrap();
    make_index(&notes, &key, number);
    fs::remove_file(notes.join("scan")).unwrap();
    assert!(disk.is_read());
}

fn make_index(directory: &Path, key: &Key, seed: u64) {
    let index = Index::make(&directory.join(INDEX), key, &mut |take| {
        each_block(seed, take);
        Ok(())
    });
    drop(index.unwrap());
}

/// Begins all images, each on a thread of its own, by its recipe or without one.
fn begin_all(store: &Store, images: &[(Layout, Vec<u8>, NamedRecipe)], by_recipe: bool) {
    std::thread::scope(|scope| {
        for (layout, manifest, by) in images {
            scope.spawn(move || {
                cloning::PRETENDED.set(true);
                let in_doubt = BTreeSet::new();
                let by = by_recipe.then_some((by, &in_doubt));
                let name = format!("ghcr.io/org/{}:x", layout.digest().hex());
                store.begin_by(layout, manifest, &[name], by).unwrap();
            });
        }
    });
}

/// What the child process does. Prints how much memory it took.
fn take_memory(home: &Path) {
    let roomy = |_: &Path| {
        Ok(Space {
            total_bytes: 1 << 50,
            free_bytes: 1 << 50,
        })
    };
    let with = Options {
        search: Duration::from_secs(2),
        space: roomy,
        ..options()
    };
    let store = Store::open(home, with).unwrap();
    // a start removes recipes that no stage names
    fs::rename(home.join("aside"), files::directory(home)).unwrap();
    let images = (0..IMAGES).map(|image| {
        let (layout, manifest) = manifest(image);
        let name = fs::read_to_string(home.join(image.to_string())).unwrap();
        let file = image::Blob {
            digest: name.parse().unwrap(),
            size: 1,
        };
        let recipe = files::read(home, &file.digest, &layout).unwrap();
        (layout, manifest, NamedRecipe { file, recipe })
    });
    let images: Vec<_> = images.collect();
    begin_all(&store, &images, false);
    // the images, their recipes without blocks, and their stages
    let before = memory("VmRSS");
    let key = FoundDisk::known(home)[0].key().unwrap();
    make_index(home, &key, 77);
    let indexed = memory("VmHWM").saturating_sub(before);
    begin_all(&store, &images, true);
    let searched = memory("VmHWM").saturating_sub(before);
    let mb = |bytes: u64| bytes / 1_000_000;
    println!(
        "{DISKS} disks and {IMAGES} images of {} GB with {} blocks each: {} MB before, {} MB more for an index, {} MB \
         more at most for {IMAGES} beginnings",
        layers() * LAYER / 1_000_000_000,
        layers() * LAYER / (BLOCK_PAGES << 12),
        mb(before),
        mb(indexed),
        mb(searched),
    );
    println!("took {searched}");
}

#[test]
fn a_full_host_indexes_and_searches_in_64_mb() {
    if let Ok(directory) = std::env::var(DIRECTORY) {
        return take_memory(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let home = fs::canonicalize(directory.path()).unwrap();
    fs::create_dir_all(home.join("aside")).unwrap();
    fs::create_dir_all(home.join(ROOT)).unwrap();
    for image in 0..IMAGES {
        let (layout, _) = manifest(image);
        let bytes = random_recipe(&layout, 10_000 * (image + 1));
        let name = Digest::of(&bytes);
        fs::write(home.join("aside").join(name.hex().to_string()), bytes).unwrap();
        fs::write(home.join(image.to_string()), name.to_string()).unwrap();
    }
    for number in 0..DISKS {
        note_disk(&home, number);
    }
    // a process of its own, whose memory nobody else takes
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("store::tests::full_host::a_full_host_indexes_and_searches_in_64_mb")
        .env(DIRECTORY, &home)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{child:?}");
    print!("{said}");
    let took = said.lines().find_map(|line| line.strip_prefix("took "));
    let took: u64 = took.unwrap().parse().unwrap();
    assert!(took < MOST, "{took}");
}
