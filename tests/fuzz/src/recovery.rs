//! Recovery of a store: whatever a journal says, the store opens, a scrub finds what is false, and with the true chunks
//! the image becomes whole and is installed.
//!
//! Input: a mode byte, then what the journal holds behind its header. Mode 0: pieces, each with its length before it (2
//! bytes, little-endian), which become batches with right checks, so that what the checks would hide is read too; what
//! is left is a torn tail. Mode 1: bytes as they are.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use agent::store::{Options, Stage, Store, install};
use proto::{
    CHUNK_BYTES, ChunkIndex, Digest, Geometry, HostId, Layout, Link, Source, State,
    image::{
        CONFIG_TYPE, DISK_SIZE_ANNOTATION, DISK_TYPE, MANIFEST_TYPE, NVRAM_TYPE,
        RAW_DIGEST_ANNOTATION, RAW_SIZE_ANNOTATION,
    },
};
use serde_json::json;

const REFERENCE: &str = "ghcr.io/org/image:one";

/// `parbake journal`, version 1.
const MAGIC: &[u8; 16] = b"parbake journal\x01";

pub(crate) fn run(input: &[u8]) {
    let Some((mode, journal)) = input.split_first() else {
        return;
    };
    let home = home();
    let sample = sample();
    drop(begun(home.path()));
    let stage = stage_directory(home.path());
    for (file, bytes) in [
        ("disk.img", &sample.contents[0].bytes),
        ("config.json", &sample.contents[1].bytes),
        ("nvram.bin", &sample.contents[2].bytes),
    ] {
        // in place: the store knows its disk by the inode
        fs::write(stage.join("image").join(file), bytes).expect("a file of the stage");
    }
    let mut file = header();
    if mode & 1 == 0 {
        seal(&mut file, journal);
    } else {
        file.extend_from_slice(journal);
    }
    fs::write(stage.join("journal"), &file).expect("the journal");

    let (_store, stage) = begun(home.path());
    for content in &sample.contents {
        let geometry = content.geometry();
        assert_eq!(stage.held(content.digest).chunks(), geometry.chunks());
        for chunk in stage.held(content.digest).iter() {
            let kept = stage.scrub(content.digest, chunk).expect("the disk works");
            assert_eq!(kept, stage.held(content.digest).contains(chunk));
        }
        for chunk in stage.held(content.digest).iter() {
            let held = stage.read(content.digest, chunk).expect("the disk works");
            let held = held.expect("it is held");
            assert!(held.link.holds(geometry, chunk, &held.bytes));
        }
        // each walk drops what it proves false, of one source at least
        let mut rounds = 0;
        while !stage.is_closed(content.digest) {
            content.write(&stage, "mac-1");
            stage.walk(content.digest).expect("the journal works");
            rounds += 1;
            assert!(rounds <= 2 + geometry.chunks(), "it never closes");
        }
    }
    install(&stage, &[]).expect("it is whole");
    for (file, bytes) in [
        ("disk.img", &sample.contents[0].bytes),
        ("config.json", &sample.contents[1].bytes),
        ("nvram.bin", &sample.contents[2].bytes),
    ] {
        let installed = home
            .path()
            .join("cache/OCIs/ghcr.io/org/image/one")
            .join(file);
        assert!(
            fs::read(installed).is_ok_and(|found| found == *bytes),
            "{file}"
        );
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let sample = sample();
    let disk = &sample.contents[0];
    let journal = |act: &dyn Fn(&Stage)| {
        let home = home();
        let (store, stage) = begun(home.path());
        act(&stage);
        stage.flush().expect("the disk works");
        drop((store, stage));
        fs::read(stage_directory(home.path()).join("journal")).expect("the journal")
    };
    let whole = journal(&|stage| {
        for content in &sample.contents {
            content.write(stage, "mac-1");
            stage.flush().expect("the disk works");
        }
    });
    let lied_to = journal(&|stage| {
        let lie = vec![9; 1 << 20];
        let link = Link::forge(disk.geometry(), ChunkIndex(1), disk.links[1].before, &lie);
        let write = |chunk, bytes, link, from: &str| {
            stage
                .write(
                    disk.digest,
                    ChunkIndex(chunk),
                    bytes,
                    link,
                    source(from),
                    (&host(from), None),
                )
                .expect("the disk works");
        };
        write(1, &lie, link, "liar");
        write(2, disk.chunk(2), disk.links[2], "mac-2");
        stage.flush().expect("the disk works");
        stage.walk(disk.digest).expect("the disk works");
        write(1, disk.chunk(1), disk.links[1], "mac-2");
    });
    let mut seeds = vec![vec![0], vec![1]];
    for journal in [whole, lied_to] {
        seeds.push([&[1], &journal[header().len()..]].concat());
        seeds.push([&[0][..], &unseal(&journal[header().len()..])].concat());
    }
    seeds
}

/// An image with everything that recovery treats in its own way: noise, a chunk of zeros, a short last chunk.
struct Sample {
    layout: Layout,
    manifest: Vec<u8>,
    /// The disk's one layer, config, nvram.
    contents: [Content; 3],
}

struct Content {
    digest: Digest,
    bytes: Vec<u8>,
    links: Vec<Link>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        let mut content = Self {
            digest: Digest::of(&bytes),
            bytes,
            links: Vec::new(),
        };
        let mut state = State::INITIAL;
        for chunk in 0..content.geometry().chunks() {
            let link = Link::forge(
                content.geometry(),
                ChunkIndex(chunk),
                state,
                content.chunk(chunk),
            );
            state = link.after;
            content.links.push(link);
        }
        content
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.bytes.len() as u64).expect("a small content")
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        let size = usize::try_from(CHUNK_BYTES).expect("a chunk fits in memory");
        self.bytes
            .chunks(size)
            .nth(chunk as usize)
            .expect("a chunk of the content")
    }

    /// Writes every chunk that isn't held, as far as the ledger takes it.
    fn write(&self, stage: &Stage, from: &str) {
        for (chunk, link) in (0..).zip(&self.links) {
            // A false neighbour can have a true link refused, until the walk has found it.
            drop(stage.write(
                self.digest,
                ChunkIndex(chunk),
                self.chunk(chunk),
                *link,
                source(from),
                (&host(from), None),
            ));
        }
    }
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let mut noise = 1u32;
        let mut disk: Vec<u8> = (0..(2 << 20) + 5_000)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                noise.to_be_bytes()[0]
            })
            .collect();
        disk[1 << 20..2 << 20].fill(0);
        let contents = [disk, b"{\"version\":1}".to_vec(), vec![7; 3_000]].map(Content::new);
        let [disk, config, nvram] = &contents;
        let layer = |media_type: &str, content: &Content, annotations| {
            json!({
                "mediaType": media_type, "digest": content.digest.to_string(),
                "size": content.bytes.len(), "annotations": annotations,
            })
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "annotations": { DISK_SIZE_ANNOTATION: disk.bytes.len().to_string() },
            "layers": [
                layer(CONFIG_TYPE, config, json!({})),
                {
                    // nobody fetches it here
                    "mediaType": DISK_TYPE, "digest": Digest::of(b"encoded").to_string(), "size": 1_000,
                    "annotations": {
                        RAW_SIZE_ANNOTATION: disk.bytes.len().to_string(),
                        RAW_DIGEST_ANNOTATION: disk.digest.to_string(),
                    },
                },
                layer(NVRAM_TYPE, nvram, json!({})),
            ],
        });
        let manifest = manifest.to_string().into_bytes();
        Sample {
            layout: Layout::parse(&manifest, &Digest::of(&manifest)).expect("a good manifest"),
            manifest,
            contents,
        }
    })
}

/// In memory where that is to be had: a round syncs some thirty times, and what a sync is worth isn't what is tried
/// here.
fn home() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

fn begun(home: &Path) -> (Store, std::sync::Arc<Stage>) {
    let options = Options {
        floor_percent: 0,
        lock_wait: Duration::ZERO,
        ..Options::default()
    };
    let store = Store::open(home, options).expect("the store opens");
    let sample = sample();
    let (stage, _) = store
        .begin(&sample.layout, &sample.manifest, &[REFERENCE.into()])
        .expect("the image begins");
    (store, stage)
}

fn stage_directory(home: &Path) -> std::path::PathBuf {
    let name = sample().layout.digest().hex().to_string();
    home.join(".parbake").join(name)
}

fn host(name: &str) -> HostId {
    name.parse().expect("a host id")
}

fn source(name: &str) -> Source {
    Source {
        sender: host(name).key(),
        maker: host(name).key(),
    }
}

fn header() -> Vec<u8> {
    [MAGIC.as_slice(), sample().layout.digest().as_bytes()].concat()
}

/// Appends batches of these pieces, as the journal's format says: written a second time here, so that reader and
/// writer can't share a mistake.
fn seal(file: &mut Vec<u8>, mut pieces: &[u8]) {
    let mut check: [u8; 16] = half(&blake3::hash(file));
    while let Some((length, rest)) = pieces.split_first_chunk::<2>()
        && let Some((payload, rest)) = rest.split_at_checked(u16::from_le_bytes(*length).into())
    {
        let length = u32::from(u16::from_le_bytes(*length)).to_le_bytes();
        check = half(&blake3::hash(&[&check[..], &length, payload].concat()));
        file.extend_from_slice(&length);
        file.extend_from_slice(&check);
        file.extend_from_slice(payload);
        pieces = rest;
    }
    file.extend_from_slice(pieces);
}

/// The payloads of batches, as [`seal`] takes them.
fn unseal(mut batches: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    while let Some((length, rest)) = batches.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*length);
        let payload = &rest[16..16 + size as usize];
        let short = u16::try_from(size).expect("a small batch");
        pieces.extend_from_slice(&short.to_le_bytes());
        pieces.extend_from_slice(payload);
        batches = &rest[16 + payload.len()..];
    }
    pieces
}

fn half(hash: &blake3::Hash) -> [u8; 16] {
    let (half, _) = hash
        .as_bytes()
        .split_first_chunk()
        .expect("a hash has 32 bytes");
    *half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_again_is_what_the_store_wrote() {
        for seed in seeds() {
            if let [0, pieces @ ..] = seed.as_slice() {
                let mut file = header();
                seal(&mut file, pieces);
                assert_eq!(unseal(&file[header().len()..]), pieces);
                let mut raw = vec![1];
                raw.extend_from_slice(&file[header().len()..]);
                assert!(pieces.is_empty() || seeds().contains(&raw));
            }
        }
    }
}
