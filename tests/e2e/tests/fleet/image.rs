//! Generated images against the agent's decoder, which was written apart from the encoder here.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use apple_lz4::{DecodeError, Decoder};
use e2e::image::{Flaw, GeneratedImage, ImageSpec, Mix};
use proto::Digest;

fn spec() -> ImageSpec {
    ImageSpec {
        disk_bytes: (12 << 20) + 4096,
        layer_bytes: 4 << 20,
        repeated_layers: 0,
        ..ImageSpec::default()
    }
}

/// Decodes a layer from pieces of an odd size.
fn decode(image: &GeneratedImage, layer: usize) -> Result<Vec<u8>, DecodeError> {
    let layer = image.layout().unwrap().layers()[layer];
    let blob = image.blob(&layer.blob.digest).unwrap();
    let mut decoder = Decoder::new(layer.raw_bytes);
    let mut raw = Vec::new();
    for mut piece in blob.chunks(10_007) {
        while let Some(block) = decoder.feed(&mut piece)? {
            raw.extend_from_slice(block.raw);
        }
    }
    decoder.finish()?;
    Ok(raw)
}

#[test]
fn the_agent_decodes_every_layer() {
    let directory = tempfile::tempdir().unwrap();
    for mix in [
        Mix::default(),
        Mix {
            zero_percent: 100,
            compressible_percent: 0,
        },
        Mix {
            zero_percent: 0,
            compressible_percent: 0,
        },
    ] {
        let image = ImageSpec { mix, ..spec() }
            .generate(directory.path())
            .unwrap();
        let mut disk = Vec::new();
        for (at, layer) in image.layout().unwrap().layers().iter().enumerate() {
            let raw = decode(&image, at).unwrap();
            if let Some(digest) = layer.raw {
                assert_eq!(Digest::of(&raw), digest);
            }
            disk.extend(raw);
        }
        let path = directory.path().join("disk.img");
        std::fs::write(&path, disk).unwrap();
        assert_eq!(image.compare(&path).unwrap(), None);
    }
}

#[test]
fn the_agent_names_every_flaw_of_a_stream() {
    let directory = tempfile::tempdir().unwrap();
    let flawed = |flaw| {
        let image = spec().flawed(flaw).generate(directory.path()).unwrap();
        decode(&image, 0)
    };
    let error = flawed(Flaw::Truncated(0)).unwrap_err();
    assert!(matches!(error, DecodeError::Truncated { .. }), "{error}");
    let error = flawed(Flaw::TooShort(0)).unwrap_err();
    assert!(matches!(error, DecodeError::EndsEarly { .. }), "{error}");
    let error = flawed(Flaw::Bomb(0, 1000)).unwrap_err();
    assert!(matches!(error, DecodeError::TooLong { .. }), "{error}");
    // A changed byte needn't break the stream; it changes what comes out.
    let good = spec().generate(directory.path()).unwrap();
    if let Ok(raw) = flawed(Flaw::Corrupt(0)) {
        assert!(raw != decode(&good, 0).unwrap());
    }
}
