//! The bytes of an image's disk: a function of a seed, or those of a file.

use std::{
    fs::File,
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use crate::interrupt;

/// Bytes of a disk that are compared at a time.
pub(super) const COMPARE_BYTES: usize = 1 << 20;

/// What is made at a time, and the unit of everything below.
const CELL_BYTES: u64 = 64 << 10;
/// Cells of one kind that lie together: 2 MiB, so that whole chunks of 1 MiB are zero.
const GROUP_CELLS: u64 = 32;
/// How far groups begin before a multiple of their size.
const GROUP_SHIFT: u64 = 5;
/// Different words in the compressible parts.
const WORDS: usize = 1024;
/// Bytes of a word.
const WORD_BYTES: usize = 24;
/// 2⁶⁴ divided by the golden ratio: its multiples spread evenly (Knuth, multiplicative hashing).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a release changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// How many of the layers change, at least one.
    pub layers_percent: u8,
    /// How many of such a layer's groups change, at least one.
    pub within_percent: u8,
}

/// Bytes that a release puts between others. What lay behind them lies later, and the disk's last bytes fall off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// Where they begin.
    pub at: u64,
    /// How many.
    pub bytes: u64,
}

/// Parts of a disk by kind, in percent; what is missing from 100 is incompressible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Zeros.
    pub zero_percent: u8,
    /// Text-like bytes, of which LZ4 leaves less than half.
    pub compressible_percent: u8,
}

impl Default for Mix {
    /// About what a macOS disk with Xcode has: 57.9 GB of 140 GB are left after compression; here 40 %.
    fn default() -> Self {
        Self {
            zero_percent: 35,
            compressible_percent: 45,
        }
    }
}

/// What a disk is made of, before its releases.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) disk_bytes: u64,
    pub(super) layer_bytes: u64,
    pub(super) seed: u64,
    pub(super) mix: Mix,
    pub(super) repeated_layers: usize,
    pub(super) inserted: Option<Insertion>,
}

/// A disk whose every byte can be made, or read from a file, at any time.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Where the bytes are read instead of made.
    file: Option<Arc<File>>,
    size: u64,
    layer_bytes: u64,
    seed: u64,
    mix: Mix,
    repeated: usize,
    inserted: Option<Insertion>,
    /// By layer: the releases that changed it, with the percentage of its groups.
    changed: Vec<Vec<(u64, u8)>>,
    words: Box<[[u8; WORD_BYTES]]>,
}

/// What a cell's bytes depend on, beside the disk.
struct Place {
    /// The cell; that of the source, where the layer is a copy.
    cell: u64,
    group: u64,
    /// The release that it is from.
    release: u64,
}

enum Kind {
    Zero,
    Compressible,
    Incompressible,
}

impl Disk {
    /// # Errors
    /// What contradicts itself.
    pub(super) fn new(parts: &Parts, changes: &[Change]) -> Result<Self, &'static str> {
        if parts.disk_bytes == 0 {
            return Err("a disk has a byte at least");
        }
        if parts.layer_bytes == 0 || !parts.layer_bytes.is_multiple_of(CELL_BYTES) {
            return Err("a layer has a multiple of 64 KiB");
        }
        if parts
            .mix
            .zero_percent
            .saturating_add(parts.mix.compressible_percent)
            > 100
        {
            return Err("more than 100 % of the disk are given away");
        }
        if parts.inserted.is_some() && parts.repeated_layers > 0 {
            return Err("what is inserted moves copies of layers away from layers' starts");
        }
        let layers = parts.disk_bytes.div_ceil(parts.layer_bytes);
        let Ok(layers) = usize::try_from(layers) else {
            return Err("too many layers");
        };
        let whole = if parts.disk_bytes.is_multiple_of(parts.layer_bytes) {
            layers
        } else {
            layers - 1
        };
        // Small disks get as many repetitions as they have room for.
        let repeated = parts.repeated_layers.min(whole / 2);
        let mut words = vec![[0; WORD_BYTES]; WORDS].into_boxed_slice();
        let mut random = Random::new(&[parts.seed, 0x776f_7264]);
        for word in &mut words {
            random.fill(word);
            // Text-like: a few bits of each byte carry something.
            word.iter_mut()
                .for_each(|byte| *byte = b'a' + (*byte & 0x0f));
        }
        let mut disk = Self {
            file: None,
            size: parts.disk_bytes,
            layer_bytes: parts.layer_bytes,
            seed: parts.seed,
            mix: parts.mix,
            repeated,
            inserted: parts.inserted,
            changed: vec![Vec::new(); layers],
            words,
        };
        disk.apply(changes);
        Ok(disk)
    }

    fn apply(&mut self, changes: &[Change]) {
        let own: Vec<usize> = (0..self.layers())
            .filter(|at| self.source(*at) == *at)
            .collect();
        for (change, release) in changes.iter().zip(1..) {
            let percent = usize::from(change.layers_percent.min(100));
            let many = (own.len() * percent).div_ceil(100).max(1);
            // The many whose hash is smallest.
            let mut order = own.clone();
            order.sort_by_key(|at| Random::new(&[self.seed, release, *at as u64]).next());
            for at in order.into_iter().take(many) {
                self.changed[at].push((release, change.within_percent.min(100)));
            }
        }
    }

    /// The same disk with a file's bytes.
    pub(super) fn of_file(self, file: File) -> Self {
        let file = Some(Arc::new(file));
        Self { file, ..self }
    }

    /// Bytes of the disk.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// How many layers it is cut into.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.changed.len()
    }

    /// Where a layer lies on the disk.
    #[must_use]
    pub fn layer(&self, at: usize) -> Range<u64> {
        let start = at as u64 * self.layer_bytes;
        start..(start + self.layer_bytes).min(self.size)
    }

    /// The layer that this one is a copy of: itself, mostly.
    #[must_use]
    pub fn source(&self, at: usize) -> usize {
        let whole = in_memory(self.size / self.layer_bytes);
        let first = whole.saturating_sub(self.repeated);
        if (first..whole).contains(&at) {
            at - first
        } else {
            at
        }
    }

    /// Makes or reads the bytes from `offset` on; zeros behind the disk's end.
    ///
    /// # Panics
    /// When the disk's file can't be read.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        if let Some(file) = &self.file {
            let here = in_memory(self.size.saturating_sub(offset)).min(bytes.len());
            let (here, behind) = bytes.split_at_mut(here);
            file.read_exact_at(here, offset)
                .expect("the disk's file can be read, and stays as it is");
            behind.fill(0);
            return;
        }
        let Some(Insertion {
            at,
            bytes: inserted,
        }) = self.inserted
        else {
            return self.read_own(offset, bytes);
        };
        // as many of `length` bytes from `from` on as lie before `end`
        let before =
            |end: u64, from: u64, length: usize| in_memory(end.saturating_sub(from)).min(length);
        let (old, bytes) = bytes.split_at_mut(before(at, offset, bytes.len()));
        self.read_own(offset, old);
        let offset = offset + old.len() as u64;
        let (new, moved) = bytes.split_at_mut(before(at + inserted, offset, bytes.len()));
        for (place, byte) in (offset..).zip(&mut *new) {
            let random = Random::new(&[self.seed, 0x696e_7365_7274, place / 8]).next();
            *byte = random.to_le_bytes()[in_memory(place % 8)];
        }
        let offset = offset + new.len() as u64;
        if !moved.is_empty() {
            self.read_own(offset - inserted, moved);
        }
    }

    /// Compares a file with these bytes, byte for byte. `None` is equal; otherwise the offset of the first difference,
    /// or of the shorter one's end.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn compare(&self, path: &Path) -> io::Result<Option<u64>> {
        let mut file = File::open(path)?;
        let found = file.metadata()?.len();
        let (mut ours, mut theirs) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
        let common = found.min(self.size());
        let mut offset = 0;
        while offset < common {
            interrupt::check()?;
            let length = usize::try_from((common - offset).min(COMPARE_BYTES as u64))
                .map_err(io::Error::other)?;
            file.read_exact(&mut theirs[..length])?;
            self.read(offset, &mut ours[..length]);
            if ours[..length] != theirs[..length] {
                let same = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
                return Ok(Some(offset + same as u64));
            }
            offset += length as u64;
        }
        Ok((found != self.size()).then_some(common))
    }

    /// Makes bytes as if nothing were inserted.
    fn read_own(&self, offset: u64, mut bytes: &mut [u8]) {
        let mut offset = offset;
        let mut cell = None;
        while !bytes.is_empty() {
            let inside = offset % CELL_BYTES;
            let length = (CELL_BYTES - inside).min(bytes.len() as u64);
            let (now, later) = bytes.split_at_mut(in_memory(length));
            if now.len() as u64 == CELL_BYTES {
                self.cell(offset / CELL_BYTES, now);
            } else {
                let cell = cell.get_or_insert_with(|| vec![0; in_memory(CELL_BYTES)]);
                self.cell(offset / CELL_BYTES, cell);
                let from = in_memory(inside);
                now.copy_from_slice(&cell[from..from + now.len()]);
            }
            if offset + length > self.size {
                let good = in_memory(self.size.saturating_sub(offset));
                now[good..].fill(0);
            }
            bytes = later;
            offset += length;
        }
    }

    /// Bytes for an nvram: mostly empty, as real ones are.
    pub(super) fn nvram(&self, size: u64) -> Vec<u8> {
        let mut bytes = vec![0; in_memory(size)];
        let filled = bytes.len().div_ceil(8);
        Random::new(&[self.seed, 0x006e_7672_616d]).fill(&mut bytes[..filled]);
        bytes
    }

    /// Whether nothing would make the cell at this offset smaller.
    pub(super) fn is_noise(&self, offset: u64) -> bool {
        if self.file.is_some() {
            return false;
        }
        if self.inserted.is_some() {
            // a cell may have bytes of two kinds
            return self.mix.zero_percent + self.mix.compressible_percent == 0;
        }
        self.place(offset / CELL_BYTES)
            .is_some_and(|place| matches!(self.kind(&place), Kind::Incompressible))
    }

    /// Makes a whole cell.
    fn cell(&self, cell: u64, bytes: &mut [u8]) {
        let Some(place) = self.place(cell) else {
            bytes.fill(0);
            return;
        };
        let mut random = Random::new(&[self.seed, place.release, place.cell]);
        match self.kind(&place) {
            Kind::Zero => bytes.fill(0),
            Kind::Incompressible => random.fill(bytes),
            Kind::Compressible => self.write_text(&mut random, bytes),
        }
    }

    /// What a cell is made from; `None` behind the disk's end.
    fn place(&self, cell: u64) -> Option<Place> {
        let cells = self.layer_bytes / CELL_BYTES;
        let layer = in_memory(cell / cells);
        if layer >= self.layers() {
            return None;
        }
        let source = self.source(layer);
        let cell = source as u64 * cells + cell % cells;
        let group = (cell + GROUP_SHIFT) / GROUP_CELLS;
        Some(Place {
            cell,
            group,
            release: self.release(source, group),
        })
    }

    /// The last release that changed this group of a layer; 0 is the first one.
    fn release(&self, layer: usize, group: u64) -> u64 {
        let changes = &self.changed[layer];
        let cells = self.layer_bytes / CELL_BYTES;
        // The first group that begins inside the layer always changes, so that a changed layer differs.
        let first = (layer as u64 * cells + GROUP_SHIFT).div_ceil(GROUP_CELLS);
        let certain = group == first || cells < GROUP_CELLS;
        changes
            .iter()
            .rev()
            .find(|(release, percent)| {
                let draw = Random::new(&[self.seed, *release, group, 2]).next() % 100;
                certain || draw < u64::from(*percent)
            })
            .map_or(0, |(release, _)| *release)
    }

    fn kind(&self, place: &Place) -> Kind {
        let (group, release) = (place.group, place.release);
        // Multiples of the golden ratio: any run of groups has the shares that the whole disk has.
        let draw = (u128::from(self.seed.wrapping_add(group).wrapping_mul(GOLDEN)) * 100) >> 64;
        let zero = u128::from(self.mix.zero_percent);
        let compressible = zero + u128::from(self.mix.compressible_percent);
        if draw < zero {
            // What was free before a change is filled by it.
            if release == 0 {
                Kind::Zero
            } else {
                Kind::Compressible
            }
        } else if draw < compressible {
            Kind::Compressible
        } else {
            Kind::Incompressible
        }
    }

    /// Words of the disk's vocabulary, with some noise between them: LZ4 leaves four ninths of it, and finds words in
    /// the blocks before.
    fn write_text(&self, random: &mut Random, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(WORD_BYTES + 8) {
            let draw = random.next();
            // The low bits choose the word, the others are noise.
            let word = &self.words[in_memory(draw % WORDS as u64)];
            let text = piece.len().min(WORD_BYTES);
            piece[..text].copy_from_slice(&word[..text]);
            let noise = random.next().to_le_bytes();
            let rest = piece.len() - text;
            piece[text..].copy_from_slice(&noise[..rest]);
        }
    }
}

/// A number of things in memory, as an index.
fn in_memory(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// SplitMix64 (Steele et al., 2014) in counter mode: fast, and nobody attacks it.
struct Random(u64);

impl Random {
    fn new(key: &[u64]) -> Self {
        let mut random = Self(0);
        for part in key {
            random.0 ^= part.wrapping_mul(GOLDEN);
            random.0 = random.next();
        }
        random
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let mut words = bytes.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = self.next().to_le_bytes();
        let length = rest.len();
        rest.copy_from_slice(&last[..length]);
    }
}
