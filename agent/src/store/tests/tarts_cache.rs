//! Images come into tart's cache under each of their references, whatever tart and others do there. The chunks of one
//! image help the next.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::store::tree::{Marker, marker};

#[test]
fn a_complete_stage_becomes_an_image_that_tart_finds() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, copied) = begin(&store, &sample, &[TAG]);
    assert_eq!(copied, 0);
    assert!(matches!(
        install(&stage, &[]),
        Err(InstallError::Incomplete(_))
    ));
    fill(&stage, &sample);
    assert!(stage.is_complete() && !stage.is_installed());
    assert_eq!(store.presence(), []);
    install(&stage, &[TAG]).unwrap();
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    assert_installed(&directory, &sample);
    let link = directory.with_file_name("one");
    assert_eq!(fs::read_link(&link).unwrap(), directory);
    assert!(!directory.join(cache::MARKER).exists());
    assert_eq!(
        store.presence(),
        [Presence {
            digest: *sample.layout.digest(),
            references: vec![TAG.into()],
            moved: vec![],
        }]
    );
    // zeros are holes
    let disk = fs::metadata(directory.join(cache::DISK)).unwrap();
    assert!(disk.blocks() * 512 < disk.len() - (2 << 20));
    // and the stage goes on seeding
    for (digest, bytes) in &sample.contents {
        for (chunk, link, bytes) in links(bytes) {
            let held = stage.read(*digest, chunk).unwrap().unwrap();
            assert!(held.bytes == bytes && held.link == link);
            assert_eq!(held.maker, host("mac-1"));
        }
    }
}

#[test]
fn a_further_reference_is_only_a_link() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let digest_form = format!("ghcr.io/org/image@{}", sample.layout.digest());
    let elsewhere = "127.0.0.1:5000/mirror:one";
    let (again, copied) = begin(&store, &sample, &[&digest_form]);
    assert!(again.is_installed() && again.is_complete() && copied == 0);
    install(&again, &[&digest_form, "ghcr.io/org/image:two", elsewhere]).unwrap();
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    assert_eq!(marker(&directory.join(cache::MARKER)), Marker::Ours);
    let twin = image_dir(&home, "127.0.0.1%3A5000/mirror", &sample);
    assert_installed(&twin, &sample);
    // an edit of one directory edits no other
    for part in cache::PARTS.iter().chain(&[cache::MANIFEST]) {
        let inode = |directory: &Path| fs::metadata(directory.join(part)).unwrap().ino();
        assert_ne!(inode(&twin), inode(&directory), "{part}");
    }
    assert!(!twin.join(cache::MARKER).exists());
    let references = store.presence().remove(0).references;
    assert_eq!(
        references,
        [TAG, &digest_form, "ghcr.io/org/image:two", elsewhere]
    );
    assert!(!ours(&home, &sample).join("twin").exists());
    // tart removes the first directory: the image is still there under the other registry
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(store.presence().remove(0).references, [elsewhere]);
    // and bytes are read from that directory now
    let config = sample.layout.config().digest;
    assert!(again.read(config, ChunkIndex(0)).unwrap().is_some());
    drop((stage, again, store));
    let recovered = open(&home).recovered().remove(0);
    assert!(recovered.stage.is_installed() && !recovered.present);
}

#[test]
fn a_chunk_that_rotted_does_not_reach_a_second_repository() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let elsewhere = "127.0.0.1:5000/mirror:one";
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    let twin = image_dir(&home, "127.0.0.1%3A5000/mirror", &sample);
    // damages the second place of a layer that is used twice, a chunk of zeros, and a small file
    let layers = sample.layout.layers();
    let raw = layers[2].raw.unwrap();
    let config = sample.layout.config().digest;
    for (part, at, content, chunk) in [
        (cache::DISK, layers[2].offset + 5, raw, 0),
        (cache::DISK, layers[0].offset + CHUNK_BYTES + 9, raw, 1),
        (cache::CONFIG, 2, config, 0),
    ] {
        let file = fs::File::options().write(true).open(directory.join(part));
        file.unwrap().write_all_at(b"?", at).unwrap();
        let refused = install(&stage, &[elsewhere]);
        assert!(matches!(refused, Err(InstallError::Incomplete(open)) if open == content));
        assert!(!twin.exists());
        let chunk = ChunkIndex(chunk);
        let image = *sample.layout.digest();
        assert_eq!(
            store.take_news(),
            [News::Rotted {
                image,
                content,
                chunk
            }]
        );
        assert!(!stage.held(content).contains(chunk));
        fill(&stage, &sample);
        assert_installed(&directory, &sample);
    }
    install(&stage, &[elsewhere]).unwrap();
    assert_installed(&twin, &sample);
    // mending one directory writes both
    let nvram = fs::File::options()
        .write(true)
        .open(twin.join(cache::NVRAM));
    nvram.unwrap().write_all_at(b"?", 7).unwrap();
    let content = sample.layout.nvram().digest;
    assert!(!stage.scrub(content, ChunkIndex(0)).unwrap());
    fill(&stage, &sample);
    assert_installed(&twin, &sample);
    assert_installed(&directory, &sample);
    // the next start knows both directories
    store.flush().unwrap();
    drop((stage, store));
    let store = open(&home);
    assert_eq!(store.presence()[0].references, [TAG, elsewhere]);
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(store.presence()[0].references, [elsewhere]);
    let stage = store.stage(sample.layout.digest()).unwrap();
    assert!(stage.read(content, ChunkIndex(0)).unwrap().is_some());
}

#[test]
fn a_copy_for_a_second_repository_counts_as_written() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample_with(1, None));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let first = stage.files().written_bytes();
    assert!(first > 2 << 20, "{first}");
    install(&stage, &["127.0.0.1:5000/mirror:one"]).unwrap();
    let second = stage.files().written_bytes() - first;
    // a clone has all of it
    let clones = store.volume().clones;
    assert_eq!(second, if clones { 0 } else { first });
}

#[test]
fn a_copy_for_a_second_repository_needs_room() {
    fn space(home: &Path) -> io::Result<Space> {
        let spare = fs::metadata(home.join("spare")).map_or(0, |found| found.len());
        Ok(Space {
            total_bytes: 64 << 20,
            free_bytes: (64 << 20) - spare,
        })
    }
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let with = Options { space, ..options() };
    let store = Store::open(home.path(), with).unwrap();
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let clones = platform::clone_file(
        &image_dir(&home, "ghcr.io/org/image", &sample).join(cache::DISK),
        &home.path().join("clone"),
    );
    fs::write(home.path().join("spare"), vec![0; 63 << 20]).unwrap();
    let elsewhere = install(&stage, &["127.0.0.1:5000/mirror:one"]);
    if clones.is_ok() {
        // a clone takes no room
        elsewhere.unwrap();
        return;
    }
    assert!(
        matches!(elsewhere, Err(InstallError::NoRoom(_))),
        "{elsewhere:?}"
    );
    assert_eq!(store.outstanding_bytes(), 0);
    fs::remove_file(home.path().join("spare")).unwrap();
    install(&stage, &[]).unwrap();
}

#[test]
fn a_restart_goes_on_from_the_last_flush() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    let (digest, bytes) = sample
        .contents
        .iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap();
    let links = links(bytes);
    let write = |stage: &Stage, (chunk, link, bytes): &(ChunkIndex, Link, &[u8])| {
        stage
            .write(
                *digest,
                *chunk,
                bytes,
                *link,
                source("mac-1"),
                (&host("mac-1"), None),
            )
            .unwrap()
    };
    assert_eq!(write(&stage, &links[1]), Entered::New);
    assert_eq!(write(&stage, &links[3]), Entered::New);
    store.flush().unwrap();
    assert_eq!(write(&stage, &links[0]), Entered::New);
    assert_eq!(write(&stage, &links[0]), Entered::Held);
    drop((stage, store));
    let store = open(&home);
    let recovered = store.recovered().remove(0);
    assert_eq!(recovered.references, [TAG]);
    assert!(!recovered.present && !recovered.stage.is_installed());
    let stage = begin(&store, &sample, &["ghcr.io/org/image:two"]).0;
    assert!(Arc::ptr_eq(&stage, &recovered.stage));
    let held: Vec<_> = stage.held(*digest).iter().collect();
    assert_eq!(held, [ChunkIndex(1), ChunkIndex(3)]);
    assert_eq!(
        stage.read(*digest, ChunkIndex(1)).unwrap().unwrap().bytes,
        links[1].2
    );
    assert!(stage.read(*digest, ChunkIndex(0)).unwrap().is_none());
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    assert_eq!(store.presence()[0].references.len(), 2);
}

#[test]
fn an_installation_that_dies_at_any_step_is_finished_by_the_next() {
    for form in [0, 1, 2] {
        let sample = sample(1);
        let by_digest = format!("ghcr.io/org/image@{}", sample.layout.digest());
        let all = [TAG, &by_digest, "localhost:5000/other/name:x"];
        let references = match form {
            0 => &all[..1],
            1 => &all[1..2],
            _ => &all[..],
        };
        let mut steps = 0;
        loop {
            let home = tempfile::tempdir().unwrap();
            let store = open(&home);
            let (stage, _) = begin(&store, &sample, references);
            fill(&stage, &sample);
            STEPS_LEFT.set(steps);
            let died = install(&stage, references).is_err();
            STEPS_LEFT.set(usize::MAX);
            drop((stage, store));
            let store = open(&home);
            let recovered = store.recovered().remove(0);
            assert!(recovered.stage.is_complete(), "step {steps}");
            assert!(died || recovered.present, "step {steps}");
            let (stage, copied) = begin(&store, &sample, references);
            assert_eq!(copied, 0);
            install(&stage, references).unwrap();
            assert_eq!(store.presence()[0].references, references, "step {steps}");
            let directory = image_dir(&home, "ghcr.io/org/image", &sample);
            assert_installed(&directory, &sample);
            let marked = directory.join(cache::MARKER).exists();
            assert_eq!(marked, form > 0, "form {form}, step {steps}");
            assert!(!ours(&home, &sample).join(IMAGE).exists());
            if !died {
                break;
            }
            steps += 1;
        }
        assert!(steps >= 4, "{steps} steps");
    }
}

#[test]
fn tarts_marker_survives_a_crash_amid_the_exchange() {
    for steps in 0.. {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
        let store = open(&home);
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        let directory = image_dir(&home, "ghcr.io/org/image", &sample);
        fs::create_dir_all(&directory).unwrap();
        for part in cache::PARTS.iter().chain(&[cache::MARKER]) {
            fs::write(directory.join(part), "").unwrap();
        }
        STEPS_LEFT.set(steps);
        let died = install(&stage, &[]).is_err();
        STEPS_LEFT.set(usize::MAX);
        drop((stage, store));
        let store = open(&home);
        let (stage, _) = begin(&store, &sample, &[TAG]);
        install(&stage, &[]).unwrap();
        assert_installed(&directory, &sample);
        let path = directory.join(cache::MARKER);
        assert_eq!(marker(&path), Marker::Theirs, "step {steps}");
        if !died {
            assert!(steps >= 4, "{steps} steps");
            break;
        }
    }
}

#[test]
fn what_tart_pulled_meanwhile_is_replaced_by_what_is_verified() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    fs::create_dir_all(&directory).unwrap();
    for part in cache::PARTS.iter().chain(&[cache::MARKER]) {
        fs::write(directory.join(part), "unverified").unwrap();
    }
    symlink("/elsewhere", directory.with_file_name("one")).unwrap();
    install(&stage, &[]).unwrap();
    assert_installed(&directory, &sample);
    assert_eq!(fs::read(directory.join(cache::MARKER)).unwrap(), b"");
    assert_eq!(store.presence()[0].references, [TAG]);
    assert!(!ours(&home, &sample).join(IMAGE).exists());
}

#[test]
fn tarts_lock_is_honoured() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let registry = home.path().join("cache/OCIs/ghcr.io");
    fs::create_dir_all(&registry).unwrap();
    let pull = platform::lock_directory(&registry, Duration::ZERO).unwrap();
    assert!(matches!(install(&stage, &[]), Err(InstallError::Busy(_))));
    assert_eq!(store.presence(), []);
    // a directory that is ready for the cache isn't made again by each attempt
    let manifest = ours(&home, &sample).join(IMAGE).join(cache::MANIFEST);
    let made = fs::metadata(&manifest).unwrap();
    assert!(matches!(install(&stage, &[]), Err(InstallError::Busy(_))));
    let found = fs::metadata(&manifest).unwrap();
    assert_eq!(
        (found.ino(), found.modified().unwrap()),
        (made.ino(), made.modified().unwrap())
    );
    drop(pull);
    install(&stage, &[]).unwrap();
}

#[test]
fn a_twin_that_waits_for_tarts_lock_is_kept_until_nobody_wants_it() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let elsewhere = "127.0.0.1:5000/mirror:one";
    let registry = cache::host_directory(home.path(), &elsewhere.parse().unwrap());
    fs::create_dir_all(&registry).unwrap();
    let pull = platform::lock_directory(&registry, Duration::ZERO).unwrap();
    let twin = ours(&home, &sample).join("twin/disk.img");
    let inode = || fs::metadata(&twin).ok().map(|disk| disk.ino());
    let busy = || {
        let (placed, result) = install_as(&stage, &[TAG.to_owned(), elsewhere.to_owned()]);
        assert!(matches!(result, Err(InstallError::Busy(_))), "{result:?}");
        // the reference under which tart finds the image stays
        assert_eq!(placed, [TAG]);
        inode().unwrap()
    };
    assert_eq!(busy(), busy(), "the twin isn't made again at each try");
    let image = *sample.layout.digest();
    let wanted = [TAG.to_owned(), elsewhere.to_owned()];
    store.want(&image, &wanted).unwrap();
    assert!(inode().is_some());
    store.want(&image, &wanted[..1]).unwrap();
    assert_eq!(inode(), None);
    drop(pull);
    assert_eq!(store.presence()[0].references, [TAG]);
    let (placed, result) = install_as(&stage, &wanted);
    result.unwrap();
    assert_eq!(placed, wanted);
    assert_eq!(inode(), None);
}

#[test]
fn names_are_wanted_also_where_somebody_removed_our_directory() {
    let (home, first, second) = (tempfile::tempdir().unwrap(), sample(1), sample(2));
    let store = open(&home);
    drop(begin(&store, &first, &[TAG]));
    fs::remove_dir_all(ours(&home, &first)).unwrap();
    // nobody has looked at the disk yet
    let digest = |sample: &Sample| *sample.layout.digest();
    store.want(&digest(&first), &[]).unwrap();
    store.want(&digest(&second), &[TAG.to_owned()]).unwrap();
    drop(begin(&store, &second, &[TAG]));
    drop(store.presence());
    let image = digest(&first);
    assert_eq!(store.take_news(), [News::Removed { image }]);
}

#[test]
fn something_else_in_the_tags_place_is_named() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let way = home.path().join("cache/OCIs/ghcr.io/org/image/one");
    fs::create_dir_all(&way).unwrap();
    assert!(matches!(
        install(&stage, &[]),
        Err(InstallError::InTheWay { .. })
    ));
    assert!(way.is_dir());
}

#[test]
fn an_image_that_somebody_removes_is_not_present() {
    let sample = sample(1);
    let installed = || {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home);
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        install(&stage, &[]).unwrap();
        let directory = image_dir(&home, "ghcr.io/org/image", &sample);
        (home, store, stage, directory)
    };
    let content = sample.layout.config().digest;

    let (home, store, stage, directory) = installed();
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(store.presence(), []);
    assert!(stage.read(content, ChunkIndex(0)).unwrap().is_none());
    assert!(!ours(&home, &sample).exists());
    let (again, _) = begin(&store, &sample, &[TAG]);
    assert!(!again.is_complete());

    for part in cache::PARTS {
        let (_home, store, _stage, directory) = installed();
        fs::remove_file(directory.join(part)).unwrap();
        assert_eq!(store.presence(), [], "{part}");
    }

    let (_home, store, _stage, directory) = installed();
    fs::remove_file(directory.join(cache::DISK)).unwrap();
    fs::write(directory.join(cache::DISK), &sample.disk).unwrap();
    assert_eq!(store.presence(), [], "another file");

    let (_home, store, stage, directory) = installed();
    let link = directory.with_file_name("one");
    fs::remove_file(&link).unwrap();
    symlink("/elsewhere", &link).unwrap();
    assert_eq!(store.presence()[0].references, [""; 0]);
    install(&stage, &[]).unwrap();
    assert_eq!(store.presence()[0].references, [TAG]);
}

#[test]
fn a_tag_that_moved_on_is_not_taken_back() {
    let (home, old, new) = (tempfile::tempdir().unwrap(), sample(1), sample(200));
    let store = open(&home);
    for sample in [&old, &new] {
        let (stage, _) = begin(&store, sample, &[TAG]);
        fill(&stage, sample);
        install(&stage, &[]).unwrap();
    }
    let references = |store: &Store, sample: &Sample| {
        let presence = store.presence().into_iter();
        let found = presence.filter(|presence| presence.digest == *sample.layout.digest());
        found.map(|presence| presence.references).next().unwrap()
    };
    assert_eq!(references(&store, &old), [""; 0]);
    assert_eq!(references(&store, &new), [TAG]);
    let moved: Vec<_> = store
        .presence()
        .into_iter()
        .map(|presence| (presence.digest, presence.moved))
        .collect();
    assert!(moved.contains(&(*old.layout.digest(), vec![TAG.into()])));
    assert!(moved.contains(&(*new.layout.digest(), vec![])));
    drop(store);
    let store = open(&home);
    let recovered: Vec<_> = store.recovered();
    assert_eq!(recovered.len(), 1);
    assert!(recovered[0].present && recovered[0].layout == new.layout);
    let stage = store.stage(old.layout.digest()).unwrap();
    assert!(matches!(
        install(&stage, &[]),
        Err(InstallError::NoReference(_))
    ));
    assert_eq!(references(&store, &new), [TAG]);
    // a rollback takes the tag on purpose
    let (stage, _) = begin(&store, &old, &[TAG]);
    install(&stage, &[TAG]).unwrap();
    assert_eq!(references(&store, &old), [TAG]);
    assert_eq!(references(&store, &new), [""; 0]);
}

#[test]
fn what_another_image_holds_is_copied() {
    let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(200));
    let store = open(&home);
    let (stage, _) = begin(&store, &one, &[TAG]);
    fill(&stage, &one);
    install(&stage, &[]).unwrap();
    let common = one
        .contents
        .iter()
        .find(|(digest, _)| two.contents.contains_key(digest))
        .unwrap();
    let (stage, copied) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    assert_eq!(copied, common.1.len() as u64);
    assert!(stage.is_closed(*common.0));
    fill(&stage, &two);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &two), &two);
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &one), &one);
}

#[test]
fn a_chunk_that_changed_on_disk_is_not_copied() {
    let (home, one, two) = (tempfile::tempdir().unwrap(), sample(1), sample(200));
    let store = open(&home);
    let (stage, _) = begin(&store, &one, &[TAG]);
    fill(&stage, &one);
    install(&stage, &[]).unwrap();
    let disk = image_dir(&home, "ghcr.io/org/image", &one).join(cache::DISK);
    let disk = fs::OpenOptions::new().write(true).open(disk).unwrap();
    disk.write_all_at(b"?", 5).unwrap();
    let (stage, copied) = begin(&store, &two, &["ghcr.io/org/image:two"]);
    let common = one.layout.layers()[0].raw.unwrap();
    let chunk = ChunkIndex(0);
    // a clone gets the chunk from the layer's second place; a copy reads the first place
    if stage.is_closed(common) {
        assert_eq!(copied, 3 * CHUNK_BYTES + 100_000);
    } else {
        assert!(!stage.held(common).contains(chunk));
        assert_eq!(copied, 2 * CHUNK_BYTES + 100_000);
    }
    // the rotten chunk isn't held any more in the old image, and is reported
    let old = store.stage(one.layout.digest()).unwrap();
    assert!(!old.held(common).contains(chunk));
    let (image, content) = (*one.layout.digest(), common);
    let rotted = News::Rotted {
        image,
        content,
        chunk,
    };
    assert_eq!(store.take_news(), [rotted]);
    fill(&stage, &two);
    install(&stage, &[]).unwrap();
    assert_installed(&image_dir(&home, "ghcr.io/org/image", &two), &two);
}

#[test]
fn a_half_record_and_a_link_to_nowhere_are_no_image_and_are_repaired() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let store = open(&home);
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    let directory = image_dir(&home, "ghcr.io/org/image", &sample);
    let repository = directory.parent().unwrap().to_owned();
    // tart (from 2.36 on) left a record without its disk, which its `pull` takes for an image and its `clone` doesn't
    fs::create_dir_all(&directory).unwrap();
    for part in [cache::CONFIG, cache::NVRAM, cache::MANIFEST] {
        fs::write(directory.join(part), "theirs").unwrap();
    }
    assert!(!cache::is_complete(home.path(), &directory));
    install(&stage, &[]).unwrap();
    assert_installed(&directory, &sample);
    // its prune left the tag's link without what it leads to
    let link = repository.join("one");
    fs::remove_file(&link).unwrap();
    let nowhere = repository.join(Digest::of(b"pruned").to_string());
    symlink(&nowhere, &link).unwrap();
    assert_eq!(store.presence()[0].references, Vec::<String>::new());
    // the tag wasn't moved to another image, so the link is ours to make again
    assert_eq!(store.presence()[0].moved, Vec::<String>::new());
    install(&stage, &[]).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), directory);
    // nor to one of which only a half record is there
    fs::create_dir_all(&nowhere).unwrap();
    for part in [cache::CONFIG, cache::NVRAM] {
        fs::write(nowhere.join(part), "theirs").unwrap();
    }
    fs::remove_file(&link).unwrap();
    symlink(&nowhere, &link).unwrap();
    assert_eq!(store.presence()[0].moved, Vec::<String>::new());
    install(&stage, &[]).unwrap();
    assert_eq!(store.presence()[0].references, [TAG]);
    // without its manifest, as tart up to 2.35 may have it, the image is there all the same
    fs::remove_file(directory.join(cache::MANIFEST)).unwrap();
    assert_eq!(store.presence()[0].references, [TAG]);
}

/// The first half of tart's `gc`, which takes no lock: the records to which no link leads (VMStorageOCI.swift: gc).
fn unnamed(home: &Path) -> Vec<PathBuf> {
    let mut records = cache::images(home).unwrap();
    records.retain(|record| cache::links(record).unwrap().is_empty());
    records
}

/// The second half: those of them go that have no marker now.
fn collect(unnamed: Vec<PathBuf>) {
    for record in unnamed {
        if record.exists() && !record.join(cache::MARKER).exists() {
            fs::remove_dir_all(record).unwrap();
        }
    }
}

#[test]
fn a_collection_that_counted_links_before_ours_was_made_removes_nothing() {
    for (guard, stays) in [(Duration::ZERO, false), (Duration::from_mins(1), true)] {
        let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
        let with = Options { guard, ..options() };
        let store = Store::open(home.path(), with).unwrap();
        let (stage, _) = begin(&store, &sample, &[TAG]);
        fill(&stage, &sample);
        let counted = Rc::new(RefCell::new(Vec::new()));
        let hook = at_steps({
            let (counted, home) = (counted.clone(), home.path().to_owned());
            move |step| {
                if step == "moved" {
                    *counted.borrow_mut() = unnamed(&home);
                }
                Ok(())
            }
        });
        install(&stage, &[]).unwrap();
        drop(hook);
        assert_eq!(counted.borrow().len(), 1);
        collect(counted.take());
        assert_eq!(stage.is_named(TAG), stays, "guarded for {guard:?}");
        if !stays {
            continue;
        }
        // again, with the guard there: it is in place, and stays guarded
        let directory = image_dir(&home, "ghcr.io/org/image", &sample);
        let guarded = || marker(&directory.join(cache::MARKER)) == Marker::Guard;
        install(&stage, &[]).unwrap();
        store.unguard();
        assert!(guarded(), "the link is young");
        drop((stage, store));
        let store = Store::open(home.path(), with).unwrap();
        store.unguard();
        assert!(guarded(), "also for another process");
        // a minute later a collection that counts finds the link
        age_link(&home);
        let lock =
            platform::lock_directory(&home.path().join("cache/OCIs/ghcr.io"), Duration::ZERO);
        store.unguard();
        assert!(guarded(), "tart has its lock");
        drop(lock);
        store.unguard();
        assert!(!directory.join(cache::MARKER).exists());
        collect(unnamed(home.path()));
        let stage = store.stage(sample.layout.digest()).unwrap();
        assert!(stage.is_named(TAG));
        install(&stage, &[]).unwrap();
        assert!(!directory.join(cache::MARKER).exists());
    }
}

/// The tag's link was made two minutes ago.
fn age_link(home: &TempDir) {
    let link = home.path().join("cache/OCIs/ghcr.io/org/image/one");
    let made = SystemTime::now() - Duration::from_mins(2);
    let since = made.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let time = rustix::fs::Timespec {
        tv_sec: since.as_secs().try_into().unwrap(),
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, link, &times, flags).unwrap();
}

#[test]
fn a_guard_ends_where_the_tag_was_taken_and_becomes_ours_for_a_digest() {
    let (home, sample) = (tempfile::tempdir().unwrap(), sample(1));
    let with = Options {
        guard: Duration::from_mins(1),
        ..options()
    };
    let store = Store::open(home.path(), with).unwrap();
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let path = image_dir(&home, "ghcr.io/org/image", &sample).join(cache::MARKER);
    assert_eq!(marker(&path), Marker::Guard);
    let by_digest = format!("ghcr.io/org/image@{}", sample.layout.digest());
    install(&stage, &[&by_digest]).unwrap();
    assert_eq!(marker(&path), Marker::Ours);
    // of another image the tag is taken away: tart may collect it at once
    let (home, sample) = (tempfile::tempdir().unwrap(), super::sample(2));
    let store = Store::open(home.path(), with).unwrap();
    let (stage, _) = begin(&store, &sample, &[TAG]);
    fill(&stage, &sample);
    install(&stage, &[]).unwrap();
    let path = image_dir(&home, "ghcr.io/org/image", &sample).join(cache::MARKER);
    fs::remove_file(home.path().join("cache/OCIs/ghcr.io/org/image/one")).unwrap();
    store.unguard();
    assert!(!path.exists());
}
