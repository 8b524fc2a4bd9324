use proptest::prelude::*;

use super::*;

/// Bytes with zeros, repeats at every distance up to the window, and noise.
fn mixed(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap()
    };
    let mut raw = Vec::with_capacity(size);
    while raw.len() < size {
        let run = (next() % 5000 + 1).min(size - raw.len());
        match next() % 4 {
            0 => raw.resize(raw.len() + run, 0),
            1 | 2 if !raw.is_empty() => {
                let back = next() % raw.len().min(WINDOW_BYTES - 1) + 1;
                for _ in 0..run {
                    raw.push(raw[raw.len() - back]);
                }
            }
            _ => raw.extend((0..run).map(|_| next().to_le_bytes()[0])),
        }
    }
    raw
}

fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..size)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40).to_le_bytes()[0]
        })
        .collect()
}

fn decode_pieces(
    decoder: &mut Decoder,
    pieces: impl IntoIterator<Item = impl AsRef<[u8]>>,
) -> Result<(Vec<u8>, Vec<Position>), DecodeError> {
    let (mut raw, mut starts) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = piece.as_ref();
        while let Some(block) = decoder.feed(&mut input)? {
            starts.push(block.start);
            raw.extend_from_slice(block.raw);
        }
        assert!(input.is_empty());
    }
    decoder.finish()?;
    Ok((raw, starts))
}

fn decode(raw_bytes: usize, blob: &[u8]) -> Result<Vec<u8>, DecodeError> {
    decode_pieces(&mut Decoder::new(raw_bytes as u64), [blob]).map(|(raw, _)| raw)
}

fn block(magic: &[u8; 4], words: &[u32], payload: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_vec();
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn streams_decode_to_what_was_encoded() {
    for size in [0, 1, 12, 13, 65_535, 65_536, 65_537, 131_072, 1_000_003] {
        let raw = mixed(size, 3);
        assert_eq!(decode(size, &encode(&raw)).unwrap(), raw, "{size} bytes");
    }
}

#[test]
fn matches_reach_back_into_stored_blocks() {
    let first = noise(WINDOW_BYTES, 9);
    let raw = [first.as_slice(), &first[1000..60_000]].concat();
    let blob = encode(&raw);
    assert_eq!(&blob[..4], b"bv4-");
    assert!(blob.len() < WINDOW_BYTES + 2000, "{}", blob.len());
    assert_eq!(decode(raw.len(), &blob).unwrap(), raw);
}

/// Written by hand from the framing's description, so that the encoder and the decoder can't share a mistake.
#[test]
fn a_stream_written_by_hand_decodes() {
    let mut blob = block(b"bv4-", &[8], b"abcdefgh");
    // No literals, a match of 4 + 4 bytes at distance 8, then five literals.
    blob.extend(block(
        b"bv41",
        &[13, 9],
        &[0x04, 8, 0, 0x50, b'v', b'w', b'x', b'y', b'z'],
    ));
    blob.extend_from_slice(b"bv4$");
    assert_eq!(decode(21, &blob).unwrap(), b"abcdefghabcdefghvwxyz");
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let raw = vec![0; 200_000];
    let blob = encode(&raw);
    assert!(decode(200_000, &blob).is_ok());
    let mut out = 0;
    let mut decoder = Decoder::new(199_999);
    let mut input = blob.as_slice();
    let error = loop {
        match decoder.feed(&mut input) {
            Ok(Some(block)) => out += block.raw.len(),
            Ok(None) => panic!("bomb went off"),
            Err(error) => break error,
        }
    };
    assert!(matches!(
        error,
        DecodeError::TooLong {
            raw_bytes: 199_999,
            ..
        }
    ));
    assert_eq!(out, 3 * WINDOW_BYTES);
    assert_eq!(decoder.feed(&mut input).unwrap_err(), error);
    assert_eq!(decoder.finish().unwrap_err(), error);
    assert!(matches!(
        decode(200_001, &blob),
        Err(DecodeError::EndsEarly {
            decoded: 200_000,
            ..
        })
    ));
}

#[test]
fn block_sizes_are_bounded_on_both_sides() {
    let stored = |size: u32| {
        let mut blob = block(b"bv4-", &[size], &vec![7; size as usize]);
        blob.extend_from_slice(b"bv4$");
        decode(size as usize, &blob)
    };
    assert!(stored(65_536).is_ok());
    assert!(matches!(
        stored(65_537),
        Err(DecodeError::BlockTooLarge { offset: 0, .. })
    ));
    let encoded = |size: u32| {
        let blob = block(b"bv41", &[65_536, size], &vec![0; size as usize]);
        decode(65_536, &blob).unwrap_err()
    };
    assert!(matches!(
        encoded(65_536 + 257 + 16),
        DecodeError::Corrupt { .. }
    ));
    assert!(matches!(
        encoded(65_536 + 257 + 17),
        DecodeError::EncodedTooLarge { .. }
    ));
}

#[test]
fn history_before_the_stream_is_refused() {
    let blob = block(b"bv41", &[4, 3], &[0x00, 1, 0]);
    assert!(matches!(
        decode(4, &blob),
        Err(DecodeError::Corrupt { offset: 0, .. })
    ));
}

#[test]
fn what_follows_the_end_is_refused() {
    let mut blob = encode(b"tart");
    let end = blob.len() as u64;
    blob.push(0);
    assert_eq!(decode(4, &blob), Err(DecodeError::Trailing { offset: end }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_of_any_size_decode_alike(
        size in 0usize..400_000,
        seed: u64,
        cuts in prop::collection::vec(1usize..100_000, 1..20),
        tiny in any::<bool>(),
    ) {
        let raw = mixed(size, seed);
        let blob = encode(&raw);
        let mut pieces = Vec::new();
        let mut rest = blob.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let cut = if tiny { cut % 37 + 1 } else { *cut };
            let (piece, more) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = more;
        }
        let mut decoder = Decoder::new(size as u64);
        let (out, starts) = decode_pieces(&mut decoder, pieces).unwrap();
        prop_assert!(out == raw);
        prop_assert_eq!(decoder.position().raw_offset, size as u64);

        // From every block's start, with exactly the history that the format needs.
        for start in starts {
            let from = usize::try_from(start.raw_offset).unwrap();
            let blob_from = usize::try_from(start.blob_offset).unwrap();
            let history = &raw[from.saturating_sub(WINDOW_BYTES)..from];
            let mut decoder = Decoder::resume(size as u64, start, history);
            prop_assert_eq!(decoder.position(), start);
            let (out, _) = decode_pieces(&mut decoder, [&blob[blob_from..]]).unwrap();
            prop_assert!(out == raw[from..]);
        }
    }

    #[test]
    fn a_cut_stream_is_truncated(size in 1usize..150_000, seed: u64, at: prop::sample::Index) {
        let blob = encode(&mixed(size, seed));
        let cut = at.index(blob.len());
        let error = decode(size, &blob[..cut]).unwrap_err();
        prop_assert!(matches!(error, DecodeError::Truncated { offset, .. } if offset == cut as u64), "{}", error);
    }

    #[test]
    fn a_changed_byte_never_panics_nor_lengthens(size in 1usize..150_000, seed: u64, at: prop::sample::Index, flip in 1u8..=255) {
        let raw = mixed(size, seed);
        let mut blob = encode(&raw);
        let at = at.index(blob.len());
        blob[at] ^= flip;
        if let Ok(out) = decode(size, &blob) {
            prop_assert_eq!(out.len(), size);
        }
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..300), raw in 0u32..70_000, encoded in 0u32..300, stored in any::<bool>()) {
        let blob = if stored { block(b"bv4-", &[raw], &bytes) } else { block(b"bv41", &[raw, encoded], &bytes) };
        for blob in [bytes.as_slice(), &blob] {
            if let Ok(out) = decode(raw as usize, blob) {
                prop_assert_eq!(out.len(), raw as usize);
            }
        }
    }
}
