//! Fetches by a recipe: which parts of the blob the registry is asked for.

use std::ops::Range;

use apple_lz4::MAX_BLOCK_BYTES;
use proto::{ChunkRange, message::RecipeContent, recipe::ContentRecipe};

use super::*;
use crate::store::{
    Stage,
    tests::{Sample, begin_by, recipe, recipe_with, sample_of},
};

const CHUNKS: u32 = 9;
/// The chunks that no disk of the host has.
const WANTED: [u32; 2] = [1, 5];

/// A stage by a recipe that lacks two chunks of a layer that doesn't pack.
struct Staged {
    stage: Arc<Stage>,
    layer: Digest,
    raw: Vec<u8>,
    blob: Vec<u8>,
    kind: ContentKind,
    /// The chunks to fetch.
    range: Option<ChunkRange>,
    /// The true recipe of the layer.
    true_one: Arc<ContentRecipe>,
    _home: TempDir,
}

/// The layer's bytes.
fn layer() -> (Vec<u8>, Sample) {
    let raw = noise(5, (8 << 20) + 300_000);
    let sample = sample_of(3, &raw, 5_000, None);
    (raw, sample)
}

impl Staged {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// By a recipe that somebody changed.
    fn with(change: impl Fn(&mut RecipeContent)) -> Self {
        let (raw, sample) = layer();
        let layer = Digest::of(&raw);
        let true_one = recipe(&sample).recipe.content(&layer).unwrap().clone();
        let home = tempfile::tempdir().unwrap();
        let by = recipe_with(&sample, layer, change);
        let (stage, _) = begin_by(&crate::store::tests::open(&home), &sample, &by);
        let specs = sample.layout.contents().into_iter();
        let spec = specs.into_iter().find(|spec| spec.digest == layer).unwrap();
        let staged = Self {
            stage,
            layer,
            blob: apple_lz4::encode(&raw),
            raw,
            kind: spec.kind,
            range: None,
            true_one,
            _home: home,
        };
        for chunk in (0..CHUNKS).filter(|chunk| !WANTED.contains(chunk)) {
            staged.take(chunk);
        }
        staged
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        self.raw.chunks(1 << 20).nth(chunk as usize).unwrap()
    }

    /// Another image has this chunk.
    fn take(&self, chunk: u32) {
        let me: HostId = "mini-1".parse().unwrap();
        let source = LinkSource {
            sender: me.key(),
            maker: me.key(),
        };
        let chunk = ChunkIndex(chunk);
        let given = self.stage.known(self.layer).unwrap().recipe_link(chunk);
        let link = given.unwrap();
        let bytes = self.chunk(chunk.0);
        // where the recipe is false, nothing that is here fits
        let geometry = Geometry::new(self.raw.len() as u64).unwrap();
        if link.holds(geometry, chunk, bytes) {
            let written = self
                .stage
                .write(self.layer, chunk, bytes, link, source, (&me, None));
            written.unwrap();
        }
    }

    async fn fetch(&self, registry: &Registry) -> Fetched {
        let (inbox, mut heard) = mpsc::channel(1);
        let (until, access) = (
            watch::Sender::new(u32::MAX),
            watch::Sender::new(Access::default()),
        );
        let mut job = Job {
            id: ContentId(7),
            content: self.layer,
            geometry: Geometry::new(self.raw.len() as u64).unwrap(),
            kind: self.kind,
            range: self.range,
            shelves: vec![Shelf::Stage(self.stage.clone())],
            reference: "registry.example/org/image:1".into(),
            access: access.subscribe(),
            me: "mini-1".parse().unwrap(),
            notary: None,
            cache: Arc::new(Cache::default()),
            unfit: Arc::default(),
            until: until.subscribe(),
            moved: Arc::default(),
            doubted: false,
            inbox,
        };
        let listening = async {
            let mut told = Vec::new();
            while let Some((_, news)) = heard.recv().await {
                told.push(news);
            }
            told
        };
        let fetching = async move { run(registry, &mut job).await };
        tokio::join!(fetching, listening)
    }

    /// Asserts that every chunk is here and true.
    fn assert_whole(&self) {
        self.stage.walk(self.layer).unwrap();
        assert!(self.stage.is_closed(self.layer));
        for at in 0..CHUNKS {
            let held = self.stage.read(self.layer, ChunkIndex(at)).unwrap();
            assert!(held.unwrap().bytes == self.chunk(at), "chunk {at}");
        }
    }

    /// Where the block with the chunk's last byte begins in the blob.
    fn place(&self, chunk: u32) -> u64 {
        let link = self.true_one.link(ChunkIndex(chunk)).unwrap();
        link.resume.unwrap().blob_offset
    }

    /// The part that has this chunk and little else.
    fn part(&self, chunk: u32) -> Range<u64> {
        self.place(chunk - 1)..self.place(chunk) + MAX_BLOCK_BYTES as u64
    }

    fn registry(&self, script: impl IntoIterator<Item = Act>) -> Registry {
        Registry::new(&self.blob, script)
    }
}

/// Changes the recipe's place behind a chunk.
fn misplace(chunk: usize, to: u64) -> impl Fn(&mut RecipeContent) {
    move |content| content.resumes[12 * chunk..][..8].copy_from_slice(&to.to_le_bytes())
}

#[tokio::test]
async fn the_registry_is_asked_for_the_wanted_chunks_and_little_more() {
    let staged = Staged::new();
    let registry = staged.registry([]);
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!((end, chunks(&told)), (FetchEnd::Done, WANTED.to_vec()));
    assert_eq!(registry.parts(), WANTED.map(|chunk| staged.part(chunk)));
    let asked: u64 = registry
        .parts()
        .iter()
        .map(|part| part.end - part.start)
        .sum();
    let spans: u64 = WANTED
        .iter()
        .map(|chunk| staged.place(*chunk) - staged.place(chunk - 1))
        .sum();
    assert!(100 * asked <= 115 * spans, "{asked} of {spans}");
    staged.assert_whole();
}

#[tokio::test]
async fn a_false_place_that_ends_a_part_too_early_costs_another_part() {
    let (early, place) = {
        let true_one = Staged::new();
        (true_one.place(0) + 200_000, true_one.place(0))
    };
    let staged = Staged::with(misplace(1, early));
    let registry = staged.registry([]);
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!((end, chunks(&told)), (FetchEnd::Done, WANTED.to_vec()));
    let cut = early + MAX_BLOCK_BYTES as u64;
    let size = staged.blob.len() as u64;
    // what follows isn't believed either: such a part has no end, and is left behind the wanted chunk
    assert_eq!(
        registry.parts(),
        [place..cut, cut..size, staged.place(4)..size]
    );
    assert!(!told.contains(&News::Doubted));
    staged.assert_whole();
}

#[tokio::test]
async fn a_place_that_cannot_be_true_ends_no_part() {
    for false_place in [0, 1, u64::MAX - 7] {
        let staged = Staged::with(misplace(1, false_place));
        let registry = staged.registry([]);
        let (end, told) = staged.fetch(&registry).await;
        assert_eq!((end, chunks(&told)), (FetchEnd::Done, WANTED.to_vec()));
        let size = staged.blob.len() as u64;
        let first = staged.place(0)..size;
        assert_eq!(registry.parts(), [first, staged.part(5)], "{false_place}");
        staged.assert_whole();
    }
}

#[tokio::test]
async fn a_false_place_to_begin_at_costs_a_second_download() {
    let staged = Staged::with(misplace(0, 77));
    let registry = staged.registry([]);
    let (end, _) = staged.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked(), [77, 0]);
    staged.assert_whole();
}

#[tokio::test]
async fn a_part_that_breaks_off_is_gone_on_with_to_its_end() {
    let staged = Staged::new();
    let registry = staged.registry([Act::Cut(300_000)]);
    let (end, _) = staged.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    let (first, second) = (staged.part(1), staged.part(5));
    let rest = first.start + 300_000..first.end;
    assert_eq!(registry.parts(), [first, rest, second]);
    staged.assert_whole();
}

#[tokio::test]
async fn a_registry_that_gives_no_ends_is_left_behind_the_wanted_chunk() {
    let staged = Staged::new();
    let mut registry = staged.registry([]);
    registry.no_ends = true;
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!((end, chunks(&told)), (FetchEnd::Done, WANTED.to_vec()));
    assert_eq!(registry.parts(), WANTED.map(|chunk| staged.part(chunk)));
    staged.assert_whole();
}

#[tokio::test]
async fn a_registry_that_gives_the_whole_blob_is_read_to_its_end_once() {
    let staged = Staged::new();
    let mut registry = staged.registry([]);
    registry.no_parts = true;
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    assert_eq!(registry.asked().len(), 1);
    assert!(WANTED.iter().all(|chunk| chunks(&told).contains(chunk)));
    staged.assert_whole();
}

#[tokio::test]
async fn a_recipe_that_is_left_ends_no_part_any_more() {
    // the state behind the first wanted chunk
    let staged = Staged::with(|content| content.states[32] ^= 1);
    let registry = staged.registry([]);
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Done);
    let against = |news: &News| {
        matches!(
            news,
            News::AgainstRecipe {
                chunk: ChunkIndex(1),
                ..
            }
        )
    };
    assert!(told.iter().any(against), "{told:?}");
    let last = registry.parts().pop().unwrap();
    assert_eq!(last.end, staged.blob.len() as u64);
    staged.assert_whole();
}

#[tokio::test]
async fn of_a_range_the_registry_is_asked_for_the_wanted_chunks_in_it() {
    for (from, until, wanted) in [(0, 3, 1), (2, 9, 5)] {
        let mut staged = Staged::new();
        staged.range = ChunkRange::new(from, until);
        let registry = staged.registry([]);
        let (end, told) = staged.fetch(&registry).await;
        assert_eq!((end, chunks(&told)), (FetchEnd::Done, vec![wanted]));
        assert_eq!(registry.parts(), [staged.part(wanted)]);
    }
}

#[tokio::test]
async fn a_range_is_given_up_where_the_recipe_names_no_place_to_begin_at() {
    let mut staged = Staged::with(|content| content.resumes.clear());
    staged.range = ChunkRange::new(2, 9);
    let registry = staged.registry([]);
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!((end, chunks(&told)), (FetchEnd::Unwanted, Vec::new()));
    assert!(registry.parts().is_empty());
}

#[tokio::test]
async fn a_range_whose_bytes_are_false_is_given_up() {
    // the place before the range's wanted chunk is another block's
    let mut staged = Staged::with(misplace(4, 77));
    staged.range = ChunkRange::new(2, 9);
    let registry = staged.registry([]);
    let (end, told) = staged.fetch(&registry).await;
    assert_eq!(end, FetchEnd::Unwanted);
    assert!(!told.contains(&News::Doubted), "{told:?}");
}
