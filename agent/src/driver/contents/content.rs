//! One content of this host: where it lies, which of its chunks are held, and how far it is verified.

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

/// What this host dropped of its own making isn't taken from others again for this long. The others know better by
/// then.
const DROPPED_WITHIN: Duration = Duration::from_secs(10);

/// What this part asks of a shelf, so that tests can make up shelves.
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

/// Whose content it is.
#[derive(Debug)]
enum Home<S> {
    /// It is part of these images. Each has its bytes in a place of its own.
    Images(Vec<(Digest, S)>),
    /// It is a blob of the mirror and no part of an image here.
    Mirror(S),
}

/// How far a content is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// Something is missing, or nobody has looked yet.
    Open,
    /// Its chain is being walked back from the digest.
    Walking,
    /// Its chain runs from the initial state to the digest.
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
    /// Contents of lower order are wanted first.
    order: u32,
    /// The chunks that are held here, as the swarm knows them.
    held: ChunkSet,
    proof: Proof,
    /// What a fetch of this host made of it ended in something else than the digest, and that isn't sorted out yet.
    doubted: bool,
    /// When this host dropped some of what it had made.
    dropped_at: Option<Instant>,
    /// Signed links that are false. They are judged when the content is verified.
    suspects: Arc<Suspects>,
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
            order: 0,
            held,
            proof: if closed { Proof::Closed } else { Proof::Open },
            doubted: false,
            dropped_at: None,
            suspects: Arc::default(),
        }
    }

    /// A content of an image, with the chunks that are held in its shelf.
    pub(super) fn of_image(
        id: ContentId,
        what: (Digest, Geometry, ContentKind),
        (image, shelf): (Digest, S),
        held: ChunkSet,
        closed: bool,
    ) -> Self {
        Self::new(id, what, Home::Images(vec![(image, shelf)]), held, closed)
    }

    /// A blob of the mirror, with the chunks that are held of it.
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

    pub(super) const fn set_order(&mut self, order: u32) {
        self.order = order;
    }

    // ---- where it lies --------------------------------------------------------------------------------------------

    /// The images that it is part of; none for a blob of the mirror.
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

    /// Whether it is a blob of the mirror and no part of an image here.
    pub(in crate::driver) const fn is_mirrored(&self) -> bool {
        matches!(self.home, Home::Mirror(_))
    }

    /// Where its bytes are or shall be.
    pub(in crate::driver) fn shelves(&self) -> Vec<S> {
        match &self.home {
            Home::Images(images) => images.iter().map(|(_, shelf)| shelf.clone()).collect(),
            Home::Mirror(shelf) => vec![shelf.clone()],
        }
    }

    /// It is part of another image too. What the others hold is copied to the new shelf before the next walk, so it is
    /// verified only where it is verified there too. A blob of the mirror stays one.
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

    /// An image isn't here any more. Whether no image is left that it is part of.
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

    /// A chunk was stored: its bytes, where it wasn't held before.
    pub(super) fn store(&mut self, chunk: ChunkIndex) -> Option<u64> {
        let new = self.held.insert(chunk);
        new.then(|| self.geometry.len(chunk).into())
    }

    /// A chunk isn't held any more: its bytes, where it was.
    pub(super) fn lose(&mut self, chunk: ChunkIndex) -> Option<u64> {
        let was_held = self.held.remove(chunk);
        was_held.then(|| self.geometry.len(chunk).into())
    }

    // ---- how far it is verified -----------------------------------------------------------------------------------

    /// Whether it is verified: its chain runs from the initial state to the digest.
    pub(in crate::driver) fn is_closed(&self) -> bool {
        self.proof == Proof::Closed
    }

    /// It isn't verified any more. A walk that is under way goes on.
    pub(super) fn open(&mut self) {
        if self.proof == Proof::Closed {
            self.proof = Proof::Open;
        }
    }

    /// Begins a walk, where every chunk is held and the content isn't verified. Whether the caller has to start it.
    pub(super) fn begin_walk(&mut self) -> bool {
        let due = self.proof == Proof::Open && self.held.is_full();
        if due {
            self.proof = Proof::Walking;
        }
        due
    }

    /// A walk ended, and found the content verified or not. Whether the disk changed since the walk looked: what rotted
    /// since, or lies in an image that came meanwhile, is for the next walk.
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

    /// What a fetch of this host made may be false.
    pub(super) const fn doubt(&mut self) {
        self.doubted = true;
    }

    /// Whether what a fetch made was in doubt until now.
    pub(super) fn end_doubt(&mut self) -> bool {
        std::mem::take(&mut self.doubted)
    }

    /// This host dropped what it had made.
    pub(super) const fn dropped(&mut self, now: Instant) {
        self.doubted = false;
        self.dropped_at = Some(now);
    }

    /// Whether this host dropped what it had made a moment ago: others may still send it.
    pub(in crate::driver) fn dropped_lately(&self, now: Instant) -> bool {
        let at = self.dropped_at;
        at.is_some_and(|at| now.saturating_duration_since(at) < DROPPED_WITHIN)
    }

    pub(in crate::driver) fn suspects(&self) -> Arc<Suspects> {
        self.suspects.clone()
    }

    /// Notes a signed link that is false. Whether nothing that its maker made is taken from now on.
    pub(super) fn suspect(&mut self, signed: Signed) -> bool {
        Arc::make_mut(&mut self.suspects).note(signed)
    }

    /// Judges the suspects by the true states, which are known once the content is verified: the links for which their
    /// makers answer.
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
