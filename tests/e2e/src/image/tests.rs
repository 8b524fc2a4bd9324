use lz4_flex::block::decompress_into_with_dict;

use super::*;

fn small() -> ImageSpec {
    ImageSpec {
        disk_bytes: (20 << 20) + 4096,
        layer_bytes: 4 << 20,
        nvram_bytes: 1000,
        ..ImageSpec::default()
    }
}

/// Decodes a stream that is known to be good, the simplest way.
fn decode(blob: &[u8]) -> Vec<u8> {
    let mut raw: Vec<u8> = Vec::new();
    let mut rest = blob;
    let word = |at: &[u8]| u32::from_le_bytes(at[..4].try_into().unwrap()) as usize;
    loop {
        match &rest[..4] {
            b"bv4$" => {
                assert_eq!(rest.len(), 4);
                return raw;
            }
            b"bv4-" => {
                let size = word(&rest[4..]);
                raw.extend_from_slice(&rest[8..8 + size]);
                rest = &rest[8 + size..];
            }
            b"bv41" => {
                let (size, encoded) = (word(&rest[4..]), word(&rest[8..]));
                let history = raw[raw.len().saturating_sub(64 << 10)..].to_vec();
                let mut block = vec![0; size];
                let input = &rest[12..12 + encoded];
                assert_eq!(
                    decompress_into_with_dict(input, &mut block, &history).unwrap(),
                    size
                );
                raw.extend_from_slice(&block);
                rest = &rest[12 + encoded..];
            }
            other => panic!("magic {other:?}"),
        }
    }
}

fn write_disk(disk: &Disk, path: &Path) {
    let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
    disk.read(0, &mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_layers_decode_to_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let image = small().generate(directory.path()).unwrap();
    let layout = image.layout().unwrap();
    assert_eq!(layout.disk_bytes(), image.disk.size());
    let mut disk = Vec::new();
    for layer in layout.layers() {
        let blob = image.blob(&layer.blob.digest).unwrap();
        assert_eq!(blob.len() as u64, layer.blob.size);
        assert_eq!(Digest::of(&blob), layer.blob.digest);
        let raw = decode(&blob);
        assert_eq!(raw.len() as u64, layer.raw_bytes);
        if let Some(digest) = layer.raw {
            assert_eq!(Digest::of(&raw), digest);
        }
        disk.extend(raw);
    }
    let path = directory.path().join("disk.img");
    std::fs::write(&path, &disk).unwrap();
    assert_eq!(image.compare(&path).unwrap(), None);
    disk[5_000_000] ^= 1;
    std::fs::write(&path, &disk).unwrap();
    assert_eq!(image.compare(&path).unwrap(), Some(5_000_000));
    disk[5_000_000] ^= 1;
    disk.pop();
    std::fs::write(&path, &disk).unwrap();
    assert_eq!(image.compare(&path).unwrap(), Some(disk.len() as u64));
}

#[test]
fn blocks_refer_to_the_blocks_before() {
    let directory = tempfile::tempdir().unwrap();
    let spec = ImageSpec {
        mix: Mix {
            zero_percent: 0,
            compressible_percent: 100,
        },
        ..small()
    };
    let image = spec.generate(directory.path()).unwrap();
    let first = image.layout().unwrap().layers()[0].blob.digest;
    let blob = image.blob(&first).unwrap();
    let second = 12 + u32::from_le_bytes(blob[8..12].try_into().unwrap()) as usize;
    let encoded = u32::from_le_bytes(blob[second + 8..second + 12].try_into().unwrap()) as usize;
    let input = &blob[second + 12..second + 12 + encoded];
    let alone = decompress_into_with_dict(input, &mut vec![0; 64 << 10], &[]);
    assert!(alone.is_err(), "the second block decodes without the first");
}

#[test]
fn the_same_spec_makes_the_same_image() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = small().generate(one.path()).unwrap();
    let second = small().generate(other.path()).unwrap();
    assert_eq!(first.manifest, second.manifest);
    let seeded = ImageSpec { seed: 2, ..small() };
    assert_ne!(seeded.generate(one.path()).unwrap().digest, first.digest);
}

#[test]
fn any_part_of_a_disk_reads_like_the_whole() {
    let disk = small().disk().unwrap();
    let mut whole = vec![0; usize::try_from(disk.size()).unwrap() + 100_000];
    disk.read(0, &mut whole);
    assert!(whole[whole.len() - 100_000..].iter().all(|byte| *byte == 0));
    for (offset, length) in [(0, 1), (65_535, 2), (70_000, 200_000), (4 << 20, 65_536)] {
        let mut part = vec![1; length];
        disk.read(offset as u64, &mut part);
        assert_eq!(part, whole[offset..offset + length], "{offset}");
    }
    let mut tail = vec![1; 150_000];
    disk.read(whole.len() as u64 - 150_000, &mut tail);
    assert_eq!(tail, whole[whole.len() - 150_000..]);
}

#[test]
fn the_mix_is_what_was_asked_for() {
    let spec = ImageSpec {
        disk_bytes: 256 << 20,
        repeated_layers: 0,
        ..small()
    };
    let disk = spec.disk().unwrap();
    let mut chunk = vec![0; 1 << 20];
    let zero = (0..256)
        .filter(|at| {
            disk.read(at << 20, &mut chunk);
            chunk.iter().all(|byte| *byte == 0)
        })
        .count();
    // Chunks at the borders of zero groups aren't zero all through.
    assert!((40..=90).contains(&zero), "{zero} chunks of 256 are zero");
}

#[test]
fn repetitions_share_their_blobs_and_digests_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let spec = ImageSpec {
        repeated_layers: 2,
        layers_without_digest: 1,
        ..small()
    };
    let image = spec.generate(directory.path()).unwrap();
    let layout = image.layout().unwrap();
    let layers = layout.layers();
    assert_eq!(layers.len(), 6);
    assert_eq!(layers[3].blob, layers[0].blob);
    assert_eq!(layers[4].blob, layers[1].blob);
    assert_ne!(layers[2].blob, layers[1].blob);
    let with: Vec<_> = layers.iter().map(|layer| layer.raw.is_some()).collect();
    assert_eq!(with, [true, false, true, true, true, true]);
}

#[test]
fn the_next_release_shares_most_layers_and_most_of_the_changed_ones() {
    let directory = tempfile::tempdir().unwrap();
    let spec = ImageSpec {
        disk_bytes: 160 << 20,
        layer_bytes: 16 << 20,
        repeated_layers: 0,
        layers_without_digest: 0,
        ..small()
    };
    let next = spec.changed(20);
    let [old, new] = [&spec, &next].map(|spec| {
        let image = spec.generate(directory.path()).unwrap();
        (image.layout().unwrap(), image.disk)
    });
    let changed: Vec<_> = old
        .0
        .layers()
        .iter()
        .zip(new.0.layers())
        .filter(|(old, new)| old.raw != new.raw)
        .map(|(old, _)| old.offset)
        .collect();
    assert_eq!(changed.len(), 2);
    let (mut before, mut after) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut chunks = 0;
    for offset in changed {
        for at in 0..16 {
            old.1.read(offset + (at << 20), &mut before);
            new.1.read(offset + (at << 20), &mut after);
            chunks += u32::from(before != after);
        }
    }
    assert!((2..=28).contains(&chunks), "{chunks} of 32 chunks changed");
    let third = next.changed(20).generate(directory.path()).unwrap();
    assert_ne!(&third.digest, new.0.digest());
}

#[test]
fn flaws_show_where_they_have_to() {
    let directory = tempfile::tempdir().unwrap();
    let good = small().generate(directory.path()).unwrap();
    let good = good.layout().unwrap();
    let flawed = |flaw| small().flawed(flaw).generate(directory.path()).unwrap();
    let layer = |image: &GeneratedImage| image.layout().unwrap().layers()[0];

    let truncated = flawed(Flaw::Truncated(0));
    assert_eq!(layer(&truncated).blob.size, good.layers()[0].blob.size / 2);
    let blob = truncated.blob(&layer(&truncated).blob.digest).unwrap();
    assert_eq!(Digest::of(&blob), layer(&truncated).blob.digest);
    assert_eq!(layer(&truncated).raw, good.layers()[0].raw);

    let corrupt = flawed(Flaw::Corrupt(0));
    assert_eq!(layer(&corrupt).blob.size, good.layers()[0].blob.size);
    let blob = corrupt.blob(&layer(&corrupt).blob.digest).unwrap();
    assert_eq!(Digest::of(&blob), layer(&corrupt).blob.digest);
    assert_ne!(layer(&corrupt).blob.digest, good.layers()[0].blob.digest);

    let mislabelled = flawed(Flaw::Mislabelled(0));
    assert_eq!(layer(&mislabelled).blob, good.layers()[0].blob);
    assert_ne!(layer(&mislabelled).raw, good.layers()[0].raw);

    let bomb = flawed(Flaw::Bomb(0, 20));
    let blob = bomb.blob(&layer(&bomb).blob.digest).unwrap();
    assert!(decode(&blob).len() as u64 > 20 * layer(&bomb).raw_bytes);
    assert!(blob.len() < 6 << 20, "a bomb is small");

    let short = flawed(Flaw::TooShort(0));
    assert_eq!(layer(&short).blob, good.layers()[0].blob);
    assert_eq!(layer(&short).raw_bytes, good.layers()[0].raw_bytes + 1);

    let refused = |flaw| flawed(flaw).layout().unwrap_err();
    assert!(matches!(
        refused(Flaw::DiskSize),
        ParseImageError::DiskSize { .. }
    ));
    assert!(matches!(
        refused(Flaw::UnknownType(3)),
        ParseImageError::UnknownLayer { .. }
    ));
    assert!(matches!(
        refused(Flaw::NoNvram),
        ParseImageError::Missing("nvram")
    ));
}

#[test]
fn specs_that_contradict_themselves_are_refused() {
    let refused = |spec: ImageSpec| {
        let directory = tempfile::tempdir().unwrap();
        let error = spec.generate(directory.path()).unwrap_err();
        assert!(matches!(error, GenerateError::Spec(_)), "{error}");
    };
    refused(ImageSpec {
        disk_bytes: 0,
        ..small()
    });
    refused(ImageSpec {
        layer_bytes: 65_537,
        ..small()
    });
    refused(ImageSpec {
        nvram_bytes: 0,
        ..small()
    });
    refused(ImageSpec {
        mix: Mix {
            zero_percent: 60,
            compressible_percent: 41,
        },
        ..small()
    });
}

#[test]
fn a_disk_smaller_than_a_cell_works() {
    let directory = tempfile::tempdir().unwrap();
    let spec = ImageSpec {
        disk_bytes: 1,
        ..small()
    };
    let image = spec.generate(directory.path()).unwrap();
    let path = directory.path().join("disk.img");
    write_disk(&image.disk, &path);
    assert_eq!(image.compare(&path).unwrap(), None);
    assert_eq!(image.layout().unwrap().layers().len(), 1);
}

#[test]
fn what_is_inserted_moves_what_lies_behind_it() {
    let spec = ImageSpec::incompressible(4 << 20, 1 << 20, 3);
    let read = |spec: &ImageSpec, offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        spec.disk().unwrap().read(offset, &mut bytes);
        bytes
    };
    let (at, by) = (1_000_000, 8_192);
    let next = spec.with_inserted(at, by);
    let (old, new) = (read(&spec, 0, 4 << 20), read(&next, 0, 4 << 20));
    let (from, to) = (1_000_000, 1_008_192);
    assert!(new[..from] == old[..from]);
    assert!(new[to..] == old[from..old.len() - 8_192]);
    assert!(new[from..to] != old[from..to]);
    for (offset, length) in [
        (0, 70),
        (999_990, 20),
        (999_990, 9_000),
        (1_004_000, 90_000),
        (1_100_001, 7),
    ] {
        let start = usize::try_from(offset).unwrap();
        assert!(
            read(&next, offset, length) == new[start..start + length],
            "{offset}"
        );
    }
    let repeated = ImageSpec {
        repeated_layers: 1,
        ..next
    };
    assert!(repeated.disk().is_err());
}

#[test]
fn a_stacked_image_has_a_file_for_its_base_and_for_each_overlay() {
    let directory = tempfile::tempdir().unwrap();
    let overlays = [(9 << 20, 7), (4096, 8)].map(|(bytes, seed)| Overlay { bytes, seed });
    let flat = ImageSpec {
        layers_without_digest: 0,
        ..small()
    };
    let base = flat.generate(directory.path()).unwrap();
    let spec = flat.stacked(&overlays);
    let image = spec.generate(directory.path()).unwrap();
    let layout = image.layout().unwrap();
    let files = image.files();
    assert_eq!(files.len(), 3);
    let mut decoded = Vec::new();
    for (file, disk) in &files {
        let mut bytes = Vec::new();
        for layer in &layout.layers()[file.layers.clone()] {
            let raw = decode(&image.blob(&layer.blob.digest).unwrap());
            assert_eq!(Some(Digest::of(&raw)), layer.raw);
            bytes.extend(raw);
        }
        assert_eq!(Some(Digest::of(&bytes)), file.digest);
        let path = directory.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(disk.compare(&path).unwrap(), None);
        decoded.push(bytes.len() as u64);
    }
    assert_eq!(decoded, [spec.disk_bytes, 9 << 20, 4096]);
    assert_eq!(files[1].0.layers.len(), 3);
    // the base is the flat image's disk, layer by layer
    let raw = |layout: &Layout| -> Vec<_> { layout.layers().iter().map(|l| l.raw).collect() };
    let (one, other) = (raw(&base.layout().unwrap()), raw(&layout));
    assert_eq!(one, other[..one.len()]);
    let flawed = spec.flawed(Flaw::FileDigest(1)).generate(directory.path());
    let flawed = flawed.unwrap().layout().unwrap();
    assert_ne!(flawed.files()[1].digest, layout.files()[1].digest);
    assert_eq!(flawed.layers(), layout.layers());
}
