//! Disk layers in Apple's LZ4 framing: any bytes decode to exactly the announced size or fail, in pieces as in one go.
//!
//! Input: the announced size (3 bytes, little-endian), the length of pieces less one (1 byte), the stream.

use apple_lz4::{DecodeError, Decoder, Position, encode};

pub(crate) fn run(input: &[u8]) {
    let Some(([a, b, c, piece], stream)) = input.split_first_chunk::<4>() else {
        return;
    };
    let raw_bytes = u64::from(u32::from_le_bytes([*a, *b, *c, 0]));
    let whole = decode(Decoder::new(raw_bytes), raw_bytes, [stream]);
    let pieces = decode(
        Decoder::new(raw_bytes),
        raw_bytes,
        stream.chunks(usize::from(*piece) + 1),
    );
    assert!(
        whole == pieces,
        "in pieces of {} it is another stream",
        usize::from(*piece) + 1
    );
    if let Ok((raw, starts)) = &whole {
        assert_eq!(raw.len() as u64, raw_bytes);
        // a fetch that was cut goes on at any block, with what it holds
        for start in starts {
            let from = usize::try_from(start.raw_offset).expect("it fits in memory");
            let blob_from = usize::try_from(start.blob_offset).expect("it fits in memory");
            let resumed = Decoder::resume(raw_bytes, *start, &raw[..from]);
            let rest = decode(resumed, raw_bytes, [&stream[blob_from..]]);
            assert!(
                rest.is_ok_and(|(rest, _)| rest == raw[from..]),
                "from {start:?} it is another stream"
            );
        }
    }

    let blob = encode(stream);
    let size = stream.len() as u64;
    let decoded = decode(Decoder::new(size), size, [blob.as_slice()]);
    assert!(
        decoded.is_ok_and(|(raw, _)| raw == stream),
        "what was encoded doesn't decode"
    );
}

type Decoded = (Vec<u8>, Vec<Position>);

fn decode<'a>(
    mut decoder: Decoder,
    raw_bytes: u64,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Decoded, DecodeError> {
    let (mut raw, mut starts) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = piece;
        while let Some(block) = decoder.feed(&mut input)? {
            starts.push(block.start);
            raw.extend_from_slice(block.raw);
            assert!(
                raw.len() as u64 <= raw_bytes,
                "more came out than the layer has"
            );
        }
        assert!(input.is_empty(), "bytes were left behind");
    }
    decoder.finish()?;
    Ok((raw, starts))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..9_000u32)
        .flat_map(|line| format!("line {}\n", line % 700).into_bytes())
        .collect();
    let mut noise = 1u32;
    let noise: Vec<u8> = (0..70_000)
        .map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        })
        .collect();
    let repeated = [&noise[..50_000], &noise[1_000..40_000]].concat();
    [&b"tart"[..], &text, &noise, &repeated, &[0; 70_000], &[]]
        .into_iter()
        .map(|raw| {
            let size = u32::try_from(raw.len())
                .expect("a small seed")
                .to_le_bytes();
            [&size[..3], &[200], &encode(raw)].concat()
        })
        .collect()
}
