//! A disk read once from its start to its end: whole pieces for what is cut at fixed places, and stretches of data
//! between holes for what is cut by content.

use std::{
    fs::File,
    io::{self, Read},
};

use crate::grain::{LONGEST, PAGE};

/// What is read at a time.
pub(crate) const PIECE: usize = 4 << 20;
/// Zeros of at least this many pages, 64 KiB, are a hole. Shorter ones belong to the data around them.
const HOLE: usize = 16;

/// What takes a disk's bytes.
pub(crate) trait Taker {
    /// The next `PIECE` bytes of the disk, or its last ones. `data` knows them already.
    ///
    /// # Errors
    /// What the taker says.
    fn piece(&mut self, bytes: &[u8], place: u64, data: &Data) -> io::Result<()>;

    /// A stretch that lies at `place`, which begins and, if it is the stretch's `last` part, ends with a page of data.
    /// Returns the first place that the taker still needs. Bytes behind that place come again, with more behind them.
    ///
    /// # Errors
    /// What the taker says.
    fn stretch(&mut self, bytes: &[u8], place: u64, last: bool) -> io::Result<u64>;
}

/// Which pages of a disk aren't zeros: one bit each, 4 MiB for 128 GiB.
#[derive(Debug, Default)]
pub(crate) struct Data {
    pages: Vec<u64>,
    /// Bytes of the disk.
    pub(crate) all: u64,
    /// Bytes in pages that aren't zeros.
    pub(crate) bytes: u64,
}

impl Data {
    fn add(&mut self, page: &[u8]) -> bool {
        let is_data = page.iter().any(|&byte| byte != 0);
        let number = index(self.all / PAGE as u64);
        if number / 64 == self.pages.len() {
            self.pages.push(0);
        }
        self.all += page.len() as u64;
        if is_data {
            self.pages[number / 64] |= 1 << (number % 64);
            self.bytes += page.len() as u64;
        }
        is_data
    }

    /// Bytes of this range that lie in pages of data.
    pub(crate) fn in_range(&self, place: u64, length: u64) -> u64 {
        let (page, end) = (PAGE as u64, (place + length).min(self.all));
        let pages = place / page..end.div_ceil(page);
        let is_data = |number: &u64| self.pages[index(number / 64)] >> (number % 64) & 1 == 1;
        pages
            .filter(is_data)
            .map(|number| end.min((number + 1) * page) - place.max(number * page))
            .sum()
    }
}

/// Reads a disk to its end.
///
/// # Errors
/// The disk can't be read, or the taker says so.
pub(crate) fn read(mut disk: File, taker: &mut impl Taker) -> io::Result<Data> {
    let mut data = Data::default();
    let mut piece = vec![0; PIECE];
    let mut open = Stretch {
        bytes: Vec::new(),
        place: 0,
        zeros: 0,
    };
    loop {
        let length = fill(&mut disk, &mut piece)?;
        let (bytes, place) = (&piece[..length], data.all);
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let is_data = data.add(page);
            open.add(page, is_data, place + (number * PAGE) as u64, taker)?;
        }
        if length > 0 {
            taker.piece(bytes, place, &data)?;
        }
        if length < PIECE {
            open.end(taker)?;
            return Ok(data);
        }
        open.hand_over(taker)?;
    }
}

/// A stretch of data that hasn't met its hole.
struct Stretch {
    bytes: Vec<u8>,
    place: u64,
    /// Pages of zeros since.
    zeros: usize,
}

impl Stretch {
    fn add(
        &mut self,
        page: &[u8],
        is_data: bool,
        place: u64,
        taker: &mut impl Taker,
    ) -> io::Result<()> {
        if !is_data {
            self.zeros += 1;
            return if self.zeros == HOLE {
                self.end(taker)
            } else {
                Ok(())
            };
        }
        if self.bytes.is_empty() {
            self.place = place;
        } else {
            self.bytes.resize(self.bytes.len() + self.zeros * PAGE, 0);
        }
        self.zeros = 0;
        self.bytes.extend_from_slice(page);
        Ok(())
    }

    fn end(&mut self, taker: &mut impl Taker) -> io::Result<()> {
        if !self.bytes.is_empty() {
            taker.stretch(&self.bytes, self.place, true)?;
        }
        self.bytes.clear();
        Ok(())
    }

    /// Lets go of what the taker has cut.
    fn hand_over(&mut self, taker: &mut impl Taker) -> io::Result<()> {
        if self.bytes.len() <= LONGEST {
            return Ok(());
        }
        let needed = taker.stretch(&self.bytes, self.place, false)?;
        self.bytes.drain(..index(needed - self.place));
        self.place = needed;
        Ok(())
    }
}

fn fill(disk: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < piece.len() {
        match disk.read(&mut piece[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// What is less than a disk's size in memory.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("a number of bytes or pages in memory")
}
