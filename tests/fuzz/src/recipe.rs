//! Recipes: any bytes are the recipe of an image in the image's sizes, or an error. What is a recipe is written in one
//! way only where it is read in one way: encoded and read again, it is the same.

use std::sync::LazyLock;

use proto::{
    Digest, Layout,
    blocks::Blocks,
    chunks::ChunkIndex,
    image::{
        CONFIG_TYPE, DISK_TYPE, MANIFEST_TYPE, NVRAM_TYPE, RAW_DIGEST_ANNOTATION,
        RAW_SIZE_ANNOTATION,
    },
    recipe::{Maker, Recipe},
};
use serde_json::{Value, json};

/// The image whose recipes are read.
static LAYOUT: LazyLock<Layout> = LazyLock::new(layout);

/// Raw bytes of the contents: less than a chunk, more than one, and two chunks exactly.
const CONTENTS: [(&str, usize); 3] = [
    (CONFIG_TYPE, 700),
    (DISK_TYPE, (1 << 20) + 5),
    (NVRAM_TYPE, 2 << 20),
];

pub(crate) fn run(input: &[u8]) {
    let layout = &*LAYOUT;
    let Ok(recipe) = Recipe::parse(input, layout) else {
        return;
    };
    assert_eq!(recipe.image(), layout.digest());
    let contents = layout.contents();
    assert_eq!(recipe.contents().count(), contents.len());
    for spec in contents {
        let content = recipe.content(&spec.digest).expect("a recipe is whole");
        assert_eq!(content.geometry(), spec.geometry);
        let chunks = spec.geometry.chunks();
        for chunk in 0..chunks {
            assert!(content.link(ChunkIndex(chunk)).is_some());
        }
        assert!(content.link(ChunkIndex(chunks)).is_none());
        let pieces = content.blocks().pieces();
        let pages: u64 = pieces.map(|(_, piece)| u64::from(piece.pages())).sum();
        assert!(content.blocks().is_empty() || pages == Blocks::pages(spec.geometry));
    }
    let blob = contents_blob(layout);
    if let Some(of) = recipe.blob(&blob.digest) {
        assert_eq!(of.geometry().size(), blob.size);
        let last = ChunkIndex(of.geometry().chunks() - 1);
        assert!(
            of.link(last)
                .is_some_and(|link| link.after == blob.digest.into())
        );
    }
    let again = Recipe::parse(&recipe.encode(), layout).expect("what was read reads back");
    assert!(recipe == again && recipe.first_difference(&again).is_none());
}

/// The blob of the disk.
fn contents_blob(layout: &Layout) -> proto::image::Blob {
    layout.layers()[0].blob
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let layout = &*LAYOUT;
    let make = |places: bool| {
        let contents = CONTENTS.iter().map(|(kind, size)| {
            let bytes = bytes(kind, *size);
            let digest = Digest::of(&bytes);
            let contents = layout.contents();
            let spec = contents.iter().find(|spec| spec.digest == digest);
            let mut maker = Maker::of(spec.expect("it is one"));
            let taken = match places && *kind == DISK_TYPE {
                true => {
                    let blob = maker.take_blob(&blob(*size));
                    blob.and_then(|()| maker.take_block(0, &bytes))
                }
                false => maker.take(&bytes),
            };
            taken.and_then(|()| maker.finish()).expect("its bytes")
        });
        let recipe = Recipe::new(layout, contents).expect("all contents");
        recipe.encode()
    };
    vec![make(true), make(false)]
}

/// The blob of the disk layer. Nothing decodes it.
fn blob(size: usize) -> Vec<u8> {
    bytes("blob", size)
}

fn bytes(kind: &str, size: usize) -> Vec<u8> {
    let digest = Digest::of(kind.as_bytes());
    let mut bytes = digest.as_bytes().repeat(size.div_ceil(32));
    bytes.truncate(size);
    bytes
}

fn layout() -> Layout {
    let layer = |(kind, size): &(&str, usize)| -> Value {
        let digest = Digest::of(&bytes(kind, *size)).to_string();
        json!({
            "mediaType": kind,
            "digest": if *kind == DISK_TYPE { Digest::of(&blob(*size)).to_string() } else { digest.clone() },
            "size": size,
            "annotations": { RAW_SIZE_ANNOTATION: size.to_string(), RAW_DIGEST_ANNOTATION: digest },
        })
    };
    let layers: Vec<Value> = CONTENTS.iter().map(layer).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers});
    let manifest = manifest.to_string();
    let digest = Digest::of(manifest.as_bytes());
    Layout::parse(manifest.as_bytes(), &digest).expect("a sound manifest")
}
