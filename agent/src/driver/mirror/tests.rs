//! Tests of the mirror's part: wishes go in, and what the swarm, the disk and the coordinator are to do comes out.

use std::time::Duration;

use proto::{
    ChunkSet, Geometry, HostKey,
    image::{ContentKind, ContentSpec},
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{
    mirror::blobs::tests::{bytes, chunks, kept, me, open, rot, source},
    store::{Stage, tests as stages},
};

const STALL: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(30);

/// A mirror with its cache, and the contents that the swarm knows.
struct World {
    dir: TempDir,
    blobs: Arc<Blobs>,
    mirror: Mirror,
    contents: Contents,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(open(dir.path(), 1 << 30));
        let ears = Ears {
            blobs: blobs.clone(),
            wishes: mpsc::channel(1).1,
            stall: STALL,
            grace: GRACE,
        };
        Self {
            dir,
            blobs,
            mirror: Mirror::new(Some(&ears)),
            contents: Contents::new(HostKey(1), Arc::default()),
            now: Instant::now(),
        }
    }

    /// A client asks for a content that the cache lacks.
    fn wish(&mut self, digest: Digest, size: u64) -> (Arc<Blob>, Vec<&'static str>) {
        let reading = self.blobs.begin(digest, size).unwrap();
        let blob = reading.blob.clone();
        let wish = Wish {
            blob: blob.clone(),
            reference: "r.test/a".to_owned(),
            access: Access::default(),
            heard: oneshot::channel().0,
        };
        let effects = self.mirror.wish(self.now, &self.contents, wish);
        // the client goes on waiting
        std::mem::forget(reading);
        let names = self.carry_out(effects);
        (blob, names)
    }

    /// Does what the driver does with these effects, and names them.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<&'static str> {
        let mut names = Vec::new();
        for effect in effects {
            names.push(match effect {
                Effect::Tell(digest, event) => {
                    let Some(content) = self.contents.by_digest(&digest) else {
                        continue;
                    };
                    match event(content.id()) {
                        Event::Wanted { admitted: true, .. } => "admitted",
                        Event::Wanted { alone_after, .. } => {
                            assert_eq!(alone_after, STALL);
                            "wanted"
                        }
                        Event::Unwanted { .. } => "unwanted",
                        Event::Coming { .. } => "coming",
                        other => panic!("{other:?}"),
                    }
                }
                Effect::Join { blob, .. } => {
                    let what = (blob.digest(), blob.geometry());
                    let (held, closed) = (blob.held(), blob.is_closed());
                    let shelf = Shelf::Blob(blob);
                    self.contents.add_mirrored(what, shelf, held, closed);
                    "join"
                }
                Effect::Leave(digest) => {
                    self.contents.remove_mirrored(&digest);
                    "leave"
                }
                Effect::RunBlocking(work) => match work() {
                    Input::Copied(content) => {
                        self.mirror.copied(&content);
                        "copied"
                    }
                    Input::BlobsScrubbed { next, bad } => {
                        let effects = self.mirror.scrubbed(&self.contents, next, bad);
                        names.push("scrubbed");
                        let more = self.carry_out(effects);
                        names.extend(more);
                        continue;
                    }
                    Input::Nothing => "written",
                    other => panic!("{other:?}"),
                },
                Effect::ReportSoon => "report soon",
                Effect::ReportNow => "report now",
            });
        }
        names
    }

    fn reported(&mut self) -> usize {
        self.mirror.report(true).map_or(0, |all| all.wants.len())
    }

    fn keep(&mut self) -> Vec<&'static str> {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(stages::open(&home));
        let keeping = (store, home.path());
        let (bytes, effects) = self.mirror.keep(&self.contents, BTreeSet::new(), keeping);
        assert!(bytes.is_some());
        self.carry_out(effects)
    }

    /// An image that has this content comes into the swarm.
    fn add_image(&mut self, stage: &Arc<Stage>, digest: Digest, size: u64) {
        let spec = ContentSpec {
            digest,
            geometry: Geometry::new(size).unwrap(),
            kind: ContentKind::Blob,
            places: Vec::new(),
        };
        let empty = ChunkSet::empty(spec.geometry.chunks());
        let shelf = Shelf::Stage(stage.clone());
        self.contents
            .add(&spec, (Digest::of(b"image"), shelf), empty, false);
    }
}

#[test]
fn without_a_mirror_nothing_is_wanted_kept_or_reported() {
    let mut mirror = Mirror::new(None);
    let contents = Contents::new(HostKey(1), Arc::default());
    let home = tempfile::tempdir().unwrap();
    let store = Arc::new(stages::open(&home));
    let (bytes, effects) = mirror.keep(&contents, BTreeSet::new(), (store, home.path()));
    assert!(bytes.is_none() && effects.is_empty());
    assert!(mirror.recover().is_none() && mirror.report(true).is_none());
    assert_eq!(mirror.next_look(), None);
}

#[test]
fn a_wish_makes_a_content_of_the_swarm_that_ends_when_it_is_whole() {
    let mut world = World::new();
    let content = bytes(1, 5_000);
    let digest = Digest::of(&content);
    let (blob, names) = world.wish(digest, 5_000);
    assert_eq!(names, ["join", "report now"]);
    assert!(world.mirror.wants(&digest) && world.contents.by_digest(&digest).is_some());
    assert_eq!(world.reported(), 1);
    // the same wish once more changes nothing
    assert_eq!(world.wish(digest, 5_000).1, [] as [&str; 0]);
    let queue = MirrorQueue {
        contents: vec![digest.as_bytes().to_vec(), b"nonsense".to_vec()],
    };
    let effects = world.mirror.are_coming(&world.contents, &queue);
    assert_eq!(world.carry_out(effects), ["coming"]);
    for (chunk, bytes, link) in chunks(&content) {
        blob.write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
    }
    blob.walk().unwrap();
    let effects = world.mirror.look(world.now, &world.contents);
    assert_eq!(world.carry_out(effects), ["unwanted", "report soon"]);
    assert!(!world.mirror.wants(&digest));
    // peers may still ask for it
    assert!(world.contents.by_digest(&digest).is_some());
    assert_eq!(world.reported(), 0);
}

#[test]
fn false_bytes_of_the_registry_leave_the_swarm_and_the_disk() {
    let mut world = World::new();
    let content = bytes(1, 5_000);
    let digest = Digest::of(&content);
    let (blob, _) = world.wish(digest, 5_000);
    let (chunk, bytes, link) = chunks(&content)[0];
    blob.write(chunk, bytes, link, source(&me()), (&me(), None))
        .unwrap();
    let end = FetchEnd::Bad("other bytes".to_owned());
    let effects = world.mirror.fetch_ended(&world.contents, &digest, end);
    let names = world.carry_out(effects);
    assert_eq!(names, ["unwanted", "report soon", "leave", "written"]);
    assert!(world.contents.by_digest(&digest).is_none());
    assert_eq!(blob.held().count(), 0);
}

#[test]
fn a_blob_that_was_evicted_and_is_wanted_again_takes_the_old_ones_place() {
    let mut world = World::new();
    let content = bytes(1, 5_000);
    let digest = kept(&world.blobs, &content);
    let seeds = vec![world.blobs.find(&digest).unwrap()];
    let effects = world.mirror.seeds(&world.contents, seeds.clone());
    assert_eq!(world.carry_out(effects), ["join"]);
    // what the swarm knows isn't joined again
    let effects = world.mirror.seeds(&world.contents, seeds);
    assert_eq!(world.carry_out(effects), [] as [&str; 0]);
    world.blobs.discard(&digest).unwrap();
    let (blob, names) = world.wish(digest, 5_000);
    assert_eq!(names, ["leave", "join", "report now"]);
    let known = world.contents.by_digest(&digest).unwrap().shelves();
    assert!(matches!(&known[..], [Shelf::Blob(known)] if Arc::ptr_eq(known, &blob)));
}

#[test]
fn a_blob_that_rotted_or_was_evicted_isnt_served_any_more() {
    let mut world = World::new();
    let digests = [1, 2].map(|seed| kept(&world.blobs, &bytes(seed, 5_000)));
    let seeds = digests.map(|digest| world.blobs.find(&digest).unwrap());
    let effects = world.mirror.seeds(&world.contents, seeds.to_vec());
    world.carry_out(effects);
    world.blobs.discard(&digests[0]).unwrap();
    assert_eq!(world.keep(), ["leave", "scrubbed"]);
    assert!(world.contents.by_digest(&digests[0]).is_none());
    rot(world.dir.path(), &digests[1], 7);
    assert_eq!(world.keep(), ["scrubbed", "leave"]);
    assert!(world.contents.by_digest(&digests[1]).is_none());
}

#[test]
fn a_blob_that_an_image_has_is_copied_from_the_image_and_not_shared_as_the_mirrors() {
    let mut world = World::new();
    let home = tempfile::tempdir().unwrap();
    let store = stages::open(&home);
    let sample = stages::sample_of(1, &stages::noise(5_000, 3), 70_000, None);
    let (stage, _) = stages::begin(&store, &sample, &["ghcr.io/org/image:one"]);
    let nvram = sample.layout.nvram();
    let (blob, names) = world.wish(nvram.digest, nvram.size);
    assert_eq!(names, ["join", "report now"]);
    // an image with this content is staged
    let effects = world.mirror.follow_image(&world.contents, &nvram.digest);
    assert_eq!(world.carry_out(effects), ["leave"]);
    world.add_image(&stage, nvram.digest, nvram.size);
    assert_eq!(world.reported(), 0, "the image's lease brings it");
    let effect = world.mirror.copy_from_image(&world.contents, &nvram.digest);
    assert!(effect.is_none(), "it isn't verified there yet");
    stages::fill(&stage, &sample);
    let effect = world.mirror.copy_from_image(&world.contents, &nvram.digest);
    let again = world.mirror.copy_from_image(&world.contents, &nvram.digest);
    assert!(again.is_none(), "one copy runs at a time");
    assert_eq!(world.carry_out(effect.into_iter().collect()), ["copied"]);
    assert!(blob.is_whole());
    // it doesn't become a seed: peers get it from the image
    let effects = world.mirror.look(world.now, &world.contents);
    assert_eq!(world.carry_out(effects), ["unwanted", "report soon"]);
    let known = world.contents.by_digest(&nvram.digest).unwrap();
    assert!(!known.is_mirrored());
}
