//! The contents that this host holds or wants, under the small numbers by which the swarm knows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, HostKey, Signed, State,
    chunks::ParseRunsError,
    image::{ContentKind, Layout},
    message::{BlameKind, LeaseEnd, OriginFault},
    statement::judge,
};
use swarm::{
    Event,
    event::{ContentId, Entitled, OriginEnd},
};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{
    Driver, Fetch, Input,
    leases::{Lease, OriginWords},
    trouble::{CONTENT_BAD, ORIGIN_FAILED, ORIGIN_SETTINGS, ORIGIN_TROUBLE},
    walk::Walked,
};
use crate::{
    fetch::{self, FetchEnd, News},
    metrics::{From, SourceLabel},
    mirror::blob::Blob,
    shelf::{self, Shelf},
    store::{Stage, held::Look},
    suspects::Suspects,
    transfer::{Receipt, Subject},
};

/// Chunks that are read again at a time, every 5 s: 140 GB in a day, at a load that nobody notices.
const SCRUB_CHUNKS: u32 = 8;

/// Chunks that are looked at one moment because peers blame this host for them. A disk reads thousands in a second.
const MAX_LOOKS: usize = 64;

/// What this host dropped of its own making isn't taken from others again for this long: by then they know better.
const DROPPED_WITHIN: Duration = Duration::from_secs(10);

/// A content of one or more images.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) id: ContentId,
    pub(super) digest: Digest,
    pub(super) geometry: Geometry,
    pub(super) kind: ContentKind,
    /// The images that it is part of.
    pub(super) images: Vec<Digest>,
    /// Where its bytes are or shall be.
    pub(super) shelves: Vec<Shelf>,
    /// Contents of lower order are wanted first.
    order: u32,
    /// Chunks that are held here, as the swarm knows them.
    pub(super) held: ChunkSet,
    /// Whether its chain runs from the initial state to the digest.
    pub(super) closed: bool,
    walking: bool,
    /// What our fetch made of it ended in something else than the digest, and isn't sorted out yet.
    doubted: bool,
    /// When we dropped some of what we made.
    retracted_at: Option<Instant>,
    /// Signed links that are false. They are judged when the content is verified.
    suspects: Arc<Suspects>,
}

/// All contents.
#[derive(Debug, Default)]
pub(super) struct Contents {
    contents: BTreeMap<ContentId, Content>,
    ids: BTreeMap<Digest, ContentId>,
    next: u32,
    dirty: bool,
}

impl Contents {
    pub(super) fn find(&self, id: ContentId) -> Option<&Content> {
        self.contents.get(&id)
    }

    pub(super) fn find_some(&self, id: Option<ContentId>) -> Option<&Content> {
        self.contents.get(&id?)
    }

    /// The first verified content of an image from this one on, and around.
    fn closed_from(&self, id: ContentId) -> Option<&Content> {
        let mut around = self.contents.range(id..).chain(self.contents.range(..id));
        around
            .find(|(_, content)| content.closed && !content.images.is_empty())
            .map(|(_, content)| content)
    }

    pub(super) fn find_mut(&mut self, id: ContentId) -> Option<&mut Content> {
        self.contents.get_mut(&id)
    }

    pub(super) fn by_digest(&self, digest: &Digest) -> Option<&Content> {
        self.contents.get(self.ids.get(digest)?)
    }

    /// Whether chunks were stored that no journal vouches for yet.
    pub(super) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub(super) const fn set_dirty(&mut self, dirty: bool) {
        self.dirty = dirty;
    }

    /// The content and chunk that a peer names, where we know it and it has such a chunk.
    pub(super) fn locate(&self, content: &[u8], index: u32) -> Option<(ContentId, ChunkIndex)> {
        let content = self.by_digest(&Digest::try_from(content).ok()?)?;
        let chunk = ChunkIndex(index);
        content
            .geometry
            .contains(chunk)
            .then_some((content.id, chunk))
    }

    /// The chunks that a peer announced; `None` for a content that we don't know.
    pub(super) fn announced(
        &self,
        digest: &Digest,
        runs: &[u32],
    ) -> Result<Option<(ContentId, ChunkSet)>, ParseRunsError> {
        let Some(content) = self.by_digest(digest) else {
            return Ok(None);
        };
        Ok(Some((
            content.id,
            ChunkSet::from_runs(content.geometry.chunks(), runs)?,
        )))
    }

    /// Adds a content of an image, or another image to a content. Whether it is new.
    pub(super) fn add(
        &mut self,
        spec: &proto::image::ContentSpec,
        image: Digest,
        stage: &Arc<Stage>,
        held: ChunkSet,
        closed: bool,
    ) -> (ContentId, bool) {
        if let Some(id) = self.ids.get(&spec.digest).copied()
            && let Some(content) = self.contents.get_mut(&id)
        {
            if !content.images.contains(&image) {
                content.images.push(image);
                content.shelves.push(Shelf::Stage(stage.clone()));
                // what the others hold is copied to the new one before the next walk
                content.closed &= closed;
            }
            return (id, false);
        }
        let id = ContentId(self.next);
        self.next += 1;
        self.ids.insert(spec.digest, id);
        let content = Content {
            id,
            digest: spec.digest,
            geometry: spec.geometry,
            kind: spec.kind,
            images: vec![image],
            shelves: vec![Shelf::Stage(stage.clone())],
            order: 0,
            held,
            closed,
            walking: false,
            doubted: false,
            retracted_at: None,
            suspects: Arc::default(),
        };
        self.contents.insert(id, content);
        (id, true)
    }

    /// Adds a blob of the mirror, which is no part of an image here.
    pub(super) fn add_blob(&mut self, blob: &Arc<Blob>) -> ContentId {
        let digest = blob.digest();
        if let Some(id) = self.ids.get(&digest) {
            return *id;
        }
        let id = ContentId(self.next);
        self.next += 1;
        self.ids.insert(digest, id);
        let content = Content {
            id,
            digest,
            geometry: blob.geometry(),
            kind: ContentKind::Blob,
            images: Vec::new(),
            held: blob.held(),
            closed: blob.is_whole(),
            shelves: vec![Shelf::Blob(blob.clone())],
            order: 0,
            walking: false,
            doubted: false,
            retracted_at: None,
            suspects: Arc::default(),
        };
        self.contents.insert(id, content);
        id
    }

    /// Removes a content that no image has.
    pub(super) fn remove_blob(&mut self, digest: &Digest) -> Option<ContentId> {
        let id = *self.ids.get(digest)?;
        if !self.contents.get(&id)?.images.is_empty() {
            return None;
        }
        self.ids.remove(digest);
        self.contents.remove(&id);
        Some(id)
    }

    /// Takes an image away from its contents; those that no other image has are removed and returned.
    pub(super) fn remove_image(&mut self, image: &Digest) -> Vec<(ContentId, Digest)> {
        let mut gone = Vec::new();
        for content in self.contents.values_mut() {
            if let Some(at) = content.images.iter().position(|other| other == image) {
                content.images.remove(at);
                content.shelves.remove(at);
                if content.images.is_empty() {
                    gone.push((content.id, content.digest));
                }
            }
        }
        for (id, digest) in &gone {
            self.contents.remove(id);
            self.ids.remove(digest);
        }
        gone
    }
}

/// The key by which every host breaks ties between contents.
fn tie_key(digest: &Digest) -> u64 {
    digest
        .as_bytes()
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

impl Driver {
    /// Makes a content known to the swarm.
    pub(super) fn introduce(&mut self, id: ContentId, order: u32) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        content.order = order;
        let Some(content) = self.contents.find(id) else {
            return;
        };
        let event = Event::Content {
            id,
            key: tie_key(&content.digest),
            size: content.geometry.size(),
            held: content.held.clone(),
            order,
            entitled: self.entitled(content),
        };
        let (digest, chunks) = (content.digest, content.geometry.chunks());
        self.tell(event);
        for (peer, runs, reset) in self.members.recall(&digest) {
            match ChunkSet::from_runs(chunks, &runs) {
                Ok(chunks) => self.tell(Event::Announced {
                    peer,
                    id,
                    chunks,
                    reset,
                }),
                // it was told another size than we were: a size is what some manifest says
                Err(ParseRunsError::PastEnd) => {}
                Err(error @ ParseRunsError::Odd) => self.nonsense(peer, &error.to_string()),
            }
        }
    }

    /// Who may have a content: the hosts of all images that it is part of. Blobs of the mirror are for all hosts.
    fn entitled(&self, content: &Content) -> Entitled {
        let mut all = BTreeSet::new();
        for image in &content.images {
            // of an image that is forgotten nobody may have anything
            if let Some(image) = self.images.get(image) {
                let hosts = image.entitled.as_ref()?;
                if content.images.len() == 1 {
                    return Some(hosts.clone());
                }
                all.extend(hosts.iter().copied());
            }
        }
        (!content.images.is_empty()).then(|| Arc::new(all))
    }

    /// Tells the swarm anew of an image's contents: who may have them may have changed.
    pub(super) fn retell(&mut self, layout: &Layout) {
        for spec in layout.contents() {
            let content = self.contents.by_digest(&spec.digest);
            if let Some((id, order)) = content.map(|content| (content.id, content.order)) {
                self.introduce(id, order);
            }
        }
    }

    pub(super) fn subject(&self, id: ContentId, chunk: ChunkIndex) -> Option<Subject> {
        let content = self.contents.find(id)?;
        Some(Subject {
            content: content.digest,
            geometry: content.geometry,
            chunk,
            shelves: content.shelves.clone(),
            cache: self.cache.clone(),
            notary: self.notary.clone(),
            retracted: content
                .retracted_at
                .filter(|at| at.elapsed() < DROPPED_WITHIN)
                .map(|_| self.me.key()),
            suspects: content.suspects.clone(),
        })
    }

    pub(super) fn received(
        &mut self,
        peer: HostKey,
        id: ContentId,
        chunk: ChunkIndex,
        number: u64,
        receipt: Receipt,
    ) {
        let key = (peer, id, chunk);
        let current = self
            .transfers
            .get(&key)
            .is_some_and(|transfer| transfer.number == number);
        if current {
            self.transfers.remove(&key);
        } else if receipt.is_lost() {
            // it went over a connection that is gone, and is asked for again over the next
            return;
        }
        self.metrics
            .received_bytes
            .get_or_create(&SourceLabel {
                source: From::Peers,
            })
            .inc_by(receipt.wire_bytes);
        self.count_received(id, receipt.wire_bytes);
        for (image, error) in receipt.unwritable {
            self.image_unwritable(image, error);
        }
        match receipt.result {
            Ok(()) => {
                self.tell(Event::Arrived {
                    peer,
                    id,
                    chunk,
                    wire_bytes: receipt.wire_bytes,
                });
                self.clear_origin_trouble(id);
                self.stored(id, chunk);
            }
            Err(failure) => {
                if let Some(content) = self.contents.find(id) {
                    let content = &content.digest;
                    debug!(%content, chunk = chunk.0, peer = peer.0, ?failure, "a chunk didn't come");
                }
                // the size of a blob is what some client's registry says of it: a peer that was told another lies no more
                // than we do
                let doubtful = receipt.other_size && self.is_only_mirrored(id);
                if let Some(signed) = receipt.false_link {
                    self.count_false(From::Peers, 1);
                    self.suspect(id, *signed);
                }
                if let Some(links) = receipt.contradiction {
                    let maker = links[0].maker();
                    warn!(%maker, chunk = chunk.0, "links that a host signed contradict each other");
                    let liar = maker.key();
                    self.show(&links[..]);
                    self.tell(Event::Blamed(liar));
                }
                if receipt.false_bytes && !doubtful {
                    self.count_false(From::Peers, 1);
                    if let Some(host) = self.members.host(peer) {
                        warn!(peer = %host, chunk = chunk.0, "peer sent a chunk that doesn't fit its link");
                        self.blame(&host, Some(id), chunk, BlameKind::Bytes);
                    }
                }
                if let Some(error) = &receipt.storage_error {
                    self.content_not_stored(id, error);
                }
                self.tell(Event::NotArrived {
                    peer,
                    id,
                    chunk,
                    failure: if doubtful {
                        swarm::event::Failure::Refused
                    } else {
                        failure
                    },
                });
            }
        }
    }

    /// Whether this is a blob of the mirror and no part of an image here.
    pub(super) fn is_only_mirrored(&self, id: ContentId) -> bool {
        self.contents
            .find(id)
            .is_some_and(|content| content.images.is_empty())
    }

    /// A chunk couldn't be stored: the volume of images or that of the mirror's blobs fails.
    fn content_not_stored(&mut self, id: ContentId, error: &str) {
        match self.contents.find(id) {
            Some(content) if content.images.is_empty() => self.mirror_storage_failed(error),
            Some(_) => self.storage_failed(error),
            None => {}
        }
    }

    /// A chunk is verified against its link and stored.
    fn stored(&mut self, id: ContentId, chunk: ChunkIndex) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        let length = u64::from(content.geometry.len(chunk));
        if !content.held.insert(chunk) {
            return;
        }
        let images = content.images.clone();
        self.contents.set_dirty(true);
        for image in images {
            if let Some(image) = self.images.get_mut(&image) {
                image.held_bytes += length;
            }
        }
        self.report_due = true;
        self.walk_if_whole(id);
    }

    /// Once every chunk is there, walks back from the digest: the content is verified, or somebody lied.
    pub(super) fn walk_if_whole(&mut self, id: ContentId) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        if content.closed || content.walking || !content.held.is_full() {
            return;
        }
        content.walking = true;
        let (digest, shelves) = (content.digest, content.shelves.clone());
        let chunks = content.geometry.chunks();
        self.spawn_blocking(move || {
            let (unwritable, storage_error) = match shelf::level(&shelves, digest) {
                Ok(unwritable) => (unwritable, None),
                Err(error) => (Vec::new(), Some(error)),
            };
            let mut walked = Walked {
                closed: true,
                verdicts: Vec::new(),
                storage_error,
                unwritable,
                lacking: Vec::new(),
            };
            for shelf in shelves {
                // a journal that can't be written shows at the next flush
                let verdicts = shelf.walk(digest).unwrap_or_default();
                walked.closed &= shelf.is_closed(digest);
                let held = shelf.held(digest);
                walked.lacking.extend(
                    (0..chunks)
                        .map(ChunkIndex)
                        .filter(|chunk| !held.contains(*chunk)),
                );
                for verdict in verdicts {
                    if !walked.verdicts.contains(&verdict) {
                        walked.verdicts.push(verdict);
                    }
                }
            }
            Input::Walked { id, walked }
        });
    }

    pub(super) fn walked(&mut self, id: ContentId, mut walked: Walked) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        content.walking = false;
        let digest = content.digest;
        for (image, error) in std::mem::take(&mut walked.unwritable) {
            self.image_unwritable(image, error);
        }
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        // what rotted since, or lies in an image that came meanwhile, is for the next walk
        let closed = content.shelves.iter().all(|shelf| shelf.is_closed(digest));
        let changed = walked.closed && !closed;
        content.closed = walked.closed && closed && content.held.is_full();
        let (images, closed) = (content.images.clone(), content.closed);
        let again = changed || !walked.verdicts.is_empty();
        for verdict in &walked.verdicts {
            self.lose(id, verdict.chunk);
        }
        if walked.storage_error.is_none() {
            self.lack(id, &walked);
        }
        self.count_false(From::Peers, walked.verdicts.len());
        if let Some(first) = walked.verdicts.first() {
            // nobody is named before the whole shows who answers for it: it may be the registry's fault
            let chunks = walked.verdicts.len();
            warn!(content = %digest, chunk = first.chunk.0, chunks, "the chain proved a chunk false; it and what was made with it are fetched again");
        }
        for (at, verdict) in walked.verdicts.into_iter().enumerate() {
            let (chunk, maker) = (verdict.chunk, self.members.name(verdict.source.maker));
            debug!(content = %digest, chunk = chunk.0, maker = ?maker, "dropped");
            // the first one is false; the others fell with it and may be true
            if at == 0
                && let Some(statement) = verdict.statement
            {
                let signed = Signed {
                    content: digest,
                    chunk,
                    link: verdict.link,
                    statement,
                };
                self.suspect(id, signed);
            }
            self.tell(Event::ChunkLost { id, chunk });
        }
        if closed {
            self.judge_suspects(id);
        }
        if closed {
            for image in images {
                self.content_closed(image, digest);
            }
        } else if let Some(error) = walked.storage_error {
            self.content_not_stored(id, &error);
        } else if again {
            self.walk_if_whole(id);
        }
    }

    /// A signed link is false: nothing more of its run is taken, and it is judged when the content is verified.
    fn suspect(&mut self, id: ContentId, signed: Signed) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        let (digest, maker) = (content.digest, signed.maker().key());
        if Arc::make_mut(&mut content.suspects).note(signed) {
            self.drop_made(&digest, maker, ChunkIndex(0));
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        if content.closed {
            self.judge_suspects(id);
        }
    }

    /// The true states of a content are known: whoever signed something false is named, with the evidence.
    fn judge_suspects(&mut self, id: ContentId) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        let suspects = content.suspects.take();
        let (digest, last) = (content.digest, content.geometry.chunks());
        let Some(shelf) = content.shelves.first().cloned() else {
            return;
        };
        let truth = |chunk: ChunkIndex| {
            if chunk.0 == last {
                return Some(State::from(digest));
            }
            Some(shelf.link(digest, chunk)?.0.before)
        };
        let guilty: BTreeSet<Signed> = suspects
            .iter()
            .filter_map(|signed| judge(signed, &truth))
            .collect();
        for signed in guilty {
            let (maker, chunk) = (signed.maker().clone(), signed.chunk);
            let vouched = signed.statement.run.is_vouched();
            if maker == self.me {
                continue;
            }
            let liar = maker.key();
            self.show(&[signed]);
            // what it made may be the registry's fault, what it vouched for isn't
            if vouched {
                warn!(content = %digest, chunk = chunk.0, %maker, "a host vouched for a link that is false");
                self.tell(Event::Blamed(liar));
            } else {
                debug!(content = %digest, chunk = chunk.0, %maker, "what was made of the registry's bytes is false");
            }
        }
    }

    /// A chunk isn't held any more. Whether it was.
    fn lose(&mut self, id: ContentId, chunk: ChunkIndex) -> bool {
        let Some(content) = self.contents.find_mut(id) else {
            return false;
        };
        let bytes = u64::from(content.geometry.len(chunk));
        self.cache.forget(content.digest, chunk);
        if !content.held.remove(chunk) {
            return false;
        }
        for image in content.images.clone() {
            if let Some(image) = self.images.get_mut(&image) {
                image.held_bytes = image.held_bytes.saturating_sub(bytes);
            }
        }
        true
    }

    fn count_false(&self, source: From, chunks: usize) {
        self.metrics
            .verify_failures
            .get_or_create(&SourceLabel { source })
            .inc_by(u64::try_from(chunks).unwrap_or(u64::MAX));
    }

    /// Asks again for what an image lacks after a walk that blamed nobody for it.
    fn lack(&mut self, id: ContentId, walked: &Walked) {
        for chunk in &walked.lacking {
            let blamed = walked
                .verdicts
                .iter()
                .any(|verdict| verdict.chunk == *chunk);
            if self.lose(id, *chunk) && !blamed {
                self.tell(Event::ChunkLost { id, chunk: *chunk });
            }
        }
    }

    /// Reads a few verified chunks again, while nothing is being staged: disks forget. Nothing rests on it: what is served, copied or
    /// installed was compared before.
    pub(super) fn scrub(&mut self) {
        let (at, chunk) = self.scrub_at;
        let Some(content) = self.contents.closed_from(at) else {
            return;
        };
        let id = content.id;
        let first = if id == at { chunk.0 } else { 0 };
        let end = (first + SCRUB_CHUNKS).min(content.geometry.chunks());
        let whole = end == content.geometry.chunks();
        let next = match whole {
            true => (ContentId(id.0 + 1), ChunkIndex(0)),
            false => (id, ChunkIndex(end)),
        };
        self.scrub_at = next;
        self.scrubbing = true;
        let (digest, shelves) = (content.digest, content.shelves.clone());
        self.spawn_blocking(move || {
            for chunk in (first..end).map(ChunkIndex) {
                for shelf in &shelves {
                    // what rotted is told by the store; what can't be read now shows by other means
                    if let Err(error) = shelf.look(digest, chunk) {
                        debug!(content = %digest, %chunk, %error, "a chunk can't be read now");
                    }
                }
            }
            for shelf in shelves.iter().filter(|_| whole) {
                if let Err(error) = shelf.mend_decoded(digest) {
                    debug!(content = %digest, %error, "decoded bytes can't be compared now");
                }
            }
            Input::Scrubbed
        });
    }

    /// A peer says that a chunk which it had from us doesn't fit its link: its own memory may be broken, or our disk.
    pub(super) fn look_at(&mut self, digest: &Digest, chunk: ChunkIndex) {
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        if !content.geometry.contains(chunk)
            || self.looking.len() >= MAX_LOOKS
            || !self.looking.insert((*digest, chunk))
        {
            return;
        }
        let (digest, shelves) = (*digest, content.shelves.clone());
        warn!(content = %digest, %chunk, "looking at a chunk for which a peer blames this host");
        // what was packed before may be what is wrong
        self.cache.forget(digest, chunk);
        self.spawn_blocking(move || {
            let mut rotten = false;
            for shelf in &shelves {
                match shelf.look(digest, chunk) {
                    Ok(look) => rotten |= look == Look::Rotten,
                    Err(error) => {
                        warn!(content = %digest, %chunk, %error, "a chunk for which a peer blames this host can't be read");
                    }
                }
            }
            Input::Looked {
                content: digest,
                chunk,
                rotten,
            }
        });
    }

    pub(super) fn looked(&mut self, digest: Digest, chunk: ChunkIndex, rotten: bool) {
        self.looking.remove(&(digest, chunk));
        if !rotten {
            info!(content = %digest, %chunk, "a chunk for which a peer blamed this host is what its link says");
        }
        // a rotten blob of the mirror is dropped as a whole
        if rotten
            && self
                .contents
                .by_digest(&digest)
                .is_some_and(|content| content.images.is_empty())
        {
            self.keep_cache();
        }
    }

    /// Chunks of images aren't held any more, because their bytes on disk changed or can't be read. Another image here may have them;
    /// else they are fetched again. The images are present again when they are whole.
    pub(super) fn rotted(&mut self, image: Digest, digest: Digest, chunks: &[ChunkIndex]) {
        error!(%image, content = %digest, chunks = ?chunks, "bytes on disk changed since they were verified, or can't be read; they are fetched again");
        self.count_false(From::Local, chunks.len());
        for chunk in chunks {
            self.cache.forget(digest, *chunk);
        }
        let Some(content) = self.contents.by_digest(&digest) else {
            return;
        };
        let id = content.id;
        let Some(content) = self
            .contents
            .find_mut(id)
            .filter(|content| content.images.contains(&image))
        else {
            return;
        };
        content.closed = false;
        let whole = content.held.is_full();
        self.content_opened(image, digest);
        if whole {
            // what no other image has is asked for after this
            self.walk_if_whole(id);
            return;
        }
        for chunk in chunks {
            if self.lose(id, *chunk) {
                self.tell(Event::ChunkLost { id, chunk: *chunk });
            }
        }
    }

    // ---- the registry ---------------------------------------------------------------------------------------------

    pub(super) fn fetch(&mut self, id: ContentId, until: ChunkIndex) {
        if let Some(fetch) = self.fetches.get(&id) {
            // the receiver lives as long as the fetch
            fetch.until.send_replace(until.0);
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        // the image that the lease was granted for: another may name a repository that refuses this content
        let leased = self.leases.get(&id).and_then(|lease| lease.image);
        let leased = leased.filter(|image| content.images.contains(image));
        let image = leased
            .iter()
            .chain(&content.images)
            .find_map(|image| self.images.get(image));
        let by = image.map(|image| image.digest);
        let image = image.map(|image| (image.reference().to_owned(), image.access.clone()));
        let Some((reference, access)) = image.or_else(|| self.mirror.access(&content.digest))
        else {
            return;
        };
        let (sender, receiver) = watch::channel(until.0);
        let (access, access_now) = watch::channel(access);
        let moved = Arc::new(AtomicU64::new(0));
        let mut job = fetch::Job {
            id,
            content: content.digest,
            geometry: content.geometry,
            kind: content.kind,
            shelves: content.shelves.clone(),
            reference: reference.clone(),
            access: access_now,
            doubted: false,
            me: self.me.clone(),
            notary: Some(self.notary.clone()),
            cache: self.cache.clone(),
            until: receiver,
            moved: moved.clone(),
            inbox: self.fetch_inbox.clone(),
        };
        let registry = reference.split_once('/').map(|(registry, _)| registry);
        for shelf in &content.shelves {
            if let Shelf::Blob(blob) = shelf {
                blob.comes_from(registry);
            }
        }
        info!(content = %content.digest, image = reference, "fetching from the registry");
        let origin = self.origin.clone();
        let abort = self.spawn(async move {
            let end = fetch::run(&origin, &mut job).await;
            Input::FetchEnded { id, end }
        });
        self.fetches.insert(
            id,
            Fetch {
                image: by,
                until: sender,
                access,
                moved,
                abort,
            },
        );
    }

    pub(super) fn fetch_news(&mut self, id: ContentId, news: News) {
        match news {
            News::Chunk {
                chunk,
                origin_bytes,
                conflict,
            } => self.fetched(id, chunk, origin_bytes, conflict),
            News::Refused { error } => self.fetch_refused(id, error),
            News::Broke { after_bytes, error } => self.fetch_broke(id, after_bytes, &error),
            News::Trouble {
                error,
                retry_after,
                wait,
            } => self.fetch_trouble(id, error, retry_after, wait),
            News::Doubted => self.fetch_doubted(id),
            News::Retracted { from, chunks } => self.retracted(id, from, Ok(chunks)),
            News::Unwritable(images) => {
                for (image, error) in images {
                    self.image_unwritable(image, error);
                }
            }
        }
    }

    fn fetched(&mut self, id: ContentId, chunk: ChunkIndex, origin_bytes: u64, conflict: bool) {
        self.metrics
            .received_bytes
            .get_or_create(&SourceLabel {
                source: From::Origin,
            })
            .inc_by(origin_bytes);
        let images = self
            .contents
            .find(id)
            .map(|content| content.images.clone())
            .unwrap_or_default();
        for image in images {
            if let Some(image) = self.images.get_mut(&image) {
                image.origin_bytes += origin_bytes;
                image.clear_trouble();
            }
        }
        if conflict {
            // what we held of this chunk isn't what the registry has now
            self.lose(id, chunk);
            self.tell(Event::ChunkLost { id, chunk });
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.chunks += 1;
            lease.trouble = None;
        }
        self.tell(Event::OriginChunk {
            id,
            chunk,
            wire_bytes: origin_bytes,
        });
        self.stored(id, chunk);
    }

    fn fetch_doubted(&mut self, id: ContentId) {
        self.count_false(From::Origin, 1);
        if let Some(content) = self.contents.find_mut(id) {
            content.doubted = true;
            warn!(content = %content.digest, "what was fetched from the registry doesn't end in the digest; fetching it again from the beginning");
        }
    }

    /// The fetch is over, and what it made was never sorted out: it isn't kept.
    pub(super) fn retract_doubted(&mut self, id: ContentId) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        if !std::mem::take(&mut content.doubted) {
            return;
        }
        let (digest, shelves, me) = (content.digest, content.shelves.clone(), self.me.key());
        let from = ChunkIndex(0);
        self.spawn_blocking(move || Input::Retracted {
            id,
            from,
            result: fetch::retract(&shelves, digest, me, from),
        });
    }

    /// We dropped what we made of a content: the registry's bytes were false, or what they were chained to was.
    pub(super) fn retracted(
        &mut self,
        id: ContentId,
        from: ChunkIndex,
        result: Result<Vec<ChunkIndex>, String>,
    ) {
        let Some(content) = self.contents.find_mut(id) else {
            return;
        };
        (content.doubted, content.retracted_at) = (false, Some(Instant::now()));
        let digest = content.digest;
        warn!(content = %digest, from_chunk = from.0, "the registry's bytes were false, or what they were chained to; taking back what was made of them");
        let first = self.retractions.entry(digest).or_insert(from);
        *first = from.min(*first);
        self.report_due = true;
        self.dropped(id, result);
    }

    /// Drops what another host made of a content, from a chunk on: it takes it back, or its links are false too often.
    pub(super) fn drop_made(&mut self, digest: &Digest, maker: HostKey, from: ChunkIndex) {
        let Some(content) = self.contents.by_digest(digest) else {
            return;
        };
        if maker == self.me.key() || content.closed {
            return;
        }
        let (id, digest, shelves) = (content.id, content.digest, content.shelves.clone());
        // what it is sending was made before that
        for ((peer, of, chunk), transfer) in &self.transfers {
            if *peer == maker && *of == id && *chunk >= from {
                transfer.token.cancel();
            }
        }
        self.spawn_blocking(move || Input::Dropped {
            id,
            result: fetch::retract(&shelves, digest, maker, from),
        });
    }

    pub(super) fn dropped(&mut self, id: ContentId, result: Result<Vec<ChunkIndex>, String>) {
        match result {
            Ok(chunks) => {
                for chunk in chunks {
                    if self.lose(id, chunk) {
                        self.tell(Event::ChunkLost { id, chunk });
                    }
                }
            }
            Err(error) => self.content_not_stored(id, &error),
        }
    }

    /// The coordinator is told at once: it fetches another token.
    fn fetch_refused(&mut self, id: ContentId, error: String) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.trouble = Some(OriginWords {
                error,
                retry_at: None,
                refused: true,
            });
            self.report(false);
        }
    }

    /// A connection broke, and the next one goes on where it ended: no trouble, but worth a word where it is the rule.
    fn fetch_broke(&mut self, id: ContentId, after_bytes: u64, error: &str) {
        let Some(content) = self.contents.find(id) else {
            return;
        };
        debug!(content = %content.digest, after_bytes, error, "a connection to the registry broke; going on");
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.breaks.note(after_bytes);
        }
    }

    fn fetch_trouble(
        &mut self,
        id: ContentId,
        error: String,
        retry_after: Option<Duration>,
        wait: Duration,
    ) {
        // taken back or stopped a moment ago: what it had to say is of yesterday
        if !self.fetches.contains_key(&id) {
            return;
        }
        let Some(content) = self.contents.find(id) else {
            return;
        };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        warn!(content = %content.digest, error, wait_ms, "fetching from the registry has trouble; trying again");
        let message = format!("{error} (next attempt in {wait_ms} ms)");
        for image in content.images.clone() {
            if let Some(image) = self.images.get_mut(&image) {
                image.trouble(ORIGIN_TROUBLE, message.clone());
            }
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.trouble = Some(OriginWords {
                error,
                retry_at: retry_after.map(|wish| Instant::now() + wish),
                refused: false,
            });
        }
        // at once: as long as the coordinator doesn't know, it sends others to a registry that wants to be left alone
        self.report(false);
    }

    /// The registry is nobody's trouble here any more: what was said about it on the images of a content is over.
    fn clear_origin_trouble(&mut self, id: ContentId) {
        let images = self.contents.find(id).map(|content| &content.images);
        for image in images.into_iter().flatten() {
            if let Some(image) = self.images.get_mut(image) {
                image.clear_trouble_of(&[ORIGIN_TROUBLE, ORIGIN_FAILED, ORIGIN_SETTINGS]);
            }
        }
    }

    pub(super) fn fetch_ended(&mut self, id: ContentId, end: FetchEnd) {
        let asked = self.fetches.remove(&id).and_then(|fetch| fetch.image);
        if let Some(content) = self.contents.find_mut(id) {
            match end {
                // the second time brought the same: nothing that we made was false
                FetchEnd::Done => content.doubted = false,
                FetchEnd::Bad(_) => content.doubted = true,
                FetchEnd::Failed(_) | FetchEnd::Disk(_) | FetchEnd::Unwanted => {}
            }
        }
        self.retract_doubted(id);
        let away = OriginFault::Unspecified;
        let (swarm_end, (lease_end, fault), reason, message) = match &end {
            FetchEnd::Done => (OriginEnd::Done, (LeaseEnd::Done, away), "", None),
            FetchEnd::Failed(failure) => {
                let said = failure.as_told();
                let reason = match said {
                    (LeaseEnd::ContentBad, _) => CONTENT_BAD,
                    (_, OriginFault::Host) => ORIGIN_SETTINGS,
                    _ => ORIGIN_FAILED,
                };
                (OriginEnd::Failed, said, reason, Some(failure.to_string()))
            }
            FetchEnd::Bad(message) => (
                OriginEnd::Bad,
                (LeaseEnd::ContentBad, away),
                CONTENT_BAD,
                Some(message.clone()),
            ),
            // our own trouble: the lease passes on without a word about the registry
            FetchEnd::Disk(message) => return self.content_not_stored(id, message),
            FetchEnd::Unwanted => (OriginEnd::Failed, (LeaseEnd::Released, away), "", None),
        };
        if let Some(content) = self.contents.find(id)
            && let Some(message) = &message
        {
            error!(content = %content.digest, reason, error = message, "fetching from the registry failed");
            // what one image's repository refuses says nothing of the others
            let images: Vec<Digest> = match asked {
                Some(image) if matches!(end, FetchEnd::Failed(_)) => vec![image],
                _ => content.images.clone(),
            };
            for image in images {
                if let Some(image) = self.images.get_mut(&image) {
                    image.trouble(reason, message.clone());
                }
            }
        }
        self.tell(Event::OriginEnded { id, end: swarm_end });
        self.end_lease(id, lease_end, fault, message.unwrap_or_default());
        self.mirror_fetch_ended(id, end);
    }

    /// The coordinator leased us a content, to be fetched under this image's name.
    pub(super) fn leased(&mut self, digest: Digest, image: Option<Digest>) {
        let Some(id) = self.contents.by_digest(&digest).map(|content| content.id) else {
            // the stage isn't ready yet: remembered until it is, the lease runs meanwhile
            self.early_lease(digest, image);
            return;
        };
        let lease = Lease {
            image,
            ..Lease::default()
        };
        self.leases.insert(id, lease);
        self.metrics
            .leases
            .set(i64::try_from(self.leases.len()).unwrap_or(i64::MAX));
        self.tell(Event::Leased(id));
    }

    pub(super) fn lease_lost(&mut self, digest: &Digest) {
        self.notary.forget_lease(digest);
        if let Some(id) = self.contents.by_digest(digest).map(|content| content.id) {
            self.leases.remove(&id);
            self.metrics
                .leases
                .set(i64::try_from(self.leases.len()).unwrap_or(i64::MAX));
            self.clear_origin_trouble(id);
            self.report_due = true;
            self.tell(Event::LeaseLost(id));
        }
    }
}
