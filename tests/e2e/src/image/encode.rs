//! Apple's LZ4 framing, as tart's layers have it, written apart from the agent's decoder so that neither can share the
//! other's mistake.

use lz4_flex::block::{compress_into_with_dict, get_maximum_output_size};

/// Raw bytes of a block: what Apple's encoder puts into one.
pub(super) const BLOCK_BYTES: usize = 64 << 10;
/// The end of a stream.
pub(super) const END: &[u8] = b"bv4$";

/// Bytes of a compressed block's header.
const HEADER_BYTES: usize = 12;
/// The least that a block must shrink, here a sixteenth, to be worth compressing.
const WORTH: usize = BLOCK_BYTES / 16;

/// Encodes blocks one after another; each may refer to the one before.
pub(super) struct Encoder {
    history: Vec<u8>,
    out: Vec<u8>,
    zero_after_zero: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            history: Vec::with_capacity(BLOCK_BYTES),
            out: vec![0; HEADER_BYTES + get_maximum_output_size(BLOCK_BYTES)],
            zero_after_zero: Vec::new(),
        }
    }

    /// The next block of at most [`BLOCK_BYTES`], encoded. All but the last have to be whole. What is known to be
    /// `noise` is stored without a try, which is what the try would end in.
    pub(super) fn block(&mut self, raw: &[u8], noise: bool) -> &[u8] {
        // A third of a disk is zeros: their encoding is always the same.
        let zeros = raw.len() == BLOCK_BYTES && is_zero(raw) && self.history == raw;
        if zeros && !self.zero_after_zero.is_empty() {
            return &self.zero_after_zero;
        }
        let encoded = if noise {
            usize::MAX
        } else {
            compress_into_with_dict(raw, &mut self.out[HEADER_BYTES..], &self.history)
                .unwrap_or(usize::MAX)
        };
        let word = |size: usize| u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes();
        let length = if encoded < raw.len().saturating_sub(WORTH) {
            self.out[..4].copy_from_slice(b"bv41");
            self.out[4..8].copy_from_slice(&word(raw.len()));
            self.out[8..12].copy_from_slice(&word(encoded));
            HEADER_BYTES + encoded
        } else {
            self.out[..4].copy_from_slice(b"bv4-");
            self.out[4..8].copy_from_slice(&word(raw.len()));
            self.out[8..8 + raw.len()].copy_from_slice(raw);
            8 + raw.len()
        };
        self.history.clear();
        self.history.extend_from_slice(raw);
        if zeros {
            self.zero_after_zero = self.out[..length].to_vec();
        }
        &self.out[..length]
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
