//! The contents that this host holds or wants, by the small numbers under which the swarm knows them.
//!
//! This part neither reads nor writes the disk. It returns [`Effect`]s, which the driver carries out.

mod content;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, HostKey, Signed,
    chunks::ParseRunsError,
    image::{ContentKind, ContentSpec, Layout},
};
use swarm::{
    Event,
    event::{ContentId, Entitled, Failure, order_of},
};
use tracing::{debug, error, warn};

pub(super) use self::content::{Chunk, Content, Proving};
use super::{image_news::ImageNews, transfers::Transfer, walk::Walked};
use crate::{
    metrics::From,
    shelf::Shelf,
    transfer::{Cache, Receipt},
};

/// Work for the driver, after this part heard something.
#[derive(Debug)]
pub(super) enum Effect<S = Shelf> {
    /// Tell the swarm.
    Tell(Event),
    /// The swarm knows this content from now on: earlier announcements of peers count now.
    Recall {
        id: ContentId,
        content: Digest,
        chunks: u32,
    },
    /// Walk the content's chain back from its digest. The end goes to [`Contents::walked`].
    Walk {
        id: ContentId,
        content: Digest,
        chunks: u32,
        shelves: Vec<S>,
    },
    /// Drop the links that this host made of a content. The end goes to [`Contents::retracted`].
    Retract {
        id: ContentId,
        content: Digest,
        shelves: Vec<S>,
    },
    /// Drop the links that another host made of a content, from a chunk on, and give up what that host is sending of
    /// the content. The end goes to [`Contents::dropped`].
    Drop {
        from: Transfer,
        content: Digest,
        shelves: Vec<S>,
    },
    /// Tell these images.
    Images {
        images: Vec<Digest>,
        news: ImageNews,
    },
    /// The volume of the images, or of the mirror's blobs, failed.
    NotStored { mirrored: bool, error: String },
    /// Chunks were found false.
    CountFalse { source: From, chunks: usize },
    /// Show the coordinator these links. Their signers lied.
    Convict(Vec<Signed>),
    /// Tell the coordinator that this peer sent bytes that don't fit their link.
    BlameBytes(Transfer),
    /// Tell the coordinator, and through it all other hosts, that this host takes back the links that it made of a
    /// content, from a chunk on.
    TakeBack { content: Digest, from: ChunkIndex },
    /// A chunk was stored, and no journal vouches for it yet.
    Stored,
    /// Something changed that belongs into the next report.
    Report,
}

/// All contents.
#[derive(Debug)]
pub(super) struct Contents<S = Shelf> {
    me: HostKey,
    /// Packed chunks. Chunks that aren't held any more are forgotten there too.
    cache: Arc<Cache>,
    contents: BTreeMap<ContentId, Content<S>>,
    ids: BTreeMap<Digest, ContentId>,
    next: u32,
}

impl<S: Proving> Contents<S> {
    pub(super) fn new(me: HostKey, cache: Arc<Cache>) -> Self {
        Self {
            me,
            cache,
            contents: BTreeMap::new(),
            ids: BTreeMap::new(),
            next: 0,
        }
    }

    // ---- finding --------------------------------------------------------------------------------------------------

    /// A content to which this layout gives another size than an image on this host does. One of the two sizes is
    /// wrong.
    pub(super) fn contradiction(&self, layout: &Layout) -> Option<Digest> {
        let contents = layout.contents();
        let other_size = contents.iter().find(|spec| {
            let known = self.by_digest(&spec.digest);
            known.is_some_and(|known| {
                !known.is_mirrored() && known.geometry().size() != spec.geometry.size()
            })
        });
        other_size.map(|spec| spec.digest)
    }

    pub(super) fn find(&self, id: ContentId) -> Option<&Content<S>> {
        self.contents.get(&id)
    }

    pub(super) fn by_digest(&self, digest: &Digest) -> Option<&Content<S>> {
        self.contents.get(self.ids.get(digest)?)
    }

    /// The first verified content of an image at or after this number, or else from the beginning.
    pub(super) fn closed_from(&self, id: ContentId) -> Option<&Content<S>> {
        let mut around = self.contents.range(id..).chain(self.contents.range(..id));
        around
            .find(|(_, content)| content.is_closed() && !content.is_mirrored())
            .map(|(_, content)| content)
    }

    /// The content and chunk that a peer names, if this host knows the content and the content has such a chunk.
    pub(super) fn locate(&self, content: &[u8], index: u32) -> Option<(ContentId, ChunkIndex)> {
        let content = self.by_digest(&Digest::try_from(content).ok()?)?;
        let chunk = ChunkIndex(index);
        let contains = content.geometry().contains(chunk);
        contains.then_some((content.id(), chunk))
    }

    /// The chunks that a peer announced; `None` for a content that isn't known.
    ///
    /// # Errors
    /// When these aren't runs of the content's chunks.
    pub(super) fn announced(
        &self,
        digest: &Digest,
        runs: &[u32],
    ) -> Result<Option<(ContentId, ChunkSet)>, ParseRunsError> {
        let Some(content) = self.by_digest(digest) else {
            return Ok(None);
        };
        let chunks = ChunkSet::from_runs(content.geometry().chunks(), runs)?;
        Ok(Some((content.id(), chunks)))
    }

    /// The contents of an image that are known, and its recipe, each with its order.
    pub(super) fn with_recipe(&self, layout: &Layout) -> Vec<(ContentId, u32)> {
        let specs = layout.contents().into_iter();
        let contents = specs.filter_map(|spec| self.by_digest(&spec.digest));
        let recipes = self
            .contents
            .values()
            .filter(|content| content.is_recipe() && content.images().contains(layout.digest()));
        let all = contents.chain(recipes);
        all.map(|content| (content.id(), content.order())).collect()
    }

    fn images(&self, id: ContentId) -> Vec<Digest> {
        self.find(id).map(Content::images).unwrap_or_default()
    }

    // ---- coming and going -----------------------------------------------------------------------------------------

    const fn next_id(&mut self) -> ContentId {
        let id = ContentId(self.next);
        self.next += 1;
        id
    }

    /// Adds a content of an image, or another image to a content. Returns whether the content is new.
    pub(super) fn add(
        &mut self,
        spec: &ContentSpec,
        (image, shelf): (Digest, S),
        held: ChunkSet,
        closed: bool,
    ) -> (ContentId, bool) {
        if let Some(id) = self.ids.get(&spec.digest).copied()
            && let Some(content) = self.contents.get_mut(&id)
        {
            content.add_image(image, shelf, closed);
            return (id, false);
        }
        let id = self.next_id();
        let what = (spec.digest, spec.geometry, spec.kind);
        let content = Content::of_image(id, what, (image, shelf), held, closed);
        self.ids.insert(spec.digest, id);
        self.contents.insert(id, content);
        (id, true)
    }

    /// Whether this name and size may be those of an image's recipe. What hosts say that they made may not take the
    /// name of something else that is here: its bytes would be asked of the hosts that have the recipe alone.
    pub(super) fn may_be_recipe(
        &self,
        (digest, geometry): (&Digest, Geometry),
        of_hosts: bool,
    ) -> bool {
        let may = |known: &Content<S>| {
            let mirrored = known.is_mirrored() && !of_hosts;
            (known.is_recipe() || mirrored) && known.geometry() == geometry
        };
        self.by_digest(digest).is_none_or(may)
    }

    /// Adds the bytes of an image's recipe: a content for the image's hosts, and no part of the image.
    pub(super) fn add_recipe(
        &mut self,
        (digest, geometry): (Digest, Geometry),
        (image, shelf): (Digest, S),
        held: ChunkSet,
        closed: bool,
    ) -> (ContentId, bool) {
        let spec = ContentSpec {
            digest,
            geometry,
            kind: ContentKind::Blob,
            places: Vec::new(),
        };
        let (id, new) = self.add(&spec, (image, shelf), held, closed);
        if let Some(content) = self.contents.get_mut(&id).filter(|_| new) {
            content.set_recipe();
        }
        (id, new)
    }

    /// Adds a blob of the mirror, which is no part of an image here.
    pub(super) fn add_mirrored(
        &mut self,
        (digest, geometry): (Digest, Geometry),
        shelf: S,
        held: ChunkSet,
        closed: bool,
    ) -> ContentId {
        if let Some(id) = self.ids.get(&digest) {
            return *id;
        }
        let id = self.next_id();
        let content = Content::of_mirror(id, (digest, geometry), shelf, held, closed);
        self.ids.insert(digest, id);
        self.contents.insert(id, content);
        id
    }

    /// Removes a blob of the mirror. A content of an image stays.
    pub(super) fn remove_mirrored(&mut self, digest: &Digest) -> Option<ContentId> {
        let id = *self.ids.get(digest)?;
        if !self.contents.get(&id)?.is_mirrored() {
            return None;
        }
        self.ids.remove(digest);
        self.contents.remove(&id);
        Some(id)
    }

    /// Takes an image away from its contents, or from this recipe alone. Contents that no other image has are removed
    /// and returned.
    pub(super) fn remove_image(
        &mut self,
        image: &Digest,
        recipe: Option<&Digest>,
    ) -> Vec<(ContentId, Digest)> {
        let mut gone = Vec::new();
        let named = |content: &Content<S>| {
            recipe.is_none_or(|name| content.is_recipe() && content.digest() == *name)
        };
        for content in self.contents.values_mut() {
            if named(content) && content.remove_image(image) {
                gone.push((content.id(), content.digest()));
            }
        }
        for (id, digest) in &gone {
            self.contents.remove(id);
            self.ids.remove(digest);
        }
        gone
    }

    /// Makes a content known to the swarm, with its place among the contents of its image. `of_image` gives the image's
    /// terms; `None` for an image that is forgotten.
    pub(super) fn introduce(
        &mut self,
        id: ContentId,
        order: u32,
        of_image: impl Fn(&Digest) -> Option<Terms>,
    ) -> Vec<Effect<S>> {
        let Some(content) = self.contents.get_mut(&id) else {
            return Vec::new();
        };
        content.set_order(order);
        let event = Event::Content {
            id,
            key: tie_key(&content.digest()),
            size: content.geometry().size(),
            held: content.held().clone(),
            order: place(content, &of_image),
            entitled: entitled(content, of_image),
        };
        let recall = Effect::Recall {
            id,
            content: content.digest(),
            chunks: content.geometry().chunks(),
        };
        vec![Effect::Tell(event), recall]
    }

    // ---- chunks come ----------------------------------------------------------------------------------------------

    /// A chunk from a peer is stored. Peers that sent a false part of it before, as the chunk now shows, are blamed.
    pub(super) fn came(&mut self, of: Transfer, receipt: &Receipt) -> Vec<Effect<S>> {
        let mut out = self.arrived(of, receipt.wire_bytes);
        out.extend(Self::lied(of.id, of.chunk, &receipt.liars));
        out
    }

    /// These peers sent a false part of a chunk, as the chunk now shows.
    pub(super) fn lied(id: ContentId, chunk: ChunkIndex, peers: &[HostKey]) -> Vec<Effect<S>> {
        let mut out = Vec::new();
        for peer in peers.iter().copied() {
            out.push(Effect::CountFalse {
                source: From::Peers,
                chunks: 1,
            });
            out.push(Effect::BlameBytes(Transfer { peer, id, chunk }));
            out.push(Effect::Tell(Event::NotArrived {
                peer,
                id,
                chunk,
                failure: Failure::Bad,
            }));
        }
        out
    }

    /// A chunk from a peer is verified against its link and stored.
    pub(super) fn arrived(&mut self, of: Transfer, wire_bytes: u64) -> Vec<Effect<S>> {
        let Transfer { peer, id, chunk } = of;
        let mut out = vec![
            Effect::Tell(Event::Arrived {
                peer,
                id,
                chunk,
                wire_bytes,
            }),
            Effect::Images {
                images: self.images(id),
                news: ImageNews::OriginIsFine,
            },
        ];
        self.stored(id, chunk, &mut out);
        out
    }

    /// A chunk from a peer didn't come, or was false.
    pub(super) fn not_arrived(
        &mut self,
        of: Transfer,
        failure: Failure,
        receipt: Receipt,
    ) -> Vec<Effect<S>> {
        let Transfer { peer, id, chunk } = of;
        let mut out = Vec::new();
        if let Some(content) = self.find(id) {
            let content = content.digest();
            debug!(%content, chunk = chunk.0, %peer, ?failure, "a chunk didn't come");
        }
        // The size of a mirror's blob is what some client's registry says. A peer that was told another size isn't a
        // liar for it.
        let mirrored = self.find(id).is_some_and(Content::is_mirrored);
        let doubtful = receipt.other_size && mirrored;
        if let Some(signed) = receipt.false_link {
            out.push(Effect::CountFalse {
                source: From::Peers,
                chunks: 1,
            });
            self.suspect(id, *signed, &mut out);
        }
        if let Some(links) = receipt.contradiction {
            let maker = links[0].maker();
            warn!(%maker, chunk = chunk.0, "links that a host signed contradict each other");
            let liar = maker.key();
            out.push(Effect::Convict(links.to_vec()));
            out.push(Effect::Tell(Event::Blamed(liar)));
        }
        if receipt.false_bytes && !doubtful {
            out.push(Effect::CountFalse {
                source: From::Peers,
                chunks: 1,
            });
            out.push(Effect::BlameBytes(of));
        }
        if let Some(error) = receipt.storage_error {
            out.extend(self.not_stored(id, error));
        }
        let failure = if doubtful { Failure::Refused } else { failure };
        out.push(Effect::Tell(Event::NotArrived {
            peer,
            id,
            chunk,
            failure,
        }));
        out
    }

    /// A chunk came from the registry and is stored. `conflict`: the chunk replaces another one.
    pub(super) fn fetched(
        &mut self,
        id: ContentId,
        chunk: ChunkIndex,
        origin_bytes: u64,
        conflict: bool,
    ) -> Vec<Effect<S>> {
        let mut out = vec![Effect::Images {
            images: self.images(id),
            news: ImageNews::FromOrigin(origin_bytes),
        }];
        if conflict {
            // the chunk that was held differs from the registry's chunk
            self.lose(id, chunk, &mut out);
            out.push(Effect::Tell(Event::ChunkLost { id, chunk }));
        }
        out.push(Effect::Tell(Event::OriginChunk {
            id,
            chunk,
            wire_bytes: origin_bytes,
        }));
        self.stored(id, chunk, &mut out);
        out
    }

    /// A chunk is verified against its link and stored.
    fn stored(&mut self, id: ContentId, chunk: ChunkIndex, out: &mut Vec<Effect<S>>) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        let Some(bytes) = content.store(chunk) else {
            return;
        };
        out.push(Effect::Images {
            images: content.images(),
            news: match content.is_recipe() {
                true => ImageNews::OfRecipe(bytes),
                false => ImageNews::Gained(bytes),
            },
        });
        out.push(Effect::Stored);
        out.extend(self.walk_if_whole(id));
    }

    /// The volume of the images, or of the mirror's blobs, took no chunk.
    pub(super) fn not_stored(&self, id: ContentId, error: String) -> Option<Effect<S>> {
        let mirrored = self.find(id)?.is_mirrored();
        Some(Effect::NotStored { mirrored, error })
    }

    /// Notes that a chunk isn't held any more. Returns whether it was.
    fn lose(&mut self, id: ContentId, chunk: ChunkIndex, out: &mut Vec<Effect<S>>) -> bool {
        let Some(content) = self.contents.get_mut(&id) else {
            return false;
        };
        self.cache.forget(content.digest(), chunk);
        let Some(bytes) = content.lose(chunk) else {
            return false;
        };
        if !content.is_recipe() {
            out.push(Effect::Images {
                images: content.images(),
                news: ImageNews::Lost(bytes),
            });
        }
        true
    }

    /// Notes that a chunk isn't held any more. If it was held, it is asked for again.
    fn miss(&mut self, id: ContentId, chunk: ChunkIndex, out: &mut Vec<Effect<S>>) {
        if self.lose(id, chunk, out) {
            out.push(Effect::Tell(Event::ChunkLost { id, chunk }));
        }
    }

    // ---- verifying ------------------------------------------------------------------------------------------------

    /// Once every chunk is there, walks back from the digest: either the content is verified, or a link is false.
    pub(super) fn walk_if_whole(&mut self, id: ContentId) -> Option<Effect<S>> {
        let content = self.contents.get_mut(&id)?;
        content.begin_walk().then(|| Effect::Walk {
            id,
            content: content.digest(),
            chunks: content.geometry().chunks(),
            shelves: content.shelves(),
        })
    }

    /// A walk ended.
    pub(super) fn walked(&mut self, id: ContentId, walked: Walked) -> Vec<Effect<S>> {
        let mut out = Vec::new();
        let Some(content) = self.contents.get_mut(&id) else {
            return out;
        };
        let changed = content.end_walk(walked.closed);
        let (digest, closed) = (content.digest(), content.is_closed());
        let again = changed || !walked.verdicts.is_empty();
        for verdict in &walked.verdicts {
            self.lose(id, verdict.chunk, &mut out);
        }
        if walked.storage_error.is_none() {
            // no host is blamed for chunks that an image lacks after the walk
            for chunk in &walked.lacking {
                self.miss(id, *chunk, &mut out);
            }
        }
        if let Some(first) = walked.verdicts.first() {
            // no host is named before the whole content shows which host answers for the chunk: the registry may be at
            // fault
            let chunks = walked.verdicts.len();
            warn!(content = %digest, chunk = first.chunk.0, chunks, "the chain proved a chunk false; it and what was made with it are fetched again");
            out.push(Effect::CountFalse {
                source: From::Peers,
                chunks,
            });
        }
        for (at, verdict) in walked.verdicts.into_iter().enumerate() {
            let (chunk, maker) = (verdict.chunk, verdict.source.maker);
            debug!(content = %digest, chunk = chunk.0, %maker, "dropped");
            // the first chunk is false; the others were dropped with it and may be true
            if at == 0
                && let Some(statement) = verdict.statement
            {
                let signed = Signed {
                    content: digest,
                    chunk,
                    link: verdict.link,
                    statement,
                };
                self.suspect(id, signed, &mut out);
            }
            out.push(Effect::Tell(Event::ChunkLost { id, chunk }));
        }
        if closed {
            self.judge_suspects(id, &mut out);
            out.push(Effect::Images {
                images: self.images(id),
                news: ImageNews::Closed(digest),
            });
        } else if let Some(error) = walked.storage_error {
            out.extend(self.not_stored(id, error));
        } else if again {
            out.extend(self.walk_if_whole(id));
        }
        out
    }

    /// Chunks of an image aren't held any more, because their bytes on disk changed or can't be read. Another image
    /// here may have them; otherwise they are fetched again. The image is present again when it is whole.
    pub(super) fn rotted(
        &mut self,
        image: Digest,
        digest: Digest,
        chunks: &[ChunkIndex],
    ) -> Vec<Effect<S>> {
        error!(%image, content = %digest, chunks = ?chunks, "bytes on disk changed since they were verified, or can't be read; they are fetched again");
        let mut out = vec![Effect::CountFalse {
            source: From::Local,
            chunks: chunks.len(),
        }];
        for chunk in chunks {
            self.cache.forget(digest, *chunk);
        }
        let Some(id) = self.ids.get(&digest).copied() else {
            return out;
        };
        let of_image = |content: &&mut Content<S>| content.is_of(&image);
        let Some(content) = self.contents.get_mut(&id).filter(of_image) else {
            return out;
        };
        content.open();
        let whole = content.held().is_full();
        out.push(Effect::Images {
            images: vec![image],
            news: ImageNews::Opened(digest),
        });
        if whole {
            // chunks that no other image has are asked for after this
            out.extend(self.walk_if_whole(id));
            return out;
        }
        for chunk in chunks {
            self.miss(id, *chunk, &mut out);
        }
        out
    }

    // ---- what is false --------------------------------------------------------------------------------------------

    /// A signed link is false. No more links of its run are taken. The link is judged when the content is verified.
    fn suspect(&mut self, id: ContentId, signed: Signed, out: &mut Vec<Effect<S>>) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        let (digest, maker) = (content.digest(), signed.maker().key());
        let refused = content.suspect(signed);
        let closed = content.is_closed();
        if refused {
            out.extend(self.drop_made(&digest, maker, ChunkIndex(0)));
        }
        if closed {
            self.judge_suspects(id, out);
        }
    }

    /// The true states of a content are known. The hosts that answer for a false signature are named, with the
    /// evidence.
    fn judge_suspects(&mut self, id: ContentId, out: &mut Vec<Effect<S>>) {
        let Some(content) = self.contents.get_mut(&id) else {
            return;
        };
        let digest = content.digest();
        for signed in content.judge() {
            let (maker, chunk) = (signed.maker().clone(), signed.chunk);
            let vouched = signed.statement.run.is_vouched();
            if maker.key() == self.me {
                continue;
            }
            let liar = maker.key();
            out.push(Effect::Convict(vec![signed]));
            // a false link that the maker made may be the registry's fault; a false link that it vouched for isn't
            if vouched {
                warn!(content = %digest, chunk = chunk.0, %maker, "a host vouched for a link that is false");
                out.push(Effect::Tell(Event::Blamed(liar)));
            } else {
                debug!(content = %digest, chunk = chunk.0, %maker, "what was made of the registry's bytes is false");
            }
        }
    }

    /// Drops the links that another host made of a content, from a chunk on: that host took them back, or its links are
    /// false too often.
    pub(super) fn drop_made(
        &self,
        digest: &Digest,
        maker: HostKey,
        from: ChunkIndex,
    ) -> Option<Effect<S>> {
        let content = self.by_digest(digest)?;
        if maker == self.me || content.is_closed() {
            return None;
        }
        Some(Effect::Drop {
            from: Transfer {
                peer: maker,
                id: content.id(),
                chunk: from,
            },
            content: *digest,
            shelves: content.shelves(),
        })
    }

    /// Chunks of a content were dropped from the disk, or couldn't be.
    pub(super) fn dropped(
        &mut self,
        id: ContentId,
        result: Result<Vec<ChunkIndex>, String>,
    ) -> Vec<Effect<S>> {
        let mut out = Vec::new();
        match result {
            Ok(chunks) => {
                for chunk in chunks {
                    self.miss(id, chunk, &mut out);
                }
            }
            Err(error) => out.extend(self.not_stored(id, error)),
        }
        out
    }

    /// The bytes that a fetch of this host brought don't end in the digest. The fetch starts again at the beginning.
    pub(super) fn fetch_doubted(&mut self, id: ContentId) -> Vec<Effect<S>> {
        if let Some(content) = self.contents.get_mut(&id) {
            content.doubt();
            warn!(content = %content.digest(), "what was fetched from the registry doesn't end in the digest; fetching it again from the beginning");
        }
        vec![Effect::CountFalse {
            source: From::Origin,
            chunks: 1,
        }]
    }

    /// A fetch brought the content to its end: the links that this host made are true, or were made anew.
    pub(super) fn fetch_done(&mut self, id: ContentId) {
        if let Some(content) = self.contents.get_mut(&id) {
            content.end_doubt();
        }
    }

    /// The second download was false too: none of the links that this host made of the content is kept.
    pub(super) fn fetch_bad(&mut self, id: ContentId) {
        if let Some(content) = self.contents.get_mut(&id) {
            content.doubt();
        }
    }

    /// The fetch is over. If its links are still in doubt, they are dropped.
    pub(super) fn retract_doubted(&mut self, id: ContentId) -> Option<Effect<S>> {
        let content = self.contents.get_mut(&id)?;
        content.end_doubt().then(|| Effect::Retract {
            id,
            content: content.digest(),
            shelves: content.shelves(),
        })
    }

    /// This host dropped the links that it made of a content from a chunk on: the registry's bytes were false, or an
    /// earlier link was.
    pub(super) fn retracted(
        &mut self,
        now: Instant,
        id: ContentId,
        from: ChunkIndex,
        result: Result<Vec<ChunkIndex>, String>,
    ) -> Vec<Effect<S>> {
        let Some(content) = self.contents.get_mut(&id) else {
            return Vec::new();
        };
        content.dropped(now);
        let content = content.digest();
        warn!(%content, from_chunk = from.0, "the registry's bytes were false, or what they were chained to; taking back what was made of them");
        let mut out = vec![Effect::TakeBack { content, from }, Effect::Report];
        out.append(&mut self.dropped(id, result));
        out
    }
}

/// The key by which every host breaks ties between contents.
fn tie_key(digest: &Digest) -> u64 {
    digest
        .as_bytes()
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// What the swarm is told of an image's contents, beside what they are.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// The hosts that may have the image.
    pub(super) entitled: Entitled,
    /// The image's place among those that are to be finished on this host.
    pub(super) rank: u16,
}

/// The order of a content for the swarm: that of the first image that it is part of. What only the mirror wants is
/// outside the order of images.
fn place<S: Proving>(content: &Content<S>, of_image: impl Fn(&Digest) -> Option<Terms>) -> u32 {
    let ranks = content
        .images()
        .into_iter()
        .filter_map(|image| of_image(&image));
    let rank = ranks.map(|terms| terms.rank).min();
    match content.is_mirrored() {
        true => content.order(),
        false => order_of(rank.unwrap_or(0).saturating_add(1), content.order()),
    }
}

/// The hosts that may have a content: the hosts of all images that it is part of. Blobs of the mirror are for all
/// hosts.
fn entitled<S: Proving>(
    content: &Content<S>,
    of_image: impl Fn(&Digest) -> Option<Terms>,
) -> Entitled {
    let images = content.images();
    if images.is_empty() {
        return None;
    }
    // no host may have a content of a forgotten image
    let of_images = images.iter().filter_map(of_image);
    let of_images: Option<Vec<_>> = of_images.map(|terms| terms.entitled).collect();
    match &of_images?[..] {
        [one] => Some(one.clone()),
        all => {
            let hosts = all.iter().flat_map(|hosts| hosts.iter().copied());
            Some(Arc::new(hosts.collect()))
        }
    }
}

#[cfg(test)]
mod tests;
