//! Tests of blobs that a recipe proves: which bytes leave, and what a false recipe costs.

use std::sync::Arc;

use proto::{ChunkIndex, ContentRecipe, Source, ledger::RejectLinkError, recipe::Maker};

use super::{
    tests::{bytes, chunks, given, me, open, source},
    *,
};
use crate::store::WriteError;

const NAME: &[u8] = b"the whole recipe";
const REPOSITORY: &str = "one.example/org/image";

fn peer() -> HostId {
    "mac-2".parse().unwrap()
}

/// The true recipe of a blob.
fn recipe(content: &[u8]) -> Arc<ContentRecipe> {
    let geometry = Geometry::new(content.len() as u64).unwrap();
    let mut maker = Maker::new(Digest::of(content), geometry);
    maker.take(content).unwrap();
    Arc::new(maker.finish().unwrap())
}

struct World {
    _dir: tempfile::TempDir,
    blobs: Blobs,
    content: Vec<u8>,
}

impl World {
    fn new(size: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            blobs: open(dir.path(), 1 << 30),
            content: bytes(9, size),
            _dir: dir,
        }
    }

    fn begin(&self) -> Reading {
        let size = self.content.len() as u64;
        let digest = Digest::of(&self.content);
        self.blobs.begin_by(REPOSITORY, digest, size).unwrap()
    }

    /// A chunk comes.
    fn write(&self, blob: &Blob, at: usize, from: Source) -> Result<(), WriteError> {
        let (chunk, bytes, link) = chunks(&self.content)[at];
        let entered = blob.write(chunk, bytes, link, from, (&me(), None));
        entered.map(|_| ())
    }
}

#[test]
fn what_peers_sent_leaves_at_once_if_the_recipe_proves_it() {
    let world = World::new((3 << 20) + 9);
    let reading = world.begin();
    let blob = &reading.blob;
    let of_peer = source(&peer());
    world.write(blob, 0, of_peer).unwrap();
    assert_eq!(blob.ready(0), 0);
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &recipe(&world.content));
    assert_eq!(blob.recipe(), Some(Digest::of(NAME)));
    // also what came before it
    assert_eq!(blob.ready(0), 1 << 20);
    world.write(blob, 2, of_peer).unwrap();
    assert_eq!(blob.ready(0), 1 << 20);
    world.write(blob, 1, source(&me())).unwrap();
    assert_eq!(blob.ready(0), 3 << 20);
    let file = blob.file().unwrap();
    let given = given(blob, &file, 3 << 20);
    assert_eq!(given.as_deref(), Some(&world.content[..3 << 20]));
    world.write(blob, 3, of_peer).unwrap();
    // the last chunk waits for the chain
    assert_eq!(blob.ready(3 << 20), 3 << 20);
    blob.walk().unwrap();
    assert!(blob.is_whole() && !reading.is_misled());
}

#[test]
fn a_registry_that_has_not_shown_the_blob_has_only_what_it_gave_itself() {
    let world = World::new(4 << 20);
    let mut reading = world.begin();
    reading.limit(Some("one.example".into()));
    let blob = reading.blob.clone();
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &recipe(&world.content));
    blob.comes_from(Some("one.example"));
    for (at, from, ready) in [(0, me(), 1 << 20), (1, peer(), 1 << 20), (2, me(), 1 << 20)] {
        world.write(&blob, at, source(&from)).unwrap();
        assert_eq!(reading.ready(0), ready);
    }
    assert_eq!(blob.ready(0), 3 << 20);
    // still the one registry's: its run has begun
    blob.comes_from(Some("other.example"));
    assert_eq!(reading.ready(0), 0);
}

#[test]
fn a_chunk_that_is_not_the_recipes_does_not_enter() {
    let world = World::new(3 << 20);
    let blob = world.begin().blob.clone();
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &recipe(&world.content));
    let mut wrong = world.content.clone();
    wrong[5] ^= 1;
    let (chunk, bytes, link) = chunks(&wrong)[0];
    let refused = blob.write(chunk, bytes, link, source(&peer()), (&peer(), None));
    let against = WriteError::Rejected(RejectLinkError::AgainstRecipe(chunk));
    assert_eq!(refused.unwrap_err().to_string(), against.to_string());
    assert_eq!(blob.ready(0), 0);
    world.write(&blob, 0, source(&peer())).unwrap();
    assert_eq!(blob.ready(0), 1 << 20);
}

#[test]
fn a_recipe_that_is_left_lets_nothing_more_out_and_what_was_false_ends_its_readers() {
    let world = World::new(4 << 20);
    let reading = world.begin();
    let blob = &reading.blob;
    let mut wrong = world.content.clone();
    wrong[5] ^= 1;
    // a recipe and a peer that lie together: the truth stands from the third chunk on
    let (honest, lie) = (chunks(&world.content), chunks(&wrong));
    let false_one = proto::message::RecipeContent {
        digest: Digest::of(&world.content).as_bytes().to_vec(),
        size: world.content.len() as u64,
        states: [lie[0].2, lie[1].2, honest[2].2]
            .iter()
            .flat_map(|link| link.after.to_bytes())
            .collect(),
        fingerprints: vec![0; 4 * 16],
        ..Default::default()
    };
    let false_one = prost::Message::encode_to_vec(&false_one);
    let false_one = Arc::new(ContentRecipe::parse(&false_one).unwrap());
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &false_one);
    for (chunk, bytes, link) in lie.iter().take(2) {
        let from = source(&peer());
        blob.write(*chunk, bytes, *link, from, (&peer(), None))
            .unwrap();
    }
    let file = blob.file().unwrap();
    assert!(given(blob, &file, 1 << 20).is_some());
    // the registry's bytes contradict it
    assert_eq!(blob.leave_recipe(), Some(Digest::of(NAME)));
    assert_eq!((blob.leave_recipe(), blob.recipe()), (None, None));
    assert_eq!(blob.ready(0), 0);
    assert!(!reading.is_misled());
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &recipe(&world.content));
    assert_eq!(
        blob.recipe(),
        None,
        "a recipe that was left isn't taken again"
    );
    for at in [2, 3] {
        world.write(blob, at, source(&me())).unwrap();
    }
    // the chain shows what was false, and nobody goes on from it
    assert!(!blob.walk().unwrap().is_empty());
    assert!(reading.is_misled() && !world.blobs.may_resume(&blob.digest()));
    for at in [0, 1] {
        if !blob.held().contains(ChunkIndex(u32::try_from(at).unwrap())) {
            world.write(blob, at, source(&me())).unwrap();
        }
    }
    blob.walk().unwrap();
    assert!(blob.is_whole());
}

#[test]
fn a_recipe_of_another_size_or_against_what_is_held_is_not_taken() {
    let world = World::new(3 << 20);
    let true_one = recipe(&world.content);
    let digest = Digest::of(&world.content);
    let other_size = world.blobs.begin_by(REPOSITORY, digest, 2 << 20).unwrap();
    other_size
        .blob
        .take_recipe(REPOSITORY, Digest::of(NAME), &true_one);
    assert_eq!(other_size.blob.recipe(), None);
    drop(other_size);
    let blob = world.begin().blob.clone();
    let mut wrong = world.content.clone();
    wrong[5] ^= 1;
    let (chunk, bytes, link) = chunks(&wrong)[0];
    blob.write(chunk, bytes, link, source(&peer()), (&peer(), None))
        .unwrap();
    blob.take_recipe(REPOSITORY, Digest::of(NAME), &true_one);
    assert_eq!((blob.recipe(), blob.ready(0)), (None, 0));
}

#[test]
fn another_repositorys_recipe_proves_a_blob_to_nobody() {
    let world = World::new(4 << 20);
    let size = world.content.len() as u64;
    let (digest, part) = (Digest::of(&world.content), recipe(&world.content));
    let (own, other) = ("r.test/own", "r.test/other");
    let learn = |repository| {
        let parts = vec![part.clone()];
        world.blobs.learn_parts(repository, Digest::of(NAME), parts);
    };
    // before and after the blob begins: nobody reads it by that repository
    learn(other);
    let reading = world.blobs.begin_by(own, digest, size).unwrap();
    learn(other);
    assert_eq!(reading.blob.recipe(), None);
    // by now somebody does, whom the recipe serves alone
    let theirs = world.blobs.begin_by(other, digest, size).unwrap();
    assert_eq!(reading.blob.recipe(), Some(Digest::of(NAME)));
    world.write(&reading.blob, 0, source(&me())).unwrap();
    world.write(&reading.blob, 1, source(&peer())).unwrap();
    assert_eq!((reading.ready(0), theirs.ready(0)), (1 << 20, 2 << 20));
    assert_eq!(reading.ready(1 << 20), 1 << 20);
    // the own repository has an equal recipe
    learn(own);
    assert_eq!(reading.ready(0), 2 << 20);
    for at in [2, 3] {
        world.write(&reading.blob, at, source(&peer())).unwrap();
    }
    let nobodys = world.blobs.begin(digest, size).unwrap();
    assert_eq!((nobodys.ready(0), reading.ready(0)), (1 << 20, 3 << 20));
    reading.blob.walk().unwrap();
    assert_eq!((nobodys.ready(0), reading.ready(0)), (size, size));
}

#[test]
fn what_no_client_asked_for_drops_no_blob_of_another_size() {
    let world = World::new(3 << 20);
    let blob = world.begin().blob.clone();
    world.write(&blob, 0, source(&me())).unwrap();
    let digest = blob.digest();
    assert!(blob.is_idle());
    let refused = world.blobs.begin_aside(REPOSITORY, digest, 7).unwrap_err();
    assert!(
        matches!(refused, BeginError::Size { asked: 7, .. }),
        "{refused}"
    );
    assert!(!blob.is_gone() && world.blobs.may_resume(&digest));
    let size = world.content.len() as u64;
    world.blobs.begin_aside(REPOSITORY, digest, size).unwrap();
}
