//! Tests of the cache's care on a directory: what is read again, what is dropped, and what a copy makes of bad bytes.

use std::{fs, os::unix::fs::FileExt as _};

use tempfile::TempDir;

use super::*;
use crate::{
    mirror::blobs::tests::{bytes, chunks, kept, me, open, rot, source},
    store::tests as stages,
};

const MIB: usize = 1 << 20;

fn cache(dir: &TempDir) -> Blobs {
    open(dir.path(), 1 << 30)
}

/// A blob that a client reads, and that holds nothing yet.
fn begun(blobs: &Blobs, content: &[u8]) -> Arc<Blob> {
    let size = content.len() as u64;
    let reading = blobs.begin(Digest::of(content), size).unwrap();
    reading.blob.clone()
}

fn scrubbed(done: Input) -> ((Option<Digest>, u32), Option<Digest>) {
    match done {
        Input::BlobsScrubbed { next, bad } => (next, bad),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_mirror_there_is_nothing_to_care_for() {
    let home = tempfile::tempdir().unwrap();
    let cache = BlobCache::new(None);
    let store = Arc::new(stages::open(&home));
    assert!(cache.blobs().is_none() && cache.recover().is_none());
    assert!(cache.scrub(store, home.path()).is_none());
}

#[test]
fn whole_blobs_of_an_earlier_process_are_found_and_others_arent() {
    let dir = tempfile::tempdir().unwrap();
    let whole = {
        let blobs = cache(&dir);
        let whole = kept(&blobs, &bytes(1, 5_000));
        let part = bytes(2, 2 * MIB);
        let blob = begun(&blobs, &part);
        let (chunk, bytes, link) = chunks(&part)[0];
        blob.write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
        whole
    };
    let cache = BlobCache::new(Some(Arc::new(cache(&dir))));
    let Input::Seeds(seeds) = cache.recover().unwrap()() else {
        panic!("the job finds seeds");
    };
    let found: Vec<Digest> = seeds.iter().map(|blob| blob.digest()).collect();
    assert_eq!(found, [whole]);
    assert!(seeds[0].is_closed(), "its links are there to be served");
}

#[test]
fn a_scrub_reads_a_few_chunks_and_goes_on_through_all_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = cache(&dir);
    assert_eq!(scrubbed(scrub(&blobs, None, 0)), ((None, 0), None));
    let large = kept(&blobs, &bytes(1, SCRUB_CHUNKS as usize * MIB + 1));
    let small = kept(&blobs, &bytes(2, 5_000));
    let (mut seen, mut at) = (Vec::new(), (None, 0));
    for _ in 0..6 {
        let (next, bad) = scrubbed(scrub(&blobs, at.0, at.1));
        assert_eq!(bad, None);
        seen.push(next);
        at = next;
    }
    let round = match large < small {
        true => [
            (Some(large), SCRUB_CHUNKS),
            (Some(large), 0),
            (Some(small), 0),
        ],
        false => [
            (Some(small), 0),
            (Some(large), SCRUB_CHUNKS),
            (Some(large), 0),
        ],
    };
    assert_eq!(seen, [round, round].concat());
}

#[test]
fn a_blob_that_rotted_is_dropped_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = cache(&dir);
    let content = bytes(1, 2 * MIB);
    let digest = kept(&blobs, &content);
    let blob = blobs.find(&digest).unwrap();
    rot(dir.path(), &digest, MIB as u64 + 7);
    assert_eq!(
        scrubbed(scrub(&blobs, None, 0)),
        ((Some(digest), 0), Some(digest))
    );
    assert!(blobs.find(&digest).is_none() && blob.is_gone());
    // what comes next isn't held up by it, and it may come again
    assert_eq!(scrubbed(scrub(&blobs, Some(digest), 0)), ((None, 0), None));
    assert_eq!(kept(&blobs, &content), digest);
}

#[test]
fn a_blob_is_copied_from_an_image_chunk_by_chunk() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, blobs) = (stages::open(&home), cache(&dir));
    let sample = stages::sample_of(1, &stages::noise(5_000, 3), 70_000, None);
    let (stage, _) = stages::begin(&store, &sample, &["ghcr.io/org/image:one"]);
    let nvram = sample.layout.nvram();
    let blob = {
        let reading = blobs.begin(nvram.digest, nvram.size).unwrap();
        reading.blob.clone()
    };
    // before the image has it
    assert!(
        matches!(copy(&Shelf::Stage(stage.clone()), &blob), Input::Copied(content) if content == nvram.digest)
    );
    assert!(matches!(blob.trouble(), Some(Trouble::Disk(_))) && !blob.is_whole());
    stages::fill(&stage, &sample);
    blob.set_trouble(None);
    copy(&Shelf::Stage(stage.clone()), &blob);
    assert_eq!(blob.trouble(), None);
    assert!(blob.is_whole());
}

#[test]
fn a_blob_with_a_false_recipe_is_copied_from_a_verified_image_all_the_same() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, blobs) = (stages::open(&home), cache(&dir));
    let sample = stages::sample_of(1, &stages::noise(3 * MIB, 3), 70_000, None);
    let (stage, _) = stages::begin(&store, &sample, &["ghcr.io/org/image:one"]);
    stages::fill(&stage, &sample);
    let contents = sample.layout.contents();
    let large = contents.iter().max_by_key(|spec| spec.geometry.size());
    let large = large.unwrap();
    let by = stages::recipe_with(&sample, large.digest, |of| of.states[40] ^= 1);
    let by_repository = "r.test/a";
    let reading = blobs.begin_by(by_repository, large.digest, large.geometry.size());
    let blob = reading.unwrap().blob.clone();
    let false_one = by.recipe.content(&large.digest).unwrap();
    blob.take_recipe(by_repository, by.file.digest, false_one);
    assert_eq!(blob.recipe(), Some(by.file.digest));
    copy(&Shelf::Stage(stage), &blob);
    assert_eq!((blob.trouble(), blob.recipe()), (None, None));
    assert!(blob.is_whole());
}

#[test]
fn a_byte_that_rotted_in_an_image_doesnt_reach_the_cache() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, blobs) = (stages::open(&home), cache(&dir));
    let sample = stages::sample_of(1, &stages::noise(5_000, 3), 70_000, None);
    let (stage, _) = stages::begin(&store, &sample, &["ghcr.io/org/image:one"]);
    stages::fill(&stage, &sample);
    let nvram = stages::ours(&home, &sample).join("image/nvram.bin");
    let file = fs::File::options().write(true).open(nvram).unwrap();
    file.write_all_at(b"?", 7).unwrap();
    let nvram = sample.layout.nvram();
    let reading = blobs.begin(nvram.digest, nvram.size).unwrap();
    copy(&Shelf::Stage(stage.clone()), &reading.blob);
    let trouble = reading.blob.trouble();
    assert!(
        matches!(&trouble, Some(Trouble::Disk(why)) if why.contains("changed on disk")),
        "{trouble:?}"
    );
    assert!(!reading.blob.is_whole() && reading.blob.ready(0) == 0);
}

#[test]
fn false_bytes_are_forgotten_and_their_clients_told() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = cache(&dir);
    let content = bytes(1, 2 * MIB);
    let blob = begun(&blobs, &content);
    let (chunk, bytes, link) = chunks(&content)[0];
    blob.write(chunk, bytes, link, source(&me()), (&me(), None))
        .unwrap();
    assert_eq!(blob.ready(0), MIB as u64);
    assert!(matches!(forget_all(&blob, "false".into()), Input::Nothing));
    assert_eq!((blob.ready(0), blob.held().count()), (0, 0));
    assert_eq!(blob.trouble(), Some(Trouble::Bad("false".into())));
}
