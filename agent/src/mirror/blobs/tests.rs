use std::{fs::File, os::unix::fs::FileExt as _};

use proto::{ChunkIndex, Link, Source, State};

use super::*;
use crate::{mirror::blob::Trouble, store::Look};

pub(crate) fn me() -> HostId {
    "mac-1".parse().unwrap()
}

fn peer() -> HostId {
    "mac-2".parse().unwrap()
}

fn roomy(_: &Path) -> io::Result<Space> {
    Ok(Space {
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
    })
}

fn full(_: &Path) -> io::Result<Space> {
    Ok(Space {
        total_bytes: 1 << 40,
        free_bytes: 1 << 20,
    })
}

pub(crate) fn open(root: &Path, budget_bytes: u64) -> Blobs {
    let limits = Limits {
        budget_bytes,
        floor: Floor {
            percent: 10,
            kept_bytes: 0,
        },
        space: roomy,
    };
    Blobs::open(root, &me(), limits).unwrap()
}

/// The first bytes of a blob, if they may leave.
pub(crate) fn given(blob: &Blob, file: &File, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    blob.give(file, 0, &mut bytes).unwrap().then_some(bytes)
}

pub(crate) fn bytes(seed: u8, size: usize) -> Vec<u8> {
    let words = (0u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b9).to_le_bytes());
    words.map(|byte| byte ^ seed).take(size).collect()
}

pub(crate) fn chunks(content: &[u8]) -> Vec<(ChunkIndex, &[u8], Link)> {
    let geometry = Geometry::new(content.len() as u64).unwrap();
    let mut state = State::INITIAL;
    (0u32..)
        .zip(content.chunks(1 << 20))
        .map(|(at, bytes)| {
            let link = Link::forge(geometry, ChunkIndex(at), state, bytes);
            state = link.after;
            (ChunkIndex(at), bytes, link)
        })
        .collect()
}

pub(crate) fn source(sender: &HostId) -> Source {
    Source {
        sender: sender.key(),
        maker: sender.key(),
    }
}

fn fill(blob: &Blob, content: &[u8], sender: &HostId) {
    for (chunk, bytes, link) in chunks(content) {
        blob.write(chunk, bytes, link, source(sender), (sender, None))
            .unwrap();
    }
    blob.walk().unwrap();
}

pub(crate) fn kept(blobs: &Blobs, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    let reading = blobs.begin(digest, content.len() as u64).unwrap();
    fill(&reading.blob, content, &me());
    assert!(reading.blob.is_whole());
    digest
}

/// Changes a byte of a whole blob on the disk.
pub(crate) fn rot(root: &Path, digest: &Digest, offset: u64) {
    let path = root.join(WHOLE).join(digest.hex().to_string());
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"?", offset).unwrap();
}

#[test]
fn our_own_bytes_leave_before_the_end_and_the_last_chunk_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(1, 5 << 19);
    let reading = blobs
        .begin(Digest::of(&content), content.len() as u64)
        .unwrap();
    let blob = &reading.blob;
    let all = chunks(&content);
    assert_eq!(blob.ready(0), 0);
    let write = |at: usize| {
        let (chunk, bytes, link) = all[at];
        blob.write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
    };
    write(1);
    assert_eq!(blob.ready(0), 0);
    write(0);
    assert_eq!(blob.ready(0), 2 << 20);
    assert_eq!(blob.ready(3), 2 << 20);
    assert_eq!(blob.ready(2 << 20), 2 << 20);
    write(2);
    // the last chunk is here, but the chain isn't closed yet
    assert_eq!(blob.ready(0), 2 << 20);
    blob.walk().unwrap();
    assert_eq!(blob.ready(0), content.len() as u64);
    let file = blob.file().unwrap();
    assert_eq!(given(blob, &file, content.len()), Some(content));
}

#[test]
fn what_peers_sent_leaves_when_the_chain_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(2, 3 << 20);
    let reading = blobs
        .begin(Digest::of(&content), content.len() as u64)
        .unwrap();
    let all = chunks(&content);
    for (at, sender) in [(0, me()), (1, peer()), (2, me())] {
        let (chunk, bytes, link) = all[at];
        reading
            .blob
            .write(chunk, bytes, link, source(&sender), (&sender, None))
            .unwrap();
        assert_eq!(reading.blob.ready(0), 1 << 20);
    }
    let file = reading.blob.file().unwrap();
    assert_eq!(given(&reading.blob, &file, (1 << 20) + 1), None);
    reading.blob.walk().unwrap();
    assert_eq!(reading.blob.ready(0), 3 << 20);
}

#[test]
fn a_reader_of_one_registry_has_what_came_from_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(3, 5 << 19);
    let begin = || blobs.begin(Digest::of(&content), content.len() as u64);
    let (mut of_one, mut of_other) = (begin().unwrap(), begin().unwrap());
    of_one.limit(Some("one.example".into()));
    of_other.limit(Some("other.example".into()));
    let blob = of_one.blob.clone();
    blob.comes_from(Some("one.example"));
    let all = chunks(&content);
    for (at, sender) in [(0, me()), (1, peer()), (2, peer())] {
        let (chunk, bytes, link) = all[at];
        blob.write(chunk, bytes, link, source(&sender), (&sender, None))
            .unwrap();
        assert_eq!((of_one.ready(0), of_other.ready(0)), (1 << 20, 0));
        assert!(!of_one.is_held_back(1 << 20) && !of_other.is_held_back(0));
    }
    blob.walk().unwrap();
    // the whole blob is here, but a registry's readers still have only what came from their own registry
    assert_eq!((of_one.ready(0), of_other.ready(0)), (1 << 20, 0));
    assert!(!of_one.is_held_back(0) && of_one.is_held_back(1 << 20));
    assert!(of_other.is_held_back(0));
    of_other.limit(None);
    assert_eq!(of_other.ready(0), content.len() as u64);
    // once another registry goes on, the run belongs to no single registry
    blob.comes_from(Some("one.example"));
    assert_eq!(of_one.ready(0), 1 << 20);
    blob.comes_from(Some("other.example"));
    assert!(of_one.is_held_back(0));
}

#[test]
fn false_bytes_that_left_end_their_readers_and_forbid_resuming() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(3, 3 << 20);
    let digest = Digest::of(&content);
    let mut wrong = content.clone();
    wrong[5] ^= 1;
    let reading = blobs.begin(digest, content.len() as u64).unwrap();
    let (chunk, first, link) = chunks(&wrong)[0];
    reading
        .blob
        .write(chunk, first, link, source(&me()), (&me(), None))
        .unwrap();
    // no bytes of the chunk had left, so no reader is misled
    reading.blob.forget_chunk(chunk).unwrap();
    assert!(!reading.is_misled() && blobs.may_resume(&digest));

    reading
        .blob
        .write(chunk, first, link, source(&me()), (&me(), None))
        .unwrap();
    let file = reading.blob.file().unwrap();
    assert!(given(&reading.blob, &file, 9).is_some());
    reading.blob.forget_chunk(chunk).unwrap();
    assert!(reading.is_misled() && !blobs.may_resume(&digest));
    assert_eq!(given(&reading.blob, &file, 9), None);
    // another dropped chunk doesn't mislead a reader that begins now
    let later = reading.blob.read_on();
    reading.blob.forget_chunk(ChunkIndex(1)).unwrap();
    assert!(!later.is_misled());
    // a reader that begins now gets true bytes up to the end
    let fresh = reading.blob.read_on();
    fill(&fresh.blob, &content, &me());
    assert!(!fresh.is_misled() && fresh.blob.is_whole());
    assert!(!blobs.may_resume(&digest));
}

#[test]
fn a_restart_believes_what_is_whole_and_goes_on_with_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (done, half) = (bytes(4, 5 << 19), bytes(5, 4 << 20));
    let (whole, open_digest) = (Digest::of(&done), Digest::of(&half));
    {
        let blobs = open(dir.path(), 1 << 30);
        kept(&blobs, &done);
        let reading = blobs.begin(open_digest, half.len() as u64).unwrap();
        for (chunk, bytes, link) in &chunks(&half)[..2] {
            reading
                .blob
                .write(*chunk, bytes, *link, source(&me()), (&me(), None))
                .unwrap();
        }
        blobs.flush().unwrap();
        // no flush journals this chunk
        let (chunk, bytes, link) = chunks(&half)[2];
        reading
            .blob
            .write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
    }
    let blobs = open(dir.path(), 1 << 30);
    let found = blobs.find(&whole).unwrap();
    assert!(found.is_whole() && found.load_links().unwrap());
    assert_eq!(found.ready(0), done.len() as u64);
    let held = found.read(ChunkIndex(1)).unwrap().unwrap();
    assert!(
        held.link
            .holds(found.geometry(), ChunkIndex(1), &held.bytes)
    );

    let reading = blobs.begin(open_digest, half.len() as u64).unwrap();
    assert_eq!(reading.blob.held().count(), 2);
    // no byte leaves by the word of a journal alone
    assert!(reading.blob.is_unread());
    assert_eq!(reading.blob.ready(0), 0);
    assert_eq!(reading.blob.read_again().unwrap(), []);
    assert_eq!(reading.blob.ready(0), 2 << 20);
    // clients of the earlier process may have any byte of the blob
    reading.blob.forget_chunk(ChunkIndex(1)).unwrap();
    assert!(!blobs.may_resume(&open_digest));
    fill(&reading.blob, &half, &me());
    assert!(reading.blob.is_whole());
}

#[test]
fn a_torn_journal_costs_chunks_and_lost_links_cost_the_peers_only() {
    let dir = tempfile::tempdir().unwrap();
    let (done, half) = (bytes(6, 1 << 20), bytes(7, 2 << 20));
    {
        let blobs = open(dir.path(), 1 << 30);
        kept(&blobs, &done);
        let reading = blobs.begin(Digest::of(&half), half.len() as u64).unwrap();
        let (chunk, bytes, link) = chunks(&half)[0];
        reading
            .blob
            .write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
        blobs.flush().unwrap();
    }
    let name = |digest: Digest| format!("{}.links", digest.hex());
    let journal = dir.path().join(ARRIVING).join(name(Digest::of(&half)));
    let length = fs::metadata(&journal).unwrap().len();
    File::options()
        .write(true)
        .open(&journal)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    fs::remove_file(dir.path().join(WHOLE).join(name(Digest::of(&done)))).unwrap();
    fs::write(dir.path().join(WHOLE).join(name(Digest::of(b"stray"))), b"").unwrap();

    let blobs = open(dir.path(), 1 << 30);
    let found = blobs.find(&Digest::of(&done)).unwrap();
    assert!(found.is_whole() && !found.load_links().unwrap());
    let half = blobs.find(&Digest::of(&half)).unwrap();
    assert!(half.held().is_empty());
    assert!(
        !dir.path()
            .join(WHOLE)
            .join(name(Digest::of(b"stray")))
            .exists()
    );
}

#[test]
fn the_least_used_blob_goes_and_never_one_that_is_read_or_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 4 << 20);
    let contents: Vec<_> = (10..15).map(|seed| bytes(seed, 1 << 20)).collect();
    let digests: Vec<_> = contents[..4]
        .iter()
        .map(|content| kept(&blobs, content))
        .collect();
    // the blobs fill the budget to the byte
    assert_eq!(blobs.tidy(), (4 << 20, 4));
    blobs.pin([digests[0]].into());
    let reader = blobs.find(&digests[1]).unwrap().read_on();
    kept(&blobs, &contents[4]);
    let here = |digest| blobs.find(digest).is_some();
    assert!(here(&digests[0]) && here(&digests[1]) && !here(&digests[2]) && here(&digests[3]));
    assert!(
        !dir.path()
            .join(WHOLE)
            .join(digests[2].hex().to_string())
            .exists()
    );
    // the size is only what some registry says, so a blob that can't fit evicts none
    for size in [(2 << 20) + 1, 50 << 30, 500 << 30] {
        let needs = blobs.begin(Digest::of(b"large"), size).unwrap_err();
        let said = matches!(needs, BeginError::NoRoom { .. } | BeginError::TooLarge(_));
        assert!(said, "{needs}");
        assert_eq!(blobs.tidy(), (4 << 20, 4));
    }
    drop(reader);
    assert!(blobs.begin(Digest::of(b"large"), 3 << 20).is_ok());
}

#[test]
fn a_full_volume_is_said_and_nothing_is_begun() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        budget_bytes: 1 << 40,
        floor: Floor {
            percent: 10,
            kept_bytes: 0,
        },
        space: full,
    };
    let blobs = Blobs::open(dir.path(), &me(), limits).unwrap();
    assert!(matches!(
        blobs.begin(Digest::of(b"x"), 1),
        Err(BeginError::NoRoom { .. })
    ));
    assert_eq!(blobs.tidy(), (0, 0));
}

#[test]
fn what_rotted_is_found_and_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(20, 5 << 19);
    let digest = kept(&blobs, &content);
    let blob = blobs.find(&digest).unwrap();
    let sound = |chunk| matches!(blob.look(ChunkIndex(chunk)).unwrap(), Look::Sound(_));
    assert!(sound(1));
    let path = dir.path().join(WHOLE).join(digest.hex().to_string());
    let mut rotten = content.clone();
    rotten[(1 << 20) + 7] ^= 1;
    fs::write(&path, &rotten).unwrap();
    assert!(sound(0) && !blob.is_rotten());
    assert!(!sound(1) && blob.is_rotten());
    let reading = blob.read_on();
    blobs.discard(&digest).unwrap();
    assert!(reading.is_misled() && blobs.find(&digest).is_none() && !path.exists());
    assert!(matches!(blob.trouble(), Some(Trouble::Stalled(_))));
}

#[test]
fn an_empty_blob_is_whole_at_once_and_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let empty = blobs.begin(Digest::of(b""), 0).unwrap();
    assert!(empty.blob.is_whole());
    let digest = kept(&blobs, &bytes(21, 100));
    let other = blobs.begin(digest, 101).unwrap_err();
    assert!(matches!(
        other,
        BeginError::Size {
            held: 100,
            asked: 101
        }
    ));
    assert!(matches!(
        Blobs::open(
            dir.path(),
            &me(),
            Limits {
                budget_bytes: 1,
                floor: Floor {
                    percent: 0,
                    kept_bytes: 0
                },
                space: roomy
            }
        ),
        Err(OpenError::InUse(_))
    ));
}

#[test]
fn a_verified_blob_that_cannot_be_put_in_its_place_is_put_there_later() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 30);
    let content = bytes(22, 3 << 19);
    let digest = Digest::of(&content);
    let reading = blobs.begin(digest, content.len() as u64).unwrap();
    for (chunk, bytes, link) in chunks(&content) {
        let (blob, me) = (&reading.blob, me());
        blob.write(chunk, bytes, link, source(&me), (&me, None))
            .unwrap();
    }
    let whole = dir.path().join(WHOLE);
    fs::remove_dir(&whole).unwrap();
    assert!(reading.blob.walk().is_err());
    assert!(reading.blob.is_closed() && !reading.blob.is_whole());
    assert_eq!(reading.blob.ready(0), 1 << 20);
    fs::create_dir(&whole).unwrap();
    reading.blob.walk().unwrap();
    assert!(reading.blob.is_whole());
    drop((reading, blobs));
    assert!(open(dir.path(), 1 << 30).find(&digest).unwrap().is_whole());
}

#[test]
fn idle_blobs_give_way_to_an_image_where_that_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 64 << 20);
    let contents: Vec<_> = (0..3).map(|seed| bytes(seed, 2 << 20)).collect();
    let digests: Vec<_> = contents.iter().map(|one| kept(&blobs, one)).collect();
    let reading = blobs.begin(digests[0], 2 << 20).unwrap();
    // one blob is being read, and the other two are smaller than that
    assert!(!blobs.give_way(dir.path(), (4 << 20) + 1));
    assert_eq!(blobs.tidy(), (6 << 20, 3));
    // room on another volume doesn't help
    assert!(!blobs.give_way(Path::new("/proc"), 1));
    assert!(blobs.give_way(dir.path(), 2 << 20));
    assert!(blobs.find(&digests[1]).is_none() && blobs.find(&digests[2]).is_some());
    assert!(blobs.give_way(dir.path(), 1));
    assert!(blobs.find(&digests[2]).is_none() && reading.blob.is_whole());
}

#[test]
fn room_that_an_image_will_take_isnt_taken_by_a_blob() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = open(dir.path(), 1 << 39);
    // half of the volume is free, and a tenth has to stay free
    let room = (1 << 39) - (1_u64 << 40).div_ceil(10);
    blobs.leave(dir.path(), room - (3 << 20));
    let refused = blobs.begin(Digest::of(b"large"), (3 << 20) + 1);
    assert!(matches!(refused, Err(BeginError::NoRoom { .. })));
    blobs.begin(Digest::of(b"small"), 3 << 20).unwrap();
}

#[test]
fn resuming_false_bytes_is_refused_over_a_restart_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let content = bytes(1, (2 << 20) + 5);
    let digest = Digest::of(&content);
    let blobs = open(dir.path(), 64 << 20);
    let reading = blobs.begin(digest, content.len() as u64).unwrap();
    let (chunk, first, link) = chunks(&content)[0];
    reading
        .blob
        .write(chunk, first, link, source(&me()), (&me(), None))
        .unwrap();
    assert!(reading.blob.offer(0, 1 << 20));
    reading.blob.forget_all().unwrap();
    assert!(!blobs.may_resume(&digest));
    drop((reading, blobs));
    let blobs = open(dir.path(), 64 << 20);
    assert!(!blobs.may_resume(&digest));
    drop(blobs);
    // lines whose time is over, or that are malformed
    let long_ago = format!("{digest} 5\nnonsense\n{digest} x\n");
    fs::write(dir.path().join(TAINTS), long_ago).unwrap();
    let blobs = open(dir.path(), 64 << 20);
    assert!(blobs.may_resume(&digest));
}

#[test]
fn links_that_cant_be_read_now_say_nothing_of_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let digest = kept(&open(dir.path(), 64 << 20), &bytes(1, 3 << 20));
    let blob = open(dir.path(), 64 << 20).find(&digest).unwrap();
    let links = dir.path().join(format!("whole/{}.links", digest.hex()));
    let aside = dir.path().join("aside");
    fs::rename(&links, &aside).unwrap();
    fs::create_dir(&links).unwrap();
    assert!(blob.load_links().is_err());
    fs::remove_dir(&links).unwrap();
    assert!(!blob.load_links().unwrap());
    fs::rename(&aside, &links).unwrap();
    assert!(blob.load_links().unwrap());
}

#[test]
fn a_chunk_is_ours_where_it_came_from_the_registry_to_this_host() {
    let dir = tempfile::tempdir().unwrap();
    let content = bytes(1, (2 << 20) + 5);
    let blobs = open(dir.path(), 64 << 20);
    let reading = blobs
        .begin(Digest::of(&content), content.len() as u64)
        .unwrap();
    for ((chunk, bytes, link), sender) in chunks(&content).into_iter().zip([me(), peer(), me()]) {
        reading
            .blob
            .write(chunk, bytes, link, source(&sender), (&sender, None))
            .unwrap();
    }
    let ours = [0, (1 << 20) - 1, 1 << 20, 2 << 20, 9 << 20].map(|at| reading.blob.is_ours(at));
    assert_eq!(ours, [true, true, false, true, false]);
}

#[test]
fn half_a_blob_that_nobody_wants_keeps_no_file_open_and_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let content = bytes(1, (2 << 20) + 5);
    let (digest, size) = (Digest::of(&content), content.len() as u64);
    let open_files = || {
        let open = fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten();
        let here = |path: &PathBuf| path.starts_with(dir.path().join(ARRIVING));
        open.filter_map(|file| fs::read_link(file.path()).ok())
            .filter(here)
            .count()
    };
    let write = |blob: &Blob, at: usize| {
        let (chunk, bytes, link) = chunks(&content)[at];
        blob.write(chunk, bytes, link, source(&me()), (&me(), None))
            .unwrap();
    };
    let blobs = open(dir.path(), 64 << 20);
    let reading = blobs.begin(digest, size).unwrap();
    write(&reading.blob, 0);
    blobs.tidy();
    assert!(!reading.blob.is_parked(), "it is read");
    drop(reading);
    blobs.tidy();
    let reading = blobs.begin(digest, size).unwrap();
    assert_eq!(
        reading.blob.held().count(),
        1,
        "it wasn't flushed, and stayed"
    );
    blobs.flush().unwrap();
    drop(reading);
    blobs.tidy();
    if cfg!(target_os = "linux") {
        assert_eq!(open_files(), 0);
    }
    let reading = blobs.begin(digest, size).unwrap();
    write(&reading.blob, 1);
    blobs.flush().unwrap();
    drop((reading, blobs));
    // the same after a restart
    let blobs = open(dir.path(), 64 << 20);
    if cfg!(target_os = "linux") {
        assert_eq!(open_files(), 0);
    }
    let reading = blobs.begin(digest, size).unwrap();
    assert_eq!(reading.blob.held().count(), 2);
    write(&reading.blob, 2);
    reading.blob.walk().unwrap();
    assert!(reading.blob.is_whole());
}
