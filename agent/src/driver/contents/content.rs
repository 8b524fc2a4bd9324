//! One content of this host: where it lies, which of its chunks are held, and how far it is verified. It neither reads
//! nor writes the disk.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{
    ChunkIndex, ChunkSet, Digest, Geometry, Signed, State, image::ContentKind, statement::judge,
};
use swarm::event::ContentId;

use crate::{shelf::Shelf, suspects::Suspects};

/// For this long, this host doesn't take back from others the links that it made and dropped. By then the others know
/// that the links were dropped.
const DROPPED_WITHIN: Duration = Duration::from_secs(10);

/// The questions that this part asks a shelf. It is a trait so that tests can make up shelves.
pub(in crate::driver) trait Proving: Clone {
    /// Whether the content is verified there: its chain runs from the initial state to the digest.
    fn is_closed(&self, content: Digest) -> bool;

    /// The state of the hash before a chunk that is held there.
    fn state_before(&self, content: Digest, chunk: ChunkIndex) -> Option<State>;
}

impl Proving for Shelf {
    fn is_closed(&self, content: Digest) -> bool {
        self.is_closed(content)
    }

    fn state_before(&self, content: Digest, chunk: ChunkIndex) -> Option<State> {
        Some(self.link(content, chunk)?.0.before)
    }
}

/// The owner of a content.
#[derive(Debug)]
enum Home<S> {
    /// The content is part of these images. Each image has its own copy of the bytes.
    Images(Vec<(Digest, S)>),
    /// The content is a blob of the mirror, and no part of an image here.
    Mirror(S),
}

/// How far a content is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// Something is missing, or no walk has looked yet.
    Open,
    /// The chain is being walked back from the digest.
    Walking,
    /// The chain runs from the initial state to the digest.
    Closed,
}

/// A content of one or more images, or of the mirror.
#[derive(Debug)]
pub(in crate::driver) struct Content<S = Shelf> {
    id: ContentId,
    digest: Digest,
    geometry: Geometry,
    kind: ContentKind,
    home: Home<S>,
    /// The bytes are an image's recipe, and no part of the image.
    recipe: bool,
    /// Contents of lower order are wanted first.
    order: u32,
    /// The chunks that are held here, as the swarm was told.
    held: ChunkSet,
    proof: Proof,
    /// The links that a fetch of this host made ended in another state than the digest, and that isn't sorted out yet.
    doubted: bool,
    /// When this host dropped some of the links that it had made.
    dropped_at: Option<Instant>,
    /// Signed links that are false. They are judged when the content is verified.
    suspects: Arc<Suspects>,
}

/// One chunk of a content, on its way to a peer or from a peer.
#[derive(Clone, Debug)]
pub(in crate::driver) struct Chunk<S = Shelf> {
    pub(in crate::driver) content: Digest,
    pub(in crate::driver) geometry: Geometry,
    pub(in crate::driver) index: ChunkIndex,
    /// The shelves where the chunk's bytes are or shall be.
    pub(in crate::driver) shelves: Vec<S>,
    /// This host dropped its links of the content a moment ago, and others may still send them.
    pub(in crate::driver) dropped_lately: bool,
    /// The links of the content that were proved false.
    pub(in crate::driver) suspects: Arc<Suspects>,
}

impl<S: Proving> Content<S> {
    fn new(
        id: ContentId,
        (digest, geometry, kind): (Digest, Geometry, ContentKind),
        home: Home<S>,
        held: ChunkSet,
        closed: bool,
    ) -> Self {
        Self {
            id,
            digest,
            geometry,
            kind,
            home,
            recipe: false,
            order: 0,
            held,
            proof: if closed { Proof::Closed } else { Proof::Open },
            doubted: false,
            dropped_at: None,
            suspects: Arc::default(),
        }
    }

    /// A content of an image. `held` are the chunks in its shelf.
    pub(super) fn of_image(
        id: ContentId,
        what: (Digest, Geometry, ContentKind),
        (image, shelf): (Digest, S),
        held: ChunkSet,
        closed: bool,
    ) -> Self {
        Self::new(id, what, Home::Images(vec![(image, shelf)]), held, closed)
    }

    /// A blob of the mirror. `held` are its chunks.
    pub(super) fn of_mirror(
        id: ContentId,
        (digest, geometry): (Digest, Geometry),
        shelf: S,
        held: ChunkSet,
        closed: bool,
    ) -> Self {
        let what = (digest, geometry, ContentKind::Blob);
        Self::new(id, what, Home::Mirror(shelf), held, closed)
    }

    // ---- what it is -----------------------------------------------------------------------------------------------

    pub(in crate::driver) const fn id(&self) -> ContentId {
        self.id
    }

    pub(in crate::driver) const fn digest(&self) -> Digest {
        self.digest
    }

    pub(in crate::driver) const fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(in crate::driver) const fn kind(&self) -> ContentKind {
        self.kind
    }

    pub(in crate::driver) const fn order(&self) -> u32 {
        self.order
    }

    /// Whether the bytes are an image's recipe, and no part of the image.
    pub(super) const fn is_recipe(&self) -> bool {
        self.recipe
    }

    pub(super) const fn set_recipe(&mut self) {
        self.recipe = true;
    }

    pub(super) const fn set_order(&mut self, order: u32) {
        self.order = order;
    }

    // ---- where it lies --------------------------------------------------------------------------------------------

    /// The images that the content is part of; none for a blob of the mirror.
    pub(in crate::driver) fn images(&self) -> Vec<Digest> {
        match &self.home {
            Home::Images(images) => images.iter().map(|(image, _)| *image).collect(),
            Home::Mirror(_) => Vec::new(),
        }
    }

    pub(super) fn is_of(&self, image: &Digest) -> bool {
        match &self.home {
            Home::Images(images) => images.iter().any(|(other, _)| other == image),
            Home::Mirror(_) => false,
        }
    }

    /// Whether the content is a blob of the mirror, and no part of an image here.
    pub(in crate::driver) const fn is_mirrored(&self) -> bool {
        matches!(self.home, Home::Mirror(_))
    }

    /// The shelves where the content's bytes are or shall be.
    pub(in crate::driver) fn shelves(&self) -> Vec<S> {
        match &self.home {
            Home::Images(images) => images.iter().map(|(_, shelf)| shelf.clone()).collect(),
            Home::Mirror(shelf) => vec![shelf.clone()],
        }
    }

    /// The content is part of another image too. The next walk first copies to the new shelf the chunks that the others
    /// hold. So the content counts as verified only if it is verified on the new shelf too. A blob of the mirror stays
    /// one.
    pub(super) fn add_image(&mut self, image: Digest, shelf: S, closed: bool) {
        if self.is_of(&image) {
            return;
        }
        let Home::Images(images) = &mut self.home else {
            return;
        };
        images.push((image, shelf));
        if !closed {
            self.open();
        }
    }

    /// Removes an image that isn't here any more. Returns whether the content is left without an image.
    pub(super) fn remove_image(&mut self, image: &Digest) -> bool {
        let Home::Images(images) = &mut self.home else {
            return false;
        };
        let before = images.len();
        images.retain(|(other, _)| other != image);
        before > 0 && images.is_empty()
    }

    // ---- what is held ---------------------------------------------------------------------------------------------

    pub(in crate::driver) const fn held(&self) -> &ChunkSet {
        &self.held
    }

    /// Notes that a chunk was stored. Returns its bytes, if it wasn't held before.
    pub(super) fn store(&mut self, chunk: ChunkIndex) -> Option<u64> {
        let new = self.held.insert(chunk);
        new.then(|| self.geometry.len(chunk).into())
    }

    /// Notes that a chunk isn't held any more. Returns its bytes, if it was held.
    pub(super) fn lose(&mut self, chunk: ChunkIndex) -> Option<u64> {
        let was_held = self.held.remove(chunk);
        was_held.then(|| self.geometry.len(chunk).into())
    }

    // ---- how far it is verified -----------------------------------------------------------------------------------

    /// Whether the content is verified: its chain runs from the initial state to the digest.
    pub(in crate::driver) fn is_closed(&self) -> bool {
        self.proof == Proof::Closed
    }

    /// The content isn't verified any more. A walk that is under way goes on.
    pub(super) fn open(&mut self) {
        if self.proof == Proof::Closed {
            self.proof = Proof::Open;
        }
    }

    /// Begins a walk, if every chunk is held and the content isn't verified. Returns whether the caller has to start
    /// the walk.
    pub(super) fn begin_walk(&mut self) -> bool {
        let due = self.proof == Proof::Open && self.held.is_full();
        if due {
            self.proof = Proof::Walking;
        }
        due
    }

    /// A walk ended, and found the content verified or not. Returns whether the disk changed since the walk looked. The
    /// next walk finds chunks that rotted since, or an image that came meanwhile.
    pub(super) fn end_walk(&mut self, closed: bool) -> bool {
        let closed_now = self
            .shelves()
            .iter()
            .all(|shelf| shelf.is_closed(self.digest));
        self.proof = if closed && closed_now && self.held.is_full() {
            Proof::Closed
        } else {
            Proof::Open
        };
        closed && !closed_now
    }

    // ---- what is false --------------------------------------------------------------------------------------------

    /// The links that a fetch of this host made may be false.
    pub(super) const fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Ends the doubt about a fetch's links. Returns whether there was one.
    pub(super) fn end_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubted)
    }

    /// This host dropped the links that it had made.
    pub(super) const fn dropped(&mut self, now: Instant) {
        self.doubted = false;
        self.dropped_at = Some(now);
    }

    /// Whether this host dropped its links a moment ago: others may still send them.
    fn dropped_lately(&self, now: Instant) -> bool {
        let at = self.dropped_at;
        at.is_some_and(|at| now.saturating_duration_since(at) < DROPPED_WITHIN)
    }

    /// One of its chunks, to be moved now.
    pub(in crate::driver) fn chunk(&self, index: ChunkIndex, now: Instant) -> Chunk<S> {
        Chunk {
            content: self.digest,
            geometry: self.geometry,
            index,
            shelves: self.shelves(),
            dropped_lately: self.dropped_lately(now),
            suspects: self.suspects.clone(),
        }
    }

    /// Notes a signed link that is false. Returns whether no more links of its maker are taken from now on.
    pub(super) fn suspect(&mut self, signed: Signed) -> bool {
        Arc::make_mut(&mut self.suspects).note(signed)
    }

    /// Judges the suspects by the true states, which are known once the content is verified. Returns the links for
    /// which their makers answer.
    pub(super) fn judge(&mut self) -> BTreeSet<Signed> {
        let suspects = self.suspects.take();
        let (digest, last) = (self.digest, self.geometry.chunks());
        let Some(shelf) = self.shelves().into_iter().next() else {
            return BTreeSet::new();
        };
        let truth = |chunk: ChunkIndex| {
            if chunk.0 == last {
                return Some(State::from(digest));
            }
            shelf.state_before(digest, chunk)
        };
        let guilty = suspects.iter().filter_map(|signed| judge(signed, &truth));
        guilty.collect()
    }
}
