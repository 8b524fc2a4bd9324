//! What the store costs: `cargo bench -p agent --bench store [-- --mib N] [--dir PATH]`.
//!
//! Writes an image of incompressible chunks through a stage with two threads and a flush every 500 ms, beside the same
//! bytes written to a plain file and synced; then opens the store again, installs, verifies, begins a second image of
//! the same layers, and decodes a layer. `--dir` is on the volume to measure: the second image is a clone where the
//! volume can clone files (APFS; XFS and Btrfs on Linux), and a copy elsewhere.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its answer and stops at the first surprise"
)]

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use agent::store::{Options, Store, install, verify};
use proto::{CHUNK_BYTES, ChunkIndex, Digest, HostId, Layout, Link, Source, State, image};
use serde_json::json;

const LAYER_MIB: usize = 512;
const REFERENCE: &str = "localhost/bench:one";

fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

struct Timer(Instant, f64);

impl Timer {
    fn start() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    fn print(&self, what: &str, bytes: usize) -> f64 {
        let (seconds, cpu) = (self.0.elapsed().as_secs_f64(), cpu_seconds() - self.1);
        let gb = f64::from(u32::try_from(bytes >> 20).unwrap()) * 1.048_576e-3;
        println!(
            "{what:<34} {seconds:7.3} s  {:6.2} GB/s  {:5.2} CPU s/GB",
            gb / seconds,
            cpu / gb
        );
        seconds
    }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap().as_secs_f64()
}

/// An image of these layers.
fn image_of(layers: &[Vec<u8>], nvram: &[u8; 5]) -> (Layout, Vec<u8>) {
    let mut descriptors = vec![
        json!({"mediaType": image::CONFIG_TYPE, "digest": Digest::of(b"{}").to_string(), "size": 2}),
        json!({"mediaType": image::NVRAM_TYPE, "digest": Digest::of(nvram).to_string(), "size": 5}),
    ];
    for raw in layers {
        descriptors.push(json!({
            "mediaType": image::DISK_TYPE, "digest": Digest::of(&raw[..9]).to_string(), "size": 9,
            "annotations": {
                image::RAW_SIZE_ANNOTATION: raw.len().to_string(),
                image::RAW_DIGEST_ANNOTATION: Digest::of(raw).to_string(),
            },
        }));
    }
    let manifest = serde_json::to_vec(&json!({"schemaVersion": 2, "layers": descriptors})).unwrap();
    let layout = Layout::parse(&manifest, &Digest::of(&manifest)).unwrap();
    (layout, manifest)
}

fn main() {
    let option = |name: &str| {
        let mut arguments = std::env::args().skip_while(|argument| argument != name);
        arguments.nth(1)
    };
    let mib: usize = option("--mib").map_or(1024, |mib| mib.parse().expect("--mib takes a number"));
    let home = option("--dir")
        .map_or_else(tempfile::tempdir, tempfile::tempdir_in)
        .unwrap();
    let host: HostId = "bench".parse().unwrap();
    let source = Source {
        sender: host.key(),
        maker: host.key(),
    };

    let mut layers: Vec<Vec<u8>> = Vec::new();
    for at in 0..mib.div_ceil(LAYER_MIB) {
        let size = (mib - at * LAYER_MIB).min(LAYER_MIB) << 20;
        layers.push(noise(size, at as u64 + 1));
    }
    let (layout, manifest) = image_of(&layers, b"nvram");

    let timer = Timer::start();
    let mut chunks: Vec<(Digest, ChunkIndex, Link, &[u8])> = Vec::new();
    let contents = layout.contents();
    for content in &contents {
        let bytes: &[u8] = match content.kind {
            image::ContentKind::Blob if content.geometry.size() == 2 => b"{}",
            image::ContentKind::Blob => b"nvram",
            image::ContentKind::RawLayer { .. } => layers
                .iter()
                .find(|raw| Digest::of(raw) == content.digest)
                .unwrap(),
        };
        let mut state = State::INITIAL;
        let pieces = bytes.chunks(usize::try_from(CHUNK_BYTES).unwrap());
        for (chunk, bytes) in (0..).map(ChunkIndex).zip(pieces) {
            let link = Link::forge(content.geometry, chunk, state, bytes);
            state = link.after;
            chunks.push((content.digest, chunk, link, bytes));
        }
    }
    timer.print("(hashing, three times)", mib << 20);

    let timer = Timer::start();
    let plain = File::create(home.path().join("plain")).unwrap();
    for (at, (_, _, _, bytes)) in (0u64..).zip(&chunks) {
        plain.write_all_at(bytes, at * CHUNK_BYTES).unwrap();
    }
    plain.sync_data().unwrap();
    let bare = timer.print("plain file, write + sync", mib << 20);
    std::fs::remove_file(home.path().join("plain")).unwrap();

    let options = Options {
        floor_percent: 0,
        ..Options::default()
    };
    let store = Store::open(home.path(), options).unwrap();
    let (stage, _) = store
        .begin(&layout, &manifest, &[REFERENCE.into()])
        .unwrap();
    let timer = Timer::start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(500));
                stage.flush().unwrap();
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (stage, chunks, host) = (&stage, &chunks, &host);
                scope.spawn(move || {
                    for (content, chunk, link, bytes) in chunks.iter().skip(writer).step_by(2) {
                        stage
                            .write(*content, *chunk, bytes, *link, source, (host, None))
                            .unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        flusher.thread().unpark();
    });
    // the flusher may have seen the end before the last chunks
    stage.flush().unwrap();
    let through = timer.print("stage, write + journal + sync", mib << 20);
    println!("stage / plain file: {:.2}", bare / through);

    drop((stage, store));
    let timer = Timer::start();
    let store = Store::open(home.path(), options).unwrap();
    timer.print("open again (per GB of image)", mib << 20);
    let stage = store.stage(layout.digest()).unwrap();
    assert!(stage.is_complete());
    let timer = Timer::start();
    install(&stage, &[]).unwrap();
    timer.print("install", mib << 20);
    let timer = Timer::start();
    for (content, chunk, ..) in &chunks {
        assert!(stage.read(*content, *chunk).unwrap().is_some());
    }
    timer.print("read", mib << 20);
    let timer = Timer::start();
    verify(home.path(), REFERENCE, |_, _| {}).unwrap();
    timer.print("verify", mib << 20);

    let (next, next_manifest) = image_of(&layers, b"other");
    let timer = Timer::start();
    let (stage, copied) = store
        .begin(&next, &next_manifest, &["localhost/bench:two".into()])
        .unwrap();
    timer.print("second image, copy or clone", mib << 20);
    assert_eq!(copied, (mib << 20) as u64 + 2);
    drop((stage, store));

    let mut raw = layers.swap_remove(0);
    drop(layers);
    for (at, piece) in raw.chunks_mut(1 << 16).enumerate() {
        if at % 2 == 0 {
            let (head, tail) = piece.split_at_mut(2048);
            for piece in tail.chunks_mut(2048) {
                piece.copy_from_slice(&head[..piece.len()]);
            }
        }
    }
    let timer = Timer::start();
    let blob = apple_lz4::encode(&raw);
    timer.print("Apple LZ4, encode (raw)", raw.len());
    let timer = Timer::start();
    let mut decoder = apple_lz4::Decoder::new(raw.len() as u64);
    let mut sum = 0;
    for piece in blob.chunks(16 << 10) {
        let mut input = piece;
        while let Some(block) = decoder.feed(&mut input).unwrap() {
            sum += block.raw.len();
        }
    }
    decoder.finish().unwrap();
    assert_eq!(sum, raw.len());
    timer.print("Apple LZ4, decode (raw)", raw.len());
}
