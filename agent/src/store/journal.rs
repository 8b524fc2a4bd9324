//! The journal of one image or one blob: which chunks of it are on disk, and by which links.
//!
//! All numbers are little-endian. A header is followed by batches. Each batch is appended and synced in one go *after*
//! the sync of the data that it vouches for.
//!
//! | part | bytes |
//! |---|---|
//! | header | `parbake journal` + version byte (16), manifest digest (32) |
//! | batch | payload length (4), check (16), payload |
//!
//! The check is the first half of a BLAKE3 hash over the check of the batch before (for the first batch, the hash of
//! the header), the length and the payload. So a batch is valid only behind the very batches that it was written
//! behind. A journal is believed up to the first batch that isn't what was written; the rest is cut off. That loses at
//! most the chunks of the last batches, which are fetched again. It never makes a chunk held whose record is damaged.
//!
//! A payload is a sequence of records, each a tag byte and its fields ([`Record`]). Each content (tag 1), each host
//! (tag 2) and each run under which links were signed (tag 6) is written once. Later records use its number in the
//! order of writing. A chunk's record has 182 bytes, or 114 if nobody signed its link. The journal of a 140 GB disk has
//! 25 MB, and is read in well under a second.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use proto::{
    ChunkIndex, Digest, Fingerprint, HostId, HostKey, Link, Resume, State, Statement,
    statement::Run,
};

use super::sync::sync_data;
use crate::platform;

const MAGIC: &[u8; 16] = b"parbake journal\x01";
const HEADER_BYTES: usize = 48;
const FRAME_BYTES: usize = 20;

/// Bytes at which a batch is cut. A reader rejects a longer payload.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The largest journal that is read, in bytes: four records for every chunk of the largest disk. It bounds what a
/// damaged volume can make us allocate.
const MAX_JOURNAL_BYTES: u64 = 1 << 30;

type Check = [u8; 16];

/// One fact about an image or a blob, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A chunk is on disk and its bytes fit the link. Tag 3, or tag 7 with a statement of the host that answers for the
    /// link.
    Held {
        content: Digest,
        chunk: ChunkIndex,
        link: Link,
        /// All its bytes are zero.
        zero: bool,
        sender: HostKey,
        maker: HostId,
        statement: Option<Box<Statement>>,
    },
    /// A chunk isn't held any more. Tag 4.
    Dropped { content: Digest, chunk: ChunkIndex },
    /// A blob was decoded onto the disk. Tag 5.
    Decoded { content: Digest },
}

/// The records of a journal, and the journal opened for more.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) journal: Journal,
    pub(crate) records: Vec<Record>,
    /// What was cut off, and why. `None` if the journal was whole.
    pub(crate) damage: Option<String>,
}

/// An open journal, positioned after its last good batch.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    end: u64,
    check: Check,
    names: Names,
}

/// Everything that was written once, with its number.
#[derive(Clone, Debug, Default)]
struct Names {
    contents: BTreeMap<Digest, u32>,
    hosts: BTreeMap<HostId, u32>,
    runs: BTreeMap<(Digest, Arc<Run>), u32>,
}

impl Journal {
    /// Starts an empty journal. Doesn't sync its directory entry: a journal that a crash loses was still empty.
    pub(crate) fn create(path: &Path, image: &Digest) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let header = header(image);
        file.write_all_at(&header, 0)?;
        platform::sync_data(&file)?;
        Ok(Self {
            file,
            end: HEADER_BYTES as u64,
            check: first_check(&header),
            names: Names::default(),
        })
    }

    /// Opens a journal, cuts off what isn't valid, and returns its records. `None` if the file is missing, too large,
    /// or not this image's journal.
    pub(crate) fn open(path: &Path, image: &Digest) -> io::Result<Option<Opened>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let Some(bytes) = read_all(&file)? else {
            return Ok(None);
        };
        let Some(replay) = replay(&bytes, image) else {
            return Ok(None);
        };
        let cut = bytes.len() as u64 - replay.end;
        if cut > 0 {
            // A crash here leaves the invalid tail, which the next opening cuts off.
            file.set_len(replay.end)?;
            platform::sync_full(&file)?;
        }
        let journal = Self {
            file,
            end: replay.end,
            check: replay.check,
            names: Names {
                contents: number(&replay.contents),
                hosts: number(&replay.hosts),
                runs: number(&replay.runs),
            },
        };
        let damage = (cut > 0).then(|| {
            let why = if replay.newer {
                "are of a newer version"
            } else {
                "aren't what was written"
            };
            format!("its last {cut} bytes, from byte {} on, {why}", replay.end)
        });
        Ok(Some(Opened {
            journal,
            records: replay.records,
            damage,
        }))
    }

    /// The records of a journal, without changing it. For readers beside a running agent.
    pub(super) fn read(path: &Path, image: &Digest) -> io::Result<Vec<Record>> {
        let bytes = read_all(&File::open(path)?)?.unwrap_or_default();
        Ok(replay(&bytes, image).map_or_else(Vec::new, |replay| replay.records))
    }

    /// Appends these records and syncs. The caller has synced the data that they vouch for.
    ///
    /// After an error the journal counts as unchanged: bytes that reached the file lie past its end, and the next
    /// append overwrites them.
    pub(crate) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let (mut end, mut check) = (self.end, self.check);
        let mut names = self.names.clone();
        let mut records = records.iter().peekable();
        while records.peek().is_some() {
            let mut batch = vec![0; FRAME_BYTES];
            // A record with everything that it names is under 3 KiB: a run carries two tickets and a link.
            while batch.len() < MAX_BATCH_BYTES - 4096
                && let Some(record) = records.next()
            {
                encode(record, &mut names, &mut batch);
            }
            let length = u32::try_from(batch.len() - FRAME_BYTES)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?
                .to_le_bytes();
            check = next_check(&check, length, &batch[FRAME_BYTES..]);
            batch[..4].copy_from_slice(&length);
            batch[4..FRAME_BYTES].copy_from_slice(&check);
            self.file.write_all_at(&batch, end)?;
            end += batch.len() as u64;
        }
        sync_data(&self.file)?;
        (self.end, self.check, self.names) = (end, check, names);
        Ok(())
    }
}

fn number<T: Clone + Ord>(names: &[T]) -> BTreeMap<T, u32> {
    names.iter().cloned().zip(0..).collect()
}

fn read_all(file: &File) -> io::Result<Option<Vec<u8>>> {
    let length = file.metadata()?.len();
    if length > MAX_JOURNAL_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

fn header(image: &Digest) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..16].copy_from_slice(MAGIC);
    header[16..].copy_from_slice(image.as_bytes());
    header
}

fn first_check(header: &[u8]) -> Check {
    half(&blake3::hash(header))
}

fn next_check(before: &Check, length: [u8; 4], payload: &[u8]) -> Check {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(&length);
    hasher.update(payload);
    half(&hasher.finalize())
}

fn half(hash: &blake3::Hash) -> Check {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

/// The valid part of a journal.
struct Replay {
    records: Vec<Record>,
    end: u64,
    check: Check,
    contents: Vec<Digest>,
    hosts: Vec<HostId>,
    runs: Vec<(Digest, Arc<Run>)>,
    /// The batch behind it is intact, but doesn't parse.
    newer: bool,
}

fn replay(bytes: &[u8], image: &Digest) -> Option<Replay> {
    let header = header(image);
    let mut rest = bytes.strip_prefix(header.as_slice())?;
    let mut replay = Replay {
        records: Vec::new(),
        end: HEADER_BYTES as u64,
        check: first_check(&header),
        contents: Vec::new(),
        hosts: Vec::new(),
        runs: Vec::new(),
        newer: false,
    };
    while let Some((length, after)) = rest.split_first_chunk::<4>()
        && let Some((check, after)) = after.split_first_chunk::<16>()
        && let size = u32::from_le_bytes(*length) as usize
        && size <= MAX_BATCH_BYTES
        && let Some((payload, after)) = after.split_at_checked(size)
        && *check == next_check(&replay.check, *length, payload)
    {
        let known = (
            replay.records.len(),
            replay.contents.len(),
            replay.hosts.len(),
            replay.runs.len(),
        );
        if replay.take(payload).is_none() {
            // A newer version wrote this intact batch that doesn't parse. Neither the batch nor anything behind it is
            // used.
            replay.records.truncate(known.0);
            replay.contents.truncate(known.1);
            replay.hosts.truncate(known.2);
            replay.runs.truncate(known.3);
            replay.newer = true;
            break;
        }
        replay.check = *check;
        replay.end += (FRAME_BYTES + size) as u64;
        rest = after;
    }
    Some(replay)
}

impl Replay {
    fn take(&mut self, payload: &[u8]) -> Option<()> {
        let mut fields = Fields(payload);
        while !fields.0.is_empty() {
            match fields.byte()? {
                tag @ (3 | 7) => self.held(&mut fields, tag == 7)?,
                1 => self
                    .contents
                    .push(Digest::from_bytes(*fields.array::<32>()?)),
                2 => {
                    let length = usize::from(fields.byte()?);
                    let name = std::str::from_utf8(fields.slice(length)?).ok()?;
                    self.hosts.push(name.parse().ok()?);
                }
                4 => {
                    let content = *self.contents.get(fields.word()? as usize)?;
                    let chunk = ChunkIndex(fields.word()?);
                    self.records.push(Record::Dropped { content, chunk });
                }
                5 => {
                    let content = *self.contents.get(fields.word()? as usize)?;
                    self.records.push(Record::Decoded { content });
                }
                6 => {
                    let content = *self.contents.get(fields.word()? as usize)?;
                    let length = fields.word()? as usize;
                    let run = Run::from_bytes(content, fields.slice(length)?).ok()?;
                    self.runs.push((content, Arc::new(run)));
                }
                _ => return None,
            }
        }
        Some(())
    }

    fn held(&mut self, fields: &mut Fields<'_>, signed: bool) -> Option<()> {
        let content = *self.contents.get(fields.word()? as usize)?;
        let chunk = ChunkIndex(fields.word()?);
        let maker = self.hosts.get(fields.word()? as usize)?.clone();
        let sender = HostKey(fields.long()?);
        let flags = fields.byte()?;
        let (blob_offset, skip_bytes) = (fields.long()?, fields.word()?);
        let link = Link {
            resume: (flags & RESUME != 0).then_some(Resume {
                blob_offset,
                skip_bytes,
            }),
            before: State::from_bytes(fields.array::<32>()?),
            after: State::from_bytes(fields.array::<32>()?),
            fingerprint: Fingerprint(*fields.array::<16>()?),
        };
        let statement = match signed {
            true => {
                let (of, run) = self.runs.get(fields.word()? as usize)?;
                let signature = *fields.array::<64>()?;
                (*of == content).then(|| {
                    Box::new(Statement {
                        run: run.clone(),
                        signature,
                    })
                })
            }
            false => None,
        };
        self.records.push(Record::Held {
            content,
            chunk,
            link,
            zero: flags & ZERO != 0,
            sender,
            maker,
            statement,
        });
        Some(())
    }
}

const ZERO: u8 = 1;
const RESUME: u8 = 2;

fn encode(record: &Record, names: &mut Names, out: &mut Vec<u8>) {
    let (Record::Held { content, .. }
    | Record::Dropped { content, .. }
    | Record::Decoded { content }) = record;
    let named = content;
    let next = next_number(names.contents.len());
    let content = *names.contents.entry(*content).or_insert_with(|| {
        out.push(1);
        out.extend_from_slice(content.as_bytes());
        next
    });
    match record {
        Record::Held {
            chunk,
            link,
            zero,
            sender,
            maker,
            statement,
            ..
        } => {
            let next = next_number(names.hosts.len());
            let maker = *names.hosts.entry(maker.clone()).or_insert_with(|| {
                let name = maker.as_str().as_bytes();
                out.push(2);
                out.push(u8::try_from(name.len()).expect("a host id has at most 253 bytes"));
                out.extend_from_slice(name);
                next
            });
            let signed = statement.as_ref().map(|statement| {
                let next = next_number(names.runs.len());
                let run = (*named, statement.run.clone());
                let number = *names.runs.entry(run).or_insert_with(|| {
                    let bytes = statement.run.to_bytes();
                    out.push(6);
                    out.extend_from_slice(&content.to_le_bytes());
                    out.extend_from_slice(&next_number(bytes.len()).to_le_bytes());
                    out.extend_from_slice(&bytes);
                    next
                });
                (number, statement.signature)
            });
            out.push(if signed.is_some() { 7 } else { 3 });
            out.extend_from_slice(&content.to_le_bytes());
            out.extend_from_slice(&chunk.0.to_le_bytes());
            out.extend_from_slice(&maker.to_le_bytes());
            out.extend_from_slice(&sender.0.to_le_bytes());
            let resume = link.resume.map_or((0, 0, 0), |resume| {
                (RESUME, resume.blob_offset, resume.skip_bytes)
            });
            out.push((u8::from(*zero) * ZERO) | resume.0);
            out.extend_from_slice(&resume.1.to_le_bytes());
            out.extend_from_slice(&resume.2.to_le_bytes());
            out.extend_from_slice(&link.before.to_bytes());
            out.extend_from_slice(&link.after.to_bytes());
            out.extend_from_slice(&link.fingerprint.0);
            if let Some((run, signature)) = signed {
                out.extend_from_slice(&run.to_le_bytes());
                out.extend_from_slice(&signature);
            }
        }
        Record::Dropped { chunk, .. } => {
            out.push(4);
            out.extend_from_slice(&content.to_le_bytes());
            out.extend_from_slice(&chunk.0.to_le_bytes());
        }
        Record::Decoded { .. } => {
            out.push(5);
            out.extend_from_slice(&content.to_le_bytes());
        }
    }
}

fn next_number(count: usize) -> u32 {
    u32::try_from(count).expect("fewer than the chunks of an image, which are 32-bit")
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(field)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| *byte)
    }

    fn word(&mut self) -> Option<u32> {
        self.array().copied().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.array().copied().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(content: u8, chunk: u32, seed: u8) -> Record {
        Record::Held {
            content: Digest::of(&[content]),
            chunk: ChunkIndex(chunk),
            link: Link {
                before: State::from_bytes(&[seed; 32]),
                after: State::from_bytes(&[seed ^ 1; 32]),
                fingerprint: Fingerprint([seed; 16]),
                resume: seed.is_multiple_of(2).then_some(Resume {
                    blob_offset: u64::from(seed) << 33,
                    skip_bytes: 77,
                }),
            },
            zero: seed.is_multiple_of(3),
            sender: HostKey(u64::from(seed)),
            maker: format!("mac-{}", seed % 4).parse().unwrap(),
            statement: (seed % 5 < 2)
                .then(|| Box::new(statement(Digest::of(&[content]), seed % 4))),
        }
    }

    fn statement(content: Digest, maker: u8) -> Statement {
        let host = format!("mac-{maker}").parse().unwrap();
        let sign = |bytes: &[u8]| Ok::<_, ()>(bytes[..3].to_vec());
        let ticket = proto::Ticket::issue(Some(content), &host, [maker; 32], 7, 9, sign);
        Statement {
            run: Arc::new(Run::made(
                Arc::new(ticket.unwrap()),
                1 + u64::from(maker),
                None,
            )),
            signature: [maker ^ 5; 64],
        }
    }

    fn records() -> Vec<Record> {
        let mut records: Vec<_> = (0..40u8)
            .map(|at| held(at % 3, u32::from(at), at))
            .collect();
        records.insert(
            9,
            Record::Dropped {
                content: Digest::of(&[0]),
                chunk: ChunkIndex(3),
            },
        );
        records.push(Record::Decoded {
            content: Digest::of(&[9]),
        });
        records
    }

    /// A journal's bytes; where each batch ends, and how many records stand until there.
    type Written = (Vec<u8>, Vec<(u64, usize)>);

    fn written(path: &Path, image: &Digest) -> Written {
        let mut journal = Journal::create(path, image).unwrap();
        let records = records();
        let mut ends = vec![(journal.end, 0)];
        let mut count = 0;
        for batch in records.chunks(7) {
            journal.append(batch).unwrap();
            count += batch.len();
            ends.push((journal.end, count));
        }
        (std::fs::read(path).unwrap(), ends)
    }

    #[test]
    fn a_journal_says_what_was_appended_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("journal"), Digest::of(b"image"));
        let mut journal = Journal::create(&path, &image).unwrap();
        journal.append(&records()[..5]).unwrap();
        drop(journal);
        let opened = Journal::open(&path, &image).unwrap().unwrap();
        assert_eq!(opened.records, records()[..5]);
        assert_eq!(opened.damage, None);
        let mut journal = opened.journal;
        journal.append(&records()[5..]).unwrap();
        journal.append(&[]).unwrap();
        drop(journal);
        let opened = Journal::open(&path, &image).unwrap().unwrap();
        assert_eq!(opened.records, records());
        assert_eq!(Journal::read(&path, &image).unwrap(), records());
        assert!(
            Journal::open(&path, &Digest::of(b"other"))
                .unwrap()
                .is_none()
        );
        assert!(
            Journal::open(&dir.path().join("none"), &image)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_journal_cut_at_any_byte_says_exactly_its_whole_batches() {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("journal"), Digest::of(b"image"));
        let (bytes, ends) = written(&path, &image);
        for cut in 0..=bytes.len() {
            match replay(&bytes[..cut], &image) {
                None => assert!(cut < HEADER_BYTES),
                Some(replay) => {
                    let (end, count) = *ends.iter().rfind(|(end, _)| *end <= cut as u64).unwrap();
                    assert_eq!((replay.end, replay.records.len()), (end, count), "{cut}");
                    assert_eq!(replay.records, records()[..count]);
                }
            }
        }
    }

    #[test]
    fn a_torn_tail_is_cut_off_and_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (path, image) = (dir.path().join("journal"), Digest::of(b"image"));
        let (bytes, ends) = written(&path, &image);
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let opened = Journal::open(&path, &image).unwrap().unwrap();
        let count = ends[ends.len() - 2].1;
        assert_eq!(opened.records, records()[..count]);
        let damage = opened.damage.unwrap();
        let end = ends[ends.len() - 2].0;
        assert!(damage.contains(&format!("from byte {end} on")), "{damage}");
        let mut journal = opened.journal;
        journal.append(&records()[count..]).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_flipped_byte_cuts_the_journal_before_its_batch(at: prop::sample::Index, flip in 1u8..=255) {
            static WRITTEN: std::sync::OnceLock<Written> = std::sync::OnceLock::new();
            let image = Digest::of(b"image");
            let (mut bytes, ends) = WRITTEN.get_or_init(|| {
                let dir = tempfile::tempdir().unwrap();
                written(&dir.path().join("journal"), &image)
            }).clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            match replay(&bytes, &image) {
                None => prop_assert!(at < HEADER_BYTES),
                Some(replay) => {
                    let (end, count) = *ends.iter().rfind(|(end, _)| *end <= at as u64).unwrap();
                    prop_assert_eq!((replay.end, replay.records.len()), (end, count));
                }
            }
        }

        #[test]
        fn any_bytes_are_a_journal_or_not(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let image = Digest::of(b"image");
            let mut journal = header(&image).to_vec();
            let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
            journal.extend_from_slice(&length);
            journal.extend_from_slice(&next_check(&first_check(&header(&image)), length, &bytes));
            journal.extend_from_slice(&bytes);
            prop_assert!(replay(&journal, &image).is_some());
            replay(&bytes, &image);
        }
    }
}
