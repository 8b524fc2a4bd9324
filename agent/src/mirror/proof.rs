//! Checks whether the registry that a client names really has bytes that this host got from elsewhere.
//!
//! A registry says which blobs a repository has and who may read them. But any client may name any registry, even one
//! of its own that claims to have every digest. So a registry that the settings don't name has to show that it has a
//! blob. Only then do its clients get bytes that this host got from another registry, from peers or from an image. The
//! mirror asks the registry for a few bytes at a place that the registry can't foresee.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use origin::OriginError;
use proto::Digest;

use super::{
    request::Repository,
    upstream::{Client, Upstreams},
};

/// Bytes that the registry is asked for. Nobody can guess them, unless they are a pattern.
const SAMPLE_BYTES: usize = 512;
/// The number of random places that are tried. The one whose bytes compress worst is used, because a disk has many
/// places with patterns.
const PLACES: usize = 16;

/// What one client's registry has to prove about one blob.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) repository: Repository,
    pub(super) client: Client,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A few bytes of a whole blob, and their offset.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    start: u64,
    bytes: Bytes,
}

impl Sample {
    /// Picks a sample from a blob's file. Blocks.
    pub(super) fn pick(file: &File, size: u64) -> io::Result<Self> {
        let length = SAMPLE_BYTES.min(usize::try_from(size).unwrap_or(SAMPLE_BYTES));
        let last = size - length as u64;
        let mut best: Option<(usize, Self)> = None;
        for _ in 0..PLACES {
            let start = random()? % (last + 1);
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, start)?;
            let packed = zstd::bulk::compress(&bytes, 1)?.len();
            if best.as_ref().is_none_or(|(most, _)| packed > *most) {
                let bytes = bytes.into();
                best = Some((packed, Self { start, bytes }));
            }
        }
        best.map(|(_, sample)| sample)
            .ok_or_else(|| io::Error::other("the blob has no bytes to compare"))
    }
}

impl Proof {
    pub(super) fn is_given(&self) -> bool {
        let registry = &self.repository.registry;
        self.upstreams.has_shown(registry, &self.digest)
    }

    /// Asks the registry for the sample. Returns whether the registry has the same bytes.
    pub(super) async fn ask(&self, sample: &Sample) -> Result<bool, OriginError> {
        let (repository, client) = (&self.repository, &self.client);
        let part = (sample.start, sample.bytes.len(), self.size);
        let given = self
            .upstreams
            .part(repository, &self.digest, client, part)
            .await?;
        let same = given == sample.bytes;
        if same {
            self.upstreams.shows(&repository.registry, self.digest);
        }
        Ok(same)
    }
}

/// A random number that nobody can guess.
fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let random = rustls::crypto::ring::default_provider().secure_random;
    let filled = random.fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_sample_is_of_what_cannot_be_guessed() {
        let mut file = tempfile::tempfile().unwrap();
        // half of it is a pattern
        let noise = (0u32..2_048).flat_map(|at| *Digest::of(&at.to_le_bytes()).as_bytes());
        let bytes: Vec<u8> = [vec![7; 65_536], noise.collect()].concat();
        file.write_all(&bytes).unwrap();
        for _ in 0..8 {
            let sample = Sample::pick(&file, bytes.len() as u64).unwrap();
            let start = usize::try_from(sample.start).unwrap();
            assert_eq!(sample.bytes, bytes[start..start + SAMPLE_BYTES]);
            assert!(start > 65_536 - SAMPLE_BYTES, "{start}");
        }
        let short = Sample::pick(&file, 9).unwrap();
        assert_eq!((short.start, short.bytes.len()), (0, 9));
    }
}
