use std::{string::ToString as _, vec, vec::Vec};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

mod stacked;

fn blob(seed: u8) -> Digest {
    Digest::of(&[seed])
}

fn config() -> Value {
    json!({"mediaType": CONFIG_TYPE, "digest": blob(1).to_string(), "size": 700})
}

fn nvram() -> Value {
    json!({"mediaType": NVRAM_TYPE, "digest": blob(2).to_string(), "size": 33_000_000})
}

fn disk(seed: u8, raw_bytes: u64, raw: Option<Digest>) -> Value {
    let mut annotations = json!({RAW_SIZE_ANNOTATION: raw_bytes.to_string()});
    if let Some(raw) = raw {
        annotations[RAW_DIGEST_ANNOTATION] = json!(raw.to_string());
    }
    json!({"mediaType": DISK_TYPE, "digest": blob(seed).to_string(), "size": 1000 + u64::from(seed), "annotations": annotations})
}

fn manifest(layers: Vec<Value>, disk_bytes: Option<u64>) -> Value {
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob(0).to_string(), "size": 2},
        "layers": layers,
    });
    if let Some(bytes) = disk_bytes {
        manifest["annotations"] = json!({DISK_SIZE_ANNOTATION: bytes.to_string()});
    }
    manifest
}

fn parse(manifest: &Value) -> Result<Layout, ParseImageError> {
    let bytes = serde_json::to_vec(manifest).unwrap();
    Layout::parse(&bytes, &Digest::of(&bytes))
}

fn parse_disks(disks: Vec<Value>) -> Result<Layout, ParseImageError> {
    let mut layers = vec![config()];
    layers.extend(disks);
    layers.push(nvram());
    parse(&manifest(layers, None))
}

#[test]
fn layers_lie_on_the_disk_one_after_the_other() {
    let layers = vec![
        config(),
        disk(10, 512, Some(blob(20))),
        disk(11, 100, None),
        nvram(),
        disk(12, 7, Some(blob(22))),
    ];
    let layout = parse(&manifest(layers, Some(619))).unwrap();
    assert_eq!(layout.disk_bytes(), 619);
    let offsets: Vec<_> = layout
        .layers()
        .iter()
        .map(|layer| (layer.position, layer.offset, layer.raw_bytes))
        .collect();
    assert_eq!(offsets, [(1, 0, 512), (2, 512, 100), (4, 612, 7)]);
    assert_eq!(layout.config().size, 700);
    assert_eq!(layout.nvram().digest, blob(2));
    assert_eq!(layout.content_bytes(), 700 + 33_000_000 + 512 + 1011 + 7);
    assert_eq!(layout.blob_bytes(), 700 + 33_000_000 + 1010 + 1011 + 1012);
}

#[test]
fn a_repeated_raw_layer_moves_once_and_the_first_blob_wins() {
    let layout = parse_disks(vec![
        disk(10, 512, Some(blob(20))),
        disk(11, 512, Some(blob(20))),
        disk(12, 9, None),
        disk(12, 9, None),
        disk(10, 512, Some(blob(20))),
    ])
    .unwrap();
    let contents = layout.contents();
    assert_eq!(contents.len(), 4);
    assert_eq!(
        contents[2],
        ContentSpec {
            digest: blob(20),
            geometry: Geometry::new(512).unwrap(),
            kind: ContentKind::RawLayer {
                blob: Blob {
                    digest: blob(10),
                    size: 1010
                }
            },
            places: vec![
                Place::Disk { offset: 0 },
                Place::Disk { offset: 512 },
                Place::Disk { offset: 1042 }
            ],
        }
    );
    assert_eq!(contents[3].kind, ContentKind::Blob);
    assert_eq!(contents[3].geometry.size(), 1012);
    assert_eq!(
        contents[3].places,
        [Place::Encoded { layer: 2 }, Place::Encoded { layer: 3 }]
    );
}

#[test]
fn one_digest_has_one_size_and_one_kind() {
    for disks in [
        vec![disk(10, 512, Some(blob(20))), disk(11, 513, Some(blob(20)))],
        vec![disk(10, 512, Some(blob(20))), disk(20, 512, None)],
        vec![disk(10, 512, Some(blob(1)))],
    ] {
        let error = parse_disks(disks).unwrap_err();
        assert!(
            matches!(error, ParseImageError::Contradiction { .. }),
            "{error}"
        );
        assert!(error.to_string().starts_with("layer "), "{error}");
    }
}

#[test]
fn sizes_have_to_add_up() {
    let layers = || vec![config(), disk(10, 512, Some(blob(20))), nvram()];
    assert!(parse(&manifest(layers(), Some(512))).is_ok());
    assert_eq!(
        parse(&manifest(layers(), Some(513))),
        Err(ParseImageError::DiskSize {
            layers: 512,
            annotated: 513
        })
    );
}

#[test]
fn bounds_hold_on_both_sides() {
    assert!(parse_disks(vec![disk(10, MAX_LAYER_BYTES, None)]).is_ok());
    for raw_bytes in [0, MAX_LAYER_BYTES + 1, u64::MAX] {
        let error = parse_disks(vec![disk(10, raw_bytes, None)]).unwrap_err();
        assert!(
            matches!(&error, ParseImageError::Size { layer, field: "raw size", .. } if layer.position == 1),
            "{error}"
        );
    }
    let full = || vec![disk(10, MAX_LAYER_BYTES, None); 256];
    assert_eq!(
        parse_disks(full()).map(|layout| layout.disk_bytes()),
        Ok(MAX_DISK_BYTES)
    );
    let mut over = full();
    over.push(disk(11, 1, None));
    assert!(matches!(
        parse_disks(over),
        Err(ParseImageError::DiskTooLarge { layer }) if layer.position == 257
    ));
}

#[test]
fn the_number_of_layers_and_the_manifest_are_bounded() {
    let small = json!({"mediaType": DISK_TYPE, "digest": blob(9).to_string(), "size": 1, "annotations": {RAW_SIZE_ANNOTATION: "1"}});
    let layout = parse_disks(vec![small.clone(); MAX_LAYERS - 2]).unwrap();
    assert_eq!(layout.contents().len(), 3);
    assert_eq!(
        parse_disks(vec![small; MAX_LAYERS - 1]),
        Err(ParseImageError::TooManyLayers(MAX_LAYERS + 1))
    );
    let mut bytes =
        serde_json::to_vec(&manifest(vec![config(), disk(10, 1, None), nvram()], None)).unwrap();
    bytes.resize(MAX_MANIFEST_BYTES, b' ');
    assert!(Layout::parse(&bytes, &Digest::of(&bytes)).is_ok());
    bytes.push(b' ');
    assert_eq!(
        Layout::parse(&bytes, &Digest::of(&bytes)),
        Err(ParseImageError::TooLarge(bytes.len()))
    );
}

#[test]
fn unknown_layers_are_declined_by_name() {
    let mut layer = disk(10, 1, None);
    layer["mediaType"] = json!("application/vnd.cirruslabs.tart.disk.v3");
    let text = parse_disks(vec![layer]).unwrap_err().to_string();
    assert!(
        text.contains("layer 1 (sha256:") && text.contains("disk.v3"),
        "{text}"
    );
}

#[test]
fn every_part_is_there_exactly_once() {
    let parts = |layers| parse(&manifest(layers, None)).unwrap_err().to_string();
    assert_eq!(
        parts(vec![disk(10, 1, None), nvram()]),
        "manifest has no config layer"
    );
    assert_eq!(
        parts(vec![disk(10, 1, None), config()]),
        "manifest has no nvram layer"
    );
    assert_eq!(parts(vec![nvram(), config()]), "manifest has no disk layer");
    assert!(
        parts(vec![config(), nvram(), disk(10, 1, None), config()]).starts_with("layer 3 (sha256:"),
    );
}

#[test]
fn foreign_manifests_are_refused() {
    let good = manifest(vec![config(), disk(10, 1, None), nvram()], None);
    let bytes = serde_json::to_vec(&good).unwrap();
    assert!(matches!(
        Layout::parse(&bytes, &blob(0)),
        Err(ParseImageError::Digest { .. })
    ));
    let changed = |key: &str, value: Value| {
        let mut manifest = good.clone();
        manifest[key] = value;
        parse(&manifest)
    };
    assert!(matches!(
        changed(
            "mediaType",
            json!("application/vnd.oci.image.index.v1+json")
        ),
        Err(ParseImageError::MediaType(_))
    ));
    assert!(changed("mediaType", Value::Null).is_ok());
    assert_eq!(
        changed("schemaVersion", json!(1)),
        Err(ParseImageError::SchemaOne)
    );
    assert!(matches!(
        changed("layers", json!({})),
        Err(ParseImageError::Json(_))
    ));
    assert!(matches!(
        changed("annotations", json!({DISK_SIZE_ANNOTATION: "+1"})),
        Err(ParseImageError::BadNumber { .. })
    ));
}

#[test]
fn layers_with_bad_fields_are_named() {
    let bad = |key: &str, value: Value| {
        let mut layer = disk(10, 1, Some(blob(20)));
        layer["annotations"][key] = value;
        parse_disks(vec![layer]).unwrap_err()
    };
    for error in [
        bad(RAW_SIZE_ANNOTATION, json!("1x")),
        bad(RAW_SIZE_ANNOTATION, json!("-1")),
        bad(RAW_SIZE_ANNOTATION, json!("99999999999999999999999")),
        bad(RAW_DIGEST_ANNOTATION, json!("sha256:../..")),
        bad(RAW_DIGEST_ANNOTATION, json!("md5:00")),
    ] {
        assert!(error.to_string().starts_with("layer 1 (sha256:"), "{error}");
    }
    let mut layer = disk(10, 1, None);
    layer["annotations"] = json!({});
    assert!(matches!(
        parse_disks(vec![layer]),
        Err(ParseImageError::NoRawSize { .. })
    ));
    let mut layer = disk(10, 1, None);
    layer["digest"] = json!("sha256:\u{7}".to_string() + &"e".repeat(500));
    let text = parse_disks(vec![layer]).unwrap_err().to_string();
    assert!(text.len() < 200 && !text.contains('\u{7}'), "{text}");
}

#[test]
fn goldens_are_named_as_existing_fleets_name_them() {
    let reference = std::format!("ghcr.io/tuist/tuist-runner@sha256:{}", "a".repeat(64));
    assert_eq!(
        golden_name("tuist-golden-", &reference),
        "tuist-golden-9c8af651fdf30b10"
    );
}

fn any_layer() -> impl Strategy<Value = Value> {
    let media_type = prop_oneof![
        8 => Just(DISK_TYPE),
        1 => Just(CONFIG_TYPE),
        1 => Just(NVRAM_TYPE),
        1 => Just("application/x-other"),
    ];
    let size = || prop_oneof![8 => 1..4u64, 1 => any::<u64>()];
    (media_type, 0..6u8, size(), size(), prop::option::of(6..9u8)).prop_map(
        |(media_type, seed, size, raw, raw_seed)| {
            let mut layer = disk(seed, raw, raw_seed.map(blob));
            layer["mediaType"] = json!(media_type);
            layer["size"] = json!(size);
            layer
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_a_layout_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(Layout::parse(&bytes, &Digest::of(&bytes)));
    }

    #[test]
    fn any_manifest_text_with_one_byte_changed_is_a_layout_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&manifest(vec![config(), disk(10, 5, Some(blob(20))), nvram()], Some(5))).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(Layout::parse(&bytes, &Digest::of(&bytes)));
    }

    #[test]
    fn a_layout_covers_its_disk_without_gap_or_overlap(
        layers in prop::collection::vec(any_layer(), 1..12),
        sane in any::<bool>(),
    ) {
        let mut layers = layers;
        if sane {
            layers.retain(|layer| layer["mediaType"] == DISK_TYPE);
            layers.extend([config(), nvram()]);
        }
        if let Ok(layout) = parse(&manifest(layers, None)) {
            let mut end = 0;
            for layer in layout.layers() {
                prop_assert_eq!(layer.offset, end);
                end += layer.raw_bytes;
            }
            prop_assert_eq!(end, layout.disk_bytes());
            let mut covered = 0;
            for content in layout.contents() {
                prop_assert!(!content.geometry.is_empty());
                for place in &content.places {
                    match place {
                        Place::Disk { .. } => covered += content.geometry.size(),
                        Place::Encoded { layer } => covered += layout.layers()[*layer].raw_bytes,
                        Place::Config | Place::Nvram => {}
                    }
                }
            }
            prop_assert_eq!(covered, layout.disk_bytes());
        }
    }
}

#[test]
fn what_is_no_image_is_named_with_what_to_reference_instead() {
    let refusal = |manifest: &Value| {
        let bytes = manifest.to_string().into_bytes();
        Layout::parse(&bytes, &Digest::of(&bytes))
            .unwrap_err()
            .to_string()
    };
    let entry = |name: &str, os: &str, architecture: &str| {
        json!({
            "digest": Digest::of(name.as_bytes()).to_string(), "size": 7,
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let index = |entries: &[Value]| json!({ "schemaVersion": 2, "manifests": entries });
    let (mac, linux) = (
        entry("mac", "darwin", "arm64"),
        entry("linux", "linux", "arm64"),
    );
    let attested = entry("attestation", "unknown", "unknown");
    let named = |name: &str| format!("name@{}", Digest::of(name.as_bytes()));
    let said = refusal(&index(&[linux.clone(), mac]));
    assert!(
        said.contains("index of 2 manifests") && said.contains(&named("mac")),
        "{said}"
    );
    let said = refusal(&index(&[attested.clone(), linux.clone()]));
    assert!(said.contains(&named("linux")), "{said}");
    let said = refusal(&index(&[linux, entry("other", "linux", "amd64")]));
    assert!(said.contains("index") && !said.contains("name@"), "{said}");
    let said = refusal(&json!({ "schemaVersion": 1, "fsLayers": [] }));
    assert!(said.contains("schema 1"), "{said}");
}
