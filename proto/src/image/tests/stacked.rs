//! Stacked images: which manifests are one, and by which name the others are refused.

use std::{string::ToString as _, vec, vec::Vec};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::*, blob, config, disk, manifest, nvram, parse};

/// A layer of an overlay, whose raw bytes have this digest.
fn overlay(seed: u8, raw_bytes: u64, raw: Digest) -> Value {
    let mut layer = disk(seed, raw_bytes, Some(raw));
    layer["mediaType"] = json!(OVERLAY_TYPE);
    layer
}

/// The layer as the first one of a file, by this digest, and of an overlay of so many layers.
fn begins(mut layer: Value, file: Digest, count: Option<&str>) -> Value {
    layer["annotations"][FILE_DIGEST_ANNOTATION] = json!(file.to_string());
    if let Some(count) = count {
        layer["annotations"][CHUNK_COUNT_ANNOTATION] = json!(count);
    }
    layer
}

/// A base of two layers, an overlay of two, and one of one layer.
fn stack() -> Vec<Value> {
    vec![
        config(),
        begins(disk(10, 512, Some(blob(20))), blob(40), None),
        disk(11, 100, Some(blob(21))),
        begins(overlay(12, 7, blob(22)), blob(41), Some("2")),
        overlay(13, 8, blob(23)),
        begins(overlay(14, 9, blob(24)), blob(24), Some("1")),
        nvram(),
    ]
}

/// A manifest of these layers, whose guest sees 16 blocks of 4 KiB.
fn stacked(layers: Vec<Value>) -> Value {
    let mut manifest = manifest(layers, Some(16 << 12));
    manifest["annotations"][BLOCK_SIZE_ANNOTATION] = json!("4096");
    manifest
}

fn refusal(manifest: &Value) -> StackError {
    match parse(manifest) {
        Err(ParseImageError::Stack(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The refusal of the stack after a change of its layers.
fn refused(change: impl FnOnce(&mut Vec<Value>)) -> StackError {
    let mut layers = stack();
    change(&mut layers);
    refusal(&stacked(layers))
}

#[test]
fn each_file_has_its_layers_its_length_and_its_digest() {
    let layout = parse(&stacked(stack())).unwrap();
    assert_eq!(layout.format(), Format::Stacked);
    let file = |digest, start, bytes, layers| DiskFile {
        digest: Some(digest),
        start,
        bytes,
        layers,
    };
    assert_eq!(
        layout.files(),
        [
            file(blob(40), 0, 612, 0..2),
            file(blob(41), 612, 15, 2..4),
            file(blob(24), 627, 9, 4..5),
        ]
    );
    // not the disk that the guest sees
    assert_eq!(layout.disk_bytes(), 636);
    let places = [0, 511, 512, 611, 612, 626, 627, 635].map(|offset| layout.file_at(offset));
    let expected = [
        (0, 0),
        (0, 511),
        (0, 512),
        (0, 611),
        (1, 0),
        (1, 14),
        (2, 0),
        (2, 8),
    ];
    assert_eq!(places, expected);
}

#[test]
fn a_flat_image_is_one_file_whatever_its_first_layer_says_of_it() {
    let flat = |first: Value| {
        let layers = vec![config(), first, disk(11, 100, None), nvram()];
        parse(&manifest(layers, Some(612))).unwrap()
    };
    let plain = flat(disk(10, 512, Some(blob(20))));
    let named = flat(begins(disk(10, 512, Some(blob(20))), blob(40), None));
    for (layout, digest) in [(plain, None), (named, Some(blob(40)))] {
        assert_eq!(layout.format(), Format::Flat);
        let [file] = layout.files() else {
            panic!("{:?}", layout.files());
        };
        assert_eq!(
            (file.digest, file.start, file.bytes, file.layers.clone()),
            (digest, 0, 612, 0..2)
        );
    }
}

#[test]
fn a_raw_layer_that_two_files_have_moves_once() {
    let mut layers = stack();
    layers[4] = overlay(15, 512, blob(20));
    let layout = parse(&stacked(layers)).unwrap();
    let contents = layout.contents();
    let shared = contents.iter().find(|content| content.digest == blob(20));
    assert_eq!(
        shared.unwrap().places,
        [Place::Disk { offset: 0 }, Place::Disk { offset: 619 }]
    );
}

#[test]
fn a_stack_lies_between_its_config_and_its_nvram() {
    let error = refused(|layers| layers.swap(0, 1));
    assert_eq!(error, StackError::ConfigNotFirst { position: 1 });
    let error = refused(|layers| layers.swap(5, 6));
    assert_eq!(error, StackError::NvramNotLast { position: 5 });
}

#[test]
fn overlays_lie_on_one_base() {
    let error = refused(|layers| drop(layers.drain(1..3)));
    assert!(matches!(error, StackError::NoBase { layer } if layer.position == 1));
    for at in [4, 5] {
        let error = refused(|layers| layers.insert(at, disk(15, 5, Some(blob(25)))));
        assert!(
            matches!(error, StackError::BaseAfterOverlay { ref layer } if layer.position == at),
            "{error}"
        );
    }
}

#[test]
fn only_the_first_layer_of_a_file_says_of_which_file() {
    let without = |at: usize, key: &'static str| {
        refused(move |layers| {
            drop(
                layers[at]["annotations"]
                    .as_object_mut()
                    .unwrap()
                    .remove(key),
            )
        })
    };
    for at in [1, 3, 5] {
        let error = without(at, FILE_DIGEST_ANNOTATION);
        assert!(
            matches!(error, StackError::NoFileDigest { ref layer } if layer.position == at),
            "{error}"
        );
    }
    for at in [2, 4] {
        let error = refused(|layers| layers[at] = begins(layers[at].clone(), blob(44), None));
        assert!(
            matches!(error, StackError::StrayFileDigest { ref layer } if layer.position == at),
            "{error}"
        );
    }
    let error = refused(|layers| {
        layers[3]["annotations"][FILE_DIGEST_ANNOTATION] = json!("sha256:12");
    });
    assert!(matches!(error, StackError::BadFileDigest { layer } if layer.position == 3));
    let error = without(3, CHUNK_COUNT_ANNOTATION);
    assert!(matches!(error, StackError::NoChunkCount { layer } if layer.position == 3));
}

#[test]
fn an_overlay_has_the_layers_that_it_says() {
    let counted = |at: usize, count: &'static str| {
        refused(move |layers| layers[at]["annotations"][CHUNK_COUNT_ANNOTATION] = json!(count))
    };
    for count in ["0", "", "+1", "-1", "two", "18446744073709551616"] {
        let error = counted(3, count);
        assert!(
            matches!(error, StackError::BadChunkCount { ref text, .. } if text == count),
            "{error}"
        );
    }
    for (at, count, says, left) in [
        (5, "2", 2, 1),
        (3, "4", 4, 3),
        (3, "18446744073709551615", u64::MAX, 3),
    ] {
        let error = counted(at, count);
        assert!(
            matches!(error, StackError::ChunkCountBeyondEnd { count, left: of, .. } if count == says && of == left),
            "{error}"
        );
    }
    // one too few: the rest begins no file; one too many: another file begins inside
    let error = refused(|layers| layers[3] = begins(overlay(12, 7, blob(22)), blob(22), Some("1")));
    assert!(matches!(error, StackError::NoFileDigest { layer } if layer.position == 4));
    let error = counted(3, "3");
    assert!(matches!(error, StackError::StrayFileDigest { layer } if layer.position == 5));
    for at in [1, 2, 4] {
        let error = counted(at, "1");
        assert!(
            matches!(error, StackError::StrayChunkCount { ref layer } if layer.position == at),
            "{error}"
        );
    }
}

#[test]
fn every_layer_of_a_stack_is_proved_and_as_small_as_tart_cuts_it() {
    for at in 1..6 {
        let key = RAW_DIGEST_ANNOTATION;
        let error = refused(|layers| {
            drop(
                layers[at]["annotations"]
                    .as_object_mut()
                    .unwrap()
                    .remove(key),
            )
        });
        assert!(
            matches!(error, StackError::NoRawDigest { ref layer } if layer.position == at),
            "{error}"
        );
    }
    let sized = |bytes: u64| {
        let mut layers = stack();
        layers[2]["annotations"][RAW_SIZE_ANNOTATION] = json!(bytes.to_string());
        parse(&stacked(layers))
    };
    assert!(sized(MAX_STACKED_LAYER_BYTES).is_ok());
    assert!(matches!(
        sized(MAX_STACKED_LAYER_BYTES + 1),
        Err(ParseImageError::Stack(StackError::LayerTooLarge { layer, .. })) if layer.position == 2
    ));
}

#[test]
fn a_file_of_one_layer_is_that_layer_and_no_file_comes_twice() {
    let error = refused(|layers| layers[5] = begins(overlay(14, 9, blob(24)), blob(42), Some("1")));
    assert!(matches!(error, StackError::FileContradictsLayer { layer } if layer.position == 5));
    let error = refused(|layers| {
        layers[3]["annotations"][FILE_DIGEST_ANNOTATION] = json!(blob(40).to_string());
    });
    assert!(matches!(error, StackError::RepeatedFile { layer } if layer.position == 3));
}

#[test]
fn a_disk_has_a_bounded_number_of_files() {
    let many = |overlays: usize| {
        let mut layers = vec![
            config(),
            begins(disk(10, 9, Some(blob(20))), blob(20), None),
        ];
        for at in 0..overlays {
            let raw = Digest::of(&at.to_le_bytes());
            layers.push(begins(overlay(11, 9, raw), raw, Some("1")));
        }
        layers.push(nvram());
        parse(&stacked(layers))
    };
    assert_eq!(many(MAX_FILES - 1).unwrap().files().len(), MAX_FILES);
    assert_eq!(
        many(MAX_FILES),
        Err(ParseImageError::Stack(StackError::TooManyFiles))
    );
}

#[test]
fn the_guest_sees_a_number_of_whole_blocks() {
    let guest = |disk: Option<&str>, block: Option<&str>| {
        let mut manifest = stacked(stack());
        for (key, text) in [(DISK_SIZE_ANNOTATION, disk), (BLOCK_SIZE_ANNOTATION, block)] {
            let all = manifest["annotations"].as_object_mut().unwrap();
            match text {
                Some(text) => all.insert(key.into(), json!(text)),
                None => all.remove(key),
            };
        }
        parse(&manifest).map_err(|error| match error {
            ParseImageError::Stack(error) => error,
            other => panic!("{other}"),
        })
    };
    assert!(guest(Some("512"), Some("512")).is_ok());
    let missing = |key| Err(StackError::NoAnnotation(key));
    assert_eq!(guest(None, Some("512")), missing(DISK_SIZE_ANNOTATION));
    assert_eq!(guest(Some("512"), None), missing(BLOCK_SIZE_ANNOTATION));
    for block in ["0", "x", ""] {
        let bad = StackError::BadBlockSize(block.into());
        assert_eq!(guest(Some("512"), Some(block)), Err(bad));
    }
    for disk_bytes in [0, 511, 513] {
        let partial = StackError::PartialBlock {
            disk_bytes,
            block_bytes: 512,
        };
        let text = disk_bytes.to_string();
        assert_eq!(guest(Some(&text), Some("512")), Err(partial));
    }
}

#[test]
fn tart_can_read_the_manifest_of_a_stack() {
    let without = |field: &str, part: Option<&str>| {
        let mut manifest = stacked(stack());
        let of = match part {
            None => &mut manifest,
            Some(_) => &mut manifest[field],
        };
        let fields = of.as_object_mut().unwrap();
        fields.remove(part.unwrap_or(field));
        manifest
    };
    for (field, part) in [
        ("mediaType", None),
        ("config", None),
        ("config", Some("mediaType")),
        ("config", Some("digest")),
        ("config", Some("size")),
    ] {
        let error = refusal(&without(field, part));
        assert!(
            matches!(error, StackError::NoField(of) if of == field),
            "{error}"
        );
    }
    // tart's clone doesn't read the manifest of a flat image
    let mut flat = manifest(vec![config(), disk(10, 512, Some(blob(20))), nvram()], None);
    flat.as_object_mut().unwrap().remove("config");
    assert!(parse(&flat).is_ok());
}

/// A layer of a disk with any of the annotations.
fn any_disk() -> impl Strategy<Value = Value> {
    let file = prop::option::of(prop_oneof![4 => 30..33u8, 1 => Just(6u8)]);
    let count = prop::option::of(prop_oneof![4 => 1..4u64, 1 => Just(0u64), 1 => any::<u64>()]);
    (any::<bool>(), 3..6u8, 6..9u8, file, count).prop_map(|(of_base, seed, raw, file, count)| {
        let mut layer = match of_base {
            true => disk(seed, 5, Some(blob(raw))),
            false => overlay(seed, 5, blob(raw)),
        };
        if let Some(file) = file {
            layer["annotations"][FILE_DIGEST_ANNOTATION] = json!(blob(file).to_string());
        }
        if let Some(count) = count {
            layer["annotations"][CHUNK_COUNT_ANNOTATION] = json!(count.to_string());
        }
        layer
    })
}

proptest! {
    #[test]
    fn files_cover_the_disk_and_the_layers_without_gap_or_overlap(
        disks in prop::collection::vec(any_disk(), 1..8),
    ) {
        let mut layers = vec![config()];
        layers.extend(disks);
        layers.push(nvram());
        let overlays = layers.iter().any(|layer| layer["mediaType"] == OVERLAY_TYPE);
        if let Ok(layout) = parse(&stacked(layers)) {
            prop_assert_eq!(layout.format() == Format::Stacked, overlays);
            let (mut offset, mut layer) = (0, 0);
            for file in layout.files() {
                prop_assert_eq!((file.start, file.layers.start), (offset, layer));
                prop_assert!(!file.layers.is_empty());
                let raw = layout.layers()[file.layers.clone()].iter();
                prop_assert_eq!(file.bytes, raw.map(|layer| layer.raw_bytes).sum::<u64>());
                prop_assert!(file.digest.is_some() || !overlays);
                offset += file.bytes;
                layer = file.layers.end;
            }
            prop_assert_eq!((offset, layer), (layout.disk_bytes(), layout.layers().len()));
        }
    }
}
