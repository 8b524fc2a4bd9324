//! Records sorted on disk, with little memory: sorted runs in unnamed files, and one merge of them.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
};

/// Bytes of a record: two keys of 8 bytes and a length, all big-endian.
pub(crate) const RECORD: usize = 20;
/// Records that are sorted in memory at a time: 1.5 MB.
pub(crate) const RUN: usize = 1 << 16;
/// What the merge reads of a run at a time.
const READ: usize = 32 << 10;

/// One block: its fingerprint or place first, then the other, then its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Record {
    pub(crate) key: u64,
    pub(crate) second: u64,
    pub(crate) length: u32,
}

impl Record {
    fn bytes(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.key.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.second.to_be_bytes());
        bytes[16..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    fn of(bytes: &[u8; RECORD]) -> Self {
        let number = |from: usize| {
            u64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"))
        };
        let length = u32::from_be_bytes(bytes[16..].try_into().expect("four bytes"));
        Self {
            key: number(0),
            second: number(8),
            length,
        }
    }
}

/// Takes records in any order.
pub(crate) struct Sorter {
    run: Vec<Record>,
    capacity: usize,
    /// The runs stand one after the other in the file.
    file: File,
    /// Records in each run.
    runs: Vec<usize>,
}

impl Sorter {
    /// Holds so many records in memory.
    ///
    /// # Errors
    /// No unnamed file can be made where `TMPDIR` says.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            run: Vec::new(),
            capacity,
            file: tempfile::tempfile()?,
            runs: Vec::new(),
        })
    }

    /// Takes one record.
    ///
    /// # Errors
    /// The unnamed file can't be written.
    pub(crate) fn push(&mut self, record: Record) -> io::Result<()> {
        self.run.push(record);
        if self.run.len() == self.capacity {
            self.spill()
        } else {
            Ok(())
        }
    }

    fn spill(&mut self) -> io::Result<()> {
        self.run.sort_unstable();
        let mut file = BufWriter::new(&self.file);
        file.seek(SeekFrom::End(0))?;
        for record in &self.run {
            file.write_all(&record.bytes())?;
        }
        file.flush()?;
        self.runs.push(self.run.len());
        self.run.clear();
        Ok(())
    }

    /// All records, in order. More may follow, and come next time.
    ///
    /// # Errors
    /// The unnamed file can't be written.
    pub(crate) fn sorted(&mut self) -> io::Result<Sorted<'_>> {
        if !self.run.is_empty() {
            self.spill()?;
        }
        self.run = Vec::new();
        let mut start = 0;
        let runs = self.runs.iter().map(|&left| {
            let run = Run {
                start,
                left,
                buffer: Vec::new(),
                at: 0,
            };
            start += (left * RECORD) as u64;
            run
        });
        let mut sorted = Sorted {
            runs: runs.collect(),
            file: &self.file,
            next: BinaryHeap::new(),
        };
        for run in 0..sorted.runs.len() {
            sorted.refill(run)?;
        }
        Ok(sorted)
    }
}

/// Sorted records, read once.
pub(crate) struct Sorted<'a> {
    file: &'a File,
    runs: Vec<Run>,
    next: BinaryHeap<Reverse<(Record, usize)>>,
}

struct Run {
    /// Where the run's unread part starts in the file.
    start: u64,
    /// Unread records.
    left: usize,
    buffer: Vec<u8>,
    at: usize,
}

impl Sorted<'_> {
    /// The next record.
    pub(crate) fn peek(&self) -> Option<Record> {
        self.next.peek().map(|Reverse((record, _))| *record)
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// The unnamed file can't be read.
    pub(crate) fn pop(&mut self) -> io::Result<Option<Record>> {
        let Some(Reverse((record, run))) = self.next.pop() else {
            return Ok(None);
        };
        self.refill(run)?;
        Ok(Some(record))
    }

    fn refill(&mut self, number: usize) -> io::Result<()> {
        let run = &mut self.runs[number];
        if run.at == run.buffer.len() {
            let records = run.left.min(READ / RECORD);
            if records == 0 {
                return Ok(());
            }
            run.buffer.resize(records * RECORD, 0);
            self.file.seek(SeekFrom::Start(run.start))?;
            self.file.read_exact(&mut run.buffer)?;
            run.start += run.buffer.len() as u64;
            run.left -= records;
            run.at = 0;
        }
        let bytes = run.buffer[run.at..]
            .first_chunk::<RECORD>()
            .expect("a buffer holds whole records");
        run.at += RECORD;
        let record = Record::of(bytes);
        self.next.push(Reverse((record, number)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_runs_come_out_as_one_sorted_list() {
        for (records, capacity) in [
            (0, 4),
            (3, 4),
            (4, 4),
            (5, 4),
            (20_000, 5_000),
            (20_000, 77),
        ] {
            let mut sorter = Sorter::new(capacity).unwrap();
            let mut expected = Vec::new();
            for number in 0..records {
                let key = u64::from_be_bytes(crate::made_up::random(number, 8).try_into().unwrap())
                    % 1_000;
                let record = Record {
                    key,
                    second: number,
                    length: 9,
                };
                expected.push(record);
                sorter.push(record).unwrap();
            }
            expected.sort_unstable();
            let mut sorted = sorter.sorted().unwrap();
            let mut all = Vec::new();
            while let Some(record) = sorted.pop().unwrap() {
                all.push(record);
            }
            assert_eq!(all, expected);
        }
    }
}
