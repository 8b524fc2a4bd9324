//! An index of the blocks of one image on this host: a file beside the image's journal, by which a block's print leads
//! to pages of the image's contents. It is made of the image's recipe, and the disk isn't read for that. A disk that
//! was found is read for it (`found`).
//!
//! Nothing is trusted because of it: an entry that is wrong costs a read. One that is lost, cut off, or of another
//! recipe or disk is made again. Its bytes are on the disk before it gets its name, so that a crash leaves none whose
//! length alone is right.
//!
//! The file, with all numbers in little-endian order but prints and pages, so that entries sort as bytes:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, with the version |
//! | 32 | digest of the recipe, or of how the disk is cut |
//! | 8, 8, 8, 8 | inode of the disk, its bytes, its last change in seconds and nanoseconds |
//! | 4, 4 | number of entries; *b*, the bits of a print that choose its bucket |
//! | 4 × (2^*b* + 1) | for each bucket the number of entries before it, and at last the number of all |
//! | 9 × entries | print (5), page (4); sorted |
//!
//! For 140 GB that are 13 million entries and 118 MB on the disk. In memory are the numbers of the buckets, 256 KiB at
//! most. A look-up reads one bucket: 200 entries.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use proto::{BlockPrint, Digest, Geometry, blocks::Blocks};

use crate::platform;

/// Ends the names of indexes that are being made.
const NEW: &str = "new";

const MAGIC: [u8; 8] = *b"pbblk\0\0\x01";
const HEADER_BYTES: usize = 8 + 32 + 4 * 8 + 2 * 4;
const ENTRY_BYTES: usize = 9;
/// A bucket has 64 entries or fewer on average, up to 2^16 buckets: they are kept in memory.
const BUCKET_ENTRIES: u32 = 64;
const MAX_BUCKET_BITS: u32 = 16;
/// Entries that are sorted at a time, in 9 MB. The recipe is gone through once for each of these parts.
const PART_ENTRIES: usize = 1 << 20;
/// The most entries of a bucket that are read for a look-up. Prints are spread evenly, unless somebody made them to
/// fall into one bucket.
const MAX_READ_ENTRIES: u32 = 4096;

/// What an index was made of. An index of anything else is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Key {
    /// The recipe; of a disk that was found, how it is cut.
    recipe: Digest,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Key {
    /// The key for a recipe, or how the disk is cut, and the disk as it is now.
    pub(in crate::store) fn new(recipe: Digest, disk: &File) -> io::Result<Self> {
        let found = disk.metadata()?;
        Ok(Self {
            recipe,
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.mtime(), found.mtime_nsec()),
        })
    }

    pub(in crate::store) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.recipe.as_bytes().to_vec();
        bytes.extend(self.inode.to_le_bytes());
        bytes.extend(self.bytes.to_le_bytes());
        bytes.extend(self.changed.0.to_le_bytes());
        bytes.extend(self.changed.1.to_le_bytes());
        bytes
    }
}

/// The number of the first page of each content, when contents follow each other and each begins with a page. Indexes
/// count pages so.
pub(in crate::store) fn first_pages(geometries: impl Iterator<Item = Geometry>) -> Vec<u64> {
    let mut next = 0;
    let mut first = |geometry| {
        let page = next;
        next += Blocks::pages(geometry);
        page
    };
    geometries.map(&mut first).collect()
}

/// An index that can be asked.
#[derive(Debug)]
pub(in crate::store) struct Index {
    file: File,
    bits: u32,
    /// The number of entries before each bucket, and of all.
    starts: Vec<u32>,
}

/// Hands over each block, again and again the same ones.
pub(in crate::store) type EachBlock<'a> =
    &'a mut dyn FnMut(&mut dyn FnMut(BlockPrint, u32)) -> io::Result<()>;

impl Index {
    /// Opens the index in a file. `None` if there is none, it isn't whole, or it was made of something else.
    pub(in crate::store) fn open(path: &Path, key: &Key) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut header = [0; HEADER_BYTES];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let (of, [n0, n1, n2, n3, b0, b1, b2, b3]) = header
            .split_last_chunk()
            .expect("the header ends in two numbers");
        let entries = u32::from_le_bytes([*n0, *n1, *n2, *n3]);
        let bits = u32::from_le_bytes([*b0, *b1, *b2, *b3]);
        if of[..MAGIC.len()] != MAGIC
            || of[MAGIC.len()..] != key.to_bytes()[..]
            || bits > MAX_BUCKET_BITS
            || file.metadata()?.len() != file_bytes(bits, entries)
        {
            return Ok(None);
        }
        let mut numbers = vec![0; 4 * ((1 << bits) + 1)];
        file.read_exact(&mut numbers)?;
        let (numbers, _) = numbers.as_chunks::<4>();
        let starts: Vec<u32> = numbers.iter().map(|n| u32::from_le_bytes(*n)).collect();
        let sound = starts.is_sorted() && starts.last() == Some(&entries);
        Ok(sound.then_some(Self { file, bits, starts }))
    }

    /// The most bytes that [`make`](Self::make) writes for so many blocks.
    pub(in crate::store) const fn max_bytes(blocks: u64) -> u64 {
        let buckets = (1 << MAX_BUCKET_BITS) + 1;
        HEADER_BYTES as u64 + 4 * buckets + ENTRY_BYTES as u64 * blocks
    }

    /// Removes what crashes left of indexes that were being made in this directory. The caller makes none there.
    pub(in crate::store) fn sweep(directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == NEW) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes the index of these blocks in a file, and opens it. Its memory doesn't grow with the number of blocks.
    pub(in crate::store) fn make(path: &Path, key: &Key, each: EachBlock<'_>) -> io::Result<Self> {
        // stages that begin at the same time may make the same index
        static SEQUENCE: AtomicU64 = AtomicU64::new(0);
        let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let new = path.with_extension(format!("{number}.{NEW}"));
        // an index can be made again, so nothing is synced
        let written = write(&new, key, each).and_then(|()| fs::rename(&new, path));
        if let Err(error) = written {
            // the file is of no use; what can't be removed is written over by the next try
            drop(fs::remove_file(&new));
            return Err(error);
        }
        let made = Self::open(path, key)?;
        made.ok_or_else(|| io::Error::other("an index changed while it was made"))
    }

    /// The first pages of blocks with this print, `most` at most.
    ///
    /// # Errors
    /// When the file can't be read.
    pub(in crate::store) fn find(&self, print: BlockPrint, most: usize) -> io::Result<Vec<u32>> {
        let bucket = usize::try_from(print.number() >> (BlockPrint::BITS - self.bits));
        let bucket = bucket.map_err(io::Error::other)?;
        let (mut from, mut to) = (self.starts[bucket], self.starts[bucket + 1]);
        let print = print.to_bytes();
        while to - from > MAX_READ_ENTRIES {
            let middle = from + (to - from) / 2;
            let mut entry = [0; ENTRY_BYTES];
            self.file.read_exact_at(&mut entry, self.place(middle))?;
            match entry[..BlockPrint::BYTES] < print[..] {
                true => from = middle,
                false => to = middle + 1,
            }
        }
        // the first of equal entries lies before `to`, and the next ones may lie behind
        let behind = to.saturating_add(u32::try_from(most).unwrap_or(u32::MAX));
        to = behind.min(self.starts[bucket + 1]);
        let mut entries = vec![0; ENTRY_BYTES * (to - from) as usize];
        self.file.read_exact_at(&mut entries, self.place(from))?;
        let (entries, _) = entries.as_chunks::<ENTRY_BYTES>();
        let first = entries.partition_point(|entry| entry[..BlockPrint::BYTES] < print[..]);
        let equal = entries[first..]
            .iter()
            .take_while(|entry| entry[..BlockPrint::BYTES] == print[..]);
        let page = |[.., a, b, c, d]: &[u8; ENTRY_BYTES]| u32::from_be_bytes([*a, *b, *c, *d]);
        Ok(equal.take(most).map(page).collect())
    }

    fn place(&self, entry: u32) -> u64 {
        file_bytes(self.bits, entry)
    }
}

/// The bytes of a file with so many entries: also the place of the entry behind them.
fn file_bytes(bits: u32, entries: u32) -> u64 {
    HEADER_BYTES as u64 + 4 * ((1 << bits) + 1) + ENTRY_BYTES as u64 * u64::from(entries)
}

fn write(path: &Path, key: &Key, each: EachBlock<'_>) -> io::Result<()> {
    let finest = 1_usize << MAX_BUCKET_BITS;
    let of = |print: BlockPrint| {
        usize::try_from(print.number() >> (BlockPrint::BITS - MAX_BUCKET_BITS)).unwrap_or(0)
    };
    // how many entries begin with each 16 bits
    let mut counts = vec![0_usize; finest];
    each(&mut |print, _| counts[of(print)] += 1)?;
    for count in &mut counts {
        // more aren't found either
        *count = (*count).min(PART_ENTRIES);
    }
    let entries: usize = counts.iter().sum();
    let entries = u32::try_from(entries).map_err(io::Error::other)?;
    let wanted = (entries / BUCKET_ENTRIES).max(1).ilog2();
    let bits = wanted.min(MAX_BUCKET_BITS);

    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&MAGIC)?;
    file.write_all(&key.to_bytes())?;
    file.write_all(&entries.to_le_bytes())?;
    file.write_all(&bits.to_le_bytes())?;
    let mut before = 0_u32;
    for bucket in counts.chunks(finest >> bits) {
        file.write_all(&before.to_le_bytes())?;
        let of_bucket: usize = bucket.iter().sum();
        before += u32::try_from(of_bucket).map_err(io::Error::other)?;
    }
    file.write_all(&before.to_le_bytes())?;

    let mut start = 0;
    let mut part: Vec<[u8; ENTRY_BYTES]> = Vec::new();
    while start < finest {
        // at least one, and as many as fit
        let mut sum = 0;
        let fits = counts[start..].iter().take_while(|count| {
            sum += **count;
            sum <= PART_ENTRIES
        });
        let end = start + fits.count();
        let mut left = counts[start..end].to_vec();
        part.clear();
        each(&mut |print, page| {
            let at = of(print);
            if (start..end).contains(&at) && left[at - start] > 0 {
                left[at - start] -= 1;
                let [a, b, c, d, e] = print.to_bytes();
                let [f, g, h, i] = page.to_be_bytes();
                part.push([a, b, c, d, e, f, g, h, i]);
            }
        })?;
        part.sort_unstable();
        file.write_all(part.as_flattened())?;
        start = end;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    platform::sync_data(&file)
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, path::PathBuf};

    use super::*;

    struct World {
        home: tempfile::TempDir,
        disk: File,
    }

    impl World {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            let disk = File::create(home.path().join("disk")).unwrap();
            Self { home, disk }
        }

        fn path(&self) -> PathBuf {
            self.home.path().join("index")
        }

        fn key(&self) -> Key {
            Key::new(Digest::of(b"recipe"), &self.disk).unwrap()
        }

        fn make(&self, blocks: u32) -> Index {
            let mut each = |take: &mut dyn FnMut(BlockPrint, u32)| {
                for page in 0..blocks {
                    take(print(page), 3 * page);
                }
                Ok(())
            };
            Index::make(&self.path(), &self.key(), &mut each).unwrap()
        }

        fn reopen(&self) -> Option<Index> {
            Index::open(&self.path(), &self.key()).unwrap()
        }
    }

    fn print(number: u32) -> BlockPrint {
        BlockPrint::of(&number.to_le_bytes())
    }

    #[test]
    fn every_block_is_found_and_no_other() {
        for blocks in [0, 1, 63, 64, 65, 5_000, 70_000] {
            let world = World::new();
            let index = world.make(blocks);
            for at in (0..blocks).step_by(7).chain(blocks.checked_sub(1)) {
                assert_eq!(index.find(print(at), 4).unwrap(), [3 * at], "{blocks}");
            }
            for other in blocks..blocks + 1_000 {
                assert_eq!(index.find(print(other), 4).unwrap(), [0_u32; 0]);
            }
        }
    }

    #[test]
    fn prints_that_all_fall_into_one_bucket_are_found_all_the_same() {
        let world = World::new();
        // more than are read at once, and one print a thousand times
        let of = |number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            BlockPrint::from_bytes([7, 7, a, b, c])
        };
        let mut each = |take: &mut dyn FnMut(BlockPrint, u32)| {
            for number in 0..20_000 {
                take(of(number), number);
            }
            for page in 0..6_000 {
                take(of(10_000), 30_000 + page);
            }
            Ok(())
        };
        let index = Index::make(&world.path(), &world.key(), &mut each).unwrap();
        for number in (0..20_000).filter(|number| *number != 10_000) {
            assert_eq!(index.find(of(number), 4).unwrap(), [number]);
        }
        let many = index.find(of(10_000), 4).unwrap();
        assert_eq!(many, [10_000, 30_000, 30_001, 30_002]);
        assert_eq!(index.find(of(20_001), 4).unwrap(), [0_u32; 0]);
    }

    #[test]
    fn an_index_that_is_cut_off_lost_or_of_something_else_does_not_open() {
        let world = World::new();
        assert!(world.reopen().is_none());
        drop(world.make(5_000));
        assert!(world.reopen().is_some());
        let whole = fs::read(world.path()).unwrap();
        for end in [0, 10, HEADER_BYTES, HEADER_BYTES + 7, whole.len() - 1] {
            fs::write(world.path(), &whole[..end]).unwrap();
            assert!(world.reopen().is_none(), "{end}");
        }
        // each number of the header, and the order of the buckets
        for at in [0, 7, 8, 40, 48, 56, 64, 72, 76, HEADER_BYTES + 4 * 5 + 3] {
            let mut other = whole.clone();
            other[at] ^= 0x80;
            fs::write(world.path(), &other).unwrap();
            assert!(world.reopen().is_none(), "{at}");
        }
        fs::write(world.path(), &whole).unwrap();
        assert!(world.reopen().is_some());
        let other = Key {
            recipe: Digest::of(b"another"),
            ..world.key()
        };
        assert!(Index::open(&world.path(), &other).unwrap().is_none());
        // the disk is written to, or longer
        world.disk.write_all_at(b"changed", 0).unwrap();
        let later = OpenOptions::new()
            .write(true)
            .open(world.home.path().join("disk"));
        let later = later.unwrap();
        later
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert!(world.reopen().is_none());
    }

    #[test]
    fn two_that_make_one_index_spoil_nothing() {
        let world = World::new();
        let mut begun = false;
        let mut rounds = 0;
        let mut each = |take: &mut dyn FnMut(BlockPrint, u32)| {
            rounds += 1;
            // the first one is writing already
            if rounds == 2 {
                drop(world.make(5_000));
                begun = true;
            }
            for page in 0..5_000 {
                take(print(page), 3 * page);
            }
            Ok(())
        };
        let index = Index::make(&world.path(), &world.key(), &mut each).unwrap();
        assert!(begun);
        for index in [index, world.reopen().unwrap()] {
            for at in 0..5_000 {
                assert_eq!(index.find(print(at), 4).unwrap(), [3 * at]);
            }
        }
        // neither leaves anything beside it
        let names = fs::read_dir(world.home.path()).unwrap();
        assert_eq!(names.count(), 2);
        fs::write(world.home.path().join("index.7.new"), b"half").unwrap();
        Index::sweep(world.home.path()).unwrap();
        assert!(world.reopen().is_some());
        assert_eq!(fs::read_dir(world.home.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_index_has_no_more_bytes_than_it_is_admitted_with() {
        for blocks in [0, 1, 64, 5_000, 70_000] {
            let world = World::new();
            drop(world.make(blocks));
            let bytes = fs::metadata(world.path()).unwrap().len();
            assert!(bytes <= Index::max_bytes(u64::from(blocks)), "{blocks}");
        }
    }

    /// `PARBAKE_INDEX_BLOCKS=13000000 cargo test --release -p agent --lib blocks::index -- --nocapture` prints what an
    /// index of 140 GB costs.
    #[test]
    fn memory_does_not_grow_with_the_blocks() {
        let blocks = std::env::var("PARBAKE_INDEX_BLOCKS");
        let blocks = blocks.map_or(300_000, |blocks| blocks.parse().unwrap());
        let world = World::new();
        let started = std::time::Instant::now();
        let index = world.make(blocks);
        let made = started.elapsed();
        let bytes = fs::metadata(world.path()).unwrap().len();
        assert!(index.starts.len() <= (1 << MAX_BUCKET_BITS) + 1);
        let started = std::time::Instant::now();
        let looks: u32 = 100_000;
        for at in 0..looks {
            let at = u32::try_from(u64::from(at) * u64::from(blocks) / u64::from(looks)).unwrap();
            assert!(index.find(print(at), 4).unwrap().contains(&(3 * at)));
        }
        let found = started.elapsed() / looks;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let most = status.lines().find(|line| line.starts_with("VmHWM"));
        println!("{blocks} blocks: {bytes} bytes, made in {made:?}, {found:?} a look-up, {most:?}");
    }
}
