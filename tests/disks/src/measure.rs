//! What of a new disk old ones have, for all grains in one pass over each disk.
//!
//! Blocks go through `Sorter`s. Memory grows with a disk by one bit a page, and by a small buffer for each sorted run.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{
    disk::{self, Data, Taker, index},
    grain::{Grain, LONGEST},
    sorter::{RUN, Record, Sorted, Sorter},
};

/// The unit of proof, and of what is asked for as a whole.
const CHUNK: u64 = 1 << 20;
/// A place is a disk's number above these bits, and the offset in the disk below.
const OFFSET_BITS: u32 = 48;

/// A new disk compared with old ones.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) disk_bytes: u64,
    /// Bytes in pages of 4 KiB that aren't all zeros. Shares are shares of these.
    pub(crate) data_bytes: u64,
    pub(crate) data_chunks: u64,
    pub(crate) rows: Vec<Row>,
}

/// What one grain finds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) grain: String,
    /// Found at the same offset of the first old disk only, or anywhere in any.
    pub(crate) at: &'static str,
    /// Data in blocks that no old disk has.
    pub(crate) missing_bytes: u64,
    /// The same, with equal blocks of the new disk counted once.
    pub(crate) missing_once_bytes: u64,
    /// What `missing_once_bytes` are when each block is packed by LZ4.
    pub(crate) missing_lz4_bytes: u64,
    /// Stretches that the missing blocks form: what would be asked for with one range each.
    pub(crate) stretches: u64,
    /// Chunks in which a block is missing.
    pub(crate) chunks: u64,
    /// What these chunks are when each is packed by LZ4.
    pub(crate) chunks_lz4_bytes: u64,
    pub(crate) cost: Cost,
}

/// What cutting and indexing took, over all disks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Cost {
    /// Bytes in blocks.
    pub(crate) bytes: u64,
    pub(crate) blocks: u64,
    /// Of an index of these blocks.
    pub(crate) index_bytes: u64,
    pub(crate) cut_cpu_s: f64,
    pub(crate) hash_cpu_s: f64,
}

/// Disks that a host has, cut by some grains.
pub(crate) struct Known(Index);

impl Known {
    /// Reads the disks once.
    ///
    /// # Errors
    /// A disk can't be read, or the sorters' unnamed files can't be written.
    pub(crate) fn read(disks: &[impl AsRef<Path>], grains: &[Grain]) -> anyhow::Result<Self> {
        ensure!(
            disks.len() < 1 << 8,
            "{} old disks: at most 255 are compared at once",
            disks.len()
        );
        let mut index = Index::new(grains)?;
        for (number, disk) in (0..).zip(disks) {
            index.number = number;
            index.take(disk.as_ref())?;
        }
        Ok(Self(index))
    }

    /// Reads a new disk once, and what is missing again.
    ///
    /// # Errors
    /// As in `read`.
    pub(crate) fn compare(&mut self, new: &Path) -> anyhow::Result<Comparison> {
        let grains: Vec<Grain> = self.0.cutters.iter().map(|cutter| cutter.grain).collect();
        let mut wanted = Index::new(&grains)?;
        let data = wanted.take(new)?;
        let new = Reading {
            disk: open(new)?,
            data: &data,
        };
        let mut chunks = Chunks::new(&new);
        let mut rows = Vec::new();
        for (known, wanted) in self.0.cutters.iter_mut().zip(&mut wanted.cutters) {
            let grain = known.grain;
            let cost = known.cost.and(wanted.cost);
            let (here, anywhere) = missing(&new, known.sorter.sorted()?, wanted.sorter.sorted()?)?;
            if grain.is_fixed() {
                rows.push(here.row(grain, "same offset", cost, &mut chunks)?);
            }
            rows.push(anywhere.row(grain, "anywhere", cost, &mut chunks)?);
        }
        let with_data = |chunk: &u64| data.in_range(chunk * CHUNK, CHUNK) > 0;
        let data_chunks = (0..data.all.div_ceil(CHUNK)).filter(with_data).count() as u64;
        Ok(Comparison {
            disk_bytes: data.all,
            data_bytes: data.bytes,
            data_chunks,
            rows,
        })
    }
}

fn open(disk: &Path) -> anyhow::Result<File> {
    File::open(disk).with_context(|| format!("the disk {} can't be opened", disk.display()))
}

/// The new disk, to be read again where something is missing.
struct Reading<'a> {
    disk: File,
    data: &'a Data,
}

impl Reading<'_> {
    fn packed(&self, place: u64, length: u64, buffers: &mut Buffers) -> io::Result<u64> {
        let plain = &mut buffers.plain[..index(length.min(self.data.all - place))];
        self.disk.read_exact_at(plain, place)?;
        let packed =
            lz4_flex::block::compress_into(plain, &mut buffers.packed).map_err(io::Error::other)?;
        // what doesn't become smaller travels as it is
        Ok(packed.min(plain.len()) as u64)
    }
}

struct Buffers {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        let packed = lz4_flex::block::get_maximum_output_size(LONGEST);
        Self {
            plain: vec![0; LONGEST],
            packed: vec![0; packed],
        }
    }
}

/// The blocks of disks, by each grain.
struct Index {
    /// Of the disk that is being read.
    number: u64,
    cutters: Vec<Cutter>,
}

impl Index {
    fn new(grains: &[Grain]) -> io::Result<Self> {
        let cutters = grains
            .iter()
            .map(|&grain| Cutter::new(grain))
            .collect::<io::Result<_>>()?;
        Ok(Self { number: 0, cutters })
    }

    fn take(&mut self, disk: &Path) -> anyhow::Result<Data> {
        for cutter in &mut self.cutters {
            cutter.next = 0;
        }
        disk::read(open(disk)?, self)
            .with_context(|| format!("the disk {} can't be measured", disk.display()))
    }
}

impl Taker for Index {
    fn piece(&mut self, bytes: &[u8], place: u64, data: &Data) -> io::Result<()> {
        for cutter in self
            .cutters
            .iter_mut()
            .filter(|cutter| cutter.grain.is_fixed())
        {
            cutter.next = place;
            cutter.take(bytes, place, true, self.number, |at, length| {
                data.in_range(at, length) == 0
            })?;
        }
        Ok(())
    }

    fn stretch(&mut self, bytes: &[u8], place: u64, last: bool) -> io::Result<u64> {
        let mut needed = place + bytes.len() as u64;
        for cutter in self
            .cutters
            .iter_mut()
            .filter(|cutter| !cutter.grain.is_fixed())
        {
            cutter.next = cutter.next.max(place);
            let has_zeros = cutter.grain == Grain::Recipe;
            // only recipes' cutter has pieces of zeros alone
            let is_zeros = |at, length| {
                let from = index(at - place);
                let piece = &bytes[from..from + index(length)];
                has_zeros && piece.iter().all(|byte| *byte == 0)
            };
            cutter.take(bytes, place, last, self.number, is_zeros)?;
            needed = needed.min(cutter.next);
        }
        Ok(needed)
    }
}

/// The blocks of disks by one grain.
struct Cutter {
    grain: Grain,
    /// Where the next block starts.
    next: u64,
    /// By fingerprint, then place.
    sorter: Sorter,
    cost: Cost,
}

impl Cutter {
    fn new(grain: Grain) -> io::Result<Self> {
        Ok(Self {
            grain,
            next: 0,
            sorter: Sorter::new(RUN)?,
            cost: Cost::default(),
        })
    }

    /// Takes what can be cut of `bytes`, which lie at `place`, but for blocks of zeros alone.
    ///
    /// Cuts all, then hashes all, so that the clock isn't read for each block.
    fn take(
        &mut self,
        bytes: &[u8],
        place: u64,
        last: bool,
        disk: u64,
        is_zeros: impl Fn(u64, u64) -> bool,
    ) -> io::Result<()> {
        let bytes = &bytes[index(self.next - place)..];
        let mut lengths = Vec::new();
        let started = cpu();
        self.grain.cut(bytes, last, &mut lengths);
        self.cost.cut_cpu_s += (cpu() - started).as_secs_f64();

        let mut blocks = Vec::new();
        let mut at = 0;
        for length in lengths {
            let block = self.next + at as u64;
            if !is_zeros(block, length as u64) {
                blocks.push((block, &bytes[at..at + length]));
            }
            at += length;
        }
        self.next += at as u64;

        let started = cpu();
        let prints: Vec<u64> = blocks.iter().map(|(_, block)| fingerprint(block)).collect();
        self.cost.hash_cpu_s += (cpu() - started).as_secs_f64();
        for ((at, block), key) in blocks.into_iter().zip(prints) {
            self.cost.bytes += block.len() as u64;
            self.cost.blocks += 1;
            self.cost.index_bytes += self.grain.entry_bytes();
            let length = u32::try_from(block.len()).expect("no block is longer than LONGEST");
            self.sorter.push(Record {
                key,
                second: disk << OFFSET_BITS | at,
                length,
            })?;
        }
        Ok(())
    }
}

impl Cost {
    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            blocks: self.blocks + other.blocks,
            index_bytes: self.index_bytes + other.index_bytes,
            cut_cpu_s: self.cut_cpu_s + other.cut_cpu_s,
            hash_cpu_s: self.hash_cpu_s + other.hash_cpu_s,
        }
    }
}

fn fingerprint(block: &[u8]) -> u64 {
    let hash = blake3::hash(block);
    u64::from_be_bytes(
        hash.as_bytes()[..8]
            .try_into()
            .expect("a hash has 32 bytes"),
    )
}

fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime)
        .try_into()
        .expect("processor time is no negative time")
}

/// One merge of both indexes: what isn't at the same offset of the first old disk, and what isn't anywhere.
fn missing(
    new: &Reading<'_>,
    mut known: Sorted<'_>,
    mut wanted: Sorted<'_>,
) -> io::Result<(Missing, Missing)> {
    let (mut here, mut anywhere) = (Missing::new(new)?, Missing::new(new)?);
    let mut passed = None;
    while let Some(block) = wanted.pop()? {
        while known
            .peek()
            .is_some_and(|old| (old.key, old.second) < (block.key, block.second))
        {
            passed = known.pop()?.map(|old| old.key);
        }
        let next = known.peek().filter(|old| old.key == block.key);
        if next.is_none_or(|old| old.second != block.second) {
            here.add(block, new.data)?;
        }
        if next.is_none() && passed != Some(block.key) {
            anywhere.add(block, new.data)?;
        }
    }
    Ok((here, anywhere))
}

/// Blocks that old disks don't have.
struct Missing {
    bytes: u64,
    once_bytes: u64,
    /// The fingerprint of the last block. Equal ones come one after the other.
    last: Option<u64>,
    /// By place: the first block of each fingerprint.
    once: Sorter,
    /// Whether a block is missing in each chunk.
    chunks: Vec<bool>,
}

impl Missing {
    fn new(new: &Reading<'_>) -> io::Result<Self> {
        let chunks = vec![false; index(new.data.all.div_ceil(CHUNK))];
        Ok(Self {
            bytes: 0,
            once_bytes: 0,
            last: None,
            once: Sorter::new(RUN)?,
            chunks,
        })
    }

    fn add(&mut self, block: Record, data: &Data) -> io::Result<()> {
        let (place, length) = (block.second, u64::from(block.length));
        let bytes = data.in_range(place, length);
        self.bytes += bytes;
        self.chunks[index(place / CHUNK)..index((place + length).div_ceil(CHUNK))].fill(true);
        if self.last != Some(block.key) {
            self.last = Some(block.key);
            self.once_bytes += bytes;
            self.once.push(Record {
                key: place,
                second: block.key,
                length: block.length,
            })?;
        }
        Ok(())
    }

    fn row(
        mut self,
        grain: Grain,
        at: &'static str,
        cost: Cost,
        chunks: &mut Chunks<'_>,
    ) -> io::Result<Row> {
        let mut once = self.once.sorted()?;
        let (mut packed, mut stretches, mut end) = (0, 0, None);
        while let Some(block) = once.pop()? {
            packed += chunks
                .new
                .packed(block.key, u64::from(block.length), &mut chunks.buffers)?;
            if end != Some(block.key) {
                stretches += 1;
            }
            end = Some(block.key + u64::from(block.length));
        }
        let numbers = (0..)
            .zip(&self.chunks)
            .filter(|(_, is_missing)| **is_missing)
            .map(|(number, _)| number);
        let numbers: Vec<usize> = numbers.collect();
        Ok(Row {
            grain: grain.name(),
            at,
            missing_bytes: self.bytes,
            missing_once_bytes: self.once_bytes,
            missing_lz4_bytes: packed,
            stretches,
            chunks: numbers.len() as u64,
            chunks_lz4_bytes: numbers
                .into_iter()
                .map(|number| chunks.packed(number))
                .sum::<io::Result<u64>>()?,
            cost,
        })
    }
}

/// What each chunk of the new disk is when packed, once it was asked.
struct Chunks<'a> {
    new: &'a Reading<'a>,
    known: Vec<Option<u64>>,
    buffers: Buffers,
}

impl<'a> Chunks<'a> {
    fn new(new: &'a Reading<'a>) -> Self {
        let known = vec![None; index(new.data.all.div_ceil(CHUNK))];
        Self {
            new,
            known,
            buffers: Buffers::new(),
        }
    }

    fn packed(&mut self, number: usize) -> io::Result<u64> {
        if let Some(packed) = self.known[number] {
            return Ok(packed);
        }
        let packed = self
            .new
            .packed(number as u64 * CHUNK, CHUNK, &mut self.buffers)?;
        self.known[number] = Some(packed);
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grain::GRAINS;
    use crate::made_up::{disk, random};

    const MIB: usize = 1 << 20;

    fn compared(old: &[&[&[u8]]], new: &[&[u8]]) -> Comparison {
        let old: Vec<_> = old.iter().map(|parts| disk(parts)).collect();
        let old: Vec<_> = old.iter().map(|file| file.path()).collect();
        Known::read(&old, &GRAINS)
            .unwrap()
            .compare(disk(new).path())
            .unwrap()
    }

    fn row<'a>(comparison: &'a Comparison, grain: &str, at: &str) -> &'a Row {
        let row = comparison
            .rows
            .iter()
            .find(|row| row.grain == grain && row.at == at);
        row.unwrap_or_else(|| panic!("no row {grain} {at}"))
    }

    /// Each 2 MiB: the same place, moved by whole chunks, moved by a page, moved by a byte, new, zeros, new twice.
    #[test]
    fn shares_of_a_made_up_disk_are_the_known_ones() {
        let parts: Vec<Vec<u8>> = (0..6).map(|seed| random(seed, 2 * MIB)).collect();
        let [same, chunks, page, byte, new, twice] = &parts[..] else {
            unreachable!()
        };
        let zeros = vec![0; 2 * MIB];
        let filler = random(9, 4096);
        let old: [&[u8]; 6] = [
            same,
            &zeros,
            chunks,
            &filler,
            page,
            &[&[7][..], byte].concat(),
        ];
        // the page and the byte that were before these parts are gone
        let wanted: [&[u8]; 8] = [same, chunks, page, byte, new, &zeros, twice, twice];
        let comparison = compared(&[&old], &wanted);
        let mib = |number: u64| number << 20;

        assert_eq!(
            (
                comparison.disk_bytes,
                comparison.data_bytes,
                comparison.data_chunks
            ),
            (mib(16), mib(14), 14)
        );
        let by = |grain: &str, at: &str| {
            let row = row(&comparison, grain, at);
            (row.missing_bytes, row.missing_once_bytes, row.chunks)
        };
        assert_eq!(by("fixed 1 MiB", "same offset"), (mib(12), mib(10), 12));
        assert_eq!(by("fixed 1 MiB", "anywhere"), (mib(10), mib(8), 10));
        // a page's distance is invisible to blocks of 16 KiB, and visible to those of 4 KiB
        assert_eq!(by("fixed 16 KiB", "anywhere"), (mib(10), mib(8), 10));
        assert_eq!(by("fixed 4 KiB", "anywhere"), (mib(8), mib(6), 8));

        // What is cut by content needs some blocks to find the rhythm again at the border of two parts.
        let near = |grain: &str, missing: u64, lost_per_border: u64| {
            let found = row(&comparison, grain, "anywhere").missing_bytes;
            assert!(
                found >= missing && found <= missing + 5 * lost_per_border,
                "{grain}: {found} of {missing}"
            );
        };
        near("gear 16 KiB", mib(6), 128 << 10);
        near("gear 64 KiB", mib(6), 512 << 10);
        near("pages 16 KiB", mib(8), 128 << 10);
        near("pages 64 KiB", mib(8), 512 << 10);
        near("recipe", mib(8), 128 << 10);

        // random bytes don't become smaller
        let fine = row(&comparison, "fixed 4 KiB", "anywhere");
        assert_eq!(
            (fine.missing_lz4_bytes, fine.chunks_lz4_bytes),
            (mib(6), mib(8))
        );
        // the byte's part is followed by the new one without a gap, and the second of two equal parts isn't asked for
        assert_eq!(fine.stretches, 2);
        // both disks' data: 8 MiB, a page and a byte, and 14 MiB
        assert_eq!(fine.cost.blocks, (2048 + 1 + 1) + 3584);
        assert_eq!(fine.cost.index_bytes, fine.cost.blocks * 12);
    }

    #[test]
    fn a_second_new_disk_is_compared_as_the_first() {
        let (old, other) = (random(1, 3 * MIB), random(2, MIB));
        let file = disk(&[&old]);
        let mut known = Known::read(&[file.path()], &GRAINS).unwrap();
        for parts in [[&old[..], &other], [&other, &old], [&old, &other]] {
            let comparison = known.compare(disk(&parts).path()).unwrap();
            let fine = row(&comparison, "fixed 4 KiB", "anywhere");
            assert_eq!(
                (fine.missing_bytes, fine.cost.blocks),
                (MIB as u64, 7 * 256)
            );
        }
    }

    #[test]
    fn a_block_of_a_second_old_disk_counts_anywhere_and_not_at_the_same_offset() {
        let (first, second) = (random(1, MIB), random(2, MIB));
        let comparison = compared(&[&[&first], &[&second]], &[&second]);
        assert_eq!(row(&comparison, "fixed 1 MiB", "same offset").chunks, 1);
        for grain in GRAINS {
            assert_eq!(
                row(&comparison, &grain.name(), "anywhere").missing_bytes,
                0,
                "{}",
                grain.name()
            );
        }
    }

    #[test]
    fn zeros_within_a_block_are_no_data_that_is_missing() {
        let mut chunk = vec![0; MIB];
        chunk[..4096].copy_from_slice(&random(1, 4096));
        let comparison = compared(&[&[&random(2, MIB)]], &[&chunk, &chunk[..100]]);
        let coarse = row(&comparison, "fixed 1 MiB", "anywhere");
        assert_eq!(
            (comparison.data_bytes, coarse.missing_bytes, coarse.chunks),
            (4196, 4196, 2)
        );
        // the page of random bytes and the last 100 don't become smaller; the zeros behind them do
        assert!(
            (4196..12_000).contains(&coarse.missing_lz4_bytes),
            "{}",
            coarse.missing_lz4_bytes
        );
    }

    #[test]
    fn equal_disks_miss_nothing_wherever_pieces_end() {
        let (data, zeros) = (random(3, 5 * MIB + 4096 * 3 + 17), vec![0; 9 * MIB]);
        let parts: [&[u8]; 4] = [&zeros[..MIB], &data, &zeros, &data[..MIB + 5]];
        let comparison = compared(&[&parts], &parts);
        assert!(
            comparison
                .rows
                .iter()
                .all(|row| row.missing_bytes == 0 && row.chunks == 0 && row.stretches == 0)
        );
    }

    #[test]
    fn a_disk_that_is_not_there_is_named() {
        let Err(error) = Known::read(&[Path::new("/nowhere/old.raw")], &GRAINS) else {
            panic!("nothing was read");
        };
        assert!(error.to_string().contains("/nowhere/old.raw"), "{error}");
    }
}
