//! Manifests: any bytes are the layout of an image whose parts fit together, or an error.

use std::collections::BTreeSet;

use proto::{
    Digest, Layout,
    image::{
        BLOCK_SIZE_ANNOTATION, CHUNK_COUNT_ANNOTATION, CONFIG_TYPE, DISK_SIZE_ANNOTATION,
        DISK_TYPE, FILE_DIGEST_ANNOTATION, Format, MANIFEST_TYPE, NVRAM_TYPE, OVERLAY_TYPE,
        RAW_DIGEST_ANNOTATION, RAW_SIZE_ANNOTATION,
    },
};
use serde_json::{Value, json};

pub(crate) fn run(input: &[u8]) {
    let Ok(layout) = Layout::parse(input, &Digest::of(input)) else {
        return;
    };
    let mut end = 0;
    for layer in layout.layers() {
        assert_eq!(layer.offset, end, "the disk has a gap");
        end += layer.raw_bytes;
    }
    assert_eq!(end, layout.disk_bytes());
    let (mut start, mut next) = (0, 0);
    for file in layout.files() {
        assert_eq!(
            (file.start, file.layers.start),
            (start, next),
            "a file is cut out"
        );
        for layer in &layout.layers()[file.layers.clone()] {
            let (_, offset) = layout.file_at(layer.offset);
            assert_eq!(offset, layer.offset - start);
            assert!(
                offset + layer.raw_bytes <= file.bytes,
                "a layer leaves its file"
            );
        }
        start += file.bytes;
        next = file.layers.end;
    }
    assert_eq!((start, next), (layout.disk_bytes(), layout.layers().len()));
    if layout.format() == Format::Stacked {
        assert!(layout.files().len() > 1);
        assert!(layout.layers().iter().all(|layer| layer.raw.is_some()));
        let digests: BTreeSet<_> = layout.files().iter().map(|file| file.digest).collect();
        assert!(!digests.contains(&None) && digests.len() == layout.files().len());
    }
    let contents = layout.contents();
    let digests: BTreeSet<_> = contents.iter().map(|content| content.digest).collect();
    assert_eq!(digests.len(), contents.len(), "a content is named twice");
    assert!(contents.iter().all(|content| !content.places.is_empty()));
    // sums that a stage reserves room by
    assert!(layout.content_bytes() >= layout.config().size + layout.nvram().size);
    assert!(layout.blob_bytes() > 0);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let layer = |media_type: &str, name: &str, size: u64, annotations: Value| {
        let digest = Digest::of(name.as_bytes()).to_string();
        json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations })
    };
    let disk = |name: &str, raw: &str, digest: bool| {
        let mut annotations = json!({ RAW_SIZE_ANNOTATION: raw });
        if digest {
            annotations[RAW_DIGEST_ANNOTATION] = Digest::of(raw.as_bytes()).to_string().into();
        }
        layer(DISK_TYPE, name, 9_999, annotations)
    };
    let overlay = |name: &str, raw: &str, count: Option<&str>| {
        let mut layer = disk(name, raw, true);
        layer["mediaType"] = OVERLAY_TYPE.into();
        if let Some(count) = count {
            layer["annotations"][CHUNK_COUNT_ANNOTATION] = count.into();
        }
        layer
    };
    let begins = |mut layer: Value, file: &str| {
        let digest = Digest::of(file.as_bytes()).to_string();
        layer["annotations"][FILE_DIGEST_ANNOTATION] = digest.into();
        layer
    };
    let manifest = |disk_bytes: &str, disks: Vec<Value>| {
        let mut layers = vec![layer(CONFIG_TYPE, "config", 900, json!({}))];
        layers.extend(disks);
        layers.push(layer(NVRAM_TYPE, "nvram", 33_000_000, json!({})));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": "sha256:0", "size": 2 },
            "annotations": { DISK_SIZE_ANNOTATION: disk_bytes, BLOCK_SIZE_ANNOTATION: "4096" },
        });
        manifest.to_string().into_bytes()
    };
    vec![
        manifest("536870912", vec![disk("a", "536870912", true)]),
        manifest(
            "1074041824",
            vec![
                disk("a", "536870912", true),
                disk("a", "536870912", true),
                disk("b", "300000", false),
            ],
        ),
        manifest(
            "1073741824",
            vec![
                begins(disk("a", "536870912", true), "base"),
                disk("a", "536870912", true),
                begins(overlay("c", "65536", Some("2")), "one"),
                overlay("d", "4097", None),
                begins(overlay("e", "33", Some("1")), "33"),
            ],
        ),
    ]
}
