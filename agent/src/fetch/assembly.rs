//! Makes chunks of a blob's bytes: they are decoded, cut, linked, signed and stored. It also decides where an attempt
//! starts: at the blob's beginning, or behind the chunks that are held.

use std::sync::Arc;

use apple_lz4::{Position, WINDOW_BYTES};
use bytes::Bytes;
use proto::{
    ChunkIndex, Digest, HostId, Link, Resume, Signed, Source, State, Statement, image::ContentKind,
    statement::Run,
};

use super::job::{Broke, Job, News};
use crate::{
    notary::Notary,
    shelf::{self, Arrival, Shelf, Unwritable, retract},
    store::WriteError,
    transfer::{self, Packed},
};

/// The place where an attempt starts.
struct Start {
    chunk: u32,
    state: State,
    blob_offset: u64,
    decoder: Decoder,
    /// Raw bytes that have to come before the chunk: the end of the chunk before, which is held.
    known: Vec<u8>,
    /// The link that the attempt goes on from, if a host answers for that link.
    base: Option<Signed>,
}

/// Turns blob bytes into raw bytes.
enum Decoder {
    Lz4(Box<apple_lz4::Decoder>),
    Plain,
}

/// Raw bytes on their way into chunks.
pub(super) struct Assembly {
    next: u32,
    state: State,
    decoder: Decoder,
    /// Raw bytes that have to come before the first chunk. They are compared and left out.
    known: Vec<u8>,
    buffer: Vec<u8>,
    /// Raw and blob offsets of the blocks that start in the buffer, in order.
    marks: Vec<Position>,
    /// The raw offset of the next byte.
    raw_at: u64,
    /// Blob bytes that came and weren't counted with a chunk yet.
    unreported: u64,
    /// The compressed stream came to its proper end.
    ended: bool,
    /// The run under which links are signed; `None` if this host has no ticket.
    run: Option<Arc<Run>>,
}

impl Assembly {
    /// Begins at the blob's beginning, or (unless `from_start`) behind the chunks that are held. Also returns the
    /// blob's byte at which that is.
    pub(super) async fn begin(job: &Job, from_start: bool) -> (Self, u64) {
        let start = if from_start {
            beginning(job)
        } else {
            resume(job).await
        };
        let notary = job.notary.as_ref();
        // links behind a chunk that only the recipe proves can't be signed; the recipe proves these too
        let signs = start.chunk == 0 || start.base.is_some();
        let run = notary.filter(|_| signs);
        let run = run.and_then(|notary| notary.run(&job.content, start.base));
        let assembly = Self {
            next: start.chunk,
            state: start.state,
            decoder: start.decoder,
            raw_at: u64::from(start.chunk) * proto::CHUNK_BYTES - start.known.len() as u64,
            known: start.known,
            buffer: Vec::with_capacity(1 << 20),
            marks: Vec::new(),
            unreported: 0,
            ended: false,
            run,
        };
        (assembly, start.blob_offset)
    }

    /// The chunk that is made next.
    pub(super) const fn next(&self) -> u32 {
        self.next
    }

    /// Bytes of the blob that came and weren't counted with a chunk yet.
    pub(super) const fn unreported(&self) -> u64 {
        self.unreported
    }

    /// Notes that this many bytes of the blob came. They are counted with the next chunk.
    pub(super) const fn count(&mut self, bytes: u64) {
        self.unreported += bytes;
    }

    /// Takes the blob's next bytes. Waits while the next chunk may not be made yet ([`Job::until`]).
    pub(super) async fn take(&mut self, job: &mut Job, bytes: Bytes) -> Result<(), Broke> {
        match &mut self.decoder {
            Decoder::Plain => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let room = job.geometry.len(ChunkIndex(self.next)) as usize - self.buffer.len();
                    if room == 0 {
                        return Err(Broke::False("it is longer than the manifest says".into()));
                    }
                    let (now, later) = rest.split_at(room.min(rest.len()));
                    self.buffer.extend_from_slice(now);
                    rest = later;
                    self.emit_if_full(job).await?;
                }
                Ok(())
            }
            Decoder::Lz4(_) => {
                let mut input = &bytes[..];
                loop {
                    let Decoder::Lz4(decoder) = &mut self.decoder else {
                        return Ok(());
                    };
                    let block = decoder
                        .feed(&mut input)
                        .map_err(|error| Broke::False(error.to_string()))?;
                    let Some(block) = block else { return Ok(()) };
                    self.marks.push(block.start);
                    // The hint and the chunk are other hosts' word. If the bytes don't fit both, the fetch doesn't go
                    // on from them, or this host would answer for them.
                    let skip = self.known.len().min(block.raw.len());
                    if self.known[..skip] != block.raw[..skip] {
                        let error = "the end of the chunk that it went on behind came otherwise";
                        return Err(Broke::False(error.into()));
                    }
                    self.known.drain(..skip);
                    self.raw_at += block.raw.len() as u64;
                    // a block is at most 64 KiB, so the buffer holds at most one chunk and one block
                    self.buffer.extend_from_slice(&block.raw[skip..]);
                    self.emit_if_full(job).await?;
                }
            }
        }
    }

    async fn emit_if_full(&mut self, job: &mut Job) -> Result<(), Broke> {
        let compressed = matches!(self.decoder, Decoder::Lz4(_));
        while self.next < job.geometry.chunks() {
            // a layer that goes on behind its last byte is refused; with its last chunk its chain would be closed too
            // early
            if compressed && !self.ended && self.next + 1 == job.geometry.chunks() {
                return Ok(());
            }
            let length = job.geometry.len(ChunkIndex(self.next)) as usize;
            if self.buffer.len() < length {
                return Ok(());
            }
            let rest = self.buffer.split_off(length);
            let bytes = std::mem::replace(&mut self.buffer, rest);
            self.emit(job, bytes).await?;
        }
        Ok(())
    }

    async fn emit(&mut self, job: &mut Job, bytes: Vec<u8>) -> Result<(), Broke> {
        let chunk = ChunkIndex(self.next);
        // the fetch pauses here while chunks that were fetched are being spread
        if job.until.wait_for(|until| *until > chunk.0).await.is_err() {
            return Err(Broke::Unwanted);
        }
        let end = job.geometry.offset(chunk) + bytes.len() as u64;
        // the block that has the chunk's last byte: the last block that starts before the chunk's end
        let at = self.marks.partition_point(|mark| mark.raw_offset < end);
        let resume = at.checked_sub(1).map(|at| self.marks[at]).and_then(|mark| {
            let skip_bytes = u32::try_from(end - mark.raw_offset).ok()?;
            Some(Resume {
                blob_offset: mark.blob_offset,
                skip_bytes,
            })
        });
        self.marks.drain(..at.saturating_sub(1));
        let (geometry, content, state) = (job.geometry, job.content, self.state);
        let (shelves, me, cache) = (job.shelves.clone(), job.me.clone(), job.cache.clone());
        let unfit = job.unfit.clone();
        let doubted = job.doubted;
        let signer = job.notary.clone().zip(self.run.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let link = Link {
                resume,
                ..Link::forge(geometry, chunk, state, &bytes)
            };
            let signed = signer.map(|(notary, run)| notary.sign(content, chunk, link, &run));
            let statement = signed.as_ref().map(|signed| &signed.statement);
            let made = (&me, statement);
            let against = leave_recipe(&shelves, content, chunk, link);
            let (conflict, unwritable) = store(&shelves, made, content, chunk, &bytes, link)?;
            let liars = transfer::settle((&unfit, &shelves), (content, chunk), &link, &bytes);
            // every link that we made after the false link rests on it
            let false_links = if conflict && doubted {
                let after = ChunkIndex(chunk.0 + 1);
                Some(retract(&shelves, content, me.key(), after).map_err(Broke::Disk)?)
            } else {
                None
            };
            if let Some(signed) = signed {
                let (encoding, bytes) = transfer::pack(bytes);
                let packed = Packed {
                    link,
                    maker: me,
                    statement: Some(signed.statement),
                    encoding,
                    bytes,
                };
                cache.keep(content, chunk, packed);
            }
            let against = (against, liars);
            Ok::<_, Broke>((link.after, (conflict, against), false_links, unwritable))
        });
        let stored = stored.await.map_err(|_| Broke::Unwanted)??;
        let (after, (conflict, (against, peers)), false_links, unwritable) = stored;
        for recipe in against {
            job.tell(News::AgainstRecipe { recipe, chunk }).await?;
        }
        if !peers.is_empty() {
            job.tell(News::Liars { chunk, peers }).await?;
        }
        if !unwritable.is_empty() {
            job.tell(News::Unwritable(unwritable)).await?;
        }
        if let Some(lost) = false_links {
            job.doubted = false;
            job.tell(News::Retracted {
                from: chunk,
                chunks: lost,
            })
            .await?;
        }
        self.state = after;
        self.next += 1;
        let origin_bytes = std::mem::take(&mut self.unreported);
        let fetched = News::Chunk {
            chunk,
            origin_bytes,
            conflict,
        };
        job.tell(fetched).await
    }

    /// The blob has ended: makes the last chunk, and checks that nothing is missing.
    pub(super) async fn finish(&mut self, job: &mut Job) -> Result<(), Broke> {
        if let Decoder::Lz4(decoder) = &self.decoder {
            decoder
                .finish()
                .map_err(|error| Broke::False(error.to_string()))?;
        }
        self.ended = true;
        self.emit_if_full(job).await?;
        if self.next < job.geometry.chunks() || !self.buffer.is_empty() {
            return Err(Broke::False(format!(
                "it ends after {} of {} bytes",
                self.raw_at,
                job.geometry.size()
            )));
        }
        Ok(())
    }
}

fn beginning(job: &Job) -> Start {
    let decoder = match job.kind {
        ContentKind::RawLayer { .. } => {
            Decoder::Lz4(Box::new(apple_lz4::Decoder::new(job.geometry.size())))
        }
        ContentKind::Blob => Decoder::Plain,
    };
    Start {
        chunk: 0,
        state: State::INITIAL,
        blob_offset: 0,
        decoder,
        known: Vec::new(),
        base: None,
    }
}

/// The number of chunks from the beginning whose links join. If a link doesn't join, that link or the one before it is
/// false, and the fetch goes on from neither. Behind a liar's invention all further links would be false, and would
/// look like ours.
fn joined(shelf: &Shelf, content: Digest, held: u32) -> u32 {
    let mut state = State::INITIAL;
    for at in 0..held {
        match shelf.link(content, ChunkIndex(at)) {
            Some((link, _)) if link.before == state => state = link.after,
            // the link before this one may be the false one
            Some(_) => return at.saturating_sub(1),
            None => return at,
        }
    }
    held
}

/// Starts behind the first unbroken run of held chunks, if its last link records a place in the blob. Where the blob
/// isn't compressed, that place is known without it.
async fn resume(job: &Job) -> Start {
    let Some(shelf) = job.shelves.first().cloned() else {
        return beginning(job);
    };
    let (content, kind, geometry) = (job.content, job.kind, job.geometry);
    let (held, amid) = (job.first_missing(), job.range.is_some());
    let (_, blob_size) = job.blob();
    let notary = job.notary.clone();
    let found = tokio::task::spawn_blocking(move || {
        // amid a content a recipe proves the chunk that the fetch goes on behind; what lies before may not be here
        let missing = match amid && shelf.recipe(content).is_some() {
            true => held,
            false => joined(&shelf, content, held),
        };
        let last = missing.checked_sub(1)?;
        let (link, _) = shelf.link(content, ChunkIndex(last))?;
        // no host believes a link that goes on from a link that nobody answers for, unless a recipe proves both
        let base = signed(notary.as_deref(), &shelf, content, ChunkIndex(last));
        if notary.is_some() && base.is_none() && shelf.recipe(content).is_none() {
            return None;
        }
        if kind == ContentKind::Blob {
            return Some(Start {
                chunk: missing,
                state: link.after,
                blob_offset: geometry.offset(ChunkIndex(missing)),
                decoder: Decoder::Plain,
                known: Vec::new(),
                base,
            });
        }
        let hint = link.resume?;
        // the hint is its maker's word: an impossible hint isn't followed, and a false hint shows in the decoded bytes
        let behind = last.checked_sub(1);
        let behind = behind.and_then(|at| shelf.link(content, ChunkIndex(at)));
        let behind = behind.and_then(|(link, _)| link.resume);
        if !is_plausible(hint, blob_size, behind) {
            return None;
        }
        let Resume {
            blob_offset,
            skip_bytes,
        } = hint;
        let mut before = shelf.read(content, ChunkIndex(last)).ok()??.bytes;
        // the window before the block lies in the same chunk, as both are far smaller than a chunk
        let known = before.split_off(before.len().checked_sub(skip_bytes as usize)?);
        let history = &before[before.len().saturating_sub(WINDOW_BYTES)..];
        let raw_offset = geometry.offset(ChunkIndex(missing)) - known.len() as u64;
        let decoder = apple_lz4::Decoder::resume(
            geometry.size(),
            Position {
                blob_offset,
                raw_offset,
            },
            history,
        );
        Some(Start {
            chunk: missing,
            state: link.after,
            blob_offset,
            decoder: Decoder::Lz4(Box::new(decoder)),
            known,
            base,
        })
    });
    found.await.ok().flatten().unwrap_or_else(|| beginning(job))
}

/// The link of a held chunk, with the statement of the host that answers for it.
fn signed(
    notary: Option<&Notary>,
    shelf: &Shelf,
    content: Digest,
    chunk: ChunkIndex,
) -> Option<Signed> {
    let (link, _) = shelf.link(content, chunk)?;
    notary?.answered(content, chunk, link, &shelf.answer(content, chunk))
}

/// Whether a hint can be true of this blob: the place is inside the blob, in a block that ends with or behind the
/// chunk, and behind the place of the chunk before.
fn is_plausible(hint: Resume, blob_size: u64, previous: Option<Resume>) -> bool {
    let inside = 0 < hint.blob_offset && hint.blob_offset < blob_size;
    let ends_in_block = 0 < hint.skip_bytes && hint.skip_bytes as usize <= WINDOW_BYTES;
    inside
        && ends_in_block
        && previous.is_none_or(|previous| previous.blob_offset < hint.blob_offset)
}

/// Leaves the recipes that give the chunk another link than the registry's bytes have. Returns their digests.
fn leave_recipe(shelves: &[Shelf], content: Digest, chunk: ChunkIndex, link: Link) -> Vec<Digest> {
    let contradicts = |shelf: &&Shelf| {
        let given = shelf.recipe_link(content, chunk);
        given.is_some_and(|given| !given.is_alike(&link))
    };
    let left = shelves.iter().filter(contradicts);
    left.filter_map(|shelf| shelf.leave_recipe(content))
        .collect()
}

/// Stores a chunk that we made a link for. Returns whether the chunk replaces another one, and the images that couldn't
/// take it.
fn store(
    shelves: &[Shelf],
    (me, statement): (&HostId, Option<&Statement>),
    content: Digest,
    chunk: ChunkIndex,
    bytes: &[u8],
    link: Link,
) -> Result<(bool, Vec<Unwritable>), Broke> {
    let source = Source {
        sender: me.key(),
        maker: me.key(),
    };
    let mut conflict = false;
    for shelf in shelves {
        if let Some((held, _)) = shelf.link(content, chunk)
            && (held.before, held.after) != (link.before, link.after)
        {
            conflict = true;
            shelf
                .forget_chunk(content, chunk)
                .map_err(|error| Broke::Disk(error.to_string()))?;
        } else if let Some(statement) = statement {
            // no host takes more of a run of which a link was false
            shelf.restate(content, chunk, link, statement.clone());
        }
    }
    let arrival = Arrival {
        content,
        chunk,
        bytes,
        link,
        source,
        maker: me,
        statement,
    };
    match shelf::write_all(shelves, arrival) {
        Ok(unwritable) => Ok((conflict, unwritable)),
        Err(WriteError::Rejected(error)) => Err(Broke::False(error.to_string())),
        Err(WriteError::Gone | WriteError::UnknownContent(_)) => Err(Broke::Unwanted),
        Err(error) => Err(Broke::Disk(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_that_cannot_be_true_is_not_followed() {
        let hint = |blob_offset, skip_bytes| Resume {
            blob_offset,
            skip_bytes,
        };
        let before = Some(hint(400, 7));
        let most = u32::try_from(WINDOW_BYTES).unwrap();
        assert!(is_plausible(hint(401, most), 1_000, before));
        assert!(is_plausible(hint(999, 1), 1_000, None));
        // hints outside the blob, before the chunk before, and in a block in which the chunk can't end
        for false_one in [
            hint(0, 1),
            hint(1_000, 1),
            hint(1 << 63, 1),
            hint(400, 1),
            hint(399, 1),
            hint(500, 0),
            hint(500, most + 1),
            hint(500, u32::MAX),
        ] {
            assert!(!is_plausible(false_one, 1_000, before), "{false_one:?}");
        }
    }
}
